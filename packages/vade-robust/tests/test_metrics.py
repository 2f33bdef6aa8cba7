"""Accuracy and purity against brute force and against their definitions; reports over seeds."""

from __future__ import annotations

import json
import math
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN, KMeans
from sklearn.datasets import load_iris
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vade_robust.metrics import clustering_accuracy, purity, seed_report

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

rows = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40)


def best_matching(true: list[int], pred: list[int]) -> float:
    """Every injection of the smaller of the two sets of labels into the larger."""
    left, right = sorted(set(true)), sorted(set(pred))
    pairs = list(zip(true, pred, strict=True))
    if len(left) > len(right):
        left, right, pairs = right, left, [(p, t) for t, p in pairs]
    return max(
        sum(dict(zip(left, image, strict=True))[t] == p for t, p in pairs) / len(pairs)
        for image in permutations(right, len(left))
    )


@given(rows)
def test_accuracy_is_that_of_the_best_of_all_matchings(pairs: list[tuple[int, int]]) -> None:
    true, pred = map(list, zip(*pairs, strict=True))
    assert clustering_accuracy(true, pred) == pytest.approx(best_matching(true, pred), abs=1e-12)


@given(rows)
def test_purity_is_that_of_the_majorities_and_accuracy_never_exceeds_it(pairs: list[tuple[int, int]]) -> None:
    true, pred = map(list, zip(*pairs, strict=True))
    right = sum(max([t for t, p in pairs if p == k].count(c) for c in set(true)) for k in set(pred))
    assert purity(true, pred) == pytest.approx(right / len(pairs), abs=1e-12)
    assert 0 < clustering_accuracy(true, pred) <= purity(true, pred)


@given(rows, st.permutations(range(6)))
def test_names_of_clusters_do_not_matter(pairs: list[tuple[int, int]], names: list[int]) -> None:
    true, pred = map(list, zip(*pairs, strict=True))
    other = [f"cluster {names[p]}" for p in pred]
    assert clustering_accuracy(true, other) == clustering_accuracy(true, pred)
    assert purity(true, other) == purity(true, pred)


def test_singletons_are_pure_and_hardly_accurate() -> None:
    true = np.repeat(np.arange(10), 20)
    assert purity(true, np.arange(200)) == 1
    assert clustering_accuracy(true, np.arange(200)) == 10 / 200
    assert clustering_accuracy(true, np.zeros(200)) == purity(true, np.zeros(200)) == 1 / 10


def test_more_classes_than_clusters_leave_classes_without_a_cluster() -> None:
    assert clustering_accuracy([0, 1, 2, 3], [0, 0, 1, 1]) == 0.5
    assert purity([0, 1, 2, 3], [0, 0, 1, 1]) == 0.5


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(np.array([-1, -1, 5, 5, 0]), id="negative"),
        pytest.param(np.array(["a", "a", "bb", "bb", "c"]), id="strings"),
        pytest.param([("a", 1), ("a", 1), None, None, "x"], id="hashables of several types"),
        pytest.param(torch.tensor([3, 3, 1, 1, 2]), id="tensor"),
        pytest.param(torch.tensor([3j, 3j, 1, 1, 2]).conj(), id="conjugate tensor"),
        pytest.param(pd.Series(["u", "u", "v", "v", "w"], dtype="category"), id="categories"),
        pytest.param(np.array([0.5, 0.5, -2.0, -2.0, 1e9]), id="floats"),
        pytest.param(np.array([True, True, "no", "no", 3], dtype=object), id="objects"),
    ],
)
def test_labels_may_be_anything_that_can_be_hashed(labels: object) -> None:
    assert clustering_accuracy(labels, [2, 2, 0, 0, 1]) == 1
    assert clustering_accuracy([2, 2, 0, 0, 1], labels) == 1
    assert purity(labels, [2, 2, 0, 0, 0]) == 0.8


