"""Pictures are drawn on the axes they are given, tell what they show, and stand any number of clusters."""

from __future__ import annotations

import subprocess
import sys
import warnings
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError

matplotlib = pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402

from vade_robust import RobustVaDE, plot  # noqa: E402
from vade_robust.robustness import RobustnessReport, report  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

X = load_digits().data[:300] / 16
Y = load_digits().target[:300]


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def model() -> RobustVaDE:
    options = {"hidden": (32,), "pretrain_epochs": 4, "epochs": 3, "batch_size": 100, "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return RobustVaDE(5, **options).fit(X)


@pytest.fixture(scope="module")
def reports() -> list[RobustnessReport]:
    models = [KMeans(10, n_init=1, random_state=seed).fit(X) for seed in range(3)]
    return [report(model, X, Y, eps=[0.05, 0.1], steps=2) for model in models]


def rendered(ax: Axes) -> np.ndarray[Any, Any]:
    """The picture's pixels, which a warning of its layout would make fail."""
    ax.figure.savefig(file := BytesIO(), format="png", dpi=50)
    file.seek(0)
    return np.asarray(pyplot.imread(file))


def texts(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    return [text.get_text() for text in ax.texts] + ([t.get_text() for t in legend.get_texts()] if legend else [])


def drawings(model: RobustVaDE, reports: list[RobustnessReport]) -> dict[str, Any]:
    words = [f"word {i}" for i in range(64)]
    return {
        "embedding": lambda ax: plot.embedding(model, X, ax=ax),
        "samples_per_cluster": lambda ax: plot.samples_per_cluster(model, X, ax=ax),
        "words": lambda ax: plot.samples_per_cluster(model, X, feature_names=words, ax=ax),
        "robustness_curves": lambda ax: plot.robustness_curves(reports, ax=ax),
        "report": lambda ax: reports[0].plot(ax),
        "history": lambda ax: plot.history(model, ax=ax),
        "occupancy": lambda ax: plot.history(model, "occupancy", ax=ax),
    }


@pytest.mark.parametrize(
    "name", ["embedding", "samples_per_cluster", "words", "robustness_curves", "report", "history", "occupancy"]
)
def test_pictures_have_titles_and_go_where_they_are_told(
    name: str, model: RobustVaDE, reports: list[RobustnessReport]
) -> None:
    draw = drawings(model, reports)[name]
    ax = draw(None)
    assert ax.get_title() or ax.get_title("left")
    assert rendered(ax).std() > 0.02
    _, mine = pyplot.subplots()
    figures = pyplot.get_fignums()
    assert draw(mine) is mine
    assert pyplot.get_fignums() == figures


@pytest.mark.parametrize("n_clusters", [1, 2, 10, 11, 13, 61, 100])
def test_maps_stand_any_number_of_clusters(n_clusters: int) -> None:
    random = np.random.RandomState(0)
    labels = np.arange(500) % n_clusters
    points = random.randn(n_clusters, 4)[labels] * 5 + random.randn(500, 4)
    ax = plot.embedding(None, points, labels)
    rendered(ax)
    assert ax.get_title() == f"{n_clusters} cluster{'s' * (n_clusters > 1)}, 500 rows"
    assert (ax.get_legend() is not None) == (n_clusters <= 12)
    assert len(ax.texts) == (n_clusters if n_clusters <= 60 else 0)
    colours = {tuple(colour[:3]) for colour in ax.collections[0].get_facecolors()}
    assert len(colours) == min(n_clusters, 10)


def test_near_clusters_of_many_have_different_colours() -> None:
    medians = np.stack(np.meshgrid(range(6), range(6)), -1).reshape(-1, 2).astype(float)
    colours = plot._colours(np.arange(36), medians, 36)
    distances = np.square(medians[:, None] - medians).sum(2)
    same = np.array(colours)[:, None] == np.array(colours)
    assert distances[same & (distances > 0)].min() > 1


def test_colours_can_be_told_apart_without_red_or_green_cones() -> None:
    """Machado, Oliveira and Fernandes, 2009: protanopia and deuteranopia in linear RGB."""
    kinds = {
        "protanopia": [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        "deuteranopia": [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.01182, 0.04294, 0.968881],
        ],
    }
    rgb = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in plot.PALETTE])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    for matrix in (np.eye(3), *map(np.array, kinds.values())):
        xyz = (linear @ matrix.T).clip(0, 1) @ to_xyz.T / [0.9505, 1, 1.089]
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
        distances = np.sqrt(np.square(lab[:, None] - lab).sum(2))
        assert distances[np.triu_indices(len(lab), 1)].min() > 10


