"""Explanations: scores against NumPy, labels that must not matter, refusals, and pages that are safe and complete."""

from __future__ import annotations

import base64
import html
import os
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scenes import COLOURS, SHAPES, encoded, features, scenes

from imgskipgram import Explanation, ImageBank
from imgskipgram.explanation import explain, hubness, lookup

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

INJECTION = "</title><script>document.title='taken'</script><img src=x onerror=alert(1)>\"'&"


MINUS = "\N{MINUS SIGN}"


def webp(colour: str) -> bytes:
    return encoded(colour, "WEBP", lossless=True)


def space(images: int = 60, words: int = 40, size: int = 12, seed: int = 0) -> dict[str, Any]:
    """Vectors and images at random, of which every second word has two."""
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(words, size)).astype(np.float32) * draw.uniform(0.1, 3, (words, 1)).astype(np.float32)
    z = draw.normal(size=(images, size)).astype(np.float32)
    return {
        "vectors": vectors,
        "words": [f"word{i}" for i in range(words)],
        "mu": draw.normal(size=size).astype(np.float32) / 10,
        "z": z / np.linalg.norm(z, axis=1, keepdims=True),
        "ids": [f"image{i}" for i in range(images)],
        "thumbnails": [webp("red")] * images,
        "grounded": {f"word{i}": (i, i + 1) for i in range(0, min(words, images - 1), 2)},
    }


def directly(query: Any, space: dict[str, Any], csls: bool, dtype: type) -> NDArray[Any]:
    """The scores as they are defined, in any precision."""
    vectors, mu, z = (space[name].astype(dtype) for name in ("vectors", "mu", "z"))

    def cosine(a: Any, b: Any) -> Any:
        return (a @ b) / (np.sqrt(a @ a) * np.sqrt(b @ b))

    def centred(v: Any) -> Any:
        return v / np.sqrt(v @ v) - mu

    query = centred(np.asarray(query, dtype))
    if not csls:
        return np.array([cosine(query, row) for row in z])
    r = [np.mean(sorted(cosine(centred(v), row) for v in vectors[:5000])[-10:]) for row in z]
    return np.array([2 * cosine(query, row) for row in z]) - r


def found(query: Any, space: dict[str, Any], **options: Any) -> Explanation:
    return explain(query, **space, **options)


# ---- scores


@pytest.mark.parametrize("csls", [True, False])
@pytest.mark.parametrize("words", [3, 10, 11, 40])
def test_scores_are_those_of_the_definition(csls: bool, words: int) -> None:
    given = space(words=words)
    query = given["vectors"][2]
    exact = directly(query, given, csls, np.float64)
    explanation = found(query, given, csls=csls, topn=60)
    scores = np.zeros(60)
    for i, name, score in explanation.images:
        assert name == f"image{i}"
        scores[i] = score
    single = np.abs(directly(query, given, csls, np.float32) - exact).max()
    assert np.abs(scores - exact).max() <= 2 * single
    assert [i for i, _, _ in explanation.images] == np.argsort(-exact, kind="stable").tolist()


def test_only_the_5000_most_frequent_words_measure_hubness_and_rows_of_zeros_do_not() -> None:
    given = space(words=5003, images=7)
    known = hubness(given["vectors"][:5000], given["mu"], given["z"])
    assert np.array_equal(hubness(given["vectors"], given["mu"], given["z"]), known)
    given["vectors"][100:5000] = 0
    without = hubness(given["vectors"][:100], given["mu"], given["z"])
    assert np.allclose(hubness(given["vectors"], given["mu"], given["z"]), without, rtol=0, atol=1e-6)


def test_hubness_does_not_depend_on_how_many_images_are_asked_about_at_once() -> None:
    given = space(images=1025)
    whole = hubness(given["vectors"], given["mu"], given["z"])
    assert whole.shape == (1025,)
    assert whole[1024] == pytest.approx(hubness(given["vectors"], given["mu"], given["z"][1024:])[0], abs=1e-6)


