"""The evaluation: COCO's own numbers, back-ends that agree, and confidences compared with the true IoU."""

from __future__ import annotations

import copy
import json
import math
import random
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

pytest.importorskip("pycocotools", reason="needs the extra iounet[coco]")
import numpy as np

from iounet.coco import Report, evaluate, match, to_results
from iounet.data import synthetic_scenes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PEERS = {"faster-coco-eval": "faster_coco_eval", "hotcoco": "hotcoco"}
BACKENDS = ["pycocotools", *PEERS]


def need(backend: str) -> None:
    if backend in PEERS:
        pytest.importorskip(PEERS[backend], reason=f"needs {backend}")


def moved(truth: dict[str, Any], seed: int = 0, per_box: int = 3) -> list[dict[str, Any]]:
    """Detections around the true boxes, the better the higher the predicted IoU; scores tie often."""
    draw = random.Random(seed)
    found = []
    for box in truth["annotations"]:
        x, y, w, h = box["bbox"]
        for _ in range(per_box):
            spread = draw.choice([0.02, 0.1, 0.3])
            dx, dy, dw, dh = (draw.gauss(0, spread) for _ in range(4))
            bbox = [x + dx * w, y + dy * h, w * math.exp(dw), h * math.exp(dh)]
            category = draw.choice(truth["categories"])["id"] if draw.random() < 0.2 else box["category_id"]
            found.append({"image_id": box["image_id"], "category_id": category, "bbox": bbox})
            found[-1] |= {"score": round(draw.random(), 1), "iou": min(max(draw.gauss(1 - 2 * spread, 0.1), 0), 1)}
    draw.shuffle(found)
    return found


def scenes(n: int = 20, seed: int = 3) -> dict[str, Any]:
    """Annotations with ids out of order, crowds, and areas that are not those of the boxes."""
    document = synthetic_scenes(n, seed, 128, 4).annotations()
    draw = random.Random(seed)
    ids = draw.sample(range(1000), n)
    for image in document["images"]:
        image["id"] = ids[image["id"] - 1]
    for number, box in enumerate(document["annotations"]):
        box.update(id=number, image_id=ids[box["image_id"] - 1], category_id=7 * box["category_id"])
        box.update(area=box["area"] * 3, iscrowd=int(draw.random() < 0.1))
    for category in document["categories"]:
        category["id"] *= 7
    draw.shuffle(document["images"])
    draw.shuffle(document["categories"])
    return document


def numbers(report: Report) -> dict[str, float]:
    values = {key: value for key, value in vars(report).items() if isinstance(value, float)}
    for name, one in report.per_class.items():
        values |= {f"{name} {key}": value for key, value in vars(one).items()}
    return values


# --- COCO's own numbers ---


@pytest.fixture(scope="module")
def fake(detection_data: Path) -> tuple[Path, Path, str]:
    """100 images of COCO with made-up detections, and what pycocotools printed of them in 2014."""
    folder = detection_data / "cocoapi_fake"
    printed = (folder / "val2014_fake_eval_res.txt").read_text().split("type=bbox")[1].split("type=keypoints")[0]
    return folder / "instances_val2014_100.json", folder / "instances_val2014_fakebbox100_results.json", printed


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_numbers_are_those_that_coco_printed(backend: str, fake: tuple[Path, Path, str]) -> None:
    need(backend)
    report = evaluate(*fake[:2], backend=backend)
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    names += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
    assert [f"{getattr(report, name):.3f}" for name in names] == re.findall(r"= (\d\.\d+)\n", fake[2])
    expected = {"ap": 0.5046, "ap50": 0.6970, "ap60": 0.6900, "ap70": 0.6203, "ap75": 0.5730}
    expected |= {"ap80": 0.4536, "ap90": 0.2061, "ar100": 0.5954}
    assert {name: round(getattr(report, name), 4) for name in expected} == expected
    assert (report.images, report.boxes, report.detections) == (100, 839, 734)


def test_nothing_is_printed(fake: tuple[Path, Path, str], capfd: pytest.CaptureFixture[str]) -> None:
    for backend in BACKENDS:
        need(backend)
        evaluate(*fake[:2], backend=backend)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("max_dets", [1, 2, 100, 300])
