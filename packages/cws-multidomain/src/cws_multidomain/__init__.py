"""Chinese word segmentation by one compact CRF with shared and per-domain weights."""

from .corpus import Partial, Sentence, read_corpus, recipe
from .evaluation import Comparison, Interval, Scores, bootstrap, compare, evaluate, matrix, sentence_counts

__all__ = [
    "Comparison",
    "Interval",
    "Partial",
    "Scores",
    "Sentence",
    "bootstrap",
    "compare",
    "evaluate",
    "matrix",
    "read_corpus",
    "recipe",
    "sentence_counts",
]
__version__ = "1.0.0"
