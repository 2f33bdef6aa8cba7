"""Training: epochs by a plan, between which the model is whole whatever ends them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ._engine import Cpu, Engine, Place, Totals, engine
from ._rows import copied, exported, infinite, rounded, zeros

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray

    from ._corpus import Tokens
    from ._grounding import Grounding
    from ._projection import Shared
    from ._state import State

    _Wait: TypeAlias = "Callable[[Callable[..., Totals]], Totals]"

__all__ = ["Cpu", "Engine", "Place", "Plan", "Totals", "Trainer", "prepare", "run"]

_PARTS, _TEXT_ALONE = 20, 4  # of a training: images are placed anew before each part, the first time before this one
_LOOK = 0.2  # seconds between looks at progress, and at interrupts that are no signals


@dataclass(frozen=True)
class Plan:
    """A training and how far it has come.

    Args:
        epochs: passes over the corpus.
        tokens: tokens of a pass, those outside the vocabulary left out.
        alpha, min_alpha: the rates with which it begins and ends.
        done: passes that are finished.
    """

    epochs: int
    tokens: int
    alpha: float
    min_alpha: float
    done: int = 0

    def marks(self) -> list[int]:
        """The tokens of the next epoch before which images are placed anew; as well at its beginning, for a model
        that goes on after a break does not know where they were."""
        marks = (k * self.epochs * self.tokens // _PARTS - self.done * self.tokens for k in range(_TEXT_ALONE, _PARTS))
        return sorted({max(mark, 0) for mark in marks if mark < self.tokens})


def prepare(
    model: State, grounding: Grounding | None, loss: str, make: Callable[..., Trainer] | None = None
) -> Trainer:
    """What trains a model on its device, with its vectors.

    Raises:
        ValueError: the device does not know an option.
        ImportError, RuntimeError: it is not there.
    """
    made = engine(model._options, model._known(), grounding, loss)
    trainer = (make or Trainer)(made, grounding, model._free, model._options.dtype)
    trainer.engine.start(*model._rows())
    return trainer


def run(
    model: State, trainer: Trainer, feed: Callable[[], Iterable[Tokens]], plan: Plan, progress: bool
) -> tuple[int, int]:
    """Train what a plan has left, and count the words that were trained and those that were read.

    After every epoch the model has its vectors; callbacks see and may edit them. Whatever is raised leaves the model
    there.

    Raises:
        FloatingPointError: a vector is not finite any more.
    """
    from tqdm import tqdm

    words, callbacks = model._known().words, model._options.callbacks

    def call(name: str) -> None:
        for callback in callbacks:
            if (method := getattr(callback, name, None)) is not None:
                method(model)

    effective = raw = 0
    whole = plan.epochs * plan.tokens
    with (
        ThreadPoolExecutor(1, "imgskipgram") as pool,
        tqdm(total=whole, initial=plan.done * plan.tokens, unit="tokens", unit_scale=True, disable=not progress) as bar,
    ):
        call("on_train_begin")
        while plan.done < plan.epochs:
            call("on_epoch_begin")
            if callbacks:
                trainer.engine.start(*model._rows())
            totals, read = trainer.epoch(feed(), plan, model._epochs, partial(_run, pool, bar))
            v, u = trainer.engine.finish()
            _check_finite(v, words, plan)
            _check_finite(u, words, plan)
            plan = replace(plan, done=plan.done + 1)
            if plan.done == plan.epochs:
                v = trainer.settled(v, model.wv.vectors_lockf)
            effective, raw = effective + totals.words, raw + read
            model._advance(v, u, trainer.free(), plan if plan.done < plan.epochs else None, _means(totals))
            call("on_epoch_end")
        call("on_train_end")
    return effective, raw


class Trainer:
    """An engine, and the images' vectors that it trains words with."""

    def __init__(self, engine: Engine, grounding: Grounding | None, z: NDArray[Any] | None, dtype: str) -> None:
        self.engine = engine
        self.z: NDArray[Any] | None = None
        self._dtype, self._stored = "float64" if dtype == "float64" else "float32", dtype
        self._shared: Shared | None = None
        self._free = False
        if grounding is not None and grounding.trained:
            self._columns, self._step = grounding.columns, grounding.weight / (1 + grounding.weight)
            if grounding.projection == "shared":
                self._shared = grounding.shared
            else:
                self._place(grounding.first() if z is None else z)
                self._free = grounding.projection == "free"

    def free(self) -> NDArray[Any] | None:
        """The images' vectors if they are parameters, as a copy."""
        return self.z[:, : self._columns].copy() if self._free and self.z is not None else None

    def settled(self, v: NDArray[Any], lockf: NDArray[np.float32]) -> NDArray[Any]:
        """v at the end: words with a part of what their images add, or would add if they had some; lengths stay."""
        if self._shared is None:
            return v
        vectors = exported(v, self._columns, copy=False)
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        step = self._step * lockf[:, None] * self._shared.imagined(vectors)
        moved = vectors + length * step
        moved *= length / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        there = step.any(1)
        settled = copied(v, v.shape[1], self._stored)
        settled[there, : self._columns] = rounded(moved[there], self._stored)
        return settled

    def epoch(self, feed: Iterable[Tokens], plan: Plan, number: int, wait: _Wait) -> tuple[Totals, int]:
        """One pass over the corpus, and how many tokens it has, those outside the vocabulary too."""
        place = Place(number, plan.alpha, plan.min_alpha, plan.done * plan.tokens, plan.epochs * plan.tokens)
        marks = plan.marks() if self._shared is not None else []
        totals, raw, at = Totals(), 0, 0
        for tokens in feed:
            begin, sentences = 0, len(tokens.offsets) - 1
            while begin < sentences:
                here = at + int(tokens.offsets[begin])
                if self._shared is not None and marks and marks[0] <= here:
                    marks = [mark for mark in marks if mark > here]
                    self._place(self._shared.pull(self.engine.vectors()))
                end = (
                    min(sentences, int(np.searchsorted(tokens.offsets, np.uint64(marks[0] - at))))
                    if marks
                    else sentences
                )
                part = replace(tokens, offsets=tokens.offsets[begin : end + 1], first=tokens.first + begin)
                totals = totals.plus(wait(partial(self.engine.run, part, self.z, replace(place, first_token=at))))
                begin = end
            at += int(tokens.offsets[-1])
            raw += tokens.raw
        return totals, raw

    def _place(self, z: NDArray[Any]) -> None:
        self.z = zeros(len(z), z.shape[1], self._dtype)
        self.z[:, : z.shape[1]] = z


