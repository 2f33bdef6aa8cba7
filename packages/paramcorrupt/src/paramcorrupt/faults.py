"""Faults of memory: flipped and stuck bits in what a model stores, planned from a seed, written and taken back."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from . import _ops, _sampling
from ._draws import FAULTS, Room, draw, place
from ._formats import Bits, Format, check_bits
from ._storage import Injector, bytes_of, find, in_memory, stored
from ._tabular import Column, Row, Tabular
from ._tensors import check_seed
from .restoring import Written

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Fault", "Faults", "bitflip"]

_STEP = 4096
_FEW = 64
"""Faults made ready at once: so few objects that Python's garbage collector is not woken."""
_WIDTHS = {"multi": 2, "burst": 4}


class Fault(NamedTuple):
    """One fault: the bits that it hits, as pairs of an element, in row-major order, and a position in it."""

    tensor: str
    places: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor that faults hit. `first` and `stop` delimit its bits in the plan."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    format: Format
    first: int
    stop: int

    def fit(self, x: Tensor) -> None:
        """Raises ValueError where `x` is another tensor than the plan was made for."""
        if x.dtype != self.dtype or tuple(x.shape) != self.shape:
            raise ValueError(
                f"tensor {self.name!r} must be as in the plan, {self.dtype} of shape {self.shape}, got {x.dtype} of "
                f"shape {tuple(x.shape)}"
            )


