"""Corpora as arguments: files, lists and dicts of them, and recipes for the user's own copies of licensed ones."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ._formats import PARSERS, Line, detect, read_lines
from ._sentence import Partial, Sentence

__all__ = ["FORMATS", "RECIPES", "Corpus", "Partial", "Sentence", "by_domain", "read_corpus", "recipe"]

FORMATS = ("auto", "words", "word_POS", "word/POS", "conllu", "partial", "brackets")
RECIPES = ("msr", "pku", "weibo", "ctb")
_SAMPLE = 1000  # lines that decide on a file's format

PathLike: TypeAlias = "str | os.PathLike[str]"
Sentences: TypeAlias = "Iterable[Sentence | Partial | Sequence[str]]"
Corpus: TypeAlias = "PathLike | Sentences | Mapping[str, PathLike | Sentences]"


def by_domain(corpus: Corpus, name: str = "corpus") -> dict[str | None, list[Sentence | Partial]]:
    """Any corpus argument as lists of sentences, by domain; the domain is None where none is named.

    Words with white space inside are split there, since no token has any; empty words and sentences are dropped.

    Args:
        corpus: a path (see :func:`read_corpus`), an iterable of sentences or lists of words, or a dict of these by
            domain.
        name: what errors call it (default "corpus").

    Raises:
        ValueError: no sentence in the corpus or in one of its domains, or a file that cannot be read.
        TypeError: something that is no sentence.

    Example:
        >>> by_domain({"news": [["我们", "爱", "New York"]]})["news"][0].words
        ('我们', '爱', 'New', 'York')
    """
    if isinstance(corpus, Mapping):
        if not corpus:
            raise ValueError(f"{name} must have at least one domain, got an empty dict")
        domains: dict[str | None, list[Sentence | Partial]] = {}
        for domain, part in corpus.items():
            if not isinstance(domain, str) or not domain:
                raise ValueError(f"{name} must have non-empty strings as domains, got {domain!r}")
            domains[domain] = _sentences(part, f"domain {domain!r} of {name}")
        return domains
    return {None: _sentences(corpus, name)}


def _sentences(corpus: PathLike | Sentences, name: str) -> list[Sentence | Partial]:
    if isinstance(corpus, Mapping):
        raise TypeError(f"{name} must be a path or an iterable of sentences, got a dict inside a dict")
    given = read_corpus(corpus) if isinstance(corpus, str | os.PathLike) else corpus
    if not isinstance(given, Iterable):
        raise TypeError(f"{name} must be a path, an iterable of lists of words or a dict, got {type(given).__name__}")
    sentences = [_clean(sentence, name, index) for index, sentence in enumerate(given)]
    if not any(sentence.text for sentence in sentences):
        raise ValueError(f"{name} must have at least one sentence, got none")
    return [sentence for sentence in sentences if sentence.text]


def _clean(given: Any, name: str, index: int) -> Sentence | Partial:
    if isinstance(given, Partial):
        return given
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(
            f"{name} must hold lists of words, got {type(given).__name__} at index {index}; split the text first"
        )
    try:
        sentence = given if isinstance(given, Sentence) else Sentence(given)
    except TypeError as error:
        raise TypeError(f"{name}: sentence {index}: {error}") from None
    joined = "".join(sentence.words)
    if "" not in sentence.words and joined.split() == [joined]:
        return sentence
    pieces = [word.split() for word in sentence.words]

    def spread(values: tuple[Any, ...] | None) -> list[Any] | None:
        return None if values is None else [v for v, words in zip(values, pieces, strict=True) for _ in words]

    spaces = sentence.spaces or (False,) * len(pieces)
    after = [
        i < len(words) - 1 or space for words, space in zip(pieces, spaces, strict=True) for i in range(len(words))
    ]
    return Sentence(itertools.chain(*pieces), spread(sentence.xpos), spread(sentence.upos), after)


def read_corpus(
    path: PathLike, format: str = "auto", *, errors: str = "strict", encoding: str = "utf-8"
) -> list[Sentence | Partial]:
    """The sentences of a file; a file whose name ends in .xz, .gz or .bz2 is decompressed.

    Args:
        path: the file.
        format: "words", words between white space (U+3000 included), one sentence a line; "word_POS" and "word/POS",
            the same with tags (brackets of the People's Daily are removed); "conllu", CoNLL-U or its predecessor
            CoNLL-X with xpos, upos and spaces: a multiword token is one word, empty nodes are left out; "partial",
            ``a-b|c d``: ``|`` a boundary, ``-`` none, a space not known, a backslash before a character that is meant
            itself; "brackets", trees of the Penn Chinese Treebank. "auto" (default): by the first thousand lines.
        errors: "strict" (default), or "replace": invalid bytes become U+FFFD.
        encoding: default "utf-8", with or without a byte order mark; "gb18030" for old treebanks.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a format that is not known or not recognised; a file that breaks its rules, by name, line or byte
            offset, and rule.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "corpus.txt")
        >>> _ = path.write_text("我们_PN 爱_VV 北京_NR\\n", encoding="utf-8")
        >>> read_corpus(path)[0].xpos
        ('PN', 'VV', 'NR')
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if errors not in ("strict", "replace"):
        raise ValueError(f"errors must be strict or replace, got {errors!r}")
    try:
        ascii_compatible = "\n".encode(encoding) == b"\n"
    except LookupError:
        ascii_compatible = False
    if not ascii_compatible:
        raise ValueError(f"encoding must be one that Python knows and that ends lines as ASCII does, got {encoding!r}")
    lines = read_lines(Path(path), errors, encoding)
    sample: list[Line] = []
    if format == "auto":
        sample = list(itertools.islice(lines, _SAMPLE))
        format = detect(Path(path), sample)
    return list(PARSERS[format](Path(path), itertools.chain(sample, lines)))


