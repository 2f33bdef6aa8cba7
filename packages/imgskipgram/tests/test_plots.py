"""Plots: what they show is what is there, nothing covers anything, and they do not touch matplotlib's state."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scenes import encoded, features, scenes

pytest.importorskip("matplotlib", reason="needs matplotlib")

from imgskipgram import ImageBank, ImageSkipGram, plots
from imgskipgram.evaluate import similarity

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def model() -> ImageSkipGram:
    shown = scenes(150)
    pictures = [scene.draw() for scene in shown]
    bank = ImageBank.from_features(features(pictures), [scene.words for scene in shown], thumbnails=pictures)
    corpus = [scene.sentence for scene in scenes(1500, seed=1)]
    return ImageSkipGram(vector_size=16, min_count=1, workers=1, epochs=3).fit(corpus, bank)


def boxes(figure: Any) -> tuple[list[Any], list[Any]]:
    """Extents in pixels of texts and of thumbnails."""
    axes = figure.axes[0]
    renderer = figure.canvas.get_renderer()
    return (
        [text.get_window_extent(renderer) for text in axes.texts],
        [image.get_window_extent(renderer) for image in axes.images],
    )


def drawn(figure: Any) -> np.ndarray[Any, Any]:
    """The figure as it comes out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def test_neither_words_nor_thumbnails_cover_each_other(model: ImageSkipGram) -> None:
    figure = plots.space(model)
    texts, images = boxes(figure)
    assert {text.get_text() for text in figure.axes[0].texts} <= set(model.wv.key_to_index)
    assert len(texts) >= 6
    assert len(images) >= 6
    everything = texts + images
    for i, one in enumerate(everything):
        assert not any(one.overlaps(other) for other in everything[:i])
        assert one.x0 >= 0
        assert one.y0 >= 0
        assert one.x1 <= figure.bbox.x1
        assert one.y1 <= figure.bbox.y1


def test_words_in_one_place_have_one_label_at_least(model: ImageSkipGram) -> None:
    figure = plots.space(model, ["red"] * 30)
    assert 1 <= len(figure.axes[0].texts) <= 8


