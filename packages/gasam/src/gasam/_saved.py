"""What a checkpoint must be: refused by the place in it, with the rule and the value, before anything is changed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from inspect import signature
from itertools import count
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from ._validation import check_number

_NEEDED: dict[type[Optimizer], tuple[str, ...]] = {
    SGD: (),
    Adam: ("step", "exp_avg", "exp_avg_sq"),
    AdamW: ("step", "exp_avg", "exp_avg_sq"),
}
_OF_SHAPE = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")  # of the parameter, in the states of these


def check(state_dict: Any, base: Optimizer, radius: str) -> None:
    """A checkpoint of `base`, in whose groups `radius` is the key of `rho`; what GASAM has itself is looked at apart.

    States with other keys are kept, and options that are missing are the base's matter.

    Raises:
        ValueError, TypeError: it is none.
    """
    check_type("state_dict", state_dict, Mapping, "a dict")
    for key, kind, words in (("state", Mapping, "a dict"), ("param_groups", (list, tuple), "a list")):
        _check_has("state_dict", state_dict, key)
        check_type(f'state_dict["{key}"]', state_dict[key], kind, words)
    groups, saved_groups = base.param_groups, state_dict["param_groups"]
    if len(groups) != len(saved_groups):
        raise ValueError(
            f'state_dict["param_groups"] must have as many groups as the optimizer, {len(groups)}, '
            f"got {len(saved_groups)}"
        )
    numbers = count()
    for k, (group, saved) in enumerate(zip(groups, saved_groups, strict=True)):
        place = f'state_dict["param_groups"][{k}]'
        check_type(place, saved, Mapping, "a dict")
        _check_params(place, saved, group)
        for option in saved.keys() & base.defaults.keys() - {radius}:
            _check_option(f'{place}["{option}"]', option, saved[option], base)
        if radius in saved:
            check_number(f'{place}["{radius}"]', saved[radius], 0)
        for p, saved_id in zip(group["params"], saved["params"], strict=True):
            state, place = state_dict["state"].get(saved_id, {}), f'state_dict["state"][{saved_id!r}]'
            check_type(place, state, Mapping, "a dict")
            _check_state(place, state, p, f"parameter {next(numbers)}", type(base))


def check_type(place: str, x: object, kind: type | tuple[type, ...], words: str) -> None:
    if not isinstance(x, kind):
        raise TypeError(f"{place} must be {words}, got {x!r}")


def check_tensor(place: str, x: Any, p: Tensor, what: str) -> None:
    """Values for each element of a parameter."""
    check_type(place, x, Tensor, "a tensor")
    if x.shape != p.shape:
        raise ValueError(f"{place} must have the shape {tuple(p.shape)} of {what}, got {tuple(x.shape)}")
    if not x.is_floating_point() or x.layout is not torch.strided:
        raise ValueError(f"{place} must be dense and of floating point, got {x.dtype}, {x.layout}")
    _check_values(place, x, p)


def _check_values(place: str, x: Tensor, p: Tensor) -> None:
    if x.is_meta and not p.is_meta:
        raise ValueError(f"{place} must be a tensor with values, got one on the device meta")
    if x.is_complex() and not p.is_complex():
        raise ValueError(f"{place} must be real, as the parameter is, got {x.dtype}")


def _check_has(place: str, tree: Mapping[Any, Any], key: str) -> None:
    if key not in tree:
        raise ValueError(f'{place} must have the key "{key}", got {list(tree)}')


def _check_params(place: str, saved: Mapping[str, Any], group: Mapping[str, Any]) -> None:
    """The numbers of parameters, or their names, as `torch.distributed.checkpoint` has them."""
    _check_has(place, saved, "params")
    size = len(group["params"])
    for key in ("params", "param_names") if "param_names" in saved else ("params",):
        check_type(f'{place}["{key}"]', saved[key], (list, tuple), "a list")
        if len(saved[key]) != size:
            raise ValueError(
                f'{place}["{key}"] must have as many entries as the optimizer\'s group has parameters, {size}, '
                f"got {len(saved[key])}"
            )
        for k, x in enumerate(saved[key]):
            if isinstance(x, bool) or not isinstance(x, int | str):
                raise TypeError(f'{place}["{key}"][{k}] must be an integer or a name, got {x!r}')


def _check_option(place: str, option: str, x: Any, base: Optimizer) -> None:
    """Of the kind of the base's default and, if the base is one of torch's, what its constructor takes."""
    kind, default = type(base), base.defaults[option]
    _check_like(place, x, default)
    if option in ("foreach", "fused") and x is not None:
        check_type(place, x, bool, "None, True or False")
    is_flag = default is None or isinstance(default, bool)
    if kind.__module__.startswith("torch.optim.") and option in signature(kind).parameters and not is_flag:
        try:
            kind([torch.zeros(1, 1)], **{option: x})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{place} must be an option of {kind.__name__}, got {x!r}: {error}") from error


def _check_like(place: str, x: Any, default: Any) -> None:
    if isinstance(default, bool):
        check_type(place, x, bool, "True or False")
    elif isinstance(default, Real) or (isinstance(default, Tensor) and default.numel() == 1):
        _check_number(place, x)
    elif isinstance(default, tuple | list):
        check_type(place, x, (tuple, list), "a tuple")
        if len(x) != len(default):
            raise ValueError(f"{place} must have {len(default)} entries, got {len(x)}")
        for k, (each, like) in enumerate(zip(x, default, strict=True)):
            _check_like(f"{place}[{k}]", each, like)


def _check_number(place: str, x: Any) -> None:
    """A real number that a float holds, or a tensor of one."""
    if isinstance(x, Tensor):
        if x.numel() != 1 or x.is_complex() or x.dtype is torch.bool:
            raise ValueError(f"{place} must be one real number, got shape {tuple(x.shape)} of {x.dtype}")
        if x.is_meta:
            return
        x = x.item()
    elif isinstance(x, bool) or not isinstance(x, Real):
        raise TypeError(f"{place} must be a number, got {x!r}")
    if x != x or (isinstance(x, Integral) and abs(int(x)) > sys.float_info.max):
        raise ValueError(f"{place} must be a number that a float holds, got {x!r}")


def _check_state(place: str, state: Mapping[str, Any], p: Tensor, what: str, kind: type[Optimizer]) -> None:
    for key in _NEEDED.get(kind, ()) if state else ():
        _check_has(place, state, key)
    for key, x in state.items():
        here = f"{place}[{key!r}]" if not isinstance(key, str) else f'{place}["{key}"]'
        if key == "step":
            _check_number(here, x)
            if not (isinstance(x, Tensor) and x.is_meta) and not x >= 0:
                raise ValueError(f"{here} must be non-negative, got {x!r}")
        elif kind in _NEEDED and key in _OF_SHAPE and not (x is None and kind is SGD):
            check_tensor(here, x, p, what)
        elif isinstance(x, Tensor):
            _check_values(here, x, p)
