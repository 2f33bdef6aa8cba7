"""Runs of clustering methods; the long ones are kept in a file, so that an interrupted experiment goes on there."""

from __future__ import annotations

import json
import statistics
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from material import Set, clustpy_vade, dense, quietly, reduced
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.mixture import GaussianMixture

from vade_robust import RobustVaDE, VaDE, _networks
from vade_robust.metrics import clustering_accuracy, purity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Answers = Mapping[str, Any]
    Method = Callable[[Set, dict[str, Any], int], Answers]

FILE = Path(__file__).resolve().parents[1] / "report" / "vade-robust-runs.jsonl"
VERSIONS = {name: version(name) for name in ("vade-robust", "torch", "scikit-learn")}
OURS = "RobustVaDE"
SMALL: dict[str, Any] = {"hidden": (256, 256, 512), "batch_size": 256, "pretrain_epochs": 50, "epochs": 100}
LARGE: dict[str, Any] = {"hidden": (500, 500, 2000), "batch_size": 256, "pretrain_epochs": 15, "epochs": 30}


# --- methods: answers by name; what is trained before the seed is known is the same for all ---


def robust(**options: Any) -> Method:
    """Ours: one training has two answers."""

    def run(data: Set, settings: dict[str, Any], seed: int) -> Answers:
        model = RobustVaDE(data.classes, random_state=seed, **settings | options).fit(data.X)
        other = "mixture" if model.assign == "embedding" else "embedding"
        answers = {model.assign: model.labels_, "collapse": len(model.diagnostics_["collapse"])}
        return answers | ({other: model.predict(data.X, assign=other)} if other == "mixture" else {})

    return run


def detached(data: Set, settings: dict[str, Any], seed: int) -> Answers:
    """Ours, with a map that the encoder does not feel."""

    class Detached(_networks.Networks):
        def embed(self, mu: Any) -> Any:
            return super().embed(mu.detach())

    whole, _networks.Networks = _networks.Networks, Detached
    try:
        return robust()(data, settings, seed)
    finally:
        _networks.Networks = whole


def vade(**options: Any) -> Method:
    def run(data: Set, settings: dict[str, Any], seed: int) -> Answers:
        model = VaDE(data.classes, random_state=seed, **settings | options).fit(data.X)
        return {"mixture": model.labels_, "collapse": len(model.diagnostics_["collapse"])}

    return run


def clustpy(data: Set, settings: dict[str, Any], seed: int) -> Answers:
    X = dense(data)
    model = quietly(clustpy_vade(X.shape[1], data.classes, seed, **settings).fit, X)
    return {"labels_": model.labels_, "vade_labels_": model.vade_labels_}


def kmeans(data: Set, settings: dict[str, Any], seed: int) -> Answers:
    return {"": KMeans(data.classes, n_init=10, random_state=seed).fit_predict(data.X)}


def mixture(kind: str, regular: float = 1e-2, components: int = 0) -> Method:
    def run(data: Set, settings: dict[str, Any], seed: int) -> Answers:
        X = dense(data).astype(np.float64)
        X = PCA(components, random_state=0).fit_transform(X) if components else X
        model = GaussianMixture(data.classes, covariance_type=kind, reg_covar=regular, random_state=seed)
        return {"": model.fit_predict(X)}

    return run


def lsa_kmeans(data: Set, settings: dict[str, Any], seed: int) -> Answers:
    return {"": KMeans(data.classes, n_init=10, random_state=seed).fit_predict(reduced(data))}


def lsa_mixture(data: Set, settings: dict[str, Any], seed: int) -> Answers:
    model = GaussianMixture(data.classes, covariance_type="full", random_state=seed)
    return {"": model.fit_predict(reduced(data))}


# --- runs ---


def scores(y: Any, labels: Any) -> dict[str, float]:
    return {
        "acc": clustering_accuracy(y, labels),
        "nmi": float(normalized_mutual_info_score(y, labels)),
        "ari": float(adjusted_rand_score(y, labels)),
        "purity": purity(y, labels),
    }


class Runs:
    """The runs so far, a JSON object on each line of a file; none is kept without one."""

    def __init__(self, path: Path | None = FILE) -> None:
        self.path = path
        lines = path.read_text("utf-8").splitlines() if path is not None and path.exists() else []
        found = [run for run in map(json.loads, lines) if run["versions"] == VERSIONS]
        self.runs = {self.key(run): run for run in found}

    @staticmethod
    def key(run: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(json.dumps(run[name]) for name in ("set", "rows", "method", "settings", "seed"))

    def get(
        self, name: str, data: Set, method: str, work: Method, settings: dict[str, Any], seed: int
    ) -> dict[str, Any]:
        """The run with these settings, made now if it was not before: scores by answer, CPU seconds, collapses."""
        run: dict[str, Any] = {"set": name, "rows": data.X.shape[0], "method": method, "settings": settings}
        run["seed"] = seed
        if self.key(run) in self.runs:
            return self.runs[self.key(run)]
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a collapse is counted
            answers = dict(work(data, settings, seed))
        run |= {"seconds": time.process_time() - start, "collapse": answers.pop("collapse", None), "versions": VERSIONS}
        run["answers"] = {answer: scores(data.y, labels) for answer, labels in answers.items()}
        self.runs[self.key(run)] = run
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(run) + "\n")
        return run


HEAD = ["method", "answer", "seeds", "ACC", "sd", "worst", "NMI", "ARI", "purity", "collapsed", "CPU seconds"]


def rows_of(method: str, runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Lines of a table: an answer each."""
    table = []
    for answer in runs[0]["answers"]:
        found = [run["answers"][answer] for run in runs]
        acc = [one["acc"] for one in found]
        spread = f"{statistics.stdev(acc):.3f}" if len(acc) > 1 else ""
        means = [f"{statistics.mean(one[key] for one in found):.3f}" for key in ("nmi", "ari", "purity")]
        collapsed = "" if runs[0]["collapse"] is None else str(sum(run["collapse"] > 0 for run in runs))
        seconds = f"{statistics.mean(run['seconds'] for run in runs):.0f}"
        worst = f"{min(acc):.3f}"
        table.append(
            [method, answer, str(len(runs)), f"{statistics.mean(acc):.3f}", spread, worst, *means, collapsed, seconds]
        )
    return table
