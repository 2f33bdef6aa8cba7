"""Trains the logistic model that tells the domain of a text; the engine evaluates it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._weights import Gate

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUCKETS = 1 << 13
_LIMIT = 4096  # symbols of a text that are read
_A, _B = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77)
_EPOCHS, _BATCH, _RATE, _L2 = 30, 64, 0.5, 1e-5  # chosen on held-out tenths of the shipped model's training text


def buckets(symbols: NDArray[np.uint16]) -> NDArray[np.int64]:
    """The hashed unigrams and bigrams of a text's symbols."""
    s = symbols[:_LIMIT].astype(np.uint32)
    single = s * _A
    double = s[:-1] * _A + s[1:] * _B
    return np.asarray(np.concatenate([single, double]) >> np.uint32(19), np.int64)


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
    sizes = np.array([max(1, len(text)) for text in texts], np.float64)
    label = np.array(labels)
    weight = 1.0 / np.maximum(1, np.bincount(label, minlength=domains))
    weight *= len(label) / domains
    table, bias = np.zeros((BUCKETS, domains)), np.zeros(domains)
    squares = np.full((BUCKETS, domains), 1e-6)
    for _ in range(_EPOCHS):
        order = random.permutation(len(texts))
        for begin in range(0, len(order), _BATCH):
            batch = order[begin : begin + _BATCH]
            rows = np.repeat(np.arange(len(batch)), [len(hashed[t]) for t in batch])
            columns = np.concatenate([hashed[t] for t in batch])
            scores = np.zeros((len(batch), domains))
            np.add.at(scores, rows, table[columns])
            scores = scores / sizes[batch, None] + bias
            scores -= scores.max(1, keepdims=True)
            p = np.exp(scores)
            p /= p.sum(1, keepdims=True)
            p[np.arange(len(batch)), label[batch]] -= 1
            p *= weight[label[batch], None] / len(batch)
            bias -= 0.1 * p.sum(0)
            gradient = np.zeros_like(table)
            np.add.at(gradient, columns, (p / sizes[batch, None])[rows])
            gradient += _L2 * table
            squares += gradient * gradient
            table -= _RATE * gradient / np.sqrt(squares)
    return Gate(table.astype(np.float32), bias.astype(np.float32))
