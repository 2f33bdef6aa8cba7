"""The networks of an estimator: encoder, decoder, discriminator, map and mixture in one module."""

from __future__ import annotations

import copy
import math
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import _ops

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LOG_VARIANCE_LIMIT = 12.0  # variances from 6e-6 to 1.6e5
WIDTH = 256  # of the discriminator and of the map
CHANNELS = (32, 64, 128)


def _perceptron(sizes: Sequence[int], *, last: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (width, following) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(width, following))
        if last or i < len(sizes) - 2:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _map(n_latent: int) -> nn.Sequential:
    return _perceptron((n_latent, WIDTH, WIDTH, WIDTH, n_latent), last=False)


class Discriminator(nn.Module):
    """T(z, x), a logit per row. Its first layer is linear in (z, x) and kept as one layer for each of them."""

    def __init__(self, n_latent: int, n_features: int) -> None:
        super().__init__()
        self.latent = nn.Linear(n_latent, WIDTH)
        self.data = nn.Linear(n_features, WIDTH, bias=False)
        self.output = nn.Linear(WIDTH, 1)
        bound = 1 / math.sqrt(n_latent + n_features)
        for parameter in (self.latent.weight, self.latent.bias, self.data.weight):
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """T(z, x) [b] for z [b, D] and x [b, P]."""
        return self._logits(self.latent(z), x)

    def pair(self, z: Tensor, x: Tensor, x_neg: Tensor) -> tuple[Tensor, Tensor]:
        """T(z, x) and T(z, x_neg), which share what z contributes."""
        common = self.latent(z)
        return self._logits(common, x), self._logits(common, x_neg)

    def _logits(self, common: Tensor, x: Tensor) -> Tensor:
        logits: Tensor = self.output((common + self.data(x)).relu_())
        return logits.squeeze(1)


