"""Pictures of the loss in a ball; needs matplotlib, the extra `gasam[plot]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._ball import BallCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DASHES = (0, (4, 2))
_COLOURS = ("#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d")


def plot(curves: BallCurve | Mapping[str, BallCurve] | Sequence[BallCurve], ax: Axes | None = None) -> Axes:
    """Draw loss against radius: the worst as a line, random directions as a band from their mean to their maximum.

    An axis on which the values span more than a decade, and are positive, is logarithmic.

    Args:
        curves: one curve, several, or several by the name that the legend gives them.
        ax: where to draw, by default a new figure that no window shows: `plot(curve).figure.savefig("ball.png")`.

    Returns:
        The axes that were drawn on.

    Raises:
        ValueError: there is no curve.
        ImportError: matplotlib is missing.

    Example:
        >>> axes = plot({"SGD": curve, "GA-SAM": flatter})  # doctest: +SKIP
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch
    except ImportError as error:
        raise ImportError("gasam.flatness.plot needs matplotlib: pip install 'gasam[plot]'") from error

    if isinstance(curves, BallCurve):
        curves = {"": curves}
    named = curves if isinstance(curves, Mapping) else {f"curve {i}": curve for i, curve in enumerate(curves, 1)}
    if not named:
        raise ValueError("curves must not be empty: give what loss_in_ball returned")
    if ax is None:
        ax = Figure(figsize=(6.4, 4), layout="constrained").subplots()
    names = []
    for (name, curve), colour in zip(named.items(), cycle(_COLOURS)):
        order = curve.radii.argsort()
        radii, mean, highest, worst = (
            x[order].tolist() for x in (curve.radii, curve.random_mean, curve.random_max, curve.worst)
        )
        ax.fill_between(radii, mean, highest, color=colour, alpha=0.2, linewidth=0)
        ax.plot(radii, mean, color=colour, linewidth=1.5, linestyle=_DASHES)
        ax.plot(radii, worst, color=colour, linewidth=2, marker="o", markersize=4, clip_on=False, zorder=3)
        names += [Line2D([], [], color=colour, linewidth=5, label=name)] if name else []
    ax.set_xscale("log" if _spans_decades([curve.radii for curve in named.values()]) else "linear")
    losses = [x for curve in named.values() for x in (curve.random_mean, curve.worst)]
    ax.set_yscale("log" if _spans_decades(losses) else "linear")
    ax.set(xlabel="distance from the weights", ylabel="loss")
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(x=0.01)
    grey = names[0].get_color() if len(names) == 1 else "0.35" if names else _COLOURS[0]
    ax.legend(
        handles=[
            *names,
            Line2D([], [], color=grey, linewidth=2, marker="o", markersize=4, label="worst found"),
            Line2D([], [], color=grey, linewidth=1.5, linestyle=_DASHES, label="mean of random directions"),
            Patch(color=grey, alpha=0.2, linewidth=0, label="to the largest of them"),
        ],
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        ncols=3,
        frameon=False,
    )
    return ax


def _spans_decades(tensors: list[Tensor]) -> bool:
    values = torch.cat(tensors)
    return bool((values > 0).all() and values[values.isfinite()].amax() > 20 * values.amin())
