"""How good the vectors are beside gensim's, seed by seed."""

from __future__ import annotations

import random
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gensim.models import Word2Vec
from gensim.test.utils import datapath
from harness import Context, Figure, Outcome, Study, Workload, at_least
from material import PACKAGES as PACKAGES
from material import folder, pairs, scratch, text

from imgskipgram import ImageSkipGram, evaluate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gensim.models import KeyedVectors

OURS, GENSIM = "imgskipgram", "gensim"


def corpus(context: Context) -> Path:
    """Lines in random order: gensim's rate falls by sentences and ours by tokens, so their lengths must not drift."""
    source = text(context.data) if context.data else Path(datapath("lee_background.cor"))
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    path = scratch() / "shuffled.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def scores(wv: KeyedVectors, data: str | None) -> dict[str, float]:
    """Spearman's correlation with people, and analogies solved, in %."""
    found = {name: 100 * evaluate.similarity(wv, path).spearman for name, path in pairs(data).items()}
    if data is not None:
        found["Google"] = 100 * evaluate.analogy(wv, folder(data) / "google.txt.xz").accuracy
    return found


def trained(path: Path, seed: int, epochs: int) -> tuple[KeyedVectors, KeyedVectors]:
    options: dict[str, Any] = {"seed": seed, "epochs": epochs, "workers": 1}
    with path.open(encoding="utf-8") as file:
        given = [line.split() for line in file]
    return ImageSkipGram(**options).fit(path).wv, Word2Vec(given, sg=1, **options).wv


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % of the means of as many values, drawn with replacement."""
    draw = random.Random(0)
    means = sorted(statistics.fmean(draw.choices(values, k=len(values))) for _ in range(2000))
    return means[50], means[1949]


def quality(context: Context, outcome: Outcome) -> None:
    path, seeds = corpus(context), range(1, 1 + context.pick(1, 3, 5))
    outcome.table = [["epochs", "system", *pairs(context.data), *(["Google"] if context.data else [])]]
    for epochs in context.pick((1,), (1,), (1, 5)) if context.data else (context.pick(2, 30),):
        found = []
        for seed in seeds:
            found.append([scores(wv, context.data) for wv in trained(path, seed, epochs)])
            context.progress(seed / len(seeds))
        for system, column in ((OURS, 0), (GENSIM, 1)):
            values = {name: [row[column][name] for row in found] for name in found[0][0]}
            outcome.table.append([str(epochs), system, *(spread(value) for value in values.values())])
        for name in found[0][0]:
            gains = [ours[name] - theirs[name] for ours, theirs in found]
            figure = Figure(f"{name}, {epochs} epochs", OURS, GENSIM, " points", statistics.fmean(gains))
            figure.low, figure.high = interval(gains)
            figure.target = at_least(-0.5) if context.data else None
            figure.headline = context.data is not None and name == "SimLex"  # Lee's corpus knows few of the pairs
            figure.note = "by seed: " + ", ".join(f"{gain:+.1f}" for gain in gains)
            outcome.figures.append(figure)


def spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


WORKLOADS: tuple[Workload, ...] = (
    Study(
        "quality",
        "Ours less gensim's (lists of words, one worker), default settings, the same number as seed: Spearman's "
        "correlation with people's judgement and the share of analogies solved, in %. With --data its whole corpus, "
        "shuffled, 1 epoch (full: 1 and 5 epochs, five seeds); otherwise the 300 documents of gensim's Lee corpus, 30 "
        "epochs, which know few of the pairs.",
        quality,
    ),
)
