"""How much the worst small corruption hurts: predicted from one gradient, measured on the same data, or climbed to."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn

from . import _forms, _ops, _sums
from ._arguments import check_ascent, check_budgets, check_set
from ._shards import local
from ._tensors import Named, check_n, check_p, match, parameters
from .corruption import Corruption, _corruption, corruption, relative
from .objective import Evaluation, Objective, as_objective, check_data, evaluate, gradient, raw_gradient, undisturbed
from .restoring import Applied, corrupted

if TYPE_CHECKING:
    from .objective import Loss

    Mode = Literal["eval", "keep"]
    Surface = Literal["ball", "sphere"]

__all__ = ["Indicator", "indicator", "multistep"]


@dataclass(frozen=True, eq=False)
class Indicator:
    """What a corruption was predicted to do to the loss, and what it did.

    Attributes:
        predicted: by how much the loss rises to first order: a . g. In units of the loss, as all losses.
        measured: by how much it rose: `loss_corrupted - loss`.
        loss, accuracy: of the weights as they are; an accuracy is a share of one, or None where there is none.
        loss_corrupted, accuracy_corrupted: with the corruption. A loss can be infinite or NaN.
        grad_norm: ||g||_2.
        nnz: how many elements of the corruption are not zero.
        applied: what of it the precision of the weights let through.
        forwards, backwards: passes of a batch that this took; of several budgets the first has those that all share.
        seconds: wall time, in the same way.
        corruption: the corruption, to apply or save.
        trace: the loss at the weights, after each step of the ascent, and with the corruption, which ends it.
    """

    predicted: float
    measured: float
    loss: float
    accuracy: float | None
    loss_corrupted: float
    accuracy_corrupted: float | None
    grad_norm: float
    nnz: int
    applied: Applied
    forwards: int
    backwards: int
    seconds: float
    corruption: Corruption
    trace: tuple[float, ...]


@overload
def indicator(
    model: nn.Module,
    loss: Loss,
    data: Iterable[Any],
    *,
    eps: float | relative,
    p: float = 2,
    n: int | None = None,
    steps: int = 1,
    mode: Mode = "eval",
) -> Indicator: ...


@overload
def indicator(
    model: nn.Module,
    loss: Loss,
    data: Iterable[Any],
    *,
    eps: Sequence[float | relative],
    p: float = 2,
    n: int | None = None,
    steps: int = 1,
    mode: Mode = "eval",
) -> list[Indicator]: ...


def indicator(
    model: nn.Module,
    loss: Loss,
    data: Iterable[Any],
    *,
    eps: float | relative | Sequence[float | relative],
    p: float = 2,
    n: int | None = None,
    steps: int = 1,
    mode: Mode = "eval",
) -> Indicator | list[Indicator]:
    r"""How much the loss rises under the worst corruption of at most n weights with ||a||_p = eps.

    .. math:: \Delta = L(w + \hat a) - L(w), \qquad \hat a = \arg\max_{\|a\|_p = \varepsilon,\ \|a\|_0 \le n} a \cdot g

    One forward and backward over the data gives the gradient g and so the corruption; one forward measures it. The
    weights are changed in place and restored bit for bit; training flags, buffers, `.grad` and random numbers are as
    before. Memory: the gradients and 2 bits for each weight.

    Args:
        model: its parameters that get a gradient are corrupted.
        loss: a callable of (output, target) that returns a 0-d mean, for batches (input, target); "cross_entropy"; "lm"
            for batches that are keyword arguments of a causal language model; or an :class:`Objective`.
        data: batches that can be gone through again, such as a list or a DataLoader. They weigh by their examples and
            are moved to the model's device. All processes that hold shards of a model must have the same.
        eps: the budget ||a||_p, in units of the weights, or `relative(r)`: r ||w||_p. A sequence gives a list, of one
            gradient.
        p: the exponent of the norm, 1 to `math.inf` (default 2).
        n: how many weights may change, 1 to the number k of elements (default all).
        steps: 1, the closed form (default); more: :func:`multistep`.
        mode: "eval" measures in evaluation mode (default), "keep" in the mode that every module has.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of its range, data that is empty or can be read only
            once, a loss that is not 0-d, a loss or gradient of the unchanged model that is not finite.
        RuntimeError: the model writes its own parameters when it is called.

    Warns:
        UserWarning: all gradients are zero; the corruption is empty.

    Example:
        >>> import torch
        >>> from paramcorrupt import indicator
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> data = [(torch.tensor([[3.0, 4.0]]), torch.tensor([[-1.0]]))]
        >>> found = indicator(model, torch.nn.functional.mse_loss, data, eps=0.1)
        >>> round(found.predicted, 4), round(found.measured, 4)
        (1.0, 1.25)

    References:
        Sun et al., Exploring the Vulnerability of Deep Neural Networks: A Study of Parameter Corruption, AAAI 2021.
    """
    return _indicate(model, loss, data, eps, p, n, steps, 1.5, "ball", mode, closed=steps == 1)


@overload
def multistep(
    model: nn.Module,
    loss: Loss,
    data: Iterable[Any],
    *,
    eps: float | relative,
    p: float = 2,
    n: int | None = None,
    steps: int,
    step_size: float = 1.5,
    surface: Surface = "ball",
    mode: Mode = "eval",
) -> Indicator: ...


@overload
def multistep(
    model: nn.Module,
    loss: Loss,
    data: Iterable[Any],
    *,
    eps: Sequence[float | relative],
    p: float = 2,
    n: int | None = None,
    steps: int,
    step_size: float = 1.5,
    surface: Surface = "ball",
    mode: Mode = "eval",
) -> list[Indicator]: ...


def multistep(
    model: nn.Module,
    loss: Loss,
    data: Iterable[Any],
    *,
    eps: float | relative | Sequence[float | relative],
    p: float = 2,
    n: int | None = None,
    steps: int,
    step_size: float = 1.5,
    surface: Surface = "ball",
    mode: Mode = "eval",
) -> Indicator | list[Indicator]:
    r"""The indicator of a corruption that several steps of projected gradient ascent find.

    .. math:: a_i = \operatorname{Proj}(a_{i-1} + u_i), \qquad a_0 = 0,\quad i = 1, \dots, K

    with u_i the closed form of all weights, at w + a_{i-1} and of length ``step_size * eps / K``, and Proj the nearest
    point with ||a||_p <= eps and at most n elements that are not zero. Each step is one forward and backward over the
    data; the weights are always w + a_i rounded once. When the loss is no longer finite the ascent ends.

    Args:
        model, loss, data, eps, p, n, mode: as of :func:`indicator`.
        steps: K, 1 or more.
        step_size: the length of all steps together, in units of eps (default 1.5, the authors').
        surface: "ball", ||a||_p <= eps (default, as the authors' code), or "sphere", ||a||_p = eps (as their text).

    Returns:
        An :class:`Indicator`: its `corruption` is a_K, its `predicted` is a_K . g with the gradient g at w, and its
        `trace` has the K + 1 losses on the way.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`indicator`.

    Example:
        >>> import torch
        >>> from paramcorrupt import multistep
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> data = [(torch.tensor([[3.0, 4.0]]), torch.tensor([[-1.0]]))]
        >>> found = multistep(model, torch.nn.functional.mse_loss, data, eps=0.1, steps=3)
        >>> [round(loss, 4) for loss in found.trace]
        [1.0, 1.5625, 2.25, 2.25]

    References:
        Sun et al., Exploring the Vulnerability of Deep Neural Networks: A Study of Parameter Corruption, AAAI 2021.
        Kyrillidis et al., Sparse projections onto the simplex, ICML 2013.
    """
    return _indicate(model, loss, data, eps, p, n, steps, step_size, surface, mode, closed=False)


def _indicate(
    model: nn.Module,
    loss: Loss,
    data: Iterable[Any],
    eps: float | relative | Sequence[float | relative],
    p: float,
    n: int | None,
    steps: int,
    step_size: float,
    surface: Surface,
    mode: Mode,
    *,
    closed: bool,
) -> Indicator | list[Indicator]:
    start = time.perf_counter()
    budgets = check_budgets(eps)
    check_set(model, p, n)
    check_data(data)
    check_ascent(steps, step_size, surface)
    objective = as_objective(loss)
    found = []
    with undisturbed(model, mode):
        climb = _Climb(model, objective, data, *gradient(model, objective, data), check_p(p), n)
        for one in budgets:
            budget = climb.budget(one)
            found.append(
                climb.closed(budget, start) if closed else climb.steps(budget, steps, step_size, surface, start)
            )
            start = time.perf_counter()
    return found if isinstance(eps, Iterable) else found[0]


class _Climb:
    """From one gradient to corruptions of several budgets."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        data: Iterable[Any],
        clean: Evaluation,
        grads: dict[str, Tensor],
        p: float,
        n: int | None,
    ) -> None:
        self.model, self.objective, self.data = model, objective, data
        self.clean, self.p, self.n = clean, p, n
        names = parameters(model).names
        self.grads = {name: grads.get(name) for name in names}
        self.named = Named(tuple(grads), tuple(grads.values()))
        self.norm = math.sqrt(_sums.statistics(self.named.names, self.named.tensors).square)
        self.passes = (clean.batches, clean.batches)  # that no budget has counted

    def budget(self, eps: float | relative) -> float:
        if isinstance(eps, relative):
            names = self.named.names
            return eps.of(Named(names, tuple(match(names, self.model))), self.p)
        return eps

    def closed(self, eps: float, start: float) -> Indicator:
        worst = corruption(self.grads, eps=eps, p=self.p, n=self.n)
        with corrupted(self.model, worst, keep="compact") as applied:
            found = evaluate(self.model, self.objective, self.data)
        return self._indicator(worst, applied, found, [self.clean.loss, found.loss], found.batches, 0, start)

    def steps(self, eps: float, steps: int, step_size: float, surface: Surface, start: float) -> Indicator:
        from ._projection import project_

        n = check_n(self.n, _sums.count(self.named.tensors))
        a = [torch.zeros_like(g, dtype=_wide(g), memory_format=torch.contiguous_format) for g in self.named.tensors]
        grads, trace, forwards, backwards = list(self.named.tensors), [self.clean.loss], 0, 0
        for i in range(steps):
            _ascend_(
                a, corruption(dict(zip(self.named.names, grads, strict=True)), eps=step_size * eps / steps, p=self.p)
            )
            project_(a, eps, self.p, n, surface)
            reached = self._held(a, eps, n)
            grads = []  # those of the step before are not needed beside the next
            with corrupted(self.model, reached, keep="compact") as applied:
                if last := i == steps - 1:
                    found = evaluate(self.model, self.objective, self.data)
                else:
                    found, each = raw_gradient(self.model, self.objective, self.data)
                    grads = [each.get(name, torch.zeros_like(x)) for name, x in zip(self.named.names, a, strict=True)]
            trace.append(found.loss)
            forwards += found.batches
            backwards += 0 if last else found.batches
            if not math.isfinite(found.loss):
                break
        return self._indicator(reached, applied, found, trace, forwards, backwards, start)

    def _held(self, a: list[Tensor], eps: float, n: int) -> Corruption:
        """`a` itself as a corruption."""
        gain = _sums.dot(a, self.named.tensors)
        held = list(map(local, a))
        if n < _sums.count(a) or self.p == 1:
            places = [x.view(-1).nonzero().flatten() for x in held]
            sizes = torch.tensor([0, *(place.numel() for place in places)], device=a[0].device)
            delta = torch.cat([x.view(-1)[place].double() for x, place in zip(held, places, strict=True)])
            form: _forms.Sparse | _forms.Dense = _forms.Sparse(sizes.cumsum(0), torch.cat(places), delta)
        else:
            form = _forms.Dense.of(held, 1.0, 1.0, 1.0)
        nnz = _sums.statistics(self.named.names, a).nonzeros
        skipped = tuple(name for name, x in self.grads.items() if x is None)
        return _corruption(self.named, form, eps=eps, p=self.p, n=n, nnz=nnz, gain=gain, skipped=skipped)

    def _indicator(
        self,
        change: Corruption,
        applied: Applied,
        found: Evaluation,
        trace: list[float],
        forwards: int,
        backwards: int,
        start: float,
    ) -> Indicator:
        if found.count != self.clean.count:
            raise ValueError(
                f"data must give the same examples in every pass, got {self.clean.count} and then {found.count}"
            )
        shared, self.passes = self.passes, (0, 0)
        return Indicator(
            predicted=change.gain,
            measured=found.loss - self.clean.loss,
            loss=self.clean.loss,
            accuracy=self.clean.accuracy,
            loss_corrupted=found.loss,
            accuracy_corrupted=found.accuracy,
            grad_norm=self.norm,
            nnz=change.nnz,
            applied=applied,
            forwards=shared[0] + forwards,
            backwards=shared[1] + backwards,
            seconds=time.perf_counter() - start,
            corruption=change,
            trace=tuple(trace),
        )


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _ascend_(a: list[Tensor], u: Corruption) -> None:
    """a += u."""
    if isinstance(u._form, _forms.Dense) and u._form.unit == 1:
        everything = torch.tensor([0, u.k, 0, 0], device=a[0].device)
        grads = [g.detach().contiguous() for g in u._form.gradients]
        _ops.ascend_project_(list(map(local, a)), grads, u._form.scale, u._form.power, everything, 0.0, math.inf, 1.0)
        return
    for x, (_, part) in zip(a, u.items(), strict=True):
        x.add_(part)
