"""What `bench_bccd.py` runs: a small detector, an IoU head beside it, and the boxes that each rule makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import box_iou, clip_boxes_to_image

from iounet import coco, ops, refine_boxes, training
from iounet.detection import StandaloneIoUNet, small_fasterrcnn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torchvision.models.detection import FasterRCNN

    from iounet.data import DetectionDataset

    Results = list[dict[str, Any]]

THRESHOLD = 0.5  # of both kinds of NMS; chosen on the validation images, as everything here
PAPER: dict[str, Any] = {"step": 0.5, "scale": "size", "on_degrade": "keep"}
MONOTONE: dict[str, Any] = {"step": 0.05, "steps": 10, "scale": "log", "on_degrade": "backtrack"}
NMS, UPPER = "NMS", "IoU-NMS by the true IoU"
RULES: dict[str, dict[str, Any]] = {
    "IoU-NMS": {"refine": False},
    "+ refinement, the paper's": {"refine_options": PAPER},
    "+ refinement, log/backtrack": {"refine_options": MONOTONE},
    "+ the same, NMS by score x IoU": {"refine_options": MONOTONE, "key": "product"},
    "+ the same, ranked by score x IoU": {"refine_options": MONOTONE, "score": "product"},
}
MEAN, STD = [0.66, 0.64, 0.71], [0.16, 0.19, 0.09]  # of the images
CANDIDATES = 1000
ITERATIONS = 10


@dataclass(frozen=True)
class Recipe:
    """How long both are trained, and on how many jittered boxes of an image the head is."""

    detector_epochs: int
    head_epochs: int
    samples: int
    loss: str = "bce"
    side: int = 360  # pixels, of the images that the detector sees

    def detector(self, images: Varied, seed: int, out: Path | None, done: Callable[[float], None]) -> FasterRCNN:
        torch.manual_seed(seed)
        sides = {"min_size": self.side, "max_size": self.side * 4 // 3}
        model = small_fasterrcnn(1 + len(images.classes), **sides, image_mean=MEAN, image_std=STD)
        self._fit(model, images, self.detector_epochs, seed, out, done)
        return model.eval()

    def head(
        self, detector: FasterRCNN, images: Varied, seed: int, out: Path | None, done: Callable[[float], None]
    ) -> StandaloneIoUNet:
        torch.manual_seed(seed)
        net = StandaloneIoUNet.from_detector(detector, samples_per_image=self.samples, loss=self.loss)
        self._fit(net, images, self.head_epochs, seed, out, done)
        return net.eval()

    def _fit(
        self,
        model: torch.nn.Module,
        images: Varied,
        epochs: int,
        seed: int,
        out: Path | None,
        done: Callable[[float], None],
    ) -> None:
        training.fit(
            model,
            images,
            epochs=epochs,
            optimizer="adamw",
            lr=1e-3,
            weight_decay=0.05,
            schedule="cosine",
            clip=5.0,
            flip=0.5,
            vertical_flip=0.5,
            scale=(0.8, 1.25),
            precision="bf16",
            seed=seed,
            out=out,
            resume=out is not None,
            on_epoch=lambda record: done(record["epoch"] / epochs),
        )


class Varied:
    """The images of a data set in memory, at every look in another brightness, tint and contrast."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.classes = dataset.classes
        self.samples = [dataset[i] for i in range(len(dataset))]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        image, target = self.samples[index]
        contrast, *tint = torch.rand(4)
        middle = image.mean((1, 2), keepdim=True)
        shift = 0.1 * (torch.stack(tint)[:, None, None] - 0.5)
        return ((image - middle) * (0.85 + 0.3 * contrast) + middle + shift).clamp(0, 1), target


