"""Chinese word segmentation by one compact CRF with shared and per-domain weights."""

from .adaptation import Adaptation, adapt
from .corpus import Partial, Sentence, read_corpus, recipe
from .evaluation import Comparison, Interval, Scores, bootstrap, compare, evaluate, matrix, sentence_counts
from .segmenter import Explanation, Offsets, Segmenter, Token
from .tagger import Accuracy, Tagger, train_pos
from .training import Progress, fine_tune, train

__all__ = [
    "Accuracy",
    "Adaptation",
    "Comparison",
    "Explanation",
    "Interval",
    "Offsets",
    "Partial",
    "Progress",
    "Scores",
    "Segmenter",
    "Sentence",
    "Tagger",
    "Token",
    "adapt",
    "bootstrap",
    "compare",
    "evaluate",
    "fine_tune",
    "matrix",
    "read_corpus",
    "recipe",
    "sentence_counts",
    "train",
    "train_pos",
]
__version__ = "1.0.0"
