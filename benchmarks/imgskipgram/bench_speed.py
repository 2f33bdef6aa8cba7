"""How fast words are counted and trained, beside gensim and fastText's trainer; what threads, bits and images cost."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from gensim.models import Word2Vec
from harness import (
    FULL,
    Contestant,
    Context,
    Figure,
    Outcome,
    Race,
    Study,
    UnequalError,
    Versus,
    Workload,
    at_least,
    at_most,
    cores,
    median_interval,
)
from material import PACKAGES as PACKAGES
from material import QUICK_LINES, imagenet, lines_of, made_up_bank, scratch, text

from imgskipgram import ImageBank, ImageSkipGram

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from gensim.models import KeyedVectors

OURS, GENSIM, FLORET = "imgskipgram", "gensim", "fastText's trainer (floret)"
SETTINGS: dict[str, Any] = {"vector_size": 100, "window": 5, "negative": 5, "min_count": 5, "sample": 1e-3, "seed": 1}


def corpus(context: Context) -> Path:
    return text(context.data, lines_of(context))


def epochs(context: Context) -> int:
    return context.pick(1, 5)


@cache
def sentences(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8") as file:
        return [line.split() for line in file]


# --- training ---


@cache
def model(path: Path, **options: Any) -> ImageSkipGram:
    made = ImageSkipGram(**{"workers": 1, **SETTINGS, **options})
    made.build_vocab(path)
    return made


def ours(context: Context, loss: str = "exact", threads: int = 1, **options: Any) -> Contestant:
    """Training from a file, which is read and put into numbers once."""
    made, path = model(corpus(context), workers=threads, **options), corpus(context)
    return Contestant(lambda: made.train(path, epochs=epochs(context), compute_loss=loss), threads)


def gensim(context: Context) -> Contestant:
    """Lists of words in memory and one worker, which is its fastest way on one core."""
    made = Word2Vec(sg=1, workers=1, **SETTINGS)
    given = sentences(corpus(context))
    made.build_vocab(given)
    return Contestant(lambda: made.train(given, total_examples=made.corpus_count, epochs=epochs(context)))


def training(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    return {
        OURS: lambda: ours(context),
        f"{OURS}, negatives=batch": lambda: ours(context, negatives="batch"),
        f"{OURS}, negatives=pair": lambda: ours(context, negatives="pair"),
        f"{OURS}, no loss": lambda: ours(context, "none"),
        GENSIM: lambda: gensim(context),
    }


def same_task(context: Context) -> str:
    """Both know the same words and counts, read the same tokens and train as many."""
    path = corpus(context)
    given, mine = sentences(path), ImageSkipGram(workers=1, **SETTINGS)
    theirs = Word2Vec(sg=1, workers=1, epochs=1, **SETTINGS)
    mine.build_vocab(path)
    theirs.build_vocab(given)
    if counts(mine.wv) != counts(theirs.wv):
        raise UnequalError("words or their counts differ")
    kept, raw = mine.train(path, epochs=1)
    their_kept, their_raw = theirs.train(given, total_examples=len(given), epochs=1)
    if raw != their_raw:
        raise UnequalError(f"{raw} tokens are read, {their_raw} by gensim")
    if abs(kept - their_kept) > 5 * raw**0.5:
        raise UnequalError(f"{kept} tokens are trained, {their_kept} by gensim")
    return f"The same {len(mine.wv):,} words and counts; {raw:,} tokens read, {kept:,} and {their_kept:,} trained."


def counts(wv: KeyedVectors) -> dict[str, int]:
    return {word: int(wv.get_vecattr(word, "count")) for word in wv.index_to_key}


class Stopwatch:
    """CPU seconds of the last epoch, by gensim's names of callbacks."""

    seconds = 0.0

    def on_epoch_begin(self, model: object) -> None:
        self.start = time.process_time()

    def on_epoch_end(self, model: object) -> None:
        self.seconds = time.process_time() - self.start


