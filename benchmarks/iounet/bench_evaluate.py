"""The evaluation of detections: what checking, correlation and calibration cost beside each of its three back-ends."""

from __future__ import annotations

import contextlib
import io
import random
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from harness import Contestant, Context, Race, UnequalError, Versus, Workload

from iounet.coco import evaluate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PACKAGES = ("iounet", "pycocotools", "faster-coco-eval", "hotcoco")
MODULES = {"pycocotools": "pycocotools.cocoeval", "faster-coco-eval": "faster_coco_eval", "hotcoco": "hotcoco"}
OURS = "iounet, pycocotools"  # the default


@cache
def load(images: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """7 true boxes and 28 detections per image, of 80 classes; three in four detections are about a true box."""
    draw = random.Random(1)
    truth: dict[str, Any] = {
        "images": [{"id": k, "file_name": f"{k}.jpg", "width": 640, "height": 480} for k in range(1, images + 1)],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, 81)],
        "annotations": [],
    }
    found = []
    for image in truth["images"]:
        for _ in range(7):
            w, h = (draw.uniform(10, 200) for _ in range(2))
            box = [draw.uniform(0, 640 - w), draw.uniform(0, 480 - h), w, h]
            category = draw.choices(range(1, 81), range(80, 0, -1))[0]
            truth["annotations"].append(
                {"id": len(truth["annotations"]) + 1, "image_id": image["id"], "category_id": category}
                | {"bbox": box, "area": w * h * 0.7, "iscrowd": int(draw.random() < 0.01)}
            )
            for k in range(4):
                spread = 0.08 if k else 1.0
                dx, dy = (draw.gauss(0, spread) * side for side in (w, h))
                bbox = [box[0] + dx, box[1] + dy, w * draw.uniform(0.8, 1.25), h * draw.uniform(0.8, 1.25)]
                found.append({"image_id": image["id"], "category_id": category, "bbox": bbox})
                found[-1] |= {"score": draw.random(), "iou": draw.random()}
    return truth, found


def alone(backend: str, truth: dict[str, Any], found: list[dict[str, Any]]) -> Any:
    """The back-end as its manual uses it: reading, evaluation, accumulation; nothing printed."""
    module = import_module(MODULES[backend])
    with contextlib.redirect_stdout(io.StringIO()):
        if backend == "hotcoco":
            side = module.COCO(truth)
            run = module.COCOeval(side, side.load_res(found), "bbox")
        elif backend == "faster-coco-eval":
            side = module.COCO(truth)
            run = module.COCOeval_faster(side, side.loadRes(found), "bbox", print_function=lambda *_: None)
        else:
            side = import_module("pycocotools.coco").COCO()
            side.dataset = truth
            side.createIndex()
            run = module.COCOeval(side, side.loadRes(found), "bbox")
        run.evaluate()
        run.accumulate()
    return run.eval


def racers(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    truth, found = load(context.pick(20, 100, 1000))

    def ours(backend: str) -> Contestant:
        import_module(MODULES[backend])
        return Contestant(lambda: evaluate(truth, found, backend=backend))

    def theirs(backend: str) -> Contestant:
        import_module(MODULES[backend])
        return Contestant(lambda: alone(backend, truth, found))

    builders: dict[str, Callable[[], Contestant]] = {}
    for backend in MODULES:
        builders[f"iounet, {backend}"] = lambda backend=backend: ours(backend)  # type: ignore[misc]
        builders[backend] = lambda backend=backend: theirs(backend)  # type: ignore[misc]
    return builders


def equal(context: Context) -> str:
    truth, found = load(context.pick(20, 100, 1000))
    present = []
    for backend in MODULES:
        with contextlib.suppress(ImportError):
            precision = np.asarray(alone(backend, truth, found)["precision"])[:, :, :, 0, -1]
            expected = precision[precision > -1].mean()
            report = evaluate(truth, found, backend=backend)
            if not abs(report.ap - expected) <= 1e-6:
                raise UnequalError(f"AP {report.ap} by iounet with {backend}, {expected} by {backend} alone")
            present.append((backend, report.ap))
    if max(ap for _, ap in present) - min(ap for _, ap in present) > 1e-6:
        raise UnequalError(f"the back-ends differ: {present}")
    return f"AP {present[0][1]:.4f} with {', '.join(name for name, _ in present)}, and with each alone, within 1e-6."


WORKLOADS: tuple[Workload, ...] = (
    Race(
        "evaluation",
        "28 detections and 7 true boxes per image, 80 classes, 100 images (full: 1000). Ours also checks every "
        "entry, matches each detection with its best box, and tells AP60 to AP90, correlation and calibration.",
        racers,
        equal,
        (
            *(Versus(name, ours=f"iounet, {name}", name=f"with {name}") for name in MODULES),
            *(
                Versus(OURS, kind="speed", ours=f"iounet, {name}", name=f"backend={name!r}")
                for name in MODULES
                if name not in OURS
            ),
        ),
        seconds=2,
    ),
)
