"""Pictures: lines lie where boxes are, numbers are those of the boxes, plots hold the report's numbers."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch

pytest.importorskip("PIL", reason="needs Pillow, of the extra iounet[detection]")
from PIL import Image, ImageColor, ImageDraw

from iounet.viz import iou_per_iteration, iou_scatter, overlay, reliability, sheet

if TYPE_CHECKING:
    from iounet.coco import Matches, Report

ORANGE, BLUE, WHITE = (ImageColor.getrgb(name) for name in ("#ff9f1c", "#35c9ff", "#ffffff"))
GREY = torch.full((3, 100, 200), 0.4)


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written on pictures."""
    written: list[str] = []
    original = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, xy: Any, text: str, *args: Any, **options: Any) -> None:
        written.append(text)
        original(self, xy, text, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return written


def boxes(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).view(-1, 4)


def test_lines_lie_on_the_edges_of_the_boxes() -> None:
    before, after, truth = [10, 20, 60, 70], [110, 20, 160, 70], [70, 75, 100, 95]
    picture = overlay(GREY, boxes(before), boxes(after), boxes(truth), size=800, numbers=0)
    assert picture.width == 800
    assert picture.height > 400  # a line below
    for (x1, y1, x2, y2), colour in ((before, ORANGE), (after, BLUE)):
        middles = [(x1, (y1 + y2) / 2), (x2, (y1 + y2) / 2), ((x1 + x2) / 2, y1), ((x1 + x2) / 2, y2)]
        assert [picture.getpixel((round(4 * x), round(4 * y))) for x, y in middles] == [colour] * 4
        assert picture.getpixel((round(2 * (x1 + x2)), round(2 * (y1 + y2)))) == (102, 102, 102)
    dashes = [picture.getpixel((x, 300)) == WHITE for x in range(280, 400)]
    assert 0.3 < sum(dashes) / len(dashes) < 0.7


def test_numbers_are_the_iou_with_the_best_true_box_before_and_after(texts: list[str]) -> None:
    truth = boxes([0, 0, 100, 50], [100, 50, 200, 100])
    overlay(GREY, boxes([100, 50, 200, 90], [0, 0, 50, 50]), boxes([0, 0, 90, 50], [100, 50, 200, 97.5]), truth)
    assert texts == ["0.50", "0.90", "0.80", "0.95", "before 0.650", "after 0.925", "truth", "mean IoU"]


def test_a_true_box_of_another_class_is_none(texts: list[str]) -> None:
    one = {"boxes": boxes([0, 0, 100, 50]), "labels": torch.tensor([1])}
    overlay(GREY, one, one, one | {"labels": torch.tensor([2])})
    assert texts == ["0.00", "0.00", "before 0.000", "after 0.000", "truth", "mean IoU"]


def test_without_a_truth_numbers_are_the_predicted_iou_or_none(texts: list[str]) -> None:
    overlay(GREY, {"boxes": boxes([0, 0, 9, 9]), "ious": torch.tensor([0.6])}, boxes([0, 0, 10, 10]))
    assert texts == ["before 0.600", "after", "mean predicted IoU"]
    texts.clear()
    overlay(GREY, boxes([0, 0, 9, 9]), boxes([0, 0, 10, 10]))
    assert texts == ["before", "after"]


def test_only_so_many_boxes_are_labelled_those_that_changed_most(texts: list[str]) -> None:
    truth = boxes(*([x, 0, x + 40, 60] for x in (0, 50, 100, 150)))
    change = torch.tensor([2.0, 30, 1, 10])
    before = truth - torch.stack([change * 0, change * 0, change, change * 0], 1)
    overlay(GREY, before, truth, truth, numbers=2)
    assert texts[:4] == ["0.25", "1.00", "0.75", "1.00"]
    assert texts[4].startswith("before")


def test_labels_do_not_cover_each_other(texts: list[str]) -> None:
    many = boxes(*([50, 20, 150, 80] for _ in range(30)))
    overlay(GREY, many, many, many, numbers=30)
    assert 2 <= texts.index("before 1.000") / 2 <= 6  # places at the corners of one box


@pytest.mark.parametrize("count", [0, 1])
def test_images_without_boxes_and_boxes_out_of_the_image_are_drawn(count: int) -> None:
    some = boxes([-50, -50, 500, 300])[:count]
    picture = overlay((GREY * 255).to(torch.uint8), some, boxes(), boxes())
    assert picture.getpixel((480, 200)) == (102, 102, 102)
    assert overlay(Image.new("L", (2000, 30)), some, some, some, size=100).width == 2000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.zeros(1, 8, 8)}, r"image must be \[3, H, W\], got \[1, 8, 8\]"),
        ({"before": torch.zeros(4)}, r"before must be boxes \[L, 4\], got \[4\]"),
        ({"after": torch.zeros(2, 5)}, r"after must be boxes \[L, 4\], got \[2, 5\]"),
        ({"truth": {"boxes": torch.zeros(2, 3)}}, r"truth must be boxes \[L, 4\], got \[2, 3\]"),
    ],
)
def test_other_shapes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overlay(**{"image": GREY, "before": boxes(), "after": boxes(), "truth": boxes(), **change})


def test_a_sheet_holds_every_picture_in_rows() -> None:
    colours = [(250, 20 * k, 0) for k in range(5)]
    result = sheet([Image.new("RGB", (40 + k, 30), colour) for k, colour in enumerate(colours)], 2, width=400)
    assert result.width == 400
    seen = {result.getpixel((x, y)) for x in (100, 300) for y in range(0, result.height, 5)}
    assert set(colours) <= seen
    for pictures, columns, message in (([], None, "pictures must be at least one"), ([result], 0, "columns must be")):
        with pytest.raises(ValueError, match=message):
            sheet(pictures, columns)


