"""LPVDN as one writes it down in plain PyTorch, with P from scikit-learn and Q from all differences: the yardstick."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.spatial.distance import squareform
from sklearn.manifold._t_sne import _joint_probabilities
from sklearn.metrics import pairwise_distances
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence


def affinities(x: Tensor, perplexity: float) -> Tensor:
    """P as the authors' code makes it in every step."""
    distances = pairwise_distances(x.cpu().numpy(), metric="euclidean", squared=True)
    p = torch.from_numpy(squareform(_joint_probabilities(distances, perplexity, 0)).astype(np.float32))
    return p.to(x.device)


def divergence(y: Tensor, p: Tensor) -> Tensor:
    """KL(P || Q), written down and left to autograd."""
    weights = 1 / (1 + (y[:, None] - y).square().sum(2))
    weights = weights * (1 - torch.eye(len(y), dtype=y.dtype, device=y.device))
    q = (weights / weights.sum()).clamp(min=1e-12)
    return (p * (p.clamp(min=1e-12).log() - q.log())).sum()


def layers(*widths: int) -> list[nn.Module]:
    return [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]


class Plain(nn.Module):
    """The networks and the loss of a step; `locality=0` and `mutual_information=0` make it VaDE."""

    def __init__(self, inputs: int, hidden: Sequence[int], latent: int, clusters: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*layers(inputs, *hidden))
        self.mean, self.log_variance = nn.Linear(hidden[-1], latent), nn.Linear(hidden[-1], latent)
        self.decoder = nn.Sequential(*layers(latent, *reversed(hidden)), nn.Linear(hidden[0], inputs))
        self.discriminator = nn.Sequential(*layers(latent + inputs, 256), nn.Linear(256, 1))
        self.t_encoder = nn.Sequential(*layers(latent, 256, 256, 256), nn.Linear(256, latent))
        self.logits = nn.Parameter(torch.zeros(clusters))
        self.centers, self.log_scales = (nn.Parameter(0.1 * torch.randn(clusters, latent)) for _ in range(2))

    def loss(
        self,
        x: Tensor,
        other: Tensor,
        noise: tuple[Tensor, Tensor],
        mutual_information: float = 1.0,
        locality: float = 1e-4,
    ) -> Tensor:
        h = self.encoder(x)
        mean, log_variance = self.mean(h), self.log_variance(h)
        z, again = (mean + (0.5 * log_variance).exp() * draw for draw in noise)
        loss = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(1).mean()
        log_weights, scales = self.logits.log_softmax(0), self.log_scales.exp()
        densities = -0.5 * (
            math.log(2 * math.pi) + self.log_scales + (again[:, None] - self.centers).square() / scales
        ).sum(2)
        densities = torch.logaddexp(log_weights + densities, x.new_tensor(math.log(1e-10)))
        log_posterior = densities.log_softmax(1)
        squares = log_variance.exp()[:, None] + (mean[:, None] - self.centers).square()
        scores = log_weights - 0.5 * (math.log(2 * math.pi) + self.log_scales + squares / scales).sum(2)
        cluster = (log_posterior.exp() * (log_posterior - scores)).sum(1)
        loss = loss + (cluster - 0.5 * (1 + math.log(2 * math.pi) + log_variance).sum(1)).mean()
        if mutual_information:
            joint, apart = (self.discriminator(torch.cat([again, rows], 1)) for rows in (x, other))
            loss = loss + 0.5 * mutual_information * (F.softplus(-joint) + F.softplus(apart)).mean()
        if locality:
            p = affinities(mean.detach(), 0.01 * len(x))
            loss = loss + locality * divergence(self.t_encoder(mean), p)
        return loss
