"""Training: losses, what is frozen, where images come in, and what is left when it breaks off."""

from __future__ import annotations

import copy
import math
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gensim.test.utils import datapath

from imgskipgram import ImageBank, ImageSkipGram, _reference
from imgskipgram._corpus import read
from imgskipgram._rows import exported, rounded
from imgskipgram._training import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LEE = datapath("lee_background.cor")
WORDS = ("said", "people", "Australian", "police")
ROWS = 24
_draw = np.random.default_rng(0)
BANK = ImageBank.from_features(_draw.normal(size=(ROWS, 6)), [WORDS[i % 4] for i in range(ROWS)])


def model(**options: Any) -> ImageSkipGram:
    return ImageSkipGram(**{"vector_size": 20, "workers": 1, "epochs": 3, **options})


def assert_same(a: ImageSkipGram, b: ImageSkipGram) -> None:
    np.testing.assert_array_equal(a.wv.vectors, b.wv.vectors)
    np.testing.assert_array_equal(a.syn1neg, b.syn1neg)
    if a.bank is not None:
        np.testing.assert_array_equal(a.image_vectors, b.image_vectors)


class At:
    """A callback that does something at the end of an epoch of the model's life, counted from 1."""

    def __init__(self, epoch: int, act: Callable[[ImageSkipGram], None]) -> None:
        self.epoch, self.act = epoch, act

    def on_epoch_end(self, model: ImageSkipGram) -> None:
        if len(model.losses_) == self.epoch:
            self.act(model)


class Broken(Exception):
    pass


def breaks(_: ImageSkipGram) -> None:
    raise Broken


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
            ROWS, 5, 5, 5, True, "center", seed=1, epoch=epoch,
        )
        for epoch in range(2)
    ]  # fmt: skip
    v, u = trained._v[:, :20].copy(), np.zeros((len(vocabulary), 20))
    z = np.zeros((ROWS, 20))
    model_z = trained._ground(BANK, vocabulary).first()
    z[:] = model_z
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


def test_images_come_in_after_a_fifth_and_are_placed_anew_twenty_times() -> None:
    plan = Plan(epochs=5, tokens=100, alpha=1, min_alpha=0)
    marks = [Plan(5, 100, 1, 0, done).marks() for done in range(5)]
    assert marks == [[], *[[0, 25, 50, 75]] * 4]
    assert Plan(1, 100, 1, 0).marks() == list(range(20, 100, 5))
    assert Plan(3, 100, 1, 0, done=1).marks() == [0, 5, 20, 35, 50, 65, 80, 95]
    assert plan.marks() == []


@pytest.mark.parametrize(("epochs", "share"), [(5, [0, 1, 1, 1, 1]), (2, [0.6, 1]), (1, [0.8])])
def test_the_shared_projection_begins_after_a_fifth(epochs: int, share: list[float]) -> None:
    trained = model(sample=0, epochs=epochs).fit(LEE, BANK)
    occurrences = sum(trained.wv.get_vecattr(word, "count") for word in WORDS)
    for row, part in zip(trained.losses_, share, strict=True):
        assert row["image_pairs"] == pytest.approx(part * occurrences, rel=0.2)
        assert (row["image_pairs"] in (0, occurrences)) == (part in (0, 1))
        assert (row["image"] > 0) == (part > 0)


def test_text_does_not_depend_on_where_images_are_placed() -> None:
    """With v frozen the image term changes nothing, but the epochs are trained in parts."""
    text, joint = model(), model()
    for trained in (text, joint):
        trained.build_vocab(LEE)
        trained.wv.vectors_lockf = np.zeros(1, np.float32)
    text.train(LEE)
    joint.train(LEE, BANK)
    assert joint.losses_[-1]["image_pairs"]
    np.testing.assert_array_equal(text.syn1neg, joint.syn1neg)


@pytest.mark.parametrize("projection", ["shared", "fixed", "free"])
def test_no_objective_is_no_weight_and_text_alone(projection: str) -> None:
    text = model().fit(LEE)
    none = model(objective="none", projection=projection).fit(LEE, BANK)
    zero = model(image_weight=0, projection=projection).fit(LEE, BANK)
    assert_same(none, zero)
    np.testing.assert_array_equal(none.wv.vectors, text.wv.vectors)
    _, z = none._ground(BANK, none._vocabulary).shared.fit(none.wv.vectors)
    np.testing.assert_array_equal(none.image_vectors, z)
    assert none.losses_ == text.losses_


