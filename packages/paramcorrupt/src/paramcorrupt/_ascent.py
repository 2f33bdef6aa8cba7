"""The ascents of a training step: weights go to round(w + a), for an a that grows within a ball, and back to w."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _ops, _sharded, _sums
from ._projection import project_
from ._shards import is_sharded, joined, local, over_shards
from .corruption import relative

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Rule:
    """The options of ascents."""

    p: float
    n: int | None
    steps: int
    step_size: float
    by_tensor: bool
    inner_lr: float | None
    """The length of a step in units of the gradient, where it is not a share of the ball's radius."""


@dataclass(frozen=True, slots=True)
class Stats:
    """Of tensors that belong to parameters, over all shards."""

    rows: dict[Tensor, list[float]]
    """By parameter: sum |x|, sum x^2, max |x|, nonzeros, elements that are not finite."""

    @classmethod
    def of(cls, held: Mapping[Tensor, Tensor]) -> Stats:
        """Of what this process holds of tensors that are distributed as the parameters are."""
        table = _ops.grad_stats(list(held.values()))
        over_shards(table, list(held), maxima=slice(2, 3))
        return cls(dict(zip(held, table.tolist(), strict=True)))

    @property
    def is_finite(self) -> bool:
        return not any(row[4] for row in self.rows.values())

    def joint(self, params: Sequence[Tensor]) -> _sums.Statistics:
        """Of some of them together."""
        rows = [self.rows[p] for p in params]
        absolute, square, _, nonzeros, _ = map(math.fsum, zip(*rows, strict=True)) if rows else (0.0,) * 5
        return _sums.Statistics(absolute, square, max((row[2] for row in rows), default=0.0), int(nonzeros))


