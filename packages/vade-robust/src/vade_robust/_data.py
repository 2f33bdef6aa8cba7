"""Sources of rows: arrays, tables, sparse matrices, tensors, loaders, Hugging Face datasets; prepared for the networks.

How the estimators use it:

    source = _data.source(estimator, X, device=device)             # fit: the shape, and sklearn's checks
    preparation = _data.prepare(source, "auto")                    # reads X once: finite? which likelihood? moments
    for batch in source.epoch(size, generator): batch.x, batch.negative

    source = _data.source(estimator, X, device=device, shape=shape)  # later: the same checks against what was fitted
    source.use(preparation)                                        # checks the values
    for rows in source.in_order(256): ...

Nothing here changes the estimator: `n_features` and `feature_names` are for the caller to keep once all checks passed.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from sklearn.utils.validation import check_array, validate_data
from torch import Tensor

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


@dataclass(frozen=True)
class Preparation:
    """What turns rows into the networks' input, and back.

    kind: "bernoulli" (rows in [0, 1]) or "gaussian" (centred by column, divided by one scalar).
    pixel: what uint8 values are divided by (bernoulli): 255, and 1 if the fitted ones were 0 and 1.
    unit: what a decoded mean is multiplied by (bernoulli): `pixel` if the fitted rows were uint8, else 1.
    shift [P], scale []: float64, because those of large or tiny units do not fit into float32's precision.
    low, high [P]: float32, the range of the fitted rows after preparation (bernoulli: 0 and 1).
    """

    kind: str
    pixel: float
    unit: float
    shift: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Prepared rows (b, *shape) in float32, of rows as the user has them."""
        if self.kind == "bernoulli":
            prepared = rows.to(torch.float32)
            return prepared.div_(self.pixel) if rows.dtype == torch.uint8 and self.pixel != 1 else prepared
        shape = rows.shape[1:]
        exact = rows.to(torch.float64, copy=True)
        return exact.sub_(self._to(self.shift, rows).view(shape)).div_(self._to(self.scale, rows)).to(torch.float32)

    def restore(self, prepared: Tensor) -> Tensor:
        """Rows in the user's units, float32, of prepared rows (b, *shape)."""
        if self.kind == "bernoulli":
            return prepared * self.unit if self.unit != 1 else prepared
        exact = prepared.to(torch.float64) * self._to(self.scale, prepared)
        return exact.add_(self._to(self.shift, prepared).view(prepared.shape[1:])).to(torch.float32)

    @property
    def log_volume(self) -> float:
        """log |d user's row / d prepared row|, in nats: what a density of prepared rows is lowered by (gaussian)."""
        return self.shift.numel() * math.log(float(self.scale)) if self.kind == "gaussian" else 0.0

    def tensors(self) -> dict[str, Tensor]:
        """What to keep as buffers and to save (with `kind`, `pixel` and `unit`); their dtypes must stay."""
        return {"shift": self.shift, "scale": self.scale, "low": self.low, "high": self.high}

    @staticmethod
    def _to(value: Tensor, like: Tensor) -> Tensor:
        return value.to(like.device)


@dataclass
class _Scan:
    """What a pass over raw rows tells of them."""

    rows: int = 0
    low: float = math.inf
    high: float = -math.inf
    bytes_only: bool = True  # all were uint8
    whole: bool = True  # all were integers or booleans
    moments: _Moments | None = None


@dataclass
class _Moments:
    """Means and sums of squared deviations by column, merged from chunks (Chan, Golub and LeVeque, 1979); float64."""

    rows: int
    mean: Tensor
    squares: Tensor
    low: Tensor
    high: Tensor

    def merged(self, other: _Moments) -> _Moments:
        rows = self.rows + other.rows
        difference = other.mean - self.mean
        return _Moments(
            rows,
            self.mean + difference * (other.rows / rows),
            self.squares + other.squares + difference.square() * (self.rows * other.rows / rows),
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
        )


