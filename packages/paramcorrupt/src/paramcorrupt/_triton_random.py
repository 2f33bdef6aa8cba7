"""Random numbers in Triton: of each element those that the reference draws, whatever the device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _reference
from ._triton_base import BLOCK, OPTIONS, bits, narrowed, number, on, own, plan, pointer, wide

if TYPE_CHECKING:
    from collections.abc import Sequence

GAMMA, NORMAL, SIGNS = (tl.constexpr(law) for law in range(3))


@triton.jit
def _unit(x):  # type: ignore[no-untyped-def]
    """A 32-bit word as a number in (0, 1)."""
    return (x.to(tl.float64) + 0.5) * 2.0**-32


@triton.jit
def _normal(x, y):  # type: ignore[no-untyped-def]
    return tl.sqrt(-2.0 * tl.log(_unit(x))) * tl.cos(6.283185307179586 * _unit(y))


@triton.jit
def _words(seed, counter, stream):  # type: ignore[no-untyped-def]
    low = counter.to(tl.uint32)
    zero = tl.zeros_like(low)
    return tl.philox(seed, low, (counter >> 32).to(tl.uint32), zero + stream, zero)


@triton.jit
def _gamma(seed, counter, shape):  # type: ignore[no-untyped-def]
    """Gamma numbers of a shape of 1 or more, by Marsaglia and Tsang: attempt k reads stream k."""
    d = shape - 1.0 / 3.0
    c = 1.0 / tl.sqrt(9.0 * d)
    out = tl.zeros((BLOCK,), tl.float64)
    missing = tl.full((BLOCK,), 1, tl.int32)
    attempt = tl.full((), 1, tl.uint32)
    while tl.sum(missing) > 0:
        first, second, third, _ = _words(seed, counter, attempt)
        x = _normal(first, second)
        u = _unit(third)
        v = 1.0 + c * x
        v = v * v * v
        positive = tl.where(v > 1e-300, v, 1e-300)
        taken = (missing == 1) & (v > 0) & (tl.log(u) < 0.5 * x * x + d - d * v + d * tl.log(positive))
        out = tl.where(taken, d * v, out)
        missing = tl.where(taken, 0, missing)
        attempt += 1
    return out


@triton.jit(do_not_specialize=range(8))
def _fill_kernel(  # type: ignore[no-untyped-def]
    table,
    fields: tl.int64,
    tensors: tl.int64,
    where: tl.int64,
    starts,
    sizes,
    seed: tl.int64,
    p: tl.int64,
    A: tl.constexpr,
    LAW: tl.constexpr,
):
    program, index, o_start, n = own(table, fields, tensors, where)
    p_a = pointer(table, 0, tensors, index, o_start, A)
    start = tl.load(starts + index) + o_start
    p = number(p)
    total = tl.zeros((BLOCK,), tl.float64)
    o_block = tl.full((), 0, tl.int32)
    while o_block < n:
        o = o_block + tl.arange(0, BLOCK)
        counter = start + o
        first, second, _, _ = _words(seed, counter, tl.zeros((), tl.uint32))
        if LAW == NORMAL:
            z = _normal(first, second) / tl.sqrt(tl.full((), 2.0, tl.float64))
        else:
            z = 1.0 - 2.0 * (first & 1).to(tl.float64)
            if LAW == GAMMA:
                size = _gamma(seed, counter, 1.0 / p + 1.0)
                z *= tl.exp(tl.log(size) / p) * _unit(second)
        stored = narrowed(z, A)
        tl.store(p_a + o, stored, mask=o < n)
        magnitude = tl.where(o < n, tl.abs(wide(stored, tl.float64)), 0.0)
        if LAW == SIGNS:
            total = tl.maximum(total, magnitude)
        elif LAW == NORMAL:
            total += magnitude * magnitude
        else:
            total += tl.where(magnitude == 0, 0.0, tl.exp(p * tl.log(tl.where(magnitude == 0, 1.0, magnitude))))
        o_block += BLOCK
    tl.store(sizes + program, tl.max(total) if LAW == SIGNS else tl.sum(total))


def random_fill_(a: Sequence[Tensor], seed: int, offset: int, p: float) -> Tensor:
    """Fill with independent numbers of density ~ exp(-|z|^p), or signs for p = inf; the p-norm of all."""
    if not a:
        return _reference.random_fill_(a, seed, offset, p)
    device = a[0].device
    starts = [offset]
    for x in a:
        starts.append(starts[-1] + x.numel())
    with on(device):
        made = plan(a)
        sizes = torch.zeros(max(made.programs, 1), dtype=torch.float64, device=device)
        begins = torch.tensor(starts, device=device)
        for launch in made.launches:
            _fill_kernel[(launch.programs,)](
                made.table,
                made.fields,
                made.tensors,
                launch.where,
                begins,
                sizes,
                seed,
                bits(p),
                *launch.types,
                LAW=SIGNS if p == math.inf else NORMAL if p == 2 else GAMMA,
                **OPTIONS,
            )
        return sizes.amax() if p == math.inf else sizes.sum() ** (1 / p)
