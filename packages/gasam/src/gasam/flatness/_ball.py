"""The loss in a ball around the weights: at random, and at the worst place that is found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ._landscape import Landscape, Loss, check_integers

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, eq=False)
class BallCurve:
    """Losses at some distances from the weights, from :func:`loss_in_ball`; all float64 of shape `(len(radii),)`.

    Attributes:
        radii: the distances.
        random_mean: the mean loss over random directions.
        random_max: the largest loss over random directions.
        worst: the largest loss that ascent found within the ball.
    """

    radii: Tensor
    random_mean: Tensor
    random_max: Tensor
    worst: Tensor


def loss_in_ball(
    model: nn.Module,
    loss: Loss,
    data: Iterable[Any],
    radii: Iterable[float],
    *,
    norm: float = 2,
    directions: int = 8,
    steps: int = 5,
    segments: str = "global",
    seed: int = 0,
) -> BallCurve:
    """The mean loss at weights w + e with e at some radii: for random e, and for the worst e that is found.

    A random e lies on the ball's surface: `e = radius u / ||u||` with normally distributed u, or `e = radius sign(u)`
    for `norm=math.inf`. The worst e in the ball is sought by projected gradient ascent from the worst of: the random
    e, the direction of the gradient, the worst e of the next smaller radius. It is a lower bound that never decreases
    with the radius. The model is used and left as by :func:`top_eigenvalue`.

    Args:
        model: its parameters that require gradients are moved; float32 or float64.
        loss: called as `loss(model, batch)`, returns a scalar.
        data: batches, weighted equally; iterated over again and again.
        radii: of the ball, non-negative, in the units of the weights: `rho`.
        norm: 2, or `math.inf` for a ball in the largest absolute element.
        directions: random directions, the same for all radii. One pass over `data` for each of them and each radius.
        steps: of the ascent. One gradient over `data` for each of them and each radius.
        segments: "global", one ball; "tensor" or "channel" (rows of dimension 0): a ball for each segment k of d_k
            among N weights, of radius `radius sqrt(d_k / N)`, or `radius` for `norm=math.inf`.
        seed: of the random directions.

    Raises:
        TypeError: `data` can be iterated over once only, or `model` is no module.
        ValueError: an argument is out of its range, `data` is empty, or the loss is no scalar.

    Example:
        >>> import torch
        >>> from gasam.flatness import loss_in_ball
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> data = [torch.tensor([[3.0, 0.0], [0.0, 1.0]])]
        >>> curve = loss_in_ball(model, lambda model, x: model(x).square().sum() / 2, data, [0.0, 1.0, 2.0])
        >>> curve.worst.round(decimals=3)
        tensor([ 0.0000,  4.5000, 18.0000], dtype=torch.float64)

    Reference:
        Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", 2021, equation 1.
    """
    distances = torch.tensor([float(radius) for radius in radii], dtype=torch.float64, device="cpu")
    if not len(distances) or not distances.isfinite().all() or (distances < 0).any():
        raise ValueError(f"radii must be one or more non-negative finite numbers, got {distances.tolist()}")
    if norm not in (2, math.inf):
        raise ValueError(f"norm must be 2 or math.inf, got {norm}")
    if segments not in ("global", "tensor", "channel"):
        raise ValueError(f"segments must be 'global', 'tensor' or 'channel', got {segments!r}")
    check_integers(directions=directions, steps=steps)
    with Landscape(model, loss, data) as landscape:
        landscape.check_precision("loss_in_ball")
        ball = _Ball(landscape, segments, norm)
        mean, highest, worst = torch.empty(3, len(distances), dtype=torch.float64, device="cpu")
        centre, gradient = landscape.gradient()
        largest, offset = centre, None
        for j in distances.argsort().tolist():
            radius = distances[j].item()
            losses, start = [], gradient
            for direction in islice(landscape.normals(seed), directions):
                losses.append(landscape.value(ball.surface(direction, radius)))
                if losses[-1] == max(losses):
                    start = direction
            starts = [start, gradient] if offset is None else [start, gradient, offset]
            found, offset = ball.ascend([ball.surface(x, radius) for x in starts], radius, steps)
            mean[j], highest[j] = math.fsum(losses) / directions, max(losses)
            worst[j] = largest = max(largest, found)
    return BallCurve(distances, mean, highest, worst)


class _Ball:
    """Balls around the weights, one for each segment of a vector like them."""

    def __init__(self, landscape: Landscape, segments: str, norm: float) -> None:
        self.landscape, self.norm = landscape, norm
        params = landscape.params
        self.sizes = [landscape.numel] if segments == "global" else [p.numel() for p in params]
        self.rows = [p.shape[0] if segments == "channel" and p.ndim > 1 else 1 for p in params][: len(self.sizes)]

    def surface(self, u: Tensor, radius: float) -> Tensor:
        """The point of the surface in the direction of u. A segment in which u is 0 stays there."""
        u = u.nan_to_num(0, 0, 0)
        return radius * u.sign() if self.norm == math.inf else self._rescale(u, radius, math.inf)

    def project(self, e: Tensor, radius: float) -> Tensor:
        """The nearest point of the ball."""
        return e.clamp(-radius, radius) if self.norm == math.inf else self._rescale(e, radius, 1)

    def _rescale(self, u: Tensor, radius: float, limit: float) -> Tensor:
        parts = []
        for part, rows in zip(u.split(self.sizes), self.rows, strict=True):
            table = part.view(rows, -1)
            norms = table.norm(dim=1, keepdim=True).clamp(min=1e-30)
            target = radius * math.sqrt(table.shape[1] / len(u))
            parts.append((table * (target / norms).clamp(max=limit)).flatten())
        return torch.cat(parts)

    def ascend(self, starts: list[Tensor], radius: float, steps: int) -> tuple[float, Tensor]:
        """The largest loss that is found, and where."""
        values = [self.landscape.value(start) for start in starts]
        value = max(values)
        e = starts[values.index(value)]
        gradient = self.landscape.gradient(e)[1]
        stride = 2.0
        for _ in range(steps):
            trial = self.project(e + self.surface(gradient, stride * radius), radius)
            found, slope = self.landscape.gradient(trial)
            if found > value:
                e, value, gradient = trial, found, slope
                stride *= 2
            else:
                stride /= 4
        return value, e
