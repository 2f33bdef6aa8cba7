"""How fast text is cut, by the shipped model and by the interfaces of others, and what loading a model costs."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache, lru_cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpora import ALL, Set, corpora, jieba_lcut, judge_text, lines_of, made_up, one_by_one
from harness import (
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
)

from cws_multidomain import Segmenter
from cws_multidomain.compat import jieba as our_jieba
from cws_multidomain.compat import pkuseg as our_pkuseg

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PACKAGES = ("cws-multidomain", "numpy", "jieba", "rjieba", "spacy-pkuseg")
OURS, JIEBA, RJIEBA, PKUSEG = "cws-multidomain", "jieba", "rjieba", "spacy-pkuseg"
PIECES = ("s", "k", "m")  # lines of about .1, .5 and 4 MB: enough work for the slower ones


# --- the text ---


@lru_cache(maxsize=1)
def text(profile: str, data: str | None) -> list[str]:
    size = Context(profile).pick(60_000, 12_000_000, 105_000_000)  # type: ignore[arg-type]
    made = ["".join(sentence) for sentence in made_up(min(size // 10, 3_000_000))]
    real: list[str] = []
    with suppress(MissingError):
        for part in corpora(data).values():
            real += ["".join(words) for words in (*part.train, *part.test)]
    return lines_of([*real, *made] if len(real) < 2 * len(made) else real + made[: len(real) // 4], size)


def sample(context: Context, size: int) -> list[str]:
    """Some of the lines, drawn at random, and no more bytes than this."""
    lines = list(text(context.profile, context.data))
    random.Random(1).shuffle(lines)
    chosen, left = [], context.pick(min(size, 3000), size)
    for line in lines:
        left -= len(line.encode()) + 1
        if left < 0 and chosen:
            break
        chosen.append(line)
    return chosen


def utf8(lines: list[str]) -> bytes:
    return "\n".join(lines).encode() + b"\n"


# --- those who cut it ---


@cache
def ours() -> Segmenter:
    return Segmenter.load()


def rjieba_cut() -> Callable[[str], list[str]]:
    import rjieba

    rjieba.cut("加载")
    return rjieba.cut  # type: ignore[no-any-return]


@lru_cache(maxsize=2)
def pkuseg_model(profile: str, data: str | None) -> tuple[Path, str]:
    """A model that spacy-pkuseg loads, trained by our port, and what it learnt from."""
    sentences, name = made_up(Context(profile).pick(1000, 40_000)), "made-up sentences"  # type: ignore[arg-type]
    with suppress(MissingError):
        name = "Zhuxian" if profile != "full" else "SXU"
        sentences = corpora(data)[name].train
    directory = Path(tempfile.mkdtemp(prefix="cws-bench-"))
    corpus = directory / "corpus.txt"
    corpus.write_text("".join(" ".join(words) + "\n" for words in sentences), encoding="utf-8")
    epochs = 1 if profile == "smoke" else 3
    our_pkuseg.train(corpus, corpus, directory / "model", train_iter=epochs, reference=False)
    return directory / "model", f"{name}, {epochs} epochs"


def pkuseg_cut(context: Context) -> Callable[[str], list[str]]:
    with redirect_stdout(StringIO()):
        import spacy_pkuseg
    with redirect_stderr(StringIO()):
        return spacy_pkuseg.pkuseg(str(pkuseg_model(context.profile, context.data)[0]), user_dict=None).cut  # type: ignore[no-any-return]


def over(lines: list[str], cut: Callable[[str], object]) -> Contestant:
    def run() -> None:
        for line in lines:
            cut(line)

    return Contestant(run, traffic=len(utf8(lines)))


def peers(context: Context) -> dict[str, Callable[[], Contestant]]:
    """Each has a sample that takes it about as long as a round should: its speed does not depend on the size."""
    return {
        RJIEBA: lambda: over(sample(context, 2_000_000), rjieba_cut()),
        JIEBA: lambda: over(sample(context, 200_000), jieba_lcut()),
        PKUSEG: lambda: over(sample(context, 40_000), pkuseg_cut(context)),
    }


def lossless(context: Context) -> str:
    """Slices of the bytes are the tokens of the text, and all of it; threads change nothing."""
    lines = sample(context, 300_000)
    data = utf8(lines)
    offsets, tokens = ours().offsets_utf8(data, threads=1), ours().cut_many(lines, threads=1)
    if ours().offsets_utf8(data, threads=2) != offsets or ours().cut_many(lines, threads=2) != tokens:
        raise UnequalError("two threads give other tokens than one")
    for row, line in enumerate(lines):
        raw = line.encode()
        if [raw[a:b].decode() for a, b in offsets[row]] != tokens[row] or "".join(tokens[row]) != "".join(line.split()):
            raise UnequalError(f"line {row}: offsets, tokens and text do not agree")
    return f"{len(lines):,} lines: byte offsets give the tokens of the str, these the text; 1 and 2 threads the same."


# --- races ---


def to_offsets(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    data = utf8(text(context.profile, context.data))
    return {
        OURS: lambda: Contestant(lambda: ours().offsets_utf8(data, threads=1), traffic=len(data)),
        **peers(context),
    }


def to_words(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    lines = text(context.profile, context.data)
    lines = lines[: context.pick(len(lines), len(lines), len(lines) // 5)]  # a list of 100 MB of str takes gigabytes
    size = len(utf8(lines))
    return {OURS: lambda: Contestant(lambda: ours().cut_many(lines, threads=1), traffic=size), **peers(context)}


def two_threads(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    data = utf8(text(context.profile, context.data)[: context.pick(100, 50_000, 200_000)])
    block = bytes(len(data) // 2)
    pool = ThreadPoolExecutor(2)

    def digest(threads: int) -> Callable[[], object]:
        """Arithmetic that shares nothing: what a second core is worth here, at this hour."""
        return lambda: list((map if threads == 1 else pool.map)(lambda _: hashlib.sha256(block).digest(), range(2)))

    return {
        f"{OURS}, 2 threads": lambda: Contestant(lambda: ours().offsets_utf8(data, threads=2), 2, len(data)),
        f"{OURS}, 1 thread": lambda: Contestant(lambda: ours().offsets_utf8(data, threads=1), 1, len(data)),
        "SHA-256, 2 threads": lambda: Contestant(digest(2), 2),
        "SHA-256, 1 thread": lambda: Contestant(digest(1)),
    }


def quality(context: Context, outcome: Outcome) -> None:
    """Beside each speed the F1 of the very model that was timed, and its size."""
    tests: list[Set] = []
    with suppress(MissingError):
        sets = corpora(context.data)
        tests = [sets[name] for name in (("GSD", "Zhuxian") if context.profile != "full" else ALL)]
    if not tests:
        made = made_up(context.pick(500, 60_000), seed=1)
        tests = [Set("made-up text", [], made)]
    systems: dict[str, tuple[Callable[[], Any], int | None]] = {
        OURS: (lambda: ours().cut_many, ours().info["sizes"]["bytes"]),
        RJIEBA: (lambda: one_by_one(rjieba_cut()), None),
        JIEBA: (lambda: one_by_one(jieba_lcut()), _size(JIEBA, "dict.txt") + _size(JIEBA, "finalseg")),
        PKUSEG: (lambda: one_by_one(pkuseg_cut(context)), _bytes(pkuseg_model(context.profile, context.data)[0])),
    }
    outcome.table = [["system as timed", "MB/s", *(f"F1 on {test.name}" for test in tests), "model, MB"]]
    for name, (cut, size) in systems.items():
        if name not in outcome.raw:
            continue
        speed = _traffic(context, name, outcome) / statistics.median(outcome.raw[name]["cpu"]) / 1e6
        outcome.bars[name] = speed
        scores = [f"{judge_text(test, cut()).f1:.2f}" for test in tests]
        outcome.table.append([name, f"{speed:.2f}", *scores, "in the library" if size is None else f"{size / 1e6:.2f}"])
    outcome.bars_unit = "MB/s, one thread"
    if tests[0].name == "made-up text":
        outcome.figures[0].note = "made-up text favours jieba, whose counts it is drawn by; F1 on corpora needs --data"
    else:
        outcome.figures[
            0
        ].note = f"the model timed: F1 {outcome.table[1][2]} on {tests[0].name}, {outcome.table[1][-1]} MB"


def _traffic(context: Context, name: str, outcome: Outcome) -> int:
    sizes = {RJIEBA: 2_000_000, JIEBA: 200_000, PKUSEG: 40_000}
    if name in sizes:
        return len(utf8(sample(context, sizes[name])))
    figure = outcome.figures[0]
    assert figure.value is not None
    return int(figure.value * 1e6 * statistics.median(outcome.raw[name]["cpu"]))


def _size(package: str, name: str) -> int:
    spec = importlib.util.find_spec(package)
    return _bytes(Path(spec.origin).with_name(name)) if spec and spec.origin else 0


def _bytes(path: Path) -> int:
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())


# --- the interfaces of others ---


def like_jieba(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    lines, fewer = sample(context, 2_000_000), sample(context, 150_000)
    return {
        "cws-multidomain compat.jieba": lambda: over(lines, lambda line: our_jieba.lcut(line, HMM=False)),
        RJIEBA: lambda: (lambda cut: over(lines, lambda line: cut(line, False)))(rjieba_cut()),  # type: ignore[call-arg]
        JIEBA: lambda: (lambda cut: over(fewer, lambda line: cut(line, HMM=False)))(jieba_lcut()),
    }


def equals_jieba(context: Context) -> str:
    lines = sample(context, 150_000)
    try:
        theirs = jieba_lcut()
    except ImportError as error:
        return f"Not compared: {error}."
    for line in lines:
        for options in ({"HMM": False}, {"cut_all": True}):
            if our_jieba.lcut(line, **options) != theirs(line, **options):
                raise UnequalError(f"{options} gives other tokens than jieba for {line[:60]!r}")
    return f"{len(lines):,} lines: HMM=False and cut_all=True give jieba's tokens."


def like_pkuseg(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    model = pkuseg_model(context.profile, context.data)[0]
    cut = our_pkuseg.pkuseg(model, user_dict=None).cut
    return {
        "cws-multidomain compat.pkuseg": lambda: over(sample(context, 1_000_000), cut),
        PKUSEG: lambda: over(sample(context, 40_000), pkuseg_cut(context)),
    }


def equals_pkuseg(context: Context) -> str:
    model, source = pkuseg_model(context.profile, context.data)
    try:
        theirs = pkuseg_cut(context)
    except ImportError as error:
        return f"Not compared: {error}."
    mine = our_pkuseg.pkuseg(model, user_dict=None).cut
    lines = sample(context, context.pick(3000, 60_000, 400_000))
    for line in lines:
        if mine(line) != theirs(line):
            raise UnequalError(f"other words than spacy-pkuseg's for {line[:60]!r}")
    return f"One model ({source}), {len(lines):,} lines: spacy-pkuseg's words."


# --- loading ---

_LOADING = """
import sys, time, json
def resident():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS")) / 1024
lines = sys.stdin.buffer.read().decode().split("\\n")
before, start = resident(), time.perf_counter()
{imports}
imported, middle = resident(), time.perf_counter()
{load}
loaded, done = resident(), time.perf_counter()
for line in lines:
    cut(line)
