"""The tagger: its chain by brute force, its gradient, its decoder, its sections, its training, bad input."""

from __future__ import annotations

import itertools
import math
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cws_multidomain import Sentence, Tagger, _core, read_corpus, train_pos
from cws_multidomain._treebanks import own_tags_only, read_gsd, universal_tags_only

NO_FOLD = (np.zeros(0, np.uint32), np.zeros(0, np.uint32))
DATA = Path(__file__).parents[4] / "shared" / "data" / "cws" / "ud"


# ---- the chain


def score(emissions: np.ndarray, transition: np.ndarray, path: tuple[int, ...]) -> float:
    nodes = sum(float(emissions[i, t]) for i, t in enumerate(path))
    return nodes + sum(float(transition[p, t]) for p, t in itertools.pairwise(path))


def by_brute_force(
    emissions: np.ndarray, transition: np.ndarray, allowed: list[set[int]]
) -> tuple[float, np.ndarray, np.ndarray]:
    """log Z, node and summed edge marginals of all paths through the allowed tags, in float64."""
    length, tags = emissions.shape
    paths = [
        p for p in itertools.product(range(tags), repeat=length) if all(t in a for t, a in zip(p, allowed, strict=True))
    ]
    scores = np.array([score(emissions, transition, p) for p in paths])
    log_z = np.logaddexp.reduce(scores)
    nodes, edges = np.zeros((length, tags)), np.zeros((tags, tags))
    for path, weight in zip(paths, np.exp(scores - log_z), strict=True):
        for i, t in enumerate(path):
            nodes[i, t] += weight
        for pair in itertools.pairwise(path):
            edges[pair] += weight
    return float(log_z), nodes, edges


