"""Pascal VOC: one XML file per image, splits in ImageSets/Main."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from xml.etree import ElementTree

from ._annotations import Annotations
from ._dataset import FileDataset
from ._images import SUFFIXES
from ._text import read_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._images import File

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_LARGEST = 1 << 24  # bytes of an XML file


class VocDetection(FileDataset):
    """Boxes from Pascal VOC's XML, in a folder with `Annotations`, `JPEGImages` and, for splits, `ImageSets/Main`.

    A box is x = xmin, y = ymin, width = xmax - xmin, height = ymax - ymin: coordinates are taken as they are. What is
    marked difficult becomes `iscrowd`: an evaluation passes over it.

    Args:
        path: the folder, or one with a single such folder in it.
        split: the file in `ImageSets/Main` that lists the images. Default: all that have annotations.
        classes: names in the order of their labels. Default: the lines of `classes.txt` in the folder, else all names
            in `Annotations`, whatever the split, in alphabetical order.

    Raises:
        FileNotFoundError: there is no such folder, list or annotation.
        ValueError: the file, and what is wrong in it.

    Example::

        dataset = VocDetection("VOCdevkit/VOC2012", "val")
    """

    def __init__(self, path: str | Path, split: str | None = None, *, classes: Sequence[str] | None = None) -> None:
        root = _root(Path(path))
        folder, pictures = root / "Annotations", root / "JPEGImages"
        every = sorted(file.stem for file in folder.glob("*.xml"))
        stems = every if split is None else _listed(root, split)
        if classes is None and (root / "classes.txt").is_file():
            classes = [line.strip() for line in read_lines(root / "classes.txt") if line.strip()]
        read = {stem: _read(folder / f"{stem}.xml") for stem in (every if classes is None else stems)}
        for stem in stems:
            if stem not in read:
                raise FileNotFoundError(f"{folder / stem}.xml, which split {split!r} lists, does not exist")
        names = list(classes or sorted({name for _, objects in read.values() for name, _, _ in objects}))
        label = {name: place for place, name in enumerate(names, 1)}
        files = {file.name for file in pictures.iterdir()} if pictures.is_dir() else set()
        images: list[dict[str, Any]] = []
        boxes: list[dict[str, Any]] = []
        for key, stem in enumerate(stems, 1):
            image, objects = read[stem]
            images.append(image | {"id": key, "file_name": _picture(stem, image["file_name"], files)})
            for name, (x1, y1, x2, y2), difficult in objects:
                if name not in label:
                    raise ValueError(f"{folder / stem}.xml: {name!r} is not in classes.txt or `classes`")
                boxes.append({"id": len(boxes) + 1, "image_id": key, "category_id": label[name]})
                boxes[-1].update(bbox=[x1, y1, x2 - x1, y2 - y1], iscrowd=difficult)
        categories = [{"id": label, "name": name} for name, label in label.items()]
        document = {"images": images, "annotations": boxes, "categories": categories}
        self.folder = pictures
        super().__init__(Annotations.from_coco(document, str(folder)).renumbered())

    def _file(self, row: int) -> tuple[File, str]:
        path = self.folder / self._table.file_names[row]
        return path, str(path)


def _root(path: Path) -> Path:
    """The folder itself, or the only one in it that is a data set."""
    below = sorted(path.iterdir()) if path.is_dir() else []
    found = [folder for folder in (path, *below) if (folder / "Annotations").is_dir()]
    if path in found or len(found) == 1:
        return found[0]
    which = "several folders with" if found else "no folder"
    raise FileNotFoundError(f"{path} has {which} Annotations: name the folder that holds it")


def _listed(root: Path, split: str) -> list[str]:
    folder = root / "ImageSets" / "Main"
    path = folder / f"{split}.txt"
    if path.parent != folder or not path.is_file():
        there = ", ".join(sorted(file.stem for file in folder.glob("*.txt"))) or "none"
        raise FileNotFoundError(f"split {split!r} is not in {folder}; there are: {there}")
    return [line.split()[0] for line in read_lines(path) if line.strip()]


def _picture(stem: str, told: str, files: set[str]) -> str:
    """The image of that stem; what the XML tells is often outdated."""
    if told in files and Path(told).stem == stem:
        return told
    return next((f"{stem}{suffix}" for suffix in sorted(SUFFIXES) if f"{stem}{suffix}" in files), told or f"{stem}.jpg")


class _Builder(ElementTree.TreeBuilder):
    """A document type may define entities that grow without end or read files: there is none in annotations."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        raise ValueError(f"document type {name!r} is not allowed")


def _read(path: Path) -> tuple[dict[str, Any], list[tuple[str, list[float], bool]]]:
    """An image's entry and its objects: name, corners, whether difficult."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if (size := path.stat().st_size) > _LARGEST:
        raise ValueError(f"{path} must have at most {_LARGEST} bytes, got {size}")
    try:
        root = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_Builder()))
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path} is not valid XML: {error}") from error
    sides = {key: int(_number(root, f"size/{key}", path, "0")) for key in ("width", "height")}
    objects = []
    for number, entry in enumerate(root.iterfind("object"), 1):
        where = f"{path}: object {number}"
        name = (entry.findtext("name") or "").strip()
        if not name:
            raise ValueError(f"{where} has no name")
        corners = [_number(entry, f"bndbox/{corner}", where) for corner in _CORNERS]
        objects.append((name, corners, (entry.findtext("difficult") or "0").strip() == "1"))
    return {"file_name": Path(root.findtext("filename") or "").name, **sides}, objects


def _number(entry: ElementTree.Element, tag: str, where: str | Path, default: str | None = None) -> float:
    text = entry.findtext(tag) or default
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not abs(value) < 2**31:
        raise ValueError(f"{where}: {tag} must be a number, got {text!r}")
    return value
