"""Until `_inference` is there."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

BLOCK = 256


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
