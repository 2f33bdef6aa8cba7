"""A mixin for Lightning's modules that ascends for each micro-batch; needs the extra `gasam[lightning]`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ..optimizer import GASAM
from ._accumulation import Accumulation, LossScale

try:
    from lightning.pytorch import LightningModule
    from lightning.pytorch.trainer.call import _call_strategy_hook
except ImportError as error:
    raise ImportError("gasam.integrations.lightning needs lightning: pip install 'gasam[lightning]'") from error

__all__ = ["SharpnessAware"]


class SharpnessAware(LightningModule):
    """A mixin for a `LightningModule` whose `configure_optimizers` returns GA-SAM or one of its family.

    Optimization stays automatic, with the Trainer's accumulation, clipping, precision and strategy. Each micro-batch
    has its own ascent: the gradient of its loss moves the weights, `training_step` runs once more there and its loss is
    differentiated, and the weights come back. The gradients of micro-batches add up as always, and are clipped and
    applied once. Under DDP each process ascends along its own gradient, unless `sync_ascent` is set. What is returned
    and logged is what `training_step` does at the clean weights, and `sharpness`, L(w + e) - L(w). Metrics that
    `training_step` updates are updated in both runs: `self.is_perturbed` tells which it is.

    With `automatic_optimization = False` nothing is done: call `step(closure)` of the optimizer.

    Raises:
        TypeError: at the first batch, `configure_optimizers` returned another optimizer.
        ValueError: at the first batch, it has `ascent_fraction` or `share_dropout`, which need a closure.

    Example:
        >>> from gasam.integrations.lightning import SharpnessAware  # doctest: +SKIP
        >>> class Net(SharpnessAware, LightningModule):  # doctest: +SKIP
        ...     def configure_optimizers(self):
        ...         return gasam.GASAM(self, torch.optim.SGD, rho=0.05, lr=0.1)

    Reference: Z. Zhang, R. Luo, Q. Su, X. Sun, GA-SAM: Gradient-Strength based Adaptive Sharpness-Aware Minimization
    for Improved Generalization, https://arxiv.org/abs/2210.06895
    """

    is_perturbed = False
    _arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None  # of training_step
    _steps = False  # after this micro-batch
    _accumulation: Accumulation | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        step = cls.training_step
        if step is not LightningModule.training_step and not hasattr(step, "_keeps_arguments"):
            cls.training_step = _keeping_arguments(step)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The ascents and the last gradient of one micro-batch, whose loss at the clean weights is given."""
        if not self.automatic_optimization:
            super().backward(loss, *args, **kwargs)
            return
        accumulation = self._its_accumulation()
        optimizer = accumulation.optimizer
        arguments, self._arguments = self._arguments, None
        if not optimizer.needs_ascent:
            super().backward(loss, *args, **kwargs)
            return
        scale = LossScale(getattr(self.trainer.precision_plugin, "scaler", None), self.trainer.accumulate_grad_batches)
        with accumulation.micro_batch(scale, last=self._steps):
            clean, last = loss.detach(), loss
            for _ in range(accumulation.ascents):
                accumulation.ascend(scale, _gradients(last, optimizer))
                last = scale.scale(self._loss_again(arguments))
            if not accumulation.ascents:
                last = scale.scale(self._loss_again(arguments))
            super().backward(last, *args, **kwargs)
        if accumulation.ascents:
            self.log("sharpness", (last.detach() - clean) / scale.scale(torch.ones_like(clean)))

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """The last micro-batch, clipping, and the base optimizer's step."""
        sam = self._its_accumulation().optimizer
        self._steps = True
        try:
            with _called_once(sam):
                super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        finally:
            self._steps = False
            if sam.is_perturbed:  # the gradients have overflown, or there was an exception
                sam.restore()

    def log(self, *args: Any, **kwargs: Any) -> None:
        """As in Lightning, once for each batch."""
        if not self.is_perturbed:
            super().log(*args, **kwargs)

    def _its_accumulation(self) -> Accumulation:
        optimizer = self.optimizers(use_pl_optimizer=False)
        if not isinstance(optimizer, GASAM):
            raise TypeError(
                f"configure_optimizers must return one GASAM or a preset of it, got {type(optimizer).__name__}"
            )
        if self._accumulation is None or self._accumulation.optimizer is not optimizer:
            self._accumulation = Accumulation(optimizer)
        return self._accumulation

    def _loss_again(self, arguments: tuple[tuple[Any, ...], dict[str, Any]] | None) -> Tensor:
        if arguments is None:
            raise RuntimeError("backward() needs the arguments of training_step, which must be a method of the class")
        self.is_perturbed = True
        try:
            output = _call_strategy_hook(self.trainer, "training_step", *arguments[0], **arguments[1])
        finally:
            self.is_perturbed = False
        loss = output["loss"] if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            raise TypeError(f"training_step must return a loss at the perturbed weights too, got {type(loss).__name__}")
        return loss


def _keeping_arguments(step: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(step)
    def training_step(self: SharpnessAware, *args: Any, **kwargs: Any) -> Any:
        output = step(self, *args, **kwargs)
        self._arguments = args, kwargs  # afterwards, as this may call that of the parent class
        return output

    training_step._keeps_arguments = True  # type: ignore[attr-defined]
    return training_step


def _gradients(loss: Tensor, optimizer: GASAM) -> list[Tensor | None]:
    """Of the perturbed parameters. DDP does not see them: it averages what backward() leaves."""
    params = optimizer._current_segments().params
    trained = [p for p in params if p.requires_grad]
    grads: dict[Tensor, Tensor | None] = dict(
        zip(trained, torch.autograd.grad(loss, trained, allow_unused=True), strict=True)
    )
    if optimizer._passes.sync_ascent and torch.distributed.is_initialized():
        for p in trained:
            grad = grads[p]
            grads[p] = grad = torch.zeros_like(p) if grad is None else grad
            torch.distributed.all_reduce(grad)
            grad /= torch.distributed.get_world_size()
    return [grads.get(p) for p in params]


@contextmanager
def _called_once(optimizer: GASAM) -> Iterator[None]:
    """Lightning's closure takes the ascents itself, so `step(closure)` calls it once and finishes the step."""
    own = vars(optimizer)
    before = {"step": own["step"]} if "step" in own else {}  # of a scheduler
    step = optimizer.step

    def once(closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else closure()
        if any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
            step()
        return loss

    # GradScaler.step calls what takes a loss scale itself also after an overflow, but Lightning refuses to clip then.
    own.update(step=once, _step_supports_amp_scaling=False)
    try:
        yield
    finally:
        del own["step"], own["_step_supports_amp_scaling"]
        own.update(before)
