"""From a corpus to a vocabulary and first vectors, by gensim's steps."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .._corpus import count
from .._options import Options
from .._rows import exported
from .._state import begun
from .._vocabulary import Counts, Trim, TrimRule, Vocabulary, choose
from ._sources import check_corpus, chosen

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gensim.models import KeyedVectors
    from numpy.typing import NDArray

    from ..model import ImageSkipGram

__all__ = ["Steps"]

logger = logging.getLogger(__name__)

_NULL = "\0"  # the word that gensim adds with null_word


class Steps:
    """The part of `Word2Vec` that finds its vocabulary. Attributes are gensim's, see `Word2Vec`."""

    vector_size: int
    alpha: float
    min_alpha: float
    window: int
    negative: int
    workers: int
    min_count: int
    max_vocab_size: int | None
    max_final_vocab: int | None
    sample: float
    ns_exponent: float
    seed: int
    epochs: int
    shrink_windows: bool
    sorted_vocab: int
    null_word: int
    corpus_count: int
    corpus_total_words: int
    raw_vocab: Mapping[str, int]
    effective_min_count: int
    skipgram: ImageSkipGram
    _vocabulary: Vocabulary | None
    _retained: int  # words of the vocabulary in the corpus that was scanned last

    @property
    def wv(self) -> KeyedVectors:
        """The vectors; the next `train` reads what is changed in them."""
        return self.skipgram.wv

    @wv.setter
    def wv(self, vectors: KeyedVectors) -> None:
        self.skipgram.wv = vectors

    @property
    def syn1neg(self) -> NDArray[Any]:
        """The output vectors, which there are from `build_vocab` on."""
        if self.skipgram._vocabulary is None:
            raise AttributeError("syn1neg is there after build_vocab")
        return self.skipgram.syn1neg

    @syn1neg.setter
    def syn1neg(self, vectors: NDArray[Any]) -> None:
        self.skipgram.syn1neg[...] = vectors

    def build_vocab(
        self,
        corpus_iterable: Iterable[Sequence[str]] | None = None,
        corpus_file: str | os.PathLike[str] | None = None,
        update: bool = False,
        progress_per: int = 10_000,
        keep_raw_vocab: bool = False,
        trim_rule: TrimRule | None = None,
        **kwargs: Any,
    ) -> None:
        """Count the words of a corpus, choose the vocabulary and give each word its first vector.

        Args:
            corpus_iterable, corpus_file: one of them; a generator will do.
            update: whether the vocabulary is extended, and words that are known keep their vectors.
            keep_raw_vocab: whether `raw_vocab`, the counts of all words, is kept.
            trim_rule: as in the constructor.
            progress_per: without effect.
            **kwargs: for `prepare_vocab`.

        Raises:
            RuntimeError: an update of a model without vocabulary.

        Example:
            >>> from imgskipgram.compat import Word2Vec
            >>> model = Word2Vec(min_count=1)
            >>> model.build_vocab([["cat", "say", "meow"]])
            >>> model.build_vocab([["dog", "say", "woof"]], update=True)
            >>> model.wv.index_to_key
            ['cat', 'say', 'meow', 'dog', 'woof']
        """
        check_corpus(corpus_iterable, corpus_file, 1)
        if update:
            self.skipgram._known()
        words, sentences = self.scan_vocab(corpus_iterable, corpus_file, progress_per, trim_rule=trim_rule)
        self.corpus_total_words, self.corpus_count = words, sentences
        self.prepare_vocab(update, keep_raw_vocab, trim_rule, **kwargs)
        self.prepare_weights(update)

    def build_vocab_from_freq(
        self,
        word_freq: Mapping[str, int],
        keep_raw_vocab: bool = False,
        corpus_count: int | None = None,
        trim_rule: TrimRule | None = None,
        update: bool = False,
    ) -> None:
        """`build_vocab` with counts that are known.

        Args:
            word_freq: of each word how often it occurs.
            corpus_count: sentences of the corpus that is meant (default 0).
            keep_raw_vocab, trim_rule, update: as in `build_vocab`.
        """
        if update:
            self.skipgram._known()
        self.corpus_count = corpus_count or 0
        self.raw_vocab = dict(word_freq)
        self.prepare_vocab(update, keep_raw_vocab, trim_rule)
        self.prepare_weights(update)

    def scan_vocab(
        self,
        corpus_iterable: Iterable[Sequence[str]] | None = None,
        corpus_file: str | os.PathLike[str] | None = None,
        progress_per: int = 10_000,
        workers: int | None = None,
        trim_rule: TrimRule | None = None,
    ) -> tuple[int, int]:
        """Count the words of a corpus into `raw_vocab`; the words and the sentences that it has."""
        corpus = chosen(corpus_iterable, corpus_file, warn=True)
        trim = Trim(max_vocab_size=self.max_vocab_size or None, trim_rule=trim_rule)
        found, _ = count(corpus, trim, cache_dir=False)
        order = np.argsort(found.births, kind="stable")
        counts = found.counts.tolist()
        self.raw_vocab = {found.words[i]: counts[i] for i in order if counts[i]}
        logger.info("%d words, of them %d different, in %d sentences", found.raw, len(self.raw_vocab), found.sentences)
        return found.raw, found.sentences

    def prepare_vocab(
        self,
        update: bool = False,
        keep_raw_vocab: bool = False,
        trim_rule: TrimRule | None = None,
        min_count: int | None = None,
        sample: float | None = None,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Choose the vocabulary among the words of `raw_vocab`; with `dry_run` only say what it would be.

        Returns:
            "drop_unique", "num_retained_words": words that are left out and that are kept; "retain_total",
            "downsample_unique", "downsample_total": occurrences that are kept, words that are sub-sampled, and
            occurrences that sub-sampling is expected to leave; "memory": as `estimate_memory`.
        """
        from gensim.utils import RULE_DISCARD, RULE_KEEP

        least, sample = min_count or self.min_count, sample or self.sample
        trim = Trim(least, None, self.max_final_vocab, trim_rule, bool(self.sorted_vocab))
        found = Counts.of(self.raw_vocab, self.corpus_count)
        kept = _kept(found, trim)
        if update:
            known = self.skipgram._known()
            words = {**known.index, **kept.index}
            chosen = Trim(0, trim_rule=lambda word, *_: RULE_KEEP if word in words else RULE_DISCARD)
            vocabulary = choose(found, chosen, known)[0] if found.words else known
        else:
            vocabulary = kept
            if self.null_word:
                counts = np.append(kept.counts, np.uint64(1))
                vocabulary = Vocabulary([*kept.words, _NULL], counts, kept.raw, kept.sentences)
        share = kept.keep(_share(sample, kept.total)) / (2.0**32 - 1)
        report = {
            "drop_unique": len(found.words) - len(kept),
            "retain_total": kept.total,
            "downsample_unique": int((share < 1).sum()),
            "downsample_total": int(share @ kept.counts),
            "num_retained_words": len(kept),
            "memory": self.estimate_memory(len(vocabulary)),
        }
        self.effective_min_count = _least(self.raw_vocab, trim)
        if not dry_run:
            self._vocabulary, self._retained = vocabulary, kept.total
            if not update:
                self.min_count, self.sample = least, sample
            if not keep_raw_vocab:
                self.raw_vocab = {}
        logger.info("min_count=%d keeps %d words; %s", self.effective_min_count, len(vocabulary), report)
        return report

    def prepare_weights(self, update: bool = False) -> None:
        """`update_weights` or `init_weights`."""
        if update:
            self.update_weights()
        else:
            self.init_weights()

    def init_weights(self) -> None:
        """Give each word its first vector; a training before is forgotten."""
        self._adopt()
        self._replace(begun(self.skipgram._options, self._vocabulary or None))

    def update_weights(self) -> None:
        """Give new words their first vectors; the others keep theirs."""
        self._adopt()
        self.skipgram._known()
        if self._vocabulary is not None:
            self._replace(self.skipgram._grown(self._vocabulary))

    def reset_from(self, other_model: Any) -> None:
        """Start with the vocabulary of another model, ours or gensim's, and first vectors."""
        wv = other_model.wv
        counts = np.asarray(wv.expandos["count"], np.uint64)
        self._vocabulary = Vocabulary(list(wv.index_to_key), counts, int(counts.sum()), other_model.corpus_count)
        self.corpus_count, self._retained = other_model.corpus_count, int(counts.sum())
        self.corpus_total_words = other_model.corpus_total_words
        self.init_weights()

    def intersect_word2vec_format(
        self,
        fname: str | os.PathLike[str],
        lockf: float = 0.0,
        binary: bool = False,
        encoding: str = "utf8",
        unicode_errors: str = "strict",
    ) -> None:
        """Take the vectors of words of the vocabulary from a file in word2vec's form; no word is added.

        gensim 4 has this of `wv`, where it fails for `binary` with NumPy 2.3 and later.

        Args:
            fname: the file.
            lockf: what updates of these words are multiplied by from now on; 0, the default, freezes them.
            binary: word2vec's binary form.
            encoding, unicode_errors: of the words in the file.

        Raises:
            RuntimeError: there is no vocabulary.
            ValueError: vectors of another size.
        """
        from gensim.models import KeyedVectors

        vocabulary, wv = self.skipgram._known(), self.wv
        given = KeyedVectors.load_word2vec_format(
            os.fspath(fname), binary=binary, encoding=encoding, unicode_errors=unicode_errors
        )
        if given.vector_size != self.vector_size:
            raise ValueError(f"fname must have vectors of {self.vector_size} numbers, got {given.vector_size}")
        words = [word for word in vocabulary.words if word in given.key_to_index]
        rows = [vocabulary.index[word] for word in words]
        wv.vectors[rows] = given.vectors[[given.key_to_index[word] for word in words]]
        wv.vectors_lockf = np.broadcast_to(wv.vectors_lockf, len(vocabulary)).astype(np.float32)
        wv.vectors_lockf[rows] = lockf
        wv.norms = None
        logger.info("%d of %d words have vectors from %s", len(words), len(vocabulary), fname)

    def estimate_memory(self, vocab_size: int | None = None, report: dict[str, int] | None = None) -> dict[str, int]:
        """Bytes of the vocabulary, of the vectors, as `wv` has them and as they are trained, and of all."""
        words = vocab_size or len(self.wv)
        row = -(-self.vector_size // 16) * 64
        report = {**(report or {}), "vocab": 500 * words, "vectors": words * (4 * self.vector_size + row)}
        report["syn1neg"] = words * row
        return {**report, "total": sum(report.values())}

    def _replace(self, state: dict[str, Any]) -> None:
        """Another state of the model, but the same object has the vectors, as in gensim."""
        wv = self.wv
        vars(wv).update(vars(state["_wv"]))
        vars(self.skipgram).update({**state, "_wv": wv})
        wv.vectors = exported(self.skipgram._v, self.vector_size)

    def _adopt(self, *callbacks: Any) -> None:
        """The model's options become those that the attributes say."""
        vars(self.skipgram)["_options"] = self._options(*callbacks)

    def _options(self, *callbacks: Any) -> Options:
        vocabulary = self.skipgram._vocabulary
        given = {
            "vector_size": self.vector_size,
            "window": self.window,
            "min_count": self.min_count,
            "negative": self.negative,
            "sample": _share(self.sample, vocabulary.total if vocabulary else 1),
            "alpha": max(self.alpha, self.min_alpha),
            "min_alpha": self.min_alpha,
            "epochs": self.epochs,
            "workers": self.workers,
            "seed": self.seed,
            "ns_exponent": self.ns_exponent,
            "max_vocab_size": self.max_vocab_size or None,
            "max_final_vocab": self.max_final_vocab,
            "shrink_windows": self.shrink_windows,
            "sorted_vocab": bool(self.sorted_vocab),
            "callbacks": callbacks,
        }
        return Options(**{**self.skipgram._options.arguments(), **given})


def _kept(found: Counts, trim: Trim) -> Vocabulary:
    """The words that are kept; unlike `choose` it lets none be."""
    try:
        return choose(found, trim)[0]
    except ValueError as nothing:
        logger.warning("%s", nothing)
        return Vocabulary([], np.empty(0, np.uint64), found.raw, found.sentences)


def _least(counts: Mapping[str, int], trim: Trim) -> int:
    """The count below which words are left out."""
    most = trim.max_final_vocab
    if most is None or most >= len(counts):
        return trim.min_count
    return max(trim.min_count, sorted(counts.values(), reverse=True)[most] + 1)


def _share(sample: float, total: int) -> float:
    """gensim's `sample` as a share: from 1 on it is a count, 2.6 times which the threshold is."""
    if not sample or sample < 1:
        return sample or 0.0
    share = int(sample * (3 + 5**0.5) / 2) / max(1, total)
    return share if share < 1 else 0.0
