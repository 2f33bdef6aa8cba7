"""Measures ours beside its peers: equality first, then interleaved rounds in one process. Knows no package, no page."""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.metadata
import math
import os
import platform
import random
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")
Profile = Literal["smoke", "quick", "full", "gpu"]
Clock = Literal["cpu", "wall", "cuda", "host"]
Verdict = Literal["met", "unclear", "missed", "reported", "missing", "unequal", "failed"]
CPU: frozenset[Profile] = frozenset({"smoke", "quick", "full"})
FULL: frozenset[Profile] = frozenset({"full"})
GPU: frozenset[Profile] = frozenset({"gpu"})
BAD = ("unequal", "failed")  # the verdicts that fail a run; a missed speed target on a noisy machine does not


class UnequalError(AssertionError):
    """A result differs from its peer's by more than rounding."""


class MissingError(Exception):
    """What the measurement needs, such as data, is not here."""


@dataclass(frozen=True)
class Context:
    """What a workload may ask of the run it is part of."""

    profile: Profile
    data: str | None = None
    progress: Callable[[float], None] = lambda fraction: None

    def pick(self, smoke: T, quick: T, full: T | None = None) -> T:
        """The value for this run's profile; a GPU machine takes the full one, which is the quick one unless given."""
        return {"smoke": smoke, "quick": quick}.get(self.profile, quick if full is None else full)


@dataclass(frozen=True)
class Target:
    limit: float
    at_most: bool = True

    def judge(self, value: float, low: float, high: float) -> Verdict:
        """`unclear` when the median misses the limit and its interval does not."""
        if self.at_most:
            return "met" if value <= self.limit else "unclear" if low <= self.limit else "missed"
        return "met" if value >= self.limit else "unclear" if high >= self.limit else "missed"


def at_most(limit: float) -> Target:
    return Target(limit)


def at_least(limit: float) -> Target:
    return Target(limit, at_most=False)


@dataclass
class Figure:
    """One line of the table: a number, its interval, what was asked of it and what came of it."""

    name: str
    ours: str
    peer: str
    unit: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    target: Target | None = None
    verdict: Verdict = "reported"
    headline: bool = False
    note: str = ""
    samples: list[float] = field(default_factory=list)

    def judged(self, profile: Profile) -> Figure:
        """Tiny inputs are not judged: their figures show that the bench works, not how fast the package is."""
        if self.value is not None and self.target is not None and profile != "smoke":
            low = self.value if self.low is None else self.low
            self.verdict = self.target.judge(self.value, low, self.value if self.high is None else self.high)
        return self


@dataclass
class Curves:
    """Lines of points (x, y) or (x, y, low, high) for the page."""

    x: str
    y: str
    lines: dict[str, list[tuple[float, ...]]]
    log_x: bool = False


@dataclass
class Outcome:
    """What one workload gave; `asdict` of it is what the JSON holds."""

    name: str
    about: str
    clock: str = ""
    equal: str = ""
    error: str = ""
    figures: list[Figure] = field(default_factory=list)
    bars: dict[str, float] = field(default_factory=dict)
    bars_unit: str = ""
    curves: list[Curves] = field(default_factory=list)
    table: list[list[str]] = field(default_factory=list)
    raw: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0

    def without_figures(self, verdict: Verdict, note: str, error: str = "") -> Outcome:
        """This outcome, which is but a line that says why there is nothing to show."""
        self.figures, self.error = [Figure("", "", "", note=note, verdict=verdict)], error or note
        return self

    def record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Contestant:
    """One way to do the work. `traffic` is the bytes that one run reads and writes."""

    run: Callable[[], object]
    threads: int = 1
    traffic: int = 0


@dataclass(frozen=True)
class Versus:
    """One figure of a race: the ratio of times (ours / peer), of speeds, or of bytes per second.

    Of several peers the fastest counts. `ceiling` names two contestants whose own speed-up bounds what can be asked.
    The kind "MB/s" has no peer: it is the contestant's own traffic per second.
    """

    peer: str | tuple[str, ...] = ()
    target: Target | None = None
    kind: Literal["time", "speed", "rate", "MB/s"] = "time"
    name: str = ""
    ours: str = ""
    ceiling: tuple[str, str] | None = None
    headline: bool = False
    note: str = ""


