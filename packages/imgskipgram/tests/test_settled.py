"""The last step of a training with images: words without images too take part of what they would show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from lee import BANK, LEE, model

from imgskipgram._projection import Shared

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WORDS, _SHOWN, _GROUPS = 240, 180, 6


def _scene() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint64], NDArray[np.uint32]]:
    """Words in groups that their vectors tell, three quarters with an image whose features tell the group."""
    draw = np.random.default_rng(0)
    groups = np.arange(_WORDS) % _GROUPS
    vectors = np.eye(_GROUPS, 16)[groups] + 0.1 * draw.normal(size=(_WORDS, 16))
    features = np.repeat(np.eye(_GROUPS), 5, axis=1)[groups[:_SHOWN]] + 1e-3 * draw.uniform(size=(_SHOWN, 30))
    start = np.minimum(np.arange(_WORDS + 1), _SHOWN).astype(np.uint64)
    return vectors.astype(np.float32), features.astype(np.float32), start, np.arange(_SHOWN, dtype=np.uint32)


def _unit(rows: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_imagined_images_are_the_kernel_regression_of_their_words() -> None:
    vectors, *bank = _scene()
    shared = Shared(*bank)
    v = _unit(vectors.astype(np.float64))
    z = _unit(shared.pull(vectors).astype(np.float64))
    told = (_unit(v[:_SHOWN] - v[:_SHOWN].mean(0)) * z).sum(1).mean()
    y = _unit(v - v.mean(0))
    kernel = np.exp(-4 * ((y[:, None] - y[None, :_SHOWN]) ** 2).sum(-1))
    expected = told * kernel @ np.linalg.solve(kernel[:_SHOWN] + 0.3 * np.eye(_SHOWN), z)
    assert told > 0.5
    np.testing.assert_allclose(shared.imagined(vectors), expected, atol=1e-5)


def test_words_without_images_are_drawn_to_where_those_of_their_group_lie() -> None:
    vectors, *bank = _scene()
    imagined = Shared(*bank).imagined(vectors)[_SHOWN:]
    means = np.array([vectors[group::_GROUPS].mean(0) for group in range(_GROUPS)]) - vectors.mean(0)
    np.testing.assert_array_equal((imagined @ _unit(means).T).argmax(1), np.arange(_SHOWN, _WORDS) % _GROUPS)


def test_images_that_say_nothing_move_little() -> None:
    vectors, features, *labels = _scene()
    shuffled = features[np.random.default_rng(1).permutation(_SHOWN)]
    told, nothing = (np.abs(Shared(f, *labels).imagined(vectors)).max() for f in (features, shuffled))
    assert nothing < 0.2 * told


def test_one_word_with_images_imagines_none() -> None:
    features = np.array([[1, 0], [0, 1]], np.float32)
    shared = Shared(features, np.array([0, 1, 1], np.uint64), np.array([0], np.uint32))
    assert not shared.imagined(np.array([[1, 2], [2, 1]], np.float32)).any()


def test_frozen_words_stay_in_the_last_step() -> None:
    trained = model().fit(LEE)
    before = trained.wv.vectors.copy()
    trained.wv.vectors_lockf = np.zeros(1, np.float32)
    trained.train(LEE, BANK)
    np.testing.assert_array_equal(trained.wv.vectors, before)
