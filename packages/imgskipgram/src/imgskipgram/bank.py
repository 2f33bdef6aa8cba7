"""Pictures as a model sees them: features, the words that each is labelled with, an id, a thumbnail."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Literal

    from numpy.typing import ArrayLike, NDArray

__all__ = ["ImageBank"]


class ImageBank:
    """Features f_i of M images, the words W(i) that each shows, and what a gallery needs to show them.

    Attributes:
        features: float32 `[M, df]`, read-only.
        words: of each image its labels; an image without labels is a candidate of `explain` all the same.
        hidden: of each image the labels that `without_labels` took away: what held-out words are measured by. Neither
            training nor explanations see them.
        ids: of each image a name that no other has.
        thumbnails: of each image an encoded picture (PNG, JPEG, WebP or GIF), or None.
        report_: what was counted on the way: `images`, `labelled`, `words`, and, by the way in, `skipped` (broken
            pictures), `crowds` and `empty_boxes` (COCO), `missing` (labels that a model's vocabulary lacks).

    Example:
        >>> from imgskipgram import ImageBank
        >>> bank = ImageBank.from_features([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], ["dog", "cat", ("dog", "cat")])
        >>> bank
        ImageBank(3 images, 2 features, 2 words)
        >>> bank.words[2]
        ('dog', 'cat')
    """

    features: NDArray[np.float32]
    words: tuple[tuple[str, ...], ...]
    hidden: tuple[tuple[str, ...], ...]
    ids: tuple[str, ...]
    thumbnails: tuple[bytes | None, ...]
    report_: dict[str, int]

    def __init__(
        self,
        features: ArrayLike,
        words: Sequence[str | Iterable[str]],
        ids: Sequence[str] | None = None,
        thumbnails: Sequence[Any] | None = None,
    ) -> None:
        """See `from_features`."""
        from ._pictures import encoded

        self.features = _features(features)
        count = len(self.features)
        self.ids = tuple(str(i) for i in range(count)) if ids is None else tuple(str(name) for name in ids)
        if isinstance(words, str) or not isinstance(words, Collection):
            raise TypeError(f"words must be a sequence with the labels of each row, got {type(words).__name__}")
        for name, rows in (("words", words), ("ids", self.ids), ("thumbnails", thumbnails)):
            if rows is not None and len(rows) != count:
                raise ValueError(f"{name} must have one entry per row of features, got {len(rows)} for {count} rows")
        if repeated := _repeated(self.ids):
            raise ValueError(f"ids must differ, got {repeated[0]!r} in rows {repeated[1]} and {repeated[2]}")
        self.words = tuple(_labels(entry, row) for row, entry in enumerate(words))
        self.hidden = ((),) * count
        pictures = [None] * count if thumbnails is None else thumbnails
        self.thumbnails = tuple(encoded(picture, row) for row, picture in enumerate(pictures))
        self.report_ = {}
        self._count()

    def _count(self) -> None:
        self.report_ |= {
            "images": len(self),
            "labelled": sum(map(bool, self.words)),
            "words": len({word for labels in self.words for word in labels}),
        }

    @classmethod
    def from_features(
        cls,
        features: ArrayLike,
        words: Sequence[str | Iterable[str]],
        ids: Sequence[str] | None = None,
        thumbnails: Sequence[Any] | None = None,
    ) -> ImageBank:
        """A bank from features that are there.

        Args:
            features: `[M, df]`, finite, not all rows equal.
            words: of each image its label, or several, or an empty tuple.
            ids: of each image a name; by default its row.
            thumbnails: of each image an encoded picture (bytes), a path, a picture of Pillow's, or None. Paths and
                pictures are made small, 192 pixels a side.

        Raises:
            ValueError: features are not two-dimensional or not finite, all rows are equal, lengths differ, ids repeat.
            TypeError: a label is no string.
        """
        return cls(features, words, ids, thumbnails)

    @classmethod
    def from_folder(
        cls, path: str | os.PathLike[str], backbone: Any, *, on_error: Literal["raise", "skip"] = "raise"
    ) -> ImageBank:
        """A bank from a folder of folders, whose names are the words; pictures that lie outside them have no label.

        Args:
            path: the folder. Pictures are found at any depth: PNG, JPEG, WebP, GIF, BMP, TIFF and PPM, by suffix.
            backbone: a callable `list[PIL.Image] -> ndarray (n, df)`, a `torch.nn.Module`, a name of torchvision's or
                `"timm:<name>"`; names take the pretrained weights without the classifier.
            on_error: "raise", or "skip" broken pictures and count them in `report_`.

        Raises:
            FileNotFoundError: there is no such folder.
            OSError: a picture is broken; the message has its path.
            ValueError: there is no picture.
            ImportError: a package is missing; the message names the extra.
        """
        from ._sources import folder

        return folder(path, backbone, on_error)

    @classmethod
    def from_coco(
        cls,
        annotations: str | os.PathLike[str] | Mapping[str, Any],
        image_root: str | os.PathLike[str],
        backbone: Any,
        *,
        words: Literal["categories", "captions"] = "categories",
        crops: bool = True,
    ) -> ImageBank:
        """A bank from COCO's annotations.

        Args:
            annotations: the JSON file, or what is in it.
            image_root: the folder that `file_name` is relative to.
            backbone: as in `from_folder`.
            words: "categories", of instances, by their names; "captions", by the words of an image's captions that at
                least 2 and at most 5 % of the images have.
            crops: with categories, every box is an image of its own, without crowds; otherwise whole images.

        Raises:
            FileNotFoundError: there are no such annotations.
            OSError: a picture is broken; the message has its path.
            ValueError: a key is missing; the message has those that are there.
        """
        from ._sources import coco

        return coco(annotations, image_root, backbone, words, crops)

    @classmethod
    def from_hf(
        cls,
        dataset: Iterable[Mapping[str, Any]],
        backbone: Any,
        *,
        image_column: str = "image",
        text_column: str | None = None,
        label_column: str | None = None,
        limit: int | None = None,
    ) -> ImageBank:
        """A bank from a Hugging Face data set, streaming or not, which is read once; or from any rows like its.

        Args:
            dataset: rows with a picture: of Pillow's, bytes, a path, or `{"bytes": ..., "path": ...}`.
            backbone: as in `from_folder`.
            image_column: where the pictures are.
            text_column: captions, whose words become labels as in `from_coco`.
            label_column: a class, by its name or by its number in a `ClassLabel`, or a list of them.
            limit: rows to read; by default all.

        Raises:
            OSError: a picture is broken; the message has its row.
            ValueError: a column is missing; the message has those that are there.
        """
        from ._sources import huggingface

        return huggingface(dataset, backbone, image_column, text_column, label_column, limit)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ImageBank:
        """Read what `save` wrote; nothing is unpickled.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no bank, or damaged, or newer than this version; the message has the path and the reason.
        """
        from ._bankfile import read

        return read(path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz at exactly this path, thumbnails included; if that fails, the old file survives."""
        from ._bankfile import write

        write(path, self)

    def without_labels(self, words: Collection[str]) -> ImageBank:
        """The same images, of which none is labelled with these words any more; `hidden` remembers the labels."""
        gone = {words} if isinstance(words, str) else set(words)
        bank = ImageBank.__new__(ImageBank)
        bank.features, bank.ids, bank.thumbnails = self.features, self.ids, self.thumbnails
        bank.words = tuple(tuple(word for word in labels if word not in gone) for labels in self.words)
        taken = (tuple(word for word in labels if word in gone) for labels in self.words)
        bank.hidden = tuple(before + more for before, more in zip(self.hidden, taken, strict=True))
        bank.report_ = dict(self.report_)
        bank._count()
        return bank

    def images_of(self, index: Mapping[str, int]) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        """I(w), the inverse of the labels: images of the word with number w are `images[start[w]:start[w + 1]]`.

        Labels that the vocabulary lacks are counted in `report_["missing"]`.

        Args:
            index: the numbers of a vocabulary's words, 0 to V - 1.

        Returns:
            `start` `[V + 1]` and `images`, which rise within a word.

        Raises:
            ValueError: the vocabulary has none of the labels.

        Example:
            >>> from imgskipgram import ImageBank
            >>> bank = ImageBank.from_features([[1.0], [2.0], [3.0]], ["dog", "cat", "dog"])
            >>> start, images = bank.images_of({"cat": 0, "the": 1, "dog": 2})
            >>> start.tolist(), images.tolist()
            ([0, 1, 1, 3], [1, 0, 2])
        """
        labels = list(dict.fromkeys(word for entry in self.words for word in entry))
        missing = [word for word in labels if word not in index]
        if len(missing) == len(labels):
            shown = ", ".join(map(repr, labels[:5])) or "none"
            raise ValueError(f"words of the bank must be in the vocabulary, got no such label; labels are {shown}")
        self.report_["missing"] = len(missing)
        pairs = [(index[word], i) for i, entry in enumerate(self.words) for word in entry if word in index]
        numbers, images = np.array(pairs, np.int64).T
        start = np.zeros(len(index) + 1, np.uint64)
        np.cumsum(np.bincount(numbers, minlength=len(index)), out=start[1:], dtype=np.uint64)
        return start, images[np.argsort(numbers, kind="stable")].astype(np.uint32)

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        images, words = self.report_["images"], self.report_["words"]
        return f"ImageBank({images:,} images, {self.features.shape[1]:,} features, {words:,} words)"


def _features(features: ArrayLike) -> NDArray[np.float32]:
    given = np.asarray(features)
    if given.dtype.kind not in "fiub":
        raise TypeError(f"features must be numbers, got {given.dtype}")
    if given.ndim != 2 or not given.size:
        raise ValueError(f"features must be two-dimensional and not empty, got shape {given.shape}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        array = np.array(given, np.float32, order="C")
    finite = np.isfinite(array).all(1)
    if not finite.all():
        raise ValueError(f"features must be finite, got NaN or infinity in row {int(finite.argmin())}")
    if len(array) > 1 and (array == array[0]).all():
        raise ValueError(f"features must differ between images, got {len(array)} equal rows")
    array.flags.writeable = False
    return array


def _labels(entry: str | Iterable[str], row: int) -> tuple[str, ...]:
    labels = (entry,) if isinstance(entry, str) or not hasattr(entry, "__iter__") else tuple(entry)
    for word in labels:
        if not isinstance(word, str):
            raise TypeError(f"words must be strings, got {type(word).__name__} in row {row}")
    return tuple(dict.fromkeys(str(word) for word in labels if word))


def _repeated(ids: Sequence[str]) -> tuple[str, int, int] | None:
    seen: dict[str, int] = {}
    for row, name in enumerate(ids):
        if seen.setdefault(name, row) != row:
            return name, seen[name], row
    return None
