"""The operators in Triton: a launch for all tensors of the same dtypes, so three for an ascent, and no wait.

Here are the perturbations; `_triton_sums` has what their strengths come from, `_triton_steps` what follows them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from ._triton_base import (
    BLOCK,
    KIND,
    OPTIONS,
    address,
    bits,
    draws,
    first_unit,
    narrowed,
    number,
    of_units,
    on,
    own,
    plan,
    read,
    sign,
    weight,
    wide,
    without_mask,
    write,
)
from ._triton_steps import mix_, restore_, restore_adam_, restore_sgd_
from ._triton_sums import inner_products, segment_norms, strengths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = [
    "ascend_",
    "inner_products",
    "mix_",
    "perturb_",
    "project_",
    "restore_",
    "restore_adam_",
    "restore_sgd_",
    "segment_norms",
    "strengths",
]


@triton.jit(do_not_specialize=range(6))
def _perturb_kernel(  # type: ignore[no-untyped-def]
    table,
    tensors: tl.int64,
    owners: tl.int64,
    multiplier,
    seed,
    eta: tl.int64,
    P: tl.constexpr,
    B: tl.constexpr,
    G: tl.constexpr,
    NORM: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ROWED: tl.constexpr,
):
    FLOAT: tl.constexpr = tl.float64 if P == tl.float64 else tl.float32
    HALF: tl.constexpr = P == tl.uint16 or P == tl.float16
    p_row, index, o_start, n = own(table, owners)
    kind = tl.load(p_row + KIND)
    w_address = address(table, 0, tensors, index)
    b_address = address(table, 1, tensors, index)
    g_address = address(table, 2, tensors, index)
    n_fast = without_mask(n, w_address | b_address | g_address, o_start)
    p_w = w_address.to(tl.pointer_type(P)) + o_start
    p_backup = b_address.to(tl.pointer_type(B)) + o_start
    p_g = g_address.to(tl.pointer_type(G)) + o_start
    unit, left, columns = first_unit(p_row, o_start)
    c = tl.load(multiplier + unit).to(FLOAT)
    eta = number(eta).to(FLOAT)
    if HALF:
        seed = tl.load(seed)

    for MASKED in tl.static_range(2):
        o_block = n_fast if MASKED else tl.full((), 0, tl.int32)
        while o_block < (n if MASKED else n_fast):
            o = o_block + tl.arange(0, BLOCK)
            mask = o < n if MASKED else None
            factor = of_units(multiplier + unit, left, columns, o, mask).to(FLOAT) if ROWED else c
            kept = read(p_w, o, mask)
            write(p_backup, o, mask, kept, "evict_first")
            w = wide(kept, FLOAT)
            g = wide(read(p_g, o, mask), FLOAT)
            if NORM == 0:
                g = sign(g)
            if WEIGHTED:
                t = weight(w, kind, eta)
                g *= t * t if NORM == 2 else t
            moved = w + factor * g
            moved = narrowed(moved, P, draws(seed, index, o_start + o_block) if HALF else None)
            write(p_w, o, mask, tl.where(factor == 0, kept, moved))
            o_block += BLOCK


def perturb_(
    params: Sequence[Tensor],
    backup: Sequence[Tensor],
    grads: Sequence[Tensor],
    multiplier: Tensor,
    rows: Sequence[int],
    weighted: Sequence[int],
    eta: float,
    norm: int,
    seed: Tensor,
) -> None:
    """w += multiplier T^2 g, or multiplier T sign(g); w is kept in `backup`. A unit of multiplier 0 keeps its bits."""
    if not params:
        return
    with on(params[0].device):
        made = plan((params, backup, grads), rows, weighted)
        for launch in made.launches:
            _perturb_kernel[(launch.programs,)](
                made.table,
                made.tensors,
                launch.owners,
                multiplier,
                seed,
                bits(eta),
                *launch.types,
                NORM=norm,
                WEIGHTED=launch.weighted,
                ROWED=launch.rowed,
                **OPTIONS,
            )


@triton.jit(do_not_specialize=range(6))
def _ascend_kernel(  # type: ignore[no-untyped-def]
    table,
    tensors: tl.int64,
    owners: tl.int64,
    multiplier,
    radius,
    eta: tl.int64,
    E: tl.constexpr,
    B: tl.constexpr,
    G: tl.constexpr,
    NORM: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ROWED: tl.constexpr,
):
    p_row, index, o_start, n = own(table, owners)
    kind = tl.load(p_row + KIND)
    e_address = address(table, 0, tensors, index)
    b_address = address(table, 1, tensors, index)
    g_address = address(table, 2, tensors, index)
    n_fast = without_mask(n, e_address | b_address | g_address, o_start)
    p_e = e_address.to(tl.pointer_type(E)) + o_start
    p_backup = b_address.to(tl.pointer_type(B)) + o_start
    p_g = g_address.to(tl.pointer_type(G)) + o_start
    unit, left, columns = first_unit(p_row, o_start)
    c = tl.load(multiplier + unit).to(E)
    limit = tl.load(radius + unit).to(E)
    eta = number(eta).to(E)

    for MASKED in tl.static_range(2):
        o_block = n_fast if MASKED else tl.full((), 0, tl.int32)
        while o_block < (n if MASKED else n_fast):
            o = o_block + tl.arange(0, BLOCK)
            mask = o < n if MASKED else None
            factor = of_units(multiplier + unit, left, columns, o, mask).to(E) if ROWED else c
            bound = of_units(radius + unit, left, columns, o, mask).to(E) if ROWED else limit
            e = read(p_e, o, mask)
            g = wide(read(p_g, o, mask), E)
            if NORM == 0:
                g = sign(g)
            if WEIGHTED:
                t = weight(wide(read(p_backup, o, mask), E), kind, eta)
                g *= t * t if NORM == 2 else t
                bound *= t
            moved = e + factor * g
            if NORM == 0:
                moved = tl.minimum(tl.maximum(moved, -bound), bound)
            write(p_e, o, mask, tl.where(factor == 0, e, moved))
            o_block += BLOCK


def ascend_(
    offset: Sequence[Tensor],
    backup: Sequence[Tensor],
    grads: Sequence[Tensor],
    multiplier: Tensor,
    radius: Tensor,
    rows: Sequence[int],
    weighted: Sequence[int],
    eta: float,
    norm: int,
) -> None:
    """offset += multiplier T^2 g, or multiplier T sign(g), which stays in [-radius T, radius T]."""
    if not offset:
        return
    with on(offset[0].device):
        made = plan((offset, backup, grads), rows, weighted)
        for launch in made.launches:
            _ascend_kernel[(launch.programs,)](
                made.table,
                made.tensors,
                launch.owners,
                multiplier,
                radius,
                bits(eta),
                *launch.types,
                NORM=norm,
                WEIGHTED=launch.weighted,
                ROWED=launch.rowed,
                **OPTIONS,
            )


@triton.jit(do_not_specialize=range(5))
def _project_kernel(  # type: ignore[no-untyped-def]
    table,
    tensors: tl.int64,
    owners: tl.int64,
    scale,
    seed,
    P: tl.constexpr,
    B: tl.constexpr,
    E: tl.constexpr,
    ROWED: tl.constexpr,
):
    HALF: tl.constexpr = P == tl.uint16 or P == tl.float16
    p_row, index, o_start, n = own(table, owners)
    w_address = address(table, 0, tensors, index)
    b_address = address(table, 1, tensors, index)
    e_address = address(table, 2, tensors, index)
    n_fast = without_mask(n, w_address | b_address | e_address, o_start)
    p_w = w_address.to(tl.pointer_type(P)) + o_start
    p_backup = b_address.to(tl.pointer_type(B)) + o_start
    p_e = e_address.to(tl.pointer_type(E)) + o_start
    unit, left, columns = first_unit(p_row, o_start)
    c = tl.load(scale + unit).to(E)
    if HALF:
        seed = tl.load(seed)

    for MASKED in tl.static_range(2):
        o_block = n_fast if MASKED else tl.full((), 0, tl.int32)
        while o_block < (n if MASKED else n_fast):
            o = o_block + tl.arange(0, BLOCK)
            mask = o < n if MASKED else None
            factor = of_units(scale + unit, left, columns, o, mask).to(E) if ROWED else c
            e = read(p_e, o, mask) * factor
            write(p_e, o, mask, e)
            kept = read(p_backup, o, mask)
            moved = narrowed(wide(kept, E) + e, P, draws(seed, index, o_start + o_block) if HALF else None)
            write(p_w, o, mask, tl.where(e == 0, kept, moved))
            o_block += BLOCK


def project_(
    params: Sequence[Tensor],
    backup: Sequence[Tensor],
    offset: Sequence[Tensor],
    scale: Tensor,
    rows: Sequence[int],
    seed: Tensor,
) -> None:
    """offset *= scale; w = backup + offset. Where the offset is 0, w is the backup bit for bit."""
    if not params:
        return
    with on(params[0].device):
        made = plan((params, backup, offset), rows)
        for launch in made.launches:
            _project_kernel[(launch.programs,)](
                made.table,
                made.tensors,
                launch.owners,
                scale,
                seed,
                *launch.types,
                ROWED=launch.rowed,
                **OPTIONS,
            )
