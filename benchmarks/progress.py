"""Shows how far a run of the benchmarks is: a live bar on a terminal, otherwise a line for each workload."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console


class Watch:
    """The workloads one after another, each with the seconds that it is expected to take."""

    def __init__(self, console: Console, expected: Sequence[float]) -> None:
        self.expected, self.place, self.begun = list(expected), 0, 0.0
        self.known = self.spent = 0.0  # what the finished ones were expected to take, and what they took
        columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}")
        self.progress = Progress(
            *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self.whole = self.progress.add_task("benchmarks", total=sum(self.expected), left="")
        self.part = self.progress.add_task("", total=1.0, left="")

    def __enter__(self) -> Watch:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def start(self, name: str) -> None:
        self.begun = time.perf_counter()
        self.progress.reset(self.part, description=name, total=1.0)
        self.show(0.0)

    def advance(self, share: float) -> None:
        """`share` of the workload is done, by what it says itself."""
        self.progress.update(self.part, completed=share)
        self.show(share)

    def done(self, name: str, seconds: float, bad: str = "") -> None:
        self.known += self.expected[self.place]
        self.spent += seconds
        self.place += 1
        self.show(0.0)
        number = f"[dim]{self.place:2}/{len(self.expected)}[/]"
        self.progress.console.print(f"{number} {name} [dim]{seconds:.1f} s[/] [bold red]{bad}")

    def show(self, share: float) -> None:
        now = self.expected[self.place] * min(share, 1.0) if self.place < len(self.expected) else 0.0
        left = f"{self.place}/{len(self.expected)}, about {clock(self.left(now))} left"
        self.progress.update(self.whole, completed=self.known + now, left=left)

    def left(self, now: float = 0.0) -> float:
        """Seconds to the end, if the rest is as much slower or faster than expected as what is done."""
        pace = (self.spent + 10) / (self.known + 10)  # ten seconds of faith in the expectation
        return pace * (sum(self.expected) - self.known - now)


def clock(seconds: float) -> str:
    return f"{round(seconds) // 60}:{round(seconds) % 60:02}"
