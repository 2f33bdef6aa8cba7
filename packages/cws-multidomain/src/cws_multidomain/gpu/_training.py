"""ADF in minibatches on a device: what `_core.Trainer` does with `shards`, in PyTorch; no corpora, no files."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import _ops

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

_UNIGRAM, _BIGRAM, _LEXICON, _LEXICON_KINDS = 1, 6, 16, 8  # kinds of features: see csrc/features.h
_NGRAMS = 9  # features of a position that dropout may leave out, the symbol itself excepted
_SYMBOL = 2
_LEGAL = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 0, 1]], dtype=torch.bool)  # from, to
_FIRST, _LAST = 0b1001, 0b1100  # bits of the tags B, M, E, S that a sentence may begin and end with


def feature_keys(symbols: NDArray[Any], splits: NDArray[Any], marks: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """The keys of the features that fire at each position of sentences that lie end to end, [N, 9 + 7 lexicons]."""
    lengths = np.diff(splits)
    start, end = np.repeat(splits[:-1], lengths), np.repeat(splits[1:], lengths)
    here = np.arange(len(symbols))

    def at(values: NDArray[Any], distance: int, before: int, after: int) -> NDArray[np.int64]:
        there = here + distance
        inside = values.astype(np.int64)[np.clip(there, 0, max(len(values) - 1, 0))]
        return np.where(there < start, before, np.where(there >= end, after, inside))

    def key(kind: int, a: NDArray[np.int64], b: NDArray[np.int64] | int = 0) -> NDArray[np.int64]:
        return kind << 32 | a << 16 | b

    around = [at(symbols, d, 1, 2) for d in range(-2, 3)]
    keys = [key(_UNIGRAM + d, around[d]) for d in range(5)]
    keys += [key(_BIGRAM + d, around[d], around[d + 1]) for d in range(4)]
    for number, of in enumerate(marks):
        base = _LEXICON + _LEXICON_KINDS * number
        m = of.astype(np.int64)
        keys += [key(base, m // 25), key(base + 1, m // 5 % 5), key(base + 2, m % 5), key(base + 3, m)]
        keys += [key(base + 4, m, around[2]), key(base + 5, m, at(m // 25, 1, 0, 0))]
        keys.append(key(base + 6, m, at(m // 5 % 5, -1, 0, 0)))
    return np.stack(keys, 1)


def _hash(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ x >> np.uint64(31))


def dropout(
    lengths: NDArray[np.int64], seed: int, of_domains: float, of_features: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """What the sentences of an epoch leave out: [S] their domain, [N, 9] n-grams; the draws of the trainer in C++."""
    turn = np.arange(len(lengths), dtype=np.uint64)
    random = _hash(np.uint64(seed % 2**64) + turn * np.uint64(0x9E3779B97F4A7C15))
    alone = (random >> np.uint64(40)).astype(np.float32) * np.float32(2**-24) < np.float32(of_domains)
    starts = np.cumsum(lengths) - lengths
    dropped = np.zeros((int(lengths.sum()), _NGRAMS), bool)
    limit = np.uint64(int(np.float32(of_features) * np.float32(256)))
    if limit == 0:
        return alone, dropped
    longest_first = np.argsort(-lengths, kind="stable")
    alive = np.searchsorted(-lengths[longest_first], -np.arange(lengths.max(initial=0)), side="left")
    byte = np.arange(8, dtype=np.uint64) * np.uint64(8)
    for i, n in enumerate(alive.tolist()):
        those = longest_first[:n]
        one = _hash(random[those] + np.uint64(1))
        two = _hash(one + np.uint64(1))
        random[those] = two
        drawn = np.concatenate([one[:, None] >> byte, two[:, None]], 1) & np.uint64(255)
        dropped[starts[those] + i] = drawn < limit
    dropped[:, _SYMBOL] = False
    return alone, dropped


class Trainer:
    """The trainer of `_core` on a device: the same calls, and the same weights but for rounding.

    Sentences of one minibatch (`shards`) are scored by the same weights. Rates and decay are applied at once to all
    rows where an update is due, not when a row is next met. There are no atomics: equal runs give equal bits.

    Args:
        lexicons: how many make marks.
        domains: how many there are.
        device: where the weights and the sentences are.
        dtype: of the weights; float64 is for checks.
    """

    def __init__(
        self, lexicons: int, domains: int, *, device: str | torch.device = "cuda", dtype: torch.dtype = torch.float32
    ) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self._lexicons, self._domains = lexicons, domains
        self._given: list[tuple[int, NDArray[np.uint64], NDArray[np.float32]]] = []
        self._transition = torch.zeros(domains + 1, 4, 4, dtype=dtype, device=self.device)

    def set(
        self, component: int, keys: NDArray[np.uint64], weights: NDArray[np.float32], transition: NDArray[np.float32]
    ) -> None:
        """Weights to go on from, before `load`."""
        self._given.append((component, keys.copy(), weights.copy()))
        self._transition[component] = torch.from_numpy(transition.reshape(4, 4).copy()).to(self._transition)

    def load(
        self,
        symbols: NDArray[np.uint16],
        splits: NDArray[np.int64],
        marks: Sequence[NDArray[np.uint8]],
        allowed: NDArray[np.uint8],
        domains: NDArray[np.uint8],
        rate: float,
    ) -> None:
        """Sentences end to end, their marks, the tags that labels permit as bits, and the domain of each sentence."""
        self._splits, self._sentence_domains = splits.astype(np.int64), domains.astype(np.int64)
        lengths = np.diff(self._splits)
        given = [torch.from_numpy(keys.astype(np.int64)) for _, keys, _ in self._given]
        fired = torch.from_numpy(feature_keys(symbols, self._splits, marks)).to(self.device)
        # One row for each feature that the shared weights have, and one for each that a domain has.
        keys, inverse = torch.unique(
            torch.cat((fired.flatten(), *(k.to(self.device) for k in given))), return_inverse=True
        )
        components = [torch.full((fired.numel(),), 0, device=self.device)]
        components += [
            torch.full((len(k),), c, device=self.device) for (c, *_), k in zip(self._given, given, strict=True)
        ]
        places = [torch.cat(components) + inverse * (self._domains + 1)]
        width = fired.shape[1]
        if self._domains:
            owner = torch.from_numpy(np.repeat(self._sentence_domains + 1, lengths)).to(self.device)
            mine = inverse[: fired.numel()].view(-1, width) * (self._domains + 1) + owner[:, None]
            places.append(mine.flatten())
        self._rows, row = torch.unique(torch.cat(places), return_inverse=True)
        self._keys = keys
        n = fired.numel()
        self._ids = row[:n].view(-1, width).to(torch.int32)
        if self._domains:
            own = row[len(row) - n :].view(-1, width).to(torch.int32)
            self._ids = torch.cat((self._ids, own), 1)
        size = len(self._rows)
        self._w = torch.zeros(size, 4, dtype=self.dtype, device=self.device)
        self._eta = torch.full((size,), rate, dtype=self.dtype, device=self.device)
        self._count = torch.zeros(size, dtype=torch.int32, device=self.device)
        at = n
        for _, of, weights in self._given:
            self._w[row[at : at + len(of)]] = torch.from_numpy(weights).to(self._w)
            at += len(of)
        self._given = []
        self._transition_eta = torch.full((self._domains + 1,), rate, dtype=self.dtype, device=self.device)
        present = set((self._sentence_domains + 1).tolist())
        self._freeze(*(c for c in range(1, self._domains + 1) if c not in present))
        ends = np.full(len(allowed), 0b1111, np.uint8)
        ends[self._splits[:-1][lengths > 0]] &= _FIRST
        ends[self._splits[1:][lengths > 0] - 1] &= _LAST
        bits = np.arange(4, dtype=np.uint8)
        self._tags = torch.from_numpy((ends[:, None] >> bits & 1).astype(bool)).to(self.device)
        self._permitted = torch.from_numpy(((ends & allowed)[:, None] >> bits & 1).astype(bool)).to(self.device)
        self._legal = _LEGAL.to(self.device)

    def _freeze(self, *components: int) -> None:
        """Without a rate they neither learn nor decay."""
        of = self._rows % (self._domains + 1)
        for component in components:
            self._eta[of == component] = 0
            self._transition_eta[component] = 0

    def epoch(
        self,
        order: NDArray[np.int32],
        *,
        seed: int,
        upper: float,
        lower: float,
        l2: float,
        transition: float,
        domain_dropout: float,
        feature_dropout: float,
        shared: bool,
        updates: int,
        shards: int,
        threads: int = 1,
    ) -> float:
        """One pass over the sentences in an order; the summed loss in nats. `threads` is for the trainer in C++."""
        del threads
        if not shared:
            self._freeze(0)
        sentences, total = order.astype(np.int64), len(order)
        lengths = np.diff(self._splits)[sentences]
        starts = np.cumsum(lengths) - lengths
        alone, dropped = dropout(lengths, seed, domain_dropout if shared else 0.0, feature_dropout)
        domain = self._sentence_domains[sentences] + 1 if self._domains else np.zeros(total, np.int64)
        if self._domains and shared:
            domain[alone] = 0
        left_out = torch.from_numpy(dropped).to(self.device) if dropped.any() else None
        every = max(1, total // updates)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        options = {"upper": upper, "lower": lower, "l2": l2}
        in_phase = 0
        for begin in range(0, total, max(1, shards)):
            end = min(begin + max(1, shards), total)
            cuts = [q + 1 for q in range(begin, end) if (q > 0 and q % every == 0) or q == total - 1]
            edges = [begin, *cuts] if cuts and cuts[-1] == end else [begin, *cuts, end]
            steps = []
            for a, b in pairwise(edges):
                those = slice(starts[a], starts[b - 1] + lengths[b - 1])
                part = None if left_out is None else left_out[those]
                step, lost = self._step(sentences[a:b], domain[a:b], part, shared)
                loss += lost
                steps.append((b, step))
            for (b, (rows, grad, count, pairs)), a in zip(steps, edges, strict=False):
                _ops.adf_step(self._w, self._eta, grad, self._count, 0.0, float(total), rows=rows)
                self._count[rows] = self._count[rows] + count
                self._transition -= self._transition_eta[:, None, None] * pairs
                in_phase += b - a
                if b in cuts:
                    nothing = (grad[:0], rows[:0])
                    _ops.adf_step(
                        self._w,
                        self._eta,
                        nothing[0],
                        self._count,
                        float(in_phase),
                        float(total),
                        rows=nothing[1],
                        **options,
                    )
                    self._count.zero_()
                    self._transition_eta *= transition
                    self._transition *= 1 - self._transition_eta[:, None, None] * (in_phase / total / l2**2)
                    in_phase = 0
        return float(loss)

    def _step(
        self, sentences: NDArray[np.int64], domain: NDArray[np.int64], dropped: Tensor | None, shared: bool
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """What sentences would change, scored by the weights as they are: rows, gradients, counts, pairs of tags."""
        lengths = np.diff(self._splits)[sentences]
        number = np.repeat(np.arange(len(sentences)), lengths)
        place = np.arange(len(number)) - (np.cumsum(lengths) - lengths)[number]
        positions = torch.from_numpy(self._splits[sentences][number] + place).to(self.device)
        sentence_of = torch.from_numpy(number).to(self.device)
        ids = self._ids[positions]
        width = ids.shape[1] // 2 if self._domains else ids.shape[1]
        if dropped is not None:
            ids[:, :_NGRAMS].masked_fill_(dropped, -1)
            if self._domains:
                ids[:, width : width + _NGRAMS].masked_fill_(dropped, -1)
        if self._domains:
            alone = torch.from_numpy(domain == 0).to(self.device)[sentence_of]
            ids[:, width:].masked_fill_(alone[:, None], -1)
        emission = _ops.emit(ids, self._w)
        # What is taken from all tags of a position changes no probability. The labels' scores are then near 0, and a
        # small loss is no longer the difference of two large float32 numbers.
        labels = emission.masked_fill(~self._permitted[positions], -float("inf")).amax(1, keepdim=True)
        emission -= labels.where(labels.isfinite(), 0)
        grad = torch.zeros_like(emission)
        pairs = torch.zeros_like(self._transition)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for k in np.unique(domain).tolist():
            trans = self._transition[0] + self._transition[k] if k else self._transition[0]
            trans = trans.masked_fill(~self._legal, -float("inf"))
            chosen = np.flatnonzero(domain == k)
            of = np.flatnonzero(domain[number] == k)
            column = torch.from_numpy(np.searchsorted(chosen, number[of])).to(self.device)
            line, here = torch.from_numpy(place[of]).to(self.device), torch.from_numpy(of).to(self.device)
            shape = (int(lengths[chosen].max(initial=0)), len(chosen), 4)
            sizes = torch.from_numpy(lengths[chosen]).to(self.device)
            scores = emission.new_zeros(shape)
            scores[line, column] = emission[here]
            expected: list[tuple[Tensor, Tensor, Tensor]] = []
            for tags in (self._tags, self._permitted):
                mask = torch.ones(shape, dtype=torch.bool, device=self.device)
                mask[line, column] = tags[positions[here]]
                expected.append(_ops.crf_marginals(scores, trans, sizes, mask))
            (log_z, nodes, edges), (log_gold, gold_nodes, gold_edges) = expected
            grad[here] = (nodes - gold_nodes)[line, column]
            difference = edges - gold_edges
            if shared or not k:
                pairs[0] += difference
            if k:
                pairs[k] += difference
            loss += (log_z.double() - log_gold.double()).sum()
        if not shared:
            ids[:, :width].fill_(-1)
        return (*self._gradient(ids, grad, sentence_of), pairs), loss

    @staticmethod
    def _gradient(ids: Tensor, grad: Tensor, sentence_of: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rows that occur, their gradients, and in how many sentences they occur."""
        ids = ids.contiguous()
        row, order = ids.flatten().sort(stable=True)
        absent = int((row < 0).sum())
        row, order = row[absent:], order[absent:]
        rows, places = torch.unique_consecutive(row, return_counts=True)
        offsets = torch.nn.functional.pad(places.cumsum(0), (1, 0))
        sentence = sentence_of[order // ids.shape[1]]
        new = torch.ones(len(row), dtype=torch.int64, device=ids.device)
        new[1:] = (row[1:] != row[:-1]) | (sentence[1:] != sentence[:-1])
        before = torch.nn.functional.pad(new.cumsum(0), (1, 0))
        count = before[offsets[1:]] - before[offsets[:-1]]
        return rows.to(torch.int64), _ops.row_grad(ids, grad, order, offsets), count.to(torch.int32)

    @property
    def keys(self) -> NDArray[np.uint64]:
        """The features."""
        return np.asarray(self._keys.cpu().numpy().astype(np.uint64))

    def weights(self, component: int) -> NDArray[np.float32]:
        """The weights of all features, four to a feature; NaN where the component has none."""
        out = torch.full((len(self._keys), 4), float("nan"), dtype=torch.float32, device=self.device)
        mine = self._rows % (self._domains + 1) == component
        out[self._rows[mine] // (self._domains + 1)] = self._w[mine].float()
        return out.flatten().cpu().numpy()

    def transition(self, component: int) -> NDArray[np.float32]:
        """The 16 weights of pairs of tags."""
        return self._transition[component].flatten().float().cpu().numpy()
