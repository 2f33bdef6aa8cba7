"""The estimators as scikit-learn's users see them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from torch import nn

from vade_robust import RobustVaDE, VaDE

SMALL: dict[str, Any] = {
    "n_clusters": 3,
    "hidden": (16,),
    "n_latent": 4,
    "pretrain_epochs": 2,
    "epochs": 3,
    "batch_size": 32,
    "random_state": 0,
}
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def blobs(rows: int = 90, features: int = 6) -> np.ndarray:
    draw = np.random.default_rng(0)
    middle = draw.uniform(0.2, 0.8, (3, features))
    noise = draw.normal(0, 0.05, (rows, features))
    return np.clip(middle[np.arange(rows) % 3] + noise, 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def fitted() -> RobustVaDE:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return RobustVaDE(**SMALL).fit(blobs())


@pytest.mark.parametrize("assign", ["embedding", "mixture"])
@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
def test_labels_are_what_is_predicted_of_the_training_rows(assign: str, kind: str) -> None:
    X = blobs(333)
    estimator = RobustVaDE(**SMALL, assign=assign, reconstruction=kind).fit(X)
    assert estimator.labels_.dtype == np.int32
    assert (estimator.labels_ == estimator.predict(X)).all()
    assert (estimator.labels_ == estimator.predict(X[::-1])[::-1]).all()
    assert (estimator.labels_ == estimator.predict_proba(X).argmax(1)).all()
    assert estimator.cluster_centers_.shape == (3, 4)


def test_predictions_do_not_change_from_call_to_call(fitted: RobustVaDE) -> None:
    X = blobs()
    for method in ("predict", "predict_proba", "transform", "score_samples", "reconstruct"):
        first, second = (getattr(fitted, method)(X) for _ in range(2))
        assert (first == second).all(), method
        assert first.dtype == (np.int32 if method == "predict" else np.float32), method


def test_memberships_are_the_softmax_of_scores_or_the_kernel_of_distances(fitted: RobustVaDE) -> None:
    X = blobs()
    near = fitted.transform(X).astype(float)[:, None] - fitted.cluster_centers_
    near = 1 / (1 + (near**2).sum(2))
    np.testing.assert_allclose(fitted.predict_proba(X), near / near.sum(1, keepdims=True), rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        mu, lv = (x.double().numpy() for x in fitted.module_.eval().encode(torch.from_numpy(X)))
    s2 = fitted.covariances_.astype(float)
    squares = (np.exp(lv)[:, None] + (mu[:, None] - fitted.means_) ** 2) / s2
    a = np.log(fitted.weights_) - 0.5 * (np.log(2 * np.pi * s2) + squares).sum(2)
    expected = np.exp(a - logsumexp(a, axis=1, keepdims=True))
    np.testing.assert_allclose(fitted.predict_proba(X, assign="mixture"), expected, atol=1e-4)
    np.testing.assert_array_equal(fitted.transform(X, space="latent"), mu.astype(np.float32))


def test_attributes_are_those_of_a_mixture(fitted: RobustVaDE) -> None:
    assert fitted.means_.shape == fitted.covariances_.shape == (3, 4)
    assert (fitted.covariances_ > 0).all()
    assert fitted.weights_.sum() == pytest.approx(1, abs=1e-6)
    assert (fitted.n_features_in_, fitted.n_iter_) == (6, 3)
    assert isinstance(fitted.module_, nn.Module)
    assert list(fitted.get_feature_names_out()) == [f"robustvade{i}" for i in range(4)]


def test_diagnostics_say_how_the_clusters_are_occupied(fitted: RobustVaDE) -> None:
    X, found = blobs(), fitted.diagnostics_
    q = fitted.predict_proba(X, assign="mixture")
    labels = fitted.predict(X, assign="mixture")
    np.testing.assert_allclose(found["occupancy"], np.bincount(labels, minlength=3) / 90)
    expected = -(q * np.log(np.maximum(q, 1e-30))).sum(1).mean()
    assert found["entropy"] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert found["agreement"] == pytest.approx(adjusted_rand_score(labels, fitted.labels_))
    assert found["active_dims"] == (fitted.transform(X, space="latent").var(0) > 0.01).sum()
    assert 1 <= found["effective_clusters"] <= 3 + 1e-9
    assert found["nonfinite_steps"] == 0
    np.testing.assert_allclose(found["pi"], fitted.weights_)
    assert VaDE(**SMALL).fit(X).diagnostics_["agreement"] is None


def test_collapsed_components_are_warned_of_by_name() -> None:
    with pytest.warns(ConvergenceWarning, match=r"components \[.*\] of the mixture hold less than 0.1 / n_clusters"):
        estimator = VaDE(**{**SMALL, "n_clusters": 30, "warmup": 0.0}).fit(np.tile(blobs(3), (20, 1)))
    occupancy = estimator.diagnostics_["occupancy"]
    assert estimator.diagnostics_["collapse"] == list(np.flatnonzero(occupancy < 0.1 / 30))


def test_what_was_not_fitted_says_so_and_a_refused_fit_changes_nothing(fitted: RobustVaDE) -> None:
    for method in ("predict", "predict_proba", "transform", "score", "score_samples", "reconstruct"):
        with pytest.raises(NotFittedError):
            getattr(RobustVaDE(), method)(blobs())
    with pytest.raises(NotFittedError):
        RobustVaDE().sample()
    X = blobs()
    estimator = clone(fitted).fit(X)
    before = dict(vars(estimator))
    for wrong in (X[:2], np.where(X > 0.5, np.nan, X), X[:, 0], "text"):
        with pytest.raises((ValueError, TypeError)):
            estimator.fit(wrong)
        assert vars(estimator) == before or all(vars(estimator)[k] is v for k, v in before.items())
    with pytest.raises(ValueError, match="6 features"):
        estimator.partial_fit(X[:, :3])
    assert (estimator.predict(X) == estimator.labels_).all()


def test_an_interrupted_fit_leaves_the_estimator_as_it_was(fitted: RobustVaDE) -> None:
    class Interrupt:
        def on_epoch_end(self, estimator: Any, epoch: int, logs: dict[str, Any]) -> None:
            raise KeyboardInterrupt

    X = blobs()
    for method in ("fit", "partial_fit"):
        estimator = clone(fitted).set_params(callbacks=[Interrupt()])
        with pytest.raises(KeyboardInterrupt):
            getattr(estimator, method)(X)
        assert not hasattr(estimator, "module_")
        assert not hasattr(estimator, "n_features_in_")


def test_a_call_asks_for_the_other_assignment_or_space_only_where_there_is_one(fitted: RobustVaDE) -> None:
    X = blobs()
    assert fitted.predict(X, assign="mixture").shape == (90,)
    plain = VaDE(**SMALL).fit(X)
    assert np.array_equal(plain.cluster_centers_, plain.means_)
    assert np.array_equal(plain.transform(X), plain.transform(X, space="latent"))
    for call in (lambda: plain.predict(X, assign="embedding"), lambda: plain.transform(X, space="embedding")):
        with pytest.raises(ValueError, match="locality"):
            call()
    for call in (lambda: fitted.predict(X, assign="kmeans"), lambda: fitted.transform(X, space="x")):
        with pytest.raises(ValueError, match="must be 'embedding' or"):
            call()


def test_vade_is_robust_vade_without_discriminator_and_locality() -> None:
    X = blobs()
    plain = VaDE(**SMALL).fit(X)
    other = RobustVaDE(**SMALL, mutual_information=0, locality=0, assign="mixture").fit(X)
    assert torch.equal(plain.module_.mean.weight, other.module_.mean.weight)
    assert (plain.labels_ == other.labels_).all()
    absent = {"mutual_information", "locality", "perplexity", "exaggeration", "adversarial", "preset"}
    assert set(RobustVaDE().get_params()) - set(VaDE().get_params()) == absent


def test_presets_are_what_their_arguments_say() -> None:
    X = blobs()
    lpvdn = RobustVaDE(**SMALL, preset="lpvdn").fit(X)._training.options
    assert (lpvdn.kind, lpvdn.posterior, lpvdn.mutual_information, lpvdn.locality) == ("bernoulli", "sampled", 1, 1e-4)
    assert lpvdn.floor
    assert lpvdn.exact_perplexity
    vade = RobustVaDE(**SMALL, preset="vade").fit(X)._training.options
    assert (vade.posterior, vade.mutual_information, vade.locality) == ("sampled", 0, 0)
    for options in (lpvdn, vade):
        assert (options.warmup, options.clamp, options.prepared_head) == (0, False, False)
    with pytest.raises(ValueError, match="preset='vade' has warmup=0"):
        RobustVaDE(**SMALL, preset="vade", warmup=0.5).fit(X)


@pytest.mark.parametrize("shape", [(9, 11), (8, 8), (2, 13, 8)], ids=str)
@pytest.mark.parametrize("encoder", ["conv", "mlp"])
def test_images_of_any_size_are_encoded_and_decoded(encoder: str, shape: tuple[int, ...]) -> None:
    X = np.random.default_rng(0).integers(0, 256, (24, *shape), dtype=np.uint8)
    estimator = RobustVaDE(**SMALL, encoder=encoder).fit(X)
    assert estimator.reconstruct(X).shape == X.shape
    assert estimator.sample(2)[0].shape == (2, *shape)
    assert (estimator.predict(X) == estimator.labels_).all()
    assert estimator.n_features_in_ == np.prod(shape)
    with pytest.raises(ValueError, match=r"\(8, 9\)"):
        estimator.predict(np.zeros((3, 8, 9), np.uint8))


def test_an_encoder_of_the_users_is_copied() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Dropout(0.1))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    X = blobs()
    estimator = RobustVaDE(**SMALL, encoder=encoder).fit(X)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert (estimator.predict(X[:1]) == estimator.labels_[:1]).all()
    assert estimator.module_.mean.in_features == 7
    with pytest.raises(ValueError, match=r"encoder must map \(1, 6\) to \(1, H\), got \(1, 2, 3\)"):
        RobustVaDE(**SMALL, encoder=nn.Unflatten(1, (2, 3))).fit(X)


def test_tensors_in_are_tensors_out() -> None:
    X = torch.from_numpy(blobs())
    estimator = RobustVaDE(**SMALL)
    labels = estimator.fit_predict(X)
    assert torch.equal(labels, estimator.predict(X))
    for method in ("predict_proba", "transform", "score_samples", "reconstruct"):
        assert isinstance(getattr(estimator, method)(X), torch.Tensor)
    assert isinstance(estimator.labels_, np.ndarray)


def test_pipelines_grids_and_frames_work() -> None:
    pandas = pytest.importorskip("pandas")
    X = pandas.DataFrame(1e3 * blobs(), columns=list("abcdef"))
    pipeline = make_pipeline(MinMaxScaler(), RobustVaDE(**SMALL)).set_output(transform="pandas")
    placed = pipeline.fit(X).transform(X)
    assert list(placed.columns) == [f"robustvade{i}" for i in range(4)]
    assert (pipeline.predict(X) == pipeline[-1].labels_).all()
    estimator = clone(pipeline[-1]).set_params(epochs=1).fit(X)
    assert estimator.n_iter_ == 1
    assert list(estimator.feature_names_in_) == list("abcdef")
    estimator.fit(blobs())
    assert not hasattr(estimator, "feature_names_in_")


def test_partial_fit_is_an_epoch_a_call_and_keeps_a_reservoir() -> None:
    X = blobs(300)
    estimator = RobustVaDE(**SMALL)
    for start in range(0, 300, 100):
        estimator.partial_fit(X[start : start + 100])
        assert (estimator.labels_ == estimator.predict(X[start : start + 100])).all()
    assert [logs["cluster_weight"] for logs in estimator.history_[2:]] == pytest.approx([1 / 3, 2 / 3, 1])
    assert estimator.n_iter_ == 3
    assert estimator._reservoir is not None
    assert estimator._reservoir.seen == 300
    estimator.partial_fit(X[:1])
    assert estimator.labels_.shape == (1,)


def test_a_reservoir_is_a_fair_sample_of_flat_size() -> None:
    from vade_robust._initialising import Reservoir

    counts = np.zeros(40)
    for seed in range(300):
        reservoir = Reservoir((1,), torch.device("cpu"), seed, capacity=10)
        for part in torch.arange(40.0)[:, None].split(7):
            reservoir.add(part)
        assert len(reservoir.kept) == 10
        counts[reservoir.kept[:, 0].int().numpy()] += 1
    # Each row is kept with probability 1/4: 75 of 300, with a standard deviation of 7.5; 40 rows within 4 of them.
    assert np.abs(counts - 75).max() < 30


def test_n_jobs_are_the_threads_of_a_call(fitted: RobustVaDE, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    real = torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda n: used.append(n) or real(n))
    before = torch.get_num_threads()
    estimator = clone(fitted).set_params(n_jobs=1).fit(blobs())
    assert used[0] == 1
    assert torch.get_num_threads() == before
    assert (estimator.predict(blobs()) == estimator.labels_).all()


def test_scores_are_means_of_bounds_and_samples_come_from_the_asked_cluster(fitted: RobustVaDE) -> None:
    X = blobs()
    assert fitted.score(X) == pytest.approx(fitted.score_samples(X).mean())
    rows = fitted.sample(50)[0]
    assert rows.shape == (50, 6)
    assert ((rows >= 0) & (rows <= 1)).all()
    again, _ = fitted.sample(50)
    assert (rows == again).all()
    assert (fitted.sample(5, cluster=2)[1] == 2).all()
    with pytest.raises(ValueError, match="cluster must be less than n_clusters=3, got 3"):
        fitted.sample(5, cluster=3)


@pytest.mark.parametrize("rows", [np.ones((8, 3)), np.zeros((8, 3)), np.repeat(np.eye(4), 3, 0)], ids=["1", "0", "4"])
def test_constant_and_repeated_rows_fit_and_stay_finite(rows: np.ndarray) -> None:
    for estimator in (RobustVaDE(**SMALL), RobustVaDE(**SMALL, reconstruction="gaussian"), VaDE(**SMALL)):
        probabilities = clone(estimator).fit(rows).predict_proba(rows)
        assert np.isfinite(probabilities).all()


def test_one_cluster_and_one_feature_are_enough() -> None:
    X = blobs()[:, :1]
    estimator = RobustVaDE(**{**SMALL, "n_clusters": 1}).fit(X)
    assert (estimator.labels_ == 0).all()
    assert (estimator.predict_proba(X) == 1).all()
