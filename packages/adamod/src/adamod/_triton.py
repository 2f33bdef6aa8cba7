"""The operator in Triton: one launch for all tensors of the same dtypes, the step counts included.

In the kernels `p_` is a pointer and `o_` an offset in elements, a capital is known when compiling. A program takes one
CHUNK of a tensor, in blocks of 4 rows of 256 elements, of which each row shares an int8 scale.
"""

from __future__ import annotations

from array import array
from contextlib import nullcontext
from functools import reduce
from itertools import chain, repeat
from operator import attrgetter, or_
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _reference

if TYPE_CHECKING:
    from collections.abc import Sequence

ROW = tl.constexpr(_reference.BLOCK)
ROWS = tl.constexpr(4)
BLOCK = tl.constexpr(ROWS.value * ROW.value)
CHUNK = tl.constexpr(16 * BLOCK.value)  # a power of two, for `key` is the same in a whole chunk
WARPS = 8
RUN = tl.constexpr(_reference.RUN)
BINS = tl.constexpr(_reference.BINS)
FIRST_EXPONENT = tl.constexpr(_reference.FIRST_EXPONENT)
NONFINITE = tl.constexpr(_reference._NONFINITE)
HALF = tl.constexpr(_reference._HALF)

# The table, int64: for each tensor 5 + 3 pointers, its size, its first program, its place in `steps` and whether every
# pointer is a multiple of 16; then for each program its tensor; then a ticket, which tells the last program that it is.
SIZE, FIRST, INDEX, ALIGNED, FIELDS = (tl.constexpr(field) for field in range(8, 13))


# --- rounding -------------------------------------------------------------------------------------------------------


