"""The operators: one schema and up to three kernels each, among which PyTorch's dispatcher picks: C++ for CPU tensors,
Triton for CUDA tensors, and the reference for every other device or missing kernel."""

from __future__ import annotations

from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _reference

if TYPE_CHECKING:
    from collections.abc import Callable

# Tensors are contiguous, of float32 or float64, and the same in a call: the functions below see to it.
_MIXTURE = "Tensor mean, Tensor? log_var, Tensor log_weight, Tensor centers, Tensor log_scale"
SCHEMAS = {
    "mixture_scores": f"({_MIXTURE}) -> (Tensor, Tensor)",
    "mixture_scores_backward": f"(Tensor grad_a, Tensor grad_lse, Tensor a, Tensor lse, {_MIXTURE})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "squared_distances": "(Tensor x, Tensor y) -> Tensor",
    "knn": "(Tensor queries, Tensor points, int k) -> (Tensor, Tensor)",
    "tsne_affinities": "(Tensor x, float perplexity) -> Tensor",
    "tsne_kl": "(Tensor y, Tensor p) -> (Tensor, Tensor)",
}


def _fake_mixture_scores(mean: Tensor, log_var: Tensor | None, log_weight: Tensor, *args: object) -> Any:
    return mean.new_empty(mean.shape[0], log_weight.shape[0]), mean.new_empty(mean.shape[0])


def _fake_mixture_scores_backward(
    grad_a: Tensor, grad_lse: Tensor, a: Tensor, lse: Tensor, mean: Tensor, log_var: Tensor | None, *parameters: Tensor
) -> Any:
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (mean, *parameters)]
    return grads[0], mean.new_empty(0 if log_var is None else mean.shape), *grads[1:]


def _fake_squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], y.shape[0])


def _fake_knn(queries: Tensor, points: Tensor, k: int) -> Any:
    distances = queries.new_empty(queries.shape[0], k)
    return distances, distances.new_empty(distances.shape, dtype=torch.int64)


def _fake_tsne_affinities(x: Tensor, perplexity: float) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[0])


def _fake_tsne_kl(y: Tensor, p: Tensor) -> Any:
    return y.new_empty(()), y.new_empty(y.shape)


_FAKES: dict[str, Callable[..., Any]] = {
    "mixture_scores": _fake_mixture_scores,
    "mixture_scores_backward": _fake_mixture_scores_backward,
    "squared_distances": _fake_squared_distances,
    "knn": _fake_knn,
    "tsne_affinities": _fake_tsne_affinities,
    "tsne_kl": _fake_tsne_kl,
}

for _name, _schema in SCHEMAS.items():
    torch.library.define(f"vade_robust::{_name}", _schema)
    torch.library.impl(f"vade_robust::{_name}", "CompositeExplicitAutograd", getattr(_reference, _name))
    # What `register_fake` would do as well, but that reads the path of every module that was imported.
    torch.library.impl(f"vade_robust::{_name}", "Meta", _FAKES[_name])

if (_library := files(__package__) / "_C.so").is_file():
    torch.ops.load_library(str(_library))


def _launcher(name: str) -> Callable[..., Any]:
    def launch(*args: Any) -> Any:
        with torch.cuda.device(args[0].device):  # a kernel starts on the current device, wherever its tensors are
            return getattr(import_module("._triton", __package__), name)(*args)  # importing triton takes time

    return launch


for _name in SCHEMAS if find_spec("triton") else ():
    torch.library.impl(f"vade_robust::{_name}", "CUDA", _launcher(_name))

_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
KERNELS = {
    name: frozenset(
        device
        for device, key in _KEYS.items()
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"vade_robust::{name}", key)
    )
    for name in SCHEMAS
}
"""The device types on which each operator has a kernel of its own."""

_OPERATORS = {name: getattr(torch.ops.vade_robust, name).default for name in SCHEMAS}


def _alike(*tensors: Tensor | None) -> list[Any]:
    """The tensors, contiguous and of one dtype that the kernels take: float64 if one of them is, else float32."""
    dtype = torch.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors) else torch.float32
    return [x if x is None else x.to(dtype).contiguous() for x in tensors]


def mixture_scores(
    mean: Tensor, log_var: Tensor | None, log_weight: Tensor, centers: Tensor, log_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """`_reference.mixture_scores`, differentiable once."""
    result: tuple[Tensor, Tensor] = _OPERATORS["mixture_scores"](*_alike(mean, log_var, log_weight, centers, log_scale))
    return result


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """`_reference.squared_distances`, differentiable."""
    result: Tensor = _OPERATORS["squared_distances"](*_alike(x, y))
    return result


def knn(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`_reference.knn`."""
    result: tuple[Tensor, Tensor] = _OPERATORS["knn"](*_alike(queries, points), k)
    return result


def tsne_affinities(x: Tensor, perplexity: float) -> Tensor:
    """`_reference.tsne_affinities`."""
    result: Tensor = _OPERATORS["tsne_affinities"](*_alike(x), perplexity)
    return result


def tsne_kl(y: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """`_reference.tsne_kl`, whose first result is differentiable once with respect to y."""
    result: tuple[Tensor, Tensor] = _OPERATORS["tsne_kl"](*_alike(y, p))
    return result


def _save_mixture(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs)


def _differentiate_mixture(ctx: Any, grad_a: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    a, lse, mean, log_var, *parameters = ctx.saved_tensors
    grads = _OPERATORS["mixture_scores_backward"](
        grad_a.contiguous(), grad_lse.contiguous(), a, lse, mean, log_var, *parameters
    )
    return grads[0], None if log_var is None else grads[1], *grads[2:]


def _save_distances(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_distances(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, y = ctx.saved_tensors
    return 2 * (grad.sum(1, keepdim=True) * x - grad @ y), 2 * (grad.sum(0)[:, None] * y - grad.T @ x)


def _save_kl(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate_kl(ctx: Any, grad: Tensor | None, grad_of_grad: None) -> tuple[Tensor | None, None]:
    (gradient,) = ctx.saved_tensors
    return None if grad is None else _scaled(gradient, grad), None


class _Scaled(torch.autograd.Function):
    """gradient * grad, of which there is no second derivative."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, grad: Tensor) -> Tensor:
        return gradient * grad

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError("vade_robust::tsne_kl cannot be differentiated twice")


def _scaled(gradient: Tensor, grad: Tensor) -> Tensor:
    return _Scaled.apply(gradient, grad) if grad.requires_grad else gradient * grad


def _refuse(name: str, what: str) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(f"vade_robust::{name} cannot be differentiated{what}")

    return backward


_register: Callable[..., None] = torch.library.register_autograd
_register("vade_robust::mixture_scores", _differentiate_mixture, setup_context=_save_mixture)
_register("vade_robust::mixture_scores_backward", _refuse("mixture_scores", " twice"))
_register("vade_robust::squared_distances", _differentiate_distances, setup_context=_save_distances)
_register("vade_robust::knn", _refuse("knn", ": take the distances of the points that it finds"))
_register("vade_robust::tsne_affinities", _refuse("tsne_affinities", ": detach its input"))
_register("vade_robust::tsne_kl", _differentiate_kl, setup_context=_save_kl)
