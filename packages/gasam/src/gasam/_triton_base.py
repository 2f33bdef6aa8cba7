"""What the Triton kernels share: tables of tensors, and how elements are read, weighted, rounded and written.

In the kernels `p_` is a pointer and `o_` an offset in elements, a capital is known when compiling. A program takes a
CHUNK of a tensor, in blocks that give each of its threads 16 bytes or more of every list.
"""

from __future__ import annotations

from array import array
from contextlib import nullcontext
from functools import lru_cache
from itertools import chain, repeat
from operator import attrgetter
from struct import pack, unpack
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

BLOCK = tl.constexpr(2048)
CHUNK = tl.constexpr(8 * BLOCK.value)
WARPS = 8
OPTIONS: dict[str, Any] = {"num_warps": WARPS, "enable_fp_fusion": False}  # the same bits as interpreted

NORMAL = tl.constexpr("")  # how a cache evicts

# Of units of fewer elements than NARROW a program sums TILE_ROWS at once.
NARROW = tl.constexpr(512)
TILE_COLUMNS = tl.constexpr(64)
TILE_ROWS = tl.constexpr(BLOCK.value // TILE_COLUMNS.value)

# The table, int64: first the pointers, list by list. Then for each launch: of every tensor its place in the lists, its
# elements, its first program, its first unit, its units, the elements and the programs of a unit (0: narrow ones share
# one) and what weights it; of every program the place of its tensor's fields; and tickets, 0 between launches.
INDEX, NUMEL, FIRST, UNIT, ROWS, COLUMNS, PIECES, KIND = (tl.constexpr(field) for field in range(8))

TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.uint16,  # its bits
}


# --- tables ---------------------------------------------------------------------------------------------------------


class Launch(NamedTuple):
    owners: int  # where the table tells the tensors of the programs
    programs: int
    dtypes: tuple[torch.dtype, ...]
    weighted: bool
    rowed: bool  # some tensor has several units
    narrow: bool

    @property
    def types(self) -> map[Any]:
        return map(TYPES.__getitem__, self.dtypes)


class _Layout(NamedTuple):
    words: array[int]  # of the table, after the pointers
    launches: list[Launch]
    spare: list[Tensor]  # pinned memory, which cannot be had everywhere while a CUDA graph is captured


class Plan(NamedTuple):
    table: Tensor
    tensors: int
    launches: list[Launch]
    partials: list[Tensor]  # one for each launch, of `width` doubles for each program


_plans: dict[tuple[Any, ...], Plan] = {}
_captured: list[Tensor] = []  # memory that CUDA graphs copy their tables from, at every replay
_MOST = 1 << 15  # tensors in all plans that are remembered


def plan(
    lists: Sequence[Sequence[Tensor]],
    rows: Sequence[int] = (),
    weighted: Sequence[int] = (),
    *,
    by_unit: bool = False,
    width: int = 0,
    scalars: Sequence[Tensor] = (),
) -> Plan:
    """What to launch for tensors of these lists, one launch for all of the same dtypes.

    A program takes a part of a tensor, or `by_unit` a part of a unit. Of `scalars` the table has the addresses alone.
    It is remembered if all addresses, dtypes and sizes were met before on this stream; else one copy makes it. A table
    that is made while a CUDA graph is captured is filled at each replay, and never remembered.
    """
    n = len(lists[0])
    tensors = list(chain(*lists))
    pointers = list(map(Tensor.data_ptr, chain(tensors, scalars)))
    dtypes = tuple(map(attrgetter("dtype"), tensors))
    sizes = tuple(map(Tensor.numel, lists[0]))
    device = tensors[0].device
    stream = torch.cuda.current_stream().cuda_stream if device.type == "cuda" else 0
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    key = (n, device, stream, by_unit, width, *sizes, *rows, *weighted, *pointers, *dtypes)
    if not capturing and (known := _plans.get(key)):
        return known

    if tuple(map(Tensor.numel, tensors)) != sizes * len(lists) or {x.device for x in tensors} != {device}:
        raise ValueError("what belongs to a parameter must have its size and its device")
    layout = _layout(by_unit, len(pointers), sizes, tuple(rows) or (1,) * n, tuple(weighted) or (0,) * n, dtypes)
    words = torch.frombuffer(array("q", pointers) + layout.words, dtype=torch.int64)
    if device.type == "cuda":
        host = layout.spare.pop() if capturing and layout.spare else torch.empty_like(words, pin_memory=True)
        words = host.copy_(words)
        if not capturing and not layout.spare:
            layout.spare.append(torch.empty_like(words, pin_memory=True))
    made = Plan(
        words.to(device, non_blocking=True, copy=True),
        n,
        layout.launches,
        [torch.empty(width * x.programs, dtype=torch.float64, device=device) for x in layout.launches if width],
    )
    if capturing:
        _captured.append(words)
        return made
    _plans[key] = made
    while len(_plans) > 1 and sum(n for n, *_ in _plans) > _MOST:
        del _plans[next(iter(_plans))]
    return made


