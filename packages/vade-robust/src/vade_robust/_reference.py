"""Every operator in plain PyTorch: the definition that the kernels are tested against."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)
NEWTON_STEPS = 200  # rows without ties end after 5 to 12; bisection of the bracket needs no more than this


def mixture_scores(
    mean: Tensor, log_var: Tensor | None, log_weight: Tensor, centers: Tensor, log_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores a [N, K] of the components and their logsumexp [N], by

    a_c = log pi_c - 0.5 sum_d [log 2 pi + ls_cd + (exp(lv_d) + (mu_d - m_cd)^2) / exp(ls_cd)].

    This is the expectation of log pi_c + log N(z; m_c, exp ls_c) over z ~ N(mu, exp lv), for mean `mu` [N, D] and
    `log_var` lv [N, D]; without `log_var` z is mu, and the scores are those of a Gaussian mixture's E-step.
    """
    squares = (mean[:, None] - centers).square()
    if log_var is not None:
        squares = squares + log_var.exp()[:, None]
    a = log_weight - 0.5 * (LOG_2PI + log_scale + squares * (-log_scale).exp()).sum(2)
    return a, a.logsumexp(1)


def mixture_scores_backward(
    grad_a: Tensor,
    grad_lse: Tensor,
    a: Tensor,
    lse: Tensor,
    mean: Tensor,
    log_var: Tensor | None,
    log_weight: Tensor,
    centers: Tensor,
    log_scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `mixture_scores` with respect to its five inputs; that of an absent `log_var` is empty."""
    weight = grad_a + grad_lse[:, None] * (a - lse[:, None]).exp()
    precision = (-log_scale).exp()
    difference = mean[:, None] - centers
    pulls = weight[:, :, None] * difference * precision
    squares = difference.square()
    grad_log_var = mean.new_empty(0)
    if log_var is not None:
        variance = log_var.exp()
        squares = squares + variance[:, None]
        grad_log_var = -0.5 * variance * (weight @ precision)
    grad_log_scale = 0.5 * (weight[:, :, None] * (squares * precision - 1)).sum(0)
    return -pulls.sum(1), grad_log_var, weight.sum(0), pulls.sum(0), grad_log_scale


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances [N, M] of the rows of x [N, D] and of y [M, D], without cancellation."""
    return (x[:, None] - y).square().sum(2)


def knn(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """For each of N queries the k nearest of M points: squared distances [N, k], ascending, and int64 indices [N, k].

    Of points at equal distance the first comes first.
    """
    distances, index = squared_distances(queries, points).sort(dim=1, stable=True)
    return distances[:, :k].contiguous(), index[:, :k].contiguous()


def tsne_affinities(x: Tensor, perplexity: float) -> Tensor:
    """The joint probabilities P [B, B] of t-SNE for the rows of x [B, D]: symmetric, of sum 1 and with a zero diagonal.

    p_j|i is proportional to exp(-beta_i |x_i - x_j|^2), with beta_i such that the entropy of a row is log(perplexity),
    and p_ij = (p_j|i + p_i|j) / 2B. beta is found by Newton's method on log beta within a bracket, dH / dlog beta =
    -beta^2 Var(d), and by bisection where a step would leave it. Rows whose entropy ties keep out of reach end
    with equal probabilities of the nearest. Fewer than two rows have no affinities: P is zero.
    """
    rows = x.shape[0]
    if rows < 2:
        return x.new_zeros(rows, rows)
    distances = squared_distances(x, x)
    distances.fill_diagonal_(math.inf)
    distances = distances - distances.amin(1, keepdim=True)
    finite = torch.where(distances.isfinite(), distances, 0)
    target = math.log(perplexity)
    spread = finite.sum(1) / (rows - 1)
    log_beta = -torch.where(spread > 0, spread, 1).log()
    low, high = torch.full_like(log_beta, -math.inf), torch.full_like(log_beta, math.inf)
    tolerance = 4 * torch.finfo(x.dtype).eps
    for _ in range(NEWTON_STEPS):
        beta = log_beta.exp()
        weights = (-beta[:, None] * distances).exp()
        total = weights.sum(1)
        mean = (weights * finite).sum(1) / total
        variance = (weights * (finite - mean[:, None]).square()).sum(1) / total
        excess = total.log() + beta * mean - target  # the entropy falls as beta grows
        if bool((excess.abs() <= tolerance * max(1.0, target)).all()):
            break
        low, high = torch.where(excess > 0, log_beta, low), torch.where(excess < 0, log_beta, high)
        step = (excess / (beta.square() * variance)).clamp(-4, 4)  # NaN where all distances tie
        newton = log_beta + step.nan_to_num(0, 4, -4)
        middle = 0.5 * (low + high)
        outside = (newton <= low) | (newton >= high)
        bounded = low.isfinite() & high.isfinite()
        log_beta = torch.where(outside & bounded, middle, newton).clamp(-87, 87)
    conditional = (-log_beta.exp()[:, None] * distances).exp()
    conditional = conditional / conditional.sum(1, keepdim=True)
    return (conditional + conditional.T) / (2 * rows)


def tsne_kl(y: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """KL(P || Q) summed over ordered pairs, and its gradient [B, D] with respect to the map y [B, D].

    q_ij is w_ij / Z, w_ij = 1 / (1 + |y_i - y_j|^2) and w_ii = 0, Z their sum. With G = (P - w / Z) w the gradient is
    4 [(sum_j G_ij) y_i - (G y)_i]. P is symmetric, and pairs of p = 0 attract nothing. A P that was multiplied by a
    number above 1 is exaggerated: sum p (log p - log w) + log Z and its gradient are computed as they stand. A map that
    is not finite has no finite divergence; one of fewer than two rows has none, and both results are zero.
    """
    if len(y) < 2:
        return y.new_zeros(()), torch.zeros_like(y)
    weights = 1 / (1 + squared_distances(y, y))
    weights.fill_diagonal_(0)
    total = weights.sum()
    kl = torch.special.xlogy(p, p).sum() - torch.special.xlogy(p, weights).sum() + total.log()
    pull = (p - weights / total) * weights
    return kl, 4 * (pull.sum(1, keepdim=True) * y - pull @ y)
