"""What is summed, counted or chosen over all tensors together; the one place where tensors of one process are all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import _ops, _reference
from ._tensors import logical

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of all elements: sum |x|, sum x^2, max |x|, how many are not zero."""

    absolute: float
    square: float
    largest: float
    nonzeros: int


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """The n largest magnitudes: `offsets[t]` is where tensor t starts in `index`, row-major, and `value`; the smallest
    of them, and how many are as small."""

    offsets: Tensor
    index: Tensor
    value: Tensor
    threshold: float
    ties: int


def count(tensors: Sequence[Tensor]) -> int:
    return sum(x.numel() for x in tensors)


def statistics(names: Sequence[str], tensors: Sequence[Tensor], what: str = "gradient") -> Statistics:
    """Of finite tensors.

    Raises:
        ValueError: an element is NaN or infinite.
    """
    rows = _ops.grad_stats([logical(x) for x in tensors])
    check_finite(names, rows[:, 4].tolist(), what)
    absolute, square, _, nonzeros, _ = rows.sum(0).tolist()
    return Statistics(absolute, square, rows[:, 2].amax().item() if len(rows) else 0.0, int(nonzeros))


def check_finite(names: Sequence[str], bad: Sequence[float], what: str = "gradient") -> None:
    """No tensor may have elements that are NaN or infinite.

    Raises:
        ValueError: naming the first that has, and how many.
    """
    for name, number in zip(names, bad, strict=True):
        if number:
            raise ValueError(f"{what} {name!r} must be finite, got {int(number)} elements that are NaN or infinite")


def power_sum(tensors: Sequence[Tensor], q: float, stats: Statistics) -> float:
    """sum (|x| / max |x|)^q, whose terms need not be representable without the division."""
    if 1e-140 < stats.largest < 1e140:  # else a square overflows or is denormal
        if q == 1:
            return stats.absolute / stats.largest
        if q == 2:
            return stats.square / stats.largest**2
    return float(_ops.power_sum([logical(x) for x in tensors], q, stats.largest, 0).sum())


def norm(tensors: Sequence[Tensor], p: float, stats: Statistics) -> float:
    """The p-norm."""
    if p == math.inf or not stats.largest:
        return stats.largest
    return float(stats.largest * power_sum(tensors, p, stats) ** (1 / p))


def select(tensors: Sequence[Tensor], n: int) -> Tensor:
    """The threshold above which the n largest magnitudes lie: key, count above, how many that are equal to it."""
    threshold: Tensor = _ops.select([logical(x) for x in tensors], n)
    return threshold


def choose(names: Sequence[str], tensors: Sequence[Tensor], n: int, what: str = "gradient") -> Chosen:
    """The n largest magnitudes of finite tensors; of equal ones the first.

    Raises:
        ValueError: an element is NaN or infinite.
    """
    tensors = [logical(x) for x in tensors]
    threshold, offsets, index, value = _ops.top_n(tensors, n)
    if not all(math.isfinite(x.item()) for x in value.aminmax()):  # what is not finite is among the largest
        check_finite(names, _ops.grad_stats(tensors)[:, 4].tolist(), what)
    key, _, ties, _ = threshold.tolist()
    return Chosen(offsets, index, value, _reference.magnitude(key, value.dtype), ties)


def power_sum_above(tensors: Sequence[Tensor], q: float, unit: float, key: int) -> float:
    """sum (|x| / unit)^q over the elements whose key is `key` or more."""
    return float(_ops.power_sum([logical(x) for x in tensors], q, unit, key).sum())


def largest(tensors: Sequence[Tensor]) -> float:
    """max |x|."""
    return float(_ops.grad_stats([logical(x) for x in tensors])[:, 2].amax())


def histogram(tensors: Sequence[Tensor], prefix: int, prefix_bits: int, bits: int) -> tuple[Tensor, Tensor]:
    """How many elements, and what sum of |x|, each value of the `bits` bits has that follow a prefix of keys."""
    counts, sums = _ops.key_histogram([logical(x) for x in tensors], prefix, prefix_bits, bits)
    return counts.cpu(), sums.cpu()
