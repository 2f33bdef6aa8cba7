"""Whether words find pictures that they were never shown with, beside baselines and controls on the same vectors."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from .._projection import directions, linear, pairs
from ._baselines import explained, words_to_pictures
from ._controls import controls, hidden_images, parts_of
from ._retrieval import Retrieval, chance, unit

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import Literal

    from numpy.typing import NDArray

    from ..model import ImageSkipGram

__all__ = ["Cone", "Grounding", "grounding"]


@dataclass(frozen=True)
class Cone:
    """Whether vectors fill their space or crowd into a cone.

    Attributes:
        word_image: mean cosine of words that have pictures, held out or not, with all pictures.
        image_image: mean cosine of two pictures.
        effective_rank: exp of the entropy of the pictures' squared singular values, as shares.
    """

    word_image: float
    image_image: float
    effective_rank: float


@dataclass(frozen=True)
class Grounding:
    """What `grounding` measured; printed it is a table.

    Attributes:
        words: held-out words that have pictures and are in the vocabulary.
        images: pictures they choose from, all of the bank.
        model: by the score of `explain`.
        chance: of an order at random.
        ridge, ridge_csls: ridge regression from words to pictures, without and with the setting back of hubs.
        linear: ridge regression from pictures to words, P, with the score of `explain`.
        permuted: the model with labels that were given to pictures at random; None without control.
        permuted_labelled: with labels exchanged among the pictures that have some.
        control: how `permuted` was made: "retrained", or "refitted" (images placed anew, words as they are; so is
            `permuted_labelled` always), or "none".
        rsa_features: rank correlation of the words' cosines with those of their pictures' features.
        rsa_images: with those of their pictures' vectors.
        cone: of the model's vectors.
    """

    words: int
    images: int
    model: Retrieval
    chance: Retrieval
    ridge: Retrieval
    ridge_csls: Retrieval
    linear: Retrieval
    permuted: Retrieval | None
    permuted_labelled: Retrieval | None
    control: Literal["retrained", "refitted", "none"]
    rsa_features: float
    rsa_images: float
    cone: Cone

    def __str__(self) -> str:
        rows = {
            "model": self.model,
            "ridge": self.ridge,
            "ridge + CSLS": self.ridge_csls,
            "P + CSLS": self.linear,
            f"permuted, {self.control}": self.permuted,
            "permuted, labelled": self.permuted_labelled,
            "chance": self.chance,
        }
        head = ("hit@1", "hit@10", "any@1", "any@10", "median", "50-way", "hub", "prec@9")
        lines = [
            f"{self.words} held-out words, {self.images} images",
            f"{'':20}" + "".join(f"{name:>8}" for name in head),
            *(f"{name:20}{_cells(row)}" for name, row in rows.items() if row is not None),
            f"RSA with features {self.rsa_features:.3f}, with image vectors {self.rsa_images:.3f}",
            f"mean cosine word-image {self.cone.word_image:.3f}, image-image {self.cone.image_image:.3f}, "
            f"effective rank {self.cone.effective_rank:.1f}",
        ]
        return "\n".join(lines)


def _cells(row: Retrieval) -> str:
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    rank, hub, precision = values.pop("median_rank"), values.pop("hubness"), values.pop("precision_9")
    *hits, ways = (f"{100 * value:8.1f}" for value in values.values())
    last = "" if precision is None else f"{100 * precision:8.1f}"
    return "".join(hits) + f"{rank:8.1f}{ways}{hub:8.0f}{last}"


def grounding(
    model: ImageSkipGram,
    held_out: Collection[str],
    *,
    control: bool = True,
    classes: Sequence[Any] | None = None,
) -> Grounding:
    """How well words find their pictures whose labels the model was not shown.

    A word's pictures are ranked among all of the bank by the score of `explain`, in float64; ties count against it.
    Baselines have the model's word vectors: ridge regression from words to pictures (unit rows of v^ - mu, 100
    principal components, ridge 10), and from pictures to words (P, ridge 7.5 times the mean eigenvalue). The control
    must be at chance: what it finds comes from the way of measuring.

    Args:
        model: trained with the bank that `split` returns, or `ImageBank.without_labels`.
        held_out: the words that `split` returns; those outside the vocabulary are left out.
        control: also give labels to pictures at random. If images are in the objective and the model still has its
            corpus, a second model is trained with them, else images are only placed anew.
        classes: of each image a kind, such as "animal": how many of a word's best 9 are of the kind of its first.

    Raises:
        ValueError: a held-out word labels pictures of the model's bank; none has pictures there that `without_labels`
            hid; `classes` has another length than the bank.
        RuntimeError: the model has no images.

    Example:
        >>> import numpy as np
        >>> from imgskipgram import ImageBank, ImageSkipGram, evaluate
        >>> text = ["a red apple", "a green pear", "a red cherry", "a green lime"] * 25
        >>> names = ["apple", "pear", "cherry", "lime"] * 5
        >>> colours = {"apple": [9, 1], "pear": [1, 9], "cherry": [8, 1], "lime": [1, 8]}
        >>> features = [np.add(colours[name], i / 20) for i, name in enumerate(names)]
        >>> model = ImageSkipGram(vector_size=8, min_count=1, workers=1, objective="none")
        >>> model.build_vocab(text)
        >>> rest, words = evaluate.split(ImageBank.from_features(features, names), model.wv, held_out=0.25)
        >>> found = evaluate.grounding(model.fit(text, rest), words)
        >>> found.words, found.images, found.control
        (1, 20, 'refitted')
    """
    parts = model._explanation_parts()
    bank, index, vectors = parts_of(model)
    if classes is not None and len(classes) != len(bank):
        raise ValueError(f"classes must have one entry per image of the bank, got {len(classes)} for {len(bank)}")
    asked = {held_out} if isinstance(held_out, str) else set(held_out)
    shown = sorted(asked.intersection(parts["grounded"]))
    if shown:
        raise ValueError(f"held_out must be words whose labels the model was not shown, got {shown[0]!r}; see split")
    own = hidden_images(bank, asked, index)
    if not own:
        raise ValueError("held_out must have a word of the vocabulary whose labels were taken from the bank, got none")
    kinds = None if classes is None else np.unique(np.asarray(classes), return_inverse=True)[1]
    numbers, pictures = np.array(list(own)), list(own.values())
    mu, z = parts["mu"].astype(np.float64), unit(parts["z"])
    pairs_of = bank.images_of(index)
    ridge, ridge_csls = words_to_pictures(bank.features, *pairs_of, vectors, own, kinds)
    permuted, permuted_labelled, how = controls(model, asked, kinds) if control else (None, None, "none")
    queries = unit(unit(vectors[numbers]) - mu)
    first = [mine[0] for mine in pictures]
    return Grounding(
        words=len(own),
        images=len(bank),
        model=explained(vectors, mu, z, own, kinds),
        chance=chance(len(bank), pictures, kinds),
        ridge=ridge,
        ridge_csls=ridge_csls,
        linear=explained(vectors, *linear(bank.features, *pairs_of, vectors), own, kinds),
        permuted=permuted,
        permuted_labelled=permuted_labelled,
        control=how,
        rsa_features=_rsa(queries, directions(bank.features)[first]),
        rsa_images=_rsa(queries, z[first]),
        cone=_cone(unit(vectors[[*np.unique(pairs(*pairs_of)[0]), *numbers]]), z),
    )


def _rsa(words: NDArray[Any], pictures: NDArray[Any]) -> float:
    """Rank correlation of the cosines of all pairs; NaN of fewer than three words."""
    from scipy.stats import spearmanr

    if len(words) < 3:
        return float("nan")
    above = np.triu_indices(len(words), 1)
    pictures = unit(pictures)
    return float(spearmanr((words @ words.T)[above], (pictures @ pictures.T)[above]).statistic)


def _cone(words: NDArray[np.float64], z: NDArray[np.float64]) -> Cone:
    total = z.sum(0)
    others = (total @ total - np.sum(z * z)) / (len(z) * max(len(z) - 1, 1))
    shares = np.linalg.eigvalsh(z.T @ z).clip(0)
    shares = shares[shares > 0] / shares.sum()
    return Cone(float(np.mean(words @ total) / len(z)), float(others), float(np.exp(-np.sum(shares * np.log(shares)))))
