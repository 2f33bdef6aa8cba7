"""COCO's JSON, whose images are found beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ._annotations import Annotations
from ._dataset import FileDataset
from ._text import read_json

if TYPE_CHECKING:
    from ._images import File


class CocoDetection(FileDataset):
    """Boxes from a COCO annotation file.

    Args:
        path: the JSON file.
        images: the folder that its file names are relative to. Default: the folder of the file, or the one in it, up
            to two levels down, that has the images; or, of a file in `annotations`, the one beside that, such as
            `val2017` or `images/val2017`. Among several the one named like the file.

    Raises:
        FileNotFoundError: `path` is no file, or no folder has the images.
        ValueError: what the file says is not consistent (the message names the entry); several folders have the images.

    Example::

        dataset = CocoDetection("annotations/instances_val2017.json")
    """

    def __init__(self, path: str | Path, images: str | Path | None = None) -> None:
        path = Path(path)
        table = Annotations.from_coco(read_json(path), str(path))
        for key, name in zip(table.image_ids, table.file_names, strict=True):
            if not name or os.path.isabs(name) or ".." in Path(name).parts:
                raise ValueError(f"{path}: file_name of image {key} must be below the image folder, got {name!r}")
        self.folder = find_images(path, table.file_names) if images is None else Path(images)
        super().__init__(table)

    def _file(self, row: int) -> tuple[File, str]:
        path = self.folder / self._table.file_names[row]
        return path, str(path)


def find_images(path: Path, names: list[str]) -> Path:
    """The folder that holds the first, middle and last of the images."""
    if not names:
        return path.parent
    samples = {names[0], names[len(names) // 2], names[-1]}
    own = path.absolute().parent
    beside = _below(own.parent) if own.name.lower().startswith("annotation") else []
    for base, folders in ((own, [own]), (own, _below(own)), (own.parent, beside)):
        found = [folder for folder in folders if all((folder / name).is_file() for name in samples)]
        stem = path.stem.removeprefix("instances_")
        found = [folder for folder in found if stem in folder.relative_to(base).parts] or found
        if len(found) > 1:
            which = f"{found[0]} and {found[1]} both hold its images"
            raise ValueError(f"{path}: {which}: name one, as in coco:{path}@{found[0]}")
        if found:
            return found[0]
    lost = f"no folder beside it holds {names[0]} and the other images"
    raise FileNotFoundError(f"{path}: {lost}: name theirs, as in coco:{path}@IMAGES")


def _below(base: Path) -> list[Path]:
    """The folders in one, and those in them."""
    folders = _folders(base)
    return folders + [inner for folder in folders for inner in _folders(folder)]


def _folders(base: Path) -> list[Path]:
    try:
        return sorted(entry for entry in base.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except PermissionError:
        return []


def annotation_file(folder: Path, split: str | None) -> Path:
    """The JSON of a split in a data set's folder, under one of the names in use.

    Raises:
        FileNotFoundError: there is none.
        ValueError: no split is named, and there are several files.
    """
    places = (folder, folder / "annotations")
    if split is not None:
        names = (
            f"instances_{split}.json",
            f"instances_{split}2017.json",
            f"instances_{split}2014.json",
            f"{split}.json",
        )
        candidates = [place / name for place in places for name in names]
        candidates.append(folder / split / "_annotations.coco.json")
    else:
        candidates = [path for place in places for path in sorted(place.glob("*.json"))]
    found = [path for path in candidates if path.is_file()]
    if split is None and len(found) > 1:
        raise ValueError(
            f"{folder} has several annotation files: name one, or a split; got {', '.join(p.name for p in found)}"
        )
    if not found:
        tried = ", ".join(str(path.relative_to(folder)) for path in candidates) or "*.json, annotations/*.json"
        raise FileNotFoundError(f"{folder} has no annotation file; looked for {tried}")
    return found[0]
