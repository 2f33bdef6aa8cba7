"""What Triton compiles for an H100 or H200, which needs none: by a script that interprets nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest

if not find_spec("triton"):  # importing it here would fix for all tests that nothing is interpreted
    pytest.skip("there is no Triton here", allow_module_level=True)

SCRIPT = r"""
import json, os, re, subprocess, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from imgskipgram.gpu import _triton as steps, _triton_draws as samples

tools = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
if not os.path.exists(os.path.join(tools, "ptxas")):
    sys.exit(77)
TYPES = {
    **dict.fromkeys("p_ids p_keep p_threshold p_alias p_image_ids".split(), "*u32"),
    **dict.fromkeys("p_offsets p_image_ptr".split(), "*i64"),
    **dict.fromkeys("p_v p_u p_z p_alpha".split(), "*fp32"),
    "p_loss": "*fp64",
}

def compiled(kernel, options=None, **constants):
    signature = {p.name: p.annotation_type or TYPES.get(p.name, "*i32") for p in kernel.params}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    options = {**samples.OPTIONS, **(options or {})}
    code = triton.compile(ASTSource(kernel, signature, constants, aligned), GPUTarget("cuda", 90, 32), options)
    with open("kernel.cubin", "wb") as file:
        file.write(code.asm["cubin"])
    command = [os.path.join(tools, "cuobjdump"), "-res-usage", "kernel.cubin"]
    used = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {"ptx": code.asm["ptx"], **{k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", used)}}

def pairs(negative, columns):
    k, d, warps = steps.tile(1 + negative, columns, "negative")
    options = {"num_warps": warps, "maxnreg": steps.REGISTERS if warps == 1 else None}
    return compiled(steps._pairs_kernel, options, NEGATIVE=negative, K=k, S=columns, D=d, RUN=steps.RUN)

def image(objective):
    k, d, warps = steps.tile(6, 112, "image_negative")
    constants = dict(OBJECTIVE=objective, NEGATIVE=5, K=k, S=112, D=d, PAIRS=steps.PAIRS)
    return compiled(steps._image_kernel, {"num_warps": warps}, **constants)

json.dump({
    "pairs": pairs(5, 112), "pairs of 304": pairs(5, 304),
    **{objective: image(objective) for objective in ("nce", "margin", "infonce")},
    "select": compiled(samples._select_kernel, BLOCK=256),
    "compact": compiled(samples._compact_kernel, NEGATIVE=5, K=8, BLOCK=32),
    "pictures": compiled(samples._pictures_kernel, NEGATIVE=5, K=8, BLOCK=32),
}, sys.stdout)
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("Triton came without ptxas")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_kernel_spills(code):
    """But for one pointer, by some versions of Triton, where a row fills four warps."""
    spilled = {name: used["STACK"] + used["LOCAL"] for name, used in code.items()}
    assert spilled.pop("pairs of 304") <= 8
    assert not any(spilled.values()), spilled


def test_sixteen_programs_fit_a_multiprocessor(code):
    assert code["pairs"]["REG"] <= 128


def test_rows_are_read_past_the_first_cache_and_added_to_by_four_numbers_at_once(code):
    ptx = code["pairs"]["ptx"]
    added = re.findall(r"\b(?:red|atom)\.(\S*f32)", ptx)
    assert added == ["global.gpu.relaxed.add.v4.f32"] * 9  # eight output rows and one input row
    assert ptx.count("ld.global.cg.v4") == 10  # the same, and the first input row
    assert "st.global.v4" not in ptx
