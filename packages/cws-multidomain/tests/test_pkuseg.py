"""compat.pkuseg by itself: the kernels against their definition, files, user words, training, bad input."""

from __future__ import annotations

import io
import json
import pickle
import random
import re
import struct
import sys
import zipfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cws_multidomain import _pkuseg
from cws_multidomain import _pkuseg_reference as definition
from cws_multidomain._core import PkusegDictionary, pkuseg_load, pkuseg_viterbi
from cws_multidomain._weights import Component, Weights
from cws_multidomain.compat import pkuseg as compat
from cws_multidomain.segmenter import Segmenter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORDS = """
我 爱 北京 天安门 是 中国 的 首都 上海 电动车 在 有 大学 大学生 学生 会 生活 ， 。 1998 年 12.5% 万 二十 Ａｂ abc 一百
C++ 中华人民共和国 共和国 x/y ｊｋ 😀 **Num １２３ － ・ 东方明珠电视塔
"""
VOCABULARY = WORDS.split()
TEXTS = [
    "",
    " \t\u3000\n",
    "我爱北京天安门",
    " 中国的 首都\n",
    "电动车在上海",
    "１２.５万ａＢｊ／・－％",
    "a\x00b\u200b\ufeff",
    "\ud800x\udfff中",
]


def sentences(count: int, seed: int = 0) -> list[list[str]]:
    chance = random.Random(seed)
    return [chance.choices(VOCABULARY, k=chance.randint(1, 12)) for _ in range(count)]


CORPUS = sentences(60)


def texts(count: int = 200, seed: int = 1) -> list[str]:
    """Words and their parts, and lengths around that of the decoder's blocks."""
    chance = random.Random(seed)
    made = list(TEXTS)
    for length in [1, 2, 3, 31, 63, 64, 65, 127, 128, 129, 193, 700] + [chance.randint(1, 40) for _ in range(count)]:
        text = ""
        while len(text) < length:
            word = chance.choice([*VOCABULARY, "門", "é", "𠀀"])
            text += word[chance.randint(0, len(word)) :] if chance.random() < 0.3 else word
        made.append(text[:length])
    return made


@pytest.fixture(scope="module")
def model() -> _pkuseg.Model:
    return _pkuseg.train(_pkuseg.corpus_text(CORPUS), epochs=3)


