"""Chinese word segmentation by one compact CRF with shared and per-domain weights."""

from .corpus import Partial, Sentence, read_corpus, recipe
from .evaluation import Comparison, Interval, Scores, bootstrap, compare, evaluate, matrix, sentence_counts
from .segmenter import Explanation, Offsets, Segmenter, Token

__all__ = [
    "Comparison",
    "Explanation",
    "Interval",
    "Offsets",
    "Partial",
    "Scores",
    "Segmenter",
    "Sentence",
    "Token",
    "bootstrap",
    "compare",
    "evaluate",
    "matrix",
    "read_corpus",
    "recipe",
    "sentence_counts",
]
__version__ = "1.0.0"
