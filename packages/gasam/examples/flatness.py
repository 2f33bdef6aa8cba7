"""How much flatter the minimum of GA-SAM is than that of SGD, on scikit-learn's digits: a table and a picture.

    python flatness.py                      # about a minute on one core; writes flatness.png
    python flatness.py --rho 0.02 --epochs 60
    python flatness.py --smoke              # seconds, for a look at what comes out

Both start from the same weights and see the same batches. What is measured: the largest eigenvalues of the Hessian of
the training loss, and the training loss in balls around the weights, in random directions and at the worst place found.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gasam import GASAM
from gasam.flatness import BallCurve, loss_in_ball, plot, top_eigenvalue

Batch = tuple[Tensor, Tensor]


def digits() -> tuple[Batch, Batch]:
    """Training images with labels, and those of the test: every fifth."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    test = torch.arange(len(x)) % 5 == 0
    return (x[~test], y[~test]), (x[test], y[test])


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.GELU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.GELU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 10)),
    )


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Batch, epochs: int, seed: int) -> None:
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for chosen in torch.randperm(len(data[0]), generator=order).split(64):
            batch = data[0][chosen], data[1][chosen]

            def closure(batch: Batch = batch) -> Tensor:
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()
                return loss

            optimizer.step(closure)
        schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40, help="passes over the digits (default 40)")
    parser.add_argument("--rho", type=float, default=0.05, help="radius of GA-SAM's perturbations (default 0.05)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the batches (default 0)")
    parser.add_argument("--out", type=Path, default=Path("flatness.png"), help="the picture (default flatness.png)")
    parser.add_argument("--smoke", action="store_true", help="the smallest run: shows that it works, not what is true")
    options = parser.parse_args()
    data, test = digits()
    if options.smoke:
        options.epochs, data = 1, (data[0][:256], data[1][:256])
    batches = list(zip(data[0].split(512), data[1].split(512), strict=True))
    radii = torch.linspace(0, 0.5, 3 if options.smoke else 11)

    curves: dict[str, BallCurve] = {}
    print(f"{'':8}{'train loss':>12}{'test errors':>14}{'largest eigenvalues':>28}{'worst within 0.25':>20}")
    for name in ("SGD", "GA-SAM"):
        model = network(options.seed)
        sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        optimizer = sgd if name == "SGD" else GASAM(model, sgd, rho=options.rho)
        train(model, optimizer, data, options.epochs, options.seed)
        with torch.no_grad():
            errors = (model(test[0]).argmax(1) != test[1]).float().mean().item()
        eigenvalues = top_eigenvalue(model, loss_of, batches, k=3, iterations=8 if options.smoke else 64, tol=0.01)
        curves[name] = loss_in_ball(model, loss_of, batches, radii)
        worst = curves[name].worst
        values = " ".join(f"{x:8.3f}" for x in eigenvalues)
        print(f"{name:8}{worst[0]:12.5f}{errors:14.2%}{values:>28}{worst[len(worst) // 2]:20.4f}")
    plot(curves).figure.savefig(options.out, dpi=150)
    print(f"the loss in balls around the weights is drawn in {options.out}")


if __name__ == "__main__":
    main()
