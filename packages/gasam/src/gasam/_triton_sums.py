"""The sums of a list in Triton, and the strengths that follow from them: each in one launch, added in a fixed order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _reference
from ._triton_base import (
    BLOCK,
    CHUNK,
    COLUMNS,
    FIRST,
    INDEX,
    KIND,
    OPTIONS,
    PIECES,
    ROWS,
    TILE_COLUMNS,
    TILE_ROWS,
    UNIT,
    address,
    bits,
    last_of,
    number,
    on,
    own,
    plan,
    read,
    weight,
    wide,
    without_mask,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

TINY = tl.constexpr(_reference.TINY)
DECAY = tl.constexpr(_reference.DECAY)
MANY = tl.constexpr(1024)  # units in a block of `strengths`


# --- sums -----------------------------------------------------------------------------------------------------------


@triton.jit
def _add_square(u, low, high):  # type: ignore[no-untyped-def]
    """Sums of u^2 in float32: of small numbers times 2^116 and of large ones times 2^-132, so that the 8 squares of a
    CHUNK neither overflow nor, of numbers from 2^-121 on, lose digits."""
    if u.dtype == tl.float64:
        low += u * u
    else:
        large = tl.abs(u) >= 8.0
        x = u * tl.where(large, 2.0**-66, 2.0**58)
        x *= x
        low += tl.where(large, 0.0, x)
        high += tl.where(large, x, 0.0)
    return low, high


@triton.jit
def _double(low, high):  # type: ignore[no-untyped-def]
    if low.dtype == tl.float64:
        return low
    return low.to(tl.float64) * 2.0**-116 + high.to(tl.float64) * 2.0**132


@triton.jit
def _weighted(u, p_w, o, mask, kind, eta):  # type: ignore[no-untyped-def]
    if kind != 0:
        u *= weight(wide(read(p_w, o, mask), u.dtype), kind, eta)
    return u


@triton.jit
def _sum_rows(p_g, p_w, p_sums, rows, columns, kind, eta, WEIGHTED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sums of at most TILE_ROWS units, side by side."""
    row = tl.arange(0, TILE_ROWS)
    low = tl.zeros((TILE_ROWS, TILE_COLUMNS), eta.dtype)
    high = tl.zeros((TILE_ROWS, TILE_COLUMNS), eta.dtype)
    column = tl.full((), 0, tl.int64)
    while column < columns:
        o_column = column + tl.arange(0, TILE_COLUMNS)[None, :]
        o = row[:, None] * columns + o_column
        mask = (row[:, None] < rows) & (o_column < columns)
        u = wide(tl.load(p_g + o, mask=mask), eta.dtype)
        if WEIGHTED:
            u = _weighted(u, p_w, o, mask, kind, eta)
        low, high = _add_square(tl.where(mask, u, 0.0), low, high)
        column += TILE_COLUMNS
    tl.store(p_sums + row, tl.sum(_double(low, high), 1), mask=row < rows)


@triton.jit
def _sum_piece(p_g, p_w, n, n_fast, kind, eta, WEIGHTED: tl.constexpr):  # type: ignore[no-untyped-def]
    low = tl.zeros((BLOCK,), eta.dtype)
    high = tl.zeros((BLOCK,), eta.dtype)
    # Loops are `while`: interpreted by Triton 3.6, a `range` that ends at a tensor needs NumPy < 2.4.
    for MASKED in tl.static_range(2):
        o_block = n_fast if MASKED else tl.full((), 0, tl.int32)
        while o_block < (n if MASKED else n_fast):
            o = o_block + tl.arange(0, BLOCK)
            mask = o < n if MASKED else None
            u = wide(read(p_g, o, mask), eta.dtype)
            if WEIGHTED:
                u = _weighted(u, p_w, o, mask, kind, eta)
            low, high = _add_square(tl.where(mask, u, 0.0) if MASKED else u, low, high)
            o_block += BLOCK
    return tl.sum(_double(low, high))


