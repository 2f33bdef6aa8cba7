"""The nearest point of a ball or sphere of the p-norm with at most n elements that are not zero, over several tensors.

Nearest in the Euclidean norm: only for p = 2 is that a matter of scale.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from . import _ops, _sums
from ._reference import key_dtype
from ._sharded import Shards
from ._shards import local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeAlias

    _Sums: TypeAlias = Callable[[Callable[[Tensor], Tensor]], Tensor]

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_PIECE = 1 << 18  # elements at a time where temporary tensors are needed
_GRID = 257


def project_(
    a: Sequence[Tensor], eps: float, p: float, n: int | None = None, surface: Literal["ball", "sphere"] = "ball"
) -> None:
    """Replace `a` by the nearest point with ||a||_p <= eps, or = eps on the sphere, and at most n elements but zeros.

    The n largest magnitudes are kept, of equal ones the first; on them p = 2 scales, p = inf clamps, p = 1 subtracts a
    threshold (Kyrillidis et al. 2013), and any other p solves b + lam p b^(p-1) = |a| with sum b^p = eps^p.

    Args:
        a: finite tensors, contiguous, on one device.
        eps: the radius, in units of `a`.
        p: the exponent of the norm, 1 to infinity.
        n: how many elements may be other than zero (default all).
        surface: "ball", or "sphere", to which points inside are moved outwards.
    """
    a = list(a)
    k = _sums.count(a)
    if not k:
        return
    if not eps:
        torch._foreach_zero_(list(map(local, a)))
        return
    n = k if n is None else n
    everything = _sums.Limit(torch.tensor([0, k, 0, 0], device=a[0].device), 0, k, 0)
    threshold, limit, above, ties = _sums.select(a, n) if n < k else everything
    value, top = _magnitude(limit, key_dtype(a)), _sums.largest(a)
    size = top
    if top and p != math.inf:
        total = _sums.power_sum_above(a, p, top, limit + 1) + ties * (value / top) ** p
        size = top * total ** (1 / p)
    if size == eps or (size < eps and surface == "ball"):
        _shrink_(a, threshold)
    elif p == 2 and size:
        _shrink_(a, threshold, scale=eps / size)
    elif size > eps and p == 1:
        _shrink_(a, threshold, shrink=_soft_threshold(a, eps, above, ties, value, size))
    elif size > eps and p == math.inf:
        _shrink_(a, threshold, clip=eps)
    elif p in (2, math.inf):
        place = _first_largest(a)
        _shrink_(a, threshold)
        _set_(a, place, eps)
    else:
        _solve_(a, eps, p, n, threshold, outside=size > eps)


def _shrink_(
    a: list[Tensor], threshold: Tensor, *, shrink: float = 0.0, clip: float = math.inf, scale: float = 1.0
) -> None:
    held = list(map(local, a))
    _ops.ascend_project_(held, held, 0.0, 1.0, threshold, shrink, clip, scale)


def _magnitude(key: int, dtype: torch.dtype) -> float:
    return torch.tensor(key, dtype=_INTEGERS[dtype.itemsize]).view(dtype).item()


def _first_largest(a: Sequence[Tensor]) -> tuple[int, int] | None:
    """The tensor and the place in it of the first element of the largest magnitude, where this process holds it."""
    offsets, index, _ = _ops.collect(list(map(local, a)), _sums.select(a, 1).threshold)
    return (int(offsets.diff().argmax()), int(index)) if index.numel() else None


def _set_(a: Sequence[Tensor], place: tuple[int, int] | None, size: float) -> None:
    if place is None:
        return
    t, i = place
    x = local(a[t]).view(-1)
    x[i] = -size if x[i] < 0 else size


# --- p = 1 ----------------------------------------------------------------------------------------------------------


def _soft_threshold(a: Sequence[Tensor], eps: float, above: int, ties: int, value: float, total: float) -> float:
    """theta with sum (|x| - theta)_+ = eps over `above` elements larger than `value` and `ties` that equal it."""
    if total - (above + ties) * value <= eps:  # all of them stay
        return (total - eps) / (above + ties)
    dtype = key_dtype(a)
    width, prefix, known = 8 * dtype.itemsize - 1, 0, 0
    number, total = 0.0, 0.0  # of the elements in the bins above the prefix
    while known < width:
        bits = min(19 if known else 12, width - known)
        counts, sums = _sums.histogram(a, prefix, known, bits)
        above_or_in = counts.double().flip(0).cumsum(0).flip(0) + number
        sum_of_these = sums.flip(0).cumsum(0).flip(0) + total
        keys = ((prefix << bits) + torch.arange(1 << bits)) << (width - known - bits)
        edges = keys.to(_INTEGERS[dtype.itemsize]).view(dtype).double()
        larger, sum_larger = above_or_in - counts, sum_of_these - sums
        # The bin of theta is the last above whose lower edge eps or more remains, and above which there is anything.
        found = (sum_of_these - above_or_in * edges >= eps) & ((larger > 0) | (known + bits < width))
        j = int(found.nonzero()[-1]) if found.any() else 0
        prefix, known = (prefix << bits) + j, known + bits
        number, total = float(larger[j]), float(sum_larger[j])
    return (total - eps) / number


# --- other p --------------------------------------------------------------------------------------------------------


def _solve_(a: list[Tensor], eps: float, p: float, n: int, threshold: Tensor, *, outside: bool) -> None:
    """By the multiplier of the constraint; in units of eps: c + nu c^(p-1) = |x| / eps with sum c^p = 1."""
    place, size = None, 0.0
    k = _sums.count(a)
    shards, held = Shards.of(a), list(map(local, a))
    if n < k:
        offsets, index, value = _ops.collect(held, threshold)
        written = [value.double()]
        counted = shards.counted(written[0].split(offsets.diff().tolist())) if shards.dims else written
    else:
        written = [x.view(-1) for x in held]
        counted = shards.counted(written)
    total, top = partial(_total, counted, eps, shards), _sums.largest(a) / eps
    root: Callable[[Tensor], Tensor]
    if p == 1:
        root = partial(torch.add, other=(1 - float(total(torch.sum))) / n)
    elif outside or p < 2:
        root = partial(_roots, nu=_multiplier(total, top, p, n, outside=outside), p=p)
    else:
        t, size = _two_branches(total, p, top)
        place, root = _first_largest(a), partial(_lower_roots, t=t, raised=t - top, p=p)
    for x in _pieces(written):
        c = root(x.double().abs() / eps) * eps
        x.copy_(torch.where(x < 0, -c, c))
    if n < k:
        torch._foreach_zero_(held)
        for x, first, last in zip(held, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            x.view(-1)[index[first:last]] = written[0][first:last].to(x.dtype)
    _set_(a, place, size * eps)


def _pieces(parts: Sequence[Tensor]) -> Iterator[Tensor]:
    for x in parts:
        yield from x.split(_PIECE)


def _total(parts: Sequence[Tensor], eps: float, shards: Shards, terms: Callable[[Tensor], Tensor]) -> Tensor:
    return shards.sum(torch.stack([terms(x.double().abs() / eps) for x in _pieces(parts)]).sum(0))


def _multiplier(sums: _Sums, top: float, p: float, n: int, *, outside: bool) -> float:
    """nu by Newton's method on log sum c^p as a function of log |nu|, within bounds that every step narrows."""
    sign = 1.0 if outside else -1.0
    if outside:  # nu <= ||y||_q, and from there the steps approach the root from one side
        q = p / (p - 1)
        high = math.log(top) + math.log(float(sums(lambda y: ((y / top) ** q).sum()))) / q
    else:  # every c is at least |nu|^((p-1)/(2-p))
        high = -(2 - p) / p * math.log(n)

    def terms(y: Tensor, nu: float) -> Tensor:
        c = _roots(y, nu, p)
        d = c ** (p - 1)
        slope = c * d.square() / (c + nu * (p - 1) * d).clamp(min=1e-300)
        return torch.stack([(c * d).sum(), -p * slope.sum()])

    low, s = high - 745, high
    for _ in range(200):
        nu = sign * math.exp(s)
        total, slope = sums(partial(terms, nu=nu)).tolist()
        value = math.log(total) if total else -math.inf
        if value * sign > 0:
            low = s
        else:
            high = s
        s, before = (low + high) / 2, s
        if 0 < total < math.inf and slope and low <= (step := before - value * total / (slope * nu)) <= high:
            s = step
        if abs(s - before) <= 1e-15 * max(1.0, abs(s)):
            break
    return sign * math.exp(s)


