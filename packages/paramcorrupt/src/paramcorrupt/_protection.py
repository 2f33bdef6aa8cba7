"""Which bits to protect first: the cells of a vulnerability in the order of what a protected bit saves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from numbers import Real
from typing import TYPE_CHECKING, ClassVar

from ._numbers import rounded
from ._table import Shown
from ._tabular import Column, Row, Tabular
from ._vulnerability import COLUMNS, Cell, Vulnerability

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ._svg import Figure

_KEYS: dict[str, Callable[[Cell], tuple[str | None, int | None]]] = {
    "bit": lambda cell: (cell.group, cell.bit),
    "position": lambda cell: (None, cell.bit),
    "group": lambda cell: (cell.group, None),
}


@dataclass(frozen=True, slots=True)
class Step:
    """What is protected next on the frontier, and what is reached with it."""

    group: str | None
    """None where all groups are protected."""
    bit: int | None
    """None where all bits are protected."""
    bits: int
    """How many bits of memory are protected with this step and all before it."""
    fraction: float
    """These as a share of all bits."""
    residual: float
    """P(wrong output | a fault anywhere), when faults in protected bits do nothing."""
    residual_high: float
    """The same, if every cell were at the upper end of its interval."""
    chosen: bool
    """Whether the step is within the budget, or needed for the target."""


@dataclass(frozen=True, eq=False, repr=False)
class Protection(Tabular):
    """A frontier of bits to protect, the most harmful first.

    Attributes:
        frontier: all steps, from nothing to everything protected.
        chosen: those within the budget, or needed for the target: the first ones.
        unprotected: P(wrong output | a fault anywhere) as it is.
    """

    frontier: tuple[Step, ...]
    unprotected: float
    granularity: str
    budget: float | None
    target: float | None

    kind: ClassVar[str] = "protection"
    columns: ClassVar[Mapping[str, Column]] = {
        **COLUMNS,
        "fraction": Column("Protected", "%", "share of all bits, with those before"),
        "residual": Column("Wrong", "%", "mean share of outputs that a fault then makes wrong"),
        "residual_high": Column("at most", "%", "if every interval were at its upper end"),
        "chosen": Column("Chosen"),
        "unprotected": Column("Wrong without protection", "%"),
        "removed": Column("Removed by the chosen", "%"),
    }
    highlights: ClassVar[tuple[str, ...]] = ("unprotected", "residual", "fraction", "removed")
    printed: ClassVar[tuple[Shown, ...]] = (
        Shown("group", "group"),
        Shown("bit", "bit"),
        Shown("fraction", "protected", True),
        Shown("residual", "wrong", True),
        Shown("residual_high", "at most", True),
        Shown("chosen", "chosen"),
    )

    def __repr__(self) -> str:
        return f"Protection(chosen={len(self.chosen)}, fraction={self.fraction:.3g}, residual={self.residual:.3g})"

    @property
    def chosen(self) -> tuple[Step, ...]:
        return tuple(step for step in self.frontier if step.chosen)

    @property
    def fraction(self) -> float:
        """The share of all bits that the chosen steps protect."""
        return self.chosen[-1].fraction if self.chosen else 0.0

    @property
    def residual(self) -> float:
        """P(wrong output | a fault anywhere) with the chosen steps."""
        return self.chosen[-1].residual if self.chosen else self.unprotected

    @property
    def removed(self) -> float:
        """The share of wrong outputs that the chosen steps prevent."""
        return 1 - self.residual / self.unprotected if self.unprotected else 0.0

    def rows(self) -> list[Row]:
        return [{name: getattr(step, name) for name in Step.__slots__} for step in self.frontier]

    def facts(self) -> Row:
        return {
            "unprotected": self.unprotected,
            "residual": self.residual,
            "fraction": self.fraction,
            "removed": self.removed,
            "granularity": self.granularity,
            "budget": self.budget,
            "target": self.target,
        }

    def _lead(self) -> list[str]:
        return [
            f"Protecting {rounded(self.fraction)} of the bits prevents {rounded(self.removed)} of the wrong outputs."
        ]

    def _figures(self) -> list[Figure]:
        from ._svg import Lines, Series

        values = [self.unprotected, *(step.residual for step in self.frontier)]
        high = [None, *(step.residual_high for step in self.frontier)]
        fractions = [0.0, *(step.fraction for step in self.frontier)]
        series = [Series("wrong outputs", values), Series("if every interval were at its upper end", high)]
        return [Lines("What risk remains", "Share of bits protected", "Share of outputs", fractions, series, "%")]


def protect(
    vulnerability: Vulnerability,
    *,
    budget: float | None = None,
    target: float | None = None,
    granularity: str = "bit",
) -> Protection:
    r"""Choose the bits whose protection, such as by an error-correcting code, prevents most wrong outputs.

    A cell c of n_c bits does the harm n_c PVF_c. Cells are protected in the order of PVF_c, the harm of a bit: for the
    bits that the first steps protect, no other choice leaves less than

    .. math:: \sum_{c \text{ unprotected}} n_c \mathrm{PVF}_c \big/ \sum_c n_c

    Args:
        vulnerability: of :func:`vulnerability_factor`.
        budget: the largest share of all bits that can be protected, from 0 to 1.
        target: the risk that may remain: P(wrong output | a fault anywhere), from 0 to 1. At most one of both is
            given; without, no step is chosen.
        granularity: what is protected at once: "bit" (default), a bit of a group; "position", a bit of all groups;
            "group", all bits of a group.

    Returns:
        The whole frontier, of which the first steps are chosen.

    Raises:
        ValueError: both budget and target, or one outside of [0, 1]; an unknown granularity.
        TypeError: a vulnerability that is none, or a budget or target that is no number.

    Example:
        >>> import torch
        >>> from paramcorrupt import protect, vulnerability_factor
        >>> _ = torch.manual_seed(0)
        >>> model, data = torch.nn.Linear(8, 4), [torch.randn(64, 8)]
        >>> found = vulnerability_factor(model, data, bits=[20, 30], half_width=0.2, seed=0, progress=False)
        >>> [(step.group, step.bit) for step in protect(found, budget=0.5).chosen][0][1]
        30
    """
    if not isinstance(vulnerability, Vulnerability):
        raise TypeError(f"vulnerability must be a Vulnerability, got {type(vulnerability).__name__}")
    if granularity not in _KEYS:
        raise ValueError(f"granularity must be among {', '.join(_KEYS)}, got {granularity!r}")
    if budget is not None and target is not None:
        raise ValueError(f"at most one of budget and target must be given, got budget={budget!r} and target={target!r}")
    for name, value in (("budget", budget), ("target", target)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {value!r}")
    members: dict[tuple[str | None, int | None], list[Cell]] = {}
    for cell in vulnerability:
        members.setdefault(_KEYS[granularity](cell), []).append(cell)
    order = sorted(members.values(), key=lambda cells: _harm(cells) / _bits(cells), reverse=True)
    total = _bits(vulnerability)
    left = _remaining([_harm(cells) for cells in order], total)
    most = _remaining([math.fsum(cell.bits * cell.high for cell in cells) for cells in order], total)
    steps: list[Step] = []
    bits, chosen = 0, True
    for i, cells in enumerate(order):
        bits += _bits(cells)
        needed = target is not None and left[i] > target
        affordable = budget is not None and bits <= budget * total * (1 + 1e-12)
        chosen = chosen and (needed or affordable)
        group, bit = _KEYS[granularity](cells[0])
        steps.append(Step(group, bit, bits, bits / total, left[i + 1], most[i + 1], chosen))
    return Protection(tuple(steps), left[0], granularity, budget, target)


def _remaining(harms: Sequence[float], total: int) -> list[float]:
    """The harm of all but the first 0, 1, 2, ... as a share."""
    sums = [0.0, *accumulate(reversed(harms))]
    return [x / total for x in reversed(sums)]


def _bits(cells: Sequence[Cell]) -> int:
    return sum(cell.bits for cell in cells)


def _harm(cells: Sequence[Cell]) -> float:
    return math.fsum(cell.bits * cell.sdc for cell in cells)
