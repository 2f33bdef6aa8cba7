"""The operators in Triton: no atomics, so the same bits every time.

In the kernels `p_` is a pointer, `s_` a stride and `o_` an offset in elements; a capital is known when compiling.
Chains of at most FEW tags keep one lane per sentence and one register per tag: a Python tuple of T vectors. More tags
are a dimension of a block, padded to a power of two.
"""

# ruff: noqa: RUF005 (a kernel cannot unpack tuples into a tuple)
# mypy: disable-error-code="assignment,misc,var-annotated"

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from . import _reference

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor

HASH = tl.constexpr(_reference.HASH)
VALUE_BITS = tl.constexpr(_reference.VALUE_BITS)
VALUE_MASK = tl.constexpr((1 << _reference.VALUE_BITS) - 1)
LEFT_EDGE = tl.constexpr(_reference.LEFT_EDGE)
RIGHT_EDGE = tl.constexpr(_reference.RIGHT_EDGE)
UNIGRAMS = tl.constexpr(_reference.UNIGRAMS)
BIGRAMS = tl.constexpr(_reference.BIGRAMS)
FORBIDDEN = tl.constexpr(_reference.FORBIDDEN)
LOWEST = tl.constexpr(_reference.LOWEST)

FEW = 5  # up to so many tags are kept in registers
LANES = 32  # sentences of a program: one warp
CHUNK = 256  # positions that one lane takes of a long line
BLOCK = 256  # characters of a program


# Multiplications and additions stay two roundings, as the reference's: the same bits on every device.
EXACT = {"enable_fp_fusion": False}


