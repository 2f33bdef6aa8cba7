"""Rows that come by batches: loaders, Hugging Face datasets, and everything that can be iterated again and again."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from ._preparation import Scan, check_range, look
from ._sources import CHUNK, ROWS, Batch, Source, as_tensor, part

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Stream(Source):
    """Batches of whatever is iterated, in the order in which they come.

    Its batches are an epoch's batches, and a row's partner is the one before it in the batch.
    """

    addressable = False
    ordered = False

    def __init__(
        self,
        make: Callable[[int], Iterator[Any]],
        shape: tuple[int, ...],
        device: torch.device,
        n_rows: int | None = None,
    ) -> None:
        super().__init__(n_rows, shape, device)
        self._make = make

    def chunks(self) -> Iterator[tuple[str, Tensor]]:
        step = max(1, CHUNK // max(1, self.n_features))
        yield from _numbered(_reproducible(lambda: self._in_order(step), 0), self.shape)

    def rows(self, index: Tensor) -> Tensor:
        raise TypeError("the rows of a stream cannot be picked out: it is only read in order")

    def in_order(self, size: int = ROWS) -> Iterator[Tensor]:
        held: list[Tensor] = []
        count = 0
        for raw in self._checked(_reproducible(lambda: self._in_order(size), 0)):
            held.append(self._prepared(raw))
            count += len(raw)
            if count >= size:
                whole, *rest = torch.cat(held).split(size)
                while len(whole) == size:
                    yield whole
                    whole, *rest = rest or [whole[:0]]
                held, count = [whole], len(whole)
        if count:
            yield torch.cat(held)

    def epoch(self, size: int, generator: torch.Generator, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """One pass in the stream's own order, and batches if it has some; its seed is drawn from the `generator`."""
        seed = int(torch.randint(1 << 62, (), generator=generator, device="cpu"))
        return self._whole_batches(size, seed, rank, world)

    def _whole_batches(self, size: int, seed: int, rank: int, world: int) -> Iterator[Batch]:
        for raw in self._checked(_reproducible(lambda: self._make(size), seed)):
            x = self._prepared(raw)
            mine = part(len(x), rank, world)
            yield Batch(x[mine], x.roll(1, 0)[mine], len(x), mine)

    def _in_order(self, size: int) -> Iterator[Any]:
        return self._make(size)

    def _checked(self, batches: Iterator[Any]) -> Iterator[Tensor]:
        """The raw batches of a pass, each refused if it is not what was fitted."""
        preparation = self.preparation
        assert preparation is not None
        for place, raw in _numbered(batches, self.shape):
            scan = Scan()
            look(scan, place, raw, False)
            if preparation.kind == "bernoulli":
                check_range(scan, preparation.pixel, f" in {place}")
            yield raw


class Loader(Stream):
    """A DataLoader whose sampler takes all of its dataset: the epochs are the loader's, the order is the dataset's."""

    ordered = True

    def __init__(self, loader: DataLoader[Any], shape: tuple[int, ...], device: torch.device) -> None:
        super().__init__(lambda size: iter(loader), shape, device, len(loader.dataset))  # type: ignore[arg-type]
        self.batch_size = loader.batch_size
        self._loader = loader

    def _in_order(self, size: int) -> Iterator[Any]:
        loader = self._loader
        if isinstance(loader.sampler, SequentialSampler) and not loader.drop_last:
            return iter(loader)
        again: DataLoader[Any] = DataLoader(
            loader.dataset,
            batch_size=loader.batch_size,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
        )
        return iter(again)


