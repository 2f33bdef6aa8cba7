"""The protocol of all data sets: images with their boxes, and the same boxes as a COCO document."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ._images import need_pillow, read_rgb, size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._annotations import Annotations
    from ._images import File

Target: TypeAlias = "dict[str, Any]"
Sample: TypeAlias = "tuple[Tensor, Target]"


class DetectionDataset(Dataset[Sample], ABC):
    """Images with boxes: `dataset[i]` is an image and its target.

    The image is float32[3, H, W], RGB in 0..1. The target has `boxes` float32[L, 4] as x1, y1, x2, y2, clipped to the
    image; `labels` int64[L] from 1; `image_id`; and `iscrowd` bool[L], true of what stands for several objects or is
    not to be found: an evaluation passes over it. Images are read when asked for, so that a
    :class:`torch.utils.data.DataLoader` may have any number of workers.

    Attributes:
        classes: names, the one of label l at place l - 1.
        category_ids: their ids in :meth:`annotations`, which need not follow each other.
        image_ids: of all images.
    """

    def __init__(self, table: Annotations) -> None:
        self._table = table
        self._first = torch.searchsorted(table.image, torch.arange(len(table.image_ids) + 1))
        self.classes: tuple[str, ...] = table.classes
        self.category_ids: list[int] = table.category_ids
        self.image_ids: list[int] = table.image_ids

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        """An image and its target.

        Raises:
            IndexError: there is no such image.
            FileNotFoundError: its file is missing.
            ValueError: its file cannot be decoded, or its size is not the one that the annotations tell.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be less than {len(self)}, the number of images, got {index}")
        index %= len(self)
        image = self._image(index)
        own = slice(int(self._first[index]), int(self._first[index + 1]))
        sides = torch.tensor([image.shape[2], image.shape[1]], dtype=torch.float64)
        xy, wh = self._table.boxes[own].split(2, 1)
        boxes = torch.cat([torch.minimum(xy.clamp(min=0), sides), torch.minimum((xy + wh).clamp(min=0), sides)], 1)
        boxes = boxes.float()
        inside = (boxes[:, 2:] > boxes[:, :2]).all(1)  # a box off the image has nothing to show
        return image, {
            "boxes": boxes[inside],
            "labels": self._table.labels[own][inside],
            "image_id": self.image_ids[index],
            "iscrowd": self._table.crowd[own][inside],
        }

    def annotations(self) -> dict[str, list[dict[str, Any]]]:
        """The boxes, unclipped, as a COCO document: what :func:`iounet.coco.evaluate` takes."""
        return self._table.to_coco()

    @abstractmethod
    def _image(self, row: int) -> Tensor: ...


class FileDataset(DetectionDataset):
    """Images that lie in files, or in a column of files."""

    def __init__(self, table: Annotations) -> None:
        need_pillow()
        self._table = table
        untold = [row for row, size in enumerate(table.sizes) if size is None]
        if untold:
            sizes = list(table.sizes)
            for row in untold:
                sizes[row] = size_of(*self._file(row))
            table = replace(table, sizes=sizes)
        super().__init__(table)

    def _image(self, row: int) -> Tensor:
        size = self._table.sizes[row]
        if size is None:
            raise AssertionError("sizes are read when a data set is opened")
        return read_rgb(*self._file(row), size)

    @abstractmethod
    def _file(self, row: int) -> tuple[File, str]:
        """The file, and its name for messages."""


def collate(samples: Sequence[Sample]) -> tuple[list[Tensor], list[Target]]:
    """A batch of images of any sizes, as detectors take it: `DataLoader(dataset, 4, collate_fn=collate)`."""
    return [image for image, _ in samples], [target for _, target in samples]
