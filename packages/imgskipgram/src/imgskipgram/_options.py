"""The options of a model: what each may be, checked before anything is done."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any

import numpy as np

from ._checks import check_choice, check_integer, check_number
from ._vocabulary import Trim

__all__ = ["CALLS", "LOSSES", "Options", "check_rates"]

LOSSES = ("exact", "sampled", "none")
CALLS = ("on_train_begin", "on_epoch_begin", "on_epoch_end", "on_train_end")
_CHOICES = {
    "objective": ("nce", "margin", "infonce", "none"),
    "projection": ("shared", "fixed", "free"),
    "negatives": ("center", "batch", "pair"),
    "dtype": ("float32", "float64", "bfloat16"),
    "device": ("cpu", "cuda"),
}
# Most that the counters of the samples hold: 2 tries a number, and 16 bits of streams for a context.
_INTEGERS = {
    "vector_size": (1, 2**20),
    "window": (1, 16_382),
    "negative": (1, 16_383),
    "epochs": (1, 2**16),
    "seed": (0, 2**64 - 1),
    "image_negative": (1, 16_383),
}
_FLAGS = ("deterministic", "shrink_windows", "sorted_vocab")


_SHARED = 0.3  # lambda of image_weight=1 where words place the images: with 1 they lose what text says


@dataclass(frozen=True)
class Options:
    """The arguments of `ImageSkipGram`, in their order.

    Raises:
        ValueError: a value that the argument cannot have.
        TypeError: a value of another type.
    """

    vector_size: int = 100
    window: int = 5
    min_count: int = 5
    negative: int = 5
    sample: float = 1e-3
    alpha: float = 0.025
    min_alpha: float = 1e-4
    epochs: int = 5
    workers: int | None = None
    seed: int = 1
    ns_exponent: float = 0.75
    objective: str = "nce"
    image_weight: float = 1.0
    image_negative: int = 5
    projection: str = "shared"
    negatives: str = "center"
    deterministic: bool = False
    dtype: str = "float32"
    device: str = "cpu"
    callbacks: Any = ()
    shrink_windows: bool = True
    max_vocab_size: int | None = None
    max_final_vocab: int | None = None
    trim_rule: Any = None
    sorted_vocab: bool = True

    @property
    def weight(self) -> float:
        """lambda of the image term in training."""
        return (_SHARED if self.projection == "shared" else 1) * self.image_weight

    def __post_init__(self) -> None:
        for name, (least, most) in _INTEGERS.items():
            self._set(name, check_integer(name, getattr(self, name), least, most))
        if self.workers is not None:
            self._set("workers", check_integer("workers", self.workers, 1, 2**15))
        for name in ("sample", "alpha", "min_alpha", "ns_exponent", "image_weight"):
            self._set(name, check_number(name, getattr(self, name)))
        if not 0 <= self.sample < 1:
            raise ValueError(f"sample must be at least 0 and less than 1, got {self.sample}")
        check_rates("alpha", self.alpha, "min_alpha", self.min_alpha)
        if not math.isfinite(self.ns_exponent):
            raise ValueError(f"ns_exponent must be finite, got {self.ns_exponent}")
        if not 0 <= self.image_weight < math.inf:
            raise ValueError(f"image_weight must be non-negative and finite, got {self.image_weight}")
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name in _FLAGS:
            self._set(name, _flag(name, getattr(self, name)))
        self._set("callbacks", _callbacks(self.callbacks))
        trim = self.trim  # with its own checks
        for name in ("min_count", "max_vocab_size", "max_final_vocab"):
            if getattr(trim, name) is not None:
                self._set(name, int(getattr(trim, name)))
        if self.device == "cuda":
            for name, other in (("deterministic", self.deterministic), ("dtype", self.dtype == "float64")):
                if other:
                    raise ValueError(f'{name} must not be {getattr(self, name)!r} with device="cuda"')

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def trim(self) -> Trim:
        """Which words are kept."""
        return Trim(self.min_count, self.max_vocab_size, self.max_final_vocab, self.trim_rule, self.sorted_vocab)

    def arguments(self) -> dict[str, Any]:
        """What to give to `ImageSkipGram` for a model with these options."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def check_rates(start: str, alpha: float, end: str, min_alpha: float) -> None:
    """Two learning rates, under the names that the user gave them.

    Raises:
        ValueError: the first is not positive, or the last not between 0 and it.
        TypeError: one is no number.
    """
    alpha, min_alpha = check_number(start, alpha), check_number(end, min_alpha)
    if not 0 < alpha < math.inf:
        raise ValueError(f"{start} must be positive and finite, got {alpha}")
    if not 0 <= min_alpha <= alpha:
        raise ValueError(f"{end} must be non-negative and at most {start}={alpha}, got {min_alpha}")


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, Integral | np.bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    if value not in (0, 1):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def _callbacks(given: Any) -> tuple[Any, ...]:
    if not isinstance(given, Iterable):
        raise TypeError(f"callbacks must be a sequence of objects with {', '.join(CALLS)}, got {given!r}")
    callbacks = tuple(given)
    for callback in callbacks:
        if not any(callable(getattr(callback, name, None)) for name in CALLS):
            raise TypeError(f"callbacks must have one of {', '.join(CALLS)}, got {type(callback).__name__}")
    return callbacks
