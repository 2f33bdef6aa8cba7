"""Deep clustering that can be reproduced: VaDE and LPVDN, exact and robust, as scikit-learn estimators."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from . import _ops as _ops

if TYPE_CHECKING:
    from .estimator import RobustVaDE, VaDE

__all__ = ["RobustVaDE", "VaDE"]
__version__ = "1.0.0"

_LATER = {
    "estimator": ("RobustVaDE", "VaDE"),
}
"""Names by the modules that are imported when they are first asked for, so that the package is imported fast."""


def __getattr__(name: str) -> object:
    for module, names in _LATER.items():
        if name in names:
            value: object = getattr(import_module(f".{module}", __name__), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
