"""The C++ kernels of t-SNE against their definitions, scikit-learn and SciPy, and their contract with PyTorch."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, check_grad
from scipy.spatial.distance import pdist, squareform
from sklearn.manifold._t_sne import _joint_probabilities, _kl_divergence
from sklearn.metrics import pairwise_distances
from torch import Tensor

from vade_robust import _ops, _reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FLOAT32, FLOAT64 = torch.float32, torch.float64
AFFINITIES, KL = torch.ops.vade_robust.tsne_affinities.default, torch.ops.vade_robust.tsne_kl.default
BY_DTYPE = pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
# Rows, columns, perplexity, and whether there are clusters far apart, whose affinities are subnormal or 0.
CASES = [
    (0, 10, 1.5, False),
    (1, 1, 1.5, False),
    (2, 10, 1.0, False),
    (2, 1, 1.5, False),
    (3, 2, 1.5, False),
    (31, 1, 8.0, False),
    (31, 65, 1.5, False),
    (31, 10, 29.5, False),
    (33, 100, 30.0, False),
    (256, 1, 8.0, False),
    (256, 2, 30.0, False),
    (256, 10, 2.56, False),
    (256, 10, 2.56, True),
    (256, 33, 1.5, False),
    (256, 65, 8.0, True),
    (256, 100, 2.56, False),
    (800, 10, 8.0, False),
    (800, 10, 8.0, True),
    (1023, 10, 8.0, False),
    (1025, 33, 30.0, False),
]
BY_CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
needs_long_double = pytest.mark.skipif(
    np.finfo(np.longdouble).eps > 1e-18, reason="long double is no wider than double here"
)


def normal(*size: int, dtype: torch.dtype = FLOAT32, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=FLOAT64).to(dtype)


def points(case: tuple[int, int, float, bool], dtype: torch.dtype = FLOAT32) -> Tensor:
    rows, columns, _, clustered = case
    x = normal(rows, columns, dtype=FLOAT64)
    if clustered:
        x += 3 * normal(7, columns, dtype=FLOAT64, seed=1)[torch.arange(rows) % 7]
    return x.to(dtype)


def kl_inputs(case: tuple[int, int, float, bool], dtype: torch.dtype = FLOAT32) -> tuple[Tensor, Tensor]:
    """A map that is not centred, and exaggerated affinities."""
    rows, columns, perplexity, _ = case
    p = AFFINITIES(points(case, FLOAT64), perplexity)
    return (normal(rows, columns, dtype=FLOAT64, seed=2) + 1).to(dtype), (4 * p).to(dtype)


def sizes_of_terms(y: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """What rounding errors of the divergence and of its gradient are relative to: the sums of the terms' magnitudes."""
    y, p = y.double(), p.double()
    w = 1 / (1 + torch.cdist(y, y, compute_mode="donot_use_mm_for_euclid_dist").square())
    w.fill_diagonal_(0)
    total = w.sum()
    kl = torch.special.xlogy(p, p).abs().sum() + torch.special.xlogy(p, w).abs().sum() + total.log().abs()
    pull = (p + w / total) * w
    return kl.nan_to_num(0, 0, 0), 4 * (pull.sum(1, keepdim=True) * y.abs() + pull @ y.abs())


# --- the definitions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tsne_affinities", "tsne_kl"])
def test_what_serves_cpu_tensors_is_the_library(name: str) -> None:
    assert "cpu" in _ops.KERNELS[name]
    [cpu] = re.findall(r"^CPU: registered at (\S+)", torch._C._dispatch_dump(f"vade_robust::{name}"), re.MULTILINE)
    assert "csrc/" in cpu


@BY_CASE
def test_error_of_affinities_is_within_twice_that_of_the_float32_reference(
    case: tuple[int, int, float, bool], assert_within_twice: Callable[..., None]
) -> None:
    x, perplexity = points(case), case[2]
    exact = _reference.tsne_affinities(x.double(), perplexity)
    p = AFFINITIES(x, perplexity)
    assert_within_twice(p, _reference.tsne_affinities(x, perplexity), exact)
    assert torch.equal(p, p.T)
    assert not p.diagonal().any()
    assert p.double().sum().item() == pytest.approx(float(len(p) > 1), abs=1e-6)


