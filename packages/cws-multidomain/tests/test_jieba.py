"""compat.jieba by itself: the definition of the dictionary's cut, dictionaries, user words, bad input."""

from __future__ import annotations

import io
import math
import re
from itertools import product
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cws_multidomain import Segmenter
from cws_multidomain.compat import jieba
from cws_multidomain.compat.jieba import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

WORDS = {"北京": 30, "大学": 20, "北京大学": 5, "大学生": 8, "学生": 40, "北": 3, "生活": 9, "京": 2, "T恤": 4, "T": 1}

SHARED = Tokenizer(WORDS)


def cuts(text: str) -> list[list[str]]:
    """All ways to cut a text."""
    every = []
    for edges in product([False, True], repeat=len(text) - 1):
        tokens = [text[0]]
        for character, edge in zip(text[1:], edges, strict=True):
            if edge:
                tokens.append(character)
            else:
                tokens[-1] += character
        every.append(tokens)
    return every


@given(st.text("北京大学生活", min_size=1, max_size=8))
def test_the_cut_is_the_most_probable_one_of_all_cuts(text: str) -> None:
    total = sum(WORDS.values())

    def score(tokens: list[str]) -> float:
        counts = [WORDS.get(token, 1 if len(token) == 1 else 0) for token in tokens]
        return sum(math.log(count / total) if count else -math.inf for count in counts)

    best = max(map(score, cuts(text)))
    assert score(Tokenizer(WORDS).lcut(text, HMM=False)) == pytest.approx(best, rel=1e-12)


def test_the_first_word_is_the_longest_of_equally_probable_ones() -> None:
    assert Tokenizer([("一一", 1), ("一", 1)]).lcut("一一一", HMM=False) == ["一一", "一"]
    assert Tokenizer([("一一", 1), ("二", 0)]).lcut("一一一", HMM=False) == ["一一", "一"]


@settings(max_examples=300)
@given(st.text(st.sampled_from("北京大学生T恤ab12+-., \r\n\t\u3000，😀\ud800\ufeff") | st.characters(), max_size=30))
def test_joined_tokens_are_the_text(text: str) -> None:
    tokenizer = Tokenizer(WORDS)
    tokens = tokenizer.lcut(text, HMM=False)
    assert "".join(tokens) == text
    assert all(text[start:end] == token for token, start, end in tokenizer.tokenize(text, HMM=False))
    assert all(text[start:end] == token for token, start, end in tokenizer.tokenize(text, "search", HMM=False))
    assert set(tokenizer.lcut_for_search(text, HMM=False)) >= set(tokens)


@pytest.mark.parametrize("rest", [b"", b"\xff", b"\x81"])
def test_bytes_that_are_no_utf8_are_gbk_and_the_rest_is_left_out(rest: bytes) -> None:
    tokenizer = Tokenizer(WORDS)
    assert tokenizer.lcut("北京大学".encode("gbk") + rest, HMM=False) == ["北京大学"]
    assert tokenizer.lcut_for_search("学生生活".encode("gbk") + rest, HMM=False) == ["学生", "生活"]
    assert tokenizer.suggest_freq("北京大学".encode("gbk") + rest) == tokenizer.suggest_freq("北京大学")
    tokenizer.add_word("大学生活".encode("gbk") + rest, 100)
    assert tokenizer.get_FREQ("大学生活") == 100


def test_letters_and_digits_join_only_if_they_are_words_of_one_character() -> None:
    tokenizer = Tokenizer(WORDS)
    assert tokenizer.lcut("a1T恤5g", HMM=False) == ["a1", "T恤", "5g"]
    assert tokenizer.lcut("a.b-1", HMM=False) == ["a", ".", "b", "-", "1"]


def test_whitespace_stays_with_one_token_for_a_line_end() -> None:
    assert Tokenizer(WORDS).lcut(" 北京\r\n\n大学\u3000", HMM=False) == [" ", "北京", "\r\n", "\n", "大学", "\u3000"]


def test_all_words_overlap_and_singles_stay_where_no_word_is() -> None:
    tokens = Tokenizer(WORDS).lcut("去北京大学生活", cut_all=True)
    assert tokens == ["去", "北京", "北京大学", "大学", "大学生", "学生", "生活"]


def test_searching_gives_the_words_inside_a_word_first() -> None:
    tokenizer = Tokenizer({**WORDS, "北京大学生": 100000})
    assert tokenizer.lcut_for_search("北京大学生", HMM=False) == ["北京", "大学", "学生", "大学生", "北京大学生"]
    assert list(tokenizer.tokenize("在北京大学生", "search", HMM=False)) == [
        ("在", 0, 1),
        ("北京", 1, 3),
        ("大学", 3, 5),
        ("学生", 4, 6),
        ("大学生", 3, 6),
        ("北京大学生", 1, 6),
    ]


