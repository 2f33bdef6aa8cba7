"""jieba's interface: `from cws_multidomain.compat import jieba`. Keyword extraction and `posseg` are left out.

`HMM=True`, the default, is our model. `HMM=False` and `cut_all=True` give what jieba 0.42.1 gives: the most probable
sequence of dictionary words, or all of them.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._core import JiebaDictionary, keep_whitespace
from .._modelfile import dictionary_arrays

if TYPE_CHECKING:
    from ..segmenter import Segmenter

__all__ = [
    "Tokenizer",
    "add_word",
    "cut",
    "cut_for_search",
    "del_word",
    "disable_parallel",
    "dt",
    "enable_parallel",
    "get_FREQ",
    "initialize",
    "lcut",
    "lcut_for_search",
    "load_userdict",
    "setLogLevel",
    "set_dictionary",
    "suggest_freq",
    "tokenize",
    "user_word_tag_tab",
]

Source = str | os.PathLike[str] | Mapping[str, int] | Iterable[tuple[str, int]]

_USER_LINE = re.compile(r"(.+?)(?: ([0-9]+))?(?: ([a-z]+))?")  # word, count, part of speech
_LARGEST = 2**63 - 1
_JIEBA_TOTAL = 60_101_964  # of the words in jieba's file, which has B超 twice, and jieba counts both
_FORBIDDEN = -math.inf
_DOUBT = 1 / 32  # nats by which a reward may exceed the least
_STRONGEST = 1024.0  # nats; a word that this does not bring about is forced


class Tokenizer:
    """Cuts with one dictionary and one model, and has user words of its own.

    Args:
        dictionary: where the words and counts come from that `HMM=False`, `cut_all` and searching use: a file of
            jieba's format (`word count [tag]` a line), a mapping or pairs of words and counts. Default: those of the
            model, which are jieba's `dict.txt`.
        model: name or path for `Segmenter.load`, which `HMM=True` uses.

    Example:
        >>> Tokenizer({"北京": 30, "大学": 20, "北京大学": 50}).lcut("北京大学", HMM=False)
        ['北京大学']
    """

    def __init__(self, dictionary: Source | None = None, *, model: str | os.PathLike[str] = "default") -> None:
        self.dictionary = dictionary
        self.model = model
        self.lock = threading.RLock()
        self.user_word_tag_tab: dict[str, str] = {}
        self._words: JiebaDictionary | None = None
        self._segmenter: Segmenter | None = None
        self._pending: dict[str, float] = {}  # word: nats above the least reward, for the model's next use
        self._threads: int | None = 1

    def __repr__(self) -> str:
        return f"<Tokenizer dictionary={self.dictionary!r}>"

    def cut(self, sentence: str | bytes, cut_all: bool = False, HMM: bool = True) -> Iterator[str]:
        """Cut a text into tokens, of which whitespace is one, too.

        Args:
            sentence: the text; bytes are UTF-8, or else GBK, of which what is none is left out, as jieba does.
            cut_all: all words that the dictionary has in the text, overlapping ones too.
            HMM: the model; otherwise the most probable sequence of dictionary words.
        """
        return iter(self.lcut(sentence, cut_all, HMM))

    def lcut(self, sentence: str | bytes, cut_all: bool = False, HMM: bool = True) -> list[str]:
        """`cut` as a list."""
        text = _text(sentence)
        if cut_all:
            return self._dictionary().cut_all(text)
        return self._cut_by_model(text) if HMM else self._dictionary().cut(text)

    def cut_for_search(self, sentence: str | bytes, HMM: bool = True) -> Iterator[str]:
        """Cut a text, and give before each longer token the dictionary's words of 2 and 3 characters in it."""
        return iter(self.lcut_for_search(sentence, HMM))

    def lcut_for_search(self, sentence: str | bytes, HMM: bool = True) -> list[str]:
        """`cut_for_search` as a list."""
        return [token for token, _, _ in self._dictionary().search(self.lcut(sentence, HMM=HMM))]

    def tokenize(
        self, unicode_sentence: str, mode: str = "default", HMM: bool = True
    ) -> Iterator[tuple[str, int, int]]:
        """The tokens of a text with start and end, those of `cut_for_search` if `mode` is `"search"`."""
        if not isinstance(unicode_sentence, str):
            raise TypeError(f"unicode_sentence must be a str, got {type(unicode_sentence).__name__}")
        if mode not in ("default", "search"):
            raise ValueError(f"mode must be 'default' or 'search', got {mode!r}")
        tokens = self.lcut(unicode_sentence, HMM=HMM)
        return iter(self._dictionary().search(tokens)) if mode == "search" else _with_offsets(tokens)

    def add_word(self, word: str | bytes, freq: int | str | None = None, tag: str | None = None) -> None:
        """Add a word.

        Args:
            freq: its count in the dictionary; 0 deletes it, and forbids it to the model. Default: the least with which
                it is cut whole. To the model this is the least reward with which `cut(word)` gives `[word]`; a count
                that is e times as large rewards by a nat more.
            tag: its part of speech, for `user_word_tag_tab`.
        """
        word = _word(word)
        enough = self.suggest_freq(word)
        count = enough if freq is None else _count(word, freq)
        words = self._dictionary()
        if words.total + count > _LARGEST:
            raise ValueError(f"all counts must add up to at most {_LARGEST}, got {words.total} and {count} of {word!r}")
        words.add(word, count)
        if tag:
            self.user_word_tag_tab[word] = tag
        with self.lock:
            self._pending[word] = math.log(count / enough) if count else _FORBIDDEN

    def del_word(self, word: str | bytes) -> None:
        """Delete a word from the dictionary and forbid it to the model."""
        self.add_word(word, 0)

    def suggest_freq(self, segment: str | bytes | Iterable[str], tune: bool = False) -> int:
        """The count with which a word is cut whole, or, of several words, with which they are not joined.

        Args:
            segment: the word, or the words into which their join is to be cut.
            tune: give the word this count; to the model, joined words are forbidden.
        """
        words = self._dictionary()
        total = max(words.total, 1)
        chance = 1.0
        if isinstance(segment, str | bytes):
            word = _text(segment)
            for part in words.cut(word):
                chance *= _known(words.count(part), 1) / total
            count = max(int(chance * total) + 1, _known(words.count(word), 1))
        else:
            parts = tuple(map(_text, segment))
            word = "".join(parts)
            for part in parts:
                chance *= _known(words.count(part), 1) / total
            count = min(int(chance * total), _known(words.count(word), 0))
        if tune:
            self.add_word(word, count)
            if not isinstance(segment, str | bytes):
                with self.lock:
                    self._pending[word] = _FORBIDDEN
        return count

    def load_userdict(self, f: str | os.PathLike[str] | Iterable[str | bytes]) -> None:
        """Add the words of a file in UTF-8, given by its path or opened: `word [count] [tag]` a line."""
        name = getattr(f, "name", None) or repr(f)
        lines: list[str | bytes]
        if isinstance(f, str | os.PathLike):
            name = str(f)
            lines = list(Path(f).read_bytes().split(b"\n"))
        else:
            lines = list(f)
        entries = []
        for number, line in enumerate(lines, 1):
            text = _line(name, number, line)
            match = _USER_LINE.fullmatch(text)
            if match:
                entries.append(match.groups())
        for word, count, tag in entries:
            self.add_word(word, count, tag)

    def get_FREQ(self, k: str, d: int | None = None) -> int | None:
        """The count of a word, 0 for the beginning of one, `d` for anything else."""
        count = self._dictionary().count(k)
        return d if count is None else count

    def initialize(self, dictionary: Source | None = None) -> None:
        """Load the dictionary and the model now and not on first use."""
        if dictionary is not None:
            self._replace(dictionary)
        self._dictionary()
        self._model()

    def set_dictionary(self, dictionary_path: str | os.PathLike[str]) -> None:
        """Take words and counts from a file of jieba's format. User words are forgotten."""
        if not Path(dictionary_path).is_file():
            raise FileNotFoundError(f"dictionary_path must be a file, got {os.fspath(dictionary_path)!r}")
        self._replace(dictionary_path)

    def _replace(self, dictionary: Source) -> None:
        words = _read(dictionary)
        with self.lock:
            self.dictionary, self._words, self._segmenter = dictionary, words, None
            self._pending.clear()

    def _dictionary(self) -> JiebaDictionary:
        if self._words is None:
            with self.lock:
                if self._words is None:
                    self._words = _of_model(self._model()) if self.dictionary is None else _read(self.dictionary)
        return self._words

    def _model(self) -> Segmenter:
        if self._segmenter is None:
            from ..segmenter import Segmenter

            with self.lock:
                if self._segmenter is None:
                    self._segmenter = Segmenter.load(self.model)
        return self._segmenter

    def _cut_by_model(self, text: str) -> list[str]:
        segmenter = self._model()
        if self._pending:
            with self.lock:
                _add(segmenter, self._pending)
                self._pending = {}
        if self._threads == 1:
            tokens = segmenter.cut(text)
        else:
            tokens = [token for line in segmenter.cut_many(text.split("\n"), self._threads) for token in line]
        return keep_whitespace(text, tokens)


