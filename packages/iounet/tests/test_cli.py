"""The command line on a few scenes: each command works, and every mistake is one line on stderr and exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

pytest.importorskip("torchvision", reason="needs torchvision, of the extra `detection`")
pytest.importorskip("pycocotools", reason="needs pycocotools, of the extra `coco`")
pytest.importorskip("PIL", reason="needs Pillow, of the extra `detection`")

from iounet._files import read_weights
from iounet._inference import ROWS, Relabelled
from iounet._models import MODELS, Recipe, _classes, build, create, restore
from iounet.cli import main
from iounet.data import open_dataset, synthetic_scenes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_TRAINING = ["--epochs", "1", "--batch-size", "3", "--samples", "20", "--min-size", "64", "--max-size", "64"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of COCO's layout with 6 images to train on and 3 to test."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("data") / "scenes"
    folder.mkdir()
    for seed, (split, count) in enumerate({"train": 6, "val": 3}.items()):
        dataset = synthetic_scenes(count, seed, 64, ("disc", "star"))
        document = dataset.annotations()
        (folder / split).mkdir()
        for k, image in enumerate(document["images"]):
            image["file_name"] = f"{k}.png"
            pixels = (dataset[k][0] * 255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / split / f"{k}.png")
        (folder / f"instances_{split}.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `iounet train` wrote."""
    out = tmp_path_factory.mktemp("runs") / "joint"
    data = ["--data", f"coco:{scenes}", "--split", "train"]
    assert main(["train", *data, "--out", str(out), *_TRAINING, "--json", str(out) + ".json", "--quiet"]) == 0
    return out


@pytest.fixture
def val(scenes: Path, run: Path) -> list[str]:
    return ["--data", f"coco:{scenes}", "--split", "val", "--weights", str(run / "model.pth"), "--quiet"]


