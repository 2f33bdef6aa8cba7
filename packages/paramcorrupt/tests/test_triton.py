"""The Triton kernels against the reference, their tables, launches and compiled code.

Interpreted on the CPU, and if marked, run on a GPU. What is selected and written agrees bit for bit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from paramcorrupt import _ops, _reference

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

triton = pytest.importorskip("triton", reason="there is no Triton here")
pytest.importorskip("numpy", reason="Triton's interpreter needs NumPy")

from paramcorrupt import _triton, _triton_base, _triton_random, _triton_select, _triton_weights  # noqa: E402

BFLOAT16, FLOAT16, FLOAT32, FLOAT64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
DTYPES = pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64, BFLOAT16, FLOAT16], ids=str)
CHUNK, BLOCK = _triton_base.CHUNK.value, _triton_base.BLOCK.value
SHAPES = [(7, 5), (0,), (13,), (), (1,), (2,), (31,), (1023,), (1025,), (CHUNK + 3,)]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.fixture(autouse=True)
def no_table_is_known() -> None:
    _triton_base._plans.clear()


def tensors(dtype: torch.dtype, seed: int = 0, device: torch.device | str = "cpu") -> list[Tensor]:
    """With many ties, zeros of both signs, an empty tensor, one of no dimension, one of two chunks."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator).mul(8).round().div(8) for shape in SHAPES]
    made[0][2] = -0.0
    return [x.to(device, dtype) for x in made]


def bits(x: Tensor) -> Tensor:
    return x.cpu().reshape(-1).view(INTEGERS[x.element_size()]) if x.is_floating_point() else x.cpu()


