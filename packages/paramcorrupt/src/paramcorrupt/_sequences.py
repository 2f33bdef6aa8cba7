"""Intervals for the mean of numbers in [0, 1]: one that stays valid whenever sampling stops, two for a fixed count."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable


def empirical_bernstein(x: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
    """The ends of the confidence sequence of a mean: after each of the draws in the last dimension of `x`.

    With probability `confidence` the mean is between the ends after every draw, so that sampling may stop as soon as
    they are close: Waudby-Smith and Ramdas (2024), Estimating means of bounded random variables by betting, theorem 2,
    intersected over time.
    """
    x = x.double()
    t = torch.arange(1, x.shape[-1] + 1, dtype=torch.float64)
    weight = math.log(2 / (1 - confidence))
    mean = (0.5 + x.cumsum(-1)) / (t + 1)
    variance = (0.25 + (x - mean).square().cumsum(-1)) / (t + 1)
    mean, variance = _before(mean, 0.5), _before(variance, 0.25)
    bet = (2 * weight / (variance * t * torch.log1p(t))).sqrt().clamp(max=0.5)
    cost = 4 * (x - mean).square() * (-torch.log1p(-bet) - bet) / 4
    total = bet.cumsum(-1)
    middle, reach = (bet * x).cumsum(-1) / total, (weight + cost.cumsum(-1)) / total
    low, high = (middle - reach).clamp(min=0), (middle + reach).clamp(max=1)
    return low.cummax(-1).values, high.cummin(-1).values


def _before(x: Tensor, first: float) -> Tensor:
    """The same, one draw earlier."""
    return torch.cat([torch.full_like(x[..., :1], first), x[..., :-1]], -1)


def wilson(hits: int, trials: int, confidence: float) -> tuple[float, float]:
    """Wilson's interval of a probability, for a count of trials that was fixed before."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (hits + z * z / 2) / (trials + z * z)
    reach = z / (trials + z * z) * math.sqrt(hits * (trials - hits) / trials + z * z / 4)
    return (middle - reach if hits else 0.0), (middle + reach if hits < trials else 1.0)


def clopper_pearson(hits: int, trials: int, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's exact interval of a probability, for a count of trials that was fixed before."""
    tail = (1 - confidence) / 2
    low = _root(lambda p: _beta(p, hits, trials - hits + 1) < tail) if hits else 0.0
    high = _root(lambda p: _beta(p, hits + 1, trials - hits) < 1 - tail) if hits < trials else 1.0
    return low, high


def _root(is_below: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return high


def _beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by Lentz's method for its continued fraction."""
    if not 0 < x < 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta(1 - x, b, a)
    front = a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 100_000):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / (1 + step * d), 1 + step / c
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return math.exp(front) / a * fraction
