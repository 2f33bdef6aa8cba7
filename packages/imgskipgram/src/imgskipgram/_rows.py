"""Vectors as they are trained: aligned rows that zeros fill up, in the dtype of the model; and as users have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["copied", "edited", "exported", "fresh", "infinite", "rounded", "zeros"]

_AT_ONCE = 1 << 20  # numbers


def zeros(rows: int, columns: int, dtype: str) -> NDArray[Any]:
    """Rows of a multiple of 16 numbers, each at the beginning of a cache line."""
    return _core.aligned(rows, columns, dtype)


def copied(rows: NDArray[Any], columns: int, dtype: str) -> NDArray[Any]:
    """The rows, without what fills them up or with it, in rows of their own."""
    copy = zeros(len(rows), columns, dtype)
    copy[:, : rows.shape[1]] = rows
    return copy


def fresh(first: int, last: int, columns: int, dtype: str, seed: int) -> NDArray[Any]:
    """Input vectors of words `first` to `last` of a vocabulary, U(-1, 1) / columns: a word's depend on its number."""
    bits = np.random.PCG64(seed)
    bits.advance(first * columns)
    draw = np.random.Generator(bits)
    rows = zeros(last - first, columns, dtype)
    step = max(1, _AT_ONCE // columns)
    for start in range(0, len(rows), step):
        part = rows[start : start + step, :columns]
        part[...] = rounded((draw.random(part.shape) * 2 - 1) / columns, dtype)
    return rows


def exported(rows: NDArray[Any], columns: int, *, copy: bool = True) -> NDArray[np.float32]:
    """The vectors in float32; without `copy` they may be the rows themselves."""
    vectors = rows[:, :columns]
    if vectors.dtype == np.uint16:
        return np.asarray(vectors.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return vectors.astype(np.float32, copy=copy)


def rounded(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Numbers in the dtype of the model; bfloat16, as 16 bits, by rounding to the nearest."""
    if dtype != "bfloat16":
        return values.astype(dtype)
    bits = values.astype(np.float32).view(np.uint32)
    return np.asarray((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)


def edited(rows: NDArray[Any], vectors: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """The rows, with those vectors that are no longer what `exported` made of them; the same array if all are."""
    changed = (exported(rows, vectors.shape[1], copy=False) != vectors).any(1)
    if not changed.any():
        return rows
    copy = copied(rows, vectors.shape[1], dtype)
    copy[changed, : vectors.shape[1]] = rounded(vectors[changed], dtype)
    return copy


def infinite(vectors: NDArray[Any]) -> int | None:
    """The first row with NaN or infinity."""
    if np.isfinite(np.vdot(vectors, vectors)):
        return None
    finite = np.isfinite(vectors).all(1)  # the squares of finite numbers may be too large
    return None if finite.all() else int(finite.argmin())
