"""The terms of the loss: against an independent derivation, and what each of them must and must not do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.nn import functional

from vade_robust import _losses
from vade_robust._losses import Weights
from vade_robust._networks import Networks, build

LPVDN: dict[str, Any] = {
    "kind": "bernoulli",
    "posterior": "sampled",
    "mutual_information": 1.0,
    "locality": 1e-4,
    "floor": True,
    "exact_perplexity": True,
}


def tiny(seed: int = 0, features: int = 7, **settings: Any) -> Networks:
    """Small networks in float64 with a mixture that is neither uniform nor spherical."""
    networks = build(seed, (features,), n_clusters=4, n_latent=3, hidden=(12, 10), **settings).double()
    draw = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        networks.logits.copy_(torch.randn(4, generator=draw))
        networks.centers.copy_(0.3 * torch.randn(4, 3, generator=draw))
        networks.log_scales.copy_(0.5 * torch.randn(4, 3, generator=draw) - 1)
    return networks


def batch(rows: int, features: int = 7, seed: int = 0) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    draw = torch.Generator().manual_seed(seed + 100)
    x, x_neg = torch.rand(2, rows, features, generator=draw, dtype=torch.float64)
    noise = tuple(torch.randn(2, rows, 3, generator=draw, dtype=torch.float64))
    return x, x_neg, (*noise, 2 * torch.rand(rows, features, generator=draw, dtype=torch.float64) - 1)


def affinities(mu: np.ndarray, perplexity: float) -> Tensor:
    """P by bracketing each row's bandwidth."""
    rows = len(mu)
    p = np.zeros((rows, rows))
    for i in range(rows):
        d = np.delete(((mu - mu[i]) ** 2).sum(1), i)
        d -= d.min()

        def conditional(log_beta: float, d: np.ndarray = d) -> np.ndarray:
            e = np.exp(-math.exp(log_beta) * d)
            return e / e.sum()

        def excess(log_beta: float) -> float:
            q = conditional(log_beta)
            return float(-(q * np.log(np.maximum(q, 1e-300))).sum()) - math.log(perplexity)

        p[i, np.arange(rows) != i] = conditional(brentq(excess, -20, 40, xtol=1e-14))
    return torch.from_numpy((p + p.T) / (2 * rows))


def derived(n: Networks, x: Tensor, x_neg: Tensor, noise: tuple[Tensor, ...], w: float, *, sampled: bool) -> Tensor:
    """The loss of one LPVDN step written from the equations: densities are plain products, means are plain means."""
    h = n.encoder(x)
    mu, lv = n.mean(h), n.log_variance(h)
    z, z2 = mu + (lv / 2).exp() * noise[0], mu + (lv / 2).exp() * noise[1]
    r = n.decoder(z).sigmoid()
    rec = -(x * r.log() + (1 - x) * (1 - r).log()).mean(0).sum()
    pi, m, s2 = n.logits.exp() / n.logits.exp().sum(), n.centers, n.log_scales.exp()
    expected = -0.5 * ((2 * math.pi * s2).log() + (lv.exp()[:, None] + (mu[:, None] - m) ** 2) / s2).sum(2)
    if sampled:
        normal = torch.distributions.Normal(m, s2.sqrt())
        gamma = pi * normal.log_prob(z2[:, None]).sum(2).exp() + 1e-10
        gamma = gamma / gamma.sum(1, keepdim=True)
    else:
        gamma = (pi.log() + expected).softmax(1)
    kl_c = (gamma * (gamma.log() - pi.log())).sum(1)
    kl_z = -(gamma * expected).sum(1) - torch.distributions.Normal(mu, (lv / 2).exp()).entropy().sum(1)
    t = n.discriminator
    assert t is not None
    weight = torch.cat([t.latent.weight, t.data.weight], 1)

    def logit(x: Tensor) -> Tensor:
        hidden = functional.linear(torch.cat([z2, x], 1), weight, t.latent.bias).relu()
        return functional.linear(hidden, t.output.weight, t.output.bias)

    mi = -0.5 * (logit(x).sigmoid().log().mean() + (1 - logit(x_neg).sigmoid()).log().mean())
    p = affinities(mu.detach().numpy(), len(x) / 100)
    y = n.embed(mu)
    kernel = 1 / (1 + ((y[:, None] - y) ** 2).sum(2)) - torch.eye(len(x))
    q = kernel / kernel.sum()
    away = p > 0
    local = (p[away] * (p[away] / q[away]).log()).sum()
    return rec + w * (kl_c + kl_z).mean() + mi + 1e-4 * local


