"""An epoch: its samples, rates and losses, what freezes and what stops it, and long, wide and distant corpora."""

from itertools import pairwise
from threading import Thread

import numpy as np
import pytest
from gensim.test.utils import datapath
from scipy.stats import chi2
from toys import D, M, V, arrays, samples, toy, train

from imgskipgram import _core, _corpus, _reference
from imgskipgram._vocabulary import Trim

SETS = _core.instruction_sets()
LOCK = np.linspace(0.5, 1, V)


def ends(*lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint64)


def replay(s, ids, offsets, v, u, z, *, lock=LOCK, first_sentence=5, alphas=0.05, weight=0.7, trained=False):
    """The epoch by the definition, in place."""
    totals = np.zeros(4)
    alphas = np.broadcast_to(alphas, len(ids))
    for i, (begin, end) in enumerate(pairwise(offsets)):
        own = slice(int(begin), int(end))
        totals += _reference.train_sentence(
            ids[own], first_sentence + i, s, v, u, z, lock, alphas[own], "nce", weight, trained
        )
    return totals


def assert_near(got, want, bound=1e-5):
    for a, b in zip(got, want, strict=True):
        assert np.abs(a - b).max() <= bound * np.abs(b).max()


def plausible(observed, expected, freedom, variance=None):
    """Whether counts are those expected, by chi-square."""
    kept = expected > 0
    assert not observed[~kept].any()
    spread = (expected if variance is None else variance)[kept]
    return chi2.sf(((observed[kept] - expected[kept]) ** 2 / spread).sum(), freedom) > 1e-4


@pytest.mark.parametrize("negatives", ["center", "pair"])
@pytest.mark.parametrize("n", [1_000_000, pytest.param(10_000_000, marks=pytest.mark.slow)])
def test_samples_have_the_distributions_of_the_definition(n, negatives):
    s, window = samples(negatives), 4
    keep, threshold, alias, first, images = arrays(s)
    n //= 20 if negatives == "pair" else 5
    ids = np.random.default_rng(1).integers(0, V, n).astype(np.uint32)
    position, windows, rows, shown = _core.draws(
        ids, keep, threshold, alias, first, images, M, window=window, negative=5, shrink_windows=True,
        negatives=negatives, image_negative=4, seed=11, epoch=1, sentence=3,
    )  # fmt: skip
    words = ids[position]
    count, all_ = np.bincount(words, minlength=V), np.bincount(ids, minlength=V)
    p = np.where(keep == 2**32 - 1, 1, keep / 2**32)
    sometimes = p < 1
    assert (count[~sometimes] == all_[~sometimes]).all()
    assert plausible(count * sometimes, all_ * p * sometimes, sometimes.sum(), all_ * p * (1 - p))
    assert plausible(np.bincount(windows)[1:], np.full(window, len(words) / window), window - 1)

    share = (threshold.astype(float) + (threshold == 2**32 - 1)) / 2**32
    noise = (share + np.bincount(alias, 1 - share, minlength=V)) / V
    last = np.arange(len(words))
    around = np.minimum(last, windows) + np.minimum(last[::-1], windows)
    targets = np.repeat(words, around) if negatives == "pair" else words
    assert len(rows) == len(targets)
    times = np.bincount(targets, minlength=V) * 5 / (1 - noise)
    dropped = rows == 2**32 - 1
    assert dropped.mean() < 1e-3  # drawn eight times in vain
    assert not (rows == targets[:, None]).any()
    assert plausible(np.bincount(rows[~dropped], minlength=V), noise * (times.sum() - times), V - 1)

    grounded = shown[:, 0] != 2**32 - 1
    own, others = np.zeros(M), np.zeros(M)
    for w, pictures in enumerate(s.images):
        if pictures:
            own[pictures] += count[w] / len(pictures)
            others += count[w] * 4 / (M - len(pictures)) * ~np.isin(np.arange(M), pictures)
    assert plausible(np.bincount(shown[grounded, 0], minlength=M), own, M - 1)
    drawn = shown[grounded, 1:]
    assert plausible(np.bincount(drawn[drawn != 2**32 - 1], minlength=M), others, M - 1)


@pytest.mark.parametrize("negatives", ["center", "batch", "pair"])
def test_rates_fall_by_blocks_of_tokens_however_an_epoch_is_cut(negatives):
    rng = np.random.default_rng(0)
    s, offsets = samples(negatives), ends(7, 30, 1, 0, 22)
    ids = rng.integers(0, V, 60).astype(np.uint32)
    schedule = {"alpha": 0.1, "min_alpha": 0.02, "total": 40_000}
    whole = toy(rng)
    parts, exact = [a.copy() for a in whole], [a.astype(float) for a in whole]
    for i, a in enumerate(whole):
        parts[i] = _core.aligned(len(a), D)
        parts[i][:] = a
    first = 10_000 - 20  # so that a sentence has two rates
    alphas = [_reference.rate(first + t, 0.1, 0.02, 20_000, 40_000) for t in range(60)]
    assert len(set(alphas)) == 2
    want = replay(s, ids, offsets, *exact, alphas=alphas)
    got = train(s, ids, offsets, *whole, done=20_000, first_token=first, **schedule)
    assert_near(whole, exact)
    np.testing.assert_allclose(got[:4], want, rtol=1e-5)

    totals = np.zeros(4)
    for i, j in [(0, 2), (2, 3), (3, 5)]:
        begin, end = int(offsets[i]), int(offsets[j])
        piece = train(
            s, ids[begin:end], offsets[i : j + 1] - offsets[i], *parts, done=20_000, first_token=first + begin,
            first_sentence=5 + i, **schedule,
        )  # fmt: skip
        totals += piece[:4]
    for a, b in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(totals, got[:4], rtol=1e-12)


