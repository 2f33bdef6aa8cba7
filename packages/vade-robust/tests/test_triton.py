"""The Triton kernels against the definitions, interpreted on CPU or on a GPU, and what is compiled for one."""

from __future__ import annotations

import math
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from vade_robust import _ops, _reference

if TYPE_CHECKING:
    from collections.abc import Callable

pytest.importorskip("triton", reason="there is no Triton here")
pytest.importorskip("numpy", reason="Triton's interpreter needs NumPy")

from vade_robust import _triton

FLOAT32, FLOAT64 = torch.float32, torch.float64
# The code is the same; the interpreter is slow.
BY_DTYPE = pytest.mark.parametrize("dtype", [FLOAT32, pytest.param(FLOAT64, marks=pytest.mark.slow)], ids=str)
BY_SPREAD = pytest.mark.parametrize("spread", [True, False], ids=["log_var", "no log_var"])
SIZES = [(0, 3, 4), (1, 1, 1), (2, 10, 33), (31, 2, 10), (67, 10, 10), (17, 37, 5), (3, 130, 2), (1025, 3, 2)]
BY_SIZE = pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=FLOAT64)


def mixture(size: tuple[int, int, int], spread: bool, dtype: torch.dtype) -> list[Any]:
    rows, count, columns = size
    log_var = normal(rows, columns, seed=1).to(dtype) if spread else None
    weight = normal(count, seed=2).log_softmax(0).to(dtype)
    return [
        normal(rows, columns).to(dtype),
        log_var,
        weight,
        *(normal(count, columns, seed=s).to(dtype) for s in (3, 4)),
    ]


def widened(inputs: list[Any]) -> list[Any]:
    return [x.double() if isinstance(x, Tensor) else x for x in inputs]


def received(inputs: list[Any]) -> list[Tensor]:
    a, lse = _reference.mixture_scores(*inputs)
    return [normal(*a.shape, seed=5).to(a.dtype), normal(*lse.shape, seed=6).to(a.dtype), a, lse]


def moved(inputs: list[Any], device: torch.device) -> list[Any]:
    return [x.to(device) if isinstance(x, Tensor) else x for x in inputs]


