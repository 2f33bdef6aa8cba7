"""How well text is cut: closed and open tests, domains, rounding, and the shipped model; nearly all needs --data."""

from __future__ import annotations

import hashlib
import random
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache, partial
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
from bench_training import train_pkuseg
from corpora import (
    ALL,
    CLOSED,
    TREEBANKS,
    Cut,
    Result,
    Set,
    Words,
    corpora,
    jieba_lcut,
    jieba_words,
    judge,
    judge_text,
    made_up,
    one_by_one,
    traditional,
)
from harness import FULL, Context, Figure, Outcome, Study, Workload, at_least, at_most, cores
from sentences import GOLD

from cws_multidomain import Segmenter, Sentence, _core, _reference, adapt, compare, evaluate, train
from cws_multidomain._encoding import Symbols, encode, lexicon, marks
from cws_multidomain.preparation import leakage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cws_multidomain._weights import Weights

PACKAGES = ("cws-multidomain", "numpy", "jieba", "rjieba", "spacy-pkuseg", "opencc")
OURS, PKUSEG = "cws-multidomain", "spacy-pkuseg"
CACHE = Path(__file__).resolve().parents[1] / "report" / "peers"  # models that cost hours of training, by their text


def sets(context: Context) -> dict[str, Set]:
    """The corpora; in a smoke run a few made-up sentences under each name."""
    return tiny() if context.profile == "smoke" else corpora(context.data)


@cache
def tiny() -> dict[str, Set]:
    return {name: Set(name, made_up(800, seed=10 + k), made_up(200, seed=30 + k)) for k, name in enumerate(ALL)}


def seeds(context: Context) -> range:
    return range(context.pick(1, 1, 3))


_made: dict[tuple[Any, ...], Segmenter] = {}


def learnt(context: Context, names: Sequence[str], how: str, seed: int = 0, opened: bool = False) -> Segmenter:
    """A segmenter of these training sets, default options: "shared", with domains, or "pooled", without."""
    key = (context.profile, context.data, tuple(names), how, seed, opened)
    if key not in _made:
        parts = {name: sets(context)[name].train for name in names}
        corpus: Any = parts if how == "shared" else [words for part in parts.values() for words in part]
        epochs = context.pick(1, 20)
        dictionaries = [jieba_words()] if opened else []
        _made[key] = train(corpus, seed=seed, epochs=epochs, dictionaries=dictionaries, threads=1)
    return _made[key]


def learn_at_once(context: Context, *wanted: tuple[Sequence[str], str, int, bool]) -> None:
    """As many at a time as there are cores; the trainer holds no lock."""
    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(lambda each: learnt(context, *each), wanted))


def own(context: Context, name: str, seed: int = 0, opened: bool = False) -> Segmenter:
    return learnt(context, (name,), "pooled", seed, opened)


def spread(values: Sequence[float]) -> str:
    sd = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{sd}"


def shown(results: Sequence[Result]) -> str:
    """Mean F1, its standard deviation over seeds, and in brackets the recall of unknown words."""
    return f"{spread([r.f1 for r in results])} ({statistics.fmean([r.oov_recall for r in results]):.1f})"


def score(name: str, who: str, results: Sequence[Result], peer: str, limit: float | None, headline: bool) -> Figure:
    """F1 over the seeds: the mean, from the least to the greatest."""
    values = [r.f1 for r in results]
    figure = Figure(name, who, peer, " F1", statistics.fmean(values), headline=headline)
    figure.target = None if limit is None else at_least(limit)
    if len(values) > 1:
        figure.low, figure.high = min(values), max(values)
    return figure


# --- the peer ---


