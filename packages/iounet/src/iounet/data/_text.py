"""Files of text that users give: an error names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(path: str | Path) -> Any:
    """The document in a file; an error names the place where it stops being JSON."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # a wrong encoding is a ValueError too
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a file, blank ones among them."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error
