"""Images in training: when they come in, which words they move, which banks are refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from lee import BANK, IMAGES, LEE, WORDS, assert_same, model

from imgskipgram import ImageBank
from imgskipgram._training import Plan


def test_images_come_in_after_a_fifth_and_are_placed_anew_twenty_times() -> None:
    marks = [Plan(5, 100, 1, 0, done).marks() for done in range(5)]
    assert marks == [[], *[[0, 25, 50, 75]] * 4]
    assert Plan(1, 100, 1, 0).marks() == list(range(20, 100, 5))
    assert Plan(3, 100, 1, 0, done=1).marks() == [0, 5, 20, 35, 50, 65, 80, 95]


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
    assert joint.image_vectors.shape == (IMAGES, 20)


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


@pytest.mark.parametrize("projection", ["fixed", "free"])
def test_the_mean_is_that_of_the_unit_vectors_of_words_with_images(projection: str) -> None:
    trained = model(projection=projection).fit(LEE, BANK)
    vectors = np.array([trained.wv[word] for word in WORDS], np.float64)
    mean = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).mean(0)
    np.testing.assert_allclose(trained._explanation_parts()["mu"], mean, rtol=1e-5, atol=1e-7)
