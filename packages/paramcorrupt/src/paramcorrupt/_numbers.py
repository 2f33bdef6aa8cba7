"""Numbers as people read them, and the scales of axes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

THIN = "\u202f"
"""The space between a number and its unit, at which no line breaks."""

MISSING = "\u2013"
_RAISED = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")


def number(x: object, digits: int = 4) -> str:
    """So many significant digits, all digits of an integer; NaN and infinities as such."""
    if x is None:
        return MISSING
    if isinstance(x, bool):
        return "yes" if x else "no"
    if isinstance(x, int):
        return _signed(f"{x:,}")
    if not isinstance(x, float):
        return str(x)
    if math.isnan(x):
        return "NaN"
    if math.isinf(x):
        return _signed("-\u221e" if x < 0 else "\u221e")
    if x and not 1e-3 <= abs(x) < 1e6:
        return _scientific(f"{x:.{next(d for d in range(3) if d == 2 or float(f'{x:.{d}e}') == x)}e}")
    if float(f"{x:.{digits}g}") == x:  # a setting such as 0.02 has no digits to add
        return _signed(f"{x:,.10f}".rstrip("0").rstrip("."))
    return _signed(f"{x:,.{max(0, digits - 1 - math.floor(math.log10(abs(x))))}f}")


def percent(x: object) -> str:
    """A share of one as percent, a tenth of a point exact, or three digits of a smaller one."""
    if isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x):
        return number(x)
    value = 100 * x
    text = f"{value:.1f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"
    return f"{_scientific(text) if 'e' in text else _signed(text)}{THIN}%"


def rounded(x: float) -> str:
    """A share of one as percent in three digits, as a sentence needs it."""
    return f"{number(float(f'{100 * x:.3g}'))}{THIN}%"


def show(x: object, unit: str, digits: int = 4) -> str:
    """A number with its unit, of which "%" means that the number is a share of one."""
    if unit == "%":
        return percent(x)
    return f"{number(x, digits)}{THIN}{unit}" if unit and isinstance(x, int | float) else number(x, digits)


def tick(x: float, unit: str = "") -> str:
    """The shortest text of a round number on an axis, whose label has the unit unless that is "%"."""
    text = f"{100 * x if unit == '%' else x:g}"
    text = _scientific(text) if "e" in text else _signed(text)
    return f"{text}{THIN}%" if unit == "%" else text


def _signed(text: str) -> str:
    return text.replace("-", "\u2212")


def _scientific(text: str) -> str:
    digits, _, exponent = text.partition("e")
    power = "10" + str(int(exponent)).translate(_RAISED)
    return power if digits == "1" else f"{_signed(digits)}\u00d7{power}"


@dataclass(frozen=True)
class Scale:
    """From numbers to percent of the length of an axis."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    def __call__(self, x: float) -> float:
        """Where a number is, between 0 and 100 when it is within the scale."""
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return 100 * (math.log(x) - low) / (high - low)
        return 100 * (x / 2 - self.low / 2) / (self.high / 2 - self.low / 2)  # halves cannot overflow


def finite(values: Iterable[float | None]) -> list[float]:
    """The values that can be drawn."""
    return [float(x) for x in values if can_be_drawn(x)]


def can_be_drawn(x: float | None) -> TypeGuard[float]:
    """Neither missing nor NaN nor too large for the arithmetic of an axis."""
    return x is not None and abs(x) < 1e300


def scale(values: Sequence[float], *, log: bool = False, zero: bool = False) -> Scale:
    """A scale on which all values lie, with round ticks; `zero` puts zero on it, `log` asks for positive values."""
    if log:
        return _log_scale(min(values), max(values))
    low, high = min(values, default=0.0), max(values, default=1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        low, high = (low - abs(low), high + abs(high)) if low else (0.0, 1.0)
        low = 0.0 if zero and low > 0 else low
    step = _step((high / 5) - (low / 5))
    slack = 0.1 if zero and -low < high else 0.0  # noise around zero needs no room of its own
    first, last = math.floor(low / step + slack), math.ceil(high / step)
    return Scale(first * step, last * step, False, tuple(_round(i, step) for i in range(first, last + 1)))


def suited(values: Sequence[float], *, zero: bool = False) -> Scale:
    """A logarithmic scale where all values are positive and span much, else a linear one."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    return scale(values, log=True) if low > 0 and high / low > 30 else scale(values, zero=zero)


def _log_scale(low: float, high: float) -> Scale:
    if high / low < 1.2:
        low, high = low / 1.5, high * 1.5
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    digits = (1, 2, 5) if high / low <= 50 else (1,)
    stride = math.ceil((last - first) / 7)
    ticks = [float(f"{d}e{e}") for e in range(first, last + 1, stride) for d in digits]
    low, high = low / 1.15, high * 1.15
    return Scale(low, high, True, tuple(x for x in ticks if low <= x <= high))


def _step(width: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... that is not below the width."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(d * power for d in (1, 2, 5, 10) if d * power >= width * 0.999)


def _round(i: int, step: float) -> float:
    return float(f"{i * step:.10g}")
