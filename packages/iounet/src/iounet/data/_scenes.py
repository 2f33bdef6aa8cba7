"""Scenes of overlapping shapes whose boxes are known exactly: data for tests and examples, without a file."""

from __future__ import annotations

import colorsys
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ._annotations import Annotations
from ._dataset import DetectionDataset

if TYPE_CHECKING:
    from collections.abc import Sequence

Box: TypeAlias = "tuple[float, float, float, float]"
_PLAIN = ("disc", "square", "triangle", "star", "cross", "ring")
SHAPES = (*_PLAIN, *(f"striped {name}" for name in _PLAIN))
_HIDDEN = 0.5  # of a shape may be covered by others


class SyntheticScenes(DetectionDataset):
    """Scenes held in memory, n * 3 * H * W bytes: see :func:`synthetic_scenes`."""

    def __init__(self, pixels: Tensor, table: Annotations) -> None:
        super().__init__(table)
        self._pixels = pixels

    def _image(self, row: int) -> Tensor:
        return self._pixels[row].float().div_(255)


def synthetic_scenes(
    n: int, seed: int = 0, size: int | tuple[int, int] = 128, classes: int | Sequence[str] = 3
) -> SyntheticScenes:
    """Make scenes of two to seven discs, squares, triangles, ... that overlap, turned and stretched.

    A box is that of the whole shape, computed from its outline and not from its pixels. At most half of a shape is
    covered by others. A scene depends on the seed, its place, the size and the classes only: more scenes begin with
    the same ones.

    Args:
        n: number of scenes.
        seed: of all random choices.
        size: of the images in pixels, one side or (height, width); at least 32.
        classes: how many of the shapes, from 1 to 12, or their names.

    Returns:
        A data set as :func:`open_dataset` returns.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> scenes = synthetic_scenes(2, seed=1, size=64, classes=("disc", "star"))
        >>> image, target = scenes[0]
        >>> image.shape, target["boxes"].dtype
        (torch.Size([3, 64, 64]), torch.float32)
    """
    height, width = (size, size) if isinstance(size, int) else size
    names = SHAPES[:classes] if isinstance(classes, int) else tuple(classes)
    if n < 0:
        raise ValueError(f"n must be non-negative, got {n}")
    if min(height, width) < 32:
        raise ValueError(f"size must be at least 32, got {size}")
    if isinstance(classes, int) and not 1 <= classes <= len(SHAPES):
        raise ValueError(f"classes must be from 1 to {len(SHAPES)}, got {classes}")
    if not names or len(set(names)) < len(names) or not set(names) <= set(SHAPES):
        raise ValueError(f"classes must be different names of {', '.join(SHAPES)}, got {names}")
    pixels = torch.empty(n, 3, height, width, dtype=torch.uint8)
    boxes: list[dict[str, Any]] = []
    for row in range(n):
        scene = _Scene(random.Random(f"iounet/{seed}/{row}"), height, width, names)
        pixels[row] = scene.pixels()
        for label, (x1, y1, x2, y2) in scene.found:
            boxes.append({"id": len(boxes) + 1, "image_id": row + 1, "category_id": label})
            boxes[-1]["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    images = [{"id": row + 1, "file_name": f"scene {row}", "width": width, "height": height} for row in range(n)]
    categories = [{"id": label, "name": name} for label, name in enumerate(names, 1)]
    document = {"images": images, "annotations": boxes, "categories": categories}
    return SyntheticScenes(pixels, Annotations.from_coco(document, "synthetic scenes"))


class _Scene:
    """A background on which shapes are drawn one over the other."""

    def __init__(self, draw: random.Random, height: int, width: int, names: tuple[str, ...]) -> None:
        self.draw, self.height, self.width = draw, height, width
        self.unit = min(height, width) / 128
        self.canvas = self._background()
        self.owner = torch.full((height, width), -1)  # which shape is seen
        self.found: list[tuple[int, Box]] = []
        self.areas: list[int] = []  # in pixels, and how many of them are still seen
        self.seen: list[int] = []
        for _ in range(draw.randint(2, 7)):
            label = draw.randrange(len(names))
            for _ in range(8):
                if self._place(label, names):
                    break

    def pixels(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.draw.getrandbits(62))
        grain = torch.randn(1, self.height, self.width, generator=generator) * 0.012
        return ((self.canvas + grain).clamp(0, 1) * 255).round().to(torch.uint8)

    def _background(self) -> Tensor:
        """A dim gradient with soft clouds."""
        draw = self.draw
        hue, turn = draw.random(), draw.uniform(0, 2 * math.pi)
        light = draw.uniform(0.16, 0.82)
        ends = [colorsys.hls_to_rgb(hue + shift, light + shift / 2, 0.22) for shift in (-0.08, 0.08)]
        y, x = torch.meshgrid(torch.linspace(-1, 1, self.height), torch.linspace(-1, 1, self.width), indexing="ij")
        ramp = (x * math.cos(turn) + y * math.sin(turn)) / 2.8 + 0.5
        generator = torch.Generator().manual_seed(draw.getrandbits(62))
        clouds = torch.rand(1, 1, 5, 5, generator=generator)
        clouds = torch.nn.functional.interpolate(clouds, (self.height, self.width), mode="bicubic", align_corners=True)
        first, second = (torch.tensor(end).view(3, 1, 1) for end in ends)
        return torch.lerp(first, second, ramp.clamp(0, 1)) + (clouds[0] - 0.5) * 0.12

    def _place(self, label: int, names: tuple[str, ...]) -> bool:
        """Draw a shape somewhere, unless it would lie on another one of the same extent, or hide one."""
        *striped, kind = names[label].split()
        shape, box = self._shape(kind)
        if any(_iou(box, other) > 0.6 for _, other in self.found):
            return False
        margin = math.ceil(10 * self.unit)
        top, left = max(math.floor(box[1]) - margin, 0), max(math.floor(box[0]) - margin, 0)
        window = (slice(top, math.ceil(box[3]) + margin), slice(left, math.ceil(box[2]) + margin))
        owner = self.owner[window]
        rows, columns = (torch.arange(n) + start + 0.5 for n, start in zip(owner.shape, (top, left), strict=True))
        x, y = columns - box[0] + shape.box[0], rows - box[1] + shape.box[1]
        distance = shape.distance(x, y)
        inside = distance < 0
        hidden = torch.bincount(owner[inside & (owner >= 0)], minlength=len(self.found)).tolist()
        if any(
            seen - lost < (1 - _HIDDEN) * area for seen, lost, area in zip(self.seen, hidden, self.areas, strict=True)
        ):
            return False
        self.seen = [seen - lost for seen, lost in zip(self.seen, hidden, strict=True)]
        owner[inside] = len(self.found)
        self.areas.append(int(inside.sum()))
        self.seen.append(self.areas[-1])
        self.found.append((label + 1, box))
        hue = (label + self.draw.uniform(-0.16, 0.16)) / len(names)
        self._paint(self.canvas[:, window[0], window[1]], shape, distance, x, y, hue % 1, bool(striped))
        return True

    def _shape(self, kind: str) -> tuple[_Shape, Box]:
        """A shape and the box it has where it is put: anywhere, or beside another one."""
        draw = self.draw
        side = math.exp(draw.uniform(math.log(0.17), math.log(0.54))) * min(self.height, self.width) / 2
        stretch = math.exp(draw.uniform(-0.35, 0.35))
        shape = _Shape(kind, side * stretch, side / stretch, draw.uniform(0, 2 * math.pi))
        x1, y1, x2, y2 = shape.box
        room_x, room_y = (1 - x1, self.width - 1 - x2), (1 - y1, self.height - 1 - y2)
        x, y = draw.uniform(*room_x), draw.uniform(*room_y)
        if self.found and draw.random() < 0.6:
            a, b, c, d = draw.choice(self.found)[1]
            x = min(max((a + c) / 2 + draw.gauss(0, 0.6) * (c - a), room_x[0]), room_x[1])
            y = min(max((b + d) / 2 + draw.gauss(0, 0.6) * (d - b), room_y[0]), room_y[1])
        return shape, (x + x1, y + y1, x + x2, y + y2)

    def _paint(
        self, part: Tensor, shape: _Shape, distance: Tensor, x: Tensor, y: Tensor, hue: float, striped: bool
    ) -> None:
        """A soft shadow, the colour lit from above left, stripes if any, a darker rim."""
        draw, unit = self.draw, self.unit
        part *= 1 - 0.42 * torch.sigmoid(-shape.distance(x - 2.5 * unit, y - 3 * unit) / (1.6 * unit))
        colour = torch.tensor(colorsys.hls_to_rgb(hue, draw.uniform(0.46, 0.66), draw.uniform(0.55, 0.85)))
        y, reach = y.unsqueeze(1), max(shape.a, shape.b)
        light = 1 - 0.17 * ((x + y) / reach).clamp(-1.4, 1.4)
        if striped:
            wave = torch.sin(
                (x * math.cos(shape.turn) + y * math.sin(shape.turn)) * (2 * math.pi / max(reach / 2.2, 4))
            )
            light = light * (1 - 0.34 * torch.sigmoid(wave * 6))
        light = light * (1 - 0.4 * torch.sigmoid((distance + 1.6 * unit) / (0.4 * unit)))
        part.copy_(torch.lerp(part, colour.view(3, 1, 1) * light, (0.5 - distance).clamp(0, 1)))


@dataclass(frozen=True)
class _Shape:
    """An outline about the origin, stretched to half axes a and b, then turned; in pixels."""

    kind: str
    a: float
    b: float
    turn: float

    @property
    def box(self) -> Box:
        if self.kind in ("disc", "ring"):
            cos, sin = math.cos(self.turn), math.sin(self.turn)
            x, y = math.hypot(self.a * cos, self.b * sin), math.hypot(self.a * sin, self.b * cos)
            return -x, -y, x, y
        xs, ys = zip(*self._corners(), strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Signed distance [len(y), len(x)] to the outline, negative inside; of a disc near its outline only."""
        y = y.unsqueeze(1)
        if self.kind in ("disc", "ring"):
            cos, sin = math.cos(self.turn), math.sin(self.turn)
            u, v = x * cos + y * sin, y * cos - x * sin
            outer = _ellipse(u, v, self.a, self.b)
            return outer if self.kind == "disc" else torch.maximum(outer, -_ellipse(u, v, self.a * 0.55, self.b * 0.55))
        return _polygon(x, y, self._corners())

    def _corners(self) -> list[tuple[float, float]]:
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        points = [(self.a * u, self.b * v) for u, v in _OUTLINES[self.kind]]
        return [(u * cos - v * sin, u * sin + v * cos) for u, v in points]


def _regular(corners: int, inner: float = 1.0) -> list[tuple[float, float]]:
    radii = [1.0, inner] if inner < 1 else [1.0]
    count = corners * len(radii)
    angles = [2 * math.pi * k / count - math.pi / 2 for k in range(count)]
    return [(radii[k % len(radii)] * math.cos(t), radii[k % len(radii)] * math.sin(t)) for k, t in enumerate(angles)]


_ARM = 0.36
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": _regular(3),
    "star": _regular(5, 0.48),
    "cross": [
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ],
}  # fmt: skip


def _ellipse(u: Tensor, v: Tensor, a: float, b: float) -> Tensor:
    """First-order distance (|p/r| - 1) |p/r| / |p/r^2|, exact on the outline."""
    near = torch.hypot(u / a, v / b)
    slope = torch.hypot(u / a**2, v / b**2).clamp(min=1e-9)
    return torch.where(near > 1e-6, near * (near - 1) / slope, -min(a, b))


def _polygon(x: Tensor, y: Tensor, corners: list[tuple[float, float]]) -> Tensor:
    """The least distance to an edge; inside where a ray crosses the outline an odd number of times."""
    ends = torch.tensor([*corners, corners[0]])
    (px, py), (ex, ey) = ((part[:, 0, None, None], part[:, 1, None, None]) for part in (ends[:-1], ends.diff(dim=0)))
    wx, wy = x - px, y - py
    along = ((wx * ex + wy * ey) / (ex * ex + ey * ey)).clamp(0, 1)
    distance = torch.hypot(wx - along * ex, wy - along * ey).amin(0)
    above, crosses = wy >= 0, (ex * wy > ey * wx)
    ends_above = wy - ey >= 0
    odd = ((above & ~ends_above & crosses) | (~above & ends_above & ~crosses)).sum(0) % 2 == 1
    return torch.where(odd, -distance, distance)


def _iou(a: Box, b: Box) -> float:
    inter = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)
