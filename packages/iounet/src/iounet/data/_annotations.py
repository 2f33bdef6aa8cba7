"""A checked table of ground truth, made from a COCO document and turned into one; it knows no images."""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Entries = list[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Annotations:
    """Boxes grouped by image, in columns: M boxes of N images.

    Tensors, not objects: the workers of a loader share them, where they would copy objects by counting references.

    Attributes:
        source: what messages name.
        image_ids, file_names, sizes: of the N images; a size is (width, height), or None where it is not told.
        category_ids, classes: ids, increasing, and names; label l is at place l - 1.
        ids: int64[M]. image: int64[M], the row of the box's image, not decreasing. labels: int64[M], from 1.
        boxes: float64[M, 4] as x, y, width, height. area: float64[M]. crowd: bool[M].
    """

    source: str
    image_ids: list[int]
    file_names: list[str]
    sizes: list[tuple[int, int] | None]
    category_ids: list[int]
    classes: tuple[str, ...]
    ids: Tensor
    image: Tensor
    labels: Tensor
    boxes: Tensor
    area: Tensor
    crowd: Tensor

    @classmethod
    def from_coco(cls, document: object, source: str) -> Annotations:
        """Check a document and drop, with one warning, its boxes without area.

        Raises:
            ValueError: an entry lacks a key or has one of another type, its id occurs twice, or it names a category
                or an image that there is not. It names `source` and the id.
        """
        images, categories, entries = (
            _entries(document, key, source) for key in ("images", "categories", "annotations")
        )
        image_ids, category_ids = _ids(images, "image", source), _ids(categories, "category", source)
        by_id = sorted(range(len(categories)), key=category_ids.__getitem__)
        ids = _ids(entries, "annotation", source)
        rows = _look_up(entries, "image", {key: row for row, key in enumerate(image_ids)}, source)
        labels = _look_up(entries, "category", {category_ids[k]: label for label, k in enumerate(by_id, 1)}, source)
        boxes = quadruples([entry.get("bbox") for entry in entries], lambda k: f"{source}: bbox of annotation {ids[k]}")
        area = _areas(entries, boxes, lambda k: f"{source}: area of annotation {ids[k]}")
        crowd = torch.tensor([bool(entry.get("iscrowd", 0)) for entry in entries], dtype=torch.bool)
        files = [str(entry.get("file_name", "")) for entry in images]

        solid = (boxes[:, 2:] > 0).all(1)
        if not bool(solid.all()):
            lost = torch.nonzero(~solid).flatten().tolist()
            names = list(dict.fromkeys(files[rows[k]] or f"image {image_ids[rows[k]]}" for k in lost))
            what = f"{len(lost)} {'box' if len(lost) == 1 else 'boxes'} without area"
            where = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            warnings.warn(f"{source}: dropped {what}, in {where}", stacklevel=2)
        image = torch.tensor(rows, dtype=torch.int64)
        kept = torch.nonzero(solid).flatten()
        kept = kept[image[kept].sort(stable=True).indices]
        columns = (
            torch.tensor(ids, dtype=torch.int64),
            image,
            torch.tensor(labels, dtype=torch.int64),
            boxes,
            area,
            crowd,
        )
        return cls(
            source,
            image_ids,
            files,
            [_size(entry, key, source) for entry, key in zip(images, image_ids, strict=True)],
            sorted(category_ids),
            tuple(str(categories[k].get("name", category_ids[k])) for k in by_id),
            *(column[kept] for column in columns),
        )

    def renumbered(self) -> Annotations:
        """With ids from 1 in the order of the boxes, for formats that have none."""
        return replace(self, ids=torch.arange(1, len(self.ids) + 1))

    def to_coco(self) -> dict[str, list[dict[str, Any]]]:
        """The table as a document that :meth:`from_coco` and other programs read."""
        images: list[dict[str, Any]] = []
        for key, name, size in zip(self.image_ids, self.file_names, self.sizes, strict=True):
            images.append({"id": key, "file_name": name})
            if size is not None:
                images[-1].update(width=size[0], height=size[1])
        columns = (self.ids, self.image, self.labels, self.boxes, self.area, self.crowd)
        annotations = [
            {
                "id": key,
                "image_id": self.image_ids[row],
                "category_id": self.category_ids[label - 1],
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
            }
            for key, row, label, box, area, crowd in zip(*(column.tolist() for column in columns), strict=True)
        ]
        categories = [{"id": key, "name": name} for key, name in zip(self.category_ids, self.classes, strict=True)]
        return {"images": images, "annotations": annotations, "categories": categories}


def is_integer(value: object) -> bool:
    """Whether it is a number of 64 bits, and no truth value."""
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, Integral)):
        return False
    return -(2**63) <= int(value) < 2**63


