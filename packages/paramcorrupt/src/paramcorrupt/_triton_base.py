"""What the Triton kernels share: tables of tensors, and how elements are read, compared, rounded and written.

In the kernels `p_` is a pointer and `o_` an offset in elements, a capital is known when compiling. A program takes a
CHUNK of a tensor; programs are numbered through all tensors of a list in their order, whatever launch they belong to.
"""

from __future__ import annotations

from array import array
from contextlib import nullcontext
from itertools import chain
from operator import attrgetter
from struct import pack, unpack
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _reference

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

BLOCK = tl.constexpr(2048)
CHUNK = tl.constexpr(8 * BLOCK.value)
OPTIONS: dict[str, Any] = {"num_warps": 8, "enable_fp_fusion": False}  # the same bits as interpreted

TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.uint16,  # its bits
}


# --- tables ---------------------------------------------------------------------------------------------------------


class Launch(NamedTuple):
    where: int  # the place in the table of the numbers of its programs
    programs: int
    dtypes: tuple[torch.dtype, ...]

    @property
    def types(self) -> tuple[Any, ...]:
        return tuple(map(TYPES.__getitem__, self.dtypes))


class Plan(NamedTuple):
    """A table on the device, int64: the pointers, list by list; from `fields` on the sizes of the tensors, the number
    of each one's first program, and of each program the tensor; then the programs of each launch."""

    table: Tensor
    tensors: int
    fields: int
    programs: int
    launches: list[Launch]

    @property
    def first(self) -> Tensor:
        """The number of each tensor's first program, and the number of all."""
        start = self.fields + self.tensors
        return self.table[start : start + self.tensors + 1]


_plans: dict[tuple[Any, ...], Plan] = {}
_captured: list[Tensor] = []  # memory that CUDA graphs copy their tables from, at every replay
_spare: dict[int, list[Tensor]] = {}  # by size: pinned memory, which cannot be had everywhere while one is captured
_GRAPHS = 2  # captures of the same tensors that find some
_MOST = 64  # plans that are remembered, and sizes of spare memory


def plan(*lists: Sequence[Tensor]) -> Plan:
    """What to launch for these lists of tensors, whose sizes agree: one launch for all of the same dtypes.

    It is remembered, and made again where an address, a dtype or a size is new; one copy brings it to the device. While
    a CUDA graph is captured it is made anew, and filled at each replay.
    """
    n, tensors = len(lists[0]), list(chain(*lists))
    pointers = list(map(Tensor.data_ptr, tensors))
    dtypes = tuple(map(attrgetter("dtype"), tensors))
    sizes = tuple(map(Tensor.numel, lists[0]))
    device = tensors[0].device
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    key = (n, device, stream, *sizes, *pointers, *dtypes)
    if not capturing and (known := _plans.get(key)):
        return known
    if tuple(map(Tensor.numel, tensors)) != sizes * len(lists) or {x.device for x in tensors} != {device}:
        raise ValueError("lists of tensors must have the same sizes, on one device")

    counts = [-(-size // CHUNK.value) for size in sizes]
    first = [0]
    for count in counts:
        first.append(first[-1] + count)
    words = array("q", pointers)
    words.extend(sizes)
    words.extend(first)
    owners: dict[tuple[torch.dtype, ...], array[int]] = {}
    for k, count in enumerate(counts):
        words.extend([k] * count)
        owners.setdefault(dtypes[k::n], array("q")).extend(range(first[k], first[k] + count))
    launches = []
    for kinds, numbers in owners.items():
        if numbers:
            launches.append(Launch(len(words), len(numbers), kinds))
            words.extend(numbers)
    host = torch.frombuffer(words, dtype=torch.int64)
    if device.type == "cuda":
        spare = _spare.setdefault(len(words), [])
        host = (spare.pop() if capturing and spare else torch.empty_like(host, pin_memory=True)).copy_(host)
        while not capturing and len(spare) < _GRAPHS:
            spare.append(torch.empty_like(host, pin_memory=True))
        while len(_spare) > _MOST:
            del _spare[next(iter(_spare))]
    made = Plan(host.to(device, non_blocking=True, copy=True), n, len(tensors), first[-1], launches)
    if capturing:
        _captured.append(host)
        return made
    _plans[key] = made
    while len(_plans) > _MOST:
        del _plans[next(iter(_plans))]
    return made


def key_type(tensors: Sequence[Tensor]) -> Any:
    return TYPES[_reference.key_dtype(tensors)]


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
def own(table, fields, tensors, where):  # type: ignore[no-untyped-def]
    """A program's number, its tensor's place in the lists, the first element of its chunk and how many it has."""
    program = tl.load(table + where + tl.program_id(0))
    index = tl.load(table + fields + 2 * tensors + 1 + program)
    o_start = (program - tl.load(table + fields + tensors + index)) * CHUNK
    n = tl.minimum(tl.load(table + fields + index) - o_start, CHUNK).to(tl.int32)
    return program, index, o_start, n


@triton.jit
def pointer(table, LIST: tl.constexpr, tensors, index, o_start, T: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.load(table + LIST * tensors + index).to(tl.pointer_type(T)) + o_start


@triton.jit
def wide(x, FLOAT: tl.constexpr):  # type: ignore[no-untyped-def]
    if x.dtype == tl.uint16:
        x = (x.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(FLOAT)


@triton.jit
def narrowed(x, T: tl.constexpr):  # type: ignore[no-untyped-def]
    """x, of float32 or float64, rounded to nearest into another type."""
    if T == tl.uint16:
        u = x.to(tl.float32).to(tl.uint32, bitcast=True)
        nearest = ((u >> 16) & 1) + 0x7FFF
        x = tl.where((u & 0x7FFFFFFF) <= 0x7F800000, (u + nearest) >> 16, 0x7FC0 | (u >> 31 << 15)).to(tl.uint16)
    elif T == tl.float16:
        x = x.to(tl.float32).to(tl.float16)  # as PyTorch, by way of float32
    else:
        x = x.to(T)
    return x


@triton.jit
def key_of(x, K: tl.constexpr):  # type: ignore[no-untyped-def]
    """The bits of |x| in the type K, as a non-negative integer."""
    if K == tl.uint16:
        key = (x & 0x7FFF).to(tl.int32)
    elif K == tl.float16:
        key = (x.to(tl.uint16, bitcast=True) & 0x7FFF).to(tl.int32)
    elif K == tl.float32:
        key = wide(x, tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    else:
        key = wide(x, tl.float64).to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    return key


@triton.jit
def powered(x, power, POWER: tl.constexpr):  # type: ignore[no-untyped-def]
    """sgn(x) |x|^power of a number in float64; POWER is the power where that is 0 or 1."""
    if POWER != 1:
        signs = tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))
        size = tl.where(x == 0, 1.0, tl.abs(x))
        x = signs if POWER == 0 else signs * tl.exp(power * tl.log(size))
    return x
