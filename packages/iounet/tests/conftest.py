"""Where Triton is interpreted, where data lies, and the only tolerance of the kernels' tests: the 2x rule."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

# Read when triton is imported. A machine with a GPU compiles the kernels and tests them there.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")


@pytest.fixture(scope="session")
def detection_data() -> Path:
    """The folder `detection` of the data sets, in DATA_DIR or beside the checkout: tests that need it skip without."""
    places = [Path(os.environ["DATA_DIR"])] if "DATA_DIR" in os.environ else []
    places += [parent / "shared" / "data" for parent in Path(__file__).resolve().parents]
    for place in places:
        if (place / "detection").is_dir():
            return place / "detection"
    pytest.skip("needs the detection data sets: set DATA_DIR to the folder that holds `detection`")


@pytest.fixture(scope="session")
def assert_within_twice() -> Callable[..., None]:
    """The 2x rule: the largest error of a result is at most twice that of the reference in the same precision.

    Errors are against float64, relative to the largest value; half a unit in the last place of it is granted more,
    because a reference that happens to be exact leaves no room for a last rounding. For float64 there is no such truth,
    only sums in another order: 32 units.
    """

    def check(actual: torch.Tensor, reference: torch.Tensor, exact: torch.Tensor) -> None:
        assert actual.dtype == reference.dtype
        assert exact.dtype == torch.float64
        assert torch.equal(actual.isnan(), exact.isnan())
        units = 32 if actual.dtype == torch.float64 else 0.5
        scale = exact.nan_to_num().abs().amax().item() if exact.numel() else 0.0

        def error(x: torch.Tensor) -> float:
            return (x.double() - exact).nan_to_num().abs().amax().item() if x.numel() else 0.0

        assert error(actual) <= 2 * error(reference) + units * torch.finfo(actual.dtype).eps * scale

    return check