@pytest.mark.parametrize("posterior", ["sampled", "exact"])
def test_a_step_of_lpvdn_and_its_gradients_are_those_of_an_independent_derivation(posterior: str) -> None:
    networks = tiny(clamp=False)
    x, x_neg, noise = batch(250)
    weights = Weights(**{**LPVDN, "posterior": posterior})
    loss, _, _ = _losses.total(networks, x, x_neg, noise, weights, 0.7)
    expected = derived(networks, x, x_neg, noise, 0.7, sampled=posterior == "sampled")
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    parameters = dict(networks.named_parameters())
    ours = torch.autograd.grad(loss, list(parameters.values()))
    theirs = torch.autograd.grad(expected, list(parameters.values()))
    for name, mine, other in zip(parameters, ours, theirs, strict=True):
        # The map's last bias has a gradient of exactly 0, hence a comparison that is not relative.
        assert (mine - other).abs().max() <= 1e-10 * max(1, other.abs().max()), name


def test_terms_of_weight_zero_are_left_out_and_the_loss_is_the_weighted_sum_of_the_others() -> None:
    networks = tiny()
    x, x_neg, noise = batch(12)
    weights = Weights("bernoulli", mutual_information=0.5, locality=0.25, adversarial=0.1)
    loss, terms, a = _losses.total(networks, x, x_neg, noise, weights, 0.3)
    assert a.shape == (12, 4)
    expected = terms["reconstruction"] + 0.3 * terms["cluster"] + 0.25 * terms["locality"]
    expected = expected + 0.5 * (terms["mutual_information"] + terms["adversarial"])
    torch.testing.assert_close(loss, expected)
    bare = tiny(mutual_information=False, locality=False)
    _, terms, _ = _losses.total(bare, x, None, noise, Weights("bernoulli"))
    assert list(terms) == ["reconstruction", "cluster"]


def test_bernoulli_reconstruction_is_the_number_of_features_times_the_mean_cross_entropy() -> None:
    output, x = torch.randn(5, 784, dtype=torch.float64), torch.rand(5, 784, dtype=torch.float64)
    expected = 784 * functional.binary_cross_entropy_with_logits(output, x)
    torch.testing.assert_close(_losses.reconstruction(output, x, "bernoulli", 5), expected)
    expected = 0.5 * (output - x).square().sum(1).mean()
    torch.testing.assert_close(_losses.reconstruction(output, x, "gaussian", 5), expected)


def test_pretraining_is_the_mean_squared_error_of_the_decoded_mean() -> None:
    output, x = torch.randn(5, 9), torch.rand(5, 9)
    expected = functional.mse_loss(output.sigmoid(), x)
    torch.testing.assert_close(_losses.pretraining(output, x, "bernoulli", 5), expected)
    torch.testing.assert_close(_losses.pretraining(output, x, "gaussian", 5), functional.mse_loss(output, x))


def test_no_sampled_posterior_is_below_the_exact_one() -> None:
    networks = tiny()
    x, _, _ = batch(64)
    mu, lv = networks.encode(x)
    a, lse = networks.scores(mu, lv)
    exact = _losses.cluster_exact(lv, lse, 64)
    for draw in range(20):
        z = mu + (lv / 2).exp() * torch.randn(64, 3, generator=torch.Generator().manual_seed(draw))
        assert _losses.cluster_sampled(lv, a, networks.scores(z)[0], 64) > exact


