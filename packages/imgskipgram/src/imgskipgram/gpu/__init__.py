"""Training on a GPU with PyTorch and Triton: everything in here needs `imgskipgram[gpu]`.

`ImageSkipGram(device="cuda")` is what users want. Importing this module registers the operators it is made of, for
loops of one's own: `torch.ops.imgskipgram.sgns_` trains the vectors of sentences, `torch.ops.imgskipgram.image_` those
of words with their images.
"""

from __future__ import annotations

from .._extras import need

need("torch", "gpu", "imgskipgram.gpu")

from . import _ops  # noqa: E402, F401 (needs torch, and registers the operators)

__all__: list[str] = []
