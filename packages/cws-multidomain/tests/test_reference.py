"""Facts about the decoding half of the definition, by enumeration of all segmentations."""

import itertools
import math

import numpy as np
import pytest

from cws_multidomain import _reference as reference
from cws_multidomain._reference import BEFORE, DIGIT, LATIN, OTHER, B, E, M, S


def segmentations(n: int) -> list[list[int]]:
    """The lengths of the tokens of all 2**(n - 1) segmentations."""
    out = []
    for cuts in itertools.product([False, True], repeat=n - 1):
        edges = [0, *[i + 1 for i, cut in enumerate(cuts) if cut], n]
        out.append([b - a for a, b in itertools.pairwise(edges)])
    return out


def allowed(tags: np.ndarray, joint: np.ndarray, start: np.ndarray) -> bool:
    begins = np.isin(tags, (B, S))
    return not (begins & joint).any() and not (~begins & start).any()


def problem(n: int, seed: int, masked: bool = False) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    joint, start = np.zeros(n, bool), np.zeros(n, bool)
    if masked:
        kind = rng.integers(0, 4, n)
        joint, start = kind == 1, kind == 2
        joint[0] = False
    return rng.normal(size=(n, 4)), rng.normal(size=(4, 4)), joint, start


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n", range(1, 8))
def test_viterbi_sums_and_probabilities_are_those_of_an_enumeration(n, masked):
    for seed in range(5):
        emissions, transition, joint, start = problem(n, seed, masked)
        paths = [reference.tags_of(lengths) for lengths in segmentations(n)]
        paths = [tags for tags in paths if allowed(tags, joint, start)]
        scores = np.array([reference.path_score(emissions, transition, tags) for tags in paths])
        best = reference.viterbi(emissions, transition, joint, start)
        assert best.tolist() == paths[int(scores.argmax())].tolist()
        log_z, nodes, edges = reference.forward_backward(emissions, transition, joint, start)
        assert log_z == pytest.approx(np.logaddexp.reduce(scores), abs=1e-12)
        p = np.exp(scores - log_z)
        expected, pairs = np.zeros((n, 4)), np.zeros((4, 4))
        for weight, tags in zip(p, paths, strict=True):
            expected[np.arange(n), tags] += weight
            np.add.at(pairs, (tags[:-1], tags[1:]), weight)
        assert nodes == pytest.approx(expected, abs=1e-12)
        assert edges == pytest.approx(pairs, abs=1e-12)


@pytest.mark.parametrize("n", range(1, 8))
def test_the_n_best_segmentations_are_those_of_an_enumeration_with_costs_of_either_sign(n):
    for seed in range(5):
        emissions, transition, joint, start = problem(n, seed, masked=seed % 2 == 1)
        rng = np.random.default_rng(seed)
        costs = {(i, j): float(rng.normal() * 3) for i in range(n) for j in range(i + 1, n + 1) if rng.random() < 0.4}
        expected = []
        for lengths in segmentations(n):
            tags = reference.tags_of(lengths)
            if allowed(tags, joint, start):
                ends = np.cumsum(lengths).tolist()
                cost = sum(costs.get((end - length, end), 0) for end, length in zip(ends, lengths, strict=True))
                expected.append((reference.path_score(emissions, transition, tags) - cost, lengths))
        expected.sort(key=lambda p: -p[0])
        found = reference.nbest(emissions, transition, 5, joint, start, costs)
        assert [lengths for _, lengths in found] == [lengths for _, lengths in expected[:5]]
        assert [s for s, _ in found] == pytest.approx([s for s, _ in expected[:5]], abs=1e-12)


def test_of_equal_paths_the_tag_before_that_comes_first_wins():
    n = 6
    assert reference.viterbi(np.zeros((n, 4)), np.zeros((4, 4))).tolist() == [B, E, B, E, B, E]
    assert reference.viterbi(np.zeros((1, 4)), np.zeros((4, 4))).tolist() == [S]
    assert reference.viterbi(np.zeros((0, 4)), np.zeros((4, 4))).tolist() == []


