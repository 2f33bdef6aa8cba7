"""Which bits a plan of faults hits: each way of being hit as likely as any other, in time O(faults)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _sampling
from ._formats import layout, positions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ._formats import Bits, Format

FAULTS = ("single", "multi", "burst", "stuck")
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Room:
    """The bits of a tensor that can be hit: those at `positions` in each of its elements."""

    format: Format
    elements: int
    positions: list[int]

    @classmethod
    def of(cls, name: str, x: Tensor, bits: Bits, formats: Mapping[str, str] | None) -> Room:
        """That of a tensor of this name, of whose bits those can be hit that are chosen by `bits`."""
        form = layout(name, x.dtype, formats)
        return cls(form, x.numel() * x.element_size() * 8 // form.stride, positions(name, form, bits))

    @property
    def bits(self) -> int:
        return self.elements * len(self.positions)

    @property
    def is_whole(self) -> bool:
        return len(self.positions) == self.format.stride

    def runs(self, width: int) -> list[int]:
        """The positions at which `width` adjacent ones begin."""
        have = set(self.positions)
        return [first for first in self.positions if have.issuperset(range(first, first + width))]

    def places(self, width: int, fault: str) -> int:
        """How many faults the tensor can take at once.

        Bursts are in the memory of a tensor as a whole, or, where not all of its bits can be hit, one in an element.
        """
        if fault == "multi":
            return self.elements if len(self.positions) >= width else 0
        if fault == "burst":
            if self.is_whole:
                return self.bits // width
            return self.elements if self.runs(width) else 0
        return self.bits


def draw(rooms: Sequence[Room], fault: str, width: int, count: int, seed: int) -> tuple[list[int], Tensor]:
    """The first fault of each tensor; of every fault, sorted, its number among all that could be."""
    begin = _begins(rooms, fault, width)
    drawn = _sampling.distinct(begin[-1], count, seed)
    return torch.searchsorted(drawn, torch.tensor(begin)).tolist(), drawn


def place(rooms: Sequence[Room], fault: str, width: int, first: list[int], drawn: Tensor, seed: int) -> Tensor:
    """Of every bit that is hit by faults drawn, sorted, its place in its tensor's memory. `drawn` is overwritten."""
    found = [
        _DRAWS[fault](room, width, drawn[first[i] : first[i + 1]].sub_(begin), _mixed(seed, i))
        for i, (room, begin) in enumerate(zip(rooms, _begins(rooms, fault, width)[:-1], strict=True))
        if first[i] < first[i + 1]
    ]
    if _DRAWS[fault] is _single and all(room.is_whole for room in rooms):
        return drawn  # of which those found are parts: millions of them need no copy
    return torch.cat(found) if found else drawn


def _begins(rooms: Sequence[Room], fault: str, width: int) -> list[int]:
    """The first number of the faults that each tensor can take, and the end of all."""
    return list(accumulate((room.places(width, fault) for room in rooms), initial=0))


def _single(room: Room, width: int, local: Tensor, seed: int) -> Tensor:
    return local if room.is_whole else _address(room, local // len(room.positions), local % len(room.positions))


def _multi(room: Room, width: int, local: Tensor, seed: int) -> Tensor:
    below = torch.full_like(local, len(room.positions))
    chosen = _sampling.subsets(below, width, local, seed).sort(1).values
    return _address(room, local[:, None], chosen).flatten()


def _burst(room: Room, width: int, local: Tensor, seed: int) -> Tensor:
    if room.is_whole:
        firsts = _sampling.separate(room.bits, width, local.numel(), seed)
    else:
        runs = torch.tensor(room.runs(width))
        pick = _sampling.subsets(torch.full_like(local, len(runs)), 1, local, seed).flatten()
        firsts = local * room.format.stride + runs[pick]
    return (firsts[:, None] + torch.arange(width)).flatten()


# Of a tensor's faults, numbered among those it has room for, the bits in its memory.
_DRAWS: dict[str, Callable[[Room, int, Tensor, int], Tensor]] = {
    "single": _single,
    "stuck": _single,
    "multi": _multi,
    "burst": _burst,
}


def _address(room: Room, element: Tensor, position: Tensor) -> Tensor:
    return element * room.format.stride + torch.tensor(room.positions)[position]


def _mixed(seed: int, number: int) -> int:
    """Another seed for each tensor."""
    return (seed ^ (number + 1) * _GOLDEN) & ((1 << 63) - 1)
