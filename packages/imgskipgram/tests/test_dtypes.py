"""Training in other numbers than float32."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2
from toys import D, V, samples, toy, train

from imgskipgram import _core, _reference
from imgskipgram._rows import exported


@pytest.mark.parametrize(("dtype", "stored"), [("float32", "f4"), ("float64", "f8"), ("bfloat16", "u2")])
def test_rows_are_whole_cache_lines_of_zeros(dtype, stored):
    made = _core.aligned(3, 17, dtype)
    assert made.shape == (3, 32)
    assert made.dtype == stored
    assert made.ctypes.data % 64 == 0
    assert not made.any()


def test_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match=r"dtype must be float32, float64 or bfloat16, got int8"):
        _core.aligned(1, 1, "int8")


@pytest.mark.parametrize("isa", _core.instruction_sets())
@pytest.mark.parametrize("negatives", ["center", "batch", "pair"])
@pytest.mark.parametrize(("objective", "trained"), [("nce", False), ("nce", True), ("margin", True), ("infonce", True)])
def test_float64_is_exact(isa, negatives, objective, trained):
    rng = np.random.default_rng(4)
    ids = rng.integers(0, V, 60).astype(np.uint32)
    s = samples(negatives)
    v, u, z = toy(rng, "float64")
    exact = [a.copy() for a in (v, u, z)]
    want = _reference.train_sentence(ids, 5, s, *exact, np.linspace(0.5, 1, V), 0.05, objective, 0.7, trained)
    got = train(s, ids, np.array([0, 60], np.uint64), v, u, z, isa=isa, objective=objective, trained=trained)
    assert got[2:4] == want[2:]
    np.testing.assert_allclose(got[:2], want[:2], rtol=1e-12)
    for a, b in zip((v, u, z), exact, strict=True):
        assert np.abs(a - b).max() <= 1e-13 * np.abs(b).max()
        assert not a[:, D:].any()


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("negatives", ["center", "batch", "pair"])
@pytest.mark.parametrize(("objective", "trained"), [("nce", False), ("margin", True), ("infonce", True)])
def test_bfloat16_is_rounded_once_a_sentence(deterministic, negatives, objective, trained):
    rng = np.random.default_rng(4)
    ids = rng.integers(0, V, 30).astype(np.uint32)
    s = samples(negatives)
    v, u, z = toy(rng, "bfloat16")
    exact = [exported(v, D).astype(float), exported(u, D).astype(float), z[:, :D].astype(float)]
    want = _reference.train_sentence(ids, 5, s, *exact, np.linspace(0.5, 1, V), 0.05, objective, 0.7, trained)
    got = train(
        s, ids, np.array([0, 30], np.uint64), v, u, z, objective=objective, trained=trained, deterministic=deterministic
    )
    np.testing.assert_allclose(got[:4], want, rtol=1e-5)
    for a, b in ((exported(v, D), exact[0]), (exported(u, D), exact[1])):
        step = 2.0 ** (np.floor(np.log2(np.abs(b))) - 7)
        assert np.abs(a - b).max() > 1e-4
        assert (np.abs(a - b) < step + 1e-6).all()
    assert np.abs(z[:, :D] - exact[2]).max() <= 1e-5 * np.abs(exact[2]).max()
    assert not v[:, D:].any()


@pytest.mark.parametrize("deterministic", [False, True])
def test_bfloat16_is_rounded_without_bias(deterministic):
    """Of many epochs with the same words and the same negative, only the random bits of rounding differ."""
    times, ids = 600, np.array([2, 3, 4, 2, 5, 6], np.uint32)
    always = np.full(V, 2**32 - 1, np.uint32)
    alone = np.zeros(V, np.uint32), np.ones(V, np.uint32)  # threshold and alias: word 1 is the only negative
    bare = samples(keep=always, threshold=alone[0], alias=alone[1], shrink_windows=False, images=[[]] * V)
    exact = [exported(a, D).astype(float) for a in toy(np.random.default_rng(8), "bfloat16")[:2]]
    z = np.zeros((0, 16), np.float32)
    _reference.train_sentence(ids, 5, bare, *exact, z, np.linspace(0.5, 1, V), 0.05, "nce", 0.0, False)
    want = np.concatenate(exact)
    got = []
    for seed in range(times):
        v, u, _ = toy(np.random.default_rng(8), "bfloat16")
        train(replace(bare, seed=seed), ids, np.array([0, 6], np.uint64), v, u, z, deterministic=deterministic)
        got.append(np.concatenate([exported(v, D), exported(u, D)]))
    step = 2.0 ** (np.floor(np.log2(np.abs(want))) - 7)
    up = want / step % 1  # the probability of the upper neighbour, for numbers of either sign
    between = (up > 0.05) & (up < 0.95)
    assert between.sum() > 50
    deviation = (step * np.sqrt(up * (1 - up)))[between]
    error = (np.array(got) - want)[:, between] / deviation
    for means, count in ((error.mean(0), times), (error.mean(1), between.sum())):  # of an element, and of an epoch
        p = chi2.sf(count * (means**2).sum(), len(means))
        assert 1e-4 < p < 1 - 1e-4


@pytest.mark.parametrize("deterministic", [False, True])
def test_bfloat16_that_is_frozen_stays(deterministic):
    rng = np.random.default_rng(4)
    ids = rng.integers(0, V, 5000).astype(np.uint32)
    v, u, z = toy(rng, "bfloat16")
    frozen = np.linspace(0.5, 1, V).astype(np.float32)
    frozen[::2] = 0
    before = v.copy()
    train(samples(), ids, np.arange(0, 5001, 10, dtype=np.uint64), v, u, z, lockf=frozen, deterministic=deterministic)
    np.testing.assert_array_equal(v[::2], before[::2])
    assert (v[1::2] != before[1::2]).any(1).all()