@pytest.mark.parametrize("projection", ["shared", "fixed", "free"])
def test_images_move_the_words_that_they_show(projection: str) -> None:
    text, joint = model().fit(LEE), model(projection=projection, image_weight=5).fit(LEE, BANK)
    moved = np.linalg.norm(joint.wv.vectors - text.wv.vectors, axis=1)
    index = joint.wv.key_to_index
    assert min(moved[index[word]] for word in WORDS) > np.median(moved)
    lengths = np.linalg.norm(joint.image_vectors, axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    assert joint.image_vectors.dtype == np.float32
    assert joint.image_vectors.shape == (ROWS, 20)


def test_free_images_go_on_from_where_they_were() -> None:
    trained = model(projection="free", epochs=1).fit(LEE, BANK)
    begin = trained.image_vectors
    trained.train(LEE, epochs=1, start_alpha=1e-9, end_alpha=0)
    np.testing.assert_allclose(trained.image_vectors, begin, atol=1e-5)


def test_the_models_bank_is_used_where_none_is_given() -> None:
    one, two = model().fit(LEE, BANK), model().fit(LEE, BANK)
    one.train(LEE, BANK)
    two.train(LEE)
    assert_same(one, two)
    assert two.losses_[-1]["image_pairs"]


def test_fit_begins_anew_and_train_goes_on() -> None:
    trained = model().fit(LEE, BANK)
    trained.fit(LEE)
    assert_same(trained, model().fit(LEE))
    assert trained.bank is trained.image_vectors is None
    assert len(trained.losses_) == 3
    trained.train(LEE, epochs=1)
    assert len(trained.losses_) == 4


def test_too_few_images_are_refused() -> None:
    bank = ImageBank.from_features(np.eye(5), ["fire"] * 5)
    with pytest.raises(
        ValueError, match=r"^images must be more than image_negative=5, got 5; lower it, or add images$"
    ):
        model().fit(LEE, bank)
    assert model(objective="none").fit(LEE, bank).image_vectors is not None


def test_a_word_on_all_images_is_warned_of_once_and_gets_no_image_term() -> None:
    bank = ImageBank.from_features(np.eye(6), ["fire"] * 6)
    with pytest.warns(UserWarning, match=r"^all images show 'fire': none is left to tell it from") as caught:
        trained = model(projection="fixed").fit(LEE, bank)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert [row["image_pairs"] for row in trained.losses_] == [0, 0, 0]
    np.testing.assert_array_equal(trained.wv.vectors, model().fit(LEE).wv.vectors)


def test_a_bank_without_any_word_of_the_vocabulary_is_refused_before_anything_changes() -> None:
    bank = ImageBank.from_features(np.eye(6), [f"{i}xyz" for i in range(6)])
    trained = model().fit(LEE)
    before = copy.deepcopy(trained)
    message = r"^words of the bank must be in the vocabulary, got no such label; labels are '0xyz', .*, '4xyz'$"
    for call in (trained.fit, trained.train):
        with pytest.raises(ValueError, match=message):
            call(LEE, bank)
    assert_same(trained, before)
    with pytest.raises(TypeError, match=r"^images must be an ImageBank or None, got list$"):
        trained.train(LEE, [1])


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


def test_bfloat16_is_nearly_as_good_and_users_see_float32() -> None:
    whole, half = model(epochs=5).fit(LEE), model(epochs=5, dtype="bfloat16").fit(LEE)
    assert half._v.nbytes == whole._v.nbytes / 2
    assert half.wv.vectors.dtype == half.syn1neg.dtype == np.float32
    np.testing.assert_array_equal(half.wv.vectors, exported(half._v, 20))
    for a, b in zip(half.losses_, whole.losses_, strict=True):
        assert a == pytest.approx(b, rel=0.01)


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


def test_callbacks_are_called_in_gensims_order_with_the_vectors_of_the_epoch() -> None:
    calls, seen = [], []

    class Log:
        def __getattr__(self, name: str) -> Any:
            if not name.startswith("on_"):
                raise AttributeError(name)
            return lambda trained: calls.append((name, len(trained.losses_)))

        def on_epoch_end(self, trained: ImageSkipGram) -> None:
            calls.append(("on_epoch_end", len(trained.losses_)))
            seen.append((trained.wv, trained.wv.vectors.copy(), trained.syn1neg.copy()))

    trained = model(callbacks=[Log()], epochs=2).fit(LEE)
    assert calls == [
        ("on_train_begin", 0),
        ("on_epoch_begin", 0),
        ("on_epoch_end", 1),
        ("on_epoch_begin", 1),
        ("on_epoch_end", 2),
        ("on_train_end", 2),
    ]
    assert trained.wv is seen[1][0]
    assert (seen[0][1] != seen[1][1]).any()
    for wv, vectors, _ in seen:
        np.testing.assert_array_equal(wv.vectors, vectors)
    assert_same(trained, model(epochs=2).fit(LEE))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float64"},
        {"dtype": "bfloat16"},
        {"projection": "free", "deterministic": True},
        {"projection": "fixed", "objective": "margin", "negatives": "batch"},
        {"objective": "infonce", "negatives": "pair"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_what_broke_off_goes_on_to_the_same_bits(
    tmp_path: Any, options: dict[str, Any], epoch: int, suffix: str
) -> None:
    straight = model(**options).fit(LEE, BANK)
    broken = model(**options, callbacks=[At(epoch, breaks)])
    with pytest.raises(Broken):
        broken.fit(LEE, BANK)
    assert len(broken.losses_) == epoch
    broken.save(tmp_path / f"model{suffix}")
    loaded = ImageSkipGram.load(tmp_path / f"model{suffix}")
    assert_same(loaded, broken)
    loaded.train(LEE, BANK)
    assert_same(loaded, straight)
    assert loaded.losses_ == straight.losses_
    broken.callbacks = ()
    broken.train(LEE)
    assert_same(broken, straight)
    assert broken._plan is None


def test_a_model_saved_by_a_callback_goes_on(tmp_path: Any) -> None:
    saves = At(2, lambda trained: trained.save(tmp_path / "model.npz"))
    straight = model(callbacks=[saves]).fit(LEE, BANK)
    loaded = ImageSkipGram.load(tmp_path / "model.npz")
    loaded.train(LEE)
    assert_same(loaded, straight)


def test_what_broke_off_goes_on_with_its_corpus_or_gives_way_to_another_training() -> None:
    broken = model(callbacks=[At(1, breaks)])
    with pytest.raises(Broken):
        broken.fit(LEE)
    broken.callbacks = ()
    message = r"^corpus must be that of the training which was broken off, with 46\d+ words, got 2; give epochs"
    with pytest.raises(ValueError, match=message):
        broken.train(["the fire"])
    assert broken.train(["the fire"], epochs=1)[1] == 2
    assert broken._plan is None
    assert len(broken.losses_) == 2


@pytest.mark.parametrize("name", ["on_train_begin", "on_epoch_begin"])
def test_a_break_before_the_first_epoch_leaves_the_first_vectors(name: str) -> None:
    callback = type("Callback", (), {name: lambda _, trained: breaks(trained)})()
    broken, begun = model(callbacks=[callback]), model()
    begun.build_vocab(LEE)
    with pytest.raises(Broken):
        broken.fit(LEE)
    assert_same(broken, begun)
    broken.callbacks = ()
    broken.train(LEE)
    assert_same(broken, model().fit(LEE))


def test_a_device_that_does_not_know_an_option_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> None:
        raise ValueError("negatives")

    trained = model().fit(LEE, BANK)
    before = dict(vars(trained))
    monkeypatch.setattr("imgskipgram._training.engine", refuses)
    for call in (trained.fit, trained.train):
        with pytest.raises(ValueError, match=r"^negatives$"):
            call(LEE)
    assert all(getattr(trained, name) is value for name, value in before.items())


def test_vectors_that_are_not_finite_leave_the_model_as_it_was() -> None:
    trained = model().fit(LEE, BANK)
    before, wv, losses = copy.deepcopy(trained), trained.wv, trained.losses_
    message = r"^vectors must stay finite, got NaN or infinity for '\w+' after epoch [12] of 2; lower alpha$"
    with pytest.raises(FloatingPointError, match=message):
        trained.train(LEE, epochs=2, start_alpha=1e30)
    assert trained.wv is wv
    assert trained.losses_ is losses
    assert_same(trained, before)
    trained.alpha = 1e30
    with pytest.raises(FloatingPointError, match=message.replace(r"2; ", "3; ").replace("[12]", "[123]")):
        trained.fit(LEE)
    assert_same(trained, before)


CHILD = """
    import signal, sys
    import numpy as np
    from gensim.test.utils import datapath
    from imgskipgram import ImageSkipGram

    signal.signal(signal.SIGINT, signal.default_int_handler)
    lines = open(datapath("lee_background.cor")).read().splitlines() * 30
    last = []

    class Log:
        def on_epoch_begin(self, model):
            if model.losses_:
                print("in the second epoch", flush=True)

        def on_epoch_end(self, model):
            last[:] = model.wv.vectors.copy(), model.syn1neg.copy(), list(model.losses_)

    model = ImageSkipGram(workers=2, vector_size=100, epochs=20, callbacks=[Log()])
    try:
        model.fit(lines, progress=True)
    except KeyboardInterrupt:
        assert len(model.losses_) == 1
        assert model.losses_ == last[2]
        assert (model.wv.vectors == last[0]).all()
        assert (model.syn1neg == last[1]).all()
        assert model._plan.done == 1
        print("whole", flush=True)
"""


def test_an_interrupt_leaves_the_model_of_the_last_epoch() -> None:
    command = [sys.executable, "-c", textwrap.dedent(CHILD)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "in the second epoch\n"
        time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        start = time.monotonic()
        out, errors = child.communicate(timeout=60)
    assert out == "whole\n", errors
    assert time.monotonic() - start < 5


def lines() -> Iterator[str]:
    with open(LEE) as file:
        yield from file


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
