"""The model: what it gives for a corpus, in whatever form that comes, and that it refuses before it changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gensim.models import KeyedVectors
from gensim.models.word2vec import LineSentence
from gensim.test.utils import datapath

from imgskipgram import ImageSkipGram

LEE = datapath("lee_background.cor")


def model(**options: Any) -> ImageSkipGram:
    return ImageSkipGram(**{"vector_size": 20, "workers": 1, "epochs": 2, **options})


def test_fit_is_build_vocab_and_train() -> None:
    one, two = model().fit(LEE), model()
    two.build_vocab(LEE)
    effective, raw = two.train(LEE)
    np.testing.assert_array_equal(one.wv.vectors, two.wv.vectors)
    np.testing.assert_array_equal(one.syn1neg, two.syn1neg)
    assert raw == 2 * one.corpus_total_words == 2 * 59890
    assert 0.5 * raw < effective < 0.6 * raw


@pytest.mark.parametrize("form", ["lists", "strings", "generator", "stream"])
def test_the_form_of_the_corpus_changes_nothing(form: str) -> None:
    lines = [" ".join(words) for words in LineSentence(LEE)]
    corpus, options = {
        "lists": ([line.split() for line in lines], {}),
        "strings": (lines, {}),
        "generator": ((line for line in lines), {}),
        "stream": (lines, {"cache_dir": False}),
    }[form]
    np.testing.assert_array_equal(model().fit(corpus, **options).wv.vectors, model().fit(LEE).wv.vectors)


def test_the_vectors_are_gensims() -> None:
    wv = model().fit(LEE).wv
    assert isinstance(wv, KeyedVectors)
    assert wv.get_vecattr("the", "count") == 3523
    assert wv.index_to_key[0] == "the"
    assert len(wv.most_similar("war")) == 10


def test_a_model_without_vocabulary_does_not_train() -> None:
    with pytest.raises(RuntimeError, match=r"call build_vocab or fit first"):
        model().train(LEE)
