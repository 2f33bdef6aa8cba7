"""The options that both kinds of detector share, checked when given; `_samples` and `_rescoring` follow them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch

from .._refinement import refine_boxes

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Key", "Loss", "Nms", "Options", "Score", "Target"]

Nms: TypeAlias = Literal["iou", "nms", "soft"]
Key: TypeAlias = Literal["iou", "product"]
Score: TypeAlias = Literal["class", "product"]
Loss: TypeAlias = Literal["smooth_l1", "bce"]
Target: TypeAlias = Literal["source", "max"]

_CHOICES = {"nms": Nms, "key": Key, "score": Score, "loss": Loss, "target": Target}
_REFINE = ("step", "steps", "stop", "tolerance", "scale", "on_degrade", "starts")


@dataclass(frozen=True)
class Options:
    """See :func:`iounet.detection.add_iou_net`."""

    nms: Nms = "iou"
    key: Key = "iou"
    iou_threshold: float | None = None
    refine: bool = True
    refine_top: int = 100
    refine_options: Mapping[str, Any] | None = None
    score: Score = "class"
    samples_per_image: int = 1000
    loss: Loss = "smooth_l1"
    loss_weight: float = 5.0
    target: Target = "source"
    max_candidates: int = 1000

    def __post_init__(self) -> None:
        for name, choice in _CHOICES.items():
            if (value := getattr(self, name)) not in get_args(choice):
                raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(choice)))}, got {value!r}")
        for name, least in (("refine_top", 0), ("samples_per_image", 1), ("max_candidates", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.iou_threshold is not None and not 0 <= self.iou_threshold <= 1:
            raise ValueError(f"iou_threshold must be None or in [0, 1], got {self.iou_threshold}")
        if not (math.isfinite(self.loss_weight) and self.loss_weight >= 0):
            raise ValueError(f"loss_weight must be finite and not negative, got {self.loss_weight}")
        options = dict(self.refine_options or {})
        if unknown := options.keys() - set(_REFINE):
            raise ValueError(f"refine_options may hold {', '.join(_REFINE)}, got {', '.join(sorted(unknown))}")
        no_boxes, no_labels = torch.empty(0, 5), torch.empty(0, dtype=torch.int64)
        refine_boxes(lambda features, boxes, labels: boxes.sum(1), None, no_boxes, no_labels, **options)  # its checks
        object.__setattr__(self, "refine_options", options)
