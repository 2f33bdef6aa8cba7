"""How stable a clustering is against changes of its rows: two noises and two white-box attacks, measured."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import _attacks
from .metrics import _codes, _matching, _without_nan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["ATTACKS", "RobustnessPoint", "RobustnessReport", "report"]

ATTACKS = ("gaussian", "salt_pepper", "fgsm", "pgd")
"""The attacks that `report` knows, in their order: two noises, then two that follow the gradient."""

SHARES = (0.02, 0.05, 0.1, 0.2)  # of the box's width: the values of eps where none are given


@dataclass(frozen=True)
class RobustnessPoint:
    """What an attack of one size did; a measure is None where it was not asked for or does not exist.

    Attributes:
        attack: One of `ATTACKS`.
        eps: The size of the attack, in units of X.
        consistency: The share of rows that keep the label they had unchanged.
        acc, nmi, ari: Against the classes. For `acc` clusters keep the classes that were matched with them on unchanged
            rows. Attacks know no classes: a row that was wrong may become right, and a small attack may raise them.
        max_delta: The largest change of any feature of any row, in units of X.
        gradient_norm: The Euclidean norm of the margin's gradient, per unit of X, where the attack stepped: mean over
            rows and steps.
    """

    attack: str
    eps: float
    consistency: float
    acc: float | None
    nmi: float | None
    ari: float | None
    max_delta: float
    gradient_norm: float | None


_ALWAYS = ("eps", "consistency", "max_delta")  # numbers that every point has


def _is(name: str, value: Any, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name} must be of another type, got {value!r:.80}")
    return value


def _numbers(name: str, found: Mapping[str, Any], keys: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The numbers of these names, of which None stands for NaN; without names each may be None."""
    chosen = {key: found[key] for key in (found if keys is None else keys)}
    for key, value in chosen.items():
        if value is not None:
            _is(f"{key} of {name}", value, (int, float))
    return {key: math.nan if value is None else value for key, value in chosen.items()}


@dataclass(frozen=True, repr=False)
class RobustnessReport:
    """What `report` found; printed, it is a table.

    Attributes:
        name: Of the estimator.
        n_rows: How many rows were attacked.
        n_clusters: How many clusters they were in, unchanged.
        box: The least and the largest value that a changed feature could take; rows outside keep theirs.
        clean: "acc", "nmi" and "ari" of the unchanged rows; None without classes.
        points: A `RobustnessPoint` for each attack and size.
    """

    name: str
    n_rows: int
    n_clusters: int
    box: tuple[float, float]
    clean: dict[str, float] | None
    points: list[RobustnessPoint]

    @property
    def attacks(self) -> tuple[str, ...]:
        """The attacks, in order."""
        return tuple(dict.fromkeys(point.attack for point in self.points))

    def curve(self, attack: str, measure: str = "consistency") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The sizes of an attack, rising, and a measure at each of them.

        Raises:
            ValueError: If the report has no such attack or measure.
        """
        chosen = sorted((point for point in self.points if point.attack == attack), key=lambda point: point.eps)
        if not chosen:
            raise ValueError(f"attack must be one of the report's, {self.attacks}, got {attack!r}")
        values = [getattr(point, measure, None) for point in chosen]
        if any(not isinstance(value, float) for value in values):
            raise ValueError(f"the report has no measure {measure!r} of {attack!r}; acc, nmi and ari need y")
        return np.array([point.eps for point in chosen]), np.array(values, dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """The whole report in plain Python: JSON can hold it (None stands for NaN)."""
        plain: dict[str, Any] = _without_nan({**asdict(self), "box": list(self.box)})
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> RobustnessReport:
        """The report that `to_dict` made the dictionary of.

        Raises:
            ValueError: If something is missing or unknown in it.
        """
        try:
            clean = None if plain["clean"] is None else _numbers("clean", plain["clean"], ("acc", "nmi", "ari"))
            always = _ALWAYS if clean is None else (*_ALWAYS, *clean)
            points = [RobustnessPoint(**{**point, **_numbers("a point", point, always)}) for point in plain["points"]]
            for point in points:
                _is("attack", point.attack, str)
                _numbers("a point", {key: value for key, value in asdict(point).items() if key != "attack"})
            low, high = (math.nan if x is None else _is("box", x, (int, float)) for x in plain["box"])
            name = _is("name", plain["name"], str)
            n_rows, n_clusters = (_is(key, plain[key], int) for key in ("n_rows", "n_clusters"))
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no dictionary of a report: {error}") from error
        return cls(name, n_rows, n_clusters, (float(low), float(high)), clean, points)

    def to_frame(self) -> Any:
        """The points as a pandas DataFrame, a row each.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install pandas") from error
        return pandas.DataFrame([asdict(point) for point in self.points])

    def plot(self, ax: Axes | None = None, **options: Any) -> Axes:
        """Draws the curves: `vade_robust.plot.robustness_curves` of this report, which tells the options."""
        from .plot import robustness_curves

        drawn: Axes = robustness_curves(self, ax=ax, **options)
        return drawn

    def __repr__(self) -> str:
        low, high = self.box
        lines = [
            f"RobustnessReport: {self.name}, {self.n_rows} rows in {self.n_clusters} clusters, "
            f"kept within [{low:.4g}, {high:.4g}]"
        ]
        sizes = sorted({point.eps for point in self.points})
        measures = {"consistency": "consistency with the labels of unchanged rows"}
        if self.clean is not None:
            measures["acc"] = f"ACC, of unchanged rows {self.clean['acc']:.3f}"
        for measure, title in measures.items():
            lines += [title, f"  {'eps':12}" + "".join(f"{eps:>8.4g}" for eps in sizes)]
            for attack in self.attacks:
                found = {point.eps: getattr(point, measure) for point in self.points if point.attack == attack}
                lines.append(f"  {attack:12}" + "".join(f"{found.get(eps, math.nan):8.3f}" for eps in sizes))
        return "\n".join(lines)