@torch.no_grad()
def every_rule(
    detector: FasterRCNN, net: StandaloneIoUNet, dataset: DetectionDataset, threshold: float = THRESHOLD
) -> tuple[dict[str, Results], Results]:
    """COCO results of each rule on the same candidates, and the candidates themselves, with predicted IoUs."""
    every = _arranged(detector, net, refine=False, iou_threshold=1.0)
    every.detections_per_img = CANDIDATES
    nets = {rule: _arranged(detector, net, iou_threshold=threshold, **options) for rule, options in RULES.items()}
    found: dict[str, list[dict[str, Tensor]]] = {rule: [] for rule in (NMS, *nets, UPPER)}
    everything = []
    for image, target in (dataset[index] for index in range(len(dataset))):
        (candidates,) = every([image])
        boxes, scores, labels = (candidates[name] for name in ("boxes", "scores", "labels"))
        everything.append(candidates)
        keep = ops.batched_nms(boxes, scores, labels, threshold)
        found[NMS].append({name: x[keep] for name, x in candidates.items()})
        for rule, arranged in nets.items():
            found[rule] += arranged.rescore([image], [candidates])
        keep, cluster, _ = ops.iou_guided_nms(boxes, scores, _true_iou(boxes, labels, target), labels, threshold)
        found[UPPER].append({"boxes": boxes[keep], "scores": cluster, "labels": labels[keep]})
    ids = dataset.image_ids
    results = {rule: coco.to_results(dataset, ids, one) for rule, one in found.items()}
    return results, coco.to_results(dataset, ids, everything)


@torch.no_grad()
def iterated(detector: FasterRCNN, net: StandaloneIoUNet, dataset: DetectionDataset) -> dict[str, list[float]]:
    """Mean true IoU of the detector's boxes, those of IoU .5 and more, after so many iterations of each method."""
    sums: dict[str, Tensor] = {}
    count = 0
    for index in range(len(dataset)):
        image, target = dataset[index]
        batch, scaled = detector.transform([image], [{"boxes": target["boxes"]}])
        size, features = batch.image_sizes[0], detector.backbone(batch.tensors)
        truth = {"boxes": scaled[0]["boxes"], "labels": target["labels"]}
        one = detector([image])[0]
        start, labels = resize_boxes(one["boxes"], image.shape[-2:], size), one["labels"]
        good = _true_iou(start, labels, truth) >= 0.5
        start, labels = start[good], labels[good]
        if not len(start):
            continue
        count += len(start)
        paths = {"the detector's regression, again and again": _regressed(detector, features, size, start, labels)}
        predict = _predictor(net, size, start, labels, features)
        for name, rule in (("refinement, the paper's", PAPER), ("refinement, log/backtrack", MONOTONE)):
            options = {**rule, "steps": ITERATIONS, "stop": 0.0, "image_sizes": [size], "return_trajectory": True}
            result = refine_boxes(predict, features, start, torch.arange(len(start)), **options)
            paths[name] = list(result.trajectory)
        for name, path in paths.items():
            iou = torch.stack([_true_iou(boxes, labels, truth).sum() for boxes in path])
            sums[name] = sums.get(name, 0) + iou
    return {name: (total / count).tolist() for name, total in sums.items()}


def _arranged(detector: FasterRCNN, trained: StandaloneIoUNet, **options: Any) -> StandaloneIoUNet:
    """The same head under another rule."""
    net = StandaloneIoUNet.from_detector(detector, loss=trained.iou_head.loss_kind, **options)
    net.load_state_dict(trained.state_dict())
    return net.eval()


def _true_iou(boxes: Tensor, labels: Tensor, target: dict[str, Tensor]) -> Tensor:
    """With the best box of the class; 0 if there is none."""
    iou = box_iou(boxes, target["boxes"]) * (labels[:, None] == target["labels"])
    return torch.cat([iou, iou.new_zeros(len(iou), 1)], 1).amax(1)


def _predictor(
    net: StandaloneIoUNet, size: tuple[int, int], start: Tensor, labels: Tensor, features: dict[str, Tensor]
) -> Callable[[Any, Tensor, Tensor], Tensor]:
    levels = net.iou_roi_pool.levels(features, [start], [size])

    def predict(features: dict[str, Tensor], boxes: Tensor, rows: Tensor) -> Tensor:
        pooled = net.iou_roi_pool(features, boxes, [size], levels=levels[rows])
        return net.iou_head.decode(net.iou_head(pooled, labels[rows]))

    return predict


def _regressed(
    detector: FasterRCNN, features: dict[str, Tensor], size: tuple[int, int], boxes: Tensor, labels: Tensor
) -> list[Tensor]:
    """The boxes, and those that the box head makes of them, of these, ..."""
    heads, path = detector.roi_heads, [boxes]
    for _ in range(ITERATIONS):
        _, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, [boxes], [size])))
        decoded = heads.box_coder.decode(deltas, [boxes])[torch.arange(len(boxes)), labels]
        boxes = clip_boxes_to_image(decoded, size)
        path.append(boxes)
    return path
