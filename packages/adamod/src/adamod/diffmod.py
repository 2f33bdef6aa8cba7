"""The DiffMod optimizer: AdaMod whose step is damped where the gradient does not change; in plain PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable imports the compiler at once
from torch.optim.optimizer import Optimizer, _get_scalar_dtype, _use_grad_for_differentiable

from . import _foreach, _reference, _saved, _state, functional
from ._reference import Options, Tensors
from .optimizer import check_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim.optimizer import ParamsT

    from ._reference import Scalar

__all__ = ["DiffMod"]

_KEYS = ("exp_avg", "exp_avg_sq", "exp_avg_lr", "previous_grad")
_OPTIONS: dict[str, _saved.Check] = {
    "lr": _saved.check_number,
    "betas": _saved.check_betas,
    "len_memory": partial(_saved.check_number, least=1),
    "version": partial(_saved.check_choice, choices=(0, 1, 2)),
    "eps": _saved.check_number,
    "weight_decay": _saved.check_number,
    "beta3": lambda place, x: None if x is None else _saved.decay(place, x),
    **dict.fromkeys(("average_step", "maximize", "differentiable"), _saved.flag),
    "foreach": _saved.optional_flag,
}


class DiffMod(Optimizer):
    r"""DiffMod: AdaMod with the friction of diffGrad.

    .. math::
        x_t = g_{t-1} - g_t, \qquad \theta_t = \theta_{t-1} (1 - \gamma\lambda) - \min(\eta_t, s_t)\, m_t\, d(x_t)

    with :math:`\eta, s, m` of :class:`adamod.AdaMod` (variant "code") and :math:`g_0 = 0`. Where the gradient stays the
    same d is a half: such steps are half of AdaMod's.

    Args:
        params: as for :class:`adamod.AdaMod`; every option may differ by group.
        lr: learning rate :math:`\gamma` (default 1e-3).
        betas: decay of m and v (default (0.9, 0.999)).
        len_memory: beta3 is 1 - 1 / len_memory (default 1000, the original's).
        version: 0: d = sigmoid(|x|) (default); 1: d = sigmoid(x); 2: d = 9 sigmoid(|x| / 2) - 4.
        eps: added to the root of v (default 1e-8).
        weight_decay: decoupled :math:`\lambda` (default 0).
        average_step: use (eta + s) / 2 instead of min(eta, s) (default False).
        beta3: overrides `len_memory`.
        foreach, maximize, differentiable: as in :class:`torch.optim.AdamW`.

    The original keeps the gradient tensor itself as the previous gradient, so that zeroing gradients in place makes d
    a half for ever; here it is a copy.

    Raises:
        ValueError: an option out of its range. RuntimeError: a sparse gradient, or one of a parameter of integers.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = DiffMod(model.parameters(), lr=1e-2, version=1)
        >>> model(torch.ones(2, 3)).sum().backward()
        >>> optimizer.step()

    Reference: https://github.com/lessw2020/Best-Deep-Learning-Optimizers
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        len_memory: float = 1000,
        version: int = 0,
        eps: float = 1e-8,
        weight_decay: float = 0,
        average_step: bool = False,
        *,
        beta3: float | Tensor | None = None,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "len_memory": len_memory,
            "version": version,
            "eps": eps,
            "weight_decay": weight_decay,
            "average_step": average_step,
            "beta3": beta3,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
        }
        _check(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters and their options in mid-training; bad options change nothing."""
        if isinstance(param_group, dict):
            _check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for option, default in (("foreach", None), ("maximize", False), ("differentiable", False), ("beta3", None)):
                group.setdefault(option, default)
            for p in group["params"]:
                of_p = self.state.get(p)
                if of_p and not isinstance(of_p["step"], Tensor):
                    of_p["step"] = torch.tensor(float(of_p["step"]), dtype=_get_scalar_dtype())

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint as torch's optimizers do, but leave the states of 16-bit parameters in float32.

        Options that are missing stay as they are here.

        Raises:
            ValueError, TypeError: it is none of this class. The message names the place. Nothing has changed then.
        """
        _saved.check_type("state_dict", state_dict, Mapping, "a dict")
        read: dict[str, Any] = {}

        def complete(_: Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            _saved.check(given, self.param_groups, _OPTIONS, _KEYS)
            pairs = zip(self.param_groups, given["param_groups"], strict=True)
            groups = [{**group, **saved} for group, saved in pairs]
            for k, group in enumerate(groups):
                _saved.check_together(f'state_dict["param_groups"][{k}]', _check, group)
            read.update(given, param_groups=groups)
            return read

        hook = self.register_load_state_dict_pre_hook(complete)  # behind all other hooks
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        saved_ids = chain.from_iterable(group["params"] for group in read["param_groups"])
        for k, p in zip(saved_ids, chain.from_iterable(group["params"] for group in self.param_groups), strict=True):
            if p.dtype in (torch.bfloat16, torch.float16):
                for key in _KEYS:
                    if key in self.state.get(p, ()):
                        self.state[p][key] = read["state"][k][key].to(p.device, torch.float32, copy=True)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one step on every parameter that has a gradient.

        Args:
            closure: called first, with gradients enabled; re-evaluates the model and returns the loss.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, params in self._collect():
            grads = [_state.local_gradient(p, p.grad) for p in params if p.grad is not None]
            columns = [params, grads, *([self.state[p][key] for p in params] for key in _KEYS)]
            p, g, m, v, s, previous = (functional.real(_state.locals_(column)) for column in columns)
            x = Tensors(p, g, m, v, s, steps=[self.state[p]["step"] for p in params])
            update = _update_lists if _uses_foreach(group, params) else _update_each
            update(x, previous, _options(group), group)
        return loss

    @_disable_dynamo
    def _collect(self) -> list[tuple[dict[str, Any], list[Tensor]]]:
        first = 0
        for group in self.param_groups:
            _state.check_gradients(group, first, "DiffMod")
            first += len(group["params"])
        batches = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        for _, params in batches:
            for p in params:
                if not self.state[p]:
                    dtype = torch.float32 if p.dtype in (torch.bfloat16, torch.float16) else p.dtype
                    self.state[p]["step"] = torch.tensor(0.0, dtype=_get_scalar_dtype())
                    for key in _KEYS:
                        self.state[p][key] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
        return [batch for batch in batches if batch[1]]


def _check(group: Mapping[str, Any]) -> None:
    if group["version"] not in (0, 1, 2):
        raise ValueError(f"version must be 0, 1 or 2, got {group['version']!r}")
    if not group["len_memory"] >= 1:
        raise ValueError(f"len_memory must be at least 1, got {group['len_memory']}")
    check_options({**group, "beta3": _beta3(group)})


def _beta3(group: Mapping[str, Any]) -> Scalar:
    beta3: Scalar | None = group["beta3"]
    return 1 - 1 / float(group["len_memory"]) if beta3 is None else beta3


def _uses_foreach(group: dict[str, Any], params: list[Tensor]) -> bool:
    lr_is_tensor = isinstance(group["lr"], Tensor)
    path = functional.choose(
        params, fused=False, foreach=group["foreach"], differentiable=group["differentiable"], tensor_lr=lr_is_tensor
    )
    return path == "foreach"


def _options(group: dict[str, Any]) -> Options:
    beta1, beta2 = group["betas"]
    lr, eps, weight_decay = group["lr"], group["eps"], group["weight_decay"]
    return Options(lr, beta1, beta2, _beta3(group), eps, weight_decay, maximize=group["maximize"])


def _friction(x: Tensor, version: int) -> Tensor:
    if version == 0:
        return x.abs().sigmoid()
    if version == 1:
        return x.sigmoid()
    return 9 * (x.abs() / 2).sigmoid() - 4


def _update_each(x: Tensors, previous_grads: list[Tensor], o: Options, group: dict[str, Any]) -> None:
    add_scaled = _reference.add_scaled
    for k, (param, exp_avg, previous_grad) in enumerate(zip(x.params, x.exp_avgs, previous_grads, strict=True)):
        g = x.grads[k].to(exp_avg.dtype)
        if o.maximize:
            g = -g
        step = x.steps[k]
        step += 1
        as_tensor = group["differentiable"] or torch.compiler.is_compiling()
        t: Scalar = step.to(torch.float64, copy=True) if as_tensor else step.item()
        targets = (param, exp_avg, x.exp_avg_sqs[k], x.exp_avg_lrs[k], previous_grad)
        # What autograd saves must not be overwritten at the end.
        p, m, v, s, before = (y.to(exp_avg.dtype, copy=torch.is_grad_enabled()) for y in targets)
        m = add_scaled(m * o.beta1, g, 1 - o.beta1)
        v = add_scaled(v * o.beta2, g * g, 1 - o.beta2)
        eta = _reference.learning_rate(v, t, o)
        s = add_scaled(s * o.beta3, eta, 1 - o.beta3)
        bound = (eta + s) / 2 if group["average_step"] else torch.minimum(eta, s)
        p = add_scaled(p, p, -o.weight_decay * o.lr)
        p = p - bound * m * _friction(before - g, group["version"])
        for target, value in zip(targets, (p, m, v, s, g), strict=True):
            target.copy_(value)


def _update_lists(x: Tensors, previous_grads: list[Tensor], o: Options, group: dict[str, Any]) -> None:
    grads = [g.to(m.dtype) for g, m in zip(x.grads, x.exp_avgs, strict=True)]
    if o.maximize:
        grads = list(torch._foreach_neg(grads))
    for members in _foreach.by_kind(x.params, grads).values():
        p, g, m, v, s, previous, steps = (
            [column[k] for k in members]
            for column in (x.params, grads, x.exp_avgs, x.exp_avg_sqs, x.exp_avg_lrs, previous_grads, x.steps)
        )
        _foreach.add_one_(steps)
        counts: list[Scalar] = [t if torch.compiler.is_compiling() else t.item() for t in steps]
        _foreach.average_(m, g, o.beta1)
        _foreach.average_squares_(v, g, o.beta2)
        bounds = _foreach.learning_rates(v, counts, o)
        _foreach.average_(s, bounds, o.beta3)
        if group["average_step"]:
            torch._foreach_add_(bounds, s)
            torch._foreach_div_(bounds, 2)
        else:
            bounds = list(torch._foreach_minimum(bounds, s))
        torch._foreach_mul_(bounds, m)
        torch._foreach_mul_(bounds, [_friction(a - b, group["version"]) for a, b in zip(previous, g, strict=True)])
        torch._foreach_copy_(previous, g)
        masters = [x.to(y.dtype) for x, y in zip(p, m, strict=True)]
        _foreach.decay_(masters, o.weight_decay * o.lr)
        torch._foreach_sub_(masters, bounds)
        if masters[0] is not p[0]:
            torch._foreach_copy_(p, masters)
