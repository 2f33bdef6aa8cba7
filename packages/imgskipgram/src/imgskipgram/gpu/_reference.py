"""Every operator in plain PyTorch: the definition that the kernels are tested against, and what runs on other devices.

Sentence s of a launch has `ids[offsets[s]:offsets[s + 1]]`; offsets, int64, begin with 0 and end with the number N of
ids. Its number in the corpus, which decides its samples, is `block + s`. Ids and the tables of sub-sampling and noise
are uint32, as the C++ core has them. Words that are kept are counted from the left; what is found of them comes in
arrays as long as ids, with -1 after the last, so that nobody need wait to learn how many there are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

LOW = ALWAYS = 2**32 - 1
TRIES, IMAGE_STREAM = 8, 2**31
MARGIN, TEMPERATURE = 0.5, 0.07
NONE = -1


# --- samples --------------------------------------------------------------------------------------------------------


def philox(seed: int, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> list[Tensor]:
    """The four random words of Philox4x32-10, in int64, whose products wrap around without harm."""
    a, b, c, d = counter
    key = [seed & LOW, seed >> 32 & LOW]
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32 & LOW) ^ b ^ key[0], q & LOW, (p >> 32 & LOW) ^ d ^ key[1], p & LOW
        key = [(key[0] + 0x9E3779B9) & LOW, (key[1] + 0xBB67AE85) & LOW]
    return [a, b, c, d]


def _words(seed: int, epoch: int, sentence: Tensor, position: Tensor, stream: Tensor) -> list[Tensor]:
    middle = (sentence >> 32 & 0xFFFF) | (epoch << 16 & LOW)
    return philox(seed, (position, sentence & LOW, middle, stream))


def _half(words: list[Tensor], j: Tensor) -> tuple[Tensor, Tensor]:
    """The first two random words where j is even, the last two where it is odd."""
    return torch.where(j % 2 == 0, words[0], words[2]), torch.where(j % 2 == 0, words[1], words[3])


def _sentences(offsets: Tensor, at: Tensor) -> Tensor:
    """The sentence of each place."""
    return torch.searchsorted(offsets, at, right=True) - 1


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
    """What sub-sampling keeps, windows and negatives, int32.

    Of each word its place in ids, its number, the first word of its window and the one behind the last, [N]; negatives,
    of which -1 was dropped, and how often each counts: not again where it repeats, [N, negative].
    """
    ids, keep, threshold, alias = (x.to(torch.int64) for x in (ids, keep, threshold, alias))
    n = ids.numel()
    at = torch.arange(n, device=ids.device)
    sentence = _sentences(offsets, at)
    position, number = at - offsets[sentence], sentence + block
    first, second, _, _ = _words(seed, epoch, number, position, torch.zeros_like(at))
    kept = (keep[ids] == ALWAYS) | (first < keep[ids])
    width = 1 + (second * window >> 32)
    before = torch.nn.functional.pad(kept.cumsum(0), (1, 0))  # words kept before each place

    at, sentence, position, number, width = (x[kept] for x in (at, sentence, position, number, width))
    rank, words = before[at], ids[at]
    left = torch.maximum(before[offsets[sentence]], rank - width)
    right = torch.minimum(before[offsets[sentence + 1]], rank + width + 1)

    negatives = at.new_full((len(at), negative), NONE)
    k = torch.arange(negative, device=ids.device)
    for attempt in range(TRIES):
        j = attempt * negative + k
        r, s = _half(_words(seed, epoch, number[:, None], position[:, None], 1 + j // 2), j)
        index = r * threshold.numel() >> 32
        word = torch.where(s < threshold[index], index, alias[index])
        negatives = torch.where((negatives == NONE) & (word != words[:, None]), word, negatives)
    same = negatives[:, :, None] == negatives[:, None, :]
    again = same.tril(-1).any(2) | (negatives == NONE)
    counts = torch.where(again, 0, same.sum(2))
    place, words, left, right, negatives, counts = (_filled(x, n) for x in (at, words, left, right, negatives, counts))
    return place, words, left, right, negatives, counts


def _filled(x: Tensor, n: int) -> Tensor:
    out = x.new_full((n, *x.shape[1:]), NONE, dtype=torch.int32)
    out[: len(x)] = x
    return out


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
    """Of each word that is kept one of its own images, and others: int32 [N], [N, negative].

    Images of word w are `image_ids[image_ptr[w]:image_ptr[w + 1]]`, uint32, which rise. Words that no image or every
    image shows have -1, and so has what is past the last word, or an image that was dropped.
    """
    place, words, image_ids = (x.to(torch.int64) for x in (place, words, image_ids))
    if not image_ids.numel():
        return torch.full_like(place, NONE, dtype=torch.int32), place.new_full((len(place), negative), NONE).int()
    own = image_ptr.diff()
    known = torch.arange(len(own), device=place.device).repeat_interleave(own) * images + image_ids
    grounded = (words >= 0) & (own[words] > 0) & (own[words] < images)
    sentence = _sentences(offsets, place.clamp(min=0))
    position, number = (place - offsets[sentence]) & LOW, sentence + block
    first = _words(seed, epoch, number, position, torch.full_like(place, IMAGE_STREAM))[0]
    chosen = torch.where(grounded, image_ptr[words] + (first * own[words] >> 32), 0)
    positive = torch.where(grounded, image_ids[chosen], NONE)

    negatives = place.new_full((len(place), negative), NONE)
    k = torch.arange(negative, device=place.device)
    for attempt in range(TRIES):
        j = attempt * negative + k
        stream = IMAGE_STREAM + 1 + j // 2
        r, _ = _half(_words(seed, epoch, number[:, None], position[:, None], stream), j)
        image = r * images >> 32
        key = words[:, None] * images + image
        shown = known[torch.searchsorted(known, key).clamp(max=len(known) - 1)] == key
        negatives = torch.where((negatives == NONE) & grounded[:, None] & ~shown, image, negatives)
    return positive.int(), negatives.int()


# --- steps ----------------------------------------------------------------------------------------------------------


def pairs_(
    v: Tensor,
    u: Tensor,
    words: Tensor,
    left: Tensor,
    right: Tensor,
    negatives: Tensor,
    counts: Tensor,
    alpha: Tensor,
    first: int,
    last: int,
) -> Tensor:
    r"""Train v and u [V, S] on the pairs of the centres first to last - 1; the loss, float64 [].

    loss  sum_{centres w} sum_{contexts c} (-log s(u_w . v_c) - sum_n log s(-u_n . v_c))

    Centres and their contexts from the left, each step with what the one before it left, at the centre's rate alpha
    [N]. Arguments as `draws` gives them.
    """
    loss = torch.zeros((), dtype=torch.float64, device=v.device)
    for i in range(first, last):
        if words[i] == NONE:
            break
        used = counts[i] > 0
        outputs = torch.cat([words[i : i + 1], negatives[i][used]]).to(torch.int64)
        weight = torch.cat([counts.new_ones(1), counts[i][used]]).to(v.dtype)
        label = (torch.arange(len(outputs), device=v.device) == 0).to(v.dtype)
        for j in range(int(left[i]), int(right[i])):
            if j == i:
                continue
            context = int(words[j])
            x, y = v[context], u[outputs]
            f = y @ x
            g = alpha[i] * weight * (label - torch.sigmoid(f))
            u[outputs] += g[:, None] * x
            v[context] += g @ y
            loss += (weight * softplus(torch.where(label > 0, -f, f))).double().sum()
    return loss


def sgns_(
    v: Tensor,
    u: Tensor,
    ids: Tensor,
    offsets: Tensor,
    keep: Tensor,
    threshold: Tensor,
    alias: Tensor,
    window: int,
    negative: int,
    alpha: float,
    seed: int,
    epoch: int,
    block: int,
) -> Tensor:
    """Train v and u [V, S] on sentences, at one rate: `draws`, and `pairs_` of what it gives; the loss, float64 []."""
    drawn = draws(ids, offsets, keep, threshold, alias, window, negative, seed, epoch, block)[1:]
    rates = torch.full(ids.shape, alpha, dtype=v.dtype, device=v.device)
    return pairs_(v, u, *drawn, rates, 0, ids.shape[0])


def image_(
    v: Tensor, words: Tensor, positive: Tensor, negative: Tensor, z: Tensor, objective: str, weight: float, alpha: float
) -> Tensor:
    """Train the vectors v [V, S] of words [B] towards their images positive [B] and away from others negative [B, K],
    rows of z [M, S]: alpha * weight times the gradient of the objective; its sum, float64 [].

    Words of which positive is -1 are left out, and so are images -1 among the others.
    """
    loss = torch.zeros((), dtype=torch.float64, device=v.device)
    for b in (positive >= 0).nonzero()[:, 0].tolist():
        chosen = torch.cat([positive[b : b + 1], negative[b][negative[b] >= 0]]).to(torch.int64)
        word = int(words[b])
        step, own = _image_gradient(v[word], z[chosen].to(v.dtype), objective)
        v[word] += alpha * weight * step
        loss += own.double()
    return loss


def _image_gradient(v: Tensor, z: Tensor, objective: str) -> tuple[Tensor, Tensor]:
    """-dL/dv and L; z[0] is the own image."""
    first = (torch.arange(len(z), device=z.device) == 0).to(v.dtype)
    if objective == "nce":
        f = z @ v
        return (first - torch.sigmoid(f)) @ z, softplus(torch.where(first > 0, -f, f)).sum()
    unit, units = (torch.where(n > 0, x / n, 0) for x in (v, z) for n in [x.norm(dim=-1, keepdim=True)])
    cosine = units @ unit
    if objective == "margin":
        hinge = (1 - first) * (MARGIN - cosine[0] + cosine).clamp(min=0)
        g = -(hinge > 0).to(v.dtype)
        g[0], loss = -g.sum(), hinge.sum()
    else:
        e = torch.exp((cosine - cosine[0]) / TEMPERATURE)
        g, loss = (first - e / e.sum()) / TEMPERATURE, torch.log(e.sum())
    length = v.norm()
    step = g @ (units - cosine[:, None] * unit)
    return step / length if length > 0 else torch.zeros_like(v), loss
