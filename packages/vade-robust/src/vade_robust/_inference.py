"""What fitted networks say of rows, so that a row's result depends on that row alone: not on others, nor on threads.

Rows pass through the networks in zero-padded blocks of a constant number of rows. The matrix products of a block have
the same shape whatever was asked, and each runs on one thread (with two, MKL splits long sums for some shapes, and
their last bits change); blocks are what threads share out.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional
from torch.quasirandom import SobolEngine

from . import _ops

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from ._data import Preparation, Source
    from ._networks import Networks

    Work = Callable[[Networks, Tensor], tuple[Tensor, ...]]

ROWS = 256  # of a block on a CPU: as fast as larger ones, and a single row waits for no more
ROWS_OF_GPU = 2048
SEED = 0  # of the noise vectors of `score_samples`
LOG_2PI = math.log(2 * math.pi)


class Blocks:
    """Results by row for all rows of a source, in order; every method reads the source once."""

    def __init__(self, networks: Networks, source: Source) -> None:
        self.networks, self.source = networks, source
        self.size = block_rows(source.device)

    def map(self, work: Work) -> tuple[Tensor, ...]:
        """The tensors [N, ...] that `work` gives of the rows. It is called with networks in evaluation mode (a thread's
        own copy) and a block x (b, *shape), and gives tensors of b rows, each of which must depend on its row alone.
        """
        return _map(self.networks, self.source.in_order(self.size), self.size, self.source.n_rows, work)

    def latent(self) -> Tensor:
        """The mean mu [N, D] of the latent."""
        return self.map(_latent)[0]

    def encoded(self) -> tuple[Tensor, Tensor]:
        """Mean and log variance [N, D] of the latent."""
        mean, log_variance = self.map(_encoded)
        return mean, log_variance

    def embedding(self) -> Tensor:
        """The map t(mu) [N, D]."""
        return self.map(_embedding)[0]

    def scores(self) -> Tensor:
        """The components' scores a [N, K]."""
        return self.map(_scores)[0]

    def labels(self, assign: str) -> Tensor:
        """The cluster [N] of each row, int32: by "mixture" argmax a, by "embedding" the nearest centre on the map."""
        return self.map(_mixture_labels if assign == "mixture" else _embedding_labels)[0]

    def memberships(self, assign: str) -> Tensor:
        """Soft memberships [N, K]: of rows that sum to 1, with the largest value where `labels` says."""
        return self.map(_mixture_memberships if assign == "mixture" else _embedding_memberships)[0]

    def score_samples(self, n_samples: int) -> Tensor:
        """The importance-weighted lower bound on log p(x) [N], in nats (Burda, Grosse and Salakhutdinov, 2016):

        log 1/S sum_s p(x | z_s) p(z_s) / q(z_s | x), with z_s = mu + exp(lv / 2) eps_s and the same eps_s for all rows.

        p(z) is the mixture. Gaussian rows have unit variance after preparation, and a density in the user's units.
        """
        noise = _noise(n_samples, self.networks.n_latent).to(self.source.device)
        return self.map(partial(_bound, noise=noise, preparation=_prepared(self.source)))[0]

    def reconstruct(self) -> Tensor:
        """The decoded means (N, *shape) of the rows' latents, in the user's units."""
        return self.map(partial(_reconstruction, preparation=_prepared(self.source)))[0]


def apply(networks: Networks, rows: Tensor, work: Work) -> tuple[Tensor, ...]:
    """The tensors that `work` gives of rows [N, ...] which are no data, such as latents: as `Blocks.map`."""
    size = block_rows(rows.device)
    return _map(networks, rows.split(size), size, len(rows), work)


