"""Training in other numbers than float32."""

import numpy as np
import pytest
from toys import D, M, V, samples, start, train

from imgskipgram import _core, _reference


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
    v, u, z = (start(rows, rng, "float64") for rows in (V, V, M))
    exact = [a.copy() for a in (v, u, z)]
    want = _reference.train_sentence(ids, 5, s, *exact, np.linspace(0.5, 1, V), 0.05, objective, 0.7, trained)
    got = train(s, ids, np.array([0, 60], np.uint64), v, u, z, isa=isa, objective=objective, trained=trained)
    assert got[2:4] == want[2:]
    np.testing.assert_allclose(got[:2], want[:2], rtol=1e-12)
    for a, b in zip((v, u, z), exact, strict=True):
        assert np.abs(a - b).max() <= 1e-13 * np.abs(b).max()
        assert not a[:, D:].any()
