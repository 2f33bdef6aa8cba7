"""Files and standard input as blocks of whole lines, worked on by threads, in their order and in constant memory."""

from __future__ import annotations

import os
import queue
import stat
import sys
import tempfile
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

__all__ = ["Block", "blocks", "opened_output", "process", "total_size"]

_BLOCK = 1 << 20  # bytes; a longer line is a longer block
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Block:
    """Whole lines of a file."""

    data: bytes
    name: str  #: the file's
    start: int  #: offset of the data in the file


def blocks(names: Sequence[str]) -> Iterator[Block]:
    """The lines of files, one after the other; `-` is standard input, which is read as it comes."""
    for name in names:
        with _opened(name) as file:
            yield from _of_file(file, "standard input" if name == "-" else name)


@contextmanager
def _opened(name: str) -> Iterator[int]:
    if name == "-":
        yield sys.stdin.fileno()
        return
    file = os.open(name, os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)


def _of_file(file: int, name: str) -> Iterator[Block]:
    start = 0
    parts: list[bytes] = []  # of the last line, which has not ended
    while data := os.read(file, _BLOCK):
        if start == 0 and not parts and data.startswith(_BOM):
            data, start = data[len(_BOM) :], len(_BOM)
        end = data.rfind(b"\n") + 1
        if end:
            block = b"".join([*parts, data[:end]])
            yield Block(block, name, start)
            start += len(block)
            parts = [data[end:]] if end < len(data) else []
        else:
            parts.append(data)
    if parts:
        yield Block(b"".join(parts), name, start)


def total_size(names: Sequence[str]) -> int | None:
    """The bytes of all files, if they are files."""
    status = [os.fstat(sys.stdin.fileno()) if name == "-" else os.stat(name) for name in names]
    return sum(s.st_size for s in status) if all(stat.S_ISREG(s.st_mode) for s in status) else None


def process(
    items: Iterator[Block], work: Callable[[Block], bytes], write: Callable[[bytes], object], threads: int
) -> None:
    """Write what `work` makes of each block. With several threads, one of them writes what has been done meanwhile."""
    if threads == 1:
        for block in items:
            write(work(block))
        return
    from concurrent.futures import ThreadPoolExecutor

    pending: queue.Queue[Future[bytes] | None] = queue.Queue(2 * threads)
    failed: list[BaseException] = []

    def finish(future: Future[bytes]) -> None:
        try:
            if not failed:
                write(future.result())
        except BaseException as error:
            failed.append(error)

    def writer() -> None:
        while (future := pending.get()) is not None:
            finish(future)

    thread = threading.Thread(target=writer, daemon=True)
    with ThreadPoolExecutor(threads) as pool:
        thread.start()
        try:
            for block in items:
                if failed:
                    break
                pending.put(pool.submit(work, block))
        except BaseException as error:
            failed.append(error)
        pending.put(None)
        thread.join()
    if failed:
        raise failed[0]


@contextmanager
def opened_output(path: str | None) -> Iterator[IO[bytes]]:
    """Standard output, or a file that is there under its name only once it is complete."""
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        mode = os.umask(0)
        os.umask(mode)
        os.chmod(temporary, 0o666 & ~mode)
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):  # Ctrl-C may come right after the file got its name
            os.unlink(temporary)
        raise