@lru_cache(maxsize=64)
def _layout(
    by_unit: bool,
    start: int,
    sizes: tuple[int, ...],
    rows: tuple[int, ...],
    weighted: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
) -> _Layout:
    """The words of the table from `start` on, and where the launches find theirs."""
    n = len(sizes)
    units = [0]
    for count in rows:
        units.append(units[-1] + count)
    groups: dict[tuple[torch.dtype, ...], list[int]] = {}
    for k in range(n):
        groups.setdefault(dtypes[k::n], []).append(k)
    words, launches = array("q"), []
    for group, members in groups.items():
        owners, any_narrow = array("q"), False
        for k in members:
            columns = sizes[k] // rows[k]
            narrow = by_unit and rows[k] > 1 and columns < NARROW.value
            pieces = 0 if narrow else max(1, -(-(columns if by_unit else sizes[k]) // CHUNK.value))
            programs = -(-rows[k] // TILE_ROWS.value) if narrow else pieces * rows[k] if by_unit else pieces
            owners.extend(repeat(start + len(words), programs))
            words.extend((k, sizes[k], len(owners) - programs, units[k], rows[k], columns, pieces, weighted[k]))
            any_narrow |= narrow
        launches.append(
            Launch(
                start + len(words),
                len(owners),
                group,
                any(weighted[k] for k in members),
                any(rows[k] > 1 for k in members),
                any_narrow,
            )
        )
        words.extend(owners)
        words.extend(repeat(0, len(owners)))
    return _Layout(words, launches, [])


def on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def bits(x: float) -> int:
    """The bits of a number in double precision, which no float argument of Triton's would carry."""
    number: int = unpack("q", pack("d", x))[0]
    return number


# --- in the kernels -------------------------------------------------------------------------------------------------


@triton.jit
def number(x):  # type: ignore[no-untyped-def]
    return x.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def own(table, owners):  # type: ignore[no-untyped-def]
    """Of a program's tensor the fields, its place in the lists, the first element of the chunk and how many it has."""
    p_row = table + tl.load(table + owners + tl.program_id(0))
    o_start = (tl.program_id(0) - tl.load(p_row + FIRST)) * CHUNK
    n = tl.minimum(tl.load(p_row + NUMEL) - o_start, CHUNK).to(tl.int32)
    return p_row, tl.load(p_row + INDEX), o_start, n


@triton.jit
def address(table, LIST: tl.constexpr, tensors, index):  # type: ignore[no-untyped-def]
    return tl.load(table + LIST * tensors + index)


@triton.jit
def without_mask(n, addresses, o_start):  # type: ignore[no-untyped-def]
    """How many elements are whole blocks of 16-byte vectors, which need no mask; `addresses` are joined by `or`."""
    return tl.where((addresses % 16 == 0) & (o_start % 16 == 0), n // BLOCK * BLOCK, 0)


@triton.jit
def read(p, o, mask, EVICT: tl.constexpr = NORMAL):  # type: ignore[no-untyped-def]
    return tl.load(p + o if mask is not None else tl.multiple_of(p + o, 16), mask=mask, eviction_policy=EVICT)


@triton.jit
def write(p, o, mask, x, EVICT: tl.constexpr = NORMAL):  # type: ignore[no-untyped-def]
    tl.store(p + o if mask is not None else tl.multiple_of(p + o, 16), x, mask=mask, eviction_policy=EVICT)


@triton.jit
def wide(x, FLOAT: tl.constexpr):  # type: ignore[no-untyped-def]
    if x.dtype == tl.uint16:
        x = (x.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(FLOAT)


@triton.jit
def div(x, y):  # type: ignore[no-untyped-def]
    return tl.div_rn(x, y) if y.dtype == tl.float32 else x / y


@triton.jit
def root(x):  # type: ignore[no-untyped-def]
    return tl.sqrt_rn(x) if x.dtype == tl.float32 else tl.sqrt(x)


@triton.jit
def sign(x):  # type: ignore[no-untyped-def]
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0)).to(x.dtype)


@triton.jit
def weight(w, kind, eta):  # type: ignore[no-untyped-def]
    """T, which a gradient is multiplied by."""
    t = tl.abs(w) + eta
    one = tl.full(w.shape, 1.0, w.dtype)
    return tl.where(kind == 0, one, tl.where(kind > 0, t, div(one, t)))


@triton.jit
def first_unit(p_row, o_start):  # type: ignore[no-untyped-def]
    """A chunk's first unit, how many of the chunk's elements it may have, and how many each of the next ones."""
    columns = tl.maximum(tl.load(p_row + COLUMNS), 1)
    left = tl.minimum(columns - o_start % columns, CHUNK)
    return tl.load(p_row + UNIT) + o_start // columns, left.to(tl.int32), tl.minimum(columns, CHUNK).to(tl.int32)


@triton.jit
def of_units(p_first, left, columns, o, mask):  # type: ignore[no-untyped-def]
    """The value of each element's unit."""
    return tl.load(p_first + tl.where(o < left, 0, 1 + (o - left) // columns), mask=mask)


@triton.jit
def last_of(p_ticket, count):  # type: ignore[no-untyped-def]
    """Whether this program is the last of so many to come here, by when the others have written."""
    tl.debug_barrier()
    last = tl.atomic_add(p_ticket, 1) == count - 1
    if last:
        tl.store(p_ticket, 0)
    return last


# --- rounding -------------------------------------------------------------------------------------------------------


@triton.jit
def draws(seed, stream, o):  # type: ignore[no-untyped-def]
    """16 random bits for each element of a block that begins at `o`: a call of Philox serves 8 neighbours."""
    group = o // 8 + tl.arange(0, BLOCK // 8)
    low = group.to(tl.uint32)
    zero = tl.zeros_like(low)
    a, b, c, d = tl.philox(seed, low, (group >> 32).to(tl.uint32), zero + stream.to(tl.uint32), zero)
    words = tl.join(tl.join(a, c), tl.join(b, d))  # of 2, by 2: d is [1, 1]
    return tl.reshape(tl.join(words & 0xFFFF, words >> 16), (BLOCK,))


@triton.jit
def narrowed(x, T: tl.constexpr, draw):  # type: ignore[no-untyped-def]
    """x in another type, of halves rounded by the draw, or to nearest without one."""
    if T == tl.uint16:
        u = x.to(tl.float32).to(tl.uint32, bitcast=True)
        nearest = ((u >> 16) & 1) + 0x7FFF
        if draw is not None:
            nearest = tl.where((u & 0x7FFFFFFF) <= 0x7F7F0000, draw, nearest)
        return tl.where((u & 0x7FFFFFFF) <= 0x7F800000, (u + nearest) >> 16, 0x7FC0).to(tl.uint16)
    if T == tl.float16 and draw is not None:
        u = x.to(tl.uint32, bitcast=True)
        exponent = tl.maximum(((u >> 23) & 0xFF).to(tl.int32) - 127, -14) - 10
        quantum = ((127 + exponent) << 23).to(tl.float32, bitcast=True)
        inverse = ((127 - exponent) << 23).to(tl.float32, bitcast=True)
        rounded = tl.floor(x * inverse + (draw >> 3).to(tl.float32) * 2.0**-13) * quantum
        rounded = (rounded.to(tl.uint32, bitcast=True) | (u & 0x80000000)).to(tl.float32, bitcast=True)
        return tl.where(tl.abs(x) <= 65504.0, rounded, x).to(tl.float16)
    return x.to(T)
