"""An IoU-Net's head trained without warm-up, by AdaMod and by torch's fused AdamW, at rates up to one too large."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from harness import Context, MissingError, Outcome, UnequalError
from meeting_grid import best, gained, measured, told
from torch import Tensor
from torch.nn import functional

import iounet
from adamod import AdaMod
from iounet.data import open_dataset, synthetic_scenes

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim import Optimizer

OURS, SHORT, PEER, WARM = "AdaMod", "AdaMod, beta3 .99", "AdamW", "AdamW, warm-up"
OPTIMIZERS: dict[str, Callable[[Any, float], Optimizer]] = {
    OURS: lambda parameters, lr: AdaMod(parameters, lr=lr),
    SHORT: lambda parameters, lr: AdaMod(parameters, lr=lr, beta3=0.99),
    PEER: lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0, fused=True),
    WARM: lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0, fused=True),
}
SCALES = (1.0, 2.5)  # of the filters, in pixels
STRIDE, LOW, BATCH, HIDDEN = 2, 0.5, 128, 128
CONSTANT = 100 * (1 - LOW) / 4  # the mean error of always saying .75, in points of IoU


class Boxes(NamedTuple):
    """What a head sees of boxes: features that are pooled once, the class, and the true IoU."""

    pooled: Tensor  # [K, C, 7, 7]
    labels: Tensor
    iou: Tensor


def maps(images: Tensor) -> Tensor:
    """Brightness and edges at two scales, for each colour: a fixed bank of filters in the place of a backbone.

    It is nobody's training, so that no optimizer has prepared what the head learns from.
    """
    found = []
    for scale in SCALES:
        reach = math.ceil(3 * scale)
        t = torch.arange(-reach, reach + 1, dtype=images.dtype)
        smooth = torch.softmax(-t.square() / (2 * scale**2), 0)
        slope = -3 * t * smooth / scale
        x = functional.pad(images, (reach,) * 4, mode="replicate")
        for rows, columns in ((smooth, smooth), (slope, smooth), (smooth, slope)):
            one = filtered(filtered(x, rows[:, None]), columns[None])
            found.append(one - 0.5 if rows is columns else one.abs())
    return torch.cat(found, 1)[..., ::STRIDE, ::STRIDE]


def filtered(x: Tensor, kernel: Tensor) -> Tensor:
    channels = x.shape[1]
    return functional.conv2d(x, kernel.expand(channels, 1, -1, -1), groups=channels)


def jittered(dataset: Any, count: int, seed: int, shrink: float = 1.0) -> Boxes:
    """`count` boxes of each image or a few more, whose IoU with their ground truth is uniform from .5 to 1."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for image, target in (dataset[index] for index in range(len(dataset))):
        if not (objects := len(target["boxes"])):
            continue
        if shrink != 1:
            image = functional.interpolate(image[None], scale_factor=shrink, mode="bilinear", antialias=True)[0]
        each, size = math.ceil(count / objects), tuple(image.shape[1:])
        gt = target["boxes"] * shrink
        boxes, iou = iounet.sample_jittered_boxes(gt, each, LOW, image_size=size, generator=generator)
        rows = torch.cat([torch.zeros(objects * each, 1), boxes.flatten(0, 1)], 1)
        pooled = iounet.ops.prroi_pool(maps(image[None]), rows, 7, 1 / STRIDE)
        parts.append(Boxes(pooled, target["labels"].repeat_interleave(each), iou.flatten()))
    return Boxes(*(torch.cat(part) for part in zip(*parts, strict=True)))


def trained(learn: Boxes, test: Boxes, classes: int, steps: int, name: str, rate: float, seed: int) -> float:
    """The mean error of the head's IoU, in points. All optimizers start alike and see the same batches."""
    head = started(learn, classes, seed)
    optimizer = OPTIMIZERS[name](head.parameters(), rate)
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        if name == WARM:
            optimizer.param_groups[0]["lr"] = rate * min(1.0, step / (0.1 * steps))
        pooled, labels, iou = (x[chosen] for chosen in (drawn(learn, generator),) for x in learn)
        loss = head.loss(head(pooled, labels), labels, iou)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        error = (head.decode(head(test.pooled, test.labels)).clamp(0, 1) - test.iou).abs().mean()
    return 100 * float(error)


def started(learn: Boxes, classes: int, seed: int) -> iounet.IoUHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return iounet.IoUHead(learn.pooled.shape[1], classes, hidden=HIDDEN)


def drawn(learn: Boxes, generator: torch.Generator) -> Tensor:
    return torch.randint(len(learn.iou), (BATCH,), generator=generator)


def same_step(learn: Boxes, classes: int) -> str:
    """Else it would not be the bound alone that is compared."""
    moved = []
    for make in (
        lambda parameters: AdaMod(parameters, lr=1e-3, beta3=0.0, eps=0.0),
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, eps=0.0, weight_decay=0.0, fused=True),
    ):
        head = started(learn, classes, 0)
        optimizer, before = make([head.output.bias]), head.output.bias.detach().clone()
        pooled, labels, iou = (x[:BATCH] for x in learn)
        head.loss(head(pooled, labels), labels, iou).backward()
        kept = head.output.bias.grad != 0  # of a class that no box has, 0 / 0 without eps
        optimizer.step()
        moved.append((head.output.bias.detach() - before)[kept])
    if not torch.allclose(*moved, rtol=1e-5, atol=0):
        raise UnequalError("AdaMod without its bound does not take the step of torch's AdamW")
    return "Without its bound AdaMod takes the step of torch's AdamW; all start alike and see the same batches."


def scenes(context: Context, outcome: Outcome) -> None:
    """Three rates in the quick profile; a fourth, a shorter memory of the bound and a warm-up in the full one."""
    images, boxes = context.pick((8, 16), (100, 24), (300, 32))
    learn, test = (jittered(synthetic_scenes(n, seed, 64), boxes, seed) for seed, n in ((0, images), (1, images // 2)))
    rates = context.pick((1e-3, 1e-1), (3e-3, 3e-2, 1e-1), (1e-3, 1e-2, 3e-2, 1e-1))
    compare(context, outcome, learn, test, 4, context.pick(4, 120, 600), rates)


def cells(context: Context, outcome: Outcome) -> None:
    if not context.data or not (folder := Path(context.data, "detection", "bccd")).is_dir():
        raise MissingError("this needs --data: a folder with detection/bccd, the data set of 364 images")
    learn, test = (
        jittered(open_dataset(f"coco:{folder}", split), 48, seed, 0.5) for seed, split in enumerate(("train", "test"))
    )
    compare(context, outcome, learn, test, 4, 600, (1e-3, 1e-2, 1e-1))


def compare(
    context: Context, outcome: Outcome, learn: Boxes, test: Boxes, classes: int, steps: int, rates: tuple[float, ...]
) -> None:
    outcome.equal = same_step(learn, classes)
    names = context.pick((OURS, PEER), (OURS, PEER), tuple(OPTIMIZERS))
    work = partial(trained, learn, test, classes, steps)
    runs = measured(context, names, rates, context.pick(1, 3), work)
    unit, largest = " points of error less", rates[-1]
    rate, other = (best(runs, name, lowest=True) for name in (OURS, PEER))
    outcome.figures = [
        gained("at the largest rate", runs, (OURS, largest), (PEER, largest), unit, 2, lowest=True),
        gained("each at its best rate", runs, (OURS, rate), (PEER, other), unit, 2, lowest=True),
    ]
    told(outcome, runs, f"mean error of the IoU after {steps} steps, in points", 2, {"always .75": CONSTANT})