def assert_as_good(
    name: str, inputs: list[Any], sizes: list[Tensor | None], device: torch.device, within: Callable[..., None]
) -> None:
    """The 2x rule in float32, and twelve digits in float64."""

    def results(function: Callable[..., Any], arguments: list[Any]) -> list[Tensor]:
        result = function(*arguments)
        return [result] if isinstance(result, Tensor) else list(result)

    definition = getattr(_reference, name)
    actual = results(getattr(_triton, name), moved(inputs, device))
    reference, exact = results(definition, inputs), results(definition, widened(inputs))
    for x, y, z, size in zip(actual, reference, exact, sizes, strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        if x.dtype == FLOAT32:
            within(x, y, z, size)
        elif x.dtype == FLOAT64:
            scale = y.abs() if size is None else torch.maximum(y.abs(), size)
            assert bool(((x.cpu() - y).abs() <= 1e-12 * scale + 1e-300).all())
        else:
            assert torch.equal(x.cpu(), y)


def sizes_of_terms(inputs: list[Any]) -> list[Tensor]:
    """What rounding errors of scores and gradients are relative to: the sums of the terms' magnitudes."""
    grad_a, grad_lse, a, lse, mean, log_var, weight, centers, scale = widened(inputs)
    precision, difference = (-scale).exp(), (mean[:, None] - centers).abs()
    variance = torch.zeros_like(mean) if log_var is None else log_var.exp()
    squares = (difference.square() + variance[:, None]) * precision
    scores = weight.abs() + 0.5 * (_reference.LOG_2PI + scale.abs() + squares).sum(2)
    weights = grad_a.abs() + grad_lse.abs()[:, None] * (a - lse[:, None]).exp() * (1 + (a - lse[:, None]).abs())
    pulls = weights[:, :, None] * difference * precision
    return [
        scores,
        scores.amax(1),
        pulls.sum(1),
        mean.new_empty(0) if log_var is None else 0.5 * variance * (weights @ precision),
        weights.sum(0),
        pulls.sum(0),
        0.5 * (weights[:, :, None] * (squares + 1)).sum(0),
    ]


# --- the mixture ----------------------------------------------------------------------------------------------------


@BY_DTYPE
@BY_SPREAD
@BY_SIZE
def test_the_mixture_s_error_is_within_twice_that_of_the_reference(
    size, spread, dtype, device, assert_within_twice, monkeypatch
):
    monkeypatch.setattr(_triton, "COMPONENTS", 16)  # so that 37 and 130 are more than a program holds
    inputs = mixture(size, spread, dtype)
    backward = [*received(inputs), *inputs]
    sizes = sizes_of_terms(backward)
    assert_as_good("mixture_scores", inputs, sizes[:2], device, assert_within_twice)
    assert_as_good("mixture_scores_backward", backward, sizes[2:], device, assert_within_twice)


@BY_DTYPE
def test_parts_of_the_parameters_gradients_are_summed_in_memory_where_there_are_many(
    dtype, device, assert_within_twice, monkeypatch
):
    monkeypatch.setattr(_triton, "PARTS", 3)
    inputs = mixture((300, 10, 5), True, dtype)
    backward = [*received(inputs), *inputs]
    assert_as_good("mixture_scores_backward", backward, sizes_of_terms(backward)[2:], device, assert_within_twice)


@BY_DTYPE
@pytest.mark.parametrize("scale", [-12.0, 12.0])
@pytest.mark.parametrize("log_var", [-80.0, 12.0])
def test_the_mixture_at_the_ends_of_the_range(log_var, scale, dtype, device, assert_within_twice):
    """Numbers below the normal ones may be 0."""
    inputs = mixture((5, 3, 40), True, dtype)
    inputs[1], inputs[4] = torch.full_like(inputs[1], log_var), torch.full_like(inputs[4], scale)
    backward = [*received(inputs), *inputs]
    least = torch.finfo(dtype).tiny / torch.finfo(dtype).eps
    sizes = [size + least for size in sizes_of_terms(backward)]
    assert_as_good("mixture_scores", inputs, sizes[:2], device, assert_within_twice)
    assert_as_good("mixture_scores_backward", backward, sizes[2:], device, assert_within_twice)


@BY_DTYPE
@pytest.mark.parametrize("count", [2, 40])
def test_densities_that_underflow_leave_the_posterior_right(count, dtype, device, monkeypatch):
    monkeypatch.setattr(_triton, "COMPONENTS", 16)
    mean = torch.full((3, 10), 3.0, dtype=dtype, device=device)
    centers = torch.zeros(count, 10, dtype=dtype, device=device)
    centers[-1] = 1
    weight = torch.full((count,), 0.5 / (count - 1), dtype=dtype, device=device)
    weight[-1] = 0.5
    a, lse = _triton.mixture_scores(mean, None, weight.log(), centers, torch.zeros_like(centers))
    posterior = (a - lse[:, None]).double().exp().cpu()[1]
    assert posterior[:-1].sum().item() == pytest.approx(1.389e-11, rel=0.01)
    assert posterior[-1].item() == pytest.approx(1)


@BY_DTYPE
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", [0, 1, 2], ids=["mean", "log_var", "log_weight"])
@pytest.mark.filterwarnings("ignore:All-NaN slice encountered")  # NumPy's, in the interpreter
@pytest.mark.parametrize("count", [5, 18])
def test_scores_that_are_not_finite_are_where_the_reference_has_them(count, where, value, dtype, device, monkeypatch):
    monkeypatch.setattr(_triton, "COMPONENTS", 16)
    inputs = mixture((6, count, 4), True, dtype)
    inputs[where].view(-1)[3] = value
    actual, expected = _triton.mixture_scores(*moved(inputs, device)), _reference.mixture_scores(*inputs)
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x.cpu(), y, rtol=1e-4, atol=1e-4, equal_nan=True)


# --- distances ------------------------------------------------------------------------------------------------------


@BY_DTYPE
@BY_SIZE
def test_distances_error_is_within_twice_that_of_the_reference(size, dtype, device, assert_within_twice):
    x, _, _, y, _ = mixture(size, True, dtype)
    assert_as_good("squared_distances", [x, y], [None], device, assert_within_twice)


@BY_DTYPE
@pytest.mark.parametrize("k", [0, 1, 3, 10])
@pytest.mark.parametrize(("rows", "points"), [(0, 10), (1, 10), (131, 10), (7, 260)])
def test_the_nearest_are_the_first_of_a_stable_sort(rows, points, k, dtype, device):
    """Coordinates are small integers: distances are exact, and many tie."""
    queries, among = (normal(n, 3, seed=n).mul(1.5).round().to(dtype) for n in (rows, points))
    actual = _triton.knn(queries.to(device), among.to(device), k)
    for x, y in zip(actual, _reference.knn(queries, among, k), strict=True):
        assert torch.equal(x.cpu(), y)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_what_is_not_a_number_is_further_than_infinity(k, device):
    points = torch.tensor([[math.nan], [math.inf], [1e30], [2.0], [math.nan], [2.0]])
    queries = torch.tensor([[1.0], [math.nan], [math.inf]])
    actual, expected = _triton.knn(queries.to(device), points.to(device), k), _reference.knn(queries, points, k)
    assert torch.equal(actual[1].cpu(), expected[1])
    torch.testing.assert_close(actual[0].cpu(), expected[0], rtol=0, atol=0, equal_nan=True)


