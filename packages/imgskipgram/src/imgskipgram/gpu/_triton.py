"""The operators in Triton; every update is an atomic addition, so that none is lost, whoever else has the row.

In the kernels `p_` is a pointer and a capital is known when compiling.
"""

# mypy: disable-error-code="assignment,misc,untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from . import _reference
from ._triton_draws import OPTIONS, draws, on, pictures

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["draws", "image_", "pairs_", "pictures", "sgns_"]

NONE = tl.constexpr(_reference.NONE)
MARGIN = tl.constexpr(_reference.MARGIN)
TEMPERATURE = tl.constexpr(_reference.TEMPERATURE)

RUN = 32  # centres of a program, one after the other
PAIRS = 64  # words of a program, few of which have an image: those of one word should not all start from the same row
WARP = 1024  # numbers of a tile for one warp: 32 registers of a thread
MOST = 32 * WARP
REGISTERS = 128  # of a thread, where a program is one warp: 16 of them on a multiprocessor


@triton.jit
def _loss(f, own):  # type: ignore[no-untyped-def]
    """The logistic loss of f, whose label is 1 for the own output, and the label less the probability."""
    e = tl.exp(-tl.abs(f))
    probability = tl.where(f < 0, e, 1.0) / (1.0 + e)
    loss = tl.maximum(tl.where(own, -f, f), 0.0) + tl.log(1.0 + e)
    return loss, tl.where(own, 1.0, 0.0) - probability


@triton.jit
def _row(p_matrix, p_words, rank, inside, S: tl.constexpr, D: tl.constexpr):  # type: ignore[no-untyped-def]
    """The word of a rank, the places of its row, and what is there."""
    word = tl.load(p_words + rank, mask=inside, other=0).to(tl.int64)
    column = tl.arange(0, D)
    p_row = p_matrix + word * S + column
    return word, p_row, tl.load(p_row, mask=column < tl.where(inside, S, 0), other=0.0, cache_modifier=".cg")


@triton.jit(do_not_specialize=["first", "last"])
def _pairs_kernel(  # type: ignore[no-untyped-def]
    p_v,
    p_u,
    p_words,
    p_left,
    p_right,
    p_negative,
    p_count,
    p_alpha,
    p_loss,
    first: tl.int64,
    last: tl.int64,
    NEGATIVE: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
    RUN: tl.constexpr,
):
    """A run of centres. The output rows of a centre stay in registers for all its contexts, and what they gain goes to
    memory at the end; an input row is read while the one before it is used. Rows come from L2, where all
    multiprocessors add to them. Barriers: what one thread of a program adds, another may read."""
    slot = tl.arange(0, K)
    own = slot == 0
    columns = tl.arange(0, D) < S
    loss = tl.zeros((), tl.float64)
    i = first + tl.program_id(0).to(tl.int64) * RUN
    end = tl.minimum(i + RUN, last)
    centre = tl.load(p_words + i).to(tl.int64)
    while (i < end) & (centre >= 0):
        left = tl.load(p_left + i).to(tl.int64)
        right = tl.load(p_right + i).to(tl.int64)
        j = left + (left == i).to(tl.int64)
        if j < right:
            alpha = tl.load(p_alpha + i)
            negative = (slot > 0) & (slot <= NEGATIVE)
            other = tl.load(p_negative + i * NEGATIVE + slot - 1, mask=negative, other=0).to(tl.int64)
            weight = tl.load(p_count + i * NEGATIVE + slot - 1, mask=negative, other=0).to(tl.float32)
            weight = tl.where(own, 1.0, weight)
            output = tl.where(own, centre, other)
            p_output = p_u + output[:, None] * S + tl.arange(0, D)[None, :]
            used = (weight > 0)[:, None] & columns[None, :]
            u = tl.load(p_output, mask=used, other=0.0, cache_modifier=".cg")
            gain = tl.zeros((K, D), tl.float32)
            losses = tl.zeros((K,), tl.float32)
            word, p_input, v = _row(p_v, p_words, j, j < right, S, D)
            while j < right:
                j += 1
                j += (j == i).to(tl.int64)
                next_word, p_next, next_v = _row(p_v, p_words, j, j < right, S, D)
                one, error = _loss(tl.sum(u * v[None, :], 1), own)
                losses += weight * one
                g = alpha * weight * error
                dv = tl.sum(g[:, None] * u, 0)
                du = g[:, None] * v[None, :]
                u += du
                gain += du
                tl.atomic_add(p_input, dv, mask=columns, sem="relaxed")
                tl.debug_barrier()
                v = tl.where(next_word == word, v + dv, next_v)
                word = next_word
                p_input = p_next
            tl.atomic_add(p_output, gain, mask=used, sem="relaxed")
            tl.debug_barrier()
            loss += tl.sum(losses.to(tl.float64))
        i += 1
        centre = tl.load(p_words + i, mask=i < end, other=NONE).to(tl.int64)
    tl.store(p_loss + tl.program_id(0), loss)


@triton.jit
def _inverse(square):  # type: ignore[no-untyped-def]
    length = tl.sqrt_rn(tl.where(square > 0, square, 1.0))
    return tl.where(square > 0, tl.div_rn(tl.full(length.shape, 1.0, tl.float32), length), 0.0)


