"""Refinement: the table of the exact IoU, the literal algorithm, its stop rules, and what it leaves untouched."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from iounet import RefineResult, _ascent, ops, refine_boxes, sample_jittered_boxes
from iounet._boxes import paired_iou

if TYPE_CHECKING:
    from collections.abc import Callable

MODES = ("keep", "revert", "backtrack")
EVERY_RULE = pytest.mark.parametrize(
    ("scale", "step", "on_degrade"),
    [(*rule, mode) for rule in (("size", 0.5), ("size", 2.0), ("log", 0.05), ("log", 0.2)) for mode in MODES],
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ground truths with sides exp(U(2.5, 5)) px and a box of each with an IoU from U(.5, 1), float64."""
    generator = seeded(seed)
    sides = (torch.rand(count, 2, generator=generator, dtype=torch.float64) * 2.5 + 2.5).exp()
    low = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 500
    gt = torch.cat([low, low + sides], 1)
    boxes, _ = sample_jittered_boxes(gt, 1, generator=generator)
    return gt, boxes[:, 0]


class Exact:
    """The true IoU as predictor; labels are the rows of the ground truth. Remembers what it was asked."""

    def __init__(self, gt: Tensor) -> None:
        self.gt = gt
        self.asked: list[Tensor] = []
        self.rows: list[Tensor] = []
        self.with_grad: list[bool] = []

    def __call__(self, features: Any, boxes: Tensor, labels: Tensor) -> Tensor:
        self.asked.append(boxes.detach().clone())
        self.rows.append(labels)
        self.with_grad.append(torch.is_grad_enabled())
        return paired_iou(boxes[:, 1:], self.gt[labels])


def refine(gt: Tensor, boxes: Tensor, **options: Any) -> RefineResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return refine_boxes(Exact(gt), None, boxes, torch.arange(len(gt)), **options)


# --- the algorithm ---


TABLE = {
    ("size", 0.5, "keep"): (0.830, 0.114, 0.080, 0.051),
    ("size", 0.5, "revert"): (0.835,),
    ("size", 0.5, "backtrack"): (0.837,),
    ("size", 2.0, "keep"): (0.830,),
    ("size", 2.0, "revert"): (0.877,),
    ("size", 2.0, "backtrack"): (0.899,),
    ("log", 0.05, "keep"): (0.810,),
    ("log", 0.05, "revert"): (0.888,),
    ("log", 0.05, "backtrack"): (0.914, 0.164, 0.163, 0.158),
    ("log", 0.5, "keep"): (0.181,),
    ("log", 0.5, "revert"): (0.758,),
    ("log", 0.5, "backtrack"): (0.872,),
}


@pytest.fixture(scope="module")
def crowd() -> tuple[Tensor, Tensor]:
    return scene(4000)


@pytest.mark.parametrize("row", TABLE)
def test_exact_iou_gives_the_known_gains(row: tuple[str, float, str], crowd: tuple[Tensor, Tensor]) -> None:
    gt, boxes = crowd
    scale, step, on_degrade = row
    result = refine(gt, boxes, scale=scale, step=step, on_degrade=on_degrade)
    mean, *gains = TABLE[row]
    assert result.initial_iou.mean().item() == pytest.approx(0.752, abs=0.01)
    assert result.iou.mean().item() == pytest.approx(mean, abs=0.01)
    size = (gt[:, 2:] - gt[:, :2]).prod(1).sqrt()
    gain = result.iou - result.initial_iou
    for group, expected in zip((size < 25, (size >= 25) & (size <= 60), size > 60), gains, strict=False):
        assert gain[group].mean().item() == pytest.approx(expected, abs=0.01)


def test_a_long_step_that_is_kept_makes_28_percent_of_boxes_worse(crowd: tuple[Tensor, Tensor]) -> None:
    result = refine(*crowd, step=2.0)
    assert (result.iou < result.initial_iou).double().mean().item() == pytest.approx(0.28, abs=0.02)


def test_boxes_move_by_several_percent_of_their_size(crowd: tuple[Tensor, Tensor]) -> None:
    gt, boxes = crowd
    side = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    for options in ({}, {"scale": "log", "step": 0.05, "on_degrade": "backtrack"}):
        moved = (refine(gt, boxes, **options).boxes - boxes).abs() / side
        assert moved.mean() > 0.02


