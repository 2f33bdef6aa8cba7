"""What is attacked, and how: rows of any kind, scores with a gradient, the box, two noises, FGSM and PGD."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from ._data import _plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Scores = Callable[[Tensor], Tensor]

NOISES = ("gaussian", "salt_pepper")
WHITE_BOX = ("fgsm", "pgd")
ELEMENTS = 1 << 22  # of a block: 32 MiB of float64
ROWS = 512
ROWS_OF_GPU = 2048


class Rows:
    """The user's rows, a block at a time: float64 tensors (b, *shape) on the CPU, in the user's units."""

    def __init__(self, X: Any) -> None:
        if not hasattr(X, "shape") and not isinstance(X, (list, tuple)):
            raise TypeError(
                "X must be an array, a table, a sparse matrix or a tensor, so that rows can be changed one by one: "
                f"got {type(X).__name__}; take a sample of its rows"
            )
        self.columns = X.columns if hasattr(X, "iloc") else None
        self._frame = type(X) if hasattr(X, "iloc") else None
        values = _plain(X) if isinstance(X, Tensor) else X
        if isinstance(values, Tensor):
            values = values.cpu()
            values = values.float().numpy() if values.dtype == torch.bfloat16 else values.numpy()
        elif not scipy.sparse.issparse(values):
            values = np.asarray(values)
        else:
            values = values.tocsr()
        if values.dtype.kind not in "biuf":
            raise ValueError(f"X must hold numbers, got dtype {values.dtype}")
        if values.ndim < 2:
            raise ValueError(f"X must be rows, an array of two or more dimensions, got shape {values.shape}")
        if 0 in values.shape:
            raise ValueError(f"X must have at least one row and one feature, got shape {values.shape}")
        self._values = values
        self.shape: tuple[int, ...] = tuple(values.shape[1:])
        self.bytes = values.dtype == np.uint8
        self.dtype = np.dtype(np.float32 if values.dtype == np.float32 else np.float64)  # of changed rows

    def __len__(self) -> int:
        return int(self._values.shape[0])

    def __getitem__(self, index: slice) -> Tensor:
        part = self._values[index]
        part = part.toarray() if scipy.sparse.issparse(part) else part
        return torch.from_numpy(part.astype(np.float64))

    def blocks(self, rows: int) -> Iterator[slice]:
        """Slices of all rows in order."""
        size = max(1, min(rows, ELEMENTS // math.prod(self.shape)))
        return (slice(start, min(start + size, len(self))) for start in range(0, len(self), size))

    def rounded(self, changed: Tensor, x: Tensor) -> Tensor:
        """Changed rows as an estimator gets them, which may be in float32: no farther from x by that."""
        if self.dtype != np.float32:
            return changed
        single = changed.to(torch.float32)
        farther = (single.to(torch.float64) - x).abs() > (changed - x).abs()
        return torch.where(farther, single.nextafter(x.to(torch.float32)), single).to(torch.float64)

    def as_given(self, x: Tensor, divisor: float = 1.0) -> Any:
        """Changed rows as the user's kind of array."""
        values = (x / divisor if divisor != 1 else x).numpy().astype(self.dtype)
        return values if self._frame is None else self._frame(values, columns=self.columns)

    def range(self) -> tuple[Tensor, Tensor]:
        """Least and largest value of every feature; NaN and infinity are refused."""
        low, high = (torch.full(self.shape, x, dtype=torch.float64) for x in (math.inf, -math.inf))
        for block in self.blocks(ROWS):
            x = self[block]
            wrong = ~x.isfinite().flatten(1).all(1)
            if wrong.any():
                raise ValueError(f"Input X contains NaN or infinity in row {block.start + int(wrong.nonzero()[0])}")
            low, high = torch.minimum(low, x.amin(0)), torch.maximum(high, x.amax(0))
        return low, high


@dataclass
class Target:
    """What is attacked: labels [b] of rows (b, *shape), and the scores [b, K] of their clusters, if they are known.

    guides: other scores of the same rows, whose gradients lead out of clusters too.
    """

    name: str
    rows: Rows
    labels: Callable[[Tensor], NDArray[np.int64]]
    scores: Scores | None
    why_not: str
    low: Tensor
    high: Tensor
    block: int = ROWS
    guides: tuple[Scores, ...] = ()

    @property
    def width(self) -> float:
        """That of the box, along the feature where it is widest."""
        return float((self.high - self.low).max())


