"""The operators of `imgskipgram.gpu`: their definition, and the Triton kernels, interpreted on CPU or on a GPU."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="there is no PyTorch here")
# Read when triton is imported. A machine with a GPU compiles the kernels and tests them there.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

from imgskipgram import _core  # noqa: E402
from imgskipgram import _reference as definition  # noqa: E402
from imgskipgram.gpu import _ops, _reference  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

NONE = 2**32 - 1
SEED, EPOCH, FIRST = 2**40 + 7, 2, 2**33 + 5
V, M = 23, 9
LENGTHS = [0, 5, 0, 0, 12, 1, 26, 0, 45, 0]
OBJECTIVES = pytest.mark.parametrize("objective", ["nce", "margin", "infonce"])
IMPLEMENTATIONS = ["reference", "triton", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=IMPLEMENTATIONS)
def ops(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The operators of one implementation, and the device that it takes."""
    if request.param == "reference":
        yield SimpleNamespace(device="cpu", **{name: getattr(_ops, name) for name in _ops.SCHEMAS})
        return
    if request.param == "cuda":
        if not torch.cuda.is_available() or "cuda" not in _ops.KERNELS or os.environ["TRITON_INTERPRET"] == "1":
            pytest.skip("this needs a CUDA device, Triton and TRITON_INTERPRET=0")
        yield SimpleNamespace(device="cuda", **{name: getattr(_ops, name) for name in _ops.SCHEMAS})
        return
    pytest.importorskip("triton", reason="there is no Triton here")
    if os.environ["TRITON_INTERPRET"] != "1":
        pytest.skip("Triton is compiled here, not interpreted")
    from imgskipgram.gpu import _triton

    with np.errstate(all="ignore"):
        yield SimpleNamespace(device="cpu", **{name: getattr(_triton, name) for name in _ops.SCHEMAS})


# --- what they are given --------------------------------------------------------------------------------------------


def samples(often: float = 3.0, **changes: Any) -> definition.Samples:
    """One word is drawn as often as twice this many others."""
    rng = np.random.default_rng(3)
    threshold, alias = _core.alias_build(np.array([often, *rng.random(V - 1)]))
    keep = np.where(rng.random(V) < 0.5, NONE, rng.integers(2**30, 2**32, V)).astype(np.uint32)
    images = [sorted(rng.choice(M, w % 4, replace=False).tolist()) if w % 2 else [] for w in range(V)]
    images[0], images[2] = list(range(M)), list(range(1, M))
    made = definition.Samples(keep, threshold, alias, images, M, 3, 5, 4, seed=SEED, epoch=EPOCH)
    return replace(made, **changes)


def sentences() -> tuple[Any, Any]:
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    rng = np.random.default_rng(0)
    ids = np.where(rng.random(offsets[-1]) < 0.3, 0, rng.integers(0, V, offsets[-1]))
    return ids.astype(np.uint32), offsets


def tables(s: definition.Samples) -> list[Tensor]:
    return [torch.from_numpy(x) for x in (s.keep, s.threshold, s.alias)]


def bank(s: definition.Samples) -> tuple[Any, Any]:
    start = np.cumsum([0, *map(len, s.images)]).astype(np.uint64)
    return start, np.array([i for own in s.images for i in own], np.uint32)


def drawn(ops: Any, s: definition.Samples) -> tuple[Any, list[Tensor]]:
    ids, offsets = sentences()
    given = [x.to(ops.device) for x in (torch.from_numpy(ids), torch.from_numpy(offsets), *tables(s))]
    return given, [x.cpu() for x in ops.draws(*given, s.window, s.negative, SEED, EPOCH, FIRST)]


def expected(s: definition.Samples) -> list[Any]:
    """Of each sentence what the C++ core draws."""
    ids, offsets = sentences()
    start, images = bank(s)
    return [
        _core.draws(
            ids[begin:end], s.keep, s.threshold, s.alias, start, images, M, window=s.window, negative=s.negative,
            shrink_windows=True, negatives="center", image_negative=s.image_negative, seed=SEED, epoch=EPOCH,
            sentence=FIRST + number,
        )
        for number, (begin, end) in enumerate(pairwise(offsets))
    ]  # fmt: skip


