"""The operators: one schema each and up to two kernels, among which PyTorch's dispatcher picks: Triton for CUDA
tensors, the reference for every other device. The package's own way on CPU is its C++ core, which needs no torch."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _reference

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMAS = {
    "ngram_ids": "(Tensor chars, Tensor row_splits, Tensor keys) -> Tensor",
    "emit": "(Tensor ids, Tensor table) -> Tensor",
    "crf_viterbi": "(Tensor scores, Tensor trans, Tensor lengths, Tensor? mask=None) -> (Tensor, Tensor)",
    "crf_marginals": "(Tensor scores, Tensor trans, Tensor lengths, Tensor? mask=None) -> (Tensor, Tensor, Tensor)",
    "row_grad": "(Tensor ids, Tensor grad, Tensor order, Tensor offsets) -> Tensor",
    "adf_step": "(Tensor(a!) w, Tensor(b!) eta, Tensor grad, Tensor count, float n, float N, *, Tensor? rows=None,"
    " float upper=0.995, float lower=0.6, float l2=1.0) -> ()",
}


def _ngram_ids(chars: Tensor, row_splits: Tensor, keys: Tensor) -> Tensor:
    return chars.new_empty((8 + keys.shape[0], chars.shape[0]), dtype=torch.int32).t()


def _emit(ids: Tensor, table: Tensor) -> Tensor:
    return table.new_empty((ids.shape[0], table.shape[1]), dtype=_reference.sum_dtype(table.dtype))


def _crf_viterbi(scores: Tensor, trans: Tensor, lengths: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    dtype = _reference.accumulator(scores.dtype)
    return scores.new_empty(scores.shape[:2], dtype=torch.int8), scores.new_empty(scores.shape[1], dtype=dtype)


def _crf_marginals(
    scores: Tensor, trans: Tensor, lengths: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _reference.accumulator(scores.dtype)
    log_z = scores.new_empty(scores.shape[1], dtype=dtype)
    return log_z, scores.new_empty(scores.shape, dtype=dtype), trans.new_empty(trans.shape, dtype=dtype)


def _row_grad(ids: Tensor, grad: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
    return grad.new_empty((offsets.shape[0] - 1, grad.shape[1]))


def _adf_step(*args: Any, **kwargs: Any) -> None:
    return None


def _launcher(name: str) -> Callable[..., Any]:
    def launch(*args: Any, **kwargs: Any) -> Any:
        from . import _triton  # importing triton takes long

        return getattr(_triton, name)(*args, **kwargs)

    return launch


for _name, _schema in SCHEMAS.items():
    torch.library.define(f"cws::{_name}", _schema)
    torch.library.impl(f"cws::{_name}", "CompositeExplicitAutograd", getattr(_reference, _name))
    torch.library.register_fake(f"cws::{_name}", globals()[f"_{_name}"])
    if find_spec("triton"):
        torch.library.impl(f"cws::{_name}", "CUDA", _launcher(_name))

ngram_ids = torch.ops.cws.ngram_ids.default
emit = torch.ops.cws.emit.default
crf_viterbi = torch.ops.cws.crf_viterbi.default
crf_marginals = torch.ops.cws.crf_marginals.default
row_grad = torch.ops.cws.row_grad.default
adf_step = torch.ops.cws.adf_step.default

_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
KERNELS = frozenset(
    device
    for device, key in _KEYS.items()
    if all(torch._C._dispatch_has_kernel_for_dispatch_key(f"cws::{name}", key) for name in SCHEMAS)
)
"""The device types on which the operators have kernels of their own."""
