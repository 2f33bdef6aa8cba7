"""The model: what it gives for a corpus, in whatever form that comes, and that it refuses before it changes."""

from __future__ import annotations

import copy
import doctest
import gzip
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gensim.models import KeyedVectors
from gensim.models.word2vec import LineSentence
from gensim.test.utils import datapath
from scenes import COLOURS, SHAPES, features, scenes

import imgskipgram.model
from imgskipgram import ImageBank, ImageSkipGram

if TYPE_CHECKING:
    from pathlib import Path

LEE = datapath("lee_background.cor")


def model(**options: Any) -> ImageSkipGram:
    return ImageSkipGram(**{"vector_size": 20, "workers": 1, "epochs": 2, **options})


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return [" ".join(words) for words in LineSentence(LEE)]


@pytest.fixture(scope="module")
def drawn() -> ImageSkipGram:
    """A model of drawn scenes: two thirds of the pictures have labels, all of them sentences."""
    described = scenes(600)
    bank = ImageBank.from_features(
        features(scene.draw() for scene in described),
        [scene.words if i % 3 else () for i, scene in enumerate(described)],
    )
    corpus = [scene.sentence for scene in described] * 10
    return ImageSkipGram(vector_size=32, min_count=1, sample=0, epochs=5, workers=1).fit(corpus, bank)


def test_the_examples_are_true() -> None:
    assert doctest.testmod(imgskipgram.model).failed == 0
    assert len([test for test in doctest.DocTestFinder().find(imgskipgram.model) if test.examples]) >= 6


def test_fit_is_build_vocab_and_train() -> None:
    one, two = model().fit(LEE), model()
    two.build_vocab(LEE)
    effective, raw = two.train(LEE)
    np.testing.assert_array_equal(one.wv.vectors, two.wv.vectors)
    np.testing.assert_array_equal(one.syn1neg, two.syn1neg)
    assert raw == 2 * one.corpus_total_words == 2 * 59890
    assert one.corpus_count == 300
    assert 0.5 * raw < effective < 0.6 * raw