@triton.jit
def _sum_of_pieces(p_parts, pieces):  # type: ignore[no-untyped-def]
    """What other programs wrote, added in the order of their numbers."""
    total = tl.zeros((BLOCK,), tl.float64)
    o_block = tl.full((), 0, tl.int64)
    while o_block < pieces:
        o = o_block + tl.arange(0, BLOCK)
        total += tl.load(p_parts + o, mask=o < pieces, other=0.0, cache_modifier=".cg")
        o_block += BLOCK
    return tl.sum(total)


@triton.jit(do_not_specialize=range(6))  # new addresses and sizes compile nothing
def _norms_kernel(  # type: ignore[no-untyped-def]
    table,
    tensors: tl.int64,
    owners: tl.int64,
    partials,
    sums,
    eta: tl.int64,
    G: tl.constexpr,
    P: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SOME_NARROW: tl.constexpr,
):
    p_row = table + tl.load(table + owners + tl.program_id(0))
    index = tl.load(p_row + INDEX)
    columns = tl.load(p_row + COLUMNS)
    pieces = tl.load(p_row + PIECES)
    kind = tl.load(p_row + KIND)
    place = tl.program_id(0) - tl.load(p_row + FIRST)
    p_sums = sums + tl.load(p_row + UNIT)
    g_address = address(table, 0, tensors, index)
    w_address = address(table, 1, tensors, index) if WEIGHTED else g_address
    p_g = g_address.to(tl.pointer_type(G))
    p_w = w_address.to(tl.pointer_type(P))
    eta = number(eta).to(tl.float64 if G == tl.float64 else tl.float32)

    if SOME_NARROW and pieces == 0:
        row = place * TILE_ROWS
        rows = tl.load(p_row + ROWS) - row
        _sum_rows(p_g + row * columns, p_w + row * columns, p_sums + row, rows, columns, kind, eta, WEIGHTED)
    else:
        unit = place // pieces
        piece = place % pieces
        o_start = unit * columns + piece * CHUNK
        n = tl.minimum(columns - piece * CHUNK, CHUNK).to(tl.int32)
        n_fast = without_mask(n, g_address | w_address, o_start)
        total = _sum_piece(p_g + o_start, p_w + o_start, n, n_fast, kind, eta, WEIGHTED)
        if pieces == 1:
            tl.store(p_sums + unit, total)
        else:
            first = tl.program_id(0) - piece
            tl.store(partials + tl.program_id(0), total)
            if last_of(table + owners + tl.num_programs(0) + first, pieces):
                tl.store(p_sums + unit, _sum_of_pieces(partials + first, pieces))


def segment_norms(
    grads: Sequence[Tensor], params: Sequence[Tensor], rows: Sequence[int], weighted: Sequence[int], eta: float
) -> Tensor:
    """The sum of (T g)^2 of each unit. The last program of a unit adds what the others found, always in one order."""
    if not grads:
        return torch.empty(0, dtype=torch.float64)
    sums = torch.empty(sum(rows), dtype=torch.float64, device=grads[0].device)
    with on(grads[0].device):
        made = plan((grads, params), rows, weighted, by_unit=True, width=1)
        for launch, partials in zip(made.launches, made.partials, strict=True):
            _norms_kernel[(launch.programs,)](
                made.table,
                made.tensors,
                launch.owners,
                partials,
                sums,
                bits(eta),
                *launch.types,
                WEIGHTED=launch.weighted,
                SOME_NARROW=launch.narrow,
                **OPTIONS,
            )
    return sums


