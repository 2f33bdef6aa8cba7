"""Finds the words of raw text: by frequency, variety of contexts, cohesion, and where a decoder sees boundaries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ._encoding import points_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

LONGEST = 6
_EDGE = 0  # the code point between sentences


@dataclass(frozen=True)
class Criteria:
    """What makes a string a word of the domain: either the first four together, or the last two.

    Attributes:
        count: the least number of occurrences.
        entropy: the least branching entropy on either side, in nats: of the characters that neighbour it.
        boundary: the least mean probability of a boundary at either end.
        cohesion: the least share of the occurrences of a part, for every way to split the string in two, the better of
            both parts, that lie inside the string.
        tokens: the least number of times that the decoder makes it a token,
        consistency: and the least share of its occurrences.

    Defaults: by the development set of Zhuxian, whose labels serve nothing else.
    """

    count: int = 3
    entropy: float = 1.0
    boundary: float = 0.7
    cohesion: float = 0.4
    tokens: int = 5
    consistency: float = 0.7


def induce(
    sentences: Sequence[str],
    starts: Sequence[NDArray[np.float32]],
    criteria: Criteria,
) -> dict[str, int]:
    """Words of 2 to 6 Chinese characters, with their counts.

    Args:
        sentences: without white space.
        starts: for each, the probability that a token starts at each character.
        criteria: see :class:`Criteria`.
    """
    text = points_of(chr(_EDGE) + chr(_EDGE).join(sentences) + chr(_EDGE) * (LONGEST + 1))
    boundary = np.ones(len(text))
    at = 1
    for sentence, p in zip(sentences, starts, strict=True):
        boundary[at : at + len(sentence)] = p
        at += len(sentence) + 1
    n = len(text) - LONGEST - 1
    han = ((text >= 0x3400) & (text <= 0x9FFF)) | ((text >= 0x20000) & (text <= 0x323AF))
    _, character = np.unique(text, return_inverse=True)
    kinds = int(character.max()) + 1

    ids = [np.zeros(0, np.int64), character[: n + LONGEST].astype(np.int64)]
    counts = [np.zeros(0, np.int64), np.bincount(ids[1])]
    sure = boundary > 0.5
    inside = han[:n].copy()
    found: dict[str, int] = {}
    for length in range(2, LONGEST + 1):
        longer = ids[-1][: n + LONGEST - length + 1] * kinds + character[length - 1 : n + LONGEST]
        _, numbered = np.unique(longer, return_inverse=True)
        ids.append(numbered.astype(np.int64))
        counts.append(np.bincount(ids[-1]))
        inside &= han[length - 1 : n + length - 1]
        own, whole = ids[-1][:n], counts[-1]
        token = inside & sure[:n] & sure[length : n + length]
        for k in range(1, length):
            token &= ~sure[k : n + k]
        made = np.bincount(own[token], minlength=len(whole))
        good = (made >= criteria.tokens) & (made >= criteria.consistency * whole)

        places = np.flatnonzero(inside & (whole[own] >= criteria.count))
        places = places[_cohesion(ids, counts, places, length) >= criteria.cohesion]
        strings, number = np.unique(own[places], return_inverse=True)
        left = _entropy(number, character[places - 1], len(strings), kinds, text[places - 1] == _EDGE)
        right = _entropy(number, character[places + length], len(strings), kinds, text[places + length] == _EDGE)
        size = np.maximum(np.bincount(number, minlength=len(strings)), 1)
        begins = np.bincount(number, boundary[places], len(strings)) / size
        ends = np.bincount(number, boundary[places + length], len(strings)) / size
        varied = np.minimum(left, right) >= criteria.entropy
        good[strings[varied & (np.minimum(begins, ends) >= criteria.boundary)]] = True

        first = np.full(len(whole), n, np.int64)
        np.minimum.at(first, own[inside], np.flatnonzero(inside))
        for string in np.flatnonzero(good).tolist():
            place = int(first[string])
            word = "".join(map(chr, text[place : place + length].tolist()))
            found[word] = int(whole[string])
    return found


def _cohesion(
    ids: list[NDArray[np.int64]], counts: list[NDArray[np.int64]], places: NDArray[np.int64], length: int
) -> NDArray[np.float64]:
    whole = counts[length][ids[length][places]]
    least = np.ones(len(places))
    for k in range(1, length):
        head = counts[k][ids[k][places]]
        tail = counts[length - k][ids[length - k][places + k]]
        least = np.minimum(least, whole / np.minimum(head, tail))
    return least


def _entropy(
    number: NDArray[np.int64], neighbour: NDArray[np.int64], strings: int, kinds: int, edge: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The entropy of the neighbours of each string; each edge of a sentence is a neighbour of its own."""
    keys, counts = np.unique((number * kinds + neighbour)[~edge], return_counts=True)
    edges = np.bincount(number[edge], minlength=strings)
    size = np.bincount(number, minlength=strings)
    share = counts / size[keys // kinds]
    entropy = np.bincount(keys // kinds, -share * np.log(share), minlength=strings)
    return np.asarray(entropy + edges * np.log(np.maximum(size, 1)) / np.maximum(size, 1))
