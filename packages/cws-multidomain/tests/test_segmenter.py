"""What a segmenter does for its users: units, threads, words, granularity, domains, Arrow, copies of itself."""

import multiprocessing
import os
import pickle
import sys
import threading
import time

import numpy as np
import pytest
import synthetic

from cws_multidomain import Offsets, Segmenter, Token

TEXT = "中国人民 大学生👨‍👩‍👧𠮷国\r\n是的在了，和a3.5有\u3000他http://a.cn/x这不们\ufeff到说\n\n要就"


@pytest.fixture(scope="module")
def weights():
    return synthetic.weights(1, domains=2, gate=True, size=0.7)


@pytest.fixture
def segmenter(weights):
    return Segmenter.from_weights(weights, "general")


def reassembled(text: str, offsets: Offsets, row: int, unit: str) -> list[str]:
    coded = {"char": text, "byte": text.encode(), "utf16": text.encode("utf-16-le")}[unit]
    width = 2 if unit == "utf16" else 1
    parts = [coded[width * a : width * b] for a, b in offsets[row]]
    return [p if isinstance(p, str) else p.decode("utf-8" if unit == "byte" else "utf-16-le") for p in parts]


# ---- tokens and offsets


def test_tokens_leave_out_whitespace_and_nothing_else(segmenter):
    tokens = segmenter.cut(TEXT)
    assert "".join(tokens) == "".join(TEXT.split())
    assert not any(any(c.isspace() for c in t) for t in tokens)
    assert "http://a.cn/x" in tokens
    assert any("👨‍👩‍👧" in t for t in tokens)


def test_tokenize_tells_where_each_token_lies(segmenter):
    tokens = segmenter.tokenize(TEXT)
    assert [t.text for t in tokens] == segmenter.cut(TEXT)
    assert all(isinstance(t, Token) and TEXT[t.start : t.end] == t.text and t.pos is None for t in tokens)


@pytest.mark.parametrize("unit", ["char", "byte", "utf16"])
def test_offsets_are_those_of_pythons_encoders(segmenter, unit):
    texts = [TEXT, "", " \n", "𠮷", "a" * 5000 + "中" * 5000]
    offsets = segmenter.offsets(texts, unit)
    assert len(offsets) == len(texts)
    assert (offsets.starts.dtype, offsets.ends.dtype, offsets.row_splits.dtype) == (np.int32, np.int32, np.int64)
    for row, text in enumerate(texts):
        assert reassembled(text, offsets, row, unit) == segmenter.cut(text)


@pytest.mark.parametrize("unit", ["char", "byte", "utf16"])
@pytest.mark.parametrize("end", ["", "\n"])
def test_lines_of_utf8_are_rows(segmenter, unit, end):
    lines = [*TEXT.split("\n"), "", "𠮷国"]
    buffer = ("\n".join(lines) + end).encode()
    for kind in (bytes, bytearray, memoryview):
        assert segmenter.offsets_utf8(kind(buffer), unit) == segmenter.offsets(lines, unit)
    assert len(segmenter.offsets_utf8(b"")) == 0
    assert len(segmenter.offsets_utf8(b"\n\n")) == 2


def test_offsets_behave_like_a_sequence(segmenter):
    offsets = segmenter.offsets(["中国 人", "民"])
    assert offsets[-1] == [(0, 1)]
    assert offsets != segmenter.offsets(["民"])
    with pytest.raises(IndexError, match="row must be from -2 to 1, got 2"):
        offsets[2]


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_the_number_of_threads_changes_nothing(weights, threads):
    segmenter = Segmenter.from_weights(weights)
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice([*synthetic.CHARACTERS, " ", "\n", "a"], n)) for n in rng.integers(0, 900, 2000)]
    one = segmenter.cut_many(texts, threads=1)
    assert segmenter.cut_many(iter(texts), threads=threads) == one
    assert one[:50] == [segmenter.cut(t) for t in texts[:50]]
    assert segmenter.offsets(texts, "byte", threads=threads) == segmenter.offsets(texts, "byte", threads=1)
    buffer = "\n".join(texts).encode()
    assert segmenter.offsets_utf8(buffer, threads=threads) == segmenter.offsets_utf8(buffer, threads=1)


