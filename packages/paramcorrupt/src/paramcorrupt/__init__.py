"""What can this checkpoint not afford to lose? The worst small change of a model's weights, measured and defended."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from . import _ops as _ops
from .corruption import Corruption, Selection, corruption, random_corruption, relative, top_n
from .curve import Curve, CurvePoint, curve
from .indicator import Indicator, indicator, multistep
from .objective import Objective
from .restoring import Applied, corrupted

if TYPE_CHECKING:
    from .checkpoints import Difference, apply, diff
    from .defense import Defense
    from .faults import Faults, bitflip
    from .gating import Case, Gate, gate
    from .scanning import Report, ReportRow, scan
    from .vulnerability import Protection, Vulnerability, protect, vulnerability_factor

__all__ = [
    "Applied",
    "Case",
    "Corruption",
    "Curve",
    "CurvePoint",
    "Defense",
    "Difference",
    "Faults",
    "Gate",
    "Indicator",
    "Objective",
    "Protection",
    "Report",
    "ReportRow",
    "Selection",
    "Vulnerability",
    "apply",
    "bitflip",
    "corrupted",
    "corruption",
    "curve",
    "diff",
    "gate",
    "indicator",
    "multistep",
    "protect",
    "random_corruption",
    "relative",
    "scan",
    "top_n",
    "vulnerability_factor",
]
__version__ = "1.0.0"

_LATER = {
    "checkpoints": ("Difference", "apply", "diff"),
    "defense": ("Defense",),
    "faults": ("Faults", "bitflip"),
    "gating": ("Case", "Gate", "gate"),
    "scanning": ("Report", "ReportRow", "scan"),
    "vulnerability": ("Protection", "Vulnerability", "protect", "vulnerability_factor"),
}
"""Names by the modules that are imported when they are first asked for, so that the package is imported fast. Those
that are called as their module is must be there before it."""


def __getattr__(name: str) -> object:
    for module, names in _LATER.items():
        if name in names:
            value: object = getattr(import_module(f".{module}", __name__), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
