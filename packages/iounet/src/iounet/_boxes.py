"""IoU of boxes in plain PyTorch, differentiable in both arguments."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["paired_iou", "pairwise_iou"]


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of corresponding xyxy boxes ``[..., 4]``, broadcast -> ``[...]``.

    16-bit boxes are computed in float32. An empty or inverted box has area 0, and IoU 0 with every box; a NaN
    coordinate gives NaN.
    """
    a, b = _wide(a), _wide(b)
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    union = _area(a) + _area(b) - inter
    return inter / torch.where(union > 0, union, 1)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of every xyxy box of ``a[N, 4]`` with every one of ``b[M, 4]`` -> ``[N, M]``, as :func:`paired_iou`."""
    return paired_iou(a[:, None], b[None])


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def _wide(boxes: Tensor) -> Tensor:
    return boxes.float() if boxes.dtype in (torch.float16, torch.bfloat16) else boxes
