"""Vocabularies: the words that gensim keeps, with its counts, whatever the options and the form of the corpus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gensim.models.word2vec import LineSentence, Word2Vec
from gensim.test.utils import datapath
from gensim.utils import RULE_DEFAULT, RULE_DISCARD, RULE_KEEP

from imgskipgram._corpus import read
from imgskipgram._vocabulary import ABSENT, Counts, Trim, Vocabulary, choose

if TYPE_CHECKING:
    from collections.abc import Callable

LEE = datapath("lee_background.cor")


@pytest.fixture(scope="module")
def lee() -> list[list[str]]:
    return list(LineSentence(LEE))


def gensim_model(corpus: Any, trim: Trim) -> Word2Vec:
    model = Word2Vec(
        vector_size=1,
        min_count=trim.min_count,
        max_vocab_size=trim.max_vocab_size,
        max_final_vocab=trim.max_final_vocab,
        sorted_vocab=trim.sorted_vocab,
    )
    model.build_vocab(corpus, trim_rule=trim.trim_rule)
    return model


def counts_of(vocabulary: Vocabulary | Word2Vec) -> dict[str, int]:
    if isinstance(vocabulary, Vocabulary):
        return dict(zip(vocabulary.words, vocabulary.counts.tolist(), strict=True))
    return {word: vocabulary.wv.get_vecattr(word, "count") for word in vocabulary.wv.index_to_key}


def by_length(word: str, count: int, min_count: int) -> int:
    return (RULE_DEFAULT, RULE_KEEP, RULE_DISCARD)[len(word) % 3]


OPTIONS = [
    Trim(),
    Trim(min_count=0),
    Trim(min_count=17),
    Trim(max_final_vocab=100),
    Trim(max_final_vocab=10**6),
    Trim(min_count=50, max_final_vocab=1000),
    Trim(min_count=1, max_vocab_size=500),
    Trim(min_count=2, max_vocab_size=2000, max_final_vocab=300),
    Trim(trim_rule=by_length),
    Trim(min_count=3, max_vocab_size=800, trim_rule=by_length),
    Trim(min_count=3, max_final_vocab=50, trim_rule=by_length),
]


@pytest.mark.parametrize("trim", OPTIONS)
@pytest.mark.parametrize("as_path", [True, False])
def test_the_words_and_counts_are_those_of_gensim(lee: list[list[str]], trim: Trim, as_path: bool) -> None:
    vocabulary, _ = read(LEE if as_path else lee, trim)
    model = gensim_model(lee, trim)
    assert counts_of(vocabulary) == counts_of(model)
    assert (vocabulary.raw, vocabulary.sentences) == (model.corpus_total_words, model.corpus_count)


@pytest.mark.parametrize("trim", OPTIONS)
def test_unsorted_words_have_the_order_of_gensim(lee: list[list[str]], trim: Trim) -> None:
    unsorted = Trim(trim.min_count, trim.max_vocab_size, trim.max_final_vocab, trim.trim_rule, sorted_vocab=False)
    assert read(lee, unsorted)[0].words == gensim_model(lee, unsorted).wv.index_to_key


@pytest.mark.parametrize("trim", OPTIONS)
def test_an_update_is_that_of_gensim(lee: list[list[str]], trim: Trim) -> None:
    model = gensim_model(lee[:100], trim)
    first, _ = read(lee[:100], trim)
    model.wv.index_to_key[:] = first.words  # gensim orders equal counts as it happens
    model.wv.key_to_index = dict(first.index)
    model.wv.expandos["count"] = first.counts.astype(int)
    model.build_vocab(lee[100:], update=True, trim_rule=trim.trim_rule)
    second, _ = read(lee[100:], trim, known=first)
    assert second.words == model.wv.index_to_key
    assert counts_of(second) == counts_of(model)


def test_words_are_sorted_by_falling_count_and_then_by_first_appearance() -> None:
    vocabulary, _ = read([["d", "c", "b", "a"], ["a", "b", "x"], ["a"]], Trim(min_count=1))
    assert vocabulary.words == ["a", "b", "d", "c", "x"]
    assert vocabulary.counts.tolist() == [3, 2, 1, 1, 1]
    assert vocabulary.index == {"a": 0, "b": 1, "d": 2, "c": 3, "x": 4}


def test_the_rule_is_asked_the_questions_that_gensim_asks(lee: list[list[str]]) -> None:
    def asked(run: Callable[[Trim], object]) -> list[tuple[str, int, int]]:
        questions = []

        def rule(word: str, count: int, min_count: int) -> int:
            questions.append((word, count, min_count))
            return RULE_DEFAULT

        run(Trim(min_count=2, max_vocab_size=400, trim_rule=rule))
        return questions

    ours, theirs = asked(lambda trim: read(lee[:30], trim)), asked(lambda trim: gensim_model(lee[:30], trim))
    assert sorted(ours) == sorted(theirs)
    assert len(ours) > 1000


def test_an_error_in_the_rule_reaches_the_caller_from_within_a_file() -> None:
    def rule(word: str, count: int, min_count: int) -> int:
        raise LookupError(word)

    with pytest.raises(LookupError):
        read(LEE, Trim(max_vocab_size=100, trim_rule=rule))


def test_words_found_get_their_numbers_or_none() -> None:
    found = Counts.of({"rare": 1, "often": 9, "more": 5})
    vocabulary, numbers = choose(found, Trim(min_count=5))
    assert vocabulary.words == ["often", "more"]
    assert numbers.tolist() == [ABSENT, 0, 1]


def test_counts_above_32_bits_are_exact() -> None:
    counts = {"a": 2**40 + 1, "b": 2**33 + 7}
    vocabulary, _ = choose(Counts.of(counts), Trim())
    assert counts_of(vocabulary) == counts
    assert vocabulary.total == vocabulary.raw == 2**40 + 2**33 + 8


def test_nothing_kept_is_refused_with_the_tokens_and_the_best_count() -> None:
    with pytest.raises(ValueError, match=r"got 6 tokens of which the most frequent word has 3 with min_count=5"):
        read([["a", "b", "a"], ["a", "c", "b"]], Trim())
    with pytest.raises(ValueError, match=r"the corpus must have words, got 0 tokens"):
        read([[], ""], Trim())
    with pytest.raises(ValueError, match="got 0 tokens"):
        read([], Trim(), known=Vocabulary(["a"], np.array([3], np.uint64), 3, 1))


@pytest.mark.parametrize(
    ("options", "error", "refusal"),
    [
        ({"min_count": -1}, ValueError, "min_count must be a non-negative integer, got -1"),
        ({"min_count": True}, TypeError, "min_count must be a non-negative integer, got True"),
        ({"min_count": 5.0}, TypeError, r"min_count must be a non-negative integer, got 5\.0"),
        ({"max_vocab_size": 0}, ValueError, "max_vocab_size must be a positive integer, got 0"),
        ({"max_vocab_size": 2**63}, ValueError, f"max_vocab_size must be at most {2**63 - 1}, got {2**63}"),
        ({"max_final_vocab": 0}, ValueError, "max_final_vocab must be a positive integer, got 0"),
        ({"max_final_vocab": 1e4}, TypeError, r"max_final_vocab must be a positive integer, got 10000\.0"),
        ({"trim_rule": 5}, TypeError, "trim_rule must be callable or None, got int"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], error: type[Exception], refusal: str) -> None:
    with pytest.raises(error, match=f"^{refusal}$"):
        Trim(**options)


def test_integers_of_numpy_are_integers(lee: list[list[str]]) -> None:
    trim = Trim(min_count=np.int64(9), max_vocab_size=np.uint32(10**6), max_final_vocab=np.int32(50))
    assert read(lee, trim)[0].words == read(lee, Trim(9, 10**6, 50))[0].words


def test_kept_shares_are_those_of_gensim(lee: list[list[str]]) -> None:
    for sample in (0, 1e-3, 1e-5):
        vocabulary, _ = read(lee, Trim())
        model = Word2Vec(vector_size=1, sample=sample)
        model.build_vocab(lee)
        theirs = [int(model.wv.get_vecattr(word, "sample_int")) for word in vocabulary.words]
        np.testing.assert_allclose(vocabulary.keep(sample), theirs, rtol=0, atol=2)


def test_the_share_kept_is_that_of_the_equation() -> None:
    vocabulary, _ = choose(Counts.of({"a": 900, "b": 99, "c": 1}), Trim(min_count=1))
    assert vocabulary.keep(0).tolist() == [2**32 - 1] * 3
    expected = [int((np.sqrt(c / 10) + 1) * 10 / c * 2**32) for c in (900, 99)]
    assert vocabulary.keep(0.01).tolist() == [*expected, 2**32 - 1]
