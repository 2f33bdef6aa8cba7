"""What the experiments report: statistics over seeds, tables, verdicts, JSON and pictures."""

from __future__ import annotations

import json
import math
import os
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import MaxNLocator, NullLocator
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Run = dict[str, Any]  # optimizer, lr, seed, seconds, and the measures and curves of one training
Row = dict[str, Any]  # optimizer, lr, and per measure its statistics over the seeds

COLOURS = {
    "SGD": "#222222",
    "AdamW": "#1f5fbf",
    "AdamW+warmup": "#63a8ec",
    "AMSGrad": "#7b52ab",
    "RAdam": "#2e8b57",
    "ScheduleFree": "#8c6d46",
    "AdaMod": "#d7301f",
    "AdaMod-paper": "#fc8d59",
    "AdaMod-.99": "#e7298a",
    "AdaMod-.9999": "#fdb863",
    "AdaMod-bf16": "#7f0000",
    "AdaMod-int8": "#8c8c00",
}
DASHES = {"AdaMod-bf16": "--", "AdaMod-int8": ":"}  # nearly on AdaMod's own line, which shows between


@dataclass(frozen=True)
class Measure:
    """A number that a run ends with: its key, its name on an axis, its format, and which way is better."""

    key: str
    label: str
    higher: bool
    digits: int = 3

    def better(self, a: float, b: float) -> bool:
        return a > b if self.higher else a < b

    def show(self, figures: dict[str, Any]) -> str:
        if math.isfinite(figures["mean"]):
            spread = f" ± {figures['sd']:.{self.digits}f}" if math.isfinite(figures["sd"]) else ""
            return f"{figures['mean']:.{self.digits}f}{spread}"
        return f"diverged ({sum(not math.isfinite(x) for x in figures['values'])} of {len(figures['values'])})"


def summarise(runs: Sequence[Run], measures: set[Measure]) -> list[Row]:
    """Mean, standard deviation and half the 95 % interval (Student's t) over the seeds; NaN where a run diverged."""
    rows = []
    for name, lr in dict.fromkeys((run["optimizer"], run["lr"]) for run in runs):
        row: Row = {"optimizer": name, "lr": lr}
        for key in sorted(measure.key for measure in measures):
            found = [run[key] for run in runs if (run["optimizer"], run["lr"]) == (name, lr)]
            values = [math.nan if value is None else value for value in found]  # null in a JSON file
            n, mean = len(values), math.fsum(values) / len(values)
            sd = statistics.stdev(values) if n > 1 and math.isfinite(mean) else math.nan
            row[key] = {"mean": mean, "sd": sd, "ci95": stats.t.ppf(0.975, n - 1) * sd / math.sqrt(n), "values": values}
        rows.append(row)
    return rows


def best(rows: Sequence[Row], measure: Measure) -> list[Row]:
    """For each optimizer the row of its best learning rate; the best optimizer first, diverged ones last."""

    def badness(row: Row) -> float:
        mean: float = row[measure.key]["mean"]
        return (-mean if measure.higher else mean) if math.isfinite(mean) else math.inf

    chosen: dict[str, Row] = {}
    for row in sorted(rows, key=badness):
        chosen.setdefault(row["optimizer"], row)
    return list(chosen.values())


def verdicts(rows: Sequence[Row], measure: Measure, subject: str = "AdaMod") -> list[str]:
    """The subject against each other optimizer in one sentence, with the p-value of Welch's test."""
    ours = next((row[measure.key] for row in rows if row["optimizer"] == subject), None)
    if ours is None:
        return []
    sentences = []
    for row in rows:
        name, theirs = row["optimizer"], row[measure.key]
        if name == subject:
            continue
        samples = [x for figures in (ours, theirs) for x in (figures["mean"], figures["sd"], len(figures["values"]))]
        p = float(stats.ttest_ind_from_stats(*samples, equal_var=False).pvalue)
        if p < 0.05:
            relation = "is better than" if measure.better(ours["mean"], theirs["mean"]) else "is WORSE than"
        else:
            relation = "is not told apart from" if math.isfinite(p) else "cannot be tested against"
        figures = f"{measure.show(ours)} against {measure.show(theirs)}"
        certainty = f", p = {p:.2g}" if math.isfinite(p) else ""
        sentences.append(f"{subject} {relation} {name} in {measure.label}: {figures}{certainty}")
    return sentences


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    body = [header, ["-" * width for width in widths], *lines]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in body)


def grid(rows: Sequence[Row], measure: Measure) -> str:
    """One line per optimizer, one cell per learning rate."""
    cells: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row["lr"]):
        cells.setdefault(row["optimizer"], []).append(f"{row['lr']:g}: {measure.show(row[measure.key])}")
    names = dict.fromkeys(row["optimizer"] for row in rows)
    width = max(map(len, cells.values()))
    lines = [[name, *cells[name], *[""] * (width - len(cells[name]))] for name in names]
    return markdown(["optimizer", "learning rate: result", *[""] * (width - 1)], lines)


