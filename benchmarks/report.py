"""Turns the JSON of one or more runs into one self-contained page; measures nothing."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections import Counter
from datetime import datetime
from html import escape
from itertools import dropwhile
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
LESS = ("time", "loss", "error", "errors", "perplexity", "inertia", "memory")  # of the peer's: better if less
MORE = ("as fast", "bytes/s", "characters/s", "accuracy", "gain")


def read(path: Path) -> Json:
    """A run that `run.py` wrote; ValueError if the file is anything else."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(run, dict) or run.get("format") != 1 or not isinstance(run.get("outcomes"), list):
        raise ValueError(f"{path} does not hold a run of the benchmarks: an object of format 1 with its outcomes")
    return run


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


def better(figure: Json) -> int:
    """Whether more (1) or less (-1) is better; 0 where neither the target nor the unit tells."""
    if figure["target"] is not None:
        return -1 if figure["target"]["at_most"] else 1
    unit = figure["unit"].strip()
    return 1 if unit.endswith(MORE) or unit == "MB/s" else -1 if unit.startswith("x") and unit.endswith(LESS) else 0


def arrow(figure: Json) -> str:
    words = {1: "more is better", -1: "less is better"}.get(better(figure))
    sign = "↑" if better(figure) > 0 else "↓"
    return f'<span class="way" role="img" aria-label="{words}" title="{words}">{sign}&nbsp;</span>' if words else ""


def headlines(run: Json) -> dict[str, list[Json]]:
    """The headline figures of each package, with the names of their workloads."""
    found: dict[str, list[Json]] = {outcome["package"]: [] for outcome in run["outcomes"]}
    for outcome in run["outcomes"]:
        rows = (figure | {"workload": outcome["name"]} for figure in outcome["figures"] if figure["headline"])
        found[outcome["package"]] += [figure for figure in rows if figure["value"] is not None]
    return found


def listing(run: Json) -> str:
    """The headlines as a README writes them, in bold."""
    lines = [f"{when(run)}, {run['profile']}"]
    for package, figures in headlines(run).items():
        for figure in figures:
            against = f" against {figure['peer']}" if figure["peer"] else ""
            what = ": ".join(filter(None, (figure["workload"], figure["name"])))
            lines.append(f"{package}: **{value(figure)}**, {what}; {figure['ours']}{against}")
    return "\n".join(lines)


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


def lane(figure: Json, axis: Axis) -> str:
    """A headline on the scale that all share: how many times better ours is, however the figure puts it."""
    lines = "".join(
        f'<line class="ruler" x1="{x}%" x2="{x}%" y1="0" y2="100%"/>' for x in map(axis, marks(axis)) if x != axis(1)
    )
    parts = [f'<rect class="good" x="{axis(1)}%" width="{100 - axis(1):.2f}%" y="0" height="100%"/>', lines]
    parts.append(f'<line class="rule" x1="{axis(1)}%" x2="{axis(1)}%" y1="0" y2="100%"/>')
    if (wanted := figure["target"]) is not None and wanted["limit"] > 0:
        x = axis(wanted["limit"] ** better(figure))
        parts.append(f'<line class="limit" x1="{x}%" x2="{x}%" y1="0" y2="100%"/>')
    ends = advantage(figure)
    low, middle, high = (axis(end) for end in ends)
    side = "ahead" if ends[0] > 1 else "behind" if ends[2] < 1 else "even"
    parts.append(f'<line class="span {side}" x1="{low}%" x2="{high}%" y1="50%" y2="50%"/>')
    parts.append(f'<circle class="point {side}" cx="{middle}%" cy="50%" r="5"/>')
    times = short(ends[1]) if ends[1] >= 1 else short(1 / ends[1])
    words = f"ours {times} times {'better' if ends[1] >= 1 else 'worse'}"
    return f'<svg class="lane" role="img" aria-label="{words}"><title>{words}</title>{"".join(parts)}</svg>'


def advantage(figure: Json) -> list[float]:
    """The low end, the value and the high end of a ratio, above 1 where ours is better; empty if it is no ratio."""
    ends = [figure["value"] if figure[end] is None else figure[end] for end in ("low", "value", "high")]
    if not figure["unit"].startswith("x") or not better(figure) or any(end is None or end <= 0 for end in ends):
        return []
    return sorted(end ** better(figure) for end in ends)


