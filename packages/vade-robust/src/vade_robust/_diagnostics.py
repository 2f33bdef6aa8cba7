"""What can be said of a clustering without labels: occupancy, collapse, entropy, active dimensions, agreement."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score

if TYPE_CHECKING:
    from torch import Tensor

COLLAPSED = 0.1  # of the rows that a component would have if all had equally many
ACTIVE = 0.01  # variance of a latent mean over the rows (Burda et al., 2016)


def diagnostics(
    mu: Tensor,
    a: Tensor,
    weights: Tensor,
    mixture_labels: Tensor,
    embedding_labels: Tensor | None,
    nonfinite_steps: int,
) -> dict[str, Any]:
    """The dictionary `diagnostics_`, from latent means mu [N, D], scores a [N, K], pi [K] and the labels [N]."""
    n_clusters = a.shape[1]
    occupancy = torch.bincount(mixture_labels.long(), minlength=n_clusters).double() / len(a)
    log_q = a.double().log_softmax(1)
    entropy = -(log_q.exp() * log_q).sum(1).mean()
    of_occupancy = -torch.special.xlogy(occupancy, occupancy).sum()
    agreement = None
    if embedding_labels is not None:
        agreement = float(adjusted_rand_score(mixture_labels.cpu().numpy(), embedding_labels.cpu().numpy()))
    return {
        "occupancy": occupancy.cpu().numpy(),
        "entropy": entropy.item(),
        "collapse": (occupancy < COLLAPSED / n_clusters).nonzero().flatten().tolist(),
        "pi": weights.cpu().numpy(),
        "effective_clusters": math.exp(of_occupancy.item()),
        "active_dims": int((mu.double().var(0, correction=0) > ACTIVE).sum()),
        "agreement": agreement,
        "nonfinite_steps": nonfinite_steps,
    }


def warn_of_collapse(collapse: list[int], n_clusters: int) -> None:
    """A ConvergenceWarning that lists the components that hardly any row belongs to."""
    if collapse:
        warnings.warn(
            f"components {collapse} of the mixture hold less than {COLLAPSED:g} / n_clusters = "
            f"{COLLAPSED / n_clusters:.3g} of the rows each: they have collapsed, and `n_clusters` may be too large",
            ConvergenceWarning,
            stacklevel=4,
        )
