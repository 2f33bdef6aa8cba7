"""AdaMod as a function of tensor lists: the choice between operator, foreach and loop, without an optimizer's state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.optimizer import _default_to_fused_or_foreach

from . import _foreach, _ops, _reference
from ._reference import Options, Tensors
from ._state import DTYPES

if TYPE_CHECKING:
    from collections.abc import Sequence


__all__ = ["adamod"]

VARIANTS = ("code", "paper")


def serves(param: Tensor) -> bool:
    """Whether a kernel of the operator can step this (local) parameter."""
    return (
        param.device.type in _ops.KERNELS
        and param.dtype in DTYPES
        and param.layout is torch.strided
        and type(param) in (Tensor, torch.nn.Parameter)
    )


def choose(
    params: Sequence[Tensor], *, fused: bool | None, foreach: bool | None, differentiable: bool, tensor_lr: bool
) -> str:
    """ "fused" (the operator), "foreach" or "loop", by torch's rules for the two flags."""
    if fused:
        return "fused"
    if fused is None and foreach is None and not differentiable:
        if params and all(map(serves, params)):
            return "fused"
        _, foreach = _default_to_fused_or_foreach(list(params), differentiable, use_fused=False)
        foreach = foreach and not tensor_lr
    return "foreach" if foreach else "loop"


