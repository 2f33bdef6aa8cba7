"""The choice of K and of a run: without classes, with every candidate told."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs

from vade_robust import RobustVaDE, VaDE
from vade_robust.selection import select

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALL: dict[str, Any] = {"hidden": (32,), "n_latent": 4, "pretrain_epochs": 40, "epochs": 10, "batch_size": 100}


@pytest.fixture(scope="module")
def blobs() -> NDArray[np.float64]:
    """Three clusters, far apart."""
    X: NDArray[np.float64] = make_blobs(200, 6, centers=3, cluster_std=0.3, random_state=1)[0]
    return X


def test_k_of_separated_clusters_is_found(blobs: NDArray[np.float64]) -> None:
    found = select(RobustVaDE(**SMALL), blobs, n_clusters=[2, 3, 5], seeds=[0, 1])
    assert found.n_clusters == 3
    assert found.estimator.n_clusters == 3
    assert len(found.candidates) == 6
    assert all(one.stability is not None and one.agreement is not None for one in found.candidates)
    assert ">  3" in repr(found)
    assert json.loads(json.dumps(found.to_dict()))["n_clusters"] == 3


def test_the_most_representative_run_is_chosen_and_is_the_one_that_its_seed_gives(blobs: NDArray[np.float64]) -> None:
    model = VaDE(3, **{**SMALL, "pretrain_epochs": 3, "epochs": 2})
    found = select(model, blobs, seeds=[0, 1, 2])
    assert found.seed == max(found.candidates, key=lambda one: one.stability).seed
    again = VaDE(3, random_state=found.seed, **{**SMALL, "pretrain_epochs": 3, "epochs": 2}).fit(blobs)
    np.testing.assert_array_equal(again.labels_, found.estimator.labels_)
    assert model.random_state is None
    assert not hasattr(model, "labels_")


def test_one_run_has_no_stability_and_one_cluster_no_silhouette(blobs: NDArray[np.float64]) -> None:
    (only,) = select(VaDE(1, hidden=(8,), pretrain_epochs=1, epochs=1), blobs, seeds=[0]).candidates
    assert only.stability is None
    assert only.silhouette == -1


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"seeds": 3}, TypeError, "seeds must be several integers, such as [3], got 3"),
        ({"seeds": []}, ValueError, "seeds must hold at least one integer"),
        ({"seeds": [1, 1]}, ValueError, "seeds must differ, got [1, 1]"),
        ({"n_clusters": [2.5]}, TypeError, "n_clusters must be integers, got 2.5"),
    ],
    ids=["a number", "none", "twice", "a fraction"],
)
def test_what_cannot_be_tried_is_refused(
    blobs: NDArray[np.float64], options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error) as raised:
        select(VaDE(3), blobs, **options)
    assert says in str(raised.value)


def test_estimators_of_others_are_refused(blobs: NDArray[np.float64]) -> None:
    with pytest.raises(TypeError, match="estimator must be a RobustVaDE or a VaDE, got KMeans"):
        select(KMeans(3), blobs)  # type: ignore[arg-type]