def pkuseg_of(context: Context, corpus: list[Words], epochs: int) -> Cut | None:
    """spacy-pkuseg trained on a corpus: kept, since it takes up to a quarter of an hour; None outside of a full run."""
    text = "".join(" ".join(words) + "\n" for words in corpus)
    place = CACHE / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}-{epochs}"
    if not place.is_dir():
        if context.profile != "full" and len(text) * epochs > 3_000_000:
            return None
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            train_pkuseg(corpus, Path(folder), epochs)[0].rename(place)
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        import spacy_pkuseg

        return one_by_one(spacy_pkuseg.pkuseg(str(place), user_dict=None).cut)


# --- closed and open tests ---

CLOSED_TARGETS = {"SXU": 95.9, "Zhuxian": 95.3, "MSR10": 92.3, "PKU10": 93.0}
OPEN_TARGETS = {"SXU": 96.8, "Zhuxian": 95.8, "MSR10": 93.8, "PKU10": 95.0}


def closed(context: Context, outcome: Outcome) -> None:
    head = ["test set", "spacy-pkuseg", "ours, one domain", "p", "ours, shared + domain", "p", "OOV rate"]
    outcome.table = [head]
    draws = context.pick(99, 2000, 10_000)
    jobs = [(CLOSED, "shared", seed, wide) for seed in seeds(context) for wide in (True, False)]
    single = [((name,), "pooled", seed, False) for seed in seeds(context) for name in CLOSED]
    learn_at_once(context, *jobs, *single, *((CLOSED, "pooled", seed, False) for seed in seeds(context)))
    for number, name in enumerate(CLOSED):
        test = sets(context)[name]
        alone = [judge(test, own(context, name, seed).cut_many) for seed in seeds(context)]
        shared = [
            judge(test, learnt(context, CLOSED, "shared", seed).with_domain(name).cut_many) for seed in seeds(context)
        ]
        peer, ps, theirs = "not trained in a quick run", ["", ""], None
        if (cut := pkuseg_of(context, test.train, context.pick(1, 20))) is not None:
            theirs = judge(test, cut)
            peer = f"{PKUSEG} {theirs.f1:.2f}"
            ps = [f"{compare(test.test, theirs.words, r[0].words, draws).p_value:.1g}" for r in (alone, shared)]
        gain = Figure(f"{name}, one domain, over spacy-pkuseg", f"{OURS} {shown(alone)}", peer, " points")
        if theirs is None:
            gain.verdict, gain.note = "missing", f"its training takes minutes: {peer}, unless a full run has kept it"
        else:
            gaps = [r.f1 - theirs.f1 for r in alone]
            recall = statistics.fmean(r.oov_recall for r in alone) - theirs.oov_recall
            gain.value, gain.target = statistics.fmean(gaps), at_least(0)
            gain.note = f"p = {ps[0]}; recall of unknown words {recall:+.1f} points"
            gain.low, gain.high = (min(gaps), max(gaps)) if len(gaps) > 1 else (None, None)
        label = f"{name}, shared + domain"
        outcome.figures += [gain, score(label, OURS, shared, peer, CLOSED_TARGETS.get(name), False)]
        rate = sum(w not in test.vocabulary for s in test.collapsed for w in s) / sum(map(len, test.collapsed))
        row = ["-" if theirs is None else str(theirs), shown(alone), ps[0], shown(shared), ps[1], f"{100 * rate:.1f} %"]
        outcome.table.append([name, *row])
        context.progress((number + 1) / len(CLOSED))


def glimpse(context: Context, outcome: Outcome) -> None:
    """Both learn the same part of one set, for a few epochs."""
    whole = sets(context)["Zhuxian"]
    test = Set("Zhuxian", whole.train[: context.pick(20, 900)], whole.test)
    epochs = context.pick(1, 5)
    cut = pkuseg_of(context, test.train, epochs)
    assert cut is not None
    mine, theirs = judge(test, train(test.train, epochs=epochs, threads=1).cut_many), judge(test, cut)
    p = compare(test.test, theirs.words, mine.words, context.pick(99, 2000)).p_value
    figure = Figure("", f"{OURS} {mine}", f"{PKUSEG} {theirs}", " points", mine.f1 - theirs.f1, target=at_least(0))
    figure.note = f"{test.words:,} words, {epochs} epochs; in brackets the recall of unknown words; p = {p:.1g}"
    outcome.figures.append(figure)


