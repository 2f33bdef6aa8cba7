"""Pictures of a clustering: its map, its typical rows, its robustness, its training; needs `vade-robust[plot]`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
from sklearn.utils.validation import check_is_fitted

try:
    import matplotlib.patheffects as effects
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator, PercentFormatter
except ImportError as error:
    raise ImportError("vade_robust.plot needs matplotlib: pip install 'vade-robust[plot]'") from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from .robustness import RobustnessReport

__all__ = ["PALETTE", "embedding", "history", "robustness_curves", "samples_per_cluster"]

PALETTE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#332288",
    "#999933",
    "#882255",
    "#767676",
)
"""Ten colours that people with any colour vision can tell apart: those of Okabe and Ito, then some of Tol's."""

INK, FAINT = "#222222", "#D9D9D9"
NAMES = {"gaussian": "Gaussian noise", "salt_pepper": "salt and pepper", "fgsm": "FGSM", "pgd": "PGD"}
STYLES = {"gaussian": (0, (1, 1.2)), "salt_pepper": (0, (4, 1.5)), "fgsm": (0, (6, 1.5, 1, 1.5)), "pgd": "-"}
MARKERS = {"gaussian": "s", "salt_pepper": "D", "fgsm": "^", "pgd": "o"}
MEASURES = {
    "consistency": "rows that keep their cluster",
    "acc": "ACC (clusters matched on unchanged rows)",
    "nmi": "NMI",
    "ari": "ARI",
    "gradient_norm": "norm of the margin's gradient",
    "max_delta": "largest change of a feature",
}
LEGEND = 12  # clusters at most that a legend lists
NUMBERS = 60  # clusters at most that are numbered on the map
COLUMN = 25  # clusters at most in a column of samples
LINE = 110  # characters of a line of words


