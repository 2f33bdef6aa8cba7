"""The protocol of held-out words: numbers against plain counting, controls, what fails the check of the cone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from imgskipgram import ImageBank, ImageSkipGram
from imgskipgram.evaluate import Cone, Grounding, Retrieval, grounding, split
from imgskipgram.evaluate._retrieval import chance, csls, retrieval, unit

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

KINDS, THINGS, PICTURES = 12, 8, 2


@pytest.fixture(scope="module")
def corpus() -> list[list[str]]:
    """Sentences in which the things of a kind have the same neighbours."""
    draw = np.random.default_rng(0)
    common = [f"common{i}" for i in range(20)]
    sentences = []
    for _ in range(12000):
        kind = draw.integers(KINDS)
        around = [f"about{kind}x{i}" for i in draw.integers(0, 6, 4)]
        words = [thing(kind, draw.integers(THINGS)), *around, *draw.choice(common, 2)]
        sentences.append([str(word) for word in draw.permutation(words)])
    return sentences


def thing(kind: int, number: int) -> str:
    return f"thing{kind}x{number}"


@pytest.fixture(scope="module")
def bank() -> ImageBank:
    """Pictures of a kind are alike; some have no label."""
    draw = np.random.default_rng(1)
    middles = draw.normal(size=(KINDS, 24))
    features, labels = [], []
    for kind in range(KINDS):
        for number in range(THINGS + 1):
            own = draw.normal(size=24) * 0.4
            for _ in range(PICTURES):
                features.append(np.maximum(middles[kind] + own + 0.2 * draw.normal(size=24), 0))
                labels.append(thing(kind, number) if number < THINGS else ())
    return ImageBank.from_features(features, labels)


def kinds_of(bank: ImageBank) -> list[int]:
    return [row // ((THINGS + 1) * PICTURES) for row in range(len(bank))]


def trained(corpus: Any, bank: ImageBank, **options: Any) -> tuple[ImageSkipGram, tuple[str, ...]]:
    model = ImageSkipGram(vector_size=32, min_count=1, window=3, sample=0, workers=1, **options)
    model.build_vocab(corpus)
    rest, words = split(bank, model.wv)
    model.train(corpus, rest)
    return model, words


@pytest.fixture(scope="module")
def joint(corpus: Any, bank: ImageBank) -> tuple[ImageSkipGram, tuple[str, ...]]:
    return trained(corpus, bank)


@pytest.fixture(scope="module")
def measured(joint: Any, bank: ImageBank) -> Grounding:
    return grounding(*joint, classes=kinds_of(bank))


# --- the protocol ---


def test_words_find_pictures_they_were_never_shown_with_and_controls_do_not(measured: Grounding) -> None:
    assert measured.words == int(0.2 * KINDS * THINGS)
    assert measured.images == KINDS * (THINGS + 1) * PICTURES
    assert measured.control == "retrained"
    assert measured.permuted is not None
    assert measured.permuted_labelled is not None
    assert measured.model.any_10 > 0.4
    assert measured.model.any_10 > 2 * max(measured.permuted.any_10, measured.permuted_labelled.any_10)
    assert measured.permuted.median_rank > 3 * measured.model.median_rank
    assert measured.linear.any_10 > measured.permuted.any_10
    assert measured.ridge_csls.any_10 > measured.permuted.any_10
    assert measured.rsa_images > 0.3
    assert measured.rsa_features > 0.1


def test_most_pictures_of_a_held_out_word_are_of_its_kind(measured: Grounding) -> None:
    assert measured.model.precision_9 is not None
    assert measured.permuted is not None
    assert measured.permuted.precision_9 is not None
    assert measured.model.precision_9 > 0.6
    assert measured.permuted.precision_9 < 0.3
    assert measured.chance.precision_9 == pytest.approx(1 / KINDS)


def test_the_model_is_ranked_by_what_explain_shows(joint: Any, measured: Grounding, bank: ImageBank) -> None:
    model, words = joint
    hits = near = same = 0
    ranks = []
    kinds = kinds_of(bank)
    for word in words:
        order = [row for row, _, _ in model.explain(word, topn=len(bank)).images]
        own = [row for row, labels in enumerate(bank.words) if word in labels]
        ranks.append(1 + order.index(own[0]))
        hits += ranks[-1] <= 10
        near += min(order.index(row) for row in own) < 10
        same += sum(kinds[row] == kinds[own[0]] for row in order[:9])
    assert measured.model.hit_10 == pytest.approx(hits / len(words))
    assert measured.model.any_10 == pytest.approx(near / len(words))
    assert measured.model.median_rank == np.median(ranks)
    assert measured.model.precision_9 == pytest.approx(same / len(words) / 9)


def test_vectors_fill_their_space(measured: Grounding) -> None:
    assert abs(measured.cone.word_image) < 0.05
    assert abs(measured.cone.image_image) < 0.05
    assert measured.cone.effective_rank > 8


def test_free_images_crowd_into_a_cone_and_find_nothing(corpus: Any, bank: ImageBank, measured: Grounding) -> None:
    """What the check of the cone is for: images that are parameters flee from the words that they are negatives of."""
    model, words = trained(corpus, bank, projection="free")
    found = grounding(model, words, control=False)
    assert max(abs(found.cone.word_image), abs(found.cone.image_image)) > 0.05
    assert found.cone.image_image > 5 * abs(measured.cone.image_image)
    assert found.model.any_10 < measured.model.any_10 / 2
    trained_words = [word for word in model.wv.key_to_index if word.startswith("thing") and word not in words]
    hits = [
        word in {label for row, _, _ in model.explain(word, topn=10).images for label in bank.words[row]}
        for word in trained_words
    ]
    assert np.mean(hits) > 0.5  # and yet it looks well where it was trained


def test_text_alone_is_placed_afterwards_and_its_control_is_refitted(corpus: Any, bank: ImageBank) -> None:
    model, words = trained(corpus, bank, objective="none")
    found = grounding(model, words)
    assert found.control == "refitted"
    assert found.permuted is not None
    assert found.model.any_10 > 3 * found.permuted.any_10


def test_a_saved_model_is_measured_as_before_without_its_corpus(
    joint: Any, measured: Grounding, tmp_path: Path
) -> None:
    model, words = joint
    model.save(tmp_path / "model.npz")
    found = grounding(ImageSkipGram.load(tmp_path / "model.npz"), sorted(words))
    assert found.control == "refitted"
    for name in ("ridge", "ridge_csls", "linear", "model"):
        assert getattr(found, name) == replace(getattr(measured, name), precision_9=None)
    assert found.cone == measured.cone
    assert (found.rsa_features, found.rsa_images) == (measured.rsa_features, measured.rsa_images)


def test_the_control_leaves_the_model_as_it_is(joint: Any, measured: Grounding) -> None:
    model, words = joint
    before = dict(vars(model))
    vectors, z = model.wv.vectors.copy(), model.image_vectors.copy()
    again = grounding(model, words)
    assert all(vars(model)[name] is value for name, value in before.items())
    assert np.array_equal(model.wv.vectors, vectors)
    assert np.array_equal(model.image_vectors, z)
    assert again.permuted == replace(measured.permuted or again.ridge, precision_9=None)


def test_it_prints_a_table(measured: Grounding) -> None:
    text = str(measured)
    for name in ("model", "ridge + CSLS", "P + CSLS", "permuted, retrained", "permuted, labelled", "chance"):
        assert f"\n{name} " in text
    assert f"{100 * measured.model.hit_10:.1f}" in text
    assert len({len(line) for line in text.splitlines()[2:9]}) == 1


def test_images_hidden_in_a_bank_survive_files_and_further_hiding(bank: ImageBank, tmp_path: Path) -> None:
    once = bank.without_labels([thing(0, 0)])
    twice = once.without_labels([thing(1, 1)])
    twice.save(tmp_path / "bank.npz")
    assert ImageBank.load(tmp_path / "bank.npz").hidden == twice.hidden
    assert {label for labels in twice.hidden for label in labels} == {thing(0, 0), thing(1, 1)}
    assert not any(bank.hidden)


# --- refusals ---


def test_words_that_were_shown_are_refused(joint: Any, bank: ImageBank) -> None:
    model, words = joint
    shown = next(word for labels in model.bank.words for word in labels)
    with pytest.raises(
        ValueError, match=rf"held_out must be words whose labels the model was not shown, got '{shown}'"
    ):
        grounding(model, [*words, shown])


def test_words_without_hidden_pictures_are_refused(joint: Any) -> None:
    with pytest.raises(ValueError, match=r"held_out must have a word of the vocabulary whose labels were taken"):
        grounding(joint[0], ["common1", "unknown"])


def test_classes_must_fit_the_bank(joint: Any) -> None:
    with pytest.raises(ValueError, match=r"classes must have one entry per image of the bank, got 3 for 216"):
        grounding(*joint, classes=[1, 2, 3])


def test_a_model_without_images_is_refused(corpus: Any) -> None:
    model = ImageSkipGram(vector_size=4, epochs=1, workers=1).fit(corpus[:200])
    with pytest.raises(RuntimeError, match=r"there are no images"):
        grounding(model, ["thing0x0"])


# --- ranks ---


def test_ranks_are_counted_plainly() -> None:
    draw = np.random.default_rng(0)
    queries, pictures = unit(draw.normal(size=(300, 5))), unit(draw.normal(size=(70, 5)))
    own = [draw.choice(70, size=1 + i % 3, replace=False) for i in range(300)]
    setback, kinds = draw.random(70), draw.integers(0, 3, 70)
    found = retrieval(queries, pictures, own, setback, kinds)
    first, best, occurrences, same = [], [], np.zeros(70, int), []
    for query, mine in zip(queries, own, strict=True):
        order = np.argsort(-(2 * pictures @ query - setback))
        place = {int(row): 1 + rank for rank, row in enumerate(order)}
        first.append(place[int(mine[0])])
        best.append(min(place[int(row)] for row in mine))
        occurrences[order[:10]] += 1
        same.append(np.mean(kinds[order[:9]] == kinds[mine[0]]))
    assert found.hit_1 == np.mean(np.array(first) == 1)
    assert found.hit_10 == np.mean(np.array(first) <= 10)
    assert found.any_1 == np.mean(np.array(best) == 1)
    assert found.any_10 == np.mean(np.array(best) <= 10)
    assert found.median_rank == np.median(first)
    assert found.hubness == occurrences.max()
    assert found.precision_9 == pytest.approx(np.mean(same))
    ways = [
        np.mean([draw.choice(69, 49, replace=False).__lt__(rank - 1).sum() < 10 for _ in range(200)]) for rank in first
    ]
    assert found.fifty_way == pytest.approx(np.mean(ways), abs=0.005)


def test_ties_count_against_the_word() -> None:
    everywhere = np.ones((40, 3)) / np.sqrt(3)
    found = retrieval(everywhere[:5], everywhere, [np.array([0])] * 5)
    assert found == Retrieval(0, 0, 0, 0, 40, 0, 5)


def test_chance_is_what_random_orders_give() -> None:
    draw = np.random.default_rng(0)
    own = [draw.choice(200, size=1 + i % 4, replace=False) for i in range(400)]
    kinds = draw.integers(0, 2, 200)
    many = [
        retrieval(unit(draw.normal(size=(400, 50))), unit(draw.normal(size=(200, 50))), own, kinds=kinds)
        for _ in range(20)
    ]
    expected = chance(200, own, kinds)
    for name, tolerance in {
        "hit_1": 0.003,
        "hit_10": 0.01,
        "any_10": 0.01,
        "fifty_way": 0.02,
        "precision_9": 0.02,
    }.items():
        assert np.mean([getattr(one, name) for one in many]) == pytest.approx(getattr(expected, name), abs=tolerance)


def test_hubs_are_set_back_by_their_nearest_words() -> None:
    draw = np.random.default_rng(0)
    pictures, words = unit(draw.normal(size=(300, 6))), unit(draw.normal(size=(50, 6)))
    expected = [np.sort(words @ picture)[-10:].mean() for picture in pictures]
    np.testing.assert_allclose(csls(pictures, words), expected)
    np.testing.assert_allclose(csls(pictures, words[:3]), [(words[:3] @ picture).mean() for picture in pictures])


def test_a_cone_is_seen() -> None:
    from imgskipgram.evaluate._grounding import _cone

    def spread(shift: float) -> NDArray[np.float64]:
        return unit(np.random.default_rng(0).normal(size=(500, 10)) + shift * np.eye(10)[0])

    assert _cone(spread(0)[:9], spread(0)).effective_rank == pytest.approx(10, abs=0.3)
    narrow = _cone(-spread(9)[:9], spread(9))
    assert narrow.word_image < -0.8
    assert narrow.image_image > 0.8
    assert narrow.effective_rank < 3
    plain = spread(2)
    cosines = plain @ plain.T
    found: Cone = _cone(plain[:7], plain)
    assert found.word_image == pytest.approx((plain[:7] @ plain.T).mean())
    assert found.image_image == pytest.approx(cosines[~np.eye(500, dtype=bool)].mean())
