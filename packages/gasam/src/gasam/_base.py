"""The base optimizer's step from the kept weights: in one pass over memory if the base is one of torch's own three."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import SGD, Adam, AdamW
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from . import _ops
from ._segments import as_parameter, dtypes, local, marks, strides
from ._validation import is_dense

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.optim import Optimizer

    from ._segments import Units

_TYPES = {Tensor, torch.nn.Parameter}
_DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16}
_device = attrgetter("device")


def radius_key(base: type[Optimizer] | Optimizer) -> str:
    """The key of `rho` in the groups of a base optimizer, some of which, like Adadelta, have a rho of their own."""
    kind = base if isinstance(base, type) else type(base)
    return "ascent_rho" if "rho" in signature(kind).parameters else "rho"


class Base:
    """Takes the steps of a base optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._plans: dict[int, _Plan] = {}  # by the number of a group

    def step(self, scale: Tensor | None, found_inf: Tensor | None) -> None:
        """The base's own step, with gradients that may be scaled."""
        base: Any = self.optimizer
        if found_inf is None:
            base.step()
        elif getattr(base, "_step_supports_amp_scaling", False):
            base.grad_scale, base.found_inf = scale, found_inf
            try:
                base.step()
            finally:
                del base.grad_scale, base.found_inf
        else:
            if scale is not None:
                unscale([p.grad for group in base.param_groups for p in group["params"] if p.grad is not None], scale)
            if not found_inf.item():
                base.step()

    def makes_states(self) -> bool:
        """Whether a step would do no more than that, as torch.distributed.checkpoint has it before it loads."""
        groups = self.optimizer.param_groups
        grads = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        at_rest = not self.optimizer.state and bool(grads) and all(group.get("lr", 0.0) == 0 for group in groups)
        return at_rest and not any(local(grad).any() for grad in grads)

    def step_from(self, units: Units, scale: Tensor | None, found_inf: Tensor | None) -> bool:
        """Restore the perturbed parameters and step all; or return False if no kernel can do both.

        That the memory of the perturbed parameters is unchanged was checked.
        """
        base: Any = self.optimizer
        if not self._is_known():
            return False
        batches = []
        for number, group in enumerate(base.param_groups):
            batch = _Batch(base, group)
            if not batch.params:
                continue
            plan = self._plan(number, batch, units)
            if plan is None or not batch.suits(plan, found_inf):
                return False
            batches.append((batch, plan))
        for batch, plan in batches:
            batch.run(plan, scale, found_inf)
        if sum(plan.perturbed for _, plan in batches) < len(units.params):
            units.restore([k for k, p in enumerate(units.params) if p.grad is None])
        base._opt_called = True  # learning rate schedulers ask for it
        return True

    def _is_known(self) -> bool:
        base = self.optimizer
        if type(base) not in (SGD, Adam, AdamW):
            return False
        if base._optimizer_step_pre_hooks or base._optimizer_step_post_hooks:
            return False
        if _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
            return False
        replaced = base.__dict__.get("step")
        return replaced is None or hasattr(replaced, "_wrapped_by_lr_sched")

    def _plan(self, number: int, batch: _Batch, units: Units) -> _Plan | None:
        """The plan of a batch that kernels can serve, made anew if a tensor of it is another or was changed."""
        tensors = batch.tensors()
        plan = self._plans.get(number)
        if (
            plan is None
            or plan.units is not units
            or len(plan.tensors) != len(tensors)
            or not all(map(is_, plan.tensors, tensors))
            or (plan.perturbed < len(batch.params) and plan.marks != marks(batch.params))
        ):
            if not batch.has_kernels():
                return None
            params = batch.params
            kept = dict(zip(units.params, units.backup, strict=True))
            plan = self._plans[number] = _Plan(
                units=units,
                tensors=tensors,
                marks=marks(params),
                strides=strides(params),
                dtypes=dtypes(params),
                backup=[kept.get(p, p) for p in params],
                perturbed=sum(p in kept for p in params),
                devices=by_device(params),
            )
        return plan


@dataclass(slots=True)
class _Plan:
    """What does not change from step to step in a group."""

    units: Units
    tensors: list[Tensor]
    marks: Any
    strides: Any
    dtypes: list[torch.dtype]
    backup: list[Tensor]
    perturbed: int
    devices: list[Sequence[int]]


