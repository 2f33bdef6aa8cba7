"""Attacks against analytic distances, against each other and against what must not change; and bad requests."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.cluster import DBSCAN, BisectingKMeans, KMeans, MiniBatchKMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, Normalizer, RobustScaler, StandardScaler

from vade_robust import RobustVaDE, VaDE, _attacks
from vade_robust.metrics import clustering_accuracy
from vade_robust.robustness import ATTACKS, RobustnessReport, report

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vade_robust.robustness import RobustnessPoint

EPS = [0.0, 0.02, 0.1, 0.2, 0.5]


@pytest.fixture(scope="module")
def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    X, y = load_digits(return_X_y=True)
    return (X[:400] / 16).astype(np.float32), y[:400]


@pytest.fixture(scope="module")
def models(digits: Any) -> dict[str, Any]:
    X, _ = digits
    small = {"hidden": (64,), "pretrain_epochs": 15, "epochs": 8, "batch_size": 100, "random_state": 0}
    return {
        "RobustVaDE": RobustVaDE(10, **small).fit(X),
        "VaDE": VaDE(10, **small).fit(X),
        "KMeans": KMeans(10, n_init=3, random_state=0).fit(X),
        "GaussianMixture": GaussianMixture(10, reg_covar=0.01, random_state=0).fit(X),
    }


@pytest.fixture(scope="module")
def reports(models: dict[str, Any], digits: Any) -> dict[str, RobustnessReport]:
    return {name: report(model, *digits, eps=EPS) for name, model in models.items()}


NAMES = ["RobustVaDE", "VaDE", "KMeans", "GaussianMixture"]


@pytest.fixture(params=NAMES)
def found(request: pytest.FixtureRequest, reports: dict[str, RobustnessReport]) -> RobustnessReport:
    return reports[request.param]


def points(found: RobustnessReport, attack: str) -> list[RobustnessPoint]:
    return [point for point in found.points if point.attack == attack]


def two_groups(distance: float = 4.0, n_features: int = 3) -> tuple[GaussianMixture, NDArray[np.float64]]:
    """Two spherical components of the same variance, and rows whose l_inf distances to the boundary are known."""
    random = np.random.RandomState(0)
    direction = random.randn(n_features)
    mixture = GaussianMixture(2, covariance_type="spherical")
    mixture.weights_ = np.array([0.3, 0.7])
    mixture.means_ = np.stack([np.zeros(n_features), distance * direction / np.linalg.norm(direction)])
    mixture.covariances_ = np.array([1.7, 1.7])
    mixture.precisions_cholesky_ = 1 / np.sqrt(mixture.covariances_)
    return mixture, random.randn(200, n_features) * 1.3 + mixture.means_[random.randint(2, size=200)]


# What attacks do.


def test_attacks_of_size_0_change_nothing(found: RobustnessReport) -> None:
    for attack in ATTACKS:
        point = points(found, attack)[0]
        assert found.clean is not None
        assert point.max_delta == 0
        assert point.consistency == 1
        assert (point.acc, point.nmi, point.ari) == tuple(found.clean.values())


def test_stronger_attacks_and_larger_ones_move_more_rows(found: RobustnessReport) -> None:
    """Accuracy follows where many rows move: of few, those that were wrong may become right. Salt and pepper leave the
    cube of the others, and may move more rows than they while it is small."""
    for measure, first in (("consistency", 0), ("acc", EPS.index(0.2))):
        curves = {attack: found.curve(attack, measure)[1][first:] for attack in ATTACKS}
        assert (curves["pgd"] <= curves["fgsm"] + 0.01).all()
        assert (curves["fgsm"] <= curves["gaussian"] + 0.01).all()
        assert (curves["pgd"] <= curves["salt_pepper"] + 0.01)[EPS.index(0.2) - first :].all()
        for attack in ("gaussian", "salt_pepper", "pgd"):
            assert (np.diff(curves[attack]) <= 0.01).all()
    assert found.curve("pgd", "acc")[1][-1] <= 1.5 / 10


def test_the_margin_has_a_gradient_where_nothing_changed_yet(found: RobustnessReport) -> None:
    for attack in ("fgsm", "pgd"):
        assert all(point.gradient_norm is not None and point.gradient_norm > 0.1 for point in points(found, attack))
    assert points(found, "gaussian")[0].gradient_norm is None


def test_changes_stay_in_the_cube_and_in_the_box(found: RobustnessReport) -> None:
    assert found.box == (0, 1)
    for attack in ("fgsm", "pgd"):
        for point in points(found, attack):
            assert 0.99 * point.eps <= point.max_delta <= point.eps
    assert all(point.max_delta <= 1 for point in found.points)


def test_pgd_never_has_a_smaller_margin_than_fgsm_and_the_unchanged_row() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(5, 30), torch.nn.Tanh(), torch.nn.Linear(30, 4)).double()
    x = torch.rand(300, 5, dtype=torch.float64)
    labels = network(x).argmax(1)
    low, high = torch.zeros_like(x), torch.ones_like(x)
    _, gradient = _attacks.slope(network, x, labels)
    one = _attacks.one_step(x, gradient, 0.3, low, high)
    start = 2 * torch.rand_like(x) - 1
    best, _ = _attacks.many_steps(
        network, x, labels, eps=0.3, start=start, candidates=(x, one), steps=4, step_size=0.2, low=low, high=high
    )
    with torch.no_grad():
        margin, of_one, of_none = (_attacks.margin(network, rows, labels) for rows in (best, one, x))
    assert (margin >= of_one).all()
    assert (margin >= of_none).all()
    assert (margin > of_one).any()
    assert ((best - x).abs() <= 0.3 + 1e-12).all()


def test_the_map_is_attacked_along_the_mixture_too(models: dict[str, Any], digits: Any) -> None:
    """A map of plateaus looks robust to attacks that follow its own gradient alone: it is what they cannot see."""
    x = torch.from_numpy(digits[0]).double()
    labels = torch.from_numpy(models["RobustVaDE"].predict(digits[0])).long()
    scores, guide = (_attacks.scores_of(models["RobustVaDE"], assign) for assign in ("embedding", "mixture"))
    box = {"low": torch.zeros_like(x), "high": torch.ones_like(x)}
    torch.manual_seed(0)
    options = {"eps": 0.15, "start": 2 * torch.rand_like(x) - 1, "candidates": (x,), "steps": 10, "step_size": 0.04}
    alone, _ = _attacks.many_steps(scores, x, labels, **options, **box)
    guided, _ = _attacks.many_steps(scores, x, labels, guides=(guide,), **options, **box)
    with torch.no_grad():
        margins = [_attacks.margin(scores, changed, labels) for changed in (alone, guided)]
    assert (margins[1] >= margins[0]).all()
    assert (margins[1] > 0).sum() > (margins[0] > 0).sum()


def test_fgsm_and_pgd_need_exactly_the_distance_to_the_boundary() -> None:
    mixture, X = two_groups()
    m, v = mixture.means_, mixture.covariances_[0]
    slope = (m[1] - m[0]) / v
    offset = np.log(mixture.weights_[1] / mixture.weights_[0]) - (m[1] @ m[1] - m[0] @ m[0]) / (2 * v)
    distances = np.abs(X @ slope + offset) / np.abs(slope).sum()
    for attack in ("fgsm", "pgd"):
        for share in (0.1, 0.4, 0.8):
            eps = float(np.quantile(distances, share))
            found = report(mixture, X, attacks=attack, eps=[eps * 0.999, eps * 1.001], clip=(-100, 100))
            expected = [float((distances > size).mean()) for size in (eps * 0.999, eps * 1.001)]
            assert [point.consistency for point in found.points] == expected
            assert found.points[0].gradient_norm == pytest.approx(np.linalg.norm(slope))


def test_no_attack_reaches_farther_than_the_nearest_boundary_of_many() -> None:
    random = np.random.RandomState(1)
    X = random.randn(300, 4)
    model = KMeans(6, n_init=1, random_state=0).fit(X)
    k = model.cluster_centers_
    own = model.labels_
    gap = ((X[:, None] - k) ** 2).sum(2)
    gap -= gap[np.arange(300), own][:, None]
    width = 2 * np.abs(k[own][:, None] - k).sum(2)
    distances = np.where(np.arange(6) == own[:, None], np.inf, gap / np.maximum(width, 1e-300)).min(1)
    for eps in (0.05, 0.2, 0.5):
        consistency = report(model, X, attacks="pgd", eps=eps, clip=(-100, 100)).points[0].consistency
        possible = float((distances >= eps).mean())
        assert possible <= consistency <= possible + 0.03


def test_clusters_keep_the_classes_they_had_while_unchanged() -> None:
    """Two clusters that change places: matched again they would be right."""

    class Mirror:
        def predict(self, X: NDArray[np.float64]) -> NDArray[np.int64]:
            return (X[:, 0] > 0).astype(int)

    X = np.concatenate([np.full((20, 1), -0.1), np.full((20, 1), 0.1)])
    y = np.repeat(["a", "b"], 20)

    def scores(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([-x, x], 1)

    found = report(Mirror(), X, y, attacks="fgsm", eps=0.3, clip=(-1, 1), scores=scores)
    assert found.clean == {"acc": 1, "nmi": 1, "ari": 1}
    assert (found.points[0].acc, found.points[0].ari, found.points[0].consistency) == (0, 1, 0)


def test_noises_are_what_they_say() -> None:
    X = np.full((2000, 10), 0.5)
    seen = []

    class Watch:
        def predict(self, X: NDArray[np.float64]) -> NDArray[np.int64]:
            seen.append(X)
            return np.zeros(len(X), dtype=int)

    report(Watch(), X, attacks=["salt_pepper"], eps=[0.1], clip=(0, 1))
    changed = np.concatenate(seen[1:])
    share = [(changed == value).mean() for value in (0, 0.5, 1)]
    assert share == pytest.approx([0.05, 0.9, 0.05], abs=4 * math.sqrt(0.05 * 0.95 / X.size))
    seen.clear()
    report(Watch(), 255 * X, attacks=["salt_pepper"], eps=[25.5], clip=(0, 255))
    assert np.array_equal(np.concatenate(seen[1:]), np.where(changed == 0.5, 127.5, 255 * changed))
    seen.clear()
    report(Watch(), X, attacks=["gaussian"], eps=[0.1], clip=(-9, 9))
    noise = np.concatenate(seen[1:]) - X
    assert noise.mean() == pytest.approx(0, abs=4 * 0.1 / math.sqrt(X.size))
    assert noise.std() == pytest.approx(0.1, rel=4 / math.sqrt(2 * X.size))


# What must not matter.


@pytest.mark.parametrize("name", ["RobustVaDE", "KMeans"])
def test_reports_repeat_themselves_and_leave_the_estimator_as_it_was(
    name: str, models: dict[str, Any], reports: dict[str, RobustnessReport], digits: Any
) -> None:
    model, (X, y) = models[name], digits
    before = {key: value.clone() for key, value in model.module_.state_dict().items()} if name == "RobustVaDE" else {}
    training = [module.training for module in model.module_.modules()] if before else []
    rows, state = X.copy(), torch.get_rng_state()
    assert report(model, X, y, eps=EPS).points == reports[name].points
    assert np.array_equal(rows, X)
    assert torch.equal(state, torch.get_rng_state())
    assert report(model, X, y, eps=EPS, random_state=1).points != reports[name].points
    for key, value in before.items():
        assert torch.equal(value, model.module_.state_dict()[key])
    if before:
        assert training == [module.training for module in model.module_.modules()]
        assert all(p.requires_grad and p.grad is None for p in model.module_.parameters())


def test_an_attack_does_not_depend_on_which_others_are_asked_for(
    models: dict[str, Any], reports: dict[str, RobustnessReport], digits: Any
) -> None:
    alone = report(models["KMeans"], *digits, attacks=["pgd", "gaussian"], eps=[0.1])
    assert set(alone.points) <= set(reports["KMeans"].points)


def kinds(X: NDArray[np.float32]) -> dict[str, Any]:
    return {
        "sparse": scipy.sparse.csr_array(X),
        "coo": scipy.sparse.coo_matrix(X),
        "table": pd.DataFrame(X, columns=[f"pixel {i}" for i in range(X.shape[1])]),
        "tensor": torch.from_numpy(X),
        "list": X.tolist(),
    }


@pytest.mark.parametrize("kind", ["sparse", "coo", "table", "tensor", "list"])
@pytest.mark.parametrize("name", ["VaDE", "KMeans"])
def test_rows_may_come_in_any_container(kind: str, name: str, models: dict[str, Any], digits: Any) -> None:
    if (kind, name) == ("tensor", "KMeans"):
        pytest.skip("scikit-learn takes no tensors")
    X, y = digits[0][:40], digits[1][:40]
    if kind == "table" and name == "KMeans":
        model = KMeans(10, n_init=1, random_state=0).fit(kinds(X)[kind])
        array = KMeans(10, n_init=1, random_state=0).fit(X)
    else:
        model = array = models[name]
    if kind == "list" and name == "KMeans":
        X = X.astype(np.float64)
        model = array = KMeans(10, n_init=1, random_state=0).fit(X)
    given = kinds(X)[kind] if kind != "table" or name == "KMeans" else pd.DataFrame(X)
    options = {"eps": [0.05, 0.2], "steps": 3}
    one, other = report(model, given, y, **options), report(array, X, y, **options)
    for a, b in zip(one.points, other.points, strict=True):
        assert (a.attack, a.eps, a.consistency, a.acc) == (b.attack, b.eps, b.consistency, b.acc)


def test_bytes_are_attacked_in_units_of_bytes(digits: Any) -> None:
    X, y = (digits[0][:200] * 255).astype(np.uint8).reshape(-1, 8, 8), digits[1][:200]
    options = {"hidden": (32,), "pretrain_epochs": 10, "epochs": 5, "batch_size": 50, "random_state": 0}
    model = VaDE(10, **options).fit(X)
    found = report(model, X, y, eps=[0, 25.5])
    floats = report(model, (X / 255).astype(np.float32), y, eps=[0, 0.1])
    assert found.box == (0, 255)
    for a, b in zip(found.points, floats.points, strict=True):
        assert a.consistency == pytest.approx(b.consistency, abs=0.011)
        assert a.max_delta == pytest.approx(255 * b.max_delta, rel=1e-6)
    assert found.points[-1].consistency < 1


def test_columns_of_gaussian_rows_are_attacked_within_their_range_in_any_unit() -> None:
    X = np.random.RandomState(0).randn(200, 4) @ np.diag([1, 2, 3, 0]) + [0, 100, 0, 7]
    options = {"hidden": (16,), "pretrain_epochs": 5, "epochs": 5, "batch_size": 50, "random_state": 0}
    one = report(VaDE(3, **options).fit(X), X, eps=[0, 0.5])
    large = report(VaDE(3, **options).fit(1024 * X), 1024 * X, eps=[0, 512])
    for a, b in zip(one.points, large.points, strict=True):
        assert a.consistency == pytest.approx(b.consistency, abs=0.011)
        assert b.max_delta == pytest.approx(1024 * a.max_delta, rel=1e-5)
    assert one.box == pytest.approx((X.min(), X.max()), rel=1e-6)
    x = np.concatenate([X, X[:1] + 1000])
    assert report(VaDE(3, **options).fit(X), x, eps=0).points[0].max_delta == 0  # rows outside the box stay there


def test_new_rows_may_be_few_and_clusters_one(digits: Any) -> None:
    X, y = digits
    with_one = [KMeans(1, n_init=1).fit(X), GaussianMixture(1, reg_covar=0.1).fit(X)]
    with_one.append(VaDE(1, hidden=(8,), pretrain_epochs=1, epochs=1, random_state=0).fit(X))
    for model in with_one:
        found = report(model, X[:3], y[:3], eps=[0.1])
        assert all(point.consistency == 1 for point in found.points)
        assert [point.gradient_norm for point in found.points] == [None, None, 0, 0]
        repr(found)


def test_the_two_assignments_are_attacked_by_their_own_scores(models: dict[str, Any], digits: Any) -> None:
    found = {
        assign: report(models["RobustVaDE"], *digits, attacks=["fgsm"], eps=[0, 0.05], assign=assign)
        for assign in ("embedding", "mixture")
    }
    for assign, one in found.items():
        assert assign in one.name
        labels = models["RobustVaDE"].predict(digits[0], assign=assign)
        assert one.points[0].acc == pytest.approx(clustering_accuracy(digits[1], labels))
    assert found["embedding"].points[1].gradient_norm != found["mixture"].points[1].gradient_norm


# Scores with a gradient.


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_scores_of_mixtures_are_those_of_scikit_learn(kind: str) -> None:
    X = np.random.RandomState(0).randn(100, 4) ** 3
    mixture = GaussianMixture(3, covariance_type=kind, random_state=0, reg_covar=1e-3).fit(X)
    scores = _attacks.scores_of(mixture)(torch.from_numpy(X))
    assert np.allclose(scores.numpy(), mixture._estimate_weighted_log_prob(X), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("kind", [KMeans, MiniBatchKMeans])
def test_scores_of_centres_differ_as_squared_distances_do(kind: type) -> None:
    X = np.random.RandomState(0).randn(100, 4) + 50
    model = kind(5, n_init=1, random_state=0).fit(X)
    scores = _attacks.scores_of(model)(torch.from_numpy(X)).numpy()
    expected = -(model.transform(X) ** 2)
    assert np.allclose(scores - scores[:, :1], expected - expected[:, :1], atol=1e-9)


@pytest.mark.parametrize(
    "step",
    [
        StandardScaler(),
        StandardScaler(with_mean=False),
        StandardScaler(with_std=False),
        MinMaxScaler((-1, 2)),
        MinMaxScaler(clip=True),
        MaxAbsScaler(),
        RobustScaler(),
        RobustScaler(with_centering=False),
        PCA(3),
        PCA(3, whiten=True),
        TruncatedSVD(3),
        "passthrough",
    ],
    ids=lambda step: str(step).replace("\n", ""),
)
def test_scalers_and_projections_of_a_pipeline_are_followed(step: Any) -> None:
    X = np.random.RandomState(0).randn(100, 5) * [1, 2, 3, 4, 5] + 3
    pipeline = make_pipeline(step, GaussianMixture(3, random_state=0)).fit(X)
    given = pipeline[-1]._estimate_weighted_log_prob(pipeline[:-1].transform(X))
    assert np.allclose(_attacks.scores_of(pipeline)(torch.from_numpy(X)).numpy(), given, rtol=1e-9, atol=1e-9)
    found = report(pipeline, X, attacks="pgd", eps=[0, 2.0])
    assert found.points[1].consistency < found.points[0].consistency == 1
    assert found.name.endswith("GaussianMixture")


def test_any_model_can_be_attacked_by_its_scores() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 20), torch.nn.ReLU(), torch.nn.Linear(20, 3))
    X = np.random.RandomState(0).rand(60, 3, 4)
    found = report(None, X, eps=[0, 0.3], scores=network)
    assert found.name == "Sequential"
    assert found.points[-1].consistency < 0.5 < found.points[-2].consistency == 1
    assert all(p.grad is None for p in network.parameters())

    class Model:
        def predict(self, X: NDArray[np.float64]) -> NDArray[np.int64]:
            with torch.no_grad():
                return network(torch.from_numpy(X).float()).argmax(1).numpy()

    same = report(Model(), X, eps=[0, 0.3], scores=network)
    assert [p.consistency for p in same.points] == pytest.approx([p.consistency for p in found.points], abs=0.02)


def test_a_gradient_that_vanishes_is_told() -> None:
    X = np.random.RandomState(0).rand(50, 2)

    def scores(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, 0] * 0, x[:, 0] * 0 - 1], 1)

    with pytest.warns(RuntimeWarning, match="the gradient of the margin is exactly 0 in 50 of 50 rows"):
        report(None, X, eps=[0.1], scores=scores)


# The report.


def test_a_report_can_be_kept_as_json_and_shown_as_a_table(found: RobustnessReport) -> None:
    again = RobustnessReport.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert again == found
    frame = found.to_frame()
    assert frame.loc[(frame.attack == "pgd") & (frame.eps == 0.1), "acc"].item() == points(found, "pgd")[2].acc
    lines = repr(found).splitlines()
    assert lines[0].startswith(f"RobustnessReport: {found.name}")
    assert sum(line.split()[0] == "pgd" for line in lines) == 2
    assert all(len(line) <= 120 for line in lines)
    assert "ACC" not in repr(RobustnessReport(found.name, 5, 2, (0, 1), None, found.points))
    with pytest.raises(ValueError, match="no dictionary of a report"):
        RobustnessReport.from_dict({"name": "x"})
    good = found.to_dict()
    point = good["points"][0]
    for wrong in (
        {"name": 3},
        {"n_rows": "3"},
        {"n_clusters": True},
        {"box": [0]},
        {"box": ["0", 1]},
        {"clean": [1]},
        {"clean": {"acc": 1}},
        {"clean": {"acc": "1", "nmi": 1, "ari": 1}},
        {"points": 3},
        {"points": [{**point, "eps": "0.1"}]},
        {"points": [{**point, "attack": None}]},
        {"points": [{**point, "consistency": [1]}]},
        {"points": [{**point, "gradient_norm": "1"}]},
        {"points": ["a"]},
    ):
        with pytest.raises(ValueError, match="this is no dictionary of a report"):
            RobustnessReport.from_dict({**good, **wrong})
    other = {**point, "attack": "another", "eps": 7.0}
    assert "nan" in repr(RobustnessReport.from_dict({**good, "points": [*good["points"], other]}))


def test_without_classes_there_is_consistency_alone(models: dict[str, Any], digits: Any) -> None:
    found = report(models["KMeans"], digits[0], eps=[0.1])
    assert found.clean is None
    assert found.points[0].acc is None
    with pytest.raises(ValueError, match="the report has no measure 'acc' of 'pgd'"):
        found.curve("pgd", "acc")
    with pytest.raises(ValueError, match="attack must be one of the report's"):
        found.curve("deepfool")


def test_sizes_are_shares_of_the_box_where_none_are_given(models: dict[str, Any], digits: Any) -> None:
    X = digits[0]
    of_units = report(models["KMeans"], X, attacks="gaussian")
    assert [point.eps for point in of_units.points] == [0.02, 0.05, 0.1, 0.2]
    large = KMeans(10, n_init=3, random_state=0).fit(16 * X)
    assert [point.eps for point in report(large, 16 * X, attacks="gaussian").points] == [0.32, 0.8, 1.6, 3.2]


SOME = np.random.RandomState(0).rand(30, 3)
MODEL = KMeans(3, n_init=1, random_state=0).fit(SOME)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attacks": ["deepfool"]}, "attacks must be some of .*, got 'deepfool'"),
        ({"attacks": []}, "attacks must name each at most once and one at least"),
        ({"attacks": ["pgd", "pgd"]}, "attacks must name each at most once"),
        ({"eps": [-0.1]}, "eps must be non-negative and finite, got -0.1"),
        ({"eps": [math.nan]}, "eps must be non-negative and finite, got nan"),
        ({"eps": ["a"]}, "eps must be non-negative and finite, got 'a'"),
        ({"eps": []}, "eps must hold each size at most once and one at least"),
        ({"steps": 0}, "steps must be a positive integer, got 0"),
        ({"steps": 1.5}, "steps must be a positive integer, got 1.5"),
        ({"step_size": 0}, "step_size must be positive and finite, got 0"),
        ({"clip": (1, 0)}, "clip must have low <= high"),
        ({"clip": 3}, r"clip must be 'auto' or a pair \(low, high\)"),
        ({"clip": "none"}, "clip must be 'auto' or a pair"),
        ({"clip": (0, np.ones(7))}, r"a row's shape \(3,\)"),
        ({"clip": (-math.inf, math.inf), "eps": [1]}, "salt_pepper needs a box of finite width"),
        ({"clip": (-math.inf, math.inf), "attacks": "fgsm"}, "eps must be given where clip is infinite"),
        ({"y": [0, 1]}, "y must have a class for each row of X, got 2 for 30 rows"),
        ({"assign": "mixture"}, "assign"),
        ({"random_state": "x"}, "seed"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_bad_requests_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        report(MODEL, SOME, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: BisectingKMeans(3, random_state=0).fit(SOME), "BisectingKMeans has no scores", id="tree"),
        pytest.param(
            lambda: make_pipeline(Normalizer(), KMeans(3, n_init=1)).fit(SOME),
            "Normalizer in the pipeline has no gradient",
            id="step",
        ),
    ],
)
def test_estimators_without_a_gradient_have_the_noises_alone(make: Callable[[], Any], message: str) -> None:
    model = make()
    with pytest.raises(ValueError, match=message + ".*possible are .*'gaussian', 'salt_pepper'"):
        report(model, SOME)
    assert len(report(model, SOME, attacks=["gaussian", "salt_pepper"], eps=[0.1]).points) == 2


def test_scores_that_are_none_are_named() -> None:
    centers = torch.from_numpy(MODEL.cluster_centers_)
    cases: list[tuple[Any, str]] = [
        (lambda x: x[:, 0], r"scores must give a tensor \(30, K\) of 30 rows, got \(30,\)"),
        (lambda x: -(x.detach()[:, None] - centers).square().sum(2), "scores must be differentiable"),
        (lambda x: -x, "the labels must be columns|the largest score is that of the label in .* of the rows only"),
    ]
    for scores, message in cases:
        with pytest.raises(ValueError, match=message):
            report(MODEL, SOME, scores=scores, attacks="fgsm")
    with pytest.raises(TypeError, match="scores must be a function"):
        report(MODEL, SOME, scores=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="estimator may be None only with scores"):
        report(None, SOME)


def test_rows_that_are_none_are_named() -> None:
    wrong = SOME.copy()
    wrong[7, 1] = math.nan

    def scores(x: torch.Tensor) -> torch.Tensor:
        return x

    with pytest.raises(ValueError, match="Input X contains NaN or infinity in row 7"):
        report(None, wrong, scores=scores)
    with pytest.raises(ValueError, match="NaN"):
        report(MODEL, wrong)
    with pytest.raises(ValueError, match="4 features"):
        report(MODEL, np.zeros((5, 4)))
    with pytest.raises(ValueError, match=r"at least one row and one feature, got shape \(0, 3\)"):
        report(None, SOME[:0], scores=scores)
    with pytest.raises(ValueError, match="X must hold numbers"):
        report(None, [["a", "b"]], scores=scores)
    with pytest.raises(TypeError, match="X must be an array, a table, a sparse matrix or a tensor"):
        report(None, iter(SOME), scores=scores)
    with pytest.raises(TypeError, match="estimator must have `predict`"):
        report(DBSCAN().fit(SOME), SOME)