def _run(pool: ThreadPoolExecutor, bar: Any, call: Callable[[NDArray[np.uint8], NDArray[np.uint64]], Totals]) -> Totals:
    """Call in another thread, so that signals are heard in this one; after an exception the call ends early."""
    stop, progress = np.zeros(1, np.uint8), np.zeros(1, np.uint64)
    shown = 0
    try:
        future = pool.submit(call, stop, progress)
        while not future.done():
            wait([future], _LOOK)
            now = int(progress[0])
            bar.update(now - shown)
            shown = now
        return future.result()
    except BaseException:
        stop[0] = 1
        raise


def _check_finite(rows: NDArray[Any], words: Sequence[str], plan: Plan) -> None:
    row = infinite(exported(rows, rows.shape[1], copy=False) if rows.dtype == np.uint16 else rows)
    if row is not None:
        raise FloatingPointError(
            f"vectors must stay finite, got NaN or infinity for {words[row]!r} after epoch {plan.done + 1} of "
            f"{plan.epochs}; lower alpha"
        )


def _means(totals: Totals) -> dict[str, float]:
    return {
        "text": totals.text_loss / max(1, totals.text_pairs),
        "image": totals.image_loss / max(1, totals.image_pairs),
        "text_pairs": totals.text_pairs,
        "image_pairs": totals.image_pairs,
    }
