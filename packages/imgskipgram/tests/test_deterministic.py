"""Training whose every bit is the same for any number of threads."""

import os
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from toys import D, M, V, arrays, samples, toy, train

from imgskipgram import ImageSkipGram, _core, _reference

BATCH, UNIT = 250, 32  # tokens, centres
LENGTHS = [0, 1, 700, 20, 0, *range(2, 60), 33, 64, 65, 3]  # of sentences


def corpus(lengths=LENGTHS):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint64)
    return np.random.default_rng(1).integers(0, V, int(offsets[-1])).astype(np.uint32), offsets


def trained(ids, offsets, negatives="center", dtype="float32", begin=None, **changes):
    """The totals and all vectors, from `begin` or random ones."""
    rows = toy(np.random.default_rng(2), dtype)
    for row, value in zip(rows, begin or (), strict=False):
        row[:] = value
    return train(samples(negatives), ids, offsets, *rows, deterministic=True, **changes), rows


def same(a, b):
    return a[0] == b[0] and all(x.tobytes() == y.tobytes() for x, y in zip(a[1], b[1], strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("negatives", ["center", "batch", "pair"])
@pytest.mark.parametrize("objective", ["nce", "margin", "infonce"])
@pytest.mark.parametrize("free", [False, True])
def test_bits_are_those_of_one_thread(dtype, negatives, objective, free):
    one, two, three, four, eight = (
        trained(*corpus(), negatives, dtype, objective=objective, trained=free, workers=n) for n in (1, 2, 3, 4, 8)
    )
    assert all(same(one, other) for other in (two, three, four, eight))


@pytest.mark.parametrize("isa", _core.instruction_sets())
@pytest.mark.parametrize("negatives", ["center", "batch", "pair"])
@pytest.mark.parametrize(("objective", "free"), [("nce", False), ("nce", True), ("margin", True), ("infonce", True)])
def test_sentences_of_a_batch_begin_from_the_same_vectors(isa, negatives, objective, free):
    ids, offsets = corpus([UNIT, 7, 0, UNIT, 1, 12])
    first = trained(ids[:0], offsets[:1], dtype="float64")[1]
    want, sums = [a.copy() for a in first], np.zeros(4)
    for k, (a, b) in enumerate(pairwise(offsets)):
        own = [row.copy() for row in first]
        sums += _reference.train_sentence(
            ids[int(a) : int(b)], 5 + k, samples(negatives), *own, np.linspace(0.5, 1, V), 0.05, objective, 0.7, free
        )
        for total, now, before in zip(want, own, first, strict=True):
            total += now - before
    totals, rows = trained(ids, offsets, negatives, "float64", objective=objective, trained=free, workers=2, isa=isa)
    np.testing.assert_allclose(totals[:4], sums, rtol=1e-12)
    for got, wanted in zip(rows, want, strict=True):
        assert np.abs(got - wanted).max() <= 1e-13 * np.abs(wanted).max()
        assert not got[:, D:].any()


@pytest.mark.parametrize("negatives", ["center", "batch", "pair"])
def test_long_sentences_are_trained_whole(negatives):
    ids, offsets = corpus([900])
    keep, threshold, alias, first, images = arrays(s := samples(negatives))
    positions, windows, *_ = _core.draws(
        ids, keep, threshold, alias, first, images, M, window=s.window, negative=5, shrink_windows=True,
        negatives=negatives, image_negative=4, seed=s.seed, epoch=s.epoch, sentence=5,
    )  # fmt: skip
    i = np.arange(len(positions))
    pairs = np.minimum(i, windows) + np.minimum(i[::-1], windows)
    totals, _ = trained(ids, offsets, negatives)
    assert totals[2] == pairs.sum()
    assert totals[4:] == (len(positions), 900)


def test_a_long_sentence_has_the_samples_of_the_whole():
    """With a rate near 0 the loss is that of the first vectors, for every pair the same as without batches."""
    ids, offsets = corpus([900])
    for negatives in ("center", "batch", "pair"):
        got, _ = trained(ids, offsets, negatives, "float64", alpha=1e-12, min_alpha=1e-12)
        begin = trained(ids[:0], offsets[:1], dtype="float64")[1]
        want = train(samples(negatives), ids, offsets, *begin, alpha=1e-12, min_alpha=1e-12)
        np.testing.assert_allclose(got, want, rtol=1e-9)


def test_a_weight_of_zero_and_no_images_have_the_same_bits():
    ids, offsets = corpus()
    without = trained(ids, offsets, image_weight=0.0, workers=2)
    other = trained(ids, offsets, image_weight=0.0, objective="infonce", trained=True, workers=3)
    assert same(without, other)
    assert without[0][3] == 0


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batches", [2, 3, 4, 6])
def test_an_epoch_may_be_cut_before_a_sentence_with_which_a_batch_begins(workers, batches):
    ids, offsets = corpus()
    schedule = {"alpha": 0.05, "min_alpha": 0.01, "done": 77, "total": 9000, "trained": True, "workers": workers}
    whole = trained(ids, offsets, first_token=250, first_sentence=5, **schedule)
    cut = int(np.searchsorted(offsets + 250, batches * BATCH))
    one = trained(ids, offsets[: cut + 1], first_token=250, first_sentence=5, **schedule)
    two = trained(ids, offsets[cut:], begin=one[1], first_token=250, first_sentence=5 + cut, **schedule)
    for a, b in zip(whole[1], two[1], strict=True):
        assert a.tobytes() == b.tobytes()
    np.testing.assert_allclose(whole[0], np.add(one[0], two[0]), rtol=1e-12)


def test_totals_are_near_those_without_batches():
    """Of 40 words each is common, so that a batch too large carries vectors far away."""
    ids, offsets = corpus()
    got, _ = trained(ids, offsets, workers=2)
    want = train(samples(), ids, offsets, *trained(ids[:0], offsets[:1])[1])
    assert got[2:] == want[2:]
    np.testing.assert_allclose(got[:2], want[:2], rtol=0.05)


def test_tokens_none_of_which_is_kept_are_counted():
    ids, offsets = corpus([600, 600])
    rows = toy(np.random.default_rng(0))
    totals = train(samples(keep=np.zeros(V, np.uint32)), ids, offsets, *rows, deterministic=True)
    assert totals == (0, 0, 0, 0, 0, 1200)


def test_a_stop_leaves_whole_batches():
    ids, offsets = corpus([20] * 100_000)
    stop, progress = np.zeros(1, np.uint8), np.zeros(1, np.uint64)
    out = []
    call = threading.Thread(
        target=lambda: out.append(trained(ids, offsets, workers=2, flags=(stop, progress), total=10**7))
    )
    call.start()
    while not progress[0]:
        time.sleep(0.001)
    stop[0] = 1
    call.join()
    raw = out[0][0][5]
    assert raw == progress[0] < len(ids)
    assert same(out[0], trained(ids, offsets[: raw // 20 + 1], workers=1, total=10**7))


def test_nothing_is_trained_after_a_stop():
    ids, offsets = corpus()
    got = trained(ids, offsets, flags=(np.ones(1, np.uint8), np.zeros(1, np.uint64)))
    assert same(got, trained(ids[:0], offsets[:1]))


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 4, reason="needs four processors")
def test_four_threads_are_faster_than_one():
    ids = np.random.default_rng(1).integers(0, 10_000, 200_000).astype(np.uint32)
    offsets = np.arange(0, 200_001, 20, dtype=np.uint64)

    def seconds(workers):
        rows = [_core.aligned(n, 100) for n in (10_000, 10_000, 1)]
        begin = time.perf_counter()
        _core.train_epoch(
            ids, offsets, np.full(10_000, 2**32 - 1, np.uint32), *_core.alias_build(np.ones(10_000)), *rows[:2],
            np.ones(1, np.float32), np.zeros(10_001, np.uint64), np.zeros(0, np.uint32), rows[2], np.zeros(1, np.uint8),
            np.zeros(1, np.uint64), window=5, negative=5, shrink_windows=True, negatives="center", objective="nce",
            image_weight=0.0, image_negative=5, images_trained=False, alpha=0.025, min_alpha=0.025, done=0,
            first_token=0, total=200_000, seed=1, epoch=0, first_sentence=0, loss="exact", workers=workers,
            deterministic=True, isa=_core.instruction_sets()[0],
        )  # fmt: skip
        return time.perf_counter() - begin

    assert min(seconds(1) for _ in range(3)) > 1.5 * min(seconds(4) for _ in range(3))


def test_memory_does_not_grow_with_the_corpus():
    code = """
import resource, numpy as np
from toys import V, samples, toy, train
rng = np.random.default_rng(0)
ids, offsets = rng.integers(0, V, 300_000).astype(np.uint32), np.arange(0, 300_001, 30, dtype=np.uint64)
offsets = np.delete(offsets, slice(1, 4_000))
rows = toy(rng)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
train(samples(), ids, offsets, *rows, deterministic=True, workers=2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, check=True)
    assert int(done.stdout) < 20_000  # kilobytes; the copies of all sentences would be 150,000


def test_a_model_has_the_bits_of_one_thread():
    text = [[f"w{k}" for k in np.random.default_rng(s).integers(0, 30, 12)] for s in range(200)]

    def vectors(workers):
        model = ImageSkipGram(vector_size=8, min_count=1, epochs=2, workers=workers, deterministic=True)
        return model.fit(text).wv.vectors.tobytes()

    assert vectors(1) == vectors(2) == vectors(5)
