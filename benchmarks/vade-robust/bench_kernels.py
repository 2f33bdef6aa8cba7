"""The operators on their own: affinities and map of t-SNE, the mixture, the nearest centres; time and memory."""

from __future__ import annotations

import logging
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from harness import (
    FULL,
    Contestant,
    Context,
    Figure,
    Outcome,
    Race,
    Study,
    UnequalError,
    Versus,
    Workload,
    at_least,
    at_most,
    cores,
    peak_memory,
    within_twice,
)
from material import PACKAGES as PACKAGES
from plain import affinities, divergence
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture
from threadpoolctl import ThreadpoolController
from torch import Tensor

from vade_robust import _ops

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BLAS = ThreadpoolController()  # torch's threads are the harness's, NumPy's are not
OURS, NAIVE, COMPILED = "vade_robust", "plain torch", "torch.compile"
SKLEARN = "scikit-learn P, [B, B, D] torch"
PARALLEL = f"{OURS}, all threads"


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


# --- t-SNE inside the batch ---


def ours_tsne(x: Tensor, y: Tensor, perplexity: float) -> tuple[Tensor, Tensor]:
    kl, gradient = _ops.tsne_kl(y, _ops.tsne_affinities(x, perplexity))
    return kl, gradient


def naive_tsne(x: Tensor, y: Tensor, perplexity: float) -> tuple[Tensor, Tensor]:
    return naive_map(y, affinities(x, perplexity))