def marks(axis: Axis) -> list[float]:
    """Powers of ten where they are enough, or else what any axis has."""
    low, high = math.exp(axis.low), math.exp(axis.high)
    return axis.ticks() if high < 50 * low else [10.0**e for e in range(-6, 7) if low <= 10.0**e <= high]


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
    ruler, labels = [], []
    for level in levels:
        y = 100 - 100 * (level - bottom) / (top - bottom)
        ruler.append(f'<line class="ruler" x1="0" x2="100%" y1="{y:.2f}%" y2="{y:.2f}%"/>')
        labels.append(f'<text class="level" x="2" y="{y:.2f}%" dy="-3">{level:.4g}</text>')
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
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="100%">{"".join(inner)}</svg>'
        f"{''.join(labels)}</svg>"
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
        f'<span class="value">{arrow(figure)}<b>{escape(value(figure))}</b> <small>{interval(figure)}</small> {wanted}'
        f" {chip(figure)}</span></div>"
        + (strip(figure, axis) if axis is not None and _extent(figure) else "")
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
    return f'<div class="wide" tabindex="0"><table class="grid">{lines}</table></div>'


def section(outcome: Json, run: Json, anchor: str, level: int) -> str:
    values = [x for figure in outcome["figures"] for x in _extent(figure)]
    ratios = any(figure["unit"].startswith("x") for figure in outcome["figures"])
    axis = Axis([*values, 1.0] if ratios else values) if values else None
    body = [line(figure, axis) for figure in outcome["figures"]]
    if axis is not None:
        body.append(scale(axis))
        dots = (
            "a dot per round, bar: 95 % interval of the median" if outcome["clock"] else "a dot per run, bar: interval"
        )
        words = "; ".join(filter(None, (outcome["clock"], f"{dots}, shaded: target")))
        body.append(f'<p class="unit">{escape(words)}</p>')
    if outcome["bars"]:
        body.append(bars(outcome))
    body += [curves(plot) for plot in outcome["curves"]]
    body += [grid(outcome["table"])] if outcome["table"] else []
    if outcome["error"] not in ("", *(figure["note"] for figure in outcome["figures"])):  # said already
        body.append(f"<pre>{escape(outcome['error'])}</pre>")
    if outcome["equal"]:
        body.append(f'<p class="equal"><span>✓ equal</span> {escape(outcome["equal"])}</p>')
    body.append(times(outcome))
    versions = " · ".join(f"{name} {number}" for name, number in versions_of(outcome, run).items())
    body.append(f'<p class="foot"><code>{escape(command(outcome, run))}</code> <span>{escape(versions)}</span></p>')
    head = f'<section id="{anchor}"><h{level}>{escape(outcome["name"])}</h{level}><p>{escape(outcome["about"])}</p>'
    return f"{head}{''.join(body)}</section>"


def _extent(figure: Json) -> list[float]:
    """What the axis must show: the interval, the target, and the samples but for the outermost twentieth."""
    if not figure["samples"] or figure["low"] is None or min(figure["samples"]) <= 0:
        return []
    ordered = sorted(figure["samples"])
    cut = len(ordered) // 20
    limit = [figure["target"]["limit"]] if figure["target"] else []
    return [figure["low"], figure["high"], ordered[cut], ordered[-1 - cut], *limit]


def versions_of(outcome: Json, run: Json) -> dict[str, str]:
    """What the outcome was measured with. Older runs tell only what all packages of the run were measured with."""
    if "versions" in outcome:
        return outcome["versions"]
    alone = len({other["package"] for other in run["outcomes"]}) == 1
    return {name: text for name, text in run["versions"].items() if alone or name == outcome["package"]}


def command(outcome: Json, run: Json) -> str:
    """The run's command, for this outcome's package alone."""
    words = run["command"].partition(" -- ")[2].split()
    options = dropwhile(lambda word: not word.startswith("--"), words)
    return " ".join(["nox -s bench --", outcome["package"], *options])


# --- the summary ---


