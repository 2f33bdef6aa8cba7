"""Accuracy under noise and white-box attacks: ours beside KMeans, a Gaussian mixture and ClustPy's VaDE."""

from __future__ import annotations

import statistics
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from harness import FULL, Context, Curves, Figure, Outcome, Study, Workload
from material import PACKAGES as PACKAGES
from material import Set, clustpy_vade, dense, digits, mnist, quietly
from runs import LARGE, OURS, SMALL
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from vade_robust import RobustVaDE, VaDE
from vade_robust.robustness import report

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

ATTACKS = ("gaussian", "salt_pepper", "fgsm", "pgd")
EPS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
PEER = "ClustPy VaDE"
METHODS = (OURS, f"{OURS}, adversarial", "VaDE", "KMeans", "GaussianMixture diag", PEER)


class Attacked:
    """ClustPy's mixture at the encoder's mean, as it stands, for the label-free margin: no sampling."""

    def __init__(self, model: Any) -> None:
        self.network = model.neural_network_trained_
        self.weights = torch.as_tensor(model.vade_weights_ if hasattr(model, "vade_weights_") else model.weights_)
        self.centers = torch.as_tensor(model.vade_cluster_centers_)
        self.log_scales = torch.as_tensor(model.vade_covariances_)  # it calls logarithms covariances

    def __call__(self, x: Tensor) -> Tensor:
        mean = self.network.encode(x)[0]
        squares = (mean[:, None] - self.centers).square() / self.log_scales.exp()
        return self.weights.log().float() - 0.5 * (self.log_scales + squares).sum(2)


def fitted(method: str, data: Set, settings: dict[str, Any], seed: int) -> tuple[Any, dict[str, Any]]:
    """A model, and how `report` gets its scores."""
    X, clusters = dense(data), data.classes
    if method == PEER:
        model = quietly(clustpy_vade(X.shape[1], clusters, seed, **settings).fit, X)
        return None, {"scores": Attacked(model)}
    model = {
        OURS: lambda: RobustVaDE(clusters, random_state=seed, **settings),
        f"{OURS}, adversarial": lambda: RobustVaDE(clusters, random_state=seed, adversarial=0.1, **settings),
        "VaDE": lambda: VaDE(clusters, random_state=seed, **settings),
        "KMeans": lambda: KMeans(clusters, n_init=10, random_state=seed),
        "GaussianMixture diag": lambda: GaussianMixture(
            clusters, covariance_type="diag", reg_covar=1e-2, random_state=seed
        ),
    }[method]()
    return model.fit(X), {}


def curves(
    load: Callable[[str | None], Set],
    settings: dict[str, Any],
    counts: tuple[int, int, int],
    context: Context,
    outcome: Outcome,
) -> None:
    data, seeds = load(context.data), context.pick(*counts)
    if context.profile == "smoke":
        data, settings = Set(data.X[:300], data.y[:300]), {**settings, "pretrain_epochs": 1, "epochs": 1}
    eps = context.pick((0.0, 0.3), EPS)
    rows = slice(0, context.pick(100, 1000))
    X, y = dense(data)[rows], data.y[rows]
    found: dict[str, dict[str, list[list[float]]]] = {}
    for number, method in enumerate(METHODS):
        for seed in range(seeds):
            model, how = fitted(method, data, settings, seed)
            told = report(model, X, y, ATTACKS, eps, random_state=0, **how)
            for attack in ATTACKS:
                found.setdefault(method, {}).setdefault(attack, []).append(told.curve(attack, "acc")[1].tolist())
            context.progress((number + (seed + 1) / seeds) / len(METHODS))
    for attack in ATTACKS:
        lines = {}
        for method, by in found.items():
            columns = list(zip(*by[attack], strict=True))
            lines[method] = [
                (e, statistics.mean(column), min(column), max(column)) for e, column in zip(eps, columns, strict=True)
            ]
        outcome.curves.append(Curves("eps", f"accuracy, {attack}", lines))
        for other in ("KMeans", "VaDE", PEER):
            least = min(a[1] - b[1] for a, b in zip(lines[OURS], lines[other], strict=True))
            outcome.figures.append(
                Figure(f"{attack}: least lead over all strengths, in points", OURS, other, "", 100 * least)
            )


WORKLOADS: list[Workload] = [
    Study(
        "digits under attack",
        "1,000 digits; noise, one-step and twenty-step attacks along the label-free margin, in the range of the data.",
        partial(curves, lambda data: digits(), SMALL, (1, 1, 1)),
        FULL | {"smoke"},
    ),
    Study(
        "MNIST-10k under attack",
        "1,000 images, as above.",
        partial(curves, mnist, LARGE, (1, 1, 1)),
        FULL,
    ),
]