def test_only_the_floor_of_the_codes_makes_a_far_row_belong_to_all() -> None:
    log_weight, centers = torch.full((2,), -math.log(2)), torch.tensor([0.0, 1.0])[:, None].repeat(1, 10)
    z = torch.full((1, 10), 3.0)
    normal = torch.distributions.Normal(centers, 1.0)
    a_z = log_weight + normal.log_prob(z).sum(1)[None]

    def gamma(floor: bool) -> Tensor:
        """q(c|z), read from the gradient: the loss is linear in the scores a."""
        a = torch.zeros(1, 2, requires_grad=True)
        _losses.cluster_sampled(torch.zeros(1, 10), a, a_z, 1, floor=floor).backward()
        assert a.grad is not None
        return -a.grad[0]

    torch.testing.assert_close(gamma(False), torch.tensor([1.389e-11, 1.0]), rtol=1e-3, atol=0)
    torch.testing.assert_close(gamma(True), torch.tensor([0.4997, 0.5003]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "perplexity", "exact", "expected"),
    [
        (800, "auto", False, 8.0),
        (400, "auto", False, 4.0),
        (100, "auto", False, 2.0),
        (4, "auto", False, 1.0),
        (6, "auto", False, 5 / 3),
        (800, 30.0, False, 30.0),
        (20, 30.0, False, 19 / 3),
        (800, "auto", True, 8.0),
        (50, "auto", True, 1.0),
    ],
)
def test_perplexity_follows_the_rows_of_the_batch(rows: int, perplexity: Any, exact: bool, expected: float) -> None:
    assert _losses.perplexity_of(rows, perplexity, exact=exact) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_fewer_than_four_rows_have_no_locality_and_a_finite_loss(rows: int) -> None:
    networks = tiny()
    x, x_neg, noise = batch(rows)
    loss, terms, _ = _losses.total(networks, x, x_neg, noise, Weights("bernoulli", locality=1.0), rows=max(rows, 1))
    loss.backward()
    assert terms["locality"] == 0
    assert loss.isfinite()


def tsne(perplexity: float, exaggeration: float = 1.0) -> _losses.Weights:
    return _losses.Weights("gaussian", perplexity=perplexity, exaggeration=exaggeration)


def test_locality_reaches_the_encoder_through_the_map_alone() -> None:
    networks = tiny()
    x, _, _ = batch(30)
    mu = networks.latent(x)
    p = affinities(mu.detach().numpy(), 5.0)
    (ours,) = torch.autograd.grad(_losses.locality(mu, networks.embed(mu), tsne(5.0)), mu, retain_graph=True)
    y = networks.embed(mu)
    kernel = (1 / (1 + ((y[:, None] - y) ** 2).sum(2))) * (1 - torch.eye(30))
    (theirs,) = torch.autograd.grad(-(p * (kernel / kernel.sum() + torch.eye(30)).log()).sum(), mu)
    assert ours.abs().max() > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-12)


def test_exaggeration_pulls_harder() -> None:
    y = torch.randn(20, 3, requires_grad=True, generator=torch.Generator().manual_seed(0))
    mu = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    (plain,) = torch.autograd.grad(_losses.locality(mu, y, tsne(3.0)), y)
    (same,) = torch.autograd.grad(_losses.locality(mu, y, tsne(3.0, 1.0)), y)
    (pulled,) = torch.autograd.grad(_losses.locality(mu, y, tsne(3.0, 4.0)), y)
    assert torch.equal(plain, same)
    assert (pulled * y).sum() > (plain * y).sum()


def test_mutual_information_trains_encoder_and_discriminator_together() -> None:
    networks = tiny()
    x, x_neg, noise = batch(16)
    _, terms, _ = _losses.total(networks, x, x_neg, noise, Weights("bernoulli", mutual_information=1.0))
    terms["mutual_information"].backward()
    assert networks.discriminator is not None
    for parameter in (networks.mean.weight, networks.log_variance.weight, *networks.discriminator.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in networks.decoder.parameters())


def test_the_discriminator_sees_the_other_draw_than_the_decoder() -> None:
    networks = tiny()
    x, x_neg, (first, second, _) = batch(16)
    weights = Weights("bernoulli", posterior="sampled", mutual_information=1.0)
    before = _losses.total(networks, x, x_neg, (first, second), weights)[1]
    of_first = _losses.total(networks, x, x_neg, (first + 1, second), weights)[1]
    of_second = _losses.total(networks, x, x_neg, (first, second + 1), weights)[1]
    assert [name for name in before if before[name] != of_first[name]] == ["reconstruction"]
    assert [name for name in before if before[name] != of_second[name]] == ["cluster", "mutual_information"]


