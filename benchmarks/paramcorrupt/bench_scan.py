"""One gradient against one evaluation for each tensor: passes, time, ranking, and the loss that corruptions reach."""

from __future__ import annotations

import math
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from harness import (
    CPU,
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
)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "packages" / "paramcorrupt" / "examples"))
from resnet_cifar10 import ResNet, images, random_images, trained

import paramcorrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    Batches = list[tuple[Tensor, Tensor]]

PACKAGES = ("paramcorrupt", "torch")
OURS, NAIVE, PREDICTION = "scan, five verified", "one evaluation for each tensor", "prediction"
VERIFIED, RELATIVE = 5, 0.02
LOSS = "cross_entropy"

# Of an independent implementation: p, eps, n, accuracy in %, rise of the loss and its first order; 500 images.
TABLE = (
    (2, 0.05, None, 75.2, 0.51311, 0.39060),
    (2, 0.2, None, 48.0, 4.21526, 1.56241),
    (2, 0.5, None, 17.8, 18.5278, 3.90603),
    (math.inf, 2e-4, None, 73.6, 0.64426, 0.46823),
    (math.inf, 1e-3, None, 36.4, 8.2096, 2.34117),
    (1, 1.0, None, 49.4, 2.31434, 0.73771),
    (2, 0.5, 10, 67.6, 1.26747, 0.71608),
    (2, 0.5, 100, 49.8, 3.61250, 1.36447),
    (2, 0.5, 1000, 34.0, 6.34498, 2.16334),
    (math.inf, 1e-2, 1000, 54.4, 2.62095, 1.22445),
    (4, 0.05, None, 15.2, 37.4557, 6.1876),
    (1.5, 0.5, None, 62.4, 1.58284, 0.86479),
)


@cache
def real(data: str | None, count: int) -> tuple[nn.Module, Batches]:
    """The trained ResNet-20 and test images."""
    if not data:
        raise MissingError("this needs --data: a folder with weights/resnet_cifar10 and images/cifar10_test*.tar")
    try:
        return trained(Path(data)), batched(*images(Path(data), count))
    except FileNotFoundError as error:
        raise MissingError(str(error)) from error


def untrained(context: Context) -> tuple[nn.Module, Batches]:
    """Random weights and images: what passes and time depend on."""
    torch.manual_seed(0)
    return ResNet(context.pick(8, 20)).eval(), batched(*random_images(context.pick(4, 4, 128)))


def batched(x: Tensor, y: Tensor) -> Batches:
    return list(zip(x.split(250), y.split(250), strict=True))


class Passes:
    """How often a model is called, and how often a gradient comes back to its output."""

    def __init__(self, model: nn.Module) -> None:
        self.forwards = self.backwards = 0
        self.handle = model.register_forward_hook(self.forward)

    def __enter__(self) -> Passes:
        return self

    def __exit__(self, *error: object) -> None:
        self.handle.remove()

    def forward(self, model: object, x: object, output: Tensor) -> None:
        self.forwards += 1
        if output.requires_grad:
            output.register_hook(self.backward)

    def backward(self, grad: Tensor) -> None:
        self.backwards += 1


# --- passes and time --------------------------------------------------------------------------------------------------


def scanned(model: nn.Module, data: Batches, verify: Any = VERIFIED, **options: Any) -> paramcorrupt.Report:
    eps = paramcorrupt.relative(RELATIVE)
    return paramcorrupt.scan(model, LOSS, data, eps=eps, verify=verify, progress=False, **options)


def one_by_one(model: nn.Module, data: Batches) -> dict[str, float]:
    """A corruption of every tensor, the same as ours, is added, measured and taken back by a copy."""
    grads = gradient(model, data)
    found = {}
    with torch.no_grad():
        clean, _ = evaluated(model, data)
        for name, p in model.named_parameters():
            backup = p.clone()
            p.add_(grads[name], alpha=RELATIVE * float(p.norm() / grads[name].norm()))
            found[name] = evaluated(model, data)[0] - clean
            p.copy_(backup)
    return found


def gradient(model: nn.Module, data: Batches) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    total = sum(len(y) for _, y in data)
    losses = sum(torch.nn.functional.cross_entropy(model(x), y, reduction="sum") for x, y in data)
    return dict(zip(names, torch.autograd.grad(losses / total, parameters), strict=True))


def evaluated(model: nn.Module, data: Batches) -> tuple[float, float]:
    """The mean loss, and the accuracy in percent."""
    losses, hits = [], 0
    for x, y in data:
        output = model(x)
        losses.append(torch.nn.functional.cross_entropy(output, y, reduction="sum").item())
        hits += int((output.argmax(1) == y).sum())
    total = sum(len(y) for _, y in data)
    return math.fsum(losses) / total, 100 * hits / total