def test_lengths_and_tags_are_inverse():
    for lengths in segmentations(6):
        assert reference.lengths_of(reference.tags_of(lengths)) == lengths


def test_symbols_fold_full_width_digits_and_letters():
    mapping = {ord("中"): 5, ord("國"): 6, ord("国"): 6, ord("!"): 7}
    text = "中國国A０ａ9!！é"
    assert reference.symbols(text, mapping).tolist() == [5, 6, 6, LATIN, DIGIT, LATIN, DIGIT, 7, 7, OTHER]


def test_sentences_are_what_str_split_finds():
    text = "".join(map(chr, range(0x3100))) + "字\x1c字\x85字\u2028字\u3000字\u200b字"
    spans = reference.sentences(text)
    assert [text[a:b] for a, b in spans] == text.split()


def test_marks_tell_the_longest_word_that_begins_ends_and_goes_on():
    words = {(5, 6), (6, 7, 8), (5, 6, 7, 8, 9, 10), (7, 8), (5, 6, 7, 8, 9, 10, 11)}
    found = reference.marks([5, 6, 7, 8, 9, 10, 11], words).tolist()
    begins = [m // 25 for m in found]
    ends = [m // 5 % 5 for m in found]
    insides = [m % 5 for m in found]
    assert begins == [4, 2, 1, 0, 0, 0, 0]
    assert ends == [0, 1, 0, 2, 0, 4, 0]
    assert insides == [0, 4, 4, 4, 4, 0, 0]


def test_rules_join_runs_and_numbers_and_keep_addresses_whole():
    def tokens(text):
        joint, start = reference.masks(text)
        cuts = [i for i in range(len(text)) if not joint[i]] + [len(text)]
        assert not (joint & start).any()
        return [text[a:b] for a, b in itertools.pairwise(cuts)]

    assert tokens("共3.14和1,000个ＡＢＣx") == ["共", "3.14", "和", "1,000", "个", "ＡＢＣx"]
    assert tokens("2003,2004年5.") == ["2003,2004", "年", "5", "."]
    assert tokens("2003，2004") == ["2003", "，", "2004"]
    assert tokens("见https://a.cn/x?y=1,2。") == ["见", "https://a.cn/x?y=1,2", "。"]
    assert tokens("(www.a.cn).") == ["(", "www.a.cn", ")", "."]
    assert tokens("致me.too@a-b.com.cn.") == ["致", "me.too@a-b.com.cn", "."]
    assert tokens("a@b") == ["a", "@", "b"]
    assert tokens("http://") == ["http", ":", "/", "/"]
    assert reference.addresses("mailto:a@www.b.cn") == [(7, 17)]


def test_the_gate_reads_no_more_than_4096_symbols():
    rows, n = reference.gate_features([7] * 5000)
    assert n == 4096
    assert len(rows) == 4096 + 4095
    assert rows.max() < 8192
    assert reference.gate_features([])[1] == 1
    assert rows[0] == (7 * 0x9E3779B1 % 2**32) >> 19
    assert rows[-1] == ((7 * 0x9E3779B1 + 7 * 0x85EBCA77) % 2**32) >> 19


def test_emissions_look_two_characters_to_either_side():
    import synthetic

    weights = synthetic.weights(3)
    symbols = reference.symbols("中国人民", weights.symbols)
    row = reference.emissions(weights.components[0], symbols)[0]
    shared = weights.components[0]
    padded = [BEFORE, BEFORE, *symbols.tolist()]
    expected = sum(shared.unigram[padded[2 + d], d + 2].astype(float) for d in range(-2, 3))
    keys = shared.bigram_keys.tolist()
    for d in range(-2, 2):
        key = padded[2 + d] << 16 | padded[3 + d]
        if key in keys:
            expected = expected + shared.bigram[keys.index(key), d + 2]
    assert row == pytest.approx(expected, abs=1e-5)
    assert math.isfinite(row.sum())
    assert M
