"""Named tensors: their order, which of them are one, what is refused, and views of their memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from . import _sharded
from ._shards import are_plain, distributed_as, is_sharded, local, reduced, reshard

if TYPE_CHECKING:
    from collections.abc import Sequence

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_DTYPES = "float32, float64, bfloat16 or float16"


@dataclass(frozen=True, slots=True)
class Named:
    """Tensors and, for each, its name."""

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]


# --- lists ----------------------------------------------------------------------------------------------------------


def parameters(model: Any, *, buffers: bool = False, only_floating: bool = True) -> Named:
    """The parameters of a module, or the tensors of a mapping, of (name, tensor) pairs, or of a sequence, where they
    are called "0", "1", ...; those that are one memory once, under the first name.

    Raises:
        TypeError: `model` is none of these, or something in it is no tensor.
        ValueError: a name comes twice, or two tensors overlap in memory without being the same.
    """
    names, tensors, seen = [], [], set()
    for name, x in _pairs(model, "model", buffers=buffers):
        if x is None:
            continue
        if is_lazy(x):
            raise ValueError(f"parameter {name!r} must be initialised, run the model once before")
        if (only_floating and not x.is_floating_point()) or (key := _memory_key(x)) in seen:
            continue
        seen.add(key)
        names.append(name)
        tensors.append(x)
    _check_overlap(names, tensors)
    return Named(tuple(names), tuple(tensors))


def gradients(grads: Any) -> tuple[Named, tuple[str, ...]]:
    """The gradients of a module's parameters, or those of a mapping, pairs or a sequence, and the names without one.

    Raises:
        TypeError: a gradient is no dense tensor of real floats.
        ValueError: there is none, or not all are on one device.
    """
    if isinstance(grads, nn.Module):
        named = parameters(grads)
        pairs = [(name, distributed_as(x, x.grad)) for name, x in zip(named.names, named.tensors, strict=True)]
    else:
        pairs = _pairs(grads, "grads")
        if not are_plain(x for _, x in pairs):
            pairs = [(name, reduced(x)) for name, x in pairs]
    skipped = tuple(name for name, x in pairs if x is None)
    given = [(name, x) for name, x in pairs if x is not None]
    for name, x in given:
        check_tensor(f"gradient {name!r}", x)
    if not any(x.numel() for _, x in given):
        raise ValueError(
            f"grads must have a gradient with at least one element, got none{_listed(skipped)}; call backward before"
        )
    check_device("gradient", given)
    _sharded.check_parts("gradient", *zip(*given, strict=True))
    return Named(tuple(name for name, _ in given), tuple(x for _, x in given)), skipped


def match(names: Sequence[str], model: Any) -> list[Tensor]:
    """The model's tensors that are called `names`; "0", "1", ... also count its parameters.

    Raises:
        ValueError: the model has no tensor of this name.
    """
    pairs = _pairs(model, "model", tied=True, buffers=True)
    named = {name: x for name, x in pairs if x is not None}
    listed: list[Tensor | None] | None = None
    found = []
    for name in names:
        x = named.get(name)
        if x is None and name.isdecimal():
            listed = [x for _, x in _pairs(model, "model")] if listed is None else listed
            x = listed[int(name)] if int(name) < len(listed) else None
        if x is None:
            raise ValueError(f"model must have every tensor that is to be changed, got none with the name {name!r}")
        found.append(x)
    return found


def _pairs(source: Any, argument: str, *, buffers: bool = False, tied: bool = False) -> list[tuple[str, Tensor | None]]:
    if isinstance(source, nn.Module):
        reshard(source)
        pairs: list[tuple[str, Tensor | None]] = list(source.named_parameters(remove_duplicate=not tied))
        return pairs + list(source.named_buffers(remove_duplicate=not tied)) if buffers else pairs
    if isinstance(source, Mapping):
        given = list(source.items())
    elif isinstance(source, Iterable) and not isinstance(source, Tensor | str | bytes):
        items = list(source)
        named = bool(items) and all(isinstance(x, tuple | list) and len(x) == 2 for x in items)
        given = [(name, x) for name, x in items] if named else [(str(i), x) for i, x in enumerate(items)]
    else:
        raise TypeError(
            f"{argument} must be a module, a mapping, (name, tensor) pairs or a sequence, got {type(source).__name__}"
        )
    for name, x in given:
        if not isinstance(name, str):
            raise TypeError(f"{argument} must have strings for names, got {name!r}")
        if x is not None and not isinstance(x, Tensor):
            raise TypeError(f"{argument} must have tensors, got {type(x).__name__} for {name!r}")
    if len(given) != len({name for name, _ in given}):
        raise ValueError(f"{argument} must have different names, got {[name for name, _ in given]}")
    return given


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f" for {', '.join(map(repr, names[:3]))}{more}" if names else ""


# --- checks ---------------------------------------------------------------------------------------------------------


def check_tensor(what: str, x: Tensor) -> None:
    """A plain, dense tensor of real floats that has data.

    Raises:
        TypeError: it is not.
    """
    if type(x) is not Tensor and is_sharded(x):
        _sharded.check(what, x)
        x = local(x)
    if type(x) is not Tensor and type(x) is not nn.Parameter:
        raise TypeError(f"{what} must be a plain tensor, got {type(x).__name__}")
    if x.layout is not torch.strided:
        raise TypeError(f"{what} must be strided, got {x.layout} of {x.dtype}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{what} must be of {_DTYPES}, got {x.dtype}")
    if x.is_meta:
        raise TypeError(f"{what} must have data, got a meta tensor of {x.dtype}")


def check_device(what: str, named: Sequence[tuple[str, Tensor]]) -> None:
    """All on one device.

    Raises:
        ValueError: they are not.
    """
    for name, x in named[1:]:
        if x.device != named[0][1].device:
            raise ValueError(
                f"{what}s must be on one device, got {named[0][0]!r} on {named[0][1].device} and {name!r} on {x.device}"
            )


def check_eps(eps: object) -> float:
    """A finite number, not negative.

    Raises:
        TypeError: no number; ValueError: negative or not finite.
    """
    if isinstance(eps, bool) or not isinstance(eps, Real):
        raise TypeError(f"eps must be a number or relative(r), got {eps!r}")
    if not 0 <= (value := float(eps)) < math.inf:
        raise ValueError(f"eps must be finite and non-negative, got {eps!r}")
    return value


def check_p(p: object) -> float:
    """The exponent of a norm: 1 to infinity.

    Raises:
        TypeError: no number; ValueError: below 1 or NaN.
    """
    if isinstance(p, bool) or not isinstance(p, Real):
        raise TypeError(f"p must be a number, got {p!r}")
    if not (value := float(p)) >= 1:
        raise ValueError(f"p must be at least 1, got {p!r}")
    return value


def check_n(n: object, k: int) -> int:
    """How many of k elements may change; all of them for None.

    Raises:
        TypeError: no integer; ValueError: not from 1 to k.
    """
    if n is None:
        return k
    if isinstance(n, bool) or not isinstance(n, Integral):
        raise TypeError(f"n must be an integer or None, got {n!r}")
    if not 1 <= (value := int(n)) <= k:
        raise ValueError(f"n must be at least 1 and at most the number of elements k, got n={n} with k={k}")
    return value


def check_seed(seed: object) -> int:
    """A seed of 63 bits.

    Raises:
        TypeError: no integer; ValueError: out of range.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"seed must be an integer, got {seed!r}")
    if not 0 <= (value := int(seed)) < 1 << 63:
        raise ValueError(f"seed must be non-negative and below 2^63, got {seed}")
    return value


