"""Drawn scenes, "a red circle above a blue square", with sentences about them: pictures and text that no one owns."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

COLOURS = {
    "red": (208, 52, 44),
    "green": (56, 142, 60),
    "blue": (38, 96, 190),
    "yellow": (240, 200, 40),
    "purple": (126, 60, 150),
    "orange": (238, 128, 30),
}
SHAPES = ("circle", "square", "triangle", "star")
PLACES = ("above", "below", "beside")
SIDE = 64
_GROUND = (246, 244, 238)


@dataclass(frozen=True)
class Scene:
    """Two coloured shapes, and how the first lies to the second."""

    first: tuple[str, str]
    place: str
    second: tuple[str, str]

    @property
    def sentence(self) -> str:
        return f"a {' '.join(self.first)} {self.place} a {' '.join(self.second)}"

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.first, *self.second)))

    def draw(self) -> Image.Image:
        picture = Image.new("RGB", (4 * SIDE, 4 * SIDE), _GROUND)
        middle, near, far = 2 * SIDE, SIDE, 3 * SIDE
        centres = {
            "above": ((middle, near), (middle, far)),
            "below": ((middle, far), (middle, near)),
            "beside": ((near, middle), (far, middle)),
        }[self.place]
        for (colour, shape), centre in zip((self.first, self.second), centres, strict=True):
            ImageDraw.Draw(picture).polygon(_outline(shape, *centre, 0.8 * SIDE), fill=COLOURS[colour])
        return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def _outline(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    corners = {"circle": 48, "square": 4, "triangle": 3, "star": 10}[shape]
    turn = np.pi / 4 if shape == "square" else -np.pi / 2
    radii = [radius * (0.45 if shape == "star" and i % 2 else 1) for i in range(corners)]
    angles = [turn + 2 * np.pi * i / corners for i in range(corners)]
    return [(x + r * np.cos(a), y + r * np.sin(a)) for r, a in zip(radii, angles, strict=True)]


def scenes(count: int, seed: int = 0) -> list[Scene]:
    """Scenes drawn at random."""
    draw = np.random.default_rng(seed)

    def figure() -> tuple[str, str]:
        return str(draw.choice(list(COLOURS))), str(draw.choice(SHAPES))

    return [Scene(figure(), str(draw.choice(PLACES)), figure()) for _ in range(count)]


def features(pictures: Iterable[Image.Image]) -> NDArray[np.float32]:
    """A backbone: the share of every colour, and of every colour's outline how often it turns which way."""
    return np.stack([_histograms(np.asarray(picture.convert("RGB"), np.float32)) for picture in pictures])


def _histograms(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    palette = np.array([_GROUND, *COLOURS.values()], np.float32)
    nearest = ((pixels[:, :, None] - palette) ** 2).sum(-1).argmin(-1)
    colours = np.bincount(nearest.ravel(), minlength=len(palette))[1:] / nearest.size
    gray = (nearest > 0).astype(np.float32)
    down, right = np.gradient(gray)
    steep = np.hypot(down, right)
    bins = ((np.arctan2(down, right) / np.pi + 1) * 12).astype(int) % 24
    shapes = np.bincount(bins.ravel(), weights=steep.ravel(), minlength=24) / steep.sum()
    return np.concatenate([3 * np.sqrt(colours), shapes]).astype(np.float32)


def encoded(colour: str, kind: str = "PNG", size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    """A file of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind, **options)
    return buffer.getvalue()
