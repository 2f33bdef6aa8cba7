"""Corpora as arrays: code points, symbols, permitted tags, and the marks of lexicons; no learning."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import numpy as np

from . import _core
from ._sentence import Partial, Sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

DIGIT, LATIN, FIRST = 3, 4, 5  # symbols: see csrc/text.h
SPARE = 256  # symbols for characters of later sentences
SEPARATOR = 2  # belongs to no word
LONGEST = 6  # symbols of a word that makes marks
FOLDS = 10  # of the jackknife
_POINTS = 0x110000
_MOST = 0xFFFF - FIRST  # characters that can have symbols
_B, _M, _E, _S = 1, 2, 4, 8
_ALLOWED = np.array(  # by the boundary before and after: no, yes, unknown
    [[_M, _E, _M | _E], [_B, _S, _B | _S], [_B | _M, _E | _S, _B | _M | _E | _S]], np.uint8
)


@dataclass(frozen=True)
class Encoded:
    """Sentences end to end. `starts` says whether a token starts there: 0 no, 1 yes, 2 unknown."""

    points: NDArray[np.uint32]
    splits: NDArray[np.int64]
    starts: NDArray[np.uint8]

    @property
    def allowed(self) -> NDArray[np.uint8]:
        """A bit for each of the tags B, M, E, S that the labels permit."""
        after = np.append(self.starts[1:], np.uint8(1))
        return np.asarray(_ALLOWED[self.starts, after])


def encode(sentences: Sequence[Sentence | Partial]) -> Encoded:
    """Arrays of sentences; white space between words is the edge of a sentence, as it is in decoding."""
    texts: list[str] = []
    starts: list[NDArray[np.uint8]] = []
    lengths: list[int] = []
    for sentence in sentences:
        if isinstance(sentence, Partial):
            texts.append(sentence.text)
            lengths.append(len(sentence.text))
            gaps = [2 if gap is None else int(gap) for gap in sentence.boundaries]
            starts.append(np.array([1, *gaps], np.uint8))
            continue
        text = "".join(sentence.words)
        start = np.zeros(len(text), np.uint8)
        ends = np.cumsum([len(word) for word in sentence.words])
        start[ends[:-1]] = 1
        start[0] = 1
        texts.append(text)
        starts.append(start)
        cuts = [int(ends[i]) for i, space in enumerate(sentence.spaces or ()) if space and i < len(ends) - 1]
        edges = [0, *cuts, len(text)]
        lengths += [b - a for a, b in pairwise(edges)]
    splits = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    return Encoded(points_of("".join(texts)), splits, np.concatenate(starts) if starts else np.zeros(0, np.uint8))


def points_of(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def fold(points: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Full-width forms as ASCII."""
    return np.where((points >= 0xFF01) & (points <= 0xFF5E), points - 0xFEE0, points).astype(np.uint32)


