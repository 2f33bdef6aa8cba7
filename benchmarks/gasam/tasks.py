"""The experiments on training: six tasks, a search for each method's setting, then seeds; each run is kept at once.

    python tasks.py --data DIR --runs runs.jsonl [--tasks "MR, LSTM" ...]

An interrupted experiment goes on where it ended: runs in the file are not made again.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from argparse import ArgumentParser
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "packages" / "gasam" / "examples"))
from _training import build, fit  # what the examples train is what is measured here
from images import Images
from language_model import LanguageModelling
from text_classification import Polarity
from translation import Translation
from wrong_labels import WrongLabels

from gasam.flatness import loss_in_ball, top_eigenvalue

__all__ = [
    "CHEAP", "EXPERIMENTS", "FLAT", "LONGER", "METHODS", "RADIUS", "Experiment", "Images", "LanguageModelling",
    "Polarity", "Runs", "Translation", "WrongLabels", "build", "fit", "longer", "ratio", "results",
]  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from _training import Run, Task
    from torch import nn

RHOS = (0.02, 0.05, 0.15, 0.5)  # that every method tries
LONGER = "base, longer"  # as many epochs as SAM's time buys
METHODS = ("base", LONGER, "SAM", "ASAM", "GA-SAM", "GA-SAM, b=+1")
CHEAP = (
    "GA-SAM, a quarter of the batch",
    "GA-SAM, every 2",
    "GA-SAM, every 5",
    "GA-SAM, norm layers",
    "LookSAM",
    "MSAM",
)
BORROWED = CHEAP[:3]  # use the rho of GA-SAM
FLAT = ("base", "SAM", "GA-SAM")  # whose minima are measured
RADIUS = 0.5  # of the ball around the weights in which the worst loss is sought
SEARCH_SEED = 1000  # no seed of the results


@dataclass(frozen=True)
class Experiment:
    """A task and the settings that are tried on it: as many learning rates for the base as radii for the others."""

    name: str
    path: str | None  # of its data set; None for one that scikit-learn has
    build: Callable[[Any], Task]
    lrs: tuple[float, ...]
    measure: str = "error"
    methods: tuple[str, ...] = METHODS
    flat: bool = False  # whether the minima of FLAT are measured
    seeds: int = 5  # of the results, from 0

    def task(self, data: Path | None) -> Task:
        """The task on a data set in the folder `data`; FileNotFoundError if it is not there."""
        if self.path is None:
            return self.build(None)
        if data is None or not (data / self.path).exists():
            raise FileNotFoundError(f"a folder with {self.path}")
        return self.build(data / self.path)


EXPERIMENTS = (
    Experiment(
        "WikiText-2, LSTM", "text/wikitext2", LanguageModelling, (1e-2, 2e-2, 4e-2, 8e-2), "perplexity",
        methods=(*METHODS, CHEAP[0]),
    ),
    Experiment("MR, LSTM", "text/sentence_polarity.zip", Polarity, (2e-3, 4e-3, 8e-3, 1.6e-2), flat=True),
    Experiment("SST-2, TextCNN", "text/sst2", lambda path: Polarity(path, "cnn"), (2e-3, 4e-3, 8e-3, 1.6e-2)),
    Experiment("CIFAR-10, 2250 images", "images", Images, (0.02, 0.05, 0.1, 0.2), flat=True),
    Experiment("Multi30k, Transformer", "text/multi30k", Translation, (1.5e-3, 3e-3, 6e-3, 1.2e-2), "perplexity"),
    Experiment("digits, 30 % wrong labels", None, lambda _: WrongLabels(), (0.02, 0.05, 0.1, 0.2), seeds=10),
)  # fmt: skip


class Runs:
    """The runs so far, in a file of one JSON object on each line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.versions = {"torch": version("torch"), "gasam": version("gasam")}
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        found = [run for run in map(json.loads, lines) if run["versions"] == self.versions]
        self.runs = {self.key(run): run for run in found}

    @staticmethod
    def key(run: Run) -> tuple[Any, ...]:
        return tuple(run[name] for name in ("task", "method", "lr", "rho", "epochs", "seed"))

    def get(
        self, experiment: Experiment, task: Task, method: str, lr: float, rho: float, seed: int, flat: bool = False
    ) -> Run:
        """The run with these settings, made now if it was not before; `flat`: with its flatness."""
        epochs = longer(task.epochs) if method == LONGER else task.epochs
        name = "base" if method == LONGER else method
        run: Run = {"task": experiment.name, "method": name, "lr": lr, "rho": rho, "epochs": epochs, "seed": seed}
        before = self.runs.get(self.key(run))
        if before is not None and (not flat or "flat" in before):
            return before
        model, found = fit(task, name, lr=lr, rho=rho, epochs=epochs, seed=seed)
        run |= found | {"versions": self.versions}
        if flat:
            run["flat"] = flatness(task, model)
        self.runs[self.key(run)] = run
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(run) + "\n")
        return run


