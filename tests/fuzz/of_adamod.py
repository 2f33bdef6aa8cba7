"""adamod under hostile parameters, gradients, options and checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from fuzz.choices import Choices, spoiled
from fuzz.targets import REFUSALS, Target, need

from adamod import AdaMod, DiffMod
from adamod.functional import adamod

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# torch itself says RuntimeError of what its operators do not take; AdaMod does so where torch's optimizers do.
OF_TORCH = (*REFUSALS, RuntimeError, NotImplementedError)
# What torch's own optimizers raise of trees that are no checkpoints, and its functions of what is no tensor.
OF_TREES = (*OF_TORCH, AttributeError, KeyError, IndexError)


def prepare() -> None:
    """What all targets need, before they are timed."""
    stepped(AdaMod)


def params() -> list[torch.Tensor]:
    found = [torch.ones(2, 3, requires_grad=True), torch.ones(4, dtype=torch.bfloat16, requires_grad=True)]
    for p in found:
        p.grad = torch.linspace(-1, 1, p.numel()).reshape(p.shape).to(p.dtype)
    return found


def stepped(kind: Any, **options: Any) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = kind(params(), **options)
    optimizer.step()
    return optimizer


def leaves(tree: Any) -> Iterator[Any]:
    """All that is nested in dicts and lists, tensors as their bytes."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield str(key)
            yield from leaves(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from leaves(value)
    elif isinstance(tree, torch.Tensor) and tree.device.type == "cpu" and tree.layout is torch.strided:
        yield (tree.dtype, tuple(tree.shape), bytes(tree.detach().contiguous().reshape(-1).view(torch.uint8).tolist()))
    else:
        yield repr(tree)


def everything(optimizer: torch.optim.Optimizer) -> list[Any]:
    """All that a step or a checkpoint could change."""
    groups = optimizer.param_groups
    states = [optimizer.state.get(p, {}) for group in groups for p in group["params"]]
    return list(leaves([groups, states]))


def load(data: bytes, make: Any) -> None:
    """A checkpoint of an enemy is refused and nothing has changed, or taken, and steps go on or are refused whole."""
    choices = Choices(data)
    optimizer, saved = make(), spoiled(choices, make().state_dict(), tensors=True)
    before = everything(optimizer)
    given = list(leaves(saved))
    try:
        optimizer.load_state_dict(saved)
    except Exception:
        need(everything(optimizer) == before, "a checkpoint that is refused must change nothing")
        raise
    finally:
        need(list(leaves(saved)) == given, "a checkpoint must not be changed by being loaded")
    _step(optimizer)
    optimizer.state_dict()


def weights(optimizer: Any) -> list[Any]:
    """What a step that is refused must not change."""
    return list(leaves([group["params"] for group in optimizer.param_groups]))


def _step(optimizer: torch.optim.Optimizer) -> None:
    before = weights(optimizer)
    try:
        optimizer.step()
    except Exception:
        need(weights(optimizer) == before, "a step that is refused must not change weights")
        raise


def _load(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    kinds = (
        lambda: stepped(AdaMod),
        lambda: stepped(AdaMod, state_dtype="int8"),
        lambda: stepped(AdaMod, foreach=True),
        lambda: stepped(DiffMod),
    )
    load(data[1:], choices.pick(kinds))


def _options(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    kind = choices.pick((AdaMod, DiffMod))
    names = [
        "lr",
        "betas",
        "beta3",
        "eps",
        "weight_decay",
        "variant",
        "bounded_decay",
        "skip_unseen",
        "foreach",
        "seed",
    ]
    names += ["maximize", "capturable", "differentiable", "fused", "state_dtype", "unknown"]
    options = {choices.pick(names): choices.value() for _ in range(1 + choices.below(3))}
    given = choices.pick((params(), [{"params": params(), **options}], choices.value(), [choices.value()]))
    optimizer = kind(given, **options)
    _step(optimizer)
    _step(optimizer)


def _gradients(data: bytes, folder: Path) -> None:
    """Parameters and gradients of every kind."""
    choices = Choices(data)
    found = []
    for _ in range(1 + choices.below(3)):
        p = choices.tensor(((2, 3), (5,), (), (0,), (4, 3, 1, 2)))
        if isinstance(p, torch.Tensor):
            p = p.detach()
            p.requires_grad_(p.is_floating_point() or p.is_complex())
            g = choices.tensor((tuple(p.shape),))
            if isinstance(g, torch.Tensor):
                p.grad = g.detach()
        found.append(p)
    options = choices.pick(({}, {"foreach": True}, {"fused": True}, {"foreach": False, "fused": False}))
    optimizer = choices.pick((AdaMod, DiffMod))(found, **options if choices.chance(2) else {})
    grads = list(leaves([p.grad for p in found]))
    _step(optimizer)
    need(list(leaves([p.grad for p in found])) == grads, "gradients must not be written")


def _functional(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    lists = [[choices.tensor(((2, 3),)) if choices.chance(4) else torch.ones(2, 3)] for _ in range(5)]
    steps = [choices.tensor() if choices.chance(3) else torch.tensor(1.0)]
    numbers: dict[str, Any] = {
        "lr": 1e-3,
        "beta1": 0.9,
        "beta2": 0.999,
        "beta3": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
    }
    more = {"scales": None, "seed": 0, "foreach": None, "fused": None, "grad_scale": None, "found_inf": None}
    options = {**numbers, **more, "variant": "code"}
    if choices.chance(2):
        options[choices.pick(list(options))] = choices.value()
    if choices.chance(6):
        lists[choices.below(5)] = choices.value()
    adamod(*lists, steps, **options)


TARGETS = [
    Target("adamod-load", _load, refusals=OF_TREES),
    Target("adamod-options", _options, refusals=OF_TORCH),
    Target("adamod-gradients", _gradients, refusals=OF_TORCH),
    Target("adamod-functional", _functional, refusals=OF_TREES),
]
