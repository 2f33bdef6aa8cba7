"""Training by several processes: one model, the same bits everywhere, and nobody left waiting."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gensim.test.utils import datapath
from ranks import Ended, Ranks

from imgskipgram import ImageSkipGram, distributed
from imgskipgram._corpus import Tokens
from imgskipgram._engine import Totals
from imgskipgram._training import Plan
from imgskipgram.distributed import _faster, _Part

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LINES = f"open({datapath('lee_background.cor')!r}).read().splitlines()[:120]"
SETTING = f"""
lines = {LINES}
words = "australia people government police company israel united test report south".split()
features = np.random.default_rng(7).normal(size=(40, 12)).astype(np.float32)
bank = ImageBank.from_features(features, [words[i % 10] for i in range(40)])
options = dict(vector_size=20, workers=1, min_count=3)

def keep(model, name):
    arrays = dict(v=model.wv.vectors, u=model.syn1neg, losses=[list(losses.values()) for losses in model.losses_])
    if model.bank is not None:
        arrays |= dict(z=model.image_vectors, mu=model._mu)
    words = np.array(model.wv.index_to_key)
    counts = [model.wv.get_vecattr(word, "count") for word in words]
    np.savez(folder / name, words=words, counts=counts, corpus=[model.corpus_count, model.corpus_total_words], **arrays)
"""


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    pytest.importorskip("torch", reason="there is no PyTorch here")
    ranks = Ranks()
    yield ranks
    ranks.close()


def well(ended: list[Ended]) -> None:
    for process in ended:
        assert process.code == 0, process.err


def same(folder: Path, first: str, second: str, rounding: float = 0) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(folder / f"{first}.npz") as a, np.load(folder / f"{second}.npz") as b:
        assert a.files == b.files
        for name in a.files:
            if name == "losses" and rounding:
                np.testing.assert_allclose(a[name], b[name], rtol=rounding)
            else:
                np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        return dict(a)


@pytest.mark.parametrize(
    "options",
    [
        "",
        "objective='none', epochs=1",
        "projection='free', objective='infonce', epochs=2",
        "projection='fixed', objective='margin', epochs=2",
        "dtype='float64', deterministic=True, epochs=2",
        "dtype='bfloat16', epochs=2",
    ],
    ids=["shared", "text", "free", "fixed", "double", "half"],
)
def test_all_processes_end_with_the_same_bits_and_the_vocabulary_of_the_whole(
    ranks: Ranks, tmp_path: Path, options: str
) -> None:
    body = f"""
parts = [lines[:90], lines[90:]]
model = distributed.fit(ImageSkipGram(**options, {options}), parts[rank], bank, sync_every=4000)
keep(model, f"rank{{rank}}")
if rank == 0:
    whole = ImageSkipGram(**options, {options})
    whole.build_vocab(lines)
    keep(whole, "whole")
"""
    well(ranks.run(SETTING + body, tmp_path))
    found = same(tmp_path, "rank0", "rank1")
    assert np.isfinite(found["v"]).all()
    assert found["u"].any(1).all()
    with np.load(tmp_path / "whole.npz") as whole:
        for name in ("words", "counts", "corpus"):
            assert found[name].tolist() == whole[name].tolist()
    assert found["losses"][-1, 0] < 6 * np.log(2)
    np.testing.assert_allclose(np.linalg.norm(found["z"], axis=1), 1, rtol=1e-5)


def test_one_process_and_others_without_sentences_train_what_fit_trains(ranks: Ranks, tmp_path: Path) -> None:
    body = """
model = ImageSkipGram(**options)
if size == 1:
    keep(distributed.fit(model, lines, bank), "one")
    keep(ImageSkipGram(**options).fit(lines, bank), "plain")
else:
    rows = [{"caption": line} for line in lines if rank == 1]
    keep(distributed.fit(model, rows, bank, sync_every=3000, text_column="caption"), f"rank{rank}")
"""
    well(ranks.run(SETTING + body, tmp_path, size=1))
    well(ranks.run(SETTING + body, tmp_path, size=3))
    same(tmp_path, "plain", "one")
    for rank in range(3):
        same(tmp_path, "plain", f"rank{rank}", rounding=1e-12)  # sums of other parts


def test_deterministic_training_has_the_same_bits_for_any_number_of_threads(ranks: Ranks, tmp_path: Path) -> None:
    body = """
