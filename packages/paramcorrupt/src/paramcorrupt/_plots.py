"""The figures of the pages, drawn with matplotlib on axes that the caller may own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._extras import need
from ._numbers import Scale, can_be_drawn, finite, suited
from ._svg import MOST_ROWS, Bars, Columns, Figure, Heat, Lines, Scatter, palette, shorten

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_COLORS = ("#5f83ab", "#c63f27", "#8a6d1d", "#2f8a6b", "#7a55a3")


def draw(figure: Figure, ax: Axes | None = None) -> Axes:
    """The figure on `ax`, or on axes of a new figure of its own."""
    pyplot = need("matplotlib.pyplot", "plot", "plot")
    if ax is None:
        names = figure.labels if isinstance(figure, Bars) else figure.rows if isinstance(figure, Heat) else ()
        size = (8.0, max(4.5, 1.2 + 0.28 * min(len(names), MOST_ROWS)))
        ax = pyplot.subplots(figsize=size, layout="constrained")[1]
    if isinstance(figure, Bars):
        _bars(figure, ax)
    elif isinstance(figure, Heat):
        _heat(figure, ax)
    elif isinstance(figure, Columns):
        _columns(figure, ax)
    elif isinstance(figure, Lines):
        _lines(figure, ax)
    elif isinstance(figure, Scatter):
        _scatter(figure, ax)
    ax.set_title(figure.title, loc="left")
    return ax


def _bars(figure: Bars, ax: Axes) -> None:
    shown = min(len(figure.labels), MOST_ROWS)
    height = 0.8 / len(figure.series)
    for j, (series, color) in enumerate(zip(figure.series, palette(figure.series), strict=True)):
        places = [i - 0.4 + (j + 0.5) * height for i in range(shown)]
        ax.barh(places, _drawn(series.values[:shown]), height, label=series.name, color=_COLORS[color])
        spans = [(at, *span) for i, at in enumerate(places) if (span := series.interval(i))]
        ax.hlines([at for at, _, _ in spans], [low for _, low, _ in spans], [high for _, _, high in spans], "0.3")
    ax.set_yticks(
        range(shown), [shorten(label) for label in figure.labels[:shown]], family="monospace", fontsize="small"
    )
    ax.set_ylim(shown - 0.5, -0.5)
    _unit(ax.xaxis, figure.unit)
    ax.set_xlabel("" if figure.unit == "%" else figure.unit)
    if len(figure.series) > 1:
        ax.legend(loc="lower right")


def _heat(figure: Heat, ax: Axes) -> None:
    shown = min(len(figure.rows), MOST_ROWS)
    image = ax.imshow([_drawn(row) for row in figure.values[:shown]], cmap="Reds", aspect="auto", interpolation="none")
    positive = [v for row in figure.values[:shown] for v in finite(row) if v > 0]
    if positive and suited(positive).log:
        image.set_norm("log")
        image.set_clim(min(positive), max(positive))
    ax.set_yticks(range(shown), [shorten(name) for name in figure.rows[:shown]], family="monospace", fontsize="small")
    ax.set_xticks(range(len(figure.columns)), figure.columns, fontsize="small")
    ax.set_xlabel(figure.x_label)
    ax.figure.colorbar(image, ax=ax)


def _columns(figure: Columns, ax: Axes) -> None:
    colors = figure.colors or [0] * len(figure.labels)
    places = range(len(figure.labels))
    ax.bar(places, _drawn(figure.series.values), color=[_COLORS[c] for c in colors])
    for i in places:
        if span := figure.series.interval(i):
            ax.vlines(i, *span, colors="0.3")
    ax.set_xticks(places, figure.labels, fontsize="small")
    _apply(ax, "y", figure.axis())
    _name_axes(ax, figure.x_label, figure.y_label)
    _unit(ax.yaxis, figure.unit)


def _lines(figure: Lines, ax: Axes) -> None:
    for series, number in zip(figure.series, palette(figure.series), strict=True):
        color = _COLORS[number]
        ax.plot(figure.x, _drawn(series.values), color=color, marker="o", markersize=4, label=series.name)
        spans = [(x, *span) for i, x in enumerate(figure.x) if (span := series.interval(i))]
        if spans:
            x, low, high = zip(*spans, strict=True)
            ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    _name_axes(ax, figure.x_label, figure.y_label)
    _apply(ax, "x", suited(finite(figure.x)))
    _apply(ax, "y", suited([v for s in figure.series for v in s.drawn()], zero=True))
    _unit(ax.yaxis, figure.unit)
    if len(figure.series) > 1:
        ax.legend()


def _scatter(figure: Scatter, ax: Axes) -> None:
    points = figure.points()
    both = suited([v for _, x, y in points for v in (x, y)])
    _apply(ax, "x", both)
    _apply(ax, "y", both)
    ax.plot([both.low, both.high], [both.low, both.high], color="0.7", linestyle="--", linewidth=1)
    ax.scatter([x for _, x, _ in points], [y for _, _, y in points], color=_COLORS[1], s=24)
    for i, x, y in figure.labelled(both):
        side = "right" if both(x) > 50 else "left"
        offset = (-8 if side == "right" else 8, -3)
        text = shorten(figure.labels[i])
        ax.annotate(
            text, (x, y), xytext=offset, textcoords="offset points", ha=side, family="monospace", fontsize="small"
        )
    _name_axes(ax, figure.x_label, figure.y_label)


def _name_axes(ax: Axes, x: str, y: str) -> None:
    ax.set_xlabel(x)
    ax.set_ylabel(y)


def _unit(axis: Axis, unit: str) -> None:
    if unit == "%":
        axis.set_major_formatter(need("matplotlib.ticker", "plot", "plot").PercentFormatter(1))


def _apply(ax: Axes, axis: str, scale: Scale) -> None:
    if scale.log:
        ax.set(**{f"{axis}scale": "log"})
    ax.set(**{f"{axis}lim": (scale.low, scale.high)})


def _drawn(values: Sequence[float | None]) -> list[float]:
    return [x if can_be_drawn(x) else float("nan") for x in values]