@pytest.mark.parametrize("backend", PEERS)
def test_backends_agree(backend: str, max_dets: int) -> None:
    need(backend)
    truth = scenes()
    found = moved(truth, per_box=9)
    ours, theirs = (
        numbers(evaluate(truth, found, backend=name, max_dets=max_dets)) for name in ("pycocotools", backend)
    )
    assert theirs == pytest.approx(ours, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_are_those_of_pycocotools_used_alone(backend: str, tmp_path: Path) -> None:
    need(backend)
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = scenes()
    for box in truth["annotations"]:
        box["id"] += 1  # with 0 as an id pycocotools finds that box never
    found = moved(truth)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    side = COCO(str(path))
    run = COCOeval(side, side.loadRes(copy.deepcopy(found)), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    report = evaluate(truth, found, backend=backend)
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    names += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
    expected = [math.nan if value == -1 else value for value in run.stats]
    assert [getattr(report, name) for name in names] == pytest.approx(expected, abs=1e-6, nan_ok=True)
    k = run.params.catIds.index(14)
    by_class = report.per_class[next(entry["name"] for entry in truth["categories"] if entry["id"] == 14)]
    assert by_class.ap90 == pytest.approx(run.eval["precision"][8, :, k, 0, 2].mean(), abs=1e-6)


def test_a_box_with_id_0_is_found() -> None:
    truth = scenes(4)
    assert truth["annotations"][0]["id"] == 0
    truth["annotations"] = [box | {"iscrowd": 0} for box in truth["annotations"]]
    found = [
        {key: box[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5} for box in truth["annotations"]
    ]
    report = evaluate(truth, found)
    assert report.ap == report.ap90 == pytest.approx(1)


# --- edges ---


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_detections_are_an_average_precision_of_0(backend: str) -> None:
    need(backend)
    report = evaluate(scenes(4), [], backend=backend)
    assert report.ap == report.ap90 == report.ar == 0
    assert report.pearson_n == 0
    assert math.isnan(report.pearson_score)
    assert math.isnan(report.ece_score)
    assert json.loads(report.to_json())["pearson_score"] is None
    assert "0 detections" in str(report)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_true_box_there_is_no_average_precision(backend: str) -> None:
    need(backend)
    truth = scenes(4)
    found = moved(truth)
    report = evaluate(truth | {"annotations": []}, found, backend=backend)
    assert math.isnan(report.ap)
    assert report.ece_score == pytest.approx(np.mean([entry["score"] for entry in found]))
    assert math.isnan(evaluate({"images": [], "annotations": [], "categories": []}, [], backend=backend).ap)


def test_arguments_are_left_as_they_were() -> None:
    truth = scenes(4)
    found = moved(truth)
    before = copy.deepcopy((truth, found))
    for backend in BACKENDS:
        need(backend)
        evaluate(truth, found, backend=backend)
    assert (truth, found) == before


def test_a_data_set_a_document_and_a_file_are_the_same(tmp_path: Path) -> None:
    dataset = synthetic_scenes(6, 1, 96, 3)
    truth = dataset.annotations()
    found = moved(truth)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(found))
    reports = [
        evaluate(dataset, found),
        evaluate(truth, tuple(found)),
        evaluate(tmp_path / "truth.json", str(tmp_path / "found.json")),
    ]
    assert reports[0].to_json() == reports[1].to_json() == reports[2].to_json()


def test_boxes_without_area_are_dropped_from_the_truth_with_one_warning() -> None:
    truth = scenes(4)
    found = moved(truth)
    expected = evaluate(truth, found)
    for number in range(3):
        entry = {"id": 900 + number, "image_id": truth["images"][0]["id"], "category_id": 7, "bbox": [1, 1, 0, 4]}
        truth["annotations"].append(entry)
    with pytest.warns(UserWarning, match="annotations: dropped 3 boxes without area") as caught:
        assert evaluate(truth, found).to_json() == expected.to_json()
    assert len(caught) == 1


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "image": (lambda entry: entry.update(image_id=-5), "detection 2 has image_id -5, which is not in annotations"),
    "image type": (lambda entry: entry.update(image_id=[1]), r"detection 2 has image_id \[1\]"),
    "no image": (lambda entry: entry.pop("image_id"), "detection 2 has image_id None"),
    "category": (
        lambda entry: entry.update(category_id=8),
        "detection 2 has category_id 8, which is not in annotations",
    ),
    "no box": (lambda entry: entry.pop("bbox"), "bbox of detection 2 must be four finite numbers x, y, width, height"),
    "box": (lambda entry: entry.update(bbox=[1, 2, math.inf, 4]), "bbox of detection 2 must be four finite numbers"),
    "inverted": (
        lambda entry: entry.update(bbox=[1, 2, -1, 4]),
        r"bbox of detection 2 .*non-negative width and height",
    ),
    "score": (lambda entry: entry.update(score=math.nan), "score of detection 2 must be a finite number, got nan"),
    "no score": (lambda entry: entry.pop("score"), "score of detection 2 must be a finite number, got None"),
    "iou": (lambda entry: entry.update(iou=1.2), r"iou of detection 2 must be in \[0, 1\], got 1.2"),
    "no iou": (lambda entry: entry.pop("iou"), "iou of detection 2 must be a finite number, got None"),
}


@pytest.mark.parametrize("change", BAD)
def test_a_malformed_detection_is_refused_by_place_and_value(change: str, tmp_path: Path) -> None:
    truth = scenes(4)
    found = moved(truth)
    BAD[change][0](found[2])
    with pytest.raises(ValueError, match=f"detections: {BAD[change][1]}"):
        evaluate(truth, found)
    path = tmp_path / "found.json"
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=rf"found\.json: {BAD[change][1]}"):
        evaluate(truth, path)