@pytest.mark.parametrize("domain", ["auto", "general", "domain1"])
def test_a_line_break_is_a_wall(weights, domain):
    segmenter = Segmenter.from_weights(weights, domain)
    rng = np.random.default_rng(3)
    for n in (3, 40, 5000):
        a, b = ("".join(rng.choice([*synthetic.CHARACTERS, " "], n)) for _ in range(2))
        assert segmenter.cut(f"{a}\n{b}") == segmenter.cut(a) + segmenter.cut(b)


def test_blocks_do_not_show(weights):
    segmenter = Segmenter.from_weights(weights)
    rng = np.random.default_rng(4)
    words = ["".join(rng.choice(list(synthetic.CHARACTERS), n)) for n in rng.integers(1, 300, 300)]
    line = " ".join(words)  # one line of several blocks
    domain = max(segmenter.gate(line).items(), key=lambda x: x[1])
    plain = segmenter.with_domain(domain[0] if domain[1] >= 0.6 else "general")
    assert segmenter.cut(line) == [t for w in words for t in plain.cut(w)]
    assert segmenter.cut(f"{line}\n{line}\n中国") == segmenter.cut(line) * 2 + segmenter.cut("中国")


def test_three_million_characters_without_punctuation(segmenter):
    part = "中国人民大学生的是在了和有我他这不们到说要就去看好" * 1000
    text = part * 120
    starts, ends = segmenter._core.spans(text)
    assert starts[0] == 0
    assert ends[-1] == len(text) == 3_000_000
    assert (starts[1:] == ends[:-1]).all()
    inner = segmenter.cut(part)
    assert segmenter.cut(text)[: len(inner) - 5] == inner[:-5]


def test_equal_tokens_may_be_the_same_object_but_are_always_right(segmenter):
    rng = np.random.default_rng(5)
    for _ in range(20):
        text = "".join(map(chr, rng.integers(0x3400, 0x9FFF, 3000)))
        assert "".join(segmenter.cut(text)) == text


# ---- Arrow


def test_arrow_strings_are_read_in_place_and_offsets_are_arrow(segmenter):
    pa = pytest.importorskip("pyarrow")
    texts = [TEXT, None, "", "中国人民", "𠮷"]
    expected = segmenter.offsets([t or "" for t in texts], "byte")
    for kind in (pa.string(), pa.large_string()):
        column = pa.array(texts, kind)
        assert segmenter.offsets(column, "byte") == expected
        assert segmenter.offsets(column[2:], "byte")[1] == expected[3]
        chunks = pa.chunked_array([column[:2], column[2:2], column[2:]])
        assert segmenter.offsets(chunks, "byte", threads=2) == expected
        assert segmenter.offsets(pa.chunked_array([], kind)) == segmenter.offsets([])
    back = pa.array(expected)
    fields = [pa.field(name, pa.int32(), nullable=False) for name in ("start", "end")]
    assert back.type == pa.large_list(pa.field("item", pa.struct(fields), nullable=False))
    assert [[(x["start"], x["end"]) for x in row] for row in back.to_pylist()] == [expected[i] for i in range(5)]
    del expected
    back.validate(full=True)


def test_arrow_arrays_of_another_type_are_refused(segmenter):
    pa = pytest.importorskip("pyarrow")
    with pytest.raises(TypeError, match="texts must be an Arrow array of string or large_string"):
        segmenter.offsets(pa.array([1, 2]))
    with pytest.raises(TypeError, match=r'got the format "tss:\\xff\\x0a中"; cast it first'):
        segmenter.offsets(pa.array([], pa.timestamp("s", tz=b"\xff\n" + "中".encode())))


def test_an_arrow_export_that_nobody_takes_is_freed(segmenter):
    offsets = segmenter.offsets(["中国人民"] * 100)
    before = sys.getrefcount(offsets)
    for _ in range(100):
        offsets.__arrow_c_array__()
        offsets.__arrow_c_schema__()
    assert sys.getrefcount(offsets) == before


# ---- words of the user


def test_forced_words_are_leftmost_and_longest(segmenter):
    segmenter.add_words({"国人": "force", "国人民": "force", "民大": "force", "学": "force"})
    tokens = segmenter.cut("中国人民大学生")
    assert tokens[0] == "中"
    assert tokens[1] == "国人民"
    assert "民大" not in tokens
    assert "学" in tokens


