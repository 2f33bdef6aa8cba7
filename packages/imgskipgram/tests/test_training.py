"""Training: losses, rates, samples, forms of corpus and threads."""

from __future__ import annotations

import copy
import math
import warnings
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from lee import BANK, IMAGES, LEE, At, Broken, assert_same, breaks, lines, model

from imgskipgram import _reference
from imgskipgram._corpus import read
from imgskipgram._rows import exported

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize("negatives", ["center", "pair"])
@pytest.mark.parametrize("negative", [1, 5])
def test_the_first_loss_is_that_of_a_guess(negatives: str, negative: int) -> None:
    """With u = 0 every logistic is 1/2."""
    trained = model(alpha=1e-12, min_alpha=0, epochs=1, negatives=negatives, negative=negative).fit(LEE)
    assert trained.losses_[0]["text"] == pytest.approx((1 + negative) * math.log(2), rel=1e-6)


def test_the_loss_falls_for_ten_epochs() -> None:
    losses = [row["text"] for row in model(epochs=10).fit(LEE).losses_]
    assert len(losses) == 10
    assert losses == sorted(losses, reverse=True)
    assert losses[0] < 6 * math.log(2)


def test_a_sampled_loss_is_near_to_the_exact_one_and_changes_no_bit() -> None:
    losses, models = {}, {}
    for kind in ("exact", "sampled", "none"):
        models[kind] = model(sample=0)
        models[kind].build_vocab(LEE)
        models[kind].train(LEE, compute_loss=kind)
        losses[kind] = models[kind].losses_[-1]
        assert_same(models[kind], models["exact"])
        assert losses[kind]["text_pairs"] == losses["exact"]["text_pairs"]
    assert losses["sampled"]["text"] != losses["exact"]["text"]
    assert losses["sampled"]["text"] == pytest.approx(losses["exact"]["text"], rel=0.02)
    assert math.isnan(losses["none"]["text"])
    with pytest.raises(ValueError, match=r"^compute_loss must be 'exact', 'sampled' or 'none', got True$"):
        models["exact"].train(LEE, compute_loss=True)


