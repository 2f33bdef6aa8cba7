"""Box refinement: gradient ascent of a predicted IoU over the coordinates of the boxes."""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, get_args

import torch
from torch import Tensor, nn

from ._ascent import OnDegrade, Rule, Scale, State, ascend, ascend_together, clipped_unless_lost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Rebuild = Callable[[Tensor], Tensor | list[Tensor]]

__all__ = ["RefineResult", "refine_boxes"]


class Predictor(Protocol):
    def __call__(self, features: Any, boxes: Tensor, labels: Any, /) -> Tensor: ...


class RefineResult(NamedTuple):
    """What :func:`refine_boxes` returns, without a graph; rows are those of the boxes, lists one after the other."""

    boxes: Tensor | list[Tensor]
    """The refined boxes in the form of the argument."""
    iou: Tensor
    """Predicted IoU of the refined boxes, ``[K]``."""
    initial_iou: Tensor
    """Predicted IoU of the boxes as they were given (clipped, if they are), ``[K]``."""
    steps: Tensor
    """Steps that moved the box and were not undone, int64 ``[K]``."""
    reason: Tensor
    """Why the box stopped, int64 ``[K]``: 0 steps used, 1 converged, 2 degraded, 3 would vanish."""
    trajectory: Tensor | None
    """xyxy after every step, the first the start, ``[steps + 1, K, 4]``; None unless asked for."""
    trajectory_iou: Tensor | None
    """Predicted IoU of the trajectory, ``[steps + 1, K]``; None unless asked for."""


