"""AdaMod for PyTorch: Adam whose learning rates are bounded by their own moving average."""

from . import functional, plot
from .diffmod import DiffMod
from .optimizer import AdaMod
from .statistics import BoundStats

__all__ = ["AdaMod", "BoundStats", "DiffMod", "functional", "plot"]
__version__ = "1.0.0"
