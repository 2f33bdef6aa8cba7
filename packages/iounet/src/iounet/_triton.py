"""Precise RoI pooling in Triton: the forward, the gradient of the map without atomics, and the gradient of the boxes.

In the kernels `p_` is a pointer, `s_`, `g_` and `o_` are strides in elements, and a capital is known when compiling. A
first launch makes the tables of weights, in float64 as in the definition; what follows works in float32 (float64 for
float64 maps), and adds in an order that is always the same.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = tl.constexpr(16)  # the side, in pixels, of the piece of the map that one program of the gradient owns
SCAN = tl.constexpr(128)  # boxes that are looked at together, when those over a tile are listed
COLUMNS = tl.constexpr(16)  # pixels of a row that are read together
INF = tl.constexpr(float("inf"))
IMAGE, FIRST_Y, END_Y, FIRST_X, END_X, SPAN = (tl.constexpr(field) for field in range(6))
WARPS = 4
BINS_PER_PROGRAM, PIXELS_PER_PROGRAM = 2048, 4096  # sums: 16 and 32 registers of a thread, and no spill on sm_90


# --- tables ---------------------------------------------------------------------------------------------------------


@triton.jit
def _hat(at, pixel, last, BORDER: tl.constexpr):  # type: ignore[no-untyped-def]
    if BORDER:
        at = tl.minimum(tl.maximum(at, 0.0), last)
    return tl.maximum(1.0 - tl.abs(at - pixel), 0.0)


@triton.jit
def _mean(start, stop, pixel, last, BORDER: tl.constexpr):  # type: ignore[no-untyped-def]
    """The weight of a pixel in the mean over [start, stop], which is cut at the pixels: in each piece it is linear."""
    u, v = tl.maximum(start, pixel), tl.minimum(stop, pixel + 1)
    right = tl.maximum(v - u, 0.0) * (1 - ((u - pixel) + (v - pixel)) * 0.5)
    u, v = tl.maximum(start, pixel - 1), tl.minimum(stop, pixel)
    left = tl.maximum(v - u, 0.0) * (((u - pixel + 1) + (v - pixel + 1)) * 0.5)
    if BORDER:
        right = tl.where(pixel == last, tl.maximum(stop - tl.maximum(start, last), 0.0), right)
        left = tl.where(pixel == 0, tl.maximum(tl.minimum(stop, 0.0) - start, 0.0), left)
    width = stop - start
    return tl.where(width > 0, (left + right) / tl.where(width > 0, width, 1.0), _hat(start, pixel, last, BORDER))


@triton.jit
def _slopes(weight, start, stop, pixel, last, BORDER: tl.constexpr):  # type: ignore[no-untyped-def]
    """The derivatives of that weight by `start` and by `stop`: a constant in a bin within one cell, and never 0/0."""
    width = tl.where(stop > start, stop - start, 1.0)
    cell = tl.floor(start)
    constant = tl.where(pixel == cell, -0.5, tl.where(pixel == cell + 1, 0.5, 0.0))
    if BORDER:
        constant = tl.where((cell >= 0) & (cell < last), constant, 0.0)
    by_start = (weight - _hat(start, pixel, last, BORDER)) / width
    by_stop = (_hat(stop, pixel, last, BORDER) - weight) / width
    alone = stop <= cell + 1
    return tl.where(alone, constant, by_start), tl.where(alone, constant, by_stop)


@triton.jit
def _axis(  # type: ignore[no-untyped-def]
    low, high, size, p_table, s_part, p_span, pooled,
    P: tl.constexpr, BINS: tl.constexpr, BORDER: tl.constexpr, SLOPES: tl.constexpr,
):  # fmt: skip
    """The weights of the pixels that a box touches along one axis, and which these are: none of a box not pooled."""
    last = size - 1.0
    first = tl.minimum(tl.maximum(tl.floor(low), 0.0), last + 1)  # clamped before it becomes an integer
    end = tl.minimum(tl.maximum(tl.ceil(high) + 1, 0.0), last + 1)
    if BORDER:
        first, end = tl.minimum(first, last), tl.maximum(end, 1.0)
    first = tl.where(pooled, first, 0.0).to(tl.int32)
    end = tl.where(pooled, end, 0.0).to(tl.int32)
    tl.store(p_span, first)
    tl.store(p_span + 1, end)
    k = tl.arange(0, BINS)[None, :]
    start, stop = low + (high - low) * k.to(tl.float64) / P, low + (high - low) * (k + 1).to(tl.float64) / P
    at = first
    while at < end:
        index = at + tl.arange(0, COLUMNS)[:, None]
        pixel = index.to(tl.float64)
        p, known = p_table + index * BINS + k, (index < end) & (k < P)
        weight = _mean(start, stop, pixel, last, BORDER)
        tl.store(p, weight.to(p_table.dtype.element_ty), known)
        if SLOPES:
            by_start, by_stop = _slopes(weight, start, stop, pixel, last, BORDER)
            tl.store(p + s_part, by_start.to(p_table.dtype.element_ty), known)
            tl.store(p + 2 * s_part, by_stop.to(p_table.dtype.element_ty), known)
        at += COLUMNS


@triton.jit
def _tabulate(  # type: ignore[no-untyped-def]
    p_boxes, s_row, s_column, p_wy, p_wx, p_spans, boxes, n, height, width, scale: tl.float64,
    PH: tl.constexpr, PW: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    BORDER: tl.constexpr, ALIGNED: tl.constexpr, LIMIT: tl.constexpr, SLOPES: tl.constexpr,
):  # fmt: skip
    """One box. Its image is -1 where a coordinate is not finite or no such image there."""
    row = tl.program_id(0).to(tl.int64)
    p = p_boxes + row * s_row
    image = tl.load(p).to(tl.float64)
    x1, y1 = tl.load(p + s_column).to(tl.float64), tl.load(p + 2 * s_column).to(tl.float64)
    x2, y2 = tl.load(p + 3 * s_column).to(tl.float64), tl.load(p + 4 * s_column).to(tl.float64)
    valid = (tl.abs(x1) < INF) & (tl.abs(y1) < INF) & (tl.abs(x2) < INF) & (tl.abs(y2) < INF)
    valid = valid & (image >= 0) & (image < n) & (image == tl.floor(image))
    shift = 0.5 if ALIGNED else 0.0
    x1, y1, x2, y2 = x1 * scale - shift, y1 * scale - shift, x2 * scale - shift, y2 * scale - shift
    if LIMIT:
        x2, y2 = tl.maximum(x1, x2), tl.maximum(y1, y2)
        pooled = valid
    else:
        pooled = valid & (x2 > x1) & (y2 > y1)
    p_span = p_spans + row * SPAN
    tl.store(p_span + IMAGE, tl.where(valid, image, -1.0).to(tl.int32))
    p_wy, p_wx = p_wy + row * height * ROWS, p_wx + row * width * COLS
    part_y, part_x = boxes.to(tl.int64) * height * ROWS, boxes.to(tl.int64) * width * COLS
    _axis(y1, y2, height, p_wy, part_y, p_span + FIRST_Y, pooled, PH, ROWS, BORDER, SLOPES)
    _axis(x1, x2, width, p_wx, part_x, p_span + FIRST_X, pooled, PW, COLS, BORDER, SLOPES)


class Tables(NamedTuple):
    """Weights of pixels in bins, [K,H,ROWS] and [K,W,COLS]; with slopes, [3,...]: those and their derivatives by a
    bin's first and last edge. Only what lies in the spans, [K,5], is ever written or read."""

    wy: Tensor
    wx: Tensor
    spans: Tensor


