"""Likeness and analogies against gensim, every form of file, and splits that hold out whole heads."""

from __future__ import annotations

import lzma
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gensim.models import KeyedVectors
from gensim.test.utils import datapath

from imgskipgram import ImageBank
from imgskipgram.evaluate import analogy, similarity, split
from imgskipgram.evaluate._lines import lines

if TYPE_CHECKING:
    from pathlib import Path

GENSIM = "ignore:Call to deprecated `init_sims`:DeprecationWarning"  # by itself


def keyed(words: list[str], size: int = 20, seed: int = 0) -> KeyedVectors:
    wv = KeyedVectors(size)
    wv.add_vectors(words, np.random.default_rng(seed).normal(size=(len(words), size)).astype(np.float32))
    return wv


def words_of(path: str, count: int | None = None) -> list[str]:
    """Words of a file of questions or pairs, the upper case of some as well."""
    found = (word for _, text in lines(path) if not text.startswith(":") for word in text.split() if word.isalpha())
    unique = list(dict.fromkeys(found))[:count]
    return list(dict.fromkeys([*unique, *map(str.upper, unique[::7]), *map(str.lower, unique[::5])]))


@pytest.fixture(scope="module")
def asked() -> KeyedVectors:
    """Vectors in which analogies have a chance: pairs of words share an offset."""
    path = datapath("questions-words.txt")
    wv = keyed(words_of(path))
    questions = [text.split() for _, text in lines(path) if not text.startswith(":")]
    for a, b, _, _ in questions[::9]:
        wv.vectors[wv.key_to_index[b]] = wv.vectors[wv.key_to_index[a]] + wv.vectors[0] + 0.3 * wv.vectors[1]
    wv.vectors += 0.1 * keyed(wv.index_to_key, seed=1).vectors  # or some would have two best answers
    return wv


# --- similarity ---


@pytest.mark.filterwarnings(GENSIM)
@pytest.mark.parametrize("name", ["wordsim353.tsv", "simlex999.txt"])
def test_similarity_agrees_with_gensim(name: str) -> None:
    wv = keyed(words_of(datapath(name), 300))
    pearson, spearman, oov = wv.evaluate_word_pairs(datapath(name))
    found = similarity(wv, datapath(name))
    assert found.spearman == pytest.approx(spearman.statistic, abs=1e-6)
    assert found.pearson == pytest.approx(pearson.statistic, abs=1e-6)
    assert 100 * found.oov / (found.n + found.oov) == pytest.approx(oov)
    assert found.oov > 0


