"""The definition: selection by brute force, corruption in closed form, the laws of its chance."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from paramcorrupt import _reference

if TYPE_CHECKING:
    from collections.abc import Sequence

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def gradients(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    """With zeros of both signs, ties within and between tensors, an empty tensor, one of no dimension."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator).mul(4).round().div(4) for shape in [(7, 5), (0,), (13,), ()]]
    tensors[0][2] = -0.0
    return [x.to(dtype) for x in tensors]


def chosen(tensors: Sequence[torch.Tensor], n: int) -> list[tuple[int, int]]:
    """(tensor, element) of the n largest magnitudes, of equals the first."""
    every = [(-abs(v), t, i) for t, x in enumerate(tensors) for i, v in enumerate(x.reshape(-1).tolist())]
    return sorted((t, i) for _, t, i in sorted(every)[:n])


# --- selection -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 49), seed=st.integers(0, 1000), dtype=st.sampled_from(DTYPES))
def test_selection_is_that_of_sorting_and_of_equals_the_first(n: int, seed: int, dtype: torch.dtype) -> None:
    g = gradients(dtype, seed)
    threshold = _reference.select(g, n)
    offsets, index, value = _reference.collect(g, threshold)
    pairs = [(t, i) for t in range(len(g)) for i in index[offsets[t] : offsets[t + 1]].tolist()]
    assert pairs == chosen(g, n)
    assert value.tolist() == [g[t].reshape(-1)[i].item() for t, i in pairs]
    _, above, ties, _ = threshold.tolist()
    assert above + ties == n
    assert ties >= 1


def test_keys_order_as_magnitudes_in_every_dtype() -> None:
    for dtype in DTYPES:
        x = torch.tensor([math.nan, math.inf, 3.0, -2.5, 1e-3, 6e-8, 0.0, -0.0]).to(dtype)
        k = _reference.keys(x, dtype)
        assert (k[:-2].diff() < 0).all()
        assert k[-2] == k[-1] == 0
        assert torch.equal(_reference.keys(-x[1:], dtype), k[1:])


def test_a_list_of_several_dtypes_is_compared_in_one_that_holds_all() -> None:
    g = [torch.tensor([1.0, 1 + 2**-20]), torch.tensor([1.0, 2.0], dtype=torch.bfloat16), torch.tensor([1.5]).half()]
    offsets, index, value = _reference.collect(g, _reference.select(g, 3))
    assert offsets.tolist() == [0, 1, 2, 3]
    assert index.tolist() == [1, 1, 0]
    assert value.tolist() == [1 + 2**-20, 2.0, 1.5]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("prefix_bits", "bits"), [(0, 11), (4, 5), (8, 7)])
def test_histogram_counts_keys_by_the_bits_after_a_prefix(dtype: torch.dtype, prefix_bits: int, bits: int) -> None:
    g = gradients(dtype)
    width = 8 * dtype.itemsize - 1
    values = torch.cat([x.reshape(-1) for x in g])
    every = _reference.keys(values, dtype).tolist()
    prefix = max(every) >> (width - prefix_bits)
    counts, sums = _reference.key_histogram(g, prefix, prefix_bits, bits)
    expected, magnitude = np.zeros(1 << bits), np.zeros(1 << bits)
    for key, v in zip(every, values.tolist(), strict=True):
        text = f"{key:0{width}b}"
        if prefix_bits == 0 or int(text[:prefix_bits], 2) == prefix:
            place = int(text[prefix_bits : prefix_bits + bits], 2)
            expected[place] += 1
            magnitude[place] += abs(v)
    assert counts.tolist() == expected.tolist()
    np.testing.assert_allclose(sums.numpy(), magnitude, rtol=1e-12)


def test_statistics_are_sums_in_double() -> None:
    g = [torch.tensor([3.0, -4.0, 0.0, 1e-30]), torch.tensor([]), torch.tensor([math.inf, 1.0, math.nan])]
    stats_ = _reference.grad_stats(g)
    assert stats_[0].tolist() == [7.0, 25.0, 4.0, 3.0, 0.0]
    assert stats_[1].tolist() == [0.0] * 5
    assert stats_[2, 4] == 2
    square = _reference.power_sum(g[:1], 2.0, 5.0, int(_reference.keys(torch.tensor([-3.5]), torch.float32)))
    assert square.item() == pytest.approx(16 / 25, rel=1e-15)


# --- corruption ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1.5, 2.0, 3.0, math.inf])
def test_dense_corruption_is_the_closed_form_whose_gain_is_the_dual_norm(p: float) -> None:
    rng = np.random.default_rng(0)
    g, w = rng.normal(size=300), rng.normal(size=300)
    power, q = (0.0, 1.0) if p == math.inf else (1 / (p - 1), p / (p - 1))
    shape = abs(g) ** power
    scale = 0.3 / (shape.max() if p == math.inf else (shape**p).sum() ** (1 / p))
    moved, clean = torch.empty(300, dtype=torch.float64), torch.from_numpy(w)
    changed, size = _reference.apply_dense_([moved], [clean], [torch.from_numpy(g)], scale, power).tolist()
    a = moved.numpy() - w
    assert changed == 300
    assert size == pytest.approx(0.3, rel=1e-12)
    assert a @ g == pytest.approx(0.3 * (abs(g) ** q).sum() ** (1 / q), rel=1e-12)


