"""Pooling and suppression on a CUDA device: against torchvision, and against the same gradient by atomic additions."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import bench_pooling
import torch
from harness import GPU, Contestant, Context, Race, UnequalError, Versus, Workload, at_least, at_most, within_twice

from iounet import _reference, ops

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PACKAGES = ("iounet", "torch", "torchvision", "triton")
OURS, LAST, VISION, ATOMIC = "iounet", "iounet channels_last", "torchvision roi_align", "atomic additions"
ARGS = 0.25, False, False, False
DEVICE = "cuda"


@cache
def workload() -> dict[str, Any]:
    """That of the CPU."""
    same = bench_pooling.workload(smoke=False)
    given = {name: getattr(same, name).to(DEVICE) for name in ("input", "boxes", "grad")}
    last = {f"{name} last": given[name].contiguous(memory_format=torch.channels_last) for name in ("input", "grad")}
    return given | last


def exact(name: str, *given: Any) -> Any:
    """The reference in float64, on the CPU."""
    given = tuple(x.cpu().double() if torch.is_tensor(x) else x for x in given)
    return getattr(_reference, name)(*given).to(DEVICE)


# --- forward ---


def forward_contestants(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    given, pool = workload(), torch.ops.iounet.prroi_pool

    def vision() -> Contestant:
        from torchvision.ops import roi_align

        return Contestant(lambda: roi_align(given["input"], given["boxes"], 7, 0.25, 2, False))

    return {
        OURS: lambda: Contestant(lambda: pool(given["input"], given["boxes"], 7, 7, *ARGS)),
        LAST: lambda: Contestant(lambda: pool(given["input last"], given["boxes"], 7, 7, *ARGS)),
        VISION: vision,
    }


def forward_equal(context: Context) -> str:
    given = workload()
    few = given["input"], given["boxes"][:64], 7, 7, *ARGS
    return within_twice(
        torch.ops.iounet.prroi_pool(*few), _reference.prroi_pool(*few), exact("prroi_pool", *few), "pooled values"
    )


# --- the gradient of the map ---


@cache
def atomic_kernel() -> Any:
    """A program per box and 32 channels that adds to the map what every bin gives to a pixel."""
    import triton
    import triton.language as tl

    @triton.jit
    def scatter(p_grad, p_wy, p_wx, p_spans, p_out, channels, height, width, PH: tl.constexpr, PW: tl.constexpr):  # type: ignore[no-untyped-def]
        row = tl.program_id(0).to(tl.int64)
        c = tl.program_id(1) * 32 + tl.arange(0, 32)
        q = tl.arange(0, 8)
        first_y, end_y = tl.load(p_spans + row * 5 + 1), tl.load(p_spans + row * 5 + 2)
        first_x, end_x = tl.load(p_spans + row * 5 + 3), tl.load(p_spans + row * 5 + 4)
        p = tl.arange(0, 8)
        known = (p < PH)[:, None, None] & (q < PW)[None, :, None]
        bins = (p[:, None, None] * PW + q[None, :, None]) * channels + c[None, None, :]
        grad = tl.load(p_grad + row * channels * PH * PW + bins, known, 0.0)
        for y in range(first_y, end_y):
            line = tl.sum(grad * tl.load(p_wy + (row * height + y) * 8 + p, p < PH, 0.0)[:, None, None], 0)
            for x in range(first_x, end_x):
                value = tl.sum(line * tl.load(p_wx + (row * width + x) * 8 + q, q < PW, 0.0)[:, None], 0)
                tl.atomic_add(p_out + (y * width + x) * channels + c, value, sem="relaxed")

    return scatter


def atomic_gradient(grad: Any, boxes: Any) -> Any:
    """The same mathematics, and channels_last, in which atomic additions are fastest."""
    from iounet import _triton

    height, width, channels = 200, 272, grad.shape[1]
    tables = _triton._tables(boxes, (1, height, width), (7, 7), grad.dtype, *ARGS)
    out = torch.zeros(1, channels, height, width, device=grad.device).contiguous(memory_format=torch.channels_last)
    atomic_kernel()[len(boxes), channels // 32](grad, *tables, out, channels, height, width, PH=7, PW=7, num_warps=4)
    return out


def gradient_contestants(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    given, gradient = workload(), torch.ops.iounet.prroi_pool_grad_input
    size = 1, 200, 272

    def vision() -> Contestant:
        from torchvision.ops import roi_align

        input = given["input"].detach().requires_grad_()
        out = roi_align(input, given["boxes"], 7, 0.25, 2, False)
        return Contestant(lambda: torch.autograd.grad(out, input, given["grad"], retain_graph=True))

    return {
        OURS: lambda: Contestant(lambda: gradient(given["grad"], given["boxes"], *size, False, *ARGS)),
        LAST: lambda: Contestant(lambda: gradient(given["grad last"], given["boxes"], *size, True, *ARGS)),
        ATOMIC: lambda: Contestant(lambda: atomic_gradient(given["grad last"], given["boxes"])),
        VISION: vision,
    }


def gradient_equal(context: Context) -> str:
    given = workload()
    few = given["grad"][:64], given["boxes"][:64], 1, 200, 272, False, *ARGS
    truth, reference = exact("prroi_pool_grad_input", *few), _reference.prroi_pool_grad_input(*few)
    runs = [torch.ops.iounet.prroi_pool_grad_input(*few) for _ in range(2)]
    if not torch.equal(*runs):
        raise UnequalError("two runs of the gradient differ")
    atomic = atomic_gradient(few[0].contiguous(memory_format=torch.channels_last), few[1])
    within_twice(atomic, reference, truth, "atomic gradient")
    return within_twice(runs[0], reference, truth, "gradient of the map, twice the same bits")


# --- the gradient of the boxes ---


def box_contestants(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    given, kernels = workload(), torch.ops.iounet
    both = given["grad last"], given["input last"], given["boxes"]
    return {
        "box gradient": lambda: Contestant(lambda: kernels.prroi_pool_grad_boxes(*both, *ARGS)),
        "forward": lambda: Contestant(lambda: kernels.prroi_pool(given["input last"], given["boxes"], 7, 7, *ARGS)),
    }


def box_equal(context: Context) -> str:
    given = workload()
    few = given["grad"][:64], given["input"], given["boxes"][:64], *ARGS
    ours, reference = torch.ops.iounet.prroi_pool_grad_boxes(*few), _reference.prroi_pool_grad_boxes(*few)
    return within_twice(ours, reference, exact("prroi_pool_grad_boxes", *few), "gradient of the boxes")


# --- suppression ---


@cache
def crowd() -> tuple[Any, Any]:
    """10,000 boxes with sides of 10 to 30 in a square of 1000."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(10000, 2, generator=generator) * 1000
    boxes = torch.cat((corner, corner + 10 + 20 * torch.rand(10000, 2, generator=generator)), 1)
    return boxes.to(DEVICE), torch.rand(10000, generator=generator).to(DEVICE)


