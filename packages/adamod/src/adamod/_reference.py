"""The operator in plain PyTorch: the definition its kernels are tested against, and the loop of every optimizer path.

For float32 and float64 with a float learning rate, `update` is the sequence of torch operations of the authors'
implementation (https://github.com/lancopku/AdaMod), bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

Scalar: TypeAlias = float | Tensor

BLOCK = 256  # elements that share one int8 scale
RUN = 512  # consecutive elements of which a histogram takes all or none
BINS = 64  # octaves of a histogram, from 2^-40 to 2^24
FIRST_EXPONENT = -40

_MASK = 0xFFFFFFFF
_NONFINITE = 0x7FFF  # the block scale that makes a whole block read as NaN
_HALF = 0x8000  # the draw that rounds to nearest


@dataclass(slots=True)
class Options:
    """The numbers and switches of a step, as the optimizer's options name them; tensors in double."""

    lr: Scalar
    beta1: Scalar
    beta2: Scalar
    beta3: Scalar
    eps: float
    weight_decay: Scalar
    paper: bool = False
    bounded_decay: bool = False
    skip_unseen: bool = False
    maximize: bool = False
    seed: int | None = 0

    def __post_init__(self) -> None:
        self.lr, self.beta1, self.beta2, self.beta3 = (
            x.reshape(()).to(torch.float64) if isinstance(x, Tensor) else x
            for x in (self.lr, self.beta1, self.beta2, self.beta3)
        )


@dataclass(slots=True)
class Tensors:
    """What a step works on: one entry per parameter in each list, but three `scales` per parameter or none at all."""

    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    exp_avgs: list[Tensor] = field(default_factory=list)
    exp_avg_sqs: list[Tensor] = field(default_factory=list)
    exp_avg_lrs: list[Tensor] = field(default_factory=list)
    scales: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)
    streams: list[int] = field(default_factory=list)


# --- rounding -------------------------------------------------------------------------------------------------------