def sample(
    networks: Networks, preparation: Preparation, n: int, cluster: int | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """n rows (n, *shape) in the user's units, decoded means of z ~ N(m_c, exp ls_c), and their components c, int32 [n].

    c is drawn by pi, or is `cluster`; `generator` is one of the CPU.
    """
    with torch.no_grad():
        log_pi, centers, log_scales = networks.mixture()
        if cluster is None:
            labels = torch.multinomial(log_pi.cpu().double().exp(), n, replacement=True, generator=generator)
        else:
            labels = torch.full((n,), cluster, device="cpu")
        noise = torch.randn(n, networks.n_latent, generator=generator, device="cpu").to(centers)
        labels = labels.to(centers.device)
        z = centers[labels] + (0.5 * log_scales[labels]).exp() * noise
    (rows,) = apply(networks, z, partial(_decoded, preparation=preparation))
    return rows, labels.to(torch.int32)


def nearest(networks: Networks, embedded: Tensor) -> tuple[Tensor]:
    """The nearest stored centre of each row of the map, int32; of several at one distance the first."""
    _, order = _ops.knn(embedded, networks.assign_centers, 1)
    return (order[:, 0].to(torch.int32),)


def block_rows(device: torch.device) -> int:
    """The rows of a block on a device: a constant, since other blocks give other last bits."""
    return ROWS if device.type == "cpu" else ROWS_OF_GPU


def _map(networks: Networks, blocks: Iterable[Tensor], size: int, n_rows: int | None, work: Work) -> tuple[Tensor, ...]:
    with _evaluation(networks), torch.no_grad(), closing(_results(networks, blocks, size, n_rows, work)) as results:
        if n_rows is None:
            return tuple(torch.cat(parts) for parts in zip(*results, strict=True))
        gathered: tuple[Tensor, ...] = ()
        start = 0
        for parts in results:
            if start + len(parts[0]) > n_rows:
                break
            gathered = gathered or tuple(part.new_empty((n_rows, *part.shape[1:])) for part in parts)
            for whole, part in zip(gathered, parts, strict=True):
                whole[start : start + len(part)] = part
            start += len(parts[0])
        if start != n_rows:
            raise ValueError(
                f"X gave {start} rows, after {n_rows} in the pass before: every pass must give the same rows"
            )
        return gathered


def _results(
    networks: Networks, blocks: Iterable[Tensor], size: int, n_rows: int | None, work: Work
) -> Generator[tuple[Tensor, ...]]:
    """The results of the blocks in order; on a CPU each by one thread, as many at a time as torch has threads."""
    threads = torch.get_num_threads()
    if next(networks.parameters()).device.type != "cpu":
        for block in blocks:
            yield _block(networks, block, size, work)
        return
    if n_rows is not None:
        threads = min(threads, -(-n_rows // size))
    with _one_thread():
        if threads < 2:
            for block in blocks:
                yield _block(networks, block, size, work)
            return
        spare = deque([networks, *(copy.deepcopy(networks) for _ in range(threads - 1))])

        def turn(block: Tensor) -> tuple[Tensor, ...]:
            mine = spare.popleft()  # encoders of users may keep something in themselves during a call
            try:
                return _block(mine, block, size, work)
            finally:
                spare.append(mine)

        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            remaining = iter(blocks)
            waiting = deque(pool.submit(turn, block) for block in itertools.islice(remaining, 2 * threads))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(turn, block) for block in itertools.islice(remaining, 1))
                yield result


def _block(networks: Networks, rows: Tensor, size: int, work: Work) -> tuple[Tensor, ...]:
    with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
        padded = rows.new_zeros(size, *rows.shape[1:])  # a copy of full ones too: encoders may write to their input
        padded[: len(rows)] = rows
        return tuple(result[: len(rows)] for result in work(networks, padded))


@contextmanager
def _evaluation(networks: Networks) -> Iterator[None]:
    """Dropout and batch normalisation at rest; afterwards every module as it was."""
    training = [module for module in networks.modules() if module.training]
    if training:
        networks.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _prepared(source: Source) -> Preparation:
    assert source.preparation is not None
    return source.preparation


def _latent(networks: Networks, x: Tensor) -> tuple[Tensor]:
    return (networks.latent(x),)


def _encoded(networks: Networks, x: Tensor) -> tuple[Tensor, Tensor]:
    return networks.encode(x)


def _embedding(networks: Networks, x: Tensor) -> tuple[Tensor]:
    return (networks.embed(networks.latent(x)),)


def _scores(networks: Networks, x: Tensor) -> tuple[Tensor]:
    return (networks.scores(*networks.encode(x))[0],)


def _mixture_labels(networks: Networks, x: Tensor) -> tuple[Tensor]:
    return (_scores(networks, x)[0].argmax(1).to(torch.int32),)


def _mixture_memberships(networks: Networks, x: Tensor) -> tuple[Tensor]:
    (a,) = _scores(networks, x)
    return (_with_largest(a.softmax(1), a.argmax(1)),)


def _embedding_labels(networks: Networks, x: Tensor) -> tuple[Tensor]:
    return nearest(networks, _embedding(networks, x)[0])


def _embedding_memberships(networks: Networks, x: Tensor) -> tuple[Tensor]:
    """Normalised 1 / (1 + |t - k_c|^2), the kernel of t-SNE, relative to that of the nearest centre."""
    centers = networks.assign_centers
    distances, order = _ops.knn(_embedding(networks, x)[0], centers, len(centers))
    weights = (1 + distances[:, :1]) / (1 + distances)
    weights = weights / weights.sum(1, keepdim=True)
    return (_with_largest(torch.empty_like(weights).scatter_(1, order, weights), order[:, 0]),)


def _with_largest(memberships: Tensor, labels: Tensor) -> Tensor:
    """Memberships that are largest first at the labels: by a unit in the last place where rounding made them tie."""
    labels = labels[:, None]
    first = memberships.argmax(1, keepdim=True)
    above = torch.nextafter(memberships.amax(1, keepdim=True), memberships.new_tensor(math.inf))
    return memberships.scatter_(1, labels, torch.where(first == labels, memberships.gather(1, labels), above))


def _noise(n_samples: int, n_latent: int) -> Tensor:
    """Standard normal vectors [S, D], the same in every call: scrambled Sobol points.

    Each is standard normal, so that the bound holds; together they are spread more evenly than independent draws. What
    remains of chance is common to all rows, and in a mean over rows (16 vectors, D = 2) is two to three times smaller.
    """
    if n_latent > SobolEngine.MAXDIM:
        return torch.randn(n_samples, n_latent, generator=torch.Generator().manual_seed(SEED), device="cpu")
    points = SobolEngine(n_latent, scramble=True, seed=SEED).draw(n_samples, dtype=torch.float64)
    noise: Tensor = torch.special.ndtri(points.clamp(2.0**-32, 1 - 2.0**-32))
    return noise.float()


def _bound(networks: Networks, x: Tensor, *, noise: Tensor, preparation: Preparation) -> tuple[Tensor]:
    mean, log_variance = networks.encode(x)
    deviation = (0.5 * log_variance).exp()
    rows = x.flatten(1)
    constant = 0.5 * (LOG_2PI + log_variance).sum(1)
    if preparation.kind == "gaussian":
        constant = constant - (0.5 * LOG_2PI * rows.shape[1] + preparation.log_volume)
    weights = []
    for epsilon in noise:
        z = mean + deviation * epsilon
        decoded = networks.decoder(z)
        if preparation.kind == "bernoulli":
            fit = -functional.binary_cross_entropy_with_logits(decoded, rows, reduction="none").sum(1)
        else:
            fit = -0.5 * (rows - decoded).square_().sum(1)
        weights.append(fit + networks.scores(z)[1] + (constant + 0.5 * epsilon.square().sum()))
    return (torch.stack(weights).logsumexp(0) - math.log(len(noise)),)


def _reconstruction(networks: Networks, x: Tensor, *, preparation: Preparation) -> tuple[Tensor]:
    return _decoded(networks, networks.latent(x), preparation=preparation)


def _decoded(networks: Networks, z: Tensor, *, preparation: Preparation) -> tuple[Tensor]:
    decoded = networks.decoder(z)
    if preparation.kind == "bernoulli":
        decoded = decoded.sigmoid()
    return (preparation.restore(decoded.view(-1, *networks.shape)),)
