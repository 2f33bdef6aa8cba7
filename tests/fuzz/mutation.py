"""Inputs made from valid ones: bytes flipped, cut, doubled and joined, numbers and JSON made extreme."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

_NUMBERS = (b"0", b"-1", b"1e999", b"NaN", b"-0", b"1e-320", b"9223372036854775808", b"9" * 20, b"9" * 5000, b"0.5")
_VALUES = (
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'""',
    b'"a"',
    b"[[]]",
    b'{"a":[]}',
    b"-1",
    b"1e999",
    b"[" * 3000,
    b'"\\ud800"',
)
_WORDS = (
    b"\x00", b"\n", b"\r\n", b"\t", b" ", b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80", b"\xe4\xb8\xad", b"\xc2\x85", b"/",
    b"..",
)  # fmt: skip
_LENGTHS = (0, 1, 7, 8, 255, 256, 65535, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)


def mutated(data: bytes, others: list[bytes], random: Random) -> bytes:
    """A neighbour of a valid input: one mutation, or a few."""
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        data = random.choice(_MUTATIONS)(data, others, random)
    return data


def _span(data: bytes, random: Random, most: int = 64) -> tuple[int, int]:
    """A part of the data; rather near its beginning, where headers are."""
    if not data:
        return 0, 0
    reach = len(data) if random.random() < 0.6 else min(len(data), 128)
    begin = random.randrange(reach)
    return begin, min(len(data), begin + random.randint(1, random.choice((1, 4, 8, most))))


def _flip(data: bytes, others: list[bytes], random: Random) -> bytes:
    begin, _ = _span(data, random)
    return data[:begin] + bytes([data[begin] ^ 1 << random.randrange(8)]) + data[begin + 1 :] if data else b"\x00"


def _overwrite(data: bytes, others: list[bytes], random: Random) -> bytes:
    begin, end = _span(data, random)
    return data[:begin] + random.randbytes(end - begin) + data[end:]


def _truncate(data: bytes, others: list[bytes], random: Random) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _delete(data: bytes, others: list[bytes], random: Random) -> bytes:
    begin, end = _span(data, random)
    return data[:begin] + data[end:]


def _double(data: bytes, others: list[bytes], random: Random) -> bytes:
    begin, end = _span(data, random, 512)
    return data[:end] + data[begin:end] * random.choice((1, 1, 2, 9)) + data[end:]


def _insert(data: bytes, others: list[bytes], random: Random) -> bytes:
    begin, _ = _span(data, random)
    return data[:begin] + random.choice(_WORDS) * random.choice((1, 1, 2, 50)) + data[begin:]


def _join(data: bytes, others: list[bytes], random: Random) -> bytes:
    other = random.choice(others) if others else b""
    begin, end = _span(other, random, 512)
    at, until = _span(data, random, 512)
    return data[:at] + other[begin:end] + data[until:]


def _length(data: bytes, others: list[bytes], random: Random) -> bytes:
    """Some 2, 4 or 8 bytes as a number that a length must not be, or one beside what it was."""
    size = random.choice((2, 4, 8))
    at = random.choice((0, 8, 16)) if random.random() < 0.2 else _span(data, random)[0] // size * size
    old = int.from_bytes(data[at : at + size], "little")
    new = random.choice(_LENGTHS) if random.random() < 0.5 else old + random.choice((-8, -1, 1, 8, 64))
    return data[:at] + (new % (1 << 8 * size)).to_bytes(size, "little") + data[at + size :]


def _number(data: bytes, others: list[bytes], random: Random) -> bytes:
    """A number in a text as another one."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data[:65536]))
    return _replaced(data, random.choice(found), random.choice(_NUMBERS)) if found else data


def _value(data: bytes, others: list[bytes], random: Random) -> bytes:
    """A simple value of JSON as another one."""
    found = list(re.finditer(rb'"[^"\\]*"|-?\d[\d.e+-]*|\btrue\b|\bfalse\b|\bnull\b|\[\]|\{\}', data[:65536]))
    return _replaced(data, random.choice(found), random.choice(_VALUES)) if found else data


def _token(data: bytes, others: list[bytes], random: Random) -> bytes:
    """A word in a text as another one of it, of the same length or not."""
    found = list(re.finditer(rb"[A-Za-z_.]{2,}", data[:65536]))
    return _replaced(data, random.choice(found), random.choice(found)[0]) if found else data


def _replaced(data: bytes, at: re.Match[bytes], by: bytes) -> bytes:
    if random_pads := len(by) < len(at[0]):
        by = by + b" " * ((len(at[0]) - len(by)) * random_pads)  # of the same length: what counts bytes still fits
    return data[: at.start()] + by + data[at.end() :]


_MUTATIONS = (
    _flip,
    _overwrite,
    _truncate,
    _delete,
    _double,
    _insert,
    _join,
    _length,
    _number,
    _value,
    _token,
)