@dataclass(frozen=True, eq=False, repr=False)
class Faults(Tabular):
    """A plan of faults: which bits of which tensors, for :func:`corrupted`. Made by :func:`bitflip` or `load`.

    Attributes:
        fault: "single", "multi", "burst" or "stuck".
        count: how many faults; each hits `width` bits.
        seed: what the plan was drawn from.
        rate: the probability of a fault for each bit, if the count was drawn.
        candidates: how many bits could be hit.
        masked: how many bits are stuck at what they are; 0 for flips, None for a plan without the weights' values.
    """

    fault: str
    width: int
    seed: int
    rate: float | None
    candidates: int
    masked: int | None
    parts: tuple[Part, ...]
    _place: Tensor  # of each bit, in its tensor's memory in row-major order
    _value: Tensor | None

    kind: ClassVar[str] = "faults"
    columns: ClassVar[Mapping[str, Column]] = {
        "fault": Column("fault"),
        "tensor": Column("tensor"),
        "element": Column("element", meaning="its number in row-major order"),
        "bit": Column("bit", meaning="its position in the element, from the lowest"),
        "field": Column("field", meaning="what the bit is part of"),
        "value": Column("stuck at"),
    }

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that are hit."""
        return tuple(part.name for part in self.parts)

    @property
    def bits(self) -> int:
        """How many bits are hit."""
        return self._place.numel()

    @property
    def count(self) -> int:
        return self.bits // self.width

    def __repr__(self) -> str:
        return f"Faults({self.fault!r}, count={self.count}, bits={self.bits}, tensors={len(self.parts)})"

    __str__ = __repr__  # there may be millions of rows

    def __iter__(self) -> Iterator[Fault]:
        """The faults, in the order of tensors and of their bits."""
        for part in self.parts:
            for first in range(part.first, part.stop, _STEP * self.width):
                yield from self._faults(part, first, min(first + _STEP * self.width, part.stop))

    def rows(self) -> list[Row]:
        """A row for every bit: the number of its fault, tensor, element, bit, field, and what it is stuck at."""
        pairs = [(number, fault.tensor, place) for number, fault in enumerate(self) for place in fault.places]
        formats = {part.name: part.format for part in self.parts}
        rows: list[Row] = [
            {"fault": number, "tensor": name, "element": element, "bit": bit, "field": formats[name].field_of(bit)}
            for number, name, (element, bit) in pairs
        ]
        if self._value is not None:
            for row, value in zip(rows, self._value.tolist(), strict=True):
                row["value"] = value
        return rows

    def facts(self) -> Row:
        return {
            "fault": self.fault,
            "count": self.count,
            "bits": self.bits,
            "masked": self.masked,
            "candidates": self.candidates,
            "rate": self.rate,
            "seed": self.seed,
        }

    def of_bytes(self, name: str, data: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The flips of a tensor: numbers of bytes, in row-major order, and for each a mask to xor it with.

        A byte comes once for every flipped bit. `data`, the tensor's bytes as uint8, is needed for bits that are
        stuck, of which only those are flips that are not yet what they are stuck at.
        """
        part = next((part for part in self.parts if part.name == name), None)
        if part is None:
            return self._located(0, 0)
        index, mask = self._located(part.first, part.stop)
        if self._value is None:
            return index, mask
        if data is None:
            raise ValueError(f"data must be the bytes of tensor {name!r}, since stuck bits depend on them, got None")
        return self._flips(part, data, index, mask)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a safetensors file."""
        from ._plans import save

        save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Faults:
        """The plan in a file that `save` wrote.

        Raises:
            ValueError: the file is something else, or damaged.
        """
        from ._plans import load

        return load(path)

    @contextmanager
    def each(self, model: Any) -> Iterator[Iterator[Fault]]:
        """The faults of the plan one after another, each alone in the weights until the next is asked for.

        A fault is in and out again within microseconds, since everything is checked once for all of them. After the
        block the weights are what they were.

        Example:
            >>> import torch
            >>> from paramcorrupt import bitflip
            >>> layer = torch.nn.Linear(3, 1, bias=False)
            >>> _ = torch.nn.init.ones_(layer.weight)
            >>> with bitflip(layer, bits="sign", count=3, seed=0).each(layer) as faults:
            ...     [layer(torch.ones(3)).item() for fault in faults]
            [1.0, 1.0, 1.0]
        """
        targets = self._targets(model)
        with torch.no_grad(), Injector() as injector:
            yield self._one_by_one(targets, injector)

    def _one_by_one(self, targets: list[Tensor], injector: Injector) -> Iterator[Fault]:
        for part, x in zip(self.parts, targets, strict=True):
            data = bytes_of(x)
            for first in range(part.first, part.stop, _FEW * self.width):
                stop = min(first + _FEW * self.width, part.stop)
                index, mask = self._located(first, stop)
                index, mask = in_memory(x, index), mask.to(x.device)
                clean = data.index_select(0, index)
                if self._value is not None:
                    mask = mask * self._differs(clean, mask, first, stop)
                injector.hold(data, index, clean)
                for fault, *flips in zip(
                    self._faults(part, first, stop), self._turns(index), self._turns(mask), strict=True
                ):
                    _ops.xor_bits_(data, *flips)
                    yield fault
                injector.take_back()

    def _turns(self, x: Tensor) -> Sequence[Tensor]:
        """Of each fault the entries together with those of the fault before, which the same flips take back."""
        return x[: self.width], *(x.unfold(0, 2 * self.width, self.width) if len(x) > self.width else ())

    def _faults(self, part: Part, first: int, stop: int) -> list[Fault]:
        place = self._place[first:stop]
        pairs = list(zip((place // part.format.stride).tolist(), (place % part.format.stride).tolist(), strict=True))
        return [Fault(part.name, tuple(pairs[i : i + self.width])) for i in range(0, len(pairs), self.width)]

    def _located(self, first: int, stop: int) -> tuple[Tensor, Tensor]:
        """Of these bits the numbers of their bytes, and masks."""
        index, mask = _ops.locate_bits(self._place[first:stop])
        return index, mask

    def _differs(self, found: Tensor, mask: Tensor, first: int, stop: int) -> Tensor:
        """For each bit 1 where the byte that was found does not have it as it is stuck."""
        value = self._value
        return ((found & mask) != 0) != (0 if value is None else value[first:stop].to(found.device))

    def _flips(self, part: Part, data: Tensor, index: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Of bits at `index` in `data` those that change."""
        mask = mask.to(data.device)
        if self._value is None:
            return index, mask
        changed = self._differs(data.index_select(0, index), mask, part.first, part.stop)
        return index[changed], mask[changed]

    def _targets(self, model: Any) -> list[Tensor]:
        targets = find(self.names, model)
        for part, x in zip(self.parts, targets, strict=True):
            part.fit(x)
        return targets

    def _write(self, targets: list[Tensor], *, keep: Literal["backup", "compact"] = "backup") -> Written:
        held: list[tuple[Tensor, Tensor, Tensor]] = []

        def undo() -> None:
            for data, index, clean in reversed(held):
                data.index_copy_(0, index, clean)

        changed = 0
        try:
            for part, x in zip(self.parts, targets, strict=True):
                data = bytes_of(x)
                index, mask = self._located(part.first, part.stop)
                index, mask = self._flips(part, data, in_memory(x, index), mask)
                held.append((data, index, data.index_select(0, index)))
                _ops.xor_bits_(data, index, mask)
                changed += mask.numel()
        except BaseException:
            undo()
            raise
        return Written(changed, math.nan, undo, whole=False)


