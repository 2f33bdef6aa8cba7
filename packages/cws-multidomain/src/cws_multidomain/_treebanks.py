"""Universal Dependencies treebanks of Chinese as training sets of the tagger: one set of tags of three conventions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ._formats import read_lines
from ._sentence import Sentence

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

__all__ = ["own_tags_only", "read_gsd", "universal_tags_only"]

# UD v2 by GSD's own tags; those that are two things in v2 are decided by features and relations of v1.
_UPOS = {
    "NN": "NOUN", "NNB": "NOUN", "NNP": "PROPN", "VV": "VERB", "JJ": "ADJ", "IN": "ADP", "CC": "CCONJ", "CD": "NUM",
    "DT": "DET", "PRP": "PRON", "PRD": "PRON", "WP": "PRON", "AS": "AUX", "MD": "AUX", "SFN": "PART", "SFV": "PART",
    "SFA": "PART", "PFA": "PART", "PFN": "PART", "UH": "PART", "FW": "X", "XX": "X", "LS": "X", "ADD": "SYM",
    "VERB": "VERB",
}  # fmt: skip

# What a universal tag of the spoken and of the learners' treebank may be in GSD's convention.
_CHOICES = {"PART": "PART|SCONJ", "ADV": "ADV|SCONJ", "SCONJ": "SCONJ|ADP|ADV", "AUX": "AUX|VERB", "INTJ": "PART|X|ADV"}


def _upos(xpos: str, features: str, relation: str) -> str:
    if xpos == "RB":
        return "SCONJ" if relation == "mark" else "ADV"
    if xpos == "DEC":
        return "SCONJ" if "Case=Rel" in features else "PART"
    if xpos == "DEV":
        return "SCONJ" if "Case=Advb" in features else "PART"
    if xpos == "VC":
        return "AUX" if relation == "cop" else "VERB"
    if xpos == "BB":
        return "AUX" if "Voice=Pass" in features else "ADP"
    return _UPOS.get(xpos, "PUNCT")


def read_gsd(path: str | os.PathLike[str]) -> list[Sentence]:
    """The first export of GSD (CoNLL-X, UD v1) with the universal tags of UD v2; the `.` that ends a sentence is 。.

    On its development set, which UD v2 has too, 99.8 % of the universal tags are the same.

    Raises:
        ValueError: a line with less than eight columns.
    """
    sentences = []
    rows: list[list[str]] = []

    def finish() -> None:
        if rows:
            words = ["。" if (row[1], row[4]) == (".", ".") else row[1] for row in rows]
            upos = [_upos(row[4], row[5], row[7]) for row in rows]
            sentences.append(Sentence(words, [row[4] for row in rows], upos))
            rows.clear()

    for number, line in read_lines(Path(path)):
        if not line.strip():
            finish()
        elif not line.startswith("#"):
            rows.append(line.split("\t"))
            if len(rows[-1]) < 8:
                raise ValueError(f"{path}: line {number} must have eight columns or more, got {len(rows[-1])}")
    finish()
    return sentences


def own_tags_only(sentences: Iterable[Sentence]) -> list[Sentence]:
    """For PUD, whose own tags are GSD's, while its universal ones follow other rules."""
    return [replace(sentence, upos=None) for sentence in sentences]


def universal_tags_only(sentences: Iterable[Sentence]) -> list[Sentence]:
    """For HK and CFL, which have universal tags only: each with what it may be in GSD."""
    found = []
    for sentence in sentences:
        upos = [_CHOICES.get(tag, tag) for tag in sentence.upos or ()]
        found.append(replace(sentence, xpos=None, upos=tuple(upos)))
    return found
