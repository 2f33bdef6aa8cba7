"""Where Triton is interpreted, and the only tolerance of the tests: the 2x rule."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

# Read when triton is imported. A machine with a GPU compiles the kernels and tests them there.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")


@pytest.fixture(scope="session")
def assert_within_twice() -> Callable[..., None]:
    """The 2x rule: the largest error of a result is at most twice that of the reference in the same precision.

    Errors are counted in units of the last place of an element, before or after the step, whichever is larger, and a
    unit more is granted: the reference has fewer roundings, because torch fuses multiplications with additions.
    """

    def check(actual: torch.Tensor, reference: torch.Tensor, exact: Any, before: torch.Tensor) -> None:
        info = torch.finfo(actual.dtype)
        old = before.detach().cpu().double().numpy().astype(np.longdouble)
        unit = np.maximum(np.maximum(abs(exact), abs(old)), info.tiny) * np.longdouble(info.eps)

        def error(x: torch.Tensor) -> float:
            assert x.dtype == actual.dtype
            value = x.detach().cpu().double().numpy().astype(np.longdouble)
            same = (value == exact) | (np.isnan(value) & np.isnan(exact))
            return float(np.where(same, 0, abs(value - exact) / unit).max(initial=0))

        assert error(actual) <= 2 * error(reference) + 1

    return check
