"""Training and bulk scoring on a GPU with PyTorch and Triton: everything in here needs `cws-multidomain[gpu]`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..corpus import Corpus
    from ..segmenter import Segmenter

__all__ = ["train"]


def train(corpus: Corpus, *, device: str = "cuda", shards: int = 64, **options: Any) -> Segmenter:
    r"""Learn a segmenter on a GPU: :func:`cws_multidomain.train` with `device` and minibatches.

    Each step scores `shards` sentences by the same weights. The same minibatches on the CPU
    (``train(corpus, shards=shards)``) give the same weights but for the rounding of float32; equal runs on one kind of
    device give equal bits.

    Args:
        corpus: as for :func:`cws_multidomain.train`.
        device: "cuda" (default), or "cpu" for the definition of the operators, which is slow.
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
