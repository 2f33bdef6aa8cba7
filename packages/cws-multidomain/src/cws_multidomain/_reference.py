"""The definition in NumPy: text, rules, marks, emissions, decoding, probabilities, the gate. Slow and plain."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from ._weights import Component, Gate, Weights

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    Float = NDArray[np.floating]
    Bool = NDArray[np.bool_]
    Int = NDArray[np.integer]

B, M, E, S = range(4)
OTHER, BEFORE, AFTER, DIGIT, LATIN, CHARACTERS = range(6)
RULES = ("grapheme", "latin", "number", "url", "email")
LONGEST_MARK = 6
LEGAL = np.array([[y in (M, E) if before in (B, M) else y in (B, S) for y in range(4)] for before in range(4)])


# ---- text


def fold(c: int) -> int:
    """The code point that the model reads for a code point: full-width forms are ASCII."""
    return c - 0xFEE0 if 0xFF01 <= c <= 0xFF5E else c


def symbols(text: str, mapping: Mapping[int, int]) -> NDArray[np.uint16]:
    """The symbols of a text's code points."""

    def symbol(c: int) -> int:
        if 0x30 <= c <= 0x39:
            return DIGIT
        if 0x61 <= c | 0x20 <= 0x7A:
            return LATIN
        return mapping.get(c, OTHER)

    return np.array([symbol(fold(ord(c))) for c in text], np.uint16)


def sentences(text: str) -> list[tuple[int, int]]:
    """Where the runs without whitespace begin and end."""
    return [match.span() for match in re.finditer(r"[^\s\x1c-\x1f\x85]+", text)]


# ---- rules: joint[i], no boundary before i; start[i], a boundary before i

