"""Trains the logistic model that tells the domain of a text; the engine evaluates it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._weights import Gate

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUCKETS = 1 << 13
_NEVER = -1e4  # a score
_LIMIT = 4096  # symbols of a text that are read
_A, _B = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77)
_EPOCHS, _BATCH, _RATE, _L2 = 10, 128, 0.5, 1e-5  # chosen on held-out tenths of the shipped model's training text


def buckets(symbols: NDArray[np.uint16]) -> NDArray[np.int64]:
    """The hashed unigrams and bigrams of a text's symbols."""
    s = symbols[:_LIMIT].astype(np.uint32)
    single = s * _A
    double = s[:-1] * _A + s[1:] * _B
    return np.asarray(np.concatenate([single, double]) >> np.uint32(19), np.int64)


def widened(gate: Gate | None, domains: int) -> Gate | None:
    """The gate of a model that got more domains, none of which it ever names: it has not seen their like."""
    if gate is None:
        return None
    more = domains - len(gate.bias)
    table = np.concatenate([gate.table, np.zeros((BUCKETS, more), np.float32)], 1)
    return Gate(table, np.concatenate([gate.bias, np.full(more, _NEVER, np.float32)]), gate.threshold)


def train_gate(
    symbols: NDArray[np.uint16], splits: NDArray[np.int64], owners: NDArray[np.int64], domains: int, seed: int
) -> Gate:
    """Multinomial logistic regression on pieces of one to sixteen neighbouring sentences, domains weighted alike."""
    random = np.random.default_rng([seed, 1])
    texts, labels = [], []
    for domain in range(domains):
        mine = np.flatnonzero(owners == domain)
        for size in (1, 2, 4, 16):
            for at in range(0, len(mine), size):
                piece = mine[at : at + size]
                texts.append(np.concatenate([symbols[splits[s] : splits[s + 1]] for s in piece]))
                labels.append(domain)
    hashed = [buckets(text) for text in texts]
    starts = np.cumsum([0, *map(len, hashed)])
    columns = np.concatenate(hashed)
    share = np.repeat([1 / max(1, len(text)) for text in texts], np.diff(starts))
    label = np.array(labels)
    weight = len(label) / domains / np.maximum(1, np.bincount(label, minlength=domains))
    table, bias, squares = np.zeros((BUCKETS, domains)), np.zeros(domains), np.full((BUCKETS, domains), 1e-6)
    for _ in range(_EPOCHS):
        order = random.permutation(len(texts))
        for begin in range(0, len(order), _BATCH):
            batch = np.sort(order[begin : begin + _BATCH])
            sizes = starts[batch + 1] - starts[batch]
            rows = np.repeat(np.arange(len(batch)), sizes)
            at = np.arange(len(rows)) + np.repeat(starts[batch] - np.cumsum(sizes) + sizes, sizes)
            column, part = columns[at], share[at, None]
            p = np.stack([np.bincount(rows, x, len(batch)) for x in (table[column] * part).T], 1) + bias
            p = np.exp(p - p.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            p[np.arange(len(batch)), label[batch]] -= 1
            p *= weight[label[batch], None] / len(batch)
            gradient = np.stack([np.bincount(column, x, BUCKETS) for x in (p[rows] * part).T], 1) + _L2 * table
            squares += gradient * gradient
            table -= _RATE * gradient / np.sqrt(squares)
            bias -= _RATE * p.sum(0)
    return Gate(table.astype(np.float32), bias.astype(np.float32))
