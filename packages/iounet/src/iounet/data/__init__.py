"""Detection data: COCO, Pascal VOC, YOLO, Hugging Face `datasets`, and scenes made of shapes; labels are from 1."""

from __future__ import annotations

from pathlib import Path

from ._coco import CocoDetection, annotation_file
from ._dataset import DetectionDataset, collate
from ._huggingface import HuggingFaceDetection, load
from ._scenes import SyntheticScenes, synthetic_scenes
from ._voc import VocDetection
from ._yolo import YoloDetection

__all__ = [
    "CocoDetection",
    "DetectionDataset",
    "HuggingFaceDetection",
    "SyntheticScenes",
    "VocDetection",
    "YoloDetection",
    "collate",
    "open_dataset",
    "synthetic_scenes",
]


def open_dataset(spec: str, split: str | None = None) -> DetectionDataset:
    """Open a data set by its kind and place.

    =====================  ===========================================================================================
    `coco:FILE.json`       boxes of the file; images are looked for beside it (see :class:`CocoDetection`)
    `coco:FILE.json@DIR`   the same with its images below DIR
    `coco:DIR`             `instances_SPLIT.json` or `SPLIT.json` in it or its `annotations`, or
                           `SPLIT/_annotations.coco.json`
    `voc:DIR`              `Annotations`, `JPEGImages`, `ImageSets/Main/SPLIT.txt`; without a split, all images
    `yolo:DIR`             `data.yaml` or `classes.txt`, `images`, `labels`; without a split, all images
    `yolo:FILE.yaml`       the same
    `hf:NAME`              `datasets.load_dataset(NAME)`, or a folder written by `save_to_disk`
    `hf:NAME:CONFIG@xyxy`  the same of a configuration, with boxes that are not x, y, width, height; each part may be
                           left out
    =====================  ===========================================================================================

    Args:
        spec: as in the table.
        split: which part, where there are several.

    Returns:
        A data set whose item is an image, float32[3, H, W] in 0..1, and a target with `boxes` float32[L, 4] (x1, y1,
        x2, y2), `labels` int64[L] from 1, `image_id` and `iscrowd` bool[L].

    Raises:
        TypeError: `spec` is no string.
        ValueError: `spec` or `split` is not understood; a file is not what it should be (the message names the file
            and the place in it).
        FileNotFoundError: a file is missing.
        ImportError: Pillow, or for `hf:` the library `datasets`, is missing.

    Warns:
        UserWarning: boxes without area were dropped, once for all of them.

    Example::

        dataset = open_dataset("coco:annotations/instances_val2017.json")
        image, target = dataset[0]
    """
    if not isinstance(spec, str):
        raise TypeError(f"spec must be a string, got {type(spec).__name__}")
    kind, colon, place = spec.partition(":")
    if not colon or not place or kind not in ("coco", "voc", "yolo", "hf"):
        raise ValueError(f"spec must be coco:PATH, voc:PATH, yolo:PATH or hf:NAME, got {spec!r}")
    if kind == "hf":
        return load(place, split)
    path = Path(place).expanduser()
    if kind == "voc":
        return VocDetection(path, split)
    if kind == "yolo":
        return YoloDetection(path, split)
    images = None
    if not path.exists() and "@" in place:
        head, _, tail = place.rpartition("@")
        path, images = Path(head).expanduser(), Path(tail).expanduser()
    if path.is_dir():
        path = annotation_file(path, split)
    elif split is not None:
        raise ValueError(f"split must be None where spec names a file, {path}, got {split!r}")
    return CocoDetection(path, images)
