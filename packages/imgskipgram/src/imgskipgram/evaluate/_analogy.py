"""Questions of the kind "a is to b as c is to what?"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ._lines import folded, lines

if TYPE_CHECKING:
    import os

    from gensim.models import KeyedVectors
    from numpy.typing import NDArray

__all__ = ["Analogy", "Section", "analogy"]

_AT_ONCE = 512  # questions
_EPSILON = 1e-6  # of the method's paper is .001, of gensim this


@dataclass(frozen=True)
class Section:
    """Questions of one kind.

    Attributes:
        name: what its `:` line says; "" for questions before any.
        correct: answered right.
        n: answered, right or wrong.
        oov: left out, as the vocabulary lacks one of the four words.
    """

    name: str
    correct: int
    n: int
    oov: int

    @property
    def accuracy(self) -> float:
        """The share that was answered right; NaN of none."""
        return self.correct / self.n if self.n else float("nan")


@dataclass(frozen=True)
class Analogy:
    """Questions that were answered right, in all and by sections.

    Attributes:
        accuracy: the share, 0 to 1; NaN of none.
        correct: answered right.
        n: answered, right or wrong.
        oov: left out, as the vocabulary lacks one of the four words.
        sections: the same of each.
    """

    accuracy: float
    correct: int
    n: int
    oov: int
    sections: tuple[Section, ...]

    def __str__(self) -> str:
        total = Section("total", self.correct, self.n, self.oov)
        rows = [*(self.sections if len(self.sections) > 1 else ()), total]
        width = max(len(row.name) for row in rows)
        return "\n".join(
            f"{row.name:{width}} {100 * row.accuracy:6.2f} % {row.correct:>6} of {row.n}, {row.oov} left out"
            for row in rows
        )


def analogy(
    wv: KeyedVectors,
    path: str | os.PathLike[str],
    *,
    method: Literal["3cosadd", "3cosmul"] = "3cosadd",
    restrict_vocab: int | None = 30000,
) -> Analogy:
    """Answer questions "a is to b as c is to what?" by the nearest word that is none of the three.

        3cosadd: max_d cos(d, b^ - a^ + c^),
        3cosmul: max_d s(d, b) s(d, c) / (s(d, a) + 1e-6),  s = (1 + cos) / 2

    Case does not matter, as in gensim's `evaluate_word_analogies`, with which "3cosadd" agrees.

    Args:
        wv: vectors of words by falling frequency, such as `model.wv`.
        path: four words a line; lines with `: name` begin a section, if there are any. .gz, .bz2 and .xz are read.
        method: as above.
        restrict_vocab: only the so many most frequent words are asked about and answered with; None is all.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line has not four words, another method, `restrict_vocab` is less than 1.

    Reference:
        Levy and Goldberg, "Linguistic Regularities in Sparse and Explicit Word Representations", CoNLL 2014.
    """
    if method not in ("3cosadd", "3cosmul"):
        raise ValueError(f"method must be '3cosadd' or '3cosmul', got {method!r}")
    if restrict_vocab is not None and restrict_vocab < 1:
        raise ValueError(f"restrict_vocab must be a positive integer or None, got {restrict_vocab}")
    words = wv.index_to_key[:restrict_vocab]
    index = folded(words)
    names, oov, questions, sections = [""], [0], list[tuple[int, ...]](), list[int]()
    for number, text in lines(path):
        if text.startswith(":"):
            names.append(text.lstrip(": "))
            oov.append(0)
            continue
        question = text.upper().split()
        if len(question) != 4:
            raise ValueError(f"{path}: line {number} must have four words, got {text!r}")
        if all(word in index for word in question):
            questions.append(tuple(index[word] for word in question))
            sections.append(len(names) - 1)
        else:
            oov[-1] += 1
    asked = np.array(questions, np.int64).reshape(-1, 4)
    of_case = np.array([index[word.upper()] for word in words], np.int64)
    right = _answers(wv.vectors[: len(words)], of_case, asked, method) == asked[:, 3]
    of = np.array(sections, np.int64)
    counts = [np.bincount(of[rows], minlength=len(names)).tolist() for rows in (right, slice(None))]
    parts = [Section(*row) for row in zip(names, *counts, oov, strict=True) if row[0] or row[2] or row[3]]
    correct, n = int(right.sum()), len(right)
    return Analogy(correct / n if n else float("nan"), correct, n, sum(oov), tuple(parts))


def _answers(
    vectors: NDArray[np.float32], of_case: NDArray[np.int64], asked: NDArray[np.int64], method: str
) -> NDArray[np.int64]:
    """For each question the number of the best word, in the case in which it is asked about."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1)
    same = _spellings(of_case)
    best = np.empty(len(asked), np.int64)
    for begin in range(0, len(asked), _AT_ONCE):
        a, b, c, _ = asked[begin : begin + _AT_ONCE].T
        if method == "3cosadd":
            scores = (unit[b] + unit[c] - unit[a]) @ unit.T
        else:
            given, where = np.unique((a, b, c), return_inverse=True)
            shifted = (1 + unit[given] @ unit.T) / 2
            i, j, k = where.reshape(3, -1)
            scores = shifted[j] * shifted[k] / (shifted[i] + np.float32(_EPSILON))
        for column in (a, b, c):
            scores[np.arange(len(scores)), column] = -np.inf
            for row in np.flatnonzero(np.isin(column, list(same))):
                scores[row, same[int(column[row])]] = -np.inf
        best[begin : begin + _AT_ONCE] = of_case[scores.argmax(1)]
    return best


def _spellings(of_case: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Of words that differ in case only, by the first of them, the others."""
    others = np.flatnonzero(of_case != np.arange(len(of_case)))
    return {int(first): others[of_case[others] == first] for first in np.unique(of_case[others])}