@triton.jit(do_not_specialize=["n"])
def _image_kernel(  # type: ignore[no-untyped-def]
    p_v,
    p_words,
    p_positive,
    p_negative,
    p_z,
    p_loss,
    n: tl.int64,
    rate: tl.float32,
    OBJECTIVE: tl.constexpr,
    NEGATIVE: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Some words, each with its images. An image that repeats is here twice: it is not changed, so both count."""
    slot = tl.arange(0, K)
    own = slot == 0
    column = tl.arange(0, D)
    total = tl.zeros((), tl.float64)
    b = tl.program_id(0).to(tl.int64) * PAIRS
    end = tl.minimum(b + PAIRS, n)
    while b < end:
        positive = tl.load(p_positive + b).to(tl.int64)
        if positive >= 0:
            negative = (slot > 0) & (slot <= NEGATIVE)
            other = tl.load(p_negative + b * NEGATIVE + slot - 1, mask=negative, other=NONE).to(tl.int64)
            image = tl.where(own, positive, other)
            used = image >= 0
            p_row = p_v + tl.load(p_words + b).to(tl.int64) * S + column
            v = tl.load(p_row, mask=column < S, other=0.0, cache_modifier=".cg")
            p_image = p_z + image[:, None] * S + column[None, :]
            z = tl.load(p_image, mask=used[:, None] & (column < S)[None, :], other=0.0).to(tl.float32)
            f = tl.sum(z * v[None, :], 1)
            if OBJECTIVE == "nce":
                loss, a = _loss(f, own)
                loss = tl.where(used, loss, 0.0)
                step = tl.sum(tl.where(used, a, 0.0)[:, None] * z, 0)
            else:
                length = _inverse(tl.sum(v * v))
                lengths = _inverse(tl.sum(z * z, 1))
                cosine = f * length * lengths
                first = tl.sum(tl.where(own, cosine, 0.0))
                if OBJECTIVE == "margin":
                    loss = tl.where(used & (slot > 0), tl.maximum(MARGIN - first + cosine, 0.0), 0.0)
                    pushed = tl.where(loss > 0, 1.0, 0.0)
                    g = tl.where(own, tl.sum(pushed), -pushed)
                else:
                    most = tl.max(tl.where(used, cosine, first))
                    e = tl.where(used, tl.exp((cosine - most) / TEMPERATURE), 0.0)
                    whole = tl.sum(e)
                    g = (tl.where(own, 1.0, 0.0) - e / whole) / TEMPERATURE
                    loss = tl.where(own, tl.log(whole) + (most - first) / TEMPERATURE, 0.0)
                step = tl.sum((g * length * lengths)[:, None] * z, 0) - tl.sum(g * cosine) * length * length * v
            tl.atomic_add(p_row, rate * step, mask=column < S, sem="relaxed")
            tl.debug_barrier()
            total += tl.sum(loss.to(tl.float64))
        b += 1
    tl.store(p_loss + tl.program_id(0), total)


# --- launchers ------------------------------------------------------------------------------------------------------


def tile(rows: int, columns: int, name: str) -> tuple[int, int, int]:
    """Of a tile of so many outputs its padded rows and columns, and the warps that hold it."""
    k, d = triton.next_power_of_2(rows), max(triton.next_power_of_2(columns), 32)
    if k * d > MOST:
        raise ValueError(
            f"{name} must be at most {MOST // d - 1} for rows of {columns} numbers on cuda, got {rows - 1}"
        )
    return k, d, max(1, k * d // WARP)


def pairs_(
    v: Tensor,
    u: Tensor,
    words: Tensor,
    left: Tensor,
    right: Tensor,
    negatives: Tensor,
    counts: Tensor,
    alpha: Tensor,
    first: int,
    last: int,
) -> Tensor:
    negative, columns = negatives.shape[1], v.shape[1]
    k, d, warps = tile(1 + negative, columns, "negative")
    programs = triton.cdiv(max(last - first, 0), RUN)
    losses = torch.empty(programs, dtype=torch.float64, device=v.device)
    if programs:
        with on(v):
            _pairs_kernel[(programs,)](
                v,
                u,
                words,
                left,
                right,
                negatives,
                counts,
                alpha,
                losses,
                first,
                last,
                NEGATIVE=negative,
                K=k,
                S=columns,
                D=d,
                RUN=RUN,
                num_warps=warps,
                maxnreg=REGISTERS if warps == 1 else None,
                **OPTIONS,
            )
    return losses.sum()


def sgns_(
    v: Tensor,
    u: Tensor,
    ids: Tensor,
    offsets: Tensor,
    keep: Tensor,
    threshold: Tensor,
    alias: Tensor,
    window: int,
    negative: int,
    alpha: float,
    seed: int,
    epoch: int,
    block: int,
) -> Tensor:
    drawn = draws(ids, offsets, keep, threshold, alias, window, negative, seed, epoch, block)[1:]
    rates = torch.full(ids.shape, alpha, dtype=torch.float32, device=v.device)
    return pairs_(v, u, *drawn, rates, 0, ids.shape[0])


def image_(
    v: Tensor, words: Tensor, positive: Tensor, negative: Tensor, z: Tensor, objective: str, weight: float, alpha: float
) -> Tensor:
    n, columns = words.shape[0], v.shape[1]
    k, d, warps = tile(1 + negative.shape[1], columns, "image_negative")
    losses = torch.empty(triton.cdiv(n, PAIRS), dtype=torch.float64, device=v.device)
    if n:
        with on(v):
            _image_kernel[(triton.cdiv(n, PAIRS),)](
                v,
                words,
                positive,
                negative,
                z,
                losses,
                n,
                weight * alpha,
                OBJECTIVE=objective,
                NEGATIVE=negative.shape[1],
                K=k,
                S=columns,
                D=d,
                PAIRS=PAIRS,
                num_warps=warps,
                **OPTIONS,
            )
    return losses.sum()
