"""Facts that the definition must keep."""

import numpy as np
import pytest

from imgskipgram import _core, _reference


def test_philox_gives_the_published_words():
    assert _reference.philox(0, (0, 0, 0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 2**32 - 1
    assert _reference.philox(2**64 - 1, (ones,) * 4) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_alias_table_holds_the_distribution():
    p = np.random.default_rng(0).random(97) ** 3
    threshold, alias = _core.alias_build(p)
    share = (threshold.astype(float) + (threshold == 2**32 - 1)) / 2**32
    held = share + np.bincount(alias, 1 - share, minlength=97)
    np.testing.assert_allclose(held / 97, p / p.sum(), atol=1e-9)


@pytest.mark.parametrize("objective", ["nce", "margin", "infonce"])
def test_image_gradients_are_those_of_finite_differences(objective):
    rng = np.random.default_rng(1)
    v, z = rng.normal(size=7), rng.normal(size=(5, 7))
    dv, dz, _ = _reference.image_gradient(v, z, objective)
    direction, directions, h = rng.normal(size=7), rng.normal(size=(5, 7)), 1e-6
    up = _reference.image_gradient(v + h * direction, z + h * directions, objective)[2]
    down = _reference.image_gradient(v - h * direction, z - h * directions, objective)[2]
    np.testing.assert_allclose(-(up - down) / (2 * h), dv @ direction + (dz * directions).sum(), rtol=1e-6)