def test_the_sentence_on_which_pkusegs_trie_fails(segmenter):
    segmenter.add_words({"大学": "force", "学生的是": "force"})
    assert segmenter.cut("中大学生在") == ["中", "大学", *segmenter.cut("生在")]


def test_the_last_call_wins_and_nothing_forgets(segmenter):
    plain = segmenter.cut("中国人民大学生")
    segmenter.add_words({"国人民": "force"})
    segmenter.add_words({"国人民": "forbid"})
    assert "国人民" not in segmenter.cut("中国人民大学生")
    assert segmenter.words == {"国人民": "forbid"}
    segmenter.add_words({"国人民": 0.0})
    assert segmenter.cut("中国人民大学生") == plain
    assert segmenter.words == {}


def test_words_without_costs_get_the_default(segmenter, tmp_path):
    segmenter.add_words(["国人民", "民大"])
    assert segmenter.words == {"国人民": -4.0, "民大": -4.0}
    path = tmp_path / "words.txt"
    path.write_text("\ufeff学生\n\n大学\t120\n民大学 3 n\n中国 nr\n", encoding="utf-8")
    segmenter.add_words(path)
    assert set(segmenter.words) == {"国人民", "民大", "学生", "大学", "民大学", "中国"}


def test_words_match_full_width_forms_but_not_other_digits(segmenter):
    plain = segmenter.cut("中6国人")
    segmenter.add_words({"5国": "force"})
    assert segmenter.cut("中５国人")[1] == "５国"
    assert segmenter.cut("中6国人") == plain


def test_words_do_not_break_what_a_rule_joins(segmenter):
    segmenter.add_words({"ai": "force", "国": "force"})
    tokens = segmenter.cut("中email国\u0301人")
    assert any("email" in t for t in tokens)
    assert any("国\u0301" in t for t in tokens)
    segmenter.rules = []
    assert "ai" in segmenter.cut("中email国\u0301人")


def test_a_single_character_may_have_a_cost(segmenter):
    text = "中国人民大学生的是在了和有我他"
    segmenter.add_words(dict.fromkeys(text, 50.0))
    assert all(len(t) > 1 for t in segmenter.cut(text))
    segmenter.add_words(dict.fromkeys(text, -50.0))
    assert segmenter.cut(text) == list(text)


def test_a_forbidden_word_that_rules_make_the_only_choice_stays(segmenter):
    segmenter.add_words({"abc": "forbid"})
    assert segmenter.cut("abc") == ["abc"]
    assert segmenter.probabilities("abc").tolist() == [1, 0, 0]


def test_a_million_words_of_all_kinds(segmenter):
    rng = np.random.default_rng(0)
    letters = np.array(list(synthetic.CHARACTERS))
    many = {
        "".join(row[:n])
        for row, n in zip(rng.choice(letters, (1_000_000, 9)), rng.integers(2, 10, 1_000_000), strict=True)
    }
    words = {w: float(c) for w, c in zip(sorted(many), rng.normal(size=len(many)) * 3, strict=True)}
    plain = segmenter.with_domain("general")
    segmenter.add_words(words)
    assert len(segmenter.words) == len(words)
    text = "".join(rng.choice(letters, 30))
    kept = {text[i:j] for i in range(30) for j in range(i + 1, 31)} & set(words)
    plain.add_words({w: words[w] for w in kept})
    assert segmenter.nbest(text, 5) == plain.nbest(text, 5)
    assert segmenter.cut(text) == plain.cut(text)


def test_calls_that_run_keep_the_words_they_began_with(weights):
    segmenter = Segmenter.from_weights(weights, "general")
    texts = ["中国人民大学生的是在了和有我他" * 20] * 400
    before = segmenter.cut(texts[0])
    other = segmenter.with_domain("general")
    other.add_words({"国人民": "force"})
    after = other.cut(texts[0])
    assert before != after
    results: list[list[list[str]]] = []
    thread = threading.Thread(target=lambda: results.extend(segmenter.cut_many(texts, threads=2) for _ in range(5)))
    thread.start()
    time.sleep(0.01)
    segmenter.add_words({"国人民": "force"})
    thread.join()
    for result in results:
        assert result in ([before] * 400, [after] * 400)
    assert segmenter.cut(texts[0]) == after


# ---- granularity


