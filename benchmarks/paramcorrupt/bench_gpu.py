"""Selection, changes and their undoing on a CUDA device: against torch's own operations, and bytes per second."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from harness import (
    GPU,
    Contestant,
    Context,
    Figure,
    Outcome,
    Race,
    Study,
    UnequalError,
    Versus,
    Workload,
    at_least,
    at_most,
    same_bits,
)
from torch import Tensor

from paramcorrupt import _ops

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PACKAGES = ("paramcorrupt", "torch", "triton")
DEVICE = "cuda"
OURS, TOPK, FOREACH = "paramcorrupt", "cat + abs + topk", "clone, foreach, copy back"


def gradients(elements: int) -> list[Tensor]:
    """Half of it in two large tensors, half in small ones."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    sizes = [elements // 4] * 2 + [elements // 200] * 100
    return [torch.randn(size, device=DEVICE, generator=generator) for size in sizes]


def selected(g: list[Tensor], n: int) -> tuple[Tensor, Tensor, Tensor]:
    return _ops.collect(g, _ops.select(g, n))


def topk(g: list[Tensor], n: int) -> tuple[Tensor, Tensor]:
    every = torch.cat(g)
    index = every.abs().topk(n, sorted=False).indices
    return index, every[index]


# --- selection ------------------------------------------------------------------------------------------------------


def selections_equal(context: Context, n: int) -> str:
    g = gradients(context.pick(40_000, 4_000_000))
    offsets, index, value = selected(g, min(n, 20_000))
    place, expected = topk(g, min(n, 20_000))
    starts = torch.tensor([0, *(x.numel() for x in g)], device=DEVICE).cumsum(0)[:-1]
    ours = (index + starts.repeat_interleave(offsets.diff())).sort().values
    if not torch.equal(ours, place.sort().values):
        raise UnequalError("the selected elements are not those of topk")
    return same_bits(value, expected[place.argsort()], "Values of the selected elements")


def selections(context: Context, elements: int, n: int) -> Mapping[str, Callable[[], Contestant]]:
    elements = context.pick(40_000, elements)
    g = gradients(elements)
    n = min(n, elements // 2)
    return {
        OURS: lambda: Contestant(lambda: selected(g, n), traffic=4 * elements),
        "threshold": lambda: Contestant(lambda: _ops.select(g, n), traffic=4 * elements),
        TOPK: lambda: Contestant(lambda: topk(g, n), traffic=4 * elements),
    }


def selection(elements: int, n: int, *, headline: bool = False) -> Race:
    return Race(
        f"the {n:,} largest of {elements:,}",
        "With indices and values, over 102 tensors.",
        partial(selections, elements=elements, n=n),
        partial(selections_equal, n=n),
        (
            Versus(TOPK, at_least(5), "speed", headline=headline),
            Versus(TOPK, None, "speed", ours="threshold", name="the threshold alone, which waits for nothing"),
            Versus(kind="MB/s", name="bytes of gradients"),
        ),
        profiles=GPU,
        clock="cuda",
    )


def memory(context: Context, outcome: Outcome) -> None:
    """What is allocated at the peak beside the gradients and the result."""
    elements, n = context.pick(40_000, 100_000_000), context.pick(100, 1_000_000)
    g = gradients(elements)
    peaks = {}
    for name, run in ((OURS, selected), (TOPK, topk)):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = run(g, n)
        peaks[name] = torch.cuda.max_memory_allocated() - before - sum(x.numel() * x.element_size() for x in kept)
        del kept
    value = peaks[OURS] / 2**20
    outcome.figures.append(Figure("memory", OURS, TOPK, " MiB", value, value, value, at_most(8)))
    outcome.figures[-1].note = f"{TOPK}: {peaks[TOPK] / 2**20:.0f} MiB"


# --- changes --------------------------------------------------------------------------------------------------------


def pair(elements: int) -> tuple[list[Tensor], list[Tensor]]:
    g = gradients(elements)
    return [x.flip(0).contiguous() for x in g], g


def ours_changed(w: list[Tensor], g: list[Tensor]) -> None:
    kept = [x.clone() for x in w]
    _ops.apply_dense_(w, kept, g, 1e-3, 1.0)
    torch._foreach_copy_(w, kept)


def foreach_changed(w: list[Tensor], g: list[Tensor]) -> None:
    kept = [x.clone() for x in w]
    torch._foreach_add_(w, g, alpha=1e-3)
    torch._foreach_copy_(w, kept)


def changes_equal(context: Context) -> str:
    w, g = pair(context.pick(40_000, 4_000_000))
    clean, moved = torch.cat(w), [torch.empty_like(x) for x in w]
    _ops.apply_dense_(moved, w, g, 1e-3, 1.0)
    if not torch.allclose(torch.cat(moved), torch.cat(w) + 1e-3 * torch.cat(g), rtol=1e-6, atol=1e-7):
        raise UnequalError("the changed weights are not those of torch")
    ours_changed(w, g)
    return same_bits(torch.cat(w), clean, "Weights after the change was undone")


def changes(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    w, g = pair(context.pick(40_000, 100_000_000))
    return {
        OURS: lambda: Contestant(lambda: ours_changed(w, g)),
        FOREACH: lambda: Contestant(lambda: foreach_changed(w, g)),
    }


WORKLOADS: tuple[Workload, ...] = (
    selection(100_000_000, 1_000, headline=True),
    selection(100_000_000, 1_000_000),
    selection(1_000_000_000, 1_000_000),
    Study("memory of a selection", "Beside the gradients and the result, at the peak.", memory, profiles=GPU),
    Race(
        "all weights changed and restored",
        "100 million elements; the norm of what rounding left of the change, and its count, come with ours alone.",
        changes,
        changes_equal,
        (Versus(FOREACH, None, "time"),),
        profiles=GPU,
        clock="cuda",
    ),
)
