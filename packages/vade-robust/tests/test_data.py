"""Every kind of X gives the same rows; what prepares them is fitted once and exact."""

from __future__ import annotations

import math
import tracemalloc
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SubsetRandomSampler, TensorDataset

from vade_robust import RobustVaDE, VaDE, _data

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "n_clusters": 3,
    "hidden": (16,),
    "pretrain_epochs": 1,
    "epochs": 1,
    "batch_size": 64,
    "random_state": 0,
}
RNG = np.random.default_rng(0)
NORMAL = (RNG.normal(size=(200, 7)) * [1, 2, 3, 4, 5, 6, 7] + [100, 0, 0, 0, 0, 0, -9]).astype(np.float32)
NORMAL[RNG.random(NORMAL.shape) < 0.3] = 0
BYTES = RNG.integers(0, 256, (200, 8, 9), dtype=np.uint8)

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.from_numpy(NORMAL))


class Batches:
    """Re-iterable, and that is all."""

    def __init__(self, X: Any = NORMAL) -> None:
        self.X = X

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, 200, 50):
            yield self.X[start : start + 50], "a second item"


class Parts:
    def __iter__(self) -> Iterator[Any]:
        return (x.to_sparse() for x in torch.from_numpy(NORMAL).split(50))


def memmap(folder: Path) -> np.ndarray:
    np.save(folder / "x.npy", NORMAL)
    return np.load(folder / "x.npy", mmap_mode="r")


def read_only(_: Path) -> np.ndarray:
    X = NORMAL.copy()
    X.flags.writeable = False
    return X


def dataset(X: np.ndarray = NORMAL, **format: Any) -> Any:
    datasets = pytest.importorskip("datasets", reason="needs the extra `hf`")
    shape = {
        2: lambda: datasets.Sequence(datasets.Value(str(X.dtype))),
        3: lambda: datasets.Array2D(X.shape[1:], str(X.dtype)),
    }
    features = datasets.Features({"x": shape[X.ndim]()})
    made = datasets.Dataset.from_dict({"x": list(X) if X.ndim == 2 else X}, features=features)
    return made.with_format(**format) if format else made


def duplicates(_: Path) -> Any:
    """A CSR matrix that stores some elements in two parts."""
    x = scipy.sparse.csr_matrix(NORMAL.astype(np.float64))
    return scipy.sparse.csr_matrix((np.repeat(x.data, 2) / 2, np.repeat(x.indices, 2), x.indptr * 2), shape=x.shape)


KINDS: dict[str, Callable[[Path], Any]] = {
    "float32": lambda _: NORMAL,
    "float64": lambda _: NORMAL.astype(np.float64),
    "long double": lambda _: NORMAL.astype(np.longdouble),
    "big-endian": lambda _: NORMAL.astype(">f4"),
    "objects": lambda _: NORMAL.astype(object),
    "Fortran order": lambda _: np.asfortranarray(NORMAL),
    "strided": lambda _: np.repeat(NORMAL, 2, 1)[:, ::2],
    "reversed": lambda _: NORMAL[::-1].copy()[::-1],
    "read-only": read_only,
    "memory-mapped": memmap,
    "a list": lambda _: NORMAL.tolist(),
    "pandas": lambda _: pd.DataFrame(NORMAL),
    "pandas of several dtypes": lambda _: pd.DataFrame(NORMAL).astype({0: "float64", 2: "Float32"}),
    "pandas, sparse": lambda _: pd.DataFrame(NORMAL).astype(pd.SparseDtype(NORMAL.dtype, 0)),
    "CSR": lambda _: scipy.sparse.csr_matrix(NORMAL),
    "CSR array": lambda _: scipy.sparse.csr_array(NORMAL),
    "CSC": lambda _: scipy.sparse.csc_matrix(NORMAL),
    "COO": lambda _: scipy.sparse.coo_array(NORMAL),
    "CSR with duplicates": duplicates,
    "tensor": lambda _: torch.from_numpy(NORMAL),
    "tensor with a gradient": lambda _: torch.from_numpy(NORMAL).requires_grad_(),
    "transposed tensor": lambda _: torch.from_numpy(NORMAL).T.contiguous().T,
    "COO tensor": lambda _: torch.from_numpy(NORMAL).to_sparse(),
    "CSR tensor": lambda _: torch.from_numpy(NORMAL).to_sparse_csr(),
    "loader": lambda _: DataLoader(TensorDataset(torch.from_numpy(NORMAL), torch.arange(200)), batch_size=30),
    "loader of tensors": lambda _: DataLoader(torch.from_numpy(NORMAL), batch_size=30),  # type: ignore[arg-type]
    "shuffling loader": lambda _: DataLoader(
        TensorDataset(torch.from_numpy(NORMAL)), batch_size=30, shuffle=True, drop_last=True
    ),
    "loader with a process": lambda _: DataLoader(
        TensorDataset(torch.from_numpy(NORMAL)), batch_size=150, shuffle=True, num_workers=1
    ),
    "loader of a stream": lambda _: DataLoader(Stream(), batch_size=30),
    "loader of batches": lambda _: DataLoader(list(torch.from_numpy(NORMAL).split(30)), batch_size=None),
    "loader of dicts": lambda _: DataLoader([{"x": x} for x in torch.from_numpy(NORMAL)], batch_size=30),  # type: ignore[arg-type]
    "batches": lambda _: Batches(),
    "batches of sparse rows": lambda _: Batches(scipy.sparse.csr_array(NORMAL)),
    "batches of sparse tensors": lambda _: Parts(),
    "Hugging Face": lambda _: dataset(),
    "Hugging Face, torch": lambda _: dataset(type="torch"),
    "Hugging Face, numpy": lambda _: dataset(type="numpy"),
    "Hugging Face, pandas": lambda _: dataset(type="pandas"),
    "Hugging Face, transformed": lambda _: dataset().with_transform(lambda b: {"x": [torch.tensor(x) for x in b["x"]]}),
    "Hugging Face, of rows picked out": lambda _: dataset(NORMAL[::-1].copy()).select(range(199, -1, -1)),
    "Hugging Face, streamed": lambda _: dataset().to_iterable_dataset(),
    "loader of Hugging Face": lambda _: DataLoader(dataset(type="torch"), batch_size=30),
}
UNORDERED = {
    "loader of a stream",
    "batches",
    "batches of sparse rows",
    "batches of sparse tensors",
    "Hugging Face, streamed",
}