@pytest.fixture(scope="module")
def directory(model: _pkuseg.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pkuseg")
    model.save(path)
    return path


def names(path: Path) -> dict[str, Any]:
    loaded = pkuseg_load((path / "features.msgpack").read_bytes(), "msgpack")
    assert isinstance(loaded, dict)
    return loaded


def defined(vocabulary: dict[str, Any], w: np.ndarray, text: str) -> tuple[np.ndarray, list[str]]:
    """Scores and words by the definition."""
    nodes, unigram = definition.normalize(text), set(vocabulary["unigram"])
    index = vocabulary["feature_to_idx"]
    ids = [
        [index[f] if k else 0 for k, f in enumerate(definition.features(nodes, i, unigram)) if f in index]
        for i in range(len(nodes))
    ]
    scores, edges = definition.scores(ids, w)
    begins = ["B" in definition.TAGS[tag] for tag in definition.viterbi(scores, edges)]
    starts = [i for i, begin in enumerate(begins) if begin or i == 0]
    return scores, [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


# ---- decoding


def test_scores_and_words_are_those_of_the_definition_bit_for_bit(directory: Path) -> None:
    model, vocabulary = _pkuseg.Model.load(directory), names(directory)
    chance = np.random.default_rng(0)
    for noise in (0.0, 0.3, 50.0):
        w = model.weights + noise * chance.standard_normal(model.weights.shape)
        noisy = _pkuseg.Model(_pkuseg.Files(model.files.features, "msgpack", w, model.n_features, 5))
        for text in texts():
            pieces = text.split()
            words = []
            for piece in pieces:
                scores, cut = defined(vocabulary, w, piece)
                assert np.array_equal(noisy.core.scores(piece), scores)
                words += cut
            assert noisy.cut(text) == words


def test_equal_scores_take_the_last_tag_but_the_first_at_the_left_end(directory: Path) -> None:
    model, vocabulary = _pkuseg.Model.load(directory), names(directory)
    chance = np.random.default_rng(1)
    for _ in range(20):
        w = chance.integers(-1, 2, model.weights.shape).astype(float)
        coarse = _pkuseg.Model(_pkuseg.Files(model.files.features, "msgpack", w, model.n_features, 5))
        for text in texts(10):
            assert coarse.cut(text) == [word for piece in text.split() for word in defined(vocabulary, w, piece)[1]]


@given(st.integers(0, 9), st.integers(1, 45), st.integers(0, 2**32 - 1), st.booleans())
def test_viterbi_of_any_number_of_tags_is_that_of_the_definition(n: int, tags: int, seed: int, ties: bool) -> None:
    chance = np.random.default_rng(seed)
    draw: Callable[..., Any] = (lambda *s: chance.integers(-1, 2, s).astype(float)) if ties else chance.standard_normal
    nodes, edges = (draw(n, tags), draw(tags, tags)) if ties else (draw((n, tags)), draw((tags, tags)))
    assert pkuseg_viterbi(nodes, edges).tolist() == definition.viterbi(nodes, edges)


@given(st.text())
@settings(max_examples=300)
def test_words_are_the_text_without_its_whitespace(model: _pkuseg.Model, text: str) -> None:
    assert "".join(model.cut(text)) == "".join(text.split())
    assert model.cut(text) == [word for piece in text.split() for word in model.cut(piece)]


def test_a_text_of_a_million_characters_is_cut(model: _pkuseg.Model) -> None:
    text = "中国的首都北京" * 150_000
    assert "".join(model.cut(text)) == text


def test_words_made_twice_are_equal_and_the_cache_mixes_none_up(model: _pkuseg.Model) -> None:
    chance = random.Random(5)
    for _ in range(3000):
        text = "".join(chr(chance.randint(1, 0xD7FF)) for _ in range(chance.randint(1, 8)))
        assert "".join(model.cut(text)) == "".join(text.split())
    assert [c for c in "\x00\x01" for word in [model.cut(c)] if word != [c]] == []


def test_a_space_of_python_is_a_space() -> None:
    model = _pkuseg.train("我 爱\n他 爱", epochs=1, reference=False)
    every = [chr(c) for c in range(sys.maxunicode + 1)]
    assert [c for c in every if bool(model.cut(c)) == c.isspace()] == []


# ---- dictionaries


@given(st.lists(st.text("abc", min_size=1, max_size=5), max_size=8), st.text("abcd", max_size=14), st.booleans())
@settings(max_examples=300)
def test_user_words_are_cut_as_the_definition_says(
    model: _pkuseg.Model, words: list[str], text: str, fixes: bool
) -> None:
    expected = []
    for piece, whole in definition.solve(text, set(words), fixes):
        expected += [piece] if whole else model.cut(piece)
    assert model.cut(text, PkusegDictionary(words, []), fixes) == expected


@given(
    st.lists(st.text("我爱北京中国的", min_size=1, max_size=9), max_size=12), st.text("我爱北京中国的，", max_size=30)
)
@settings(max_examples=300)
def test_tokens_are_merged_as_the_definition_says(model: _pkuseg.Model, words: list[str], text: str) -> None:
    assert model.cut(text, PkusegDictionary([], words)) == definition.merge(model.cut(text), set(words))


def test_words_longer_than_a_machine_word_are_merged(model: _pkuseg.Model) -> None:
    for length in (62, 63, 64, 65, 200):
        text = "A" + "国" * length
        tokens = model.cut(text)
        for k in range(2, min(8, len(tokens) + 1)):
            word = "".join(tokens[:k])
            assert model.cut(text, PkusegDictionary([], [word])) == definition.merge(tokens, {word})


def test_the_tries_error_is_kept_and_mended(directory: Path) -> None:
    words = ["车", "车在中国"]
    assert compat.pkuseg(directory, words, merge=[]).cut("电动车在上海")[-2:] == ["车在", "上海"]
    assert "车" in compat.pkuseg(directory, words, merge=[], fixes=True).cut("电动车在上海")


def test_user_words_come_from_a_file_from_words_or_from_pairs(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("首都北\tns\n\n 京天 \r\n", "utf-8")
    for source in (path, str(path), ["首都北", " 京天"], [("首都北", "ns"), ("京天", "")]):
        assert compat.pkuseg(directory, source, merge=[]).cut("中国首都北京天安门")[-3:-1] == ["首都北", "京天"]


def test_a_list_beside_the_model_is_merged_and_its_lack_is_told(directory: Path, tmp_path: Path) -> None:
    text = "我爱北京。中国的首都"
    plain = compat.pkuseg(directory, None).cut(text)
    word = "".join(plain[1:3])
    with pytest.warns(UserWarning, match=re.escape(f"default.pkl, and {directory} has none")):
        assert compat.pkuseg(directory).cut(text) == plain
    _pkuseg.Model.load(directory).save(tmp_path)
    (tmp_path / "default.pkl").write_bytes(pickle.dumps(f"{word}\n无关\n"))
    assert compat.pkuseg(tmp_path).cut(text) == definition.merge(plain, {word, "无关"})
    assert compat.pkuseg(directory, merge=[tmp_path / "default.pkl"]).cut(text) == compat.pkuseg(tmp_path).cut(text)
    assert compat.pkuseg(tmp_path, None).cut(text) == plain


# ---- parts of speech


def test_tags_are_those_of_the_definition_and_user_tags_win(directory: Path, tmp_path: Path) -> None:
    index = {"$$": 0, "w.北京": 1, "tr1.pre.1.天": 2, "tr1.w-1.BOS": 3, "w.**Num": 4, "tr1.w_-1_0.我.爱": 5}
    tags = {"n": 0, "v": 1, "m": 2}
    w = np.zeros((6, 3))
    w[1, 0] = w[2, 0] = w[3, 0] = w[4, 2] = w[5, 1] = 5
    data = pickle.dumps({"feature_to_idx": index, "tag_to_idx": tags})
    (tmp_path / "features.pkl").write_bytes(data)
    np.savez(tmp_path / "weights.npz", sizes=np.array([3, 6]), w=np.append(w, np.zeros(9)))
    tagger = _pkuseg.Tagger(tmp_path)
    assert tagger.tag(["我", "爱", "北京", "天安门", "1998"]) == ["n", "v", "n", "n", "m"]
    assert tagger.tag([]) == []
    segmenter = compat.pkuseg(directory, [("北京", "place")], postag=tmp_path, merge=[])
    tagged = dict(segmenter.cut("我爱北京"))
    assert tagged["北京"] == "place"
    assert tagged["我"] == "n"
    assert pickle.loads(pickle.dumps(tagger)).tag(["北京"]) == ["n"]


def test_a_tag_that_is_no_text_is_refused_when_the_model_is_loaded(tmp_path: Path) -> None:
    data = pickle.dumps({"feature_to_idx": {"$$": 0}, "tag_to_idx": {"noun": 0}})
    (tmp_path / "features.pkl").write_bytes(data.replace(b"noun", b"no\xffn"))
    np.savez(tmp_path / "weights.npz", sizes=np.array([1, 1]), w=np.zeros(2))
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}: a string is not UTF-8$"):
        _pkuseg.Tagger(tmp_path)


# ---- training


def test_features_are_numbered_as_the_definition_numbers_them(directory: Path) -> None:
    corpus, vocabulary = definition.Corpus(CORPUS), names(directory)
    assert list(vocabulary["feature_to_idx"].items()) == list(corpus.feature_to_idx.items())
    assert vocabulary["unigram"] == sorted(corpus.unigram)
    assert vocabulary["bigram"] == sorted(corpus.bigram)
    assert vocabulary["tag_to_idx"] == {tag: index for index, tag in enumerate(definition.TAGS)}


@pytest.mark.parametrize("count", [1, 2, 9, 10, 19, 60])
def test_reference_training_is_the_definition(count: int) -> None:
    chosen = sentences(count, seed=count)
    corpus = definition.Corpus(chosen)
    w = np.zeros(5 * (len(corpus.feature_to_idx) + 5))
    eta = np.full_like(w, 0.05)
    trainer = _pkuseg.Trainer(_pkuseg.corpus_text(chosen))
    chance = random.Random(2)
    for _ in range(4):
        order = list(range(count))
        chance.shuffle(order)
        assert trainer.epoch(order) == pytest.approx(definition.adf_epoch(corpus, w, eta, order), rel=1e-12)
    np.testing.assert_allclose(trainer.model().weights, w, rtol=0, atol=1e-12)


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    corpus = definition.Corpus(CORPUS[:3])
    chance = np.random.default_rng(3)
    w = chance.standard_normal(5 * (len(corpus.feature_to_idx) + 5))
    gradient = np.zeros_like(w)
    definition.loss(corpus.ids[0], corpus.tags[0], w, gradient)
    direction = chance.standard_normal(w.shape)
    h = 1e-6
    up, down = (
        definition.loss(corpus.ids[0], corpus.tags[0], w + s * h * direction, np.zeros_like(w)) for s in (1, -1)
    )
    assert (up - down) / (2 * h) == pytest.approx(float(gradient @ direction), rel=1e-6)


@pytest.mark.parametrize("count", [1, 9, 200])
def test_float32_training_takes_the_same_steps(count: int) -> None:
    text = _pkuseg.corpus_text(sentences(count, seed=8))
    exact, fast = (_pkuseg.train(text, epochs=4, seed=1, reference=reference) for reference in (True, False))
    assert fast.objective == pytest.approx(exact.objective, rel=1e-4)
    np.testing.assert_allclose(fast.weights, exact.weights, rtol=0, atol=2e-3)
    assert fast.files.features == exact.files.features


def test_training_depends_on_text_options_and_seed_alone() -> None:
    text = _pkuseg.corpus_text(CORPUS)
    for reference in (True, False):
        one, two, other = (_pkuseg.train(text, epochs=2, seed=seed, reference=reference) for seed in (4, 4, 5))
        assert one.weights.tobytes() == two.weights.tobytes()
        assert one.weights.tobytes() != other.weights.tobytes()


def test_training_goes_on_from_a_model(model: _pkuseg.Model) -> None:
    more = [*sentences(20, seed=9), ["新词", "我", "来"]]
    trainer = _pkuseg.Trainer(_pkuseg.corpus_text(more), init=model)
    n = model.n_features
    start = trainer.model()
    assert start.n_features > n
    assert np.array_equal(start.weights[: 5 * n], model.weights[: 5 * n])
    assert np.array_equal(start.weights[-25:], model.weights[-25:])
    assert not start.weights[5 * n : -25].any()
    old, new = (pkuseg_load(m.files.features, "msgpack") for m in (model, start))
    assert isinstance(old, dict)
    assert isinstance(new, dict)
    assert list(new["feature_to_idx"].items())[:n] == list(old["feature_to_idx"].items())
    assert {"新词", *old["unigram"]} <= set(new["unigram"])
    assert "新词*我" in new["bigram"]
    text = "我爱北京天安门"
    assert start.cut(text) == model.cut(text)
    first = trainer.epoch()
    assert trainer.epoch() < first


def test_the_corpus_is_learnt() -> None:
    chosen = [words for words in CORPUS if len(words) > 3]
    model = _pkuseg.train(_pkuseg.corpus_text(chosen), epochs=20, reference=False)
    assert sum(model.cut("".join(words)) == words for words in chosen) > 0.8 * len(chosen)


# ---- files


def test_models_survive_every_form_of_their_files(model: _pkuseg.Model, directory: Path, tmp_path: Path) -> None:
    vocabulary = names(directory)
    forms: list[tuple[str, bytes]] = [("features.json", json.dumps(vocabulary).encode())]
    for protocol in range(6):
        sets = vocabulary | {"unigram": set(vocabulary["unigram"])}
        forms += [("features.pkl", pickle.dumps(v, protocol)) for v in (vocabulary, sets)]
    for k, (name, data) in enumerate(forms):
        path = tmp_path / str(k)
        path.mkdir()
        (path / name).write_bytes(data)
        (path / "weights.npz").write_bytes((directory / "weights.npz").read_bytes())
        loaded = _pkuseg.Model.load(path)
        assert [loaded.cut(text) for text in texts(30)] == [model.cut(text) for text in texts(30)]
        loaded.save(tmp_path / "again")
        assert _pkuseg.Model.load(tmp_path / "again").cut("我爱北京") == model.cut("我爱北京")
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == ["features.pkl", "weights.npz"]


def test_models_and_segmenters_are_pickled(model: _pkuseg.Model, directory: Path) -> None:
    for one in (model, _pkuseg.Model.load(directory)):
        again = pickle.loads(pickle.dumps(one))
        assert again.cut("我爱北京天安门") == one.cut("我爱北京天安门")
        assert np.array_equal(again.weights, one.weights)
    segmenter = compat.pkuseg(directory, ["京天"], merge=[])
    assert pickle.loads(pickle.dumps(segmenter)).cut("我爱北京天安门") == segmenter.cut("我爱北京天安门")


plain = st.recursive(
    st.text() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(plain, st.integers(0, 5))
@settings(max_examples=300)
def test_plain_values_are_unpickled(value: object, protocol: int) -> None:
    assert pkuseg_load(pickle.dumps(value, protocol), "pickle") == value


@given(st.sets(st.text(max_size=4)), st.integers(0, 5))
def test_sets_are_unpickled(value: set[str], protocol: int) -> None:
    assert pkuseg_load(pickle.dumps({"a": value, "b": [value, value]}, protocol), "pickle") == {
        "a": value,
        "b": [value, value],
    }


def packed(value: object) -> bytes:
    """MessagePack, of the forms that spacy-pkuseg's writer never uses too."""
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return b"\xd3" + value.to_bytes(8, "big", signed=True)
    if isinstance(value, float):
        return struct.pack(">Bd", 0xCB, value)
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        return struct.pack(">BI", 0xDB, len(data)) + data
    if isinstance(value, list):
        return struct.pack(">BH", 0xDC, len(value)) + b"".join(map(packed, value))
    assert isinstance(value, dict)
    items = b"".join(packed(k) + packed(v) for k, v in value.items())
    return struct.pack(">BI", 0xDF, len(value)) + items


@given(plain)
def test_plain_values_are_unpacked(value: object) -> None:
    assert pkuseg_load(packed(value), "msgpack") == value


# ---- bad input


class Harmful:
    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.call = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


executed: list[str] = []


def harm(what: str = "ran") -> None:
    executed.append(what)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Harmful(harm), "test_pkuseg.harm"),
        ([{"a": Harmful(eval, "1")}], "eval"),
        (re.compile("a"), "re._compile|copyreg|_sre"),
        (complex(1), "complex"),
        ((1, 2), "builtins.tuple"),
        (None, "builtins.NoneType"),
        (b"bytes", "builtins.bytes|_codecs.encode"),
        (frozenset("a"), "builtins.frozenset|__builtin__.frozenset"),
        (np.zeros(2), "numpy"),
    ],
)
def test_a_pickle_with_anything_else_is_refused_by_name_and_not_executed(
    value: object, named: str, protocol: int, directory: Path, tmp_path: Path
) -> None:
    data = pickle.dumps(value, protocol)
    with pytest.raises(ValueError, match=named):
        pkuseg_load(data, "pickle")
    (tmp_path / "features.pkl").write_bytes(data)
    (tmp_path / "weights.npz").write_bytes((directory / "weights.npz").read_bytes())
    with pytest.raises(ValueError, match=r"features|model|dict"):
        _pkuseg.Model.load(tmp_path)
    with pytest.raises(ValueError, match=r"features.pkl"):
        _pkuseg.read_words(tmp_path / "features.pkl")
    assert not executed


