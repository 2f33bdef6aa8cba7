"""Sharpness-aware minimisation for PyTorch: GA-SAM and its family, exact to the bit and fused on CPU and GPU."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from . import _ops as _ops
from .optimizer import GASAM
from .presets import ASAM, GSAM, MSAM, SAM, SAMON, WSAM, FriendlySAM, LookSAM, MultiStepRisk

__all__ = ["ASAM", "GASAM", "GSAM", "MSAM", "SAM", "SAMON", "WSAM", "FriendlySAM", "LookSAM", "MultiStepRisk"]
__version__ = "1.0.0"

_LAZY = frozenset({"flatness", "integrations"})  # they take time to import, or need an extra


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
