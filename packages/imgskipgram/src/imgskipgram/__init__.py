"""Word vectors that pictures explain: skip-gram with images in one space."""

from __future__ import annotations

from .bank import ImageBank
from .explanation import Explanation

__all__ = ["Explanation", "ImageBank"]
__version__ = "1.0.0"