def refine_boxes(
    predictor: Predictor,
    features: Any,
    boxes: Tensor | Sequence[Tensor],
    labels: Tensor | Sequence[Tensor] | None,
    *,
    step: float = 0.5,
    steps: int = 5,
    stop: float = 0.001,
    tolerance: float = -0.01,
    scale: Scale = "size",
    on_degrade: OnDegrade = "keep",
    starts: int = 1,
    return_trajectory: bool = False,
    image_sizes: Sequence[Any] | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> RefineResult:
    r"""Move each box uphill on its predicted IoU.

    .. math::
        b \leftarrow b + \text{step} \cdot \frac{\partial\,\mathrm{IoU}(b)}{\partial b} \odot (w, h, w, h)

    and a box stops when its IoU changes by less than ``stop``, or falls by more than ``-tolerance``. The defaults are
    the paper's rule, which moves boxes of all sizes by about the same number of *pixels*, because the gradient is as
    1/w. ``scale="log", step=0.05, on_degrade="backtrack"`` is what we recommend: it moves large and small boxes alike,
    and the predicted IoU never falls.

    Args:
        predictor: ``predictor(features, boxes[K, 5], labels[K]) -> IoU[K]`` in [0, 1], differentiable in boxes; each
            row may depend on its own box only. A module, or the owner of a bound method, runs in eval mode and is put
            back afterwards; parameters get no ``.grad``. It is called at most ``steps + 1`` times, once more if
            ``starts > 1``, in every mode; rows may come in part, and repeated.
        features: passed through; tensors in lists, tuples and dicts are detached, and cloned if they were made in
            inference mode. What a closure captures cannot be: pass it here.
        boxes: ``[K, 5]`` with the image's index first, ``[K, 4]`` xyxy (one image), or a list of ``[L, 4]`` per image.
            16-bit boxes become float32.
        labels: ``[K]`` (a list, if boxes are one), passed through by rows; or None.
        step: length of a step (default 0.5, the paper's).
        steps: how many at most (default 5, the paper's).
        stop: change of the IoU below which a box has converged (default 0.001, the paper's).
        tolerance: change of the IoU below which a box has degraded (default -0.01, the paper's).
        scale: "size" (default, the paper's), or "log": ascent in (cx/w, cy/h, log w, log h), where boxes of any size
            make the same relative move and cannot turn inside out.
        on_degrade: "keep" a degraded box (default, the paper's) and stop it; "revert" it to where it was and stop; or
            "backtrack": undo any step that lowers the IoU, halve that box's step and go on.
        starts: begin also from ``starts - 1`` copies of each box, moved at random (centre by 5 % and sides by 25 % of
            sqrt(wh) at most), and return the mean of the best three (default 1; ATOM's idea). ``steps``, ``reason`` are
            then those of the best start, and the trajectory is the mean of the three.
        return_trajectory: whether to return every step.
        image_sizes: (height, width) per image, a list or a tensor ``[N, 2]``, or one pair for a single image, to clip
            boxes to (default: no clipping).
        generator: of the random starts.

    On CPU boxes that have stopped are left out; elsewhere they are masked, without synchronisation, so that the call
    can be captured in a CUDA graph. A box with a NaN in its predicted IoU or gradient stays at its last good position
    with reason 2; one whose side would be 0.001 px or less, with reason 3.

    Raises:
        ValueError: a shape or option out of its range; ``predictor`` returns not ``[K]``, or not connected to boxes.
        TypeError: boxes are not floating.

    Warns:
        UserWarning: ``scale="log"`` with a step above 0.2 and no backtracking, which makes most boxes worse.

    Example:
        >>> gt = torch.tensor([0.0, 20.0, 40.0, 60.0, 80.0])
        >>> def predictor(features, boxes, labels):  # 1 at the ground truth
        ...     side = (gt[3:] - gt[1:3]).repeat(2)
        ...     return 1 - ((boxes - gt)[:, 1:].abs() / side).sum(1)
        >>> boxes = torch.tensor([[24.0, 38.0, 63.0, 79.0]])
        >>> result = refine_boxes(predictor, None, boxes, None, scale="log", step=0.05, on_degrade="backtrack")
        >>> bool(result.iou > result.initial_iou), result.boxes.shape
        (True, torch.Size([1, 4]))

    Reference: B. Jiang et al., Acquisition of Localization Confidence for Accurate Object Detection, algorithm 2,
    https://arxiv.org/abs/1807.11590; random starts: M. Danelljan et al., ATOM, https://arxiv.org/abs/1811.07628.
    """
    rule = Rule(step, steps, stop, tolerance, scale, on_degrade)
    _check(rule, starts)
    with torch.inference_mode(False), torch.no_grad(), _evaluating(predictor):
        batch, start, rebuild = _rows(boxes)
        limit = _limits(image_sizes, batch, boxes)
        query = _Query(predictor, _usable(features), batch, _usable(_label_rows(labels, len(start))))
        if scale == "log" and step > 0.2 and on_degrade != "backtrack":
            message = f'scale="log" with step={step:g} overshoots: use step=0.05, on_degrade="backtrack"'
            warnings.warn(message, stacklevel=2)
        if limit is not None:
            start = clipped_unless_lost(start, limit)
        if not len(start):
            path = [_no_state(start)] * (steps + 1)
        elif starts == 1:
            path = ascend(query, start, limit, rule, return_trajectory)
        else:
            path = ascend_together(query, start, limit, rule, return_trajectory, starts, generator)
        last = path[-1]
        trail = path[: steps + 1] if return_trajectory else []
        return RefineResult(
            rebuild(last.boxes),
            last.iou,
            path[0].iou,
            last.steps,
            last.reason,
            torch.stack([state.boxes for state in trail]) if trail else None,
            torch.stack([state.iou for state in trail]) if trail else None,
        )


# --- the predictor ---


class _Query:
    """The predictor with everything but the boxes; rows are those of batch and labels."""

    def __init__(self, predictor: Predictor, features: Any, batch: Tensor, labels: Tensor | None) -> None:
        self.predictor, self.features, self.batch, self.labels = predictor, features, batch, labels

    def repeated(self, rows: Tensor) -> _Query:
        labels = None if self.labels is None else self.labels[rows]
        return _Query(self.predictor, self.features, self.batch[rows], labels)

    def __call__(self, boxes: Tensor, rows: Tensor | None, with_grad: bool) -> tuple[Tensor, Tensor]:
        batch, labels = self.batch, self.labels
        if rows is not None:
            batch, labels = batch[rows], None if labels is None else labels[rows]
        with torch.set_grad_enabled(with_grad):
            leaf = torch.cat([batch[:, None], boxes], 1).requires_grad_(with_grad)
            iou = self.predictor(self.features, leaf, labels)
        rule = f"predictor must return the IoU of each box, shape [{len(leaf)}], differentiable in boxes"
        if not isinstance(iou, Tensor):
            raise ValueError(f"{rule}, got {type(iou).__name__}")
        if iou.shape != batch.shape:
            raise ValueError(f"{rule}, got shape {list(iou.shape)}")
        grad = None
        if with_grad and iou.requires_grad:
            with torch.enable_grad():
                total = iou.sum()  # a scalar, for grad_outputs would import sympy
            (grad,) = torch.autograd.grad(total, leaf, allow_unused=True)
        if with_grad and grad is None:
            raise ValueError(f"{rule}, got one that boxes have no part in: pool with iounet.ops.prroi_pool")
        iou = iou.detach().to(torch.promote_types(iou.dtype, torch.float32))
        return iou, torch.zeros_like(boxes) if grad is None else grad[:, 1:]


@contextmanager
def _evaluating(predictor: Predictor) -> Iterator[None]:
    """A module, or the one whose method the predictor is, in eval mode; every submodule's own mode comes back."""
    module = predictor if isinstance(predictor, nn.Module) else getattr(predictor, "__self__", None)
    if not isinstance(module, nn.Module):
        yield
        return
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _usable(x: Any) -> Any:
    """The same structure with tensors that autograd can save: not of inference mode, and no part of another graph."""
    if isinstance(x, Tensor):
        return x.clone() if x.is_inference() else x.detach()
    if isinstance(x, dict):
        same = copy(x)
        same.update((key, _usable(value)) for key, value in x.items())
        return same
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*map(_usable, x))
    return type(x)(map(_usable, x)) if isinstance(x, list | tuple) else x


