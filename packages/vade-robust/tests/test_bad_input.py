"""What is refused, in which words, and that nothing has changed when it was; what is odd but works."""

from __future__ import annotations

import copy
import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from vade_robust import RobustVaDE, VaDE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SMALL: dict[str, Any] = {
    "n_clusters": 3,
    "hidden": (16,),
    "pretrain_epochs": 1,
    "epochs": 1,
    "batch_size": 64,
    "random_state": 0,
}
RNG = np.random.default_rng(0)
X = (RNG.integers(0, 3, (90, 1)) * 20 + RNG.normal(size=(90, 4))).astype(np.float32)
UNIT = (X - X.min()) / (X.max() - X.min())
IMAGES = RNG.integers(0, 256, (40, 8, 9), dtype=np.uint8)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def quietly(fit: Callable[..., Any], *args: Any) -> Any:
    """Without the warnings of trainings that are too short to use all components."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return fit(*args)


@pytest.fixture(scope="module")
def fitted() -> Any:
    return quietly(RobustVaDE(**SMALL, reconstruction="gaussian").fit, X)


@pytest.fixture(scope="module")
def fitted_unit() -> Any:
    return quietly(RobustVaDE(**SMALL | {"n_clusters": 1}, reconstruction="bernoulli").fit, UNIT)


@pytest.fixture(scope="module")
def fitted_images() -> Any:
    return quietly(VaDE(**SMALL, encoder="conv").fit, IMAGES)


def snapshot(value: Any) -> Any:
    """All that an estimator holds, as something that can be compared."""
    if isinstance(value, Tensor):
        return ("tensor", value.dtype, value.detach().cpu().numpy().tobytes())
    if isinstance(value, np.ndarray):
        return ("array", value.dtype.str, value.tobytes() if value.dtype != object else value.tolist())
    if isinstance(value, nn.Module):
        return ("module", id(value), snapshot(value.state_dict()), [m.training for m in value.modules()])
    if isinstance(value, torch.Generator):
        return snapshot(value.get_state())
    if isinstance(value, dict):
        return {k: snapshot(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [snapshot(v) for v in value]
    if hasattr(value, "__dict__") and type(value).__module__.startswith("vade_robust"):
        return (id(value), snapshot(vars(value)))
    return value if isinstance(value, (int, float, str, bool, type(None))) else repr(type(value))


def assert_refused(estimator: Any, call: Callable[[Any], Any], error: Any, words: str) -> None:
    """The call raises the error, in words that match, and leaves the estimator and torch's generator as they were."""
    before, state = snapshot(vars(estimator)), torch.get_rng_state()
    with pytest.raises(error) as caught:
        call(estimator)
    message = str(caught.value)
    assert re.search(words, message, re.S), message
    assert snapshot(vars(estimator)) == before
    assert torch.equal(torch.get_rng_state(), state)


# Parameters