class Source:
    """Rows of one shape, in an order: subclasses say how they are read.

    n_rows: how many, None for streams until they were read by `prepare`. addressable: whether `rows` works.
    ordered: whether results by row are kept as `labels_` (streams have no order to speak of).
    shape: of a row. n_features, feature_names: as scikit-learn has them. output: what kind of results the user expects.
    """

    addressable = True
    ordered = True

    def __init__(self, n_rows: int | None, shape: tuple[int, ...], device: torch.device) -> None:
        self.n_rows = n_rows
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

    def use(self, preparation: Preparation, *, scanned: _Scan | None = None) -> None:
        """Checks the values against what was fitted, and prepares rows by it from now on."""
        scan = self._scan() if scanned is None else scanned
        if preparation.kind == "bernoulli":
            _check_range(scan, preparation.pixel)
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
        order = torch.randperm(self.n_rows, generator=generator)
        partners = torch.randperm(self.n_rows, generator=generator)
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

    def _scan(self, *, moments: bool = False) -> _Scan:
        scan = _Scan()
        for place, raw in self.chunks():
            _look(scan, place, raw, moments)
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
        return _tensor(self._values[index])

    def use(self, preparation: Preparation, *, scanned: _Scan | None = None) -> None:
        super().use(preparation, scanned=scanned)
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

    def _scan(self, *, moments: bool = False) -> _Scan:
        x = self._values
        stored = x.data
        rows = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
        wrong = np.flatnonzero(~np.isfinite(stored))
        if wrong.size:
            raise ValueError(_not_finite(stored[wrong[0]], f"row {rows[wrong[0]]}"))
        scan = _Scan(x.shape[0], whole=stored.dtype.kind in "biu", bytes_only=stored.dtype == np.uint8)
        hidden = [0.0] if x.nnz < x.shape[0] * x.shape[1] else []
        scan.low = min([float(stored.min())] * bool(x.nnz) + hidden)
        scan.high = max([float(stored.max())] * bool(x.nnz) + hidden)
        if moments:
            scan.moments = self._moments()
        return scan

    def _moments(self) -> _Moments:
        rows, columns = self._values.shape
        where, values = self._values.indices, self._values.data.astype(np.float64)
        count = np.bincount(where, minlength=columns)
        mean = np.bincount(where, values, columns) / rows
        squares = np.bincount(where, (values - mean[where]) ** 2, columns) + (rows - count) * mean**2
        low, high = np.where(count < rows, 0.0, np.inf), np.where(count < rows, 0.0, -np.inf)
        np.minimum.at(low, where, values)
        np.maximum.at(high, where, values)
        return _Moments(rows, *map(torch.from_numpy, (mean, squares, low, high)))


def source(estimator: Any, X: Any, *, device: torch.device, shape: tuple[int, ...] | None = None) -> Source:
    """The source of X's rows, after every check that needs no values.

    shape: that of a fitted row; None in fit, which wants two rows.

    Raises ValueError or TypeError, in scikit-learn's words where it has some.
    """
    values = X
    tensor_device = None
    if isinstance(X, Tensor):
        values, tensor_device = _plain(X), X.device
    if isinstance(values, Tensor):
        made: Source = _dense(estimator, values, device, shape)
    else:
        made = _array(estimator, values, device, shape)
    made.tensor_device = tensor_device
    _check_shape(estimator, made, shape)
    return made


def prepare(source: Source, reconstruction: str = "auto") -> Preparation:
    """Decides on the likelihood, fits the preparation to all rows in order, and makes the source use it.

    reconstruction: "bernoulli", "gaussian" or "auto": uint8, and numbers that are all in [0, 1], are bernoulli.

    Raises ValueError for values that are not finite (with their row or batch), and for bernoulli values outside [0, 1].
    """
    wants_moments = reconstruction == "gaussian" or (reconstruction == "auto" and not source.addressable)
    scan = source._scan(moments=wants_moments)
    kind = reconstruction
    if kind == "auto":
        kind = "bernoulli" if scan.bytes_only or (scan.low >= 0 and scan.high <= 1) else "gaussian"
    if kind == "gaussian" and scan.moments is None:
        scan = source._scan(moments=True)
    columns = source.n_features
    if kind == "bernoulli":
        pixel = 1.0 if scan.whole and scan.high <= 1 else 255.0
        unit = pixel if scan.bytes_only else 1.0
        _check_range(scan, pixel)
        zeros, ones = torch.zeros(columns), torch.ones(columns)
        preparation = Preparation(kind, pixel, unit, zeros.double(), torch.ones((), dtype=torch.float64), zeros, ones)
    else:
        preparation = _standardise(scan)
    source.n_rows = scan.rows
    source.use(preparation, scanned=scan)
    return preparation


def output(result: Tensor, source: Source) -> NDArray[Any] | Tensor:
    """A result as the user expects it: a tensor where X was one, on its device; else an array."""
    if source.tensor_device is not None:
        return result.to(source.tensor_device)
    array: NDArray[Any] = result.cpu().numpy()
    return array


def _standardise(scan: _Scan) -> Preparation:
    moments = scan.moments
    assert moments is not None
    variance = float((moments.squares / moments.rows).mean())
    if not math.isfinite(variance):
        raise ValueError(f"X is too large for its variance to be a number: its values reach {scan.high:g}; rescale it")
    scale = torch.tensor(math.sqrt(variance) if variance > 0 else 1.0, dtype=torch.float64)
    low, high = ((x - moments.mean) / scale for x in (moments.low, moments.high))
    return Preparation("gaussian", 1.0, 1.0, moments.mean, scale, low.float(), high.float())


