"""The loss over the size of a corruption: of the worst one, and of random ones of the same size."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

from ._arguments import check_budgets, check_set
from ._progress import track
from ._table import Shown
from ._tabular import Column, Row, Tabular, parsed, read, record, weight_hash
from ._tensors import Named, check_n, check_seed, match
from .corruption import corruption, random_corruption, relative
from .objective import as_objective, check_data, evaluate, gradient, undisturbed
from .restoring import corrupted

if TYPE_CHECKING:
    from torch import nn

    from ._svg import Figure
    from .corruption import Corruption
    from .objective import Evaluation, Loss
    from .restoring import Applied

__all__ = ["Curve", "CurvePoint", "curve"]

Kind = Literal["gradient", "random"]
_KINDS: tuple[Kind, ...] = ("gradient", "random")


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """What corruptions of one kind and size do to the loss. None is what does not exist."""

    kind: str
    """ "gradient", the worst to first order, or "random"."""
    eps: float
    """||a||_p."""
    nnz: int
    """How many elements of a corruption are not zero."""
    changed: int
    """How many weights differed: the fewest of all draws."""
    predicted: float | None
    """The rise of the loss to first order."""
    measured: float
    """The rise of the loss, or its mean over random corruptions."""
    low: float | None
    """The lower end of the 95 % interval of this mean."""
    high: float | None
    worst: float
    """The largest rise of a single corruption, NaN above all."""
    accuracy: float | None
    """In [0, 1]; the mean over random corruptions."""
    draws: int
    """How many corruptions were measured."""


_COLUMNS: Mapping[str, Column] = {
    "kind": Column("Corruption"),
    "eps": Column("\u03b5", meaning="p-norm of the corruption"),
    "nnz": Column("Non-zero", "weights", "elements of the corruption that are not zero"),
    "changed": Column("Changed", "weights", "weights that differed; rounding swallowed the others"),
    "predicted": Column("Predicted", "\u0394 loss", "rise of the loss to first order"),
    "measured": Column("Measured", "\u0394 loss", "rise of the loss; of random corruptions the mean"),
    "low": Column("from", "95 %", "lower end of the interval of this mean"),
    "high": Column("to", "95 %", "upper end of the interval of this mean"),
    "worst": Column("Largest", "\u0394 loss", "largest rise of the loss under a single corruption"),
    "accuracy": Column("Accuracy", "%", "under the corruption; of random corruptions the mean"),
    "draws": Column("Corruptions", meaning="how many were measured"),
    "loss": Column("Clean loss"),
    "clean_accuracy": Column("Clean accuracy", "%"),
    "samples": Column("Samples"),
    "weights": Column("Weights"),
    "weight_hash": Column("SHA-256 of the weights"),
    "forwards": Column("Passes forward over the data"),
    "backwards": Column("Passes backward over the data"),
    "seconds": Column("Time", "s"),
}


class Curve(Sequence[CurvePoint], Tabular):
    """What `curve` measured: a sequence of its points, kind by kind, in the order of the budgets.

    `rows()` has them as dictionaries, `facts()` what is true of the whole: the undisturbed loss and accuracy, the
    settings with the seed, and the hash of the weights.
    """

    kind: ClassVar[str] = "curve"
    columns: ClassVar[Mapping[str, Column]] = _COLUMNS
    highlights: ClassVar[tuple[str, ...]] = ("loss", "clean_accuracy", "samples", "weights")
    printed: ClassVar[tuple[Shown, ...]] = (
        Shown("kind", "kind"),
        Shown("eps", "eps"),
        Shown("nnz", "non-zero"),
        Shown("predicted", "predicted"),
        Shown("measured", "measured"),
        Shown("low", "from"),
        Shown("high", "to"),
        Shown("worst", "largest"),
        Shown("accuracy", "accuracy", True),
    )

    def __init__(self, points: Sequence[CurvePoint], facts: Row) -> None:
        self._points = tuple(points)
        self._facts = dict(facts)

    def __len__(self) -> int:
        return len(self._points)

    @overload
    def __getitem__(self, i: int) -> CurvePoint: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[CurvePoint, ...]: ...
    def __getitem__(self, i: int | slice) -> CurvePoint | tuple[CurvePoint, ...]:
        return self._points[i]

    def rows(self) -> list[Row]:
        return [asdict(point) for point in self._points]

    def facts(self) -> Row:
        return dict(self._facts)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Curve:
        """The curve that `to_json` wrote.

        Raises:
            OSError: the file cannot be read; ValueError: it is no such curve.
        """
        name = os.fspath(path)
        facts, rows = parsed(read(path), cls.kind, name)
        try:
            if not rows:
                raise ValueError("it has no rows")
            return cls([record(CurvePoint, row) for row in rows], facts)
        except ValueError as error:
            raise ValueError(f"{name} is a damaged curve: {error}") from error

    def _of(self, kind: str) -> list[CurvePoint]:
        return [point for point in self._points if point.kind == kind]

    def _lead(self) -> list[str]:
        from ._numbers import number

        strongest = max(self._points, key=lambda point: point.eps)
        first, *others = [point for point in self._points if point.eps == strongest.eps]
        text = f"At \u03b5 = {number(first.eps)} {_cost(first, self._facts)}."
        return [text, *(f"{_cost(point, self._facts).capitalize()}." for point in others)]

    def _figures(self) -> list[Figure]:
        from ._numbers import number
        from ._svg import Lines, Series

        x = sorted({point.eps for point in self._points})

        def drawn(name: str, kind: str, field: str, color: int, *, band: bool = False) -> Series:
            at = {point.eps: point for point in self._of(kind)}
            low, high = ([getattr(at[eps], end) if eps in at else None for eps in x] for end in ("low", "high"))
            values = [getattr(at[eps], field) if eps in at else None for eps in x]
            return Series(name, values, low if band else None, high if band else None, color)

        rises, accuracies = [], []
        if self._of("gradient"):
            rises += [
                drawn("worst, measured", "gradient", "measured", 1),
                drawn("worst, predicted", "gradient", "predicted", 0),
            ]
            accuracies.append(drawn("worst", "gradient", "accuracy", 1))
        if self._of("random"):
            rises.append(drawn("random", "random", "measured", 2, band=True))
            accuracies.append(drawn("random", "random", "accuracy", 2))
        eps = f"\u03b5, the {number(self._facts['p'])}-norm of the corruption"
        figures: list[Figure] = [Lines("What corruptions of a size cost", eps, "Rise of the loss", x, rises)]
        if any(point.accuracy is not None for point in self._points):
            figures.append(Lines("What is left of the accuracy", eps, "Accuracy", x, accuracies, "%"))
        return figures


def _cost(point: CurvePoint, facts: Row) -> str:
    from ._numbers import number

    who = "the worst corruption" if point.kind == "gradient" else "a random corruption"
    text = f"{who} raises the loss by {number(float(f'{point.measured:.3g}'))}"
    clean = facts.get("clean_accuracy")
    if point.accuracy is None or not isinstance(clean, float):
        return text
    return f"{text} and leaves {100 * point.accuracy:.1f} of {100 * clean:.1f} % accuracy"


def curve(
    model: nn.Module,
    loss: Loss,
    data: Iterable[Any],
    *,
    eps: float | relative | Sequence[float | relative],
    p: float = 2,
    n: int | None = None,
    kinds: Sequence[Kind] = _KINDS,
    draws: int = 10,
    seed: int = 0,
    mode: Literal["eval", "keep"] = "eval",
    progress: bool | None = None,
) -> Curve:
    r"""The rise of the loss under the worst corruption and under random ones, for several budgets.

    .. math:: \varepsilon \mapsto L(w + \hat a_\varepsilon) - L(w), \qquad
        \varepsilon \mapsto \mathbb{E}_{a \sim U(\|a\|_p = \varepsilon,\ \|a\|_0 \le n)}\, L(w + a) - L(w)

    One gradient serves all budgets. Every corruption is measured by a forward over the same data; random ones have the
    same parameters, norm and number of weights as the worst. The model ends bit for bit as it began.

    Args:
        model, loss, data, p, n, mode: as of :func:`indicator`.
        eps: the budgets ||a||_p, in units of the weights: floats, or `relative(r)`.
        kinds: "gradient", the worst corruption to first order, "random", or both (default).
        draws: how many random corruptions there are for each budget (default 10).
        seed: of the random corruptions (default 0); the i-th has the seed `seed + i`, and so its direction, for every
            budget.
        progress: a bar on stderr; by default when it is a terminal.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`indicator`.

    Example:
        >>> import torch
        >>> from paramcorrupt import curve
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(4, 3)
        >>> data = [(torch.randn(16, 4), torch.arange(16) % 3)]
        >>> found = curve(model, "cross_entropy", data, eps=[0.1, 0.2], draws=3, progress=False)
        >>> [(point.kind, point.eps, point.draws) for point in found]
        [('gradient', 0.1, 1), ('gradient', 0.2, 1), ('random', 0.1, 3), ('random', 0.2, 3)]

    References:
        Sun et al., Exploring the Vulnerability of Deep Neural Networks: A Study of Parameter Corruption, AAAI 2021.
    """
    budgets = check_budgets(eps)
    check_set(model, p, n)
    check_seed(seed)
    if isinstance(kinds, str) or not kinds or any(kind not in _KINDS for kind in kinds):
        raise ValueError(f"kinds must be a sequence of 'gradient' and 'random', got {kinds!r}")
    if isinstance(draws, bool) or not isinstance(draws, Integral):
        raise TypeError(f"draws must be an integer, got {draws!r}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    check_data(data)
    objective = as_objective(loss)
    start = time.perf_counter()
    with undisturbed(model, mode):
        clean, grads = gradient(model, objective, data)
        names = tuple(grads)
        weights = dict(zip(names, (x.detach() for x in match(names, model)), strict=True))
        k = sum(x.numel() for x in weights.values())
        check_n(n, k)
        named = Named(names, tuple(weights.values()))
        sizes = [one.of(named, p) if isinstance(one, relative) else one for one in budgets]

        def trial(change: Corruption) -> tuple[Corruption, Applied, Evaluation]:
            with corrupted(model, change, keep="compact") as applied:
                return change, applied, evaluate(model, objective, data)

        def trials(kind: str, size: float) -> list[tuple[Corruption, Applied, Evaluation]]:
            if kind == "gradient":
                return [trial(corruption(grads, eps=size, p=p, n=n))]
            seeds = range(seed, seed + draws)
            return [trial(random_corruption(weights, eps=size, p=p, n=n, seed=one)) for one in seeds]

        work = [(kind, size) for kind in dict.fromkeys(kinds) for size in sizes]
        points = [
            _point(kind, size, trials(kind, size), clean) for kind, size in track(work, len(work), "curve", progress)
        ]
    facts: Row = {
        "loss": clean.loss,
        "clean_accuracy": clean.accuracy,
        "samples": clean.count,
        "weights": k,
        "p": float(p),
        "n": n,
        "draws": draws,
        "seed": seed,
        "mode": mode,
        "forwards": 1 + sum(point.draws for point in points),
        "backwards": 1,
        "seconds": time.perf_counter() - start,
        "weight_hash": weight_hash(model),
    }
    return Curve(points, facts)


def _point(
    kind: str, eps: float, trials: list[tuple[Corruption, Applied, Evaluation]], clean: Evaluation
) -> CurvePoint:
    from ._statistics import mean_interval

    rises = [found.loss - clean.loss for _, _, found in trials]
    accuracies = [found.accuracy for _, _, found in trials if found.accuracy is not None]
    mean, low, high = mean_interval(rises)
    return CurvePoint(
        kind=kind,
        eps=eps,
        nnz=trials[0][0].nnz,
        changed=min(applied.changed for _, applied, _ in trials),
        predicted=trials[0][0].gain if kind == "gradient" else None,
        measured=mean,
        low=low,
        high=high,
        worst=max(rises, key=lambda x: math.inf if math.isnan(x) else x),
        accuracy=sum(accuracies) / len(accuracies) if accuracies else None,
        draws=len(trials),
    )
