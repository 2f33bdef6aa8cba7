"""The base optimizer's step from the kept weights: in one pass over memory if the base is one of torch's own three."""

from __future__ import annotations

from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import SGD, Adam, AdamW
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from . import _ops
from ._segments import as_parameter, local, memory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.optim import Optimizer

_TYPES = {Tensor, torch.nn.Parameter}
_DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16}
_device = attrgetter("device")


class Base:
    """Takes the steps of a base optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._served: dict[int, list[Tensor]] = {}  # of a group: the tensors that a kernel is known to serve

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

    def step_from(self, kept: Mapping[Tensor, Tensor], scale: Tensor | None, found_inf: Tensor | None) -> bool:
        """Restore the parameters to what is `kept` and step them; or return False if no kernel can do both."""
        base: Any = self.optimizer
        if not self._is_known():
            return False
        batches = []
        for group in base.param_groups:
            batch = _Batch(base, group)
            if not self._serves(group, batch, found_inf):
                return False
            batches.append(batch)
        for batch in batches:
            batch.run(kept, scale, found_inf)
        left = [p for p in kept if p.grad is None]
        for alike in by_device(left):
            params = [left[k] for k in alike]
            _ops.restore_(params, [kept[p] for p in params])
            increment_version(params)
        base._opt_called = True  # learning rate schedulers ask for it
        return True

    def _is_known(self) -> bool:
        base = self.optimizer
        if type(base) not in (SGD, Adam, AdamW):
            return False
        hooks = (base._optimizer_step_pre_hooks, base._optimizer_step_post_hooks)
        if any(hooks) or _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
            return False
        replaced = base.__dict__.get("step")
        return replaced is None or hasattr(replaced, "_wrapped_by_lr_sched")

    def _serves(self, group: dict[str, Any], batch: _Batch, found_inf: Tensor | None) -> bool:
        if group["differentiable"] or not batch.has_numbers():
            return False
        if found_inf is not None and not batch.takes_found_inf():
            return False
        tensors = batch.tensors()
        known = self._served.get(id(group), [])
        if len(known) != len(tensors) or not all(map(is_, known, tensors)):
            if not batch.has_kernels():
                return False
            self._served[id(group)] = tensors
        return batch.arrange()


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

    def has_numbers(self) -> bool:
        """Whether the options are what the kernels take."""
        group = self.group
        options = [group["weight_decay"], *([group["momentum"]] if self.is_sgd else [*group["betas"], group["eps"]])]
        return not any(isinstance(x, Tensor) for x in options)

    def takes_found_inf(self) -> bool:
        """Whether a step can be left out without asking the device."""
        if self.is_sgd:
            return not self.group["dampening"] or all(x is not None for x in self.states[0])
        return all(step.device == p.device for p, step in zip(self.params, self.states[3], strict=True))

    def tensors(self) -> list[Tensor]:
        return [x for xs in (self.params, *self.states) for x in xs if x is not None]

    def has_kernels(self) -> bool:
        """Whether parameters and states are of types that the kernels take, and lie alike in memory."""
        params = self.params
        name = "restore_sgd_" if self.is_sgd else "restore_adam_"
        return (
            len(set(params)) == len(params)
            and all(type(p) in _TYPES and p.dtype in _DTYPES and p.device.type in _ops.KERNELS[name] for p in params)
            and all(
                x is None or (x.dtype, x.shape, x.device, x.stride()) == (p.dtype, p.shape, p.device, p.stride())
                for states in self.states[:3]
                for p, x in zip(params, states, strict=False)
            )
        )

    def arrange(self) -> bool:
        """Give the gradients their parameters' strides; False if they are not of the parameters' types."""
        if memory(self.grads) != memory(self.params):
            if not all(
                type(g) in _TYPES and (g.layout, g.dtype, g.device) == (p.layout, p.dtype, p.device)
                for p, g in zip(self.params, self.grads, strict=True)
            ):
                return False
            self.grads = [as_parameter(p, g) for p, g in zip(self.params, self.grads, strict=True)]
        return True

    def run(self, kept: Mapping[Tensor, Tensor], scale: Tensor | None, found_inf: Tensor | None) -> None:
        backup = [kept.get(p, p) for p in self.params]
        run = self._run_sgd if self.is_sgd else self._run_adam
        for alike in by_device(self.params):
            device = self.params[alike[0]].device
            run(
                alike,
                [[xs[k] for k in alike] if xs else [] for xs in (self.params, backup, self.grads, *self.states)],
                None if scale is None else scale.to(device, non_blocking=True),
                None if found_inf is None else found_inf.to(device, non_blocking=True),
            )
        increment_version(self.params)

    def _run_sgd(
        self, alike: Sequence[int], lists: list[list[Any]], scale: Tensor | None, found_inf: Tensor | None
    ) -> None:
        group = self.group
        operator = _ops.restore_sgd_.tensor_lr if isinstance(group["lr"], Tensor) else _ops.restore_sgd_.default
        fresh = [k for k, x in enumerate(lists[3]) if x is None]
        for k in fresh:
            lists[3][k] = self.base.state[lists[0][k]]["momentum_buffer"] = torch.zeros_like(lists[0][k])
        stepped = [k for k in range(len(alike)) if k not in set(fresh)] if fresh else list(range(len(alike)))
        for places, first in ((fresh, True), (stepped, False)):
            if places:
                operator(
                    *(lists if len(places) == len(alike) else [[xs[k] for k in places] for xs in lists]),
                    group["lr"],
                    group["momentum"],
                    group["dampening"],
                    group["weight_decay"],
                    group["nesterov"],
                    group["maximize"],
                    first,
                    scale,
                    found_inf,
                )

    def _run_adam(
        self, alike: Sequence[int], lists: list[list[Any]], scale: Tensor | None, found_inf: Tensor | None
    ) -> None:
        group = self.group
        operator = _ops.restore_adam_.tensor_lr if isinstance(group["lr"], Tensor) else _ops.restore_adam_.default
        operator(
            *lists,
            group["lr"],
            *group["betas"],
            group["eps"],
            group["weight_decay"],
            group["decoupled_weight_decay"],
            group["amsgrad"],
            group["maximize"],
            scale,
            found_inf,
        )


def by_device(tensors: Sequence[Tensor]) -> list[Sequence[int]]:
    """The places of the tensors on each device."""
    devices = list(map(_device, tensors))
    if len(set(devices)) == 1:
        return [range(len(tensors))]
    places: dict[torch.device, list[int]] = {}
    for k, device in enumerate(devices):
        places.setdefault(device, []).append(k)
    return list(places.values())


def unscale(grads: Sequence[Tensor], scale: Tensor) -> None:
    """Divide gradients by the scale of the loss, as `torch.amp.GradScaler` does."""
    inverse = scale.double().reciprocal().float()
    locals_ = [local(grad) for grad in grads]
    for alike in by_device(locals_):
        device = locals_[alike[0]].device
        torch._foreach_mul_([locals_[k] for k in alike], inverse.to(device, non_blocking=True))