def _on(x: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()


# --- features -------------------------------------------------------------------------------------------------------


@triton.jit
def _symbol(p_chars, at, start, end):  # type: ignore[no-untyped-def]
    symbol = tl.load(p_chars + at, mask=(at >= start) & (at < end), other=0).to(tl.int64)
    return tl.where(at < start, LEFT_EDGE, tl.where(at >= end, RIGHT_EDGE, symbol))


@triton.jit
def _probe(p_slots, key, active, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    slot = ((key * HASH) & 0xFFFFFFFF) >> (32 - BITS)
    value = tl.full(key.shape, -1, tl.int64)
    steps = tl.full((), 0, tl.int32)
    while (tl.max(active.to(tl.int32), 0) > 0) & (steps < (1 << BITS)):
        entry = tl.load(p_slots + slot, mask=active, other=-1)
        hit = active & (entry >= 0) & ((entry >> VALUE_BITS) == key)
        value = tl.where(hit, entry & VALUE_MASK, value)
        active = active & (entry >= 0) & ((entry >> VALUE_BITS) != key)
        slot = (slot + 1) & ((1 << BITS) - 1)
        steps += 1
    return value


@triton.jit
def _ngram_ids_kernel(  # type: ignore[no-untyped-def]
    p_chars, p_splits, p_slots, p_ids, n, rows, BITS: tl.constexpr, SKIP: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    # The last row that starts here or before, empty ones included: its start and its end.
    low = tl.zeros((BLOCK,), tl.int64)
    high = low + rows
    while tl.max((high - low).to(tl.int32), 0) > 1:
        middle = (low + high) // 2
        right = tl.load(p_splits + middle, mask=inside, other=0) <= at
        low = tl.where(right, middle, low)
        high = tl.where(right, high, middle)
    start = tl.load(p_splits + low, mask=inside, other=0)
    end = tl.load(p_splits + low + 1, mask=inside, other=0)
    symbols = ()
    for d in tl.static_range(5):
        symbol = _symbol(p_chars, at + (d - 2), start, end)
        symbols = symbols + (symbol,)
        tl.store(p_ids + d * n + at, tl.where(symbol > 0, UNIGRAMS * symbol + d, -1).to(tl.int32), mask=inside)
    for d in tl.static_range(BIGRAMS):
        row = _probe(p_slots, (symbols[d] << 16) | symbols[d + 1], inside, BITS)
        tl.store(p_ids + (UNIGRAMS + d) * n + at, tl.where(row >= 0, row + d, -1).to(tl.int32), mask=inside)
    if SKIP:
        row = _probe(p_slots + (1 << BITS), (symbols[1] << 16) | symbols[3], inside, BITS)
        tl.store(p_ids + (UNIGRAMS + BIGRAMS) * n + at, row.to(tl.int32), mask=inside)


def ngram_ids(chars: Tensor, row_splits: Tensor, keys: Tensor) -> Tensor:
    n, tables = chars.shape[0], keys.shape[0]
    ids = torch.empty((8 + tables, n), dtype=torch.int32, device=chars.device)
    if n:
        bits = keys.shape[1].bit_length() - 1
        splits = row_splits.to(torch.int64).contiguous()
        with _on(chars):
            _ngram_ids_kernel[(triton.cdiv(n, BLOCK),)](
                chars.contiguous(),
                splits,
                keys.contiguous(),
                ids,
                n,
                splits.shape[0] - 1,
                BITS=bits,
                SKIP=tables == 2,
                BLOCK=BLOCK,
                **EXACT,
            )
    return ids.t()


@triton.jit
def _emit_kernel(  # type: ignore[no-untyped-def]
    p_ids, p_table, p_sums, n, columns, s_n, s_k, T: tl.constexpr, TAGS: tl.constexpr, BLOCK: tl.constexpr
):
    SUM: tl.constexpr = p_sums.dtype.element_ty
    ADD: tl.constexpr = tl.float32 if SUM == tl.float16 or SUM == tl.bfloat16 else SUM
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tag = tl.arange(0, TAGS)[None, :]
    inside = at < n
    sums = tl.zeros((BLOCK, TAGS), ADD)
    k = tl.full((), 0, tl.int32)
    while k < columns:
        row = tl.load(p_ids + at * s_n + k.to(tl.int64) * s_k, mask=inside, other=-1).to(tl.int64)[:, None]
        weight = tl.load(p_table + row * T + tag, mask=(row >= 0) & (tag < T), other=0)
        sums += weight.to(ADD)
        k += 1
    tl.store(p_sums + at[:, None] * T + tag, sums.to(SUM), mask=inside[:, None] & (tag < T))


def emit(ids: Tensor, table: Tensor) -> Tensor:
    (n, columns), tags = ids.shape, table.shape[1]
    sums = torch.empty((n, tags), dtype=_reference.sum_dtype(table.dtype), device=table.device)
    if n:
        padded = triton.next_power_of_2(tags)
        block = max(1, 1024 // padded)
        with _on(ids):
            _emit_kernel[(triton.cdiv(n, block),)](
                ids, table.contiguous(), sums, n, columns, *ids.stride(), T=tags, TAGS=padded, BLOCK=block, **EXACT
            )
    return sums


# --- linear chains of few tags: one lane per sentence, or per chunk of a long line -----------------------------------


@triton.jit
def _minus_infinity(ADD: tl.constexpr):  # type: ignore[no-untyped-def]
    return FORBIDDEN if ADD == tl.int32 else -float("inf")


@triton.jit
def _settle(x):  # type: ignore[no-untyped-def]
    """Integers that came from a forbidden one are it again."""
    return tl.where(x <= FORBIDDEN // 2, FORBIDDEN, x) if x.dtype == tl.int32 else x


@triton.jit
def _load_trans(p_trans, T: tl.constexpr):  # type: ignore[no-untyped-def]
    trans = ()
    for k in tl.static_range(T * T):
        trans = trans + (tl.load(p_trans + k),)
    return trans


@triton.jit
def _load_scores(p_scores, p_mask, o, inside, T: tl.constexpr, ADD: tl.constexpr):  # type: ignore[no-untyped-def]
    scores = ()
    for t in tl.static_range(T):
        score = tl.load(p_scores + o + t, mask=inside, other=0).to(ADD)
        if p_mask is not None:
            allowed = tl.load(p_mask + o + t, mask=inside, other=1) != 0
            score = tl.where(allowed, score, _minus_infinity(ADD))
        scores = scores + (_settle(score),)
    return scores


@triton.jit
def _largest(x, T: tl.constexpr):  # type: ignore[no-untyped-def]
    top = x[0]
    for t in tl.static_range(1, T):
        top = tl.maximum(top, x[t])
    return top


@triton.jit
def _lanes(p_lengths, sentences, lanes, chunk, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """For each lane its number, its sentence and its positions. Lane c * sentences + s has chunk c of sentence s."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    sentence = lane % sentences
    length = tl.load(p_lengths + sentence, mask=lane < lanes, other=0)
    begin = (lane // sentences) * chunk
    end = tl.maximum(tl.minimum(length, begin + chunk), begin)
    return lane, sentence, length, begin, tl.where(lane < lanes, end, begin)


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    p_scores,
    p_mask,
    p_trans,
    p_lengths,
    p_starts,
    p_totals,
    p_pointers,
    p_maps,
    p_last,
    p_best,
    sentences,
    lanes,
    chunk,
    T: tl.constexpr,
    BITS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Viterbi's forward pass. `p_starts` holds the scores before a chunk, `p_maps` gets which tag before it leads to
    which at its end; both are None where a sentence is one chunk."""
    ADD: tl.constexpr = p_trans.dtype.element_ty
    lane, sentence, length, begin, end = _lanes(p_lengths, sentences, lanes, chunk, LANES)
    trans = _load_trans(p_trans, T)
    alpha = ()
    origin = ()
    for t in tl.static_range(T):
        alpha = alpha + (tl.zeros((LANES,), ADD),)
        origin = origin + (tl.full((LANES,), t, tl.int32),)
    total = tl.zeros((LANES,), tl.int64 if ADD == tl.int32 else ADD)
    if p_starts is not None:
        alpha = _load_scores(p_starts, None, lane.to(tl.int64) * T, lane < lanes, T, ADD)
        total = tl.load(p_totals + lane, mask=lane < lanes, other=0)
    longest = tl.max(end - begin, 0)
    j = tl.full((), 0, tl.int32)
    while j < longest:
        at = begin + j
        inside = at < end
        o = at.to(tl.int64) * sentences + sentence
        scores = _load_scores(p_scores, p_mask, o * T, inside, T, ADD)
        packed = tl.zeros((LANES,), tl.int32)
        after = ()
        origin_after = ()
        for y in tl.static_range(T):
            best = alpha[0] + trans[y]
            pointer = tl.zeros((LANES,), tl.int32)
            source = origin[0]
            for x in tl.static_range(1, T):
                candidate = alpha[x] + trans[x * T + y]
                better = candidate > best
                best = tl.where(better, candidate, best)
                pointer = tl.where(better, x, pointer)
                source = tl.where(better, origin[x], source)
            packed |= pointer << (BITS * y)
            best = _settle(_settle(tl.where(at == 0, 0, best)) + scores[y])
            after = after + (tl.where(inside, best, alpha[y]),)
            origin_after = origin_after + (tl.where(inside, source, origin[y]),)
        alpha = after
        origin = origin_after
        if ADD == tl.int32:
            top = _largest(alpha, T)
            top = tl.where(top > FORBIDDEN // 2, top, 0)
            total += top
            after = ()
            for y in tl.static_range(T):
                after = after + (_settle(alpha[y] - top),)
            alpha = after
        tl.store(p_pointers + o, packed.to(p_pointers.dtype.element_ty), mask=inside)
        j += 1

    if p_maps is not None:
        packed = tl.zeros((LANES,), tl.int32)
        for y in tl.static_range(T):
            packed |= origin[y] << (BITS * y)
        tl.store(p_maps + lane, packed, mask=lane < lanes)
    best = alpha[0]
    last = tl.zeros((LANES,), tl.int32)
    for y in tl.static_range(1, T):
        better = alpha[y] > best
        best = tl.where(better, alpha[y], best)
        last = tl.where(better, y, last)
    feasible = best > (FORBIDDEN // 2 if ADD == tl.int32 else -float("inf"))
    best = tl.where(feasible, total + best, LOWEST if ADD == tl.int32 else -float("inf"))
    final = (lane < lanes) & (((begin < length) & (end == length)) | ((begin == 0) & (length == 0)))
    tl.store(p_best + sentence, tl.where(length == 0, 0, best), mask=final)
    tl.store(p_last + sentence, tl.where(feasible & (length > 0), last, -1).to(tl.int8), mask=final)


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    p_pointers,
    p_lengths,
    p_last,
    p_tags,
    sentences,
    lanes,
    chunk,
    T: tl.constexpr,
    BITS: tl.constexpr,
    CHUNKED: tl.constexpr,
    LANES: tl.constexpr,
):
    """Follow the pointers, packed or (BITS = 0) one byte for each tag."""
    lane, sentence, _length, begin, end = _lanes(p_lengths, sentences, lanes, chunk, LANES)
    tag = tl.load(p_last + (lane if CHUNKED else sentence), mask=lane < lanes, other=-1).to(tl.int32)
    end = tl.where(tag >= 0, end, begin)
    j = tl.max(end - begin, 0) - 1
    while j >= 0:
        at = begin + j
        inside = at < end
        o = at.to(tl.int64) * sentences + sentence
        tl.store(p_tags + o, tag.to(tl.int8), mask=inside)
        if BITS == 0:
            tag = tl.where(inside, tl.load(p_pointers + o * T + tag, mask=inside & (at > 0), other=0).to(tl.int32), tag)
        else:
            packed = tl.load(p_pointers + o, mask=inside, other=0).to(tl.int32)
            tag = tl.where(inside, (packed >> (BITS * tl.maximum(tag, 0))) & ((1 << BITS) - 1), tag)
        j -= 1


@triton.jit
def _products_kernel(  # type: ignore[no-untyped-def]
    p_scores,
    p_mask,
    p_trans,
    p_lengths,
    p_products,
    sentences,
    lanes,
    chunk,
    T: tl.constexpr,
    LANES: tl.constexpr,
):
    """The best score of a chunk from each tag before it to each tag at its end: a product of max-plus matrices."""
    ADD: tl.constexpr = p_trans.dtype.element_ty
    lane, sentence, _length, begin, end = _lanes(p_lengths, sentences, lanes, chunk, LANES)
    trans = _load_trans(p_trans, T)
    product = ()
    for k in tl.static_range(T * T):
        product = product + (tl.full((LANES,), 0 if k // T == k % T else _minus_infinity(ADD), ADD),)
    longest = tl.max(end - begin, 0)
    j = tl.full((), 0, tl.int32)
    while j < longest:
        at = begin + j
        inside = at < end
        scores = _load_scores(p_scores, p_mask, (at.to(tl.int64) * sentences + sentence) * T, inside, T, ADD)
        after = ()
        for k in tl.static_range(T * T):
            best = product[k // T * T] + trans[k % T]
            for x in tl.static_range(1, T):
                best = tl.maximum(best, product[k // T * T + x] + trans[x * T + k % T])
            best = _settle(_settle(tl.where(at == 0, 0, best)) + scores[k % T])
            after = after + (tl.where(inside, best, product[k]),)
        product = after
        j += 1
    for k in tl.static_range(T * T):
        tl.store(p_products + lane.to(tl.int64) * (T * T) + k, product[k], mask=lane < lanes)


@triton.jit
def _starts_kernel(p_products, p_starts, p_totals, sentences, chunks, T: tl.constexpr, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """The scores before each chunk."""
    ADD: tl.constexpr = p_products.dtype.element_ty
    sentence = tl.program_id(0) * LANES + tl.arange(0, LANES)
    live = sentence < sentences
    alpha = ()
    for _t in tl.static_range(T):
        alpha = alpha + (tl.zeros((LANES,), ADD),)
    total = tl.zeros((LANES,), tl.int64 if ADD == tl.int32 else ADD)
    c = tl.full((), 0, tl.int32)
    while c < chunks:
        o = c.to(tl.int64) * sentences + sentence
        tl.store(p_totals + o, total, mask=live)
        for y in tl.static_range(T):
            tl.store(p_starts + o * T + y, alpha[y], mask=live)
        product = _load_scores(p_products, None, o * (T * T), live, T * T, ADD)
        after = ()
        for y in tl.static_range(T):
            best = alpha[0] + product[y]
            for x in tl.static_range(1, T):
                best = tl.maximum(best, alpha[x] + product[x * T + y])
            after = after + (_settle(best),)
        alpha = after
        if ADD == tl.int32:
            top = _largest(alpha, T)
            top = tl.where(top > FORBIDDEN // 2, top, 0)
            total += top
            after = ()
            for y in tl.static_range(T):
                after = after + (_settle(alpha[y] - top),)
            alpha = after
        c += 1


@triton.jit
def _ends_kernel(p_maps, p_lengths, p_last, p_ends, sentences, chunks, chunk, BITS: tl.constexpr, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """The tag at the end of each chunk, -1 behind the sentence."""
    sentence = tl.program_id(0) * LANES + tl.arange(0, LANES)
    live = sentence < sentences
    length = tl.load(p_lengths + sentence, mask=live, other=0)
    tag = tl.load(p_last + sentence, mask=live, other=-1).to(tl.int32)
    c = tl.full((), 0, tl.int32) + chunks - 1
    while c >= 0:
        reached = (c * chunk < length) & (tag >= 0)
        tl.store(p_ends + c * sentences + sentence, tl.where(reached, tag, -1).to(tl.int8), mask=live)
        packed = tl.load(p_maps + c * sentences + sentence, mask=live, other=0)
        tag = tl.where(reached, (packed >> (BITS * tl.maximum(tag, 0))) & ((1 << BITS) - 1), tag)
        c -= 1


@triton.jit
def _log_sum_exp(x, T: tl.constexpr):  # type: ignore[no-untyped-def]
    top = _largest(x, T)
    top = tl.where(top > -float("inf"), top, 0.0)
    total = tl.exp(x[0] - top)
    for t in tl.static_range(1, T):
        total += tl.exp(x[t] - top)
    return tl.log(total) + top


@triton.jit
def _marginals_kernel(  # type: ignore[no-untyped-def]
    p_scores, p_mask, p_trans, p_lengths, p_log_z, p_nodes, p_edges, sentences, T: tl.constexpr, LANES: tl.constexpr
):
    """Forward, which leaves its logarithms in `p_nodes`, then backward."""
    ADD: tl.constexpr = p_trans.dtype.element_ty
    sentence = tl.program_id(0) * LANES + tl.arange(0, LANES)
    length = tl.load(p_lengths + sentence, mask=sentence < sentences, other=0)
    trans = _load_trans(p_trans, T)
    log_z = tl.zeros((LANES,), ADD)
    alpha = ()
    edges = ()
    for _t in tl.static_range(T):
        alpha = alpha + (tl.zeros((LANES,), ADD),)
    for _k in tl.static_range(T * T):
        edges = edges + (tl.zeros((LANES,), ADD),)
    longest = tl.max(length, 0)
    i = tl.full((), 0, tl.int32)
    while i < longest:
        inside = i < length
        o = (i.to(tl.int64) * sentences + sentence) * T
        scores = _load_scores(p_scores, p_mask, o, inside, T, ADD)
        after = ()
        for y in tl.static_range(T):
            terms = ()
            for x in tl.static_range(T):
                terms = terms + (alpha[x] + trans[x * T + y],)
            after = after + (tl.where(i == 0, 0.0, _log_sum_exp(terms, T)) + scores[y],)
        top = _largest(after, T)
        top = tl.where(inside & (top > -float("inf")), top, 0.0)
        log_z += top
        settled = ()
        for y in tl.static_range(T):
            value = tl.where(inside, after[y] - top, alpha[y])
            tl.store(p_nodes + o + y, value, mask=inside)
            settled = settled + (value,)
        alpha = settled
        i += 1

    rest = _log_sum_exp(alpha, T)
    log_z = tl.where(length > 0, log_z + rest, 0.0)
    feasible = log_z > -float("inf")
    tl.store(p_log_z + sentence, log_z, mask=sentence < sentences)
    tl.debug_barrier()
    beta = ()
    node = ()
    for y in tl.static_range(T):
        beta = beta + (tl.zeros((LANES,), ADD),)
        node = node + (tl.where(feasible, tl.exp(alpha[y] - tl.where(feasible, rest, 0.0)), 0.0),)
    i = longest - 1
    while i >= 0:
        inside = i < length
        o = (i.to(tl.int64) * sentences + sentence) * T
        for y in tl.static_range(T):
            tl.store(p_nodes + o + y, node[y], mask=inside)
        if i > 0:
            scores = _load_scores(p_scores, p_mask, o, inside, T, ADD)
            o_before = ((i - 1).to(tl.int64) * sentences + sentence) * T
            before = _load_scores(p_nodes, None, o_before, inside, T, ADD)
            pairs = ()
            beta_before = ()
            for x in tl.static_range(T):
                terms = ()
                for y in tl.static_range(T):
                    terms = terms + (trans[x * T + y] + (scores[y] + beta[y]),)
                    pairs = pairs + (before[x] + terms[y],)
                beta_before = beta_before + (_log_sum_exp(terms, T),)
            inside = inside & feasible
            top = _largest(pairs, T * T)
            top = tl.where(inside, top, 0.0)
            powers = ()
            total = tl.zeros((LANES,), ADD)
            for k in tl.static_range(T * T):
                powers = powers + (tl.exp(pairs[k] - top),)
                total += powers[k]
            total = tl.where(inside, total, 1.0)
            shares = ()
            for k in tl.static_range(T * T):
                shares = shares + (tl.where(inside, powers[k] / total, 0.0),)
            sums = ()
            for k in tl.static_range(T * T):
                sums = sums + (edges[k] + shares[k],)
            edges = sums
            top = _largest(beta_before, T)
            nodes = ()
            betas = ()
            for x in tl.static_range(T):
                share = shares[x * T]
                for y in tl.static_range(1, T):
                    share += shares[x * T + y]
                nodes = nodes + (tl.where(inside, share, node[x]),)
                betas = betas + (tl.where(inside, beta_before[x] - top, beta[x]),)
            node = nodes
            beta = betas
        i -= 1
    for k in tl.static_range(T * T):
        tl.store(p_edges + tl.program_id(0) * (T * T) + k, tl.sum(edges[k], 0))


# --- linear chains of many tags: a block of sentences by tags ---------------------------------------------------------


@triton.jit
def _wide_trans(p_trans, T: tl.constexpr, TAGS: tl.constexpr, ADD: tl.constexpr):  # type: ignore[no-untyped-def]
    x = tl.arange(0, TAGS)[:, None]
    y = tl.arange(0, TAGS)[None, :]
    return tl.load(p_trans + x * T + y, mask=(x < T) & (y < T), other=_minus_infinity(ADD))[None, :, :]


@triton.jit
def _wide_scores(p_scores, p_mask, o, inside, tag, T: tl.constexpr, ADD: tl.constexpr):  # type: ignore[no-untyped-def]
    o = o[:, None] + tag
    there = inside[:, None] & (tag < T)
    scores = tl.load(p_scores + o, mask=there, other=0).to(ADD)
    allowed = tag < T
    if p_mask is not None:
        allowed = allowed & (tl.load(p_mask + o, mask=there, other=1) != 0)
    return _settle(tl.where(allowed, scores, _minus_infinity(ADD)))


@triton.jit
def _wide_forward_kernel(  # type: ignore[no-untyped-def]
    p_scores,
    p_mask,
    p_trans,
    p_lengths,
    p_pointers,
    p_last,
    p_best,
    sentences,
    T: tl.constexpr,
    TAGS: tl.constexpr,
    LANES: tl.constexpr,
):
    ADD: tl.constexpr = p_trans.dtype.element_ty
    sentence = tl.program_id(0) * LANES + tl.arange(0, LANES)
    live = sentence < sentences
    length = tl.load(p_lengths + sentence, mask=live, other=0)
    tag = tl.arange(0, TAGS)[None, :]
    trans = _wide_trans(p_trans, T, TAGS, ADD)
    alpha = tl.where(tag < T, tl.zeros((LANES, TAGS), ADD), _minus_infinity(ADD)).to(ADD)
    total = tl.zeros((LANES,), tl.int64 if ADD == tl.int32 else ADD)
    longest = tl.max(length, 0)
    i = tl.full((), 0, tl.int32)
    while i < longest:
        inside = i < length
        o = (i.to(tl.int64) * sentences + sentence) * T
        scores = _wide_scores(p_scores, p_mask, o, inside, tag, T, ADD)
        best, pointer = tl.max(alpha[:, :, None] + trans, 1, return_indices=True)
        best = _settle(_settle(tl.where(i == 0, 0, best)) + scores)
        alpha = tl.where(inside[:, None], best, alpha)
        if ADD == tl.int32:
            top = tl.max(alpha, 1)
            top = tl.where(top > FORBIDDEN // 2, top, 0)
            total += top
            alpha = _settle(alpha - top[:, None])
        tl.store(p_pointers + o[:, None] + tag, pointer.to(tl.uint8), mask=inside[:, None] & (tag < T))
        i += 1
    best, last = tl.max(alpha, 1, return_indices=True)
    feasible = best > (FORBIDDEN // 2 if ADD == tl.int32 else -float("inf"))
    best = tl.where(feasible, total + best, LOWEST if ADD == tl.int32 else -float("inf"))
    tl.store(p_best + sentence, tl.where(length == 0, 0, best), mask=live)
    tl.store(p_last + sentence, tl.where(feasible & (length > 0), last, -1).to(tl.int8), mask=live)


@triton.jit
def _wide_log_sum_exp(x, AXIS: tl.constexpr):  # type: ignore[no-untyped-def]
    top = tl.max(x, AXIS)
    top = tl.where(top > -float("inf"), top, 0.0)
    return tl.log(tl.sum(tl.exp(x - tl.expand_dims(top, AXIS)), AXIS)) + top


@triton.jit
def _wide_marginals_kernel(  # type: ignore[no-untyped-def]
    p_scores,
    p_mask,
    p_trans,
    p_lengths,
    p_log_z,
    p_nodes,
    p_edges,
    sentences,
    T: tl.constexpr,
    TAGS: tl.constexpr,
    LANES: tl.constexpr,
):
    ADD: tl.constexpr = p_trans.dtype.element_ty
    sentence = tl.program_id(0) * LANES + tl.arange(0, LANES)
    length = tl.load(p_lengths + sentence, mask=sentence < sentences, other=0)
    tag = tl.arange(0, TAGS)[None, :]
    trans = _wide_trans(p_trans, T, TAGS, ADD)
    log_z = tl.zeros((LANES,), ADD)
    alpha = tl.where(tag < T, tl.zeros((LANES, TAGS), ADD), -float("inf")).to(ADD)
    longest = tl.max(length, 0)
    i = tl.full((), 0, tl.int32)
    while i < longest:
        inside = i < length
        o = (i.to(tl.int64) * sentences + sentence) * T
        scores = _wide_scores(p_scores, p_mask, o, inside, tag, T, ADD)
        after = tl.where(i == 0, 0.0, _wide_log_sum_exp(alpha[:, :, None] + trans, 1)) + scores
        top = tl.max(after, 1)
        top = tl.where(inside & (top > -float("inf")), top, 0.0)
        log_z += top
        alpha = tl.where(inside[:, None], after - top[:, None], alpha)
        tl.store(p_nodes + o[:, None] + tag, alpha, mask=inside[:, None] & (tag < T))
        i += 1

    rest = _wide_log_sum_exp(alpha, 1)
    log_z = tl.where(length > 0, log_z + rest, 0.0)
    feasible = log_z > -float("inf")
    tl.store(p_log_z + sentence, log_z, mask=sentence < sentences)
    tl.debug_barrier()
    beta = tl.zeros((LANES, TAGS), ADD)
    node = tl.where(feasible[:, None], tl.exp(alpha - tl.where(feasible, rest, 0.0)[:, None]), 0.0)
    edges = tl.zeros((LANES, TAGS, TAGS), ADD)
    i = longest - 1
    while i >= 0:
        inside = i < length
        o = (i.to(tl.int64) * sentences + sentence) * T
        o_before = ((i - 1).to(tl.int64) * sentences + sentence) * T
        tl.store(p_nodes + o[:, None] + tag, node, mask=inside[:, None] & (tag < T))
        scores = _wide_scores(p_scores, p_mask, o, inside, tag, T, ADD)
        paired = inside & (o_before >= 0)
        before = _wide_scores(p_nodes, None, o_before, paired, tag, T, ADD)
        after = trans + (scores + beta)[:, None, :]
        pairs = before[:, :, None] + after
        inside = paired & feasible
        top = tl.where(inside, tl.max(tl.max(pairs, 2), 1), 0.0)
        powers = tl.exp(pairs - top[:, None, None])
        total = tl.where(inside, tl.sum(tl.sum(powers, 2), 1), 1.0)
        shares = tl.where(inside[:, None, None], powers / total[:, None, None], 0.0)
        edges += shares
        node = tl.where(inside[:, None], tl.sum(shares, 2), node)
        beta_before = _wide_log_sum_exp(after, 2)
        beta = tl.where(inside[:, None], beta_before - tl.max(beta_before, 1)[:, None], beta)
        beta = tl.where(tag < T, beta, 0.0)
        i -= 1
    x = tl.arange(0, TAGS)[:, None]
    p_edges += tl.program_id(0) * (T * T)
    tl.store(p_edges + x * T + tag, tl.sum(edges, 0), mask=(x < T) & (tag < T))


# --- linear chains: launches ------------------------------------------------------------------------------------------


def _arguments(
    scores: Tensor, trans: Tensor, lengths: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Contiguous tensors, of dtypes that the kernels add in."""
    if scores.dtype.is_floating_point:
        trans = trans.to(_reference.accumulator(scores.dtype))
    else:
        if scores.dtype == torch.int64:
            scores = scores.clamp(min=_reference.FORBIDDEN).to(torch.int32)
        trans = trans.clamp(min=_reference.FORBIDDEN).to(torch.int32) if trans.dtype == torch.int64 else trans.int()
    return (
        scores.contiguous(),
        None if mask is None else mask.contiguous().view(torch.uint8),
        trans.contiguous(),
        lengths.to(torch.int32).contiguous(),
    )


def _warps(block: int) -> int:
    return min(8, max(1, block // 256))


def crf_viterbi(scores: Tensor, trans: Tensor, lengths: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    (length, sentences, count), device = scores.shape, scores.device
    tags = torch.full((length, sentences), -1, dtype=torch.int8, device=device)
    best = torch.zeros(sentences, dtype=_reference.accumulator(scores.dtype), device=device)
    if length == 0 or sentences == 0:
        return tags, best
    given = _arguments(scores, trans, lengths, mask)
    long_lines = count <= FEW and sentences <= LANES and length >= 16 * CHUNK
    with _on(scores):
        if long_lines:
            _scan(*given, tags, best)
        else:
            _walk(*given, tags, best)
    return tags, best


def _pointer_format(count: int) -> tuple[torch.dtype, int]:
    """How the predecessors of all tags are kept: packed to so many bits each, or one byte each."""
    return (torch.uint8, 2) if count <= 4 else (torch.int16, 3) if count <= FEW else (torch.uint8, 0)


def _walk(scores: Tensor, mask: Tensor | None, trans: Tensor, lengths: Tensor, tags: Tensor, best: Tensor) -> None:
    """From left to right and back, all sentences at once."""
    length, sentences, count = scores.shape
    dtype, bits = _pointer_format(count)
    shape = (length, sentences) if bits else (length, sentences, count)
    pointers = torch.empty(shape, dtype=dtype, device=scores.device)
    last = torch.empty(sentences, dtype=torch.int8, device=scores.device)
    grid = (triton.cdiv(sentences, LANES),)
    if bits:
        starts = totals = maps = None
        _forward_kernel[grid](
            *(scores, mask, trans, lengths, starts, totals, pointers, maps, last, best),
            *(sentences, sentences, length),
            T=count,
            BITS=bits,
            LANES=LANES,
            num_warps=1,
            **EXACT,
        )
    else:
        padded = triton.next_power_of_2(count)
        lanes = max(1, min(16, 4096 // padded**2))
        _wide_forward_kernel[(triton.cdiv(sentences, lanes),)](
            *(scores, mask, trans, lengths, pointers, last, best, sentences),
            T=count,
            TAGS=padded,
            LANES=lanes,
            num_warps=_warps(lanes * padded**2),
            **EXACT,
        )
    _backward_kernel[grid](
        *(pointers, lengths, last, tags, sentences, sentences, length),
        T=count,
        BITS=bits,
        CHUNKED=False,
        LANES=LANES,
        num_warps=1,
        **EXACT,
    )


def _scan(scores: Tensor, mask: Tensor | None, trans: Tensor, lengths: Tensor, tags: Tensor, best: Tensor) -> None:
    """Long lines, chunk by chunk at once: products of max-plus matrices give the scores before each chunk, then each
    chunk is walked from there, so that ties fall as they do from left to right."""
    (length, sentences, count), device = scores.shape, scores.device
    dtype, bits = _pointer_format(count)
    chunks = triton.cdiv(length, CHUNK)
    lanes = chunks * sentences
    products = torch.empty((lanes, count * count), dtype=trans.dtype, device=device)
    starts = torch.empty((lanes, count), dtype=trans.dtype, device=device)
    totals = torch.empty(lanes, dtype=best.dtype, device=device)
    pointers = torch.empty((length, sentences), dtype=dtype, device=device)
    maps = torch.empty(lanes, dtype=torch.int32, device=device)
    last = torch.empty(sentences, dtype=torch.int8, device=device)
    ends = torch.empty(lanes, dtype=torch.int8, device=device)
    by_chunk, by_sentence = (triton.cdiv(lanes, LANES),), (triton.cdiv(sentences, LANES),)
    size: dict[str, Any] = {"LANES": LANES, "num_warps": 1, **EXACT}
    _products_kernel[by_chunk](scores, mask, trans, lengths, products, sentences, lanes, CHUNK, T=count, **size)
    _starts_kernel[by_sentence](products, starts, totals, sentences, chunks, T=count, **size)
    _forward_kernel[by_chunk](
        *(scores, mask, trans, lengths, starts, totals, pointers, maps, last, best),
        *(sentences, lanes, CHUNK),
        T=count,
        BITS=bits,
        **size,
    )
    _ends_kernel[by_sentence](maps, lengths, last, ends, sentences, chunks, CHUNK, BITS=bits, **size)
    _backward_kernel[by_chunk](
        *(pointers, lengths, ends, tags, sentences, lanes, CHUNK), T=count, BITS=bits, CHUNKED=True, **size
    )


def crf_marginals(
    scores: Tensor, trans: Tensor, lengths: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    (length, sentences, count), device = scores.shape, scores.device
    dtype = _reference.accumulator(scores.dtype)
    log_z = torch.zeros(sentences, dtype=dtype, device=device)
    nodes = torch.zeros(scores.shape, dtype=dtype, device=device)
    if length == 0 or sentences == 0:
        return log_z, nodes, torch.zeros((count, count), dtype=dtype, device=device)
    scores, mask, trans, lengths = _arguments(scores, trans, lengths, mask)
    padded = triton.next_power_of_2(count)
    lanes = LANES if count <= FEW else max(1, min(16, 4096 // padded**2))
    programs = triton.cdiv(sentences, lanes)
    edges = torch.empty((programs, count, count), dtype=dtype, device=device)
    given = (scores, mask, trans, lengths, log_z, nodes, edges, sentences)
    with _on(scores):
        if count <= FEW:
            _marginals_kernel[(programs,)](*given, T=count, LANES=lanes, num_warps=1, **EXACT)
        else:
            warps = _warps(lanes * padded**2)
            _wide_marginals_kernel[(programs,)](*given, T=count, TAGS=padded, LANES=lanes, num_warps=warps, **EXACT)
    return log_z, nodes, edges.sum(0)


# --- training -------------------------------------------------------------------------------------------------------


@triton.jit
def _row_grad_kernel(  # type: ignore[no-untyped-def]
    p_grad,
    p_order,
    p_offsets,
    p_sums,
    columns,
    T: tl.constexpr,
    TAGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    SUM: tl.constexpr = p_sums.dtype.element_ty
    ADD: tl.constexpr = tl.float64 if SUM == tl.float64 else tl.float32
    row = tl.program_id(0).to(tl.int64)
    tag = tl.arange(0, TAGS)[None, :]
    o = tl.load(p_offsets + row)
    end = tl.load(p_offsets + row + 1)
    sums = tl.zeros((BLOCK, TAGS), ADD)
    while o < end:
        place = o + tl.arange(0, BLOCK)
        at = tl.load(p_order + place, mask=place < end, other=0).to(tl.int64) // columns
        grad = tl.load(p_grad + at[:, None] * T + tag, mask=(place < end)[:, None] & (tag < T), other=0)
        sums += grad.to(ADD)
        o += BLOCK
    total = tl.sum(sums, 0)[None, :]
    tl.store(p_sums + row * T + tag, total.to(SUM), mask=tag < T)


def row_grad(ids: Tensor, grad: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
    rows, tags = offsets.shape[0] - 1, grad.shape[1]
    sums = grad.new_empty((rows, tags))
    if rows:
        padded = triton.next_power_of_2(tags)
        with _on(grad):
            _row_grad_kernel[(rows,)](
                *(grad.contiguous(), order.contiguous(), offsets.to(torch.int64).contiguous(), sums, ids.shape[1]),
                T=tags,
                TAGS=padded,
                BLOCK=max(8, 128 // padded),
                num_warps=1,
                **EXACT,
            )
    return sums


@triton.jit
def _adf_kernel(  # type: ignore[no-untyped-def]
    p_w,
    p_eta,
    p_grad,
    p_count,
    p_rows,
    n,
    upper,
    slope,
    decay,
    T: tl.constexpr,
    TAGS: tl.constexpr,
    UPDATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n
    row = place if p_rows is None else tl.load(p_rows + place, mask=inside, other=0).to(tl.int64)
    tag = tl.arange(0, TAGS)[None, :]
    there = inside[:, None] & (tag < T)
    eta = tl.load(p_eta + row, mask=inside, other=0)
    if UPDATE:
        eta *= upper - tl.load(p_count + row, mask=inside, other=0).to(tl.float32) * slope
        tl.store(p_eta + row, eta, mask=inside)
    grad = tl.load(p_grad + place[:, None] * T + tag, mask=there, other=0)
    w = tl.load(p_w + row[:, None] * T + tag, mask=there, other=0)
    w -= eta[:, None] * grad
    if UPDATE:
        w -= eta[:, None] * w * decay
    tl.store(p_w + row[:, None] * T + tag, w, mask=there)


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
    if w.dtype != torch.float32 or eta.dtype != torch.float32 or not (w.is_contiguous() and eta.is_contiguous()):
        # Scalars are float32 in a kernel: doubles, for checks only, take the reference.
        return _reference.adf_step(w, eta, grad, count, n, N, rows=rows, upper=upper, lower=lower, l2=l2)
    if rows is not None and n > 0:
        grad, rows = torch.zeros_like(w).index_copy_(0, rows.to(torch.int64), grad.to(w.dtype)), None
    size, tags = (w.shape[0] if rows is None else rows.shape[0]), w.shape[1]
    if size:
        padded = triton.next_power_of_2(tags)
        block = max(1, 1024 // padded)
        with _on(w):
            _adf_kernel[(triton.cdiv(size, block),)](
                *(w, eta, grad.to(w.dtype).contiguous(), count.contiguous(), rows, size),
                *(float(upper), (upper - lower) / n if n > 0 else 0.0, n / (N * l2**2)),
                T=tags,
                TAGS=padded,
                UPDATE=n > 0,
                BLOCK=block,
                **EXACT,
            )
    return None
