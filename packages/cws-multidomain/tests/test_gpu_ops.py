"""The operators of `cws_multidomain.gpu`: what they are, and the Triton kernels, interpreted on CPU or on a GPU."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="there is no PyTorch here")
# Read when triton is imported. A machine with a GPU compiles the kernels and tests them there.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from cws_multidomain.gpu import _ops, _reference  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

FORBIDDEN, LOWEST = _reference.FORBIDDEN, _reference.LOWEST
IMPLEMENTATIONS = ["reference", "triton", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=IMPLEMENTATIONS)
def ops(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The operators of one implementation, and the device that it takes."""
    if request.param == "reference":
        yield SimpleNamespace(device="cpu", reference=True, **{name: getattr(_ops, name) for name in _ops.SCHEMAS})
        return
    if request.param == "cuda":
        if not torch.cuda.is_available() or "cuda" not in _ops.KERNELS or os.environ["TRITON_INTERPRET"] == "1":
            pytest.skip("this needs a CUDA device, Triton and TRITON_INTERPRET=0")
        yield SimpleNamespace(device="cuda", **{name: getattr(_ops, name) for name in _ops.SCHEMAS})
        return
    pytest.importorskip("triton", reason="there is no Triton here")
    if os.environ["TRITON_INTERPRET"] != "1":
        pytest.skip("Triton is compiled here, not interpreted")
    from cws_multidomain.gpu import _triton

    with np.errstate(all="ignore"):
        yield SimpleNamespace(device="cpu", **{name: getattr(_triton, name) for name in _ops.SCHEMAS})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_within_twice(actual: Tensor, reference: Tensor, exact: Tensor) -> None:
    """The 2x rule: the error against float64 is at most twice that of the reference in the same precision.

    One unit in the last place of the largest value is granted, or a lucky reference could not be met."""
    assert actual.dtype == reference.dtype
    actual, reference, exact = (x.cpu().double() for x in (actual, reference, exact))
    finite = exact.isfinite()
    assert torch.equal(actual[~finite], exact[~finite])
    if finite.any():
        unit = torch.finfo(torch.float32).eps * float(exact[finite].abs().max())
        error, allowed = ((x - exact)[finite].abs().max() for x in (actual, reference))
        assert float(error) <= 2 * float(allowed) + unit


# --- chains ---------------------------------------------------------------------------------------------------------


