"""The kernels against the reference: hashes, automata, sums, Viterbi, rules, chains of user words, probabilities."""

import itertools

import numpy as np
import pytest
import synthetic

from cws_multidomain import Segmenter, _core, _modelfile, _reference

ALL = frozenset(_reference.RULES)
POOL = [
    *synthetic.CHARACTERS * 2,
    *"國學個A国b3０１９ＡＢ.,．:/@!é，。",
    *" \t\n\u3000\x00\u200b\ufeff\u200d\u0301\ufe0f\x85\x1c",
    *[
        "\r\n",
        "http://a.cn/x",
        "www.b.com,",
        "me@x.cn",
        "1,234.5",
        "👨‍👩‍👧",
        "🇨🇳🇫🇷",
        "e\u0301",
        "क्त",
        "각",
        "\u0600字",
        "👍🏽",
    ],
]


def random_text(rng: np.random.Generator, length: int) -> str:
    return "".join(POOL[i] for i in rng.integers(0, len(POOL), length))


def characters(rng: np.random.Generator, length: int) -> str:
    return "".join(rng.choice(list(synthetic.CHARACTERS), length))


# ---- tables


@pytest.mark.parametrize("n", [0, 1, 2, 31, 1023, 1025, 10007])
def test_a_perfect_hash_gives_each_key_a_slot_of_its_own(n):
    rng = np.random.default_rng(n)
    for keys in (rng.choice(2**31, n, replace=False), np.arange(n) << 16, np.arange(n)):
        keys = keys.astype(np.uint32)
        _, shape, slots = _core.perfect_hash(keys)
        assert len(set(slots.tolist())) == n
        assert n <= shape[0] <= 1.3 * n + 20
        assert (slots < shape[0]).all()


def test_a_perfect_hash_of_equal_keys_is_refused():
    with pytest.raises(ValueError, match="keys must differ"):
        _core.perfect_hash(np.array([5, 5], np.uint32))


def test_crc32c_is_castagnolis():
    assert _core.crc32c(b"123456789") == 0xE3069283
    assert _core.crc32c(b"") == 0
    assert _core.crc32c(bytes(32)) == 0x8A9136AA


def lexicon(words, n_symbols):
    ordered = sorted(words)
    flat = np.array([s for w in ordered for s in w], np.uint16)
    splits = np.cumsum([0, *map(len, ordered)]).astype(np.int64)
    return _core.build_lexicon(flat, splits, n_symbols)


@pytest.mark.parametrize("n", [0, 1, 2, 31, 1023])
def test_marks_of_the_automaton_are_those_of_a_set(n):
    rng = np.random.default_rng(n)
    words = {tuple(rng.integers(5, 12, rng.integers(1, 9)).tolist()) for _ in range(n)}
    automaton = lexicon(words, 12)
    for length in (0, 1, 2, 5, 6, 7, 31, 127):
        symbols = rng.integers(0, 12, length).astype(np.uint16)
        assert _core.lexicon_marks(automaton, symbols).tolist() == _reference.marks(symbols, words).tolist()


def test_words_out_of_order_or_range_are_refused():
    with pytest.raises(ValueError, match="ascending"):
        _core.build_lexicon(np.array([6, 5], np.uint16), np.array([0, 1, 2]), 9)
    with pytest.raises(ValueError, match="out of range"):
        _core.build_lexicon(np.array([9], np.uint16), np.array([0, 1]), 9)


def test_equal_endings_are_one_state():
    words = {(a, b, 7, 8) for a in range(5, 15) for b in range(5, 15)}
    assert lexicon(words, 20).n_states == 4  # no edges, 8, 7 8, b 7 8


# ---- whole texts


@pytest.mark.parametrize("seed", range(8))
def test_tokens_are_the_references(seed):
    made = synthetic.weights(seed, domains=seed % 3, lexicons=seed % 3, skip=seed % 2 == 1)
    rng = np.random.default_rng(seed)
    segmenter = Segmenter.from_weights(made, "general")
    for length in [*range(12), 31, 60, 127]:
        text = random_text(rng, length)
        assert segmenter.cut(text) == synthetic.cut(segmenter, text)


@pytest.mark.parametrize("rules", [[], ["grapheme"], ["latin"], ["number"], ["url"], ["email"], ["latin", "url"]])
def test_each_rule_is_the_references(rules):
    segmenter = Segmenter.from_weights(synthetic.weights(4, size=3), "general")
    segmenter.rules = rules
    rng = np.random.default_rng(len(rules))
    for _ in range(100):
        text = random_text(rng, 25)
        assert segmenter.cut(text) == synthetic.cut(segmenter, text)


