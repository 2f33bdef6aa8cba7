"""Pass or fail: what the worst small change of a model's weights may cost before it is released."""

from __future__ import annotations

import math
import os
import re
from dataclasses import asdict, dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ._groups import MODEL
from ._numbers import number
from ._report import Report, ReportRow, budget, settings, unit_of
from ._table import Shown
from ._tabular import Column, Row, Tabular, read, schema, weight_hash, written
from ._tensors import check_eps, check_p
from .corruption import relative
from .indicator import multistep
from .scanning import scan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from ._groups import Groups
    from ._svg import Figure
    from .objective import Objective

__all__ = ["Case", "Gate", "gate"]

_TOLERANCE = 0.01
"""How much worse than its baseline a model may be where no limit is given: sums in another order differ by less."""

_NOT_XML = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Case:
    """A rule, and whether the model keeps it."""

    rule: str
    """"max_drop", "max_increase" or "baseline"."""
    passed: bool
    value: float
    """What the rule limits: points of accuracy lost, the rise of the loss, or by how much either is worse than in the
    baseline. NaN never passes."""
    limit: float
    group: str
    """What was corrupted when it was lost."""
    message: str
    """The same as a sentence."""


class Gate(Tabular):
    """What `gate` decided: whether all rules are kept, a case for each, and the report that was judged."""

    kind: ClassVar[str] = "gate"
    columns: ClassVar[Mapping[str, Column]] = {
        **Report.columns,
        "rule": Column("Rule"),
        "passed": Column("Passed"),
        "value": Column("Value"),
        "limit": Column("Limit"),
        "message": Column("In words"),
    }
    highlights: ClassVar[tuple[str, ...]] = ("passed", "loss", "clean_accuracy", "weights")
    printed: ClassVar[tuple[Shown, ...]] = (
        Shown("rule", "rule"),
        Shown("passed", "passed"),
        Shown("value", "value"),
        Shown("limit", "limit"),
    )

    def __init__(self, cases: Sequence[Case], report: Report) -> None:
        self.cases = tuple(cases)
        self.report = report

    @property
    def passed(self) -> bool:
        """Whether all rules are kept."""
        return all(case.passed for case in self.cases)

    def rows(self) -> list[Row]:
        return [asdict(case) for case in self.cases]

    def facts(self) -> Row:
        return {"passed": self.passed, **self.report.facts()}

    def to_junit(self, path: str | os.PathLike[str] | None = None) -> str:
        """The cases as JUnit XML, which build servers read, also written to `path`."""
        from xml.etree import ElementTree

        seconds = f"{float(self.report.facts().get('seconds') or 0):.3f}"
        failures = str(sum(not case.passed for case in self.cases))
        counts = {"tests": str(len(self.cases)), "failures": failures, "errors": "0", "skipped": "0", "time": seconds}
        suites = ElementTree.Element("testsuites", counts)
        suite = ElementTree.SubElement(suites, "testsuite", {"name": "paramcorrupt.gate", **counts})
        for case in self.cases:
            attributes = {"classname": "paramcorrupt.gate", "name": case.rule, "time": seconds}
            entry = ElementTree.SubElement(suite, "testcase", attributes)
            message = _printable(case.message)
            if case.passed:
                ElementTree.SubElement(entry, "system-out").text = message
            else:
                ElementTree.SubElement(entry, "failure", {"type": case.rule, "message": message}).text = message
        ElementTree.indent(suites)
        return written(f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(suites, "unicode")}\n', path)

    def _document(self) -> dict[str, Any]:
        return super()._document() | {"report": self.report._document()}

    def _lead(self) -> list[str]:
        broken = [case.message for case in self.cases if not case.passed]
        first, *more = broken or [case.message for case in self.cases]
        return [f"{'Not passed' if broken else 'Passed'}. {first}", *more]

    def _figures(self) -> list[Figure]:
        return self.report._figures()


