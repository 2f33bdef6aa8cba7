"""Copies of safetensors files in which some elements differ, while every other byte is what it was."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ._progress import track
from ._tabular import replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from ._safetensors import Checkpoint, Stored

WINDOW = 1 << 22
"""The bytes of a tensor that are in memory at a time."""

_PAGE = 1 << 16  # the same, around single elements
_CHUNK = 1 << 27  # a copy made by the kernel returns after this many bytes, so that Ctrl-C is heard
_BESIDE = {".json", ".jinja", ".model", ".tiktoken", ".txt"}  # what a folder of weights needs to be loaded


@dataclass(frozen=True)
class Edit:
    """What happens to a tensor: `change(window, first, picked)` writes into a window of consecutive elements.

    Attributes:
        touched: int64, the elements that are written, sorted, and `picked` those of them that are in the window; or
            None: all of them.
        change: takes the window, of one dimension, the number of its first element, and `picked`.
    """

    touched: Tensor | None
    change: Callable[[Tensor, int, slice], None]


def write_edited(
    checkpoint: Checkpoint, edits: Mapping[str, Edit], output: str | os.PathLike[str], label: str, progress: bool | None
) -> None:
    """Write the whole checkpoint with some tensors edited: all of it, or nothing if anything fails.

    Raises:
        ValueError, OSError: the output is the checkpoint itself, of the other kind, or cannot be written.
    """
    order = [x for x in checkpoint.tensors.values() if x.name in edits]
    with _outputs(checkpoint, Path(output)) as targets:
        for _ in track(_written(targets, order, edits), len(order), label, progress):
            pass


def _written(targets: Mapping[Path, Path], order: list[Stored], edits: Mapping[str, Edit]) -> Iterator[Stored]:
    """Write the files, and tell of each tensor that is edited when that is done."""
    for file, target in targets.items():
        with open(file, "rb") as source, open(target, "r+b") as copy:
            here = [(x, edits[x.name]) for x in order if x.path == file]
            yield from _copy_edited(source.fileno(), copy.fileno(), here)


def check_output(checkpoint: Checkpoint, output: str | os.PathLike[str]) -> None:
    """Refuse an output that would replace the checkpoint, or that is no place for it."""
    target, folder = Path(output), checkpoint.folder
    inside = [folder, *checkpoint.files] if folder else checkpoint.files
    if any(target.exists() and target.samefile(path) for path in inside):
        raise ValueError(f"output must not be the checkpoint itself, got {target}: its clean weights would be lost")
    if folder is None and target.is_dir():
        raise ValueError(f"output must be a file, as the checkpoint is, got the folder {target}: name a file in it")
    if folder is not None and target.exists() and not target.is_dir():
        raise ValueError(f"output must be a folder, for the checkpoint has several files, got {target}")
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(f"output must be in a folder that exists, got {target}")


@contextmanager
def _outputs(checkpoint: Checkpoint, output: Path) -> Iterator[dict[Path, Path]]:
    """For every file of the checkpoint one to write to, which appear under their names when the body succeeds."""
    check_output(checkpoint, output)
    folder = checkpoint.folder
    with ExitStack() as stack:
        if folder is None:
            (file,) = checkpoint.files
            yield {file: stack.enter_context(replacing(output))}
            return
        place = output if output.is_dir() else stack.enter_context(_new_folder(output))
        also = [x for x in sorted(folder.iterdir()) if x.suffix in _BESIDE and x.is_file()]
        also = [x for x in also if not x.name.endswith(".index.json")]
        for path in [*([checkpoint.index] if checkpoint.index else []), *also]:
            shutil.copyfile(path, stack.enter_context(replacing(place / path.name)))
        yield {file: stack.enter_context(replacing(place / file.name)) for file in checkpoint.files}


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A folder of another name, which gets its own when the body succeeds."""
    temporary = output.absolute().with_name(f".{output.name[:200]}.{secrets.token_hex(4)}.part")
    temporary.mkdir()
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    temporary.rename(output)


def _copy_edited(source: int, copy: int, edits: list[tuple[Stored, Edit]]) -> Iterator[Stored]:
    """Stream what is edited as a whole through memory; copy the rest, then edit single elements in place."""
    done = 0
    buffer = memoryview(bytearray(WINDOW if any(edit.touched is None for _, edit in edits) else 0))
    for stored, edit in edits:
        if edit.touched is None:
            _copy(source, copy, done, stored.start)
            size = stored.dtype.itemsize
            for start in range(stored.start, stored.stop, WINDOW):
                data = buffer[: min(WINDOW, stored.stop - start)]
                read(source, data, start)
                edit.change(stored.typed(data), (start - stored.start) // size, slice(None))
                _write(copy, data, start)
            done = stored.stop
            yield stored
    _copy(source, copy, done, os.fstat(source).st_size)
    for stored, edit in edits:
        if edit.touched is not None:
            _edit_elements(copy, stored, edit.touched, edit.change)
            yield stored


def _edit_elements(file: int, stored: Stored, touched: Tensor, change: Callable[[Tensor, int, slice], None]) -> None:
    """Read, change and write the windows that have an element in them."""
    size = stored.dtype.itemsize
    # Small windows while most of a tensor is left alone, and few of them when nothing is.
    width = _PAGE if touched.numel() * _PAGE < stored.stop - stored.start else _PAGE << 4
    windows, counts = (touched // (width // size)).unique_consecutive(return_counts=True)
    buffer = memoryview(bytearray(width))
    position = 0
    for window, count in zip(windows.tolist(), counts.tolist(), strict=True):
        start = stored.start + window * width
        data = buffer[: min(width, stored.stop - start)]
        read(file, data, start)
        change(stored.typed(data), window * (width // size), slice(position, position + count))
        _write(file, data, start)
        position += count


def read(file: int, data: memoryview, start: int) -> None:
    """Fill `data` with the bytes of a file from `start` on."""
    while data:
        count = os.preadv(file, [data], start)
        if not count:
            raise OSError("the checkpoint became shorter while it was read")
        data, start = data[count:], start + count


def _write(file: int, data: memoryview, start: int) -> None:
    while data:
        count = os.pwrite(file, data, start)
        data, start = data[count:], start + count


def _copy(source: int, target: int, start: int, stop: int) -> None:
    """Copy a range of bytes to where it is, by the file system (which may share the blocks) if it can."""
    if hasattr(os, "copy_file_range"):
        with suppress(OSError):  # a real error comes again below
            while start < stop and (
                count := os.copy_file_range(source, target, min(_CHUNK, stop - start), start, start)
            ):
                start += count
    buffer = memoryview(bytearray(min(WINDOW, stop - start)))
    while start < stop:
        data = buffer[: stop - start]
        read(source, data, start)
        _write(target, data, start)
        start += len(data)
