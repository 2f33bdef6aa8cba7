"""What a scan found: its rows, how they are told to people, and how they are read again."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, ClassVar, overload

from torch.nn.functional import cross_entropy

from ._groups import MODEL
from ._numbers import THIN, number, show
from ._table import Shown
from ._tabular import Column, Row, Scalar, Tabular, parsed, read, record
from .corruption import relative

if TYPE_CHECKING:
    from ._groups import Groups
    from ._svg import Figure


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One group of tensors in a `Report`. None is what was not measured, or does not exist."""

    group: str
    numel: int
    """How many weights it has, those without gradient included."""
    skipped: int
    """How many of its tensors have no gradient, and are not corrupted. With all of them there is no prediction."""
    weight_norm: float | None = None
    """||w||_2 of the corrupted tensors."""
    grad_norm: float | None = None
    """||g||_2."""
    eps: float | None = None
    """||a||_p."""
    nnz: int | None = None
    """How many elements of the corruption are not zero."""
    predicted: float | None = None
    """a . g, the rise of the loss to first order."""
    measured: float | None = None
    """The rise of the loss under the corruption."""
    accuracy: float | None = None
    """Under the corruption, in [0, 1]."""
    changed: int | None = None
    """How many weights differed under it: fewer than `nnz` where rounding swallowed the rest."""
    applied: float | None = None
    """The p-norm of the difference that arrived in the weights."""
    random_mean: float | None = None
    """The mean rise of the loss under random corruptions of the same size."""
    random_low: float | None = None
    """The lower end of the 95 % interval of this mean."""
    random_high: float | None = None


_COLUMNS: Mapping[str, Column] = {
    "group": Column("Group"),
    "numel": Column("Weights", meaning="how many weights the group has"),
    "skipped": Column("Skipped", "tensors", "tensors of the group without a gradient, which are not corrupted"),
    "weight_norm": Column("\u2016w\u2016\u2082", meaning="Euclidean norm of the weights"),
    "grad_norm": Column("\u2016g\u2016\u2082", meaning="Euclidean norm of the gradient of the mean loss"),
    "eps": Column("\u03b5", meaning="p-norm of the corruption"),
    "nnz": Column("Non-zero", "weights", "elements of the corruption that are not zero"),
    "predicted": Column("Predicted", "\u0394 loss", "rise of the loss to first order"),
    "measured": Column("Measured", "\u0394 loss", "rise of the loss under the corruption"),
    "accuracy": Column("Accuracy", "%", "under the corruption"),
    "changed": Column("Changed", "weights", "weights that differed; rounding swallowed the others"),
    "applied": Column("Applied", "p-norm", "of the difference that arrived in the weights"),
    "random_mean": Column("Random", "\u0394 loss", "mean rise of the loss under random corruptions of the same size"),
    "random_low": Column("from", "95 %", "lower end of the interval of this mean"),
    "random_high": Column("to", "95 %", "upper end of the interval of this mean"),
    "loss": Column("Clean loss"),
    "clean_accuracy": Column("Clean accuracy", "%"),
    "samples": Column("Samples"),
    "weights": Column("Weights"),
    "groups": Column("Groups"),
    "verified": Column("Groups measured"),
    "spearman": Column("Rank correlation", meaning="Spearman's, of predicted with measured"),
    "spearman_numel": Column(
        "Rank correlation of size alone", meaning="Spearman's, of the number of weights with measured"
    ),
    "spearman_weight_norm": Column(
        "Rank correlation of \u2016w\u2016\u2082 alone", meaning="Spearman's, with measured"
    ),
    "ties": Column("Predictions that equal another"),
    "swallowed": Column("Measured groups of which rounding swallowed most"),
    "eps_relative": Column("\u03b5 relative to \u2016w\u2016\u209a of a group", "%"),
    "eps_absolute": Column("\u03b5"),
    "steps": Column("Steps of the ascent"),
    "weight_hash": Column("SHA-256 of the weights"),
    "forwards": Column("Batches forward"),
    "backwards": Column("Batches backward"),
    "seconds": Column("Time", "s"),
}


