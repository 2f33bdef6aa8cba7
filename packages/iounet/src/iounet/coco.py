"""Evaluation of detections: COCO's average precisions, and how far confidences tell the quality of boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

try:
    import numpy as np
    import pycocotools  # noqa: F401
except ImportError as error:
    raise ImportError("iounet.coco needs pycocotools: pip install 'iounet[coco]'") from error

from ._coco_backends import BACKENDS, Boxes, Floats, Integers, accumulate
from ._localization import Matches, confidences, match_boxes
from ._report import NAN, Bin, ClassReport, Latency, Report
from .data._annotations import Annotations, are_objects, quadruples, scalars
from .data._text import read_json

if TYPE_CHECKING:
    from collections.abc import Callable


__all__ = ["Bin", "ClassReport", "Latency", "Matches", "Report", "evaluate", "match", "to_results"]


class _HasAnnotations(Protocol):
    def annotations(self) -> Mapping[str, Any]: ...


class _HasCategories(Protocol):
    @property
    def category_ids(self) -> Sequence[int]: ...


Truth: TypeAlias = "str | Path | Mapping[str, Any] | _HasAnnotations"
Found: TypeAlias = "str | Path | Sequence[Mapping[str, Any]]"


def evaluate(
    annotations: Truth,
    detections: Found,
    *,
    backend: Literal["pycocotools", "faster-coco-eval", "hotcoco"] = "pycocotools",
    max_dets: int = 100,
    min_iou: float = 0.5,
    latency: Mapping[str, float | Sequence[float]] | None = None,
) -> Report:
    """Evaluate detections by COCO's protocol, and their confidences against the true IoU.

    Args:
        annotations: a COCO annotation file, its contents, or a data set of :mod:`iounet.data`. Boxes without area are
            dropped with one warning.
        detections: COCO results, or their file: a list of objects with `image_id`, `category_id`, `bbox` (x, y, width,
            height) and `score`, and `iou`, the predicted one, in all of them or in none; see :func:`to_results`.
        backend: who computes precision and recall; they agree. The last two are faster and installed by their names.
        max_dets: detections per image and class that count, the best by score. COCO's default.
        min_iou: the true IoU from which a detection has found its box, for correlation and calibration. The paper's .5.
        latency: seconds per image of each stage: their mean, or one number per image.

    Returns:
        A :class:`Report`; `print(report)` shows its table.

    Raises:
        ValueError: an option is out of its range; an entry of a file is malformed, repeats an id, or names an image or
            a category that there is not (the message names file and id).
        ImportError: the backend is not installed.

    Example::

        report = evaluate("instances_val.json", to_results(dataset, image_ids, detections))
        print(report.ap, report.ap90, report.pearson_iou)

    Reference:
        Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014. Guo et al., On Calibration of Modern Neural
        Networks, ICML 2017 (the calibration error).
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if not isinstance(max_dets, int) or max_dets < 1:
        raise ValueError(f"max_dets must be a positive integer, got {max_dets!r}")
    if not 0 < min_iou <= 1:
        raise ValueError(f"min_iou must be in (0, 1], got {min_iou}")
    stages = _latency(latency or {})
    table = _table(annotations)
    truth = _truth(table)
    found, iou = _found(detections, table)
    limits = sorted({limit for limit in (1, 10, 100) if limit < max_dets} | {max_dets})
    precision, recall = accumulate(backend, truth, found, len(table.image_ids), len(table.classes), limits)
    matches = match_boxes(truth, found, iou)
    return Report(
        images=len(table.image_ids),
        boxes=len(truth.image),
        detections=len(found.image),
        backend=backend,
        max_dets=max_dets,
        min_iou=min_iou,
        **_averages(precision, recall, limits),
        **confidences(matches, min_iou),
        per_class=_per_class(_class_names(table), truth, found, precision, recall),
        latency=stages,
    )


def match(annotations: Truth, detections: Found) -> Matches:
    """The true IoU of each detection beside what it claims; arguments and errors as in :func:`evaluate`.

    Example::

        iounet.viz.iou_scatter(match("instances_val.json", "results.json")).savefig("scatter.svg")
    """
    table = _table(annotations)
    return match_boxes(_truth(table), *_found(detections, table))