def real(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Complex tensors as pairs of real numbers; states of complex parameters may be real pairs already."""
    return [torch.view_as_real(x) if x.is_complex() else x for x in tensors]


def loop_(x: Tensors, o: Options, *, tensor_steps: bool, stats: Tensor | None = None) -> None:
    """One step of real tensors, one after the other, by the reference."""
    for k, stream in enumerate(x.streams):
        step = x.steps[k]
        step += 1
        t = step if tensor_steps or torch.compiler.is_compiling() else step.item()
        scales = x.scales[3 * k : 3 * k + 3]
        eta, s = _reference.update(
            x.params[k], x.grads[k], x.exp_avgs[k], x.exp_avg_sqs[k], x.exp_avg_lrs[k], scales, t, stream, o
        )
        if stats is not None:
            _reference.count(stats[stream], eta.detach(), s.detach(), int(step))


def adamod(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    exp_avg_lrs: list[Tensor],
    state_steps: list[Tensor],
    *,
    lr: float | Tensor,
    beta1: float | Tensor,
    beta2: float | Tensor,
    beta3: float | Tensor,
    eps: float,
    weight_decay: float,
    variant: str = "code",
    bounded_decay: bool = False,
    skip_unseen: bool = False,
    scales: list[Tensor] | None = None,
    seed: int | None = 0,
    foreach: bool | None = None,
    maximize: bool = False,
    capturable: bool = False,
    differentiable: bool = False,
    fused: bool | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    r"""One AdaMod step of a list of parameters, in place.

    .. math::
        s_t = \beta_3 s_{t-1} + (1 - \beta_3) \eta_t, \qquad
        \theta_t = \theta_{t-1} - \min(\eta_t, s_t)\, m_t

    with :math:`\eta_t` and :math:`m_t` those of Adam; see :class:`adamod.AdaMod` for the whole.

    Args:
        params: parameters, any shapes and strides, real or complex; written.
        grads: a gradient for each parameter, of its shape; never written.
        exp_avgs, exp_avg_sqs, exp_avg_lrs: the states m, v and s of each parameter, of its shape; zero before the
            first step. float32 or float64, bfloat16, or uint8 codes with their `scales`.
        state_steps: a 0-dim tensor for each parameter, the number of steps done; advanced by one.
        lr, beta1, beta2, beta3: floats or 1-element tensors.
        eps, weight_decay, variant, bounded_decay, skip_unseen, maximize, seed, foreach, capturable, differentiable,
            fused: as for :class:`adamod.AdaMod`. Parameter ``k`` draws its stochastic rounding from stream ``k``.
        scales: three int16 tensors for each parameter, one number per 256 elements, for the states m, v and s that
            are uint8; empty for the others. None: no state is uint8.
        grad_scale: gradients are divided by it. None: 1.
        found_inf: if it is not zero nothing changes, neither do the steps. Not for `foreach` and the loop.

    Raises:
        ValueError: lists of unequal length, tensors of unequal shape, an unknown variant, or bfloat16 or uint8 states
            with `foreach` or `differentiable`.
        RuntimeError: `fused` together with `foreach` or `differentiable`.

    Example:
        >>> p, g = torch.ones(3), torch.ones(3)
        >>> m, v, s, step = torch.zeros(3), torch.zeros(3), torch.zeros(3), torch.tensor(0.0)
        >>> adamod([p], [g], [m], [v], [s], [step], lr=1e-3, beta1=0.9, beta2=0.999, beta3=0.0, eps=0.0,
        ...        weight_decay=0.0)
        >>> p
        tensor([0.9990, 0.9990, 0.9990])
    """
    scales = scales or []
    _check(params, grads, exp_avgs, exp_avg_sqs, exp_avg_lrs, state_steps, scales, variant)
    if fused and foreach:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    if fused and differentiable:
        raise RuntimeError("`fused` does not support `differentiable`")
    low = {x.dtype for x in (*exp_avgs, *exp_avg_sqs, *exp_avg_lrs)} & {torch.bfloat16, torch.float16, torch.uint8}
    if low and (foreach or differentiable):
        raise ValueError(
            f"states must be float32 or float64 with foreach=True or differentiable=True, got {sorted(map(str, low))}"
        )
    path = choose(params, fused=fused, foreach=foreach, differentiable=differentiable, tensor_lr=isinstance(lr, Tensor))
    if path == "foreach" and low:
        path = "loop"
    grads = [g.resolve_conj() if g.is_complex() else g for g in grads]
    p, g, m, v, s = (real(x) for x in (params, grads, exp_avgs, exp_avg_sqs, exp_avg_lrs))
    streams = list(range(len(params)))
    paper = variant == "paper"
    if path == "fused":
        if not params:
            return
        device = params[0].device
        numbers = [lr, beta1, beta2, beta3, eps, weight_decay]
        host = next((x.device for x in numbers if isinstance(x, Tensor) and x.device.type != "cpu"), "cpu")
        hyper = torch.stack([torch.as_tensor(x, dtype=torch.float64, device=host).reshape(()) for x in numbers])
        steps = torch.stack([step.reshape(()).to(device, torch.float32) for step in state_steps])
        _ops.step_(
            p,
            g,
            m,
            v,
            s,
            scales,
            steps,
            streams,
            hyper,
            paper=paper,
            bounded_decay=bounded_decay,
            skip_unseen=skip_unseen,
            maximize=maximize,
            seed=seed,
            grad_scale=grad_scale,
            found_inf=found_inf,
        )
        torch._foreach_copy_(state_steps, list(steps.unbind()))
        increment_version(params)  # so that a backward pass through what was overwritten fails
        return
    if grad_scale is not None or found_inf is not None:
        raise RuntimeError("grad_scale and found_inf need the operator: pass fused=True")
    seed = None if differentiable else seed
    options = Options(lr, beta1, beta2, beta3, eps, weight_decay, paper, bounded_decay, skip_unseen, maximize, seed)
    tensors = Tensors(p, g, m, v, s, scales, state_steps, streams)
    if path == "foreach":
        _foreach.step_(tensors, options, capturable=capturable)
    else:
        loop_(tensors, options, tensor_steps=capturable or differentiable)


def _check(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    exp_avg_lrs: list[Tensor],
    state_steps: list[Tensor],
    scales: list[Tensor],
    variant: str,
) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {VARIANTS}, got {variant!r}")
    lists = {
        "grads": grads,
        "exp_avgs": exp_avgs,
        "exp_avg_sqs": exp_avg_sqs,
        "exp_avg_lrs": exp_avg_lrs,
        "state_steps": state_steps,
    }
    for name, tensors in lists.items():
        if len(tensors) != len(params):
            raise ValueError(f"{name} must have one tensor for each of the {len(params)} params, got {len(tensors)}")
    if scales and len(scales) != 3 * len(params):
        raise ValueError(f"scales must have three tensors for each of the {len(params)} params, got {len(scales)}")
    for name, tensors in lists.items():
        for k, (p, x) in enumerate(zip(params, tensors, strict=True)):
            shape = p.shape if name != "state_steps" else torch.Size()
            pair = torch.Size((*p.shape, 2)) if p.is_complex() and name.startswith("exp") else shape
            if (x.numel() != 1) if name == "state_steps" else (x.shape not in (shape, pair)):
                raise ValueError(
                    f"{name}[{k}] must have the shape {tuple(shape)} of its parameter, got {tuple(x.shape)}"
                )
    for k, (m, v, s) in enumerate(zip(exp_avgs, exp_avg_sqs, exp_avg_lrs, strict=True)):
        for j, (name, x) in enumerate((("exp_avgs", m), ("exp_avg_sqs", v), ("exp_avg_lrs", s))):
            blocks = -(-x.numel() // _reference.BLOCK) if x.dtype == torch.uint8 else 0
            given = scales[3 * k + j].numel() if scales else 0
            if x.dtype == torch.uint8 and given != blocks:
                raise ValueError(
                    f"scales[{3 * k + j}] must have {blocks} numbers for the uint8 {name}[{k}], got {given}"
                )
