"""What a defended step costs beside the passes that it needs, and what training with it withstands."""

from __future__ import annotations

import statistics
import sys
import time
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from harness import (
    CPU,
    FULL,
    Contestant,
    Context,
    Figure,
    MissingError,
    Outcome,
    Race,
    Study,
    UnequalError,
    Versus,
    Workload,
    at_least,
    at_most,
    median_interval,
    within_twice,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import paramcorrupt

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "packages" / "paramcorrupt" / "examples"))
import defense_mnist as example  # what the example trains is what is measured here

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PACKAGES = ("paramcorrupt", "torch")
OURS, PASSES, PLAIN = "paramcorrupt.Defense", "3 plain passes and the base step", "Defense in operations of torch"
EPS, STEPS = 0.5, 2
NORMAL, DEFENDED, ATTACK = "normal", "average risk, eps 0.5", "attack 1"


# --- the network ---


class Block(nn.Module):
    """Two convolutions, and a shortcut without weights."""

    def __init__(self, width: int, wider: int) -> None:
        super().__init__()
        self.stride, self.pad = wider // width, (wider - width) // 2
        self.first = nn.Conv2d(width, wider, 3, self.stride, 1, bias=False)
        self.second = nn.Conv2d(wider, wider, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(wider), nn.BatchNorm2d(wider)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[1](self.second(self.norms[0](self.first(x)).relu()))
        shortcut = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return (y + shortcut).relu()


def residual_network() -> nn.Module:
    """ResNet-20 for CIFAR-10: 269,722 parameters in 59 tensors."""
    torch.manual_seed(0)
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Block(width, wider) for width, wider in pairwise(widths)]
    stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def closure_of(model: nn.Module, size: int) -> Callable[[], Tensor]:
    draw = torch.Generator().manual_seed(0)
    dtype = next(model.parameters()).dtype
    x, y = torch.randn(size, 3, 32, 32, generator=draw).to(dtype), torch.randint(10, (size,), generator=draw)

    def closure() -> Tensor:
        model.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    return closure


# --- the same in other ways ---


class Passes:
    """No defence: as many gradients, the last of which is applied."""

    def __init__(self, model: nn.Module) -> None:
        self.base = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step(self, closure: Callable[[], Tensor]) -> None:
        for _ in range(STEPS + 1):
            closure()
        self.base.step()


class Plain:
    """The average risk in as many operations as it takes to write it down; batch statistics move in every pass."""

    def __init__(self, model: nn.Module) -> None:
        self.params = list(model.parameters())
        self.base = torch.optim.SGD(self.params, lr=1e-3)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> None:
        clean = [p.clone() for p in self.params]
        a, total = [[torch.zeros_like(p) for p in self.params] for _ in range(2)]
        for i in range(STEPS + 1):
            with torch.enable_grad():
                closure()
            grads = [p.grad for p in self.params]
            torch._foreach_add_(total, grads)
            if i == STEPS:
                break
            norm = float(torch.stack([g.square().sum() for g in grads]).sum().sqrt())
            torch._foreach_add_(a, grads, alpha=1.5 * EPS / STEPS / norm)
            if (size := float(torch.stack([x.square().sum() for x in a]).sum().sqrt())) > EPS:
                torch._foreach_mul_(a, EPS / size)
            for p, w, x in zip(self.params, clean, a, strict=True):
                p.copy_(w + x)
        torch._foreach_copy_(self.params, clean)
        for p, sum_ in zip(self.params, total, strict=True):
            p.grad = sum_ / (STEPS + 1)
        self.base.step()


def ours(model: nn.Module) -> paramcorrupt.Defense:
    return paramcorrupt.Defense(model, torch.optim.SGD, lr=1e-3, eps=EPS, steps=STEPS)


WAYS: dict[str, Callable[[nn.Module], Any]] = {OURS: ours, PASSES: Passes, PLAIN: Plain}


