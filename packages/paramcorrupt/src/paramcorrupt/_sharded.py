"""Lists of tensors of which every process holds a part: where the parts lie, and sums and choices over all of them.

Nothing is gathered: what processes exchange are counts and sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _ops, _reference
from ._shards import are_plain, is_sharded, joined, local

if TYPE_CHECKING:
    from collections.abc import Sequence

_BITS = 12  # of a key, that are found at a time: 4096 counts are exchanged


@dataclass(frozen=True, slots=True)
class Part:
    """What this process holds of a tensor: a box, whose elements in row-major order are so in the tensor, too."""

    shape: tuple[int, ...]
    first: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.size)

    def before(self, number: int) -> int:
        """How many of its elements come before the element of the tensor with a number."""
        if number >= math.prod(self.shape):
            return self.numel
        count = 0
        for d, (first, size) in enumerate(zip(self.first, self.size, strict=True)):
            at = number // math.prod(self.shape[d + 1 :]) % self.shape[d] - first
            count += min(max(at, 0), size) * math.prod(self.size[d + 1 :])
            if not 0 <= at < size:
                break
        return count

    def numbers(self, places: Tensor) -> Tensor:
        """What numbers its elements have in the tensor."""
        out, stride = torch.zeros_like(places), 1
        for length, first, size in zip(reversed(self.shape), reversed(self.first), reversed(self.size), strict=True):
            out += (places % size + first) * stride
            places, stride = places // size, stride * length
        return out

    def places(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Which elements of the tensor it has, and what their numbers are in it."""
        inside = torch.full_like(numbers, self.numel > 0, dtype=torch.bool)
        out, stride = torch.zeros_like(numbers), 1
        for length, first, size in zip(reversed(self.shape), reversed(self.first), reversed(self.size), strict=True):
            at = numbers % length - first
            inside &= (at >= 0) & (at < size)
            out += at * stride
            numbers, stride = numbers // length, stride * size
        return inside, out[inside]