def target(estimator: Any, X: Any, *, assign: str | None, clip: Any, scores: Any) -> Target:
    """Looks at the estimator and the rows, and changes neither."""
    from .estimator import RobustVaDE

    rows = Rows(X)
    low, high = rows.range()
    divisor, block = 1.0, ROWS
    arguments: dict[str, Any] = {}
    box: tuple[Any, ...] = (0.0, 1.0) if float(low.min()) >= 0 and float(high.max()) <= 1 else (low, high)
    if rows.bytes and float(high.max()) > 1:
        box = (0.0, 255.0)
    if isinstance(estimator, RobustVaDE):
        arguments = {"assign": estimator._assign(assign)}
        preparation = estimator._preparation
        if preparation.kind == "bernoulli":
            divisor = preparation.pixel if rows.bytes else 1.0
            box = (0.0, divisor)
        else:
            scale = preparation.scale.cpu()
            box = tuple(
                (x.double().cpu() * scale + preparation.shift.cpu()).view(rows.shape)
                for x in (preparation.low, preparation.high)
            )
        if estimator.module_.logits.device.type != "cpu":
            block = ROWS_OF_GPU
    if not isinstance(clip, str):
        box = _box(clip, rows.shape)
    elif clip != "auto":
        raise ValueError(f"clip must be 'auto' or a pair (low, high), got {clip!r}")
    low, high = (torch.as_tensor(x, dtype=torch.float64).expand(rows.shape) for x in box)

    gradient, why_not = None, ""
    if scores is not None:
        gradient = _of_user(scores)
    else:
        try:
            gradient = scores_of(estimator, arguments.get("assign"), divisor)
        except NotImplementedError as error:
            why_not = str(error)

    if estimator is None:
        assert gradient is not None

        def labels(x: Tensor) -> NDArray[np.int64]:
            with torch.no_grad():
                return gradient(x).argmax(1).cpu().numpy()

    else:

        def labels(x: Tensor) -> NDArray[np.int64]:
            return integers(estimator.predict(rows.as_given(x, divisor), **arguments))

    name = type(estimator).__name__ if estimator is not None else getattr(scores, "__name__", type(scores).__name__)
    if hasattr(estimator, "steps"):
        name = " + ".join(type(step).__name__ for _, step in estimator.steps if step not in (None, "passthrough"))
    if arguments:
        name = f"{name} ({arguments['assign']})"
    guides: tuple[Scores, ...] = ()
    if scores is None and arguments.get("assign") == "embedding":
        guides = (scores_of(estimator, "mixture", divisor),)
    return Target(name, rows, labels, gradient, why_not, low, high, block, guides)


def _box(clip: Any, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    try:
        low, high = (torch.as_tensor(np.asarray(x, dtype=np.float64)).expand(shape) for x in clip)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"clip must be 'auto' or a pair (low, high) of numbers or arrays of a row's shape {shape}, got {clip!r}"
        ) from None
    if not bool((low <= high).all()):
        raise ValueError(f"clip must have low <= high, got {clip!r}")
    return low, high


def has_assign(estimator: Any) -> bool:
    """Whether `predict` has a choice between the mixture and the map."""
    from .estimator import RobustVaDE

    return isinstance(estimator, RobustVaDE)


def integers(labels: Any) -> NDArray[np.int64]:
    """Labels that `predict` gave."""
    labels = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"predict must give an integer label per row, got shape {labels.shape} of {labels.dtype}")
    integers: NDArray[np.int64] = labels.astype(np.int64)
    return integers


def _of_user(scores: Any) -> Scores:
    if not callable(scores):
        raise TypeError(f"scores must be a function of a tensor (b, *shape) to scores (b, K), got {scores!r}")

    def checked(x: Tensor) -> Tensor:
        given = scores(x.to(torch.get_default_dtype()))
        if not isinstance(given, Tensor) or given.ndim != 2 or len(given) != len(x):
            found = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(f"scores must give a tensor ({len(x)}, K) of {len(x)} rows, got {found}")
        if torch.is_grad_enabled() and not given.requires_grad:
            raise ValueError("scores must be differentiable: what it gave does not depend on its argument")
        return given.to(x.device, torch.float64)

    return checked


