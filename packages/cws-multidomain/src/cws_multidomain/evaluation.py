"""Scores of a segmentation against a gold standard, their uncertainty, and tables of models by test sets."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from ._formats import read_lines
from .corpus import Corpus, Partial, Sentence, read_corpus

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Comparison", "Interval", "Scores", "bootstrap", "compare", "evaluate", "matrix", "sentence_counts"]


@dataclass(frozen=True, slots=True)
class Scores:
    """What :func:`evaluate` found; the counts are of words, but where they say otherwise."""

    precision: float
    recall: float
    f1: float
    oov_rate: float | None  # None without a vocabulary, as the next two
    oov_recall: float | None  # also None where every word is known
    iv_recall: float | None  # also None where none is
    boundary_precision: float  # of the boundaries between two words of a sentence
    boundary_recall: float
    boundary_f1: float
    correct: int
    gold: int
    predicted: int
    oov: int | None
    oov_correct: int | None
    sentences: int
    exact_sentences: int  # all of whose words are correct
    characters: int  # white space left out

    def __str__(self) -> str:
        lines = [
            f"words      P {self.precision:.4f}  R {self.recall:.4f}  F1 {self.f1:.4f}  "
            f"({self.correct} correct, {self.gold} gold, {self.predicted} predicted)",
            f"boundaries P {self.boundary_precision:.4f}  R {self.boundary_recall:.4f}  F1 {self.boundary_f1:.4f}",
            f"sentences  {self.exact_sentences} of {self.sentences} without an error",
        ]
        if self.oov_rate is not None:
            recalls = ["none" if recall is None else f"{recall:.4f}" for recall in (self.oov_recall, self.iv_recall)]
            lines.append(f"vocabulary OOV rate {self.oov_rate:.4f}  OOV recall {recalls[0]}  IV recall {recalls[1]}")
        return "\n".join(lines)


Vocabulary: TypeAlias = "str | os.PathLike[str] | Iterable[str] | Iterable[Sequence[str]]"


def evaluate(gold: Corpus, predicted: Corpus, vocabulary: Vocabulary | None = None, stream: bool = False) -> Scores:
    r"""Precision, recall and F1 of words, as SIGHAN and Universal Dependencies count them.

    .. math:: P = c / \hat n, \qquad R = c / n, \qquad F_1 = 2 P R / (P + R)

    A word is correct if the same characters are one word on both sides; n words are gold, :math:`\hat n` predicted,
    c correct. White space inside and between words does not count. Where nothing is to be divided by, 0.

    Args:
        gold, predicted: corpora: a path, an iterable of lists of words, or a dict of these by domain, whose counts are
            summed. Both must hold the same sentences, in order.
        vocabulary: the words of the training set (a path, whose first column is read where there are tabs, an iterable
            of words, or a corpus), which tells unknown (OOV) from known (IV) words. None (default): neither is counted.
        stream: compare the whole text, whatever its division into sentences (default False). A line break on either
            side is then a boundary of words, none of sentences.

    Raises:
        ValueError: texts that differ, with the sentence's number and both excerpts; domains that differ; a partly
            annotated sentence.

    Example:
        >>> scores = evaluate([["我们", "爱", "北京"]], [["我们", "爱", "北", "京"]], vocabulary=["我们", "爱"])
        >>> scores.correct, scores.predicted, scores.oov_recall
        (2, 4, 0.0)

    Reference: T. Emerson, The Second International Chinese Word Segmentation Bakeoff, SIGHAN 2005.
    """
    sides = _aligned(gold, predicted, stream)
    hits = _hits(sides)
    n_gold, n_predicted, correct = len(hits), len(sides.predicted.ends), int(hits.sum())
    precision, recall, f1 = _prf(correct, n_gold, n_predicted)
    inside = np.zeros((2, sides.length + 1), bool)
    for row, side in zip(inside, (sides.gold, sides.predicted), strict=True):
        row[side.ends] = True
        row[sides.gold.sentence_ends] = False
    boundaries = _prf(*map(int, (inside.all(axis=0).sum(), *inside.sum(axis=1))))
    counts = _per_sentence(sides, hits)
    known = None if vocabulary is None else _in_vocabulary(sides.gold.words, vocabulary)
    oov = oov_correct = oov_rate = oov_recall = iv_recall = None
    if known is not None:
        oov, oov_correct = int((~known).sum()), int((hits & ~known).sum())
        oov_rate = oov / n_gold if n_gold else 0.0
        oov_recall = oov_correct / oov if oov else None
        iv_recall = (correct - oov_correct) / (n_gold - oov) if n_gold > oov else None
    return Scores(
        precision=precision,
        recall=recall,
        f1=f1,
        oov_rate=oov_rate,
        oov_recall=oov_recall,
        iv_recall=iv_recall,
        boundary_precision=boundaries[0],
        boundary_recall=boundaries[1],
        boundary_f1=boundaries[2],
        correct=correct,
        gold=n_gold,
        predicted=n_predicted,
        oov=oov,
        oov_correct=oov_correct,
        sentences=len(counts),
        exact_sentences=int((counts[:, 0] == counts[:, 1:].max(axis=1, initial=0)).sum()),
        characters=sides.length,
    )


def sentence_counts(gold: Corpus, predicted: Corpus) -> NDArray[np.int64]:
    """Correct, gold and predicted words of each sentence, as an array of shape (sentences, 3).

    Example:
        >>> sentence_counts([["我们", "爱"], ["你"]], [["我", "们", "爱"], ["你"]]).tolist()
        [[1, 2, 3], [1, 1, 1]]
    """
    sides = _aligned(gold, predicted, stream=False)
    return _per_sentence(sides, _hits(sides))


@dataclass(frozen=True, slots=True)
class _Side:
    words: list[str]  # without white space inside; none is empty
    starts: NDArray[np.int64]  # of each word in the whole text without white space
    ends: NDArray[np.int64]
    sentence_ends: NDArray[np.int64]
    sentence_words: NDArray[np.int64]  # how many words each sentence has
    texts: list[str]  # of each sentence


@dataclass(frozen=True, slots=True)
class _Sides:
    gold: _Side
    predicted: _Side

    @property
    def length(self) -> int:
        return int(self.gold.ends[-1]) if len(self.gold.ends) else 0


def _aligned(gold: Corpus, predicted: Corpus, stream: bool) -> _Sides:
    given = [_by_key(gold, "gold"), _by_key(predicted, "predicted")]
    if given[0].keys() != given[1].keys():
        names = [", ".join(map(str, side)) for side in given]
        raise ValueError(f"predicted must have the domains of gold ({names[0]}), got {names[1]}")
    sides = [_side([s for key in given[0] for s in side[key]]) for side in given]
    for side in sides if stream else ():
        side.texts[:] = ["".join(side.texts)]
    _check_texts(sides[0].texts, sides[1].texts, stream)
    return _Sides(*sides)


def _by_key(corpus: Any, name: str) -> dict[str | None, list[Sequence[str]]]:
    parts = corpus if isinstance(corpus, Mapping) else {None: corpus}
    return {key: _word_lists(part, f"{name}[{key!r}]" if key else name) for key, part in parts.items()}


def _word_lists(corpus: Any, name: str) -> list[Sequence[str]]:
    if isinstance(corpus, str | os.PathLike):
        corpus = read_corpus(corpus)
    elif isinstance(corpus, bytes | Mapping) or not isinstance(corpus, Iterable):
        raise TypeError(f"{name} must be a path or an iterable of lists of words, got {type(corpus).__name__}")
    sentences: list[Sequence[str]] = []
    for index, sentence in enumerate(corpus):
        if isinstance(sentence, Partial):
            raise ValueError(f"{name} must be fully segmented, got a partly annotated sentence at index {index}")
        if isinstance(sentence, str | bytes) or not isinstance(sentence, Iterable):
            raise TypeError(f"{name} must hold lists of words, got {type(sentence).__name__} at index {index}")
        sentences.append(sentence if isinstance(sentence, Sentence) else list(sentence))
    return sentences


def _side(sentences: list[Sequence[str]]) -> _Side:
    words = list(itertools.chain.from_iterable(sentences))
    try:
        texts = ["".join(sentence) for sentence in sentences]
    except TypeError:
        index = next(i for i, word in enumerate(words) if not isinstance(word, str))
        raise TypeError(f"words must be strings, got {type(words[index]).__name__}") from None
    if any(text.split() != [text] for text in texts) or "" in words:  # rare: white space, or nothing at all
        sentences = [[word for part in sentence if (word := "".join(part.split()))] for sentence in sentences]
        words = list(itertools.chain.from_iterable(sentences))
        texts = ["".join(sentence) for sentence in sentences]
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    ends = np.cumsum(lengths)
    return _Side(
        words=words,
        starts=ends - lengths,
        ends=ends,
        sentence_ends=np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts))),
        sentence_words=np.fromiter(map(len, sentences), np.int64, len(sentences)),
        texts=texts,
    )


def _check_texts(gold: list[str], predicted: list[str], stream: bool) -> None:
    if gold == predicted:
        return
    number, pair = next(
        ((i, pair) for i, pair in enumerate(zip(gold, predicted, strict=False), 1) if pair[0] != pair[1]), (0, ("", ""))
    )
    if not number:
        raise ValueError(f"predicted must have the {len(gold)} sentences of gold, got {len(predicted)}")
    at = next((i for i, (a, b) in enumerate(zip(*pair, strict=False)) if a != b), min(map(len, pair)))
    excerpts = [text[max(at - 10, 0) : at + 10] for text in pair]
    where = f"at character {at}" if stream else f"in sentence {number} at character {at}"
    remedy = "" if stream or "".join(gold) != "".join(predicted) else "; the whole texts agree: pass stream=True"
    raise ValueError(
        f"predicted must have the text of gold, but {where} gold has {excerpts[0]!r} and predicted "
        f"{excerpts[1]!r}{remedy}"
    )


def _hits(sides: _Sides) -> NDArray[np.bool_]:
    """Whether each gold word is a predicted one."""
    start_of = np.full(sides.length + 1, -1, np.int64)
    start_of[sides.predicted.ends] = sides.predicted.starts
    return np.equal(start_of[sides.gold.ends], sides.gold.starts)


def _per_sentence(sides: _Sides, hits: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Correct, gold and predicted words of each gold sentence."""
    of_gold = np.repeat(np.arange(len(sides.gold.sentence_words)), sides.gold.sentence_words)
    of_predicted = np.searchsorted(sides.gold.sentence_ends, sides.predicted.starts, side="right")
    size = len(sides.gold.sentence_words)
    columns = (of_gold[hits], of_gold, of_predicted)
    return np.stack([np.bincount(column, minlength=size) for column in columns], axis=1).astype(np.int64)


