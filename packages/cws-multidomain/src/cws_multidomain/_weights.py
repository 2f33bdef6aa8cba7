"""The trained model in NumPy: what training returns and `_modelfile.pack` takes; no text, no decoding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Component", "Gate", "Weights"]

Float = NDArray[np.float32]
Keys = NDArray[np.uint32]


@dataclass
class Component:
    """The weights, in nats, that all domains share (component 0), or what one domain adds to them.

    The last axis is the tag: B, M, E, S. Keys are sorted, and those of a domain are a subset of the shared ones.
    """

    unigram: Float  #: [S, 5, 4]: symbol at i + d, d = -2..2
    bigram_keys: Keys  #: [n], left << 16 | right
    bigram: Float  #: [n, 4, 4]: left at i + d, d = -2..1
    skip_keys: Keys  #: [n'], symbol at i - 1 << 16 | symbol at i + 1
    skip: Float  #: [n', 4]
    joint: list[Float]  #: per lexicon [5, 125, 5, 4]: e of i - 1, m of i, b of i + 1
    charmark_keys: list[Keys]  #: per lexicon [n''], m << 16 | symbol
    charmark: list[Float]  #: per lexicon [n'', 4]
    transition: Float  #: [4, 4]: tag before, tag


@dataclass
class Gate:
    """The logistic model that names a text's domain."""

    table: Float  #: [2**13, K]
    bias: Float  #: [K]
    threshold: float = 0.6  #: below it the domain is "general"


@dataclass
class Weights:
    symbols: dict[
        int, int
    ]  #: folded code point -> symbol >= 5; of those with one symbol the first is its canonical form
    lexicons: list[Sequence[tuple[str, int]]]  #: words with counts, 0 where it is unknown
    components: list[Component]
    domains: list[str]  #: names of components 1..K
    gate: Gate | None = None
    temperature: float = 1.0  #: scores are divided by it before they become probabilities
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def n_symbols(self) -> int:
        return len(self.components[0].unigram)
