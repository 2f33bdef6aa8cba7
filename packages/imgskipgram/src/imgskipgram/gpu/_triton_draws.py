"""The samples in Triton: bit for bit those of the C++ core, found for all words of a launch at once.

In the kernels `p_` is a pointer and a capital is known when compiling. Samples are made before the steps that use them,
not in between: a step is a chain of waits for memory, and the alias table would be two more of them.
"""

# mypy: disable-error-code="assignment,misc,untyped-decorator"

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

ALWAYS = tl.constexpr(_reference.ALWAYS)
TRIES = tl.constexpr(_reference.TRIES)
IMAGE_STREAM = tl.constexpr(_reference.IMAGE_STREAM)
NONE = tl.constexpr(_reference.NONE)

OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}
BLOCK = 256  # words of a program; fewer where each has negatives
VARY = ["n", "sentences", "window", "images", "seed", "epoch", "block"]  # no new code for new values


def on(x: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()


# --- in the kernels -------------------------------------------------------------------------------------------------


@triton.jit
def _sentence_of(p_offsets, sentences, at, inside):  # type: ignore[no-untyped-def]
    """The last sentence that begins at a place or before it."""
    low = tl.zeros_like(at)
    high = low + sentences
    while tl.max(high - low) > 1:
        middle = (low + high) // 2
        right = tl.load(p_offsets + middle, mask=inside, other=0) <= at
        low = tl.where(right, middle, low)
        high = tl.where(right, high, middle)
    return low


@triton.jit
def _words(seed, epoch, sentence, position, stream):  # type: ignore[no-untyped-def]
    middle = ((sentence >> 32) & 0xFFFF).to(tl.uint32) | (epoch.to(tl.uint32) << 16)
    zero = tl.zeros_like(position + stream).to(tl.uint32)
    return tl.philox(
        seed, zero + position.to(tl.uint32), zero + sentence.to(tl.uint32), zero + middle, zero + stream.to(tl.uint32)
    )


@triton.jit
def _noise(p_threshold, p_alias, vocabulary, seed, epoch, sentence, position, j, asked):  # type: ignore[no-untyped-def]
    a, b, c, d = _words(seed, epoch, sentence, position, 1 + j // 2)
    even = j % 2 == 0
    index = tl.umulhi(tl.where(even, a, c), tl.zeros_like(a) + vocabulary.to(tl.uint32))
    below = tl.where(even, b, d) < tl.load(p_threshold + index, mask=asked, other=0)
    other = tl.load(p_alias + index, mask=asked & (below == 0), other=0)
    return tl.where(below, index, other).to(tl.int32)


@triton.jit
def _image(images, seed, epoch, sentence, position, j):  # type: ignore[no-untyped-def]
    a, _, c, _ = _words(seed, epoch, sentence, position, 1 + j // 2 + IMAGE_STREAM)
    return tl.umulhi(tl.where(j % 2 == 0, a, c), tl.zeros_like(a) + images.to(tl.uint32))


# --- kernels --------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=VARY)
def _select_kernel(  # type: ignore[no-untyped-def]
    p_ids,
    p_offsets,
    p_keep,
    p_kept,
    p_width,
    p_sentence,
    n: tl.int64,
    sentences: tl.int64,
    window: tl.int64,
    seed: tl.int64,
    epoch: tl.int64,
    block: tl.int64,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    sentence = _sentence_of(p_offsets, sentences, at, inside)
    position = at - tl.load(p_offsets + sentence, mask=inside, other=0)
    first, second, _, _ = _words(seed, epoch, sentence + block, position, tl.zeros_like(at))
    keep = tl.load(p_keep + tl.load(p_ids + at, mask=inside, other=0), mask=inside, other=0)
    width = 1 + tl.umulhi(second, tl.zeros_like(second) + window.to(tl.uint32)).to(tl.int32)
    tl.store(p_kept + at, ((keep == ALWAYS) | (first < keep)).to(tl.int32), mask=inside)
    tl.store(p_width + at, width, mask=inside)
    tl.store(p_sentence + at, sentence.to(tl.int32), mask=inside)


@triton.jit(do_not_specialize=[*VARY, "vocabulary"])
def _compact_kernel(  # type: ignore[no-untyped-def]
    p_ids,
    p_offsets,
    p_kept,
    p_width,
    p_sentence,
    p_through,
    p_threshold,
    p_alias,
    p_place,
    p_words,
    p_left,
    p_right,
    p_negative,
    p_count,
    n: tl.int64,
    vocabulary: tl.int64,
    seed: tl.int64,
    epoch: tl.int64,
    block: tl.int64,
    NEGATIVE: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Words that are kept move together, by how many are kept up to each place: `p_through`."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    kept = tl.load(p_kept + at, mask=at < n, other=0) > 0
    rank = tl.load(p_through + at, mask=kept, other=1) - 1
    sentence = tl.load(p_sentence + at, mask=kept, other=0).to(tl.int64)
    width = tl.load(p_width + at, mask=kept, other=0)
    begin = tl.load(p_offsets + sentence, mask=kept, other=0)
    end = tl.load(p_offsets + sentence + 1, mask=kept, other=1)
    first = tl.load(p_through + begin - 1, mask=kept & (begin > 0), other=0)
    last = tl.load(p_through + end - 1, mask=kept, other=0)
    tl.store(p_place + rank, at.to(tl.int32), mask=kept)
    target = tl.load(p_ids + at, mask=kept, other=0).to(tl.int32)
    tl.store(p_words + rank, target, mask=kept)
    tl.store(p_left + rank, tl.maximum(first, rank - width), mask=kept)
    tl.store(p_right + rank, tl.minimum(last, rank + width + 1), mask=kept)
    if NEGATIVE:
        k = tl.arange(0, K)[None, :]
        asked = kept[:, None] & (k < NEGATIVE)
        target = target[:, None]
        number = (sentence + block)[:, None]
        position = (at - begin)[:, None]
        word = _noise(p_threshold, p_alias, vocabulary, seed, epoch, number, position, k, asked)
        again = asked & (word == target)
        attempt = tl.full((), 1, tl.int32)
        while (tl.max(again.to(tl.int32)) > 0) & (attempt < TRIES):
            j = attempt * NEGATIVE + k
            word = tl.where(
                again, _noise(p_threshold, p_alias, vocabulary, seed, epoch, number, position, j, again), word
            )
            again = again & (word == target)
            attempt += 1
        word = tl.where(again, NONE, word)
        count = tl.zeros_like(word)
        for q in range(NEGATIVE):
            same = word == tl.sum(tl.where(k == q, word, 0), 1)[:, None]
            count = tl.where(same & (k > q), -NEGATIVE, count + same.to(tl.int32))
        row = rank.to(tl.int64)[:, None] * NEGATIVE + k
        tl.store(p_negative + row, word, mask=asked)
        tl.store(p_count + row, tl.where(again, 0, tl.maximum(count, 0)), mask=asked)


@triton.jit(do_not_specialize=VARY)
def _pictures_kernel(  # type: ignore[no-untyped-def]
    p_place,
    p_words,
    p_offsets,
    p_image_ptr,
    p_image_ids,
    p_positive,
    p_negative,
    n: tl.int64,
    sentences: tl.int64,
    images: tl.int64,
    seed: tl.int64,
    epoch: tl.int64,
    block: tl.int64,
    NEGATIVE: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rank = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at = tl.load(p_place + rank, mask=rank < n, other=NONE).to(tl.int64)
    word = tl.load(p_words + rank, mask=at >= 0, other=0).to(tl.int64)
    begin = tl.load(p_image_ptr + word, mask=at >= 0, other=0)
    own = tl.load(p_image_ptr + word + 1, mask=at >= 0, other=0) - begin
    grounded = (own > 0) & (own < images)
    if tl.max(grounded.to(tl.int32)) > 0:
        sentence = _sentence_of(p_offsets, sentences, at, grounded)
        position = at - tl.load(p_offsets + sentence, mask=grounded, other=0)
        number = sentence + block
        words = _words(seed, epoch, number, position, tl.zeros_like(at) + IMAGE_STREAM)
        chosen = begin + tl.umulhi(words[0], own.to(tl.uint32)).to(tl.int64)
        positive = tl.load(p_image_ids + chosen, mask=grounded, other=0).to(tl.int32)
        tl.store(p_positive + rank, tl.where(grounded, positive, NONE), mask=rank < n)

        k = tl.arange(0, K)[None, :].to(tl.int64)
        missing = grounded[:, None] & (k < NEGATIVE)
        image = tl.full((BLOCK, K), NONE, tl.int32)
        attempt = tl.full((), 0, tl.int32)
        while (tl.max(missing.to(tl.int32)) > 0) & (attempt < TRIES):
            j = attempt * NEGATIVE + k
            drawn = _image(images, seed, epoch, number[:, None], position[:, None], j)
            # The last of the word's own images that is not above the one drawn, by halving.
            low = tl.zeros((BLOCK, K), tl.int64) + begin[:, None]
            high = low + own[:, None]
            while tl.max(tl.where(missing, high - low, 0)) > 1:
                middle = (low + high) // 2
                right = missing & (tl.load(p_image_ids + middle, mask=missing, other=0) <= drawn)
                low = tl.where(right, middle, low)
                high = tl.where(right, high, middle)
            shown = tl.load(p_image_ids + low, mask=missing, other=0) == drawn
            taken = missing & (shown == 0)
            image = tl.where(taken, drawn.to(tl.int32), image)
            missing = missing & shown
            attempt += 1
        tl.store(p_negative + rank[:, None] * NEGATIVE + k, image, mask=(rank < n)[:, None] & (k < NEGATIVE))


# --- launchers ------------------------------------------------------------------------------------------------------


def _shape(negative: int) -> tuple[int, int]:
    """Padded columns of a table of negatives, and the rows of a program."""
    columns = triton.next_power_of_2(max(negative, 1))
    return columns, max(1, BLOCK // columns)


def draws(
    ids: Tensor,
    offsets: Tensor,
    keep: Tensor,
    threshold: Tensor,
    alias: Tensor,
    window: int,
    negative: int,
    seed: int,
    epoch: int,
    block: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    n, sentences = ids.shape[0], offsets.shape[0] - 1
    kept, width, sentence = (torch.empty(n, dtype=torch.int32, device=ids.device) for _ in range(3))
    place, words, left, right = (torch.full_like(kept, NONE.value) for _ in range(4))
    negatives, counts = (kept.new_full((n, negative), NONE.value) for _ in range(2))
    if n:
        columns, rows = _shape(negative)
        with on(ids):
            _select_kernel[(triton.cdiv(n, BLOCK),)](
                ids,
                offsets,
                keep,
                kept,
                width,
                sentence,
                n,
                sentences,
                window,
                seed,
                epoch,
                block,
                BLOCK=BLOCK,
                **OPTIONS,
            )
            through = kept.cumsum(0, dtype=torch.int32)
            _compact_kernel[(triton.cdiv(n, rows),)](
                ids,
                offsets,
                kept,
                width,
                sentence,
                through,
                threshold,
                alias,
                place,
                words,
                left,
                right,
                negatives,
                counts,
                n,
                threshold.shape[0],
                seed,
                epoch,
                block,
                NEGATIVE=negative,
                K=columns,
                BLOCK=rows,
                **OPTIONS,
            )
    return place, words, left, right, negatives, counts


def pictures(
    place: Tensor,
    words: Tensor,
    offsets: Tensor,
    image_ptr: Tensor,
    image_ids: Tensor,
    images: int,
    negative: int,
    seed: int,
    epoch: int,
    block: int,
) -> tuple[Tensor, Tensor]:
    n = place.shape[0]
    positive, negatives = (place.new_full(shape, NONE.value) for shape in ((n,), (n, negative)))
    if n:
        columns, rows = _shape(negative)
        with on(place):
            _pictures_kernel[(triton.cdiv(n, rows),)](
                place,
                words,
                offsets,
                image_ptr,
                image_ids,
                positive,
                negatives,
                n,
                offsets.shape[0] - 1,
                images,
                seed,
                epoch,
                block,
                NEGATIVE=negative,
                K=columns,
                BLOCK=rows,
                **OPTIONS,
            )
    return positive, negatives
