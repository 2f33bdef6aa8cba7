"""The training boxes of the IoU head: jittered ground truth of a batch of images, and the loss on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable imports the compiler at once
from torchvision.ops import clip_boxes_to_image

from .._boxes import pairwise_iou
from .._jitter import sample_jittered_boxes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .._head import IoUHead
    from .._pooling import MultiScalePrRoIPool
    from ._options import Options

__all__ = ["jittered_loss"]


def _instances(target: Mapping[str, Any], image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Boxes and labels of the ground truth that jitter can start from: the part in the image, and no crowds."""
    boxes = clip_boxes_to_image(target["boxes"].detach(), image_size)
    good = (boxes[:, 2:] > boxes[:, :2]).all(1)
    if "iscrowd" in target:
        good &= ~target["iscrowd"].to(good.device).bool()
    return boxes[good], target["labels"][good]


@_disable_dynamo  # it depends on data, and needs no gradients
def _sample(target: Mapping[str, Any], image_size: tuple[int, int], options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """`samples_per_image` boxes, spread evenly over the ground truth of an image, with their labels and IoUs."""
    gt, labels = _instances(target, image_size)
    if not len(gt):
        return gt, labels, gt.new_empty(0)
    generator = None
    if "jitter_seed" in target:
        generator = torch.Generator().manual_seed(int(target["jitter_seed"]))
    per_gt = -(-options.samples_per_image // len(gt))
    boxes, iou = sample_jittered_boxes(gt, per_gt, image_size=image_size, generator=generator)
    some = torch.randperm(len(gt) * per_gt, generator=generator)[: options.samples_per_image].to(gt.device)
    boxes, iou, source = boxes.flatten(0, 1)[some], iou.flatten()[some], labels.repeat_interleave(per_gt)[some]
    if options.target == "max":
        iou = (pairwise_iou(boxes, gt) * (source[:, None] == labels)).amax(1)
    return boxes, source, iou


def jittered_loss(
    pool: MultiScalePrRoIPool,
    head: IoUHead,
    features: dict[str, Tensor],
    image_sizes: Sequence[tuple[int, int]],
    targets: Sequence[Mapping[str, Any]],
    options: Options,
) -> Tensor:
    """The weighted loss of the head on jittered ground truth; 0, but connected, when there is none."""
    boxes, labels, iou = zip(
        *(_sample(target, size, options) for target, size in zip(targets, image_sizes, strict=True)), strict=True
    )
    label = torch.cat(labels)
    raw = head(pool(features, list(boxes), list(image_sizes)), label)
    return options.loss_weight * head.loss(raw, label, torch.cat(iou))
