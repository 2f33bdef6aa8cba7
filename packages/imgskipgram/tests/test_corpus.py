"""Corpora: every form gives the same numbers; bad ones are refused with the place of the fault."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gensim.models.word2vec import LineSentence
from gensim.test.utils import datapath
from hypothesis import given
from hypothesis import strategies as st

from imgskipgram import _core, _corpus
from imgskipgram._corpus import Tokens, encode, read, stream
from imgskipgram._vocabulary import Trim, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LEE = Path(datapath("lee_background.cor"))
ALL = Trim(min_count=1)
SPACES = "".join(chr(code) for code in range(0x110000) if chr(code).isspace())
TEXTS = st.text(st.sampled_from(f"ab\u00e9\u5317\u2003\U0001f600\x00{SPACES}\n\n")) | st.text()


def sentences_of(tokens: Tokens, vocabulary: Vocabulary) -> list[list[str]]:
    bounds = tokens.offsets.tolist()
    words = [vocabulary.words[i] for i in tokens.ids]
    return [words[a:b] for a, b in pairwise(bounds)]


def known_words(sentences: list[list[str]], vocabulary: Vocabulary) -> list[list[str]]:
    return [[word for word in sentence if word in vocabulary.index] for sentence in sentences]


def lines_of(text: str) -> list[list[str]]:
    return [words for line in text.split("\n") if (words := line.split())]


def tokenized(text: str | bytes | Path) -> list[list[str]]:
    ids, offsets, words, counts = _core.tokenize(text.encode() if isinstance(text, str) else text)
    assert np.bincount(ids, minlength=len(words)).tolist() == counts.tolist()
    assert (ids.dtype, offsets.dtype, counts.dtype) == (np.uint32, np.uint64, np.uint64)
    return [[words[i] for i in ids[a:b]] for a, b in pairwise(offsets)]


@pytest.fixture(scope="module")
def lee() -> list[list[str]]:
    return list(LineSentence(LEE))


@pytest.fixture(
    params=[
        "txt",
        "gz",
        "bz2",
        "xz",
        "path as str",
        "strings",
        "lists",
        "tuples",
        "arrays",
        "generator",
        "rows",
        "words",
    ]
)
def corpus(request: pytest.FixtureRequest, tmp_path: Path, lee: list[list[str]]) -> Any:
    text = LEE.read_bytes()
    packs: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    if request.param in {"txt", *packs}:
        path = tmp_path / f"corpus.{request.param}"
        path.write_bytes(packs.get(request.param, bytes)(text))
        return path
    return {
        "path as str": str(LEE),
        "strings": [" ".join(words) for words in lee],
        "lists": lee,
        "tuples": [tuple(words) for words in lee],
        "arrays": [np.array(words) for words in lee],
        "generator": (words for words in lee),
        "rows": [{"label": 3, "text": "\t".join(words)} for words in lee],
        "words": [{"text": words} for words in lee],
    }[request.param]


@pytest.mark.parametrize("in_memory", [1 << 30, 1000])
def test_every_form_of_a_corpus_is_read_alike_in_memory_and_in_a_file(
    corpus: Any, lee: list[list[str]], in_memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_corpus, "_IN_MEMORY", in_memory)
    monkeypatch.setattr(_corpus, "_BLOCK", 997)
    monkeypatch.setattr(_corpus, "_BATCH", 7)
    cache = tmp_path / "cache"
    cache.mkdir()
    vocabulary, tokens = read(corpus, Trim(), cache_dir=cache)
    assert tokens is not None
    assert isinstance(tokens.ids, np.memmap) == (in_memory == 1000)
    assert sentences_of(tokens, vocabulary) == known_words(lee, vocabulary)
    assert (tokens.raw, tokens.first) == (sum(map(len, lee)), 0)
    assert np.bincount(tokens.ids).tolist() == vocabulary.counts.tolist()
    tokens.close()
    assert tokens.ids.size == 0
    assert not os.listdir(cache)


@pytest.mark.parametrize("block", [1, 50, 1 << 22])
def test_every_form_of_a_corpus_is_streamed_as_it_is_read(
    corpus: Any, lee: list[list[str]], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_corpus, "_BLOCK", 20 * block)
    monkeypatch.setattr(_corpus, "_BATCH", block)
    vocabulary, _ = read(lee, Trim())
    if not hasattr(corpus, "__next__"):
        pieces = list(stream(corpus, vocabulary))
        assert [piece.first for piece in pieces] == np.cumsum([0, *(len(p.offsets) - 1 for p in pieces)])[:-1].tolist()
        assert list(chain(*(sentences_of(piece, vocabulary) for piece in pieces))) == known_words(lee, vocabulary)
        assert sum(piece.raw for piece in pieces) == vocabulary.raw
        assert len(pieces) > 1 or block == 1 << 22
    tokens = encode(corpus, vocabulary)
    assert sentences_of(tokens, vocabulary) == known_words(lee, vocabulary)
    assert tokens.raw == vocabulary.raw


@given(TEXTS)
def test_text_is_split_as_python_splits_it(text: str) -> None:
    text = text.removeprefix("\ufeff").encode(errors="ignore").decode()
    assert tokenized(text) == lines_of(text)


@given(TEXTS, st.lists(st.integers(0, 300)))
def test_blocks_may_end_anywhere(text: str, cuts: list[int]) -> None:
    data = text.encode(errors="ignore")
    reader = _core.Reader("text")
    bounds = [0, *sorted(cuts), len(data)]
    for a, b in pairwise(bounds):
        reader.feed(data[a:b])
    reader.finish()
    ids, ends = reader.take()
    whole = _core.tokenize(data)
    assert ids.tolist() == whole[0].tolist()
    assert ends.tolist() == whole[1].tolist()[1:]
    assert reader.words == whole[2]


@given(st.lists(st.binary(max_size=6) | st.sampled_from([b"a", b"\n", b" ", "é北😀".encode()])).map(b"".join))
def test_bytes_are_refused_where_python_refuses_them(data: bytes) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        with pytest.raises(ValueError, match=rf"^bytes: line {line}: invalid UTF-8 at byte {error.start} of the text$"):
            _core.tokenize(data)
    else:
        assert tokenized(data) == lines_of(text.removeprefix("\ufeff"))


def test_every_code_point_is_read_as_python_reads_it() -> None:
    text = "".join(f"x{chr(code)}y\n" for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    assert tokenized(text) == lines_of(text)


def test_a_mark_of_byte_order_is_no_part_of_the_first_word(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffa b\n\ufeffa", "utf-8")
    assert tokenized(tmp_path / "a.txt") == [["a", "b"], ["\ufeffa"]]


def test_a_file_of_several_blocks_is_read_as_its_bytes_are(tmp_path: Path) -> None:
    line = " ".join(f"word{i % 1009}" for i in range(1000)) + "\n"
    path = tmp_path / "long.txt"
    path.write_text(line * 700 + "w" * 5_000_000 + " end")
    assert path.stat().st_size > 2 << 22
    ours, theirs = _core.tokenize(path), _core.tokenize(path.read_bytes())
    assert np.array_equal(ours[0], theirs[0])
    assert np.array_equal(ours[1], theirs[1])
    assert ours[2] == theirs[2]
    assert ours[2][-2:] == ["w" * 5_000_000, "end"]


def test_one_line_is_one_sentence_however_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_corpus, "_BLOCK", 4096)
    path = tmp_path / "line.txt"
    path.write_text("a b c " * 20_000)
    vocabulary, tokens = read(path, ALL)
    assert tokens is not None
    assert tokens.offsets.tolist() == [0, 60_000]
    assert [piece.offsets.tolist() for piece in stream(path, vocabulary)] == [[0, 60_000]]


def test_blank_lines_are_no_sentences_but_empty_lists_keep_their_number(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\na b\n \n\nb\n")
    vocabulary, tokens = read(tmp_path / "a.txt", ALL)
    assert tokens is not None
    assert (vocabulary.sentences, tokens.offsets.tolist()) == (2, [0, 2, 3])
    vocabulary, tokens = read([[], ["a", "b"], "", ["b"]], ALL)
    assert tokens is not None
    assert (vocabulary.sentences, tokens.offsets.tolist()) == (4, [0, 0, 2, 2, 3])


def test_sentences_without_words_of_the_vocabulary_keep_their_place() -> None:
    vocabulary, _ = read([["a", "a"]], ALL)
    assert encode([["x"], ["a", "x"], ["x", "y"]], vocabulary).offsets.tolist() == [0, 0, 1, 1]


def test_words_in_lists_are_taken_as_they_are() -> None:
    vocabulary, _ = read([["New York", "", "a\nb"]], ALL)
    assert vocabulary.words == ["New York", "", "a\nb"]


def test_words_that_differ_in_one_byte_are_told_apart() -> None:
    words = ["a" * n for n in range(1, 60)]
    words += [f"{word[:i]}b{word[i + 1 :]}" for word in words for i in range(len(word))]
    assert tokenized(" ".join(words + words)) == [words + words]
    vocabulary, tokens = read([[*words, "a\x00", "\x00a", "\x00\x00"], words], ALL)
    assert tokens is not None
    assert len(vocabulary) == len(words) + 3
    assert sentences_of(tokens, vocabulary)[1] == words


def test_a_surrogate_alone_is_refused_by_its_sentence() -> None:
    with pytest.raises(ValueError, match=r"^sentence 1 must be Unicode text, got a surrogate alone$"):
        read([["a"], ["b", "\ud800"]], ALL)


def test_a_corpus_that_is_streamed_leaves_no_numbers() -> None:
    vocabulary, tokens = read(LEE, Trim(), cache_dir=False)
    assert tokens is None
    assert vocabulary.words == read(LEE, Trim())[0].words


def test_what_can_be_read_once_is_refused_where_it_would_be_read_again(lee: list[list[str]]) -> None:
    vocabulary, _ = read(lee, Trim())
    with pytest.raises(ValueError, match="got generator; pass a re-iterable corpus or use fit"):
        stream((words for words in lee), vocabulary)
    with pytest.raises(ValueError, match="pass a re-iterable corpus or use fit"):
        read((words for words in lee), Trim(), cache_dir=False)
    spent = (words for words in lee)
    read(spent, Trim())
    with pytest.raises(ValueError, match="pass a re-iterable corpus or use fit"):
        encode(spent, vocabulary)
    with pytest.raises(ValueError, match=r"got 0 tokens$"):
        encode([], vocabulary)


@pytest.mark.parametrize(
    ("sentence", "what"),
    [
        (3, "int"),
        (None, "NoneType"),
        (b"a b", "bytes"),
        ({"a", "b"}, "set"),
        ({"text": "a"}, "dict"),
        (iter(["a"]), "list_iterator"),
        (["a", 7], "int as word 1"),
        ([["a"]], "list as word 0"),
        ([None], "NoneType as word 0"),
        (bytearray(b"a"), "int as word 0"),
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_what_is_no_sentence_is_refused_by_its_number(
    sentence: Any, what: str, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_corpus, "_BATCH", 2)
    corpus = [["a"], "a b", ["a"], sentence]
    vocabulary, _ = read(corpus[:-1], ALL)
    refusal = rf"^sentence 3 must be a string or a sequence of strings, got {what}$"
    with pytest.raises(TypeError, match=refusal):
        encode(corpus, vocabulary) if again else read(corpus, ALL)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (3, "int"),
        (b"a.txt", "bytes"),
        ({"train": []}, "dict"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_corpus_is_refused(given: Any, name: str) -> None:
    vocabulary, _ = read([["a"]], ALL)
    calls: list[Callable[[], object]] = [
        lambda: read(given, ALL),
        lambda: encode(given, vocabulary),
        lambda: stream(given, vocabulary),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=f"^corpus must be a path or an iterable of sentences, got {name}"):
            call()


def test_a_missing_column_is_refused_with_those_present() -> None:
    with pytest.raises(ValueError, match=r"^text_column must be a column .* got 'text'; present are 'label', 'body'$"):
        read([{"label": 1, "body": "a"}], ALL)
    vocabulary, _ = read([{"label": 1, "body": "a"}], ALL, text_column="body")
    assert vocabulary.words == ["a"]


def test_a_bad_cache_dir_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    untouched = iter([["a"]])
    for bad, error, refusal in [
        (True, TypeError, r"^cache_dir must be a path, None or False, got bool$"),
        (3, TypeError, r"^cache_dir must be a path, None or False, got int$"),
        (tmp_path / "no such", ValueError, r"^cache_dir must be a folder that exists, got '.*no such'$"),
    ]:
        with pytest.raises(error, match=refusal):
            read(untouched, ALL, cache_dir=bad)
    assert next(untouched) == ["a"]


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    for call in (lambda path: read(path, ALL), _core.tokenize):
        with pytest.raises(FileNotFoundError, match="no such"):
            call(tmp_path / "no such.txt")


def test_a_file_may_have_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.txt")
    path.write_bytes(b"a b")
    vocabulary, _ = read(path, ALL)
    assert vocabulary.words == ["a", "b"]
    path.write_bytes(b"\xfe")
    for call in (lambda: read(path, ALL), lambda: list(stream(path, vocabulary)), lambda: _core.tokenize(path)):
        with pytest.raises(ValueError, match=r"(\\xff|\\udcff)\.txt: line 1: invalid UTF-8 at byte 0") as error:
            call()
        assert type(error.value) is ValueError


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz"])
def test_bad_text_is_refused_with_file_line_and_byte(tmp_path: Path, suffix: str) -> None:
    pack: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    path = tmp_path / f"bad.txt{suffix}"
    path.write_bytes(pack.get(suffix, bytes)("é a\nb c\nd ".encode() + b"x\xe9y z\n"))
    refusal = rf"bad\.txt{suffix}: line 3: invalid UTF-8 at byte 12 of the text$"
    vocabulary, _ = read([["a"]], ALL)
    with pytest.raises(ValueError, match=refusal):
        read(path, ALL)
    with pytest.raises(ValueError, match=refusal):
        list(stream(path, vocabulary))


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_a_damaged_file_is_refused(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(LEE.read_bytes())
    for name, data in {
        "short": packed[:-20],
        "other": b"a b c\n",
        "changed": packed[:999] + b"###" + packed[1002:],
    }.items():
        path = tmp_path / f"{name}.{suffix}"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}\.{suffix}: the compressed file is damaged: "):
            read(path, Trim())


def test_a_generator_is_closed_and_no_file_left_when_reading_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_corpus, "_IN_MEMORY", 8)
    monkeypatch.setattr(_corpus, "_BATCH", 1)

    def corpus() -> Iterator[list[str]]:
        yield ["a"] * 10
        raise OSError("the network is gone")

    with pytest.raises(OSError, match="the network is gone"):
        read(corpus(), ALL, cache_dir=tmp_path)
    assert not os.listdir(tmp_path)


def test_the_corpus_of_the_oracle_has_its_counts(data: Path) -> None:
    vocabulary, tokens = read(data / "corpus.txt.xz", Trim())
    assert tokens is not None
    lengths = np.diff(_core.tokenize(lzma.decompress((data / "corpus.txt.xz").read_bytes()))[1])
    assert (lengths.size, int(lengths.sum()), int(lengths.max())) == (418_862, 6_863_794, 985)
    assert (vocabulary.sentences, vocabulary.raw) == (418_862, 6_863_794)
    assert (len(vocabulary), vocabulary.total, tokens.ids.size) == (34_374, 6_766_205, 6_766_205)
    assert vocabulary.words[:3] == ["a", "the", "in"]
    assert vocabulary.counts[:3].tolist() == [460_755, 351_875, 194_947]
