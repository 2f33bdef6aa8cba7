"""Word vectors that pictures explain: skip-gram with images in one space."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .bank import ImageBank
from .explanation import Explanation
from .model import ImageSkipGram

__all__ = ["Explanation", "ImageBank", "ImageSkipGram"]
__version__ = "1.0.0"

_MODULES = ("compat", "distributed", "evaluate", "plots")


def __getattr__(name: str) -> Any:
    """Modules that are imported when they are first asked for."""
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