def embedding(
    estimator: Any,
    X: Any,
    labels: Any = None,
    *,
    projection: str | Callable[[NDArray[Any]], Any] = "pca",
    space: str | None = None,
    names: Mapping[Any, str] | Sequence[str] | None = None,
    max_rows: int = 20_000,
    random_state: int = 0,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws the rows as points on a plane, coloured by cluster, with the clusters' numbers at their middles.

    Up to ten clusters have colours of their own; of more, clusters that lie near each other have different ones.

    Args:
        estimator: A fitted `RobustVaDE` or `VaDE`, or any with `transform` and `predict`. None: X are the points.
        X: The rows, or the points [N, D].
        labels: What to colour by [N]: numbers or names, of clusters or of classes; default: `estimator.predict(X)`.
        projection: What makes two dimensions of more: "pca", or a function of points [N, D] to [N, 2] such as
            `umap.UMAP().fit_transform`.
        space: Of `RobustVaDE.transform`: "embedding" or "latent"; default: that of the estimator.
        names: Of the labels, for the legend and the map: a mapping, or a sequence that labels are places in.
        max_rows: Rows at most; more are sampled, which the title tells.
        random_state: Of the sample and of the order in which points are drawn.
        title: Instead of the usual one.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: If there are no points, labels are not as many as rows, or there are no labels.

    >>> from sklearn.datasets import load_iris
    >>> from vade_robust import plot
    >>> X, y = load_iris(return_X_y=True)
    >>> ax = plot.embedding(None, X, y, names=["setosa", "versicolor", "virginica"])
    >>> ax.figure.savefig("iris.png")  # doctest: +SKIP
    """
    if estimator is None:
        points = _array(X)
        if labels is None:
            raise ValueError("labels must be given where there is no estimator to predict them")
    else:
        points = _array(estimator.transform(X, **({} if space is None else {"space": space})))
    codes, keys = _labels(labels if labels is not None else estimator.predict(X), len(points))
    if points.ndim != 2 or not points.size:
        raise ValueError(f"points must be a matrix [N, D] with a row at least, got shape {points.shape}")
    random = np.random.RandomState(random_state)
    order = random.permutation(len(points))[:max_rows]
    counts = np.bincount(codes, minlength=len(keys))
    n_rows, points, codes = len(points), points[order].astype(np.float64), codes[order]
    plane, axes = _plane(points, projection)

    present = np.unique(codes)
    medians = np.array([_middle(plane[codes == c]) for c in present])
    colours = dict(zip(present.tolist(), _colours(present, medians, len(keys)), strict=True))
    created = ax is None
    if ax is None:
        _, ax = pyplot.subplots(figsize=(6.4, 5.2), layout="constrained")
    size = float(np.clip(20_000 / len(plane), 2, 30))
    ax.scatter(
        plane[:, 0],
        plane[:, 1],
        s=size,
        c=[colours[c] for c in codes.tolist()],
        alpha=0.75 if len(plane) > 300 else 0.9,
        linewidths=0,
        rasterized=len(plane) > 2000,
    )
    shown = {c: _name(keys[c], names) for c in present.tolist()}
    few = len(present) <= LEGEND
    if len(present) <= NUMBERS:
        halo = [effects.withStroke(linewidth=2.5, foreground="white")]
        for c, place in zip(present.tolist(), medians, strict=True):
            text = str(keys[c]) if few and names is not None else _short(shown[c], 14)
            weight: dict[str, Any] = {"weight": "bold", "size": 10 if len(present) <= 30 else 8}
            ax.text(
                place[0], place[1], _short(text, 14), ha="center", va="center", color=INK, path_effects=halo, **weight
            )
    if few:
        handles = [
            Line2D([], [], marker="o", linestyle="", markersize=6, markeredgewidth=0, color=colours[c])
            for c in present.tolist()
        ]
        texts = [f"{_short(shown[c], 24)}  ({counts[c]:,})" for c in present.tolist()]
        where: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0.0}
        ax.legend(handles, texts, title="cluster (rows)", frameon=False, fontsize=9, alignment="left", **where)
    if title is None:
        title = "" if estimator is None else f"{type(estimator).__name__}: "
        clusters = f"{len(present)} cluster{'s' * (len(present) != 1)}"
        empty = int(getattr(estimator, "n_clusters", 0) or 0) - len(present) if labels is None else 0
        title += clusters + (f" ({empty} empty)" if empty > 0 else "")
        title += f", {len(plane):,} of {n_rows:,} rows" if len(plane) < n_rows else f", {n_rows:,} rows"
    ax.set(xlabel=axes[0], ylabel=axes[1], title=title)
    ax.set_aspect("equal", "datalim")
    if created:
        ax.margins(0.04)
    _clean(ax)
    return ax


def samples_per_cluster(
    estimator: Any,
    X: Any,
    labels: Any = None,
    *,
    n: int = 10,
    order: str = "typical",
    shape: tuple[int, ...] | None = None,
    feature_names: Sequence[str] | None = None,
    names: Mapping[Any, str] | Sequence[str] | None = None,
    random_state: int = 0,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws a row of images for every cluster, or its telling words.

    Words are those whose mean in the cluster exceeds the mean of all rows most.

    Args:
        estimator: A fitted estimator with `predict`; None where `labels` are given.
        X: Images (N, H, W), (N, C, H, W) or rows [N, P] that are images of `shape`; with `feature_names` texts [N, P],
            such as tf-idf, sparse or not.
        labels: The clusters [N]; default: `estimator.predict(X)`.
        n: Images or words of a cluster; default 10.
        order: "typical": those with the largest membership by `predict_proba`, or nearest to the mean of their cluster
            without it; "random": a sample of the cluster.
        shape: (H, W) or (C, H, W) of a row; default: that of X, or a square.
        feature_names: Of the columns of X: words are drawn then.
        names: Of the clusters: a mapping, or a sequence that labels are places in.
        random_state: Of the sample.
        title: Instead of the usual one.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: If rows are no images and have no names of features, or an argument breaks a rule.

    >>> from sklearn.cluster import KMeans
    >>> from sklearn.datasets import load_digits
    >>> from vade_robust import plot
    >>> X, _ = load_digits(return_X_y=True)
    >>> ax = plot.samples_per_cluster(KMeans(10, n_init=1).fit(X), X)
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"n must be a positive integer, got {n!r}")
    if order not in ("typical", "random"):
        raise ValueError(f"order must be 'typical' or 'random', got {order!r}")
    if labels is None and estimator is None:
        raise ValueError("labels must be given where there is no estimator to predict them")
    rows = X if scipy.sparse.issparse(X) else _array(X)
    codes, keys = _labels(labels if labels is not None else estimator.predict(X), rows.shape[0])
    if not rows.shape[0]:
        raise ValueError("X must have at least one row, got none")
    heads = []
    for c, key in enumerate(keys):
        heads.append((_name(key, names), int((codes == c).sum())))
    if feature_names is not None:
        return _words(rows, codes, heads, n, feature_names, title, ax)
    rows = _array(rows)
    shape = _image_shape(rows.shape[1:], shape)
    closeness = _closeness(estimator if labels is None else None, X, rows, codes, len(keys))
    random = np.random.RandomState(random_state)
    chosen = []
    for c in range(len(keys)):
        members = np.flatnonzero(codes == c)
        if order == "random":
            members = np.sort(random.permutation(members)[:n])
        else:
            members = members[np.argsort(-closeness[members], kind="stable")[:n]]
        chosen.append(members)
    return _images(rows, chosen, heads, n, shape, order, title, ax)


def robustness_curves(
    reports: RobustnessReport
    | Sequence[RobustnessReport]
    | Mapping[str, RobustnessReport | Sequence[RobustnessReport]],
    *,
    measure: str | None = None,
    attacks: Iterable[str] | None = None,
    unit: str = "units of X",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws a measure against the size of the attack, for one estimator or several.

    Args:
        reports: A report; or several; or a mapping of the names that the legend shows to a report each, or to reports
            of several seeds: then the line is their mean, and the band reaches from the least to the largest.
        measure: "acc", "nmi", "ari", "consistency", "gradient_norm" or "max_delta"; default: "acc" if all reports
            have it, else "consistency".
        attacks: Which; default: all of one estimator; of several Gaussian noise and PGD, as far as all reports have
            them.
        unit: That of eps, for the axis.
        title: Instead of the usual one.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: If there are no reports, or a report has no such attack or measure.

    >>> from sklearn.cluster import KMeans
    >>> from sklearn.datasets import load_iris
    >>> from vade_robust import plot, robustness
    >>> X, y = load_iris(return_X_y=True)
    >>> found = robustness.report(KMeans(3, n_init=1, random_state=0).fit(X), X, y)
    >>> ax = plot.robustness_curves({"KMeans": found}, unit="cm")
    """
    groups = _groups(reports)
    every = [report for group in groups.values() for report in group]
    common = [name for name in NAMES if all(name in report.attacks for report in every)]
    if measure is None:
        measure = "acc" if all(report.clean is not None for report in every) else "consistency"
    if measure not in MEASURES:
        raise ValueError(f"measure must be one of {list(MEASURES)}, got {measure!r}")
    if attacks is not None:
        chosen = [attacks] if isinstance(attacks, str) else list(attacks)
    elif measure == "gradient_norm":
        chosen = [name for name in common if name in ("fgsm", "pgd")]
    elif len(groups) == 1:
        chosen = common
    else:
        chosen = [name for name in common if name in ("gaussian", "pgd")] or common[:1]
    if not chosen:
        raise ValueError(f"the reports have no attack in common: {[list(report.attacks) for report in every]}")
    created = ax is None
    if ax is None:
        _, ax = pyplot.subplots(figsize=(6.8, 4.2), layout="constrained")
    by_attack = len(groups) == 1
    largest = 0.0
    for i, (label, group) in enumerate(groups.items()):
        for j, attack in enumerate(chosen):
            sizes, values = _curves(group, attack, measure)
            colour = PALETTE[(j if by_attack else i) % len(PALETTE)]
            line: dict[str, Any] = {
                "color": colour,
                "linestyle": STYLES[attack],
                "marker": MARKERS[attack],
                "label": label,
            }
            mean = values.mean(0)
            largest = max(largest, float(np.nanmax(values)))
            if len(values) > 1:
                ax.fill_between(sizes, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
            ax.plot(sizes, mean, linewidth=1.8, markersize=4.5, clip_on=False, zorder=3, **line)
    _curve_legends(ax, groups, chosen, by_attack)
    if measure in ("acc", "consistency", "nmi", "ari"):
        ax.set_ylim(min(0.0, ax.get_ylim()[0] if measure == "ari" else 0.0), 1.0 if largest > 0.6 else None)
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.1f}" if measure in ("nmi", "ari") else f"{value:.0%}")
    else:
        ax.set_ylim(bottom=0)
    ax.set_xlim(left=0)
    if title is None:
        title = f"{next(iter(groups))}: " if by_attack else ""
        title += f"{every[0].n_rows:,} rows"
        if max(map(len, groups.values())) > 1:
            title += ", mean and range of seeds"
        title = title[0].upper() + title[1:]
    ax.set(xlabel=f"eps ({unit})", ylabel=MEASURES[measure], title=title)
    ax.grid(axis="y", color=FAINT, linewidth=0.8)
    ax.set_axisbelow(True)
    if created:
        ax.margins(x=0.02)
    _clean(ax)
    return ax


def history(
    estimator: Any,
    measure: str = "loss",
    *,
    phase: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws what was measured in every epoch of a fit.

    Args:
        estimator: A fitted `RobustVaDE` or `VaDE`, or its `history_`.
        measure: A key of the history, such as "loss", "reconstruction", "cluster", "locality", "mutual_information",
            "lr" or "seconds"; "occupancy" draws the share of rows of each cluster, and the line below which a
            cluster counts as collapsed.
        phase: "train" or "pretrain", whose losses are not the same; default: "train" if it has the measure.
        title: Instead of the usual one.
        ax: Axes to draw on; default: a new figure.

    Returns:
        The axes.

    Raises:
        NotFittedError: If the estimator has no history yet.
        ValueError: If the history has no such measure.

    >>> from sklearn.datasets import load_iris
    >>> from vade_robust import VaDE, plot
    >>> model = VaDE(3, hidden=(16,), pretrain_epochs=2, epochs=3, random_state=0).fit(load_iris().data)
    >>> ax = plot.history(model)
    """
    if not isinstance(estimator, list):
        check_is_fitted(estimator, "history_")
    records = estimator if isinstance(estimator, list) else estimator.history_
    phases = {
        phase: [r for r in records if r.get("phase") == phase and measure in r] for phase in ("train", "pretrain")
    }
    if phase not in (None, *phases):
        raise ValueError(f"phase must be None, 'pretrain' or 'train', got {phase!r}")
    chosen = phase or ("train" if phases["train"] else "pretrain")
    drawn = phases[chosen]
    if not drawn:
        known = sorted({key for record in records for key in record} - {"phase", "epoch"})
        raise ValueError(f"measure must be one that the history has, {known}, got {measure!r}")
    if ax is None:
        _, ax = pyplot.subplots(figsize=(6.8, 3.8), layout="constrained")
    epochs = np.array([record["epoch"] for record in drawn])
    dots: dict[str, Any] = {"marker": "o", "markersize": 3} if len(drawn) < 20 else {}
    if measure == "occupancy":
        shares = np.array([record[measure] for record in drawn])
        n_clusters = shares.shape[1]
        for c in range(n_clusters):
            line: dict[str, Any] = {"color": PALETTE[c % len(PALETTE)], "alpha": 0.9 if n_clusters <= 20 else 0.5}
            ax.plot(epochs, shares[:, c], linewidth=1.5, **line, **dots)
        if n_clusters <= LEGEND:
            _ends(ax, float(epochs[-1]), shares[-1], float(shares.max()))
        limit = 0.1 / n_clusters
        ax.axhline(limit, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        note: dict[str, Any] = {"textcoords": "offset points", "va": "bottom", "fontsize": 9, "color": INK}
        ax.annotate("below: collapsed", (epochs[0], limit), xytext=(2, 2), **note)
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        ax.plot(epochs, [float(record[measure]) for record in drawn], color=PALETTE[0], linewidth=1.8, **dots)
    ax.margins(x=0.01)
    words = {"occupancy": "share of rows", "lr": "learning rate", "seconds": "seconds of an epoch"}
    label = words.get(measure, measure.replace("_", " "))
    if title is None:
        title = "" if isinstance(estimator, list) else f"{type(estimator).__name__}: "
        title += "rows of each cluster" if measure == "occupancy" else label
        title = title[0].upper() + title[1:]
    ax.set(xlabel="epoch" if chosen == "train" else "epoch of pretraining", ylabel=label, title=title)
    ax.grid(axis="y", color=FAINT, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _clean(ax)
    return ax


def _ends(ax: Axes, x: float, values: NDArray[Any], top: float) -> None:
    """Numbers of lines where they end; lines that end together share a text."""
    groups: list[list[int]] = []
    for c in np.argsort(values, kind="stable").tolist():
        if groups and values[c] - values[groups[-1][0]] < 0.04 * top:
            groups[-1].append(c)
        else:
            groups.append([c])
    for group in groups:
        style: dict[str, Any] = {"color": INK if len(group) > 1 else PALETTE[group[0] % len(PALETTE)], "fontsize": 8}
        style |= {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
        ax.annotate(", ".join(map(str, sorted(group))), (x, float(values[group].mean())), **style)


def _array(values: Any) -> NDArray[Any]:
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values.toarray() if scipy.sparse.issparse(values) else values)


def _labels(labels: Any, n_rows: int) -> tuple[NDArray[np.int64], list[Any]]:
    """Labels as places in the sorted list of those that occur."""
    labels = _array(labels)
    if labels.shape != (n_rows,):
        raise ValueError(f"labels must be one for each of the {n_rows} rows, got shape {labels.shape}")
    keys, codes = np.unique(labels, return_inverse=True)
    return codes.astype(np.int64), keys.tolist()


def _name(key: Any, names: Mapping[Any, str] | Sequence[str] | None) -> str:
    if names is None:
        return str(key)
    if isinstance(names, Mapping):
        return str(names.get(key, key))
    return str(names[key]) if isinstance(key, int) and 0 <= key < len(names) else str(key)


def _short(text: str, width: int) -> str:
    """At most so many characters, of both ends: names that begin alike often end unlike."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return text[: width - 1 - end].rstrip() + "…" + text[len(text) - end :].lstrip()


def _plane(points: NDArray[Any], projection: Any) -> tuple[NDArray[Any], tuple[str, str]]:
    if not isinstance(projection, str):
        plane = _array(projection(points)).astype(np.float64)
        if plane.shape != (len(points), 2):
            raise ValueError(f"projection must give points ({len(points)}, 2), got shape {plane.shape}")
        return plane, ("dimension 1", "dimension 2")
    if projection != "pca":
        raise ValueError(f"projection must be 'pca' or a function of points to [N, 2], got {projection!r}")
    if points.shape[1] == 1:
        return np.column_stack([points[:, 0], np.linspace(0, 1e-9, len(points))]), ("dimension 1", "")
    if points.shape[1] == 2:
        return points, ("dimension 1", "dimension 2")
    points = points - points.mean(0)
    _, spread, directions = np.linalg.svd(points, full_matrices=False)
    directions = directions[:2] * np.sign(directions[:2].sum(1, keepdims=True) + 1e-300)
    share = spread**2 / max(float((spread**2).sum()), np.finfo(float).tiny)
    plane = np.zeros((len(points), 2))
    plane[:, : len(directions)] = points @ directions.T
    share = np.append(share, 0.0)
    return plane, (f"component 1 ({share[0]:.0%} of variance)", f"component 2 ({share[1]:.0%} of variance)")


def _middle(points: NDArray[Any]) -> NDArray[Any]:
    """The point that is nearest to the median of all: a cluster of two parts has nothing in between."""
    nearest: NDArray[Any] = points[np.square(points - np.median(points, axis=0)).sum(1).argmin()]
    return nearest


def _colours(present: NDArray[Any], medians: NDArray[Any], n_labels: int) -> list[str]:
    """A colour for each cluster: its own as far as they go, else that whose other clusters are farthest away."""
    if n_labels <= len(PALETTE):
        return [PALETTE[c] for c in present.tolist()]
    given: list[int] = []
    for i, place in enumerate(medians):
        far = [math.inf] * len(PALETTE)
        for j, colour in enumerate(given):
            far[colour] = min(far[colour], float(np.square(place - medians[j]).sum()))
        given.append(int(np.argmax(far)) if i >= len(PALETTE) else i)
    return [PALETTE[colour] for colour in given]


def _image_shape(found: tuple[int, ...], shape: tuple[int, ...] | None) -> tuple[int, ...]:
    n_features = math.prod(found)
    if shape is None:
        side = math.isqrt(n_features)
        if len(found) in (2, 3):
            shape = found
        elif side >= 8 and side * side == n_features:
            shape = (side, side)
        else:
            raise ValueError(
                f"rows of shape {found} are no images: give `shape`, (H, W) or (C, H, W), or `feature_names` for words"
            )
    if len(shape) not in (2, 3) or math.prod(shape) != n_features or (len(shape) == 3 and shape[0] not in (1, 3)):
        raise ValueError(f"shape must be (H, W), (1, H, W) or (3, H, W) of {n_features} values, got {shape}")
    return tuple(shape)


def _closeness(estimator: Any, X: Any, rows: NDArray[Any], codes: NDArray[Any], n_labels: int) -> NDArray[Any]:
    """How typical of its cluster each row is."""
    if estimator is not None and hasattr(estimator, "predict_proba"):
        largest: NDArray[Any] = _array(estimator.predict_proba(X)).max(1)
        return largest
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    close = np.empty(len(rows))
    for c in range(n_labels):
        close[codes == c] = -np.square(flat[codes == c] - flat[codes == c].mean(0)).sum(1)
    return close


def _images(
    rows: NDArray[Any],
    chosen: list[NDArray[Any]],
    heads: list[tuple[str, int]],
    n: int,
    shape: tuple[int, ...],
    order: str,
    title: str | None,
    ax: Axes | None,
) -> Axes:
    """All images in one: clusters below each other, from 26 on in several columns."""
    height, width = shape[-2:]
    columns = -(-len(heads) // COLUMN)
    lines = -(-len(heads) // columns)
    gap = max(1, round(width / 14))
    wide = max(len(_short(head, 24)) for head, _ in heads)
    place = round((0.62 * max(wide, 4) + 1.2) * 0.42 * height) if columns > 1 else 0  # for the names of a column
    step = n * (width + gap) - gap
    band = place + step + 2 * gap
    canvas = np.full((lines * (height + gap) - gap, columns * band - 2 * gap, 3), np.nan)
    low, high = float(np.min(rows)), float(np.max(rows))
    for c, members in enumerate(chosen):
        column, line = divmod(c, lines)
        top = line * (height + gap)
        for i, member in enumerate(members.tolist()):
            image = rows[member].reshape(shape).astype(np.float64)
            image = (image - low) / (high - low) if high > low else np.zeros_like(image)
            left = column * band + place + i * (width + gap)
            colour = image[..., None] if image.ndim == 2 else np.moveaxis(image, 0, -1)
            grey = colour.shape[-1] == 1
            canvas[top : top + height, left : left + width] = 1 - colour if grey else colour
    if ax is None:
        cell = float(np.clip(12 / (lines + 2), 0.26, 0.5))
        across = canvas.shape[1] / height * cell
        size = (across + (0.4 if columns > 1 else 0.085 * wide + 1.2), canvas.shape[0] / height * cell + 0.8)
        _, ax = pyplot.subplots(figsize=size, layout="constrained")
    ax.imshow(np.where(np.isnan(canvas), 1.0, canvas), interpolation="nearest", resample=False)
    middles = [line * (height + gap) + height / 2 - 0.5 for line in range(lines)]
    small: dict[str, Any] = {"fontsize": 9 if lines <= 15 else 8, "color": INK}
    texts = [f"{_short(head, 24)}  ({count:,})" for head, count in heads]
    ax.set_xticks([])
    if columns == 1:
        ax.set_yticks(middles, texts, **small)
    else:
        ax.set_yticks([])
        for c, (head, _) in enumerate(heads):
            column, line = divmod(c, lines)
            ax.text(
                column * band + place - 1.5 * gap, middles[line], _short(head, 24), ha="right", va="center", **small
            )
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    kind = "most typical" if order == "typical" else "random"
    rows_of = " (how many there are)" if columns == 1 else ""
    ax.set_title(title or f"{kind} rows of each cluster{rows_of}".capitalize(), color=INK)
    return ax


def _words(
    rows: Any,
    codes: NDArray[Any],
    heads: list[tuple[str, int]],
    n: int,
    feature_names: Sequence[str],
    title: str | None,
    ax: Axes | None,
) -> Axes:
    """A line of words for each cluster, and a bar as long as the cluster is large."""
    if rows.ndim != 2 or rows.shape[1] != len(feature_names):
        raise ValueError(f"feature_names must be one for each column of X {rows.shape}, got {len(feature_names)}")
    overall = np.asarray(rows.mean(0)).ravel()
    lines = []
    for c in range(len(heads)):
        excess = np.asarray(rows[np.flatnonzero(codes == c)].mean(0)).ravel() - overall
        best = np.argsort(-excess, kind="stable")[:n]
        words = [str(feature_names[i]) for i in best if excess[i] > 0]
        if len(heads) == 1:
            words = [str(feature_names[i]) for i in np.argsort(-overall, kind="stable")[:n]]
        line = ""
        for word in words:
            if len(line) + len(word) > LINE:
                break
            line = f"{line}, {word}" if line else word
        lines.append(line or _short(", ".join(words), LINE) or "(no words)")
    longest = max(20, *map(len, lines))
    if ax is None:
        wide = max(len(_short(head, 24)) for head, _ in heads)
        size = (1.6 + 0.085 * (wide + longest), 0.9 + 0.27 * len(heads))
        _, ax = pyplot.subplots(figsize=size, layout="constrained")
    largest = max(count for _, count in heads)
    for c, line in enumerate(lines):
        share = heads[c][1] / largest
        ax.barh(c, share, height=0.72, color=PALETTE[0], alpha=0.16, linewidth=0)
        ax.text(0.008, c, line, va="center", color=INK, fontsize=9)
    texts = [f"{_short(head, 24)}  ({count:,})" for head, count in heads]
    ax.set_yticks(range(len(heads)), texts, fontsize=9, color=INK)
    ax.set(xticks=[], xlim=(0, 1), ylim=(len(heads) - 0.4, -0.6))
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_title(title or "Telling words of each cluster (rows; bar: its size)", color=INK, loc="left")
    return ax


def _groups(reports: Any) -> dict[str, list[RobustnessReport]]:
    from .robustness import RobustnessReport

    if isinstance(reports, RobustnessReport):
        return {reports.name: [reports]}
    if isinstance(reports, Mapping):
        groups = {
            str(label): [group] if isinstance(group, RobustnessReport) else list(group)
            for label, group in reports.items()
        }
    else:
        groups = {}
        for report in reports:
            name, count = report.name, 2
            while name in groups:
                name, count = f"{report.name} {count}", count + 1
            groups[name] = [report]
    if not groups or not all(groups.values()):
        raise ValueError("reports must hold at least one report, got none")
    return groups


def _curves(group: list[RobustnessReport], attack: str, measure: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Sizes [E] and a measure [reports, E] at them, from the unchanged rows on."""
    curves = [report.curve(attack, measure) for report in group]
    sizes = curves[0][0]
    if any(len(other) != len(sizes) or (other != sizes).any() for other, _ in curves):
        raise ValueError(f"reports that are drawn as one line must have the same sizes of {attack!r}")
    values = np.array([value for _, value in curves])
    if sizes[0] > 0 and measure != "gradient_norm":
        start = [0.0 if measure == "max_delta" else 1.0 for _ in group]
        if measure in ("acc", "nmi", "ari"):
            start = [report.clean[measure] for report in group if report.clean is not None]
        sizes, values = np.append(0.0, sizes), np.column_stack([start, values])
    return sizes, values


def _curve_legends(ax: Axes, groups: Mapping[str, Any], chosen: list[str], by_attack: bool) -> None:
    def handle(colour: str, attack: str) -> Line2D:
        return Line2D([], [], color=colour, linestyle=STYLES[attack], marker=MARKERS[attack], markersize=4.5, lw=1.8)

    where: dict[str, Any] = {
        "frameon": False,
        "fontsize": 9,
        "loc": "upper left",
        "borderaxespad": 0.0,
        "alignment": "left",
    }
    lines = [handle(PALETTE[j if by_attack else -1], attack) for j, attack in enumerate(chosen)]
    attacks = [NAMES[attack] for attack in chosen]
    if not by_attack:
        handles = [Line2D([], [], color=PALETTE[i % len(PALETTE)], lw=4) for i in range(len(groups))]
        texts = [_short(label, 28) for label in groups]
        if len(chosen) > 1:
            blank = Line2D([], [], linestyle="")
            handles, texts = [*handles, blank, *lines], [*texts, "", *attacks]
        ax.legend(handles, texts, bbox_to_anchor=(1.02, 1.0), handlelength=2.6, **where)
    else:
        ax.legend(lines, attacks, bbox_to_anchor=(1.02, 1.0), handlelength=2.6, **where)


def _clean(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    for spine in ax.spines.values():
        spine.set_color("#999999")
    ax.tick_params(colors="#444444", labelsize=9)
    for text in (ax.xaxis.label, ax.yaxis.label, ax.title):
        text.set_color(INK)
