"""Training on a GPU with PyTorch and Triton: everything in here needs `imgskipgram[gpu]`.

`ImageSkipGram(device="cuda")` is what users want. Importing this module registers the operators it is made of, for
loops of one's own: `torch.ops.imgskipgram.sgns_` trains the vectors of sentences, `torch.ops.imgskipgram.image_` those
of words with their images.
"""

from __future__ import annotations

from .._extras import need

need("torch", "gpu", "imgskipgram.gpu")

from ._ops import draws, image_, pairs_, pictures, sgns_  # noqa: E402 (needs torch)

__all__ = ["draws", "image_", "pairs_", "pictures", "sgns_"]