def report(
    estimator: Any,
    X: Any,
    y: object = None,
    attacks: Sequence[str] = ATTACKS,
    eps: Iterable[float] | float | None = None,
    *,
    steps: int = 20,
    step_size: float | None = None,
    random_state: int | np.random.RandomState | None = 0,
    assign: str | None = None,
    clip: Any = "auto",
    scores: Callable[[Tensor], Tensor] | None = None,
    verbose: bool = False,
) -> RobustnessReport:
    """Changes the rows of X and tells how many of them change their cluster.

    The white-box attacks raise the margin max_{c != c*} s_c(x') - s_{c*}(x'), with c* the row's label while unchanged
    and s_c the mixture's scores a_c (`assign` "mixture") or -|t(mu) - k_c|^2 ("embedding"). Unlike the divergence of
    memberships it has a gradient at x' = x, and unlike a cross-entropy it does not saturate.

    ==============  =================================================================================================
    "gaussian"      x + eps N(0, 1)
    "salt_pepper"   each feature goes with probability eps / (width of the box) to the box's lower or upper end:
                    fewer features than the others change, by more
    "fgsm"          x + eps sign(gradient) (Goodfellow et al., 2015)
    "pgd"           from a random start in the cube |x' - x| <= eps `steps` such steps of `step_size`, back into the
                    cube each (Madry et al., 2018); for every row the best of x, of FGSM and of all iterates. On the map
                    ("embedding") also along the mixture's scores, and again along the map's from the best of these
    ==============  =================================================================================================

    Args:
        estimator: A fitted `RobustVaDE` or `VaDE`; KMeans, MiniBatchKMeans or GaussianMixture of scikit-learn; a
            Pipeline of scalers, PCA or TruncatedSVD before one of them; or, for the two noises, whatever has `predict`.
            It is only read.
        X: Rows (N, *shape): array, table, sparse matrix (dense for a block at a time) or tensor.
        y: Classes [N], for ACC, NMI and ARI, or None. Clusters are matched with classes once, on unchanged rows:
            matched again for every eps, they would hide failure.
        attacks: Some of the four.
        eps: Sizes of the attacks in the units of X (of bytes: 0 to 255); default: 0.02, 0.05, 0.1 and 0.2 of the width
            of the box.
        steps: Of PGD; default 20.
        step_size: Of PGD, in the units of X; default 2.5 eps / steps (Madry et al.'s, which can cross the cube).
        random_state: Of the noises and of PGD's start; default 0.
        assign: Of `RobustVaDE` and `VaDE`, as in `predict`.
        clip: The box (low, high) that changed rows are kept in, numbers or arrays of a row's shape. Default "auto":
            what `RobustVaDE` was fitted to, [0, 1] (or bytes) if bernoulli, else the range of each column; of other
            estimators, which do not keep it, [0, 1] if X lies in it, 0 to 255 of bytes, else the range of each column
            of X. Values of X that lie outside stay possible.
        scores: What to follow the gradient of, for models that are not known here: a function of a float32 tensor
            (b, *shape) on the CPU to scores (b, K), in the order of the labels. `estimator` may then be None: the
            labels are the largest scores.
        verbose: Whether to show a bar of progress.

    Returns:
        A `RobustnessReport`.

    Raises:
        ValueError: If an argument breaks a rule, X holds NaN, a white-box attack is asked for without a gradient (the
            message lists what is possible), or scores and labels do not belong together.
        TypeError: If X has no rows that can be taken one by one, or the estimator no `predict`.

    Warns:
        RuntimeWarning: If the gradient is exactly 0 in more than 1 % of the rows: these only look robust.

    >>> from sklearn.cluster import KMeans
    >>> from sklearn.datasets import load_digits
    >>> from vade_robust import robustness
    >>> X, y = load_digits(return_X_y=True)
    >>> kmeans = KMeans(10, n_init=3, random_state=0).fit(X / 16)
    >>> found = robustness.report(kmeans, X / 16, y, eps=[0.05, 0.1])
    >>> bool(found.curve("pgd")[1][-1] < found.curve("gaussian")[1][-1])
    True

    A model that is not known here, such as ClustPy's VaDE, whose labels are those of a mixture of its latent means::

        values = (vade.cluster_centers_, vade.covariances_, vade.weights_)
        means, covariances, weights = (torch.tensor(value, dtype=torch.float32) for value in values)
        groups = torch.distributions.MultivariateNormal(means, covariances)
        network = vade.neural_network_trained_.eval()

        def scores(x):
            mean, log_variance = network.encode(x)
            return weights.log() + groups.log_prob(mean[:, None])

        robustness.report(None, X, y, scores=scores)

    Reference: Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015; Madry,
    Makelov, Schmidt, Tsipras and Vladu, "Towards deep learning models resistant to adversarial attacks", ICLR 2018.
    """
    from sklearn.utils import check_random_state
    from tqdm import tqdm

    chosen = _attack_names(attacks)
    _check_steps(steps, step_size)
    if estimator is None and scores is None:
        raise ValueError("estimator may be None only with scores, a function that tells the clusters")
    if estimator is not None and not hasattr(estimator, "predict"):
        raise TypeError(f"estimator must have `predict`, for changed rows are new rows: {type(estimator).__name__}")
    if estimator is not None:
        if assign is not None and not _attacks.has_assign(estimator):
            raise ValueError(f"assign={assign!r} is for RobustVaDE and VaDE, got {type(estimator).__name__}")
        clean = _attacks.integers(estimator.predict(X, **({} if assign is None else {"assign": assign})))
    target = _attacks.target(estimator, X, assign=assign, clip=clip, scores=scores)
    n_rows = len(target.rows)
    sizes = _sizes(eps, target.width)
    if "salt_pepper" in chosen and not math.isfinite(target.width):
        raise ValueError(f"salt_pepper needs a box of finite width, got clip={clip!r}")
    white_box = [name for name in chosen if name in _attacks.WHITE_BOX]
    if white_box and target.scores is None:
        raise ValueError(
            f"attacks {white_box} need a gradient, and {target.why_not}; possible are {list(_attacks.NOISES)}, "
            "and all with `scores`"
        )
    classes = None if y is None else _codes("y", y)
    if classes is not None and len(classes) != n_rows:
        raise ValueError(f"y must have a class for each row of X, got {len(classes)} for {n_rows} rows")
    seed = int(check_random_state(random_state).randint(2**31 - 1))

    draws = {name: torch.Generator().manual_seed(seed + ATTACKS.index(name)) for name in chosen}
    labels = {(name, size): np.empty(n_rows, dtype=np.int64) for name in chosen for size in sizes}
    deltas = dict.fromkeys(labels, 0.0)
    norms = dict.fromkeys(labels, 0.0)
    flat = 0
    if estimator is None:
        clean = np.concatenate([target.labels(target.rows[block]) for block in target.rows.blocks(target.block)])
    blocks = list(target.rows.blocks(target.block))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "X does not have valid feature names")
        for block in tqdm(blocks, desc="attacks", disable=not verbose):
            x = target.rows[block]
            own = torch.from_numpy(clean[block])
            low, high = torch.minimum(target.low, x), torch.maximum(target.high, x)
            gradient = None
            if white_box:
                gradient = _clean_gradient(target, x, own)
                flat += int((_attacks.norm(gradient) == 0).sum()) if gradient is not None else 0
            for name in chosen:
                shape = (len(x), *target.rows.shape)
                draw = torch.randn if name == "gaussian" else torch.rand
                drawn = draw(shape, generator=draws[name], dtype=torch.float64) if name != "fgsm" else x
                for size in sizes:
                    steepness = torch.zeros(1)
                    if name in _attacks.NOISES:
                        changed = _attacks.noisy(name, x, drawn, size, low, high, target.width)
                    elif gradient is None:
                        changed = x
                    else:
                        changed = _attacks.one_step(x, gradient, size, low, high)
                        steepness = _attacks.norm(gradient)
                        if name == "pgd":
                            assert target.scores is not None
                            changed, steepness = _attacks.many_steps(
                                target.scores,
                                x,
                                own,
                                eps=size,
                                start=2 * drawn - 1,
                                candidates=(x, changed),
                                steps=steps,
                                step_size=2.5 * size / steps if step_size is None else step_size,
                                low=low,
                                high=high,
                                guides=target.guides,
                            )
                    changed = target.rows.rounded(changed, x)
                    labels[name, size][block] = target.labels(changed)
                    deltas[name, size] = max(deltas[name, size], float((changed - x).abs().max()))
                    norms[name, size] += float(steepness.sum())
    if flat > 0.01 * n_rows:
        warnings.warn(
            f"the gradient of the margin is exactly 0 in {flat} of {n_rows} rows: white-box attacks do nothing there, "
            "and robustness against them says nothing",
            RuntimeWarning,
            stacklevel=2,
        )
    measured = _Measured(clean, classes)
    points = [
        RobustnessPoint(
            attack=name,
            eps=size,
            consistency=float((found == clean).mean()),
            **measured(found),
            max_delta=deltas[name, size],
            gradient_norm=norms[name, size] / n_rows if name in _attacks.WHITE_BOX else None,
        )
        for (name, size), found in labels.items()
    ]
    return RobustnessReport(
        name=target.name,
        n_rows=n_rows,
        n_clusters=len(np.unique(clean)),
        box=(float(target.low.min()), float(target.high.max())),
        clean=None if classes is None else measured(clean),  # type: ignore[arg-type]
        points=points,
    )