def _hash(x: Tensor) -> Tensor:
    """lowbias32 of the low 32 bits of an int64 tensor."""
    x = x & _MASK
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def draws(n: int, t: Scalar, stream: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four 16-bit numbers for each of `n` elements in memory order: for exp_avg_sq, exp_avg_lr, exp_avg, parameter."""
    step = t.to(device, torch.int64) if isinstance(t, Tensor) else torch.tensor(int(t), device=device)
    key = _hash(_hash(_hash(step) ^ (stream & _MASK)) ^ (seed & _MASK))
    i = torch.arange(n, device=device)
    r = _hash(i * 0x9E3779B9 + (key ^ _hash(i >> 32)))
    r2 = _hash(r ^ 0x85EBCA6B)
    return r & 0xFFFF, r >> 16, r2 & 0xFFFF, r2 >> 16


def round_bfloat16(x: Tensor, draw: Tensor | None) -> Tensor:
    """`x` (float32) in bfloat16, rounded up with the probability of its remainder, or to nearest without a draw."""
    if draw is None:
        return x.to(torch.bfloat16)
    bits = (x.view(torch.int32).to(torch.int64) & _MASK) + draw.view(x.shape)
    rounded = (bits >> 16).to(torch.int16).view(torch.bfloat16)
    return torch.where(x.isnan(), x.to(torch.bfloat16), rounded)


def encode(x: Tensor, draw: Tensor | None, *, signed: bool, keep_positive: bool) -> tuple[Tensor, Tensor]:
    """`x` (float32, flat) as uint8 codes and one int16 scale per block.

    A code counts eighths of an octave above the scale. Code 0 is zero; `keep_positive` stores any positive number as
    code 1 at least. A block that holds a non-finite number reads as NaN.
    """
    levels = 127 if signed else 255
    n = x.numel()
    blocks = -(-n // BLOCK)
    padded = torch.nn.functional.pad(x, (0, blocks * BLOCK - n)).view(blocks, BLOCK)
    bits = padded.abs().view(torch.int32).to(torch.int64)
    top = bits.amax(1, keepdim=True) if n else bits
    base = ((top >> 20) + 1 - levels).clamp_(min=0)
    if draw is None:
        draw16 = torch.full_like(bits, _HALF)
    else:
        draw16 = torch.nn.functional.pad(draw, (0, blocks * BLOCK - n)).view(blocks, BLOCK)
    code = (((bits + (draw16 << 4)) >> 20) - base).clamp_(0, levels)
    first = ((base + 1) << 20).to(torch.int32).view(torch.float32)
    below = padded.abs() > first * ((draw16.to(torch.float32) + 0.5) * 2.0**-16)
    code = torch.where((bits < (base + 1) << 20) & (base > 0), below.to(torch.int64), code)
    if keep_positive:
        code = torch.where((padded > 0) & (code == 0), 1, code)
    if signed:
        code = code | ((padded < 0).to(torch.int64) << 7)
    loud = top >= 0x7F800000
    scale = torch.where(loud, _NONFINITE, base)
    code = torch.where(loud, 0, code)
    return code.to(torch.uint8).flatten()[:n], scale.to(torch.int16).flatten()


def decode(codes: Tensor, scale: Tensor, *, signed: bool) -> Tensor:
    """The float32 numbers of flat uint8 codes and their block scales."""
    code = codes.to(torch.int64)
    magnitude = code & 0x7F if signed else code
    base = scale.to(torch.int64).repeat_interleave(BLOCK)[: codes.numel()]
    x = ((magnitude + base) << 20).to(torch.int32).view(torch.float32)
    x = torch.where(magnitude == 0, 0.0, x)
    if signed:
        x = torch.where(code > 0x7F, -x, x)
    return torch.where(base == _NONFINITE, math.nan, x)


def memory_order(x: Tensor) -> list[int]:
    """The dimensions from the slowest to the fastest: permuting a dense tensor by them makes it contiguous."""
    if x.is_contiguous():
        return list(range(x.ndim))
    strides = x.stride()
    return sorted(range(x.ndim), key=lambda d: (-strides[d], d))


# --- the step -------------------------------------------------------------------------------------------------------


def _narrow(x: Scalar, dtype: torch.dtype) -> Scalar:
    return x.to(dtype) if isinstance(x, Tensor) else x


def add_scaled(x: Tensor, y: Tensor, weight: Scalar) -> Tensor:
    """x + weight * y."""
    return x + y * weight.to(y.dtype) if isinstance(weight, Tensor) else torch.add(x, y, alpha=weight)


def _exact(x: Scalar, dtype: torch.dtype) -> Tensor:
    """A number as a tensor, which divides and is divided exactly: torch multiplies by a Python number's reciprocal."""
    return (x if isinstance(x, Tensor) else torch.tensor(x, dtype=dtype, device="cpu")).to(dtype)


def learning_rate(exp_avg_sq: Tensor, t: Scalar, o: Options) -> Tensor:
    """eta, the learning rate of each element before it is bounded."""
    dtype = exp_avg_sq.dtype
    correction2 = 1 - o.beta2**t
    if o.paper:
        return _exact(o.lr, dtype) / (exp_avg_sq / _exact(correction2, dtype)).sqrt().add(o.eps)
    root = correction2.sqrt() if isinstance(correction2, Tensor) else math.sqrt(correction2)
    return _exact(o.lr * root / (1 - o.beta1**t), dtype) / exp_avg_sq.sqrt().add(o.eps)


def update(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    exp_avg_lr: Tensor,
    scales: list[Tensor],
    t: Scalar,
    stream: int,
    o: Options,
    grad_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Step `t` of one real parameter, in place; returns eta and s in memory order.

    Everything is computed anew and copied into place at the end, so that the same lines serve autograd
    (`differentiable=True`), quantised states and plain ones.
    """
    dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
    order = memory_order(param)
    param, grad, exp_avg, exp_avg_sq, exp_avg_lr = (
        x.permute(order) for x in (param, grad, exp_avg, exp_avg_sq, exp_avg_lr)
    )
    copy = torch.is_grad_enabled()  # what autograd saves must not be overwritten at the end
    if isinstance(t, Tensor):
        t = t.to(torch.float64, copy=copy)
    keep1, keep2, keep3 = (_narrow(beta, dtype) for beta in (o.beta1, o.beta2, o.beta3))

    def load(state: Tensor, scale: Tensor | None, signed: bool) -> Tensor:
        if state.dtype == torch.uint8 and scale is not None:
            return decode(state.flatten(), scale, signed=signed).view(state.shape).to(dtype)
        return state.to(dtype, copy=copy)

    scale_m, scale_v, scale_s = scales if scales else (None, None, None)
    p, g = param.to(dtype, copy=copy), grad.to(dtype)
    if grad_scale is not None:
        g = g / grad_scale.to(dtype).reshape(())
    if o.maximize:
        g = -g

    m = add_scaled(load(exp_avg, scale_m, True) * keep1, g, 1 - o.beta1)
    v = load(exp_avg_sq, scale_v, False) * keep2
    v = v + g * g * (1 - o.beta2).to(dtype) if isinstance(o.beta2, Tensor) else v.addcmul(g, g, value=1 - o.beta2)
    eta = learning_rate(v, t, o)
    s_before = load(exp_avg_lr, scale_s, False)
    s = add_scaled(s_before * keep3, eta, 1 - o.beta3)
    if o.skip_unseen:
        s = torch.where(v != 0, s, s_before)

    if isinstance(o.weight_decay, Tensor) or o.weight_decay != 0:
        shrunk = p * torch.where(s >= eta, 1.0, s / eta) if o.bounded_decay else p
        p = add_scaled(p, shrunk, -o.weight_decay * o.lr)
    u = m
    if o.paper:
        correction1 = 1 - o.beta1**t
        u = m / _exact(correction1, dtype)
    p = p - torch.minimum(eta, s) * u

    draw_v = draw_s = draw_m = None
    if o.seed is not None and any(x.dtype in (torch.bfloat16, torch.uint8) for x in (exp_avg, exp_avg_sq, exp_avg_lr)):
        draw_v, draw_s, draw_m, _ = draws(p.numel(), t, stream, o.seed, p.device)

    def store(into: Tensor, scale: Tensor | None, x: Tensor, draw: Tensor | None, signed: bool, keep: bool) -> None:
        if into.dtype == torch.uint8 and scale is not None:
            codes, new_scale = encode(x.flatten().to(torch.float32), draw, signed=signed, keep_positive=keep)
            into.copy_(codes.view(into.shape))
            scale.copy_(new_scale)
        elif into.dtype == torch.bfloat16:
            into.copy_(round_bfloat16(x.to(torch.float32), None if signed else draw))
        else:
            into.copy_(x)

    store(exp_avg, scale_m, m, draw_m, signed=True, keep=False)
    store(exp_avg_sq, scale_v, v, draw_v, signed=False, keep=True)
    store(exp_avg_lr, scale_s, s, draw_s, signed=False, keep=False)
    store_parameter(param, p, t, stream, o.seed)
    return eta, s


def store_parameter(param: Tensor, x: Tensor, t: Scalar, stream: int, seed: int | None) -> None:
    """Write `x` into the parameter: bfloat16 by stochastic rounding."""
    if param.dtype == torch.bfloat16:
        order = memory_order(param)
        x = x.permute(order)
        draw = None if seed is None else draws(x.numel(), t, stream, seed, x.device)[3]
        param.permute(order).copy_(round_bfloat16(x, draw))
    else:
        param.copy_(x)


# --- counting -------------------------------------------------------------------------------------------------------


def _bins(x: Tensor) -> Tensor:
    """The octave of each number, as a bin; what lies outside all bins goes to the first or the last."""
    if x.dtype == torch.float64:
        exponent = ((x.view(torch.int64) >> 52) & 0x7FF) - 1023
    else:
        exponent = ((x.view(torch.int32).to(torch.int64) >> 23) & 0xFF) - 127
    return (exponent - FIRST_EXPONENT).clamp_(0, BINS - 1)


def count(row: Tensor, eta: Tensor, s: Tensor, t: int) -> None:
    """Add one step of one parameter to its row of statistics: elements, clipped, then a histogram of eta and of s."""
    eta, s = eta.flatten(), s.flatten()
    n = eta.numel()
    runs = -(-n // RUN)
    every = max(1, runs // 8)
    row[0] += n
    row[1] += (s < eta).sum().to(row.device)
    taken = (torch.arange(n, device=eta.device) // RUN) % every == t % every
    for start, x in ((2, eta), (2 + BINS, s)):
        row[start : start + BINS] += torch.bincount(_bins(x[taken]), minlength=BINS).to(row.device)


# --- the operator ---------------------------------------------------------------------------------------------------


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
    """One AdaMod step of a list of real tensors. Unlike the kernels it reads `hyper`, `steps` and `found_inf` on the
    host, which waits for a device."""
    if found_inf is not None and found_inf.item() != 0:
        return
    lr, beta1, beta2, beta3, eps, weight_decay = hyper.tolist()
    options = Options(lr, beta1, beta2, beta3, eps, weight_decay, paper, bounded_decay, skip_unseen, maximize, seed)
    counts = steps.tolist()
    for k, i in enumerate(index):
        t = counts[i] + 1
        eta, s = update(
            params[k],
            grads[k],
            exp_avgs[k],
            exp_avg_sqs[k],
            exp_avg_lrs[k],
            scales[3 * k : 3 * k + 3],
            t,
            i,
            options,
            grad_scale,
        )
        steps[i] = t
        if stats is not None:
            count(stats[i], eta, s, int(t))