@pytest.mark.parametrize("mixture", ["domain1", "domain2", {"domain1": 1, "domain2": 3}, {"domain2": 1, "general": 1}])
@pytest.mark.parametrize("skip", [False, True])
def test_domains_and_mixtures_are_the_references(mixture, skip):
    made = synthetic.weights(5, domains=2, lexicons=2, skip=skip)
    segmenter = Segmenter.from_weights(made, mixture)
    shares = {mixture: 1.0} if isinstance(mixture, str) else mixture
    shares = {k: v / sum(shares.values()) for k, v in shares.items() if k != "general"}
    rng = np.random.default_rng(0)
    tolerance = 6.0 if len(shares) > 1 or sum(shares.values()) < 1 else 0.0  # rows of mixtures are rounded to int8
    different = 0
    for _ in range(40):
        text = random_text(rng, 30)
        different += segmenter.cut(text) != synthetic.cut(segmenter, text, shares)
    assert different <= tolerance


def test_rules_on_ascii_noise_are_those_of_the_regular_expressions():
    segmenter = Segmenter.from_weights(synthetic.weights(6), "general")
    rng = np.random.default_rng(1)
    alphabet = [*"aw1.,:/@-+_%?!()", "www.", "http://", "@a.b", "中"]
    for _ in range(1500):
        text = "".join(rng.choice(alphabet, rng.integers(1, 24)))
        assert segmenter.cut(text) == synthetic.cut(segmenter, text), text


def test_grapheme_clusters_are_never_cut():
    regex = pytest.importorskip("regex")
    segmenter = Segmenter.from_weights(synthetic.weights(7, size=5), "general")
    rng = np.random.default_rng(2)
    import unicode_classes

    # A linker follows a consonant here: regex lets it join any two characters, UAX #29 (GB9c) only consonants.
    ranges = [r for r in unicode_classes.ranges() if r[2] != "kLinker"]
    some = [chr(rng.integers(a, b + 1)) for a, b, _ in ranges for _ in range(2)]
    hangul = [chr(c) for c in rng.integers(0xAC00, 0xD7A4, 200)]
    pool = [*some, *hangul, *"中国人ab12🇨🇳🇫", *"\u200d\u0915👨", *["\u200d", "👩", "🇨", "\u0915\u094d"] * 40]
    for _ in range(3000):
        text = "".join(rng.choice(pool, rng.integers(1, 12)))
        at = 0
        for token in segmenter.cut(text):
            begin = text.index(token, at)
            at = begin + len(token)
            clusters = [m.start() for m in regex.finditer(r"\X", text)] + [len(text)]
            inside = [c for c in (begin, at) if c not in clusters and not text[c - 1 : c].isspace()]
            assert not inside, (text.encode("unicode_escape"), inside)


def test_long_runs_of_clusters_take_linear_time():
    segmenter = Segmenter.from_weights(synthetic.weights(0), "general")
    assert len(segmenter.cut("🇨🇳" * 200_000)) <= 200_000
    assert segmenter.cut("字" + "\u0301" * 300_000) == ["字" + "\u0301" * 300_000]
    assert len(segmenter.cut("a.a." * 100_000)) > 0
    assert len(segmenter.cut("a@" * 100_000)) > 0


def test_the_extreme_weights_of_int8_do_not_overflow():
    made = synthetic.weights(8, lexicons=2, skip=True)
    shared = made.components[0]
    rng = np.random.default_rng(0)
    for table in (shared.unigram, shared.bigram, shared.skip, *shared.charmark):
        table[...] = rng.choice([-1.0, 1.0], table.shape)
    for table in shared.joint:
        table[...] = rng.choice([-60.0, 60.0], table.shape)
    segmenter = Segmenter.from_weights(made, "general")
    assert segmenter._model.scale == 127
    for _ in range(50):
        text = characters(rng, 40)
        assert segmenter.cut(text) == synthetic.cut(segmenter, text)


def test_a_long_line_is_cut_as_if_scores_had_no_bound():
    made = synthetic.weights(9)
    for table in (made.components[0].unigram, made.components[0].bigram):
        np.abs(table, out=table)
    made.components[0].transition[...] = 60  # far more than 2**31 units in all, without renormalisation
    made.components[0].transition[:, _reference.S] = 59
    segmenter = Segmenter.from_weights(made, "general")
    rng = np.random.default_rng(0)
    part = characters(rng, 3000)
    text = part * 120
    emissions, transition = synthetic.scores(synthetic.unpacked(segmenter), part * 3)
    scale = segmenter._model.scale
    middle = np.rint(emissions[3000:6000] * scale)
    inner = np.concatenate([np.rint(emissions[:3000] * scale), *[middle] * 118, np.rint(emissions[6000:] * scale)])
    tags = _reference.viterbi(inner, np.rint(transition * scale))
    starts, _ = segmenter._core.spans(text)
    assert starts.tolist() == np.flatnonzero(np.isin(tags, (_reference.B, _reference.S))).tolist()


