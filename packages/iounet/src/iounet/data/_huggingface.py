"""Data sets of the Hugging Face hub, or saved by its library `datasets`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ._annotations import Annotations, is_integer, quadruples
from ._dataset import FileDataset
from ._images import need_pillow, size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ._images import File

_OBJECTS = ("objects", "annotations")
_BOX = ("bbox", "bboxes", "boxes")
_CATEGORY = ("category", "categories", "category_id", "label", "labels")
_CROWD = ("iscrowd", "is_crowd")


class HuggingFaceDetection(FileDataset):
    """Boxes from a `datasets.Dataset` with a column of images and a column `objects` of boxes and categories.

    `objects` has, for each image, lists `bbox` and `category` (a number or a name) and may have `area` and `iscrowd`.
    Columns `image_id`, `width` and `height` are used where they are there.

    Args:
        dataset: `datasets.load_dataset(...)["train"]` or another `Dataset` of rows.
        box_format: "xywh" as in COCO, or "xyxy"; the data do not tell.
        classes: names in the order of their numbers. Default: those of the column's `ClassLabel`, else the numbers up
            to the largest, or the names that occur, in alphabetical order.
        source: what messages name.

    Raises:
        ImportError: `datasets` or Pillow is missing.
        ValueError: a column is missing; a row is not consistent; as "xywh" boxes leave the images, as "xyxy" none does.

    Example::

        dataset = HuggingFaceDetection(datasets.load_dataset("cppe-5", split="train"))
    """

    def __init__(
        self,
        dataset: Any,
        *,
        box_format: Literal["xywh", "xyxy"] = "xywh",
        classes: Sequence[str] | None = None,
        source: str = "the data set",
    ) -> None:
        need_pillow()
        need_datasets()
        from datasets import Image

        if box_format not in ("xywh", "xyxy"):
            raise ValueError(f"box_format must be 'xywh' or 'xyxy', got {box_format!r}")
        features = dataset.features
        column = next((name for name, feature in features.items() if isinstance(feature, Image)), None)
        objects = next((name for name in _OBJECTS if name in features), None)
        if column is None or objects is None:
            needs = "a column of images and a column 'objects' of boxes and categories"
            raise ValueError(f"{source} must have {needs}, got {', '.join(features)}")
        self._source, self._column = source, column
        self._files = dataset.select_columns([column]).cast_column(column, Image(decode=False))

        wanted = [objects, *(name for name in ("image_id", "width", "height") if name in features)]
        rows = list(dataset.select_columns(wanted))
        ids = [row.get("image_id") for row in rows]
        if not all(is_integer(key) for key in ids) or len(set(ids)) < len(ids):
            ids = list(range(1, len(rows) + 1))
        images = []
        boxes: list[dict[str, Any]] = []
        for place, (key, row) in enumerate(zip(ids, rows, strict=True)):
            width, height = (row["width"], row["height"]) if "width" in row and "height" in row else (0, 0)
            if not width or not height:
                width, height = size_of(*self._file(place))
            images.append({"id": key, "file_name": f"row {place}", "width": width, "height": height})
            boxes += [{"image_id": key, **item} for item in _items(row[objects], f"{source}, row {place}")]
        names = list(classes or _names(features[objects]) or _occurring([box["category_id"] for box in boxes]))
        number = {name: place for place, name in enumerate(names)}
        for key, box in enumerate(boxes, 1):
            box["id"] = key
            box["category_id"] = number.get(box["category_id"], box["category_id"])
        _as_xywh(boxes, images, box_format, source)
        categories = [{"id": place, "name": str(name)} for place, name in enumerate(names)]
        document = {"images": images, "annotations": boxes, "categories": categories}
        super().__init__(Annotations.from_coco(document, source).renumbered())

    def _file(self, row: int) -> tuple[File, str]:
        entry = self._files[row][self._column]
        file = entry["bytes"] if entry["bytes"] is not None else Path(entry["path"])
        return file, f"{self._source}, row {row}"


def load(name: str, split: str | None) -> HuggingFaceDetection:
    """A data set by `NAME`, `NAME:CONFIGURATION` or the folder of one that was saved; `@xyxy` at the end: its boxes.

    Raises:
        ValueError: it has several splits and none is named.
    """
    need_datasets()
    from datasets import DatasetDict, load_dataset, load_from_disk

    source = f"hf:{name}"
    name, _, box_format = name.partition("@")
    folder = Path(name)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        found = load_from_disk(folder)
    else:
        path, _, configuration = (name, "", "") if folder.exists() else name.partition(":")
        found = load_dataset(path, configuration or None)
    if isinstance(found, DatasetDict):
        if split is None and len(found) > 1:
            raise ValueError(f"{source} has several splits, name one: {', '.join(found)}")
        split = split or next(iter(found))
        if split not in found:
            raise ValueError(f"{source} has no split {split!r}; there are: {', '.join(found)}")
        found = found[split]
    elif split is not None:
        raise ValueError(f"{source} has no splits, got split={split!r}")
    return HuggingFaceDetection(found, box_format=box_format or "xywh", source=source)  # type: ignore[arg-type]


def need_datasets() -> None:
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise ImportError("hf: needs datasets: pip install 'iounet[huggingface]'") from error


def _items(objects: Any, where: str) -> list[dict[str, Any]]:
    """The boxes of an image, from a dictionary of lists or a list of dictionaries."""
    if not isinstance(objects, Mapping):
        objects = {key: [entry[key] for entry in objects] for key in (objects[0] if objects else ())}
        if not objects:
            return []
    box, category, crowd = (next((key for key in keys if key in objects), None) for keys in (_BOX, _CATEGORY, _CROWD))
    if box is None or category is None:
        raise ValueError(f"{where}: objects must have 'bbox' and 'category', got {', '.join(objects)}")
    columns = {"bbox": objects[box], "category_id": objects[category]}
    columns |= {"area": objects["area"]} if "area" in objects else {}
    columns |= {"iscrowd": objects[crowd]} if crowd is not None else {}
    if len({len(column) for column in columns.values()}) > 1:
        raise ValueError(f"{where}: lists of objects differ in length: { ({k: len(v) for k, v in columns.items()}) }")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _names(feature: Any) -> Sequence[str] | None:
    """The names of the category's `ClassLabel`, whichever way lists are declared."""
    feature = getattr(feature, "feature", feature)
    if isinstance(feature, list):
        feature = feature[0]
    if not isinstance(feature, Mapping):
        return None
    inner: Any = next((feature[key] for key in _CATEGORY if key in feature), None)
    inner = inner[0] if isinstance(inner, list) else getattr(inner, "feature", inner)
    return getattr(inner, "names", None)


