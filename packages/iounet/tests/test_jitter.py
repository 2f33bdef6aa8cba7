"""Jittered boxes: uniform in IoU, with labels that are the boxes' own, inside of the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from iounet import sample_jittered_boxes
from iounet._boxes import paired_iou, pairwise_iou

SIZE = (150, 200)  # height, width


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ground_truth(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Boxes of 10-150 px within SIZE; a good part lies at a border, as those do that an image cuts."""
    generator = seeded(seed)
    limit = torch.tensor([SIZE[1], SIZE[0]], dtype=dtype)
    sides = (torch.rand(count, 2, generator=generator) * 2.7 + 2.3).exp().to(dtype)
    low = (torch.rand(count, 2, generator=generator).to(dtype) * 1.4 - 0.2) * limit
    boxes = torch.cat([low, low + sides], 1).clamp(min=0).minimum(limit.repeat(2))
    good = (boxes[:, 2:] - boxes[:, :2] > 2).all(1)
    return torch.where(good[:, None], boxes, boxes.new_tensor([0.0, 0.0, 30.0, 20.0]))


def literal_iou(a: Any, b: Any) -> Any:
    """In NumPy and float64, box by box."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    inter = np.maximum(width, 0) * np.maximum(height, 0)
    areas = [(x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1]) for x in (a, b)]
    return inter / (areas[0] + areas[1] - inter)


@pytest.mark.parametrize("image_size", [None, SIZE])
@pytest.mark.parametrize(("low", "high"), [(0.5, 1.0), (0.0, 1.0), (0.3, 0.7), (0.9, 0.95)])
def test_iou_is_uniform(low: float, high: float, image_size: tuple[int, int] | None) -> None:
    gt = ground_truth(5000)
    boxes, _ = sample_jittered_boxes(gt, 20, low, high, image_size=image_size, generator=seeded())
    counts, _ = np.histogram(literal_iou(boxes, gt[:, None]), bins=20, range=(low, high))
    assert counts.sum() > 99_990  # rounding to float32 may carry a few over a bound
    assert stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("image_size", [None, SIZE])
def test_a_label_is_the_iou_of_the_box_as_it_is_returned(
    dtype: torch.dtype, image_size: tuple[int, int] | None
) -> None:
    gt = ground_truth(1000).to(dtype)
    boxes, iou = sample_jittered_boxes(gt, 10, image_size=image_size, generator=seeded())
    assert boxes.shape == (1000, 10, 4)
    assert boxes.dtype == dtype
    assert iou.dtype == torch.promote_types(dtype, torch.float32)
    expected = literal_iou(boxes.double(), gt.double()[:, None])
    assert np.abs(iou.double().numpy() - expected).max() <= 1e-5


def test_small_boxes_far_from_the_origin_keep_true_labels() -> None:
    gt = torch.tensor([[4000.0, 5000.0, 4001.5, 5002.0]])
    boxes, iou = sample_jittered_boxes(gt, 1000, generator=seeded())
    assert np.abs(iou.numpy() - literal_iou(boxes, gt)).max() <= 1e-5


def test_every_stratum_gives_one_box_of_each_ground_truth_in_random_order() -> None:
    gt = ground_truth(500, dtype=torch.float64)
    _, iou = sample_jittered_boxes(gt, 7, 0.6, 0.9, generator=seeded())
    strata = ((iou - 0.6) / 0.3 * 7).floor()
    assert torch.equal(strata.sort(1).values, torch.arange(7.0, dtype=torch.float64).expand(500, 7))
    first = np.bincount(strata[:, 0].long(), minlength=7)
    assert stats.chisquare(first).pvalue > 0.01


def test_clipped_boxes_lie_in_the_image_and_many_at_its_border() -> None:
    gt = ground_truth(2000)
    boxes, _ = sample_jittered_boxes(gt, 10, image_size=SIZE, generator=seeded())
    x, y = boxes[..., 0::2], boxes[..., 1::2]
    assert x.min() == 0
    assert y.min() == 0
    assert x.max() == SIZE[1]
    assert y.max() == SIZE[0]
    assert ((x == 0) | (x == SIZE[1])).any(-1).float().mean() > 0.2
    assert (boxes[..., 2:] > boxes[..., :2]).all()


def test_a_ground_truth_that_fills_the_image_is_jittered_inwards() -> None:
    gt = torch.tensor([[0.0, 0.0, SIZE[1], SIZE[0]]])
    boxes, iou = sample_jittered_boxes(gt, 20_000, image_size=SIZE, generator=seeded())
    assert stats.chisquare(np.histogram(iou, bins=20, range=(0.5, 1))[0]).pvalue > 0.01
    assert boxes[..., :2].min() == 0


def test_a_box_scaled_out_of_the_image_by_rounding_is_taken_as_it_is() -> None:
    gt = torch.tensor([[10.0, 20.0, 200.004, 100.0]])
    boxes, iou = sample_jittered_boxes(gt, 1000, image_size=SIZE, generator=seeded())
    assert boxes[..., 2].max() == gt[0, 2]
    assert np.abs(iou.numpy() - literal_iou(boxes, gt)).max() <= 1e-5


def test_directions_have_no_preference() -> None:
    gt = torch.tensor([[100.0, 200.0, 140.0, 300.0]], dtype=torch.float64)
    boxes, _ = sample_jittered_boxes(gt, 40_000, generator=seeded())
    boxes, side = boxes[0], gt[0, 2:] - gt[0, :2]
    sides = boxes[:, 2:] - boxes[:, :2]
    ray = torch.cat([((boxes[:, :2] + boxes[:, 2:] - gt[0, :2] - gt[0, 2:]) / 2 / side), (sides / side).log()], 1)
    ray /= ray.norm(dim=1, keepdim=True)
    # A component of a uniform unit vector in four dimensions has mean 0 and mean square 1/4; no two are correlated.
    assert ray.mean(0).abs().max() < 4 * 0.5 / 200
    second = ray.T @ ray / len(ray)
    assert (second - torch.eye(4) / 4).abs().max() < 4 * 0.25 / 200


def test_boxes_scale_with_their_ground_truth() -> None:
    gt = ground_truth(100, dtype=torch.float64)
    boxes, iou = sample_jittered_boxes(gt, 5, generator=seeded())
    scaled, same = sample_jittered_boxes(gt * 8, 5, generator=seeded())
    torch.testing.assert_close(scaled, boxes * 8)
    torch.testing.assert_close(same, iou)


def test_a_generator_decides_everything_and_the_global_one_is_left_alone() -> None:
    gt = ground_truth(10)
    before = torch.get_rng_state()
    first, second, other = (sample_jittered_boxes(gt, 4, generator=seeded(s))[0] for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_global_generator_is_the_default() -> None:
    gt = ground_truth(10)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first = sample_jittered_boxes(gt, 4)[0]
        second = sample_jittered_boxes(gt, 4)[0]
        torch.manual_seed(3)
        assert torch.equal(sample_jittered_boxes(gt, 4)[0], first)
    assert not torch.equal(first, second)


def test_the_ground_truth_is_unchanged_and_gets_no_graph() -> None:
    gt = ground_truth(10).requires_grad_()
    copy = gt.detach().clone()
    boxes, iou = sample_jittered_boxes(gt, 4, image_size=SIZE)
    assert torch.equal(gt, copy)
    assert not boxes.requires_grad
    assert not iou.requires_grad


@pytest.mark.parametrize(("count", "n"), [(0, 5), (3, 0), (0, 0)])
def test_nothing_in_gives_nothing(count: int, n: int) -> None:
    boxes, iou = sample_jittered_boxes(ground_truth(5)[:count], n, image_size=SIZE)
    assert boxes.shape == (count, n, 4)
    assert iou.shape == (count, n)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"low": -0.1}, ValueError, "0 <= low < high <= 1, got -0.1 and 1.0"),
        ({"low": 0.7, "high": 0.7}, ValueError, "0 <= low < high <= 1, got 0.7 and 0.7"),
        ({"high": 1.1}, ValueError, "0 <= low < high <= 1, got 0.5 and 1.1"),
        ({"low": float("nan")}, ValueError, "0 <= low < high <= 1, got nan"),
        ({"n": -1}, ValueError, "n must be non-negative, got -1"),
        ({"n": 2.0}, TypeError, r"n must be an int, got 2\.0"),
        ({"gt": [[0.0, 0, 9, 9]]}, TypeError, "gt must be a tensor, got list"),
        ({"gt": torch.zeros(3, 5)}, ValueError, r"gt must have shape \[G, 4\], got \[3, 5\]"),
        ({"gt": torch.zeros(3, 4, dtype=torch.int64)}, TypeError, r"gt must be floating, got torch\.int64"),
        ({"gt": torch.tensor([[0.0, 0, 9, 9], [5, 5, 5, 9]])}, ValueError, "positive width and height, .* in row 1"),
        ({"gt": torch.tensor([[0.0, 0, 9, torch.nan]])}, ValueError, "positive width and height, .* in row 0"),
        ({"gt": torch.tensor([[0.0, 0, 9, torch.inf]])}, ValueError, "positive width and height, .* in row 0"),
        ({"gt": torch.tensor([[0.0, 0, 9, 9], [0, 0, 201, 9]])}, ValueError, "inside of the image of 150 x 200, .* 1"),
        ({"gt": torch.tensor([[-1.0, 0, 9, 9]])}, ValueError, "inside of the image of 150 x 200, .* row 0: clip it"),
        ({"image_size": (0, 5)}, ValueError, r"image_size must be a positive \(height, width\), got \(0, 5\)"),
        ({"image_size": (5,)}, ValueError, r"image_size must be a positive \(height, width\), got \(5,\)"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_a_number_is_drawn(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    generator = seeded()
    before = generator.get_state()
    with pytest.raises(error, match=message):
        sample_jittered_boxes(**{"gt": ground_truth(2), "n": 3, "image_size": SIZE, **change}, generator=generator)
    assert torch.equal(generator.get_state(), before)


# --- the IoU itself ---


def test_iou_equals_the_literal_one() -> None:
    a, b = ground_truth(50, 1, torch.float64), ground_truth(40, 2, torch.float64)
    expected = literal_iou(a[:, None], b[None])
    np.testing.assert_allclose(pairwise_iou(a, b), expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(paired_iou(a[:40], b), np.diagonal(expected), rtol=1e-12, atol=1e-15)


def test_iou_of_empty_inverted_and_nan_boxes() -> None:
    box = torch.tensor([0.0, 0, 4, 4])
    point, inverted = torch.tensor([1.0, 1, 1, 1]), torch.tensor([3.0, 0, 1, 4])
    others = torch.stack([point, inverted, box, torch.full((4,), torch.nan)])
    torch.testing.assert_close(paired_iou(others, box), torch.tensor([0, 0, 1, torch.nan]), equal_nan=True)
    assert paired_iou(point, point) == 0


def test_iou_of_16_bit_boxes_is_computed_in_float32() -> None:
    a, b = ground_truth(50, 1).half(), ground_truth(50, 2).half()
    assert torch.equal(paired_iou(a, b), paired_iou(a.float(), b.float()))


def test_iou_is_differentiable_in_both_boxes() -> None:
    a, b = ground_truth(50, 1, torch.float64), ground_truth(50, 2, torch.float64)
    meet = paired_iou(a, b) > 0
    assert meet.sum() > 5
    assert torch.autograd.gradcheck(paired_iou, (a[meet].requires_grad_(), b[meet].requires_grad_()))
