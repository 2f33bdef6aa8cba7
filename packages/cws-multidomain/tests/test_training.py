"""Learning: the gradient, the schedule, determinism, domains, partial labels, refinement, bad input."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from cws_multidomain import Partial, Segmenter, Sentence, _core, evaluate, fine_tune, train
from cws_multidomain._encoding import Symbols, encode, jackknife, lexicon, marks, vocabulary
from cws_multidomain._learner import Learner, Options, _component, _features
from cws_multidomain._reference import LEGAL

B, M, E, S = range(4)
STILL = {"upper": 1.0, "lower": 1.0, "l2": 1e9, "transition": 1.0}  # a schedule that changes nothing


def corpus(count: int = 60, seed: int = 0) -> list[list[str]]:
    """Sentences of a small language whose words tell where they end by their last character."""
    random = np.random.default_rng(seed)
    stems, ends = "天地人山水火木", "子头们"
    words = ["".join(pair) for pair in itertools.product(stems, ends)] + list("的在了")
    return [[words[k] for k in random.integers(len(words), size=random.integers(2, 9))] for _ in range(count)]


def same(a: Segmenter, b: Segmenter) -> bool:
    return a._model.data.tobytes() == b._model.data.tobytes()


def paths(allowed: list[int]) -> list[tuple[int, ...]]:
    """The legal paths within a mask."""
    found = []
    for path in itertools.product(range(4), repeat=len(allowed)):
        legal = path[0] in (B, S) and path[-1] in (E, S) and all(LEGAL[a, b] for a, b in itertools.pairwise(path))
        if legal and all(mask >> y & 1 for mask, y in zip(allowed, path, strict=True)):
            found.append(path)
    return found


def step(allowed: list[int], weights: np.ndarray, transition: np.ndarray, symbols: list[int]) -> tuple[Any, Any]:
    """The trainer's loss and its gradient of the transitions, by one step at rate 1."""
    trainer = _core.Trainer(0, 0)
    keys = np.array([(1 + 2) << 32 | s << 16 for s in sorted(set(symbols))], np.uint64)
    trainer.set(0, keys, weights.astype(np.float32), transition.astype(np.float32).reshape(-1))
    n = len(symbols)
    trainer.load(
        np.array(symbols, np.uint16),
        np.array([0, n], np.int64),
        [],
        np.array(allowed, np.uint8),
        np.zeros(1, np.uint8),
        1.0,
    )
    loss = trainer.epoch(
        np.zeros(1, np.int32), 0, **STILL, domain_dropout=0.0, feature_dropout=0.0, shared=True, updates=1, shards=1,
        threads=1,
    )  # fmt: skip
    moved = transition - trainer.transition(0).reshape(4, 4)
    got = dict(zip(trainer.keys.tolist(), trainer.weights(0).reshape(-1, 4), strict=True))
    return loss, (moved, np.array([weights[i] - got[int(k)] for i, k in enumerate(keys)]))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_a_step_is_the_gradient_by_brute_force(n: int, known: bool) -> None:
    random = np.random.default_rng(n)
    symbols = random.integers(5, 9, size=n).tolist()
    used = sorted(set(symbols))
    weights, transition = random.normal(size=(len(used), 4)), random.normal(size=(4, 4))
    every = paths([15] * n)
    gold = every[random.integers(len(every))]
    allowed = [1 << y for y in gold]
    if not known:
        allowed = [mask | int(random.integers(16)) for mask in allowed]

    def expect(legal: list[tuple[int, ...]]) -> tuple[float, np.ndarray, np.ndarray]:
        scores = []
        for path in legal:
            nodes = sum(weights[used.index(s), y] for s, y in zip(symbols, path, strict=True))
            scores.append(nodes + sum(transition[a, b] for a, b in itertools.pairwise(path)))
        log_sum = np.logaddexp.reduce(scores)
        edges, nodes_ = np.zeros((4, 4)), np.zeros_like(weights)
        for path, score in zip(legal, scores, strict=True):
            p = np.exp(score - log_sum)
            for s, y in zip(symbols, path, strict=True):
                nodes_[used.index(s), y] += p
            for a, b in itertools.pairwise(path):
                edges[a, b] += p
        return log_sum, edges, nodes_

    z, edges, nodes = expect(every)
    z_gold, edges_gold, nodes_gold = expect(paths(allowed))
    loss, (moved, moved_nodes) = step(allowed, weights, transition, symbols)
    assert loss == pytest.approx(z - z_gold, abs=2e-5)
    np.testing.assert_allclose(moved, edges - edges_gold, atol=5e-6)
    np.testing.assert_allclose(moved_nodes, nodes - nodes_gold, atol=5e-6)


