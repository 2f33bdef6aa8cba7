"""Derivatives of the pooling operators: gradients, double backward, forward mode and vmap.

V = Wy F Wx^T is linear in F and smooth in the boxes, so the derivatives of each operator are again operators, up to the
second ones; the third are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._functorch import eager_transforms
from torch.autograd import Function, forward_ad

from . import _ops, _reference

if TYPE_CHECKING:
    from collections.abc import Callable

Tangents = tuple[Tensor | None, ...]


def _sum(*terms: Tensor | None) -> Tensor | None:
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0]) if present else None


def _refuse(*args: Any) -> Any:
    raise NotImplementedError(
        "prroi_pool has no third derivatives, and no second ones by forward mode over forward mode"
    )


class _Operator(Function):
    """An operator, whose arguments are `tensors` tensors and other things, with its derivatives.

    The formulas registered for an operator do not serve `torch.func`, and in forward mode tangents would silently be
    zero; a Function serves both, but is slower to call, and cannot be compiled if it has a forward mode.
    """

    operator: Any
    tensors: int
    generate_vmap_rule = True

    @classmethod
    def forward(cls, *args: Any) -> Any:
        return cls.operator(*args)

    @classmethod
    def setup_context(cls, ctx: Any, inputs: Any, output: Any) -> None:
        tensors, ctx.args = inputs[: cls.tensors], inputs[cls.tensors :]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    backward: Callable[..., Any] = staticmethod(_refuse)

    @staticmethod
    def tangent(args: Any, tangents: Tangents) -> Any:
        """The derivative of the result as the tensors move by `tangents`."""
        _refuse()

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Any) -> Any:
        return cls.tangent((*ctx.saved_tensors, *ctx.args), tangents[: cls.tensors])


class _PrRoIPool(_Operator):
    operator, tensors = _ops.prroi_pool, 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        input, boxes = ctx.saved_tensors
        _, _, *args = ctx.args
        n, _, h, w = input.shape
        last = _reference.is_channels_last(input)
        by_input = grad_input(grad, boxes, n, h, w, last, *args) if ctx.needs_input_grad[0] else None
        by_boxes = grad_boxes(grad, input, boxes, *args) if ctx.needs_input_grad[1] else None
        return by_input, by_boxes, *[None] * 6

    @staticmethod
    def tangent(args: Any, tangents: Tangents) -> Tensor | None:
        input, boxes, *rest = args
        input_t, boxes_t = tangents
        return _sum(
            None if input_t is None else prroi_pool(input_t, boxes, *rest),
            None if boxes_t is None else jvp(input, boxes, boxes_t, *rest),
        )


class _GradInput(_Operator):
    operator, tensors = _ops.prroi_pool_grad_input, 2

    @staticmethod
    def backward(ctx: Any, cot: Tensor) -> Any:
        grad, boxes = ctx.saved_tensors
        _, _, _, _, *args = ctx.args
        by_grad = prroi_pool(cot, boxes, *grad.shape[2:], *args) if ctx.needs_input_grad[0] else None
        by_boxes = grad_boxes(grad, cot, boxes, *args) if ctx.needs_input_grad[1] else None
        return by_grad, by_boxes, *[None] * 8

    @staticmethod
    def tangent(args: Any, tangents: Tangents) -> Tensor | None:
        grad, boxes, n, h, w, last, *rest = args
        grad_t, boxes_t = tangents
        moved = None
        if boxes_t is not None:
            map = grad.new_zeros(n, grad.shape[1], h, w)  # only its shape and format matter
            map = map.contiguous(memory_format=_reference.memory_format(last))
            _, moved, _ = grad_boxes_backward(boxes_t, grad, map, boxes, *rest)
        return _sum(None if grad_t is None else grad_input(grad_t, boxes, n, h, w, last, *rest), moved)


class _GradBoxes(_Operator):
    operator, tensors = _ops.prroi_pool_grad_boxes, 3

    @staticmethod
    def backward(ctx: Any, cot: Tensor) -> Any:
        return *grad_boxes_backward(cot, *ctx.saved_tensors, *ctx.args), *[None] * 4

    @staticmethod
    def tangent(args: Any, tangents: Tangents) -> Tensor | None:
        grad, input, boxes, *rest = args
        grad_t, input_t, boxes_t = tangents
        return _sum(
            None if grad_t is None else grad_boxes(grad_t, input, boxes, *rest),
            None if input_t is None else grad_boxes(grad, input_t, boxes, *rest),
            None if boxes_t is None else grad_boxes_backward(boxes_t, grad, input, boxes, *rest)[2],
        )


class _Jvp(_Operator):
    operator, tensors = _ops.prroi_pool_jvp, 3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        input, boxes, tangent = ctx.saved_tensors
        _, _, *args = ctx.args
        _, by_input, by_boxes = grad_boxes_backward(tangent, grad, input, boxes, *args)
        return by_input, by_boxes, grad_boxes(grad, input, boxes, *args), *[None] * 6


class _GradBoxesBackward(_Operator):
    operator, tensors = _ops.prroi_pool_grad_boxes_backward, 4


def _differentiable(function: type[_Operator]) -> Callable[..., Any]:
    operator, count, tangent = function.operator, function.tensors, function.tangent
    torch.library.register_autograd(operator, function.backward, setup_context=function.setup_context)

    def call(*args: Any) -> Any:
        if not torch.compiler.is_compiling():
            transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
            return function.apply(*args) if transformed else operator(*args)
        primals, tangents = zip(*(forward_ad.unpack_dual(x) for x in args[:count]), strict=True)
        if all(x is None for x in tangents):
            return operator(*args)
        if eager_transforms.JVP_NESTING > 1:  # the outer tangents would be lost
            _refuse()
        args = (*primals, *args[count:])
        return forward_ad.make_dual(operator(*args), tangent(args, tangents))

    return call


prroi_pool = _differentiable(_PrRoIPool)
grad_input = _differentiable(_GradInput)
grad_boxes = _differentiable(_GradBoxes)
jvp = _differentiable(_Jvp)
grad_boxes_backward = _differentiable(_GradBoxesBackward)


# --- vmap: a batch of calls is one call with more images and more boxes ---------------------------------------------


def _batched(x: Tensor, dim: int | None, batch: int) -> Tensor:
    return x.expand(batch, *x.shape) if dim is None else x.movedim(dim, 0)


def _renumbered(boxes: Tensor, n: int) -> Tensor:
    """Boxes [B,K,5] whose images are numbered through all calls of n images each; NaN is the number of none of them."""
    image = boxes[..., :1]
    first = n * torch.arange(len(boxes), dtype=boxes.dtype, device=boxes.device)[:, None, None]
    return torch.cat([torch.where((image >= 0) & (image < n), image + first, torch.nan), boxes[..., 1:]], -1)


def _register_vmap(operator: Any, *names: str) -> None:
    """The rule of an operator whose tensors have these names: each is put end to end along its first dimension."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        batch, rest = info.batch_size, list(args[len(names) :])
        given = dict(zip(names, args, strict=False))
        tensors = {name: _batched(given[name], dim, batch) for name, dim in zip(names, in_dims, strict=False)}
        # All calls may read the same map, unless each has a gradient for it.
        shared = (
            "input" in names
            and in_dims[names.index("input")] is None
            and operator is not _ops.prroi_pool_grad_boxes_backward
        )
        if not shared:
            n = tensors["input"].shape[1] if "input" in names else rest[0]
            tensors["boxes"] = _renumbered(tensors["boxes"], n)
        flat = {name: x.flatten(0, 1) for name, x in tensors.items()}
        if shared:
            flat["input"] = given["input"]
        if "input" not in names:
            rest[0] *= batch
        out = operator(*flat.values(), *rest)
        if isinstance(out, Tensor):
            return out.unflatten(0, (batch, len(out) // batch)), 0
        return tuple(x.unflatten(0, (batch, len(x) // batch)) for x in out), (0,) * len(out)

    torch.library.register_vmap(operator, rule)


_register_vmap(_ops.prroi_pool, "input", "boxes")
_register_vmap(_ops.prroi_pool_grad_input, "grad", "boxes")
_register_vmap(_ops.prroi_pool_grad_boxes, "grad", "input", "boxes")
_register_vmap(_ops.prroi_pool_jvp, "input", "boxes", "tangent")
_register_vmap(_ops.prroi_pool_grad_boxes_backward, "cot", "grad", "input", "boxes")