for workers in (1, 3):
    model = ImageSkipGram(**{**options, "workers": workers}, deterministic=True, epochs=2)
    keep(distributed.fit(model, lines[rank::size], bank, sync_every=4000), f"{workers}-{rank}")
"""
    well(ranks.run(SETTING + body, tmp_path))
    for rank in range(2):
        same(tmp_path, "1-0", f"3-{rank}")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("distributed.fit(ImageSkipGram(**options), lines if rank else folder / 'nowhere')", "FileNotFoundError"),
        ("distributed.fit(ImageSkipGram(**options), [[3]] if rank == 0 else lines)", "TypeError"),
        ("distributed.fit(ImageSkipGram(**options), lines, 3 if rank == 0 else None)", "TypeError: images must be"),
        ("distributed.fit(ImageSkipGram(**options), lines, sync_every=rank)", "ValueError: sync_every must be a pos"),
    ],
    ids=["file", "sentence", "bank", "argument"],
)
def test_a_failure_of_one_process_ends_the_others_and_says_why(
    ranks: Ranks, tmp_path: Path, body: str, reason: str
) -> None:
    first, second = ranks.run(SETTING + body, tmp_path)
    assert first.code == second.code == 1
    assert reason in first.err.splitlines()[-1] or reason in first.err
    assert f"RuntimeError: training ended, as the process with rank 0 failed: {reason}" in second.err


def test_a_failure_in_training_leaves_every_process_with_the_last_finished_epoch(ranks: Ranks, tmp_path: Path) -> None:
    body = """
class Breaks:
    def on_epoch_begin(self, model):
        if rank == 1 and len(model.losses_) == 2:
            raise OSError("the disk is full")

model = ImageSkipGram(**options, callbacks=[Breaks()])
try:
    distributed.fit(model, lines[rank::size], bank, sync_every=3000)
except (OSError, RuntimeError) as error:
    print(type(error).__name__, error)
keep(model, f"rank{rank}")
"""
    ended = ranks.run(SETTING + body, tmp_path)
    well(ended)
    assert ended[0].out == (
        "RuntimeError training ended, as the process with rank 1 failed: OSError: the disk is full\n"
    )
    assert ended[1].out == "OSError the disk is full\n"
    assert len(same(tmp_path, "rank0", "rank1")["losses"]) == 2


def test_a_process_that_is_killed_ends_the_others(ranks: Ranks, tmp_path: Path) -> None:
    body = """
import os, signal

class Ends:
    def on_epoch_end(self, model):
        os.kill(os.getpid(), signal.SIGKILL)

model = ImageSkipGram(**options, callbacks=[Ends()] if rank else ())
distributed.fit(model, lines[rank::size])
"""
    first, second = ranks.run(SETTING + body, tmp_path)
    assert (first.code, second.code) == (1, -9)
    assert "RuntimeError" in first.err


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "distributed.fit(ImageSkipGram(vector_size=20 + rank), lines)",
            "vector_size must be the same in all processes, got 20 with rank 0 and 21 with rank 1",
        ),
        (
            "distributed.fit(ImageSkipGram(**options), lines, bank.without_labels(['people'] * rank))",
            "images must be the same in all processes",
        ),
        (
            "distributed.fit(ImageSkipGram(min_count=9999), lines)",
            "the corpus must have words that are kept",
        ),
        (
            "distributed.fit(ImageSkipGram(**options), lines, cache_dir=False)",
            "cache_dir must be a folder or None where several processes train, got False",
        ),
    ],
    ids=["options", "banks", "nothing", "streams"],
)
def test_what_is_wrong_is_said_in_every_process(ranks: Ranks, tmp_path: Path, body: str, message: str) -> None:
    for process in ranks.run(SETTING + body, tmp_path):
        assert process.code == 1
        assert message in process.err


def test_a_group_is_needed_and_may_have_fewer_than_all_processes(ranks: Ranks, tmp_path: Path) -> None:
    body = """
others = group.new_group([1, 2])
if rank:
    keep(distributed.fit(ImageSkipGram(**options), lines[rank::2], group=others), f"rank{rank}")
else:
    try:
        distributed.fit(ImageSkipGram(**options), lines, group=others)
    except ValueError as error:
        print(error)
group.barrier()
group.destroy_process_group()
try:
    distributed.fit(ImageSkipGram(**options), lines)
except RuntimeError as error:
    print(error)
