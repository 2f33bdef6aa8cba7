"""Every operator in Triton: no atomics, so that results have the same bits every time, and nothing waits for the host.

In the kernels `p_` is a pointer to a contiguous tensor, and a capital is known when compiling. Sums over columns are
taken by parts of COLUMNS, and squares of differences are summed as they are: |x|^2 + |y|^2 - 2 xy cancels.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = tl.constexpr(16)  # that are summed before they join a sum, as in C++
INF = tl.constexpr(float("inf"))
LOG_2PI = tl.constexpr(math.log(2 * math.pi))
LAST = tl.constexpr(2**62)  # a number after those of all points
STEPS = tl.constexpr(200)  # of Newton's method, as in the definition
RANGE = tl.constexpr(87.0)  # of log beta, either side of 0
WARPS = 4
COMPONENTS = 256  # at most, whose scores a program holds
SCORES = 2048  # that a program holds: 16 registers of a thread
PARTS = 512  # programs, at most, whose part of the parameters' gradients a second launch sums; they fill a GPU
NUMBERS = 2**22  # in all parts, at most
SIDE = 32  # of a tile of distances
POINTS = 128  # that a query is compared with at once
ROW = 1024  # distances of a row at once
LINES, OTHERS, WIDTH = 4, 64, 16  # rows, others and columns whose differences a program holds: 32 registers of a thread


@triton.jit
def _exp(x):  # type: ignore[no-untyped-def]
    """e^x, to 2 units in the last place in float32 too, whose tl.exp is wrong by |x| of them."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    x = tl.where(x < -120.0, -120.0, tl.where(x > 120.0, 120.0, x))  # and NaN stays
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    r = (x - n * 0.693359375) + n * 2.12194440e-4
    half = tl.floor(n * 0.5)  # 2^n may be out of range where the result is not
    return tl.exp2(r * 1.4426950408889634) * tl.exp2(half) * tl.exp2(n - half)


# --- the mixture ----------------------------------------------------------------------------------------------------


@triton.jit
def _prepare(p_weight, p_scale, p_precision, p_constant, columns, D: tl.constexpr):  # type: ignore[no-untyped-def]
    """1 / var, and log pi - 0.5 sum_d (log 2 pi + ls), of a component."""
    c = tl.program_id(0).to(tl.int64)
    total = tl.zeros((D,), tl.float64)
    d = tl.arange(0, D)
    at = 0
    while at < columns:
        known = at + d < columns
        scale = tl.load(p_scale + c * columns + at + d, known, 0.0)
        tl.store(p_precision + c * columns + at + d, _exp(-scale), known)
        total += tl.where(known, scale.to(tl.float64) + LOG_2PI, 0.0)
        at += D
    constant = tl.load(p_weight + c).to(tl.float64) - 0.5 * tl.sum(total, 0)
    tl.store(p_constant + c, constant.to(p_constant.dtype.element_ty))