def chain(
    length: int, sentences: int, tags: int, dtype: torch.dtype, *, masked: bool, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Random arguments; integers have many ties; some transitions are forbidden."""
    g = generator(seed)
    if dtype.is_floating_point:
        scores, trans = (torch.randn(*s, generator=g, dtype=dtype) for s in ((length, sentences, tags), (tags, tags)))
        trans[0, 1] = -math.inf
    else:
        scores = torch.randint(-2, 3, (length, sentences, tags), generator=g, dtype=dtype)
        trans = torch.randint(-1, 2, (tags, tags), generator=g, dtype=dtype)
        trans[0, 1] = FORBIDDEN
    lengths = torch.randint(0, length + 1, (sentences,), generator=g)
    lengths[: min(2, sentences)] = torch.tensor([0, 1])[: min(2, sentences)]
    lengths[-1:] = length
    return scores, trans, lengths, torch.rand(length, sentences, tags, generator=g) < 0.7 if masked else None


def on(device: str, *tensors: Tensor | None) -> list[Any]:
    return [x if x is None else x.to(device) for x in tensors]


def paths(scores: Tensor, trans: Tensor, length: int, mask: Tensor | None) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every allowed path of one sentence and its score."""
    floating = scores.dtype.is_floating_point
    for path in itertools.product(range(scores.shape[1]), repeat=length):
        parts = [scores[i, y].item() for i, y in enumerate(path)]
        parts += [trans[x, y].item() for x, y in itertools.pairwise(path)]
        allowed = all(mask[i, y] for i, y in enumerate(path)) if mask is not None else True
        if allowed and all(x > (-math.inf if floating else FORBIDDEN) for x in parts):
            yield path, sum(parts)


MASKED = pytest.mark.parametrize("masked", [False, True], ids=["free", "masked"])


@MASKED
@pytest.mark.parametrize("dtype", [torch.int32, torch.float64], ids=str)
@pytest.mark.parametrize("tags", [2, 3, 4, 5, 6])
def test_viterbi_is_the_best_of_all_paths(ops, tags, dtype, masked):
    length = 4 if tags < 6 else 3
    scores, trans, lengths, mask = chain(length, 7, tags, dtype, masked=masked, seed=tags)
    found, best = ops.crf_viterbi(*on(ops.device, scores, trans, lengths, mask))
    for s, n in enumerate(lengths.tolist()):
        candidates = dict(paths(scores[:, s], trans, n, None if mask is None else mask[:, s]))
        assert found[n:, s].tolist() == [-1] * (length - n)
        if not candidates:
            assert best[s] == (-math.inf if dtype.is_floating_point else LOWEST)
            assert found[:, s].tolist() == [-1] * length
            continue
        top = max(candidates.values())
        assert best[s].item() == pytest.approx(top, abs=1e-12)
        path = tuple(found[:n, s].tolist())
        assert candidates[path] == pytest.approx(top, abs=1e-12)
        if not dtype.is_floating_point:  # the lowest last tag, then the lowest predecessor, and so on
            assert path == min((p for p, x in candidates.items() if x == top), key=lambda p: p[::-1])


@MASKED
@pytest.mark.parametrize("tags", [2, 4, 5, 6])
def test_marginals_are_sums_over_all_paths(ops, tags, masked):
    length = 4 if tags < 6 else 3
    scores, trans, lengths, mask = chain(length, 6, tags, torch.float64, masked=masked, seed=10 + tags)
    log_z, nodes, edges = (x.cpu() for x in ops.crf_marginals(*on(ops.device, scores, trans, lengths, mask)))
    expected_edges = torch.zeros_like(edges)
    for s, n in enumerate(lengths.tolist()):
        weights = {p: math.exp(x) for p, x in paths(scores[:, s], trans, n, None if mask is None else mask[:, s])}
        total = sum(weights.values())
        assert log_z[s].item() == pytest.approx(math.log(total) if total else -math.inf, abs=1e-12)
        expected = torch.zeros(length, tags, dtype=torch.float64)
        for path, weight in weights.items():
            for i, y in enumerate(path):
                expected[i, y] += weight / total
            for x, y in itertools.pairwise(path):
                expected_edges[x, y] += weight / total
        torch.testing.assert_close(nodes[:, s], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(edges, expected_edges, rtol=0, atol=1e-12)


@MASKED
@pytest.mark.parametrize("tags", [2, 4, 5, 9, 33, 64])
def test_error_is_within_twice_that_of_the_float32_reference(ops, tags, masked):
    shape = (11, 40) if tags < 9 else (4, 4)
    scores, trans, lengths, mask = chain(*shape, tags, torch.float32, masked=masked, seed=tags)
    if mask is not None:
        mask |= ~mask.any(-1, keepdim=True)
    given = on(ops.device, scores * 5, trans, lengths, mask)
    exact = [x.double() if x is not None and x.dtype == torch.float32 else x for x in given]
    for name in ("crf_viterbi", "crf_marginals"):
        reference, true = (getattr(_reference, name)(*(x if x is None else x.cpu() for x in a)) for a in (given, exact))
        for actual, rough, fine in zip(getattr(ops, name)(*given), reference, true, strict=True):
            if actual.dtype.is_floating_point:
                assert_within_twice(actual, rough, fine)
            else:
                assert torch.equal(actual.cpu(), rough)


def test_probabilities_add_up(ops):
    scores, trans, lengths, _ = chain(9, 40, 4, torch.float32, masked=False)
    _, nodes, edges = ops.crf_marginals(*on(ops.device, scores * 20, trans, lengths, None))
    inside = torch.arange(9)[:, None] < lengths
    torch.testing.assert_close(nodes.sum(2).cpu(), inside.float(), rtol=0, atol=1e-5)
    assert float(edges.sum()) == pytest.approx(int((lengths - 1).clamp(min=0).sum()), rel=1e-5)


def test_unlikely_states_are_not_lost(ops):
    """A tag that is e^-200 times less likely than another is certain where the next must follow it."""
    scores = torch.tensor([[[200.0, 0, 0, 0]], [[0.0, 0, 0, 0]]])
    trans = torch.full((4, 4), -math.inf)
    trans[1, 2] = trans[0, 0] = 0
    mask = torch.ones(2, 1, 4, dtype=torch.bool)
    mask[1, 0, 0] = False
    log_z, nodes, edges = ops.crf_marginals(*on(ops.device, scores, trans, torch.tensor([2]), mask))
    assert log_z.item() == 0
    assert nodes[:, 0].argmax(1).tolist() == [1, 2]
    assert edges[1, 2] == edges.sum() == 1


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int64, torch.float16], ids=str)
def test_scores_of_other_dtypes(ops, dtype):
    scores, trans, lengths, _ = chain(6, 9, 4, torch.int32, masked=False)
    trans[0, 1] = -9
    expected = _reference.crf_viterbi(scores, trans, lengths)
    trans = trans.to(dtype if dtype.is_floating_point else torch.int32)
    tags, best = ops.crf_viterbi(*on(ops.device, scores.to(dtype), trans, lengths, None))
    assert torch.equal(tags.cpu(), expected[0])
    assert best.dtype == (torch.float32 if dtype.is_floating_point else torch.int64)
    assert best.tolist() == expected[1].tolist()


