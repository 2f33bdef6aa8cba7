"""What the predicted IoU is worth to a detector: average precision on blood cells, everything trained from scratch."""

from __future__ import annotations

import math
import shutil
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from blood_cells import NMS, RULES, UPPER, Recipe, Varied, every_rule, iterated
from harness import FULL, Context, Curves, Figure, MissingError, Outcome, Study, UnequalError, Workload, at_least

from iounet import coco
from iounet.data import open_dataset, synthetic_scenes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchvision.models.detection import FasterRCNN

    from iounet.coco import Report
    from iounet.data import DetectionDataset

PACKAGES = ("iounet", "torch", "torchvision")
RUNS = Path(__file__).resolve().parents[1] / "report" / "iounet-bccd"  # an interrupted run goes on from here
_, PAPER, MONOTONE, PRODUCT, _ = RULES
COLUMNS = {"AP": "ap", "AP50": "ap50", "AP60": "ap60", "AP70": "ap70", "AP80": "ap80", "AP90": "ap90"}


def cells(context: Context, outcome: Outcome) -> None:
    if not context.data or not (folder := Path(context.data, "detection", "bccd")).is_dir():
        raise MissingError("this needs --data: a folder with detection/bccd, the data set of 364 images")
    train, test = (open_dataset(f"coco:{folder}", split) for split in ("train", "test"))
    measure(context, outcome, train, test, Recipe(24, 24, 400), count=3, runs=RUNS)
    shutil.rmtree(RUNS)


def shapes(context: Context, outcome: Outcome) -> None:
    images, side = context.pick((4, 64), (120, 192))
    train, test = (synthetic_scenes(n, seed, side) for seed, n in enumerate((images, images // 2)))
    recipe = context.pick(Recipe(1, 1, 32, side=side), Recipe(8, 4, 200, side=side))
    with TemporaryDirectory() as folder:
        measure(context, outcome, train, test, recipe, count=1, runs=Path(folder))
    for figure in outcome.figures:
        figure.target = None


def measure(
    context: Context,
    outcome: Outcome,
    train: DetectionDataset,
    test: DetectionDataset,
    recipe: Recipe,
    count: int,
    runs: Path,
) -> None:
    images, reports, candidates, paths = Varied(train), [], [], []
    for seed in range(count):

        def done(share: float, start: float) -> None:
            context.progress((seed + start + share / 2) / count)  # noqa: B023

        detector = recipe.detector(images, seed, runs / f"{seed}-detector", lambda share: done(share, 0))
        net = recipe.head(detector, images, seed, runs / f"{seed}-head", lambda share: done(share, 0.5))
        found, everything = every_rule(detector, net, test)
        outcome.equal = same_as_the_detector(detector, test, found[NMS])
        reports.append({rule: coco.evaluate(test, results) for rule, results in found.items()})
        candidates.append(coco.evaluate(test, everything, max_dets=1000))
        paths.append(iterated(detector, net, test))
    outcome.figures = [
        *(figure for rule in (MONOTONE, PRODUCT, PAPER) for figure in gains(reports, rule)),
        correlation(candidates),
    ]
    rules = (NMS, *RULES, UPPER)
    outcome.table = [["rule", *COLUMNS], *(row(rule, [r[rule] for r in reports]) for rule in rules)]
    outcome.table += [line for rule in (NMS, MONOTONE) for line in by_class(rule, [r[rule] for r in reports])]
    lines = {
        name: [
            (float(step), statistics.fmean(x), min(x), max(x))
            for step, x in enumerate(zip(*(path[name] for path in paths), strict=True))
        ]
        for name in paths[0]
    }
    outcome.curves = [Curves("iterations", "mean true IoU of the boxes", lines)]


def same_as_the_detector(detector: FasterRCNN, test: DetectionDataset, ours: list[dict[str, Any]]) -> str:
    """The rule called NMS is a fair opponent if it gives what the detector gives without the package."""
    image, ids = test[0][0], test.image_ids[:1]
    with torch.no_grad():
        theirs = coco.to_results(test, ids, detector([image]))
    ours = [one for one in ours if one["image_id"] == ids[0]]
    a, b = ([x for one in some for x in (*one["bbox"], one["score"])] for some in (ours[: len(theirs)], theirs))
    if len(a) != len(b) or any(abs(x - y) > 0.01 for x, y in zip(a, b, strict=True)):
        raise UnequalError("NMS of the candidates does not give the detector's own detections")
    return "NMS of the candidates gives the detector's own detections."


def gains(reports: list[dict[str, Report]], rule: str) -> list[Figure]:
    """Seed by seed, in points of average precision."""
    figures = []
    for name, target in (("AP90", at_least(3)), ("AP", at_least(1)), ("AP50", at_least(-1.7))):
        pairs = [[100 * getattr(r[key], COLUMNS[name]) for key in (rule, NMS)] for r in reports]
        ours, peer = zip(*pairs, strict=True)
        gain = [a - b for a, b in pairs]
        figure = Figure(f"{name} gained", f"{rule}: {spread(ours)}", f"{NMS}: {spread(peer)}", " points")
        figure.value, figure.low, figure.high = statistics.fmean(gain), min(gain), max(gain)
        figure.target, figure.note = target, seeds(gain, 2)
        figure.headline = name == "AP90" and rule == MONOTONE
        figures.append(figure)
    return figures


def correlation(candidates: list[Report]) -> Figure:
    ours, peer = ([getattr(c, name) for c in candidates] for name in ("pearson_iou", "pearson_score"))
    figure = Figure("correlation with the true IoU", "predicted IoU", f"class confidence: {spread(peer, 3)}")
    if not any(map(math.isnan, ours)):
        figure.value, figure.low, figure.high = statistics.fmean(ours), min(ours), max(ours)
    figure.target, counts = at_least(0.6), ", ".join(str(c.pearson_n) for c in candidates)
    figure.note = f"{seeds(ours, 3)}; over the {counts} candidates before NMS whose true IoU is 0.5 or more"
    return figure


def row(rule: str, reports: list[Report]) -> list[str]:
    return [rule, *(spread([100 * getattr(r, name) for r in reports]) for name in COLUMNS.values())]


def by_class(rule: str, reports: list[Report]) -> list[list[str]]:
    """In the columns of the table that a class has."""
    fields = {"AP": "ap", "AP50": "ap50", "AP90": "ap90"}
    lines = []
    for name in reports[0].per_class:
        found = {c: [100 * getattr(r.per_class[name], field) for r in reports] for c, field in fields.items()}
        lines.append([f"{name}, {rule}", *(spread(found[c]) if c in found else "" for c in COLUMNS)])
    return lines


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and standard deviation."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def seeds(values: Sequence[float], digits: int) -> str:
    return f"seed by seed {', '.join(f'{value:.{digits}f}' for value in values)}"


WORKLOADS: tuple[Workload, ...] = (
    Study(
        "blood cells",
        "BCCD: 205 images train a small Faster R-CNN from scratch, and then an IoU head beside it while it is frozen. "
        "The 72 test images are evaluated once; all choices were made on 87 others. Three seeds: mean and standard "
        "deviation; of gains, seed by seed, the mean and the range. Boxes rank by class confidence unless it says IoU.",
        cells,
        FULL,
    ),
    Study(
        "scenes of shapes",
        "The experiment on blood cells in small, on data that needs no download: drawn shapes, one seed, a detector "
        "trained for a minute. It shows how the other is measured, and is too short to judge the method.",
        shapes,
        FULL | {"smoke"},
    ),
)