def _prf(correct: float, gold: float, predicted: float) -> tuple[float, float, float]:
    precision = correct / predicted if predicted else 0.0
    recall = correct / gold if gold else 0.0
    return precision, recall, 2 * correct / (gold + predicted) if gold + predicted else 0.0


def _in_vocabulary(words: Sequence[str], vocabulary: Any) -> NDArray[np.bool_]:
    known = vocabulary if isinstance(vocabulary, set | frozenset | dict) else _vocabulary(vocabulary)
    return np.fromiter(map(known.__contains__, words), bool, len(words))


def _vocabulary(vocabulary: Any) -> Collection[str]:
    known: set[str] = set()
    if isinstance(vocabulary, str | os.PathLike):
        for _, text in read_lines(Path(vocabulary)):
            known.update(text.split("\t", 1)[:1] if "\t" in text else text.split())
        return known
    for entry in vocabulary:
        known.update((entry,) if isinstance(entry, str) else entry)
    return known


# Uncertainty


@dataclass(frozen=True, slots=True)
class Interval:
    """An F1 with its bootstrap confidence interval."""

    f1: float
    low: float
    high: float


def bootstrap(
    gold: Corpus, predicted: Corpus, confidence: float = 0.95, samples: int = 1000, seed: int = 0
) -> Interval:
    """The confidence interval of F1 when the test set's sentences are drawn again with replacement.

    Args:
        gold, predicted: as in :func:`evaluate`.
        confidence: default 0.95.
        samples: drawings (default 1000).
        seed: of the drawings (default 0).

    Raises:
        ValueError: confidence outside of (0, 1), samples < 1, or no sentence.

    Example:
        >>> bootstrap([["我们", "爱"]] * 5, [["我们", "爱"]] * 5)
        Interval(f1=1.0, low=1.0, high=1.0)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    _check_samples(samples)
    counts = _some(sentence_counts(gold, predicted))
    generator = np.random.default_rng(seed)
    n = len(counts)
    f1 = np.empty(samples)
    for i in range(samples):
        times = np.bincount(generator.integers(n, size=n), minlength=n)
        f1[i] = _f1(times @ counts)
    tail = (1 - confidence) / 2
    low, high = np.quantile(f1, [tail, 1 - tail])
    return Interval(float(_f1(counts.sum(axis=0))), float(low), float(high))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems on the same test set."""

    difference: float  # F1 of the second minus that of the first
    p_value: float  # two-sided: of a difference as large if the systems were alike