def ranking(rows: Sequence[Row], measures: Sequence[Measure]) -> str:
    """One line per optimizer at its best learning rate: mean, standard deviation and 95 % interval of each measure."""
    header = ["optimizer", "lr", *(text for measure in measures for text in (measure.label, "95 % interval"))]
    lines = []
    for row in rows:
        line = [row["optimizer"], f"{row['lr']:g}"]
        for measure in measures:
            figures = row[measure.key]
            ends = [figures["mean"] - figures["ci95"], figures["mean"] + figures["ci95"]]
            interval = " to ".join(f"{end:.{measure.digits}f}" for end in ends if math.isfinite(end))
            line += [measure.show(figures), interval]
        lines.append(line)
    return markdown(header, lines)


def plain(value: Any) -> Any:
    """The value as JSON has it: a number that is not finite is null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(report: dict[str, Any], path: Path) -> None:
    """JSON, by way of a temporary name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".json.part")
    draft.write_text(json.dumps(plain(report), indent=1), encoding="utf-8")
    os.replace(draft, path)


def draw_ranking(axes: Axes, rows: Sequence[Row], measure: Measure) -> None:
    """A line per optimizer, the best on top: every seed as a dot, the mean as a bar, the 95 % interval as a line."""
    rows = [row for row in rows if math.isfinite(row[measure.key]["mean"])]
    rows.sort(key=lambda row: row[measure.key]["mean"], reverse=not measure.higher)
    for y, row in enumerate(rows):
        figures, colour = row[measure.key], COLOURS[row["optimizer"]]
        error = figures["ci95"] if len(figures["values"]) > 2 else 0  # of two it is nine standard deviations
        axes.errorbar(figures["mean"], y, xerr=error, color=colour, capsize=3, marker="|", markersize=14, zorder=3)
        axes.plot(figures["values"], [y] * len(figures["values"]), "o", color=colour, alpha=0.45, markersize=5)
    axes.set_yticks(range(len(rows)), [f"{row['optimizer']}\nlr {row['lr']:g}" for row in rows], fontsize=8)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(measure.label)
    axes.grid(axis="x", alpha=0.3)


def draw_rates(axes: Axes, rows: Sequence[Row], measure: Measure) -> None:
    """The result against the learning rate, mean and standard deviation; SGD, whose scale is another, as a line."""
    names = dict.fromkeys(row["optimizer"] for row in rows if row["optimizer"] != "SGD")
    for place, name in enumerate(names):
        mine = sorted((row for row in rows if row["optimizer"] == name), key=lambda row: row["lr"])
        shift = 1.025 ** (place - (len(names) - 1) / 2)  # so that the error bars stand side by side
        x, y = [row["lr"] * shift for row in mine], [row[measure.key]["mean"] for row in mine]
        spread = [row[measure.key]["sd"] for row in mine]
        style: dict[str, Any] = {"color": COLOURS[name], "linestyle": DASHES.get(name, "-"), "marker": "o"}
        axes.errorbar(x, y, spread, markersize=4, capsize=2, linewidth=1.3, label=name, **style)
    for row in best([row for row in rows if row["optimizer"] == "SGD"], measure):
        label = f"SGD at its best, {row['lr']:g}"
        axes.axhline(row[measure.key]["mean"], color=COLOURS["SGD"], linestyle=":", label=label)
    ticks = sorted({row["lr"] for row in rows if row["optimizer"] != "SGD"})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{lr:g}" for lr in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("learning rate")
    axes.set_ylabel(measure.label)
    axes.grid(alpha=0.3)


def draw_curves(axes: Axes, runs: Sequence[Run], rows: Sequence[Row], curve: str, x: Sequence[float]) -> None:
    """A curve per row: the mean over the seeds, and from the lowest to the highest seed a shade."""
    for row in rows:
        mine = [run[curve] for run in runs if (run["optimizer"], run["lr"]) == (row["optimizer"], row["lr"])]
        points = [[math.nan if value is None else value for value in values] for values in zip(*mine, strict=True)]
        name, means = row["optimizer"], [sum(values) / len(values) for values in points]
        colour = COLOURS[name]
        axes.plot(x, means, DASHES.get(name, "-"), color=colour, linewidth=1.5, label=name)
        axes.fill_between(x, list(map(min, points)), list(map(max, points)), color=colour, alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def save(report: dict[str, Any], figure: Figure, folder: Path) -> dict[str, Any]:
    """Writes `<folder>/<experiment>.json` and `.png`; returns what the JSON file holds."""
    path = folder / f"{report['experiment']}.json"
    write(report, path)
    figure.savefig(path.with_suffix(".png"), dpi=150)
    print(f"\nwrote {path} and {path.with_suffix('.png').name}")
    saved: dict[str, Any] = plain(report)
    return saved
