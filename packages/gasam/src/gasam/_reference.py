"""The operators in plain PyTorch: the definition that their kernels are tested against.

Tensors are dense, and are worked on in memory order; the notation is that of the package's README.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Number: TypeAlias = float | Tensor

TINY = 1e-12  # added to norms before they divide
DECAY = 0.99  # of the running reference
_MASK = 0xFFFFFFFF


def flat(x: Tensor) -> Tensor:
    """A view of a dense tensor's elements in memory order."""
    return x.detach().as_strided((x.numel(),), (1,))


def wide(x: Tensor) -> Tensor:
    """The elements in memory order, in the precision of the arithmetic: float32, or float64 for float64."""
    return flat(x).to(torch.promote_types(x.dtype, torch.float32))


def _units(values: Tensor, rows: Sequence[int], *lists: Sequence[Tensor]) -> Iterator[tuple[int, Tensor, list[Tensor]]]:
    """The number of each parameter, the values of its units in a column, its tensors as matrices of a unit per row."""
    first = 0
    for k, (n, *tensors) in enumerate(zip(rows, *lists, strict=True)):
        column = values[first : first + n, None].to(wide(tensors[0]).dtype)
        yield k, column, [wide(x).view(n, x.numel() // n) for x in tensors]
        first += n


def _weights(w: Tensor, weighted: int, eta: float) -> Number:
    """T, which a gradient is multiplied by."""
    if weighted == 0:
        return 1.0
    return w.abs() + eta if weighted > 0 else 1 / (w.abs() + eta)


def segment_norms(
    grads: Sequence[Tensor], params: Sequence[Tensor], rows: Sequence[int], weighted: Sequence[int], eta: float
) -> Tensor:
    """The sum of (T g)^2 of each unit. No product of two float32 numbers over- or underflows in float64."""
    sums = []
    for grad, w, n, kind in zip(grads, params, rows, weighted, strict=True):
        u = wide(grad) if kind == 0 else wide(grad) * _weights(wide(w), kind, eta)
        sums.append(u.double().square().view(n, u.numel() // n).sum(1))
    return torch.cat(sums) if sums else torch.empty(0, dtype=torch.float64)


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
    """What a unit's scaled gradient is multiplied by, the strength s of its segment, and whether to skip the step."""

    def of_segment(x: Tensor) -> Tensor:
        return torch.zeros_like(sums).index_add_(0, segment, x.to(sums.dtype))[segment]

    found_inf = ~sums.isfinite().all()
    s_loss = sums.new_ones(()) if scale is None else scale.reshape(()).to(sums.dtype)
    elements = of_segment(sizes)
    layerwise = sums.new_ones(()) if layer is None else of_segment(layer).sqrt()
    size = layerwise * of_segment(sums).sqrt()  # ||u_k||, times the scale of the loss
    total = sizes.sum().to(sums.dtype)
    r = size / (s_loss * elements.clamp(min=1).sqrt())
    mean = ((layerwise**2 * sums).sum() / total.clamp(min=1)).sqrt() / s_loss
    m, t = running.unbind()
    m, t = DECAY * m + (1 - DECAY) * mean, t + 1
    if reference == 2:
        running.copy_(torch.where(found_inf, running, torch.stack((m, t))))
    expected = (sums.new_ones(()), mean, m / (1 - DECAY**t))[reference]
    ratio = r / (expected + TINY)
    if reference:
        ratio = ratio.clamp(1 / clip, clip)
    s = rho * (elements / total) ** (a if norm == 2 else a - 0.5) * ratio**b
    s = torch.where(r == 0, 0.0, s)
    multiplier = s * layerwise if norm == 0 else s * layerwise**2 / (size + TINY * s_loss)
    return (
        torch.where(found_inf, 0.0, multiplier),
        torch.where(found_inf, math.nan, s),
        found_inf.to(torch.float32),
    )


# --- rounding -------------------------------------------------------------------------------------------------------


def _product(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """The low and the high 32 bits of the product of 32-bit numbers."""
    return (a * b) & _MASK, ((a >> 16) * b + ((a & 0xFFFF) * b >> 16)) >> 16


def draws(n: int, seed: Tensor, stream: int) -> Tensor:
    """16 random bits for each of n elements, by Philox4x32-10: each call of it serves 8 neighbours."""
    block = torch.arange(-(-n // 8), device=seed.device)
    x = [block & _MASK, block >> 32, torch.full_like(block, stream), torch.zeros_like(block)]
    key = [seed & _MASK, seed >> 32 & _MASK]
    for _ in range(10):
        low0, high0 = _product(x[0], 0xD2511F53)
        low1, high1 = _product(x[2], 0xCD9E8D57)
        x = [high1 ^ x[1] ^ key[0], low1, high0 ^ x[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B9) & _MASK, (key[1] + 0xBB67AE85) & _MASK]
    halves = [half for word in x for half in (word & 0xFFFF, word >> 16)]
    return torch.stack(halves, 1).flatten()[:n]


def round_stochastically(x: Tensor, dtype: torch.dtype, draw: Tensor) -> Tensor:
    """float32 `x` in bfloat16 or float16, rounded up with the probability of its remainder.

    What is not finite, or would not be, is rounded to nearest.
    """
    nearest = x.to(dtype)
    if dtype == torch.bfloat16:
        bits = (x.view(torch.int32).to(torch.int64) & _MASK) + draw
        rounded = (bits >> 16).to(torch.int16).view(torch.bfloat16)
    else:
        exponent = torch.frexp(x).exponent - 1
        quantum = torch.ldexp(torch.ones_like(x), exponent.clamp(min=-14) - 10)
        rounded = torch.floor(x / quantum + (draw >> 3).to(torch.float32) / 8192) * quantum
        rounded = torch.copysign(rounded, x).to(dtype)
    return torch.where(x.abs() <= torch.finfo(dtype).max, rounded, nearest)


def _store(out: Tensor, x: Tensor, keep: Tensor, seed: Tensor, stream: int) -> None:
    """Write float32 or float64 `x` into a parameter, but not where `keep` says so."""
    target = flat(out)
    x = x.flatten()
    if out.dtype in (torch.bfloat16, torch.float16):
        x = round_stochastically(x, out.dtype, draws(out.numel(), seed, stream))
    target.copy_(torch.where(keep.flatten(), target, x))


# --- perturbations --------------------------------------------------------------------------------------------------


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
    restore_(backup, params)
    for k, c, (w, g) in _units(multiplier, rows, params, grads):
        t = _weights(w, weighted[k], eta)
        moved = w + c * (t * t * g if norm == 2 else t * g.sign())
        _store(params[k], moved, (c == 0).expand_as(w), seed, k)


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
    first = 0
    for k, c, (e, w, g) in _units(multiplier, rows, offset, backup, grads):
        t = _weights(w, weighted[k], eta)
        if norm == 2:
            moved = e + c * (t * t * g)
        else:
            limit = radius[first : first + rows[k], None].to(e.dtype) * t
            moved = (e + c * (t * g.sign())).clamp(-limit, limit)
        flat(offset[k]).copy_(torch.where(c == 0, e, moved).flatten())
        first += rows[k]


def project_(
    params: Sequence[Tensor],
    backup: Sequence[Tensor],
    offset: Sequence[Tensor],
    scale: Tensor,
    rows: Sequence[int],
    seed: Tensor,
) -> None:
    """offset *= scale; w = backup + offset. Where the offset is 0, w is the backup bit for bit."""
    for k, c, (w, e) in _units(scale, rows, backup, offset):
        e = e * c
        flat(offset[k]).copy_(e.flatten())
        flat(params[k]).copy_(flat(backup[k]))
        _store(params[k], w + e, e == 0, seed, k)


def restore_(params: Sequence[Tensor], backup: Sequence[Tensor]) -> None:
    for w, kept in zip(params, backup, strict=True):
        flat(w).copy_(flat(kept))


# --- base steps -----------------------------------------------------------------------------------------------------


def _gradient(g: Tensor, w: Tensor, decay: float, maximize: bool, scale: Tensor | None) -> Tensor:
    if scale is not None:
        g = g / scale.to(g.dtype)
    if maximize:
        g = -g
    return g + decay * w if decay else g


def _unless(found_inf: Tensor | None, old: Tensor, new: Tensor) -> Tensor:
    return new if found_inf is None else torch.where(found_inf.reshape(()) != 0, old, new)


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
    for k, (param, kept, grad) in enumerate(zip(params, backup, grads, strict=True)):
        w = wide(kept)
        g = _gradient(wide(grad), w, wd, maximize, scale)
        if momentum:
            old = wide(momentum[k])
            new = g if first else mu * old + (1 - dampening) * g
            flat(momentum[k]).copy_(_unless(found_inf, old, new))
            g = g + mu * new if nesterov else new
        rate = lr.to(w.dtype) if isinstance(lr, Tensor) else lr
        flat(param).copy_(_unless(found_inf, w, w - rate * g))


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
    """The step of torch.optim.Adam, or AdamW if decoupled, from the kept weights; see `restore_sgd_`."""
    for k, (param, kept, grad) in enumerate(zip(params, backup, grads, strict=True)):
        w = clean = wide(kept)
        rate = torch.as_tensor(lr, dtype=torch.float64, device=w.device)
        t = steps[k].to(w.device, torch.float64) + 1
        g = _gradient(wide(grad), w, 0 if decoupled else wd, maximize, scale)
        if decoupled:
            w = w * (1 - rate * wd).to(w.dtype)
        m, v = wide(exp_avg[k]), wide(exp_avg_sq[k])
        new_m = m + (1 - beta1) * (g - m)
        new_v = beta2 * v + (1 - beta2) * g * g
        second = new_v
        if amsgrad:
            old = wide(max_exp_avg_sq[k])
            second = torch.maximum(old, new_v)
            flat(max_exp_avg_sq[k]).copy_(_unless(found_inf, old, second))
        denominator = second.sqrt() / (1 - beta2**t).sqrt().to(w.dtype) + eps
        new_w = w - (rate / (1 - beta1**t)).to(w.dtype) * (new_m / denominator)
        flat(exp_avg[k]).copy_(_unless(found_inf, m, new_m))
        flat(exp_avg_sq[k]).copy_(_unless(found_inf, v, new_v))
        flat(param).copy_(_unless(found_inf, clean, new_w))
        steps[k].copy_(_unless(None if found_inf is None else found_inf.to(steps[k].device), steps[k], steps[k] + 1))


# --- gradients ------------------------------------------------------------------------------------------------------


def inner_products(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """<a, a>, <a, b> and <b, b> of two lists, each taken as one vector."""
    total = torch.zeros(3, dtype=torch.float64, device=a[0].device if a else "cpu")
    for x, y in zip(a, b, strict=True):
        x, y = flat(x).double(), flat(y).double()
        total += torch.stack((x.dot(x), x.dot(y), y.dot(y)))
    return total


def mix_(grads: Sequence[Tensor], kept: Sequence[Tensor], c: Tensor, found_inf: Tensor) -> None:
    """grads = c[0] kept + c[1] grads, unless `found_inf`."""
    for grad, old in zip(grads, kept, strict=True):
        g = wide(grad)
        c0, c1 = c.to(g.dtype)
        flat(grad).copy_(_unless(found_inf, g, c0 * wide(old) + c1 * g))
