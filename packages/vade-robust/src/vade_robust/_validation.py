"""What the estimators refuse before any work: parameters that break a rule, or each other; data too small for them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from torch import nn

if TYPE_CHECKING:
    from ._data import Source

PRESETS: dict[str, dict[str, Any]] = {
    "lpvdn": {
        "reconstruction": "bernoulli",
        "mutual_information": 1.0,
        "locality": 1e-4,
        "perplexity": "auto",
        "exaggeration": 1.0,
        "posterior": "sampled",
        "assign": "embedding",
        "adversarial": 0.0,
        "warmup": 0.0,
        "denoising": 0.0,
        "start": "gmm",
    },
    "vade": {
        "mutual_information": 0.0,
        "locality": 0.0,
        "perplexity": "auto",
        "exaggeration": 1.0,
        "posterior": "sampled",
        "assign": "mixture",
        "adversarial": 0.0,
        "warmup": 0.0,
        "denoising": 0.0,
        "start": "gmm",
    },
}
"""What each preset fixes. A preset also leaves the log-variance head untouched and log-variances unclamped."""

ABSENT: dict[str, Any] = {
    "mutual_information": 0.0,
    "locality": 0.0,
    "perplexity": "auto",
    "exaggeration": 4.0,
    "adversarial": 0.0,
    "preset": None,
}
"""The values of parameters that VaDE has not."""

_COUNTS = ("n_clusters", "n_latent", "pretrain_epochs", "epochs", "batch_size")
_WEIGHTS = ("mutual_information", "locality", "adversarial", "denoising")
_OPTIONS: dict[str, tuple[str | None, ...]] = {
    "reconstruction": ("auto", "bernoulli", "gaussian"),
    "posterior": ("exact", "sampled"),
    "assign": ("embedding", "mixture"),
    "start": ("map", "gmm"),
    "preset": (None, "lpvdn", "vade"),
}


def parameters(estimator: Any) -> dict[str, Any]:
    """The parameters in force, by name: those of the estimator, of its preset, and `ABSENT` where it has none.

    Nothing is changed. `random_state`, `device` and `callbacks` stay as they were given.

    Raises ValueError or TypeError naming the argument, the rule and the value.
    """
    given = estimator.get_params(deep=False)
    classes: list[Any] = [cls for cls in type(estimator).__mro__ if issubclass(cls, BaseEstimator)]
    inherited = {name for cls in classes for name in cls._get_param_names() if hasattr(estimator, name)}
    p: dict[str, Any] = {**ABSENT, **{name: getattr(estimator, name) for name in inherited}, **given}
    for name in _COUNTS:
        count(name, p[name])
    hidden = p["hidden"]
    if isinstance(hidden, str) or not isinstance(hidden, Iterable):
        raise TypeError(f"hidden must be a sequence of integers, got {hidden!r}")
    p["hidden"] = tuple(hidden)
    if not p["hidden"]:
        raise ValueError(f"hidden must name at least one layer, got {hidden!r}")
    for size in p["hidden"]:
        count("hidden", size)
    if not isinstance(p["encoder"], nn.Module):
        option("encoder", p["encoder"], ("mlp", "conv"), " or an nn.Module")
    for name, allowed in _OPTIONS.items():
        option(name, p[name], allowed)
    for name in _WEIGHTS:
        if not number(name, p[name]) >= 0:
            raise ValueError(f"{name} must be non-negative, got {p[name]!r}")
    if not number("lr", p["lr"]) > 0:
        raise ValueError(f"lr must be positive, got {p['lr']!r}")
    if not number("exaggeration", p["exaggeration"]) >= 1:
        raise ValueError(f"exaggeration must be at least 1, got {p['exaggeration']!r}")
    if not 0 <= number("warmup", p["warmup"]) <= 1:
        raise ValueError(f"warmup must be in [0, 1], got {p['warmup']!r}")
    if isinstance(p["perplexity"], str) and p["perplexity"] != "auto":
        raise ValueError(f"perplexity must be 'auto' or a number >= 1, got {p['perplexity']!r}")
    if p["perplexity"] != "auto" and not number("perplexity", p["perplexity"]) >= 1:
        raise ValueError(f"perplexity must be 'auto' or a number >= 1, got {p['perplexity']!r}")
    if p["n_jobs"] is not None and (not _is_integer(p["n_jobs"]) or p["n_jobs"] == 0):
        kind = ValueError if _is_integer(p["n_jobs"]) else TypeError
        raise kind(f"n_jobs must be None or an integer other than 0, got {p['n_jobs']!r}")
    if isinstance(p["callbacks"], str) or not isinstance(p["callbacks"], Iterable):
        raise TypeError(f"callbacks must be a sequence of objects with on_epoch_end, got {p['callbacks']!r}")
    p["callbacks"] = tuple(p["callbacks"])
    for callback in p["callbacks"]:
        if not callable(getattr(callback, "on_epoch_end", None)):
            raise TypeError(f"callbacks must have a method on_epoch_end(estimator, epoch, logs), got {callback!r}")
    if not isinstance(p["verbose"], (bool, Integral)):
        raise TypeError(f"verbose must be a bool or an integer, got {p['verbose']!r}")
    try:
        check_random_state(p["random_state"])
    except ValueError:
        raise ValueError(
            "random_state must be None, an integer in [0, 2**32) or a numpy.random.RandomState, got "
            f"{p['random_state']!r}"
        ) from None
    device(p["device"])
    _apply_preset(estimator, p)
    if p["assign"] == "embedding" and p["locality"] == 0:
        has = "locality" in given
        raise ValueError(
            "assign='embedding' needs the map that locality trains, got locality=0: "
            + ("set locality > 0 or assign='mixture'" if has else "use assign='mixture', or RobustVaDE")
        )
    if p["adversarial"] > 0 and p["mutual_information"] == 0:
        raise ValueError(
            f"adversarial={p['adversarial']!r} attacks the discriminator that mutual_information trains, got "
            "mutual_information=0: set mutual_information > 0 or adversarial=0"
        )
    return p


def _apply_preset(estimator: Any, p: dict[str, Any]) -> None:
    """Puts the preset's values in force; a value that neither it nor the default has is a contradiction."""
    if p["preset"] is None:
        return
    defaults = type(estimator)().get_params(deep=False)
    for name, value in PRESETS[p["preset"]].items():
        if name not in defaults:
            continue
        if p[name] not in (value, defaults[name]):
            raise ValueError(
                f"preset={p['preset']!r} has {name}={value!r}, got {name}={p[name]!r}: leave one of them out"
            )
        p[name] = value


