"""Corpora: every format, its detection, bad files, arguments of any shape, preparation, recipes."""

from __future__ import annotations

import bz2
import doctest
import gzip
import importlib
import lzma
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cws_multidomain.corpus import FORMATS, Partial, Sentence, by_domain, read_corpus, recipe
from cws_multidomain.preparation import (
    alternate_blocks,
    collapse_runs,
    convert,
    expand_runs,
    leakage,
    replace_words,
    without_duplicates,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONLLU = """\
# sent_id = 1
# text = 我去New York了
1\t我\t我\tPRON\tPRP\t_\t0\troot\t_\tSpaceAfter=No
2\t去\t去\tVERB\tVV\t_\t1\tx\t_\tSpaceAfter=No
3\tNew\tNew\tX\tFW\t_\t1\tx\t_\t_
4\tYork\tYork\tX\tFW\t_\t1\tx\t_\tSpaceAfter=No
5\t了\t了\tPART\tAS\t_\t1\tx\t_\tSpaceAfter=No

# sent_id = 2
1-2\t别的\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No
1\t别\t别\tDET\tDT\t_\t0\troot\t_\t_
2\t的\t的\tPART\tDEC\t_\t1\tx\t_\t_
2.1\t空\t空\tX\tX\t_\t1\tx\t_\t_
3\t人\t人\tNOUN\tNN\t_\t1\tx\t_\t_
"""
CONLLX = """\
1\t看似\t_\tVERB\tVV\t_\t2\tcop\t_\t_
2\t简单\t_\tADJ\tJJ\t_\t0\troot\t_\t_

1\t好\t_\tADJ\tJJ\t_\t0\troot\t_\t_"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(content: str | bytes, name: str = "corpus.txt") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def words(sentences: list[Any]) -> list[list[str]]:
    return [list(sentence) for sentence in sentences]


@pytest.mark.parametrize("module", ["corpus", "evaluation", "preparation", "_sentence"])
def test_examples_in_the_documentation_run(module: str) -> None:
    assert doctest.testmod(importlib.import_module(f"cws_multidomain.{module}")).failed == 0


# Formats


@pytest.mark.parametrize(
    "content",
    [
        "我们 爱 北京\n\n你  好 。\n",
        "我们\u3000爱\u3000北京\u3000\r\n\r\n你\u3000好\u3000。\r\n",
        "\ufeff我们 爱 北京\n你 好 。",
        " 我们\t爱\u00a0北京 \n   \n你 好 。 \n\n",
    ],
)
@pytest.mark.parametrize("format", ["auto", "words"])
def test_words_between_any_white_space_are_read(write: Callable[..., Path], content: str, format: str) -> None:
    assert words(read_corpus(write(content), format)) == [["我们", "爱", "北京"], ["你", "好", "。"]]


@pytest.mark.parametrize(("pack", "suffix"), [(lzma.compress, "xz"), (gzip.compress, "gz"), (bz2.compress, "bz2")])
def test_compressed_files_are_read(write: Callable[..., Path], pack: Callable[..., bytes], suffix: str) -> None:
    packed = pack("\ufeff我们 爱\r\n".encode())
    assert words(read_corpus(write(packed, f"a.txt.{suffix}"))) == [["我们", "爱"]]
    with pytest.raises(ValueError, match=rf"b\.txt\.{suffix}: line 1: the compressed file is damaged"):
        read_corpus(write(packed[:-9], f"b.txt.{suffix}"), "words")
    with pytest.raises(ValueError, match="damaged"):
        read_corpus(write("我们 爱\n", f"c.txt.{suffix}"))


@pytest.mark.parametrize(
    ("format", "content"),
    [
        ("word_POS", "我们_PN a_b_NN __PU ......_PU\n\n好_VA\n"),
        ("word/POS", "我们/PN a_b/NN _/PU ....../PU\n\n好/VA\n"),
        ("word_POS", "<S ID=1>\n我们_PN a_b_NN __PU ......_PU\n</S>\n好_VA\n"),
    ],
)
def test_tags_are_read(write: Callable[..., Path], format: str, content: str) -> None:
    for asked in (format, "auto"):
        first, second = read_corpus(write(content), asked)
        assert (first.words, first.xpos) == (("我们", "a_b", "_", "......"), ("PN", "NN", "PU", "PU"))
        assert (second.words, second.xpos, second.upos) == (("好",), ("VA",), None)


def test_compounds_of_the_peoples_daily_are_read_as_their_words(write: Callable[..., Path]) -> None:
    (sentence,) = read_corpus(write("19980101-01-001-001/m [中央/n 人民/n 电台/n]nt [/w １/m //w 好/a ]/w\n"))
    assert sentence.words == ("19980101-01-001-001", "中央", "人民", "电台", "[", "１", "/", "好", "]")
    assert sentence.xpos == ("m", "n", "n", "n", "w", "m", "w", "a", "w")


@pytest.mark.parametrize("format", ["auto", "conllu"])
def test_conllu_gives_tokens_tags_and_spaces(write: Callable[..., Path], format: str) -> None:
    first, second = read_corpus(write(CONLLU), format)
    assert first.text == "我去New York了"
    assert first.xpos == ("PRP", "VV", "FW", "FW", "AS")
    assert first.upos == ("PRON", "VERB", "X", "X", "PART")
    assert second.words == ("别的", "人")
    assert second.xpos == ("DT+DEC", "NN")
    assert second.upos == ("DET+PART", "NOUN")


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n\r\n"])
def test_conllx_has_no_spaces_and_needs_no_last_blank_line(write: Callable[..., Path], end: str) -> None:
    first, second = read_corpus(write(CONLLX + end))
    assert (first.words, first.xpos, first.upos, first.spaces) == (
        ("看似", "简单"),
        ("VV", "JJ"),
        ("VERB", "ADJ"),
        None,
    )
    assert second.words == ("好",)


@pytest.mark.parametrize("format", ["auto", "partial"])
def test_partial_annotation_is_read(write: Callable[..., Path], format: str) -> None:
    first, second, third, fourth = read_corpus(write("我-们|爱 北-京\n\n好\n\\--\\||a\n你 好\r\n"), format)
    assert first == Partial("我们爱北京", (False, True, None, False))
    assert first.known == 3
    assert second == Partial("好", ())
    assert third == Partial("-|a", (False, True))
    assert fourth == Partial("你好", (None,))
    assert fourth.known == 0


def test_trees_are_read_without_their_traces(write: Callable[..., Path]) -> None:
    tree = (
        "<DOC>\n<S ID=1>\n( (IP-HLN (NP-SBJ (-NONE- *pro*)\n (NN 上海)) (VP (VV 开发)\n (PU （) (NN a-b))))\n</S>\n"
        "((FRAG (NR 新华社) (PU -LRB-)))((NN 好))\n</DOC>\n"
    )
    for format in ("auto", "brackets"):
        first, second, third = read_corpus(write(tree), format)
        assert (first.words, first.xpos) == (("上海", "开发", "（", "a-b"), ("NN", "VV", "PU", "NN"))
        assert (second.words, third.words) == (("新华社", "("), ("好",))
    deep = "(" + "(A " * 50_000 + "好" + ")" * 50_001
    assert words(read_corpus(write(deep), "brackets")) == [["好"]]


def test_brackets_between_words_are_no_trees(write: Callable[..., Path]) -> None:
    assert words(read_corpus(write("( ABC ) 是 公司\n( 一 )\n"))) == [["(", "ABC", ")", "是", "公司"], ["(", "一", ")"]]
    assert words(read_corpus(write("a - b\n一 | 二\n"))) == [["a", "-", "b"], ["一", "|", "二"]]
    assert words(read_corpus(write("http://a_B 是\n"))) == [["http://a_B", "是"]]


def test_lines_of_one_word_are_words_but_raw_text_is_not(write: Callable[..., Path]) -> None:
    assert words(read_corpus(write("北京\n天安门广场\n"))) == [["北京"], ["天安门广场"]]
    assert words(read_corpus(write("好" * 21), "words")) == [["好" * 21]]


def test_other_encodings_are_read(write: Callable[..., Path]) -> None:
    assert words(read_corpus(write("我们 爱\n".encode("gb18030")), encoding="gb18030")) == [["我们", "爱"]]
    for encoding in ("utf-16", "no such"):
        with pytest.raises(ValueError, match=f"encoding must be one .* got '{encoding}'"):
            read_corpus(write("我们 爱\n"), encoding=encoding)


# Bad files


@pytest.mark.parametrize(
    ("format", "content", "message"),
    [
        ("word_POS", "好_VA\n坏\n", "line 2: '坏' must be a word, '_' and a tag"),
        ("word_POS", "_VA\n", "line 1: '_VA' must be"),
        ("word/POS", "好/\n", "line 1: '好/' must be"),
        ("conllu", "1\t好\n", "line 1 must have 8 to 10 columns between tabs, got 2"),
        ("conllu", CONLLX.replace("2\t简", "3\t简"), "line 2: ID must continue after 1, got 3"),
        ("conllu", CONLLX.replace("\n\n", "\n"), "line 3: ID must continue after 2, got 1"),
        ("conllu", CONLLX.replace("2\t简", "x\t简"), "line 2: ID must be a number, a range or a decimal, got 'x'"),
        ("conllu", CONLLX.replace("2\t简", "2" * 99 + "\t简"), "line 2: ID must be"),
        ("conllu", CONLLX.replace("简单", ""), "line 2: FORM must not be empty"),
        (
            "conllu",
            CONLLU.replace("3\t人", "\n1\t人").replace("1-2", "1-3"),
            "line 14: the sentence must go on to word 3",
        ),
        ("conllu", CONLLU.replace("1-2", "2-1"), "line 10: ID must continue after 0, got 2-1"),
        ("partial", "我-们\n我们\n", "line 2 must be characters, none of them white space"),
        ("partial", "我-们|\n", "line 1 must be characters"),
        ("partial", "我-们\n我| |们\n", "line 2 must be characters"),
        ("partial", "我-\\", "line 1 must be|"),
        ("brackets", "(IP (NN 好)))\n", "line 1: a bracket closes that was never opened"),
        ("brackets", "(IP (NN 好)\n", "line 1: the file ends inside of 1 open brackets"),
        ("brackets", "((NN 好 坏))\n", "line 1: '坏' must have a label before it"),
        ("auto", "\n \n", "must have at least one line that is not empty"),
        (
            "auto",
            "我们爱北京\n" * 5 + "好" * 21,
            "must be segmented, but none of its lines has several words, and one has 21",
        ),
        ("auto", "a\0 b\n", "must be a text file, got NUL bytes"),
    ],
)
def test_bad_files_are_refused_by_name_line_and_rule(
    write: Callable[..., Path], format: str, content: str, message: str
) -> None:
    path = write(content)
    if message.endswith("|"):  # a last backslash means itself
        assert read_corpus(path, format) == [Partial("我\\", (False,))]
        return
    with pytest.raises(ValueError, match=f"^{path}") as error:
        read_corpus(path, format)
    assert message in str(error.value)


def test_invalid_utf8_is_refused_with_its_byte_offset_or_replaced(write: Callable[..., Path]) -> None:
    for mark in (b"", b"\xef\xbb\xbf"):
        content = mark + "好 的\n你 ".encode() + b"\xff" + " 好\n".encode()
        path = write(content)
        with pytest.raises(ValueError, match=f"line 2: invalid utf-8 at byte offset {content.index(0xFF, 3)} "):
            read_corpus(path)
        assert words(read_corpus(path, errors="replace")) == [["好", "的"], ["你", "\ufffd", "好"]]
    with pytest.raises(ValueError, match="errors must be strict or replace, got 'ignore'"):
        read_corpus(path, errors="ignore")


def test_missing_files_folders_and_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_corpus(tmp_path / "none")
    with pytest.raises(ValueError, match="must be a file, got a folder"):
        read_corpus(tmp_path)
    with pytest.raises(ValueError, match=r"format must be one of auto, words, .* got 'xml'"):
        read_corpus(tmp_path, "xml")


@given(st.binary(max_size=200), st.sampled_from(FORMATS))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused_with_the_files_name(
    write: Callable[..., Path], data: bytes, format: str
) -> None:
    path = write(data)
    try:
        sentences = read_corpus(path, format)
    except ValueError as error:
        assert str(error).startswith(str(path))  # noqa: PT017
    else:
        assert all(sentence.text for sentence in sentences)


@given(st.lists(st.tuples(st.characters(exclude_categories=["Zs", "Zl", "Zp", "Cc", "Cs"]), st.sampled_from("|- "))))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_partial_annotation_survives_writing_and_reading(
    write: Callable[..., Path], pairs: list[tuple[str, str]]
) -> None:
    line = "".join((f"\\{c}" if c in "\\|-" else c) + gap for c, gap in pairs)[:-1]
    sentences = read_corpus(write(line + "\n"), "partial")
    gaps = {"|": True, "-": False, " ": None}
    expected = [Partial("".join(c for c, _ in pairs), tuple(gaps[gap] for _, gap in pairs[:-1]))] if pairs else []
    assert sentences == expected


# Sentences and corpora as arguments


def test_a_sentence_is_a_sequence_that_compares_hashes_and_pickles() -> None:
    sentence = Sentence(["我们", "爱"], xpos=["PN", "VV"], spaces=[True, True])
    assert list(sentence) == ["我们", "爱"]
    assert (sentence[1], sentence[:1], len(sentence), "爱" in sentence) == ("爱", ("我们",), 2, True)
    assert sentence.text == "我们 爱"
    assert {pickle.loads(pickle.dumps(sentence)): 1}[sentence] == 1
    assert sentence != Sentence(["我们", "爱"])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Sentence("我们"), TypeError, "words must be a sequence of words, got the string '我们'"),
        (lambda: Sentence(["我", 1]), TypeError, "words must be strings, got int at index 1"),
        (lambda: Sentence(["我"], xpos=[]), ValueError, "xpos must have one entry for each of the 1 words, got 0"),
        (lambda: Sentence(["我"], spaces=[True] * 2), ValueError, "spaces must have one entry"),
        (lambda: Partial("我们", ()), ValueError, "boundaries must be one less than the 2 characters, got 0"),
        (lambda: Partial("我 ", (None,)), ValueError, "text must have no white space, got '我 '"),
    ],
)
def test_bad_sentences_are_refused(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_corpus_may_be_a_path_lists_of_words_or_a_dict_of_them(write: Callable[..., Path]) -> None:
    path = write("我们 爱\n")
    for corpus in (path, str(path), [["我们", "爱"]], iter([("我们", "爱")]), [Sentence(["我们", "爱"])]):
        assert by_domain(corpus) == {None: [Sentence(["我们", "爱"])]}
    partial = Partial("我们", (False,))
    assert by_domain({"a": path, "b": [partial, []]}) == {"a": [Sentence(["我们", "爱"])], "b": [partial]}


def test_white_space_inside_words_splits_them_with_their_tags() -> None:
    given = Sentence([" 3 000", "", "人", "\u3000"], xpos=["CD", "X", "NN", "Y"], spaces=[False, False, True, False])
    ((sentence,),) = by_domain([given]).values()
    assert sentence == Sentence(["3", "000", "人"], xpos=["CD", "CD", "NN"], spaces=[True, False, True])


@pytest.mark.parametrize(
    ("corpus", "error", "message"),
    [
        ([], ValueError, "train must have at least one sentence, got none"),
        ([["", " "]], ValueError, "train must have at least one sentence"),
        ({}, ValueError, "train must have at least one domain, got an empty dict"),
        ({"a": []}, ValueError, "domain 'a' of train must have at least one sentence"),
        ({"": [["我"]]}, ValueError, "train must have non-empty strings as domains, got ''"),
        ({"a": {"b": []}}, TypeError, "domain 'a' of train must be a path or an iterable of sentences, got a dict"),
        (["我们"], TypeError, "train must hold lists of words, got str at index 0; split the text first"),
        ([["我"], 3], TypeError, "train must hold lists of words, got int at index 1"),
        ([["我", None]], TypeError, "train: sentence 0: words must be strings, got NoneType at index 1"),
        (None, TypeError, "train must be a path, an iterable of lists of words or a dict, got NoneType"),
    ],
)
def test_bad_corpora_are_refused(corpus: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        by_domain(corpus, "train")


# Preparation


@given(st.lists(st.text("12３Aｂ中，.é", min_size=1, max_size=4), max_size=8))
def test_collapsed_runs_expand_to_the_text(sentence: list[str]) -> None:
    text = "".join(sentence)
    collapsed = collapse_runs(sentence)
    expanded = expand_runs(collapsed, text)
    assert "".join(expanded) == text
    assert len(expanded) == len(collapsed)
    assert collapse_runs(expanded) == collapsed
    ends = {len("".join(sentence[: i + 1])) for i in range(len(sentence))}
    assert all(len("".join(expanded[: i + 1])) in ends for i in range(len(expanded)))


def test_expansion_refuses_words_of_another_text() -> None:
    with pytest.raises(ValueError, match="words must have the 2 characters of the collapsed text, got 3"):
        expand_runs(["0年的"], "1998年")


def test_conversion_keeps_boundaries_tags_and_context() -> None:
    sentence = Sentence(["頭髮", "發"], xpos=["NN", "VV"])
    assert convert([sentence], lambda text: text.replace("髮發", "发发")) == [
        Sentence(["頭发", "发"], xpos=["NN", "VV"])
    ]
    assert convert([["ﬁ", "a"]], str.upper) == [Sentence(["FI", "A"])]
    assert replace_words([sentence], {"發": "发"})[0] == Sentence(["頭髮", "发"], xpos=["NN", "VV"])


def test_alternate_blocks_part_a_treebank_in_halves() -> None:
    even, odd = alternate_blocks(list(range(25)))
    assert even == [*range(10), *range(20, 25)]
    assert odd == list(range(10, 20))
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        alternate_blocks([], 0)


def test_leakage_counts_sentences_and_ngrams() -> None:
    train = [["1998年", "的", "ABC"], ["完全", "不同", "的", "句子"]]
    test = [["２００５", "年的", "X"], ["完全不同", "的句子"], ["开头", "完全不同", "的句"], ["别的"]]
    report = leakage(train, test, n=4)
    assert (report.sentences, report.exact, report.collapsed) == (4, 1, 2)
    assert report.examples == ("２００５年的X", "完全不同的句子")
    assert (report.long_sentences, report.overlapping) == (3, 3)
    assert (report.ngrams, report.shared_ngrams) == (1 + 4 + 5, 1 + 4 + 3)
    assert "1 of 4 test sentences are in the training set, 2 once" in str(report)
    assert words(without_duplicates(train, test)) == []
    assert words(without_duplicates(train, test[:1], test[3:])) == [["完全", "不同", "的", "句子"]]
    assert leakage(train, [["短"]]).ngrams == 0
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        leakage(train, test, 0)


@given(
    st.lists(st.text("甲乙", min_size=1, max_size=9), min_size=1, max_size=5),
    st.lists(st.text("甲乙", min_size=1, max_size=9), min_size=1, max_size=5),
    st.integers(1, 5),
)
def test_shared_ngrams_are_those_of_a_plain_count(train: list[str], test: list[str], n: int) -> None:
    def ngrams(texts: list[str]) -> list[str]:
        return [text[i : i + n] for text in texts for i in range(len(text) - n + 1)]

    report = leakage([[text] for text in train], [[text] for text in test], n)
    seen = set(ngrams(train))
    assert report.ngrams == len(ngrams(test))
    assert report.shared_ngrams == sum(ngram in seen for ngram in ngrams(test))
    assert report.overlapping == sum(any(ngram in seen for ngram in ngrams([text])) for text in test)


# Recipes


@pytest.mark.parametrize("below", ["", "icwb2-data/"])
@pytest.mark.parametrize("name", ["msr", "pku"])
def test_bakeoff_recipes_read_the_users_copy(write: Callable[..., Path], tmp_path: Path, name: str, below: str) -> None:
    write("\ufeff人们　常　说\r\n", f"{below}training/{name}_training.utf8")
    write(lzma.compress("扬帆  远东\r\n".encode()), f"{below}gold/{name}_test_gold.utf8.xz")
    write("扬帆远东\r\n", f"{below}testing/{name}_test.utf8")
    assert recipe(name, tmp_path) == {name: [Sentence(["人们", "常", "说"])]}
    assert recipe(name, tmp_path, "test") == {name: [Sentence(["扬帆", "远东"])]}
    with pytest.raises(ValueError, match=f"part must be train or test for recipe {name}, got 'dev'"):
        recipe(name, tmp_path, "dev")


def test_the_weibo_recipe_reads_the_users_copy(write: Callable[..., Path], tmp_path: Path) -> None:
    write("转发  微博\n", "datasets/nlpcc2016-word-seg-train.dat")
    write("赞\n", "datasets/nlpcc2016-wordseg-dev.dat")
    assert recipe("weibo", tmp_path) == {"weibo": [Sentence(["转发", "微博"])]}
    assert recipe("weibo", tmp_path, "dev") == {"weibo": [Sentence(["赞"])]}
    with pytest.raises(FileNotFoundError, match=r"recipe weibo: .* has no nlpcc2016-wordseg-test\.dat or"):
        recipe("weibo", tmp_path, "test")


def test_the_treebank_recipe_splits_by_file_number(write: Callable[..., Path], tmp_path: Path) -> None:
    for number in (1, 271, 301, 325, 326, 1151):
        tree = f"<S ID=1>\n((IP (NN 第{number}) (PU 。)))\n</S>\n"
        write(tree.encode("gb18030" if number == 1 else "utf-8"), f"data/bracketed/chtb_{number:04}.fid")
        write("不_AD 用_VV\n", f"data/postagged/chtb_{number:04}.pos")
    parts = {part: [s.words[0] for s in recipe("ctb", tmp_path, part)["ctb"]] for part in ("train", "dev", "test")}
    assert parts == {"train": ["第1", "第326", "第1151"], "dev": ["第301", "第325"], "test": ["第271"]}


def test_the_treebank_recipe_takes_tagged_files_too(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write("我_PN 爱_VV\n", "ctb_train.txt")
    assert recipe("ctb", tmp_path)["ctb"][0].xpos == ("PN", "VV")
    with pytest.raises(FileNotFoundError, match=r"has no ctb_test\.txt or files chtb_\*"):
        recipe("ctb", tmp_path, "test")
    path.unlink()
    write("我_PN 爱_VV\n", "chtb_0005.pos")
    assert recipe("ctb", tmp_path)["ctb"][0].words == ("我", "爱")
    with pytest.raises(FileNotFoundError, match="none of the files chtb_"):
        recipe("ctb", tmp_path, "test")


def test_recipes_refuse_unknown_names_parts_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name must be one of msr, pku, weibo, ctb, got 'as'"):
        recipe("as", tmp_path)
    with pytest.raises(ValueError, match="part must be one of train, dev, test, got 'all'"):
        recipe("msr", tmp_path, "all")
    with pytest.raises(FileNotFoundError, match=r"recipe pku: .* has no training/pku_training\.utf8, also not"):
        recipe("pku", tmp_path)