def compare(gold: Corpus, first: Corpus, second: Corpus, samples: int = 10_000, seed: int = 0) -> Comparison:
    r"""Whether two systems differ: a paired test by approximate randomisation over sentences.

    .. math:: p = \frac{1 + \#\{|\Delta F_1^*| \ge |\Delta F_1|\}}{1 + \text{samples}}

    where in each sample the two systems' outputs are exchanged in a random half of the sentences.

    Args:
        gold, first, second: as in :func:`evaluate`.
        samples: default 10,000.
        seed: of the exchanges (default 0).

    Raises:
        ValueError: samples < 1, or no sentence.

    Example:
        >>> compare([["我们", "爱"]], [["我", "们", "爱"]], [["我们", "爱"]], samples=99).difference
        0.6

    Reference: E. Noreen, Computer-Intensive Methods for Testing Hypotheses, 1989.
    """
    _check_samples(samples)
    pair = [_some(sentence_counts(gold, side)) for side in (first, second)]
    totals = [counts.sum(axis=0).astype(np.float64) for counts in pair]
    difference = float(_f1(totals[1]) - _f1(totals[0]))
    exchange = (pair[1] - pair[0]).astype(np.float64)
    exchange = exchange[exchange.any(axis=1)]  # where both agree, an exchange changes nothing
    generator = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, samples, 256):
        size = min(256, samples - start)
        moved = generator.integers(2, size=(size, len(exchange)), dtype=np.int8) @ exchange
        delta = np.abs(_f1(totals[1] - moved) - _f1(totals[0] + moved))
        extreme += int((delta >= abs(difference) - 1e-12).sum())
    return Comparison(difference, (1 + extreme) / (1 + samples))


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")