@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize("sentences", [0, 1, 2, 31, 67])
def test_few_positions_and_any_number_of_sentences(ops, sentences, length):
    scores, trans, lengths, _ = chain(length, sentences, 4, torch.float32, masked=False)
    lengths = lengths.clamp(max=length)
    given = on(ops.device, scores, trans, lengths, None)
    tags, best = ops.crf_viterbi(*given)
    log_z, nodes, edges = ops.crf_marginals(*given)
    assert tags.shape == (length, sentences)
    assert nodes.shape == scores.shape
    assert not edges.any()
    for x, reduce in ((best, torch.amax), (log_z, torch.logsumexp)):
        expected = reduce(scores[0], -1) if length else torch.zeros(sentences)
        torch.testing.assert_close(x.cpu(), expected.where(lengths > 0, 0))


def test_strided_scores_and_masks(ops):
    scores, trans, lengths, mask = chain(7, 12, 4, torch.float32, masked=True)
    given = on(ops.device, scores, trans, lengths, mask)
    assert mask is not None
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (given[0], given[3])]
    for name in ("crf_viterbi", "crf_marginals"):
        one, two = (
            getattr(ops, name)(*given),
            getattr(ops, name)(turned[0], given[1].t().contiguous().t(), given[2], turned[1]),
        )
        torch.testing.assert_close(one, two, rtol=1e-6, atol=0)


# --- one long line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int32, torch.float64], ids=str)
@pytest.mark.parametrize("tags", [2, 4, 5])
def test_a_scan_decides_as_a_walk_does(ops, tags, dtype, monkeypatch):
    if ops.device == "cpu" and hasattr(ops, "reference"):
        pytest.skip("the reference has no scan")
    from cws_multidomain.gpu import _triton

    if ops.device == "cpu":
        monkeypatch.setattr(_triton, "CHUNK", 4)
    length = 16 * _triton.CHUNK + 5
    scores, trans, _, mask = chain(length, 4, tags, dtype, masked=True, seed=tags)
    assert mask is not None
    mask[..., 0] |= torch.rand(length, 4, generator=generator()) < 0.9
    scans: list[None] = []
    scan = _triton._scan
    monkeypatch.setattr(_triton, "_scan", lambda *args: (scans.append(None), scan(*args))[1])
    for lengths in ([length, length - 1, 16 * _triton.CHUNK, 1], [0, 3, _triton.CHUNK, _triton.CHUNK + 1]):
        given = (scores, trans, torch.tensor(lengths), mask)
        tags_found, best = ops.crf_viterbi(*on(ops.device, *given))
        expected = _reference.crf_viterbi(*given)
        assert torch.equal(tags_found.cpu(), expected[0])
        torch.testing.assert_close(best.cpu(), expected[1], rtol=1e-14, atol=0)
    assert len(scans) == 2


@pytest.mark.parametrize("scan", [False, True], ids=["walk", "scan"])
@pytest.mark.parametrize("tags", [2, 6])
def test_integers_never_overflow(ops, tags, scan, monkeypatch):
    """With a smaller minus infinity, which takes fewer positions to reach."""
    if ops.device == "cuda" or hasattr(ops, "reference"):
        pytest.skip("this changes a constant of the interpreted kernels")
    if scan and tags == 6:
        pytest.skip("a scan has at most 5 tags")
    import triton.language as tl

    from cws_multidomain.gpu import _triton

    monkeypatch.setattr(_triton, "FORBIDDEN", tl.constexpr(-(2**12)))
    if scan:
        monkeypatch.setattr(_triton, "CHUNK", 4)
    scores = torch.randint(-100, 101, (200, 2, tags), generator=generator(), dtype=torch.int32) + 60
    scores[:, 1] = -scores[:, 1]
    trans = torch.randint(-50, 50, (tags, tags), generator=generator(), dtype=torch.int32)
    trans[0, 1] = FORBIDDEN
    given = (scores, trans, torch.tensor([200, 199]))
    monkeypatch.setattr(_reference, "FORBIDDEN", -(2**12))
    expected = _reference.crf_viterbi(*given)
    assert expected[1].abs().min() > 2**12
    assert all(map(torch.equal, ops.crf_viterbi(*given), expected))