def _tables(
    boxes: Tensor, map: tuple[int, int, int], bins: tuple[int, int], dtype: torch.dtype,
    scale: float, border: bool, aligned: bool, limit: bool, slopes: bool = False,
) -> Tables:  # fmt: skip
    (n, height, width), (ph, pw), k = map, bins, len(boxes)
    rows, cols = (triton.next_power_of_2(p) for p in bins)
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    parts = (3,) if slopes else ()
    wy = torch.empty((*parts, k, height, rows), dtype=dtype, device=boxes.device)
    wx = torch.empty((*parts, k, width, cols), dtype=dtype, device=boxes.device)
    spans = torch.empty((k, SPAN.value), dtype=torch.int32, device=boxes.device)
    if k:
        _tabulate[(k,)](
            boxes, *boxes.stride(), wy, wx, spans, k, n, height, width, scale, PH=ph, PW=pw, ROWS=rows, COLS=cols,
            BORDER=border, ALIGNED=aligned, LIMIT=limit, SLOPES=slopes, num_warps=WARPS,
        )  # fmt: skip
    return Tables(wy, wx, spans)


# --- forward --------------------------------------------------------------------------------------------------------


@triton.jit
def _pool(  # type: ignore[no-untyped-def]
    p_input, s_n, s_c, s_h, s_w, p_wy, p_wx, p_spans, p_out, o_k, o_c, o_h, o_w, channels, height, width,
    PH: tl.constexpr, PW: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """One box, C channels: a row of pixels gives the bins of a row, which are added to the rows of bins it lies in."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * C + tl.arange(0, C)
    p, q = tl.arange(0, ROWS), tl.arange(0, COLS)
    image = tl.load(p_spans + row * SPAN + IMAGE)
    first_y, end_y = tl.load(p_spans + row * SPAN + FIRST_Y), tl.load(p_spans + row * SPAN + END_Y)
    first_x, end_x = tl.load(p_spans + row * SPAN + FIRST_X), tl.load(p_spans + row * SPAN + END_X)
    p_map = p_input + image.to(tl.int64) * s_n + first_y.to(tl.int64) * s_h + c[None, :].to(tl.int64) * s_c
    p_wy += (row * height + first_y) * ROWS + p
    p_wx += row * width * COLS + q[None, :]
    total = tl.zeros((ROWS, COLS, C), p_wy.dtype.element_ty)
    at = first_x
    while at < end_x:
        x = at + tl.arange(0, COLUMNS)[:, None]
        wx = tl.load(p_wx + x * COLS, (x < end_x) & (q < PW)[None, :], 0.0)
        p_strip, p_level = p_map + x.to(tl.int64) * s_w, p_wy
        inside = (x < end_x) & (c < channels)[None, :]
        y = first_y
        while y < end_y:
            strip = tl.load(p_strip, inside, 0.0).to(wx.dtype)
            bins = tl.sum(wx[:, :, None] * strip[:, None, :], 0)
            total += tl.load(p_level, p < PH, 0.0)[:, None, None] * bins[None, :, :]
            p_strip += s_h
            p_level += ROWS
            y += 1
        at += COLUMNS
    if image < 0:
        total += float("nan")
    p_bin = p_out + row * o_k + p[:, None, None].to(tl.int64) * o_h + q[None, :, None].to(tl.int64) * o_w
    kept = (p < PH)[:, None, None] & (q < PW)[None, :, None] & (c < channels)[None, None, :]
    tl.store(p_bin + c[None, None, :].to(tl.int64) * o_c, total.to(p_out.dtype.element_ty), kept)


def prroi_pool(
    input: Tensor, boxes: Tensor, ph: int, pw: int, scale: float, border: bool, aligned: bool, limit: bool
) -> Tensor:
    n, channels, height, width = input.shape
    last = input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous()
    out = torch.empty(
        (len(boxes), channels, ph, pw),
        dtype=input.dtype,
        device=input.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )
    if out.numel():
        tables = _tables(boxes, (n, height, width), (ph, pw), input.dtype, scale, border, aligned, limit)
        block = _block(channels, tables.wy.shape[-1] * tables.wx.shape[-1], BINS_PER_PROGRAM)
        _pool[len(boxes), triton.cdiv(channels, block)](
            input, *input.stride(), *tables, out, *out.stride(), channels, height, width,
            PH=ph, PW=pw, ROWS=tables.wy.shape[-1], COLS=tables.wx.shape[-1], C=block, num_warps=WARPS,
        )  # fmt: skip
    return out


def _block(channels: int, values: int, budget: int) -> int:
    """Channels per program: so many that what it sums, some values per channel, stays in registers."""
    return int(min(triton.next_power_of_2(channels), max(budget // values, 1), 64))


# --- the gradient of the map ----------------------------------------------------------------------------------------


@triton.jit
def _list_boxes(p_spans, p_list, p_count, boxes, height, width):  # type: ignore[no-untyped-def]
    """The boxes that touch a tile, in the order of their rows."""
    across, down = tl.cdiv(width, TILE), tl.cdiv(height, TILE)
    tile = tl.program_id(0)
    x, y, image = tile % across * TILE, tile // across % down * TILE, tile // (across * down)
    p_list += tile.to(tl.int64) * boxes
    at, found = 0, 0
    while at < boxes:
        rows = at + tl.arange(0, SCAN)
        p, known = p_spans + rows.to(tl.int64) * SPAN, rows < boxes
        touch = tl.load(p + IMAGE, known, -1) == image
        touch &= (tl.load(p + FIRST_Y, known, 0) < y + TILE) & (tl.load(p + END_Y, known, 0) > y)
        touch &= (tl.load(p + FIRST_X, known, 0) < x + TILE) & (tl.load(p + END_X, known, 0) > x)
        tl.store(p_list + found + tl.cumsum(touch.to(tl.int32), 0) - 1, rows, touch)
        found += tl.sum(touch.to(tl.int32), 0)
        at += SCAN
    tl.store(p_count + tile, found)


@triton.jit
def _gather(  # type: ignore[no-untyped-def]
    p_grad, g_k, g_c, g_h, g_w, p_wy, p_wx, p_spans, p_list, p_count, p_out, o_n, o_c, o_h, o_w,
    boxes, channels, height, width,
    PH: tl.constexpr, PW: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """One tile, C channels: the boxes of its list one after the other, and a single write."""
    across, down = tl.cdiv(width, TILE), tl.cdiv(height, TILE)
    tile = tl.program_id(0)
    c = tl.program_id(1) * C + tl.arange(0, C)
    x = tile % across * TILE + tl.arange(0, TILE)
    y = tile // across % down * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE, C), p_wy.dtype.element_ty)
    at, count = 0, tl.load(p_count + tile)
    while at < count:
        row = tl.load(p_list + tile.to(tl.int64) * boxes + at).to(tl.int64)
        p_span = p_spans + row * SPAN
        in_y = (y >= tl.load(p_span + FIRST_Y)) & (y < tl.load(p_span + END_Y))
        in_x = (x >= tl.load(p_span + FIRST_X)) & (x < tl.load(p_span + END_X))
        p_level, p_column = p_wy + (row * height + y) * ROWS, p_wx + (row * width + x) * COLS
        p_bin = p_grad + row * g_k + c.to(tl.int64) * g_c
        for p in range(PH):
            line = tl.zeros((TILE, C), p_wy.dtype.element_ty)
            for q in range(PW):
                grad = tl.load(p_bin + p * g_h + q * g_w, c < channels, 0.0).to(line.dtype)
                line += tl.load(p_column + q, in_x, 0.0)[:, None] * grad[None, :]
            total += tl.load(p_level + p, in_y, 0.0)[:, None, None] * line[None, :, :]
        at += 1
    p_pixel = p_out + (tile // (across * down)).to(tl.int64) * o_n + y[:, None, None].to(tl.int64) * o_h
    p_pixel += x[None, :, None].to(tl.int64) * o_w
    kept = (y < height)[:, None, None] & (x < width)[None, :, None] & (c < channels)[None, None, :]
    tl.store(p_pixel + c[None, None, :].to(tl.int64) * o_c, total.to(p_out.dtype.element_ty), kept)


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
    k, channels, ph, pw = grad.shape
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty((n, channels, h, w), dtype=grad.dtype, device=grad.device, memory_format=memory_format)
    if out.numel():
        tables = _tables(boxes, (n, h, w), (ph, pw), grad.dtype, scale, border, aligned, limit)
        tiles = n * triton.cdiv(h, TILE.value) * triton.cdiv(w, TILE.value)
        rows = torch.empty((tiles, k), dtype=torch.int32, device=grad.device)
        count = torch.empty(tiles, dtype=torch.int32, device=grad.device)
        _list_boxes[(tiles,)](tables.spans, rows, count, k, h, w, num_warps=WARPS)
        block = _block(channels, TILE.value**2, PIXELS_PER_PROGRAM)
        _gather[tiles, triton.cdiv(channels, block)](
            grad, *grad.stride(), *tables, rows, count, out, *out.stride(), k, channels, h, w,
            PH=ph, PW=pw, ROWS=tables.wy.shape[-1], COLS=tables.wx.shape[-1], C=block, num_warps=WARPS,
        )  # fmt: skip
    return out


# --- the gradient of the boxes --------------------------------------------------------------------------------------


@triton.jit
def _edge_gradients(  # type: ignore[no-untyped-def]
    p_input, s_n, s_c, s_h, s_w, p_grad, g_k, g_c, g_h, g_w, p_wy, p_wx, p_spans, p_out,
    boxes, channels, height, width,
    PH: tl.constexpr, PW: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """One box, C channels: the gradients of the first and of the last edges of its rows, then those of its columns."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = part * C + tl.arange(0, C)
    p, q = tl.arange(0, ROWS), tl.arange(0, COLS)
    image = tl.load(p_spans + row * SPAN + IMAGE)
    first_y, end_y = tl.load(p_spans + row * SPAN + FIRST_Y), tl.load(p_spans + row * SPAN + END_Y)
    first_x, end_x = tl.load(p_spans + row * SPAN + FIRST_X), tl.load(p_spans + row * SPAN + END_X)
    p_bin = p_grad + row * g_k + p[:, None, None].to(tl.int64) * g_h + q[None, :, None].to(tl.int64) * g_w
    known = (p < PH)[:, None, None] & (q < PW)[None, :, None] & (c < channels)[None, None, :]
    grad = tl.load(p_bin + c[None, None, :].to(tl.int64) * g_c, known, 0.0).to(p_wy.dtype.element_ty)
    p_map = p_input + image.to(tl.int64) * s_n + first_y.to(tl.int64) * s_h + c[None, :].to(tl.int64) * s_c
    part_y, part_x = boxes.to(tl.int64) * height * ROWS, boxes.to(tl.int64) * width * COLS
    p_wy += (row * height + first_y) * ROWS + p
    p_wx += row * width * COLS + q[None, :]
    by_top, by_bottom = tl.zeros((ROWS,), grad.dtype), tl.zeros((ROWS,), grad.dtype)
    by_left, by_right = tl.zeros((COLS,), grad.dtype), tl.zeros((COLS,), grad.dtype)
    at = first_x
    while at < end_x:
        x = at + tl.arange(0, COLUMNS)[:, None]
        p_column, in_x = p_wx + x * COLS, (x < end_x) & (q < PW)[None, :]
        wx, left = tl.load(p_column, in_x, 0.0), tl.load(p_column + part_x, in_x, 0.0)
        right = tl.load(p_column + 2 * part_x, in_x, 0.0)
        p_strip, p_level = p_map + x.to(tl.int64) * s_w, p_wy
        inside = (x < end_x) & (c < channels)[None, :]
        y = first_y
        while y < end_y:
            strip = tl.load(p_strip, inside, 0.0).to(grad.dtype)[:, None, :]
            up = tl.sum(grad * tl.load(p_level, p < PH, 0.0)[:, None, None], 0)
            by_left += tl.sum(up * tl.sum(strip * left[:, :, None], 0), 1)
            by_right += tl.sum(up * tl.sum(strip * right[:, :, None], 0), 1)
            along = tl.sum(tl.sum(grad * tl.sum(strip * wx[:, :, None], 0)[None, :, :], 2), 1)
            by_top += along * tl.load(p_level + part_y, p < PH, 0.0)
            by_bottom += along * tl.load(p_level + 2 * part_y, p < PH, 0.0)
            p_strip += s_h
            p_level += ROWS
            y += 1
        at += COLUMNS
    if image < 0:
        by_top += float("nan")
        by_left += float("nan")
    p_out += (row * tl.num_programs(1) + part) * 2 * (PH + PW)
    tl.store(p_out + p, by_top, p < PH)
    tl.store(p_out + PH + p, by_bottom, p < PH)
    tl.store(p_out + 2 * PH + q, by_left, q < PW)
    tl.store(p_out + 2 * PH + PW + q, by_right, q < PW)


def prroi_pool_grad_boxes(
    grad: Tensor, input: Tensor, boxes: Tensor, scale: float, border: bool, aligned: bool, limit: bool
) -> Tensor:
    n, channels, height, width = input.shape
    k, _, ph, pw = grad.shape
    tables = _tables(boxes, (n, height, width), (ph, pw), input.dtype, scale, border, aligned, limit, slopes=True)
    block = _block(channels, tables.wy.shape[-1] * tables.wx.shape[-1], BINS_PER_PROGRAM)
    parts = tables.wy.new_empty((k, triton.cdiv(channels, block), 2 * (ph + pw)))
    if parts.numel():
        _edge_gradients[parts.shape[:2]](
            input, *input.stride(), grad, *grad.stride(), *tables, parts, k, channels, height, width,
            PH=ph, PW=pw, ROWS=tables.wy.shape[-1], COLS=tables.wx.shape[-1], C=block, num_warps=WARPS,
        )  # fmt: skip
    top, bottom, left, right = parts.sum(1, dtype=torch.float64).split((ph, ph, pw, pw), 1)
    x1, x2 = _of_ends(left, right, boxes[:, 3] < boxes[:, 1], limit)
    y1, y2 = _of_ends(top, bottom, boxes[:, 4] < boxes[:, 2], limit)
    image = torch.where(x1.isnan(), x1, 0)
    return (torch.stack((image, x1, y1, x2, y2), 1) * scale).to(boxes.dtype)


def _of_ends(by_first: Tensor, by_last: Tensor, inverted: Tensor, limit: bool) -> tuple[Tensor, Tensor]:
    """The gradients of a box's two ends, between which the edges of its bins lie; an inverted box is its first end."""
    bins = by_first.shape[1]
    k = torch.arange(bins, dtype=torch.float64, device=by_first.device) / bins
    second = (by_first * k + by_last * (k + 1 / bins)).sum(1)
    first = (by_first + by_last).sum(1) - second
    return (torch.where(inverted, first + second, first), second.masked_fill(inverted, 0)) if limit else (first, second)
