"""Figures as inline SVG that fills the width of its page; `_page` has colours and sizes.

Lengths along an axis are percentages, so that text and marks keep their size on a phone as on a wide screen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, TypeAlias

from ._numbers import Scale, can_be_drawn, finite, number, scale, show, suited, tick

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Values: TypeAlias = Sequence[float | None]

MOST_ROWS = 40
COLORS = 5
_MOST_TICKS = 16
_LONGEST_NAME = 44


def palette(series: Sequence[Series]) -> list[int]:
    """The number of the colour of each."""
    return [(j if s.color is None else s.color) % COLORS for j, s in enumerate(series)]


def shorten(name: str, most: int = _LONGEST_NAME) -> str:
    """A name of at most so many characters: its ends tell more than its middle."""
    first = most // 3
    return name if len(name) <= most else f"{name[:first]}\u2026{name[first + 1 - most :]}"


@dataclass(frozen=True)
class Series:
    """Values, and perhaps intervals: one for each label of `Bars` or `Columns`, or each x of `Lines`."""

    name: str
    values: Values
    low: Values | None = None
    high: Values | None = None
    color: int | None = None
    """Which of the colours of the page, where it is not the one of its place."""

    def interval(self, i: int) -> tuple[float, float] | None:
        """The interval of the i-th value, where there is one that can be drawn."""
        if self.low is None or self.high is None:
            return None
        low, high = self.low[i], self.high[i]
        return (low, high) if can_be_drawn(low) and can_be_drawn(high) else None

    def drawn(self, stop: int | None = None) -> list[float]:
        """All numbers, up to the label `stop`, that need a place on the axis."""
        return finite(x for values in (self.values, self.low, self.high) for x in (values or ())[:stop])

    def describe(self, i: int, unit: str) -> str:
        """The i-th value and its interval in words."""
        span = self.interval(i)
        text = show(self.values[i], unit)
        return f"{text} ({show(span[0], unit)} to {show(span[1], unit)})" if span else text


@dataclass(frozen=True)
class Figure:
    """What all figures have: a title, and a note below it."""

    title: str
    note: str = field(default="", kw_only=True)

    def svg(self) -> str:
        """The figure as a `<figure>` of HTML."""
        raise NotImplementedError

    def _framed(self, kind: str, body: str, *, above: str = "", more: str = "", style: str = "") -> str:
        note = " ".join(filter(None, (self.note, more)))
        caption = _tag("figcaption", _tag("h2", escape(self.title)), _tag("p", escape(note)) if note else "")
        drawing = _tag("svg", body, role="img", aria_label=self.title)
        return _tag("figure", caption, above, _tag("div", drawing, class_="plot", style=style), class_=kind)


@dataclass(frozen=True)
class Bars(Figure):
    """Horizontal bars: for each label, one of each series. Only the first `MOST_ROWS` labels are drawn."""

    labels: Sequence[str]
    series: Sequence[Series]
    unit: str = ""

    def svg(self) -> str:
        labels = self.labels[:MOST_ROWS]
        axis = scale([x for s in self.series for x in s.drawn(MOST_ROWS)], zero=True)
        body = _upright_grid(axis, self.unit) + "".join(self._row(i, label, axis) for i, label in enumerate(labels))
        more, style = _size(self.labels)
        return self._framed(
            "bars",
            body,
            above=_legend([s.name for s in self.series], palette(self.series)),
            more=more,
            style=f"{style};--series:{len(self.series)}",
        )

    def _row(self, i: int, label: str, axis: Scale) -> str:
        parts = [_row_label(label)]
        given = [(j, series, value) for j, series in enumerate(self.series) if (value := series.values[i]) is not None]
        colors = palette(self.series)
        for slot, (j, series, value) in enumerate(given):
            middle = slot + (len(self.series) - len(given)) / 2  # beside the label; below it they start at the top
            place = f"--j:{middle:g};--slot:{slot}"
            low, high = _extent(axis, value)
            tip = _title(f"{label}, {series.name}: {series.describe(i, self.unit)}")
            parts.append(_tag("rect", tip, class_=f"mark s{colors[j]}", style=place, x=_at(low), width=_at(high - low)))
            if span := series.interval(i):
                ends = {"x1": _at(axis(span[0])), "x2": _at(axis(span[1]))}
                parts.append(_tag("line", class_="whisker", style=place, **ends))
                high = max(high, axis(span[1]))
            parts.append(_tag("text", escape(show(value, self.unit, 3)), class_="value", style=place, x=_at(high)))
        return _tag("g", *parts, class_="row", style=f"--i:{i}")


@dataclass(frozen=True)
class Heat(Figure):
    """A value for each row and column as the strength of a colour, that of its logarithm where values span much."""

    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Values]
    unit: str = ""
    x_label: str = ""

    def svg(self) -> str:
        positive = [v for row in self.values[:MOST_ROWS] for v in finite(row) if v > 0]
        strength = suited(positive)
        body = "".join(self._row(i, label, strength) for i, label in enumerate(self.rows[:MOST_ROWS]))
        body += _names_below(self.columns) + _tag("text", escape(self.x_label), class_="axis x", x="50%", y="100%")
        more, style = _size(self.rows)
        return self._framed("heat", body, above=self._ramp(positive), more=more, style=style)

    def _row(self, i: int, label: str, strength: Scale) -> str:
        parts, width = [_row_label(label)], 100 / len(self.columns)
        for j, value in enumerate(self.values[i]):
            drawn = can_be_drawn(value)
            depth = 0.1 + 0.009 * strength(value) if can_be_drawn(value) and value > 0 else 0
            tip = _title(f"{label}, {self.x_label} {self.columns[j]}: {show(value, self.unit)}")
            place = {"x": _at(j * width), "width": _at(width), "style": f"--depth:{depth:.3f}"}
            parts.append(_tag("rect", tip, class_="mark cell" if drawn else "mark cell missing", **place))
        return _tag("g", *parts, class_="row", style=f"--i:{i}")

    def _ramp(self, positive: list[float]) -> str:
        if not positive:
            return ""
        low, high = (_tag("span", escape(show(f(positive), self.unit))) for f in (min, max))
        return _tag("p", low, _tag("i"), high, class_="ramp")


@dataclass(frozen=True)
class _Axes(Figure):
    """A plot with two axes."""

    x_label: str
    y_label: str

    def _plotted(self, kind: str, y: Scale, body: str, *, above: str = "", unit: str = "") -> str:
        grid = "".join(
            _tag("line", class_="zero" if v == 0 else "grid", x1="0", x2="100%", y1=_at(100 - y(v)), y2=_at(100 - y(v)))
            + _tag("text", escape(tick(v, unit)), class_="tick y", y=_at(100 - y(v)))
            for v in y.ticks
        )
        name = _tag("text", escape(self.x_label), class_="axis x", x="50%", y="100%")
        above += _tag("p", escape(self.y_label), class_="axis-y")
        return self._framed(f"axes {kind}", grid + body + name, above=above)


@dataclass(frozen=True)
class Scatter(_Axes):
    """Points, of which the `named` highest show their labels, and a diagonal where both numbers are equal."""

    labels: Sequence[str]
    x: Values
    y: Values
    named: int = 3

    def points(self) -> list[tuple[int, float, float]]:
        """The points that can be drawn, the highest first, each behind the number of its label."""
        pairs = enumerate(zip(self.x, self.y, strict=True))
        return sorted(((i, x, y) for i, (x, y) in pairs if can_be_drawn(x) and can_be_drawn(y)), key=lambda p: -p[2])

    def labelled(self, both: Scale) -> list[tuple[int, float, float]]:
        """The highest points, without those whose label would lie on another."""
        chosen: list[tuple[int, float, float]] = []
        for point in self.points():
            if all(abs(both(point[2]) - both(y)) > 5 for _, _, y in chosen):
                chosen.append(point)
        return chosen[: self.named]

    def svg(self) -> str:
        points = self.points()
        both = suited([v for _, x, y in points for v in (x, y)])
        body = _upright_grid(both) + _tag("line", class_="diagonal", x1="0", y1="100%", x2="100%", y2="0")
        for i, x, y in points:
            tip = _title(f"{self.labels[i]}: {self.x_label} {number(x)}, {self.y_label} {number(y)}")
            body += _tag("circle", tip, class_="mark s1", cx=_at(both(x)), cy=_at(100 - both(y)), r="5")
        for i, x, y in self.labelled(both):
            place = {
                "class_": f"name {'left' if both(x) > 50 else 'right'}",
                "x": _at(both(x)),
                "y": _at(100 - both(y)),
            }
            body += _tag("text", escape(shorten(self.labels[i], 30)), **place)
        return self._plotted("scatter", both, body)


@dataclass(frozen=True)
class Lines(_Axes):
    """Lines over a common x, with bands where a series has intervals."""

    x: Sequence[float]
    series: Sequence[Series]
    unit: str = ""

    def svg(self) -> str:
        x, y = suited(finite(self.x)), suited([v for s in self.series for v in s.drawn()], zero=True)
        body = _upright_grid(x) + "".join(
            self._line(s, color, x, y) for s, color in zip(self.series, palette(self.series), strict=True)
        )
        return self._plotted(
            "lines", y, body, above=_legend([s.name for s in self.series], palette(self.series)), unit=self.unit
        )

    def _line(self, series: Series, color: int, x: Scale, y: Scale) -> str:
        line, upper, lower, marks = [], [], [], ""
        for i, value in enumerate(series.values):
            if not can_be_drawn(value):
                continue
            left, down = x(self.x[i]), 100 - y(value)
            line.append((left, down))
            if span := series.interval(i):
                lower.append((left, 100 - y(span[0])))
                upper.append((left, 100 - y(span[1])))
            tip = _title(f"{series.name} at {number(self.x[i])}: {series.describe(i, self.unit)}")
            marks += _tag("circle", tip, class_=f"mark s{color}", cx=_at(left), cy=_at(down), r="4")
        band = _tag("polygon", class_=f"band s{color}", points=_points(lower + upper[::-1])) if lower else ""
        shape = band + _tag("polyline", class_=f"line s{color}", points=_points(line))
        whole = {"viewBox": "0 0 100 100", "preserveAspectRatio": "none", "width": "100%", "height": "100%"}
        return _tag("svg", shape, **whole) + marks


@dataclass(frozen=True)
class Columns(_Axes):
    """Upright bars, such as one for each bit; `colors` says of each which of the `kinds` it is.

    On a logarithmic axis, which `log` asks for, values that are not positive have no length.
    """

    labels: Sequence[str]
    series: Series
    kinds: Sequence[str] = ()
    colors: Sequence[int] = ()
    unit: str = ""
    log: bool = False

    def axis(self) -> Scale:
        """Where zero, or the smallest positive number, is at the bottom."""
        positive = [v for v in self.series.drawn() if v > 0]
        return scale(positive, log=True) if self.log and positive else scale(self.series.drawn(), zero=True)

    def svg(self) -> str:
        y = self.axis()
        body = "".join(self._column(i, label, y) for i, label in enumerate(self.labels)) + _names_below(self.labels)
        return self._plotted("columns", y, body, above=_legend(self.kinds, range(len(self.kinds))), unit=self.unit)

    def _column(self, i: int, label: str, y: Scale) -> str:
        value, width = self.series.values[i], 100 / len(self.labels)
        if value is None:
            return ""
        low, high = _extent(y, value)
        tip = _title(f"{self.x_label} {label}: {self.series.describe(i, self.unit)}")
        place = {
            "x": _at((i + 0.12) * width),
            "width": _at(0.76 * width),
            "y": _at(100 - high),
            "height": _at(high - low),
        }
        mark = _tag("rect", tip, class_=f"mark s{self.colors[i] if self.colors else 0}", **place)
        if span := self.series.interval(i):
            middle = _at((i + 0.5) * width)
            ends = {key: _at(100 - y(max(x, y.low))) for key, x in zip(("y1", "y2"), span, strict=True)}
            mark += _tag("line", class_="whisker", x1=middle, x2=middle, **ends)
        return mark


def _tag(name: str, *children: str, **attributes: str) -> str:
    """An element of children that are escaped already; a `_` in the name of an attribute stands for `-`."""
    pairs = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(x)}"' for key, x in attributes.items() if x)
    return f"<{name}{pairs}>{''.join(children)}</{name}>"


def _title(text: str) -> str:
    return _tag("title", escape(text))


def _row_label(label: str) -> str:
    return _tag("text", _title(label), escape(shorten(label)), class_="label")


def _at(percentage: float) -> str:
    return f"{percentage:.2f}%"


def _points(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{left:.2f},{down:.2f}" for left, down in places)


def _extent(axis: Scale, value: float) -> tuple[float, float]:
    """Where a bar from zero begins and ends; one that cannot be drawn has no length."""
    zero = axis.low if axis.log else 0.0
    low, high = sorted((axis(zero), axis(value if can_be_drawn(value) and not (axis.log and value < zero) else zero)))
    return low, high


def _size(names: Sequence[str]) -> tuple[str, str]:
    """Of a figure with a row for each name: what its note says, and how it is styled."""
    shown = min(len(names), MOST_ROWS)
    more = f"Drawn are the first {shown} of {len(names):,}; the table has all." if shown < len(names) else ""
    widest = max((len(shorten(name)) for name in names[:shown]), default=0)
    return more, f"--rows:{shown};--label:{widest}ch"


def _legend(names: Sequence[str], numbers: Sequence[int]) -> str:
    items = [
        _tag("li", _tag("i", class_=f"s{color}"), escape(name)) for name, color in zip(names, numbers, strict=True)
    ]
    return _tag("ul", *items, class_="legend") if len(items) > 1 else ""


def _upright_grid(axis: Scale, unit: str = "") -> str:
    return "".join(
        _tag("line", class_="zero" if v == 0 else "grid", x1=_at(axis(v)), x2=_at(axis(v)), y1="0", y2="100%")
        + _tag("text", escape(tick(v, unit)), class_="tick x", x=_at(axis(v)), y="100%")
        for v in axis.ticks
    )


def _names_below(names: Sequence[str]) -> str:
    """The names of columns, or of every few where there are many."""
    stride = math.ceil(len(names) / _MOST_TICKS)
    places = ((name, _at((i + 0.5) * 100 / len(names))) for i, name in enumerate(names) if i % stride == 0)
    return "".join(_tag("text", escape(name), class_="tick x", x=x, y="100%") for name, x in places)