@pytest.mark.parametrize("scale", [50.0, 1000.0, 1e6])
def test_a_step_stays_finite_where_scores_are_extreme(scale: float) -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        symbols = random.integers(5, 9, size=7).tolist()
        every = paths([15] * 7)
        allowed = [1 << y for y in every[random.integers(len(every))]]
        weights = random.normal(size=(len(set(symbols)), 4)) * scale
        loss, (edges, nodes) = step(allowed, weights, random.normal(size=(4, 4)) * scale, symbols)
        assert np.isfinite(loss)
        assert np.isfinite(edges).all()
        assert np.isfinite(nodes).all()


def test_rates_fall_with_the_frequency_of_a_feature_and_weights_decay() -> None:
    trainer = _core.Trainer(0, 0)
    keys = np.array([3 << 32 | s << 16 for s in (5, 6)], np.uint64)
    trainer.set(0, keys, np.ones((2, 4), np.float32), np.zeros(16, np.float32))
    # Four sentences of the one permitted path each: nothing is learnt, so that only schedule and decay show.
    splits = np.arange(5, dtype=np.int64)
    allowed = np.full(4, 1 << S, np.uint8)
    symbols = np.array([5, 5, 5, 7], np.uint16)
    trainer.load(symbols, splits, [], allowed, np.zeros(4, np.uint8), 0.05)
    options = {"upper": 0.9, "lower": 0.5, "l2": 1.0, "transition": 1.0, "domain_dropout": 0.0, "feature_dropout": 0.0}
    trainer.epoch(np.arange(4, dtype=np.int32), 0, **options, shared=True, updates=1, shards=1, threads=1)
    got = dict(zip(trainer.keys.tolist(), trainer.weights(0).reshape(-1, 4), strict=True))
    often, never = got[int(keys[0])], got[int(keys[1])]
    assert never == pytest.approx(1 - 0.05 * 0.9)
    gold_free = [B, M, E]  # a single character has only the tag S: no gradient anywhere
    assert often[gold_free] == pytest.approx(1 - 0.05 * (0.9 - 0.4 * 0.75))


def test_training_learns_words_that_it_has_not_seen() -> None:
    segmenter = train(corpus(300), epochs=10, vocabulary=False)
    gold = [["云子", "的", "天头"], ["在", "云们"]]
    assert segmenter.cut_many(["".join(words) for words in gold]) == gold


@pytest.mark.parametrize("shards", [1, 4])
def test_the_model_is_the_same_for_any_number_of_threads(shards: int) -> None:
    made = [train(corpus(), epochs=3, shards=shards, threads=threads) for threads in (1, 2, 3)]
    assert same(made[0], made[1])
    assert same(made[0], made[2])


def test_the_model_depends_on_the_seed() -> None:
    assert same(train(corpus(), epochs=2, seed=1), train(corpus(), epochs=2, seed=1))
    assert not same(train(corpus(), epochs=2, seed=1), train(corpus(), epochs=2, seed=2))


def test_domains_disagree_where_their_corpora_do() -> None:
    whole = [["天子", "在", "山头"]] * 20
    apart = [["天", "子", "在", "山", "头"]] * 20
    segmenter = train({"whole": whole, "apart": apart}, epochs=10, vocabulary=False)
    assert segmenter.domains == ("general", "whole", "apart")
    assert segmenter.with_domain("whole").cut("天子在山头") == whole[0]
    assert segmenter.with_domain("apart").cut("天子在山头") == apart[0]


