"""Pictures of an optimizer's learning rates; needs matplotlib, the extra `adamod[plot]`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .statistics import BoundStats

    Stats: TypeAlias = Mapping[Tensor, BoundStats]

__all__ = ["learning_rates"]


def learning_rates(stats: Stats | Sequence[tuple[int, Stats]]) -> Figure:
    """Draw what :meth:`adamod.AdaMod.bound_stats` returned, parameters summed.

    Args:
        stats: one result, drawn as histograms of eta (the learning rate before the bound) and s (the bound) over
            powers of two; or a list of (step, result), drawn as two heat maps over the steps.

    Returns:
        A matplotlib figure, which no window shows: `figure.savefig("learning_rates.png")`.

    Raises:
        ValueError: `stats` is empty.
        ImportError: matplotlib is missing.

    Example:
        >>> figure = learning_rates(optimizer.bound_stats())  # doctest: +SKIP
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("adamod.plot needs matplotlib: pip install 'adamod[plot]'") from error

    one = isinstance(stats, Mapping)
    series = [(0, stats)] if isinstance(stats, Mapping) else list(stats)
    if not series or not all(result for _, result in series):
        raise ValueError("stats must not be empty: call bound_stats() after a step")
    edges = next(iter(series[0][1].values())).edges
    eta = torch.stack([torch.stack([x.eta for x in result.values()]).sum(0) for _, result in series])
    s = torch.stack([torch.stack([x.s for x in result.values()]).sum(0) for _, result in series])
    used = torch.nonzero((eta + s).sum(0)).flatten()
    low, high = max(int(used[0]) - 1, 0), min(int(used[-1]) + 2, len(edges) - 1)

    figure = Figure(figsize=(8, 4), layout="constrained")
    if one:
        _histogram(figure.subplots(), series[0][1], eta[0], s[0], edges, low, high)
    else:
        _heat_maps(figure, [step for step, _ in series], eta, s, edges, low, high)
    return figure


def _label(axis: Axes, what: str) -> None:
    axis.set_yscale("log", base=2) if what == "y" else axis.set_xscale("log", base=2)


def _histogram(axis: Axes, stats: Stats, eta: Tensor, s: Tensor, edges: Tensor, low: int, high: int) -> None:
    span = edges[low : high + 1].tolist()
    for counts, label, colour in ((eta, "η, before the bound", "#d95f02"), (s, "s, the bound", "#1b9e77")):
        share = (counts / counts.sum())[low:high].tolist()
        axis.stairs(share, span, label=label, color=colour, fill=True, alpha=0.35)
        axis.stairs(share, span, color=colour, linewidth=1.5)
    _label(axis, "x")
    elements = sum(one.elements for one in stats.values())
    clipped = sum(one.clipped * one.elements for one in stats.values()) / elements
    axis.set(
        xlabel="learning rate of an element", ylabel="share of elements", title=f"{clipped:.1%} of elements bounded"
    )
    axis.legend(frameon=False)


def _heat_maps(figure: Figure, steps: list[int], eta: Tensor, s: Tensor, edges: Tensor, low: int, high: int) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FixedLocator, MaxNLocator

    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    middles = [(a + b) / 2 for a, b in pairwise(steps)]
    first = steps[0] - (middles[0] - steps[0] if middles else 0.5)
    last = steps[-1] + (steps[-1] - middles[-1] if middles else 0.5)
    shares = [counts / counts.sum(1, keepdim=True).clamp(min=1) for counts in (eta, s)]
    least = min(float(share[share > 0].min()) for share in shares)
    norm = LogNorm(min(least, 0.1), 1)  # the few extreme learning rates are the subject
    for axis, share, title in zip(axes, shares, ("η, before the bound", "s, the bound"), strict=True):
        cells = share[:, low:high].where(share[:, low:high] > 0, torch.nan).T.tolist()
        mesh = axis.pcolormesh(
            [first, *middles, last], edges[low : high + 1].tolist(), cells, cmap="viridis", norm=norm
        )
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True) if middles else FixedLocator(steps))
        _label(axis, "y")
        axis.set(xlabel="step", title=title)
    axes[0].set_ylabel("learning rate of an element")
    figure.colorbar(mesh, ax=axes, label="share of elements")
