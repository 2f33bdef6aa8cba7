"""Where Triton is interpreted, where data lies, and the only tolerance of the kernels' tests: the 2x rule."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Read when triton is imported. A machine with a GPU compiles the kernels and tests them there.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of the data sets, in DATA_DIR or beside the checkout: tests that need it skip without."""
    places = [Path(os.environ["DATA_DIR"])] if "DATA_DIR" in os.environ else []
    places += [parent / "shared" / "data" for parent in Path(__file__).resolve().parents]
    for place in places:
        if (place / "cluster").is_dir():
            return place
    pytest.skip("needs the data sets: set DATA_DIR to the folder that holds `cluster`")


@pytest.fixture(scope="session")
def assert_within_twice() -> Callable[..., None]:
    """The 2x rule: the largest error of a result is at most twice that of the reference in the same precision.

    Errors are against float64, in units of the last place of an element, and a unit more is granted: the reference has
    fewer roundings where torch fuses multiplications with additions. `size` is the magnitude that rounding errors are
    relative to where terms cancel: that of the terms.
    """

    def check(
        actual: torch.Tensor, reference: torch.Tensor, exact: torch.Tensor, size: torch.Tensor | None = None
    ) -> None:
        assert actual.dtype == reference.dtype
        assert exact.dtype == torch.float64
        info = torch.finfo(actual.dtype)
        size = exact.abs() if size is None else torch.maximum(exact.abs(), size.double().abs())
        unit = size.clamp(min=info.tiny) * info.eps

        def error(x: torch.Tensor) -> float:
            value = x.detach().cpu().double()
            same = (value == exact) | (value.isnan() & exact.isnan())
            wrong = torch.where(same, 0.0, (value - exact).abs() / unit)
            return wrong.amax().item() if wrong.numel() else 0.0

        assert error(actual) <= 2 * error(reference) + 1

    return check


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where Triton's kernels run: on the CPU if they are interpreted, else on a GPU."""
    interpreted = os.environ["TRITON_INTERPRET"] == "1"
    if request.param == "cpu" and not interpreted:
        pytest.skip("the kernels are not interpreted")
    if request.param == "cuda" and (interpreted or not torch.cuda.is_available()):
        pytest.skip("this needs a CUDA device, and TRITON_INTERPRET=0")
    with pytest.importorskip("numpy", reason="Triton's interpreter needs NumPy").errstate(all="ignore"):
        yield torch.device(request.param)


COMPILE = r"""
import json, os, re, subprocess, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGET = GPUTarget("cuda", 90, 32)
tools = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
if not os.path.exists(os.path.join(tools, "ptxas")):
    sys.exit(77)

def compile_kernel(kernel, types, options, **constants):
    signature = {p.name: types.get(p.name, p.annotation_type or "*fp64") for p in kernel.params}
    signature |= dict.fromkeys(constants, "constexpr")
    code = triton.compile(ASTSource(kernel, signature, constants, {}), TARGET, options)
    with open("kernel.cubin", "wb") as file:
        file.write(code.asm["cubin"])
    command = [os.path.join(tools, "cuobjdump"), "-res-usage", "kernel.cubin"]
    used = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {"ptx": code.asm["ptx"], **{k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", used)}}
"""


@pytest.fixture(scope="session")
def compiled_for_sm_90(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What a script tells of the code that Triton makes for an H100 or H200, which needs none. The script has
    `compile_kernel(kernel, types of pointers, options, **constants)` and writes JSON to its output."""

    def run(script: str) -> Any:
        folder = tmp_path_factory.mktemp("triton")
        environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
        command = [sys.executable, "-c", COMPILE + script]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode == 77:
            pytest.skip("Triton came without ptxas")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
