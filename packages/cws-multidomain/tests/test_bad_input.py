"""What happens to input that is wrong or strange."""

import os
import pickle

import numpy as np
import pytest
import synthetic

from cws_multidomain import Segmenter


@pytest.fixture(scope="module")
def model():
    return Segmenter.from_weights(synthetic.weights(0, domains=2, gate=True))


@pytest.fixture
def segmenter(model):
    return model.with_domain("general")


@pytest.mark.parametrize("bad", [b"bytes", None, 1.5, ["list"]])
def test_texts_that_are_no_str_are_refused(segmenter, bad):
    calls = [segmenter.cut, segmenter.tokenize, segmenter.probabilities, segmenter.explain, segmenter.gate]
    for call in [*calls, lambda t: segmenter.nbest(t, 2)]:
        with pytest.raises(TypeError, match=f"text must be a str, got {type(bad).__name__}"):
            call(bad)
    for call in (segmenter.cut_many, segmenter.offsets):
        with pytest.raises(TypeError, match=f"texts must be str, got {type(bad).__name__} at index 2"):
            call(["中国", "", bad])


@pytest.mark.parametrize("bad", ["text", b"bytes", None, 3])
def test_several_texts_must_be_an_iterable_of_them(segmenter, bad):
    for call in (segmenter.cut_many, segmenter.offsets):
        with pytest.raises(TypeError, match="texts must be an iterable of str, got"):
            call(bad)


def test_a_buffer_must_be_bytes(segmenter):
    with pytest.raises(TypeError, match="buffer must be bytes"):
        segmenter.offsets_utf8("text")
    with pytest.raises(TypeError):
        segmenter.offsets_utf8(None)


@pytest.mark.parametrize("text", ["", " ", "\n\r\n\t\u3000\x1c\x85\u2028 "])
def test_nothing_and_whitespace_have_no_tokens(segmenter, text):
    assert segmenter.cut(text) == []
    assert segmenter.tokenize(text) == []
    assert segmenter.explain(text) == []
    assert segmenter.cut_many([text, text]) == [[], []]
    assert segmenter.offsets([text])[0] == []
    assert segmenter.probabilities(text).tolist() == [0] * len(text)


def test_all_code_points_survive(segmenter):
    everything = "".join(map(chr, range(0x110000)))
    assert "".join(segmenter.cut(everything)) == "".join(everything.split())
    plane = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    for unit, encoding, width in (("byte", "utf-8", 1), ("utf16", "utf-16-le", 2)):
        coded = plane.encode(encoding)
        offsets = segmenter.offsets([plane], unit)
        spans = zip((offsets.starts * width).tolist(), (offsets.ends * width).tolist(), strict=True)
        assert b"".join(coded[a:b] for a, b in spans) == "".join(plane.split()).encode(encoding)
    assert segmenter.offsets_utf8(plane.encode()).row_splits[-1] == len(segmenter.cut(plane))


def test_a_lone_surrogate_is_an_unknown_character(segmenter):
    text = "中\ud800国\udfff"
    assert "".join(segmenter.cut(text)) == text
    assert segmenter.offsets([text], "utf16").ends[-1] == 4
    with pytest.raises(ValueError, match=r"texts\[1\] has a lone surrogate, which UTF-8 has not, at character 1"):
        segmenter.offsets(["中", text], "byte")
    assert segmenter.cut(text) == segmenter.cut_many([text])[0]


@pytest.mark.parametrize("character", ["\x00", "\ufeff", "\u200b", "\x07", "\x7f"])
def test_controls_are_characters(segmenter, character):
    text = f"中{character}国{character}"
    assert "".join(segmenter.cut(text)) == text


@pytest.mark.parametrize(
    ("bad", "at"),
    [
        (b"\x80", 0),
        (b"a\xc0\x80", 1),
        (b"\xe4\xb8", 0),
        (b"\xed\xa0\x80", 0),
        (b"\xf5\x80\x80\x80", 0),
        (b"\xe0\x80\x80", 0),
        (b"\xf0\x8f\xbf\xbf", 0),
        (b"\xf4\x90\x80\x80", 0),
        (b"\xff", 0),
        (b"\xc3(", 0),
        (b"\xe4\xb8(", 0),
    ],
)
def test_invalid_utf8_is_refused_with_its_place(segmenter, bad, at):
    for before in ("", "中国\n", "中国" * 200_000 + "\n" + "人民" * 100_000):
        with pytest.raises(ValueError, match=f"buffer is not UTF-8 at byte {len(before.encode()) + at}$"):
            segmenter.offsets_utf8(before.encode() + bad)
        with pytest.raises(UnicodeDecodeError):
            bad.decode()
    assert segmenter.cut("中国人民") == segmenter.cut("中国人民")


def test_after_an_error_the_next_text_is_cut_as_always(segmenter):
    text = "中国人民大学生 的是在了\n和有我他"
    expected = segmenter.offsets([text], "byte")
    for _ in range(3):
        with pytest.raises(ValueError, match="UTF-8"):
            segmenter.offsets_utf8(b"\xe4\xb8\xad" * 9000 + b" \xff")
        with pytest.raises(ValueError, match="surrogate"):
            segmenter.offsets([text * 3000, "中\ud800"], "byte")
        assert segmenter.offsets([text], "byte") == expected