@BY_CASE
def test_error_of_the_divergence_is_within_twice_that_of_the_float32_reference(
    case: tuple[int, int, float, bool], assert_within_twice: Callable[..., None]
) -> None:
    y, p = kl_inputs(case)
    exact = _reference.tsne_kl(y.double(), p.double())
    for actual, reference, truth, size in zip(
        KL(y, p), _reference.tsne_kl(y, p), exact, sizes_of_terms(y, p), strict=True
    ):
        assert actual.shape == reference.shape
        assert_within_twice(actual, reference, truth, size)


def exact_affinities(x: np.ndarray[Any, Any], perplexity: float) -> np.ndarray[Any, Any]:
    """By bisection, in the precision of x."""
    d = np.square(x[:, None] - x).sum(2)
    np.fill_diagonal(d, np.inf)
    d -= d.min(1, keepdims=True)
    finite = np.where(np.isfinite(d), d, 0)
    low, high = np.full((len(x), 1), -40, x.dtype), np.full((len(x), 1), 40, x.dtype)
    for _ in range(72):
        beta = np.exp((low + high) / 2)
        w = np.exp(-beta * d)
        total = w.sum(1, keepdims=True)
        above = np.log(total) + beta * (w * finite).sum(1, keepdims=True) / total > np.log(x.dtype.type(perplexity))
        low, high = np.where(above, (low + high) / 2, low), np.where(above, high, (low + high) / 2)
    w = np.exp(-np.exp((low + high) / 2) * d)
    w /= w.sum(1, keepdims=True)
    result: np.ndarray[Any, Any] = (w + w.T) / (2 * len(x))
    return result


@needs_long_double
@pytest.mark.parametrize("case", [(31, 1, 8.0, False), (100, 10, 2.5, False), (100, 65, 8.0, True)], ids=str)
def test_error_of_float64_is_within_twice_that_of_the_reference(
    case: tuple[int, int, float, bool], assert_within_twice: Callable[..., None]
) -> None:
    x, perplexity = points(case, FLOAT64), case[2]
    p = exact_affinities(x.numpy().astype(np.longdouble), perplexity)
    assert_within_twice(
        AFFINITIES(x, perplexity), _reference.tsne_affinities(x, perplexity), torch.from_numpy(p.astype(np.float64))
    )
    y, p64 = kl_inputs(case, FLOAT64)
    map_, p = y.numpy().astype(np.longdouble), p64.numpy().astype(np.longdouble)
    differences = map_[:, None] - map_
    w = 1 / (1 + np.square(differences).sum(2))
    np.fill_diagonal(w, 0)
    some = p > 0
    kl = (p[some] * np.log(p[some] / w[some])).sum() + np.log(w.sum())
    gradient = 4 * (((p - w / w.sum()) * w)[:, :, None] * differences).sum(1)
    exact = [torch.from_numpy(np.asarray(value, np.float64)) for value in (kl, gradient)]
    for actual, reference, truth, size in zip(
        KL(y, p64), _reference.tsne_kl(y, p64), exact, sizes_of_terms(y, p64), strict=True
    ):
        assert_within_twice(actual, reference, truth, size)


@given(
    rows=st.integers(2, 90),
    columns=st.integers(1, 40),
    fraction=st.floats(0, 0.95),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=30, deadline=None)
def test_any_size_gives_the_reference_s_affinities_and_divergence(
    rows: int, columns: int, fraction: float, scale: float, seed: int
) -> None:
    x = scale * normal(rows, columns, dtype=FLOAT64, seed=seed)
    perplexity = (rows - 1) ** fraction
    p = AFFINITIES(x, perplexity)
    torch.testing.assert_close(p, _reference.tsne_affinities(x, perplexity), rtol=1e-7, atol=1e-13)
    for actual, expected, size in zip(KL(x, p), _reference.tsne_kl(x, p), sizes_of_terms(x, p), strict=True):
        assert bool(((actual - expected).abs() <= 1e-12 * (size + 1e-3)).all())


