"""What a vector means, in pictures: the nearest ones, and the way to them through words that have pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from ._checks import check_integer, check_number

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray
    from PIL.Image import Image

__all__ = ["Explanation", "explain", "hubness", "lookup"]

_FREQUENT, _NEAREST = 5000, 10  # words that an image's hubness is measured by, and how many of them count
_STEPS = 5  # words of the path
_IMAGES_AT_ONCE = 1024
_SPELLINGS = 50_000  # the most frequent words are searched for close spellings


@dataclass(frozen=True)
class Explanation:
    """Pictures nearest to a vector, and the nearest words that have pictures.

    Attributes:
        title: the word, or what stands for it.
        images: (index in the bank, id, score), in the order in which they were chosen, best first. They depend
            on vectors and features, never on labels.
        path: (grounded word, cosine of its vector, index of that of its images which is nearest to the vector), by
            falling cosine: how an abstract word comes to pictures.
        ids: of each image that is shown, by its index, its id.
        thumbnails: the encoded pictures that there are of them.
        candidates: images that were compared.
        csls: whether images that are near to everything were set back.
        diversity: how much it counted that pictures differ from each other, 0 to 1.
    """

    title: str
    images: list[tuple[int, str, float]]
    path: list[tuple[str, float, int]]
    ids: Mapping[int, str] = field(repr=False)
    thumbnails: Mapping[int, bytes] = field(repr=False)
    candidates: int
    csls: bool
    diversity: float

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write a gallery as one file, which loads nothing from elsewhere; if that fails, the old file survives.

        Raises:
            OSError: it cannot be written.
        """
        from ._gallery import page
        from ._replacing import replacing

        text = page(self)
        with replacing(path) as file:
            file.write(text.encode(errors="replace"))  # names of files may hold what no text does

    def contact_sheet(self) -> Image:
        """The pictures in a square of rows, best first, each above its id and score.

        Raises:
            ImportError: Pillow is missing: `pip install 'imgskipgram[images]'`.
        """
        from ._sheet import sheet

        return sheet(self)

    def _repr_html_(self) -> str:
        from ._gallery import framed

        return framed(self)


def explain(
    query_vector: ArrayLike,
    *,
    vectors: NDArray[np.float32],
    words: Sequence[str],
    mu: NDArray[np.float32],
    z: NDArray[np.float32],
    ids: Sequence[str],
    thumbnails: Sequence[bytes | None],
    grounded: Mapping[str, Sequence[int]],
    csls: bool = True,
    topn: int = 9,
    diversity: float = 0.0,
    title: str = "a vector",
) -> Explanation:
    """Pictures of a vector, by a score that no label enters.

        score_i = 2 cos(v^ - mu, z_i) - r_i,   v^ = v / |v|,

    r_i = mean cosine of image i to its 10 nearest among the 5,000 most frequent words (CSLS: images near to everything
    are set back); without `csls` the score is the cosine. With `diversity` d pictures are chosen one by one, each time
    the greatest (1 - d) score_i - d max cos(z_i, z_j) over the chosen j (MMR).

    Args:
        query_vector: v, `[D]`.
        vectors: of the vocabulary's words `[V, D]`, by falling frequency.
        words: `[V]`, in the order of `vectors`.
        mu: mean of the unit vectors of grounded words, `[D]`.
        z: of each image its vector in the words' space, `[M, D]`.
        ids: of each image its name.
        thumbnails: of each image an encoded picture or None.
        grounded: of each word that has images their indices; only `.path` depends on it.
        csls: set back images that are near to many words.
        topn: pictures to find; more than there are gives all.
        diversity: 0 to 1.
        title: of the gallery.

    Raises:
        ValueError: the vector has a wrong length, is zero, not finite or the mean itself; `topn` is less than 1,
            `diversity` outside 0 to 1.
        TypeError: `topn` is no integer, `diversity` no number, the vector no numbers.

    Example:
        >>> import numpy as np
        >>> from imgskipgram.explanation import explain
        >>> axes = np.eye(3, dtype=np.float32)
        >>> found = explain(axes[0], vectors=axes, words=["dog", "cat", "sun"], mu=np.zeros(3, np.float32), z=axes,
        ...                 ids=["a", "b", "c"], thumbnails=[None] * 3, grounded={"cat": [1]}, csls=False, topn=2)
        >>> found.images
        [(0, 'a', 1.0), (1, 'b', 0.0)]
        >>> found.path
        [('cat', 0.0, 1)]

    Reference:
        Conneau et al., "Word Translation Without Parallel Data", ICLR 2018 (CSLS); Carbonell and Goldstein, "The Use of
        MMR", SIGIR 1998.
    """
    topn, diversity = _checked(topn, diversity)
    unit = _query(query_vector, len(mu))
    centred = unit - mu
    length = float(np.linalg.norm(centred))
    if not length > np.finfo(np.float32).eps:
        raise ValueError("query_vector must differ from the mean of the grounded words, got that mean")
    rows = _unit(z)
    cosines = rows @ (centred / length)
    scores = 2 * cosines - hubness(vectors, mu, rows) if csls else cosines
    chosen = _diverse(scores, rows, topn, diversity) if diversity else np.argsort(-scores, kind="stable")[:topn]
    images = [(int(i), ids[i], float(scores[i])) for i in chosen]
    path = _path(unit, vectors, words, cosines, grounded)
    shown = list(dict.fromkeys([*(i for i, _, _ in images), *(i for _, _, i in path)]))
    pictures = {i: data for i in shown if (data := thumbnails[i]) is not None}
    return Explanation(title, images, path, {i: ids[i] for i in shown}, pictures, len(rows), bool(csls), diversity)


