"""Epochs on a GPU beside the same epochs on one core, the quality of both, and what more centres at once do to it."""

from __future__ import annotations

import statistics
import time
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from harness import GPU, Context, Figure, Outcome, Study, UnequalError, Workload, at_least, cores, median_interval
from material import PACKAGES as EVERYWHERE
from material import QUICK_LINES, folder, imagenet, made_up_bank, pairs, text

from imgskipgram import ImageSkipGram, evaluate

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES = (*EVERYWHERE, "torch", "triton")
OURS, CORE = "imgskipgram Triton", "imgskipgram C++, one core"
ROUNDS, SEEDS, EPOCHS = 4, 5, 5
SIZES = [1 << n for n in range(12, 19)]


# --- speed ---


@cache
def material(path: Path) -> tuple[Any, Any]:
    """The corpus in numbers, which both sides have before the clock starts."""
    from imgskipgram._corpus import encode

    model = ImageSkipGram(workers=1)
    model.build_vocab(path)
    vocabulary = model._known()
    return vocabulary, encode(path, vocabulary)


class Side:
    """An engine that trains epoch after epoch."""

    def __init__(self, context: Context, device: str, images: bool, columns: int = 100) -> None:
        from imgskipgram._engine import engine
        from imgskipgram._grounding import Grounding
        from imgskipgram._options import Options
        from imgskipgram._rows import fresh, zeros

        vocabulary, self._tokens = material(text(context.data, QUICK_LINES))
        options = Options(workers=1, device=device, projection="fixed", vector_size=columns)
        grounding, self._z = None, None
        if images:
            bank = imagenet(context.data) if context.data else made_up_bank(vocabulary.words[100:900])
            grounding = Grounding(bank, vocabulary, options)
            self._z = zeros(len(bank), columns, "float32")
            self._z[:, :columns] = grounding.first()
        self._engine = engine(options, vocabulary, grounding, "exact")
        v, u = fresh(0, len(vocabulary), columns, "float32", 1), zeros(len(vocabulary), columns, "float32")
        self._engine.start(v, u, np.ones(1, np.float32))
        self._epoch = 0

    def epoch(self) -> tuple[float, Any]:
        """Seconds, and what the engine says of the epoch."""
        from imgskipgram._engine import Place

        n = int(self._tokens.offsets[-1])
        place = Place(self._epoch, 0.025, 0.0001, self._epoch * n, 2 * ROUNDS * n)
        begin = time.perf_counter()
        totals = self._engine.run(self._tokens, self._z, place, np.zeros(1, np.uint8), np.zeros(1, np.uint64))
        self._epoch += 1
        return time.perf_counter() - begin, totals


def speed(context: Context, outcome: Outcome) -> None:
    """Epochs in turn; each counts the same pairs."""
    for name, images, columns in (("text", False, 100), ("text, 300 numbers", False, 300), ("images", True, 100)):
        ours, core = (Side(context, device, images, columns) for device in ("cuda", "cpu"))
        warm, first = ours.epoch(), core.epoch()  # compiles; touches every page
        if warm[1][2:] != first[1][2:]:
            raise UnequalError(f"{name}: counts {warm[1][2:]} on the GPU, {first[1][2:]} in C++")
        ratios, rates, losses = [], [], []
        for number in range(1, ROUNDS):
            (seconds, totals), (peer, exact) = ours.epoch(), core.epoch()
            ratios.append(peer / seconds)
            rates.append(totals.raw / seconds / 1e6)
            losses.append(totals.text_loss / exact.text_loss - 1)
            context.progress(number / ROUNDS)
        note = f"losses of the epochs differ by {100 * statistics.fmean(losses):+.1f} %; ids are on the device"
        value, low, high = median_interval(ratios)
        figure = Figure(name, OURS, CORE, "x as fast", value, low, high, at_least(30.0), note=note, samples=ratios)
        figure.headline = name == "text"
        outcome.figures.append(figure)
        value, low, high = median_interval(rates)
        target = at_least(50.0) if name == "text" else None
        outcome.figures.append(Figure(name, OURS, "", " M words/s", value, low, high, target, samples=rates))
    outcome.equal = "Every epoch has the words, pairs and images that the core's has."


# --- quality ---


def scores(model: ImageSkipGram, data: str | None) -> dict[str, float]:
    return {name: 100 * evaluate.similarity(model.wv, path).spearman for name, path in pairs(data).items()}


def quality(context: Context, outcome: Outcome) -> None:
    """Seed by seed: what people say of pairs of words, by the vectors of the GPU and of one thread."""
    folder(context.data)  # made-up text means nothing
    path, found = text(context.data), []
    for seed in range(1, SEEDS + 1):
        models = [ImageSkipGram(seed=seed, epochs=EPOCHS, workers=1, device=x).fit(path) for x in ("cuda", "cpu")]
        found.append([scores(model, context.data) for model in models])
        outcome.table.append([f"seed {seed}", *(f"{x:.1f}" for side in found[-1] for x in side.values())])
        context.progress(seed / SEEDS)
    outcome.table.insert(0, ["", *(f"{name}, {side}" for side in ("GPU", "C++") for name in found[0][0])])
    for name in found[0][0]:
        gains = [ours[name] - peer[name] for ours, peer in found]
        value, low, high = median_interval(gains)
        figure = Figure(name, OURS, CORE, " points more", value, low, high, at_least(-0.5), samples=gains)
        outcome.figures.append(figure)


def pieces(context: Context, outcome: Outcome) -> None:
    """The centres of a launch: more keep more multiprocessors busy, and train frequent words by older rows."""
    from imgskipgram.gpu import _engine

    folder(context.data)
    path, usual = text(context.data), (_engine._PIECE, _engine._PIECES)
    outcome.table.append(["centres of a launch", "M words/s", "loss of a pair", *pairs(context.data)])
    try:
        for number, size in enumerate(SIZES, 1):
            _engine._PIECE, _engine._PIECES = size, 1
            model = ImageSkipGram(epochs=1, device="cuda").fit(path)
            side = Side(context, "cuda", images=False)
            seconds, totals = min((side.epoch() for _ in range(3)), key=lambda epoch: epoch[0])
            found = [f"{x:.1f}" for x in scores(model, context.data).values()]
            rate, loss = totals.raw / seconds / 1e6, model.losses_[0]["text"]
            outcome.table.append([f"{size:,}", f"{rate:.1f}", f"{loss:.3f}", *found])
            context.progress(number / len(SIZES))
    finally:
        _engine._PIECE, _engine._PIECES = usual
    core = ImageSkipGram(epochs=1, workers=cores()).fit(path)
    found = [f"{x:.1f}" for x in scores(core, context.data).values()]
    outcome.table.append(["C++, all cores", "", f"{core.losses_[0]['text']:.3f}", *found])


WORKLOADS: tuple[Workload, ...] = (
    Study("CUDA epochs", "Words per second of epochs, beside one core; text alone and with images.", speed, GPU),
    Study("CUDA quality", f"{EPOCHS} epochs, {SEEDS} seeds: similarities of words.", quality, GPU),
    Study("CUDA pieces", "How many centres one launch trains: speed and quality of one epoch.", pieces, GPU),
)
