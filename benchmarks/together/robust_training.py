"""Trains one network in several ways, then damages its weights: changes that hurt most, random ones, flipped bits.

Knows nothing of the harness or its figures: data, networks, the conditions, a search for each one's strength, a run.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import adamod
import gasam
from paramcorrupt import Defense, bitflip, corrupted, curve, multistep, relative

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch.optim import Optimizer

Part = tuple[Tensor, Tensor]
TOLERANCE = 0.5  # points of validation accuracy that more strength may cost


# --- data and networks ---


class Data(NamedTuple):
    """Pictures [n, 1, height, width] and their classes."""

    train: Part
    validation: Part
    test: Part


def digits() -> Data:
    """Scikit-learn's digits: of every five, three to train, one to choose and one to test."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    x = torch.tensor(loaded.data, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    y = torch.tensor(loaded.target)
    place = torch.arange(len(x)) % 5
    return Data(*((x[chosen], y[chosen]) for chosen in (place < 3, place == 3, place == 4)))


def mnist(folder: Path) -> Data:
    """The first 8,000 training pictures of `mnist.npz`, the next 2,000 to choose, and 2,000 of the test set.

    Raises:
        FileNotFoundError: the folder has no such file.
    """
    path = next((p for p in (folder / "mnist.npz", folder / "images" / "mnist.npz") if p.exists()), None)
    if path is None:
        raise FileNotFoundError("a folder with mnist.npz")
    with np.load(path) as file:
        x, y, is_test = torch.tensor(file["X"]), torch.tensor(file["y"]).long(), torch.tensor(file["is_test"]).bool()
    sizes = ((~is_test, 0, 8000), (~is_test, 8000, 10000), (is_test, 0, 2000))
    places = [chosen.nonzero().flatten()[first:stop] for chosen, first, stop in sizes]
    return Data(*(((x[place, None] / 255 - 0.1307) / 0.3081, y[place]) for place in places))


def perceptron(pixels: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 128), nn.ReLU(), nn.Linear(128, 10))


def convolutions() -> nn.Module:
    """For pictures of 8 x 8: 9,930 weights, no batch statistics."""
    layers = nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


@dataclass(frozen=True)
class Task:
    """What is trained, on what, for how long."""

    data: Data
    model: Callable[[], nn.Module]
    epochs: int
    size: int = 64  # of a batch


# --- the ways to train ---


@dataclass(frozen=True)
class Condition:
    """A way to train, and the one setting of it that is searched; all others are the defaults of the packages."""

    build: Callable[[nn.Module, float, float], Optimizer]  # of a model, the rate and the strength
    gradients: int  # of a step
    grid: tuple[float, ...]  # of the strength, ascending; none where only the epochs differ from the base
    base: str = ""  # the condition whose rate it uses; where there is none, the strength is the rate
    lengthened: int = 1  # how many times as many epochs


def adamw(model: nn.Module, lr: float, _: float = 0.0) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr, fused=True)


def ada_mod(model: nn.Module, lr: float, _: float = 0.0) -> Optimizer:
    """beta3 is the one that its README gives for short runs."""
    return adamod.AdaMod(model.parameters(), lr=lr, beta3=0.99)


def sam(model: nn.Module, lr: float, rho: float) -> Optimizer:
    return gasam.SAM(model, torch.optim.AdamW, rho=rho, lr=lr, fused=True)


def ga_sam(model: nn.Module, lr: float, rho: float) -> Optimizer:
    return gasam.GASAM(model, torch.optim.AdamW, rho=rho, lr=lr, fused=True)


def ga_sam_over_adamod(model: nn.Module, lr: float, rho: float) -> Optimizer:
    return gasam.GASAM(model, adamod.AdaMod, rho=rho, lr=lr, beta3=0.99)


def defended(model: nn.Module, lr: float, eps: float) -> Optimizer:
    return Defense(model, partial(torch.optim.AdamW, fused=True), eps=eps, lr=lr)


RATES = (1e-3, 3e-3, 1e-2, 3e-2)
HIGHER = (3e-3, 1e-2, 3e-2, 1e-1)  # for AdaMod, whose bound takes of them what is too much
RADII = (0.05, 0.1, 0.2, 0.5)
BUDGETS = (0.3, 0.6, 1.2, 2.4)
CONDITIONS: dict[str, Condition] = {
    "AdamW": Condition(adamw, 1, RATES),
    "AdamW, 2x epochs": Condition(adamw, 1, (), "AdamW", 2),
    "AdamW, 3x epochs": Condition(adamw, 1, (), "AdamW", 3),
    "SAM": Condition(sam, 2, RADII, "AdamW"),
    "GA-SAM": Condition(ga_sam, 2, RADII, "AdamW"),
    "Defense": Condition(defended, 3, BUDGETS, "AdamW"),
    "AdaMod": Condition(ada_mod, 1, HIGHER),
    "AdaMod, 2x epochs": Condition(ada_mod, 1, (), "AdaMod", 2),
    "GA-SAM over AdaMod": Condition(ga_sam_over_adamod, 2, RADII, "AdaMod"),
}


