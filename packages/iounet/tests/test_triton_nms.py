"""Suppression in Triton: interpreted beside the definition, on a GPU if marked, and the code that it becomes."""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
import torch

from iounet import _ops, _reference_nms

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

triton = pytest.importorskip("triton", reason="there is no Triton here")
pytest.importorskip("numpy", reason="Triton's interpreter needs NumPy")

from iounet import _triton_nms  # noqa: E402

NAN, INF = float("nan"), float("inf")
FLOAT32, FLOAT64 = torch.float32, torch.float64
LINEAR, GAUSSIAN = range(2)


def scene(n: int, dtype: torch.dtype = FLOAT32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes of which about one in five is kept."""
    generator = torch.Generator().manual_seed(seed)
    at = torch.randint(n // 8 + 1, (n,), generator=generator)
    centre = 300 * torch.rand(n // 8 + 1, 2, generator=generator)[at] + 5 * torch.randn(n, 2, generator=generator)
    half = 20 + 20 * torch.rand(n, 2, generator=generator)
    return torch.cat((centre - half, centre + half), 1).to(dtype), torch.rand(n, generator=generator).to(dtype)


def on(device: torch.device, *arguments: Any) -> tuple[Any, ...]:
    return tuple(x.to(device) if isinstance(x, torch.Tensor) else x for x in arguments)


def owners(device: torch.device, *arguments: Any) -> tuple[list[int], list[int]]:
    return _triton_nms.nms_owner(*on(device, *arguments)).tolist(), _reference_nms.nms_owner(*arguments).tolist()


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 200])
@pytest.mark.parametrize("classes", [None, 3])
def test_owners_are_those_of_the_definition(device, n, classes):
    boxes, key = scene(n)
    labels = None if classes is None else (torch.arange(n) % classes - 1) * 10**6
    actual, expected = owners(device, boxes, key, labels, 0.4)
    assert actual == expected
    assert n < 63 or 5 < sum(i == j for i, j in enumerate(actual)) < n - 5


@pytest.mark.parametrize("dtypes", [(FLOAT64, FLOAT32), (FLOAT32, FLOAT64), (torch.bfloat16, torch.float16)])
def test_owners_of_any_dtypes_are_those_of_the_definition(device, dtypes):
    boxes, key = scene(70)
    actual, expected = owners(device, boxes.to(dtypes[0]), key.to(dtypes[1]), torch.arange(70).int() % 2, 0.5)
    assert actual == expected


def test_a_chain_through_many_tiles_ends_where_the_definition_has_it(device):
    """Each box would remove the next, and is itself removed or not: every tile depends on the one before."""
    low = 3 * torch.arange(140.0)
    boxes = torch.stack((low, torch.zeros(140), low + 10, torch.full((140,), 10.0)), 1)
    actual, expected = owners(device, boxes, -low, None, 0.5)
    assert actual == expected == [i - i % 2 for i in range(140)]


def test_ties_and_what_is_no_number_and_no_box(device):
    boxes, key = scene(66)
    boxes, key = boxes.round(), (4 * key).round() / 4
    key[[3, 40]], key[5], key[6] = NAN, INF, -0.0
    boxes[3, 0], boxes[7, 3], boxes[8, 2], boxes[9, 2:] = NAN, NAN, INF, boxes[9, :2]
    actual, expected = owners(device, boxes, key, None, 0.3)
    assert actual == expected
    assert [actual[i] for i in (3, 7, 8, 9)] == [3, 7, 8, 9]
    arguments = boxes, key, None, 0.3, 0.5, 1e-3, LINEAR
    actual, expected = _triton_nms.soft_nms_order(*on(device, *arguments)), _reference_nms.soft_nms_order(*arguments)
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x.cpu(), y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("thr", [0.3, 0.5, 0.7, 1.0])
def test_ratios_at_the_threshold_are_on_the_side_where_the_definition_has_them(device, thr):
    nearest = torch.tensor(1000 * thr).view(torch.int32) + torch.arange(-4, 5, dtype=torch.int32)
    width = torch.cat((torch.tensor([1000.0]), nearest.view(FLOAT32)))
    boxes = torch.stack((torch.zeros(10), torch.zeros(10), width, torch.ones(10)), 1)
    pairs = torch.stack((boxes[:1].expand(9, 4), boxes[1:]), 1).flatten(0, 1)
    labels = torch.arange(9).repeat_interleave(2)
    actual, expected = owners(device, pairs, torch.arange(18.0).neg(), labels, thr)
    assert actual == expected
    assert thr == 1 or 9 < len(set(actual)) < 18


@pytest.mark.parametrize("n", [0, 1, 40])
@pytest.mark.parametrize("classes", [None, 2])
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_linear_soft_nms_is_that_of_the_definition_bit_for_bit(device, n, classes, dtype):
    labels = None if classes is None else torch.arange(n) % classes
    arguments = *scene(n, dtype), labels, 0.3, 0.5, 0.2, LINEAR
    actual, expected = _triton_nms.soft_nms_order(*on(device, *arguments)), _reference_nms.soft_nms_order(*arguments)
    assert all(torch.equal(x.cpu(), y) for x, y in zip(actual, expected, strict=True))
    assert n < 40 or -INF in actual[1].tolist()


def by_box(function: Callable[..., Any], boxes: Tensor, scores: Tensor) -> Tensor:
    order, new_scores = function(boxes, scores, None, 0.3, 0.5, 0.0, GAUSSIAN)
    return torch.empty_like(new_scores).scatter_(0, order, new_scores).cpu()


def test_gaussian_soft_nms_rounds_no_worse_than_the_definition(device, assert_within_twice):
    boxes, scores = scene(60)
    exact = by_box(_reference_nms.soft_nms_order, boxes.double(), scores.double())
    reference = by_box(_reference_nms.soft_nms_order, boxes, scores)
    assert (exact < 0.9 * scores).sum() > 30
    assert_within_twice(by_box(_triton_nms.soft_nms_order, *on(device, boxes, scores)), reference, exact)


def test_soft_nms_goes_through_more_boxes_than_it_holds(device, monkeypatch):
    if device.type == "cpu":
        monkeypatch.setattr(_triton_nms, "CHUNK", triton.language.constexpr(16))  # interpreted, 1024 take long
    n = 40 if device.type == "cpu" else 2500
    boxes, scores = scene(n)
    arguments = boxes, scores, None, 0.3, 0.5, 1e-3, LINEAR
    actual, expected = _triton_nms.soft_nms_order(*on(device, *arguments)), _reference_nms.soft_nms_order(*arguments)
    assert all(torch.equal(x.cpu(), y) for x, y in zip(actual, expected, strict=True))


def test_memory_that_is_not_contiguous_is_read_as_it_is(device):
    boxes, scores = scene(40)
    strided = boxes.t().contiguous().t(), torch.stack((scores, -scores), 1)[:, 0], (torch.arange(80) % 2)[::2]
    actual, expected = owners(device, *strided, 0.4)
    assert actual == expected
    soft = _triton_nms.soft_nms_order(*on(device, *strided, 0.3, 0.5, 1e-3, LINEAR))
    contiguous = _triton_nms.soft_nms_order(*on(device, *(x.contiguous() for x in strided), 0.3, 0.5, 1e-3, LINEAR))
    assert all(map(torch.equal, soft, contiguous))


# --- compiled code --------------------------------------------------------------------------------------------------

COMPILE = r"""
import torch
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature
from iounet import _triton_nms

types = {"p_labels": "*i64", "p_words": "*i64", "p_within": "*i64", "p_kept": "*i64", "p_owner": "*i32",
         "p_ranks": "*i32", "threshold": "i64", "sigma": "i64", "min_score": "i64"}

def compiled(name, **constants):
    return compile_kernel(getattr(_triton_nms, name), types, _triton_nms.OPTIONS, **constants)

bind = create_function_from_signature(
    _triton_nms._soften.signature, _triton_nms._soften.params, make_backend(TARGET)
)

def key(n, threshold, sigma, min_score):
    tensors = torch.zeros(n, 4), None, torch.zeros(n), torch.zeros(n, dtype=torch.int32), torch.zeros(n)
    numbers = map(_triton_nms._bits, (threshold, sigma, min_score))
    return str(bind(*tensors, n, *numbers, GAUSSIAN=False, **_triton_nms.OPTIONS)[1:])

json.dump({
    "keys": [key(1, 0.0, 1.0, 0.0), key(16, 0.3, 0.5, 1e-3), key(1000, 1.0, 16.0, -1.0)],
    "overlaps": compiled("_overlaps"),
    "overlaps, one class": compiled("_overlaps", p_labels=None),
    "sweep": compiled("_sweep"),
    "linear": compiled("_soften", GAUSSIAN=False),
    "gaussian": compiled("_soften", GAUSSIAN=True),
}, sys.stdout)
"""


@pytest.fixture(scope="module")
def compiled(compiled_for_sm_90: Callable[[str], Any]) -> Any:
    return compiled_for_sm_90(COMPILE)


@pytest.fixture(scope="module")
def code(compiled: Any) -> dict[str, Any]:
    return {name: each for name, each in compiled.items() if name != "keys"}


def test_new_numbers_and_another_number_of_boxes_compile_nothing(compiled):
    assert len(set(compiled["keys"])) == 1


def test_nothing_spills(code):
    assert {name: (each["STACK"], each["LOCAL"]) for name, each in code.items() if each["STACK"] or each["LOCAL"]} == {}


def test_the_iou_has_no_fused_product_and_no_approximate_quotient(code):
    for name in ("overlaps", "overlaps, one class", "linear", "gaussian"):
        ptx = code[name]["ptx"]
        assert re.search(r"div\.rn\.f32", ptx)
        assert not re.search(r"fma\.rn\.f32|div\.full|div\.approx", ptx)


def test_there_are_no_atomics(code):
    assert [name for name, each in code.items() if re.search(r"\batom\.|\bred\.", each["ptx"])] == []


# --- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available() or not isinstance(_triton_nms._sweep, triton.JITFunction):
        pytest.skip("this needs a CUDA device, and TRITON_INTERPRET=0")
    return torch.device("cuda")


def test_cuda_tensors_are_served_by_these_kernels():
    assert "cuda" in _ops.KERNELS["nms_owner"]
    assert "cuda" in _ops.KERNELS["soft_nms_order"]


def test_kernels_start_on_the_device_of_their_tensors(monkeypatch):
    devices = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: (devices.append(device), nullcontext())[1])
    for name in ("nms_owner", "soft_nms_order"):
        options = (0.3,) if name == "nms_owner" else (0.3, 0.5, 1e-3, LINEAR)
        _ops._launcher("._triton_nms", name)(*scene(0), None, *options)
    assert devices == [torch.device("cpu")] * 2


@pytest.mark.gpu
def test_operators_give_the_results_of_the_cpu_and_wait_for_nothing(cuda):
    boxes, scores = scene(5000)
    labels = torch.arange(5000) % 7
    arguments = on(cuda, boxes, scores, labels)
    _ops.nms_owner(*arguments, 0.5)
    _ops.soft_nms_order(*arguments, 0.3, 0.5, 1e-3, LINEAR)  # compiled, and memory reserved
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        owner = _ops.nms_owner(*arguments, 0.5)
        soft = _ops.soft_nms_order(*arguments, 0.3, 0.5, 1e-3, LINEAR)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert owner.tolist() == _ops.nms_owner(boxes, scores, labels, 0.5).tolist()
    expected = _ops.soft_nms_order(boxes, scores, labels, 0.3, 0.5, 1e-3, LINEAR)
    assert all(torch.equal(x.cpu(), y) for x, y in zip(soft, expected, strict=True))


@pytest.mark.gpu
def test_a_replayed_graph_goes_with_the_boxes_of_the_moment(cuda):
    boxes, scores = on(cuda, *scene(300))
    warm_up = torch.cuda.Stream()
    with torch.cuda.stream(warm_up):
        _ops.nms_owner(boxes, scores, None, 0.5)
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        owner = _ops.nms_owner(boxes, scores, None, 0.5)
    for seed in (1, 2):
        new_boxes, new_scores = scene(300, seed=seed)
        boxes.copy_(new_boxes)
        scores.copy_(new_scores)
        graph.replay()
        assert owner.tolist() == _ops.nms_owner(new_boxes, new_scores, None, 0.5).tolist()
