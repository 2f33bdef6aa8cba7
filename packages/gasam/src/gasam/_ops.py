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
    from collections.abc import Callable, Sequence

_SGD = "float mu, float dampening, float wd, bool nesterov, bool maximize, bool first, Tensor? scale, Tensor? found_inf"
_ADAM = (
    "float beta1, float beta2, float eps, float wd, bool decoupled, bool amsgrad, bool maximize, Tensor? scale,"
    " Tensor? found_inf"
)
_SGD_LISTS = "Tensor(a!)[] params, Tensor[] backup, Tensor[] grads, Tensor(b!)[] momentum"
_ADAM_LISTS = (
    "Tensor(a!)[] params, Tensor[] backup, Tensor[] grads, Tensor(b!)[] exp_avg, Tensor(c!)[] exp_avg_sq,"
    " Tensor(d!)[] max_exp_avg_sq, Tensor(e!)[] steps"
)

# Tensors are dense and are worked on in memory order; what belongs to a parameter has its strides. A unit is a tensor,
# or one of its `rows` equal consecutive parts. `weighted`: 0 for T = 1, 1 for T = |w| + eta, -1 for its inverse.
# `norm`: 2, or 0 for the largest element. `reference`: 0 none, 1 global, 2 running.
SCHEMAS = {
    "segment_norms": "(Tensor[] grads, Tensor[] params, int[] rows, int[] weighted, float eta) -> Tensor",
    "strengths": "(Tensor sums, Tensor segment, Tensor sizes, Tensor rho, Tensor(a!) running, Tensor? scale,"
    " Tensor? layer, float a, float b, float clip, int reference, int norm) -> (Tensor, Tensor, Tensor)",
    "perturb_": "(Tensor(a!)[] params, Tensor(b!)[] backup, Tensor[] grads, Tensor multiplier, int[] rows,"
    " int[] weighted, float eta, int norm, Tensor seed) -> ()",
    "ascend_": "(Tensor(a!)[] offset, Tensor[] backup, Tensor[] grads, Tensor multiplier, Tensor radius, int[] rows,"
    " int[] weighted, float eta, int norm) -> ()",
    "project_": "(Tensor(a!)[] params, Tensor[] backup, Tensor(b!)[] offset, Tensor scale, int[] rows, Tensor seed)"
    " -> ()",
    "restore_": "(Tensor(a!)[] params, Tensor[] backup) -> ()",
    "restore_sgd_": f"({_SGD_LISTS}, float lr, {_SGD}) -> ()",
    "restore_sgd_.tensor_lr": f"({_SGD_LISTS}, Tensor lr, {_SGD}) -> ()",
    "restore_adam_": f"({_ADAM_LISTS}, float lr, {_ADAM}) -> ()",
    "restore_adam_.tensor_lr": f"({_ADAM_LISTS}, Tensor lr, {_ADAM}) -> ()",
    "inner_products": "(Tensor[] a, Tensor[] b) -> Tensor",
    "mix_": "(Tensor(a!)[] grads, Tensor[] kept, Tensor c, Tensor found_inf) -> ()",
}


def _fake_segment_norms(
    grads: Sequence[Tensor], params: Sequence[Tensor], rows: Sequence[int], *args: object
) -> Tensor:
    return torch.empty(sum(rows), dtype=torch.float64, device=grads[0].device if grads else "cpu")


def _fake_strengths(sums: Tensor, *args: object) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(sums), torch.empty_like(sums), sums.new_empty((), dtype=torch.float32)


def _fake_inner_products(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.empty(3, dtype=torch.float64, device=a[0].device if a else "cpu")


_FAKES: dict[str, Callable[..., Any]] = {
    "segment_norms": _fake_segment_norms,
    "strengths": _fake_strengths,
    "inner_products": _fake_inner_products,
}


def _nothing(*args: object) -> None:
    """What an operator that only writes does to tensors without data."""


for _name, _schema in SCHEMAS.items():
    torch.library.define(f"gasam::{_name}", _schema)
    _function = getattr(_reference, _name.partition(".")[0])
    torch.library.impl(f"gasam::{_name}", "CompositeExplicitAutograd", _function)
    torch.library.register_fake(f"gasam::{_name}", _FAKES.get(_name, _nothing))

if (_library := files(__package__) / "_C.so").is_file():
    torch.ops.load_library(str(_library))


def _launcher(name: str) -> Callable[..., Any]:
    def launch(*args: Any) -> Any:
        return getattr(import_module("._triton", __package__), name)(*args)  # importing triton takes time

    return launch


if find_spec("triton"):
    for _name in SCHEMAS:
        torch.library.impl(f"gasam::{_name}", "CUDA", _launcher(_name.partition(".")[0]))

_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
KERNELS = {
    name: frozenset(
        device for device, key in _KEYS.items() if torch._C._dispatch_has_kernel_for_dispatch_key(f"gasam::{name}", key)
    )
    for name in SCHEMAS
}
"""The device types on which each operator has a kernel of its own."""

segment_norms = torch.ops.gasam.segment_norms.default
strengths = torch.ops.gasam.strengths.default
perturb_ = torch.ops.gasam.perturb_.default
ascend_ = torch.ops.gasam.ascend_.default
project_ = torch.ops.gasam.project_.default
restore_ = torch.ops.gasam.restore_.default
restore_sgd_ = torch.ops.gasam.restore_sgd_  # two overloads: lr a float, or a tensor
restore_adam_ = torch.ops.gasam.restore_adam_
inner_products = torch.ops.gasam.inner_products.default
mix_ = torch.ops.gasam.mix_.default
