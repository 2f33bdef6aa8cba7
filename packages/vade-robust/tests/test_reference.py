"""Facts of the mathematics that the definitions of the operators keep, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.manifold._t_sne import _joint_probabilities, _kl_divergence
from sklearn.metrics import pairwise_distances
from sklearn.mixture import GaussianMixture
from torch import Tensor

from vade_robust import _reference


def mixture(rows: int, clusters: int, dimensions: int, seed: int = 0) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=draw)

    weight = normal(clusters).log_softmax(0)
    return (
        normal(rows, dimensions),
        normal(rows, dimensions),
        weight,
        normal(clusters, dimensions),
        normal(clusters, dimensions),
    )


def test_the_exact_posterior_attains_the_bound_and_no_other_exceeds_it() -> None:
    """F(q) = sum_c q_c (a_c - log q_c) is at most logsumexp a, reached at softmax a."""
    a, lse = _reference.mixture_scores(*mixture(1, 5, 10))
    best = a.softmax(1)
    assert float((best * (a - best.log())).sum()) == pytest.approx(float(lse), abs=1e-12)
    others = torch.distributions.Dirichlet(torch.ones(5, dtype=torch.float64)).sample((20000,))
    assert bool((torch.special.xlogy(others, others).sub(others * a).sum(1) >= -lse - 1e-12).all())


@pytest.mark.parametrize(("dimensions", "first"), [(10, 1.389e-11), (50, 5.2e-55)])
def test_a_density_that_underflows_leaves_the_posterior_right(dimensions: int, first: float) -> None:
    z = torch.full((1, dimensions), 3.0, dtype=torch.float64)
    centers = torch.stack([torch.zeros(dimensions), torch.ones(dimensions)]).double()
    a, lse = _reference.mixture_scores(
        z, None, torch.tensor([0.5, 0.5]).double().log(), centers, torch.zeros_like(centers)
    )
    posterior = (a - lse[:, None]).exp()[0]
    assert posterior[0].item() == pytest.approx(first, rel=0.01)
    assert posterior[1].item() == pytest.approx(1)


def test_scores_without_variance_are_those_of_a_gaussian_mixture() -> None:
    mean, _, weight, centers, log_scale = mixture(200, 4, 6)
    model = GaussianMixture(4, covariance_type="diag")
    model.weights_, model.means_, model.covariances_ = weight.exp().numpy(), centers.numpy(), log_scale.exp().numpy()
    model.precisions_cholesky_ = (-0.5 * log_scale).exp().numpy()
    a, lse = _reference.mixture_scores(mean, None, weight, centers, log_scale)
    np.testing.assert_allclose(a, model._estimate_weighted_log_prob(mean.numpy()), rtol=1e-12)
    np.testing.assert_allclose(lse, model.score_samples(mean.numpy()), rtol=1e-12)


def test_a_vanishing_variance_gives_the_scores_of_the_mean() -> None:
    mean, _, *parameters = mixture(20, 4, 6)
    exact = _reference.mixture_scores(mean, torch.full_like(mean, -80), *parameters)[0]
    torch.testing.assert_close(exact, _reference.mixture_scores(mean, None, *parameters)[0], rtol=1e-13, atol=0)


@pytest.mark.parametrize("with_variance", [True, False])
def test_the_closed_gradients_are_those_of_autograd(with_variance: bool) -> None:
    inputs = [x.requires_grad_() for x in mixture(30, 4, 7)]
    if not with_variance:
        inputs[1] = None  # type: ignore[call-overload]
    a, lse = _reference.mixture_scores(*inputs)
    grad_a, grad_lse = torch.randn_like(a), torch.randn_like(lse)
    expected = torch.autograd.grad([a, lse], [x for x in inputs if x is not None], [grad_a, grad_lse])
    with torch.no_grad():
        actual = _reference.mixture_scores_backward(grad_a, grad_lse, a, lse, *inputs)
    for mine, theirs in zip([x for x in actual if x.numel()], expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


def test_affinities_are_those_of_scikit_learn_and_their_entropy_is_the_perplexity() -> None:
    x = torch.randn(200, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = _reference.tsne_affinities(x, 8.0)
    square = np.zeros((200, 200))
    square[np.triu_indices(200, 1)] = _joint_probabilities(pairwise_distances(x.numpy(), metric="sqeuclidean"), 8.0, 0)
    square += square.T
    assert float(np.abs(p.numpy() - square).sum()) < 4e-6
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert torch.equal(p, p.T)
    assert not p.diagonal().any()


@pytest.mark.parametrize("ties", ["all rows", "half of the rows"])
def test_affinities_of_ties_are_finite(ties: str) -> None:
    x = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[: 20 if ties == "all rows" else 10] = x[0].clone()
    p = _reference.tsne_affinities(x, 3.0)
    assert bool(p.isfinite().all())
    assert p.sum().item() == pytest.approx(1)
    if ties == "all rows":
        torch.testing.assert_close(p[0, 1:], torch.full((19,), 1 / 380, dtype=torch.float64))


def test_the_gradient_of_the_map_is_that_of_autograd_and_of_scikit_learn() -> None:
    x = torch.randn(60, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.randn(60, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    p = _reference.tsne_affinities(x, 8.0)
    others = ~torch.eye(60, dtype=torch.bool)
    weights = 1 / (1 + (y[:, None] - y).square().sum(2)[others])
    loss = (torch.special.xlogy(p[others], p[others]) - p[others] * (weights / weights.sum()).log()).sum()
    (expected,) = torch.autograd.grad(loss, y)
    kl, gradient = _reference.tsne_kl(y.detach(), p)
    assert kl.item() == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)
    error, theirs = _kl_divergence(y.detach().numpy().ravel(), p.numpy()[np.triu_indices(60, 1)], 1, 60, 2)
    assert kl.item() == pytest.approx(error, rel=1e-6)
    np.testing.assert_allclose(gradient, theirs.reshape(60, 2), rtol=1e-5, atol=1e-9)


def test_the_nearest_come_first_and_of_equals_the_first() -> None:
    points = torch.tensor([[0.0], [2.0], [1.0], [2.0]], dtype=torch.float64)
    distances, index = _reference.knn(torch.tensor([[2.0]], dtype=torch.float64), points, 3)
    assert index.tolist() == [[1, 3, 2]]
    assert distances.tolist() == [[0, 0, 1]]
