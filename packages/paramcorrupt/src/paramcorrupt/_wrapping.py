"""An optimizer that stands for another: groups, states, hooks, checkpoints and copies; it knows nothing of steps."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch.optim import Optimizer

_HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


class Wrapper(Optimizer):
    """Shares groups, state and checkpoints with a base optimizer, whose groups get a key `perturb`."""

    base_optimizer: Optimizer

    def __init__(self, base_optimizer: Optimizer) -> None:
        self.base_optimizer = base_optimizer
        base_optimizer.defaults.setdefault("perturb", True)
        for group in base_optimizer.param_groups:
            group.setdefault("perturb", True)
            is_perturbed(group)
        self._begin_life()

    def _begin_life(self) -> None:
        """All that is neither saved nor copied."""
        for hooks in _HOOKS:
            setattr(self, hooks, OrderedDict())
        self._patch_step_function()

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

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters and their options, among these `perturb`, to the base optimizer."""
        if isinstance(param_group, dict):
            is_perturbed(param_group)
        self.base_optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's checkpoint: there is nothing else to save."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state_dict = self.base_optimizer.state_dict()
        for after in self._optimizer_state_dict_post_hooks.values():
            replaced = after(self, state_dict)
            state_dict = state_dict if replaced is None else replaced
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a checkpoint of this class or of the base optimizer, under which `perturb` stays as it is."""
        state_dict = state_dict.copy()
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            replaced = before(self, state_dict)
            state_dict = state_dict if replaced is None else replaced
        for group in state_dict["param_groups"]:
            is_perturbed(group)
        perturb = list(map(is_perturbed, self.param_groups))
        self.base_optimizer.load_state_dict(state_dict)
        for group, own in zip(self.param_groups, perturb, strict=True):
            group.setdefault("perturb", own)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        # a learning rate scheduler puts its own `step` on the instance
        return {name: x for name, x in self.__dict__.items() if name != "step" and name not in _HOOKS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_life()


def is_perturbed(group: dict[str, Any]) -> bool:
    """Whether the parameters of a group are corrupted: a checkpoint of the base optimizer does not tell.

    Raises:
        TypeError: the group has something else than True or False.
    """
    value = group.get("perturb", True)
    if not isinstance(value, bool):
        raise TypeError(f"perturb must be True or False in every group, got {value!r}")
    return value