def test_the_rate_never_falls_below_its_minimum():
    rng = np.random.default_rng(1)
    s, arrays_ = samples(), toy(rng)
    exact = [a.astype(float) for a in arrays_]
    ids = rng.integers(0, V, 20).astype(np.uint32)
    replay(s, ids, ends(20), *exact, alphas=0.02)
    train(s, ids, ends(20), *arrays_, alpha=0.1, min_alpha=0.02, done=50_000, total=20_000)
    assert_near(arrays_, exact)


@pytest.mark.parametrize("isa", SETS)
def test_places_beyond_32_bits_have_their_own_samples_and_rates(isa):
    rng = np.random.default_rng(2)
    s, arrays_ = samples(), toy(rng)
    exact = [a.astype(float) for a in arrays_]
    ids = rng.integers(0, V, 50).astype(np.uint32)
    far = {"done": 3 * 2**32 + 17, "first_token": 2**33 + 9, "total": 2**35}
    alpha = _reference.rate(far["first_token"], 0.1, 0.001, far["done"], far["total"])
    assert not np.isclose(alpha, _reference.rate(9, 0.1, 0.001, 17, far["total"]))
    want = replay(s, ids, ends(20, 30), *exact, alphas=alpha, first_sentence=2**47 - 1)
    got = train(
        s, ids, ends(20, 30), *arrays_, isa=isa, alpha=0.1, min_alpha=0.001, first_sentence=2**47 - 1, **far
    )  # fmt: skip
    assert_near(arrays_, exact)
    np.testing.assert_allclose(got[:4], want, rtol=1e-5)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("columns", [1, 16, 31, 33, 64, 80, 96, 100, 128, 200, 256, 300, 512, 600])
@pytest.mark.parametrize("negative", [1, 3, 5, 20])
def test_rows_of_any_length_are_trained_as_defined(isa, columns, negative):
    rng = np.random.default_rng(columns)
    s = samples(negative=negative, window=2)
    v, u, z = (_core.aligned(rows, columns) for rows in (V, V, M))
    for a in (v, u):
        a[:, :columns] = rng.normal(size=(V, columns)) / columns**0.5
    exact = [a.astype(float) for a in (v, u, z)]
    ids = rng.integers(0, V, 24).astype(np.uint32)
    want = replay(s, ids, ends(24), *exact, weight=0)
    got = train(s, ids, ends(24), v, u, z, isa=isa, image_weight=0.0)
    np.testing.assert_allclose(got[:4], want, rtol=1e-5)
    assert_near((v, u), exact[:2])
    assert not v[:, columns:].any()
    assert not u[:, columns:].any()


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("negatives", ["center", "batch", "pair"])
@pytest.mark.parametrize("negative", [6, 60, 200])
def test_negatives_that_repeat_count_as_often(isa, negatives, negative):
    rng = np.random.default_rng(3)
    threshold, alias = _core.alias_build(np.array([30.0, 20.0, *np.full(V - 2, 0.05)]))
    s = samples(negatives, negative=negative, threshold=threshold, alias=alias, image_negative=30)
    v, u, z = toy(rng)
    exact = [a.astype(float) for a in (v, u, z)]
    ids = rng.integers(0, 4, 20).astype(np.uint32)
    want = replay(s, ids, ends(20), *exact, alphas=0.01, trained=True)
    got = train(s, ids, ends(20), v, u, z, isa=isa, alpha=0.01, min_alpha=0.01, trained=True)
    np.testing.assert_allclose(got[:4], want, rtol=1e-5)
    assert_near((v, u, z), exact)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("negatives", ["center", "batch", "pair"])
def test_error_is_within_twice_that_of_float32_numpy(isa, negatives):
    rng = np.random.default_rng(4)
    s = samples(negatives)
    v, u, z = (_core.aligned(rows, 100) for rows in (V, V, M))
    for a in (v, u, z):
        a[:, :100] = rng.normal(size=(len(a), 100)) / 10
    ids = rng.integers(0, V, 40).astype(np.uint32)
    exact, plain = [a.astype(float) for a in (v, u, z)], [a.copy() for a in (v, u, z)]
    replay(s, ids, ends(40), *exact, weight=0)
    replay(s, ids, ends(40), *plain, weight=0, lock=LOCK.astype(np.float32))
    train(s, ids, ends(40), v, u, z, isa=isa, image_weight=0.0)
    for a, b, c in zip((v, u), plain, exact, strict=False):
        assert np.linalg.norm(a - c) <= 2 * np.linalg.norm(b - c)
        assert np.linalg.norm(b - c) > 0