def check_targets(names: Sequence[str], shapes: Sequence[Sequence[int]], model: Any) -> list[Tensor]:
    """The tensors of `model` to which a change of floats of these names and shapes is to be written.

    Raises:
        TypeError: a subclass of tensor, not strided, or without data.
        ValueError: no such name, another shape, no floats, several devices, or memory shared by two of the tensors or
            by elements of one.
    """
    targets = match(names, model)
    for name, shape, x in zip(names, shapes, targets, strict=True):
        if tuple(x.shape) != tuple(shape):
            raise ValueError(
                f"parameter {name!r} must have the shape of its change, {tuple(shape)}, got {tuple(x.shape)}"
            )
        if x.layout is torch.strided and x.dtype not in DTYPES:
            raise ValueError(f"parameter {name!r} must be of {_DTYPES}, got {x.dtype}")
        check_tensor(f"parameter {name!r}", x)
        if overlaps_itself(local(x)):
            raise ValueError(
                f"parameter {name!r} must have memory for each element, got shape {tuple(x.shape)} with strides"
                f" {x.stride()}; pass a clone"
            )
    check_device("parameter", list(zip(names, targets, strict=True)))
    _check_overlap(names, targets)
    _sharded.check_parts("parameter", names, targets)
    return targets


def _check_overlap(names: Sequence[str], tensors: Sequence[Tensor]) -> None:
    spans = []
    for name, x in zip(names, map(local, tensors), strict=True):
        if x.layout is torch.strided and x.numel() and not x.is_meta and (start := x.data_ptr()):
            spans.append((str(x.device), start, start + _span(x) * x.element_size(), name, x))
    spans.sort(key=lambda span: span[:2])
    open_: list[tuple[str, int, int, str, Tensor]] = []
    for span in spans:
        open_ = [other for other in open_ if other[0] == span[0] and other[2] > span[1]]
        for other in open_:
            if _share(other[4], span[4]):
                raise ValueError(
                    f"parameters must be the same or have no memory in common, got {other[3]!r} and {span[3]!r}, which"
                    " overlap; pass one tensor under both names, or clones"
                )
        open_.append(span)


