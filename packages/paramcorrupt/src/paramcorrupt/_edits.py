"""Corruptions and faults as what they do to the tensors of a checkpoint, a window at a time."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from . import _forms, _ops
from ._patching import Edit
from ._tensors import logical
from .faults import Faults

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._safetensors import Stored
    from .corruption import Corruption
    from .faults import Part


class Tally:
    """How much of a change has arrived."""

    def __init__(self, p: float) -> None:
        self.changed = 0
        self._p = p
        self._norms: list[float] = []

    def add(self, changed: int, norm: float) -> None:
        """What the window of an edit says."""
        self.changed += changed
        self._norms.append(norm)

    def compare(self, old: Tensor, new: Tensor) -> None:
        """Elements before and after."""
        changed = (old.view(_BITS[old.itemsize]) != new.view(_BITS[new.itemsize])).sum()
        self.add(int(changed), _forms.norm(new.double() - old.double(), self._p))

    @property
    def norm(self) -> float:
        """||new - old||_p."""
        return _forms.norm(torch.tensor(self._norms, dtype=torch.float64), self._p)


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def edits_of(change: Corruption | Faults, tensors: Mapping[str, Stored], tally: Tally) -> dict[str, Edit]:
    """What happens to each tensor.

    Raises:
        ValueError, TypeError: as `corrupted` does, when the change does not fit the tensors.
    """
    # Nobody writes to these, so that they take no memory.
    unfilled = {name: torch.empty(x.shape, dtype=x.dtype) for name, x in tensors.items()}
    names = {id(x): name for name, x in unfilled.items()}
    targets = [names[id(x)] for x in change._targets(unfilled)]
    edits = _flips(change, tally) if isinstance(change, Faults) else _moves(change, tally)
    return dict(zip(targets, edits, strict=True)) if edits else {}


def _moves(change: Corruption, tally: Tally) -> list[Edit]:
    """Of each tensor of a corruption."""
    form = change._form
    if not change.nnz:
        return []
    if isinstance(form, _forms.Sparse):
        return [_sparse(form.index[a:b], form.delta[a:b], tally) for a, b in itertools.pairwise(form.offsets.tolist())]
    if isinstance(form, _forms.Dense):
        return [_dense(form, gradient, change.p, tally) for gradient in form.gradients]
    form = cast("_forms.Random", form)  # shards do not fit the tensors of a file
    begins = itertools.accumulate(form.sizes[:-1], initial=0)
    return [_random(form, begin, dtype, tally) for begin, dtype in zip(begins, form.dtypes, strict=True)]


def _flips(plan: Faults, tally: Tally) -> list[Edit]:
    """Of each tensor of a plan."""

    def edit(part: Part) -> Edit:
        def change(window: Tensor, first: int, picked: slice) -> None:
            begin, end = part.first + picked.start, part.first + picked.stop
            data, (index, mask) = window.view(torch.uint8), plan._located(begin, end)
            index -= first * window.itemsize
            if plan._value is not None:
                mask = mask * plan._differs(data[index], mask, begin, end)
            _ops.xor_bits_(data, index, mask)
            tally.add(int(mask.count_nonzero()), math.nan)

        return Edit(plan._place[part.first : part.stop] // (8 * part.dtype.itemsize), change)

    return [edit(part) for part in plan.parts]


def _sparse(index: Tensor, delta: Tensor, tally: Tally) -> Edit:
    def change(window: Tensor, first: int, picked: slice) -> None:
        places = index[picked] - first
        old = window[places]
        _ops.apply_sparse_([window], torch.tensor([0, places.numel()]), places, delta[picked])
        tally.compare(old, window[places])

    return Edit(index, change)


def _dense(form: _forms.Dense, gradient: Tensor, p: float, tally: Tally) -> Edit:
    flat = logical(gradient).view(-1)

    def change(window: Tensor, first: int, picked: slice) -> None:
        _add(window, form._z(flat[first : first + window.numel()]), form.scale, form.power, p, tally)

    return Edit(None, change)


def _random(form: _forms.Random, begin: int, dtype: torch.dtype, tally: Tally) -> Edit:
    def change(window: Tensor, first: int, picked: slice) -> None:
        z = torch.empty(window.numel(), dtype=dtype)
        _ops.random_fill_([z], form.seed, begin + first, form.p)
        _add(window, z, form.scale, 0.0 if form.p == math.inf else 1.0, form.p, tally)

    return Edit(None, change)


def _add(window: Tensor, z: Tensor, scale: float, power: float, p: float, tally: Tally) -> None:
    """window += scale sgn(z) |z|^power."""
    base = window.clone()
    changed, norm = _ops.apply_dense_([window], [base], [z], scale, power).tolist()
    if (p <= 16 and power and math.isclose(p, 1 + 1 / power)) or (p == math.inf and not power):
        tally.add(int(changed), norm)
    else:
        tally.compare(base, window)
