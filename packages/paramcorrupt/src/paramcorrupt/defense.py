"""The optimizer wrapper that trains weights to withstand corruption: which gradients a step takes, and at what cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo  # torch.compiler.disable imports the compiler at once
from torch.optim import LBFGS, Optimizer

from ._ascent import Ascent, Rule, Stats, wide
from ._passes import Passes
from ._shards import is_sharded, local, local_gradient
from ._tensors import check_device, check_eps, check_n, check_p, check_tensor, logical, parameters
from ._wrapping import Wrapper, is_perturbed
from .corruption import relative
from .restoring import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.amp import GradScaler

__all__ = ["Defense"]


class Defense(Wrapper):
    r"""Trains with any optimizer on a loss that also counts what corrupted weights lose.

    Each step ascends K times from a_0 = 0 to a_i = Proj(a_{i-1} + u_i) with the gradients g_i of L(w + a_{i-1}), where
    u_i is the corruption of length s eps / K that raises the loss most, and Proj the Euclidean projection onto
    :math:`\|a\|_p \le \varepsilon, \|a\|_0 \le n`. The base optimizer then steps from w with the gradient of

    .. math::
        L_\text{average} = \frac{1}{K + 1} \sum_{i=0}^{K} L(w + a_i), \qquad
        L_\text{last} = L(w + a_K), \qquad
        L_\text{mix} = (1 - \alpha)\, L(w) + \alpha\, L(w + a_K)

    where the a_i are constants. Some settings are known by other names:

    - SAM: ``steps=1, risk="last", step_size=1``
    - AWP: that, ``scope="tensor"`` and ``eps=relative(gamma)``, with ``perturb=False`` for biases and norm layers
    - AMP: ``scope="tensor", ascent="raw", risk="last"``

    Weights are set to round(w + a_i) and restored bit for bit from a copy. Running statistics of batch normalisation,
    and other buffers that a forward pass moves, stay as the clean pass leaves them. Every pass draws random numbers of
    its own, as for dropout. Clip gradients in a step hook of `base_optimizer`, which sees the combined ones. Memory
    beside the base optimizer's: two copies of the weights, and one more for "average" and "mix".

    Args:
        params: an ``nn.Module`` (best: its layers and names are known), tensors, or dicts of a group's ``params`` and
            options, among these ``perturb``: False for parameters that are trained, but not corrupted.
        base_optimizer: a class of optimizer, or another callable that makes one of the parameters.
        eps: the budget ||a||_p, in units of the weights, or ``relative(r)``, for r ||w||_p before each step. It may be
            assigned in mid-training. At 0 a step is the base optimizer's, with one call of the closure.
        steps: number of ascents K (default 2, the paper's).
        p: exponent of the norm, 1 to ``math.inf`` (default 2).
        n: how many weights may be corrupted at once, of all or, for ``scope="tensor"``, of each tensor (default all).
        risk: "average" (default, the paper's), "last" or "mix".
        alpha: weight of the corrupted loss in "mix", in [0, 1] (default 0.5; the papers' value is not known to us).
        step_size: s (default 1.5, the paper's).
        scope: "global" (default): one ball for all weights. "tensor": one for each tensor.
        ascent: "normalized" (default), or "raw": u_i = inner_lr g_i.
        inner_lr: of raw ascents (default 1, AMP's).
        **kw: for the base optimizer. Its own ``eps``, if it has one, is an option of a group, or is bound by
            ``functools.partial``.

    Raises:
        TypeError, ValueError: an option of the wrong type or out of its range, or parameters that overlap in memory.

    Attributes:
        base_optimizer: the optimizer that steps. ``param_groups``, ``state`` and checkpoints are its own.
        skipped_steps: how many steps were left out because a gradient was not finite.

    Example:
        >>> import torch, paramcorrupt
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = paramcorrupt.Defense(model, torch.optim.SGD, eps=0.05, lr=0.1, momentum=0.9)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(2, 3)).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)

    References:
        Zhang et al., on adversarial parameter defence, https://arxiv.org/abs/2109.02889 (average risk, multi-step).
        Foret et al., https://arxiv.org/abs/2010.01412 (SAM). Wu et al., https://arxiv.org/abs/2004.05884 (AWP).
        Zheng et al., https://arxiv.org/abs/2010.04925 (AMP).
    """

    def __init__(
        self,
        params: Any,
        base_optimizer: Callable[..., Optimizer],
        *,
        eps: float | relative,
        steps: int = 2,
        p: float = 2,
        n: int | None = None,
        risk: str = "average",
        alpha: float = 0.5,
        step_size: float = 1.5,
        scope: str = "global",
        ascent: str = "normalized",
        inner_lr: float = 1.0,
        **kw: Any,
    ) -> None:
        self.eps = eps
        _check_steps(steps)
        _check_choice("risk", risk, "average", "last", "mix")
        _check_number("alpha", alpha, most=1)
        _check_number("step_size", step_size)
        _check_choice("scope", scope, "global", "tensor")
        _check_choice("ascent", ascent, "normalized", "raw")
        _check_number("inner_lr", inner_lr)
        self._rule = Rule(
            p=check_p(p),
            n=n,
            steps=int(steps),
            step_size=float(step_size),
            by_tensor=scope == "tensor",
            inner_lr=float(inner_lr) if ascent == "raw" else None,
        )
        self._risk, self._alpha = risk, float(alpha)
        module = params if isinstance(params, nn.Module) else None
        if isinstance(params, Iterator):
            params = list(params)
        super().__init__(_made(base_optimizer, params if module is None else list(module.parameters()), kw))
        self._names = {p: name for name, p in module.named_parameters()} if module is not None else {}
        self._check_parameters()
        self._passes = Passes(module, [p for group in self.param_groups for p in group["params"]])
        self.skipped_steps = 0

    def _begin_life(self) -> None:
        super()._begin_life()
        self._ascent: Ascent | None = None
        self._kept: dict[Tensor, Tensor] = {}
        self._is_calling = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in super().__getstate__().items() if name not in ("_ascent", "_kept")}

    @property
    def eps(self) -> float | relative:
        """The budget of the next steps."""
        return self._eps

    @eps.setter
    def eps(self, value: float | relative) -> None:
        self._eps = value if isinstance(value, relative) else check_eps(value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters and their options, among these `perturb`, in mid-training.

        Raises:
            TypeError, ValueError: as when the optimizer was made. The groups are as before then.
        """
        super().add_param_group(param_group)
        try:
            self._check_parameters()
        except BaseException:
            self.param_groups.pop()
            raise

    @_disable_dynamo
    def step(self, closure: Callable[[], Any] | None = None, scaler: GradScaler | None = None) -> Any:
        """Take one step with K + 1 gradients.

        Args:
            closure: sets gradients to zero, runs all micro-batches of a step, calls ``backward`` and returns the loss.
                It is called K + 1 times, or fewer if a gradient is not finite.
            scaler: the one that scales the loss in `closure`. Call its ``update()`` after the step as always, and
                neither its ``unscale_`` nor its ``step``.

        Returns:
            The closure's first loss, that of the clean weights.

        Raises:
            TypeError: no closure, or one that returns None; a gradient that is sparse, complex or a subclass.
            ValueError: no parameter has a gradient.
            RuntimeError: the closure calls this. Whatever is raised, also by the closure, the weights are as before.
        """
        if not callable(closure):
            raise TypeError(f"closure must compute the loss and its gradient and return the loss, got {closure!r}")
        if scaler is not None and not (hasattr(scaler, "is_enabled") and hasattr(scaler, "get_scale")):
            raise TypeError(f"scaler must be a torch.amp.GradScaler, got {scaler!r}")
        if self._is_calling:
            raise RuntimeError("step must not be called by a closure: step(closure) calls that itself")
        with self._passes.clean():
            loss = self._call(closure)
        grads = self._gradients()
        if not grads:
            raise ValueError("closure must give parameters a gradient, got none; call backward in it")
        is_finite = self._climb(closure, grads, scaler)
        if not is_finite:
            self.skipped_steps += 1
        if scaler is not None and scaler.is_enabled():
            scaler.step(self.base_optimizer)  # which skips it where a gradient is not finite, and tells its update()
        elif is_finite:
            self.base_optimizer.step()
        return loss

    # --- the passes of a step -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def _climb(self, closure: Callable[[], Any], grads: dict[Tensor, Tensor], scaler: GradScaler | None) -> bool:
        """From the clean gradients on: leave in `.grad` those of the risk, and the weights as they were.

        Returns:
            Whether all gradients were finite. If not, those that are not stay in `.grad`.
        """
        stats = Stats.of(grads)
        chosen = [p for group in self.param_groups if is_perturbed(group) for p in group["params"] if p in grads]
        if not stats.is_finite or not chosen or not (self.eps.r if isinstance(self.eps, relative) else self.eps):
            return stats.is_finite
        scale = scaler.get_scale() if scaler is not None and scaler.is_enabled() else 1.0
        if self._ascent is None or not self._ascent.suits(chosen):
            self._ascent = Ascent(self._rule, chosen)
        ascent, sums = self._ascent, dict[Tensor, Tensor]()
        *shares, last = self._shares()
        ascent.begin(self.eps)
        try:
            for share in shares:
                self._add(sums, grads, share)
                ascent.take(grads, stats, scale)
                with self._passes.perturbed():
                    self._call(closure)
                grads = self._gradients()
                stats = Stats.of(grads)
                if not stats.is_finite:
                    return False
        finally:
            try:
                with uninterrupted():
                    ascent.restore()
            except KeyboardInterrupt:
                ascent.restore()  # it came before it was made to wait
                raise
        if sums:
            self._add(sums, grads, last)
            _set_gradients(sums)
        return True

    def _shares(self) -> list[float]:
        """What the gradient at each point w + a_i counts."""
        k = self._rule.steps
        if self._risk == "average":
            return [1 / (k + 1)] * (k + 1)
        alpha = 1.0 if self._risk == "last" else self._alpha
        return [1 - alpha, *[0.0] * (k - 1), alpha]

    def _call(self, closure: Callable[[], Any]) -> Any:
        self._is_calling = True
        try:
            with torch.enable_grad():
                loss = closure()
        finally:
            self._is_calling = False
        if loss is None:
            raise TypeError("closure must return the loss, got None")
        return loss

    # --- gradients ----------------------------------------------------------------------------------------------------

    def _gradients(self) -> dict[Tensor, Tensor]:
        """What this process holds of the gradient of every parameter that has one, row-major."""
        grads = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p not in self._names:  # the base optimizer was given another group
                    self._check_parameters()
                if (grad := local_gradient(p)) is not None:
                    check_tensor(f"gradient {self._names[p]!r}", grad)
                    grads[p] = logical(grad)
        check_device("gradient", [(self._names[p], grad) for p, grad in grads.items()])
        return grads

    def _add(self, sums: dict[Tensor, Tensor], grads: dict[Tensor, Tensor], share: float) -> None:
        """Add a share of gradients to sums, in memory that stays from step to step; float32 for types of 16 bits."""
        if not share or not grads:
            return
        for p in grads.keys() - sums.keys():
            grad, kept = grads[p], self._kept.get(p)
            if kept is None or (kept.shape, kept.dtype, kept.device) != (grad.shape, wide(grad.dtype), grad.device):
                kept = self._kept[p] = torch.empty(grad.shape, dtype=wide(grad.dtype), device=grad.device)
            sums[p] = kept.zero_()
        torch._foreach_add_([sums[p] for p in grads], list(grads.values()), alpha=share)

    # --- parameters ---------------------------------------------------------------------------------------------------

    def _check_parameters(self) -> None:
        """Know the names of all, and refuse those that cannot be perturbed."""
        names, taken = dict(self._names), set(self._names.values())
        chosen = []
        for number, group in enumerate(self.param_groups):
            given = group.get("param_names", ())
            for k, p in enumerate(group["params"]):
                if p not in names:
                    name = given[k] if k < len(given) and given[k] not in taken else f"{number}.{k}"
                    names[p] = name
                    taken.add(name)
                if is_perturbed(group) and p.requires_grad:
                    chosen.append((names[p], p))
        for name, p in chosen:
            check_tensor(f"parameter {name!r}", local(p) if is_sharded(p) else p)
        check_device("parameter", chosen)
        parameters([(name, local(p)) for name, p in chosen])
        sizes = [p.numel() for _, p in chosen]
        if chosen:
            check_n(self._rule.n, max(sizes) if self._rule.by_tensor else sum(sizes))
        self._names = names


def _set_gradients(values: Mapping[Tensor, Tensor]) -> None:
    """Write to `.grad`, in place where it is distributed as its parameter is."""
    for p in values:
        grad: Any = p.grad
        if grad is None or (is_sharded(p) and grad.placements != p.placements):  # type: ignore[attr-defined]
            p.grad = torch.zeros_like(p)
    torch._foreach_copy_([local(p.grad) for p in values], list(values.values()))


# --- what is refused --------------------------------------------------------------------------------------------------


def _made(make: object, params: Any, options: dict[str, Any]) -> Optimizer:
    """The base optimizer."""
    if not callable(make):
        raise TypeError(f"base_optimizer must be a class of optimizer or make one of parameters, got {make!r}")
    base = make(params, **options)
    if not isinstance(base, Optimizer):
        raise TypeError(f"base_optimizer must make a torch.optim.Optimizer, got {base!r}")
    if isinstance(base, LBFGS | Wrapper):
        raise TypeError(f"base_optimizer must take one gradient a step, got {type(base).__name__}, which takes several")
    return base


def _check_choice(argument: str, value: object, *choices: str) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _check_steps(steps: object) -> None:
    if isinstance(steps, bool) or not isinstance(steps, Integral):
        raise TypeError(f"steps must be an integer, got {steps!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps!r}")


def _check_number(argument: str, value: object, most: float = math.inf) -> None:
    """A finite number, at least 0 and at most `most`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument} must be a number, got {value!r}")
    if not 0 <= float(value) <= most or value == math.inf:
        rule = "finite and non-negative" if most == math.inf else f"from 0 to {most:g}"
        raise ValueError(f"{argument} must be {rule}, got {value!r}")
