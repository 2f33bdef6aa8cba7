"""On a CUDA device: the operators beside plain and compiled PyTorch, epochs, and the paper's protocol on MNIST."""

from __future__ import annotations

import statistics
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from bench_kernels import both_ways, broadcast, components, normal
from bench_training import images
from harness import GPU, Contestant, Context, Figure, Outcome, Race, Study, UnequalError, Versus, Workload, at_least
from material import PACKAGES as EVERYWHERE
from material import mnist
from plain import Plain, divergence
from runs import HEAD, OURS, Runs, robust, rows_of, vade

from vade_robust import RobustVaDE, _data, _ops, _reference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

PACKAGES = (*EVERYWHERE, "triton")
DEVICE, ROWS = "cuda", 800
TRITON, PLAIN, COMPILED = "vade_robust, Triton", "plain torch", "torch.compile"
PAPER: dict[str, Any] = {"pretrain_epochs": 50, "epochs": 300}  # and the defaults: networks, batch, rate
SEEDS = 20


def close(ours: Tensor, exact: Tensor, what: str) -> str:
    away = float((ours.double() - exact.double()).abs().max() / exact.abs().max())
    if not away <= 1e-4:
        raise UnequalError(f"{what}: {away:.2g} of the largest entry away from float64")
    return f"{what}: {away:.1g} of the largest entry away from float64."


# --- operators ---


def batch() -> tuple[Tensor, Tensor]:
    return (1.5 * normal(ROWS, 10)).to(DEVICE), normal(ROWS, 10, seed=1).to(DEVICE)


def ours_tsne(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    kl, gradient = _ops.tsne_kl(y, _ops.tsne_affinities(x, 8.0))
    return kl, gradient


def plain_tsne(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """P by the same Newton's method in torch's operators, Q from all differences, left to autograd."""
    y = y.detach().requires_grad_()
    kl = divergence(y, _reference.tsne_affinities(x, 8.0))
    return kl.detach(), torch.autograd.grad(kl, y)[0]


def tsne_equal(context: Context) -> str:
    x, y = batch()
    return close(ours_tsne(x, y)[1], ours_tsne(x.double(), y.double())[1], "gradient of the map")


def tsne(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    x, y = batch()
    return {
        TRITON: lambda: Contestant(partial(ours_tsne, x, y)),
        PLAIN: lambda: Contestant(partial(plain_tsne, x, y)),
    }


def on_device() -> tuple[Tensor, ...]:
    return tuple(x.to(DEVICE) for x in components(70_000, 10, 10))


def mixture_equal(context: Context) -> str:
    inputs = on_device()
    ours, exact = both_ways(_ops.mixture_scores, inputs), both_ways(broadcast, tuple(x.double() for x in inputs))
    return " ".join(close(a, b, name) for name, a, b in zip(("logsumexp", "means"), ours, exact, strict=False))


def mixture(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    inputs = on_device()
    compiled = torch.compile(broadcast, dynamic=False)
    return {
        TRITON: lambda: Contestant(partial(both_ways, _ops.mixture_scores, inputs)),
        PLAIN: lambda: Contestant(partial(both_ways, broadcast, inputs)),
        COMPILED: lambda: Contestant(partial(both_ways, compiled, inputs)),
    }


# --- training ---


def epoch_equal(context: Context) -> str:
    return "The loss of a step is compared on the CPU; here noise and order differ."


def epochs(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    """An epoch of LPVDN over 8,000 rows, and the same number of plain steps, whose P comes from scikit-learn."""
    X = images(8000)

    def ours() -> Contestant:
        model = RobustVaDE(10, preset="lpvdn", pretrain_epochs=1, epochs=1, random_state=0, device=DEVICE).fit(X)
        source = _data.source(model, X, device=torch.device(DEVICE))
        source.use(model._preparation)
        model._training.phase = "train"
        return Contestant(lambda: model._training.one_epoch(source))

    def plain() -> Contestant:
        network = Plain(784, (500, 500, 2000), 10, 10).to(DEVICE)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
        rows = torch.from_numpy(X).to(DEVICE)

        def epoch() -> None:
            order, others = torch.randperm(len(rows)).to(DEVICE), torch.randperm(len(rows)).to(DEVICE)
            for chosen, other in zip(order.split(ROWS), others.split(ROWS), strict=True):
                noise = tuple(torch.randn(2, len(chosen), 10, device=DEVICE).unbind())
                optimizer.zero_grad()
                network.loss(rows[chosen], rows[other], noise).backward()
                optimizer.step()

        return Contestant(epoch)

    return {TRITON: ours, PLAIN: plain}


def protocol(context: Context, outcome: Outcome) -> None:
    """The paper's numbers are of its code, whose accuracy is purity."""
    data, runs = mnist(context.data, test=False), Runs()
    outcome.table.append(HEAD)
    methods = {"preset lpvdn": robust(preset="lpvdn"), OURS: robust(), "VaDE": vade()}
    for number, (method, work) in enumerate(methods.items()):
        known = []
        for seed in range(100, 100 + SEEDS):
            known.append(runs.get("MNIST-70k", data, method, work, PAPER, seed))
            context.progress((number + len(known) / SEEDS) / len(methods))
        outcome.table += rows_of(method, known)
        answer = "mixture" if method == "VaDE" else "embedding"
        target = {"preset lpvdn": at_least(0.9713), "VaDE": at_least(0.716)}.get(method)
        mean = statistics.mean(run["answers"][answer]["acc"] for run in known)
        outcome.figures.append(Figure("mean accuracy", method, "", "", mean, target=target))


WORKLOADS: list[Workload] = [
    Race(
        "t-SNE in a batch, CUDA",
        "P of 800 rows and the gradient of KL(P || Q), D = 10.",
        tsne,
        tsne_equal,
        [Versus(PLAIN, None, "speed", "P and KL with gradient")],
        profiles=GPU,
        clock="cuda",
    ),
    Race(
        "mixture, forward and backward, CUDA",
        "70,000 rows, D = K = 10.",
        mixture,
        mixture_equal,
        [Versus(PLAIN, None, "speed", "against broadcasting"), Versus(COMPILED, None, "speed", "against compiled")],
        profiles=GPU,
        clock="cuda",
    ),
    Race(
        "an epoch of LPVDN, CUDA",
        "Ten steps of 800 rows of 784 pixels.",
        epochs,
        epoch_equal,
        [Versus(PLAIN, at_least(3.0), "speed", "training throughput", headline=True)],
        profiles=GPU,
        clock="wall",
    ),
    Study("MNIST-70k, CUDA", "The paper's protocol, twenty seeds fixed beforehand.", protocol, GPU),
]
