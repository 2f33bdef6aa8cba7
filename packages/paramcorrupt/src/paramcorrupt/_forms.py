"""How a corruption is held and written to weights: by its support, as a power of gradients, or as a seed."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from . import _ops
from ._tensors import is_dense, laid_out, logical, memory, memory_index

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .restoring import Written

PIECE = 1 << 20  # random numbers at a time
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_PLAIN = 16  # the largest p below infinity whose norms the operators measure: their sums are of plain p-th powers
_VALUES = 1 << 62  # where the numbers of a random corruption of n < k elements start, beyond what chooses the elements


class Form(Protocol):
    """A change a of tensors."""

    def check(self, names: Sequence[str]) -> None:
        """RuntimeError when what `a` is made of has changed."""

    def values(self, shapes: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """For each tensor its part of `a`, flat, in float64."""

    def norm(self, p: float) -> float:
        """||a||_p."""

    def write(self, targets: Sequence[Tensor], p: float, keep: Literal["backup", "compact"]) -> Written:
        """Add `a` to weights."""


def norm(x: Tensor, p: float) -> float:
    """The p-norm in float64, of numbers whose powers need not be representable."""
    size = x.double().abs()
    largest = size.amax().item() if size.numel() else 0.0
    if p == math.inf or not 0 < largest < math.inf:
        return largest
    return float(largest * ((size / largest) ** p).sum() ** (1 / p))


def _joined(norms: Sequence[float], p: float) -> float:
    """The p-norm of vectors that have these p-norms."""
    return norm(torch.tensor(norms, dtype=torch.float64), p)


# --- by its support -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """The elements `index`, in row-major order, of each tensor t from `offsets[t]` on, move by `delta`."""

    offsets: Tensor
    index: Tensor
    delta: Tensor

    def check(self, names: Sequence[str]) -> None:
        """It holds everything itself."""

    def only(self, chosen: Sequence[bool]) -> Sparse:
        """What it changes in some of the tensors; the others are empty."""
        sizes = self.offsets.diff()
        chosen_sizes = sizes * torch.tensor(chosen, device=sizes.device)
        kept = torch.tensor(chosen, device=sizes.device).repeat_interleave(sizes)
        offsets = torch.cat([sizes.new_zeros(1), chosen_sizes.cumsum(0)])
        return Sparse(offsets, self.index[kept], self.delta[kept])

    def values(self, shapes: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        limits = self.offsets.tolist()
        for shape, first, last in zip(shapes, limits[:-1], limits[1:], strict=True):
            a = self.delta.new_zeros(math.prod(shape))
            a[self.index[first:last]] = self.delta[first:last]
            yield a

    def norm(self, p: float) -> float:
        return norm(self.delta, p)

    def write(self, targets: Sequence[Tensor], p: float, keep: Literal["backup", "compact"]) -> Written:
        from .restoring import Written

        if not self.index.numel():
            return Written(0, 0.0, lambda: None, whole=False)
        device = targets[0].device
        offsets, index, delta = (x.to(device) for x in (self.offsets, self.index, self.delta))
        limits = offsets.tolist()
        if not all(x.is_contiguous() for x in targets):
            index, delta = index.clone(), delta.clone()
            for x, first, last in zip(targets, limits[:-1], limits[1:], strict=True):
                index[first:last], order = memory_index(x, index[first:last]).sort()
                delta[first:last] = delta[first:last][order]
        weights = [memory(x) for x in targets]
        journal = _ops.apply_sparse_(weights, offsets, index, delta)
        changed, moved = 0, []
        for w, first, last in zip(weights, limits[:-1], limits[1:], strict=True):
            new = w[index[first:last]]
            bits = new.view(_BITS[new.element_size()])
            old = journal[first:last].to(bits.dtype)
            changed += int((bits != old).sum())
            moved.append(new.double() - old.view(w.dtype).double())

        def undo() -> None:
            _ops.restore_sparse_(weights, offsets, index, journal)

        return Written(changed, norm(torch.cat(moved), p), undo, whole=False)


# --- by all of it ---------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Weights as contiguous memory, numbers z in the same order, and the tensor of which the only weight is a copy."""

    weights: list[Tensor]
    z: list[Tensor]
    original: Tensor | None = None


def batch(target: Tensor, z: Tensor) -> Batch:
    """Of one tensor in any layout and the numbers for it in any layout."""
    if is_dense(target):
        return Batch([memory(target)], [laid_out(z, target)])
    return Batch([logical(target).view(-1)], [logical(z).view(-1)], target.detach())


