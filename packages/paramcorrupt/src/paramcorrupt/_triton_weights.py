"""What is written to weights, in Triton: changes of some or of all, their undoing, ascents with projections, bits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _reference
from ._triton_base import (
    BLOCK,
    OPTIONS,
    TYPES,
    bits,
    key_of,
    key_type,
    narrowed,
    number,
    on,
    own,
    plan,
    pointer,
    powered,
    wide,
)
from ._triton_select import shares

if TYPE_CHECKING:
    from collections.abc import Sequence

INTEGERS = {2: tl.int16, 4: tl.int32, 8: tl.int64}


# --- some weights ---------------------------------------------------------------------------------------------------


@triton.jit
def _tensor_of(offsets, i, mask, tensors, STEPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The tensors that the selected elements i are of: how many end at i or before."""
    low = tl.zeros_like(i)
    high = low + tensors
    for _ in tl.static_range(STEPS):
        middle = (low + high) // 2
        ended = tl.load(offsets + 1 + middle, mask=mask & (middle < tensors), other=9223372036854775807) <= i
        low = tl.where(ended & (low < high), middle + 1, low)
        high = tl.where(ended, high, middle)
    return low


@triton.jit(do_not_specialize=range(8))
def _sparse_kernel(  # type: ignore[no-untyped-def]
    table,
    fields: tl.int64,
    tensors: tl.int64,
    offsets,
    index,
    delta,
    journal,
    count: tl.int64,
    W: tl.constexpr,
    BITS: tl.constexpr,
    JOURNAL: tl.constexpr,
    STEPS: tl.constexpr,
    RESTORE: tl.constexpr,
    ONLY: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    tensor = _tensor_of(offsets, i, mask, tensors, STEPS)
    if not ONLY:  # a table behind the pointers tells the types apart
        mask = mask & (tl.load(table + fields + tensor, mask=mask, other=-1) == W.primitive_bitwidth + (W == tl.uint16))
    p = tl.load(table + tensor, mask=mask, other=0).to(tl.pointer_type(BITS))
    p += tl.load(index + i, mask=mask, other=0)
    if RESTORE:
        tl.store(p, tl.load(journal + i, mask=mask, other=0).to(BITS), mask=mask)
    else:
        old = tl.load(p, mask=mask, other=0)
        tl.store(journal + i, old.to(JOURNAL), mask=mask)
        FLOAT: tl.constexpr = tl.float64 if W == tl.float64 else tl.float32
        w = wide(old.to(W, bitcast=True), FLOAT)
        new = narrowed(w + tl.load(delta + i, mask=mask, other=0.0).to(FLOAT), W)
        tl.store(p, new.to(BITS, bitcast=True), mask=mask)


def _sparse(w: Sequence[Tensor], offsets: Tensor, index: Tensor, delta: Tensor, journal: Tensor, restore: bool) -> None:
    count, dtypes = index.numel(), sorted({x.dtype for x in w}, key=str)
    if not count:
        return
    with on(index.device):
        kinds = [8 * x.element_size() + (x.dtype == torch.bfloat16) for x in w]
        table = torch.tensor([*map(Tensor.data_ptr, w), *kinds], device=index.device)
        for dtype in dtypes:
            _sparse_kernel[(triton.cdiv(count, BLOCK.value),)](
                table,
                len(w),
                len(w),
                offsets,
                index,
                delta,
                journal,
                count,
                W=TYPES[dtype],
                BITS=INTEGERS[dtype.itemsize],
                JOURNAL=INTEGERS[journal.element_size()],
                STEPS=len(w).bit_length(),
                RESTORE=restore,
                ONLY=len(dtypes) == 1,
                **OPTIONS,
            )


def apply_sparse_(w: Sequence[Tensor], offsets: Tensor, index: Tensor, delta: Tensor) -> Tensor:
    """w[index] += delta; the bits that were there."""
    journal = torch.empty(index.shape, dtype=_reference.journal_dtype(w), device=index.device)
    _sparse(w, offsets, index, delta, journal, restore=False)
    return journal


def restore_sparse_(w: Sequence[Tensor], offsets: Tensor, index: Tensor, journal: Tensor) -> None:
    """w[index] = the bits in the journal."""
    _sparse(w, offsets, index, journal, journal, restore=True)


# --- all weights ----------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=range(8))
def _dense_kernel(  # type: ignore[no-untyped-def]
    table,
    fields: tl.int64,
    tensors: tl.int64,
    where: tl.int64,
    changed,
    sizes,
    scale: tl.int64,
    power: tl.int64,
    W: tl.constexpr,
    B: tl.constexpr,
    G: tl.constexpr,
    POWER: tl.constexpr,
):
    program, index, o_start, n = own(table, fields, tensors, where)
    p_w = pointer(table, 0, tensors, index, o_start, W)
    p_base = pointer(table, 1, tensors, index, o_start, B)
    p_g = pointer(table, 2, tensors, index, o_start, G)
    scale = number(scale)
    power = number(power)
    FLOAT: tl.constexpr = tl.float64 if W == tl.float64 else tl.float32
    moves = tl.zeros((BLOCK,), tl.int32)
    size = tl.zeros((BLOCK,), tl.float64)
    o_block = tl.full((), 0, tl.int32)
    while o_block < n:
        o = o_block + tl.arange(0, BLOCK)
        mask = o < n
        old = wide(tl.load(p_base + o, mask=mask, other=0), FLOAT)
        a = scale * powered(wide(tl.load(p_g + o, mask=mask, other=0), tl.float64), power, POWER)
        stored = narrowed(old + a.to(FLOAT), W)
        tl.store(p_w + o, stored, mask=mask)
        new = wide(stored, FLOAT)
        moves += (mask & (new != old)).to(tl.int32)
        moved = tl.where(mask, tl.abs(new.to(tl.float64) - old.to(tl.float64)), 0.0)
        if POWER == 0:
            size = tl.maximum(size, moved)
        elif POWER == 1:
            size += moved * moved
        else:
            p = 1 + 1 / power
            size += tl.where(moved == 0, 0.0, tl.exp(p * tl.log(tl.where(moved == 0, 1.0, moved))))
        o_block += BLOCK
    tl.store(changed + program, tl.sum(moves).to(tl.float64))
    tl.store(sizes + program, tl.max(size) if POWER == 0 else tl.sum(size))


def _known(power: float) -> int:
    """The power where kernels have a way of their own for it, else -1."""
    return int(power) if power in (0, 1) else -1


def apply_dense_(
    w: Sequence[Tensor], base: Sequence[Tensor], g: Sequence[Tensor], scale: float, power: float
) -> Tensor:
    """w = base + scale sgn(g) |g|^power; how many elements are not as in `base`, and the p-norm of what was added,
    where power = 1 / (p - 1)."""
    if not w:
        return _reference.apply_dense_(w, base, g, scale, power)
    with on(w[0].device):
        made = plan(w, base, g)
        changed, sizes = torch.zeros(2, max(made.programs, 1), dtype=torch.float64, device=w[0].device)
        for launch in made.launches:
            _dense_kernel[(launch.programs,)](
                made.table,
                made.fields,
                made.tensors,
                launch.where,
                changed,
                sizes,
                bits(scale),
                bits(power),
                *launch.types,
                POWER=_known(power),
                **OPTIONS,
            )
        size = sizes.amax() if power == 0 else sizes.sum() ** (1 / (1 + 1 / power))
        return torch.stack([changed.sum(), size])


# --- ascents --------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=range(6))
def _ascend_kernel(  # type: ignore[no-untyped-def]
    table,
    fields: tl.int64,
    tensors: tl.int64,
    where: tl.int64,
    step: tl.int64,
    power: tl.int64,
    A: tl.constexpr,
    G: tl.constexpr,
    POWER: tl.constexpr,
):
    _, index, o_start, n = own(table, fields, tensors, where)
    p_a = pointer(table, 0, tensors, index, o_start, A)
    p_g = pointer(table, 1, tensors, index, o_start, G)
    step = number(step)
    power = number(power)
    o_block = tl.full((), 0, tl.int32)
    while o_block < n:
        o = o_block + tl.arange(0, BLOCK)
        mask = o < n
        a = wide(tl.load(p_a + o, mask=mask, other=0), tl.float64)
        a += step * powered(wide(tl.load(p_g + o, mask=mask, other=0), tl.float64), power, POWER)
        tl.store(p_a + o, narrowed(a, A), mask=mask)
        o_block += BLOCK


@triton.jit(do_not_specialize=range(9))
def _project_kernel(  # type: ignore[no-untyped-def]
    table,
    fields: tl.int64,
    tensors: tl.int64,
    where: tl.int64,
    threshold,
    taken,
    shrink: tl.int64,
    clip: tl.int64,
    scale: tl.int64,
    A: tl.constexpr,
    K: tl.constexpr,
):
    program, index, o_start, n = own(table, fields, tensors, where)
    p = pointer(table, 0, tensors, index, o_start, A)
    limit = tl.load(threshold)
    ties = tl.load(taken + program)
    shrink = number(shrink)
    clip = number(clip)
    scale = number(scale)
    o_block = tl.full((), 0, tl.int32)
    while o_block < n:
        o = o_block + tl.arange(0, BLOCK)
        stored = tl.load(p + o, mask=o < n, other=0)
        key = key_of(stored, K).to(tl.int64)
        same = ((o < n) & (key == limit)).to(tl.int64)
        kept = (key > limit) | ((same == 1) & (tl.cumsum(same) <= ties))
        a = wide(stored, tl.float64)
        size = tl.minimum(tl.maximum(tl.abs(a) - shrink, 0.0), clip) * scale
        signs = tl.where(a > 0, 1.0, tl.where(a < 0, -1.0, 0.0))
        tl.store(p + o, narrowed(tl.where(kept, signs * size, 0.0), A), mask=o < n)
        ties -= tl.sum(same)
        o_block += BLOCK


def ascend_project_(
    a: Sequence[Tensor],
    g: Sequence[Tensor],
    step: float,
    power: float,
    threshold: Tensor,
    shrink: float,
    clip: float,
    scale: float,
) -> None:
    """a += step sgn(g) |g|^power; then zero but for what `threshold`, of `select`, keeps; |a| less `shrink`, at most
    `clip`, times `scale`."""
    if not a:
        return
    with on(a[0].device):
        if step:
            made = plan(a, g)
            for launch in made.launches:
                place = made.table, made.fields, made.tensors, launch.where
                _ascend_kernel[(launch.programs,)](
                    *place, bits(step), bits(power), *launch.types, POWER=_known(power), **OPTIONS
                )
        made = plan(a)
        _, taken = shares(made, a, threshold)
        numbers = bits(shrink), bits(min(clip, math.inf)), bits(scale)
        for launch in made.launches:
            place = made.table, made.fields, made.tensors, launch.where
            _project_kernel[(launch.programs,)](
                *place, threshold, taken, *numbers, *launch.types, K=key_type(a), **OPTIONS
            )


# --- bits -----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=range(4))
def _xor_kernel(start, index, mask_of, count: tl.int64):  # type: ignore[no-untyped-def]
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    place = start.to(tl.int64) + tl.load(index + i, mask=mask, other=0)
    flips = tl.load(mask_of + i, mask=mask, other=0).to(tl.int32) << ((place & 3) * 8).to(tl.int32)
    tl.atomic_xor((place & -4).to(tl.pointer_type(tl.int32)), flips, mask=mask)


def xor_bits_(bytes: Tensor, byte_index: Tensor, mask: Tensor) -> None:
    """bytes[byte_index] ^= mask: a byte may be named more than once. Whole words of 4 bytes are written."""
    count = byte_index.numel()
    if count:
        with on(bytes.device):
            _xor_kernel[(triton.cdiv(count, BLOCK.value),)](bytes.data_ptr(), byte_index, mask, count, num_warps=8)