def rows(count: int, columns: int, seed: int) -> Tensor:
    """Vectors, filled up to a multiple of 16."""
    values = np.random.default_rng(seed).normal(size=(count, columns)) / np.sqrt(columns)
    out = np.zeros((count, -(-columns // 16) * 16), np.float32)
    out[:, :columns] = 2 * values
    return torch.from_numpy(out)


def assert_within_twice(actual: Tensor, reference: Tensor, exact: Any) -> None:
    """The 2x rule: the error against float64 is at most twice that of the reference in the same precision.

    One unit in the last place of the largest value is granted, or a lucky reference could not be met."""
    assert actual.dtype == reference.dtype
    actual, reference, exact = (torch.as_tensor(x).cpu().double() for x in (actual, reference, exact))
    unit = torch.finfo(torch.float32).eps * float(exact.abs().max())
    error, allowed = ((x - exact).abs().max() for x in (actual, reference))
    assert float(error) <= 2 * float(allowed) + unit


# --- samples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("negative", [1, 4, 5, 9])
def test_samples_are_those_of_the_core(ops, negative):
    """One word is nearly always drawn, and as a target runs out of tries."""
    s = samples(often=30.0, negative=negative)
    ids, offsets = sentences()
    place, words, left, right, negatives, counts = (x.numpy().astype(np.int64) for x in drawn(ops, s)[1])
    at, dropped = 0, 0
    for begin, (positions, windows, others, _) in zip(offsets, expected(s), strict=False):
        n, rank = len(positions), np.arange(len(positions))
        mine = slice(at, at + n)
        np.testing.assert_array_equal(place[mine], begin + positions)
        np.testing.assert_array_equal(words[mine], ids[place[mine]])
        np.testing.assert_array_equal(left[mine] - at, np.maximum(0, rank - windows.astype(int)))
        np.testing.assert_array_equal(right[mine] - at, np.minimum(n, rank + windows.astype(int) + 1))
        np.testing.assert_array_equal(negatives[mine] & NONE, others.reshape(n, negative))
        dropped += int((others == NONE).sum())
        at += n
    for row, count in zip(negatives[:at], counts[:at], strict=True):
        want = np.zeros(negative)
        for k, word in enumerate(row):
            if word >= 0:
                want[row.tolist().index(word)] += 1
            else:
                assert want[k] == 0
        np.testing.assert_array_equal(count, want)
    assert 0 < at < len(ids)
    assert all((x[at:] == -1).all() for x in (place, words, left, right, negatives, counts))
    assert dropped


@pytest.mark.parametrize("negative", [1, 4, 5])
def test_images_are_those_of_the_core(ops, negative):
    s = samples(image_negative=negative)
    start, images = (torch.from_numpy(x).to(ops.device) for x in (bank(s)[0].view(np.int64), bank(s)[1]))
    given, (place, words, *_) = drawn(ops, s)
    place, words = place.to(ops.device), words.to(ops.device)
    positive, others = ops.pictures(place, words, given[1], start, images, M, negative, SEED, EPOCH, FIRST)
    got = torch.cat([positive[:, None], others], 1).cpu().numpy().astype(np.int64) & NONE
    want = np.concatenate([pictures.reshape(-1, 1 + negative) for *_, pictures in expected(s)])
    np.testing.assert_array_equal(got[: len(want)], want)
    assert (got[len(want) :] == NONE).all()
    own, other = want[want[:, 0] != NONE, 0], want[want[:, 0] != NONE, 1:]
    assert len(own) > 20
    assert (other == NONE).any()


def test_without_images_no_word_has_one(ops):
    s = samples()
    given, (place, words, *_) = drawn(ops, s)
    place, words = place.to(ops.device), words.to(ops.device)
    none = torch.zeros(V + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.uint32)
    none = tuple(x.to(ops.device) for x in none)
    positive, others = ops.pictures(place, words, given[1], *none, 0, 4, SEED, EPOCH, FIRST)
    assert (positive == -1).all()
    assert (others == -1).all()


def test_nothing_is_drawn_for_no_words(ops):
    none = torch.zeros(0, dtype=torch.uint32, device=ops.device)
    given = none, torch.zeros(3, dtype=torch.int64, device=ops.device), *(x.to(ops.device) for x in tables(samples()))
    assert [tuple(x.shape) for x in ops.draws(*given, 3, 5, 1, 0, 0)] == [(0,)] * 4 + [(0, 5)] * 2
    v, u = rows(V, 7, 0).to(ops.device), rows(V, 7, 1).to(ops.device)
    before = v.clone(), u.clone()
    assert float(ops.sgns_(v, u, *given, 3, 5, 0.1, 1, 0, 0)) == 0
    assert torch.equal(v, before[0])
    assert torch.equal(u, before[1])


# --- steps ----------------------------------------------------------------------------------------------------------


def train(operators: Any, device: str, dtype: Any, columns: int, s: definition.Samples) -> tuple[Tensor, ...]:
    """v, u and the losses after all sentences of up to 32 words, which a program has to itself, each in its launch."""
    ids, offsets = sentences()
    v, u = (rows(V, columns, seed).to(device, dtype) for seed in (1, 2))
    given = [x.to(device) for x in tables(s)]
    losses = []
    for number, (begin, end) in enumerate(pairwise(offsets)):
        if end - begin <= 32:
            own = torch.from_numpy(ids[begin:end]).to(device), torch.tensor([0, end - begin], device=device)
            losses.append(operators.sgns_(v, u, *own, *given, s.window, s.negative, 0.1, SEED, EPOCH, FIRST + number))
    return v, u, torch.stack(losses)


def defined(columns: int, s: definition.Samples) -> tuple[Any, Any, Any]:
    """The same by the definition of the package, in float64."""
    ids, offsets = sentences()
    v, u = (rows(V, columns, seed).double().numpy() for seed in (1, 2))
    losses = [
        definition.train_sentence(ids[a:b], FIRST + n, s, v, u, None, np.ones(V), 0.1, "nce", 0.0, False)[0]
        for n, (a, b) in enumerate(pairwise(offsets))
        if b - a <= 32
    ]
    return v, u, np.array(losses)


@pytest.mark.parametrize(("columns", "negative"), [(7, 1), (100, 5), (100, 20), (300, 5)])
def test_a_sentence_is_trained_as_defined(ops, columns, negative):
    s = samples(negative=negative)
    got, exact = train(ops, ops.device, torch.float32, columns, s), defined(columns, s)
    reference = train(_reference, "cpu", torch.float32, columns, s)
    for a, b, c in zip(got[:2], reference, exact, strict=False):
        assert_within_twice(a, b, c)
        assert not a[:, columns:].any()
    np.testing.assert_allclose(got[2].cpu(), exact[2], rtol=1e-6)


def test_the_definition_in_pytorch_is_that_in_numpy():
    for a, b in zip(train(_ops, "cpu", torch.float64, 7, samples()), defined(7, samples()), strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-12, atol=1e-14)


def test_sentences_of_a_launch_are_trained_in_their_order(ops):
    """Of programs that run one after the other, as interpreted ones do."""
    if ops.device == "cuda":
        pytest.skip("programs run at the same time")
    s = samples()
    ids, offsets = sentences()
    v, u = rows(V, 20, 1), rows(V, 20, 2)
    loss = ops.sgns_(v, u, torch.from_numpy(ids), torch.from_numpy(offsets), *tables(s), 3, 5, 0.1, SEED, EPOCH, FIRST)
    exact = [rows(V, 20, seed).double().numpy() for seed in (1, 2)]
    total = sum(
        definition.train_sentence(ids[a:b], FIRST + n, s, *exact, None, np.ones(V), 0.1, "nce", 0.0, False)[0]
        for n, (a, b) in enumerate(pairwise(offsets))
    )
    assert float(loss) == pytest.approx(total, rel=1e-6)
    for a, b in zip((v, u), exact, strict=True):
        np.testing.assert_allclose(a.numpy(), b, atol=2e-5)


def test_centres_have_rates_of_their_own_and_may_be_a_part(ops):
    s = samples()
    _, (_, words, left, right, negatives, counts) = drawn(ops, s)
    alpha = torch.linspace(0, 0.2, len(words))
    given = [x.to(ops.device) for x in (words, left, right, negatives, counts, alpha)]
    v, u = (rows(V, 7, seed).to(ops.device) for seed in (1, 2))
    one, two = (rows(V, 7, seed).double() for seed in (1, 2))
    loss = sum(float(ops.pairs_(v, u, *given, a, b)) for a, b in ((3, 4), (10, 30), (30, 30)))
    drawn_ = words, left, right, negatives, counts, alpha.double()
    exact = sum(float(_reference.pairs_(one, two, *drawn_, a, b)) for a, b in ((3, 4), (10, 30)))
    assert loss == pytest.approx(exact, rel=1e-6)
    for a, b in ((v, one), (u, two)):
        np.testing.assert_allclose(a.cpu(), b, atol=2e-6)


def shown(device: str = "cpu", distinct: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Words, some of which have images: repeats among both, images that were dropped."""
    rng = np.random.default_rng(5)
    words = rng.permutation(V) if distinct else rng.integers(0, V, 50)
    positive = np.where(rng.random(len(words)) < 0.6, rng.integers(0, M, len(words)), -1)
    negative = np.where(rng.random((len(words), 6)) < 0.8, rng.integers(0, M, (len(words), 6)), -1)
    negative[3] = -1
    return tuple(torch.from_numpy(x.astype(np.int32)).to(device) for x in (words, positive, negative))


@OBJECTIVES
@pytest.mark.parametrize("columns", [7, 100, 300])
def test_words_approach_their_images_as_defined(ops, columns, objective):
    """Interpreted, a word that repeats sees its own update; on a GPU it may not."""
    given = shown(distinct=ops.device == "cuda")
    v, z = rows(V, columns, 1), rows(M, columns, 2)
    reference, exact, actual = v.clone(), v.double().numpy(), v.to(ops.device)
    loss = ops.image_(actual, *(x.to(ops.device) for x in given), z.to(ops.device), objective, 0.7, 0.2)
    _reference.image_(reference, *given, z, objective, 0.7, 0.2)
    total = 0.0
    for word, own, others in zip(*(x.tolist() for x in given), strict=True):
        if own >= 0:
            chosen = [own, *(k for k in others if k >= 0)]
            step, _, one = definition.image_gradient(exact[word], z.double().numpy()[chosen], objective)
            exact[word] += 0.7 * 0.2 * step
            total += one
    assert_within_twice(actual, reference, exact)
    assert float(loss) == pytest.approx(total, rel=1e-5)
    assert not actual[:, columns:].any()


def test_no_update_is_lost_where_all_programs_want_the_same_rows(ops):
    """At a rate so small that no step changes the gradient of another, the sum of all is the one found at once."""
    n, alpha = (20_000, 1e-6) if ops.device == "cuda" else (100, 1e-5)
    ids = torch.from_numpy(np.random.default_rng(7).integers(0, 3, n).astype(np.uint32))
    given = ids, torch.arange(0, n + 1, 20), *tables(samples(keep=np.full(V, NONE, np.uint32)))
    v, u = rows(V, 7, 1), rows(V, 7, 2)
    _, words, left, right, negatives, _ = (x.to(torch.int64) for x in _reference.draws(*given, 3, 5, SEED, EPOCH, 0))
    centre, context = torch.tensor([(i, j) for i in range(n) for j in range(left[i], right[i]) if j != i]).T
    outputs = torch.cat([words[centre][:, None], negatives[centre]], 1)
    x, y = v.double()[words[context]], u.double()[outputs]
    label = (torch.arange(6) == 0).double()
    g = alpha * (label - torch.sigmoid((y @ x[:, :, None])[:, :, 0])) * (outputs >= 0)
    dv = torch.zeros_like(v, dtype=torch.float64).index_add_(0, words[context], (g[:, None] @ y)[:, 0])
    gain = (g[:, :, None] * x[:, None]).flatten(0, 1)
    du = torch.zeros_like(u, dtype=torch.float64).index_add_(0, outputs.flatten() % V, gain)
    one, two = (x.to(ops.device, copy=True) for x in (v, u))
    ops.sgns_(one, two, *(x.to(ops.device) for x in given), 3, 5, alpha, SEED, EPOCH, 0)
    for after, before, change in ((one, v, dv), (two, u, du)):
        assert (after.cpu().double() - before.double() - change).norm() < 0.05 * change.norm()


def test_a_word_that_repeats_gets_all_its_updates(ops):
    """With "nce" far from its images a word's gradients are the same, however far it has come."""
    z = torch.zeros(2, 16, device=ops.device)
    z[0, 0], z[1, 1] = 1.0, 1.0
    v = torch.zeros(V, 16, device=ops.device)
    v[4, 0], v[4, 1] = -1e4, 1e4
    words = torch.full((100,), 4, dtype=torch.int32, device=ops.device)
    positive, negative = torch.zeros_like(words), torch.ones_like(words)[:, None]
    ops.image_(v, words, positive, negative, z, "nce", 0.5, 0.25)
    assert v[4].tolist()[:3] == [-1e4 + 12.5, 1e4 - 12.5, 0]


@OBJECTIVES
def test_the_zero_vector_has_finite_gradients(ops, objective):
    words, positive, negative = shown(ops.device)
    v, z = torch.zeros(V, 16, device=ops.device), rows(M, 7, 2).to(ops.device)
    z[0] = 0
    loss = ops.image_(v, words, positive, negative, z, objective, 1.0, 0.1)
    assert torch.isfinite(v).all()
    assert torch.isfinite(loss)


@OBJECTIVES
def test_steps_go_down_the_gradient_that_autograd_finds(objective):
    """Section by section: one word with its images, one context with its target and negatives."""
    v, z = rows(V, 7, 1).double()[:, :7], rows(M, 7, 2).double()[:, :7]
    x = v[3].clone().requires_grad_()
    f = z[[1, 4, 4, 5]] @ x
    cosine = f / (x.norm() * z[[1, 4, 4, 5]].norm(dim=1))
    loss = {
        "nce": -torch.nn.functional.logsigmoid(f[0]) - torch.nn.functional.logsigmoid(-f[1:]).sum(),
        "margin": (0.5 - cosine[0] + cosine[1:]).clamp(min=0).sum(),
        "infonce": -torch.log_softmax(cosine / 0.07, 0)[0],
    }[objective]
    loss.backward()
    want = loss.item()
    after = v.clone()
    one = torch.tensor([3]), torch.tensor([1]), torch.tensor([[4, 4, -1, 5]])
    assert float(_reference.image_(after, *one, z, objective, 0.5, 0.1)) == pytest.approx(want, rel=1e-12)
    torch.testing.assert_close(after[3], v[3] - 0.05 * x.grad, rtol=1e-12, atol=1e-14)

    u = rows(V, 7, 3).double()[:, :7]
    a, b = v.clone().requires_grad_(), u.clone().requires_grad_()
    loss = -torch.nn.functional.logsigmoid(a[2] @ b[1]) - 2 * torch.nn.functional.logsigmoid(-(a[2] @ b[6]))
    loss.backward()
    want = loss.item()
    pair = [torch.tensor(x) for x in ([1, 2], [0, 1], [2, 2], [[6, 6], [0, 0]], [[2, 0], [0, 0]])]
    v, u = v.clone(), u.clone()
    assert float(_reference.pairs_(v, u, *pair, torch.full((2,), 0.1), 0, 1)) == pytest.approx(want, rel=1e-12)
    torch.testing.assert_close(v, a.detach() - torch.tensor(0.1).double() * a.grad, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(u, b.detach() - torch.tensor(0.1).double() * b.grad, rtol=1e-7, atol=1e-9)


# --- as operators ---------------------------------------------------------------------------------------------------


def arguments(device: str) -> dict[str, tuple[Any, ...]]:
    """Of each operator some arguments."""
    s = samples()
    given = [x.to(device) for x in (*map(torch.from_numpy, sentences()), *tables(s))]
    place, words, left, right, negatives, counts = _reference.draws(*given, 3, 5, SEED, EPOCH, FIRST)
    start, images = (torch.from_numpy(x).to(device) for x in (bank(s)[0].view(np.int64), bank(s)[1]))
    v, u, z = rows(V, 7, 1).to(device), rows(V, 7, 2).to(device), rows(M, 7, 3).to(device)
    rates = torch.full(place.shape, 0.1, device=device)
    return {
        "draws": (*given, 3, 5, SEED, EPOCH, FIRST),
        "pictures": (place, words, given[1], start, images, M, 4, SEED, EPOCH, FIRST),
        "pairs_": (v, u, words, left, right, negatives, counts, rates, 2, 30),
        "sgns_": (v, u, *given, 3, 5, 0.1, SEED, EPOCH, FIRST),
        "image_": (v, *shown(device), z, "margin", 0.5, 0.1),
    }


DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


@DEVICES
@pytest.mark.parametrize("name", list(_ops.SCHEMAS))
def test_operators_are_what_their_schemas_say(device, name):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("this needs a CUDA device")
    torch.library.opcheck(getattr(_ops, name), arguments(device)[name])


def test_operators_compile_to_one_graph():
    def step(v: Tensor, u: Tensor, *given: Any) -> Tensor:
        return torch.ops.imgskipgram.sgns_(v, u, *given) * 2

    v, u, *given = arguments("cpu")["sgns_"]
    a, b = v.clone(), u.clone()
    want = 2 * _ops.sgns_(a, b, *given)
    torch._dynamo.reset()
    assert torch.compile(step, fullgraph=True, backend="aot_eager")(v, u, *given) == want
    assert torch.equal(v, a)
    assert torch.equal(u, b)


def test_the_definition_serves_every_device_but_cuda():
    assert "cpu" not in _ops.KERNELS
    assert ("cuda" in _ops.KERNELS) == (find_spec("triton") is not None)


def test_more_negatives_than_registers_hold_are_refused():
    triton = pytest.importorskip("imgskipgram.gpu._triton", reason="there is no Triton here")
    v = torch.zeros(3, 304)
    none, ids = torch.zeros(4, dtype=torch.int32), torch.zeros(4, 64, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"negative must be at most 63 for rows of 304 numbers on cuda, got 64"):
        triton.pairs_(v, v, none, none, none, ids, ids, torch.zeros(4), 0, 4)
