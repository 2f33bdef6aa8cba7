"""Packages that only some features need."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def need(module: str, extra: str, feature: str) -> Any:
    """The module, or an ImportError that names the extra with which it comes."""
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ImportError(f"{feature} needs {package}: pip install 'imgskipgram[{extra}]'", name=package) from error
