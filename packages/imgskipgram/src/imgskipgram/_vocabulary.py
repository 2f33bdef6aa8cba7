"""Vocabularies: which words of a corpus are kept, in which order, and how often each is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from . import _core
from ._checks import check_integer

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ABSENT", "Counts", "Trim", "Vocabulary", "choose", "stays"]

ABSENT = np.uint32(2**32 - 1)  # the number of a word outside the vocabulary

_MOST = 2**63 - 1

TrimRule = Callable[[str, int, int], int]


@dataclass(frozen=True)
class Trim:
    """What decides whether a word is kept, as in gensim: `trim_rule(word, count, min_count)` before `min_count`.

    `max_vocab_size` bounds the words counted at a time: their counts are those of gensim. Their numbers are kept, so
    that occurrences before a word was forgotten are trained if it is kept in the end.

    Raises:
        ValueError: a number below 0 (`min_count`) or 1.
        TypeError: no integer, or a rule that cannot be called.
    """

    min_count: int = 5
    max_vocab_size: int | None = None
    max_final_vocab: int | None = None
    trim_rule: TrimRule | None = None
    sorted_vocab: bool = True

    def __post_init__(self) -> None:
        check_integer("min_count", self.min_count, 0, _MOST)
        for name in ("max_vocab_size", "max_final_vocab"):
            if (value := getattr(self, name)) is not None:
                check_integer(name, value, 1, _MOST)
        if self.trim_rule is not None and not callable(self.trim_rule):
            raise TypeError(f"trim_rule must be callable or None, got {type(self.trim_rule).__name__}")


@dataclass(frozen=True, eq=False)
class Counts:
    """The words of a corpus, how often each occurs, and in which order they came.

    A word with count 0 was forgotten on the way (`max_vocab_size`).
    """

    words: Sequence[str]
    counts: NDArray[np.uint64]
    births: NDArray[np.uint64]
    raw: int
    sentences: int

    @classmethod
    def of(cls, frequencies: Mapping[str, int], sentences: int = 0) -> Counts:
        """Counts that are known without a corpus."""
        counts = np.fromiter(frequencies.values(), np.uint64, len(frequencies))
        births = np.arange(len(frequencies), dtype=np.uint64)
        return cls(list(frequencies), counts, births, int(counts.sum()), sentences)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Words by number: by falling count, then as they first came. `raw` and `sentences` are of the last corpus."""

    words: list[str]
    counts: NDArray[np.uint64]
    raw: int
    sentences: int
    index: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", {word: number for number, word in enumerate(self.words)})

    def __len__(self) -> int:
        return len(self.words)

    @property
    def total(self) -> int:
        """Tokens that are words of the vocabulary."""
        return int(self.counts.sum())

    def numbers(self, words: Sequence[str]) -> NDArray[np.uint32]:
        """The number of each of these words, ABSENT where it has none."""
        return np.fromiter((self.index.get(word, ABSENT) for word in words), np.uint32, len(words))

    def keep(self, sample: float) -> NDArray[np.uint32]:
        """The share of a word's occurrences that sub-sampling keeps, in units of 2^-32; all of them is 2^32 - 1.

        With count c, N tokens and t = sample it is min(1, (sqrt(c / tN) + 1) tN / c).
        """
        if sample == 0:
            return np.full(len(self), 2**32 - 1, np.uint32)
        ratio = sample * self.total / self.counts.astype(np.float64)
        share = (np.sqrt(1 / ratio) + 1) * ratio
        return np.minimum(np.floor(share * 2.0**32), 2.0**32 - 1).astype(np.uint32)

    def noise(self, exponent: float) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """The alias table, threshold and alias, of negatives that are drawn in proportion to count ** exponent."""
        likeliest = self.counts.max() if exponent > 0 else self.counts.min()
        return _core.alias_build((self.counts / likeliest) ** exponent)  # at most 1, whatever the exponent


def choose(found: Counts, trim: Trim, known: Vocabulary | None = None) -> tuple[Vocabulary, NDArray[np.uint32]]:
    """The vocabulary of a corpus, and the number in it of each word found (ABSENT where it has none).

    Known words stay and keep their numbers; their counts grow by those found, and new words follow.

    Raises:
        ValueError: nothing is found, or nothing is kept.
    """
    order = np.argsort(found.births, kind="stable")
    order = order[found.counts[order] > 0]
    counts = found.counts[order]
    if not counts.size:
        raise ValueError("the corpus must have words, got 0 tokens")
    least = trim.min_count
    if trim.max_final_vocab is not None and trim.max_final_vocab < counts.size:
        least = max(least, int(np.sort(counts)[::-1][trim.max_final_vocab]) + 1)
    if (rule := trim.trim_rule) is None:
        kept = order[counts >= least]
    else:
        words = ((number, found.words[number], int(found.counts[number])) for number in order)
        kept = np.array([number for number, word, count in words if stays(rule, word, count, least)], np.intp)
    if known is None:
        if not kept.size:
            raise ValueError(
                f"the corpus must have words that are kept, got {found.raw} tokens of which the most frequent word has "
                f"{counts.max()} with min_count={trim.min_count}; lower min_count, or check max_final_vocab and "
                "trim_rule"
            )
        if trim.sorted_vocab:
            kept = kept[np.argsort(counts.max() - found.counts[kept], kind="stable")]
        vocabulary = Vocabulary([found.words[i] for i in kept], found.counts[kept], found.raw, found.sentences)
        numbers = np.full(len(found.words), ABSENT)
        numbers[kept] = np.arange(kept.size)
        return vocabulary, numbers
    vocabulary = _grown(known, found, kept)
    return vocabulary, vocabulary.numbers(found.words)


def stays(rule: TrimRule, word: str, count: int, least: int) -> bool:
    """Whether a word passes gensim's form of rule, which may also leave the answer to the count."""
    from gensim.utils import RULE_DISCARD, RULE_KEEP

    answer = rule(word, count, least)
    return answer == RULE_KEEP or (answer != RULE_DISCARD and count >= least)


def _grown(known: Vocabulary, found: Counts, kept: NDArray[np.intp]) -> Vocabulary:
    new = [i for i in kept if found.words[i] not in known.index]
    counts = np.concatenate([known.counts, found.counts[new]])
    places = known.numbers(found.words)
    old = places != ABSENT
    counts[places[old]] += found.counts[old]
    return Vocabulary([*known.words, *(found.words[i] for i in new)], counts, found.raw, found.sentences)
