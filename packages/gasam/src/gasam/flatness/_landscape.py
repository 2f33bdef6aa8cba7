"""The loss of a model as a function of its weights, which leaves the model as it found it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Loss: TypeAlias = Callable[[Any, Any], Tensor]


def check_integers(**arguments: int) -> None:
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


class NotTwiceDifferentiableError(RuntimeError):
    """Something in the loss has no double backward."""

    def __init__(self) -> None:
        super().__init__("the loss cannot be differentiated twice: use hvp='difference' or 'auto'")


class Landscape:
    """The mean loss as a function of an offset from the weights. Leaving it leaves the model as it was."""

    def __init__(self, model: nn.Module, loss: Loss, data: Iterable[Any]) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not isinstance(data, Iterable) or isinstance(data, Iterator):
            raise TypeError(f"data must be re-iterable, such as a list or a DataLoader, got {type(data).__name__}")
        self.model, self.loss, self.data = model, loss, data
        self.names, self.params = [], []
        for name, p in model.named_parameters():
            if p.requires_grad and p.numel():
                if not p.is_floating_point():
                    raise ValueError(f"parameter '{name}' must be real, got {p.dtype}")
                self.names.append(name)
                self.params.append(p)
        self.sizes = [p.numel() for p in self.params]
        self.numel = sum(self.sizes)
        if not self.numel:
            raise ValueError("model must have parameters that require gradients, got none")
        self.device = self.params[0].device
        self.dtype = torch.float64 if any(p.dtype == torch.float64 for p in self.params) else torch.float32

    def __enter__(self) -> Landscape:
        self._weights = [p.detach().clone() for p in self.params]
        self._grads = [(p, p.grad) for p in self.model.parameters()]
        self._modes = [(module, module.training) for module in self.model.modules()]
        self._buffers = [
            (module._buffers, name, buffer, buffer.clone())
            for module in self.model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        cuda = {p.device for p in self.params if p.device.type == "cuda"}
        self._generators = [(device, torch.cuda.get_rng_state(device)) for device in cuda]
        self._random = torch.get_rng_state(), random.getstate()
        for p, _ in self._grads:
            p.grad = None
        return self

    def __exit__(self, *error: object) -> None:
        self._move(None)
        self._rewind()
        for p, grad in self._grads:
            p.grad = grad

    @torch.no_grad()
    def _move(self, offset: Tensor | None) -> None:
        """Put the weights at an offset from where they were."""
        if offset is None:
            for p, weight in zip(self.params, self._weights, strict=True):
                p.copy_(weight)
        else:
            for p, weight, part in zip(self.params, self._weights, self.parts(offset), strict=True):
                p.copy_(weight + part)

    @torch.no_grad()
    def _rewind(self) -> None:
        """Undo what a pass over the data did to the model's buffers and modes and to the random numbers."""
        for module, mode in self._modes:
            module.training = mode
        for buffers, name, buffer, value in self._buffers:
            buffers[name] = buffer.copy_(value)
        for device, state in self._generators:
            torch.cuda.set_rng_state(state, device)
        torch.set_rng_state(self._random[0])
        random.setstate(self._random[1])

    def _losses(self) -> Iterator[Tensor]:
        """The loss of every batch."""
        self._rewind()
        self.batches = 0
        for batch in self.data:
            self.batches += 1
            loss = self.loss(self.model, batch)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
                raise ValueError(f"loss must return a scalar tensor, got {got}")
            yield loss.reshape(())
        if not self.batches:
            raise ValueError("data must hold at least one batch, got none")

    def parts(self, vector: Tensor) -> list[Tensor]:
        """A vector as tensors like the parameters."""
        pieces = zip(vector.split(self.sizes), self.params, strict=True)
        return [piece.view(p.shape).to(p.device, p.dtype) for piece, p in pieces]

    def flat(self, parts: Iterable[Tensor]) -> Tensor:
        """Tensors like the parameters as a vector."""
        return torch.cat([part.detach().to(self.device, self.dtype).reshape(-1) for part in parts])

    def normals(self, seed: int) -> Iterator[Tensor]:
        """Vectors of normally distributed numbers, the same on every device."""
        generator = torch.Generator("cpu").manual_seed(seed)
        while True:
            vector = torch.randn(self.numel, generator=generator, dtype=self.dtype, device="cpu")
            yield vector.to(self.device)

    def check_precision(self, what: str) -> None:
        for name, p in zip(self.names, self.params, strict=True):
            if p.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"{what} needs float32 or float64 parameters, '{name}' is {p.dtype}: use model.float()"
                )

    def value(self, offset: Tensor | None = None) -> float:
        self._move(offset)
        with torch.no_grad():
            return self._mean([loss.item() for loss in self._losses()])

    def gradient(self, offset: Tensor | None = None) -> tuple[float, Tensor]:
        """The loss and its gradient."""
        self._move(offset)
        total = torch.zeros(self.numel, dtype=self.dtype, device=self.device)
        values = []
        with torch.enable_grad():
            for loss in self._losses():
                total += self.flat(self._differentiate(loss))
                values.append(loss.item())
        return self._mean(values), total / self.batches

    def _mean(self, values: list[float]) -> float:
        mean = sum(values) / self.batches
        return math.inf if math.isnan(mean) else mean

    def _differentiate(self, loss: Tensor, create_graph: bool = False) -> tuple[Tensor, ...]:
        if not loss.requires_grad:
            raise ValueError("loss must depend on the parameters that require gradients")
        return torch.autograd.grad(loss, self.params, create_graph=create_graph, materialize_grads=True)

    def product(self, vector: Tensor) -> Tensor:
        """The Hessian times a vector, by differentiating twice."""
        self._move(None)
        total = torch.zeros(self.numel, dtype=self.dtype, device=self.device)
        direction = self.parts(vector)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no double backward
            for loss in self._losses():
                gradient = self._differentiate(loss, create_graph=True)
                curved = [i for i, g in enumerate(gradient) if g.requires_grad]
                if not curved:  # the loss is linear
                    continue
                try:
                    second = torch.autograd.grad(
                        [gradient[i] for i in curved],
                        self.params,
                        [direction[i] for i in curved],
                        materialize_grads=True,
                    )
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError as error:
                    raise NotTwiceDifferentiableError from error
                total += self.flat(second)
        return total / self.batches
