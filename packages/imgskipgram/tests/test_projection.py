"""Images in the words' space: against the definitions in float64, at the edges, and without tables of M x M."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import imgskipgram._projection as projection
from imgskipgram import ImageBank
from imgskipgram._projection import Shared, fixed, linear

if TYPE_CHECKING:
    from numpy.typing import NDArray


def bank(images: int = 70, size: int = 30, words: int = 12, seed: int = 0, both: int = 5) -> ImageBank:
    """Features of a backbone's kind, not negative; two thirds of the images have a label, some have two."""
    draw = np.random.default_rng(seed)
    kinds = draw.integers(0, words, images)
    features = np.maximum(draw.normal(size=(words, size))[kinds] + 0.7 * draw.normal(size=(images, size)), 0)
    labels: list[Any] = [f"word{kind}" if row % 3 else () for row, kind in enumerate(kinds)]
    for row in range(both):
        labels[row] = (f"word{row % words}", f"word{(row + 1) % words}")
    return ImageBank.from_features(features, labels)


def vocabulary(words: int = 12) -> dict[str, int]:
    """Of which the labels are every second word."""
    return {name: number for number, name in enumerate(n for i in range(words) for n in (f"other{i}", f"word{i}"))}


def vectors(rows: int = 24, size: int = 8, seed: int = 1) -> NDArray[np.float32]:
    draw = np.random.default_rng(seed)
    return (draw.normal(size=(rows, size)) * draw.uniform(0.1, 4, (rows, 1)) + 0.5).astype(np.float32)


def unit(rows: NDArray[Any]) -> NDArray[Any]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def definition(given: ImageBank, numbers: dict[str, int]) -> tuple[NDArray[Any], list[int]]:
    """T, entry by entry as the docstring has it, and the numbers of its columns' words."""
    features = given.features.astype(np.float64)
    pairs = [(i, numbers[word]) for i, labels in enumerate(given.words) for word in labels if word in numbers]
    words = sorted({word for _, word in pairs})
    x = unit(np.sign(features) * np.abs(features) ** 0.25)
    x = unit(x - x.mean(0))
    cosines = x @ x.T
    kernel = np.exp(-1.25 * ((x[:, None] - x[None]) ** 2).sum(-1))
    count = {word: sum(w == word for _, w in pairs) for word in words}
    weights = np.array([count[word] ** -0.5 for _, word in pairs])
    weights /= weights.mean()
    rows = [i for i, _ in pairs]
    indicator = np.array([[float(word == w) for w in words] for _, word in pairs])
    first = kernel[:, rows] @ np.linalg.inv(kernel[np.ix_(rows, rows)] + np.diag(0.3 / weights)) @ indicator
    near = np.zeros_like(cosines)
    for i, row in enumerate(cosines):
        others = [j for j in np.argsort(-row) if j != i][:20]
        near[i, others] = np.maximum(row[others], 0)
    near = near + near.T
    near /= near.sum(1, keepdims=True)
    table = first
    for _ in range(20):
        table = 0.5 * first + 0.5 * near @ table
    return table, words


def directly(
    given: ImageBank, numbers: dict[str, int], v: NDArray[Any], own: bool
) -> tuple[NDArray[Any], NDArray[Any]]:
    table, words = definition(given, numbers)
    if not own:
        for i, labels in enumerate(given.words):
            table[i, [words.index(numbers[word]) for word in labels]] = 0
    rows = unit(v[words].astype(np.float64))
    mu = rows.mean(0)
    return mu, unit(table @ (rows - mu))


def test_images_lie_where_the_definition_in_float64_says() -> None:
    given, numbers, v = bank(), vocabulary(), vectors()
    mu, z = Shared(given.features, *given.images_of(numbers)).fit(v)
    expected_mu, expected = directly(given, numbers, v, own=True)
    assert mu.dtype == z.dtype == np.float32
    np.testing.assert_allclose(mu, expected_mu, atol=1e-6)
    np.testing.assert_allclose(z, expected, atol=2e-5)


def test_training_draws_a_word_to_what_the_other_words_say_of_its_images() -> None:
    given, numbers, v = bank(), vocabulary(), vectors()
    z = Shared(given.features, *given.images_of(numbers)).pull(v)
    np.testing.assert_allclose(z, 2 * directly(given, numbers, v, own=False)[1], atol=1e-4)


def test_an_image_of_every_word_is_drawn_nowhere() -> None:
    everything = tuple(f"word{i}" for i in range(12))
    given = bank()
    given = ImageBank.from_features(given.features, [everything, *given.words[1:]])
    z = Shared(given.features, *given.images_of(vocabulary())).pull(vectors())
    assert not z[0].any()
    np.testing.assert_allclose(np.linalg.norm(z[1:], axis=1), 2, rtol=1e-6)


