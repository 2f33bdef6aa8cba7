"""Progress on stderr, where somebody watches it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")


def check_progress(progress: object) -> None:
    """True, False or None; TypeError for anything else."""
    if progress is not None and not isinstance(progress, bool):
        raise TypeError(f"progress must be True, False or None, got {progress!r}")


def track(iterable: Iterable[T], total: int | None, label: str, progress: bool | None) -> Iterable[T]:
    """The same items, behind a progress bar when `progress` is true, or None and stderr is a terminal."""
    check_progress(progress)
    if not (sys.stderr is not None and sys.stderr.isatty() if progress is None else progress):
        return iterable
    from tqdm import tqdm

    bar: Iterable[T] = tqdm(iterable, desc=label, total=total, leave=False, dynamic_ncols=True, file=sys.stderr)
    return bar
