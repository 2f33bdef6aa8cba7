"""A package's workloads in a process of their own, which loads them at once and measures them when it is its turn.

`run.py` has a `Package`, which starts this file as a program: a `Worker`. A socket connects the two.
"""

from __future__ import annotations

import os

# Where ours has one thread the peers have one: torch is told by the harness, NumPy's BLAS before it is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import gc
import importlib
import json
import signal
import socket
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, NamedTuple

import harness

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


PATIENCE = 10.0  # seconds to tidy up
UNLOADED = "This file could not be loaded."


class Job(NamedTuple):
    """A workload, as the run knows it."""

    package: str
    name: str
    about: str
    versions: dict[str, str]


class Package:
    """The process of a package, as the run has it."""

    def __init__(self, folder: Path, profile: harness.Profile, data: str | None, only: list[str] | None) -> None:
        self.name = folder.name
        self.files = sorted(path.stem for path in folder.glob("bench_*.py"))  # that are not loaded yet
        self.jobs: list[Job] = []
        self.gpu: str | None = None
        self.death = ""  # what there is to say of the workloads to which a dead process does not come
        self.channel, other = socket.socketpair()
        task = json.dumps({"files": self.files, "only": only or [""], "profile": profile, "data": data})
        command = [sys.executable, "-X", "faulthandler", __file__, str(other.fileno()), str(folder), task]
        with other:  # a session of its own: Ctrl-C comes to the run, which does the rest
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[other.fileno()], start_new_session=True
            )
        self.events = self.listen()

    def listen(self) -> Generator[list[Any]]:
        """What the process says until its end, but for a line that it did not finish."""
        with self.channel.makefile("r", encoding="utf-8") as lines, suppress(ConnectionError, json.JSONDecodeError):
            yield from map(json.loads, lines)

    def load(self) -> list[dict[str, Any]]:
        """Wait until all jobs are known; the outcomes are those of files that could not be loaded."""
        failed = []
        while self.files:
            kind, *values = next(self.events, ("death",))
            if kind == "job":
                self.jobs.append(Job(self.name, *values))
            elif kind == "loaded":
                self.files.remove(*values)
            elif kind == "outcome":
                failed.append(values[0])
            else:
                failed.append(self.dead(harness.Outcome(self.files.pop(0), UNLOADED)))
        return [outcome | {"package": self.name, "versions": {}} for outcome in failed]

    def begin(self) -> None:
        with suppress(OSError):  # it may have died meanwhile
            self.channel.send(b"!")

    def outcome(self, job: Job, advance: Callable[[float], None]) -> dict[str, Any]:
        """Wait for the next one, that of `job`: a failure if the process dies, and for all jobs after that."""
        begun = time.perf_counter()
        for kind, value, *gpu in self.events:
            if kind == "outcome":
                outcome, self.gpu = value, gpu[0] or self.gpu
                break
            advance(value)
        else:
            outcome = self.dead(harness.Outcome(job.name, job.about))
        seconds = round(time.perf_counter() - begun, 2)
        return {**outcome, "package": self.name, "versions": job.versions, "seconds": seconds}

    def dead(self, outcome: harness.Outcome) -> dict[str, Any]:
        """What comes of it since the process died."""
        note = self.death
        if not note:
            status = self.wait()
            how = f"died of signal {-status} ({signal.strsignal(-status)})" if status < 0 else f"ended with {status}"
            note, self.death = f"its process {how}", f"not run: the process {how} at {outcome.name}"
        return outcome.without_figures("failed", note).record()

    def wait(self) -> int:
        """The status of the process, which is about to end; if it does not, it is killed, like what it has started."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)
        with suppress(OSError):  # mostly nothing is left
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()

    def stop(self) -> None:
        """Have the process end now, if it has not, after it has tidied up."""
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.wait()
        self.events.close()
        self.channel.close()


class Worker:
    """The process itself, which says what it does in lines of JSON: a kind of event, and what belongs to it.

    The first byte that comes is its turn. When no more can come the run is gone, and it goes too.
    """

    def __init__(self, channel: socket.socket, folder: Path, files: list[str], only: list[str], **context: Any) -> None:
        self.folder, self.files, self.only = folder, files, only
        self.context = harness.Context(**context, progress=lambda share: self.tell("share", float(share)))
        self.channel, self.lines = channel, channel.makefile("w", encoding="utf-8")
        self.turn = Event()

    def run(self) -> None:
        Thread(target=self.listen, daemon=True).start()
        workloads = [workload for file in self.files for workload in self.load(file)]
        if not workloads:
            return
        harness.set_threads(1)  # a race sets its own
        self.turn.wait()
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # now there may be something to tidy up
        with suppress(KeyboardInterrupt):
            for workload in workloads:
                self.measure(workload)

    def listen(self) -> None:
        with suppress(OSError):
            while self.channel.recv(1):
                self.turn.set()
        os.killpg(0, signal.SIGKILL)  # also what a workload has started

    def tell(self, *event: Any) -> None:
        print(json.dumps(event, allow_nan=False), file=self.lines, flush=True)

    def load(self, file: str) -> list[harness.Workload]:
        """The workloads of a file that are asked for."""
        package, root, chosen = self.folder.name, self.folder.parents[1], []
        try:
            module = importlib.import_module(file)
            named = [workload for workload in module.WORKLOADS if any(text in workload.name for text in self.only)]
            chosen = [workload for workload in named if self.context.profile in workload.profiles]
            ours = [package] if (root / "packages" / package).is_dir() else []
            versions = {name: harness.version(name) for name in (*ours, *module.PACKAGES) if chosen}
        except Exception as error:
            if self.context.profile == "gpu" and isinstance(error, ImportError):  # of a peer on CPUs, most often
                error = harness.MissingError(f"not loaded: {error}")
            self.tell("outcome", self.broken(harness.Outcome(file, UNLOADED), error))
        for workload in chosen:
            self.tell("job", workload.name, workload.about, versions)
        self.tell("loaded", file)
        return chosen

    def measure(self, workload: harness.Workload) -> None:
        try:
            self.tell("outcome", workload.run(self.context).record(), harness.gpu())
        except Exception as error:
            self.tell("outcome", self.broken(harness.Outcome(workload.name, workload.about), error), harness.gpu())
        gc.collect()

    def broken(self, outcome: harness.Outcome, error: Exception) -> dict[str, Any]:
        """What is there to say instead of figures: in red, unless only something is missing."""
        if isinstance(error, harness.MissingError):
            return outcome.without_figures("missing", str(error)).record()
        if isinstance(error, harness.UnequalError):
            return outcome.without_figures("unequal", str(error)).record()
        texts = f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error))
        root = str(self.folder.parents[1])
        return outcome.without_figures("failed", *(text.replace(root, ".") for text in texts)).record()


if __name__ == "__main__":
    folder, task = Path(sys.argv[2]), json.loads(sys.argv[3])
    # Instead of benchmarks/, or its adamod/ would pose as the package of that name where that is not installed.
    sys.path[0] = str(folder)
    Worker(socket.socket(fileno=int(sys.argv[1])), folder, **task).run()