def write(
    batches: Callable[[], Iterator[Batch]], scale: float, power: float, p: float, keep: Literal["backup", "compact"]
) -> Written:
    """w += scale sgn(z) |z|^power, batch by batch. `batches` is iterated again by the undoing of "compact" only."""
    from .restoring import Written

    measured = p == math.inf if power == 0 else p <= _PLAIN and math.isclose(p, 1 + 1 / power)
    backups: list[Callable[[], object]] = []
    residuals: list[list[Tensor] | None] = []
    changed, norms = 0, []
    for weights, z, original in batches():
        residual = None
        if original is None and measured and keep == "compact":
            summary, *residual = _ops.apply_compact_(weights, z, scale, power)
        elif original is None and measured:
            summary, backup = _ops.apply_backup_(weights, z, scale, power)
            backups.append(partial(_ops.restore_backup_, weights, backup))
        else:
            base = [w.clone() for w in weights]
            summary = _ops.apply_dense_(weights, base, z, scale, power)
            if not measured:
                norms += [norm(w.double() - old.double(), p) for w, old in zip(weights, base, strict=True)]
            if original is not None:
                weights, base = [original.copy_(weights[0].view(original.shape))], [base[0].view(original.shape)]
            backups.append(partial(torch._foreach_copy_, weights, base))
        residuals.append(residual)
        changed += int(summary[0])
        if measured:
            norms.append(summary[1].item())

    def undo() -> None:
        for restore in backups:
            restore()
        if keep == "compact":
            for (weights, z, _), residual in zip(batches(), residuals, strict=True):
                if residual is not None:
                    _ops.restore_compact_(weights, z, scale, power, *residual)

    return Written(changed, _joined(norms, p), undo, whole=keep == "backup")


