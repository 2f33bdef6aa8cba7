"""What a model is made of, and how that changes: at once, so that whatever breaks it off leaves a whole model."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from ._engine import check_device
from ._grounding import Grounding
from ._options import Options
from ._rows import copied, edited, exported, fresh, infinite, zeros

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gensim.models import KeyedVectors
    from numpy.typing import NDArray

    from ._corpus import Tokens
    from ._training import Plan, Trainer
    from ._vocabulary import Vocabulary
    from .bank import ImageBank

__all__ = ["OPTIONS", "State", "begun", "check_images", "holding"]

OPTIONS = frozenset(Options.__dataclass_fields__)
_OF_ROWS = ("vector_size", "dtype")  # options that rows that are there have


class State:
    """The attributes of a model. Options are read and set under their own names."""

    _wv: KeyedVectors  # its vectors are None from the end of an epoch until they are asked for
    losses_: list[dict[str, float]]
    _options: Options
    _vocabulary: Vocabulary | None
    _tokens: Tokens | None  # of the last training
    _v: NDArray[Any]
    _u: NDArray[Any]
    _epochs: int  # that the model ever had
    _plan: Plan | None  # of a training that is not finished
    _notes: dict[str, Any]  # in JSON's types, what is stored beside it
    _bank: ImageBank | None
    _grounding: Grounding | None
    _free: NDArray[Any] | None  # images' vectors as parameters
    _mu: NDArray[np.float32] | None  # with _z None until they are asked for
    _z: NDArray[np.float32] | None

    @property
    def wv(self) -> KeyedVectors:
        """gensim's `KeyedVectors` with the input vectors v in float32, as of the last epoch."""
        if self._wv.vectors is None:
            self._wv.vectors = exported(self._v, self._options.vector_size)
        return self._wv

    @wv.setter
    def wv(self, wv: KeyedVectors) -> None:
        self._wv = wv

    def __getattr__(self, name: str) -> Any:
        if name in OPTIONS:
            return getattr(self._options, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in OPTIONS:
            return super().__setattr__(name, value)
        options = Options(**{**self._options.arguments(), name: value})
        if name in _OF_ROWS and self._vocabulary is not None and getattr(options, name) != getattr(self, name):
            raise ValueError(f"{name} must stay {getattr(self, name)!r} once there is a vocabulary, got {value!r}")
        check_device(options.device)
        return super().__setattr__("_options", options)

    def _run(
        self,
        before: dict[str, Any],
        tokens: Tokens | None,
        feed: Callable[[], Iterable[Tokens]],
        grounding: Grounding | None,
        plan: Plan,
        loss: str,
        progress: bool,
        make: Callable[..., Trainer] | None = None,
    ) -> tuple[int, int]:
        """Train by a plan, beginning with the state there is; `before` it was another, which comes back if this fails.

        Args:
            before: the attributes of the model before this call.
            tokens: the corpus, if it is kept.
            feed: what gives the corpus for an epoch.
            grounding: the images, if any.
            plan: of epochs and rates.
            loss: "exact", "sampled" or "none".
            progress: show a bar.
            make: what trains an epoch in place of a `Trainer`.
        """
        from ._training import prepare, run

        bank = None if grounding is None else grounding.bank
        goes_on = self._options.projection == "free" and _same(bank, self._bank)
        vars(self).update(
            _plan=plan,
            _tokens=tokens,
            _grounding=grounding,
            _bank=bank,
            _free=self._free if goes_on else None,
            _mu=None,
            _z=None,
        )
        try:
            trainer = prepare(self, grounding, loss, make)
        except BaseException:
            vars(self).update(before)
            raise
        try:
            counts = run(self, trainer, feed, plan, progress)
        except FloatingPointError:
            vars(self).update(before)
            raise
        self._placed()
        return counts

    def _known(self) -> Vocabulary:
        if self._vocabulary is None:
            raise RuntimeError("there is no vocabulary yet: call build_vocab or fit first")
        return self._vocabulary

    def _ground(self, images: ImageBank | None, vocabulary: Vocabulary) -> Grounding | None:
        if images is None:
            return None
        grounding = Grounding(images, vocabulary, self._options)
        grounding.check(vocabulary, self._options.image_negative)
        return grounding

    def _rows(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float32]]:
        """v and u with what users changed in `wv`, and the factors that freeze words."""
        words, columns, wv = self._known().words, self._options.vector_size, self._wv
        shape = (len(words), columns) if wv.vectors is None else np.shape(wv.vectors)
        if shape != (len(words), columns) or wv.index_to_key != words:
            raise ValueError(
                f"wv must keep the {len(words)} words of the vocabulary and {columns} columns, got vectors of shape "
                f"{shape}"
            )
        lockf = np.ascontiguousarray(getattr(wv, "vectors_lockf", np.ones(1)), np.float32)
        if lockf.shape not in ((1,), (len(words),)) or not np.isfinite(lockf).all():
            raise ValueError(
                f"wv.vectors_lockf must be finite and have length 1 or {len(words)}, got shape {lockf.shape}"
            )
        if wv.vectors is not None:
            vectors = np.asarray(wv.vectors)
            if (row := infinite(vectors)) is not None:
                raise ValueError(f"wv.vectors must be finite, got NaN or infinity for {words[row]!r}")
            self._v = edited(self._v, vectors, self._options.dtype)
        return self._v, self._u, lockf

    def _advance(
        self, v: NDArray[Any], u: NDArray[Any], free: NDArray[Any] | None, plan: Plan | None, losses: dict[str, float]
    ) -> None:
        """An epoch is finished: all of what it changed at once, as signals come between two statements."""
        wv = copy.copy(self._wv)
        wv.expandos = dict(wv.expandos)
        wv.vectors = wv.norms = None
        vars(self).update(
            _v=v,
            _u=u,
            _wv=wv,
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
            vectors = exported(self._v, self._options.vector_size, copy=False)
            grounding = self._grounding or Grounding(self._bank, self._known(), self._options)
            mu, z = grounding.last(vectors, self._free)
            vars(self).update(_mu=mu, _z=z)
            return mu, z
        return self._mu, self._z

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
            "grounded": _shown(bank, vocabulary),
        }

    def _grown(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """What a larger vocabulary changes: new words get rows, the others keep theirs."""
        options = self._options
        v, u, lockf = self._rows()
        old, columns, dtype = len(v), options.vector_size, options.dtype
        rows = fresh(old, len(vocabulary), columns, dtype, options.seed)
        v = copied(np.concatenate([v, rows]), columns, dtype)
        u = copied(np.concatenate([u, np.zeros_like(rows)]), columns, dtype)
        wv = _keyed(vocabulary, columns)
        wv.vectors_lockf = lockf if len(lockf) == 1 < old else np.concatenate([lockf, np.ones(len(rows), np.float32)])
        return {"_vocabulary": vocabulary, "_v": v, "_u": u, "_wv": wv, "_grounding": None, "_plan": None, "_z": None}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_tokens": None, "_grounding": None}


def begun(options: Options, vocabulary: Vocabulary | None) -> dict[str, Any]:
    """The state of a model before its first epoch."""
    count, columns, dtype = 0 if vocabulary is None else len(vocabulary), options.vector_size, options.dtype
    return holding(options, vocabulary, fresh(0, count, columns, dtype, options.seed), zeros(count, columns, dtype))


def holding(options: Options, vocabulary: Vocabulary | None, v: NDArray[Any], u: NDArray[Any]) -> dict[str, Any]:
    """The state of a model that has these vectors, and that has been trained on nothing."""
    return {
        "_options": options,
        "_vocabulary": vocabulary,
        "_tokens": None,
        "_v": v,
        "_u": u,
        "_wv": _keyed(vocabulary, options.vector_size),
        "losses_": [],
        "_epochs": 0,
        "_plan": None,
        "_notes": {},
        "_bank": None,
        "_grounding": None,
        "_free": None,
        "_mu": None,
        "_z": None,
    }


def _keyed(vocabulary: Vocabulary | None, columns: int) -> KeyedVectors:
    from gensim.models import KeyedVectors

    wv = KeyedVectors(columns)
    if vocabulary is not None:
        wv.index_to_key = list(vocabulary.words)
        wv.key_to_index = dict(vocabulary.index)
        wv.expandos["count"] = vocabulary.counts.astype(np.int64)
        wv.next_index = len(vocabulary)
    wv.vectors = None
    wv.vectors_lockf = np.ones(max(1, len(wv.index_to_key)), np.float32)  # intersect_word2vec_format sets them
    return wv


def _shown(bank: ImageBank, vocabulary: Vocabulary) -> dict[str, list[int]]:
    """Of each word that the bank's labels name now, if any, its images."""
    shown: dict[str, list[int]] = {}
    for image, labels in enumerate(bank.words):
        for word in labels:
            if word in vocabulary.index:
                shown.setdefault(word, []).append(image)
    return shown


def _same(bank: ImageBank | None, other: ImageBank | None) -> bool:
    """Whether two banks have the same images."""
    if bank is None or other is None or bank is other:
        return bank is other
    return bank.ids == other.ids and np.array_equal(bank.features, other.features)


def check_images(images: object) -> None:
    """Raises TypeError for what is neither a bank nor None."""
    from .bank import ImageBank

    if images is not None and not isinstance(images, ImageBank):
        raise TypeError(f"images must be an ImageBank or None, got {type(images).__name__}")