def naive_map(y: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    y = y.detach().requires_grad_()
    kl = divergence(y, p)
    return kl.detach(), torch.autograd.grad(kl, y)[0]


def batch_of(rows: int) -> tuple[Tensor, Tensor, float]:
    return 1.5 * normal(rows, 10), normal(rows, 10, seed=1), max(0.01 * rows, 2.0)


def tsne_equal(rows: int, context: Context) -> str:
    x, y, perplexity = batch_of(context.pick(64, min(rows, 800)))
    kl, gradient = ours_tsne(x, y, perplexity)
    exact, exact_gradient = ours_tsne(x.double(), y.double(), perplexity)
    other, other_gradient = naive_tsne(x, y, perplexity)
    if not abs(float(kl - other)) <= 1e-4 * float(other):
        raise UnequalError(f"KL {float(kl)}, the peer's {float(other)}")
    largest = float(exact_gradient.abs().max())
    error, allowed = (float((g - exact_gradient).abs().max()) / largest for g in (gradient, other_gradient))
    if not error <= max(2 * allowed, 1e-5):
        raise UnequalError(f"gradient {error:.2g} from float64, the peer's {allowed:.2g}")
    return (
        f"KL {float(kl):.5f}, the peer's {float(other):.5f}, in float64 {float(exact):.5f}; a gradient's largest error "
        f"{error:.1g} of the largest entry, the peer's {allowed:.1g}."
    )


def tsne(rows: int, context: Context) -> Mapping[str, Callable[[], Contestant]]:
    x, y, perplexity = batch_of(context.pick(64, rows))
    repeat = context.pick(1, max(1, 1600 // rows))

    def contestant(work: Callable[..., Any], threads: int = 1) -> Contestant:
        def run() -> None:
            with BLAS.limit(limits=threads, user_api="blas"):
                for _ in range(repeat):
                    work(x, y, perplexity)

        return Contestant(run, threads)

    return {
        OURS: partial(contestant, ours_tsne),
        SKLEARN: partial(contestant, naive_tsne),
    }


def tsne_threads(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    x, y, perplexity = batch_of(context.pick(64, 800))

    def theirs() -> None:
        with BLAS.limit(limits=cores(), user_api="blas"):
            naive_tsne(x, y, perplexity)

    return {
        PARALLEL: lambda: Contestant(partial(ours_tsne, x, y, perplexity), cores()),
        OURS: lambda: Contestant(partial(ours_tsne, x, y, perplexity)),
        f"{SKLEARN}, all threads": lambda: Contestant(theirs, cores()),
    }


def memory(context: Context, outcome: Outcome) -> None:
    """The locality term of a batch: what it takes at its height beyond its inputs."""
    rows = context.pick(200, 2000, 4000)
    x, y, perplexity = batch_of(rows)
    matrix = rows * rows * 4
    outcome.about = outcome.about.format(rows=rows)
    for name, work, target in ((OURS, ours_tsne, at_most(3.0)), (NAIVE, lambda *a: naive_map(y, a[0]), None)):
        args = (x, y, perplexity) if target else (_ops.tsne_affinities(x, perplexity),)
        work(*args)
        peak = peak_memory(partial(work, *args))
        if peak is None:
            outcome.error = "the system does not tell"
            return
        outcome.figures.append(
            Figure("matrices of B x B", name, "", " matrices", max(peak / matrix, 1e-3), target=target)
        )


# --- the mixture ---


@cache
def components(rows: int, dimensions: int, clusters: int) -> tuple[Tensor, ...]:
    return (
        normal(rows, dimensions),
        normal(rows, dimensions, seed=1) - 2,
        normal(clusters, seed=2).log_softmax(0),
        normal(clusters, dimensions, seed=3),
        0.3 * normal(clusters, dimensions, seed=4),
    )


def broadcast(
    mean: Tensor, log_var: Tensor, log_weight: Tensor, centers: Tensor, log_scale: Tensor
) -> tuple[Tensor, Tensor]:
    squares = (mean[:, None] - centers).square() + log_var.exp()[:, None]
    a = log_weight - 0.5 * (1.8378770664093453 + log_scale + squares / log_scale.exp()).sum(2)
    return a, a.logsumexp(1)


def both_ways(work: Callable[..., tuple[Tensor, Tensor]], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The loss of the exact posterior and its gradients."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    lse = work(*leaves)[1]
    return [lse.detach(), *torch.autograd.grad(-lse.mean(), leaves)]


def mixture_equal(context: Context) -> str:
    inputs = components(context.pick(500, 5000), 10, 10)
    ours, theirs = both_ways(_ops.mixture_scores, inputs), both_ways(broadcast, inputs)
    exact = both_ways(broadcast, tuple(x.double() for x in inputs))
    names = ("logsumexp", "means", "log variances", "weights", "centres", "log scales")
    texts = []
    for name, a, b, e in zip(names, ours, theirs, exact, strict=True):
        texts.append(within_twice(a, b + 1e-9 * float(e.abs().max()), e, name))
    return " ".join(texts[:1] + texts[-2:])


def mixture(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    inputs = components(context.pick(500, 20_000, 70_000), 10, 10)

    def compiled() -> Contestant:
        logging.getLogger("torch._inductor").setLevel(logging.ERROR)  # its cache complains of this script's path
        work = torch.compile(broadcast, dynamic=False)
        both_ways(work, inputs)
        return Contestant(partial(both_ways, work, inputs))

    racers: dict[str, Callable[[], Contestant]] = {
        OURS: lambda: Contestant(partial(both_ways, _ops.mixture_scores, inputs)),
        NAIVE: lambda: Contestant(partial(both_ways, broadcast, inputs)),
    }
    return racers if context.profile == "quick" else {**racers, COMPILED: compiled}  # compiling takes half a minute


def fitted(rows: int) -> tuple[GaussianMixture, Tensor, tuple[Tensor, ...]]:
    _, _, log_weight, centers, log_scale = components(10, 32, 16)
    model = GaussianMixture(16, covariance_type="diag")
    model.weights_, model.means_ = log_weight.exp().numpy(), centers.numpy()
    model.covariances_, model.precisions_cholesky_ = log_scale.exp().numpy(), (-0.5 * log_scale).exp().numpy()
    return model, normal(rows, 32), (log_weight, centers, log_scale)


def expectation_equal(context: Context) -> str:
    model, x, parameters = fitted(1000)
    ours = _ops.mixture_scores(x, None, *parameters)[1].numpy()
    exact = _ops.mixture_scores(x.double(), None, *(p.double() for p in parameters))[1].numpy()
    return within_twice(ours, model.score_samples(x.numpy()), exact, "log-likelihood of a row")


def expectation(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    model, x, parameters = fitted(context.pick(1000, 100_000))
    array = x.numpy()

    def ours() -> Tensor:
        a, lse = _ops.mixture_scores(x, None, *parameters)
        return a.sub_(lse[:, None])

    def theirs() -> object:
        with BLAS.limit(limits=1):
            return model._estimate_log_prob_resp(array)

    return {
        OURS: lambda: Contestant(ours),
        "scikit-learn GaussianMixture": lambda: Contestant(theirs),
    }


# --- the nearest centres ---


def centres(context: Context) -> tuple[KMeans, Tensor, Tensor]:
    x = normal(context.pick(1000, 70_000), 10)
    model = KMeans(10, n_init=1, max_iter=5, random_state=0).fit(x.numpy())
    return model, x, torch.from_numpy(model.cluster_centers_)


def nearest_equal(context: Context) -> str:
    model, x, points = centres(context)
    differ = int((_ops.knn(x, points, 1)[1][:, 0].numpy() != model.predict(x.numpy())).sum())
    if differ > len(x) // 1000:
        raise UnequalError(f"{differ} of {len(x)} rows have another nearest centre")
    return f"{differ} of {len(x):,} rows have another nearest centre, within rounding."


def nearest(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    model, x, points = centres(context)
    array = x.numpy()

    def theirs() -> object:
        with BLAS.limit(limits=1):
            return model.predict(array)

    return {
        OURS: lambda: Contestant(lambda: _ops.knn(x, points, 1)),
        "scikit-learn KMeans.predict": lambda: Contestant(theirs),
    }


STEP = "P and the gradient of KL(P || Q), D = 10; the peer's P is scikit-learn's, its Q takes [B, B, D]."
WORKLOADS: list[Workload] = [
    *(
        Race(
            f"t-SNE in a batch of {rows}",
            STEP,
            partial(tsne, rows),
            partial(tsne_equal, rows),
            [Versus(SKLEARN, at_least(5.0), "speed", "P and KL with gradient", headline=rows == 800)],
            seconds=3 if rows == 800 else 1.5,
        )
        for rows in (256, 800)
    ),
    Race(
        "t-SNE on all threads",
        "A batch of 800, wall time.",
        tsne_threads,
        partial(tsne_equal, 800),
        [
            Versus(OURS, None, "speed", "all threads against one", ours=PARALLEL),
            Versus(f"{SKLEARN}, all threads", at_least(5.0), "speed", "against the peer", ours=PARALLEL),
        ],
        FULL | {"smoke"},
        clock="wall",
    ),
    Study("memory of the locality term", "Peak of P, KL and gradient, B = {rows}.", memory),
    Race(
        "mixture, forward and backward",
        "Scores and logsumexp of 70,000 rows (quick: 20,000), D = K = 10, and the gradients of all inputs. The full "
        "profile has torch.compile as well.",
        mixture,
        mixture_equal,
        [
            Versus(NAIVE, at_least(3.0), "speed", "against broadcasting"),
            Versus(COMPILED, at_least(1.2), "speed", "against its compiled form"),
        ],
        seconds=2,
    ),
    Race(
        "E-step of a Gaussian mixture",
        "Log-responsibilities of 100,000 rows, D = 32, K = 16, diagonal covariances.",
        expectation,
        expectation_equal,
        [Versus("scikit-learn GaussianMixture", at_least(2.0), "speed", "log-responsibilities")],
        seconds=2,
    ),
    Race(
        "the nearest of ten centres",
        "70,000 rows, D = 10.",
        nearest,
        nearest_equal,
        [Versus("scikit-learn KMeans.predict", None, "speed", "assignment")],
        seconds=1,
    ),
]