def flatness(task: Task, model: nn.Module) -> dict[str, float]:
    """The Hessian's top eigenvalue and losses on four training batches, in eval mode."""
    data = list(islice(task.batches(random.Random(0)), 4))
    model.eval()
    (top,) = top_eigenvalue(model, task.loss, data, iterations=24, tol=0.01).tolist()
    curve = loss_in_ball(model, task.loss, data, [0.0, RADIUS], directions=4)
    return {"eigenvalue": top, "loss": curve.worst[0].item(), "worst": curve.worst[1].item()}


def longer(epochs: int) -> int:
    """The epochs of the base that take the CPU time of `epochs` of SAM, a little more than twice."""
    return round(2.2 * epochs)


def search(experiment: Experiment, task: Task, runs: Runs) -> Iterator[tuple[str, float, float]]:
    """Per method the learning rate and the radius that do best on the development set."""

    def best(method: str, settings: Iterable[tuple[float, float]]) -> tuple[float, float]:
        return min(settings, key=lambda pair: runs.get(experiment, task, method, *pair, SEARCH_SEED)["dev"])

    rates = [(lr, 0.0) for lr in experiment.lrs]
    lr, _ = best("base", rates)
    yield "base", lr, 0.0
    radii: dict[str, float] = {}
    for method in experiment.methods[1:]:
        if method == LONGER:
            yield method, lr, 0.0
            continue
        radius = radii.get("GA-SAM") if method in BORROWED else None
        radii[method] = best(method, [(lr, rho) for rho in RHOS])[1] if radius is None else radius
        yield method, lr, radii[method]


def results(
    experiment: Experiment, data: Path | None, runs: Runs, tick: Callable[[float], object] = lambda share: None
) -> dict[str, list[Run]]:
    """Per method the runs of all seeds, at the setting that its search found."""
    task = experiment.task(data)
    chosen = list(search(experiment, task, runs))
    found: dict[str, list[Run]] = {method: [] for method, _, _ in chosen}
    for seed in range(experiment.seeds):
        for method, lr, rho in chosen:
            flat = experiment.flat and method in FLAT
            found[method].append(runs.get(experiment, task, method, lr, rho, seed, flat))
        tick((seed + 1) / experiment.seeds)
    return found


def ratio(ours: Iterable[float], theirs: Iterable[float]) -> tuple[float, float, float]:
    """The geometric mean of ratios seed by seed, and its 95 % interval by Student's t."""
    from scipy.stats import t

    logs = torch.tensor(list(ours), dtype=torch.float64).log() - torch.tensor(list(theirs), dtype=torch.float64).log()
    half = float(t.ppf(0.975, len(logs) - 1)) * logs.std() / len(logs) ** 0.5
    low, middle, high = (float(x.exp()) for x in (logs.mean() - half, logs.mean(), logs.mean() + half))
    return middle, low, high


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of data sets")
    parser.add_argument("--runs", type=Path, required=True, help="the file of runs")
    parser.add_argument("--tasks", nargs="+", choices=[e.name for e in EXPERIMENTS], help="default: all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = Runs(args.runs)
    for experiment in EXPERIMENTS:
        if args.tasks is None or experiment.name in args.tasks:
            found = results(experiment, args.data, runs)
            for method, mine in found.items():
                values = [run["test"][experiment.measure] for run in mine]
                mean, settings = statistics.fmean(values), f"lr {mine[0]['lr']:g}, rho {mine[0]['rho']:g}"
                print(f"{experiment.name}; {method}; {settings}: {mean:.2f} +- {statistics.stdev(values):.2f}")


if __name__ == "__main__":
    main()
