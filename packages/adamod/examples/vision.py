"""Image classification: where AdaMod stands beside SGD, AdamW, AMSGrad, RAdam and schedule-free AdamW.

    python vision.py                                  # scikit-learn's digits: nothing to download
    python vision.py --data mnist.npz --limit 6000    # Keras' file, or arrays X, y and is_test
    python vision.py --data FOLDER                    # *train*.tar and *test*.tar of {index}_{label}.jpg
    python vision.py --data ylecun/mnist              # a Hugging Face data set of images and labels
    python vision.py --curves FILE                    # the authors' CIFAR-100 runs, published with the paper

A small residual network with group norm. As published, weight decay is 5e-4 and the learning rate is divided by ten
after a half and three quarters of the epochs; batches are smaller, so that a short run has a thousand steps and more.
A fifth of the training images chooses the learning rate.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _experiment import arguments, evaluating, experiment, hub, optimizer_for, parse, positive
from _report import COLOURS, Measure, draw_curves, draw_ranking, markdown, save
from matplotlib.figure import Figure
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

VAL = Measure("val_accuracy", "validation accuracy (%)", higher=True, digits=2)
TEST = Measure("test_accuracy", "test accuracy (%)", higher=True, digits=2)
Split = tuple[Tensor, Tensor]  # images (n, channels, height, width) in 0..1, labels (n,)


def load(data: str) -> tuple[Split, Split]:
    """Training and test images."""
    path = Path(data)
    if data == "digits":
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        return cut(images.reshape(-1, 8, 8) / 16, labels)
    if path.suffix == ".npz":
        return from_npz(path)
    if path.is_dir() and (train := sorted(path.glob("*train*.tar"))):
        return from_tar(train[0]), from_tar(next(path.glob("*test*.tar")))
    return from_hub(data)


def split_of(images: np.ndarray, labels: Any) -> Split:
    x = torch.as_tensor(images, dtype=torch.float32)
    x = x[:, None] if x.ndim == 3 else x.movedim(-1, 1)
    return x.contiguous(), torch.as_tensor(np.asarray(labels), dtype=torch.int64)


def cut(images: np.ndarray, labels: Any) -> tuple[Split, Split]:
    """For data without a test set: every fifth of the images, in an order fixed for all, is one."""
    x, y = split_of(images, labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    test, train = order[: len(x) // 5], order[len(x) // 5 :]
    return (x[train], y[train]), (x[test], y[test])


def from_npz(path: Path) -> tuple[Split, Split]:
    with np.load(path, allow_pickle=False) as arrays:
        if "x_train" in arrays:  # Keras
            train, test = ((arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test"))
        else:
            images, labels, is_test = arrays["X"], arrays["y"], arrays["is_test"].astype(bool)
            train, test = (images[~is_test], labels[~is_test]), (images[is_test], labels[is_test])
    return split_of(train[0] / 255, train[1]), split_of(test[0] / 255, test[1])


def from_tar(path: Path) -> Split:
    from PIL import Image

    images, labels = [], []
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and (found := re.fullmatch(r"\d+_(\d+)\.jpe?g", Path(member.name).name)):
                picture = archive.extractfile(member)
                images.append(np.asarray(Image.open(io.BytesIO(picture.read())).convert("RGB")))  # type: ignore[union-attr]
                labels.append(int(found[1]))
    if not images:
        raise ValueError(f"{path.name} holds no file named like 00012_7.jpg")
    return split_of(np.stack(images) / 255, labels)


def from_hub(name: str) -> tuple[Split, Split]:
    from datasets import ClassLabel, Image

    splits = hub(name)
    features = splits["train"].features
    image = next(key for key, feature in features.items() if isinstance(feature, Image))
    label = next(key for key, feature in features.items() if isinstance(feature, ClassLabel))

    def arrays(part: str) -> tuple[np.ndarray, list[int]]:
        rows = splits[part]
        mode = "L" if rows[0][image].mode in ("1", "L") else "RGB"
        return np.stack([np.asarray(row[image].convert(mode)) for row in rows]) / 255, rows[label]

    return (split_of(*arrays("train")), split_of(*arrays("test"))) if "test" in splits else cut(*arrays("train"))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(4, outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.GroupNorm(4, outputs),
        )  # fmt: skip
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def network(channels: int, side: int, classes: int, width: int) -> nn.Sequential:
    """A residual network of seven layers; images of 16 pixels and more are halved at once."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, 2 if side >= 16 else 1, 1, bias=False), nn.GroupNorm(4, width), nn.ReLU(),
        Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes),
    )  # fmt: skip


