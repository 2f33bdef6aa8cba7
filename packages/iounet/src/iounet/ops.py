"""The operators, checked and differentiable: pooling, and the family of non-maximum suppression."""

from . import _ops as _ops

__all__: list[str] = []
