"""Epochs on a GPU: the corpus in chunks of samples, and each chunk in pieces that are trained by one launch.

Rates and samples are those of the processor's engine. What differs is the order: centres of a piece are trained by
thousands of programs at once, and images of a piece before its text.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._engine import Totals
from .._rows import copied
from . import _ops

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from .._corpus import Tokens
    from .._engine import Place
    from .._grounding import Grounding
    from .._options import Options
    from .._vocabulary import Vocabulary

__all__ = ["Cuda"]

_RATE_BLOCK = 10_000  # tokens of one learning rate, as in train.h
_CHUNK = 1 << 20  # tokens whose samples are there at once: 64 MB with five negatives
_PIECE = 1 << 16  # centres of a launch: 2048 programs
_GROUNDED = 4  # pieces with images are so much smaller, as a word's images do not see its text within one
_LEAST, _PIECES = 1 << 10, 64  # a small corpus has so many pieces, or frequent words would be trained by stale rows
_SHARE = 4  # of the memory that is free, the part that a corpus may take to stay there


class Cuda:
    """The operators of `imgskipgram.gpu`, for the model's options.

    Args:
        options, vocabulary, grounding: of the model.
        loss: "none" for no losses; else they are exact, as they cost nothing here.
        device: where; on "cpu" the operators are their definitions, which are slow.

    Raises:
        ValueError: an option that the operators do not know.
    """

    def __init__(
        self, options: Options, vocabulary: Vocabulary, grounding: Grounding | None, loss: str, device: str = "cuda"
    ) -> None:
        trained = grounding is not None and grounding.trained
        for name, value in {"dtype": "float32", "negatives": "center", "shrink_windows": True}.items():
            _check(name, getattr(options, name), value)
        _check("deterministic", options.deterministic, False)
        if trained and options.projection == "free":
            raise ValueError('projection must be "shared" or "fixed" with device="cuda", got "free"')
        self._options, self._loss = options, loss
        self._device = torch.device(device)
        if self._device.type == "cuda":
            from ._triton import tile

            tile(1 + options.negative, -(-options.vector_size // 16) * 16, "negative")
            if trained:
                tile(1 + options.image_negative, -(-options.vector_size // 16) * 16, "image_negative")
        keep = vocabulary.keep(options.sample)
        self._tables = tuple(map(self._on_device, (keep, *vocabulary.noise(options.ns_exponent))))
        self._images, self._piece = None, min(_PIECE, max(_LEAST, vocabulary.total // _PIECES))
        if grounding is not None and trained:
            self._piece = max(1, self._piece // _GROUNDED)
            self._images = self._on_device(grounding.start), self._on_device(grounding.images), len(grounding.bank)
        self._seed = options.seed - (options.seed >> 63 << 64)  # the same bits with a sign, as operators take integers
        self._known: tuple[NDArray[np.uint32], Tensor] | None = None

    def start(self, v: NDArray[Any], u: NDArray[Any], lockf: NDArray[np.float32]) -> None:
        if (lockf != 1).any():
            raise ValueError(
                f'wv.vectors_lockf must be 1 with device="cuda", got {lockf[lockf != 1][0]:g}; freeze rows with '
                'device="cpu"'
            )
        self._v, self._u = self._on_device(v), self._on_device(u)

    def run(
        self,
        tokens: Tokens,
        z: NDArray[Any] | None,
        place: Place,
        stop: NDArray[np.uint8],
        progress: NDArray[np.uint64],
    ) -> Totals:
        sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        images = None if z is None else self._on_device(z)
        offsets = self._on_device(tokens.offsets)
        text_pairs = image_pairs = words = 0
        for begin, end in _chunks(tokens.offsets):
            if stop[0]:
                break
            first, last = int(tokens.offsets[begin]), int(tokens.offsets[end])
            starts = offsets[begin : end + 1] - first
            key = (self._seed, place.epoch, tokens.first + begin)
            at, *drawn = _ops.draws(
                self._ids(tokens.ids, first, last),
                starts,
                *self._tables,
                self._options.window,
                self._options.negative,
                *key,
            )
            kept = int((at >= 0).sum())  # waits for the chunk before this one
            text_pairs += int((drawn[2] - drawn[1])[:kept].sum()) - kept
            words += kept
            rates = self._rates(place, at[:kept].double() + first)
            shown = None
            if images is not None and self._images is not None:
                shown = _ops.pictures(
                    at[:kept], drawn[0][:kept], starts, *self._images, self._options.image_negative, *key
                )
                image_pairs += int((shown[0] >= 0).sum())
            for piece in range(0, kept, self._piece):
                stopped = min(kept, piece + self._piece)
                if images is not None and shown is not None:
                    middle = first + (last - first) * (piece + stopped) // (2 * kept)
                    sums[1] += _ops.image_(
                        self._v,
                        drawn[0][piece:stopped],
                        *(x[piece:stopped] for x in shown),
                        images,
                        self._options.objective,
                        self._options.weight,
                        float(self._rates(place, torch.tensor(middle, dtype=torch.float64))),
                    )
                sums[0] += _ops.pairs_(self._v, self._u, *drawn, rates, piece, stopped)
            progress[0] += np.uint64(last - first)
        text, image = sums.tolist()
        if self._loss == "none":
            text, image = (math.nan if pairs else 0.0 for pairs in (text_pairs, image_pairs))
        raw = int(tokens.offsets[-1]) - int(tokens.offsets[0])
        return Totals(text, image, text_pairs, image_pairs, words, raw)

    def vectors(self) -> NDArray[np.float32]:
        return self._v[:, : self._options.vector_size].to("cpu", copy=True).numpy()

    def finish(self) -> tuple[NDArray[Any], NDArray[Any]]:
        v, u = (copied(x.cpu().numpy(), self._options.vector_size, "float32") for x in (self._v, self._u))
        return v, u

    def _on_device(self, x: NDArray[Any]) -> Tensor:
        """A copy there; offsets as int64."""
        x = x.view(np.int64) if x.dtype == np.uint64 else x
        return torch.from_numpy(x if x.flags.writeable else x.copy()).to(self._device, copy=True)

    def _ids(self, ids: NDArray[np.uint32], first: int, last: int) -> Tensor:
        if self._known is None or self._known[0] is not ids:
            self._known = None
            if ids.nbytes > _free(self._device) // _SHARE:
                return self._on_device(np.ascontiguousarray(ids[first:last]))
            self._known = ids, self._on_device(np.asarray(ids))
        return self._known[1][first:last]

    @staticmethod
    def _rates(place: Place, token: Tensor) -> Tensor:
        """The rates of tokens, counted in float64 from the beginning of the part's ids."""
        before = place.done + (place.first_token + token) // _RATE_BLOCK * _RATE_BLOCK
        rate = place.alpha - (place.alpha - place.min_alpha) * before / place.total
        return rate.clamp(min=place.min_alpha).float()


def _free(device: torch.device) -> int:
    """Bytes of memory that nobody has."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else sys.maxsize


def _chunks(offsets: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Runs of sentences of at most a chunk, or of one that is longer."""
    begin, sentences = 0, len(offsets) - 1
    while begin < sentences:
        most = int(np.searchsorted(offsets, offsets[begin] + np.uint64(_CHUNK), "right")) - 1
        end = min(sentences, max(most, begin + 1))
        yield begin, end
        begin = end


def _check(name: str, value: Any, only: Any) -> None:
    if value != only:
        raise ValueError(f'{name} must be {only!r} with device="cuda", got {value!r}')
