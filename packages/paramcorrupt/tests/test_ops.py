"""The C++ kernels that read gradients against their definition in plain PyTorch."""

from __future__ import annotations

import ctypes
import math
import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paramcorrupt import _ops, _reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

FLOAT32, FLOAT64, BFLOAT16, FLOAT16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
EVERY = (FLOAT32, FLOAT64, BFLOAT16, FLOAT16)
LISTS = [*[(dtype,) for dtype in EVERY], (FLOAT32, BFLOAT16), (BFLOAT16, FLOAT16), EVERY]
NAMES = ("grad_stats", "power_sum", "select", "collect", "top_n", "key_histogram")
BLOCK = 4096  # elements that a kernel takes at once
SIZES = (0, 1, 2, 15, 16, 17, 31, 63, 65, 1023, 1025, BLOCK - 1, BLOCK, BLOCK + 1, 5003, 3 * BLOCK + 7)
KINDS = ("normal", "quantised", "mostly zero", "all equal", "denormal", "zeros of both signs", "not finite")


def values(kind: str, size: int, generator: torch.Generator) -> Tensor:
    x = torch.randn(size, generator=generator)
    chance = torch.rand(size, generator=generator)
    if kind == "quantised":
        return (4 * x).round() / 4
    if kind == "mostly zero":
        return torch.where(chance < 0.97, 0.0, x)
    if kind == "all equal":
        return torch.full((size,), 1.5).copysign(x)
    if kind == "denormal":
        return 1e-42 * x
    if kind == "zeros of both signs":
        return 0.0 * x
    if kind == "not finite":
        x[chance < 0.02] = math.nan
        x[chance > 0.98] = -math.inf
    return x


@st.composite
def gradients(draw: Callable[..., Any]) -> list[Tensor]:
    """A list with at least one element; of several dtypes none is a NaN, whose bits conversions may change."""
    dtypes = draw(st.sampled_from(LISTS))
    kind = draw(st.sampled_from(KINDS if len(dtypes) == 1 else KINDS[:-1]))
    sizes = [*draw(st.lists(st.sampled_from(SIZES), max_size=4)), draw(st.integers(1, 70_000))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    return [
        unaligned(values(kind, size, generator).to(dtypes[k % len(dtypes)]))
        if k % 2
        else values(kind, size, generator).to(dtypes[k % len(dtypes)])
        for k, size in enumerate(sizes)
    ]


def unaligned(x: Tensor) -> Tensor:
    """The same, one element behind the start of its memory."""
    return torch.cat([x.new_zeros(1), x])[1:]


def count(g: Sequence[Tensor]) -> int:
    return sum(x.numel() for x in g)


def assert_same(actual: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor]) -> None:
    """Equal bits, but for those of a NaN."""
    pairs = [(actual, expected)] if isinstance(actual, Tensor) else zip(actual, expected, strict=True)
    for x, y in pairs:
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        assert bool(((x == y) & (x.signbit() == y.signbit()) | (x != x) & (y != y)).all())


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
def test_what_serves_cpu_tensors_is_the_library(name: str) -> None:
    assert "cpu" in _ops.KERNELS[name]
    assert str(files("paramcorrupt") / "_C.so") in torch.ops.loaded_libraries
    [cpu] = re.findall(r"^CPU: registered at (\S+)", torch._C._dispatch_dump(f"paramcorrupt::{name}"), re.MULTILINE)
    assert "csrc/" in cpu


# --- selection ------------------------------------------------------------------------------------------------------


