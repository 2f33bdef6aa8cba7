"""Plots with matplotlib on a transparent ground, legible on light pages and on dark ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from ._localization import Matches
    from ._report import Bin, Report

_INK = "#7d8590"  # text and axes
_COLOURS = ("#2f9be6", "#f0883e", "#3fb068", "#b07ee8", "#e5534b", "#c9a227")


def reliability(report: Report) -> Figure:
    """Reliability diagrams of the score and, if it was predicted, of the IoU: what was claimed, and what was so.

    A bar is the mean of what was observed in a bin, the line above or below it the distance to what was claimed; the
    strip beneath shows how many detections there are.

    Args:
        report: of :func:`iounet.coco.evaluate`.

    Returns:
        A matplotlib figure, which no window shows: `figure.savefig("reliability.svg")`.

    Raises:
        ValueError: the report has no bins: its scores are no probabilities, or there is no detection.
        ImportError: matplotlib is missing.

    Example::

        reliability(evaluate("instances_val.json", "results.json")).savefig("reliability.svg")

    Reference:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    sides = [
        (report.reliability_score, report.ece_score, "score", f"share with IoU ≥ {report.min_iou:g}", _COLOURS[1]),
        (report.reliability_iou, report.ece_iou, "predicted IoU", "mean true IoU", _COLOURS[0]),
    ]
    sides = [side for side in sides if any(one.count for one in side[0])]
    if not sides:
        raise ValueError("report must have a reliability diagram: there are no detections, or scores outside 0..1")
    figure = _figure(4.4 * len(sides), 4.9)
    grid = figure.add_gridspec(2, len(sides), height_ratios=(5, 1))
    for place, (bins, error, claimed, observed, colour) in enumerate(sides):
        above, below = (figure.add_subplot(grid[row, place]) for row in (0, 1))
        _reliability(above, below, bins, colour)
        _style(above, "", observed)
        _style(below, claimed, "count")
        above.set_title(f"ECE {error:.3f}", color=_INK, fontsize=11)
        above.tick_params(labelbottom=False)
    return figure


def iou_scatter(matches: Matches, *, min_iou: float = 0.5) -> Figure:
    """The true IoU of detections against their score and, if it was predicted, against their predicted IoU.

    Args:
        matches: of :func:`iounet.coco.match`.
        min_iou: detections of a smaller true IoU are left out, as in :func:`iounet.coco.evaluate`.

    Returns:
        A matplotlib figure, as :func:`reliability` does.

    Raises:
        ValueError: no detection reaches `min_iou`.
        ImportError: matplotlib is missing.

    Example::

        iou_scatter(match("instances_val.json", "results.json")).savefig("scatter.png")
    """
    hit = matches.true_iou >= min_iou
    if not hit.any():
        raise ValueError(f"matches must have a detection whose true IoU is at least min_iou, {min_iou}")
    true_iou = torch.as_tensor(matches.true_iou[hit])
    sides = [("score", matches.score, _COLOURS[1]), ("predicted IoU", matches.iou, _COLOURS[0])]
    figure = _figure(4.4 * sum(values is not None for _, values, _ in sides), 4.4)
    shown = [(name, torch.as_tensor(values[hit]), colour) for name, values, colour in sides if values is not None]
    for place, (name, values, colour) in enumerate(shown, 1):
        axes = figure.add_subplot(1, len(shown), place)
        size, alpha = (16.0, 0.55) if len(values) < 500 else (7.0, 0.3)
        axes.scatter(true_iou, values, s=size, color=colour, alpha=alpha, linewidths=0, rasterized=len(values) > 3000)
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=1, dashes=(4, 3))
        axes.set(xlim=(min_iou - 0.01, 1.01), ylim=(-0.02, 1.02))
        _style(axes, "true IoU", name)
        r = torch.corrcoef(torch.stack([values, true_iou]))[0, 1].item() if len(values) > 1 else torch.nan
        axes.set_title(f"Pearson {r:.3f}, n = {len(values)}", color=_INK, fontsize=11)
    return figure


