"""Where faults strike: exact binomial counts and uniform choices that depend on a seed alone, in time O(count)."""

from __future__ import annotations

import math
from decimal import Context, Decimal, localcontext
from fractions import Fraction

import torch
from torch import Tensor

from . import _ops
from ._reference import philox

# Streams of the generator; those below 64 belong to the rounds of `sample_bits`.
_COUNT, _CHOICE, _VALUE = 64, 65, 129

_EXACT = Context(prec=60, Emin=-(10**9), Emax=10**9)
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534")
_STIRLING = [
    Fraction(*x)
    for x in [(1, 12), (-1, 360), (1, 1260), (-1, 1680), (1, 1188), (-691, 360360), (1, 156), (-3617, 122400),
              (43867, 244188), (-174611, 125400), (77683, 5796)]
]  # fmt: skip


def _log_factorial(n: int) -> Decimal:
    """ln n! to some 50 digits, by Stirling's series where n is large."""
    if n <= 256:
        return Decimal(math.factorial(n)).ln()
    z = Decimal(n)
    series = sum(
        (Decimal(c.numerator) / (Decimal(c.denominator) * z ** (2 * i + 1)) for i, c in enumerate(_STIRLING)),
        Decimal(0),
    )
    return z * z.ln() - z + (2 * _PI * z).ln() / 2 + series


def binomial(n: int, p: float, seed: int) -> int:
    """A number of the law Binomial(n, p): inversion from the mode outwards, in decimals of 60 digits.

    Those are the same on every machine, and exact where float64 is not: its n p (1 - p) loses all digits of 1 - p at
    p = 1e-17, and a log-probability at n = 1e11 has an error of 1e-4. The walk takes O(sqrt(n p)) steps.
    """
    if p in (0, 1):
        return n if p else 0
    with localcontext(_EXACT):
        success, failure = Decimal(p), 1 - Decimal(p)
        mode = min(n, int((n + 1) * success))
        log = _log_factorial(n) - _log_factorial(mode) - _log_factorial(n - mode)
        below = above = (log + mode * success.ln() + (n - mode) * failure.ln()).exp()
        odds = success / failure
        rest = _uniform(seed) - above
        low = high = mode
        while rest >= 0 and (low > 0 or high < n) and max(below, above) > Decimal("1e-45"):
            if low > 0:
                below = below * low / ((n - low + 1) * odds)
                low -= 1
                rest -= below
                if rest < 0:
                    return low
            if high < n:
                above = above * (n - high) * odds / (high + 1)
                high += 1
                rest -= above
                if rest < 0:
                    return high
        return mode


def _uniform(seed: int) -> Decimal:
    """A multiple of 2^-128 in (0, 1)."""
    words = philox(torch.zeros(1, dtype=torch.int64), _COUNT, seed)
    number = sum(int(word) << (32 * i) for i, word in enumerate(words))
    return (Decimal(number) + Decimal("0.5")) / Decimal(2**128)


def distinct(total: int, count: int, seed: int) -> Tensor:
    """`count` different numbers below `total`, sorted: every subset is equally likely."""
    drawn: Tensor = _ops.sample_bits(total, count, seed)
    return drawn


def separate(total: int, width: int, count: int, seed: int) -> Tensor:
    """The sorted starts of `count` disjoint runs of `width` numbers below `total`: all ways are equally likely."""
    return distinct(total - count * (width - 1), count, seed) + (width - 1) * torch.arange(count)


def subsets(below: Tensor, width: int, counter: Tensor, seed: int) -> Tensor:
    """[N, width]: for each counter, `width` different numbers under its `below`, in random order."""
    chosen: list[Tensor] = []
    words: tuple[Tensor, ...] = ()
    for i in range(width):
        if i % 4 == 0:
            words = philox(counter, _CHOICE + i // 4, seed)
        pick = words[i % 4] * (below - i) >> 32
        taken = torch.stack(chosen, 1).sort(1).values if chosen else pick[:, None][:, :0]
        for column in taken.unbind(1):  # in rising order: each step over a taken number frees the way to the next
            pick = pick + (pick >= column).to(pick.dtype)
        chosen.append(pick)
    return torch.stack(chosen, 1)


def coins(counter: Tensor, seed: int) -> Tensor:
    """A random 0 or 1 for each counter, as uint8."""
    return (philox(counter, _VALUE, seed)[0] & 1).to(torch.uint8)


def uniform(counter: Tensor, stream: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two independent numbers of [0, 1) for each counter, in float64, of 53 and of 43 bits."""
    a, b, c, d = philox(counter, _VALUE + 1 + stream, seed)
    first = ((a << 21) | (b >> 11)).double() * 2.0**-53
    return first, ((c << 11) | (d >> 21)).double() * 2.0**-43