PARAMETERS = [
    ("n_clusters", 0, ValueError, r"n_clusters must be an integer >= 1, got 0"),
    ("n_clusters", -3, ValueError, r"n_clusters .* >= 1, got -3"),
    ("n_clusters", 2.5, TypeError, r"n_clusters must be an integer .* got 2\.5"),
    ("n_clusters", True, TypeError, r"n_clusters .* got True"),
    ("n_clusters", "8", TypeError, r"n_clusters .* got '8'"),
    ("n_clusters", None, TypeError, r"n_clusters .* got None"),
    ("n_latent", 0, ValueError, r"n_latent .* got 0"),
    ("hidden", (), ValueError, r"hidden must name at least one layer, got \(\)"),
    ("hidden", (16, 0), ValueError, r"hidden .* >= 1, got 0"),
    ("hidden", (16, 2.0), TypeError, r"hidden .* got 2\.0"),
    ("hidden", 16, TypeError, r"hidden must be a sequence .* got 16"),
    ("hidden", "16", TypeError, r"hidden must be a sequence .* got '16'"),
    ("encoder", "resnet", ValueError, r"encoder must be 'mlp' or 'conv' or an nn\.Module, got 'resnet'"),
    ("encoder", nn.Linear, TypeError, r"encoder must be .* nn\.Module"),
    ("reconstruction", "poisson", ValueError, r"reconstruction .*'auto'.*'bernoulli'.*'gaussian'.* got 'poisson'"),
    ("reconstruction", None, ValueError, r"reconstruction .* got None"),
    ("mutual_information", -1.0, ValueError, r"mutual_information must be non-negative, got -1\.0"),
    ("mutual_information", "1", TypeError, r"mutual_information must be a number, got '1'"),
    ("locality", -1e-9, ValueError, r"locality must be non-negative, got -1e-09"),
    ("locality", float("nan"), ValueError, r"locality must be finite, got nan"),
    ("locality", float("inf"), ValueError, r"locality must be finite, got inf"),
    ("perplexity", 0.5, ValueError, r"perplexity must be 'auto' or a number >= 1, got 0\.5"),
    ("perplexity", "large", ValueError, r"perplexity must be 'auto' or a number >= 1, got 'large'"),
    ("perplexity", 63, ValueError, r"perplexity must be in \[1, b - 1\) for batches of b=64 rows, got 63"),
    ("perplexity", 1e9, ValueError, r"perplexity must be in \[1, b - 1\)"),
    ("posterior", "Exact", ValueError, r"posterior must be 'exact' or 'sampled', got 'Exact'"),
    ("assign", "kmeans", ValueError, r"assign must be 'embedding' or 'mixture', got 'kmeans'"),
    ("adversarial", -0.1, ValueError, r"adversarial must be non-negative, got -0\.1"),
    ("pretrain_epochs", 0, ValueError, r"pretrain_epochs .* got 0"),
    ("epochs", 0, ValueError, r"epochs .* got 0"),
    ("batch_size", 0, ValueError, r"batch_size .* got 0"),
    ("batch_size", 64.0, TypeError, r"batch_size .* got 64\.0"),
    ("lr", 0.0, ValueError, r"lr must be positive, got 0\.0"),
    ("lr", -1e-3, ValueError, r"lr must be positive, got -0\.001"),
    ("lr", float("nan"), ValueError, r"lr must be finite, got nan"),
    ("lr", None, TypeError, r"lr must be a number, got None"),
    ("warmup", 1.5, ValueError, r"warmup must be in \[0, 1\], got 1\.5"),
    ("warmup", -0.1, ValueError, r"warmup must be in \[0, 1\], got -0\.1"),
    ("device", "abacus", ValueError, r"device must name a device of this machine.* got 'abacus'"),
    ("device", "cuda:99", ValueError, r"device .* got 'cuda:99'"),
    ("device", "meta", ValueError, r"device .* got 'meta'"),
    ("device", 1.5, ValueError, r"device .* got 1\.5"),
    ("random_state", "seed", ValueError, r"random_state must be .* got 'seed'"),
    ("random_state", -1, ValueError, r"random_state must be .* got -1"),
    ("n_jobs", 0, ValueError, r"n_jobs must be None or an integer other than 0, got 0"),
    ("n_jobs", 1.5, TypeError, r"n_jobs .* got 1\.5"),
    ("verbose", "yes", TypeError, r"verbose .* got 'yes'"),
    ("callbacks", 3, TypeError, r"callbacks must be a sequence .* got 3"),
    ("callbacks", (print,), TypeError, r"callbacks must have a method on_epoch_end"),
    ("preset", "dec", ValueError, r"preset must be None or 'lpvdn' or 'vade', got 'dec'"),
]


@pytest.mark.parametrize(
    ("name", "value", "error", "words"), PARAMETERS, ids=[f"{p[0]}-{i}" for i, p in enumerate(PARAMETERS)]
)
def test_parameters_that_break_a_rule_are_named_with_rule_and_value(
    name: str, value: Any, error: type[Exception], words: str, fitted: Any
) -> None:
    estimator = copy.copy(fitted)
    estimator.set_params(**{name: value})
    for method in ("fit", "partial_fit"):
        assert_refused(estimator, lambda e, method=method: getattr(e, method)(X), error, words)
    if name in VaDE().get_params():
        assert_refused(VaDE(**SMALL | {name: value}), lambda e: e.fit(X), error, words)


