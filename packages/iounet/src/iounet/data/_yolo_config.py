"""The few keys of a YOLO `data.yaml`: a subset of YAML that needs no parser of all of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ._text import read_lines

if TYPE_CHECKING:
    from pathlib import Path

_KEYS = ("path", "train", "val", "test", "names")
_QUOTED = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^']|'')*)'|([^,]*))\s*(?:,|$)""")


@dataclass
class Config:
    """Where splits are, relative to `path`, and the names of the classes."""

    path: str = "."
    splits: dict[str, list[str]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)


def read_config(file: Path) -> Config:
    """Read scalars, `[a, b]`, `{0: a}` and blocks of `- a` or `0: a`; other keys are passed over.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text, or `names` are not numbered from 0 without a gap.
    """
    lines = [_uncommented(line) for line in read_lines(file)]
    entries: dict[str, list[tuple[str, int]]] = {}
    key = ""
    for place, line in enumerate(lines, 1):
        if match := re.match(r"([A-Za-z_]\w*)\s*:(?:\s+|$)(.*)", line):
            key = match[1]
            entries[key] = [(match[2], place)]
        elif line.strip() and key:
            entries[key].append((line.strip(), place))
    values = {key: _items(entries[key], file) for key in _KEYS if key in entries}
    config = Config(next(iter(values.get("path", {}).values()), "."))
    config.splits = {key: list(values[key].values()) for key in _KEYS[1:4] if values.get(key)}
    names = values.get("names", {})
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"{file}: names must be numbered from 0 without a gap, got {sorted(names)}")
    config.names = [names[number] for number in range(len(names))]
    return config


def _uncommented(line: str) -> str:
    """Without `# ...`, which begins a comment after a space and outside quotes."""
    quote = ""
    for place, sign in enumerate(line):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'" and (place == 0 or line[place - 1] in " [{,:"):
            quote = sign
        elif sign == "#" and (place == 0 or line[place - 1].isspace()):
            return line[:place].rstrip()
    return line.rstrip()


def _items(lines: list[tuple[str, int]], file: Path) -> dict[int, str]:
    """The values of a key by number; a scalar is the one with number 0."""
    text = " ".join(line for line, _ in lines).strip()
    if text[:1] in ("[", "{"):
        closing = {"[": "]", "{": "}"}[text[0]]
        if not text.endswith(closing):
            raise ValueError(f"{file}, line {lines[0][1]}: {text[0]!r} without its {closing!r}")
        parts: list[tuple[int, str]] = []
        place, text = 0, text[1:-1].strip().rstrip(",")
        while place < len(text):
            number = re.compile(r"\s*(\d+)\s*:\s+").match(text, place) if closing == "}" else None
            match = _QUOTED.match(text, number.end() if number else place)
            if match is None or (closing == "}" and number is None):
                raise ValueError(f"{file}, line {lines[0][1]}: cannot read {text[place : place + 40]!r}")
            parts.append((int(number[1]) if number else len(parts), _unquoted(match)))
            place = match.end()
        return dict(parts)
    if lines[0][0]:
        return {0: _scalar(text)}
    items: dict[int, str] = {}
    for line, place in lines[1:]:
        match = re.match(r"-\s+(.*)|(\d+)\s*:\s+(.*)", line)
        if match is None:
            raise ValueError(f"{file}, line {place}: cannot read {line[:40]!r}")
        listed = match[2] is None
        items[len(items) if listed else int(match[2])] = _scalar(match[1] if listed else match[3])
    return items


def _scalar(text: str) -> str:
    match = re.fullmatch(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^']|'')*)'|(.*))\s*""", text)
    return _unquoted(match) if match else text


def _unquoted(match: re.Match[str]) -> str:
    double, single, plain = match.groups()
    if double is not None:
        return re.sub(r"\\(.)", r"\1", double)
    return single.replace("''", "'") if single is not None else plain.strip()
