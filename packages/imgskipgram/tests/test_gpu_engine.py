"""Epochs on a GPU against those of the C++ core; on the CPU by the definitions of the operators."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="there is no PyTorch here")
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

from imgskipgram import ImageBank, ImageSkipGram, _engine, _training  # noqa: E402
from imgskipgram._corpus import Tokens  # noqa: E402
from imgskipgram._grounding import Grounding  # noqa: E402
from imgskipgram._options import Options  # noqa: E402
from imgskipgram._rows import zeros  # noqa: E402
from imgskipgram._vocabulary import Vocabulary  # noqa: E402
from imgskipgram.gpu import _engine as gpu  # noqa: E402

V, M = 60, 12


def lee() -> str:
    gensim = pytest.importorskip("gensim.test.utils", reason="needs the Lee corpus that comes with gensim")
    return str(gensim.datapath("lee_background.cor"))


def vocabulary() -> Vocabulary:
    counts = (6000 / np.arange(1, V + 1)).astype(np.uint64)
    return Vocabulary([f"w{i}" for i in range(V)], counts, int(counts.sum()), 100)


def tokens(n: int) -> Tokens:
    """Sentences by Zipf's law, some of them empty, one long."""
    rng = np.random.default_rng(0)
    ids = np.minimum(V - 1, V ** rng.random(n) - 1).astype(np.uint32)
    cuts = np.sort(rng.integers(0, n // 2, n // 20))
    return Tokens(ids, np.concatenate([[0, 0], cuts, [n]]).astype(np.uint64), n, 2**32 - 3)


def bank() -> ImageBank:
    rng = np.random.default_rng(1)
    return ImageBank.from_features(rng.random((M, 8)), [f"w{5 * i}" for i in range(M)])


def trained(make: Any, options: Options, given: Tokens, parts: int = 1, **bank_: Any) -> tuple[Any, Any, Any]:
    """v, u and the totals of an epoch whose rates change on the way, in so many calls."""
    engine = make(options, vocabulary(), bank_.get("grounding"), "exact")
    rng = np.random.default_rng(2)
    v, u = (zeros(V, options.vector_size, "float32") for _ in range(2))
    v[:, : options.vector_size] = rng.normal(size=(V, options.vector_size)) / 4
    engine.start(v, u, np.ones(1, np.float32))
    n = int(given.offsets[-1])
    place = _training.Place(3, 0.05, 0.001, 9000, 9000 + 2 * n, 500)
    totals, progress = _training.Totals(), np.zeros(1, np.uint64)
    cuts = np.linspace(0, len(given.offsets) - 1, parts + 1).astype(int)
    for a, b in pairwise(cuts):
        part = replace(given, offsets=given.offsets[a : b + 1], first=given.first + int(a))
        totals = totals.plus(engine.run(part, bank_.get("z"), place, np.zeros(1, np.uint8), progress))
    assert progress[0] == n
    return *engine.finish(), totals


@pytest.mark.parametrize("resident", [True, False], ids=["in memory", "piece by piece"])
@pytest.mark.parametrize("parts", [1, 3])
def test_text_is_trained_as_on_the_processor(monkeypatch, parts, resident):
    monkeypatch.setattr(gpu, "_CHUNK", 400)
    monkeypatch.setattr(gpu, "_LEAST", 64)
    if not resident:
        monkeypatch.setattr(gpu, "_free", lambda device: 0)
    options, given = Options(vector_size=10, workers=1, sample=1e-2, seed=2**64 - 5), tokens(1200)
    ours = trained(partial(gpu.Cuda, device="cpu"), options, given, parts)
    peer = trained(_engine.Cpu, options, given)
    np.testing.assert_allclose(ours[0], peer[0], atol=2e-5)
    np.testing.assert_allclose(ours[1], peer[1], atol=2e-5)
    assert ours[2].text_loss == pytest.approx(peer[2].text_loss, rel=1e-6)
    assert ours[2][1:] == peer[2][1:]


@pytest.mark.parametrize("objective", ["nce", "margin", "infonce"])
def test_images_are_trained_as_on_the_processor(monkeypatch, objective):
    """If pieces are of one centre: the images of a piece come before its text."""
    monkeypatch.setattr(gpu, "_LEAST", 1)
    monkeypatch.setattr(gpu, "_PIECES", 10**9)
    options, given = Options(vector_size=10, workers=1, objective=objective, image_negative=3, sample=1e-2), tokens(600)
    grounding, z = Grounding(bank(), vocabulary(), options), zeros(M, 10, "float32")
    z[:, :10] = np.random.default_rng(3).normal(size=(M, 10)) / 2
    ours = trained(partial(gpu.Cuda, device="cpu"), options, given, grounding=grounding, z=z)
    peer = trained(_engine.Cpu, options, given, grounding=grounding, z=z)
    np.testing.assert_allclose(ours[0], peer[0], atol=2e-5)
    np.testing.assert_allclose(ours[1], peer[1], atol=2e-5)
    assert ours[2][:2] == pytest.approx(peer[2][:2], rel=1e-5)
    assert ours[2][2:] == peer[2][2:]
    assert peer[2].image_pairs > 50


def test_interpreted_kernels_train_like_the_definition(monkeypatch):
    if os.environ["TRITON_INTERPRET"] != "1":
        pytest.skip("Triton is compiled here, not interpreted")
    kernels = pytest.importorskip("imgskipgram.gpu._triton", reason="there is no Triton here")
    options, given = Options(vector_size=10, image_negative=3), tokens(100)
    grounding, z = Grounding(bank(), vocabulary(), options), zeros(M, 10, "float32")
    z[:, :10] = np.random.default_rng(3).normal(size=(M, 10)) / 2
    make = partial(gpu.Cuda, device="cpu")
    want = trained(make, options, given, grounding=grounding, z=z)
    monkeypatch.setattr(gpu, "_ops", kernels)
    with np.errstate(all="ignore"):
        got = trained(make, options, given, grounding=grounding, z=z)
    for a, b in zip(got[:2], want[:2], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    assert got[2] == pytest.approx(want[2], rel=1e-6)


def test_losses_that_nobody_wants_are_nan_as_on_the_processor():
    options, given = Options(vector_size=10, workers=1), tokens(100)
    for make in (partial(gpu.Cuda, device="cpu"), _engine.Cpu):
        engine = make(options, vocabulary(), None, "none")
        v = zeros(V, 10, "float32")
        engine.start(v, v.copy(), np.ones(1, np.float32))
        place = _training.Place(0, 0.05, 0.01, 0, 100)
        totals = engine.run(given, None, place, np.zeros(1, np.uint8), np.zeros(1, np.uint64))
        assert np.isnan(totals.text_loss)
        assert totals.image_loss == 0


def test_a_stop_is_heard_between_chunks():
    engine = gpu.Cuda(Options(vector_size=10), vocabulary(), None, "exact", device="cpu")
    v = zeros(V, 10, "float32")
    engine.start(v, v.copy(), np.ones(1, np.float32))
    progress = np.zeros(1, np.uint64)
    totals = engine.run(tokens(100), None, _training.Place(0, 0.05, 0.01, 0, 100), np.ones(1, np.uint8), progress)
    assert totals.words == progress[0] == 0


def test_what_was_given_and_what_was_taken_stay_as_they_are():
    engine = gpu.Cuda(Options(vector_size=10), vocabulary(), None, "exact", device="cpu")
    v = np.ones((V, 16), np.float32)
    u = v.copy()
    engine.start(v, u, np.ones(1, np.float32))
    taken = engine.finish(), engine.vectors()
    engine.run(tokens(100), None, _training.Place(0, 0.05, 0.01, 0, 100), np.zeros(1, np.uint8), np.zeros(1, np.uint64))
    assert (engine.vectors() != 1).any()
    assert all((x == 1).all() for x in (v, u, *taken[0], taken[1]))


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bfloat16"}, r"dtype must be 'float32' with device=\"cuda\", got 'bfloat16'"),
        ({"negatives": "pair"}, r"negatives must be 'center' with device=\"cuda\", got 'pair'"),
        ({"shrink_windows": False}, r"shrink_windows must be True with device=\"cuda\", got False"),
        ({"deterministic": True}, r"deterministic must be False with device=\"cuda\", got True"),
        ({"projection": "free"}, r"projection must be \"shared\" or \"fixed\" with device=\"cuda\", got \"free\""),
    ],
    ids=["dtype", "negatives", "windows", "deterministic", "projection"],
)
def test_options_without_a_kernel_are_refused(options, message):
    made = Options(image_negative=3, **options)
    with pytest.raises(ValueError, match=message):
        gpu.Cuda(made, vocabulary(), Grounding(bank(), vocabulary(), made), "exact", device="cpu")


