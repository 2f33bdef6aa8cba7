"""Words whose pictures are not shown in training."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from .._checks import check_integer

if TYPE_CHECKING:
    from gensim.models import KeyedVectors

    from ..bank import ImageBank

__all__ = ["split"]


def split(bank: ImageBank, wv: KeyedVectors, held_out: float = 0.2, seed: int = 0) -> tuple[ImageBank, tuple[str, ...]]:
    """Take the labels of some words away, to see later whether the words find their pictures.

    Words with the same head, the last part of the lower-case word split at `_`, `-` and spaces, go together: with
    "tiger_shark" as a label a held-out "great_white_shark" would not be new.

    Args:
        bank: images with labels.
        wv: vectors, or anything with `key_to_index`: heads count that are in it, or of which a word is.
        held_out: share of the heads, rounded down, but at least one.
        seed: the sorted heads are shuffled by `numpy.random.default_rng(seed).permutation`; the first are held out.

    Returns:
        The same images without these labels, and the words.

    Raises:
        ValueError: `held_out` is not between 0 and 1; fewer than two heads are in the vocabulary.

    Example:
        >>> from types import SimpleNamespace
        >>> from imgskipgram import ImageBank, evaluate
        >>> labels = ["tiger_shark", "dog", "white_shark", "cat"]
        >>> bank = ImageBank.from_features([[1.0], [2.0], [3.0], [4.0]], labels)
        >>> vocabulary = SimpleNamespace(key_to_index={"dog": 0, "shark": 1, "cat": 2})
        >>> rest, words = evaluate.split(bank, vocabulary, held_out=0.4, seed=3)
        >>> words, rest.words
        (('tiger_shark', 'white_shark'), ((), ('dog',), (), ('cat',)))
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must be between 0 and 1, got {held_out}")
    seed = check_integer("seed", seed, 0, 2**64 - 1)
    known: Any = wv.key_to_index
    groups: dict[str, list[str]] = {}
    for word in dict.fromkeys(word for labels in bank.words for word in labels):
        groups.setdefault(_head(word), []).append(word)
    heads = sorted(head for head, words in groups.items() if head in known or any(word in known for word in words))
    if len(heads) < 2:
        raise ValueError(f"words of the bank must have at least two heads in the vocabulary, got {len(heads)}")
    order = np.random.default_rng(seed).permutation(len(heads))
    words = tuple(word for i in order[: max(1, int(held_out * len(heads)))] for word in groups[heads[i]])
    return bank.without_labels(words), words


def _head(word: str) -> str:
    parts = [part for part in re.split(r"[_\- ]", word.lower()) if part]
    return parts[-1] if parts else word.lower()