class Column(Source):
    """The one column of a Hugging Face Dataset."""

    def __init__(self, dataset: Any, device: torch.device) -> None:
        self._name = _only_column(dataset.format["columns"])
        self._transformed = dataset.format["type"] == "custom"
        self._image = type(dataset.features[self._name]).__name__ == "Image"
        if not self._transformed:
            dataset = dataset.with_format("numpy" if self._image else "arrow")
        self._dataset = dataset
        super().__init__(len(dataset), (), device)
        if len(dataset):
            self.shape = tuple(self.raw(slice(0, 1)).shape[1:])
        else:
            self.shape = (1,)
        self.n_features = math.prod(self.shape)

    def raw(self, index: NDArray[np.int64] | slice) -> Tensor:
        batch = self._dataset[index if isinstance(index, slice) else index.tolist()]
        rows = _cell(batch, self._name)
        where = f"column {self._name!r} of X"
        if self._image and rows.ndim == 4 and not self._transformed:
            rows = rows.permute(0, 3, 1, 2)  # images are decoded with their channels last
        if rows.ndim < 2:
            raise ValueError(f"{where} holds one number a row: expected 2D data, a vector or an image a row")
        if self.shape and tuple(rows.shape[1:]) != self.shape:
            raise ValueError(f"{where} has rows of shape {tuple(rows.shape[1:])} after rows of shape {self.shape}")
        return rows


def streamed(X: Any, device: torch.device) -> Source | None:
    """The source of an X that comes by batches; None for all that is an array of some kind.

    Raises TypeError for what can be iterated only once, and ValueError for several columns.
    """
    if isinstance(X, DataLoader):
        return _loader(X, device)
    library = sys.modules.get("datasets")
    if library is not None:
        if isinstance(X, library.Dataset):
            return Column(X, device)
        if isinstance(X, (library.DatasetDict, library.IterableDatasetDict)):
            raise TypeError(f"X is a {type(X).__name__} of {', '.join(X)}: choose one, such as X[{next(iter(X))!r}]")
        if isinstance(X, library.IterableDataset):
            return _hugging_face_stream(X, device)
    if isinstance(X, Dataset):
        raise TypeError(f"X must come by batches, got a {type(X).__name__}: wrap it in a torch.utils.data.DataLoader")
    if hasattr(X, "__next__"):
        raise TypeError(
            f"X must give its rows again and again, got the one-shot iterator {type(X).__name__}: pass an array, or an "
            "object whose __iter__ starts anew, such as a DataLoader"
        )
    is_array = any(hasattr(X, name) for name in ("__getitem__", "__array__", "__array_interface__", "__dataframe__"))
    if is_array or not isinstance(X, Iterable) or scipy.sparse.issparse(X):
        return None
    return _stream(lambda size: iter(X), device)


def _stream(make: Callable[[int], Iterator[Any]], device: torch.device) -> Stream:
    """A stream of what `make` gives of a number of rows, which it need not respect."""
    for _, raw in _numbered(_reproducible(lambda: make(1), 0), None):
        return Stream(make, tuple(raw.shape[1:]), device)
    raise AssertionError


def _loader(loader: DataLoader[Any], device: torch.device) -> Source:
    dataset, sampler = loader.dataset, loader.sampler
    takes_all = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(dataset)  # type: ignore[arg-type]
    )
    if isinstance(dataset, IterableDataset) or not takes_all or type(loader.batch_sampler) is not BatchSampler:
        made = _stream(lambda size: iter(loader), device)
        made.batch_size = loader.batch_size
        made.ordered = loader.batch_sampler is None and type(sampler) is SequentialSampler
        return made
    if not len(dataset):  # type: ignore[arg-type]
        return Loader(loader, (1,), device)
    with _seeded(0):
        first = _cell(loader.collate_fn([dataset[0]]))
    return Loader(loader, tuple(first.shape[1:]), device)


def _hugging_face_stream(X: Any, device: torch.device) -> Source:
    columns = X.column_names
    if columns is not None:
        _only_column(columns)
    features = X.features or {}
    if any(type(feature).__name__ == "Image" for feature in features.values()):
        raise TypeError("X streams images: decode them, X.map(...), or use a Dataset that is not streamed")
    X = X.with_format("arrow")

    return _stream(lambda size: iter(X.iter(batch_size=size)), device)


def _only_column(columns: Any) -> str:
    if len(columns) != 1:
        raise ValueError(
            f"X must have one column, got {', '.join(map(repr, columns))}: keep one by X.select_columns({columns[0]!r})"
            if columns
            else "X must have one column, got none"
        )
    return str(columns[0])