def test_an_added_word_is_cut_whole_and_a_deleted_one_is_not() -> None:
    tokenizer = Tokenizer(WORDS)
    assert tokenizer.lcut("大学生活", HMM=False) == ["大学", "生活"]
    tokenizer.add_word("大学生活")
    assert tokenizer.lcut("大学生活", HMM=False) == ["大学生活"]
    tokenizer.del_word("大学生活")
    assert tokenizer.lcut("大学生活", HMM=False) == ["大学", "生活"]
    assert tokenizer.get_FREQ("大学生活") == 0
    assert tokenizer.get_FREQ("大") == 0
    assert tokenizer.get_FREQ("学大", 7) == 7


def test_a_suggested_count_joins_or_splits() -> None:
    tokenizer = Tokenizer(WORDS)
    tokenizer.suggest_freq("京大", tune=True)
    assert tokenizer.lcut("京大", HMM=False) == ["京大"]
    tokenizer.suggest_freq(("京", "大"), tune=True)
    assert tokenizer.lcut("京大", HMM=False) == ["京", "大"]
    assert tokenizer.suggest_freq("北京") == WORDS["北京"] + 1


def test_dictionaries_come_from_files_pairs_and_mappings(tmp_path: Path) -> None:
    path = tmp_path / "dict.txt"
    path.write_bytes("\ufeff北京 30 ns\r\n\n大学 20\n".encode())
    for source in (path, str(path), [("北京", 30), ("大学", 20)], {"北京": 30, "大学": 20}):
        tokenizer = Tokenizer(source)
        assert tokenizer.lcut("在北京大学", HMM=False) == ["在", "北京", "大学"]
        assert tokenizer.get_FREQ("大学") == 20
    tokenizer = Tokenizer(WORDS)
    tokenizer.add_word("在北京")
    tokenizer.set_dictionary(path)
    assert tokenizer.lcut("在北京大学", HMM=False) == ["在", "北京", "大学"]


def test_a_user_dictionary_may_leave_out_count_and_tag(tmp_path: Path) -> None:
    text = "\ufeff云计算 5\n创新办 3 i\neasy_install 3 eng\n好用 a\nEdu Trust认证 2000\n\n台中\n"
    path = tmp_path / "user.txt"
    path.write_text(text, encoding="utf-8")
    for source in (path, io.BytesIO(text.encode()), io.StringIO(text), text.splitlines()):
        tokenizer = Tokenizer(WORDS)
        tokenizer.load_userdict(source)
        assert tokenizer.get_FREQ("云计算") == 5
        assert tokenizer.get_FREQ("Edu Trust认证") == 2000
        assert tokenizer.user_word_tag_tab == {"创新办": "i", "easy_install": "eng", "好用": "a"}
        assert tokenizer.lcut("云计算在台中好用", HMM=False) == ["云计算", "在", "台中", "好用"]