def test_changes_that_rounding_swallows_are_not_counted() -> None:
    w = [torch.full((100,), 1.0, dtype=torch.bfloat16)]
    changed, size = _reference.apply_dense_(w, [w[0].clone()], [torch.ones(100)], 1e-4, 1.0)
    assert changed == size == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_sparse_changes_leave_a_journal_that_undoes_them_bit_for_bit(dtype: torch.dtype) -> None:
    w = gradients(dtype)
    w[2][3] = math.nan
    before = [x.clone() for x in w]
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    offsets, index, value = _reference.collect(gradients(dtype, 1), _reference.select(gradients(dtype, 1), 20))
    journal = _reference.apply_sparse_(w, offsets, index, value.double() / 3)
    moved = sum((x.view(bits) != y.view(bits)).sum().item() for x, y in zip(w, before, strict=True))
    assert 15 <= moved <= 20
    _reference.restore_sparse_(w, offsets, index, journal)
    assert all(torch.equal(x.view(bits), y.view(bits)) for x, y in zip(w, before, strict=True))


def test_ascent_and_projection_are_their_parts() -> None:
    g = torch.tensor([1.0, -4.0, 0.0, 9.0], dtype=torch.float64)
    a = [torch.tensor([0.5, 0.5, -3.0, 0.1], dtype=torch.float64)]
    everything = torch.tensor([0, 4, 0, 0])
    _reference.ascend_project_(a, [g], 0.5, 0.5, everything, 0.0, math.inf, 1.0)
    assert a[0].tolist() == [1.0, -0.5, -3.0, 1.6]
    largest = _reference.select(a, 3)
    _reference.ascend_project_(a, [g], 0.0, 1.0, largest, 0.25, 2.0, 3.0)
    np.testing.assert_allclose(a[0].numpy(), [2.25, 0, -6, 4.05], rtol=1e-12)


# --- chance ----------------------------------------------------------------------------------------------------------


def test_random_words_are_those_of_philox() -> None:
    """Known answers of Philox4x32-10 (Salmon et al. 2011)."""
    words = _reference.philox(torch.tensor([0]), 0, 0)
    assert [int(x) for x in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    words = _reference.philox(torch.tensor([-1]), -1, -1)
    assert [int(x) for x in words] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 4.0])
def test_random_numbers_have_the_density_of_the_ball(p: float) -> None:
    a = [torch.empty(4000, dtype=torch.float64)]
    _reference.random_fill_(a, 7, 0, p)
    law = stats.gennorm(p)
    assert stats.kstest(a[0].numpy(), law.cdf).pvalue > 1e-3


def test_random_signs_are_even() -> None:
    a = [torch.empty(10000)]
    assert _reference.random_fill_(a, 7, 0, math.inf) == 1
    assert set(a[0].tolist()) == {-1.0, 1.0}
    assert stats.binomtest(int((a[0] > 0).sum()), 10000).pvalue > 1e-3


@pytest.mark.parametrize("p", [1.5, 2.0, math.inf])
def test_a_random_number_depends_on_the_seed_and_its_place_alone(p: float) -> None:
    whole, parts = [torch.empty(100)], [torch.empty(33), torch.empty(67)]
    size = _reference.random_fill_(whole, 3, 10, p)
    _reference.random_fill_(parts, 3, 10, p)
    assert torch.equal(whole[0], torch.cat(parts))
    magnitude = whole[0].double().abs()
    expected = magnitude.max() if p == math.inf else (magnitude**p).sum() ** (1 / p)
    assert size == pytest.approx(expected.item(), rel=1e-12)
    other = [torch.empty(100)]
    _reference.random_fill_(other, 4, 10, p)
    assert not torch.equal(whole[0], other[0])


@settings(max_examples=20, deadline=None)
@given(total=st.integers(1, 500), seed=st.integers(0, 2**40))
def test_sampled_bits_are_different_and_in_order_and_all_of_them_are_everything(total: int, seed: int) -> None:
    assert torch.equal(_reference.sample_bits(total, total, seed), torch.arange(total))
    drawn = _reference.sample_bits(total, (total + 1) // 2, seed)
    assert drawn.numel() == (total + 1) // 2
    assert (drawn.diff() > 0).all()
    assert set(_reference.sample_bits(total, total // 3, seed).tolist()) <= set(drawn.tolist())


def test_sampled_bits_are_uniform() -> None:
    hits = np.zeros(97)
    for seed in range(150):
        hits[_reference.sample_bits(97, 5, seed).numpy()] += 1
    assert stats.chisquare(hits).pvalue > 1e-3
    large = _reference.sample_bits(10**15, 4000, 1).double() / 1e15
    assert stats.kstest(large.numpy(), "uniform").pvalue > 1e-3


def test_bits_are_in_a_byte_and_have_a_mask_there() -> None:
    index, mask = _reference.locate_bits(torch.tensor([0, 7, 8, (1 << 40) + 3]))
    assert index.tolist() == [0, 0, 1, 1 << 37]
    assert mask.tolist() == [1, 128, 1, 8]


def test_flips_of_a_byte_named_twice_add_up() -> None:
    data = torch.tensor([0b1111, 0, 255], dtype=torch.uint8)
    index, mask = torch.tensor([0, 0, 2, 2, 2]), torch.tensor([1, 2, 128, 128, 64], dtype=torch.uint8)
    _reference.xor_bits_(data, index, mask)
    assert data.tolist() == [0b1100, 0, 255 ^ 64]


def test_every_pair_of_seeds_and_places_differs() -> None:
    draws = [_reference.sample_bits(1 << 40, 50, seed).tolist() for seed in range(6)]
    for x, y in itertools.combinations(draws, 2):
        assert not set(x) & set(y)
