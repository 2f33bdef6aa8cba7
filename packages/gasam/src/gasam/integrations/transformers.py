"""Hugging Face's Trainer with an ascent for each micro-batch; needs the extra `gasam[transformers]`."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel

from ..optimizer import GASAM
from ._accumulation import Accumulation, LossScale

try:
    from transformers import Trainer
except ImportError as error:
    raise ImportError(
        "gasam.integrations.transformers needs transformers and accelerate: pip install 'gasam[transformers]'"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn
    from torch.optim import Optimizer

__all__ = ["SAMTrainer"]


class SAMTrainer(Trainer):
    """`transformers.Trainer` that trains with GA-SAM or one of its family, over the optimizer that it would make.

    Each micro-batch has its own ascent: its gradient moves the weights, its loss is differentiated once more there, and
    the weights come back. The gradients of micro-batches add up as always, and are clipped and applied once. Under DDP
    each process ascends along its own gradient, unless `sync_ascent` is set. The loss in the log is that of the clean
    weights, and `sharpness` the mean of L(w + e) - L(w) since the last entry. Checkpoints hold the optimizer's state.

    Args:
        *args: as for `Trainer`.
        sam: arguments of the optimizer, except `params` and `base_optimizer`, and `optimizer`, its class (default
            `GASAM`). With `ascent_fraction` or `share_dropout`, which need a closure, use the optimizer itself.
        **kwargs: as for `Trainer`. A GA-SAM optimizer in `optimizers` is used as it is.

    Raises:
        ValueError: an argument is out of its range, or DeepSpeed or FSDP keeps the gradients, whose micro-batches
            cannot be told apart.
        TypeError: `sam["optimizer"]` is no class of the family.

    Example:
        >>> from gasam.integrations.transformers import SAMTrainer  # doctest: +SKIP
        >>> trainer = SAMTrainer(model, args, train_dataset=data, sam=dict(rho=0.05))  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP

    Reference: Z. Zhang, R. Luo, Q. Su, X. Sun, GA-SAM: Gradient-Strength based Adaptive Sharpness-Aware Minimization
    for Improved Generalization, https://arxiv.org/abs/2210.06895
    """

    def __init__(self, *args: Any, sam: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        options = dict(sam or {})
        kind = options.pop("optimizer", GASAM)
        if not (isinstance(kind, type) and issubclass(kind, GASAM)):
            raise TypeError(f"sam['optimizer'] must be GASAM or a preset, got {kind!r}")
        for name in ("params", "base_optimizer"):
            if name in options:
                raise TypeError(f"sam must not contain {name!r}: the Trainer makes it from its arguments")
        self._make = kind, options
        self._accumulation: Accumulation | None = None
        self._sharpness: Tensor | float = 0.0
        self._ascents = 0
        given = kwargs.get("args", args[1] if len(args) > 1 else None)
        _refuse("DeepSpeed", bool(getattr(given, "deepspeed", None)))
        super().__init__(*args, **kwargs)
        self._refuse_engines()

    def _refuse_engines(self) -> None:
        _refuse("DeepSpeed", self.is_deepspeed_enabled)
        _refuse("FSDP", self.is_fsdp_enabled)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`."""
        self._refuse_engines()
        return super().train(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """The optimizer that `Trainer` makes, or was given, as the base of one of the family."""
        base = super().create_optimizer(*args, **kwargs)
        if not isinstance(getattr(base, "optimizer", base), GASAM):
            kind, options = self._make
            params = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
            whole = len(params) == len(list(self.model.parameters()))
            self.optimizer = kind(self.model if whole else params, base, **options)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """The ascents and the last gradient of one micro-batch; returns its loss at the clean weights."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if self._accumulation is None or self._accumulation.optimizer is not optimizer:
            self._accumulation = Accumulation(optimizer)
            optimizer.watch(model)
        loss: Tensor
        if not optimizer.needs_ascent:
            loss = super().training_step(model, inputs, *args, **kwargs)
            return loss
        last = self.accelerator.sync_gradients
        scale = LossScale(self.accelerator.scaler, self.current_gradient_accumulation_steps)
        clean: Tensor | None = None
        with self._accumulation.micro_batch(scale, last=last):
            accumulated = [(p, p.grad) for group in optimizer.param_groups for p in group["params"]]
            for _ in range(self._accumulation.ascents):
                for p, _ in accumulated:
                    p.grad = None
                first = optimizer._passes.clean() if clean is None else nullcontext()
                with _averaging(model, optimizer._passes.sync_ascent), first:
                    loss = super().training_step(model, inputs, *args, **kwargs)
                self._accumulation.ascend(scale)
                clean = loss if clean is None else clean
            for p, grad in accumulated:
                p.grad = grad
            loss = super().training_step(model, inputs, *args, **kwargs)
        if clean is None:
            return loss
        self._sharpness = self._sharpness + (loss - clean)
        self._ascents += last
        return clean

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds `sharpness` where the loss of training is logged."""
        if "loss" in logs and self._ascents:
            sharpness = self.accelerator.gather(torch.as_tensor(self._sharpness)).mean().item() / self._ascents
            logs = {**logs, "sharpness": sharpness}
            self._sharpness, self._ascents = 0.0, 0
        super().log(logs, *args, **kwargs)


def _refuse(engine: str, enabled: bool) -> None:
    if enabled:
        raise ValueError(f"SAMTrainer does not train with {engine}, which keeps gradients to itself: use DDP")


@contextmanager
def _averaging(model: nn.Module, on: bool) -> Iterator[None]:
    """Whether DDP averages gradients, also within `no_sync`."""
    if not isinstance(model, DistributedDataParallel):
        yield
        return
    before = model.require_backward_grad_sync
    model.require_backward_grad_sync = on
    try:
        yield
    finally:
        model.require_backward_grad_sync = before
