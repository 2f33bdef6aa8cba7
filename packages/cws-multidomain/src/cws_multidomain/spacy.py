"""A tokenizer for spaCy, `@tokenizers = "cws.Tokenizer.v1"`. Needs `cws-multidomain[spacy]`."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import srsly
    from spacy.tokens import Doc
    from spacy.util import registry
except ImportError as error:
    raise ImportError('cws_multidomain.spacy needs spaCy: pip install "cws-multidomain[spacy]"') from error

from .segmenter import Segmenter

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator

    from spacy.language import Language
    from spacy.vocab import Vocab

__all__ = ["Tokenizer", "create_tokenizer"]


@registry.tokenizers("cws.Tokenizer.v1")  # type: ignore[untyped-decorator]
def create_tokenizer(
    model: str = "default",
    domain: str | dict[str, float] = "auto",
    words: str | dict[str, float | str] | list[str] | None = None,
    granularity: str = "coarse",
    tag: bool = False,
) -> Callable[[Language], Tokenizer]:
    """The tokenizer of a pipeline's configuration.

    Args:
        model, domain: as for `Segmenter.load`.
        words: as for `Segmenter.add_words`.
        granularity: "coarse" (default) or "fine".
        tag: fill `token.tag_`; the model must have a tagger.

    Example:
        >>> import spacy
        >>> nlp = spacy.blank("zh", config={"nlp": {"tokenizer": {"@tokenizers": "cws.Tokenizer.v1"}}})
    """

    def create(nlp: Language) -> Tokenizer:
        segmenter = Segmenter.load(model, domain)
        segmenter.granularity = granularity
        if words:
            segmenter.add_words(words)
        return Tokenizer(nlp.vocab, segmenter, tag=tag)

    return create


class Tokenizer:
    """Makes docs whose text is the text, whitespace and all, as spaCy's own tokenizer does.

    Args:
        vocab: the pipeline's.
        segmenter: of granularity "coarse" or "fine": the tokens of "search" overlap.
        tag: fill `token.tag_` (default False).
    """

    def __init__(self, vocab: Vocab, segmenter: Segmenter, *, tag: bool = False) -> None:
        _check(segmenter, tag)
        self.vocab, self.segmenter, self.tag = vocab, segmenter, tag

    def __call__(self, text: str) -> Doc:
        if not self.tag:
            return self._doc(text, self.segmenter.cut(text))
        tokens = self.segmenter.tokenize(text)
        return self._doc(text, [token.text for token in tokens], [token.pos or "" for token in tokens])

    def pipe(self, texts: Iterable[str], batch_size: int = 1000) -> Iterator[Doc]:
        """The docs of texts, which all cores cut in batches."""
        if self.tag:
            yield from map(self, texts)
            return
        rest = iter(texts)
        while batch := list(islice(rest, batch_size)):
            yield from map(self._doc, batch, self.segmenter.cut_many(batch))

    def _doc(self, text: str, tokens: list[str], tags: list[str] | None = None) -> Doc:
        """A space after a token belongs to it; other whitespace is a token."""
        if sum(map(len, tokens)) == len(text):
            return Doc(self.vocab, words=tokens, spaces=[False] * len(tokens), tags=tags)
        words: list[str] = []
        spaces: list[bool] = []
        found: list[str] = []
        at = 0
        for token, tag in zip([*tokens, ""], [*(tags or [""] * len(tokens)), ""], strict=True):
            start = at
            while at < len(text) and text[at].isspace():
                at += 1
            gap = text[start:at]
            if gap.startswith(" ") and words:
                spaces[-1] = True
                gap = gap[1:]
            if gap:
                words.append(gap)
                spaces.append(False)
                found.append("_SP")
            if token:
                words.append(token)
                spaces.append(False)
                found.append(tag)
            at += len(token)
        return Doc(self.vocab, words=words, spaces=spaces, tags=found if tags else None)

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        """The model, the user words and the options."""
        content = {"model": self.segmenter._model.data.tobytes(), "options": self._options()}
        data: bytes = srsly.msgpack_dumps(content)
        return data

    def from_bytes(self, data: bytes, *, exclude: Iterable[str] = ()) -> Tokenizer:
        """Become the tokenizer that `to_bytes` wrote."""
        content = srsly.msgpack_loads(data)
        return self._restore(Segmenter.from_bytes(content["model"], content["options"]["domain"]), content["options"])

    def to_disk(self, path: str | os.PathLike[str], *, exclude: Iterable[str] = ()) -> None:
        """Write a folder with the model, and the user words and options as JSON."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        self.segmenter.save(folder / "model.cws")
        srsly.write_json(folder / "options.json", self._options())

    def from_disk(self, path: str | os.PathLike[str], *, exclude: Iterable[str] = ()) -> Tokenizer:
        """Become the tokenizer that `to_disk` wrote."""
        options = srsly.read_json(Path(path) / "options.json")
        return self._restore(Segmenter.load(Path(path) / "model.cws", options["domain"]), options)

    def _options(self) -> dict[str, Any]:
        segmenter = self.segmenter
        return {
            "domain": segmenter.domain,
            "granularity": segmenter.granularity,
            "rules": sorted(segmenter.rules),
            "words": segmenter.words,
            "tag": self.tag,
        }

    def _restore(self, segmenter: Segmenter, options: dict[str, Any]) -> Tokenizer:
        segmenter.granularity = options["granularity"]
        segmenter.rules = options["rules"]
        if options["words"]:
            segmenter.add_words(options["words"])
        _check(segmenter, options["tag"])
        self.segmenter, self.tag = segmenter, options["tag"]
        return self


def _check(segmenter: Segmenter, tag: bool) -> None:
    if segmenter.granularity == "search":
        raise ValueError("granularity must be 'coarse' or 'fine', got 'search', whose tokens overlap")
    if tag and any(token.pos is None for token in segmenter.tokenize("字")):
        raise ValueError("tag must be False for a model without a tagger, got True")
