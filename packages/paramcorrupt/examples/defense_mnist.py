"""Trains a perceptron with and without a defence, then attacks the weights of each within a ball around them.

    python defense_mnist.py                        # scikit-learn's digits
    python defense_mnist.py --data FOLDER          # MNIST, of mnist.npz: X [n, 28, 28] of bytes, y, is_test

All trainings of a seed start from the same weights and see the same batches; the defence begins in the second half.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from paramcorrupt import Defense, multistep

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ATTACKS = 0.5, 1.0
DEFENCES: dict[str, dict[str, Any]] = {
    "normal": {"eps": 0.0},
    "average risk, eps 0.5": {"eps": 0.5},
    "average risk, eps 1": {"eps": 1.0},
    "last risk, eps 0.5": {"eps": 0.5, "risk": "last"},
    "mixed risk, eps 0.5": {"eps": 0.5, "risk": "mix"},
}


class Data(NamedTuple):
    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    epochs: int


def digits() -> Data:
    from sklearn.datasets import load_digits

    loaded = load_digits()
    x, y = torch.tensor(loaded.data, dtype=torch.float32) / 8 - 1, torch.tensor(loaded.target)
    is_test = torch.arange(len(x)) % 4 == 3
    return Data("digits", (x[~is_test], y[~is_test]), (x[is_test], y[is_test]), epochs=24)


def mnist(folder: Path) -> Data:
    places = [folder / "mnist.npz", folder / "images" / "mnist.npz"]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        sys.exit(f"{folder} has no mnist.npz; without --data this trains on scikit-learn's digits")
    with np.load(path) as file:
        x, y, is_test = torch.tensor(file["X"]), torch.tensor(file["y"]).long(), torch.tensor(file["is_test"]).bool()
    x = (x.flatten(1) / 255 - 0.1307) / 0.3081
    return Data("MNIST", (x[~is_test], y[~is_test]), (x[is_test], y[is_test]), epochs=8)


def train(data: Data, seed: int, *, eps: float, **options: Any) -> nn.Module:
    """A perceptron of one hidden layer. `options` are those of the defence."""
    torch.manual_seed(seed)
    x, y = data.train
    model = nn.Sequential(nn.Linear(x.shape[1], 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = Defense(model, torch.optim.Adadelta, lr=1.0, eps=0.0, **options)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7 ** (8 / data.epochs))
    for epoch in range(data.epochs):
        optimizer.eps = eps if 2 * epoch >= data.epochs else 0.0
        for batch in torch.randperm(len(x)).split(64):
            inputs, target = x[batch], y[batch]

            def closure(inputs: Tensor = inputs, target: Tensor = target) -> Tensor:
                optimizer.zero_grad()
                loss = cross_entropy(model(inputs), target)
                loss.backward()
                return loss

            optimizer.step(closure)
        scheduler.step()
    return model


def attacked(model: nn.Module, data: Data) -> dict[str, float]:
    """Per cent of the test set that are right, with the weights as they are and as ten steps of ascent leave them."""
    results = [multistep(model, "cross_entropy", [data.test], eps=eps, steps=10) for eps in ATTACKS]
    accuracies = {"clean": results[0].accuracy}
    accuracies |= {f"attack {eps:g}": result.accuracy_corrupted for eps, result in zip(ATTACKS, results, strict=True)}
    return {name: 100 * value for name, value in accuracies.items()}


def compare(data: Data, seeds: Sequence[int], defences: Iterable[str]) -> dict[str, list[dict[str, float]]]:
    """For each training the accuracies of each seed."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in defences}
    for seed in seeds:
        for name, row in rows.items():
            if sys.stderr.isatty():
                print(f"\r{data.name}, seed {seed}: {name:<30}\r", end="", file=sys.stderr, flush=True)
            row.append(attacked(train(data, seed, **DEFENCES[name]), data))
    return rows


def show(rows: dict[str, list[dict[str, float]]]) -> None:
    columns = ["clean", *(f"attack {eps:g}" for eps in ATTACKS)]
    print(f"{'training':<24}" + "".join(f"{column:>18}" for column in columns))
    for name, row in rows.items():
        cells = []
        for column in columns:
            values = [each[column] for each in row]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.2f} +- {spread:.2f}")
        print(f"{name:<24}" + "".join(f"{cell:>18}" for cell in cells))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of mnist.npz")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--defences", nargs="+", choices=DEFENCES, default=list(DEFENCES)[:3], metavar="NAME")
    parser.add_argument("--json", type=Path, help="file for the accuracies of every seed")
    parser.add_argument("--smoke", action="store_true", help="two epochs of two seeds")
    options = parser.parse_args(argv)
    data = digits() if options.data is None else mnist(options.data)
    if options.smoke:
        data, options.seeds = data._replace(epochs=2), options.seeds[:2]
    rows = compare(data, options.seeds, options.defences)
    show(rows)
    if options.json is not None:
        options.json.write_text(json.dumps({"data": data.name, "seeds": options.seeds, "accuracies": rows}, indent=2))


if __name__ == "__main__":
    main()