@pytest.mark.gpu
def test_three_million_characters_in_one_line(ops):
    if ops.device != "cuda":
        pytest.skip("this takes a GPU")
    n = 3_000_000
    scores = torch.randint(-2000, 2001, (n, 1, 4), generator=generator(), dtype=torch.int32) + 1500
    trans = torch.randint(-500, 500, (4, 4), generator=generator(), dtype=torch.int32)
    tags, best = (x.cpu() for x in ops.crf_viterbi(*on("cuda", scores, trans, torch.tensor([n]))))
    path = tags[:, 0].long()
    assert best.item() > 2**31
    assert best.item() == int(scores[:, 0].gather(1, path[:, None]).sum() + trans[path[:-1], path[1:]].sum())


# --- features -------------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.integers(0, 2**32 - 1), st.integers(0, 2**31 - 1), max_size=60))
@settings(max_examples=60, deadline=None)
def test_a_hash_table_knows_its_keys_and_no_others(entries):
    keys = torch.tensor(list(entries), dtype=torch.int64)
    table = _reference.hash_table(keys, torch.tensor(list(entries.values()), dtype=torch.int64))
    assert table.numel() >= 2 * len(entries)
    asked = torch.cat((keys, keys ^ 1, torch.tensor([0, 2**32 - 1])))
    assert _reference.probe(table, asked).tolist() == [entries.get(key, -1) for key in asked.tolist()]


def corpus(rows: int, symbols: int = 12, seed: int = 0) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Symbols of sentences of 0 to 8 characters, their row splits, and the same as lists."""
    g = generator(seed)
    sizes = torch.randint(0, 9, (rows,), generator=g)
    splits = torch.cat((torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)))
    chars = torch.randint(0, symbols, (int(splits[-1]),), generator=g, dtype=torch.int32)
    return chars, splits, [chars[a:b].tolist() for a, b in itertools.pairwise(splits.tolist())]


@pytest.mark.parametrize("skip", [False, True], ids=["pairs", "skip"])
@pytest.mark.parametrize("rows", [0, 1, 2, 31, 200])
def test_ids_are_the_rows_of_the_n_grams_around_a_character(ops, rows, skip):
    chars, splits, sentences = corpus(rows, seed=rows)
    pairs = {int(k) // 12 << 16 | int(k) % 12: 100 + 4 * i for i, k in enumerate(torch.randperm(144)[:90])}
    skips = {int(k) // 12 << 16 | int(k) % 12: 900 + i for i, k in enumerate(torch.randperm(144)[:90])}
    tables = [
        _reference.hash_table(*map(torch.tensor, (list(t), list(t.values())))) for t in (pairs, skips)[: 1 + skip]
    ]
    ids = ops.ngram_ids(*on(ops.device, chars, splits, torch.stack(tables)))
    expected = []
    for sentence in sentences:
        c = [1, 1, *sentence, 2, 2]
        for i in range(2, len(c) - 2):
            row = [5 * c[i + d - 2] + d if c[i + d - 2] else -1 for d in range(5)]
            for d in range(4):
                first = pairs.get(c[i + d - 2] << 16 | c[i + d - 1], -1)
                row.append(first + d if first >= 0 else -1)
            expected.append([*row, skips.get(c[i - 1] << 16 | c[i + 1], -1)] if skip else row)
    assert ids.dtype == torch.int32
    assert ids.shape == (len(chars), 9 + skip)
    assert ids.tolist() == expected


@pytest.mark.parametrize("tags", [2, 4, 5, 17, 64])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [0, 1, 31, 1025])
def test_emissions_are_sums_of_rows(ops, n, dtype, tags):
    g = generator(n)
    ids = torch.randint(-2, 300, (n, 9), generator=g, dtype=torch.int32).clamp(min=-1)
    table = torch.randint(-127, 128, (300, tags), generator=g).to(dtype) / (1 if dtype == torch.int8 else 7)
    sums = ops.emit(*on(ops.device, ids.t().contiguous().t(), table.to(dtype)))
    assert sums.dtype == (torch.int32 if dtype == torch.int8 else dtype)
    exact = torch.where(ids[:, :, None] >= 0, table.double()[ids.long().clamp(min=0)], 0).sum(1)
    if dtype == torch.int8:
        assert torch.equal(sums.cpu().double(), exact)
    else:
        assert torch.equal(sums.cpu(), _reference.emit(ids, table.to(dtype)))  # column after column
        torch.testing.assert_close(sums.cpu().double(), exact, rtol=0, atol=1e-4)


def test_nine_times_127_stays_exact(ops):
    ids = torch.zeros(3, 400, dtype=torch.int32)
    table = torch.tensor([[127, -127, 127, -128]], dtype=torch.int8)
    assert ops.emit(*on(ops.device, ids, table)).tolist() == [[50800, -50800, 50800, -51200]] * 3


# --- training -------------------------------------------------------------------------------------------------------


def sorted_places(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows that occur, the places sorted by row, and where those of each row begin."""
    flat = ids.flatten()
    order = flat.sort(stable=True).indices
    order = order[flat[order] >= 0]
    rows, counts = torch.unique_consecutive(flat[order], return_counts=True)
    return rows, order, torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0)))