@pytest.mark.parametrize("objective", ["nce", "margin", "infonce"])
@pytest.mark.parametrize("projection", ["fixed", "free"])
def test_a_training_is_that_of_the_definition(objective: str, projection: str) -> None:
    """Vectors, images and losses of two epochs, from the options on, in double precision."""
    with open(LEE) as file:
        lines = list(islice(file, 8))
    options = {"min_count": 1, "sample": 0.01, "alpha": 0.05, "dtype": "float64", "epochs": 2, "image_weight": 0.5}
    trained = model(objective=objective, projection=projection, **options)
    trained.build_vocab(lines)
    vocabulary, tokens = read(lines, trained._options.trim)
    start, images = BANK.images_of(vocabulary.index)
    samples = [
        _reference.Samples(
            vocabulary.keep(0.01), *vocabulary.noise(0.75), [images[a:b].tolist() for a, b in pairwise(start)],
            IMAGES, 5, 5, 5, True, "center", seed=1, epoch=epoch,
        )
        for epoch in range(2)
    ]  # fmt: skip
    v, u = trained._v[:, :20].copy(), np.zeros((len(vocabulary), 20))
    z = trained._ground(BANK, vocabulary).first().astype(float)
    lock = np.ones(len(v))
    sums = []
    for epoch, drawn in enumerate(samples):
        sums.append(np.zeros(4))
        for s in range(len(lines)):
            begin, end = tokens.offsets[s : s + 2]
            assert end * 2 < 10_000  # one rate in each epoch, that of its first token
            rate = 0.05 - (0.05 - 1e-4) * (epoch * len(tokens.ids)) / (2 * len(tokens.ids))
            sums[-1] += _reference.train_sentence(
                tokens.ids[begin:end], s, drawn, v, u, z, lock, rate, objective, 0.5, projection == "free"
            )
    trained.train(lines, BANK)
    np.testing.assert_allclose(trained._v[:, :20], v, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(trained._u[:, :20], u, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(
        trained.image_vectors, z / np.linalg.norm(z, axis=1, keepdims=True), rtol=1e-5, atol=1e-6
    )
    for row, (text, image, pairs, shown) in zip(trained.losses_, sums, strict=True):
        assert (row["text_pairs"], row["image_pairs"]) == (pairs, shown)
        assert row["text"] == pytest.approx(text / pairs, rel=1e-6)
        assert row["image"] == pytest.approx(image / shown, rel=1e-6)


def test_the_words_that_are_counted_are_those_of_gensim() -> None:
    trained = model()
    trained.build_vocab(LEE)
    effective, raw = trained.train(LEE, epochs=2)
    assert raw == 2 * 59890
    keep = trained._vocabulary.keep(1e-3).astype(float) / 2.0**32
    expected = 2 * (keep * trained._vocabulary.counts).sum()
    assert abs(effective - expected) < 5 * math.sqrt(expected)


def test_rates_fall_over_all_epochs_and_may_be_given() -> None:
    """A rate of nothing changes nothing, so that vectors say which rates were used."""
    trained = model()
    trained.build_vocab(LEE)
    first = trained.wv.vectors
    trained.train(LEE, epochs=1, start_alpha=1e-30, end_alpha=0)
    np.testing.assert_allclose(trained.wv.vectors, first, atol=1e-25)
    low, high = copy.deepcopy(trained), copy.deepcopy(trained)
    low.train(LEE, epochs=1, start_alpha=0.01, end_alpha=0.01)
    high.train(LEE, epochs=1, start_alpha=0.05, end_alpha=0.05)
    assert np.linalg.norm(high.wv.vectors - first) > 2 * np.linalg.norm(low.wv.vectors - first)
    for options, message in (
        ({"start_alpha": 0}, r"^start_alpha must be positive and finite, got 0\.0$"),
        ({"end_alpha": 1}, r"^end_alpha must be non-negative and at most start_alpha=0\.025, got 1\.0$"),
        ({"epochs": 0}, r"^epochs must be a positive integer, got 0$"),
    ):
        with pytest.raises(ValueError, match=message):
            low.train(LEE, **options)


def test_two_trainings_in_a_row_draw_other_samples() -> None:
    once, twice = model(alpha=0.01, min_alpha=0.01), model(alpha=0.01, min_alpha=0.01, epochs=1)
    once.fit(LEE)
    twice.fit(LEE)
    twice.train(LEE)
    twice.train(LEE)
    assert_same(once, twice)
    assert once.losses_ == twice.losses_


def test_fit_begins_anew_and_train_goes_on() -> None:
    trained = model().fit(LEE, BANK)
    trained.fit(LEE)
    assert_same(trained, model().fit(LEE))
    assert trained.bank is trained.image_vectors is None
    assert len(trained.losses_) == 3
    trained.train(LEE, epochs=1)
    assert len(trained.losses_) == 4


def test_bfloat16_is_nearly_as_good_and_users_see_float32() -> None:
    whole, half = model(epochs=5).fit(LEE), model(epochs=5, dtype="bfloat16").fit(LEE)
    assert half._v.nbytes == whole._v.nbytes / 2
    assert half.wv.vectors.dtype == half.syn1neg.dtype == np.float32
    np.testing.assert_array_equal(half.wv.vectors, exported(half._v, 20))
    for a, b in zip(half.losses_, whole.losses_, strict=True):
        assert a == pytest.approx(b, rel=0.01)


class Lines:
    def __iter__(self) -> Iterator[str]:
        return lines()


@pytest.mark.parametrize("projection", ["shared", "free"])
def test_a_streamed_corpus_gives_the_bits_of_a_cached_one(monkeypatch: pytest.MonkeyPatch, projection: str) -> None:
    """In pieces of 7 sentences, none of which ends where images are placed."""
    monkeypatch.setattr("imgskipgram._corpus._BATCH", 7)
    cached = model(projection=projection).fit(LEE, BANK)
    streamed = model(projection=projection).fit(Lines(), BANK, cache_dir=False)
    assert_same(streamed, cached)
    for a, b in zip(streamed.losses_, cached.losses_, strict=True):
        assert a == pytest.approx(b, rel=1e-12)  # sums of other parts


def test_a_stream_that_breaks_off_leaves_a_plan_for_a_cached_training() -> None:
    broken = model(callbacks=[At(1, breaks)])
    with pytest.raises(Broken):
        broken.fit(LEE, cache_dir=False)
    broken.callbacks = ()
    broken.train(LEE)
    assert_same(broken, model().fit(LEE))


def test_a_generator_is_read_once() -> None:
    assert_same(model().fit(lines()), model().fit(LEE))
    trained = model()
    generator = lines()
    trained.build_vocab(generator)
    with pytest.raises(ValueError, match=r"pass a re-iterable corpus or use fit$"):
        trained.train(generator)
    with pytest.raises(ValueError, match=r"pass a re-iterable corpus or use fit$"):
        trained.fit(lines(), cache_dir=False)
    trained.train(lines())
    assert_same(trained, model().fit(LEE))


def test_one_long_line_is_trained_whole() -> None:
    """gensim cuts sentences at 10,000 words."""
    line = " ".join(word for sentence in lines() for word in sentence.split())
    trained = model(sample=0, shrink_windows=False, window=4, epochs=1).fit([line])
    n = int(trained._vocabulary.counts.sum())
    assert n > 40_000
    assert trained.losses_[0]["text_pairs"] == sum(min(i, 4) + min(n - 1 - i, 4) for i in range(n))


def test_threads_change_no_sample() -> None:
    counts = {
        (row["text_pairs"], row["image_pairs"]) for w in (1, 2, 5) for row in model(workers=w).fit(LEE, BANK).losses_
    }
    assert len(counts) == 3  # one for each epoch


@pytest.mark.parametrize("projection", ["shared", "free"])
def test_a_deterministic_training_has_the_same_bits_for_any_number_of_threads(projection: str) -> None:
    options = {"deterministic": True, "projection": projection, "sample": 0.01}
    one, *others = (model(**options, workers=workers).fit(LEE, BANK) for workers in (1, 2, 3, 8))
    for other in others:
        assert_same(other, one)
        assert other.losses_ == one.losses_
    assert one.losses_[-1]["image_pairs"]


def test_nothing_is_shown_without_progress_and_a_bar_with_it(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(epochs=1).fit(LEE)
        assert capfd.readouterr() == ("", "")
        model(epochs=1).fit(LEE, progress=True)
    out, errors = capfd.readouterr()
    assert "100%" in errors
    assert not out