def summary(runs: list[Json]) -> str:
    """The headlines of every package on one scale, what went wrong, and how much could not be measured."""
    places = [(index, run, place) for index, run in enumerate(runs) for place in range(len(run["outcomes"]))]
    groups: dict[str, list[tuple[Json, Json, str]]] = {}
    for index, run, place in places:
        outcome = run["outcomes"][place]
        group = groups.setdefault(outcome["package"], [])
        group += [(figure, outcome, f"w{index}-{place}") for figure in outcome["figures"]]
    figures = [figure for group in groups.values() for figure, _, _ in group if figure["headline"]]
    ends = [end for figure in figures for end in advantage(figure)]
    axis = Axis([*ends, 0.8, 1.25])
    ruler = "".join(f'<text x="{axis(mark)}%" y="14">{mark:,g}</text>' for mark in marks(axis))
    ruler = f'<svg class="scale" height="18" aria-hidden="true">{ruler}</svg>' if ends else ""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("headline", "value", "SCALE", "against", "verdict"))
    sides = '<span class="sides"><span>peer</span> <span>ours better →</span></span>' if ends else ""
    head = head.replace("SCALE", sides + ruler)
    bodies = [group_of(package, groups[package], runs, axis) for package in packages(runs)]
    return f'<table class="summary"><thead><tr>{head}</tr></thead>{"".join(bodies)}</table>'


def group_of(package: str, group: list[tuple[Json, Json, str]], runs: list[Json], axis: Axis) -> str:
    own = [(index, run) for index, run in enumerate(runs) if any(o["package"] == package for o in run["outcomes"])]
    number = next((run["versions"][package] for _, run in own if package in run["versions"]), "")
    links = [f'<a href="#r{index}-{package}">{when(run)}, {run["profile"]}</a>' for index, run in own]
    name = f'<a href="#r{own[0][0]}-{package}">{escape(package)}</a> <small>{escape(number)}</small>'
    name += f'<small class="runs">{" · ".join(links)}</small>' if len(runs) > 1 else ""
    rows = [f'<tr class="group"><th colspan="5" scope="rowgroup" id="{escape(package)}">{name}</th></tr>']
    shown, missing = "", []
    for figure, outcome, anchor in group:
        if figure["verdict"] == "missing":
            missing.append((figure, outcome, anchor))
        elif figure["headline"] or figure["verdict"] in ("unequal", "failed"):
            rows.append(headline(figure, outcome, anchor, axis, first=anchor != shown))
            shown = anchor
    if len(rows) == 1:
        rows.append('<tr class="rest"><td colspan="5">no headline in what was run</td></tr>')
    if missing:
        notes = {f"{anchor} {figure['note']}": (figure, outcome, anchor) for figure, outcome, anchor in missing}
        items = "".join(
            f'<li><a href="#{anchor}">{escape(outcome["name"])}</a>: {escape(figure["note"])}</li>'
            for figure, outcome, anchor in notes.values()
        )
        words = f"{len(missing)} {'figure' if len(missing) == 1 else 'figures'} not measured here"
        folded = f"<details><summary>{words}</summary><ul>{items}</ul></details>"
        rows.append(f'<tr class="rest"><td colspan="5">{folded}</td></tr>')
    return f"<tbody>{''.join(rows)}</tbody>"


def headline(figure: Json, outcome: Json, anchor: str, axis: Axis, first: bool) -> str:
    """A row of the summary; the first of a workload says what the workload is."""
    title = ": ".join(filter(None, (outcome["name"], figure["name"])))
    words = (
        figure["note"] if figure["verdict"] in ("unequal", "failed") else sentence(outcome["about"]) if first else ""
    )
    about = f"<small>{escape(words)}</small>" if words else ""
    ours = "" if figure["ours"].replace("_", "-") == outcome["package"] else escape(figure["ours"])
    if figure["peer"]:
        who = f"<small>{ours} against</small>" if ours else '<small class="against">against</small>'
        who += f" {escape(figure['peer'])}"
    else:
        who = f"<small>{ours}</small>" if ours else ""
    number = f"{arrow(figure)}<b>{escape(value(figure))}</b><small>{interval(figure)}</small>"
    cells = {
        "what": f'<a href="#{anchor}">{escape(title)}</a>{about}',
        "ratio": "<b>-</b>" if figure["value"] is None else number,
        "plot": lane(figure, axis) if advantage(figure) else "",
        "peer": who,
        "verdict": chip(figure),
    }
    return f"<tr>{''.join(f'<td class={name}>{cell}</td>' for name, cell in cells.items())}</tr>"