def make(name: str, folder: Path) -> Any:
    if name == "CSR tensor":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            return KINDS[name](folder)
    return KINDS[name](folder)


def source(X: Any, **settings: Any) -> _data.Source:
    return _data.source(RobustVaDE(**settings), X, device=CPU)


def prepared(X: Any, reconstruction: str = "auto", **settings: Any) -> tuple[_data.Source, _data.Preparation]:
    made = source(X, **settings)
    return made, _data.prepare(made, reconstruction)


def all_rows(made: _data.Source) -> Tensor:
    return torch.cat(list(made.in_order(64)))


EXPECTED = (NORMAL.astype(np.float64) - NORMAL.astype(np.float64).mean(0)) / math.sqrt(
    NORMAL.astype(np.float64).var(0).mean()
)


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_x_give_the_same_rows_in_order_and_in_epochs(kind: str, tmp_path: Path) -> None:
    made, preparation = prepared(make(kind, tmp_path))
    assert preparation.kind == "gaussian"
    assert made.seen == 200
    assert made.shape == (7,)
    assert made.n_features == 7
    rows = all_rows(made)
    assert rows.dtype == torch.float32
    np.testing.assert_allclose(rows, EXPECTED, rtol=1e-6, atol=1e-6)
    assert [len(x) for x in made.in_order(64)] == [64, 64, 64, 8]
    np.testing.assert_allclose(preparation.restore(rows), NORMAL, rtol=1e-5, atol=1e-5)
    if made.addressable:
        index = torch.tensor([3, 199, 3])
        assert torch.equal(made.rows(index), rows[index])
    first = list(made.epoch(64, torch.Generator().manual_seed(0)))
    again = list(made.epoch(64, torch.Generator().manual_seed(0)))
    assert all(torch.equal(a.x, b.x) and torch.equal(a.negative, b.negative) for a, b in zip(first, again, strict=True))
    seen, partners = torch.cat([b.x for b in first]), torch.cat([b.negative for b in first])
    whole = rows.unique(dim=0)
    if kind != "shuffling loader":  # it drops the last
        assert torch.equal(seen.unique(dim=0), whole)
        assert torch.equal(partners.unique(dim=0), whole)
    assert (seen != partners).any(1).float().mean() > 0.95
    assert all(b.rows == len(b.x) and b.part == slice(0, len(b.x)) for b in first)


FITTED = [
    "float64",
    "memory-mapped",
    "pandas",
    "CSR",
    "tensor",
    "COO tensor",
    "shuffling loader",
    "batches",
    "Hugging Face",
]