@pytest.mark.parametrize("tags", [2, 4, 5, 17])
@pytest.mark.parametrize("n", [0, 1, 31, 1023])
def test_the_gradient_of_a_row_is_the_sum_over_where_it_occurs(ops, n, tags):
    g = generator(n + tags)
    ids = (torch.randint(0, 9, (n, 7), generator=g) ** 2 - 1).to(torch.int32)
    grad = torch.randn(n, tags, generator=g)
    rows, order, offsets = sorted_places(ids)
    sums = ops.row_grad(*on(ops.device, ids, grad, order, offsets))
    exact = torch.zeros(80, tags, dtype=torch.float64)
    for k in range(7):
        there = ids[:, k] >= 0
        exact.index_add_(0, ids[there, k].long(), grad[there].double())
    assert_within_twice(sums, _reference.row_grad(ids, grad, order, offsets), exact[rows.long()])


@pytest.mark.parametrize("rows", [None, [7, 0, 3]], ids=["all", "some"])
@pytest.mark.parametrize("n", [0, 5])
@pytest.mark.parametrize("tags", [1, 4, 5])
def test_a_step_of_adf_is_its_definition(ops, tags, n, rows):
    g = generator(tags)
    w, eta = torch.randn(9, tags, generator=g), torch.rand(9, generator=g)
    count = torch.randint(0, 6, (9,), generator=g, dtype=torch.int32)
    grad = torch.randn(9 if rows is None else len(rows), tags, generator=g)
    exact_w, exact_eta = w.double(), eta.double()
    for f in range(9):
        if n:
            exact_eta[f] *= 0.9 - (0.9 - 0.5) * count[f].item() / n
        where = f if rows is None else rows.index(f) if f in rows else None
        if where is not None:
            exact_w[f] -= exact_eta[f] * grad[where].double()
        if n:
            exact_w[f] -= exact_eta[f] * exact_w[f] * n / (40 * 2.0**2)
    chosen = None if rows is None else torch.tensor(rows)
    options = {"upper": 0.9, "lower": 0.5, "l2": 2.0}
    rough = w.clone(), eta.clone()
    _reference.adf_step(*rough, grad, count, n, 40, rows=chosen, **options)
    given = on(ops.device, w, eta, grad, count, chosen)
    ops.adf_step(*given[:4], n, 40, rows=given[4], **options)
    for actual, reference, exact in zip(given[:2], rough, (exact_w, exact_eta), strict=True):
        assert_within_twice(actual, reference, exact)
        assert torch.equal(actual.cpu(), reference)


def test_doubles_are_stepped_in_double(ops):
    w, eta = torch.ones(3, 4, dtype=torch.float64), torch.full((3,), 0.1, dtype=torch.float64)
    count = torch.tensor([0, 1, 3])
    given = on(ops.device, w, eta, w / 3, count)
    ops.adf_step(*given, 3, 30)
    expected = 0.1 * (0.995 - (0.995 - 0.6) * count.double() / 3)
    torch.testing.assert_close(given[1].cpu(), expected, rtol=1e-15, atol=0)