def _some(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    if not len(counts):
        raise ValueError("gold must have at least one sentence, got none")
    return counts


def _f1(counts: NDArray[Any]) -> Any:
    total = counts[..., 1] + counts[..., 2]
    return 2 * counts[..., 0] / np.maximum(total, 1)


# Tables


class _Model(Protocol):
    def cut_many(self, texts: Sequence[str], /) -> Sequence[Sequence[str]]: ...


def matrix(
    models: Mapping[str, _Model | Callable[[str], Sequence[str]]],
    tests: Mapping[str, Corpus],
    vocabularies: Mapping[str, Vocabulary] | None = None,
) -> dict[str, dict[str, Scores]]:
    """Every model on every test set: scores by the model's name, then by the test set's.

    Args:
        models: objects with ``cut_many``, such as a Segmenter, or functions from a text to its words.
        tests: gold corpora; a model sees each sentence's text, with its spaces where the corpus knows them.
        vocabularies: of the models' training sets, by the model's name (default None: no OOV scores).

    Example:
        >>> matrix({"characters": list}, {"tiny": [["我", "爱", "你"]]})["characters"]["tiny"].f1
        1.0
    """
    gold = {
        name: [s if isinstance(s, Sentence) else Sentence(s) for part in _by_key(corpus, name).values() for s in part]
        for name, corpus in tests.items()
    }
    table: dict[str, dict[str, Scores]] = {}
    for name, model in models.items():
        cut_many = getattr(model, "cut_many", None)
        vocabulary = (vocabularies or {}).get(name)
        table[name] = {}
        for test, sentences in gold.items():
            texts = [sentence.text for sentence in sentences]
            words = cut_many(texts) if cut_many else [model(text) for text in texts]  # type: ignore[operator]
            table[name][test] = evaluate(sentences, words, vocabulary)
    return table