@dataclass(frozen=True)
class Race:
    """Contestants that do the same work, our own first, timed in interleaved rounds.

    `contestants` returns builders, so that a peer that is not installed is said to be missing and the others still run.
    `equal` runs before anything is timed, raises `UnequalError`, and returns the sentence that the page shows.
    A profile may offer fewer contestants: figures of which it offers no peer, or not ours, are left out.
    `also` adds to the outcome, whose raw times it finds, what is no time.
    """

    name: str
    about: str
    contestants: Callable[[Context], Mapping[str, Callable[[], Contestant]]]
    equal: Callable[[Context], str]
    figures: Sequence[Versus]
    profiles: frozenset[Profile] = CPU
    clock: Clock = "cpu"
    seconds: float = 4.0
    also: Callable[[Context, Outcome], None] | None = None

    def run(self, context: Context) -> Outcome:
        outcome = Outcome(self.name, self.about, CLOCKS[self.clock], equal=self.equal(context))
        built = {name: _built(build) for name, build in self.contestants(context).items()}
        racers = {name: racer for name, racer in built.items() if isinstance(racer, Contestant)}
        missing = {name: why for name, why in built.items() if isinstance(why, str)}
        # On a GPU a turn takes milliseconds: a second has dozens.
        seconds = 1.0 if context.profile == "gpu" else context.pick(0.2, self.seconds, 3 * self.seconds)
        times = _rounds(racers, self.clock, seconds, context, outcome.raw)
        for versus in self.figures:
            peers = {versus.peer} if isinstance(versus.peer, str) else {*versus.peer}
            if versus.ours in ("", *built) and (peers & built.keys() or versus.kind == "MB/s"):
                outcome.figures.append(_compare(versus, racers, times, missing, context))
        if self.also is not None:
            self.also(context, outcome)
        return outcome


@dataclass(frozen=True)
class Study:
    """Figures that are no race: bytes counted, a quality, a number of launches. `measure` checks equality itself."""

    name: str
    about: str
    measure: Callable[[Context, Outcome], None]
    profiles: frozenset[Profile] = CPU

    def run(self, context: Context) -> Outcome:
        outcome = Outcome(self.name, self.about)
        self.measure(context, outcome)
        for figure in outcome.figures:
            figure.judged(context.profile)
        return outcome


Workload = Race | Study
CLOCKS: dict[Clock, str] = {
    "cpu": "CPU time of the process",
    "wall": "wall time",
    "cuda": "time between two CUDA events",
    "host": "wall time of the call on the host, the device idle",
}


# --- racing ---


def _built(build: Callable[[], Contestant]) -> Contestant | str:
    """The contestant, or why it is missing."""
    try:
        return build()
    except ImportError as error:
        return str(error)


def _rounds(
    racers: Mapping[str, Contestant], clock: Clock, seconds: float, context: Context, raw: dict[str, dict[str, Any]]
) -> dict[str, list[float]]:
    """Time every contestant once a round; a random order, then its reverse (A B B A), until the seconds are spent."""
    for name, racer in racers.items():
        set_threads(racer.threads)
        racer.run()  # allocates states, touches every page
        raw[name] = {"threads": racer.threads, "wall": [], "cpu": [], "peak_bytes": peak_memory(racer.run)}
    times: dict[str, list[float]] = {name: [] for name in racers}
    order, shuffle = list(racers), random.Random(0).shuffle
    least, start = context.pick(2, 6), time.perf_counter()  # 2 rounds are enough where one takes very long
    gc.collect()
    gc.disable()
    try:
        for number in range(400):
            spent = time.perf_counter() - start
            if number % 2 == 0 and spent > (seconds if number >= least else 3 * seconds if number else math.inf):
                break
            context.progress(min(1.0, max(spent / seconds, 0.0)))
            shuffle(order) if number % 2 == 0 else order.reverse()
            for name in order:
                set_threads(racers[name].threads)
                taken = _timed(racers[name].run, clock)
                times[name].append(taken[clock])
                for key in ("wall", "cpu"):
                    raw[name][key].append(round(taken[key], 9))
    finally:
        gc.enable()
        set_threads(1)
    return times


def _timed(run: Callable[[], object], clock: Clock) -> dict[str, float]:
    if clock not in ("cuda", "host"):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    host, cpu = time.perf_counter() - wall, time.process_time() - cpu
    end.record()
    torch.cuda.synchronize()
    return {"host": host, "cuda": begin.elapsed_time(end) / 1e3, "cpu": cpu, "wall": time.perf_counter() - wall}