_PACKED = ("", ".xz", ".gz", ".bz2")
_Files: TypeAlias = "Mapping[str, Sequence[str]]"
_PARTS = ("train", "dev", "test")
_BAKEOFF: _Files = {"train": ("training/{}_training.utf8",), "test": ("gold/{}_test_gold.utf8",)}
_WEIBO: _Files = {
    "train": ("nlpcc2016-word-seg-train.dat", "nlpcc2016-wordseg-train.dat"),
    "dev": ("nlpcc2016-wordseg-dev.dat", "nlpcc2016-word-seg-dev.dat"),
    "test": ("nlpcc2016-wordseg-test.dat", "nlpcc2016-word-seg-test.dat"),
}
_CTB: _Files = {"train": ("ctb_train.txt",), "dev": ("ctb_dev.txt",), "test": ("ctb_test.txt",)}


def recipe(name: str, directory: PathLike, part: str = "train") -> dict[str, list[Sentence | Partial]]:
    """A domain out of the user's own copy of a corpus that is licensed for research and never shipped.

    ======  ========================================================================================================
    name    files, in the folder or below it, also compressed (.xz, .gz, .bz2)
    ======  ========================================================================================================
    msr     SIGHAN 2005 as icwb2-data: ``training/msr_training.utf8``; ``gold/msr_test_gold.utf8``
    pku     SIGHAN 2005 as icwb2-data: ``training/pku_training.utf8``; ``gold/pku_test_gold.utf8``
    weibo   NLPCC 2016: ``nlpcc2016-word-seg-train.dat``, ``nlpcc2016-wordseg-dev.dat``, ``nlpcc2016-wordseg-test.dat``
    ctb     Penn Chinese Treebank: ``chtb_*``, trees or word_POS, split by number as CTB 5 is (dev 301-325, test
            271-300, all others train); or ``ctb_train.txt``, ``ctb_dev.txt``, ``ctb_test.txt``
    ======  ========================================================================================================

    Args:
        name: the recipe.
        directory: the folder of the corpus.
        part: "train" (default), "dev" or "test"; msr and pku have no dev.

    Returns:
        The domain, named as the recipe, and its sentences.

    Raises:
        ValueError: a name or a part that does not exist, or a file that breaks its rules.
        FileNotFoundError: the folder, or files that are missing from it, all named.

    Example:
        >>> recipe("msr", "/no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: recipe msr: there is no folder /no/such/folder
    """
    if name not in RECIPES:
        raise ValueError(f"name must be one of {', '.join(RECIPES)}, got {name!r}")
    if part not in _PARTS:
        raise ValueError(f"part must be one of {', '.join(_PARTS)}, got {part!r}")
    folder = Path(directory)
    if not folder.is_dir():
        raise FileNotFoundError(f"recipe {name}: there is no folder {folder}")
    if name == "ctb" and (files := _treebank(folder, part)) is not None:
        if not files:
            raise FileNotFoundError(f"recipe ctb: none of the files chtb_* below {folder} belongs to the {part} part")
        return {name: [sentence for path in files for sentence in _read_treebank(path)]}
    known = {"weibo": _WEIBO, "ctb": _CTB}.get(name, _BAKEOFF)
    if part not in known:
        raise ValueError(f"part must be train or test for recipe {name}, got {part!r}")
    wanted = [file.format(name) for file in known[part]]
    path = _find(folder, wanted)
    if path is None:
        also = " or files chtb_*" if name == "ctb" else ""
        raise FileNotFoundError(
            f"recipe {name}: {folder} has no {' or '.join(wanted)}{also}, also not compressed or in a folder below"
        )
    return {name: read_corpus(path, "auto" if name == "ctb" else "words")}


def _find(folder: Path, wanted: Sequence[str]) -> Path | None:
    names = {Path(file).name.lower() + packed for file in wanted for packed in _PACKED}
    found = sorted(path for path in folder.rglob("*") if path.name.lower() in names and path.is_file())
    return min(found, key=lambda path: len(path.parts), default=None)


def _treebank(folder: Path, part: str) -> list[Path] | None:
    """The files of a part of the Penn Chinese Treebank; None if there are no files of it at all."""
    numbered: dict[int, dict[str, Path]] = {}
    for path in sorted(folder.rglob("chtb_*")):
        if (match := re.match(r"chtb_([0-9]{1,6})\.", path.name)) and path.is_file():
            kind = next((k for k in ("bracketed", "postagged") if k in path.parts), "")
            numbered.setdefault(int(match[1]), {})[kind] = path
    if not any(kinds.keys() & {"bracketed", "postagged", ""} for kinds in numbered.values()):
        return None
    ranges = {"dev": range(301, 326), "test": range(271, 301)}
    here = {n for n in numbered if (n in ranges[part] if part in ranges else not any(n in r for r in ranges.values()))}
    return [next(numbered[n][k] for k in ("bracketed", "postagged", "") if k in numbered[n]) for n in sorted(here)]


def _read_treebank(path: Path) -> list[Sentence | Partial]:
    try:
        return read_corpus(path)
    except ValueError as error:
        if "invalid utf-8" not in str(error):
            raise
        return read_corpus(path, encoding="gb18030")
