"""Text, pictures and word pairs that the benchmarks share: those of --data, or what comes with gensim or is made up."""

from __future__ import annotations

import atexit
import lzma
import shutil
import tempfile
import zipfile
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from harness import Context, MissingError

from imgskipgram import ImageBank

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKAGES = ("imgskipgram", "numpy", "gensim", "floret")
PAIRS = {"WS353": "ws353.txt", "SimLex": "SimLex999.txt", "MEN": "bruni_men.txt"}
QUICK_LINES = 60_000  # of the corpus, 1.1 million tokens
MADE_UP_LINES = 6_000  # without it, in a quick run


def folder(data: str | None) -> Path:
    """The embedding data of --data."""
    if data is None or not (place := Path(data) / "embedding").is_dir():
        raise MissingError("needs --data DIR with the folder embedding/")
    return place


@cache
def scratch() -> Path:
    """A folder that goes when the run ends."""
    place = Path(tempfile.mkdtemp(prefix="imgskipgram-bench-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


@cache
def text(data: str | None, lines: int | None = None) -> Path:
    """A file with a sentence per line: the corpus of --data or its first lines, or made-up text of Zipf's law."""
    path = scratch() / f"text-{data is not None}-{lines}.txt"
    if data is None:
        path.write_text(made_up(lines or 10 * QUICK_LINES), encoding="utf-8")
    else:
        with lzma.open(folder(data) / "corpus.txt.xz", "rt", encoding="utf-8") as source:
            path.write_text("".join(islice(source, lines)), encoding="utf-8")
    return path


def made_up(lines: int, words: int = 40_000) -> str:
    """Sentences of 5 to 30 words, the n-th word about as frequent as in English: for speed, not for meaning."""
    rng = np.random.default_rng(0)
    share = 1 / (np.arange(words) + 2.7)
    lengths = rng.integers(5, 31, lines)
    drawn = rng.choice(words, lengths.sum(), p=share / share.sum())
    names = [f"w{n:x}" for n in range(words)]
    pieces = np.split(drawn, np.cumsum(lengths)[:-1])
    return "".join(" ".join(names[n] for n in piece) + "\n" for piece in pieces)


def head(name: str) -> str:
    """The last word of a class's name: shark, of great_white_shark."""
    return name.lower().replace("-", "_").rpartition("_")[2]


@cache
def imagenet(data: str | None, thumbnails: bool = False) -> ImageBank:
    """A photograph of each of 1000 classes, labelled with the class's head."""
    place = folder(data)
    with np.load(place / "imagenet1000_mobilenetv2_gap1280_f16.npz") as arrays:
        features, ids, names = arrays["features"].astype(np.float32), arrays["wnid"], arrays["name"]
    pictures = None
    if thumbnails:
        with zipfile.ZipFile(place / "imagenet1000_thumbs96_webp.zip") as archive:
            pictures = [archive.read(f"{wnid}_{name}.webp") for wnid, name in zip(ids, names, strict=True)]
    return ImageBank.from_features(features, [head(str(name)) for name in names], ids.tolist(), pictures)


def made_up_bank(words: list[str], images: int = 1000, features: int = 1280) -> ImageBank:
    """Images of given words, whose features are a word's own direction and noise."""
    rng = np.random.default_rng(0)
    shown = [words[i % len(words)] for i in range(images)]
    middles = {word: np.maximum(rng.normal(size=features), 0) for word in words}
    rows: NDArray[np.float64] = np.stack([middles[word] for word in shown]) + rng.random((images, features))
    return ImageBank.from_features(rows, shown)


def pairs(data: str | None) -> dict[str, Path]:
    """Word pairs with people's scores; without --data those that gensim brings."""
    if data is None:
        from gensim.test.utils import datapath

        return {"WS353": Path(datapath("wordsim353.tsv")), "SimLex": Path(datapath("simlex999.txt"))}
    return {name: folder(data) / "wordsim" / file for name, file in PAIRS.items()}


def lines_of(context: Context) -> int:
    """How many lines of the text a race takes: all of them only in a full run."""
    return context.pick(2000, QUICK_LINES if context.data else MADE_UP_LINES, 10 * QUICK_LINES)
