"""Drawn scenes, "a red circle above a blue square": pictures with a sentence each, as many as are wanted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": "#d0342c", "green": "#388e3c", "blue": "#2660be", "yellow": "#f0c828", "purple": "#7e3c96"}
SHAPES = {"circle": 48, "square": 4, "triangle": 3}  # corners
PLACES = {"above": ((64, 32), (64, 96)), "below": ((64, 96), (64, 32)), "beside": ((32, 64), (96, 64))}
_GROUND = "#f6f4ee"


class Scene(NamedTuple):
    sentence: str
    words: tuple[str, ...]  # that can be seen
    picture: Image.Image


def scenes(count: int, seed: int = 0) -> list[Scene]:
    """Scenes drawn at random."""
    draw, made = np.random.default_rng(seed), []
    for _ in range(count):
        (c1, c2), (s1, s2) = (draw.choice(list(names), 2).tolist() for names in (COLOURS, SHAPES))
        place = str(draw.choice(list(PLACES)))
        picture = Image.new("RGB", (128, 128), _GROUND)
        for (x, y), colour, shape in zip(PLACES[place], (c1, c2), (s1, s2), strict=True):
            turn = 45 if shape == "square" else 0
            ImageDraw.Draw(picture).regular_polygon((x, y, 26), SHAPES[shape], turn, COLOURS[colour])
        made.append(Scene(f"a {c1} {s1} {place} a {c2} {s2}", tuple(dict.fromkeys((c1, s1, c2, s2))), picture))
    return made


def look(pictures: list[Image.Image]) -> np.ndarray:
    """A backbone: how much of each colour there is, and how often outlines run in which direction."""
    return np.array([_features(np.asarray(picture, np.float32)) for picture in pictures], np.float32)


def _features(pixels: np.ndarray) -> np.ndarray:
    palette = np.array([[int(name[i : i + 2], 16) for i in (1, 3, 5)] for name in (_GROUND, *COLOURS.values())])
    nearest = ((pixels[:, :, None] - palette) ** 2).sum(-1).argmin(-1)
    colours = np.bincount(nearest.ravel(), minlength=len(palette))[1:] / nearest.size
    down, right = np.gradient((nearest > 0).astype(np.float32))
    turns = ((np.arctan2(down, right) / np.pi + 1) * 12).astype(int) % 24
    outlines = np.bincount(turns.ravel(), np.hypot(down, right).ravel(), 24)
    return np.concatenate([3 * np.sqrt(colours), outlines / outlines.sum()])
