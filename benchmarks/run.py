"""Runs the benchmarks: `python benchmarks/run.py [packages] [--smoke | --full | --gpu]`, or `nox -s bench -- ...`.

Every `benchmarks/<package>/bench_*.py` has WORKLOADS (see `harness.py`) and PACKAGES (whose versions are recorded);
those in which several packages meet lie in `benchmarks/together/`. Each package has a process of its own (`worker.py`):
all load at once, then one after another measures and ends. A result that differs from its peer's, or a workload that
breaks, ends the run with status 1; a missed target does not. Ctrl-C ends it with 130 and keeps what was measured.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
import report
from progress import Watch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from worker import Package

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker import Job

    Run = dict[str, Any]

HERE = Path(__file__).resolve().parent
STYLES = {"met": "green", "unclear": "yellow", "missed": "magenta", "missing": "yellow", "unequal": "bold red",
          "failed": "bold red", "reported": "dim"}  # fmt: skip
INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    console = Console(width=None if sys.stdout.isatty() else 140)
    if args.rebuild:
        if args.headlines:
            for run in args.rebuild:
                print(report.listing(run))
            return 0
        console.print(f"page: {report.write(args.rebuild, args.out / 'index.html')}", soft_wrap=True)
        return 0
    if args.profile == "gpu" and (why := no_gpu()):
        console.print(f"[bold red]No GPU:[/] {why}; the rows of a CUDA machine were not run.")
        return 2
    run = measure(args, console)
    if not run["outcomes"]:
        why = run.get("note") or f"no {args.profile} workload of {', '.join(args.packages)} fits"
        console.print(f"Nothing was run: {why}.")
        return INTERRUPTED if "note" in run else 2
    stopped = "-stopped" if "note" in run else ""  # a part does not take the place of a whole
    path = args.out / f"{run['date'][:10]}-{args.profile}{stopped}.json"
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(run, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(draft, path)
    page = report.write([report.read(path)], args.out / "index.html")  # as --from reads it
    conclude(run, console)
    console.print(f"{run['seconds']:.0f} s; results: {path}; page: {page}", soft_wrap=True)
    verdicts = [figure["verdict"] for outcome in run["outcomes"] for figure in outcome["figures"]]
    return INTERRUPTED if stopped else int(any(verdict in harness.BAD for verdict in verdicts))


# --- what is asked for ---


def arguments(argv: list[str] | None) -> Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    known = sorted({path.parent.name for path in HERE.glob("*/bench_*.py")})
    parser.add_argument("packages", nargs="*", help=f"which ones, all if none is named: {', '.join(known)}")
    profile = parser.add_mutually_exclusive_group()
    for name, text in (
        ("smoke", "tiny inputs: asserts equality, judges no speed"),
        ("full", "long runs: several seeds, quality tables"),
        ("gpu", "the rows of a CUDA machine"),
    ):
        profile.add_argument(f"--{name}", dest="profile", action="store_const", const=name, default="quick", help=text)
    parser.add_argument(
        "--only", action="append", metavar="TEXT", help="only workloads whose name contains this; may be repeated"
    )
    parser.add_argument("--data", help="a folder of data sets or the name of a Hugging Face data set")
    parser.add_argument("--out", type=Path, default=HERE / "report", help="where the JSON file and index.html go")
    parser.add_argument("--from", dest="rebuild", nargs="+", type=Path, metavar="JSON", help="only rebuild the page")
    parser.add_argument(
        "--headlines", action="store_true", help="with --from: only print the headlines, as README has them"
    )
    args = parser.parse_args(argv)
    if args.headlines and not args.rebuild:
        parser.error("--headlines tells those of a run that was made: name its file with --from")
    if unknown := set(args.packages) - set(known):
        parser.error(f"no benchmark for {', '.join(sorted(unknown))}; there is {', '.join(known)}")
    try:
        args.rebuild = [finished(path) for path in args.rebuild or ()]
        args.data = args.data and source(args.data)
        args.out.mkdir(parents=True, exist_ok=True)  # now, not when all has been measured
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"argument --out: cannot make the folder {args.out}: {error.strerror}")
    args.packages = list(dict.fromkeys(args.packages)) or known
    words = [*([] if args.packages == known else args.packages), "" if args.profile == "quick" else f"--{args.profile}"]
    words += [f"--only {json.dumps(text)}" for text in args.only or ()] + (["--data DATA"] if args.data else [])
    args.command = " ".join(["nox -s bench", *(["--"] if any(words) else []), *filter(None, words)])
    return args  # the command is without the paths of this machine


def source(data: str) -> str:
    """An existing folder or file, or what may be a name on the hub."""
    if Path(data).exists():
        return str(Path(data).resolve())
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", data):
        raise ValueError(f"argument --data: there is no folder {data}, nor can a Hugging Face data set have that name")
    print(f"There is no folder {data} here: it is taken for the name of a Hugging Face data set.", file=sys.stderr)
    return data


def finished(path: Path) -> Run:
    """A run that was written before, of which a page can be made."""
    try:
        run = report.read(path)
        report.page([run])
    except OSError as error:
        raise ValueError(f"argument --from: {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"argument --from: {error}") from error
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"argument --from: {path} does not hold a run of the benchmarks ({why})") from error
    return run


def no_gpu() -> str:
    """Why there is none, as another process finds out: this one holds no part of a device."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    code = "import torch; print('' if torch.cuda.is_available() else f'torch {torch.__version__} sees no CUDA device')"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, start_new_session=True).stdout.strip()


