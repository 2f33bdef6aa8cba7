"""AdaMod as a function of tensor lists, and the report of `python -m adamod`."""

from __future__ import annotations

import math
import platform
import re
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import adamod
from adamod import AdaMod, _ops
from adamod.functional import adamod as step_

if TYPE_CHECKING:
    from pathlib import Path

WITH_KERNEL = "cpu" in _ops.KERNELS
needs_kernel = pytest.mark.skipif(not WITH_KERNEL, reason="the package was built without its C++ kernels")
PATHS = {
    "operator": {"fused": True},
    "foreach": {"foreach": True, "fused": False},
    "loop": {"foreach": False, "fused": False},
}
EVERY_PATH = pytest.mark.parametrize(
    "path", [pytest.param(name, marks=needs_kernel) if name == "operator" else name for name in PATHS]
)
LISTS = ("params", "grads", "exp_avgs", "exp_avg_sqs", "exp_avg_lrs", "state_steps")
NUMBERS = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "beta3": 0.9, "eps": 1e-3, "weight_decay": 0.1}
SHAPES = [(70, 70), (5,), (), (0,)]


def lists(
    *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, state: torch.dtype | None = None
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    wide = torch.promote_types(dtype, torch.float32)

    def random() -> list[Tensor]:
        return [torch.randn(shape, generator=generator, dtype=wide).to(dtype) for shape in shapes]

    def zeros() -> list[Tensor]:
        return [torch.zeros(shape, dtype=state or dtype) for shape in shapes]

    steps = [torch.tensor(0.0) for _ in shapes]
    return dict(zip(LISTS, (random(), random(), zeros(), zeros(), zeros(), steps), strict=True))


def copied(columns: dict[str, Any]) -> dict[str, Any]:
    return {name: [x.clone() for x in column] for name, column in columns.items()}


def assert_equal(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, column in expected.items():
        for x, y in zip(actual[name], column, strict=True):
            torch.testing.assert_close(
                x, y, rtol=0, atol=0, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
            )


@EVERY_PATH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"variant": "paper"},
        {"bounded_decay": True},
        {"skip_unseen": True},
        {"maximize": True},
        {"seed": 5},
        {"seed": None},
    ],
    ids=str,
)
def test_it_is_the_optimizers_step_bit_for_bit(path: str, dtype: torch.dtype, flags: dict[str, Any]):
    columns = lists(*SHAPES, dtype=dtype, state=torch.float32 if dtype == torch.bfloat16 else None)
    params = [nn.Parameter(p.clone()) for p in columns["params"]]
    options = {key: value for key, value in flags.items() if key != "seed"}
    optimizer = AdaMod(
        params, lr=1e-2, betas=(0.9, 0.99), beta3=0.9, eps=1e-3, weight_decay=0.1, **options, **PATHS[path]
    )
    optimizer.param_groups[0]["seed"] = flags.get("seed", 0)
    for t in range(1, 4):
        for k, p in enumerate(params):
            columns["grads"][k] = p.grad = columns["grads"][k] / t
        before = [g.clone() for g in columns["grads"]]
        step_(**columns, **NUMBERS, **flags, **PATHS[path])
        optimizer.step()
        assert_equal({"grads": columns["grads"]}, {"grads": before})
    expected = {
        "params": [p.detach() for p in params],
        **{f"{key}s": [optimizer.state[p][key] for p in params] for key in ("exp_avg", "exp_avg_sq", "exp_avg_lr")},
        "state_steps": [optimizer.state[p]["step"] for p in params],
    }
    assert_equal(columns, expected)
    assert [step.item() for step in columns["state_steps"]] == [3] * 4


