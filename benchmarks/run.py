"""Runs the benchmarks: `python benchmarks/run.py [packages] [--smoke | --full | --gpu]`, or `nox -s bench -- ...`.

Every `benchmarks/<package>/bench_*.py` has WORKLOADS (see `harness.py`) and PACKAGES (whose versions are recorded).
A result that differs from its peer's, or a workload that breaks, ends the run with status 1; a missed target does not.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import sys
import time
import traceback
from argparse import ArgumentParser, Namespace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
import report
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from types import ModuleType

HERE = Path(__file__).resolve().parent
# Or benchmarks/adamod would pose as the package of that name where that is not installed.
sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != HERE]
STYLES = {"met": "green", "unclear": "yellow", "missed": "magenta", "missing": "yellow", "unequal": "bold red",
          "failed": "bold red", "reported": "dim"}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    console = Console(width=None if sys.stdout.isatty() else 140)
    if args.rebuild:
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in args.rebuild]
        page = report.write(runs, args.out / "index.html")
        console.print(f"page: {page}")
        return 0
    if args.profile == "gpu" and (why := no_gpu()):
        console.print(f"[bold red]No GPU:[/] {why}; the rows of a CUDA machine were not run.")
        return 2
    run = measure(args, console)
    if not run["outcomes"]:
        console.print(f"Nothing to run: no {args.profile} workload of {', '.join(args.packages)} fits.")
        return 2
    path = args.out / f"{run['date'][:10]}-{args.profile}.json"
    args.out.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(run, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(draft, path)
    page = report.write([json.loads(path.read_text(encoding="utf-8"))], args.out / "index.html")  # as --from reads it
    console.print(table(run))
    for outcome in run["outcomes"]:
        missing = [figure["note"] for figure in outcome["figures"] if figure["verdict"] == "missing"]
        for text in dict.fromkeys([outcome["error"], *missing]) if outcome["error"] or missing else ():
            console.print(f"{outcome['package']}, {outcome['name']}: {text}", markup=False, highlight=False)
    console.print(f"{run['seconds']:.0f} s; results: {path}; page: {page}", soft_wrap=True)
    verdicts = [figure["verdict"] for outcome in run["outcomes"] for figure in outcome["figures"]]
    return int(any(verdict in harness.BAD for verdict in verdicts))


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
    args = parser.parse_args(argv)
    if unknown := set(args.packages) - set(known):
        parser.error(f"no benchmark for {', '.join(sorted(unknown))}; there is {', '.join(known)}")
    words = [*args.packages, "" if args.profile == "quick" else f"--{args.profile}", "--data DATA" if args.data else ""]
    options = " ".join(filter(None, words))  # without the paths of this machine
    args.command = f"nox -s bench -- {options}" if options else "nox -s bench"
    args.packages = args.packages or known
    return args


def no_gpu() -> str:
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    return "" if torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA device"


def measure(args: Namespace, console: Console) -> dict[str, Any]:
    """All selected workloads, one after the other; what breaks is recorded and the next one runs."""
    start, outcomes = time.perf_counter(), []
    jobs: list[tuple[str, harness.Workload, list[str]]] = []
    for path in sorted(HERE.glob("*/bench_*.py")):
        if (package := path.parent.name) not in args.packages:
            continue
        try:
            module = load(path)
        except Exception as error:
            outcomes.append(broken(package, harness.Outcome(path.stem, "This file could not be loaded."), error))
            continue
        ours = [package] if (HERE.parent / "packages" / package).is_dir() else []
        names = list(dict.fromkeys([*ours, *module.PACKAGES]))
        chosen = [w for w in module.WORKLOADS if any(text in w.name for text in args.only or [""])]
        jobs += [(package, w, names) for w in chosen if args.profile in w.profiles]
    harness.set_threads(1)  # a race sets its own
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        overall = progress.add_task("benchmarks", total=len(jobs))
        for place, (package, workload, names) in enumerate(jobs, 1):
            task = progress.add_task(f"{package}: {workload.name}", total=100)
            context = harness.Context(args.profile, args.data, partial(advance, progress, task))
            begun = time.perf_counter()
            try:
                outcome = workload.run(context).record() | {"package": package}
            except Exception as error:
                outcome = broken(package, harness.Outcome(workload.name, workload.about), error)
            outcome |= {"seconds": round(time.perf_counter() - begun, 2), "versions": names}
            outcomes.append(outcome)
            gc.collect()
            progress.remove_task(task)
            progress.advance(overall)
            worst = next((f["verdict"] for f in outcome["figures"] if f["verdict"] in harness.BAD), "")
            done = f"[dim]{place:2}/{len(jobs)}[/] {package}: {workload.name} [dim]{outcome['seconds']:.1f} s[/]"
            progress.console.print(f"{done} [bold red]{worst}")
    versions = {name: harness.version(name) for _, _, names in jobs for name in names}  # last, since it may import
    for outcome in outcomes:
        outcome["versions"] = {name: versions[name] for name in outcome.get("versions", ())}
    return {
        "format": 1,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": args.command,
        "profile": args.profile,
        "machine": harness.machine(),
        "versions": versions,
        "seconds": round(time.perf_counter() - start, 1),
        "outcomes": outcomes,
    }


def advance(progress: Progress, task: TaskID, share: float) -> None:
    progress.update(task, completed=int(100 * share))


def load(path: Path) -> ModuleType:
    """A module of workloads, which may import what else lies in its folder."""
    name = f"bench.{path.parent.name}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def broken(package: str, outcome: harness.Outcome, error: Exception) -> dict[str, Any]:
    """An outcome with one line and no number: red, unless only something is missing."""
    figure = harness.Figure("", package, "", note=f"{type(error).__name__}: {error}", verdict="failed")
    if isinstance(error, harness.UnequalError | harness.MissingError):
        figure.verdict = "unequal" if isinstance(error, harness.UnequalError) else "missing"
        figure.note = outcome.error = str(error)
    else:
        outcome.error = "".join(traceback.format_exception(error)).replace(str(HERE.parent), ".")
    outcome.figures = [figure]
    return outcome.record() | {"package": package}


def table(run: dict[str, Any]) -> Table:
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
