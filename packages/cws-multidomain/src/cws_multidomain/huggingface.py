"""Segmentation in Hugging Face `datasets`: a function for `Dataset.map(batched=True)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import __version__
from ._options import Options, Words

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["datasets_map"]


def datasets_map(
    column: str,
    out: str = "tokens",
    *,
    model: str | os.PathLike[str] = "default",
    domain: str | Mapping[str, float] = "auto",
    words: Words = (),
    granularity: str = "coarse",
    threads: int | None = 1,
) -> Callable[[Mapping[str, Sequence[Any]]], dict[str, list[list[str] | None]]]:
    """A function for `Dataset.map(batched=True)` that adds a column of lists of tokens.

    It can be pickled, each process of `num_proc` loads the segmenter once, and its fingerprint depends on nothing but
    these options, the model's checksum and the version of this package, so that `datasets` finds its cache again.

    Args:
        column: the column of texts; None gives None.
        out: the column of tokens (default "tokens").
        model, domain, words, granularity: as for `Segmenter.load`, `Segmenter.add_words` and `Segmenter.granularity`.
        threads: of each process (default 1, as `num_proc` is there; None is all cores).

    Example:
        >>> datasets_map("text")({"text": ["我们在北京"]})["tokens"]
        [['我们', '在', '北京']]
    """
    options = Options.of(model, domain, words, granularity)
    return _Map(column, out, options, threads, options.checksum(), __version__)


@dataclass(frozen=True)
class _Map:
    column: str
    out: str
    options: Options
    threads: int | None
    checksum: str  # this and the version are there for the fingerprint
    version: str

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[list[str] | None]]:
        if self.column not in batch:
            raise ValueError(f"column must be one of {list(batch)}, got {self.column!r}")
        texts = batch[self.column]
        if isinstance(texts, str):
            raise TypeError(f"column {self.column!r} must be a list of texts, got a str; call map with batched=True")
        tokens = iter(self.options.segmenter().cut_many([t for t in texts if t is not None], threads=self.threads))
        return {self.out: [None if text is None else next(tokens) for text in texts]}
