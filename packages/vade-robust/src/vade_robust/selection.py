"""The choice of the number of clusters and of a representative run, without classes."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .estimator import RobustVaDE

__all__ = ["Candidate", "Selection", "select"]

SAMPLE = 5000  # rows that the silhouette is computed from: its time grows with their square


@dataclass(frozen=True)
class Candidate:
    """A run, and what can be said of it without classes.

    Attributes:
        n_clusters: K of the run.
        seed: Its `random_state`.
        silhouette: Mean silhouette of its labels in the space of its own assignment, in [-1, 1].
        agreement: Adjusted Rand index of its two answers, mixture and embedding; None of `VaDE`.
        stability: Mean adjusted Rand index to the other runs of the same K; None if there is no other.
        collapsed: How many components ended with a tenth of their share of rows or less.
    """

    n_clusters: int
    seed: int
    silhouette: float
    agreement: float | None
    stability: float | None
    collapsed: int


@dataclass(frozen=True, repr=False)
class Selection:
    """What `select` chose, and from what; printed, it is a table.

    Attributes:
        estimator: The chosen run, fitted.
        n_clusters: Its K.
        seed: Its `random_state`.
        candidates: All runs, in the order in which they were made.
    """

    estimator: RobustVaDE
    n_clusters: int
    seed: int
    candidates: list[Candidate]

    def to_dict(self) -> dict[str, Any]:
        """The choice and all candidates in plain Python: JSON can hold it."""
        candidates = [asdict(candidate) for candidate in self.candidates]
        return {"n_clusters": self.n_clusters, "seed": self.seed, "candidates": candidates}

    def __repr__(self) -> str:
        lines = ["   K   seed  silhouette  agreement  stability  collapsed"]
        for one in self.candidates:
            mark = ">" if (one.n_clusters, one.seed) == (self.n_clusters, self.seed) else " "
            agreement, stability = ("" if x is None else f"{x:.3f}" for x in (one.agreement, one.stability))
            lines.append(
                f"{mark}{one.n_clusters:3d} {one.seed:6d} {one.silhouette:11.3f} {agreement:>10} {stability:>10}"
                f" {one.collapsed:10d}"
            )
        return "\n".join(lines)


def select(
    estimator: RobustVaDE,
    X: Any,
    *,
    n_clusters: Iterable[int] | None = None,
    seeds: Iterable[int] = range(5),
    verbose: bool = False,
) -> Selection:
    """Fits a clone for every number of clusters and every seed, and chooses one of them without classes.

    K is the one whose runs have the largest mean silhouette; of its runs the most representative is taken, whose labels
    have the largest mean adjusted Rand index to those of the others (with fewer than three seeds, the largest
    silhouette). The silhouette of a row is (b - a) / max(a, b), with a its mean distance to its own cluster and b that
    to the nearest other, in the space of the run's assignment: the map for "embedding", the latent means for "mixture".

    How wrong it is, was measured on scikit-learn's digits, whose ten classes are eleven shapes (the digit 1 has two):
    over five seeds the silhouette chose K = 10, 11, 11, 12 and 12. No criterion of fourteen chose the better runs of
    one K: the silhouette's rank correlation with accuracy was +.5 with one perplexity and -.7 with another, and the
    representative run is as accurate as the mean run. The last epoch is as good a choice as any other. Runs with
    another `exaggeration`, `perplexity` or `locality` have maps of another scale and cannot be compared.

    Args:
        estimator: A `RobustVaDE` or `VaDE`; it stays as it is.
        X: Rows, as in `fit`; they are read several times.
        n_clusters: The values of K; default: the estimator's own.
        seeds: The values of `random_state`; default: 0 to 4.
        verbose: Whether to show a bar of progress.

    Returns:
        A `Selection`.

    Raises:
        ValueError: If there is no seed or no number of clusters, or one comes twice.
        TypeError: If one is not an integer, or the estimator neither a `RobustVaDE` nor a `VaDE`.

    >>> from sklearn.datasets import load_iris
    >>> from vade_robust import VaDE
    >>> from vade_robust.selection import select
    >>> model = VaDE(hidden=(16,), pretrain_epochs=2, epochs=2)
    >>> select(model, load_iris().data, n_clusters=[2, 3], seeds=[0]).n_clusters in (2, 3)
    True

    Reference: Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis",
    Journal of Computational and Applied Mathematics 1987.
    """
    from sklearn.base import clone
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_rand_score
    from tqdm.auto import tqdm

    from .estimator import RobustVaDE

    if not isinstance(estimator, RobustVaDE):
        raise TypeError(f"estimator must be a RobustVaDE or a VaDE, got {estimator!r}")
    counts = _integers("n_clusters", [estimator.n_clusters] if n_clusters is None else n_clusters)
    chosen = _integers("seeds", seeds)
    runs: list[tuple[Candidate, Any]] = []
    fitted: list[Any] = []
    with tqdm(total=len(counts) * len(chosen), desc="runs", disable=not verbose) as bar:
        for count in counts:
            for seed in chosen:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)  # a collapse is told in the table
                    model = clone(estimator).set_params(n_clusters=count, random_state=seed).fit(X)
                labels = np.asarray(model.predict(X))
                found = model.diagnostics_
                score = _silhouette(np.asarray(model.transform(X)), labels)
                runs.append((Candidate(count, seed, score, found["agreement"], None, len(found["collapse"])), labels))
                fitted.append(model)
                bar.update()
    candidates = []
    models = {(one.n_clusters, one.seed): model for (one, _), model in zip(runs, fitted, strict=True)}
    for candidate, labels in runs:
        others = [x for one, x in runs if one.n_clusters == candidate.n_clusters and one.seed != candidate.seed]
        stability = statistics.mean(adjusted_rand_score(labels, x) for x in others) if others else None
        candidates.append(Candidate(**{**asdict(candidate), "stability": stability}))
    means = {count: statistics.mean(c.silhouette for c in candidates if c.n_clusters == count) for count in counts}
    winner = max(means, key=lambda count: means[count])
    runs_of_it = [one for one in candidates if one.n_clusters == winner]
    few = len(runs_of_it) < 3
    best = max(runs_of_it, key=lambda one: one.silhouette if few or one.stability is None else one.stability)
    return Selection(models[winner, best.seed], winner, best.seed, candidates)


def _silhouette(places: Any, labels: Any) -> float:
    """The mean silhouette, of at most SAMPLE rows; -1 where there are not two clusters."""
    from sklearn.metrics import silhouette_score

    if len(places) > SAMPLE:
        keep = np.random.RandomState(0).choice(len(places), SAMPLE, replace=False)
        places, labels = places[keep], labels[keep]
    if not 2 <= len(np.unique(labels)) < len(labels):
        return -1.0
    return float(silhouette_score(places, labels))


def _integers(name: str, values: Iterable[int]) -> list[int]:
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} must be several integers, such as [{values}], got {values!r}")
    chosen = list(values)
    for value in chosen:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name} must be integers, got {value!r}")
    if not chosen:
        raise ValueError(f"{name} must hold at least one integer, got none")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"{name} must differ, got {chosen}")
    return [int(value) for value in chosen]