def nms_contestants(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    def vision() -> Contestant:
        from torchvision.ops import nms

        return Contestant(lambda: nms(*crowd(), 0.5))

    return {OURS: lambda: Contestant(lambda: ops.nms(*crowd(), 0.5)), "torchvision": vision}


def nms_equal(context: Context) -> str:
    from torchvision.ops import nms

    ours, theirs = ops.nms(*crowd(), 0.5), nms(*crowd(), 0.5)
    if ours.tolist() != theirs.tolist():
        raise UnequalError("the keep lists differ")
    return f"Keep lists are identical: {len(ours)} of 10000 boxes."


WORKLOADS: list[Workload] = [
    Race(
        name="Pooling on a GPU",
        about="512 boxes, 256 channels, 7 x 7 bins, float32",
        contestants=forward_contestants,
        equal=forward_equal,
        figures=[
            Versus(VISION, at_most(1), name="forward", headline=True),
            Versus(VISION, at_most(1), name="forward, channels_last", ours=LAST),
        ],
        profiles=GPU,
        clock="cuda",
    ),
    Race(
        name="Gradient of the map on a GPU",
        about="the same; ours is deterministic",
        contestants=gradient_contestants,
        equal=gradient_equal,
        figures=[
            Versus(ATOMIC, at_most(1.2), name="deterministic against atomic", ours=LAST),
            Versus(VISION, at_most(1), name="against torchvision's, which is atomic"),
        ],
        profiles=GPU,
        clock="cuda",
    ),
    Race(
        name="Gradient of the boxes on a GPU",
        about="the same, channels_last; torchvision has none",
        contestants=box_contestants,
        equal=box_equal,
        figures=[Versus("forward", at_most(2), name="box gradient against its forward")],
        profiles=GPU,
        clock="cuda",
    ),
    Race(
        name="NMS on a GPU",
        about="10,000 boxes of which most are disjoint",
        contestants=nms_contestants,
        equal=nms_equal,
        figures=[Versus("torchvision", at_least(1), kind="speed", name="nms")],
        profiles=GPU,
        clock="wall",
    ),
]