class Report(Sequence[ReportRow], Tabular):
    """What `scan` found: a sequence of its rows, the highest prediction first, groups without gradient last.

    `rows()` has them as dictionaries, `facts()` what is true of the whole: the undisturbed loss and accuracy, the
    settings with the seed, the hash of the weights, and rank correlations once three rows are measured.
    """

    kind: ClassVar[str] = "scan"
    columns: ClassVar[Mapping[str, Column]] = _COLUMNS
    highlights: ClassVar[tuple[str, ...]] = ("loss", "clean_accuracy", "weights", "groups", "verified", "spearman")
    printed: ClassVar[tuple[Shown, ...]] = (
        Shown("group", "group"),
        Shown("numel", "weights"),
        Shown("eps", "eps"),
        Shown("nnz", "non-zero"),
        Shown("predicted", "predicted"),
        Shown("measured", "measured"),
        Shown("accuracy", "accuracy", True),
        Shown("random_mean", "random"),
        Shown("random_low", "from"),
        Shown("random_high", "to"),
    )

    def __init__(self, rows: Sequence[ReportRow], facts: Row) -> None:
        self._rows = tuple(rows)
        self._facts = dict(facts)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, i: int) -> ReportRow: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[ReportRow, ...]: ...
    def __getitem__(self, i: int | slice) -> ReportRow | tuple[ReportRow, ...]:
        return self._rows[i]

    def rows(self) -> list[Row]:
        return [asdict(row) for row in self._rows]

    def facts(self) -> Row:
        return dict(self._facts)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Report:
        """The report that `to_json` wrote.

        Raises:
            OSError: the file cannot be read; ValueError: it is no such report.
        """
        return cls.from_document(read(path), os.fspath(path))

    @classmethod
    def from_document(cls, document: object, name: str) -> Report:
        """The report in parsed JSON that is called `name` in errors.

        Raises:
            ValueError: it is no such report.
        """
        facts, rows = parsed(document, cls.kind, name)
        try:
            return cls([record(ReportRow, row) for row in rows], facts)
        except ValueError as error:
            raise ValueError(f"{name} is a damaged report: {error}") from error

    def worst(self) -> ReportRow | None:
        """The row that rises most, NaN above all: of those that were measured, or else the highest prediction."""
        measured = [(row.measured, row) for row in self._rows if row.measured is not None]
        if measured:
            return max(measured, key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0])[1]
        return next((row for row in self._rows if row.predicted is not None), None)

    def _lead(self) -> list[str]:
        worst = self.worst()
        if worst is None:
            return ["No group has a gradient: nothing was scanned."]
        predicted = _amount(worst.predicted, self._facts)
        if self._facts.get("grouping") == MODEL:
            start = f"Changing all weights by {budget(self._facts, 'their')}"
        elif worst.measured is None:
            start = f"{worst.group} is predicted to be the most fragile: changing it by {budget(self._facts)}"
        else:
            start = f"{worst.group} is the most fragile: changing it by {budget(self._facts)}"
        if worst.measured is None:
            first = f"{start} raises the loss by about {predicted}."
            return [first, "Nothing was measured: this is a prediction of first order."]
        more = [f"One gradient had predicted {predicted}{_contrast(worst, self._facts)}."]
        if self._facts.get("swallowed"):
            lost = _count(self._facts["swallowed"], "measured group")
            more.append(f"In {lost} rounding swallowed most of the change: compare the columns Changed and Non-zero.")
        return [f"{start} {_cost(worst, self._facts)}.", *more]

    def _table(self) -> list[Row]:
        """What was found before what it was found with."""
        first = ("group", "predicted", "measured", "accuracy", "random_mean", "random_low", "random_high", "numel")
        rest = [field.name for field in fields(ReportRow) if field.name not in first]
        if not any(row.skipped for row in self):
            rest.remove("skipped")
        return [{name: row[name] for name in (*first, *rest)} for row in self.rows()]

    def _figures(self) -> list[Figure]:
        from ._svg import Bars, Scatter, Series

        drawn = [row for row in self._rows if row.predicted is not None]
        both = [row for row in drawn if row.measured is not None]
        bars = [Series("predicted by one gradient", [row.predicted for row in drawn])]
        if both:
            bars.append(Series("measured", [row.measured for row in drawn]))
        if any(row.random_mean is not None for row in drawn):
            low, high = [row.random_low for row in drawn], [row.random_high for row in drawn]
            bars.append(Series("random change of the same size", [row.random_mean for row in drawn], low, high))
        unit = f" in {self._facts['unit']}" if self._facts.get("unit") else ""
        note = f"Rise of the loss{unit} when each group alone is changed by {budget(self._facts)}."
        if self._facts.get("grouping") == MODEL:
            note = f"Rise of the loss{unit} when all weights are changed by {budget(self._facts, 'their')}."
        figures: list[Figure] = [
            Bars("What a small change of each group costs", [row.group for row in drawn], bars, note=note)
        ]
        if len(both) >= 3:
            labels, x, y = zip(*((row.group, row.predicted, row.measured) for row in both), strict=True)
            note = "Each point is a measured group. On the dashed line it rises as predicted."
            axes = ("Predicted rise of the loss", "Measured rise of the loss")
            figures.append(Scatter("How predictions hold", *axes, labels, x, y, note=note))
        return figures


