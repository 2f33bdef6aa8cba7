"""A step of several micro-batches, each of which has its own ascent; what a trainer does about them is left out."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from torch.amp import GradScaler

    from ..optimizer import GASAM

__all__ = ["Accumulation", "LossScale"]


class LossScale:
    """What the loss of a micro-batch was multiplied with, in place of the GradScaler that is a part of it."""

    def __init__(self, scaler: GradScaler | None, micro_batches: int) -> None:
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.micro_batches = micro_batches

    def is_enabled(self) -> bool:
        return self.scaler is not None or self.micro_batches > 1

    def scale(self, x: Tensor) -> Tensor:
        x = x / self.micro_batches
        return x if self.scaler is None else self.scaler.scale(x)


class Accumulation:
    """Adds up the clean gradients of micro-batches for those who mix them with the gradients of the step."""

    def __init__(self, optimizer: GASAM) -> None:
        if optimizer._fraction < 1:
            raise ValueError(f"ascent_fraction must be 1 with a trainer, got {optimizer._fraction}: it needs a closure")
        if optimizer._passes.share_dropout:
            raise ValueError("share_dropout must be False with a trainer, got True: it needs a closure")
        self.optimizer = optimizer
        self._clean: dict[Tensor, Tensor] = {}

    @property
    def ascents(self) -> int:
        """How many gradients are needed before the last one."""
        return self.optimizer._rule.steps if self.optimizer._needs_gradient else 0

    def ascend(self, scale: Any, grads: Sequence[Tensor | None] | None = None) -> None:
        """Along the gradients of a micro-batch, by default `.grad`, of a loss with this scale."""
        self.optimizer.perturb(grads, scaler=scale)

    @contextmanager
    def micro_batch(self, scale: LossScale, *, last: bool) -> Iterator[None]:
        """Around the passes of one micro-batch. The weights are restored, after the last one by the step."""
        optimizer = self.optimizer
        try:
            if not optimizer._needs_gradient:
                optimizer.perturb()
            yield
        except BaseException:
            self._clean = {}
            if optimizer.is_perturbed:
                optimizer.restore()
            raise
        if self._clean or not last:
            for p, grad in optimizer._clean.items():
                self._clean[p] = self._clean[p].add_(grad) if p in self._clean else grad.clone()
        if not last:
            optimizer.restore()
        elif self._clean:
            optimizer._clean, self._clean = self._clean, {}
        if last:
            device = next(iter(optimizer._chosen())).device
            optimizer._scale = None if scale.scaler is None else scale.scaler.scale(torch.ones((), device=device))
