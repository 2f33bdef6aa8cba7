"""What the experiments share: optimizers by name, options, seeds and progress; no models, no tables."""

from __future__ import annotations

import json
import lzma
import platform
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _report import Measure, Run, best, grid, ranking, summarise, verdicts, write
from torch.optim import SGD, AdamW, Optimizer, RAdam
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from adamod import AdaMod

if TYPE_CHECKING:
    from argparse import Namespace

Train = Callable[[str, float, int, Callable[[float], None]], Run]  # (optimizer, lr, seed, tick) -> measures and curves


@dataclass(frozen=True)
class Recipe:
    """How to build an optimizer, and whether its learning rate rises at first and decays later."""

    build: Callable[..., Optimizer]
    warmup: bool = False
    decay: bool = True


def sgd(params: Any, lr: float, betas: tuple[float, float], weight_decay: float) -> Optimizer:
    return SGD(params, lr, momentum=0.9, weight_decay=weight_decay)


def schedule_free(params: Any, **options: Any) -> Optimizer:
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(params, **options)
    optimizer.train()
    return optimizer  # type: ignore[no-any-return]


RECIPES = {
    "SGD": Recipe(sgd),
    "AdamW": Recipe(AdamW),
    "AdamW+warmup": Recipe(AdamW, warmup=True),
    "AMSGrad": Recipe(partial(AdamW, amsgrad=True)),
    "RAdam": Recipe(partial(RAdam, decoupled_weight_decay=True)),
    "ScheduleFree": Recipe(schedule_free, warmup=True, decay=False),  # its authors advise a warm-up
    "AdaMod": Recipe(AdaMod),
    "AdaMod-paper": Recipe(partial(AdaMod, variant="paper")),
    "AdaMod-.99": Recipe(partial(AdaMod, beta3=0.99)),
    "AdaMod-.9999": Recipe(partial(AdaMod, beta3=0.9999)),
    "AdaMod-bf16": Recipe(partial(AdaMod, state_dtype=torch.bfloat16)),
    "AdaMod-int8": Recipe(partial(AdaMod, state_dtype="int8")),
}


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"must be a positive whole number, got {text}")
    return int(text)


def arguments(
    description: str | None, *, optimizers: str, lrs: list[float], data: str, search_seeds: int = 1000
) -> ArgumentParser:
    """The options of every experiment. SGD lives on another scale and tries as many learning rates of its own."""
    parser = ArgumentParser(description=description, formatter_class=ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--data", help=data)
    add("--smoke", action="store_true", help="a few seconds on built-in data, to see that all of it runs")
    add("--optimizers", nargs="+", choices=RECIPES, default=optimizers.split(), metavar="NAME", help=", ".join(RECIPES))
    add("--lrs", nargs="+", type=float, default=lrs, help="learning rates that every optimizer tries")
    add("--sgd-lrs", nargs="+", type=float, default=[10 * lr for lr in lrs], help="the same for SGD")
    add("--seeds", type=positive, default=3, help="runs per optimizer and learning rate")
    add("--search-seeds", type=positive, default=search_seeds, help="runs after which only the best rate goes on")
    add("--threads", type=positive, default=1, help="threads of torch")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device of torch")
    add("--resume", action="store_true", help="reuse the runs already in the JSON file, made with the same settings")
    add("--out", type=Path, default=Path("results"), help="folder for the JSON file and the picture")
    return parser


def parse(parser: ArgumentParser, argv: Sequence[str] | None, **smoke: Any) -> Namespace:
    """The options; with --smoke other defaults hold, without it --data is needed unless it has a default."""
    args = parser.parse_args(argv)
    if args.smoke:
        parser.set_defaults(**smoke)
        return parser.parse_args(argv)
    if args.data is None:
        parser.error("--data is needed: local files, or the name of a Hugging Face data set (or try --smoke)")
    return args


def read_text(path: Path) -> str:
    """A text file, plain or .xz."""
    opener: Any = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return str(file.read())


def hub(name: str) -> Any:
    """A data set of the Hugging Face hub, `name` or `name:configuration`, or a local folder that `datasets` reads."""
    from datasets import load_dataset

    if Path(name).exists():
        return load_dataset(name)
    name, _, configuration = name.partition(":")
    return load_dataset(name, configuration or None)


def optimizer_for(
    name: str,
    model: torch.nn.Module,
    lr: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    warmup: int = 1,
    decay: Callable[[int], float] = lambda step: 1.0,
) -> tuple[Optimizer, LambdaLR]:
    """The optimizer and its schedule: `decay(step)`, after a linear rise over `warmup` steps if the recipe has one."""
    recipe = RECIPES[name]
    optimizer = recipe.build(model.parameters(), lr=lr, betas=betas, weight_decay=weight_decay)

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / warmup) if recipe.warmup else 1.0
        return rise * (decay(step) if recipe.decay else 1.0)

    return optimizer, LambdaLR(optimizer, factor)