@pytest.mark.parametrize("form", ["lists", "strings", "generator", "rows", "stream", "mapped", "gz", "dataset"])
def test_the_form_of_the_corpus_changes_nothing(
    form: str, lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus: Any = lines
    options: dict[str, Any] = {}
    if form == "lists":
        corpus = [tuple(line.split()) for line in lines]
    elif form == "generator":
        corpus = iter(lines)
    elif form == "rows":
        corpus, options = [{"id": 1, "caption": line} for line in lines], {"text_column": "caption"}
    elif form == "stream":
        options = {"cache_dir": False}
    elif form == "mapped":
        monkeypatch.setattr("imgskipgram._corpus._IN_MEMORY", 0)
        options = {"cache_dir": tmp_path}
    elif form == "gz":
        corpus = tmp_path / "corpus.gz"
        corpus.write_bytes(gzip.compress("\n".join(lines).encode()))
    elif form == "dataset":
        datasets = pytest.importorskip("datasets", reason="needs datasets")
        corpus = datasets.Dataset.from_dict({"text": lines}).to_iterable_dataset()
    one, two = model(), model().fit(LEE)
    one.fit(corpus, **options)
    np.testing.assert_array_equal(one.wv.vectors, two.wv.vectors)
    assert (one._tokens is None) == (form == "stream")
    assert not list(tmp_path.iterdir()) or form == "gz"
    assert (one.corpus_count, one.corpus_total_words) == (300, 59890)


def test_the_column_of_the_text_may_be_named_everywhere(lines: list[str]) -> None:
    rows = [{"caption": line} for line in lines]
    trained = model()
    trained.build_vocab(rows, text_column="caption")
    trained.train(rows, text_column="caption")
    np.testing.assert_array_equal(trained.wv.vectors, model().fit(LEE).wv.vectors)
    message = r"^text_column must be a column of the corpus, got 'text'; present are 'caption'$"
    for call in (trained.build_vocab, trained.train, trained.fit):
        with pytest.raises(ValueError, match=message):
            call(rows)


def test_the_vectors_are_gensims_and_a_copy_that_later_training_leaves_alone() -> None:
    trained = model().fit(LEE)
    wv = trained.wv
    assert type(wv) is KeyedVectors
    assert wv.get_vecattr("the", "count") == 3523
    assert wv.index_to_key[0] == "the"
    assert len(wv.most_similar("war")) == 10
    assert wv.vectors.dtype == np.float32
    before = wv.vectors.copy()
    wv.set_vecattr("the", "kind", "article")
    trained.train(LEE)
    assert trained.wv is not wv
    np.testing.assert_array_equal(wv.vectors, before)
    assert trained.wv.get_vecattr("the", "kind") == "article"
    assert trained.wv.similarity("the", "a") != wv.similarity("the", "a")


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_first_vectors_depend_on_the_seed_and_the_words_number_alone(dtype: str, lines: list[str]) -> None:
    half, whole, other = (model(min_count=1, seed=seed, dtype=dtype) for seed in (3, 3, 4))
    half.build_vocab(lines[:150])
    whole.build_vocab(lines)
    other.build_vocab(lines)
    np.testing.assert_array_equal(half.wv.vectors, whole.wv.vectors[: len(half.wv)])
    assert (whole.wv.vectors != other.wv.vectors).any(1).all()
    assert not whole.syn1neg.any()
    uniform = whole.wv.vectors * 20
    assert np.abs(uniform).max() <= 1 + 2**-8
    assert abs(uniform.mean()) < 0.01
    assert uniform.std() == pytest.approx(3**-0.5, rel=0.01)


def test_an_update_keeps_the_vectors_of_known_words(lines: list[str]) -> None:
    trained = model().fit(lines[:200])
    words, vectors, outputs = list(trained.wv.index_to_key), trained.wv.vectors.copy(), trained.syn1neg.copy()
    counts = [trained.wv.get_vecattr(word, "count") for word in words]
    trained.wv.vectors_lockf = np.zeros(1, np.float32)
    trained.build_vocab(lines[200:], update=True)
    assert trained.wv.index_to_key[: len(words)] == words
    assert len(trained.wv) > len(words) + 100
    np.testing.assert_array_equal(trained.wv.vectors[: len(words)], vectors)
    np.testing.assert_array_equal(trained.syn1neg[: len(words)], outputs)
    assert trained.wv.vectors[len(words) :].any(1).all()
    assert not trained.syn1neg[len(words) :].any()
    assert all(trained.wv.get_vecattr(word, "count") >= count for word, count in zip(words, counts, strict=True))
    assert len(trained.losses_) == 2
    trained.wv.vectors_lockf = np.ones(1, np.float32)
    trained.train(lines[200:])
    assert (trained.wv.vectors[: len(words)] != vectors).any()


def test_a_model_without_vocabulary_says_what_to_call() -> None:
    for call in (lambda: model().train(LEE), lambda: model().build_vocab(LEE, update=True)):
        with pytest.raises(RuntimeError, match=r"^there is no vocabulary yet: call build_vocab or fit first$"):
            call()
    empty = model()
    assert (empty.corpus_count, empty.corpus_total_words, empty.losses_, len(empty.wv)) == (0, 0, [], 0)
    assert empty.bank is empty.image_vectors is None


@pytest.mark.parametrize("method", ["build_vocab", "train", "fit"])
@pytest.mark.parametrize(
    ("corpus", "error", "message"),
    [
        ([], ValueError, r"^the corpus must have words, got 0 tokens$"),
        ([[]], ValueError, r"^the corpus must have words, got 0 tokens$"),
        (["xyz yzx"], ValueError, r"^the corpus must have words .*got (none among )?2 tokens"),
        ([["a"], 5], TypeError, r"sentence 1.* got int"),
        (["a", ["b", None]], TypeError, r"sentence 1.* got NoneType"),
        (7, TypeError, r"^corpus must be a path or an iterable of sentences, got int$"),
        ("/nowhere/corpus.txt", FileNotFoundError, r"/nowhere/corpus\.txt"),
    ],
    ids=["empty", "empty sentence", "rare", "no sentence", "no word", "no corpus", "no file"],
)
def test_a_corpus_that_will_not_do_is_refused_and_changes_nothing(
    method: str, corpus: Any, error: type[Exception], message: str
) -> None:
    trained = model().fit(LEE)
    before = dict(vars(trained))
    with pytest.raises(error, match=message):
        getattr(trained, method)(corpus)
    assert vars(trained).keys() == before.keys()
    assert all(getattr(trained, name) is value for name, value in before.items())


@pytest.mark.parametrize("corpus", [["a a a a a a"], ["a", "b"], ["a b", "", "c"]], ids=["one word", "alone", "gap"])
@pytest.mark.parametrize("negatives", ["center", "batch", "pair"])
def test_the_smallest_corpora_are_trained(corpus: list[str], negatives: str) -> None:
    trained = model(min_count=1, negatives=negatives).fit(corpus)
    assert np.isfinite(trained.wv.vectors).all()
    assert np.isfinite([row["text"] for row in trained.losses_]).all()


def precision(trained: ImageSkipGram, word: str) -> float:
    described = scenes(600)
    return float(np.mean([word in described[i].words for i, _, _ in trained.explain(word).images]))


def test_pictures_explain_a_word(drawn: ImageSkipGram) -> None:
    assert precision(drawn, "red") >= 0.95
    assert np.mean([precision(drawn, word) for word in (*COLOURS, *SHAPES)]) >= 0.8  # by chance .3
    red = drawn.explain("red")
    assert red.title == "red"
    assert red.path[0][0] == "red"


@pytest.mark.parametrize("objective", ["nce", "margin", "infonce"])
def test_every_picture_of_a_trained_word_shows_it_where_images_are_fixed(objective: str) -> None:
    described = scenes(600)
    bank = ImageBank.from_features(features(scene.draw() for scene in described), [scene.words for scene in described])
    options = {"min_count": 1, "sample": 0, "epochs": 5, "projection": "fixed", "objective": objective}
    trained = model(**options).fit([scene.sentence for scene in described] * 5, bank)
    assert min(precision(trained, word) for word in (*COLOURS, *SHAPES)) >= 0.95


def test_pictures_explain_a_plain_vector_and_a_word_without_any(drawn: ImageSkipGram) -> None:
    red, vector = drawn.explain("red", topn=30), drawn.explain(drawn.wv["red"], topn=30)
    assert vector.images == red.images
    assert vector.title == "a vector"
    assert {i % 3 == 0 for i, _, _ in red.images} == {True, False}  # with labels and without
    above = drawn.explain("above")
    assert "above" not in [word for word, _, _ in above.path]
    assert len(above.images) == 9


@pytest.mark.parametrize("kept", [(), ("star",)], ids=["none", "one"])
def test_labels_have_no_part_in_which_pictures_are_found(
    drawn: ImageSkipGram, kept: tuple[str, ...], tmp_path: Path
) -> None:
    bare = copy.copy(drawn)
    bare._bank = drawn.bank.without_labels([word for word in drawn.wv.index_to_key if word not in kept])
    bare.save(tmp_path / "bare.npz")
    for each in (bare, ImageSkipGram.load(tmp_path / "bare.npz")):
        found = each.explain("red", topn=600)
        assert found.images == drawn.explain("red", topn=600).images
        assert [word for word, _, _ in found.path] == list(kept)


def test_explain_refuses_what_it_cannot_explain(drawn: ImageSkipGram) -> None:
    with pytest.raises(KeyError, match=r"got 'squar'; close spellings: square"):
        drawn.explain("squar")
    with pytest.raises(RuntimeError, match=r"^there are no images to explain with: give a bank to fit or train$"):
        model().fit(LEE).explain("war")
    with pytest.raises(RuntimeError, match=r"call build_vocab or fit first"):
        model().explain("war")
    assert len(drawn.explain("red", topn=10**6).images) == 600
    for vector, message in (
        (np.ones(31), r"shape \(32,\), got \(31,\)"),
        (np.zeros(32), r"must not be zero"),
        (np.full(32, np.nan), r"must be finite, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            drawn.explain(vector)
    with pytest.raises(ValueError, match=r"^topn must be a positive integer, got 0$"):
        drawn.explain("red", topn=0)


def test_a_model_says_what_it_is(drawn: ImageSkipGram) -> None:
    assert repr(model()) == "ImageSkipGram(no vocabulary, 20 dimensions, 0 epochs)"
    assert repr(model().fit(LEE)) == "ImageSkipGram(1,762 words, 20 dimensions, 2 epochs)"
    assert repr(drawn) == "ImageSkipGram(14 words, 32 dimensions, 5 epochs, 600 images)"


def test_another_model_with_the_same_options_is_the_same() -> None:
    one = model(window=3, negatives="batch", trim_rule=lambda word, count, least: 0).fit(LEE)
    two = ImageSkipGram(**one._options.arguments()).fit(LEE)
    np.testing.assert_array_equal(one.wv.vectors, two.wv.vectors)