@BY_DTYPE
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_not_hidden(value: float, dtype: torch.dtype) -> None:
    x = normal(50, 10, dtype=dtype)
    x[7, 3] = value
    p = AFFINITIES(x, 5.0)
    assert not p[7].isfinite().all()
    finite = AFFINITIES(normal(50, 10, dtype=dtype), 5.0)
    for kl, gradient in (KL(x, finite), KL(normal(50, 10, dtype=dtype), p)):
        assert not kl.isfinite()
        assert not gradient.isfinite().all()


@BY_DTYPE
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_the_gradient_has_no_component_along_a_shift(offset: float, dtype: torch.dtype) -> None:
    """It sums to zero over the rows: absolutely, as its terms cancel. So wherever the map is."""
    y, p = kl_inputs((800, 10, 8.0, False), dtype)
    gradient = KL(y + offset, p)[1].double()
    assert gradient.sum(0).abs().max().item() < 20 * torch.finfo(dtype).eps * gradient.abs().sum(0).max().item()


def test_exaggeration_multiplies_the_attraction_alone() -> None:
    y, p = kl_inputs((60, 3, 8.0, False), FLOAT64)
    p = p / 4
    (kl, gradient), (exaggerated, steeper) = KL(y, p), KL(y, 4 * p)
    attraction = (p * (p.clamp(min=1e-300).log() + (1 + torch.cdist(y, y).square()).log())).sum()
    w = 1 / (1 + torch.cdist(y, y).square())
    pull = 4 * (p * w)[:, :, None] * (y[:, None] - y)
    assert (exaggerated - kl).item() == pytest.approx((3 * attraction + 4 * math.log(4)).item(), rel=1e-12)
    torch.testing.assert_close(steeper - gradient, 3 * pull.sum(1), rtol=1e-9, atol=1e-13)


# --- other definitions ----------------------------------------------------------------------------------------------


@BY_DTYPE
def test_affinities_are_those_of_scikit_learn(dtype: torch.dtype) -> None:
    x = normal(200, 10, dtype=dtype)
    distances = pairwise_distances(x.numpy(), metric="sqeuclidean")
    expected = squareform(_joint_probabilities(distances, 8.0, 0))
    p = AFFINITIES(x, 8.0).double().numpy()
    assert np.abs(p - expected).sum() < 4e-6
    large = expected > 1e-6
    assert np.abs(p[large] / expected[large] - 1).max() < 8e-5  # its entropies are exact to 1e-5


def found_by_brentq(x: Tensor, perplexity: float) -> Tensor:
    """Affinities with the roots of the entropies' excess that SciPy brackets, in float64."""
    d = squareform(pdist(x.double().numpy(), "sqeuclidean"))
    conditional = np.zeros_like(d)
    for i, row in enumerate(d):
        others = np.arange(len(row)) != i
        near = row[others] - row[others].min()

        def excess(log_beta: float, near: np.ndarray[Any, Any] = near) -> float:
            weights = np.exp(-math.exp(log_beta) * near)
            q = weights / weights.sum()
            return float(-(q[q > 0] * np.log(q[q > 0])).sum() - math.log(perplexity))

        root = brentq(excess, -40, 40, xtol=1e-14, rtol=1e-14, maxiter=500)
        weights = np.exp(-math.exp(root) * near)
        conditional[i, others] = weights / weights.sum()
    return torch.from_numpy((conditional + conditional.T) / (2 * len(d)))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize(("rows", "columns", "perplexity"), [(50, 5, 25.0), (60, 10, 1.5), (60, 2, 57.0)])
def test_each_row_has_the_wanted_perplexity(rows: int, columns: int, perplexity: float, scale: float) -> None:
    x = normal(rows, columns, dtype=FLOAT64) * scale
    expected = found_by_brentq(x, perplexity)
    torch.testing.assert_close(AFFINITIES(x, perplexity), expected, rtol=1e-9, atol=1e-14)
    single = AFFINITIES(x.float(), perplexity).double()
    torch.testing.assert_close(single, found_by_brentq(x.float(), perplexity), rtol=1e-3, atol=1e-7)


