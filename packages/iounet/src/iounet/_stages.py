"""The stages of an IoU-Net, timed on this machine in turns with torchvision's where it has the same."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms, roi_align

from . import IoUHead, ops, refine_boxes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Timing", "time_stages"]

_CHANNELS, _HEIGHT, _WIDTH, _SCALE = 256, 200, 272, 0.25


@dataclass(frozen=True, slots=True)
class Timing:
    """Median milliseconds of a stage, those of its peer, and the median of the ratios of pairs."""

    stage: str
    ms: float
    peer: str | None
    peer_ms: float | None
    ratio: float | None


@dataclass(frozen=True, slots=True)
class _Stage:
    name: str
    run: Callable[[], Any]
    peer: str | None = None
    run_peer: Callable[[], Any] | None = None


def time_stages(
    device: torch.device, *, repeat: int, size: float, seed: int, advance: Callable[[int], object]
) -> list[Timing]:
    """Time every stage `repeat` times after a first call that does not count.

    The pooling workload is a map of 256 x 200 x 272 with 512 boxes; NMS has 10000 boxes that lie apart, NMS guided by
    IoU and Soft-NMS have 4000 and 1000 around objects; 100 boxes are refined. Of all these boxes the share `size`, in
    (0, 1], is taken.
    """
    timings = []
    for stage in _stages(device, size, seed):
        own, others = [], []
        for k in range(repeat + 1):
            mine = _seconds(stage.run, device)
            other = math.nan if stage.run_peer is None else _seconds(stage.run_peer, device)
            if k:
                own.append(1e3 * mine)
                others.append(1e3 * other)
            advance(1)
        peer_ms = ratio = None
        if stage.run_peer is not None:
            peer_ms = statistics.median(others)
            ratio = statistics.median(b / a for a, b in zip(own, others, strict=True))
        timings.append(Timing(stage.name, statistics.median(own), stage.peer, peer_ms, ratio))
    return timings


STAGES = 10
"""How many stages there are."""


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _stages(device: torch.device, size: float, seed: int) -> Iterator[_Stage]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, _CHANNELS, _HEIGHT, _WIDTH, generator=generator).to(device)
    channels_last = features.to(memory_format=torch.channels_last)
    rois = _rois(max(1, round(512 * size)), generator).to(device)

    def roi_pool(x: Tensor) -> Any:
        return roi_align(x, rois, 7, _SCALE, 2)

    def pool(x: Tensor, boxes: Tensor = rois) -> Tensor:
        return ops.prroi_pool(x, boxes, 7, _SCALE)

    yield _Stage("pool, channels last", lambda: pool(channels_last), "roi_align", lambda: roi_pool(features))
    yield _Stage("pool", lambda: pool(features), "roi_align", lambda: roi_pool(features))
    yield _Stage("gradient of the map", *_backward(pool, channels_last), "roi_align", *_backward(roi_pool, features))
    boxes = rois.clone().requires_grad_()
    out = pool(channels_last, boxes)
    ones = torch.ones_like(out)
    yield _Stage("gradient of the boxes", lambda: torch.autograd.grad(out, boxes, ones, retain_graph=True))

    found, scores = _scattered(max(2, round(10_000 * size)), generator)
    found, scores = found.to(device), scores.to(device)
    labels = torch.randint(1, 81, scores.shape, generator=generator).to(device)
    yield _Stage("nms", lambda: ops.nms(found, scores, 0.5), "nms", lambda: nms(found, scores, 0.5))
    yield _Stage(
        "batched_nms",
        lambda: ops.batched_nms(found, scores, labels, 0.5),
        "batched_nms",
        lambda: batched_nms(found, scores, labels, 0.5),
    )
    crowd, kinds, trusts, localizations = (x.to(device) for x in _crowded(max(10, round(4000 * size)), generator))
    yield _Stage("iou_guided_nms", lambda: ops.iou_guided_nms(crowd, trusts, localizations, kinds, 0.5))
    few = slice(max(2, round(1000 * size)))
    yield _Stage("soft_nms", lambda: ops.soft_nms(crowd[few], trusts[few], 0.3, labels=kinds[few]))

    start = rois[: max(1, round(100 * size))]
    classes = torch.ones(len(start), dtype=torch.int64, device=device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        head = IoUHead(_CHANNELS, 81).to(device).eval()
    pooled = pool(channels_last, start)
    yield _Stage("head, 100 boxes", torch.no_grad()(lambda: head(pooled, classes)))

    def predict(x: Tensor, moved: Tensor, of: Tensor) -> Tensor:
        return head.decode(head(pool(x, moved), of))

    rule: dict[str, Any] = {"scale": "log", "step": 0.05, "on_degrade": "backtrack"}
    yield _Stage("refine, 100 boxes", lambda: refine_boxes(predict, channels_last, start, classes, **rule))


def _backward(pool: Callable[[Tensor], Any], x: Tensor) -> tuple[Callable[[], Any]]:
    """The gradient of a pooling for its map alone."""
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = pool(leaf)
    ones = torch.ones_like(out)
    return (lambda: torch.autograd.grad(out, leaf, ones, retain_graph=True),)


def _rois(count: int, generator: torch.Generator) -> Tensor:
    """Boxes of 16 to 112 pixels, log-uniform, with sides of ratio 1/2 to 2, in an image of 800 x 1088."""
    side, ratio, x, y = torch.rand(4, count, generator=generator).unbind()
    side = torch.exp(math.log(16) + side * math.log(7))
    half = torch.exp((ratio * 2 - 1) * math.log(2) / 2)
    width, height = side * half, side / half
    left, top = x * (_WIDTH / _SCALE - width), y * (_HEIGHT / _SCALE - height)
    return torch.stack([torch.zeros(count), left, top, left + width, top + height], 1)


def _scattered(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Boxes with sides of 10 to 30 anywhere in 1000 x 1000, and their scores."""
    place = torch.rand(count, 2, generator=generator) * 1000
    sides = 10 + 20 * torch.rand(count, 2, generator=generator)
    return torch.cat([place, place + sides], 1), torch.rand(count, generator=generator)


def _crowded(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """About ten boxes around each object of 20 to 220 pixels; their labels, scores and predicted IoUs."""
    objects = max(1, count // 10)
    centre, side = torch.rand(2, objects, 2, generator=generator)
    centre, side = centre * 1000, 20 + 200 * side
    of = torch.randint(objects, (count,), generator=generator)
    moved = centre[of] + 0.1 * side[of] * torch.randn(count, 2, generator=generator)
    half = side[of] * torch.exp(0.15 * torch.randn(count, 2, generator=generator)) / 2
    scores, ious = torch.rand(2, count, generator=generator)
    return torch.cat([moved - half, moved + half], 1), of % 80 + 1, scores, ious