def test_partial_labels_teach_what_they_say() -> None:
    text = "天子在山头"
    known = Partial(text, (False, True, True, False))
    half = Partial(text, (None, True, None, False))
    assert train([known] * 30, epochs=5).cut(text) == ["天子", "在", "山头"]
    assert train([half] * 30, epochs=5).cut(text)[-1] == "山头"


def test_partial_lines_without_a_known_boundary_are_skipped_and_counted() -> None:
    unknown = Partial("天地", (None,))
    segmenter = train([unknown, *corpus(10)], epochs=1)
    assert segmenter.info["training"]["skipped"] == 1
    with pytest.raises(ValueError, match="corpus must have a known boundary"):
        train([unknown])


def test_white_space_between_words_ends_a_sentence_in_training_too() -> None:
    spaced = encode([Sentence(["New", "York", "很", "大"], spaces=[True, False, False, False])])
    assert spaced.splits.tolist() == [0, 3, 9]
    assert spaced.starts.tolist() == [1, 0, 0, 1, 0, 0, 0, 1, 1]


def test_vocabulary_marks_of_training_text_come_from_the_other_folds() -> None:
    sentences = (
        [Sentence(["天子", "来"]), Sentence(["山头", "高"])] + [Sentence(["来"])] * 9 + [Sentence(["天子", "高"])]
    )
    encoded, folds = encode(sentences), vocabulary(sentences)
    symbols = Symbols.of([encoded.points])
    made = jackknife(folds, sentences, symbols, encoded)
    automaton = lexicon(symbols.words(folds), symbols.count)
    full = marks(lambda s: _core.lexicon_marks(automaton, s), symbols(encoded.points), encoded.splits)
    assert made[:2].tolist() == full[:2].tolist()  # 天子 is also in fold 1
    assert made[3:5].tolist() == [0, 0]  # 山头 occurs nowhere else
    assert full[3:5].tolist() == [25, 5]


