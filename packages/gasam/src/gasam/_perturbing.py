"""An optimizer that stands for its base, and moves the weights around the base's step; not the order of the calls."""

from __future__ import annotations

from collections import OrderedDict
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import _ops, _validation
from ._ascent import Ascent, Rule
from ._base import Base, by_device, unscale
from ._interrupts import uninterrupted
from ._segments import Memory, Segments, Units, as_parameter, local
from ._selection import Selection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._passes import Passes

_HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


class Perturbing(Optimizer):
    """Ascends, restores and descends. What a preset changes are the methods that are called with gradients.

    `params` are those of the user, all other tensors are what this process holds of them, dense in memory like the
    parameters. They are the perturbed parameters that have gradients.
    """

    _step_supports_amp_scaling = True  # or torch's GradScaler would not call `step` after an overflow
    _keeps_clean = False  # whether `_combine` and `_after_base` need the gradients of the first ascent
    _needs_gradient = True  # whether an ascent follows a gradient, or precedes the only one

    base_optimizer: Optimizer
    _rule: Rule
    _radius: str  # the key of `rho` in groups
    _averages: bool
    _only: Any
    _adaptive: bool | str
    _kind_of_segments: str
    _passes: Passes
    _running: Tensor
    _seed: Tensor
    _skipped: Tensor
    grad_scale: Tensor | None  # GradScaler sets these for the time of `step`
    found_inf: Tensor | None

    def __init__(self, base_optimizer: Optimizer, selection: Selection) -> None:
        self.base_optimizer = base_optimizer
        self._step = 0
        self._facts: dict[Tensor, tuple[str, bool, int]] = {}  # name, perturbed, weighted
        self._learn(selection)
        self._begin_life()
        device = self._current_segments().device
        self._running = torch.zeros(2, dtype=torch.float64, device=device)
        self._seed = torch.zeros((), dtype=torch.int64, device=device)
        self._skipped = torch.zeros((), dtype=torch.float32, device=device)

    def _begin_life(self) -> None:
        """All that is neither saved nor copied."""
        for hooks in _HOOKS:
            setattr(self, hooks, OrderedDict())
        self._patch_step_function()
        self._base = Base(self.base_optimizer)
        self._segments: Segments | None = None
        self._known: list[Tensor] = []  # the parameters that the segments were made of
        self._checked_rho: tuple[Any, ...] = ()
        self._taken = 0  # ascents of this step that are not restored, also those that moved nothing
        self._has_ascended = False  # in this step
        self._ascent: Ascent | None = None  # that the weights are at
        self._last: Ascent | None = None  # that was taken last
        self._forget_clean()
        self._scale: Tensor | None = None  # of the loss of the first ascent
        self._forget_memory()

    def _forget_clean(self) -> None:
        """Before the gradients of the ascents of another step are kept."""
        self._clean: dict[Tensor, Tensor] = {}
        self._clean_found_inf: Tensor | None = None  # of the ascents that were restored

    def _forget_memory(self) -> None:
        """Before memory of another layout is needed."""
        self._kept = Memory()  # for the clean gradients, or what a preset that needs none makes of them

    # --- what is the base optimizer's -----------------------------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.base_optimizer.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        self.base_optimizer.param_groups = value

    @property
    def state(self) -> Any:
        return self.base_optimizer.state

    @state.setter
    def state(self, value: Any) -> None:
        self.base_optimizer.state = value

    @property
    def defaults(self) -> dict[str, Any]:
        return self.base_optimizer.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        self.base_optimizer.defaults = value

    @property
    def is_perturbed(self) -> bool:
        """Whether an ascent was taken that is not yet restored."""
        return self._taken > 0

    # --- for presets ----------------------------------------------------------------------------------------------

    def _direction(self, params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        """What to ascend along. `grads` is empty if no gradient is needed."""
        return grads

    def _combine(self, params: list[Tensor], clean: list[Tensor], grads: list[Tensor], found_inf: Tensor) -> None:
        """Change the last gradients in place. `found_inf` is not 0 if `clean`, or they, are not finite."""
        if self._averages and self._last is not None:
            share = 1 / (self._last.taken + 1)
            self._mix(grads, clean, found_inf.new_full((2,), share, dtype=torch.float64), found_inf)

    def _plain(self, params: list[Tensor], grads: list[Tensor]) -> None:
        """Change in place the gradients of a step that `every` leaves without an ascent."""

    def _after_base(self, params: list[Tensor], clean: list[Tensor], grads: list[Tensor], found_inf: Tensor) -> None:
        """What follows the base optimizer's step."""

    def _tensors(self) -> dict[str, Any]:
        """What to save."""
        return {}

    def _check_tensors(self, tensors: dict[str, Any]) -> None:
        """Refuse what was saved if it does not fit the parameters."""

    def _load_tensors(self, tensors: dict[str, Any]) -> None:
        """Take what was saved. A dict of another optimizer has nothing."""

    @staticmethod
    def _mix(grads: list[Tensor], kept: list[Tensor], c: Tensor, found_inf: Tensor) -> None:
        """grads = c[0] kept + c[1] grads, unless `found_inf`, on any number of devices."""
        for alike in by_device(grads):
            device = grads[alike[0]].device
            on_device = [x.to(device, non_blocking=True) for x in (c, found_inf)]
            _ops.mix_([grads[k] for k in alike], [kept[k] for k in alike], *on_device)

    def _inner_products(self, params: list[Tensor], a: list[Tensor], b: list[Tensor]) -> Tensor:
        """<a, a>, <a, b> and <b, b> in float64, over all devices, and all processes that hold shards."""
        return self._current_segments().inner_products(params, a, b)

    # --- parameters -----------------------------------------------------------------------------------------------

    def _learn(self, selection: Selection) -> None:
        for p, perturbed, weighted in zip(selection.params, selection.perturbed, selection.weighted, strict=True):
            self._facts.setdefault(p, (selection.names[p], perturbed, weighted))

    def _chosen(self) -> set[Tensor]:
        """The parameters that are perturbed."""
        return {p for p, (_, perturbed, _) in self._facts.items() if perturbed}

    def _current_segments(self) -> Segments:
        """The tables of the parameters as they are now."""
        params = [p for group in self.param_groups for p in group["params"]]
        if (
            self._segments is None
            or len(params) != len(self._known)
            or not all(map(is_, params, self._known))
            or not self._segments.is_current()
        ):
            if not self._facts.keys() >= set(params):
                self._learn(Selection.of(self.param_groups, self._only, self._adaptive, may_be_empty=True))
            groups = {p: k for k, group in reversed(list(enumerate(self.param_groups))) for p in group["params"]}
            chosen = [(p, self._facts[p]) for p in dict.fromkeys(params)]
            self._segments = Segments(
                [(p, name, groups[p], weighted) for p, (name, perturbed, weighted) in chosen if perturbed],
                self._kind_of_segments,
            )
            self._known = params
            self._forget_memory()
        return self._segments

    def _rho(self) -> tuple[float, ...]:
        """The radius of each group, as it is now."""
        rho = tuple(group[self._radius] for group in self.param_groups)
        if rho != self._checked_rho:
            for each in rho:
                _validation.check_number("rho", each, 0)
            self._checked_rho = rho
        return rho

    # --- ascent and descent ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def _ascend(self, given: Sequence[Tensor | None] | None = None, scale: Tensor | None = None) -> None:
        """Move the weights along gradients, which are those `given`, or `.grad`."""
        ascent = self._ascent
        segments = self._current_segments() if ascent is None else ascent.units.source
        params = segments.params
        if not self._needs_gradient:
            given = [p if p.requires_grad else None for p in params]
        elif given is None:
            given = [p.grad for p in params]
        else:
            given = list(given)
            _validation.check_given_gradients(segments.named, given)
        if ascent is None:
            units = segments.units(given)
            if not units.order:
                raise RuntimeError("no perturbed parameter has a gradient: call backward() before the ascent")
        else:
            units = ascent.units
            given = [torch.zeros_like(p) if grad is None else grad for p, grad in zip(params, given, strict=True)]
        grads = units.arrange(given) if self._needs_gradient else []
        scale = None if scale is None else scale.to(units.device)
        if ascent is None:
            self._scale = scale
        if self._averages or (self._keeps_clean and ascent is None):
            self._keep(units, grads)
        grads = self._direction(units.params, grads)
        if ascent is None:
            ascent = Ascent(self._rule, units)
            self._running, self._seed, self._skipped = (
                x.to(units.device) for x in (self._running, self._seed, self._skipped)
            )
        ascent.take(grads, units.rho(self._rho()), self._running, scale, self._seed)
        self._seed.add_(1)
        self._ascent = self._last = ascent
        torch.clear_autocast_cache()

    def _keep(self, units: Units, grads: list[Tensor]) -> None:
        """Keep gradients, or add them to those of other ascents and micro-batches of the step."""
        kept = self._kept.views(units.locals)
        if not self._clean:
            torch._foreach_copy_(kept, grads)
        else:
            for p, x in zip(units.params, kept, strict=True):
                if p not in self._clean:
                    x.zero_()
            torch._foreach_add_(kept, grads)
        self._clean.update(zip(units.params, kept, strict=True))

    @torch.no_grad()
    def _restore(self) -> None:
        """The weights as they were."""
        with uninterrupted():
            if self._ascent is not None:
                self._ascent.units.check_unchanged()
                self._ascent.units.restore()
            self._end_ascents()

    def _end_ascents(self) -> None:
        """After the weights were restored."""
        if self._ascent is not None:
            found_inf = self._ascent.found_inf
            self._skipped.add_(found_inf)
            if self._clean:
                before = self._clean_found_inf
                self._clean_found_inf = found_inf if before is None else torch.maximum(before, found_inf)
        self._ascent = None
        self._taken = 0
        self._passes.end_perturbed()
        torch.clear_autocast_cache()

    @torch.no_grad()
    def _descend(self, *, plain: bool) -> None:
        """The base optimizer's step, from the clean weights. `plain`: `every` has left out the ascent."""
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        ascent, clean = self._ascent, self._clean
        if ascent is not None:
            ascent.units.check_unchanged()
        mixed = None
        try:
            if clean or (plain and type(self)._plain is not Perturbing._plain):
                mixed = self._combined(ascent, clean, scale, found_inf)
                scale = None
            restored = ascent is not None and self._base.step_from(ascent.units, scale, found_inf)
        except BaseException:
            self._restore()
            self._forget_clean()
            raise
        if restored:
            self._end_ascents()
        else:
            self._restore()
            self._base.step(scale, found_inf)
        if mixed is not None and clean:
            self._after_base(*mixed)
        self._forget_clean()
        self._step += 1

    def _combined(
        self, ascent: Ascent | None, clean: dict[Tensor, Tensor], scale: Tensor | None, found_inf: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
        """Let a preset change the gradients, from which the scale of the loss is divided out before."""
        if scale is not None:
            unscale([p.grad for group in self.param_groups for p in group["params"] if p.grad is not None], scale)
        clean_scale = scale if self._scale is None else self._scale
        if clean and clean_scale is not None:
            unscale(list(clean.values()), clean_scale)
        given = {p: p.grad for p in self._current_segments().params if p.grad is not None}
        for p, grad in given.items():
            _validation.check_gradient(self._facts[p][0], p, grad)
        params, grads = list(given), [as_parameter(p, grad) for p, grad in given.items()]
        skipped = torch.zeros((), device=self._seed.device)
        for each in (None if ascent is None else ascent.found_inf, self._clean_found_inf, found_inf):
            if each is not None:
                skipped = torch.maximum(skipped, each.reshape(()).to(skipped))
        firsts = [clean[p] if p in clean else torch.zeros_like(local(p)) for p in params] if clean else []
        if clean:
            self._combine(params, firsts, grads, skipped)
        else:
            self._plain(params, grads)
        for grad, changed in zip(map(local, given.values()), grads, strict=True):
            if grad is not changed:
                grad.copy_(changed)
        return params, firsts, grads, skipped
