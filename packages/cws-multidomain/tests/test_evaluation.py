"""Scores: against plain counts, published figures and rules; texts that differ; intervals, tests, tables."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cws_multidomain import Partial, Sentence, bootstrap, compare, evaluate, matrix, read_corpus, sentence_counts

BAKEOFF = next(
    (folder for base in Path(__file__).resolve().parents if (folder := base / "shared/data/cws/icwb2").is_dir()), None
)

GOLD = [["我们", "爱", "北京"], ["天安门", "。"]]
PREDICTED = [["我们", "爱", "北", "京"], ["天安", "门", "。"]]


def spans(sentences: list[list[str]]) -> set[tuple[int, int, int]]:
    result = set()
    for number, sentence in enumerate(sentences):
        ends = list(itertools.accumulate(map(len, sentence), initial=0))
        result |= {(number, a, b) for a, b in itertools.pairwise(ends)}
    return result


def longest_first(text: str, vocabulary: set[str], longest: int) -> list[str]:
    words, at = [], 0
    while at < len(text):
        size = next((n for n in range(min(longest, len(text) - at), 1, -1) if text[at : at + n] in vocabulary), 1)
        words.append(text[at : at + size])
        at += size
    return words


def test_counts_rates_and_boundaries() -> None:
    scores = evaluate(GOLD, PREDICTED, vocabulary=["我们", "。", "北京"])
    assert (scores.correct, scores.gold, scores.predicted) == (3, 5, 7)
    assert (scores.precision, scores.recall) == (3 / 7, 3 / 5)
    assert scores.f1 == pytest.approx(2 * (3 / 7) * (3 / 5) / (3 / 7 + 3 / 5), rel=1e-15)
    assert (scores.oov, scores.oov_correct, scores.oov_rate) == (2, 1, 2 / 5)
    assert (scores.oov_recall, scores.iv_recall) == (1 / 2, 2 / 3)
    assert (scores.boundary_precision, scores.boundary_recall, scores.boundary_f1) == (3 / 5, 1, 0.75)
    assert (scores.sentences, scores.exact_sentences, scores.characters) == (2, 0, 9)
    assert "P 0.4286  R 0.6000  F1 0.5000" in str(scores)
    assert "OOV rate 0.4000  OOV recall 0.5000  IV recall 0.6667" in str(scores)


@st.composite
def two_segmentations(draw: st.DrawFn) -> tuple[list[list[str]], list[list[str]]]:
    texts = draw(st.lists(st.text("甲乙a", max_size=8), max_size=6))

    def cut(text: str) -> list[str]:
        cuts = draw(st.sets(st.integers(1, len(text) - 1))) if len(text) > 1 else set()
        return [text[a:b] for a, b in itertools.pairwise([0, *sorted(cuts), len(text)])] if text else []

    return [cut(text) for text in texts], [cut(text) for text in texts]


@given(two_segmentations(), st.sets(st.text("甲乙a", min_size=1, max_size=3)))
def test_counts_are_those_of_a_plain_count(pair: tuple[list[list[str]], list[list[str]]], known: set[str]) -> None:
    gold, predicted = pair
    hits = spans(gold) & spans(predicted)
    scores = evaluate(gold, predicted, known)
    assert (scores.correct, scores.gold, scores.predicted) == (len(hits), len(spans(gold)), len(spans(predicted)))
    assert scores.oov == sum(word not in known for sentence in gold for word in sentence)
    texts = ["".join(sentence) for sentence in gold]
    assert scores.oov_correct == sum(texts[i][a:b] not in known for i, a, b in hits)
    assert scores.exact_sentences == sum(a == b for a, b in zip(gold, predicted, strict=True))
    inner = [{(i, b) for i, _, b in spans(side) if b < len(texts[i])} for side in (gold, predicted)]
    assert scores.boundary_precision == (len(inner[0] & inner[1]) / len(inner[1]) if inner[1] else 0)
    assert scores.boundary_recall == (len(inner[0] & inner[1]) / len(inner[0]) if inner[0] else 0)
    counts = sentence_counts(gold, predicted)
    assert counts.tolist() == [
        [Counter(i for i, _, _ in side)[number] for side in (hits, spans(gold), spans(predicted))]
        for number in range(len(gold))
    ]
    assert evaluate(gold, predicted, stream=True).correct == scores.correct


@pytest.mark.parametrize(
    ("name", "counts", "rates"),
    [
        ("msr", (102_268, 106_873, 111_480), (0.9174, 0.9569, 0.9367, 0.0265, 0.0247, 0.9823)),
        ("pku", (94_641, 104_372, 112_281), (0.8429, 0.9068, 0.8737, 0.0575, 0.0686, 0.9579)),
    ],
)
@pytest.mark.skipif(BAKEOFF is None, reason="the test sets of SIGHAN 2005 are not here")
def test_maximum_matching_scores_as_in_the_bakeoff(name: str, counts: Any, rates: Any) -> None:
    gold = read_corpus(f"{BAKEOFF}/{name}_test_gold.utf8")
    words = Path(f"{BAKEOFF}/{name}_training_words.utf8")
    vocabulary = set(words.read_text(encoding="utf-8").split())
    longest = max(map(len, vocabulary))
    scores = evaluate(gold, [longest_first("".join(sentence), vocabulary, longest) for sentence in gold], words)
    assert (scores.correct, scores.gold, scores.predicted) == counts
    found = (scores.precision, scores.recall, scores.f1, scores.oov_rate, scores.oov_recall, scores.iv_recall)
    assert tuple(round(rate, 4) for rate in found if rate is not None) == rates


@pytest.mark.skipif(BAKEOFF is None, reason="the test sets of SIGHAN 2005 are not here")
def test_a_quotation_mark_across_a_line_break_needs_the_stream() -> None:
    gold = read_corpus(f"{BAKEOFF}/msr_test_gold.utf8")
    raw = [[line] for line in Path(f"{BAKEOFF}/msr_test.utf8").read_text(encoding="utf-8").split("\n")]
    with pytest.raises(ValueError, match=r"in sentence \d+ at character \d+ gold has .*: pass stream=True"):
        evaluate(gold, raw)
    assert evaluate(gold, raw, stream=True).characters == 184_355


def test_white_space_inside_and_between_words_does_not_count() -> None:
    assert evaluate([["3 000", "人"]], [["3000", " ", "人", ""]]).f1 == 1
    assert evaluate([["3 000", "人"]], [["3", "000", "人"]]).correct == 1
    assert evaluate([["3 000", "人"]], [["3000", "人"]], ["3000"]).oov == 1


def test_nothing_scores_zero_and_no_recall_of_nothing() -> None:
    for empty in ([], [[]], [[" "], []]):
        scores = evaluate(empty, empty, [])
        assert (scores.f1, scores.precision, scores.gold, scores.oov_recall, scores.characters) == (0, 0, 0, None, 0)
    scores = evaluate([["我"]], [["我"]], ["我"])
    assert (scores.oov_rate, scores.oov_recall, scores.iv_recall, scores.boundary_f1) == (0, None, 1, 0)
    assert "OOV recall none" in str(scores)
    assert evaluate([["我"]], [["我"]]).oov is None


def test_gold_and_predicted_may_be_paths_sentences_or_domains(tmp_path: Path) -> None:
    for name, sentences in (("gold", GOLD), ("predicted", PREDICTED)):
        text = "".join(" ".join(sentence) + "\r\n" for sentence in sentences)
        (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
    expected = evaluate(GOLD, PREDICTED, ["我们", "爱"])
    (tmp_path / "words").write_text("我们\t12\n爱\n", encoding="utf-8")
    assert evaluate(tmp_path / "gold", str(tmp_path / "predicted"), tmp_path / "words") == expected
    assert evaluate(map(Sentence, GOLD), iter(PREDICTED), [["我们", "爱"]]) == expected
    split = [{"a": side[:1], "b": side[1:]} for side in (GOLD, PREDICTED)]
    assert evaluate(split[0], dict(reversed(split[1].items())), {"我们", "爱"}) == expected


@pytest.mark.parametrize(
    ("gold", "predicted", "message"),
    [
        (
            [["一"], ["二三", "四"]],
            [["一"], ["二", "五四"]],
            "2 at character 1 gold has '二三四' and predicted '二五四'",
        ),
        ([["一"], ["二三"]], [["一"], ["二"]], "in sentence 2 at character 1 gold has '二三' and predicted '二'"),
        ([["一"], ["二"]], [["一"]], "predicted must have the 2 sentences of gold, got 1"),
        ([["一"], ["二"]], [["一", "二"]], "predicted '一二'; the whole texts agree: pass stream=True"),
        ({"a": [["一"]]}, [["一"]], "predicted must have the domains of gold (a), got None"),
        ([Partial("一二", (None,))], [["一二"]], "gold must be fully segmented, got a partly annotated sentence"),
    ],
)
def test_texts_that_differ_are_refused_with_both_excerpts(gold: Any, predicted: Any, message: str) -> None:
    with pytest.raises(ValueError, match="must") as error:
        evaluate(gold, predicted)
    assert message in str(error.value)


def test_streams_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="but at character 1 gold has '一二' and predicted '一三'"):
        evaluate([["一"], ["二"]], [["一", "三"]], stream=True)


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        (None, "predicted must be a path or an iterable of lists of words, got NoneType"),
        (["我们爱北京"], "predicted must hold lists of words, got str at index 0"),
        ([["我们", 3]], "words must be strings, got int"),
        (b"", "predicted must be a path or an iterable of lists of words, got bytes"),
    ],
)
def test_things_that_are_no_corpus_are_refused(predicted: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        evaluate(GOLD, predicted)


def test_a_stream_may_be_divided_anywhere() -> None:
    whole = [["我们", "爱"], ["北京", "。"]]
    scores = evaluate(whole, [["我们"], ["爱", "北京", "。"]], stream=True)
    assert (scores.f1, scores.sentences, scores.exact_sentences) == (1, 2, 2)
    across = evaluate(whole, [["我们", "爱北", "京", "。"]], stream=True)
    assert (across.correct, across.exact_sentences) == (2, 0)


# Uncertainty


def test_the_bootstrap_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    right, wrong = (["甲乙"], ["甲乙"]), (["甲乙"], ["甲", "乙"])
    covered = 0
    for trial in range(200):  # F1 of a world in which half of the sentences are right is 2*1/(2*1 + 1*1 + ...) = 0.4
        pairs = [right if good else wrong for good in generator.integers(2, size=60)]
        interval = bootstrap(*map(list, zip(*pairs, strict=True)), confidence=0.9, samples=200, seed=trial)
        covered += interval.low <= 2 * 0.5 / (1 + 1.5) <= interval.high
        assert interval.low <= interval.f1 <= interval.high
    assert 165 <= covered <= 195  # 180 expected; binomial, p < 0.005 outside


def test_randomisation_gives_the_exact_p_value_of_few_sentences() -> None:
    gold = [["甲乙"]] * 4
    first, second = [["甲", "乙"]] * 4, [["甲乙"]] * 4
    result = compare(gold, first, second, samples=40_000, seed=1)
    assert result.difference == 1
    assert result.p_value == pytest.approx(2 / 2**4, abs=0.006)  # all four exchanged, or none; 5 standard errors


def test_equal_systems_have_no_difference() -> None:
    result = compare(GOLD, PREDICTED, PREDICTED, samples=99)
    assert (result.difference, result.p_value) == (0, 1)


def test_p_values_of_alike_systems_are_uniform() -> None:
    generator = np.random.default_rng(0)
    small = 0
    for trial in range(200):
        sides = [[["甲乙"] if good else ["甲", "乙"] for good in generator.integers(2, size=80)] for _ in range(2)]
        small += compare([["甲乙"]] * 80, *sides, samples=200, seed=trial).p_value <= 0.1
    assert 6 <= small <= 35  # 20 expected at most, fewer because p is discrete; binomial, p < 0.001 outside


def test_samples_depend_on_the_seed_alone() -> None:
    assert bootstrap(GOLD * 9, PREDICTED * 9, seed=3) == bootstrap(GOLD * 9, PREDICTED * 9, seed=3)
    assert compare(GOLD, GOLD, PREDICTED, seed=3) == compare(GOLD, GOLD, PREDICTED, seed=3)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="confidence must be between 0 and 1, got 1"):
        bootstrap(GOLD, GOLD, confidence=1)
    for draw in (lambda: bootstrap(GOLD, GOLD, samples=0), lambda: compare(GOLD, GOLD, GOLD, samples=0)):
        with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
            draw()
    with pytest.raises(ValueError, match="gold must have at least one sentence, got none"):
        bootstrap([], [])


# Tables


def test_the_matrix_scores_every_model_on_every_test_set() -> None:
    class Characters:
        def cut_many(self, texts: list[str]) -> list[list[str]]:
            return [list(text) for text in texts]

    spaced = Sentence(["New", "York", "好"], spaces=[True, False, False])
    tests = {"gold": GOLD, "spaced": [spaced]}
    table = matrix({"characters": Characters(), "spaces": str.split}, tests, {"spaces": ["好"]})
    assert list(table) == ["characters", "spaces"]
    assert table["characters"]["gold"] == evaluate(GOLD, [list("".join(sentence)) for sentence in GOLD])
    assert table["spaces"]["spaced"] == evaluate([spaced], [["New", "York好"]], ["好"])


def test_a_million_words_are_scored() -> None:
    assert evaluate(GOLD * 200_000, PREDICTED * 200_000, {"我们"}).correct == 3 * 200_000
