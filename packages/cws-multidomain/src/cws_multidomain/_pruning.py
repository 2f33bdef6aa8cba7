"""Makes models smaller: drops the n-grams whose weights tell tags apart the least."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ._weights import Weights

_ROW, _DOMAIN_ROW = 22, 20  # bytes of a bigram in the file, and of what a domain adds to it


def prune(weights: Weights, max_bytes: int) -> None:
    """Drop bigrams, in place, until those that stay take at most `max_bytes`.

    The importance of a bigram is the largest range of its four weights among the shared ones and each domain's sum.
    """
    shared, *domains = weights.components
    places = [np.searchsorted(shared.bigram_keys, domain.bigram_keys) for domain in domains]
    importance = np.ptp(shared.bigram, axis=-1).max(-1)
    cost = np.full(len(shared.bigram_keys), float(_ROW))
    for domain, place in zip(domains, places, strict=True):
        summed = np.ptp(shared.bigram[place] + domain.bigram, axis=-1).max(-1)
        np.maximum.at(importance, place, summed)
        cost[place] += _DOMAIN_ROW
    order = np.argsort(-importance, kind="stable")
    kept = np.zeros(len(order), bool)
    kept[order[np.cumsum(cost[order]) <= max_bytes]] = True
    for domain, place in zip(domains, places, strict=True):
        domain.bigram_keys, domain.bigram = domain.bigram_keys[kept[place]], domain.bigram[kept[place]]
    shared.bigram_keys, shared.bigram = shared.bigram_keys[kept], shared.bigram[kept]