@pytest.mark.parametrize("kind", FITTED)
def test_kinds_of_x_are_clustered_and_predicted_alike(kind: str, tmp_path: Path) -> None:
    X = make(kind, tmp_path)
    estimator = VaDE(**SMALL)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "component")  # of so short a training
        labels = estimator.fit_predict(X)
    assert hasattr(estimator, "labels_") == (kind not in UNORDERED)
    predicted = estimator.predict(X)
    np.testing.assert_array_equal(labels, predicted)
    if kind not in UNORDERED:
        np.testing.assert_array_equal(estimator.labels_, predicted)
    assert isinstance(
        predicted, Tensor if "tensor" in kind and "batches" not in kind and "loader" not in kind else np.ndarray
    )
    assert estimator.n_features_in_ == 7
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "X does not have valid feature names")
        np.testing.assert_array_equal(estimator.predict(NORMAL), predicted)


def test_epochs_of_addressable_rows_are_two_permutations_that_change() -> None:
    made, _ = prepared(NORMAL)
    generator = torch.Generator().manual_seed(0)
    order, partners = torch.randperm(200, generator=generator), torch.randperm(200, generator=generator)
    generator.manual_seed(0)
    first = list(made.epoch(64, generator))
    assert [b.rows for b in first] == [64, 64, 64, 8]
    rows = all_rows(made)
    assert torch.equal(torch.cat([b.x for b in first]), rows[order])
    assert torch.equal(torch.cat([b.negative for b in first]), rows[partners])
    assert not torch.equal(torch.cat([b.x for b in made.epoch(64, generator)]), rows[order])


@pytest.mark.parametrize("kind", ["float32", "loader", "shuffling loader", "batches", "Hugging Face"])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_batches_of_one_process(kind: str, world: int, tmp_path: Path) -> None:
    made, _ = prepared(make(kind, tmp_path))
    whole = list(made.epoch(50, torch.Generator().manual_seed(3)))
    parts = [list(made.epoch(50, torch.Generator().manual_seed(3), rank=r, world=world)) for r in range(world)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([b.x for b in shares]), batch.x)
        assert torch.equal(torch.cat([b.negative for b in shares]), batch.negative)
        assert all(torch.equal(b.x, batch.x[b.part]) and b.rows == batch.rows for b in shares)


def test_a_loader_is_shuffled_by_random_state_alone_and_torchs_generator_is_left_alone() -> None:
    made, _ = prepared(DataLoader(TensorDataset(torch.from_numpy(NORMAL)), batch_size=30, shuffle=True))
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        runs.append(torch.cat([b.x for b in made.epoch(64, torch.Generator().manual_seed(0))]))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], torch.cat([b.x for b in made.epoch(64, torch.Generator().manual_seed(1))]))
    assert [b.rows for b in made.epoch(64, torch.Generator())] == [30] * 6 + [20]  # the loader's batches, not ours


def test_a_loader_whose_transformation_is_random_gives_the_same_prediction_twice() -> None:
    class Noisy(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            return self.tensors[0][index] + torch.randn(7)

    made, _ = prepared(DataLoader(Noisy(torch.from_numpy(NORMAL)), batch_size=30, shuffle=True))
    assert torch.equal(all_rows(made), all_rows(made))
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.cat([b.x for b in made.epoch(64, generator)]) for _ in range(2))
    assert len(set(first.flatten().tolist()) & set(second.flatten().tolist())) < 10  # each epoch has noise of its own


@pytest.mark.parametrize(
    "sampler",
    [
        lambda d: SubsetRandomSampler(range(50)),
        lambda d: RandomSampler(d, replacement=True, num_samples=50),
        lambda d: RandomSampler(d, num_samples=50),
    ],
    ids=["a subset", "with replacement", "fewer"],
)
def test_a_loader_whose_sampler_leaves_rows_out_is_a_stream_without_labels(sampler: Any) -> None:
    rows = TensorDataset(torch.from_numpy(NORMAL))
    made, _ = prepared(DataLoader(rows, batch_size=30, sampler=sampler(rows)))
    assert made.seen == 50
    assert made.n_rows is None
    assert not made.ordered


def test_labels_of_a_stream_do_not_stay_from_an_earlier_fit() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "component")
        estimator = VaDE(**SMALL).fit(NORMAL)
        assert len(estimator.labels_) == 200
        estimator.partial_fit(Batches())
        assert not hasattr(estimator, "labels_")
        estimator.partial_fit(NORMAL[:20])
        assert len(estimator.labels_) == 20
        assert not hasattr(estimator.fit(Batches()), "labels_")


