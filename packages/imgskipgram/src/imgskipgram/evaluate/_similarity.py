"""Likeness of words as people judge it and as their vectors have it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._checks import check_number
from ._lines import folded, lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gensim.models import KeyedVectors

__all__ = ["Similarity", "similarity"]


class Similarity(NamedTuple):
    """Correlation of cosines with judgements, over the pairs of which the vocabulary has both words.

    Attributes:
        spearman: of ranks, ties have their mean rank.
        pearson: of the values.
        n: pairs that were compared.
        oov: pairs that were left out.
    """

    spearman: float
    pearson: float
    n: int
    oov: int

    def __str__(self) -> str:
        return f"Spearman {self.spearman:.4f}, Pearson {self.pearson:.4f}, {self.n} pairs, {self.oov} left out"


def similarity(wv: KeyedVectors, pairs: str | os.PathLike[str] | Iterable[tuple[str, str, float]]) -> Similarity:
    """Correlate cosines of words with judgements of how alike they are.

    Case does not matter; of words that differ in nothing else the most frequent is meant. Words without a direction
    (zero vectors) have the cosine 0.

    Args:
        wv: vectors of words, such as `model.wv`.
        pairs: (word, word, score), or a file of lines with them, split at tabs, else at commas, else at white space;
            the score is the first number behind the words. A header and comments (`#`) are skipped; .gz, .bz2 and .xz
            are read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line or pair has no two words with a finite number; fewer than two pairs are in the vocabulary.

    Example:
        >>> from gensim.models import KeyedVectors
        >>> from imgskipgram import evaluate
        >>> wv = KeyedVectors(2)
        >>> wv.add_vectors(["cat", "dog", "car"], [[1.0, 0.0], [0.9, 0.4], [-0.2, 1.0]])
        >>> pairs = [("cat", "dog", 9.0), ("dog", "car", 2.5), ("cat", "car", 1.0), ("cat", "unicorn", 3.0)]
        >>> print(evaluate.similarity(wv, pairs))
        Spearman 1.0000, Pearson 0.9797, 3 pairs, 1 left out
    """
    from scipy.stats import rankdata

    index = folded(wv.index_to_key)
    given = _read(pairs) if isinstance(pairs, str | os.PathLike) else pairs
    left, right, judged, oov = [], [], [], 0
    for pair in given:
        a, b, score = _checked(pair)
        i, j = index.get(a.upper()), index.get(b.upper())
        if i is None or j is None:
            oov += 1
        else:
            left.append(i)
            right.append(j)
            judged.append(score)
    if len(judged) < 2:
        raise ValueError(f"pairs must have at least two of which both words are in the vocabulary, got {len(judged)}")
    a, b = (wv.vectors[rows].astype(np.float64) for rows in (left, right))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(1) / np.where(lengths > 0, lengths, 1)
    return Similarity(_pearson(rankdata(judged), rankdata(cosines)), _pearson(judged, cosines), len(judged), oov)


def _checked(pair: Any) -> tuple[str, str, float]:
    if not isinstance(pair, Sequence) or len(pair) != 3 or not all(isinstance(word, str) for word in pair[:2]):
        raise ValueError(f"pairs must have two words and a score each, got {pair!r}")
    score = check_number("score", pair[2])
    if not np.isfinite(score):
        raise ValueError(f"score must be finite, got {score} for {pair[0]!r} and {pair[1]!r}")
    return pair[0], pair[1], score


def _pearson(a: Any, b: Any) -> float:
    """NaN where one of them is constant."""
    a, b = (np.asarray(x, np.float64) - np.mean(x) for x in (a, b))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float("nan")


def _read(path: str | os.PathLike[str]) -> Iterator[tuple[str, str, float]]:
    header = True
    for number, text in lines(path):
        separator = next((mark for mark in ("\t", ",") if mark in text), None)
        first, second, *rest = [*(field.strip() for field in text.split(separator)), "", ""]
        score = next((value for field in rest if (value := _number(field)) is not None), None)
        if score is not None and first and second:
            yield first, second, score
        elif not header:
            raise ValueError(f"{path}: line {number} must have two words and a number, got {text!r}")
        header = False


def _number(field: str) -> float | None:
    try:
        value = float(field)
    except ValueError:
        return None
    return value if np.isfinite(value) else None
