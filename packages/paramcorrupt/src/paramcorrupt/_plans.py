"""Plans of faults as safetensors files, which are read as if an enemy had written them."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import torch
from torch import Tensor

from . import _ops
from ._draws import FAULTS
from ._formats import FORMATS, Format, layout
from ._safetensors import write_tensors
from .faults import Faults, Part

SCHEMA = "paramcorrupt/faults/1"
_SCALARS = {"fault": str, "width": int, "seed": int, "candidates": int, "rate": float | None, "masked": int | None}
_ARRAYS = {"byte_index": torch.int64, "mask": torch.uint8, "value": torch.uint8}
_DTYPES = {str(x): x for x in vars(torch).values() if isinstance(x, torch.dtype)}


def save(plan: Faults, path: str | os.PathLike[str]) -> None:
    """Write a plan; nothing half-written is left if that fails."""
    parts = [[part.name, str(part.dtype), part.shape, part.format.name, part.first, part.stop] for part in plan.parts]
    text = json.dumps({"schema": SCHEMA, **{key: getattr(plan, key) for key in _SCALARS}, "parts": parts})
    byte_index, mask = _ops.locate_bits(plan._place)
    arrays = {"byte_index": byte_index, "mask": mask}
    if plan._value is not None:
        arrays["value"] = plan._value
    write_tensors(arrays, path, {"paramcorrupt": text})


def load(path: str | os.PathLike[str]) -> Faults:
    """Read a plan; ValueError, naming the file and what is wrong, for anything else."""
    name = os.fspath(path)
    try:
        return _plan(*_read(name))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{name} must be a file that Faults.save wrote, got: {error}") from None


def _read(path: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            plan = json.loads((file.metadata() or {}).get("paramcorrupt", "null"))
            if not isinstance(plan, dict) or plan.get("schema") != SCHEMA:
                raise ValueError(f"it must have the schema {SCHEMA}")
            arrays = {key: file.get_tensor(key) for key in file.keys() if key in _ARRAYS}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return plan, arrays


def _plan(plan: dict[str, Any], arrays: dict[str, Tensor]) -> Faults:
    for key, kind in _SCALARS.items():
        if isinstance(plan[key], bool) or not isinstance(plan[key], kind):
            raise TypeError(f"{key} is {plan[key]!r}")
    fault, width, masked, rate = plan["fault"], plan["width"], plan["masked"], plan["rate"]
    if fault not in FAULTS or not 1 <= width <= 64 or (width > 1 and fault in ("single", "stuck")):
        raise ValueError(f"fault {fault!r} of width {width}")
    bits = arrays["mask"].numel()
    _need(
        set(arrays) == ({*_ARRAYS} if fault == "stuck" else {"byte_index", "mask"}), "arrays of another kind of fault"
    )
    for key, x in arrays.items():
        _need(x.dtype == _ARRAYS[key] and x.shape == (bits,), f"{key} is {x.dtype} of shape {tuple(x.shape)}")
    _need(bits % width == 0, f"{bits} bits in faults of {width}")
    _need(0 <= plan["seed"] < 1 << 63, "seed out of range")
    _need(bits <= plan["candidates"] < 1 << 63, "fewer candidates than bits")
    _need(masked is None or 0 <= masked <= (bits if fault == "stuck" else 0), f"masked is {masked}")
    _need(rate is None or 0 <= rate <= 1, f"rate is {rate}")
    byte_index, mask, value = arrays["byte_index"], arrays["mask"], arrays.get("value")
    _need(bool(((mask != 0) & (mask & (mask - 1) == 0)).all()), "a mask of other than one bit")
    _need(value is None or bool((value <= 1).all()), "bits stuck at other than 0 and 1")
    _need(bool(((byte_index >= 0) & (byte_index < 1 << 60)).all()), "bytes out of range")
    place = byte_index * 8 + _position(mask)
    parts, end = [], 0
    for entry in plan["parts"]:
        parts.append(_part(*entry))
        _need(parts[-1].first == end, f"the bits of {parts[-1].name!r} do not follow those before")
        end = parts[-1].stop
        _check_places(parts[-1], place[parts[-1].first : end], width)
    _need(end == bits, f"{bits} bits of which {end} belong to a tensor")
    _need(len({part.name for part in parts}) == len(parts), "two tensors of one name")
    return Faults(fault, width, plan["seed"], rate, plan["candidates"], masked, tuple(parts), place, value)


def _position(mask: Tensor) -> Tensor:
    """Which bit of a byte a mask has."""
    halves = [((mask & half) != 0).to(torch.int64) for half in (0xAA, 0xCC, 0xF0)]
    return halves[0] + 2 * halves[1] + 4 * halves[2]


def _part(name: object, dtype: object, shape: object, form: object, first: object, stop: object) -> Part:
    _need(isinstance(name, str), f"a tensor called {name!r}")
    _need(isinstance(dtype, str) and dtype in _DTYPES, f"a tensor of {dtype!r}")
    _need(isinstance(form, str) and form in FORMATS, f"a tensor of {form!r}")
    _need(isinstance(shape, list) and len(shape) <= 64 and all(map(_is_size, shape)), f"a tensor of shape {shape!r}")
    _need(_is_size(first) and _is_size(stop), f"bits from {first!r} to {stop!r}")
    known: Any = dtype, shape, first, stop
    return Part(
        str(name),
        _DTYPES[known[0]],
        tuple(known[1]),
        layout(str(name), _DTYPES[known[0]], {"*": str(form)}),
        known[2],
        known[3],
    )


def _check_places(part: Part, place: Tensor, width: int) -> None:
    """Sorted, hence different, bits that the tensor has."""
    size = 8 * math.prod(part.shape) * part.dtype.itemsize
    _need(place.numel() > 0 and place.numel() % width == 0, f"{part.first} to {part.stop} as bits of {part.name!r}")
    _need(bool((place < size).all()), f"bytes that {part.name!r} does not have")
    _need(bool((place.diff() > 0).all()), f"bits of {part.name!r} that are not in order")
    form: Format = part.format
    _need(bool((place % form.stride < form.width).all()), f"bits that {part.name!r} does not use")


def _is_size(x: object) -> bool:
    return type(x) is int and 0 <= x < 1 << 62


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
