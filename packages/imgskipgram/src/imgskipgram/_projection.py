"""Images as vectors in the words' space: by similar pictures, by a linear map, or by their principal components."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["Shared", "directions", "fixed", "linear", "pairs", "principal"]

_POWER, _GAMMA, _RIDGE = 0.25, 1.25, 0.3  # of features, of the kernel, of its system: chosen on splits 100-119
_NEIGHBOURS, _SMOOTHING, _STEPS = 20, 0.5, 20
_EXACT = 4000  # pairs of a word and its image; more are fitted through landmarks
_LANDMARKS = 2000
_MANY, _DIRECTIONS = 10_000, 256  # images; from more on neighbours are found in so many directions
_ROWS, _COLUMNS = 256, 256  # at once
_NOTHING = 1e-5  # a sum of vectors this much shorter than its parts is rounding
_IMAGINED, _LOOSE, _ANCHORS, _COMMON = 4.0, 0.3, 2000, 5000  # of words: kernel, ridge, those with images, the mean's
_IN_TRAINING = 2.0  # length of z: with unit vectors a logistic could not come near to 0 or 1


class Shared:
    """A projection that all words share: z_i = unit(sum_w T_iw (v^_w - mu)); T depends on features and labels alone.

        x_i = unit(y_i - mean y),  y_i = unit(sign(f_i) |f_i|^0.25),
        K_ij = exp(-1.25 |x_i - x_j|^2),
        T0 = K_ML (K_LL + 0.3 diag(1/a))^-1 E,
        T = (T0 + A T) / 2,

    over the pairs L of an image and a word w, weighted by a ~ |I(w)|^-1/2 with mean 1; E says which pair has which
    word; A averages over each image's 20 nearest, by cosines of x. T is found by 20 steps from T0. Above 4,000 pairs
    the ridge regression has 2,000 images as landmarks, at first one of every word; it still fits every pair. Above
    10,000 images neighbours are found by the 256 directions in which images differ most.

    Time and memory: 4 M min(G, 2,000) bytes stay, G words with images; three times that, x (4 M df bytes) and blocks of
    1,000 M floats while it is made. A refresh is one product of M x G by G x D.

    Args:
        features: f, float32 `[M, df]`.
        start: images of word w are `images[start[w]:start[w + 1]]`; `[V + 1]`.
        images: rows of features.

    Example:
        >>> import numpy as np
        >>> from imgskipgram._projection import Shared
        >>> features = np.array([[1, 0], [0, 1], [0.9, 0.1]], np.float32)
        >>> projection = Shared(features, np.array([0, 1, 2, 2], np.uint64), np.array([0, 1], np.uint32))
        >>> mu, z = projection.fit(np.array([[3, 0], [0, 2], [1, 1]], np.float32))
        >>> mu.tolist(), np.sign(z).tolist()
        ([0.5, 0.5], [[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]])
    """

    def __init__(self, features: NDArray[np.float32], start: NDArray[np.uint64], images: NDArray[np.uint32]) -> None:
        from scipy.sparse import csr_array

        words, rows = pairs(start, images)
        self._words, columns = np.unique(words, return_inverse=True)
        shape = len(features), len(self._words)
        x = directions(features)
        kernel, weights = _ridge(x, rows, columns, shape[1])
        small = shape[1] <= len(weights)
        self._left = _smoothed(x, kernel @ weights if small else kernel)
        self._right = None if small else weights
        own = [self._entries(rows[part], columns[part]) for part in _parts(len(rows), _ROWS)]
        self._own = csr_array((np.concatenate(own), (rows, columns)), shape=shape)

    def fit(self, vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The mean mu `[D]` of the grounded words' unit vectors, and z `[M, D]` with unit rows, of float32.

        Words without a direction (zero rows) are left out. A mean of one word would be that word: it is not subtracted.

        Args:
            vectors: v `[V, D]`, of any length.
        """
        mu, centred, there = self._centred(vectors)
        if there < 2:
            mu, centred = np.zeros_like(mu), centred + np.where(vectors[self._words].any(1, keepdims=True), mu, 0)
        return mu, _unit(self._product(centred))

    def pull(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """What training draws words to: z `[M, D]` with length 2, where T_iw = 0 for the image's own words w.

        With them z_i would be almost the word's own vector, and a word would be drawn to itself. An image of which
        nothing else says where it lies has zeros.

        Args:
            vectors: v `[V, D]`, of any length.
        """
        _, centred, _ = self._centred(vectors)
        whole, own = self._product(centred), np.asarray(self._own @ centred)
        z = whole - own
        length = np.linalg.norm(z, axis=1, keepdims=True)
        least = _NOTHING * (np.linalg.norm(whole, axis=1, keepdims=True) + np.linalg.norm(own, axis=1, keepdims=True))
        return np.where(length > least, z * (_IN_TRAINING / np.where(length > least, length, 1)), 0).astype(np.float32)

    def imagined(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Where the images of every word would lie, if it had some `[V, D]`, as far as images tell words.

            t_w = r sum_g k(w, g) c_g,  (k + 0.3 I) c = z,  k(w, g) = exp(-4 |y_w - y_g|^2),

        over the words g with images (the first 2,000 of them), z_g the direction of their mean of `pull`, y the
        directions of words from the mean of the first 5,000, and r the mean cosine of z_g with v^_g - mu, which none of
        its own labels gave: images that say nothing about words give zeros.

        Args:
            vectors: v `[V, D]`, of any length.
        """
        _, centred, _ = self._centred(vectors)
        own = self._own.astype(bool).astype(np.float32).T
        target = _unit(np.asarray(own @ self.pull(vectors)))
        told = float((_unit(centred) * target).sum(1).mean())
        anchors, target = self._words[:_ANCHORS], target[:_ANCHORS]
        out = np.zeros(vectors.shape, np.float32)
        if told <= 0:
            return out
        mean = _unit(vectors[:_COMMON].astype(np.float32)).mean(0)

        def directions(rows: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.asarray(_unit(_unit(rows.astype(np.float32)) - mean))

        y = directions(vectors[anchors])
        system = _kernel(y, y, _IMAGINED).astype(np.float64)
        system[np.diag_indices_from(system)] += _LOOSE
        weights = (told * np.linalg.solve(system, target)).astype(np.float32)
        for part in _parts(len(vectors), _ROWS):
            out[part] = _kernel(directions(vectors[part]), y, _IMAGINED) @ weights
        out[~vectors.any(1)] = 0
        return out

    def _centred(self, vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
        unit = _unit(vectors[self._words].astype(np.float32))
        there = np.asarray(unit.any(1))
        mu = unit[there].mean(0, dtype=np.float64) if there.any() else np.zeros(unit.shape[1])
        return mu.astype(np.float32), np.where(there[:, None], unit - mu, 0).astype(np.float32), int(there.sum())

    def _product(self, centred: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self._left @ (centred if self._right is None else self._right @ centred))

    def _entries(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        if self._right is None:
            return self._left[rows, columns]
        return np.asarray(np.einsum("pm,mp->p", self._left[rows], self._right[:, columns]))


def fixed(features: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    """Principal components with unit rows `[M, columns]`, which no word moves; zeros where there are fewer of them.

    Args:
        features: f, float32 `[M, df]`.
        columns: D.

    Example:
        >>> import numpy as np
        >>> from imgskipgram._projection import fixed
        >>> fixed(np.array([[0, 1], [1, 1], [5, 1]], np.float32), 3).tolist()
        [[-1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    """
    parts = principal(features, columns)
    return np.pad(_unit(parts), ((0, 0), (0, columns - parts.shape[1]))).astype(np.float32)


def linear(
    features: NDArray[np.float32],
    start: NDArray[np.uint64],
    images: NDArray[np.uint32],
    vectors: NDArray[np.float32],
    *,
    rho: float = 7.5,
    components: int = 100,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The closed-form ridge regression from pictures to words, the baseline: mu `[D]` and z `[M, D]` with unit rows.

        P = (sum f~_i f~_i^T + r I)^-1 sum f~_i (v^_w - mu)^T,  z_i = unit(P^T f~_i),

    over the pairs of a word w and its image i; f~ are the first min(100, df, M - 1) principal components.

    Args:
        features: f, float32 `[M, df]`.
        start: images of word w are `images[start[w]:start[w + 1]]`; `[V + 1]`.
        images: rows of features.
        vectors: v `[V, D]`, of any length; zero rows are left out.
        rho: r is `rho` times the mean eigenvalue of the sum.
        components: at most so many of them.
    """
    parts = principal(features, components)
    words, rows = pairs(start, images)
    there = vectors[words].any(1)
    words, rows = words[there], rows[there]
    grounded, columns = np.unique(words, return_inverse=True)
    unit = _unit(vectors[grounded].astype(np.float64))
    mu = unit.mean(0) if len(grounded) > 1 else np.zeros(vectors.shape[1])
    inputs = parts[rows]
    system = inputs.T @ inputs
    ridge = rho * np.trace(system) / max(len(system), 1)
    system[np.diag_indices_from(system)] += ridge if ridge > 0 else 1
    return mu, _unit(parts @ np.linalg.solve(system, inputs.T @ (unit - mu)[columns]))


def pairs(start: NDArray[np.uint64], images: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of every pair the word's number and the image's row."""
    ends = start.astype(np.int64)
    counts = ends[1:] - ends[:-1]
    return np.repeat(np.arange(len(counts)), counts), images.astype(np.int64)


def principal(features: NDArray[Any], count: int) -> NDArray[np.float64]:
    """The first min(count, df, M - 1) principal components, zeros behind the rank; the largest entry is positive."""
    rows = features.astype(np.float64)
    rows -= rows.mean(0)
    tall = len(rows) >= rows.shape[1]
    variances, vectors = np.linalg.eigh(rows.T @ rows if tall else rows @ rows.T)
    first = slice(None, -1 - min(count, rows.shape[1], len(rows) - 1), -1)
    variances, vectors = variances[first], vectors[:, first]
    none = variances <= variances.max(initial=0) * max(rows.shape) * np.finfo(np.float64).eps
    parts = rows @ vectors if tall else vectors * np.sqrt(np.maximum(variances, 0))
    parts[:, none] = 0
    largest = np.take_along_axis(parts, np.abs(parts).argmax(0)[None], 0)
    return np.asarray(np.where(largest < 0, -parts, parts))


def directions(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """x_i of `Shared`: how a picture differs from the mean picture, when single large features do not count most."""
    x = _unit(np.sign(features) * np.sqrt(np.sqrt(np.abs(features))))
    return np.asarray(_unit(x - x.mean(0, dtype=np.float64).astype(np.float32)))


def _unit(rows: NDArray[Any]) -> NDArray[Any]:
    """Rows with length 1; rows of zeros stay."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def _kernel(x: NDArray[np.float32], others: NDArray[np.float32], gamma: float = _GAMMA) -> NDArray[np.float32]:
    kernel = np.empty((len(x), len(others)), np.float32)
    for part in _parts(len(x), _ROWS):
        kernel[part] = np.exp(2 * np.float32(gamma) * (x[part] @ others.T - 1))
    return kernel


def _ridge(
    x: NDArray[np.float32], rows: NDArray[np.int64], columns: NDArray[np.int64], words: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """T0 as a product: the kernel between images and pairs or landmarks, and the weights of these for every word."""
    from scipy.sparse import csr_array

    weights = np.bincount(columns)[columns] ** -0.5
    weights /= weights.mean()
    if len(rows) <= _EXACT:
        kernel = _kernel(x, x[rows])
        system = kernel[rows].astype(np.float64)
        system[np.diag_indices_from(system)] += _RIDGE / weights
        target = np.zeros((len(rows), words))
        target[np.arange(len(rows)), columns] = 1
    else:
        landmarks = _landmarks(rows, columns)
        kernel = _kernel(x, x[landmarks])
        system = _RIDGE * kernel[landmarks].astype(np.float64)
        of_image = np.bincount(rows, weights, len(x))
        labelled = np.flatnonzero(of_image)
        for part in _parts(len(labelled), _ROWS):
            block = kernel[labelled[part]].astype(np.float64)
            system += block.T @ (of_image[labelled[part], None] * block)
        system[np.diag_indices_from(system)] += 1e-10 * np.trace(system) / len(system)  # equal images
        target = np.asarray(csr_array((weights, (columns, rows)), shape=(words, len(x))) @ kernel).T
    return kernel, np.linalg.solve(system, target).astype(np.float32)


def _landmarks(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Images to stand for all: of every word one at random, then of every word a second, and so on."""
    shuffled = np.random.default_rng(0).permutation(len(rows))
    by_word = shuffled[np.argsort(columns[shuffled], kind="stable")]
    counts = np.bincount(columns)
    turn = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = rows[by_word[np.argsort(turn, kind="stable")]]
    _, first = np.unique(chosen, return_index=True)
    return chosen[np.sort(first)[:_LANDMARKS]]


def _smoothed(x: NDArray[np.float32], left: NDArray[np.float32]) -> NDArray[np.float32]:
    """The fixed point of T = (T0 + A T) / 2, nearly; T0 is overwritten, some columns at a time."""
    if len(x) < 2:
        return left
    average = _average(x)
    for part in _parts(left.shape[1], _COLUMNS):
        start = np.ascontiguousarray(left[:, part])
        now = start.copy()
        for _ in range(_STEPS):
            now = (1 - _SMOOTHING) * start + _SMOOTHING * np.asarray(average @ now)
        left[:, part] = now
    return left


def _average(x: NDArray[np.float32]) -> Any:
    """A: every row the weights of an image's neighbours, of those it has and of those that have it; their sum is 1."""
    from scipy.sparse import csr_array, diags_array

    if len(x) > _MANY and x.shape[1] > _DIRECTIONS:
        x = x @ np.linalg.eigh((x.T @ x).astype(np.float64))[1][:, -_DIRECTIONS:].astype(np.float32)
    count = min(_NEIGHBOURS, len(x) - 1)
    neighbours = np.empty((len(x), count), np.int64)
    cosines = np.empty((len(x), count), np.float32)
    for part in _parts(len(x), _ROWS):
        block = x[part] @ x.T
        block[np.arange(len(block)), np.arange(part.start, part.stop)] = -2  # not itself
        nearest = np.argpartition(block, len(x) - count, axis=1)[:, -count:]
        neighbours[part] = nearest
        cosines[part] = np.maximum(np.take_along_axis(block, nearest, 1), 0)
    pointers = np.arange(0, len(x) * count + 1, count)
    directed = csr_array((cosines.ravel(), neighbours.ravel(), pointers), shape=(len(x), len(x)))
    both = directed + directed.T
    total = np.asarray(both.sum(1)).ravel()
    alone = total <= 0
    return csr_array(
        diags_array((1 / np.where(alone, 1, total)).astype(np.float32)) @ both + diags_array(alone * np.float32(1))
    )
