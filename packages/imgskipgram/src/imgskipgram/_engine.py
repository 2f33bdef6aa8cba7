"""What trains a part of an epoch: the protocol that every device keeps, and the processor."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from . import _core
from ._rows import copied, exported

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._corpus import Tokens
    from ._grounding import Grounding
    from ._options import Options
    from ._vocabulary import Vocabulary

__all__ = ["Cpu", "Engine", "Place", "Totals", "check_device", "engine"]


class Totals(NamedTuple):
    """Sums of the losses, the pairs that they are of, the words that sub-sampling kept, and all of them."""

    text_loss: float = 0.0
    image_loss: float = 0.0
    text_pairs: int = 0
    image_pairs: int = 0
    words: int = 0
    raw: int = 0

    def plus(self, other: Totals) -> Totals:
        return Totals(
            self.text_loss + other.text_loss,
            self.image_loss + other.image_loss,
            self.text_pairs + other.text_pairs,
            self.image_pairs + other.image_pairs,
            self.words + other.words,
            self.raw + other.raw,
        )


@dataclass(frozen=True)
class Place:
    """Where a part of an epoch lies in a training, which decides rates and samples.

    Args:
        epoch: the number of the epoch among all that the model ever had.
        alpha, min_alpha: the rates with which the training begins and ends.
        done: tokens of its earlier epochs.
        total: tokens of all its epochs.
        first_token: tokens of this epoch before the part's `ids`.
    """

    epoch: int
    alpha: float
    min_alpha: float
    done: int
    total: int
    first_token: int = 0


class Engine(Protocol):
    """Trains vectors that are its own from `start` on."""

    def start(self, v: NDArray[Any], u: NDArray[Any], lockf: NDArray[np.float32]) -> None:
        """Begin with these rows `[V, S]`, which are not changed; updates of v are multiplied by lockf `[1 or V]`."""

    def run(
        self,
        tokens: Tokens,
        z: NDArray[Any] | None,
        place: Place,
        stop: NDArray[np.uint8],
        progress: NDArray[np.uint64],
    ) -> Totals:
        """Train the sentences.

        Args:
            tokens: sentence s, with the number `tokens.first + s`, is `ids[offsets[s]:offsets[s + 1]]`; `offsets` may
                begin behind 0.
            z: of each image its row `[M, S]`, trained in place with projection="free"; None for no image term.
            place: which rates and samples are used.
            stop: `[1]`; what is trained is of no interest any more as soon as it is not 0.
            progress: `[1]`; grows by the tokens that are done.
        """

    def vectors(self) -> NDArray[np.float32]:
        """The input vectors as they are now, `[V, D]`; another `run` may change them."""

    def finish(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """v and u as they are now; another `run` does not change these arrays."""


class Cpu:
    """The kernels of `_core`, on threads."""

    def __init__(self, options: Options, vocabulary: Vocabulary, grounding: Grounding | None, loss: str) -> None:
        self._options = options
        self._keep = vocabulary.keep(options.sample)
        self._threshold, self._alias = vocabulary.noise(options.ns_exponent)
        self._images = (
            (np.zeros(len(vocabulary) + 1, np.uint64), np.zeros(0, np.uint32))
            if grounding is None
            else (grounding.start, grounding.images)
        )
        self._loss = loss
        self._dtype = np.float64 if options.dtype == "float64" else np.float32  # of factors and images
        self._workers = options.workers or len(os.sched_getaffinity(0))
        self._own = False

    def start(self, v: NDArray[Any], u: NDArray[Any], lockf: NDArray[np.float32]) -> None:
        self._v, self._u, self._lockf = v, u, lockf.astype(self._dtype)
        self._own = False

    def run(
        self,
        tokens: Tokens,
        z: NDArray[Any] | None,
        place: Place,
        stop: NDArray[np.uint8],
        progress: NDArray[np.uint64],
    ) -> Totals:
        options = self._options
        if not self._own:
            self._v, self._u = (copied(rows, options.vector_size, options.dtype) for rows in (self._v, self._u))
            self._own = True
        return Totals(
            *_core.train_epoch(
                tokens.ids,
                tokens.offsets,
                self._keep,
                self._threshold,
                self._alias,
                self._v,
                self._u,
                self._lockf,
                *self._images,
                np.zeros((0, self._v.shape[1]), self._dtype) if z is None else z,
                stop,
                progress,
                window=options.window,
                negative=options.negative,
                shrink_windows=options.shrink_windows,
                negatives=options.negatives,
                objective=options.objective,
                image_weight=0.0 if z is None else options.weight,
                image_negative=options.image_negative,
                images_trained=options.projection == "free",
                alpha=place.alpha,
                min_alpha=place.min_alpha,
                done=place.done,
                first_token=place.first_token,
                total=place.total,
                seed=options.seed,
                epoch=place.epoch,
                first_sentence=tokens.first,
                loss=self._loss,
                workers=self._workers,
                deterministic=options.deterministic,
                isa=_core.instruction_sets()[0],
            )
        )

    def vectors(self) -> NDArray[np.float32]:
        return exported(self._v, self._options.vector_size, copy=False)

    def finish(self) -> tuple[NDArray[Any], NDArray[Any]]:
        self._own = False
        return self._v, self._u


def check_device(device: str) -> None:
    """Raises ImportError without the packages that a device needs, RuntimeError without the device."""
    if device == "cuda":
        from ._extras import need

        need("triton", "gpu", 'device="cuda"')
        torch = need("torch", "gpu", 'device="cuda"')
        if not torch.cuda.is_available():
            raise RuntimeError('device="cuda" needs a GPU, torch finds none')


def engine(options: Options, vocabulary: Vocabulary, grounding: Grounding | None, loss: str) -> Engine:
    """What trains on the device of the options."""
    check_device(options.device)
    if options.device == "cuda":
        from .gpu._engine import Cuda

        made: Engine = Cuda(options, vocabulary, grounding, loss)
        return made
    return Cpu(options, vocabulary, grounding, loss)
