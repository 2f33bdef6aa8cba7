"""The C++ kernels of the mixture and of distances against their definitions, and their contract with PyTorch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vade_robust import _ops, _reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FLOAT32, FLOAT64 = torch.float32, torch.float64
OPERATORS = torch.ops.vade_robust
NAMES = ("mixture_scores", "mixture_scores_backward", "squared_distances", "knn")
# Rows, components and columns: of each size, but not each with each.
SIZES = [
    (0, 10, 10),
    (1, 1, 1),
    (1, 257, 512),
    (2, 10, 33),
    (31, 2, 512),
    (31, 257, 10),
    (1009, 16, 1),
    (1009, 257, 33),
    (1023, 10, 10),
    (1025, 1, 33),
    (1025, 2, 10),
    (4099, 10, 10),
]
BY_SIZE = pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
BY_SPREAD = pytest.mark.parametrize("spread", [True, False], ids=["log_var", "no log_var"])
BY_DTYPE = pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)


def mixture(size: tuple[int, int, int], spread: bool = True, dtype: torch.dtype = FLOAT32, seed: int = 0) -> list[Any]:
    rows, count, columns = size
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=FLOAT64).to(dtype)

    log_var = normal(rows, columns) if spread else None
    weight = normal(count).log_softmax(0)
    return [normal(rows, columns), log_var, weight, normal(count, columns), normal(count, columns)]


def widened(inputs: list[Any]) -> list[Any]:
    return [x.double() if isinstance(x, Tensor) else x for x in inputs]


def received(inputs: list[Any], seed: int = 1) -> list[Tensor]:
    """Gradients of the results, and the results."""
    a, lse = _reference.mixture_scores(*inputs)
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(x.shape, generator=draw).to(x.dtype) for x in (a, lse)] + [a, lse]


def sizes_of_terms(inputs: list[Any]) -> list[Tensor]:
    """What rounding errors of the scores and of the gradients are relative to: the sums of the terms' magnitudes."""
    grad_a, grad_lse, a, lse, mean, log_var, weight, centers, scale = widened(inputs)
    precision, difference = (-scale).exp(), (mean[:, None] - centers).abs()
    variance = torch.zeros_like(mean) if log_var is None else log_var.exp()
    squares = (difference.square() + variance[:, None]) * precision
    scores = weight.abs() + 0.5 * (_reference.LOG_2PI + scale.abs() + squares).sum(2)
    posterior = (a - lse[:, None]).exp()
    # An error of a score is one of its exponent, and so of the posterior.
    weights = grad_a.abs() + grad_lse.abs()[:, None] * posterior * (1 + (a - lse[:, None]).abs())
    pulls = weights[:, :, None] * difference * precision
    return [
        scores,
        scores.amax(1) if scores.shape[1] else scores.sum(1),
        pulls.sum(1),
        0.5 * variance * (weights @ precision) if log_var is not None else mean.new_empty(0),
        weights.sum(0),
        pulls.sum(0),
        0.5 * (weights[:, :, None] * (squares + 1)).sum(0),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_what_serves_cpu_tensors_is_the_library(name: str) -> None:
    assert "cpu" in _ops.KERNELS[name]


# --- the definitions ------------------------------------------------------------------------------------------------


@BY_SIZE
@BY_SPREAD
def test_error_is_within_twice_that_of_the_float32_reference(
    size: tuple[int, int, int], spread: bool, assert_within_twice: Callable[..., None]
) -> None:
    inputs = mixture(size, spread)
    gradients = received(inputs)
    magnitudes = sizes_of_terms([*gradients, *inputs])
    exact = _reference.mixture_scores(*widened(inputs))
    actual, reference = OPERATORS.mixture_scores(*inputs), _reference.mixture_scores(*inputs)
    for x, y, z, terms in zip(actual, reference, exact, magnitudes[:2], strict=True):
        assert_within_twice(x, y, z, terms)
    backward = [*gradients, *inputs]
    exact_gradients = _reference.mixture_scores_backward(*widened(backward))
    mine, theirs = OPERATORS.mixture_scores_backward(*backward), _reference.mixture_scores_backward(*backward)
    for x, y, z, terms in zip(mine, theirs, exact_gradients, magnitudes[2:], strict=True):
        assert x.shape == y.shape
        assert_within_twice(x, y, z, terms)


@BY_SIZE
@BY_SPREAD
def test_float64_equals_the_reference_to_12_digits(size: tuple[int, int, int], spread: bool) -> None:
    inputs = mixture(size, spread, FLOAT64)
    gradients = received(inputs)
    terms = sizes_of_terms([*gradients, *inputs])
    actual = [*OPERATORS.mixture_scores(*inputs), *OPERATORS.mixture_scores_backward(*gradients, *inputs)]
    expected = [*_reference.mixture_scores(*inputs), *_reference.mixture_scores_backward(*gradients, *inputs)]
    for x, y, scale in zip(actual, expected, terms, strict=True):
        assert bool(((x - y).abs() <= 1e-12 * (1e-3 + scale)).all())


@given(
    rows=st.integers(1, 150),
    count=st.integers(1, 40),
    columns=st.integers(1, 40),
    size=st.sampled_from([1e-4, 1.0, 30.0]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_any_size_gives_the_reference_s_scores_and_distances(
    rows: int, count: int, columns: int, size: float, seed: int
) -> None:
    mean, log_var, weight, centers, scale = mixture((rows, count, columns), dtype=FLOAT64, seed=seed)
    inputs = [mean * size, log_var * 3, weight, centers * size, scale * 3]
    for x, y in zip(OPERATORS.mixture_scores(*inputs), _reference.mixture_scores(*inputs), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(
        OPERATORS.squared_distances(mean, centers), _reference.squared_distances(mean, centers), rtol=1e-13, atol=0
    )


@BY_SIZE
def test_error_of_distances_is_within_twice_that_of_the_reference(
    size: tuple[int, int, int], assert_within_twice: Callable[..., None]
) -> None:
    x, _, _, y, _ = mixture(size)
    exact = _reference.squared_distances(x.double(), y.double())
    assert_within_twice(OPERATORS.squared_distances(x, y), _reference.squared_distances(x, y), exact)


@BY_DTYPE
@pytest.mark.parametrize("k", [0, 1, 2, 7, 257])
@BY_SIZE
def test_the_nearest_are_the_first_of_a_stable_sort(size: tuple[int, int, int], k: int, dtype: torch.dtype) -> None:
    """Coordinates are small integers: distances are exact, and many tie."""
    queries, _, _, points, _ = mixture(size, dtype=dtype)
    queries, points = (x.mul(1.5).round() for x in (queries, points))
    k = min(k, len(points))
    distances, index = OPERATORS.knn(queries, points, k)
    expected = _reference.knn(queries, points, k)
    assert torch.equal(index, expected[1])
    assert torch.equal(distances, expected[0])


@BY_DTYPE
@pytest.mark.parametrize("k", [1, 4])
def test_the_nearest_of_many_points_are_found_in_any_order_of_them(k: int, dtype: torch.dtype) -> None:
    for seed in range(3):
        queries, _, _, points, _ = mixture((70, 3001, 5), dtype=dtype, seed=seed)
        if seed == 1:
            points = points[points.norm(dim=1).argsort(descending=True)]
        distances = OPERATORS.squared_distances(queries, points).sort(dim=1, stable=True)
        nearest, index = OPERATORS.knn(queries, points, k)
        assert torch.equal(nearest, distances[0][:, :k])
        assert torch.equal(index, distances[1][:, :k])


@pytest.mark.parametrize("k", [1, 3, 6])
def test_what_is_not_a_number_is_further_than_infinity(k: int) -> None:
    points = torch.tensor([[math.nan], [math.inf], [1e30], [2.0], [math.nan], [2.0]])
    queries = torch.tensor([[1.0], [math.nan], [math.inf]])
    distances, index = OPERATORS.knn(queries, points, k)
    expected = _reference.knn(queries, points, k)
    assert torch.equal(index, expected[1])
    torch.testing.assert_close(distances, expected[0], rtol=0, atol=0, equal_nan=True)


# --- extreme values -------------------------------------------------------------------------------------------------


def test_a_far_mean_of_a_narrow_component_does_not_cancel(assert_within_twice: Callable[..., None]) -> None:
    """|mu|^2 / var is 1e9 or so, the distance in units of the deviation about 1."""
    mean, log_var, weight, centers, scale = mixture((200, 10, 16))
    mean = 300 + 0.01 * mean
    inputs = [mean, log_var - 9, weight, 300 + 0.01 * centers, scale * 0.1 - 9]
    exact = _reference.mixture_scores(*widened(inputs))
    terms = sizes_of_terms([*received(inputs), *inputs])
    for x, y, z, size in zip(
        OPERATORS.mixture_scores(*inputs), _reference.mixture_scores(*inputs), exact, terms, strict=False
    ):
        assert_within_twice(x, y, z, size)


@BY_DTYPE
@pytest.mark.parametrize("scale", [-12.0, 12.0])
@pytest.mark.parametrize("log_var", [-80.0, 12.0])
def test_gradients_at_the_ends_of_the_range_are_finite(
    log_var: float, scale: float, dtype: torch.dtype, assert_within_twice: Callable[..., None]
) -> None:
    """Numbers below the normal ones may be 0."""
    inputs = mixture((70, 5, 512), dtype=dtype)
    inputs[1], inputs[4] = torch.full_like(inputs[1], log_var), torch.full_like(inputs[4], scale)
    gradients = received(inputs)
    actual = OPERATORS.mixture_scores_backward(*gradients, *inputs)
    expected = _reference.mixture_scores_backward(*gradients, *inputs)
    exact = _reference.mixture_scores_backward(*widened([*gradients, *inputs]))
    least = torch.finfo(dtype).tiny / torch.finfo(dtype).eps
    for x, y, z, size in zip(actual, expected, exact, sizes_of_terms([*gradients, *inputs])[2:], strict=True):
        assert bool(x.isfinite().all())
        if dtype == FLOAT32:
            assert_within_twice(x, y, z, size + least)
        else:
            assert bool(((x - y).abs() <= 1e-12 * size).all())


@BY_DTYPE
@pytest.mark.parametrize(("columns", "first"), [(10, 1.389e-11), (50, 5.2e-55)])
def test_densities_that_underflow_leave_the_posterior_right(columns: int, first: float, dtype: torch.dtype) -> None:
    mean = torch.full((3, columns), 3.0, dtype=dtype)
    centers = torch.stack([torch.zeros(columns), torch.ones(columns)]).to(dtype)
    a, lse = OPERATORS.mixture_scores(
        mean, None, torch.tensor([0.5, 0.5], dtype=dtype).log(), centers, torch.zeros_like(centers)
    )
    posterior = (a - lse[:, None]).double().exp()[1]
    assert posterior[0].item() == pytest.approx(first, rel=0.01 if dtype == FLOAT64 or columns == 10 else 0.1)
    assert posterior[1].item() == pytest.approx(1)


@BY_DTYPE
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", [0, 1, 2], ids=["mean", "log_var", "log_weight"])
def test_what_is_not_finite_is_where_the_reference_has_it(where: int, value: float, dtype: torch.dtype) -> None:
    inputs = mixture((40, 5, 9), dtype=dtype)
    inputs[where].view(-1)[3] = value
    for x, y in zip(OPERATORS.mixture_scores(*inputs), _reference.mixture_scores(*inputs), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-4, equal_nan=True)


@BY_DTYPE
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("which", [0, 1], ids=["grad_a", "grad_lse"])
def test_a_gradient_that_is_not_finite_is_where_the_reference_has_it(
    which: int, value: float, dtype: torch.dtype
) -> None:
    inputs = mixture((1030, 5, 9), dtype=dtype)
    gradients = received(inputs)
    gradients[which].view(-1)[7] = value
    actual = OPERATORS.mixture_scores_backward(*gradients, *inputs)
    expected = _reference.mixture_scores_backward(*gradients, *inputs)
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3, equal_nan=True)
        assert not bool(y.isfinite().all())


def test_shifting_every_log_density_changes_no_posterior() -> None:
    inputs = mixture((100, 10, 10), dtype=FLOAT64)
    a, lse = OPERATORS.mixture_scores(*inputs)
    inputs[2] = inputs[2] - 300
    shifted, shifted_lse = OPERATORS.mixture_scores(*inputs)
    torch.testing.assert_close(shifted - shifted_lse[:, None], a - lse[:, None], rtol=0, atol=1e-11)


# --- rows and threads -----------------------------------------------------------------------------------------------


@BY_DTYPE
@BY_SPREAD
@pytest.mark.parametrize("columns", [1, 10, 33])
def test_a_row_has_the_same_bits_alone_and_in_any_place(columns: int, spread: bool, dtype: torch.dtype) -> None:
    mean, log_var, *parameters = mixture((130, 11, columns), spread, dtype)
    a, lse = OPERATORS.mixture_scores(mean, log_var, *parameters)
    distances, index = OPERATORS.knn(mean, parameters[1], 3)
    nearest = OPERATORS.knn(mean, parameters[1], 1)[1]
    order = torch.randperm(130, generator=torch.Generator().manual_seed(0))
    for rows in (order, order[:65], *(torch.tensor([i]) for i in (0, 17, 63, 64, 129))):
        part = mean[rows], None if log_var is None else log_var[rows]
        some_a, some_lse = OPERATORS.mixture_scores(*part, *parameters)
        assert torch.equal(some_a, a[rows])
        assert torch.equal(some_lse, lse[rows])
        some_distances, some_index = OPERATORS.knn(part[0], parameters[1], 3)
        assert torch.equal(some_distances, distances[rows])
        assert torch.equal(some_index, index[rows])
        assert torch.equal(OPERATORS.knn(part[0], parameters[1], 1)[1], nearest[rows])
        assert torch.equal(
            OPERATORS.squared_distances(part[0], parameters[1]).sort(stable=True, dim=1)[0][:, :3], distances[rows]
        )


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@BY_DTYPE
@pytest.mark.parametrize("size", [(9001, 10, 10), (3000, 257, 33)], ids=["small", "large"])
def test_bits_do_not_depend_on_the_number_of_threads(
    size: tuple[int, int, int], dtype: torch.dtype, threads: Callable[[int], None]
) -> None:
    inputs = mixture(size, dtype=dtype)
    gradients = received(inputs)

    def results() -> list[Tensor]:
        return [
            *OPERATORS.mixture_scores(*inputs),
            *OPERATORS.mixture_scores_backward(*gradients, *inputs),
            OPERATORS.squared_distances(inputs[0], inputs[3]),
            *OPERATORS.knn(inputs[0], inputs[3], 5),
        ]

    threads(1)
    expected = results()
    for count in (2, 3, 7):
        threads(count)
        assert all(torch.equal(x, y) for x, y in zip(results(), expected, strict=True))


def test_parts_of_the_sums_are_added_in_order_also_where_they_are_kept_a_few_at_a_time() -> None:
    """16 chunks of 1024 rows are kept where the parameters are many."""
    rows = 17 * 1024 + 5
    wide = [x.repeat(1, 1100) if x.ndim == 2 else x for x in mixture((rows, 257, 1))]
    few = [x[:, :1].contiguous() if x.ndim == 2 else x for x in wide]
    grad_a = torch.randn(rows, 257, generator=torch.Generator().manual_seed(0))
    rest = torch.zeros(rows), torch.zeros_like(grad_a), torch.zeros(rows)
    many = OPERATORS.mixture_scores_backward(grad_a, *rest, *wide)
    one = OPERATORS.mixture_scores_backward(grad_a, *rest, *few)
    assert torch.equal(many[2], one[2])
    for x, y in zip(many[3:], one[3:], strict=True):
        assert torch.equal(x, y.expand_as(x))


# --- PyTorch --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@BY_SPREAD
def test_opcheck(spread: bool) -> None:
    inputs = mixture((5, 3, 4), spread)
    with_gradient = [x if x is None else x.requires_grad_() for x in mixture((5, 3, 4), spread)]
    torch.library.opcheck(OPERATORS.mixture_scores.default, with_gradient)
    torch.library.opcheck(OPERATORS.mixture_scores_backward.default, [*received(inputs), *inputs])
    torch.library.opcheck(OPERATORS.squared_distances.default, (with_gradient[0], with_gradient[3]))
    torch.library.opcheck(OPERATORS.knn.default, (inputs[0], inputs[3], 2))


@BY_SPREAD
def test_gradcheck(spread: bool) -> None:
    inputs = [x if x is None else x.requires_grad_() for x in mixture((6, 3, 5), spread, FLOAT64)]
    assert torch.autograd.gradcheck(_ops.mixture_scores, inputs)
    assert torch.autograd.gradcheck(_ops.squared_distances, (inputs[0], inputs[3]))
    assert torch.autograd.gradgradcheck(_ops.squared_distances, (inputs[0], inputs[3]))


def test_gradients_reach_what_needs_them_alone() -> None:
    mean, log_var, *parameters = mixture((6, 3, 5))
    parameters[1].requires_grad_()
    a, lse = _ops.mixture_scores(mean, log_var, *parameters)
    (a.sum() + lse.sum()).backward()
    assert parameters[1].grad is not None
    assert mean.grad is None


def test_double_backward_is_refused() -> None:
    inputs = [x.requires_grad_() for x in mixture((6, 3, 5), dtype=FLOAT64)]
    (gradient,) = torch.autograd.grad(_ops.mixture_scores(*inputs)[1].sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        gradient.sum().backward()


def test_the_nearest_have_no_gradient() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated: take the distances"):
        _ops.knn(x, x.detach(), 2)[0].sum().backward()


@BY_SPREAD
def test_torch_compile_takes_the_whole_graph(spread: bool) -> None:
    def loss(*inputs: Tensor) -> Tensor:
        a, lse = _ops.mixture_scores(*inputs)
        nearest = _ops.knn(inputs[0].detach(), inputs[3].detach(), 1)[1]
        return a.square().mean() - lse.mean() + _ops.squared_distances(inputs[0], inputs[3]).gather(1, nearest).mean()

    inputs = [x if x is None else x.requires_grad_() for x in mixture((40, 3, 5), spread)]
    leaves = [x for x in inputs if x is not None]
    expected = torch.autograd.grad(loss(*inputs), leaves)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for x, y in zip(torch.autograd.grad(compiled(*inputs), leaves), expected, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32_and_its_gradient_comes_back_in_half(dtype: torch.dtype) -> None:
    mean, log_var, *parameters = mixture((20, 3, 5), dtype=dtype)
    mean.requires_grad_()
    a, lse = _ops.mixture_scores(mean, log_var, *(x.float() for x in parameters))
    assert a.dtype == FLOAT32
    expected = OPERATORS.mixture_scores(mean.detach().float(), log_var.float(), *(x.float() for x in parameters))
    assert torch.equal(a.detach(), expected[0])
    assert torch.equal(lse.detach(), expected[1])
    lse.sum().backward()
    assert mean.grad is not None
    assert mean.grad.dtype == dtype
    assert _ops.squared_distances(mean, parameters[1]).dtype == FLOAT32
    assert _ops.knn(mean.detach(), parameters[1], 2)[0].dtype == FLOAT32


def strided(x: Tensor) -> Tensor:
    return torch.stack((x, x), -1)[..., 0]


@pytest.mark.parametrize("layout", [strided, lambda x: x.T.contiguous().T, lambda x: x[:1].expand(x.shape)], ids="sTe")
def test_a_layout_changes_no_bit(layout: Callable[[Tensor], Tensor]) -> None:
    inputs = [layout(x) if x.ndim == 2 else strided(x) for x in mixture((20, 3, 5))]
    dense = [x.contiguous() for x in inputs]
    for x, y in zip(_ops.mixture_scores(*inputs), _ops.mixture_scores(*dense), strict=True):
        assert torch.equal(x, y)
    assert torch.equal(_ops.squared_distances(inputs[0], inputs[3]), _ops.squared_distances(dense[0], dense[3]))
    assert torch.equal(_ops.knn(inputs[0], inputs[3], 2)[1], _ops.knn(dense[0], dense[3], 2)[1])


def test_tensors_may_begin_anywhere() -> None:
    inputs = [torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape) for x in mixture((70, 3, 5))]
    for x, y in zip(_ops.mixture_scores(*inputs), _ops.mixture_scores(*mixture((70, 3, 5))), strict=True):
        assert torch.equal(x, y)


def test_kernels_leave_subnormal_numbers_to_others() -> None:
    tiny = torch.tensor(1e-40)
    _ops.mixture_scores(*mixture((5, 2, 3)))
    assert float(tiny * 0.5) != 0
