"""Parts of speech: a second chain over words, its training, and its sections in a model file; no segmentation."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from . import _core

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float = NDArray[np.float32]
    Keys = NDArray[np.uint64]
    Places = NDArray[np.uint32]
    Pairs = tuple[NDArray[np.uint32], NDArray[np.uint32]]

__all__ = ["Accuracy", "Tagger", "train_pos"]

_SECTIONS = ("pos.tags", "pos.transitions", "pos.buckets", "pos.features", "pos.folding")
_MOST_TAGS = 127
_UNKNOWN = ("", "_", None)  # in a column of a corpus
_KNOWN = 3  # occurrences after which a word keeps to the tags it had

Label: TypeAlias = "tuple[str, str]"  # the treebank's own tag, the universal one
Tagged: TypeAlias = "str | os.PathLike[str] | Iterable[Any]"
Progress: TypeAlias = "Callable[[int, int, float, float | None], object]"


class Accuracy(NamedTuple):
    """The share of right tags among the words of a corpus that have one; NaN if none has."""

    xpos: float
    upos: float
    words: int


class Tagger:
    r"""Tags words with their parts of speech, by a linear-chain CRF over the words of a sentence.

    .. math::
        s(x, y) = \sum_i \sum_{f \in F(x, i)} w_{f, y_i} + \sum_{i > 0} A_{y_{i-1}, y_i}

    F(x, i) has the word, its two neighbours on either side, both bigrams with it and the pair around it, its first and
    last 1, 2 and 3 characters, its length, and last characters, lengths and character classes of the neighbours. Words
    are folded first: full-width forms, digits, Latin letters, and what `folding` says. A tag of the model is a pair of
    the treebank's own tag and the universal one, so that DEC may be PART here and SCONJ there.

    Taggers come out of :meth:`train` and :meth:`from_sections`. They do not change, are picklable, and may be used by
    several threads.

    Example:
        >>> tagger = Tagger.train([[("我", "PN"), ("爱", "VV"), ("北京", "NR")]] * 9)
        >>> tagger.tag(["我", "爱", "北京"])
        ['PN', 'VV', 'NR']
    """

    def __init__(self, sections: Mapping[str, Any]) -> None:
        missing = [name for name in _SECTIONS if name not in sections]
        if missing:
            raise ValueError(f"sections must have {', '.join(_SECTIONS)}, got none named {', '.join(missing)}")
        self._sections = {name: bytes(sections[name]) for name in _SECTIONS}
        self._about = _parse_about(self._sections["pos.tags"])
        self._labels: list[Label] = [(xpos, upos) for xpos, upos in self._about["labels"]]
        self._xpos = tuple(xpos for xpos, _ in self._labels)
        self._upos = tuple(upos for _, upos in self._labels)
        fold = _numbers(self._sections, "pos.folding", "<u4")
        self._core = _core.Tagger(
            len(self._labels),
            _numbers(self._sections, "pos.buckets", "<u4"),
            _numbers(self._sections, "pos.features", "u1"),
            _numbers(self._sections, "pos.transitions", "<i2"),
            fold[: len(fold) // 2],
            fold[len(fold) // 2 :],
        )

    @classmethod
    def from_sections(cls, sections: Mapping[str, Any]) -> Tagger:
        """The tagger whose parts are among the sections of a model file.

        Raises:
            ValueError: a section that is missing or unsound, by name.
        """
        return cls(sections)

    def to_sections(self) -> dict[str, bytes]:
        """The sections ``pos.*`` of a model file, from which :meth:`from_sections` makes this tagger again."""
        return dict(self._sections)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tagger, (self._sections,)

    def __repr__(self) -> str:
        return f"Tagger({len(self.tags)} tags, {self.nbytes / 1e3:.0f} kB)"

    @property
    def tags(self) -> tuple[str, ...]:
        """The treebank's own tags, sorted."""
        return tuple(sorted(set(self._xpos)))

    @property
    def universal(self) -> tuple[str, ...]:
        """The universal tags, sorted; the treebank's own if it has none."""
        return tuple(sorted(set(self._upos)))

    @property
    def nbytes(self) -> int:
        """The size of all sections."""
        return sum(map(len, self._sections.values()))

    @property
    def info(self) -> dict[str, Any]:
        """How the tagger was trained: words, options."""
        return {key: value for key, value in self._about.items() if key != "labels"}

    def tag(self, words: Sequence[str]) -> list[str]:
        """The treebank's own tag of each word of a sentence.

        Raises:
            TypeError: a word that is not a string, or a string in place of the list.
        """
        tags: list[str] = self._core.tag([_check_words(words, "words")], self._xpos, 1)[0]
        return tags

    def upos(self, words: Sequence[str]) -> list[str]:
        """The universal tag of each word; the treebank's own where the training corpus had no universal tags.

        Raises:
            TypeError: a word that is not a string, or a string in place of the list.
        """
        tags: list[str] = self._core.tag([_check_words(words, "words")], self._upos, 1)[0]
        return tags

    def tag_many(self, sentences: Iterable[Sequence[str]], threads: int | None = None) -> list[list[str]]:
        """The treebank's own tags of the words of many sentences.

        Args:
            sentences: lists of words.
            threads: None (default): all cores. The result does not depend on it.

        Raises:
            TypeError: a word that is not a string, by index.
            ValueError: threads < 1.
        """
        return self._many(sentences, self._xpos, threads)

    def upos_many(self, sentences: Iterable[Sequence[str]], threads: int | None = None) -> list[list[str]]:
        """The universal tags of the words of many sentences; see :meth:`tag_many` and :meth:`upos`."""
        return self._many(sentences, self._upos, threads)

    def _many(self, sentences: Iterable[Sequence[str]], names: tuple[str, ...], n: int | None) -> list[list[str]]:
        n = _threads(n)
        if isinstance(sentences, str):
            raise TypeError("sentences must be lists of words, got a string")
        checked = [_check_words(words, f"sentences[{i}]") for i, words in enumerate(sentences)]
        tags: list[list[str]] = self._core.tag(checked, names, n)
        return tags

    def evaluate(self, corpus: Tagged) -> Accuracy:
        """The accuracy on a tagged corpus, given as to :meth:`train`; words whose tag is not known do not count.

        Raises:
            ValueError, TypeError: as :meth:`train`.
        """
        return self._accuracy(_read(corpus, "corpus"))

    def _accuracy(self, sentences: list[list[_Row]]) -> Accuracy:
        words = [[word for word, _, _ in sentence] for sentence in sentences]
        found = zip(self.tag_many(words), self.upos_many(words), strict=True)
        hits: dict[str, list[bool]] = {"xpos": [], "upos": []}
        for sentence, (xpos, upos) in zip(sentences, found, strict=True):
            for (_, x, u), own, universal in zip(sentence, xpos, upos, strict=True):
                if x is not None:
                    hits["xpos"].append(own in x)
                if u is not None:
                    hits["upos"].append(universal in u)
        share = {name: sum(h) / len(h) if h else float("nan") for name, h in hits.items()}
        return Accuracy(share["xpos"], share["upos"], sum(map(len, words)))

    @classmethod
    def train(
        cls,
        corpus: Tagged,
        dev: Tagged | None = None,
        *,
        epochs: int = 12,
        rate: float = 0.1,
        updates: int = 10,
        upper: float = 0.995,
        lower: float = 0.6,
        l2: float = 2.0,
        minimum: int = 2,
        max_bytes: int = 600_000,
        folding: Mapping[int, int] | None = None,
        seed: int = 0,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Tagger:
        r"""A tagger trained by ADF: rates that fall the faster, the more often a feature is seen.

        First the weights of all features with all tags are trained; then only the largest of them, as many as fit in
        `max_bytes`, from zero. A word may have an unknown tag ("_") or alternatives ("PART|SCONJ") in either column;
        then the loss is :math:`\log Z - \log Z_{\text{allowed}}`. So treebanks with other conventions help.

        Args:
            corpus: a path (see :func:`read_corpus`), or an iterable of sentences: objects with ``words``, ``xpos`` and
                ``upos``, or lists of (word, tag) or (word, tag, universal tag).
            dev: a corpus whose accuracy picks the epoch; None (default): the last.
            epochs: passes in either stage (default 12).
            rate: the first rate of each feature (default .1; that of the segmenter, .05, needs twice the epochs).
            updates: changes of the rates per epoch (default 10).
            upper, lower: factor of a rate at a change for a feature in no sentence and in all (default .995, .6).
            l2: deviation of the Gaussian prior (default 2).
            minimum: occurrences below which a feature is left out (default 2; 1 is better below some 500 sentences).
            max_bytes: size of the features' section (default 600,000).
            folding: code points that read as others, such as traditional characters as simplified (default none).
            seed: of the order of sentences (default 0).
            threads: None (default): all cores. The result does not depend on it, bit for bit.
            progress: called after each epoch with its number, the number of all, the loss, and the accuracy on dev.

        Raises:
            ValueError: an empty corpus, one without tags, more than 127 tags, or an option out of its range.
            TypeError: something that is no tagged sentence.
        """
        _check_options(locals())
        sentences = _read(corpus, "corpus")
        if not sentences:
            raise ValueError("corpus must have at least one sentence, got none")
        held = None if dev is None else _read(dev, "dev")
        if held is not None and not any(x is not None for sentence in held for _, x, _ in sentence):
            raise ValueError("dev must have at least one tagged word, got none")
        labels, sets, ids = _label(sentences)
        words = [[word for word, _, _ in sentence] for sentence in sentences]
        fold = _fold_pairs(folding, words)
        trainer = _core.TaggerTrainer(
            words,
            ids,
            len(labels),
            [[label in allowed for label in range(len(labels))] for allowed in sets],
            *fold,
            rate=rate,
            updates=updates,
            upper=upper,
            lower=lower,
            transition_decay=0.9,
            l2=l2,
            minimum=minimum,
            seed=seed,
            threads=_threads(threads),
        )
        about = {
            "labels": labels,
            "words": sum(map(len, words)),
            "options": {"epochs": epochs, "rate": rate, "updates": updates, "upper": upper, "lower": lower, "l2": l2}
            | {"minimum": minimum, "max_bytes": max_bytes, "seed": seed},
        }
        dictionary = _dictionary(words, ids, len(labels), sets, fold)

        def pack() -> Tagger:
            states = trainer.offsets(), trainer.row_tags(), trainer.weights()
            return cls(_pack(about, trainer.keys(), *states, trainer.transition(), dictionary, fold))

        best: tuple[float, Tagger] | None = None
        for stage in range(2):
            for epoch in range(epochs):
                loss = trainer.epoch()
                accuracy = None
                if held is not None and stage == 1:
                    tagger = pack()
                    accuracy = tagger._accuracy(held).xpos
                    if best is None or accuracy > best[0]:
                        best = accuracy, tagger
                if progress is not None:
                    progress(stage * epochs + epoch + 1, 2 * epochs, loss, accuracy)
            if stage == 0:
                trainer.restart(_largest(trainer.offsets(), trainer.weights(), max_bytes))
        return pack() if best is None else best[1]


def train_pos(corpus: Tagged, dev: Tagged | None = None, **options: Any) -> Tagger:
    """A tagger trained on a tagged corpus: :meth:`Tagger.train`."""
    return Tagger.train(corpus, dev, **options)


# ---- arguments


def _check_words(words: Any, name: str) -> list[str]:
    if isinstance(words, str) or not isinstance(words, Iterable):
        raise TypeError(f"{name} must be a list of words, got {type(words).__name__}")
    checked = list(words)
    for i, word in enumerate(checked):
        if not isinstance(word, str):
            raise TypeError(f"{name} must be a list of str, got {type(word).__name__} at index {i}")
    return checked


def _threads(threads: int | None) -> int:
    if threads is None:
        return os.cpu_count() or 1
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise TypeError(f"threads must be an int or None, got {type(threads).__name__}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    return threads


def _check_options(options: Mapping[str, Any]) -> None:
    for name in ("epochs", "updates", "minimum", "max_bytes", "seed"):
        value = options[name]
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
        if value < (name != "seed") or value >= 2**31:
            raise ValueError(f"{name} must be between {int(name != 'seed')} and 2^31-1, got {value}")
    for name in ("rate", "l2"):
        if not 0 < options[name] < float("inf"):
            raise ValueError(f"{name} must be positive and finite, got {options[name]}")
    for name in ("upper", "lower"):
        if not 0 < options[name] <= 1:
            raise ValueError(f"{name} must be above 0 and at most 1, got {options[name]}")
    if options["lower"] > options["upper"]:
        raise ValueError(f"lower must be at most upper ({options['upper']}), got {options['lower']}")


_Row: TypeAlias = "tuple[str, frozenset[str] | None, frozenset[str] | None]"  # word, own tags, universal tags


def _read(corpus: Any, name: str) -> list[list[_Row]]:
    if isinstance(corpus, str | os.PathLike):
        from .corpus import read_corpus

        corpus = read_corpus(corpus)
    if isinstance(corpus, Mapping) or not isinstance(corpus, Iterable):
        raise TypeError(f"{name} must be a path or an iterable of tagged sentences, got {type(corpus).__name__}")
    cache: dict[str, frozenset[str]] = {}

    def choices(tag: Any, place: str) -> frozenset[str] | None:
        if tag in _UNKNOWN:
            return None
        if not isinstance(tag, str):
            raise TypeError(f"{place} must have tags that are str, got {type(tag).__name__}")
        if tag not in cache:
            cache[tag] = frozenset(tag.split("|")) if tag.strip("|") else frozenset([tag])
        return cache[tag]

    sentences = []
    for index, sentence in enumerate(corpus):
        place = f"{name}[{index}]"
        rows = [(w, choices(x, place), choices(u, place)) for w, x, u in _columns(sentence, place)]
        if rows:
            sentences.append(rows)
    return sentences


def _columns(sentence: Any, place: str) -> list[tuple[Any, ...]]:
    if hasattr(sentence, "words") and hasattr(sentence, "xpos"):
        words = _check_words(sentence.words, place)
        xpos, upos = (getattr(sentence, column, None) or [None] * len(words) for column in ("xpos", "upos"))
        if not len(words) == len(xpos) == len(upos):
            raise ValueError(f"{place} must have a tag for each of its {len(words)} words, got {len(xpos)}")
        return list(zip(words, xpos, upos, strict=True))
    if isinstance(sentence, str) or not isinstance(sentence, Iterable):
        raise TypeError(f"{place} must be a list of (word, tag), got {type(sentence).__name__}")
    rows = []
    for row in sentence:
        if isinstance(row, str) or not isinstance(row, Sequence) or len(row) not in (2, 3):
            raise TypeError(f"{place} must be a list of (word, tag) or (word, tag, universal tag), got {row!r:.40}")
        if not isinstance(row[0], str):
            raise TypeError(f"{place} must have words that are str, got {type(row[0]).__name__}")
        rows.append((row[0], row[1], row[2] if len(row) == 3 else None))
    return rows


# ---- labels


def _label(sentences: list[list[_Row]]) -> tuple[list[Label], list[list[int]], list[int]]:
    """The pairs of tags; the sets of them that some words are known to be in; per word a pair, or pairs + a set."""
    rows = [row for sentence in sentences for row in sentence]
    if not any(x is not None for _, x, _ in rows):  # universal tags only
        rows = [(word, u, u) for word, _, u in rows]
    elif not any(u is not None for _, _, u in rows):
        rows = [(word, x, x) for word, x, _ in rows]
    exact = {(min(x), min(u)) for _, x, u in rows if x is not None and u is not None and len(x) == len(u) == 1}
    own = {x for x, _ in exact}
    exact |= {(tag, "X") for _, x, _ in rows if x is not None and len(x) == 1 for tag in x - own}
    if not exact:
        raise ValueError("corpus must have at least one word with one tag, got none")
    labels = sorted(exact)
    if len(labels) > _MOST_TAGS:
        raise ValueError(f"corpus must have at most {_MOST_TAGS} pairs of a tag and a universal tag, got {len(labels)}")
    sets: list[list[int]] = []
    known: dict[tuple[frozenset[str] | None, frozenset[str] | None], int] = {}
    ids = []
    for _, x, u in rows:
        if (x, u) not in known:
            fitting = [i for i, label in enumerate(labels) if x is None or label[0] in x]
            both = [i for i in fitting if u is None or labels[i][1] in u]
            fitting = both or (fitting if x is not None else list(range(len(labels))))
            if len(fitting) == 1:
                known[x, u] = fitting[0]
            else:
                known[x, u] = len(labels) + len(sets)
                sets.append(fitting)
        ids.append(known[x, u])
    if len(labels) + len(sets) > 2**16:
        raise ValueError(f"corpus must have fewer different alternatives of tags, got {len(sets)}")
    return labels, sets, ids


def _fold_pairs(folding: Mapping[int, int] | None, words: list[list[str]]) -> Pairs:
    """The pairs of code points that matter: those whose target is in the corpus, directly or folded."""
    if folding is None:
        folding = {}
    if not isinstance(folding, Mapping):
        raise TypeError(f"folding must map code points to code points, got {type(folding).__name__}")
    for c in itertools.chain(folding.keys(), folding.values()):
        if isinstance(c, bool) or not isinstance(c, int):
            raise TypeError(f"folding must map code points to code points, got {type(c).__name__}")
        if not 0 <= c <= 0x10FFFF:
            raise ValueError(f"folding must map code points to code points, got {c}")
    seen = set().union(*(map(ord, word) for sentence in words for word in sentence))
    seen |= {folding.get(c, c) for c in seen}
    pairs = sorted((c, to) for c, to in folding.items() if to in seen and c != to)
    return np.array([c for c, _ in pairs], np.uint32), np.array([to for _, to in pairs], np.uint32)


def _dictionary(
    words: list[list[str]], ids: list[int], labels: int, sets: list[list[int]], fold: Pairs
) -> dict[int, list[int]]:
    """By key, the labels of the words that are frequent enough to have no others."""
    keys = _core.tagger_word_keys(words, *fold).tolist()
    counts: Counter[int] = Counter(key for key, label in zip(keys, ids, strict=True) if label < labels)
    tags: dict[int, set[int]] = defaultdict(set)
    for key, label in zip(keys, ids, strict=True):
        if label < labels and counts[key] >= _KNOWN:
            tags[key].add(label)
    for key, label in zip(keys, ids, strict=True):
        if label >= labels and counts[key] >= _KNOWN and tags[key].isdisjoint(sets[label - labels]):
            tags[key].update(sets[label - labels])
    return {key: sorted(found) for key, found in tags.items()}


# ---- sections


def _largest(offsets: Places, weights: Float, max_bytes: int) -> NDArray[np.bool_]:
    """Which states stay: those of the largest weights, as many as fit."""
    size = np.abs(weights)
    order = np.argsort(-size, kind="stable")
    feature = _rows(offsets)[order]
    first = np.zeros(len(order), np.int64)
    first[np.unique(feature, return_index=True)[1]] = 1
    # 2 bytes a state; 3 a feature, and 1 to 2 for its share of the buckets
    needed = 2 * np.arange(1, len(order) + 1) + 5 * np.cumsum(first)
    keep = np.zeros(len(weights), bool)
    keep[order[: int(np.searchsorted(needed, max_bytes, "right"))]] = True
    return keep & (size > 0)


def _rows(offsets: Places) -> NDArray[np.int64]:
    """The feature of each state."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def _pack(
    about: dict[str, Any],
    keys: Keys,
    offsets: Places,
    tags: NDArray[np.uint8],
    weights: Float,
    transition: Float,
    dictionary: Mapping[int, Sequence[int]],
    fold: Pairs,
) -> dict[str, bytes]:
    """The sections: weights in int8 of one scale; states that round to zero are left out."""
    n = len(about["labels"])
    scale = 127 / max(float(np.abs(weights).max(initial=0)), 1e-3)
    rounded = np.rint(weights * scale).astype(np.int8)
    row = _rows(offsets)
    there = rounded != 0
    lists = [dictionary[key] for key in sorted(dictionary)]
    keys = np.concatenate([keys, np.array(sorted(dictionary), np.uint64)])
    row = np.concatenate([row[there], np.repeat(np.arange(len(keys) - len(lists), len(keys)), list(map(len, lists)))])
    states = np.empty((len(row), 2), np.uint8)
    states[: there.sum(), 0] = tags[there]
    states[there.sum() :, 0] = list(itertools.chain(*lists))
    states[: there.sum(), 1] = rounded[there].view(np.uint8)
    states[there.sum() :, 1] = 0

    counts = np.bincount(row, minlength=len(keys))
    order = np.argsort(keys, kind="stable")
    order = order[counts[order] > 0]
    ends = np.cumsum(3 + 2 * counts[order])
    begins = np.concatenate([[0], ends])[:-1].astype(np.int64)
    stream = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    low = keys[order] & np.uint64(0xFFFF)
    stream[begins] = low & np.uint64(0xFF)
    stream[begins + 1] = low >> np.uint64(8)
    stream[begins + 2] = counts[order]
    place = np.zeros(len(keys), np.int64)
    place[order] = begins + 3
    first = np.concatenate([[0], np.cumsum(counts)])[:-1]
    at = place[row] + 2 * (np.arange(len(row)) - first[row])
    stream[at], stream[at + 1] = states[:, 0], states[:, 1]

    bits = max(0, (len(order) // 4).bit_length())
    bucket = (keys[order] >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(len(order), np.int64)
    buckets = np.concatenate([begins, [len(stream)]])[np.searchsorted(bucket, np.arange(2**bits + 1))]
    steps = np.clip(np.rint(transition.reshape(n, n) * scale), -32768, 32767)
    return {
        "pos.tags": json.dumps(about | {"scale": scale}, ensure_ascii=False, sort_keys=True).encode(),
        "pos.transitions": steps.astype("<i2").tobytes(),
        "pos.buckets": buckets.astype("<u4").tobytes(),
        "pos.features": stream.tobytes(),
        "pos.folding": np.concatenate(fold).astype("<u4").tobytes(),
    }


def _numbers(sections: Mapping[str, bytes], name: str, dtype: str) -> NDArray[Any]:
    if len(sections[name]) % np.dtype(dtype).itemsize or (name == "pos.folding" and len(sections[name]) % 8):
        raise ValueError(f"{name}: the size is no multiple of that of its numbers, got {len(sections[name])}")
    return np.frombuffer(sections[name], dtype)


def _parse_about(data: bytes) -> dict[str, Any]:
    try:
        about = json.loads(data)
        labels = about["labels"]
        sound = all(len(label) == 2 and all(isinstance(tag, str) for tag in label) for label in labels)
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound or not 1 <= len(labels) <= _MOST_TAGS:
        raise ValueError(f"pos.tags: not a JSON object with 1 to {_MOST_TAGS} pairs of tags as labels")
    found: dict[str, Any] = about
    return found
