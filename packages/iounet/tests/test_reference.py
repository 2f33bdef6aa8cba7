"""The definition of the pooling against the mathematics: integrals, primitives, identities and limits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import dblquad
from torch import Tensor
from torch.nn import functional as F

from iounet import _ops, _reference
from iounet._reference import Axis

EPS = torch.finfo(torch.float64).eps
PADDINGS = pytest.mark.parametrize("border", [False, True], ids=["zeros", "border"])


@pytest.fixture(params=["registered", "reference"])
def operators(request: pytest.FixtureRequest) -> Any:
    """The operators as the dispatcher finds them, and the reference itself."""
    return _ops if request.param == "registered" else _reference


def numbers(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def hat(t: Tensor) -> Tensor:
    return (1 - t.abs()).clamp(min=0)


def primitive(t: Tensor) -> Tensor:
    """The integral of the hat function from -1 to t."""
    t = t.clamp(-1, 1)
    return torch.where(t < 0, (t + 1) ** 2 / 2, 1 - (1 - t) ** 2 / 2)


def axis(start: float, stop: float, bins: int = 1, size: int = 9, border: bool = False) -> Axis:
    one = torch.ones(1, dtype=torch.float64)
    return Axis(start * one, stop * one, bins, size, border)


def derivatives(line: Axis) -> tuple[Tensor, Tensor]:
    """The derivatives of the weights of the only bin by its lower and its upper edge, [size] each."""
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    return line.along(one, zero)[0, 0], line.along(zero, one)[0, 0]


ENDS = st.tuples(st.floats(-4, 12), st.floats(0.05, 9)).map(lambda x: (x[0], x[0] + x[1]))


# --- weights --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(ends=ENDS, bins=st.integers(1, 7), size=st.integers(1, 9))
def test_weights_are_differences_of_the_primitive(ends: tuple[float, float], bins: int, size: int) -> None:
    line = axis(*ends, bins, size)
    width = (ends[1] - ends[0]) / bins
    edges = ends[0] + width * torch.arange(bins + 1, dtype=torch.float64)
    values = primitive(edges[:, None] - torch.arange(size, dtype=torch.float64))
    torch.testing.assert_close(line.mean()[0], values.diff(dim=0) / width, rtol=0, atol=100 * EPS / width)


@settings(deadline=None, max_examples=100)
@given(ends=st.tuples(st.floats(0, 7), st.floats(0, 7)).map(sorted), bins=st.integers(1, 9), border=st.booleans())
def test_rows_sum_to_one_inside_the_map_and_are_short(ends: list[float], bins: int, border: bool) -> None:
    weights = axis(*ends, bins, 8, border).mean()[0]
    assert (weights >= 0).all()
    assert (weights.sum(1) - 1).abs().max() <= 8 * EPS
    assert (weights != 0).sum(1).max() <= np.ceil((ends[1] - ends[0]) / bins) + 2


@settings(deadline=None, max_examples=100)
@given(ends=ENDS, size=st.integers(1, 9))
def test_slopes_are_those_of_the_mean(ends: tuple[float, float], size: int) -> None:
    """d mean / db = (f(b) - mean) / d and d mean / da = (mean - f(a)) / d."""
    line, width = axis(*ends, 1, size), ends[1] - ends[0]
    pixels = torch.arange(size, dtype=torch.float64)
    at_start, at_stop = (hat(x - pixels) for x in ends)
    mean = line.mean()[0, 0]
    by_start, by_stop = derivatives(line)
    torch.testing.assert_close(by_start, (mean - at_start) / width, rtol=0, atol=100 * EPS / width**2)
    torch.testing.assert_close(by_stop, (at_stop - mean) / width, rtol=0, atol=100 * EPS / width**2)


@pytest.mark.parametrize("width", [1e-12, 1e-3, 0.25, 0.5])
def test_a_bin_in_one_cell_has_half_the_slope_at_each_edge_exactly(width: float) -> None:
    for x in derivatives(axis(3.5, 3.5 + width)):
        assert x.tolist() == [0, 0, 0, -0.5, 0.5, 0, 0, 0, 0]


@settings(deadline=None, max_examples=100)
@given(ends=ENDS.filter(lambda e: all(abs(x - round(x)) > 1e-6 for x in e)), size=st.integers(1, 9))
def test_second_derivatives_are_those_of_the_mean(ends: tuple[float, float], size: int) -> None:
    (a, b), d = ends, ends[1] - ends[0]
    line, pixels = axis(a, b, 1, size), numbers(1, 1, size)
    places = torch.arange(size, dtype=torch.float64)

    def at(x: float) -> tuple[float, float]:
        slope = torch.where((x - places).abs() < 1, (places - x).sign(), 0.0)
        return float(hat(x - places) @ pixels[0, 0]), float(slope @ pixels[0, 0])

    mean = float(line.mean()[0, 0] @ pixels[0, 0])
    (f_a, slope_a), (f_b, slope_b) = at(a), at(b)
    by_aa, by_ab = -slope_a / d + 2 * (mean - f_a) / d**2, (f_a + f_b - 2 * mean) / d**2
    by_bb = slope_b / d - 2 * (f_b - mean) / d**2
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    by_a, by_b = line.pull_along(pixels, one, zero), line.pull_along(pixels, zero, one)
    actual = [*map(float, by_a), *map(float, by_b)]
    assert actual == pytest.approx([by_aa, by_ab, by_ab, by_bb], rel=0, abs=200 * EPS / d**3)


@pytest.mark.parametrize("ends", [(3.2, 3.7), (3.0, 4.0), (3.0, 3.5), (3.5, 4.0), (3.3, 3.3)])
def test_the_mean_of_a_bin_in_one_cell_is_linear_in_its_edges(ends: tuple[float, float]) -> None:
    one = torch.ones(1, dtype=torch.float64)
    for move in ((one, 0 * one), (0 * one, one)):
        assert [float(x) for x in axis(*ends).pull_along(numbers(1, 1, 9), *move)] == [0, 0]


def test_derivatives_have_no_noise_in_tiny_bins_across_a_pixel() -> None:
    """(hat(b) - mean) / d would have lost eight digits here."""
    by_start, by_stop = derivatives(axis(4 - 0.25e-8, 4 + 0.75e-8))
    share = 0.25  # of the bin that lies in the cell on the left
    expected = share * (share / 2), (1 - share) * (share + (1 - share) / 2)  # by the upper edge, in both cells
    assert by_stop.tolist()[3:6] == pytest.approx([-expected[0], expected[0] - expected[1], expected[1]], abs=1e-7)
    assert (by_start + by_stop).tolist()[3:6] == pytest.approx([-share, 2 * share - 1, 1 - share], abs=1e-7)


# --- values ---------------------------------------------------------------------------------------------------------


def test_four_pixels_by_hand(operators: Any) -> None:
    map, boxes = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0]])
    args = (1.0, False, False, False)
    assert operators.prroi_pool(map, boxes, 2, 2, *args).flatten().tolist() == [1.75, 2.25, 2.75, 3.25]
    ones = torch.ones(1, 1, 2, 2)
    assert operators.prroi_pool_grad_input(ones, boxes, 1, 2, 2, False, *args).flatten().tolist() == [1, 1, 1, 1]
    assert operators.prroi_pool_grad_boxes(ones, map, boxes, *args).tolist() == [[0, 2, 4, 2, 4]]


def test_bins_of_one_cell_are_an_average_pooling(operators: Any) -> None:
    map = numbers(2, 3, 6, 8)
    boxes = torch.tensor([[0, 0, 0, 7, 5], [1, 0, 0, 7, 5]], dtype=torch.float64)
    actual = operators.prroi_pool(map, boxes, 5, 7, 1.0, False, False, False)
    torch.testing.assert_close(actual, F.avg_pool2d(map, 2, stride=1), rtol=0, atol=4 * EPS)


@PADDINGS
@pytest.mark.parametrize("box", [(0.3, 0.7, 3.9, 2.2), (-1.7, -2.6, 2.3, 1.4), (2.2, 1.9, 6.3, 4.8)])
def test_outputs_are_integrals(operators: Any, box: tuple[float, float, float, float], border: bool) -> None:
    map = numbers(1, 1, 3, 4)

    def value(y: float, x: float) -> float:
        if border:
            y, x = min(max(y, 0), 2), min(max(x, 0), 3)
        hats = [[max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j)) for j in range(4)] for i in range(3)]
        return float((np.array(hats) * map[0, 0].numpy()).sum())

    def split(low: float, high: float) -> list[float]:
        return [low, *range(int(np.floor(low)) + 1, int(np.ceil(high))), high]

    x1, y1, x2, y2 = box
    actual = operators.prroi_pool(map, torch.tensor([[0, *box]], dtype=torch.float64), 2, 1, 1.0, border, False, False)
    middle = (y1 + y2) / 2
    for p, (low, high) in enumerate(((y1, middle), (middle, y2))):
        total = sum(
            dblquad(value, *xs, *ys, epsabs=1e-12)[0]  # smooth in each cell
            for ys in pairwise(split(low, high))
            for xs in pairwise(split(x1, x2))
        )
        assert float(actual[0, 0, p, 0]) == pytest.approx(total / ((x2 - x1) * (high - low)), abs=1e-11)


def test_a_border_is_a_map_with_its_edge_repeated(operators: Any) -> None:
    map = numbers(2, 3, 5, 6)
    boxes = torch.tensor([[0, -6.2, -5.4, 11.3, 9.1], [1, 3.3, -7.7, 4.4, -3.1], [0, 6.1, 5.2, 8.9, 9.3]]).double()
    padded = F.pad(map, (10, 10, 10, 10), mode="replicate")
    moved = boxes + torch.tensor([0.0, 10, 10, 10, 10])
    actual = operators.prroi_pool(map, boxes, 3, 4, 1.0, True, False, False)
    expected = operators.prroi_pool(padded, moved, 3, 4, 1.0, False, False, False)
    torch.testing.assert_close(actual, expected, rtol=0, atol=50 * EPS)
    grad = numbers(*actual.shape, seed=2)
    actual = operators.prroi_pool_grad_boxes(grad, map, boxes, 1.0, True, False, False)
    expected = operators.prroi_pool_grad_boxes(grad, padded, moved, 1.0, False, False, False)
    torch.testing.assert_close(actual, expected, rtol=0, atol=500 * EPS)


@PADDINGS
def test_aligned_subtracts_half_a_pixel_of_the_map(operators: Any, border: bool) -> None:
    map, boxes = numbers(1, 2, 7, 7), torch.tensor([[0, 3.0, -2.0, 17.0, 11.0]], dtype=torch.float64)
    moved = boxes - torch.tensor([0, 1.0, 1.0, 1.0, 1.0])
    actual = operators.prroi_pool(map, boxes, 3, 2, 0.5, border, True, False)
    expected = operators.prroi_pool(map, moved, 3, 2, 0.5, border, False, False)
    assert torch.equal(actual, expected)
    assert not torch.equal(actual, operators.prroi_pool(map, boxes, 3, 2, 0.5, border, False, False))


@pytest.mark.parametrize("bin", [1e-3, 1e-2, 0.1, 0.5, 1.0, 3.0, 10.0, 40.0, 100.0])
def test_float32_is_within_a_millionth_for_bins_of_any_size(operators: Any, bin: float) -> None:
    map, generator = numbers(1, 2, 320, 320), torch.Generator().manual_seed(3)
    corner = torch.rand(40, 2, generator=generator) * (320 - min(3 * bin, 310))
    boxes = torch.cat([torch.zeros(40, 1), corner, corner + 3 * bin], 1)
    args = (boxes, 3, 3, 1.0, False, False, False)
    exact = _reference.prroi_pool(map.float().double(), *args)
    actual = operators.prroi_pool(map.float(), *args)
    assert (actual - exact).abs().max() <= 1e-6 * exact.abs().max()


# --- boxes without an area ------------------------------------------------------------------------------------------

INVERTED = [(3.3, 2.2, 1.1, 4.4), (3.3, 4.4, 5.5, 2.2), (3.3, 4.4, 1.1, 2.2)]
EMPTY = [(2.3, 3.2, 2.3, 5.0), (2.3, 3.2, 4.0, 3.2), (2.3, 3.2, 2.3, 3.2), *INVERTED]


def rois(*boxes: tuple[float, ...]) -> Tensor:
    return torch.tensor([[0, *box] for box in boxes], dtype=torch.float64)


def test_a_box_without_area_gives_zero_and_no_gradient(operators: Any) -> None:
    map, boxes, args = numbers(1, 2, 8, 8), rois(*EMPTY), (1.0, False, False, False)
    grad = numbers(len(boxes), 2, 2, 3, seed=2)
    assert not operators.prroi_pool(map, boxes, 2, 3, *args).any()
    assert not operators.prroi_pool_grad_input(grad, boxes, 1, 8, 8, False, *args).any()
    assert not operators.prroi_pool_grad_boxes(grad, map, boxes, *args).any()
    assert not operators.prroi_pool_jvp(map, boxes, torch.ones_like(boxes), 2, 3, *args).any()


@PADDINGS
def test_the_limit_of_a_box_without_size_is_a_sample(operators: Any, border: bool) -> None:
    map = numbers(1, 2, 8, 8)
    points = [(3.3, 2.2), (-0.4, 5.1), (7.25, 7.5), (4.0, 5.0)]
    boxes = rois(*((x, y, x, y) for x, y in points), *((x, y, x - 2.0, y - 1.0) for x, y in points))
    actual = operators.prroi_pool(map, boxes, 2, 2, 1.0, border, False, True)
    grid = 2 * torch.tensor(points * 2, dtype=torch.float64)[None, :, None] / 7 - 1
    mode = "border" if border else "zeros"
    expected = F.grid_sample(map, grid, padding_mode=mode, align_corners=True)[0, :, :, 0].T
    torch.testing.assert_close(actual, expected[:, :, None, None].expand_as(actual), rtol=0, atol=50 * EPS)


@pytest.mark.parametrize("box", EMPTY)
def test_the_limit_is_that_of_smaller_and_smaller_boxes(operators: Any, box: tuple[float, ...]) -> None:
    map, args, size = numbers(1, 2, 8, 8), (1.0, False, False, True), 1e-9
    x1, y1, x2, y2 = box
    near = rois((x1, y1, max(x2, x1 + size), max(y2, y1 + size)))
    grad = numbers(1, 2, 2, 3, seed=2)
    actual = operators.prroi_pool(map, rois(box), 2, 3, *args)
    torch.testing.assert_close(actual, operators.prroi_pool(map, near, 2, 3, *args), rtol=0, atol=1e-7)
    actual = operators.prroi_pool_grad_boxes(grad, map, rois(box), *args)
    expected = operators.prroi_pool_grad_boxes(grad, map, near, *args)
    if x2 < x1:  # all gradient goes to x1
        expected[:, 1], expected[:, 3] = expected[:, 1] + expected[:, 3], 0
    if y2 < y1:
        expected[:, 2], expected[:, 4] = expected[:, 2] + expected[:, 4], 0
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


# --- numbers out of bounds ------------------------------------------------------------------------------------------

BAD = [
    (0, float("nan"), 1, 5, 5),
    (0, 1, 1, float("inf"), 5),
    (0, 1, float("-inf"), 5, 5),
    (1, 1, 1, 5, 5),
    (-1, 1, 1, 5, 5),
    (0.5, 1, 1, 5, 5),
    (float("nan"), 1, 1, 5, 5),
    (1e30, 1, 1, 5, 5),
]


@pytest.mark.parametrize("limit", [False, True])
@PADDINGS
def test_a_bad_box_gives_nan_and_touches_no_other(operators: Any, border: bool, limit: bool) -> None:
    map, args = numbers(1, 2, 8, 8), (1.0, border, False, limit)
    good = rois((1, 1, 5, 5), (2, 2, 2, 2))
    boxes = torch.cat([torch.tensor(BAD, dtype=torch.float64), good])
    grad = numbers(len(boxes), 2, 2, 3, seed=2)
    n = len(BAD)
    for actual, expected in (
        (operators.prroi_pool(map, boxes, 2, 3, *args), operators.prroi_pool(map, good, 2, 3, *args)),
        (
            operators.prroi_pool_grad_boxes(grad, map, boxes, *args),
            operators.prroi_pool_grad_boxes(grad[n:], map, good, *args),
        ),
        (
            operators.prroi_pool_jvp(map, boxes, torch.ones_like(boxes), 2, 3, *args),
            operators.prroi_pool_jvp(map, good, torch.ones_like(good), 2, 3, *args),
        ),
    ):
        assert actual[:n].isnan().all()
        assert torch.equal(actual[n:], expected)
    grad[:n] = torch.nan
    actual = operators.prroi_pool_grad_input(grad, boxes, 1, 8, 8, False, *args)
    expected = operators.prroi_pool_grad_input(grad[n:], good, 1, 8, 8, False, *args)
    assert torch.equal(actual, expected)
    _, by_input, by_boxes = operators.prroi_pool_grad_boxes_backward(torch.ones_like(boxes), grad, map, boxes, *args)
    assert by_input.isfinite().all()
    assert by_boxes.isnan().all(1).tolist() == [True] * n + [False] * 2


@pytest.mark.parametrize("far", [1e6, 1e15, 1e30, 3e38])
def test_huge_coordinates_mean_what_they_say(operators: Any, far: float) -> None:
    map = numbers(1, 1, 5, 6, dtype=torch.float32)
    boxes = rois((-far, -far, far, far), (far / 2, far / 2, far, far), (-far, 1, far, 3)).float()
    zeros = operators.prroi_pool(map, boxes, 1, 1, 1.0, False, False, False).flatten()
    assert zeros.tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    if far < 1e7:
        assert float(zeros[0]) == pytest.approx(float(map.sum()) / (2 * far) ** 2, rel=1e-4)
    border = operators.prroi_pool(map, boxes, 1, 1, 1.0, True, False, False).flatten()
    corners = map[0, 0, ::4, ::5]
    sides = map[0, 0, 1:4, ::5].mean(1) @ torch.tensor([0.25, 0.5, 0.25])
    assert border.tolist() == pytest.approx([float(corners.mean()), float(corners[1, 1]), float(sides)], abs=1e-5)
    for padding in (False, True):
        grad = operators.prroi_pool_grad_boxes(torch.ones(3, 1, 1, 1), map, boxes, 1.0, padding, False, False)
        assert grad.isfinite().all()


# --- how the reference computes -------------------------------------------------------------------------------------


def results(map: Tensor, boxes: Tensor) -> list[Tensor]:
    args, grad = (0.5, False, False, False), numbers(len(boxes), map.shape[1], 2, 3, seed=2).to(map.dtype)
    n, _, h, w = map.shape
    return [
        _reference.prroi_pool(map, boxes, 2, 3, *args),
        _reference.prroi_pool_grad_input(grad, boxes, n, h, w, False, *args),
        _reference.prroi_pool_grad_boxes(grad, map, boxes, *args),
        _reference.prroi_pool_jvp(map, boxes, torch.ones_like(boxes), 2, 3, *args),
        *_reference.prroi_pool_grad_boxes_backward(torch.ones_like(boxes), grad, map, boxes, *args),
    ]


def random_boxes(k: int, n: int, size: float, seed: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner, sides = torch.rand(2, k, 2, generator=generator, dtype=torch.float64) * size
    image = torch.randint(n, (k, 1), generator=generator)
    return torch.cat([image, corner - size / 4, corner + sides], 1)


def test_memory_decides_how_many_boxes_go_at_once_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    map, boxes = numbers(2, 3, 8, 9), random_boxes(23, 2, 16)
    expected = results(map, boxes)
    sizes: list[int] = []
    pool = _reference._pool
    monkeypatch.setattr(_reference, "_pool", lambda wy, *args: (sizes.append(len(wy)), pool(wy, *args))[1])
    monkeypatch.setattr(_reference, "CHUNK", 16_000)
    for actual, whole in zip(results(map, boxes), expected, strict=True):
        torch.testing.assert_close(actual, whole, rtol=0, atol=1e-12)
    assert 1 < max(sizes) < 10


def test_autocast_does_not_reach_into_the_reference() -> None:
    map, boxes = numbers(2, 3, 8, 9, dtype=torch.float32), random_boxes(9, 2, 16).float()
    expected = results(map, boxes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = results(map, boxes)
    assert all(torch.equal(x, y) for x, y in zip(actual, expected, strict=True))


@pytest.mark.parametrize("limit", [False, True])
@PADDINGS
def test_the_traced_form_is_the_same_function(border: bool, limit: bool) -> None:
    map = numbers(2, 3, 8, 9)
    boxes = torch.cat([random_boxes(9, 2, 16), rois(*EMPTY), torch.tensor(BAD, dtype=torch.float64)])
    args = (boxes, 2, 3, 0.5, border, True, limit)
    expected = _reference.prroi_pool(map, *args)
    assert expected.isnan().any()
    torch.testing.assert_close(_reference.prroi_pool_traced(map, *args), expected, rtol=0, atol=1e-13, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(operators: Any, dtype: torch.dtype) -> None:
    map, boxes = numbers(2, 3, 20, 20).to(dtype), random_boxes(30, 2, 16).float()
    args = (boxes, 2, 3, 1.0, False, False, False)
    actual = operators.prroi_pool(map, *args)
    assert actual.dtype == dtype
    exact = _reference.prroi_pool(map.double(), *args)
    assert ((actual.double() - exact).abs() <= exact.abs() * torch.finfo(dtype).eps * 0.51 + 1e-6).all()
