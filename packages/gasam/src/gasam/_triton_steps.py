"""The operators in Triton that come after a perturbation: restoring, with the base step if asked, and mixing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._triton_base import (
    BLOCK,
    FIRST,
    OPTIONS,
    PIECES,
    TYPES,
    address,
    bits,
    div,
    last_of,
    narrowed,
    number,
    on,
    own,
    plan,
    read,
    root,
    wide,
    without_mask,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._reference import Number


@triton.jit(do_not_specialize=range(3))
def _copy_kernel(table, tensors: tl.int64, owners: tl.int64, A: tl.constexpr, B: tl.constexpr):  # type: ignore[no-untyped-def]
    _, index, o_start, n = own(table, owners)
    a_address = address(table, 0, tensors, index)
    b_address = address(table, 1, tensors, index)
    n_fast = without_mask(n, a_address | b_address, o_start)
    p_a = a_address.to(tl.pointer_type(A)) + o_start
    p_b = b_address.to(tl.pointer_type(B)) + o_start
    for MASKED in tl.static_range(2):
        o_block = n_fast if MASKED else tl.full((), 0, tl.int32)
        while o_block < (n if MASKED else n_fast):
            o = o_block + tl.arange(0, BLOCK)
            mask = o < n if MASKED else None
            write(p_a, o, mask, read(p_b, o, mask, "evict_first"))
            o_block += BLOCK


def restore_(params: Sequence[Tensor], backup: Sequence[Tensor]) -> None:
    if not params:
        return
    with on(params[0].device):
        made = plan((params, backup))
        for launch in made.launches:
            _copy_kernel[(launch.programs,)](made.table, made.tensors, launch.owners, *launch.types, **OPTIONS)


# --- base steps -----------------------------------------------------------------------------------------------------


@triton.jit
def _gradient(g, w, decay, loss, SCALED: tl.constexpr, DECAYS: tl.constexpr, MAXIMIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    if SCALED:
        g = div(g, loss)
    if MAXIMIZE:
        g = -g
    return g + decay * w if DECAYS else g


@triton.jit(do_not_specialize=range(10))
def _sgd_kernel(  # type: ignore[no-untyped-def]
    table,
    tensors: tl.int64,
    owners: tl.int64,
    lr: tl.int64,
    mu: tl.int64,
    dampening: tl.int64,
    decay: tl.int64,
    p_lr,
    scale,
    found_inf,
    P: tl.constexpr,
    B: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    DECAYS: tl.constexpr,
    NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    FIRST_STEP: tl.constexpr,
):
    FLOAT: tl.constexpr = tl.float64 if P == tl.float64 else tl.float32
    _, index, o_start, n = own(table, owners)
    w_address = address(table, 0, tensors, index)
    b_address = address(table, 1, tensors, index)
    g_address = address(table, 2, tensors, index)
    m_address = address(table, 3, tensors, index) if M is not None else w_address
    n_fast = without_mask(n, w_address | b_address | g_address | m_address, o_start)
    p_w = w_address.to(tl.pointer_type(P)) + o_start
    p_backup = b_address.to(tl.pointer_type(B)) + o_start
    p_g = g_address.to(tl.pointer_type(G)) + o_start
    if M is not None:
        p_m = m_address.to(tl.pointer_type(M)) + o_start
    rate = (number(lr) if p_lr is None else tl.load(p_lr).to(tl.float64)).to(FLOAT)
    weight = (1.0 - number(dampening)).to(FLOAT)
    mu = number(mu).to(FLOAT)
    decay = number(decay).to(FLOAT)
    loss = tl.full((), 1.0, FLOAT)
    if scale is not None:
        loss = tl.load(scale).to(FLOAT)
    live = found_inf is None
    if found_inf is not None:
        live = tl.load(found_inf) == 0

    for MASKED in tl.static_range(2):
        o_block = n_fast if MASKED else tl.full((), 0, tl.int32)
        while o_block < (n if MASKED else n_fast):
            o = o_block + tl.arange(0, BLOCK)
            mask = o < n if MASKED else None
            kept = read(p_backup, o, mask, "evict_first")
            w = wide(kept, FLOAT)
            g = _gradient(wide(read(p_g, o, mask), FLOAT), w, decay, loss, scale is not None, DECAYS, MAXIMIZE)
            if M is not None:
                old = read(p_m, o, mask)
                m = g if FIRST_STEP else mu * wide(old, FLOAT) + weight * g
                write(p_m, o, mask, tl.where(live, narrowed(m, M, None), old))
                g = g + mu * m if NESTEROV else m
            write(p_w, o, mask, tl.where(live, narrowed(w - rate * g, P, None), kept))
            o_block += BLOCK


def _lr(lr: Number) -> tuple[int, Tensor | None]:
    """The bits of the rate, or where it is on the device."""
    if isinstance(lr, Tensor) and lr.device.type != "cpu":
        return 0, lr
    return bits(float(lr)), None


def restore_sgd_(
    params: Sequence[Tensor],
    backup: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum: Sequence[Tensor],
    lr: Number,
    mu: float,
    dampening: float,
    wd: float,
    nesterov: bool,
    maximize: bool,
    first: bool,
    scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """The step of torch.optim.SGD from the kept weights; after `found_inf` no more than the kept weights."""
    if not params:
        return
    number_lr, p_lr = _lr(lr)
    lists = (params, backup, grads, momentum) if momentum else (params, backup, grads)
    with on(params[0].device):
        made = plan(lists)
        for launch in made.launches:
            _sgd_kernel[(launch.programs,)](
                made.table,
                made.tensors,
                launch.owners,
                number_lr,
                bits(mu),
                bits(dampening),
                bits(wd),
                p_lr,
                scale,
                found_inf,
                *launch.types,
                *(() if momentum else (None,)),
                DECAYS=wd != 0,
                NESTEROV=nesterov,
                MAXIMIZE=maximize,
                FIRST_STEP=first,
                **OPTIONS,
            )


@triton.jit
def _correction(beta, t):  # type: ignore[no-untyped-def]
    return 1.0 - tl.exp(t * tl.log(tl.maximum(beta, 1e-300)))


@triton.jit(do_not_specialize=range(12))
def _adam_kernel(  # type: ignore[no-untyped-def]
    table,
    tensors: tl.int64,
    owners: tl.int64,
    lr: tl.int64,
    beta1: tl.int64,
    beta2: tl.int64,
    eps: tl.int64,
    decay: tl.int64,
    p_lr,
    counts,
    scale,
    found_inf,
    P: tl.constexpr,
    B: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    V: tl.constexpr,
    X: tl.constexpr,
    STEP: tl.constexpr,
    DECAYS: tl.constexpr,
    DECOUPLED: tl.constexpr,
    MAXIMIZE: tl.constexpr,
):
    FLOAT: tl.constexpr = tl.float64 if P == tl.float64 else tl.float32
    p_row, index, o_start, n = own(table, owners)
    w_address = address(table, 0, tensors, index)
    b_address = address(table, 1, tensors, index)
    g_address = address(table, 2, tensors, index)
    m_address = address(table, 3, tensors, index)
    v_address = address(table, 4, tensors, index)
    x_address = address(table, 5, tensors, index) if X is not None else w_address
    together = w_address | b_address | g_address | m_address | v_address | x_address
    n_fast = without_mask(n, together, o_start)
    p_w = w_address.to(tl.pointer_type(P)) + o_start
    p_backup = b_address.to(tl.pointer_type(B)) + o_start
    p_g = g_address.to(tl.pointer_type(G)) + o_start
    p_m = m_address.to(tl.pointer_type(M)) + o_start
    p_v = v_address.to(tl.pointer_type(V)) + o_start
    if X is not None:
        p_x = x_address.to(tl.pointer_type(X)) + o_start
    if counts is None:
        p_step = address(table, 5 if X is None else 6, tensors, index).to(tl.pointer_type(STEP))
    else:
        p_step = counts + index
    loss = tl.full((), 1.0, FLOAT)
    if scale is not None:
        loss = tl.load(scale).to(FLOAT)
    live = found_inf is None
    if found_inf is not None:
        live = tl.load(found_inf) == 0

    t = tl.load(p_step).to(tl.float64) + 1.0
    rate = number(lr) if p_lr is None else tl.load(p_lr).to(tl.float64)
    beta1 = number(beta1)
    beta2 = number(beta2)
    decay = number(decay)
    shrink = (1.0 - rate * decay).to(FLOAT)
    step_size = (rate / _correction(beta1, t)).to(FLOAT)
    correction = tl.sqrt(_correction(beta2, t)).to(FLOAT)
    weight1 = (1.0 - beta1).to(FLOAT)
    weight2 = (1.0 - beta2).to(FLOAT)
    beta2 = beta2.to(FLOAT)
    decay = decay.to(FLOAT)
    eps = number(eps).to(FLOAT)

    for MASKED in tl.static_range(2):
        o_block = n_fast if MASKED else tl.full((), 0, tl.int32)
        while o_block < (n if MASKED else n_fast):
            o = o_block + tl.arange(0, BLOCK)
            mask = o < n if MASKED else None
            kept = read(p_backup, o, mask, "evict_first")
            w = wide(kept, FLOAT)
            g = _gradient(
                wide(read(p_g, o, mask), FLOAT), w, decay, loss, scale is not None, DECAYS and not DECOUPLED, MAXIMIZE
            )
            if DECOUPLED:
                w *= shrink
            old_m = read(p_m, o, mask)
            old_v = read(p_v, o, mask)
            m = wide(old_m, FLOAT)
            m += weight1 * (g - m)
            v = beta2 * wide(old_v, FLOAT) + weight2 * g * g
            write(p_m, o, mask, tl.where(live, narrowed(m, M, None), old_m))
            write(p_v, o, mask, tl.where(live, narrowed(v, V, None), old_v))
            if X is not None:
                old_x = read(p_x, o, mask)
                v = tl.maximum(wide(old_x, FLOAT), v, propagate_nan=tl.PropagateNan.ALL)
                write(p_x, o, mask, tl.where(live, narrowed(v, X, None), old_x))
            w -= step_size * div(m, div(root(v), correction) + eps)
            write(p_w, o, mask, tl.where(live, narrowed(w, P, None), kept))
            o_block += BLOCK

    # Every program of the tensor has read its count when the last one comes here.
    if last_of(table + owners + tl.num_programs(0) + tl.load(p_row + FIRST), tl.load(p_row + PIECES)):
        count = tl.load(p_step)
        tl.store(p_step, tl.where(live, count + 1, count))


def restore_adam_(
    params: Sequence[Tensor],
    backup: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    max_exp_avg_sq: Sequence[Tensor],
    steps: Sequence[Tensor],
    lr: Number,
    beta1: float,
    beta2: float,
    eps: float,
    wd: float,
    decoupled: bool,
    amsgrad: bool,
    maximize: bool,
    scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """The step of torch.optim.Adam, or AdamW if decoupled, from the kept weights; see `restore_sgd_`.

    Steps that are counted on the CPU, as torch does by default, are counted there, and only `found_inf` is waited for.
    """
    if not params:
        return
    device = params[0].device
    number_lr, p_lr = _lr(lr)
    lists = [params, backup, grads, exp_avg, exp_avg_sq, *([max_exp_avg_sq] if amsgrad else [])]
    elsewhere = steps[0].device != device
    counts = None
    if elsewhere:
        counts = torch.stack(list(steps))
        counts = (counts.pin_memory() if device.type == "cuda" else counts).to(device, non_blocking=True)
    with on(device):
        made = plan(lists, scalars=() if elsewhere else steps)
        for launch in made.launches:
            _adam_kernel[(launch.programs,)](
                made.table,
                made.tensors,
                launch.owners,
                number_lr,
                bits(beta1),
                bits(beta2),
                bits(eps),
                bits(wd),
                p_lr,
                counts,
                scale,
                found_inf,
                *launch.types,
                *(() if amsgrad else (None,)),
                STEP=TYPES[steps[0].dtype],
                DECAYS=wd != 0,
                DECOUPLED=decoupled,
                MAXIMIZE=maximize,
                **OPTIONS,
            )
    if counts is not None and (found_inf is None or not found_inf.item()):
        torch._foreach_add_(list(steps), 1)


# --- gradients ------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=range(5))
def _mix_kernel(  # type: ignore[no-untyped-def]
    table, tensors: tl.int64, owners: tl.int64, c, found_inf, G: tl.constexpr, K: tl.constexpr
):
    FLOAT: tl.constexpr = tl.float64 if G == tl.float64 else tl.float32
    _, index, o_start, n = own(table, owners)
    g_address = address(table, 0, tensors, index)
    k_address = address(table, 1, tensors, index)
    n = tl.where(tl.load(found_inf) == 0, n, 0)
    n_fast = without_mask(n, g_address | k_address, o_start)
    p_g = g_address.to(tl.pointer_type(G)) + o_start
    p_kept = k_address.to(tl.pointer_type(K)) + o_start
    c0 = tl.load(c).to(FLOAT)
    c1 = tl.load(c + 1).to(FLOAT)
    for MASKED in tl.static_range(2):
        o_block = n_fast if MASKED else tl.full((), 0, tl.int32)
        while o_block < (n if MASKED else n_fast):
            o = o_block + tl.arange(0, BLOCK)
            mask = o < n if MASKED else None
            mixed = c0 * wide(read(p_kept, o, mask), FLOAT) + c1 * wide(read(p_g, o, mask), FLOAT)
            write(p_g, o, mask, narrowed(mixed, G, None))
            o_block += BLOCK


def mix_(grads: Sequence[Tensor], kept: Sequence[Tensor], c: Tensor, found_inf: Tensor) -> None:
    """grads = c[0] kept + c[1] grads, unless `found_inf`."""
    if not grads:
        return
    with on(grads[0].device):
        made = plan((grads, kept))
        for launch in made.launches:
            _mix_kernel[(launch.programs,)](
                made.table, made.tensors, launch.owners, c, found_inf, *launch.types, **OPTIONS
            )
