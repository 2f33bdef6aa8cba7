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
    signature = {p.name: p.annotation_type or types.get(p.name, "*fp32" if p.name.startswith("p_") else "i32")
                 for p in kernel.params}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, k in enumerate(kernel.arg_names) if signature[k][0] == "*"}
    code = triton.compile(ASTSource(kernel, signature, constants, aligned), TARGET, options)
    with open("kernel.cubin", "wb") as file:
        file.write(code.asm["cubin"])
    command = [os.path.join(tools, "cuobjdump"), "-res-usage", "kernel.cubin"]
    used = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {"ptx": code.asm["ptx"], **{k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", used)}}
"""


@pytest.fixture(scope="session")
def compiled_for_sm_90(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What a script tells of the code that Triton makes for an H100 or H200, which needs none. The script has
    `compile_kernel(kernel, types of arguments, options, **constants)` and writes JSON to its output."""

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
