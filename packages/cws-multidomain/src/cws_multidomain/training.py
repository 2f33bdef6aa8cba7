"""Learns segmenters from corpora: a CRF with shared and per-domain weights by ADF, and its refinement."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from ._learner import MOST_DOMAINS, Learner, Options
from ._pruning import prune
from ._sentence import Partial, Sentence
from .corpus import Corpus, by_domain
from .evaluation import evaluate
from .segmenter import Segmenter, read_words

if TYPE_CHECKING:
    from ._pkuseg import Model as PkusegModel
    from ._weights import Weights

__all__ = ["Progress", "fine_tune", "train"]

Dictionary: TypeAlias = "str | os.PathLike[str] | Iterable[str] | Mapping[str, int]"
_Domains: TypeAlias = "dict[str | None, list[Sentence | Partial]]"


@dataclass(frozen=True)
class Progress:
    """What training tells after each epoch.

    Attributes:
        epoch: how many are done.
        epochs: of how many.
        loss: nats per character, measured while learning.
        f1: on `dev`, from 0 to 1, averaged over its domains; None without `dev`.
    """

    epoch: int
    epochs: int
    loss: float
    f1: float | None = None


def train(
    corpus: Corpus,
    *,
    dev: Corpus | None = None,
    dictionaries: Sequence[Dictionary] = (),
    templates: str = "native",
    epochs: int = 20,
    rate: float = 0.05,
    updates: int = 10,
    upper: float = 0.995,
    lower: float = 0.6,
    l2: float = 1.0,
    domain_dropout: float = 0.3,
    feature_dropout: float = 0.2,
    vocabulary: bool = True,
    variants: Mapping[str, str] | None = None,
    max_bytes: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    shards: int = 1,
    reference: bool = False,
    device: str = "cpu",
    metadata: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> Segmenter:
    r"""Learn a segmenter: a CRF over the tags B, M, E, S, trained by ADF.

    Each step moves the weights that fire in a sentence by ``-eta * (E_model[f] - E_gold[f])``; `updates` times an epoch
    ``eta *= upper - (upper - lower) * frequency`` for every feature, so that frequent ones settle first. Every feature
    has a weight that all domains share and one for each domain that it occurs in. The result depends on corpus, options
    and seed, never on the number of threads.

    Args:
        corpus: a path, an iterable of lists of words (or :class:`Sentence`, :class:`Partial`), or a dict of these by
            domain, 32 at most.
        dev: the same; the epoch with the best F1 on it is kept, and the temperature of probabilities is fitted to it.
            None (default): the last epoch, temperature 1.
        dictionaries: paths (jieba, THUOCL, or a word a line), iterables of words, or dicts of counts by word. Together
            they make one lexicon, whose words of 2 to 6 characters become features.
        templates: "native" (default), or "pkuseg": that program's features and tags, for one corpus without domains;
            what comes back is then a model of pkuseg, with `cut` and `save` alone.
        epochs: passes over the corpus (default 20, as in pkuseg).
        rate, updates, upper, lower, l2: of ADF; defaults 0.05, 10, 0.995, 0.6, 1, as in pkuseg.
        domain_dropout: share of the sentences that train the shared weights alone (default 0.3), so that they serve
            text of unknown origin.
        feature_dropout: share of the n-grams left out where they occur (default 0.2, by the development sets of MSR,
            PKU and Zhuxian).
        vocabulary: whether the words of the corpus make a lexicon of their own (default True); while training, each
            tenth of the corpus is marked by the words of the others.
        variants: characters that read as another, such as ``{"馬": "马"}``; both scripts then share their weights.
        max_bytes: of the n-gram weights in the saved model; n-grams of the least range go first. None (default): all.
        seed: of the order and of both dropouts (default 0).
        threads: None (default): all cores, as far as `shards` gives them work.
        shards: sentences that learn from the same weights, at the same time (default 1, plain stochastic steps).
        reference: with `templates="pkuseg"`, float64 in exactly the order of pkuseg.
        device: "cpu" (default), or "cuda" with the extra gpu, where only minibatches (`shards`) pay.
        metadata: kept in the model; see :attr:`Segmenter.info`.
        progress: called after each epoch.

    Raises:
        ValueError: an option outside of its range, an empty corpus or domain, or a file that breaks its rules.
        TypeError: a corpus that is none.

    Example:
        >>> segmenter = train([["我们", "爱", "北京"], ["北京", "很", "大"]] * 5, epochs=5)
        >>> segmenter.cut("我们爱北京")
        ['我们', '爱', '北京']
    """
    options = _options(
        rate=rate,
        updates=updates,
        upper=upper,
        lower=lower,
        l2=l2,
        domain_dropout=domain_dropout,
        feature_dropout=feature_dropout,
        seed=seed,
        shards=shards,
        threads=os.cpu_count() or 1 if threads is None else threads,
    )
    _at_least("epochs", epochs, 1)
    if max_bytes is not None:
        _at_least("max_bytes", max_bytes, 1)
    if templates not in ("native", "pkuseg"):
        raise ValueError(f"templates must be native or pkuseg, got {templates!r}")
    if reference and templates != "pkuseg":
        raise ValueError("reference must be False for templates='native': it is the order of pkuseg's own steps")
    if templates == "pkuseg":
        return cast("Segmenter", _like_pkuseg(by_domain(corpus), epochs, options, reference))
    sentences, skipped = _labelled(by_domain(corpus))
    held_out = None if dev is None else by_domain(dev, "dev")
    learner = Learner(
        sentences,
        options,
        dictionary=_merged(dictionaries),
        with_vocabulary=vocabulary,
        variants=_points(variants),
        device=device,
    )
    about = {"options": _public(options, epochs=epochs), "skipped": skipped, "sizes": _sizes(sentences)}
    return _learn(learner, epochs, held_out, {**(metadata or {}), "training": about}, max_bytes, progress)


def fine_tune(
    segmenter: Segmenter,
    corpus: Corpus,
    domain: str | None = None,
    epochs: int = 5,
    *,
    rate: float = 0.05,
    seed: int = 0,
    progress: Callable[[Progress], object] | None = None,
) -> Segmenter:
    """A new segmenter that has also learnt from these sentences; see :meth:`Segmenter.fine_tune`.

    With a domain, old or new, only that domain's weights move, and all others answer as before.

    Args:
        segmenter: where to start; it stays as it is.
        corpus: as for :func:`train`; with domains of its own only if `domain` is None.
        domain: whose weights learn. None (default): the shared ones, and those of the corpus's domains.
        epochs: passes over the corpus (default 5).
        rate: of all features at the start (default 0.05).
        seed: of the order (default 0).
        progress: called after each epoch.

    Raises:
        ValueError: an option outside of its range, or an empty corpus.

    Example:
        >>> segmenter = train([["我们", "爱", "北京"], ["北京", "很", "大"]] * 5, epochs=5)
        >>> fine_tune(segmenter, [["北京", "大学"]] * 3, domain="schools").domains
        ('general', 'schools')
    """
    _at_least("epochs", epochs, 1)
    options = _options(rate=rate, seed=seed, domain_dropout=0.0)
    sentences, skipped = _labelled(by_domain(corpus))
    if domain is not None:
        if not isinstance(domain, str) or domain in ("", "auto", "general"):
            raise ValueError(f"domain must be a name other than auto and general, got {domain!r}")
        if list(sentences) != [None]:
            raise ValueError("domain must be None for a corpus that has domains of its own")
        sentences = {domain: sentences[None]}
    start = segmenter.weights()
    learner = Learner(sentences, options, start=start, shared=domain is None)
    tuned = {"domain": domain, "epochs": epochs, "skipped": skipped, "sizes": _sizes(sentences)}
    about = {**start.metadata, "fine_tuned": [*start.metadata.get("fine_tuned", []), tuned]}
    made = _learn(learner, epochs, None, about, None, progress, start.temperature)
    return segmenter.with_model(made)


def _like_pkuseg(domains: _Domains, epochs: int, options: Options, reference: bool) -> PkusegModel:
    from ._pkuseg import corpus_text
    from ._pkuseg import train as learn

    if list(domains) != [None]:
        raise ValueError(f"corpus must have no domains for templates='pkuseg', got {', '.join(map(str, domains))}")
    words = [sentence.words for sentence in domains[None] if isinstance(sentence, Sentence)]
    return learn(
        corpus_text(words),
        epochs=epochs,
        rate=options.rate,
        updates=options.updates,
        upper=options.upper,
        lower=options.lower,
        l2=options.l2,
        seed=options.seed,
        reference=reference,
    )


def _learn(
    learner: Learner,
    epochs: int,
    dev: _Domains | None,
    metadata: Mapping[str, Any],
    max_bytes: int | None,
    progress: Callable[[Progress], object] | None,
    temperature: float = 1.0,
) -> Segmenter:
    best: tuple[float, Weights] | None = None
    for number in range(epochs):
        loss = learner.epoch(number)
        f1 = None
        if dev is not None:
            weights = learner.weights(metadata)
            f1 = _f1(Segmenter.from_weights(weights), dev)
            if best is None or f1 > best[0]:
                best = f1, weights
        if progress is not None:
            progress(Progress(number + 1, epochs, loss, f1))
    weights = best[1] if best else learner.weights(metadata)
    weights.temperature = temperature
    if max_bytes is not None:
        prune(weights, max_bytes)
    segmenter = Segmenter.from_weights(weights)
    if dev is not None:
        weights.temperature = _temperature(segmenter, dev)
        segmenter = Segmenter.from_weights(weights)
    return segmenter


def _f1(segmenter: Segmenter, dev: _Domains) -> float:
    scores = []
    for name, sentences in dev.items():
        gold = [sentence for sentence in sentences if isinstance(sentence, Sentence)]
        view = segmenter.with_domain(name if name in segmenter.domains else "general")
        scores.append(evaluate(gold, view.cut_many([sentence.text for sentence in gold])).f1)
    return sum(scores) / len(scores)


def _temperature(segmenter: Segmenter, dev: _Domains) -> float:
    """The temperature, among a few, under which the boundaries of `dev` are the most probable."""
    choices = [0.7 * 1.1**k for k in range(12)]
    losses = [0.0] * len(choices)
    for name, sentences in dev.items():
        view = segmenter.with_domain(name if name in segmenter.domains else "general")
        for sentence in sentences[:2000]:
            if not isinstance(sentence, Sentence):
                continue
            starts, at = set(), 0
            for word, space in zip(sentence.words, sentence.spaces or [False] * len(sentence.words), strict=True):
                starts.add(at)
                at += len(word) + space
            text = sentence.text
            for k, value in enumerate(choices):
                p = view.probabilities(text, temperature=value)
                for i in range(1, len(text)):
                    if not text[i].isspace() and not text[i - 1].isspace():
                        q = float(p[i]) if i in starts else 1 - float(p[i])
                        losses[k] -= math.log(min(max(q, 1e-6), 1.0))
    return choices[losses.index(min(losses))]


def _labelled(domains: _Domains) -> tuple[_Domains, int]:
    """The sentences from which something can be learnt, and how many are left out."""
    kept: _Domains = {
        name: [s for s in part if not isinstance(s, Partial) or s.known] for name, part in domains.items()
    }
    for name, part in kept.items():
        if not part:
            raise ValueError(f"corpus must have a known boundary, got none in domain {name!r}")
        if name in ("auto", "general"):
            raise ValueError(f"corpus must not name a domain auto or general, got {name!r}")
    if len(kept) > MOST_DOMAINS:
        raise ValueError(f"corpus must have at most {MOST_DOMAINS} domains, got {len(kept)}")
    return kept, sum(map(len, domains.values())) - sum(map(len, kept.values()))


def _merged(dictionaries: Sequence[Dictionary]) -> list[tuple[str, int]]:
    if isinstance(dictionaries, str | os.PathLike | Mapping):
        raise TypeError(f"dictionaries must be a sequence of dictionaries, got {type(dictionaries).__name__}")
    counts: dict[str, int] = {}
    for given in dictionaries:
        if isinstance(given, str | os.PathLike):
            words: Mapping[str, int] = read_words(Path(given))
        else:
            words = given if isinstance(given, Mapping) else dict.fromkeys(given, 0)
        for word, count in words.items():
            counts[word] = max(counts.get(word, 0), count)
    return sorted(counts.items())


def _points(variants: Mapping[str, str] | None) -> dict[int, int] | None:
    if variants is None:
        return None
    if not isinstance(variants, Mapping):
        raise TypeError(f"variants must map characters to characters, got {type(variants).__name__}")
    for variant, character in variants.items():
        if not all(isinstance(x, str) and len(x) == 1 for x in (variant, character)):
            raise ValueError(f"variants must map characters to characters, got {variant!r}: {character!r}")
    return {ord(variant): ord(character) for variant, character in variants.items()}


def _sizes(domains: _Domains) -> dict[str, int]:
    return {name or "general": len(part) for name, part in domains.items()}


def _public(options: Options, **more: Any) -> dict[str, Any]:
    """The options that the result depends on."""
    return {name: value for name, value in vars(copy.copy(options)).items() if name != "threads"} | more


def _options(**values: Any) -> Options:
    options = Options(**values)
    for name in ("rate", "l2"):
        value = getattr(options, name)
        if not (isinstance(value, int | float) and 0 < value < math.inf):
            raise ValueError(f"{name} must be a positive number, got {value!r}")
    if not 0 < options.lower <= options.upper <= 1:
        raise ValueError(f"lower and upper must be 0 < lower <= upper <= 1, got {options.lower} and {options.upper}")
    for name in ("domain_dropout", "feature_dropout"):
        value = getattr(options, name)
        if not (isinstance(value, int | float) and 0 <= value < 1):
            raise ValueError(f"{name} must be at least 0 and below 1, got {value!r}")
    for name in ("updates", "shards", "threads"):
        _at_least(name, getattr(options, name), 1)
    if isinstance(options.seed, bool) or not isinstance(options.seed, int) or options.seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {options.seed!r}")
    return options


def _at_least(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
