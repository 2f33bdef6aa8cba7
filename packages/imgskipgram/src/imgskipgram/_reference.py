"""What training computes, in NumPy and float64: the samples, and one sentence in the exact order of work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["Samples", "draws", "image_gradient", "philox", "rate", "tile", "train_sentence"]

NONE = ALWAYS = 2**32 - 1
TRIES, GROUP, IMAGE_STREAM = 8, 8, 2**31
RATE_BLOCK = 10_000


def rate(token: int, alpha: float, min_alpha: float, done: int, total: int) -> float:
    """The learning rate at a token of an epoch, of `total` in all epochs, `done` of which are in those before."""
    before = done + token // RATE_BLOCK * RATE_BLOCK
    return max(min_alpha, alpha - (alpha - min_alpha) * before / total)


def philox(seed: int, counter: Iterable[int]) -> list[int]:
    """The four random words of Philox4x32-10 for a counter of four words."""
    a, b, c, d = counter
    key = [seed & NONE, seed >> 32]
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ key[0], q & NONE, (p >> 32) ^ d ^ key[1], p & NONE
        key = [(key[0] + 0x9E3779B9) & NONE, (key[1] + 0xBB67AE85) & NONE]
    return [a, b, c, d]


@dataclass(frozen=True)
class Samples:
    """What decides the samples, but for the sentence."""

    keep: NDArray[np.uint32]
    threshold: NDArray[np.uint32]
    alias: NDArray[np.uint32]
    images: list[list[int]]
    bank: int
    window: int
    negative: int
    image_negative: int
    shrink_windows: bool = True
    negatives: str = "center"
    seed: int = 1
    epoch: int = 0

    def words(self, sentence: int, position: int, stream: int) -> list[int]:
        """The random words of a position and a stream."""
        middle = (sentence >> 32 & 0xFFFF) | self.epoch << 16
        return philox(self.seed, (position, sentence & NONE, middle, stream))

    def noise(self, sentence: int, position: int, stream: int, j: int) -> int:
        """The j-th word from the alias table."""
        r = self.words(sentence, position, stream + 1 + j // 2)[j % 2 * 2 :]
        i = r[0] * len(self.threshold) >> 32
        return i if r[1] < self.threshold[i] else int(self.alias[i])

    def negative_words(self, sentence: int, position: int, stream: int, target: int) -> list[int]:
        """The negatives of a target: one that equals it is drawn again, but not if others share it."""
        out = []
        for k in range(self.negative):
            tries = range(1 if self.negatives == "batch" else TRIES)
            drawn = (self.noise(sentence, position, stream, t * self.negative + k) for t in tries)
            out.append(next((w for w in drawn if w != target), NONE))
        return out

    def pictures(self, sentence: int, position: int, word: int) -> list[int]:
        """The own picture of a word and the others."""
        own = self.images[word]
        out = [own[self.words(sentence, position, IMAGE_STREAM)[0] * len(own) >> 32]]
        for k in range(self.image_negative):
            js = (t * self.image_negative + k for t in range(TRIES))
            drawn = (self.words(sentence, position, IMAGE_STREAM + 1 + j // 2)[j % 2 * 2] * self.bank >> 32 for j in js)
            out.append(next((i for i in drawn if i not in own), NONE))
        return out


def contexts(i: int, window: int, n: int) -> list[int]:
    """The places of a window around place i of n."""
    return [j for j in range(max(0, i - window), min(n, i + window + 1)) if j != i]


def draws(ids: NDArray[np.uint32], sentence: int, s: Samples) -> tuple[list[int], list[int], list[list[int]], Any]:
    """Positions kept, windows, rows of negatives (one a centre, or with "pair" one a context), pictures."""
    positions, windows = [], []
    for p, w in enumerate(ids):
        r = s.words(sentence, p, 0)
        if s.keep[w] == ALWAYS or r[0] < s.keep[w]:
            positions.append(p)
            windows.append(1 + (r[1] * s.window >> 32) if s.shrink_windows else s.window)
    rows, pictures = [], []
    for i, p in enumerate(positions):
        word = int(ids[p])
        if s.negatives == "pair":
            slots = range(len(contexts(i, windows[i], len(positions))))
            rows += [s.negative_words(sentence, p, (1 + slot) << 16, word) for slot in slots]
        else:
            at = positions[i - i % GROUP] if s.negatives == "batch" else p
            rows.append(s.negative_words(sentence, at, 0, word))
        grounded = 0 < len(s.images[word]) < s.bank
        pictures.append(s.pictures(sentence, p, word) if grounded else [NONE] * (1 + s.image_negative))
    return positions, windows, rows, pictures


def tile(x: Any, y: Any, labels: Any, alpha: float) -> tuple[Any, Any, float]:
    """Gradients of the logistic loss of inputs x against outputs y, times -alpha; and the loss."""
    f = x @ y.T
    g = alpha * (labels - 1 / (1 + np.exp(-f)))
    return g @ y, g.T @ x, float(np.logaddexp(0, np.where(labels > 0, -f, f)).sum())


def image_gradient(v: Any, z: Any, objective: str) -> tuple[Any, Any, float]:
    """-dL/dv, -dL/dz and L of the image term; z[0] is the own picture."""
    first = np.arange(len(z)) == 0
    if objective == "nce":
        dv, dz, loss = tile(v[None], z, first.astype(float), 1.0)
        return dv[0], dz, loss
    length, lengths = np.linalg.norm(v), np.linalg.norm(z, axis=1)
    cosine = z @ v / (length * lengths)
    if objective == "margin":
        hinge = np.where(first, 0, np.maximum(0, 0.5 - cosine[0] + cosine))
        g = np.where(hinge > 0, -1.0, 0.0)
        g[0], loss = -g.sum(), hinge.sum()
    else:
        e = np.exp((cosine - cosine[0]) / 0.07)
        g, loss = (first - e / e.sum()) / 0.07, np.log(e.sum())
    unit, units = v / length, z / lengths[:, None]
    dv = g @ (units - cosine[:, None] * unit) / length
    return dv, g[:, None] * (unit - cosine[:, None] * units) / lengths[:, None], float(loss)


def train_sentence(
    ids: NDArray[np.uint32],
    sentence: int,
    s: Samples,
    v: Any,
    u: Any,
    z: Any,
    lock: Any,
    alphas: Any,
    objective: str,
    weight: float,
    trained: bool,
) -> tuple[float, float, int, int]:
    """One sentence, at one rate or one for each token, in place: text loss, image loss, text pairs, image pairs."""
    positions, windows, rows, pictures = draws(ids, sentence, s)
    text, image, pairs, shown, at = 0.0, 0.0, 0, 0, 0
    for i, p in enumerate(positions):
        word, alpha = int(ids[p]), float(np.broadcast_to(alphas, len(ids))[p])
        if weight > 0 and pictures[i][0] != NONE:
            chosen = [k for k in pictures[i] if k != NONE]
            dv, dz, loss = image_gradient(v[word], z[chosen], objective)
            v[word] += alpha * weight * lock[word] * dv
            if trained:
                np.add.at(z, chosen, alpha * weight * dz)
            image, shown = image + loss, shown + 1
        around = contexts(i, windows[i], len(positions))
        for slot, j in enumerate(around):
            row = rows[at + slot if s.negatives == "pair" else i]
            outputs = [word, *(k for k in row if k != NONE)]
            c = int(ids[positions[j]])
            dx, dy, loss = tile(v[c][None], u[outputs], np.arange(len(outputs)) == 0, alpha)
            v[c] += lock[c] * dx[0]
            np.add.at(u, outputs, dy)
            text, pairs = text + loss, pairs + 1
        at += len(around)
    return text, image, pairs, shown