def sentence(text: str) -> str:
    """The first sentence."""
    return text.partition(". ")[0].removesuffix(".") + "." if text else ""


def packages(runs: list[Json]) -> list[str]:
    """By their names; what several do together comes last."""
    names = {outcome["package"] for run in runs for outcome in run["outcomes"]}
    return sorted(names, key=lambda name: (name == "together", name))


def verdicts(runs: list[Json]) -> str:
    """How many figures came out how."""
    count = Counter(f["verdict"] for run in runs for outcome in run["outcomes"] for f in outcome["figures"])
    chips = (f"<li>{count[verdict]} {chip({'verdict': verdict})}</li>" for verdict in MEANING if count[verdict])
    return f'<ul class="count" aria-label="all figures by verdict">{"".join(chips)}</ul>'


# --- the page ---


def when(run: Json) -> str:
    date = datetime.fromisoformat(run["date"])
    return f"{date.day} {date:%B %Y}"


def about(run: Json) -> str:
    box = run["machine"]
    parts = [box["cpu"], f"{box['cores']} cores", *box["flags"], f"{box['memory_gib']:.0f} GiB", box["gpu"] or "no GPU"]
    parts += [f"Python {box['python']}", box["system"]]
    clock = f"{datetime.fromisoformat(run['date']):%H:%M}"
    what = f"<b>{escape(run['profile'])} run</b>, {when(run)}, {clock} UTC, {run['seconds']:.0f} s"
    note = f'<p class="note">{escape(run["note"])}</p>' if "note" in run else ""
    code = f"<code>{escape(run['command'])}</code>"
    return f'<p class="machine">{what}: {code}<br>{escape(" · ".join(parts))}</p>{note}'


def page(runs: list[Json]) -> str:
    several = len(runs) > 1
    body = []
    for index, run in enumerate(runs):
        if several:
            body.append(f'<h2 class="run" id="r{index}">{when(run)}, {escape(run["profile"])}</h2>{about(run)}')
        for package in packages([run]):
            level = 3 if several else 2
            body.append(f'<h{level} class="package" id="r{index}-{package}">{escape(package)}</h{level}>')
            body += [
                section(outcome, run, f"w{index}-{place}", level + 1)
                for place, outcome in enumerate(run["outcomes"])
                if outcome["package"] == package
            ]
    aim = "{0}" if several else "r0-{0}"  # of several runs, the summary has the links
    links = "".join(f'<a href="#{aim.format(package)}">{escape(package)}</a>' for package in packages(runs))
    smoke = '<p class="smoke">A smoke run: tiny inputs, equality asserted, nothing judged.</p>'
    legend = "".join(f"<li>{chip({'verdict': verdict})} {meaning}</li>" for verdict, meaning in MEANING.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Benchmarks, {" and ".join(dict.fromkeys(map(when, runs)))}</title>
<style>
{(HERE / "report.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
<h1>Benchmarks</h1>
<p class="lead">Two programs, the same input, one process: they take turns, and every round gives a ratio. The number is
the median of the ratios with its 95&nbsp;% bootstrap interval. Before anything is timed, the results are asserted
equal.</p>
{"" if several else about(runs[0])}
{smoke if any(run["profile"] == "smoke" for run in runs) else ""}
{verdicts(runs)}
<nav aria-label="packages"><a href="#summary">summary</a>{links}</nav>
<h2 id="summary">Summary</h2>
<p class="legend"><span><b>↑</b> more is better: “2x as fast” is half the peer's time.</span> <span><b>↓</b> less is
better: “2x the time” is twice the peer's.</span> <span>In the plot, ours is better to the right of the line at 1; a dot
is the median, grey if its interval, the bar, holds 1; dashes are the target.</span></p>
{summary(runs)}
{"".join(body)}
<h2 id="verdicts">Verdicts</h2>
<ul class="verdicts">{legend}</ul>
</main>
</body>
</html>
"""
