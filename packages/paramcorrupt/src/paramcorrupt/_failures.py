"""Exit codes, and errors as one line that says what to do."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from traceback import extract_tb

FAILED, WRONG, RAISED, INTERRUPTED, PIPE = 1, 2, 3, 130, 141

_PACKAGE = str(Path(__file__).parent)
_LIBRARY, _PACKAGES = (sysconfig.get_path(name) for name in ("stdlib", "purelib"))


def explain(error: Exception) -> tuple[int, str]:
    """The exit code of an error and a line about it: input that this package refused, or what other code raised."""
    frames = [x for x in extract_tb(error.__traceback__) if not _is_library(x.filename)]
    ours = not frames or frames[-1].filename.startswith(_PACKAGE)
    if ours and isinstance(error, OSError) and error.filename is not None and error.strerror:
        return WRONG, f"{error.strerror}: {error.filename}"
    if ours and isinstance(error, ImportError | OSError | TypeError | ValueError):
        return WRONG, _line(error)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    what = "" if ours else "the model or the data raised "
    return RAISED, f"{what}{type(error).__name__}{where}: {_line(error)}; --debug shows the traceback"


def _is_library(file: str) -> bool:
    return file.startswith((_LIBRARY, "<frozen")) and not file.startswith(_PACKAGES)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
