"""Against the packages whose interfaces and results we promise."""

from __future__ import annotations

import importlib
import random
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cws_multidomain.compat.jieba import Tokenizer

if TYPE_CHECKING:
    from types import ModuleType

DATA = Path(__file__).parents[4] / "shared" / "data" / "cws"


def peer(name: str) -> ModuleType:
    """A module of another package, or a skip; what it warns of when it is imported is its own affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(name.partition(".")[0], reason=f"{name.partition('.')[0]} is not installed (group peers)")
        return importlib.import_module(name)


# jieba


@pytest.fixture(scope="module")
def jieba() -> ModuleType:
    module = peer("jieba")
    module.setLogLevel(60)
    module.initialize()
    return module


@pytest.fixture(scope="module")
def jieba_dictionary(jieba: ModuleType) -> Path:
    return Path(str(jieba.__file__)).with_name("dict.txt")


@pytest.fixture(scope="module")
def jieba_texts(jieba: ModuleType) -> list[str]:
    """Dictionary words, their parts, and signs that no newspaper has."""
    chance = random.Random(0)
    words = [word for word in jieba.dt.FREQ if jieba.dt.FREQ[word]]
    odd = [word for word in words if not "\u4e00" <= word[0] <= "\u9fd5" or not "\u4e00" <= word[-1] <= "\u9fd5"]
    signs = "abZ09+#&._%-０ａ，。！ \t\r\n\x0b\x1c\x85\xa0\u2028\u3000\u200b\ufeff\ud800é😀𠀀㐀\u9fd5\u9fd6鿿後"
    texts = ["", " ", "\r\n", "\n\r", "a", "5g", "Tom/Amy", "B超", "c++", "C++和c#，AT&T", "\ufeff北京"]
    for _ in range(6000):
        kinds = chance.choices([words, odd, signs, ["\r\n", "3.14", "100%", "foo-bar_9"]], [6, 2, 4, 1], k=12)
        parts = [chance.choice(kind) for kind in kinds]
        texts.append("".join(part[: chance.randint(1, 4)] if chance.random() < 0.3 else part for part in parts))
    return texts


def same(ours: Any, theirs: Any, texts: list[str], **options: Any) -> None:
    for text in texts:
        assert list(ours(text, **options)) == list(theirs(text, **options))


def same_in_all_modes(ours: Any, theirs: Any, texts: list[str]) -> None:
    same(ours.cut, theirs.cut, texts, HMM=False)
    same(ours.cut, theirs.cut, texts, cut_all=True)
    same(ours.cut_for_search, theirs.cut_for_search, texts, HMM=False)
    same(ours.tokenize, theirs.tokenize, texts, HMM=False)
    same(ours.tokenize, theirs.tokenize, texts, mode="search", HMM=False)


def test_jieba_on_its_dictionary_and_noise(jieba: ModuleType, jieba_dictionary: Path, jieba_texts: list[str]) -> None:
    same_in_all_modes(Tokenizer(jieba_dictionary), jieba.dt, jieba_texts)


@pytest.mark.parametrize("name", ["msr", "pku"])
def test_jieba_on_the_second_bakeoff(jieba: ModuleType, jieba_dictionary: Path, name: str) -> None:
    path = DATA / "icwb2" / f"{name}_test.utf8"
    if not path.exists():
        pytest.skip(f"{path.name} of the second SIGHAN bakeoff is not in shared/data/cws/icwb2")
    lines = path.read_text(encoding="utf-8").splitlines()
    ours = Tokenizer(jieba_dictionary)
    same(ours.cut, jieba.dt.cut, lines, HMM=False)
    same(ours.cut, jieba.dt.cut, lines, cut_all=True)
    same(ours.tokenize, jieba.dt.tokenize, lines[::4], mode="search", HMM=False)


def test_jieba_with_user_words(jieba: ModuleType, jieba_dictionary: Path, jieba_texts: list[str]) -> None:
    chance = random.Random(1)
    ours, theirs = Tokenizer(jieba_dictionary), jieba.Tokenizer()
    for text in jieba_texts[-600:]:
        at = chance.randrange(len(text))
        word = text[at : at + chance.randint(1, 9)]
        for segment in (word, [word[: len(word) // 2], word[len(word) // 2 :]]):
            tune = chance.random() < 0.3
            assert ours.suggest_freq(segment, tune) == theirs.suggest_freq(segment, tune)
        freq = chance.choice([None, None, 0, 1, "20", 10**7])
        ours.add_word(word, freq)
        theirs.add_word(word, freq)
        assert ours.get_FREQ(word) == theirs.FREQ[word]
        same(ours.cut, theirs.cut, [text], HMM=False)
    user = ["云计算 5", "凱特琳 nz", "Edu Trust认证 2000", "创新办 3 i", "a b 3 4", "大 数据 x"]
    ours.load_userdict(user)
    theirs.load_userdict(user)
    assert ours.user_word_tag_tab == theirs.user_word_tag_tab
    same_in_all_modes(ours, theirs, [*(line.replace(" ", "") for line in user), *jieba_texts[-1000:]])


def test_rjieba_agrees(jieba_dictionary: Path, jieba_texts: list[str]) -> None:
    rjieba = peer("rjieba")
    han = ["".join(filter(lambda c: "\u4e00" <= c <= "\u9fd5", text)) for text in jieba_texts]
    same(Tokenizer(jieba_dictionary).lcut, lambda text, HMM: rjieba.cut(text, HMM), han, HMM=False)