def test_perplexity_is_compared_with_the_rows_of_a_batch_that_there_are() -> None:
    estimator = RobustVaDE(**SMALL | {"batch_size": 800}, perplexity=50)
    assert_refused(estimator, lambda e: e.fit(X[:40]), ValueError, r"batches of b=40 rows, got 50")
    loader = DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=30)
    assert_refused(estimator, lambda e: e.fit(loader), ValueError, r"batches of b=30 rows, got 50")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"locality": 0}, r"assign='embedding' .* locality.* got locality=0"),
        ({"locality": 0.0, "assign": "embedding"}, r"assign='embedding' .* locality=0"),
        ({"adversarial": 0.1, "mutual_information": 0}, r"adversarial=0\.1 .* mutual_information=0"),
        ({"preset": "lpvdn", "posterior": "exact", "warmup": 0.5}, r"preset='lpvdn' has warmup=0\.0, got warmup=0\.5"),
        ({"preset": "lpvdn", "reconstruction": "gaussian"}, r"preset='lpvdn' .* reconstruction='gaussian'"),
        ({"preset": "lpvdn", "perplexity": 5}, r"preset='lpvdn' .* perplexity=5"),
        ({"preset": "lpvdn", "adversarial": 0.1}, r"preset='lpvdn' .* adversarial=0\.1"),
        ({"preset": "lpvdn", "assign": "mixture"}, r"preset='lpvdn' .* assign='mixture'"),
        ({"preset": "vade", "locality": 1e-3}, r"preset='vade' .* locality=0\.001"),
        ({"preset": "vade", "perplexity": 5.0}, r"preset='vade' .* perplexity=5\.0"),
        ({"preset": "vade", "exaggeration": 2.0}, r"preset='vade' .* exaggeration=2\.0"),
        ({"preset": "vade", "mutual_information": 0.5}, r"preset='vade' .* mutual_information=0\.5"),
    ],
    ids=str,
)
def test_parameters_that_contradict_each_other_are_both_named(settings: dict[str, Any], words: str) -> None:
    assert_refused(RobustVaDE(**SMALL, **settings), lambda e: e.fit(UNIT), ValueError, words)


def test_a_map_is_not_to_be_had_from_a_model_without_one() -> None:
    assert_refused(VaDE(**SMALL, assign="embedding"), lambda e: e.fit(X), ValueError, r"assign='embedding'.*locality=0")
    estimator = quietly(VaDE(**SMALL).fit, X)
    assert_refused(estimator, lambda e: e.predict(X, assign="embedding"), ValueError, "assign='embedding' .*locality")
    assert_refused(estimator, lambda e: e.transform(X, space="embedding"), ValueError, "space='embedding' .*locality")


def test_presets_agree_with_what_they_say_and_with_defaults() -> None:
    quietly(RobustVaDE(**SMALL, preset="lpvdn", warmup=0.0, posterior="sampled", locality=1e-4).fit, UNIT)
    assert quietly(RobustVaDE(**SMALL, preset="vade").fit, X).module_.t_encoder is None


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda e: e.predict(X, assign="nearest"), ValueError, "assign must be .* got 'nearest'"),
        (lambda e: e.predict_proba(X, assign=1), TypeError, "assign must be .* got 1"),
        (lambda e: e.transform(X, space="data"), ValueError, "space must be .* got 'data'"),
        (lambda e: e.score_samples(X, n_samples=0), ValueError, "n_samples must be an integer >= 1, got 0"),
        (lambda e: e.score_samples(X, n_samples=1.5), TypeError, "n_samples .* got 1.5"),
        (lambda e: e.sample(0), ValueError, "n must be an integer >= 1, got 0"),
        (lambda e: e.sample(2, cluster=3), ValueError, "cluster must be .* n_clusters=3, got 3"),
        (lambda e: e.sample(2, cluster=-1), ValueError, "cluster must be .* got -1"),
        (lambda e: e.sample(2, cluster="a"), TypeError, "cluster must be .* got 'a'"),
    ],
)
def test_arguments_of_methods_are_checked(call: Callable[[Any], Any], error: Any, words: str, fitted: Any) -> None:
    assert_refused(fitted, call, error, words)