def literal(
    predict: Callable[[Tensor], Tensor], box: Tensor, step: float, scale: str, on_degrade: str
) -> tuple[Tensor, float, int, int]:
    """Section 2.4 of the paper and our three modes for one box, in the words of the definition."""

    def measure(box: Tensor) -> tuple[float, list[float]]:
        box = box.clone().requires_grad_()
        iou = predict(box)
        return iou.item(), torch.autograd.grad(iou, box)[0].tolist()

    moves, reason = 0, 0
    prev, g = measure(box)
    for _ in range(5):
        x1, y1, x2, y2 = box.tolist()
        w, h = x2 - x1, y2 - y1
        if scale == "size":
            b = [x1 + step * g[0] * w, y1 + step * g[1] * h, x2 + step * g[2] * w, y2 + step * g[3] * h]
        else:
            cx = (x1 + x2) / 2 + step * w**2 * (g[0] + g[2])
            cy = (y1 + y2) / 2 + step * h**2 * (g[1] + g[3])
            w *= math.exp(step * w * (g[2] - g[0]) / 2)
            h *= math.exp(step * h * (g[3] - g[1]) / 2)
            b = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
        new, slope = measure(box.new_tensor(b))
        if on_degrade == "backtrack" and new < prev:
            step /= 2
            continue
        if on_degrade == "revert" and new - prev < -0.01:
            return box, prev, moves, 2
        box, moves, change = box.new_tensor(b), moves + 1, new - prev
        prev, g = new, slope
        if change < -0.01:
            return box, prev, moves, 2
        if abs(change) < 0.001:
            return box, prev, moves, 1
    return box, prev, moves, reason


@EVERY_RULE
def test_it_is_the_literal_algorithm_box_by_box(scale: str, step: float, on_degrade: str) -> None:
    gt, boxes = scene(60, seed=3)
    result = refine(gt, boxes, scale=scale, step=step, on_degrade=on_degrade)
    for i in range(len(gt)):
        box, iou, moves, reason = literal(lambda b, t=gt[i]: paired_iou(b, t), boxes[i], step, scale, on_degrade)
        torch.testing.assert_close(result.boxes[i], box, rtol=1e-9, atol=1e-9)
        assert result.iou[i].item() == pytest.approx(iou, abs=1e-9)
        assert (result.steps[i].item(), result.reason[i].item()) == (moves, reason)


def sloped(features: Any, boxes: Tensor, labels: Any) -> Tensor:
    """A plane in box space: the gradient is known."""
    return 0.5 + boxes[:, 1:] @ boxes.new_tensor([0.001, -0.002, 0.003, 0.004])


def test_one_step_of_size_moves_by_the_gradient_times_the_sides() -> None:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]], dtype=torch.float64)
    result = refine_boxes(sloped, None, boxes, None, steps=1)
    expected = boxes + 0.5 * torch.tensor([[0.001 * 20, -0.002 * 40, 0.003 * 20, 0.004 * 40]], dtype=torch.float64)
    torch.testing.assert_close(result.boxes, expected)


def test_one_step_of_log_moves_centre_and_logarithm_of_the_sides() -> None:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]], dtype=torch.float64)
    x1, y1, x2, y2 = refine_boxes(sloped, None, boxes, None, steps=1, scale="log", step=0.1).boxes[0].tolist()
    assert (x1 + x2) / 2 == pytest.approx(20 + 0.1 * 20**2 * 0.004)
    assert (y1 + y2) / 2 == pytest.approx(40 + 0.1 * 40**2 * 0.002)
    assert x2 - x1 == pytest.approx(20 * math.exp(0.1 * 20 * 0.002 / 2))
    assert y2 - y1 == pytest.approx(40 * math.exp(0.1 * 40 * 0.006 / 2))


def test_twice_the_boxes_make_twice_the_moves_in_log_and_the_same_first_move_in_size() -> None:
    gt, boxes = scene(300)
    for mode in MODES:
        options = {"scale": "log", "step": 0.05, "on_degrade": mode}
        torch.testing.assert_close(refine(2 * gt, 2 * boxes, **options).boxes, 2 * refine(gt, boxes, **options).boxes)
    once = [refine(s * gt, s * boxes, steps=1).boxes - s * boxes for s in (1, 2)]
    assert once[0].abs().max() > 0.3
    torch.testing.assert_close(once[0], once[1])


@pytest.mark.parametrize(("scale", "step"), [("size", 0.5), ("size", 2.0), ("log", 0.05), ("log", 0.5)])
def test_backtracking_never_lowers_the_iou(scale: str, step: float) -> None:
    result = refine(*scene(500), scale=scale, step=step, on_degrade="backtrack", return_trajectory=True)
    assert result.trajectory_iou is not None
    assert (result.trajectory_iou.diff(dim=0) >= 0).all()


def test_backtracking_halves_the_step_of_the_box_that_went_too_far() -> None:
    gt = torch.tensor([[0.0, 0.0, 40.0, 40.0]] * 2, dtype=torch.float64)
    boxes = torch.tensor([[0.0, 0.0, 41.0, 40.0], [10.0, 10.0, 30.0, 30.0]], dtype=torch.float64)
    predictor = Exact(gt)
    refine_boxes(predictor, None, boxes, torch.arange(2), step=4.0, steps=3, on_degrade="backtrack")
    first = torch.stack([boxes[:, 1:] for boxes in predictor.asked])[:, 0] - boxes[0]
    torch.testing.assert_close(first[2], first[1] / 2)
    torch.testing.assert_close(first[3], first[1] / 4)
    second = torch.stack([boxes[:, 1:] for boxes in predictor.asked])[:, 1]
    assert (second.diff(dim=0)[:, 2] > 0.9).all()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(("scale", "step", "gain"), [("size", 0.5, 0.03), ("log", 0.05, 0.15)])
