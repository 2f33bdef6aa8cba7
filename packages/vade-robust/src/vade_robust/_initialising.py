"""Where the mixture and the map's centres come from: scikit-learn's GMM and KMeans, and a reservoir of seen rows."""

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
from torch import Tensor

from ._data import ROWS, Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._networks import Networks

VARIANCE_FLOOR = 1e-6
NOISE = 0.05  # of the mixture's variance is what the log-variance head starts with
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