METHODS = ["predict", "predict_proba", "transform", "score_samples", "score", "reconstruct"]


@pytest.mark.parametrize("method", [*METHODS, "sample", "save"])
@pytest.mark.parametrize("kind", [RobustVaDE, VaDE])
def test_use_before_fit_is_refused(kind: Any, method: str, tmp_path: Any) -> None:
    argument = {"sample": 1, "save": tmp_path / "model"}.get(method, X)
    assert_refused(kind(**SMALL), lambda e: getattr(e, method)(argument), NotFittedError, "not fitted yet")
    assert not (tmp_path / "model").exists()


# How many rows and features


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (X[:0], r"0 sample\(s\).* minimum of 2 is required by RobustVaDE"),
        (X[:1], r"1 sample\(s\).* minimum of 2 is required"),
        (X[:, :0], r"0 feature\(s\).* minimum of 1 is required"),
        (X[:2], r"n_samples=2 should be >= n_clusters=3"),
        (X[0], "Expected 2D array, got 1D array"),
        (np.float32(3), "Expected 2D array, got scalar array|Expected 2D"),
        (IMAGES[:0], r"0 sample\(s\)"),
        (IMAGES[:1], r"1 sample\(s\)"),
        (IMAGES[:, :0], r"0 feature\(s\)"),
    ],
    ids=[
        "no row",
        "one row",
        "no feature",
        "too few rows",
        "a vector",
        "a number",
        "no image",
        "one image",
        "no pixel",
    ],
)
@pytest.mark.parametrize("by", ["array", "tensor", "sparse", "loader"])
def test_too_little_data_is_refused_in_the_words_of_scikit_learn(bad: Any, words: str, by: str, fitted: Any) -> None:
    given: Any = bad
    if by == "tensor":
        given = torch.as_tensor(bad)
        words = words.replace("got scalar array", "got 0D array")
    elif by == "sparse":
        if np.ndim(bad) != 2:
            return  # scipy has no such sparse array
        given = scipy.sparse.csr_array(bad)
    elif by == "loader":
        if np.ndim(bad) < 2:
            return  # a loader adds a dimension
        given = DataLoader(TensorDataset(torch.from_numpy(bad)), batch_size=20)
    assert_refused(RobustVaDE(**SMALL), lambda e: e.fit(given), ValueError, words)
    assert_refused(fitted, lambda e: e.fit(given), ValueError, words)


def test_streams_without_rows_are_refused(fitted: Any) -> None:
    class Nothing:
        def __iter__(self) -> Iterator[Any]:
            return iter(())

    class One:
        def __iter__(self) -> Iterator[Any]:
            yield X[:1]

    for method in ("fit", "predict"):
        assert_refused(
            fitted, lambda e, m=method: getattr(e, m)(Nothing()), ValueError, r"X gave no rows, 0 sample\(s\)"
        )
    assert_refused(fitted, lambda e: e.fit(One()), ValueError, r"n_samples=1 should be >= 2")


# Values

BAD = {"NaN": (np.nan, "NaN"), "inf": (np.inf, "infinity"), "-inf": (-np.inf, "infinity")}


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("by", ["array", "float16", "pandas", "tensor", "sparse", "list", "Hugging Face"])
@pytest.mark.parametrize("method", ["fit", "partial_fit", *METHODS])
def test_what_is_not_finite_is_refused_with_its_row(method: str, by: str, value: str, fitted: Any) -> None:
    number, word = BAD[value]
    bad = X.copy()
    bad[37, 2] = number
    bad[50, 1] = np.nan
    given: Any = {
        "array": lambda: bad,
        "float16": lambda: bad.astype(np.float16),
        "pandas": lambda: pd.DataFrame(bad),
        "tensor": lambda: torch.from_numpy(bad),
        "sparse": lambda: scipy.sparse.csr_matrix(bad),
        "list": bad.tolist,
        "Hugging Face": lambda: pytest.importorskip("datasets", reason="needs the extra `hf`").Dataset.from_dict(
            {"x": bad}
        ),
    }[by]()
    assert_refused(fitted, lambda e: getattr(e, method)(given), ValueError, rf"Input X contains {word}.* in row 37$")