def test_chosen_words_are_shown_where_their_pictures_are(model: ImageSkipGram) -> None:
    figure = plots.space(model, ["red", "blue", "green", "circle"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["red", "blue", "green", "circle"]
    with pytest.raises(KeyError, match="words must be in the vocabulary, got 'unicorn'"):
        plots.space(model, ["red", "unicorn"])
    with pytest.raises(ValueError, match="words must not be empty"):
        plots.space(model, [])
    with pytest.raises(ValueError, match="method must be 'pca' or 'umap', got 'tsne'"):
        plots.space(model, method="tsne")  # type: ignore[arg-type]


def test_pictures_without_thumbnails_are_dots(model: ImageSkipGram) -> None:
    bank = ImageBank.from_features(model.bank.features, model.bank.words)
    corpus = [scene.sentence for scene in scenes(50, seed=1)]
    plain = ImageSkipGram(vector_size=4, min_count=1, workers=1, epochs=1).fit(corpus, bank)
    figure = plots.space(plain)
    assert not figure.axes[0].images
    assert len(figure.axes[0].lines) > 1


def test_words_with_signs_of_formulas_are_plain_text() -> None:
    bank = ImageBank.from_features(np.eye(8), ["$x$", r"\frac", "a_b", "$", "^", "{", "%", "&"], thumbnails=[None] * 8)
    corpus = [list(map("".join, bank.words))] * 3
    model = ImageSkipGram(vector_size=4, min_count=1, workers=1, epochs=1).fit(corpus, bank)
    assert drawn(plots.space(model)).size
    assert drawn(plots.hubs(model, bank.words[0])).size


def test_losses_are_those_of_the_epochs(model: ImageSkipGram) -> None:
    figure = plots.losses(model)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["text loss per pair", "image loss per pair"]
    for axes, name in zip(figure.axes, ("text", "image"), strict=True):
        points = {int(n): value for n, value in axes.lines[0].get_xydata()}
        assert points == {n: epoch[name] for n, epoch in enumerate(model.losses_, 1) if epoch[f"{name}_pairs"]}
    text = ImageSkipGram(vector_size=4, min_count=1, workers=1, epochs=1, sample=0).fit(["a b c d e"] * 9)
    assert len(plots.losses(text).axes) == 1
    with pytest.raises(ValueError, match="the model must have been trained"):
        plots.losses(ImageSkipGram())


def test_bars_are_correlations_of_each_quartile(model: ImageSkipGram, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    words = model.wv.index_to_key
    rows = [(*draw.choice(words, 2, replace=False), str(draw.uniform(0, 10)), str(i % 2 + 1)) for i in range(30)]
    lines = ["word1\tword2\tPOS\tSimLex999\tconcQ", *(f"{a}\t{b}\tN\t{s}\t{q}" for a, b, s, q in rows)]
    (tmp_path / "simlex.txt").write_text("\n".join(lines))
    figure = plots.concreteness({"one": model.wv, "two": model.wv}, tmp_path / "simlex.txt")
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    expected = [
        100 * similarity(model.wv, [(a, b, float(s)) for a, b, s, q in rows if q in quartiles]).spearman
        for quartiles in ("1", "2", "12")
    ]
    assert heights == pytest.approx(expected * 2)
    assert len(plots.concreteness(model.wv, tmp_path / "simlex.txt").axes[0].patches) == 3
    (tmp_path / "simlex.txt").write_text("word1\tword2\tSimLex999\na\tb\t1\n")
    with pytest.raises(ValueError, match=r"must have the columns .*, lacks concQ"):
        plots.concreteness(model.wv, tmp_path / "simlex.txt")


def test_occurrences_are_those_of_explanations(model: ImageSkipGram) -> None:
    words = ["above", "below", "beside", "red", "star"]
    counts = np.zeros(len(model.bank), int)
    for word in words:
        counts[[row for row, _, _ in model.explain(word, topn=10).images]] += 1
    stairs = plots.hubs(model, words).axes[0].patches[0]
    values, edges, _ = stairs.get_data()
    assert values.sum() == len(model.bank)
    np.testing.assert_array_equal(values, np.histogram(counts, edges)[0])
    assert stairs.get_label() == f"with CSLS: most {counts.max()}"


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_a_plot_is_legible_on_any_page(model: ImageSkipGram, style: str) -> None:
    """Its own ground, opaque, with dark ink on it, whatever style is set."""
    import matplotlib.style

    with matplotlib.style.context(style):
        for figure in (plots.space(model), plots.losses(model), plots.hubs(model)):
            pixels = drawn(figure)[..., :3].astype(int).sum(-1)
            assert np.median(pixels) > 700
            assert pixels.min() < 150
            assert (drawn(figure)[..., 3] == 255).all()


def test_pyplot_is_not_touched(model: ImageSkipGram) -> None:
    plots.losses(model)
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_without_matplotlib_the_extra_is_named() -> None:
    program = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name == "matplotlib":
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Without())
from imgskipgram import ImageSkipGram, plots
model = ImageSkipGram(vector_size=4, min_count=1, workers=1, epochs=1).fit(["a b c"])
try:
    plots.losses(model)
except ImportError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "a plot needs matplotlib: pip install 'imgskipgram[plot]'"


def test_thumbnails_of_any_kind_are_shown() -> None:
    kinds = [encoded("red", kind, size) for kind, size in (("PNG", (40, 30)), ("JPEG", (30, 90)), ("WEBP", (7, 7)))]
    bank = ImageBank.from_features(np.eye(3), ["a", "b", "c"], thumbnails=kinds)
    model = ImageSkipGram(vector_size=4, min_count=1, workers=1, epochs=1, image_negative=1).fit(["a b c"] * 3, bank)
    assert len(plots.space(model).axes[0].images) == 3
