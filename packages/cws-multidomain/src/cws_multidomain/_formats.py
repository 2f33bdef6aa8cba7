"""The formats of corpus files: their lines, read as if they were hostile, their detection, and a parser of each."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import re
import zlib
from typing import IO, TYPE_CHECKING, Any, TypeAlias, cast

from ._sentence import Partial, Sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

_LONGEST = 1 << 28  # bytes of one line
_LONGEST_WORD = 20  # characters of a line that may be one word; a longer one is text that nobody has segmented
_LARGEST = 1 << 33  # bytes of one file once decompressed

Line: TypeAlias = "tuple[int, str]"  # the number, from 1, and the text


def read_lines(path: Path, errors: str = "strict", encoding: str = "utf-8") -> Iterator[Line]:
    """The lines of a text file, perhaps compressed, and their numbers; a file is read as if it were hostile."""
    offset = 0
    with _opened(path) as file:
        for number in itertools.count(1):
            try:
                line = file.readline(_LONGEST + 1)
            except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
                raise ValueError(f"{path}: line {number}: the compressed file is damaged: {error}") from None
            if not line:
                return
            if len(line) > _LONGEST:
                raise ValueError(f"{path}: line {number} must be shorter than {_LONGEST} bytes; is this a text file?")
            if number == 1 and encoding == "utf-8" and line.startswith(b"\xef\xbb\xbf"):
                line, offset = line[3:], 3
            try:
                text = line.decode(encoding, errors)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}: line {number}: invalid {encoding} at byte offset {offset + error.start} "
                    f"({error.reason}); errors='replace' reads it all the same"
                ) from None
            offset += len(line)
            if offset > _LARGEST:
                raise ValueError(f"{path} must be smaller than {_LARGEST} bytes once decompressed; split it")
            yield number, text.rstrip("\r\n")


def _opened(path: Path) -> IO[bytes]:
    opener: Any = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix, open)
    if path.is_dir():
        raise ValueError(f"{path} must be a file, got a folder")
    file = opener(path, "rb")
    return file if opener is open else cast("IO[bytes]", io.BufferedReader(file, 1 << 16))


_TAG = {
    "word_POS": re.compile(r".+_[A-Za-z][\w$-]*", re.S),
    "word/POS": re.compile(r".+/[A-Za-z][\w$-]*(\]\w*)?", re.S),
}
_GAPS = {"|": True, "-": False, " ": None}


def detect(path: Path, sample: list[Line]) -> str:
    texts = [text for _, text in sample if text.strip()]
    if not texts:
        raise ValueError(f"{path} must have at least one line that is not empty")
    if sum(text.count("\0") for text in texts):
        raise ValueError(f"{path} must be a text file, got NUL bytes in its first {len(sample)} lines")
    rows = [text.split("\t") for text in texts if not text.startswith("#")]
    if rows and all(8 <= len(row) <= 10 and row[0][:1].isdigit() for row in rows):
        return "conllu"
    if _are_trees(text for text in texts if not text.startswith("<")):
        return "brackets"
    gaps = [_gaps(text) or [("", "")] for text in texts]
    if all(pairs[0][0] for pairs in gaps) and any(gap in ("|", "-") for pairs in gaps for _, gap in pairs):
        return "partial"
    words = [word for text in texts if not text.startswith("<") for word in text.split()]
    for format, tag in _TAG.items():
        if sum(tag.fullmatch(word) is not None for word in words) > 0.95 * len(words):
            return format
    if any(len(text.split()) > 1 for text in texts) or max(map(len, texts)) <= _LONGEST_WORD:
        return "words"
    raise ValueError(
        f"{path} must be segmented, but none of its lines has several words, and one has {max(map(len, texts))} "
        f"characters; name the format if it is"
    )


def _gaps(text: str) -> list[tuple[str, str]] | None:
    """The characters of a partly annotated line, each with the gap that follows it; None if it is no such line."""
    pairs, at = [], 0
    while at < len(text):
        at += text[at] == "\\" and at + 1 < len(text)
        gap = text[at + 1 : at + 2]
        if gap and gap not in _GAPS:
            return None
        pairs.append((text[at], gap))
        at += 2
    return pairs if pairs and not pairs[-1][1] else None


def _read_words(path: Path, lines: Iterator[Line]) -> Iterator[Sentence]:
    for _, text in lines:
        if words := text.split():
            yield Sentence(words)


def _read_tagged(separator: str, path: Path, lines: Iterator[Line]) -> Iterator[Sentence]:
    for number, text in lines:
        if text.startswith("<") and text.rstrip().endswith(">") and separator not in text.replace("</", ""):
            continue  # the Penn Chinese Treebank's marks around sentences and documents
        words, tags = [], []
        for token in text.split():
            word, _, tag = token.rpartition(separator)
            if separator == "/":  # [中央/n 电视台/n]nt
                tag = tag.partition("]")[0]
                word = word[1:] if word.startswith("[") and len(word) > 1 else word
            if not word or not tag:
                raise ValueError(f"{path}: line {number}: {token[:40]!r} must be a word, {separator!r} and a tag")
            words.append(word)
            tags.append(tag)
        if words:
            yield Sentence(words, xpos=tags)


def _read_conllu(path: Path, lines: Iterator[Line]) -> Iterator[Sentence]:
    words: list[str] = []
    tags: tuple[list[str], list[str]] = ([], [])
    spaces: list[bool] = []
    known = False  # whether the file says where spaces are
    last, until = 0, 0  # the words read, and the last word of the multiword token around them
    for number, text in itertools.chain(lines, [(0, "")]):
        if not text.strip():
            if last < until:
                raise ValueError(f"{path}: line {number}: the sentence must go on to word {until}, it ends at {last}")
            if words:
                yield Sentence(words, tags[1], tags[0], spaces if known else None)
            words, tags, spaces, known, last, until = [], ([], []), [], False, 0, 0
            continue
        if text[0] == "#":
            known |= text.startswith("# text =")
            continue
        row = text.split("\t")
        if not 8 <= len(row) <= 10:
            raise ValueError(f"{path}: line {number} must have 8 to 10 columns between tabs, got {len(row)}")
        identity = row[0]
        numbers = re.fullmatch(r"([0-9]{1,7})(?:([-.])([0-9]{1,7}))?", identity)
        if not numbers:
            raise ValueError(f"{path}: line {number}: ID must be a number, a range or a decimal, got {identity[:20]!r}")
        first, kind, end = int(numbers[1]), numbers[2], int(numbers[3] or 0)
        if kind == ".":
            continue
        if first != last + 1 or (kind and end < first) or (kind and first <= until):
            raise ValueError(f"{path}: line {number}: ID must continue after {last}, got {identity}")
        if not row[1]:
            raise ValueError(f"{path}: line {number}: FORM must not be empty")
        misc = row[9].split("|") if len(row) == 10 else []
        if kind:
            until = end
        else:
            last = first
            if first <= until:  # inside of a multiword token: its tag is that of its words
                for i, column in enumerate(tags):
                    column[-1] = row[3 + i] if not column[-1] else f"{column[-1]}+{row[3 + i]}"
                continue
        words.append(row[1])
        tags[0].append("" if kind else row[3])
        tags[1].append("" if kind else row[4])
        spaces.append("SpaceAfter=No" not in misc)
        known |= not spaces[-1]


def _read_partial(path: Path, lines: Iterator[Line]) -> Iterator[Partial]:
    for number, text in lines:
        if not text:
            continue
        pairs = _gaps(text)
        if pairs is None or any(character.isspace() for character, _ in pairs):
            raise ValueError(
                f"{path}: line {number} must be characters, none of them white space, with one of | - or a space "
                f"between each two, got {text[:40]!r}"
            )
        yield Partial("".join(c for c, _ in pairs), tuple(_GAPS[gap] for _, gap in pairs[:-1]))


_NODE = re.compile(r"\(\s*([^\s()]*)|\)|([^\s()]+)")


def _are_trees(texts: Iterable[str]) -> bool:
    """Whether every word follows its label and an opening bracket, and there is one."""
    tag, words = "", 0
    for match in itertools.chain.from_iterable(map(_NODE.finditer, texts)):
        if match[2] and not tag:
            return False
        words += bool(match[2])
        tag = match[1] or ""
    return words > 0


def _read_brackets(path: Path, lines: Iterator[Line]) -> Iterator[Sentence]:
    depth, tag = 0, ""
    words: list[str] = []
    tags: list[str] = []
    number = 0
    for number, text in lines:
        if not depth and not text.lstrip().startswith("("):
            continue  # marks around sentences and documents
        for match in _NODE.finditer(text):
            if match[0] == ")":
                depth -= 1
                if depth < 0:
                    raise ValueError(f"{path}: line {number}: a bracket closes that was never opened")
                if not depth and words:
                    yield Sentence(words, xpos=tags)
                    words, tags = [], []
            elif match[0][0] == "(":
                depth, tag = depth + 1, match[1]
            else:
                if not tag:
                    raise ValueError(f"{path}: line {number}: {match[2][:40]!r} must have a label before it")
                if tag != "-NONE-":
                    words.append({"-LRB-": "(", "-RRB-": ")"}.get(match[2], match[2]))
                    tags.append(tag)
                tag = ""
    if depth:
        raise ValueError(f"{path}: line {number}: the file ends inside of {depth} open brackets")


PARSERS: dict[str, Callable[[Path, Iterator[Line]], Iterator[Sentence | Partial]]] = {
    "words": _read_words,
    "word_POS": lambda path, lines: _read_tagged("_", path, lines),
    "word/POS": lambda path, lines: _read_tagged("/", path, lines),
    "conllu": _read_conllu,
    "partial": _read_partial,
    "brackets": _read_brackets,
}
