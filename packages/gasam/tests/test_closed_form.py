"""Whole steps of GASAM in closed form: the definition in NumPy and float64, for every option of the ascent."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gasam import GASAM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class Regression:
    """Linear least squares in two groups, whose gradient NumPy knows."""

    def __init__(self) -> None:
        generator = np.random.default_rng(3)
        self.x, self.y = generator.normal(size=(9, 4)), generator.normal(size=(9, 3))
        self.w = [generator.normal(size=(3, 4)), generator.normal(size=3), generator.normal(size=(4, 2, 2))]
        self.group = [0, 0, 1]

    def tensors(self) -> tuple[list[nn.Parameter], Callable[[], Tensor]]:
        params = [nn.Parameter(torch.from_numpy(w.copy())) for w in self.w]
        x, y = torch.from_numpy(self.x), torch.from_numpy(self.y)

        def closure() -> Tensor:
            a, b, c = params
            loss = (x @ (a.T * 30) + b - y).square().sum() / 18 + 0.01 * c.pow(3).sum()
            loss.backward()
            return loss

        return params, closure

    def gradient(self, w: Sequence[np.ndarray]) -> list[np.ndarray]:
        residual = (self.x @ (w[0].T * 30) + w[1] - self.y) / 9
        return [residual.T @ self.x * 30, residual.sum(0), 0.03 * w[2] ** 2]


@dataclass
class Definition:
    """The options of section "algorithm" of the README, in NumPy."""

    a: float = 0.5
    b: float = -1.0
    reference: str = "running"
    segments: str = "tensor"
    norm: float = 2
    steps: int = 1
    risk: str = "last"
    adaptive: bool | str = False
    clip: float = 10.0
    mean: float = 0.0  # running, of the strength
    t: int = 0

    def step(self, problem: Regression, w: list[np.ndarray], rho: Sequence[float], lr: float) -> list[np.ndarray]:
        """The weights after a step of SGD."""
        ends = np.cumsum([x.size for x in w])

        def split(flat: np.ndarray) -> list[np.ndarray]:
            return [part.reshape(x.shape) for part, x in zip(np.split(flat, ends[:-1]), w, strict=True)]

        def join(parts: Iterable[Any]) -> np.ndarray:
            return np.concatenate([(part + 0 * x).ravel() for part, x in zip(parts, w, strict=True)])

        def over(values: np.ndarray) -> np.ndarray:
            return np.bincount(segment, values)[segment]

        def gradient(offset: np.ndarray) -> np.ndarray:
            return join(problem.gradient(split(weights + offset)))

        numbers = {
            "tensor": range(len(w)),
            "group": problem.group,
            "global": [0] * len(w),
            "channel": [10 * k + np.arange(len(x)).reshape(-1, *[1] * (x.ndim - 1)) for k, x in enumerate(w)],
        }
        segment = join(numbers[self.segments]).astype(int)
        weights, n = join(w), ends[-1]
        scale = np.where(join(self.adaptive is True and x.ndim >= 2 for x in w), np.abs(weights) + 0.01, 1.0)
        if self.adaptive == "layer":
            scale = np.sqrt(over(weights**2))
        d = over(np.ones(n))
        gradients = [gradient(np.zeros(n))]
        u = scale * gradients[0]
        r, now = np.sqrt(over(u**2) / d), np.sqrt((u**2).sum() / n)
        self.t += 1
        self.mean = 0.99 * self.mean + 0.01 * now
        reference = {"running": self.mean / (1 - 0.99**self.t), "global": now, "none": 1.0}[self.reference]
        ratio = r / (reference + 1e-12)
        if self.reference != "none":
            ratio = np.clip(ratio, 1 / self.clip, self.clip)
        exponent = self.a - (0 if self.norm == 2 else 0.5)
        s = join(rho[k] for k in problem.group) * (d / n) ** exponent * ratio**self.b
        e = np.zeros(n)
        for _ in range(self.steps):
            u = scale * gradients[-1]
            move = s * scale * (u / (np.sqrt(over(u**2)) + 1e-12) if self.norm == 2 else np.sign(u))
            e = e + (move if self.steps == 1 else 1.5 / self.steps * move)
            if self.steps > 1:
                size = np.sqrt(over((e / scale) ** 2)) if self.norm == 2 else np.abs(e / scale)
                e = e * np.minimum(1, s / size)
            gradients.append(gradient(e))
        used = gradients[-1] if self.risk == "last" else np.mean(gradients, 0)
        return split(weights - lr * used)


CASES: list[dict[str, Any]] = [
    *({"segments": x, "reference": y} for x in ("tensor", "group", "global", "channel") for y in ("running", "global")),
    *(
        {"b": b, "a": a, "reference": y, "norm": n}
        for b, a, y, n in itertools.product((-1.0, 0.0, 0.5), (0.0, 0.5), ("running", "none"), (2, math.inf))
    ),
    *({"adaptive": x, "steps": k, "norm": n} for x in (True, "layer") for k in (1, 3) for n in (2, math.inf)),
    *({"steps": k, "risk": "average", "segments": x} for k in (1, 2, 5) for x in ("tensor", "channel")),
    {"clip": 1.5},
    {"clip": math.inf},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_steps_have_the_closed_form(case: dict[str, Any]) -> None:
    problem = Regression()
    rho, lr, count = (0.3, 0.7), 0.01, 4
    expected, definition = problem.w, Definition(**case)
    for _ in range(count):
        expected = definition.step(problem, expected, rho, lr)
    names = {"a": "size_exponent", "b": "strength_exponent", "clip": "strength_clip"}
    params, closure = problem.tensors()
    groups = [{"params": params[:2], "rho": rho[0]}, {"params": params[2:], "rho": rho[1]}]
    optimizer = GASAM(groups, torch.optim.SGD, lr=lr, **{names.get(k, k): v for k, v in case.items()})
    for _ in range(count):
        optimizer.step(closure)
    for p, w in zip(params, expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-12, atol=1e-12)
