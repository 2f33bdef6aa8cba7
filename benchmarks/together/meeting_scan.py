"""What paramcorrupt's scan finds in an iounet detector and in a vade-robust model, and what its ranking is worth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from harness import Context, Figure, Outcome, UnequalError, at_least
from sklearn.datasets import load_digits

import paramcorrupt
from iounet import training
from iounet.data import synthetic_scenes
from iounet.detection import add_iou_net, small_fasterrcnn
from paramcorrupt import Objective
from vade_robust import VaDE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

SHARE = 0.02  # of the norm of a tensor, by which it is changed


def detector(context: Context) -> tuple[nn.Module, Objective, list[Any]]:
    """A small Faster R-CNN with an IoU head, trained on drawn shapes from nothing; the loss is all that it trains on.

    Its losses draw boxes at random. The scan rewinds the generator, so that every pass draws the same ones.
    """
    images, side, epochs = context.pick((4, 64, 1), (24, 64, 2), (60, 96, 4))
    scenes = synthetic_scenes(images, 0, side)
    torch.manual_seed(0)
    width = context.pick(4, 8, 16)
    sizes = {"width": width, "channels": width, "hidden": 4 * width, "min_size": side, "max_size": side}
    model = small_fasterrcnn(1 + len(scenes.classes), **sizes)
    add_iou_net(model, samples_per_image=32)
    options: dict[str, Any] = {"optimizer": "adamw", "lr": 1e-3, "warmup": 10, "schedule": "constant"}
    training.fit(model, scenes, epochs=epochs, **options)
    fresh = synthetic_scenes(context.pick(2, 2, 8), 1, side)
    batches = [([image], [target]) for image, target in (fresh[index] for index in range(len(fresh)))]

    def step(model: nn.Module, batch: Any) -> tuple[Tensor, int, None]:
        images, targets = batch
        return sum(model(images, targets).values()) * len(images), len(images), None

    return model.train(), Objective(step), batches


def mixture(context: Context) -> tuple[nn.Module, Objective, list[Any]]:
    """A fitted VaDE; the loss is the negative log-likelihood of the rows' latent means under its mixture, and how far
    the rows are from what is decoded: what predictions and reconstructions hang on."""
    X = (load_digits().data / 16).astype(np.float32)
    hidden, rounds = context.pick(((16,), 1), ((32,), 2), ((128, 128), 20))
    fitted = VaDE(10, hidden=hidden, pretrain_epochs=rounds, epochs=rounds, random_state=0, device="cpu").fit(X)
    rows = torch.from_numpy(X[:: context.pick(16, 8, 2)])

    def step(model: nn.Module, batch: Tensor) -> tuple[Tensor, int, None]:
        mean, log_variance = model.encode(batch)
        error = torch.nn.functional.binary_cross_entropy_with_logits(model.decoder(mean), batch, reduction="sum")
        entropy = 0.5 * (log_variance + 1 + math.log(2 * math.pi)).sum()
        return error - model.scores(mean, log_variance)[1].sum() - entropy, len(batch), None

    return fitted.module_, Objective(step), list(rows.split(256))


def scanned(
    make: Callable[[Context], tuple[nn.Module, Objective, list[Any]]], mode: str, context: Context, outcome: Outcome
) -> None:
    """All tensors ranked by one gradient, all of them measured, and the weights as they were."""
    (model, objective, data), draws, verify = make(context), context.pick(0, 0, 2), context.pick(5, "all")
    before = {name: x.detach().clone() for name, x in model.state_dict().items()}
    report = paramcorrupt.scan(
        model, objective, data, eps=paramcorrupt.relative(SHARE), verify=verify, mode=mode, random=draws, progress=False
    )
    names = [name for name, _ in model.named_parameters()]
    if sorted(row.group for row in report) != sorted(names):
        raise UnequalError("the scan does not list every tensor once")
    if not all(same(before[name], x) for name, x in model.state_dict().items()):
        raise UnequalError("weights, or what else a model holds, are not bit for bit as before the scan")
    context.progress(0.9)
    rows, facts = [row for row in report if row.measured is not None], report.facts()
    outcome.equal = (
        f"All {len(names)} tensors are in the report, {len(rows)} of them measured, and the model is bit for bit as "
        "before."
    )
    if not all(math.isfinite(x) for row in rows for x in (row.measured, row.predicted)):
        raise UnequalError("a prediction or a measurement is not finite")
    labels = f"one gradient: {facts['spearman']:.3f}", f"norm of the weights: {facts['spearman_weight_norm']:.3f}"
    outcome.figures = [
        Figure("rank correlation with the measured rise", *labels, "", facts["spearman"], target=at_least(0.8)),
        fragility(rows),
    ]
    outcome.table = [["tensor", "weights", "rise predicted", "rise measured", *["by random changes"] * bool(draws)]]
    for row in (*rows[:4], *rows[-2:]):
        rises = (f"{x:.3g}" for x in (row.predicted, row.measured, row.random_mean) if x is not None)
        outcome.table.append([row.group, f"{row.numel:,}", *rises])


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, NaN included."""
    return a.dtype == b.dtype and bool((a.reshape(-1).view(torch.uint8) == b.reshape(-1).view(torch.uint8)).all())


def fragility(rows: Sequence[Any]) -> Figure:
    """The quarter that is called the most fragile against the quarter that is called the least."""
    quarter = max(1, len(rows) // 4)
    high, low = (sorted(row.measured for row in part)[quarter // 2] for part in (rows[:quarter], rows[-quarter:]))
    labels = f"first quarter of the ranking: {high:.3g}", f"last quarter: {low:.3g}"
    return Figure("median rise of the loss", *labels, " more", high - low)