# --- arguments ---


def _check(rule: Rule, starts: int) -> None:
    for name, value, least in (("steps", rule.steps, 0), ("starts", starts, 1)):
        if not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not 0 < rule.step < math.inf:
        raise ValueError(f"step must be positive and finite, got {rule.step}")
    if not rule.stop >= 0:
        raise ValueError(f"stop must be non-negative, got {rule.stop}")
    if math.isnan(rule.tolerance):
        raise ValueError("tolerance must be a number, got nan")
    for name, option, allowed in (
        ("scale", rule.scale, get_args(Scale)),
        ("on_degrade", rule.on_degrade, get_args(OnDegrade)),
    ):
        if option not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {option!r}")


def _rows(boxes: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor, Rebuild]:
    """The image of each box, a copy of its coordinates [K, 4], and what turns such into the form of `boxes`."""
    rule = "boxes must be [K, 5], [K, 4], or a list of [L, 4]"
    for tensor in [boxes] if isinstance(boxes, Tensor) else boxes:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{rule}, got {type(tensor).__name__}")
        if tensor.ndim != 2 or tensor.shape[1] not in ((4, 5) if tensor is boxes else (4,)):
            raise ValueError(f"{rule}, got shape {list(tensor.shape)}")
        if not tensor.is_floating_point():
            raise TypeError(f"boxes must be floating, got {tensor.dtype}")
    if not isinstance(boxes, Tensor):
        lengths = [len(tensor) for tensor in boxes]
        xyxy = _wide(torch.cat(list(boxes)) if boxes else torch.empty(0, 4))
        batch = torch.cat([xyxy.new_full((length,), i) for i, length in enumerate(lengths)] or [xyxy[:, 0]])
        return batch, xyxy, lambda refined: list(refined.split(lengths))
    wide = _wide(boxes)
    if boxes.shape[1] == 4:
        return wide.new_zeros(len(wide)), wide, lambda refined: refined
    return wide[:, 0], wide[:, 1:], lambda refined: torch.cat([wide[:, :1], refined], 1)


def _wide(boxes: Tensor) -> Tensor:
    return boxes.detach().to(torch.promote_types(boxes.dtype, torch.float32), copy=True)


def _label_rows(labels: Tensor | Sequence[Tensor] | None, count: int) -> Tensor | None:
    if labels is None:
        return None
    rows = labels if isinstance(labels, Tensor) else torch.cat(list(labels)) if labels else torch.empty(0)
    if rows.shape[:1] != (count,):
        raise ValueError(f"labels must have one row per box, {count}, got shape {list(rows.shape)}")
    return rows


def _limits(
    image_sizes: Sequence[Any] | Tensor | None, batch: Tensor, boxes: Tensor | Sequence[Tensor]
) -> Tensor | None:
    """The (width, height) of each box's image, [K, 2]."""
    if image_sizes is None:
        return None
    if isinstance(image_sizes, Tensor):
        pairs = image_sizes.to(batch)
        good = pairs.ndim == 2 and pairs.shape[1] == 2
    else:
        rows = image_sizes if all(hasattr(row, "__len__") for row in image_sizes) else [image_sizes]
        good = all(len(row) == 2 and min(row) > 0 for row in rows)
        if good:  # filled: a copy from the host would wait for the device
            sides = [batch.new_full((1,), side) for row in rows for side in row]
            pairs = torch.cat([batch[:0], *sides]).view(-1, 2)
    if not good:
        raise ValueError(f"image_sizes must be positive pairs (height, width), got {image_sizes}")
    images = len(boxes) if not isinstance(boxes, Tensor) else 1 if boxes.shape[1] == 4 else None
    if images is None:
        known = batch.device.type != "cpu" or bool(((batch >= 0) & (batch < len(pairs))).all())
    else:
        known = images == len(pairs)
    if not known:
        raise ValueError(f"image_sizes must have a row for every image of boxes, got {len(pairs)}")
    return pairs.flip(1)[batch.long().clamp(0, len(pairs) - 1)]


def _no_state(boxes: Tensor) -> State:
    numbers, whole = boxes[:, 0], torch.empty(0, dtype=torch.int64, device=boxes.device)
    return State(boxes, numbers, boxes, numbers, whole > 0, whole, whole)