def scores_of(estimator: Any, assign: str | None = None, divisor: float = 1.0) -> Scores:
    """The scores of an estimator as a function with a gradient; NotImplementedError says why there are none."""
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.mixture import GaussianMixture
    from sklearn.pipeline import Pipeline

    from .estimator import RobustVaDE

    if isinstance(estimator, RobustVaDE):
        return _of_networks(estimator, estimator._assign(assign), divisor)
    if isinstance(estimator, (KMeans, MiniBatchKMeans)):
        return _of_centers(estimator.cluster_centers_)
    if isinstance(estimator, GaussianMixture):
        return _of_mixture(estimator)
    if isinstance(estimator, Pipeline):
        steps = [step for _, step in estimator.steps if step not in (None, "passthrough")]
        maps = [_affine(step) for step in steps[:-1]]
        last = scores_of(steps[-1])

        def through(x: Tensor) -> Tensor:
            for apply in maps:
                x = apply(x)
            return last(x)

        return through
    raise NotImplementedError(f"{type(estimator).__name__} has no scores with a gradient that are known here")


def _of_networks(estimator: Any, assign: str, divisor: float) -> Scores:
    from ._inference import _evaluation
    from ._ops import squared_distances

    networks, preparation = estimator.module_, estimator._preparation
    device, dtype = networks.logits.device, networks.logits.dtype
    shift, scale = preparation.shift.to(device), preparation.scale.to(device)

    def scores(x: Tensor) -> Tensor:
        x = x.to(device)
        if preparation.kind == "gaussian":
            x = (x - shift.view(x.shape[1:])) / scale
        elif divisor != 1:
            x = x / divisor
        x = x.to(dtype)
        with _evaluation(networks):
            if assign == "mixture":
                found: Tensor = networks.scores(*networks.encode(x))[0]
            else:
                found = -squared_distances(networks.embed(networks.latent(x)), networks.assign_centers)
        return found.cpu()

    return scores


def _of_centers(centers: NDArray[Any]) -> Scores:
    """|x - m|^2 - |x - k_c|^2 with m the mean of the centres: linear in x, so that nothing cancels."""
    k = torch.from_numpy(np.asarray(centers, dtype=np.float64))
    mean = k.mean(0)
    k = k - mean
    return lambda x: 2 * ((x - mean) @ k.T) - k.square().sum(1)


def _of_mixture(mixture: Any) -> Scores:
    """log pi_c + log N(x; m_c, S_c), from the Cholesky factors L_c of the precisions: y = (x - m_c) L_c."""
    kind = mixture.covariance_type
    means = torch.from_numpy(np.asarray(mixture.means_, dtype=np.float64))
    factors = torch.from_numpy(np.asarray(mixture.precisions_cholesky_, dtype=np.float64))
    log_weights = torch.from_numpy(np.log(np.maximum(mixture.weights_, np.finfo(np.float64).tiny)))
    n_features = means.shape[1]
    if kind in ("full", "tied"):
        volume = factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    else:
        volume = factors.log().sum(1) if kind == "diag" else n_features * factors.log()
    constant = log_weights + volume - 0.5 * n_features * math.log(2 * math.pi)

    def scores(x: Tensor) -> Tensor:
        distances = []
        for c, mean in enumerate(means):
            factor = factors if kind == "tied" else factors[c]
            whitened = (x - mean) @ factor if kind in ("full", "tied") else (x - mean) * factor
            distances.append(whitened.square().sum(1))
        return constant - 0.5 * torch.stack(distances, 1)

    return scores


def _affine(step: Any) -> Scores:
    """A scaler or a projection as a function with a gradient."""
    from sklearn.decomposition import PCA, TruncatedSVD
    from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler

    def number(value: Any, default: float) -> Tensor:
        return torch.from_numpy(np.asarray(default if value is None else value, dtype=np.float64))

    if isinstance(step, (StandardScaler, RobustScaler)):
        shift = number(step.mean_ if isinstance(step, StandardScaler) else step.center_, 0.0)
        scale = number(step.scale_, 1.0)
        if isinstance(step, StandardScaler) and not step.with_mean:
            shift = torch.zeros_like(shift)
        return lambda x: (x - shift) / scale
    if isinstance(step, MinMaxScaler):
        slope, start = number(step.scale_, 1.0), number(step.min_, 0.0)
        bounds = step.feature_range if step.clip else (None, None)
        return lambda x: x * slope + start if bounds[0] is None else (x * slope + start).clamp(*bounds)
    if isinstance(step, MaxAbsScaler):
        largest = number(step.scale_, 1.0)
        return lambda x: x / largest
    if isinstance(step, (PCA, TruncatedSVD)):
        components = number(step.components_, 0.0).T
        mean = number(getattr(step, "mean_", None), 0.0)
        spread = number(step.explained_variance_, 1.0).sqrt() if getattr(step, "whiten", False) else number(None, 1.0)
        return lambda x: (x - mean) @ components / spread
    raise NotImplementedError(
        f"{type(step).__name__} in the pipeline has no gradient that is known here: StandardScaler, MinMaxScaler, "
        "MaxAbsScaler, RobustScaler, PCA and TruncatedSVD have"
    )


