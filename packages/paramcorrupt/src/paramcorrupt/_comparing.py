"""Two checkpoints tensor by tensor, a window at a time; two reports row by row."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ._patching import read
from ._progress import track
from ._safetensors import read_checkpoint
from ._tabular import parsed, schema
from ._tabular import read as read_json
from ._weights import is_pickle, read_weights, unwrapped

if TYPE_CHECKING:
    from contextlib import ExitStack

    from ._tabular import Row, Scalar

_ELEMENTS = 1 << 18  # compared at a time, in double precision
_NO_NUMBERS = {getattr(torch, name, None) for name in ("float4_e2m1fn_x2",)}  # dtypes that torch cannot convert


class Source(Protocol):
    """The tensors of a checkpoint, of which parts can be read."""

    def names(self) -> list[str]:
        """In the order of the checkpoint."""

    def about(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """The dtype and the shape of a tensor."""

    def part(self, name: str, start: int, stop: int) -> Tensor:
        """Some elements of a tensor, in row-major order."""


class _Files:
    """Safetensors, of which no more than a part is in memory."""

    def __init__(self, path: str | os.PathLike[str], stack: ExitStack) -> None:
        checkpoint = read_checkpoint(path)
        self._tensors = checkpoint.tensors
        self._files = {}
        for file in checkpoint.files:
            self._files[file] = stack.enter_context(file.open("rb"))

    def names(self) -> list[str]:
        return list(self._tensors)

    def about(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        stored = self._tensors[name]
        return stored.dtype, stored.shape

    def part(self, name: str, start: int, stop: int) -> Tensor:
        stored = self._tensors[name]
        size = stored.dtype.itemsize
        data = bytearray((stop - start) * size)
        read(self._files[stored.path].fileno(), memoryview(data), stored.start + start * size)
        return stored.typed(data)


class _Loaded:
    """Tensors of a pickle, all of them in memory."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def names(self) -> list[str]:
        return list(self._tensors)

    def about(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        return self._tensors[name].dtype, tuple(self._tensors[name].shape)

    def part(self, name: str, start: int, stop: int) -> Tensor:
        return self._tensors[name].reshape(-1)[start:stop]


def open_source(path: str | os.PathLike[str], stack: ExitStack, trust: bool) -> Source:
    """Safetensors, or what `torch.save` wrote."""
    return _Loaded(unwrapped(read_weights(path, trust=trust))) if is_pickle(path) else _Files(path, stack)


def tensor_rows(a: Source, b: Source, progress: bool | None) -> list[Row]:
    """A row for each tensor of either, in the order of `a`; those that only `b` has come last."""
    before, after = a.names(), b.names()
    names = list(dict.fromkeys(before + after))
    rows = []
    for name in track(names, len(names), "diff", progress):
        row: Row = {"tensor": name, "state": "same"}
        if name not in before or name not in after:
            dtype, shape = (a if name in before else b).about(name)
            row |= {"state": "removed" if name in before else "added", "dtype": _short(dtype)}
            rows.append(row | {"shape": _times(shape), "numel": math.prod(shape)})
            continue
        (x_dtype, x_shape), (y_dtype, y_shape) = a.about(name), b.about(name)
        row["dtype"] = _short(x_dtype) if x_dtype == y_dtype else f"{_short(x_dtype)} -> {_short(y_dtype)}"
        row["shape"] = _times(x_shape) if x_shape == y_shape else f"{_times(x_shape)} -> {_times(y_shape)}"
        row["numel"] = math.prod(x_shape)
        rows.append(row | ({"state": "reshaped"} if x_shape != y_shape else _changes(a, b, name, math.prod(x_shape))))
    return rows


def _changes(a: Source, b: Source, name: str, numel: int) -> Row:
    """How far a tensor of `b` is from that of `a`, in double precision and, where dtypes are equal, in bits."""
    (x_dtype, _), (y_dtype, _) = a.about(name), b.about(name)
    same_dtype, numbers = x_dtype == y_dtype, not {x_dtype, y_dtype} & _NO_NUMBERS
    parts = [(i, min(i + _ELEMENTS, numel)) for i in range(0, numel, _ELEMENTS)]
    row: Row = {"changed": 0, "l2": 0.0, "relative": 0.0, "max": 0.0, "nonfinite": 0, "bits": 0}
    if same_dtype and all(torch.equal(_bytes(a.part(name, *i)), _bytes(b.part(name, *i))) for i in parts):
        return row
    changed = nonfinite = bits = 0
    square = size = largest = 0.0
    for part in parts:
        x, y = a.part(name, *part), b.part(name, *part)
        if same_dtype:
            flipped = (_bytes(x) ^ _bytes(y)).view(x.numel(), x.itemsize)
            bits += int(_ONES[flipped[flipped != 0].long()].sum())
            changed += int(flipped.any(1).sum())
        if numbers:
            u, v = _real(x), _real(y)
            changed += 0 if same_dtype else int((u != v).logical_and(~(u.isnan() & v.isnan())).sum())
            nonfinite += int((u.isfinite() & ~v.isfinite()).sum())
            delta = torch.where(u.isfinite() & v.isfinite(), v - u, 0.0)
            square += delta.square().sum().item()
            size += u.nan_to_num(0.0, 0.0, 0.0).square().sum().item()
            largest = max(largest, delta.abs().amax().item())
    row |= {"state": "changed" if changed else "same", "changed": changed, "bits": bits if same_dtype else None}
    if not numbers:
        return row | {"l2": None, "relative": None, "max": None, "nonfinite": None}
    relative = math.sqrt(square / size) if size else math.inf if square else 0.0
    return row | {"l2": math.sqrt(square), "relative": relative, "max": largest, "nonfinite": nonfinite}


_ONES = torch.tensor([i.bit_count() for i in range(256)])


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(-1).view(torch.uint8)


def _real(x: Tensor) -> Tensor:
    return (torch.view_as_real(x).reshape(-1) if x.is_complex() else x).double()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


# --- reports --------------------------------------------------------------------------------------------------------

_KEYS = {"group", "tensor", "kind", "rule", "bit", "eps", "step"}  # the columns that name a row


def report_rows(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> tuple[str, list[Row]]:
    """The kind of two reports, and a row for each row of either: its text, and both values of every number."""
    documents = [read_json(path) for path in (a, b)]
    kind, other = map(schema, documents)
    for path, found in ((a, kind), (b, other)):
        if not found:
            raise ValueError(f"{os.fspath(path)} must be a report that paramcorrupt wrote as JSON")
    if kind != other:
        raise ValueError(f"reports must be of one kind to be compared, got a {kind} and a {other}")
    parts = [parsed(document, kind, os.fspath(path))[1] for document, path in zip(documents, (a, b), strict=True)]
    before, after = ({_key(row): row for row in rows} for rows in parts)
    rows = []
    for key in dict.fromkeys([*before, *after]):
        x, y = before.get(key, {}), after.get(key, {})
        values: Row = {}
        for column in dict.fromkeys([*x, *y]):
            if column in dict(key):
                continue
            u, v = x.get(column), y.get(column)
            values |= {f"{column} a": u, f"{column} b": v}
            if isinstance(u, int | float) and isinstance(v, int | float) and not {type(u), type(v)} & {bool}:
                values[f"{column} change"] = v - u
        differs = any(not _equal(x.get(column), y.get(column)) for column in {*x, *y})
        state = "removed" if not y else "added" if not x else "changed" if differs else "same"
        rows.append(dict(key) | {"state": state} | values)
    return kind, rows


def _key(row: Row) -> tuple[tuple[str, Scalar], ...]:
    """What tells a row from the others."""
    return tuple((name, x) for name, x in row.items() if name in _KEYS)


def _equal(x: Scalar, y: Scalar) -> bool:
    return x == y or (x != x and y != y)
