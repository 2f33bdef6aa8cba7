"""The operators in plain PyTorch: the definition that their kernels are tested against."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MASK = 0xFFFFFFFF
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


# --- keys -----------------------------------------------------------------------------------------------------------


def key_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """The dtype in whose bits the magnitudes of a list are compared: that of all, or else one that holds all."""
    dtypes = {x.dtype for x in tensors}
    if len(dtypes) == 1:
        return dtypes.pop()
    return torch.float64 if torch.float64 in dtypes else torch.float32


def keys(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The bits of |x| as int64: they order as |x| does, and a NaN comes last."""
    bits = x.reshape(-1).to(dtype).view(_INTEGERS[dtype.itemsize]).to(torch.int64)
    return bits & ((1 << (8 * dtype.itemsize - 1)) - 1)


def magnitude(key: int, dtype: torch.dtype) -> float:
    """The |x| that has a key."""
    return torch.tensor(key, dtype=_INTEGERS[dtype.itemsize]).view(dtype).item()


def _power(x: Tensor, power: float) -> Tensor:
    """sgn(x) |x|^power in float64."""
    x = x.reshape(-1).double()
    return x.sign() * x.abs() ** power


def _device(tensors: Sequence[Tensor]) -> torch.device:
    return tensors[0].device if tensors else torch.device("cpu")


# --- gradients ------------------------------------------------------------------------------------------------------


def grad_stats(g: Sequence[Tensor]) -> Tensor:
    """Of each tensor: sum |g|, sum g^2, max |g|, how many are not zero, how many are not finite."""
    rows = []
    for x in g:
        y = x.reshape(-1).double()
        largest = y.abs().amax() if y.numel() else y.new_zeros(())
        counts = [y.count_nonzero().double(), (~y.isfinite()).sum().double()]
        rows.append(torch.stack([y.abs().sum(), y.square().sum(), largest, *counts]))
    return torch.stack(rows) if rows else torch.zeros(0, 5, dtype=torch.float64)


def power_sum(g: Sequence[Tensor], q: float, unit: float, key: int) -> Tensor:
    """Of each tensor: the sum of (|g| / unit)^q over the elements whose key is `key` or more."""
    dtype = key_dtype(g)
    sums = [((x.reshape(-1).double().abs() / unit) ** q)[keys(x, dtype) >= key].sum() for x in g]
    return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.float64)


def select(g: Sequence[Tensor], n: int) -> Tensor:
    """The key of the n-th largest magnitude of all tensors together, how many are above it, how many of those that have
    it belong to the n largest, and the path taken (0: this one)."""
    dtype = key_dtype(g)
    every = torch.cat([keys(x, dtype) for x in g])
    threshold = every.kthvalue(every.numel() - n + 1).values
    above = (every > threshold).sum()
    return torch.stack([threshold, above, n - above, torch.zeros_like(above)])