def part(x: Any) -> Part:
    """What this process holds of a tensor."""
    shape = tuple(x.shape)
    first, size = [0] * len(shape), list(shape)
    for placement, count, at in _spread(x):
        if (d := placement.dim) is not None:
            step = -(-size[d] // count)
            begin = min(at * step, size[d])
            first[d], size[d] = first[d] + begin, min(step, size[d] - begin)
    return Part(shape, tuple(first), tuple(size))


def _spread(x: Any) -> list[tuple[Any, int, int]]:
    """The placements that cut a tensor, into how many parts, and which of them is here."""
    if not is_sharded(x):
        return []
    mesh = x.device_mesh
    at = mesh.get_coordinate()
    return [(each, mesh.size(d), at[d]) for d, each in enumerate(x.placements) if each.is_shard()]


def check(what: str, x: Any) -> None:
    """A tensor in shards, or in replicas, of a mesh to which this process belongs.

    Raises:
        TypeError: it is placed in another way; ValueError: this process is outside of the mesh.
    """
    from torch.distributed.tensor import Replicate, Shard

    for placement in x.placements:
        if type(placement) not in (Shard, Replicate):
            raise TypeError(f"{what} must be placed by Shard and Replicate, got {placement}")
    if x.device_mesh.get_coordinate() is None:
        raise ValueError(f"{what} must be on a mesh to which this process belongs, got {x.device_mesh}")


def check_parts(what: str, names: Sequence[str], tensors: Sequence[Tensor]) -> None:
    """All on one mesh, and cut as `torch.chunk` cuts. Called by all processes, it raises in all of them.

    Raises:
        ValueError: they are not.
    """
    shards = Shards.of(tensors, names, what)
    if shards.mesh is None:
        return
    wrong = [part(x).size != tuple(local(x).shape) for x in tensors]
    for name, count in zip(names, shards.sum(torch.tensor(wrong, device=shards.device).long()).tolist(), strict=True):
        if count:
            raise ValueError(f"{what} {name!r} must be cut into shards as torch.chunk cuts, which {count} are not")


@dataclass(frozen=True, slots=True, eq=False)
class Shards:
    """How a list of tensors is distributed; by default not at all."""

    mesh: Any = None
    dims: tuple[int, ...] = ()
    """The dimensions of the mesh along which a tensor is cut."""
    device: torch.device | None = None
    placements: tuple[Any, ...] = ()
    parts: tuple[Part, ...] = ()
    counts: tuple[bool, ...] = ()
    """Whether this process is the one that counts its part of a tensor, of those that have the same."""

    @classmethod
    def of(cls, tensors: Sequence[Any], names: Sequence[str] | None = None, what: str = "tensor") -> Shards:
        """Of tensors on one mesh, beside which there may be some that every process has.

        Raises:
            ValueError: there are several meshes.
        """
        if are_plain(tensors) or not (cut := [(t, x) for t, x in enumerate(tensors) if is_sharded(x)]):
            return _TOGETHER
        mesh = cut[0][1].device_mesh
        for t, x in cut:
            if x.device_mesh != mesh:
                first, other = (repr(names[i]) if names else str(i) for i in (cut[0][0], t))
                raise ValueError(f"{what}s must be on one mesh, got {first} on {mesh} and {other} on {x.device_mesh}")
        dims = tuple(d for d in range(mesh.ndim) if any(x.placements[d].is_shard() for _, x in cut))
        at = mesh.get_coordinate()

        def counts(x: Any) -> bool:
            return all(not at[d] or (is_sharded(x) and x.placements[d].is_shard()) for d in dims)

        return cls(
            mesh,
            dims,
            local(tensors[0]).device,
            tuple(x.placements if is_sharded(x) else None for x in tensors),
            tuple(map(part, tensors)),
            tuple(map(counts, tensors)),
        )

    # --- exchange -------------------------------------------------------------------------------------------------

    def sum(self, x: Tensor) -> Tensor:
        """Over all processes that hold other parts."""
        return self._reduced(x, torch.distributed.ReduceOp.SUM) if self.dims else x

    def maximum(self, x: Tensor) -> Tensor:
        return self._reduced(x, torch.distributed.ReduceOp.MAX) if self.dims else x

    def _reduced(self, x: Tensor, operation: Any) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        for dim in self.dims:
            torch.distributed.all_reduce(x, operation, group=self.mesh.get_group(dim))
        return x

    def rows(self, x: Tensor) -> Tensor:
        """What all processes of the mesh have for `x`, a few numbers: a row for each, in its order."""
        at = 0
        for d, i in enumerate(self.mesh.get_coordinate()):
            at = at * self.mesh.size(d) + i
        table = torch.zeros(self.mesh.size(), x.numel(), dtype=x.dtype, device=self.device)
        table[at] = x
        for d in range(self.mesh.ndim):
            torch.distributed.all_reduce(table, group=self.mesh.get_group(d))
        return table

    def norm(self, size: float, p: float) -> float:
        """The p-norm of all, where what this process counts has the p-norm `size`."""
        if not self.dims:
            return size
        here = torch.tensor(size, dtype=torch.float64, device=self.device)
        largest = self.maximum(here).item()
        if p == math.inf or not 0 < largest < math.inf:
            return largest
        return float(largest * self.sum((here / largest) ** p).item() ** (1 / p))

    # --- parts ----------------------------------------------------------------------------------------------------

    def counted(self, held: Sequence[Tensor]) -> list[Tensor]:
        """What this process counts of what it holds; nothing stands for the rest."""
        if not self.dims:
            return list(held)
        return [x if counts else x.new_empty(0) for x, counts in zip(held, self.counts, strict=True)]

    def shapes(self, shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Of what this process holds of tensors of these shapes."""
        return [each.size for each in self.parts] if self.mesh is not None else list(shapes)

    def joined(self, t: int, held: Tensor) -> Tensor:
        """A tensor that is distributed as tensor t is, of what this process holds."""
        if self.mesh is None or self.placements[t] is None:
            return held
        return joined(held, self.mesh, self.placements[t], self.parts[t].shape)

    def check(self, names: Sequence[str], targets: Sequence[Any]) -> None:
        """A change goes to weights that are distributed as it is.

        Raises:
            ValueError: they are not.
        """
        for t, (name, x) in enumerate(zip(names, targets, strict=True)):
            ours = self.placements[t] if self.mesh is not None else None
            theirs = x.placements if is_sharded(x) else None
            if ours != theirs or (theirs is not None and x.device_mesh != self.mesh):
                raise ValueError(
                    f"parameter {name!r} must be distributed as its change is, {_described(ours, self.mesh)}, got"
                    f" {_described(theirs, getattr(x, 'device_mesh', None))}"
                )

    # --- choice ---------------------------------------------------------------------------------------------------

    def select(self, held: Sequence[Tensor], n: int) -> tuple[Tensor, int, int]:
        """The threshold of the n largest magnitudes, by which operators find those of them that are here; its key; how
        many of the n have it."""
        dtype = _reference.key_dtype(held)
        width, counted = 8 * dtype.itemsize - 1, self.counted(held)
        others = [x.new_empty(0) if counts else x for x, counts in zip(held, self.counts, strict=True)]
        key, known, above, here = 0, 0, 0, 0
        while known < width:
            bits = min(_BITS, width - known)
            mine, copies = (_ops.key_histogram(x, key, known, bits)[0] for x in (counted, others))
            counts = self.sum(mine).cpu()
            larger = counts.flip(0).cumsum(0).flip(0) - counts + above
            j = int((larger < n).nonzero()[0])
            key, known, above = (key << bits) + j, known + bits, int(larger[j])
            here += int((mine + copies)[j + 1 :].sum())
        threshold = torch.tensor([key, here, self._ties(held, key, n - above), 0], device=held[0].device)
        return threshold, key, n - above

    def _ties(self, held: Sequence[Tensor], key: int, ties: int) -> int:
        """How many of the first `ties` elements with a key are here."""
        dtype = _reference.key_dtype(held)
        here = [_equal(x, key, dtype) for x in held]
        mine = [count if counts else 0 for count, counts in zip(here, self.counts, strict=True)]
        found = 0
        for t, total in enumerate(self.sum(torch.tensor(mine, device=self.device)).tolist()):
            if ties < total:
                return found + self._bisected(t, held[t].view(-1), key, dtype, ties)
            found, ties = found + here[t], ties - total
        return found

    def _bisected(self, t: int, x: Tensor, key: int, dtype: torch.dtype, ties: int) -> int:
        """As `_ties`, within tensor t, which has more: by the number of the element at which they end."""
        low, high, found, held = 0, math.prod(self.parts[t].shape), 0, self.parts[t]
        while ties:
            middle = (low + high + 1) // 2
            here = _equal(x[held.before(low) : held.before(middle)], key, dtype)
            total = int(self.sum(torch.tensor(here * self.counts[t], device=self.device)))
            if total > ties:
                high = middle
            else:
                low, found, ties = middle, found + here, ties - total
        return found


_TOGETHER = Shards()


def _described(placements: Any, mesh: Any) -> str:
    return "not at all" if placements is None else f"{', '.join(map(str, placements))} on {mesh}"


def _equal(x: Tensor, key: int, dtype: torch.dtype) -> int:
    """How many elements have a key, in a list whose keys are of a dtype."""
    width = 8 * dtype.itemsize - 1
    none = torch.empty(0, dtype=dtype, device=x.device)
    return int(_ops.key_histogram([x, none], key >> 1, width - 1, 1)[0][key & 1])
