"""What commands share: parsers, messages of one line, and outputs that are looked at before any work."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

__all__ = ["check_output", "command", "tell"]


def tell(kind: str, message: object) -> None:
    sys.stderr.write(f"imgskipgram: {kind}: {' '.join(str(message).split())}\n")


def command(commands: Any, name: str, run: Callable[[Any], None], about: str, epilog: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=about, epilog=f"Example: {epilog}", allow_abbrev=False
    )
    parser.set_defaults(run=run)
    return parser


def check_output(path: str, folder: bool = False) -> None:
    """Raises OSError, before any work, if nothing could be written at the path."""
    parent = os.path.dirname(path) or "."
    if not os.path.isdir(parent):
        raise FileNotFoundError(f"the folder of the output must exist, got {path!r}")
    if os.path.exists(path) and not (os.path.isdir if folder else os.path.isfile)(path):
        raise OSError(f"the output must be a {'folder' if folder else 'file that can be replaced'}, got {path!r}")
    if not os.access(path if folder and os.path.isdir(path) else parent, os.W_OK | os.X_OK):
        raise PermissionError(f"the folder of the output must be one that can be written to, got {path!r}")