"""
    ended = ranks.run(SETTING + body, tmp_path, size=3)
    well(ended)
    same(tmp_path, "rank1", "rank2")
    assert ended[0].out.startswith("group must have this process in it\n")
    for process in ended:
        assert "call torch.distributed.init_process_group first" in process.out


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"needs torch: pip install 'imgskipgram\[gpu\]'"):
        distributed.fit(ImageSkipGram(), ["a b"])


class _Alone:
    """What a process sees of its team."""

    rank, size = 1, 2

    def __init__(self) -> None:
        self.averages = 0

    def average(self, share: float, *rows: Any) -> None:
        assert share == 0.25
        self.averages += len(rows)

    def spread(self, *rows: Any) -> None:
        pass

    def gathered(self, mine: Any) -> list[Any]:
        return [mine, mine]


class _Records:
    """An engine that notes what it is given."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, list[int], Any]] = []

    def start(self, *_: Any) -> None:
        pass

    def finish(self) -> tuple[Any, Any]:
        return np.zeros((1, 16), np.float32), np.zeros((1, 16), np.float32)

    def run(self, tokens: Tokens, z: Any, place: Any, *_: Any) -> Totals:
        self.parts.append((tokens.first, np.diff(tokens.offsets).tolist(), place))
        return Totals(text_loss=0.5, text_pairs=1, words=2)


def test_a_part_is_trained_once_in_step_with_the_others_as_the_sentences_that_it_has_of_the_whole() -> None:
    lengths = [1, 0, 4, 2, 3, 0]  # 10 words of 40
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint64)
    tokens = Tokens(np.zeros(10, np.uint32), offsets, 12, first=100)
    engine, team = _Records(), _Alone()
    model: Any = SimpleNamespace(_wv=SimpleNamespace(vectors_lockf=np.ones(1, np.float32)))
    part = _Part(
        engine, None, None, "float32", team=team, model=model, share=0.25, faster=1.6, sync_every=16, progress=False
    )
    plan = Plan(3, 40, 0.025, 0.001, 1)
    totals, raw = part.epoch(iter([tokens]), plan, 7, lambda call: call(None, None))
    assert [length for _, part, _ in engine.parts for length in part] == lengths
    assert [(first, len(part)) for first, part, _ in engine.parts] == [(100, 3), (103, 2), (105, 1)]
    for _, _, place in engine.parts:
        assert (place.epoch, place.done, place.total, place.first_token) == (7, 10, 30, 0)
        assert (place.alpha, place.min_alpha) == (0.025 * 1.6, 0.001 * 1.6)
    assert team.averages == 3 * 2
    assert (totals, raw) == (Totals(text_loss=3.0, text_pairs=6, words=12), 24)


@pytest.mark.parametrize(
    ("sizes", "alpha", "faster"),
    [([5, 5], 0.025, 2), ([7, 0, 0], 0.025, 1), ([3, 1], 0.025, 1.6), ([2] * 16, 0.025, 8), ([1, 1], 0.3, 1)],
    ids=["equal", "one", "uneven", "many", "fast"],
)
def test_rates_grow_with_processes_as_far_as_training_is_stable(sizes: list[int], alpha: float, faster: float) -> None:
    assert _faster(sizes, alpha) == pytest.approx(faster, rel=1e-12)


@pytest.mark.slow
def test_two_processes_are_as_good_as_one(ranks: Ranks, tmp_path: Path, data: Path) -> None:
    from scipy.stats import spearmanr

    body = f"""
import lzma
with lzma.open({str(data / "corpus.txt.xz")!r}, "rt") as file:
    lines = file.readlines()
model = ImageSkipGram(epochs=1, workers=1)
distributed.fit(model, lines[rank::size])
model.wv.save_word2vec_format(folder / f"{{size}}-{{rank}}", binary=True)
"""
    from gensim.models import KeyedVectors

    scores = []
    for size in (1, 2):
        well(ranks.run(body, tmp_path, size=size))
        wv = KeyedVectors.load_word2vec_format(tmp_path / f"{size}-0", binary=True)
        for name in ("SimLex999.txt", "bruni_men.txt"):
            rows = [line.split() for line in (data / "wordsim" / name).read_text().splitlines()]
            known = [(wv.similarity(a, b), float(score)) for a, b, score in rows if a in wv and b in wv]
            scores.append(100 * spearmanr(*zip(*known, strict=True)).statistic)
    simlex, men, simlex_of_two, men_of_two = scores
    assert simlex_of_two > simlex - 1
    assert men_of_two > men - 1