def opened(context: Context, outcome: Outcome) -> None:
    outcome.table = [["test set", "jieba", "ours, one domain", "ours, shared + domain"]]
    for name in CLOSED:
        test = sets(context)[name]
        theirs = judge_text(test, one_by_one(jieba_lcut()))
        single = [judge(test, own(context, name, 0, True).cut_many)] if context.profile == "full" else []
        models = [learnt(context, CLOSED, "shared", seed, True) for seed in seeds(context)]
        shared = [judge(test, model.with_domain(name).cut_many) for model in models]
        peer = f"jieba {theirs.f1:.2f}"
        outcome.figures.append(score(f"{name}, open", OURS, shared, peer, OPEN_TARGETS.get(name), False))
        outcome.table.append([name, f"{theirs.f1:.2f}", shown(single) if single else "full run", shown(shared)])


# --- domains ---


def ablation(context: Context, outcome: Outcome) -> None:
    outcome.table = [["trained on", "test set", "words", "separate", "pooled", "shared, general", "shared + domain"]]
    for group, names in (("five criteria", CLOSED), ("treebanks", TREEBANKS)):
        every = [(learnt(context, names, "pooled", s), learnt(context, names, "shared", s)) for s in seeds(context)]
        for name in names:
            test = sets(context)[name]
            alone = [judge(test, own(context, name, s).cut_many) for s in seeds(context)]
            pooled = [judge(test, p.cut_many, every_word(context, names)) for p, _ in every]
            general = [judge(test, m.with_domain("general").cut_many, every_word(context, names)) for _, m in every]
            both = [judge(test, m.with_domain(name).cut_many, every_word(context, names)) for _, m in every]
            outcome.table.append([group, name, f"{test.words:,}", *map(shown, (alone, pooled, general, both))])
            best = max(statistics.fmean(r.f1 for r in x) for x in (alone, pooled))
            gain = statistics.fmean(r.f1 for r in both) - best
            target = at_least(0) if test.words < 100_000 else None
            labels = f"shared + domain {shown(both)}", f"separate {shown(alone)}, pooled {shown(pooled)}"
            outcome.figures.append(Figure(f"{group}: {name}", *labels, " points", gain, target=target))


def every_word(context: Context, names: Sequence[str]) -> frozenset[str]:
    return frozenset().union(*(sets(context)[name].vocabulary for name in names))


def sampled(test: Set, context: Context) -> Set:
    return Set(test.name, test.train, test.test[: context.pick(20, 400, len(test.test))])


def matrix(context: Context, outcome: Outcome) -> None:
    """Rows are test sets, columns what was learnt; then one model of several domains, by its domains."""
    inside = CLOSED if context.profile == "quick" else ALL
    one = learnt(context, inside, "shared")
    models = {name: own(context, name) for name in ALL}
    outcome.table = [["test set", *(f"only {name}" for name in ALL), "one model: general", "auto", "own domain"]]
    ahead = right = 0
    for name in ALL:
        test = sampled(sets(context)[name], context)
        row = {other: judge(test, model.cut_many).f1 for other, model in models.items()}
        heads = {d: judge(test, one.with_domain(d).cut_many).f1 for d in ("general", "auto", *inside)}
        cells = [*row.values(), heads["general"], heads["auto"], heads.get(name)]
        outcome.table.append([name, *("-" if x is None else f"{x:.1f}" for x in cells)])
        if name in inside:
            ahead += heads[name] > max(row.values())
            right += heads[name] >= max(f1 for d, f1 in heads.items() if d != "auto")
        context.progress(len(outcome.table) / 9)
    size, unit = len(inside), f" of {len(inside)} test sets"
    outcome.figures = [
        Figure("ahead of every separate model", "shared + domain", "", unit, ahead, target=at_least(size)),
        Figure("the right domain is the best of one model", "shared + domain", "", unit, right, target=at_least(size)),
        Figure(
            "blocks of ten sentences that the gate puts in their domain", OURS, "", " %", gate(context, one, inside)
        ),
    ]