def _add(segmenter: Segmenter, words: Mapping[str, float]) -> None:
    """Give words their reward, shorter ones first, since a longer one's least reward depends on those inside it."""
    by_length: dict[int, list[str]] = {}
    for word, above in words.items():
        if any(map(str.isspace, word)):
            continue  # no token has whitespace in it
        if above != _FORBIDDEN:
            by_length.setdefault(len(word), []).append(word)
        elif len(word) > 1:
            segmenter.add_words({word: "forbid"})
    for _, group in sorted(by_length.items()):
        least = _least_costs(segmenter, group)
        segmenter.add_words({word: "force" if cost is None else cost - words[word] for word, cost in least.items()})


def _least_costs(segmenter: Segmenter, words: list[str]) -> dict[str, float | None]:
    """The greatest costs, none above 0, at which words of one length are cut whole; None where no cost does it."""
    segmenter.add_words(dict.fromkeys(words, 0.0))
    low = dict.fromkeys(_split(segmenter, words), 0.0)  # rewards that are too small
    high: dict[str, float | None] = dict.fromkeys(words, 0.0)
    reward = 4.0
    missing = list(low)
    while missing and reward <= _STRONGEST:
        segmenter.add_words(dict.fromkeys(missing, -reward))
        still = _split(segmenter, missing)
        high |= dict.fromkeys(missing, reward)
        low |= dict.fromkeys(still, reward)
        missing, reward = still, 4 * reward
    high |= dict.fromkeys(missing)
    while True:
        trials = {
            word: (low[word] + top) / 2 for word in low if (top := high[word]) is not None and top - low[word] > _DOUBT
        }
        if not trials:
            return {word: None if top is None else -top for word, top in high.items()}
        segmenter.add_words({word: -reward for word, reward in trials.items()})
        still_split = set(_split(segmenter, list(trials)))
        for word, reward in trials.items():
            if word in still_split:
                low[word] = reward
            else:
                high[word] = reward