def passes(context: Context, outcome: Outcome) -> None:
    """One pass over the corpus, the file being read already, in turn with gensim's over lists of words."""
    outcome.equal = same_task(context)
    path, given = corpus(context), sentences(corpus(context))
    theirs = Word2Vec(sg=1, workers=1, **SETTINGS)
    theirs.build_vocab(given)
    watches = {negatives: Stopwatch() for negatives in ("center", "batch", "pair")}
    ours = {name: ImageSkipGram(workers=1, negatives=name, callbacks=(w,), **SETTINGS) for name, w in watches.items()}
    ratios: dict[str, list[float]] = {name: [] for name in ours}
    for made in ours.values():
        made.build_vocab(path)
    for number in range(context.pick(1, 3, 5)):
        start = time.process_time()
        theirs.train(given, total_examples=len(given), epochs=1)
        spent = time.process_time() - start
        for name, made in ours.items():
            made.train(path, epochs=1)
            ratios[name].append(round(spent / watches[name].seconds, 6))
        context.progress((number + 1) / context.pick(1, 3, 5))
    for (name, values), target in zip(ratios.items(), (10, 12, 3), strict=True):
        figure = Figure("", f"{OURS}, negatives={name}", GENSIM, "x as fast", *median_interval(values))
        figure.target, figure.samples = at_least(target), values
        outcome.figures.append(figure)


# --- the whole job ---


