"""Models of pkuseg: reading, writing, decoding and training them. The drop-in interface is in `compat.pkuseg`."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from ._core import PkusegDictionary, PkusegModel, PkusegTagger, PkusegTrainer, pkuseg_load

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

StrPath = str | os.PathLike[str]

FEATURES = ("features.msgpack", "features.pkl", "features.json")
WEIGHTS = "weights.npz"


class Files:
    """A model as its files hold it: the vocabulary as bytes of a format, and the weights."""

    def __init__(self, features: bytes, form: str, weights: NDArray[np.float64], n_features: int, n_tags: int) -> None:
        self.features, self.form, self.weights = features, form, weights
        self.n_features, self.n_tags = n_features, n_tags

    @property
    def arguments(self) -> tuple[bytes, str, NDArray[np.float64], int, int]:
        return self.features, self.form, self.weights, self.n_features, self.n_tags

    @classmethod
    def read(cls, directory: StrPath) -> Files:
        """Reads `weights.npz` and the first there is of `features.msgpack`, `features.pkl`, `features.json`.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is truncated, holds anything but plain values, or two sizes disagree. Nothing of a
                pickle is executed.
        """
        directory = Path(directory)
        paths = [directory / name for name in FEATURES]
        path = next((path for path in paths if path.is_file()), None)
        if path is None or not (directory / WEIGHTS).is_file():
            raise FileNotFoundError(
                f"{directory} is no model of pkuseg: it must hold {WEIGHTS} and one of {', '.join(FEATURES)}"
            )
        features = path.read_bytes()
        form = "msgpack" if path.suffix == ".msgpack" else "pickle"
        if path.suffix == ".json":
            try:
                features = pickle.dumps(json.loads(features), 4)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}: {error}") from None
        weights, n_features, n_tags = read_weights(directory / WEIGHTS, len(features))
        return cls(features, form, weights, n_features, n_tags)

    def write(self, directory: StrPath) -> None:
        """Writes files that pkuseg and spacy-pkuseg load; each appears whole or not at all."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        weights = io.BytesIO()
        np.savez(weights, sizes=np.array([self.n_tags, self.n_features]), w=self.weights)
        name = "features.msgpack" if self.form == "msgpack" else "features.pkl"
        for target, data in ((directory / name, self.features), (directory / WEIGHTS, weights.getvalue())):
            aside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
            try:
                aside.write_bytes(data)
                aside.replace(target)
            finally:
                aside.unlink(missing_ok=True)
        for other in FEATURES:  # an older vocabulary must not be read with the new weights
            if other != name:
                (directory / other).unlink(missing_ok=True)


def read_weights(path: Path, vocabulary_bytes: int) -> tuple[NDArray[np.float64], int, int]:
    """The weights, and the numbers of features and tags, of a `weights.npz`."""
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                sizes = _array(archive, "sizes", 16)
                if sizes.shape != (2,) or sizes.dtype.kind not in "iu":
                    raise ValueError(f"sizes must be 2 integers, got {sizes.dtype} of shape {sizes.shape}")
                n_tags, n_features = map(int, sizes)
                if not (0 < n_tags < 4096 and 0 < n_features <= vocabulary_bytes):
                    raise ValueError(f"sizes must be the numbers of tags and features, got {n_tags} and {n_features}")
                length = n_tags * (n_features + n_tags)
                w = _array(archive, "w", 8 * length)
                if w.shape != (length,) or w.dtype.kind != "f":
                    raise ValueError(f"w must be {length} floats, as sizes says, got {w.dtype} of shape {w.shape}")
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None
    return np.ascontiguousarray(w, np.float64), n_features, n_tags


def _array(archive: zipfile.ZipFile, name: str, most: int) -> NDArray[Any]:
    """An array of an npz, of at most so many bytes."""
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise ValueError(f"{name} is missing") from None
    with archive.open(info) as stream:
        reader = npy.read_array_header_1_0 if npy.read_magic(stream)[0] == 1 else npy.read_array_header_2_0
        shape, _, dtype = reader(stream)
        n_bytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects, which are not read")
        if n_bytes > most or stream.tell() + n_bytes != info.file_size:
            raise ValueError(f"{name} has {info.file_size} bytes, which disagrees with its shape {shape} or with sizes")
        return np.frombuffer(stream.read(n_bytes), dtype).reshape(shape)


class Model:
    """A segmentation model of pkuseg, decoded with the reference's sums and ties."""

    def __init__(self, files: Files, where: StrPath | None = None, objective: Sequence[float] = ()) -> None:
        self._where = where
        self._files = None if where else files
        self.objective = list(objective)
        self.n_features, self.n_tags = files.n_features, files.n_tags
        try:
            self.core = PkusegModel(*files.arguments)
        except ValueError as error:
            raise ValueError(f"{where or 'model'}: {error}") from None

    @classmethod
    def load(cls, directory: StrPath) -> Model:
        """A model from its directory; see `Files.read`."""
        return cls(Files.read(directory), directory)

    @property
    def files(self) -> Files:
        return self._files or Files.read(self._where or "")

    @property
    def weights(self) -> NDArray[np.float64]:
        """The weights as `weights.npz` holds them: `[feature, tag]` flat, then `[tag, tag before]`."""
        return self.files.weights

    def cut(self, text: str, dictionary: PkusegDictionary | None = None, fixes: bool = False) -> list[str]:
        """The words of a text, without its whitespace."""
        return self.core.cut(text, dictionary, fixes)

    def save(self, directory: StrPath) -> None:
        """Writes a directory that pkuseg and spacy-pkuseg load."""
        self.files.write(directory)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._where:
            return Model.load, (self._where,)
        return _remade, (self.objective, *self.files.arguments)


