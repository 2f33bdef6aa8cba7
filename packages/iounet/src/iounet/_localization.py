"""How confidences go with the true IoU: correlation and calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._report import NAN, Bin

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from ._coco_backends import Boxes, Floats

_BINS = 10
_PAIRS = 1 << 21  # boxes compared at a time


@dataclass(frozen=True, eq=False)
class Matches:
    """What each detection claims and what is so, in the order of the detections.

    Attributes:
        score: float64[D]. iou: float64[D], the predicted IoU, or None.
        true_iou: float64[D], with the best box of its class in its image that is no crowd; 0 if there is none.
        on_crowd: bool[D], whether at least half of it lies on one crowd of its class.
    """

    score: Floats
    iou: Floats | None
    true_iou: Floats
    on_crowd: npt.NDArray[np.bool_]


def match_boxes(truth: Boxes, found: Boxes, iou: Floats | None) -> Matches:
    true_iou = _overlap(truth, found, ~truth.crowd, lambda inter, own, other: inter / (own + other - inter))
    on_crowd = _overlap(truth, found, truth.crowd, lambda inter, own, other: inter / own) >= 0.5
    return Matches(found.score, iou, true_iou, on_crowd)


def _overlap(
    truth: Boxes, found: Boxes, which: npt.NDArray[np.bool_], ratio: Callable[[Floats, Floats, Floats], Floats]
) -> Floats:
    """The largest ratio of each detection with a true box of its image and class, pairs in blocks of bounded size."""
    stride = 1 + max(truth.label.max(initial=0), found.label.max(initial=0))
    keys, wanted = truth.image[which] * stride + truth.label[which], found.image * stride + found.label
    order = np.argsort(keys, kind="stable")
    corners, area, keys = _corners(truth.xywh[which][order]), _area(truth.xywh[which][order]), keys[order]
    own_corners, own_area = _corners(found.xywh), _area(found.xywh)
    first = np.searchsorted(keys, wanted, "left")
    count = np.searchsorted(keys, wanted, "right") - first
    best = np.zeros(len(wanted))
    some = np.flatnonzero((count > 0) & (own_area > 0))
    blocks = np.cumsum(count[some]) // _PAIRS
    for block in np.split(some, np.flatnonzero(np.diff(blocks)) + 1):
        if not block.size:
            continue
        n = count[block]
        starts = np.cumsum(n) - n
        mine = np.repeat(block, n)
        theirs = np.arange(len(mine)) - np.repeat(starts - first[block], n)
        low = np.maximum(own_corners[mine, :2], corners[theirs, :2])
        high = np.minimum(own_corners[mine, 2:], corners[theirs, 2:])
        inter = _area(np.concatenate([low, np.maximum(high - low, 0)], 1))
        best[block] = np.maximum.reduceat(ratio(inter, own_area[mine], area[theirs]), starts)
    return best


def _corners(xywh: Floats) -> Floats:
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)


def _area(xywh: Floats) -> Floats:
    return xywh[:, 2] * xywh[:, 3]


def confidences(matches: Matches, min_iou: float) -> dict[str, Any]:
    found = matches.true_iou >= min_iou
    true_iou = matches.true_iou[found]
    result: dict[str, Any] = {"pearson_n": int(found.sum()), "pearson_iou": NAN, "ece_score": NAN, "ece_iou": NAN}
    result["pearson_score"] = _pearson(matches.score[found], true_iou)
    if not ((matches.score < 0) | (matches.score > 1 + 1e-6)).any():
        judged = found | ~matches.on_crowd
        bins, error = _reliability(matches.score[judged], found[judged].astype(np.float64))
        result |= {"reliability_score": bins, "ece_score": error}
    if matches.iou is not None:
        bins, error = _reliability(matches.iou[found], true_iou)
        result |= {"reliability_iou": bins, "ece_iou": error}
        result["pearson_iou"] = _pearson(matches.iou[found], true_iou)
    return result


def _pearson(a: Floats, b: Floats) -> float:
    """NaN where one of them is constant."""
    a, b = a - a.mean() if a.size else a, b - b.mean() if b.size else b
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale > 0 else NAN


def _reliability(claimed: Floats, observed: Floats) -> tuple[tuple[Bin, ...], float]:
    place = np.minimum((claimed * _BINS).astype(np.int64), _BINS - 1)
    count = np.bincount(place, minlength=_BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, values, _BINS) / count for values in (claimed, observed)]
    bins = tuple(
        Bin(k / _BINS, (k + 1) / _BINS, int(n), float(c), float(o))
        for k, (n, c, o) in enumerate(zip(count, *means, strict=True))
    )
    gap = np.nan_to_num(np.abs(means[0] - means[1]))
    return bins, float((gap * count).sum() / count.sum()) if count.any() else NAN
