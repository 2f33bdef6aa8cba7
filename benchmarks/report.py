"""Turns the JSON of one or more runs into one self-contained page; measures nothing."""

from __future__ import annotations

import math
import os
import statistics
from html import escape
from pathlib import Path
from typing import Any

Json = dict[str, Any]
HERE = Path(__file__).resolve().parent
MARKS = {"met": "✓", "unclear": "~", "missed": "✗", "missing": "?", "unequal": "✗", "failed": "✗", "reported": "·"}
MEANING = {
    "met": "the median meets the target",
    "unclear": "the median misses the target, its interval does not",
    "missed": "the target is missed",
    "missing": "a peer or a data set is not here",
    "unequal": "the results differ: nothing was timed",
    "failed": "the measurement broke",
    "reported": "no target was set or, in a smoke run, judged",
}


def write(runs: list[Json], path: Path) -> Path:
    """The page of all `runs`, written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(page(runs), encoding="utf-8")
    os.replace(draft, path)
    return path


# --- numbers ---


def short(number: float) -> str:
    """Three significant digits."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:#.3g}".removesuffix(".")


def in_unit(number: float, figure: Json) -> str:
    return f"{number:.2f}" if figure["unit"] == " F1" else short(number)


def value(figure: Json) -> str:
    return "-" if figure["value"] is None else in_unit(figure["value"], figure) + figure["unit"]


def interval(figure: Json) -> str:
    low, high = figure["low"], figure["high"]
    return "" if low is None else f"[{in_unit(low, figure)}, {in_unit(high, figure)}]"


def number(figure: Json) -> str:
    return f"{value(figure)} {interval(figure)}".rstrip()


def target(figure: Json) -> str:
    wanted = figure["target"]
    return "" if wanted is None else f"{'≤' if wanted['at_most'] else '≥'} {wanted['limit']:.3g}"