# Which likelihood, and what rows are before the networks see them


@pytest.mark.parametrize(
    ("X", "kind", "pixel", "unit"),
    [
        (BYTES, "bernoulli", 255, 255),
        (BYTES // 2, "bernoulli", 255, 255),
        (BYTES % 2, "bernoulli", 1, 1),
        (BYTES / 255, "bernoulli", 255, 1),
        ((BYTES / 255).astype(np.float16), "bernoulli", 255, 1),
        (BYTES > 100, "bernoulli", 1, 1),
        ((BYTES > 100).astype(int), "bernoulli", 1, 1),
        (BYTES.astype(int), "gaussian", 1, 1),
        (BYTES.astype(np.uint16), "gaussian", 1, 1),
        (BYTES / 255 * 1.001, "gaussian", 1, 1),
        (BYTES / 255 - 1e-9, "gaussian", 1, 1),
        (torch.from_numpy(BYTES), "bernoulli", 255, 255),
        (torch.from_numpy(BYTES).to(torch.bfloat16) / 256, "bernoulli", 255, 1),
        (torch.from_numpy(BYTES) > 9, "bernoulli", 1, 1),
    ],
    ids=[
        "bytes", "dark bytes", "bytes of 0 and 1", "floats", "float16", "bool", "0 and 1", "int64", "uint16", "above 1",
        "below 0", "tensor of bytes", "bfloat16", "tensor of bool",
    ],
)  # fmt: skip
@pytest.mark.parametrize("by", ["array", "loader"])
def test_auto_chooses_the_likelihood_by_type_and_range(X: Any, kind: str, pixel: float, unit: float, by: str) -> None:
    rows = X if isinstance(X, Tensor) else torch.from_numpy(X)
    made, preparation = prepared(X if by == "array" else DataLoader(TensorDataset(rows), batch_size=64))
    assert (preparation.kind, preparation.pixel, preparation.unit) == (kind, pixel, unit)
    x = all_rows(made)
    assert x.shape == (200, 8, 9)
    if kind == "bernoulli":
        assert torch.equal(x, rows.float() / unit)
        assert preparation.log_volume == 0
    np.testing.assert_allclose(preparation.restore(x), rows.double(), rtol=1e-5, atol=1e-4)


def test_bytes_of_a_hugging_face_dataset_are_bytes_whatever_its_format() -> None:
    """Its own formats make int64 of them."""
    for made in (
        dataset(BYTES),
        dataset(BYTES, type="torch"),
        dataset(BYTES, type="numpy"),
        dataset(BYTES).to_iterable_dataset(),
    ):
        rows, preparation = prepared(made)
        assert (preparation.kind, preparation.unit) == ("bernoulli", 255)
        assert torch.equal(all_rows(rows), torch.from_numpy(BYTES).float() / 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_a_hugging_face_dataset_are_decoded_with_their_channels_first(channels: int) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra `hf`")
    Image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    pixels = BYTES[:20] if channels == 1 else np.stack([BYTES[:20], BYTES[20:40], BYTES[40:60]], 3)
    X = datasets.Dataset.from_dict({"image": [Image.fromarray(x) for x in pixels], "label": [0] * 20})
    made, preparation = prepared(X.cast_column("image", datasets.Image()).select_columns("image"))
    assert preparation.kind == "bernoulli"
    expected = pixels if channels == 1 else pixels.transpose(0, 3, 1, 2)
    assert torch.equal(all_rows(made), torch.from_numpy(expected.copy()).float() / 255)


def test_a_fitted_model_of_bytes_takes_the_same_images_as_floats_and_the_other_way() -> None:
    floats = BYTES / np.float32(255)
    for fitted, other in ((BYTES, floats), (floats, BYTES)):
        _, preparation = prepared(fitted)
        made = _data.source(RobustVaDE(), other, device=CPU, shape=(8, 9))
        made.use(preparation)
        assert torch.equal(all_rows(made), torch.from_numpy(floats))


def test_one_scalar_divides_all_columns() -> None:
    X = np.random.default_rng(1).normal(size=(500, 3)) * [1, 10, 100] + [5, -5, 1e6]
    made, preparation = prepared(X)
    assert float(preparation.scale) == pytest.approx(math.sqrt(X.var(0).mean()), rel=1e-12)
    np.testing.assert_allclose(preparation.shift, X.mean(0), rtol=1e-12)
    rows = all_rows(made).double()
    assert float(rows.var(0, correction=0).mean()) == pytest.approx(1)
    np.testing.assert_allclose(rows.std(0) / rows.std(0)[0], X.std(0) / X.std(0)[0], rtol=1e-6)
    np.testing.assert_allclose(preparation.low, rows.amin(0))
    np.testing.assert_allclose(preparation.high, rows.amax(0))
    assert preparation.log_volume == pytest.approx(3 * math.log(preparation.scale))


def test_large_offsets_do_not_cost_precision() -> None:
    """Seconds since 1970, in float64: float32 would leave steps of 128."""
    X = np.random.default_rng(1).normal(size=(500, 3))
    np.testing.assert_allclose(all_rows(prepared(X + 1.7e9)[0]), all_rows(prepared(X)[0]), atol=1e-6)


@pytest.mark.parametrize("kind", ["array", "sparse", "loader", "tensor"])
def test_four_times_the_data_are_the_same_rows_bit_for_bit(kind: str) -> None:
    """Any power of two, also in float32."""

    def rows(factor: float) -> Tensor:
        X = NORMAL * np.float32(factor)
        made = {
            "array": lambda: X,
            "sparse": lambda: scipy.sparse.csr_array(X),
            "loader": lambda: DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=30),
            "tensor": lambda: torch.from_numpy(X),
        }[kind]()
        return all_rows(prepared(made)[0])

    assert torch.equal(rows(1), rows(4))
    assert torch.equal(rows(1), rows(2.0**-20))


def test_four_times_the_data_have_the_same_labels() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "component")
        first, second = (RobustVaDE(**SMALL).fit(factor * NORMAL) for factor in (1, 4))
    np.testing.assert_array_equal(first.labels_, second.labels_)
    for mine, theirs in zip(first.module_.parameters(), second.module_.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@settings(max_examples=40, deadline=None)
@given(
    st_numpy.arrays(
        np.float64,
        st_numpy.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=20),
        elements=st.floats(-1e6, 1e6, allow_subnormal=False).map(lambda v: 0.0 if abs(v) < 1e-3 else v),
    ),
    st.integers(1, 7),
)
def test_moments_of_any_chunks_and_of_sparse_rows_are_those_of_numpy(X: np.ndarray, size: int) -> None:
    loader = DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=size)
    for made in (X, scipy.sparse.csr_array(X), loader):
        _, preparation = prepared(made, "gaussian")
        np.testing.assert_allclose(preparation.shift, X.mean(0), rtol=1e-9, atol=1e-9)
        expected = math.sqrt(X.var(0).mean())
        if expected > 1e-6:
            assert float(preparation.scale) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("value", [0.0, 3.0, -1e9, 0.1])
