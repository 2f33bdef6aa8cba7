"""What others compute, beside ours: ClustPy's measures and its VaDE's posterior, where that is right and where not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vade_robust import _ops
from vade_robust.metrics import clustering_accuracy, purity

pytest.importorskip("clustpy", reason="clustpy is not installed (group peers)")

from clustpy.deep.vade import _compute_vade_loss, _get_gamma
from clustpy.metrics.external import purity as clustpy_purity
from clustpy.metrics.external import unsupervised_clustering_accuracy


def normal(*size: int, seed: int) -> torch.Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("clusters", [1, 2, 7, 12])
def test_accuracy_and_purity_are_clustpys(clusters: int) -> None:
    draw = np.random.default_rng(clusters)
    y, labels = draw.integers(0, 7, 200), draw.integers(0, clusters, 200)
    assert clustering_accuracy(y, labels) == pytest.approx(unsupervised_clustering_accuracy(y, labels))
    assert purity(y, labels) == pytest.approx(clustpy_purity(y, labels))


def test_the_posterior_of_unit_variances_is_clustpys() -> None:
    """Its density takes the logarithm of the variance twice, which unit variances hide."""
    z, centers, weights = normal(50, 3, seed=0), normal(4, 3, seed=1), normal(4, seed=2).softmax(0)
    a, lse = _ops.mixture_scores(z, None, weights.log(), centers, torch.zeros_like(centers))
    theirs = _get_gamma(weights, centers, torch.zeros_like(centers), z)
    torch.testing.assert_close((a - lse[:, None]).exp(), theirs, rtol=0, atol=1e-5)  # it adds 1e-10 to each density


def test_densities_that_underflow_are_equal_in_clustpy_and_are_not_here() -> None:
    z = torch.full((1, 10), 3.0, dtype=torch.float64)
    centers = torch.stack([torch.zeros(10), torch.ones(10)]).double()
    half = torch.full((2,), 0.5, dtype=torch.float64)
    a, lse = _ops.mixture_scores(z, None, half.log(), centers, torch.zeros_like(centers))
    assert (a - lse[:, None]).exp()[0, 0].item() == pytest.approx(1.389e-11, rel=1e-3)
    assert _get_gamma(half, centers, torch.zeros_like(centers), z)[0, 0].item() == pytest.approx(0.5, abs=1e-3)


def test_the_best_posterior_has_a_smaller_loss_than_clustpys() -> None:
    """The same loss, reconstruction aside, at softmax(a) and at the posterior of one draw."""
    mean, log_var = normal(64, 10, seed=0), normal(64, 10, seed=1) - 1
    centers, log_scale, weights = normal(5, 10, seed=2), 0.3 * normal(5, 10, seed=3), normal(5, seed=4).softmax(0)
    a, lse = _ops.mixture_scores(mean, log_var, weights.log(), centers, log_scale)
    z = mean + (0.5 * log_var).exp() * normal(64, 10, seed=5)

    def loss(posterior: torch.Tensor) -> float:
        """Its constants of the normal density are added per component, once; they are the same for both."""
        nothing = torch.zeros(())
        return float(
            _compute_vade_loss(
                weights, centers, log_scale, mean, log_var, mean, posterior, nothing, lambda *x: nothing, 1.0, 1.0
            )
        )

    best, drawn = (a - lse[:, None]).exp(), _get_gamma(weights, centers, log_scale, z)
    assert loss(best) < loss(drawn)
