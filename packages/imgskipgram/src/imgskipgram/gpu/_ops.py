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
    "draws": "(Tensor ids, Tensor offsets, Tensor keep, Tensor threshold, Tensor alias, int window, int negative,"
    " int seed, int epoch, int block) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "pictures": "(Tensor place, Tensor words, Tensor offsets, Tensor image_ptr, Tensor image_ids, int images,"
    " int negative, int seed, int epoch, int block) -> (Tensor, Tensor)",
    "pairs_": "(Tensor(a!) v, Tensor(b!) u, Tensor words, Tensor left, Tensor right, Tensor negatives, Tensor counts,"
    " Tensor alpha, int first, int last) -> Tensor loss",
    "sgns_": "(Tensor(a!) v, Tensor(b!) u, Tensor ids, Tensor offsets, Tensor keep, Tensor threshold, Tensor alias,"
    " int window, int negative, float alpha, int seed, int epoch, int block) -> Tensor loss",
    "image_": "(Tensor(a!) v, Tensor words, Tensor positive, Tensor negative, Tensor z, str objective, float weight,"
    " float alpha) -> Tensor loss",
}


def _draws(ids: Tensor, offsets: Tensor, keep: Tensor, *args: Any) -> tuple[Tensor, ...]:
    negative = args[3]
    one, two = (ids.new_empty(shape, dtype=torch.int32) for shape in (ids.shape, (*ids.shape, negative)))
    return *(torch.empty_like(one) for _ in range(4)), *(torch.empty_like(two) for _ in range(2))


def _pictures(place: Tensor, words: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(place), place.new_empty((*place.shape, args[4]))


def _sgns_(v: Tensor, *args: Any) -> Tensor:
    return v.new_empty((), dtype=torch.float64)


_pairs_ = _image_ = _sgns_


def _launcher(name: str) -> Callable[..., Any]:
    def launch(*args: Any, **kwargs: Any) -> Any:
        from . import _triton  # importing triton takes long

        return getattr(_triton, name)(*args, **kwargs)

    return launch


for _name, _schema in SCHEMAS.items():
    torch.library.define(f"imgskipgram::{_name}", _schema)
    torch.library.impl(f"imgskipgram::{_name}", "CompositeExplicitAutograd", getattr(_reference, _name))
    torch.library.register_fake(f"imgskipgram::{_name}", globals()[f"_{_name}"])
    if find_spec("triton"):
        torch.library.impl(f"imgskipgram::{_name}", "CUDA", _launcher(_name))

draws = torch.ops.imgskipgram.draws.default
pictures = torch.ops.imgskipgram.pictures.default
pairs_ = torch.ops.imgskipgram.pairs_.default
sgns_ = torch.ops.imgskipgram.sgns_.default
image_ = torch.ops.imgskipgram.image_.default

KERNELS = frozenset(
    device
    for device, key in {"cpu": "CPU", "cuda": "CUDA"}.items()
    if all(torch._C._dispatch_has_kernel_for_dispatch_key(f"imgskipgram::{name}", key) for name in SCHEMAS)
)
"""The device types on which the operators have kernels of their own."""