def test_what_is_not_finite_in_images_is_refused_with_its_row(fitted: Any) -> None:
    bad = RNG.random((90, 2, 2))
    bad[37, 1, 0] = np.inf
    assert_refused(fitted, lambda e: e.fit(bad), ValueError, "Input X contains infinity.* in row 37$")


@pytest.mark.parametrize("method", ["fit", "partial_fit", *METHODS])
def test_what_is_not_finite_in_a_loader_is_refused_with_its_batch(method: str, fitted: Any) -> None:
    bad = X.copy()
    bad[37, 2] = np.nan
    for shuffle in (False, True):
        loader = DataLoader(TensorDataset(torch.from_numpy(bad)), batch_size=10, shuffle=shuffle)
        words = r"Input X contains NaN in batch 3, row 7 of it$"
        assert_refused(fitted, lambda e, x=loader: getattr(e, method)(x), ValueError, words)


def test_a_loader_that_turns_bad_in_a_later_epoch_is_refused_and_the_model_is_as_it_was(fitted: Any) -> None:
    class Turning:
        def __init__(self) -> None:
            self.passes = 0

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            for start in range(0, 90, 30):
                rows = X[start : start + 30].copy()
                if self.passes > 3:
                    rows[4] = np.inf
                yield rows

    for method in ("fit", "partial_fit"):
        words = r"infinity.* in batch 0, row 4 of it"
        assert_refused(fitted, lambda e, m=method: getattr(e, m)(Turning()), ValueError, words)


@pytest.mark.parametrize("method", ["fit", "partial_fit", *METHODS])
@pytest.mark.parametrize("by", ["array", "tensor", "sparse", "loader", "batches"])
def test_bernoulli_rows_outside_0_and_1_are_refused_with_their_range(method: str, by: str, fitted_unit: Any) -> None:
    bad = 2.5 * UNIT - 0.5
    bad[0, 0] = 0

    class Batches:
        def __iter__(self) -> Iterator[Any]:
            return iter(np.split(bad, 3))

    given: Any = {
        "array": lambda: bad,
        "tensor": lambda: torch.from_numpy(bad),
        "sparse": lambda: scipy.sparse.csr_array(bad),
        "loader": lambda: DataLoader(TensorDataset(torch.from_numpy(bad)), batch_size=30, shuffle=True),
        "batches": Batches,
    }[by]()
    words = (
        r"bernoulli .* from -0\.[345]\d* to [12](\.\d+)?( in \w+ \d+)?: "
        r"scale to \[0, 1\] or use reconstruction='gaussian'"
    )
    assert_refused(fitted_unit, lambda e: getattr(e, method)(given), ValueError, words)


def test_values_whose_variance_is_no_number_are_refused() -> None:
    assert_refused(RobustVaDE(**SMALL), lambda e: e.fit(X.astype(float) * 1e200), ValueError, "X is too large.*rescale")
    assert np.isfinite(quietly(RobustVaDE(**SMALL).fit, X.astype(float) * 1e100).transform(X)).all()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (X + 1j, "Complex data not supported"),
        (torch.from_numpy(X) + 1j, "Complex data not supported"),
        (np.full((20, 3), "text"), "could not convert string to float|dtype='numeric' is not compatible"),
        (pd.DataFrame({"a": ["x"] * 20, "b": 1}), "could not convert string to float"),
        ([[1, 2], [3]], "inhomogeneous"),
    ],
    ids=["complex array", "complex tensor", "text", "a table with text", "rows of several lengths"],
)
def test_what_is_no_real_number_is_refused(bad: Any, words: str) -> None:
    assert_refused(RobustVaDE(**SMALL), lambda e: e.fit(bad), ValueError, words)


# Shapes


