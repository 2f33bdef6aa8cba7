"""Ways from words to pictures that a model is measured against, on its own vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._projection import pairs, principal
from ._retrieval import Retrieval, csls, frequent, retrieval, unit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["explained", "words_to_pictures"]

_RIDGE, _COMPONENTS = 10.0, 100


def explained(
    vectors: NDArray[np.float32],
    mu: NDArray[Any],
    z: NDArray[Any],
    own: Mapping[int, NDArray[np.int64]],
    kinds: NDArray[Any] | None,
) -> Retrieval:
    """By the score of `explain`.

    Args:
        vectors: of all words `[V, D]`.
        mu: what words are centred by `[D]`.
        z: of each picture `[M, D]`.
        own: of each word that is asked about, by its number, its pictures.
        kinds: of each picture its kind.
    """
    queries, z = unit(unit(vectors[list(own)]) - mu), unit(z)
    return retrieval(queries, z, list(own.values()), csls(z, frequent(vectors, mu)), kinds)


def words_to_pictures(
    features: NDArray[np.float32],
    start: NDArray[np.uint64],
    images: NDArray[np.uint32],
    vectors: NDArray[np.float32],
    own: Mapping[int, NDArray[np.int64]],
    kinds: NDArray[Any] | None,
) -> tuple[Retrieval, Retrieval]:
    """Ridge regression from unit(v^ - mu) to principal components of pictures: by cosine, and with CSLS.

    On the benchmark's corpus no variant did better than this one: raw or unit features, all or 100 components, a word's
    pictures one by one or their mean, vectors centred or not.
    """
    words, rows = pairs(start, images)
    mu = unit(vectors[np.unique(words)]).mean(0)
    inputs = unit(unit(vectors[words]) - mu)
    parts = principal(features, _COMPONENTS)
    system = inputs.T @ inputs + _RIDGE * np.eye(inputs.shape[1])
    weights = np.linalg.solve(system, inputs.T @ parts[rows])
    queries = unit(unit(unit(vectors[list(own)]) - mu) @ weights)
    pictures = unit(parts)
    setback = csls(pictures, unit(frequent(vectors, mu) @ weights))
    mine = list(own.values())
    return retrieval(queries, pictures, mine, kinds=kinds), retrieval(queries, pictures, mine, setback, kinds)
