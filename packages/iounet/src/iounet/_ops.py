"""The operators: one schema and up to three kernels each, among which PyTorch's dispatcher picks: C++ for CPU tensors,
Triton for CUDA tensors, and the reference for every other device or missing kernel."""

from __future__ import annotations

from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _reference, _reference_nms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ARGS = "float scale, bool border, bool aligned, bool limit"
SCHEMAS = {
    "prroi_pool": f"(Tensor input, Tensor boxes, SymInt ph, SymInt pw, {_ARGS}) -> Tensor",
    "prroi_pool_grad_input": f"(Tensor grad, Tensor boxes, SymInt n, SymInt h, SymInt w, bool channels_last, {_ARGS})"
    " -> Tensor",
    "prroi_pool_grad_boxes": f"(Tensor grad, Tensor input, Tensor boxes, {_ARGS}) -> Tensor",
    "prroi_pool_jvp": f"(Tensor input, Tensor boxes, Tensor tangent, SymInt ph, SymInt pw, {_ARGS}) -> Tensor",
    "prroi_pool_grad_boxes_backward": f"(Tensor cot, Tensor grad, Tensor input, Tensor boxes, {_ARGS})"
    " -> (Tensor, Tensor, Tensor)",
    "nms_owner": "(Tensor boxes, Tensor key, Tensor? labels, float thr) -> Tensor",
    "soft_nms_order": "(Tensor boxes, Tensor scores, Tensor? labels, float thr, float sigma, float min_score,"
    " int method) -> (Tensor, Tensor)",
}

for _name, _schema in SCHEMAS.items():
    torch.library.define(f"iounet::{_name}", _schema)
    for _module in (_reference, _reference_nms):
        if hasattr(_module, _name):
            torch.library.impl(f"iounet::{_name}", "CompositeExplicitAutograd", getattr(_module, _name))


def _empty(size: Sequence[int], like: Tensor, channels_last: bool = False) -> Tensor:
    memory_format = _reference.memory_format(channels_last)
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=memory_format)


def _fake_pool(input: Tensor, boxes: Tensor, ph: int, pw: int, *args: object) -> Tensor:
    return _empty((boxes.shape[0], input.shape[1], ph, pw), input, _reference.is_channels_last(input))


def _fake_grad_input(grad: Tensor, boxes: Tensor, n: int, h: int, w: int, channels_last: bool, *args: object) -> Tensor:
    return _empty((n, grad.shape[1], h, w), grad, channels_last)


def _fake_grad_boxes(grad: Tensor, input: Tensor, boxes: Tensor, *args: object) -> Tensor:
    return _empty(boxes.shape, boxes)


def _fake_jvp(input: Tensor, boxes: Tensor, tangent: Tensor, ph: int, pw: int, *args: object) -> Tensor:
    return _fake_pool(input, boxes, ph, pw)


def _fake_grad_boxes_backward(
    cot: Tensor, grad: Tensor, input: Tensor, boxes: Tensor, *args: object
) -> tuple[Tensor, Tensor, Tensor]:
    last = _reference.is_channels_last(input)
    return _fake_pool(input, boxes, *grad.shape[2:]), _empty(input.shape, input, last), _empty(boxes.shape, boxes)


def _fake_nms_owner(boxes: Tensor, *args: object) -> Tensor:
    return boxes.new_empty(boxes.shape[0], dtype=torch.int64)


def _fake_soft_nms_order(boxes: Tensor, scores: Tensor, *args: object) -> tuple[Tensor, Tensor]:
    return _fake_nms_owner(boxes), scores.new_empty(scores.shape)


_FAKES: dict[str, Callable[..., Any]] = {
    "prroi_pool": _fake_pool,
    "prroi_pool_grad_input": _fake_grad_input,
    "prroi_pool_grad_boxes": _fake_grad_boxes,
    "prroi_pool_jvp": _fake_jvp,
    "prroi_pool_grad_boxes_backward": _fake_grad_boxes_backward,
    "nms_owner": _fake_nms_owner,
    "soft_nms_order": _fake_soft_nms_order,
}
for _name, _fake in _FAKES.items():
    torch.library.register_fake(f"iounet::{_name}", _fake)

if (_library := files(__package__) / "_C.so").is_file():
    torch.ops.load_library(str(_library))


def _launcher(module: str, name: str) -> Callable[..., Any]:
    def launch(*args: Any) -> Any:
        with torch.cuda.device(args[0].device):  # a kernel starts on the current device, wherever its tensors are
            return getattr(import_module(module, __package__), name)(*args)  # importing triton takes time

    return launch


_TRITON = {
    "._triton": ("prroi_pool", "prroi_pool_grad_input", "prroi_pool_grad_boxes"),
    "._triton_nms": ("nms_owner", "soft_nms_order"),
}
for _file, _names in _TRITON.items() if find_spec("triton") else ():
    for _name in _names:
        torch.library.impl(f"iounet::{_name}", "CUDA", _launcher(_file, _name))

_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
KERNELS = {
    name: frozenset(
        device
        for device, key in _KEYS.items()
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"iounet::{name}", key)
    )
    for name in SCHEMAS
}
"""The device types on which each operator has a kernel of its own."""

prroi_pool = torch.ops.iounet.prroi_pool.default
prroi_pool_grad_input = torch.ops.iounet.prroi_pool_grad_input.default
prroi_pool_grad_boxes = torch.ops.iounet.prroi_pool_grad_boxes.default
prroi_pool_jvp = torch.ops.iounet.prroi_pool_jvp.default
prroi_pool_grad_boxes_backward = torch.ops.iounet.prroi_pool_grad_boxes_backward.default
nms_owner = torch.ops.iounet.nms_owner.default
soft_nms_order = torch.ops.iounet.soft_nms_order.default