def gate(
    model: Any,
    loss: str | Objective | Callable[[Any, Any], Tensor],
    data: Any,
    *,
    eps: float | relative,
    p: float = 2,
    n: int | None = None,
    steps: int = 1,
    groups: Groups | None = None,
    max_drop: float | None = None,
    max_increase: float | None = None,
    baseline: str | os.PathLike[str] | Report | Gate | None = None,
    verify: int | Literal["all"] = 5,
    random: int = 0,
    seed: int = 0,
    mode: Literal["eval", "keep"] = "eval",
    progress: bool | None = None,
) -> Gate:
    """Judge a model by what the worst change of its weights of norm eps costs.

    All weights are changed together or, with `groups`, each group alone, of which the worst counts.

    Args:
        model, loss, data, eps, p, n, verify, random, seed, mode, progress: as in `scan`.
        steps: 1 for the closed form (default), or that many steps of `multistep`, which finds worse changes.
        groups: as in `scan`; by default those of the baseline, or without one all weights together, "model".
        max_drop: how many points of accuracy may be lost (a point is 1 % of the samples).
        max_increase: by how much the loss may rise.
        baseline: a report, or a gate, or the path of the JSON of either: the limits then are on how much more is lost
            than there. Without limits the rise of the loss may be at most 1 % higher than there. It must have been made
            with the same settings.

    Raises:
        TypeError, ValueError: as in `scan`; no rule at all; a limit that is not finite; `max_drop` where the loss gives
            no accuracy; several steps with groups; a baseline that is no report, or of other settings.
        OSError: the baseline cannot be read.

    Example:
        >>> import torch, paramcorrupt
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(4, 3)
        >>> data = [(torch.randn(16, 4), torch.arange(16) % 3)]
        >>> eps = paramcorrupt.relative(0.01)
        >>> paramcorrupt.gate(model, "cross_entropy", data, eps=eps, max_increase=0.5).passed
        True
    """
    if not isinstance(eps, relative):
        check_eps(eps)
    check_p(p)
    limits = {"max_drop": max_drop, "max_increase": max_increase}
    rules = {rule: _limit(rule, limit) for rule, limit in limits.items() if limit is not None}
    if not rules and baseline is None:
        raise ValueError("gate must have a rule: max_drop, max_increase or baseline")
    if verify != "all" and not isinstance(verify, bool) and verify == 0:
        raise ValueError("verify must be at least 1, got 0: a gate judges what was measured")
    before = None if baseline is None else _report(baseline)
    if groups is None:
        groups = _groups_of(before)
    if steps != 1 and groups != MODEL:
        raise ValueError(f"steps must be 1 where groups are changed one by one, got {steps!r}; leave out groups")
    if before is not None:
        _check_alike(before, settings(groups, eps, p, n, mode, steps))
    if steps == 1:
        report = scan(
            model, loss, data, groups=groups, eps=eps, p=p, n=n, verify=verify, random=random, seed=seed, mode=mode,
            progress=progress,
        )  # fmt: skip
    else:
        report = _climbed(model, loss, data, eps, p, n, steps, mode)
    if before is None:
        return Gate([_case(rule, limit, report) for rule, limit in rules.items()], report)
    cases = [_worsening(rule, limit, report, before) for rule, limit in rules.items()]
    if not rules:
        rise, _ = _worst("max_increase", before, "baseline")
        cases = [_worsening("baseline", _TOLERANCE * abs(rise), report, before)]
    return Gate(cases, report)


def _limit(rule: str, limit: object) -> float:
    if isinstance(limit, bool) or not isinstance(limit, Real):
        raise TypeError(f"{rule} must be a number or None, got {limit!r}")
    if not math.isfinite(limit):
        raise ValueError(f"{rule} must be finite, got {limit!r}")
    return float(limit)


def _report(baseline: object) -> Report:
    """The report that is meant."""
    if isinstance(baseline, Gate):
        return baseline.report
    if isinstance(baseline, Report):
        return baseline
    if not isinstance(baseline, str | os.PathLike):
        raise TypeError(f"baseline must be a path, a Report or a Gate, got {baseline!r}")
    document = read(baseline)
    return Report.from_document(
        document.get("report") if schema(document) == Gate.kind else document, os.fspath(baseline)
    )


