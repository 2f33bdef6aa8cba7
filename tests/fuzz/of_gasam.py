"""gasam under hostile parameters, options and checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from fuzz.choices import Choices
from fuzz.of_adamod import OF_TREES, load, params, weights
from fuzz.targets import Target, need

import gasam

if TYPE_CHECKING:
    from pathlib import Path

KINDS = [getattr(gasam, name) for name in sorted(gasam.__all__)]
OPTIONS = (
    "rho", "strength_exponent", "size_exponent", "reference", "segments", "norm", "steps", "risk", "adaptive", "eta",
    "every", "ascent_fraction", "only", "share_dropout", "keep_batch_stats", "sync_ascent", "strength_clip", "lr",
    "momentum", "unknown", "alpha", "lmbda", "gamma",
)  # fmt: skip


def prepare() -> None:
    """What all targets need, before they are timed."""
    _made(gasam.GASAM)


def _closure(optimizer: Any) -> Any:
    def closure(**_: Any) -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum(p.float().square().sum() for group in optimizer.param_groups for p in group["params"])
        loss.backward()
        return loss

    return closure


def _made(kind: Any, **options: Any) -> Any:
    optimizer = kind(params(), torch.optim.SGD, **{"lr": 0.1, "momentum": 0.9, **options})
    optimizer.step(_closure(optimizer))
    return optimizer


def _step(optimizer: Any) -> None:
    before = weights(optimizer)
    try:
        optimizer.step(_closure(optimizer))
    except Exception:
        need(weights(optimizer) == before, "a step that is refused must not change weights")
        raise
    need(not optimizer.is_perturbed, "weights must be clean after a step")


class _Loads:
    """An optimizer that steps without arguments."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)

    def step(self) -> None:
        self.optimizer.step(_closure(self.optimizer))


def _load(data: bytes, folder: Path) -> None:
    kind = KINDS[data[0] % len(KINDS)] if data else gasam.GASAM
    load(data[1:], lambda: _Loads(_made(kind)))


def _options(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    kind = choices.pick(KINDS)
    options = {choices.pick(OPTIONS): choices.value(small=True) for _ in range(1 + choices.below(3))}
    base = choices.pick((torch.optim.SGD, torch.optim.SGD, torch.optim.AdamW, choices.value()))
    given = choices.pick((params(), params(), [{"params": params(), "rho": choices.value()}], choices.value()))
    optimizer = kind(given, base, **{"lr": 0.1, **options})
    _step(optimizer)
    _step(optimizer)


def _weights(data: bytes, folder: Path) -> None:
    """Parameters of every kind."""
    choices = Choices(data)
    found = [choices.tensor(((2, 3), (5,), (), (0,), (4, 3, 1, 2))) for _ in range(1 + choices.below(3))]
    found = [p.detach().requires_grad_() if isinstance(p, torch.Tensor) and p.is_floating_point() else p for p in found]
    options = {"segments": choices.pick(("tensor", "group", "global", "channel"))} if choices.chance(2) else {}
    kind = gasam.GASAM if options else choices.pick(KINDS)
    optimizer = kind(found, torch.optim.SGD, lr=0.1, **options)
    _step(optimizer)


TARGETS = [
    Target("gasam-load", _load, refusals=OF_TREES),
    Target("gasam-options", _options, refusals=OF_TREES),
    Target("gasam-weights", _weights, refusals=OF_TREES),
]
