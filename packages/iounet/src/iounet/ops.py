"""The operators, checked and differentiable: pooling, and the family of non-maximum suppression."""

from ._pooling import prroi_pool
from ._suppression import batched_nms, iou_guided_nms, nms, soft_nms

__all__ = ["batched_nms", "iou_guided_nms", "nms", "prroi_pool", "soft_nms"]
