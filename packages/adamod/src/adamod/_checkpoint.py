"""Reading checkpoints: ours, those of the 2019 release and `torch_optimizer`, and those of `pytorch_optimizer`."""

from __future__ import annotations

from collections import defaultdict
from copy import deepcopy
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _state
from ._reference import BLOCK

if TYPE_CHECKING:
    from .optimizer import AdaMod

_FOREIGN = ("step", "weight_decouple", "fixed_decay", "adam_debias")  # group options of `pytorch_optimizer`
_UNSUPPORTED = {"weight_decouple": False, "fixed_decay": True, "adam_debias": True}


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
    saved_groups = deepcopy(state_dict["param_groups"])
    if len(groups) != len(saved_groups):
        raise ValueError("loaded state dict has a different number of parameter groups")
    if any(len(g["params"]) != len(s["params"]) for g, s in zip(groups, saved_groups, strict=True)):
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of optimizer's group"
        )

    state: defaultdict[Any, Any] = defaultdict(dict)
    saved_state = state_dict["state"]
    known = set(chain.from_iterable(saved["params"] for saved in saved_groups))
    place = 0
    for group, saved in zip(groups, saved_groups, strict=True):
        group_step = _adopt_group(group, saved)
        for p, saved_id in zip(group["params"], saved["params"], strict=True):
            name = f"parameter {place}"
            if "param_names" in group:
                name += f" ({group['param_names'][place_in(group, p)]!r})"
            if saved_state.get(saved_id):
                state[p] = _convert_state(p, name, saved, saved_state[saved_id], group_step)
            place += 1
        saved["params"] = group["params"]
    for key, value in saved_state.items():
        if key not in known:
            state[key] = value
    return state, saved_groups


def place_in(group: dict[str, Any], p: Tensor) -> int:
    return next(i for i, other in enumerate(group["params"]) if other is p)


def _adopt_group(group: dict[str, Any], saved: dict[str, Any]) -> Any:
    """Complete a saved group by this optimizer's options, in place; returns the step that the group as a whole has."""
    for option, value in _UNSUPPORTED.items():
        if saved.get(option) is value:
            raise ValueError(f"the checkpoint was made with {option}={value}, which AdaMod does not have")
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


def _convert_state(
    p: Tensor, name: str, group: dict[str, Any], saved: dict[str, Any], group_step: Any
) -> dict[str, Any]:
    step = saved.get("step", group_step)
    if step is None:
        raise ValueError(f"{name}: the checkpoint has no step")
    if not isinstance(step, (int, float, Tensor)) or (isinstance(step, Tensor) and step.numel() != 1):
        raise ValueError(f"{name}: step in the checkpoint must be one number, got {step!r}")
    if isinstance(step, Tensor):
        step = step.detach().clone().reshape(())
        if group["capturable"] or group["fused"]:
            step = step.to(_state.local(p).device, torch.float32)
    state: dict[str, Any] = {"step": step}
    for key in _state.KEYS:
        if key not in saved:
            raise ValueError(
                f"{name}: the checkpoint has no {key} (is it Adam's?). Start AdaMod without it, or put "
                "lr / (exp_avg_sq.sqrt() + eps) into its states as exp_avg_lr"
                if key == "exp_avg_lr"
                else f"{name}: the checkpoint has no {key}"
            )
        _check_shape(p, name, key, saved)
        state.update(_state.converted(p, group, saved, key))
    for key, value in saved.items():
        if key not in state and not key.endswith("_scale"):
            state[key] = value.to(p.device) if isinstance(value, Tensor) else deepcopy(value)
    return state


def _check_shape(p: Tensor, name: str, key: str, saved: dict[str, Any]) -> None:
    x = saved[key]
    shapes = [p.shape, torch.Size((*p.shape, 2))] if p.is_complex() else [p.shape]
    if not isinstance(x, Tensor) or x.shape not in shapes:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"{name}: {key} in the checkpoint must have the shape {tuple(p.shape)} of the parameter, got {got}"
        )
    if x.dtype != torch.uint8:
        return
    scale = saved.get(key + "_scale")
    blocks = -(-_state.local(x).numel() // BLOCK)
    scales = _state.local(scale).nbytes / 2 if isinstance(scale, Tensor) and scale.ndim == 1 else 0
    if scales != blocks:
        raise ValueError(
            f"{name}: the 8-bit {key} in the checkpoint needs {blocks} scales, one per {BLOCK} elements of this shard, "
            f"got {scales:g}; gather the checkpoint with full_state_dict=True before it is loaded on other shards"
        )
