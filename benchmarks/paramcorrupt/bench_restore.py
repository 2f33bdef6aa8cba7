"""A change of the weights and its undoing: against a clone that is copied back; flips of bits against torch's xor."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING

import torch
from harness import Contestant, Context, Race, UnequalError, Versus, Workload, at_least, same_bits
from torch import Tensor

from paramcorrupt import _ops

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Builders = Mapping[str, Callable[[], Contestant]]

PACKAGES = ("paramcorrupt", "torch")
CLONE, COPY, CODES = "clone, _foreach_add_, copy back", "paramcorrupt, a copy", "paramcorrupt, two bits of each"
FLIPS, XOR = "sample_bits, xor_bits_", "torch xor on a view"
SUPPORTS = (1_000, 10_000)
SCALE = 1e-3


# --- dense and sparse changes ---


@lru_cache(maxsize=1)
def model(size: int) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and gradients in sixteen tensors."""
    generator = torch.Generator().manual_seed(0)
    weights = [0.05 * torch.randn(size // 16, generator=generator) for _ in range(16)]
    return weights, [torch.randn(size // 16, generator=generator) for _ in range(16)]


def weights_and_gradients(context: Context) -> tuple[list[Tensor], list[Tensor]]:
    return model(context.pick(1 << 18, 32_000_000, 100_000_000))


def by_clone(weights: list[Tensor], gradients: list[Tensor]) -> None:
    clean = [w.clone() for w in weights]
    torch._foreach_add_(weights, gradients, alpha=SCALE)
    torch._foreach_copy_(weights, clean)


def by_copy(weights: list[Tensor], gradients: list[Tensor]) -> None:
    _, backup = _ops.apply_backup_(weights, gradients, SCALE, 1.0)
    _ops.restore_backup_(weights, backup)


def by_codes(weights: list[Tensor], gradients: list[Tensor]) -> None:
    _, *kept = _ops.apply_compact_(weights, gradients, SCALE, 1.0)
    _ops.restore_compact_(weights, gradients, SCALE, 1.0, *kept)


def by_journal(weights: list[Tensor], offsets: Tensor, index: Tensor, delta: Tensor) -> None:
    journal = _ops.apply_sparse_(weights, offsets, index, delta)
    _ops.restore_sparse_(weights, offsets, index, journal)


def support(weights: list[Tensor], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """As many places in each tensor, and what is added there."""
    each = count // len(weights)
    index = torch.cat([torch.arange(each) * (w.numel() // each) for w in weights])
    return torch.arange(len(weights) + 1) * each, index, torch.full((index.numel(),), SCALE, dtype=torch.float64)


def dense(context: Context) -> Builders:
    ways = {CODES: by_codes, COPY: by_copy, CLONE: by_clone}
    data = weights_and_gradients(context)
    return {name: partial(Contestant, partial(way, *data)) for name, way in ways.items()}


def sparse(context: Context) -> Builders:
    weights, gradients = weights_and_gradients(context)
    builders = {
        f"{count:,} weights": partial(Contestant, partial(by_journal, weights, *support(weights, count)))
        for count in SUPPORTS
    }
    return {**builders, CLONE: partial(Contestant, partial(by_clone, weights, gradients))}


def restored(context: Context) -> str:
    weights, gradients = weights_and_gradients(context)
    clean = [w.clone() for w in weights]
    for undone in (
        partial(by_codes, weights, gradients),
        partial(by_copy, weights, gradients),
        partial(by_journal, weights, *support(weights, SUPPORTS[-1])),
    ):
        undone()
        for w, old in zip(weights, clean, strict=True):
            same_bits(w, old, "restored weights")
    return "Weights restored from two bits of each, a copy and a journal: equal bit for bit."


# --- bits ---


def flips(context: Context) -> tuple[int, int]:
    """Bits there are, bits to flip."""
    return context.pick((1 << 15, 1000), (32_000_000, 5_000_000))


def flip(data: Tensor, count: int) -> None:
    _ops.xor_bits_(data, *_ops.locate_bits(_ops.sample_bits(8 * data.numel(), count, 1)))


def flip_by_torch(data: Tensor, count: int) -> None:
    bit = torch.randint(8 * data.numel(), (count,))
    words = data.view(torch.int32)
    words[bit >> 5] ^= (1 << (bit & 31)).to(torch.int32)


def bits(context: Context) -> Builders:
    total, count = flips(context)
    data = torch.zeros(total // 8, dtype=torch.uint8)
    ways = {FLIPS: flip, XOR: flip_by_torch}
    return {name: partial(Contestant, partial(way, data, count)) for name, way in ways.items()}


def all_flipped(context: Context) -> str:
    total, count = flips(context)
    data = torch.zeros(total // 8, dtype=torch.uint8)
    flip(data, count)
    flipped = sum(int((data >> i & 1).sum()) for i in range(8))
    if flipped != count:
        raise UnequalError(f"{flipped} bits flipped, {count} asked for")
    return f"{count:,} different bits of {total:,} flipped; torch's random numbers name some of them twice."


WORKLOADS: tuple[Workload, ...] = (
    Race(
        "dense apply and restore",
        "All weights moved along a gradient, and back bit for bit.",
        dense,
        restored,
        (
            Versus(CLONE, at_least(1.3), "speed", name="two bits of each"),
            Versus(CLONE, at_least(1.3), "speed", name="a copy", ours=COPY),
        ),
        seconds=2.5,
    ),
    Race(
        "sparse apply and restore",
        "Some weights moved and moved back: the time is that of the support, not of the model.",
        sparse,
        restored,
        (
            Versus(CLONE, at_least(100.0), "speed", name="1,000 weights", ours="1,000 weights"),
            Versus(CLONE, at_least(30.0), "speed", name="10,000 weights", ours="10,000 weights"),
        ),
        seconds=2.0,
    ),
    Race(
        "5 million flips",
        "Different bits by chance, flipped in place.",
        bits,
        all_flipped,
        (Versus(XOR, at_least(5.0), "speed", name="drawn and flipped"),),
        seconds=2.0,
    ),
)
