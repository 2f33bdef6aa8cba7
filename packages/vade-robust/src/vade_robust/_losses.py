"""The terms of the loss, and a step's loss, as functions of networks, rows and noise: nothing is drawn here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from . import _distributed, _ops

if TYPE_CHECKING:
    from ._networks import Networks

LOG_2PI = math.log(2 * math.pi)
FLOOR = math.log(1e-10)  # what the papers' codes add to each density
WHITENING = 0.1  # of the mean variance
FEWEST = 4  # rows of a batch that have a neighbourhood


@dataclass(frozen=True)
class Weights:
    """What a step's loss depends on besides networks, rows and noise. `floor` and `exact_perplexity` are of the preset
    "lpvdn"."""

    kind: str
    posterior: str = "exact"
    mutual_information: float = 0.0
    locality: float = 0.0
    perplexity: float | str = "auto"
    exaggeration: float = 1.0
    whitening: bool = False
    adversarial: float = 0.0
    floor: bool = False
    exact_perplexity: bool = False


def reconstruction(output: Tensor, x: Tensor, kind: str, rows: float) -> Tensor:
    """Negative log-likelihood of x [b, P], the mean over rows of the sum over features: of Bernoulli variables with
    logits `output`, or of Gaussian ones of unit variance around it, without the constant.

    Here and below `rows` is b or, with several processes, the rows that all of them have: this is a share of the mean.
    """
    if kind == "bernoulli":
        total = functional.binary_cross_entropy_with_logits(output, x, reduction="sum")
    else:
        total = 0.5 * functional.mse_loss(output, x, reduction="sum")
    return total / rows


def pretraining(output: Tensor, x: Tensor, kind: str, rows: float) -> Tensor:
    """Mean squared error of the reconstruction of x [b, P]."""
    mean = output.sigmoid() if kind == "bernoulli" else output
    return functional.mse_loss(mean, x, reduction="sum") / (rows * x.shape[1])


def cluster_exact(lv: Tensor, lse: Tensor, rows: float) -> Tensor:
    """KL(q(z, c|x) || p(z, c)) with the optimal q(c|x) = softmax(a), from lv [b, D] and the logsumexp of a [b]."""
    return -(lse.sum() + _entropy(lv)) / rows


def cluster_sampled(lv: Tensor, a: Tensor, a_z: Tensor, rows: float, *, floor: bool = False) -> Tensor:
    """The same with the papers' q(c|x): the posterior of one draw z', whose scores a_z are log pi_c + log N(z')."""
    log_gamma = (torch.logaddexp(a_z, a_z.new_tensor(FLOOR)) if floor else a_z).log_softmax(1)
    return ((log_gamma.exp() * (log_gamma - a)).sum() - _entropy(lv)) / rows


def _entropy(lv: Tensor) -> Tensor:
    return 0.5 * (lv.sum() + lv.numel() * (1 + LOG_2PI))


def mutual_information(positive: Tensor, negative: Tensor, rows: float) -> Tensor:
    """0.5 mean[softplus(-T(z', x)) + softplus(T(z', x_neg))]: minus the Jensen-Shannon bound, up to a constant."""
    return 0.5 * (functional.softplus(-positive) + functional.softplus(negative)).sum() / rows


def perplexity_of(rows: int, perplexity: float | str, *, exact: bool = False) -> float:
    """The perplexity of a batch: what was asked for, or "auto", a hundredth of its rows, at least 2."""
    largest = (rows - 1) / 3
    if exact:
        return max(0.01 * rows, 1.0)  # any below 1 asks for the nearest alone, as 1 does
    if isinstance(perplexity, str):
        return min(max(0.01 * rows, 2.0), largest)
    return perplexity if perplexity < rows - 1 else largest


def whitened(x: Tensor) -> Tensor:
    """Rows whose Euclidean distances are the Mahalanobis distances of x [b, D]: no direction of the latent space counts
    more because it is longer. A tenth of the mean variance is added to each, or noise would count as much as signal."""
    centred = x - x.mean(0)
    covariance = centred.T @ centred / len(x)
    ridge = WHITENING * covariance.diagonal().mean().clamp(min=torch.finfo(x.dtype).tiny)
    factor = torch.linalg.cholesky_ex(covariance + ridge * torch.eye(x.shape[1], dtype=x.dtype, device=x.device))[0]
    rows: Tensor = torch.linalg.solve_triangular(factor, centred.T, upper=False).T.contiguous()
    return rows


def locality(mu: Tensor, y: Tensor, weights: Weights) -> Tensor:
    """KL(P || Q) of t-SNE in the batch: P from the means mu, without gradient, Q from their images y; 0 if b < 4.

    With `exaggeration` P is multiplied by it, which draws neighbours together and leaves clusters far apart.
    """
    if mu.shape[0] < FEWEST:
        return y.sum() * 0
    perplexity = perplexity_of(mu.shape[0], weights.perplexity, exact=weights.exact_perplexity)
    p = _ops.tsne_affinities(whitened(mu.detach()) if weights.whitening else mu.detach(), perplexity)
    kl: Tensor = _ops.tsne_kl(y, p if weights.exaggeration == 1 else weights.exaggeration * p)[0]
    return kl


def adversarial(networks: Networks, x: Tensor, z: Tensor, noise: Tensor, eps: float, rows: float) -> Tensor:
    """0.5 mean[softplus(-T(z', x_adv)) + softplus(-T(mu(x_adv), x))] with rows x_adv that lower what T knows of x.

    x~ = x + eps noise with noise uniform in [-1, 1]; x_adv = x~ + eps sign grad softplus(-T(mu(x~), x)), clipped to the
    eps-box around x and to the range of the data.
    """
    discriminator = networks.discriminator
    assert discriminator is not None
    flat = x.flatten(1)
    lowest, highest = (limit.to(x).view(x.shape[1:]) for limit in (networks.low, networks.high))
    low, high = torch.maximum(x - eps, lowest), torch.minimum(x + eps, highest)
    start = (x + eps * noise).requires_grad_()
    wrong = functional.softplus(-discriminator(networks.latent(start), flat)).sum()
    (gradient,) = torch.autograd.grad(wrong, start)
    with torch.no_grad():
        attacked = torch.clamp(start + eps * gradient.sign(), low, high)
    first = functional.softplus(-discriminator(z, attacked.flatten(1)))
    second = functional.softplus(-discriminator(networks.latent(attacked), flat))
    return 0.5 * (first + second).sum() / rows


def total(
    networks: Networks,
    x: Tensor,
    x_neg: Tensor | None,
    noise: tuple[Tensor, ...],
    weights: Weights,
    cluster_weight: float = 1.0,
    rows: int | None = None,
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """L of a batch, its unweighted terms, and the scores a [b, K] whose softmax is q(c|x).

    `noise` is two standard normal draws [b, D], the decoder's and that of the other terms, and with `adversarial` a
    uniform one in [-1, 1] of the shape of x. The terms of weight 0 are left out. `rows` (those of x if None) are in
    the batches of all processes together: L and its terms are this one's shares, which add up.
    """
    rows = len(x) if rows is None else rows
    flat = x.flatten(1)
    mu, lv = networks.encode_jointly(x)
    deviation = (0.5 * lv).exp()
    decoded = networks.decoder(torch.addcmul(mu, deviation, noise[0]))
    z = torch.addcmul(mu, deviation, noise[1])
    mixture = networks.mixture()
    a, lse = _ops.mixture_scores(mu, lv, *mixture)
    terms = {"reconstruction": reconstruction(decoded, flat, weights.kind, rows)}
    if weights.posterior == "exact":
        terms["cluster"] = cluster_exact(lv, lse, rows)
    else:
        a_z = _ops.mixture_scores(z, None, *mixture)[0]
        terms["cluster"] = cluster_sampled(lv, a, a_z, rows, floor=weights.floor)
    loss = terms["reconstruction"] + cluster_weight * terms["cluster"]
    if weights.mutual_information:
        assert networks.discriminator is not None
        assert x_neg is not None
        pair = networks.discriminator.pair(z, flat, x_neg.flatten(1))
        terms["mutual_information"] = mutual_information(*pair, rows)
        loss = loss + weights.mutual_information * terms["mutual_information"]
        if weights.adversarial:
            terms["adversarial"] = adversarial(networks, x, z, noise[2], weights.adversarial, rows)
            loss = loss + weights.mutual_information * terms["adversarial"]
    if weights.locality:
        everyone = _distributed.gather(mu.detach(), rows), _distributed.gather(networks.embed(mu), rows)
        terms["locality"] = locality(*everyone, weights) / _distributed.world()[1]
        loss = loss + weights.locality * terms["locality"]
    return loss, terms, a
