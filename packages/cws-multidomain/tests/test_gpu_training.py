"""Minibatch ADF in PyTorch against the trainer in C++, and against its definition."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="there is no PyTorch here")
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

from cws_multidomain import _core  # noqa: E402
from cws_multidomain.gpu import _ops, _training, require  # noqa: E402

DEVICE = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
OPTIONS: dict[str, Any] = {"upper": 0.995, "lower": 0.6, "l2": 1.0, "transition": 0.6, "updates": 10, "shared": True}
PLAIN: dict[str, Any] = {**OPTIONS, "domain_dropout": 0.0, "feature_dropout": 0.0, "shards": 1}


def sentences(count: int, domains: int, lexicons: int, seed: int = 0, longest: int = 13) -> tuple[Any, ...]:
    """Random symbols, marks and labels of words, a tenth of which is unknown."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, count)
    splits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n = int(splits[-1])
    symbols = rng.integers(3, 40, n).astype(np.uint16)
    marks = [rng.integers(0, 125, n).astype(np.uint8) for _ in range(lexicons)]
    start = rng.random(n) < 0.6
    start[splits[:-1]] = True
    after = np.append(start[1:], True)
    allowed = np.where(start, np.where(after, 8, 1), np.where(after, 4, 2)).astype(np.uint8)
    allowed[rng.random(n) < 0.1] = 15
    return symbols, splits, marks, allowed, rng.integers(0, max(domains, 1), count).astype(np.uint8)


def trainer(device: str, data: tuple[Any, ...], domains: int, rate: float = 0.05, **options: Any) -> _training.Trainer:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("this needs a CUDA device")
    made = _training.Trainer(len(data[2]), domains, device=device, **options)
    made.load(*data, rate)
    return made


def order(count: int, epoch: int) -> Any:
    return np.random.default_rng([3, epoch]).permutation(count).astype(np.int32)


@DEVICE
@pytest.mark.parametrize(
    ("domains", "lexicons", "changes"),
    [
        (0, 0, {"shards": 1}),
        (0, 1, {"shards": 7, "feature_dropout": 0.2}),
        (3, 2, {"shards": 8, "feature_dropout": 0.2, "domain_dropout": 0.3}),
        (2, 1, {"shards": 60, "feature_dropout": 0.1, "l2": 2.0, "upper": 0.9, "lower": 0.5}),
        (2, 1, {"shards": 5, "domain_dropout": 0.3, "shared": False}),
    ],
    ids=["plain", "minibatches", "domains", "all at once", "one domain alone"],
)
def test_minibatches_learn_what_the_trainer_in_c_learns(device, domains, lexicons, changes):
    data, options = sentences(60, domains, lexicons), {**PLAIN, **changes}
    ours, peer = trainer(device, data, domains), _core.Trainer(lexicons, domains)
    peer.load(*data, 0.05)
    for epoch in range(3):
        loss = peer.epoch(order(60, epoch), seed=10**12 + epoch, threads=1, **options)
        assert ours.epoch(order(60, epoch), seed=10**12 + epoch, threads=1, **options) == pytest.approx(loss, rel=1e-5)
    one, two = np.argsort(ours.keys), np.argsort(peer.keys)
    assert np.array_equal(ours.keys[one], peer.keys[two])
    for component in range(domains + 1):
        a, b = (x.weights(component).reshape(-1, 4)[of] for x, of in ((ours, one), (peer, two)))
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)
        np.testing.assert_allclose(ours.transition(component), peer.transition(component), rtol=0, atol=2e-6)


def test_training_goes_on_from_given_weights():
    data, domains = sentences(30, 2, 1), 2
    options = {**PLAIN, "shards": 4}
    first = _core.Trainer(1, domains)
    first.load(*sentences(40, 2, 1, seed=5), 0.05)
    first.epoch(order(40, 0), seed=1, threads=1, **options)
    made = [_training.Trainer(1, domains, device="cpu"), _core.Trainer(1, domains)]
    for t in made:
        for component in range(domains + 1):
            weights = first.weights(component).reshape(-1, 4)
            has = ~np.isnan(weights[:, 0])
            t.set(component, first.keys[has], np.ascontiguousarray(weights[has]), first.transition(component))
        t.load(*data, 0.03)
        t.epoch(order(30, 0), seed=2, threads=1, **options)
    one, two = (np.argsort(t.keys) for t in made)
    assert np.array_equal(made[0].keys[one], made[1].keys[two])
    for component in range(domains + 1):
        a, b = (t.weights(component).reshape(-1, 4)[of] for t, of in zip(made, (one, two), strict=True))
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


@DEVICE
def test_the_loss_of_no_weights_counts_the_segmentations(device):
    """2^(n-1) of n characters, all equally likely; then steps lower it."""
    data = sentences(25, 0, 0)
    data[3][:] = np.where(data[3] == 15, 8, data[3])
    for s, (a, b) in enumerate(zip(data[1], data[1][1:], strict=False)):
        data[3][a:b] = 8 if s % 2 else [8] if b - a == 1 else [1, *[2] * (b - a - 2), 4]
    made = trainer(device, data, 0)
    loss = made.epoch(order(25, 0), seed=0, **{**PLAIN, "shards": 25})
    assert loss == pytest.approx(math.log(2) * float((np.diff(data[1]) - 1).sum()), rel=1e-6)
    later = [made.epoch(order(25, k), seed=k, **{**PLAIN, "shards": 5}) for k in range(1, 5)]
    assert loss > later[0] > later[1] > later[2] > later[3]