# --- t-SNE ----------------------------------------------------------------------------------------------------------


@BY_DTYPE
@pytest.mark.parametrize(("rows", "columns", "perplexity"), [(2, 3, 1.0), (19, 2, 4.0), (5, 33, 2.0)])
def test_affinities_are_those_of_the_definition(rows, columns, perplexity, dtype, device, monkeypatch):
    """To the precision at which both of them end, which is one of the entropy."""
    monkeypatch.setattr(_triton, "ROW", 16)  # so that 19 are more than a program holds
    x = normal(rows, columns).to(dtype)
    p = _triton.tsne_affinities(x.to(device), perplexity).cpu()
    exact = _reference.tsne_affinities(x.double(), perplexity)
    assert p.dtype == dtype
    assert torch.equal(p, p.T)
    assert not p.diagonal().any()
    assert p.double().sum().item() == pytest.approx(1, abs=1e-6 if dtype == FLOAT32 else 1e-13)
    mine, theirs = ((q.double() - exact).abs().sum() for q in (p, _reference.tsne_affinities(x, perplexity)))
    assert mine <= 2 * theirs + 4 * torch.finfo(dtype).eps


@BY_DTYPE
@pytest.mark.parametrize("ties", [8, 4], ids=["all rows", "half of the rows"])
def test_affinities_of_ties_are_finite(ties, dtype, device):
    x = normal(8, 3).to(dtype)
    x[:ties] = x[0].clone()
    p = _triton.tsne_affinities(x.to(device), 2.5).cpu()
    assert bool(p.isfinite().all())
    torch.testing.assert_close(p, _reference.tsne_affinities(x, 2.5), rtol=1e-4, atol=1e-12)


@BY_DTYPE
@pytest.mark.parametrize("rows", [0, 1])
def test_fewer_than_two_rows_have_no_affinities_and_no_divergence(rows, dtype, device):
    x = normal(rows, 3).to(dtype).to(device)
    p = _triton.tsne_affinities(x, 2.0)
    assert p.shape == (rows, rows)
    assert not p.any()
    kl, gradient = _triton.tsne_kl(x, p)
    assert kl.shape == ()
    assert not kl
    assert not gradient.any()


@BY_DTYPE
@pytest.mark.parametrize("exaggeration", [1.0, 12.0])
@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (5, 1), (67, 10), (9, 20)])
def test_the_divergence_s_error_is_within_twice_that_of_the_reference(
    rows, columns, exaggeration, dtype, device, assert_within_twice
):
    y = normal(rows, columns, seed=1).to(dtype)
    p = exaggeration * _reference.tsne_affinities(normal(rows, 5), min(8.0, (rows + 1) / 3)).to(dtype)
    wide, large = y.double(), p.double()
    weights = 1 / (1 + _reference.squared_distances(wide, wide))
    weights.fill_diagonal_(0)
    total = weights.sum()
    kl = (torch.special.xlogy(large, large) - torch.special.xlogy(large, weights)).abs().sum() + total.log().abs()
    pull = (large + weights / total) * weights
    gradient = 4 * (pull.sum(1, keepdim=True) * wide.abs() + pull @ wide.abs())
    assert_as_good("tsne_kl", [y, p], [kl, gradient], device, assert_within_twice)


# --- compiled -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_cuda_tensors_take_the_kernels_and_the_same_bits_come_out_every_time(monkeypatch):
    if not torch.cuda.is_available() or os.environ["TRITON_INTERPRET"] == "1":
        pytest.skip("this needs a CUDA device and TRITON_INTERPRET=0")
    inputs = mixture((5000, 10, 10), True, FLOAT32)
    x, p = inputs[0][:800], _reference.tsne_affinities(inputs[0][:800], 8.0)
    calls = {
        "mixture_scores": inputs,
        "mixture_scores_backward": [*received(inputs), *inputs],
        "squared_distances": [inputs[0], inputs[3]],
        "knn": [inputs[0], inputs[3], 3],
        "tsne_affinities": [x, 8.0],
        "tsne_kl": [x, p],
    }
    seen: list[str] = []
    for name, arguments in calls.items():
        launch = getattr(_triton, name)
        monkeypatch.setattr(_triton, name, lambda *a, f=launch, n=name: (seen.append(n), f(*a))[1])
        there = moved(arguments, torch.device("cuda"))
        first, second = (getattr(torch.ops.vade_robust, name)(*there) for _ in range(2))
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert seen == [name for name in calls for _ in range(2)]