@pytest.mark.parametrize("method", ["partial_fit", *METHODS])
@pytest.mark.parametrize("by", ["array", "tensor", "sparse", "loader", "pandas", "Hugging Face"])
def test_another_number_of_features_than_in_fit_is_refused(method: str, by: str, fitted: Any) -> None:
    bad = X[:, :3]
    given: Any = {
        "array": lambda: bad,
        "tensor": lambda: torch.from_numpy(bad),
        "sparse": lambda: scipy.sparse.csr_array(bad),
        "loader": lambda: DataLoader(TensorDataset(torch.from_numpy(bad)), batch_size=30),
        "pandas": lambda: pd.DataFrame(bad),
        "Hugging Face": lambda: pytest.importorskip("datasets", reason="needs the extra `hf`").Dataset.from_dict(
            {"x": bad}
        ),
    }[by]()
    words = r"X has 3 features, but RobustVaDE is expecting 4 features as input"
    assert_refused(fitted, lambda e: getattr(e, method)(given), ValueError, words)


@pytest.mark.parametrize("method", ["partial_fit", *METHODS])
@pytest.mark.parametrize("by", ["array", "tensor", "loader"])
@pytest.mark.parametrize("bad", [(9, 8), (1, 8, 9), (72,)], ids=str)
def test_another_shape_of_images_than_in_fit_is_refused(method: str, by: str, bad: Any, fitted_images: Any) -> None:
    rows = IMAGES.reshape(-1, *bad)
    given: Any = rows
    if by != "array":
        given = torch.from_numpy(rows)
    if by == "loader":
        given = DataLoader(TensorDataset(given), batch_size=30)
    words = rf"rows of shape {re.escape(str(bad))}.* fitted to rows of shape \(8, 9\)|X has 72 features.*8, 9"
    assert_refused(fitted_images, lambda e: getattr(e, method)(given), ValueError, words)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((72,), r"encoder='conv' needs X of images \(N, H, W\) or \(N, C, H, W\), got rows of shape \(72,\)"),
        ((2, 2, 2, 9), r"encoder='conv' needs X of images .* got rows of shape \(2, 2, 2, 9\)"),
        ((7, 8), r"at least 8 x 8 pixels, got rows of shape \(7, 8\)"),
        ((8, 9, 1), r"at least 8 x 8 pixels, got rows of shape \(8, 9, 1\)"),
    ],
    ids=str,
)
def test_convolutions_want_images(shape: tuple[int, ...], words: str) -> None:
    bad = RNG.random((20, *shape))
    for given in (bad, torch.from_numpy(bad)):
        assert_refused(VaDE(**SMALL, encoder="conv"), lambda e, x=given: e.fit(x), ValueError, words)


def test_an_encoder_that_gives_no_vector_per_row_is_refused() -> None:
    estimator = VaDE(**SMALL, encoder=nn.Identity())
    assert_refused(estimator, lambda e: e.fit(IMAGES), ValueError, r"encoder must map \(1, 8, 9\) to \(1, H\)")


def test_an_encoder_that_cannot_take_the_rows_is_named() -> None:
    estimator = VaDE(**SMALL, encoder=nn.Linear(5, 3))
    assert_refused(
        estimator, lambda e: e.fit(X), ValueError, r"encoder must map \(1, 4\) to \(1, H\), got RuntimeError"
    )


def test_a_tensor_without_values_is_refused(fitted: Any) -> None:
    words = "X must hold values, got a tensor on the device 'meta'"
    for method in ("fit", "predict", "partial_fit"):
        assert_refused(fitted, lambda e, m=method: getattr(e, m)(torch.empty(9, 4, device="meta")), ValueError, words)


# What comes by batches


def one_shot() -> dict[str, Any]:
    return {
        "a generator": (x for x in [X]),
        "an iterator": iter([X]),
        "map": map(np.asarray, [X]),
        "zip": zip([X], strict=True),
    }


@pytest.mark.parametrize("kind", one_shot())
@pytest.mark.parametrize("method", ["fit", "predict"])
def test_one_shot_iterators_are_refused_and_not_consumed(kind: str, method: str, fitted: Any) -> None:
    given = one_shot()[kind]
    assert_refused(fitted, lambda e: getattr(e, method)(given), TypeError, "again and again, got the one-shot iterator")
    assert len(list(given)) == 1


def test_an_iterable_that_ends_after_a_pass_is_refused(fitted: Any) -> None:
    class Once:
        def __init__(self) -> None:
            self.parts = iter(np.split(X, 3))

        def __iter__(self) -> Iterator[Any]:
            return self.parts

    assert_refused(fitted, lambda e: e.fit(Once()), ValueError, "X gave no rows.* start anew each time")


