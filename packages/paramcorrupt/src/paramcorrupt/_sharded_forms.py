"""How a corruption is held and written where every process holds a part of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from . import _forms, _ops
from ._shards import local

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ._sharded import Part, Shards
    from .restoring import Written


def write(
    form: _forms.Sparse | _forms.Dense | Random,
    shards: Shards,
    held: Sequence[Tensor],
    p: float,
    keep: Literal["backup", "compact"],
) -> Written:
    """Add a change to all that this process holds, and say what of it has arrived in all of them."""
    from .restoring import Written

    written: list[Written] = []

    def undo() -> None:
        for each in reversed(written):
            each.undo()

    try:
        changed, size = 0, 0.0
        for counted in (True, False):
            chosen = [counts is counted for counts in shards.counts]
            if any(chosen):
                targets = [x if own else x.new_empty(0) for x, own in zip(held, chosen, strict=True)]
                written.append(form.only(chosen).write(targets, p, keep))
                if counted:
                    changed, size = written[-1].changed, written[-1].norm
        changed = int(shards.sum(torch.tensor(changed, device=shards.device)))
        size = shards.norm(size, p)
    except BaseException:
        undo()
        raise
    return Written(changed, size, undo, whole=all(each.whole for each in written))


# --- chance ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Random:
    """The parts of a = scale z that belong to parts of tensors: the numbers of the elements give z."""

    seed: int
    p: float
    scale: float
    parts: tuple[Part, ...]
    starts: tuple[int, ...]
    """Where the tensors start among the elements of all."""
    dtypes: tuple[torch.dtype, ...]
    device: torch.device
    chosen: tuple[bool, ...]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], shards: Shards, seed: int, p: float, eps: float) -> Random:
        dtypes = tuple(torch.promote_types(x.dtype, torch.float32) for x in tensors)
        starts = tuple(accumulate((x.numel() for x in tensors), initial=0))[:-1]
        device = local(tensors[0]).device
        form = cls(seed, p, 1.0, shards.parts, starts, dtypes, device, (True,) * len(starts))
        return replace(form, scale=eps / shards.norm(form.only(shards.counts).norm(p), p))

    def only(self, chosen: Sequence[bool]) -> Random:
        """What it changes in some of the tensors; the others are empty."""
        return replace(self, chosen=tuple(chosen))

    def check(self, names: Sequence[str]) -> None:
        """It needs nothing but the seed."""

    def _numbers(self, t: int, first: int, last: int) -> Tensor:
        """z of the elements `first` to `last - 1` of a part."""
        ends = self.parts[t].numbers(torch.tensor([first, last - 1])).tolist()
        z = torch.empty(ends[1] - ends[0] + 1, dtype=self.dtypes[t], device=self.device)
        _ops.random_fill_([z], self.seed, self.starts[t] + ends[0], self.p)
        if z.numel() == last - first:
            return z
        return z[self.parts[t].numbers(torch.arange(first, last, device=self.device)) - ends[0]]

    def _pieces(self, t: int) -> Iterator[tuple[int, int]]:
        """First and last elements of a part, between which the tensor has no more than `PIECE`, or a row."""
        here = self.parts[t].numel if self.chosen[t] else 0
        step = max(1, _forms.PIECE * here // max(1, math.prod(self.parts[t].shape)))
        for first in range(0, here, step):
            yield first, min(here, first + step)

    def values(self, shapes: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        for t in range(len(self.parts)):
            pieces = [self._numbers(t, *piece).double() * self.scale for piece in self._pieces(t)]
            yield torch.cat([torch.empty(0, dtype=torch.float64, device=self.device), *pieces])

    def norm(self, p: float) -> float:
        pieces = ((t, piece) for t in range(len(self.parts)) for piece in self._pieces(t))
        norms = [_forms.norm(self._numbers(t, *piece), p) for t, piece in pieces]
        return self.scale * _forms.norm(torch.tensor(norms, dtype=torch.float64), p)

    def write(self, targets: Sequence[Tensor], p: float, keep: Literal["backup", "compact"]) -> Written:
        def batches() -> Iterator[_forms.Batch]:
            for t, x in enumerate(targets):
                if not x.is_contiguous():
                    yield _forms.batch(x, self._numbers(t, 0, x.numel()).view(x.shape))
                    continue
                for first, last in self._pieces(t):
                    yield _forms.Batch([x.view(-1)[first:last]], [self._numbers(t, first, last)])

        return _forms.write(batches, self.scale, 0.0 if p == math.inf else 1.0, p, keep)


def random(
    tensors: Sequence[Tensor], shards: Shards, n: int, seed: int, p: float, eps: float
) -> Random | _forms.Sparse:
    """What of such a change of whole tensors belongs to parts of them."""
    if n == sum(x.numel() for x in tensors):
        return Random.of(tensors, shards, seed, p, eps)
    return _scattered(tensors, shards, n, seed, p, eps)


def _scattered(tensors: Sequence[Tensor], shards: Shards, n: int, seed: int, p: float, eps: float) -> _forms.Sparse:
    """Every process makes all n numbers and keeps its own."""
    device = local(tensors[0]).device
    whole = [torch.empty(x.shape, dtype=x.dtype, device="meta") for x in tensors]
    form = _forms.scattered(whole, n, seed, p, eps, device)
    limits, sizes, index, delta = form.offsets.tolist(), [0], [], []
    for first, last, each in zip(limits[:-1], limits[1:], shards.parts, strict=True):
        inside, places = each.places(form.index[first:last])
        index.append(places)
        delta.append(form.delta[first:last][inside])
        sizes.append(places.numel())
    return _forms.Sparse(torch.tensor(sizes, device=device).cumsum(0), torch.cat(index), torch.cat(delta))
