"""Rows that are in memory, and what all sources of rows have in common."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._preparation import Moments, Preparation, Scan, check_range, look, not_finite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

CHUNK = 1 << 20  # elements that a pass over the data converts at a time: 8 MiB of float64
ROWS = 256  # rows that are read at a time where nobody says how many


class Batch(NamedTuple):
    """A batch of an epoch: this rank's rows, their partners, how many rows the batch has on all ranks, and which."""

    x: Tensor
    negative: Tensor
    rows: int
    part: slice


def part(rows: int, rank: int, world: int) -> slice:
    """The rows of a global batch of `rows` that a rank works on."""
    return slice(rows * rank // world, rows * (rank + 1) // world)


class Source:
    """Rows of one shape, in an order: subclasses say how they are read.

    n_rows: how many, None for streams; seen: how many the last `scan` counted. addressable: whether `rows` works.
    ordered: whether results by row are kept as `labels_` (streams have no order to speak of). batch_size: of an epoch's
    batches, where the source and not the estimator decides on it.
    shape: of a row. n_features, feature_names: as scikit-learn has them. output: what kind of results the user expects.
    """

    addressable = True
    ordered = True

    def __init__(self, n_rows: int | None, shape: tuple[int, ...], device: torch.device) -> None:
        self.n_rows = n_rows
        self.seen = n_rows or 0
        self.batch_size: int | None = None
        self.shape = shape
        self.device = device
        self.n_features = math.prod(shape)
        self.feature_names: NDArray[Any] | None = None
        self.tensor_device: torch.device | None = None
        self.preparation: Preparation | None = None

    # What subclasses implement.

    def raw(self, index: NDArray[np.int64] | slice) -> Tensor:
        """The user's rows of an index, as a tensor on any device, maybe a view of theirs: it is only read."""
        raise NotImplementedError

    def chunks(self) -> Iterator[tuple[str, Tensor]]:
        """All raw rows in order, a chunk at a time, each with what an error calls its place."""
        assert self.n_rows is not None
        step = max(1, CHUNK // max(1, self.n_features))
        for start in range(0, self.n_rows, step):
            yield f"row {start}", self.raw(slice(start, min(start + step, self.n_rows)))

    # What the others use.

    def use(self, preparation: Preparation, *, read: bool = False, scanned: Scan | None = None) -> None:
        """Checks the values against what was fitted, and prepares rows by it from now on.

        read: whether to read a stream for that at once; it is checked by batches when it is used, in any case.
        """
        if scanned is None and (self.addressable or read):
            scanned = self.scan()
        if scanned is not None and preparation.kind == "bernoulli":
            check_range(scanned, preparation.pixel)
        self.preparation = preparation

    def rows(self, index: Tensor) -> Tensor:
        """Prepared rows (b, *shape) of an int64 index, in float32, on the device. They are only read."""
        return self._prepared(self.raw(index.cpu().numpy()))

    def in_order(self, size: int = ROWS) -> Iterator[Tensor]:
        """All prepared rows in order, `size` at a time; the last block may be shorter."""
        assert self.n_rows is not None
        for start in range(0, self.n_rows, size):
            yield self._prepared(self.raw(slice(start, min(start + size, self.n_rows))))

    def epoch(self, size: int, generator: torch.Generator, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """One pass in random order: batches of `size` rows on all ranks together, the last one maybe shorter.

        Two permutations are drawn from the CPU `generator`, at once: one of the rows, one of their partners.
        """
        assert self.n_rows is not None
        order = torch.randperm(self.n_rows, generator=generator, device="cpu")
        partners = torch.randperm(self.n_rows, generator=generator, device="cpu")
        return self._batches(self._index(order), self._index(partners), size, rank, world)

    def _index(self, order: Tensor) -> Tensor:
        return order

    def _batches(self, order: Tensor, partners: Tensor, size: int, rank: int, world: int) -> Iterator[Batch]:
        for start in range(0, len(order), size):
            rows = min(size, len(order) - start)
            mine = part(rows, rank, world)
            chosen = slice(start + mine.start, start + mine.stop)
            yield Batch(self.rows(order[chosen]), self.rows(partners[chosen]), rows, mine)

    def _prepared(self, raw: Tensor) -> Tensor:
        assert self.preparation is not None
        return self.preparation(raw).to(self.device, non_blocking=True)

    def distinct(self, limit: int) -> int:
        """How many rows differ from all before them; the count ends at `limit`."""
        found: set[bytes] = set()
        for _, raw in self.chunks():
            for row in (raw.float() if raw.dtype == torch.bfloat16 else raw).cpu().numpy():
                found.add(row.tobytes())
                if len(found) >= limit:
                    return limit
        return len(found)

    def scan(self, *, moments: bool = False) -> Scan:
        scan = Scan()
        for place, raw in self.chunks():
            look(scan, place, raw, moments)
        self.seen = scan.rows
        return scan


class Dense(Source):
    """Rows in memory: an array, which stays where it is, or a tensor. A GPU gets its own copy, once."""

    def __init__(self, values: NDArray[Any] | Tensor, device: torch.device) -> None:
        super().__init__(len(values), tuple(values.shape[1:]), device)
        self._values = values
        self._resident: Tensor | None = None

    def raw(self, index: NDArray[np.int64] | slice) -> Tensor:
        if isinstance(self._values, Tensor):
            if isinstance(index, slice):
                return self._values[index]
            return self._values.index_select(0, torch.from_numpy(index).to(self._values.device))
        return as_tensor(self._values[index])

    def use(self, preparation: Preparation, *, read: bool = False, scanned: Scan | None = None) -> None:
        super().use(preparation, read=read, scanned=scanned)
        self._resident = None
        if self.device.type != "cpu":
            self._resident = self._on_device(preparation)

    def _on_device(self, preparation: Preparation) -> Tensor:
        """The whole of the data on the device: bytes as they are, everything else prepared."""
        assert self.n_rows is not None
        if self._values.dtype in (np.uint8, torch.uint8) and preparation.kind == "bernoulli":
            return self.raw(slice(None)).to(self.device)
        resident = torch.empty((self.n_rows, *self.shape), dtype=torch.float32, device=self.device)
        step = max(1, 16 * CHUNK // max(1, self.n_features))
        for start in range(0, self.n_rows, step):
            resident[start : start + step] = preparation(self.raw(slice(start, start + step)))
        return resident

    def _resolved(self, rows: Tensor) -> Tensor:
        assert self.preparation is not None
        return self.preparation(rows) if rows.dtype == torch.uint8 else rows

    def rows(self, index: Tensor) -> Tensor:
        if self._resident is None:
            return super().rows(index)
        return self._resolved(self._resident.index_select(0, index.to(self.device)))

    def in_order(self, size: int = ROWS) -> Iterator[Tensor]:
        if self._resident is None:
            yield from super().in_order(size)
        else:
            yield from map(self._resolved, self._resident.split(size))

    def _index(self, order: Tensor) -> Tensor:
        return order if self._resident is None else order.to(self.device)


class Sparse(Source):
    """Rows of a scipy CSR matrix, dense for a batch at a time."""

    def __init__(self, values: Any, device: torch.device) -> None:
        super().__init__(values.shape[0], (values.shape[1],), device)
        if not values.has_canonical_format:
            values = values.copy()
            values.sum_duplicates()
        self._values = values

    def raw(self, index: NDArray[np.int64] | slice) -> Tensor:
        return torch.from_numpy(self._values[index].toarray())

    def scan(self, *, moments: bool = False) -> Scan:
        x = self._values
        stored = x.data
        wrong = np.flatnonzero(~np.isfinite(stored))
        if wrong.size:
            row = np.searchsorted(x.indptr, wrong[0], side="right") - 1
            raise ValueError(not_finite(stored[wrong[0]], f"row {row}"))
        scan = Scan(x.shape[0], whole=stored.dtype.kind in "biu", bytes_only=stored.dtype == np.uint8)
        extremes = [float(stored.min()), float(stored.max())] if x.nnz else []
        if x.nnz < x.shape[0] * x.shape[1]:
            extremes.append(0.0)
        scan.low, scan.high = min(extremes), max(extremes)
        if moments:
            scan.moments = self._moments()
        return scan

    def _moments(self) -> Moments:
        rows, columns = self._values.shape
        where, values = self._values.indices, self._values.data.astype(np.float64)
        count = np.bincount(where, minlength=columns)
        mean = np.bincount(where, values, columns) / rows
        squares = np.bincount(where, (values - mean[where]) ** 2, columns) + (rows - count) * mean**2
        low, high = np.where(count < rows, 0.0, np.inf), np.where(count < rows, 0.0, -np.inf)
        np.minimum.at(low, where, values)
        np.maximum.at(high, where, values)
        return Moments(rows, *map(torch.from_numpy, (mean, squares, low, high)))


def as_tensor(values: NDArray[Any]) -> Tensor:
    """An array of numbers as a tensor: without a copy where torch can."""
    if values.dtype.byteorder not in "=|" or values.dtype.itemsize > 8:
        values = values.astype(values.dtype.newbyteorder("=") if values.dtype.itemsize <= 8 else np.float64)
    if any(stride < 0 for stride in values.strides):
        values = values.copy()
    with warnings.catch_warnings():  # it is only read
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(values)