@triton.jit(do_not_specialize=range(5))
def _products_kernel(table, tensors: tl.int64, owners: tl.int64, partials, out, A: tl.constexpr, B: tl.constexpr):  # type: ignore[no-untyped-def]
    _, index, o_start, n = own(table, owners)
    a_address = address(table, 0, tensors, index)
    b_address = address(table, 1, tensors, index)
    n_fast = without_mask(n, a_address | b_address, o_start)
    p_a = a_address.to(tl.pointer_type(A)) + o_start
    p_b = b_address.to(tl.pointer_type(B)) + o_start
    lane = tl.arange(0, BLOCK)
    aa = tl.zeros((BLOCK,), tl.float64)
    ab = tl.zeros((BLOCK,), tl.float64)
    bb = tl.zeros((BLOCK,), tl.float64)
    for MASKED in tl.static_range(2):
        o_block = n_fast if MASKED else tl.full((), 0, tl.int32)
        while o_block < (n if MASKED else n_fast):
            o = o_block + lane
            mask = o < n if MASKED else None
            a = wide(read(p_a, o, mask), tl.float64)
            b = wide(read(p_b, o, mask), tl.float64)
            if MASKED:
                a = tl.where(mask, a, 0.0)
                b = tl.where(mask, b, 0.0)
            aa += a * a
            ab += a * b
            bb += b * b
            o_block += BLOCK

    programs = tl.num_programs(0)
    tl.store(partials + tl.program_id(0), tl.sum(aa))
    tl.store(partials + programs + tl.program_id(0), tl.sum(ab))
    tl.store(partials + 2 * programs + tl.program_id(0), tl.sum(bb))
    if last_of(table + owners + programs, programs):
        for K in tl.static_range(3):
            tl.store(out + K, _sum_of_pieces(partials + K * programs, programs))


