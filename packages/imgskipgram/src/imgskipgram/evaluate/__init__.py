"""How good word vectors are: likeness of words, analogies, and pictures of words that were never shown."""

from __future__ import annotations

from ._analogy import Analogy, Section, analogy
from ._grounding import Cone, Grounding, grounding
from ._retrieval import Retrieval
from ._similarity import Similarity, similarity
from ._split import split

__all__ = [
    "Analogy",
    "Cone",
    "Grounding",
    "Retrieval",
    "Section",
    "Similarity",
    "analogy",
    "grounding",
    "similarity",
    "split",
]
