"""IoU-Net for PyTorch: exact RoI pooling with box gradients, IoU-guided NMS and box refinement for any detector."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import compat, ops
from ._head import IoUHead
from ._jitter import sample_jittered_boxes
from ._pooling import MultiScalePrRoIPool, PrRoIPool2d
from ._refinement import RefineResult, refine_boxes

if TYPE_CHECKING:
    from . import cli as cli
    from . import coco as coco
    from . import data as data
    from . import detection as detection
    from . import training as training
    from . import viz as viz

__all__ = [
    "IoUHead",
    "MultiScalePrRoIPool",
    "PrRoIPool2d",
    "RefineResult",
    "compat",
    "ops",
    "refine_boxes",
    "sample_jittered_boxes",
]
__version__ = "1.0.0"

_LAZY = frozenset({"cli", "coco", "data", "detection", "training", "viz"})  # they need an extra, or time to import


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
