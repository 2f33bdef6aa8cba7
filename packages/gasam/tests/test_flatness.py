"""Eigenvalues and balls against their closed forms, against another implementation, and that they leave no trace."""

from __future__ import annotations

import copy
import io
import math
import random
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gasam.flatness import BallCurve, loss_in_ball, plot, top_eigenvalue

if TYPE_CHECKING:
    from collections.abc import Iterator


class Quadratic(nn.Module):
    """w^T A w / 2 in float64, around w = 0 or elsewhere, with the weights in two tensors."""

    def __init__(self, matrix: Tensor, at: Tensor | None = None) -> None:
        super().__init__()
        start = torch.zeros(len(matrix), dtype=matrix.dtype) if at is None else at
        self.a = nn.Parameter(start[:1].clone())
        self.b = nn.Parameter(start[1:].clone())
        self.matrix = matrix

    def forward(self) -> Tensor:
        w = torch.cat([self.a, self.b])
        return w @ self.matrix @ w / 2


def scaled(model: nn.Module, batch: float) -> Tensor:
    return batch * model()


def symmetric(n: int, seed: int, kind: str = "indefinite") -> Tensor:
    matrix = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if kind == "indefinite":
        return (matrix + matrix.T) / 2
    return matrix @ matrix.T * (1 if kind == "positive" else -1)


def classify(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def batches(
    n: int = 3, shape: tuple[int, ...] = (20,), dtype: torch.dtype = torch.float32
) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, *shape, generator=generator, dtype=dtype), torch.randint(0, 5, (16,), generator=generator))
        for _ in range(n)
    ]


def mlp(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 5)).to(dtype)


class LSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(4, 8, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Raising(torch.autograd.Function):
    """tanh whose second derivative is an error, as that of cuDNN's recurrent layers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return Slope.apply(grad, *ctx.saved_tensors)


class Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, y: Tensor) -> Tensor:
        return grad * (1 - y * y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise NotImplementedError("no double backward")


class Silent(torch.autograd.Function):
    """tanh whose second derivative is lost: autograd.grad does not reach the error of `once_differentiable`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return grad * (1 - y * y)


class OnceDifferentiable(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.layers = mlp()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[2](self.function.apply(self.layers[0](x)))


@pytest.mark.parametrize("hvp", ["exact", "difference", "auto"])
@pytest.mark.parametrize("kind", ["indefinite", "positive", "negative"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_eigenvalues_of_quadratics_are_the_algebraically_largest_in_descending_order(
    k: int, kind: str, hvp: str
) -> None:
    for n in (3, 17, 60):
        matrix = symmetric(n, seed=n, kind=kind)
        model = Quadratic(matrix, at=torch.linspace(-1, 1, n, dtype=torch.float64))
        found = top_eigenvalue(model, scaled, [1.0], k=k, tol=1e-7, hvp=hvp)
        torch.testing.assert_close(found, torch.linalg.eigvalsh(matrix).flip(0)[:k], rtol=1e-6, atol=1e-6)


def test_multiple_eigenvalues_are_found_as_often_as_they_occur() -> None:
    matrix = torch.diag(torch.tensor([1.0, 5, 5, 1, 1, 2], dtype=torch.float64))
    expected = torch.tensor([5.0, 5, 2, 1], dtype=torch.float64)
    torch.testing.assert_close(top_eigenvalue(Quadratic(matrix), scaled, [1.0], k=4), expected)
    assert top_eigenvalue(Quadratic(torch.eye(4)), scaled, [1.0], k=3).tolist() == pytest.approx([1, 1, 1])


def test_a_linear_loss_has_no_curvature() -> None:
    model = nn.Linear(3, 1)
    assert top_eigenvalue(model, lambda model, x: model(x).sum(), [torch.ones(2, 3)], k=2).tolist() == [0, 0]


def test_few_iterations_underestimate_and_a_loose_tolerance_saves_products() -> None:
    matrix = symmetric(60, seed=0)
    largest = torch.linalg.eigvalsh(matrix)[-1]
    counts: list[int] = []

    def counted(model: nn.Module, batch: float) -> Tensor:
        counts[-1] += 1
        return batch * model()

    def search(**options: Any) -> Tensor:
        counts.append(0)
        return top_eigenvalue(Quadratic(matrix), counted, [1.0], **options)

    assert search(iterations=3) < search(iterations=6) < largest
    assert counts == [3, 6]
    assert (largest - search(tol=1e-2)) / largest < 1e-2
    assert (largest - search(tol=1e-6)) / largest < 1e-6
    search(tol=0, iterations=1000)
    assert counts[2] < counts[3] < counts[4] == 60


def test_difference_agrees_with_the_exact_products_of_an_mlp() -> None:
    for dtype in (torch.float32, torch.float64):
        model, data = mlp(dtype), batches(dtype=dtype)
        exact, difference = (
            top_eigenvalue(model, classify, data, k=3, tol=1e-5, hvp=h) for h in ("exact", "difference")
        )
        assert exact.dtype == dtype
        torch.testing.assert_close(difference, exact, rtol=1e-2, atol=0)


def test_eigenvalue_of_an_mlp_is_that_of_its_full_hessian() -> None:
    model, data = mlp(torch.float64), batches(dtype=torch.float64)
    names = [name for name, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]

    def loss(flat: Tensor) -> Tensor:
        parts = zip(names, flat.split(sizes), model.parameters(), strict=True)
        weights = {name: part.view(p.shape) for name, part, p in parts}
        losses = [cross_entropy(torch.func.functional_call(model, weights, x), y) for x, y in data]
        return torch.stack(losses).mean()

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    expected = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat)).flip(0)[:3]
    torch.testing.assert_close(top_eigenvalue(model, classify, data, k=3, tol=1e-7), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("model", ["mlp", "lstm"])
def test_eigenvalues_agree_with_hessian_eigenthings(model: str) -> None:
    pytest.importorskip("hessian_eigenthings", reason="needs the peer hessian-eigenthings")
    from hessian_eigenthings.algorithms import lanczos
    from hessian_eigenthings.operators import HessianOperator

    net, data = (mlp(), batches()) if model == "mlp" else (LSTM(), batches(shape=(6, 4)))
    operator = HessianOperator(net, data, classify)
    theirs = lanczos(operator, k=3, max_iter=60, which="LA", seed=0, reorthogonalize=True).eigenvalues
    ours = top_eigenvalue(net, classify, data, k=3)
    np.testing.assert_allclose(ours, np.sort(np.asarray(theirs))[::-1], rtol=1e-2)


def test_lstm_has_the_same_eigenvalue_by_both_products() -> None:
    model, data = LSTM(), batches(shape=(6, 4))
    exact, difference = (top_eigenvalue(model, classify, data, hvp=h) for h in ("exact", "difference"))
    torch.testing.assert_close(difference, exact, rtol=1e-2, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cudnn_lstm_has_the_eigenvalue_that_it_has_on_the_cpu() -> None:
    model, data = LSTM(), batches(shape=(6, 4))
    expected = top_eigenvalue(model, classify, data)
    found = top_eigenvalue(model.cuda(), lambda m, b: classify(m, (b[0].cuda(), b[1].cuda())), data)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-2, atol=0)


def test_auto_differentiates_attention_twice() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, activation="gelu", batch_first=True)
    model, data = nn.Sequential(layer, nn.Flatten(), nn.Linear(48, 5)), batches(shape=(6, 8))
    exact, auto, difference = (top_eigenvalue(model, classify, data, hvp=h) for h in ("exact", "auto", "difference"))
    assert torch.equal(auto, exact)
    torch.testing.assert_close(difference, exact, rtol=1e-2, atol=0)


@pytest.mark.parametrize("function", [Raising, Silent])
def test_auto_takes_differences_where_double_backward_is_not_implemented(function: type) -> None:
    model, data = OnceDifferentiable(function), batches()
    auto, difference = (top_eigenvalue(model, classify, data, hvp=h) for h in ("auto", "difference"))
    assert torch.equal(auto, difference)
    torch.testing.assert_close(auto, top_eigenvalue(mlp(), classify, data), rtol=1e-2, atol=0)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice: use hvp='difference'"):
        top_eigenvalue(model, classify, data, hvp="exact")


def test_batches_are_weighted_equally() -> None:
    model = Quadratic(symmetric(9, seed=2, kind="positive"), at=torch.ones(9, dtype=torch.float64))
    one = top_eigenvalue(model, scaled, [3.0], tol=1e-8)
    torch.testing.assert_close(top_eigenvalue(model, scaled, [1.0, 6.0, 2.0], tol=1e-8), one)
    x, y = batches(1)[0]
    uneven = [(x[:3], y[:3]), (x[3:], y[3:])]
    net = mlp()
    mean = sum(classify(net, batch).item() for batch in uneven) / 2
    curve = loss_in_ball(net, classify, uneven, [0.0], directions=1, steps=1)
    assert curve.random_mean.item() == curve.worst.item() == pytest.approx(mean, rel=1e-6)


def test_frozen_parameters_are_no_variables() -> None:
    matrix = symmetric(6, seed=3)
    model = Quadratic(matrix)
    model.a.requires_grad_(False)
    expected = torch.linalg.eigvalsh(matrix[1:, 1:])[-1:]
    torch.testing.assert_close(top_eigenvalue(model, scaled, [1.0], tol=1e-8), expected)
    model.b.requires_grad_(False)
    with pytest.raises(ValueError, match="model must have parameters that require gradients"):
        top_eigenvalue(model, scaled, [1.0])


@pytest.mark.parametrize("segments", ["global", "tensor"])
def test_random_points_lie_on_the_ball_and_the_mean_is_the_trace(segments: str) -> None:
    matrix = symmetric(40, seed=4)
    model = Quadratic(matrix)
    distances = []

    def loss(model: Quadratic, batch: float) -> Tensor:
        if not torch.is_grad_enabled():
            distances.append((model.a.norm().item(), model.b.norm().item()))
        return model()

    n = 2000
    curve = loss_in_ball(model, loss, [1.0], [0.5], directions=n, steps=1, segments=segments)
    # A quadratic form of a uniform unit vector: mean trace / N, variance 2 (||A||^2 - trace^2 / N) / (N (N + 2)).
    trace, size = matrix.trace().item(), len(matrix)
    if segments == "tensor":
        assert {round(a, 9) for a, _ in distances[:n]} == {round(0.5 / math.sqrt(size), 9)}
    assert all(math.hypot(a, b) == pytest.approx(0.5) for a, b in distances[:n])
    variance = 2 * (matrix.square().sum().item() - trace**2 / size) / (size * (size + 2))
    deviation = 0.5**2 / 2 * math.sqrt(variance / n)
    assert abs(curve.random_mean.item() - 0.5**2 / 2 * trace / size) < 4 * deviation  # p < 1e-4 and the seed is fixed


def test_random_points_of_the_largest_element_are_corners() -> None:
    model = Quadratic(torch.eye(40, dtype=torch.float64))
    curve = loss_in_ball(model, scaled, [1.0], [0.1, 0.2], norm=math.inf)
    for losses in (curve.random_mean, curve.random_max, curve.worst):
        torch.testing.assert_close(losses, torch.tensor([0.2, 0.8], dtype=torch.float64))


@pytest.mark.parametrize("kind", ["positive", "indefinite"])
def test_worst_of_a_quadratic_at_its_centre_is_half_its_largest_eigenvalue_times_the_radius_squared(kind: str) -> None:
    matrix = symmetric(12, seed=5, kind=kind)
    radii = torch.tensor([0.0, 0.1, 1.0, 3.0], dtype=torch.float64)
    curve = loss_in_ball(Quadratic(matrix), scaled, [1.0], radii, steps=300)
    torch.testing.assert_close(curve.worst, torch.linalg.eigvalsh(matrix)[-1] * radii**2 / 2, rtol=1e-6, atol=0)


def test_worst_of_a_quadratic_elsewhere_solves_the_trust_region_problem() -> None:
    matrix = symmetric(12, seed=6, kind="positive")
    at = torch.linspace(-1, 1, 12, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(matrix)
    slope = vectors.T @ (matrix @ at)
    for radius in (0.3, 2.0):
        low, high = values[-1].item(), values[-1].item() + slope.norm().item() / radius
        for _ in range(200):  # e = (mu - A)^-1 g, ||e|| = radius with mu beyond the largest eigenvalue
            middle = (low + high) / 2
            far = (slope / (middle - values)).norm().item() > radius
            low, high = (middle, high) if far else (low, middle)
        e = vectors @ (slope / (high - values))
        expected = (at + e) @ matrix @ (at + e) / 2
        curve = loss_in_ball(Quadratic(matrix, at), scaled, [1.0], [radius], steps=100)
        assert curve.worst.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("norm", [2, math.inf])
@pytest.mark.parametrize("segments", ["global", "tensor", "channel"])
def test_worst_grows_with_the_radius_stays_in_the_ball_and_is_beyond_what_is_random(segments: str, norm: float) -> None:
    model, data = mlp(), batches()
    start = [p.detach().clone() for p in model.parameters()]
    total = sum(p.numel() for p in start)
    limit = 0.0

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        offsets = [p.detach() - w for p, w in zip(model.parameters(), start, strict=True)]
        if norm == math.inf:
            assert all(x.abs().max() <= limit * 1.001 for x in offsets)
        elif segments == "global":
            assert torch.cat([x.flatten() for x in offsets]).norm() <= limit * 1.001
        else:
            for x in offsets:
                rows = x if segments == "channel" and x.ndim > 1 else x[None]
                assert (rows.flatten(1).norm(dim=1) <= limit * math.sqrt(rows[0].numel() / total) * 1.001).all()
        return classify(model, batch)

    radii = [0.5, 0.05, 0.0, 0.2]
    singles = []
    options: dict[str, Any] = {"norm": norm, "segments": segments, "directions": 3}
    for limit in radii:
        singles += [loss_in_ball(model, loss, data, [limit], steps=2, **options)]
    curve = loss_in_ball(model, classify, data, radii, steps=2, **options)
    assert curve.radii.tolist() == radii
    assert curve.random_mean.tolist() == [one.random_mean.item() for one in singles]
    order = curve.radii.argsort()
    assert (curve.worst[order].diff() > 0).all()
    assert (curve.worst >= curve.random_max).all()
    assert (curve.random_max >= curve.random_mean).all()
    assert (curve.worst >= torch.stack([one.worst for one in singles]).flatten() * 0.99).all()
    more = loss_in_ball(model, classify, data, [0.2], steps=20, **options)
    assert more.worst.item() >= singles[3].worst.item()


def test_a_loss_that_overflows_is_infinite_not_lost() -> None:
    model = Quadratic(torch.eye(3, dtype=torch.float64))
    curve = loss_in_ball(model, lambda model, batch: torch.log(1 - model()), [1.0], [0.1, 5.0], directions=2)
    assert curve.worst[0].isfinite()
    assert curve.worst[1] == curve.random_max[1] == math.inf


class Noisy(nn.Module):
    """Everything that a pass over the data changes: statistics, counters, dropout, a mode, replaced buffers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 5))
        self.register_buffer("calls", torch.zeros(()))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        self.layers[3].p = 0.2 + 0.2 * random.random()
        y = self.layers(x) + 0.01 * self.calls
        self.layers[2].eval()
        return y


def bits(model: nn.Module) -> dict[str, Any]:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state |= {f"{name}.grad": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    state |= {"torch": torch.get_rng_state(), "python": random.getstate()}
    return state | {f"{name}.mode": module.training for name, module in model.named_modules()}


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("what", ["exact", "difference", "ball"])
def test_everything_comes_back_bitwise_also_when_the_loss_raises(what: str, raises: bool) -> None:
    model, data = Noisy(), batches()
    model.layers[4].eval()
    classify(model, data[0]).backward()
    model.layers[0].bias.grad = None
    model.layers[2].train()
    before = bits(model)
    same = {name: (p, p.data_ptr(), p.grad) for name, p in model.named_parameters()} | {"calls": (model.calls, 0, None)}
    calls = 0

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        if raises and calls > 12:
            raise OSError("no more data")
        return classify(model, batch)

    def measure() -> None:
        if what == "ball":
            loss_in_ball(model, loss, data, [0.1, 0.5], directions=3)
        else:
            top_eigenvalue(model, loss, data, hvp=what, iterations=8)

    if raises:
        with pytest.raises(OSError, match="no more data"):
            measure()
    else:
        measure()
    assert calls > 12
    after = bits(model)
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value) if isinstance(value, Tensor) else after[name] == value, name
    for name, p in model.named_parameters():
        assert same[name][0] is p
        assert same[name][1] == p.data_ptr()
        assert same[name][2] is p.grad
    assert model.calls is same["calls"][0]


def test_dropout_and_statistics_are_the_same_in_every_pass() -> None:
    model, data = Noisy(), batches()
    loss_of_the_model = sum(classify(copy.deepcopy(model), batch).item() for batch in data[:1])
    torch.manual_seed(5)
    curve = loss_in_ball(model, classify, data[:1], [0.0, 0.0, 0.3], directions=4)
    assert curve.random_mean[0] == curve.random_max[0] == curve.worst[0] == curve.random_max[1]
    assert abs(curve.worst[0].item() - loss_of_the_model) > 1e-4  # other random numbers: dropout is active
    again = loss_in_ball(model, classify, data[:1], [0.0, 0.3], directions=4)
    assert again.worst.tolist() == [curve.worst[0], curve.worst[2]]
    assert torch.equal(top_eigenvalue(model, classify, data), top_eigenvalue(model, classify, data))


def test_results_depend_on_the_seed_alone() -> None:
    model, data = mlp(), batches()
    first, second, other = (loss_in_ball(model, classify, data, [0.3], seed=seed) for seed in (1, 1, 2))
    assert first.random_mean == second.random_mean != other.random_mean
    with torch.no_grad():
        eigenvalues = [top_eigenvalue(model, classify, data, seed=seed) for seed in (1, 1, 2)]
    assert eigenvalues[0] == eigenvalues[1]
    torch.testing.assert_close(eigenvalues[0], eigenvalues[2], rtol=2e-3, atol=0)


def test_half_precision_is_refused_where_a_step_would_be_lost_in_rounding() -> None:
    model, data = mlp(torch.bfloat16), batches(dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"'0.weight' is torch.bfloat16: use model.float\(\)"):
        loss_in_ball(model, classify, data, [0.1])
    with pytest.raises(ValueError, match="hvp='difference' needs float32"):
        top_eigenvalue(model, classify, data, hvp="difference")
    expected = top_eigenvalue(mlp(), classify, batches())
    torch.testing.assert_close(top_eigenvalue(model, classify, data), expected, rtol=0.1, atol=0)


def generator() -> Iterator[float]:
    yield 1.0


@pytest.mark.parametrize("measure", [top_eigenvalue, lambda *args: loss_in_ball(*args, [0.1])])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": generator()}, TypeError, "data must be re-iterable, such as a list or a DataLoader, got generator"),
        ({"data": 3}, TypeError, "data must be re-iterable"),
        ({"data": []}, ValueError, "data must hold at least one batch"),
        ({"model": scaled}, TypeError, "model must be a torch.nn.Module, got function"),
        ({"loss": lambda model, batch: 1.0}, ValueError, "loss must return a scalar tensor, got float"),
        ({"loss": lambda model, batch: model.b}, ValueError, r"loss must return a scalar tensor, got \(3,\)"),
        ({"loss": lambda model, batch: torch.ones(())}, ValueError, "loss must depend on the parameters"),
    ],
)
def test_bad_input_is_refused(measure: Any, change: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"model": Quadratic(torch.eye(4)), "loss": scaled, "data": [1.0]} | change
    with pytest.raises(error, match=message):
        measure(given["model"], given["loss"], given["data"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": 1.0}, TypeError, "k must be an integer, got 1.0"),
        ({"k": 5}, ValueError, "k must be at most iterations and the number of weights, got 5"),
        ({"k": 3, "iterations": 2}, ValueError, "k must be at most iterations"),
        ({"iterations": 0}, ValueError, "iterations must be at least 1"),
        ({"tol": -1.0}, ValueError, "tol must be non-negative and finite, got -1.0"),
        ({"step": 0.0}, ValueError, "step must be positive and finite, got 0.0"),
        ({"hvp": "forward"}, ValueError, "hvp must be 'auto', 'exact' or 'difference', got 'forward'"),
    ],
)
def test_bad_options_of_the_eigenvalue_are_refused(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        top_eigenvalue(Quadratic(torch.eye(4)), scaled, [1.0], **options)


@pytest.mark.parametrize(
    ("radii", "options", "error", "message"),
    [
        ([], {}, ValueError, "radii must be one or more non-negative finite numbers"),
        ([0.1, -0.1], {}, ValueError, r"radii must be .*, got \[0.1, -0.1\]"),
        ([math.inf], {}, ValueError, "radii must be"),
        ([1.0], {"norm": 1}, ValueError, "norm must be 2 or math.inf, got 1"),
        ([1.0], {"segments": "group"}, ValueError, "segments must be 'global', 'tensor' or 'channel', got 'group'"),
        ([1.0], {"directions": 0}, ValueError, "directions must be at least 1"),
        ([1.0], {"steps": 2.5}, TypeError, "steps must be an integer, got 2.5"),
    ],
)
def test_bad_options_of_the_ball_are_refused(
    radii: list[float], options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        loss_in_ball(Quadratic(torch.eye(4)), scaled, [1.0], radii, **options)


def test_a_hessian_that_is_not_finite_is_an_error() -> None:
    model = Quadratic(torch.eye(4))
    with pytest.raises(ValueError, match="the Hessian must be finite"):
        top_eigenvalue(model, lambda model, batch: model().sqrt(), [1.0])


def curve(scale: float) -> BallCurve:
    radii = torch.linspace(0, 2, 9, dtype=torch.float64)
    return BallCurve(radii, 0.1 + 0.05 * scale * radii**2, 0.1 + 0.08 * scale * radii**2, 0.1 + scale * radii**2)


def test_plot_draws_what_it_is_given() -> None:
    axes = plot({"SGD": curve(2.0), "GA-SAM": curve(1.0)})
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[:2] == ["SGD", "GA-SAM"]
    assert axes.get_yscale() == "log"
    assert axes.get_xscale() == "linear"
    assert any(np.array_equal(line.get_ydata(), curve(2.0).worst) for line in axes.lines)
    picture = io.BytesIO()
    axes.figure.savefig(picture)
    assert picture.getvalue().startswith(b"\x89PNG")
    assert plot(curve(1.0), ax=axes) is axes
    assert len(plot([curve(1.0), curve(2.0)]).collections) == 2
    with pytest.raises(ValueError, match="curves must not be empty"):
        plot([])


def test_plot_names_the_extra_where_matplotlib_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"gasam\[plot\]"):
        plot(curve(1.0))
