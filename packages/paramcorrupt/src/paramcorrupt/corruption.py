"""Corruptions: the worst small change of weights in closed form, and a random one of the same size."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from warnings import warn

import torch
from torch import Tensor, nn

from . import _forms, _sharded, _sharded_forms, _sums
from ._shards import is_sharded, local
from ._tensors import (
    Named,
    check_device,
    check_eps,
    check_n,
    check_p,
    check_seed,
    check_targets,
    check_tensor,
    gradients,
    match,
    parameters,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from .restoring import Written

__all__ = ["Corruption", "Selection", "corruption", "random_corruption", "relative", "top_n"]

_Form: TypeAlias = "_forms.Sparse | _forms.Dense | _forms.Random | _sharded_forms.Random"


@dataclass(frozen=True, slots=True)
class relative:
    """A budget as a share of the weights: eps = r ||w||_p over the parameters that are corrupted.

    Args:
        r: the share, without unit, finite and non-negative.

    Raises:
        TypeError: `r` is no number; ValueError: it is negative or not finite.

    Example:
        >>> import torch, paramcorrupt
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 3.0)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> round(paramcorrupt.corruption(model, eps=paramcorrupt.relative(0.1)).eps, 6)
        0.424264
    """

    r: float

    def __post_init__(self) -> None:
        if isinstance(self.r, bool) or not isinstance(self.r, int | float):
            raise TypeError(f"relative must be of a number, got {self.r!r}")
        if not 0 <= self.r < math.inf:
            raise ValueError(f"relative must be of a finite and non-negative number, got {self.r!r}")

    def of(self, weights: Named, p: float) -> float:
        """r ||w||_p.

        Raises:
            ValueError: a weight is NaN or infinite.
        """
        stats = _sums.statistics(weights.names, weights.tensors, "parameter")
        return self.r * _sums.norm(weights.tensors, p, stats)


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The n largest magnitudes of several tensors together, as `top_n` finds them."""

    offsets: Tensor
    """int64 [T + 1]: those of tensor t are `offsets[t]` to `offsets[t + 1] - 1` of `index` and `value`."""
    index: Tensor
    """int64 [n]: their places in their own tensor, in row-major order, ascending."""
    value: Tensor
    """[n]: the elements, with their signs."""
    threshold: float
    """The n-th largest magnitude."""
    ties: int
    """How many of the n have this magnitude; of all that have it, they are the first."""