def test_datasets_are_refused_with_the_way_to_pass_them(fitted: Any) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra `hf`")
    table = datasets.Dataset.from_dict({"image": X, "label": [0] * 90})
    words = r"'image', 'label'.* X\.select_columns\('image'\)"
    assert_refused(fitted, lambda e: e.fit(table), ValueError, words)
    assert_refused(fitted, lambda e: e.predict(table), ValueError, words)
    assert_refused(fitted, lambda e: e.fit(table.to_iterable_dataset()), ValueError, words)
    loader = DataLoader(table.with_format("torch"), batch_size=30)
    assert_refused(fitted, lambda e: e.fit(loader), ValueError, words)
    words = r"DatasetDict of train: choose one, such as X\['train'\]"
    assert_refused(fitted, lambda e: e.fit(datasets.DatasetDict({"train": table})), TypeError, words)
    words = r"column 'label' of X holds one number a row"
    assert_refused(fitted, lambda e: e.fit(table.select_columns("label")), ValueError, words)
    ragged = datasets.Dataset.from_dict({"x": [[1.0, 2.0], [3.0]] * 20})
    assert_refused(fitted, lambda e: e.fit(ragged), ValueError, "several lengths|rows of shape")
    text = datasets.Dataset.from_dict({"x": ["a"] * 20})
    assert_refused(fitted, lambda e: e.fit(text), ValueError, "holds no numbers")
    missing = datasets.Dataset.from_dict({"x": [[1.0, 2.0], None, [3.0, 4.0]]})
    assert_refused(fitted, lambda e: e.fit(missing), ValueError, "several lengths|without")
    words = "wrap it in a torch.utils.data.DataLoader"
    assert_refused(fitted, lambda e: e.fit(TensorDataset(torch.from_numpy(X))), TypeError, words)


@pytest.mark.parametrize(
    ("batch", "error", "words"),
    [
        ("text", TypeError, "the first batch|batch 0 of X must be a tensor or an array, got str"),
        ({"a": X, "b": X}, ValueError, "'a', 'b'"),
        (X[0], ValueError, r"batch 0 of X has shape \(4,\)"),
        ((), TypeError, "empty tuple"),
        (X.astype(str), ValueError, "no real numbers"),
        (torch.from_numpy(X) + 1j, ValueError, "Complex data not supported"),
    ],
    ids=["text", "columns", "a vector", "nothing", "strings", "complex"],
)
def test_batches_that_are_none_are_refused(batch: Any, error: Any, words: str, fitted: Any) -> None:
    class Batches:
        def __iter__(self) -> Iterator[Any]:
            yield batch

    assert_refused(fitted, lambda e: e.fit(Batches()), error, words)
    assert_refused(fitted, lambda e: e.predict(Batches()), error, words)


def test_batches_of_several_shapes_are_refused(fitted: Any) -> None:
    class Batches:
        def __iter__(self) -> Iterator[Any]:
            yield X
            yield X[:, :2]

    words = r"batch 1 of X has rows of shape \(2,\), expected \(4,\)"
    assert_refused(fitted, lambda e: e.fit(Batches()), ValueError, words)
    assert_refused(fitted, lambda e: e.predict(Batches()), ValueError, words)


# Odd, but data


