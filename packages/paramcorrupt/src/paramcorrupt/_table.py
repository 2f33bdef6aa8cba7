"""Results as text in a terminal: sentences, then rows in columns."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._tabular import Row, Scalar


class Shown(NamedTuple):
    """A column of the table: its key in the rows, its heading, and whether it is a share that is shown as percent."""

    key: str
    heading: str
    percent: bool = False


def table(rows: Sequence[Row], columns: Sequence[Shown], top: int = 0, more: str = "") -> str:
    """Names to the left, numbers to the right; columns in which nothing exists are left out.

    Args:
        columns: which, in this order; none: all, by their keys.
        top: how many rows are shown, the first ones; 0: all of them.
        more: what follows their number where there are others.
    """
    shown = rows[:top] if top else rows
    columns = columns or [Shown(key, key) for key in dict.fromkeys(key for row in rows for key in row)]
    used = [column for column in columns if any(row.get(column.key) is not None for row in shown)]
    if not used:
        return ""
    cells = [[column.heading for column in used]]
    cells += [[cell(row.get(column.key), column.percent) for column in used] for row in shown]
    left = [any(isinstance(row.get(column.key), str) for row in shown) for column in used]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            x.ljust(w) if to_left else x.rjust(w) for x, w, to_left in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in cells
    ]
    if len(shown) < len(rows):
        lines.append(f"... and {len(rows) - len(shown):,} more{more}")
    return "\n".join(lines)


def cell(x: Scalar, percent: bool = False) -> str:
    """Four significant digits, all digits of an integer, two decimals of a percentage."""
    if x is None:
        return "-"
    if isinstance(x, bool):
        return "yes" if x else "no"
    if isinstance(x, str):
        return x
    if percent and math.isfinite(x):
        return f"{100 * x:.2f} %" if x == 0 or abs(x) >= 1e-4 else f"{100 * x:.2g} %"
    return f"{x:,}" if isinstance(x, int) else f"{x:.4g}"


def sentences(lines: Sequence[str]) -> str:
    """Sentences for people, in characters that every terminal has."""
    return "\n".join(lines).translate(_PLAIN)


_PLAIN = str.maketrans({"\u2212": "-", "\u202f": " ", "\u2013": "-", "\u2016": "||", "\u03b5": "eps", "\u221e": "inf"})