def quantised(*shapes: tuple[int, ...]) -> tuple[dict[str, Any], list[Tensor]]:
    columns = lists(*shapes)
    blocks = [-(-math.prod(shape) // 256) for shape in shapes]
    scales = [torch.zeros(n, dtype=torch.int16) for n in blocks for _ in range(3)]
    for name in ("exp_avgs", "exp_avg_sqs", "exp_avg_lrs"):
        columns[name] = [torch.zeros(shape, dtype=torch.uint8) for shape in shapes]
    return columns, scales


@pytest.mark.parametrize("path", [pytest.param("operator", marks=needs_kernel), "loop"])
def test_8_bit_states_are_given_with_their_scales(path: str):
    """As those of the optimizer, but also below 4096 elements."""
    columns, scales = quantised((70, 70), (5,), (300,), (0,))
    params = [nn.Parameter(p.clone()) for p in columns["params"][:1]]
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "beta3": 0.9, "eps": 1e-3, "weight_decay": 0.1}
    optimizer = AdaMod(params, **options, state_dtype="int8", **PATHS[path])
    params[0].grad = columns["grads"][0]
    for _ in range(3):
        step_(**columns, **NUMBERS, scales=scales, **PATHS[path])
        optimizer.step()
    assert torch.equal(columns["params"][0], params[0].detach())
    state = optimizer.state[params[0]]
    for k, key in enumerate(("exp_avg", "exp_avg_sq", "exp_avg_lr")):
        assert torch.equal(columns[f"{key}s"][0], state[key])
        assert torch.equal(scales[k], state[f"{key}_scale"])
    assert scales[5].any()
    assert all(p.isfinite().all() for p in columns["params"])


@EVERY_PATH
def test_numbers_may_be_tensors(path: str):
    floats, tensors = lists(*SHAPES), lists(*SHAPES)
    options = PATHS[path] | ({"capturable": True} if path == "foreach" else {})
    names = ("lr", "beta1", "beta2", "beta3")
    numbers = {**NUMBERS, **{name: torch.tensor([NUMBERS[name]], dtype=torch.float64) for name in names}}
    for _ in range(3):
        step_(**floats, **NUMBERS, **PATHS[path])
        step_(**tensors, **numbers, **options)
    for name in LISTS:
        for x, y in zip(floats[name], tensors[name], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-8)


@EVERY_PATH
def test_steps_are_advanced_each_from_its_own(path: str):
    columns = lists((5,), (5,), (5,))
    columns["state_steps"] = [torch.tensor(0.0), torch.tensor([7.0]), torch.tensor(3, dtype=torch.float64)]
    step_(**columns, **NUMBERS, **PATHS[path])
    assert [step.item() for step in columns["state_steps"]] == [1, 8, 4]
    assert columns["state_steps"][1].shape == (1,)
    etas = [s[0].item() for s in columns["exp_avg_lrs"]]
    assert len(set(etas)) == 3


@EVERY_PATH
def test_empty_lists_are_no_work(path: str):
    step_(*[[] for _ in LISTS], **NUMBERS, **PATHS[path])


@EVERY_PATH
def test_a_conjugated_gradient_is_read_right(path: str):
    one, other = (lists((5,), dtype=torch.complex64) for _ in range(2))
    one["grads"][0] = other["grads"][0].conj()
    other["grads"][0] = one["grads"][0].resolve_conj()
    step_(**one, **NUMBERS, **PATHS[path])
    step_(**other, **NUMBERS, **PATHS[path])
    assert_equal({"params": one["params"]}, {"params": other["params"]})


@needs_kernel
def test_gradients_are_divided_by_grad_scale():
    one, other = lists(*SHAPES), lists(*SHAPES)
    one["grads"] = [g * 1024 for g in one["grads"]]
    scaled = copied(one)["grads"]
    step_(**one, **NUMBERS, fused=True, grad_scale=torch.tensor(1024.0), found_inf=torch.tensor(0.0))
    step_(**other, **NUMBERS, fused=True)
    assert_equal({"grads": one["grads"]}, {"grads": scaled})
    del one["grads"], other["grads"]
    assert_equal(one, other)


@needs_kernel
@pytest.mark.parametrize("found_inf", [torch.tensor(1.0), torch.tensor([2.0])], ids=str)
def test_found_inf_leaves_everything_as_it_is(found_inf: Tensor):
    columns = lists(*SHAPES)
    step_(**columns, **NUMBERS, fused=True)
    before = copied(columns)
    step_(**columns, **NUMBERS, fused=True, found_inf=found_inf)
    assert_equal(columns, before)


def test_differentiable_rounds_to_the_nearest():
    one, other = (lists((4000,), dtype=torch.bfloat16, state=torch.float32) for _ in range(2))
    step_(**one, **NUMBERS, differentiable=True, seed=0)
    step_(**other, **NUMBERS, foreach=False, fused=False, seed=None)
    assert_equal(one, other)


# --- refusals -------------------------------------------------------------------------------------------------------


def refused(error: type[Exception], text: str, columns: dict[str, Any], **options: Any) -> None:
    before = copied(columns)
    with pytest.raises(error, match="^" + re.escape(text)):
        step_(**columns, **{**NUMBERS, **options})
    assert_equal(columns, before)


@pytest.mark.parametrize("name", LISTS[1:])
def test_lists_of_unequal_length_are_refused(name: str):
    columns = lists((5,), (4,))
    columns[name] = columns[name][:1]
    refused(ValueError, f"{name} must have one tensor for each of the 2 params, got 1", columns)


@pytest.mark.parametrize("name", LISTS[1:5])
@pytest.mark.parametrize("shape", [(3,), (4, 1), ()])
def test_tensors_of_another_shape_are_refused(name: str, shape: tuple[int, ...]):
    columns = lists((5,), (4,))
    columns[name][1] = torch.zeros(shape)
    refused(ValueError, f"{name}[1] must have the shape (4,) of its parameter, got {shape}", columns)


def test_steps_of_several_elements_are_refused():
    columns = lists((5,), (4,))
    columns["state_steps"][1] = torch.zeros(4)
    refused(ValueError, "state_steps[1] must have the shape () of its parameter, got (4,)", columns)


def test_scales_that_do_not_fit_are_refused():
    columns, scales = quantised((70, 70), (5,))
    text = "scales must have three tensors for each of the 2 params, got 5"
    refused(ValueError, text, columns, scales=scales[:-1])
    text = "scales[0] must have 20 numbers for the uint8 exp_avgs[0], got 0"
    refused(ValueError, text, columns)
    text = "scales[4] must have 1 numbers for the uint8 exp_avg_sqs[1], got 2"
    refused(ValueError, text, columns, scales=[*scales[:4], torch.zeros(2, dtype=torch.int16), scales[5]])


def test_flags_that_exclude_each_other_are_refused():
    text = "`fused` and `foreach` cannot be `True` together."
    refused(RuntimeError, text, lists((5,)), fused=True, foreach=True)
    text = "`fused` does not support `differentiable`"
    refused(RuntimeError, text, lists((5,)), fused=True, differentiable=True)
    refused(ValueError, "variant must be one of ('code', 'paper'), got 'x'", lists((5,)), variant="x")


@pytest.mark.parametrize("flag", ["foreach", "differentiable"])
def test_states_of_low_precision_are_refused_where_they_are_not_served(flag: str):
    columns = lists((5,), state=torch.bfloat16)
    text = "states must be float32 or float64 with foreach=True or differentiable=True, got ['torch.bfloat16']"
    refused(ValueError, text, columns, **{flag: True})


@pytest.mark.parametrize("option", ["grad_scale", "found_inf"])
@pytest.mark.parametrize("path", ["foreach", "loop"])
def test_scaling_without_the_operator_is_refused(option: str, path: str):
    text = "grad_scale and found_inf need the operator: pass fused=True"
    refused(RuntimeError, text, lists((5,)), **{option: torch.tensor(1.0)}, **PATHS[path])


# --- python -m adamod -----------------------------------------------------------------------------------------------


def test_python_m_adamod_tells_versions_and_kernels(tmp_path: Path):
    result = subprocess.run([sys.executable, "-m", "adamod"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines() if line]
    report = {line[0]: line[1] for line in lines[:6]}
    assert report["adamod"] == adamod.__version__
    assert report["torch"] == torch.__version__
    assert report["Python"] == platform.python_version()
    assert (report["triton"] == "not installed") == (find_spec("triton") is None)
    kernels = dict(re.findall(r"^adamod::step_ +(\w+) +(.*)$", result.stdout, re.MULTILINE))
    assert list(kernels) == ["cpu", "cuda", "others"]
    assert kernels["others"] == "reference"
    for device, name in (("cpu", "C++"), ("cuda", "Triton")):
        served = torch._C._dispatch_has_kernel_for_dispatch_key("adamod::step_", device.upper())
        assert (kernels[device] == name) == served
        assert served or kernels[device].startswith("reference (")