def fit(task: Task, condition: Condition, lr: float, strength: float, seed: int) -> tuple[nn.Module, float]:
    """A trained model, and the median CPU time of an epoch. Equal seeds: equal first weights, equal first batches."""
    torch.manual_seed(seed)
    model, epochs = task.model(), condition.lengthened * task.epochs
    optimizer = condition.build(model, lr, strength)
    x, y = task.data.train
    steps = epochs * math.ceil(len(x) / task.size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    draw, seconds = torch.Generator().manual_seed(seed), []
    for _ in range(epochs):
        begun = time.process_time()
        for batch in torch.randperm(len(x), generator=draw).split(task.size):
            inputs, target = x[batch], y[batch]

            def closure(inputs: Tensor = inputs, target: Tensor = target) -> Tensor:
                optimizer.zero_grad()
                loss = cross_entropy(model(inputs), target)
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            optimizer.step(closure)
            schedule.step()
        seconds.append(time.process_time() - begun)
    return model.eval(), statistics.median(seconds)


# --- damage ---


@dataclass(frozen=True)
class Damage:
    """What is done to the weights. Sizes are shares of their norm, so that larger weights are no defence."""

    worst: tuple[float, ...] = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
    random: tuple[float, ...] = (0.1, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0)
    flips: tuple[int, ...] = (1, 3, 10, 30, 100, 300)
    steps: int = 5  # of the ascent to the worst change
    draws: int = 8  # of random changes
    plans: int = 12  # of flipped bits: the same for every model of a shape


def accuracy(model: nn.Module, part: Part) -> float:
    """Per cent that are right. An output that is not finite is wrong, whatever its largest element is."""
    with torch.no_grad():
        output = model(part[0])
    right = (output.argmax(1) == part[1]) & output.isfinite().all(1)
    return 100 * right.double().mean().item()


def damaged(model: nn.Module, part: Part, damage: Damage) -> dict[str, Any]:
    """Accuracies of the model as it is, and for each size under the worst changes, random ones, and flipped bits."""
    sizes = [relative(r) for r in damage.worst]
    worst = multistep(model, "cross_entropy", [part], eps=sizes, steps=damage.steps)
    sizes = [relative(r) for r in damage.random]
    random = curve(
        model, "cross_entropy", [part], eps=sizes, kinds=["random"], draws=damage.draws, seed=0, progress=False
    )
    flips = []
    for count in damage.flips:
        left = []
        for seed in range(damage.plans):
            with corrupted(model, bitflip(model, count=count, seed=seed)):
                left.append(accuracy(model, part))
        flips.append(statistics.fmean(left))
    return {
        "clean": accuracy(model, part),
        "worst": [100 * each.accuracy_corrupted for each in worst if each.accuracy_corrupted is not None],
        "random": [100 * point.accuracy for point in random if point.accuracy is not None],
        "flips": flips,
        "norm": math.sqrt(sum(float(p.detach().double().square().sum()) for p in model.parameters())),
    }


# --- the experiment ---


def chosen(condition: Condition, accuracies: Sequence[float]) -> float:
    """Of plain training the rate with the best accuracy, the lower of equal ones; of any other condition the largest
    strength that is within TOLERANCE points of the best."""
    pairs = list(zip(condition.grid, accuracies, strict=True))
    best = max(accuracies)
    if condition.base:
        return max(value for value, found in pairs if found >= best - TOLERANCE)
    return min(value for value, found in pairs if found == best)


def search(
    task: Task, seeds: Sequence[int], tick: Callable[[], object] = lambda: None
) -> dict[str, tuple[float, float]]:
    """For each condition the rate and the strength that validation pictures choose, with clean weights."""
    found: dict[str, tuple[float, float]] = {}
    for name, condition in CONDITIONS.items():
        if not condition.grid:
            found[name] = found[condition.base]
            continue
        accuracies = []
        for value in condition.grid:
            lr = found[condition.base][0] if condition.base else value
            models = [fit(task, condition, lr, value, seed)[0] for seed in seeds]
            accuracies.append(statistics.fmean(accuracy(model, task.data.validation) for model in models))
            tick()
        best = chosen(condition, accuracies)
        found[name] = (found[condition.base][0] if condition.base else best, best)
    return found


def run(task: Task, name: str, settings: tuple[float, float], seed: int, damage: Damage) -> dict[str, Any]:
    """One model of one condition: its accuracies and the CPU time of an epoch."""
    model, seconds = fit(task, CONDITIONS[name], *settings, seed)
    return damaged(model, task.data.test, damage) | {"seconds": seconds}


def error(found: dict[str, Any], kind: str) -> float:
    """Per cent wrong, the mean over all sizes of a kind of damage."""
    return 100 - statistics.fmean(found[kind])


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean of ratios seed by seed, and its 95 % interval by Student's t."""
    from scipy.stats import t

    logs = [math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
    middle = statistics.fmean(logs)
    half = float(t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / len(logs) ** 0.5
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)