def failure(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line of a command that fails."""
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse
        code = stop.code
    shown = capsys.readouterr()
    assert code == 2
    assert shown.out == ""
    assert shown.err.endswith("\n")
    assert shown.err.count("\n") == 1
    return shown.err


# ---- train


def test_train_writes_a_model_and_a_report(run: Path) -> None:
    weights, config = read_weights(run / "model.pth")
    assert config["classes"] == ["disc", "star"]
    assert config["iou_net"] == "joint"
    assert any(name.startswith("roi_heads.iou_head.") for name in weights)
    report = json.loads((run.parent / "joint.json").read_text())
    assert report["arguments"]["epochs"] == 1
    assert report["history"][0]["loss_iou"] > 0
    assert report["history"] == json.loads((run / "history.json").read_text())


def test_an_interrupted_run_goes_on_and_equals_one_that_was_not(
    scenes: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    arguments = ["train", "--data", f"coco:{scenes}", "--split", "train", "--out", str(again), *_TRAINING]
    read = Relabelled.__getitem__
    seen: list[int] = []

    def interrupted(self: Relabelled, index: int) -> Any:
        seen.append(index)
        if len(seen) > 4:  # in the second of two steps
            raise KeyboardInterrupt
        return read(self, index)

    monkeypatch.setattr(Relabelled, "__getitem__", interrupted)
    assert main([*arguments, "--save-every", "1", "--quiet"]) == 130
    monkeypatch.undo()
    assert sorted(path.name for path in again.iterdir()) == ["history.json", "last.pth"]
    capsys.readouterr()
    assert main([*arguments, "--resume"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"{again / 'model.pth'}: small, 1 epochs, loss ")
    assert "2/2" in shown.err
    first, second = (read_weights(folder / "model.pth")[0] for folder in (run, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert main([*arguments, "--resume", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert "must hold no run" in failure([*arguments, "--quiet"], capsys)
    assert "lr must be that of" in failure([*arguments, "--resume", "--lr", "1", "--quiet"], capsys)


def test_an_iou_net_beside_a_trained_detector_leaves_it_as_it_is(scenes: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "beside"
    data = ["--data", f"coco:{scenes}", "--split", "train", "--weights", str(run / "model.pth")]
    assert main(["train", *data, "--iou-net", "standalone", "--out", str(out), *_TRAINING, "--quiet"]) == 0
    before, _ = read_weights(run / "model.pth")
    after, config = read_weights(out / "model.pth")
    assert config["iou_net"] == "standalone"
    shared = [name for name in before if ".iou_head." not in name]
    assert all(torch.equal(after[f"source.{name}"], before[name]) for name in shared)
    report = tmp_path / "report.json"
    model = ["--data", f"coco:{scenes}", "--split", "val", "--weights", str(out / "model.pth")]
    assert main(["eval", *model, "--rows", "nms", "refine", "--json", str(report), "--quiet"]) == 0
    assert list(json.loads(report.read_text())["rows"]) == ["nms", "refine"]


# ---- eval


def test_eval_compares_all_rows_on_the_test_images(
    val: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, results = tmp_path / "report.json", tmp_path / "results"
    assert main(["eval", *val, "--json", str(report), "--results", str(results)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("3 images")
    assert [line.split()[0] for line in lines[2:]] == list(ROWS)
    content = json.loads(report.read_text())
    assert list(content["rows"]) == list(ROWS)
    for row, found in content["rows"].items():
        detections = json.loads((results / f"{row}.json").read_text())
        assert found["images"] == 3
        assert found["detections"] == len(detections) > 0
        assert all(0 <= one["iou"] <= 1 for one in detections)
    boxes = {row: [one["bbox"] for one in json.loads((results / f"{row}.json").read_text())] for row in ROWS}
    assert boxes["iou-nms"] != boxes["refine"] != boxes["refine-log"]
    scores = {row: [one["score"] for one in json.loads((results / f"{row}.json").read_text())] for row in ROWS}
    assert scores["iou-nms"] == scores["refine"] == scores["refine-log"]
    assert max(scores["product"]) < max(scores["refine-log"])


def test_eval_of_the_first_images_counts_only_their_boxes(val: list[str], tmp_path: Path) -> None:
    assert main(["eval", *val, "--limit", "1", "--rows", "nms", "--json", str(tmp_path / "one.json")]) == 0
    found = json.loads((tmp_path / "one.json").read_text())["rows"]["nms"]
    assert found["images"] == 1
    assert found["boxes"] == len(synthetic_scenes(1, 1, 64, ("disc", "star"))[0][1]["boxes"])


def test_labels_are_matched_by_the_names_of_classes(scenes: Path, run: Path, val: list[str], tmp_path: Path) -> None:
    document = json.loads((scenes / "instances_val.json").read_text())
    document["categories"] = [{"id": 7, "name": "star"}, {"id": 9, "name": "disc"}]
    for box in document["annotations"]:
        box["category_id"] = {1: 9, 2: 7}[box["category_id"]]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(document))
    reports = []
    for name, data in (("a", f"coco:{scenes / 'instances_val.json'}"), ("b", f"coco:{other}@{scenes / 'val'}")):
        model = ["--weights", str(run / "model.pth"), "--quiet", "--rows", "nms", "--json", str(tmp_path / name)]
        assert main(["eval", "--data", data, *model]) == 0
        reports.append(json.loads((tmp_path / name).read_text())["rows"]["nms"])
    assert reports[0]["per_class"] == {name: reports[1]["per_class"][name] for name in ("disc", "star")}


# ---- refine


def test_refine_writes_detections_of_images(scenes: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    model = ["--weights", str(run / "model.pth"), "--quiet"]
    assert main(["refine", str(scenes / "val"), str(scenes / "train" / "5.png"), *model, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert {one["file_name"] for one in found} == {
        *(str(scenes / "val" / f"{k}.png") for k in range(3)),
        str(scenes / "train" / "5.png"),
    }
    assert {one["category"] for one in found} <= {"disc", "star"}
    for one in found:
        x, y, w, h = one["bbox"]
        assert 0 <= x <= x + w <= 64 + 1e-3
        assert 0 <= y <= y + h <= 64 + 1e-3
        assert 0 <= one["iou"] <= 1


def test_refining_a_results_file_moves_its_boxes_uphill(val: list[str], tmp_path: Path) -> None:
    given, same, refined = (tmp_path / f"{name}.json" for name in ("given", "same", "refined"))
    whole = [
        {"image_id": 2, "category_id": 1, "bbox": [8.0, 8.0, 30.0, 20.0], "score": 0.5},
        {"image_id": 2, "category_id": 2, "bbox": [30.0, 20.0, 20.0, 30.0], "score": 0.9},
    ]
    given.write_text(json.dumps(whole))
    assert main(["refine", *val, "--detections", str(given), "--top", "0", "--out", str(same)]) == 0
    assert main(["refine", *val, "--detections", str(given), "--out", str(refined)]) == 0
    before, after = json.loads(same.read_text()), json.loads(refined.read_text())
    assert [one["score"] for one in before] == [one["score"] for one in after] == pytest.approx([0.9, 0.5])
    assert [one["category_id"] for one in before] == [2, 1]
    assert [one["bbox"] for one in before] == [pytest.approx(one["bbox"], abs=1e-3) for one in whole[::-1]]
    assert all(b["iou"] >= a["iou"] for a, b in zip(before, after, strict=True))
    assert any(a["bbox"] != pytest.approx(b["bbox"], abs=1e-3) for a, b in zip(before, after, strict=True))


def test_detections_below_a_score_are_left_out(val: list[str], tmp_path: Path) -> None:
    for name, score in (("all", "0"), ("none", "1")):
        assert main(["refine", *val, "--min-score", score, "--out", str(tmp_path / name)]) == 0
    assert json.loads((tmp_path / "none").read_text()) == [] != json.loads((tmp_path / "all").read_text())


# ---- viz


def test_viz_draws_images_and_plots_what_each_step_changes(
    val: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib, of the extra `plot`")
    from PIL import Image

    out = tmp_path / "pictures"
    arguments = ["viz", *val, "--out", str(out), "--count", "2", "--min-score", "0", "--steps", "2", "--seed", "1"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{out}: 2 images\n"
    numbered = [path for path in out.glob("*.png") if path.stem.isdigit()]
    assert len(numbered) == 2
    for path in (*numbered, out / "sheet.png"):
        with Image.open(path) as picture:
            assert max(picture.size) >= 960
    assert (out / "steps.svg").read_text().count("<svg") == 1
    assert not [path for path in out.iterdir() if path.suffix not in (".png", ".svg")]


def test_viz_draws_images_without_truth(scenes: Path, run: Path, tmp_path: Path) -> None:
    image = str(scenes / "val" / "1.png")
    assert main(["viz", image, "--weights", str(run / "model.pth"), "--out", str(tmp_path / "p"), "--quiet"]) == 0
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["1.png", "sheet.png"]


# ---- bench


def test_bench_times_each_stage_beside_its_peer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "bench.json"
    assert main(["bench", "--size", "0.004", "--repeat", "1", "--json", str(report), "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    stages = json.loads(report.read_text())["stages"]
    assert len(stages) == 10
    assert "20/20" in shown.err
    for stage in stages:
        assert stage["ms"] > 0
        assert (stage["ratio"] is None) == (stage["peer"] is None)
        assert stage["stage"] in shown.out


# ---- weights


def test_weights_of_torchvision_keep_their_classes_where_the_data_has_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The real path but for the download: torchvision's builder gets its own state dict from memory."""
    from torchvision.models import get_model, get_model_weights
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    name = "ssdlite320_mobilenet_v3_large"
    entry = get_model_weights(name).DEFAULT
    stored = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=91).state_dict()
    monkeypatch.setattr(type(entry), "get_state_dict", lambda *_, **__: stored)
    model, recipe, left = create(Recipe(name, ("cat", "person"), "standalone"), "COCO_V1", samples_per_image=10)
    assert len(recipe.classes) == 90
    assert recipe.classes[0] == "person"
    assert left == []
    own = model.state_dict()
    assert all(torch.equal(own[f"source.{key}"], x) for key, x in stored.items())
    _, recipe, left = create(Recipe(name, ("disc",)), "DEFAULT")
    assert recipe.classes == ("disc",)
    assert left
    assert all("classification_head" in key for key in left)
    with pytest.raises(ValueError, match="weights must have all of a detector"):
        create(Recipe(name, ("disc",), "standalone"), "DEFAULT")
    assert get_model(name, weights="DEFAULT").state_dict().keys() == stored.keys()


