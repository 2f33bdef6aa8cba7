"""Training and bulk scoring on a GPU with PyTorch and Triton: everything in here needs `cws-multidomain[gpu]`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..corpus import Corpus
    from ..segmenter import Segmenter

__all__ = ["cut_many", "train"]


def cut_many(
    segmenter: Segmenter, texts: Iterable[str], *, device: str = "cuda", characters: int = 1 << 22
) -> list[list[str]]:
    """The tokens of texts, equal to those of ``segmenter.cut_many(texts)``.

    The integers of the model file are added up as the engine in C++ adds them, so the tags are the same ones. Rules are
    applied by the engine, on the CPU. Bulk scoring is bound by reading and writing text, and all cores of a CPU are
    hard to beat at it: a GPU pays for training.

    Args:
        segmenter: with any domain and any rules, but without words of the user, and of coarse granularity.
        texts: an iterable of str.
        device: "cuda" (default), or "cpu" for the definition of the operators, which is slow.
        characters: of the texts that are on the device at once, unless one is longer (default 4,194,304).

    Raises:
        ImportError: without the extra gpu.
        ValueError: a segmenter that has words or another granularity, or a device that this machine lacks.
        TypeError: a text that is no str.

    Example::

        segmenter = Segmenter.load()
        assert cut_many(segmenter, texts, device="cuda") == segmenter.cut_many(texts)
    """
    require(device)
    if segmenter.granularity != "coarse":
        raise ValueError(f"segmenter must be of granularity coarse on a device, got {segmenter.granularity}")
    if segmenter.words:
        raise ValueError(f"segmenter must have no words of the user on a device, got {len(segmenter.words)} of them")
    if isinstance(characters, bool) or not isinstance(characters, int) or characters < 1:
        raise ValueError(f"characters must be an integer of at least 1, got {characters!r}")
    if isinstance(texts, str):
        raise TypeError("texts must be an iterable of str, got a str")
    given = list(texts)
    for index, text in enumerate(given):
        if not isinstance(text, str):
            raise TypeError(f"texts must be str, got {type(text).__name__} at index {index}")
    from ._scoring import cut_many as cut

    return cut(segmenter, given, device, characters)


def train(corpus: Corpus, *, device: str = "cuda", shards: int = 64, **options: Any) -> Segmenter:
    r"""Learn a segmenter on a GPU: :func:`cws_multidomain.train` with `device` and minibatches.

    Each step scores `shards` sentences by the same weights. The same minibatches on the CPU
    (``train(corpus, shards=shards)``) give the same weights but for the rounding of float32; equal runs on one kind of
    device give equal bits.

    Args:
        corpus: as for :func:`cws_multidomain.train`.
        device: "cuda" (default), or "cpu" for the same minibatches in C++.
        shards: sentences of a minibatch (default 64). A GPU needs hundreds to be busy, but steps of ADF are larger for
            more sentences: watch the loss.
        **options: as for :func:`cws_multidomain.train`.

    Raises:
        ImportError: without the extra gpu.
        ValueError: as :func:`cws_multidomain.train`, or a device that this machine lacks.
    """
    require(device)
    from ..training import train as learn

    return learn(corpus, device=device, shards=shards, **options)


def require(device: str) -> None:
    """Check that PyTorch, and for CUDA a device and Triton, are there."""
    if not find_spec("torch"):
        raise ImportError('cws_multidomain.gpu needs PyTorch: pip install "cws-multidomain[gpu]"')
    import torch

    if torch.device(device).type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device must be one that this machine has, got {device!r}; PyTorch sees no CUDA device")
        if not find_spec("triton"):
            raise ImportError('cws_multidomain.gpu needs Triton: pip install "cws-multidomain[gpu]"')