def fit(p: dict[str, Any], source: Source) -> None:
    """Refuses data too small for the parameters; call it once the source's rows are counted (after `_data.prepare`).

    Warns of fewer distinct rows than clusters.
    """
    rows = source.seen
    if rows < 2:
        raise ValueError(f"n_samples={rows} should be >= 2")
    if rows < p["n_clusters"]:
        raise ValueError(f"n_samples={rows} should be >= n_clusters={p['n_clusters']}")
    perplexity(p, min(rows, source.batch_size or p["batch_size"]))
    distinct = source.distinct(p["n_clusters"])
    if distinct < p["n_clusters"]:
        warnings.warn(
            f"X has {distinct} distinct rows, fewer than n_clusters={p['n_clusters']}: some clusters will be empty",
            ConvergenceWarning,
            stacklevel=2,
        )


def perplexity(p: dict[str, Any], size: int) -> None:
    """Refuses a perplexity that batches of `size` rows cannot have."""
    if p["locality"] > 0 and p["perplexity"] != "auto" and not 1 <= p["perplexity"] < size - 1:
        raise ValueError(
            f"perplexity must be in [1, b - 1) for batches of b={size} rows, got {p['perplexity']!r}: lower it, raise "
            "batch_size or use 'auto'"
        )


def device(value: Any) -> torch.device:
    """The device to work on: cuda if present for None.

    Raises ValueError naming a device that torch does not know or the machine does not have.
    """
    if value is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(value)
        torch.empty(0, device=found)
        available = found.type != "meta"
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError):
        available = False
    if not available:
        raise ValueError(f"device must name a device of this machine, such as 'cpu', got {value!r}")
    return found


def count(name: str, value: Any, least: int = 1) -> None:
    """Refuses what is no integer >= `least`."""
    if not _is_integer(value):
        raise TypeError(f"{name} must be an integer >= {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")


def number(name: str, value: Any) -> float:
    """The value as a float; refuses what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return float(value)


def option(name: str, value: Any, allowed: tuple[str | None, ...], other: str = "") -> None:
    """Refuses what is none of the allowed values."""
    listed = " or ".join(map(repr, allowed)) + other
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be {listed}, got {value!r}")
    if value not in allowed:
        raise ValueError(f"{name} must be {listed}, got {value!r}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
