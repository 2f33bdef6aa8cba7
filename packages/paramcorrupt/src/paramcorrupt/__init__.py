"""What can this checkpoint not afford to lose? The worst small change of a model's weights, measured and defended."""

from __future__ import annotations

from . import _ops as _ops
from .checkpoints import Difference, apply, diff
from .corruption import Corruption, Selection, corruption, random_corruption, relative, top_n
from .curve import Curve, CurvePoint, curve
from .defense import Defense
from .faults import Faults, bitflip
from .gating import Case, Gate, gate
from .indicator import Indicator, indicator, multistep
from .objective import Objective
from .restoring import Applied, corrupted
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
