"""Detectors on data: labels by their names, rows of options that are compared, boxes of other detectors rescored."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from ._boxes import pairwise_iou
from .data._images import SUFFIXES, need_pillow, read_rgb, size_of
from .detection import StandaloneIoUNet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .data import DetectionDataset

__all__ = [
    "RECOMMENDED",
    "ROWS",
    "Images",
    "Relabelled",
    "above",
    "batches",
    "candidates",
    "compare",
    "has_iou_net",
    "inference",
    "of_images",
    "on",
    "path_of",
    "rescorer",
    "to_results",
]

RECOMMENDED: dict[str, Any] = {"scale": "log", "step": 0.05, "on_degrade": "backtrack"}
ROWS: dict[str, dict[str, Any]] = {
    "nms": {"nms": "nms", "refine": False, "score": "class"},
    "iou-nms": {"nms": "iou", "refine": False, "score": "class"},
    "refine": {"nms": "iou", "refine": True, "refine_options": None, "score": "class"},
    "refine-log": {"nms": "iou", "refine": True, "refine_options": RECOMMENDED, "score": "class"},
    "product": {"nms": "iou", "refine": True, "refine_options": RECOMMENDED, "score": "product"},
}
"""What `iounet eval` compares: the paper's steps one by one, then our rule, then the product score with it."""

Detections = dict[str, Tensor]
_FIELDS = ("boxes", "labels", "scores", "ious")


class Images:
    """Image files, and those of folders in the order of their names."""

    def __init__(self, paths: Sequence[str]) -> None:
        need_pillow()
        self.files: list[Path] = []
        for path in map(Path, paths):
            if path.is_dir():
                inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
                if not inside:
                    raise ValueError(f"{path} must hold images ({', '.join(sorted(SUFFIXES))}), got none")
                self.files += inside
            else:
                self.files.append(path)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        file = self.files[index]
        image = read_rgb(file, str(file), size_of(file, str(file)))
        return image, {"image_id": index + 1}

    def to_results(
        self, classes: Sequence[str], image_ids: Sequence[int], detections: Sequence[Detections]
    ) -> list[dict[str, Any]]:
        """COCO results with the names of files and classes, as there are no annotations to look them up in."""
        from . import coco

        results = coco.to_results(
            range(1, len(classes) + 1), image_ids, [on(one, torch.device("cpu")) for one in detections]
        )
        for result in results:
            result["category"] = classes[result["category_id"] - 1]
            result["file_name"] = str(self.files[result["image_id"] - 1])
        return results


class Relabelled:
    """A data set whose labels are those of a model, found by the names of the classes."""

    def __init__(self, dataset: DetectionDataset, classes: Sequence[str]) -> None:
        self.dataset = dataset
        missing = [name for name in dataset.classes if name not in classes]
        if missing:
            raise ValueError(f"the model must know the classes of the data, which it does not: {', '.join(missing)}")
        self.labels = torch.tensor([0, *(classes.index(name) + 1 for name in dataset.classes)])

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        image, target = self.dataset[index]
        return image, {**target, "labels": self.labels[target["labels"]]}


def to_results(
    dataset: DetectionDataset, classes: Sequence[str], image_ids: Sequence[int], detections: Sequence[Detections]
) -> list[dict[str, Any]]:
    """COCO results of a model's detections; those of classes that the data does not have are left out."""
    from . import coco

    ids = dict(zip(dataset.classes, dataset.category_ids, strict=True))
    known = torch.tensor([False, *(name in ids for name in classes)])
    kept = [{name: x.cpu()[known[one["labels"].cpu()]] for name, x in one.items()} for one in detections]
    return coco.to_results([ids.get(name, -1) for name in classes], image_ids, kept)


# ---- options


def has_iou_net(model: nn.Module) -> bool:
    return hasattr(_owner(model), "iou_options")


def _owner(model: nn.Module) -> Any:
    """What has the options of `add_iou_net`, if anything has."""
    return model if isinstance(model, StandaloneIoUNet) else getattr(model, "roi_heads", None)


@contextmanager
def inference(model: nn.Module, **changes: Any) -> Iterator[None]:
    """Other options of `add_iou_net` for a while; a model without IoU head has none to change."""
    if not has_iou_net(model):
        yield
        return
    owner = _owner(model)
    before = owner.iou_options
    owner.iou_options = replace(before, **changes)
    try:
        yield
    finally:
        owner.iou_options = before