@pytest.mark.parametrize("found", [{"image_id": 1}, [1], "[1, 2", None])
def test_what_is_no_list_of_detections_is_refused(found: Any, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_text(found if isinstance(found, str) else json.dumps(found))
    with pytest.raises(ValueError, match=r"found\.json (must be a list of objects|is not valid JSON)"):
        evaluate(scenes(2), path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "cuda"}, "backend must be one of pycocotools, faster-coco-eval, hotcoco, got 'cuda'"),
        ({"max_dets": 0}, "max_dets must be a positive integer, got 0"),
        ({"max_dets": 1.5}, "max_dets must be a positive integer, got 1.5"),
        ({"min_iou": 0}, r"min_iou must be in \(0, 1\], got 0"),
        ({"min_iou": 1.1}, r"min_iou must be in \(0, 1\], got 1.1"),
        ({"latency": {"pool": -1.0}}, "latency of 'pool' must be seconds, one number or one per image, got -1.0"),
        ({"latency": {"pool": []}}, "latency of 'pool' must be seconds"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(scenes(2), [], **options)


# --- confidences ---


def one_image(*boxes: tuple[int, list[float], int]) -> dict[str, Any]:
    annotations = [
        {"id": number, "image_id": 1, "category_id": category, "bbox": box, "iscrowd": crowd}
        for number, (category, box, crowd) in enumerate(boxes, 1)
    ]
    categories = [{"id": number, "name": f"class {number}"} for number in (1, 2)]
    return {"images": [{"id": 1}, {"id": 2}], "annotations": annotations, "categories": categories}


def detection(category: int, box: list[float], score: float, image: int = 1, **more: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score, **more}


def test_the_true_iou_is_that_with_the_best_box_of_the_class_that_is_no_crowd() -> None:
    truth = one_image((1, [0, 0, 10, 10], 0), (1, [2, 0, 10, 10], 0), (2, [30, 0, 10, 10], 0), (1, [30, 0, 20, 20], 1))
    matches = match(
        truth,
        [
            detection(1, [1.5, 0, 10, 10], 0.9),  # .5 px from the second box
            detection(2, [0, 0, 10, 10], 0.8),  # on a box of another class
            detection(1, [0, 0, 10, 10], 0.7, image=2),  # in another image
            detection(1, [31, 1, 8, 8], 0.6),  # in a crowd
            detection(2, [30, 0, 10, 20], 0.5),
            detection(1, [5, 5, 0, 0], 0.4),
        ],
    )
    assert matches.true_iou == pytest.approx([9.5 / 10.5, 0, 0, 0, 0.5, 0])
    assert matches.on_crowd.tolist() == [False, False, False, True, False, False]
    assert matches.iou is None


def test_the_true_iou_equals_that_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    from iounet import _localization

    monkeypatch.setattr(_localization, "_PAIRS", 64)  # so that pairs come in many blocks
    truth = scenes(6)
    found = moved(truth)
    for entry, true_iou in zip(found, match(truth, found).true_iou, strict=True):
        best = 0.0
        x, y, w, h = entry["bbox"]
        for box in truth["annotations"]:
            if (box["image_id"], box["category_id"], box["iscrowd"]) == (entry["image_id"], entry["category_id"], 0):
                a, b, c, d = box["bbox"]
                inter = max(min(x + w, a + c) - max(x, a), 0) * max(min(y + h, b + d) - max(y, b), 0)
                best = max(best, inter / (w * h + c * d - inter))
        assert true_iou == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("min_iou", [0.5, 0.7])
def test_correlations_are_those_of_numpy_over_the_boxes_that_were_found(min_iou: float) -> None:
    truth = scenes()
    found = moved(truth)
    matches = match(truth, found)
    report = evaluate(truth, found, min_iou=min_iou)
    hit = matches.true_iou >= min_iou
    assert report.pearson_n == hit.sum() > 50
    for key, value in (("score", report.pearson_score), ("iou", report.pearson_iou)):
        column = np.array([entry[key] for entry in found])
        assert value == pytest.approx(np.corrcoef(column[hit], matches.true_iou[hit])[0, 1], abs=1e-12)
    assert report.pearson_iou > 0.4 > 0.2 > abs(report.pearson_score)


def test_a_correlation_with_a_constant_is_not_a_number() -> None:
    truth = scenes(4)
    found = [entry | {"score": 0.5} for entry in moved(truth)]
    assert math.isnan(evaluate(truth, found).pearson_score)


def test_calibration_by_hand() -> None:
    """Four detections: two of score .95, one of which hits; one of .2 that hits; one of .15 that does not."""
    truth = one_image((1, [0, 0, 10, 10], 0), (1, [50, 0, 10, 10], 0), (2, [80, 80, 20, 20], 1))
    found = [
        detection(1, [0, 0, 10, 10], 0.95, iou=0.9),  # true IoU 1
        detection(1, [20, 0, 10, 10], 0.95, iou=0.3),  # 0
        detection(1, [50, 0, 10, 8], 0.2, iou=0.65),  # .8
        detection(1, [70, 0, 10, 10], 0.15, iou=1.0),  # 0
        detection(2, [85, 85, 5, 5], 1.0, iou=0.5),  # in a crowd: left out
    ]
    report = evaluate(truth, found)
    assert report.ece_score == pytest.approx((2 * (0.95 - 0.5) + (1 - 0.2) + 0.15) / 4)
    assert [(bar.low, bar.count) for bar in report.reliability_score if bar.count] == [(0.1, 1), (0.2, 1), (0.9, 2)]
    assert report.reliability_score[9].observed == 0.5
    assert report.ece_iou == pytest.approx((0.1 + 0.15) / 2)
    assert [bar.count for bar in report.reliability_iou] == [0, 0, 0, 0, 0, 0, 1, 0, 0, 1]
    assert report.reliability_iou[6].observed == pytest.approx(0.8)
    assert report.pearson_n == 2


def test_scores_that_are_no_probabilities_have_no_calibration() -> None:
    truth = scenes(4)
    found = [entry | {"score": 5 * entry["score"] - 2} for entry in moved(truth)]
    report = evaluate(truth, found)
    assert math.isnan(report.ece_score)
    assert report.reliability_score == ()
    assert report.ap == pytest.approx(evaluate(truth, moved(truth)).ap)
    assert report.ece_iou < 0.5


# --- what comes out ---


def test_the_json_holds_every_field() -> None:
    truth = scenes(4)
    report = evaluate(truth, moved(truth), latency={"pool": [0.001, 0.003], "head": 0.002})
    read = json.loads(report.to_json())
    assert read.keys() == vars(report).keys()
    assert read["ap90"] == report.ap90
    assert read["per_class"]["disc"]["ap50"] == report.per_class["disc"].ap50
    assert read["latency"]["pool"] == pytest.approx({"n": 2, "mean": 2, "median": 2, "p90": 2.8})
    assert read["latency"]["head"]["n"] == 1
    assert len(read["reliability_iou"]) == 10


def test_the_table_shows_percents_in_columns() -> None:
    truth = one_image((1, [0, 0, 10, 10], 0), (1, [50, 0, 10, 10], 0))
    found = [detection(1, [0, 0, 10, 10], 0.9), detection(1, [50, 0, 10, 9], 0.8)]
    assert str(evaluate(truth, found, latency={"NMS": 0.00125})).splitlines() == [
        "2 images, 2 boxes, 2 detections (pycocotools)",
        "",
        "%    AP   AP50   AP60   AP70   AP75   AP80   AP90  small  medium  large   AR1  AR10    AR",
        "   95.0  100.0  100.0  100.0  100.0  100.0  100.0   95.0       -      -  50.0  95.0  95.0",
        "",
        "against the true IoU (2 detections of IoU >= 0.5)",
        "       Pearson    ECE",
        "score    1.000  0.150",
        "",
        "class    boxes  detections    AP   AP50   AP75   AP90    AR",
        "class 1      2           2  95.0  100.0  100.0  100.0  95.0",
        "",
        "ms per image  mean  median  90 %  n",
        "NMS           1.25    1.25  1.25  1",
    ]


def test_two_categories_of_one_name_are_told_apart() -> None:
    truth = one_image((1, [0, 0, 10, 10], 0), (2, [50, 0, 10, 10], 0))
    for category in truth["categories"]:
        category["name"] = "cell"
    report = evaluate(truth, [detection(1, [0, 0, 10, 10], 0.9)])
    assert {name: one.ap for name, one in report.per_class.items()} == pytest.approx({"cell (1)": 1, "cell (2)": 0})


# --- detections of a model ---


def test_to_results_and_back() -> None:
    dataset = synthetic_scenes(3, 0, 64, 2)
    detections = [
        {"boxes": target["boxes"], "labels": target["labels"], "scores": torch.full((len(target["labels"]),), 0.5)}
        for _, target in dataset
    ]
    detections[1]["ious"] = detections[0]["ious"] = detections[2]["ious"] = torch.empty(0)
    for one in detections:
        one["ious"] = torch.linspace(0.5, 1, len(one["labels"]))
    results = to_results(dataset, dataset.image_ids, detections)
    assert results == json.loads(json.dumps(results))
    report = evaluate(dataset, results)
    assert report.ap50 == pytest.approx(1)
    assert report.pearson_n == len(results)


def test_to_results_maps_labels_to_ids_and_leaves_boxes_alone() -> None:
    boxes = torch.tensor([[1.0, 2, 4, 6], [0, 0, 1, 1]], dtype=torch.float64)
    one = {"boxes": boxes, "labels": torch.tensor([2, 1]), "scores": torch.tensor([0.5, 0.25])}
    assert to_results([10, 20], [torch.tensor(7)], [one]) == [
        {"image_id": 7, "category_id": 20, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5},
        {"image_id": 7, "category_id": 10, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 0.25},
    ]
    assert boxes.tolist() == [[1, 2, 4, 6], [0, 0, 1, 1]]
    nothing = {"boxes": torch.empty(0, 4), "labels": torch.empty(0).long(), "scores": torch.empty(0)}
    assert to_results([10, 20], [7], [nothing]) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0])}, "labels of image 7 must be from 1 to 2, got 0 to 0"),
        ({"labels": torch.tensor([3])}, "labels of image 7 must be from 1 to 2, got 3 to 3"),
        ({"scores": torch.ones(2)}, "labels, boxes, scores .* of image 7 differ in length: 1, 1, 2"),
        ({"ious": torch.ones(0)}, "labels, boxes, scores .* of image 7 differ in length: 1, 1, 1, 0"),
    ],
)
def test_to_results_refuses_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    one = {"boxes": torch.ones(1, 4), "labels": torch.tensor([1]), "scores": torch.ones(1)} | change
    with pytest.raises(ValueError, match=message):
        to_results([1, 2], [7], [one])
    with pytest.raises(ValueError, match="image_ids must be as many as detections, got 2 and 1"):
        to_results([1, 2], [7, 8], [one])


WITHOUT = """
import sys
import iounet
print(sorted(name for name in sys.modules if name.startswith(("iounet.coco", "iounet.data", "pycocotools"))))
sys.modules["pycocotools"] = None
try:
    iounet.coco
except ImportError as error:
    print(error)
"""


def test_without_pycocotools_the_import_names_the_extra_and_iounet_does_without() -> None:
    run = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    imported, message = run.stdout.splitlines()
    assert imported == "[]"
    assert "pip install 'iounet[coco]'" in message


def test_a_missing_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend, module in PEERS.items():
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=f"backend {backend!r} needs {module}: pip install {backend}"):
            evaluate(scenes(2), [], backend=backend)
