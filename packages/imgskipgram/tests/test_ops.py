"""The compiled kernels against the definition, with every instruction set at hand."""

import numpy as np
import pytest
from toys import D, M, V, arrays, samples, start, train

from imgskipgram import _core, _reference

SETS = _core.instruction_sets()


@pytest.mark.parametrize("negatives", ["center", "batch", "pair"])
def test_samples_equal_the_definition(negatives):
    ids = np.random.default_rng(0).integers(0, V, 77).astype(np.uint32)
    s = samples(negatives)
    keep, threshold, alias, first, images = arrays(s)
    got = _core.draws(
        ids, keep, threshold, alias, first, images, M, window=3, negative=5, shrink_windows=True, negatives=negatives,
        image_negative=4, seed=s.seed, epoch=2, sentence=2**33 + 5,
    )  # fmt: skip
    for a, b in zip(got, _reference.draws(ids, 2**33 + 5, s), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 1e-5), (np.float64, 1e-13)])
@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 21])
@pytest.mark.parametrize("columns", [16, 112])
def test_tile_gives_the_gradients(isa, dtype, bound, n, columns):
    rng = np.random.default_rng(n)
    x, y = (rng.normal(size=(k, columns)).astype(dtype) for k in (7, n))
    labels = (rng.random(n) < 0.5).astype(dtype)
    got = _core.tile(x, y, labels, 0.5, isa)
    want = _reference.tile(x.astype(float), y.astype(float), labels.astype(float), 0.5)
    for a, b in zip(got, want, strict=True):
        assert np.abs(a - b).max() <= bound * np.abs(b).max()


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("negatives", ["center", "batch", "pair"])
@pytest.mark.parametrize(("objective", "trained"), [("nce", False), ("nce", True), ("margin", True), ("infonce", True)])
def test_a_sentence_is_trained_as_defined(isa, negatives, objective, trained):
    rng = np.random.default_rng(4)
    ids = rng.integers(0, V, 60).astype(np.uint32)
    s, v, u, z = samples(negatives), start(V, rng), start(V, rng), start(M, rng)
    exact = [a.astype(float) for a in (v, u, z)]
    lock = np.linspace(0.5, 1, V).astype(np.float32)
    want = _reference.train_sentence(ids, 5, s, *exact, lock, 0.05, objective, 0.7, trained)
    got = train(s, ids, np.array([0, 60], np.uint64), v, u, z, isa=isa, objective=objective, trained=trained)
    assert got[2:4] == want[2:]
    np.testing.assert_allclose(got[:2], want[:2], rtol=1e-5)
    for a, b in zip((v, u, z), exact, strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()
        assert not a[:, D:].any()


def test_every_pair_is_trained_once():
    rng = np.random.default_rng(5)
    lengths = np.array([1, 2, 3, 40, 0, 25])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint64)
    ids = rng.integers(0, V, lengths.sum()).astype(np.uint32)
    s = samples(keep=np.full(V, 2**32 - 1, np.uint32), shrink_windows=False)
    got = train(s, ids, offsets, start(V, rng), start(V, rng), start(M, rng))
    assert got[2] == sum(min(i, 3) + min(n - 1 - i, 3) for n in lengths for i in range(n))
    assert got[4] == got[5] == lengths.sum()


def test_counts_do_not_depend_on_the_number_of_workers():
    rng = np.random.default_rng(6)
    ids, offsets = rng.integers(0, V, 60000).astype(np.uint32), np.arange(0, 60001, 20, dtype=np.uint64)
    counts = {
        train(samples(), ids, offsets, start(V, rng), start(V, rng), start(M, rng), workers=w)[2:] for w in (1, 2, 3)
    }
    assert len(counts) == 1