@pytest.mark.parametrize("name", ["negative", "image_negative"])
def test_more_outputs_than_registers_hold_are_refused_before_anything_is_done(name):
    pytest.importorskip("triton", reason="there is no Triton here")
    made = Options(**{"vector_size": 1000, "image_negative": 3, name: 40})
    pictures = ImageBank.from_features(np.random.default_rng(0).random((50, 4)), ["w1", "w2"] * 25)
    with pytest.raises(ValueError, match=rf"^{name} must be at most 31 for rows of 1008 numbers on cuda, got 40"):
        gpu.Cuda(made, vocabulary(), Grounding(pictures, vocabulary(), made), "exact")


def test_frozen_rows_are_refused():
    engine = gpu.Cuda(Options(vector_size=10), vocabulary(), None, "exact", device="cpu")
    v = zeros(V, 10, "float32")
    with pytest.raises(ValueError, match=r"vectors_lockf must be 1 with device=\"cuda\", got 0.5"):
        engine.start(v, v, np.array([1, 0.5, 0], np.float32))


def test_a_machine_without_the_device_or_its_packages_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="GPU"):
        ImageSkipGram(device="cuda").fit(lee())
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ImportError, match=r"imgskipgram\[gpu\]"):
        ImageSkipGram(device="cuda").fit(lee())


