"""What an evaluation found: numbers, their JSON, and a table for people."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

NAN = float("nan")


@dataclass(frozen=True)
class ClassReport:
    """One class: its boxes in the ground truth, its detections, its average precisions and its recall."""

    boxes: int
    detections: int
    ap: float
    ap50: float
    ap75: float
    ap90: float
    ar: float


@dataclass(frozen=True)
class Bin:
    """A bar of a reliability diagram: what was claimed on average, `confidence`, and what was so, `observed`."""

    low: float
    high: float
    count: int
    confidence: float
    observed: float


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a stage over n images."""

    n: int
    mean: float
    median: float
    p90: float


@dataclass(frozen=True)
class Report:
    """The result of :func:`iounet.coco.evaluate`; what cannot be said, such as AP without a box, is NaN.

    Attributes:
        ap: mean of the average precisions at IoU .50, .55, ... .95. ap50 ... ap90: at one IoU. ap_small, ap_medium,
            ap_large: of boxes below 32^2, below 96^2 and above.
        ar: recall with `max_dets` detections per image and class, mean over IoU. ar1, ar10, ar100: with so many, if not
            more than `max_dets`.
        per_class: by name.
        pearson_score, pearson_iou: correlation of the score, and of the predicted IoU, with the true IoU, over the
            `pearson_n` detections whose true IoU is at least `min_iou`. NaN without a predicted IoU.
        reliability_score, ece_score: how often a detection of some score has a true IoU of at least `min_iou`, in ten
            bins, and the expected calibration error, the mean of |score - frequency| weighted by the bins' counts.
            Detections that lie on a crowd are left out. Empty and NaN if a score is outside 0..1.
        reliability_iou, ece_iou: the same of the predicted IoU and the mean true IoU, over the `pearson_n` detections.
        latency: by stage.
    """

    images: int
    boxes: int
    detections: int
    backend: str
    max_dets: int
    min_iou: float
    ap: float
    ap50: float
    ap60: float
    ap70: float
    ap75: float
    ap80: float
    ap90: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar: float
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    pearson_n: int
    pearson_score: float
    pearson_iou: float
    ece_score: float
    ece_iou: float
    reliability_score: tuple[Bin, ...] = ()
    reliability_iou: tuple[Bin, ...] = ()
    per_class: dict[str, ClassReport] = field(default_factory=dict)
    latency: dict[str, Latency] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain Python, None for NaN."""
        return _plain(asdict(self))  # type: ignore[no-any-return]

    def to_json(self) -> str:
        """Everything as JSON, null for NaN."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def table(self) -> str:
        """What a person asks first, in columns; precisions in percent."""
        blocks = [
            f"{self.images} images, {self.boxes} boxes, {self.detections} detections ({self.backend})",
            _columns([_HEAD, ["", *(_percent(getattr(self, name)) for name in _HEAD_FIELDS)]]),
        ]
        if self.pearson_n:
            rows = [["", "Pearson", "ECE"], ["score", _number(self.pearson_score), _number(self.ece_score)]]
            if self.reliability_iou:
                rows.append(["predicted IoU", _number(self.pearson_iou), _number(self.ece_iou)])
            title = f"against the true IoU ({self.pearson_n} detections of IoU >= {self.min_iou:g})"
            blocks.append(f"{title}\n{_columns(rows)}")
        if len(self.per_class) > 1:
            names = [item.name for item in fields(ClassReport)]
            rows = [["class", "boxes", "detections", *(name.upper() for name in names[2:])]]
            for name, one in self.per_class.items():
                if one.boxes or one.detections:
                    values = (_percent(getattr(one, key)) for key in names[2:])
                    rows.append([name, str(one.boxes), str(one.detections), *values])
            blocks.append(_columns(rows))
        if self.latency:
            rows = [["ms per image", "mean", "median", "90 %", "n"]]
            for name, stage in self.latency.items():
                rows.append([name, *(f"{x:.2f}" for x in (stage.mean, stage.median, stage.p90)), str(stage.n)])
            blocks.append(_columns(rows))
        return "\n\n".join(blocks)

    def __str__(self) -> str:
        return self.table()


_HEAD_FIELDS = (
    "ap", "ap50", "ap60", "ap70", "ap75", "ap80", "ap90", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar",
)  # fmt: skip
_HEAD = ["%", "AP", "AP50", "AP60", "AP70", "AP75", "AP80", "AP90", "small", "medium", "large", "AR1", "AR10", "AR"]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _columns(rows: list[list[str]]) -> str:
    """Left-aligned names, right-aligned numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
