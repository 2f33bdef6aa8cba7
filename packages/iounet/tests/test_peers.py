"""Pooling against the official code, mmcv, PaddlePaddle and torchvision: numbers of theirs, or themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from iounet import MultiScalePrRoIPool, _reference, ops

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType


@pytest.fixture(scope="module")
def torchvision() -> ModuleType:
    module: ModuleType = pytest.importorskip("torchvision", reason="torchvision is not installed (group peers)")
    return module


def test_the_official_operator_gave_these_numbers(detection_data: Path) -> None:
    """Written by the CUDA operator of vacancy/PreciseRoIPooling: the output, and the gradients of its sum."""
    folder = detection_data / "prroi_golden"
    names = ("features", "rois", "real_outputs", "gradients0", "gradients1")
    features, rois, *expected = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in names)
    ones, args = torch.ones_like(expected[0]), (0.5, False, False, False)
    reference = (
        _reference.prroi_pool(features, rois, 2, 2, *args),
        _reference.prroi_pool_grad_input(ones, rois, *(features.shape[i] for i in (0, 2, 3)), False, *args),
        _reference.prroi_pool_grad_boxes(ones, features, rois, *args),
    )
    features.requires_grad_()
    rois.requires_grad_()
    out = ops.prroi_pool(features, rois, 2, 0.5)
    registered = out, *torch.autograd.grad(out.sum(), (features, rois))
    for results in (reference, registered):
        for actual, golden in zip(results, expected, strict=True):
            torch.testing.assert_close(actual, golden, rtol=0, atol=1e-6)


# Of mmcv's tests/test_ops/test_prroi_pool.py: a map, the box 0 0 n-1 n-1, 2 x 2 bins, and the gradients of the sum.
MMCV = {
    "4 pixels": (
        [[[1, 2], [3, 4]]],
        [[[1.75, 2.25], [2.75, 3.25]]],
        [[1, 1], [1, 1]],
        [2, 4, 2, 4],
    ),
    "2 channels": (
        [[[1, 2], [3, 4]], [[4, 3], [2, 1]]],
        [[[1.75, 2.25], [2.75, 3.25]], [[3.25, 2.75], [2.25, 1.75]]],
        [[1, 1], [1, 1]],
        [0, 0, 0, 0],
    ),
    "16 pixels": (
        [[[1, 2, 5, 6], [3, 4, 7, 8], [9, 10, 13, 14], [11, 12, 15, 16]]],
        [[[3.75, 83 / 12], [121 / 12, 13.25]]],
        [[x * y / 9 for x in (1, 2, 2, 1)] for y in (1, 2, 2, 1)],
        [10 / 3, 20 / 3, 10 / 3, 20 / 3],
    ),
}


@pytest.mark.parametrize("case", MMCV.values(), ids=MMCV)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_cases_of_mmcv(case: tuple[list[object], ...], dtype: torch.dtype) -> None:
    map, expected, by_map, by_box = (torch.tensor(x, dtype=dtype) for x in case)
    features = map[None].requires_grad_()
    side = map.shape[1] - 1
    rois = torch.tensor([[0, 0, 0, side, side]], dtype=dtype, requires_grad=True)
    out = ops.prroi_pool(features, rois, 2)
    out.sum().backward()
    assert features.grad is not None
    assert rois.grad is not None
    torch.testing.assert_close(out[0], expected)
    torch.testing.assert_close(features.grad[0], by_map.expand_as(map))
    torch.testing.assert_close(rois.grad[0, 1:], by_box, rtol=1e-5, atol=1e-5)


def test_paddle_gave_these_numbers() -> None:
    """Of PaddlePaddle's py_precise_roi_pool.py in float64: boxes across the sides, in one cell, without a width."""
    map = ((torch.arange(168) * 37) % 23 - 11).reshape(2, 2, 6, 7).double() / 8
    rois = torch.tensor(
        [[0, 1.5, 2.25, 11.0, 9.5], [1, -4.5, 3.0, 6.25, 14.5], [1, 5.1, 5.2, 5.3, 5.4], [0, 4.0, 4.0, 4.0, 9.0]],
        dtype=torch.float64,
    )
    expected = [
        [-0.166717030825, 0.324221851605, -0.056003023622, -0.059327058048],
        [0.139344923293, 0.022860158377, 0.131150482787, -0.134815693767],
        [0.103055732195, -0.035831894985, -0.043557501659, -0.134779202082],
        [-0.003673464753, 0.035650208939, -0.119900694752, 0.03144328828],
        [0.183203125, 0.216796875, 0.159609375, 0.200390625],
        [-0.303125, -0.359375, -0.265625, -0.321875],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    out = ops.prroi_pool(map, rois, 2, 0.5)
    torch.testing.assert_close(out.view(8, 4), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_samples_of_roi_align_come_nearer_by_the_square_of_their_number_and_never_arrive(
    torchvision: ModuleType,
) -> None:
    generator = torch.Generator().manual_seed(1)
    map = torch.randn(1, 8, 32, 32, generator=generator, dtype=torch.float64)
    corner, side = 14.5 * torch.rand(2, 200, 2, generator=generator, dtype=torch.float64)
    rois = torch.cat([torch.zeros(200, 1), corner + 0.5, corner + side + 1.5], 1)  # inside, no side below 1
    exact = ops.prroi_pool(map, rois, 7)
    gaps = [
        float((torchvision.ops.roi_align(map, rois, 7, 1.0, samples, False) - exact).abs().max())
        for samples in (1, 2, 4, 8, 16, 32)
    ]
    for gap, typical in zip(gaps, (2.07, 0.373, 0.095, 0.018, 0.0056, 0.0013), strict=True):
        assert typical / 2 < gap < typical * 2


def test_roi_align_has_no_gradient_for_boxes(torchvision: ModuleType) -> None:
    map, rois = torch.randn(1, 1, 8, 8, requires_grad=True), torch.tensor([[0, 1.0, 1, 6, 6]], requires_grad=True)
    torchvision.ops.roi_align(map, rois, 3).sum().backward()
    assert rois.grad is None
    ops.prroi_pool(map, rois, 3).sum().backward()
    assert rois.grad is not None


@pytest.mark.parametrize("canonical", [{}, {"canonical_scale": 100, "canonical_level": 3}])
def test_levels_and_scales_are_those_of_torchvision(torchvision: ModuleType, canonical: dict[str, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    names, shapes = ["0", "1", "2", "3"], [(250, 320), (256, 300)]
    maps = {str(i): torch.randn(2, 3, 64 >> i, 80 >> i, generator=generator) for i in range(4)}
    maps["pool"] = torch.randn(2, 3, 4, 5, generator=generator)
    side = torch.exp(torch.rand(2, 500, 2, generator=generator) * 6)
    corner = torch.rand(2, 500, 2, generator=generator) * 100
    side[:, :9] = torch.tensor([14.0, 28, 56, 100, 112, 200, 224, 448, 896])[:, None]  # at the limits
    corner[:, :9] = 0
    boxes = [*torch.cat([corner, corner + side], 2)]
    theirs = torchvision.ops.MultiScaleRoIAlign(names, 7, 32, **canonical)
    ours = MultiScalePrRoIPool(names, 7, 32, **canonical)
    few = [x[::5] for x in boxes]
    sampled = theirs(maps, few, shapes)
    assert torch.equal(ours.levels(maps, boxes, shapes), theirs.map_levels(boxes))
    assert theirs.scales == [0.25, 0.125, 0.0625, 0.03125]
    # Samples apart, boxes agree that are inside and a pixel wide on every map: smaller ones torchvision widens.
    x1, y1, x2, y2 = torch.cat(few).unbind(1)
    alike = (torch.minimum(x2 - x1, y2 - y1) >= 32) & (torch.maximum(x2, y2) < 220)
    assert alike.sum() >= 5
    assert (ours(maps, few, shapes) - sampled)[alike].abs().max() < 0.02