# --- measuring ---


def measure(args: Namespace, console: Console) -> Run:
    """All selected workloads, one after the other; what breaks is recorded and the next one runs."""
    start = time.perf_counter()
    run: Run = {"format": 1, "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    run |= {"command": args.command, "profile": args.profile}
    packages: list[Package] = []
    done: list[Run] = []
    jobs: list[Job] = []
    try:
        packages.extend(Package(HERE / name, args.profile, args.data, args.only) for name in sorted(args.packages))
        with console.status("loading"):
            for package in packages:
                done += package.load()
        jobs = [job for package in packages for job in package.jobs]
        with Watch(console, expected(jobs, args)) as watch:
            for package in packages:
                package.begin()
                for job in package.jobs:
                    watch.start(f"{job.package}: {job.name}")
                    done.append(package.outcome(job, watch.advance))
                    watch.done(f"{job.package}: {job.name}", done[-1]["seconds"], bad(done[-1]))
                package.wait()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what follows is short
        run["note"] = f"stopped by the user after {len(done)} of {len(jobs) or 'its'} workloads"
    finally:
        for package in packages:
            package.stop()
    gpu = next((package.gpu for package in packages if package.gpu), None)
    run |= {"machine": harness.machine(gpu), "versions": {k: v for job in jobs for k, v in job.versions.items()}}
    run |= {"outcomes": done, "seconds": round(time.perf_counter() - start, 1)}
    return run


def expected(jobs: Sequence[Job], args: Namespace) -> list[float]:
    """Seconds of each workload as the last runs of this profile had them, or of the usual one."""
    known: dict[tuple[str, str], float] = {}
    for path in (*sorted(HERE.glob("results/*.json")), *sorted(args.out.glob("*.json"))):
        with suppress(OSError, ValueError, LookupError, TypeError):  # what is no run of ours
            run = json.loads(path.read_text(encoding="utf-8"))
            if run["profile"] == args.profile:
                known |= {(o["package"], o["name"]): float(o["seconds"]) for o in run["outcomes"]}
    usual = {"smoke": 0.4, "quick": 5.0, "full": 60.0, "gpu": 5.0}[args.profile]
    return [max(0.1, known.get((job.package, job.name), usual)) for job in jobs]


def bad(outcome: Run) -> str:
    return next((f["verdict"] for f in outcome["figures"] if f["verdict"] in harness.BAD), "")


# --- what is printed ---


def conclude(run: Run, console: Console) -> None:
    """The table, why what is missing is missing, and the seconds of each package."""
    console.print(table(run))
    reasons: dict[tuple[str, str], list[str]] = {}
    for outcome in run["outcomes"]:
        missing = [figure["note"] for figure in outcome["figures"] if figure["verdict"] == "missing"]
        for text in dict.fromkeys([outcome["error"], *missing]) if outcome["error"] or missing else ():
            reasons.setdefault((outcome["package"], text), []).append(outcome["name"])
    for (package, text), names in reasons.items():
        console.print(f"{package}, {'; '.join(names)}: {text}", markup=False, highlight=False)
    seconds: dict[str, float] = {}
    for outcome in run["outcomes"]:
        seconds[outcome["package"]] = seconds.get(outcome["package"], 0.0) + outcome["seconds"]
    console.print(" · ".join(f"{package} {spent:.0f} s" for package, spent in seconds.items()), highlight=False)
    if "note" in run:
        console.print(f"[bold yellow]{run['note']}")


def table(run: Run) -> Table:
    title = "Smoke run: tiny inputs, equality asserted, nothing judged" if run["profile"] == "smoke" else None
    view = Table(title=title, header_style="bold", pad_edge=False)
    for name in ("package", "figure", "ours / peer", "value [interval]", "target", "verdict"):
        value = name.startswith("value")
        view.add_column(name, justify="right" if value else "left", overflow="fold", no_wrap=value)
    for outcome in run["outcomes"]:
        for figure in outcome["figures"]:
            who = " / ".join(filter(None, (figure["ours"], figure["peer"])))
            verdict = f"[{STYLES[figure['verdict']]}]{figure['verdict']}"
            what = ": ".join(filter(None, (outcome["name"], figure["name"])))
            view.add_row(
                outcome["package"], escape(what), escape(who), report.number(figure), report.target(figure), verdict
            )
    return view


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before or after the measuring
        sys.exit(INTERRUPTED)