def test_more_words_than_the_first_table_has_room_for_are_all_found() -> None:
    words = {chr(0x4E00 + i) + chr(0x4E00 + j): i + j + 1 for i in range(100) for j in range(70)}
    tokenizer = Tokenizer(words)
    tokenizer.add_word("\U00020000\U00020001", 3)
    assert all(tokenizer.get_FREQ(word) == count for word, count in words.items())
    assert tokenizer.get_FREQ("\U00020000\U00020001") == 3
    assert tokenizer.get_FREQ("\U00020000") == 0
    assert tokenizer.get_FREQ("\U00020001") is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\xe5\x8c\x97\xe4\xba\xac", "line 2: a dictionary's line must be 'word count [tag]', got '北京'"),
        (b"a b", "line 2: a dictionary's line must be 'word count [tag]', got 'a b'"),
        (b"a -1", "line 2: a dictionary's line must be 'word count [tag]', got 'a -1'"),
        (b"\xb1\xb1 3", "line 2: a dictionary must be UTF-8"),
        (b"a 9223372036854775808", "the count of 'a' must be from 0 to 9223372036854775807"),
        (b"a 9223372036854775807", "must add up to at most 9223372036854775807"),
    ],
)
def test_a_bad_dictionary_names_its_line_and_changes_nothing(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "dict.txt"
    path.write_bytes("大学 3\n".encode() + line + b"\n")
    tokenizer = Tokenizer(WORDS)
    with pytest.raises(ValueError, match=re.escape(message)):
        tokenizer.initialize(path)
    assert tokenizer.get_FREQ("北京") == WORDS["北京"]


def test_bad_arguments_are_named() -> None:
    tokenizer = Tokenizer(WORDS)
    with pytest.raises(TypeError, match="a text must be a str or bytes of UTF-8 or GBK, got NoneType"):
        tokenizer.lcut(None, HMM=False)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unicode_sentence must be a str, got bytes"):
        tokenizer.tokenize(b"")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode must be 'default' or 'search', got 'fine'"):
        tokenizer.tokenize("", "fine")
    with pytest.raises(ValueError, match="a word must have a character"):
        tokenizer.add_word("")
    with pytest.raises(ValueError, match="the count of '北' must be from 0"):
        tokenizer.add_word("北", -1)
    with pytest.raises(ValueError, match="all counts must add up to at most"):
        tokenizer.add_word("北", 2**63 - 1)
    with pytest.raises(FileNotFoundError, match="dictionary_path must be a file, got 'nowhere'"):
        tokenizer.set_dictionary("nowhere")
    assert tokenizer.get_FREQ("北") == WORDS["北"]
    assert tokenizer.lcut("北京".encode(), HMM=False) == ["北京"]


# with the model


@pytest.fixture
def model() -> Tokenizer:
    return Tokenizer(WORDS)


@settings(max_examples=200)
@given(st.text(st.sampled_from("北京大学生T恤ab12+-., \r\n\t\u3000，😀\ufeff") | st.characters(), max_size=30))
def test_the_model_cuts_and_whitespace_stays(text: str) -> None:
    tokens = SHARED.lcut(text)
    assert "".join(tokens) == text
    assert [token for token in tokens if not token.isspace()] == SHARED._model().cut(text)
    assert all(len(token) == 1 or token == "\r\n" for token in tokens if token.isspace())
    assert list(SHARED.cut(text)) == tokens
    assert all(text[start:end] == token for token, start, end in SHARED.tokenize(text, "search"))


def test_an_added_word_has_the_least_reward_that_the_model_needs(model: Tokenizer) -> None:
    words = [
        "北京大学生活",
        "大学生活费",
        "京大",
        "学生T恤",
        "量子比特纠缠态",
        "北京大学生活费",
        "云计算",
        "e-mail地址",
    ]
    for word in words:
        model.add_word(word)
    assert [model.lcut(word) for word in words] == [[word] for word in words]
    costs = model._model().words
    assert costs.keys() <= set(words)
    for word, cost in costs.items():
        assert isinstance(cost, float)
        other = Segmenter.load()
        other.add_words({**costs, word: cost + 1 / 16})
        assert other.cut(word) != [word], "a sixteenth of a nat less is too little"


def test_a_count_moves_the_reward_by_its_logarithm() -> None:
    costs = []
    for count in (None, 1, 100):
        tokenizer = Tokenizer(WORDS)
        enough = tokenizer.suggest_freq("生活费用表")
        tokenizer.add_word("生活费用表", count)
        tokenizer.lcut("")
        costs.append((enough, tokenizer._model().words["生活费用表"]))
    (enough, least), (_, once), (_, often) = costs
    assert once == pytest.approx(least + math.log(enough), abs=1e-5)
    assert often == pytest.approx(once - math.log(100), abs=1e-5)


def test_count_0_forbids_a_word_to_the_model(model: Tokenizer) -> None:
    model.add_word("生活费用表")
    assert model.lcut("生活费用表") == ["生活费用表"]
    model.del_word("生活费用表")
    model.del_word("的")  # of one character: it stays a token, as in jieba
    assert model.lcut("生活费用表") != ["生活费用表"]
    model.add_word("大 学")  # has whitespace, so that it can be no token, as in jieba
    assert model.lcut("大 学") == ["大", " ", "学"]
    model.suggest_freq(("大", "学"), tune=True)
    assert model.lcut("大学") == ["大", "学"]


def test_many_words_are_added_in_one_go(model: Tokenizer) -> None:
    words = [chr(0x4E00 + 37 * i) + chr(0x4E00 + 53 * i % 20000) + chr(0x5000 + i) for i in range(500)]
    model.load_userdict(words)
    assert [model.lcut(word) for word in words] == [[word] for word in words]


def test_searching_finds_words_inside_the_tokens_of_the_model(model: Tokenizer) -> None:
    model.add_word("北京大学生")
    assert model.lcut_for_search("北京大学生") == ["北京", "大学", "学生", "大学生", "北京大学生"]


def test_threads_give_the_same_tokens(model: Tokenizer) -> None:
    text = "我们在北京大学学习。\r\n\n 他来了\x0b吧\n"
    expected = model.lcut(text)
    assert jieba.lcut(text) == expected
    jieba.enable_parallel(2)
    try:
        assert jieba.lcut(text) == expected
    finally:
        jieba.disable_parallel()


def test_the_default_dictionary_is_that_of_the_model() -> None:
    counts = Segmenter.load().dictionary()
    tokenizer = Tokenizer()
    for word in list(counts)[:: len(counts) // 100]:
        assert tokenizer.get_FREQ(word) == counts[word]
    assert tokenizer.lcut("北京大学", HMM=False)


def test_the_module_has_the_functions_of_its_default_tokenizer() -> None:
    assert isinstance(jieba.dt, Tokenizer)
    for name in jieba.__all__:
        assert getattr(jieba, name) is not None
    jieba.setLogLevel(20)