def _look(scan: _Scan, place: str, raw: Tensor, moments: bool) -> None:
    """Adds a chunk to what is known, and refuses NaN and infinity."""
    if not raw.numel():
        return
    scan.bytes_only &= raw.dtype == torch.uint8
    scan.whole &= not raw.is_floating_point()
    exact = raw.flatten(1)
    if exact.dtype in (torch.bool, torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16):
        exact = exact.to(torch.float64 if exact.dtype.itemsize > 2 else torch.float32)
    low, high = (float(x) for x in exact.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        first = int((~exact.isfinite()).any(1).nonzero()[0])
        value = exact[first][~exact[first].isfinite()][0]
        start = place.removeprefix("row ")
        place = f"row {int(start) + first}" if start.isdigit() else f"{place}, row {first} of it"
        raise ValueError(_not_finite(float(value), place))
    scan.rows += len(raw)
    scan.low, scan.high = min(scan.low, low), max(scan.high, high)
    if moments:
        exact = exact.to("cpu", torch.float64)
        mean = exact.mean(0)
        new = _Moments(len(exact), mean, (exact - mean).square_().sum(0), exact.amin(0), exact.amax(0))
        scan.moments = new if scan.moments is None else scan.moments.merged(new)


def _not_finite(value: float, place: str) -> str:
    return f"Input X contains {'NaN' if math.isnan(value) else 'infinity (inf)'} in {place}"


def _check_range(scan: _Scan, pixel: float) -> None:
    low, high = (scan.low, scan.high) if not scan.bytes_only else (scan.low / pixel, scan.high / pixel)
    if scan.rows and not (low >= 0 and high <= 1):
        raise ValueError(
            f"a bernoulli reconstruction needs X in [0, 1], got values from {low:g} to {high:g}: scale to [0, 1] or "
            "use reconstruction='gaussian'"
        )


def _tensor(values: NDArray[Any]) -> Tensor:
    """An array as a tensor: without a copy where torch can."""
    if values.dtype.byteorder not in "=|" or values.dtype.itemsize > 8:
        values = values.astype(values.dtype.newbyteorder("=") if values.dtype.itemsize <= 8 else np.float64)
    if any(stride < 0 for stride in values.strides):
        values = values.copy()
    with warnings.catch_warnings():  # it is only read
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(values)


def _plain(X: Tensor) -> Any:
    """A tensor without history; a sparse one as scipy's."""
    X = X.detach()
    if X.layout == torch.strided:
        return X
    if X.ndim != 2:
        raise ValueError(f"a sparse tensor X must be 2D, got shape {tuple(X.shape)}")
    X = X.to_sparse_csr().cpu()
    index = X.crow_indices(), X.col_indices()
    return scipy.sparse.csr_array((X.values().numpy(), index[1].numpy(), index[0].numpy()), shape=tuple(X.shape))


def _dense(estimator: Any, X: Tensor, device: torch.device, shape: tuple[int, ...] | None) -> Source:
    if X.is_complex():
        raise ValueError("Complex data not supported\nX is a complex tensor")
    _check_counts(estimator, tuple(X.shape), 2 if shape is None else 1)
    return Dense(X, device)


def _array(estimator: Any, X: Any, device: torch.device, shape: tuple[int, ...] | None) -> Source:
    """Arrays, tables, lists and sparse matrices, checked by scikit-learn on a copy of the estimator."""
    minimum = 2 if shape is None else 1
    if getattr(X, "ndim", None) in (3, 4) and not scipy.sparse.issparse(X):
        X = check_array(X, dtype="numeric", allow_nd=True, ensure_all_finite=False, estimator=estimator)
        _check_counts(estimator, X.shape, minimum)
        return Dense(X, device)
    scratch = object.__new__(type(estimator))
    scratch.__dict__.update(estimator.__dict__)
    checked = validate_data(
        scratch,
        X,
        reset=shape is None,
        accept_sparse="csr",
        dtype="numeric",
        ensure_all_finite=False,
        ensure_min_samples=minimum,
    )
    made: Source = Sparse(checked, device) if scipy.sparse.issparse(checked) else Dense(checked, device)
    made.feature_names = getattr(scratch, "feature_names_in_", None)
    return made


def _check_counts(estimator: Any, shape: tuple[int, ...], minimum: int) -> None:
    """scikit-learn's refusals, for what it does not look at."""
    name = type(estimator).__name__
    if len(shape) < 2:
        raise ValueError(
            f"Expected 2D array, got {len(shape)}D array instead: reshape X, X.reshape(-1, 1) if it has one feature or "
            "X.reshape(1, -1) if it is one row"
        )
    if shape[0] < minimum:
        raise ValueError(
            f"Found array with {shape[0]} sample(s) (shape={shape}) while a minimum of {minimum} is required by {name}."
        )
    if 0 in shape[1:]:
        raise ValueError(f"Found array with 0 feature(s) (shape={shape}) while a minimum of 1 is required by {name}.")


def _check_shape(estimator: Any, made: Source, shape: tuple[int, ...] | None) -> None:
    name = type(estimator).__name__
    if shape is not None and made.shape != shape:
        if len(shape) == len(made.shape) == 1:
            raise ValueError(f"X has {made.shape[0]} features, but {name} is expecting {shape[0]} features as input")
        raise ValueError(f"X has rows of shape {made.shape}, but {name} was fitted to rows of shape {shape}")
    if getattr(estimator, "encoder", None) == "conv":
        if len(made.shape) not in (2, 3):
            raise ValueError(
                f"encoder='conv' needs X of images (N, H, W) or (N, C, H, W), got rows of shape {made.shape}"
            )
        if min(made.shape[-2:]) < 8:
            raise ValueError(f"encoder='conv' needs images of at least 8 x 8 pixels, got rows of shape {made.shape}")
