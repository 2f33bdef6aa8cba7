"""Random models over a small alphabet, and the decoding of whole texts in NumPy, for the tests of the engine."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from cws_multidomain import _reference
from cws_multidomain._weights import Component, Gate, Weights

if TYPE_CHECKING:
    from cws_multidomain.segmenter import Segmenter

CHARACTERS = "中国人民大学生的是在了和有我他这不们到说要就去看好𠮷㐂"
VARIANTS = {"國": "国", "學": "学", "個": "个"}


def weights(
    seed: int = 0, *, domains: int = 0, lexicons: int = 1, skip: bool = False, size: float = 1.0, gate: bool = False
) -> Weights:
    """Weights with every kind of table."""
    rng = np.random.default_rng(seed)
    symbols = {ord(c): 5 + i for i, c in enumerate(CHARACTERS)}
    symbols.update({ord(v): symbols[ord(c)] for v, c in VARIANTS.items() if ord(c) in symbols})
    n = 5 + len(CHARACTERS)
    pairs = np.array(
        [a << 16 | b for a, b in itertools.product(range(1, n), range(1, n)) if rng.random() < 0.5], np.uint32
    )
    marked = np.array([m << 16 | s for m in range(125) for s in range(3, n) if rng.random() < 0.3], np.uint32)

    def rows(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) * size).astype(np.float32)

    def component(part: float) -> Component:
        def some(keys: np.ndarray) -> np.ndarray:
            return keys[rng.random(len(keys)) < part]

        bigram, skips = some(pairs), some(pairs if skip else pairs[:0])
        marks = [some(marked) for _ in range(lexicons)]
        unigram = rows(n, 5, 4)
        unigram[0] = 0
        return Component(
            unigram * (rng.random((n, 1, 1)) < part).astype(np.float32),
            bigram,
            rows(len(bigram), 4, 4),
            skips,
            rows(len(skips), 4),
            [rows(5, 125, 5, 4) for _ in range(lexicons)],
            marks,
            [rows(len(k), 4) for k in marks],
            rows(4, 4),
        )

    words = [
        [("".join(rng.choice(list(CHARACTERS), rng.integers(1, 8))), int(rng.integers(0, 1000))) for _ in range(150)]
        for _ in range(lexicons)
    ]
    if lexicons:
        words[0] += [("A国", 7), ("B国", 8), ("3人", 9), ("大學", 10), ("大学", 11), ("未知", 12), ("学生们", 300)]
    words = [list(dict(w).items()) for w in words]
    names = [f"domain{k}" for k in range(1, domains + 1)]
    table = Gate(rows(8192, domains) * 9, rows(domains)) if gate else None
    parts = [component(0.6) for _ in range(domains)]
    return Weights(symbols, words, [component(1.0), *parts], names, table, 1.3, {"name": "synthetic"})


_UNPACKED: dict[int, tuple[object, Weights]] = {}


def unpacked(segmenter: Segmenter) -> Weights:
    """The weights of a segmenter, unpacked once."""
    model = segmenter._model
    if id(model) not in _UNPACKED:
        _UNPACKED[id(model)] = (model, segmenter.weights())
    return _UNPACKED[id(model)][1]


def scores(model: Weights, sentence: str, mixture: dict[str, float] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Emissions and transitions of a sentence, in float64."""
    active = _reference.active(model, mixture)
    symbols = _reference.symbols(sentence, model.symbols)
    lexicons = [
        {tuple(s) for w, _ in words if 0 not in (s := _reference.symbols(w, model.symbols).tolist())}
        for words in model.lexicons
    ]
    for name in ("unigram", "bigram", "skip", "transition"):
        setattr(active, name, getattr(active, name).astype(np.float64))
    active.joint = [x.astype(np.float64) for x in active.joint]
    active.charmark = [x.astype(np.float64) for x in active.charmark]
    marks = [_reference.marks(symbols, words) for words in lexicons]
    return _reference.emissions(active, symbols, marks), active.transition


def graphemes(sentence: str) -> np.ndarray:
    """joint of the rule "grapheme", by the regex module."""
    import regex

    joint = np.ones(len(sentence) + 1, bool)
    joint[[m.start() for m in regex.finditer(r"\X", sentence)]] = False
    return joint[:-1]


def masks(sentence: str, rules: frozenset[str]) -> tuple[np.ndarray, np.ndarray]:
    """joint and start by all rules."""
    joint, start = _reference.masks(sentence, rules)
    if "grapheme" in rules:
        clusters = graphemes(sentence)
        joint |= clusters
        start &= ~clusters
    start[:1] = True
    return joint, start


def cut(segmenter: Segmenter, text: str, mixture: dict[str, float] | None = None) -> list[str]:
    """The tokens of a text by the reference, from the weights of a segmenter."""
    tokens = []
    model, scale, rules = unpacked(segmenter), segmenter._model.scale, segmenter.rules
    for begin, end in _reference.sentences(text):
        sentence = text[begin:end]
        emissions, transition = scores(model, sentence, mixture)
        tags = _reference.viterbi(np.rint(emissions * scale), np.rint(transition * scale), *masks(sentence, rules))
        at = 0
        for length in _reference.lengths_of(tags):
            tokens.append(sentence[at : at + length])
            at += length
    return tokens
