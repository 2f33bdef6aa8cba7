"""gensim's and fastText's trainers as oracles: the same words, and vectors that say the same."""

from functools import cache

import numpy as np
import pytest
from gensim.models import Word2Vec
from gensim.test.utils import datapath

from imgskipgram import ImageSkipGram

TEXT = datapath("lee_background.cor")
OPTIONS = {"vector_size": 50, "epochs": 15, "workers": 1}


@cache
def gensim(seed):
    return Word2Vec(corpus_file=TEXT, sg=1, seed=seed, **OPTIONS).wv


@cache
def fasttext():
    floret = pytest.importorskip("floret", reason="needs floret")
    options = {"dim": 50, "epoch": 15, "ws": 5, "neg": 5, "minCount": 5, "t": 1e-3, "lr": 0.025, "minn": 0, "maxn": 0}
    made = floret.train_unsupervised(TEXT, model="skipgram", mode="fasttext", thread=1, verbose=0, bucket=1, **options)
    return {word: made.get_word_vector(word) for word in made.words}


def cosines(vectors):
    """Of the words that all know, without stop words, whose vectors differ little."""
    words = [word for word in gensim(1).index_to_key[50:450] if word in fasttext()]
    rows = np.stack([vectors[word] for word in words])
    rows = rows - rows.mean(0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows @ rows.T)[np.triu_indices(len(rows), 1)]


def agreement(one, other):
    return np.corrcoef(cosines(one), cosines(other))[0, 1]


def test_words_and_counts_are_gensims():
    wv, peer = ImageSkipGram(**OPTIONS | {"epochs": 1}).fit(TEXT).wv, gensim(1)
    assert wv.expandos["count"].tolist() == sorted(wv.expandos["count"].tolist(), reverse=True)
    assert {w: wv.get_vecattr(w, "count") for w in wv.index_to_key} == {
        w: peer.get_vecattr(w, "count") for w in peer.index_to_key
    }


@pytest.mark.parametrize(("negatives", "less"), [("center", 0.02), ("pair", 0.02), ("batch", 0.05)])
def test_words_are_alike_that_are_alike_to_gensim_as_much_as_its_own_seeds_agree(negatives, less):
    """With "batch" a little less: on a small text there are few different negatives."""
    wv = ImageSkipGram(negatives=negatives, **OPTIONS).fit(TEXT).wv
    own = agreement(gensim(1), gensim(2))
    assert own > 0.9  # or agreement would say nothing
    assert agreement(wv, gensim(1)) > own - less


def test_words_are_alike_that_are_alike_to_fasttext():
    wv = ImageSkipGram(**OPTIONS).fit(TEXT).wv
    assert agreement(wv, fasttext()) > agreement(gensim(1), fasttext()) - 0.02


def test_lengths_of_vectors_are_gensims():
    """They grow with every step taken: half the steps, or rates that fall too fast, would show."""
    ours, theirs = (
        np.linalg.norm([wv[word] for word in gensim(1).index_to_key[:500]], axis=1)
        for wv in (ImageSkipGram(**OPTIONS).fit(TEXT).wv, gensim(1))
    )
    assert ours.mean() == pytest.approx(theirs.mean(), rel=0.03)
