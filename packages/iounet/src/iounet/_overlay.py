"""Boxes drawn over images, before and after refinement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

try:
    from PIL import Image, ImageDraw, ImageFont
except ImportError as error:
    raise ImportError("iounet.viz needs Pillow: pip install 'iounet[detection]'") from error

from ._boxes import pairwise_iou

if TYPE_CHECKING:
    from collections.abc import Sequence

Boxes: TypeAlias = "Tensor | Mapping[str, Tensor]"
Rectangle: TypeAlias = "tuple[float, float, float, float]"

BEFORE, AFTER, TRUTH = "#ff9f1c", "#35c9ff", "#ffffff"
_NIGHT = (13, 17, 23)


@dataclass(frozen=True)
class _Layer:
    """Boxes [L, 4], and of each the IoU to be shown, NaN where it is not known."""

    boxes: Tensor
    iou: Tensor


def overlay(
    image: Tensor | Image.Image,
    before: Boxes,
    after: Boxes,
    truth: Boxes | None = None,
    *,
    size: int = 960,
    numbers: int = 12,
) -> Image.Image:
    """Draw boxes before (orange) and after (blue) refinement over their image, the truth dashed in white.

    A label at a box tells its IoU before and after, in these colours: with the best true box (of its class, where
    classes are given), or, without a truth, the predicted one. A line below the picture tells the means.

    Args:
        image: [3, H, W] in 0..1 or of uint8, or a picture.
        before, after: boxes [L, 4] as x1, y1, x2, y2, or detections: a dictionary with `boxes` and, if there are,
            `labels` and `ious`. They need not be as many: a box before is that which overlaps most.
        truth: boxes, or a target: a dictionary with `boxes` and, if there are, `labels`.
        size: of the longer side of the picture in pixels; a larger image keeps its own.
        numbers: how many boxes are labelled at most: those that changed most, where there is room.

    Raises:
        ValueError: an argument has another shape.

    Example::

        overlay(image, detections, refined, target).save("overlay.png")
    """
    picture = _picture(image)
    scale = max(1.0, size / max(picture.size))
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    real = None if truth is None else _boxes(truth, "truth")
    layers = [_layer(boxes, truth, name) for boxes, name in ((before, "before"), (after, "after"))]
    canvas = ImageDraw.Draw(picture, "RGBA")
    width = max(2, round(max(picture.size) / 480))
    everything = [(layer.boxes, colour, False) for layer, colour in zip(layers, (BEFORE, AFTER), strict=True)]
    everything += [] if real is None else [(real, TRUTH, True)]
    for boxes, _, dashed in everything:  # all shades first, so that none dims a line
        for box in (boxes * scale).tolist():
            _rectangle(canvas, box, (*_NIGHT, 110), width + 2, dashed)
    for boxes, colour, dashed in everything:
        for box in (boxes * scale).tolist():
            _rectangle(canvas, box, colour, max(1, width - 1) if dashed else width, dashed)
    _labels(canvas, picture.size, layers, scale, numbers)
    return _with_legend(picture, layers, real is not None)


def sheet(pictures: Sequence[Image.Image], columns: int | None = None, *, width: int = 1920) -> Image.Image:
    """Several pictures side by side in rows, as wide as each other.

    Args:
        pictures: at least one.
        columns: default: as many as make the sheet about square.
        width: of the sheet in pixels.

    Raises:
        ValueError: there is no picture, or no column.

    Example::

        sheet([overlay(*one) for one in pairs]).save("sheet.png")
    """
    if not pictures:
        raise ValueError("pictures must be at least one, got none")
    columns = min(len(pictures), columns if columns is not None else math.ceil(math.sqrt(len(pictures))))
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    gap = max(4, width // 160)
    side = (width - gap * (columns + 1)) // columns
    cells = [
        picture.convert("RGB").resize((side, round(picture.height * side / picture.width)), Image.Resampling.LANCZOS)
        for picture in pictures
    ]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    result = Image.new("RGB", (width, sum(heights) + gap * (len(rows) + 1)), _NIGHT)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for place, cell in enumerate(row):
            result.paste(cell, (gap + place * (side + gap), top + (height - cell.height) // 2))
        top += height + gap
    return result


def _picture(image: Tensor | Image.Image) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ValueError(f"image must be [3, H, W], got {list(image.shape)}")
    image = image.detach().cpu()
    if image.dtype != torch.uint8:
        image = (image.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def _boxes(value: Boxes, name: str) -> Tensor:
    boxes = value["boxes"] if isinstance(value, Mapping) else value
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name} must be boxes [L, 4], got {list(boxes.shape)}")
    return boxes.detach().cpu().float()


def _layer(value: Boxes, truth: Boxes | None, name: str) -> _Layer:
    boxes = _boxes(value, name)
    if truth is None:
        told = value.get("ious") if isinstance(value, Mapping) else None
        iou = torch.full((len(boxes),), torch.nan) if told is None else told.detach().cpu().float()
        return _Layer(boxes, iou)
    pairs = pairwise_iou(boxes, _boxes(truth, "truth"))
    if isinstance(value, Mapping) and isinstance(truth, Mapping) and "labels" in value and "labels" in truth:
        pairs = pairs * (value["labels"].cpu()[:, None] == truth["labels"].cpu()[None])
    return _Layer(boxes, pairs.amax(1) if pairs.shape[1] else torch.zeros(len(boxes)))


def _rectangle(
    canvas: ImageDraw.ImageDraw, box: Sequence[float], colour: str | tuple[int, ...], width: int, dashed: bool
) -> None:
    """Lines centred on the edges; dashes are of one length and begin at the corners."""
    x1, y1, x2, y2 = (round(value) for value in box)
    near, far = width // 2, width - width // 2 - 1
    if not dashed:
        if x2 >= x1 and y2 >= y1:
            canvas.rectangle((x1 - near, y1 - near, x2 + near, y2 + near), outline=colour, width=width)
        return
    for start, end, across, flat in ((x1, x2, y1, True), (x1, x2, y2, True), (y1, y2, x1, False), (y1, y2, x2, False)):
        count = max(1, round((end - start) / 14)) * 2 - 1
        for k in range(0, count, 2):
            a, b = (start + (end - start) * part / count for part in (k, k + 1))
            if flat:
                canvas.rectangle((a, across - near, b, across + far), fill=colour)
            else:
                canvas.rectangle((across - near, a, across + far, b), fill=colour)


def _labels(
    canvas: ImageDraw.ImageDraw, size: tuple[int, int], layers: Sequence[_Layer], scale: float, numbers: int
) -> None:
    """The IoU before and after at the boxes that changed most, each where it hides no other label."""
    before, after = layers
    font = _font(size)
    nearest = pairwise_iou(after.boxes, before.boxes).argmax(1) if len(before.boxes) else None
    was = torch.full_like(after.iou, torch.nan) if nearest is None else before.iou[nearest]
    order = (after.iou - was).abs().nan_to_num().argsort(descending=True, stable=True)
    taken: list[Rectangle] = []
    for k in order[:numbers].tolist():
        if math.isnan(after.iou[k]):
            continue
        pieces = [(f"{was[k]:.2f}", BEFORE)] if not math.isnan(was[k]) else []
        pieces.append((f"{after.iou[k]:.2f}", AFTER))
        lengths = [canvas.textlength(text, font=font) for text, _ in pieces]
        gap, height = font.size * 0.45, font.size * 1.35
        width = sum(lengths) + gap * (len(pieces) + 1)
        place, hidden = _free((after.boxes[k] * scale).tolist(), width, height, size, taken)
        if hidden > 0.1 * width * height:
            continue
        taken.append(place)
        canvas.rounded_rectangle(place, radius=height * 0.25, fill=(*_NIGHT, 205))
        x = place[0] + gap
        for (text, colour), length in zip(pieces, lengths, strict=True):
            canvas.text((x, place[1] + height / 2), text, font=font, fill=colour, anchor="lm")
            x += length + gap


def _free(
    box: Sequence[float], width: float, height: float, size: tuple[int, int], taken: list[Rectangle]
) -> tuple[Rectangle, float]:
    """The place at a corner of a box, inside the picture, that hides least of other labels, and how much it hides."""
    x1, y1, x2, y2 = box
    corners = [(x1, y1 - height - 4), (x2 - width, y1 - height - 4), (x1, y2 + 4), (x2 - width, y2 + 4)]
    corners += [(x1 + 4, y1 + 4), (x2 - width - 4, y2 - height - 4)]
    places = []
    for x, y in corners:
        x, y = min(max(x, 0), size[0] - width), min(max(y, 0), size[1] - height)
        places.append((x, y, x + width, y + height))
    hidden = [sum(_common(place, other) for other in taken) for place in places]
    best = min(range(len(places)), key=hidden.__getitem__)
    return places[best], hidden[best]


def _common(a: Rectangle, b: Rectangle) -> float:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def _with_legend(picture: Image.Image, layers: Sequence[_Layer], with_truth: bool) -> Image.Image:
    """The picture above a line that names the colours and tells mean IoUs."""
    font = _font(picture.size)
    height = round(font.size * 2)
    result = Image.new("RGB", (picture.width, picture.height + height), _NIGHT)
    result.paste(picture)
    canvas = ImageDraw.Draw(result)
    x, y = font.size * 0.7, picture.height + height / 2
    entries = [("before", BEFORE, layers[0]), ("after", AFTER, layers[1])]
    for name, colour, layer in [*entries, *([("truth", TRUTH, None)] if with_truth else [])]:
        known = None if layer is None else layer.iou[layer.iou.isfinite()]
        text = name if known is None or not len(known) else f"{name} {known.mean():.3f}"
        canvas.line((x, y, x + font.size * 1.3, y), fill=colour, width=max(2, round(font.size / 7)))
        if layer is None:
            canvas.rectangle((x + font.size * 0.5, y - height / 4, x + font.size * 0.8, y + height / 4), fill=_NIGHT)
        x += font.size * 1.7
        canvas.text((x, y), text, font=font, fill=colour, anchor="lm")
        x += canvas.textlength(text, font=font) + font.size * 1.4
    kind = "mean IoU" if with_truth else "mean predicted IoU"
    if any(bool(layer.iou.isfinite().any()) for layer in layers):
        canvas.text((picture.width - font.size * 0.7, y), kind, font=font, fill="#8b949e", anchor="rm")
    return result


def _font(size: tuple[int, int]) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(max(11.0, max(size) / 56))
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ImportError("iounet.viz needs a Pillow that is built with FreeType")
    return font