class Symbols:
    """The symbols of code points.

    Args:
        mapping: folded code point to symbol, of the characters alone.
        count: how many symbols there are, if that is enough.
    """

    def __init__(self, mapping: Mapping[int, int], count: int = 0) -> None:
        self.mapping = dict(mapping)
        self._count = count if count >= self._next else min(self._next + SPARE, 0xFFFF)
        table = np.zeros(_POINTS, np.uint16)
        if mapping:
            table[list(mapping)] = list(mapping.values())
        table[ord("0") : ord("9") + 1] = DIGIT
        table[ord("A") : ord("Z") + 1] = table[ord("a") : ord("z") + 1] = LATIN
        table[0xFF01:0xFF5F] = table[0x21:0x7F]
        self.table = table

    @property
    def count(self) -> int:
        """How many symbols there are; not all are in use, so that later ones fit into the same tables."""
        return self._count

    @property
    def _next(self) -> int:
        return max(self.mapping.values(), default=FIRST - 1) + 1

    @classmethod
    def of(
        cls, corpora: Iterable[NDArray[np.uint32]], words: Iterable[str] = (), variants: Mapping[int, int] | None = None
    ) -> Symbols:
        """Number the characters of corpora, the frequent ones first, then those of dictionaries."""
        return cls({}).extended(corpora, words, variants)

    def extended(
        self,
        corpora: Iterable[NDArray[np.uint32]],
        words: Iterable[str] = (),
        variants: Mapping[int, int] | None = None,
    ) -> Symbols:
        """The same symbols, and more for the characters that have none."""
        variants = variants or {}
        mapping, number = dict(self.mapping), self._next
        for points in (*corpora, points_of("".join(words))):
            counts = np.bincount(fold(points), minlength=_POINTS)
            merged: Counter[int] = Counter()
            for point in np.flatnonzero(counts).tolist():
                merged[variants.get(point, point)] += int(counts[point])
            for point, _ in sorted(merged.items(), key=lambda item: (-item[1], item[0])):
                if point not in mapping and not _implicit(point) and number <= _MOST:
                    mapping[point] = number
                    number += 1
        for variant, character in variants.items():
            if character in mapping and variant not in mapping:
                mapping[variant] = mapping[character]
        return Symbols(mapping, self.count if self.mapping else 0)

    def __call__(self, points: NDArray[np.uint32]) -> NDArray[np.uint16]:
        return np.asarray(self.table[points])

    def words(self, words: Iterable[str]) -> list[bytes]:
        """Words as big-endian symbols, whose order is that of the automaton; unsorted."""
        words = list(words)
        symbols = self(points_of("".join(words))).astype(">u2").tobytes()
        ends = np.cumsum([2 * len(word) for word in words]).tolist()
        return [symbols[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def _implicit(point: int) -> bool:
    return chr(point).isspace() or (point < 128 and chr(point).isalnum())


def lexicon(words: Iterable[bytes], symbols: int) -> _core.Lexicon:
    """The automaton of words of 2 to 6 symbols, out of their big-endian symbols."""
    kept = sorted({word for word in words if 4 <= len(word) <= 2 * LONGEST})
    splits = np.concatenate([[0], np.cumsum([len(word) // 2 for word in kept])]).astype(np.int64)
    return _core.build_lexicon(np.frombuffer(b"".join(kept), ">u2").astype(np.uint16), splits, symbols)


def marks(
    of: Callable[[NDArray[np.uint16]], NDArray[np.uint8]], symbols: NDArray[np.uint16], splits: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """The marks of sentences that lie end to end; `of` gives those of one."""
    number = np.arange(len(symbols)) + np.repeat(np.arange(len(splits) - 1), np.diff(splits))
    apart = np.full(len(symbols) + len(splits) - 1, SEPARATOR, np.uint16)
    apart[number] = symbols
    return np.asarray(of(apart)[number])


def vocabulary(sentences: Iterable[Sentence | Partial]) -> dict[str, int]:
    """The words of 2 to 6 characters with the folds that they occur in, as bits."""
    folds: dict[str, int] = {}
    for number, sentence in enumerate(sentences):
        if isinstance(sentence, Sentence):
            bit = 1 << number % FOLDS
            for word in sentence.words:
                if 2 <= len(word) <= LONGEST:
                    folds[word] = folds.get(word, 0) | bit
    return folds


def jackknife(
    folds: Mapping[str, int],
    sentences: Sequence[Sentence | Partial],
    symbols: Symbols,
    encoded: Encoded,
) -> NDArray[np.uint8]:
    """Marks of the training text by its own vocabulary: those of a fold by the words of the other nine.

    Otherwise every word of the training text would be a known one, and the weights would trust the vocabulary blindly.
    """
    words, bits = symbols.words(folds), list(folds.values())
    every = symbols(encoded.points)
    fold_of = np.array(list(chain.from_iterable([n % FOLDS] * _segments(s) for n, s in enumerate(sentences))), np.int64)
    out = np.zeros(len(every), np.uint8)
    for fold_ in range(FOLDS):
        automaton = lexicon((word for word, b in zip(words, bits, strict=True) if b != 1 << fold_), symbols.count)
        mine = np.repeat(fold_of == fold_, np.diff(encoded.splits))
        lengths = np.diff(encoded.splits)[fold_of == fold_]
        splits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        out[mine] = marks(partial(_core.lexicon_marks, automaton), every[mine], splits)
    return out


def _segments(sentence: Sentence | Partial) -> int:
    """In how many sentences without white space a sentence falls."""
    if isinstance(sentence, Partial) or sentence.spaces is None:
        return 1
    return 1 + sum(sentence.spaces[:-1])
