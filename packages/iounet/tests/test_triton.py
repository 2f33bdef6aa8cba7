"""Pooling in Triton: interpreted beside the reference, on a GPU if marked, and the code that it becomes."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch

from iounet import _ops, _reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

pytest.importorskip("triton", reason="there is no Triton here")
pytest.importorskip("numpy", reason="Triton's interpreter needs NumPy")

from iounet import _triton

NAMES = ("prroi_pool", "prroi_pool_grad_input", "prroi_pool_grad_boxes")
NCHW, LAST = torch.contiguous_format, torch.channels_last


def problem(channels: int = 5, size: tuple[int, int] = (17, 21), bins: tuple[int, int] = (3, 2)) -> tuple[Tensor, ...]:
    """A map of two images, boxes of every kind, and a gradient: in float64."""
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(2, channels, *size, generator=generator, dtype=torch.float64)
    corner = torch.rand(14, 2, generator=generator, dtype=torch.float64) * 40 - 8
    corners = torch.cat((corner, corner + 1 + 20 * torch.rand(14, 2, generator=generator, dtype=torch.float64)), 1)
    boxes = torch.cat((torch.arange(14)[:, None] % 2, corners), 1)
    boxes[0, 1:] = torch.tensor([-1, -0.5, 2.5, 3])  # over the corner, so that the smallest map has one
    boxes[1, 3:] = boxes[1, 1:3] + 1e-3  # tiny
    boxes[2, 3:] = boxes[2, 1:3]  # empty
    boxes[3, 3:] = boxes[3, 1:3] - 4  # inverted
    boxes[4, 1:] = torch.tensor([-1e30, -5, 1e30, 8])
    boxes[5, 1:] = torch.tensor([-90, -90, -80, -80])  # off the map
    boxes[6, 1:] = torch.tensor([4, 6, 8, 10])  # edges on pixels
    boxes[7, 2] = float("nan")
    boxes[8, 4] = float("inf")
    boxes[9, 0] = 2  # no such image
    boxes[10, 0] = 0.5
    return input, boxes, torch.randn(14, channels, *bins, generator=generator, dtype=torch.float64)


def calls(input: Tensor, boxes: Tensor, grad: Tensor, args: tuple[Any, ...]) -> dict[str, tuple[Any, ...]]:
    last = input.is_contiguous(memory_format=LAST)
    return {
        "prroi_pool": (input, boxes, *grad.shape[2:], *args),
        "prroi_pool_grad_input": (grad, boxes, input.shape[0], *input.shape[2:], last, *args),
        "prroi_pool_grad_boxes": (grad, input, boxes, *args),
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("dtype", "memory_format"),
    [
        (torch.float64, NCHW),
        (torch.float32, NCHW),
        (torch.float32, LAST),
        (torch.bfloat16, LAST),
        (torch.float16, NCHW),
    ],
)
@pytest.mark.parametrize(("border", "aligned", "limit"), [(False,) * 3, (True, False, True), (False, True, True)])
def test_errors_are_within_twice_those_of_the_reference(
    name, dtype, memory_format, border, aligned, limit, device, assert_within_twice
):
    input, boxes, grad = problem()
    input, grad = (x.to(dtype).contiguous(memory_format=memory_format) for x in (input, grad))
    args = 0.5, border, aligned, limit
    reference = getattr(_reference, name)(*calls(input, boxes.float(), grad, args)[name])
    exact = getattr(_reference, name)(*calls(input.double(), boxes.float(), grad.double(), args)[name])
    here = calls(input.to(device), boxes.float().to(device), grad.to(device), args)[name]
    result = getattr(_triton, name)(*here).cpu()
    assert result.stride() == reference.stride()
    assert_within_twice(result, reference, exact.double())


@pytest.mark.parametrize(
    ("channels", "size", "bins"), [(1, (1, 1), (1, 1)), (33, (3, 18), (7, 7)), (3, (40, 5), (14, 2))]
)
def test_any_size_is_pooled(channels, size, bins, device, assert_within_twice):
    input, boxes, grad = problem(channels, size, bins)
    args = 0.5, False, False, False
    single = calls(input.float().to(device), boxes.float().to(device), grad.float().to(device), args)
    for name, double in calls(input.float().double(), boxes.float(), grad.float().double(), args).items():
        reference = getattr(_reference, name)(*(x.cpu() if torch.is_tensor(x) else x for x in single[name]))
        exact = getattr(_reference, name)(*double)
        assert_within_twice(getattr(_triton, name)(*single[name]).cpu(), reference, exact.double())


@pytest.mark.parametrize("name", NAMES)
def test_strided_tensors_are_read_in_place(name, device):
    input, boxes, grad = (x.to(device) for x in problem())
    args = 0.5, False, False, False
    wide = torch.empty(*input.shape[:-1], 2 * input.shape[-1], dtype=input.dtype, device=device)
    strided = wide[..., ::2].copy_(input), boxes.t().contiguous().t(), grad.expand_as(grad).mT.contiguous().mT
    expected = getattr(_triton, name)(*calls(input, boxes, grad, args)[name])
    torch.testing.assert_close(
        getattr(_triton, name)(*calls(*strided, args)[name]), expected, rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize(("k", "n"), [(0, 2), (3, 0)])
def test_nothing_is_pooled_from_no_boxes_or_no_images(k, n, device):
    input, boxes, grad = (x.to(device) for x in problem())
    for name, arguments in calls(input[:n], boxes[:k], grad[:k], (0.5, False, False, False)).items():
        expected = getattr(_reference, name)(*arguments)
        result = getattr(_triton, name)(*arguments)
        torch.testing.assert_close(result, expected, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_cuda_tensors_take_the_kernels_and_the_same_bits_come_out_every_time(name, monkeypatch):
    if not torch.cuda.is_available() or os.environ["TRITON_INTERPRET"] == "1":
        pytest.skip("this needs a CUDA device and TRITON_INTERPRET=0")
    seen: list[str] = []
    launch = getattr(_triton, name)
    monkeypatch.setattr(_triton, name, lambda *a: (seen.append(name), launch(*a))[1])
    given = calls(*(x.float().cuda() for x in problem()), (0.5, False, False, False))[name]
    first, second = (getattr(torch.ops.iounet, name)(*given) for _ in range(2))
    assert seen == [name] * 2
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


def test_cuda_has_kernels_where_triton_is_installed():
    assert all("cuda" in _ops.KERNELS[name] for name in NAMES)


COMPILE = r"""
from iounet import _triton