def same_rises(context: Context) -> str:
    model, data = untrained(context)
    peer = one_by_one(model, data)
    worst = 0.0
    for row in scanned(model, data):
        if row.measured is not None:
            worst = max(worst, abs(row.measured - peer[row.group]) / abs(peer[row.group]))
    if not worst < 1e-2:  # of differences of losses in float32
        raise UnequalError(f"a measured rise differs from the naive one by {worst:.1%}")
    return f"Rises of the loss differ from those of the plain loop by at most {worst:.1e}."


def contestants(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    model, data = untrained(context)
    return {
        OURS: lambda: Contestant(lambda: scanned(model, data)),
        NAIVE: lambda: Contestant(lambda: one_by_one(model, data)),
    }


def passes(context: Context, outcome: Outcome) -> None:
    model, data = untrained(context)
    with Passes(model) as ours:
        report = scanned(model, data)
    with Passes(model) as naive:
        one_by_one(model, data)
    outcome.equal = f"Hooks of the model count {ours.forwards} forwards and {ours.backwards} backward."
    if (ours.forwards, ours.backwards) != (report.facts()["forwards"], report.facts()["backwards"]):
        raise UnequalError(f"{outcome.equal} The report says {report.facts()['forwards']}")
    for name, value, limit, peer in (
        ("forward passes over the data", ours.forwards, 1 + VERIFIED, naive.forwards),
        ("backward passes", ours.backwards, 1, naive.backwards),
    ):
        figure = Figure(name, OURS, f"{NAIVE}: {peer}", " passes", float(value), target=at_most(limit))
        outcome.figures.append(figure)


# --- what is found ----------------------------------------------------------------------------------------------------


def table(context: Context, outcome: Outcome) -> None:
    model, data = real(context.data, 500)
    outcome.table = [["p", "eps", "n", "predicted", "measured", "accuracy", "expected rise", "expected accuracy"]]
    errors = {"first order": 0.0, "rise of the loss": 0.0, "accuracy": 0.0}
    grads = gradient(model, data)
    with torch.no_grad():
        clean, _ = evaluated(model, data)
        for done, (p, eps, n, accuracy, rise, first_order) in enumerate(TABLE):
            worst = paramcorrupt.corruption(grads, eps=eps, p=p, n=n)
            with paramcorrupt.corrupted(model, worst):
                corrupt, percent = evaluated(model, data)
            measured = corrupt - clean
            errors["first order"] = max(errors["first order"], abs(worst.gain / first_order - 1))
            errors["rise of the loss"] = max(errors["rise of the loss"], abs(measured / rise - 1))
            errors["accuracy"] = max(errors["accuracy"], abs(percent - accuracy))
            numbers = (p, eps, worst.n, worst.gain, measured, percent, rise, accuracy)
            outcome.table.append([f"{x:.6g}" for x in numbers])
            context.progress((done + 1) / len(TABLE))
    for (name, error), limit, unit in zip(
        errors.items(), (1e-5, 1e-3, 0.4), (" relative", " relative", " points"), strict=True
    ):
        ours, peer = "largest difference of 12 corruptions", "an independent implementation"
        outcome.figures.append(Figure(name, ours, peer, unit, error, target=at_most(limit)))


def ranking(context: Context, outcome: Outcome) -> None:
    model, data = real(context.data, context.pick(250, 250, 500))
    matrices = {name: name for name, p in model.named_parameters() if p.dim() > 1}
    groups: Any = context.pick(matrices, matrices, "tensor")  # patterns have a group of the others, too
    report = scanned(model, data, verify="all", groups=groups)
    rows = [row for row in report if row.group in matrices]
    correlated(outcome, f"{len(rows)} tensors of two or more dimensions", rows)
    if groups == "tensor":
        correlated(outcome, f"all {len(report)} tensors", list(report))


def small_world(context: Context, outcome: Outcome) -> None:
    """The same on networks that are trained here, a minute's work for three seeds, with saliency as a rival."""
    correlations: dict[str, list[float]] = {}
    for seed in range(context.pick(1, 3)):
        model, data = digits(seed, context.pick(1, 4))
        report = scanned(model, data, verify="all", groups={n: n for n, p in model.named_parameters() if p.dim() > 1})
        grads, weights = gradient(model, data), {n: p.detach() for n, p in model.named_parameters()}
        rows = [row for row in report if row.group in weights]
        measured = [row.measured or 0.0 for row in rows]
        for name, of in (
            (PREDICTION, lambda row: row.predicted),
            ("sum of |weight x gradient|", lambda row: float((weights[row.group] * grads[row.group]).abs().sum())),  # noqa: B023
            ("number of weights", lambda row: row.numel),
            ("norm of the weights", lambda row: row.weight_norm),
        ):
            correlations.setdefault(name, []).append(spearman([of(row) for row in rows], measured))
        context.progress((seed + 1) / context.pick(1, 3))
    means = {name: sum(values) / len(values) for name, values in correlations.items()}
    ours = correlations.pop(PREDICTION)
    best = max(correlations, key=means.__getitem__)
    figure = Figure("rank correlation with the measured rise", PREDICTION, f"{best}: {means[best]:.3f}")
    figure.value, figure.low, figure.high = means[PREDICTION], min(ours), max(ours)
    figure.target, figure.headline = at_least(max(0.9, means[best])), True
    figure.note = f"mean and range of {len(ours)} networks, {len(rows)} tensors each"
    outcome.figures.append(figure)
    outcome.bars, outcome.bars_unit = means, "mean rank correlation with the measured rise"


def digits(seed: int, epochs: int) -> tuple[nn.Module, Batches]:
    """A ResNet of depth 14, trained on half of scikit-learn's digits, and the other half."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    x = (torch.tensor(loaded.images, dtype=torch.float32) / 8 - 1)[:, None].expand(-1, 3, -1, -1).contiguous()
    y = torch.tensor(loaded.target)
    torch.manual_seed(seed)
    model = ResNet(14).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for _ in range(epochs):
        for batch in (2 * torch.randperm(len(x) // 2)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval(), batched(x[1::2][:300], y[1::2][:300])


def correlated(outcome: Outcome, name: str, rows: Sequence[paramcorrupt.ReportRow]) -> None:
    measured = [row.measured or 0.0 for row in rows]
    ours, size, norm = (
        spearman([getattr(row, field) for row in rows], measured) for field in ("predicted", "numel", "weight_norm")
    )
    peer = f"best of number of weights {size:.3f}, their norm {norm:.3f}"
    figure = Figure(f"{name}: rank correlation with the measured rise", "prediction", peer, "", ours)
    figure.target, figure.headline = at_least(max(0.98, size, norm)), True
    outcome.figures.append(figure)


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Of values that are all different, but for numbers of weights, whose ranks are then shared."""
    ranks = [[(sum(b < a for b in z) + sum(b <= a for b in z) + 1) / 2 for a in z] for z in (x, y)]
    return float(torch.corrcoef(torch.tensor(ranks, dtype=torch.float64))[0, 1])


def climbing(context: Context, outcome: Outcome) -> None:
    model, data = real(context.data, context.pick(250, 250, 500))
    one = paramcorrupt.indicator(model, LOSS, data, eps=0.1)
    step_sizes = context.pick((1.5,), (1.5,), (1.0, 1.5))
    for done, step_size in enumerate(step_sizes):
        five = paramcorrupt.multistep(model, LOSS, data, eps=0.1, steps=5, step_size=step_size)
        ours = f"five steps, step size {step_size:g}: +{five.measured:.4f}"
        figure = Figure(
            f"rise of the loss at norm 0.1, step size {step_size:g}", ours, f"one: +{one.measured:.4f}", "x"
        )
        figure.value = five.measured / one.measured
        figure.target = at_least(1.2) if step_size == 1.5 else None
        figure.note = f"{five.forwards} forwards and {five.backwards} backwards"
        outcome.figures.append(figure)
        context.progress((done + 1) / len(step_sizes))


WORKLOADS: list[Workload] = [
    Study("Passes of a scan", "ResNet-20 of 59 tensors, passes of a batch counted by hooks of the model", passes, CPU),
    Race(
        "Time of a scan",
        "ResNet-20 with random weights, 4 images (full: 128): all tensors predicted and five measured, or each "
        "corrupted and measured",
        contestants,
        same_rises,
        [Versus(NAIVE, at_least(3), "speed")],
    ),
    Study("The worst corruptions of ResNet-20", "twelve corruptions, CIFAR-10, the first 500 test images", table, CPU),
    Study(
        "What one gradient ranks, digits",
        "Three ResNets of 14 layers, trained on half of scikit-learn's digits and scanned on 300 of the others: each "
        "matrix alone moves by 2 % of its norm. Rivals are what one would go by without a scan.",
        small_world,
        CPU,
    ),
    Study("What one gradient ranks", "each tensor alone moves by 2 % of its norm, CIFAR-10", ranking, CPU),
    Study("Steps instead of one", "projected gradient ascent in the L2 ball of 0.1, CIFAR-10", climbing, CPU),
]