# --- registration ---------------------------------------------------------------------------------------------------


def examples() -> dict[str, tuple[Any, ...]]:
    scores, trans, lengths, mask = chain(4, 5, 4, torch.float32, masked=True)
    chars, splits, _ = corpus(6)
    keys = _reference.hash_table(torch.tensor([3 << 16 | 4]), torch.tensor([60]))[None]
    ids = _reference.ngram_ids(chars, splits, keys)
    _, order, offsets = sorted_places(ids)
    count = torch.randint(0, 3, (70,), dtype=torch.int32)
    return {
        "ngram_ids": (chars, splits, keys),
        "emit": (ids, torch.randint(-9, 9, (70, 4), dtype=torch.int8)),
        "crf_viterbi": (scores, trans, lengths, mask),
        "crf_marginals": (scores, trans, lengths, mask),
        "row_grad": (ids, torch.randn(len(chars), 4), order, offsets),
        "adf_step": (torch.randn(70, 4), torch.rand(70), torch.randn(70, 4), count, 3.0, 10.0),
    }


@pytest.mark.parametrize("name", _ops.SCHEMAS)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_opcheck(name, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("this needs a CUDA device")
    given = [x.to(device) if isinstance(x, torch.Tensor) else x for x in examples()[name]]
    torch.library.opcheck(getattr(_ops, name), given)


def test_integer_chains_and_no_mask_pass_opcheck():
    scores, trans, lengths, _ = chain(4, 5, 4, torch.int32, masked=False)
    torch.library.opcheck(_ops.crf_viterbi, (scores, trans, lengths))


def test_a_compiled_graph_keeps_the_operators():
    scores, trans, lengths, mask = chain(4, 5, 4, torch.float32, masked=True)

    def decode(scores: Tensor) -> Tensor:
        return torch.ops.cws.crf_viterbi(scores * 2, trans, lengths, mask)[0] + 1

    compiled = torch.compile(decode, fullgraph=True, backend="eager")
    assert torch.equal(compiled(scores), decode(scores))


def test_cuda_has_kernels_where_triton_is_installed():
    pytest.importorskip("triton", reason="there is no Triton here")
    assert frozenset({"cuda"}) == _ops.KERNELS


@pytest.mark.gpu
@pytest.mark.parametrize("name", _ops.SCHEMAS)
def test_cuda_tensors_take_the_kernels_and_the_same_bits_come_out_every_time(name, monkeypatch):
    if not torch.cuda.is_available() or os.environ["TRITON_INTERPRET"] == "1":
        pytest.skip("this needs a CUDA device and TRITON_INTERPRET=0")
    from cws_multidomain.gpu import _triton

    calls: list[str] = []
    launch = getattr(_triton, name)
    monkeypatch.setattr(_triton, name, lambda *a, **k: (calls.append(name), launch(*a, **k))[1])
    runs, example = [], examples()[name]
    for _ in range(2):
        given = [x.cuda() if isinstance(x, torch.Tensor) else x for x in example]
        result = getattr(_ops, name)(*given)
        result = given[:2] if result is None else [result] if isinstance(result, torch.Tensor) else result
        runs.append([x.cpu() for x in result])
    assert calls == [name] * 2
    assert all(map(torch.equal, *runs))


# --- compiled code --------------------------------------------------------------------------------------------------

COMPILE = r"""
import json, os, re, subprocess, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cws_multidomain.gpu import _triton

tools = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
if not os.path.exists(os.path.join(tools, "ptxas")):
    sys.exit(77)

def compiled(name, types, warps=1, **constants):
    kernel = getattr(_triton, name)
    types = {k: "*" + v if k.startswith("p_") else v for k, v in types.items()}
    signature = {k: "constexpr" if k in constants else types.get(k, "i32") for k in kernel.arg_names}
    options = {"num_warps": warps, **_triton.EXACT}
    aligned = {(i,): [["tt.divisibility", 16]] for i, k in enumerate(kernel.arg_names) if signature[k][0] == "*"}
    source = ASTSource(kernel, signature, constants, aligned)
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with open("kernel.cubin", "wb") as file:
        file.write(code.asm["cubin"])
    command = [os.path.join(tools, "cuobjdump"), "-res-usage", "kernel.cubin"]
    used = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {"ptx": code.asm["ptx"], **{k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", used)}}

def chain(score, add, best):
    names = {"p_scores": score, "p_mask": "u8", "p_trans": add, "p_lengths": "i32", "p_starts": add, "p_totals": best}
    names |= {"p_maps": "i32", "p_last": "i8", "p_best": best, "p_tags": "i8", "p_pointers": "u8", "p_ends": "i8"}
    return names | {"p_products": add, "p_log_z": add, "p_nodes": add, "p_edges": add}

integers, floats = chain("i32", "i32", "i64"), chain("fp32", "fp32", "fp32")
walk = {"p_starts": None, "p_totals": None, "p_maps": None}
four, five = {"T": 4, "LANES": 32}, {"T": 5, "LANES": 32}
rows = {"p_ids": "i32", "p_grad": "fp32", "p_order": "i64", "p_offsets": "i64", "p_sums": "fp32"}
adf = {"p_w": "fp32", "p_eta": "fp32", "p_grad": "fp32", "p_count": "i32", "p_rows": "i64"}
adf |= {"upper": "fp32", "slope": "fp32", "decay": "fp32"}
ids = {"p_chars": "i32", "p_splits": "i64", "p_slots": "i64", "p_ids": "i32"}
json.dump({
    "viterbi": compiled("_forward_kernel", integers, BITS=2, **walk, **four),
    "viterbi of floats, 5 tags": compiled("_forward_kernel", floats | {"p_pointers": "i16"}, BITS=3, **walk, **five),
    "scan": compiled("_forward_kernel", integers, BITS=2, **four),
    "products": compiled("_products_kernel", integers, **four),
    "starts": compiled("_starts_kernel", integers, **four),
    "ends": compiled("_ends_kernel", integers, BITS=2, LANES=32),
    "backward": compiled("_backward_kernel", integers, BITS=2, CHUNKED=True, **four),
    "marginals": compiled("_marginals_kernel", floats, p_mask=None, **four),
    "marginals, 5 tags": compiled("_marginals_kernel", floats, **five),
    "wide viterbi": compiled("_wide_forward_kernel", floats, 8, T=9, TAGS=16, LANES=16),
    "wide marginals": compiled("_wide_marginals_kernel", floats, 8, T=9, TAGS=16, LANES=16),
    "ids": compiled("_ngram_ids_kernel", ids, 4, BITS=20, SKIP=True, BLOCK=256),
    "emit": compiled("_emit_kernel", {"p_ids": "i32", "p_table": "i8", "p_sums": "i32"}, 4, T=4, TAGS=4, BLOCK=256),
    "row_grad": compiled("_row_grad_kernel", rows, T=4, TAGS=4, BLOCK=32),
    "adf": compiled("_adf_kernel", adf, 4, p_rows=None, T=4, TAGS=4, UPDATE=True, BLOCK=256),
    "sparse adf": compiled("_adf_kernel", adf, 4, T=4, TAGS=4, UPDATE=False, BLOCK=256),
}, sys.stdout)
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What Triton makes of the kernels for an H100 or H200, which needs none."""
    pytest.importorskip("triton", reason="there is no Triton here")
    folder = tmp_path_factory.mktemp("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("Triton came without ptxas")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_compiled_code_has_no_doubles_and_no_atomics(code):
    for name, kernel in code.items():
        assert not re.findall(r"\.f64|\batom|\bred\.global", kernel["ptx"]), name


def test_compiled_code_keeps_to_registers(code):
    for name, kernel in code.items():
        assert kernel["STACK"] == kernel["LOCAL"] == 0, name
    assert code["viterbi"]["REG"] <= 64
    assert code["marginals, 5 tags"]["REG"] <= 128


def test_a_lane_of_a_chain_of_four_or_five_tags_waits_for_no_other(code):
    for name in ("viterbi", "viterbi of floats, 5 tags", "scan", "products", "starts", "ends", "backward"):
        assert "bar.sync" not in code[name]["ptx"], name
    assert len(re.findall(r"bar\.sync", code["marginals"]["ptx"])) <= 1  # between forward and backward


def test_compiled_rows_of_four_int8_are_loaded_at_once(code):
    assert re.findall(r"ld\.global\S*\.b32", code["emit"]["ptx"])
    assert not re.findall(r"ld\.global\S*\.b8", code["emit"]["ptx"])
