"""The images of a bank for the words of a vocabulary: which are whose, and where they lie among the words."""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._options import Options
    from ._projection import Shared
    from ._vocabulary import Vocabulary
    from .bank import ImageBank

__all__ = ["Grounding"]

_LENGTH = 2.0  # of z in training


class Grounding:
    """Of word w the images `images[start[w]:start[w + 1]]`.

    Raises:
        ValueError: no label is in the vocabulary.
    """

    def __init__(self, bank: ImageBank, vocabulary: Vocabulary, options: Options) -> None:
        self.bank = bank
        self.start, self.images = bank.images_of(vocabulary.index)
        self.projection, self.columns = options.projection, options.vector_size
        self.weight = options.image_weight
        self.trained = options.objective != "none" and options.image_weight > 0

    def check(self, vocabulary: Vocabulary, negative: int) -> None:
        """Raises ValueError if there are too few images to draw so many from; warns of words that all images show."""
        if not self.trained:
            return
        count = len(self.bank)
        if count <= negative:
            raise ValueError(
                f"images must be more than image_negative={negative}, got {count}; lower it, or add images"
            )
        everywhere = np.flatnonzero(np.diff(self.start) == count)
        if everywhere.size:
            more = f" and {everywhere.size - 1} other words" if everywhere.size > 1 else ""
            warnings.warn(
                f"all images show {vocabulary.words[everywhere[0]]!r}{more}: none is left to tell it from, so its "
                "image term is skipped",
                stacklevel=4,
            )

    @cached_property
    def shared(self) -> Shared:
        """The projection, which is found once, from features and labels alone."""
        from ._projection import Shared

        return Shared(self.bank.features, self.start, self.images)

    def first(self) -> NDArray[np.float32]:
        """Where the images lie in training if words do not say it, `[M, D]`."""
        from ._projection import fixed

        return _LENGTH * fixed(self.bank.features, self.columns)

    def last(
        self, vectors: NDArray[np.float32], free: NDArray[Any] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The mean of the grounded words' unit vectors `[D]`, and the images' unit vectors `[M, D]`.

        Args:
            vectors: of all words `[V, D]`.
            free: the images' vectors if they were trained.
        """
        if self.projection == "shared" or not self.trained:
            return self.shared.fit(vectors)
        words = vectors[np.diff(self.start) > 0]
        words = _unit(words[words.any(1)])
        mu = words.mean(0, dtype=np.float64) if len(words) > 1 else np.zeros(self.columns)
        return mu.astype(np.float32), _unit(self.first() if free is None else free)


def _unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1), np.float32)