def test_constant_data_have_scale_one(value: float) -> None:
    for X in (np.full((50, 3), value), scipy.sparse.csr_array(np.full((50, 3), value))):
        made, preparation = prepared(X, "gaussian")
        assert float(preparation.scale) == 1
        assert not all_rows(made).any()


def test_float16_and_integers_are_summed_in_float64() -> None:
    X = np.full((5000, 2), 60000, np.float16)
    X[::2] = 50000
    _, preparation = prepared(X)
    assert preparation.shift.tolist() == X.astype(np.float64).mean(0).tolist()
    _, preparation = prepared(np.full((5000, 2), 2**31 - 1, np.int32) - np.arange(2, dtype=np.int32))
    assert preparation.shift.tolist() == [2**31 - 1, 2**31 - 2]


# Memory


def test_sparse_rows_are_dense_for_a_batch_at_a_time() -> None:
    X = scipy.sparse.random(20_000, 3_000, 1e-3, "csr", float, np.random.default_rng(0))
    X.data *= 5
    tracemalloc.start()
    made, preparation = prepared(X)
    assert preparation.kind == "gaussian"
    for _ in made.in_order(64):
        pass
    for batch in made.epoch(64, torch.Generator()):
        assert batch.x.shape[1:] == (3000,)
        break
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000 * 3_000 * 8 / 20


def test_arrays_are_not_copied() -> None:
    X = np.random.default_rng(0).random((40_000, 200))
    tracemalloc.start()
    made, _ = prepared(X)
    for _ in made.in_order(64):
        pass
    next(iter(made.epoch(64, torch.Generator())))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < X.nbytes / 4
    assert made.raw(slice(0, 4)).data_ptr() == X.ctypes.data


