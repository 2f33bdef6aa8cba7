"""Precise RoI pooling in plain PyTorch, by dense tables of weights: the definition of the operators."""

from __future__ import annotations

import torch
from torch import Tensor


def _tables(low: Tensor, high: Tensor, bins: int, size: int, border: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The mean weights of pixels in bins, [K,bins,size], and their derivatives by the lower and the upper edge."""
    k = torch.arange(bins + 1, dtype=torch.float64, device=low.device)
    edge = low[:, None] + (high - low)[:, None] * k / bins
    start, stop = edge[:, :-1, None], edge[:, 1:, None]
    width = stop - start
    first, last = (0, size - 1) if border else (-1, size)
    cell = torch.arange(first, last, dtype=torch.float64, device=low.device)
    u, v = torch.maximum(start, cell), torch.minimum(stop, cell + 1)
    share = (v - u).clamp(min=0) / width
    middle = ((u - cell) + (v - cell)) / 2
    weight = low.new_zeros(len(low), bins, size)
    near, far = share * (1 - middle), share * middle
    if border:
        weight[..., :-1] += near
        weight[..., 1:] += far
        weight[..., 0] += ((stop.clamp(max=0) - start).clamp(min=0) / width)[..., 0]
        weight[..., -1] += ((stop - start.clamp(min=size - 1)).clamp(min=0) / width)[..., 0]
    else:
        weight += near[..., 1:]
        weight += far[..., :-1]
    pixel = torch.arange(size, dtype=torch.float64, device=low.device)

    def hat(x: Tensor) -> Tensor:
        return (1 - ((x.clamp(0, size - 1) if border else x) - pixel).abs()).clamp(min=0)

    return weight, (weight - hat(start)) / width, (hat(stop) - weight) / width


def _axes(boxes: Tensor, ph: int, pw: int, h: int, w: int, scale: float, border: bool, aligned: bool) -> list[Tensor]:
    edges = boxes[:, 1:].double() * scale - (0.5 if aligned else 0.0)
    x1, y1, x2, y2 = edges.unbind(1)
    empty = ((x2 <= x1) | (y2 <= y1))[:, None, None]
    tables = [*_tables(y1, y2, ph, h, border), *_tables(x1, x2, pw, w, border)]
    return [table.masked_fill(empty, 0) for table in tables]


def _valid(boxes: Tensor, n: int) -> Tensor:
    image = boxes[:, 0]
    return boxes.isfinite().all(1) & (image >= 0) & (image < n) & (image == image.floor())


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _format(tensor: Tensor, like: Tensor) -> Tensor:
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    return tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def prroi_pool(
    input: Tensor, boxes: Tensor, ph: int, pw: int, scale: float, border: bool, aligned: bool, limit: bool
) -> Tensor:
    n, c, h, w = input.shape
    dtype = _accumulator(input.dtype)
    wy, _, _, wx, _, _ = (t.to(dtype) for t in _axes(boxes, ph, pw, h, w, scale, border, aligned))
    valid = _valid(boxes, n)
    out = torch.full((len(boxes), c, ph, pw), float("nan"), dtype=dtype, device=input.device)
    for image in range(n):
        rows = (valid & (boxes[:, 0] == image)).nonzero()[:, 0]
        out[rows] = torch.einsum("kph,chw,kqw->kcpq", wy[rows], input[image].to(dtype), wx[rows])
    return _format(out.to(input.dtype), input)


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
    _, c, ph, pw = grad.shape
    dtype = _accumulator(grad.dtype)
    wy, _, _, wx, _, _ = (t.to(dtype) for t in _axes(boxes, ph, pw, h, w, scale, border, aligned))
    valid = _valid(boxes, n)
    out = torch.zeros(n, c, h, w, dtype=dtype, device=grad.device)
    for image in range(n):
        rows = (valid & (boxes[:, 0] == image)).nonzero()[:, 0]
        out[image] = torch.einsum("kph,kcpq,kqw->chw", wy[rows], grad[rows].to(dtype), wx[rows])
    return out.to(grad.dtype, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def prroi_pool_grad_boxes(
    grad: Tensor, input: Tensor, boxes: Tensor, scale: float, border: bool, aligned: bool, limit: bool
) -> Tensor:
    n, _, h, w = input.shape
    _, _, ph, pw = grad.shape
    dtype = _accumulator(input.dtype)
    tables = (t.to(dtype) for t in _axes(boxes, ph, pw, h, w, scale, border, aligned))
    wy, wy_low, wy_high, wx, wx_low, wx_high = tables
    valid = _valid(boxes, n)
    out = torch.full((len(boxes), 5), float("nan"), dtype=torch.float64, device=input.device)
    py, px = (torch.arange(p, dtype=torch.float64, device=input.device) / p for p in (ph, pw))
    for image in range(n):
        rows = (valid & (boxes[:, 0] == image)).nonzero()[:, 0]
        up, map = grad[rows].to(dtype), input[image].to(dtype)
        a = torch.einsum("kph,chw,kcpq->kqw", wy[rows], map, up)
        b = torch.einsum("kqw,chw,kcpq->kph", wx[rows], map, up)
        x_low, x_high = ((a * t[rows]).sum(2).double() for t in (wx_low, wx_high))
        y_low, y_high = ((b * t[rows]).sum(2).double() for t in (wy_low, wy_high))
        columns = [torch.zeros_like(x_low[:, 0])]
        for low, high, p in ((x_low, x_high, px), (y_low, y_high, py)):
            right = p + 1 / len(p)
            columns += [(low * (1 - p) + high * (1 - right)).sum(1), (low * p + high * right).sum(1)]
        zero, x1, x2, y1, y2 = columns
        out[rows] = torch.stack([zero, x1, y1, x2, y2], 1) * scale
    return out.to(boxes.dtype)
