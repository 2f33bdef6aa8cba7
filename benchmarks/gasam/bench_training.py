"""What it does to training: quality beside the base optimizer, SAM and ASAM, and steps that cost less than twice."""

from __future__ import annotations

import random
import statistics
from functools import partial
from itertools import cycle, islice
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
    at_most,
)
from tasks import (
    CHEAP,
    EXPERIMENTS,
    FLAT,
    LONGER,
    RADIUS,
    Experiment,
    Images,
    LanguageModelling,
    Runs,
    Translation,
    WrongLabels,
    build,
    fit,
    longer,
    ratio,
    results,
)
from torch import Tensor, nn

import gasam

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tasks import Run, Task

PACKAGES = ("gasam", "pytorch_optimizer", "torch")
PEER = "pytorch_optimizer's SAM"
LATER = CHEAP[2:5]  # timed in the full profile only
RUNS = Path(__file__).resolve().parents[1] / "report" / "gasam-runs.jsonl"  # where an interrupted experiment goes on


# --- the peer ---


def peer(model: nn.Module, base: type[torch.optim.Optimizer], rho: float, **options: Any) -> torch.optim.Optimizer:
    """pytorch_optimizer's SAM, whose `step` expects the closure to have been called once before."""
    from pytorch_optimizer import SAM

    class Peer(SAM):  # type: ignore[misc]
        def step(self, closure: Callable[[], Tensor]) -> None:
            with torch.enable_grad():
                closure()
            super().step(closure)

    return Peer(model.parameters(), base, rho=rho, **options)


def equal(context: Context) -> str:
    """Ours beside the peer on the same batches; the largest distance of a weight after any step."""
    task, steps, away = LanguageModelling(None, 6000, 32, 0.0), context.pick(5, 50), 0.0
    torch.manual_seed(0)
    first = task.model()
    models = first, task.model()
    models[1].load_state_dict(first.state_dict())
    options: dict[str, Any] = {"rho": 0.05, "lr": 0.5, "momentum": 0.9}
    optimizers = gasam.SAM(first, torch.optim.SGD, **options), peer(models[1], torch.optim.SGD, **options)
    for batch in islice(cycle(task.batches(random.Random(0))), steps):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.step(closure(task, model, batch))
        pairs = zip(*(model.parameters() for model in models), strict=True)
        away = max(away, *(float((a - b).detach().abs().max()) for a, b in pairs))
    if not away <= 1e-5:
        raise UnequalError(f"gasam.SAM and {PEER} are {away:.2g} apart within {steps} steps")
    return f"gasam.SAM and {PEER}: weights at most {away:.1g} apart in {steps} steps of an LSTM."