FORMS = {
    "tabs": "tiger\tcat\t7.35\nbook\tpaper\t7.46\ncar\tice cream\t1.5\n",
    "commas": "tiger,cat,7.35\nbook, paper, 7.46\ncar,ice cream,1.5\n",
    "white space": "tiger cat 7.35\nbook   paper 7.46\ncar ice_cream 1.5\n",
    "a header": "Word 1,Word 2,Human (mean)\ntiger,cat,7.35\nbook,paper,7.46\ncar,ice cream,1.5\n",
    "comments": "# pairs\n\n# Word 1\tWord 2\ntiger\tcat\t7.35\n#x\nbook\tpaper\t7.46\ncar\tice cream\t1.5",
    "more columns": "1st\t2nd\tPOS\tall\tQ\ntiger\tcat\tN\t7.35\t4\nbook\tpaper\tN\t7.46\t1\ncar\tice cream\tN\t1.5\t2",
    "line ends of Windows, and a mark": "\ufefftiger\tcat\t7.35\r\nbook\tpaper\t7.46\r\ncar\tice cream\t1.5\r\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_pairs_gives_the_same(tmp_path: Path, form: str) -> None:
    wv = keyed(["tiger", "cat", "book", "Paper", "car", "ice cream", "ice_cream"])
    wv.vectors[6] = wv.vectors[5]
    (tmp_path / "pairs.txt").write_text(FORMS[form], encoding="utf-8")
    (tmp_path / "pairs.txt.xz").write_bytes(lzma.compress(FORMS[form].encode()))
    expected = similarity(wv, [("tiger", "cat", 7.35), ("book", "paper", 7.46), ("car", "ice cream", 1.5)])
    assert expected.n == 3
    assert similarity(wv, tmp_path / "pairs.txt") == expected
    assert similarity(wv, str(tmp_path / "pairs.txt.xz")) == expected


def test_similarity_unpacks_and_prints() -> None:
    wv = keyed(["a", "b", "c"])
    found = similarity(wv, iter([("a", "b", 1), ("b", "C", 2), ("a", "c", 3), ("a", "d", 4)]))
    spearman, pearson, n, oov = found
    assert (n, oov) == (3, 1)
    assert f"{spearman:.4f}" in str(found)
    assert f"{pearson:.4f}" in str(found)


def test_ties_have_their_mean_rank_and_zero_vectors_the_cosine_0() -> None:
    wv = keyed(["a", "b", "c", "nothing"])
    wv.vectors[3] = 0
    found = similarity(wv, [("a", "b", 5), ("a", "nothing", 5), ("b", "c", 1), ("a", "a", 9)])
    a, b, c = (row / np.linalg.norm(row) for row in wv.vectors[:3].astype(np.float64))
    cosines = [a @ b, 0, b @ c, 1]
    ranks = np.argsort(np.argsort(cosines))
    assert found.spearman == pytest.approx(np.corrcoef([1.5, 1.5, 0, 3], ranks)[0, 1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\t1\nb\tc\n", r"line 2 must have two words and a number"),
        ("a b 1\n", r"at least two .*, got 1"),
        ("", r"got 0"),
    ],
    ids=["no number", "one pair", "empty"],
)
def test_pairs_that_say_nothing_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pairs").write_text(text)
    with pytest.raises(ValueError, match=message):
        similarity(keyed(["a", "b", "c"]), tmp_path / "pairs")


@pytest.mark.parametrize(
    ("pair", "error", "message"),
    [
        (("a", "b"), ValueError, r"^pairs must have two words and a score each, got \('a', 'b'\)$"),
        (("a", 3, 1.0), ValueError, r"^pairs must have two words and a score each, got \('a', 3, 1\.0\)$"),
        (("a", "b", "7"), TypeError, r"^score must be a number, got '7'$"),
        (("a", "b", float("nan")), ValueError, r"^score must be finite, got nan for 'a' and 'b'$"),
    ],
    ids=["two", "no word", "no number", "NaN"],
)
def test_a_pair_is_two_words_and_a_score(pair: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        similarity(keyed(["a", "b", "c"]), [("a", "c", 1), pair])


def test_files_that_are_missing_or_no_text_are_refused(tmp_path: Path) -> None:
    wv = keyed(["a", "b"])
    with pytest.raises(FileNotFoundError):
        similarity(wv, tmp_path / "none")
    (tmp_path / "latin").write_bytes(b"a b 1\n\xe4 b 2\n")
    with pytest.raises(ValueError, match=r"line 2 is no UTF-8"):
        similarity(wv, tmp_path / "latin")
    (tmp_path / "cut.xz").write_bytes(lzma.compress(b"a b c d\n" * 100)[:-20])
    with pytest.raises(ValueError, match=r"damaged"):
        analogy(wv, tmp_path / "cut.xz")


def test_modules_come_when_they_are_asked_for() -> None:
    program = """
import sys, imgskipgram
print([name for name in ("evaluate", "plots", "compat", "distributed") if f"imgskipgram.{name}" in sys.modules])
print(imgskipgram.evaluate.similarity.__name__, imgskipgram.plots.losses.__name__, hasattr(imgskipgram, "another"))
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == ["[]", "similarity losses False"]


# --- analogies ---


@pytest.mark.filterwarnings(GENSIM)
@pytest.mark.parametrize("restrict", [400, 30000])
def test_analogies_agree_with_gensim(asked: KeyedVectors, restrict: int) -> None:
    path = datapath("questions-words.txt")
    score, sections = asked.evaluate_word_analogies(path, restrict_vocab=restrict)
    found = analogy(asked, path, restrict_vocab=restrict)
    assert 0.02 < found.accuracy == score < 0.9
    expected = {s["section"]: (len(s["correct"]), len(s["correct"] + s["incorrect"])) for s in sections[:-1]}
    assert {s.name: (s.correct, s.n) for s in found.sections} == expected
    assert found.n + found.oov == 19544


@pytest.mark.filterwarnings(GENSIM)
def test_multiplied_cosines_agree_with_gensim(asked: KeyedVectors, tmp_path: Path) -> None:
    """Which has no such test of questions, but answers one."""
    questions = [text for _, text in lines(datapath("questions-words.txt")) if not text.startswith(":")][::400]
    right = n = 0
    index = {word.upper(): word for word in reversed(asked.index_to_key)}
    for question in questions:
        if all(word in index for word in question.upper().split()):
            a, b, c, d = (index[word] for word in question.upper().split())
            answers = [word for word, _ in asked.most_similar_cosmul(positive=[b, c], negative=[a], topn=9)]
            answer = next(word for word in answers if word.upper() not in {a.upper(), b.upper(), c.upper()})
            right, n = right + (answer.upper() == d.upper()), n + 1
    (tmp_path / "questions").write_text("\n".join(questions))
    found = analogy(asked, tmp_path / "questions", method="3cosmul")
    assert (found.correct, found.n) == (right, n)
    assert found.correct > 0
    assert found != analogy(asked, tmp_path / "questions")


def test_sections_are_not_needed(asked: KeyedVectors, tmp_path: Path) -> None:
    whole = analogy(asked, datapath("questions-words.txt"))
    text = "\n".join(text for _, text in lines(datapath("questions-words.txt")) if not text.startswith(":"))
    (tmp_path / "questions.txt").write_text(text.lower().replace(" ", "\t"))
    found = analogy(asked, tmp_path / "questions.txt")
    assert [section.name for section in found.sections] == [""]
    assert (found.accuracy, found.correct, found.n, found.oov) == (whole.accuracy, whole.correct, whole.n, whole.oov)
    assert str(found).startswith("total")
    assert len(str(whole).splitlines()) == 15


def test_no_word_of_the_question_is_an_answer_in_any_case(tmp_path: Path) -> None:
    wv = keyed(["king", "queen", "man", "Queen", "MAN", "Woman", "crown", "woman"])
    wv.vectors[3:] = wv.vectors[[1, 2, 0, 0, 0]]
    wv.vectors[5] += wv.vectors[1]  # less near than "Queen" and "MAN", and nearer than "crown" and "woman"
    (tmp_path / "q").write_text("king queen man woman\n")
    assert analogy(wv, tmp_path / "q").correct == 1
    assert analogy(wv, tmp_path / "q", method="3cosmul").correct == 1


def test_questions_that_nobody_can_answer_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "q").write_text(": one\na b c d\na b c e\n: two\na b c f\n: empty\n")
    found = analogy(keyed(["a", "b", "c", "d"]), tmp_path / "q")
    assert (found.n, found.oov, found.accuracy) == (1, 2, 1.0)
    assert [(section.name, section.n, section.oov) for section in found.sections] == [
        ("one", 1, 1),
        ("two", 0, 1),
        ("empty", 0, 0),
    ]
    assert np.isnan(found.sections[1].accuracy)


@pytest.mark.parametrize(
    ("options", "text", "message"),
    [
        ({"method": "3coscoscos"}, "", r"method must be '3cosadd' or '3cosmul', got '3coscoscos'"),
        ({"restrict_vocab": 0}, "", r"restrict_vocab must be a positive integer or None, got 0"),
        ({}, ": a\na b c\n", r"line 2 must have four words, got 'a b c'"),
    ],
    ids=["method", "restrict_vocab", "three words"],
)
def test_analogies_refuse(tmp_path: Path, options: dict[str, Any], text: str, message: str) -> None:
    (tmp_path / "q").write_text(text)
    with pytest.raises(ValueError, match=message):
        analogy(keyed(["a", "b", "c"]), tmp_path / "q", **options)


# --- splits ---


def bank(labels: list[Any]) -> ImageBank:
    return ImageBank.from_features(np.random.default_rng(0).random((len(labels), 3)), labels)


def vocabulary(*words: str) -> Any:
    return SimpleNamespace(key_to_index={word: i for i, word in enumerate(words)})


def test_splits_are_those_of_the_permutation_over_sorted_heads() -> None:
    heads = [f"w{i:03}" for i in range(567)]
    shuffled = [heads[i] for i in np.random.default_rng(5).permutation(567)]
    for seed in (0, 3):
        rest, words = split(bank([*shuffled, "unknown"]), vocabulary(*heads), seed=seed)
        assert list(words) == [heads[i] for i in np.random.default_rng(seed).permutation(567)[:113]]
        assert {label for labels in rest.words for label in labels} == {*heads, "unknown"} - set(words)
        assert {label for labels in rest.hidden for label in labels} == set(words)


def test_words_with_the_same_head_go_together() -> None:
    labels = ["great_white_shark", "tiger shark", "Hammerhead-Shark", "shark", "dog", "guide-dog", ("cat", "big cat")]
    for seed in range(20):
        rest, words = split(bank(labels), vocabulary("shark", "dog", "cat"), held_out=0.34, seed=seed)
        kinds = {word.lower().replace("-", " ").replace("_", " ").split()[-1] for word in words}
        assert len(kinds) == 1
        assert len(words) == {"shark": 4, "dog": 2, "cat": 2}[kinds.pop()]
        left = {label for entry in rest.words for label in entry}
        assert not left & set(words)


def test_a_head_counts_if_one_of_its_words_is_known() -> None:
    found = {
        split(bank(["tiger_shark", "white_shark", "dog"]), vocabulary("tiger_shark", "dog"), 0.5, s)[1]
        for s in range(9)
    }
    assert found == {("tiger_shark", "white_shark"), ("dog",)}


def test_pictures_features_and_ids_stay() -> None:
    given = bank(["cat", "dog", ("cat", "dog"), "cow"])
    rest, _ = split(given, vocabulary("cat", "dog", "cow"))
    assert rest.features is given.features
    assert rest.ids == given.ids
    assert given.hidden == ((), (), (), ())


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
def test_a_share_must_leave_words_on_both_sides(share: float) -> None:
    with pytest.raises(ValueError, match=r"held_out must be between 0 and 1, got"):
        split(bank(["cat", "dog"]), vocabulary("cat", "dog"), share)


def test_a_split_needs_a_seed_that_is_no_negative_number() -> None:
    bank = ImageBank.from_features(np.eye(3), ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"^seed must be a non-negative integer, got -1$"):
        split(bank, keyed(["a", "b", "c"]), 0.5, seed=-1)


def test_one_head_cannot_be_split() -> None:
    with pytest.raises(ValueError, match=r"at least two heads in the vocabulary, got 1"):
        split(bank(["cat", "big_cat", "dog"]), vocabulary("cat"))


def test_splits_of_the_benchmark_hold_out_113_of_567_heads(data: Path) -> None:
    names = [str(name) for name in np.load(data / "imagenet1000_mobilenetv2_gap1280_f16.npz")["name"]]
    heads = [name.lower().replace("-", "_").split("_")[-1] for name in names]
    with lzma.open(data / "corpus.txt.xz", "rt", encoding="utf-8") as file:
        counts = Counter(file.read().split())
    known = vocabulary(*(head for head in set(heads) if counts[head] >= 5))
    assert len(known.key_to_index) == 567
    rest, words = split(bank(heads), known)
    assert len(words) == 113
    assert sum(label != () for label in rest.words) + sum(label != () for label in rest.hidden) == 1000
    by_name, names = split(bank(names), known)
    assert {name.lower().replace("-", "_").split("_")[-1] for name in names} == set(words)
    assert [bool(labels) for labels in by_name.hidden] == [bool(labels) for labels in rest.hidden]
