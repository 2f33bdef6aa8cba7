"""The model: word vectors trained on a corpus, with or without images, and what explains them."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ._engine import check_device
from ._grounding import Grounding
from ._options import LOSSES, Options, check_choice, check_integer, check_rates
from ._rows import copied, edited, exported, fresh, zeros

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence
    from typing import Literal

    from gensim.models import KeyedVectors
    from numpy.typing import ArrayLike, NDArray

    from ._corpus import Corpus, Tokens
    from ._training import Plan
    from ._vocabulary import TrimRule, Vocabulary
    from .bank import ImageBank
    from .explanation import Explanation

__all__ = ["ImageSkipGram"]

_OPTIONS = frozenset(Options.__dataclass_fields__)
_OF_ROWS = ("vector_size", "dtype")  # options that rows that are there have


class ImageSkipGram:
    """Word vectors, and the images that explain them.

    Example:
        >>> from imgskipgram import ImageSkipGram
        >>> model = ImageSkipGram(vector_size=16, min_count=1, workers=1).fit(["the dog barks", "the cat purrs"])
        >>> model
        ImageSkipGram(5 words, 16 dimensions, 5 epochs)
        >>> model.wv["dog"].shape
        (16,)
    """

    wv: KeyedVectors
    losses_: list[dict[str, float]]
    _options: Options
    _vocabulary: Vocabulary | None
    _tokens: Tokens | None  # of the last training
    _v: NDArray[Any]
    _u: NDArray[Any]
    _epochs: int  # that the model ever had
    _plan: Plan | None  # of a training that is not finished
    _bank: ImageBank | None
    _grounding: Grounding | None
    _free: NDArray[Any] | None  # images' vectors as parameters
    _mu: NDArray[np.float32] | None  # with _z None until they are asked for
    _z: NDArray[np.float32] | None

    def __init__(
        self,
        vector_size: int = 100,
        window: int = 5,
        min_count: int = 5,
        negative: int = 5,
        sample: float = 1e-3,
        alpha: float = 0.025,
        min_alpha: float = 1e-4,
        epochs: int = 5,
        workers: int | None = None,
        seed: int = 1,
        ns_exponent: float = 0.75,
        objective: Literal["nce", "margin", "infonce", "none"] = "nce",
        image_weight: float = 1.0,
        image_negative: int = 5,
        projection: Literal["shared", "fixed", "free"] = "shared",
        negatives: Literal["center", "batch", "pair"] = "center",
        deterministic: bool = False,
        dtype: Literal["float32", "float64", "bfloat16"] = "float32",
        device: Literal["cpu", "cuda"] = "cpu",
        callbacks: Sequence[Any] = (),
        *,
        shrink_windows: bool = True,
        max_vocab_size: int | None = None,
        max_final_vocab: int | None = None,
        trim_rule: TrimRule | None = None,
        sorted_vocab: bool = True,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in _OPTIONS}
        options = Options(**given)
        check_device(options.device)
        self._clear(options)

    def _clear(self, options: Options) -> None:
        vars(self).update(_options=options, **_begun(options, None))

    def __getattr__(self, name: str) -> Any:
        if name in _OPTIONS:
            return getattr(self._options, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _OPTIONS:
            return super().__setattr__(name, value)
        options = Options(**{**self._options.arguments(), name: value})
        if name in _OF_ROWS and self._vocabulary is not None and getattr(options, name) != getattr(self, name):
            raise ValueError(f"{name} must stay {getattr(self, name)!r} once there is a vocabulary, got {value!r}")
        check_device(options.device)
        return super().__setattr__("_options", options)

    def build_vocab(self, corpus: Corpus, *, update: bool = False, text_column: str = "text") -> None:
        """Count the words of a corpus and give each its first vector; with `update` only to those that are new."""
        from ._corpus import read

        if update:
            self._known()
        vocabulary, _ = read(
            corpus, self._options.trim, known=self._vocabulary if update else None, text_column=text_column
        )
        if update:
            vars(self).update(self._grown(vocabulary))
        else:
            vars(self).update(_begun(self._options, vocabulary))

    def train(
        self,
        corpus: Corpus,
        images: ImageBank | None = None,
        *,
        epochs: int | None = None,
        start_alpha: float | None = None,
        end_alpha: float | None = None,
        compute_loss: Literal["exact", "sampled", "none"] = "exact",
        text_column: str = "text",
        progress: bool = False,
    ) -> tuple[int, int]:
        """Train on, or go on with a training that was broken off; count the words trained and those read."""
        from ._corpus import encode
        from ._training import Plan

        vocabulary = self._known()
        options = self._options
        check_choice("compute_loss", compute_loss, LOSSES)
        if epochs is not None:
            epochs = check_integer("epochs", epochs, 1, 2**16)
        start = options.alpha if start_alpha is None else start_alpha
        end = options.min_alpha if end_alpha is None else end_alpha
        check_rates("start_alpha", start, "end_alpha", end)
        grounding = self._ground(self._bank if images is None else images, vocabulary)
        self._rows()
        tokens = encode(corpus, vocabulary, text_column=text_column)
        count = len(tokens.ids)
        if not count:
            raise ValueError(f"the corpus must have words of the vocabulary, got {tokens.raw} tokens without any")
        plan = self._plan
        if plan is None or not (epochs is start_alpha is end_alpha is None):
            plan = Plan(options.epochs if epochs is None else epochs, count, start, end)
        elif plan.tokens != count:
            raise ValueError(
                f"corpus must be that of the training which was broken off, with {plan.tokens} tokens, got {count}; to "
                "start another one give epochs"
            )
        return self._run(dict(vars(self)), tokens, lambda: (tokens,), grounding, plan, compute_loss, progress)

    def fit(
        self,
        corpus: Corpus,
        images: ImageBank | None = None,
        *,
        text_column: str = "text",
        cache_dir: str | os.PathLike[str] | Literal[False] | None = None,
        progress: bool = False,
    ) -> ImageSkipGram:
        """Start anew: find the vocabulary of a corpus, which is read once, and train."""
        from ._corpus import read, stream
        from ._training import Plan

        options = self._options
        vocabulary, tokens = read(corpus, options.trim, text_column=text_column, cache_dir=cache_dir)
        grounding = self._ground(images, vocabulary)
        before = dict(vars(self))
        feed: Callable[[], Iterable[Tokens]]
        if tokens is None:
            count = vocabulary.total
            feed = partial(stream, corpus, vocabulary, text_column=text_column)
        else:
            count = len(tokens.ids)
            feed = lambda: (tokens,)  # noqa: E731
        plan = Plan(options.epochs, count, options.alpha, options.min_alpha)
        vars(self).update(_begun(options, vocabulary))
        self._run(before, tokens, feed, grounding, plan, "exact", progress)
        return self

    def _run(
        self,
        before: dict[str, Any],
        tokens: Tokens | None,
        feed: Callable[[], Iterable[Tokens]],
        grounding: Grounding | None,
        plan: Plan,
        loss: str,
        progress: bool,
    ) -> tuple[int, int]:
        from ._training import run

        kept = grounding is not None and self._bank is not None and _same(grounding.bank, self._bank)
        vars(self).update(
            _plan=plan,
            _tokens=tokens,
            _grounding=grounding,
            _bank=None if grounding is None else grounding.bank,
            _free=self._free if kept and self._options.projection == "free" else None,
            _mu=None,
            _z=None,
        )
        try:
            counted = run(self, feed, grounding, plan, loss, progress)
        except FloatingPointError:
            vars(self).update(before)
            raise
        self._placed()
        return counted

    def _known(self) -> Vocabulary:
        if self._vocabulary is None:
            raise RuntimeError("there is no vocabulary yet: call build_vocab or fit first")
        return self._vocabulary

    def _ground(self, images: ImageBank | None, vocabulary: Vocabulary) -> Grounding | None:
        return None if images is None else Grounding(images, vocabulary, self._options)

    def _rows(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float32]]:
        """v and u with what users changed in `wv`, and the factors that freeze words."""
        words, columns = self._known().words, self._options.vector_size
        vectors = np.asarray(self.wv.vectors)
        if vectors.shape != (len(words), columns) or self.wv.index_to_key != words:
            raise ValueError(
                f"wv must keep the {len(words)} words of the vocabulary and {columns} columns, got vectors of shape "
                f"{vectors.shape}"
            )
        if not np.isfinite(vectors).all():
            row = int(np.isfinite(vectors).all(1).argmin())
            raise ValueError(f"wv.vectors must be finite, got NaN or infinity for {words[row]!r}")
        lockf = np.ascontiguousarray(self.wv.vectors_lockf, np.float32)
        if lockf.shape not in ((1,), (len(words),)) or not np.isfinite(lockf).all():
            raise ValueError(
                f"wv.vectors_lockf must be finite and have length 1 or {len(words)}, got shape {lockf.shape}"
            )
        self._v = edited(self._v, vectors, self._options.dtype)
        return self._v, self._u, lockf

    def _advance(
        self, v: NDArray[Any], u: NDArray[Any], free: NDArray[Any] | None, plan: Plan | None, losses: dict[str, float]
    ) -> None:
        """An epoch is finished: all of what it changed at once, as signals come between two statements."""
        wv = copy.copy(self.wv)
        wv.expandos = dict(wv.expandos)
        wv.vectors = exported(v, self._options.vector_size)
        wv.norms = None
        vars(self).update(
            _v=v,
            _u=u,
            wv=wv,
            losses_=[*self.losses_, losses],
            _epochs=self._epochs + 1,
            _plan=plan,
            _free=free,
            _mu=None,
            _z=None,
        )

    def _placed(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """The mean of the grounded words and the images' vectors, found anew after vectors have changed."""
        if self._bank is None:
            return None
        if self._mu is None or self._z is None:
            vectors = exported(self._v, self._options.vector_size)
            mu, z = self._grounded(self._bank).last(vectors, self._free)
            vars(self).update(_mu=mu, _z=z)
            return mu, z
        return self._mu, self._z

    def _grounded(self, bank: ImageBank) -> Grounding:
        if self._grounding is None:
            options = Options(**{**self._options.arguments(), "objective": "none"})
            self._grounding = Grounding(bank, self._known(), options)
        return self._grounding

    def _explanation_parts(self) -> dict[str, Any]:
        bank, placed, vocabulary = self._bank, self._placed(), self._known()
        if bank is None or placed is None:
            raise RuntimeError("there are no images to explain with: give a bank to fit or train")
        return {
            "vectors": self.wv.vectors,
            "words": vocabulary.words,
            "mu": placed[0],
            "z": placed[1],
            "ids": bank.ids,
            "thumbnails": bank.thumbnails,
            "grounded": self._grounded(bank).words(vocabulary),
        }

    def explain(
        self, word_or_vector: str | ArrayLike, topn: int = 9, *, csls: bool = True, diversity: float = 0.0
    ) -> Explanation:
        from .explanation import explain, lookup

        parts = self._explanation_parts()
        vector, title = lookup(word_or_vector, self.wv.key_to_index, self.wv.vectors)
        return explain(vector, **parts, csls=csls, topn=topn, diversity=diversity, title=title)

    @property
    def syn1neg(self) -> NDArray[Any]:
        vectors: NDArray[Any] = self._u[:, : self._options.vector_size]
        return vectors

    @property
    def image_vectors(self) -> NDArray[np.float32] | None:
        placed = self._placed()
        return None if placed is None else placed[1]

    @property
    def bank(self) -> ImageBank | None:
        return self._bank

    @property
    def corpus_count(self) -> int:
        return 0 if self._vocabulary is None else self._vocabulary.sentences

    @property
    def corpus_total_words(self) -> int:
        return 0 if self._vocabulary is None else self._vocabulary.raw

    def _grown(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """What a larger vocabulary changes: new words get rows, the others keep theirs."""
        options = self._options
        v, u, lockf = self._rows()
        old, columns, dtype = len(v), options.vector_size, options.dtype
        rows = fresh(old, len(vocabulary), columns, dtype, options.seed)
        v = copied(np.concatenate([v, rows]), columns, dtype)
        u = copied(np.concatenate([u, np.zeros_like(rows)]), columns, dtype)
        wv = _keyed(vocabulary, exported(v, columns))
        wv.vectors_lockf = lockf if len(lockf) == 1 else np.concatenate([lockf, np.ones(len(rows), np.float32)])
        return {"_vocabulary": vocabulary, "_v": v, "_u": u, "wv": wv, "_grounding": None, "_plan": None, "_z": None}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_tokens": None, "_grounding": None}

    def __repr__(self) -> str:
        words = "no vocabulary" if self._vocabulary is None else f"{len(self._vocabulary):,} words"
        images = "" if self._bank is None else f", {len(self._bank):,} images"
        return f"ImageSkipGram({words}, {self._options.vector_size} dimensions, {self._epochs} epochs{images})"


def _begun(options: Options, vocabulary: Vocabulary | None) -> dict[str, Any]:
    """The state of a model before its first epoch."""
    count, columns, dtype = 0 if vocabulary is None else len(vocabulary), options.vector_size, options.dtype
    v = fresh(0, count, columns, dtype, options.seed)
    return {
        "_vocabulary": vocabulary,
        "_tokens": None,
        "_v": v,
        "_u": zeros(count, columns, dtype),
        "wv": _keyed(vocabulary, exported(v, columns)),
        "losses_": [],
        "_epochs": 0,
        "_plan": None,
        "_bank": None,
        "_grounding": None,
        "_free": None,
        "_mu": None,
        "_z": None,
    }


def _keyed(vocabulary: Vocabulary | None, vectors: NDArray[np.float32]) -> KeyedVectors:
    from gensim.models import KeyedVectors

    wv = KeyedVectors(vectors.shape[1])
    if vocabulary is not None:
        wv.index_to_key = list(vocabulary.words)
        wv.key_to_index = dict(vocabulary.index)
        wv.expandos["count"] = vocabulary.counts.astype(np.int64)
        wv.next_index = len(vocabulary)
    wv.vectors = vectors
    wv.vectors_lockf = np.ones(1, np.float32)
    return wv


def _same(bank: ImageBank, other: ImageBank) -> bool:
    return bank is other or (bank.ids == other.ids and np.array_equal(bank.features, other.features))
