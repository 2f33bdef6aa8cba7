"""Deep clustering that can be reproduced: VaDE and LPVDN, exact and robust, as scikit-learn estimators."""

from __future__ import annotations

from . import _ops as _ops

__version__ = "1.0.0"