def whole(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    path, count = (
        text(context.data, context.pick(2000, QUICK_LINES // 3 if context.data else 2000, QUICK_LINES)),
        epochs(context),
    )

    def fasttext() -> Contestant:
        import floret

        options = {"dim": 100, "ws": 5, "neg": 5, "minCount": 5, "t": 1e-3, "lr": 0.025, "minn": 0, "maxn": 0}
        fixed = {"model": "skipgram", "mode": "fasttext", "thread": 1, "verbose": 0}
        return Contestant(lambda: floret.train_unsupervised(str(path), epoch=count, **options, **fixed))

    return {
        OURS: lambda: Contestant(lambda: ImageSkipGram(workers=1, epochs=count, **SETTINGS).fit(path)),
        GENSIM: lambda: Contestant(lambda: Word2Vec(corpus_file=str(path), sg=1, workers=1, epochs=count, **SETTINGS)),
        FLORET: fasttext,
    }


def counting(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    path = corpus(context)
    return {
        OURS: lambda: Contestant(lambda: ImageSkipGram(workers=1, **SETTINGS).build_vocab(path)),
        GENSIM: lambda: Contestant(lambda: Word2Vec(sg=1, **SETTINGS).build_vocab(corpus_file=str(path))),
    }


# --- threads and bits ---


def two_threads(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    block, pool = bytes(60_000_000), ThreadPoolExecutor(2)

    def digest(threads: int) -> Callable[[], object]:
        """Arithmetic that shares nothing: what a second core is worth here, at this hour."""
        return lambda: list((map if threads == 1 else pool.map)(lambda _: hashlib.sha256(block).digest(), range(2)))

    return {
        f"{OURS}, 2 threads": lambda: ours(context, threads=2),
        f"{OURS}, 1 thread": lambda: ours(context),
        "SHA-256, 2 threads": lambda: Contestant(digest(2), 2),
        "SHA-256, 1 thread": lambda: Contestant(digest(1)),
    }


def deterministic(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    return {
        f"{OURS}, deterministic": lambda: ours(context, deterministic=True),
        OURS: lambda: ours(context),
    }


def same_bits(context: Context) -> str:
    path = text(context.data, context.pick(1000, 5000))
    made = [ImageSkipGram(workers=n, deterministic=True, epochs=1, **SETTINGS).fit(path).wv.vectors for n in (1, 2, 4)]
    if not all(np.array_equal(made[0].view(np.uint32), other.view(np.uint32)) for other in made):
        raise UnequalError("1, 2 and 4 threads give other bits")
    return "1, 2 and 4 threads give the same bits."


# --- images ---


@cache
def bank(data: str | None, path: Path) -> ImageBank:
    """That of --data, or made-up images of words as frequent as its labels are in English."""
    if data is not None:
        return imagenet(data)
    words = model(path).wv.index_to_key
    return made_up_bank(words[len(words) // 70 :: len(words) // 600])


def with_images(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    path, count = corpus(context), epochs(context)

    def fit(images: ImageBank | None, objective: str) -> Contestant:
        return Contestant(
            lambda: ImageSkipGram(workers=1, epochs=count, objective=objective, **SETTINGS).fit(path, images)
        )

    shown = bank(context.data, path)
    return {
        f"{OURS} with images": lambda: fit(shown, "nce"),
        f"{OURS}, images placed afterwards": lambda: fit(shown, "none"),
        f"{OURS}, no images": lambda: fit(None, "none"),
    }


def pulled(context: Context) -> str:
    """Images do something: with them words have other vectors."""
    path = text(context.data, context.pick(1000, 5000))
    shown = bank(context.data, corpus(context))
    plain, grounded = (
        ImageSkipGram(workers=1, epochs=2, objective=objective, **SETTINGS).fit(path, shown)
        for objective in ("none", "nce")
    )
    if np.array_equal(plain.wv.vectors, grounded.wv.vectors):
        raise UnequalError("images change nothing")
    pairs = sum(losses["image_pairs"] for losses in grounded.losses_)
    return f"{pairs:,} occurrences of words were trained with images, and vectors differ from those without."


def explanation(context: Context, outcome: Outcome) -> None:
    """A word's gallery out of 1000 images, from the trained model to the written file."""
    path = corpus(context)
    shown = imagenet(context.data, thumbnails=True) if context.data else bank(None, path)
    made = ImageSkipGram(workers=1, epochs=1, **SETTINGS).fit(path, shown)
    words = [labels[0] for labels in shown.words if labels and labels[0] in made.wv.key_to_index][: context.pick(3, 30)]
    times, sizes = [], []
    for word in words:
        start = time.perf_counter()
        made.explain(word).to_html(scratch() / "gallery.html")
        times.append(time.perf_counter() - start)
        sizes.append((scratch() / "gallery.html").stat().st_size / 1e3)
    figure = Figure("explain and to_html, 1000 images", OURS, "", " s", sorted(times)[len(times) // 2])
    figure.low, figure.high, figure.target = min(times), max(times), at_most(1)
    figure.note = f"{len(words)} words; the page has {sorted(sizes)[len(sizes) // 2]:.0f} kB"
    outcome.figures = [figure]


JOB = (
    "D = 100, window 5, 5 negatives, sample .001, one thread, 5 epochs. With --data the first 60,000 lines "
    "of its corpus, 1.1 million tokens (full: all 6.9 million); otherwise 6,000 made-up lines of Zipf's law. "
)
WORKLOADS: tuple[Workload, ...] = (
    Race(
        "training",
        JOB + "Ours reads a file, which counts as well; gensim has lists of words in memory.",
        training,
        same_task,
        (
            Versus(GENSIM, at_least(10), "speed", headline=True),
            Versus(GENSIM, at_least(12), "speed", ours=f"{OURS}, negatives=batch"),
            Versus(GENSIM, at_least(3), "speed", ours=f"{OURS}, negatives=pair", note="equal work"),
            Versus(GENSIM, None, "speed", ours=f"{OURS}, no loss", note="gensim computes no loss either"),
        ),
        seconds=9,
    ),
    Study("passes", "As for training, but for one epoch, without the reading of the file.", passes, FULL | {"smoke"}),
    Race(
        "from a file to vectors",
        "As for training, on 2,000 lines (--data: 20,000, full: 60,000): vocabulary and training in one call.",
        whole,
        same_task,
        (Versus(GENSIM, None, "speed"), Versus(FLORET, None, "speed")),
        seconds=4,
    ),
    Race(
        "vocabulary",
        "The words of the file, counted; gensim with corpus_file.",
        counting,
        same_task,
        (Versus(GENSIM, None, "speed"),),
        seconds=2,
    ),
    *(
        [
            Race(
                "two threads",
                JOB + "A second core helps as far as it is free: as much as it helps SHA-256.",
                two_threads,
                same_bits,
                (
                    Versus(f"{OURS}, 1 thread", at_least(1.85), "speed",
                           ceiling=("SHA-256, 1 thread", "SHA-256, 2 threads")),
                    Versus("SHA-256, 1 thread", None, "speed", "", "SHA-256, 2 threads"),
                ),
                clock="wall",
                seconds=4,
            )
        ]
        if cores() > 1
        else []
    ),
    Race(
        "deterministic",
        JOB + "The same bits for any number of threads, and what they cost on one.",
        deterministic,
        same_bits,
        (Versus(OURS, at_most(2.2)),),
        seconds=4,
    ),
    Race(
        "images in the objective",
        JOB + "1000 images; whole fits, the placing of images included.",
        with_images,
        pulled,
        (
            Versus(f"{OURS}, images placed afterwards", at_most(1.05)),
            Versus(f"{OURS}, no images"),
        ),
        seconds=5,
    ),
    Study("explanation", "One page per word; with --data the thumbnails of 1000 classes are in it.", explanation),
)  # fmt: skip
