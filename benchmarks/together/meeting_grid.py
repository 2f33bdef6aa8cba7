"""Optimizers over a grid of learning rates and seeds: runs, and the figures, table and curves that tell of them."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from harness import Context, Curves, Figure, Outcome, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PUBLISHED = 100  # the first of the seeds that were never looked at while anything was chosen
Runs = dict[tuple[str, float], list[float]]  # of an optimizer at a learning rate, in the order of the seeds


def seeds(count: int) -> range:
    return range(PUBLISHED, PUBLISHED + count)


def measured(
    context: Context, names: Sequence[str], rates: Sequence[float], count: int, run: Callable[[str, float, int], float]
) -> Runs:
    """All runs of a grid, which is the same for every optimizer."""
    found: Runs = {}
    for name in names:
        for rate in rates:
            found[name, rate] = [run(name, rate, seed) for seed in seeds(count)]
            context.progress(len(found) / (len(names) * len(rates)))
    return found


def shown(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation; a run whose weights did not stay finite is counted, not averaged."""
    if lost := sum(not math.isfinite(value) for value in values):
        return f"{lost} of {len(values)} lost"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def best(runs: Runs, name: str, *, lowest: bool) -> float:
    """The learning rate of the best mean, on what is reported: each optimizer has this advantage."""
    means = {rate: statistics.fmean(values) for (who, rate), values in runs.items() if who == name}
    fit = {rate: mean for rate, mean in means.items() if math.isfinite(mean)} or means
    return (min if lowest else max)(fit, key=lambda rate: fit[rate])


def gained(
    name: str, runs: Runs, ours: tuple[str, float], peer: tuple[str, float], unit: str, digits: int,
    *, lowest: bool, target: Target | None = None
) -> Figure:  # fmt: skip
    """How much better ours is, seed by seed: the mean, and the range of the seeds."""
    labels = [f"{who}, lr {rate:g}: {shown(runs[who, rate], digits)}" for who, rate in (ours, peer)]
    figure = Figure(name, *labels, unit=unit, target=target)
    pairs = list(zip(runs[ours], runs[peer], strict=True))
    if not all(math.isfinite(value) for pair in pairs for value in pair):
        figure.note = "a run whose weights did not stay finite has nothing to compare"
        return figure
    gains = [b - a if lowest else a - b for a, b in pairs]
    figure.value = statistics.fmean(gains)
    if len(pairs) > 1:
        figure.low, figure.high, figure.samples = min(gains), max(gains), [round(gain, 6) for gain in gains]
    if figure.value < 0:
        figure.note = "the peer is better here"
    return figure


def told(outcome: Outcome, runs: Runs, what: str, digits: int, floor: dict[str, float]) -> None:
    """The table and the curve over the learning rate; `floor` are lines that no optimizer has a part in."""
    names, rates = (list(dict.fromkeys(key[place] for key in runs)) for place in (0, 1))
    outcome.table += [["optimizer", *(f"lr {rate:g}" for rate in rates)]]
    outcome.table += [[str(name), *(shown(runs[name, rate], digits) for rate in rates)] for name in names]
    lines: dict[str, list[tuple[float, ...]]] = {}
    for name in names:
        known = {rate: runs[name, rate] for rate in rates if all(map(math.isfinite, runs[name, rate]))}
        lines[str(name)] = [(rate, statistics.fmean(x), min(x), max(x)) for rate, x in known.items()]
    for name, value in floor.items():
        lines[name] = [(rate, value) for rate in (min(rates), max(rates))]
        outcome.table.append([name, *(f"{value:.{digits}f}" for _ in rates)])
    outcome.curves.append(Curves("learning rate", what, {k: v for k, v in lines.items() if v}, log_x=True))