def _occurring(values: list[Any]) -> list[Any]:
    if all(is_integer(value) for value in values):
        return list(range(max(values, default=-1) + 1))
    return sorted({str(value) for value in values})


def _as_xywh(boxes: list[dict[str, Any]], images: list[dict[str, Any]], box_format: str, source: str) -> None:
    """Widths and heights in place of far corners. The wrong format is seen by the boxes that leave their images."""
    corners = quadruples([box["bbox"] for box in boxes], lambda k: f"{source}: bbox of annotation {k + 1}")
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    sides = torch.tensor([sizes[box["image_id"]] for box in boxes], dtype=torch.float64).view(-1, 2) + 1
    if box_format == "xyxy":
        corners[:, 2:] -= corners[:, :2]
    elif bool((corners[:, :2] + corners[:, 2:] > sides).any()) and _could_be_xyxy(corners, sides):
        raise ValueError(f"{source}: boxes leave their images unless they are x1, y1, x2, y2: say {source}@xyxy")
    for box, xywh in zip(boxes, corners.tolist(), strict=True):
        box["bbox"] = xywh


def _could_be_xyxy(boxes: Tensor, sides: Tensor) -> bool:
    return bool((boxes[:, 2:] <= sides).all() and (boxes[:, 2:] >= boxes[:, :2]).all())
