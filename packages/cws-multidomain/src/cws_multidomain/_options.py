"""A segmenter by its options: small to send to other processes, each of which loads it once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .segmenter import Segmenter

__all__ = ["Options", "Words"]

Words = str | os.PathLike[str] | Mapping[str, float | str] | Iterable[str]


@dataclass(frozen=True)
class Options:
    """What `Segmenter.load`, `granularity` and `add_words` take, in a form that has a hash."""

    model: str
    domain: str | tuple[tuple[str, float], ...]
    words: str | tuple[tuple[str, float | str], ...] | tuple[str, ...]
    granularity: str

    @classmethod
    def of(
        cls,
        model: str | os.PathLike[str] = "default",
        domain: str | Mapping[str, float] = "auto",
        words: Words = (),
        granularity: str = "coarse",
    ) -> Options:
        """These options, checked by loading the segmenter."""
        options = cls(
            model=os.fspath(model),
            domain=tuple(sorted(domain.items())) if isinstance(domain, Mapping) else domain,
            words=_frozen(words),
            granularity=granularity,
        )
        options.segmenter()
        return options

    def segmenter(self) -> Segmenter:
        """The segmenter, which is loaded in each process when it is first asked for."""
        return _loaded(self)

    def checksum(self) -> str:
        """Of the model's file, as it says itself."""
        return self.segmenter()._model.data[24:28].tobytes().hex()


def _frozen(words: Words) -> Any:
    if isinstance(words, str | os.PathLike):
        return os.fspath(words)
    return tuple(words.items()) if isinstance(words, Mapping) else tuple(words)


@lru_cache(maxsize=8)
def _loaded(options: Options) -> Segmenter:
    from .segmenter import Segmenter

    domain = options.domain
    segmenter = Segmenter.load(options.model, domain if isinstance(domain, str) else dict(domain))
    segmenter.granularity = options.granularity
    if options.words:
        words: Any = options.words
        segmenter.add_words(dict(words) if isinstance(words, tuple) and isinstance(words[0], tuple) else words)
    return segmenter
