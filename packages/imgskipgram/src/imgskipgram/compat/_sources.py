"""Corpora as gensim takes them."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import GeneratorType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .._corpus import Corpus

__all__ = ["Lists", "check_corpus", "chosen", "is_read_once"]

logger = logging.getLogger(__name__)


class Lists:
    """The sentences of a corpus as lists of words; those of a string are its characters, as in gensim.

    Rows of a data set, which are mappings, are left as they are: their column "text" is a sentence.
    """

    def __init__(self, corpus: Iterable[Any], warn: bool = False) -> None:
        self._corpus = corpus
        self._warn = warn

    def __iter__(self) -> Iterator[Any]:
        for number, sentence in enumerate(self._corpus):
            if self._warn and not number and isinstance(sentence, str):
                logger.warning(
                    "Each 'sentences' item should be a list of words (usually unicode strings). The first here is a "
                    "string, and its words are its characters."
                )
            if isinstance(sentence, list | tuple | bytes | Mapping) or not isinstance(sentence, Collection):
                yield sentence
            else:
                yield list(sentence)


def chosen(iterable: Iterable[Any] | None, file: str | os.PathLike[str] | None, warn: bool = False) -> Corpus:
    """The one of the two that is given."""
    if iterable is not None:
        return Lists(iterable, warn)
    if file is None:
        raise TypeError("one of corpus_iterable and corpus_file must be given")
    return file


def check_corpus(iterable: Any, file: Any, passes: int) -> None:
    """Raises TypeError or FileNotFoundError for what is no corpus, or cannot be read as often."""
    if (iterable is None) == (file is None):
        raise TypeError("one of corpus_iterable and corpus_file must be given, and only one")
    if file is not None and not os.path.isfile(file):
        raise FileNotFoundError(f"corpus_file must be a file, got {os.fspath(file)!r}")
    if iterable is not None and not isinstance(iterable, Iterable):
        raise TypeError(f"corpus_iterable must be an iterable of lists of words, got {type(iterable).__name__}")
    if isinstance(iterable, GeneratorType) and passes > 1:
        raise TypeError(f"corpus_iterable must be readable {passes} times, got a generator; pass a list")


def is_read_once(iterable: Iterable[Any] | None) -> bool:
    """Whether a corpus gives the same sentences in every epoch, as far as one can see."""
    from gensim.models.word2vec import BrownCorpus, LineSentence, PathLineSentences, Text8Corpus

    files = (BrownCorpus, LineSentence, PathLineSentences, Text8Corpus)
    return iterable is None or isinstance(iterable, (list, tuple, np.ndarray, GeneratorType, *files))
