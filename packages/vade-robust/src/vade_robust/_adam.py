"""Adam (Kingma and Ba, 2015) as one fused call per step, which skips a step on the device and can be saved by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class Adam:
    """torch.optim.Adam(fused=True), without the seconds that importing what it never uses takes.

    parameters: by name; those without a gradient in a step stay as they are. lr: may be set between steps.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], lr: float) -> None:
        self.parameters, self.lr = dict(parameters), lr
        self.exp_avg = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.exp_avg_sq = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.steps = torch.zeros((), device=next(iter(self.parameters.values())).device)

    def gradients(self) -> list[Tensor]:
        """The gradients that there are."""
        return [p.grad for p in self.parameters.values() if p.grad is not None]

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """The norm of all gradients together, on the device; not finite if any of them is not."""
        flat = [gradient.flatten() for gradient in self.gradients()]
        if self.steps.device.type != "cpu":
            return torch.nn.utils.get_total_norm(flat)
        return torch.stack([x.dot(x) for x in flat]).sum().sqrt()  # in half the time of a norm

    @torch.no_grad()
    def step(self, skip: Tensor) -> None:
        """One step, none if `skip` (a tensor on the device) is 1; the gradients are gone afterwards."""
        names = [name for name, p in self.parameters.items() if p.grad is not None]
        self.steps += 1 - skip
        torch._fused_adam_(
            [self.parameters[name] for name in names],
            self.gradients(),
            [self.exp_avg[name] for name in names],
            [self.exp_avg_sq[name] for name in names],
            [],
            [self.steps] * len(names),
            lr=self.lr,
            beta1=BETA1,
            beta2=BETA2,
            weight_decay=0.0,
            eps=EPS,
            amsgrad=False,
            maximize=False,
            found_inf=skip,
        )
        for parameter in self.parameters.values():
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Moments and the number of steps, by name."""
        state = {f"exp_avg.{name}": value for name, value in self.exp_avg.items()}
        state |= {f"exp_avg_sq.{name}": value for name, value in self.exp_avg_sq.items()}
        return {**state, "steps": self.steps}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes a `state` of the same names and shapes."""
        for name, value in self.state().items():
            value.copy_(state[name])
