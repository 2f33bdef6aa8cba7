"""A small convolutional network with batch norm: the error that SAM and GA-SAM reach beside SGD.

    python images.py                   # scikit-learn's digits: nothing to download
    python images.py --data FOLDER     # *train*.tar and *test*.tar of {index}_{label}.jpg, as CIFAR-10's are packed

A quarter of the training images chooses the epoch. Nothing is augmented: the images are few, and the network overfits.
"""

from __future__ import annotations

import io
import re
import tarfile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _training import Batch, arguments, compare
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence
    from pathlib import Path

Split = tuple[Tensor, Tensor]  # images (n, channels, height, width), labels (n,)


def network(channels: int, classes: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((channels, width, 2), (width, 2 * width, 1), (2 * width, 4 * width, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes))


class Images:
    lr, rho, epochs, size, width = 0.05, 0.05, 10, 50, 16
    base = torch.optim.SGD

    def __init__(self, folder: Path | None) -> None:
        self.options: dict[str, Any] = {"momentum": 0.9, "weight_decay": 5e-4}
        (x, y), tested = digits() if folder is None else (from_tar(folder, "train"), from_tar(folder, "test"))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
        chosen, trained = order[: len(x) // 4], order[len(x) // 4 :]
        mean, std = x[trained].mean((0, 2, 3), keepdim=True), x[trained].std((0, 2, 3), keepdim=True)
        x = (x - mean) / std
        self.train, self.dev_set = (x[trained], y[trained]), (x[chosen], y[chosen])
        self.test_set = (tested[0] - mean) / std, tested[1]

    def model(self) -> nn.Module:
        return network(self.train[0].shape[1], int(self.train[1].max()) + 1, self.width)

    def batches(self, draw: random.Random) -> Iterator[Batch]:
        x, y = self.train
        order = draw.sample(range(len(x)), len(x))
        for start in range(0, len(order) - self.size + 1, self.size):
            part = order[start : start + self.size]
            yield x[part], y[part]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        return cross_entropy(model(x), y)

    @staticmethod
    def measure(model: nn.Module, split: Split) -> tuple[float, float]:
        """The mean loss and the error in per cent."""
        x, y = split
        logits = torch.cat([model(part) for part in x.split(250)])
        return cross_entropy(logits, y).item(), 100 * (logits.argmax(1) != y).double().mean().item()

    def dev(self, model: nn.Module) -> float:
        return self.measure(model, self.dev_set)[1]

    def test(self, model: nn.Module) -> dict[str, float]:
        loss, error = self.measure(model, self.test_set)
        return {"error": error, "loss": loss}


def digits() -> tuple[Split, Split]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    test, train = order[: len(x) // 2], order[len(x) // 2 :]
    return (x[train], y[train]), (x[test], y[test])


def from_tar(folder: Path, part: str) -> Split:
    images, labels = [], []
    for path in sorted(folder.glob(f"*{part}*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                file, name = archive.extractfile(member), re.search(r"_(\d+)\.jpe?g$", member.name)
                if file is not None and name is not None:
                    images.append(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")))
                    labels.append(int(name[1]))
    if not images:
        raise FileNotFoundError(f"no picture named like 00012_7.jpg in {folder.name}/*{part}*.tar")
    return torch.tensor(np.stack(images), dtype=torch.float32).movedim(3, 1) / 255, torch.tensor(labels)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(__doc__, "folder of *train*.tar and *test*.tar").parse_args(argv)
    compare(Images(args.data), args)


if __name__ == "__main__":
    main()
