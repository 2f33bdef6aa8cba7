"""Every operator in plain PyTorch: the definition that the kernels are tested against, and what runs on other devices.

A hash table is an int64 tensor of 2^k slots: `key << 31 | value`, or -1. Keys have 32 bits, values 31. Key `k` lies at
the first free slot from `(k * 0x9E3779B1 mod 2^32) >> (32 - k)` on, and at most half of the slots are taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

HASH = 0x9E3779B1
VALUE_BITS = 31
LEFT_EDGE, RIGHT_EDGE = 1, 2  # the symbols before and after a sentence
UNIGRAMS, BIGRAMS = 5, 4  # rows of a character, c[-2] .. c[2], and of a pair, c[-2]c[-1] .. c[1]c[2]
FORBIDDEN = -(2**30)  # an integer score or transition from here down is minus infinity; others are below 2^18 in size
LOWEST = -(2**60)  # the score of no path where scores are integers


# --- features -------------------------------------------------------------------------------------------------------


def hash_table(keys: Tensor, values: Tensor, size: int = 16) -> Tensor:
    """The hash table of distinct keys below 2^32, of at least `size` slots and twice as many as keys."""
    bits = max(4, (2 * keys.numel() - 1).bit_length(), (size - 1).bit_length())
    slots = torch.full((1 << bits,), -1, dtype=torch.int64)
    keys, values = keys.to("cpu", torch.int64).flatten(), values.to("cpu", torch.int64).flatten()
    entries = keys << VALUE_BITS | values
    slot = home(keys, bits)
    while entries.numel():
        free = slots[slot] == -1
        slots[slot[free]] = entries[free]  # of several for one slot one stays
        left = slots[slot] != entries
        entries, slot = entries[left], (slot[left] + 1) & ((1 << bits) - 1)
    return slots


def home(keys: Tensor, bits: int) -> Tensor:
    """The slot at which the search for a key begins."""
    return ((keys * HASH) & 0xFFFFFFFF) >> (32 - bits)


def probe(table: Tensor, keys: Tensor) -> Tensor:
    """The value of each key, or -1."""
    size = table.numel()
    slot = home(keys, size.bit_length() - 1)
    values = torch.full_like(keys, -1)
    active = torch.arange(keys.numel(), device=keys.device)
    for _ in range(size):
        if not active.numel():
            break
        found = table[slot[active]]
        hit = (found >> VALUE_BITS == keys[active]) & (found >= 0)
        values[active[hit]] = found[hit] & ((1 << VALUE_BITS) - 1)
        active = active[~hit & (found >= 0)]
        slot[active] = (slot[active] + 1) & (size - 1)
    return values


def _neighbour(chars: Tensor, start: Tensor, end: Tensor, distance: int) -> Tensor:
    """The symbol `distance` to the right of each character, edges included."""
    at = torch.arange(chars.numel(), device=chars.device) + distance
    inside = chars.to(torch.int64)[at.clamp(0, max(chars.numel() - 1, 0))]
    return torch.where(at < start, LEFT_EDGE, torch.where(at >= end, RIGHT_EDGE, inside))


def ngram_ids(chars: Tensor, row_splits: Tensor, keys: Tensor) -> Tensor:
    """The table rows of a character's n-grams, [N, 9] or with skip-grams [N, 10], int32; -1 if absent.

    `chars` are symbols; row_splits[r] to row_splits[r + 1] is a sentence. Column d < 5 is `5 * c[d - 2] + d`, absent
    for symbol 0. `keys` [1 or 2, slots] are hash tables of `left << 16 | right`: the first gives columns 5 + d, the row
    of the pair (c[d - 2], c[d - 1]) plus d, the second column 9, the row of the skip-gram (c[-1], c[1]).
    """
    row_splits = row_splits.to(torch.int64)
    sizes = row_splits.diff()
    start = row_splits[:-1].repeat_interleave(sizes, output_size=chars.numel())
    end = row_splits[1:].repeat_interleave(sizes, output_size=chars.numel())
    symbols = [_neighbour(chars, start, end, distance) for distance in range(-2, 3)]
    columns = [torch.where(symbol > 0, UNIGRAMS * symbol + d, -1) for d, symbol in enumerate(symbols)]
    for d in range(BIGRAMS):
        row = probe(keys[0], symbols[d] << 16 | symbols[d + 1])
        columns.append(torch.where(row >= 0, row + d, -1))
    if keys.shape[0] == 2:
        columns.append(probe(keys[1], symbols[1] << 16 | symbols[3]))
    return torch.stack(columns).to(torch.int32).t()


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the rows of a table are returned as: int32 for integers."""
    return dtype if dtype.is_floating_point else torch.int32


