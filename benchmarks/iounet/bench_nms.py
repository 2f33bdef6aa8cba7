"""Suppression: time against torchvision and ensemble_boxes, and what clusters cost beyond a plain list."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from harness import GPU, Contestant, Context, Race, UnequalError, Versus, Workload, at_least, at_most
from torch import Tensor

from iounet.ops import batched_nms, iou_guided_nms, nms, soft_nms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Builders = Mapping[str, Callable[[], Contestant]]

PACKAGES = ("iounet", "torch", "torchvision", "ensemble-boxes")
OURS, TORCHVISION, ENSEMBLE = "iounet", "torchvision", "ensemble_boxes"
THRESHOLD, SOFT = 0.5, 0.3
CLASSES = 80


# --- boxes ---


def spread(n: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Small boxes all over an image of 1000 pixels: most of them are kept."""
    generator = torch.Generator().manual_seed(0)
    low = 1000 * torch.rand(n, 2, generator=generator)
    boxes = torch.cat((low, low + 10 + 20 * torch.rand(n, 2, generator=generator)), 1)
    return boxes.to(device), torch.rand(n, generator=generator).to(device)


def clustered(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ten boxes or so around each object, with sides of 20 to 220, in an image of 1000 pixels; scores and IoUs."""
    generator = torch.Generator().manual_seed(0)
    objects = n // 10
    sides = 20 + 200 * torch.rand(objects, 2, generator=generator)
    centres = 1000 * torch.rand(objects, 2, generator=generator)
    at = torch.randint(objects, (n,), generator=generator)
    side = sides[at] * torch.exp(0.15 * torch.randn(n, 2, generator=generator))
    centre = centres[at] + 0.1 * side * torch.randn(n, 2, generator=generator)
    scores, ious = torch.rand(2, n, generator=generator)
    return torch.cat((centre - side / 2, centre + side / 2), 1), scores, ious


def classes(n: int) -> Tensor:
    return torch.randint(CLASSES, (n,), generator=torch.Generator().manual_seed(1))


# --- equality ---


def same_list(ours: Tensor, peer: Tensor, what: str) -> str:
    if not torch.equal(ours, peer):
        raise UnequalError(f"{what}: not the same list")
    return f"{what}: the same list of {len(ours)} boxes."


def equals_torchvision(context: Context, device: str = "cpu") -> str:
    from torchvision import ops

    boxes, scores = spread(context.pick(100, 10_000), device)
    ours = nms(boxes, scores, THRESHOLD)
    return same_list(ours, ops.nms(boxes, scores, THRESHOLD), "iounet's and torchvision's nms")


def equals_torchvision_by_class(context: Context) -> str:
    from torchvision import ops

    n = context.pick(100, 10_000)
    (boxes, scores), idxs = spread(n), classes(n)
    ours = batched_nms(boxes, scores, idxs, THRESHOLD)
    rows = [(idxs == c).nonzero()[:, 0] for c in range(CLASSES)]
    peer = torch.cat([own[ops.nms(boxes[own], scores[own], THRESHOLD)] for own in rows]).sort()[0]
    peer = peer[scores[peer].argsort(descending=True, stable=True)]
    return same_list(ours, peer, "batched_nms and torchvision's nms of each class")


def equals_clusters(context: Context) -> str:
    """Ranked by the score, a cluster's best score is that of its first box, and the list is that of nms."""
    said = []
    for n in sizes(context):
        boxes, scores, _ = clustered(n)
        for labels in (torch.zeros(n, dtype=torch.int64), classes(n)):
            keep, cluster_score, cluster_id = iou_guided_nms(boxes, scores, scores, labels, THRESHOLD)
            if not torch.equal(cluster_score, scores[keep]) or bool((scores > cluster_score[cluster_id]).any()):
                raise UnequalError(f"{n} boxes: a cluster's score is not its best")
            said.append(same_list(keep, batched_nms(boxes, scores, labels, THRESHOLD), f"Ranked by score, {n} boxes"))
    return " ".join(said)


def equals_ensemble(context: Context) -> str:
    """Their inner function leaves new scores in its argument; the one that is timed returns those of before."""
    boxes, scores, _ = soft_arguments(context)
    try:
        from ensemble_boxes.ensemble_boxes_nms import cpu_soft_nms_float
    except ImportError as error:
        return f"Not compared: {error}."
    said = []
    for method, number in (("linear", 1), ("gaussian", 2)):
        keep, new_scores = soft_nms(boxes, scores, SOFT, method=method)  # type: ignore[arg-type]
        changed = scores.numpy().copy()
        peer = torch.as_tensor(cpu_soft_nms_float(boxes.numpy().copy(), changed, SOFT, 0.5, 1e-3, number))
        said.append(same_list(keep, peer, f"{method} Soft-NMS, iounet's and ensemble_boxes'"))
        error = float((new_scores - torch.from_numpy(changed[changed > 1e-3])).abs().max())
        if not error < 1e-12:
            raise UnequalError(f"{method} Soft-NMS: scores differ by {error:.2g}")
        said.append(f"Scores within {error:.1g}.")
    return " ".join(said)


# --- contestants ---


def sizes(context: Context) -> tuple[int, int]:
    return context.pick((50, 100), (1000, 4000))


def lists(context: Context, device: str = "cpu") -> Builders:
    boxes, scores = spread(context.pick(100, 10_000), device)

    def torchvision() -> Contestant:
        from torchvision import ops

        return Contestant(lambda: ops.nms(boxes, scores, THRESHOLD))

    return {OURS: lambda: Contestant(lambda: nms(boxes, scores, THRESHOLD)), TORCHVISION: torchvision}


def lists_by_class(context: Context) -> Builders:
    n = context.pick(100, 10_000)
    (boxes, scores), idxs = spread(n), classes(n)

    def torchvision() -> Contestant:
        from torchvision import ops

        return Contestant(lambda: ops.batched_nms(boxes, scores, idxs, THRESHOLD))

    return {OURS: lambda: Contestant(lambda: batched_nms(boxes, scores, idxs, THRESHOLD)), TORCHVISION: torchvision}


def clusters(context: Context) -> Builders:
    builders: dict[str, Callable[[], Contestant]] = {}
    for place, n in zip(("small", "large"), sizes(context), strict=True):
        boxes, scores, ious = clustered(n)
        one, many = torch.zeros(n, dtype=torch.int64), classes(n)
        calls: dict[str, Callable[[], Any]] = {
            "iou_guided_nms": partial(iou_guided_nms, boxes, scores, ious, one, THRESHOLD),
            "nms": partial(nms, boxes, ious, THRESHOLD),
            "iou_guided_nms, 80 classes": partial(iou_guided_nms, boxes, scores, ious, many, THRESHOLD),
            "batched_nms, 80 classes": partial(batched_nms, boxes, ious, many, THRESHOLD),
        }
        builders |= {f"{name}, {place}": partial(Contestant, call) for name, call in calls.items()}
    return builders


def soft_arguments(context: Context) -> tuple[Tensor, Tensor, int]:
    """In double, and within [0, 1], as ensemble_boxes has them."""
    n = context.pick(50, 1000)
    boxes, scores, _ = clustered(n)
    boxes = ((boxes.double() + 250) / 1500).clamp(0, 1)
    return boxes, scores.double(), n


def softened(context: Context) -> Builders:
    boxes, scores, n = soft_arguments(context)

    def ensemble(method: int) -> Contestant:
        from ensemble_boxes import soft_nms as peer

        lists = [boxes.numpy()], [scores.numpy()], [[0] * n]
        return Contestant(lambda: peer(*lists, method=method, iou_thr=SOFT, sigma=0.5, thresh=1e-3))

    return {
        f"{OURS} linear": lambda: Contestant(lambda: soft_nms(boxes, scores, SOFT)),
        f"{OURS} gaussian": lambda: Contestant(lambda: soft_nms(boxes, scores, SOFT, method="gaussian")),
        f"{ENSEMBLE} linear": partial(ensemble, 1),
        f"{ENSEMBLE} gaussian": partial(ensemble, 2),
    }


SPREAD = "10,000 boxes with sides of 10 to 30 in an image of 1000 pixels, 8,219 of which are kept"
WORKLOADS: tuple[Workload, ...] = (
    Race(
        "nms",
        f"{SPREAD}; one thread.",
        lists,
        equals_torchvision,
        (Versus(TORCHVISION, at_least(8), "speed", headline=True),),
        seconds=2,
    ),
    Race(
        "batched_nms",
        f"10,000 such boxes of {CLASSES} classes; one thread.",
        lists_by_class,
        equals_torchvision_by_class,
        (Versus(TORCHVISION, None, "speed"),),
        seconds=1,
    ),
    Race(
        "iou_guided_nms",
        "1000 and 4000 boxes around a tenth as many objects, ranked by predicted IoU; one thread. Clusters and their "
        "scores, against a list alone from the same boxes.",
        clusters,
        equals_clusters,
        (
            Versus("nms, small", at_most(1.3), name="1000 boxes", ours="iou_guided_nms, small"),
            Versus("nms, large", at_most(1.3), name="4000 boxes", ours="iou_guided_nms, large"),
            *(
                Versus(
                    f"batched_nms, 80 classes, {place}",
                    name=f"{n} boxes, {CLASSES} classes",
                    ours=f"iou_guided_nms, 80 classes, {place}",
                )
                for n, place in ((1000, "small"), (4000, "large"))
            ),
        ),
    ),
    Race(
        "soft_nms",
        "1000 boxes around 100 objects, in double; one thread.",
        softened,
        equals_ensemble,
        (
            Versus(f"{ENSEMBLE} linear", None, "speed", "linear", f"{OURS} linear"),
            Versus(f"{ENSEMBLE} gaussian", None, "speed", "gaussian", f"{OURS} gaussian"),
        ),
        seconds=2,
    ),
    Race(
        "nms on a GPU",
        f"{SPREAD}; the list included, for which both wait.",
        partial(lists, device="cuda"),
        partial(equals_torchvision, device="cuda"),
        (Versus(TORCHVISION, None, "speed"),),
        profiles=GPU,
        clock="cuda",
    ),
)
