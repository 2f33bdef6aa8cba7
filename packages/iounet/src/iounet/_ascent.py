"""The arithmetic of box refinement: one step of gradient ascent, its stop rules, and the loop."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["OnDegrade", "Query", "Rule", "Scale", "State", "ascend", "ascend_together", "clipped_unless_lost"]

Scale = Literal["size", "log"]
OnDegrade = Literal["keep", "revert", "backtrack"]

_CONVERGED, _DEGRADED, _VANISHED = 1, 2, 3  # 0: all steps used
_LEAST_SIDE = 1e-3  # pixels
_BEST = 3  # starts that are averaged: ATOM's number
_COMPACTING = frozenset({"cpu"})  # devices on which counting the active boxes costs no synchronisation


class Rule(NamedTuple):
    """How boxes move and when they stop; the options of `refine_boxes`."""

    step: float
    steps: int
    stop: float
    tolerance: float
    scale: Scale
    on_degrade: OnDegrade

    def move(self, boxes: Tensor, grad: Tensor, step: Tensor) -> Tensor:
        """xyxy boxes [K, 4] after a step of length step[K] along grad[K, 4]."""
        side, step = boxes[:, 2:] - boxes[:, :2], step[:, None]
        if self.scale == "size":
            return boxes + step * grad * side.repeat(1, 2)
        low, high = grad[:, :2], grad[:, 2:]
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + step * side.square() * (low + high)
        half = side / 2 * (step * side * (high - low) / 2).exp()
        return torch.cat([centre - half, centre + half], 1)


class State(NamedTuple):
    """What each box knows between steps."""

    boxes: Tensor
    iou: Tensor
    grad: Tensor
    step: Tensor
    active: Tensor
    steps: Tensor
    reason: Tensor


class Query(Protocol):
    """IoU[R] and its gradient[R, 4] for xyxy boxes that are rows `rows` of all (None: all of them)."""

    def __call__(self, boxes: Tensor, rows: Tensor | None, with_grad: bool) -> tuple[Tensor, Tensor]: ...

    def repeated(self, rows: Tensor) -> Query:
        """The query of which "all" are these rows."""
        ...


def ascend(query: Query, boxes: Tensor, limit: Tensor | None, rule: Rule, record: bool) -> list[State]:
    """Refine xyxy boxes [K, 4], clipped to limit [K, 2] -> first and last state; with `record`, steps + 1 of them."""
    iou, grad = query(boxes, None, rule.steps > 0)
    none = torch.zeros_like(iou, dtype=torch.int64)
    step = torch.full_like(boxes[:, 0], rule.step)
    good = iou.isfinite()
    state = State(boxes, iou, grad, step, good, none, torch.where(good, none, _DEGRADED))
    path = [state]
    for number in range(1, rule.steps + 1):
        rows = state.active.nonzero()[:, 0] if boxes.device.type in _COMPACTING else None
        if rows is None or len(rows) == len(boxes):
            state = _advance(query, state, None, limit, rule, number < rule.steps)
        elif len(rows):
            part = State(*(x[rows] for x in state))
            part = _advance(query, part, rows, None if limit is None else limit[rows], rule, number < rule.steps)
            state = State(*(x.index_copy(0, rows, y) for x, y in zip(state, part, strict=True)))
        path.append(state)
    return path if record else [path[0], state]


def _advance(query: Query, state: State, rows: Tensor | None, limit: Tensor | None, rule: Rule, more: bool) -> State:
    """One step of the boxes `rows`; `more` says whether another may follow, which needs a gradient."""
    boxes = rule.move(state.boxes, state.grad, state.step)
    lost = state.active & ~boxes.isfinite().all(1)  # the gradient is NaN, or the step overflows
    if limit is not None:
        boxes = _clipped(boxes, limit)
    vanished = state.active & ~lost & (boxes[:, 2:] - boxes[:, :2] <= _LEAST_SIDE).any(1)
    tried = state.active & ~lost & ~vanished
    boxes = torch.where(tried[:, None], boxes, state.boxes)
    iou, grad = query(boxes, rows, more)
    lost |= tried & ~iou.isfinite()
    tried &= ~lost
    change = iou - state.iou
    step = state.step
    if rule.on_degrade == "backtrack":
        kept, degraded = tried & (change >= 0), torch.zeros_like(tried)
        step = torch.where(kept, step, step / 2)
    else:
        degraded = tried & (change < rule.tolerance)
        kept = tried if rule.on_degrade == "keep" else tried & ~degraded
    converged = kept & ~degraded & (change.abs() < rule.stop)
    reason = torch.where(converged, _CONVERGED, state.reason)
    reason = torch.where(vanished, _VANISHED, reason)
    reason = torch.where(lost | degraded, _DEGRADED, reason)
    return State(
        torch.where(kept[:, None], boxes, state.boxes),
        torch.where(kept, iou, state.iou),
        torch.where(kept[:, None], grad, state.grad),
        step,
        state.active & ~(lost | vanished | degraded | converged),
        state.steps + kept,
        reason,
    )


def _clipped(boxes: Tensor, limit: Tensor) -> Tensor:
    """xyxy boxes [K, 4] within [0, limit], limit [K, 2] the width and height."""
    return boxes.clamp(min=0).minimum(limit.repeat(1, 2))


def clipped_unless_lost(boxes: Tensor, limit: Tensor) -> Tensor:
    """Clipped boxes, those as they are of which nothing would be left."""
    inside = _clipped(boxes, limit)
    return torch.where((inside[:, 2:] - inside[:, :2] > _LEAST_SIDE).all(1, keepdim=True), inside, boxes)


# --- several starts ---


def ascend_together(
    query: Query,
    boxes: Tensor,
    limit: Tensor | None,
    rule: Rule,
    record: bool,
    starts: int,
    generator: torch.Generator | None,
) -> list[State]:
    """As `ascend`, from each box and starts - 1 copies; the result is the mean of the best."""
    rows = torch.arange(len(boxes), device=boxes.device).repeat_interleave(starts)
    moved = _scattered(boxes, starts, generator)
    if limit is not None:
        limit = limit[rows]
        moved = clipped_unless_lost(moved, limit)
    path = ascend(query.repeated(rows), moved, limit, rule, record)

    iou = path[-1].iou.view(-1, starts)
    iou = torch.where(iou.isfinite(), iou, -torch.inf)
    best, order = iou.sort(dim=1, descending=True, stable=True)
    chosen = best[:, :_BEST] > -torch.inf
    chosen[:, 0] = True  # the box itself, where no start has an IoU
    rows = order[:, :_BEST] + starts * torch.arange(len(boxes), device=boxes.device)[:, None]

    def mean(x: Tensor) -> Tensor:
        mask = chosen.view(*chosen.shape, *[1] * (x.ndim - 1))
        total: Tensor = torch.where(mask, x[rows], 0).sum(1)
        return total / mask.sum(1)

    def united(state: State) -> State:
        return State(*(x[rows[:, 0]] for x in state))._replace(boxes=mean(state.boxes), iou=mean(state.iou))

    start, *between = path[:-1] or path
    result = united(path[-1])
    result = result._replace(iou=query(result.boxes, None, False)[0])
    return [State(*(x[::starts] for x in start)), *map(united, between), result]


def _scattered(boxes: Tensor, starts: int, generator: torch.Generator | None) -> Tensor:
    """Each box and starts - 1 moved copies of it, [K * starts, 4]."""
    source = generator.device if generator is not None else boxes.device
    noise = torch.rand(len(boxes), starts - 1, 4, dtype=boxes.dtype, device=source, generator=generator)
    noise = (2 * noise - 1).to(boxes.device)
    boxes = boxes[:, None]
    side = boxes[..., 2:] - boxes[..., :2]
    root = side.clamp(min=0).prod(-1, keepdim=True).sqrt()
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2 + 0.05 * root * noise[..., :2]
    half = (side + 0.25 * root * noise[..., 2:]).maximum(side.amin(-1, keepdim=True) / 3) / 2
    return torch.cat([boxes, torch.cat([centre - half, centre + half], -1)], 1).flatten(0, 1)
