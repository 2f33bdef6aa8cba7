"""Corpora prepared alike for every system, scores on them, and text that is made up; measures nothing."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from harness import MissingError

from cws_multidomain import Segmenter, evaluate, read_corpus
from cws_multidomain.preparation import (
    alternate_blocks,
    collapse_runs,
    convert,
    expand_runs,
    replace_words,
    without_duplicates,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

Words = list[str]
Cut = Callable[[list[str]], Sequence[Sequence[str]]]

CLOSED = ("SXU", "MSR10", "PKU10", "Zhuxian", "GSD")  # five criteria of their own
TREEBANKS = ("GSD", "HK", "CFL", "PUD")  # one criterion, four domains
ALL = (*CLOSED, "HK", "CFL", "PUD")


@dataclass(frozen=True)
class Set:
    """A training set with its runs of digits and Latin letters collapsed, and a test set as it is written."""

    name: str
    train: list[Words]
    test: list[Words]

    @cached_property
    def collapsed(self) -> list[Words]:
        return [collapse_runs(words) for words in self.test]

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        return frozenset(itertools.chain.from_iterable(self.train))

    @property
    def words(self) -> int:
        return sum(map(len, self.train))

    @property
    def characters(self) -> int:
        return sum(len(word) for words in self.train for word in words)


@dataclass(frozen=True)
class Result:
    """F1 in % on the text as it is written; recall in % of the words that training had not, runs collapsed."""

    f1: float
    oov_recall: float
    words: list[Words]

    def __str__(self) -> str:
        return f"{self.f1:.2f} ({self.oov_recall:.1f})"


def judge(test: Set, cut: Cut, vocabulary: Iterable[str] = ()) -> Result:
    """What `cut` makes of a test set: it sees what training saw, runs collapsed, and answers for the text as it is."""
    cuts = cut(["".join(words) for words in test.collapsed])
    words = [expand_runs(list(c), "".join(gold)) for c, gold in zip(cuts, test.test, strict=True)]
    recall = evaluate(test.collapsed, [list(c) for c in cuts], vocabulary or test.vocabulary).oov_recall
    return Result(100 * evaluate(test.test, words).f1, 100 * (recall or 0.0), words)


def judge_text(test: Set, cut: Cut) -> Result:
    """The same for a system that is used as it comes, on the text as it is written."""
    words = [list(c) for c in cut(["".join(words) for words in test.test])]
    scores = evaluate(test.test, words, test.vocabulary)
    return Result(100 * scores.f1, 100 * (scores.oov_recall or 0.0), words)


def one_by_one(cut: Callable[[str], Iterable[str]]) -> Cut:
    return lambda texts: [list(cut(text)) for text in texts]


def jieba_words() -> Path:
    """The word list within jieba: 349,046 words with counts, MIT."""
    import jieba

    return Path(jieba.__file__).with_name("dict.txt")


def jieba_lcut() -> Callable[..., list[str]]:
    import jieba

    jieba.setLogLevel(logging.ERROR)
    jieba.initialize()
    return jieba.lcut  # type: ignore[no-any-return]


# --- the corpora ---


def folder(data: str | None) -> Path:
    path = Path(data or "", "cws")
    if data is None or not path.is_dir():
        raise MissingError("this needs --data: a folder with cws/sxu, cws/icwb2, cws/splits10, cws/zhuxian and cws/ud")
    return path


@lru_cache(maxsize=1)
def corpora(data: str | None) -> dict[str, Set]:
    """All sets. What a test or development set holds is dropped from training; HK and PUD are made simplified.

    A file of CoNLL from before Universal Dependencies 2 (GSD's training set) has ASCII full stops, the test set not.
    """
    root = folder(data)
    read = lambda path: [list(s) for s in read_corpus(root / path)]  # noqa: E731
    found = {}
    for name, train, dev, test in (
        ("SXU", "sxu/train.txt.xz", None, "sxu/test.txt"),
        ("MSR10", "splits10/msr_dev.xz", None, "icwb2/msr_test_gold.utf8"),
        ("PKU10", "splits10/pku_dev", None, "icwb2/pku_test_gold.utf8"),
        ("Zhuxian", "zhuxian/train.zhuxian.wordpos", "zhuxian/dev.zhuxian.wordpos", "zhuxian/test.zhuxian.wordpos"),
        ("GSD", "ud/udc_train.conll.xz", "ud/GSDSimp_zh_gsdsimp-ud-dev.conllu.xz",
         "ud/GSDSimp_zh_gsdsimp-ud-test.conllu.xz"),
    ):  # fmt: skip
        learnt, asked = read(train), read(test)
        if name == "GSD":
            learnt = [list(s) for s in replace_words(learnt, {".": "。"})]
        kept = without_duplicates(learnt, asked, *([read(dev)] if dev else []))
        found[name] = Set(name, [collapse_runs(list(s)) for s in kept], asked)
    for name in ("HK", "CFL", "PUD"):
        even, odd = alternate_blocks(read(f"ud/{name}_zh_{name.lower()}-ud-test.conllu.xz"))
        if name != "CFL":
            even, odd = (simplified(half) for half in (even, odd))
        found[name] = Set(name, [collapse_runs(s) for s in even], odd)
    return found


def simplified(sentences: list[Words]) -> list[Words]:
    try:
        import opencc
    except ImportError:
        raise MissingError("HK and PUD are in traditional characters: install opencc") from None
    return [list(s) for s in convert(sentences, opencc.OpenCC("t2s").convert)]


def traditional(data: str | None, name: str) -> Set:
    """HK or PUD as they are written."""
    path = folder(data) / f"ud/{name}_zh_{name.lower()}-ud-test.conllu.xz"
    even, odd = alternate_blocks([list(s) for s in read_corpus(path)])
    return Set(f"{name}, traditional", even, odd)


# --- text ---

_LATIN = (
    "the", "of", "model", "data", "Python", "user", "GPU", "search", "token", "London", "email", "price", "iPhone",
    "net", "version", "and", "to", "in", "for",
)  # fmt: skip
_TEMPLATES = (
    "{}{}年{}月，{}{}。", "{}：“{}{}。”", "（{}{}）", "{}{}%的{}", "{}、{}和{}；", "{}/{}", "{}？{}！",
    "https://www.example.com/{}/{}", "user{}@example.com", "{} {}", "👍🏽{}", "《{}》{}",
)  # fmt: skip


def made_up(characters: int, seed: int = 0) -> list[Words]:
    """Sentences of words of the shipped model's dictionary, each drawn by its count, with digits and English between.

    Nobody wrote them: they are as hard to look up as text is, and mean nothing.
    """
    words, chances = _dictionary()
    generator, chance = np.random.default_rng(seed), random.Random(seed)
    sentences: list[Words] = []
    size = 0
    while size < characters:
        drawn = np.searchsorted(chances, generator.random(4096)).tolist()
        at = 0
        while at < len(drawn) - 32 and size < characters:
            length = 1 + int(chance.expovariate(1 / 12)) % 30
            sentence = [words[k] for k in drawn[at : at + length]]
            at += length
            if chance.random() < 0.3:
                sentence.insert(chance.randrange(len(sentence) + 1), chance.choice((str(chance.randrange(3000)), "，")))
            if chance.random() < 0.1:
                sentence.insert(chance.randrange(len(sentence) + 1), chance.choice(_LATIN))
            sentence.append(chance.choice("。。。。？！；"))
            sentences.append(sentence)
            size += sum(map(len, sentence))
    return sentences


@lru_cache(maxsize=1)
def _dictionary() -> tuple[Words, NDArray[np.float64]]:
    """The words, and the sums of the chances up to each."""
    counts = Segmenter.load().dictionary()
    words = [word for word in counts if not word.isascii()]
    sums = np.cumsum([counts[word] for word in words], dtype=np.float64)
    return words, sums / sums[-1]


def lines_of(sentences: Sequence[str], size: int, seed: int = 0) -> list[str]:
    """Lines of 1 to 10,000 characters, `size` bytes of UTF-8 in all, of slices of sentences: hardly one is met twice.

    A twentieth of them is mostly ASCII, as in logs and pages of code.
    """
    chance, lines, total = random.Random(seed), [], 0
    while total < size:
        wanted = min(int(chance.lognormvariate(3.6, 1.2)) + 1, 10_000)
        parts: list[str] = []
        length = 0
        mostly_ascii = chance.random() < 0.05
        while length < wanted:
            if mostly_ascii and chance.random() < 0.8:
                part = " ".join(chance.choices(_LATIN, k=6)) + f" {chance.randrange(10**6)} "
            elif chance.random() < 0.02:
                a, b = chance.choice(sentences)[:4], chance.choice(sentences)[:3]
                part = chance.choice(_TEMPLATES).format(chance.randrange(2100), a, chance.randrange(12), b, a)
            else:
                whole = chance.choice(sentences)
                begin = chance.randrange(len(whole)) if chance.random() < 0.7 else 0
                part = whole[begin : begin + chance.randrange(8, 80)]
            parts.append(part)
            length += len(part)
        line = "".join(parts)[:wanted].replace("\n", " ") or "。"
        lines.append(line)
        total += len(line.encode()) + 1
    return lines
