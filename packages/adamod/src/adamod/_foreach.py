"""The step over lists of tensors with torch's `_foreach` functions: for devices without a kernel of our own."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _reference

if TYPE_CHECKING:
    from ._reference import Options, Scalar, Tensors


def add_one_(steps: list[Tensor]) -> None:
    if steps[0].is_cpu and not torch.compiler.is_compiling():
        one = torch.tensor(1.0, device="cpu")  # a Python 1 would be wrapped anew for every step
        torch._foreach_add_(steps, one, alpha=1.0)
    else:
        torch._foreach_add_(steps, 1)


def by_kind(params: list[Tensor], grads: list[Tensor]) -> dict[tuple[object, ...], list[int]]:
    """The places of tensors that a `_foreach` call can take together."""
    kinds: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
    for k, (p, g) in enumerate(zip(params, grads, strict=True)):
        kinds[p.device, p.dtype, g.dtype].append(k)
    return kinds


def corrections(beta: Scalar, steps: list[Scalar]) -> list[Scalar]:
    """1 - beta^t, in double."""
    return [1 - beta ** (t.to(torch.float64) if isinstance(t, Tensor) else t) for t in steps]


def scale_(xs: list[Tensor], factors: list[Scalar]) -> None:
    """Multiply each tensor by its own number."""
    if isinstance(factors[0], Tensor):
        pairs = zip(factors, xs, strict=True)
        torch._foreach_mul_(xs, [torch.as_tensor(f, dtype=x.dtype, device=x.device) for f, x in pairs])
    else:
        torch._foreach_mul_(xs, factors)  # type: ignore[arg-type]


def average_(averages: list[Tensor], xs: list[Tensor], beta: Scalar) -> None:
    """averages = beta * averages + (1 - beta) * xs."""
    if isinstance(beta, Tensor):
        weights: list[Scalar] = [1 - beta] * len(xs)
        scale_(averages, [beta] * len(xs))
        xs = [x.clone() for x in xs]
        scale_(xs, weights)
        torch._foreach_add_(averages, xs)
    else:
        torch._foreach_mul_(averages, beta)
        torch._foreach_add_(averages, xs, alpha=1 - beta)


def average_squares_(averages: list[Tensor], xs: list[Tensor], beta: Scalar) -> None:
    """averages = beta * averages + (1 - beta) * xs^2."""
    if isinstance(beta, Tensor):
        average_(averages, list(torch._foreach_mul(xs, xs)), beta)
    else:
        torch._foreach_mul_(averages, beta)
        torch._foreach_addcmul_(averages, xs, xs, 1 - beta)


def decay_(xs: list[Tensor], decay: Scalar) -> None:
    """xs = xs - decay * xs: a narrowed 1 - decay would err in the same direction in every step."""
    if isinstance(decay, Tensor):
        shrink = [x.clone() for x in xs]
        scale_(shrink, [-decay] * len(xs))
        torch._foreach_add_(xs, shrink)
    else:
        torch._foreach_add_(xs, xs, alpha=-decay)


def learning_rates(exp_avg_sqs: list[Tensor], steps: list[Scalar], o: Options) -> list[Tensor]:
    """eta of each tensor."""
    c1, c2 = corrections(o.beta1, steps), corrections(o.beta2, steps)
    if o.paper:
        etas = list(torch._foreach_mul(exp_avg_sqs, 1.0))
        scale_(etas, [1 / c for c in c2])
        torch._foreach_sqrt_(etas)
        factors: list[Scalar] = [o.lr] * len(etas)
    else:
        etas = list(torch._foreach_sqrt(exp_avg_sqs))
        roots = [c.sqrt() if isinstance(c, Tensor) else math.sqrt(c) for c in c2]
        factors = [o.lr * root / c for root, c in zip(roots, c1, strict=True)]
    torch._foreach_add_(etas, o.eps)
    torch._foreach_reciprocal_(etas)
    scale_(etas, factors)
    return etas


def step_(x: Tensors, o: Options, *, capturable: bool, stats: Tensor | None = None) -> None:
    """One AdaMod step of real tensors with float32 or float64 states, grouped by device and dtype."""
    as_tensors = capturable or torch.compiler.is_compiling()
    for members in by_kind(x.params, x.grads).values():
        params, grads, ms, vs, ss, steps = (
            [column[k] for k in members]
            for column in (x.params, x.grads, x.exp_avgs, x.exp_avg_sqs, x.exp_avg_lrs, x.steps)
        )
        streams = [x.streams[k] for k in members]
        add_one_(steps)
        counts: list[Scalar] = [t if as_tensors else t.item() for t in steps]
        etas = _update(params, grads, ms, vs, ss, counts, streams, o, keep_etas=stats is not None)
        if stats is not None:
            for stream, p, eta, s, t in zip(streams, params, etas, ss, steps, strict=True):
                order = _reference.memory_order(p)
                _reference.count(stats[stream], eta.permute(order), s.permute(order), int(t))


def _update(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    exp_avg_lrs: list[Tensor],
    steps: list[Scalar],
    streams: list[int],
    o: Options,
    *,
    keep_etas: bool,
) -> list[Tensor]:
    dtype = exp_avgs[0].dtype
    grads = [g.to(dtype) for g in grads]
    masters = [p.to(dtype) for p in params]  # the parameters themselves, unless they are of low precision
    if o.maximize:
        grads = list(torch._foreach_neg(grads))

    average_(exp_avgs, grads, o.beta1)
    average_squares_(exp_avg_sqs, grads, o.beta2)
    del grads  # each list of tensors that is no longer alive is a copy of the parameters less
    decay: Scalar = o.weight_decay * o.lr
    decays = isinstance(decay, Tensor) or decay != 0
    if decays and not o.bounded_decay:
        decay_(masters, decay)
    etas = learning_rates(exp_avg_sqs, steps, o)
    if o.skip_unseen:
        before = [s.clone() for s in exp_avg_lrs]
        average_(exp_avg_lrs, etas, o.beta3)
        for s, s_before, v in zip(exp_avg_lrs, before, exp_avg_sqs, strict=True):
            s.copy_(torch.where(v != 0, s, s_before))
    else:
        average_(exp_avg_lrs, etas, o.beta3)

    if decays and o.bounded_decay:
        shrink = [p * torch.where(s >= e, 1.0, s / e) for p, s, e in zip(masters, exp_avg_lrs, etas, strict=True)]
        scale_(shrink, [-decay] * len(masters))
        torch._foreach_add_(masters, shrink)
    updates = [eta.clone() for eta in etas] if keep_etas else etas
    torch._foreach_minimum_(updates, exp_avg_lrs)
    torch._foreach_mul_(updates, exp_avgs)
    if o.paper:
        scale_(updates, [1 / c for c in corrections(o.beta1, steps)])
    torch._foreach_sub_(masters, updates)

    if params[0].dtype != dtype:
        for p, master, t, stream in zip(params, masters, steps, streams, strict=True):
            _reference.store_parameter(p, master, t, stream, o.seed)
    return etas
