"""What a checkpoint must be: refused by the place in it, with the rule and the value, before anything is changed."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from . import _state
from ._reference import BLOCK

Check = Callable[[str, Any], None]  # of a place in the checkpoint and what is there

_DTYPES = {
    False: (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.uint8),
    True: (torch.complex128, torch.complex64, torch.complex32),
}

# --- numbers and choices --------------------------------------------------------------------------------------------


def check_type(place: str, x: object, kind: type | tuple[type, ...], words: str) -> None:
    if not isinstance(x, kind):
        raise TypeError(f"{place} must be {words}, got {x!r}")


def check_number(place: str, x: Any, least: float = 0.0, below: float = math.inf) -> None:
    """A real number, or a tensor of one."""
    if isinstance(x, Tensor):
        if x.numel() != 1 or x.is_complex() or x.dtype is torch.bool:
            raise ValueError(f"{place} must be one real number, got shape {tuple(x.shape)} of {x.dtype}")
        if x.is_meta:
            return
        x = _state.local(x).item()
    elif isinstance(x, bool) or not isinstance(x, Real):
        raise TypeError(f"{place} must be a number, got {x!r}")
    if not least <= x < min(below, sys.float_info.max):  # an int may be above all floats
        rule = f"finite and at least {least:g}" if below == math.inf else f"in [{least:g}, {below:g})"
        raise ValueError(f"{place} must be {rule}, got {x!r}")


def check_choice(place: str, x: object, choices: Sequence[object]) -> None:
    """One of these; neither 0 nor 1 stands for a bool."""
    if not any(type(x) is type(choice) and x == choice for choice in choices):
        raise (ValueError if isinstance(x, str | bool) else TypeError)(
            f"{place} must be {' or '.join(map(repr, choices))}, got {x!r}"
        )


def check_betas(place: str, x: Any, sizes: tuple[int, ...] = (2,)) -> None:
    check_type(place, x, (tuple, list), "a tuple of numbers")
    if len(x) not in sizes:
        raise ValueError(f"{place} must have {' or '.join(map(str, sizes))} numbers, got {len(x)}")
    for k, beta in enumerate(x):
        check_number(f"{place}[{k}]", beta, below=1)


def check_seed(place: str, x: object) -> None:
    if x is not None and (isinstance(x, bool) or not isinstance(x, Integral)):
        raise TypeError(f"{place} must be an integer or None, got {x!r}")
    if x is not None and not abs(int(x)) < 2**62:
        raise ValueError(f"{place} must be between -2**62 and 2**62, got {x!r}")


flag: Check = partial(check_choice, choices=(False, True))
optional_flag: Check = partial(check_choice, choices=(None, False, True))
decay: Check = partial(check_number, below=1)

# --- trees ----------------------------------------------------------------------------------------------------------


def check(
    state_dict: Any,
    groups: list[dict[str, Any]],
    options: Mapping[str, Check],
    keys: Sequence[str],
    hints: Mapping[str, str] | None = None,
) -> None:
    """A checkpoint of an optimizer over these groups, whose states have these keys beside `step`.

    Options that are missing have defaults, others than these are kept as they are, and so are states with other keys.

    Raises:
        ValueError, TypeError: it is none.
    """
    check_type("state_dict", state_dict, Mapping, "a dict")
    for key, kind, words in (("state", Mapping, "a dict"), ("param_groups", (list, tuple), "a list")):
        _check_has("state_dict", state_dict, key)
        check_type(f'state_dict["{key}"]', state_dict[key], kind, words)
    saved_groups = state_dict["param_groups"]
    if len(saved_groups) != len(groups):
        raise ValueError(
            f'state_dict["param_groups"] must have as many groups as the optimizer, {len(groups)}, '
            f"got {len(saved_groups)}"
        )
    numbers = count()
    for k, (group, saved) in enumerate(zip(groups, saved_groups, strict=True)):
        place = f'state_dict["param_groups"][{k}]'
        check_type(place, saved, Mapping, "a dict")
        _check_params(place, saved, group)
        for option, check_option in options.items():
            if option in saved:
                check_option(f'{place}["{option}"]', saved[option])
        if "step" in saved:
            _check_step(f'{place}["step"]', saved["step"])
        names = group.get("param_names", [None] * len(group["params"]))
        for p, name, saved_id in zip(group["params"], names, saved["params"], strict=True):
            number = next(numbers)
            state = state_dict["state"].get(saved_id, {})
            what = f"parameter {number}" if name is None else f"parameter {number} ({name!r})"
            place = f'state_dict["state"][{saved_id!r}]'
            check_type(place, state, Mapping, "a dict")
            if state:
                if "step" not in saved:
                    _check_has(place, state, "step")
                _check_state(place, state, p, what, keys, hints or {})


def _check_has(place: str, tree: Mapping[Any, Any], key: str, hint: str = "") -> None:
    if key not in tree:
        raise ValueError(f'{place} must have the key "{key}", got {list(tree)}{hint}')


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


def _check_step(place: str, step: Any) -> None:
    check_number(place, step, below=2.0**53)


def _check_state(
    place: str, state: Mapping[str, Any], p: Tensor, what: str, keys: Sequence[str], hints: Mapping[str, str]
) -> None:
    if "step" in state:
        _check_step(f'{place}["step"]', state["step"])
    for key in keys:
        _check_has(place, state, key, hints.get(key, ""))
        _check_tensor(f'{place}["{key}"]', state[key], p, what)
        if state[key].dtype is torch.uint8:
            _check_scale(f'{place}["{key}_scale"]', state.get(key + "_scale"), state[key], what)
    for key, x in state.items():
        if isinstance(x, Tensor) and x.is_meta and not p.is_meta:
            raise ValueError(f"{place}[{key!r}] must be a tensor with values, got one on the device meta")


def _check_tensor(place: str, x: Any, p: Tensor, what: str) -> None:
    check_type(place, x, Tensor, "a tensor")
    pairs = p.is_complex() and not x.is_complex()
    shape = (*p.shape, 2) if pairs else tuple(p.shape)
    if tuple(x.shape) != shape:
        raise ValueError(f"{place} must have the shape {shape} of {what}, got {tuple(x.shape)}")
    allowed = _DTYPES[p.is_complex() and not pairs]
    if x.dtype not in allowed or x.layout is not torch.strided:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise ValueError(f"{place} must be dense and of one of {names}, got {x.dtype}, {x.layout}")


def _check_scale(place: str, scale: Any, codes: Tensor, what: str) -> None:
    blocks = -(-_state.local(codes).numel() // BLOCK)
    if not isinstance(scale, Tensor) or scale.ndim != 1 or scale.dtype not in (torch.int16, torch.uint8):
        got = f"shape {tuple(scale.shape)} of {scale.dtype}" if isinstance(scale, Tensor) else repr(scale)
        raise ValueError(f"{place} must be a vector of int16, or of their bytes, beside 8-bit states, got {got}")
    if (scales := _state.local(scale).nbytes / 2) != blocks:
        raise ValueError(
            f"{place} must have {blocks} scales, one per {BLOCK} elements of this shard of {what}, got {scales:g}; "
            "gather the checkpoint with full_state_dict=True before it is loaded on other shards"
        )


def check_together(place: str, check_group: Callable[[Mapping[str, Any]], None], group: Mapping[str, Any]) -> None:
    """What options must be beside each other, in the words of the constructor."""
    try:
        check_group(group)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{place}: {error}") from error
