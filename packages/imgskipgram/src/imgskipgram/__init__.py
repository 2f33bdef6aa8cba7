"""Word vectors that pictures explain: skip-gram with images in one space."""

from __future__ import annotations

__all__: list[str] = []
__version__ = "1.0.0"