@pytest.mark.parametrize(
    ("true", "pred", "message"),
    [
        ([0, 1], [0], "y_true and y_pred must have the same length, got 2 and 1"),
        ([], [], "y_true must have at least one row"),
        (np.zeros((3, 1)), [0, 1, 2], r"y_true must be one-dimensional, got shape \(3, 1\)"),
        ([0, 1], np.array([0, math.nan]), "y_pred contains NaN in row 1"),
        ([0, math.nan], [0, 1], "y_true contains NaN in row 1"),
        (pd.array([0, pd.NA], dtype="Int64"), [0, 1], "y_true contains NaN in row 1"),
        ("ab", [0, 1], "y_true must be one-dimensional"),
        (3, [0, 1], "y_true must be one-dimensional"),
        (torch.zeros(2, device="meta"), [0, 1], "y_true must hold values, got a tensor on the device 'meta'"),
    ],
)
@pytest.mark.parametrize("measure", [clustering_accuracy, purity])
def test_bad_labels_are_named(measure: object, true: object, pred: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(true, pred)  # type: ignore[operator]


def test_labels_that_cannot_be_hashed_are_refused() -> None:
    with pytest.raises(TypeError, match=r"y_pred must have labels that can be hashed, got \[1\] in row 0"):
        clustering_accuracy([0, 1], [[1], [2]])


X, y = load_iris(return_X_y=True)


@pytest.mark.parametrize(
    "estimator",
    [
        KMeans(3, n_init=1),
        GaussianMixture(3, init_params="random", max_iter=5, tol=0.1),
        make_pipeline(StandardScaler(), KMeans(3, n_init=1)),
    ],
    ids=["KMeans", "GaussianMixture", "Pipeline"],
)
def test_report_holds_every_run_and_its_worst(estimator: BaseEstimator) -> None:
    report = seed_report(estimator, X, y, range(4, 9))
    assert [run["seed"] for run in report.runs] == [4, 5, 6, 7, 8]
    acc = [run["acc"] for run in report.runs]
    found = report.summary["acc"]
    assert found["mean"] == pytest.approx(np.mean(acc))
    assert found["sd"] == pytest.approx(np.std(acc, ddof=1))
    assert found["worst"] == min(acc)
    assert acc[int(found["worst_seed"]) - 4] == min(acc)
    assert acc == [clustering_accuracy(y, labels) for labels in report.labels]
    assert not hasattr(estimator, "labels_")
    json.dumps(report.to_dict(), allow_nan=False)
    assert report.to_frame().loc[4, "ari"] == report.runs[0]["ari"]


def test_report_is_that_of_the_seeds_and_never_shows_the_classes_to_the_estimator() -> None:
    class Watched(KMeans):
        def fit_predict(self, X: object, y: object = None, sample_weight: object = None) -> object:
            assert y is None
            return super().fit_predict(X)

    once, again = (seed_report(Watched(3, n_init=1, init="random"), X, y, [0, 3, 7]) for _ in range(2))
    assert np.array_equal(once.labels, again.labels)
    blind = seed_report(Watched(3, n_init=1, init="random"), X, seeds=[0, 3, 7])
    assert np.array_equal(once.labels, blind.labels)
    assert "acc" not in blind.summary
    assert blind.stability == once.stability


def test_stability_is_the_mean_over_pairs_of_runs() -> None:
    same = seed_report(KMeans(3, n_init=10), X, seeds=range(3))
    assert same.stability == pytest.approx(1, abs=0.05)
    unlike = seed_report(KMeans(20, n_init=1, init="random", max_iter=1), X, seeds=range(3))
    assert unlike.stability < 0.7
    alone = seed_report(KMeans(3, n_init=1), X, y, seeds=[5])
    assert math.isnan(alone.stability)
    assert alone.to_dict()["summary"]["acc"]["sd"] is None
    assert "1 seed" in repr(alone)


def test_report_is_a_readable_table() -> None:
    lines = repr(seed_report(KMeans(3, n_init=1), X, y, range(3))).splitlines()
    assert lines[0].startswith("SeedReport: KMeans, 3 seeds")
    assert lines[1].split() == ["mean", "sd", "worst"]
    assert [line.split()[0] for line in lines[2:7]] == ["ACC", "NMI", "ARI", "purity", "stability"]
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((KMeans(3), X, y, []), ValueError, "seeds must hold at least one seed"),
        ((KMeans(3), X, y, [1, 1]), ValueError, "seeds must differ"),
        ((KMeans(3), X, y, 5), TypeError, r"such as range\(5\)"),
        ((5, X, y, [0]), TypeError, "estimator must be of scikit-learn's kind, with get_params, got 5"),
        ((KMeans(3), X, y, [0.5]), TypeError, "seeds must be integers, got 0.5"),
        ((KMeans(3), X, y[:9], [0]), ValueError, "y must have a class for each row of X, got 9 for 150 rows"),
        ((DBSCAN(), X, y, [0]), ValueError, "estimator has no `random_state`"),
    ],
    ids=["no seed", "a seed twice", "a number", "no estimator", "a fraction", "short y", "no random_state"],
)
def test_bad_requests_for_a_report_are_named(arguments: tuple[object, ...], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        seed_report(*arguments)  # type: ignore[arg-type]