@pytest.mark.gpu
def test_a_launch_waits_for_nothing():
    if not torch.cuda.is_available() or os.environ["TRITON_INTERPRET"] == "1":
        pytest.skip("this needs a CUDA device and TRITON_INTERPRET=0")
    inputs = moved(mixture((800, 10, 10), True, FLOAT32), torch.device("cuda"))
    leaves = [x.requires_grad_() for x in inputs]

    def step() -> None:
        _, lse = _ops.mixture_scores(*inputs)
        p = _ops.tsne_affinities(inputs[0].detach(), 8.0)
        torch.autograd.grad(_ops.tsne_kl(inputs[0], p)[0] - lse.mean(), leaves)

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_cuda_has_kernels_where_triton_is_installed():
    assert all("cuda" in _ops.KERNELS[name] for name in _ops.SCHEMAS)


COMPILE = r"""
from vade_robust import _triton as t

def compiled(real, chosen=None):
    pointers = lambda kernel: {p.name: "*" + real for p in kernel.params if p.name.startswith("p_")}
    launch = {"num_warps": t.WARPS, "enable_fp_fusion": True}
    def held(count, share):
        rows, components = t._blocks(count, t.SCORES // share)
        return {"SPREAD": True, "ROWS": rows, "K": components}

    kernels = {
        "prepare": (t._prepare, {"D": 128}),
        "score": (t._score, held(10, 1)),
        "score many": (t._score, held(257, 1)),
        "differentiate": (t._differentiate, held(10, 4)),
        "differentiate many": (t._differentiate, held(257, 4)),
        "add parts": (t._add_parts, {"PARTS": 32, "BLOCK": 32}),
        "distances": (t._distances, {"N": t.SIDE, "M": t.SIDE}),
        "nearest": (t._nearest, {"N": 128, "M": 16}),
        "nearest of many": (t._nearest, {"N": 16, "M": t.POINTS}),
        "conditional": (t._conditional, {"M": t.ROW}),
        "symmetric": (t._symmetric, {"N": t.SIDE if real == "fp32" else t.SIDE // 2}),
        "pull": (t._pull, {"N": t.LINES, "M": t.OTHERS, "D": t.WIDTH, "FEW": True}),
        "pull wide": (t._pull, {"N": t.LINES, "M": t.OTHERS, "D": t.WIDTH, "FEW": False}),
        "combine": (t._combine, {"BLOCK": 256}),
    }
    result = {}
    for name, (kernel, values) in kernels.items():
        if chosen and name not in chosen:
            continue
        types = {**{p.name: "i32" for p in kernel.params}, **pointers(kernel), "p_index": "*i64"}
        types |= {"target": "fp64", "tolerance": "fp64", "least": "fp64"}
        result[name] = compile_kernel(kernel, types, launch, **values)
    return result

"""


@pytest.fixture(scope="module")
def code(compiled_for_sm_90: Callable[[str], Any]) -> Any:
    chosen = ["score", "differentiate", "conditional", "pull"]
    return compiled_for_sm_90(COMPILE + f'json.dump(compiled("fp32", {chosen}), sys.stdout)')


def spilled(code: Any) -> list[str]:
    """None with Triton 3.9, at most two registers of some kernels with 3.6."""
    return [name for name, each in code.items() if each["STACK"] > 8 or each["LOCAL"]]


def test_compiled_code_keeps_to_registers(code):
    assert spilled(code) == []
    assert code["differentiate"]["REG"] <= 168  # room for three programs of 128 threads


@pytest.mark.slow
@pytest.mark.parametrize("real", ["fp32", "fp64"])
def test_all_compiled_code_keeps_to_registers(real, compiled_for_sm_90):
    assert spilled(compiled_for_sm_90(COMPILE + f'json.dump(compiled("{real}"), sys.stdout)')) == []


def test_compiled_code_has_no_atomics_and_no_reduced_precision(code):
    for each in code.values():
        assert not re.search(r"\batom\.|\bred\.global|tf32", each["ptx"])


def test_what_loops_over_rows_in_float32_has_no_doubles(code):
    doubles = {name for name, each in code.items() if re.search(r"(add|mul|fma)\S*\.f64", each["ptx"])}
    assert doubles == {"conditional"}  # of a row's precision alone
