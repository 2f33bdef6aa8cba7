"""gensim's own tests, as they are installed, of our Word2Vec in place of its own and of vectors in our files."""

from __future__ import annotations

import tempfile
import unittest
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

import gensim.models.keyedvectors
import gensim.models.word2vec
import pytest

from imgskipgram.compat import Word2Vec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

    from gensim.models import KeyedVectors

OTHER_OBJECTIVES = {  # hierarchical softmax or CBOW
    "TestWord2VecModel.test_build_vocab_from_freq",
    "TestWord2VecModel.test_cbow_fixedwindowsize",
    "TestWord2VecModel.test_cbow_fixedwindowsize_fromfile",
    "TestWord2VecModel.test_cbow_hs",
    "TestWord2VecModel.test_cbow_hs_fromfile",
    "TestWord2VecModel.test_cbow_hs_online",
    "TestWord2VecModel.test_cbow_neg",
    "TestWord2VecModel.test_cbow_neg_fromfile",
    "TestWord2VecModel.test_cbow_neg_online",
    "TestWord2VecModel.test_compute_training_loss",
    "TestWord2VecModel.test_cosmul",
    "TestWord2VecModel.test_locking",
    "TestWord2VecModel.test_online_learning",
    "TestWord2VecModel.test_online_learning_from_file",
    "TestWord2VecModel.test_predict_output_word",
    "TestWord2VecModel.test_prune_vocab",
    "TestWord2VecModel.test_scoring",
    "TestWord2VecModel.test_sg_fixedwindowsize_fromfile",
    "TestWord2VecModel.test_sg_hs",
    "TestWord2VecModel.test_sg_hs_fromfile",
    "TestWord2VecModel.test_sg_hs_online",
    "TestWord2VecModel.test_similar_by",
    "TestWord2VecModel.test_similarities",
    "TestWord2VecModel.test_train_hs_and_neg",
    "TestWord2VecModel.test_train_with_explicit_param",
    "TestWord2VecModel.test_training",
    "TestWord2VecModel.test_training_cbow",
    "TestWord2VecModel.test_training_cbow_negative",
    "TestWord2VecModel.test_training_from_file",
    "TestWord2VecModel.test_vocab",
}
OLD_PICKLES = {
    "TestWord2VecModel.test_load_old_model",
    "TestWord2VecModel.test_load_old_model_separates",
    "TestWord2VecModel.test_load_old_models_1_x",
    "TestWord2VecModel.test_load_old_models_2_x",
    "TestWord2VecModel.test_load_old_models_3_x",
    "TestWord2VecModel.test_persistence_backwards_compatible",
}
MANUAL = {"TestWord2VecModel.test_method_in_bulk"}  # runs only where BULK_TEST_REPS is set
DECLARED = OTHER_OBJECTIVES | OLD_PICKLES | MANUAL

ABOUT_ELSE = {  # of these the ones that have another subject, and pass with negative samples
    f"TestWord2VecModel.test_{name}"
    for name in (
        "build_vocab_from_freq", "cbow_neg_online", "cosmul", "locking", "online_learning",
        "online_learning_from_file", "prune_vocab", "sg_fixedwindowsize_fromfile", "similar_by", "similarities",
        "train_with_explicit_param", "training", "training_cbow_negative", "training_from_file",
    )
}  # fmt: skip


def module(name: str) -> ModuleType | None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "invalid escape sequence")  # in POT, where it is compiled
            return import_module(name)
    except ImportError:  # a gensim without tests, or no testfixtures
        return None


def cases(tests: ModuleType | None) -> dict[str, unittest.TestCase]:
    def flat(suite: unittest.TestSuite) -> Iterator[Any]:
        for test in suite:
            yield from flat(test) if isinstance(test, unittest.TestSuite) else [test]

    suite = unittest.defaultTestLoader.loadTestsFromModule(tests) if tests else unittest.TestSuite()
    return {test.id().removeprefix(f"{tests.__name__}."): test for test in flat(suite)}


