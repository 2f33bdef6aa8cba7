"""What the examples share: optimizers by name, one training loop, options; no models, no data."""

from __future__ import annotations

import copy
import lzma
import math
import random
import statistics
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

import gasam

if TYPE_CHECKING:
    from collections.abc import Iterator

Batch = tuple[Tensor, ...]  # the examples are along dimension 0 of each tensor
Run = dict[str, Any]

Method = str | Callable[..., Optimizer]

METHODS: dict[str, Callable[..., Optimizer] | None] = {
    "base": None,
    "SAM": gasam.SAM,
    "ASAM": gasam.ASAM,
    "GA-SAM": gasam.GASAM,
    "GA-SAM, b=+1": partial(gasam.GASAM, strength_exponent=1.0),
    "GA-SAM, a quarter of the batch": partial(gasam.GASAM, ascent_fraction=0.25),
    "GA-SAM, every 2": partial(gasam.GASAM, every=2),
    "GA-SAM, every 5": partial(gasam.GASAM, every=5),
    "GA-SAM, norm layers": partial(gasam.GASAM, only="norm"),
    "MSAM": gasam.MSAM,
    "LookSAM": partial(gasam.LookSAM, k=5),
}


class Task(Protocol):
    """Data, a model for it, and what is measured."""

    lr: float  # of the base optimizer, before its linear decay
    rho: float
    epochs: int
    base: type[Optimizer]
    options: dict[str, Any]  # of the base optimizer

    def model(self) -> nn.Module: ...

    def batches(self, draw: random.Random) -> Iterator[Batch]:
        """One epoch of training."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor: ...

    def dev(self, model: nn.Module) -> float:
        """What chooses among epochs and settings; lower is better."""

    def test(self, model: nn.Module) -> dict[str, float]: ...


def build(task: Task, method: Method, model: nn.Module, rho: float, **options: Any) -> Optimizer:
    """The optimizer by its name in METHODS, or by a callable like theirs."""
    wrap = METHODS[method] if isinstance(method, str) else method
    options = task.options | options
    return task.base(model.parameters(), **options) if wrap is None else wrap(model, task.base, rho=rho, **options)


def fit(
    task: Task, method: Method, *, lr: float | None = None, rho: float | None = None, epochs: int | None = None,
    seed: int = 0, tick: Callable[[float], object] = lambda share: None,
) -> tuple[nn.Module, Run]:  # fmt: skip
    """The model at its best epoch and what it measures. Equal seeds mean equal first weights and equal batches."""
    lr, rho, epochs = lr or task.lr, task.rho if rho is None else rho, epochs or task.epochs
    torch.manual_seed(seed)
    model = task.model()
    optimizer = build(task, method, model, rho, lr=lr)
    draw = random.Random(seed)
    steps = epochs * sum(1 for _ in task.batches(random.Random(seed)))
    warm = max(1, steps // 20)
    schedule = LambdaLR(optimizer, lambda step: min(1, (step + 1) / warm) * (1 - step / steps))
    seconds, step = 0.0, 0
    best, weights, curve = math.inf, copy.deepcopy(model.state_dict()), []
    for _ in range(epochs):
        model.train()
        for batch in task.batches(draw):
            start = time.process_time()

            def closure(fraction: float = 1.0, batch: Batch = batch) -> Tensor:
                optimizer.zero_grad()
                loss = task.loss(model, tuple(x[: math.ceil(fraction * len(x))] for x in batch))
                loss.backward()
                return loss

            optimizer.step(closure)
            schedule.step()
            seconds += time.process_time() - start
            step += 1
            tick(step / steps)
        model.eval()
        with torch.no_grad():
            curve.append(task.dev(model))
        if curve[-1] < best:
            best, weights = curve[-1], copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    with torch.no_grad():
        found = task.test(model)
    settings = {"method": str(method), "lr": lr, "rho": rho, "epochs": epochs, "seed": seed}
    return model, settings | {"dev": best, "test": found, "curve": curve, "seconds": seconds, "steps": steps}


def arguments(description: str, data: str | None = None) -> ArgumentParser:
    parser = ArgumentParser(description=description.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    if data is not None:
        parser.add_argument("--data", type=Path, help=data)
    parser.add_argument("--smoke", action="store_true", help="a few seconds on built-in data")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["base", "SAM", "GA-SAM"], metavar="NAME")
    parser.add_argument("--rho", type=float, help="radius of the perturbation; default: what suits the task")
    parser.add_argument("--seeds", type=int, default=3)
    return parser


def compare(task: Task, args: Any) -> list[Run]:
    """Trains with each method and seed, and prints the means."""
    runs: list[Run] = []
    epochs, seeds = (1, 1) if args.smoke else (task.epochs, args.seeds)
    for method in args.methods:
        for seed in range(seeds):
            with tqdm(total=100, desc=f"{method}, seed {seed}", unit="%", leave=False, disable=None) as bar:
                tick = partial(_advance, bar)
                runs.append(fit(task, method, rho=args.rho, epochs=epochs, seed=seed, tick=tick)[1])
    print(f"{'method':<30} seconds  " + "  ".join(runs[0]["test"]))
    for method in args.methods:
        mine = [run for run in runs if run["method"] == method]
        figures = [f"{statistics.fmean(run['test'][key] for run in mine):.2f}" for key in mine[0]["test"]]
        print(f"{method:<30} {statistics.fmean(run['seconds'] for run in mine):7.1f}  " + "  ".join(figures))
    return runs


def _advance(bar: Any, share: float) -> None:
    bar.update(int(100 * share) - bar.n)


def read_text(path: Path) -> str:
    """A text file, plain or with `.xz` after its name."""
    packed = path.with_name(f"{path.name}.xz")
    return path.read_text("utf-8") if path.exists() else lzma.decompress(packed.read_bytes()).decode("utf-8")