def bitflip(
    model: Any,
    *,
    fault: str = "single",
    rate: float | None = None,
    count: int | None = None,
    bits: Bits = None,
    seed: int,
    width: int | None = None,
    value: int | None = None,
    buffers: bool = False,
    formats: Mapping[str, str] | None = None,
) -> Faults:
    """Plan faults in the stored bits of a model, in the dtype that it has. Nothing is written.

    Every set of `count` faults is equally likely; no bit is hit twice. The plan depends on the seed and on the names,
    shapes and dtypes of the tensors alone: on every machine it is the same.

    Args:
        model: a module, a mapping of names to tensors (or to anything with a shape and a dtype, such as the header of
            a file), (name, tensor) pairs, or tensors. Parameters that are one tensor are one memory. Of a subclass of
            tensor the tensors are hit that it is made of.
        fault: "single" flips `count` different bits; "multi" flips `width` different bits in each of `count` different
            elements; "burst" flips `count` separate runs of `width` bits that are adjacent in the memory of a tensor
            (in row-major order), or, if `bits` is given, in an element; "stuck" sets bits to `value`.
        rate: the probability of a fault for each bit that can be hit, from 0 to 1: the count is drawn from the exact
            law Binomial(bits, rate).
        count: how many faults; either this or `rate`.
        bits: which bits of an element can be hit: positions from 0, the lowest, or "sign", "exponent", "mantissa", or
            a sequence of these; None for all. Tensors that have no such field are not hit.
        seed: a non-negative integer below 2^63.
        width: bits of a fault, for "multi" (default 2) and "burst" (default 4).
        value: what bits are stuck at: 0, 1, or None (default) for one of them at random.
        buffers: whether buffers are hit, too.
        formats: for tensors whose dtype does not tell what they hold: patterns of names to formats, such as
            `{"*.qweight": "int4"}`. In each byte, the low nibble is the first element.

    Raises:
        ValueError: `rate` and `count` both or neither; more faults than fit; a bit outside a dtype.
        TypeError: a dtype or a subclass of tensor whose bits are out of reach.

    Example:
        >>> import torch
        >>> from paramcorrupt import bitflip, corrupted
        >>> model = {"weight": torch.zeros(2, dtype=torch.float16)}
        >>> plan = bitflip(model, bits=14, count=2, seed=0)
        >>> with corrupted(model, plan):
        ...     model["weight"].tolist()
        [2.0, 2.0]
        >>> model["weight"].tolist()
        [0.0, 0.0]
    """
    width, value = checked(fault, width, value)
    check_bits(bits)
    seed = check_seed(seed)
    if (rate is None) == (count is None):
        raise ValueError(f"exactly one of rate and count must be given, got rate={rate!r} and count={count!r}")
    named = stored(model, buffers=buffers)
    rooms = [Room.of(name, x, bits, formats) for name, x in zip(named.names, named.tensors, strict=True)]
    most = sum(room.places(width, fault) for room in rooms)
    candidates = sum(room.bits for room in rooms if room.places(width, fault))
    if not most:
        raise ValueError(
            f"model must have a tensor with room for a {fault} fault of {width} bit{'s'[: width > 1]}, got none in "
            f"{len(rooms)} tensors with bits={bits!r}"
        )
    count = _counted(rate, count, candidates, most, seed, fault)
    first, drawn = draw(rooms, fault, width, count, seed)
    parts = tuple(
        Part(name, x.dtype, tuple(x.shape), room.format, a * width, b * width)
        for name, x, room, a, b in zip(named.names, named.tensors, rooms, first[:-1], first[1:], strict=True)
        if a < b
    )
    stuck = None
    if fault == "stuck":
        stuck = _sampling.coins(drawn, seed) if value is None else torch.full((count,), value, dtype=torch.uint8)
    places = place(rooms, fault, width, first, drawn, seed)
    plan = Faults(fault, width, seed, None if rate is None else float(rate), candidates, 0, parts, places, stuck)
    return plan if stuck is None else _with_masked(plan, dict(zip(named.names, named.tensors, strict=True)))


