"""What the IoU head does with candidate boxes: non-maximum suppression, refinement and the final score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable imports the compiler at once

from .._refinement import refine_boxes
from .._suppression import batched_nms, iou_guided_nms, soft_nms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._head import IoUHead
    from .._pooling import MultiScalePrRoIPool
    from ._options import Options

__all__ = ["Detections", "Rescorer"]

_SOFT_THRESHOLD = 0.3  # of the paper of Soft-NMS

Detections: TypeAlias = dict[str, Tensor]
"""Of one image: boxes, scores, labels and, once predicted, ious."""


def _select(detections: Detections, index: Tensor | slice) -> Detections:
    return {name: value[index] for name, value in detections.items()}


def _best(detections: Detections, n: int) -> Detections:
    """Those of the n highest scores, in the order in which they came: it decides ties."""
    if len(detections["scores"]) <= n:
        return detections
    return _select(detections, detections["scores"].topk(n).indices.sort().values)


def _rows(detections: Sequence[Detections]) -> Tensor:
    """All boxes as [K,5], the image in column 0."""
    boxes = [one["boxes"] for one in detections]
    return torch.cat([torch.cat([b.new_full((len(b), 1), image), b], 1) for image, b in enumerate(boxes)])


class Rescorer:
    """The steps of inference for one batch, whose features the head reads."""

    def __init__(
        self,
        pool: MultiScalePrRoIPool,
        head: IoUHead,
        features: dict[str, Tensor],
        image_sizes: Sequence[tuple[int, int]],
        options: Options,
    ) -> None:
        self.pool, self.head, self.options = pool, head, options
        self.features = {name: x.detach() for name, x in features.items()}
        self.image_sizes = list(image_sizes)

    @_disable_dynamo  # every number of boxes would be compiled anew
    def __call__(self, candidates: Sequence[Detections], iou_threshold: float, limit: int) -> list[Detections]:
        """At most `limit` detections of each image, by decreasing score; the options may overrule the threshold."""
        options = self.options
        if options.iou_threshold is not None:
            iou_threshold = options.iou_threshold
        elif options.nms == "soft":
            iou_threshold = _SOFT_THRESHOLD
        if options.nms == "iou":
            candidates = self._predicted([_best(one, options.max_candidates) for one in candidates])
        kept = [_select(self._suppressed(one, iou_threshold), slice(limit)) for one in candidates]
        if options.nms != "iou":
            kept = self._predicted(kept)
        if options.refine and options.refine_top:
            kept = self._refined(kept)
        for one in kept:
            one["ious"] = one["ious"].clamp(0, 1)
        if options.score == "product":
            for one in kept:
                one["scores"] = one["scores"] * one["ious"]
            kept = [_select(one, one["scores"].sort(descending=True, stable=True).indices) for one in kept]
        return kept

    def _predictor(self, detections: Sequence[Detections]) -> tuple[Tensor, Callable[..., Tensor]]:
        """Their boxes [K,5], and the IoU of boxes that start at some rows of them: level and class are the row's."""
        start = _rows(detections)
        levels = self.pool.levels(self.features, start, self.image_sizes)
        labels = torch.cat([one["labels"] for one in detections])

        def predict(features: dict[str, Tensor], boxes: Tensor, rows: Tensor) -> Tensor:
            x = self.pool(features, boxes, self.image_sizes, levels=levels[rows])
            return self.head.decode(self.head(x, labels[rows])).to(boxes.dtype)

        return start, predict

    def _predicted(self, detections: Sequence[Detections]) -> list[Detections]:
        boxes, predict = self._predictor(detections)
        with torch.no_grad():
            iou = predict(self.features, boxes, torch.arange(len(boxes), device=boxes.device))
        parts = iou.split([len(one["boxes"]) for one in detections])
        return [{**one, "ious": part} for one, part in zip(detections, parts, strict=True)]

    def _suppressed(self, one: Detections, iou_threshold: float) -> Detections:
        boxes, scores, labels = one["boxes"].detach(), one["scores"], one["labels"]
        if self.options.nms == "iou":
            keep, scores, _ = iou_guided_nms(boxes, scores, one["ious"], labels, iou_threshold, key=self.options.key)
        elif self.options.nms == "soft":
            keep, scores = soft_nms(boxes, scores, iou_threshold, labels=labels)
        else:
            keep = batched_nms(boxes, scores, labels, iou_threshold)
            scores = scores[keep]
        return {**_select(one, keep), "scores": scores}

    def _refined(self, detections: Sequence[Detections]) -> list[Detections]:
        top = self.options.refine_top
        start, predict = self._predictor([_select(one, slice(top)) for one in detections])
        rows = torch.arange(len(start), device=start.device)
        result = refine_boxes(
            predict, self.features, start, rows, image_sizes=self.image_sizes, **(self.options.refine_options or {})
        )
        moved: Any = result.boxes  # [K,5], as they were given
        counts = [min(top, len(one["boxes"])) for one in detections]
        refined = zip(detections, moved[:, 1:].split(counts), result.iou.split(counts), strict=True)
        return [
            {
                **one,
                "boxes": torch.cat([boxes, one["boxes"][top:].detach()]),
                "ious": torch.cat([iou, one["ious"][top:]]),
            }
            for one, boxes, iou in refined
        ]