def _split(segmenter: Segmenter, words: list[str]) -> list[str]:
    """Those of the words that are not cut whole."""
    return [word for word, tokens in zip(words, segmenter.cut_many(words), strict=True) if tokens != [word]]


def _of_model(segmenter: Segmenter) -> JiebaDictionary:
    if not segmenter._model.n_lexicons:
        raise ValueError(f"dictionary must be given, since the model has none: {segmenter!r}")
    words = JiebaDictionary.of_points(*dictionary_arrays(segmenter._model))
    if words.total == _JIEBA_TOTAL:
        words.total += 3
    return words


def _read(source: Source) -> JiebaDictionary:
    if isinstance(source, str | os.PathLike):
        return _build(_entries(Path(source)))
    return _build(source.items() if isinstance(source, Mapping) else source)


def _entries(path: Path) -> Iterator[tuple[str, int]]:
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        text = _line(str(path), number, line)
        if not text:
            continue
        fields = text.split(" ")
        if len(fields) < 2 or not fields[1].isdecimal():
            raise ValueError(f"{path}, line {number}: a dictionary's line must be 'word count [tag]', got {text!r}")
        yield fields[0], int(fields[1])


def _build(entries: Iterable[tuple[str, int]]) -> JiebaDictionary:
    words, counts = [], []
    for word, count in entries:
        words.append(_word(word))
        counts.append(_count(word, count))
    if sum(counts) > _LARGEST:
        raise ValueError(f"the counts of a dictionary must add up to at most {_LARGEST}, got {sum(counts)}")
    return JiebaDictionary(words, counts)


def _line(name: str, number: int, line: str | bytes) -> str:
    if isinstance(line, bytes):
        try:
            line = line.strip().decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}, line {number}: a dictionary must be UTF-8, got {error.object[:40]!r}") from None
    else:
        line = line.strip()
    return line.lstrip("\ufeff")


def _text(text: str | bytes) -> str:
    if isinstance(text, bytes):
        try:
            return text.decode()
        except UnicodeDecodeError:
            return text.decode("gbk", "ignore")
    if not isinstance(text, str):
        raise TypeError(f"a text must be a str or bytes of UTF-8 or GBK, got {type(text).__name__}")
    return text


def _word(word: str | bytes) -> str:
    word = _text(word)
    if not word:
        raise ValueError("a word must have a character, got ''")
    return word


def _count(word: str, count: Any) -> int:
    number = int(count)
    if not 0 <= number <= _LARGEST:
        raise ValueError(f"the count of {word!r} must be from 0 to {_LARGEST}, got {count}")
    return number


def _known(count: int | None, default: int) -> int:
    return default if count is None else count


def _with_offsets(tokens: list[str]) -> Iterator[tuple[str, int, int]]:
    start = 0
    for token in tokens:
        yield token, start, start + len(token)
        start += len(token)


def setLogLevel(log_level: int) -> None:
    """Nothing: this module logs nothing."""


def enable_parallel(processnum: int | None = None) -> None:
    """Let `dt` cut the lines of a text in this many threads; default: one for each core. Only the model uses them."""
    dt._threads = processnum


def disable_parallel() -> None:
    """Let `dt` cut in one thread again."""
    dt._threads = 1


dt = Tokenizer()
add_word = dt.add_word
cut = dt.cut
cut_for_search = dt.cut_for_search
del_word = dt.del_word
get_FREQ = dt.get_FREQ
initialize = dt.initialize
lcut = dt.lcut
lcut_for_search = dt.lcut_for_search
load_userdict = dt.load_userdict
set_dictionary = dt.set_dictionary
suggest_freq = dt.suggest_freq
tokenize = dt.tokenize
user_word_tag_tab = dt.user_word_tag_tab
