"""What users change in vectors between two trainings, and words that are frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from lee import BANK, LEE, At, model

from imgskipgram._rows import rounded

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgskipgram import ImageSkipGram


def test_frozen_words_stay_and_the_others_do_not() -> None:
    trained = model()
    trained.build_vocab(LEE)
    first = trained.wv.vectors
    trained.wv.vectors_lockf = np.ones(len(first), np.float32)
    trained.wv.vectors_lockf[:10] = 0
    trained.train(LEE, BANK)
    np.testing.assert_array_equal(trained.wv.vectors[:10], first[:10])
    assert (trained.wv.vectors[10:] != first[10:]).any(1).all()
    assert trained.wv.vectors_lockf[:11].tolist() == [0] * 10 + [1]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_training_begins_with_edited_vectors_and_keeps_the_bits_of_others(dtype: str) -> None:
    trained = model(dtype=dtype).fit(LEE)
    rows = trained._v.copy()
    edit = np.arange(20, dtype=np.float32) / 100
    trained.wv.vectors[3] = edit
    trained.wv.vectors_lockf = np.zeros(1, np.float32)
    trained.train(LEE)
    rows[3, :20] = rounded(edit, dtype)
    np.testing.assert_array_equal(trained._v, rows)
    np.testing.assert_allclose(trained.wv.vectors[3], edit, rtol=2**-8 if dtype == "bfloat16" else 0)


def test_a_callbacks_edits_are_read() -> None:
    def edit(trained: ImageSkipGram) -> None:
        trained.wv.vectors[5] = 1

    trained = model(callbacks=[At(3, edit)]).fit(LEE)
    assert (trained.wv.vectors[5] == 1).all()
    halfway = model(callbacks=[At(2, edit)]).fit(LEE)
    assert np.abs(halfway.wv.vectors[5] - model().fit(LEE).wv.vectors[5]).min() > 0.5


def test_pretrained_vectors_are_taken_over_and_frozen_with_gensims_call(tmp_path: Any) -> None:
    source = model().fit(LEE)
    path = tmp_path / "vectors.txt"
    source.wv.save_word2vec_format(str(path))
    trained = model(seed=5)
    trained.build_vocab(LEE)
    trained.wv.vectors_lockf = np.ones(len(trained.wv), np.float32)
    trained.wv.intersect_word2vec_format(str(path), lockf=0.0)
    trained.train(LEE)
    np.testing.assert_allclose(trained.wv.vectors, source.wv.vectors, rtol=1e-6)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda wv: wv.vectors.__setitem__((7, 2), np.nan),
            r"^wv\.vectors must be finite, got NaN .* for '\w+'",
        ),
        (
            lambda wv: wv.add_vectors(["xyz"], np.zeros((1, 20))),
            r"^wv must keep the \d+ words of the vocabulary",
        ),
        (
            lambda wv: setattr(wv, "vectors_lockf", np.ones(3)),
            r"^wv\.vectors_lockf must be finite and have length",
        ),
        (lambda wv: setattr(wv, "vectors_lockf", np.full(1, np.inf)), r"^wv\.vectors_lockf must be finite and have"),
    ],
    ids=["nan", "new word", "length", "infinite"],
)
def test_edits_that_do_not_fit_are_refused(edit: Callable[[Any], None], message: str) -> None:
    trained = model().fit(LEE)
    edit(trained.wv)
    with pytest.raises(ValueError, match=message):
        trained.train(LEE)
    assert len(trained.losses_) == 3


def test_vectors_are_copied_for_users_when_they_ask_for_them() -> None:
    """A large model has its vectors once, then."""
    trained = model().fit(LEE)
    trained.train(LEE, epochs=1)
    assert trained._wv.vectors is None
    wv = trained.wv
    np.testing.assert_array_equal(wv.vectors, trained._v[:, :20])
    assert not np.shares_memory(wv.vectors, trained._v)
    assert trained.wv is wv
