"""Makes a domain out of raw text: induces its words, adds a word list, and trains on the decoder's sure boundaries."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ._gate import widened
from ._induction import Criteria, induce
from ._learner import Learner, Options
from ._sentence import Partial
from ._weights import Component, Weights
from .corpus import by_domain
from .evaluation import evaluate
from .segmenter import Segmenter, read_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .corpus import Corpus

__all__ = ["Adaptation", "adapt"]

Lexicon: TypeAlias = "str | os.PathLike[str] | Iterable[str] | Mapping[str, int]"


@dataclass(frozen=True)
class Adaptation:
    """What :func:`adapt` did; kept as ``segmenter.info["adapted"]``.

    Attributes:
        name: of the domain.
        characters: of the raw text.
        base: weights of the domains that it started from.
        induced: how many words were found in the text that the vocabulary had not.
        lexicon: how many words came from the word list.
        sure: share of the boundaries that the last round learnt from.
        changed: share of the characters before which the boundary changed.
        f1_before: on `dev`, of the base; None without `dev`.
        f1_after: on `dev`, of the new domain; None without `dev`.
    """

    name: str
    characters: int
    base: dict[str, float]
    induced: int
    lexicon: int
    sure: float
    changed: float
    f1_before: float | None = None
    f1_after: float | None = None


def adapt(
    segmenter: Segmenter,
    texts: str | os.PathLike[str] | Iterable[str],
    lexicon: Lexicon | None = None,
    name: str = "adapted",
    *,
    dev: Corpus | None = None,
    rounds: int = 1,
    epochs: int = 3,
    sure: float = 0.7,
    criteria: Criteria | None = None,
    seed: int = 0,
    progress: Callable[[str], object] | None = None,
) -> Segmenter:
    """A new segmenter that knows a domain of which there are raw text and, maybe, a word list, but no labels.

    The base is the segmenter's own `domain`; for "auto" it is what the gate says of the texts on average. Then:

    1. strings of 2 to 6 characters are words if they are frequent, stand in varied contexts on both sides (branching
       entropy), hold together inside, and begin and end where the base sees boundaries; or if the base makes most of
       their occurrences a token;
    2. these and the word list join the model's vocabulary, whose marks the weights already know how to read;
    3. `rounds` times, the domain's own weights learn from the boundaries that the decoder is sure of, whatever is
       unsure staying open (:class:`Partial`); other domains answer as before, but for the words that are new.

    Args:
        segmenter: the base; it stays as it is.
        texts: a path of UTF-8 text, or texts.
        lexicon: a path (THUOCL: word and frequency; jieba; a word a line), words, or counts by word.
        name: of the new domain (default "adapted").
        dev: labelled sentences, if there are any: they are not learnt from, but tell whether the domain helps.
        rounds: of learning from the decoder's own boundaries (default 1); 0 adds words alone.
        epochs: passes over the texts in a round (default 3).
        sure: the least probability of a boundary, or of none, that is learnt from (default 0.7).
        criteria: of induction; see :class:`Criteria`.
        seed: of the order (default 0).
        progress: called with a sentence about each step.

    Returns:
        The segmenter with the new domain as its `domain`. ``info["adapted"]`` reports; if `dev` is given and the domain
        does not help there, the report says so, and the caller should keep the base.

    Raises:
        ValueError: no text, a name that is taken, or an option outside of its range.
        TypeError: texts that are none.

    Example:
        >>> from cws_multidomain import adapt, train
        >>> base = train([["我们", "爱", "北京"], ["北京", "很", "大"]] * 9, epochs=5)
        >>> novel = adapt(base, ["鬼王爱碧瑶", "碧瑶很大", "我们爱碧瑶"] * 9, name="novel")
        >>> novel.domain
        'novel'
    """
    tell = progress or (lambda sentence: None)
    if not isinstance(name, str) or not name or name in (*segmenter.domains, "auto"):
        raise ValueError(f"name must be new, and not one of auto, {', '.join(segmenter.domains)}; got {name!r}")
    for option, value, least in (("rounds", rounds, 0), ("epochs", epochs, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{option} must be an integer of at least {least}, got {value!r}")
    if not 0.5 < sure <= 1:
        raise ValueError(f"sure must be above 0.5 and at most 1, got {sure!r}")
    sentences = _sentences(texts)
    listed = _listed(lexicon)
    base = _base(segmenter, sentences)
    view = segmenter.with_domain(base)
    held_out = None if dev is None else [s for part in by_domain(dev, "dev").values() for s in part]
    before = None if held_out is None else _f1(view, held_out)

    first = _starts(view, sentences)
    weights = segmenter.weights()
    vocabulary = dict(weights.lexicons[-1]) if weights.lexicons else {}
    induced = induce(sentences, first, criteria or Criteria()).keys() - vocabulary.keys()
    tell(f"{len(induced):,} words induced from {sum(map(len, sentences)):,} characters, {len(listed):,} listed")
    weights = _with_words(weights, {**dict.fromkeys(induced, 0), **listed})
    weights.components.append(_mixed(weights, base))
    weights.domains = [*weights.domains, name]
    weights.gate = widened(weights.gate, len(weights.domains))
    made = segmenter.with_model(Segmenter.from_weights(weights)).with_domain(name)
    share = 1.0
    for number in range(rounds):
        starts = _starts(made, sentences)
        labelled, share = _labelled(sentences, starts, sure)
        learner = Learner({name: labelled}, Options(seed=seed), start=made.weights(), shared=False)
        for epoch in range(epochs):
            learner.epoch(number * epochs + epoch)
        made = made.with_model(Segmenter.from_weights(learner.weights(weights.metadata))).with_domain(name)
        tell(f"round {number + 1}: {share:.1%} of the boundaries are sure")
    last = _starts(made, sentences)
    changed = sum(int(((a > 0.5) != (b > 0.5)).sum()) for a, b in zip(first, last, strict=True))
    report = Adaptation(
        name=name,
        characters=sum(map(len, sentences)),
        base=base,
        induced=len(induced),
        lexicon=len(listed),
        sure=share,
        changed=changed / sum(map(len, sentences)),
        f1_before=before,
        f1_after=None if held_out is None else _f1(made, held_out),
    )
    final = made.weights()
    adapted = [*final.metadata.get("adapted", []), asdict(report)]
    final.metadata = {**final.metadata, "adapted": adapted}
    return made.with_model(Segmenter.from_weights(final)).with_domain(name)


def _sentences(texts: str | os.PathLike[str] | Iterable[str]) -> list[str]:
    """Runs without white space; of a path, of its lines."""
    if isinstance(texts, os.PathLike) or (isinstance(texts, str) and "\n" not in texts and Path(texts).is_file()):
        given: Iterable[str] = [Path(texts).read_text(encoding="utf-8-sig")]
    elif isinstance(texts, str) or not isinstance(texts, Iterable):
        raise TypeError(f"texts must be a path or an iterable of str, got {type(texts).__name__}")
    else:
        given = texts
    sentences: list[str] = []
    for index, text in enumerate(given):
        if not isinstance(text, str):
            raise TypeError(f"texts must be str, got {type(text).__name__} at index {index}")
        sentences += text.split()
    if not sentences:
        raise ValueError("texts must have a character that is no white space, got none")
    return sentences


def _listed(lexicon: Lexicon | None) -> dict[str, int]:
    if lexicon is None:
        return {}
    if isinstance(lexicon, str | os.PathLike):
        return read_words(lexicon)
    words = dict(lexicon) if isinstance(lexicon, Mapping) else dict.fromkeys(lexicon, 0)
    for word in words:
        if not isinstance(word, str) or word.split() != [word]:
            raise ValueError(f"lexicon must hold words without white space, got {word!r}")
    return words


def _base(segmenter: Segmenter, sentences: list[str]) -> dict[str, float]:
    """The weights of the domains to start from."""
    if isinstance(segmenter.domain, Mapping):
        total = sum(segmenter.domain.values())
        return {name: weight / total for name, weight in segmenter.domain.items()}
    if segmenter.domain != "auto":
        return {segmenter.domain: 1.0}
    pieces = ["".join(sentences[at : at + 20]) for at in range(0, len(sentences), 20)][:1000]
    gates = [segmenter.gate(piece) for piece in pieces]
    if not gates[0]:
        return {"general": 1.0}
    return {name: sum(gate[name] for gate in gates) / len(gates) for name in gates[0]}


def _starts(segmenter: Segmenter, sentences: list[str]) -> list[NDArray[np.float32]]:
    return [segmenter.probabilities(sentence) for sentence in sentences]


def _with_words(weights: Weights, words: Mapping[str, int]) -> Weights:
    """The weights with more words in the last lexicon, that of the vocabulary if there is one."""
    new = [word for word in words if 2 <= len(word) <= 6]
    if new and weights.lexicons:
        *others, last = weights.lexicons
        weights.lexicons = [*others, sorted({**dict.fromkeys(new, 0), **dict(last)}.items())]
        weights.symbols = _symbols(weights, new)
    return weights


def _symbols(weights: Weights, words: Iterable[str]) -> dict[int, int]:
    from ._encoding import Symbols

    symbols = Symbols(weights.symbols, weights.n_symbols).extended([], words)
    spare = symbols.count - weights.n_symbols
    if spare > 0:
        for component in weights.components:
            component.unigram = np.concatenate([component.unigram, np.zeros((spare, 5, 4), np.float32)])
    return symbols.mapping


def _mixed(weights: Weights, base: Mapping[str, float]) -> Component:
    """The sum of domains' weights, which a new domain starts from."""
    parts = [(base[n], c) for n, c in zip(weights.domains, weights.components[1:], strict=True) if base.get(n)]
    shared = weights.components[0]

    def tables(keys: list[NDArray[np.uint32]], rows: list[NDArray[np.float32]]) -> tuple[Any, Any]:
        every = np.unique(np.concatenate([np.zeros(0, np.uint32), *keys]))
        shape = rows[0].shape[1:] if rows else ()
        total = np.zeros((len(every), *shape), np.float32)
        for (weight, _), own, values in zip(parts, keys, rows, strict=True):
            total[np.searchsorted(every, own)] += np.float32(weight) * values
        return every, total

    def dense(of: Callable[[Component], NDArray[np.float32]]) -> NDArray[np.float32]:
        total = np.zeros_like(of(shared))
        for weight, component in parts:
            total += np.float32(weight) * of(component)
        return total

    def joint(k: int) -> NDArray[np.float32]:
        return dense(lambda component: component.joint[k])

    bigram_keys, bigram = tables([c.bigram_keys for _, c in parts], [c.bigram for _, c in parts])
    marks = [
        tables([c.charmark_keys[k] for _, c in parts], [c.charmark[k] for _, c in parts])
        for k in range(len(weights.lexicons))
    ]
    return Component(
        unigram=dense(lambda c: c.unigram),
        bigram_keys=bigram_keys,
        bigram=bigram.reshape(-1, 4, 4),
        skip_keys=np.zeros(0, np.uint32),
        skip=np.zeros((0, 4), np.float32),
        joint=[joint(k) for k in range(len(weights.lexicons))],
        charmark_keys=[keys for keys, _ in marks],
        charmark=[rows.reshape(-1, 4) for _, rows in marks],
        transition=dense(lambda c: c.transition),
    )


def _labelled(sentences: list[str], starts: list[NDArray[np.float32]], sure: float) -> tuple[list[Partial], float]:
    """Sentences with the boundaries that are sure, and the share of them."""
    labelled, known, total = [], 0, 0
    for sentence, p in zip(sentences, starts, strict=True):
        gaps = tuple(True if q >= sure else False if q <= 1 - sure else None for q in p[1:].tolist())
        partial = Partial(sentence, gaps)
        known += partial.known
        total += len(gaps)
        if partial.known:
            labelled.append(partial)
    return labelled, known / max(1, total)


def _f1(segmenter: Segmenter, dev: list[Any]) -> float:
    gold = [sentence for sentence in dev if not isinstance(sentence, Partial)]
    return evaluate(gold, segmenter.cut_many([sentence.text for sentence in gold])).f1
