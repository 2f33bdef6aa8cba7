"""Word vectors that pictures explain: skip-gram with images in one space."""

from __future__ import annotations

from .bank import ImageBank
from .explanation import Explanation
from .model import ImageSkipGram

__all__ = ["Explanation", "ImageBank", "ImageSkipGram"]
__version__ = "1.0.0"
