"""Domains out of raw text: what is induced, what is learnt, what stays as it was, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cws_multidomain import Segmenter, adapt, train
from cws_multidomain._induction import Criteria, induce

if TYPE_CHECKING:
    from pathlib import Path


def language(names: list[str], count: int, seed: int) -> list[list[str]]:
    """Sentences about people, who do things to each other."""
    random = np.random.default_rng(seed)
    verbs, ends = ["看见", "问", "打", "帮助", "笑"], ["了", "着", "过"]

    def pick(of: list[str]) -> str:
        return of[int(random.integers(len(of)))]

    return [[pick(names), pick(verbs), pick(ends), pick(names), "。"] for _ in range(count)]


@pytest.fixture(scope="module")
def base() -> Segmenter:
    names = ["张三", "李四", "王小二", "老师", "学生", "我", "他"]
    return train({"news": language(names, 200, 0), "talk": language(names, 200, 1)}, epochs=5)


NOVEL = ["碧瑶", "鬼王宗主", "青云门", "田不易", "陆雪琪", "我", "他"]


@pytest.fixture(scope="module")
def gold() -> list[list[str]]:
    return language(NOVEL, 300, 2)


@pytest.fixture(scope="module")
def adapted(base: Segmenter, gold: list[list[str]]) -> Segmenter:
    return adapt(base, ["".join(words) for words in gold], name="novel")


def test_words_are_induced_from_their_contexts() -> None:
    sentences = ["甲青云门乙", "丙青云门丁", "戊青云门己", "青云很高", "天青云门"]
    even = [np.full(len(s), 0.9, np.float32) for s in sentences]
    assert induce(sentences, even, Criteria(cohesion=0.7)) == {"青云门": 4}
    assert induce(sentences, even, Criteria(count=5, tokens=9)) == {}
    doubtful = [np.full(len(s), 0.1, np.float32) for s in sentences]
    assert induce(sentences, doubtful, Criteria(cohesion=0.7)) == {}


def test_words_are_induced_where_the_decoder_agrees_with_itself() -> None:
    sentences = ["山青云水"] * 4 + ["青云山"] * 2
    starts = [np.array([1, 1, 0, 1], np.float32)] * 4 + [np.array([1, 0, 1], np.float32)] * 2
    found = induce(sentences, starts, Criteria(count=99, tokens=6, consistency=0.9))
    assert found == {"青云": 6}
    assert induce(sentences, starts, Criteria(count=99, tokens=7)) == {}


def test_a_string_that_is_not_chinese_is_no_word() -> None:
    sentences = ["甲ab乙", "丙ab丁", "戊ab己", "庚ab辛"]
    assert induce(sentences, [np.ones(4, np.float32)] * 4, Criteria(cohesion=0.1)) == {}


def test_a_domain_without_labels_finds_its_words(base: Segmenter, adapted: Segmenter, gold: list[list[str]]) -> None:
    texts = ["".join(words) for words in language(NOVEL, 50, 3)]
    right = language(NOVEL, 50, 3)
    before = sum(a == b for a, b in zip(base.with_domain("general").cut_many(texts), right, strict=True))
    after = sum(a == b for a, b in zip(adapted.cut_many(texts), right, strict=True))
    assert after > before
    assert after >= 40
    report = adapted.info["adapted"][-1]
    assert report["name"] == adapted.domain == "novel"
    assert report["induced"] >= 4
    assert report["characters"] == sum(len(word) for words in gold for word in words)
    assert sum(report["base"].values()) == pytest.approx(1)


def test_the_base_stays_as_it_is(base: Segmenter, gold: list[list[str]]) -> None:
    data = base._model.data.tobytes()
    adapt(base, ["".join(words) for words in gold[:50]], name="novel")
    assert base._model.data.tobytes() == data
    assert base.domains == ("general", "news", "talk")


def test_other_domains_answer_as_before_where_no_new_word_is(base: Segmenter, adapted: Segmenter) -> None:
    texts = ["".join(words) for words in language(["张三", "李四", "王小二", "老师", "学生"], 50, 4)]
    new = adapted.dictionary().keys() - base.dictionary().keys()
    texts = [text for text in texts if not any(word in text for word in new)]
    assert len(texts) > 20
    for domain in ("news", "talk", "general"):
        assert adapted.with_domain(domain).cut_many(texts) == base.with_domain(domain).cut_many(texts)


def test_a_word_list_is_known_at_once(base: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "medicine.txt"
    path.write_text("阿司匹林\t120\n布洛芬\t80\n", encoding="utf-8")
    made = adapt(base, ["我问了阿司匹林。"], lexicon=path, name="medicine", rounds=0)
    assert made.cut("他问了布洛芬。") == ["他", "问", "了", "布洛芬", "。"]
    assert made.info["adapted"][-1]["lexicon"] == 2


def test_labels_tell_whether_it_helped_and_are_not_learnt_from(base: Segmenter, gold: list[list[str]]) -> None:
    texts = ["".join(words) for words in gold]
    told = adapt(base, texts, name="novel", dev=gold[:30]).info["adapted"][-1]
    assert told["f1_after"] > told["f1_before"]
    silent = adapt(base, texts, name="novel").info["adapted"][-1]
    assert silent["f1_after"] is None
    assert {**told, "f1_before": None, "f1_after": None} == silent


def test_the_same_text_gives_the_same_model(base: Segmenter, adapted: Segmenter, gold: list[list[str]]) -> None:
    again = adapt(base, ["".join(words) for words in gold], name="novel")
    assert again._model.data.tobytes() == adapted._model.data.tobytes()


def test_a_model_with_an_adapted_domain_can_be_saved(adapted: Segmenter, tmp_path: Path) -> None:
    adapted.save(tmp_path / "novel.cws")
    loaded = Segmenter.load(tmp_path / "novel.cws", domain="novel")
    assert loaded.cut("碧瑶打了田不易。") == adapted.cut("碧瑶打了田不易。")


def test_a_path_is_read_by_lines(base: Segmenter, gold: list[list[str]], tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_text("\n".join("".join(words) for words in gold[:20]), encoding="utf-8")
    texts = ["".join(words) for words in gold[:20]]
    assert adapt(base, path).cut("碧瑶") == adapt(base, texts).cut("碧瑶")


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        (["天"], {"name": "news"}, ValueError, "name must be new"),
        (["天"], {"name": "auto"}, ValueError, "name must be new"),
        (["天"], {"rounds": -1}, ValueError, "rounds must be an integer of at least 0, got -1"),
        (["天"], {"epochs": 0}, ValueError, "epochs must be an integer of at least 1, got 0"),
        (["天"], {"sure": 0.5}, ValueError, "sure must be above 0.5 and at most 1, got 0.5"),
        (["天"], {"lexicon": ["a b"]}, ValueError, "lexicon must hold words without white space, got 'a b'"),
        ([" \n"], {}, ValueError, "texts must have a character"),
        (["天", None], {}, TypeError, "texts must be str, got NoneType at index 1"),
        (3, {}, TypeError, "texts must be a path or an iterable of str, got int"),
    ],
)
def test_bad_input_is_named(
    base: Segmenter, texts: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        adapt(base, texts, **options)