def _groups_of(before: Report | None) -> str:
    """What is changed together where the caller does not say."""
    grouping = MODEL if before is None else str(before.facts().get("grouping"))
    if grouping not in ("tensor", "module", MODEL):
        raise ValueError("groups must be given with a baseline whose groups are patterns")
    return grouping


def _check_alike(before: Report, wanted: Row) -> None:
    facts = before.facts()
    for name, x in wanted.items():
        if facts.get(name) != x:
            raise ValueError(f"baseline must have been made with {name} {x!r}, as this gate, got {facts.get(name)!r}")


def _climbed(
    model: Any,
    loss: Any,
    data: Any,
    eps: float | relative,
    p: float,
    n: int | None,
    steps: int,
    mode: Literal["eval", "keep"],
) -> Report:
    """The report of all weights, changed in several steps."""
    found = multistep(model, loss, data, eps=eps, p=p, n=n, steps=steps, mode=mode)
    change = found.corruption
    row = ReportRow(
        MODEL,
        change.k,
        len(change.skipped),
        grad_norm=found.grad_norm,
        eps=change.eps,
        nnz=found.nnz,
        predicted=found.predicted,
        measured=found.measured,
        accuracy=found.accuracy_corrupted,
        changed=found.applied.changed,
        applied=found.applied.norm,
    )
    facts: Row = {
        "loss": found.loss,
        "clean_accuracy": found.accuracy,
        "weights": change.k,
        **settings(MODEL, eps, p, n, mode, steps),
        "unit": unit_of(loss),
        "forwards": found.forwards,
        "backwards": found.backwards,
        "seconds": found.seconds,
        "weight_hash": weight_hash(model),
    }
    return Report([row], facts)


def _worst(rule: str, report: Report, argument: str) -> tuple[float, str]:
    """The most that was lost, in units of the rule, and the group whose change did it."""
    if rule != "max_drop":
        worst = report.worst()
        if worst is None or worst.measured is None:
            raise ValueError(f"{argument} must have a group that was measured")
        return worst.measured, worst.group
    clean = report.facts().get("clean_accuracy")
    left = [(row.accuracy, row.group) for row in report if row.accuracy is not None]
    if not left or not isinstance(clean, float):
        raise ValueError(f"max_drop needs an accuracy, which {argument} does not have")
    accuracy, group = min(left)
    return round(100 * (clean - accuracy), 9), group  # a drop of 0.8 - 0.624 is 17.6 points


def _case(rule: str, limit: float, report: Report) -> Case:
    value, group = _worst(rule, report, "loss")
    message = f"{_change(group, report)} {_effect(rule, value)}; the limit is {_short(limit)}."
    return Case(rule, value <= limit, value, limit, group, message)


def _worsening(rule: str, limit: float, report: Report, before: Report) -> Case:
    value, group = _worst(rule, report, "loss")
    more = value - _worst(rule, before, "baseline")[0]
    compared = f"{_short(abs(more))} {'less' if more < 0 else 'more'} than in the baseline"
    message = f"{_change(group, report)} {_effect(rule, value)}, {compared}; the limit is {_short(limit)} more."
    return Case(rule, more <= limit, more, limit, group, message)


def _change(group: str, report: Report) -> str:
    if report.facts().get("grouping") == MODEL:
        return f"Changing all weights by {budget(report.facts(), 'their')}"
    return f"Changing {group} by {budget(report.facts())}"


def _effect(rule: str, value: float) -> str:
    if rule == "max_drop":
        return f"costs {_short(value)} points of accuracy"
    if not math.isfinite(value):
        return f"makes the loss {number(value)}"
    return f"{'lowers' if value < 0 else 'raises'} the loss by {_short(abs(value))}"


def _short(x: float) -> str:
    return number(float(f"{x:.3g}"))


def _printable(text: str) -> str:
    """Without the characters that XML cannot have."""
    return _NOT_XML.sub("\ufffd", text)
