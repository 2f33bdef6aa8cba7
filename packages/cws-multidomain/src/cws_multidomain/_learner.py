"""The native CRF while it learns: from sentences to weights, epoch by epoch; no files, no choice of an epoch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core
from ._encoding import Symbols, encode, jackknife, lexicon, marks, vocabulary
from ._gate import train_gate, widened
from ._modelfile import PackedLexicon
from ._weights import Component, Weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from ._sentence import Partial, Sentence

    Float = NDArray[np.float32]
    Keys = NDArray[np.uint64]

MOST_DOMAINS = 32  # bits of a mask in csrc/trainer.h
_UNIGRAM, _BIGRAM, _LEXICON, _LEXICON_KINDS = 1, 6, 16, 8  # csrc/features.h
_BEGINS, _ENDS, _INSIDE, _MARK, _MARK_SYMBOL, _MARK_AFTER, _MARK_BEFORE = range(7)
_M = np.arange(125)


@dataclass(frozen=True)
class Options:
    """What the steps of ADF depend on; :func:`cws_multidomain.train` explains each."""

    rate: float = 0.05
    updates: int = 10
    upper: float = 0.995
    lower: float = 0.6
    l2: float = 1.0
    domain_dropout: float = 0.3
    feature_dropout: float = 0.2
    seed: int = 0
    shards: int = 1
    threads: int = 1


class Learner:
    """A model that learns from labelled sentences.

    Args:
        sentences: by domain; the key None stands for the shared weights alone.
        options: of the steps.
        dictionary: words and counts of a lexicon whose marks are features.
        with_vocabulary: whether the words of the sentences make a second lexicon.
        variants: code points that share the symbol of another, such as traditional forms of characters.
        start: weights to go on from, whose lexicons, domains and symbols are kept.
        shared: whether the shared weights learn.
        device: "cpu", or a device of PyTorch, whose trainer has the same calls.
    """

    def __init__(
        self,
        sentences: Mapping[str | None, Sequence[Sentence | Partial]],
        options: Options,
        *,
        dictionary: Sequence[tuple[str, int]] = (),
        with_vocabulary: bool = True,
        variants: Mapping[int, int] | None = None,
        start: Weights | None = None,
        shared: bool = True,
        device: str = "cpu",
    ) -> None:
        self.options, self.shared = options, shared
        self.domains = list(start.domains) if start else []
        self.domains += [name for name in sentences if name is not None and name not in self.domains]
        everything = [sentence for part in sentences.values() for sentence in part]
        encoded = encode(everything)
        known = Symbols(start.symbols, start.n_symbols) if start else Symbols({})
        self.symbols = known.extended([encoded.points], (word for word, _ in dictionary), variants)
        symbols = self.symbols(encoded.points)

        folds = vocabulary(everything) if with_vocabulary and not start else {}
        self.lexicons = list(start.lexicons) if start else []
        if dictionary:
            self.lexicons.append(list(dictionary))
        made = [marks(self._marker(words), symbols, encoded.splits) for words in self.lexicons]
        if folds:
            self.lexicons.append([(word, 0) for word in sorted(folds)])
            made.append(jackknife(folds, everything, self.symbols, encoded))

        self._trainer = _trainer(device)(len(self.lexicons), len(self.domains))
        if start:
            for number, component in enumerate(start.components):
                self._trainer.set(number, *_features(component))
        self._lengths = np.diff(encoded.splits)
        number_of: dict[str | None, int] = {name: k for k, name in enumerate(self.domains)}
        nobody = len(self.domains)
        owner = np.concatenate([np.full(_count(part), number_of.get(name, nobody)) for name, part in sentences.items()])
        self._trainer.load(symbols, encoded.splits, made, encoded.allowed, owner.astype(np.uint8), options.rate)
        self._texts = (symbols, encoded.splits, owner)
        self._trained = start is None
        self._gate = widened(start.gate, len(self.domains)) if start else None

    def _marker(self, words: Sequence[tuple[str, int]]) -> Callable[[NDArray[np.uint16]], NDArray[np.uint8]]:
        if isinstance(words, PackedLexicon) and words.model.n_symbols == self.symbols.count:
            return words.marks
        return partial(_core.lexicon_marks, lexicon(self.symbols.words(w for w, _ in words), self.symbols.count))

    @property
    def characters(self) -> int:
        return int(self._lengths.sum())

    def epoch(self, number: int) -> float:
        """One pass over the sentences in a seeded order; the loss in nats per character."""
        o = self.options
        order = np.random.default_rng([o.seed, number]).permutation(len(self._lengths)).astype(np.int32)
        loss: float = self._trainer.epoch(
            order,
            seed=o.seed * 1_000_003 + number,
            upper=o.upper,
            lower=o.lower,
            l2=o.l2,
            transition=o.lower,
            domain_dropout=o.domain_dropout,
            feature_dropout=o.feature_dropout,
            shared=self.shared,
            updates=o.updates,
            shards=o.shards,
            threads=o.threads,
        )
        return loss / max(1, self.characters)

    def weights(self, metadata: Mapping[str, Any] | None = None) -> Weights:
        """The weights as they are now."""
        keys = self._trainer.keys
        components = []
        for number in range(len(self.domains) + 1):
            values = self._trainer.weights(number).reshape(-1, 4)
            has = ~np.isnan(values[:, 0])
            transition = self._trainer.transition(number).reshape(4, 4)
            components.append(_component(keys[has], values[has], transition, self.symbols.count, len(self.lexicons)))
        if self._trained and self._gate is None and len(self.domains) > 1:
            self._gate = train_gate(*self._texts, len(self.domains), self.options.seed)
        return Weights(
            symbols=self.symbols.mapping,
            lexicons=self.lexicons,
            components=components,
            domains=self.domains,
            gate=self._gate,
            metadata=dict(metadata or {}),
        )


def _trainer(device: str) -> Callable[[int, int], Any]:
    if device == "cpu":
        return _core.Trainer
    from .gpu import require

    require(device)
    from .gpu._training import Trainer

    return partial(Trainer, device=device)


def _count(part: Sequence[Sentence | Partial]) -> int:
    return len(encode(part).splits) - 1


def _component(keys: Keys, values: Float, transition: Float, symbols: int, lexicons: int) -> Component:
    """Weights by table, out of weights by feature."""
    kind, low = (keys >> np.uint64(32)).astype(np.int64), (keys & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    first, second = low >> 16, low & 0xFFFF

    def dense(of: int, *shape: int) -> Float:
        table = np.zeros((*shape, 4), np.float32)
        chosen = kind == of
        table[(first[chosen], second[chosen])[: len(shape)]] = values[chosen]
        return table

    unigram = np.zeros((symbols, 5, 4), np.float32)
    chosen = (kind >= _UNIGRAM) & (kind < _UNIGRAM + 5)
    unigram[first[chosen], kind[chosen] - _UNIGRAM] = values[chosen]
    chosen = (kind >= _BIGRAM) & (kind < _BIGRAM + 4)
    bigram_keys, place = np.unique(low[chosen], return_inverse=True)
    bigram = np.zeros((len(bigram_keys), 4, 4), np.float32)
    bigram[place, kind[chosen] - _BIGRAM] = values[chosen]

    joint, charmark_keys, charmark = [], [], []
    for base in range(_LEXICON, _LEXICON + _LEXICON_KINDS * lexicons, _LEXICON_KINDS):
        mark = dense(base + _MARK, 125)
        mark += dense(base + _BEGINS, 5)[_M // 25] + dense(base + _ENDS, 5)[_M // 5 % 5]
        mark += dense(base + _INSIDE, 5)[_M % 5]
        after, before = dense(base + _MARK_AFTER, 125, 5), dense(base + _MARK_BEFORE, 125, 5)
        joint.append(mark[None, :, None] + after[None] + before.transpose(1, 0, 2)[:, :, None])
        chosen = kind == base + _MARK_SYMBOL
        order = np.argsort(low[chosen])
        charmark_keys.append(low[chosen][order])
        charmark.append(values[chosen][order])
    return Component(
        unigram=unigram,
        bigram_keys=bigram_keys,
        bigram=bigram,
        joint=joint,
        charmark_keys=charmark_keys,
        charmark=charmark,
        transition=transition,
        **_NO_SKIP,
    )


_NO_SKIP: Any = {"skip_keys": np.zeros(0, np.uint32), "skip": np.zeros((0, 4), np.float32)}


def _features(component: Component) -> tuple[Keys, Float, Float]:
    """Weights by feature, out of weights by table: features whose sums are the tables."""
    keys: list[NDArray[Any]] = []
    values: list[Float] = []

    def put(kind: int, low: NDArray[Any], rows: Float) -> None:
        chosen = np.any(rows != 0, axis=-1)
        keys.append(np.uint64(kind << 32) | low[chosen].astype(np.uint64))
        values.append(rows[chosen])

    for d in range(5):
        put(_UNIGRAM + d, np.arange(len(component.unigram)) << 16, component.unigram[:, d])
    for d in range(4):
        put(_BIGRAM + d, component.bigram_keys, component.bigram[:, d])
    for number, joint in enumerate(component.joint):
        base = _LEXICON + _LEXICON_KINDS * number
        mark = joint[0, :, 0]
        put(base + _MARK, _M << 16, mark)
        for k in range(1, 5):
            put(base + _MARK_AFTER, _M << 16 | k, joint[0, :, k] - mark)
            put(base + _MARK_BEFORE, _M << 16 | k, joint[k, :, 0] - mark)
        put(base + _MARK_SYMBOL, component.charmark_keys[number], component.charmark[number])
    return (
        np.concatenate(keys),
        np.ascontiguousarray(np.concatenate(values), np.float32),
        np.ascontiguousarray(component.transition, np.float32).reshape(-1),
    )