@contextmanager
def evaluating(model: torch.nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Evaluation mode without gradients; a schedule-free optimizer puts its averaged weights in, and out again."""
    switches: list[Any] = [model, optimizer] if hasattr(optimizer, "eval") else [model]
    for switch in switches:
        switch.eval()
    with torch.no_grad():
        yield
    for switch in switches:
        switch.train()


def experiment(
    name: str, args: Namespace, train: Train, *, steps: int, select: Measure, measures: Sequence[Measure]
) -> dict[str, Any]:
    """Trains every optimizer with every learning rate and seed; `select` chooses each one's learning rate.

    After `--search-seeds` only the chosen rates go on. Prints the tables and returns what `save` writes; the runs so
    far are in `<out>/<name>.json` after each run.
    """
    torch.set_num_threads(args.threads)
    rates = {optimizer: args.sgd_lrs if optimizer == "SGD" else args.lrs for optimizer in args.optimizers}
    searched = min(args.seeds, args.search_seeds)
    total = searched * sum(map(len, rates.values())) + (args.seeds - searched) * len(rates)
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "resume")}
    settings["data"] = args.data and Path(args.data).name
    done = earlier(args.out / f"{name}.json", settings) if args.resume else {}
    versions = {"python": platform.python_version(), "torch": version("torch"), "adamod": version("adamod")}
    runs: list[Run] = []
    report: dict[str, Any] = {"experiment": name, "settings": settings, "versions": versions, "runs": runs}

    with tqdm(total=total * steps, unit="step", smoothing=0, dynamic_ncols=True) as bar:

        def tick(loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

        for seed in range(args.seeds):
            if seed == args.search_seeds:
                rates = {row["optimizer"]: [row["lr"]] for row in best(summarise(runs, {select}), select)}
            for optimizer, lr in [(key, lr) for key, lrs in rates.items() for lr in lrs]:
                if (optimizer, lr, seed) in done:
                    runs.append(done[optimizer, lr, seed])
                    bar.update(steps)
                    continue
                bar.set_description(f"{optimizer}, lr {lr:g}, seed {seed}")
                torch.manual_seed(seed)
                start = time.perf_counter()
                found = train(optimizer, lr, seed, tick)
                seconds = time.perf_counter() - start
                runs.append({"optimizer": optimizer, "lr": lr, "seed": seed, "seconds": seconds, **found})
                write(report, args.out / f"{name}.json")

    rows = summarise(runs, {select, *measures})
    chosen = best([row for row in rows if len(row[select.key]["values"]) == args.seeds], select)
    sentences = [sentence for measure in measures for sentence in verdicts(chosen, measure)]
    print(f"\n{select.label}, mean ± standard deviation of {args.seeds} seeds\n\n{grid(rows, select)}")
    print(f"\nEach optimizer at its best learning rate, chosen by {select.label}\n\n{ranking(chosen, measures)}")
    print("", *sentences, sep="\n")
    return report | {"rows": rows, "best": chosen, "verdicts": sentences}


def earlier(path: Path, settings: dict[str, Any]) -> dict[tuple[str, float, int], Run]:
    """The runs of an interrupted or smaller experiment, which must have trained in the same way."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text("utf-8"))
    for key in settings.keys() - {"optimizers", "lrs", "sgd_lrs", "seeds", "search_seeds", "threads"}:
        before, now = found["settings"].get(key), settings[key]
        if before != now:
            raise ValueError(f"--resume needs the settings of the runs in {path}: {key} was {before}, got {now}")
    return {(run["optimizer"], run["lr"], run["seed"]): run for run in found["runs"]}
