"""The C++ kernels that write weights, random numbers and bits, against their definition in plain PyTorch."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from paramcorrupt import _ops, _reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
SIZES = [0, 1, 2, 31, 255, 257, 1023, 1025, 32768, 40009]  # tails of tiles and of pieces
POWERS = [0.0, 0.5, 1.0, 2.0, 1 / 3, 1.7]
KERNELS = [
    "apply_sparse_",
    "restore_sparse_",
    "apply_dense_",
    "apply_backup_",
    "restore_backup_",
    "apply_compact_",
    "restore_compact_",
    "ascend_project_",
    "random_fill_",
    "sample_bits",
    "locate_bits",
    "xor_bits_",
]


def bits(x: Tensor) -> Tensor:
    return x.view(-1).view(BITS[x.element_size()])


def assert_same(a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
    assert len(a) == len(b)
    assert all(torch.equal(bits(x), bits(y)) for x, y in zip(a, b, strict=True))


def copies(x: Sequence[Tensor]) -> list[Tensor]:
    return [y.clone() for y in x]


def tensors(dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Of many sizes, without dimensions, and unaligned."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(n, generator=generator).to(dtype) for n in SIZES]
    return [*made, torch.randn((), generator=generator).to(dtype), torch.randn(302, generator=generator).to(dtype)[1:]]


def strange(w: Sequence[Tensor]) -> list[Tensor]:
    """With numbers of all kinds among them."""
    for x in w:
        if x.numel() > 30:
            values = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, -1e-310, 6e-8, 65504.0, 3e38]
            x.view(-1)[:10] = torch.tensor(values, dtype=torch.float64).to(x.dtype)
    return list(w)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", KERNELS)
def test_the_kernel_is_installed(name: str) -> None:
    assert "cpu" in _ops.KERNELS[name]


# --- dense ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "other"), list(itertools.product(DTYPES, DTYPES[:3])))
@pytest.mark.parametrize("power", POWERS)
def test_dense_changes_are_those_of_the_definition(
    dtype: torch.dtype, other: torch.dtype, power: float, assert_within_twice: Callable[..., None]
) -> None:
    clean, g = tensors(dtype), tensors(other, 1)
    g[4][7], g[5][3] = 0.0, -0.0
    ours, theirs = copies(clean), copies(clean)
    summary = _ops.apply_dense_(ours, clean, g, 0.0173, power)
    expected = _reference.apply_dense_(theirs, clean, g, 0.0173, power)
    for x, y, w, grad in zip(ours, theirs, clean, g, strict=True):
        wide = grad.reshape(-1).double().numpy().astype(np.longdouble)
        a = np.longdouble(0.0173) * np.sign(wide) * abs(wide) ** np.longdouble(power)
        clean_wide = w.reshape(-1).double().numpy().astype(np.longdouble)
        exact = torch.from_numpy((clean_wide + a).astype(np.float64)).view(w.shape)
        terms = torch.from_numpy(np.maximum(abs(clean_wide), abs(a)).astype(np.float64)).view(w.shape)
        assert_within_twice(x, y, exact, terms)
    changed = sum(int((x != w).sum()) for x, w in zip(ours, clean, strict=True))
    assert summary[0] == changed
    assert summary[1].item() == pytest.approx(expected[1].item(), rel=1e-6)
    inplace = copies(clean)
    assert torch.equal(_ops.apply_dense_(inplace, inplace, g, 0.0173, power), summary)
    assert_same(inplace, ours)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_gradient_or_its_sign_is_added_with_the_bits_of_the_definition(dtype: torch.dtype, power: float) -> None:
    clean, g = strange(tensors(dtype)), tensors(dtype, 1)
    g[6][:40] = 0.0
    ours, theirs = copies(clean), copies(clean)
    _ops.apply_dense_(ours, clean, g, 0.0173, power)
    _reference.apply_dense_(theirs, clean, g, 0.0173, power)
    for x, y in zip(ours, theirs, strict=True):
        assert torch.equal(bits(x)[~x.view(-1).isnan()], bits(y)[~y.view(-1).isnan()])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, 1e-4, 0.3, 1e4])
@pytest.mark.parametrize("power", POWERS)
def test_dense_changes_are_undone_bit_for_bit(dtype: torch.dtype, scale: float, power: float) -> None:
    clean, g = strange(tensors(dtype)), tensors(dtype, 1)
    w, expected = copies(clean), copies(clean)
    _ops.apply_dense_(expected, clean, g, scale, power)
    _, backup = _ops.apply_backup_(w, g, scale, power)
    assert_same(w, expected)
    _ops.restore_backup_(w, backup)
    assert_same(w, clean)
    _, codes, starts, escaped = _ops.apply_compact_(w, g, scale, power)
    assert_same(w, expected)
    _ops.restore_compact_(w, g, scale, power, codes, starts, escaped)
    assert_same(w, clean)


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40),
    scale=st.floats(-1e6, 1e6),
    dtype=st.sampled_from(DTYPES),
)
def test_two_bits_restore_weights_of_any_bits(words: list[int], scale: float, dtype: torch.dtype) -> None:
    wrapped = torch.tensor([x - (1 << 64) if x >> 63 else x for x in words])
    clean = wrapped.to(BITS[dtype.itemsize]).view(dtype)
    w, g = [clean.clone()], [torch.linspace(-2, 2, clean.numel()).to(dtype)]
    for apply, restore in [
        (_ops.apply_compact_, _ops.restore_compact_),
        (_reference.apply_compact_, _reference.restore_compact_),
    ]:
        _, *kept = apply(w, g, scale, 1.0)
        restore(w, g, scale, 1.0, *kept)
        assert_same(w, [clean])


@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_are_those_of_the_definition_and_few_escape_small_changes(dtype: torch.dtype) -> None:
    clean, g = tensors(dtype), tensors(dtype, 1)
    ours = _ops.apply_compact_(copies(clean), g, 0.0173, 1.0)
    theirs = _reference.apply_compact_(copies(clean), g, 0.0173, 1.0)
    for x, y in zip(ours[1:], theirs[1:], strict=True):
        assert torch.equal(x, y)
    elements = sum(x.numel() for x in clean)
    assert 0 < ours[3].numel() / dtype.itemsize < 0.02 * elements
    assert ours[1].numel() < 0.26 * elements + 64 * len(clean)


# --- sparse ---------------------------------------------------------------------------------------------------------


def places(w: Sequence[Tensor], density: float) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    index = [(torch.rand(x.numel(), generator=generator) < density).nonzero().flatten() for x in w]
    offsets = torch.tensor([0, *(x.numel() for x in index)]).cumsum(0)
    return offsets, torch.cat(index), torch.randn(int(offsets[-1]), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dtypes", [[dtype] for dtype in DTYPES] + [DTYPES])
@pytest.mark.parametrize("density", [0.0, 0.01, 1.0])
def test_sparse_changes_and_their_undoing_have_the_bits_of_the_definition(
    dtypes: list[torch.dtype], density: float
) -> None:
    clean = [x.to(dtypes[i % len(dtypes)]) for i, x in enumerate(tensors(torch.float64))]
    offsets, index, delta = places(clean, density)
    ours, theirs = copies(clean), copies(clean)
    journal = _ops.apply_sparse_([x.view(-1) for x in ours], offsets, index, delta)
    assert torch.equal(journal, _reference.apply_sparse_([x.view(-1) for x in theirs], offsets, index, delta))
    assert_same(ours, theirs)
    _ops.restore_sparse_([x.view(-1) for x in ours], offsets, index, journal)
    assert_same(ours, clean)


# --- ascent, chance, bits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", [0.0, 0.7])
@pytest.mark.parametrize("n", [1, 1000, 50000])
def test_ascent_and_projection_keep_exactly_what_the_definition_keeps(dtype: torch.dtype, step: float, n: int) -> None:
    a, g = tensors(dtype), tensors(dtype, 1)
    for x in (*a, *g):
        x.mul_(4).round_().div_(4)  # ties by the thousand
    moved = copies(a)
    _reference.ascend_project_(moved, g, step, 1.0, torch.tensor([-1, 0, 0, 0]), 0.0, math.inf, 1.0)
    threshold = _reference.select(moved, n)
    ours, theirs = copies(a), copies(a)
    _ops.ascend_project_(ours, g, step, 1.0, threshold, 0.125, 1.5, 2.0)
    _reference.ascend_project_(theirs, g, step, 1.0, threshold, 0.125, 1.5, 2.0)
    assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 4.0, math.inf])
def test_random_numbers_are_those_of_the_definition(
    dtype: torch.dtype, p: float, assert_within_twice: Callable[..., None]
) -> None:
    ours, theirs, exact = tensors(dtype), tensors(dtype), tensors(torch.float64)
    size = _ops.random_fill_(ours, -3, 1 << 33, p)
    expected = _reference.random_fill_(theirs, -3, 1 << 33, p)
    _reference.random_fill_(exact, -3, 1 << 33, p)
    assert size.item() == pytest.approx(expected.item(), rel=1e-6)
    for x, y, z in zip(ours, theirs, exact, strict=True):
        if dtype == torch.float64:  # the definition rounds as much as the kernel does
            assert (x - z).abs().le(1e-14 * (1 + z.abs())).all()
        else:
            assert_within_twice(x, y, z)


@settings(max_examples=40, deadline=None)
@given(total=st.integers(1, 2**62), count=st.integers(0, 2000), seed=st.integers(-(2**63), 2**63 - 1))
def test_sampled_bits_are_those_of_the_definition(total: int, count: int, seed: int) -> None:
    count = min(total, count)
    assert torch.equal(_ops.sample_bits(total, count, seed), _reference.sample_bits(total, count, seed))


@pytest.mark.parametrize("count", [1, 513, 40000])
@pytest.mark.parametrize("share", [1, 1.01, 2, 32, 255, 256, 257, 10**6, 10**12])
def test_sampled_bits_are_those_of_the_definition_however_close(count: int, share: float) -> None:
    """In order by a map, or by sorting."""
    total = round(share * count)
    drawn = _ops.sample_bits(total, count, 3)
    assert torch.equal(drawn, _reference.sample_bits(total, count, 3))
    assert drawn.numel() == count
    assert (drawn.diff() > 0).all()


@pytest.mark.parametrize("total", [2**32 - 1, 2**32, 2**32 + 1])
def test_sampled_bits_are_those_of_the_definition_around_the_limit_of_a_word(total: int) -> None:
    assert torch.equal(_ops.sample_bits(total, 70000, 3), _reference.sample_bits(total, 70000, 3))


@pytest.mark.parametrize("total", [3000, 100_000])
def test_as_many_sampled_bits_are_in_a_half_as_a_hypergeometric_law_says(total: int) -> None:
    """The counts of bins by themselves would vary by more: twice as much, since half of all are taken."""
    count, half = total // 2, total // 2
    law = stats.hypergeom(total, half, count)
    found = [int((_ops.sample_bits(total, count, seed) < half).sum()) for seed in range(500)]
    cuts = np.unique(law.ppf(np.linspace(0, 1, 11)[1:-1]))
    expected = np.diff([0, *law.cdf(cuts), 1]) * len(found)
    hits = np.bincount(np.searchsorted(cuts, found), minlength=len(cuts) + 1)
    assert stats.chisquare(hits, expected).pvalue > 1e-3


def test_places_of_bits_are_those_of_the_definition() -> None:
    place = torch.randint(1 << 60, (40009,), generator=torch.Generator().manual_seed(0))
    for x in (place, place[1:], place[:1], place[:0]):
        assert_same(_ops.locate_bits(x)[:1], _reference.locate_bits(x)[:1])
        assert torch.equal(_ops.locate_bits(x)[1], _reference.locate_bits(x)[1])


def test_flips_have_the_bits_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(5000, (20000,), generator=generator)
    mask = torch.randint(256, (20000,), generator=generator, dtype=torch.uint8)
    ours = torch.randint(256, (5000,), generator=generator, dtype=torch.uint8)
    theirs = ours.clone()
    _ops.xor_bits_(ours, index, mask)
    _reference.xor_bits_(theirs, index, mask)
    assert torch.equal(ours, theirs)


# --- every operator -------------------------------------------------------------------------------------------------


def test_results_have_the_same_bits_for_every_number_of_threads(threads: Callable[[int], None]) -> None:
    w, g = tensors(torch.float32), tensors(torch.float32, 1)
    offsets, index, delta = places(w, 0.7)
    threshold = _reference.select(w, 20000)
    results: list[list[Tensor]] = []
    for count in (1, 2, 3, 4):
        threads(count)
        dense, sparse, projected, random = copies(w), copies(w), copies(w), copies(w)
        found = [*_ops.apply_compact_(dense, g, 0.01, 0.5), _ops.apply_sparse_(sparse, offsets, index, delta)]
        _ops.ascend_project_(projected, g, 0.0, 1.0, threshold, 0.1, 2.0, 1.0)
        found += [_ops.random_fill_(random, 1, 0, 1.5), *_ops.locate_bits(_ops.sample_bits(10**6, 90000, 1))]
        found += [_ops.sample_bits(10**6, 950_000, 1), _ops.sample_bits(10**9, 90000, 1)]
        results.append([*found, *dense, *sparse, *projected, *random])
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def arguments() -> dict[str, tuple[Any, ...]]:
    w, g = [torch.randn(300), torch.randn(7)], [torch.randn(300), torch.randn(7)]
    offsets, index, delta = places(w, 0.1)
    threshold = _reference.select(w, 20)
    backup = _ops.apply_backup_(copies(w), g, 0.1, 1.0)[1]
    kept = _ops.apply_compact_(copies(w), g, 0.1, 1.0)[1:]
    journal = torch.zeros(index.numel(), dtype=torch.int32)
    index8, mask = torch.tensor([1, 1, 4]), torch.tensor([1, 2, 128], dtype=torch.uint8)
    return {
        "apply_sparse_": (w, offsets, index, delta),
        "restore_sparse_": (w, offsets, index, journal),
        "apply_dense_": (w, copies(w), g, 0.1, 1.0),
        "apply_backup_": (w, g, 0.1, 1.0),
        "restore_backup_": (w, backup),
        "apply_compact_": (w, g, 0.1, 1.0),
        "restore_compact_": (w, g, 0.1, 1.0, *kept),
        "ascend_project_": (w, g, 0.1, 1.0, threshold, 0.1, 2.0, 1.0),
        "random_fill_": (w, 1, 0, 2.0),
        "locate_bits": (torch.tensor([3, 8]),),
        "xor_bits_": (torch.zeros(9, dtype=torch.uint8), index8, mask),
    }


@pytest.mark.parametrize("name", sorted(set(KERNELS) - {"sample_bits"}))
def test_operators_keep_to_their_schemas(name: str) -> None:
    operator = getattr(torch.ops.paramcorrupt, name).default
    torch.library.opcheck(operator, arguments()[name], test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", sorted(set(KERNELS) - {"sample_bits", "locate_bits"}))
def test_versions_of_what_was_written_rise(name: str) -> None:
    written, *rest = arguments()[name]
    some = [written] if isinstance(written, Tensor) else written
    before = [x._version for x in some]
    with torch.no_grad():
        getattr(_ops, name)(written, *rest)
    assert all(x._version > version for x, version in zip(some, before, strict=True))


def test_a_backward_pass_through_what_was_overwritten_fails() -> None:
    w = torch.nn.Parameter(torch.randn(5))
    loss = w.square().sum()
    with torch.no_grad():
        _ops.apply_dense_([w.detach()], [w.detach()], [torch.ones(5)], 0.1, 1.0)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation"):
        loss.backward()