def top_n(tensors: Any, n: int) -> Selection:
    """The n largest magnitudes of all tensors together, exactly n, without a copy of the tensors.

    Of equal magnitudes the first are taken, in the order of tensors and of their elements, for any number of threads.
    Of DTensors, which all processes of their mesh give, each finds those of the n in its own shards, whose
    elements `index` counts.

    Args:
        tensors: a mapping, (name, tensor) pairs, a sequence, or a module, for its gradients. Floats of any of float32,
            float64, bfloat16 and float16, in any layout, on one device.
        n: how many, 1 to the number of elements.

    Raises:
        TypeError: `n` is no integer, or a tensor is no dense tensor of real floats.
        ValueError: `n` is out of range, or an element is NaN or infinite.

    Example:
        >>> import torch, paramcorrupt
        >>> found = paramcorrupt.top_n([torch.tensor([1.0, -4.0]), torch.tensor([2.0, 3.0, 0.0])], 3)
        >>> found.offsets.tolist(), found.index.tolist(), found.value.tolist()
        ([0, 1, 3], [1, 0, 1], [-4.0, 2.0, 3.0])
        >>> found.threshold
        2.0
    """
    named, _ = gradients(tensors)
    if n is None:
        raise TypeError("n must be an integer, got None")
    chosen = _sums.choose(named.names, named.tensors, check_n(n, _sums.count(named.tensors)), "tensor")
    return Selection(chosen.offsets, chosen.index, chosen.value, chosen.threshold, chosen.ties)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Corruption:
    """A change a of a model's weights: what `corruption` and `random_corruption` give and `corrupted` applies.

    A corruption of all elements refers to the gradients instead of holding `a`: it must be used before they change.
    """

    eps: float
    """||a||_p, in units of the weights; 0 for an empty corruption only."""
    p: float
    n: int
    """How many elements may change."""
    k: int
    """How many elements there are."""
    nnz: int
    """How many elements of `a` are not zero, before any rounding."""
    gain: float
    """a . g, what the loss rises by to first order; NaN for a random corruption, which knows no gradient."""
    skipped: tuple[str, ...]
    """The parameters without gradient, which `a` leaves alone."""
    _names: tuple[str, ...]
    _shapes: tuple[tuple[int, ...], ...]
    _dtypes: tuple[torch.dtype, ...]
    _form: _Form
    _shards: _sharded.Shards = field(default_factory=_sharded.Shards)

    @property
    def is_sparse(self) -> bool:
        """Whether `a` is held as its elements that are not zero."""
        return isinstance(self._form, _forms.Sparse)

    def norm(self, p: float | None = None) -> float:
        """||a||_p, computed, by default for the p of the corruption.

        Raises:
            ValueError: p is below 1; RuntimeError: a gradient has changed.
        """
        self._form.check(self._names)
        p = self.p if p is None else check_p(p)
        if not self.nnz:
            return 0.0
        if self._shards.dims and not isinstance(self._form, _forms.Random):
            return self._shards.norm(self._form.only(self._shards.counts).norm(p), p)
        return self._form.norm(p)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """(name, a) of each tensor in turn, dense, in the tensor's shape, in float32 (float64 for float64 gradients),
        distributed as that is.

        Raises:
            RuntimeError: a gradient has changed.
        """
        self._form.check(self._names)
        shapes = self._shards.shapes(self._shapes)
        parts = zip(self._names, shapes, self._dtypes, self._form.values(shapes), strict=True)
        for t, (name, shape, dtype, a) in enumerate(parts):
            yield name, self._shards.joined(t, a.to(torch.promote_types(dtype, torch.float32)).view(shape))

    def dense(self) -> dict[str, Tensor]:
        """What `items` yields, all at once."""
        return dict(self.items())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file from which `load` makes the same corruption, bit for bit.

        Raises:
            OSError: it cannot be written; RuntimeError: a gradient has changed; TypeError: it is of tensors in shards,
                of which no process has the whole.
        """
        from ._corruption_file import write

        self._form.check(self._names)
        if self._shards.mesh is not None:
            raise TypeError(
                f"only a corruption of whole tensors can be saved, got one of shards on {self._shards.mesh}"
            )
        write(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Corruption:
        """Read what `save` wrote. Nothing in the file is executed; what is inconsistent is refused.

        Raises:
            OSError: it cannot be read; ValueError: it is no such file.
        """
        from ._corruption_file import read

        return read(path)

    def _targets(self, model: Any) -> list[Tensor]:
        self._form.check(self._names)
        targets = check_targets(self._names, self._shapes, model)
        for name, dtype, x in zip(self._names, self._dtypes, targets, strict=True):
            if x.dtype != dtype:
                raise ValueError(
                    f"parameter {name!r} must be of {dtype}, as what its change was made of, got {x.dtype}; convert the"
                    " gradients to it"
                )
        self._shards.check(self._names, targets)
        return targets

    @torch.no_grad()
    def _write(self, targets: Sequence[Tensor], *, keep: Literal["backup", "compact"] = "backup") -> Written:
        held = [local(x) for x in targets]
        if self._shards.dims and not isinstance(self._form, _forms.Random):
            return _sharded_forms.write(self._form, self._shards, held, self.p, keep)
        return self._form.write(held, self.p, keep)

    def __repr__(self) -> str:
        return f"Corruption(eps={self.eps:g}, p={self.p:g}, n={self.n}, k={self.k}, nnz={self.nnz}, gain={self.gain:g})"


def corruption(grads: Any, *, eps: float | relative, p: float = 2, n: int | None = None) -> Corruption:
    r"""The corruption of at most n weights with ||a||_p = eps that raises the loss most, to first order.

    With h the n gradients of largest magnitude, of all tensors together, and zeros elsewhere,

    .. math::
        a = \varepsilon \operatorname{sgn}(h) |h|^{1/(p-1)} / \| |h|^{1/(p-1)} \|_p, \qquad
        a \cdot g = \varepsilon \|h\|_q, \quad 1/p + 1/q = 1

    For p = inf that is eps sgn(h), for p = 1 all of eps on the first largest gradient. Of equal magnitudes the first
    are taken, in the order of tensors and of their elements.

    Gradients may be DTensors on one mesh, as those of `fully_shard` are: all its processes call this. They exchange
    counts and sums, and each holds its part of the same `a` that whole gradients would give.

    Args:
        grads: the gradients: a module (its parameters' ``.grad``; tied ones count once), a mapping, (name, tensor)
            pairs, or a sequence, whose gradients belong to the parameters in order. Floats of any layout on one device;
            of the dtype of the weights. None stands for no gradient.
        eps: the budget ||a||_p, in units of the weights, or ``relative(r)`` (which needs a module).
        p: the exponent of the norm, 1 to ``math.inf`` (default 2).
        n: how many weights may change, 1 to the number k of elements (default all).

    Raises:
        TypeError: an argument of the wrong type; a gradient that is integer, complex, sparse, meta, or of a subclass.
        ValueError: an argument out of range; no gradient at all; NaN or infinity in a gradient.

    Warns:
        UserWarning: all gradients are zero; the corruption is empty.

    Example:
        >>> import torch, paramcorrupt
        >>> worst = paramcorrupt.corruption({"w": torch.tensor([3.0, -4.0, 1.0])}, eps=0.5, n=2)
        >>> worst.gain, worst.nnz, worst.dense()["w"].tolist()
        (2.5, 2, [0.30000001192092896, -0.4000000059604645, 0.0])

    References:
        Sun et al., Exploring the Vulnerability of Deep Neural Networks: A Study of Parameter Corruption, AAAI 2021.
    """
    if not isinstance(eps, relative):
        eps = check_eps(eps)
    p = check_p(p)
    named, skipped = gradients(grads)
    k = _sums.count(named.tensors)
    n = check_n(n, k)
    if isinstance(eps, relative):
        if not isinstance(grads, nn.Module):
            raise ValueError(f"eps must be a number where only gradients are given, got {eps!r}; pass the module")
        eps = eps.of(Named(named.names, tuple(match(named.names, grads))), p)
    form: _forms.Sparse | _forms.Dense
    if n < k or p == 1:
        form, nnz, largest, gain = _of_largest(named, eps, p, n)
    else:
        form, nnz, largest, gain = _of_all(named, eps, p)
    if not largest:
        warn("all gradients are zero: the corruption is empty", stacklevel=2)
    return _corruption(named, form, eps=eps, p=p, n=n, nnz=nnz, gain=gain, skipped=skipped)


def _of_largest(named: Named, eps: float, p: float, n: int) -> tuple[_forms.Sparse, int, float, float]:
    """The form, how many elements are not zero, max |g| and a . g."""
    chosen = _sums.choose(named.names, named.tensors, 1 if p == 1 else n)
    h = chosen.value.double()
    largest = chosen.largest()
    if not largest or not eps:
        return _empty(named), 0, largest, 0.0
    q, power = _dual(p)
    u = h.abs() / largest
    total = 1.0 if p == 1 else chosen.sum(u**q)
    delta = h.sign() if p == 1 else h.sign() * u**power
    delta *= eps * total ** (-1 / p)
    kept = delta != 0  # zero gradients, and what vanishes where p is near 1
    offsets = torch.cat([chosen.offsets.new_zeros(1), kept.cumsum(0)])[chosen.offsets]
    form = _forms.Sparse(offsets, chosen.index[kept], delta[kept])
    return form, int(chosen.sum(h != 0)), largest, eps * largest * (1.0 if p == 1 else total ** (1 / q))


def _of_all(named: Named, eps: float, p: float) -> tuple[_forms.Sparse | _forms.Dense, int, float, float]:
    stats = _sums.statistics(named.names, named.tensors)
    if not stats.largest or not eps:
        return _empty(named), 0, stats.largest, 0.0
    q, power = _dual(p)
    total = _sums.power_sum(named.tensors, q, stats)
    form = _forms.Dense.of(
        [local(x) if is_sharded(x) else x for x in named.tensors], eps * total ** (-1 / p), stats.largest, power
    )
    return form, stats.nonzeros, stats.largest, eps * stats.largest * total ** (1 / q)


def _dual(p: float) -> tuple[float, float]:
    """q and 1 / (p - 1)."""
    return (1.0, 0.0) if p == math.inf else (math.inf, math.inf) if p == 1 else (p / (p - 1), 1 / (p - 1))


def _empty(named: Named) -> _forms.Sparse:
    device = local(named.tensors[0]).device
    index = torch.empty(0, dtype=torch.int64, device=device)
    return _forms.Sparse(index.new_zeros(len(named.names) + 1), index, index.double())


def _corruption(named: Named, form: _Form, **facts: Any) -> Corruption:
    return Corruption(
        k=_sums.count(named.tensors),
        _names=named.names,
        _shapes=tuple(tuple(x.shape) for x in named.tensors),
        _dtypes=tuple(x.dtype for x in named.tensors),
        _form=form,
        _shards=_sharded.Shards.of(named.tensors),
        **facts,
    )


def random_corruption(
    model: Any, *, eps: float | relative, p: float = 2, n: int | None = None, seed: int
) -> Corruption:
    r"""A random corruption of exactly n weights with ||a||_p = eps: what the worst one is to be compared with.

    The n weights are chosen uniformly from all; on them :math:`a = \varepsilon z / \|z\|_p` with independent numbers of
    density :math:`\propto e^{-|z|^p}`: for p = 2 uniform on the sphere, for p = inf random signs. It depends on the
    seed, the sizes of the tensors and their order alone: not on threads, device, layout or shards.

    Args:
        model: a module (its parameters that require a gradient; tied ones count once), or weights as a mapping,
            (name, tensor) pairs, or a sequence.
        eps: the budget ||a||_p, in units of the weights, or ``relative(r)``.
        p: the exponent of the norm, 1 to ``math.inf`` (default 2).
        n: how many weights change, 1 to the number k of elements (default all: then nothing is stored but the seed).
        seed: 0 to 2^63 - 1.

    Raises:
        TypeError: an argument of the wrong type; a weight that is complex, sparse, meta, or of a subclass.
        ValueError: an argument out of range; no weight at all; with ``relative``, NaN or infinity in a weight.

    Example:
        >>> import torch, paramcorrupt
        >>> noise = paramcorrupt.random_corruption(torch.nn.Linear(4, 2), eps=0.1, n=3, seed=0)
        >>> noise.nnz, round(noise.norm(), 12)
        (3, 0.1)

    References:
        Sun et al., Exploring the Vulnerability of Deep Neural Networks: A Study of Parameter Corruption, AAAI 2021.
    """
    if not isinstance(eps, relative):
        eps = check_eps(eps)
    p, seed = check_p(p), check_seed(seed)
    named = parameters(model)
    skipped: tuple[str, ...] = ()
    if isinstance(model, nn.Module):
        pairs = list(zip(named.names, named.tensors, strict=True))
        skipped = tuple(name for name, x in pairs if not x.requires_grad)
        chosen = [(name, x) for name, x in pairs if x.requires_grad]
        named = Named(tuple(name for name, _ in chosen), tuple(x for _, x in chosen))
    if not _sums.count(named.tensors):
        raise ValueError("model must have a parameter that requires a gradient, got none; pass a mapping of weights")
    for name, x in zip(named.names, named.tensors, strict=True):
        check_tensor(f"parameter {name!r}", x)
    check_device("parameter", list(zip(named.names, named.tensors, strict=True)))
    _sharded.check_parts("parameter", named.names, named.tensors)
    shards = _sharded.Shards.of(named.tensors)
    n = check_n(n, _sums.count(named.tensors))
    if isinstance(eps, relative):
        eps = eps.of(named, p)
    form: _Form
    if not eps:
        form = _empty(named)
    elif shards.dims:
        form = _sharded_forms.random(named.tensors, shards, n, seed, p, eps)
    else:
        form = _forms.random([local(x) for x in named.tensors], n, seed, p, eps)
    return _corruption(
        named, form, eps=eps, p=p, n=n, nnz=n if eps else 0, gain=math.nan if eps else 0.0, skipped=skipped
    )