def test_an_image_near_to_every_word_is_set_back() -> None:
    axes = np.eye(12, dtype=np.float32)
    hub = np.ones((1, 12), np.float32) / np.sqrt(12)
    given = space(images=12, words=12) | {"vectors": axes + 2 * hub, "mu": np.zeros(12, np.float32)}
    given["z"] = np.concatenate([hub, axes[1:]])
    query = given["vectors"][3]
    assert found(query, given, csls=False).images[0][0] == 0
    assert found(query, given).images[0][0] == 3


def test_labels_never_enter_the_images() -> None:
    given = space()
    query = given["vectors"][4]
    labelled = found(query, given, diversity=0.3)
    bare = found(query, given | {"grounded": {}}, diversity=0.3)
    permuted = found(query, given | {"grounded": {"word1": [59], "word4": [0]}}, diversity=0.3)
    assert labelled.images == bare.images == permuted.images
    assert labelled.path != permuted.path
    assert bare.path == []


def test_the_length_of_the_query_does_not_matter() -> None:
    given = space()
    query = given["vectors"][4].astype(np.float64)
    expected = [i for i, _, _ in found(query, given).images]
    for factor in (1e-300, 1e-3, 1e300):
        assert [i for i, _, _ in found(factor * query, given).images] == expected
    assert [i for i, _, _ in found((-query).tolist(), given, csls=False, topn=60).images[::-1]] != expected


def test_more_pictures_than_there_are_gives_all_and_ties_keep_the_order_of_the_bank() -> None:
    given = space(images=8)
    given["z"][:] = given["z"][0]
    explanation = found(given["vectors"][0], given, topn=99)
    assert [i for i, _, _ in explanation.images] == list(range(8))
    assert explanation.candidates == 8


@pytest.mark.parametrize("diversity", [0.2, 0.7, 1.0])
def test_diversity_chooses_one_by_one_what_is_near_and_unlike_the_chosen(diversity: float) -> None:
    given = space()
    query = given["vectors"][9]
    scores, z = directly(query, given, True, np.float64), given["z"].astype(np.float64)
    chosen = [int(scores.argmax())]
    while len(chosen) < 12:
        rest = [i for i in range(60) if i not in chosen]
        chosen.append(max(rest, key=lambda i: (1 - diversity) * scores[i] - diversity * (z[chosen] @ z[i]).max()))
    explanation = found(query, given, diversity=diversity, topn=12)
    assert [i for i, _, _ in explanation.images] == chosen
    assert [score for _, _, score in explanation.images] == pytest.approx(scores[chosen].tolist(), abs=1e-5)


def test_the_path_leads_over_the_nearest_grounded_words_each_with_its_nearest_image() -> None:
    given = space()
    query = given["vectors"][1]
    units = given["vectors"] / np.linalg.norm(given["vectors"], axis=1, keepdims=True)
    near = units @ units[1]
    order = sorted(range(0, 40, 2), key=lambda i: -near[i])[:5]
    to_image = directly(query, given, False, np.float64)
    path = found(query, given, topn=1).path
    assert [word for word, _, _ in path] == [f"word{i}" for i in order]
    assert [cosine for _, cosine, _ in path] == pytest.approx([near[i] for i in order], abs=1e-6)
    assert [image for _, _, image in path] == [max((i, i + 1), key=lambda j: to_image[j]) for i in order]


# ---- the whole way, on drawn scenes


def test_colours_and_shapes_are_explained_by_pictures_that_show_them() -> None:
    drawn = scenes(300)
    bank = ImageBank.from_features(features([scene.draw() for scene in drawn]), [scene.words for scene in drawn])
    words = [*COLOURS, *SHAPES]
    shows = np.array([[word in scene.words for word in words] for scene in drawn], float)
    counts = (shows - shows.mean(0)).T
    left, values, _ = np.linalg.svd(counts, full_matrices=False)
    vectors = left * values
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    mu = units.mean(0)
    centred = bank.features.astype(float) - bank.features.mean(0)
    pairs = [(i, j) for i, scene in enumerate(drawn) for j, word in enumerate(words) if word in scene.words]
    seen, targets = centred[[i for i, _ in pairs]], units[[j for _, j in pairs]] - mu
    gram = seen.T @ seen
    projection = np.linalg.solve(gram + 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram)), seen.T @ targets)
    given = {
        "vectors": vectors.astype(np.float32),
        "words": words,
        "mu": mu.astype(np.float32),
        "z": (centred @ projection).astype(np.float32),
        "ids": bank.ids,
        "thumbnails": bank.thumbnails,
        "grounded": {},
    }
    hits = {}
    for word in words:
        vector, title = lookup(word, {w: i for i, w in enumerate(words)}, given["vectors"])
        explanation = explain(vector, **given, title=title)
        hits[word] = np.mean([word in drawn[i].words for i, _, _ in explanation.images])
    assert np.mean([hits[colour] for colour in COLOURS]) >= 0.95, hits
    assert np.mean([hits[shape] for shape in SHAPES]) >= 0.8, hits