def test_empty_clusters_and_samples_of_the_rows_are_told() -> None:
    class Model:
        n_clusters = 7

        def transform(self, X: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return X[:, :5]

        def predict(self, X: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return np.arange(len(X)) % 5

    ax = plot.embedding(Model(), X, max_rows=100)
    assert ax.get_title() == "Model: 5 clusters (2 empty), 100 of 300 rows"
    assert [text for text in texts(ax) if "(" in text] == [
        f"{c}  ({n})" for c, n in zip(range(5), [60] * 5, strict=True)
    ]


def test_names_replace_numbers_and_long_ones_are_shortened() -> None:
    names = [f"an extremely long name of a class, which is number {i}" for i in range(3)]
    ax = plot.embedding(None, X[:, 20:24], Y % 3, names=names)
    shown = [text for text in texts(ax) if "number" in text or "…" in text]
    assert [text.split("  ")[0][-2:] for text in shown] == [" 0", " 1", " 2"]
    assert all(len(text) < 40 for text in shown)
    assert texts(plot.embedding(None, X, Y % 3, names={0: "zero"}))[-3:][0].startswith("zero")


@pytest.mark.parametrize("n_features", [1, 2, 3])
def test_points_of_any_dimension_and_tensors_are_drawn(n_features: int) -> None:
    points = torch.randn(50, n_features, generator=torch.Generator().manual_seed(0))
    rendered(plot.embedding(None, points, torch.arange(50) % 3))
    rendered(plot.embedding(None, np.ones((4, n_features)), ["a", "b", "c", "d"]))


def test_a_projection_of_the_users_is_used() -> None:
    ax = plot.embedding(None, X, Y, projection=lambda points: points[:, 10:12])
    assert np.allclose(np.sort(ax.collections[0].get_offsets()[:, 0]), np.sort(X[:, 10]))
    with pytest.raises(ValueError, match=r"projection must give points \(300, 2\), got shape \(300, 64\)"):
        plot.embedding(None, X, Y, projection=lambda points: points)


@pytest.mark.parametrize("n_clusters", [1, 10, 26, 100])
@pytest.mark.parametrize("order", ["typical", "random"])
def test_images_of_every_cluster_are_shown(n_clusters: int, order: str) -> None:
    labels = np.arange(300) % n_clusters
    ax = plot.samples_per_cluster(None, X, labels, n=5, order=order)
    rendered(ax)
    shown = ax.texts if n_clusters > 25 else ax.get_yticklabels()
    assert [text.get_text().split("  ")[0] for text in shown] == [str(c) for c in range(n_clusters)]


def test_typical_rows_come_first_and_images_are_those_of_the_rows() -> None:
    images = np.arange(12).reshape(12, 1, 1) / 11 * np.ones((12, 8, 8))
    labels = np.repeat([0, 1], 6)
    canvas = plot.samples_per_cluster(None, images, labels, n=2).images[0].get_array()
    shown = 1 - np.asarray(canvas)[4, [4, 13], 0]
    assert sorted((shown * 11).round().tolist()) == [2, 3]
    colour = np.random.RandomState(0).rand(4, 3, 8, 8)
    canvas = plot.samples_per_cluster(None, colour, [0, 0, 1, 1], n=1, order="random").images[0].get_array()
    low, high = colour.min(), colour.max()
    drawn = [np.allclose(canvas[:8, :8], (np.moveaxis(image, 0, -1) - low) / (high - low)) for image in colour[:2]]
    assert any(drawn)


def test_words_that_are_telling_are_shown() -> None:
    counts = np.array([[5, 0, 1, 1], [4, 0, 1, 1], [0, 3, 1, 1], [0, 2, 1, 1]], dtype=float)
    names = ["ball", "vote", "the", "a"]
    for given in (counts, scipy.sparse.csr_array(counts)):
        ax = plot.samples_per_cluster(None, given, [0, 0, 1, 1], feature_names=names)
        rendered(ax)
        assert texts(ax) == ["ball", "vote"]
    assert texts(plot.samples_per_cluster(None, counts, [0] * 4, feature_names=names, n=2)) == ["ball, vote"]
    long = [f"{'very' * 30} long {i}" for i in range(4)]
    assert len(texts(plot.samples_per_cluster(None, counts, [0, 0, 1, 1], feature_names=long))[0]) <= 110


def test_curves_start_at_the_unchanged_rows_and_show_what_is_asked_for(reports: list[RobustnessReport]) -> None:
    ax = reports[0].plot(unit="pixels")
    assert ax.get_xlabel() == "eps (pixels)"
    assert [line.get_xdata().tolist() for line in ax.lines] == [[0, 0.05, 0.1]] * 4
    assert reports[0].clean is not None
    assert {line.get_ydata()[0] for line in ax.lines} == {reports[0].clean["acc"]}
    ax = plot.robustness_curves(reports, measure="consistency", attacks=["pgd"])
    assert len(ax.lines) == 3
    assert texts(ax) == ["KMeans", "KMeans 2", "KMeans 3"]
    ax = plot.robustness_curves({"three seeds": reports, "one": reports[0]}, measure="nmi")
    assert len(ax.lines) == 4
    assert len(ax.collections) == 2
    for measure in ("ari", "gradient_norm", "max_delta"):
        rendered(plot.robustness_curves(reports, measure=measure))


def test_histories_show_a_phase(model: RobustVaDE) -> None:
    assert plot.history(model).lines[0].get_xdata().tolist() == [1, 2, 3]
    assert plot.history(model, phase="pretrain").lines[0].get_xdata().tolist() == [1, 2, 3, 4]
    assert len(plot.history(model.history_, "occupancy").lines) == 6


def test_bad_requests_are_named(model: RobustVaDE, reports: list[RobustnessReport]) -> None:
    requests: list[tuple[Any, str]] = [
        (lambda: plot.embedding(None, X), "labels must be given"),
        (lambda: plot.embedding(None, X, Y[:9]), r"labels must be one for each of the 300 rows, got shape \(9,\)"),
        (lambda: plot.embedding(None, X[:0], []), r"a row at least, got shape \(0, 64\)"),
        (lambda: plot.embedding(None, X, Y, projection="tsne"), "projection must be 'pca' or a function"),
        (lambda: plot.samples_per_cluster(None, X), "labels must be given"),
        (lambda: plot.samples_per_cluster(None, X, Y, n=0), "n must be a positive integer, got 0"),
        (lambda: plot.samples_per_cluster(None, X, Y, order="best"), "order must be 'typical' or 'random'"),
        (lambda: plot.samples_per_cluster(None, X, Y, shape=(9, 9)), r"of 64 values, got \(9, 9\)"),
        (lambda: plot.samples_per_cluster(None, X[:, :16], Y), r"rows of shape \(16,\) are no images"),
        (lambda: plot.samples_per_cluster(None, X, Y, feature_names=["a"]), "one for each column of X"),
        (lambda: plot.robustness_curves([]), "reports must hold at least one report"),
        (lambda: plot.robustness_curves(reports, measure="f1"), "measure must be one of"),
        (lambda: plot.robustness_curves(reports, attacks=["cw"]), "attack must be one of the report's"),
        (lambda: plot.history(model, "accuracy"), "measure must be one that the history has"),
        (lambda: plot.history(model, phase="end"), "phase must be None, 'pretrain' or 'train'"),
    ]
    with pytest.raises(NotFittedError, match="not fitted yet"):
        plot.history(RobustVaDE())
    for draw, message in requests:
        with pytest.raises(ValueError, match=message):
            draw()


def test_without_matplotlib_the_extra_is_named() -> None:
    code = "import sys; sys.modules['matplotlib'] = None\nimport vade_robust.robustness, vade_robust.plot"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: vade_robust.plot needs matplotlib: pip install 'vade-robust[plot]'" in done.stderr
