"""Dense rows until `_data`, `_validation` and `_inference` are there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import validate_data
from torch import Tensor

BLOCK = 256


class Dense:
    addressable = True

    def __init__(self, x: Tensor, kind: str, as_tensor: torch.device | None) -> None:
        self.x, self.kind, self.as_tensor = x, kind, as_tensor
        self.n_rows, self.shape = len(x), tuple(x.shape[1:])

    def rows(self, index: Tensor) -> Tensor:
        return self.x.index_select(0, index)

    def in_order(self, size: int) -> Any:
        return iter(self.x.split(size))

    def epoch(self, size: int, generator: torch.Generator, *, rank: int = 0, world: int = 1) -> Any:
        n = len(self.x)
        order = torch.randperm(n, generator=generator).to(self.x.device)
        other = torch.randperm(n, generator=generator).to(self.x.device)
        for i, j in zip(order.split(size), other.split(size), strict=True):
            yield self.x.index_select(0, i), self.x.index_select(0, j)


def source(
    estimator: Any, X: Any, device: torch.device, *, reset: bool, reconstruction: str
) -> tuple[Dense, Tensor, Tensor]:
    as_tensor = X.device if isinstance(X, Tensor) else None
    if isinstance(X, Tensor):
        X = X.detach().cpu().numpy()
    as_bytes = getattr(X, "dtype", None) == np.uint8
    X = validate_data(
        estimator,
        X,
        accept_sparse="csr",
        reset=reset,
        dtype=[np.float32],
        allow_nd=True,
        ensure_min_samples=2 if reset else 1,
    )
    if hasattr(X, "toarray"):
        X = X.toarray()
    if reset and len(X) < estimator.n_clusters:
        raise ValueError(f"n_samples={len(X)} should be >= n_clusters={estimator.n_clusters}.")
    x = torch.from_numpy(np.array(X)).to(device)
    if as_bytes:
        x = x / 255
    if not reset:
        shift, scale = estimator.module_.shift, estimator.module_.scale
        kind = estimator._training.options.kind
    else:
        kind = reconstruction
        if kind == "auto":
            kind = "bernoulli" if x.min() >= 0 and x.max() <= 1 else "gaussian"
        flat = x.flatten(1).double()
        shift, scale = torch.zeros(flat.shape[1]), torch.ones(())
        if kind == "gaussian":
            shift = flat.mean(0).float()
            scale = flat.var(0, correction=0).mean().sqrt().float()
            if scale == 0:
                scale = torch.ones(())
    if kind == "gaussian":
        x = (x - shift.view(x.shape[1:])) / scale
    return Dense(x, kind, as_tensor), shift, scale


class Blocks:
    def __init__(self, networks: Any, source: Any) -> None:
        self.networks, self.source = networks.eval(), source

    @torch.no_grad()
    def _all(self, fn: Any) -> Any:
        out = []
        for x in self.source.in_order(BLOCK):
            padded = torch.cat([x, x.new_zeros(BLOCK - len(x), *x.shape[1:])])
            out.append([y[: len(x)] for y in fn(padded)])
        return [torch.cat(y) for y in zip(*out, strict=True)]

    def latent(self) -> Any:
        (mu,) = self._all(lambda x: [self.networks.latent(x)])
        return mu

    def both(self) -> Any:
        return self._all(self.networks.encode)

    def embedding(self) -> Any:
        (t,) = self._all(lambda x: [self.networks.embed(self.networks.latent(x))])
        return t


def score_samples(networks: Any, source: Any, kind: str, n_samples: int, seed: int) -> Tensor:
    mu, lv = Blocks(networks, source).both()
    noise = torch.randn(n_samples, 1, mu.shape[1], generator=torch.Generator().manual_seed(seed)).to(mu)
    values = []
    with torch.no_grad():
        for x, m, v in zip(source.in_order(BLOCK), mu.split(BLOCK), lv.split(BLOCK), strict=True):
            flat = x.flatten(1)
            z = m + (0.5 * v).exp() * noise
            r = networks.decoder(z.flatten(0, 1)).view(n_samples, *flat.shape)
            if kind == "bernoulli":
                log_x = -torch.nn.functional.binary_cross_entropy_with_logits(
                    r, flat.expand_as(r), reduction="none"
                ).sum(2)
            else:
                log_x = -0.5 * ((r - flat) ** 2 + math.log(2 * math.pi)).sum(2)
            log_z = networks.scores(z.flatten(0, 1).contiguous())[1].view(n_samples, -1)
            log_q = -0.5 * (noise**2 + v + math.log(2 * math.pi)).sum(2)
            values.append((log_x + log_z - log_q).logsumexp(0) - math.log(n_samples))
    return torch.cat(values)