def closure(task: Task, model: nn.Module, batch: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    def evaluate(fraction: float = 1.0) -> Tensor:
        model.zero_grad()
        loss = task.loss(model, tuple(x[: max(1, round(fraction * len(x)))] for x in batch))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    return evaluate


# --- what a step costs ---


def sentences(context: Context) -> Task:
    """A Transformer, whose norm layers are few weights."""
    task = Translation(None, width=context.pick(16, 64, 96))
    task.size = context.pick(32, 64, 160)
    return task


def pictures(context: Context) -> Task:
    """A convolutional network, whose work grows with the batch alone."""
    task, task.width, task.size = Images(None), context.pick(4, 64), context.pick(8, 128)
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(task.size, 3, 32, 32, generator=draw), torch.randint(10, (task.size,), generator=draw)
    task.train = x, y
    return task


def steps(
    of: Callable[[Context], Task], names: Sequence[str], repeat: int, context: Context
) -> Mapping[str, Callable[[], Contestant]]:
    """Steps of each method, on the same batch."""
    task = of(context)
    batch = next(iter(task.batches(random.Random(0))))

    def contestant(name: str) -> Contestant:
        torch.manual_seed(0)
        model = task.model()
        options = {"lr": 1e-4, "fused": True}
        if name == PEER:
            optimizer = peer(model, task.base, 0.05, **options)
        else:
            optimizer = build(task, name, model, rho=0.05, **options)
        evaluate = closure(task, model, batch)

        def run() -> None:
            for _ in range(repeat):
                optimizer.step(evaluate)

        return Contestant(run)

    return {name: partial(contestant, name) for name in names if name not in LATER or context.profile != "quick"}


# --- quality ---


OURS = "GA-SAM, b=+1", "GA-SAM"
FOUND = {"base": 0.0, LONGER: 0.0, PEER: 0.5, "GA-SAM": 0.02, "GA-SAM, b=+1": 0.5}  # radii, by the full run's search


def glance(context: Context, outcome: Outcome) -> None:
    """The full profile's task of wrong labels in small: its settings, fewer epochs and seeds."""
    task, seeds = WrongLabels(), context.pick(2, 4)
    task.epochs = context.pick(1, 24)
    found: dict[str, list[Run]] = {}
    for place, (name, rho) in enumerate(FOUND.items(), 1):
        method = {LONGER: "base", PEER: peer}.get(name, name)
        epochs = longer(task.epochs) if name == LONGER else task.epochs
        found[name] = [fit(task, method, lr=0.05, rho=rho, epochs=epochs, seed=seed)[1] for seed in range(seeds)]
        context.progress(place / len(FOUND))
    others = [name for name in FOUND if name not in OURS]
    others.sort(key=lambda name: statistics.fmean(run["test"]["error"] for run in found[name]))  # the best first
    report(context, outcome, found, "error", *((ours, name) for ours in OURS for name in others))
    headline, default = outcome.figures[0], outcome.figures[len(others)]
    headline.headline = True
    headline.note = f"{headline.note}; the default, GA-SAM: {default.value:.3f}".removeprefix("; ")


def report(
    context: Context, outcome: Outcome, found: dict[str, list[Run]], measure: str, *pairs: tuple[str, str]
) -> None:
    """The ratios seed by seed with their 95 % intervals, and a table of means and standard deviations."""
    for ours, theirs in pairs:
        value, low, high = ratio(*([run["test"][measure] for run in found[name]] for name in (ours, theirs)))
        figure = Figure(measure, ours, theirs, f"x the {measure}", value, low, high)
        judge(context, figure)
        outcome.figures.append(figure)
    keys = list(next(iter(found.values()))[0]["test"])
    outcome.table = [["method", "rate", "rho", *keys, "CPU seconds"]]
    for method, runs in found.items():
        cells = [shown([run["test"][key] for run in runs]) for key in keys]
        rho = "" if method in ("base", LONGER) else f"{runs[0]['rho']:g}"
        seconds = f"{statistics.median(run['seconds'] for run in runs):.1f}"
        outcome.table.append([method, f"{runs[0]['lr']:g}", rho, *cells, seconds])


def judge(context: Context, figure: Figure) -> None:
    """Below 1 is met only where the whole interval is."""
    assert figure.low is not None
    assert figure.high is not None
    if figure.low <= 1 <= figure.high:
        figure.note = "not told apart: the interval holds 1"
        figure.verdict = "reported" if context.profile == "smoke" else "unclear"
    else:
        figure.target = at_most(1)
        figure.note = "the peer is better here" if figure.low > 1 else ""


def shown(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


def quality(experiment: Experiment, context: Context, outcome: Outcome) -> None:
    data = None if context.data is None else Path(context.data)
    try:
        found = results(experiment, data, Runs(RUNS), context.progress)
    except FileNotFoundError as error:
        raise MissingError(f"this needs --data: {error}") from error
    pairs = [(ours, theirs) for ours in ("GA-SAM", "SAM") for theirs in ("base", LONGER)]
    pairs += [
        ("GA-SAM", "SAM"),
        ("GA-SAM", "ASAM"),
        ("GA-SAM, b=+1", "base"),
        ("GA-SAM, b=+1", LONGER),
        ("GA-SAM, b=+1", "GA-SAM"),
        (CHEAP[0], "base"),
        (CHEAP[0], "GA-SAM"),
    ]
    pairs = [pair for pair in pairs if set(pair) <= found.keys()]
    report(context, outcome, found, experiment.measure, *pairs)
    for key, label in (("eigenvalue", "top eigenvalue"), ("worst", f"worst loss within {RADIUS:g}")):
        for method in FLAT[1:] if experiment.flat else ():
            values = ratio(*([run["flat"][key] for run in found[name]] for name in (method, "base")))
            figure = Figure(label, method, "base", "x", *values)
            judge(context, figure)
            outcome.figures.append(figure)


WORKLOADS: tuple[Workload, ...] = (
    Race(
        "training, the cost of a step",
        "Ten steps of a Transformer with fused Adam, one batch of 160 sentences (64 in the quick run). Two gradients "
        "cost twice the base; the others spare a part of the first, more of them in the full run.",
        partial(steps, sentences, ("GA-SAM", "base", "SAM", PEER, *CHEAP), 10),
        equal,
        [
            Versus("base", name="two gradients"),
            Versus(PEER, name="the same method", ours="SAM"),
            Versus("base", at_most(1.3), ours=CHEAP[0]),
            Versus("base", at_most(1.5), ours=CHEAP[1]),
            Versus("base", at_most(1.2), ours=CHEAP[2]),
            Versus("base", at_most(1.75), ours="GA-SAM, norm layers"),
            Versus("base", at_most(1.1), ours="MSAM"),
            Versus("base", ours="LookSAM"),
        ],
        CPU,
        seconds=8.0,
    ),
    Race(
        "training, the cost of a step: a convolutional network",
        "Two steps with fused SGD, a batch of 128 pictures, of which the ascent takes a quarter.",
        partial(steps, pictures, (CHEAP[0], "base", "GA-SAM"), 2),
        equal,
        [Versus("base", at_most(1.35)), Versus("base", name="two gradients", ours="GA-SAM")],
        FULL | {"smoke"},
        seconds=8.0,
    ),
    Study(
        "training, digits with wrong labels",
        "A perceptron on scikit-learn's digits, 30 % of whose labels are wrong, 24 epochs: the test error at the best "
        "epoch; ratios seed by seed of four, geometric mean and 95 % interval (Student's t). Learning rate and radii "
        "are those that the full profile's search finds; the longer base has the time of SAM. b=+1 is "
        "strength_exponent=1, not the default.",
        glance,
        frozenset({"smoke", "quick"}),
    ),
    *(
        Study(
            f"training, {experiment.name}",
            f"Test {experiment.measure} at the best epoch of the development set. Every method has tried four settings "
            f"(rates of the base, radii of the others) with another seed. Mean and standard deviation of "
            f"{experiment.seeds} seeds; ratios seed by seed, geometric mean and 95 % interval (Student's t): the "
            "seeds' spread, not that of the test set.",
            partial(quality, experiment),
            FULL,
        )
        for experiment in EXPERIMENTS
    ),
)
