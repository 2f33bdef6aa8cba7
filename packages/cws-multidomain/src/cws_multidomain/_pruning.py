"""Makes models smaller: drops the n-grams whose weights tell tags apart the least."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ._weights import Weights

_ROW, _DOMAIN_ROW = 22, 20  # bytes of a bigram in the file, and of what a domain adds to it


def prune(weights: Weights, max_bytes: int) -> None:
    """Drop bigrams, in place, until those that stay take at most `max_bytes`.

    Shared rows and rows of domains compete by importance, the largest range of the four weights at a place. A shared
    row is at least as important as what domains add to it, and as their sums, so that it stays as long as they do.
    """
    shared, *domains = weights.components
    places = [np.searchsorted(shared.bigram_keys, domain.bigram_keys) for domain in domains]
    own = [np.ptp(domain.bigram, axis=-1).max(-1) for domain in domains]
    importance = np.ptp(shared.bigram, axis=-1).max(-1)
    for domain, place, alone in zip(domains, places, own, strict=True):
        summed = np.ptp(shared.bigram[place] + domain.bigram, axis=-1).max(-1)
        importance[place] = np.maximum(importance[place], np.maximum(alone, summed))
    every = np.concatenate([importance, *own])
    cost = np.repeat([_ROW, *[_DOMAIN_ROW] * len(domains)], [len(importance), *map(len, own)])
    order = np.argsort(-every, kind="stable")
    kept = np.zeros(len(every), bool)
    kept[order[np.cumsum(cost[order]) <= max_bytes]] = True
    parts = np.split(kept, np.cumsum([len(importance), *map(len, own)])[:-1])
    for component, part in zip(weights.components, parts, strict=True):
        component.bigram_keys, component.bigram = component.bigram_keys[part], component.bigram[part]