@st.composite
def chains(draw: Any) -> tuple[np.ndarray, np.ndarray, list[int], list[list[int]]]:
    length, tags = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    spread = draw(st.sampled_from([0.0, 1.0, 4.0]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    sets = [[int(v) for v in random.integers(0, 2, tags)] for _ in range(3)]
    for row in sets:
        row[int(random.integers(tags))] = 1
    labels = [int(v) for v in random.integers(0, tags + draw(st.sampled_from([0, 3])), length)]
    emissions = random.normal(0, spread, (length, tags)).astype(np.float32)
    return emissions, random.normal(0, spread, (tags, tags)).astype(np.float32), labels, sets


@settings(max_examples=150, deadline=None)
@given(chains())
def test_loss_and_gradient_are_those_of_all_paths_counted(chain: Any) -> None:
    emissions, transition, labels, sets = chain
    length, tags = emissions.shape
    every = [set(range(tags))] * length
    allowed = [{k} if k < tags else {t for t in range(tags) if sets[k - tags][t]} for k in labels]
    log_z, nodes, edges = by_brute_force(emissions, transition, every)
    gold_z, gold_nodes, gold_edges = by_brute_force(emissions, transition, allowed)
    loss, found_z, d_emissions, d_transition = _core.tagger_loss(emissions, transition, labels, sets)
    size = float(1 + np.abs(emissions).sum() + length * np.abs(transition).max())
    assert found_z == pytest.approx(log_z, abs=2e-6 * size)
    assert loss == pytest.approx(log_z - gold_z, abs=2e-6 * size)
    assert d_emissions.reshape(length, tags) == pytest.approx(nodes - gold_nodes, abs=1e-5)
    assert d_transition.reshape(tags, tags) == pytest.approx(edges - gold_edges, abs=1e-5 * length)


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    random = np.random.default_rng(3)
    emissions = random.normal(size=(6, 17)).astype(np.float32)
    transition = random.normal(size=(17, 17)).astype(np.float32)
    sets = [[int(t % 3 == 0) for t in range(17)]]
    labels = [4, 17, 16, 0, 17, 2]
    _, _, d_emissions, d_transition = _core.tagger_loss(emissions, transition, labels, sets)
    step = 1 / 64
    for array, gradient in ((emissions, d_emissions), (transition, d_transition)):
        for at in random.choice(array.size, 40, replace=False):
            slope = 0.0
            for sign in (1, -1):
                array.flat[at] += np.float32(sign * step)
                slope += sign * _core.tagger_loss(emissions, transition, labels, sets)[0] / (2 * step)
                array.flat[at] -= np.float32(sign * step)
            assert gradient[at] == pytest.approx(slope, abs=1e-3)


def test_no_distance_between_scores_makes_the_sums_vanish() -> None:
    emissions = np.array([[0, -1e4], [-1e4, 0], [0, -1e4]], np.float32)
    transition = np.array([[0, -1e4], [-1e4, 0]], np.float32)
    values = _core.tagger_loss(emissions, transition, [1, 1, 1], [])
    assert all(np.isfinite(value).all() for value in values)


def test_a_sentence_of_5000_words_keeps_its_precision() -> None:
    random = np.random.default_rng(4)
    emissions = random.normal(size=(5000, 7)).astype(np.float32)
    transition = random.normal(size=(7, 7)).astype(np.float32)
    alpha = emissions[0].astype(float)
    for row in emissions[1:].astype(float):
        alpha = row + np.logaddexp.reduce(alpha[:, None] + transition, axis=0)
    assert _core.tagger_loss(emissions, transition, [0] * 5000, [])[1] == pytest.approx(np.logaddexp.reduce(alpha))


# ---- corpora made here: a tag follows from the word, its ending, or its neighbours

NOUNS = ["猫", "狗", "书店", "飞机场", "电影院", "图书馆", "计算器", "洗衣机"]
VERBS = ["看", "喜欢", "买", "知道", "修理"]
PLACES = ["北京市", "上海市", "广州市"]


def made(n: int, seed: int = 0) -> list[list[tuple[str, str, str]]]:
    """白 is JJ before a noun and RB before a verb; 的 is DEC before a noun and SP at the end."""
    draw = random.Random(seed)
    sentences = []
    for _ in range(n):
        subject = [(draw.choice(PLACES), "NR", "PROPN"), ("的", "DEC", "PART")] if draw.random() < 0.5 else []
        subject += [("白", "JJ", "ADJ")] if draw.random() < 0.5 else []
        subject += [(draw.choice(NOUNS), "NN", "NOUN")]
        verb = [("白", "RB", "ADV")] if draw.random() < 0.5 else []
        verb += [(draw.choice(VERBS), "VV", "VERB"), (draw.choice(NOUNS), "NN", "NOUN")]
        end = [("的", "SP", "PART")] if draw.random() < 0.3 else []
        sentences.append([*subject, *verb, *end, ("。", "PU", "PUNCT")])
    return sentences


def words(sentences: list[list[tuple[str, str, str]]]) -> list[list[str]]:
    return [[word for word, *_ in sentence] for sentence in sentences]


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return Tagger.train(made(120), epochs=6)


def test_tags_follow_from_word_ending_and_neighbours(tagger: Tagger) -> None:
    assert tagger.evaluate(made(100, seed=1)) == (1.0, 1.0, sum(map(len, made(100, seed=1))))
    unseen = ["天津市", "的", "白", "火车站", "白", "修理", "电视机", "。"]
    assert tagger.tag(unseen) == ["NR", "DEC", "JJ", "NN", "RB", "VV", "NN", "PU"]
    assert tagger.upos(unseen) == ["PROPN", "PART", "ADJ", "NOUN", "ADV", "VERB", "NOUN", "PUNCT"]


def test_one_sentence_and_many_agree_for_any_number_of_threads(tagger: Tagger) -> None:
    sentences = [*words(made(200, seed=2)), [], ["从未见过"], ["白"] * 3000]
    one = [tagger.tag(sentence) for sentence in sentences]
    for threads in (1, 2, 16, None):
        assert tagger.tag_many(sentences, threads) == one
    assert tagger.upos_many(sentences) == [tagger.upos(sentence) for sentence in sentences]


def test_full_width_digits_and_letters_read_as_others_do() -> None:
    corpus = [[("1998年", "NT"), ("abc", "FW"), ("，", "PU"), ("好", "JJ")]] * 5
    tagger = Tagger.train(corpus)
    assert tagger.tag(["２０２５年", "ＸＹＺ", ",", "好"]) == tagger.tag(["1998年", "abc", "，", "好"])


def test_folding_reads_both_scripts() -> None:
    table = {ord("貓"): ord("猫"), ord("書"): ord("书"), ord("買"): ord("买"), ord("機"): ord("机"), 0x20000: ord("狗")}
    folded = Tagger.train(made(60), folding=table)
    assert folded.tag(["貓", "買", "書店", "\U00020000"]) == folded.tag(["猫", "买", "书店", "狗"])
    assert Tagger.from_sections(folded.to_sections()).tag(["貓"]) == folded.tag(["猫"])


# ---- the decoder, by brute force over what the sections hold


def unpacked(tagger: Tagger) -> tuple[dict[int, dict[int, int]], np.ndarray, int]:
    """States by fingerprint with bucket, transitions, and the bits of a bucket's number."""
    sections = tagger.to_sections()
    places = np.frombuffer(sections["pos.buckets"], "<u4").tolist()
    data = sections["pos.features"]
    table: dict[int, dict[int, int]] = {}
    for bucket, (at, end) in enumerate(itertools.pairwise(places)):
        while at < end:
            low, count = struct.unpack_from("<HB", data, at)
            states = dict(struct.iter_unpack("<Bb", data[at + 3 : at + 3 + 2 * count]))
            table.setdefault(bucket << 16 | low, states)
            at += 3 + 2 * count
    n = math.isqrt(len(sections["pos.transitions"]) // 2)
    return table, np.frombuffer(sections["pos.transitions"], "<i2").reshape(n, n), (len(places) - 1).bit_length() - 1


def best_by_brute_force(tagger: Tagger, sentence: list[str]) -> list[str]:
    table, transition, bits = unpacked(tagger)

    def states(key: int) -> dict[int, int]:
        return table.get((key >> (64 - bits) if bits else 0) << 16 | key & 0xFFFF, {})

    n = len(transition)
    keys, counts = _core.tagger_keys([sentence], *NO_FOLD)
    dictionary = _core.tagger_word_keys([sentence], *NO_FOLD)
    emissions = np.zeros((len(sentence), n))
    candidates = []
    at = 0
    for i, count in enumerate(counts.tolist()):
        for key in keys[at : at + count].tolist():
            for tag, weight in states(key).items():
                emissions[i, tag] += weight
        at += count
        candidates.append(sorted(states(int(dictionary[i]))) or list(range(n)))
    paths = itertools.product(*candidates)
    best = min(paths, key=lambda path: (-score(emissions, transition, path), path[::-1]))
    return [tagger._labels[t][0] for t in best]


def test_tags_are_the_best_path_of_all(tagger: Tagger) -> None:
    draw = random.Random(5)
    vocabulary = [*NOUNS, *VERBS, *PLACES, "白", "的", "。", "火车站", "飞", "X", "12"]
    for _ in range(150):
        sentence = draw.choices(vocabulary, k=draw.randint(1, 4))
        assert tagger.tag(sentence) == best_by_brute_force(tagger, sentence)


def test_with_more_tags_than_a_vector_has_lanes_the_best_path_is_still_found() -> None:
    corpus = [[(chr(0x4E00 + i), f"T{i}"), (chr(0x4E00 + (7 * i) % 40), f"T{(7 * i) % 40}")] for i in range(40)] * 3
    tagger = Tagger.train(corpus, epochs=3)
    draw = random.Random(6)
    for _ in range(60):
        sentence = [chr(0x4E00 + draw.randrange(50)) for _ in range(draw.randint(1, 3))]
        assert tagger.tag(sentence) == best_by_brute_force(tagger, sentence)


# ---- training


def test_the_model_is_the_same_bit_for_bit_for_any_number_of_threads() -> None:
    one, two, many = (Tagger.train(made(90), epochs=2, threads=n).to_sections() for n in (1, 2, 16))
    assert one == two == many


def test_another_seed_gives_another_model() -> None:
    assert Tagger.train(made(90), epochs=2).to_sections() != Tagger.train(made(90), epochs=2, seed=1).to_sections()


def test_the_loss_falls_and_is_reported_after_every_epoch() -> None:
    calls: list[tuple[int, int, float, float | None]] = []
    Tagger.train(made(60), made(20, seed=1), epochs=3, progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(epoch, 6) for epoch in range(1, 7)]
    losses = [call[2] for call in calls]
    assert losses[0] > losses[1] > losses[2]
    assert losses[3] > losses[4] > losses[5]
    assert [call[3] is None for call in calls] == [True] * 3 + [False] * 3


def test_dev_picks_the_best_epoch() -> None:
    dev = made(40, seed=9)
    seen: list[float] = []
    picked = Tagger.train(
        made(8), dev, epochs=5, progress=lambda _e, _n, _l, accuracy: seen.append(accuracy) if accuracy else None
    )
    assert picked.evaluate(dev).xpos == max(seen)


def test_fewer_bytes_mean_a_smaller_model_that_still_knows_the_commonest() -> None:
    small = Tagger.train(made(120), epochs=6, max_bytes=1000)
    assert len(small.to_sections()["pos.features"]) < 1400  # the dictionary is on top
    assert small.evaluate(made(50, seed=3)).xpos > 0.9


def test_a_pair_of_tags_decides_the_universal_tag() -> None:
    corpus = [
        [("我", "PN", "PRON"), ("的", "DEC", "PART"), ("书", "NN", "NOUN")],
        [("买", "VV", "VERB"), ("的", "DEC", "SCONJ"), ("书", "NN", "NOUN")],
    ] * 10
    tagger = Tagger.train(corpus)
    assert tagger.tag(["我", "的", "书"])[1] == tagger.tag(["买", "的", "书"])[1] == "DEC"
    assert (tagger.upos(["我", "的", "书"])[1], tagger.upos(["买", "的", "书"])[1]) == ("PART", "SCONJ")
    assert tagger.tags == ("DEC", "NN", "PN", "VV")


def test_words_with_only_a_universal_tag_teach_their_own_tag_too() -> None:
    full = [[("猫", "NN", "NOUN"), ("跑", "VV", "VERB")], [("跑", "VV", "VERB"), ("猫", "NN", "NOUN")]] * 4
    partial = [[("虎", "_", "NOUN"), ("叫", "_", "VERB"), ("虎", "_", "NOUN|VERB")]] * 20
    assert Tagger.train(full + partial).tag(["叫", "虎", "叫"]) == ["VV", "NN", "VV"]


def test_without_universal_tags_the_own_ones_serve_and_the_other_way_round() -> None:
    own = Tagger.train([[("猫", "NN"), ("跑", "VV")]] * 4)
    assert own.upos(["猫"]) == own.tag(["猫"]) == ["NN"]
    universal = Tagger.train([Sentence(["猫", "跑"], upos=["NOUN", "VERB"])] * 4)
    assert universal.upos(["猫"]) == universal.tag(["猫"]) == ["NOUN"]


def test_files_and_sentences_train_alike(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(" ".join(f"{w}_{x}" for w, x, _ in s) for s in made(30)), encoding="utf-8")
    from_file = train_pos(path, epochs=2)
    from_pairs = train_pos([[(w, x) for w, x, _ in s] for s in made(30)], epochs=2)
    assert from_file.to_sections() == from_pairs.to_sections() == train_pos(read_corpus(path), epochs=2).to_sections()


@pytest.mark.parametrize("n", [1, 2, 9, 11])
def test_corpora_smaller_than_the_updates_of_an_epoch_train(n: int) -> None:
    assert Tagger.train(made(n), minimum=1).evaluate(made(n)).xpos > 0.7


# ---- sections


def test_sections_and_pickles_bring_the_same_tagger_back(tagger: Tagger) -> None:
    sections = tagger.to_sections()
    assert all(name.startswith("pos.") and len(name) < 24 for name in sections)
    views = {name: memoryview(data) for name, data in sections.items()} | {"unknown": memoryview(b"")}
    for back in (Tagger.from_sections(views), pickle.loads(pickle.dumps(tagger))):
        assert back.to_sections() == sections
        assert back.tag_many(words(made(50, 7))) == tagger.tag_many(words(made(50, 7)))
        assert (back.tags, back.universal, back.info) == (tagger.tags, tagger.universal, tagger.info)


def test_broken_sections_are_refused_by_name(tagger: Tagger) -> None:
    sections = tagger.to_sections()
    features, buckets = sections["pos.features"], np.frombuffer(sections["pos.buckets"], "<u4")
    broken = {
        "pos.tags": [b"", b"[]", b'{"labels": []}', b'{"labels": [["NN"]]}', b"\xff", b'{"labels": 3}', b"[" * 100_000],
        "pos.transitions": [b"", sections["pos.transitions"][:-2], sections["pos.transitions"][:-1]],
        "pos.buckets": [b"", b"\0\0\0", buckets[:-1].tobytes(), (buckets + 1).tobytes(), buckets[::-1].tobytes()],
        "pos.features": [b"", features[:-1], features + b"\0", b"\xff" * len(features), features[:3] + b"\x7e" * 90],
        "pos.folding": [b"\0\0\0\0"],
    }
    for name, values in broken.items():
        for value in values:
            with pytest.raises(ValueError, match=r"^pos\.\w+: "):
                Tagger.from_sections(sections | {name: value})
    del sections["pos.buckets"]
    with pytest.raises(ValueError, match=r"none named pos\.buckets"):
        Tagger.from_sections(sections)


def test_no_damage_to_a_section_goes_beyond_an_error_or_other_tags(tagger: Tagger) -> None:
    draw = random.Random(8)
    sections = tagger.to_sections()
    for _ in range(300):
        name = draw.choice(["pos.buckets", "pos.features", "pos.transitions"])
        data = bytearray(sections[name])
        data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            damaged = Tagger.from_sections(sections | {name: data})
        except ValueError:
            continue
        assert set(damaged.tag(["北京市", "的", "白", "火车站"])) <= set(tagger.tags)


# ---- bad input


@pytest.mark.parametrize(
    ("corpus", "error", "message"),
    [
        ([], ValueError, "corpus must have at least one sentence, got none"),
        ([[]], ValueError, "corpus must have at least one sentence, got none"),
        ([[("猫", "_")]], ValueError, "corpus must have at least one word with one tag, got none"),
        ([[("猫", "NN|VV")]], ValueError, "corpus must have at least one word with one tag, got none"),
        ([[("猫", f"T{i}") for i in range(128)]], ValueError, "at most 127 pairs"),
        ([["猫", "跑"]], TypeError, r"corpus\[0\] must be a list of \(word, tag\)"),
        ([[("猫",)]], TypeError, r"corpus\[0\] must be a list of \(word, tag\)"),
        ([[(3, "NN")]], TypeError, r"corpus\[0\] must have words that are str, got int"),
        ([[("猫", 3)]], TypeError, r"corpus\[0\] must have tags that are str, got int"),
        (["猫"], TypeError, r"corpus\[0\] must be a list of \(word, tag\), got str"),
        (3, TypeError, "corpus must be a path or an iterable of tagged sentences, got int"),
        ({"a": []}, TypeError, "corpus must be a path or an iterable of tagged sentences, got dict"),
    ],
)
def test_bad_corpora_are_refused(corpus: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Tagger.train(corpus)


def test_tags_that_are_not_as_many_as_the_words_are_refused() -> None:
    class Broken:
        words, xpos, upos = ("猫", "跑"), ("NN",), None

    with pytest.raises(ValueError, match=r"corpus\[0\] must have a tag for each of its 2 words, got 1"):
        Tagger.train([Broken()])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs must be between 1"),
        ({"epochs": 1.5}, TypeError, "epochs must be an int, got float"),
        ({"rate": 0}, ValueError, "rate must be positive and finite, got 0"),
        ({"rate": math.nan}, ValueError, "rate must be positive"),
        ({"l2": -1}, ValueError, "l2 must be positive"),
        ({"upper": 1.1}, ValueError, "upper must be above 0"),
        ({"lower": 0.999}, ValueError, "lower must be at most upper"),
        ({"threads": 0}, ValueError, "threads must be at least 1, got 0"),
        ({"threads": "2"}, TypeError, "threads must be an int or None, got str"),
        ({"seed": -1}, ValueError, "seed must be between 0"),
        ({"minimum": True}, TypeError, "minimum must be an int, got bool"),
        ({"folding": "ab"}, TypeError, "folding must map code points to code points, got str"),
        ({"folding": {"a": "b"}}, TypeError, "folding must map code points to code points, got str"),
        ({"folding": {1: 0x110000}}, ValueError, "folding must map code points to code points, got 1114112"),
        ({"dev": [[("猫", "_")]]}, ValueError, "dev must have at least one tagged word"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Tagger.train(made(3), **options)


def test_words_that_are_no_strings_are_refused(tagger: Tagger) -> None:
    with pytest.raises(TypeError, match="words must be a list of str, got int at index 1"):
        tagger.tag(["猫", 3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="words must be a list of words, got str"):
        tagger.upos("猫")
    with pytest.raises(TypeError, match=r"sentences\[1\] must be a list of str, got bytes at index 0"):
        tagger.tag_many([["猫"], [b"x"]])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="sentences must be lists of words, got a string"):
        tagger.tag_many("猫")
    with pytest.raises(ValueError, match="threads must be at least 1"):
        tagger.tag_many([["猫"]], threads=0)


def test_odd_words_get_a_tag(tagger: Tagger) -> None:
    odd = ["", "\ud800", "\0", "\U0010ffff", "👩‍👩‍👧", "x" * 100_000]
    assert len(tagger.tag(odd)) == len(odd)
    assert tagger.tag([]) == []


# ---- treebanks

GSD = """# a comment
1\t看\t_\tVERB\tVV\t_\t0\troot\t_\t_
2\t的\t_\tPART\tDEC\tCase=Rel\t1\tacl:relcl\t_\t_
3\t的\t_\tPART\tDEC\tCase=Gen\t1\tcase:dec\t_\t_
4\t地\t_\tPART\tDEV\tCase=Advb\t1\tmark\t_\t_
5\t得\t_\tPART\tDEV\tCase=Comp\t1\tmark\t_\t_
6\t是\t_\tVERB\tVC\t_\t1\tcop\t_\t_
7\t是\t_\tVERB\tVC\t_\t1\tmark\t_\t_
8\t被\t_\tVERB\tBB\tVoice=Pass\t1\tauxpass\t_\t_
9\t把\t_\tVERB\tBB\tVoice=Cau\t1\taux:caus\t_\t_
10\t如果\t_\tADV\tRB\t_\t1\tmark\t_\t_
11\t不\t_\tADV\tRB\t_\t1\tneg\t_\t_
12\t.\t_\tPUNCT\t.\t_\t1\tpunct\t_\t_

1\t.\t_\tPUNCT\t,\t_\t0\troot\t_\t_
"""


def test_gsd_has_the_universal_tags_of_version_2(tmp_path: Path) -> None:
    path = tmp_path / "gsd.conll"
    path.write_text(GSD, encoding="utf-8")
    first, second = read_gsd(path)
    assert " ".join(first.upos or ()) == "VERB SCONJ PART SCONJ PART AUX VERB AUX ADP SCONJ ADV PUNCT"
    assert " ".join(first.xpos or ()) == "VV DEC DEC DEV DEV VC VC BB BB RB RB ."
    assert (first.words[-1], second.words) == ("。", (".",))
    path.write_text("1\t看\t_\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1 must have eight columns or more, got 3"):
        read_gsd(path)


def test_treebanks_of_other_conventions_leave_open_what_they_do_not_say() -> None:
    sentence = Sentence(["的", "猫"], ["DEC", "NN"], ["PART", "NOUN"])
    assert own_tags_only([sentence]) == [Sentence(["的", "猫"], ["DEC", "NN"])]
    assert universal_tags_only([sentence]) == [Sentence(["的", "猫"], upos=["PART|SCONJ", "NOUN"])]


@pytest.fixture(scope="module")
def treebank() -> Path:
    if not DATA.is_dir():
        pytest.skip("the treebanks of shared/data are not here")
    return DATA


def test_the_universal_tags_of_gsd_agree_with_its_version_2(treebank: Path) -> None:
    old, new = read_gsd(treebank / "udc_dev.conll.xz"), read_corpus(treebank / "GSDSimp_zh_gsdsimp-ud-dev.conllu.xz")
    pairs = [pair for a, b in zip(old, new, strict=True) for pair in zip(a.upos or (), b.upos or (), strict=True)]
    assert sum(a == b for a, b in pairs) / len(pairs) > 0.998


@pytest.mark.slow
def test_a_tagger_of_gsd_reaches_what_the_readme_says(treebank: Path) -> None:
    tagger = Tagger.train(read_gsd(treebank / "udc_train.conll.xz"))
    test = tagger.evaluate(read_corpus(treebank / "GSDSimp_zh_gsdsimp-ud-test.conllu.xz"))
    assert test.xpos > 0.926
    assert test.upos > 0.919
    assert tagger.nbytes < 600_000


def test_a_segmenter_with_these_sections_fills_the_parts_of_speech_line_by_line(tagger: Tagger) -> None:
    from cws_multidomain import Segmenter, _modelfile

    try:
        plain = Segmenter.load()
    except FileNotFoundError:
        pytest.skip("the package was built without its model")
    segmenter = Segmenter.from_bytes(_modelfile.replace(plain._model, tagger.to_sections()))
    assert segmenter.tagger is not None
    assert segmenter.tagger.to_sections() == tagger.to_sections()
    tokens = segmenter.tokenize("北京市的猫\n猫喜欢狗。")
    lines = segmenter.cut("北京市的猫"), segmenter.cut("猫喜欢狗。")
    assert [token.pos for token in tokens] == [tag for line in lines for tag in tagger.tag(line)]