def ranks(size: int) -> st.SearchStrategy[int]:
    return st.sampled_from([1, size, max(1, size // 100), max(1, size // 10)]) | st.integers(1, size)


@settings(max_examples=150, deadline=None)
@given(g=gradients(), data=st.data())
def test_selection_is_that_of_the_reference(g: list[Tensor], data: st.DataObject) -> None:
    n = data.draw(ranks(count(g)))
    expected, *collected = _reference.top_n(g, n)
    threshold = _ops.select(g, n)
    assert threshold[:3].tolist() == expected[:3].tolist()
    assert_same(_ops.collect(g, threshold), collected)
    joint, *found = _ops.top_n(g, n)
    assert joint[:3].tolist() == expected[:3].tolist()
    assert_same(found, collected)


@pytest.mark.parametrize("dtype", EVERY, ids=str)
@pytest.mark.parametrize("share", [1e-5, 0.01, 0.5, 0.9])
def test_selection_of_a_million_is_that_of_sorting(dtype: torch.dtype, share: float) -> None:
    x = values("normal", 1_000_003, torch.Generator().manual_seed(0)).to(dtype)
    n = int(share * x.numel())
    offsets, index, value = _ops.top_n([x[:300_000], x[300_000:]], n)[1:]
    order = x.abs().sort(descending=True, stable=True).indices[:n].sort().values
    assert torch.equal(torch.where(torch.arange(n) < offsets[1], index, index + 300_000), order)
    assert torch.equal(value, x[order])
    assert_same(_ops.collect([x], _ops.select([x], n))[1:], (order, x[order]))


def test_shapes_are_flat_and_empty_tensors_select_nothing() -> None:
    g = [torch.empty(0, 3), torch.tensor(-2.0), torch.tensor([[1.0, 3.0], [-4.0, 0.0]]), torch.empty(0)]
    offsets, index, value = _ops.top_n(g, 3)[1:]
    assert offsets.tolist() == [0, 0, 1, 3, 3]
    assert index.tolist() == [0, 1, 2]
    assert value.tolist() == [-2, 3, -4]


def test_nothing_at_all_has_no_n_largest() -> None:
    for operator in (_ops.select, _ops.top_n):
        with pytest.raises(RuntimeError, match="n must be from 1 to the number of elements"):
            operator([torch.empty(0)], 1)
    offsets, index, value = _ops.collect([torch.empty(0)], torch.tensor([0, 0, 0, 0]))
    assert offsets.tolist() == [0, 0]
    assert index.numel() == value.numel() == 0


@pytest.mark.parametrize("count_threads", [1, 3])
@pytest.mark.parametrize("above", [0, 7, 10**9])
def test_a_threshold_of_a_larger_list_selects_in_a_part_of_it(
    above: int, count_threads: int, threads: Callable[[int], None]
) -> None:
    """A shard collects with the threshold of all shards, whose count above is not its own."""
    threads(count_threads)
    g = [values("quantised", 150_001, torch.Generator().manual_seed(seed)) for seed in range(2)]
    key = int(_ops.select(g, 1000)[0])
    threshold = torch.tensor([key, above, 5, 0])
    assert_same(_ops.collect(g, threshold), _reference.collect(g, threshold))


# --- what the sample does not see -----------------------------------------------------------------------------------


def sampled(size: int, n: int) -> Tensor:
    """Which elements the kernels look at before they choose a bracket."""
    share = n / size
    samples = int(min(2 * math.sqrt(size) + (4 * size * math.sqrt(share)) ** (2 / 3), 131072))
    state, places = 88172645463325252, []
    for k in range(samples):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        places.append(min(int((k + (state >> 11) * 2.0**-53) * (size / samples)), size - 1))
    return torch.tensor(places)


SAMPLED, BY_HISTOGRAM = 1, 2


@pytest.mark.parametrize("dtypes", LISTS, ids=str)
@pytest.mark.parametrize("seen", ["zeros", "infinities", "both"])
@pytest.mark.parametrize("unseen", ["normal", "quantised", "all equal"])
def test_a_misleading_sample_costs_time_alone(dtypes: tuple[torch.dtype, ...], seen: str, unseen: str) -> None:
    n, size = 20_000, 300_000
    x = values(unseen, size, torch.Generator().manual_seed(0)) + 0.1
    places = sampled(size, n)
    x[places] = 0.0 if seen == "zeros" else math.inf
    if seen == "both":  # the bracket is everything
        x[places[n * len(places) // size :]] = 0.0
        x[places[: len(places) // 200]] = 0.0
    g = [part.to(dtypes[k % len(dtypes)]) for k, part in enumerate(x.split(70_000))]
    for n_now in (n, n + 5000) if seen == "both" else (n,):
        expected, *collected = _reference.top_n(g, n_now)
        threshold = _ops.select(g, n_now)
        assert threshold[:3].tolist() == expected[:3].tolist()
        assert_same(_ops.top_n(g, n_now)[1:], collected)
    if seen != "both":
        assert threshold[3] == BY_HISTOGRAM


def test_ties_are_counted_and_not_kept() -> None:
    """Nine of ten elements are on an edge of the bracket, which a histogram would have to resolve if they were kept."""
    x = torch.zeros(2_000_000)
    x[::10] = 1 + torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    for n in (100, 200_000, 200_001, 1_000_000, 2_000_000):
        threshold = _ops.select([x], n)
        assert threshold[:3].tolist() == _reference.select([x], n)[:3].tolist()
        assert threshold[3] == SAMPLED


# --- memory ---------------------------------------------------------------------------------------------------------


def peak(run: Callable[[], Any]) -> int:
    """Bytes that a run takes at most beyond what was there before and what it returns."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        pytest.skip("the system does not tell the peak of the memory in use")

    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))

    before = status("VmRSS")
    result = run()
    taken = status("VmHWM") - before
    return taken - sum(x.nbytes for x in (result if isinstance(result, tuple) else (result,)))


@pytest.mark.parametrize("count_threads", [1, 4])
@pytest.mark.parametrize("n", [100, 300_000, 10_000_000])
def test_memory_is_at_most_8_mib_beside_the_output(n: int, count_threads: int, threads: Callable[[int], None]) -> None:
    threads(count_threads)
    g = [torch.randn(30_000_000)]
    _ops.top_n(g, 1)
    for run in (lambda: _ops.select(g, n), lambda: _ops.top_n(g, n)):
        assert peak(run) <= 8 << 20


# --- sums -----------------------------------------------------------------------------------------------------------


def exact(g: Sequence[Tensor], term: Callable[[np.ndarray], np.ndarray]) -> list[float]:
    """Sums of terms in extended precision, rounded once."""
    return [math.fsum(term(np.abs(x.double().numpy().ravel()))) for x in g]


def assert_within_units(actual: Tensor, expected: Sequence[float], units: float) -> None:
    assert actual.dtype == FLOAT64
    for x, y in zip(actual.tolist(), expected, strict=True):
        assert abs(x - y) <= units * np.spacing(y)


@pytest.mark.parametrize("kind", KINDS[:-1])
@pytest.mark.parametrize("dtypes", LISTS, ids=str)
def test_statistics_are_exact_to_some_units_in_the_last_place(dtypes: tuple[torch.dtype, ...], kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    g = [unaligned(values(kind, size, generator).to(dtypes[k % len(dtypes)])) for k, size in enumerate(SIZES)]
    stats = _ops.grad_stats(g)
    assert_within_units(stats[:, 0], exact(g, lambda a: a), 4)
    assert_within_units(stats[:, 1], exact(g, np.square), 4)
    assert torch.equal(stats[:, 2:], _reference.grad_stats(g)[:, 2:])


@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_what_is_not_finite_is_counted_and_shows_in_the_sums(dtype: torch.dtype) -> None:
    x = torch.ones(3 * BLOCK, dtype=dtype)
    x[[5, BLOCK + 1, 2 * BLOCK]] = torch.tensor([-math.inf, math.inf, -math.nan], dtype=dtype)
    g = [x, x[: 2 * BLOCK], x[:5], x[2 * BLOCK :]]
    assert_same(_ops.grad_stats(g), _reference.grad_stats(g))


@pytest.mark.parametrize("q", [1.0, 2.0, 3.0, 1.25, 11.0])
@pytest.mark.parametrize("dtypes", LISTS, ids=str)
def test_power_sums_are_exact_to_some_units_in_the_last_place(dtypes: tuple[torch.dtype, ...], q: float) -> None:
    generator = torch.Generator().manual_seed(0)
    g = [values("normal", size, generator).to(dtypes[k % len(dtypes)]) for k, size in enumerate(SIZES)]
    unit = max(x.abs().max().item() for x in g if x.numel())
    assert_within_units(_ops.power_sum(g, q, unit, 0), exact(g, lambda a: (a / unit) ** q), 40)
    key = int(_ops.select(g, count(g) // 10)[0])
    limit = _reference.magnitude(key, _reference.key_dtype(g))
    above = exact(g, lambda a: np.where(a >= limit, (a / unit) ** q, 0))
    assert_within_units(_ops.power_sum(g, q, unit, key), above, 40)
    assert not _ops.power_sum(g, q, unit, 2**63 - 1).any()


@pytest.mark.parametrize(("prefix_bits", "bits"), [(0, 1), (0, 12), (1, 14), (5, 10), (9, 6), (15, 0)])
@pytest.mark.parametrize("dtypes", LISTS, ids=str)
def test_histograms_are_those_of_the_reference(dtypes: tuple[torch.dtype, ...], prefix_bits: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    g = [values("quantised", size, generator).to(dtypes[k % len(dtypes)]) for k, size in enumerate(SIZES)]
    width = 8 * _reference.key_dtype(g).itemsize - 1
    prefix = int(_ops.select(g, count(g) // 10)[0]) >> (width - prefix_bits)
    counts, sums = _ops.key_histogram(g, prefix, prefix_bits, bits)
    expected, magnitudes = _reference.key_histogram(g, prefix, prefix_bits, bits)
    assert counts.sum() > 0
    assert torch.equal(counts, expected)
    torch.testing.assert_close(sums, magnitudes, rtol=1e-13, atol=0)


def test_a_fine_histogram_has_the_bins_of_a_coarse_one() -> None:
    g = [values("normal", 50_000, torch.Generator().manual_seed(0))]
    counts, sums = _ops.key_histogram(g, 0, 0, 19)
    coarse, coarse_sums = _ops.key_histogram(g, 0, 0, 12)
    assert torch.equal(counts.view(4096, -1).sum(1), coarse)
    torch.testing.assert_close(sums.view(4096, -1).sum(1), coarse_sums, rtol=1e-13, atol=0)


def test_no_tensors_have_no_statistics() -> None:
    assert _ops.grad_stats([]).shape == (0, 5)
    assert _ops.power_sum([], 2.0, 1.0, 0).shape == (0,)


# --- the dispatcher -------------------------------------------------------------------------------------------------


def calls(g: list[Tensor]) -> dict[str, tuple[Any, ...]]:
    threshold = _reference.select(g, count(g) // 10)
    return {
        "grad_stats": (g,),
        "power_sum": (g, 1.5, 2.0, int(threshold[0])),
        "select": (g, count(g) // 10),
        "collect": (g, threshold),
        "top_n": (g, count(g) // 10),
        "key_histogram": (g, 0, 0, 9),
    }


@pytest.mark.parametrize("kind", ["normal", "quantised", "all equal"])
@pytest.mark.parametrize("name", NAMES)
def test_bits_do_not_depend_on_the_number_of_threads(name: str, kind: str, threads: Callable[[int], None]) -> None:
    generator = torch.Generator().manual_seed(0)
    g = [values(kind, size, generator) for size in (250_001, 0, 7, 90_000, 3 * BLOCK)]
    args = calls(g)[name]
    threads(1)
    one = getattr(_ops, name)(*args)
    for number in (2, 3, 4):
        threads(number)
        assert_same(getattr(_ops, name)(*args), one)


@pytest.mark.parametrize("dtypes", [(FLOAT32,), (BFLOAT16,), EVERY], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_operators_keep_the_rules_of_the_dispatcher(name: str, dtypes: tuple[torch.dtype, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    g = [values("normal", size, generator).to(dtypes[k % len(dtypes)]) for k, size in enumerate((50, 0, 33, 5))]
    torch.library.opcheck(getattr(_ops, name), calls(g)[name])


def test_what_is_not_contiguous_is_refused() -> None:
    with pytest.raises(RuntimeError, match="tensors must be contiguous"):
        _ops.grad_stats([torch.ones(4, 4).T[:, :2]])