# ---- words of the user


def all_segmentations(text):
    for cuts in itertools.product([False, True], repeat=len(text) - 1):
        edges = [0, *[i + 1 for i, cut in enumerate(cuts) if cut], len(text)]
        yield [text[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("seed", range(30))
def test_costs_of_either_sign_are_exact_in_best_paths_sums_and_probabilities(seed):
    rng = np.random.default_rng(seed)
    segmenter = Segmenter.from_weights(synthetic.weights(seed % 3, size=0.5), "general")
    text = "".join(rng.choice(list("中国人"), rng.integers(1, 8)))
    words = {}
    for _ in range(rng.integers(1, 8)):
        i = int(rng.integers(0, len(text)))
        j = int(rng.integers(i + 1, len(text) + 1))
        words[text[i:j]] = float(np.float32(rng.normal() * 4))
    if seed % 3 == 0:
        long = [w for w in words if len(w) > 1]
        words.update(dict.fromkeys(long[:2], "forbid"))
    segmenter.add_words(words)
    model = synthetic.unpacked(segmenter)
    emissions, transition = synthetic.scores(model, text)
    expected = []
    for tokens in all_segmentations(text):
        cost = sum(np.inf if words.get(t) == "forbid" else words.get(t, 0.0) for t in tokens)
        tags = _reference.tags_of([len(t) for t in tokens])
        expected.append(((_reference.path_score(emissions, transition, tags) - cost) / model.temperature, tokens))
    scores = np.array([s for s, _ in expected])
    log_z = np.logaddexp.reduce(scores)
    order = np.argsort(-scores, kind="stable")
    found = segmenter.nbest(text, len(expected))
    finite = [i for i in order if np.isfinite(scores[i])]
    assert segmenter.cut(text) == found[0][0]
    assert [p for _, p in found[: len(finite)]] == pytest.approx([scores[i] - log_z for i in finite], abs=1e-4)
    assert all(p < -1e4 for _, p in found[len(finite) :])
    gaps = np.diff([scores[i] for i in finite])
    if len(gaps) == 0 or abs(gaps).min() > 1e-4:
        assert [t for t, _ in found[: len(finite)]] == [expected[i][1] for i in finite]
    starts = np.zeros(len(text))
    for s, tokens in expected:
        at = 0
        for token in tokens:
            starts[at] += np.exp(s - log_z)
            at += len(token)
    assert segmenter.probabilities(text) == pytest.approx(starts, abs=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_costs_are_exact_in_long_texts_with_overlaps_and_rules(seed):
    rng = np.random.default_rng(100 + seed)
    segmenter = Segmenter.from_weights(synthetic.weights(seed % 3), "general")
    text = "".join(rng.choice([*"中国人民大学", "3", "a", "e\u0301"], 40))
    words = {}
    for _ in range(25):
        i = int(rng.integers(0, len(text) - 8))
        words[text[i : i + int(rng.integers(1, 9))]] = float(np.float32(rng.normal() * 5))
    segmenter.add_words(words)
    emissions, transition = synthetic.scores(synthetic.unpacked(segmenter), text)
    costs = {
        (i, j): words[text[i:j]] for i in range(len(text)) for j in range(i + 1, len(text) + 1) if text[i:j] in words
    }
    joint, start = synthetic.masks(text, ALL)
    expected = _reference.nbest(emissions, transition, 4, joint, start, costs)
    found = segmenter.nbest(text, 4)
    gaps = [(a - b) / segmenter._model.temperature for (a, _), (b, _) in itertools.pairwise(expected)]
    if min(gaps) > 1e-4:  # the last may tie with one that is not here
        assert [[len(t) for t in tokens] for tokens, _ in found[:3]] == [lengths for _, lengths in expected[:3]]
    assert [a[1] - b[1] for a, b in itertools.pairwise(found)] == pytest.approx(gaps, abs=1e-4)
    assert segmenter.cut(text) == found[0][0]


def test_forbidding_the_best_tokens_again_and_again_walks_down_the_n_best():
    segmenter = Segmenter.from_weights(synthetic.weights(1), "general")
    text = "中国人民大学生的是在了和有我他"
    for _ in range(6):
        tokens = segmenter.cut(text)
        long = [t for t in tokens if len(t) > 1]
        if not long:
            break
        segmenter.add_words({long[0]: "forbid"})
        assert long[0] not in segmenter.cut(text)
        assert "".join(segmenter.cut(text)) == text


# ---- probabilities and explanations


@pytest.mark.parametrize("seed", range(4))
def test_probabilities_are_the_references(seed):
    segmenter = Segmenter.from_weights(synthetic.weights(seed, size=0.4), "general")
    rng = np.random.default_rng(seed)
    for _ in range(10):
        text = random_text(rng, 30)
        expected = np.zeros(len(text))
        for begin, end in _reference.sentences(text):
            emissions, transition = synthetic.scores(synthetic.unpacked(segmenter), text[begin:end])
            t = segmenter._model.temperature
            _, nodes, _ = _reference.forward_backward(
                emissions / t, transition / t, *synthetic.masks(text[begin:end], ALL)
            )
            expected[begin:end] = nodes[:, _reference.B] + nodes[:, _reference.S]
        found = segmenter.probabilities(text)
        assert found.dtype == np.float32
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("domain", ["general", "domain1", {"domain1": 1, "domain2": 1}])
def test_explanations_add_up_to_the_score_of_the_path(domain):
    segmenter = Segmenter.from_weights(synthetic.weights(2, domains=2, lexicons=2, skip=True, size=0.4), domain)
    words = {"人民": -1.5, "国": 0.5, "民大": 2.0}
    segmenter.add_words(words)
    text = "中国人民 大学3a人民"
    explained = segmenter.explain(text)
    assert "".join(x.character for x in explained) == text.replace(" ", "")
    tokens = segmenter.cut(text)
    assert [x.tag for x in explained] == ["BMES"[t] for w in tokens for t in _reference.tags_of([len(w)])]
    total = sum(weight for x in explained for _, _, weight in x.fired)
    best = segmenter.nbest(text, 1)[0][1]
    second = segmenter.nbest(text, 2)[1][1]
    t = segmenter._model.temperature
    assert min(x.margin for x in explained) == pytest.approx((best - second) * t, abs=1e-4)
    if domain == "general":
        score = 0.0
        for sentence in text.split():
            emissions, transition = synthetic.scores(synthetic.unpacked(segmenter), sentence)
            inner = segmenter.cut(sentence)
            tags = _reference.tags_of([len(w) for w in inner])
            score += _reference.path_score(emissions, transition, tags) - sum(words.get(w, 0) for w in inner)
        assert total == pytest.approx(score, abs=1e-4)
    domains = {domain for x in explained for _, domain, _ in x.fired}
    assert "shared" in domains
    assert domains <= {"shared", "user", "domain1", "domain1+domain2"}


def test_the_gate_is_the_references():
    made = synthetic.weights(3, domains=3, gate=True)
    segmenter = Segmenter.from_weights(made)
    gate = synthetic.unpacked(segmenter).gate
    rng = np.random.default_rng(0)
    for length in (0, 1, 2, 31, 5000):
        text = characters(rng, length)
        expected = _reference.gate_probabilities(gate, _reference.symbols(text, made.symbols))
        assert list(segmenter.gate(text).values()) == pytest.approx(expected, abs=1e-4)
        best = int(expected.argmax())
        name = f"domain{best + 1}" if expected[best] >= 0.6 else "general"
        assert segmenter.cut(text) == segmenter.with_domain(name).cut(text)


def test_what_packing_stores_is_within_half_a_unit_of_the_weights():
    made = synthetic.weights(11, domains=2, lexicons=1, skip=True)
    model = _core.Model.copy(_modelfile.pack(made), "test")
    back = _modelfile.unpack(model)
    for k in range(3):
        mixture = {f"domain{k}": 1.0} if k else None
        a, b = _reference.active(made, mixture), _reference.active(back, mixture)
        pairs = [(a.unigram, b.unigram), (a.bigram, b.bigram), (a.skip, b.skip), (a.charmark[0], b.charmark[0])]
        for before, after in pairs:
            inside = np.abs(after * model.scale).max(-1) < 126.5  # nothing was cut off
            assert inside.mean() > 0.99
            error = (before - after)[inside]
            error -= (error.max(-1, keepdims=True) + error.min(-1, keepdims=True)) / 2  # a constant changes no path
            assert np.abs(error).max() <= 0.5 / model.scale * 1.001
        assert np.abs(a.transition - b.transition).max() <= 0.5 / model.scale * 1.001