def test_every_detector_of_torchvision_names_its_labels() -> None:
    from torchvision.models import get_model_weights

    for name in MODELS[1:]:
        for entry in get_model_weights(name):
            known = _classes(entry)
            assert known[0] == "person"
            assert len(known) == (1 if name.startswith("keypoint") else 90)


def test_frozen_norms_are_built_again_and_recognised(tmp_path: Path) -> None:
    from torchvision.ops import FrozenBatchNorm2d

    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    recipe = Recipe(name, ("disc",), min_size=64, max_size=64, frozen_eps=0.0)
    model = build(recipe)
    norms = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(norms) > 40
    assert all(norm.eps == 0 for norm in norms)
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    again, guessed = restore(str(tmp_path / "plain.pth"), name, ["disc"])
    assert guessed.frozen_eps == 1e-5
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(x, again.state_dict()[key]) for key, x in model.state_dict().items())


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--out", "x"], "iounet train: error: the following arguments are required: --data"),
        (["eval", "--data", "coco:nowhere", "--weights", "x.pth"], "nowhere"),
        (["eval", "--data", "tar:x", "--weights", "x.pth"], "spec must be coco:PATH"),
        (["bench", "--size", "0"], "--size: must be positive, got 0"),
        (["bench", "--size", "2"], "--size: must be in [0, 1], got 2"),
        (["bench", "--device", "abacus"], "abacus"),
        (["refine", "--out", "x", "--weights", "y"], "either images or --data must be given"),
        (["refine", "a.png", "--out", "no/such/folder", "--weights", "y"], "--out must be a file in a folder"),
        (["bench", "--json", "no/such/folder"], "--json must be a file in a folder"),
        (["fly"], "invalid choice: 'fly'"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in failure(arguments, capsys)


def test_wrong_files_are_one_line(scenes: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", f"coco:{scenes}", "--split", "val"]
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes((run / "model.pth").read_bytes()[:1000])
    changed = tmp_path / "changed.pth"
    content: dict[str, Any] = torch.load(run / "model.pth", weights_only=True)
    content["config"]["model"] = "/etc/passwd"
    torch.save(content, changed)
    smaller = tmp_path / "smaller.pth"
    content = torch.load(run / "model.pth", weights_only=True)
    del content["model"]["roi_heads.iou_head.output.bias"]
    torch.save(content, smaller)
    plain = tmp_path / "plain.pth"
    torch.save(content["model"], plain)
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{"image_id": 99, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]))
    model = ["--weights", str(run / "model.pth")]
    cases = [
        (["eval", *data, "--weights", str(truncated)], "must be a whole checkpoint"),
        (["eval", *data, "--weights", str(changed)], "must hold a model that `iounet train` made"),
        (["eval", *data, "--weights", str(smaller)], "roi_heads.iou_head.output.bias"),
        (["eval", *data, "--weights", str(plain)], "--model and --data must be given"),
        (["eval", *data, "--weights", "missing.pth"], "--weights must be a file"),
        (["eval", *data, *model, "--rows", "magic"], "--rows must be among nms, iou-nms"),
        (["eval", *data, *model, "--model", "ssd300_vgg16"], "--model must be that of"),
        (["eval", *data, *model, "--model", "yolo"], "--model must be one of small"),
        (["refine", *data, *model, "--out", "x", "--detections", str(results)], "image_id 99"),
        (["refine", str(tmp_path / "no.png"), *model, "--out", "x"], "no.png"),
        (["refine", str(truncated), *model, "--out", "x"], "truncated.pth cannot be decoded"),
        (["train", *data, "--out", str(tmp_path / "t"), "--model", "retinanet_resnet50_fpn"], "StandaloneIoUNet"),
        (["train", *data, "--out", str(tmp_path / "t"), "--model", "maskrcnn_resnet50_fpn"], "masks"),
        (["train", *data, "--out", str(tmp_path / "t"), "--weights", "COCO_V1"], "got 'COCO_V1'"),
        (["train", *data, "--out", str(tmp_path / "t"), "--iou-net", "standalone"], "--weights must be of a trained"),
        (["train", *data, "--out", str(tmp_path / "t"), "--lr", "-1"], "lr must be positive"),
    ]
    for arguments, message in cases:
        assert message in failure([*arguments, "--quiet"], capsys), arguments
    assert not (tmp_path / "t").exists()


def test_a_model_that_does_not_know_the_classes_is_refused(
    run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((scenes / "instances_val.json").read_text())
    document["categories"][0]["name"] = "ring"
    (tmp_path / "ring.json").write_text(json.dumps(document))
    data = f"coco:{tmp_path / 'ring.json'}@{scenes / 'val'}"
    line = failure(["eval", "--data", data, "--weights", str(run / "model.pth")], capsys)
    assert line.endswith("must know the classes of the data, which it does not: ring\n")


def test_the_installed_command_runs_alone(scenes: Path, run: Path, tmp_path: Path) -> None:
    data = ["--data", f"coco:{scenes}", "--split", "val", "--weights", str(run / "model.pth"), "--rows", "nms"]
    done = subprocess.run(
        [sys.executable, "-m", "iounet.cli", "eval", *data], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "3/3" in done.stderr
    assert done.stdout.startswith("3 images")
    assert not list(tmp_path.iterdir())
    assert open_dataset(f"coco:{scenes}", "val").classes == ("disc", "star")
