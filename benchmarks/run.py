"""Runs the benchmarks: `python benchmarks/run.py [packages] [--smoke | --full | --gpu]`, or `nox -s bench -- ...`.

Every `benchmarks/<package>/bench_*.py` has WORKLOADS (see `harness.py`) and PACKAGES (whose versions are recorded);
those in which several packages meet lie in `benchmarks/together/`. A result that differs from its peer's, or a workload
that breaks, ends the run with status 1; a missed target does not. Ctrl-C ends it with 130 and keeps what was measured.
"""

from __future__ import annotations

import os

# Where ours has one thread the peers have one: torch is told by the harness, NumPy's BLAS before it is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import gc
import importlib.util
import json
import re
import sys
import time
import traceback
from argparse import ArgumentParser, Namespace
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
import report
from progress import Watch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

    Job = tuple[str, harness.Workload, list[str]]  # package, workload, distributions whose versions count
    Run = dict[str, Any]

HERE = Path(__file__).resolve().parent
# Or benchmarks/adamod would pose as the package of that name where that is not installed.
sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != HERE]
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
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    return "" if torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA device"


# --- measuring ---


def measure(args: Namespace, console: Console) -> Run:
    """All selected workloads, one after the other; what breaks is recorded and the next one runs."""
    start = time.perf_counter()
    done: list[Run] = []
    jobs: list[Job] = []
    run: Run = {"format": 1, "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    run |= {"command": args.command, "profile": args.profile, "outcomes": done}
    try:
        for path in sorted(HERE.glob("*/bench_*.py")):
            if (package := path.parent.name) in args.packages:
                try:
                    module = load(path)
                except Exception as error:
                    if args.profile == "gpu" and isinstance(error, ImportError):  # of a peer on CPUs, most often
                        error = harness.MissingError(f"not loaded: {error}")
                    done.append(broken(package, harness.Outcome(path.stem, "This file could not be loaded."), error))
                    continue
                ours = [package] if (HERE.parent / "packages" / package).is_dir() else []
                names = list(dict.fromkeys([*ours, *module.PACKAGES]))
                chosen = [w for w in module.WORKLOADS if any(text in w.name for text in args.only or [""])]
                jobs += [(package, w, names) for w in chosen if args.profile in w.profiles]
        harness.set_threads(1)  # a race sets its own
        with Watch(console, expected(jobs, args)) as watch:
            for job in jobs:
                outcome = watched(job, args, watch)
                done.append(outcome)
                watch.done(f"{job[0]}: {job[1].name}", outcome["seconds"], bad(outcome))
    except KeyboardInterrupt:
        run["note"] = f"stopped by the user after {len(done)} of {len(jobs) or 'its'} workloads"
    versions = {name: harness.version(name) for *_, names in jobs for name in names}  # last, since it may import
    for outcome in done:
        outcome["versions"] = {name: versions[name] for name in outcome.get("versions", ())}
    run |= {"machine": harness.machine(), "versions": versions}
    run["seconds"] = round(time.perf_counter() - start, 1)
    return run


def watched(job: Job, args: Namespace, watch: Watch) -> Run:
    package, workload, names = job
    watch.start(f"{package}: {workload.name}")
    context = harness.Context(args.profile, args.data, watch.advance)
    begun = time.perf_counter()
    try:
        with inside(HERE / package):
            outcome = workload.run(context).record() | {"package": package}
    except Exception as error:
        outcome = broken(package, harness.Outcome(workload.name, workload.about), error)
    outcome |= {"seconds": round(time.perf_counter() - begun, 2), "versions": names}
    gc.collect()
    return outcome


def expected(jobs: Sequence[Job], args: Namespace) -> list[float]:
    """Seconds of each workload as the last runs of this profile had them, or of the usual one."""
    known: dict[tuple[str, str], float] = {}
    for path in (*sorted(HERE.glob("results/*.json")), *sorted(args.out.glob("*.json"))):
        with suppress(OSError, ValueError, LookupError, TypeError):  # what is no run of ours
            run = json.loads(path.read_text(encoding="utf-8"))
            if run["profile"] == args.profile:
                known |= {(o["package"], o["name"]): float(o["seconds"]) for o in run["outcomes"]}
    usual = {"smoke": 0.4, "quick": 5.0, "full": 60.0, "gpu": 5.0}[args.profile]
    return [max(0.1, known.get((package, workload.name), usual)) for package, workload, _ in jobs]


def load(path: Path) -> ModuleType:
    """A module of workloads."""
    name = f"bench.{path.parent.name}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    with inside(path.parent):
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


ROOMS: dict[Path, tuple[list[str], dict[str, ModuleType]]] = {}  # of a folder: where it looks, and what it found


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Whoever is here imports what lies beside it, and from where it adds to the path; no other folder sees that.

    Several packages have a `material.py`, or examples of the same name.
    """
    places, modules = ROOMS.setdefault(folder, ([str(folder)], {}))
    before = list(sys.path)
    sys.path[:0] = places
    sys.modules.update(modules)
    try:
        yield
    finally:
        places += [place for place in dict.fromkeys(sys.path) if place not in (*before, *places)]
        sys.path[:] = before
        for name, module in list(sys.modules.items()):
            if (file := getattr(module, "__file__", None)) and str(Path(file).parent) in places:
                modules[name] = sys.modules.pop(name)


def broken(package: str, outcome: harness.Outcome, error: Exception) -> Run:
    """An outcome with one line and no number: red, unless only something is missing."""
    note = f"{type(error).__name__}: {error}".replace(str(HERE.parent), ".")
    figure = harness.Figure("", package, "", note=note, verdict="failed")
    if isinstance(error, harness.UnequalError | harness.MissingError):
        figure.verdict = "unequal" if isinstance(error, harness.UnequalError) else "missing"
        figure.note = outcome.error = str(error)
    else:
        outcome.error = "".join(traceback.format_exception(error)).replace(str(HERE.parent), ".")
    outcome.figures = [figure]
    return outcome.record() | {"package": package}


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
    sys.exit(main())
