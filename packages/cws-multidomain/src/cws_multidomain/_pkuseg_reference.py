"""pkuseg's model and its training, defined in NumPy and float64: features, decoding, gradient, ADF. Slow and plain."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    Float = NDArray[np.float64]

TAGS = ("B", "B_single", "I", "I_end", "I_first")
NUMBERS = frozenset("0123456789.几二三四五六七八九十千万亿兆零１２３４５６７８９０％")
LETTERS = frozenset(
    "ＡＢＣＤＥＦＧＨＩＪＫＬＭＮＯＰＱＲＳＴＵＶＷＸＹＺａｂｃｄｅｆｇｈｉｋｌｍｎｏｐｑｒｓｔｕｖｗｘｙｚ／・－"
)
RENAMED = str.maketrans("-._,|/*:", "&&&&&&&&")
LENGTHS = range(6, 1, -1)
NO_WORD = "**noWord"


# ---- text and features


def normalize(text: str) -> list[str]:
    """The nodes of a text: its characters, or their classes."""
    return ["**Num" if c in NUMBERS else "**Letter" if c in LETTERS else c for c in text.translate(RENAMED)]


def _words(nodes: Sequence[str], starts: Sequence[int], unigram: Collection[str]) -> list[str]:
    """For each length, the word of that length from a start, if it is one."""
    words = []
    for start, length in zip(starts, LENGTHS, strict=True):
        word = "".join(nodes[start : start + length]) if 0 <= start <= len(nodes) - length else ""
        words.append(word if word in unigram else NO_WORD)
    return words


def features(
    nodes: Sequence[str],
    i: int,
    unigram: Collection[str],
    bigram: Collection[str] | None = None,
    training: bool = False,
) -> Iterator[str]:
    """The names of the features at i, in the order in which decoding, or training, sums their weights.

    Args:
        nodes: of a sentence.
        i: the position.
        unigram: the words.
        bigram: the pairs of words `left*right`; None: all.
        training: the order.
    """
    n = len(nodes)
    yield "$$"
    names = {"c": f"c.{nodes[i]}"}
    if i > 0:
        names |= {"c-1": f"c-1.{nodes[i - 1]}", "c-1c": f"c-1c.{nodes[i - 1]}.{nodes[i]}"}
    if i + 1 < n:
        names |= {"c1": f"c1.{nodes[i + 1]}", "cc1": f"cc1.{nodes[i]}.{nodes[i + 1]}"}
    if i > 1:
        names |= {"c-2": f"c-2.{nodes[i - 2]}", "c-2c-1": f"c-2c-1.{nodes[i - 2]}.{nodes[i - 1]}"}
    if i + 2 < n:
        names["c2"] = f"c2.{nodes[i + 2]}"
    decoding = ("c", "c-1", "c-1c", "c1", "cc1", "c-2", "c-2c-1", "c2")
    for key in ("c", "c-1", "c1", "c-2", "c2", "c-1c", "cc1", "c-2c-1") if training else decoding:
        if key in names:
            yield names[key]

    ending = _words(nodes, [i - length + 1 for length in LENGTHS], unigram)
    starting = _words(nodes, [i] * 5, unigram)
    before = _words(nodes, [i - length for length in LENGTHS], unigram)
    after = _words(nodes, [i + 1] * 5, unigram)
    yield from (f"w-1.{word}" for word in ending if word != NO_WORD)
    yield from (f"w1.{word}" for word in starting if word != NO_WORD)
    for head, lefts, rights in (("ww.l.", before, starting), ("ww.r.", ending, after)):
        for left in lefts:
            for right in rights:
                if NO_WORD not in (left, right) and (bigram is None or f"{left}*{right}" in bigram):
                    yield f"{head}{left}*{right}"


def gold(words: Sequence[str]) -> list[int]:
    """The tags of words."""
    tags = []
    for word in words:
        inner = ["I_first"] + ["I"] * (len(word) - 3) if len(word) > 2 else []
        tags += ["B_single"] if len(word) == 1 else ["B", *inner, "I_end"]
    return [TAGS.index(tag) for tag in tags]


class Corpus:
    """Sentences of words as feature numbers: by falling frequency, of equals the first seen first."""

    def __init__(self, sentences: Sequence[Sequence[str]]) -> None:
        renamed = [[word.translate(RENAMED) for word in words] for words in sentences if words]
        self.unigram = {word for words in renamed for word in words}
        self.bigram = {f"{a}*{b}" for words in renamed for a, b in pairwise(words)}
        named = []
        for words in renamed:
            nodes = normalize("".join(words))
            named.append([list(features(nodes, i, self.unigram, self.bigram, True)) for i in range(len(nodes))])
        count = Counter(name for sentence in named for position in sentence for name in position)
        self.feature_to_idx = {name: index for index, (name, _) in enumerate(count.most_common())}
        self.ids = [[[self.feature_to_idx[name] for name in position] for position in sentence] for sentence in named]
        self.tags = [gold(words) for words in renamed]


# ---- decoding


def scores(ids: Sequence[Sequence[int]], w: Float, n_tags: int = 5) -> tuple[Float, Float]:
    """The scores `[position, tag]`, and `[tag, next tag]`, which have 1 added."""
    n_edges = n_tags * n_tags
    rows = w[:-n_edges].reshape(-1, n_tags)
    nodes = np.zeros((len(ids), n_tags))
    for i, position in enumerate(ids):
        for f in position:
            nodes[i] += rows[f]
    return nodes, 1.0 + w[-n_edges:].reshape(n_tags, n_tags).T


def viterbi(nodes: Float, edges: Float) -> list[int]:
    """From right to left; of equal scores the last tag, but for the first position the first."""
    n, n_tags = nodes.shape
    if not n:
        return []
    best = nodes[-1]
    back = []
    for i in range(n - 2, -1, -1):
        sums = (best[None, :] + nodes[i][:, None]) + edges
        back.append(n_tags - 1 - sums[:, ::-1].argmax(1))
        best = sums.max(1)
    tags = [int(best.argmax())]
    for choice in reversed(back):
        tags.append(int(choice[tags[-1]]))
    return tags


# ---- training


def _log_sum(a: Float) -> Float:
    top = a.max(-1, keepdims=True)
    return np.asarray(top[..., 0] + np.log(np.exp(a - top).sum(-1)))


def loss(ids: Sequence[Sequence[int]], tags: Sequence[int], w: Float, gradient: Float) -> float:
    """log Z - the score of the gold path; adds its gradient."""
    nodes, edges = scores(ids, w)
    n = len(ids)
    alpha, beta = nodes.copy(), np.zeros_like(nodes)
    for i in range(1, n):
        alpha[i] += _log_sum(alpha[i - 1] + edges.T)
    for i in range(n - 1, 0, -1):
        beta[i - 1] = _log_sum(edges + nodes[i] + beta[i])
    z = float(_log_sum(alpha[-1]))
    marginals = np.exp(alpha + beta - z)
    score = 0.0
    per_edge = gradient[-25:].reshape(5, 5)  # [tag, tag before]
    for i, tag in enumerate(tags):
        marginals[i, tag] -= 1
        score += nodes[i, tag]
        if i:
            per_edge += np.exp(alpha[i - 1][:, None] + edges + nodes[i] + beta[i] - z).T
            per_edge[tag, tags[i - 1]] -= 1
            score += edges[tags[i - 1], tag]
    rows = gradient[:-25].reshape(-1, 5)
    for i, position in enumerate(ids):
        for f in position:
            rows[f] += marginals[i]
    return z - score


def adf_epoch(
    corpus: Corpus,
    w: Float,
    eta: Float,
    order: Sequence[int],
    *,
    updates: int = 10,
    upper: float = 0.995,
    lower: float = 0.6,
    l2: float = 1.0,
) -> float:
    """One epoch of ADF on weights and rates, both in place; returns log loss plus half the squared weights.

    Rates are updated before the step of the sentence at which they are, the weights decay after it.
    """
    sentences = len(order)
    every = max(1, sentences // updates)
    gradient, count = np.zeros_like(w), np.zeros_like(w)
    error, n = 0.0, 0
    for k, which in enumerate(order):
        n += 1
        error += loss(corpus.ids[which], corpus.tags[which], w, gradient)
        fired = np.zeros(len(w), bool)
        fired[-25:] = True
        fired[:-25].reshape(-1, 5)[sorted({f for position in corpus.ids[which] for f in position})] = True
        count[fired] += 1
        check = (k > 0 and k % every == 0) or k == sentences - 1
        if check:
            eta *= upper - (upper - lower) * count / n
            count[:] = 0
        w[fired] -= eta[fired] * gradient[fired]
        gradient[fired] = 0
        if check:
            w -= eta * (w / l2**2 * n / sentences)
            n = 0
    return error + float((w * w).sum()) / (2 * l2**2)


# ---- dictionaries


def solve(text: str, words: Mapping[str, str] | Collection[str], fixes: bool = False) -> list[tuple[str, bool]]:
    """The pieces of a text, and whether each is a word: longest first, from the left.

    Without `fixes` a piece also has the characters that were tried in vain for a longer word, unless the text ends.
    """
    starts = {word[:k] for word in words for k in range(1, len(word) + 1)}
    pieces, last, i = [], 0, 0
    while i < len(text):
        tried = i
        while tried < len(text) and text[i : tried + 1] in starts:
            tried += 1
        end = next((j for j in range(tried, i, -1) if text[i:j] in words), None)
        if end is None:
            i += 1
            continue
        if not fixes and tried < len(text):
            end = tried
        if last < i:
            pieces.append((text[last:i], False))
        pieces.append((text[i:end], True))
        last = i = end
    if last < len(text):
        pieces.append((text[last:], False))
    return pieces


def merge(tokens: Sequence[str], words: Collection[str]) -> list[str]:
    """Runs of 7 to 2 tokens that spell a word become it, unless each token is a word."""
    merged = list(tokens)
    for m in range(7, 1, -1):
        i = 0
        while i + m <= len(merged):
            run = merged[i : i + m]
            if "".join(run) in words and not all(token in words for token in run):
                merged[i : i + m] = ["".join(run)]
            i += 1
    return merged
