"""Where mixture, map and centres come from: t-SNE of the latent means, GMM and KMeans, and a reservoir of seen rows."""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn import config_context
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from ._adam import Adam
from ._data import ROWS, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._networks import Networks

VARIANCE_FLOOR = 1e-6
NOISE = 0.05  # of the mixture's variance is what the log-variance head starts with
MEMBER_VARIANCE = 1e-4  # added to the variances of a cluster's members
FEWEST = 4  # rows that have a neighbourhood
MAP_LR, MAP_EPOCHS, MAP_STEPS = 2e-3, 40, 2000
RESERVOIR = 10_000  # rows that stand for all that partial_fit has seen


def mixture(mu: Tensor, n_clusters: int, seed: int, *, n_init: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """log pi [K], means and log variances [K, D] of a diagonal Gaussian mixture that is fitted to mu [N, D]."""
    model = GaussianMixture(
        n_clusters, covariance_type="diag", reg_covar=VARIANCE_FLOOR, n_init=n_init, random_state=seed
    )
    with _quietly():  # it is a start, and repeated rows are told of elsewhere
        model.fit(mu.cpu().double().numpy())
    weights = np.maximum(model.weights_, np.finfo(np.float64).tiny)
    parameters = (np.log(weights), model.means_, np.log(model.covariances_))
    log_weights, means, log_variances = (torch.from_numpy(x).to(mu) for x in parameters)
    return log_weights, means, log_variances


@torch.no_grad()
def set_mixture(networks: Networks, parameters: tuple[Tensor, Tensor, Tensor], *, head: bool) -> None:
    """Puts a mixture into the networks; with `head` the latent's variance starts at a twentieth of the mixture's."""
    for own, value in zip((networks.logits, networks.centers, networks.log_scales), parameters, strict=True):
        own.copy_(value)
    if head:
        networks.log_variance.weight.zero_()
        networks.log_variance.bias.copy_(parameters[2].logsumexp(0) - math.log(len(parameters[2]) / NOISE))


def spread(source: Source) -> float:
    """The root of the mean variance of a column over the first rows, at most RESERVOIR, after preparation."""
    seen, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for block in source.in_order(ROWS):
        rows = block.flatten(1).double()
        middle = rows.mean(0)
        difference, total = middle - mean, seen + len(rows)
        squares = squares + (rows - middle).square().sum(0) + difference.square() * (seen * len(rows) / total)
        mean, seen = mean + difference * (len(rows) / total), total
        if seen >= RESERVOIR:
            break
    return float((squares / max(seen, 1)).mean().sqrt())


def train_map(
    t_encoder: nn.Module, mu: Tensor, locality: Callable[[Tensor, Tensor], Tensor], rows: int, draw: torch.Generator
) -> None:
    """Trains a map on fixed latent means mu [N, D], in batches of `rows`, by Adam with a cosine from MAP_LR down.

    locality(mu, y) is the loss of a batch. The steps are those of MAP_EPOCHS passes, and at most MAP_STEPS.
    """
    rows = min(rows, len(mu))
    if rows < FEWEST:
        return
    steps = min(MAP_STEPS, MAP_EPOCHS * math.ceil(len(mu) / rows))
    adam = Adam(dict(t_encoder.named_parameters()), MAP_LR)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if len(order) < rows:
            order = torch.randperm(len(mu), generator=draw)
        chosen, order = order[:rows].to(mu.device), order[rows:]
        batch = mu[chosen]
        adam.lr = MAP_LR * max(0.02, 0.5 * (1 + math.cos(math.pi * step / steps)))
        locality(batch, t_encoder(batch)).backward()
        adam.step(torch.zeros((), device=mu.device))


def mixture_of(mu: Tensor, labels: Tensor, n_clusters: int) -> tuple[Tensor, Tensor, Tensor]:
    """log pi [K], means and log variances [K, D] of the rows of mu [N, D] with each label."""
    exact = mu.double()
    members = torch.nn.functional.one_hot(labels.long(), n_clusters).double()
    count = members.sum(0).clamp(min=1)[:, None]
    means = members.T @ exact / count
    variances = members.T @ exact.square() / count - means.square()
    few = count < 2
    means = torch.where(few & (members.sum(0) == 0)[:, None], exact.mean(0), means)
    variances = torch.where(few, exact.var(0, correction=0), variances).clamp(min=0) + MEMBER_VARIANCE
    weights = (members.sum(0) + 1e-3 * len(mu) / n_clusters).log()
    return weights.to(mu), means.to(mu), variances.log().to(mu)


def centers(embedded: Tensor, n_clusters: int, seed: int, *, n_init: int = 10) -> Tensor:
    """KMeans centres [K, D] of the rows of embedded [N, D]."""
    model = KMeans(n_clusters, n_init=n_init, random_state=seed)
    with _quietly():
        model.fit(embedded.cpu().numpy())
    return torch.from_numpy(model.cluster_centers_).to(embedded)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without warnings of convergence, and on NumPy whatever the user has set."""
    with warnings.catch_warnings(), config_context(array_api_dispatch=False):
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


class Reservoir(Source):
    """A uniform sample of at most RESERVOIR of the prepared rows that were added (Vitter's algorithm R), on the CPU."""

    def __init__(self, shape: tuple[int, ...], device: torch.device, seed: int, capacity: int = RESERVOIR) -> None:
        super().__init__(0, shape, device)
        self.capacity, self.seen = capacity, 0
        self.random = np.random.RandomState(seed)
        self.kept = torch.empty(0, *shape)

    def add(self, x: Tensor) -> None:
        """Adds the rows of x (b, *shape)."""
        x = x.cpu()
        free = self.capacity - len(self.kept)
        if free:
            self.kept = torch.cat([self.kept, x[:free]])
            self.seen += len(x[:free])
            x = x[free:]
        if len(x):
            slots = self.random.randint(0, np.arange(self.seen + 1, self.seen + len(x) + 1))
            taken = np.flatnonzero(slots < self.capacity)
            self.kept.numpy()[slots[taken]] = x.numpy()[taken]  # of rows for the same slot the last stays
            self.seen += len(x)
        self.n_rows = len(self.kept)

    def in_order(self, size: int = ROWS) -> Iterator[Tensor]:
        """The rows that were kept, `size` at a time."""
        return (rows.to(self.device) for rows in self.kept.split(size))