def margin(scores: Scores, x: Tensor, labels: Tensor) -> Tensor:
    """max_{c != c*} s_c(x) - s_c*(x) [b]: negative as long as a row stays in its cluster c*."""
    s = scores(x)
    own = labels[:, None]
    others = s.scatter(1, own, -math.inf).amax(1)
    difference: Tensor = others - s.gather(1, own)[:, 0]
    return difference


def slope(scores: Scores, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The margin [b] and its gradient (b, *shape)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = margin(scores, x, labels)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach().double(), gradient


def norm(gradient: Tensor) -> Tensor:
    """Euclidean norm [b] of every row."""
    length: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return length


def noisy(kind: str, x: Tensor, draw: Tensor, eps: float, low: Tensor, high: Tensor, width: float) -> Tensor:
    """Noise of size eps. `draw` is standard normal ("gaussian"), or uniform in [0, 1) ("salt_pepper")."""
    if kind == "gaussian":
        return torch.clamp(x + eps * draw, low, high)
    share = min(1.0, eps / width) if width > 0 else 0.0
    x = torch.where(draw < share / 2, low.expand_as(x), x)
    return torch.where(draw >= 1 - share / 2, high.expand_as(x), x)


def one_step(x: Tensor, gradient: Tensor, eps: float, low: Tensor, high: Tensor) -> Tensor:
    """FGSM: x + eps sign gradient, in the box."""
    return torch.clamp(x + eps * gradient.sign(), low, high)


def many_steps(
    scores: Scores,
    x: Tensor,
    labels: Tensor,
    *,
    eps: float,
    start: Tensor,
    candidates: tuple[Tensor, ...],
    steps: int,
    step_size: float,
    low: Tensor,
    high: Tensor,
    guides: tuple[Scores, ...] = (),
) -> tuple[Tensor, Tensor]:
    """PGD: for each row the best of its iterates and of the candidates, and the mean norm [b] of its gradients.

    start: uniform in [-1, 1): where in the cube the first iterate lies.
    guides: scores that are followed from the same start too, each out of what is its own largest at x; then `scores`
        again, from the best of all. The map of t-SNE has plateaus and cliffs, where its own gradient leads nowhere:
        of 600 digits 24 % stayed in their cluster at eps = 0.2 without the mixture as a guide, and 1 % with it.
    """
    best = x
    most = torch.full((len(x),), -math.inf, dtype=torch.float64)

    def keep(new: Tensor, value: Tensor) -> None:
        nonlocal best, most
        better = value > most
        best = torch.where(better.view(-1, *[1] * (x.ndim - 1)), new, best)
        most = torch.where(better, value, most)

    def judge(new: Tensor) -> None:
        with torch.no_grad():
            keep(new, margin(scores, new, labels).double())

    def climb(current: Tensor) -> Tensor:
        norms = torch.zeros(len(x), dtype=torch.float64)
        for _ in range(steps):
            value, gradient = slope(scores, current, labels)
            keep(current, value)
            norms += norm(gradient) / steps
            current = torch.clamp(current + step_size * gradient.sign(), low, high)
        judge(current)
        return norms

    for candidate in candidates:
        judge(candidate)
    low, high = torch.maximum(low, x - eps), torch.minimum(high, x + eps)
    first = torch.clamp(x + eps * start, low, high)
    norms = climb(first)
    for guide in guides:
        with torch.no_grad():
            own = guide(x).argmax(1)
        current = first
        for _ in range(steps):
            _, gradient = slope(guide, current, own)
            current = torch.clamp(current + step_size * gradient.sign(), low, high)
            judge(current)
    if guides:
        norms = (norms + climb(best)) / 2
    return best, norms
