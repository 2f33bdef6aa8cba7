"""iounet under hostile annotations, detections, checkpoints, tensors and arguments."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import torch
from fuzz.choices import Choices, spoiled
from fuzz.of_adamod import OF_TORCH, leaves
from fuzz.of_vade import safetensors_mended
from fuzz.targets import Target, need
from PIL import Image
from safetensors.torch import save

import iounet
from iounet import coco, ops
from iounet._files import read_weights
from iounet.data import collate, open_dataset

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}, {"id": 2, "file_name": "b.png"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 9, "bbox": [1, 1.5, 4, 3]},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
}
_FOUND = [
    {"image_id": 1, "category_id": 3, "bbox": [0, 0, 4, 4], "score": 0.9, "iou": 0.8},
    {"image_id": 2, "category_id": 9, "bbox": [1, 1, 4, 3], "score": 0.5, "iou": 0.4},
]
_VOC = """<annotation><filename>a.png</filename><size><width>8</width><height>6</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox>
</object></annotation>"""
_YAML = "path: .\ntrain: images\nval: images\nnames:\n  0: cat\n  1: 'dog'  # a comment\n"
_YOLO = "0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.9 0.1 0.9 0.9\n"


def prepare() -> None:
    """What all targets need, before they are timed."""
    coco.evaluate(_COCO, _FOUND)
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    iounet.refine_boxes(lambda features, rois, labels: rois[:, 1:].sum(1) * 0.01, None, boxes, None, steps=1)


def _pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 6), "red").save(folder / name)


def _read(spec: str) -> None:
    """A data set, of which all is read."""
    dataset = open_dataset(spec)
    samples = [dataset[k] for k in range(min(len(dataset), 3))]
    for image, target in samples:
        need(image.ndim == 3 and image.dtype == torch.float32, "an image must be one")
        need(target["boxes"].shape == (len(target["labels"]), 4), "boxes must be four numbers")
        need(bool(target["boxes"].isfinite().all()), f"boxes must be finite: {target}")
        need(bool((target["labels"] >= 1).all()), f"labels must be from 1: {target}")
    collate(samples)
    json.dumps(dataset.annotations(), allow_nan=False)


# Files.


def _coco_file(data: bytes, folder: Path) -> None:
    _pictures(folder)
    (folder / "truth.json").write_bytes(data)
    _read(f"coco:{folder / 'truth.json'}")


def _voc_file(data: bytes, folder: Path) -> None:
    _pictures(folder / "voc" / "JPEGImages")
    (folder / "voc" / "Annotations").mkdir()
    (folder / "voc" / "Annotations" / "a.xml").write_bytes(data)
    _read(f"voc:{folder / 'voc'}")


def _yolo_file(name: str) -> Callable[[bytes, Path], None]:
    def run(data: bytes, folder: Path) -> None:
        root = folder / "yolo"
        _pictures(root / "images")
        (root / "labels").mkdir()
        (root / "data.yaml").write_text(_YAML)
        (root / "labels" / "a.txt").write_text(_YOLO)
        (root / name).write_bytes(data)
        _read(f"yolo:{root}")

    return run


def _image_file(data: bytes, folder: Path) -> None:
    _pictures(folder)
    (folder / "a.png").write_bytes(data)
    (folder / "truth.json").write_text(json.dumps(_COCO))
    _read(f"coco:{folder / 'truth.json'}")


def _picture_seeds() -> list[bytes]:
    found = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
        out = io.BytesIO()
        Image.new("RGB", (8, 6), "green").save(out, kind)
        found.append(out.getvalue())
    return found


def _truth(data: bytes, folder: Path) -> None:
    (folder / "truth.json").write_bytes(data)
    _sane(coco.evaluate(str(folder / "truth.json"), _FOUND))


def _found(data: bytes, folder: Path) -> None:
    (folder / "found.json").write_bytes(data)
    _sane(coco.evaluate(_COCO, str(folder / "found.json")))


def _sane(report: Any) -> None:
    need(report.ap == -1 or report.ap != report.ap or 0 <= report.ap <= 1, f"a precision must be a share: {report}")
    json.dumps(report.to_dict())
    str(report)


def _documents(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    truth = spoiled(choices, _COCO) if choices.chance(2) else _COCO
    _sane(coco.evaluate(truth, spoiled(choices, _FOUND) if truth is _COCO else _FOUND))


def _weights(suffix: str) -> Callable[[bytes, Path], None]:
    def run(data: bytes, folder: Path) -> None:
        path = folder / f"weights{suffix}"
        path.write_bytes(data)
        weights, _ = read_weights(path)
        need(all(isinstance(x, torch.Tensor) for x in weights.values()), "weights must be tensors")

    return run


def _pickled() -> list[bytes]:
    found = []
    for content in ({"a": torch.ones(2)}, {"model": {"a": torch.ones(1)}, "config": {"model": "x"}}):
        out = io.BytesIO()
        torch.save(content, out)
        found.append(out.getvalue())
    return found


# Tensors and arguments.


def _unchanged(call: Callable[[], Any], *given: Any) -> Any:
    before = list(leaves(list(given)))
    try:
        return call()
    finally:
        need(list(leaves(list(given))) == before, "what is given must not be changed")


def _pooling(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    features = choices.tensor(((1, 2, 4, 5), (2, 3, 3, 3), (0, 2, 4, 4), (1, 0, 3, 3), (1, 1, 0, 4)))
    rois = choices.tensor(((3, 5), (0, 5), (1, 5)))
    if choices.chance(3):
        rois = [choices.tensor(((2, 4), (0, 4))) for _ in range(1 + choices.below(2))]
    size = choices.pick((2, (1, 3), 1, choices.value(small=True)))
    scale = choices.pick((1.0, 0.25, 1e-30, 1e30, choices.value()))
    padding, degenerate = choices.pick(("zeros", "border", choices.value())), choices.pick(("zero", "limit"))

    def call() -> Any:
        out = ops.prroi_pool(features, rois, size, scale, padding=padding, degenerate=degenerate)
        if out.requires_grad and out.numel() and out.dtype.is_floating_point:
            out.float().sum().backward()
        return out

    out = _unchanged(call, features, rois)
    need(out.dtype == features.dtype and out.ndim == 4, "what is pooled must be a map for each box")


def _suppression(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    boxes, scores, other = (
        choices.tensor(((5, 4), (0, 4), (1, 4))),
        choices.tensor(((5,), (0,), (1,))),
        choices.tensor(((5,),)),
    )
    labels = choices.tensor(((5,), (0,), (1,)), ("int64", "int64", "int32", "uint8", "float32", "bool"))
    threshold = choices.pick((0.5, 0.0, 1.0, choices.value()))
    calls: list[Any] = [
        lambda: ops.nms(boxes, scores, threshold),
        lambda: ops.batched_nms(boxes, scores, labels, threshold)[None],
        lambda: ops.iou_guided_nms(boxes, scores, other, labels, threshold),
        lambda: ops.soft_nms(boxes, scores, iou_threshold=threshold),
    ]
    found = _unchanged(choices.pick(calls), boxes, scores, other, labels)
    keep = found[0] if isinstance(found, tuple) else found
    need(bool(((keep >= 0) & (keep < len(boxes))).all()), f"what is kept must be among the boxes: {keep}")


def _jitter(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    gt = choices.tensor(((2, 4), (0, 4)))
    options: dict[str, Any] = {"n": 3, "low": 0.5, "high": 1.0, "image_size": None}
    if choices.chance(2):
        options[choices.pick(list(options))] = choices.value(small=True)
    boxes, iou = _unchanged(lambda: iounet.sample_jittered_boxes(gt, **options), gt)
    need(boxes.shape[:2] == iou.shape, "there must be an IoU for each box")


def _refinement(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    boxes = choices.tensor(((3, 4), (0, 4)))
    boxes = choices.pick((boxes, [boxes, choices.tensor(((2, 4),))]))
    labels = choices.pick((None, choices.tensor(((3,),), ("int64",))))
    options: dict[str, Any] = {"step": 0.5, "steps": 2, "stop": 0.001, "tolerance": -0.01, "scale": "size", "starts": 1}
    options |= {"on_degrade": "keep", "return_trajectory": False, "image_sizes": None}
    if choices.chance(2):
        options[choices.pick(list(options))] = choices.value(small=True)

    def predictor(features: Any, rois: torch.Tensor, labels: Any) -> torch.Tensor:
        return torch.sigmoid(rois[:, 1:].sum(1) * 0.01)

    _unchanged(lambda: iounet.refine_boxes(predictor, None, boxes, labels, **options), boxes, labels)


def _modules(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    value = choices.value
    calls: list[Any] = [
        lambda: iounet.PrRoIPool2d(value(small=True), value())(
            torch.ones(1, 1, 3, 3), torch.tensor([[0, 0, 0, 2.0, 2.0]])
        ),
        lambda: iounet.MultiScalePrRoIPool(value(), value(small=True)),
        lambda: iounet.compat.prroi_pool2d(choices.tensor(((1, 1, 3, 3),)), choices.tensor(((1, 5),)), 2, 2, value()),
        lambda: iounet.data.synthetic_scenes(choices.pick((1, 2, True, -1, None, 0.5, "a")), value(small=True)),
        lambda: open_dataset(value(), value()),
        lambda: coco.evaluate(value(), value()),
        lambda: coco.evaluate(_COCO, _FOUND, max_dets=value(small=True), min_iou=value(), latency=value()),
        lambda: collate(value()),
    ]
    choices.pick(calls)()


TARGETS = [
    Target("iounet-coco", _coco_file, "truth.json", seeds=lambda: [json.dumps(_COCO).encode()]),
    Target("iounet-voc", _voc_file, "voc", seeds=lambda: [_VOC.encode()]),
    Target("iounet-yolo", _yolo_file("labels/a.txt"), "yolo", seeds=lambda: [_YOLO.encode()]),
    Target("iounet-yaml", _yolo_file("data.yaml"), "yolo", seeds=lambda: [_YAML.encode()]),
    Target("iounet-image", _image_file, "a.png", seeds=_picture_seeds),
    Target("iounet-truth", _truth, "truth.json", seeds=lambda: [json.dumps(_COCO).encode()]),
    Target("iounet-found", _found, "", seeds=lambda: [json.dumps(_FOUND).encode()]),
    Target("iounet-documents", _documents),
    Target("iounet-checkpoint", _weights(".pth"), "weights.pth", seeds=_pickled),
    Target(
        "iounet-safetensors",
        _weights(".safetensors"),
        "weights.safetensors",
        mend=safetensors_mended,
        seeds=lambda: [save({"a": torch.ones(2, 2), "b": torch.zeros(3, dtype=torch.int64)})],
    ),
    Target("iounet-pooling", _pooling, refusals=OF_TORCH),
    Target("iounet-suppression", _suppression, refusals=OF_TORCH),
    Target("iounet-jitter", _jitter, refusals=OF_TORCH),
    Target("iounet-refinement", _refinement, refusals=OF_TORCH),
    Target("iounet-modules", _modules, refusals=OF_TORCH),
]
