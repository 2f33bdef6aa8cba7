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


_MODULES = {"pycocotools": "pycocotools", "faster-coco-eval": "faster_coco_eval", "hotcoco": "hotcoco"}


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
        keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "score")
        columns = (self.image, self.label, self.xywh, self.area, self.crowd.astype(int), self.score)
        ids = range(1, len(self.image) + 1)
        return [
            dict(zip(keys, values, strict=True))
            for values in zip(ids, *(column.tolist() for column in columns), strict=True)
        ]


def accumulate(
    backend: str, truth: Boxes, found: Boxes, images: int, classes: int, limits: list[int]
) -> tuple[Floats, Floats]:
    """Precision [IoU, recall, class, area, limit] and recall [IoU, class, area, limit]; -1 without a true box."""
    try:
        import_module(_MODULES[backend])
    except ImportError as error:
        raise ImportError(f"backend {backend!r} needs {_MODULES[backend]}: pip install {backend}") from error
    if not (images and classes and len(truth.image)):
        return np.full((10, 101, classes, 4, len(limits)), -1.0), np.full((10, classes, 4, len(limits)), -1.0)
    frame = {
        "images": [{"id": k, "width": 1, "height": 1} for k in range(1, images + 1)],
        "categories": [{"id": k, "name": str(k)} for k in range(1, classes + 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        run = BACKENDS[backend](
            frame | {"annotations": truth.entries()}, frame | {"annotations": found.entries()}, limits
        )
    return np.asarray(run["precision"]), np.asarray(run["recall"])


def _pycocotools(truth: dict[str, Any], found: dict[str, Any], limits: list[int]) -> Any:
    coco, cocoeval = import_module("pycocotools.coco"), import_module("pycocotools.cocoeval")
    sides = []
    for document in (truth, found):
        sides.append(coco.COCO())
        sides[-1].dataset = document
        sides[-1].createIndex()
    return _run(cocoeval.COCOeval(*sides, "bbox"), limits)


def _faster_coco_eval(truth: dict[str, Any], found: dict[str, Any], limits: list[int]) -> Any:
    module = import_module("faster_coco_eval")
    sides = [module.COCO(document) for document in (truth, found)]
    return _run(module.COCOeval_faster(*sides, "bbox", print_function=lambda *_: None), limits)


def _hotcoco(truth: dict[str, Any], found: dict[str, Any], limits: list[int]) -> Any:
    module = import_module("hotcoco")
    side = module.COCO(truth)
    return _run(module.COCOeval(side, side.load_res(found["annotations"]), "bbox"), limits)


def _run(evaluation: Any, limits: list[int]) -> Any:
    evaluation.params.maxDets = limits
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval


BACKENDS: dict[str, Callable[[dict[str, Any], dict[str, Any], list[int]], Any]] = {
    "pycocotools": _pycocotools,
    "faster-coco-eval": _faster_coco_eval,
    "hotcoco": _hotcoco,
}
