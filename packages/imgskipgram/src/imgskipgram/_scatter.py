"""A plane with words and thumbnails of which none covers another: a picture that finds no room is a dot or left out."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from ._extras import need

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_MARGIN, _SIDE, _GAP, _DOT = 0.06, 46, 3, 4  # of the plane; pixels
_AROUND = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))


class Scatter:
    """Points of a plane, of which the first are words."""

    def __init__(self, figure: Figure, plane: NDArray[np.float64], ink: str, soft: str, accent: str) -> None:
        need("matplotlib.backends.backend_agg", "plot", "a plot").FigureCanvasAgg(figure)
        self._figure, self._ink, self._soft, self._accent = figure, ink, soft, accent
        figure.set_layout_engine("none")
        self._width, self._height = (float(size) for size in figure.get_size_inches() * figure.dpi)
        self._axes = figure.add_axes((0, 0, 1, 1), xlim=(0, self._width), ylim=(0, self._height))
        self._axes.set_axis_off()
        self._taken = np.empty((0, 4))
        self._points = self._pixels(plane)

    def label(self, words: Sequence[str]) -> None:
        """Words beside their dots, the first ones first."""
        points = self._points[: len(words)]
        self._axes.plot(*points.T, "o", color=self._accent, markersize=_DOT, zorder=3)
        self._take(np.hstack([points - _DOT, points + _DOT]))
        renderer: Any = self._figure.canvas.get_renderer()  # type: ignore[attr-defined]
        for word, (x, y) in zip(words, points, strict=True):
            text = self._axes.text(x, y, word.replace("$", r"\$"), color=self._ink, fontsize=9, zorder=4)
            box = text.get_window_extent(renderer)
            for right, up in _AROUND:
                left = x - box.width / 2 + right * (box.width / 2 + _DOT + _GAP + 1)
                low = y - box.height / 2 + up * (box.height / 2 + _DOT + _GAP + 1)
                if self._free(left, low, left + box.width, low + box.height):
                    text.set_position((left + x - box.x0, low + y - box.y0))
                    break
            else:
                text.remove()

    def picture(self, thumbnails: Sequence[bytes | None], plane: NDArray[np.float64]) -> None:
        """Thumbnails at or beside the places where they belong, the first ones first, or dots, or nothing."""
        half, step = _SIDE / 2, _SIDE / 2 + _DOT + _GAP + 1
        for data, (x, y) in zip(thumbnails, self._points[-len(plane) :], strict=True):
            for right, up in ((0, 0), *_AROUND):
                left, low = x + right * step - half, y + up * step - half
                if data is not None and self._free(left, low, left + _SIDE, low + _SIDE):
                    extent = (left, left + _SIDE, low, low + _SIDE)
                    self._axes.imshow(_pixels_of(data), extent=extent, aspect="auto", zorder=2)
                    break
            else:
                self._dot(x, y)
        self._axes.set(xlim=(0, self._width), ylim=(0, self._height))

    def _dot(self, x: float, y: float) -> None:
        if self._free(x - _DOT, y - _DOT, x + _DOT, y + _DOT):
            self._axes.plot(x, y, "s", color=self._soft, markersize=2.5, alpha=0.6, zorder=1)

    def _pixels(self, plane: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((_MARGIN + (1 - 2 * _MARGIN) * plane) * (self._width, self._height))

    def _free(self, left: float, low: float, right: float, high: float) -> bool:
        """Whether a box is inside and covers nothing; it is taken then."""
        if left < 0 or low < 0 or right > self._width or high > self._height:
            return False
        others = self._taken
        apart = (others[:, 0] > right + _GAP) | (others[:, 2] < left - _GAP)
        apart |= (others[:, 1] > high + _GAP) | (others[:, 3] < low - _GAP)
        if not apart.all():
            return False
        self._take(np.array([[left, low, right, high]]))
        return True

    def _take(self, boxes: NDArray[np.float64]) -> None:
        self._taken = np.vstack([self._taken, boxes])


def _pixels_of(data: bytes) -> Any:
    """The middle of a thumbnail as an array."""
    pillow = need("PIL.Image", "images", "thumbnails in a plot")
    with pillow.open(io.BytesIO(data)) as picture:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.convert("RGB").crop((left, top, left + side, top + side))
        return np.asarray(square.resize((2 * _SIDE, 2 * _SIDE), pillow.Resampling.LANCZOS))