def emit(ids: Tensor, table: Tensor) -> Tensor:
    """The sum of a character's table rows, column after column: [N, K], [V, T] -> [N, T]. int8 is summed in int32."""
    dtype = sum_dtype(table.dtype)
    sums = torch.zeros(ids.shape[0], table.shape[1], dtype=accumulator(dtype), device=table.device)
    for column in ids.unbind(1):
        present = (column >= 0).nonzero()[:, 0]
        sums[present] += table[column[present].to(torch.int64)].to(sums.dtype)
    return sums.to(dtype)


# --- linear chains --------------------------------------------------------------------------------------------------


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What numbers of a dtype are added in: float32 at least, or int64."""
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else torch.int64


def _chain(scores: Tensor, trans: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, float]:
    """Scores with minus infinity where the mask forbids, transitions, and the number that is minus infinity."""
    lowest: float = -float("inf")
    if scores.dtype.is_floating_point:
        scores, trans = (x.to(accumulator(scores.dtype)) for x in (scores, trans))
    else:
        lowest = LOWEST
        scores, trans = (x.to(torch.int64) for x in (scores, trans))
        scores, trans = (torch.where(x <= FORBIDDEN, LOWEST, x) for x in (scores, trans))
    return scores if mask is None else scores.masked_fill(~mask, lowest), trans, lowest


def crf_viterbi(scores: Tensor, trans: Tensor, lengths: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The best tags of each sentence, int8 [L, S], and their score [S].

    maximise  sum_i scores[i, s, y_i] + sum_{i > 0} trans[y_{i-1}, y_i]   over the first lengths[s] positions

    `scores` [L, S, T] and `trans` [T, T] (from, to) are both floating or both integers; `mask` [L, S, T] tells which
    tags are allowed. Of equal predecessors, and of equal last tags, the lowest wins. After the end of a sentence tags
    are -1. The score of integers is int64 and exact for any length. A sentence without an allowed path has tags -1 and
    a score of minus infinity, for integers -2^60.
    """
    length, sentences, _ = scores.shape
    chain, trans, lowest = _chain(scores, trans, mask)
    tags = torch.full((length, sentences), -1, dtype=torch.int8, device=scores.device)
    if length == 0:
        return tags, chain.new_zeros(sentences)
    alpha, pointers = chain[0], []
    for i in range(1, length):
        top, pointer = (alpha[:, :, None] + trans).max(1)
        alpha = torch.where((i < lengths)[:, None], (top + chain[i]).clamp(min=lowest), alpha)
        pointers.append(pointer)
    best, tag = alpha.max(1)
    feasible = best > lowest / 2
    best = best.where(feasible, lowest).where(lengths > 0, 0)
    for i in range(length - 1, -1, -1):
        inside = i < lengths
        tags[i] = tag.where(inside & feasible, -1)
        if i:
            tag = torch.where(inside, pointers[i - 1].gather(1, tag[:, None])[:, 0], tag)
    return tags, best


def _log_sum_exp(x: Tensor, dim: int) -> Tensor:
    """log sum exp, minus infinity where there is nothing but that."""
    top = x.amax(dim, keepdim=True)
    top = top.where(top > -float("inf"), 0)
    return (x - top).exp().sum(dim).log() + top.squeeze(dim)


