"""Plots of a model: words and pictures in a plane, losses, likeness by concreteness, hubs; by `imgskipgram[plot]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._extras import need

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping
    from typing import Literal

    from gensim.models import KeyedVectors
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from .model import ImageSkipGram

__all__ = ["concreteness", "hubs", "losses", "space"]

_PAPER, _INK, _SOFT, _FAINT = "#fbfbf9", "#1b1d21", "#5c626c", "#e3e3de"  # opaque, whatever page it is on
_COLOURS = ("#2f6db3", "#d17a22", "#4d8f5c", "#8a5a9e", "#b5483f", "#6b6b6b")
_BEST = 10


def space(
    model: ImageSkipGram,
    words: Iterable[str] | None = None,
    *,
    count: int = 40,
    method: Literal["pca", "umap"] = "pca",
    seed: int = 0,
) -> Figure:
    """Words and pictures of their space in a plane, pictures with their thumbnails; none covers another.

    Args:
        model: trained with images.
        words: which; by default the `count` most frequent that have pictures. They are labelled in this order while
            there is room, and the pictures that are nearest to them are shown.
        count: see `words`.
        method: principal components, or "umap" if umap-learn is installed.
        seed: of umap.

    Raises:
        KeyError: a word is not in the vocabulary.
        ValueError: there are no words, or another method.
        RuntimeError: the model has no images.
        ImportError: matplotlib, or for thumbnails Pillow, is missing, or umap-learn is asked for and missing.
    """
    from ._scatter import Scatter

    if method not in ("pca", "umap"):
        raise ValueError(f"method must be 'pca' or 'umap', got {method!r}")
    parts = model._explanation_parts()
    index = model.wv.key_to_index
    names = list(words) if words is not None else sorted(parts["grounded"], key=index.__getitem__)[:count]
    if not names:
        raise ValueError("words must not be empty")
    unknown = [name for name in names if name not in index]
    if unknown:
        raise KeyError(f"words must be in the vocabulary, got {unknown[0]!r}")
    mu, z = parts["mu"].astype(np.float64), parts["z"].astype(np.float64)
    vectors = _unit(_unit(model.wv.vectors[[index[name] for name in names]]) - mu)
    nearest = np.argsort(-(vectors @ z.T), axis=1, kind="stable")[:, :3]
    chosen = list(dict.fromkeys(nearest.T.ravel().tolist()))
    plane = _plane(np.vstack([vectors, z[chosen]]), method, seed)
    figure = _figure(9.6, 7.2)
    scatter = Scatter(figure, plane, _INK, _SOFT, _COLOURS[0])
    scatter.label(names)
    scatter.picture([parts["thumbnails"][row] for row in chosen], plane[len(names) :])
    return figure


def losses(model: ImageSkipGram) -> Figure:
    """Mean losses per pair over the epochs, of text and, where images were trained, of images.

    Raises:
        ValueError: the model was not trained.
        ImportError: matplotlib is missing.
    """
    if not model.losses_:
        raise ValueError("the model must have been trained, got no epochs")
    shown = [name for name in ("text", "image") if any(epoch[f"{name}_pairs"] for epoch in model.losses_)]
    figure = _figure(4.4 * max(len(shown), 1) + 0.4, 3.2)
    for place, (name, colour) in enumerate(zip(shown, _COLOURS, strict=False)):
        axes = _axes(figure, 1, len(shown), place + 1)
        points = [(n, epoch[name]) for n, epoch in enumerate(model.losses_, 1) if epoch[f"{name}_pairs"]]
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, linewidth=1.6)
        axes.set_title(f"{name} loss per pair", loc="left", color=_INK, fontsize=11)
        axes.set_xlabel("epoch", color=_SOFT)
        axes.set_xlim(0.5, len(model.losses_) + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def concreteness(vectors: KeyedVectors | Mapping[str, KeyedVectors], path: str | os.PathLike[str]) -> Figure:
    """Rank correlation with SimLex-999 by the concreteness of pairs, where pictures should help and must not harm.

    Args:
        vectors: such as `model.wv`, or several with their names.
        path: `SimLex-999.txt`, with the columns word1, word2, SimLex999 and concQ (quartiles, 4 is the most concrete).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, or a quartile has fewer than two pairs in the vocabulary.
        ImportError: matplotlib is missing.
    """
    from .evaluate import similarity

    models = {"": vectors} if hasattr(vectors, "key_to_index") else dict(vectors)
    quartiles = _quartiles(path)
    groups = {f"{number}": pairs for number, pairs in sorted(quartiles.items())}
    groups["all"] = [pair for pairs in quartiles.values() for pair in pairs]
    figure = _figure(1.6 + len(groups) * (0.5 + 0.3 * len(models)), 3.6)
    axes = _axes(figure)
    width = 0.8 / len(models)
    for place, (name, wv) in enumerate(models.items()):
        values = [100 * similarity(wv, pairs).spearman for pairs in groups.values()]
        at = np.arange(len(groups)) + (place - (len(models) - 1) / 2) * width
        bars = axes.bar(at, values, 0.92 * width, color=_COLOURS[place % len(_COLOURS)], label=name)
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=8, color=_INK)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_xlabel("quartile of concreteness, 4 the most concrete", color=_SOFT)
    axes.set_title("SimLex-999, Spearman x 100", loc="left", color=_INK, fontsize=11)
    axes.axhline(0, color=_SOFT, linewidth=0.8)
    axes.margins(y=0.12)
    _legend(axes, len(models))
    return figure


def hubs(model: ImageSkipGram, words: Iterable[str] | None = None) -> Figure:
    """How many pictures are how often among the best 10 of words, with CSLS, without it, and by chance.

    Args:
        model: trained with images.
        words: who asks; by default the 1,000 most frequent words without pictures.

    Raises:
        KeyError: a word is not in the vocabulary.
        ValueError: there are no words.
        RuntimeError: the model has no images.
        ImportError: matplotlib is missing.
    """
    from scipy.stats import binom

    from .explanation import hubness

    parts = model._explanation_parts()
    index = model.wv.key_to_index
    if words is None:
        words = [word for word in model.wv.index_to_key if word not in parts["grounded"]][:1000]
    names = list(words)
    if not names:
        raise ValueError("words must not be empty")
    unknown = [name for name in names if name not in index]
    if unknown:
        raise KeyError(f"words must be in the vocabulary, got {unknown[0]!r}")
    mu, z = parts["mu"], parts["z"]
    queries = _unit(_unit(model.wv.vectors[[index[name] for name in names]]) - mu)
    setback = hubness(model.wv.vectors, mu, z)
    count, best = len(z), min(_BEST, len(z))
    shown = {
        "with CSLS": _occurrences(queries, z, setback, best),
        "without": _occurrences(queries, z, 0 * setback, best),
    }
    most = max(int(each.max()) for each in shown.values())
    edges = np.unique(np.linspace(0, most + 1, min(most + 2, 31)).round())
    figure = _figure(6.4, 3.6)
    axes = _axes(figure)
    for (name, each), colour in zip(shown.items(), _COLOURS, strict=False):
        axes.stairs(
            np.histogram(each, edges)[0], edges, color=colour, linewidth=1.8, label=f"{name}: most {each.max()}"
        )
    at = np.diff(np.append(binom.cdf(edges[:-1] - 1, len(names), best / count), 1.0))
    axes.stairs(count * at, edges, color=_SOFT, linewidth=1.2, linestyle="--", label="at random")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0)
    axes.yaxis.set_major_formatter(need("matplotlib.ticker", "plot", "a plot").StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel(f"how often among the best {best} of {len(names):,} words", color=_SOFT)
    axes.set_title(f"pictures, of {count:,}", loc="left", color=_INK, fontsize=11)
    _legend(axes, len(shown) + 1)
    return figure


def _occurrences(
    queries: NDArray[np.float64], z: NDArray[np.float32], setback: NDArray[np.float32], best: int
) -> NDArray[np.int64]:
    counts = np.zeros(len(z), np.int64)
    for query in queries:
        counts[np.argsort(setback - 2 * (z @ query), kind="stable")[:best]] += 1
    return counts


def _quartiles(path: str | os.PathLike[str]) -> dict[int, list[tuple[str, str, float]]]:
    from .evaluate._lines import lines

    rows = [text.split("\t") for _, text in lines(path)]
    columns = ("word1", "word2", "SimLex999", "concQ")
    missing = [column for column in columns if column not in (rows or [[]])[0]]
    if missing:
        raise ValueError(f"{path}: must have the columns {', '.join(columns)} in its first line, lacks {missing[0]}")
    first, second, score, quartile = (rows[0].index(column) for column in columns)
    found: dict[int, list[tuple[str, str, float]]] = {}
    for row in rows[1:]:
        found.setdefault(int(row[quartile]), []).append((row[first], row[second], float(row[score])))
    return found


def _plane(rows: NDArray[np.float64], method: str, seed: int) -> NDArray[np.float64]:
    """Two columns, each between 0 and 1."""
    if method == "umap":
        umap = need("umap", "plot", "umap (pip install umap-learn)")
        plane = np.asarray(umap.UMAP(metric="cosine", random_state=seed, n_jobs=1).fit_transform(rows), np.float64)
    else:
        from ._projection import principal

        plane = principal(rows, 2)
        plane = np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
    low, high = plane.min(0), plane.max(0)
    return np.asarray((plane - low) / np.where(high > low, high - low, 1))


def _unit(rows: NDArray[Any]) -> NDArray[np.float64]:
    rows = np.asarray(rows, np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1))


def _figure(width: float, height: float) -> Figure:
    """A figure that no global state of matplotlib knows, so that nobody must close it."""
    figure: Figure = need("matplotlib.figure", "plot", "a plot").Figure(
        (width, height), dpi=120, facecolor=_PAPER, layout="constrained"
    )
    return figure


def _axes(figure: Figure, *place: int) -> Any:
    axes = figure.add_subplot(*(place or (1, 1, 1)), facecolor=_PAPER)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_SOFT)
    axes.tick_params(colors=_SOFT, labelsize=9)
    axes.grid(axis="y", color=_FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def _legend(axes: Any, entries: int) -> None:
    if entries > 1:
        axes.legend(frameon=False, labelcolor=_INK, fontsize=9)