# --- models ---------------------------------------------------------------------------------------------------------


def grounded(device: str, **options: Any) -> ImageSkipGram:
    """A model of some of Lee's text, with pictures of frequent words."""
    made = ImageSkipGram(**{"vector_size": 20, "epochs": 3, "image_negative": 3, "device": device, **options})
    words = ["police", "fire", "people", "government", "australia", "israel", "afghanistan", "taliban"]
    features = np.repeat(np.eye(8), 3, 0) + np.random.default_rng(0).normal(size=(24, 8)) / 10
    pictures = ImageBank.from_features(features, np.repeat(words, 3).tolist())
    with open(lee(), encoding="utf-8") as file:
        return made.fit([line.split() for line in file][: 300 if device == "cuda" else 12], pictures)


def test_models_learn_what_they_learn_on_the_processor(monkeypatch):
    options = {"min_count": 2, "alpha": 0.05, "workers": 1}
    peer = grounded("cpu", **options)
    monkeypatch.setattr(_training, "engine", partial(gpu.Cuda, device="cpu"))
    monkeypatch.setattr(gpu, "_LEAST", 16)
    ours = grounded("cpu", **options)
    for a, b in zip(ours.losses_, peer.losses_, strict=True):
        assert a["text_pairs"] == b["text_pairs"]
        assert a["image_pairs"] == b["image_pairs"]
        assert a["text"] == pytest.approx(b["text"], rel=0.01)
        assert a["image"] == pytest.approx(b["image"], rel=0.03, abs=1e-9)
    assert ours.losses_[-1]["text"] < ours.losses_[0]["text"]
    cosine = (ours.wv.get_normed_vectors() * peer.wv.get_normed_vectors()).sum(1)
    assert cosine.mean() > 0.99
    assert ours.explain("police", topn=3).images


@pytest.mark.gpu
@pytest.mark.parametrize("objective", ["nce", "none"])
def test_losses_on_a_gpu_fall_like_on_the_processor(objective):
    if not torch.cuda.is_available() or os.environ["TRITON_INTERPRET"] == "1":
        pytest.skip("this needs a CUDA device and TRITON_INTERPRET=0")
    options = {"objective": objective, "epochs": 5, "alpha": 0.05, "vector_size": 100}
    peer, ours = grounded("cpu", **options), grounded("cuda", **options)
    for a, b in zip(ours.losses_, peer.losses_, strict=True):
        assert a["text_pairs"] == b["text_pairs"]
        assert a["text"] == pytest.approx(b["text"], rel=0.02)
        assert a["image"] == pytest.approx(b["image"], rel=0.05, abs=1e-9)
    cosine = (ours.wv.get_normed_vectors() * peer.wv.get_normed_vectors()).sum(1)
    assert cosine.mean() > 0.9
