"""The segmenter: loading a model, cutting texts, user words, probabilities, explanations; no training."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from . import _core, _modelfile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._weights import Weights
    from .corpus import Corpus
    from .tagger import Tagger

__all__ = ["Explanation", "Offsets", "Segmenter", "Token", "read_words"]

Domain: TypeAlias = "str | Mapping[str, float]"
Cost: TypeAlias = "float | Literal['force', 'forbid']"
Words: TypeAlias = "Mapping[str, Cost] | str | os.PathLike[str] | Iterable[str]"

DEFAULT_COST = -4.0  # nats, of words that come without one
RULES = ("grapheme", "latin", "number", "url", "email")
GRANULARITIES = ("coarse", "fine", "search")
UNITS = ("char", "byte", "utf16")
_MODELS = Path(__file__).parent / "model"
_TAGS = "BMES"


class Token(NamedTuple):
    """A token and where it lies in the text, in characters; `pos` is None for a model without tagger."""

    text: str
    start: int
    end: int
    pos: str | None


class Explanation(NamedTuple):
    """Why a character has its tag.

    Attributes:
        character: the character.
        position: of it in the text.
        tag: "B", "M", "E" or "S".
        margin: nats by which the best path beats the best one with another tag here; infinite where a rule decides.
        fired: (feature, domain, weight in nats); the sum over all characters is the score of the path.
    """

    character: str
    position: int
    tag: str
    margin: float
    fired: list[tuple[str, str, float]]


@dataclass(frozen=True)
class Offsets:
    """Where the tokens of several texts begin and end; an Arrow array of lists of (start, end) as well.

    Attributes:
        starts: int32[tokens], from the beginning of the token's text.
        ends: int32[tokens].
        row_splits: int64[texts + 1]; the tokens of text r are those from row_splits[r] to row_splits[r + 1].

    Example:
        >>> offsets = Segmenter.load().offsets(["你好世界", "再见"])
        >>> offsets[0]
        [(0, 2), (2, 4)]
    """

    starts: NDArray[np.int32]
    ends: NDArray[np.int32]
    row_splits: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row_splits) - 1

    def __getitem__(self, row: int) -> list[tuple[int, int]]:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row must be from {-len(self)} to {len(self) - 1}, got {row}")
        row %= len(self)
        part = slice(self.row_splits[row], self.row_splits[row + 1])
        return list(zip(self.starts[part].tolist(), self.ends[part].tolist(), strict=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Offsets):
            return NotImplemented
        return all(
            np.array_equal(a, b)
            for a, b in (
                (self.starts, other.starts),
                (self.ends, other.ends),
                (self.row_splits, other.row_splits),
            )
        )

    __hash__ = None  # type: ignore[assignment]

    def __arrow_c_schema__(self) -> Any:
        """large_list<struct<start: int32, end: int32>>."""
        return _core.spans_schema()

    def __arrow_c_array__(self, requested_schema: Any = None) -> tuple[Any, Any]:
        """The arrays themselves, without a copy; a requested schema is for the consumer to cast to."""
        return _core.export_spans(self.starts, self.ends, self.row_splits, self)


class Segmenter:
    """Cuts Chinese text into words, by the best path through

    .. math::
        s(x, y) = \\sum_i \\sum_{f \\in F(x, i)} w_{f, y_i} + \\sum_{i > 0} A_{y_{i-1}, y_i}, \\qquad
        w = w_{shared} + \\sum_k \\pi_k w_k

    over the tags B M E S. Whitespace ends a sentence and is in no token. Segmenters come from :meth:`load` or from
    training. Threads may share one; processes may be forked; it can be pickled. Only `granularity`, `rules` and the
    user's words can be changed, and calls that run do not see the change.

    Example:
        >>> Segmenter.load().cut("我们在北京学习。")
        ['我们', '在', '北京', '学习', '。']
    """

    def __init__(self, model: _core.Model, domain: Domain = "auto") -> None:
        self._model = model
        self._metadata: dict[str, Any] = json.loads(model.sections["metadata"].tobytes())
        self._domains = tuple(self._metadata["domains"])
        self._domain = _checked_domain(domain, self.domains)
        self._core = _core.Segmentation(model, self._domain == "auto", _mixture(self._domain, self._domains))
        self._tagger: Tagger | None = None

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str] = "default", domain: Domain = "auto") -> Segmenter:
        """Map a model file, in a few milliseconds.

        Args:
            name_or_path: "default" (default) is the model inside the package; anything else is a path.
            domain: "auto" (default): for each line, what the gate says of its first 4,096 characters, or "general" if
                the gate is in doubt; the name of a domain; or weights of domains, which are scaled to the sum 1.

        Raises:
            FileNotFoundError: no such model; nothing is ever downloaded.
            ValueError: the file is no sound model, or the domain is unknown.
        """
        searched = []
        for path in _candidates(name_or_path):
            if path.is_file():
                return cls(_modelfile.read(path), domain)
            searched.append(str(path))
        raise FileNotFoundError(f"there is no model {os.fspath(name_or_path)!r}; searched: {', '.join(searched)}")

    @classmethod
    def from_bytes(cls, data: bytes, domain: Domain = "auto") -> Segmenter:
        """A segmenter from the content of a model file."""
        name = "a model in memory"
        return cls(_modelfile.checked(_core.Model.copy(data, name), name), domain)

    @classmethod
    def from_weights(
        cls, weights: Weights, domain: Domain = "auto", sections: Mapping[str, bytes] | None = None
    ) -> Segmenter:
        """A segmenter from trained weights, which are rounded to int8; `sections` go into its file."""
        return cls.from_bytes(_modelfile.pack(weights, sections), domain)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model file (not the user's words): aside first, then renamed."""
        _modelfile.write(path, self._model.data.tobytes())

    def with_domain(self, domain: Domain) -> Segmenter:
        """The same model, words and settings with another domain."""
        return self._like(type(self)(self._model, domain))

    def with_model(self, other: Segmenter) -> Segmenter:
        """The model of another segmenter with the words, settings and, if it has it, the domain of this one."""
        try:
            made = type(self)(other._model, self._domain)
        except ValueError:
            made = type(self)(other._model)
        return self._like(made)

    def _like(self, made: Segmenter) -> Segmenter:
        made._core.rules, made._core.granularity = self._core.rules, self._core.granularity
        made._core.share_words(self._core)
        return made

    def weights(self) -> Weights:
        """The weights as NumPy arrays, as the int8 tables have them."""
        return _modelfile.unpack(self._model)

    def dictionary(self, lexicon: int = 0) -> dict[str, int]:
        """The words of the model's dictionary with their counts."""
        if not 0 <= lexicon < self._model.n_lexicons:
            raise ValueError(f"lexicon must be below {self._model.n_lexicons}, the number of them, got {lexicon}")
        return _modelfile.dictionary(self._model, lexicon)

    @property
    def info(self) -> dict[str, Any]:
        """Sizes, domains, provenance: what the model file says of itself."""
        sections = {name: len(data) for name, data in self._model.sections.items()}
        sizes = {"bytes": len(self._model.data), "symbols": self._model.n_symbols, "sections": sections}
        return {**self._metadata, "domains": list(self.domains), "gate": self._model.gated, "sizes": sizes}

    @property
    def domains(self) -> tuple[str, ...]:
        """Names that `domain` may have, "general" first."""
        return ("general", *self._domains)

    @property
    def domain(self) -> Domain:
        """ "auto", a name, or weights."""
        return self._domain if isinstance(self._domain, str) else dict(self._domain)

    @property
    def rules(self) -> frozenset[str]:
        """Which rules settle boundaries before decoding; all of them by default.

        "grapheme": none inside an extended grapheme cluster; "latin", "number" (with . and , inside): none inside such
        a run; "url", "email": an address is one token.
        """
        return frozenset(name for k, name in enumerate(RULES) if self._core.rules >> k & 1)

    @rules.setter
    def rules(self, names: Iterable[str]) -> None:
        if isinstance(names, str):
            raise TypeError(f"rules must be a set of names, got the str {names!r}")
        chosen = set(names)
        for name in chosen:
            if name not in RULES:
                raise ValueError(f"rules must be among {', '.join(RULES)}, got {name!r}")
        self._core.rules = sum(1 << k for k, name in enumerate(RULES) if name in chosen)

    @property
    def granularity(self) -> str:
        """What a token is.

        "coarse" (default): one of the best path. "fine": those of 4 characters and more as dictionary words and at most
        one single character, if that can be. "search": the dictionary's words of 2 and 3 characters in a token, then
        the token, as in jieba; tokens overlap.
        """
        return GRANULARITIES[self._core.granularity]

    @granularity.setter
    def granularity(self, name: str) -> None:
        self._core.granularity = _index("granularity", name, GRANULARITIES)

    @property
    def tagger(self) -> Tagger | None:
        """The model's tagger, for universal tags or for many sentences at once; None if it has none."""
        if self._tagger is None and "pos.tags" in self._model.sections:
            from .tagger import Tagger

            self._tagger = Tagger(self._model.sections)
        return self._tagger

    # ---- words of the user

    def add_words(self, words: Words) -> None:
        """Tell the decoder about words, all of them or, on error, none.

        A cost in nats is subtracted from each path in which the word is a token; a negative one favours it. "force"
        makes leftmost-longest occurrences tokens, unless a rule has a say in it; "forbid" rules them out. The last call
        wins; a cost of 0 forgets a word. Full-width forms match ASCII.

        Args:
            words: {word: cost}; or the path of a UTF-8 file with one word per line, which a tab or jieba's "count tag"
                may follow; or an iterable of words. Without a cost it is -4 (a reward that turns most decisions).

        Raises:
            ValueError: a word is empty or has whitespace, a cost is not finite, or a single character is forbidden.
            TypeError: a word is not a str, or a cost neither a number nor "force" nor "forbid".

        Example:
            >>> segmenter = Segmenter.load()
            >>> segmenter.add_words({"云计算平台": "force"})
            >>> segmenter.cut("我们的云计算平台")
            ['我们', '的', '云计算平台']
        """
        if isinstance(words, str | os.PathLike):
            words = dict.fromkeys(read_words(words), DEFAULT_COST)
        elif not isinstance(words, Mapping):
            words = dict.fromkeys(words, DEFAULT_COST)
        names = list(words)
        costs = np.empty(len(names), np.float32)
        for i, (word, cost) in enumerate(words.items()):
            if type(cost) is not float or not math.isfinite(cost):
                cost = _cost(word, cost)
            if not isinstance(word, str):
                raise TypeError(f"words must be str, got {word!r} of type {type(word).__name__}")
            if word.split() != [word]:
                raise ValueError(f"a word must have a character and no whitespace, got {word!r}")
            costs[i] = cost
        self._core.add_words(names, costs)

    @property
    def words(self) -> dict[str, Cost]:
        """The user's words with their costs."""
        names: dict[float, Cost] = {math.inf: "forbid", -math.inf: "force"}
        return {word: names.get(cost, cost) for word, cost in self._core.words()}

    # ---- tokens

    def cut(self, text: str) -> list[str]:
        """The tokens of a text.

        Example:
            >>> Segmenter.load().cut("他 说：好")
            ['他', '说', '：', '好']
        """
        return self._core.cut(_text(text))

    def tokenize(self, text: str) -> list[Token]:
        """The tokens of a text with their offsets in characters, and their parts of speech if the model has a tagger.

        Example:
            >>> [token.start for token in Segmenter.load().tokenize("他 说：好")]
            [0, 2, 3, 4]
        """
        starts, ends = self._core.spans(_text(text))
        spans = list(zip(starts.tolist(), ends.tolist(), strict=True))
        tokens = [text[start:end] for start, end in spans]
        tags = self._tags(text, spans, tokens)
        return [Token(token, *span, tag) for token, span, tag in zip(tokens, spans, tags, strict=True)]

    def _tags(self, text: str, spans: list[tuple[int, int]], tokens: list[str]) -> Sequence[str | None]:
        tagger = self.tagger
        if tagger is None:
            return [None] * len(tokens)
        tags: list[str] = []
        begin = 0
        for i in range(1, len(tokens) + 1):
            if i == len(tokens) or "\n" in text[spans[i - 1][1] : spans[i][0]]:
                tags += tagger.tag(tokens[begin:i])
                begin = i
        return tags

    def cut_many(self, texts: Iterable[str], threads: int | None = None) -> list[list[str]]:
        """The tokens of texts, in their order.

        Args:
            texts: an iterable of str.
            threads: how many work; None (default) is one per processor. The result does not depend on it.

        Example:
            >>> Segmenter.load().cut_many(["你好世界", ""])
            [['你好', '世界'], []]
        """
        return self._core.cut_many(_texts(texts), _threads(threads))

    def offsets(self, texts: Any, unit: str = "char", threads: int | None = None) -> Offsets:
        """Where the tokens of texts begin and end.

        Args:
            texts: an iterable of str, or an Arrow array or stream of string or large_string, which is read in place; a
                null has no tokens.
            unit: "char" (default), "byte" of UTF-8, or "utf16" code units.
            threads: how many work; None (default) is one per processor.

        Raises:
            ValueError: a lone surrogate where the unit is "byte", invalid UTF-8, or more than 2**31 - 1 units.

        Example:
            >>> Segmenter.load().offsets(["你好世界"], unit="byte").ends.tolist()
            [6, 12]
        """
        code, workers = _index("unit", unit, UNITS), _threads(threads)
        if hasattr(texts, "__arrow_c_stream__"):
            arrays = self._core.offsets_of_arrow_stream(texts.__arrow_c_stream__(), code, workers)
        elif hasattr(texts, "__arrow_c_array__"):
            schema, array = texts.__arrow_c_array__()
            arrays = self._core.offsets_of_arrow_array(schema, array, code, workers)
        else:
            arrays = self._core.offsets(_texts(texts), code, workers)
        return Offsets(*arrays)

    def offsets_utf8(self, buffer: Any, unit: str = "byte", threads: int | None = None) -> Offsets:
        r"""Where the tokens of the lines of UTF-8 text begin and end, counted from the beginning of their line.

        Args:
            buffer: bytes, or anything with the buffer protocol, such as a mapped file. A line ends with "\n".
            unit: "byte" (default), "char" or "utf16".
            threads: how many work; None (default) is one per processor.

        Raises:
            ValueError: the text is not UTF-8, or a line has more than 2**31 - 1 units.

        Example:
            >>> len(Segmenter.load().offsets_utf8("你好\n世界\n".encode()))
            2
        """
        code, workers = _index("unit", unit, UNITS), _threads(threads)
        if isinstance(buffer, str):
            raise TypeError("buffer must be bytes or have the buffer protocol, got str; use offsets for str")
        view = memoryview(buffer)
        data = np.frombuffer(view.cast("B") if view.nbytes else b"", np.uint8)
        return Offsets(*self._core.offsets_of_lines(data, code, workers))

    # ---- what stands behind the tokens

    def gate(self, text: str) -> dict[str, float]:
        """The probability of each domain for a line of text; empty for a model without a gate."""
        return dict(zip(self._domains, self._core.gate(_text(text)), strict=False))

    def nbest(self, text: str, n: int) -> list[tuple[list[str], float]]:
        """The n best segmentations with their log-probabilities, best first; fewer if there are not as many.

        Example:
            >>> len(Segmenter.load().nbest("北京大学生", 3))
            3
        """
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise ValueError(f"n must be a positive integer, got {n!r}")
        return self._core.nbest(_text(text), n)

    def probabilities(self, text: str, temperature: float | None = None) -> NDArray[np.float32]:
        """P(a token starts here) for each character: float32[len(text)], 0 for whitespace.

        Args:
            text: the text.
            temperature: scores are divided by it; None (default) is the model's own, fitted on held-out sentences.
        """
        own = self._model.temperature if temperature is None else temperature
        if not own > 0 or not math.isfinite(own):
            raise ValueError(f"temperature must be positive, got {temperature}")
        return self._core.probabilities(_text(text), own)

    def explain(self, text: str) -> list[Explanation]:
        """Which weights speak for the tag of each character, and by how much the tag wins.

        Example:
            >>> [x.tag for x in Segmenter.load().explain("北京")]
            ['B', 'E']
        """
        _text(text)
        scale = self._model.scale
        return [
            Explanation(
                text[position],
                position,
                _TAGS[tag],
                margin,
                [
                    *_named(text, position, features, self._added(domain), scale),
                    *([("word", "user", -cost)] if cost else []),
                ],
            )
            for position, tag, margin, cost, domain, features in self._core.explain(text)
        ]

    def _added(self, domain: int) -> str:
        """What to call the weights that are added to the shared ones."""
        if domain:
            return str(self._domains[domain - 1])
        return self._domain if isinstance(self._domain, str) else "+".join(k for k, v in self._domain.items() if v)

    def fine_tune(self, corpus: Corpus, domain: str | None = None, epochs: int = 5, **options: Any) -> Segmenter:
        """A new segmenter that has also learnt from a corpus; see :func:`cws_multidomain.fine_tune`."""
        from .training import fine_tune

        return fine_tune(self, corpus, domain, epochs, **options)

    def __repr__(self) -> str:
        return (
            f"<Segmenter of {len(self._model.data):,} bytes, domains {', '.join(self.domains)}, domain {self.domain!r}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        state = (self._model.data.tobytes(), self._domain, self._core.rules, self._core.granularity, self.words)
        return _restored, state


def read_words(path: str | os.PathLike[str]) -> dict[str, int]:
    """The words of a file and their counts, 0 where there are none.

    A line is a word, or a word, a tab and a count (THUOCL), or jieba's "word count tag"; empty lines are left out.

    Raises:
        ValueError: a line is not UTF-8 or its word has whitespace; the message has file and line.
    """
    words: dict[str, int] = {}
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise ValueError(f"{os.fspath(path)}, line {number}: byte {error.start} is not UTF-8") from None
            if not line:
                continue
            found = re.fullmatch(r"(\S+)(?:\s+(\d+)(?:\s+\S+)?|\s+[A-Za-z]+)?", line)
            if found is None:
                raise ValueError(f"{os.fspath(path)}, line {number}: a line must be 'word [count] [tag]', got {line!r}")
            words[found[1]] = int(found[2] or 0)
    return words


def _restored(data: bytes, domain: Domain, rules: int, granularity: int, words: Mapping[str, Cost]) -> Segmenter:
    made = Segmenter.from_bytes(data, domain)
    made._core.rules, made._core.granularity = rules, granularity
    if words:
        made.add_words(words)
    return made


def _candidates(name_or_path: str | os.PathLike[str]) -> list[Path]:
    if isinstance(name_or_path, str) and re.fullmatch(r"[A-Za-z0-9_-]+", name_or_path):
        return [_MODELS / f"{name_or_path}.cws", Path(name_or_path)]
    if not isinstance(name_or_path, str | os.PathLike):
        raise TypeError(f"name_or_path must be a str or a path, got {type(name_or_path).__name__}")
    return [Path(name_or_path)]


def _checked_domain(domain: object, names: Sequence[str]) -> Domain:
    allowed = f"auto, {', '.join(names)} or weights of them"
    if isinstance(domain, str):
        if domain != "auto" and domain not in names:
            raise ValueError(f"domain must be {allowed}, got {domain!r}")
        return domain
    if not isinstance(domain, Mapping):
        raise TypeError(f"domain must be {allowed}, got {type(domain).__name__}")
    mixture: dict[str, float] = {}
    for name, weight in domain.items():
        if name not in names:
            raise ValueError(f"domain must have weights of {', '.join(names)}, got one of {name!r}")
        if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ValueError(f"domain must have weights of 0 and more, got {weight!r} for {name!r}")
        mixture[name] = float(weight)
    if not sum(mixture.values()) > 0:
        raise ValueError(f"domain must have weights with a positive sum, got {sum(mixture.values())}")
    return mixture


def _mixture(domain: Domain, names: Sequence[str]) -> list[float]:
    if isinstance(domain, str):
        return [float(name == domain) for name in names]
    total = sum(domain.values())
    return [domain.get(name, 0.0) / total for name in names]


def _cost(word: object, cost: object) -> float:
    if cost == "force":
        return -math.inf
    if cost == "forbid":
        if isinstance(word, str) and len(word) == 1:
            raise ValueError(f"a single character cannot be forbidden, got {word!r}")
        return math.inf
    if isinstance(cost, str) or not isinstance(cost, int | float | np.floating | np.integer):
        raise TypeError(f"a cost must be a number, 'force' or 'forbid', got {cost!r} for {word!r}")
    if not math.isfinite(cost):
        raise ValueError(f"a cost must be finite, got {cost} for {word!r}")
    return float(cost)


def _named(
    text: str, position: int, features: list[tuple[int, int, int, int, int]], added_by: str, scale: float
) -> Iterable[tuple[str, str, float]]:
    """Features in words, for what is shared and for what the domain adds."""

    def at(d: int) -> str:
        place = position + d
        return text[place] if 0 <= place < len(text) and not text[place].isspace() else "|"

    for feature, which, key, shared, added in features:
        if feature == 0:
            name = f"c[{which:+d}]={at(which)}"
        elif feature == 1:
            name = f"c[{which:+d}]c[{which + 1:+d}]={at(which)}{at(which + 1)}"
        elif feature == 2:
            name = f"c[-1]c[+1]={at(-1)}{at(1)}"
        elif feature in (3, 4):
            m, b_after = divmod(key, 5)
            e_before, m = divmod(m, 125)
            state = f"begin={m // 25},end={m // 5 % 5},inside={m % 5}"
            dictionary = f"dictionary{which or ''}"
            if feature == 3:
                name = f"{dictionary}[end before={e_before},{state},begin after={b_after}]"
            else:
                name = f"{dictionary}[{state}]c={at(0)}"
        else:
            name = f"{_TAGS[which]}->"
        if shared:
            yield name, "shared", shared / scale
        if added:
            yield name, added_by, added / scale


def _index(argument: str, value: str, allowed: Sequence[str]) -> int:
    if value not in allowed:
        raise ValueError(f"{argument} must be {', '.join(allowed[:-1])} or {allowed[-1]}, got {value!r}")
    return list(allowed).index(value)


def _threads(threads: int | None) -> int:
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise ValueError(f"threads must be a positive integer, got {threads!r}")
    return threads


def _text(text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, got {type(text).__name__}")
    return text


def _texts(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise TypeError(f"texts must be an iterable of str, got {type(texts).__name__}")
    out = list(texts)
    for i, text in enumerate(out):
        if not isinstance(text, str):
            raise TypeError(f"texts must be str, got {type(text).__name__} at index {i}")
    return out
