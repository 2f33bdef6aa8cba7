"""Arrays in safetensors files, in its form: the header's size, the header (JSON), bytes; parsed as hostile."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

__all__ = ["read", "write"]

_HEADER_LIMIT = 100_000_000  # bytes: that of the format's own reader
# NumPy has no bfloat16; nothing else of ours has 16 bits.
_TYPES = {"U8": "<u1", "BF16": "<u2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "U64": "<u8"}
_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items()}


def write(file: IO[bytes], arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write arrays, of which the widest come first, so that each begins at a multiple of its elements' size."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    ordered = sorted(arrays.items(), key=lambda pair: -pair[1].itemsize)
    end = 0
    for name, array in ordered:
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, array in ordered:
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def read(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """The arrays of a file.

    Raises:
        ValueError: what is wrong with it.
    """
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(_HEADER_LIMIT, size - 8):
            raise ValueError(f"it has {size} bytes and a header of {length}")
        header = _parsed(file.read(length))
        header.pop("__metadata__", None)
        entries = sorted((_entry(name, entry) for name, entry in header.items()), key=lambda entry: entry[2:])
        end = 0
        for name, _, begin, stop, _ in entries:
            if begin != end:
                raise ValueError(f"the bytes of {name!r} {'overlap' if begin < end else 'leave a gap after'} others")
            end = stop
        if 8 + length + end != size:
            raise ValueError(f"its header describes {8 + length + end} bytes, it has {size}")
        arrays = {}
        for name, kind, _, _, shape in entries:
            array = np.empty(shape, kind)
            if file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
                raise ValueError(f"{name!r} ends too early")
            arrays[name] = array
        return arrays


def _entry(name: str, entry: Any) -> tuple[str, str, int, int, list[int]]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} must have dtype, shape and data_offsets and nothing else")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ValueError(f"{name!r} has the dtype {str(kind)[:40]!r}")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{name!r} has a shape or offsets that are no lists of sizes")
    begin, end = offsets
    if end - begin != np.dtype(_TYPES[kind]).itemsize * math.prod(shape):
        raise ValueError(f"{name!r} has {end - begin} bytes for the shape {shape} of {kind}")
    return name, _TYPES[kind], begin, end, shape


def _counts(values: Any) -> bool:
    """Whether this is a short list of natural numbers of at most 63 bits."""
    return isinstance(values, list) and len(values) <= 8 and all(type(x) is int and 0 <= x < 1 << 63 for x in values)


def _parsed(text: bytes) -> dict[str, Any]:
    def once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ValueError(f"its header has {key!r} twice")
            result[key] = value
        return result

    try:
        header = json.loads(text.decode(), object_pairs_hook=once)
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    return header