def test_pooled_features_lead_boxes_to_their_object(
    scale: str, step: float, gain: float, context: Callable[[], Any]
) -> None:
    """The map of an image is what its object covers of each pixel of stride 4: its mean in a box tells the IoU."""
    generator = seeded()
    low = torch.rand(60, 2, generator=generator) * 80 + 30
    gt = torch.cat([low, low + 40 + torch.rand(60, 2, generator=generator) * 80], 1)
    boxes = sample_jittered_boxes(gt, 1, 0.5, 0.8, generator=generator)[0][:, 0]
    pixels = 4 * torch.arange(64.0)
    covered = (gt[:, 2:, None].minimum(pixels + 2) - gt[:, :2, None].maximum(pixels - 2)).clamp(min=0) / 4
    area = (gt[:, 2:] - gt[:, :2]).prod(1)

    def predict(features: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        size = (boxes[:, 3:] - boxes[:, 1:3]).prod(1)
        inter = ops.prroi_pool(features, boxes, 1, 0.25)[:, 0, 0, 0] * size
        return inter / (size + area[labels] - inter)

    with context():
        features = (covered[:, 1, :, None] * covered[:, 0, None, :])[:, None]
        indexed = torch.cat([torch.arange(60.0)[:, None], boxes], 1)
        result = refine_boxes(
            predict, features, indexed, torch.arange(60), scale=scale, step=step, on_degrade="backtrack"
        )
    found = torch.as_tensor(result.boxes)
    assert torch.equal(found[:, 0], indexed[:, 0])
    assert (result.iou - result.initial_iou).min() >= 0
    true_gain = paired_iou(found[:, 1:], gt) - paired_iou(boxes, gt)
    assert true_gain.mean() > gain


# --- how often, with which rows, and with how much graph the predictor is called ---


@EVERY_RULE
@pytest.mark.parametrize("starts", [1, 4])
def test_the_predictor_is_called_once_more_than_there_are_steps(
    scale: str, step: float, on_degrade: str, starts: int
) -> None:
    gt, boxes = scene(30)
    predictor = Exact(gt)
    options: dict[str, Any] = {"scale": scale, "step": step, "on_degrade": on_degrade, "stop": 0, "tolerance": -1}
    refine_boxes(predictor, None, boxes, torch.arange(30), starts=starts, generator=seeded(), **options)
    last = [False] * (2 if starts > 1 else 1)  # nothing follows that would need a gradient
    assert predictor.with_grad == [True] * 5 + last


def test_no_step_is_one_call() -> None:
    gt, boxes = scene(30)
    predictor = Exact(gt)
    result = refine_boxes(predictor, None, boxes, torch.arange(30), steps=0, return_trajectory=True)
    assert predictor.with_grad == [False]
    assert torch.equal(result.boxes, boxes)
    assert torch.equal(result.iou, paired_iou(boxes, gt))
    assert not result.reason.any()
    assert result.trajectory is not None
    assert result.trajectory.shape == (1, 30, 4)


def test_boxes_that_stopped_are_not_asked_for_again() -> None:
    gt, boxes = scene(200)
    predictor = Exact(gt)
    result = refine_boxes(predictor, None, boxes, torch.arange(200), step=2.0)
    counts = torch.bincount(torch.cat(predictor.rows), minlength=200)
    assert torch.equal(counts - 1, result.steps)
    assert len(set(counts.tolist())) == 5


def test_nothing_is_asked_once_all_have_stopped() -> None:
    gt, _ = scene(20)
    predictor = Exact(gt)
    result = refine_boxes(predictor, None, gt, torch.arange(20), return_trajectory=True)
    assert len(predictor.rows) == 2
    assert (result.reason == 1).all()
    assert result.trajectory is not None
    assert torch.equal(result.trajectory, gt.expand(6, 20, 4))


@EVERY_RULE
def test_masking_gives_what_leaving_out_gives(
    scale: str, step: float, on_degrade: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gt, boxes = scene(200)
    boxes[7] = math.nan
    options: dict[str, Any] = {"scale": scale, "step": step, "on_degrade": on_degrade, "return_trajectory": True}
    left_out = refine(gt, boxes, **options)
    monkeypatch.setattr(_ascent, "_COMPACTING", frozenset())
    predictor = Exact(gt)
    masked = refine_boxes(predictor, None, boxes, torch.arange(200), **options)
    assert [len(rows) for rows in predictor.rows] == [200] * 6
    for a, b in zip(left_out, masked, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@EVERY_RULE
@pytest.mark.parametrize("starts", [1, 4])
def test_on_a_device_no_value_is_read_back(scale: str, step: float, on_degrade: str, starts: int) -> None:
    """A meta tensor has no values: whatever would wait for a device raises."""
    gt, boxes = (x.to("meta") for x in scene(50))
    predictor = Exact(gt)
    rows = torch.arange(50, device="meta")
    options: dict[str, Any] = {"scale": scale, "step": step, "on_degrade": on_degrade, "return_trajectory": True}
    result = refine_boxes(predictor, None, boxes, rows, image_sizes=(200, 300), starts=starts, **options)
    assert torch.as_tensor(result.boxes).shape == (50, 4)
    assert [len(rows) for rows in predictor.rows] == [50 * starts] * 6 + [50] * (starts > 1)


@pytest.mark.gpu
@EVERY_RULE
def test_a_cuda_graph_gives_what_the_cpu_gives(scale: str, step: float, on_degrade: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    gt, boxes = scene(200)
    options: dict[str, Any] = {"scale": scale, "step": step, "on_degrade": on_degrade, "image_sizes": (400, 500)}
    expected = refine(gt, boxes, **options)
    predictor, start, rows = Exact(gt.cuda()), boxes.cuda(), torch.arange(200, device="cuda")
    refine_boxes(predictor, None, start, rows, **options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = refine_boxes(predictor, None, start, rows, **options)
    graph.replay()
    torch.testing.assert_close(torch.as_tensor(result.boxes).cpu(), torch.as_tensor(expected.boxes))
    assert torch.equal(result.reason.cpu(), expected.reason)
    assert torch.equal(result.steps.cpu(), expected.steps)


# --- why boxes stop ---


def test_reasons() -> None:
    gt = torch.tensor([[0.0, 0.0, 40.0, 40.0]] * 3, dtype=torch.float64)
    boxes = gt + torch.tensor(
        [[8.0, 8.0, 0.0, 0.0], [0.0, 0.0, 0.0004, 0.0], [0.0, 0.0, 0.5, 0.0]], dtype=torch.float64
    )
    assert refine(gt, boxes).reason.tolist() == [0, 2, 2]
    result = refine(gt, boxes, step=0.01, tolerance=-0.5)
    assert result.reason.tolist() == [1, 1, 1]
    assert result.steps.tolist() == [1, 1, 1]


def test_a_degraded_box_is_kept_or_reverted() -> None:
    gt = torch.tensor([[0.0, 0.0, 40.0, 40.0]], dtype=torch.float64)
    boxes = gt + torch.tensor([0.0, 0.0, 0.1, 0.0])
    kept, reverted = (refine(gt, boxes, step=2.0, on_degrade=mode) for mode in ("keep", "revert"))
    assert kept.reason.tolist() == reverted.reason.tolist() == [2]
    assert (kept.steps.item(), reverted.steps.item()) == (1, 0)
    assert kept.iou < kept.initial_iou - 0.01
    assert torch.equal(kept.iou, paired_iou(kept.boxes, gt))
    assert torch.equal(reverted.boxes, boxes)
    assert torch.equal(reverted.iou, reverted.initial_iou)


def test_a_tolerated_loss_goes_on() -> None:
    gt, boxes = scene(400)
    result = refine(gt, boxes, tolerance=-0.05, step=2.0, return_trajectory=True)
    assert result.trajectory_iou is not None
    change = result.trajectory_iou.diff(dim=0)
    tolerated = (change[0] < -0.01) & (change[0] > -0.05)
    assert tolerated.sum() > 10
    assert (result.steps[tolerated] > 1).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_box_that_would_vanish_stays_where_it_was(mode: str) -> None:
    def narrow(features: Any, boxes: Tensor, labels: Any) -> Tensor:
        """Better the narrower: each step of .5 takes .1 px of the width."""
        return 1 - 0.1 / (boxes[:, 3] - boxes[:, 1]).detach() * (boxes[:, 3] - boxes[:, 1]) - boxes[:, 3] * 0

    boxes = torch.tensor([[10.0, 10.0, 10.3005, 30.0]], dtype=torch.float64)  # a third step would leave 0.0005
    result = refine_boxes(narrow, None, boxes, None, on_degrade=mode, stop=0, steps=9)
    assert result.reason.tolist() == [3]
    assert result.steps.tolist() == [2]
    torch.testing.assert_close(result.boxes, boxes + torch.tensor([0.1, 0, -0.1, 0], dtype=torch.float64))


@pytest.mark.parametrize("box", [[10.0, 10.0, 10.0, 30.0], [30.0, 10.0, 10.0, 30.0], [3.0, 3.0, 3.0, 3.0]])
@pytest.mark.parametrize("scale", ["size", "log"])
def test_zero_size_and_inverted_boxes_stay_where_they_are(box: list[float], scale: str) -> None:
    boxes = torch.tensor([box, [10.0, 10.0, 30.0, 30.0]])
    gt = torch.tensor([[12.0, 10.0, 30.0, 30.0]] * 2)
    result = refine(gt, boxes, scale=scale, step=0.1, on_degrade="backtrack")
    assert result.reason[0] == 3
    assert torch.equal(result.boxes[0], boxes[0])
    assert result.iou[1] > result.initial_iou[1]


def broken(after: int, what: str) -> Callable[[Any, Tensor, Tensor], Tensor]:
    """A predictor whose IoU or gradient of row 1 is NaN from some call on."""
    calls = 0

    def predict(features: Any, boxes: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        iou = sloped(features, boxes, labels)
        bad = (labels == 1) & (calls > after)
        if what == "iou":
            return torch.where(bad, torch.nan, iou)
        x = boxes[bad, 1]
        return iou.index_add(0, bad.nonzero()[:, 0], (x - x.detach()).abs().sqrt())  # 0, of slope inf * 0

    return predict


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", ["iou", "gradient"])
@pytest.mark.parametrize("after", [0, 2])
def test_nan_in_iou_or_gradient_keeps_the_last_good_position(what: str, after: int, mode: str) -> None:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]] * 3)
    options: dict[str, Any] = {"on_degrade": mode, "stop": 0, "return_trajectory": True}
    result = refine_boxes(broken(after, what), None, boxes, torch.arange(3), **options)
    whole = refine_boxes(sloped, None, boxes, torch.arange(3), **options)
    good = max(after - 1, 0) if what == "iou" else after
    assert result.reason.tolist() == [0, 2, 0]
    assert result.steps.tolist() == [5, good, 5]
    assert result.trajectory is not None
    assert whole.trajectory is not None
    assert torch.equal(result.boxes[1], whole.trajectory[good, 1])
    assert torch.equal(result.boxes[[0, 2]], whole.boxes[[0, 2]])
    if after:
        assert result.iou.isfinite().all()


def test_nan_boxes_stay_and_harm_no_other() -> None:
    gt, boxes = scene(10)
    whole = refine(gt, boxes)
    boxes[4, 2] = math.nan
    result = refine(gt, boxes)
    rest = torch.arange(10) != 4
    assert result.reason[4] == 2
    assert torch.equal(result.boxes[4].isnan(), torch.tensor([False, False, True, False]))
    assert torch.equal(result.boxes[rest], whole.boxes[rest])


# --- forms of boxes, labels, sizes and results ---


def test_every_form_of_boxes_gives_the_same_in_its_own_form() -> None:
    gt, boxes = scene(12)
    images = torch.tensor([0.0] * 5 + [1.0] * 7, dtype=torch.float64)
    rows = torch.arange(12)
    plain = refine_boxes(Exact(gt), None, boxes, rows)
    indexed = refine_boxes(Exact(gt), None, torch.cat([images[:, None], boxes], 1), rows)
    listed = refine_boxes(Exact(gt), None, list(boxes.split([5, 0, 7])), list(rows.split([5, 0, 7])))
    assert isinstance(plain.boxes, Tensor)
    assert isinstance(listed.boxes, list)
    assert torch.equal(indexed.boxes, torch.cat([images[:, None], plain.boxes], 1))
    assert [tuple(part.shape) for part in listed.boxes] == [(5, 4), (0, 4), (7, 4)]
    assert torch.equal(torch.cat(listed.boxes), plain.boxes)
    for other in (indexed, listed):
        for a, b in zip(plain[1:], other[1:], strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)


def test_the_predictor_sees_the_image_of_each_box() -> None:
    gt, boxes = scene(6)
    predictor = Exact(gt)
    refine_boxes(predictor, None, list(boxes.split([2, 0, 4])), torch.arange(6), stop=0, tolerance=-1)
    for asked in predictor.asked:
        assert asked[:, 0].tolist() == [0, 0, 2, 2, 2, 2]


def test_the_trajectory_leads_from_the_start_to_the_result() -> None:
    gt, boxes = scene(100)
    result = refine(gt, boxes, return_trajectory=True)
    assert result.trajectory is not None
    assert result.trajectory_iou is not None
    assert result.trajectory.shape == (6, 100, 4)
    assert torch.equal(result.trajectory[0], boxes)
    assert torch.equal(result.trajectory[-1], torch.as_tensor(result.boxes))
    assert torch.equal(result.trajectory_iou[0], result.initial_iou)
    assert torch.equal(result.trajectory_iou[-1], result.iou)
    torch.testing.assert_close(result.trajectory_iou, paired_iou(result.trajectory, gt))
    moved = (result.trajectory.diff(dim=0) != 0).any(-1).sum(0)
    assert torch.equal(moved, result.steps)


@pytest.mark.parametrize("starts", [1, 3])
def test_boxes_stay_in_their_image(starts: int) -> None:
    gt, boxes = scene(400)
    images = (torch.arange(400) % 2).double()
    limits = torch.tensor([[200.0, 300.0], [250.0, 150.0]], dtype=torch.float64)  # height, width
    sizes: list[Any] = [limits, [(200, 300), torch.Size([250, 150])]]
    results = []
    for image_sizes in sizes:
        asked = torch.cat([images[:, None], boxes], 1)
        predictor = Exact(gt)
        options: dict[str, Any] = {"image_sizes": image_sizes, "starts": starts, "generator": seeded()}
        result = refine_boxes(predictor, None, asked, torch.arange(400), **options)
        results.append(torch.as_tensor(result.boxes))
    assert torch.equal(*results)
    limit = limits.flip(1)[images.long()].repeat(1, 2)
    partly = ((boxes < limit)[:, :2] & (boxes > 0)[:, 2:]).all(1)
    assert ((boxes > limit).any(1) & partly).sum() > 20
    assert (results[0][partly, 1:] <= limit[partly]).all()
    assert (results[0][partly, 1:] >= 0).all()
    outside = ~partly
    assert outside.sum() > 20
    if starts == 1:
        assert (result.reason[outside] == 3).all()
        assert torch.equal(results[0][outside, 1:], boxes[outside])


def test_one_image_takes_one_pair() -> None:
    gt, boxes = scene(50)
    results = [refine(gt, boxes, image_sizes=sizes).boxes for sizes in ((300, 200), [(300, 200)])]
    assert torch.equal(torch.as_tensor(results[0]), torch.as_tensor(results[1]))
    assert not torch.equal(torch.as_tensor(results[0]), torch.as_tensor(refine(gt, boxes).boxes))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_boxes_are_never_cast_down(dtype: torch.dtype) -> None:
    gt, boxes = scene(20)
    predictor = Exact(gt)
    result = refine_boxes(predictor, None, boxes.to(dtype), torch.arange(20))
    expected = torch.promote_types(dtype, torch.float32)
    assert {asked.dtype for asked in predictor.asked} == {expected}
    assert torch.as_tensor(result.boxes).dtype == expected


@pytest.mark.parametrize("boxes", [torch.zeros(0, 4), torch.zeros(0, 5), [torch.zeros(0, 4)] * 2, []])
def test_without_boxes_the_predictor_is_not_called(boxes: Any) -> None:
    def never(features: Any, boxes: Tensor, labels: Tensor) -> Tensor:
        raise AssertionError

    labels = torch.zeros(0, dtype=torch.int64)
    result = refine_boxes(never, None, boxes, labels, starts=3, return_trajectory=True)
    if isinstance(boxes, list):
        assert [part.shape for part in result.boxes] == [part.shape for part in boxes]
    else:
        assert torch.as_tensor(result.boxes).shape == boxes.shape
    assert result.iou.shape == result.initial_iou.shape == result.steps.shape == result.reason.shape == (0,)
    assert result.reason.dtype == result.steps.dtype == torch.int64
    assert result.trajectory is not None
    assert result.trajectory.shape == (6, 0, 4)


# --- several starts ---


def test_starts_are_the_box_and_copies_moved_within_bounds() -> None:
    gt, boxes = scene(500)
    predictor = Exact(gt)
    refine_boxes(predictor, None, boxes, torch.arange(500), starts=9, generator=seeded())
    asked = predictor.asked[0][:, 1:].view(500, 9, 4)
    assert torch.equal(predictor.rows[0], torch.arange(500).repeat_interleave(9))
    assert torch.equal(asked[:, 0], boxes)
    side, sides = boxes[:, None, 2:] - boxes[:, None, :2], asked[:, 1:, 2:] - asked[:, 1:, :2]
    root = side.prod(-1, keepdim=True).sqrt()
    shift = ((asked[:, 1:] - boxes[:, None]).unflatten(-1, (2, 2)).mean(-2) / root).abs()
    change = (sides - side) / root
    assert 0.0499 < shift.max() <= 0.05 + 1e-9
    assert 0.249 < change.max() <= 0.25 + 1e-9
    least = side.amin(-1, keepdim=True) / 3
    assert (sides >= least - 1e-9).all()
    assert ((sides - least).abs() < 1e-9).any()
    assert change.min() >= -0.25 - 1e-9


def test_the_result_is_the_mean_of_the_best_three() -> None:
    gt, boxes = scene(40)
    predictor = Exact(gt)
    options: dict[str, Any] = {"scale": "log", "step": 0.05, "on_degrade": "backtrack", "return_trajectory": True}
    result = refine_boxes(predictor, None, boxes, torch.arange(40), starts=6, generator=seeded(), **options)
    starts = predictor.asked[0][:, 1:]
    single = refine(gt.repeat_interleave(6, 0), starts, **options)
    best = single.iou.view(40, 6).topk(3).indices
    ends = torch.as_tensor(single.boxes).view(40, 6, 4)
    expected = ends.gather(1, best[..., None].expand(40, 3, 4)).mean(1)
    torch.testing.assert_close(result.boxes, expected)
    torch.testing.assert_close(result.iou, paired_iou(expected, gt))
    torch.testing.assert_close(result.initial_iou, paired_iou(boxes, gt))
    assert torch.equal(result.steps, single.steps.view(40, 6).gather(1, best[:, :1])[:, 0])
    assert result.trajectory is not None
    assert result.trajectory.shape == (6, 40, 4)
    assert torch.equal(result.trajectory[0], boxes)
    assert torch.equal(result.trajectory[-1], torch.as_tensor(result.boxes))


def test_two_starts_average_both_and_many_starts_help() -> None:
    gt, boxes = scene(1000)
    mean = [
        refine(gt, boxes, starts=n, generator=seeded(), scale="log", step=0.05, on_degrade="backtrack").iou.mean()
        for n in (1, 2, 10)
    ]
    assert mean[2] > mean[0] + 0.01
    predictor = Exact(gt)
    result = refine_boxes(predictor, None, boxes, torch.arange(1000), starts=2, steps=0, generator=seeded())
    torch.testing.assert_close(result.boxes, predictor.asked[0][:, 1:].view(1000, 2, 4).mean(1))


def test_a_generator_decides_the_starts_and_the_global_one_is_left_alone() -> None:
    gt, boxes = scene(20)
    before = torch.get_rng_state()
    first, second, other = (torch.as_tensor(refine(gt, boxes, starts=4, generator=seeded(s)).boxes) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_starts_without_an_iou_do_not_count() -> None:
    gt, boxes = scene(20)
    calls = 0

    def predict(features: Any, boxes: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        iou = paired_iou(boxes[:, 1:], gt[labels])
        copies = torch.arange(len(iou)) % 4 > 0  # all but the box itself
        return torch.where((copies & (calls == 1)) | (labels == 5), torch.nan, iou)

    result = refine_boxes(predict, None, boxes, torch.arange(20), starts=4, generator=seeded())
    alone = torch.as_tensor(refine(gt, boxes).boxes)
    rest = torch.arange(20) != 5
    torch.testing.assert_close(torch.as_tensor(result.boxes)[rest], alone[rest])
    assert torch.equal(torch.as_tensor(result.boxes)[5], boxes[5])
    assert result.reason[5] == 2
    assert result.iou[5].isnan()


# --- what is left untouched ---


class Level(NamedTuple):
    map: Tensor
    stride: int


class Learned(nn.Module):
    """A small network on the mean of a map at the box's centre and corners; batch norm and dropout betray training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(24)
        self.drop = nn.Dropout(0.5)
        self.line = nn.Linear(24, 1)
        self.modes: list[tuple[bool, ...]] = []

    def forward(self, features: Tensor, boxes: Tensor, labels: Any) -> Tensor:
        self.modes.append(tuple(module.training for module in self.modules()))
        x = boxes[:, [1, 3, 3]] / 64 - 1
        y = boxes[:, [2, 2, 4]] / 64 - 1
        grid = torch.stack([x, y], -1)[None].to(features.dtype)
        sampled = nn.functional.grid_sample(features[:1], grid, align_corners=False)[0]
        return self.line(self.drop(self.norm(sampled.permute(1, 0, 2).flatten(1)))).sigmoid()[:, 0]


def learned() -> tuple[Learned, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        features = torch.randn(1, 8, 32, 32)
        model = Learned()
    low = torch.rand(30, 2, generator=seeded()) * 60
    return model, features, torch.cat([low, low + 20 + torch.rand(30, 2, generator=seeded(1)) * 40], 1)


def test_a_module_runs_in_eval_mode_and_comes_back_as_it_was() -> None:
    model, features, boxes = learned()
    model.train()
    model.norm.eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for predictor in (model, model.forward):
        refine_boxes(predictor, features, boxes, None)
        assert set(model.modes) == {(False,) * 4}
        assert (model.training, model.norm.training, model.drop.training) == (True, False, True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


def test_modes_come_back_after_an_error() -> None:
    model, features, boxes = learned()
    with pytest.raises(RuntimeError):
        refine_boxes(model, features[:, :3], boxes, None)
    assert all(module.training for module in model.modules())


def test_parameters_features_and_boxes_get_no_gradient() -> None:
    model, features, boxes = learned()
    features.requires_grad_()
    boxes.requires_grad_()
    copies = boxes.detach().clone(), features.detach().clone()
    result = refine_boxes(model, features, boxes, None, scale="log", step=0.05)
    assert all(p.grad is None for p in model.parameters())
    assert features.grad is None
    assert boxes.grad is None
    assert torch.equal(boxes, copies[0])
    assert torch.equal(features, copies[1])
    assert not any(isinstance(x, Tensor) and x.requires_grad for x in result)
    assert not torch.equal(torch.as_tensor(result.boxes), copies[0])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_works_in_any_grad_mode_and_leaves_it(context: Callable[[], Any]) -> None:
    model, features, boxes = learned()
    expected = refine_boxes(model, features, boxes, None)
    with context():
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        result = refine_boxes(model, features * 1, boxes * 1, torch.arange(30) * 1)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == modes
    assert torch.equal(torch.as_tensor(result.boxes), torch.as_tensor(expected.boxes))
    assert not torch.as_tensor(result.boxes).is_inference()


def test_inference_tensors_in_any_structure_are_cloned_once() -> None:
    model, features, boxes = learned()
    seen = []

    def predict(features: Any, boxes: Tensor, labels: Tensor) -> Tensor:
        seen.append(features)
        tensors = [features["0"], features["p"][0], features["p"][1][0], features["p"][2].map]
        assert not any(x.is_inference() for x in tensors)
        assert features["p"][2].stride == 4
        assert features["name"] == "x"
        return model(sum(tensors), boxes, labels) * labels.clamp(min=1)

    model.eval()
    with torch.inference_mode():
        made = features * 1
        nested = OrderedDict({"0": made, "p": [made, (made,), Level(made, 4)], "name": "x"})
        labels = torch.ones(30, dtype=torch.int64)
        result = refine_boxes(predict, nested, boxes * 1, labels)
    assert len(seen) == 6
    assert all(x is seen[0] for x in seen)
    assert isinstance(seen[0], OrderedDict)
    assert nested["p"][0] is made
    expected = refine_boxes(model, 4 * features, boxes, None)
    assert torch.equal(torch.as_tensor(result.boxes), torch.as_tensor(expected.boxes))


# --- bad input ---


def constant(features: Any, boxes: Tensor, labels: Any) -> Tensor:
    return boxes.new_full((len(boxes),), 0.5)


def of_parameters_only(features: Any, boxes: Tensor, labels: Any) -> Tensor:
    return constant(features, boxes, labels) * torch.ones(1, requires_grad=True)


def detached(features: Any, boxes: Tensor, labels: Any) -> Tensor:
    return sloped(features, boxes.detach(), labels)


@pytest.mark.parametrize(
    ("predictor", "got"),
    [
        (constant, "that boxes have no part in"),
        (of_parameters_only, "that boxes have no part in"),
        (detached, "that boxes have no part in"),
        (torch.no_grad()(sloped), "that boxes have no part in"),
        (lambda features, boxes, labels: boxes[:, 1:], r"shape \[2, 4\]"),
        (lambda features, boxes, labels: boxes.sum(), r"shape \[\]"),
        (lambda features, boxes, labels: None, "NoneType"),
    ],
)
def test_a_predictor_that_cannot_be_climbed_is_refused(predictor: Any, got: str) -> None:
    message = rf"predictor must return the IoU of each box, shape \[2\], differentiable in boxes, got .*{got}"
    with pytest.raises(ValueError, match=message):
        refine_boxes(predictor, None, torch.tensor([[0.0, 0, 9, 9], [3, 3, 9, 9]]), None)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"boxes": torch.zeros(2, 6)}, ValueError, r"boxes must be \[K, 5\], \[K, 4\], .* got shape \[2, 6\]"),
        ({"boxes": torch.zeros(4)}, ValueError, r"got shape \[4\]"),
        ({"boxes": [torch.zeros(2, 5)]}, ValueError, r"got shape \[2, 5\]"),
        ({"boxes": torch.zeros(2, 4, dtype=torch.int64)}, TypeError, r"boxes must be floating, got torch\.int64"),
        ({"boxes": [[0.0, 0, 9, 9]]}, TypeError, r"boxes must be .* a list of \[L, 4\], got list"),
        ({"labels": torch.zeros(3)}, ValueError, r"labels must have one row per box, 2, got shape \[3\]"),
        ({"step": 0.0}, ValueError, r"step must be positive and finite, got 0\.0"),
        ({"step": math.inf}, ValueError, "step must be positive and finite, got inf"),
        ({"steps": -1}, ValueError, "steps must be at least 0, got -1"),
        ({"steps": 2.5}, TypeError, r"steps must be an int, got 2\.5"),
        ({"starts": 0}, ValueError, "starts must be at least 1, got 0"),
        ({"stop": -1e-3}, ValueError, r"stop must be non-negative, got -0\.001"),
        ({"tolerance": math.nan}, ValueError, "tolerance must be a number, got nan"),
        ({"scale": "sizes"}, ValueError, "scale must be one of size, log, got 'sizes'"),
        ({"on_degrade": "undo"}, ValueError, "on_degrade must be one of keep, revert, backtrack, got 'undo'"),
        ({"image_sizes": [(5, 5), (5, 5)]}, ValueError, "image_sizes must have a row for every image of boxes, got 2"),
        ({"image_sizes": (5, 5, 5)}, ValueError, r"positive pairs \(height, width\), got \(5, 5, 5\)"),
        ({"image_sizes": (5, 0)}, ValueError, r"positive pairs \(height, width\), got \(5, 0\)"),
        ({"image_sizes": torch.ones(4)}, ValueError, r"positive pairs \(height, width\), got tensor"),
        ({"boxes": torch.ones(2, 5), "image_sizes": [(5, 5)]}, ValueError, "a row for every image of boxes, got 1"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_before_the_predictor_is_called(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    def never(features: Any, boxes: Tensor, labels: Tensor) -> Tensor:
        raise AssertionError

    arguments: dict[str, Any] = {"boxes": torch.tensor([[0.0, 0, 9, 9], [3, 3, 9, 9]]), "labels": None, **options}
    with pytest.raises(error, match=message):
        refine_boxes(never, None, **arguments)


def test_overshooting_options_warn() -> None:
    gt, boxes = scene(2)
    for mode in ("keep", "revert"):
        with pytest.warns(UserWarning, match='use step=0.05, on_degrade="backtrack"'):
            refine_boxes(Exact(gt), None, boxes, torch.arange(2), scale="log", on_degrade=mode)
    refine_boxes(Exact(gt), None, boxes, torch.arange(2), scale="log", step=0.2)
    refine_boxes(Exact(gt), None, boxes, torch.arange(2), scale="log", on_degrade="backtrack")