def _numbered(batches: Iterator[Any], shape: tuple[int, ...] | None) -> Iterator[tuple[str, Tensor]]:
    """Each batch as a tensor, with what an error calls it."""
    rows = 0
    for number, batch in enumerate(batches):
        place = f"batch {number}"
        raw = _cell(batch, place=place)
        if raw.ndim < 2:
            raise ValueError(f"{place} of X has shape {tuple(raw.shape)}: expected 2D data, a row of numbers per row")
        if shape is not None and tuple(raw.shape[1:]) != shape:
            raise ValueError(f"{place} of X has rows of shape {tuple(raw.shape[1:])}, expected {shape}")
        if len(raw):
            rows += len(raw)
            yield place, raw
    if not rows:
        raise ValueError(
            "X gave no rows, 0 sample(s), in a pass: it must not be empty, and must start anew each time it is iterated"
        )


def _cell(batch: Any, column: str | None = None, *, place: str = "the first batch") -> Tensor:
    """The rows of a batch: its first item if it is a tuple, its only column if it has columns."""
    if type(batch).__module__.startswith("pyarrow"):
        return _from_arrow(batch.column(column or _only_column(batch.column_names)), place)
    if isinstance(batch, Mapping):
        batch = batch[_only_column(list(batch)) if column is None else column]
    elif isinstance(batch, (tuple, list)) and column is None:
        if not batch:
            raise TypeError(f"{place} of X is an empty {type(batch).__name__}")
        return _cell(batch[0], "", place=place)
    if isinstance(batch, list) and batch and isinstance(batch[0], Tensor) and column:
        batch = torch.stack(batch)
    if scipy.sparse.issparse(batch):
        batch = batch.toarray()
    if isinstance(batch, Tensor):
        if batch.is_complex():
            raise ValueError(f"Complex data not supported, got {batch.dtype} in {place} of X")
        return batch.detach() if batch.layout == torch.strided else batch.detach().to_dense()
    if not isinstance(batch, np.ndarray):
        if not hasattr(batch, "__array__") and not (isinstance(batch, list) and column):
            raise TypeError(f"{place} of X must be a tensor or an array, got {type(batch).__name__}")
        batch = np.asarray(batch)
    if batch.dtype == object and len(batch):
        raise ValueError(f"{place} of X holds no numbers, or rows of several shapes")
    if batch.dtype.kind not in "biuf":
        raise ValueError(f"{place} of X holds no real numbers but {batch.dtype}")
    return as_tensor(batch)


def _from_arrow(column: Any, place: str) -> Tensor:
    """The rows of an Arrow column of lists, lists of lists, or their extension types, in the type of what is stored."""
    array = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    sizes = [len(array)]
    while True:
        if hasattr(array, "storage"):
            array = array.storage
        if hasattr(array, "chunks"):
            array = array.combine_chunks()
        if not hasattr(array, "flatten") or not str(array.type).startswith(("list", "large_list", "fixed_size_list")):
            break
        lengths = np.unique(array.value_lengths().to_numpy(zero_copy_only=False)) if len(array) else np.array([0])
        if array.null_count or len(lengths) != 1:
            raise ValueError(f"{place} of X has rows of several lengths: {lengths.tolist()}")
        sizes.append(int(lengths[0]))
        array = array.flatten()
    values = array.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{place} of X holds no numbers but {array.type}")
    return as_tensor(values.reshape(sizes))


class _seeded:
    """A context in which torch's global generator goes on from a state of its own; afterwards it is as before."""

    def __init__(self, seed: int) -> None:
        self._state = torch.Generator("cpu").manual_seed(seed).get_state()

    def __enter__(self) -> None:
        self._before = torch.get_rng_state()
        torch.set_rng_state(self._state)

    def __exit__(self, *_: object) -> None:
        self._state = torch.get_rng_state()
        torch.set_rng_state(self._before)


def _reproducible(make: Callable[[], Iterator[Any]], seed: int) -> Iterator[Any]:
    """A pass whose order and transformations, as far as torch draws them, depend on the seed alone."""
    seeded = _seeded(seed)
    with seeded:
        batches = iter(make())
    while True:
        with seeded:
            try:
                batch = next(batches)
            except StopIteration:
                return
        yield batch
