"""The memory of a model, as faults see it: plain tensors, also those inside of tensor subclasses, and their bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from . import _ops
from ._shards import is_sharded
from ._tensors import Named, _pairs, memory, memory_index, overlaps_itself, parameters

if TYPE_CHECKING:
    from types import TracebackType


def stored(model: Any, *, buffers: bool) -> Named:
    """The plain tensors of a model in order, each memory once: `weight.qdata` is what a subclass holds in `qdata`.

    A mapping may have anything with a shape and a dtype instead of tensors.

    Raises:
        TypeError, ValueError: as `_tensors.parameters`, or for a tensor whose memory is out of reach.
    """
    named = parameters(list(_flat(_pairs(_described(model), "model", buffers=buffers))), only_floating=False)
    for name, x in zip(named.names, named.tensors, strict=True):
        _check(name, x)
    return named


def find(names: Sequence[str], model: Any) -> list[Tensor]:
    """The plain tensors of a model that have these names; "0", "1", ... also count its parameters.

    Raises:
        TypeError, ValueError: there is none, or its memory is out of reach.
    """
    every = dict(_flat(_pairs(model, "model", buffers=True, tied=True), names))
    listed: list[Tensor] = []
    found = []
    for name in names:
        x = every.get(name)
        if x is None and name.isdecimal():
            listed = listed or [x for _, x in _flat(_pairs(model, "model"))]
            x = listed[int(name)] if int(name) < len(listed) else None
        if x is None:
            raise ValueError(f"model must have every tensor of the plan, got none with the name {name!r}")
        _check(name, x)
        if x.is_meta:
            raise TypeError(f"tensor {name!r} must have data, got a meta tensor of {x.dtype}")
        found.append(x)
    return found


def _described(model: Any) -> Any:
    if not isinstance(model, Mapping):
        return model
    return {
        name: torch.empty(tuple(x.shape), dtype=x.dtype, device="meta")
        if not isinstance(x, Tensor) and hasattr(x, "shape") and hasattr(x, "dtype")
        else x
        for name, x in model.items()
    }


def _flat(
    pairs: Sequence[tuple[str, Tensor | None]], only: Sequence[str] | None = None
) -> Iterator[tuple[str, Tensor]]:
    for name, x in pairs:
        if x is None:
            continue
        if type(x) in (Tensor, nn.Parameter, nn.Buffer) or is_lazy(x):
            yield name, x
        elif hasattr(x, "__tensor_flatten__"):
            if only is None or any(wanted.startswith(f"{name}.") or wanted.isdecimal() for wanted in only):
                if is_sharded(x):
                    raise TypeError(
                        f"tensor {name!r} must be whole, got a DTensor, of which this process holds a part; flip bits"
                        " of the whole model or of its checkpoint"
                    )
                inner = x.__tensor_flatten__()[0]
                yield from _flat([(f"{name}.{attribute}", getattr(x, attribute)) for attribute in inner])
        elif only is None or name in only:
            raise TypeError(
                f"tensor {name!r} must be plain, or a subclass that shows its memory by __tensor_flatten__, got "
                f"{type(x).__name__}"
            )


def _check(name: str, x: Tensor) -> None:
    if x.layout is not torch.strided:
        raise TypeError(f"tensor {name!r} must be strided, got {x.layout} of {x.dtype}")
    if overlaps_itself(x):
        raise ValueError(
            f"tensor {name!r} must have memory for each element, got shape {tuple(x.shape)} with strides {x.stride()}"
        )


def bytes_of(x: Tensor) -> Tensor:
    """The memory of a tensor as uint8 in one dimension: a view, writes to which raise the tensor's version."""
    return memory(x).view(torch.uint8)


def in_memory(x: Tensor, byte_index: Tensor) -> Tensor:
    """Where in `bytes_of(x)` the bytes lie that have these numbers when the elements are in row-major order."""
    byte_index = byte_index.to(x.device)
    if x.is_contiguous():
        return byte_index
    size = x.element_size()
    return memory_index(x, byte_index // size) * size + byte_index % size


class Injector:
    """Holds one fault at a time in the memory of tensors, and none after the `with` block, however that ends."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: tuple[Tensor, Tensor, Tensor] | None = None

    def put(self, data: Tensor, index: Tensor, mask: Tensor, clean: Tensor) -> None:
        """data[index] ^= mask, instead of the fault before; `clean` is what data[index] is without."""
        self.take_back()
        self.hold(data, index, clean)  # first: to write back what is there is harmless
        _ops.xor_bits_(data, index, mask)

    def hold(self, data: Tensor, index: Tensor, clean: Tensor) -> None:
        """Whatever is written to data[index] from now on, it will be `clean` again."""
        self._held = data, index, clean

    def take_back(self) -> None:
        if self._held is not None:
            data, index, clean = self._held
            data.index_copy_(0, index, clean)
            self._held = None

    def __enter__(self) -> Injector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.take_back()