# --- plots ---


@pytest.fixture(scope="module")
def matches() -> Matches:
    pytest.importorskip("pycocotools", reason="needs the extra iounet[coco]")
    pytest.importorskip("matplotlib", reason="needs the extra iounet[plot]")
    import numpy as np

    from iounet.coco import Matches

    draw = np.random.default_rng(0)
    true_iou = draw.uniform(0.2, 1, 300)
    iou = (true_iou + draw.normal(0, 0.08, 300)).clip(0, 1)
    return Matches(draw.random(300), iou, true_iou, np.zeros(300, dtype=bool))


@pytest.fixture(scope="module")
def report(matches: Matches) -> Report:
    from iounet.coco import evaluate

    truth: dict[str, Any] = {"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": []}
    found = []
    for k, (score, iou, true_iou) in enumerate(zip(matches.score, matches.iou, matches.true_iou, strict=True)):
        truth["annotations"].append({"id": k, "image_id": 1, "category_id": 1, "bbox": [20 * k, 0, 10, 10]})
        found.append(
            {"image_id": 1, "category_id": 1, "bbox": [20 * k, 0, 10, 10 * true_iou], "score": score, "iou": iou}
        )
    return evaluate(truth, found)


def heights(axes: Any) -> list[float]:
    return [bar.get_height() for bar in axes.patches]


def test_a_reliability_diagram_holds_the_bins_of_the_report(report: Report) -> None:
    figure = reliability(report)
    assert [axes.get_title() for axes in figure.axes[::2]] == [
        f"ECE {report.ece_score:.3f}",
        f"ECE {report.ece_iou:.3f}",
    ]
    for place, bins in enumerate((report.reliability_score, report.reliability_iou)):
        filled = [one for one in bins if one.count]
        assert heights(figure.axes[2 * place]) == [one.observed for one in filled]
        assert heights(figure.axes[2 * place + 1]) == [one.count for one in filled]


def test_a_scatter_holds_every_detection_that_found_its_box(matches: Matches, report: Report) -> None:
    figure = iou_scatter(matches)
    hit = matches.true_iou >= 0.5
    for axes, values in zip(figure.axes, (matches.score, matches.iou), strict=True):
        points = axes.collections[0].get_offsets()
        assert points[:, 0].tolist() == matches.true_iou[hit].tolist()
        assert points[:, 1].tolist() == values[hit].tolist()
    expected = [f"Pearson {r:.3f}, n = {hit.sum()}" for r in (report.pearson_score, report.pearson_iou)]
    assert [axes.get_title() for axes in figure.axes] == expected


def test_curves_are_means_within_two_standard_errors() -> None:
    pytest.importorskip("matplotlib", reason="needs the extra iounet[plot]")
    seeds = torch.tensor([[0.7, 0.72], [0.8, 0.9]])
    figure = iou_per_iteration({"literal": [0.7, 0.75, 0.74], "log": seeds})
    (axes,) = figure.axes
    assert axes.lines[0].get_ydata() == pytest.approx([0.7, 0.75, 0.74])
    assert axes.lines[1].get_ydata() == pytest.approx([0.71, 0.85], abs=1e-6)
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert max(band) == pytest.approx(0.85 + 2 * 0.1 / math.sqrt(2) / math.sqrt(2), abs=1e-6)
    assert sorted(text.get_text() for text in axes.texts) == ["literal  0.740", "log  0.850"]


def test_names_at_the_ends_of_lines_are_apart() -> None:
    pytest.importorskip("matplotlib", reason="needs the extra iounet[plot]")
    (axes,) = iou_per_iteration({name: [0.5, 0.9] for name in "abcd"}).axes
    places = sorted(text.xy[1] for text in axes.texts)
    assert min(b - a for a, b in pairwise(places)) > 0.02


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_plots_are_saved_on_a_transparent_ground(kind: str, matches: Matches) -> None:
    file = io.BytesIO()
    iou_scatter(matches).savefig(file, format=kind)
    if kind == "png":
        picture = Image.open(file).convert("RGBA")
        assert picture.getpixel((2, 2))[3] == 0
        assert picture.getextrema()[3] == (0, 255)
    else:
        assert file.getvalue().lstrip().startswith(b"<?xml")


def test_what_cannot_be_plotted_is_refused(report: Report, matches: Matches) -> None:
    from iounet.coco import evaluate

    nothing = evaluate({"images": [], "annotations": [], "categories": []}, [])
    with pytest.raises(ValueError, match="report must have a reliability diagram"):
        reliability(nothing)
    with pytest.raises(ValueError, match="a detection whose true IoU is at least min_iou, 2"):
        iou_scatter(matches, min_iou=2)
    with pytest.raises(ValueError, match="curves must have at least one entry"):
        iou_per_iteration({})
    with pytest.raises(ValueError, match=r"curves\['a'\] must be \[steps \+ 1\] or \[steps \+ 1, K\], got \[\]"):
        iou_per_iteration({"a": torch.tensor(1.0)})


WITHOUT = """
import sys
sys.modules["matplotlib.figure"] = None
import iounet.viz
try:
    iounet.viz.iou_per_iteration({"a": [0.5, 0.6]})
except ImportError as error:
    print(error)
for name in [name for name in sys.modules if name.startswith(("iounet.viz", "iounet._overlay", "PIL"))]:
    del sys.modules[name]
sys.modules["PIL"] = None
try:
    import iounet.viz
except ImportError as error:
    print(error)
"""


def test_missing_libraries_are_named_with_their_extras() -> None:
    run = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert "pip install 'iounet[plot]'" in run.stdout, run.stderr
    assert "pip install 'iounet[detection]'" in run.stdout