def test_unknown_names_are_refused_with_the_known_ones(segmenter):
    with pytest.raises(ValueError, match="unit must be char, byte or utf16, got 'word'"):
        segmenter.offsets(["中"], unit="word")
    with pytest.raises(ValueError, match="unit must be char, byte or utf16, got None"):
        segmenter.offsets_utf8(b"", unit=None)
    with pytest.raises(ValueError, match="granularity must be coarse, fine or search, got 'medium'"):
        segmenter.granularity = "medium"
    with pytest.raises(ValueError, match=r"rules must be among .*, got 'emoji'"):
        segmenter.rules = ["emoji"]
    with pytest.raises(TypeError, match="rules must be a set of names"):
        segmenter.rules = "latin"
    with pytest.raises(ValueError, match="domain must be auto, general, domain1, domain2 or weights of them, got 'x'"):
        segmenter.with_domain("x")
    with pytest.raises(ValueError, match="lexicon must be below 1"):
        segmenter.dictionary(1)
    assert segmenter.granularity == "coarse"


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_must_be_positive(segmenter, threads):
    for call in (segmenter.cut_many, segmenter.offsets):
        with pytest.raises(ValueError, match=r"threads must be a positive integer, got"):
            call(["中"], threads=threads)


@pytest.mark.parametrize("n", [0, -1, 1.5, None, True])
def test_n_must_be_positive(segmenter, n):
    with pytest.raises(ValueError, match="n must be a positive integer, got"):
        segmenter.nbest("中国", n)


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf")])
def test_a_temperature_must_be_positive(segmenter, temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        segmenter.probabilities("中国", temperature=temperature)


@pytest.mark.parametrize(
    "mixture",
    [
        {"domain1": -1},
        {"domain1": float("nan")},
        {"domain1": float("inf")},
        {"domain1": 0},
        {},
        {"x": 1},
        {"domain1": "1"},
    ],
)
def test_bad_mixtures_are_refused(segmenter, mixture):
    with pytest.raises(ValueError, match="domain must have weights"):
        segmenter.with_domain(mixture)
    with pytest.raises(TypeError, match="domain must be auto"):
        segmenter.with_domain(3)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"": -1.0}, ValueError, "a word must have a character and no whitespace, got ''"),
        ({"中 国": -1.0}, ValueError, "no whitespace, got '中 国'"),
        ({"中国\n": -1.0}, ValueError, "no whitespace"),
        ({"中国": float("nan")}, ValueError, "a cost must be finite, got nan for '中国'"),
        ({"中国": float("inf")}, ValueError, "a cost must be finite"),
        ({"中": "forbid"}, ValueError, "a single character cannot be forbidden, got '中'"),
        ({"中国": "maybe"}, TypeError, "a cost must be a number, 'force' or 'forbid', got 'maybe'"),
        ({"中国": None}, TypeError, "a cost must be a number"),
        ({3: 1.0}, TypeError, "words must be str, got 3"),
        ([b"x"], TypeError, "words must be str"),
    ],
)
def test_a_call_with_a_bad_word_adds_none(segmenter, words, error, message):
    good = {"人民": -1.0}
    with pytest.raises(error, match=message):
        segmenter.add_words({**good, **words} if isinstance(words, dict) else [*good, *words])
    assert segmenter.words == {}


def test_a_file_of_words_is_refused_with_its_line(segmenter, tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("中国\n人 民 大\n".encode())
    with pytest.raises(
        ValueError, match=r"words\.txt, line 2: a line must be 'word \[count\] \[tag\]', got '人 民 大'"
    ):
        segmenter.add_words(path)
    path.write_bytes("中国\n".encode() + b"\xff\n")
    with pytest.raises(ValueError, match=r"words\.txt, line 2: byte 0 is not UTF-8"):
        segmenter.add_words(os.fspath(path))
    with pytest.raises(FileNotFoundError):
        segmenter.add_words(tmp_path / "missing.txt")
    assert segmenter.words == {}


def test_numpy_costs_are_numbers(segmenter):
    segmenter.add_words({"人民": np.float32(-1.5), "中国": np.int64(2)})
    assert segmenter.words == {"人民": -1.5, "中国": 2.0}


def test_a_missing_model_is_named_with_what_was_searched(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no model 'nothing'; searched: .*nothing\.cws, nothing"):
        Segmenter.load("nothing")
    with pytest.raises(FileNotFoundError, match=r"searched: .*x\.cws"):
        Segmenter.load(tmp_path / "x.cws")
    with pytest.raises(FileNotFoundError):
        Segmenter.load(tmp_path)
    with pytest.raises(TypeError, match="name_or_path must be a str or a path, got int"):
        Segmenter.load(3)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "x.cws"
    path.write_bytes(b"hello" * 100)
    with pytest.raises(ValueError, match=r"x\.cws: the magic is not that of a model file"):
        Segmenter.load(path)
    path.write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(ValueError, match=r"x\.cws: the header"):
        Segmenter.load(path)


def test_results_belong_to_the_caller(segmenter):
    offsets = segmenter.offsets(["中国人民"])
    offsets.starts[:] = 7
    first = segmenter.cut("中国人民")
    first.append("x")
    assert segmenter.cut("中国人民") == first[:-1]
    probabilities = segmenter.probabilities("中国")
    probabilities[:] = 2
    assert segmenter.probabilities("中国")[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        segmenter._model.sections["unigram"][0] = 1
