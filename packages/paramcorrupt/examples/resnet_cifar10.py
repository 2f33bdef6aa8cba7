"""How fragile is a trained ResNet-20? The worst corruptions of its weights, predicted and measured on CIFAR-10 images.

    python resnet_cifar10.py --data FOLDER              # see below
    python resnet_cifar10.py --data FOLDER --depth 56
    python resnet_cifar10.py --smoke                    # seconds: random weights and images, nothing is downloaded

FOLDER has `weights/resnet_cifar10/resnet20-*.th`, of https://github.com/akamaster/pytorch_resnet_cifar10, and
`images/cifar10_test*.tar` of pictures that are named {index}_{label}.jpg.
"""

from __future__ import annotations

import io
import math
import re
import tarfile
from argparse import ArgumentParser
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu

from paramcorrupt import indicator, multistep

if TYPE_CHECKING:
    from collections.abc import Sequence

Batch = tuple[Tensor, Tensor]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BUDGETS: Sequence[tuple[float, float, int | None]] = (
    (2, 0.05, None),
    (2, 0.2, None),
    (2, 0.5, None),
    (2, 0.5, 1000),
    (2, 0.5, 100),
    (2, 0.5, 10),
    (math.inf, 2e-4, None),
    (math.inf, 1e-2, 1000),
    (1, 1.0, None),
)


class Block(nn.Module):
    """Two convolutions beside a shortcut that has no weights: it skips pixels and adds channels of zeros."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.added = stride, (width - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added))
        return relu(y + x)


class ResNet(nn.Module):
    """The residual network for CIFAR of He et al. (2015), of 6 n + 2 layers."""

    def __init__(self, depth: int = 20, classes: int = 10) -> None:
        super().__init__()
        count = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._layer(16, 16, count, 1)
        self.layer2 = self._layer(16, 32, count, 2)
        self.layer3 = self._layer(32, 64, count, 2)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _layer(inputs: int, width: int, count: int, stride: int) -> nn.Sequential:
        return nn.Sequential(Block(inputs, width, stride), *(Block(width, width, 1) for _ in range(count - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def trained(data: Path, depth: int = 20) -> ResNet:
    """The network with the published weights, in evaluation mode."""
    file = next((data / "weights" / "resnet_cifar10").glob(f"resnet{depth}-*.th"), None)
    if file is None:
        raise FileNotFoundError(f"no weights/resnet_cifar10/resnet{depth}-*.th in {data}")
    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    model = ResNet(depth)
    lost = model.load_state_dict({name.removeprefix("module."): x for name, x in state.items()}, strict=False)
    if lost.unexpected_keys or any(not name.endswith("num_batches_tracked") for name in lost.missing_keys):
        raise ValueError(f"{file.name} is not of this network: {lost}")
    return model.eval()


def images(data: Path, count: int | None = None) -> Batch:
    """The first test images, by name, and their labels."""
    import numpy as np
    from PIL import Image

    file = next((data / "images").glob("cifar10_test*.tar"), None)
    if file is None:
        raise FileNotFoundError(f"no images/cifar10_test*.tar in {data}")
    pixels, labels = [], []
    with tarfile.open(file) as archive:
        members = {member.name: member for member in archive if re.search(r"_\d+\.jpg$", member.name)}
        for name in sorted(members)[:count]:
            picture = archive.extractfile(members[name])
            assert picture is not None
            pixels.append(np.asarray(Image.open(io.BytesIO(picture.read())).convert("RGB")))
            labels.append(int(name[:-4].rpartition("_")[2]))
    x = torch.from_numpy(np.stack(pixels)).movedim(3, 1).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (x - mean) / std, torch.tensor(labels)


def random_images(count: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 32, 32, generator=generator), torch.randint(10, (count,), generator=generator)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="folder of weights/resnet_cifar10 and images/cifar10_test*.tar")
    parser.add_argument("--depth", type=int, choices=(20, 56), default=20)
    parser.add_argument("--images", type=int, default=500, help="how many test images (default 500)")
    parser.add_argument("--smoke", action="store_true", help="random weights and few random images")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    if options.smoke:
        model, (x, y) = ResNet(8).eval(), random_images(8)
    elif options.data is None:
        parser.error("--data is needed: a folder of weights and images (or try --smoke)")
    else:
        model, (x, y) = trained(options.data, options.depth), images(options.data, options.images)
    data = list(zip(x.split(250), y.split(250), strict=True))

    k = sum(p.numel() for p in model.parameters())
    print(f"{k:,} weights, {len(x)} images\n")
    print(f"{'||a||':>6} {'eps':>7} {'weights':>8} {'loss +':>8} {'predicted':>9} {'accuracy':>8}")
    for p, eps, n in BUDGETS:
        found = indicator(model, "cross_entropy", data, eps=eps, p=p, n=n)
        print(
            f"{p:>6g} {eps:>7g} {found.nnz:>8,} {found.measured:>8.4f} {found.predicted:>9.4f} "
            f"{100 * found.accuracy_corrupted:>7.1f}%"
        )
    climbed = multistep(model, "cross_entropy", data, eps=0.1, steps=5)
    one = indicator(model, "cross_entropy", data, eps=0.1)
    print(f"\nof norm 0.1, in one step: loss +{one.measured:.4f}; in five steps: +{climbed.measured:.4f}")
    print(f"unchanged: loss {one.loss:.4f}, accuracy {100 * one.accuracy:.1f}%")


if __name__ == "__main__":
    main()
