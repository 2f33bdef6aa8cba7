"""Checks of what indicators and curves are asked for, before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real

from torch import nn

from ._tensors import check_eps, check_n, check_p, parameters
from .corruption import relative


def check_budgets(eps: object) -> list[float | relative]:
    """The budgets in `eps`, one or several.

    Raises:
        TypeError, ValueError: one of them is none, or there is none.
    """
    several = list(eps) if isinstance(eps, Iterable) and not isinstance(eps, str) else [eps]
    if not several:
        raise ValueError("eps must have at least one budget, got an empty sequence")
    return [one if isinstance(one, relative) else check_eps(one) for one in several]


def check_set(model: nn.Module, p: float, n: int | None) -> None:
    """A model and the set of its corruptions, as far as no gradient is needed.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of its range.
    """
    check_p(p)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    k = sum(x.numel() for x in parameters(model).tensors if x.requires_grad)
    if not k:
        raise ValueError("model must have parameters that require a gradient, got none")
    check_n(n, k)


def check_ascent(steps: int, step_size: float, surface: str) -> None:
    """How an ascent goes.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of its range.
    """
    if isinstance(steps, bool) or not isinstance(steps, Integral):
        raise TypeError(f"steps must be an integer, got {steps!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if isinstance(step_size, bool) or not isinstance(step_size, Real):
        raise TypeError(f"step_size must be a number, got {step_size!r}")
    if not 0 < step_size < math.inf:
        raise ValueError(f"step_size must be positive and finite, got {step_size}")
    if surface not in ("ball", "sphere"):
        raise ValueError(f"surface must be 'ball' or 'sphere', got {surface!r}")