def _with_masked(plan: Faults, tensors: Mapping[str, Tensor]) -> Faults:
    """The plan that knows how many of its stuck bits are no change, where the values are there."""
    if any(tensors[part.name].is_meta for part in plan.parts):
        return replace(plan, masked=None)
    changed = 0
    for part in plan.parts:
        x = tensors[part.name]
        index, mask = plan._located(part.first, part.stop)
        changed += plan._flips(part, bytes_of(x), in_memory(x, index), mask)[0].numel()
    return replace(plan, masked=plan.bits - changed)


def checked(fault: str, width: int | None, value: int | None) -> tuple[int, int | None]:
    if fault not in FAULTS:
        raise ValueError(f"fault must be among {', '.join(FAULTS)}, got {fault!r}")
    if width is not None and fault not in _WIDTHS:
        raise ValueError(f"width must be given only for multi and burst faults, got {width!r} for {fault!r}")
    if value is not None and fault != "stuck":
        raise ValueError(f"value must be given only for stuck faults, got {value!r} for {fault!r}")
    if value is not None and (isinstance(value, bool) or value not in (0, 1)):
        raise ValueError(f"value must be 0, 1 or None, got {value!r}")
    wide = _WIDTHS.get(fault, 1) if width is None else width
    if isinstance(wide, bool) or not isinstance(wide, Integral):
        raise TypeError(f"width must be an integer, got {width!r}")
    if not 1 <= wide <= 64:
        raise ValueError(f"width must be from 1 to 64, got {width}")
    return int(wide), value


def _counted(rate: float | None, count: int | None, candidates: int, most: int, seed: int, fault: str) -> int:
    if rate is not None:
        if isinstance(rate, bool) or not isinstance(rate, Real):
            raise TypeError(f"rate must be a number, got {rate!r}")
        if not 0 <= rate <= 1:
            raise ValueError(f"rate must be from 0 to 1, got {rate!r}")
        count = _sampling.binomial(candidates, float(rate), seed)
        if count > most:
            raise ValueError(f"rate must leave room for {fault} faults, of which {most} fit, got {rate!r}: {count}")
        return count
    if isinstance(count, bool) or not isinstance(count, Integral):
        raise TypeError(f"count must be an integer, got {count!r}")
    if not 0 <= count <= most:
        raise ValueError(f"count must be from 0 to {most}, the {fault} faults that fit, got {count}")
    return int(count)
