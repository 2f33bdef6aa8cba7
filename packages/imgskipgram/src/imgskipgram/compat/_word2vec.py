"""The model of `imgskipgram.compat`: its constructor, training, and what a model is asked."""

from __future__ import annotations

import logging
import time
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from .._checks import check_integer
from .._corpus import encode, stream
from .._options import check_rates
from .._training import Plan
from ..model import ImageSkipGram
from ._callbacks import Callbacks
from ._sources import check_corpus, chosen, is_read_once
from ._steps import Steps

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from .._corpus import Tokens
    from .._vocabulary import TrimRule, Vocabulary

__all__ = ["Word2Vec"]

logger = logging.getLogger(__name__)

_GENSIM = "use gensim.models.Word2Vec for it"
_STORED = (  # arguments of the constructor that a file has
    "vector_size", "alpha", "window", "min_count", "max_vocab_size", "sample", "seed", "workers", "min_alpha",
    "negative", "ns_exponent", "cbow_mean", "epochs", "null_word", "sorted_vocab", "batch_words", "compute_loss",
    "comment", "max_final_vocab", "shrink_windows",
)  # fmt: skip
_COUNTED = (
    "corpus_count", "corpus_total_words", "effective_min_count", "min_alpha_yet_reached", "running_training_loss",
    "train_count", "total_train_time", "_retained",
)  # fmt: skip


class _NoModelError(AttributeError, ValueError):
    """gensim raises AttributeError for a file of something else."""