@pytest.mark.parametrize("workers", [1, 3])
def test_rows_with_factor_zero_stay(workers):
    rng = np.random.default_rng(5)
    v, u, z = toy(rng)
    before = v.copy()
    lock = (np.arange(V) % 2).astype(np.float32)
    ids = rng.integers(0, V, 600).astype(np.uint32)
    train(samples(), ids, np.arange(0, 601, 20, dtype=np.uint64), v, u, z, lockf=lock, workers=workers)
    np.testing.assert_array_equal(v[::2], before[::2])
    assert (v[1::2] != before[1::2]).any(1).all()


def test_one_factor_is_that_of_all_rows():
    ids = np.random.default_rng(6).integers(0, V, 60).astype(np.uint32)
    one, all_ = toy(np.random.default_rng(7)), toy(np.random.default_rng(7))
    train(samples(), ids, ends(60), *one, lockf=np.full(1, 0.25, np.float32))
    train(samples(), ids, ends(60), *all_, lockf=np.full(V, 0.25, np.float32))
    for a, b in zip(one, all_, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("negatives", ["center", "batch", "pair"])
def test_how_losses_are_counted_changes_no_vector(negatives):
    ids = np.random.default_rng(8).integers(0, V, 60_000).astype(np.uint32)
    offsets = np.arange(0, 60_001, 20, dtype=np.uint64)
    arrays_, results = {}, {}
    for loss in ("exact", "sampled", "none"):
        arrays_[loss] = toy(np.random.default_rng(9))
        # Small steps, so that all tokens have losses of the same mean.
        results[loss] = train(samples(negatives), ids, offsets, *arrays_[loss], loss=loss, alpha=1e-6, min_alpha=1e-6)
    for loss in ("sampled", "none"):
        assert results[loss][2:] == results["exact"][2:]
        for a, b in zip(arrays_[loss], arrays_["exact"], strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(results["sampled"][:2], results["exact"][:2], rtol=0.02)
    assert results["sampled"][:2] != results["exact"][:2]
    assert np.isnan(results["none"][:2]).all()


def test_a_long_sentence_is_trained_whole():
    n = 25_000
    rng = np.random.default_rng(10)
    ids = rng.integers(0, V, n).astype(np.uint32)
    s = samples(keep=np.full(V, 2**32 - 1, np.uint32), shrink_windows=False)
    got = train(s, ids, ends(n), *toy(rng), alpha=0.001, min_alpha=0.0001)
    place = np.arange(n)
    assert got[2] == (np.minimum(place, 3) + np.minimum(place[::-1], 3)).sum()
    assert got[4:] == (n, n)


def test_nothing_is_trained_once_stop_is_set():
    rng = np.random.default_rng(11)
    arrays_, stop, progress = toy(rng), np.ones(1, np.uint8), np.zeros(1, np.uint64)
    before = [a.copy() for a in arrays_]
    ids = rng.integers(0, V, 60).astype(np.uint32)
    got = train(samples(), ids, ends(60), *arrays_, flags=(stop, progress), workers=2)
    assert got == (0, 0, 0, 0, 0, 0)
    assert progress[0] == 0
    for a, b in zip(arrays_, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_epoch_stops_on_the_way():
    rng = np.random.default_rng(12)
    stop, progress, n = np.zeros(1, np.uint8), np.zeros(1, np.uint64), 8_000_000
    ids, offsets = rng.integers(0, V, n).astype(np.uint32), np.arange(0, n + 1, 20, dtype=np.uint64)
    result = []
    run = Thread(
        target=lambda: result.append(
            train(samples(), ids, offsets, *toy(rng), flags=(stop, progress), alpha=1e-3, min_alpha=1e-3)
        )
    )
    run.start()
    while not progress[0] and run.is_alive():
        run.join(0.001)
    stop[0] = 1
    run.join()
    assert 0 < result[0][5] < n
    assert progress[0] == result[0][5]


def test_a_thousand_sentences_have_the_loss_of_the_definition():
    vocabulary, tokens = _corpus.read(datapath("lee_background.cor"), Trim(min_count=2))
    ids, offsets = np.array(tokens.ids[:12_000]), np.arange(0, 12_001, 12, dtype=np.uint64)
    threshold, alias = vocabulary.noise(0.75)
    size = len(vocabulary)
    none = [[] for _ in range(size)]
    s = _reference.Samples(vocabulary.keep(1e-3), threshold, alias, none, 0, 5, 5, 5)
    v, u, z = (_core.aligned(rows, 20, "float64") for rows in (size, size, 0))
    v[:, :20] = np.random.default_rng(13).uniform(-1, 1, (size, 20)) / 20
    exact = [a.copy() for a in (v, u, z)]
    want = replay(s, ids, offsets, *exact, lock=np.ones(size), alphas=0.025, weight=0)
    got = train(s, ids, offsets, v, u, z, lockf=np.ones(1), alpha=0.025, min_alpha=0.025, image_weight=0.0)
    assert got[2] == want[2]
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    assert_near((v, u), exact[:2], 1e-10)
