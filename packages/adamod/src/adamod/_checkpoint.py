"""Reading checkpoints: ours, those of the 2019 release and `torch_optimizer`, and those of `pytorch_optimizer`."""

from __future__ import annotations

from collections import defaultdict
from copy import deepcopy
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _saved, _state
from .functional import VARIANTS

if TYPE_CHECKING:
    from .optimizer import AdaMod

_FOREIGN = ("step", "weight_decouple", "fixed_decay", "adam_debias")  # group options of `pytorch_optimizer`
_OPTIONS: dict[str, _saved.Check] = {
    "lr": _saved.check_number,
    "betas": partial(_saved.check_betas, sizes=(2, 3)),  # `pytorch_optimizer` has beta3 there
    "beta3": _saved.decay,
    "eps": _saved.check_number,
    "weight_decay": _saved.check_number,
    "variant": partial(_saved.check_choice, choices=VARIANTS),
    "seed": _saved.check_seed,
    **dict.fromkeys(("bounded_decay", "skip_unseen", "maximize", "capturable", "differentiable"), _saved.flag),
    **dict.fromkeys(("foreach", "fused"), _saved.optional_flag),
    # Settings of `pytorch_optimizer` of which AdaMod has but one.
    "weight_decouple": partial(_saved.check_choice, choices=(True,)),
    "fixed_decay": partial(_saved.check_choice, choices=(False,)),
    "adam_debias": partial(_saved.check_choice, choices=(False,)),
}
_ADAMS = (
    ". If it is Adam's, start AdaMod without it, or put lr / (exp_avg_sq.sqrt() + eps) into its states as exp_avg_lr"
)


def portable(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict in types that `torch.distributed.checkpoint` moves: dtypes by their names, scales as bytes."""

    def named(option: Any) -> Any:
        if isinstance(option, dict):
            return {key: named(value) for key, value in option.items()}
        return str(option).removeprefix("torch.") if isinstance(option, torch.dtype) else option

    def bytewise(state: Any) -> Any:
        if not isinstance(state, dict):
            return state
        return {
            key: _state.to_bytes(x) if isinstance(x, Tensor) and x.dtype == torch.int16 else x
            for key, x in state.items()
        }

    return {
        **state_dict,
        "state": {key: bytewise(state) for key, state in state_dict["state"].items()},
        "param_groups": [{**group, "state_dtype": named(group["state_dtype"])} for group in state_dict["param_groups"]],
    }


def convert(optimizer: AdaMod, state_dict: dict[str, Any]) -> tuple[dict[Any, Any], list[dict[str, Any]]]:
    """The states, by parameter, and the groups that `optimizer` takes from a checkpoint; neither is changed."""
    groups = optimizer.param_groups
    _saved.check(state_dict, groups, _OPTIONS, _state.KEYS, {"exp_avg_lr": _ADAMS})
    saved_groups = deepcopy(state_dict["param_groups"])
    state: defaultdict[Any, Any] = defaultdict(dict)
    saved_state = state_dict["state"]
    known = set(chain.from_iterable(saved["params"] for saved in saved_groups))
    for k, (group, saved) in enumerate(zip(groups, saved_groups, strict=True)):
        group_step = _adopt_group(group, saved)
        _saved.check_together(f'state_dict["param_groups"][{k}]', optimizer._check_group, saved)
        for p, saved_id in zip(group["params"], saved["params"], strict=True):
            if saved_state.get(saved_id):
                state[p] = _convert_state(p, saved, saved_state[saved_id], group_step)
        saved["params"] = group["params"]
    for key, value in saved_state.items():
        if key not in known:
            state[key] = value
    return state, saved_groups


def _adopt_group(group: dict[str, Any], saved: dict[str, Any]) -> Any:
    """Complete a saved group by this optimizer's options, in place; returns the step that the group as a whole has."""
    step = saved.get("step")
    for option in _FOREIGN:
        saved.pop(option, None)
    if len(saved.get("betas", ())) == 3:
        *betas, saved["beta3"] = saved["betas"]
        saved["betas"] = tuple(betas)
        saved.pop("foreach", None)  # that is how `pytorch_optimizer` steps, not what
    for option, value in group.items():
        saved.setdefault(option, value)
    saved["state_dtype"] = group["state_dtype"]
    return step


def _convert_state(p: Tensor, group: dict[str, Any], saved: dict[str, Any], group_step: Any) -> dict[str, Any]:
    step = saved.get("step", group_step)
    if isinstance(step, Tensor):
        step = step.detach().clone().reshape(())
        if group["capturable"] or group["fused"]:
            step = step.to(_state.local(p).device, torch.float32)
    state: dict[str, Any] = {"step": step}
    for key in _state.KEYS:
        state.update(_state.converted(p, group, saved, key))
    for key, value in saved.items():
        if key not in state and not key.endswith("_scale"):
            state[key] = value.to(p.device) if isinstance(value, Tensor) else deepcopy(value)
    return state
