"""Random flips and zooms of an image with its boxes, and the seeds that training derives from names."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["augment", "derive_seed", "select_rows"]

_VISIBLE = 0.25  # of a box's area must stay in the image, else the box is dropped
_PER_BOX = frozenset({"area", "boxes", "labels", "iscrowd", "masks", "keypoints"})


def derive_seed(*names: int | str) -> int:
    """63 bits that depend on nothing but the names."""
    text = "/".join(map(str, names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def augment(
    image: Tensor,
    target: dict[str, Any],
    *,
    flip: float,
    vertical_flip: float,
    scale: tuple[float, float],
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Any]]:
    """Flip with the given probabilities and zoom log-uniformly between two factors, on a canvas that keeps its size.

    What leaves the canvas is cut, what is free has the mean colour. A box of which less than a quarter stays visible
    is dropped with its row of every field. Masks move along; keypoints cannot, for no one knows their mirror images.
    """
    zoom, left, top, *mirrored = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    low, high = scale
    changed = dict(target)
    if high > low or low != 1:
        image, changed = _zoomed(image, changed, low * (high / low) ** zoom, left, top)
    height, width = image.shape[-2:]
    for axis, (size, probability, draw) in enumerate(
        zip((width, height), (flip, vertical_flip), mirrored, strict=True)
    ):
        if draw < probability:
            image = image.flip(-1 - axis)
            boxes = changed["boxes"].clone()
            boxes[:, [axis, axis + 2]] = size - boxes[:, [axis + 2, axis]]
            changed["boxes"] = boxes
            if "masks" in changed:
                changed["masks"] = changed["masks"].flip(-1 - axis)
    return image, changed


def _zoomed(
    image: Tensor, target: dict[str, Any], factor: float, left: float, top: float
) -> tuple[Tensor, dict[str, Any]]:
    height, width = image.shape[-2:]
    size = max(1, round(height * factor)), max(1, round(width * factor))
    # Where the zoomed image begins on the canvas: negative where it is larger.
    y0, x0 = round(top * (height - size[0])), round(left * (width - size[1]))

    def placed(x: Tensor, free: Tensor, resize: Callable[[Tensor], Tensor]) -> Tensor:
        canvas = free.to(x.dtype).expand(x.shape).clone()
        resized = resize(x)
        canvas[..., max(y0, 0) : y0 + size[0], max(x0, 0) : x0 + size[1]] = resized[
            ..., max(-y0, 0) : height - y0, max(-x0, 0) : width - x0
        ]
        return canvas

    image = placed(
        image,
        image.mean((-2, -1), keepdim=True),
        lambda x: interpolate(x[None], size, mode="bilinear", align_corners=False, antialias=True)[0],
    )
    target = dict(target)
    if "masks" in target:
        target["masks"] = placed(
            target["masks"],
            torch.zeros(()),
            lambda x: interpolate(x[None].float(), size, mode="nearest-exact")[0].to(x.dtype),
        )
    boxes = target["boxes"]
    ratio = boxes.new_tensor([size[1] / width, size[0] / height] * 2)
    moved = boxes * ratio + boxes.new_tensor([x0, y0] * 2)
    limit = boxes.new_tensor([width, height] * 2)
    cut = torch.minimum(moved.clamp(min=0), limit)
    sides, whole = cut[:, 2:] - cut[:, :2], moved[:, 2:] - moved[:, :2]
    kept = (sides.prod(1) >= _VISIBLE * whole.prod(1)) & (sides >= 1).all(1)
    target["boxes"] = cut
    if "area" in target:
        target["area"] = target["area"] * (ratio[0] * ratio[1])
    return image, select_rows(target, kept)


def select_rows(target: dict[str, Any], kept: Tensor) -> dict[str, Any]:
    """The target with only these boxes, in every field that has a row for each."""
    return {name: x[kept] if name in _PER_BOX else x for name, x in target.items()}
