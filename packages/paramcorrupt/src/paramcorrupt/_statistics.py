"""Rank correlation, and the interval of a mean of few draws."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest; equal values share the mean of their ranks."""
    order = sorted(range(len(values)), key=values.__getitem__)
    result = [0.0] * len(values)
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and values[order[stop]] == values[order[start]]:
            stop += 1
        for i in order[start:stop]:
            result[i] = (start + 1 + stop) / 2
        start = stop
    return result


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """The correlation of ranks; None where one side is constant, for which there is none."""
    a, b = ranks(x), ranks(y)
    middle = (len(a) + 1) / 2
    product = sum((i - middle) * (j - middle) for i, j in zip(a, b, strict=True))
    squares = sum((i - middle) ** 2 for i in a) * sum((j - middle) ** 2 for j in b)
    return product / math.sqrt(squares) if squares else None


def mean_interval(draws: Sequence[float], confidence: float = 0.95) -> tuple[float, float | None, float | None]:
    """The mean of independent draws and Student's interval for what it estimates, which a single draw does not have."""
    mean = sum(draws) / len(draws)
    if len(draws) < 2 or not math.isfinite(mean):
        return mean, None, None
    freedom = len(draws) - 1
    spread = math.sqrt(sum((x - mean) ** 2 for x in draws) / freedom)
    half = student(freedom, confidence) * spread / math.sqrt(len(draws))
    return mean, mean - half, mean + half


def student(freedom: int, confidence: float) -> float:
    """The t for which a t-distributed number lies in [-t, t] with this probability; by bisection of its angle."""
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|t| <= sqrt(freedom) tan(angle)): a finite series (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    if freedom == 1:
        total = 0.0
    for j in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (j - 1) / j
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