def _version(x: Tensor) -> int | None:
    return None if x.is_inference() else x._version


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """a = scale sgn(g) (|g| / unit)^power with the gradients themselves, which must stay as they are."""

    gradients: tuple[Tensor, ...]
    versions: tuple[int | None, ...]
    scale: float
    unit: float
    power: float

    @classmethod
    def of(cls, gradients: Sequence[Tensor], scale: float, largest: float, power: float) -> Dense:
        """a = scale sgn(g) (|g| / largest)^power."""
        unit = largest
        if power <= 8 and abs(power * math.log2(largest)) < 900:  # |g|^power has a place in float64
            scale, unit = scale * largest**-power, 1.0
        return cls(tuple(gradients), tuple(map(_version, gradients)), scale, unit, power)

    def check(self, names: Sequence[str]) -> None:
        for name, x, version in zip(names, self.gradients, self.versions, strict=True):
            if _version(x) != version:
                raise RuntimeError(
                    f"gradient {name!r} must stay as it was while a corruption of it is used, but it was written to;"
                    " make the corruption again"
                )

    def only(self, chosen: Sequence[bool]) -> Dense:
        """What it changes in some of the tensors; the others are empty."""
        gradients = tuple(x if own else x.new_empty(0) for x, own in zip(self.gradients, chosen, strict=True))
        return replace(self, gradients=gradients, versions=tuple(map(_version, gradients)))

    def _z(self, x: Tensor) -> Tensor:
        return x if self.unit == 1 else x.detach().double() / self.unit

    def values(self, shapes: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        for x in self.gradients:
            z = self._z(logical(x)).double().view(-1)
            yield z.abs().pow_(self.power).mul_(self.scale).mul_(z.sign())

    def norm(self, p: float) -> float:
        tensors = [logical(x) for x in self.gradients]
        stats = _ops.grad_stats(tensors).cpu()
        largest = float(stats[:, 2].amax())
        if not largest:
            return 0.0
        top = self.scale * float((largest / self.unit) ** self.power)
        if p == math.inf:
            return top
        if self.power == 0:
            return top * math.pow(float(stats[:, 3].sum()), 1 / p)
        return top * math.pow(float(_ops.power_sum(tensors, self.power * p, largest, 0).sum()), 1 / p)

    def write(self, targets: Sequence[Tensor], p: float, keep: Literal["backup", "compact"]) -> Written:
        def batches() -> Iterator[Batch]:
            together: list[tuple[Tensor, Tensor]] = []
            alone: list[tuple[Tensor, Tensor]] = []
            for x, g in zip(targets, self.gradients, strict=True):
                g = g.to(x.device)
                plain = self.unit == 1 and is_dense(x) and x.stride() == g.stride()
                (together if plain else alone).append((x, g))
            if together:
                yield Batch([memory(x) for x, _ in together], [laid_out(g, x) for x, g in together])
            for x, g in alone:
                yield batch(x, self._z(g))

        return write(batches, self.scale, self.power, p, keep)


# --- by a seed ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Random:
    """a = scale z with the numbers z that the seed gives, which are made again whenever they are needed."""

    seed: int
    p: float
    scale: float
    sizes: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    device: torch.device

    @classmethod
    def of(cls, tensors: Sequence[Tensor], seed: int, p: float, eps: float) -> Random:
        """A corruption of tensors of these sizes whose p-norm is eps."""
        dtypes = tuple(torch.promote_types(x.dtype, torch.float32) for x in tensors)
        form = cls(seed, p, 1.0, tuple(x.numel() for x in tensors), dtypes, tensors[0].device)
        return replace(form, scale=eps / form.norm(p))

    def check(self, names: Sequence[str]) -> None:
        """It needs nothing but the seed."""

    def _spans(self, whole: Sequence[bool]) -> Iterator[list[tuple[int, int, int]]]:
        """(tensor, first, last) in groups of one dtype and at most `PIECE` numbers; `whole` tensors are not split."""
        group: list[tuple[int, int, int]] = []
        total = 0
        for t, size in enumerate(self.sizes):
            step = max(size, 1) if whole[t] else PIECE
            for first in range(0, size, step):
                last = min(size, first + step)
                full = whole[t] or total + last - first > PIECE
                if group and (full or whole[group[-1][0]] or self.dtypes[group[-1][0]] != self.dtypes[t]):
                    yield group
                    group, total = [], 0
                group.append((t, first, last))
                total += last - first
        if group:
            yield group

    def _filled(
        self, whole: Sequence[bool], device: torch.device
    ) -> Iterator[tuple[list[tuple[int, int, int]], list[Tensor], float]]:
        """Groups of `_spans`, their numbers, and the p-norm of these."""
        begin = 0
        for group in self._spans(whole):
            lengths = [last - first for _, first, last in group]
            z = torch.empty(sum(lengths), dtype=self.dtypes[group[0][0]], device=device)
            size = _ops.random_fill_([z], self.seed, begin, self.p)
            begin += z.numel()
            yield group, list(z.split(lengths)), size.item()

    def values(self, shapes: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        begin = 0
        for size, dtype in zip(self.sizes, self.dtypes, strict=True):
            z = torch.empty(size, dtype=dtype, device=self.device)
            _ops.random_fill_([z], self.seed, begin, self.p)
            begin += size
            yield z.double().mul_(self.scale)

    def norm(self, p: float) -> float:
        parts = self._filled([False] * len(self.sizes), self.device)
        given = p == self.p and (p <= _PLAIN or p == math.inf)
        sizes = [size if given else norm(torch.cat(z), p) for _, z, size in parts]
        return self.scale * _joined(sizes, p)

    def write(self, targets: Sequence[Tensor], p: float, keep: Literal["backup", "compact"]) -> Written:
        whole = [not x.is_contiguous() for x in targets]

        def batches() -> Iterator[Batch]:
            for group, z, _ in self._filled(whole, targets[0].device):
                if whole[t := group[0][0]]:
                    yield batch(targets[t], z[0].view(targets[t].shape))
                else:
                    yield Batch([memory(targets[t])[first:last] for t, first, last in group], z)

        return write(batches, self.scale, 0.0 if p == math.inf else 1.0, p, keep)


def random(tensors: Sequence[Tensor], n: int, seed: int, p: float, eps: float) -> Random | Sparse:
    """A random change of n elements whose p-norm is eps."""
    if n == sum(x.numel() for x in tensors):
        return Random.of(tensors, seed, p, eps)
    return scattered(tensors, n, seed, p, eps)


def scattered(
    tensors: Sequence[Tensor], n: int, seed: int, p: float, eps: float, device: torch.device | None = None
) -> Sparse:
    """n of the elements, chosen uniformly, and random numbers on them whose p-norm is eps; on a device, by default that
    of the tensors."""
    device = device or tensors[0].device
    place = _ops.sample_bits(sum(x.numel() for x in tensors), n, seed)
    starts = torch.tensor([0, *itertools.accumulate(x.numel() for x in tensors)])
    offsets = torch.searchsorted(place, starts)
    index = place - starts[:-1].repeat_interleave(offsets.diff())
    z = torch.empty(n, dtype=torch.float64, device=device)
    _ops.random_fill_([z], seed, _VALUES, p)
    return Sparse(offsets.to(device), index.to(device), z * (eps / norm(z, p)))
