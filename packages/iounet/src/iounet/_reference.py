"""Precise RoI pooling in plain PyTorch, by dense tables of weights in float64: the definition of the operators.

With the weights Wy [K, PH, H] and Wx [K, PW, W] of a box in its image F, the output is V = Wy F Wx^T per channel; all
derivatives follow from those of the weights. A pixel that is not finite spoils every box of its image here, and in the
kernels the boxes that read it.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

P = ParamSpec("P")
R = TypeVar("R")

CHUNK = 64 << 20  # bytes of the largest tensor between two contractions
FAR = 1e30  # coordinates are limited to this, beyond which no weight changes by more


# --- one axis -------------------------------------------------------------------------------------------------------


class Axis:
    """Boxes along one axis: the bins between `start` and `stop` [K], in map units, over a line of `size` pixels.

    The line is linear in each cell [c, c+1], zero (or constant, with `border`) outside. Of the mean over a bin [a, b],
    b - a = d, the part [u, v] in a cell has the share g = (v - u) / d and lies around the pixels c and c+1 at m:
    they get the weights g (1 - m) and g m. Where the cell rises by 1, d mean / db = g ((u - a) + (v - a)) / 2d and
    d mean / da = g less that, which no small bin makes 0/0. A bin without width samples the line at a, and each of its
    edges has half the slope there. An inverted box is one without width at `start`.
    """

    def __init__(self, start: Tensor, stop: Tensor, bins: int, size: int, border: bool) -> None:
        cell = torch.arange(-1, size, dtype=torch.float64, device=start.device)
        low, high = cell, cell + 1
        if border:
            low, high = low.masked_fill(cell < 0, -torch.inf), high.masked_fill(cell > size - 2, torch.inf)
        # An edge is start + part * (stop - start).
        self.part = torch.arange(bins + 1, dtype=torch.float64, device=start.device) / bins * (stop >= start)[:, None]
        edge = start[:, None] + self.part * (stop - start)[:, None]
        a, b = edge[:, :-1, None], edge[:, 1:, None]
        self.width = b - a
        self.point = self.width <= 0
        u, v = ((x.maximum(low)).minimum(high) for x in (a, b))
        at_a = (low <= a) & (a < high)
        self.share = torch.where(self.point, at_a.double(), (v - u) / self.width)
        place = [x.clamp(0, size - 1) - cell if border else x - cell for x in (u, v)]
        self.middle = (place[0] + place[1]) / 2
        inner = ((cell >= 0) & (cell < size - 1)).double() if border else torch.ones_like(cell)
        self.rise = self.share * inner
        self.by_stop = self.rise * torch.where(self.point, 0.5, ((u - a) + (v - a)) / (2 * self.width))
        self.by_start = self.rise - self.by_stop
        self.slope_start, self.slope_stop = at_a * inner, ((low < b) & (b <= high)) * inner

    def mean(self) -> Tensor:
        """The weights of the pixels in the bins, [K, bins, size]."""
        return _pixels(self.share * (1 - self.middle), self.share * self.middle)

    def along(self, start: Tensor, stop: Tensor) -> Tensor:
        """The derivative of the weights as the ends move by `start` and `stop` [K]."""
        low, high = self._edges(start, stop)
        cells = self.by_start * low + self.by_stop * high
        return _pixels(-cells, cells)

    def pull(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of both ends, [K] each, from that of the weights."""
        rise = _rises(table)
        return self._ends((rise * self.by_start).sum(2), (rise * self.by_stop).sum(2))

    def pull_along(self, table: Tensor, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of both ends from that of `along(start, stop)`: by the second derivatives of the weights."""
        low, high = self._edges(start, stop)
        rise = _rises(table) / self.width.masked_fill(self.point, torch.inf)
        twice_start = (rise * (2 * self.by_start - self.slope_start)).sum(2, keepdim=True)
        mixed = (rise * (self.by_stop - self.by_start)).sum(2, keepdim=True)
        twice_stop = (rise * (self.slope_stop - 2 * self.by_stop)).sum(2, keepdim=True)
        return self._ends((twice_start * low + mixed * high)[..., 0], (mixed * low + twice_stop * high)[..., 0])

    def _edges(self, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
        edge = start[:, None] + self.part * (stop - start)[:, None]
        return edge[:, :-1, None], edge[:, 1:, None]

    def _ends(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        part_low, part_high = self.part[:, :-1], self.part[:, 1:]
        start = (low * (1 - part_low) + high * (1 - part_high)).sum(1)
        return start, (low * part_low + high * part_high).sum(1)


def _pixels(near: Tensor, far: Tensor) -> Tensor:
    """What cells give to the pixels on their left and on their right, summed by pixel."""
    return near[..., 1:] + far[..., :-1]


def _rises(table: Tensor) -> Tensor:
    """The rise of a line of pixels in each cell, with zeros beyond both its ends."""
    return torch.nn.functional.pad(table, (1, 1)).diff(dim=2)


# --- boxes ----------------------------------------------------------------------------------------------------------


def _axes(
    boxes: Tensor, bins: Sequence[int], size: Sequence[int], scale: float, border: bool, aligned: bool
) -> tuple[Axis, Axis]:
    """The vertical and the horizontal axis of boxes [K,5]."""
    x1, y1, x2, y2 = (boxes[:, 1:].double() * scale - (0.5 if aligned else 0.0)).clamp(-FAR, FAR).unbind(1)
    return Axis(y1, y2, bins[0], size[0], border), Axis(x1, x2, bins[1], size[1], border)


def _moves(tangent: Tensor, scale: float) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """How the vertical and the horizontal ends move in map units as boxes move by `tangent` [K,5]."""
    _, x1, y1, x2, y2 = (tangent.double() * scale).unbind(1)
    return (y1, y2), (x1, x2)


def _invalid(boxes: Tensor, n: int) -> Tensor:
    """The boxes that have no result: NaN takes its place."""
    image = boxes[:, 0]
    return ~(boxes.isfinite().all(1) & (image >= 0) & (image < n) & (image == image.floor()))


def _nothing(boxes: Tensor, limit: bool) -> Tensor:
    """The boxes whose output and gradients are 0."""
    empty = (boxes[:, 3] <= boxes[:, 1]) | (boxes[:, 4] <= boxes[:, 2])
    return torch.zeros_like(empty) if limit else empty


def _groups(boxes: Tensor, shape: Sequence[int], bins: Sequence[int], limit: bool) -> Iterator[tuple[int, Tensor]]:
    """Each image with the rows of its boxes that have a result, as many at once as fit in memory."""
    n, c, h, w = shape
    per_box = 8 * max(bins) * (max(c, 8) * max(h, w) + 1)
    alive = ~_invalid(boxes, n) & ~_nothing(boxes, limit)
    for image in range(n):
        rows = (alive & (boxes[:, 0] == image)).nonzero()[:, 0]
        for part in rows.split(max(1, CHUNK // per_box)):
            if len(part):
                yield image, part


# --- contractions ---------------------------------------------------------------------------------------------------


def _pool(wy: Tensor, map: Tensor, wx: Tensor) -> Tensor:
    return torch.einsum("kpcw,kqw->kcpq", torch.einsum("kph,chw->kpcw", wy, map), wx)


def _spread(wy: Tensor, grad: Tensor, wx: Tensor) -> Tensor:
    """The gradient of the map."""
    return torch.einsum("kph,kpcw->chw", wy, torch.einsum("kcpq,kqw->kpcw", grad, wx))


def _grad_wx(wy: Tensor, map: Tensor, grad: Tensor) -> Tensor:
    return torch.einsum("kpcw,kcpq->kqw", torch.einsum("kph,chw->kpcw", wy, map), grad).double()


def _grad_wy(wx: Tensor, map: Tensor, grad: Tensor) -> Tensor:
    return torch.einsum("kqch,kcpq->kph", torch.einsum("kqw,chw->kqch", wx, map), grad).double()


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_channels_last(input: Tensor) -> bool:
    """Whether results of this map are channels_last: only if the map is, and not contiguous as well."""
    return input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous()


def memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _blank(size: Sequence[int], like: Tensor, invalid: Tensor) -> Tensor:
    """Zeros in the accumulator's dtype, NaN in the rows of invalid boxes."""
    out = torch.zeros(size, dtype=_accumulator(like.dtype), device=like.device)
    out[invalid] = torch.nan
    return out


def _full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Shields matrix products from autocast, which reaches into an operator that has no rule of its own."""

    @wraps(function)
    def shielded(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next(x for x in args if isinstance(x, Tensor)).device.type
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return shielded


# --- the operators --------------------------------------------------------------------------------------------------


@_full_precision
def prroi_pool(
    input: Tensor, boxes: Tensor, ph: int, pw: int, scale: float, border: bool, aligned: bool, limit: bool
) -> Tensor:
    """The mean of the map over each bin, [K, C, ph, pw]."""
    n, c, h, w = input.shape
    out = _blank((len(boxes), c, ph, pw), input, _invalid(boxes, n))
    for image, rows in _groups(boxes, input.shape, (ph, pw), limit):
        y, x = _axes(boxes[rows], (ph, pw), (h, w), scale, border, aligned)
        out[rows] = _pool(y.mean().to(out), input[image].to(out), x.mean().to(out))
    return out.to(input.dtype, memory_format=memory_format(is_channels_last(input)))


@_full_precision
def prroi_pool_grad_input(
    grad: Tensor,
    boxes: Tensor,
    n: int,
    h: int,
    w: int,
    channels_last: bool,
    scale: float,
    border: bool,
    aligned: bool,
    limit: bool,
) -> Tensor:
    """The gradient of the map, [n, C, h, w], from that of the output."""
    _, c, *bins = grad.shape
    out = torch.zeros((n, c, h, w), dtype=_accumulator(grad.dtype), device=grad.device)
    for image, rows in _groups(boxes, out.shape, bins, limit):
        y, x = _axes(boxes[rows], bins, (h, w), scale, border, aligned)
        out[image] += _spread(y.mean().to(out), grad[rows].to(out), x.mean().to(out))
    return out.to(grad.dtype, memory_format=memory_format(channels_last))


@_full_precision
def prroi_pool_grad_boxes(
    grad: Tensor, input: Tensor, boxes: Tensor, scale: float, border: bool, aligned: bool, limit: bool
) -> Tensor:
    """The gradient of the boxes, [K, 5], from that of the output."""
    dtype = _accumulator(input.dtype)
    bins, size = grad.shape[2:], input.shape[2:]
    out = _blank((len(boxes), 5), boxes, _invalid(boxes, len(input))).double()
    for image, rows in _groups(boxes, input.shape, bins, limit):
        map, up = input[image].to(dtype), grad[rows].to(dtype)
        y, x = _axes(boxes[rows], bins, size, scale, border, aligned)
        y1, y2 = y.pull(_grad_wy(x.mean().to(dtype), map, up))
        x1, x2 = x.pull(_grad_wx(y.mean().to(dtype), map, up))
        out[rows, 1:] = torch.stack([x1, y1, x2, y2], 1) * scale
    return out.to(boxes.dtype)


@_full_precision
def prroi_pool_jvp(
    input: Tensor,
    boxes: Tensor,
    tangent: Tensor,
    ph: int,
    pw: int,
    scale: float,
    border: bool,
    aligned: bool,
    limit: bool,
) -> Tensor:
    """The derivative of the output as the boxes move by `tangent` [K, 5]."""
    n, c, h, w = input.shape
    out = _blank((len(boxes), c, ph, pw), input, _invalid(boxes, n))
    for image, rows in _groups(boxes, input.shape, (ph, pw), limit):
        map = input[image].to(out)
        y, x = _axes(boxes[rows], (ph, pw), (h, w), scale, border, aligned)
        move_y, move_x = _moves(tangent[rows], scale)
        out[rows] = _pool(y.along(*move_y).to(out), map, x.mean().to(out))
        out[rows] += _pool(y.mean().to(out), map, x.along(*move_x).to(out))
    return out.to(input.dtype, memory_format=memory_format(is_channels_last(input)))


@_full_precision
def prroi_pool_grad_boxes_backward(
    cot: Tensor,
    grad: Tensor,
    input: Tensor,
    boxes: Tensor,
    scale: float,
    border: bool,
    aligned: bool,
    limit: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `grad`, `input` and `boxes` from that of `prroi_pool_grad_boxes`, `cot` [K, 5].

    They are those of sum(grad * jvp), the derivative of the output along `cot`.
    """
    bins, size = grad.shape[2:], input.shape[2:]
    channels_last = is_channels_last(input)
    grad_input = torch.zeros(input.shape, dtype=_accumulator(input.dtype), device=input.device)
    grad_boxes = _blank((len(boxes), 5), boxes, _invalid(boxes, len(input))).double()
    for image, rows in _groups(boxes, input.shape, bins, limit):
        map, up = input[image].to(grad_input), grad[rows].to(grad_input)
        y, x = _axes(boxes[rows], bins, size, scale, border, aligned)
        move_y, move_x = _moves(cot[rows], scale)
        wy, wx, dy, dx = (t.to(grad_input) for t in (y.mean(), x.mean(), y.along(*move_y), x.along(*move_x)))
        grad_input[image] += _spread(dy, up, wx) + _spread(wy, up, dx)
        once, twice = y.pull(_grad_wy(dx, map, up)), y.pull_along(_grad_wy(wx, map, up), *move_y)
        y1, y2 = once[0] + twice[0], once[1] + twice[1]
        once, twice = x.pull(_grad_wx(dy, map, up)), x.pull_along(_grad_wx(wy, map, up), *move_x)
        x1, x2 = once[0] + twice[0], once[1] + twice[1]
        grad_boxes[rows, 1:] = torch.stack([x1, y1, x2, y2], 1) * scale
    return (
        prroi_pool_jvp(input, boxes, cot, bins[0], bins[1], scale, border, aligned, limit),
        grad_input.to(input.dtype, memory_format=memory_format(channels_last)),
        grad_boxes.to(boxes.dtype),
    )


@_full_precision
def prroi_pool_traced(
    input: Tensor, boxes: Tensor, ph: int, pw: int, scale: float, border: bool, aligned: bool, limit: bool
) -> Tensor:
    """`prroi_pool` without loops and choices, for export: the image of a box is part of its vertical weights."""
    n, c, h, w = input.shape
    dtype = _accumulator(input.dtype)
    invalid = _invalid(boxes, n)
    alive = ~(invalid | _nothing(boxes, limit))
    y, x = _axes(boxes.where(alive[:, None], 0), (ph, pw), (h, w), scale, border, aligned)
    chosen = (boxes[:, :1] == torch.arange(n, device=boxes.device)) & alive[:, None]
    wy = (y.mean()[:, :, None] * chosen[:, None, :, None]).flatten(2).to(dtype)
    map = input.to(dtype).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)  # [NH, CW]
    rows: Tensor = (wy @ map).unflatten(2, (c, w))
    out = (rows @ x.mean().to(dtype).mT[:, None]).transpose(1, 2)
    return out.masked_fill(invalid[:, None, None, None], torch.nan).to(input.dtype)
