"""Suppression in Triton: who overlaps whom in tiles of bits, then one program that goes through the boxes in order.

In the kernels `p_` is a pointer and a capital is known when compiling. Boxes come sorted by key, so that a box can only
be removed by one at a smaller place. Nothing waits for the device. The bits take n^2 / 8 bytes.
"""

from __future__ import annotations

import math
import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = tl.constexpr(64)  # boxes of which one word holds who among them overlaps a box
WORDS = tl.constexpr(32)  # words of each box that the sweep reads together
CHUNK = tl.constexpr(1024)  # boxes whose scores Soft-NMS lowers together
NONE = tl.constexpr(0x7FFFFFFF)
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}  # so that the IoU has the bits of the definition


@triton.jit
def _number(bits, LIKE: tl.constexpr):  # type: ignore[no-untyped-def]
    """A double that came as its bits, for Triton passes numbers in float32."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True).to(LIKE)


@triton.jit
def _divide(x, y):  # type: ignore[no-untyped-def]
    return tl.div_rn(x, y) if x.dtype == tl.float32 else x / y


@triton.jit
def _iou(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2):  # type: ignore[no-untyped-def]
    """NaN where a box is not finite, or both are empty."""
    width = tl.maximum(tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1), 0.0)
    inter = width * tl.maximum(tl.minimum(ay2, by2) - tl.maximum(ay1, by1), 0.0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter
    return _divide(inter, union)


@triton.jit
def _box(p_boxes, i, known):  # type: ignore[no-untyped-def]
    p_box = p_boxes + i.to(tl.int64) * 4
    x1, y1 = tl.load(p_box, known, 0.0), tl.load(p_box + 1, known, 0.0)
    return x1, y1, tl.load(p_box + 2, known, 0.0), tl.load(p_box + 3, known, 0.0)


# --- who removed whom -----------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["n", "words", "threshold"])  # another number of boxes compiles nothing
def _overlaps(p_boxes, p_labels, p_words, p_within, n, words, threshold: tl.int64):  # type: ignore[no-untyped-def]
    """Bit i of word (j, tile): box i of that tile comes before box j and removes it, if it is itself kept.

    Of boxes of the same tile also the transposed: bit j of word i.
    """
    tile, row = tl.program_id(0), tl.program_id(1)
    if tile <= row:
        lane = tl.arange(0, TILE)
        i, j = tile * TILE + lane, row * TILE + lane
        ax1, ay1, ax2, ay2 = _box(p_boxes, i[None, :], (i < n)[None, :])
        bx1, by1, bx2, by2 = _box(p_boxes, j[:, None], (j < n)[:, None])
        iou = _iou(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2)
        removes = (iou > _number(threshold, iou.dtype)) & (i[None, :] < j[:, None])
        if p_labels is not None:
            removes &= tl.load(p_labels + i, i < n, 0)[None, :] == tl.load(p_labels + j, j < n, 0)[:, None]
        bit, removed = lane.to(tl.int64), removes.to(tl.int64)
        tl.store(p_words + j.to(tl.int64) * words + tile, tl.sum(removed << bit[None, :], 1), j < n)
        if tile == row:
            tl.store(p_within + i, tl.sum(removed << bit[:, None], 0), i < n)


@triton.jit(do_not_specialize=["n", "words"])
def _sweep(p_words, p_within, p_kept, p_owner, n, words):  # type: ignore[no-untyped-def]
    """Goes through the tiles: which boxes are kept, as bits, and the first kept box that removes each of the others."""
    lane = tl.arange(0, TILE)
    row = 0
    while row < words:
        j = row * TILE + lane
        p_row = p_words + j.to(tl.int64) * words
        # The first tile with boxes that remove box j: of those before this one, whose fate is known.
        first, remover = tl.full((TILE,), NONE, tl.int32), tl.zeros((TILE,), tl.int64)
        start = 0
        while start < row:
            tile = start + tl.arange(0, WORDS)
            kept = tl.load(p_kept + tile, tile < row, 0)
            word = tl.load(p_row[:, None] + tile[None, :], (j < n)[:, None] & (tile < row)[None, :], 0) & kept[None, :]
            here = tl.min(tl.where(word != 0, tile[None, :], NONE), 1)
            remover = tl.where(first == NONE, tl.sum(tl.where(tile[None, :] == here[:, None], word, 0), 1), remover)
            first = tl.minimum(first, here)
            start += WORDS
        # Then of this tile, in which a box that is removed removes none.
        free = tl.sum(((first == NONE) & (j < n)).to(tl.int64) << lane.to(tl.int64))
        place = 0
        while place < tl.minimum(n - row * TILE, TILE):
            removed = tl.load(p_within + row * TILE + place)
            free &= ~tl.where((free >> place) & 1 != 0, removed, 0)
            place += 1
        own = tl.load(p_row + row, j < n, 0) & free
        remover = tl.where(first == NONE, own, remover)
        first = tl.where((first == NONE) & (own != 0), row, first)
        i = tl.min(tl.where((remover[:, None] >> lane.to(tl.int64)[None, :]) & 1 != 0, lane[None, :], TILE), 1)
        tl.store(p_owner + j, tl.where(first == NONE, j, first * TILE + i), j < n)
        tl.store(p_kept + row, free)
        tl.debug_barrier()  # the next tile reads what this one has written
        row += 1


def nms_owner(boxes: Tensor, key: Tensor, labels: Tensor | None, thr: float) -> Tensor:
    order = key.argsort(descending=True, stable=True)
    n, words = len(order), triton.cdiv(len(order), TILE.value)
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32)).index_select(0, order)
    table = torch.empty((n, words), dtype=torch.int64, device=boxes.device)
    within, kept = table.new_empty(n), table.new_empty(words)
    place = torch.empty(n, dtype=torch.int32, device=boxes.device)
    if n:
        labels = labels if labels is None else labels.index_select(0, order)
        threshold = _bits(_below(thr, boxes.dtype))
        _overlaps[words, words](boxes, labels, table, within, n, words, threshold, **OPTIONS)
        _sweep[(1,)](table, within, kept, place, n, words, **OPTIONS)
    return torch.empty_like(order).scatter_(0, order, order.index_select(0, place.long()))


# --- Soft-NMS -------------------------------------------------------------------------------------------------------


@triton.jit
def _rank(score):  # type: ignore[no-untyped-def]
    """An integer that ascends with the score, NaN above all. It is its own inverse but for NaN and -0."""
    T: tl.constexpr = tl.int64 if score.dtype == tl.float64 else tl.int32
    LAST: tl.constexpr = 63 if score.dtype == tl.float64 else 31
    bits = (score + 0.0).to(T, bitcast=True)
    bits ^= (bits >> LAST) & ~((tl.full((), -1, T)) << LAST)
    return tl.where(score == score, bits, ~((tl.full((), -1, T)) << LAST))


@triton.jit
def _score(rank, T: tl.constexpr):  # type: ignore[no-untyped-def]
    LAST: tl.constexpr = 63 if T == tl.float64 else 31
    return (rank ^ ((rank >> LAST) & ~((tl.full((), -1, rank.dtype)) << LAST))).to(T, bitcast=True)


@triton.jit(do_not_specialize=["n", "threshold", "sigma", "min_score"])
def _soften(  # type: ignore[no-untyped-def]
    p_boxes, p_labels, p_scores, p_ranks, p_final, n,
    threshold: tl.int64, sigma: tl.int64, min_score: tl.int64, GAUSSIAN: tl.constexpr,
):  # fmt: skip
    """One program: takes the best box, lowers the others and looks for the next best in the same pass."""
    T: tl.constexpr = p_scores.dtype.element_ty
    TAKEN: tl.constexpr = -(2**63) if T == tl.float64 else -(2**31)  # no score has this rank
    lane = tl.arange(0, CHUNK)
    threshold, sigma, least = _number(threshold, T), _number(sigma, T), _number(min_score, T)
    taken = tl.full((), -1, tl.int32)
    x1, y1, x2, y2 = _box(p_boxes, tl.full((), 0, tl.int32), taken == 0)
    label = tl.full((), 0, tl.int64)
    going = n > 0
    while going:
        best, where = tl.full((CHUNK,), TAKEN, p_ranks.dtype.element_ty), tl.full((CHUNK,), NONE, tl.int32)
        start = 0
        while start < n:
            i = start + lane
            known = i < n
            if taken < 0:
                rank = _rank(tl.load(p_scores + i, known, 0.0))
            else:
                rank = tl.load(p_ranks + i, known, TAKEN)
                bx1, by1, bx2, by2 = _box(p_boxes, i, known)
                iou = _iou(x1, y1, x2, y2, bx1, by1, bx2, by2)
                lowered = (iou > threshold) & (rank != TAKEN)
                if p_labels is not None:
                    lowered &= tl.load(p_labels + i, known, 0) == label
                factor = tl.exp(_divide(-(iou * iou), sigma).to(tl.float64)).to(T) if GAUSSIAN else 1 - iou
                rank = tl.where(lowered, _rank(_score(rank, T) * factor), rank)
                rank = tl.where(i == taken, TAKEN, rank)
            tl.store(p_ranks + i, rank, known)
            better = known & (rank > best)
            best, where = tl.where(better, rank, best), tl.where(better, i, where)
            start += CHUNK
        top = tl.max(best)
        taken = tl.min(tl.where(best == top, where, NONE))
        score = _score(top, T)
        going = (top != TAKEN) & ((score < least) == 0)
        if going:
            tl.store(p_final + taken, score)
            x1, y1, x2, y2 = _box(p_boxes, taken, taken >= 0)
            if p_labels is not None:
                label = tl.load(p_labels + taken).to(tl.int64)


def soft_nms_order(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, thr: float, sigma: float, min_score: float, method: int
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(boxes.dtype, scores.dtype), torch.float32)
    boxes, start = boxes.to(dtype).contiguous(), scores.to(dtype).contiguous()
    labels = labels if labels is None else labels.contiguous()
    final = torch.full_like(start, -math.inf)
    ranks = torch.empty_like(start, dtype=torch.int64 if dtype == torch.float64 else torch.int32)
    if len(scores):
        numbers = _below(0.0 if method else thr, dtype), sigma, min_score
        _soften[(1,)](
            boxes, labels, start, ranks, final, len(scores), *map(_bits, numbers), GAUSSIAN=bool(method), **OPTIONS
        )
    order = final.argsort(descending=True, stable=True)
    return order, final.index_select(0, order).to(scores.dtype)


# --- numbers --------------------------------------------------------------------------------------------------------


def _below(x: float, dtype: torch.dtype) -> float:
    """The highest number of the dtype that is not above x: what is above the one is above the other."""
    if dtype == torch.float64 or struct.unpack("f", struct.pack("f", x))[0] <= x:
        return x
    return float(torch.nextafter(torch.tensor(x, dtype=dtype), torch.tensor(-math.inf, dtype=dtype)))


def _bits(x: float) -> int:
    return int(struct.unpack("q", struct.pack("d", x))[0])