def contestants(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    def contestant(name: str) -> Contestant:
        model = residual_network()
        optimizer, closure = WAYS[name](model), closure_of(model, context.pick(4, 64, 128))
        return Contestant(lambda: optimizer.step(closure))

    return {name: partial(contestant, name) for name in WAYS if name != PLAIN or context.profile != "quick"}


def equal(context: Context) -> str:
    """The gradients of one step, and how often each kind of pass ran."""
    found = []
    for name, dtype in ((OURS, torch.float32), (PLAIN, torch.float32), (PLAIN, torch.float64)):
        model = residual_network().to(dtype)
        WAYS[name](model).step(closure_of(model, 8))
        found.append(torch.cat([p.grad.reshape(-1).double() for p in model.parameters() if p.grad is not None]))
    return within_twice(*found, "the gradient of the average risk") + f" {counted()}"


def counted() -> str:
    model, counts = residual_network(), {"forward": 0, "backward": 0}

    def count(kind: str) -> None:
        counts[kind] += 1

    def watch(module: nn.Module, inputs: object, output: Tensor) -> None:
        count("forward")
        output.register_hook(lambda _: count("backward"))

    model.register_forward_hook(watch)
    ours(model).step(closure_of(model, 2))
    if set(counts.values()) != {STEPS + 1}:
        raise UnequalError(f"a step with K={STEPS} ran {counts}")
    return f"A step ran {STEPS + 1} forward and {STEPS + 1} backward passes."


def own_share(context: Context, outcome: Outcome) -> None:
    """What is left of a step's CPU time without the closure and the base optimizer."""
    model = residual_network()
    optimizer, inner, spent = ours(model), closure_of(model, context.pick(4, 64, 128)), 0.0

    def timed(run: Callable[[], Any]) -> Any:
        nonlocal spent
        begun = time.process_time()
        result = run()
        spent += time.process_time() - begun
        return result

    base = optimizer.base_optimizer.step
    optimizer.base_optimizer.step = lambda: timed(base)  # type: ignore[method-assign, assignment]
    shares = []
    for number in range(context.pick(3, 4, 20)):
        spent, begun = 0.0, time.process_time()
        optimizer.step(lambda: timed(inner))
        if number:  # the first allocates
            shares.append(100 * (1 - spent / (time.process_time() - begun)))
    figure = Figure("its own part", OURS, "", " % of a step", *median_interval(shares), target=at_most(3))
    figure.samples = shares
    outcome.figures.append(figure.judged(context.profile))


# --- quality ---


def quality(context: Context, outcome: Outcome, *, large: bool) -> None:
    """Paired seeds: a defended perceptron beside a normal one, under an attack of ten steps on the test set."""
    if large and context.data is None:
        raise MissingError("this needs --data: a folder with mnist.npz")
    data = example.mnist(Path(str(context.data))) if large else example.digits()
    seeds, names = range(1, context.pick(2, 3, 5) + 1), list(example.DEFENCES) if large else [NORMAL, DEFENDED]
    if context.profile == "smoke":
        data = data._replace(epochs=2)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for place, (seed, name) in enumerate(product(seeds, names), 1):
        model = example.train(data, seed, **example.DEFENCES[name])
        rows[name].append(example.attacked(model, data))
        context.progress(place / (len(seeds) * len(names)))
    columns = list(rows[NORMAL][0])
    outcome.table = [["training", *columns]]
    for name, row in rows.items():
        cells = [[each[column] for each in row] for column in columns]
        outcome.table.append([name, *(f"{statistics.fmean(x):.2f} ± {statistics.stdev(x):.2f}" for x in cells)])
    if context.profile == "smoke":  # two epochs tell nothing
        return
    pairs = list(zip(rows[DEFENDED], rows[NORMAL], strict=True))
    won = [ours[ATTACK] - theirs[ATTACK] for ours, theirs in pairs]
    kept = [ours["clean"] / theirs["clean"] for ours, theirs in pairs]
    note = f"mean, least and most of {len(pairs)} paired seeds"
    for name, unit, values, target in (
        ("accuracy won under an attack of eps 1", " points", won, at_least(25)),
        ("accuracy of clean weights", "x the accuracy", kept, at_least(0.999)),
    ):
        figure = Figure(name, DEFENDED, NORMAL, unit, statistics.fmean(values), min(values), max(values))
        figure.samples, figure.note, figure.target = values, note, target if large else None
        figure.headline = values is won
        outcome.figures.append(figure)


WORKLOADS: list[Workload] = [
    Race(
        "Defense step, ResNet-20",
        "K = 2, average risk, batch of 128 (quick: 64) in train mode: the step beside the passes that it cannot do "
        "without; the full profile has the method written down, too.",
        contestants,
        equal,
        [Versus(PASSES, at_most(1.03)), Versus(PLAIN, name="written down")],
        seconds=1.0,
        also=own_share,
    ),
    Study(
        "Defence of digits",
        "Scikit-learn's digits and three seeds: enough to see that it defends.",
        partial(quality, large=False),
        profiles=CPU - FULL,
    ),
    Study(
        "Defence of MNIST",
        "Perceptrons of 128 hidden units, eight epochs, the defence from the fifth; five paired seeds.",
        partial(quality, large=True),
        profiles=FULL,
    ),
]
