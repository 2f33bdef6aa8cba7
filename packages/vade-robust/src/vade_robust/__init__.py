"""Deep clustering that can be reproduced: VaDE and LPVDN, exact and robust, as scikit-learn estimators."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from . import _ops as _ops

if TYPE_CHECKING:
    from . import callbacks as callbacks
    from . import metrics as metrics
    from . import plot as plot
    from . import robustness as robustness
    from . import selection as selection
    from .callbacks import Checkpoint
    from .estimator import RobustVaDE, VaDE

__all__ = ["Checkpoint", "RobustVaDE", "VaDE"]
__version__ = "1.0.0"

_LATER = {
    "callbacks": ("Checkpoint",),
    "estimator": ("RobustVaDE", "VaDE"),
}
"""Names by the modules that are imported when they are first asked for, so that the package is imported fast."""


_MODULES = frozenset({"callbacks", "metrics", "plot", "robustness", "selection"})


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    for module, names in _LATER.items():
        if name in names:
            value: object = getattr(import_module(f".{module}", __name__), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