def test_lengths_of_word_vectors_do_not_matter_and_words_without_a_direction_are_left_out() -> None:
    given, numbers, v = bank(), vocabulary(), vectors()
    shared = Shared(given.features, *given.images_of(numbers))
    mu, z = shared.fit(v)
    scaled_mu, scaled = shared.fit(v * np.linspace(0.5, 7, len(v), dtype=np.float32)[:, None])
    np.testing.assert_allclose(scaled_mu, mu, atol=1e-6)
    np.testing.assert_allclose(scaled, z, atol=1e-5)
    v[3] = 0
    mu, z = shared.fit(v)
    rows = unit(v[[w for w in range(1, 24, 2) if w != 3]].astype(np.float64))
    np.testing.assert_allclose(mu, rows.mean(0), atol=1e-6)
    assert np.isfinite(z).all()


def test_landmarks_that_are_all_images_give_the_exact_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    given, numbers, v = bank(), vocabulary(), vectors()
    arguments = (given.features, *given.images_of(numbers))
    exact = Shared(*arguments)
    monkeypatch.setattr(projection, "_EXACT", 0)
    landmarks = Shared(*arguments)
    np.testing.assert_allclose(landmarks.fit(v)[1], exact.fit(v)[1], atol=2e-5)
    np.testing.assert_allclose(landmarks.pull(v), exact.pull(v), atol=1e-4)


def test_fewer_landmarks_than_words_still_place_images_near_to_where_all_would(monkeypatch: pytest.MonkeyPatch) -> None:
    given, numbers, v = bank(400, words=40), vocabulary(40), vectors(80)
    arguments = (given.features, *given.images_of(numbers))
    exact = Shared(*arguments)
    monkeypatch.setattr(projection, "_EXACT", 0)
    monkeypatch.setattr(projection, "_LANDMARKS", 39)
    landmarks = Shared(*arguments)
    assert landmarks._right is not None  # kept as a product, which is smaller
    cosines = (landmarks.fit(v)[1] * exact.fit(v)[1]).sum(1)
    assert cosines.mean() > 0.8, cosines.mean()
    table = landmarks._left @ landmarks._right
    own = np.zeros_like(table)
    for word, name in enumerate(sorted(landmarks._words)):
        rows = arguments[2][int(arguments[1][name]) : int(arguments[1][name + 1])]
        own[rows, word] = table[rows, word]
    np.testing.assert_allclose(landmarks._own.toarray(), own, atol=1e-5)


def test_of_every_word_one_landmark_comes_before_any_second() -> None:
    columns = np.repeat(np.arange(50), np.arange(1, 51))
    rows = np.arange(len(columns))
    chosen = projection._landmarks(rows, columns)
    assert sorted(columns[chosen[:50]]) == list(range(50))
    assert sorted(chosen) == list(rows)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    given, v = bank(), vectors()
    arguments = (given.features, *given.images_of(vocabulary()))
    expected = Shared(*arguments).fit(v)[1]
    monkeypatch.setattr(projection, "_ROWS", 7)
    monkeypatch.setattr(projection, "_COLUMNS", 5)
    np.testing.assert_allclose(Shared(*arguments).fit(v)[1], expected, atol=1e-5)


def test_directions_that_hold_all_differences_give_the_same_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    given, v = bank(size=400), vectors()
    arguments = (given.features, *given.images_of(vocabulary()))
    expected = Shared(*arguments).fit(v)[1]
    monkeypatch.setattr(projection, "_MANY", 0)
    np.testing.assert_allclose(Shared(*arguments).fit(v)[1], expected, atol=1e-4)
    monkeypatch.setattr(projection, "_DIRECTIONS", 5)
    fewer = Shared(*arguments).fit(v)[1]
    assert 0.7 < (fewer * expected).sum(1).mean() < 0.9999


