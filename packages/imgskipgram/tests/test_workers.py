"""Workers that share the vectors: each does what is defined, and together they learn what one does."""

import numpy as np
import pytest
from gensim.test.utils import datapath
from toys import V, samples, toy, train

from imgskipgram import _core, _corpus, _reference
from imgskipgram._vocabulary import Trim


@pytest.mark.parametrize("negatives", ["center", "batch", "pair"])
@pytest.mark.parametrize("workers", [2, 8])
def test_one_of_several_workers_trains_as_defined(negatives, workers):
    rng = np.random.default_rng(1)
    s, ids = samples(negatives), rng.integers(0, V, 100).astype(np.uint32)
    arrays = toy(rng)
    exact = [a.astype(float) for a in arrays]
    want = _reference.train_sentence(ids, 5, s, *exact, np.linspace(0.5, 1, V), 0.01, "nce", 0.7, False)
    offsets = np.array([0, 100], np.uint64)  # nothing is left for the others
    got = train(s, ids, offsets, *arrays, workers=workers, alpha=0.01, min_alpha=0.01)
    assert got[2:4] == want[2:]
    for a, b in zip(arrays, exact, strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize("workers", [2, 8])
def test_the_loss_of_several_workers_is_that_of_one(workers):
    vocabulary, tokens = _corpus.read(datapath("lee_background.cor"), Trim(min_count=2))
    threshold, alias = vocabulary.noise(0.75)
    size = len(vocabulary)
    s = _reference.Samples(vocabulary.keep(1e-3), threshold, alias, [[]] * size, 0, 5, 5, 5)
    losses = {}
    for count in (1, workers):
        v, u, z = (_core.aligned(rows, 20) for rows in (size, size, 0))
        v[:, :20] = np.random.default_rng(4).uniform(-0.5, 0.5, (size, 20)) / 20
        for epoch in range(5):
            place = {"alpha": 0.05, "min_alpha": 1e-4, "done": epoch * len(tokens.ids), "total": 5 * len(tokens.ids)}
            got = train(
                s, tokens.ids, tokens.offsets, v, u, z, lockf=np.ones(1, np.float32), workers=count, image_weight=0.0,
                **place,
            )  # fmt: skip
        losses[count] = got[0] / got[2]
    assert losses[1] < 0.95 * 6 * np.log(2)
    assert abs(losses[workers] / losses[1] - 1) < 0.02
