"""The AdaMod optimizer: validation, state and torch's conventions; the arithmetic is in the operator."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable imports the compiler at once
from torch.autograd.graph import increment_version
from torch.optim.optimizer import Optimizer, _get_scalar_dtype, _use_grad_for_differentiable

from . import _checkpoint, _foreach, _ops, _saved, _state, functional
from ._reference import Options, Tensors
from .statistics import BoundStats, recount, summarise

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim.optimizer import ParamsT

    from ._state import StateDtype

__all__ = ["AdaMod"]

_DEFAULTS: dict[str, Any] = {
    "beta3": 0.999,
    "variant": "code",
    "state_dtype": None,
    "bounded_decay": False,
    "skip_unseen": False,
    "foreach": None,
    "maximize": False,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "seed": 0,
}


_LAYOUT = operator.attrgetter("layout")


def _same(xs: list[Any], ys: list[Any]) -> bool:
    """Whether two lists hold the very same objects."""
    return len(xs) == len(ys) and all(map(operator.is_, xs, ys))


@dataclass(slots=True)
class _Part:
    """Parameters of one group that one operator call can step: same device, same random seed."""

    device: torch.device
    shard: int
    params: list[Tensor] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # of each parameter among all of the optimizer
    states: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class _Plan:
    """What does not change from step to step in a group."""

    key: tuple[Any, ...]
    params: list[Tensor]
    path: str
    parts: list[_Part]
    fit: bool  # all of them, to be stepped
    unserved: bool  # by the operator, although it was asked for
    has_complex: bool
    sharded: bool
    quantised: bool


@dataclass(slots=True)
class _Batch:
    """The tensors of one part that have a gradient now."""

    group: dict[str, Any]
    plan: _Plan
    part: _Part
    params: list[Tensor]
    fresh: list[Tensor] = field(default_factory=list)  # parameters that have no state yet
    tensors: Tensors = field(default_factory=Tensors)


class AdaMod(Optimizer):
    r"""AdaMod: Adam whose learning rates are bounded by their own moving average.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1-\beta_1) g_t, \qquad v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2 \\
        \eta_t &= \gamma \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t} \Big/ (\sqrt{v_t} + \epsilon) \\
        s_t &= \beta_3 s_{t-1} + (1-\beta_3)\, \eta_t \\
        \theta_t &= \theta_{t-1} (1 - \gamma\lambda) - \min(\eta_t, s_t)\, m_t

    Since s starts at zero, every element warms up over about :math:`1/(1-\beta_3)` steps; afterwards a sudden large
    learning rate is cut to the running mean.

    Args:
        params: tensors, (name, tensor) pairs, or dicts of a group's ``params`` and options. Every option below, and
            ``seed``, may differ by group.
        lr: learning rate :math:`\gamma`, a float or a 1-element tensor (default 1e-3, the paper's).
        betas: decay of m and v (default (0.9, 0.999), the paper's), floats or 1-element tensors.
        beta3: decay of s (default 0.999, the authors' code; their docstring's 0.9999 is for Transformers).
        eps: added to the root of v (default 1e-8, the authors').
        weight_decay: decoupled :math:`\lambda` (default 0, the authors').
        variant: "code", as the authors published it (default), or "paper": the bias corrections outside of the bound,
            :math:`\eta_t = \gamma / (\sqrt{v_t / (1-\beta_2^t)} + \epsilon)` and :math:`m_t / (1-\beta_1^t)`.
        state_dtype: None, torch.float32, torch.bfloat16 or "int8", or a dict of these with the keys "exp_avg",
            "exp_avg_sq", "exp_avg_lr". None keeps the parameter's dtype, but float32 for parameters of 16 bits. "int8"
            stores 8-bit floats with one scale per 256 elements, for parameters of 4096 elements and more. bfloat16
            parameters and states (but m) and all 8-bit states are rounded stochastically, by a counter-based generator
            seeded with the group option ``seed`` (default 0; None rounds to nearest, which stalls s and v).
        bounded_decay: multiply the weight decay of an element by s/eta where its step is bounded (default False).
        skip_unseen: leave s alone until an element's first gradient that is not zero (default False). For embeddings
            of which many rows stay unused: otherwise s there starts from lr/eps.
        foreach, maximize, capturable, differentiable, fused: as in :class:`torch.optim.AdamW`, but ``fused`` is on by
            default wherever this package has a kernel: strided, sharded and complex parameters on CPU and CUDA.

    With :class:`torch.amp.GradScaler` gradients are unscaled inside the kernel and never written; torch's own fused
    optimizers write them back unscaled.

    Raises:
        ValueError, TypeError: an option out of its range, or a parameter whose elements share memory.
        RuntimeError: ``fused`` with ``foreach`` or ``differentiable``; at a step, a sparse gradient, one of a
            parameter of integers, or ``fused=True`` on a device without a kernel. After an error nothing has changed,
            in no group.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = AdaMod(model.parameters(), lr=1e-2, weight_decay=1e-4)
        >>> model(torch.ones(2, 3)).sum().backward()
        >>> optimizer.step()

    Reference: J. Ding, X. Ren, R. Luo, X. Sun, An Adaptive and Momental Bound Method for Stochastic Learning,
    https://arxiv.org/abs/1910.12249
    """

    _plans: dict[int, _Plan]  # by the id of the group
    _known_states: list[dict[str, Any]]  # those that the plans were made with
    _steps: dict[torch.device, tuple[Tensor, list[Tensor]]]
    _counting: bool
    _counts: dict[torch.device, Tensor]
    _hypers: dict[tuple[int, torch.device], tuple[Tensor, list[float | None]]]

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        beta3: float | Tensor = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0,
        *,
        variant: str = "code",
        state_dtype: StateDtype = None,
        bounded_decay: bool = False,
        skip_unseen: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "beta3": beta3,
            "eps": eps,
            "weight_decay": weight_decay,
            "variant": variant,
            "state_dtype": state_dtype,
            "bounded_decay": bounded_decay,
            "skip_unseen": skip_unseen,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "seed": 0,
        }
        self._forget()
        self._check_group(defaults)
        super().__init__(params, defaults)

    # --- groups and options ---------------------------------------------------------------------------------------

    def _check_group(self, group: Mapping[str, Any]) -> None:
        check_options(group)
        if group["variant"] not in functional.VARIANTS:
            raise ValueError(f"variant must be one of {functional.VARIANTS}, got {group['variant']!r}")
        for name in ("bounded_decay", "skip_unseen"):
            if not isinstance(group[name], bool):
                raise TypeError(f"{name} must be True or False, got {group[name]!r}")
        _state.check_dtype_option(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters and their options in mid-training, as torch's optimizers do; bad options change nothing."""
        if isinstance(param_group, dict):
            self._check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        try:
            _state.check_params(param_group, sum(len(group["params"]) for group in self.param_groups[:-1]))
        except BaseException:
            self.param_groups.pop()
            raise
        counts = self._counts  # the new parameters come behind those that are counted
        self._forget()
        self._counts = counts

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()
        for group in self.param_groups:
            for option, default in _DEFAULTS.items():
                group.setdefault(option, default)
            for p in group["params"]:
                of_p = self.state.get(p)
                if of_p and not isinstance(of_p["step"], Tensor):
                    of_p["step"] = torch.tensor(float(of_p["step"]), dtype=torch.float32)

    def _forget(self) -> None:
        """Drop what was derived from groups and states."""
        self._plans = {}
        self._known_states = []
        self._steps = {}
        self._counts = {}
        if not hasattr(self, "_counting"):
            self._counting = False
            self._hypers = {}

    @property
    def _step_supports_amp_scaling(self) -> bool:
        return all(plan.path == "fused" for _, plan in self._planned())

    def _planned(self) -> list[tuple[dict[str, Any], _Plan]]:
        """Every group with its plan, which is made anew where the group or its place has changed."""
        planned, first = [], 0
        for group in self.param_groups:
            params = group["params"]
            key = (first, group["fused"], group["foreach"], group["differentiable"], isinstance(group["lr"], Tensor))
            plan = self._plans.get(id(group))
            if plan is None or plan.unserved or plan.key != key or not _same(plan.params, params):
                plan = self._plans[id(group)] = self._new_plan(group, first, key)
                self._steps.clear()  # places may have changed
            planned.append((group, plan))
            first += len(params)
        return planned

    def _new_plan(self, group: dict[str, Any], first: int, key: tuple[Any, ...]) -> _Plan:
        _state.check_dtype_option(group)
        params = group["params"]
        locals_ = [_state.local(p) for p in params]
        path = functional.choose(
            locals_,
            fused=group["fused"],
            foreach=group["foreach"],
            differentiable=group["differentiable"],
            tensor_lr=isinstance(group["lr"], Tensor) and not group["capturable"],
        )
        if len(set(params)) < len(params):
            path = "loop"  # the operator would step what stands twice in the list on two threads at once
        if path == "foreach" and not group["foreach"] and _state.is_low(group, params):
            path = "loop"
        parts: dict[tuple[torch.device, int], _Part] = {}
        for place, (p, local) in enumerate(zip(params, locals_, strict=True), first):
            kind = (local.device, _state.shard_coordinate(p))
            part = parts.setdefault(kind, _Part(*kind))
            part.params.append(p)
            part.places.append(place)
            part.states.append(self.state.get(p, {}))
        return _Plan(
            key=key,
            params=list(params),
            path=path,
            parts=list(parts.values()),
            fit=all(p.dtype in _state.DTYPES for p in params),
            unserved=path == "fused" and not all(map(functional.serves, locals_)),
            has_complex=any(p.is_complex() for p in params),
            sharded=any(map(_state.sharding, params)),
            quantised=any(key + "_scale" in self.state.get(p, ()) for p in params for key in _state.KEYS),
        )

    # --- the step -------------------------------------------------------------------------------------------------

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
        _health_check(self)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for batch in self._collect():
            if batch.plan.path == "fused":
                self._run_operator(batch)
            else:
                self._run_reference(batch)
        return loss

    @_disable_dynamo
    def _collect(self) -> list[_Batch]:
        """All that the step will touch. Every check is made before the first state is created."""
        batches = self._gather_all()
        if any(batch.fresh for batch in batches):
            self._init_states(batches)
            batches = self._gather_all()
        return [batch for batch in batches if batch.tensors.params]

    def _gather_all(self) -> list[_Batch]:
        states = list(self.state.values())
        if not _same(self._known_states, states):
            self._plans.clear()
            self._known_states = states
        return [self._gather(group, plan, part) for group, plan in self._planned() for part in plan.parts]

    def _gather(self, group: dict[str, Any], plan: _Plan, part: _Part) -> _Batch:
        params, states, places = part.params, part.states, part.places
        grads = [p.grad for p in params]
        if type(None) in set(map(type, grads)):
            alive = [k for k, grad in enumerate(grads) if grad is not None]
            params, states, places, grads = ([xs[k] for k in alive] for xs in (params, states, places, grads))  # type: ignore[assignment]
        if not (plan.fit and {torch.strided}.issuperset(map(_LAYOUT, grads))):
            _state.check_gradients(group, plan.key[0], type(self).__name__)
        for p in params if plan.unserved else ():
            if not functional.serves(_state.local(p)):
                raise RuntimeError(
                    "`fused=True` requires all the params to be floating point Tensors of supported devices: "
                    f"{sorted(_ops.KERNELS)} but {p.dtype} and {p.device.type}"
                )
        if not all(states):
            fresh = [p for p, state in zip(params, states, strict=True) if not state]
            return _Batch(group, plan, part, params, fresh=fresh)
        x = Tensors(
            params,
            grads,  # type: ignore[arg-type]
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["exp_avg_lr"] for state in states],
            steps=[state["step"] for state in states],
            streams=places,
        )
        if group["differentiable"] and any(step.requires_grad for step in x.steps):
            raise RuntimeError("`requires_grad` is not supported for `step` in differentiable mode")
        if plan.path == "fused":
            views = self._packed_steps(part.device)[1]
            views = [views[place] for place in places]
            if not _same(x.steps, views):  # new, loaded or foreign steps: take their values
                for state, view in zip(states, views, strict=True):
                    step = state["step"]
                    state["step"] = view.copy_(step.reshape(())) if isinstance(step, Tensor) else view.fill_(step)
        if plan.quantised:
            empty = torch.empty(0, dtype=torch.int16, device=part.device)
            keys = [key + "_scale" for key in _state.KEYS]
            x.scales = [_state.local(state.get(key, empty)) for state in states for key in keys]
        if plan.sharded:
            x.grads = [_state.local_gradient(p, g) for p, g in zip(x.params, x.grads, strict=True)]
        if plan.has_complex:
            x.grads = [g.resolve_conj() for g in x.grads]
        for convert, wanted in ((_state.locals_, plan.sharded), (functional.real, plan.has_complex)):
            if wanted:
                x.params, x.grads, x.exp_avgs, x.exp_avg_sqs, x.exp_avg_lrs = (
                    convert(column) for column in (x.params, x.grads, x.exp_avgs, x.exp_avg_sqs, x.exp_avg_lrs)
                )
        return _Batch(group, plan, part, params, tensors=x)

    def _init_states(self, batches: list[_Batch]) -> None:
        for batch in batches:
            group = batch.group
            for p in batch.fresh:
                state = self.state[p]
                on_device = group["capturable"] or batch.plan.path == "fused"
                state["step"] = torch.zeros(
                    (),
                    dtype=torch.float32 if batch.plan.path == "fused" else _get_scalar_dtype(),
                    device=batch.part.device if on_device else "cpu",
                )
                state.update(_state.zeros(p, group))

    def _packed_steps(self, device: torch.device) -> tuple[Tensor, list[Tensor]]:
        """One vector of the steps of all parameters on a device, and its 0-dim views, which are the states' `step`."""
        total = sum(len(group["params"]) for group in self.param_groups)
        packed = self._steps.get(device)
        if packed is None or len(packed[1]) != total:
            vector = torch.zeros(total, dtype=torch.float32, device=device)
            packed = self._steps[device] = (vector, list(vector.unbind()))
        return packed

    def _counts_on(self, device: torch.device) -> Tensor | None:
        if not self._counting:
            return None
        counts = self._counts.get(device)
        total = sum(len(group["params"]) for group in self.param_groups)
        if counts is None or len(counts) < total:
            longer = torch.zeros(total, 130, dtype=torch.int64, device=device)
            if counts is not None:
                longer[: len(counts)] = counts
            counts = self._counts[device] = longer
        return counts

    def _hyper(self, group: dict[str, Any], device: torch.device) -> Tensor:
        """The operator's `hyper`. With tensors on the device it is one buffer for ever, which a CUDA graph may hold."""
        numbers = (group["lr"], *group["betas"], group["beta3"], group["eps"], group["weight_decay"])
        if not any(isinstance(x, Tensor) and x.device.type != "cpu" for x in numbers):
            return torch.tensor([float(x) for x in numbers], dtype=torch.float64, device="cpu")
        key = (id(group), device)
        if key not in self._hypers:
            self._hypers[key] = (torch.empty(6, dtype=torch.float64, device=device), [None] * 6)
        buffer, floats = self._hypers[key]
        for i, x in enumerate(numbers):
            if isinstance(x, Tensor):
                buffer[i].copy_(x.reshape(()), non_blocking=True)
            elif floats[i] != x:
                buffer[i].fill_(x)
                floats[i] = x
        return buffer

    @_disable_dynamo
    def _run_operator(self, batch: _Batch) -> None:
        group, device = batch.group, batch.part.device
        seed = group["seed"]
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        x = batch.tensors
        _ops.step_(
            x.params,
            x.grads,
            x.exp_avgs,
            x.exp_avg_sqs,
            x.exp_avg_lrs,
            x.scales,
            self._packed_steps(device)[0],
            x.streams,
            self._hyper(group, device),
            paper=group["variant"] == "paper",
            bounded_decay=group["bounded_decay"],
            skip_unseen=group["skip_unseen"],
            maximize=group["maximize"],
            seed=None if seed is None else seed + 65537 * batch.part.shard,
            grad_scale=None if grad_scale is None else grad_scale.to(device, non_blocking=True),
            found_inf=None if found_inf is None else found_inf.to(device, non_blocking=True),
            stats=self._counts_on(device),
        )
        increment_version(batch.params)  # so that a backward pass through what was overwritten fails

    def _run_reference(self, batch: _Batch) -> None:
        group = batch.group
        seed = group["seed"]
        differentiable = group["differentiable"]
        options = Options(
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            beta3=group["beta3"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            paper=group["variant"] == "paper",
            bounded_decay=group["bounded_decay"],
            skip_unseen=group["skip_unseen"],
            maximize=group["maximize"],
            seed=None if seed is None or differentiable else seed + 65537 * batch.part.shard,
        )
        stats = self._counts_on(batch.part.device)
        if batch.plan.path == "foreach":
            _foreach.step_(batch.tensors, options, capturable=group["capturable"], stats=stats)
        else:
            functional.loop_(batch.tensors, options, tensor_steps=group["capturable"] or differentiable, stats=stats)

    # --- statistics -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def bound_stats(self, collect: bool | None = None) -> dict[Tensor, BoundStats]:
        """How often, and where, the bound is active: counted by the kernel while it steps.

        Args:
            collect: True counts from the next step on. False returns what was counted and stops. None returns what was
                counted since the last call and goes on counting; when nothing is being counted, it recomputes the last
                step from the states and starts counting.

        Returns:
            For each parameter that was stepped: the exact fraction of clipped elements, and histograms over octaves of
            eta (the learning rate before the bound) and s (the bound) from an eighth of its runs of 512 elements. Of
            a sharded parameter, the local shard.
        """
        counting = self._counting
        counts = self._counts
        if collect is None and not counting:
            counts = recount(self)
        self._counting = collect is not False
        self._counts = {}
        return summarise(self, counts) if counting or collect is None else {}

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The states and options as of torch's optimizers, in types that :mod:`torch.distributed.checkpoint` can
        gather: `state_dtype` by its name, and the scales of 8-bit states as pairs of bytes."""
        return _checkpoint.portable(super().state_dict())

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this class, of the 2019 release, of `torch_optimizer` or of `pytorch_optimizer`.

        Options come from the checkpoint, but `state_dtype` stays as it is here and the states are converted to it:
        with equal settings they are loaded bit for bit.

        Args:
            state_dict: what `state_dict()` of one of these optimizers returned.

        Raises:
            ValueError, TypeError: it is no such checkpoint: groups or shapes that do not match, states that are missing
                (Adam's checkpoints have no exp_avg_lr), options out of their range, or settings of `pytorch_optimizer`
                that AdaMod does not have. The message names the place. Nothing has changed then.
        """
        _saved.check_type("state_dict", state_dict, Mapping, "a dict")
        state_dict = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            replaced = pre_hook(self, state_dict)
            if replaced is not None:
                state_dict = replaced
        state, param_groups = _checkpoint.convert(self, state_dict)
        self.__setstate__({"state": state, "param_groups": param_groups})
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)


def check_options(group: Mapping[str, Any]) -> None:
    """The options that all optimizers of this package share."""
    lr, betas, beta3 = group["lr"], group["betas"], group["beta3"]
    eager_foreach = group["foreach"] and not group.get("capturable", False)
    if isinstance(lr, Tensor):
        if eager_foreach:
            raise ValueError("lr as a Tensor is not supported for capturable=False and foreach=True")
        if lr.numel() != 1:
            raise ValueError(f"Tensor lr must be 1-element, got {lr.numel()} elements")
    if not lr >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")
    if not group["eps"] >= 0.0:
        raise ValueError(f"Invalid epsilon value: {group['eps']}")
    if not group["weight_decay"] >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {group['weight_decay']}")
    if len(betas) != 2:
        hint = ", pass the third as beta3=..." if len(betas) == 3 else ""
        raise ValueError(f"betas needs 2 values, got {len(betas)}{hint}")
    named = (("betas[0]", betas[0]), ("betas[1]", betas[1]), ("beta3", beta3))
    for i, (name, beta) in enumerate(named):
        if isinstance(beta, Tensor):
            if eager_foreach:
                raise ValueError(f"{name} as a Tensor is not supported for capturable=False and foreach=True")
            if beta.numel() != 1:
                raise ValueError(f"Tensor {name} must be 1-element, got {beta.numel()} elements")
        if not 0.0 <= beta < 1.0:
            where = f"beta parameter at index {i}" if i < 2 else "beta3 parameter"
            raise ValueError(f"Invalid {where}: {beta}")
    if isinstance(betas[0], Tensor) != isinstance(betas[1], Tensor):
        raise ValueError("betas must be either both floats or both Tensors")
    if group.get("fused"):
        if group["differentiable"]:
            raise RuntimeError("`fused` does not support `differentiable`")
        if group["foreach"]:
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")


def _health_check(optimizer: Optimizer) -> None:
    """torch's check of `capturable` under graph capture, by its name in this version of torch."""
    name = "_accelerator_graph_capture_health_check"
    check = getattr(optimizer, name, None) or optimizer._cuda_graph_capture_health_check
    check()