def _attack_names(attacks: Any) -> list[str]:
    chosen = [attacks] if isinstance(attacks, str) else list(attacks)
    for name in chosen:
        if name not in ATTACKS:
            raise ValueError(f"attacks must be some of {list(ATTACKS)}, got {name!r}")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"attacks must name each at most once and one at least, got {chosen}")
    return chosen


def _check_steps(steps: Any, step_size: Any) -> None:
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1:
        raise ValueError(f"steps must be a positive integer, got {steps!r}")
    if step_size is not None and not (isinstance(step_size, Real) and 0 < float(step_size) < math.inf):
        raise ValueError(f"step_size must be positive and finite, got {step_size!r}")


def _sizes(eps: Any, width: float) -> list[float]:
    if eps is None:
        if not math.isfinite(width):
            raise ValueError("eps must be given where clip is infinite, for its default is a share of the box")
        return [share * (width or 1.0) for share in SHARES]
    given = [eps] if isinstance(eps, Real) else list(eps)
    for value in given:
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
            raise ValueError(f"eps must be non-negative and finite, got {value!r}")
    if not given or len(set(given)) < len(given):
        raise ValueError(f"eps must hold each size at most once and one at least, got {given}")
    return [float(value) for value in given]


def _clean_gradient(target: _attacks.Target, x: Tensor, labels: Tensor) -> Tensor | None:
    """The margin's gradient at unchanged rows; None where there is no second cluster to go to."""
    assert target.scores is not None
    with torch.no_grad():
        values = target.scores(x)
    n_clusters = values.shape[1]
    if int(labels.min()) < 0 or int(labels.max()) >= n_clusters:
        raise ValueError(
            f"the labels must be columns of the scores, 0 to {n_clusters - 1}, got {int(labels.min())} to "
            f"{int(labels.max())}"
        )
    agreement = float((values.argmax(1) == labels).double().mean())
    if agreement < 0.9:
        raise ValueError(
            f"the largest score is that of the label in {agreement:.1%} of the rows only: the scores' columns must be "
            "in the order of the labels"
        )
    return _attacks.slope(target.scores, x, labels)[1] if n_clusters > 1 else None


class _Measured:
    """ACC, NMI and ARI of labels, with the matching of clusters and classes that is best for unchanged rows."""

    def __init__(self, clean: NDArray[np.int64], classes: NDArray[np.int64] | None) -> None:
        self.classes = classes
        if classes is not None:
            self.names, codes = np.unique(clean, return_inverse=True)
            self.matched = _matching(classes, codes)

    def __call__(self, labels: NDArray[np.int64]) -> dict[str, float | None]:
        if self.classes is None:
            return {"acc": None, "nmi": None, "ari": None}
        from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

        place = np.searchsorted(self.names, labels).clip(max=len(self.names) - 1)
        assigned = np.where(self.names[place] == labels, self.matched[place], -1)
        return {
            "acc": float((assigned == self.classes).mean()),
            "nmi": float(normalized_mutual_info_score(self.classes, labels)),
            "ari": float(adjusted_rand_score(self.classes, labels)),
        }