class _ConvEncoder(nn.Sequential):
    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        channels, *sides = _planes(shape)
        layers: list[nn.Module] = [] if len(shape) == 3 else [nn.Unflatten(1, (1, shape[0]))]
        for outputs in CHANNELS:
            layers += [nn.Conv2d(channels, outputs, 3, stride=2, padding=1), nn.ReLU(inplace=True)]
            channels, sides = outputs, [(side + 1) // 2 for side in sides]
        layers += [nn.Flatten(), nn.Linear(channels * sides[0] * sides[1], width), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class _ConvDecoder(nn.Sequential):
    def __init__(self, shape: tuple[int, ...], width: int, n_latent: int) -> None:
        channels, *sides = _planes(shape)
        steps = [(channels, sides)]
        for outputs in CHANNELS:
            steps.append((outputs, [(side + 1) // 2 for side in steps[-1][1]]))
        channels, sides = steps.pop()
        layers: list[nn.Module] = [
            nn.Linear(n_latent, width),
            nn.ReLU(inplace=True),
            nn.Linear(width, channels * sides[0] * sides[1]),
            nn.Unflatten(1, (channels, sides[0], sides[1])),
        ]
        for outputs, larger in reversed(steps):
            # A convolution of stride 2 makes (n + 1) // 2 of n; of the two n that give the same, this picks ours.
            padding = (larger[0] - 2 * sides[0] + 1, larger[1] - 2 * sides[1] + 1)
            layers += [nn.ReLU(inplace=True)]
            layers += [nn.ConvTranspose2d(channels, outputs, 3, stride=2, padding=1, output_padding=padding)]
            channels, sides = outputs, larger
        super().__init__(*layers, nn.Flatten())


def _planes(shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, height, width = shape if len(shape) == 3 else (1, *shape)
    return channels, height, width


class Networks(nn.Module):
    """All that is trained, and what prediction needs besides.

    `encoder` maps rows (b, *shape) to (b, H); `mean` and `log_variance` are linear heads of H to D; `decoder` maps
    (b, D) to (b, P), logits where the reconstruction is bernoulli; `discriminator` and the map `t_encoder` are None
    without their terms. `logits` [K], `centers` and `log_scales` [K, D] are the mixture. Buffers: `shift`, `low`
    and `high` [P] and `scale`, by which rows are prepared, and `assign_centers` [K, D], the map's centres, NaN before
    they are fitted.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        n_clusters: int,
        n_latent: int = 10,
        hidden: Sequence[int] = (500, 500, 2000),
        encoder: str | nn.Module = "mlp",
        mutual_information: bool = True,
        locality: bool = True,
        clamp: bool = True,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.n_latent, self.clamp = n_latent, clamp
        n_features = math.prod(self.shape)
        width = hidden[-1]
        self.encoder: nn.Module
        self.decoder: nn.Module
        if isinstance(encoder, nn.Module):
            self.encoder = copy.deepcopy(encoder)
            width = _width(self.encoder, self.shape)
        elif encoder == "conv":
            self.encoder = _ConvEncoder(self.shape, width)
        else:
            self.encoder = _perceptron((n_features, *hidden), last=True)
            if len(self.shape) > 1:
                self.encoder.insert(0, nn.Flatten())
        self.mean = nn.Linear(width, n_latent)
        self.log_variance = nn.Linear(width, n_latent)
        if encoder == "conv":
            self.decoder = _ConvDecoder(self.shape, width, n_latent)
        else:
            self.decoder = _perceptron((n_latent, *reversed(hidden), n_features), last=False)
        self.discriminator = Discriminator(n_latent, n_features) if mutual_information else None
        self.t_encoder = _map(n_latent) if locality else None
        self.logits = nn.Parameter(torch.zeros(n_clusters))
        self.centers = nn.Parameter(torch.zeros(n_clusters, n_latent))
        self.log_scales = nn.Parameter(torch.zeros(n_clusters, n_latent))
        self.shift: Tensor
        self.scale: Tensor
        self.low: Tensor
        self.high: Tensor
        self.assign_centers: Tensor
        self.register_buffer("shift", torch.zeros(n_features, dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("low", torch.zeros(n_features))
        self.register_buffer("high", torch.ones(n_features))
        self.register_buffer("assign_centers", torch.full((n_clusters, n_latent), math.nan))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance [b, D] of the latent of x (b, *shape)."""
        features = self.encoder(x)
        log_variance: Tensor = self.log_variance(features)
        if self.clamp:
            log_variance = log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        return self.mean(features), log_variance

    def encode_jointly(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`encode` by one product for both heads: faster to differentiate, with other last bits than `latent` has."""
        heads = self.mean, self.log_variance
        weight, bias = torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads])
        mean, log_variance = functional.linear(self.encoder(x), weight, bias).chunk(2, 1)
        if self.clamp:
            return mean.contiguous(), log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT).contiguous()
        return mean.contiguous(), log_variance.contiguous()

    def latent(self, x: Tensor) -> Tensor:
        """Mean [b, D] of the latent of x (b, *shape)."""
        mean: Tensor = self.mean(self.encoder(x))
        return mean

    def embed(self, mu: Tensor) -> Tensor:
        """The map t(mu) [b, D]."""
        if self.t_encoder is None:
            raise RuntimeError("these networks were made without locality: they have no map")
        embedded: Tensor = self.t_encoder(mu)
        return embedded

    def mixture(self) -> tuple[Tensor, Tensor, Tensor]:
        """log pi [K], centres [K, D] and log variances [K, D] of the mixture."""
        scales: Tensor = self.log_scales
        if self.clamp:
            scales = scales.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        return self.logits.log_softmax(0), self.centers, scales

    def scores(self, mu: Tensor, lv: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The components' scores a [b, K] for latents of mean mu and log variance lv, and their logsumexp [b]."""
        scores: tuple[Tensor, Tensor] = _ops.mixture_scores(mu, lv, *self.mixture())
        return scores


def _width(encoder: nn.Module, shape: tuple[int, ...]) -> int:
    """How many features an encoder of the user's gives."""
    training = encoder.training
    parameter = next(encoder.parameters(), None)
    device = None if parameter is None else parameter.device
    rows = torch.zeros(1, *shape, device=device)
    try:
        with torch.no_grad():
            output = encoder.eval()(rows)
    except Exception as error:
        raise ValueError(
            f"encoder must map {tuple(rows.shape)} to (1, H), got {type(error).__name__}: {error}"
        ) from error
    encoder.train(training)
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[0] != 1:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"encoder must map (1, {', '.join(map(str, shape))}) to (1, H), got {found}")
    return int(output.shape[1])


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's own generator starts from the seed, and is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def mapping(seed: int, n_latent: int) -> nn.Sequential:
    """A map on the CPU whose weights depend on the seed alone."""
    with _seeded(seed):
        return _map(n_latent)


def build(seed: int, shape: Sequence[int], **settings: object) -> Networks:
    """Networks on the CPU whose weights depend on the seed alone."""
    with _seeded(seed):
        return Networks(shape, **settings)  # type: ignore[arg-type]
