"""The package against others that do a part of it: pytorch_optimizer, adversarial-robustness-toolbox, what the tests of
cleverhans know, and authors' code whose results lie in `golden`.

Each file of `golden` names a repository and the commit that ran, once, on the problem below, in float64: it has the
loss of each of 20 steps, and the weights that they led to.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from paramcorrupt import Defense, corruption, relative
from paramcorrupt._projection import project_

if TYPE_CHECKING:
    from collections.abc import Callable

GOLDEN = Path(__file__).parent / "golden"
STEPS = 20


# --- training: SAM, AWP, AMP ----------------------------------------------------------------------------------------


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    """Numbers in [-1, 1] that look random, out of integers."""
    k = torch.arange(1, math.prod(shape) + 1)
    return (((k * k * 31 + (k + seed) * (17 + seed)) % 211).double() / 105 - 1).view(shape)


def perceptron(dtype: torch.dtype = torch.float64) -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    with torch.no_grad():
        for seed, p in enumerate(model.parameters()):
            p.copy_(numbers(tuple(p.shape), seed))
    return model


def closure_of(model: nn.Module, optimizer: Any, t: int) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        x, y = numbers((8, 6), 10 + t), (torch.arange(8) ** 2 + t) % 3
        loss = cross_entropy(model(x.to(next(model.parameters()).dtype)), y)
        loss.backward()
        return loss

    return closure


def train(model: nn.Module, optimizer: Any) -> tuple[Tensor, Tensor]:
    """The clean losses, and the weights in the end."""
    losses = [optimizer.step(closure_of(model, optimizer, t)).detach() for t in range(STEPS)]
    return torch.stack(losses), flat(model)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def golden(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return loaded


def assert_trains_alike(losses: Tensor, weights: Tensor, source: dict[str, Any]) -> None:
    torch.testing.assert_close(losses, torch.tensor(source["losses"], dtype=losses.dtype), rtol=0, atol=1e-6)
    torch.testing.assert_close(weights, torch.tensor(source["weights"], dtype=weights.dtype), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rho", [0.05, 0.5])
def test_sam_of_pytorch_optimizer_takes_the_same_steps(rho: float, dtype: torch.dtype) -> None:
    reference = pytest.importorskip("pytorch_optimizer", reason="pytorch_optimizer is not installed").SAM
    ours, theirs, plain = (perceptron(dtype) for _ in range(3))
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
    sam = {"steps": 1, "risk": "last", "step_size": 1}
    _, weights = train(ours, Defense(ours, SGD, eps=rho, **sam, **options))
    _, without = train(plain, SGD(plain.parameters(), **options))
    optimizer = reference(theirs.parameters(), SGD, rho=rho, **options)
    for t in range(STEPS):
        closure = closure_of(theirs, optimizer, t)
        closure()
        optimizer.first_step()
        closure()
        optimizer.second_step()
    torch.testing.assert_close(weights, flat(theirs), rtol=0, atol=1e-6)
    assert (weights - without).abs().max() > 1e-3


def test_awp_of_its_authors_takes_the_same_steps() -> None:
    source, model = golden("csdongxian-awp"), perceptron()
    gamma, rest = source["options"]["gamma"], {k: source["options"][k] for k in ("lr", "momentum")}
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim == 1], "perturb": False},
    ]
    options = {"scope": "tensor", "steps": 1, "risk": "last", "step_size": 1}
    assert_trains_alike(*train(model, Defense(groups, SGD, eps=relative(gamma), **options, **rest)), source)


def test_amp_of_its_authors_takes_the_same_steps() -> None:
    source, model = golden("hiyouga-amp-regularizer"), perceptron()
    rest = dict(source["options"])
    eps, inner_lr, steps = (rest.pop(name) for name in ("epsilon", "inner_lr", "inner_iter"))
    options = {"scope": "tensor", "ascent": "raw", "inner_lr": inner_lr, "steps": steps, "risk": "last"}
    assert_trains_alike(*train(model, Defense(model, SGD, eps=eps, **options, **rest)), source)


# --- attacks on inputs: rows, each on its own -----------------------------------------------------------------------


def optimize_linear(grad: Tensor, eps: float, norm: float) -> Tensor:
    """The change of each row that raises a linear function most, by its name in cleverhans."""
    return torch.stack([corruption([row], eps=eps, p=norm).dense()["0"] for row in grad])


@pytest.mark.parametrize(
    ("grad", "norm", "objective"),
    [
        ([[1.0, -2.0]], math.inf, 3.0),
        ([[0.5**0.5, -(0.5**0.5)]], 2, 1.0),
        ([[1.0, -2.0]], 1, 2.0),
        ([[2.0, -2.0]], 1, 2.0),
    ],
)
def test_linear_functions_rise_as_the_tests_of_cleverhans_say(
    grad: list[list[float]], norm: float, objective: float
) -> None:
    eta = optimize_linear(torch.tensor(grad), 1.0, norm)
    assert (torch.tensor(grad) * eta).sum().item() == pytest.approx(objective, rel=1e-6)
    assert eta.norm(norm).item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("eps", [0, 0.1, 1.0, 3])
@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_each_row_has_the_norm_that_the_tests_of_cleverhans_ask_for(norm: float, eps: float) -> None:
    grad = torch.randn(100, 3, 2, generator=torch.Generator().manual_seed(0))
    eta = optimize_linear(grad, eps, norm)
    torch.testing.assert_close(eta.flatten(1).norm(norm, dim=1), torch.full((100,), float(eps)))
    if norm == math.inf:
        torch.testing.assert_close(eta.abs(), torch.full_like(eta, eps))


@pytest.mark.parametrize("name", ["projection_l1_1", "projection_l1_2"])
@pytest.mark.parametrize("eps", [0.3, 2.0, 50.0])
def test_projections_onto_the_l1_ball_are_those_of_art(name: str, eps: float) -> None:
    theirs = getattr(pytest.importorskip("art.utils", reason="needs adversarial-robustness-toolbox"), name)
    values = torch.randn(6, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values[0, :20] = values[0, 20:].abs()  # ties
    for row, expected in zip(values, theirs(values.numpy().copy(), eps), strict=True):
        a = [row[:13].clone(), row[13:].clone()]
        project_(a, eps, 1)
        torch.testing.assert_close(torch.cat(a), torch.from_numpy(expected), rtol=1e-9, atol=1e-12)