def iou_per_iteration(curves: Mapping[str, Tensor | Sequence[float]]) -> Figure:
    """The mean IoU after each step of refinement, one line per method.

    Args:
        curves: by name, of steps 0, 1, ...: values [steps + 1], or [steps + 1, K] of K boxes or seeds, whose mean is
            drawn within a band of two standard errors.

    Returns:
        A matplotlib figure, as :func:`reliability` does.

    Raises:
        ValueError: there is no curve, or one has another shape.
        ImportError: matplotlib is missing.

    Example::

        result = iounet.refine_boxes(..., return_trajectory=True)
        iou_per_iteration({"literal": result.trajectory_iou}).savefig("steps.svg")
    """
    from_name = {name: torch.as_tensor(values, dtype=torch.float64) for name, values in curves.items()}
    for name, values in from_name.items():
        if values.ndim not in (1, 2) or not values.numel():
            raise ValueError(f"curves[{name!r}] must be [steps + 1] or [steps + 1, K], got {list(values.shape)}")
    if not from_name:
        raise ValueError("curves must have at least one entry, got none")
    figure = _figure(6.4, 4.2)
    axes = figure.add_subplot()
    ends = []
    for place, (name, values) in enumerate(from_name.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        mean = values if values.ndim == 1 else values.mean(1)
        steps = range(len(mean))
        axes.plot(steps, mean, color=colour, linewidth=2, marker="o", markersize=4.5, markeredgewidth=0)
        if values.ndim == 2 and values.shape[1] > 1:
            error = 2 * values.std(1) / values.shape[1] ** 0.5
            axes.fill_between(steps, mean - error, mean + error, color=colour, alpha=0.18, linewidth=0)
        ends.append((float(mean[-1]), len(mean) - 1, name, colour))
    _style(axes, "step", "mean IoU")
    axes.locator_params(axis="x", integer=True)
    _name_ends(axes, ends)
    return figure


def _name_ends(axes: Axes, ends: list[tuple[float, int, str, str]]) -> None:
    """Names at the ends of lines instead of a legend, apart from each other."""
    low, high = axes.get_ylim()
    apart = (high - low) * 0.062
    last = max(step for _, step, _, _ in ends)
    below = low - apart
    for value, _, name, colour in sorted(ends):
        below = max(value, below + apart)
        axes.annotate(
            f"{name}  {value:.3f}",
            (last, below),
            xytext=(9, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=10,
            annotation_clip=False,
        )


def _reliability(above: Axes, below: Axes, bins: Sequence[Bin], colour: str) -> None:
    filled = [one for one in bins if one.count]
    middles = [(one.low + one.high) / 2 for one in filled]
    width = 0.92 * (filled[0].high - filled[0].low)
    above.bar(middles, [one.observed for one in filled], width, color=colour, alpha=0.75, linewidth=0)
    for middle, one in zip(middles, filled, strict=True):
        above.plot([middle, middle], [one.observed, one.confidence], color=_INK, linewidth=1.5, solid_capstyle="butt")
        above.plot([middle - width / 3, middle + width / 3], [one.confidence] * 2, color=_INK, linewidth=2.5)
    above.plot([0, 1], [0, 1], color=_INK, linewidth=1, dashes=(4, 3))
    above.set(xlim=(0, 1), ylim=(0, 1.02))
    below.bar(middles, [one.count for one in filled], width, color=colour, alpha=0.4, linewidth=0)
    below.set(xlim=(0, 1))
    below.locator_params(axis="y", nbins=2, integer=True)


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'iounet[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained", facecolor="none", dpi=150)


def _style(axes: Axes, x: str, y: str) -> None:
    axes.set_facecolor("none")
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    axes.tick_params(colors=_INK, length=3)
    for side, spine in axes.spines.items():
        spine.set_color(_INK)
        spine.set_visible(side in ("left", "bottom"))
    axes.grid(color=_INK, alpha=0.18, linewidth=0.8)
    axes.set_axisbelow(True)
