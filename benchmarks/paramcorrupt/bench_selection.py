"""The n largest of many tensors together: against joining them for topk or for NumPy's partition, and a plain read."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from harness import (
    CPU,
    FULL,
    Contestant,
    Context,
    Figure,
    Outcome,
    Profile,
    Race,
    UnequalError,
    Versus,
    Workload,
    at_least,
    at_most,
    cores,
    same_bits,
)
from torch import Tensor

import paramcorrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Builders = Mapping[str, Callable[[], Contestant]]

PACKAGES = ("paramcorrupt", "torch", "numpy")
OURS, TOPK, PARTITION = "paramcorrupt.top_n", "cat, abs, topk", "cat, abs, np.partition"
SELECT, READ = "threshold alone", "plain read"


# --- gradients ---


@lru_cache(maxsize=1)
def gradients(size: int, kind: str = "normal") -> list[Tensor]:
    """Four tensors of different sizes."""
    generator = torch.Generator().manual_seed(0)
    x = 1e-3 * torch.randn(size, generator=generator)
    if kind == "mostly zero":  # an embedding of which few rows were read
        x.view(-1, 100)[torch.rand(size // 100, generator=generator) < 0.95] = 0
    if kind == "bfloat16":
        x = x.bfloat16()
    return list(x.split([size // 2, size // 4, size // 8, size - size // 2 - size // 4 - size // 8]))


@lru_cache(maxsize=1)
def residual_network() -> list[Tensor]:
    """Gradients in the shapes of ResNet-20's 59 parameters on CIFAR-10, .27 million, each of its own scale."""
    shapes: list[tuple[int, ...]] = [(16, 3, 3, 3), (16,), (16,)]
    width = 16
    for wider in (16, 32, 64):
        for _ in range(3):
            shapes += [(wider, width, 3, 3), (wider,), (wider,), (wider, wider, 3, 3), (wider,), (wider,)]
            width = wider
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) / shape[0] for shape in [*shapes, (10, 64), (10,)]]


# --- peers ---


def topk(g: list[Tensor], n: int) -> Any:
    return torch.topk(torch.cat([x.flatten() for x in g]).abs(), n, sorted=False)


def partition(g: list[Tensor], n: int) -> np.ndarray[Any, Any]:
    """The magnitudes alone, without their places."""
    x = np.abs(np.concatenate([x.numpy().ravel() for x in g]))
    x.partition(x.size - n)
    return x[x.size - n :]


def read(g: list[Tensor]) -> list[Tensor]:
    return [x.view(torch.int32).sum(dtype=torch.int32) for x in g]


# --- equality ---


def equal(g: list[Tensor], n: int) -> str:
    """The magnitudes are those of topk; the values are where the places say."""
    found = paramcorrupt.top_n(g, n)
    parts = zip(g, found.offsets[:-1].tolist(), found.offsets[1:].tolist(), strict=True)
    there = torch.cat([x.flatten()[found.index[a:b]] for x, a, b in parts])
    if not torch.equal(there, found.value) or len(found.value) != n:
        raise UnequalError("the values are not those at the places")
    return same_bits(found.value.abs().sort().values, topk(g, n).values.sort().values, f"Magnitudes of {OURS} and topk")


# --- races ---


def reader(g: list[Tensor]) -> Callable[[], Contestant]:
    return partial(Contestant, partial(read, g), traffic=4 * sum(x.numel() for x in g))


def contestants(g: list[Tensor], n: int, *, numpy: bool = True) -> dict[str, Callable[[], Contestant]]:
    racers = {
        OURS: partial(Contestant, partial(paramcorrupt.top_n, g, n)),
        TOPK: partial(Contestant, partial(topk, g, n)),
    }
    return racers | {PARTITION: partial(Contestant, partial(partition, g, n))} if numpy else racers


def extra_memory(n: int, context: Context, outcome: Outcome) -> None:
    """What one call takes beside its output."""
    for name, output, target in ((OURS, 12 * n, at_most(8)), (TOPK, 12 * n, None)):
        if (peak := outcome.raw[name]["peak_bytes"]) is not None:
            value = max(0, peak - output) / 2**20
            figure = Figure("memory beside the output", name, "", " MiB", value=round(value, 2), target=target)
            outcome.figures.append(figure.judged(context.profile))