def hubness(vectors: NDArray[np.float32], mu: NDArray[np.float32], z: NDArray[np.float32]) -> NDArray[np.float32]:
    """r_i: mean cosine of image i to its 10 nearest words, centred, among the 5,000 most frequent.

    Args:
        vectors: `[V, D]`, by falling frequency; rows of zeros are left out.
        mu: mean of the unit vectors of grounded words, `[D]`.
        z: `[M, D]`.

    Example:
        >>> import numpy as np
        >>> from imgskipgram.explanation import hubness
        >>> axes = np.eye(2, dtype=np.float32)
        >>> hubness(axes, np.zeros(2, np.float32), axes)
        array([0.5, 0.5], dtype=float32)
    """
    frequent = vectors[:_FREQUENT]
    frequent = _unit(_unit(frequent[frequent.any(1)]) - mu)
    count = min(_NEAREST, len(frequent))
    means = np.zeros(len(z), np.float32)
    if not count:
        return means
    for start in range(0, len(z), _IMAGES_AT_ONCE):
        cosines = _unit(z[start : start + _IMAGES_AT_ONCE]) @ frequent.T
        nearest = np.partition(cosines, len(frequent) - count, axis=1)[:, -count:]
        means[start : start + _IMAGES_AT_ONCE] = nearest.mean(1)
    return means


def lookup(
    word_or_vector: str | ArrayLike, index: Mapping[str, int], vectors: NDArray[np.float32]
) -> tuple[NDArray[Any], str]:
    """The vector of a word, or the vector itself, and a title for it.

    Raises:
        KeyError: the vocabulary lacks the word; the message has close spellings.

    Example:
        >>> import numpy as np
        >>> from imgskipgram.explanation import lookup
        >>> lookup("cat", {"dog": 0, "cat": 1}, np.eye(2, dtype=np.float32))
        (array([0., 1.], dtype=float32), 'cat')
    """
    if not isinstance(word_or_vector, str):
        return np.asarray(word_or_vector), "a vector"
    if word_or_vector not in index:
        from difflib import get_close_matches

        close = get_close_matches(word_or_vector, islice(index, _SPELLINGS), n=5)
        hint = f"; close spellings: {', '.join(close)}" if close else ""
        raise KeyError(f"word must be in the vocabulary, got {word_or_vector!r}{hint}")
    return vectors[index[word_or_vector]], word_or_vector


def _checked(topn: Any, diversity: Any) -> tuple[int, float]:
    topn, diversity = check_integer("topn", topn, 1), check_number("diversity", diversity)
    if not 0 <= diversity <= 1:
        raise ValueError(f"diversity must be between 0 and 1, got {diversity}")
    return topn, diversity


def _query(vector: ArrayLike, size: int) -> NDArray[np.float32]:
    """The vector with length 1; in double, as its square may be too large or too small for a float."""
    given = np.asarray(vector)
    if given.dtype.kind not in "fiu":
        raise TypeError(f"query_vector must be numbers, got {given.dtype}")
    given = given.astype(np.float64)
    if given.shape != (size,):
        raise ValueError(f"query_vector must have shape ({size},), got {given.shape}")
    if not np.isfinite(given).all():
        raise ValueError(f"query_vector must be finite, got {given[~np.isfinite(given)][0]}")
    largest = np.abs(given).max()
    if largest == 0:
        raise ValueError("query_vector must not be zero, it has no direction")
    given = given / largest
    return np.asarray(given / np.linalg.norm(given), np.float32)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows with length 1; rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), np.float32)


def _diverse(scores: NDArray[np.float32], rows: NDArray[np.float32], topn: int, diversity: float) -> NDArray[np.int64]:
    """Maximal marginal relevance: each is the best by its score less its likeness to what is chosen already."""
    chosen: list[int] = []
    nearest = np.full(len(scores), -1, np.float32)
    value = scores.copy()
    for _ in range(min(topn, len(scores))):
        best = int(value.argmax())
        chosen.append(best)
        np.maximum(nearest, rows @ rows[best], out=nearest)
        value = (1 - diversity) * scores - diversity * nearest
        value[chosen] = -np.inf
    return np.array(chosen, np.int64)


def _path(
    unit: NDArray[np.float32],
    vectors: NDArray[np.float32],
    words: Sequence[str],
    cosines: NDArray[np.float32],
    grounded: Mapping[str, Sequence[int]],
) -> list[tuple[str, float, int]]:
    numbers = np.array([i for i, word in enumerate(words) if len(grounded.get(word, ()))], np.int64)
    near = _unit(vectors[numbers]) @ unit
    steps = []
    for i in np.argsort(-near, kind="stable")[:_STEPS]:
        word = words[numbers[i]]
        own = np.asarray(grounded[word], np.int64)
        steps.append((word, float(near[i]), int(own[cosines[own].argmax()])))
    return steps
