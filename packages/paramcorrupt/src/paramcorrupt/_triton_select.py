"""What is read of gradients, in Triton: their sums, the n largest of all tensors together, histograms of magnitudes.

Selection reads digits of the keys from the top, 11 bits at a time, and keeps what it finds on the device: only
`collect` waits, to learn how long its results are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _reference
from ._triton_base import BLOCK, OPTIONS, TYPES, bits, key_of, key_type, number, on, own, plan, pointer, wide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._triton_base import Plan

DIGIT = tl.constexpr(11)  # bits: the histogram of a block stays in registers and shared memory
PATH = 4  # what `select` says of itself: digits from the top


# --- sums -----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["table", "fields", "tensors", "partials", "out"])
def _reduce_kernel(  # type: ignore[no-untyped-def]
    table, fields: tl.int64, tensors: tl.int64, partials, out, COLUMNS: tl.constexpr, MOST: tl.constexpr
):
    """Of each tensor what its programs found, added in the order of their numbers; the column MOST is a maximum."""
    row = tl.program_id(0).to(tl.int64)
    last = tl.load(table + fields + tensors + row + 1)
    for COLUMN in tl.static_range(COLUMNS):
        total = tl.zeros((BLOCK,), tl.float64)
        most = tl.zeros((BLOCK,), tl.int64)
        program = tl.load(table + fields + tensors + row)
        while program < last:
            o = program + tl.arange(0, BLOCK)
            x = tl.load(partials + o * COLUMNS + COLUMN, mask=o < last, other=0.0)
            if COLUMN == MOST:
                most = tl.maximum(most, x.to(tl.int64, bitcast=True))
            else:
                total += x
            program += BLOCK
        result = tl.max(most).to(tl.float64, bitcast=True) if COLUMN == MOST else tl.sum(total)
        tl.store(out + row * COLUMNS + COLUMN, result)


def _reduced(made: Plan, partials: Tensor, columns: int, most: int = -1) -> Tensor:
    shape = (made.tensors, columns) if columns > 1 else (made.tensors,)
    out = torch.empty(shape, dtype=torch.float64, device=made.table.device)
    _reduce_kernel[(made.tensors,)](
        made.table, made.fields, made.tensors, partials, out, COLUMNS=columns, MOST=most, num_warps=8
    )
    return out


@triton.jit(do_not_specialize=range(5))
def _stats_kernel(table, fields: tl.int64, tensors: tl.int64, where: tl.int64, partials, T: tl.constexpr):  # type: ignore[no-untyped-def]
    program, index, o_start, n = own(table, fields, tensors, where)
    p = pointer(table, 0, tensors, index, o_start, T)
    size = tl.zeros((BLOCK,), tl.float64)
    square = tl.zeros((BLOCK,), tl.float64)
    most = tl.zeros((BLOCK,), tl.int64)  # bits, among which a NaN is the largest
    nonzero = tl.zeros((BLOCK,), tl.int32)
    wild = tl.zeros((BLOCK,), tl.int32)
    o_block = tl.full((), 0, tl.int32)
    while o_block < n:
        o = o_block + tl.arange(0, BLOCK)
        x = tl.abs(wide(tl.load(p + o, mask=o < n, other=0), tl.float64))
        size += x
        square += x * x
        most = tl.maximum(most, x.to(tl.int64, bitcast=True))
        nonzero += (x != 0).to(tl.int32)
        wild += ((x == float("inf")) | (x != x)).to(tl.int32)
        o_block += BLOCK
    p_out = partials + program * 5
    tl.store(p_out, tl.sum(size))
    tl.store(p_out + 1, tl.sum(square))
    tl.store(p_out + 2, tl.max(most).to(tl.float64, bitcast=True))
    tl.store(p_out + 3, tl.sum(nonzero).to(tl.float64))
    tl.store(p_out + 4, tl.sum(wild).to(tl.float64))


def grad_stats(g: Sequence[Tensor]) -> Tensor:
    """Of each tensor: sum |g|, sum g^2, max |g|, how many are not zero, how many are not finite."""
    if not g:
        return _reference.grad_stats(g)
    with on(g[0].device):
        made = plan(g)
        partials = torch.empty(5 * made.programs, dtype=torch.float64, device=g[0].device)
        for launch in made.launches:
            _stats_kernel[(launch.programs,)](
                made.table, made.fields, made.tensors, launch.where, partials, *launch.types, **OPTIONS
            )
        return _reduced(made, partials, 5, most=2)


@triton.jit(do_not_specialize=range(8))
def _powers_kernel(  # type: ignore[no-untyped-def]
    table,
    fields: tl.int64,
    tensors: tl.int64,
    where: tl.int64,
    partials,
    q: tl.int64,
    unit: tl.int64,
    key: tl.int64,
    T: tl.constexpr,
    K: tl.constexpr,
):
    program, index, o_start, n = own(table, fields, tensors, where)
    p = pointer(table, 0, tensors, index, o_start, T)
    q = number(q)
    unit = number(unit)
    total = tl.zeros((BLOCK,), tl.float64)
    o_block = tl.full((), 0, tl.int32)
    while o_block < n:
        o = o_block + tl.arange(0, BLOCK)
        x = tl.load(p + o, mask=o < n, other=0)
        size = tl.abs(wide(x, tl.float64)) / unit
        term = tl.where(size == 0, 0.0, tl.exp(q * tl.log(tl.where(size == 0, 1.0, size))))
        total += tl.where((o < n) & (key_of(x, K) >= key), term, 0.0)
        o_block += BLOCK
    tl.store(partials + program, tl.sum(total))


def power_sum(g: Sequence[Tensor], q: float, unit: float, key: int) -> Tensor:
    """Of each tensor: the sum of (|g| / unit)^q over the elements whose key is `key` or more."""
    if not g:
        return _reference.power_sum(g, q, unit, key)
    with on(g[0].device):
        made = plan(g)
        partials = torch.empty(made.programs, dtype=torch.float64, device=g[0].device)
        for launch in made.launches:
            _powers_kernel[(launch.programs,)](
                made.table,
                made.fields,
                made.tensors,
                launch.where,
                partials,
                bits(q),
                bits(unit),
                key,
                *launch.types,
                K=key_type(g),
                **OPTIONS,
            )
        return _reduced(made, partials, 1)


# --- selection ------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=range(8))
def _digits_kernel(  # type: ignore[no-untyped-def]
    table,
    fields: tl.int64,
    tensors: tl.int64,
    where: tl.int64,
    prefix,
    counts,
    sums,
    rest: tl.int64,
    T: tl.constexpr,
    K: tl.constexpr,
    BITS: tl.constexpr,
    SUMS: tl.constexpr,
):
    """Of the keys that start with `prefix`: how many have each value of the BITS that follow, `rest` remain.

    Of few values a chunk is counted before it is added to the others.
    """
    _, index, o_start, n = own(table, fields, tensors, where)
    p = pointer(table, 0, tensors, index, o_start, T)
    wanted = tl.load(prefix)
    FEW: tl.constexpr = BITS <= DIGIT
    if FEW:
        found = tl.zeros((1 << BITS,), tl.int32)
    o_block = tl.full((), 0, tl.int32)
    while o_block < n:
        o = o_block + tl.arange(0, BLOCK)
        x = tl.load(p + o, mask=o < n, other=0)
        digits = key_of(x, K).to(tl.int64) >> rest
        inside = (o < n) & ((digits >> BITS) == wanted)
        digit = (digits & ((1 << BITS) - 1)).to(tl.int32)
        if FEW:
            found += tl.histogram(digit, 1 << BITS, mask=inside)
        else:
            tl.atomic_add(counts + digit, tl.full((BLOCK,), 1, tl.int64), mask=inside)
        if SUMS:
            tl.atomic_add(sums + digit, tl.abs(wide(x, tl.float64)), mask=inside)
        o_block += BLOCK
    if FEW:
        tl.atomic_add(counts + tl.arange(0, 1 << BITS), found.to(tl.int64), mask=found > 0)


@triton.jit(do_not_specialize=range(3))
def _choose_kernel(state, counts, n: tl.int64, BITS: tl.constexpr, FIRST: tl.constexpr):  # type: ignore[no-untyped-def]
    """The digit of the n-th largest, from the counts, which are zero again. The state: prefix, how many are above, how
    many of those that have the prefix are still to be taken."""
    digit = tl.arange(0, 1 << BITS)
    count = tl.load(counts + digit)
    tl.store(counts + digit, tl.zeros_like(count))
    wanted = n if FIRST else tl.load(state + 2)
    above = tl.sum(count) - tl.cumsum(count)
    chosen = (above < wanted) & (above + count >= wanted)
    higher = tl.sum(tl.where(chosen, above, 0))
    place = tl.sum(tl.where(chosen, digit, 0)).to(tl.int64)
    if FIRST:
        tl.store(state, place)
        tl.store(state + 1, higher)
    else:
        tl.store(state, (tl.load(state) << BITS) | place)
        tl.store(state + 1, tl.load(state + 1) + higher)
    tl.store(state + 2, wanted - higher)


def select(g: Sequence[Tensor], n: int) -> Tensor:
    """The key of the n-th largest magnitude of all tensors together, how many are above it, how many of those that have
    it belong to the n largest, and the path taken. Nothing waits for the device."""
    device, dtype = g[0].device, _reference.key_dtype(g)
    rest = 8 * dtype.itemsize - 1
    state = torch.zeros(4, dtype=torch.int64, device=device)
    state[3:].fill_(PATH)
    counts = torch.zeros(1 << DIGIT.value, dtype=torch.int64, device=device)
    with on(device):
        made, first = plan(g), True
        while rest:
            digit = min(DIGIT.value, rest)
            rest -= digit
            for launch in made.launches:
                _digits_kernel[(launch.programs,)](
                    made.table,
                    made.fields,
                    made.tensors,
                    launch.where,
                    state,
                    counts,
                    counts,
                    rest,
                    *launch.types,
                    K=TYPES[dtype],
                    BITS=digit,
                    SUMS=False,
                    **OPTIONS,
                )
            _choose_kernel[(1,)](state, counts, n, BITS=digit, FIRST=first, num_warps=8)
            first = False
    return state


def key_histogram(g: Sequence[Tensor], prefix: int, prefix_bits: int, bits: int) -> tuple[Tensor, Tensor]:
    """Of the elements whose keys start with the `prefix_bits` bits `prefix`: how many have each value of the `bits`
    bits that follow, and the sums of their magnitudes, whose last bits may differ from run to run."""
    if not g:
        return _reference.key_histogram(g, prefix, prefix_bits, bits)
    device, dtype = g[0].device, _reference.key_dtype(g)
    counts = torch.zeros(1 << bits, dtype=torch.int64, device=device)
    sums = torch.zeros(1 << bits, dtype=torch.float64, device=device)
    rest = 8 * dtype.itemsize - 1 - prefix_bits - bits
    wanted = torch.full((1,), prefix, dtype=torch.int64, device=device)
    with on(device):
        made = plan(g)
        for launch in made.launches:
            _digits_kernel[(launch.programs,)](
                made.table,
                made.fields,
                made.tensors,
                launch.where,
                wanted,
                counts,
                sums,
                rest,
                *launch.types,
                K=TYPES[dtype],
                BITS=bits,
                SUMS=True,
                **OPTIONS,
            )
    return counts, sums


# --- collection -----------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=range(7))
def _count_kernel(  # type: ignore[no-untyped-def]
    table,
    fields: tl.int64,
    tensors: tl.int64,
    where: tl.int64,
    threshold,
    above,
    equal,
    T: tl.constexpr,
    K: tl.constexpr,
):
    program, index, o_start, n = own(table, fields, tensors, where)
    p = pointer(table, 0, tensors, index, o_start, T)
    limit = tl.load(threshold)
    more = tl.zeros((BLOCK,), tl.int64)
    same = tl.zeros((BLOCK,), tl.int64)
    o_block = tl.full((), 0, tl.int32)
    while o_block < n:
        o = o_block + tl.arange(0, BLOCK)
        key = key_of(tl.load(p + o, mask=o < n, other=0), K).to(tl.int64)
        more += ((o < n) & (key > limit)).to(tl.int64)
        same += ((o < n) & (key == limit)).to(tl.int64)
        o_block += BLOCK
    tl.store(above + program, tl.sum(more))
    tl.store(equal + program, tl.sum(same))


@triton.jit(do_not_specialize=range(9))
def _collect_kernel(  # type: ignore[no-untyped-def]
    table,
    fields: tl.int64,
    tensors: tl.int64,
    where: tl.int64,
    threshold,
    edges,
    taken,
    places,
    values,
    T: tl.constexpr,
    K: tl.constexpr,
):
    program, index, o_start, n = own(table, fields, tensors, where)
    p = pointer(table, 0, tensors, index, o_start, T)
    limit = tl.load(threshold)
    start = tl.load(edges + program)
    if tl.load(edges + program + 1) > start:
        ties = tl.load(taken + program)
        o_block = tl.full((), 0, tl.int32)
        while o_block < n:
            o = o_block + tl.arange(0, BLOCK)
            x = tl.load(p + o, mask=o < n, other=0)
            key = key_of(x, K).to(tl.int64)
            same = ((o < n) & (key == limit)).to(tl.int64)
            chosen = ((o < n) & (key > limit)) | ((same == 1) & (tl.cumsum(same) <= ties))
            one = chosen.to(tl.int64)
            where_to = start + tl.cumsum(one) - one
            tl.store(places + where_to, o_start + o, mask=chosen)
            tl.store(values + where_to, x if T == K else wide(x, K), mask=chosen)
            start += tl.sum(one)
            ties -= tl.sum(same * one)
            o_block += BLOCK


def shares(made: Plan, tensors: Sequence[Tensor], threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Of each program how many it finds above the threshold, and how many at it that are taken: the first ones."""
    device = tensors[0].device
    above, equal = torch.zeros(2, max(made.programs, 1), dtype=torch.int64, device=device)
    for launch in made.launches:
        _count_kernel[(launch.programs,)](
            made.table,
            made.fields,
            made.tensors,
            launch.where,
            threshold,
            above,
            equal,
            *launch.types[:1],
            K=key_type(tensors),
            **OPTIONS,
        )
    before = equal.cumsum(0) - equal
    return above, (threshold[2] - before).clamp(min=0).minimum(equal)


def collect(g: Sequence[Tensor], threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `select` selected: where each tensor starts among the selected, their places in it, their values."""
    device, dtype = g[0].device, _reference.key_dtype(g)
    with on(device):
        made = plan(g)
        above, taken = shares(made, g, threshold)
        edges = torch.nn.functional.pad((above + taken).cumsum(0), (1, 0))
        count = int(edges[-1])
        places = torch.empty(count, dtype=torch.int64, device=device)
        values = torch.empty(count, dtype=dtype, device=device)
        for launch in made.launches:
            _collect_kernel[(launch.programs,)](
                made.table,
                made.fields,
                made.tensors,
                launch.where,
                threshold,
                edges,
                taken,
                places,
                values.view(torch.uint16) if dtype == torch.bfloat16 else values,
                *launch.types,
                K=TYPES[dtype],
                **OPTIONS,
            )
        return edges[made.first], places, values


def top_n(g: Sequence[Tensor], n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `select` gives, and what `collect` then gives."""
    threshold = select(g, n)
    return threshold, *collect(g, threshold)