memory = [x - before for x in (imported, loaded, resident())]
print(json.dumps([1e3 * (middle - start), 1e3 * (done - middle), *memory]))
"""
_LOADERS = {
    OURS: ("from cws_multidomain import Segmenter", "cut = Segmenter.load().cut"),
    JIEBA: ("import jieba; jieba.setLogLevel(60)", "jieba.initialize(); cut = jieba.lcut"),
    RJIEBA: ("import rjieba", "rjieba.cut('一'); cut = rjieba.cut"),
    PKUSEG: ("import spacy_pkuseg", "cut = spacy_pkuseg.pkuseg({model!r}, user_dict=None).cut"),
}


def loading(context: Context, outcome: Outcome) -> None:
    """In processes of their own, one after the other in turn."""
    if not Path("/proc/self/status").exists():
        raise MissingError("memory is read from /proc, which is not here")
    model = str(pkuseg_model(context.profile, context.data)[0])
    given = "\n".join(sample(context, 100_000)).encode()
    runs: dict[str, list[list[float]]] = {}
    for _ in range(context.pick(1, 3, 7)):
        for name, (imports, load) in _LOADERS.items():
            if importlib.util.find_spec(name.replace("-", "_")) is None:
                continue
            program = _LOADING.format(imports=imports, load=load.format(model=model))
            done = subprocess.run([sys.executable, "-c", program], input=given, capture_output=True, check=True)
            runs.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
    head = ["import ms", "load ms", "MB after import", "MB after loading", "MB after 100 kB of text"]
    outcome.table = [["system", *head]]
    medians = {}
    for name, rows in runs.items():
        medians[name] = [statistics.median(column) for column in zip(*rows, strict=True)]
        outcome.table.append([name, *(f"{x:.1f}" for x in medians[name])])
    mine, times = medians[OURS], [row[1] for row in runs[OURS]]
    size = ours().info["sizes"]["bytes"] / 1e6
    slowest = ", ".join(f"{name} {m[1]:.0f} ms" for name, m in medians.items() if name != OURS)
    resident = ", ".join(f"{name} {m[4]:.0f} MB" for name, m in medians.items() if name != OURS)
    outcome.figures = [
        Figure("Segmenter.load()", OURS, slowest, " ms", mine[1], min(times), max(times), at_most(10)),
        Figure("resident, NumPy included", OURS, resident, " MB", mine[4], target=at_most(40)),
        Figure("size of the model", OURS, "", " MB", size, target=at_most(6)),
    ]


SOURCE = (
    "Lines of 1 to 10,000 characters, a twentieth mostly ASCII, of slices of sentences: with --data those of all "
    "corpora there, and always such as are made up of the dictionary's words by their counts, digits, English and "
    "addresses. "
)
WORKLOADS: tuple[Workload, ...] = (
    Race(
        "UTF-8 to offsets",
        SOURCE + "12 MB (full: 105 MB), one thread, the shipped model; slower peers have a sample of it, as str. "
        "spacy-pkuseg has a model of few epochs, which costs it no time.",
        to_offsets,
        lossless,
        (
            Versus((), at_least(60), "MB/s"),
            Versus(RJIEBA, at_least(3.5), "rate", headline=True),
            Versus(JIEBA, at_least(40), "rate"),
            Versus(PKUSEG, kind="rate"),
        ),
        seconds=3,
        also=quality,
    ),
    Race(
        "str to list[str]",
        "The same lines (full: a fifth of them) as Python strings, one thread.",
        to_words,
        lossless,
        (
            Versus((), at_least(25), "MB/s"),
            Versus(RJIEBA, kind="rate"),
            Versus(JIEBA, kind="rate"),
            Versus(PKUSEG, kind="rate"),
        ),
        seconds=3,
    ),
    *(
        [
            Race(
                "two threads",
                "UTF-8 to offsets. A second core helps as far as it is free: as much as it helps SHA-256.",
                two_threads,
                lossless,
                (
                    Versus(f"{OURS}, 1 thread", at_least(1.8), "speed",
                           ceiling=("SHA-256, 1 thread", "SHA-256, 2 threads")),
                    Versus("SHA-256, 1 thread", None, "speed", "", "SHA-256, 2 threads"),
                ),
                clock="wall",
                seconds=2,
            )
        ]
        if cores() > 1
        else []
    ),
    Study("loading", "Fresh processes: import, load, cut 100 kB; memory beyond that of bare Python.", loading),
    Race(
        "jieba's interface",
        "HMM=False, jieba's most probable sequence of dictionary words; jieba has a sample of the lines.",
        like_jieba,
        equals_jieba,
        (Versus(RJIEBA, kind="rate"), Versus(JIEBA, kind="rate")),
        seconds=2,
    ),
    Race(
        "pkuseg's interface",
        "One model, loaded by both and trained by compat.pkuseg: with --data on Zhuxian (full: SXU), else made up.",
        like_pkuseg,
        equals_pkuseg,
        (Versus(PKUSEG, at_least(100), "rate"),),
        seconds=2,
    ),
)  # fmt: skip