@triton.jit
def _score(  # type: ignore[no-untyped-def]
    p_mean, p_log_var, p_centers, p_precision, p_constant, p_a, p_lse, rows, count, columns,
    SPREAD: tl.constexpr, ROWS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The scores of ROWS rows, K components at a time, and their logsumexp, which each K of them update."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = row < rows
    T: tl.constexpr = p_a.dtype.element_ty
    shift = tl.zeros((ROWS,), T)
    total = tl.zeros((ROWS,), T)
    first = 0
    while first < count:
        c = first + tl.arange(0, K)
        known = c < count
        squares = tl.zeros((ROWS, K), T)
        begin = 0
        while begin < columns:
            part = tl.zeros((ROWS, K), T)
            d = begin
            while d < tl.minimum(begin + COLUMNS, columns):
                mean = tl.load(p_mean + row * columns + d, here, 0.0)
                center = tl.load(p_centers + c.to(tl.int64) * columns + d, known, 0.0)
                precision = tl.load(p_precision + c.to(tl.int64) * columns + d, known, 0.0)
                difference = mean[:, None] - center[None, :]
                square = difference * difference
                if SPREAD:
                    square += _exp(tl.load(p_log_var + row * columns + d, here, 0.0))[:, None]
                part += square * precision[None, :]
                d += 1
            squares += part
            begin += COLUMNS
        a = tl.load(p_constant + c, known, -INF)[None, :] - 0.5 * squares
        tl.store(p_a + row[:, None] * count + c[None, :], a, here[:, None] & known[None, :])
        most = tl.maximum(tl.max(a, 1), tl.where(total > 0, shift, -INF))
        next_shift = tl.where((most < INF) & (most > -INF), most, 0.0)
        kept = tl.where((total == 0) | (total == INF), total, total * _exp(shift - next_shift))
        weights = tl.where(known[None, :], _exp(a - next_shift[:, None]), 0.0)
        total = kept + tl.sum(weights, 1)
        shift = next_shift
        first += K
    lse = tl.where(total == 0, -INF, tl.where(total == INF, INF, shift + tl.log(total)))
    tl.store(p_lse + row, lse, here)


@triton.jit
def _differentiate(  # type: ignore[no-untyped-def]
    p_grad_a, p_grad_lse, p_a, p_lse, p_mean, p_log_var, p_centers, p_precision, p_by_mean, p_by_log_var, p_parts,
    rows, count, columns, blocks, SPREAD: tl.constexpr, ROWS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The gradients of `blocks` times ROWS rows, and what these add to those of the parameters."""
    T: tl.constexpr = p_mean.dtype.element_ty
    part = tl.program_id(0).to(tl.int64)
    p_by_weight = p_parts + part * (count * (1 + 2 * columns))
    p_by_center = p_by_weight + count
    p_by_scale = p_by_center + count * columns
    block = 0
    while block < blocks:
        row = (part * blocks + block) * ROWS + tl.arange(0, ROWS)
        here = row < rows
        lse = tl.load(p_lse + row, here, 0.0)
        grad_lse = tl.load(p_grad_lse + row, here, 0.0)
        first = 0
        while first < count:
            c = first + tl.arange(0, K)
            known = c < count
            both = here[:, None] & known[None, :]
            at = row[:, None] * count + c[None, :]
            posterior = _exp(tl.load(p_a + at, both, 0.0) - lse[:, None])
            weight = tl.load(p_grad_a + at, both, 0.0) + grad_lse[:, None] * posterior
            weight = tl.where(both, weight, 0.0)
            by_weight = tl.sum(weight, 0)
            if block > 0:
                by_weight += tl.load(p_by_weight + c, known, 0.0)
            tl.store(p_by_weight + c, by_weight, known)
            d = 0
            while d < columns:
                parameter = c.to(tl.int64) * columns + d
                mean = tl.load(p_mean + row * columns + d, here, 0.0)
                precision = tl.load(p_precision + parameter, known, 0.0)
                difference = mean[:, None] - tl.load(p_centers + parameter, known, 0.0)[None, :]
                along = weight * precision[None, :]
                pull = along * difference
                square = difference * difference
                by_mean = -tl.sum(pull, 1)
                if first > 0:
                    by_mean += tl.load(p_by_mean + row * columns + d, here, 0.0)
                tl.store(p_by_mean + row * columns + d, by_mean, here)
                if SPREAD:
                    variance = _exp(tl.load(p_log_var + row * columns + d, here, 0.0))
                    square += variance[:, None]
                    by_log_var = -0.5 * variance * tl.sum(along, 1)
                    if first > 0:
                        by_log_var += tl.load(p_by_log_var + row * columns + d, here, 0.0)
                    tl.store(p_by_log_var + row * columns + d, by_log_var, here)
                by_center = tl.sum(pull, 0)
                by_scale = 0.5 * tl.sum(weight * (square * precision[None, :] - 1.0), 0)
                if block > 0:
                    by_center += tl.load(p_by_center + parameter, known, 0.0)
                    by_scale += tl.load(p_by_scale + parameter, known, 0.0)
                tl.store(p_by_center + parameter, by_center.to(T), known)
                tl.store(p_by_scale + parameter, by_scale.to(T), known)
                d += 1
            tl.debug_barrier()  # what was written is read again
            first += K
        block += 1


@triton.jit
def _add_parts(  # type: ignore[no-untyped-def]
    p_parts, p_weight, p_centers, p_scale, parts, count, columns, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    """The gradients of the parameters: the sums of their parts, always in the same order, and in float64."""
    size = count * (1 + 2 * columns)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    totals = tl.zeros((PARTS, BLOCK), tl.float64)
    first = 0
    while first < parts:
        part = first + tl.arange(0, PARTS)
        known = (part < parts)[:, None] & (i < size)[None, :]
        totals += tl.load(p_parts + part[:, None].to(tl.int64) * size + i[None, :], known, 0.0).to(tl.float64)
        first += PARTS
    total = tl.sum(totals, 0).to(p_weight.dtype.element_ty)
    center, scale = i - count, i - count - count * columns
    tl.store(p_weight + i, total, i < count)
    tl.store(p_centers + center, total, (center >= 0) & (scale < 0))
    tl.store(p_scale + scale, total, (scale >= 0) & (i < size))


def _blocks(count: int, budget: int) -> tuple[int, int]:
    """Rows and components that a program holds."""
    components = min(triton.next_power_of_2(count), COMPONENTS)
    return min(max(budget // components, 1), 128), components


def _prepared(log_weight: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    precision, constant = torch.empty_like(log_scale), torch.empty_like(log_weight)
    if constant.numel():
        _prepare[(constant.numel(),)](
            log_weight, log_scale, precision, constant, log_scale.shape[1], D=128, num_warps=1
        )  # fmt: skip
    return precision, constant


def mixture_scores(
    mean: Tensor, log_var: Tensor | None, log_weight: Tensor, centers: Tensor, log_scale: Tensor
) -> tuple[Tensor, Tensor]:
    rows, columns = mean.shape
    count = log_weight.shape[0]
    a, lse = mean.new_empty(rows, count), mean.new_empty(rows)
    if rows:
        precision, constant = _prepared(log_weight, log_scale)
        block, components = _blocks(count, SCORES)
        spread = log_var is not None
        _score[(triton.cdiv(rows, block),)](
            mean, log_var if spread else mean, centers, precision, constant, a, lse, rows, count, columns,
            SPREAD=spread, ROWS=block, K=components, num_warps=WARPS,
        )  # fmt: skip
    return a, lse


def mixture_scores_backward(
    grad_a: Tensor,
    grad_lse: Tensor,
    a: Tensor,
    lse: Tensor,
    mean: Tensor,
    log_var: Tensor | None,
    log_weight: Tensor,
    centers: Tensor,
    log_scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, columns = mean.shape
    count = log_weight.shape[0]
    spread = log_var is not None
    by_mean, by_log_var = torch.empty_like(mean), mean.new_empty(mean.shape if spread else 0)
    by_weight, by_centers, by_scale = (torch.empty_like(x) for x in (log_weight, centers, log_scale))
    size = count * (1 + 2 * columns)
    block, components = _blocks(count, SCORES // 4)
    blocks = triton.cdiv(rows, block)
    together = max(triton.cdiv(blocks, max(min(PARTS, NUMBERS // max(size, 1)), 1)), 1)
    parts = mean.new_empty(triton.cdiv(blocks, together), size)
    if rows:
        precision, _ = _prepared(log_weight, log_scale)
        _differentiate[(len(parts),)](
            grad_a, grad_lse, a, lse, mean, log_var if spread else mean, centers, precision, by_mean, by_log_var, parts,
            rows, count, columns, together, SPREAD=spread, ROWS=block, K=components, num_warps=WARPS,
        )  # fmt: skip
    if size:
        _add_parts[(triton.cdiv(size, 32),)](
            parts, by_weight, by_centers, by_scale, len(parts), count, columns, PARTS=32, BLOCK=32, num_warps=WARPS
        )  # fmt: skip
    return by_mean, by_log_var, by_weight, by_centers, by_scale


# --- distances ------------------------------------------------------------------------------------------------------


@triton.jit
def _measured(p_x, p_y, i, j, rows, points, columns, N: tl.constexpr, M: tl.constexpr):  # type: ignore[no-untyped-def]
    """Squared distances [N, M] of rows i of x and rows j of y."""
    T: tl.constexpr = p_x.dtype.element_ty
    total = tl.zeros((N, M), T)
    p_x += i.to(tl.int64) * columns
    p_y += j.to(tl.int64) * columns
    begin = 0
    while begin < columns:
        part = tl.zeros((N, M), T)
        d = begin
        while d < tl.minimum(begin + COLUMNS, columns):
            difference = tl.load(p_x + d, i < rows, 0.0)[:, None] - tl.load(p_y + d, j < points, 0.0)[None, :]
            part += difference * difference
            d += 1
        total += part
        begin += COLUMNS
    return total


@triton.jit
def _distances(p_x, p_y, p_out, rows, points, columns, N: tl.constexpr, M: tl.constexpr):  # type: ignore[no-untyped-def]
    across = tl.cdiv(points, M)
    i = tl.program_id(0) // across * N + tl.arange(0, N)
    j = tl.program_id(0) % across * M + tl.arange(0, M)
    total = _measured(p_x, p_y, i, j, rows, points, columns, N, M)
    tl.store(p_out + i[:, None].to(tl.int64) * points + j[None, :], total, (i < rows)[:, None] & (j < points)[None, :])


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    rows, points = x.shape[0], y.shape[0]
    out = x.new_empty(rows, points)
    if out.numel():
        tiles = triton.cdiv(rows, SIDE) * triton.cdiv(points, SIDE)
        _distances[(tiles,)](x, y, out, rows, points, x.shape[1], N=SIDE, M=SIDE, num_warps=WARPS)
    return out


@triton.jit
def _nearest(p_x, p_y, p_out, p_index, rows, points, columns, k, N: tl.constexpr, M: tl.constexpr):  # type: ignore[no-untyped-def]
    """The k nearest points of N queries, one after the other: each is the first behind the one before it, in the order
    of distances and then of numbers. NaN is infinite, and its number is that of a later point."""
    i = tl.program_id(0) * N + tl.arange(0, N)
    T: tl.constexpr = p_x.dtype.element_ty
    last = tl.full((N,), -1.0, T)
    last_number = tl.full((N,), -1, tl.int64)
    found = 0
    while found < k:
        best = tl.full((N,), INF, T)
        number = tl.full((N,), LAST, tl.int64)
        first = 0
        while first < points:
            j = first + tl.arange(0, M)
            distance = _measured(p_x, p_y, i, j, rows, points, columns, N, M)
            unknown = distance != distance
            distance = tl.where(unknown, INF, distance)
            numbers = tl.where(unknown, points, 0).to(tl.int64) + j[None, :]
            behind = (distance > last[:, None]) | ((distance == last[:, None]) & (numbers > last_number[:, None]))
            behind = behind & (j < points)[None, :]
            distance = tl.where(behind, distance, INF)
            least = tl.min(distance, 1)
            which = tl.min(tl.where(behind & (distance == least[:, None]), numbers, LAST), 1)
            better = (least < best) | ((least == best) & (which < number))
            best = tl.where(better, least, best)
            number = tl.where(better, which, number)
            first += M
        to = i.to(tl.int64) * k + found
        tl.store(p_out + to, tl.where(number < points, best, float("nan")), i < rows)
        tl.store(p_index + to, tl.where(number < points, number, number - points), i < rows)
        last = best
        last_number = number
        found += 1


def knn(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    rows, count = queries.shape[0], points.shape[0]
    distances = queries.new_empty(rows, k)
    index = torch.empty(distances.shape, dtype=torch.int64, device=queries.device)
    if distances.numel():
        block = min(triton.next_power_of_2(count), POINTS)
        lines = min(SCORES // block, 128)
        _nearest[(triton.cdiv(rows, lines),)](
            queries, points, distances, index, rows, count, queries.shape[1], k, N=lines, M=block, num_warps=WARPS
        )  # fmt: skip
    return distances, index


# --- t-SNE ----------------------------------------------------------------------------------------------------------


@triton.jit
def _between(p_x, i, j, rows, columns, M: tl.constexpr):  # type: ignore[no-untyped-def]
    """Squared distances [M] of row i from rows j, infinite from itself and from rows that there are not."""
    T: tl.constexpr = p_x.dtype.element_ty
    total = tl.zeros((M,), T)
    begin = 0
    while begin < columns:
        part = tl.zeros((M,), T)
        d = begin
        while d < tl.minimum(begin + COLUMNS, columns):
            difference = tl.load(p_x + j.to(tl.int64) * columns + d, j < rows, 0.0) - tl.load(p_x + i * columns + d)
            part += difference * difference
            d += 1
        total += part
        begin += COLUMNS
    return tl.where((j == i) | (j >= rows), INF, total)


@triton.jit
def _conditional(  # type: ignore[no-untyped-def]
    p_x, p_row, rows, columns, target: tl.float64, tolerance: tl.float64, least: tl.float64, M: tl.constexpr
):  # fmt: skip
    """p_j|i of one row i. The row is in registers if it has at most M elements, else in the memory of the result."""
    i = tl.program_id(0).to(tl.int64)
    T: tl.constexpr = p_x.dtype.element_ty
    p_row += i * rows
    m = tl.arange(0, M)
    row = _between(p_x, i, m, rows, columns, M)
    nearest = tl.min(row, 0)
    at = M
    while at < rows:
        distance = _between(p_x, i, at + m, rows, columns, M)
        tl.store(p_row + at + m, distance, at + m < rows)
        nearest = tl.minimum(nearest, tl.min(distance, 0))
        at += M
    tl.debug_barrier()

    row = row - nearest
    sums = tl.where(row == INF, 0.0, row)
    at = M
    while at < rows:
        distance = tl.load(p_row + at + m, at + m < rows, INF) - nearest
        sums += tl.where(distance == INF, 0.0, distance)
        at += M
    mean = tl.sum(sums, 0).to(tl.float64) / (rows - 1)
    log_beta = tl.where(mean > 0, -tl.log(tl.where(mean > 0, mean, 1.0)), 0.0)
    low, high = log_beta - log_beta - INF, log_beta - log_beta + INF
    step, going = 0, True
    while going:
        beta = tl.exp(log_beta)
        slope = -beta.to(T)
        center = mean.to(T)
        weights = _exp(tl.where(row == INF, -INF, slope * row))
        off = tl.where(row == INF, 0.0, row - center)
        totals, firsts, seconds = weights, weights * off, weights * off * off
        at = M
        while at < rows:
            distance = tl.load(p_row + at + m, at + m < rows, INF) - nearest
            weights = _exp(tl.where(distance == INF, -INF, slope * distance))
            off = tl.where(distance == INF, 0.0, distance - center)
            totals += weights
            firsts += weights * off
            seconds += weights * off * off
            at += M
        total = tl.sum(totals, 0).to(tl.float64)
        first = tl.sum(firsts, 0).to(tl.float64) / total
        variance = tl.sum(seconds, 0).to(tl.float64) / total - first * first  # around the last mean
        mean = center.to(tl.float64) + first
        excess = tl.log(total) + beta * mean - target  # the entropy falls as beta grows
        low = tl.where(excess > 0, log_beta, low)
        high = tl.where(excess < 0, log_beta, high)
        length = beta * beta * variance
        newton = tl.where(length > 0, excess / tl.where(length > 0, length, 1.0), tl.where(excess > 0, INF, -INF))
        # Rows that are flat at this precision have the wanted one, if any, far from here.
        newton = log_beta + tl.minimum(tl.maximum(newton, -4.0), 4.0)
        bounded = (low > -INF) & (high < INF)
        outside = (newton <= low) | (newton >= high)
        following = tl.where(outside & bounded, 0.5 * (tl.maximum(low, -RANGE) + tl.minimum(high, RANGE)), newton)
        following = tl.minimum(tl.maximum(following, -RANGE), RANGE)
        step += 1
        moved = tl.where(tl.abs(excess) > tolerance, following - log_beta, 0.0)
        log_beta += moved
        going = (tl.abs(moved) > least) & (step < STEPS)

    slope = -tl.exp(log_beta).to(T)
    row = _exp(tl.where(row == INF, -INF, slope * row))
    totals = row
    at = M
    while at < rows:
        distance = tl.load(p_row + at + m, at + m < rows, INF) - nearest
        weights = _exp(tl.where(distance == INF, -INF, slope * distance))
        totals += weights
        at += M
    total = tl.sum(totals, 0)
    tl.store(p_row + m, row / total, m < rows)
    at = M
    while at < rows:
        distance = tl.load(p_row + at + m, at + m < rows, INF) - nearest
        weights = _exp(tl.where(distance == INF, -INF, slope * distance))
        tl.store(p_row + at + m, weights / total, at + m < rows)
        at += M


@triton.jit
def _symmetric(p_in, p_out, rows, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """(C + C^T) / 2B."""
    across = tl.cdiv(rows, N)
    i = tl.program_id(0) // across * N + tl.arange(0, N)
    j = tl.program_id(0) % across * N + tl.arange(0, N)
    known = (i < rows)[:, None] & (j < rows)[None, :]
    here = tl.load(p_in + i[:, None].to(tl.int64) * rows + j[None, :], known, 0.0)
    there = tl.load(p_in + j[:, None].to(tl.int64) * rows + i[None, :], (j < rows)[:, None] & (i < rows)[None, :], 0.0)
    tl.store(p_out + i[:, None].to(tl.int64) * rows + j[None, :], (here + tl.trans(there)) / (2 * rows), known)


def tsne_affinities(x: Tensor, perplexity: float) -> Tensor:
    rows, columns = x.shape
    if rows < 2:
        return x.new_zeros(rows, rows)
    conditional, p = x.new_empty(rows, rows), x.new_empty(rows, rows)
    target = math.log(perplexity)
    tolerance = torch.finfo(x.dtype).eps * max(1.0, target)
    least = 1e-4 if x.dtype == torch.float32 else 1e-8  # the error after a step of Newton's is about its square
    block = min(max(triton.next_power_of_2(rows), 128), ROW)
    _conditional[(rows,)](x, conditional, rows, columns, target, tolerance, least, M=block, num_warps=WARPS)
    side = SIDE if x.dtype == torch.float32 else SIDE // 2
    _symmetric[(triton.cdiv(rows, side) ** 2,)](conditional, p, rows, N=side, num_warps=WARPS)
    return p


@triton.jit
def _pull(  # type: ignore[no-untyped-def]
    p_y, p_p, p_z, p_kl, p_near, p_far, rows, columns,
    N: tl.constexpr, M: tl.constexpr, D: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    """Of N rows and D columns: sum_j p w (y_i - y_j) and sum_j w^2 (y_i - y_j); with the first columns also the sums of
    w and of p (log p - log w)."""
    T: tl.constexpr = p_y.dtype.element_ty
    i = tl.program_id(0) * N + tl.arange(0, N)
    d = tl.program_id(1) * D + tl.arange(0, D)
    mine = tl.load(
        p_y + i[:, None].to(tl.int64) * columns + d[None, :], (i < rows)[:, None] & (d < columns)[None, :], 0.0
    )
    z, kl = tl.zeros((N,), T), tl.zeros((N,), T)
    near, far = tl.zeros((N, D), T), tl.zeros((N, D), T)
    first = 0
    while first < rows:
        j = first + tl.arange(0, M)
        pair = (i < rows)[:, None] & (j < rows)[None, :]
        theirs = tl.load(
            p_y + j[:, None].to(tl.int64) * columns + d[None, :], (j < rows)[:, None] & (d < columns)[None, :], 0.0
        )
        difference = mine[:, None, :] - theirs[None, :, :]
        if FEW:  # noqa: SIM108  # no more than D columns
            squares = tl.sum(difference * difference, 2)
        else:
            squares = _measured(p_y, p_y, i, j, rows, rows, columns, N, M)
        w = 1.0 / (1.0 + squares)
        w = tl.where(pair & (i[:, None] != j[None, :]), w, 0.0)
        p = tl.load(p_p + i[:, None].to(tl.int64) * rows + j[None, :], pair, 0.0)
        z += tl.sum(w, 1)
        # Infinite where w is 0 and p is not.
        terms = p * (tl.log(tl.where(p == 0, 1.0, p)) - tl.log(w))
        kl += tl.sum(tl.where(p == 0, 0.0, terms), 1)
        near += tl.sum((p * w)[:, :, None] * difference, 1)
        far += tl.sum((w * w)[:, :, None] * difference, 1)
        first += M
    kept = (i < rows)[:, None] & (d < columns)[None, :]
    at = i[:, None].to(tl.int64) * columns + d[None, :]
    tl.store(p_near + at, near, kept)
    tl.store(p_far + at, far, kept)
    if tl.program_id(1) == 0:
        tl.store(p_z + i, z, i < rows)
        tl.store(p_kl + i, kl, i < rows)


@triton.jit
def _combine(p_z, p_kl, p_near, p_far, p_value, p_grad, rows, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """sum p (log p - log w) + log Z, and 4 (sum_j p w (y_i - y_j) - sum_j w^2 (y_i - y_j) / Z); each program sums Z."""
    zs, kls = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    at = 0
    while at < rows:
        i = at + tl.arange(0, BLOCK)
        zs += tl.load(p_z + i, i < rows, 0.0).to(tl.float64)
        kls += tl.load(p_kl + i, i < rows, 0.0).to(tl.float64)
        at += BLOCK
    z = tl.sum(zs, 0)
    T: tl.constexpr = p_grad.dtype.element_ty
    if tl.program_id(0) == 0:
        tl.store(p_value, (tl.sum(kls, 0) + tl.log(z)).to(T))
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    near, far = tl.load(p_near + i, i < size, 0.0), tl.load(p_far + i, i < size, 0.0)
    tl.store(p_grad + i, 4.0 * (near - far / z.to(T)), i < size)


def tsne_kl(y: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = y.shape
    if rows < 2:
        return y.new_zeros(()), torch.zeros_like(y)
    z, kl, value = y.new_empty(rows), y.new_empty(rows), y.new_empty(())
    near, far, grad = torch.empty_like(y), torch.empty_like(y), torch.empty_like(y)
    _pull[triton.cdiv(rows, LINES), triton.cdiv(columns, WIDTH)](
        y, p, z, kl, near, far, rows, columns,
        N=LINES, M=OTHERS, D=WIDTH, FEW=columns <= WIDTH, num_warps=WARPS,
    )  # fmt: skip
    _combine[(max(triton.cdiv(y.numel(), 256), 1),)](
        z, kl, near, far, value, grad, rows, y.numel(), BLOCK=256, num_warps=WARPS
    )  # fmt: skip
    return value, grad
