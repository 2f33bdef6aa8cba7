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

WINDOW = 1 << 20
"""The bytes of a tensor that are in memory at a time: of 4 MiB, a write takes five times as long."""

_PAGE = 1 << 12  # the same, around single elements
_SPARSE = 1 << 18  # bytes for each touched element from which on single elements are edited in place
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
    """Stream tensors through memory of which much is edited; copy the rest, then edit single elements in place."""
    streamed = [(stored, edit) for stored, edit in edits if _is_dense(stored, edit)]
    buffer = memoryview(bytearray(WINDOW if streamed else _PAGE))
    done = 0
    for stored, edit in streamed:
        _copy(source, copy, done, stored.start)
        for start, data, picked in _windows(stored, edit, buffer):
            read(source, data, start)
            if picked is not None:
                edit.change(stored.typed(data), (start - stored.start) // stored.dtype.itemsize, picked)
            _write(copy, data, start)
        done = stored.stop
        yield stored
    _copy(source, copy, done, os.fstat(source).st_size)
    for stored, edit in edits:
        if not _is_dense(stored, edit):
            for start, data, picked in _windows(stored, edit, buffer[:_PAGE]):
                if picked is not None:
                    read(copy, data, start)
                    edit.change(stored.typed(data), (start - stored.start) // stored.dtype.itemsize, picked)
                    _write(copy, data, start)
            yield stored


def _is_dense(stored: Stored, edit: Edit) -> bool:
    """Whether to rewrite a whole tensor is cheaper than to look for the pages that are touched."""
    return edit.touched is None or edit.touched.numel() * _SPARSE > stored.stop - stored.start


def _windows(stored: Stored, edit: Edit, buffer: memoryview) -> Iterator[tuple[int, memoryview, slice | None]]:
    """Where a window starts in the file, memory for it, and which of the touched elements are in it, if any is.

    Of a tensor that is not edited densely only the windows that are touched.
    """
    width, size = len(buffer), stored.dtype.itemsize
    if edit.touched is None:
        for start in range(stored.start, stored.stop, width):
            yield start, buffer[: stored.stop - start], slice(None)
        return
    windows, counts = (edit.touched // (width // size)).unique_consecutive(return_counts=True)
    ends = counts.cumsum(0)
    picks = {
        window: slice(end - count, end)
        for window, count, end in zip(windows.tolist(), counts.tolist(), ends.tolist(), strict=True)
    }
    every = range(-(-(stored.stop - stored.start) // width)) if _is_dense(stored, edit) else picks
    for window in every:
        start = stored.start + window * width
        yield start, buffer[: stored.stop - start], picks.get(window)


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