def test_distances_whose_weights_all_underflow_have_their_perplexity() -> None:
    """The squared distance of any two rows is about 20000, and the precision about 0.1."""
    x = torch.eye(90, dtype=FLOAT64) * 100 + 0.3 * normal(90, 90, dtype=FLOAT64)
    torch.testing.assert_close(AFFINITIES(x, 30.0), found_by_brentq(x, 30.0), rtol=1e-8, atol=1e-14)
    p = AFFINITIES(x.float(), 30.0).double()
    assert (p - found_by_brentq(x.float(), 30.0)).abs().sum().item() < 1e-3  # distances are exact to 1e-3


@BY_DTYPE
def test_the_same_points_have_the_same_bits_in_every_call(dtype: torch.dtype) -> None:
    x = normal(100, 5, dtype=dtype)
    first = AFFINITIES(x, 3.0)
    for _ in range(20):
        assert torch.equal(AFFINITIES(x.clone(), 3.0), first)


@BY_DTYPE
@pytest.mark.parametrize(("distinct", "perplexity"), [(1, 3.0), (1, 18.5), (11, 3.0), (11, 9.5), (2, 5.0)])
def test_ties_are_finite_and_sum_to_one(distinct: int, perplexity: float, dtype: torch.dtype) -> None:
    """The first 20 - distinct + 1 of 20 rows are the same."""
    x = normal(20, 3, dtype=dtype)
    x[: 21 - distinct] = x[0].clone()
    p = AFFINITIES(x, perplexity)
    assert bool(p.isfinite().all())
    assert p.sum().item() == pytest.approx(1, abs=1e-6)
    if distinct == 1:
        torch.testing.assert_close(p, (1 - torch.eye(20, dtype=dtype)) / 380)
    torch.testing.assert_close(p, _reference.tsne_affinities(x, perplexity), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("rows", [3, 20, 257])
def test_a_perplexity_close_to_the_number_of_neighbours_is_reached(rows: int) -> None:
    x = normal(rows, 4, dtype=FLOAT64)
    p = AFFINITIES(x, (rows - 1) * (1 - 1e-4))
    torch.testing.assert_close(p, found_by_brentq(x, (rows - 1) * (1 - 1e-4)), rtol=1e-9, atol=0)
    flattest = (1 - torch.eye(rows, dtype=FLOAT64)) / (rows * (rows - 1))
    for perplexity in (float(rows - 1), 10.0 * rows):
        torch.testing.assert_close(AFFINITIES(x, perplexity), flattest, rtol=1e-5, atol=0)


def test_the_gradient_is_that_of_finite_differences_and_of_scikit_learn() -> None:
    distances = np.abs(np.random.default_rng(0).normal(size=(50, 2)))
    condensed = _joint_probabilities(squareform(pdist(distances, "sqeuclidean")).astype(np.float32), 25.0, 0)
    p = torch.from_numpy(squareform(condensed)).double()
    start = normal(50, 2, dtype=FLOAT64)

    def divergence(y: np.ndarray[Any, Any]) -> float:
        return float(KL(torch.from_numpy(y.reshape(50, 2)), p)[0])

    def slope(y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        result: np.ndarray[Any, Any] = KL(torch.from_numpy(y.reshape(50, 2)), p)[1].numpy().ravel()
        return result

    assert check_grad(divergence, slope, start.numpy().ravel()) < 1e-5
    error, gradient = _kl_divergence(start.numpy().ravel(), condensed, 1, 50, 2)
    assert divergence(start.numpy()) == pytest.approx(error, rel=1e-6)
    np.testing.assert_allclose(slope(start.numpy()), gradient, rtol=1e-5, atol=1e-9)


# --- PyTorch --------------------------------------------------------------------------------------------------------


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@BY_DTYPE
@pytest.mark.parametrize("rows", [3, 257, 1025])
def test_bits_do_not_depend_on_the_number_of_threads(
    rows: int, dtype: torch.dtype, threads: Callable[[int], None]
) -> None:
    x, y = normal(rows, 10, dtype=dtype), normal(rows, 10, dtype=dtype, seed=1)
    expected: list[Tensor] = []
    for number in (1, 2, 4):
        threads(number)
        p = AFFINITIES(x, 1.5)
        results = [p, *KL(y, p)]
        expected = expected or results
        assert all(map(torch.equal, results, expected))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@BY_DTYPE
def test_opcheck(dtype: torch.dtype) -> None:
    x = normal(6, 3, dtype=dtype)
    torch.library.opcheck(AFFINITIES, (x, 2.0))
    torch.library.opcheck(KL, (x.clone().requires_grad_(), AFFINITIES(x, 2.0)))


def test_affinities_have_no_gradient() -> None:
    x = normal(6, 3).requires_grad_()
    with pytest.raises(RuntimeError, match="tsne_affinities cannot be differentiated: detach its input"):
        _ops.tsne_affinities(x, 2.0).sum().backward()


@BY_DTYPE
def test_backward_scales_the_gradient(dtype: torch.dtype) -> None:
    y, p = kl_inputs((31, 10, 8.0, False), dtype)
    y.requires_grad_()
    kl, gradient = _ops.tsne_kl(y, p)
    assert not gradient.requires_grad
    (3 * kl).backward()
    assert y.grad is not None
    assert torch.equal(y.grad, 3 * gradient)


def test_gradcheck() -> None:
    y, p = kl_inputs((7, 3, 2.0, False), FLOAT64)
    assert torch.autograd.gradcheck(lambda y: _ops.tsne_kl(y, p)[0], y.requires_grad_())


def test_double_backward_is_refused() -> None:
    y, p = kl_inputs((7, 3, 2.0, False))
    y.requires_grad_()
    factor = torch.ones((), requires_grad=True)
    (gradient,) = torch.autograd.grad(factor * _ops.tsne_kl(y, p)[0], y, create_graph=True)
    with pytest.raises(RuntimeError, match="tsne_kl cannot be differentiated twice"):
        gradient.sum().backward()


def test_torch_compile_takes_the_whole_graph() -> None:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        return 2 * _ops.tsne_kl(y.tanh(), _ops.tsne_affinities(x, 2.5))[0]

    x, y = normal(40, 5), normal(40, 3, seed=1).requires_grad_()
    expected = torch.autograd.grad(loss(x, y), y)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x, y), y), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x, y = normal(20, 5).to(dtype), normal(20, 3, seed=1).to(dtype).requires_grad_()
    p = _ops.tsne_affinities(x, 3.0)
    assert torch.equal(p, AFFINITIES(x.float(), 3.0))
    kl, gradient = _ops.tsne_kl(y, p)
    assert kl.dtype == FLOAT32
    kl.backward()
    assert y.grad is not None
    assert torch.equal(y.grad, gradient.to(dtype))


