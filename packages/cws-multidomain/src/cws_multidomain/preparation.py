"""Preparing corpora: runs of digits, scripts, halves of a treebank, and what a test set shares with a training set."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .corpus import Corpus, Partial, Sentence, by_domain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "Leakage",
    "alternate_blocks",
    "collapse_runs",
    "convert",
    "expand_runs",
    "leakage",
    "replace_words",
    "without_duplicates",
]

_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_RUN = re.compile(r"[0-9]+|[A-Za-z]+|.", re.S)


def collapse_runs(sentence: Sequence[str], digit: str = "0", latin: str = "L") -> list[str]:
    """Half-width words in which each run of digits and each run of Latin letters is one character.

    A boundary inside of a run is lost. This is how the tenths of SIGHAN's training sets that circulate were prepared.

    Example:
        >>> collapse_runs(["１９９８年", "的", "ABC", "公司"])
        ['0年', '的', 'L', '公司']
    """
    text = "".join(sentence).translate(_HALF_WIDTH)
    ends = set(itertools.accumulate(map(len, sentence)))
    words: list[str] = []
    word = ""
    for run in _RUN.finditer(text):
        first = run[0][0]
        word += digit if "0" <= first <= "9" else latin if first.isascii() and first.isalpha() else first
        if run.end() in ends:
            words.append(word)
            word = ""
    return words


def expand_runs(words: Sequence[str], text: str) -> list[str]:
    """The words of a text, given those of what :func:`collapse_runs` makes of it.

    Raises:
        ValueError: words that are not of this text.

    Example:
        >>> expand_runs(["0年", "的", "L"], "1998年的ABC")
        ['1998年', '的', 'ABC']
    """
    ends = [0, *(run.end() for run in _RUN.finditer(text.translate(_HALF_WIDTH)))]
    cuts = [0, *itertools.accumulate(map(len, words))]
    if cuts[-1] != len(ends) - 1:
        raise ValueError(f"words must have the {len(ends) - 1} characters of the collapsed text, got {cuts[-1]}")
    return [text[ends[a] : ends[b]] for a, b in itertools.pairwise(cuts)]


def replace_words(sentences: Iterable[Sequence[str]], table: Mapping[str, str]) -> list[Sentence]:
    """The sentences with some words exchanged for others, such as the full stop of one treebank for another's.

    Example:
        >>> replace_words([["好", "."]], {".": "。"})[0].words
        ('好', '。')
    """
    return [replace(s, words=tuple(table.get(word, word) for word in s)) for s in map(_as_sentence, sentences)]


def convert(sentences: Iterable[Sequence[str]], converter: Callable[[str], str]) -> list[Sentence]:
    """The sentences in another script: ``converter`` (such as ``opencc.OpenCC("t2s").convert``) sees whole sentences.

    Where it changes a sentence's length, boundaries are lost, and that sentence is converted word by word.

    Example:
        >>> convert([["ab", "c"]], str.upper)[0].words
        ('AB', 'C')
    """
    result = []
    for sentence in map(_as_sentence, sentences):
        text = "".join(sentence.words)
        new = converter(text)
        if len(new) == len(text):
            ends = list(itertools.accumulate(map(len, sentence.words), initial=0))
            words = [new[a:b] for a, b in itertools.pairwise(ends)]
        else:
            words = [converter(word) for word in sentence.words]
        result.append(replace(sentence, words=tuple(words)))
    return result


def _as_sentence(sentence: Sequence[str]) -> Sentence:
    return sentence if isinstance(sentence, Sentence) else Sentence(sentence)


def alternate_blocks(sentences: Iterable[Any], size: int = 10) -> tuple[list[Any], list[Any]]:
    """The sentences of even and those of odd blocks: halves of a treebank that has no training part.

    Args:
        sentences: in their own order.
        size: sentences in a block (default 10).

    Raises:
        ValueError: size < 1.

    Example:
        >>> alternate_blocks(range(6), 2)
        ([0, 1, 4, 5], [2, 3])
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    halves: tuple[list[Any], list[Any]] = ([], [])
    for index, sentence in enumerate(sentences):
        halves[index // size % 2].append(sentence)
    return halves


@dataclass(frozen=True, slots=True)
class Leakage:
    """What a test set shares with a training set."""

    sentences: int  # of the test set
    exact: int  # that are in the training set, character by character
    collapsed: int  # that are in it once digits and Latin letters are collapsed and widths folded
    n: int
    long_sentences: int  # of the test set, with at least n characters
    overlapping: int  # that share at least one n-gram of characters with the training set
    ngrams: int  # of the test set
    shared_ngrams: int  # that are in the training set
    examples: tuple[str, ...]  # the first sentences of `collapsed`

    def __str__(self) -> str:
        return (
            f"{self.exact} of {self.sentences} test sentences are in the training set, {self.collapsed} once digits "
            f"and Latin letters are collapsed; {self.overlapping} of {self.long_sentences} long ones share a "
            f"{self.n}-gram; {self.shared_ngrams} of {self.ngrams} {self.n}-grams are shared"
        )


def leakage(train: Corpus, test: Corpus, n: int = 16) -> Leakage:
    """Report the sentences, and the n-grams of characters, that a test set shares with a training set.

    Args:
        train, test: corpora; see :func:`by_domain`.
        n: characters of an n-gram (default 16: longer than names and formulas).

    Raises:
        ValueError: n < 1, or an empty corpus.

    Example:
        >>> leakage([["一", "二"], ["三"]], [["一二"], ["四"]]).exact
        1
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    texts = [
        [sentence.text for part in by_domain(corpus, name).values() for sentence in part]
        for name, corpus in (("train", train), ("test", test))
    ]
    plain = [["".join(text.split()) for text in part] for part in texts]
    folded = [[_collapsed(text) for text in part] for part in plain]
    known = set(plain[0])
    known_folded = set(folded[0])
    doubles = [text for text, key in zip(plain[1], folded[1], strict=True) if key in known_folded]
    seen = np.unique(_ngrams(folded[0], n)[0])
    keys, owner = _ngrams(folded[1], n)
    shared = np.isin(keys, seen, kind="sort")
    return Leakage(
        sentences=len(plain[1]),
        exact=sum(text in known for text in plain[1]),
        collapsed=len(doubles),
        n=n,
        long_sentences=sum(len(text) >= n for text in folded[1]),
        overlapping=len(np.unique(owner[shared])),
        ngrams=len(keys),
        shared_ngrams=int(shared.sum()),
        examples=tuple(doubles[:10]),
    )


def _collapsed(text: str) -> str:
    return re.sub("[A-Za-z]+", "L", re.sub("[0-9]+", "0", text.translate(_HALF_WIDTH)))


def _ngrams(texts: Sequence[str], n: int) -> tuple[NDArray[np.uint64], NDArray[np.intp]]:
    """A 64-bit hash of every n-gram of characters, and the text that each is from."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    count = max(len(codes) - n + 1, 0)
    keys = np.zeros(count, np.uint64)
    for i in range(n):
        keys = (keys ^ codes[i : i + count]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    lengths = np.fromiter(map(len, texts), np.intp, len(texts))
    owner = np.repeat(np.arange(len(texts)), lengths)
    within = owner[:count] == owner[n - 1 :][:count]
    return keys[within], owner[:count][within]


def without_duplicates(train: Corpus, *tests: Corpus) -> list[Sentence | Partial]:
    """The training sentences that no test set holds, digits and Latin letters collapsed and widths folded.

    Example:
        >>> len(without_duplicates([["1998", "年"], ["三"]], [["2005年"]]))
        1
    """
    known = {
        _collapsed("".join(sentence.text.split()))
        for test in tests
        for part in by_domain(test, "test").values()
        for sentence in part
    }
    return [
        sentence
        for part in by_domain(train, "train").values()
        for sentence in part
        if _collapsed("".join(sentence.text.split())) not in known
    ]