def test_a_step_is_the_derivative_of_the_loss():
    """Central differences in float64, for a minibatch of everything."""
    data, rate = sentences(6, 2, 1, seed=2, longest=5), 1e-3
    options = {**PLAIN, "shards": 6, "updates": 1, "upper": 1.0, "lower": 1.0, "transition": 1.0, "l2": 1e9}

    def start() -> _training.Trainer:
        made = trainer("cpu", data, 2, rate, dtype=torch.float64)
        made._w += torch.randn(made._w.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 4
        made._transition += torch.arange(48, dtype=torch.float64).view(3, 4, 4).cos() / 4
        return made

    def loss(change: str, where: tuple[int, ...], by: float) -> float:
        made = start()
        getattr(made, change)[where] += by
        return made.epoch(order(6, 0), seed=0, **options)

    after, before = start(), start()
    after.epoch(order(6, 0), seed=0, **options)
    places = [("_w", (r, r % 4)) for r in range(0, len(before._w), 23)]
    places += [("_transition", (c, *xy)) for c in range(3) for xy in ((0, 1), (2, 0), (3, 3), (0, 0))]
    for change, where in places:
        moved = (getattr(before, change)[where] - getattr(after, change)[where]).item() / rate
        expected = (loss(change, where, 1e-4) - loss(change, where, -1e-4)) / 2e-4
        assert moved == pytest.approx(expected, abs=1e-6), (change, where)


@DEVICE
def test_equal_runs_give_equal_bits(device):
    data, options = sentences(50, 3, 1), {**PLAIN, "shards": 16, "feature_dropout": 0.2, "domain_dropout": 0.3}
    made = [trainer(device, data, 3) for _ in range(2)]
    losses = [[t.epoch(order(50, k), seed=k, **options) for k in range(2)] for t in made]
    assert losses[0] == losses[1]
    assert torch.equal(made[0]._w, made[1]._w)
    assert torch.equal(made[0]._transition, made[1]._transition)


def test_interpreted_kernels_learn_what_the_reference_learns(monkeypatch):
    pytest.importorskip("triton", reason="there is no Triton here")
    if os.environ["TRITON_INTERPRET"] != "1":
        pytest.skip("Triton is compiled here, not interpreted")
    from cws_multidomain.gpu import _triton

    data, options = (
        sentences(12, 2, 1, longest=6),
        {**PLAIN, "shards": 5, "feature_dropout": 0.2, "domain_dropout": 0.3},
    )
    reference = trainer("cpu", data, 2)
    expected = reference.epoch(order(12, 0), seed=0, **options)
    monkeypatch.setattr(_training, "_ops", _triton)
    kernels = trainer("cpu", data, 2)
    with np.errstate(all="ignore"):
        assert kernels.epoch(order(12, 0), seed=0, **options) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(kernels._w, reference._w, rtol=0, atol=1e-6)
    torch.testing.assert_close(kernels._transition, reference._transition, rtol=0, atol=1e-6)


def test_train_takes_the_device_and_learns_the_same_segmenter(monkeypatch):
    pytest.importorskip("cws_multidomain.training", reason="this build does not train")
    from cws_multidomain import _learner, gpu

    words = ["我们", "爱", "北京", "天安门", "大学", "很", "大", "的", "学生", "在"]
    rng = random.Random(0)
    part = [[rng.choice(words) for _ in range(rng.randrange(1, 9))] for _ in range(60)]
    corpus, losses = {"one": part[:40], "two": part[40:]}, []
    options: dict[str, Any] = {"epochs": 3, "shards": 16, "progress": lambda p: losses.append(p.loss)}
    peer = gpu.train(corpus, device="cpu", **options)
    made: list[str] = []

    def on_cpu(device: str) -> Any:
        made.append(device)
        return lambda lexicons, domains: _training.Trainer(lexicons, domains, device="cpu")

    monkeypatch.setattr(_learner, "_trainer", on_cpu)
    monkeypatch.setattr(gpu, "require", lambda device: None)
    ours = gpu.train(corpus, device="cuda", **options)
    assert made == ["cuda"]
    assert losses[3:] == pytest.approx(losses[:3], rel=1e-4, abs=1e-7)
    texts = ["".join(line) for line in part]
    assert ours.cut_many(texts) == peer.cut_many(texts)


@pytest.mark.gpu
def test_train_on_a_gpu_learns_what_it_learns_on_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("this needs a CUDA device")
    from cws_multidomain import gpu

    rng = random.Random(0)
    corpus = [[rng.choice(["我们", "爱", "北京", "大学", "的"]) for _ in range(rng.randrange(1, 9))] for _ in range(60)]
    losses: list[float] = []
    one, two = (
        gpu.train(corpus, device=d, epochs=3, progress=lambda p: losses.append(p.loss)) for d in ("cuda", "cpu")
    )
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-4, abs=1e-7)
    assert one.cut("我们爱北京大学") == two.cut("我们爱北京大学")


def test_dropout_leaves_out_the_share_that_was_asked_for_and_never_the_symbol_itself():
    lengths = np.full(400, 25)
    alone, dropped = _training.dropout(lengths, 7, 0.3, 0.2)
    assert alone.mean() == pytest.approx(0.3, abs=0.08)
    assert np.delete(dropped, 2, 1).mean(0) == pytest.approx(np.full(8, 51 / 256), abs=0.02)
    assert not dropped[:, 2].any()


def test_importing_the_package_does_not_import_torch():
    code = "import cws_multidomain, cws_multidomain.gpu, sys; assert not {'torch', 'triton'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torch_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("cws_multidomain.gpu.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "cws-multidomain\[gpu\]"'):
        require("cuda")


def test_a_device_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(ValueError, match="sees no CUDA device"):
        require("cuda")


def test_the_trainer_uses_the_registered_operators():
    assert _training._ops is _ops
