"""Corpora: every form in which one may come, read once into numbers of words or streamed anew for each epoch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from . import _core
from ._vocabulary import Counts, Trim, Vocabulary, choose, stays

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Corpus", "Tokens", "count", "encode", "read", "stream"]

Corpus: TypeAlias = "str | os.PathLike[str] | Iterable[str | Sequence[str] | Mapping[str, Any]]"
CacheDir: TypeAlias = "str | os.PathLike[str] | Literal[False] | None"

_BLOCK = 1 << 22  # bytes of a file between two looks at signals
_BATCH = 4096  # sentences of an iterable at a time
_IN_MEMORY = 1 << 30  # bytes of numbers; more go to a mapped file

_Piece: TypeAlias = "tuple[NDArray[np.uint32], NDArray[np.uint64], int]"  # numbers, ends of sentences, raw tokens


@dataclass(eq=False)
class Tokens:
    """Sentences as numbers of words: sentence s has `ids[offsets[s]:offsets[s + 1]]`, and may be empty.

    Args:
        ids: the numbers.
        offsets: where sentences begin; one more than there are sentences.
        raw: tokens that were read, those outside the vocabulary too.
        first: the number of the first sentence in its corpus.
    """

    ids: NDArray[np.uint32]
    offsets: NDArray[np.uint64]
    raw: int
    first: int = 0

    def renumber(self, numbers: NDArray[np.uint32]) -> None:
        """Words get other numbers, `numbers[id]`; those that get ABSENT go."""
        self.ids = self.ids[: _core.renumber(self.ids, self.offsets[1:], numbers)]

    def close(self) -> None:
        """Lets go of the numbers, and of their file where there is one."""
        self.ids = np.empty(0, np.uint32)
        self.offsets = np.zeros(1, np.uint64)


def read(
    corpus: Corpus,
    trim: Trim,
    *,
    known: Vocabulary | None = None,
    text_column: str = "text",
    cache_dir: CacheDir = None,
) -> tuple[Vocabulary, Tokens | None]:
    """The vocabulary of a corpus and its sentences in numbers, in one pass.

    Args:
        corpus: a path (plain, .gz, .bz2 or .xz; a sentence per line), or an iterable of strings, of lists of words,
            or of rows that hold one of these in `text_column`.
        trim: which words are kept.
        known: a vocabulary to be extended (default: none).
        text_column: where rows have their text (default "text").
        cache_dir: where numbers go that need more than 1 GiB (default: the system's folder for temporary files);
            False keeps none, for corpora that are streamed.

    Raises:
        FileNotFoundError: no file at this path.
        ValueError: text that is no UTF-8, a damaged file, a missing column, no word that is kept, or an iterator that
            would have to be read again, or a cache_dir that does not exist.
        TypeError: something that is no corpus, no sentence or no cache_dir.
    """
    found, tokens = count(corpus, trim, text_column=text_column, cache_dir=cache_dir)
    vocabulary, numbers = choose(found, trim, known)
    tokens.renumber(numbers)
    return vocabulary, None if cache_dir is False else tokens


def count(
    corpus: Corpus, trim: Trim, *, text_column: str = "text", cache_dir: CacheDir = None
) -> tuple[Counts, Tokens]:
    """The words of a corpus, and its sentences in their numbers, before it is known which are kept.

    Arguments and errors as in `read`; a corpus without words is no error here. Streamed, there are no sentences.
    """
    _check(corpus)
    if cache_dir is False:
        _check_again(corpus)
    rule = None if trim.trim_rule is None else partial(stays, trim.trim_rule)
    reader = _core.Reader(_name(corpus), trim.max_vocab_size or 0, rule)
    sentences = 0
    with _Store(cache_dir) as store:
        for _ in _read(reader, corpus, text_column):
            ids, ends = reader.take()
            sentences += ends.size
            if cache_dir is not False:
                store.add(ids, ends)
        found = Counts(reader.words, reader.counts, reader.births, reader.raw, sentences)
        return found, store.tokens(found.raw)


def encode(
    corpus: Corpus,
    vocabulary: Vocabulary,
    *,
    text_column: str = "text",
    cache_dir: str | os.PathLike[str] | None = None,
) -> Tokens:
    """The sentences of a corpus in the numbers of a vocabulary; other words are left out. Arguments as in `read`.

    Raises:
        ValueError: as `read`; or no sentence, as a generator gives that was read before.
    """
    _check(corpus)
    raw = 0
    with _Store(cache_dir) as store:
        for ids, ends, tokens in _pieces(corpus, vocabulary, text_column):
            store.add(ids, ends)
            raw += tokens
        if not raw:
            spent = "; a generator can be read once: pass a re-iterable corpus or use fit"
            raise ValueError(f"the corpus must have words, got 0 tokens{spent if _is_iterator(corpus) else ''}")
        return store.tokens(raw)


def stream(corpus: Corpus, vocabulary: Vocabulary, *, text_column: str = "text") -> Iterator[Tokens]:
    """The sentences of a corpus in the numbers of a vocabulary, some at a time: one epoch.

    Raises:
        ValueError: an iterator, which could not be read for another epoch; else as `read`.
    """
    _check(corpus)
    _check_again(corpus)
    return _stream(_pieces(corpus, vocabulary, text_column))


def _stream(pieces: Iterator[_Piece]) -> Iterator[Tokens]:
    waiting: list[NDArray[np.uint32]] = []
    done = first = raw = 0
    for ids, ends, tokens in pieces:
        waiting.append(ids)
        raw += tokens
        if not ends.size:
            continue
        ids = np.concatenate(waiting)
        offsets = np.concatenate([[np.uint64(0)], ends - np.uint64(done)])
        last = int(offsets[-1])
        yield Tokens(ids[:last], offsets, raw, first)
        waiting = [ids[last:]]
        done += last
        first += ends.size
        raw = 0


def _pieces(corpus: Corpus, vocabulary: Vocabulary, text_column: str) -> Iterator[_Piece]:
    if isinstance(corpus, str | os.PathLike):
        reader = _core.Reader(_name(corpus), vocabulary.words)
        raw = 0
        for _ in _read(reader, corpus, text_column):
            yield *reader.take(), reader.raw - raw
            raw = reader.raw
        return
    done = first = 0
    for batch in _batches(corpus, text_column):
        ids, offsets, raw = _core.encode(batch, vocabulary.index, first)
        yield ids, offsets[1:] + np.uint64(done), raw
        done += ids.size
        first += len(batch)


def _read(reader: _core.Reader, corpus: Corpus, text_column: str) -> Iterator[None]:
    if isinstance(corpus, str | os.PathLike):
        for block in _blocks(Path(corpus)):
            reader.feed(block)
            yield
        reader.finish()
        yield
    else:
        for batch in _batches(corpus, text_column):
            reader.add(batch)
            yield


def _blocks(path: Path) -> Iterator[bytes]:
    import bz2
    import gzip
    import lzma
    import zlib

    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    opener = openers.get(path.suffix)
    with path.open("rb") as file:
        if opener is None:
            while block := file.read(_BLOCK):
                yield block
            return
        with opener(file) as text:
            while True:
                try:
                    block = text.read(_BLOCK)
                except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
                    raise ValueError(f"{path}: the compressed file is damaged: {error}") from error
                if not block:
                    return
                yield block


def _batches(corpus: Iterable[Any], text_column: str) -> Iterator[list[Any]]:
    rows = iter(corpus)
    while batch := list(islice(rows, _BATCH)):
        yield [_text(row, text_column) for row in batch] if isinstance(batch[0], Mapping) else batch


def _text(row: Any, column: str) -> Any:
    if isinstance(row, Mapping) and column not in row:
        present = ", ".join(repr(name) for name in row)
        raise ValueError(f"text_column must be a column of the corpus, got {column!r}; present are {present}")
    return row[column] if isinstance(row, Mapping) else row


def _name(corpus: Corpus) -> str:
    """What refusals call it."""
    if not isinstance(corpus, str | os.PathLike):
        return "corpus"
    return os.fsdecode(corpus).encode(errors="backslashreplace").decode()  # a path need be no text


def _check(corpus: Corpus) -> None:
    if isinstance(corpus, bytes | bytearray | Mapping) or not isinstance(corpus, str | os.PathLike | Iterable):
        remedy = "; choose one of its parts" if isinstance(corpus, Mapping) else ""
        raise TypeError(f"corpus must be a path or an iterable of sentences, got {type(corpus).__name__}{remedy}")


def _is_iterator(corpus: Corpus) -> bool:
    return isinstance(corpus, Iterator)


def _check_again(corpus: Corpus) -> None:
    if _is_iterator(corpus):
        raise ValueError(
            f"corpus must be readable more than once, got {type(corpus).__name__}; pass a re-iterable corpus or use fit"
        )


class _Store:
    """Numbers of words as they come: in memory, and above 1 GiB in a file without a name, which the system removes."""

    def __init__(self, folder: CacheDir) -> None:
        if isinstance(folder, str | os.PathLike):
            if not Path(folder).is_dir():
                raise ValueError(f"cache_dir must be a folder that exists, got {os.fspath(folder)!r}")
        elif folder is not None and folder is not False:
            raise TypeError(f"cache_dir must be a path, None or False, got {type(folder).__name__}")
        self._folder = folder or None
        self._parts: list[NDArray[np.uint32]] = []
        self._ends: list[NDArray[np.uint64]] = []
        self._size = 0
        self._file: IO[bytes] | None = None

    def __enter__(self) -> _Store:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, ids: NDArray[np.uint32], ends: NDArray[np.uint64]) -> None:
        self._parts.append(ids)
        self._ends.append(ends)
        self._size += ids.size
        if ids.itemsize * self._size > _IN_MEMORY:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (closed by __exit__ or by tokens)
            for part in self._parts:
                self._file.write(part.data)
            self._parts = []

    def tokens(self, raw: int) -> Tokens:
        """What was added; the store is empty afterwards."""
        file, self._file = self._file, None
        if file is None:
            ids = np.concatenate(self._parts) if self._parts else np.empty(0, np.uint32)
        else:
            with file:  # what is mapped stays
                file.flush()
                ids = np.memmap(file, np.uint32, "r+", shape=(self._size,))
        self._parts = []
        offsets = np.concatenate([np.zeros(1, np.uint64), *self._ends])
        return Tokens(ids, offsets, raw)
