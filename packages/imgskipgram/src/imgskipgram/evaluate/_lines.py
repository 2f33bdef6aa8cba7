"""Lines of files of questions, plain or compressed, and words in them whatever their case."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["folded", "lines"]


def lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """Numbers, from 1, and text of the lines that are neither empty nor comments (`#`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no UTF-8, or damaged.
    """
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    with openers.get(Path(path).suffix, open)(path, "rb") as file:
        number = 0
        try:
            for number, line in enumerate(file, 1):
                if (text := line.decode("utf-8-sig").strip()) and not text.startswith("#"):
                    yield number, text
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: line {number} is no UTF-8") from error
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError) as error:
            raise ValueError(f"{path}: damaged after line {number}: {error}") from error


def folded(words: Sequence[str]) -> dict[str, int]:
    """Numbers of words by their upper case; of several the first, which is the most frequent."""
    return {words[i].upper(): i for i in range(len(words) - 1, -1, -1)}