def to_results(
    categories: _HasCategories | Sequence[int], image_ids: Sequence[int], detections: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Detections of a torchvision model as COCO results.

    Args:
        categories: a data set, or its category ids: label l, from 1, is the one at place l - 1.
        image_ids: one per image.
        detections: one dictionary per image, of tensors `boxes` [L, 4] (x1, y1, x2, y2), `labels` [L], `scores` [L]
            and, optionally, `ious` [L].

    Returns:
        Dictionaries `image_id`, `category_id`, `bbox` (x, y, width, height), `score` and, where there are IoUs, `iou`.

    Raises:
        ValueError: lengths differ, or a label has no category.

    Example::

        results = to_results(dataset, [target["image_id"] for target in targets], model(images))
    """
    ids = list(categories if isinstance(categories, Sequence) else categories.category_ids)
    if len(image_ids) != len(detections):
        raise ValueError(f"image_ids must be as many as detections, got {len(image_ids)} and {len(detections)}")
    results: list[dict[str, Any]] = []
    for image_id, one in zip(image_ids, detections, strict=True):
        labels, corners = one["labels"].tolist(), one["boxes"].tolist()
        if labels and not 1 <= min(labels) <= max(labels) <= len(ids):
            span = f"{min(labels)} to {max(labels)}"
            raise ValueError(f"labels of image {image_id} must be from 1 to {len(ids)}, got {span}")
        columns = {"bbox": [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in corners], "score": one["scores"].tolist()}
        if "ious" in one:
            columns["iou"] = one["ious"].tolist()
        if any(len(column) != len(labels) for column in columns.values()):
            lengths = ", ".join(str(len(column)) for column in (labels, *columns.values()))
            raise ValueError(f"labels, boxes, scores (and ious) of image {image_id} differ in length: {lengths}")
        for label, *values in zip(labels, *columns.values(), strict=True):
            result = {"image_id": int(image_id), "category_id": ids[label - 1]}
            results.append(result | dict(zip(columns, values, strict=True)))
    return results


# --- reading ---


def _table(annotations: Truth) -> Annotations:
    if isinstance(annotations, (str, Path)):
        return Annotations.from_coco(read_json(annotations), str(annotations))
    if not isinstance(annotations, Mapping) and not hasattr(annotations, "annotations"):
        kind = type(annotations).__name__
        raise TypeError(f"annotations must be a file, a COCO document or a data set of iounet.data, got {kind}")
    document = annotations if isinstance(annotations, Mapping) else annotations.annotations()
    return Annotations.from_coco(document, "annotations")


def _ranks(ids: Sequence[int]) -> dict[int, int]:
    """Numbers from 1 in the order of the ids, in which the protocol goes through images."""
    return {key: rank for rank, key in enumerate(sorted(ids), 1)}


def _truth(table: Annotations) -> Boxes:
    rank = _ranks(table.image_ids)
    ranks = np.array([rank[key] for key in table.image_ids], dtype=np.int64)
    image, label, xywh, area, crowd = (
        column.numpy() for column in (table.image, table.labels, table.boxes, table.area, table.crowd)
    )
    return Boxes(ranks[image], label, xywh, area, crowd, np.zeros(len(image)))


def _found(detections: Found, table: Annotations) -> tuple[Boxes, Floats | None]:
    source: str = "detections"
    entries: object = detections
    if isinstance(detections, (str, Path)):
        source, entries = str(detections), read_json(detections)
    if not are_objects(entries):
        raise ValueError(f"{source} must be a list of objects with image_id, category_id, bbox and score")

    def named(what: str) -> Callable[[int], str]:
        return lambda k: f"{source}: {what} of detection {k}"

    labels = {key: label for label, key in enumerate(table.category_ids, 1)}
    image = _look_up(entries, "image_id", _ranks(table.image_ids), source, table.source)
    label = _look_up(entries, "category_id", labels, source, table.source)
    xywh = quadruples([entry.get("bbox") for entry in entries], named("bbox")).numpy()
    if (wrong := np.flatnonzero((xywh[:, 2:] < 0).any(1))).size:
        where = f"{named('bbox')(wrong[0])} (image {entries[wrong[0]]['image_id']})"
        raise ValueError(f"{where} must have non-negative width and height, got {xywh[wrong[0]].tolist()}")
    score = scalars([entry.get("score") for entry in entries], named("score")).numpy()
    iou = None
    if any("iou" in entry for entry in entries):
        iou = scalars([entry.get("iou") for entry in entries], named("iou")).numpy()
        if (wrong := np.flatnonzero((iou < 0) | (iou > 1 + 1e-6))).size:
            raise ValueError(f"{named('iou')(wrong[0])} must be in [0, 1], got {iou[wrong[0]]}")
    crowd = np.zeros(len(score), dtype=bool)
    return Boxes(image, label, xywh, xywh[:, 2] * xywh[:, 3], crowd, score), iou


def _look_up(
    entries: Sequence[Mapping[str, Any]], key: str, places: Mapping[int, int], source: str, truth: str
) -> Integers:
    try:
        return np.fromiter((places[entry[key]] for entry in entries), np.int64, len(entries))
    except (KeyError, TypeError):
        for k, entry in enumerate(entries):
            value = entry.get(key)
            if not isinstance(value, (int, float)) or value not in places:
                raise ValueError(f"{source}: detection {k} has {key} {value!r}, which is not in {truth}") from None
        raise


def _latency(stages: Mapping[str, float | Sequence[float]]) -> dict[str, Latency]:
    result = {}
    for name, seconds in stages.items():
        ms = 1e3 * np.atleast_1d(np.asarray(seconds, dtype=np.float64))
        if ms.ndim > 1 or not ms.size or not (np.isfinite(ms).all() and (ms >= 0).all()):
            raise ValueError(f"latency of {name!r} must be seconds, one number or one per image, got {seconds!r}")
        result[name] = Latency(ms.size, float(ms.mean()), float(np.median(ms)), float(np.quantile(ms, 0.9)))
    return result


# --- measuring ---


def _averages(precision: Floats, recall: Floats, limits: list[int]) -> dict[str, Any]:
    """Means over what there is: a class without a box in that range of areas has -1."""
    at = {50: 0, 60: 2, 70: 4, 75: 5, 80: 6, 90: 8}
    sizes = {"small": 1, "medium": 2, "large": 3}
    result = {"ap": _mean(precision[:, :, :, 0, -1]), "ar": _mean(recall[:, :, 0, -1])}
    result |= {f"ap{iou}": _mean(precision[k, :, :, 0, -1]) for iou, k in at.items()}
    result |= {f"ap_{name}": _mean(precision[:, :, :, k, -1]) for name, k in sizes.items()}
    result |= {f"ar_{name}": _mean(recall[:, :, k, -1]) for name, k in sizes.items()}
    for limit in (1, 10, 100):
        result[f"ar{limit}"] = _mean(recall[:, :, 0, limits.index(limit)]) if limit in limits else NAN
    return result


def _class_names(table: Annotations) -> list[str]:
    """Names, with the id where several have the same."""
    named = zip(table.classes, table.category_ids, strict=True)
    return [name if table.classes.count(name) == 1 else f"{name} ({key})" for name, key in named]


def _mean(values: Floats) -> float:
    values = values[values > -1]
    return float(values.mean()) if values.size else NAN


def _per_class(
    classes: Sequence[str], truth: Boxes, found: Boxes, precision: Floats, recall: Floats
) -> dict[str, ClassReport]:
    boxes = np.bincount(truth.label[~truth.crowd], minlength=len(classes) + 1)
    detections = np.bincount(found.label, minlength=len(classes) + 1)
    at = precision[:, :, :, 0, -1].mean(1)
    at = np.where(at > -1, at, NAN)
    columns = {"ap": at.mean(0), "ap50": at[0], "ap75": at[5], "ap90": at[8], "ar": recall[:, :, 0, -1].mean(0)}
    columns["ar"] = np.where(columns["ar"] > -1, columns["ar"], NAN)
    return {
        name: ClassReport(
            boxes=int(boxes[k + 1]),
            detections=int(detections[k + 1]),
            **{key: float(column[k]) for key, column in columns.items()},
        )
        for k, name in enumerate(classes)
    }
