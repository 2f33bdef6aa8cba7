"""The sentences of a corpus: segmented, or partly annotated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload


@dataclass(frozen=True, slots=True)
class Sentence(Sequence[str]):
    """A segmented sentence: a sequence of words that may carry tags and the spaces between them.

    Args:
        words: the words, in order.
        xpos: the treebank's own part of speech of each word, or None (default).
        upos: the universal part of speech of each word, or None (default).
        spaces: whether white space follows each word in the text, or None (default): not known.

    Raises:
        ValueError: tags or spaces that are not as many as the words.
        TypeError: a word that is not a string.

    Example:
        >>> sentence = Sentence(["我们", "爱", "北京"], xpos=["PN", "VV", "NR"])
        >>> sentence.text, len(sentence), sentence[2]
        ('我们爱北京', 3, '北京')
    """

    words: tuple[str, ...]
    xpos: tuple[str, ...] | None = None
    upos: tuple[str, ...] | None = None
    spaces: tuple[bool, ...] | None = None

    def __init__(
        self,
        words: Iterable[str],
        xpos: Iterable[str] | None = None,
        upos: Iterable[str] | None = None,
        spaces: Iterable[bool] | None = None,
    ) -> None:
        if isinstance(words, str):
            raise TypeError(f"words must be a sequence of words, got the string {words[:20]!r}")
        words = tuple(words)
        if not all(isinstance(word, str) for word in words):
            index = next(i for i, word in enumerate(words) if not isinstance(word, str))
            raise TypeError(f"words must be strings, got {type(words[index]).__name__} at index {index}")
        object.__setattr__(self, "words", words)
        for name, value in (("xpos", xpos), ("upos", upos), ("spaces", spaces)):
            values = None if value is None else tuple(value)
            if values is not None and len(values) != len(words):
                raise ValueError(f"{name} must have one entry for each of the {len(words)} words, got {len(values)}")
            object.__setattr__(self, name, values)

    @property
    def text(self) -> str:
        """The words joined, with a space where `spaces` says so."""
        if self.spaces is None or not any(self.spaces):
            return "".join(self.words)
        return "".join(word + " " * space for word, space in zip(self.words, self.spaces, strict=True)).rstrip(" ")

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self.words[index]

    def __len__(self) -> int:
        return len(self.words)

    def __iter__(self) -> Iterator[str]:
        return iter(self.words)


@dataclass(frozen=True, slots=True)
class Partial:
    """A sentence of which only some boundaries are known.

    Args:
        text: the characters, without white space.
        boundaries: for each gap between two neighbouring characters: True, a word ends there; False, none does; None,
            not known.

    Raises:
        ValueError: a text with white space, or a number of boundaries that is not one less than that of characters.

    Example:
        >>> Partial("ab" "cd", (False, True, None)).known
        2
    """

    text: str
    boundaries: tuple[bool | None, ...]

    def __post_init__(self) -> None:
        if any(map(str.isspace, self.text)):
            raise ValueError(f"text must have no white space, got {self.text[:20]!r}")
        if len(self.boundaries) != max(len(self.text) - 1, 0):
            raise ValueError(
                f"boundaries must be one less than the {len(self.text)} characters, got {len(self.boundaries)}"
            )

    @property
    def known(self) -> int:
        """How many boundaries are known."""
        return sum(boundary is not None for boundary in self.boundaries)