class _Batch:
    """The parameters of one group that have gradients, with their states, as torch's `_init_group` collects them."""

    def __init__(self, base: Any, group: dict[str, Any]) -> None:
        self.group = group
        self.base = base
        self.params: list[Tensor] = []
        self.grads: list[Tensor] = []
        self.is_sgd = type(base) is SGD
        self.states: list[list[Any]] = [[] for _ in range(1 if self.is_sgd else 4)]
        base._init_group(group, self.params, self.grads, *self.states)

    def tensors(self) -> list[Tensor]:
        """All of which it depends whether a kernel can be used. SGD has no momentum in its first step."""
        return [x for xs in (self.params, *self.states) for x in xs if x is not None]

    def has_kernels(self) -> bool:
        """Whether parameters and states are of types that the kernels take, and lie alike in memory."""
        params = self.params
        kernels = _ops.KERNELS["restore_sgd_" if self.is_sgd else "restore_adam_"]
        return (
            len(set(params)) == len(params)
            and all(type(p) in _TYPES and p.dtype in _DTYPES and p.device.type in kernels for p in params)
            and all(map(is_dense, params))
            and all(
                x is None or (x.dtype, x.shape, x.device, x.stride()) == (p.dtype, p.shape, p.device, p.stride())
                for states in self.states[:3]
                for p, x in zip(params, states, strict=False)
            )
            and (self.is_sgd or self._counts_alike())
        )

    def _counts_alike(self) -> bool:
        """Whether Adam counts all steps in one type, and on the CPU or else where the parameters are."""
        steps = self.states[3]
        on_cpu = all(step.is_cpu for step in steps)
        return len({step.dtype for step in steps}) == 1 and (on_cpu or self._counts_on_device())

    def _counts_on_device(self) -> bool:
        return all(step.device == p.device for p, step in zip(self.params, self.states[3], strict=True))

    def suits(self, plan: _Plan, found_inf: Tensor | None) -> bool:
        """Whether options and gradients are such as the kernels take; gradients get the strides of parameters."""
        group = self.group
        options = (group["momentum"],) if self.is_sgd else (*group["betas"], group["eps"])
        if group["differentiable"] or any(isinstance(x, Tensor) for x in (group["weight_decay"], *options)):
            return False
        if found_inf is not None and not self._takes_found_inf():
            return False
        laid_out = strides(self.grads)
        if laid_out is None or not _TYPES.issuperset(map(type, self.grads)) or dtypes(self.grads) != plan.dtypes:
            return False
        if laid_out != plan.strides:
            self.grads = [as_parameter(p, grad) for p, grad in zip(self.params, self.grads, strict=True)]
        return True

    def _takes_found_inf(self) -> bool:
        """Whether a step can be left out without asking the device."""
        if self.is_sgd:
            return not self.group["dampening"] or all(x is not None for x in self.states[0])
        return self._counts_on_device()

    def run(self, plan: _Plan, scale: Tensor | None, found_inf: Tensor | None) -> None:
        run = self._run_sgd if self.is_sgd else self._run_adam
        lists = [self.params, plan.backup, self.grads, *self.states]
        for places in plan.devices:
            device = self.params[places[0]].device
            run(
                lists if len(plan.devices) == 1 else _rows(lists, places),
                None if scale is None else scale.to(device, non_blocking=True),
                None if found_inf is None else found_inf.to(device, non_blocking=True),
            )
        increment_version(self.params)

    def _run_sgd(self, lists: list[list[Any]], scale: Tensor | None, found_inf: Tensor | None) -> None:
        group = self.group
        operator, rate = _with_rate(_ops.restore_sgd_, group["lr"])
        params, momentum = lists[0], lists[3]
        fresh = [k for k, x in enumerate(momentum) if x is None]
        for k in fresh:
            momentum[k] = self.base.state[params[k]]["momentum_buffer"] = torch.zeros_like(params[k])
        old = [k for k in range(len(params)) if k not in set(fresh)] if fresh else list(range(len(params)))
        for places, first in ((fresh, True), (old, False)):
            if places:
                operator(
                    *(lists if len(places) == len(params) else _rows(lists, places)),
                    rate,
                    float(group["momentum"]),
                    float(group["dampening"]),
                    float(group["weight_decay"]),
                    group["nesterov"],
                    group["maximize"],
                    first,
                    scale,
                    found_inf,
                )

    def _run_adam(self, lists: list[list[Any]], scale: Tensor | None, found_inf: Tensor | None) -> None:
        group = self.group
        operator, rate = _with_rate(_ops.restore_adam_, group["lr"])
        operator(
            *lists,
            rate,
            *map(float, group["betas"]),
            float(group["eps"]),
            float(group["weight_decay"]),
            group["decoupled_weight_decay"],
            group["amsgrad"],
            group["maximize"],
            scale,
            found_inf,
        )


def _with_rate(operator: Any, lr: Any) -> tuple[Callable[..., None], float | Tensor]:
    """The overload for a learning rate, and that as it takes it."""
    return (operator.tensor_lr, lr) if isinstance(lr, Tensor) else (operator.default, float(lr))


def _rows(lists: list[list[Any]], places: Sequence[int]) -> list[list[Any]]:
    """The same places of each list that is not empty."""
    return [[xs[k] for k in places] if xs else [] for xs in lists]


def by_device(tensors: Sequence[Tensor]) -> list[Sequence[int]]:
    """The places of the tensors on each device."""
    devices = list(map(_device, tensors))
    if devices.count(devices[0]) == len(devices):
        return [range(len(devices))]
    places: dict[torch.device, list[int]] = {}
    for k, device in enumerate(devices):
        places.setdefault(device, []).append(k)
    return list(places.values())


def unscale(grads: Sequence[Tensor], scale: Tensor) -> None:
    """Divide gradients by the scale of the loss, as `torch.amp.GradScaler` does."""
    inverse = scale.double().reciprocal().float()
    mine = [local(grad) for grad in grads]
    for places in by_device(mine) if mine else ():
        device = mine[places[0]].device
        torch._foreach_mul_([mine[k] for k in places], inverse.to(device, non_blocking=True))
