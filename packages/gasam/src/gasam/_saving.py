"""Groups that are added, checkpoints and copies: for all of them the weights must be the clean ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import _saved, _validation
from ._perturbing import Perturbing
from ._segments import Memory

_TRANSIENT = {
    "_ascent", "_base", "_clean", "_clean_found_inf", "_known", "_last", "_left", "_losses", "_scale", "_segments",
    "step",  # a learning rate scheduler puts one here
}  # fmt: skip


class Saving(Perturbing):
    """Saves and restores its base and what it has itself, which is little: buffers and copies of weights are not."""

    def _refuse(self, call: str) -> None:
        if self.is_perturbed:
            raise RuntimeError(f"{call} needs the clean weights: call second_step() or restore() before")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters and their options, among these `rho`, in mid-training.

        Raises:
            RuntimeError: the weights are perturbed.
            ValueError, TypeError: as when the optimizer was made. The groups are as before then.
        """
        self._refuse("add_param_group()")
        key = self._radius
        rho = param_group.get(key, self.defaults[key]) if isinstance(param_group, dict) else 0.0
        _validation.check_number("rho", rho, 0)
        self.base_optimizer.add_param_group(param_group)
        self.param_groups[-1].setdefault(key, rho)
        try:
            self._current_segments()
        except BaseException:
            for p in self.param_groups.pop()["params"]:
                self._facts.pop(p, None)
            raise
        self._passes.params = list(self._facts)
        if self._only is not None:
            self._passes.only_params = self._chosen()

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's checkpoint, and "gasam": the step, the running reference, and what a preset keeps.

        Tools that make the state of a new optimizer by a step of their own, as :mod:`torch.distributed.checkpoint`
        does, are given `base_optimizer`.

        Raises:
            RuntimeError: the weights are perturbed.
        """
        self._refuse("state_dict()")
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state_dict = dict(self.base_optimizer.state_dict())
        state_dict["gasam"] = {
            "step": self._step,
            "running": self._running.clone(),
            "seed": self._seed.clone(),
            **self._tensors(),
        }
        for after in self._optimizer_state_dict_post_hooks.values():
            replaced = after(self, state_dict)
            state_dict = state_dict if replaced is None else replaced
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a checkpoint of this class or, with which everything but the base starts anew, of the base optimizer.

        Raises:
            RuntimeError: the weights are perturbed.
            ValueError, TypeError: it is no such checkpoint: groups, states or options that do not match. The message
                names the place, and nothing has changed.
        """
        self._refuse("load_state_dict()")
        _saved.check_type("state_dict", state_dict, Mapping, "a dict")
        state_dict = state_dict.copy()
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            replaced = hook(self, state_dict)
            state_dict = state_dict if replaced is None else replaced
        _saved.check(state_dict, self.base_optimizer, self._radius)
        own = state_dict.pop("gasam", {})
        _validation.check_saved(own)
        own = dict(own)
        rho = [group[self._radius] for group in self.param_groups]
        step = int(own.pop("step", 0))
        self._check_tensors(own)
        before = {"state": self.state, "param_groups": self.param_groups}
        try:
            self.base_optimizer.load_state_dict(state_dict)
        except BaseException as error:
            self.base_optimizer.__dict__.update(before)
            if isinstance(error, LookupError | AttributeError):
                kind = type(self.base_optimizer).__name__
                raise ValueError(f"state_dict must be a checkpoint of {kind}, which misses {error}") from error
            raise
        for group, radius in zip(self.param_groups, rho, strict=True):
            group.setdefault(self._radius, radius)
        self._has_ascended = False
        self._step = step
        for name, tensor in (("running", self._running), ("seed", self._seed)):
            tensor.copy_(own.pop(name)) if name in own else tensor.zero_()
        self._load_tensors(own)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        self._refuse("copying")
        state = {
            name: value
            for name, value in self.__dict__.items()
            if name not in _TRANSIENT and not name.startswith("_optimizer_") and not isinstance(value, Memory)
        }
        if self._only != "norm" and self._only is not None:  # a predicate, or modules
            state["_only"] = list(self._chosen())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_life()
