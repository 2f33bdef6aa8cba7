"""Files that are there whole, old or new, never in part."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write beside the path, which takes its place at the end; after an exception the old one survives."""
    with beside(path) as name, open(name, "wb") as file:
        yield file


@contextmanager
def beside(path: str | os.PathLike[str]) -> Iterator[str]:
    """As `replacing`, the name of the file, which ends as the path does, for what opens files by their names."""
    target = Path(os.path.realpath(path))  # the file that a link leads to
    if target.exists() and not target.is_file():
        raise OSError(f"path must be a file that can be replaced, got {os.fspath(path)!r}")
    handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=target.suffix, dir=target.parent)
    try:
        os.close(handle)
        yield name
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, target)
    except BaseException:
        with suppress(FileNotFoundError):  # Ctrl-C may come right after the file got its name
            os.unlink(name)
        raise