class Ascent:
    """Offsets a of weights, each within the ball of its unit: all tensors together, or every one for itself.

    Args:
        rule: the options.
        params: the parameters that are perturbed.

    Raises:
        TypeError, ValueError: with `n`, or a `p` other than 2 and inf, parameters in shards that are on several meshes
            or not cut as `torch.chunk` cuts.
    """

    def __init__(self, rule: Rule, params: Sequence[Tensor]) -> None:
        if rule.p not in (2, math.inf) or rule.n is not None:
            names = [str(i) for i in range(len(params))]
            for name, p in zip(names, params, strict=True):
                if is_sharded(p):
                    _sharded.check(f"parameter {name!r}", p)
            _sharded.check_parts("parameter", names, params)
        self.rule = rule
        self.params = list(params)
        held = self._held()
        self._marks = list(map(_mark, held))
        self._clean = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in held]
        self._offsets = {
            p: torch.empty(x.shape, dtype=wide(x.dtype), device=x.device) for p, x in zip(params, held, strict=True)
        }
        self._units = [[p] for p in params] if rule.by_tensor else [self.params]
        self._radii: list[float] = []
        everything = [0, sum(x.numel() for x in held), 0, 0]  # a threshold that all are above but zeros
        self._everything = torch.tensor(everything, device=held[0].device)

    def suits(self, params: Sequence[Tensor]) -> bool:
        """Whether it is of these parameters, as they are now."""
        return list(map(id, params)) == list(map(id, self.params)) and list(map(_mark, self._held())) == self._marks

    def begin(self, eps: float | relative) -> None:
        """Keep the weights, and start from a = 0."""
        torch._foreach_copy_(self._clean, self._held())
        torch._foreach_zero_(list(self._offsets.values()))
        if isinstance(eps, relative):
            clean = dict(zip(self.params, self._clean, strict=True))
            stats = Stats.of(clean)
            norms = [_sums.norm([clean[p] for p in unit], self.rule.p, stats.joint(unit)) for unit in self._units]
            self._radii = [eps.r * norm for norm in norms]
        else:
            self._radii = [eps] * len(self._units)

    def take(self, grads: Mapping[Tensor, Tensor], stats: Stats, scale: float) -> None:
        """Ascend along gradients of `scale` times the loss, of which `stats` are, project, and write the weights."""
        for unit, radius in zip(self._units, self._radii, strict=True):
            moved = [p for p in unit if p in grads]
            joint = stats.joint(moved)
            if joint.largest:
                self._move(moved, [grads[p] for p in moved], radius, joint, scale)
        self._project()
        self._write()

    def restore(self) -> None:
        """Set the weights to w, bit for bit."""
        held = self._held()
        torch._foreach_copy_(held, self._clean)
        torch.clear_autocast_cache()  # which may hold the weights in another dtype

    # --- a ------------------------------------------------------------------------------------------------------------

    def _move(
        self, moved: list[Tensor], grads: list[Tensor], radius: float, joint: _sums.Statistics, scale: float
    ) -> None:
        """a += the corruption of length s eps / K that raises the loss most, or inner_lr times the gradient."""
        a = [self._offsets[x] for x in moved]
        p, length = self.rule.p, radius * self.rule.step_size / self.rule.steps
        clip = radius if p == math.inf and self.rule.n is None else math.inf  # which is the projection
        if self.rule.inner_lr is not None:
            self._change(a, grads, step=self.rule.inner_lr / scale, clip=clip)
        elif p == 2:
            self._change(a, grads, step=length / _sums.norm(grads, 2, joint))
        elif p == math.inf:
            self._change(a, grads, step=length, power=0.0, clip=clip)
        elif p == 1:
            first = _sums.choose([""] * len(grads), _joined(moved, grads), 1)
            a[int(first.offsets.diff().argmax())].view(-1)[first.index] += length * first.value.sign()
        else:
            grads = [x.double() / joint.largest for x in grads]  # whose powers stay in range
            total = _sums.power_sum_above(_joined(moved, grads), p / (p - 1), 1.0, 0)
            self._change(a, grads, step=length * total ** (-1 / p), power=1 / (p - 1))

    def _project(self) -> None:
        """Move a to the closest point of the ball."""
        p, n = self.rule.p, self.rule.n
        if p == math.inf and n is None:
            return
        stats = Stats.of(self._offsets) if p == 2 and n is None else None
        for unit, radius in zip(self._units, self._radii, strict=True):
            a = [self._offsets[p] for p in unit]
            if stats is None:
                a = _joined(unit, a)
                project_(a, radius, p, n if n is None else min(n, _sums.count(a)))
            elif (norm := _sums.norm(a, 2, stats.joint(unit))) > radius:
                self._change(a, a, scale=radius / norm)

    def _change(
        self,
        a: list[Tensor],
        grads: list[Tensor],
        *,
        step: float = 0.0,
        power: float = 1.0,
        clip: float = math.inf,
        scale: float = 1.0,
    ) -> None:
        _ops.ascend_project_(a, grads, step, power, self._everything, 0.0, clip, scale)

    # --- w ------------------------------------------------------------------------------------------------------------

    def _held(self) -> list[Tensor]:
        return list(map(local, self.params))

    def _write(self) -> None:
        """Set the weights to round(w + a)."""
        held = self._held()
        dense = [x if x.is_contiguous() else torch.empty_like(c) for x, c in zip(held, self._clean, strict=True)]
        _ops.apply_dense_(dense, self._clean, list(self._offsets.values()), 1.0, 1.0)
        for x, y in zip(held, dense, strict=True):
            if y is not x:
                x.copy_(y)
        torch.clear_autocast_cache()  # which may hold the weights in another dtype


def _joined(params: list[Tensor], held: list[Tensor]) -> list[Tensor]:
    """Tensors in shards as the parameters are, of what this process holds of them."""
    return [
        joined(x, p.device_mesh, p.placements, p.shape) if is_sharded(p) else x  # type: ignore[attr-defined]
        for p, x in zip(params, held, strict=True)
    ]


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32 for the types of 16 bits."""
    return torch.promote_types(dtype, torch.float32)


def _mark(x: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return x.shape, x.dtype, x.device