def augmented(x: Tensor, draw: torch.Generator) -> Tensor:
    """Photographs are mirrored and shifted by up to an eighth; grey images (digits) stay as they are."""
    if x.shape[1] == 1:
        return x
    mirror = torch.rand(len(x), 1, 1, 1, generator=draw) < 0.5
    x = torch.where(mirror.to(x.device), x.flip(3), x)
    pad = x.shape[-1] // 8
    row, column = torch.randint(2 * pad + 1, (2,), generator=draw).tolist()
    return nn.functional.pad(x, [pad] * 4)[:, :, row : row + x.shape[2], column : column + x.shape[3]]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(
        __doc__.splitlines()[0],
        data="digits, a .npz file, a folder of .tar files, or the name of a Hugging Face data set",
        optimizers="SGD AdamW AMSGrad RAdam ScheduleFree AdaMod AdaMod-paper AdaMod-.99",
        lrs=[1e-3, 3e-3, 1e-2],
    )
    parser.set_defaults(data="digits")
    parser.add_argument("--epochs", type=positive, default=30)
    parser.add_argument("--batch", type=positive, default=32, help="images per step, 128 in the published runs")
    parser.add_argument("--width", type=positive, default=16, help="channels of the first layers, a multiple of 4")
    parser.add_argument("--limit", type=positive, default=60_000, help="training images used at most")
    parser.add_argument("--curves", type=Path, help='draw published runs instead: JSON {run: {"test_acc": [...]}}')
    small = {"seeds": 2, "epochs": 1, "width": 8}
    args = parse(parser, argv, optimizers=["SGD", "ScheduleFree", "AdaMod"], lrs=[1e-2], sgd_lrs=[1e-1], **small)
    if args.curves:
        return published(args.curves, args.out)

    (x, y), (test_x, test_y) = load(args.data)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[: args.limit]
    val, train = order[: len(order) // 5], order[len(order) // 5 :]
    mean, std = x[train].mean((0, 2, 3), keepdim=True), x[train].std((0, 2, 3), keepdim=True)
    x, test_x = ((part - mean) / std for part in (x, test_x))
    x, y, test_x, test_y = (part.to(args.device) for part in (x, y, test_x, test_y))
    classes, per_epoch = int(y.max()) + 1, -(-len(train) // args.batch)
    steps = args.epochs * per_epoch

    def run(name: str, lr: float, seed: int, tick: Callable[[float], None]) -> dict[str, Any]:
        model = network(x.shape[1], x.shape[2], classes, args.width).to(args.device)
        optimizer, schedule = optimizer_for(
            name, model, lr, weight_decay=5e-4, warmup=max(1, steps // 20),
            decay=lambda step: 0.1 ** ((step >= steps / 2) + (step >= steps * 3 / 4)),
        )  # fmt: skip
        draw, curve = torch.Generator().manual_seed(seed), []
        for _ in range(args.epochs):
            for batch in train[torch.randperm(len(train), generator=draw)].split(args.batch):
                loss = nn.functional.cross_entropy(model(augmented(x[batch], draw)), y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                tick(loss.item())
            with evaluating(model, optimizer):
                curve.append(accuracy(model, x[val], y[val]))
        with evaluating(model, optimizer):
            test = accuracy(model, test_x, test_y)
        return {"val_accuracy": curve[-1], "test_accuracy": test, "val_curve": curve}

    report = experiment("vision", args, run, steps=steps, select=VAL, measures=[TEST])
    report["images"] = {"train": len(train), "validation": len(val), "test": len(test_x)}

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_ranking(left, report["best"], TEST)
    left.set_title("Each at its best learning rate")
    draw_curves(right, report["runs"], report["best"], "val_curve", range(1, args.epochs + 1))
    right.set(title="Validation while training", xlabel="epoch", ylabel=VAL.label)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return save(report, figure, args.out)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
    return 100 * right / len(y)


def published(path: Path, folder: Path) -> dict[str, Any]:
    """The authors' test curves: a table computed from the file, and their picture."""
    curves = {name: run["test_acc"] for name, run in json.loads(path.read_text("utf-8")).items()}
    labels = {"sgd": "SGD", "adam": "AdamW", "adamod": "AdaMod"}  # their Adam decays weights as AdamW does
    networks = {"resnet": "ResNet-34", "densenet": "DenseNet-121"}
    table: dict[str, dict[str, Any]] = {}
    figure = Figure(figsize=(11, 5), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, 2, sharey=True), networks.items(), strict=True):
        for name, values in curves.items():
            model, method = name.split("-")[:2]
            if model != key:
                continue
            top, last, late = max(values), values[-1], sum(values[-10:]) / len(values[-10:])
            figures = {"best": top, "epoch": values.index(top) + 1, "last": last, "mean_of_last_10": late}
            table[f"{title} {labels[method]}"] = figures
            label = f"{labels[method]}: {late:.2f}"
            axes.plot(range(1, len(values) + 1), values, color=COLOURS[labels[method]], linewidth=1, label=label)
        axes.set(title=f"CIFAR-100, {title}", xlabel="epoch", ylim=(30, 85))
        axes.grid(alpha=0.3)
        axes.legend(title="mean of last 10 epochs", loc="lower right")
    figure.axes[0].set_ylabel(TEST.label)
    lines = [
        [name, f"{row['best']:.2f} ({row['epoch']})", f"{row['last']:.2f}", f"{row['mean_of_last_10']:.2f}"]
        for name, row in table.items()
    ]
    print(markdown(["published run", "best (epoch)", "last", "mean of last 10"], lines))
    return save({"experiment": "vision_published", "table": table}, figure, folder)


if __name__ == "__main__":
    main()
