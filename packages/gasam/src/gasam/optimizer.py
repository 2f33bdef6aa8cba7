"""The GASAM optimizer: when which gradient is taken, and torch's conventions; the arithmetic is in the operators."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from warnings import warn

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo  # torch.compiler.disable imports the compiler at once
from torch.optim import Optimizer

from . import _validation
from ._ascent import Rule
from ._base import radius_key
from ._interrupts import uninterrupted
from ._passes import Passes
from ._saving import Saving
from ._segments import local
from ._selection import Selection

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.amp import GradScaler

__all__ = ["GASAM"]


class GASAM(Saving):
    r"""GA-SAM: sharpness-aware minimisation whose perturbations adapt to the strength of gradients.

    A step takes the gradient where the loss is larger, and applies it with any other optimizer. Each segment k of
    :math:`d_k` of the N perturbed parameters moves by its own strength

    .. math::
        r_k &= \|u_k\|_2 / \sqrt{d_k}, \qquad u = T g \\
        s_k &= \rho\, (d_k / N)^{a}\, \operatorname{clip}(r_k / r_\text{ref},\, 1/c,\, c)^{b} \\
        \epsilon_k &= s_k\, T u_k / \|u_k\|_2

    The default is a reconstruction from the abstract, the introduction and the stated theory of the paper, which
    publishes neither code nor exponents that we could check: perturbations are larger where gradients are small,
    :math:`b = -1`. The text also allows the other sign, ``strength_exponent=1``.

    Args:
        params: an ``nn.Module`` (best: names, norm layers, batch statistics and DDP are known), tensors, (name, tensor)
            pairs, or dicts of a group's ``params`` and options, among these ``rho``.
        base_optimizer: a class of optimizer, or an instance over the same parameters.
        rho: radius of the perturbation :math:`\rho`, in units of the parameters (default 0.05, SAM's). Each step reads
            it from the groups, whose key it is, or ``ascent_rho`` if the base has its own rho, like Adadelta.
        strength_exponent: b (default -1, reconstructed; 0 ignores the strength of gradients).
        size_exponent: a (default 0.5, reconstructed: with b = 0 the whole perturbation has the norm rho).
        reference: what r is compared with: "running", the mean over steps of the root mean square of u (default),
            "global", that of this step, or "none", 1.
        segments: "tensor" (default), "group", "global", or "channel": each row of a tensor's first dimension.
        norm: 2 (default, SAM's), or ``math.inf``, where e = s T sign(u), and half a power of d/N less.
        steps: number of ascents K (default 1, SAM's). Each has the length 1.5/K, within the ball of the strengths.
        risk: "last", the gradient after the last ascent (default), or "average", the mean of all K + 1.
        adaptive: False: T = 1 (default). True: T = abs(w) + eta for weights, as ASAM. "layer": T = norm of w_k.
        eta: added to abs(w), in units of the parameters (default 0.01, ASAM's).
        every: ascend in each of so many steps only (default 1).
        ascent_fraction: share of the batch that the closure's ascents take, in (0, 1] (default 1): if below 1, the
            closure is called with the keyword ``fraction``.
        only: perturb no more than these: "norm", the norm layers, a predicate of a name and a parameter, or parameters
            or modules (default all).
        share_dropout: draw the same random numbers in every call of the closure of a step (default False).
        keep_batch_stats: let running statistics be those of the clean pass (default True).
        sync_ascent: let DDP average the gradient of the ascent (default False: each process ascends along its own,
            unless that gradient is also applied, as with ``risk="average"``).
        strength_clip: c (default 10, measured: without it tensors of tiny gradients are thrown far away).
        **base_kwargs: for the class of the base optimizer.

    Raises:
        ValueError, TypeError: an option out of its range, or parameters that share memory. At a step:
        RuntimeError: a sparse gradient, no gradient at all, or calls in an order that has no meaning. Weights and
            states are unchanged then; an exception in the closure restores the weights bit for bit, too.

    Attributes:
        base_optimizer: the optimizer that steps. ``param_groups``, ``state`` and ``defaults`` are its own.
        is_perturbed: whether the weights are away from where the base optimizer left them.
        needs_ascent: whether this step has an ascent: not if ``every`` skips it, or ``rho`` is 0.
        skipped_ascents: on the parameters' device: how many ascents a gradient that was not finite has prevented.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = GASAM(model, torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)
        >>> def closure():
        ...     loss = model(torch.ones(2, 3)).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)

    Reference: Z. Zhang, R. Luo, Q. Su, X. Sun, GA-SAM: Gradient-Strength based Adaptive Sharpness-Aware Minimization
    for Improved Generalization, https://arxiv.org/abs/2210.06895
    """

    def __init__(
        self,
        params: Any,
        base_optimizer: type[Optimizer] | Optimizer,
        rho: float = 0.05,
        *,
        strength_exponent: float = -1.0,
        size_exponent: float = 0.5,
        reference: str = "running",
        segments: str = "tensor",
        norm: float = 2,
        steps: int = 1,
        risk: str = "last",
        adaptive: bool | str = False,
        eta: float = 0.01,
        every: int = 1,
        ascent_fraction: float = 1.0,
        only: Any = None,
        share_dropout: bool = False,
        keep_batch_stats: bool = True,
        sync_ascent: bool = False,
        strength_clip: float = 10.0,
        **base_kwargs: Any,
    ) -> None:
        _validation.check_options(
            rho=rho,
            strength_exponent=strength_exponent,
            size_exponent=size_exponent,
            reference=reference,
            segments=segments,
            norm=norm,
            steps=steps,
            risk=risk,
            adaptive=adaptive,
            eta=eta,
            every=every,
            ascent_fraction=ascent_fraction,
            only=only,
            strength_clip=strength_clip,
        )
        _validation.check_base(base_optimizer, base_kwargs, GASAM)
        if isinstance(only, Iterator):
            only = list(only)
        selection = Selection.of(params, only, adaptive)
        key = self._radius = radius_key(base_optimizer)
        of_groups = {
            p: group[key]
            for group in selection.groups
            if isinstance(group, dict) and key in group
            for p in group["params"]
        }
        for each in of_groups.values():
            _validation.check_number("rho", each, 0)
        if isinstance(base_optimizer, Optimizer):
            _validation.check_same_parameters(base_optimizer, selection.params)
            base = base_optimizer
        else:
            base = base_optimizer(selection.groups, **base_kwargs)
        self._rule = Rule.of(
            strength_exponent=strength_exponent,
            size_exponent=size_exponent,
            strength_clip=strength_clip,
            reference=reference,
            norm=norm,
            eta=eta,
            steps=steps,
            adaptive=adaptive,
        )
        self._averages = risk == "average"
        self._kind_of_segments = segments
        self._adaptive = adaptive
        self._only = only
        self._every = every
        self._fraction = ascent_fraction
        self._warned = False
        super().__init__(base, selection)
        is_new = key not in base.defaults  # or its groups have the radius of another wrapper
        base.defaults[key] = rho
        for group in base.param_groups:
            own = group.get(key, rho) if is_new else rho
            group[key] = next((of_groups[p] for p in group["params"] if p in of_groups), own)
        self._passes = Passes(
            selection.module,
            share_dropout=share_dropout,
            keep_batch_stats=keep_batch_stats,
            sync_ascent=sync_ascent or self._averages or self._keeps_clean,  # what enters the step is everyone's
            only_params=None if only is None else self._chosen(),
            params=selection.params,
        )

    def _begin_life(self) -> None:
        super()._begin_life()
        self._losses: tuple[Any, Any] | None = None
        self._has_closure = False
        self._is_calling = False  # the closure
        self._left: set[tuple[int, int]] | None = set()  # gradients that the last step left, and versions, if known

    # --- where a step is ------------------------------------------------------------------------------------------

    @property
    def needs_ascent(self) -> bool:
        """Whether this step has an ascent: not if `every` skips it, or `rho` is 0 in all groups."""
        return self._step % self._every == 0 and any(self._rho())

    @property
    def skipped_ascents(self) -> Tensor:
        """How many steps had no ascent because its gradient was not finite, on the parameters' device."""
        return self._skipped.to(torch.int64)

    def strengths(self) -> dict[str, Tensor]:
        """The strength s of the segment of each parameter that was perturbed last, on its device.

        Returns:
            By a parameter's name, or "group.index", a tensor of shape (), or of the channels.

        Raises:
            RuntimeError: there was no ascent yet.
        """
        if self._last is None:
            raise RuntimeError("strengths() needs an ascent: call step(closure) or first_step() before")
        return self._last.strengths_by_name()

    def sharpness(self) -> float:
        """L(w + e) - L(w) of the last ascent, NaN if a gradient that was not finite has prevented it.

        Raises:
            RuntimeError: the last ascent was none of a closure that returned losses, or its losses are those of
                different parts of a batch.
        """
        if self._fraction < 1:
            raise RuntimeError("sharpness() needs both losses of the same batch: set ascent_fraction=1")
        if self._losses is None or self._last is None or any(loss is None for loss in self._losses):
            raise RuntimeError(
                "sharpness() needs the losses of an ascent: call step(closure) with one that returns them"
            )
        clean, last = map(float, self._losses)
        return math.nan if self._last.found_inf else last - clean

    # --- steps ----------------------------------------------------------------------------------------------------

    @_disable_dynamo
    def step(self, closure: Callable[..., Any] | None = None) -> Any:
        """Take a whole step with a closure, or finish the one whose ascent was taken.

        Args:
            closure: computes the loss and its gradient, and returns the loss. It is called `steps` + 1 times, or once
                if there is no ascent; `.grad` is None before each call.

        Returns:
            The closure's first loss, that of the clean weights.

        Raises:
            RuntimeError: no closure and no ascent; a closure while the weights are perturbed, or from a GradScaler.
        """
        self._refuse_within("step()")
        if closure is not None:
            return self._step_with(closure)
        if not self.is_perturbed and not self._has_ascended and self.needs_ascent:
            if self._base.makes_states():
                return self.base_optimizer.step()
            raise RuntimeError(
                "step() finishes a step whose ascent was taken: call first_step() after the first backward(), or pass a"
                " closure"
            )
        self._finish()
        return None

    def first_step(self, zero_grad: bool = False, *, scaler: GradScaler | None = None) -> None:
        """Ascend along `.grad`: to be called after the first backward pass, or after each of the first `steps`.

        Args:
            zero_grad: whether to set the gradients to None afterwards.
            scaler: the one that scaled the loss.

        Raises:
            RuntimeError: there is no gradient, or there were `steps` ascents already.
        """
        self.perturb(scaler=scaler)
        if zero_grad:
            self.zero_grad()

    def second_step(self, zero_grad: bool = False) -> None:
        """Restore the weights and let the base optimizer step: to be called after the last backward pass.

        Args:
            zero_grad: whether to set the gradients to None afterwards.

        Raises:
            RuntimeError: the weights are not perturbed.
        """
        if not self.is_perturbed:
            raise RuntimeError("second_step() finishes a perturbed step: call first_step() before")
        self.step()
        if zero_grad:
            self.zero_grad()

    def ascent_step(self, *, scaler: GradScaler | None = None) -> None:
        """`first_step(zero_grad=True)`."""
        self.first_step(True, scaler=scaler)

    def descent_step(self) -> None:
        """`second_step(zero_grad=True)`."""
        self.second_step(True)

    @_disable_dynamo
    def perturb(self, grads: Sequence[Tensor | None] | None = None, *, scaler: GradScaler | None = None) -> None:
        """Ascend, and leave `.grad` alone.

        Args:
            grads: gradients to ascend along, for each perturbed parameter one or None (default `.grad`).
            scaler: the one that scaled the loss of these gradients.

        Raises:
            RuntimeError: there is no gradient, or there were `steps` ascents already.
        """
        if not self.is_perturbed:
            self._forget_clean()
        self._perturb(grads, scaler)

    def _perturb(self, grads: Sequence[Tensor | None] | None, scaler: GradScaler | None) -> None:
        self._refuse_within("perturb()")
        _validation.check_scaler(scaler)
        if self._passes.share_dropout:
            raise RuntimeError("share_dropout needs a closure that can be called again: call step(closure)")
        if self._taken >= self._rule.steps:
            raise RuntimeError(
                f"a step has {self._rule.steps} ascent(s), and they were taken: call second_step() or restore() before"
            )
        with uninterrupted():
            if self.needs_ascent or self._ascent is not None:
                scale = None
                if scaler is not None and scaler.is_enabled():
                    scale = scaler.scale(torch.ones((), device=self._seed.device))
                self._losses = None
                self._ascend(grads, scale)
            if self._taken == 0 and self._needs_gradient:
                self._passes.begin_perturbed()
            self._taken += 1
            self._has_ascended = True

    @_disable_dynamo
    def restore(self) -> None:
        """Put the weights back, bit for bit, without a step.

        Raises:
            RuntimeError: the weights are not perturbed, or a parameter was resized or cast since.
        """
        self._refuse_within("restore()")
        if not self.is_perturbed:
            raise RuntimeError("restore() undoes perturb(): call that before")
        self._restore()
        self._forget_clean()

    @contextmanager
    def perturbed(
        self, grads: Sequence[Tensor | None] | None = None, *, scaler: GradScaler | None = None
    ) -> Iterator[None]:
        """A context in which the weights are perturbed; see `perturb`. An exception restores them, too.

        A step may have one for each micro-batch: presets that mix gradients then mix the sums over micro-batches.

        Raises:
            RuntimeError: the weights are perturbed already.
        """
        if self.is_perturbed:
            raise RuntimeError("perturbed() does not nest: call restore() or second_step() before")
        try:
            self._perturb(grads, scaler)
            yield
            if self.is_perturbed:
                self._restore()
        except BaseException:
            if self.is_perturbed:
                self.restore()
            raise

    def watch(self, module: nn.Module) -> None:
        """Make known a module of whose parameters `params` is a list: its batch statistics, and DDP."""
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be an nn.Module, got {module!r}")
        self._passes.watch(module)

    # --- the calls of a closure -----------------------------------------------------------------------------------

    def _step_with(self, closure: Callable[..., Any]) -> Any:
        if "found_inf" in self.__dict__:
            del self.grad_scale, self.found_inf
            raise RuntimeError(
                "GradScaler.step takes no closure: call first_step(scaler=scaler), then scaler.step(optimizer)"
            )
        if self.is_perturbed:
            raise RuntimeError("step(closure) takes its own ascents: call step() to finish the step of first_step()")
        _validation.check_closure(closure, fraction=self._fraction < 1)
        ascends = self.needs_ascent
        self._forget_clean()
        self._warn_of_gradients()
        if not ascends:
            loss = self._evaluate(closure, 1.0)
        else:
            self._losses = None
            try:
                loss = self._ascend_with(closure)
            except BaseException:
                self._left = None
                self._passes.undo()
                self._restore()
                self._forget_clean()
                raise
        try:
            self._finish()
        except BaseException:
            if self.is_perturbed:  # Ctrl-C came before it was made to wait
                self._restore()
                self._forget_clean()
            raise
        return loss

    def _ascend_with(self, closure: Callable[..., Any]) -> Any:
        if not self._needs_gradient:
            with uninterrupted():
                self._ascend()
                self._taken = 1
            return self._evaluate(closure, 1.0)
        with self._passes.clean():
            loss = last = self._evaluate(closure, self._fraction)
        for later in reversed(range(self._rule.steps)):
            with uninterrupted():
                self._ascend()
                self._taken += 1
            with self._passes.perturbed(last=not later):
                last = self._evaluate(closure, self._fraction if later else 1.0)
        clean, last = (x.detach() if isinstance(x, Tensor) else x for x in (loss, last))
        self._losses = clean, last
        return loss

    def _evaluate(self, closure: Callable[..., Any], fraction: float) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None
        self._is_calling = True
        try:
            with torch.enable_grad():
                return closure(fraction=fraction) if self._fraction < 1 else closure()
        finally:
            self._is_calling = False

    def _refuse_within(self, call: str) -> None:
        if self._is_calling:
            raise RuntimeError(
                f"{call} must not be called by a closure: step(closure) ascends, restores and steps itself"
            )

    def _warn_of_gradients(self) -> None:
        """Once, if the closure is about to lose gradients that the last step did not leave."""
        known, self._has_closure = self._left, True
        if self._warned or known is None:
            return
        for grad in (p.grad for group in self.param_groups for p in group["params"]):
            if grad is not None and (id(grad), grad._version) not in known and (grad.is_sparse or local(grad).any()):
                self._warned = True
                message = "step(closure) drops the gradients that it finds: call backward() inside the closure"
                warn(message, stacklevel=7)
                return

    def _finish(self) -> None:
        with uninterrupted():
            self._descend(plain=self._step % self._every != 0 and any(self._rho()))
            self._has_ascended = False
        self._left = None
        if self._has_closure and not self._warned:
            grads = [p.grad for group in self.param_groups for p in group["params"]]
            self._left = {(id(grad), grad._version) for grad in grads if grad is not None}
