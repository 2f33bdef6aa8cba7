"""Refinement: what the head, the pooling and the loop take of it, and how far the exact IoU as predictor leads."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from harness import Contestant, Context, Curves, Figure, Outcome, Race, Study, Versus, Workload, within_twice
from torch import Tensor

import iounet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PACKAGES = ("iounet", "torch")
STEPS = 5
ENDLESS: dict[str, Any] = {"steps": STEPS, "stop": 0.0, "tolerance": -1.0}  # every box takes every step
OURS, LOOP, GEMMS, POOL, BARE = "refine_boxes", "plain loop", "head GEMMs alone", "pooling alone", "loop alone"


class Load:
    """A pyramid level of a 800 x 1088 image, boxes on it, and a head with the paper's sizes."""

    def __init__(self, context: Context) -> None:
        channels, hidden, self.count = context.pick((8, 32, 7), (256, 1024, 100))
        height, width = context.pick((25, 34), (200, 272))
        generator = torch.Generator().manual_seed(1)
        self.features = torch.randn(1, channels, height, width, generator=generator)
        self.features = self.features.contiguous(memory_format=torch.channels_last)
        sides = torch.exp(torch.rand(self.count, 2, generator=generator) * 2.5 + 2.5)
        low = torch.rand(self.count, 2, generator=generator) * (4 * torch.tensor([width, height]) - sides).clamp(min=1)
        self.boxes = torch.cat([torch.zeros(self.count, 1), low, low + sides], 1)
        self.labels = torch.randint(1, 81, (self.count,), generator=generator)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.head = iounet.IoUHead(channels, 81, hidden=hidden, loss="bce").eval()

    def predictor(self, features: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        return self.head.decode(self.head(iounet.ops.prroi_pool(features, boxes, 7, 0.25), labels))

    def refine(self) -> Tensor:
        found = iounet.refine_boxes(self.predictor, self.features, self.boxes, self.labels, **ENDLESS).boxes
        assert isinstance(found, Tensor)
        return found

    def loop(self) -> Tensor:
        """The paper's rule in the fewest lines, for boxes that never stop."""
        boxes = self.boxes
        for _ in range(STEPS):
            boxes = boxes.detach().requires_grad_()
            (grad,) = torch.autograd.grad(self.predictor(self.features, boxes, self.labels).sum(), boxes)
            side = (boxes[:, 3:] - boxes[:, 1:3]).repeat(1, 2).detach()
            boxes = torch.cat([boxes[:, :1].detach(), boxes[:, 1:].detach() + 0.5 * grad[:, 1:] * side], 1)
        with torch.no_grad():
            self.predictor(self.features, boxes, self.labels)
        return boxes

    def bare(self) -> Tensor:
        """Everything but the predictor."""

        def plane(features: None, boxes: Tensor, labels: Tensor) -> Tensor:
            return boxes.sum(1)

        return iounet.refine_boxes(plane, None, self.boxes, self.labels, **ENDLESS).iou

    def gemms(self) -> Callable[[], object]:
        """The products of matrices that no implementation of the head can avoid."""
        first, second = (layer.weight.detach() for layer in (self.head.fc1, self.head.fc2))
        x = torch.randn(self.count, first.shape[1], generator=torch.Generator().manual_seed(3))

        def run() -> None:
            for forward in range(STEPS + 1):
                y = x @ first.T @ second.T
                if forward < STEPS:
                    y @ second @ first

        return run

    def pooling(self) -> Callable[[], object]:
        """The pooling of every forward and its gradient in the boxes."""
        boxes = self.boxes.clone().requires_grad_()
        seed = torch.randn(self.count, self.features.shape[1], 7, 7, generator=torch.Generator().manual_seed(4))

        def run() -> None:
            for forward in range(STEPS + 1):
                pooled = iounet.ops.prroi_pool(self.features, boxes, 7, 0.25)
                if forward < STEPS:
                    torch.autograd.grad(pooled, boxes, seed)

        return run


def contestants(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    load = Load(context)
    return {
        OURS: lambda: Contestant(load.refine),
        LOOP: lambda: Contestant(load.loop),
        GEMMS: lambda: Contestant(load.gemms()),
        POOL: lambda: Contestant(load.pooling()),
        BARE: lambda: Contestant(load.bare),
    }


def equals_loop(context: Context) -> str:
    load = Load(context)
    ours, loop = load.refine(), load.loop()
    load.features, load.boxes, load.head = load.features.double(), load.boxes.double(), load.head.double()
    exact = load.loop()
    return within_twice(ours - load.boxes, loop - load.boxes, exact - load.boxes, "Moves of all boxes")


# --- the exact IoU as predictor ---

RULES: tuple[tuple[str, float], ...] = (("size", 0.5), ("size", 2.0), ("log", 0.05), ("log", 0.5))
MODES = ("keep", "revert", "backtrack")
PAPER, BEST = ("size", 0.5, "keep"), ("log", 0.05, "backtrack")
SHOWN = (PAPER, ("size", 2.0, "keep"), ("log", 0.05, "keep"), BEST)


def scene(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ground truths with sides exp(U(2.5, 5)) px, and one box of each with an IoU from U(.5, 1)."""
    generator = torch.Generator().manual_seed(seed)
    sides = (torch.rand(count, 2, generator=generator, dtype=torch.float64) * 2.5 + 2.5).exp()
    low = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 500
    gt = torch.cat([low, low + sides], 1)
    return gt, iounet.sample_jittered_boxes(gt, 1, generator=generator)[0][:, 0]


def true_iou(a: Tensor, b: Tensor) -> Tensor:
    inter = (torch.minimum(a, b)[:, 2:] - torch.maximum(a, b)[:, :2]).clamp(min=0).prod(1)
    areas = [(x[:, 2:] - x[:, :2]).prod(1) for x in (a, b)]
    return inter / (areas[0] + areas[1] - inter)


def ascent(context: Context, outcome: Outcome) -> None:
    seeds, count = context.pick((1, 100), (3, 4000), (5, 4000))
    scenes = [scene(count, seed) for seed in range(seeds)]
    gt = torch.cat([gt for gt, _ in scenes])
    boxes = torch.cat([boxes for _, boxes in scenes])
    size = (gt[:, 2:] - gt[:, :2]).prod(1).sqrt()
    groups = {"< 25 px": size < 25, "25-60 px": (size >= 25) & (size <= 60), "> 60 px": size > 60}
    outcome.table = [["scale, step, mode", "mean IoU", "worse", *(f"gain, {name}" for name in groups)]]
    gains: dict[tuple[str, float, str], Tensor] = {}
    lines: dict[str, list[tuple[float, ...]]] = {}
    for scale, step in RULES:
        for mode in MODES:
            rule = (scale, step, mode)
            found = refined(gt, boxes, rule)
            gain = gains[rule] = found.iou - found.initial_iou
            by_size = [f"{gain[group].mean():+.3f}" for group in groups.values()]
            worse = f"{100 * (gain < 0).double().mean():.0f} %"
            outcome.table.append([f"{scale}, {step:g}, {mode}", f"{found.iou.mean():.3f}", worse, *by_size])
            if rule in SHOWN and found.trajectory_iou is not None:
                means = found.trajectory_iou.mean(1).tolist()
                lines[", ".join(map(str, rule))] = [(float(t), mean) for t, mean in enumerate(means)]
            context.progress(len(gains) / (len(RULES) * len(MODES)))
    ours, paper = (gains[rule].view(seeds, -1).mean(1) for rule in (BEST, PAPER))
    ratios = (ours / paper).tolist()
    outcome.figures.append(
        Figure(
            "mean gain of IoU",
            f"log, .05, backtrack: {ours.mean():+.3f}",
            f"the paper's rule: {paper.mean():+.3f}",
            "x the gain",
            sum(ratios) / seeds,
            min(ratios),
            max(ratios),
            headline=True,
            note=f"{seeds} x {count:,} boxes from a mean IoU of {true_iou(gt, boxes).mean():.3f}; range of seeds",
            samples=ratios,
        )
    )
    outcome.curves.append(Curves("step", "mean IoU", lines))


def refined(gt: Tensor, boxes: Tensor, rule: tuple[str, float, str]) -> iounet.RefineResult:
    def predictor(gt: Tensor, boxes: Tensor, rows: Tensor) -> Tensor:
        return true_iou(gt[rows], boxes[:, 1:])

    scale, step, mode = rule
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the rows that show why it warns
        return iounet.refine_boxes(predictor, gt, boxes, torch.arange(len(gt)), scale=scale, step=step,
                                   on_degrade=mode, return_trajectory=True)  # fmt: skip


WORKLOADS: tuple[Workload, ...] = (
    Race(
        "refining 100 boxes",
        "5 steps, one thread: a map of 256 x 200 x 272 in channels_last, 7x7 bins, the paper's head (31 GFLOP in all). "
        "The head's matrix products are the floor; pooling and the loop are measured each on its own.",
        contestants,
        equals_loop,
        (
            Versus(GEMMS),
            Versus(LOOP),
            Versus(GEMMS, ours=POOL, name="pooling"),
            Versus(GEMMS, ours=BARE, name="the loop"),
        ),
        seconds=2,
    ),
    Study(
        "the exact IoU as predictor",
        "What a rule can reach if the prediction is perfect: 5 steps, float64, sides exp(U(2.5, 5)) px, IoU at first "
        "from U(.5, 1). Worse: boxes that end below their start.",
        ascent,
    ),
)