OF_WORD2VEC = cases(module("gensim.test.test_word2vec"))
OF_KEYED_VECTORS = cases(module("gensim.test.test_keyedvectors"))


def named(tests: dict[str, unittest.TestCase], names: Any = None) -> list[Any]:
    """The tests by name; where they cannot be imported one that says so."""
    if not tests:
        missing = pytest.mark.skip(reason="needs the tests that gensim installs, and testfixtures")
        return [pytest.param("all", marks=missing)]
    chosen = tests if names is None else names
    return sorted(chosen)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """gensim's tests write to the current folder and to folders of their own among the temporary ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def run(case: unittest.TestCase) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Call to deprecated `init_sims`", DeprecationWarning)  # most_similar_cosmul
        warnings.filterwarnings("ignore", "unclosed file", ResourceWarning)  # load_word2vec_format(no_header=True)
        case.debug()


@pytest.mark.parametrize("name", named(OF_WORD2VEC, OF_WORD2VEC.keys() - DECLARED))
def test_what_gensim_expects_of_its_model_holds_for_ours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gensim.models.word2vec, "Word2Vec", Word2Vec)
    run(OF_WORD2VEC[name])


@pytest.mark.parametrize("name", named(OF_WORD2VEC, OTHER_OBJECTIVES))
def test_tests_of_other_objectives_end_with_a_refusal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gensim.models.word2vec, "Word2Vec", Word2Vec)
    with pytest.raises(NotImplementedError, match=r"gensim\.models\.Word2Vec"):
        run(OF_WORD2VEC[name])


@pytest.mark.parametrize("name", named(OF_WORD2VEC, ABOUT_ELSE))
def test_tests_that_only_use_other_objectives_pass_with_negative_samples(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SkipGram(Word2Vec):
        def __init__(self, *args: Any, sg: int = 1, hs: int = 0, negative: int = 5, **options: Any) -> None:
            super().__init__(*args, negative=negative or 5, **options)

        @property
        def syn1(self) -> Any:
            return self.syn1neg

    monkeypatch.setattr(gensim.models.word2vec, "Word2Vec", SkipGram)
    run(OF_WORD2VEC[name])


@pytest.mark.parametrize("name", named(OF_WORD2VEC, OLD_PICKLES))
def test_pickles_of_gensim_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gensim.models.word2vec, "Word2Vec", Word2Vec)
    with pytest.raises(ValueError, match="pickle"):
        run(OF_WORD2VEC[name])


@pytest.mark.parametrize("name", named(OF_KEYED_VECTORS))
def test_what_gensim_expects_of_vectors_holds_for_those_in_our_files(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read = gensim.models.keyedvectors._load_word2vec_format

    def through_ours(cls: type[KeyedVectors], *args: Any, **kwargs: Any) -> KeyedVectors:
        vectors = read(cls, *args, **kwargs)
        model = Word2Vec(vector_size=vectors.vector_size, min_count=0)
        model.build_vocab_from_freq({word: len(vectors) - i for i, word in enumerate(vectors.index_to_key)})
        model.wv.vectors[:] = vectors.vectors
        model.skipgram.save_word2vec_format(tmp_path / "ours", binary=True)
        ours: KeyedVectors = read(cls, tmp_path / "ours", binary=True)
        ours.expandos = vectors.expandos  # counts, which the form does not have
        return ours

    monkeypatch.setattr(gensim.models.keyedvectors, "_load_word2vec_format", through_ours)
    run(OF_KEYED_VECTORS[name])


@pytest.mark.skipif(not OF_WORD2VEC, reason="needs the tests that gensim installs, and testfixtures")
def test_every_test_that_is_left_out_exists() -> None:
    assert OF_WORD2VEC.keys() >= DECLARED
    assert OTHER_OBJECTIVES >= ABOUT_ELSE
    assert (len(OTHER_OBJECTIVES), len(OLD_PICKLES), len(MANUAL)) == (30, 6, 1)