def granular(lexicon):
    made = synthetic.weights(0, size=0.01)
    made.lexicons = [[(w, 1) for w in lexicon]]
    return Segmenter.from_weights(made, "general")


def test_fine_splits_long_tokens_into_words_of_the_dictionary():
    segmenter = granular(["中国", "人民", "大学", "学生", "中国人民", "中国人", "民大学", "的是在"])
    segmenter.add_words({"中国人民大学": "force", "大学生的": "force", "的是在了": "force", "和有我他": "force"})
    assert segmenter.cut("中国人民大学") == ["中国人民大学"]
    segmenter.granularity = "fine"
    assert segmenter.cut("中国人民大学") == ["中国人", "民大学"]
    assert segmenter.cut("的是在了") == ["的是在", "了"]
    assert segmenter.cut("和有我他") == ["和有我他"]
    assert segmenter.cut("大学生") == segmenter.with_model(segmenter).cut("大学生")


def test_search_adds_the_words_inside_as_jieba_does():
    segmenter = granular(["中国", "国人", "人民", "人民大", "学生"])
    segmenter.add_words({"中国人民大": "force", "学生": "force", "生的是": "force"})
    segmenter.granularity = "search"
    assert segmenter.cut("中国人民大学生") == ["中国", "国人", "人民", "人民大", "中国人民大", "学生"]
    offsets = segmenter.offsets(["中国人民大学生"])[0]
    assert offsets == [(0, 2), (1, 3), (2, 4), (2, 5), (0, 5), (5, 7)]


@pytest.mark.parametrize("granularity", ["coarse", "fine", "search"])
def test_no_granularity_cuts_a_run_or_a_cluster(granularity):
    segmenter = granular(["AA", "11", "中国", "国人"])
    segmenter.granularity = granularity
    assert segmenter.cut("ABCDE") == ["ABCDE"]
    assert segmenter.cut("12345") == ["12345"]
    assert segmenter.granularity == granularity


def test_fine_is_contained_in_coarse(segmenter):
    rng = np.random.default_rng(0)
    fine = segmenter.with_domain("general")
    fine.granularity = "fine"
    for _ in range(50):
        text = "".join(rng.choice([*synthetic.CHARACTERS, "a", " "], 60))
        inner = {t.start for t in fine.tokenize(text)}
        assert {t.start for t in segmenter.tokenize(text)} <= inner
        assert "".join(fine.cut(text)) == text.replace(" ", "")


# ---- domains


def test_a_mixture_of_one_domain_is_that_domain(weights):
    text = "中国人民大学生的是在了和有我他这不们到说要就去看好" * 4
    cuts = {d: Segmenter.from_weights(weights, d).cut(text) for d in ("general", "domain1", "domain2")}
    assert len({tuple(c) for c in cuts.values()}) == 3
    assert Segmenter.from_weights(weights, {"domain1": 5}).cut(text) == cuts["domain1"]
    assert Segmenter.from_weights(weights, {"general": 1}).cut(text) == cuts["general"]
    assert Segmenter.from_weights(weights, {"domain1": 0, "domain2": 0.1}).cut(text) == cuts["domain2"]


def test_auto_is_the_domain_that_the_gate_names(weights):
    segmenter = Segmenter.from_weights(weights)
    assert segmenter.domain == "auto"
    assert segmenter.domains == ("general", "domain1", "domain2")
    seen = set()
    for text in ("中国人民大学", "的是在了", "和有我他", "到说要就", "看好去", "学生不们"):
        best, p = max(segmenter.gate(text).items(), key=lambda x: x[1])
        name = best if p >= 0.6 else "general"
        seen.add(name)
        assert segmenter.cut(text * 9) == segmenter.with_domain(name).cut(text * 9) or p < 0.9
    assert sum(segmenter.gate("中国").values()) == pytest.approx(1)


def test_a_model_without_gate_is_general():
    segmenter = Segmenter.from_weights(synthetic.weights(0))
    assert segmenter.gate("中国") == {}
    assert segmenter.cut("中国人民") == segmenter.with_domain("general").cut("中国人民")


# ---- copies, processes, threads


