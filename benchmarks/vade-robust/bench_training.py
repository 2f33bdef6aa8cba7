"""What a step of training costs: beside LPVDN written down in plain PyTorch, and an epoch beside ClustPy's VaDE."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from harness import CPU, FULL, Contestant, Context, Race, UnequalError, Versus, Workload, at_least
from material import PACKAGES as PACKAGES
from material import clustpy_vade, quietly
from plain import Plain
from sklearn.exceptions import ConvergenceWarning

from vade_robust import RobustVaDE, VaDE, _data, _losses, _networks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

OURS, FUSED, PEER = "vade_robust", "plain torch, fused Adam", "ClustPy VaDE"
HIDDEN = (500, 500, 2000)
FLOATS = _losses.Weights(
    "bernoulli", "sampled", mutual_information=1.0, locality=1e-4, floor=True, exact_perplexity=True
)


def images(rows: int, pixels: int = 784) -> NDArray[np.float32]:
    """Made-up images in ten kinds, in [0, 1]."""
    draw = np.random.default_rng(0)
    kinds = (draw.random((10, pixels)) < 0.2).astype(np.float32)
    noise = draw.normal(0, 0.2, (rows, pixels)).astype(np.float32)
    return np.clip(0.8 * kinds[draw.integers(0, 10, rows)] + noise, 0, 1)


# --- a step of LPVDN ---


def twins(pixels: int, hidden: tuple[int, ...]) -> tuple[_networks.Networks, Plain]:
    """Our networks and the plain ones, with the same weights."""
    ours = _networks.build(0, (pixels,), n_clusters=10, n_latent=10, hidden=hidden, clamp=False)
    plain = Plain(pixels, hidden, 10, 10)
    with torch.no_grad():
        for own, value in ((ours.centers, plain.centers), (ours.log_scales, plain.log_scales)):
            own.copy_(value)
    assert ours.discriminator is not None
    assert ours.t_encoder is not None
    for mine, theirs in (
        (ours.encoder, plain.encoder),
        (ours.mean, plain.mean),
        (ours.log_variance, plain.log_variance),
        (ours.decoder, plain.decoder),
        (ours.t_encoder, plain.t_encoder),
    ):
        theirs.load_state_dict(mine.state_dict())
    first, last = plain.discriminator[0], plain.discriminator[2]
    with torch.no_grad():
        own = ours.discriminator
        first.weight.copy_(torch.cat([own.latent.weight, own.data.weight], 1))
        first.bias.copy_(own.latent.bias)
        last.weight.copy_(own.output.weight)
        last.bias.copy_(own.output.bias)
    return ours, plain


def batch(rows: int, pixels: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    x = torch.from_numpy(images(rows, pixels))
    draw = torch.Generator().manual_seed(1)
    return x, x[torch.randperm(rows, generator=draw)], tuple(torch.randn(2, rows, 10, generator=draw).unbind())  # type: ignore[return-value]


def step_equal(context: Context) -> str:
    ours, plain = twins(64, (32, 32, 64))
    x, other, noise = batch(400, 64)
    mine = _losses.total(ours, x, other, noise, FLOATS)[0]
    theirs = plain.loss(x, other, noise)
    mine.backward()
    theirs.backward()
    a, b = float(mine.detach()), float(theirs.detach())
    pairs = [(ours.mean.weight, plain.mean.weight), (ours.centers, plain.centers)]
    away = max(float((p.grad - q.grad).abs().max() / q.grad.abs().max()) for p, q in pairs)  # type: ignore[operator, union-attr]
    if not (abs(a - b) <= 1e-5 * abs(b) and away <= 1e-3):
        raise UnequalError(f"the loss is {a}, that of plain torch {b}; gradients are {away:.2g} apart")
    return f"Loss {a:.5f}, that of plain torch {b:.5f}; gradients at most {away:.1g} of their largest entry apart."


def steps(rows: int, repeat: int, context: Context) -> Mapping[str, Callable[[], Contestant]]:
    """Forward, backward and Adam on one batch."""
    pixels, hidden = context.pick(16, 784), context.pick((16, 16, 16), HIDDEN)
    rows = context.pick(400, rows)
    ours, plain = twins(pixels, hidden)
    x, other, noise = batch(rows, pixels)

    def contestant(network: torch.nn.Module, loss: Callable[[], Tensor]) -> Contestant:
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)

        def run() -> None:
            for _ in range(context.pick(1, repeat)):
                optimizer.zero_grad()
                loss().backward()
                optimizer.step()

        return Contestant(run)

    def of_plain() -> Tensor:
        return plain.loss(x, other, noise)

    return {
        OURS: lambda: contestant(ours, lambda: _losses.total(ours, x, other, noise, FLOATS)[0]),
        FUSED: lambda: contestant(plain, of_plain),
    }


# --- epochs of training ---


def epochs_equal(context: Context) -> str:
    """They are different algorithms: that both learn is what can be said."""
    X = images(context.pick(256, 2048), 64)
    model = VaDE(10, hidden=(32, 32), batch_size=256, pretrain_epochs=1, epochs=2, random_state=0).fit(X)
    first, last = (model.history_[i]["reconstruction"] for i in (1, 2))
    if not last < first:
        raise UnequalError(f"the reconstruction went from {first} to {last}")
    return "The same networks, batch, rows and epochs; the algorithms differ, and no result is compared here."


def training(batch_size: int, context: Context) -> Mapping[str, Callable[[], Contestant]]:
    """An epoch of training after pretraining and initialisation, as the estimators run it."""
    rows, hidden = context.pick(512, 1024, 4096), context.pick((16, 16, 16), HIDDEN)
    X = images(rows, context.pick(16, 784))
    settings: dict[str, Any] = {"hidden": hidden, "batch_size": batch_size, "pretrain_epochs": 1, "epochs": 1}

    def ours(make: Callable[..., Any]) -> Contestant:
        model = make(10, random_state=0, device="cpu", **settings).fit(X)
        source = _data.source(model, X, device=torch.device("cpu"))
        source.use(model._preparation)
        model._training.phase = "train"
        return Contestant(lambda: model._training.one_epoch(source))

    def theirs() -> Contestant:
        from clustpy.deep.vade import _VaDE_Module

        model = clustpy_vade(X.shape[1], 10, 0, **settings)
        quietly(model.fit, X)
        network = model.neural_network_trained_
        module = _VaDE_Module(10, 10)
        optimizer = torch.optim.Adam([*network.parameters(), *module.parameters()], lr=1e-4)
        rows_and_indices = torch.utils.data.TensorDataset(torch.arange(rows), torch.from_numpy(X))
        loader = torch.utils.data.DataLoader(rows_and_indices, batch_size=batch_size, shuffle=True)
        loss = torch.nn.BCELoss(reduction="sum")

        def epoch() -> None:
            module.fit(network, loader, loader, 1, torch.device("cpu"), optimizer, loss, 1.0, 1.0)

        return Contestant(partial(quietly, epoch))

    racers = {OURS: partial(ours, VaDE), PEER: theirs}
    return racers if context.profile == "quick" else {**racers, "RobustVaDE": partial(ours, RobustVaDE)}


warnings.filterwarnings("ignore", category=ConvergenceWarning)  # an epoch or two are not meant to end well
WORKLOADS: list[Workload] = [
    Race(
        "a step of LPVDN",
        "Forward, backward and Adam, 800 rows of 784 pixels, the paper's networks; the plain form takes P from "
        "scikit-learn as the authors' code does.",
        partial(steps, 800, 1),
        step_equal,
        [
            Versus(FUSED, at_least(1.3), "speed", "against the plain form with fused Adam"),
        ],
        seconds=2,
    ),
    *(
        Race(
            f"an epoch of VaDE, batches of {size}",
            "4,096 rows of 784 pixels (quick: 1,024), the paper's networks. The full profile has RobustVaDE as well.",
            partial(training, size),
            epochs_equal,
            [
                Versus(PEER, at_least(1.5), "speed", "training throughput", headline=size == 256),
                Versus(PEER, None, "speed", "with discriminator and locality", ours="RobustVaDE"),
            ],
            profiles,
            seconds=2,
        )
        for size, profiles in ((256, CPU), (100, FULL | {"smoke"}))
    ),
]
