"""Non-maximum suppression in plain PyTorch, one box after the other: the definition of the operators."""

from __future__ import annotations

import torch
from torch import Tensor


def nms_owner(boxes: Tensor, key: Tensor, labels: Tensor | None, thr: float) -> Tensor:
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    order = key.float().nan_to_num(nan=float("inf")).argsort(descending=True, stable=True).tolist()
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    owner = torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device)
    for i in order:
        if owner[i] >= 0:
            continue
        low, high = torch.maximum(boxes[i, :2], boxes[:, :2]), torch.minimum(boxes[i, 2:], boxes[:, 2:])
        inter = (high - low).clamp(min=0).prod(1)
        taken = (owner < 0) & (inter / (area[i] + area - inter) > thr)
        if labels is not None:
            taken &= labels == labels[i]
        owner[taken] = i
        owner[i] = i
    return owner
