"""YOLO: one text file of normalised boxes per image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._annotations import Annotations
from ._dataset import FileDataset
from ._images import SUFFIXES, need_pillow, size_of
from ._text import read_lines
from ._yolo_config import Config, read_config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._images import File

_SPLITS = ("train", "val", "test")
_NAMES = ("classes.txt", "labels/classes.txt", "obj.names")
_SLACK = 1e-2  # beyond the image; what exceeds it is in pixels


class YoloDetection(FileDataset):
    """Boxes from YOLO's text files: a line is `class x y width height`, centre and size as shares of the image's.

    A line of a class and three or more points is an outline, of which the box is taken. An image without a text file,
    or with an empty one, has no objects. The file of `images/a/b.jpg` is `labels/a/b.txt`.

    Args:
        path: the folder, or its `data.yaml`, of which the keys `path`, `train`, `val`, `test` and `names` are read.
            Without one: images are in `images` or `images/SPLIT` or `SPLIT/images`, and names, one a line, in
            `classes.txt` or `obj.names`.
        split: `train`, `val`, `test` or a folder's name. Default: all that there are.
        classes: names in the order of their numbers, instead of those of the files.

    Raises:
        FileNotFoundError: there is no such folder or list, or no names.
        ValueError: the file, the line, and what is wrong in it.

    Example::

        dataset = YoloDetection("coco128/data.yaml", "train")
    """

    def __init__(self, path: str | Path, split: str | None = None, *, classes: Sequence[str] | None = None) -> None:
        need_pillow()
        path = Path(path)
        self.folder = path if path.is_dir() else path.parent
        config_file = next(iter(sorted(path.glob("*.y*ml"))), None) if path.is_dir() else path
        config = Config() if config_file is None else read_config(config_file)
        names = list(classes or config.names or _named(self.folder))
        files = _images(self.folder, config, split)
        images: list[dict[str, Any]] = []
        boxes: list[dict[str, Any]] = []
        for key, file in enumerate(files, 1):
            width, height = size_of(file, str(file))
            images.append({"id": key, "file_name": str(file), "width": width, "height": height})
            for number, (x1, y1, x2, y2) in _read(_label_file(file), len(names)):
                bbox = [x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height]
                boxes.append({"id": len(boxes) + 1, "image_id": key, "category_id": number, "bbox": bbox})
        categories = [{"id": number, "name": name} for number, name in enumerate(names)]
        document = {"images": images, "annotations": boxes, "categories": categories}
        super().__init__(Annotations.from_coco(document, str(path)).renumbered())

    def _file(self, row: int) -> tuple[File, str]:
        name = self._table.file_names[row]
        return Path(name), name


def _named(folder: Path) -> list[str]:
    path = next((folder / name for name in _NAMES if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} names no classes: there is no data.yaml with names, and no classes.txt")
    return [line.strip() for line in read_lines(path) if line.strip()]


def _images(folder: Path, config: Config, split: str | None) -> list[Path]:
    """The images of a split, sorted, by the configuration if it tells, else by the names of folders."""
    told = {name: paths for name, paths in config.splits.items() if split in (None, name)}
    base = folder / config.path  # which stays as it is if absolute
    if not base.is_dir():
        base = folder  # the path of the machine on which the file was written
    places = [place for paths in told.values() for path in paths for place in [_place(base, folder, path)]]
    if not places and split is None:
        places = [folder / "images", *(folder / name / "images" for name in _SPLITS)]
    elif not places:
        places = [folder / "images" / str(split), folder / str(split) / "images"]
    found: set[Path] = set()
    for place in places:
        if place.is_file():
            found.update(place.parent / line.strip() for line in read_lines(place) if line.strip())
        elif place.is_dir():
            found.update(file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not found:
        tried = ", ".join(str(place) for place in places)
        raise FileNotFoundError(f"{folder} has no images{f' of split {split!r}' if split else ''}; looked in {tried}")
    return sorted(found)


def _place(base: Path, folder: Path, path: str) -> Path:
    """Where a configuration's entry is: some exporters write `../train/images` for a folder beside the file."""
    choices = (base / path, folder / path, folder / path.removeprefix("../"))
    return next((choice for choice in choices if choice.exists()), choices[0])


def _label_file(image: Path) -> Path:
    """`labels` in place of the last folder `images`; without such a folder the file is beside the image."""
    parts = list(image.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read(path: Path, classes: int) -> list[tuple[int, tuple[float, float, float, float]]]:
    """Class number and corners, as shares, of each line."""
    if not path.is_file():
        return []
    objects = []
    for place, line in enumerate(read_lines(path), 1):
        if not (words := line.split()):
            continue
        where = f"{path}, line {place}"
        try:
            number, values = int(words[0]), [float(word) for word in words[1:]]
        except ValueError:
            raise ValueError(f"{where} must be a class number and shares of the image, got {line[:80]!r}") from None
        if not 0 <= number < classes:
            raise ValueError(f"{where}: class must be one of the {classes} that have names, from 0, got {number}")
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise ValueError(f"{where} must be a class and x, y, width, height, or points, got {len(values)} numbers")
        if not all(-_SLACK <= value <= 1 + _SLACK for value in values):
            raise ValueError(f"{where}: coordinates must be shares of the image, from 0 to 1, got {line[:80]!r}")
        if len(values) == 4:
            x, y, width, height = values
            corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        else:
            corners = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
        objects.append((number, corners))
    return objects