types = {"p_boxes": "*fp32", "p_spans": "*i32", "p_list": "*i32", "p_count": "*i32", "scale": "fp32"}
launch = {"num_warps": _triton.WARPS, "enable_fp_fusion": True}
bins = {"PH": 7, "PW": 7, "ROWS": 8, "COLS": 8}
options = {"BORDER": False, "ALIGNED": False, "LIMIT": False}
sums, pixels = _triton.BINS_PER_PROGRAM // 64, _triton.PIXELS_PER_PROGRAM // 256
kernels = {
    "tabulate": (_triton._tabulate, {"SLOPES": True, **bins, **options}),
    "pool, channels_last": (_triton._pool, {"C": sums, "s_c": 1, "o_c": 1, **bins}),
    "pool": (_triton._pool, {"C": sums, "s_w": 1, "o_w": 1, **bins}),
    "list": (_triton._list_boxes, {}),
    "gather, channels_last": (_triton._gather, {"C": pixels, "g_c": 1, "o_c": 1, **bins}),
    "gather": (_triton._gather, {"C": pixels, "g_w": 1, "o_w": 1, **bins}),
    "edges, channels_last": (_triton._edge_gradients, {"C": sums, "s_c": 1, "g_c": 1, **bins}),
    "edges": (_triton._edge_gradients, {"C": sums, "s_w": 1, "g_w": 1, **bins}),
}
json.dump({name: compile_kernel(k, types, launch, **values) for name, (k, values) in kernels.items()}, sys.stdout)
"""


@pytest.fixture(scope="module")
def code(compiled_for_sm_90: Callable[[str], Any]) -> Any:
    return compiled_for_sm_90(COMPILE)


def test_at_most_two_registers_spill(code):
    """None with Triton 3.9, two of one kernel with 3.6."""
    assert [name for name, each in code.items() if each["STACK"] > 8 or each["LOCAL"]] == []


def test_only_the_tables_are_made_in_double_precision_and_their_scale_comes_in_it(code):
    """Triton hands floats over in float32 unless the kernel says otherwise; its interpreter does not."""
    assert {name for name, each in code.items() if ".f64" in each["ptx"]} == {"tabulate"}
    assert re.search(r"\.param \.[bf]64 _tabulate_param_10\b", code["tabulate"]["ptx"])


def test_there_are_no_atomics_and_no_reduced_precision(code):
    assert [name for name, each in code.items() if re.search(r"\batom\.|\bred\.|tf32", each["ptx"])] == []