def test_a_copy_by_pickle_or_by_file_cuts_alike(weights, tmp_path):
    segmenter = Segmenter.from_weights(weights, {"domain1": 1, "domain2": 2})
    segmenter.add_words({"国人民": "force", "民大": -2.5, "大学": "forbid"})
    segmenter.granularity = "fine"
    segmenter.rules = {"latin"}
    copy = pickle.loads(pickle.dumps(segmenter))
    assert (copy.words, copy.granularity, copy.rules, copy.domain) == (
        segmenter.words,
        "fine",
        {"latin"},
        segmenter.domain,
    )
    assert copy.cut(TEXT) == segmenter.cut(TEXT)
    segmenter.save(tmp_path / "model.cws")
    loaded = Segmenter.load(tmp_path / "model.cws")
    assert loaded.cut(TEXT) == Segmenter.from_weights(weights).cut(TEXT)
    assert pickle.dumps(loaded) == pickle.dumps(Segmenter.load(str(tmp_path / "model.cws")))


def test_words_of_a_view_are_its_own(segmenter):
    segmenter.add_words({"国人民": "force"})
    view = segmenter.with_domain("domain1")
    assert view.words == {"国人民": "force"}
    view.add_words({"民大": "force"})
    assert segmenter.words == {"国人民": "force"}
    segmenter.add_words({"大学": -1.0})
    assert set(view.words) == {"国人民", "民大"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_its_threads(segmenter):
    texts = [TEXT * 50] * 50
    expected = segmenter.cut_many(texts, threads=2)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(segmenter.cut_many, [(texts, 2)] * 2) == [expected] * 2


def test_many_threads_share_a_segmenter(weights):
    segmenter = Segmenter.from_weights(weights)
    text = TEXT * 100
    expected = [segmenter.cut(text), segmenter.nbest(TEXT, 3), segmenter.probabilities(text).tolist()]
    wrong = []

    def work():
        for _ in range(10):
            found = [segmenter.cut(text), segmenter.nbest(TEXT, 3), segmenter.probabilities(text).tolist()]
            wrong.extend([found] if found != expected else [])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


# ---- n-best, probabilities, information


def test_the_best_of_n_is_the_cut_and_probabilities_agree(segmenter):
    text = "中国人 民大学"
    everything = segmenter.nbest(text, 10**6)
    assert everything[0][0] == segmenter.cut(text)
    scores = [p for _, p in everything]
    assert scores == sorted(scores, reverse=True)
    assert len({tuple(t) for t, _ in everything}) == len(everything) == 2**2 * 2**2
    assert np.exp(scores).sum() == pytest.approx(1, abs=1e-6)
    starts = np.zeros(len(text))
    for tokens, p in everything:
        at = 0
        for token in tokens:
            at = text.index(token, at)
            starts[at] += np.exp(p)
            at += len(token)
    assert segmenter.probabilities(text) == pytest.approx(starts, abs=1e-6)
    assert segmenter.nbest("", 3) == [([], 0.0)]
    assert segmenter.probabilities(" ").tolist() == [0]


def test_a_high_temperature_makes_probabilities_even(segmenter):
    text = "中国人民大学生"
    assert segmenter.probabilities(text, temperature=1e6)[1:] == pytest.approx(0.5, abs=1e-3)
    cold = segmenter.probabilities(text, temperature=1e-3)
    assert set(cold.tolist()) <= {0.0, 1.0}


def test_explanations_name_features_and_domains(weights):
    segmenter = Segmenter.from_weights(weights, "domain1")
    first = segmenter.explain("中国")[0]
    assert first.character == "中"
    names = [name for name, _, _ in first.fired]
    assert "c[+0]=中" in names
    assert "c[-1]=|" in names
    assert {domain for _, domain, _ in first.fired} == {"shared", "domain1"}
    assert first.margin > 0


def test_rules_can_be_switched_off_one_by_one(segmenter):
    assert segmenter.rules == {"grapheme", "latin", "number", "url", "email"}
    segmenter.rules = {"latin"}
    assert segmenter.rules == {"latin"}
    segmenter.rules = ()
    assert segmenter.rules == frozenset()


def test_the_model_tells_what_it_is(segmenter, weights):
    info = segmenter.info
    assert info["name"] == "synthetic"
    assert info["domains"] == ["general", "domain1", "domain2"]
    assert info["gate"] is True
    assert info["sizes"]["bytes"] == len(segmenter._model.data)
    assert dict(weights.lexicons[0]) == segmenter.dictionary()
    assert "domain1" in repr(segmenter)