def stride(extent: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... (and their tenths) that divides the extent into at most six."""
    return next(s * 10.0**e for e in range(-9, 9) for s in (1, 2, 5) if extent <= 6 * s * 10.0**e)


# --- pictures: SVG in percent of its width and pixels of its height, so that letters keep their size on a phone ---


class Axis:
    """Places positive values on a logarithmic scale, in percent; what lies outside sits on the rim."""

    def __init__(self, values: list[float]) -> None:
        low, high = min(values), max(values)
        room = max(math.log(high / low) * 0.08, 0.02)
        self.low, self.high = math.log(low) - room, math.log(high) + room

    def __call__(self, value: float) -> float:
        share = (math.log(value) - self.low) / (self.high - self.low)
        return round(1 + 98 * min(max(share, 0.0), 1.0), 2)

    def ticks(self) -> list[float]:
        """A 1-2-5 series over a wide range, equal steps over a narrow one."""
        low, high = math.exp(self.low), math.exp(self.high)
        if high > 5 * low:
            series = [s * 10.0**e for e in range(-6, 7) for s in ((1, 2, 5) if high < 100 * low else (1,))]
            return [tick for tick in series if low <= tick <= high]
        step = stride(high - low)
        return [i * step for i in range(max(1, math.ceil(low / step)), math.floor(high / step) + 1)]


def strip(figure: Json, axis: Axis) -> str:
    """Every round a dot, the interval a bar, the median a line, the side that meets the target shaded."""
    parts, middle = [], 20
    if figure["unit"].startswith("x"):  # a ratio: where both are alike
        parts.append(f'<line class="rule" x1="{axis(1)}%" x2="{axis(1)}%" y1="0" y2="40"/>')
    if (wanted := figure["target"]) is not None:
        x = axis(wanted["limit"])
        left, width = (0.0, x) if wanted["at_most"] else (x, 100 - x)
        parts.append(f'<rect class="good" x="{left}%" width="{width:.2f}%" y="0" height="40"/>')
        parts.append(f'<line class="limit" x1="{x}%" x2="{x}%" y1="0" y2="40"/>')
    samples = figure["samples"][:: max(1, len(figure["samples"]) // 80)]
    for place, sample in enumerate(samples):
        y = middle + (place * 7 % 11 - 5) * 2.2  # spread over the height, so that dots can be told apart
        parts.append(f'<circle class="dot" cx="{axis(sample)}%" cy="{y:.1f}" r="2.6"/>')
    low, high, x = axis(figure["low"]), axis(figure["high"]), axis(figure["value"])
    parts.append(f'<rect class="interval" x="{low}%" width="{high - low:.2f}%" y="{middle - 4}" height="8" rx="3"/>')
    parts.append(f'<line class="median" x1="{x}%" x2="{x}%" y1="5" y2="35"/>')
    label = escape(f"{number(figure)}, {len(figure['samples'])} rounds")
    return f'<svg class="strip" height="40" role="img"><title>{label}</title>{"".join(parts)}</svg>'


def scale(axis: Axis) -> str:
    marks = "".join(f'<text x="{axis(tick)}%" y="12">{tick:g}</text>' for tick in axis.ticks())
    return f'<svg class="scale" height="18" aria-hidden="true">{marks}</svg>'


def bars(outcome: Json) -> str:
    """One bar per contestant; those of the package in its colour."""
    values, package, top = outcome["bars"], outcome["package"], max(outcome["bars"].values()) or 1
    rows = []
    for name, height in values.items():
        kind = "mine" if name.startswith(package) else "theirs"
        rows.append(
            f'<div class="bar"><span>{escape(name)}</span><b>{short(height)}</b><svg height="12" aria-hidden="true">'
            f'<rect class="{kind}" width="{100 * height / top:.2f}%" height="12" rx="2"/></svg></div>'
        )
    return f'<p class="unit">{escape(outcome["bars_unit"])}</p>{"".join(rows)}'


def curves(plot: Json) -> str:
    """Lines, and a shade from low to high where points have both."""
    points = [point for line in plot["lines"].values() for point in line]
    place = math.log if plot["log_x"] else float
    xs = [place(point[0]) for point in points]
    ys = [y for point in points for y in point[1:]]
    left, right, bottom, top = min(xs), max(xs), min(ys), max(ys)
    bottom = 0.0 if 0 <= bottom < 0.5 * top else bottom - 0.05 * (top - bottom)
    top += 0.05 * (top - bottom or 1)

    def xy(x: float, y: float) -> str:
        across = (place(x) - left) / (right - left or 1)
        return f"{100 * across:.2f},{100 - 100 * (y - bottom) / (top - bottom):.2f}"

    inner, legend = [], []
    for colour, (name, line) in enumerate(plot["lines"].items()):
        if len(line[0]) == 4:
            ring = [xy(point[0], point[2]) for point in line] + [xy(point[0], point[3]) for point in reversed(line)]
            inner.append(f'<polygon class="shade c{colour % 8}" points="{" ".join(ring)}"/>')
        inner.append(f'<polyline class="line c{colour % 8}" points="{" ".join(xy(p[0], p[1]) for p in line)}"/>')
        legend.append(f'<span><i class="c{colour % 8}"></i>{escape(name)}</span>')
    step = stride(top - bottom)
    levels = [i * step for i in range(math.ceil(bottom / step), math.floor(top / step) + 1)]
    ruler = []
    for level in levels:
        y = 100 - 100 * (level - bottom) / (top - bottom)
        ruler.append(f'<line class="ruler" x1="0" x2="100%" y1="{y:.2f}%" y2="{y:.2f}%"/>')
        ruler.append(f'<text class="level" x="2" y="{y:.2f}%" dy="-3">{level:.4g}</text>')
    wanted = sorted({point[0] for point in points})
    if len(wanted) > 6:
        step = stride(max(wanted) - min(wanted))
        wanted = [i * step for i in range(math.ceil(min(wanted) / step), math.floor(max(wanted) / step) + 1)]
    feet = []
    for x in wanted:
        across = 100 * (place(x) - left) / (right - left or 1)
        anchor = "start" if across < 5 else "end" if across > 95 else "middle"
        feet.append(f'<text x="{across:.2f}%" y="12" text-anchor="{anchor}">{x:g}</text>')
    return (
        f'<figure><figcaption>{escape(plot["y"])}</figcaption><svg class="curves" height="240" role="img">'
        f"<title>{escape(plot['y'])} over {escape(plot['x'])}</title>{''.join(ruler)}"
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="100%">{"".join(inner)}</svg></svg>'
        f'<svg class="scale feet" height="18" aria-hidden="true">{"".join(feet)}</svg>'
        f'<p class="x">{escape(plot["x"])}</p><p class="legend">{"".join(legend)}</p></figure>'
    )


# --- the page ---


def chip(figure: Json) -> str:
    verdict = figure["verdict"]
    return f'<span class="chip {verdict}" title="{MEANING[verdict]}">{MARKS[verdict]} {verdict}</span>'


def line(figure: Json, axis: Axis | None) -> str:
    """A figure: its words, its number, and its strip where it was raced."""
    who = " / ".join(escape(name) for name in (figure["ours"], figure["peer"]) if name)
    words = f"<b>{escape(figure['name'])}</b> <span class='who'>{who}</span>" if figure["name"] else f"<b>{who}</b>"
    wanted = f"<small>target {target(figure)}</small>" if figure["target"] else ""
    return (
        f'<div class="figure"><div class="words"><span>{words}</span>'
        f'<span class="value"><b>{escape(value(figure))}</b> <small>{interval(figure)}</small> {wanted} {chip(figure)}'
        "</span></div>"
        + (strip(figure, axis) if axis is not None and figure["samples"] else "")
        + (f'<p class="note">{escape(figure["note"])}</p>' if figure["note"] else "")
        + "</div>"
    )


def times(outcome: Json) -> str:
    """The raw times, folded away: they are this machine's at that hour."""
    rows = [["", "threads", "rounds", "wall ms", "CPU ms", "extra MiB"]]
    for name, raw in outcome["raw"].items():
        medians = [f"{1e3 * statistics.median(raw[key]):.2f}" if raw[key] else "-" for key in ("wall", "cpu")]
        peak = "-" if raw["peak_bytes"] is None else f"{raw['peak_bytes'] / 2**20:,.1f}"
        rows.append([name, str(raw["threads"]), str(len(raw["wall"])), *medians, peak])
    summary = "<summary>raw medians, and the memory that a run takes beyond its states</summary>"
    return f"<details>{summary}{grid(rows)}</details>" if outcome["raw"] else ""


def grid(rows: list[list[str]]) -> str:
    """A table whose first row is its head and whose first column names the rows."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = (f"<th>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}" for row in rows[1:])
    lines = "".join(f"<tr>{line}</tr>" for line in (head, *body))
    return f'<div class="wide"><table class="grid">{lines}</table></div>'


def section(outcome: Json, run: Json, anchor: str) -> str:
    values = [x for figure in outcome["figures"] for x in _extent(figure)]
    axis = Axis([*values, 1.0]) if values else None
    body = [line(figure, axis) for figure in outcome["figures"]]
    if axis is not None:
        body.append(scale(axis))
        clock = escape(outcome["clock"])
        body.append(f'<p class="unit">{clock}; a dot per round, bar: 95 % interval of the median, shaded: target</p>')
    if outcome["bars"]:
        body.append(bars(outcome))
    body += [curves(plot) for plot in outcome["curves"]]
    body += [grid(outcome["table"])] if outcome["table"] else []
    if outcome["error"]:
        body.append(f"<pre>{escape(outcome['error'])}</pre>")
    if outcome["equal"]:
        body.append(f'<p class="equal"><span>✓ equal</span> {escape(outcome["equal"])}</p>')
    body.append(times(outcome))
    versions = " · ".join(f"{name} {number}" for name, number in run["versions"].items())
    body.append(f'<p class="foot"><code>{escape(run["command"])}</code> {escape(versions)}</p>')
    head = f'<section id="{anchor}"><h3>{escape(outcome["name"])}</h3><p>{escape(outcome["about"])}</p>'
    return f"{head}{''.join(body)}</section>"


def _extent(figure: Json) -> list[float]:
    """What the axis must show: the interval, the target, and the samples but for the outermost twentieth."""
    if not figure["samples"]:
        return []
    ordered = sorted(figure["samples"])
    cut = len(ordered) // 20
    limit = [figure["target"]["limit"]] if figure["target"] else []
    return [figure["low"], figure["high"], ordered[cut], ordered[-1 - cut], *limit]


def summary(runs: list[Json]) -> str:
    """The headline of each workload that has one, and whatever went wrong."""
    rows = []
    for index, run in enumerate(runs):
        for place, outcome in enumerate(run["outcomes"]):
            for figure in outcome["figures"]:
                if not figure["headline"] and figure["verdict"] not in ("unequal", "failed", "missing"):
                    continue
                cells = {
                    "package": f"<b>{escape(outcome['package'])}</b>",
                    "what": f'<a href="#w{index}-{place}">{escape(outcome["name"])}</a>',
                    "ratio": f"<b>{escape(value(figure))}</b> <small>{interval(figure)}</small>",
                    "peer": f"<small>against</small> {escape(figure['peer'])}" if figure["peer"] else "",
                    "verdict": chip(figure),
                }
                rows.append(f"<tr>{''.join(f'<td class={name}>{cell}</td>' for name, cell in cells.items())}</tr>")
    return f'<table class="summary">{"".join(rows)}</table>'


def about(run: Json) -> str:
    box = run["machine"]
    parts = [box["cpu"], f"{box['cores']} cores", *box["flags"], f"{box['memory_gib']:.0f} GiB", box["gpu"] or "no GPU"]
    parts += [f"Python {box['python']}", box["system"]]
    when = run["date"].replace("T", " ").replace("+00:00", " UTC")
    what = f"<b>{escape(run['profile'])} run</b>, {escape(when)}, {run['seconds']:.0f} s"
    note = f'<p class="note">{escape(run["note"])}</p>' if "note" in run else ""
    return f'<p class="machine">{what}<br>{escape(" · ".join(parts))}</p>{note}'


def page(runs: list[Json]) -> str:
    body = []
    for index, run in enumerate(runs):
        body.append(about(run))
        for package in dict.fromkeys(outcome["package"] for outcome in run["outcomes"]):
            body.append(f"<h2>{escape(package)}</h2>")
            body += [
                section(outcome, run, f"w{index}-{place}")
                for place, outcome in enumerate(run["outcomes"])
                if outcome["package"] == package
            ]
    if any(run["profile"] == "smoke" for run in runs):
        body.insert(0, '<p class="smoke">A smoke run: tiny inputs, equality asserted, nothing judged.</p>')
    legend = "".join(f"<li>{chip({'verdict': verdict})} {meaning}</li>" for verdict, meaning in MEANING.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Benchmarks</title>
<style>
{(HERE / "report.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
<h1>Benchmarks</h1>
<p class="lead">Two programs, the same input, one process: they take turns, and every round gives a ratio. The number is
the median of the ratios with its 95&nbsp;% bootstrap interval. Before anything is timed, the results are asserted
equal.</p>
{summary(runs)}
{"".join(body)}
<ul class="verdicts">{legend}</ul>
</main>
</body>
</html>
"""
