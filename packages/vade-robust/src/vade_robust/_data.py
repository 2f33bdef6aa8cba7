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

from typing import TYPE_CHECKING, Any

import scipy.sparse
import torch
from sklearn.utils.validation import check_array, validate_data
from torch import Tensor

from ._preparation import Preparation, check_range, standardise
from ._sources import ROWS, Batch, Dense, Source, Sparse, part
from ._streams import streamed

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ROWS", "Batch", "Preparation", "Source", "output", "part", "prepare", "source"]


def source(estimator: Any, X: Any, *, device: torch.device, shape: tuple[int, ...] | None = None) -> Source:
    """The source of X's rows, after every check that needs no values.

    shape: that of a fitted row; None in fit, which wants two rows.

    Raises ValueError or TypeError, in scikit-learn's words where it has some.
    """
    minimum = 2 if shape is None else 1
    if isinstance(X, Tensor):
        values = _plain(X)
        if isinstance(values, Tensor):
            _check_counts(estimator, tuple(values.shape), minimum)
            made: Source = Dense(values, device)
        else:
            made = _array(estimator, values, device, shape)
        made.tensor_device = X.device
    elif (found := streamed(X, device)) is not None:
        made = found
        if made.n_rows is not None:
            _check_counts(estimator, (made.n_rows, *made.shape), minimum)
    else:
        made = _array(estimator, X, device, shape)
    _check_shape(estimator, made, shape)
    return made


def prepare(source: Source, reconstruction: str = "auto") -> Preparation:
    """Decides on the likelihood, fits the preparation to all rows in order, and makes the source use it.

    reconstruction: "bernoulli", "gaussian" or "auto": uint8, and numbers that are all in [0, 1], are bernoulli.

    Raises ValueError for values that are not finite (with their row or batch), and for bernoulli values outside [0, 1].
    """
    wants_moments = reconstruction == "gaussian" or (reconstruction == "auto" and not source.addressable)
    scan = source.scan(moments=wants_moments)
    kind = reconstruction
    if kind == "auto":
        kind = "bernoulli" if scan.bytes_only or (scan.low >= 0 and scan.high <= 1) else "gaussian"
    if kind == "gaussian" and scan.moments is None:
        scan = source.scan(moments=True)
    columns = source.n_features
    if kind == "bernoulli":
        pixel = 1.0 if scan.whole and scan.high <= 1 else 255.0
        unit = pixel if scan.bytes_only else 1.0
        check_range(scan, pixel)
        zeros = torch.zeros(columns, device="cpu")
        scale = torch.ones((), dtype=torch.float64, device="cpu")
        preparation = Preparation(kind, pixel, unit, zeros.double(), scale, zeros, zeros + 1)
    else:
        preparation = standardise(scan)
    source.use(preparation, scanned=scan)
    return preparation


def output(result: Tensor, source: Source) -> NDArray[Any] | Tensor:
    """A result as the user expects it: a tensor where X was one, on its device; else an array."""
    if source.tensor_device is not None:
        return result.to(source.tensor_device)
    array: NDArray[Any] = result.cpu().numpy()
    return array


def _plain(X: Tensor) -> Any:
    """A tensor without history; a sparse one as scipy's."""
    if X.is_complex():
        raise ValueError("Complex data not supported, got a tensor of " + str(X.dtype))
    if X.is_meta:
        raise ValueError("X must hold values, got a tensor on the device 'meta'")
    X = X.detach()
    if X.layout == torch.strided:
        return X
    if X.ndim != 2:
        raise ValueError(f"a sparse tensor X must be 2D, got shape {tuple(X.shape)}")
    X = X.to_sparse_coo().coalesce().cpu()
    return scipy.sparse.coo_array((X.values().numpy(), tuple(X.indices().numpy())), shape=tuple(X.shape)).tocsr()


def _array(estimator: Any, X: Any, device: torch.device, shape: tuple[int, ...] | None) -> Source:
    """Arrays, tables, lists and sparse matrices, checked by scikit-learn on a copy of the estimator."""
    minimum = 2 if shape is None else 1
    if getattr(X, "ndim", 2) > 2 and not scipy.sparse.issparse(X):
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
    if checked.dtype == object:  # scikit-learn 1.6 does not know the texts of pandas 3
        checked = checked.astype(float)
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
