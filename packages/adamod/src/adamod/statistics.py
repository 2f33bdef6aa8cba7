"""What the step counts about its bound, and the same recomputed from an optimizer's states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _reference, _state
from ._reference import BINS, FIRST_EXPONENT

if TYPE_CHECKING:
    from .optimizer import AdaMod

__all__ = ["BoundStats"]


@dataclass(frozen=True)
class BoundStats:
    """The learning rates of one parameter over some steps, before and after the bound.

    Attributes:
        name: the parameter's name, if the optimizer was given names.
        steps: the number of steps counted.
        elements: the number of elements counted, over all these steps.
        clipped: the fraction of them with s < eta, exact.
        sampled: the number of elements in each histogram.
        eta: counts of the learning rate before the bound, int64 of shape (64,).
        s: counts of the bound, int64 of shape (64,).
        edges: the edges of the bins, float64 of shape (65,): powers of two from 2^-40 to 2^24. The first and the last
            bin also hold what lies outside.
    """

    name: str | None
    steps: int
    elements: int
    clipped: float
    sampled: int
    eta: Tensor
    s: Tensor
    edges: Tensor


def summarise(optimizer: AdaMod, counts: dict[torch.device, Tensor]) -> dict[Tensor, BoundStats]:
    """Counts by device and place as one `BoundStats` for each parameter that was counted."""
    rows = {device: table.cpu() for device, table in counts.items()}
    edges = 2.0 ** torch.arange(FIRST_EXPONENT, FIRST_EXPONENT + BINS + 1, dtype=torch.float64, device="cpu")
    result = {}
    place = 0
    for group in optimizer.param_groups:
        names = group.get("param_names") or [None] * len(group["params"])
        for name, p in zip(names, group["params"], strict=True):
            local = _state.local(p)
            table = rows.get(local.device)
            elements = int(table[place, 0]) if table is not None and place < len(table) else 0
            if table is not None and elements:
                eta, s = table[place, 2 : 2 + BINS].clone(), table[place, 2 + BINS :].clone()
                result[p] = BoundStats(
                    name=name,
                    steps=elements // (local.numel() * (2 if p.is_complex() else 1)),
                    elements=elements,
                    clipped=int(table[place, 1]) / elements,
                    sampled=int(eta.sum()),
                    eta=eta,
                    s=s,
                    edges=edges,
                )
            place += 1
    return result


def recount(optimizer: AdaMod) -> dict[torch.device, Tensor]:
    """The counts of the last step of every parameter, from its exp_avg_sq and exp_avg_lr."""
    total = sum(len(group["params"]) for group in optimizer.param_groups)
    counts: dict[torch.device, Tensor] = {}
    place = -1
    for group in optimizer.param_groups:
        for p in group["params"]:
            place += 1
            state = optimizer.state.get(p)
            if not state or int(state["step"]) == 0:
                continue
            v, s = (_state.local(_state.values(state, key)) for key in ("exp_avg_sq", "exp_avg_lr"))
            v, s = (torch.view_as_real(x) if x.is_complex() else x for x in (v, s))
            v, s = (x if x.dtype == torch.float64 else x.float() for x in (v, s))
            t = int(state["step"])
            lr, beta1, beta2, beta3 = (float(x) for x in (group["lr"], *group["betas"], group["beta3"]))
            options = _reference.Options(lr, beta1, beta2, beta3, group["eps"], 0.0, paper=group["variant"] == "paper")
            eta = _reference.learning_rate(v, t, options)
            local = _state.local(p)
            order = _reference.memory_order(torch.view_as_real(local) if local.is_complex() else local)
            table = counts.setdefault(
                local.device, torch.zeros(total, 2 + 2 * BINS, dtype=torch.int64, device=local.device)
            )
            _reference.count(table[place], eta.permute(order), s.permute(order), t)
    return counts
