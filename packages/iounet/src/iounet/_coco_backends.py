"""Precision and recall arrays from three implementations of COCO's protocol, which agree."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Boxes:
    """Columns of boxes (x, y, width, height), ground truth or detections.

    Images and labels are numbered from 1, in the order of their ids, in which the protocol goes through them. So are
    the boxes themselves: 0 as the id of a true box would mean that nothing was found.
    """

    image: Integers
    label: Integers
    xywh: Floats
    area: Floats
    crowd: npt.NDArray[np.bool_]
    score: Floats

    def entries(self) -> list[dict[str, Any]]:
        columns = (self.image, self.label, self.xywh, self.area, self.crowd.astype(int), self.score)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [
            {"id": k, "image_id": i, "category_id": c, "bbox": box, "area": area, "iscrowd": crowd, "score": score}
            for k, (i, c, box, area, crowd, score) in enumerate(rows, 1)
        ]

    def rows(self) -> Floats:
        """[L, 7], which `load_res` takes: image, x, y, width, height, score, category."""
        return np.column_stack([self.image, self.xywh, self.score, self.label])


def accumulate(
    backend: str, truth: Boxes, found: Boxes, images: int, classes: int, limits: list[int]
) -> tuple[Floats, Floats]:
    """Precision [IoU, recall, class, area, limit] and recall [IoU, class, area, limit]; -1 without a true box."""
    name, run = BACKENDS[backend]
    try:
        module = import_module(name)
    except ImportError as error:
        raise ImportError(f"backend {backend!r} needs {name}: pip install {backend}") from error
    if not (images and classes and len(truth.image)):
        return np.full((10, 101, classes, 4, len(limits)), -1.0), np.full((10, classes, 4, len(limits)), -1.0)
    frame = {
        "images": [{"id": k, "width": 1, "height": 1} for k in range(1, images + 1)],
        "categories": [{"id": k, "name": str(k)} for k in range(1, classes + 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = run(module, frame, truth, found)
        evaluation.params.maxDets = limits
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def _pycocotools(module: Any, frame: dict[str, Any], truth: Boxes, found: Boxes) -> Any:
    coco = import_module("pycocotools.coco")
    sides = []
    for boxes in (truth, found):
        sides.append(coco.COCO())
        sides[-1].dataset = frame | {"annotations": boxes.entries()}
        sides[-1].createIndex()
    return module.COCOeval(*sides, "bbox")


def _faster_coco_eval(module: Any, frame: dict[str, Any], truth: Boxes, found: Boxes) -> Any:
    sides = [module.COCO(frame | {"annotations": boxes.entries()}) for boxes in (truth, found)]
    return module.COCOeval_faster(*sides, "bbox", print_function=lambda *_: None)


def _hotcoco(module: Any, frame: dict[str, Any], truth: Boxes, found: Boxes) -> Any:
    side = module.COCO(frame | {"annotations": truth.entries()})
    return module.COCOeval(side, side.load_res(found.rows()), "bbox")


BACKENDS: dict[str, tuple[str, Callable[[Any, dict[str, Any], Boxes, Boxes], Any]]] = {
    "pycocotools": ("pycocotools.cocoeval", _pycocotools),
    "faster-coco-eval": ("faster_coco_eval", _faster_coco_eval),
    "hotcoco": ("hotcoco", _hotcoco),
}
