"""Non-maximum suppression in plain PyTorch, one box after the other: the definition of the operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _iou(boxes: Tensor, area: Tensor, i: Tensor) -> Tensor:
    """Of all boxes with box i. NaN where a box is not finite, or both are empty."""
    box = boxes.index_select(0, i)
    low, high = torch.maximum(boxes[:, :2], box[:, :2]), torch.minimum(boxes[:, 2:], box[:, 2:])
    inter = (high - low).clamp(min=0).prod(1)
    return inter / (area + _area(box) - inter)


def nms_owner(boxes: Tensor, key: Tensor, labels: Tensor | None, thr: float) -> Tensor:
    """For each box the box that removed it, or itself. It reads no number back from the device."""
    boxes = _wide(boxes)
    area = _area(boxes)
    index = torch.arange(len(boxes), device=boxes.device)
    owner = torch.full_like(index, -1)
    for i in _wide(key).argsort(descending=True, stable=True).split(1):
        keeps = owner[i] < 0
        taken = (owner < 0) & keeps & (_iou(boxes, area, i).double() > thr)
        if labels is not None:
            taken &= labels == labels[i]
        owner = torch.where(taken | ((index == i) & keeps), i, owner)
    return owner


def soft_nms_order(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, thr: float, sigma: float, min_score: float, method: int
) -> tuple[Tensor, Tensor]:
    """Indices by decreasing final score, and these scores; -inf for the dropped, which are last."""
    dtype = torch.promote_types(torch.promote_types(boxes.dtype, scores.dtype), torch.float32)
    boxes, score = boxes.to(dtype), scores.to(dtype, copy=True)
    area = _area(boxes)
    index = torch.arange(len(boxes), device=boxes.device)
    left = torch.ones_like(index, dtype=torch.bool)
    final = torch.full_like(score, -torch.inf)
    for _ in range(len(boxes)):
        # The maximum of those left, the first of equals; NaN is above all.
        best = torch.where(left, score, -torch.inf).amax()
        at = torch.where(left & ((score == best) | (score.isnan() & best.isnan())), index, len(boxes)).amin(
            0, keepdim=True
        )
        keeps = ~(score[at] < min_score)
        final = torch.where((index == at) & keeps, score, final)
        left = left & (index != at)
        iou = _iou(boxes, area, at)
        if method == 0:
            factor = torch.where(iou.double() > thr, 1 - iou, 1)
        else:
            factor = torch.where(iou > 0, (-(iou * iou) / sigma).exp(), 1)
        if labels is not None:
            factor = torch.where(labels == labels[at], factor, 1)
        score = torch.where(left & keeps, score * factor, score)
    order = final.argsort(descending=True, stable=True)
    return order, final[order].to(scores.dtype)
