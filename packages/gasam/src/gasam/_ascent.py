"""The ascents of one optimizer step: the operator calls by which weights are perturbed and restored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from . import _ops

if TYPE_CHECKING:
    from ._segments import Units

_REFERENCES = {"none": 0, "global": 1, "running": 2}


@dataclass(frozen=True, slots=True)
class Rule:
    """The options of an ascent, as the operators take them."""

    strength_exponent: float
    size_exponent: float
    clip: float
    reference: int
    norm: int
    eta: float
    steps: int
    layerwise: bool

    @classmethod
    def of(
        cls,
        *,
        strength_exponent: float,
        size_exponent: float,
        strength_clip: float,
        reference: str,
        norm: float,
        eta: float,
        steps: int,
        adaptive: bool | str,
    ) -> Rule:
        return cls(
            float(strength_exponent),
            float(size_exponent),
            float(strength_clip),
            _REFERENCES[reference],
            0 if norm == math.inf else 2,
            float(eta),
            int(steps),
            adaptive == "layer",
        )


class Ascent:
    """Moves weights to w + e^1, w + e^2, ..., and back to w bit for bit.

    Attributes:
        taken: number of ascents.
        strengths: s of each unit's segment.
        found_inf: 1.0 where a gradient was not finite, so that nothing was moved.
    """

    def __init__(self, rule: Rule, units: Units) -> None:
        self.rule = rule
        self.units = units
        self.taken = 0
        self.strengths: Tensor
        self.found_inf: Tensor
        self._radius: Tensor
        self._layer: Tensor | None

    def take(self, grads: list[Tensor], rho: Tensor, running: Tensor, scale: Tensor | None, seed: Tensor) -> None:
        """Move the weights along gradients, which lie as the parameters do in memory."""
        units, rule = self.units, self.rule
        multiplier = self._first(grads, rho, running, scale) if self.taken == 0 else self._next(grads, running, scale)
        seeds = self._seeds(seed)
        if rule.steps == 1:
            for part, m, s in zip(units.parts, units.split(multiplier), seeds, strict=True):
                k = part.params
                _ops.perturb_(
                    units.locals[k],
                    units.backup[k],
                    grads[k],
                    m,
                    part.rows,
                    units.weighted[k],
                    rule.eta,
                    rule.norm,
                    s,
                )
        else:
            self._climb(grads, multiplier * (1.5 / rule.steps), seeds)
        increment_version(units.locals)
        self.taken += 1

    def strengths_by_name(self) -> dict[str, Tensor]:
        """Of each parameter: a tensor of shape (), or of its rows."""
        units = self.units
        each = self.strengths.split(units.rows)
        return {name: s if units.by_channel else s[0] for name, s in zip(units.names, each, strict=True)}

    def _first(self, grads: list[Tensor], rho: Tensor, running: Tensor, scale: Tensor | None) -> Tensor:
        units, rule = self.units, self.rule
        weights = units.locals
        layer = units.sums(weights, weights, [0] * len(weights), rule.eta) if rule.layerwise else None
        sums = units.sums(grads, weights, units.weighted, rule.eta)
        multiplier: Tensor
        multiplier, self.strengths, self.found_inf = _ops.strengths(
            sums,
            units.segment,
            units.sizes,
            rho,
            running,
            scale,
            layer,
            rule.size_exponent,
            rule.strength_exponent,
            rule.clip,
            rule.reference,
            rule.norm,
        )
        self._layer = layer
        if rule.steps > 1:
            self._radius = self.strengths.nan_to_num(nan=0.0)
            for part in units.parts:
                _ops.restore_(units.backup[part.params], weights[part.params])
                torch._foreach_zero_(units.offset[part.params])
        return multiplier

    def _next(self, grads: list[Tensor], running: Tensor, scale: Tensor | None) -> Tensor:
        """The multipliers of a later gradient: the strengths stay those of the first."""
        units, rule = self.units, self.rule
        sums = units.sums(grads, units.backup, units.weighted, rule.eta)
        size_exponent = 0.0 if rule.norm == 2 else 0.5
        multiplier: Tensor
        multiplier, _, found_inf = _ops.strengths(
            sums,
            units.segment,
            units.sizes,
            self._radius,
            running,
            scale,
            self._layer,
            size_exponent,
            0.0,
            1.0,
            0,
            rule.norm,
        )
        self.found_inf = torch.maximum(self.found_inf, found_inf)
        return multiplier

    def _climb(self, grads: list[Tensor], multiplier: Tensor, seeds: list[Tensor]) -> None:
        """Move the offset within the ball of the strengths, and the weights to where it leads."""
        units, rule = self.units, self.rule
        radius = self._radius
        if self._layer is not None:
            radius = radius * units.of_segments(self._layer).sqrt()
        for part, m, r in zip(units.parts, units.split(multiplier), units.split(radius), strict=True):
            k = part.params
            _ops.ascend_(
                units.offset[k],
                units.backup[k],
                grads[k],
                m,
                r,
                part.rows,
                units.weighted[k],
                rule.eta,
                rule.norm,
            )
        scale = torch.ones_like(radius)
        if rule.norm == 2:
            inverse = [-kind for kind in units.weighted]
            norm = units.of_segments(units.sums(units.offset, units.backup, inverse, rule.eta)).sqrt()
            scale = torch.where(norm > radius, radius / norm, scale)
        for part, c, s in zip(units.parts, units.split(scale), seeds, strict=True):
            k = part.params
            _ops.project_(units.locals[k], units.backup[k], units.offset[k], c, part.rows, s)

    def _seeds(self, seed: Tensor) -> list[Tensor]:
        return [seed.to(part.device, non_blocking=True) + part.salt if part.salt else seed for part in self.units.parts]
