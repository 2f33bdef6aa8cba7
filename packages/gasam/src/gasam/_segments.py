"""Where the perturbed parameters lie: their units, the segments these belong to, and memory beside the parameters."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from . import _ops, _validation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch.distributed.tensor import DTensor

_ALIGNMENT = 64  # bytes: a cache line
_KEPT = 16  # patterns of missing gradients whose tables are kept

_dtype = attrgetter("dtype")


def _dtensor() -> type[DTensor] | None:
    """The class of sharded tensors: who holds one has imported it."""
    module = sys.modules.get("torch.distributed.tensor")
    return None if module is None else module.DTensor


def is_sharded(x: Tensor) -> bool:
    dtensor = _dtensor()
    return dtensor is not None and isinstance(x, dtensor)


def local(x: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return x._local_tensor if is_sharded(x) else x  # type: ignore[attr-defined]


def strides(xs: Iterable[Tensor]) -> list[tuple[int, ...]] | None:
    """Of each tensor; None if one of them is sparse and has none."""
    try:
        return list(map(Tensor.stride, xs))
    except RuntimeError:
        return None


def dtypes(xs: Iterable[Tensor]) -> list[torch.dtype]:
    return list(map(_dtype, xs))


def marks(xs: Sequence[Tensor]) -> tuple[list[Any], ...]:
    """What tells that a tensor was resized, cast or moved: nothing of it changes without one of these."""
    return list(map(Tensor.data_ptr, xs)), list(map(Tensor.stride, xs)), list(map(Tensor.numel, xs))


def _spread(p: Any) -> list[int]:
    """The dimensions of its mesh that a sharded tensor is distributed over."""
    return [dim for dim, placement in enumerate(p.placements) if not placement.is_replicate()]


class Memory:
    """Memory with the layout of the parameters, which stays where it is from step to step.

    It is one flat tensor for each device and dtype, made when first asked for.
    """

    def __init__(self, *, wide: bool = False) -> None:
        self._wide = wide  # float32 for parameters of 16 bits
        self._views: dict[Tensor, Tensor] = {}

    def views(self, params: Sequence[Tensor]) -> list[Tensor]:
        """For each parameter a tensor with its shape and strides."""
        missing = [p for p in params if p not in self._views]
        by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for p in missing:
            dtype = torch.promote_types(p.dtype, torch.float32) if self._wide else p.dtype
            by_kind.setdefault((p.device, dtype), []).append(p)
        for (device, dtype), alike in by_kind.items():
            step = _ALIGNMENT // dtype.itemsize
            starts = [0]
            for p in alike:
                starts.append(starts[-1] + -(-p.numel() // step) * step)
            flat = torch.empty(starts[-1], dtype=dtype, device=device)
            for p, start in zip(alike, starts, strict=False):
                self._views[p] = flat.as_strided(p.shape, p.stride(), start)
        return [self._views[p] for p in params]


@dataclass(slots=True)
class Part:
    """The parameters of one device, which one call of an operator takes."""

    device: torch.device
    params: slice  # of the lists of `Units`
    units: slice
    rows: list[int]
    salt: int  # makes the random numbers of devices and processes differ


@dataclass
class Units:
    """The parameters that are perturbed in a step, ordered by device, and the units and segments of them."""

    source: Segments
    order: list[int]  # places among all that may be perturbed
    names: list[str]
    params: list[Tensor]
    locals: list[Tensor]
    weighted: list[int]
    parts: list[Part]
    segment: Tensor
    sizes: Tensor
    groups: Tensor  # of the units
    shards: list[tuple[Any, Tensor | None]]  # a process group, and the units that are distributed over it
    rows: list[int]
    by_channel: bool
    straight: bool  # `order` is 0, 1, 2, ... and nothing is sharded
    _rho: tuple[tuple[float, ...], Tensor] | None = None
    _checked: bool = False

    def __post_init__(self) -> None:
        self._marks = marks(self.locals)
        self._strides = strides(self.locals)
        self._dtypes = dtypes(self.locals)

    @cached_property
    def backup(self) -> list[Tensor]:
        """Memory for the clean weights."""
        return self.source.backup.views(self.locals)

    @cached_property
    def offset(self) -> list[Tensor]:
        """Memory for w + e - w, of more than 16 bits an element."""
        return self.source.offset.views(self.locals)

    @property
    def device(self) -> torch.device:
        """Where everything is that belongs to units."""
        return self.segment.device

    def rho(self, of_groups: Sequence[float]) -> Tensor:
        """The radius of each unit."""
        key = tuple(of_groups)
        if self._rho is None or self._rho[0] != key:
            self._rho = key, torch.tensor(key, dtype=torch.float64, device=self.device)[self.groups]
        return self._rho[1]

    def arrange(self, given: Sequence[Tensor | None]) -> list[Tensor]:
        """Gradients of `params`, out of a list of all: as they lie here, and as the parameters lie in memory.

        Raises:
            RuntimeError: a gradient is sparse, or does not have its parameter's shape, dtype and device.
        """
        grads: list[Any] = list(given) if self.straight else [given[k] for k in self.order]
        # torch lets `.grad` differ from its parameter in nothing but the dtype and the layout
        if self.straight and self._checked and strides(grads) == self._strides and dtypes(grads) == self._dtypes:
            return grads
        for name, p, grad in zip(self.names, self.params, grads, strict=True):
            _validation.check_gradient(name, p, grad)
        self._checked = True
        return [as_parameter(p, grad) for p, grad in zip(self.params, grads, strict=True)]

    def split(self, values: Tensor) -> list[Tensor]:
        """Values of the units, for each part on its device."""
        if len(self.parts) == 1:
            return [values]
        return [values[part.units].to(part.device, non_blocking=True) for part in self.parts]

    def sums(self, grads: list[Tensor], weights: list[Tensor], weighted: list[int], eta: float) -> Tensor:
        """The sum of (T g)^2 of each unit, over all processes."""
        each = []
        for part in self.parts:
            k = part.params
            each.append(_ops.segment_norms(grads[k], weights[k], part.rows, weighted[k], eta))
        sums: Tensor = each[0]
        if len(each) > 1:
            sums = torch.cat([x.to(self.device, non_blocking=True) for x in each])
        for group, mask in self.shards:
            shared = sums if mask is None else torch.where(mask, sums, 0.0)
            torch.distributed.all_reduce(shared, group=group)
            sums = shared if mask is None else torch.where(mask, shared, sums)
        return sums

    def of_segments(self, values: Tensor) -> Tensor:
        """For each unit the sum over its segment."""
        return torch.zeros_like(values).index_add_(0, self.segment, values)[self.segment]

    def check_unchanged(self) -> None:
        """That the parameters' memory is what `backup` was taken of.

        Raises:
            RuntimeError: a parameter was resized or cast since.
        """
        if self.source.is_sharded:
            self.locals = [local(p) for p in self.params]
        if marks(self.locals) != self._marks:
            for name, p, kept in zip(self.names, self.params, self.backup, strict=True):
                _validation.check_as_perturbed(name, p, kept)

    def restore(self, places: Sequence[int] | None = None) -> None:
        """Put back the clean weights, of all parameters or some."""
        for part in self.parts:
            k = range(len(self.params))[part.params]
            some = k if places is None else [place for place in places if place in k]
            _ops.restore_([self.locals[place] for place in some], [self.backup[place] for place in some])
            increment_version([self.locals[place] for place in some])


def as_parameter(p: Tensor, grad: Tensor) -> Tensor:
    """What this process holds of a gradient, with the strides of its parameter."""
    if is_sharded(p):
        if is_sharded(grad) and grad.placements != p.placements:  # type: ignore[attr-defined]
            grad = grad.redistribute(p.device_mesh, p.placements)  # type: ignore[attr-defined]
        p, grad = local(p), local(grad)
    if grad.stride() == p.stride() and grad.dtype == p.dtype:
        return grad
    return torch.empty_like(p).copy_(grad)


class Segments:
    """Makes the `Units` of every set of parameters that have gradients.

    Args:
        params: of each parameter that may be perturbed: itself, its name, its group's number, `weighted`.
        segments: as in `GASAM`.
    """

    def __init__(self, params: Sequence[tuple[Tensor, str, int, int]], segments: str) -> None:
        self.named = [(name, p) for p, name, _, _ in params]
        _validation.check_parameters(self.named, segments=segments)
        self.params = [p for p, _, _, _ in params]
        self._groups = [group for _, _, group, _ in params]
        self._weighted = [weighted for _, _, _, weighted in params]
        self._segments = segments
        self.is_sharded = any(map(is_sharded, self.params))
        self.locals = [local(p) for p in self.params]
        self.backup, self.offset = Memory(), Memory(wide=True)
        self._marks = marks(self.locals)
        self._units: dict[tuple[int, ...] | None, Units] = {}

    @property
    def device(self) -> torch.device:
        return self.locals[0].device

    def is_current(self) -> bool:
        """Whether the parameters' memory is as it was."""
        if self.is_sharded and any(local(p) is not x for p, x in zip(self.params, self.locals, strict=True)):
            return False
        return marks(self.locals) == self._marks

    def units(self, grads: Sequence[Tensor | None]) -> Units:
        """Of the parameters that have gradients."""
        key = None
        if type(None) in set(map(type, grads)):
            key = tuple(k for k, grad in enumerate(grads) if grad is not None)
        if key not in self._units:
            if len(self._units) == _KEPT:  # gradients that are missing at random have many patterns
                del self._units[next(iter(self._units))]
            self._units[key] = self._new(range(len(self.params)) if key is None else key)
        return self._units[key]

    def inner_products(self, params: Sequence[Tensor], a: list[Tensor], b: list[Tensor]) -> Tensor:
        """<a, a>, <a, b> and <b, b> over all devices and shards."""
        total = torch.zeros(3, dtype=torch.float64, device=self.device)
        for groups, places in self._alike(params):
            part = _ops.inner_products([a[k] for k in places], [b[k] for k in places]).to(self.device)
            for group in groups:
                torch.distributed.all_reduce(part, group=group)
            total += part
        return total

    def _alike(self, params: Sequence[Tensor]) -> list[tuple[list[Any], list[int]]]:
        """The places of parameters on one device and over the same process groups, with these."""
        alike: dict[Any, list[int]] = {}
        for k, p in enumerate(params):
            spread = [(p.device_mesh, dim) for dim in _spread(p)] if self.is_sharded and is_sharded(p) else []  # type: ignore[attr-defined]
            alike.setdefault((local(p).device, *spread), []).append(k)
        return [([mesh.get_group(dim) for mesh, dim in key[1:]], places) for key, places in alike.items()]

    def _rows(self, k: int) -> int:
        p = self.locals[k]
        return max(1, p.shape[0]) if self._segments == "channel" and p.ndim else 1

    def _new(self, places: Iterable[int]) -> Units:
        by_device: dict[torch.device, list[int]] = {}
        for k in places:
            by_device.setdefault(self.locals[k].device, []).append(k)
        order = [k for alike in by_device.values() for k in alike]
        rows = [self._rows(k) for k in order]
        parts = []
        first = unit = 0
        for number, (device, alike) in enumerate(by_device.items()):
            of_part = rows[first : first + len(alike)]
            parts.append(
                Part(
                    device=device,
                    params=slice(first, first + len(alike)),
                    units=slice(unit, unit + sum(of_part)),
                    rows=of_part,
                    salt=65537 * (number + len(by_device) * self._shard(alike)),
                )
            )
            first, unit = first + len(alike), unit + sum(of_part)

        device = self.device
        repeats = torch.tensor(rows, dtype=torch.int64)

        def of_units(values: Iterable[int]) -> Tensor:
            return torch.tensor(list(values), dtype=torch.int64).repeat_interleave(repeats).to(device)

        groups = [self._groups[k] for k in order]
        number_of_group = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        numbers: dict[str, Callable[[], Tensor]] = {
            "tensor": lambda: of_units(range(len(order))),
            "group": lambda: of_units(number_of_group[group] for group in groups),
            "global": lambda: of_units(0 for _ in order),
            "channel": lambda: torch.arange(sum(rows), device=device),
        }
        return Units(
            source=self,
            order=order,
            names=[self.named[k][0] for k in order],
            params=[self.params[k] for k in order],
            locals=[self.locals[k] for k in order],
            weighted=[self._weighted[k] for k in order],
            parts=parts,
            segment=numbers[self._segments](),
            sizes=of_units(self.params[k].numel() // n for k, n in zip(order, rows, strict=True)),
            groups=of_units(groups),
            shards=self._shards(order),
            rows=rows,
            by_channel=self._segments == "channel",
            straight=order == list(range(len(self.params))) and not self.is_sharded,
        )

    def _shard(self, places: Sequence[int]) -> int:
        """A number that tells apart the processes that hold other shards, but not those that hold the same."""
        p: Any = next((self.params[k] for k in places if is_sharded(self.params[k])), None)
        number = 0
        for dim in [] if p is None else _spread(p):
            number = number * p.device_mesh.size(dim) + p.device_mesh.get_local_rank(dim)
        return number

    def _shards(self, order: Sequence[int]) -> list[tuple[Any, Tensor | None]]:
        """Over which process groups sums are to be taken, and of which units; a sharded parameter is one unit."""
        if not self.is_sharded:
            return []
        distributed: dict[tuple[Any, int], list[bool]] = {}
        for place, k in enumerate(order):
            p: Any = self.params[k]
            if not is_sharded(p):
                continue
            for dim in _spread(p):
                distributed.setdefault((p.device_mesh, dim), [False] * len(order))[place] = True
        return [
            (mesh.get_group(dim), None if all(mask) else torch.tensor(mask, device=self.device))
            for (mesh, dim), mask in distributed.items()
        ]