def collect(g: Sequence[Tensor], threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `select` selected: where each tensor starts among the selected, their places in it, their values.

    Of equal magnitudes the first in the order of tensors and elements are taken.
    """
    dtype = key_dtype(g)
    limit, _, ties, _ = threshold
    counts, places, values = [], [], []
    for x in g:
        k = keys(x, dtype)
        equal = k == limit
        chosen = (k > limit) | (equal & (equal.cumsum(0) <= ties))
        ties = ties - (chosen & equal).sum()
        place = chosen.nonzero().flatten()
        counts.append(place.numel())
        places.append(place)
        values.append(x.reshape(-1)[place].to(dtype))
    offsets = torch.tensor([0, *counts], device=_device(g)).cumsum(0)
    return offsets, torch.cat(places), torch.cat(values)


def top_n(g: Sequence[Tensor], n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `select` gives, and what `collect` then gives."""
    threshold = select(g, n)
    return threshold, *collect(g, threshold)


def key_histogram(g: Sequence[Tensor], prefix: int, prefix_bits: int, bits: int) -> tuple[Tensor, Tensor]:
    """Of the elements whose keys start with the `prefix_bits` bits `prefix`: how many have each value of the `bits`
    bits that follow, and the sums of their magnitudes."""
    dtype = key_dtype(g)
    rest = 8 * dtype.itemsize - 1 - prefix_bits - bits
    counts = torch.zeros(1 << bits, dtype=torch.int64, device=_device(g))
    sums = torch.zeros(1 << bits, dtype=torch.float64, device=_device(g))
    for x in g:
        k = keys(x, dtype)
        inside = (k >> (rest + bits)) == prefix
        place = (k[inside] >> rest) & ((1 << bits) - 1)
        counts.index_add_(0, place, torch.ones_like(place))
        sums.index_add_(0, place, x.reshape(-1)[inside].double().abs())
    return counts, sums


# --- weights --------------------------------------------------------------------------------------------------------


def _sum_of(w: Tensor, a: Tensor) -> Tensor:
    """w + a in float32, or in float64 for float64, rounded once into the dtype of w."""
    wide = torch.promote_types(w.dtype, torch.float32)
    return (w.to(wide) + a.to(wide)).to(w.dtype)


def journal_dtype(w: Sequence[Tensor]) -> torch.dtype:
    return _INTEGERS[max((x.element_size() for x in w), default=8)]


def apply_sparse_(w: Sequence[Tensor], offsets: Tensor, index: Tensor, delta: Tensor) -> Tensor:
    """w[index] += delta; the bits that were there."""
    dtype, journal = journal_dtype(w), []
    for x, first, last in zip(w, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        flat, place = x.view(-1), index[first:last]
        old = flat[place]
        journal.append(old.view(_INTEGERS[x.element_size()]).to(dtype))
        flat[place] = _sum_of(old, delta[first:last])
    return torch.cat(journal) if journal else torch.empty(0, dtype=dtype)


def restore_sparse_(w: Sequence[Tensor], offsets: Tensor, index: Tensor, journal: Tensor) -> None:
    for x, first, last in zip(w, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        bits = _INTEGERS[x.element_size()]
        x.view(-1).view(bits)[index[first:last]] = journal[first:last].to(bits)


def apply_dense_(
    w: Sequence[Tensor], base: Sequence[Tensor], g: Sequence[Tensor], scale: float, power: float
) -> Tensor:
    """w = base + scale sgn(g) |g|^power; how many elements are not as in `base`, and the p-norm of what was added,
    where power = 1 / (p - 1)."""
    p = math.inf if power == 0 else 1 + 1 / power
    changed = torch.zeros((), dtype=torch.float64, device=_device(w))
    size = torch.zeros_like(changed)
    for x, clean, grad in zip(w, base, g, strict=True):
        old = clean.reshape(-1)
        new = _sum_of(old, scale * _power(grad, power))
        moved = (new.double() - old.double()).abs()
        changed += (new != old).sum()
        if moved.numel():
            size = torch.maximum(size, moved.amax()) if p == math.inf else size + (moved**p).sum()
        x.view(-1).copy_(new)
    return torch.stack([changed, size if p == math.inf else size ** (1 / p)])


def lines(size: int) -> int:
    """The bytes rounded up to lines of a cache."""
    return -(-size // 64) * 64


def apply_backup_(w: Sequence[Tensor], g: Sequence[Tensor], scale: float, power: float) -> tuple[Tensor, Tensor]:
    """w += scale sgn(g) |g|^power: what `apply_dense_` says of it, and the bytes that were there, line by line."""
    backup = torch.zeros(sum(lines(x.numel() * x.element_size()) for x in w), dtype=torch.uint8, device=_device(w))
    for x, kept in _each_backup(w, backup):
        kept.copy_(x)
    return apply_dense_(w, w, g, scale, power), backup


def restore_backup_(w: Sequence[Tensor], backup: Tensor) -> None:
    for x, kept in _each_backup(w, backup):
        x.copy_(kept)


def _each_backup(w: Sequence[Tensor], backup: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The bytes of each tensor and where they are kept."""
    first = 0
    for x in w:
        content = x.view(-1).view(torch.uint8)
        yield content, backup[first : first + content.numel()]
        first += lines(content.numel())


_PIECE = 32768  # elements whose escapes can be found without those before
_TILE = 256  # elements whose codes are together: byte j has those of elements j, j + 64, j + 128, j + 192


def pieces(x: Tensor) -> int:
    return -(-x.numel() // _PIECE)


def code_bytes(x: Tensor) -> int:
    """The bytes of the codes of a tensor."""
    return -(-x.numel() // _TILE) * (_TILE // 4)


def _near(w: Tensor, a: Tensor) -> Tensor:
    """The bits of w - a, which are near to those of the weight that w was before."""
    return _sum_of(w, -a).view(_INTEGERS[w.element_size()])


def apply_compact_(
    w: Sequence[Tensor], g: Sequence[Tensor], scale: float, power: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """w += scale sgn(g) |g|^power: what `apply_dense_` says of it, and what undoes it.

    How far the bits of a weight were from those of round(w - a), in units of the last place, is its code of two bits:
    0, 1 for -1, 2 for 1, and 3 for any other, an escape. Of each piece of a tensor it is said where the escapes start
    among the bytes of all weights that escaped.
    """
    clean = [x.view(-1).clone() for x in w]
    summary = apply_dense_(w, w, g, scale, power)
    packed, counts, escaped = [], [], []
    for x, old, grad in zip(w, clean, g, strict=True):
        distance = old.view(_INTEGERS[x.element_size()]) - _near(x.view(-1), scale * _power(grad, power))
        code = torch.full_like(distance, 3, dtype=torch.uint8)
        for value, name in enumerate((0, -1, 1)):
            code[distance == name] = value
        quarters = code.new_zeros(4 * code_bytes(x))
        quarters[: code.numel()] = code
        quarters = quarters.view(-1, 4, _TILE // 4)
        packed.append((quarters[:, 0] | quarters[:, 1] << 2 | quarters[:, 2] << 4 | quarters[:, 3] << 6).flatten())
        counts += [int((part == 3).sum()) * x.element_size() for part in code.split(_PIECE) if part.numel()]
        escaped.append(old[code == 3].view(torch.uint8))
    starts = torch.tensor([0, *counts], device=_device(w)).cumsum(0)
    none = torch.empty(0, dtype=torch.uint8, device=_device(w))
    return summary, torch.cat([none, *packed]), starts, torch.cat([none, *escaped])


def restore_compact_(
    w: Sequence[Tensor],
    g: Sequence[Tensor],
    scale: float,
    power: float,
    codes: Tensor,
    starts: Tensor,
    bits: Tensor,
) -> None:
    first, piece = 0, 0
    for x, grad in zip(w, g, strict=True):
        size, count = code_bytes(x), pieces(x)
        quarters = codes[first : first + size].view(-1, 1, _TILE // 4)
        code = torch.cat([quarters >> shift & 3 for shift in (0, 2, 4, 6)], 1).flatten()[: x.numel()]
        near = _near(x.view(-1), scale * _power(grad, power))
        near += (code >> 1).to(near.dtype) - (code & 1).to(near.dtype)
        near[code == 3] = bits[starts[piece] : starts[piece + count]].clone().view(near.dtype)
        x.view(-1).copy_(near.view(x.dtype))
        first, piece = first + size, piece + count


def ascend_project_(
    a: Sequence[Tensor],
    g: Sequence[Tensor],
    step: float,
    power: float,
    threshold: Tensor,
    shrink: float,
    clip: float,
    scale: float,
) -> None:
    """a += step sgn(g) |g|^power; then zero but for what `threshold`, of `select`, keeps; |a| less `shrink`, at most
    `clip`, times `scale`."""
    dtype = key_dtype(a)
    limit, _, ties, _ = threshold
    for x, grad in zip(a, g, strict=True):
        moved = x.view(-1)
        if step:
            moved = (moved.double() + step * _power(grad, power)).to(x.dtype)
        k = keys(moved, dtype)
        equal = k == limit
        kept = (k > limit) | (equal & (equal.cumsum(0) <= ties))
        ties = ties - (kept & equal).sum()
        size = (moved.double().abs() - shrink).clamp(0, clip) * scale
        x.view(-1).copy_(torch.where(kept, moved.double().sign() * size, 0))


# --- chance ---------------------------------------------------------------------------------------------------------


def _product(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """The low and the high 32 bits of the product of 32-bit numbers."""
    return (a * b) & _MASK, ((a >> 16) * b + ((a & 0xFFFF) * b >> 16)) >> 16


def philox(counter: Tensor, stream: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four 32-bit words of Philox4x32-10 at counter (counter, stream) under the key `seed`, each of 64 bits."""
    high = torch.full_like(counter, stream)
    x = [counter & _MASK, counter >> 32 & _MASK, high & _MASK, high >> 32 & _MASK]
    key = [seed & _MASK, seed >> 32 & _MASK]
    for _ in range(10):
        low0, high0 = _product(x[0], 0xD2511F53)
        low1, high1 = _product(x[2], 0xCD9E8D57)
        x = [high1 ^ x[1] ^ key[0], low1, high0 ^ x[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B9) & _MASK, (key[1] + 0xBB67AE85) & _MASK]
    return x[0], x[1], x[2], x[3]


def _unit(x: Tensor) -> Tensor:
    """A 32-bit word as a number in (0, 1)."""
    return (x.double() + 0.5) * 2.0**-32


def _normal(counter: Tensor, stream: int, seed: int) -> Tensor:
    """Box and Muller's first number of each counter."""
    x, y, _, _ = philox(counter, stream, seed)
    return (-2 * _unit(x).log()).sqrt() * (2 * math.pi * _unit(y)).cos()


def _gamma(counter: Tensor, shape: float, seed: int) -> Tensor:
    """Gamma numbers of a shape of 1 or more, by Marsaglia and Tsang (2000): attempt k reads stream k + 1."""
    d = shape - 1 / 3
    c = 1 / math.sqrt(9 * d)
    out = torch.zeros_like(counter, dtype=torch.float64)
    open_, attempt = torch.arange(counter.numel(), device=counter.device), 1
    while open_.numel():
        where = counter[open_]
        x = _normal(where, attempt, seed)
        u = _unit(philox(where, attempt, seed)[2])
        v = (1 + c * x) ** 3
        taken = (v > 0) & (u.log() < 0.5 * x * x + d - d * v + d * v.clamp(min=1e-300).log())
        out[open_[taken]] = d * v[taken]
        open_, attempt = open_[~taken], attempt + 1
    return out


def random_fill_(a: Sequence[Tensor], seed: int, offset: int, p: float) -> Tensor:
    """Fill with independent numbers of density ~ exp(-|z|^p), or signs for p = inf; the p-norm of all.

    Element i of the list, counted from `offset`, depends on the seed and on i alone.
    """
    size = torch.zeros((), dtype=torch.float64, device=_device(a))
    for x in a:
        counter = torch.arange(offset, offset + x.numel(), device=x.device)
        offset += x.numel()
        if p == 2:
            z = _normal(counter, 0, seed) / math.sqrt(2)
        else:
            bits = philox(counter, 0, seed)
            z = 1.0 - 2.0 * (bits[0] & 1).double()
            if p != math.inf:  # |z|^p has the law Gamma(1 / p) = Gamma(1 / p + 1) U^p
                z = z * _gamma(counter, 1 / p + 1, seed) ** (1 / p) * _unit(bits[1])
        z = z.to(x.dtype)
        x.view(-1).copy_(z)
        if z.numel():
            magnitude = z.double().abs()
            size = torch.maximum(size, magnitude.amax()) if p == math.inf else size + (magnitude**p).sum()
    return size if p == math.inf else size ** (1 / p)


def sample_bits(total: int, count: int, seed: int) -> Tensor:
    """`count` different numbers below `total`, sorted: where a keyed permutation takes 0, 1, 2, ...

    The permutation is a Feistel network of six rounds on the fewest bits that hold `total`, walked until it falls below
    `total`. Its halves change in turn; what one adds to the other is a mix of 32 bits with a word of Philox as its key.
    """
    bits = max(2, (total - 1).bit_length())
    low = (1 << bits // 2) - 1
    high = (1 << (bits - bits // 2)) - 1
    keys = [int(word) for word in philox(torch.arange(6), 0, seed)[0]]

    def mix(x: Tensor) -> Tensor:
        x = (x ^ x >> 16) * 0x7FEB352D & _MASK
        x = (x ^ x >> 15) * 0x846CA68B & _MASK
        return x ^ x >> 16

    def permute(x: Tensor) -> Tensor:
        left, right = x >> bits // 2, x & low
        for even, odd in zip(keys[::2], keys[1::2], strict=True):
            left = left ^ mix(right + even & _MASK) & high
            right = right ^ mix(left + odd & _MASK) & low
        return left << bits // 2 | right

    x = permute(torch.arange(count))
    while (outside := x >= total).any():
        x[outside] = permute(x[outside])
    return x.sort().values


def locate_bits(place: Tensor) -> tuple[Tensor, Tensor]:
    """The byte in which each bit is, and the mask of that bit in it."""
    return place >> 3, (1 << (place & 7)).to(torch.uint8)


def xor_bits_(bytes: Tensor, byte_index: Tensor, mask: Tensor) -> None:
    """bytes[byte_index] ^= mask, one after another: a byte may be named more than once."""
    for bit in (1 << i for i in range(8)):
        times = torch.zeros(bytes.numel(), dtype=torch.int64, device=bytes.device)
        times.index_add_(0, byte_index, ((mask & bit) != 0).to(torch.int64))
        bytes ^= ((times & 1) * bit).to(torch.uint8)