def test_layout_and_place_change_no_bit() -> None:
    x, y = normal(40, 6), normal(40, 3, seed=1)
    p = AFFINITIES(x, 3.0)
    assert torch.equal(_ops.tsne_affinities(x.T.contiguous().T, 3.0), p)
    moved = torch.empty(1 + x.numel())[1:].view(40, 6).copy_(x)
    assert torch.equal(AFFINITIES(moved, 3.0), p)
    expected = KL(y, p)
    moved = torch.empty(1 + p.numel())[1:].view(40, 40).copy_(p)
    for results in (_ops.tsne_kl(y.T.contiguous().T, p.T), KL(y, moved)):
        assert all(map(torch.equal, results, expected))


def test_memory_stays_below_three_matrices() -> None:
    """Of the affinities and the divergence of 4000 rows together, the first included."""
    resource = pytest.importorskip("resource", reason="peak memory is read as Unix tells it")
    del resource
    script = """
import resource, torch
from vade_robust import _ops

x, y = torch.randn(4000, 10), torch.randn(4000, 10)
_ops.tsne_kl(y[:40], _ops.tsne_affinities(x[:40], 5.0))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_ops.tsne_kl(y.requires_grad_(), _ops.tsne_affinities(x, 40.0))[0].backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    if sys.platform != "linux":
        pytest.skip("ru_maxrss is in bytes elsewhere, or of the largest process")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 3 * 4000 * 4000 * 4