def _roots(y: Tensor, nu: float, p: float) -> Tensor:
    """The largest c with c + nu c^(p-1) = y, which needs p < 2 where nu is negative; zeros only for positive nu.

    By Newton's method on a convex function from the right of the root, for p < 2 that of c^(p-1).
    """
    r = 1 / (p - 1)
    if p > 2:
        c = torch.minimum(y, (y / nu) ** r)
        return _newton(c, lambda c: (c + nu * c ** (p - 1) - y, 1 + nu * (p - 1) * c ** (p - 2)))
    if nu < 0:
        above = ((2 * y) ** (p - 1)).clamp(min=(-2 * nu) ** (1 / (r - 1)))
    else:
        above = torch.minimum(y ** (p - 1), y / nu)
    return _newton(above, lambda u: (u**r + nu * u - y, r * u ** (r - 1) + nu)) ** r


def _newton(x: Tensor, f: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    for _ in range(100):
        value, slope = f(x)
        step = value / slope
        x = (x - step).clamp(min=0)
        if (step.abs() <= 1e-10 * x).all():  # the square of which is the error of the next
            break
    return x


def _lower_roots(y: Tensor, t: float, raised: float, p: float) -> Tensor:
    """The smallest c with c + nu c^(p-1) = y for the nu < 0 with which t is a root for t - raised; from the left."""

    def f(c: Tensor) -> tuple[Tensor, Tensor]:
        z = c / t
        return c - raised * z ** (p - 1) - y, 1 - raised / t * (p - 1) * z ** (p - 2)

    return _newton(y, f)


def _two_branches(sums: _Sums, p: float, top: float) -> tuple[float, float]:
    """The largest element of the nearest point of the sphere to one inside it, for p > 2: as the root, and as what the
    others leave of the norm, since where the branches meet roots are double, and half of their digits are lost.

    There at most the largest element is on the upper branch of c + nu c^(p-1) = y, and all others are on the lower one.
    The largest gives nu, and nu the others; of all its values for which the norm is 1, the nearest point's counts.
    """
    if not top:
        return 1.0, 1.0

    def measured(t: float) -> tuple[float, float]:
        """sum c^p over the others, and the square of the distance of all."""

        def terms(y: Tensor) -> Tensor:
            c = _lower_roots(y, t, t - top, p)
            return torch.stack([(c**p).sum(), (c - y).square().sum()])

        others = sums(terms) - terms(torch.tensor([top], dtype=torch.float64))
        return float(others[0]), float(others[1]) + (t - top) ** 2

    def excess(t: float) -> float:
        return measured(t)[0] + math.pow(t, p) - 1

    grid = [top + (1 - top) * i / (_GRID - 1) for i in range(_GRID)]
    values = [*(excess(t) for t in grid[:-1]), 0.0]  # none of the others is needed where the largest is 1
    fitting: list[tuple[float, float, float]] = []
    for low, high, before, after in zip(grid[:-1], grid[1:], values[:-1], values[1:], strict=True):
        if before < 0 <= after:
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (middle, high) if excess(middle) < 0 else (low, middle)
            others, distance = measured(high)
            fitting.append((distance, high, math.pow(1 - others, 1 / p)))
    _, t, size = min(fitting)
    return t, size
