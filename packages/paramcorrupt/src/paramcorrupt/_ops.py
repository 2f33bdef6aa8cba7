"""The operators: one schema and up to three kernels each, among which PyTorch's dispatcher picks: C++ for CPU tensors,
Triton for CUDA tensors, and the reference for every other device or missing kernel."""

from __future__ import annotations

from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from . import _reference

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Tensors are contiguous. A key is the bits of |x| as a non-negative integer, which orders as |x| does: 15 bits in a
# list of bfloat16 or of float16, 31 bits of float32 in one of float32 or of several of these, 63 bits with float64.
# An index counts the elements of its own tensor; `offsets[t]` is where tensor t starts among the selected.
SCHEMAS = {
    "grad_stats": "(Tensor[] g) -> Tensor",
    "power_sum": "(Tensor[] g, float q, float unit, int key) -> Tensor",
    "select": "(Tensor[] g, int n) -> Tensor",
    "collect": "(Tensor[] g, Tensor threshold) -> (Tensor, Tensor, Tensor)",
    "top_n": "(Tensor[] g, int n) -> (Tensor, Tensor, Tensor, Tensor)",
    "key_histogram": "(Tensor[] g, int prefix, int prefix_bits, int bits) -> (Tensor, Tensor)",
    "apply_sparse_": "(Tensor(a!)[] w, Tensor offsets, Tensor index, Tensor delta) -> Tensor",
    "restore_sparse_": "(Tensor(a!)[] w, Tensor offsets, Tensor index, Tensor journal) -> ()",
    "apply_dense_": "(Tensor(a!)[] w, Tensor[] base, Tensor[] g, float scale, float power) -> Tensor",
    "apply_backup_": "(Tensor(a!)[] w, Tensor[] g, float scale, float power) -> (Tensor, Tensor)",
    "restore_backup_": "(Tensor(a!)[] w, Tensor backup) -> ()",
    "apply_compact_": "(Tensor(a!)[] w, Tensor[] g, float scale, float power) -> (Tensor, Tensor, Tensor, Tensor)",
    "restore_compact_": "(Tensor(a!)[] w, Tensor[] g, float scale, float power, Tensor codes, Tensor starts,"
    " Tensor bits) -> ()",
    "ascend_project_": "(Tensor(a!)[] a, Tensor[] g, float step, float power, Tensor threshold, float shrink,"
    " float clip, float scale) -> ()",
    "random_fill_": "(Tensor(a!)[] a, int seed, int offset, float p) -> Tensor",
    "sample_bits": "(int total, int count, int seed) -> Tensor",
    "locate_bits": "(Tensor place) -> (Tensor, Tensor)",
    "xor_bits_": "(Tensor(a!) bytes, Tensor byte_index, Tensor mask) -> ()",
}


def _fake_grad_stats(g: Sequence[Tensor]) -> Tensor:
    return torch.empty(len(g), 5, dtype=torch.float64, device=_device(g))


def _fake_power_sum(g: Sequence[Tensor], *args: object) -> Tensor:
    return torch.empty(len(g), dtype=torch.float64, device=_device(g))


def _fake_select(g: Sequence[Tensor], n: int) -> Tensor:
    return torch.empty(4, dtype=torch.int64, device=_device(g))


