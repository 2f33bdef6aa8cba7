"""Ways into a bank: folders, COCO's annotations, rows of a Hugging Face data set; pictures are read once."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from ._backbones import features
from ._checks import check_integer
from ._pictures import SUFFIXES, opened, thumbnail
from .bank import ImageBank

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from PIL.Image import Image

_BATCH = 32
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_FEWEST, _LARGEST_SHARE = 2, 0.05  # images that a caption's word must have, and the share that it may have


class _Collector:
    """What is added picture by picture; the backbone sees batches, and no more pictures are in memory than one has."""

    def __init__(self, backbone: Any) -> None:
        self._features, self._batch = features(backbone), list[Any]()
        self._found: list[NDArray[np.float32]] = []
        self.words: list[Sequence[str]] = []
        self.ids: list[str] = []
        self.thumbnails: list[bytes] = []

    def add(self, picture: Image, name: str, words: Sequence[str]) -> None:
        self.words.append(words)
        self.ids.append(name)
        self.thumbnails.append(thumbnail(picture))
        self._batch.append(picture)
        if len(self._batch) == _BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._batch:
            self._found.append(self._features(self._batch))
            self._batch = []

    def bank(self, source: str, **report: int) -> ImageBank:
        self._flush()
        if not self._found:
            raise ValueError(f"{source} must have at least one picture, got none")
        bank = ImageBank(np.concatenate(self._found), self.words, self.ids, self.thumbnails)
        bank.report_ |= report
        return bank


def folder(path: str | os.PathLike[str], backbone: Any, on_error: str) -> ImageBank:
    """See `ImageBank.from_folder`."""
    if on_error not in {"raise", "skip"}:
        raise ValueError(f'on_error must be "raise" or "skip", got {on_error!r}')
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"path must be a folder of pictures, got {str(path)!r}")
    collector, skipped = _Collector(backbone), 0
    for file in sorted(entry for entry in root.rglob("*") if entry.suffix.lower() in SUFFIXES and entry.is_file()):
        inside = file.relative_to(root)
        try:
            picture = opened(file, str(file))
        except OSError:
            if on_error == "raise":
                raise
            skipped += 1
            continue
        collector.add(picture, inside.as_posix(), inside.parts[:-1][:1])
    return collector.bank(f"path {str(path)!r}", skipped=skipped)


def coco(
    annotations: str | os.PathLike[str] | Mapping[str, Any],
    image_root: str | os.PathLike[str],
    backbone: Any,
    words: str,
    crops: bool,
) -> ImageBank:
    """See `ImageBank.from_coco`."""
    if words not in {"categories", "captions"}:
        raise ValueError(f'words must be "categories" or "captions", got {words!r}')
    data = annotations if hasattr(annotations, "keys") else _json(annotations)
    files = {_at(image, "id"): _inside(image_root, _at(image, "file_name")) for image in _at(data, "images")}
    shown: dict[Any, list[Any]] = {image: [] for image in files}
    for annotation in _at(data, "annotations"):
        if (image := _at(annotation, "image_id")) not in shown:
            raise ValueError(f"annotations must be of images that are listed, got image_id {image!r}")
        shown[image].append(annotation)
    collector, report = _Collector(backbone), Counter[str]()
    if words == "captions":
        chosen = _chosen([[_at(entry, "caption") for entry in shown[image]] for image in files])
        for (image, file), labels in zip(files.items(), chosen, strict=True):
            collector.add(opened(file, str(file)), str(image), labels)
        return collector.bank("annotations")
    names = {_at(category, "id"): _at(category, "name") for category in _at(data, "categories")}
    for image, file in files.items():
        kept = [entry for entry in shown[image] if not (crops and entry.get("iscrowd"))]
        report["crowds"] += len(shown[image]) - len(kept)
        if not crops:
            labels = [_at(names, _at(entry, "category_id")) for entry in kept]
            collector.add(opened(file, str(file)), str(image), labels)
            continue
        picture = opened(file, str(file)) if kept else None
        for entry in kept:
            box = _box(_at(entry, "bbox"), picture)
            if picture is None or box is None:
                report["empty_boxes"] += 1
                continue
            collector.add(picture.crop(box), str(_at(entry, "id")), [_at(names, _at(entry, "category_id"))])
    return collector.bank("annotations", **report)


def huggingface(
    dataset: Iterable[Mapping[str, Any]],
    backbone: Any,
    image_column: str,
    text_column: str | None,
    label_column: str | None,
    limit: int | None,
) -> ImageBank:
    """See `ImageBank.from_hf`."""
    if limit is not None:
        limit = check_integer("limit", limit, 1, sys.maxsize)
    if not isinstance(dataset, Iterable) or isinstance(dataset, str | bytes | Mapping):
        raise TypeError(f"dataset must be an iterable of rows, got {type(dataset).__name__}")
    collector = _Collector(backbone)
    captions: list[list[str]] = []
    for row, entry in enumerate(islice(dataset, limit)):
        for argument, column in (("image", image_column), ("text", text_column), ("label", label_column)):
            if column is not None and column not in entry:
                there = ", ".join(map(repr, entry))
                raise ValueError(f"{argument}_column must be a column of the data set, got {column!r}; it has {there}")
        source = entry[image_column]
        if isinstance(source, dict):
            source = source["bytes"] if source.get("bytes") is not None else source.get("path")
        labels = [] if label_column is None else _names(dataset, label_column, entry[label_column])
        captions.append([] if text_column is None else _listed(entry[text_column]))
        collector.add(opened(source, f"row {row}"), str(row), labels)
    collector.words = [[*w, *c] for w, c in zip(collector.words, _chosen(captions), strict=True)]
    return collector.bank("dataset")


def _json(path: Any) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"annotations must be JSON, got {path}: {error}") from error


def _chosen(captions: Sequence[Sequence[str]]) -> list[list[str]]:
    """Of each image the words of its captions, if enough images have them and not too many."""
    words = [list(dict.fromkeys(chain.from_iterable(map(_tokens, texts)))) for texts in captions]
    counts = Counter(chain.from_iterable(words))
    most = _LARGEST_SHARE * len(captions)
    return [[word for word in entry if _FEWEST <= counts[word] <= most] for entry in words]


def _tokens(text: str) -> Iterator[str]:
    return (match.group() for match in _WORD.finditer(text.lower()))


def _names(dataset: Any, column: str, labels: Any) -> list[str]:
    kind = (getattr(dataset, "features", None) or {}).get(column)
    classes = getattr(kind, "names", None) or getattr(getattr(kind, "feature", None), "names", None)
    found = []
    for label in _listed(labels):
        if isinstance(label, str):
            found.append(label)
        elif classes and 0 <= label < len(classes):
            found.append(classes[label])
        elif not (classes and label == -1):  # -1 is no label, in the data sets' convention
            raise ValueError(f"label_column must hold strings or numbers of a ClassLabel, got {label!r}")
    return found


def _listed(x: Any) -> list[Any]:
    return [] if x is None else list(x) if isinstance(x, list | tuple) else [x]


def _at(record: Any, key: Any) -> Any:
    if not hasattr(record, "keys"):
        raise ValueError(f"annotations must have {key!r} in an object, got {type(record).__name__}")
    if key not in record:
        raise ValueError(f"annotations must have the key {key!r}, got {', '.join(map(repr, record)) or 'none'}")
    return record[key]


def _inside(root: str | os.PathLike[str], name: Any) -> Path:
    path = PurePosixPath(str(name))
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"file_name must stay inside image_root, got {name!r}")
    return Path(root, path)


def _box(box: Any, picture: Image | None) -> tuple[int, int, int, int] | None:
    """COCO's x, y, width, height as whole pixels of the picture, or None where none is left."""
    if not (isinstance(box, list | tuple) and len(box) == 4 and np.isfinite(np.array(box, float)).all()):
        raise ValueError(f"bbox must be four finite numbers, got {box!r}")
    if picture is None:
        return None
    x, y, width, height = box
    left, top = max(0, int(x)), max(0, int(y))
    right, bottom = min(picture.width, int(np.ceil(x + width))), min(picture.height, int(np.ceil(y + height)))
    return (left, top, right, bottom) if width >= 1 and height >= 1 and right > left and bottom > top else None
