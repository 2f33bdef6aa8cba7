"""Which parts of a model are fragile: all predicted by one gradient, the worst of them measured."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal
from warnings import warn

from . import _sums
from ._groups import groups as groups_of
from ._progress import check_progress, track
from ._report import Report, ReportRow, settings, unit_of
from ._statistics import mean_interval, spearman
from ._tabular import weight_hash
from ._tensors import check_eps, check_n, check_p, check_seed, parameters
from .corruption import corruption, random_corruption, relative
from .objective import as_objective, check_data, evaluate, gradient, undisturbed
from .restoring import corrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from ._groups import Groups
    from ._tabular import Row
    from .corruption import Corruption
    from .objective import Evaluation, Objective
    from .restoring import Applied

__all__ = ["Report", "ReportRow", "scan"]

_TWO_PERCENT = relative(0.02)


def scan(
    model: Any,
    loss: str | Objective | Callable[[Any, Any], Tensor],
    data: Any,
    *,
    groups: Groups = "tensor",
    eps: float | relative = _TWO_PERCENT,
    p: float = 2,
    n: int | None = None,
    verify: int | Literal["all"] = 5,
    random: int = 0,
    seed: int = 0,
    mode: Literal["eval", "keep"] = "eval",
    progress: bool | None = None,
) -> Report:
    r"""Rank the groups of a model's tensors by what the worst small change of each would cost.

    For each group l alone, with g its gradient of the mean loss over all of `data`, the worst change of norm eps is
    known to first order, and so is the rise of the loss:

    .. math::
        \hat a_l = \operatorname{arg\,max}_{\|a\|_p = \varepsilon_l,\ \|a\|_0 \le n} a \cdot g_l, \qquad
        \Delta L \approx \hat a_l \cdot g_l = \varepsilon_l \|\mathrm{top}_n(g_l)\|_q

    One pass forward and backward predicts all groups. The `verify` highest predictions are then measured, one pass
    forward each. The model ends bit for bit as it began; in memory there is one gradient beside it.

    Args:
        model: a `torch.nn.Module`.
        loss: ``(output, target) -> 0-d mean`` for batches ``(input, target)``, "cross_entropy", "lm", or `Objective`.
        data: batches, re-iterable, the same in every pass, and in all processes that hold shards of the model.
        groups: "tensor" (default), "module", "model" (all are one group), or `fnmatch` patterns: a sequence, or a
            mapping from names to one or several of them. The first that matches takes a tensor; "other" has the rest.
        eps: ||a||_p: a float is absolute, ``relative(r)`` is r ||w||_p of each group (default r = 0.02, two percent).
        p: exponent of the norm, 1 to ``math.inf`` (default 2).
        n: how many weights of a group may change (default all); a smaller group has fewer.
        verify: how many of the highest predictions are measured (default 5), or "all".
        random: how many random corruptions of the same size each measured group is compared with (default 0), one pass
            forward each.
        seed: of the random corruptions; the i-th has the seed `seed + i`.
        mode: "eval" (default), or "keep" for the training flags as they are.
        progress: a bar on stderr; by default when it is a terminal.

    Raises:
        TypeError: an argument of the wrong type; data that cannot be iterated twice.
        ValueError: an argument out of range; empty data; a loss or gradient that is not finite.

    Example:
        >>> import torch, paramcorrupt
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> data = [(torch.randn(16, 4), torch.arange(16) % 3)]
        >>> report = paramcorrupt.scan(model, "cross_entropy", data, verify=2, progress=False)
        >>> len(report), sum(row.measured is not None for row in report)
        (4, 2)

    References:
        Sun et al., Exploring the Vulnerability of Deep Neural Networks: A Study of Parameter Corruption, AAAI 2021.
    """
    if not isinstance(eps, relative):
        check_eps(eps)
    check_p(p)
    if verify != "all":
        _check_count("verify", verify, ' or "all"')
    _check_count("random", random)
    check_seed(seed)
    check_seed(seed + random)
    check_progress(progress)
    check_data(data)
    objective = as_objective(loss)
    named = parameters(model)
    k = _sums.count(named.tensors)
    check_n(min(n, k) if type(n) is int else n, k)
    members = groups_of(named.names, groups)
    tensors = dict(zip(named.names, named.tensors, strict=True))
    start = time.perf_counter()
    with undisturbed(model, mode):
        clean, gradients = gradient(model, objective, data)
    found = [_predict(group, names, tensors, gradients, eps, p, n) for group, names in members.items()]
    found.sort(key=lambda pair: -math.inf if pair[0].predicted is None else pair[0].predicted, reverse=True)
    if not any(row.grad_norm for row, _ in found):
        warn("all gradients are zero: no change is predicted to raise the loss", stacklevel=2)
    forwards = clean.batches

    def trial(change: Corruption) -> tuple[Applied, Evaluation]:
        nonlocal forwards
        with corrupted(model, change, keep="compact") as applied, undisturbed(model, mode):
            result = evaluate(model, objective, data)
        if result.count != clean.count:
            raise ValueError(
                f"data must give the same samples in every pass, got {clean.count} and then {result.count}"
            )
        forwards += result.batches
        return applied, result

    rows = [row for row, _ in found]
    predicted = sum(row.predicted is not None for row in rows)
    count = predicted if verify == "all" else min(verify, predicted)
    seeds = range(seed, seed + random)
    for i in track(range(count), count, "scan", progress):
        rows[i] = _measure(*found[i], trial, clean, seeds)
    measured = rows[:count]
    facts: Row = {
        "loss": clean.loss,
        "clean_accuracy": clean.accuracy,
        "samples": clean.count,
        "weights": sum(x.numel() for x in gradients.values()),
        "groups": len(rows),
        "verified": count,
        **_correlations(measured),
        "ties": predicted - len({row.predicted for row in rows[:predicted]}),
        "swallowed": sum(2 * (row.changed or 0) < (row.nnz or 0) for row in measured),
        "unit": unit_of(loss),
        **settings(groups, eps, p, n, mode),
        "random": random,
        "seed": seed,
        "forwards": forwards,
        "backwards": clean.batches,
        "seconds": time.perf_counter() - start,
        "weight_hash": weight_hash(model),
    }
    return Report(rows, facts)


@dataclass(frozen=True, slots=True)
class _Group:
    """The tensors of a group that have gradients, and the size of its corruption."""

    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]
    eps: float
    p: float
    n: int

    def worst(self) -> Corruption:
        """Made anew for each use: together the supports of all groups may be larger than the model."""
        return corruption(self.gradients, eps=self.eps, p=self.p, n=self.n)

    def draw(self, seed: int) -> Corruption:
        """A random corruption of the same size."""
        return random_corruption(self.weights, eps=self.eps, p=self.p, n=self.n, seed=seed)


def _predict(
    group: str,
    names: Sequence[str],
    tensors: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    eps: float | relative,
    p: float,
    n: int | None,
) -> tuple[ReportRow, _Group]:
    own = {name: gradients[name] for name in names if name in gradients}
    weights = {name: tensors[name].detach() for name in own}
    k = _sums.count(tuple(own.values()))
    row = ReportRow(group, sum(tensors[name].numel() for name in names), len(names) - len(own))
    if not k:
        return row, _Group(weights, own, 0.0, p, 0)
    sizes = _sums.statistics(tuple(weights), tuple(weights.values()), "parameter")
    slopes = _sums.statistics(tuple(own), tuple(own.values()))
    budget = eps.r * _sums.norm(tuple(weights.values()), p, sizes) if isinstance(eps, relative) else float(eps)
    part = _Group(weights, own, budget, p, k if n is None else min(n, k))
    worst = part.worst() if slopes.largest else None
    row = replace(
        row,
        weight_norm=_sums.norm(tuple(weights.values()), 2, sizes),
        grad_norm=_sums.norm(tuple(own.values()), 2, slopes),
        eps=budget,
        nnz=worst.nnz if worst else 0,
        predicted=worst.gain if worst else 0.0,
    )
    return row, part


def _measure(
    row: ReportRow,
    group: _Group,
    trial: Callable[[Corruption], tuple[Applied, Evaluation]],
    clean: Evaluation,
    seeds: Sequence[int],
) -> ReportRow:
    if not row.nnz:  # nothing changes
        return replace(row, measured=0.0, accuracy=clean.accuracy, changed=0, applied=0.0)
    applied, under = trial(group.worst())
    rise = under.loss - clean.loss
    row = replace(row, measured=rise, accuracy=under.accuracy, changed=applied.changed, applied=applied.norm)
    if not seeds:
        return row
    mean, low, high = mean_interval([trial(group.draw(seed))[1].loss - clean.loss for seed in seeds])
    return replace(row, random_mean=mean, random_low=low, random_high=high)


def _correlations(measured: Sequence[ReportRow]) -> Row:
    """Spearman's correlation of the measured rise with the predicted one, and with what needs no gradient."""
    known = [row for row in measured if row.measured is not None and math.isfinite(row.measured)]
    if len(known) < 3:
        return {}
    names = {"spearman": "predicted", "spearman_numel": "numel", "spearman_weight_norm": "weight_norm"}
    rises = [row.measured or 0.0 for row in known]
    return {fact: spearman([getattr(row, name) for row in known], rises) for fact, name in names.items()}


def _check_count(argument: str, value: object, others: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{argument} must be an integer{others}, got {value!r}")
    if value < 0:
        raise ValueError(f"{argument} must be non-negative{others}, got {value!r}")
