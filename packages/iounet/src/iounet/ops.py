"""The operators, checked and differentiable: pooling, and the family of non-maximum suppression."""

from ._pooling import prroi_pool

__all__ = ["prroi_pool"]