def gate(context: Context, segmenter: Segmenter, names: Sequence[str]) -> float:
    """A block is a document here; what is below the threshold counts as wrong."""
    right = total = 0
    for name in names:
        texts = ["".join(words) for words in sampled(sets(context)[name], context).collapsed]
        for start in range(0, len(texts), 10):
            probabilities = segmenter.gate("".join(texts[start : start + 10]))
            right += probabilities[name] >= 0.6  # the threshold
            total += 1
    return 100 * right / total


def left_out(context: Context, outcome: Outcome) -> None:
    outcome.table = [["test set", "pooled others", "shared others, general", "the same, open", "with its domain"]]
    rest = {name: tuple(other for other in CLOSED if other != name) for name in CLOSED}
    jobs = [(others, *job) for others in rest.values() for job in (("pooled", 0, False), ("shared", 0, False))]
    learn_at_once(context, *jobs, *((others, "shared", 0, True) for others in rest.values()))
    for name, others in rest.items():
        test, known = sets(context)[name], every_word(context, others)
        pooled = judge(test, learnt(context, others, "pooled").cut_many, known)
        general = judge(test, learnt(context, others, "shared").with_domain("general").cut_many, known)
        wide = judge(test, learnt(context, others, "shared", 0, True).with_domain("general").cut_many, known)
        inside = judge(test, learnt(context, CLOSED, "shared").with_domain(name).cut_many, known)
        outcome.table.append([name, str(pooled), str(general), str(wide), str(inside)])
        labels = f"shared, general {general}", f"pooled {pooled}"
        outcome.figures.append(Figure(name, *labels, " points", general.f1 - pooled.f1))


MIXTURE = {"PUD": 0.4, "HK": 0.3, "CFL": 0.3}  # by Zhuxian's development set, whose labels serve nothing else


def adaptation(context: Context, outcome: Outcome) -> None:
    """From other sets to one of which there is only text: that of its training set, and with it that of its test."""
    outcome.table = [["from", "to", "step", "F1 (recall of words unknown before)", "induced words"]]
    jobs: list[tuple[str, tuple[str, ...], str, bool, Any]] = [("SXU", ("SXU",), "Zhuxian", False, "general")]
    if context.profile == "full":
        for target in ("Zhuxian", "SXU"):
            others = tuple(name for name in CLOSED if name != target)
            jobs += [("the other four", others, target, False, "general")]
            jobs += [("the other four, open", others, target, True, "general")]
        others = tuple(name for name in ALL if name != "Zhuxian")
        jobs += [("the other seven, open", others, "Zhuxian", True, domain) for domain in ("auto", MIXTURE)]
    for number, (label, names, target, wide, domain) in enumerate(jobs):
        test, known = sets(context)[target], every_word(context, names)
        base = learnt(context, names, "shared" if len(names) > 1 else "pooled", 0, wide).with_domain(domain)
        label = f"{label}, by {len(domain)} domains" if isinstance(domain, dict) else f"{label}, {domain}"
        raw = ["".join(words) for words in test.train]
        both = [*raw, *("".join(words) for words in test.collapsed)]
        before = judge(test, base.cut_many, known)
        steps: list[tuple[str, Result, Any]] = [("before", before, None)]
        for step, text, options in (
            ("its words induced", raw, {"rounds": 0}),
            ("and self-training: adapt()", raw, {}),
            ("the same with two rounds", raw, {"rounds": 2}),
            ("adapt() to the test's text as well", both, {}),
        ):
            made = adapt(base, text, **options)  # type: ignore[arg-type]
            steps.append((step, judge(test, made.cut_many, known), made.info["adapted"][-1]["induced"]))
        for step, result, induced in steps:
            outcome.table.append([label, target, step, str(result), "" if induced is None else str(induced)])
        after = steps[2][1]
        p = compare(test.test, before.words, after.words, context.pick(99, 2000, 10_000)).p_value
        figure = Figure(f"from {label} to {target}", f"adapted {after}", f"before {before}", " F1", after.f1)
        figure.note = f"gain {after.f1 - before.f1:+.2f}, p = {p:.1g}"
        if domain is MIXTURE:
            figure.target, figure.headline = at_least(87), True
        outcome.figures.append(figure)
        context.progress((number + 1) / len(jobs))