# ---- refusals


@pytest.mark.parametrize(
    ("query", "options", "error", "message"),
    [
        (np.ones(3), {}, ValueError, r"query_vector must have shape \(12,\), got \(3,\)"),
        (np.ones((12, 1)), {}, ValueError, r"query_vector must have shape \(12,\), got \(12, 1\)"),
        (np.zeros(12), {}, ValueError, r"query_vector must not be zero"),
        (np.full(12, np.nan), {}, ValueError, r"query_vector must be finite, got nan"),
        ([np.inf] * 12, {}, ValueError, r"query_vector must be finite, got inf"),
        ([1j] * 12, {}, TypeError, r"query_vector must be numbers, got complex128"),
        (["a"] * 12, {}, TypeError, r"query_vector must be numbers, got <U1"),
        (np.ones(12), {"diversity": "much"}, TypeError, r"diversity must be a number, got 'much'"),
        (np.ones(12), {"topn": 0}, ValueError, r"topn must be a positive integer, got 0"),
        (np.ones(12), {"topn": 2.0}, TypeError, r"topn must be a positive integer, got 2\.0"),
        (np.ones(12), {"topn": True}, TypeError, r"topn must be a positive integer, got True"),
        (np.ones(12), {"diversity": 1.5}, ValueError, r"diversity must be between 0 and 1, got 1\.5"),
        (np.ones(12), {"diversity": np.nan}, ValueError, r"diversity must be between 0 and 1, got nan"),
    ],
)
def test_an_explanation_refuses(query: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        found(query, space(), **options)


def test_the_mean_of_the_grounded_words_has_no_direction_and_is_refused() -> None:
    given = space()
    given["mu"] = given["vectors"][0] / np.linalg.norm(given["vectors"][0])
    with pytest.raises(ValueError, match="query_vector must differ from the mean of the grounded words"):
        found(given["mu"], given)


def test_an_unknown_word_is_refused_with_close_spellings() -> None:
    index, vectors = {"shark": 0, "sharks": 1, "sun": 2}, np.eye(3, dtype=np.float32)
    with pytest.raises(KeyError, match=r"word must be in the vocabulary, got 'sharc'; close spellings: shark, sharks"):
        lookup("sharc", index, vectors)
    with pytest.raises(KeyError, match=r"got 'qqq'.$"):
        lookup("qqq", index, vectors)
    assert lookup([1, 2, 3], index, vectors)[0].tolist() == [1, 2, 3]


# ---- pages


class Reader(HTMLParser):
    """What a browser would see: elements, their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def written(explanation: Explanation, path: Path) -> Reader:
    explanation.to_html(path)
    return Reader(path.read_text(encoding="utf-8"))


def test_a_page_holds_the_pictures_and_numbers_of_the_explanation(tmp_path: Path) -> None:
    given = space()
    given["thumbnails"] = [webp(f"#{i:02x}{40 + i:02x}20") for i in range(60)]
    explanation = found(given["vectors"][0], given, title="word0", topn=60)
    page = written(explanation, tmp_path / "word.html")
    pictures = [
        base64.b64decode(str(image["src"]).removeprefix("data:image/webp;base64,")) for image in page.all("img")
    ]
    shown = [i for i, _, _ in explanation.images] + [i for _, _, i in explanation.path]
    assert pictures == [given["thumbnails"][i] for i in shown]
    assert [image["alt"] for image in page.all("img")] == [f"image{i}" for i in shown]
    numbers = [text for text in page.texts if text.lstrip(MINUS).replace(".", "", 1).isdigit()]
    values = [score for _, _, score in explanation.images] + [cosine for _, cosine, _ in explanation.path]
    assert [float(text.replace(MINUS, "-")) for text in numbers] == [round(x, 2) for x in values]
    assert any(value < 0 for value in values)
    assert "All 60 pictures, best first. Their labels were not looked at." in page.texts


@pytest.mark.parametrize(
    ("options", "lead"),
    [
        ({}, "The 9 nearest of 60 pictures, best first. Their labels were not looked at."),
        ({"topn": 1}, "The nearest of 60 pictures. Its labels were not looked at."),
        (
            {"diversity": 0.5},
            "9 of 60 pictures, chosen to be near and to differ from each other. Their labels were not looked at.",
        ),
    ],
)
def test_a_page_says_how_its_pictures_were_chosen(options: dict[str, Any], lead: str, tmp_path: Path) -> None:
    given = space()
    assert lead in written(found(given["vectors"][0], given, **options), tmp_path / "a.html").texts


def test_text_of_the_user_stays_text_and_nothing_is_loaded(tmp_path: Path) -> None:
    given = space()
    given |= {
        "ids": [f"{INJECTION}{i}" for i in range(60)],
        "words": [f"{INJECTION}{i}" for i in range(40)],
        "thumbnails": [None, webp("blue")] * 30,
    }
    given["grounded"] = {word: [i] for i, word in enumerate(given["words"])}
    given["ids"][0] = "\udcff"  # as of a file whose name is no text
    page = written(found(given["vectors"][0], given, title=INJECTION, topn=60), tmp_path / "a.html")
    assert not page.all("script")
    assert INJECTION in page.texts
    assert f"{INJECTION} in pictures" in page.texts
    assert all(str(image["src"]).startswith("data:image/webp;base64,") for image in page.all("img"))
    assert {link["href"] for link in page.all("link")} == {"data:,"}
    assert {meta.get("http-equiv"): meta.get("content") for meta in page.all("meta")}[
        "Content-Security-Policy"
    ] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]


def test_pictures_that_are_not_there_are_named(tmp_path: Path) -> None:
    given = space() | {"thumbnails": [None] * 60}
    explanation = found(given["vectors"][0], given)
    page = written(explanation, tmp_path / "a.html")
    assert not page.all("img")
    assert all(page.texts.count(name) >= 2 for _, name, _ in explanation.images)  # in its place, and below it
    assert explanation.contact_sheet().width == 16 + 3 * (144 + 16)


def test_a_page_may_have_a_thousand_images(tmp_path: Path) -> None:
    given = space(images=1000, words=5000, size=100)
    given["thumbnails"] = [webp("red")[:20] + bytes(4000)] * 1000  # as large as thumbnails are
    found(given["vectors"][0], given, topn=1000, diversity=0.1).to_html(tmp_path / "a.html")
    assert (tmp_path / "a.html").stat().st_size > 1000 * 4000


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = space()
    explanation = found(given["vectors"][0], given)
    (tmp_path / "a.html").write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        explanation.to_html(tmp_path / "a.html")
    assert os.listdir(tmp_path) == ["a.html"]
    assert (tmp_path / "a.html").read_text() == "old"


def test_a_notebook_shows_the_page_in_a_frame_of_its_own(tmp_path: Path) -> None:
    given = space()
    explanation = found(given["vectors"][0], given, title=INJECTION)
    explanation.to_html(tmp_path / "a.html")
    (frame,) = Reader(explanation._repr_html_()).all("iframe")
    assert frame["srcdoc"] == (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "sandbox" in frame
    assert html.escape(INJECTION) in str(frame["srcdoc"])


def test_a_contact_sheet_shows_the_pictures_in_order() -> None:
    given = space(images=5)
    given["thumbnails"] = [webp(name) for name in ("red", "lime", "blue", "yellow", "black")]
    explanation = found(given["vectors"][0], given, title="a long title " * 20)
    sheet = explanation.contact_sheet()
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 0, 0)]
    height = (sheet.height - 60) // 2
    middles = [(16 + 72 + 160 * (i % 3), 60 + 72 + height * (i // 3)) for i in range(5)]
    assert [sheet.getpixel(place) for place in middles] == [colours[i] for i, _, _ in explanation.images]