def inner_products(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """<a, a>, <a, b> and <b, b> of two lists, each taken as one vector, in float64 and always in one order."""
    if not a:
        return torch.zeros(3, dtype=torch.float64)
    with on(a[0].device):
        made = plan((a, b), width=3)
        out = torch.empty(len(made.launches), 3, dtype=torch.float64, device=a[0].device)
        for k, (launch, partials) in enumerate(zip(made.launches, made.partials, strict=True)):
            _products_kernel[(launch.programs,)](
                made.table, made.tensors, launch.owners, partials, out[k], *launch.types, **OPTIONS
            )
        return out[0] if len(out) == 1 else out.sum(0)


# --- strengths ------------------------------------------------------------------------------------------------------


@triton.jit
def _power(x, y):  # type: ignore[no-untyped-def]
    return tl.where(y == 0, 1.0, tl.exp(y * tl.log(x)))


@triton.jit
def _total(p_x, p_segment, segment, units):  # type: ignore[no-untyped-def]
    """The sum over the units of a segment, in float64."""
    total = tl.zeros((MANY,), tl.float64)
    o_block = tl.full((), 0, tl.int64)
    while o_block < units:
        o = o_block + tl.arange(0, MANY)
        mine = tl.load(p_segment + o, mask=o < units, other=-1) == segment
        total += tl.where(mine, tl.load(p_x + o, mask=o < units, other=0).to(tl.float64), 0.0)
        o_block += MANY
    return tl.sum(total)


@triton.jit(do_not_specialize=range(15))
def _strengths_kernel(  # type: ignore[no-untyped-def]
    sums,
    segments,
    sizes,
    rho,
    running,
    scale,
    layer,
    totals,
    multiplier,
    strength,
    found_inf,
    units: tl.int64,
    a: tl.int64,
    b: tl.int64,
    clip: tl.int64,
    REFERENCE: tl.constexpr,
    NORM: tl.constexpr,
):
    lane = tl.arange(0, MANY)
    start = tl.full((), 0, tl.int64)

    # Is all finite, how many segments are there, and has each unit one for itself, of its number?
    broken = tl.zeros((MANY,), tl.int32)
    shared = tl.zeros((MANY,), tl.int32)
    count = tl.zeros((MANY,), tl.int64)
    elements = tl.zeros((MANY,), tl.int64)
    o_block = start
    while o_block < units:
        o = o_block + lane
        mask = o < units
        segment = tl.load(segments + o, mask=mask, other=-1)
        finite = tl.abs(tl.load(sums + o, mask=mask, other=0.0)) < float("inf")
        broken = tl.where(finite, broken, 1)
        shared = tl.where(mask & (segment != o), 1, shared)
        count = tl.maximum(count, segment + 1)
        elements += tl.load(sizes + o, mask=mask, other=0)
        o_block += MANY
    finite = tl.max(broken) == 0
    shared = tl.max(shared) != 0
    count = tl.max(count)
    elements = tl.sum(elements).to(tl.float64)

    # The sums of u^2, elements and T_k^2 of each segment.
    if shared:
        k = start
        while k < count:
            tl.store(totals + k, _total(sums, segments, k, units))
            tl.store(totals + units + k, _total(sizes, segments, k, units))
            if layer is not None:
                tl.store(totals + 2 * units + k, _total(layer, segments, k, units))
            k += 1
    else:
        o_block = start
        while o_block < units:
            o = o_block + lane
            mask = o < units
            tl.store(totals + o, tl.load(sums + o, mask=mask), mask=mask)
            tl.store(totals + units + o, tl.load(sizes + o, mask=mask).to(tl.float64), mask=mask)
            if layer is not None:
                tl.store(totals + 2 * units + o, tl.load(layer + o, mask=mask), mask=mask)
            o_block += MANY
    tl.debug_barrier()

    # What strengths are compared with.
    loss = tl.full((), 1.0, tl.float64)
    if scale is not None:
        loss = tl.load(scale).to(tl.float64)
    square = tl.zeros((MANY,), tl.float64)
    o_block = start
    while o_block < count:
        o = o_block + lane
        x = tl.load(totals + o, mask=o < count, other=0.0)
        if layer is not None:
            x *= tl.load(totals + 2 * units + o, mask=o < count, other=0.0)
        square += x
        o_block += MANY
    expected = tl.full((), 1.0, tl.float64)
    if REFERENCE != 0:
        expected = tl.sqrt(tl.sum(square) / tl.maximum(elements, 1.0)) / loss
    if REFERENCE == 2:
        m = DECAY * tl.load(running) + (1 - DECAY) * expected
        t = tl.load(running + 1) + 1.0
        expected = m / (1.0 - tl.exp(t * tl.log(tl.full((), DECAY, tl.float64))))
        tl.debug_barrier()  # every thread has read them
        if finite:
            tl.store(running, m)
            tl.store(running + 1, t)
    tl.store(found_inf, tl.where(finite, 0.0, 1.0))

    a, b, clip = number(a), number(b), number(clip)
    a = a if NORM == 2 else a - 0.5
    o_block = start
    while o_block < units:
        o = o_block + lane
        mask = o < units
        segment = tl.load(segments + o, mask=mask, other=0)
        size = tl.load(totals + units + segment, mask=mask, other=1.0)
        norm = tl.sqrt(tl.load(totals + segment, mask=mask, other=0.0))
        factor = tl.full((MANY,), 1.0, tl.float64)
        if layer is not None:
            factor = tl.sqrt(tl.load(totals + 2 * units + segment, mask=mask, other=0.0))
        norm *= factor
        r = norm / (loss * tl.sqrt(tl.maximum(size, 1.0)))
        ratio = r / (expected + TINY)
        if REFERENCE != 0:
            ratio = tl.minimum(tl.maximum(ratio, 1.0 / clip), clip)
        s = tl.load(rho + o, mask=mask, other=0.0) * _power(size / elements, a) * _power(ratio, b)
        s = tl.where(r == 0, 0.0, s)
        c = s * factor if NORM == 0 else s * factor * factor / (norm + TINY * loss)
        tl.store(multiplier + o, tl.where(finite, c, 0.0), mask=mask)
        tl.store(strength + o, tl.where(finite, s, float("nan")), mask=mask)
        o_block += MANY


def strengths(
    sums: Tensor,
    segment: Tensor,
    sizes: Tensor,
    rho: Tensor,
    running: Tensor,
    scale: Tensor | None,
    layer: Tensor | None,
    a: float,
    b: float,
    clip: float,
    reference: int,
    norm: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """What a unit's scaled gradient is multiplied by, the strength s of its segment, and whether to skip the step.

    One program does it, in a pass over the units for each segment, or in one if every unit is a segment.
    """
    multiplier, strength, totals = torch.empty_like(sums), torch.empty_like(sums), sums.new_empty(3 * sums.numel())
    found_inf = sums.new_empty((), dtype=torch.float32)
    with on(sums.device):
        _strengths_kernel[(1,)](
            sums,
            segment,
            sizes,
            rho,
            running,
            scale,
            layer,
            totals,
            multiplier,
            strength,
            found_inf,
            sums.numel(),
            bits(a),
            bits(b),
            bits(clip),
            REFERENCE=reference,
            NORM=norm,
            **OPTIONS,
        )
    return multiplier, strength, found_inf
