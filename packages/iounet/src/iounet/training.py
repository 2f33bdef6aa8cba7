"""Training of detectors and IoU branches: one exactly repeatable loop, on one process or on those of `torchrun`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ._loop import Options, Run
from ._processes import joined

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from torch import nn

    from ._loop import Dataset

__all__ = ["fit"]


def fit(
    model: nn.Module,
    dataset: Dataset,
    *,
    epochs: int,
    batch_size: int = 4,
    lr: float = 0.005,
    optimizer: str | Callable[[list[nn.Parameter]], torch.optim.Optimizer] = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    warmup: int = 100,
    schedule: str = "step",
    milestones: tuple[int, ...] = (8, 11),
    clip: float | None = 10.0,
    flip: float = 0.5,
    vertical_flip: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
    precision: str = "fp32",
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    save_every: int | None = None,
    config: dict[str, Any] | None = None,
    device: torch.device | str | None = None,
    workers: int = 0,
    progress: bool = False,
    on_epoch: Callable[[dict[str, float]], object] | None = None,
) -> list[dict[str, float]]:
    r"""Train a detector or an IoU branch in place, minimising the sum of the losses that it returns.

    .. math::
        \theta \leftarrow \theta - \eta_t \frac{1}{R} \sum_{r=1}^R \nabla_\theta \sum_k L_k(\text{images}_r)

    The images of a step, their flips and zooms, and the jitter of `iounet`'s training boxes (seeded through the target
    key ``jitter_seed``) depend on (seed, epoch, image id) only, whatever the number R of processes; all other
    randomness on (seed, step, rank). A run that was interrupted and resumed equals one that was not, bit for bit where
    the device is deterministic. Started by ``torchrun``, every process takes its part of each step's images, gradients
    are averaged and rank 0 writes.

    Args:
        model: a module that returns a dict of losses from (images, targets) in training mode, as torchvision's
            detectors do, or that has a method ``loss(images, targets)``, as `iounet.detection.StandaloneIoUNet`.
        dataset: image ``float32[3,H,W]`` in 0..1 and target dict for each index (see `iounet.data`). Crowd boxes are
            left out. The last step of an epoch is filled up with its first images.
        epochs: length of the whole run, the resumed part included.
        batch_size: images of one step over all processes, a multiple of their number.
        lr: learning rate :math:`\eta` (default: torchvision's .02 for 16 images, scaled to 4).
        optimizer: "sgd" (default, with `momentum`, as torchvision trains detectors), "adamw", or a callable that
            returns a ``torch.optim.Optimizer`` of the trainable parameters, such as
            ``lambda parameters: torch.optim.NAdam(parameters, lr=1e-4)``; its ``step`` must need no closure. `lr`,
            `momentum` and `weight_decay` are then its own: `warmup` and `schedule` multiply the rate of each of its
            groups.
        momentum, weight_decay: default .9 and 1e-4, as torchvision trains detectors.
        warmup: steps over which the learning rate rises from 0 (default 100).
        schedule: "step" (default) multiplies the learning rate by .1 at each of the `milestones` (epochs; default 8 and
            11, Detectron's for 12 epochs), "cosine" lets it fall to 0 over the run, "constant" leaves it.
        clip: largest norm of the gradient (default 10), or None.
        flip, vertical_flip: probability of mirroring left-right (default .5) and top-bottom (default 0).
        scale: range of a log-uniform zoom (default (1, 1): none); the image keeps its size, boxes of which less than a
            quarter stays in it are dropped.
        precision: "fp32" (default), "bf16", or on CUDA "fp16": autocast, with scaled losses for fp16.
        seed: of everything random in training; the global generators are left as they were. Initial weights are the
            model's.
        out: folder for ``last.pth`` (to resume), ``model.pth`` (at the end) and ``history.json``; None writes nothing.
            All processes must see it.
        resume: go on from ``out/last.pth`` if it is there. Options must be those of the first part; only `epochs` may
            grow, and not with "cosine". An optimizer of yours must be of the same class with the same rates; its other
            settings are those of the first part.
        save_every: steps from one ``last.pth`` to the next, besides those at the end of each epoch.
        config: plain values that are saved with the weights and compared on resuming.
        device: default: that of the model's first parameter. Under ``torchrun`` "cuda" is that of the local rank.
        workers: processes that load images (default 0: this one).
        progress: show a bar on stderr.
        on_epoch: called on rank 0 with each epoch's record, after it was saved.

    Returns:
        For each epoch: ``epoch`` (from 1), ``lr`` of its last step, mean ``loss`` and its parts, ``seconds``.

    Raises:
        TypeError: the model returns no dict of losses; `optimizer` is neither a name nor callable, or returns something
            else than an optimizer.
        ValueError: an option out of its range; an optimizer without any of the parameters, or without an ``lr``; an
            empty dataset; `out` holds a run and `resume` is False; a checkpoint that is damaged or of another run. The
            model is unchanged then.
        FloatingPointError: a loss is not finite. The last checkpoint stays.

    Example::

        model = torchvision.models.detection.fasterrcnn_resnet50_fpn(num_classes=4)
        iounet.detection.add_iou_net(model)
        iounet.training.fit(model, iounet.data.open_dataset("coco:cells", "train"), epochs=12, out="runs/cells")

    Reference: B. Jiang, R. Luo, J. Mao, T. Xiao, Y. Jiang, Acquisition of Localization Confidence for Accurate Object
    Detection, https://arxiv.org/abs/1807.11590
    """
    make = None if isinstance(optimizer, str) else optimizer
    if not (isinstance(optimizer, str) or callable(make)):
        raise TypeError(f"optimizer must be 'sgd', 'adamw' or a callable that returns one, got {optimizer!r}")
    named = optimizer if isinstance(optimizer, str) else None
    options = Options(
        batch_size, lr, named, momentum, weight_decay, warmup, schedule, tuple(milestones), clip,
        flip, vertical_flip, (float(scale[0]), float(scale[1])), precision, seed,
    )  # fmt: skip
    options.check()
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    if save_every is not None and save_every < 1:
        raise ValueError(f"save_every must be at least 1, got {save_every}")
    if not len(dataset):
        raise ValueError("dataset must have an image, got 0")
    if resume and out is None:
        raise ValueError("resume must go with out, got no folder")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model must have a parameter that requires a gradient, got none")
    place = torch.device(device) if device is not None else next(model.parameters()).device
    if precision == "fp16" and place.type != "cuda":
        raise ValueError(f"precision 'fp16' must be on CUDA, got {place}; bf16 works everywhere")
    with joined(place) as processes:
        if batch_size % processes.count:
            raise ValueError(f"batch_size must be a multiple of the {processes.count} processes, got {batch_size}")
        run = Run(model, dataset, options, epochs, None if out is None else Path(out), config or {}, processes, make)
        run.begin(resume)
        cuda = [processes.device] if processes.device.type == "cuda" else []
        was_training = {module: module.training for module in model.modules()}
        try:
            with torch.random.fork_rng(cuda):
                run.train(workers, save_every, progress, on_epoch)
        finally:
            for module, training in was_training.items():
                module.training = training
        return run.history