def test_a_pair_of_logits_is_that_of_two_calls() -> None:
    networks = tiny()
    discriminator = networks.discriminator
    assert discriminator is not None
    x, x_neg, (z, _, _) = batch(9)
    positive, negative = discriminator.pair(z, x, x_neg)
    torch.testing.assert_close(positive, discriminator(z, x))
    torch.testing.assert_close(negative, discriminator(z, x_neg))


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
def test_the_attack_stays_in_its_box_and_in_the_range_of_the_data(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = tiny()
    x, _, (z, _, noise) = batch(32)
    if kind == "gaussian":
        networks.low.fill_(-0.05)
        networks.high.fill_(0.9)
        x = x.clamp(-0.05, 0.9)
    seen = []
    latent = networks.latent
    monkeypatch.setattr(networks, "latent", lambda rows: seen.append(rows.detach().clone()) or latent(rows))
    _losses.adversarial(networks, x, z, noise, 0.2, 32).backward()
    start, attacked = seen
    assert (attacked - x).abs().max() <= 0.2 + 1e-15
    low, high = networks.low.double(), networks.high.double()
    assert ((attacked >= low) & (attacked <= high)).all()
    discriminator = networks.discriminator
    assert discriminator is not None
    inside = torch.minimum(torch.maximum(start, low), high)
    with torch.no_grad():
        harm = functional.softplus(-discriminator(latent(attacked), x)).mean()
        assert harm > functional.softplus(-discriminator(latent(inside), x)).mean()
    assert networks.mean.weight.grad is not None  # and is trained against


@pytest.mark.parametrize("posterior", ["exact", "sampled"])
def test_the_mean_over_two_processes_is_that_of_the_whole_batch(posterior: str) -> None:
    networks = tiny()
    x, x_neg, noise = batch(11)
    weights = Weights("bernoulli", posterior=posterior, mutual_information=1.0, adversarial=0.1)
    whole = _losses.total(networks, x, x_neg, noise, weights, 0.5)[0]
    parts = [
        _losses.total(networks, x[part], x_neg[part], tuple(n[part] for n in noise), weights, 0.5, rows=11 / 2)[0]
        for part in (slice(0, 5), slice(5, 11))
    ]
    torch.testing.assert_close(sum(parts) / 2, whole, rtol=1e-12, atol=0)


def test_log_variances_are_clamped_except_for_presets() -> None:
    for clamp, largest in ((True, 12.0), (False, 30.0)):
        networks = tiny(clamp=clamp)
        with torch.no_grad():
            networks.log_variance.bias.fill_(30.0)
            networks.log_variance.weight.zero_()
            networks.log_scales.fill_(30.0)
        assert networks.encode(batch(3)[0])[1].max() == largest
        assert networks.mixture()[2].max() == largest


def test_whitened_rows_have_distances_that_no_rescaling_of_a_direction_changes_but_for_the_ridge() -> None:
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x * torch.tensor([1.0, 1.0, 100.0], dtype=torch.float64)
    covariance = torch.cov(x.T, correction=0)
    ridge = covariance + 0.1 * covariance.trace() / 3 * torch.eye(3, dtype=torch.float64)
    difference = x[0] - x[1]
    expected = difference @ torch.linalg.solve(ridge, difference)
    found = _losses.whitened(x)
    torch.testing.assert_close((found[0] - found[1]).square().sum(), expected)


def test_neighbours_are_those_of_whitened_means_where_that_is_asked_for() -> None:
    draw = torch.Generator().manual_seed(0)
    mu = torch.randn(30, 3, dtype=torch.float64, generator=draw) * torch.tensor([1.0, 1.0, 9.0], dtype=torch.float64)
    y = torch.randn(30, 3, dtype=torch.float64, generator=draw)
    plain, whitening = Weights("gaussian", locality=1.0), Weights("gaussian", locality=1.0, whitening=True)
    assert torch.equal(_losses.locality(mu, y, whitening), _losses.locality(_losses.whitened(mu), y, plain))
    assert not torch.equal(_losses.locality(mu, y, whitening), _losses.locality(mu, y, plain))
