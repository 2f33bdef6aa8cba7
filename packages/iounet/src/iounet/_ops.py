"""The operators: one schema and up to three kernels each, among which PyTorch's dispatcher picks: C++ for CPU tensors,
Triton for CUDA tensors, and the reference for every other device or missing kernel."""

from __future__ import annotations

from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from . import _reference, _reference_nms

if TYPE_CHECKING:
    from collections.abc import Callable

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

if (_library := files(__package__) / "_C.so").is_file():
    torch.ops.load_library(str(_library))


def _launcher(module: str, name: str) -> Callable[..., Any]:
    def launch(*args: Any) -> Any:
        return getattr(import_module(module, __package__), name)(*args)  # importing triton takes time

    return launch


_TRITON = {"._triton": ("prroi_pool", "prroi_pool_grad_input", "prroi_pool_grad_boxes")}
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
