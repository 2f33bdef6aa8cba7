"""Every target in turn for some minutes: `python -m fuzz [--seconds 600] [--seed N] [target ...]`, in `tests/`.

With atheris, which sees what lines of the packages an input reaches, where it is installed; otherwise blindly. Each
target has a process of its own, so that one that crashes or hangs is told of and the others go on. Inputs that broke
something lie in the folder `--out` afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Any

from fuzz.choices import random_bytes
from fuzz.mutation import mutated
from fuzz.targets import CORPUS, MODULES, attempt, corpus, limit_memory, of_package, place, report

if TYPE_CHECKING:
    from fuzz.targets import Target

_LARGEST_FILE = 4096  # bytes of a file of the corpus
_HANGS = 60  # seconds of one input after which a process is given up
_MEMORY = 3 << 30  # bytes that a process may have beyond what it begins with
_ENGINES = ("atheris", "mutation")


def main() -> int:
    """Fuzz, or write the corpus; the exit code is 1 where something broke."""
    parser = argparse.ArgumentParser("fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help="names, or beginnings of names (default: all)")
    parser.add_argument("--seconds", type=float, default=600, help="for all targets together (default: 600)")
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(1 << 31), help="default: random")
    parser.add_argument("--engine", choices=_ENGINES, default=_ENGINES[find_spec("atheris") is None])
    parser.add_argument("--out", type=Path, default=Path("fuzz-report"), help="where inputs go that broke something")
    parser.add_argument("--seeds", action="store_true", help="write the valid inputs of the corpus anew, and end")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process that is forked from one with more of them hangs
    packages = [name for name in MODULES if _chosen(name, options.targets)]
    if options.seeds:
        for package in packages:
            write_seeds(_targets(package, options.targets))
        return 0
    if not (count := _count(packages, options.targets)):
        parser.error(f"targets must begin the name of one, got {' '.join(options.targets)}")
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    _say(f"seed {options.seed}, engine {options.engine}, {options.seconds:.0f} s for {count} targets")
    failed = False
    for package in packages:
        sys.stdout.flush()
        if not (child := os.fork()):  # a package is imported, and instrumented, once
            _leave(lambda package=package: run_package(package, options.seconds / count, options))
        _, status = os.waitpid(child, 0)
        failed |= status != 0
    return summary(options.out) or failed


def _chosen(package: str, wanted: list[str]) -> bool:
    short = MODULES[package].removeprefix("of_")
    return not wanted or any(name.startswith(short) for name in wanted)


def _targets(package: str, wanted: list[str], *, prepared: bool = False) -> list[Target]:
    found = of_package(package, prepared=prepared)
    return [target for target in found if not wanted or any(target.name.startswith(name) for name in wanted)]


def _count(packages: list[str], wanted: list[str]) -> int:
    """How many targets share the time; a process of its own imports the packages, which here are not instrumented."""
    with multiprocessing.get_context("fork").Pool(1) as elsewhere:
        return elsewhere.apply(_count_here, (packages, wanted))


def _count_here(packages: list[str], wanted: list[str]) -> int:
    return sum(len(_targets(package, wanted)) for package in packages)


def run_package(package: str, seconds: float, options: Any) -> None:
    """The targets of a package, each in a process forked from one that has the package."""
    if options.engine == "atheris":
        import atheris

        module = package.replace("-", "_")
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stderr(nowhere),
            atheris.instrument_imports([module]),
        ):
            targets = _targets(package, options.targets, prepared=True)
    else:
        targets = _targets(package, options.targets, prepared=True)
    for target in targets:
        run_target(target, seconds, options)


def run_target(target: Target, seconds: float, options: Any) -> None:
    """One target in a process of its own, which is given up if it hangs."""
    folder = options.out / target.name
    folder.mkdir(parents=True)
    sys.stdout.flush()
    if not (child := os.fork()):
        _leave(lambda: _fuzz(target, seconds, folder, options))
    deadline = time.monotonic() + seconds + _HANGS + 30
    status = None
    while status is None and time.monotonic() < deadline:
        found, code = os.waitpid(child, os.WNOHANG)
        status = code if found else None
        time.sleep(0.05)
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    state = _state(folder)
    if status is None or os.WIFSIGNALED(status) or not state.get("finished"):
        what = "hung" if status is None else f"died of status {status}"
        last = folder / "last"
        if last.exists():
            shutil.copy(last, folder / f"broken-{hashlib.sha256(last.read_bytes()).hexdigest()[:12]}")
        state.setdefault("broken", {})[what] = (folder / "log").read_text(errors="replace")[-3000:]
        (folder / "state.json").write_text(json.dumps(state))
    _say(f"{target.name:28} {state.get('runs', 0):8,} runs  {state.get('refused', 0):8,} refused  "
         f"{state.get('seconds', 0):5.0f} s  {len(state.get('broken', {})):2} broken")  # fmt: skip


def _fuzz(target: Target, seconds: float, folder: Path, options: Any) -> None:
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable()
    limit_memory(_MEMORY)
    recorder = Recorder(target, seconds, folder)
    seed = options.seed ^ int.from_bytes(hashlib.sha256(target.name.encode()).digest()[:4], "little")
    seeds = list(corpus(target).values())
    for data in seeds:
        recorder(data)
    if options.engine == "atheris":
        _by_coverage(recorder, seeds, folder, seed)
    random = Random(seed)
    while not recorder.over:
        recorder(_next(target, seeds, random))
    recorder.finish()


def _next(target: Target, seeds: list[bytes], random: Random) -> bytes:
    if target.seeds is None and (not seeds or random.random() < 0.5):
        return random_bytes(random)
    data = mutated(random.choice(seeds), seeds, random)
    return target.mend(data) if target.mend and random.random() < 0.8 else data


def _by_coverage(recorder: Recorder, seeds: list[bytes], folder: Path, seed: int) -> None:
    import atheris

    target = recorder.target
    (folder / "found").mkdir()
    for k, data in enumerate(seeds):
        (folder / "found" / f"{k}").write_bytes(data)

    def mutate(data: bytes, most: int, number: int) -> bytes:
        random = Random(number)
        if target.seeds is None or random.random() < 0.3:
            changed = atheris.Mutate(data, most)
        else:
            changed = mutated(data if random.random() < 0.7 or not seeds else random.choice(seeds), seeds, random)
        return (target.mend(changed) if target.mend and random.random() < 0.8 else changed)[:most]

    def one(data: bytes) -> None:
        recorder(data)
        if recorder.over:
            recorder.finish()
            os._exit(0)

    longest = max((len(data) for data in seeds), default=64)
    arguments = [f"-seed={seed % (1 << 31)}", f"-max_len={max(256, 2 * longest)}", "-rss_limit_mb=0"]
    arguments += [f"-timeout={2 * _HANGS}", f"-artifact_prefix={folder}/libfuzzer-"]
    arguments += ["-handle_segv=0", "-handle_abrt=0", "-handle_fpe=0", "-handle_ill=0", "-handle_bus=0"]
    atheris.Setup(["fuzz", *arguments, str(folder / "found")], one, custom_mutator=mutate)
    atheris.Fuzz()


class Recorder:
    """Runs inputs and keeps what came of them, also if the process dies of the next one."""

    def __init__(self, target: Target, seconds: float, folder: Path) -> None:
        self.target = target
        self.folder = folder
        self.began = time.monotonic()
        self.until = self.began + seconds
        self.last = folder / "last"
        self.runs = self.refused = 0
        self.broken: dict[str, str] = {}
        self.written = 0.0

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.until

    def __call__(self, data: bytes) -> None:
        self.last.write_bytes(data)
        faulthandler.dump_traceback_later(_HANGS, exit=True)
        self.runs += 1
        try:
            self.refused += attempt(self.target, data) is not None
        except Exception as error:
            what = place(error)
            if what not in self.broken:
                self.broken[what] = report(error)
                name = hashlib.sha256(data).hexdigest()[:12]
                (self.folder / f"broken-{name}").write_bytes(data)
                self.broken[what] += f"\ninput: broken-{name}"
                self.write()
        faulthandler.cancel_dump_traceback_later()
        if time.monotonic() > self.written + 1:
            self.write()

    def write(self, **more: Any) -> None:
        self.written = time.monotonic()
        state = {"runs": self.runs, "refused": self.refused, "seconds": time.monotonic() - self.began}
        (self.folder / "state.json").write_text(json.dumps({**state, "broken": self.broken, **more}))

    def finish(self) -> None:
        self.write(finished=True)
        shutil.rmtree(self.folder / "found", ignore_errors=True)
        self.last.unlink(missing_ok=True)


def summary(out: Path) -> int:
    """All that broke, and how to keep it."""
    states = {path.name: _state(path) for path in sorted(out.iterdir()) if path.is_dir()}
    for name, state in states.items():
        for what, text in state.get("broken", {}).items():
            _say(f"\n{name}: {what}\n{text}")
    broken = {name: state for name, state in states.items() if state.get("broken")}
    runs = sum(state.get("runs", 0) for state in states.values())
    _say(f"\n{runs:,} runs of {len(states)} targets, {len(broken)} of which broke")
    for name in broken:
        for path in sorted((out / name).glob("broken-*")):
            _say(f"to keep it: cp {path} {CORPUS / name / path.name.replace('broken-', 'bug-')}")
    return bool(broken)


def write_seeds(targets: list[Target]) -> None:
    """The valid inputs of the corpus, compressed where they are large."""
    import lzma

    for target in targets:
        folder = CORPUS / target.name
        for old in folder.glob("valid-*"):
            old.unlink()
        for k, data in enumerate(target.seeds() if target.seeds else []):
            folder.mkdir(parents=True, exist_ok=True)
            packed = lzma.compress(data, preset=9 | lzma.PRESET_EXTREME) if len(data) > 1024 else data
            if len(packed) > _LARGEST_FILE:
                sys.exit(
                    f"{target.name}: a file of the corpus must have at most {_LARGEST_FILE} bytes, not {len(packed)}"
                )
            (folder / (f"valid-{k}.xz" if packed is not data else f"valid-{k}")).write_bytes(packed)


def _state(folder: Path) -> dict[str, Any]:
    path = folder / "state.json"
    state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return state


def _leave(work: Any) -> None:
    """Work, and end the process here."""
    code = 1
    try:
        work()
        code = 0
    except Exception as error:
        sys.stderr.write(report(error))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