@pytest.mark.parametrize(
    ("module", "name", "quoted"),
    [
        (b"\xff", b"\x00\x1b", r"\xff.\x00\x1b"),
        ("中".encode() * 40, b"a", "中" * 34 + ".a"),
        (b"a" * 99 + "中".encode(), b"b", "a" * 99 + "中.b"),
    ],
)
def test_what_a_refused_pickle_asks_for_is_quoted_as_text(module: bytes, name: bytes, quoted: str) -> None:
    with pytest.raises(ValueError, match="the pickle asks for") as error:
        pkuseg_load(b"c" + module + b"\n" + name + b"\n.", "pickle")
    assert type(error.value) is ValueError
    assert f"the pickle asks for {quoted};" in str(error.value)


def test_a_feature_of_a_wrong_number_is_quoted_as_text(model: _pkuseg.Model, directory: Path, tmp_path: Path) -> None:
    files = pkuseg_load((directory / "features.msgpack").read_bytes(), "msgpack")
    files["feature_to_idx"] = {f"\ud800{name}": 0 for name in files["feature_to_idx"]}
    (tmp_path / "features.pkl").write_bytes(pickle.dumps(files))
    (tmp_path / "weights.npz").write_bytes((directory / "weights.npz").read_bytes())
    with pytest.raises(ValueError, match=r"must number its entries .* for '\\xed\\xa0\\x80") as error:
        _pkuseg.Model.load(tmp_path)
    assert type(error.value) is ValueError


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"\x80\x06.",
        b".",
        b"0.",
        b"(.",
        b"]a.",
        b"K\x01a.",
        b"}K\x01s.",
        b"(K\x01u.",
        b"h\x05.",
        b"K\x01r\xff\xff\xff\xff.",  # a memo of 4 G entries
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a string of 2^63 bytes
        b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"X\x02\x00\x00\x00\xff\xfe.",
        b"Vbad \\u12\n.",
        b"cbuiltins\nset\n.",
        b"cbuiltins\nset\nK\x01R.",
        b"cbuiltins\nset\n(K\x01tR.",
        b"K\x01\x85R.",
        b"I1x\n.",
        b"\x8a\x09123456789.",
        b"]q\x00h\x00a.",  # a list in itself
        b"]" * 50 + b"a" * 49 + b".",  # nests too deeply
        b"ios\nsystem\n.",
        b"Pid\n.",
        b"\x82\x01.",
        b"(ccopy\ncopy\no.",
        b"}b.",
    ],
)
def test_a_malformed_pickle_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        pkuseg_load(data, "pickle")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc0",
        b"\xc1",
        b"\xc4\x01a",
        b"\xd4\x01a",
        b"\xdb\xff\xff\xff\xffa",
        b"\xdd\xff\xff\xff\xff",
        b"\x01\x02",
        b"\xdf\xff\xff\xff\xff",
        b"\xa2\xff\xff",
        b"\xcf" + b"\xff" * 8,
        b"\x91" * 40 + b"\x01",
        b"\x81\x90\x01",
    ],
)
def test_a_malformed_message_is_refused(data: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        pkuseg_load(data, "msgpack")


@given(st.binary(max_size=60), st.sampled_from(["pickle", "msgpack"]))
@settings(max_examples=500)
def test_random_bytes_never_do_worse_than_a_value_error(data: bytes, form: str) -> None:
    with suppress(ValueError, TypeError):
        pkuseg_load(data, form)


def test_every_truncation_of_a_model_is_a_value_error(directory: Path, tmp_path: Path) -> None:
    for name in ("features.msgpack", "weights.npz"):
        data = (directory / name).read_bytes()
        for other in ("features.msgpack", "weights.npz"):
            (tmp_path / other).write_bytes((directory / other).read_bytes())
        for length in [0, 1, 10, len(data) // 2, len(data) - 30, len(data) - 1]:
            (tmp_path / name).write_bytes(data[:length])
            with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
                _pkuseg.Model.load(tmp_path)


def test_sizes_that_disagree_are_refused_by_file_and_field(model: _pkuseg.Model, tmp_path: Path) -> None:
    model.save(tmp_path)
    w, n = model.weights, model.n_features

    def refused(match: str, **arrays: Any) -> None:
        np.savez(tmp_path / "weights.npz", **arrays)
        with pytest.raises(ValueError, match=match):
            _pkuseg.Model.load(tmp_path)

    refused(r"weights.npz: w must be", sizes=[5, n], w=w[:-1])
    refused(r"weights.npz: w has .* disagrees", sizes=[5, n - 1], w=w)
    refused("feature_to_idx.* entries, weights.npz has", sizes=[5, n - 1], w=w[5:])
    refused(r"tag_to_idx.* has 5 entries, weights.npz has 4", sizes=[4, n], w=np.zeros(4 * (n + 4)))
    refused("sizes must be 2 integers", sizes=[5.0, n], w=w)
    refused("sizes must be 2 integers", sizes=[5], w=w)
    refused("sizes must be the numbers", sizes=[5, -n], w=w)
    refused("sizes must be the numbers", sizes=[5, 10**9], w=w)
    refused("sizes must be the numbers", sizes=[0, n], w=w)
    refused("w must be .* floats", sizes=[5, n], w=w.astype("S8"))
    refused("w is missing", sizes=[5, n])
    refused("Python objects", sizes=[5, n], w=np.array([None] * len(w)))
    with zipfile.ZipFile(tmp_path / "weights.npz", "w") as archive:
        for name, shape, data in (("sizes", (2,), np.array([5, n])), ("w", (10**12,), w)):
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": shape})
            archive.writestr(f"{name}.npy", header.getvalue() + data.tobytes())
    with pytest.raises(ValueError, match=r"weights.npz: w has"):
        _pkuseg.Model.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"unigram": "abc"}, "'unigram' must be a list or set of str, got str"),
        ({"unigram": [1]}, "'unigram' must hold only str, got int"),
        ({"feature_to_idx": []}, "'feature_to_idx' must be a dict"),
        ({"feature_to_idx": {"$$": "0"}}, "must map str to int"),
        ({"feature_to_idx": {"$$": 0, "c.我": 0}}, "each once"),
        ({"feature_to_idx": {"$$": 0, "c.我": 7}}, "each once"),
        ({"feature_to_idx": {"$$": 0, "c.我": -1}}, "each once"),
        ({"tag_to_idx": {"B": 0}}, "tag_to_idx"),
    ],
)
def test_a_vocabulary_of_other_types_is_refused(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    good = {"unigram": ["我"], "bigram": [], "feature_to_idx": {"$$": 0, "c.我": 1}, "tag_to_idx": {"B": 0, "I": 1}}
    features = {**good, **change}
    np.savez(tmp_path / "weights.npz", sizes=[2, 2], w=np.zeros(8))
    for name, data in (("features.json", json.dumps(features).encode()), ("features.pkl", pickle.dumps(features))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=match):
            _pkuseg.Model.load(tmp_path)
    missing = {key: value for key, value in good.items() if key not in change}
    (tmp_path / "features.msgpack").write_bytes(packed(missing))
    with pytest.raises(ValueError, match=f"'{next(iter(change))}' is missing"):
        _pkuseg.Model.load(tmp_path)


def test_a_missing_model_lists_what_was_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PKUSEG_HOME", str(tmp_path / "home"))
    with pytest.raises(FileNotFoundError, match=re.escape(f"searched {tmp_path / 'home' / 'news'}; nothing is")):
        compat.pkuseg("news")
    with pytest.raises(FileNotFoundError, match=r"searched .*nowhere"):
        compat.pkuseg(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"weights.npz and one of features.msgpack"):
        compat.pkuseg(tmp_path, None)


def test_a_named_model_is_found_where_the_reference_keeps_it(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PKUSEG_HOME", str(tmp_path))
    _pkuseg.Model.load(directory).save(tmp_path / "medicine")
    plain = compat.pkuseg("medicine", None).cut("我爱北京。中国")
    word = "".join(plain[:2])
    (tmp_path / "default.pkl").write_bytes(pickle.dumps("无\n关"))
    (tmp_path / "medicine" / "medicine_dict.pkl").write_bytes(pickle.dumps(word))
    assert compat.pkuseg("medicine").cut("我爱北京。中国") == definition.merge(plain, {word})


@pytest.mark.parametrize("text", [None, b"abc", 1.5, ["a"]])
def test_a_text_must_be_a_str(directory: Path, text: Any) -> None:
    with pytest.raises(TypeError, match=f"txt must be a str, got {type(text).__name__}"):
        compat.pkuseg(directory, None).cut(text)


def test_user_words_of_other_types_are_refused(directory: Path) -> None:
    for words in ([1], [("a", "b", "c")], [("a", 1)], [None]):
        with pytest.raises(TypeError, match="user_dict must have words, or pairs of a word and a tag"):
            compat.pkuseg(directory, words, merge=[])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"rate": 0}, "rate must be positive, got 0"),
        ({"rate": float("nan")}, "rate must be positive"),
        ({"updates": 0}, "updates must be at least 1"),
        ({"upper": 1.5}, r"upper must be in \(0, 1\]"),
        ({"lower": 0.999}, r"lower must be in \(0, upper\]"),
        ({"l2": 0}, "l2 must be positive"),
        ({"orders": [[0, 0]]}, "order must have each of 0 to 1 once"),
        ({"orders": [[0]]}, "order must have each of 0 to 1 once"),
    ],
)
def test_options_of_training_are_checked(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        _pkuseg.train("我 爱\n他", **{"epochs": 1, **options})


def test_an_empty_corpus_is_refused_and_whitespace_in_a_word_too() -> None:
    for text in ("", " \n\u3000\n"):
        with pytest.raises(ValueError, match="corpus must have at least one word"):
            _pkuseg.train(text)
    with pytest.raises(ValueError, match="corpus: words must not have whitespace"):
        _pkuseg.corpus_text([["我 们"]])
    with pytest.raises(ValueError, match="in sentence 1"):
        _pkuseg.corpus_text([["我"], ["们\n"]])


# ---- the model of this package


def own_segmenter() -> Segmenter:
    """All scores 0, so that user words alone decide where to cut."""
    nothing = np.zeros(0, np.uint32)
    component = Component(
        unigram=np.zeros((6, 5, 4), np.float32),
        bigram_keys=nothing,
        bigram=np.zeros((0, 4, 4), np.float32),
        skip_keys=nothing,
        skip=np.zeros((0, 4), np.float32),
        joint=[],
        charmark_keys=[],
        charmark=[],
        transition=np.zeros((4, 4), np.float32),
    )
    return Segmenter.from_weights(Weights({ord("我"): 5}, [], [component], [], None, 1.0, {}))


def test_default_is_the_model_of_this_package_with_user_words_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_segmenter()
    monkeypatch.setattr(Segmenter, "load", lambda name: pickle.loads(pickle.dumps(own)) if name == "default" else None)
    assert compat.pkuseg().cut("我爱北京 天安门") == own.cut("我爱北京 天安门")
    segmenter = compat.pkuseg(user_dict=[("爱北", "v"), " 安 ", "a b", ""])
    for each in (segmenter, pickle.loads(pickle.dumps(segmenter))):
        words = each.cut("我爱北京 天安门")
        assert {"爱北", "安"} <= set(words)
        assert "".join(words) == "我爱北京天安门"
    assert ("爱北", "v") in compat.pkuseg(user_dict=[("爱北", "v")], postag=True).cut("我爱北京")
    assert own.cut("我爱北京") == compat.pkuseg().cut("我爱北京")


# ---- functions of the reference


def test_train_and_test_work_on_files(tmp_path: Path) -> None:
    train, gold, raw, out = (tmp_path / name for name in ("train.txt", "gold.txt", "raw.txt", "out.txt"))
    train.write_text(_pkuseg.corpus_text(CORPUS), "utf-8")
    gold.write_bytes(_pkuseg.corpus_text(CORPUS[:9]).replace("\n", "\r\n").encode())
    raw.write_text("我爱 北京\n\n中国的首都\n", "utf-8")
    report = compat.train(train, gold, tmp_path / "model", 4, seed=3)
    assert report.objective == sorted(report.objective, reverse=True)
    assert 50 < report.f1 <= 100
    segmenter = compat.pkuseg(tmp_path / "model", None)
    for threads in (1, 10):
        compat.test(raw, out, tmp_path / "model", None, threads)
        expected = [" ".join(segmenter.cut(line)) for line in ("我爱 北京", "", "中国的首都")]
        assert out.read_text("utf-8") == "\n".join(expected)
    more = compat.train(train, gold, tmp_path / "more", 1, tmp_path / "model")
    assert more.objective[0] < report.objective[0]
    assert not list(tmp_path.rglob("*.tmp"))


def test_files_that_are_missing_or_not_utf8_are_named(directory: Path, tmp_path: Path) -> None:
    good, bad, empty = (tmp_path / name for name in ("good.txt", "bad.txt", "empty.txt"))
    good.write_text("我 爱", "utf-8")
    bad.write_bytes("我 爱".encode() + b"\xff")
    empty.write_text("\n \n")
    for arguments, error, match in (
        ((tmp_path / "no", good), FileNotFoundError, "trainFile .*no does not exist"),
        ((good, tmp_path / "no"), FileNotFoundError, "testFile .*no does not exist"),
        ((bad, good), ValueError, r"bad.txt: not UTF-8 at byte 7"),
        ((empty, good), ValueError, r"empty.txt: must have at least one word"),
        ((good, empty), ValueError, r"empty.txt: must have at least one word"),
    ):
        with pytest.raises(error, match=match):
            compat.train(*arguments, tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=r"input_file .*no does not exist"):
        compat.test(tmp_path / "no", tmp_path / "out", directory, None)
    with pytest.raises(ValueError, match="nthread must be at least 1, got 0"):
        compat.test(good, tmp_path / "out", directory, None, 0)
    with pytest.raises(ValueError, match=r"bad.txt: not UTF-8 at byte 7"):
        compat.test(bad, tmp_path / "out", directory, None)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "model").exists()