def large(
    millions: int, share: float, least: float | None = None, *, seconds: float = 1, profiles: frozenset[Profile] = CPU
) -> Race:
    def size(context: Context) -> int:
        return context.pick(100_000, 1_000_000 * millions)

    def n(context: Context) -> int:
        return max(1, round(share * size(context)))

    return Race(
        f"top_n of {millions} million, one of {1 / share:,.0f}",
        "Indices and values of the largest magnitudes of four float32 tensors together, one thread. Peers join the "
        "tensors first; partition gives no indices.",
        lambda context: contestants(gradients(size(context)), n(context)) | {READ: reader(gradients(size(context)))},
        lambda context: equal(gradients(size(context)), n(context)),
        (
            Versus(TOPK, None if least is None else at_least(least), kind="speed", headline=seconds > 1),
            Versus(PARTITION, at_least(8) if least and share < 0.1 else None, kind="speed"),
            Versus(READ, kind="time"),
        ),
        profiles=profiles,
        seconds=seconds,
        also=lambda context, outcome: extra_memory(n(context), context, outcome),
    )


def threshold(context: Context) -> Builders:
    size = context.pick(100_000, 100_000_000)
    g = gradients(size)
    return {
        SELECT: partial(Contestant, partial(torch.ops.paramcorrupt.select, g, size // 100), traffic=4 * size),
        READ: reader(g),
    }


def threshold_is_equal(context: Context) -> str:
    size = context.pick(100_000, 100_000_000)
    g = gradients(size)
    key, above, ties, _ = torch.ops.paramcorrupt.select(g, size // 100).tolist()
    keys = torch.cat([x.view(torch.int32) & 0x7FFFFFFF for x in g])
    if int((keys > key).sum()) != above or not above < size // 100 <= above + int((keys == key).sum()):
        raise UnequalError("the threshold is not that of the n largest")
    return f"{above:,} elements are above the threshold, {ties} of those on it complete the {size // 100:,} largest."


def special(kind: str) -> Race:
    def size(context: Context) -> int:
        return context.pick(100_000, 10_000_000, 100_000_000)

    return Race(
        f"top_n, {kind}",
        "One element of 100 of 100 million, with many equal ones; one thread.",
        lambda context: contestants(gradients(size(context), kind), size(context) // 100, numpy=False),
        lambda context: equal(gradients(size(context), kind), size(context) // 100),
        (Versus(TOPK, kind="speed"),),
        FULL | {"smoke"},
        seconds=1,
    )


def small(n: int) -> Race:
    return Race(
        f"top_n of ResNet-20's gradients, n = {n:,}",
        "59 tensors, 269,722 elements: what a call costs. One thread.",
        lambda context: contestants(residual_network(), n, numpy=False),
        lambda context: equal(residual_network(), n),
        (Versus(TOPK, at_least(3), kind="speed"),),
        seconds=0.5,
    )


def threads(context: Context) -> Builders:
    g, n = gradients(context.pick(100_000, 10_000_000, 100_000_000)), context.pick(1000, 100_000, 1_000_000)
    return {
        f"{OURS}, {count} thread{'s' * (count > 1)}": partial(Contestant, partial(paramcorrupt.top_n, g, n), count)
        for count in dict.fromkeys((cores(), 1))
    }


def threads_agree(context: Context) -> str:
    g, n = gradients(context.pick(100_000, 10_000_000, 100_000_000)), context.pick(1000, 100_000, 1_000_000)
    one = paramcorrupt.top_n(g, n)
    torch.set_num_threads(cores())
    try:
        every = paramcorrupt.top_n(g, n)
    finally:
        torch.set_num_threads(1)
    return " ".join(
        same_bits(getattr(one, name), getattr(every, name), f"{name.capitalize()} of 1 and {cores()} threads")
        for name in ("index", "value")
    )


WORKLOADS: tuple[Workload, ...] = (
    large(100, 1e-2, 60, seconds=8, profiles=FULL),
    large(10, 1e-2, seconds=2, profiles=CPU - FULL),
    Race(
        "threshold of 100 million",
        "The key of the millionth magnitude and how many are above it, against a sum of the bits as integers.",
        threshold,
        threshold_is_equal,
        (Versus(READ, at_most(3)), Versus(kind="MB/s")),
        seconds=1,
    ),
    large(100, 1e-5, 60, profiles=FULL),
    large(100, 1e-1, 30, profiles=FULL),
    *(
        [
            Race(
                "top_n, all threads",
                "10 million, one of 100.",
                threads,
                threads_agree,
                (Versus(f"{OURS}, 1 thread", kind="speed", ours=f"{OURS}, {cores()} threads"),),
                clock="wall",
                seconds=1,
            )
        ]
        if cores() > 1
        else []
    ),
    special("mostly zero"),
    special("bfloat16"),
    small(10),
    small(1000),
    small(27_000),
)