def _remade(objective: list[float], *arguments: Any) -> Model:
    return Model(Files(*arguments), objective=objective)


class Tagger:
    """A part-of-speech model of pkuseg (`features.pkl` and `weights.npz`)."""

    def __init__(self, directory: StrPath) -> None:
        self._where = directory
        try:
            self._core = PkusegTagger(*Files.read(directory).arguments)
        except ValueError as error:
            raise ValueError(f"{directory}: {error}") from None

    def tag(self, words: list[str]) -> list[str]:
        return self._core.tag(words)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tagger, (self._where,)


def read_words(path: StrPath) -> list[str]:
    """The words of a dictionary of pkuseg: a pickled str of lines."""
    try:
        words = pkuseg_load(Path(path).read_bytes(), "pickle")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if isinstance(words, str):
        return words.strip().split("\n")
    if isinstance(words, list | set | dict) and all(isinstance(word, str) for word in words):
        return list(words)
    raise ValueError(f"{path}: a dictionary must be a str of lines or a list, set or dict of str")


def read_text(path: StrPath) -> str:
    """The text of a file, with every line ended by a line feed."""
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def corpus_text(sentences: Iterable[Iterable[str]]) -> str:
    """Sentences of words as a text for `Trainer`: a sentence per line, spaces between words."""
    lines = []
    for k, sentence in enumerate(sentences):
        words = [word for word in sentence if word]
        line = " ".join(words)
        if line.split() != words:
            raise ValueError(f"corpus: words must not have whitespace in them, got {words!r:.200} in sentence {k}")
        lines.append(line)
    return "\n".join(lines)


class Trainer:
    """Trains a model of pkuseg on a text of sentences per line and spaces between words.

    Args:
        text: the corpus.
        rate: the first rate of every weight (`.05`).
        updates: of the rates and of the decay, per epoch (`10`).
        upper, lower: factors of an update for a feature that no sentence, or every sentence, had (`.995`, `.6`).
        l2: standard deviation of the prior (`1`).
        seed: of the shuffles, which are those of `random.seed(seed)` followed by the reference.
        init: a model to go on from: its features and weights are kept, new features are added.
        reference: float64 in the reference's order: weights and objective equal its to the last bits of `exp`.
            Else float32, ten times as fast.

    Defaults are the reference's. Raises ValueError for a corpus without words.
    """

    def __init__(
        self,
        text: str,
        *,
        rate: float = 0.05,
        updates: int = 10,
        upper: float = 0.995,
        lower: float = 0.6,
        l2: float = 1.0,
        seed: int = 0,
        init: Model | None = None,
        reference: bool = True,
    ) -> None:
        if not text or text.isspace():
            raise ValueError("corpus must have at least one word, got none")
        for name, value, good in (
            ("rate", rate, 0 < rate < float("inf")),
            ("updates", updates, updates >= 1),
            ("upper", upper, 0 < upper <= 1),
            ("lower", lower, 0 < lower <= upper),
            ("l2", l2, l2 > 0),
        ):
            if not good:
                rule = {"updates": "at least 1", "upper": "in (0, 1]", "lower": "in (0, upper]"}.get(name, "positive")
                raise ValueError(f"{name} must be {rule}, got {value}")
        self._options = (updates, upper, lower, l2)
        self._chance = random.Random(seed)
        self.objective: list[float] = []
        if init is None:
            self._core = PkusegTrainer(text, rate, reference)
        else:
            old = init.files
            self._core = PkusegTrainer(text, rate, reference, old.features, old.form, old.weights, old.n_features)

    @property
    def n_sentences(self) -> int:
        return self._core.sentences

    @property
    def n_characters(self) -> int:
        return self._core.characters

    @property
    def n_features(self) -> int:
        return self._core.features

    def epoch(self, order: Sequence[int] | None = None) -> float:
        """One pass over the sentences; returns the objective, log loss plus half the squared weights.

        Args:
            order: of the sentences; default: the next shuffle of the seed.
        """
        n = self.n_sentences
        if order is None:
            shuffled = list(range(n))
            self._chance.shuffle(shuffled)
            order = shuffled
        indices = np.ascontiguousarray(order, np.int64)
        if not np.array_equal(np.sort(indices), np.arange(n)):
            raise ValueError(f"order must have each of 0 to {n - 1} once")
        self.objective.append(self._core.epoch(indices, *self._options))
        return self.objective[-1]

    def model(self) -> Model:
        """The model as it is now."""
        files = Files(self._core.pack(), "msgpack", self._core.weights(), self.n_features, 5)
        return Model(files, objective=self.objective)


def train(text: str, *, epochs: int = 20, orders: Iterable[Sequence[int]] | None = None, **options: Any) -> Model:
    """A model after some epochs; `orders` imposes the order of the sentences in each. Other options: `Trainer`."""
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    trainer = Trainer(text, **options)
    given = None if orders is None else iter(orders)
    for _ in range(epochs):
        trainer.epoch(None if given is None else next(given))
    return trainer.model()