def settings(groups: Groups, eps: float | relative, p: float, n: int | None, mode: str, steps: int = 1) -> Row:
    """The facts that two reports have in common if their rows can be compared."""
    return {
        "grouping": groups if isinstance(groups, str) else "patterns",
        "eps_relative": eps.r if isinstance(eps, relative) else None,
        "eps_absolute": None if isinstance(eps, relative) else float(eps),
        "p": float(p),
        "n": n,
        "steps": steps,
        "mode": mode,
    }


def unit_of(loss: object) -> str | None:
    """In what a loss is measured, where that is known."""
    return "nats" if loss is cross_entropy or (isinstance(loss, str) and loss in ("cross_entropy", "lm")) else None


def budget(facts: Row, whose: str = "its") -> str:
    """The size of the change in words."""
    if facts.get("eps_relative") is None:
        return f"\u03b5 = {number(facts.get('eps_absolute'))}"
    p = facts.get("p")
    norm = "norm" if p == 2 else f"{number(p)}-norm"
    return f"{number(100 * _float(facts['eps_relative']))}{THIN}% of {whose} {norm}"


def _cost(row: ReportRow, facts: Row) -> str:
    """What the change of a measured group does, in words."""
    rise = _float(row.measured)
    if not math.isfinite(rise):
        return f"makes the loss {number(rise)}"
    cost = f"{'raises' if rise > 0 else 'lowers'} the loss by {_amount(abs(rise), facts)}"
    clean = facts.get("clean_accuracy")
    if row.accuracy is None or clean is None or row.accuracy >= _float(clean):
        return cost
    return f"{cost} and costs {100 * (_float(clean) - row.accuracy):.1f} points of accuracy"


def _contrast(row: ReportRow, facts: Row) -> str:
    """What random changes of the same size did, in words."""
    if row.random_mean is None:
        return ""
    if abs(row.random_mean) < 0.01 * abs(_float(row.measured)):
        return "; random changes of the same size cost next to nothing"
    return f"; random changes of the same size cost {_amount(row.random_mean, facts)} on average"


def _amount(rise: float | None, facts: Row) -> str:
    """A rise of the loss with its unit, in three digits, as a sentence needs it."""
    if rise is None or not math.isfinite(rise):
        return number(rise)
    return show(float(f"{rise:.3g}"), str(facts.get("unit") or ""))


def _count(x: Scalar, noun: str) -> str:
    return f"{number(x)} {noun}{'' if x == 1 else 's'}"


def _float(x: Scalar) -> float:
    return float(x) if x is not None else math.nan