def rescorer(model: nn.Module) -> StandaloneIoUNet:
    """The IoU head of a model as one that rescores boxes of any origin."""
    if isinstance(model, StandaloneIoUNet):
        return model
    detector: Any = model
    heads = detector.roi_heads
    net = StandaloneIoUNet(
        detector.backbone,
        heads.iou_head.num_classes,
        featmap_names=heads.box_roi_pool.featmap_names,
        transform=detector.transform,
        detections_per_img=heads.detections_per_img,
    )
    net.iou_roi_pool, net.iou_head, net.iou_options = heads.iou_roi_pool, heads.iou_head, heads.iou_options
    if net.iou_options.iou_threshold is None and net.iou_options.nms != "soft":
        net.iou_options = replace(net.iou_options, iou_threshold=heads.nms_thresh)
    return net.train(model.training)


# ---- running


def batches(
    source: Any, indices: Sequence[int], batch_size: int, workers: int
) -> Iterator[list[tuple[Tensor, dict[str, Any]]]]:
    """The samples at these indices, in order."""
    loader: DataLoader[Any] = DataLoader(Subset(source, indices), batch_size, num_workers=workers, collate_fn=list)
    yield from loader


def compare(
    model: nn.Module, images: list[Tensor], rows: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, list[Detections]], dict[str, float]]:
    """Detections with the options of each row, and the seconds per image that they took."""
    found: dict[str, list[Detections]] = {}
    seconds: dict[str, float] = {}
    for row, options in rows.items():
        with torch.no_grad(), inference(model, **options):
            _wait(images[0].device)
            began = time.perf_counter()
            found[row] = model(images)
            _wait(images[0].device)
            seconds[row] = (time.perf_counter() - began) / len(images)
    return found, seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def on(detections: Detections, device: torch.device) -> Detections:
    """The same on a device."""
    return {name: x.to(device) for name, x in detections.items()}


def above(detections: Detections, score: float) -> Detections:
    """Those of at least that score, and only what is known of boxes."""
    kept = detections["scores"] >= score
    return {name: detections[name][kept] for name in _FIELDS if name in detections}


def candidates(path: str, dataset: DetectionDataset, classes: Sequence[str]) -> dict[int, Detections]:
    """The boxes of a file of COCO results by image, with the labels of a model of these classes.

    Raises:
        ValueError: an entry is malformed, or names an image or a category that the data does not have.
    """
    from . import coco

    found, _ = coco._found(path, coco._table(dataset))
    labels = Relabelled(dataset, classes).labels[torch.from_numpy(found.label)]
    boxes = torch.from_numpy(found.xywh).clone()
    boxes[:, 2:] += boxes[:, :2]
    ranks = torch.from_numpy(found.image)
    result = {}
    for rank, image_id in enumerate(sorted(dataset.image_ids), 1):
        own = ranks == rank
        if own.any():
            scores = torch.from_numpy(found.score)[own].float()
            result[image_id] = {"boxes": boxes[own].float(), "labels": labels[own], "scores": scores}
    return result


def of_images(annotations: dict[str, Any], image_ids: Sequence[int]) -> dict[str, Any]:
    """The part of a COCO document that is about these images."""
    ids = set(image_ids)
    return {
        **annotations,
        "images": [image for image in annotations["images"] if image["id"] in ids],
        "annotations": [box for box in annotations["annotations"] if box["image_id"] in ids],
    }


def path_of(steps: Sequence[Detections], target: Mapping[str, Any]) -> dict[str, Tensor]:
    """The true and the predicted IoU of the same detections after each step, if the first true one is .5 or more."""
    same = steps[0]["labels"].cpu()[:, None] == target["labels"]
    real, told = [], []
    for one in steps:
        pairs = torch.cat([pairwise_iou(one["boxes"].cpu(), target["boxes"]) * same, torch.zeros(len(same), 1)], 1)
        real.append(pairs.amax(1))
        told.append(one["ious"].cpu())
    good = real[0] >= 0.5
    return {"true": torch.stack(real)[:, good], "predicted": torch.stack(told)[:, good]}
