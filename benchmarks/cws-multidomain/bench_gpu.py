"""The operators of the GPU part, training in minibatches, bulk scoring: against PyTorch, and against the C++ core."""

from __future__ import annotations

import random
import time
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from harness import (
    GPU,
    Contestant,
    Context,
    Figure,
    MissingError,
    Outcome,
    Race,
    Study,
    UnequalError,
    Versus,
    Workload,
    at_least,
    at_most,
    cores,
    same_bits,
    within_twice,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PACKAGES = ("cws-multidomain", "torch", "triton")
OURS, TORCH, CORE, COPY = "cws Triton", "PyTorch", "cws C++", "copy"
POSITIONS, ROWS, COLUMNS = 1 << 22, 1 << 20, 11  # of emit: characters, table rows, rows of a character
LENGTH, SENTENCES, TAGS = 48, 1 << 16, 4
LINE = 1 << 18  # characters: a walk through them is a chain of as many waits for memory


# --- data ---


@cache
def features() -> dict[str, Any]:
    """Ids like those of text (few rows are most of them), int8 rows, and gradients."""
    import torch

    g = torch.Generator("cuda").manual_seed(0)
    u = torch.rand(COLUMNS, POSITIONS, generator=g, device="cuda")
    ids = (ROWS ** u.double()).to(torch.int32).clamp(max=ROWS) - 1
    table = torch.randint(-127, 128, (ROWS, TAGS), generator=g, device="cuda").to(torch.int8)
    batch = ids[:, : 1 << 15].t()
    flat = batch.contiguous().flatten()
    order = flat.sort(stable=True).indices
    counts = torch.unique_consecutive(flat[order], return_counts=True)[1]
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    grad = torch.randn(1 << 15, TAGS, generator=g, device="cuda")
    return {"ids": ids.t(), "table": table, "row_grad": (batch, grad, order, offsets)}


@cache
def chains(dtype: str, length: int = LENGTH, sentences: int = SENTENCES) -> tuple[Any, ...]:
    """Scores, transitions, lengths."""
    import torch

    g = torch.Generator("cuda").manual_seed(0)
    scores = torch.randn(length, sentences, TAGS, generator=g, device="cuda") * 4
    trans = torch.randn(TAGS, TAGS, generator=g, device="cuda")
    if dtype == "int32":
        scores, trans = ((x * 50).to(torch.int32) for x in (scores, trans))
    return scores, trans, torch.full((sentences,), length, device="cuda")


def operators(name: str, *given: Any) -> Mapping[str, Callable[[], Contestant]]:
    """The kernel and the reference on the same device."""
    from cws_multidomain.gpu import _ops, _reference

    return {
        OURS: lambda: Contestant(lambda: getattr(_ops, name)(*given)),
        TORCH: lambda: Contestant(lambda: getattr(_reference, name)(*given)),
    }


# --- operators ---


def emit_contestants(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    import torch

    from cws_multidomain.gpu import _ops

    given = features()
    traffic = POSITIONS * (4 * COLUMNS + COLUMNS * TAGS + 4 * TAGS)
    source = torch.empty(traffic // 2, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return {
        OURS: lambda: Contestant(lambda: _ops.emit(given["ids"], given["table"]), traffic=traffic),
        COPY: lambda: Contestant(lambda: target.copy_(source), traffic=traffic),
        TORCH: operators("emit", given["ids"], given["table"])[TORCH],
    }


def emit_equal(context: Context) -> str:
    from cws_multidomain.gpu import _ops, _reference

    given = features()["ids"][: 1 << 16], features()["table"]
    return same_bits(_ops.emit(*given), _reference.emit(*given), "sums of int8 rows")


def viterbi_contestants(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    return operators("crf_viterbi", *chains("int32"))


def viterbi_equal(context: Context) -> str:
    from cws_multidomain.gpu import _ops, _reference

    scores, trans, lengths = chains("int32")
    ours, reference = (f.crf_viterbi(scores[:, :999], trans, lengths[:999]) for f in (_ops, _reference))
    same_bits(ours[1], reference[1], "scores of best paths")
    return same_bits(ours[0], reference[0], "best tags of integer scores")


def long_contestants(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    from cws_multidomain.gpu import _ops, _triton

    given = chains("int32", LINE, 1)

    def walk() -> None:
        import torch

        scores, trans, lengths = given
        tags = torch.full(scores.shape[:2], -1, dtype=torch.int8, device="cuda")
        best = torch.zeros(1, dtype=torch.int64, device="cuda")
        _triton._walk(scores, None, trans, lengths.to(torch.int32), tags, best)

    return {"scan": lambda: Contestant(lambda: _ops.crf_viterbi(*given)), "walk": lambda: Contestant(walk)}


def long_equal(context: Context) -> str:
    from cws_multidomain.gpu import _ops, _reference

    scores, trans, lengths = chains("int32", LINE, 1)
    given = scores[:10_000], trans, lengths.clamp(max=10_000)
    return same_bits(_ops.crf_viterbi(*given)[0], _reference.crf_viterbi(*given)[0], "best tags of a line of 10,000")


def marginals_contestants(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    return operators("crf_marginals", *chains("float32"))


def marginals_equal(context: Context) -> str:
    from cws_multidomain.gpu import _ops, _reference

    scores, trans, lengths = chains("float32")
    given = scores[:, :999], trans, lengths[:999]
    ours, peer = _ops.crf_marginals(*given), _reference.crf_marginals(*given)
    exact = _reference.crf_marginals(given[0].double(), trans.double(), given[2])
    within_twice(ours[0], peer[0], exact[0], "log Z")
    return within_twice(ours[1], peer[1], exact[1], "probabilities")


def gradient_contestants(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    import torch

    ids, grad, order, offsets = features()["row_grad"]
    rows = torch.arange(len(offsets) - 1, device="cuda").repeat_interleave(offsets.diff())
    places = order // ids.shape[1]

    def atomics() -> Any:
        return torch.zeros(len(offsets) - 1, TAGS, device="cuda").index_add_(0, rows, grad[places])

    made = operators("row_grad", ids, grad, order, offsets)
    return {**made, "PyTorch index_add_": lambda: Contestant(atomics)}


def gradient_equal(context: Context) -> str:
    from cws_multidomain.gpu import _ops, _reference

    ids, grad, order, offsets = features()["row_grad"]
    results = [f.row_grad(ids, grad, order, offsets) for f in (_ops, _reference)]
    exact = _reference.row_grad(ids, grad.double(), order, offsets)
    same_bits(results[0], _ops.row_grad(ids, grad, order, offsets), "two runs")
    return within_twice(*results, exact, "gradients of rows")


def adf_contestants(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    return operators("adf_step", *adf_arguments())


def adf_arguments() -> tuple[Any, ...]:
    import torch

    g = torch.Generator("cuda").manual_seed(0)
    w, grad = (torch.randn(ROWS, TAGS, generator=g, device="cuda") for _ in range(2))
    count = torch.randint(0, 100, (ROWS,), generator=g, device="cuda", dtype=torch.int32)
    return w, torch.full((ROWS,), 0.05, device="cuda"), grad, count, 100.0, 1000.0


def adf_equal(context: Context) -> str:
    from cws_multidomain.gpu import _ops, _reference

    ours, peer = adf_arguments(), adf_arguments()
    _ops.adf_step(*ours)
    _reference.adf_step(*peer)
    return same_bits(ours[0], peer[0], "weights after a step")


# --- training and scoring ---


@cache
def corpus(count: int) -> tuple[Any, ...]:
    """Sentences of random symbols with the frequencies of characters in text, one word in two of two characters."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 90, count)
    splits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n = int(splits[-1])
    symbols = (5 + 4000 ** rng.random(n)).astype(np.uint16)
    start = symbols % 3 > 0
    start[splits[:-1]] = True
    after = np.append(start[1:], True)
    allowed = np.where(start, np.where(after, 8, 1), np.where(after, 4, 2)).astype(np.uint8)
    marks = [(symbols * np.uint16(7) % 125).astype(np.uint8)]
    return symbols, splits, marks, allowed, np.zeros(count, np.uint8)


def trainers(count: int) -> tuple[Any, Any]:
    from cws_multidomain import _core
    from cws_multidomain.gpu._training import Trainer

    if not hasattr(_core, "Trainer"):
        raise MissingError("this build has no trainer in C++")
    made = _core.Trainer(1, 0), Trainer(1, 0)
    for trainer in made:
        trainer.load(*corpus(count), 0.05)
    return made


def training(context: Context, outcome: Outcome) -> None:
    """Epochs of the same minibatches on both sides, and the objective of each."""
    count = 20_000
    for shards in (64, 512, 4096):
        core, device = trainers(count)
        options: dict[str, Any] = {"upper": 0.995, "lower": 0.6, "l2": 1.0, "transition": 0.6, "domain_dropout": 0.0}
        options |= {"feature_dropout": 0.2, "shared": True, "updates": 10, "shards": shards, "threads": cores()}
        ratios = []
        for epoch in range(4):
            order = np.random.default_rng(epoch).permutation(count).astype(np.int32)
            times, losses = [], []
            for trainer in (device, core):
                begin = time.perf_counter()
                losses.append(trainer.epoch(order, seed=epoch, **options))
                times.append(time.perf_counter() - begin)
            if abs(losses[0] - losses[1]) > 1e-4 * abs(losses[1]):
                raise UnequalError(f"epoch {epoch}: objective {losses[0]} on the GPU, {losses[1]} in C++")
            if epoch:  # the first one compiles
                ratios.append(times[1] / times[0])
            context.progress((epoch + 1) / 4)
        outcome.equal = "Objectives of all epochs agree to 1e-4."
        name = f"epoch, minibatches of {shards}"
        outcome.figures.append(
            Figure(name, OURS, CORE, "x as fast", sorted(ratios)[1], min(ratios), max(ratios), headline=shards == 512)
        )


def scoring(context: Context, outcome: Outcome) -> None:
    """The shipped model on random text of its characters, all cores against the device."""
    from cws_multidomain import gpu
    from cws_multidomain.segmenter import Segmenter

    try:
        segmenter = Segmenter.load()
    except FileNotFoundError as error:
        raise MissingError(str(error)) from error
    letters = [chr(point) for point in list(segmenter.weights().symbols)[:3000]]
    rng = random.Random(0)
    texts = ["".join(rng.choices(letters, k=rng.randrange(10, 200))) for _ in range(20_000)]
    if gpu.cut_many(segmenter, texts[:5000]) != segmenter.cut_many(texts[:5000]):
        raise UnequalError("tokens differ from those of the engine")
    outcome.equal = "Tokens are those of the engine."
    ratios = []
    for _ in range(3):
        times = []
        for cut in (gpu.cut_many, segmenter.cut_many):
            begin = time.perf_counter()
            cut(texts)
            times.append(time.perf_counter() - begin)
        ratios.append(times[1] / times[0])
    note = f"{cores()} cores; rules, reading and writing of text are the CPU's on both sides"
    outcome.figures.append(
        Figure("cut_many", OURS, CORE, "x as fast", sorted(ratios)[1], min(ratios), max(ratios), note=note)
    )


CELLS = f"{SENTENCES:,} sentences of {LENGTH} characters, {TAGS} tags"
WORKLOADS: tuple[Workload, ...] = (
    Race(
        "CUDA emit",
        f"Sums of {COLUMNS} int8 rows for each of {POSITIONS:,} characters, a table of {ROWS:,} rows.",
        emit_contestants,
        emit_equal,
        (Versus(COPY, kind="rate", name="bytes/s"), Versus(TORCH, at_least(1.0), kind="speed", headline=True)),
        profiles=GPU,
        clock="cuda",
    ),
    Race(
        "CUDA Viterbi",
        f"Best tags: {CELLS}, int32.",
        viterbi_contestants,
        viterbi_equal,
        (Versus(TORCH, at_least(1.0), kind="speed", headline=True),),
        profiles=GPU,
        clock="cuda",
    ),
    Race(
        "CUDA Viterbi of one line",
        f"Best tags of one line of {LINE:,} characters: in chunks at once, or from left to right.",
        long_contestants,
        long_equal,
        (Versus("walk", at_most(1.0)),),
        profiles=GPU,
        clock="cuda",
    ),
    Race(
        "CUDA marginals",
        f"log Z and probabilities: {CELLS}, float32.",
        marginals_contestants,
        marginals_equal,
        (Versus(TORCH, at_least(1.0), kind="speed", headline=True),),
        profiles=GPU,
        clock="cuda",
    ),
    Race(
        "CUDA gradient of rows",
        "Sorted sums of the gradients of 32,768 characters.",
        gradient_contestants,
        gradient_equal,
        (Versus((TORCH, "PyTorch index_add_"), at_most(1.0)),),
        profiles=GPU,
        clock="cuda",
    ),
    Race(
        "CUDA ADF",
        f"A step with an update of the rates, {ROWS:,} rows.",
        adf_contestants,
        adf_equal,
        (Versus(TORCH, at_most(1.0)),),
        profiles=GPU,
        clock="cuda",
    ),
    Study("CUDA training", "An epoch of 20,000 sentences, the same minibatches on GPU and CPU.", training, GPU),
    Study("CUDA cut_many", "20,000 texts, from str to lists of str.", scoring, GPU),
)
