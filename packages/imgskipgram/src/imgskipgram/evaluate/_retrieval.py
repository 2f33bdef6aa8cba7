"""How well words find their pictures: ranks, hubs and kinds, from vectors of words and pictures in one space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Retrieval", "csls", "frequent", "retrieval", "unit"]

_FREQUENT, _NEAREST = 5000, 10  # as in `explain`
_WAYS, _BEST, _SHOWN = 50, 10, 9
_AT_ONCE = 256


@dataclass(frozen=True)
class Retrieval:
    """How well words find their pictures among all pictures of the bank.

    Attributes:
        hit_1, hit_10: share of the words whose first picture is the best, or among the best 10.
        any_1, any_10: the same for the best of the word's pictures.
        median_rank: of the first picture, from 1.
        fifty_way: share of the words whose first picture would be among the best 10 of itself and 49 others at random.
        hubness: how often the picture that is most often among the best 10 is there.
        precision_9: of the best 9 pictures the share that is of the kind of the word's first; None without kinds.
    """

    hit_1: float
    hit_10: float
    any_1: float
    any_10: float
    median_rank: float
    fifty_way: float
    hubness: float
    precision_9: float | None = None


def retrieval(
    queries: NDArray[np.float64],
    pictures: NDArray[np.float64],
    own: Sequence[NDArray[np.int64]],
    setback: NDArray[np.float64] | float = 0.0,
    kinds: NDArray[Any] | None = None,
) -> Retrieval:
    """Rank pictures by `2 queries @ pictures.T - setback`. Ties count against the word.

    Args:
        queries: of each word its vector `[n, D]`, unit rows.
        pictures: `[M, D]`, unit rows.
        own: of each word its pictures, the first of them first.
        setback: of each picture what is subtracted.
        kinds: of each picture its kind.
    """
    from scipy.stats import hypergeom

    count = len(pictures)
    best = min(_BEST, count)
    ranks = np.empty((len(own), 2), np.int64)
    occurrences = np.zeros(count, np.int64)
    same = 0.0
    for begin in range(0, len(own), _AT_ONCE):
        scores = 2 * queries[begin : begin + _AT_ONCE] @ pictures.T - setback
        for row, score in enumerate(scores):
            mine = own[begin + row]
            ranks[begin + row, 0] = np.count_nonzero(score >= score[mine[0]])
            others = np.delete(score, mine)
            ranks[begin + row, 1] = 1 + np.count_nonzero(others >= score[mine].max())
            order = np.argsort(-score, kind="stable")
            occurrences[order[:best]] += 1
            if kinds is not None:
                same += float(np.mean(kinds[order[:_SHOWN]] == kinds[mine[0]]))
    first, nearest = ranks.T
    ways = hypergeom.cdf(best - 1, count - 1, first - 1, min(_WAYS, count) - 1)
    return Retrieval(
        hit_1=float(np.mean(first <= 1)),
        hit_10=float(np.mean(first <= best)),
        any_1=float(np.mean(nearest <= 1)),
        any_10=float(np.mean(nearest <= best)),
        median_rank=float(np.median(first)),
        fifty_way=float(np.mean(ways)),
        hubness=float(occurrences.max()),
        precision_9=None if kinds is None else same / len(own),
    )


def chance(count: int, own: Sequence[NDArray[np.int64]], kinds: NDArray[Any] | None = None) -> Retrieval:
    """What an order at random gives on average; of hubness, about (by a binomial law's 1 - 1/M quantile)."""
    from scipy.stats import binom, hypergeom

    best = min(_BEST, count)
    sizes = np.array([len(mine) for mine in own])
    same = None
    if kinds is not None:
        same = float(np.mean([np.mean(kinds == kinds[mine[0]]) for mine in own]))
    return Retrieval(
        hit_1=1 / count,
        hit_10=best / count,
        any_1=float(np.mean(sizes / count)),
        any_10=float(np.mean(1 - hypergeom.pmf(0, count, sizes, best))),
        median_rank=(count + 1) / 2,
        fifty_way=min(1.0, _BEST / min(_WAYS, count)),
        hubness=float(binom.ppf(1 - 1 / count, len(own), best / count)),
        precision_9=same,
    )


def frequent(vectors: NDArray[Any], mu: NDArray[Any]) -> NDArray[np.float64]:
    """The most frequent words, centred, as unit rows."""
    rows = vectors[:_FREQUENT]
    return unit(unit(rows[rows.any(1)]) - mu)


def csls(pictures: NDArray[np.float64], words: NDArray[np.float64]) -> NDArray[np.float64]:
    """r_i: mean cosine of picture i to its 10 nearest words."""
    count = min(_NEAREST, len(words))
    means = np.zeros(len(pictures))
    for begin in range(0, len(pictures) if count else 0, _AT_ONCE):
        cosines = pictures[begin : begin + _AT_ONCE] @ words.T
        means[begin : begin + _AT_ONCE] = np.partition(cosines, len(words) - count, axis=1)[:, -count:].mean(1)
    return means


def unit(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Rows with length 1 in float64; rows of zeros stay."""
    rows = np.asarray(rows, np.float64)
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1))
