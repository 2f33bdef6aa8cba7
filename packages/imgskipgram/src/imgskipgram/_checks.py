"""Arguments that must be numbers, or one of some names."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

__all__ = ["check_choice", "check_integer", "check_number"]


def check_integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """The integer as Python's.

    Raises:
        ValueError: it is too small or too large.
        TypeError: it is none.
    """
    rule = "a positive integer" if least else "a non-negative integer"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be {rule}, got {value!r}")
    number = int(value)
    if number < least:
        raise ValueError(f"{name} must be {rule}, got {number}")
    if most is not None and number > most:
        raise ValueError(f"{name} must be at most {most}, got {number}")
    return number


def check_number(name: str, value: Any) -> float:
    """The number as Python's.

    Raises:
        ValueError: it is too large.
        TypeError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be finite, got {value}") from None


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ValueError if the value is none of these names."""
    if not isinstance(value, str) or value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{name} must be {', '.join(others)}{' or ' * bool(others)}{last}, got {value!r}")
