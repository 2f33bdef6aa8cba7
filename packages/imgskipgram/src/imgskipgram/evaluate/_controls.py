"""What a model finds when labels say nothing of pictures: what is above chance then comes from the way of measuring."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .._projection import Shared
from ._baselines import explained

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Literal

    from numpy.typing import NDArray

    from ..bank import ImageBank
    from ..model import ImageSkipGram
    from ._retrieval import Retrieval

__all__ = ["controls", "hidden_images", "parts_of"]


def parts_of(model: ImageSkipGram) -> tuple[ImageBank, Mapping[str, int], NDArray[np.float32]]:
    """The bank, the numbers of words and their vectors.

    Raises:
        RuntimeError: the model has no images.
    """
    bank = model.bank
    if bank is None:
        raise RuntimeError("there are no images to find: give a bank to fit or train")
    return bank, model.wv.key_to_index, model.wv.vectors


def hidden_images(bank: ImageBank, words: Collection[str], index: Mapping[str, int]) -> dict[int, NDArray[np.int64]]:
    """Of each of these words that is in the vocabulary, by its number, the pictures whose label of it was hidden."""
    found: dict[int, list[int]] = {}
    for row, labels in enumerate(bank.hidden):
        for word in labels:
            if word in words and word in index:
                found.setdefault(index[word], []).append(row)
    return {word: np.array(rows) for word, rows in sorted(found.items())}


def controls(
    model: ImageSkipGram, held_out: Collection[str], kinds: NDArray[Any] | None
) -> tuple[Retrieval | None, Retrieval | None, Literal["retrained", "refitted", "none"]]:
    """Labels given to all pictures at random, or exchanged among those that have any, hidden ones as well."""
    bank, index, vectors = parts_of(model)
    draw = np.random.default_rng(model._options.seed)
    everywhere = _permuted(bank, draw.permutation(len(bank)))
    labelled = np.flatnonzero([bool(shown or hidden) for shown, hidden in zip(bank.words, bank.hidden, strict=True)])
    order = np.arange(len(bank))
    order[labelled] = draw.permutation(labelled)
    among = _permuted(bank, order)

    def refitted(bank: ImageBank) -> Retrieval | None:
        if model._options.projection != "shared":
            return None  # words have no say in where images lie
        placed = Shared(bank.features, *bank.images_of(index)).fit(vectors)
        return explained(vectors, *placed, hidden_images(bank, held_out, index), kinds)

    retrained = _retrained(model, everywhere)
    if retrained is not None:
        parts = retrained._explanation_parts()
        own = hidden_images(everywhere, held_out, index)
        return explained(parts["vectors"], parts["mu"], parts["z"], own, kinds), refitted(among), "retrained"
    found = refitted(everywhere)
    return found, refitted(among), "none" if found is None else "refitted"


def _permuted(bank: ImageBank, order: NDArray[np.int64]) -> ImageBank:
    """Image i has the labels, shown and hidden, of image `order[i]`."""
    both = bank.without_labels(())
    both.words = tuple(bank.words[i] for i in order)
    both.hidden = tuple(bank.hidden[i] for i in order)
    return both


def _retrained(model: ImageSkipGram, bank: ImageBank) -> ImageSkipGram | None:
    """A model of the same corpus and options, from the beginning; None without corpus or images in the objective."""
    from .._state import begun
    from .._training import Plan

    tokens, options, vocabulary = model._tokens, model._options, model._known()
    if tokens is None or options.objective == "none" or options.image_weight == 0:
        return None
    other = type(model)(**{**options.arguments(), "callbacks": ()})
    vars(other).update(begun(other._options, vocabulary))
    plan = Plan(model._epochs, len(tokens.ids), options.alpha, options.min_alpha)
    grounding = other._ground(bank, vocabulary)
    other._run(dict(vars(other)), tokens, partial(iter, (tokens,)), grounding, plan, "none", False)
    return other