def _share(x: Tensor, y: Tensor) -> bool:
    """Whether a byte belongs to both tensors, whose spans overlap: columns of a matrix lie between each other."""
    if is_dense(x) or is_dense(y) or x.element_size() != y.element_size():
        return True
    return bool(torch.isin(_addresses(x), _addresses(y)).any())


def _addresses(x: Tensor) -> Tensor:
    every = torch.arange(x.numel())
    return memory_index(x, every) * x.element_size() + x.data_ptr()


# --- memory ---------------------------------------------------------------------------------------------------------


def _memory_key(x: Tensor) -> object:
    if is_sharded(x) or x.layout is not torch.strided or x.is_meta or not x.numel() or not x.data_ptr():
        return id(x)
    strides = tuple(stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1)
    return x.device, x.data_ptr(), x.dtype, tuple(x.shape), strides


def _span(x: Tensor) -> int:
    """How many elements of memory lie from the first to the last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0


def is_dense(x: Tensor) -> bool:
    """Whether the elements fill their memory without a gap, in any order."""
    return _span(x) == x.numel() and not overlaps_itself(x)


def overlaps_itself(x: Tensor) -> bool:
    """Whether two elements may be one memory, as in what `expand` gives."""
    extent = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1):
        if stride < extent:
            return True
        extent = stride * (size - 1) + extent
    return False


def memory(x: Tensor) -> Tensor:
    """The memory of `x` in one dimension, gaps included: a view that shares storage and version counter."""
    x = x.detach()
    return x.view(-1) if x.is_contiguous() else x.as_strided((_span(x),), (1,), x.storage_offset())


def memory_index(x: Tensor, index: Tensor) -> Tensor:
    """Where in `memory(x)` the elements lie whose numbers in row-major order are `index`."""
    if x.is_contiguous():
        return index
    place = torch.zeros_like(index)
    for size, stride in zip(reversed(x.shape), reversed(x.stride()), strict=True):
        place += index % size * stride
        index = index // size
    return place


def logical(x: Tensor) -> Tensor:
    """The elements that this process holds in row-major order: `x` itself, or a copy."""
    if type(x) is not Tensor and is_sharded(x):
        x = local(x)
    if x.is_contiguous() and not (x.requires_grad or x.is_neg()):
        return x  # as gradients are: there may be thousands, each smaller than the time of three calls
    return x.detach().resolve_neg().contiguous()


def laid_out(x: Tensor, like: Tensor) -> Tensor:
    """The elements of `x` in the order in which `like`, which is dense, has them in memory: `x` itself, or a copy."""
    x = x.detach().resolve_neg()
    if x.stride() != like.stride():
        x = torch.empty_strided(like.shape, like.stride(), dtype=x.dtype, device=x.device).copy_(x)
    return memory(x)