def test_data_are_never_written_to() -> None:
    for X in (NORMAL.copy(), (NORMAL > 0).astype(np.float32), torch.from_numpy(NORMAL.copy())):
        before = X.copy() if isinstance(X, np.ndarray) else X.clone()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "component")
            VaDE(**SMALL).fit(X).score_samples(X)
        assert bool((before == X).all())


# What scikit-learn keeps


def test_names_of_columns_are_kept_and_wrong_ones_refused() -> None:
    table = pd.DataFrame(NORMAL, columns=list("abcdefg"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "component")
        estimator = VaDE(**SMALL).fit(table)
    assert estimator.feature_names_in_.tolist() == list("abcdefg")
    np.testing.assert_array_equal(estimator.predict(table), estimator.labels_)
    with pytest.raises(ValueError, match="feature names should match"):
        estimator.predict(table[list("gfedcba")])
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        estimator.predict(NORMAL)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "component")
        assert not hasattr(estimator.fit(NORMAL), "feature_names_in_")


def test_a_table_of_several_dtypes_is_one_of_numbers() -> None:
    table = pd.DataFrame(
        {
            "a": RNG.normal(size=50),
            "b": RNG.integers(0, 9, 50),
            "c": RNG.random(50) > 0.5,
            "d": pd.array(RNG.integers(0, 9, 50), dtype="Int64"),
            "e": RNG.random(50).astype(np.float16),
        }
    )
    made, _ = prepared(table)
    np.testing.assert_allclose(made.preparation.restore(all_rows(made)), table.to_numpy(float), rtol=1e-5, atol=1e-5)
    assert made.feature_names.tolist() == list("abcde")
    with pytest.raises(ValueError, match="could not convert string to float"):
        source(table.assign(f="text"))


# Images and other shapes


@pytest.mark.parametrize("shape", [(8, 9), (1, 8, 9), (3, 9, 8)], ids=str)
@pytest.mark.parametrize("encoder", ["conv", "mlp"])
@pytest.mark.parametrize("kind", ["array", "tensor", "loader"])
def test_images_keep_their_shape(shape: tuple[int, ...], encoder: str, kind: str) -> None:
    X = RNG.integers(0, 256, (40, *shape), dtype=np.uint8)
    given_as: Any = X
    if kind == "tensor":
        given_as = torch.from_numpy(X)
    elif kind == "loader":
        given_as = DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=16)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "component")
        estimator = VaDE(**SMALL, encoder=encoder).fit(given_as)
    assert estimator.n_features_in_ == math.prod(shape)
    decoded = estimator.reconstruct(given_as)
    assert tuple(decoded.shape) == X.shape
    assert 1 < float(decoded.max()) <= 255
    drawn, labels = estimator.sample(3)
    assert drawn.shape == (3, *shape)
    assert labels.shape == (3,)
    np.testing.assert_array_equal(estimator.predict(given_as), estimator.labels_)


def test_a_module_takes_rows_of_any_shape() -> None:
    X = RNG.normal(size=(40, 2, 3, 4, 5)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "component")
        estimator = VaDE(**SMALL, encoder=nn.Sequential(nn.Flatten(), nn.Linear(120, 16), nn.ReLU())).fit(X)
    assert estimator.reconstruct(X).shape == X.shape


@pytest.mark.gpu
def test_arrays_and_tensors_give_the_same_rows_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda")
    for X in (
        NORMAL,
        BYTES,
        BYTES / 255,
        torch.from_numpy(NORMAL),
        torch.from_numpy(NORMAL).cuda(),
        scipy.sparse.csr_array(NORMAL),
    ):
        made = _data.source(RobustVaDE(), X, device=device)
        preparation = _data.prepare(made)
        other, _ = prepared(X.cpu() if isinstance(X, Tensor) else X)
        rows = all_rows(made)
        assert rows.device.type == "cuda"
        assert torch.equal(rows.cpu(), all_rows(other))
        index = torch.tensor([5, 1, 5])
        assert torch.equal(made.rows(index), rows[index])
        mine = torch.cat([b.x for b in made.epoch(64, torch.Generator().manual_seed(0))])
        theirs = torch.cat([b.x for b in other.epoch(64, torch.Generator().manual_seed(0))])
        assert torch.equal(mine.cpu(), theirs)
        plain = X.toarray() if scipy.sparse.issparse(X) else torch.as_tensor(X).cpu().float()
        np.testing.assert_allclose(preparation.restore(rows).cpu(), plain, rtol=1e-5, atol=1e-5)
