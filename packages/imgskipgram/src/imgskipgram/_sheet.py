"""An explanation as one picture: a square of rows."""

from __future__ import annotations

import io
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any

from ._extras import need

if TYPE_CHECKING:
    from PIL.Image import Image

    from .explanation import Explanation

_SIDE, _GAP, _CAPTION, _HEAD = 144, 16, 28, 60  # pixels
_PAPER, _INK, _SOFT, _FAINT = "#fbfbf9", "#1b1d21", "#5c626c", "#e3e3de"


def sheet(explanation: Explanation) -> Image:
    """See `Explanation.contact_sheet`."""
    pillow, draw, fonts = (
        need(f"PIL.{name}", "images", "a contact sheet") for name in ("Image", "ImageDraw", "ImageFont")
    )
    columns = ceil(sqrt(len(explanation.images)))
    rows = ceil(len(explanation.images) / columns)
    width = _GAP + columns * (_SIDE + _GAP)
    paper = pillow.new("RGB", (width, _HEAD + rows * (_SIDE + _CAPTION + _GAP)), _PAPER)
    pen = draw.Draw(paper)
    large, small = fonts.load_default(24), fonts.load_default(12)
    pen.text((_GAP, _GAP), _fitted(pen, explanation.title, large, width - 2 * _GAP), _INK, large)
    for place, (index, name, score) in enumerate(explanation.images):
        x = _GAP + place % columns * (_SIDE + _GAP)
        y = _HEAD + place // columns * (_SIDE + _CAPTION + _GAP)
        data = explanation.thumbnails.get(index)
        if data is None:
            pen.rectangle((x, y, x + _SIDE - 1, y + _SIDE - 1), _FAINT)
        else:
            paper.paste(_square(pillow, data), (x, y))
        number = f"{score:.2f}"
        pen.text((x + _SIDE, y + _SIDE + 6), number, _INK, small, anchor="ra")
        room = _SIDE - pen.textlength(number, small) - 8
        pen.text((x, y + _SIDE + 6), _fitted(pen, name, small, room), _SOFT, small)
    return paper  # type: ignore[no-any-return]


def _square(pillow: Any, data: bytes) -> Any:
    """The middle of a thumbnail, as large as a place."""
    with pillow.open(io.BytesIO(data)) as picture:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.convert("RGB").crop((left, top, left + side, top + side))
        return square.resize((_SIDE, _SIDE), pillow.Resampling.LANCZOS)


def _fitted(pen: Any, text: str, font: Any, room: float) -> str:
    """One line of text that fits, cut off if need be."""
    line = " ".join(text.split())
    if pen.textlength(line, font) <= room:
        return line
    while line and pen.textlength(f"{line}...", font) > room:
        line = line[:-1]
    return f"{line}..."