class Word2Vec(Steps):
    """Word vectors with gensim's calls. The arguments are gensim's, but for the last two.

    Args:
        sentences: an iterable of lists of words, or None for a model that is trained later.
        corpus_file: a file with a sentence per line, in place of `sentences`.
        vector_size: dimensions (default 100).
        alpha, min_alpha: the learning rate with which training begins and ends (default 0.025, 0.0001).
        window: the farthest distance of a context word (default 5).
        min_count: words that are rarer are left out (default 5).
        max_vocab_size: words counted at a time (default: no limit).
        sample: the share of a word above which it is sub-sampled (default 1e-3); from 1 on, the count.
        seed: of the first vectors and of all samples (default 1).
        workers: threads (default 3).
        sg, hs: 1 and 0; others raise.
        negative: negative samples (default 5).
        ns_exponent: of counts in the noise distribution (default 0.75).
        cbow_mean: whether `predict_output_word` takes the mean of its words (default) or their sum.
        epochs: passes over the corpus (default 5).
        null_word: whether the word "\\0" is added, with count 1.
        trim_rule: `(word, count, min_count) -> RULE_KEEP, RULE_DISCARD or RULE_DEFAULT` of `gensim.utils`; not stored.
        sorted_vocab: whether words are numbered by falling count (default).
        compute_loss: whether the loss is summed up (default: no).
        callbacks: objects like `gensim.models.callbacks.CallbackAny2Vec`; not stored.
        comment: a text that is stored with the model.
        max_final_vocab: the most words that are kept (default: no limit).
        shrink_windows: whether windows are drawn from 1 to `window` (default).
        hashfxn, batch_words: without effect.
        negatives: "center", "batch" or "pair", as in `ImageSkipGram`.
        deterministic: whether the result is the same for any number of workers, as in `ImageSkipGram`.

    Attributes:
        skipgram: the `ImageSkipGram` that is trained; `skipgram.train(corpus, images)` goes on with images.

    Raises:
        NotImplementedError: sg=0 or hs=1.
        ValueError, TypeError: as `ImageSkipGram`.

    Example:
        >>> from imgskipgram.compat import Word2Vec
        >>> model = Word2Vec([["cat", "say", "meow"], ["dog", "say", "woof"]], min_count=1)
        >>> print(model)
        Word2Vec<vocab=5, vector_size=100, alpha=0.025>
        >>> int(model.wv.get_vecattr("say", "count"))
        2
    """

    def __init__(
        self,
        sentences: Iterable[Sequence[str]] | None = None,
        corpus_file: str | os.PathLike[str] | None = None,
        vector_size: int = 100,
        alpha: float = 0.025,
        window: int = 5,
        min_count: int = 5,
        max_vocab_size: int | None = None,
        sample: float = 1e-3,
        seed: int = 1,
        workers: int = 3,
        min_alpha: float = 0.0001,
        sg: int = 1,
        hs: int = 0,
        negative: int = 5,
        ns_exponent: float = 0.75,
        cbow_mean: int = 1,
        hashfxn: Callable[[str], int] = hash,
        epochs: int = 5,
        null_word: int = 0,
        trim_rule: TrimRule | None = None,
        sorted_vocab: int = 1,
        batch_words: int = 10_000,
        compute_loss: bool = False,
        callbacks: Iterable[Any] = (),
        comment: str | None = None,
        max_final_vocab: int | None = None,
        shrink_windows: bool = True,
        *,
        negatives: str = "center",
        deterministic: bool = False,
    ) -> None:
        if hs:
            raise NotImplementedError(f"hs must be 0, got {hs}: there is no hierarchical softmax; {_GENSIM}")
        if not sg:
            raise NotImplementedError(f"sg must be 1, got {sg}: there is no CBOW; {_GENSIM}")
        self.load = _of_the_class  # type: ignore[method-assign]
        self.sg, self.hs = 1, 0
        self.vector_size = self.layer1_size = int(vector_size)
        self.alpha, self.min_alpha = float(alpha), float(min_alpha)
        self.window, self.negative, self.workers = int(window), int(negative), int(workers)
        self.min_count, self.max_vocab_size, self.max_final_vocab = min_count, max_vocab_size, max_final_vocab
        self.sample, self.ns_exponent, self.seed = sample, ns_exponent, seed
        self.epochs, self.shrink_windows, self.sorted_vocab = epochs, bool(shrink_windows), sorted_vocab
        self.cbow_mean, self.null_word, self.compute_loss = int(cbow_mean), null_word, bool(compute_loss)
        self.hashfxn, self.batch_words, self.comment = hashfxn, batch_words, comment
        self.corpus_count = self.corpus_total_words = 0
        self.raw_vocab: Mapping[str, int] = {}
        self.effective_min_count = min_count
        self.min_alpha_yet_reached = self.alpha
        self.running_training_loss = 0.0
        self.train_count = 0
        self.total_train_time = 0.0
        self._vocabulary: Vocabulary | None = None
        self._retained = 0  # words of the vocabulary in the corpus that was scanned last
        self.skipgram = ImageSkipGram(vector_size=self.vector_size)
        options = {"negatives": negatives, "deterministic": deterministic}
        self.skipgram = ImageSkipGram(**self._options().arguments() | options)
        if sentences is None and corpus_file is None:
            if trim_rule is not None:
                logger.warning("trim_rule is not stored: without a corpus it has no effect, give it to build_vocab")
            if callbacks:
                logger.warning("callbacks are not stored: without a corpus they have no effect, give them to train")
            return
        check_corpus(sentences, corpus_file, epochs + 1)
        self.build_vocab(sentences, corpus_file, trim_rule=trim_rule)
        self.train(
            sentences,
            corpus_file,
            total_examples=self.corpus_count,
            total_words=self.corpus_total_words,
            epochs=epochs,
            compute_loss=self.compute_loss,
            callbacks=callbacks,
        )

    def train(
        self,
        corpus_iterable: Iterable[Sequence[str]] | None = None,
        corpus_file: str | os.PathLike[str] | None = None,
        total_examples: int | None = None,
        total_words: int | None = None,
        epochs: int | None = None,
        start_alpha: float | None = None,
        end_alpha: float | None = None,
        word_count: int = 0,
        queue_factor: int = 2,
        report_delay: float = 1.0,
        compute_loss: bool = False,
        callbacks: Iterable[Any] = (),
        **kwargs: Any,
    ) -> tuple[int, int]:
        """Train, and count the words that were trained and those that were read, over all epochs.

        Args:
            corpus_iterable, corpus_file: one of them.
            total_examples, total_words: sentences or words of the corpus; one must be given. They decide the rate only
                where the corpus is read anew for each epoch.
            epochs: passes over the corpus; must be given.
            start_alpha, end_alpha: new values of `alpha` and `min_alpha`.
            compute_loss: whether the loss is summed up, for `get_latest_training_loss`.
            callbacks: as in the constructor.
            word_count, queue_factor, report_delay: without effect.

        Raises:
            RuntimeError: there is no vocabulary.
            ValueError: no total or no epochs.
            TypeError: no corpus, two, or a generator for several epochs.

        Example:
            >>> from imgskipgram.compat import Word2Vec
            >>> sentences = [["cat", "say", "meow"], ["dog", "say", "woof"]]
            >>> model = Word2Vec(min_count=1, sample=0)
            >>> model.build_vocab(sentences)
            >>> model.train(sentences, total_examples=model.corpus_count, epochs=2)
            (12, 12)
        """
        if kwargs:
            raise TypeError(f"train() got an unexpected keyword argument {next(iter(kwargs))!r}")
        if not self.wv.key_to_index:
            raise RuntimeError("you must first build vocabulary before training the model")
        if total_words is None and total_examples is None:
            raise ValueError("total_examples or total_words must be given, for the corpus of build_vocab corpus_count")
        if epochs is None:
            raise ValueError("epochs must be given; the usual value is model.epochs")
        epochs = check_integer("epochs", epochs, 1, 2**16)
        alpha, min_alpha = start_alpha or self.alpha, end_alpha or self.min_alpha
        check_rates("start_alpha", alpha, "end_alpha", min(alpha, min_alpha))
        check_corpus(corpus_iterable, corpus_file, epochs)
        skipgram = self.skipgram
        vocabulary = skipgram._known()
        grounding = skipgram._ground(skipgram._bank, vocabulary)
        skipgram._rows()
        tokens, feed, expected = self._feed(corpus_iterable, corpus_file, vocabulary, total_examples, total_words)
        if alpha > self.min_alpha_yet_reached:
            logger.warning("Effective 'alpha' higher than previous training cycles")
        self.alpha, self.min_alpha, self.epochs, self.compute_loss = alpha, min_alpha, epochs, bool(compute_loss)
        self.running_training_loss = 0.0
        callbacks = tuple(callbacks)
        self._adopt(*([Callbacks(self, callbacks)] if callbacks or compute_loss else []))
        began, wv, loss = time.perf_counter(), self.wv, "exact" if compute_loss else "none"
        plan = Plan(epochs, expected, max(alpha, min_alpha), min_alpha)
        try:
            trained, raw = skipgram._run(dict(vars(skipgram)), tokens, feed, grounding, plan, loss, False)
        finally:
            vars(wv).update(vars(skipgram.wv))  # whoever holds the vectors sees them trained, as in gensim
            skipgram.wv = wv
            skipgram.callbacks = ()
            if grounding is None:
                skipgram._tokens = None  # which controls of images train on
        seconds = time.perf_counter() - began
        self.train_count += 1
        self.total_train_time += seconds
        self.min_alpha_yet_reached = self.min_alpha
        if not raw:
            logger.warning("the corpus was empty; it must be readable more than once")
        logger.info("%d words, %d of them trained, in %.1f s", raw, trained, seconds)
        return trained, raw

    def _feed(
        self,
        corpus_iterable: Iterable[Sequence[str]] | None,
        corpus_file: str | os.PathLike[str] | None,
        vocabulary: Vocabulary,
        total_examples: int | None,
        total_words: int | None,
    ) -> tuple[Tokens | None, Callable[[], Iterable[Tokens]], int]:
        """The corpus in numbers, what gives them for an epoch, and how many those are."""
        size, total = (self.corpus_count, total_examples) if total_examples else (self.corpus_total_words, total_words)
        if size and total and not is_read_once(corpus_iterable):
            feed = partial(stream, chosen(corpus_iterable, None), vocabulary)
            return None, feed, max(1, round(self._retained * total / size))
        tokens = encode(chosen(corpus_iterable, corpus_file), vocabulary)
        return tokens, lambda: (tokens,), max(1, len(tokens.ids))

    def get_latest_training_loss(self) -> float:
        """The loss of the training so far, summed over its pairs; 0 without `compute_loss`."""
        return self.running_training_loss

    def predict_output_word(
        self, context_words_list: Sequence[str | int], topn: int = 10
    ) -> list[tuple[str, float]] | None:
        """The words most probable amid others, by the softmax of the output vectors with the mean of the others'.

        Args:
            context_words_list: words or their numbers; those outside the vocabulary are left out.
            topn: how many (default 10).

        Returns:
            The words with their probabilities, or None if no word is known.

        Raises:
            RuntimeError: there are no output vectors.

        Example:
            >>> from imgskipgram.compat import Word2Vec
            >>> sentences = [["cat", "say", "meow"], ["dog", "say", "woof"]] * 100
            >>> model = Word2Vec(sentences, min_count=1, sample=0, epochs=20)
            >>> [word for word, _ in model.predict_output_word(["cat", "say"], topn=1)]
            ['meow']
        """
        if self.skipgram._vocabulary is None:
            raise RuntimeError("there are no output vectors: the model must be trained")
        known = [self.wv.get_index(word) for word in context_words_list if word in self.wv]
        if not known:
            logger.warning("no word of the context is in the vocabulary")
            return None
        vectors = self.wv.vectors[known]
        scores = self.syn1neg @ (vectors.mean(0) if self.cbow_mean else vectors.sum(0))
        odds = np.exp((scores - scores.max()).astype(np.float64))
        best = np.argsort(-odds, kind="stable")[:topn]
        return [(self.wv.index_to_key[i], float(odds[i] / odds.sum())) for i in best]

    def score(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises NotImplementedError: gensim has it for hierarchical softmax alone."""
        raise NotImplementedError(f"score needs hierarchical softmax, which there is not; {_GENSIM}")

    def init_sims(self, replace: bool = False) -> None:
        """Without effect, as in gensim 4, but that `replace` normalises all vectors."""
        warnings.warn("init_sims is not needed any more", DeprecationWarning, stacklevel=2)
        if replace:
            self.wv.unit_normalize_all()

    def save(self, fname: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write the model and the state of its training at exactly this path, as `ImageSkipGram.save`.

        Other arguments are for gensim's pickles, and without effect.

        Raises:
            RuntimeError: there is no vocabulary.
            OSError: it cannot be written.

        Example:
            >>> import os, tempfile
            >>> from imgskipgram.compat import Word2Vec
            >>> model = Word2Vec([["cat", "say", "meow"]], min_count=1, comment="a cat")
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     model.save(os.path.join(folder, "word2vec.model"))
            ...     Word2Vec.load(os.path.join(folder, "word2vec.model")).comment
            'a cat'
        """
        skipgram = self.skipgram
        skipgram._notes = {**skipgram._notes, "compat": {name: getattr(self, name) for name in _STORED + _COUNTED}}
        skipgram.save(fname)

    @classmethod
    def load(cls, fname: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Word2Vec:
        """Read what `save` wrote, or `ImageSkipGram.save`; nothing is unpickled. Training goes on from there.

        Other arguments, as `mmap`, are for gensim's pickles, and without effect.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no model or damaged; an AttributeError too, which is what gensim raises.
        """
        try:
            skipgram = ImageSkipGram.load(fname)
        except ValueError as error:
            raise _NoModelError(str(error)) from error
        model = cls.__new__(cls)
        try:
            model._restore(skipgram)
        except (ValueError, TypeError, KeyError) as error:
            raise _NoModelError(f"{fname}: what it says of its options cannot be: {error!r}") from error
        return model

    def _restore(self, skipgram: ImageSkipGram) -> None:
        notes = skipgram._notes.get("compat")
        vocabulary = skipgram._known()
        if notes is None:  # a file of ImageSkipGram.save
            options = {name: getattr(skipgram._options, name, None) for name in _STORED}
            Word2Vec.__init__(self, **{name: value for name, value in options.items() if value is not None})
            self.corpus_count, self.corpus_total_words = vocabulary.sentences, vocabulary.raw
            self._retained = vocabulary.total
        else:
            Word2Vec.__init__(self, **{name: notes[name] for name in _STORED})
            counted = {name: notes[name] for name in _COUNTED}
            if not all(isinstance(value, int | float) for value in counted.values()):
                raise ValueError(f"what it has counted must be numbers, got {counted}")
            vars(self).update(counted)
        self.skipgram = skipgram
        self._vocabulary = vocabulary

    def __str__(self) -> str:
        return f"{type(self).__name__}<vocab={len(self.wv)}, vector_size={self.vector_size}, alpha={self.alpha}>"


def _of_the_class(*args: Any, **kwargs: Any) -> NoReturn:
    raise AttributeError("load belongs to the class: model = Word2Vec.load(path)")
