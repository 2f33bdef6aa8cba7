"""A corruption as what it does to the tensors of a checkpoint, a window at a time."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _forms, _ops
from ._patching import Edit
from ._tensors import logical

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._safetensors import Stored
    from .corruption import Corruption


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


def corruption_edits(
    change: Corruption, tensors: Mapping[str, Stored], tally: Tally
) -> dict[str, Edit]:
    """What happens to each tensor.

    Raises:
        ValueError, TypeError: as `corrupted` does, when the corruption does not fit the tensors.
    """
    # Nobody writes to these, so that they take no memory.
    unfilled = {name: torch.empty(x.shape, dtype=x.dtype) for name, x in tensors.items()}
    names = {id(x): name for name, x in unfilled.items()}
    targets = [names[id(x)] for x in change._targets(unfilled)]
    form = change._form
    if not change.nnz:
        return {}
    if isinstance(form, _forms.Sparse):
        limits = itertools.pairwise(form.offsets.tolist())
        return {name: _sparse(form.index[a:b], form.delta[a:b], tally) for name, (a, b) in zip(targets, limits, strict=True) if a < b}
    if isinstance(form, _forms.Dense):
        return {name: Edit(None, _dense(form, g, change.p, tally)) for name, g in zip(targets, form.gradients, strict=True)}
    begins = itertools.accumulate(form.sizes, initial=0)
    return {name: Edit(None, _random(form, begin, dtype, tally)) for name, begin, dtype in zip(targets, begins, form.dtypes)}


def _sparse(index: Tensor, delta: Tensor, tally: Tally) -> Edit:
    def change(window: Tensor, first: int, picked: slice) -> None:
        places = index[picked] - first
        old = window[places]
        _ops.apply_sparse_([window], torch.tensor([0, places.numel()]), places, delta[picked])
        tally.compare(old, window[places])

    return Edit(index, change)


def _dense(form: _forms.Dense, gradient: Tensor, p: float, tally: Tally) -> Any:
    flat = logical(gradient).view(-1)

    def change(window: Tensor, first: int, picked: slice) -> None:
        _add(window, form._z(flat[first : first + window.numel()]), form.scale, form.power, p, tally)

    return change


def _random(form: _forms.Random, begin: int, dtype: torch.dtype, tally: Tally) -> Any:
    def change(window: Tensor, first: int, picked: slice) -> None:
        z = torch.empty(window.numel(), dtype=dtype)
        _ops.random_fill_([z], form.seed, begin + first, form.p)
        _add(window, z, form.scale, 0.0 if form.p == math.inf else 1.0, form.p, tally)

    return change


def _add(window: Tensor, z: Tensor, scale: float, power: float, p: float, tally: Tally) -> None:
    """window += scale sgn(z) |z|^power."""
    base = window.clone()
    changed, norm = _ops.apply_dense_([window], [base], [z], scale, power).tolist()
    if p <= 16 and power and math.isclose(p, 1 + 1 / power) or (p == math.inf and not power):
        tally.add(int(changed), norm)
    else:
        tally.compare(base, window)