@triton.jit
def _hash(x):  # type: ignore[no-untyped-def]
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _decode(code, base, SIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    code = code.to(tl.int32)
    magnitude = code & 0x7F if SIGNED else code
    x = ((magnitude + base) << 20).to(tl.float32, bitcast=True)
    x = tl.where(magnitude == 0, 0.0, x)
    if SIGNED:
        x = tl.where(code > 0x7F, -x, x)
    return tl.where(base == NONFINITE, float("nan"), x)


@triton.jit
def _encode(x, draw, SIGNED: tl.constexpr, KEEP_POSITIVE: tl.constexpr):  # type: ignore[no-untyped-def]
    LEVELS: tl.constexpr = 127 if SIGNED else 255
    draw = HALF if draw is None else draw.to(tl.int32)
    bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    top = tl.max(bits, 1, keep_dims=True)
    base = tl.maximum((top >> 20) + (1 - LEVELS), 0)
    code = tl.minimum(tl.maximum(((bits + (draw << 4)) >> 20) - base, 0), LEVELS)
    first = (base + 1) << 20
    chance = (draw + 0.5) * 2.0**-16
    below = bits.to(tl.float32, bitcast=True) > first.to(tl.float32, bitcast=True) * chance
    code = tl.where((bits < first) & (base > 0), below.to(tl.int32), code)
    if KEEP_POSITIVE:
        code = tl.where((x > 0) & (code == 0), 1, code)
    if SIGNED:
        code = tl.where(x < 0, code | 0x80, code)
    loud = top >= 0x7F800000
    return tl.where(loud, 0, code).to(tl.uint8), tl.where(loud, NONFINITE, base).to(tl.int16)


@triton.jit
def _bfloat16(x, draw):  # type: ignore[no-untyped-def]
    """The bits of x in bfloat16, rounded by the draw, or to nearest without one."""
    bits = x.to(tl.uint32, bitcast=True)
    if draw is None:
        draw = ((bits >> 16) & 1) + 0x7FFF
    return tl.where(x == x, (bits + draw) >> 16, 0x7FC0).to(tl.uint16)


# --- the step -------------------------------------------------------------------------------------------------------


@triton.jit
def _div(x, y):  # type: ignore[no-untyped-def]
    return tl.div_rn(x, y) if y.dtype == tl.float32 else x / y


@triton.jit
def _sqrt(x):  # type: ignore[no-untyped-def]
    return tl.sqrt_rn(x) if x.dtype == tl.float32 else tl.sqrt(x)


@triton.jit
def _pointer(p_row, FIELD: tl.constexpr, T: tl.constexpr, o_start):  # type: ignore[no-untyped-def]
    return tl.load(p_row + FIELD).to(tl.pointer_type(T)) + o_start


@triton.jit
def _load(p_x, p_scale, o, o_row, mask, mask_row, SIGNED: tl.constexpr, FLOAT: tl.constexpr):  # type: ignore[no-untyped-def]
    x = tl.load(p_x + o if mask is not None else tl.multiple_of(p_x + o, (16, 16)), mask=mask)
    if x.dtype == tl.uint8:
        x = _decode(x, tl.load(p_scale + o_row // ROW, mask=mask_row).to(tl.int32), SIGNED)
    elif x.dtype == tl.uint16:
        x = (x.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(FLOAT)


@triton.jit
def _store(p_x, p_scale, o, o_row, mask, mask_row, x, draw, ROLE: tl.constexpr):  # type: ignore[no-untyped-def]
    T: tl.constexpr = p_x.dtype.element_ty
    if T == tl.uint8:
        x = x.to(tl.float32)
        x, scale = _encode(x if mask is None else tl.where(mask, x, 0.0), draw, ROLE == "m", ROLE == "v")
        tl.store(p_scale + o_row // ROW, scale, mask=mask_row)
    elif T == tl.uint16:
        x = _bfloat16(x.to(tl.float32), None if ROLE == "m" else draw)
    tl.store(p_x + o if mask is not None else tl.multiple_of(p_x + o, (16, 16)), x.to(T), mask=mask)


@triton.jit
def _bin(x):  # type: ignore[no-untyped-def]
    if x.dtype == tl.float64:
        exponent = ((x.to(tl.int64, bitcast=True) >> 52) & 0x7FF).to(tl.int32) - 1023
    else:
        exponent = ((x.to(tl.int32, bitcast=True) >> 23) & 0xFF) - 127
    return tl.minimum(tl.maximum(exponent - FIRST_EXPONENT, 0), BINS - 1)


@triton.jit
def _number(hyper, K: tl.constexpr, bits):  # type: ignore[no-untyped-def]
    return bits.to(tl.int64).to(tl.float64, bitcast=True) if hyper is None else tl.load(hyper + K)


@triton.jit
def _correction(beta, t):  # type: ignore[no-untyped-def]
    return 1.0 - tl.exp(t * tl.log(tl.maximum(beta, 1e-30)))


@triton.jit(do_not_specialize=range(14))  # a new learning rate or address compiles nothing
def _kernel(  # type: ignore[no-untyped-def]
    table,
    tensors: tl.int64,
    steps,
    hyper,
    lr: tl.int64,
    beta1: tl.int64,
    beta2: tl.int64,
    beta3: tl.int64,
    eps: tl.int64,
    weight_decay: tl.int64,
    seed: tl.int64,
    grad_scale,
    found_inf,
    stats,
    P: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    V: tl.constexpr,
    S: tl.constexpr,
    PAPER: tl.constexpr,
    BOUNDED: tl.constexpr,
    SKIP: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    SEEDED: tl.constexpr,
):
    FLOAT: tl.constexpr = tl.float64 if P == tl.float64 else tl.float32
    p_owners = table + tensors * FIELDS
    p_row = table + tl.load(p_owners + tl.program_id(0)) * FIELDS
    o_start = (tl.program_id(0) - tl.load(p_row + FIRST)) * CHUNK
    numel = tl.load(p_row + SIZE)
    index = tl.load(p_row + INDEX)
    n = tl.minimum(numel - o_start, CHUNK).to(tl.int32)
    live = found_inf is None
    if found_inf is not None:
        live = tl.load(found_inf) == 0
        n = tl.where(live, n, 0)
    n_fast = tl.where(tl.load(p_row + ALIGNED) != 0, n // BLOCK * BLOCK, 0)  # vectors of 16 bytes, no mask

    t = tl.load(steps + index).to(tl.float64) + 1.0
    lr = _number(hyper, 0, lr)
    beta1 = _number(hyper, 1, beta1)
    beta2 = _number(hyper, 2, beta2)
    beta3 = _number(hyper, 3, beta3)
    correction1 = _correction(beta1, t)
    correction2 = _correction(beta2, t)
    weight_decay = _number(hyper, 5, weight_decay)
    decay = (lr * weight_decay).to(FLOAT)
    decays = weight_decay != 0.0
    rate = (lr if PAPER else lr * tl.sqrt(correction2) / correction1).to(FLOAT)
    correction1 = correction1.to(FLOAT)
    correction2 = correction2.to(FLOAT)
    weight1 = (1.0 - beta1).to(FLOAT)
    weight2 = (1.0 - beta2).to(FLOAT)
    weight3 = (1.0 - beta3).to(FLOAT)
    beta1 = beta1.to(FLOAT)
    beta2 = beta2.to(FLOAT)
    beta3 = beta3.to(FLOAT)
    eps = _number(hyper, 4, eps).to(FLOAT)
    if grad_scale is not None:
        scale = tl.load(grad_scale).to(FLOAT)
    if SEEDED:
        key = _hash(t.to(tl.int64).to(tl.uint32)) ^ index.to(tl.uint32)
        key = _hash(_hash(key) ^ seed.to(tl.uint32)) ^ _hash((o_start >> 32).to(tl.uint32))
    if stats is not None:
        runs = tl.cdiv(numel, RUN)
        every = tl.maximum(runs // 8, 1)
        phase = t.to(tl.int64) % every
        clipped = tl.zeros((ROWS, ROW), tl.int32)
        bins_eta = tl.zeros((BINS,), tl.int32)
        bins_s = tl.zeros((BINS,), tl.int32)

    p_param = _pointer(p_row, 0, P, o_start)
    p_grad = _pointer(p_row, 1, G, o_start)
    p_m = _pointer(p_row, 2, M, o_start)
    p_v = _pointer(p_row, 3, V, o_start)
    p_s = _pointer(p_row, 4, S, o_start)
    p_scale_m = _pointer(p_row, 5, tl.int16, o_start // ROW)
    p_scale_v = _pointer(p_row, 6, tl.int16, o_start // ROW)
    p_scale_s = _pointer(p_row, 7, tl.int16, o_start // ROW)

    # Loops are `while`: interpreted by Triton 3.6, a `range` that ends at a tensor needs NumPy < 2.4.
    row = tl.arange(0, ROWS)[:, None] * ROW
    lane = row + tl.arange(0, ROW)[None, :]
    for MASKED in tl.static_range(2):
        o_block = n_fast if MASKED else tl.full((), 0, tl.int32)
        while o_block < (n if MASKED else n_fast):
            o = o_block + lane
            o_row = o_block + row
            mask = o < n if MASKED else None
            mask_row = o_row < n if MASKED else None
            p = _load(p_param, p_param, o, o_row, mask, mask_row, False, FLOAT)
            g = _load(p_grad, p_grad, o, o_row, mask, mask_row, False, FLOAT)
            m = _load(p_m, p_scale_m, o, o_row, mask, mask_row, True, FLOAT)
            v = _load(p_v, p_scale_v, o, o_row, mask, mask_row, False, FLOAT)
            s = _load(p_s, p_scale_s, o, o_row, mask, mask_row, False, FLOAT)

            if grad_scale is not None:
                g = _div(g, scale)
            if MAXIMIZE:
                g = -g
            m = m * beta1 + g * weight1
            v = v * beta2 + weight2 * g * g
            eta = _div(rate, _sqrt(_div(v, correction2) if PAPER else v) + eps)
            s_next = s * beta3 + eta * weight3
            s = tl.where(v != 0, s_next, s) if SKIP else s_next
            shrunk = p * tl.where(s >= eta, 1.0, _div(s, eta)) if BOUNDED else p
            p = tl.where(decays, p - shrunk * decay, p)
            p -= tl.minimum(eta, s, propagate_nan=tl.PropagateNan.ALL) * (_div(m, correction1) if PAPER else m)

            if SEEDED:
                r = _hash((o_start.to(tl.uint32) + o.to(tl.uint32)) * 0x9E3779B9 + key)
                r2 = _hash(r ^ 0x85EBCA6B)
            _store(p_v, p_scale_v, o, o_row, mask, mask_row, v, r & 0xFFFF if SEEDED else None, "v")
            _store(p_s, p_scale_s, o, o_row, mask, mask_row, s, r >> 16 if SEEDED else None, "s")
            _store(p_m, p_scale_m, o, o_row, mask, mask_row, m, r2 & 0xFFFF if SEEDED else None, "m")
            _store(p_param, p_param, o, o_row, mask, mask_row, p, r2 >> 16 if SEEDED else None, "p")

            if stats is not None:
                clipped += ((s < eta) & (o < n)).to(tl.int32)
                run = (o_start + o_block) // RUN % every
                if (phase - run + every) % every < BLOCK // RUN:
                    taken = (((o_start + o_row) // RUN % every) == phase) & (o < n)
                    taken = tl.reshape(taken, (BLOCK,))
                    bins_eta += tl.histogram(tl.reshape(_bin(eta), (BLOCK,)), BINS, mask=taken)
                    bins_s += tl.histogram(tl.reshape(_bin(s), (BLOCK,)), BINS, mask=taken)
            o_block += BLOCK

    if stats is not None:
        p_stats = stats + index * (2 + 2 * BINS)
        o_bin = tl.arange(0, BINS)
        tl.atomic_add(p_stats, n.to(tl.int64), sem="relaxed")
        tl.atomic_add(p_stats + 1, tl.sum(clipped).to(tl.int64), sem="relaxed")
        tl.atomic_add(p_stats + 2 + o_bin, bins_eta.to(tl.int64), mask=bins_eta > 0, sem="relaxed")
        tl.atomic_add(p_stats + 2 + BINS + o_bin, bins_s.to(tl.int64), mask=bins_s > 0, sem="relaxed")

    # Every program has read its step count when the last one comes here.
    tl.debug_barrier()
    p_ticket = p_owners + tl.num_programs(0)
    if tl.atomic_add(p_ticket, 1) == tl.num_programs(0) - 1:
        tl.store(p_ticket, 0)
        o_tensor = tl.full((), 0, tl.int64)
        while o_tensor < tensors:
            tensor = o_tensor + tl.arange(0, BLOCK)
            p_step = steps + tl.load(table + tensor * FIELDS + INDEX, mask=tensor < tensors, other=0)
            count = tl.load(p_step, mask=tensor < tensors, other=0)
            tl.store(p_step, tl.where(live, count + 1, count), mask=tensor < tensors)
            o_tensor += BLOCK


# --- the launch -----------------------------------------------------------------------------------------------------

_TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.uint16,  # its bits
    torch.uint8: tl.uint8,
}
_RANDOM = {torch.bfloat16, torch.uint8}
_MOST = 1 << 16  # tensors in all plans that are remembered


class _Launch(NamedTuple):
    table: Tensor
    tensors: int
    programs: int
    dtypes: tuple[torch.dtype, ...]
    rounded: bool  # with random numbers


class _Plan(NamedTuple):
    launches: list[_Launch]
    strided: list[tuple[int, list[int]]]  # tensors that have gaps, or a gradient or a state in another order


_plans: dict[tuple[Any, ...], _Plan] = {}
_captured: list[tuple[Tensor, Tensor]] = []  # a CUDA graph copies from the first to the second at every replay
_spare: dict[int, list[Tensor]] = {}  # by size: pinned memory, which cannot be had everywhere while one is captured
_GRAPHS, _SIZES = 2, 64  # captures of the same tensors that find some, and sizes that are kept


def _plan(lists: Sequence[Sequence[Tensor]], scales: Sequence[Tensor], index: Sequence[int]) -> _Plan:
    """What to launch: remembered if all addresses, dtypes, sizes and strides were met before on this stream.

    A CUDA graph gets a table that nothing else uses, as it is not filled before the graph is replayed.
    """
    tensors = list(chain(*lists))
    pointers = list(map(Tensor.data_ptr, tensors))
    scale_pointers = list(map(Tensor.data_ptr, scales))
    dtypes = list(map(attrgetter("dtype"), tensors))
    sizes = list(map(Tensor.numel, lists[0]))
    contiguous = all(map(Tensor.is_contiguous, tensors))
    layouts = [] if contiguous else [(x.shape, x.stride()) for x in tensors]
    device = tensors[0].device
    stream = torch.cuda.current_stream().cuda_stream if device.type == "cuda" else 0
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    key = (len(index), stream, *index, *sizes, *pointers, *scale_pointers, *dtypes, *layouts)
    if not capturing and (plan := _plans.get(key)):
        return plan

    if list(map(Tensor.numel, tensors)) != sizes * 5 or {x.device for x in tensors} != {device}:
        raise ValueError("gradients and states must have the sizes and the device of their parameters")
    strided = []
    for k, group in enumerate(() if contiguous else zip(*lists, strict=True)):
        order = _reference.memory_order(group[0])
        if not all(x.permute(order).is_contiguous() for x in group):
            strided.append((k, order))
    launches = [] if strided else _launches(pointers, scale_pointers, dtypes, sizes, index, device, capturing)
    plan = _Plan(launches, strided)
    if not capturing:
        _plans[key] = plan
        while len(_plans) > 1 and sum(n for n, *_ in _plans) > _MOST:
            del _plans[next(iter(_plans))]
    return plan


def _launches(
    pointers: list[int],
    scale_pointers: list[int],
    dtypes: list[torch.dtype],
    sizes: list[int],
    index: Sequence[int],
    device: torch.device,
    capturing: bool,
) -> list[_Launch]:
    n = len(index)
    groups: dict[tuple[torch.dtype, ...], list[int]] = {}
    for k in range(n):
        groups.setdefault(tuple(dtypes[k::n]), []).append(k)
    words = array("q")
    starts, programs = [], []
    for members in groups.values():
        starts.append(len(words))
        owners = array("q")
        for place, k in enumerate(members):
            words.extend((*pointers[k::n], *(scale_pointers[3 * k : 3 * k + 3] or (0, 0, 0))))
            words.extend((sizes[k], len(owners), index[k], reduce(or_, pointers[k::n]) % 16 == 0))
            owners.extend(repeat(place, max(1, -(-sizes[k] // CHUNK.value))))
        words.extend(owners)
        words.append(0)
        programs.append(len(owners))

    host = torch.frombuffer(words, dtype=torch.int64)
    if device.type == "cuda":
        spare = _spare.setdefault(len(words), [])
        host = (spare.pop() if capturing and spare else torch.empty_like(host, pin_memory=True)).copy_(host)
        while not capturing and len(spare) < _GRAPHS:
            spare.append(torch.empty_like(host, pin_memory=True))
        while len(_spare) > _SIZES:
            del _spare[next(iter(_spare))]
    table = host.to(device, non_blocking=True)
    if capturing:
        _captured.append((host, table))
    return [
        _Launch(table[start:], len(members), count, types, not _RANDOM.isdisjoint((types[0], *types[2:])))
        for start, count, (types, members) in zip(starts, programs, groups.items(), strict=True)
    ]


def _numbers(hyper: Tensor) -> tuple[Any, ...]:
    """The pointer, or the bits of each number, which no float argument of Triton's would carry in double."""
    return (None, *hyper.view(torch.int64).tolist()) if hyper.device.type == "cpu" else (hyper, 0, 0, 0, 0, 0, 0)


def step_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    exp_avg_lrs: list[Tensor],
    scales: list[Tensor],
    steps: Tensor,
    index: list[int],
    hyper: Tensor,
    *,
    paper: bool,
    bounded_decay: bool,
    skip_unseen: bool,
    maximize: bool,
    seed: int | None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    stats: Tensor | None = None,
) -> None:
    """One AdaMod step of a list of real tensors, with no wait for the device."""
    if not params:
        return
    given: tuple[list[Tensor], ...] = (params, grads, exp_avgs, exp_avg_sqs, exp_avg_lrs)
    device = params[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        plan = _plan(given, scales, index)
        lists, strided = given, plan.strided
        if strided:
            # Copies, as this is rare: autograd lays a gradient out like its parameter.
            lists = tuple(list(tensors) for tensors in given)
            for k, order in strided:
                for tensors in lists:
                    tensors[k] = tensors[k].permute(order).contiguous()
            plan = _plan(lists, scales, index)
        grad_scale, found_inf = (x if x is None else x.to(device, non_blocking=True) for x in (grad_scale, found_inf))
        numbers = _numbers(hyper)
        for launch in plan.launches:
            _kernel[(launch.programs,)](
                launch.table,
                launch.tensors,
                steps,
                *numbers,
                (seed or 0) & 0xFFFFFFFF,
                grad_scale,
                found_inf,
                stats,
                *map(_TYPES.__getitem__, launch.dtypes),
                PAPER=paper,
                BOUNDED=bounded_decay,
                SKIP=skip_unseen,
                MAXIMIZE=maximize,
                SEEDED=seed is not None and launch.rounded,
                num_warps=WARPS,
                enable_fp_fusion=False,  # the same bits as interpreted
            )
        for k, order in strided:
            for before, after in zip(given, lists, strict=True):
                if before is not grads and before[k].data_ptr() != after[k].data_ptr():
                    before[k].permute(order).copy_(after[k])