def leaks(context: Context, outcome: Outcome) -> None:
    outcome.table = [
        ["test set", "sentences", "also in training", "once collapsed", "share a 16-gram", "16-grams shared"]
    ]
    worst = 0
    for name, part in sets(context).items():
        found = leakage(part.train, part.test)
        worst = max(worst, found.collapsed if name in CLOSED else 0)
        shares = 100 * found.shared_ngrams / max(1, found.ngrams)
        cells = found.sentences, found.exact, found.collapsed, found.overlapping
        outcome.table.append([name, *map(str, cells), f"{shares:.2f} %"])
    figure = Figure("test sentences in the training set, at most", OURS, "", "", worst, target=at_most(0))
    figure.note = "short replies of HK that are in both of its halves are kept, and not counted here"
    outcome.figures.append(figure)


# --- rounding ---


def float_cut(weights: Weights, mixture: dict[str, float]) -> Cut:
    """Decoding of the weights before they are rounded, by the definition in NumPy."""
    part = _reference.active(weights, mixture)
    symbols = Symbols(weights.symbols, weights.n_symbols)
    automata = [
        partial(_core.lexicon_marks, lexicon(symbols.words(word for word, _ in words), symbols.count))
        for words in weights.lexicons
    ]

    def look_up(keys: Any, rows: Any, wanted: Any) -> Any:
        at = np.minimum(np.searchsorted(keys, wanted), max(0, len(keys) - 1))
        return np.where((keys[at] == wanted)[:, None], rows[at], 0) if len(keys) else 0

    def cut(texts: list[str]) -> list[Words]:
        encoded = encode([Sentence([text]) for text in texts])
        s, splits = symbols(encoded.points), encoded.splits
        lengths = np.diff(splits)
        at = np.arange(len(s)) + 2 + 4 * np.repeat(np.arange(len(texts)), lengths)
        padded = np.full(len(s) + 4 * len(texts), _reference.BEFORE, np.uint32)
        padded[at] = s
        ends = at[splits[1:] - 1]
        padded[ends + 1] = padded[ends + 2] = _reference.AFTER
        x = sum(part.unigram[padded[at + d], d + 2].astype(np.float64) for d in range(-2, 3))
        for d in range(-2, 2):
            x += look_up(part.bigram_keys, part.bigram[:, d + 2], padded[at + d] << 16 | padded[at + d + 1])
        first, last = np.zeros(len(s), bool), np.zeros(len(s), bool)
        first[splits[:-1]], last[splits[1:] - 1] = True, True
        for k, of in enumerate(automata):
            m = marks(of, s, splits).astype(np.int64)
            before = np.where(first, 0, np.roll(m, 1) // 5 % 5)
            after = np.where(last, 0, np.roll(m, -1) // 25)
            x += part.joint[k][before, m, after]
            x += look_up(part.charmark_keys[k], part.charmark[k], (m << 16 | s).astype(np.uint32))
        out = []
        for text, a, b in zip(texts, splits[:-1], splits[1:], strict=True):
            tags = _reference.viterbi(x[a:b], part.transition, *_reference.masks(text))
            stops = np.cumsum([0, *_reference.lengths_of(tags)]).tolist()
            out.append([text[i:j] for i, j in pairwise(stops)])
        return out

    return cut


def rounding(context: Context, outcome: Outcome) -> None:
    outcome.table = [["model", "test set", "float32", "int8", "sentences cut otherwise", "model, MB"]]
    jobs: list[tuple[str, tuple[str, ...]]] = [("Zhuxian", ("Zhuxian",)), ("PKU10", ("PKU10",))]
    jobs += [("shared + domain", CLOSED)] if context.profile == "full" else []
    losses = []
    for label, names in jobs:
        captured: list[Weights] = []
        packed = Segmenter.from_weights

        def keep(weights: Weights, *rest: Any, packed: Any = packed, captured: Any = captured) -> Segmenter:
            captured.append(weights)
            return packed(weights, *rest)  # type: ignore[no-any-return]

        corpus: Any = {name: sets(context)[name].train for name in names}
        with patch.object(Segmenter, "from_weights", keep):
            model = train(corpus if len(names) > 1 else corpus[names[0]], epochs=context.pick(1, 20), threads=1)
        for name in names:
            test = sampled(sets(context)[name], context) if context.profile == "smoke" else sets(context)[name]
            mixture = {name: 1.0} if len(names) > 1 else {}
            exact = judge(test, float_cut(captured[0], mixture))
            small = judge(test, model.with_domain(name if mixture else "general").cut_many)
            losses.append(exact.f1 - small.f1)
            differ = sum(a != b for a, b in zip(exact.words, small.words, strict=True))
            size = model.info["sizes"]["bytes"] / 1e6
            outcome.table.append(
                [label, name, f"{exact.f1:.3f}", f"{small.f1:.3f}", f"{differ} of {len(test.test)}", f"{size:.2f}"]
            )
    figure = Figure("F1 lost by int8, on average", "int8", "float32", " points", statistics.fmean(losses))
    figure.low, figure.high, figure.target = min(losses), max(losses), at_most(0.05)
    outcome.figures.append(figure)


# --- the shipped model ---

SHIPPED = {
    "GSD": ("GSDSimp test", "wiki", 95.4),
    "PUD": ("PUD-B", "news", 95.1),
    "HK": ("HK-B", "spoken", 94.4),
    "CFL": ("CFL-B", "learner", 93.5),
}


def shipped(context: Context, outcome: Outcome) -> None:
    import rjieba

    segmenter = Segmenter.load()
    systems: dict[str, Cut] = {
        "ours, general": segmenter.with_domain("general").cut_many,
        "ours, auto": segmenter.cut_many,
        "jieba": one_by_one(jieba_lcut()),
        "rjieba": one_by_one(rjieba.cut),
    }
    corpus = [words for name in TREEBANKS for words in sets(context)[name].train]
    cut = pkuseg_of(context, corpus, context.pick(1, 20))
    outcome.table = [["test set", "ours, its domain", *systems, "spacy-pkuseg, same data", "ours, traditional"]]
    for name, (label, domain, limit) in SHIPPED.items():
        test = sets(context)[name]
        view = segmenter.with_domain(domain if domain in segmenter.domains else "general")
        named = judge_text(test, view.cut_many)
        results = {system: judge_text(test, one) for system, one in systems.items()}
        theirs = judge(test, cut, every_word(context, TREEBANKS)) if cut else None
        also = "-"
        if name in ("HK", "PUD") and context.profile != "smoke":
            also = f"{judge_text(traditional(context.data, name), view.cut_many).f1:.2f}"
        cells = [f"{r.f1:.2f}" for r in results.values()]
        outcome.table.append([label, f"{named.f1:.2f}", *cells, f"{theirs.f1:.2f}" if theirs else "-", also])
        best = f"jieba {results['jieba'].f1:.2f}" + (f", {PKUSEG} {theirs.f1:.2f}" if theirs else "")
        outcome.figures.append(score(f"{label}, domain {domain}", OURS, [named], best, limit, name == "GSD"))
        outcome.figures.append(score(f"{label}, auto", OURS, [results["ours, auto"]], best, None, False))


def by_hand(context: Context, outcome: Outcome) -> None:
    """F1 of systems as they come, and the gap to the best of the others, of sentences drawn with replacement."""
    test = Set("forty sentences", [], GOLD)
    systems: dict[str, Cut] = {OURS: Segmenter.load().cut_many, "jieba": one_by_one(jieba_lcut())}
    with suppress(ImportError):
        import rjieba

        systems["rjieba"] = one_by_one(rjieba.cut)
    found = {name: judge_text(test, cut) for name, cut in systems.items()}
    best = max((name for name in found if name != OURS), key=lambda name: found[name].f1)
    draw, gaps = random.Random(0), []
    for _ in range(context.pick(50, 500)):
        rows = draw.choices(range(len(GOLD)), k=len(GOLD))
        mine, theirs = (evaluate([GOLD[k] for k in rows], [found[s].words[k] for k in rows]).f1 for s in (OURS, best))
        gaps.append(100 * (mine - theirs))
    gaps.sort()
    figure = Figure("F1", f"{OURS} {found[OURS].f1:.1f}", f"{best} {found[best].f1:.1f}", " points", headline=True)
    figure.value, figure.target = found[OURS].f1 - found[best].f1, at_least(0)
    figure.low, figure.high = gaps[len(gaps) // 40], gaps[-1 - len(gaps) // 40]
    figure.note = f"{len(GOLD)} sentences, {sum(map(len, GOLD))} words; corpora need --data"
    outcome.figures.append(figure)
    outcome.table = [["system", "F1", "sentences cut as by hand"]]
    for name, result in found.items():
        same = sum(words == gold for words, gold in zip(result.words, GOLD, strict=True))
        outcome.table.append([name, f"{result.f1:.1f}", f"{same} of {len(GOLD)}"])


ABOUT = (
    "F1 in %, in brackets the recall of words that training had not. Digits and Latin runs are collapsed for both "
    "systems alike and F1 is on the text as it is; test sentences are dropped from training. "
)
QUICK: frozenset[Any] = frozenset({"smoke", "quick"})
WORKLOADS: tuple[Workload, ...] = (
    Study("sentences by hand", "A tiny test that needs no data: forty sentences, cut by hand as Universal Dependencies "
          "cuts, the criterion that the shipped model has learnt; jieba's is another, in which 这个 is one word.",
          by_hand),
    Study("closed tests", ABOUT + "20 epochs, default options; mean ± sd of seeds (quick: 1, full: 3), spacy-pkuseg"
          " once. p: paired, by approximate randomisation, first seed. The interval is the seeds' range.", closed),
    Study("a glimpse of spacy-pkuseg", "Both learn 900 sentences of Zhuxian for 5 epochs.", glimpse, QUICK),
    Study("open tests", "Open: with jieba's word list as a dictionary, whose sources may know the test sets. " + ABOUT,
          opened),
    Study("separate, pooled, shared", "Closed: what domains are worth, shared + domain against the better of a model "
          "for each set and one of all. " + ABOUT, ablation),
    Study("training by test domain", "Closed; quick: 400 sentences of each test set.", matrix),
    Study("leave one domain out", "What text of an unknown domain gets. " + ABOUT, left_out, FULL),
    Study("adaptation", "To a set of which only raw text is used; closed, but where open stands. " + ABOUT,
          adaptation),
    Study("int8", "The same weights before and after rounding, decoded by the definition in NumPy and the engine.",
          rounding),
    Study("leakage", "What test sets share with training sets once prepared.", leaks),
    Study("the shipped model", "Glued text as it is, HK and PUD simplified for all; open: its dictionary is jieba's. "
          "B: odd blocks of ten sentences, which no training saw.", shipped),
)  # fmt: skip