def same(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> bool:
    return all(torch.equal(bits(x), bits(y)) for x, y in zip(xs, ys, strict=True))


def agree(x: Tensor, y: Tensor) -> bool:
    """To 12 digits: sums are added in another order."""
    return torch.allclose(x.cpu().double(), y.cpu().double(), rtol=1e-12, atol=0, equal_nan=True)


def cpu(xs: Sequence[Tensor]) -> list[Tensor]:
    return [x.cpu().clone() for x in xs]


def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that will hold the name of the kernel of each launch."""
    names: list[str] = []

    class Counted:
        def __init__(self, name: str, kernel: Any) -> None:
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            names.append(self.name)
            return self.kernel[grid]

    for module in (_triton_select, _triton_weights, _triton_random):
        for name, kernel in list(vars(module).items()):
            if name.endswith("_kernel"):
                monkeypatch.setattr(module, name, Counted(name, kernel))
    return names


# --- against the reference ------------------------------------------------------------------------------------------


@DTYPES
def test_statistics_equal_the_reference_s(device, dtype):
    g = tensors(dtype, device=device)
    g[8][5], g[8][6], g[9][-1] = math.nan, math.inf, -math.inf
    assert agree(_triton.grad_stats(g), _reference.grad_stats(cpu(g)))


@DTYPES
def test_power_sums_equal_the_reference_s(device, dtype):
    g = tensors(dtype, device=device)
    key = int(_reference.select(cpu(g), 300)[0])
    for q in (1.0, 1.5, 3.0):
        assert agree(_triton.power_sum(g, q, 2.0, key), _reference.power_sum(cpu(g), q, 2.0, key))


@DTYPES
@pytest.mark.parametrize("n", [1, 40, 9000, sum(math.prod(shape) for shape in SHAPES)])
def test_the_n_largest_are_the_reference_s_ties_too(device, dtype, n):
    g = tensors(dtype, device=device)
    threshold, expected = _triton.select(g, n), _reference.select(cpu(g), n)
    assert threshold[:3].tolist() == expected[:3].tolist()
    assert same(_triton.collect(g, threshold), _reference.collect(cpu(g), expected))


def test_lists_of_several_dtypes_are_one_order(device):
    kinds = [FLOAT32, BFLOAT16, FLOAT16, FLOAT32, BFLOAT16, FLOAT32, FLOAT16, FLOAT32, BFLOAT16, FLOAT16]
    g = [x.to(kind) for x, kind in zip(tensors(FLOAT32, device=device), kinds, strict=True)]
    threshold, expected = _triton.select(g, 800), _reference.select(cpu(g), 800)
    assert threshold[:3].tolist() == expected[:3].tolist()
    assert same(_triton.collect(g, threshold), _reference.collect(cpu(g), expected))
    w = [x.to(kind) for x, kind in zip(tensors(FLOAT32, 1, device), kinds, strict=True)]
    clean, ours = cpu(w), cpu(w)
    offsets, index, value = _triton.collect(g, threshold)
    journal = _triton.apply_sparse_(w, offsets, index, value.double() / 3)
    expected_journal = _reference.apply_sparse_(ours, offsets.cpu(), index.cpu(), value.cpu().double() / 3)
    assert torch.equal(journal.cpu(), expected_journal)
    assert same(w, ours)
    _triton.restore_sparse_(w, offsets, index, journal)
    assert same(w, clean)


@pytest.mark.parametrize(("prefix", "prefix_bits", "width"), [(0, 0, 11), (0, 1, 5), (0, 0, 12), (1, 1, 14)])
def test_histograms_equal_the_reference_s(device, prefix, prefix_bits, width):
    for dtype in (FLOAT32, BFLOAT16):
        g = tensors(dtype, device=device)
        counts, sums = _triton.key_histogram(g, prefix, prefix_bits, width)
        expected, expected_sums = _reference.key_histogram(cpu(g), prefix, prefix_bits, width)
        assert torch.equal(counts.cpu(), expected)
        assert agree(sums, expected_sums)


@DTYPES
def test_sparse_changes_and_their_undoing_equal_the_reference_s(device, dtype):
    g, w = tensors(dtype, device=device), tensors(dtype, 1, device)
    w[8][3] = math.nan
    clean, ours = cpu(w), cpu(w)
    offsets, index, value = _reference.collect(cpu(g), _reference.select(cpu(g), 700))
    delta = value.double() / 3
    where = offsets.to(device), index.to(device)
    journal = _triton.apply_sparse_(w, *where, delta.to(device))
    assert torch.equal(journal.cpu(), _reference.apply_sparse_(ours, offsets, index, delta))
    assert same(w, ours)
    _triton.restore_sparse_(w, *where, journal)
    assert same(w, clean)


@DTYPES
@pytest.mark.parametrize("power", [0.0, 1.0, 0.5])
def test_dense_changes_equal_the_reference_s(device, dtype, power):
    g, base = tensors(dtype, device=device), tensors(dtype, 1, device)
    w, ours = [torch.empty_like(x) for x in base], cpu(base)
    summary = _triton.apply_dense_(w, base, g, 0.01, power)
    assert agree(summary, _reference.apply_dense_(ours, cpu(base), cpu(g), 0.01, power))
    for x, y in zip(w, ours, strict=True):
        assert torch.allclose(x.cpu().double(), y.double(), rtol=1e-6 if power == 0.5 else 0, atol=0)


@DTYPES
def test_ascents_and_projections_equal_the_reference_s(device, dtype):
    a, g = tensors(dtype, 2, device), tensors(dtype, device=device)
    ours = cpu(a)
    for step in (0.0, 0.1):
        threshold = _reference.select(ours, 600)
        _triton.ascend_project_(a, g, step, 1.0, threshold.to(device), 0.05, 1.0, 1.5)
        _reference.ascend_project_(ours, cpu(g), step, 1.0, threshold, 0.05, 1.0, 1.5)
        assert same(a, ours)


@DTYPES
@pytest.mark.parametrize("p", [1.5, 2.0, math.inf])
def test_random_numbers_equal_the_reference_s(device, dtype, p):
    a = [torch.empty(shape, dtype=dtype, device=device) for shape in [(0,), (3, 7), (2049,)]]
    ours = cpu(a)
    size = _triton.random_fill_(a, 2**40 + 3, 2**32 - 5, p)
    assert agree(size, _reference.random_fill_(ours, 2**40 + 3, 2**32 - 5, p))
    digits = {FLOAT64: 1e-12, FLOAT32: 1e-6}.get(dtype, 2e-2)  # a rounding may fall to the other side
    for x, y in zip(a, ours, strict=True):
        assert torch.allclose(x.cpu().double(), y.double(), rtol=digits, atol=0)
        assert (bits(x) != bits(y)).double().mean().nan_to_num() < (1 if dtype == FLOAT64 else 1e-3)


def test_flips_of_bytes_that_are_named_twice_add_up(device):
    data = torch.randint(256, (1001,), dtype=torch.uint8)
    index, mask = torch.randint(1001, (5000,)), torch.randint(256, (5000,), dtype=torch.uint8)
    flipped = data.to(device, copy=True)
    _triton.xor_bits_(flipped, index.to(device), mask.to(device))
    _reference.xor_bits_(data, index, mask)
    assert torch.equal(flipped.cpu(), data)


def test_lists_without_a_tensor_are_sums_of_nothing(device, monkeypatch):
    names = launches(monkeypatch)
    assert _triton.grad_stats([]).shape == (0, 5)
    assert _triton.power_sum([], 1.0, 1.0, 0).shape == (0,)
    assert _triton.random_fill_([], 0, 0, 2.0) == 0
    assert names == []


# --- launches and tables --------------------------------------------------------------------------------------------


def test_selection_is_two_launches_a_digit_for_any_number_of_tensors(device, monkeypatch):
    names = launches(monkeypatch)
    g = [torch.randn(9, device=device) for _ in range(50)]
    threshold = _triton.select(g, 100)
    assert names == ["_digits_kernel", "_choose_kernel"] * 3
    names.clear()
    _triton.collect(g, threshold)
    assert names == ["_count_kernel", "_collect_kernel"]


def test_a_table_is_made_when_an_address_a_size_or_a_dtype_is_new(device):
    x = torch.randn(20, device=device)
    first = _triton_base.plan([x[:10], x[10:]])
    assert _triton_base.plan([x[:10], x[10:]]) is first
    for other in ([x[:9], x[10:]], [x[1:11], x[10:]], [x[:10].view(torch.int32).view(FLOAT32), x[10:].clone()]):
        assert _triton_base.plan(other) is not first
    assert _triton_base.plan([x[:10], x[10:]]) is first


def test_few_tables_are_remembered(device, monkeypatch):
    monkeypatch.setattr(_triton_base, "_MOST", 3)
    kept = [torch.randn(4, device=device) for _ in range(8)]
    for x in kept:
        _triton_base.plan([x])
    assert len(_triton_base._plans) == 3


def test_lists_that_do_not_fit_are_refused(device):
    with pytest.raises(ValueError, match="same sizes"):
        _triton_base.plan([torch.ones(3, device=device)], [torch.ones(4, device=device)])


# --- compiled code --------------------------------------------------------------------------------------------------

COMPILED = r"""
import torch
from paramcorrupt import _triton_base as base, _triton_random as chance
from paramcorrupt import _triton_select as select, _triton_weights as weights

F32, BF16, F16, F64 = (base.TYPES[x] for x in (torch.float32, torch.bfloat16, torch.float16, torch.float64))
integers = "table threshold prefix counts state above equal edges taken places starts index offsets"
table = dict.fromkeys(integers.split(), "*i64")
sparse = {**table, "delta": "*fp64", "journal": "*i64"}
I64, I16 = weights.INTEGERS[8], weights.INTEGERS[2]
json.dump({name: compile_kernel(kernel, types, base.OPTIONS, **constants) for name, kernel, types, constants in [
    ("stats", select._stats_kernel, table, dict(T=F32)),
    ("reduce", select._reduce_kernel, table, dict(COLUMNS=5, MOST=2)),
    ("powers", select._powers_kernel, table, dict(T=BF16, K=BF16)),
    ("digits", select._digits_kernel, table, dict(T=F32, K=F32, BITS=11, SUMS=False)),
    ("digits and sums", select._digits_kernel, table, dict(T=F16, K=F16, BITS=4, SUMS=True)),
    ("many digits", select._digits_kernel, table, dict(T=F32, K=F32, BITS=19, SUMS=True)),
    ("choose", select._choose_kernel, table, dict(BITS=11, FIRST=False)),
    ("count", select._count_kernel, table, dict(T=F32, K=F32)),
    ("collect", select._collect_kernel, {**table, "values": "*fp32"}, dict(T=BF16, K=F32)),
    ("sparse", weights._sparse_kernel, sparse,
        dict(W=BF16, BITS=I16, JOURNAL=I64, STEPS=6, RESTORE=False, ONLY=False)),
    ("dense", weights._dense_kernel, table, dict(W=F32, B=F32, G=F32, POWER=1)),
    ("dense power", weights._dense_kernel, table, dict(W=F16, B=F16, G=F16, POWER=-1)),
    ("ascend", weights._ascend_kernel, table, dict(A=F32, G=F32, POWER=1)),
    ("project", weights._project_kernel, table, dict(A=F32, K=F32)),
    ("xor", weights._xor_kernel, {"start": "i64", "index": "*i64", "mask_of": "*u8"}, dict()),
    ("gamma", chance._fill_kernel, table, dict(A=F32, LAW=0)),
    ("normal", chance._fill_kernel, table, dict(A=BF16, LAW=1)),
]}, sys.stdout)
"""


@pytest.fixture(scope="module")
def code(compiled_for_sm_90: Callable[[str], Any]) -> Any:
    return compiled_for_sm_90(COMPILED)


def test_compiled_code_keeps_to_registers(code):
    for name, used in code.items():
        if name not in ("gamma", "normal"):  # the cosine of a large angle has a table on the stack
            assert used["STACK"] == used["LOCAL"] == 0, name


def test_a_histogram_of_a_block_stays_in_the_block(code):
    """Global atomics only add what a whole chunk has counted: one instruction for each of a thread's bins."""
    atomics = [line for line in code["digits"]["ptx"].splitlines() if ".global" in line and "atom" in line]
    assert len(atomics) == 2**11 // 256


# --- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available() or not isinstance(_triton_select._stats_kernel, triton.JITFunction):
        pytest.skip("this needs a CUDA device, and TRITON_INTERPRET=0")
    return torch.device("cuda")


@pytest.mark.gpu
def test_the_operators_take_these_kernels(cuda, monkeypatch):
    names = launches(monkeypatch)
    g = tensors(FLOAT32, device=cuda)
    _ops.collect(g, _ops.select(g, 100))
    assert names == [*["_digits_kernel", "_choose_kernel"] * 3, "_count_kernel", "_collect_kernel"]


@pytest.mark.gpu
def test_selection_does_not_wait_for_the_device(cuda):
    g = [torch.randn(100_000, device=cuda) for _ in range(3)]
    _triton.select(g, 500)
    torch.cuda.set_sync_debug_mode("error")
    try:
        _triton.select(g, 500)
        _triton.grad_stats(g)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_every_replay_of_a_cuda_graph_selects_among_the_gradients_of_the_moment(cuda):
    g = [torch.randn(70_000, device=cuda), torch.randn(5, device=cuda)]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            _triton.select(g, 1000)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        threshold = _triton.select(g, 1000)
    for _ in range(3):
        for x in g:
            x.normal_()
        graph.replay()
        assert threshold[:3].tolist() == _reference.select(cpu(g), 1000)[:3].tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 1000, 10_000_000])
def test_large_selections_are_those_of_topk(cuda, n):
    g = [torch.randn(30_000_017, device=cuda), torch.randn(70_000, device=cuda)]
    _, _, value = _triton.collect(g, _triton.select(g, n))
    expected = torch.cat(g).abs().topk(n).values
    assert torch.equal(value.abs().sort(descending=True).values, expected)