def are_objects(entries: object) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    """Whether it is a list of mappings."""
    return isinstance(entries, list | tuple) and all(issubclass(kind, Mapping) for kind in set(map(type, entries)))


def scalars(values: Sequence[Any], name: Callable[[int], str]) -> Tensor:
    """float64[M] of finite numbers; ValueError with the name of the first value that is none."""
    try:
        column = array("d", values)
    except (TypeError, OverflowError):
        column = array("d", (_number(value) for value in values))
    result = torch.frombuffer(column, dtype=torch.float64) if column else torch.empty(0, dtype=torch.float64)
    if not bool(result.isfinite().all()):
        k = int(torch.nonzero(~result.isfinite())[0])
        raise ValueError(f"{name(k)} must be a finite number, got {values[k]!r}")
    return result


def quadruples(values: Sequence[Any], name: Callable[[int], str]) -> Tensor:
    """float64[M, 4] of finite numbers; ValueError with the name of the first value that is not four of them."""
    try:
        if set(map(len, values)) - {4}:
            raise TypeError
        return scalars(list(chain.from_iterable(values)), lambda k: name(k // 4)).view(-1, 4)
    except (TypeError, ValueError):
        for k, value in enumerate(values):
            try:
                good = len(value) == 4 and bool(torch.tensor([_number(x) for x in value]).isfinite().all())
            except TypeError:
                good = False
            if not good:
                raise ValueError(f"{name(k)} must be four finite numbers x, y, width, height, got {value!r}") from None
        raise


def _number(value: Any) -> float:
    try:
        return float(array("d", (value,))[0])
    except (TypeError, OverflowError):
        return float("nan")


def _entries(document: object, key: str, source: str) -> Entries:
    entries = document.get(key) if isinstance(document, Mapping) else None
    if not are_objects(entries):
        raise ValueError(f"{source} must be a COCO document: an object whose {key!r} is a list of objects")
    return list(entries)


def _ids(entries: Entries, kind: str, source: str) -> list[int]:
    ids = [entry.get("id") for entry in entries]
    for k, value in enumerate(ids):
        if not is_integer(value):
            raise ValueError(f"{source}: the id of {kind} number {k} must be an integer, got {value!r}")
    if len(set(ids)) < len(ids):
        seen: set[Any] = set()
        twice = next(value for value in ids if value in seen or seen.add(value))  # type: ignore[func-returns-value]
        raise ValueError(f"{source}: {kind} id {twice} occurs twice")
    return ids  # type: ignore[return-value]


def _look_up(entries: Entries, kind: str, places: Mapping[int, int], source: str) -> list[int]:
    values: list[Any] = [entry.get(f"{kind}_id") for entry in entries]
    for entry, value in zip(entries, values, strict=True):
        if not is_integer(value) or value not in places:
            raise ValueError(f"{source}: annotation {entry['id']} has {kind}_id {value!r}, which no {kind} has")
    return [places[value] for value in values]


def _areas(entries: Entries, boxes: Tensor, name: Callable[[int], str]) -> Tensor:
    """The areas told, which may be those of outlines and decide what is small; else those of the boxes."""
    own = boxes[:, 2] * boxes[:, 3]
    told = [entry.get("area") for entry in entries]
    if all(value is None for value in told):
        return own
    return scalars([area if value is None else value for value, area in zip(told, own.tolist(), strict=True)], name)


def _size(entry: Mapping[str, Any], key: int, source: str) -> tuple[int, int] | None:
    """Width and height; what is absent or 0, as some tools write, is not told."""
    size = entry.get("width") or 0, entry.get("height") or 0
    if not all(is_integer(side) and side >= 0 for side in size):
        raise ValueError(f"{source}: width and height of image {key} must be integers, got {size}")
    return size if all(size) else None
