"""Banks on disk: an .npz of plain arrays, with labels and ids as JSON; parsed as hostile, never unpickled."""

from __future__ import annotations

import json
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np

from ._replacing import replacing
from .bank import ImageBank

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterator, Mapping

_FORMAT, _VERSION = "imgskipgram.bank", 1
NAMES = ("header", "features", "thumbnails", "thumbnail_sizes")  # of its arrays
_NO_THUMBNAIL = -1
_DAMAGE = (  # what zipfile, NumPy and json raise for files that others made
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    RuntimeError,
    MemoryError,
    OverflowError,
    SyntaxError,
    TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def write(path: str | os.PathLike[str], bank: ImageBank) -> None:
    """Write a bank, in its arrays."""
    with replacing(path) as file:
        np.savez(file, **arrays_of(bank))


def arrays_of(bank: ImageBank) -> dict[str, Any]:
    """`header` (JSON), `features`, and the thumbnails' bytes one after another with their lengths."""
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "ids": bank.ids,
        "words": bank.words,
        "hidden": bank.hidden,
        "report": bank.report_,
    }
    sizes = [_NO_THUMBNAIL if data is None else len(data) for data in bank.thumbnails]
    return {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "features": bank.features,
        "thumbnails": np.frombuffer(b"".join(data or b"" for data in bank.thumbnails), np.uint8),
        "thumbnail_sizes": np.array(sizes, np.int64),
    }


def read(path: str | os.PathLike[str]) -> ImageBank:
    """Read a bank, or say in a ValueError why the file is none."""
    with reading(path, "a bank of images"):
        return bank_of(unpacked(path, NAMES))


@contextmanager
def reading(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Whatever a damaged file raises becomes a ValueError with its path and the reason."""
    try:
        yield
    except _DAMAGE as error:
        raise ValueError(f"{path}: not {what} that can be read: {_reason(error)}") from error


def unpacked(path: str | os.PathLike[str], names: Collection[str] | None = None) -> dict[str, Any]:
    """Arrays of an .npz, by default all, else those of these names; none is unpickled."""
    with Path(path).open("rb") as file:
        if file.read(1) == b"\x80":
            raise ValueError("it looks like a pickle, which may run any code and is never loaded")
        try:
            with zipfile.ZipFile(file) as archive:
                there = [name.removesuffix(".npy") for name in archive.namelist()]
                return {name: _array(archive, name) for name in there if names is None or name in names}
        except OSError as error:  # a place outside of the file
            raise ValueError(f"its directory is damaged: {error}") from error


def _array(archive: zipfile.ZipFile, name: str) -> Any:
    with archive.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def bank_of(arrays: Mapping[str, Any]) -> ImageBank:
    """The bank that has these arrays."""
    header = json.loads(arrays["header"].astype(np.uint8).tobytes())
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise ValueError(f"its header does not say {_FORMAT}")
    if header["version"] != _VERSION:
        raise ValueError(f"version {header['version']!r}, this package reads version {_VERSION}")
    ids, words, report = header["ids"], header["words"], header["report"]
    if not (isinstance(ids, list) and isinstance(words, list) and isinstance(report, dict)):
        raise ValueError("ids and words must be lists, the report an object")
    hidden = header.get("hidden", [[]] * len(words))
    if not all(isinstance(entry, list) for entry in [*words, *hidden]) or len(hidden) != len(words):
        raise ValueError("words must be lists, and hidden ones as many")
    bank = ImageBank(arrays["features"], words, ids, _thumbnails(arrays["thumbnails"], arrays["thumbnail_sizes"]))
    bank.hidden = tuple(tuple(str(word) for word in entry) for entry in hidden)
    bank.report_ = {str(name): int(count) for name, count in report.items()} | bank.report_
    return bank


def _thumbnails(data: Any, sizes: Any) -> list[bytes | None]:
    if data.dtype != np.uint8 or sizes.dtype != np.int64 or data.ndim != 1 or sizes.ndim != 1:
        raise ValueError("thumbnails must be bytes with 64-bit sizes")
    lengths = np.maximum(sizes, 0)
    if (sizes < _NO_THUMBNAIL).any() or (lengths > len(data)).any() or lengths.sum() != len(data):
        raise ValueError("thumbnails and their sizes disagree")
    ends = np.cumsum(lengths)
    return [
        None if size == _NO_THUMBNAIL else data[end - size : end].tobytes()
        for size, end in zip(sizes.tolist(), ends.tolist(), strict=True)
    ]


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error) or "it ends too early"