_LETTER = "A-Za-zＡ-Ｚａ-ｚ\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff"
_LATIN = re.compile(f"[{_LETTER}]+")
_DIGIT = "0-9０-９"
_NUMBER = re.compile(rf"[{_DIGIT}]+(?:[.,．][{_DIGIT}]+)*")
_URL = re.compile(
    r"(?<![A-Za-z0-9])(?:[A-Za-z][A-Za-z0-9+.-]*://|[Ww][Ww][Ww]\.)([A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+)"
)
_EMAIL = re.compile(r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")
_TRAILING = ".,;:!?'\")]}"


def masks(text: str, rules: Collection[str] = RULES) -> tuple[Bool, Bool]:
    """joint and start of the characters of one sentence, for all rules but "grapheme"."""
    joint, start = np.zeros(len(text) + 1, bool), np.zeros(len(text) + 1, bool)
    for rule, pattern in (("latin", _LATIN), ("number", _NUMBER)):
        if rule in rules:
            for match in pattern.finditer(text):
                joint[match.start() + 1 : match.end()] = True
    for begin, end in addresses(text, rules):
        joint[begin + 1 : end] = True
        start[begin + 1 : end] = False
        start[[begin, end]] = True
        joint[[begin, end]] = False
    start[0] = True
    return joint[:-1], start[:-1]


def addresses(text: str, rules: Collection[str] = RULES) -> list[tuple[int, int]]:
    """URL without the punctuation at their ends, and e-mail addresses; of two that overlap, the first."""
    spans: list[tuple[int, int, int]] = []
    if "url" in rules:
        for match in _URL.finditer(text):
            body = text[match.start(1) : match.end()].rstrip(_TRAILING)
            if body:
                spans.append((match.start(), 0, match.start(1) + len(body)))
    if "email" in rules:
        spans += [(match.start(), 1, match.end()) for match in _EMAIL.finditer(text)]
    kept: list[tuple[int, int]] = []
    for begin, _, end in sorted(spans):
        if not kept or begin >= kept[-1][1]:
            kept.append((begin, end))
    return kept


# ---- features


def marks(symbols: Sequence[int] | Int, words: Collection[tuple[int, ...]]) -> NDArray[np.uint8]:
    """25 b + 5 e + k: indices of the longest word of 2..6 symbols that begins at, ends at, strictly contains i."""
    s = [int(x) for x in symbols]
    n = len(s)
    begins, ends, insides = (np.zeros(n, int) for _ in range(3))
    for i in range(n):
        for length in range(2, min(LONGEST_MARK, n - i) + 1):
            if tuple(s[i : i + length]) in words:
                index = min(length, 5) - 1
                begins[i] = max(begins[i], index)
                ends[i + length - 1] = max(ends[i + length - 1], index)
                inside = slice(i + 1, i + length - 1)
                insides[inside] = np.maximum(insides[inside], index)
    return np.asarray(25 * begins + 5 * ends + insides, np.uint8)


def emissions(component: Component, symbols: Sequence[int] | Int, marks: Sequence[Int] = ()) -> Float:
    """[n, 4]: the sum of the rows that fire at each position of one sentence. `marks` has an array per lexicon."""
    n = len(symbols)
    s = [BEFORE, BEFORE, *(int(x) for x in symbols), AFTER, AFTER]
    out = np.zeros((n, 4), component.unigram.dtype)
    bigram = dict(zip(component.bigram_keys.tolist(), component.bigram, strict=True))
    skip = dict(zip(component.skip_keys.tolist(), component.skip, strict=True))
    charmark = [
        dict(zip(k.tolist(), v, strict=True)) for k, v in zip(component.charmark_keys, component.charmark, strict=True)
    ]
    for i in range(n):
        at = i + 2
        for d in range(-2, 3):
            out[i] += component.unigram[s[at + d], d + 2]
        for d in range(-2, 2):
            rows = bigram.get(s[at + d] << 16 | s[at + d + 1])
            if rows is not None:
                out[i] += rows[d + 2]
        row = skip.get(s[at - 1] << 16 | s[at + 1])
        if row is not None:
            out[i] += row
        for lexicon, m in enumerate(marks):
            e_before = int(m[i - 1]) // 5 % 5 if i else 0
            b_after = int(m[i + 1]) // 25 if i + 1 < n else 0
            out[i] += component.joint[lexicon][e_before, m[i], b_after]
            row = charmark[lexicon].get(int(m[i]) << 16 | s[at])
            if row is not None:
                out[i] += row
    return out


def active(weights: Weights, mixture: Mapping[str, float] | None = None) -> Component:
    """shared + sum of pi_k * domain_k; {} or None is "general"."""
    shared = weights.components[0]
    out = Component(
        shared.unigram.copy(),
        shared.bigram_keys,
        shared.bigram.copy(),
        shared.skip_keys,
        shared.skip.copy(),
        [x.copy() for x in shared.joint],
        shared.charmark_keys,
        [x.copy() for x in shared.charmark],
        shared.transition.copy(),
    )
    for name, pi in (mixture or {}).items():
        add = weights.components[1 + weights.domains.index(name)]
        out.unigram += pi * add.unigram
        out.bigram[np.searchsorted(out.bigram_keys, add.bigram_keys)] += pi * add.bigram
        out.skip[np.searchsorted(out.skip_keys, add.skip_keys)] += pi * add.skip
        for lexicon, keys in enumerate(out.charmark_keys):
            out.joint[lexicon] += pi * add.joint[lexicon]
            at = np.searchsorted(keys, add.charmark_keys[lexicon])
            out.charmark[lexicon][at] += pi * add.charmark[lexicon]
        out.transition += pi * add.transition
    return out


# ---- decoding of one sentence


def constrain(emissions: Float, joint: Bool | None = None, start: Bool | None = None) -> Float:
    """Emissions in which the tags that the masks rule out are -inf."""
    x = np.array(emissions, np.float64)
    if joint is not None:
        x[joint, B] = x[joint, S] = -np.inf
    if start is not None:
        x[start, M] = x[start, E] = -np.inf
    if len(x):
        x[0, [M, E]] = -np.inf
    return x


def viterbi(emissions: Float, transition: Float, joint: Bool | None = None, start: Bool | None = None) -> Int:
    """The best tags. Of equal scores the tag before that comes first in B, M, E, S wins."""
    x = constrain(emissions, joint, start)
    n = len(x)
    if n == 0:
        return np.zeros(0, np.int64)
    edges = np.where(LEGAL, np.asarray(transition, np.float64), -np.inf)
    back = np.zeros((n, 4), np.int64)
    score = x[0]
    for i in range(1, n):
        paths = score[:, None] + edges
        back[i] = paths.argmax(0)
        score = paths.max(0) + x[i]
    tags = np.empty(n, np.int64)
    tags[-1] = E if score[E] >= score[S] else S
    for i in range(n - 1, 0, -1):
        tags[i - 1] = back[i, tags[i]]
    return tags


def path_score(emissions: Float, transition: Float, tags: Int) -> float:
    """Sum of the emissions and transitions of a path."""
    n = len(tags)
    return float(np.asarray(emissions)[np.arange(n), tags].sum() + np.asarray(transition)[tags[:-1], tags[1:]].sum())


def forward_backward(
    emissions: Float, transition: Float, joint: Bool | None = None, start: Bool | None = None
) -> tuple[float, Float, Float]:
    """logZ, P(y_i) [n, 4] and the sum over i of P(y_{i-1}, y_i) [4, 4]."""
    x = constrain(emissions, joint, start)
    n = len(x)
    edges = np.where(LEGAL, np.asarray(transition, np.float64), -np.inf)
    alpha, beta = np.full((n, 4), -np.inf), np.full((n, 4), -np.inf)
    alpha[0] = x[0]
    beta[-1, [E, S]] = 0
    for i in range(1, n):
        alpha[i] = x[i] + np.logaddexp.reduce(alpha[i - 1][:, None] + edges, 0)
    for i in range(n - 2, -1, -1):
        beta[i] = np.logaddexp.reduce(edges + x[i + 1] + beta[i + 1], 1)
    log_z = float(np.logaddexp.reduce(alpha[-1, [E, S]]))
    pairs = np.zeros((4, 4))
    for i in range(1, n):
        pairs += np.exp(alpha[i - 1][:, None] + edges + x[i] + beta[i] - log_z)
    return log_z, np.exp(alpha + beta - log_z), pairs


def tags_of(lengths: Sequence[int]) -> Int:
    """The tags of tokens with these lengths."""
    return np.array([t for n in lengths for t in ([S] if n == 1 else [B, *[M] * (n - 2), E])], np.int64)


def lengths_of(tags: Sequence[int] | Int) -> list[int]:
    """The lengths of the tokens that tags tell."""
    starts = [i for i, t in enumerate(tags) if t in (B, S)]
    return [b - a for a, b in zip(starts, [*starts[1:], len(tags)], strict=True)]


def nbest(
    emissions: Float,
    transition: Float,
    n: int,
    joint: Bool | None = None,
    start: Bool | None = None,
    costs: Mapping[tuple[int, int], float] | None = None,
) -> list[tuple[float, list[int]]]:
    """The n best segmentations as (score, lengths), best first, by dynamic programming over whole tokens.

    `costs[i, j]` is subtracted from each path in which [i, j) is one token.
    """
    x = constrain(emissions, joint, start)
    edges = np.asarray(transition, np.float64)
    length = len(x)
    best: list[dict[int, list[tuple[float, list[int]]]]] = [{} for _ in range(length + 1)]  # per end: last tag -> paths
    best[0][-1] = [(0.0, [])]
    for j in range(1, length + 1):
        for i in range(j):
            tags = tags_of([j - i])
            inner = path_score(x[i:j], edges, tags) - (costs or {}).get((i, j), 0.0)
            if inner == -np.inf:
                continue
            paths = best[j].setdefault(int(tags[-1]), [])
            for before, candidates in best[i].items():
                step = inner + (edges[before, tags[0]] if before >= 0 else 0.0)
                paths += [(score + step, [*path, j - i]) for score, path in candidates]
        for tag, paths in best[j].items():
            best[j][tag] = sorted(paths, key=lambda p: -p[0])[:n]
    return sorted((p for paths in best[length].values() for p in paths), key=lambda p: -p[0])[:n]


# ---- the gate


def gate_features(symbols: Sequence[int] | Int) -> tuple[Int, int]:
    """Rows of the gate's table that one line fires, with repetitions, and the number that their sum is divided by."""
    s = np.asarray(symbols[:4096], np.uint64)
    n = len(s)
    one = s * np.uint64(0x9E3779B1)
    two = one[: n - 1] + s[1:] * np.uint64(0x85EBCA77) if n else one
    rows = (np.concatenate([one, two]) & np.uint64(0xFFFFFFFF)) >> np.uint64(19)
    return rows.astype(np.int64), max(1, n)


def gate_probabilities(gate: Gate, symbols: Sequence[int] | Int) -> Float:
    """P(domain) of one line, whose whitespace is left out of `symbols`."""
    rows, n = gate_features(symbols)
    scores = gate.bias.astype(np.float64) + gate.table[rows].astype(np.float64).sum(0) / n
    weights = np.exp(scores - scores.max())
    return np.asarray(weights / weights.sum())
