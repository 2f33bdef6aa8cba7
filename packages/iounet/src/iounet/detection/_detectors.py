"""What `StandaloneIoUNet` must know of torchvision's detectors, and how it reads their candidates."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ._joint import IoURoIHeads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

__all__ = ["before_nms", "evaluating", "nms_settings", "number_of_classes", "output_of"]


def nms_settings(model: nn.Module) -> Any:
    """The module of a detector that holds the settings of its NMS."""
    settings: Any = getattr(model, "roi_heads", model)
    if isinstance(settings, IoURoIHeads):
        raise ValueError("model must not have an IoU head yet, got one that add_iou_net was applied to")
    needed = [(model, "backbone"), (model, "transform"), (settings, "nms_thresh"), (settings, "detections_per_img")]
    if not all(hasattr(module, name) for module, name in needed):
        raise TypeError(
            f"model must be torchvision's RetinaNet, FCOS, SSD or Faster R-CNN, got {type(model).__name__}; "
            "use StandaloneIoUNet(backbone, num_classes) and rescore for others"
        )
    if settings is not model and (settings.has_mask() or settings.has_keypoint()):
        raise TypeError(f"model must predict nothing but boxes, got {type(model).__name__}; use add_iou_net for it")
    return settings


def number_of_classes(model: Any) -> int:
    if hasattr(model, "roi_heads"):
        return int(model.roi_heads.box_predictor.cls_score.out_features)
    head = model.head.classification_head
    return int(head.num_classes if hasattr(head, "num_classes") else head.num_columns)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every part is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def before_nms(settings: Any, candidates: int) -> Iterator[None]:
    """A detector whose NMS removes nothing, and that returns so many boxes of an image, or more."""
    before = settings.nms_thresh, settings.detections_per_img
    settings.nms_thresh, settings.detections_per_img = 1.0, max(candidates, before[1])
    try:
        yield
    finally:
        settings.nms_thresh, settings.detections_per_img = before


@contextmanager
def output_of(module: nn.Module) -> Iterator[list[Any]]:
    """What the module returns at each call."""
    outputs: list[Any] = []
    handle = module.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()