def test_no_table_of_all_images_by_all_images_is_made() -> None:
    given = bank(6000, size=16)
    arguments = (given.features, *given.images_of(vocabulary()))
    tracemalloc.start()
    Shared(*arguments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    table = 4 * 6000 * 12 + 4 * 6000 * 4000  # T, and the kernel between images and pairs
    assert peak < 1.7 * table + 6000 * 6000, f"{peak / 1e6:.0f} MB"


EDGES: dict[str, tuple[Any, list[Any]]] = {
    "one labelled word": (np.random.default_rng(0).random((9, 5)), ["word1", *[()] * 8]),
    "all images of one word": (np.random.default_rng(0).random((9, 5)), ["word1"] * 9),
    "pairs of equal images": (np.repeat(np.random.default_rng(0).random((5, 5)), 2, axis=0), ["word1", "word2"] * 5),
    "one feature": (np.arange(9.0)[:, None], ["word1", "word2", "word3"] * 3),
    "two images": ([[1.0, 0.0], [0.0, 1.0]], ["word1", "word2"]),
    "one image": ([[1.0, 2.0]], ["word1"]),
    "black pictures": (np.vstack([np.zeros((3, 4)), np.eye(4)]), ["word1", "word2", "word3", *[()] * 4]),
    "features of both signs": (np.random.default_rng(0).normal(size=(40, 3)), ["word1", "word2", (), ()] * 10),
    "huge features": (np.random.default_rng(0).normal(size=(30, 3)) * 1e38, ["word1", "word2", "word3"] * 10),
    "tiny features": (np.random.default_rng(0).normal(size=(30, 3)) * 1e-38, ["word1", "word2", "word3"] * 10),
    "opposite features": (np.array([[1.0], [-1.0]] * 4), ["word1", "word2"] * 4),
}


@pytest.mark.parametrize("edge", EDGES)
def test_edges_give_finite_vectors_of_the_promised_length(edge: str) -> None:
    given = ImageBank.from_features(*EDGES[edge])
    arguments = (given.features, *given.images_of(vocabulary()))
    v = vectors()
    shared = Shared(*arguments)
    mu, z = shared.fit(v)
    assert np.isfinite(mu).all()
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
    lengths = np.linalg.norm(shared.pull(v), axis=1)
    assert (np.isclose(lengths, 2) | (lengths == 0)).all()
    for array in (*linear(*arguments, v), fixed(given.features, 8)):
        assert np.isfinite(array).all()


def test_a_word_alone_is_not_drawn_to_its_pictures_and_does_not_vanish_from_explanations() -> None:
    given = ImageBank.from_features(*EDGES["one labelled word"])
    shared = Shared(given.features, *given.images_of(vocabulary()))
    mu, z = shared.fit(vectors())
    assert not mu.any()
    assert z[0] @ vectors()[3] > 0
    assert not shared.pull(vectors()).any()


def test_word_vectors_without_any_direction_give_zeros() -> None:
    given = bank()
    shared = Shared(given.features, *given.images_of(vocabulary()))
    mu, z = shared.fit(np.zeros((24, 8), np.float32))
    assert not mu.any()
    assert not z.any()
    assert not shared.pull(np.zeros((24, 8), np.float32)).any()


@pytest.mark.parametrize(("images", "size"), [(70, 30), (20, 150), (300, 130)])
def test_the_linear_map_equals_a_solve_in_float64(images: int, size: int) -> None:
    """By least squares on rows that say "P is 0", over components by a singular value decomposition."""
    given, numbers, v = bank(images, size), vocabulary(), vectors()
    mu, z = linear(given.features, *given.images_of(numbers), v)
    pairs = [(i, numbers[word]) for i, labels in enumerate(given.words) for word in labels]
    words = sorted({word for _, word in pairs})
    expected_mu = unit(v[words].astype(np.float64)).mean(0)
    centred = given.features.astype(np.float64) - given.features.astype(np.float64).mean(0)
    count = min(100, size, images - 1)
    parts = centred @ np.linalg.svd(centred, full_matrices=False)[2][:count].T
    inputs = parts[[i for i, _ in pairs]]
    targets = np.stack([unit(v[word : word + 1].astype(np.float64))[0] - expected_mu for _, word in pairs])
    weight = np.sqrt(7.5 * (inputs**2).sum() / count)
    p = np.linalg.lstsq(
        np.vstack([inputs, weight * np.eye(count)]), np.vstack([targets, np.zeros((count, targets.shape[1]))])
    )[0]
    np.testing.assert_allclose(mu, expected_mu, atol=1e-12)
    np.testing.assert_allclose(z, unit(parts @ p), atol=1e-6)


def test_fixed_images_are_their_principal_components_and_zeros_behind_the_rank() -> None:
    features = bank(40, 30).features
    z = fixed(features, 50)
    assert z.shape == (40, 50)
    assert not z[:, 30:].any()
    centred = features.astype(np.float64) - features.astype(np.float64).mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(z[:, :30]), np.abs(unit(u * s)), atol=1e-5)
    np.testing.assert_allclose(z @ z.T, unit(centred) @ unit(centred).T, atol=1e-5)


def test_equal_rows_beside_others_have_a_rank_that_is_found() -> None:
    features = np.repeat(np.array([[1, 0, 3], [2, 5, 1], [0, 1, 1]], np.float32), 4, axis=0)
    z = fixed(features, 3)
    assert not z[:, 2].any()
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-6)