def _compare(
    versus: Versus,
    racers: Mapping[str, Contestant],
    times: Mapping[str, list[float]],
    missing: Mapping[str, str],
    context: Context,
) -> Figure:
    ours = versus.ours or next(iter(racers))
    peers = [versus.peer] if isinstance(versus.peer, str) else list(versus.peer)
    peers = [peer for peer in peers if peer in racers or peer in missing]
    present = [peer for peer in peers if peer in racers]
    unit = {"time": "x the time", "speed": "x as fast", "rate": "x the bytes/s", "MB/s": " MB/s"}[versus.kind]
    figure = Figure(versus.name, ours, " or ".join(peers), unit, target=versus.target, headline=versus.headline)
    if absent := [peer for peer in (ours, *peers) if peer not in racers]:
        figure.note = "; ".join(f"{peer} not measured: {missing[peer]}" for peer in absent)
    if not (present or versus.kind == "MB/s") or ours not in racers:
        figure.verdict = "missing"
        return figure
    if versus.kind == "MB/s":
        figure.samples = [round(racers[ours].traffic / time / 1e6, 6) for time in times[ours]]
        figure.value, figure.low, figure.high = median_interval(figure.samples)
        figure.note = versus.note
        return figure.judged(context.profile)
    figure.peer = min(present, key=lambda peer: statistics.median(times[peer]))
    scale = racers[ours].traffic / (racers[figure.peer].traffic or 1) if versus.kind == "rate" else 1.0
    pairs = zip(times[ours], times[figure.peer], strict=True)
    figure.samples = [round(a / b if versus.kind == "time" else scale * b / a, 6) for a, b in pairs]
    figure.value, figure.low, figure.high = median_interval(figure.samples)
    figure.note = "; ".join(filter(None, (figure.note, versus.note)))
    if versus.ceiling and versus.target and context.profile != "smoke":
        slow, fast = versus.ceiling
        allowed = statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))
        figure.target = Target(min(versus.target.limit, allowed), versus.target.at_most)
        figure.note = f"target: {versus.target.limit:g}, or what {fast} gains here over {slow} if less: {allowed:.2f}"
    return figure.judged(context.profile)


def median_interval(samples: Sequence[float]) -> tuple[float, float, float]:
    """The median and its 95 % bootstrap interval."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(samples, k=len(samples))) for _ in range(1000))
    return statistics.median(samples), medians[25], medians[974]


# --- equality ---


def within_twice(ours: Any, peer: Any, exact: Any, what: str) -> str:
    """The 2x rule: our error against a float64 result is at most twice the peer's. Tensors or arrays."""
    error, allowed = float(abs(ours - exact).max()), 2 * float(abs(peer - exact).max())
    if not error <= allowed:  # also NaN
        raise UnequalError(f"{what}: error {error:.3g} against float64, more than twice the peer's {allowed / 2:.3g}")
    return f"{what}: error {error:.2g} against float64, the peer's {allowed / 2:.2g}."


def same_bits(ours: Any, peer: Any, what: str) -> str:
    if ours.dtype != peer.dtype or ours.shape != peer.shape or not bool((ours == peer).all()):
        raise UnequalError(f"{what}: not equal bit for bit")
    return f"{what}: equal bit for bit."


# --- the machine ---


def set_threads(count: int) -> None:
    """Torch's threads, where torch is in use; a package with threads of its own is told by its arguments."""
    if "torch" in sys.modules and sys.modules["torch"].get_num_threads() != count:
        sys.modules["torch"].set_num_threads(count)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def copier(megabytes: int, threads: int) -> Contestant:
    """A large memory copy by `memmove`: the bytes/s that this machine gives to so many threads.

    Not `Tensor.copy_`: on a CPU its stores first read the line that they overwrite, and it shows half the bandwidth.
    """
    size = (megabytes << 20) // threads
    pieces = [(ctypes.create_string_buffer(size), ctypes.create_string_buffer(size)) for _ in range(threads)]
    for a, b in pieces:
        ctypes.memset(a, 1, size)
        ctypes.memset(b, 2, size)
    pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def run() -> None:
        if pool is None:
            ctypes.memmove(pieces[0][0], pieces[0][1], size)
        else:
            list(pool.map(lambda piece: ctypes.memmove(piece[0], piece[1], size), pieces))

    return Contestant(run, threads, traffic=2 * size * threads)


def peak_memory(run: Callable[[], object]) -> int | None:
    """Bytes that one run takes beyond what was there before; None where the system does not tell."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return int(torch.cuda.max_memory_allocated() - before)
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or freed blocks of the run before would serve this one unseen
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    except (OSError, AttributeError):
        run()
        return None
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


def gpu() -> str | None:
    """The GPU that this process has used, if any."""
    torch = sys.modules.get("torch")
    return str(torch.cuda.get_device_name()) if torch is not None and torch.cuda.is_initialized() else None


def machine(gpu: str | None) -> dict[str, Any]:
    """What a reader needs to know to place the numbers; nothing that identifies the machine."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        fields = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        model = fields.get("model name", model)
        flags = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "cpu": model,
        "cores": cores(),
        "flags": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "asimd", "sve") if flag in flags],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def version(name: str) -> str:
    """The version of a distribution, or of a module that is importable without being installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        try:
            return str(getattr(importlib.import_module(name), "__version__", "unknown"))
        except ImportError:
            return "not installed"