def test_weights_survive_the_way_through_features() -> None:
    learner = Learner({None: [Sentence(words) for words in corpus()]}, Options(), dictionary=[("天地", 3)])
    learner.epoch(0)
    component = learner.weights().components[0]
    keys, values, transition = _features(component)
    again = _component(keys, values, transition.reshape(4, 4), len(component.unigram), 2)
    kept = component.bigram.any((1, 2))
    np.testing.assert_array_equal(again.bigram_keys, component.bigram_keys[kept])
    np.testing.assert_array_equal(again.bigram, component.bigram[kept])
    np.testing.assert_array_equal(again.unigram, component.unigram)
    for a, b in zip(again.joint, component.joint, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_variants_share_the_weights_of_their_character() -> None:
    segmenter = train([["马头", "在"], ["在", "马头", "的"]] * 20, epochs=5, variants={"馬": "马", "頭": "头"})
    assert segmenter.cut("馬頭在") == ["馬頭", "在"]


def test_dev_picks_the_epoch_and_progress_tells_of_each() -> None:
    told = []
    segmenter = train(corpus(), dev=corpus(20, 1), epochs=4, progress=told.append)
    assert [p.epoch for p in told] == [1, 2, 3, 4]
    gold = corpus(20, 1)
    f1 = evaluate(gold, segmenter.cut_many(["".join(words) for words in gold])).f1
    assert f1 == pytest.approx(max(p.f1 for p in told), abs=1e-9)


def test_fine_tuning_learns_a_few_sentences_and_leaves_the_rest() -> None:
    segmenter = train({"a": corpus(), "b": corpus(60, 1)}, epochs=5)
    before = segmenter._model.data.tobytes()
    text = "天子的山头"
    corrected = [["天", "子", "的", "山头"]] * 5
    tuned = segmenter.fine_tune(corrected, domain="mine")
    assert tuned.domains == ("general", "a", "b", "mine")
    assert tuned.with_domain("mine").cut(text) == corrected[0]
    for domain in ("general", "a"):
        assert tuned.with_domain(domain).cut(text) == segmenter.with_domain(domain).cut(text)
    assert segmenter._model.data.tobytes() == before
    assert tuned.info["fine_tuned"][0]["domain"] == "mine"


def test_what_does_not_learn_does_not_decay() -> None:
    start = train({"a": corpus(40, 1), "b": corpus(40, 2)}, epochs=3).weights()
    sentences = [Sentence(words) for words in corpus(20, 3)]
    before = Learner({"c": sentences}, Options(), start=start, shared=False).weights()
    cases = (False, "c", (0, 1, 2)), (False, "b", (0, 1)), (True, "b", (1,)), (True, None, (1, 2))
    for shared, domain, still in cases:
        learner = Learner({domain: sentences}, Options(), start=start, shared=shared)
        for number in range(3):
            learner.epoch(number)
        after = learner.weights()
        for k, (old, new) in enumerate(zip(before.components, after.components, strict=False)):
            equal = np.array_equal(old.unigram, new.unigram) and np.array_equal(old.transition, new.transition)
            assert equal == (k in still), (domain, k)


def test_the_gate_goes_on_as_before_when_a_domain_is_added() -> None:
    segmenter = train({"a": [["天子", "来"]] * 30, "b": [["山头", "高"]] * 30}, epochs=2)
    tuned = segmenter.fine_tune([["人们", "在"]] * 5, domain="mine")
    for text in ("天子来", "山头高", "人们在"):
        gate = tuned.gate(text)
        assert gate.pop("mine") == 0
        assert gate == pytest.approx(segmenter.gate(text), abs=1e-3)


def test_fine_tuning_meets_characters_that_the_model_has_not() -> None:
    tuned = train(corpus(), epochs=3).fine_tune([["龘龘", "在"]] * 20)
    assert tuned.cut("龘龘在") == ["龘龘", "在"]


def test_a_smaller_model_keeps_the_n_grams_that_matter() -> None:
    full, small = train(corpus(), epochs=5), train(corpus(), epochs=5, max_bytes=1500)
    assert len(small._model.data) < len(full._model.data)
    gold = corpus(20, 2)
    assert evaluate(gold, small.cut_many(["".join(words) for words in gold])).f1 > 0.95


def test_templates_of_pkuseg_make_a_model_of_pkuseg() -> None:
    assert train(corpus(), templates="pkuseg", reference=True, epochs=5).cut("天子的山头") == ["天子", "的", "山头"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"rate": 0.0}, "rate must be a positive number, got 0.0"),
        ({"lower": 0.999}, "lower and upper must be"),
        ({"l2": -1}, "l2 must be a positive number, got -1"),
        ({"domain_dropout": 1.0}, "domain_dropout must be at least 0 and below 1, got 1.0"),
        ({"threads": 0}, "threads must be an integer of at least 1, got 0"),
        ({"seed": -1}, "seed must be a non-negative integer, got -1"),
        ({"templates": "crf++"}, "templates must be native or pkuseg, got 'crf\\+\\+'"),
        ({"reference": True}, "reference must be False for templates='native'"),
        ({"max_bytes": 0}, "max_bytes must be an integer of at least 1, got 0"),
        ({"variants": {"ab": "c"}}, "variants must map characters to characters, got 'ab': 'c'"),
        ({"variants": {1: "c"}}, "variants must map characters to characters, got 1: 'c'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(corpus(3), **options)


def test_variants_must_be_a_mapping() -> None:
    with pytest.raises(TypeError, match="variants must map characters to characters, got list"):
        train(corpus(3), variants=["a", "b"])


def test_bad_corpora_are_named() -> None:
    with pytest.raises(ValueError, match="corpus must have at least one sentence"):
        train([])
    with pytest.raises(ValueError, match="domain 'b' of corpus must have at least one sentence"):
        train({"a": corpus(3), "b": []})
    with pytest.raises(ValueError, match="must not name a domain auto or general"):
        train({"general": corpus(3)})
    with pytest.raises(TypeError):
        train(3)
    segmenter = train(corpus(5), epochs=1)
    with pytest.raises(ValueError, match="domain must be a name other than auto and general, got 'auto'"):
        fine_tune(segmenter, corpus(3), domain="auto")


def test_fewer_than_ten_sentences_work() -> None:
    assert train([["天子"]], epochs=1).cut("天子") == ["天子"]
