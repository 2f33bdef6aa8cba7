"""Pooling on a CPU: time against torchvision's RoIAlign, gradients against its backward and against our own forward."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from harness import (
    Contestant,
    Context,
    Figure,
    Outcome,
    Race,
    Study,
    UnequalError,
    Versus,
    Workload,
    at_least,
    at_most,
    copier,
    cores,
    same_bits,
    within_twice,
)
from torch import Tensor

from iounet import _reference
from iounet.ops import prroi_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PACKAGES = ("iounet", "torch", "torchvision")
OURS, LAST, BF16, BF16_LAST = "iounet", "iounet channels_last", "iounet bfloat16", "iounet bfloat16 channels_last"
VISION, ADAPTIVE = "torchvision roi_align", "torchvision roi_align, adaptive"
VISION_LAST = "torchvision roi_align, channels_last"
SCALE = 0.25
OUTPUTS, MAP, BOXES = "Outputs", "Gradients of the map", "Gradients of the boxes"
GAPS = {16: 0.0056, 32: 0.0013}  # of roi_align with so many samples, on normal pixels in float64


class Load:
    """A quarter-size map of an image, boxes of 16 to 112 pixels and sides up to 1:2, and gradients of their bins."""

    def __init__(self, channels: int, height: int, width: int, boxes: int) -> None:
        generator = torch.Generator().manual_seed(1)
        u = [torch.rand(boxes, generator=generator) for _ in range(4)]
        size, aspect = torch.exp(math.log(16) + u[0] * math.log(7)), torch.exp((2 * u[1] - 1) * math.log(2))
        w, h = size * aspect.sqrt(), size / aspect.sqrt()
        x, y = u[2] * (4 * width - w), u[3] * (4 * height - h)
        self.boxes = torch.stack((torch.zeros(boxes), x, y, x + w, y + h), 1)
        self.input = torch.randn(1, channels, height, width, generator=generator)
        self.grad = torch.randn(boxes, channels, 7, 7, generator=generator)
        covered = torch.zeros(height, width, dtype=torch.bool)
        for left, top, right, bottom in (self.boxes[:, 1:] * SCALE).tolist():
            covered[math.floor(top) : math.ceil(bottom) + 1, math.floor(left) : math.ceil(right) + 1] = True
        self.read, self.written = int(covered.sum()) * channels * 4, self.grad.numel() * 4  # bytes of float32

    def of(self, name: str) -> tuple[Tensor, Tensor]:
        """Map and gradient as a contestant wants them."""
        dtype = torch.bfloat16 if "bfloat16" in name else torch.float32
        memory_format = torch.channels_last if "channels_last" in name else torch.contiguous_format
        return self.input.to(dtype, memory_format=memory_format), self.grad.to(dtype, memory_format=memory_format)

    def result(self, what: str, name: str, module: Any, boxes: slice = slice(None), double: bool = False) -> Tensor:
        """Output or a gradient by the operators of a module."""
        arguments = SCALE, False, False, False
        some, (input, grad) = self.boxes[boxes], self.of(name)
        if double:
            some, input, grad = some.double(), input.double(), grad.double()
        grad, last = grad[boxes], _reference.is_channels_last(input)
        by: dict[str, Callable[[], Tensor]] = {
            OUTPUTS: lambda: module.prroi_pool(input, some, 7, 7, *arguments),
            MAP: lambda: module.prroi_pool_grad_input(grad, some, 1, *input.shape[2:], last, *arguments),
            BOXES: lambda: module.prroi_pool_grad_boxes(grad, input, some, *arguments),
        }
        return by[what]()

    def pooled(self, name: str, input: Tensor, boxes: Tensor) -> Callable[[], Tensor]:
        if "torchvision" not in name:
            return lambda: prroi_pool(input, boxes, 7, SCALE)
        from torchvision.ops import roi_align

        sampling = 0 if "adaptive" in name else 2
        return lambda: roi_align(input, boxes, 7, SCALE, sampling)

    def forward(self, name: str, threads: int = 1) -> Callable[[], Contestant]:
        def build() -> Contestant:
            factor = 0.5 if "bfloat16" in name else 1.0
            input = self.of(name)[0]
            return Contestant(self.pooled(name, input, self.boxes), threads, int(factor * (self.read + self.written)))

        return build

    def backward(self, name: str, what: str, threads: int = 1) -> Callable[[], Contestant]:
        """Of the map or of the boxes."""

        def build() -> Contestant:
            input, grad = self.of(name)
            input, boxes = input.detach(), self.boxes.detach()
            wanted = (input if what == "map" else boxes).requires_grad_()
            result = self.pooled(name, input, boxes)()
            return Contestant(lambda: torch.autograd.grad(result, wanted, grad, retain_graph=True), threads)

        return build


@cache
def workload(smoke: bool) -> Load:
    return Load(64, 50, 68, 24) if smoke else Load(256, 200, 272, 512)


def load(context: Context) -> Load:
    return workload(context.profile == "smoke")


# --- equality ---


def equals(context: Context, what: str) -> str:
    """Every layout and dtype against the reference in float64, beside the reference in the same dtype."""
    given, said, few = load(context), [], slice(24)
    for name in (OURS, LAST, BF16, BF16_LAST):
        exact = given.result(what, name, _reference, few, double=True)
        peer = given.result(what, name, _reference, few).double()
        mine = given.result(what, name, torch.ops.iounet, few).double()
        said.append(within_twice(mine, peer, exact, f"{what} of {name} and of the reference"))
    return " ".join(said)


def equals_forward(context: Context) -> str:
    """The reference, and RoIAlign of many samples, which comes nearer with their square."""
    said = equals(context, OUTPUTS)
    try:
        from torchvision.ops import roi_align
    except ImportError as error:
        return f"{said} Not compared: {error}."
    given = load(context)
    height, width = given.input.shape[2:]
    inside = (given.boxes[:, 3] * SCALE <= width - 1) & (given.boxes[:, 4] * SCALE <= height - 1)
    input, boxes = given.input[:, :4].double(), given.boxes[inside][:16].double()
    mine = prroi_pool(input, boxes, 7, SCALE)
    for samples, gap in GAPS.items():
        largest = (roi_align(input, boxes, 7, SCALE, samples) - mine).abs().max().item()
        if not gap / 100 < largest < 2 * gap:
            raise UnequalError(f"RoIAlign of {samples} samples is {largest:.2g} away, expected some {gap}")
        said += f" RoIAlign of {samples} x {samples} samples: within {largest:.2g}."
    return said


def equals_map(context: Context) -> str:
    return equals(context, MAP)


def equals_boxes(context: Context) -> str:
    return equals(context, BOXES)


def equals_itself(context: Context) -> str:
    """Any number of threads gives the same bits."""
    given, said = load(context), ""
    before = torch.get_num_threads()
    try:
        for name in (OURS, LAST):
            for what in (OUTPUTS, MAP, BOXES):
                torch.set_num_threads(1)
                one = given.result(what, name, torch.ops.iounet)
                torch.set_num_threads(cores())
                many = given.result(what, name, torch.ops.iounet)
                said += same_bits(many, one, f"{what} of {name}, 1 and {cores()} threads") + " "
    finally:
        torch.set_num_threads(before)
    return said.strip()


# --- races ---


def forward(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    given = load(context)
    names = (LAST, OURS, BF16_LAST, VISION, *context.pick((), (), (BF16, ADAPTIVE, VISION_LAST)))
    racers = {name: given.forward(name) for name in names}
    return racers | {"memory copy": lambda: copier(context.pick(1, 64), 1)}


def grad_map(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    given = load(context)
    names = (OURS, LAST, BF16_LAST, VISION, *context.pick((), (), (BF16,)))
    return {name: given.backward(name, "map") for name in names}


def grad_boxes(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    given = load(context)
    names = LAST, OURS, BF16_LAST
    racers = {f"{name}, boxes": given.backward(name, "boxes") for name in names}
    return racers | {f"{name}, forward": given.forward(name) for name in names}


WORK = {"forward": "forward", "map": "gradient of the map", "boxes": "gradient of the boxes"}


def threaded(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    given = load(context)
    racers: dict[str, Callable[[], Contestant]] = {}
    for count in dict.fromkeys((cores(), 1)):
        unit = f"{count} thread" + "s" * (count > 1)
        for name in (LAST, OURS):
            racers[f"{name} forward, {unit}"] = given.forward(name, count)
            racers[f"{name} map, {unit}"] = given.backward(name, "map", count)
            racers[f"{name} boxes, {unit}"] = given.backward(name, "boxes", count)
        racers |= {f"memory copy, {unit}": lambda count=count: copier(context.pick(1, 64), count)}
    return racers


# --- exactness ---


def exactness(context: Context, outcome: Outcome) -> None:
    """The mean of the interpolated map over a bin is known: an independent sum over many samples in float64."""
    from torchvision.ops import roi_align

    errors: dict[str, list[float]] = {}
    for seed in range(context.pick(1, 3)):
        draw = torch.Generator().manual_seed(seed)
        input = torch.randn(1, 8, 50, 68, generator=draw)
        low, sides = torch.rand(40, 2, generator=draw) * 96 + 4, torch.rand(40, 2, generator=draw) * 80 + 16
        boxes = torch.cat((torch.zeros(40, 1), low, low + sides), 1)
        truth = roi_align(input.double(), boxes.double(), 7, SCALE, 64)
        for name, found in (
            (OURS, prroi_pool(input, boxes, 7, SCALE)),
            (VISION, roi_align(input, boxes, 7, SCALE, 2)),
            (ADAPTIVE, roi_align(input, boxes, 7, SCALE, 0)),
        ):
            errors.setdefault(name, []).append(float((found - truth).square().mean().sqrt() / truth.std()))
    means = {name: sum(values) / len(values) for name, values in errors.items()}
    best = min((VISION, ADAPTIVE), key=means.__getitem__)
    ratios = [a / b for a, b in zip(errors[OURS], errors[best], strict=True)]
    figure = Figure("distance from the mean over a bin", OURS, best, "x the error", sum(ratios) / len(ratios))
    figure.low, figure.high, figure.samples, figure.target = min(ratios), max(ratios), ratios, at_most(0.1)
    outcome.figures.append(figure)
    outcome.bars = {name: 100 * mean for name, mean in means.items()}
    outcome.bars_unit = "root mean square of the error, in % of the deviation of bins"


EVERY = f"{cores()} threads"
CEILING = "memory copy, 1 thread", f"memory copy, {EVERY}"
ALL_THREADS = Race(
    "pooling, all threads",
    "The same work by one thread and by all.",
    threaded,
    equals_itself,
    tuple(
        Versus(f"{name} {work}, 1 thread", at_least(1.8), "speed", WORK[work], f"{name} {work}, {EVERY}", CEILING)
        for name in (LAST, OURS)
        for work in WORK
    ),
    clock="wall",
    seconds=3,
)
ABOUT = "A map of 256 x 200 x 272 and 512 boxes of 4 to 28 pixels, 7 x 7 bins, one thread."
WORKLOADS: tuple[Workload, ...] = (
    Study(
        "pooling, how exact",
        "40 boxes of 16 to 96 pixels on three maps of random pixels, 7 x 7 bins, float32. The truth is the mean of 64 "
        "x 64 samples of each bin in float64, by torchvision: what is left of ours is the error of that sum.",
        exactness,
    ),
    Race(
        "pooling forward",
        f"{ABOUT} RoIAlign takes 2 x 2 samples a bin, which PrRoIPool integrates exactly.",
        forward,
        equals_forward,
        (
            Versus(VISION, at_least(12), "speed", headline=True),
            Versus(VISION, at_least(6), "speed", ours=OURS),
            Versus(VISION, None, "speed", ours=BF16_LAST),
            Versus(VISION, None, "speed", ours=BF16),
            Versus(ADAPTIVE, None, "speed"),
            Versus(VISION_LAST, None, "speed", ours=LAST, name="the same layout"),
            Versus("memory copy", None, "rate", note="bytes of covered pixels and of the output, each counted once"),
        ),
        seconds=3,
    ),
    Race(
        "pooling, gradient of the map",
        f"{ABOUT} Backward alone, of a graph that is kept.",
        grad_map,
        equals_map,
        (
            Versus(VISION, at_least(10), "speed"),
            Versus(VISION, at_least(10), "speed", ours=LAST),
            Versus(VISION, None, "speed", ours=BF16),
            Versus(VISION, None, "speed", ours=BF16_LAST),
        ),
        seconds=3,
    ),
    Race(
        "pooling, gradient of the boxes",
        f"{ABOUT} Backward alone, of a graph that is kept. RoIAlign has no such gradient.",
        grad_boxes,
        equals_boxes,
        tuple(
            Versus(f"{name}, forward", at_most(2), ours=f"{name}, boxes") for name in (LAST, OURS, BF16_LAST)
        ),
        seconds=2,
    ),
    *([ALL_THREADS] if cores() > 1 else []),
)  # fmt: skip
