"""What is summed, counted or chosen over all tensors together, and over all processes that hold parts of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from . import _ops, _reference
from ._sharded import Shards
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
    of them, and how many are as small. Of tensors in shards those that are in the own part, of which the place counts.
    """

    offsets: Tensor
    index: Tensor
    value: Tensor
    threshold: float
    ties: int
    shards: Shards

    def _counted(self, x: Tensor) -> Tensor:
        if not self.shards.dims:
            return x
        return x[torch.tensor(self.shards.counts, device=x.device).repeat_interleave(self.offsets.diff())]

    def sum(self, x: Tensor) -> float:
        """Of numbers of the chosen elements."""
        return float(self.shards.sum(self._counted(x).sum()))

    def largest(self) -> float:
        """Their largest magnitude."""
        size = self._counted(self.value).double().abs()
        return float(self.shards.maximum(size.amax() if size.numel() else size.new_zeros(())))


def count(tensors: Sequence[Tensor]) -> int:
    return sum(x.numel() for x in tensors)


def statistics(names: Sequence[str], tensors: Sequence[Tensor], what: str = "gradient") -> Statistics:
    """Of finite tensors.

    Raises:
        ValueError: an element is NaN or infinite.
    """
    rows = _rows(tensors)
    check_finite(names, rows[:, 4].tolist(), what)
    absolute, square, _, nonzeros, _ = rows.sum(0).tolist()
    return Statistics(absolute, square, rows[:, 2].amax().item() if len(rows) else 0.0, int(nonzeros))


def _rows(tensors: Sequence[Tensor]) -> Tensor:
    """What `grad_stats` says of each whole tensor."""
    shards, held = Shards.of(tensors), [logical(x) for x in tensors]
    rows = _ops.grad_stats(shards.counted(held))
    total = shards.sum(rows)
    total[:, 2] = shards.maximum(rows[:, 2])
    return total


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
    return power_sum_above(tensors, q, stats.largest, 0)


def norm(tensors: Sequence[Tensor], p: float, stats: Statistics) -> float:
    """The p-norm."""
    if p == math.inf or not stats.largest:
        return stats.largest
    return float(stats.largest * power_sum(tensors, p, stats) ** (1 / p))


class Limit(NamedTuple):
    """Where the n largest magnitudes end: how operators find them in what this process holds, the key of the last, how
    many of all are above it, and how many of those that have it belong to them."""

    threshold: Tensor
    key: int
    above: int
    ties: int


def select(tensors: Sequence[Tensor], n: int) -> Limit:
    """The limit of the n largest magnitudes."""
    shards, held = Shards.of(tensors), [logical(x) for x in tensors]
    if shards.dims:
        threshold, key, ties = shards.select(held, n)
        return Limit(threshold, key, n - ties, ties)
    threshold = _ops.select(held, n)
    return Limit(threshold, *threshold[:3].tolist())


def dot(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The inner product of two lists that are distributed alike."""
    shards = Shards.of(tensors)
    pairs = zip(*(shards.counted([logical(x).view(-1) for x in each]) for each in (tensors, others)), strict=True)
    return float(shards.sum(torch.stack([torch.dot(x.double(), y.double()) for x, y in pairs])).sum())


def choose(names: Sequence[str], tensors: Sequence[Tensor], n: int, what: str = "gradient") -> Chosen:
    """The n largest magnitudes of finite tensors; of equal ones the first.

    Raises:
        ValueError: an element is NaN or infinite.
    """
    shards = Shards.of(tensors)
    if shards.dims:
        statistics(names, tensors, what)
        limit = select(tensors, n)
        offsets, index, value = _ops.collect([logical(x) for x in tensors], limit.threshold)
        return Chosen(offsets, index, value, _reference.magnitude(limit.key, value.dtype), limit.ties, shards)
    tensors = [logical(x) for x in tensors]
    threshold, offsets, index, value = _ops.top_n(tensors, n)
    if not all(math.isfinite(x.item()) for x in value.aminmax()):  # what is not finite is among the largest
        check_finite(names, _ops.grad_stats(tensors)[:, 4].tolist(), what)
    key, _, ties, _ = threshold.tolist()
    return Chosen(offsets, index, value, _reference.magnitude(key, value.dtype), ties, shards)


def power_sum_above(tensors: Sequence[Tensor], q: float, unit: float, key: int) -> float:
    """sum (|x| / unit)^q over the elements whose key is `key` or more."""
    shards, held = Shards.of(tensors), [logical(x) for x in tensors]
    return float(shards.sum(_ops.power_sum(shards.counted(held), q, unit, key).sum()))


def largest(tensors: Sequence[Tensor]) -> float:
    """max |x|."""
    return float(_rows(tensors)[:, 2].amax())


def histogram(tensors: Sequence[Tensor], prefix: int, prefix_bits: int, bits: int) -> tuple[Tensor, Tensor]:
    """How many elements, and what sum of |x|, each value of the `bits` bits has that follow a prefix of keys."""
    shards, held = Shards.of(tensors), [logical(x) for x in tensors]
    counts, sums = _ops.key_histogram(shards.counted(held), prefix, prefix_bits, bits)
    return shards.sum(counts).cpu(), shards.sum(sums).cpu()
