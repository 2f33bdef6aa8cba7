"""How good a clustering is beside known classes, and how much it depends on the seed; labels are only for scoring."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import linear_sum_assignment

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SeedReport", "clustering_accuracy", "purity", "seed_report"]


def clustering_accuracy(y_true: object, y_pred: object) -> float:
    """The share of rows that are right under the best one-to-one matching of clusters and classes.

    ACC = 1/N max_m sum_i [y_true_i = m(y_pred_i)], where m gives every class to at most one cluster: found exactly by
    the Hungarian method. Where there are more clusters than classes, the rows of the clusters left over are wrong.

    Args:
        y_true: The classes [N]: numbers, strings or whatever can be hashed, in an array, a tensor, a series or a list.
        y_pred: The clusters [N], likewise; their names need not be those of the classes.

    Returns:
        A number in (0, 1]. It is at most `purity`, and N singletons score classes / N.

    Raises:
        ValueError: If the two differ in length, have no rows, are not one-dimensional or contain NaN.
        TypeError: If a label cannot be hashed.

    >>> from vade_robust.metrics import clustering_accuracy
    >>> clustering_accuracy(["cat", "cat", "dog", "dog"], [7, 7, -1, 7])
    0.75

    Reference: Yang, Xu, Nie, Yan and Zhuang, "Image clustering using local discriminant models and global
    integration", IEEE Transactions on Image Processing 2010; Kuhn, "The Hungarian method for the assignment problem",
    1955.
    """
    counts = _contingency(*_both(y_true, y_pred))
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return float(counts[rows, columns].sum() / counts.sum())


def purity(y_true: object, y_pred: object) -> float:
    """The share of rows that belong to the most frequent class of their cluster.

    purity = 1/N sum_k max_c |cluster k and class c|. Several clusters may stand for one class, so more clusters never
    lower it, and N singletons score 1: it is no accuracy, although it has been published as one.

    Args:
        y_true: The classes [N], as in `clustering_accuracy`.
        y_pred: The clusters [N].

    Returns:
        A number in (0, 1].

    Raises:
        ValueError: As `clustering_accuracy`.
        TypeError: As `clustering_accuracy`.

    >>> from vade_robust.metrics import purity
    >>> purity(["cat", "cat", "dog", "dog"], [0, 1, 2, 3])
    1.0

    Reference: Manning, Raghavan and Schuetze, "Introduction to Information Retrieval", 2008, section 16.3.
    """
    counts = _contingency(*_both(y_true, y_pred))
    return float(counts.max(0).sum() / counts.sum())


@dataclass(frozen=True, repr=False)
class SeedReport:
    """What `seed_report` found; printed, it is a table of mean, standard deviation and worst run.

    Attributes:
        name: Of the estimator.
        runs: One dictionary per seed: "seed", "seconds" (of the fit), "clusters" (that hold rows), "stability" (mean
            adjusted Rand index with the other runs; NaN for a single run) and, with classes, "acc", "nmi", "ari" and
            "purity".
        labels: The clusters [S, N] of each run.
    """

    name: str
    runs: list[dict[str, Any]]
    labels: NDArray[np.int64] = field(compare=False)

    @property
    def stability(self) -> float:
        """The mean adjusted Rand index of all pairs of runs: how alike the runs are, which needs no classes."""
        return _mean([run["stability"] for run in self.runs])

    @property
    def summary(self) -> dict[str, dict[str, float]]:
        """Mean, sample standard deviation (NaN for one run), worst value and its seed, by what was measured."""
        found: dict[str, dict[str, float]] = {}
        for measure in ("acc", "nmi", "ari", "purity", "stability"):
            if measure not in self.runs[0]:
                continue
            values = [run[measure] for run in self.runs]
            worst = int(np.argmin(values))
            found[measure] = {
                "mean": _mean(values),
                "sd": float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
                "worst": values[worst],
                "worst_seed": self.runs[worst]["seed"],
            }
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything but the labels, in plain Python: JSON can hold it (None stands for NaN)."""
        plain: dict[str, Any] = _without_nan({"name": self.name, "summary": self.summary, "runs": self.runs})
        return plain

    def to_frame(self) -> Any:
        """The runs as a pandas DataFrame, indexed by seed.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install pandas") from error
        return pandas.DataFrame(self.runs).set_index("seed")

    def __repr__(self) -> str:
        seconds = _mean([run["seconds"] for run in self.runs])
        runs = "1 seed" if len(self.runs) == 1 else f"{len(self.runs)} seeds"
        lines = [
            f"SeedReport: {self.name}, {runs}, {seconds:.3g} s a fit",
            f"{'':10} {'mean':>6} {'sd':>6} {'worst':>6}",
        ]
        names = {"acc": "ACC", "nmi": "NMI", "ari": "ARI", "purity": "purity", "stability": "stability"}
        for measure, found in self.summary.items():
            numbers = " ".join(f"{found[of]:6.3f}" for of in ("mean", "sd", "worst"))
            lines.append(f"{names[measure]:10} {numbers}  (seed {found['worst_seed']})")
        clusters = sorted({run["clusters"] for run in self.runs})
        lines.append(f"clusters that hold rows: {', '.join(map(str, clusters))}")
        return "\n".join(lines)


def seed_report(
    estimator: Any, X: Any, y: object = None, seeds: Iterable[int] = range(10), *, verbose: bool = False
) -> SeedReport:
    """Fits a clone of the estimator for every seed and tells mean, spread and worst run: no average that hides.

    Every run is kept, and none is chosen by the classes: `y` is never given to the estimator.

    Args:
        estimator: A clusterer or mixture of scikit-learn's kind with a `random_state`, or a Pipeline that holds one. It
            stays as it is.
        X: The rows, as the estimator takes them.
        y: The classes [N], for scoring alone, or None: then the report tells how alike the runs are.
        seeds: The values of `random_state`; default: 0 to 9.
        verbose: Whether to show a bar of progress.

    Returns:
        A `SeedReport`.

    Raises:
        ValueError: If there are no seeds, one comes twice, y has another length than X, or nothing in the estimator
            has a `random_state`.
        TypeError: If a seed is not an integer, or the estimator none of scikit-learn's kind.

    >>> from sklearn.cluster import KMeans
    >>> from sklearn.datasets import load_iris
    >>> from vade_robust.metrics import seed_report
    >>> X, y = load_iris(return_X_y=True)
    >>> report = seed_report(KMeans(3, n_init=1), X, y, seeds=range(5))
    >>> report.summary["acc"]["worst"] <= report.summary["acc"]["mean"]
    True
    """
    from sklearn.base import clone
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from tqdm import tqdm

    if isinstance(seeds, (int, np.integer)):
        raise TypeError(f"seeds must be the seeds themselves, such as range({seeds}), got the number {seeds}")
    chosen = list(seeds)
    for seed in chosen:
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
            raise TypeError(f"seeds must be integers, got {seed!r}")
    if not chosen:
        raise ValueError("seeds must hold at least one seed, got none")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"seeds must differ, got {chosen}")
    if not hasattr(estimator, "get_params"):
        raise TypeError(f"estimator must be of scikit-learn's kind, with get_params, got {estimator!r}")
    states = [name for name in estimator.get_params() if name == "random_state" or name.endswith("__random_state")]
    if not states:
        raise ValueError(f"estimator has no `random_state`, so all runs would be the same: {estimator!r}")
    classes = None if y is None else _codes("y", y)
    n_rows = X.shape[0] if hasattr(X, "shape") else len(X) if hasattr(X, "__len__") else None
    if classes is not None and n_rows is not None and len(classes) != n_rows:
        raise ValueError(f"y must have a class for each row of X, got {len(classes)} for {n_rows} rows")

    runs: list[dict[str, Any]] = []
    labels = []
    for seed in tqdm(chosen, desc="seeds", disable=not verbose):
        model = clone(estimator).set_params(**dict.fromkeys(states, int(seed)))
        start = time.perf_counter()
        found = _codes("labels", model.fit_predict(X) if hasattr(model, "fit_predict") else model.fit(X).predict(X))
        run = {"seed": int(seed), "seconds": time.perf_counter() - start, "clusters": int(found.max()) + 1}
        if classes is not None:
            run["acc"] = clustering_accuracy(classes, found)
            run["nmi"] = float(normalized_mutual_info_score(classes, found))
            run["ari"] = float(adjusted_rand_score(classes, found))
            run["purity"] = purity(classes, found)
        runs.append(run)
        labels.append(found)
    alike = np.full((len(chosen), len(chosen)), math.nan)
    for i, j in combinations(range(len(chosen)), 2):
        alike[i, j] = alike[j, i] = adjusted_rand_score(labels[i], labels[j])
    for i, run in enumerate(runs):
        run["stability"] = _mean([value for j, value in enumerate(alike[i]) if j != i])
    return SeedReport(_name(estimator), runs, np.stack(labels))


def _name(estimator: Any) -> str:
    """What a report calls an estimator: its class, or the classes of a pipeline's steps."""
    steps = getattr(estimator, "steps", None)
    if isinstance(steps, list):
        return " + ".join(_name(step) for _, step in steps if step not in (None, "passthrough"))
    return type(estimator).__name__


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _without_nan(value: Any) -> Any:
    """The same in which None stands for NaN, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _both(y_true: object, y_pred: object) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    true, pred = _codes("y_true", y_true), _codes("y_pred", y_pred)
    if len(true) != len(pred):
        raise ValueError(f"y_true and y_pred must have the same length, got {len(true)} and {len(pred)}")
    return true, pred


def _codes(name: str, labels: Any) -> NDArray[np.int64]:
    """Labels [N] as integers from 0."""
    if hasattr(labels, "detach"):
        if getattr(labels, "is_meta", False):
            raise ValueError(f"{name} must hold values, got a tensor on the device 'meta'")
        labels = labels.numpy(force=True)
    elif hasattr(labels, "to_numpy"):
        labels = labels.to_numpy()
    if isinstance(labels, np.ndarray):
        if labels.ndim != 1:
            raise ValueError(f"{name} must be one-dimensional, got shape {labels.shape}")
        if labels.dtype.kind == "f" and np.isnan(labels).any():
            raise ValueError(f"{name} contains NaN in row {int(np.isnan(labels).argmax())}")
        if not len(labels):
            raise ValueError(f"{name} must have at least one row, got none")
        if labels.dtype.kind != "O":
            return np.unique(labels, return_inverse=True)[1].astype(np.int64)
    if isinstance(labels, (str, bytes)) or not isinstance(labels, (Iterable, np.ndarray)):
        raise ValueError(f"{name} must be one-dimensional: a label per row, got {labels!r}")
    seen: dict[Any, int] = {}
    found = []
    for row, label in enumerate(labels):
        try:
            found.append(seen.setdefault(label, len(seen)))
        except TypeError:
            raise TypeError(f"{name} must have labels that can be hashed, got {label!r} in row {row}") from None
        if type(label).__name__ in ("NAType", "NaTType") or (
            isinstance(label, (float, np.floating)) and label != label
        ):
            raise ValueError(f"{name} contains NaN in row {row}")
    if not found:
        raise ValueError(f"{name} must have at least one row, got none")
    return np.array(found, dtype=np.int64)


def _contingency(true: NDArray[np.int64], pred: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many rows [C, K] each class and cluster share."""
    shape = int(true.max()) + 1, int(pred.max()) + 1
    counts = np.bincount(true * shape[1] + pred, minlength=shape[0] * shape[1])
    return counts.reshape(shape).astype(np.int64)


def _matching(true: NDArray[np.int64], pred: NDArray[np.int64]) -> NDArray[np.int64]:
    """The class [K] of each cluster under the best matching, -1 for those without; both are integers from 0."""
    counts = _contingency(true, pred)
    matched = np.full(counts.shape[1], -1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    matched[columns] = rows
    return matched
