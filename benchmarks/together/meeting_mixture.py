"""A VaDE trained by AdaMod and by torch's fused Adam: how far the learning rate can go before clusters collapse."""

from __future__ import annotations

import copy
import math
import statistics
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from harness import Context, Outcome, UnequalError
from meeting_grid import best, gained, measured, seeds, shown, told
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

from adamod import AdaMod
from vade_robust import VaDE
from vade_robust.metrics import clustering_accuracy

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from torch.optim import Optimizer

OURS, SHORT, PEER = "AdaMod", "AdaMod, beta3 .99", "Adam"
OPTIMIZERS: dict[str, Callable[[Any, float], Optimizer]] = {
    OURS: lambda parameters, lr: AdaMod(parameters, lr=lr),
    SHORT: lambda parameters, lr: AdaMod(parameters, lr=lr, beta3=0.99),
    PEER: lambda parameters, lr: torch.optim.Adam(parameters, lr=lr, fused=True),
}
BATCH, LATENT, CLASSES = 257, 10, 10  # 1,797 rows are seven batches of 257, but for two rows
OWN_RATE = 2e-3  # the estimator's default


@cache
def digits() -> tuple[Any, Any]:
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32), y


def estimator(settings: dict[str, Any], seed: int, epochs: int, **options: Any) -> VaDE:
    made = VaDE(CLASSES, n_latent=LATENT, batch_size=BATCH, epochs=epochs, random_state=seed, device="cpu")
    return made.set_params(**settings, **options).fit(digits()[0])


class Starts:
    """Of each seed the estimator after pretraining and the mixture's start: its one epoch's rate moves nothing."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings, self.known = settings, dict[int, VaDE]()

    def __call__(self, seed: int) -> VaDE:
        if seed not in self.known:
            self.known[seed] = estimator(self.settings, seed, 1, lr=1e-12)
        return copy.deepcopy(self.known[seed])


def terms(networks: nn.Module, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruction and KL(q(z, c|x) || p(z, c)) in nats a row, with the exact posterior, as `VaDE` has them."""
    mean, log_variance = networks.encode(x)
    decoded = networks.decoder(mean + (0.5 * log_variance).exp() * noise)
    reconstruction = functional.binary_cross_entropy_with_logits(decoded, x, reduction="sum") / len(x)
    entropy = 0.5 * (log_variance + 1 + math.log(2 * math.pi)).sum(1)
    return reconstruction, -(networks.scores(mean, log_variance)[1] + entropy).mean()


def trained(starts: Starts, epochs: int, name: str, rate: float, seed: int) -> float:
    """The accuracy after the estimator's own schedule; all optimizers start alike and see the same rows and noise."""
    model, rows = starts(seed), torch.from_numpy(digits()[0])
    optimizer = OPTIMIZERS[name](model.module_.parameters(), rate)
    generator = torch.Generator().manual_seed(seed)
    model.module_.train()
    for epoch in range(1, epochs + 1):
        optimizer.param_groups[0]["lr"] = rate * 0.95 ** (epoch // 10)
        for chosen in torch.randperm(len(rows), generator=generator).split(BATCH):
            noise = torch.randn(len(chosen), LATENT, generator=generator)
            reconstruction, cluster = terms(model.module_, rows[chosen], noise)
            optimizer.zero_grad()
            (reconstruction + epoch / epochs * cluster).backward()
            optimizer.step()
    if not all(bool(parameter.isfinite().all()) for parameter in model.module_.parameters()):
        return math.nan
    return 100 * clustering_accuracy(digits()[1], model.predict(digits()[0]))


def same_loss(model: VaDE) -> str:
    """The loop minimises what the estimator does: its last epoch's mean is a little above the loss at its end."""
    rows = torch.from_numpy(digits()[0])
    with torch.no_grad():
        noise = torch.randn(len(rows), LATENT, generator=torch.Generator().manual_seed(0))
        found = [float(term) for term in terms(model.module_.eval(), rows, noise)]
    last = [model.history_[-1][name] for name in ("reconstruction", "cluster")]
    if not all(abs(a - b) < 0.03 * b for a, b in zip(found, last, strict=True)):
        raise UnequalError(f"the loop's loss is {found} where the estimator's last epoch had {last}")
    return (
        f"The loop's loss of the estimator's own result is {sum(found):.2f} nats a row, the mean of its last epoch "
        f"{sum(last):.2f}; all start from the same pretrained networks and see the same rows and noise."
    )


def compare(context: Context, outcome: Outcome) -> None:
    (X, y), count = digits(), context.pick(1, 3)
    settings: dict[str, Any] = {
        "hidden": context.pick((16,), (64, 64), (128, 128)),
        "pretrain_epochs": context.pick(1, 8, 30),
        "start": context.pick("gmm", "gmm", "map"),  # the map takes a second and a half a seed
    }
    epochs, rates = context.pick(1, 15, 40), context.pick((2e-3, 1e-1), (2e-3, 2e-2, 1e-1), (5e-4, 2e-3, 1e-2, 1e-1))
    names = context.pick((OURS, PEER), (OURS, PEER), tuple(OPTIMIZERS))
    starts = Starts(settings)
    own = [estimator(settings, seed, epochs) for seed in (seeds(count) if context.profile == "full" else seeds(1))]
    if context.profile != "smoke":
        outcome.equal = same_loss(own[0])
    runs = measured(context, names, rates, count, partial(trained, starts, epochs))
    unit, largest = " points of accuracy", rates[-1]
    rate, other = (best(runs, name, lowest=False) for name in (OURS, PEER))
    outcome.figures = [
        gained("at the largest rate", runs, (OURS, largest), (PEER, largest), unit, 1, lowest=False),
        gained("each at its best rate", runs, (OURS, rate), (PEER, other), unit, 1, lowest=False),
        gained("at the estimator's rate", runs, (OURS, OWN_RATE), (PEER, OWN_RATE), unit, 1, lowest=False),
    ]
    scores = [
        100 * clustering_accuracy(y, KMeans(CLASSES, n_init=10, random_state=seed).fit_predict(X))
        for seed in seeds(count)
    ]
    told(outcome, runs, f"accuracy after {epochs} epochs, in %", 1, {"KMeans": statistics.fmean(scores)})
    accuracies = [100 * clustering_accuracy(y, model.labels_) for model in own]
    outcome.table.append([f"VaDE.fit itself, lr {OWN_RATE:g}: {shown(accuracies, 1)}", *([""] * len(rates))])