def _fake_collect(g: Sequence[Tensor], threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = torch.library.get_ctx().new_dynamic_size()
    offsets = torch.empty(len(g) + 1, dtype=torch.int64, device=_device(g))
    index = offsets.new_empty(n)
    return offsets, index, index.new_empty(index.shape, dtype=_reference.key_dtype(g))


def _fake_top_n(g: Sequence[Tensor], n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    threshold = _fake_select(g, n)
    value = threshold.new_empty(n, dtype=_reference.key_dtype(g))
    return threshold, threshold.new_empty(len(g) + 1), threshold.new_empty(n), value


def _fake_key_histogram(g: Sequence[Tensor], prefix: int, prefix_bits: int, bits: int) -> tuple[Tensor, Tensor]:
    counts = torch.empty(1 << bits, dtype=torch.int64, device=_device(g))
    return counts, torch.empty(1 << bits, dtype=torch.float64, device=_device(g))


def _fake_apply_sparse_(w: Sequence[Tensor], offsets: Tensor, index: Tensor, delta: Tensor) -> Tensor:
    return torch.empty(index.shape, dtype=_reference.journal_dtype(w), device=index.device)


def _fake_apply_dense_(w: Sequence[Tensor], *args: object) -> Tensor:
    return torch.empty(2, dtype=torch.float64, device=_device(w))


def _fake_apply_backup_(w: Sequence[Tensor], *args: object) -> tuple[Tensor, Tensor]:
    size = sum(_reference.lines(x.numel() * x.element_size()) for x in w)
    return _fake_apply_dense_(w), torch.empty(size, dtype=torch.uint8, device=_device(w))


def _fake_apply_compact_(w: Sequence[Tensor], *args: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    codes = torch.empty(sum(_reference.code_bytes(x) for x in w), dtype=torch.uint8, device=_device(w))
    starts = codes.new_empty(sum(_reference.pieces(x) for x in w) + 1, dtype=torch.int64)
    return _fake_apply_dense_(w), codes, starts, codes.new_empty(torch.library.get_ctx().new_dynamic_size())


def _fake_random_fill_(a: Sequence[Tensor], *args: object) -> Tensor:
    return torch.empty((), dtype=torch.float64, device=_device(a))


def _fake_sample_bits(total: int, count: int, seed: int) -> Tensor:
    return torch.empty(count, dtype=torch.int64)


def _fake_locate_bits(place: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(place), torch.empty_like(place, dtype=torch.uint8)


def _nothing(*args: object) -> None:
    """What an operator that only writes does to tensors without data."""


def _device(tensors: Sequence[Tensor]) -> torch.device:
    return tensors[0].device if tensors else torch.device("cpu")


_FAKES: dict[str, Callable[..., Any]] = {
    "grad_stats": _fake_grad_stats,
    "power_sum": _fake_power_sum,
    "select": _fake_select,
    "collect": _fake_collect,
    "top_n": _fake_top_n,
    "key_histogram": _fake_key_histogram,
    "apply_sparse_": _fake_apply_sparse_,
    "apply_dense_": _fake_apply_dense_,
    "apply_backup_": _fake_apply_backup_,
    "apply_compact_": _fake_apply_compact_,
    "random_fill_": _fake_random_fill_,
    "sample_bits": _fake_sample_bits,
    "locate_bits": _fake_locate_bits,
}

for _name, _schema in SCHEMAS.items():
    torch.library.define(f"paramcorrupt::{_name}", _schema)
    torch.library.impl(f"paramcorrupt::{_name}", "CompositeExplicitAutograd", getattr(_reference, _name))
    torch.library.register_fake(f"paramcorrupt::{_name}", _FAKES.get(_name, _nothing))

if (_library := files(__package__) / "_C.so").is_file():
    torch.ops.load_library(str(_library))


def _launcher(name: str) -> Callable[..., Any]:
    def launch(*args: Any) -> Any:
        return getattr(import_module("._triton", __package__), name)(*args)  # importing triton takes time

    return launch


# Plans of faults are made on the CPU. What undoes dense changes is plain PyTorch on a GPU.
_WITHOUT_TRITON = {
    "sample_bits",
    "locate_bits",
    "apply_backup_",
    "restore_backup_",
    "apply_compact_",
    "restore_compact_",
}
if find_spec("triton"):
    for _name in SCHEMAS.keys() - _WITHOUT_TRITON:
        torch.library.impl(f"paramcorrupt::{_name}", "CUDA", _launcher(_name))

_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
KERNELS = {
    name: frozenset(
        device
        for device, key in _KEYS.items()
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"paramcorrupt::{name}", key)
    )
    for name in SCHEMAS
}
"""The device types on which each operator has a kernel of its own."""


def _writing(name: str) -> Callable[..., Any]:
    """The operator. The dispatcher does not raise the version counters of what such an operator writes: after this call
    a backward pass through what was overwritten fails."""
    operator = getattr(torch.ops.paramcorrupt, name).default

    def call(written: Any, *args: Any) -> Any:
        result = operator(written, *args)
        increment_version(written)
        return result

    return call


grad_stats = torch.ops.paramcorrupt.grad_stats.default
power_sum = torch.ops.paramcorrupt.power_sum.default
select = torch.ops.paramcorrupt.select.default
collect = torch.ops.paramcorrupt.collect.default
top_n = torch.ops.paramcorrupt.top_n.default
key_histogram = torch.ops.paramcorrupt.key_histogram.default
sample_bits = torch.ops.paramcorrupt.sample_bits.default
locate_bits = torch.ops.paramcorrupt.locate_bits.default
apply_sparse_ = _writing("apply_sparse_")
restore_sparse_ = _writing("restore_sparse_")
apply_dense_ = _writing("apply_dense_")
apply_backup_ = _writing("apply_backup_")
restore_backup_ = _writing("restore_backup_")
apply_compact_ = _writing("apply_compact_")
restore_compact_ = _writing("restore_compact_")
ascend_project_ = _writing("ascend_project_")
random_fill_ = _writing("random_fill_")
xor_bits_ = _writing("xor_bits_")