def crf_marginals(
    scores: Tensor, trans: Tensor, lengths: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """log Z of each sentence [S], P(y_i = t) [L, S, T], and P(y_{i-1} = p, y_i = q) summed over all i > 0 [T, T].

    The arguments are those of `crf_viterbi`, floating. Forward and backward scores are logarithms whose largest is 0 at
    each position. Probabilities after the end of a sentence, and of a sentence without an allowed path, are 0.
    """
    length, sentences, count = scores.shape
    chain, trans, lowest = _chain(scores, trans, mask)
    nodes = torch.zeros_like(chain)
    edges = chain.new_zeros(sentences, count, count)
    log_z = chain.new_zeros(sentences)
    if length == 0 or sentences == 0:
        return log_z, nodes, edges.sum(0)
    alphas, alpha = [], chain[0]
    for i in range(length):
        inside = i < lengths
        if i:
            alpha = torch.where(inside[:, None], _log_sum_exp(alpha[:, :, None] + trans, 1) + chain[i], alpha)
        top = alpha.amax(1)
        top = top.where(inside & (top > lowest), 0)
        alpha = alpha - top[:, None]
        log_z = log_z + top
        alphas.append(alpha)
    log_z = (log_z + _log_sum_exp(alpha, 1)).where(lengths > 0, 0)
    feasible = log_z > lowest
    last = (alpha - _log_sum_exp(alpha, 1)[:, None]).exp()
    beta = torch.zeros_like(alpha)
    for i in range(length - 1, -1, -1):
        nodes[i] = last.where((feasible & (i == lengths - 1))[:, None], nodes[i])
        if i == 0:
            break
        inside = feasible & (i < lengths)
        after = trans + (chain[i] + beta)[:, None, :]
        pair = alphas[i - 1][:, :, None] + after
        pair = (pair - pair.amax((1, 2), keepdim=True)).exp()
        pair = (pair / pair.sum((1, 2), keepdim=True)).where(inside[:, None, None], 0)
        edges += pair
        nodes[i - 1] = pair.sum(2)
        beta_before = _log_sum_exp(after, 2)
        top = beta_before.amax(1, keepdim=True)
        beta = (beta_before - top).where(inside[:, None], 0)
    return log_z, nodes, edges.sum(0)


# --- training -------------------------------------------------------------------------------------------------------


def row_grad(ids: Tensor, grad: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
    """The gradient of each table row that occurs: [U, T], the sums of `grad` [N, T] over where it occurs.

    `order` lists places in `ids` [N, K] (n * K + k) sorted by the id there; those of row u are at offsets[u] to
    offsets[u + 1].
    """
    dtype = accumulator(grad.dtype)
    rows = grad.to(dtype)[order.to(torch.int64) // max(ids.shape[1], 1)]
    return torch.segment_reduce(rows, "sum", offsets=offsets.to(torch.int64), axis=0, initial=0).to(grad.dtype)


def adf_step(
    w: Tensor,
    eta: Tensor,
    grad: Tensor,
    count: Tensor,
    n: float,
    N: float,
    *,
    rows: Tensor | None = None,
    upper: float = 0.995,
    lower: float = 0.6,
    l2: float = 1.0,
) -> None:
    """One step of adaptive online gradient descent by the frequency of features (ADF), in place.

    if n > 0:  eta *= upper - (upper - lower) * count / n      the rates are due for an update
               w   -= eta * grad
    if n > 0:  w   -= eta * w * n / (N * l2^2)

    `w` is [V, T], `eta` and `count` are [V]: the rate of a row, and in how many of the n sentences since the last
    update it occurred. `grad` is [V, T], or with `rows` (distinct) [U, T], the gradient of these rows alone.
    `n` is 0 between updates; `N` is the number of sentences of an epoch.
    """
    if n > 0:
        eta.mul_(upper - count.to(eta.dtype) * ((upper - lower) / n))
    if rows is None:
        w.sub_(eta[:, None] * grad)
    else:
        rows = rows.to(torch.int64)
        w[rows] = w[rows] - eta[rows][:, None] * grad
    if n > 0:
        w.sub_(eta[:, None] * w * (n / (N * l2**2)))
