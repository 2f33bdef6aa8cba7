"""Non-maximum suppression for users: arguments are checked here, and what the operators tell is turned into lists."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from . import _ops

__all__ = ["batched_nms", "iou_guided_nms", "nms", "soft_nms"]

Method = Literal["linear", "gaussian"]
Key = Literal["iou", "product"]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    r"""Greedy non-maximum suppression, as ``torchvision.ops.nms``.

    The box of the highest score is kept and removes the boxes whose IoU with it is above the threshold; so on with
    those left. Of equal scores the first counts as higher, NaN as higher than all. A box with NaN or infinite
    coordinates is kept and removes none. float16 and bfloat16 are computed in float32. No gradient.

    One `nonzero` makes the list: on a GPU that waits for the device, and under ``torch.compile(fullgraph=True)`` it
    asks for ``torch._dynamo.config.capture_dynamic_output_shape_ops``.

    Args:
        boxes: Corners ``(x1, y1, x2, y2)``, floating, ``[N, 4]``.
        scores: Floating, ``[N]``.
        iou_threshold: In [0, 1].

    Returns:
        Indices of the kept boxes by decreasing score, int64.

    Raises:
        ValueError: a shape, a length or a device does not fit, or the threshold is not in [0, 1].
        TypeError: ``boxes`` or ``scores`` are not floating.

    Example:
        >>> import iounet
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]])
        >>> iounet.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)
        tensor([0, 2])

    Reference:
        Neubeck and Van Gool, "Efficient Non-Maximum Suppression", ICPR 2006.
    """
    _check(boxes, iou_threshold, scores=scores)
    scores = scores.detach()
    return _kept(_owner(boxes, scores, None, iou_threshold), scores)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    r"""Greedy non-maximum suppression within each class, as ``torchvision.ops.batched_nms`` is meant.

    Classes are told apart by their numbers, not by moving their boxes: coordinates may be negative and numbers large.
    Everything else is as in :func:`nms`.

    Args:
        boxes: Corners ``(x1, y1, x2, y2)``, floating, ``[N, 4]``.
        scores: Floating, ``[N]``.
        idxs: Class, or image, or level of each box: any integers, ``[N]``.
        iou_threshold: In [0, 1].

    Returns:
        Indices of the kept boxes of all classes by decreasing score, int64.

    Raises:
        ValueError: a shape, a length or a device does not fit, or the threshold is not in [0, 1].
        TypeError: ``boxes`` or ``scores`` are not floating, or ``idxs`` are not integers.

    Example:
        >>> import iounet
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10]])
        >>> iounet.ops.batched_nms(boxes, torch.tensor([0.7, 0.8, 0.9]), torch.tensor([1, 1, 2]), 0.5)
        tensor([2, 1])

    Reference:
        https://docs.pytorch.org/vision/stable/generated/torchvision.ops.batched_nms.html
    """
    _check(boxes, iou_threshold, scores=scores)
    _check_labels(boxes, idxs, "idxs")
    scores = scores.detach()
    return _kept(_owner(boxes, scores, idxs, iou_threshold), scores)


def iou_guided_nms(
    boxes: Tensor,
    scores: Tensor,
    localization: Tensor,
    labels: Tensor,
    iou_threshold: float = 0.5,
    *,
    key: Key = "iou",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Non-maximum suppression ranked by predicted IoU, with the best score of each cluster (Algorithm 1).

    As :func:`batched_nms` by ``key`` instead of ``scores``. A box and those that it removed are a cluster, and

    .. math:: \text{cluster\_score} = \max_{j \in \text{cluster}} \text{scores}_j .

    A box is in one cluster: that of the first box that removes it.

    Args:
        boxes: Corners ``(x1, y1, x2, y2)``, floating, ``[N, 4]``.
        scores: Class confidence, floating, ``[N]``.
        localization: Predicted IoU, floating, ``[N]``.
        labels: Class of each box: any integers, ``[N]``.
        iou_threshold: In [0, 1]; the default is ours, since the paper does not tell its threshold.
        key: What ranks the boxes: ``"iou"``, as in the paper, or ``"product"`` of score and predicted IoU.

    Returns:
        ``keep``, indices of the kept boxes, int64, by decreasing cluster score and, where these are equal, by
        decreasing key; ``cluster_score`` of these boxes, in the dtype of ``scores``; ``cluster_id``, int64 ``[N]``, the
        position in ``keep`` of the box that each box belongs to.

    Raises:
        ValueError: a shape, a length or a device does not fit, the threshold is not in [0, 1], or ``key`` is unknown.
        TypeError: ``boxes``, ``scores`` or ``localization`` are not floating, or ``labels`` are not integers.

    Example:
        >>> import iounet
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]])
        >>> scores, ious = torch.tensor([0.2, 0.9, 0.5]), torch.tensor([0.9, 0.8, 0.7])
        >>> iounet.ops.iou_guided_nms(boxes, scores, ious, torch.tensor([1, 1, 1]))
        (tensor([0, 2]), tensor([0.9000, 0.5000]), tensor([0, 0, 1]))

    Reference:
        Jiang et al., "Acquisition of Localization Confidence for Accurate Object Detection", ECCV 2018.
    """
    _check(boxes, iou_threshold, scores=scores, localization=localization)
    _check_labels(boxes, labels, "labels")
    _check_choice("key", key, Key)
    scores, rank = scores.detach(), localization.detach()
    if key == "product":
        rank = scores.to(torch.promote_types(scores.dtype, torch.float32)) * rank
    owner = _owner(boxes, rank, labels, iou_threshold)
    keep = _kept(owner, rank)
    cluster = scores.scatter_reduce(0, owner, scores, "amax")
    cluster_score, order = cluster.index_select(0, keep).sort(descending=True, stable=True)
    keep = keep.index_select(0, order)
    place = owner.scatter(0, keep, torch.arange(len(keep), device=keep.device))
    return keep, cluster_score, place.index_select(0, owner)


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float = 0.3,
    *,
    method: Method = "linear",
    sigma: float = 0.5,
    min_score: float = 1e-3,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Soft-NMS: a box that overlaps a better one loses score, instead of being removed.

    The box of the highest score is taken, and multiplies the scores of those left, by their IoU with it, with

    .. math::
        1 - \text{IoU} \text{ if } \text{IoU} > \text{iou\_threshold}, \text{ else } 1 \quad \text{(linear)}, \qquad
        e^{-\text{IoU}^2 / \sigma} \quad \text{(gaussian)};

    boxes that fall below ``min_score`` are dropped; so on with those left. Of equal scores the first counts as higher,
    NaN as higher than all. float16 and bfloat16 are computed in float32. No gradient.

    Args:
        boxes: Corners ``(x1, y1, x2, y2)``, floating, ``[N, 4]``.
        scores: Floating, ``[N]``.
        iou_threshold: In [0, 1], default 0.3 (the paper); ``"gaussian"`` has none.
        method: ``"linear"`` or ``"gaussian"``.
        sigma: Positive, default 0.5 (the paper); ``"linear"`` has none.
        min_score: Lowest score that is not dropped, default 0.001 (the authors' code).
        labels: Class of each box, integers ``[N]``: boxes of different classes leave each other alone. None: one class.

    Returns:
        Indices of the boxes that are left, int64, by decreasing new score, and these scores, in the dtype of
        ``scores``.

    Raises:
        ValueError: a shape, a length or a device does not fit, or an option is out of its range or unknown.
        TypeError: ``boxes`` or ``scores`` are not floating, or ``labels`` are not integers.

    Example:
        >>> import iounet
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 0, 30, 10]])
        >>> iounet.ops.soft_nms(boxes, torch.tensor([0.9, 0.6, 0.5]))
        (tensor([0, 2, 1]), tensor([0.9000, 0.5000, 0.4000]))

    Reference:
        Bodla et al., "Soft-NMS: Improving Object Detection With One Line of Code", ICCV 2017.
    """
    _check(boxes, iou_threshold, scores=scores)
    if labels is not None:
        _check_labels(boxes, labels, "labels")
    _check_choice("method", method, Method)
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be positive and finite, got {sigma}")
    if not -math.inf < min_score < math.inf:
        raise ValueError(f"min_score must be finite, got {min_score}")
    order, new_scores = _ops.soft_nms_order(
        boxes.detach(), scores.detach(), labels, iou_threshold, sigma, min_score, get_args(Method).index(method)
    )
    left = (new_scores != -math.inf).nonzero().squeeze(1)
    return order.index_select(0, left), new_scores.index_select(0, left)


def _owner(boxes: Tensor, key: Tensor, labels: Tensor | None, iou_threshold: float) -> Tensor:
    owner: Tensor = _ops.nms_owner(boxes.detach(), key, labels, iou_threshold)
    return owner


def _kept(owner: Tensor, key: Tensor) -> Tensor:
    """The boxes that own themselves, by decreasing key."""
    kept = (owner == torch.arange(len(owner), device=owner.device)).nonzero().squeeze(1)
    return kept.index_select(0, key.index_select(0, kept).argsort(descending=True, stable=True))


def _check(boxes: Tensor, iou_threshold: float, **values: Tensor) -> None:
    if not isinstance(boxes, Tensor) or not boxes.is_floating_point():
        raise TypeError(f"boxes must be a floating-point tensor, got {_kind(boxes)}")
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have shape [N, 4], got {list(boxes.shape)}")
    for name, value in values.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {_kind(value)}")
        _check_like(boxes, value, name)
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be in [0, 1], got {iou_threshold}")


def _check_labels(boxes: Tensor, labels: Tensor, name: str) -> None:
    if not isinstance(labels, Tensor) or labels.dtype not in _INTEGERS:
        raise TypeError(f"{name} must be a tensor of integers, got {_kind(labels)}")
    _check_like(boxes, labels, name)


def _check_like(boxes: Tensor, value: Tensor, name: str) -> None:
    if value.dim() != 1 or len(value) != len(boxes):
        raise ValueError(f"{name} must have shape [{len(boxes)}], one per box, got {list(value.shape)}")
    if value.device != boxes.device:
        raise ValueError(f"{name} must be on the device of boxes, {boxes.device}, got {value.device}")


def _check_choice(name: str, choice: str, allowed: object) -> None:
    if choice not in get_args(allowed):
        raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, got {choice!r}")


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


_INTEGERS = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})
