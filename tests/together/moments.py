"""Ctrl-C and other mishaps at moments that are counted, not waited for.

Python listens to signals when one of its functions is entered and when one of C returns. Those are the moments; they
are told apart by their places: what is entered or returned from, and where that was called.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, Any

from together.apart import limit

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGES = (
    *("/adamod/", "/cws_multidomain/", "/gasam/", "/imgskipgram/", "/iounet/", "/paramcorrupt/", "/vade_robust/"),
    "/torch/_ops.py",  # the way to the operators
)
# Of Python's library: without tempfile, whose own moment between a file and its name no package can help.
FILES = ("/contextlib.py", "/os.py", "/pathlib", "/shutil.py")


def watched(work: Callable[[], Any], act: Callable[[], None] = lambda: None, n: int | None = None) -> list[Any]:
    """Work, and act at the n-th moment or at each: the places of all moments in the packages and where files change."""
    places: list[Any] = []

    def profile(frame: Any, event: str, _: Any) -> None:
        if event in ("call", "c_return") and any(part in frame.f_code.co_filename for part in PACKAGES + FILES):
            caller = frame.f_back
            places.append((event, frame.f_code, frame.f_lasti, caller.f_code, caller.f_lasti))
            if n in (None, len(places)):
                act()

    def lost(unraisable: Any) -> None:
        """Python drops what is raised in a generator that is thrown away: whoever pressed Ctrl-C presses it again."""
        nonlocal n
        assert unraisable.exc_type is KeyboardInterrupt
        n = len(places) + 1
        sys.setprofile(profile)  # which ends where it raises

    sys.setprofile(profile)
    sys.unraisablehook, usual = lost, sys.unraisablehook
    try:
        work()
    finally:
        sys.setprofile(None)
        sys.unraisablehook = usual
    return places


def moments(work: Callable[[], Any], most: int | None = None) -> list[int]:
    """Of each place the first moment and the last, or at most so many of these.

    The work must have been done before: a first time has moments of its own.
    """
    places = watched(work)
    first = {place: n for n, place in reversed([*enumerate(places, 1)])}
    last = {place: n for n, place in enumerate(places, 1)}
    chosen = sorted({*first.values(), *last.values()})
    return chosen[:: -(-len(chosen) // most)] if most else chosen


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def ctrl_c(n: int, work: Callable[[], Any]) -> None:
    """Work, with Ctrl-C at the n-th moment."""
    watched(work, press_ctrl_c, n)


def forked(work: Callable[[], Any]) -> int:
    """How a fork ends that does some work: 0, 1 after an exception, less than 0 by a signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks in processes with threads
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        limit()
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