def assert_fits(X: Any, warns: bool = False, **settings: Any) -> Any:
    estimator = RobustVaDE(**SMALL | settings)
    if warns:
        with pytest.warns(ConvergenceWarning, match="distinct"):
            estimator.fit(X)
    else:
        quietly(estimator.fit, X)
    for result in (
        estimator.predict_proba(X),
        estimator.transform(X),
        estimator.score_samples(X),
        estimator.reconstruct(X),
        estimator.means_,
        estimator.covariances_,
        estimator.cluster_centers_,
    ):
        assert np.isfinite(result).all()
    np.testing.assert_array_equal(estimator.predict(X), estimator.labels_)
    assert estimator.diagnostics_["nonfinite_steps"] == 0
    return estimator


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("reconstruction", ["auto", "gaussian"])
@pytest.mark.parametrize(
    ("X", "distinct", "settings"),
    [
        (np.hstack([X, np.ones((90, 2))]), 90, {}),
        (np.full((30, 3), 7.0), 1, {}),
        (np.zeros((30, 3)), 1, {}),
        (np.repeat(X[:2], 20, 0), 2, {}),
        (np.repeat(X[:30], 3, 0), 30, {}),
        (np.vstack([X, np.zeros((20, 4))]), 91, {}),
        (X, 90, {"n_clusters": 1}),
        (X[:, :1], 90, {}),
        (X[:5], 5, {"batch_size": 800}),
        (X[:3], 3, {}),
        (X[:65], 65, {}),
        (X, 90, {"n_latent": 1}),
        (X, 90, {"n_latent": 30}),
        (scipy.sparse.csr_array((30, 5)), 1, {}),
        (np.full((30, 3), 200, np.uint8), 1, {}),
    ],
    ids=[
        "constant features", "constant rows", "zeros", "two distinct rows", "duplicates", "zero rows", "one cluster",
        "one feature", "fewer rows than a batch", "as many rows as clusters", "a last batch of one row", "one latent",
        "more latents than features", "an empty sparse matrix", "constant bytes",
    ],
)  # fmt: skip
def test_odd_data_are_fitted(X: Any, distinct: int, settings: dict[str, Any], reconstruction: str) -> None:
    assert_fits(X, warns=distinct < settings.get("n_clusters", 3), reconstruction=reconstruction, **settings)


def test_tiny_and_huge_units_are_fitted_as_any() -> None:
    labels = assert_fits(X).labels_
    for factor in (2.0**-60, 2.0**60):
        np.testing.assert_array_equal(assert_fits(X * np.float32(factor)).labels_, labels)


def test_a_collapsed_component_is_told_at_the_end_of_fit() -> None:
    with pytest.warns(ConvergenceWarning) as caught:
        estimator = VaDE(**SMALL | {"n_clusters": 12}).fit(X[:13])
    collapsed = estimator.diagnostics_["collapse"]
    assert collapsed
    assert any(all(str(c) in str(w.message) for c in collapsed) for w in caught)
    occupancy = np.asarray(estimator.diagnostics_["occupancy"])
    assert list(collapsed) == np.flatnonzero(occupancy < 0.1 / 12).tolist()


# Training that goes wrong


class Overflowing(nn.Module):
    """An encoder whose output is infinite in training from its `start`th call on."""

    def __init__(self, start: int, stop: int = 10**9) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8)
        self.start, self.stop = start, stop
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if self.training:
            self.calls += 1
            if self.start <= int(self.calls) < self.stop:
                y = y * torch.inf
        return y


def test_single_non_finite_steps_are_skipped_and_counted() -> None:
    estimator = quietly(VaDE(**SMALL | {"epochs": 6}, encoder=Overflowing(5, 8)).fit, X)
    assert estimator.diagnostics_["nonfinite_steps"] == 3
    assert np.isfinite(estimator.transform(X)).all()


def test_ten_non_finite_steps_in_a_row_stop_the_training_and_the_model_is_as_it_was(fitted: Any) -> None:
    estimator = copy.copy(fitted)
    estimator.set_params(encoder=Overflowing(5), epochs=20)
    words = r"epoch \d+.*(loss|gradient|reconstruction|rec).*"
    assert_refused(estimator, lambda e: e.fit(X), FloatingPointError, words)
    np.testing.assert_array_equal(estimator.predict(X), estimator.labels_)


@pytest.mark.parametrize("phase", ["pretrain", "train"])
def test_networks_that_too_few_steps_have_thrown_out_of_bounds_are_told_as_such(phase: str, fitted: Any) -> None:
    """Not as missing values of X, by the clustering that comes after."""
    estimator = copy.copy(fitted)
    if phase == "train":
        estimator.set_params(lr=1e30)
    else:
        estimator.set_params(encoder=nn.Sequential(nn.Linear(4, 8), Exploding()))
    words = f"after phase {phase!r} the latent means are not finite; lower `lr`"
    assert_refused(estimator, lambda e: e.fit(X), FloatingPointError, words)


class Exploding(nn.Module):
    """Finite in training, and not afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x * torch.inf
