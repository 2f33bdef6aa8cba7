"""What it does to training: bounds that low precision must not stall, Transformers without a warm-up."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from harness import FULL, Context, Curves, Figure, MissingError, Outcome, Study, Target, Workload, at_most
from torch import Tensor

import adamod

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "packages" / "adamod" / "examples"))
from char_transformer import CONTEXT, CharTransformer, loss_of  # what the example trains is what is measured here

PACKAGES = ("adamod", "torch")
EXAMPLES = Path(__file__).resolve().parents[2] / "packages" / "adamod" / "examples"

# --- the bound in low precision ---

LR, BETAS, EPS = 1e-3, (0.9, 0.999), 1e-8
SR, NEAREST, INT8 = "bfloat16, stochastic", "bfloat16, to nearest", "int8, stochastic"
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    SR: {"state_dtype": torch.bfloat16},
    NEAREST: {"state_dtype": torch.bfloat16, "seed": None},
    INT8: {"state_dtype": "int8"},
}


def decoded(state: dict[str, Tensor], key: str) -> Tensor:
    """A non-negative state in float64; uint8 codes count eighths of an octave above the scale of their 256 elements."""
    x = state[key]
    if x.dtype is not torch.uint8:
        return x.double()
    base = state[f"{key}_scale"].to(torch.int32).repeat_interleave(256)[: x.numel()]
    code = x.flatten().to(torch.int32)
    return torch.where(code == 0, 0, (code + base) << 20).view(torch.float32).double()


def clipping(state: dict[str, Tensor], t: int) -> float:
    """The median of s / eta, recomputed from the states: 1 means a step as large as Adam's."""
    step_size = LR * math.sqrt(1 - BETAS[1] ** t) / (1 - BETAS[0] ** t)
    eta = step_size / (decoded(state, "exp_avg_sq").sqrt() + EPS)
    return float((decoded(state, "exp_avg_lr") / eta).median())


def stall(context: Context, outcome: Outcome) -> None:
    kernel = torch._C._dispatch_has_kernel_for_dispatch_key("adamod::step_", "CPU")
    steps, elements = context.pick((60, 4096), (3000, 8192), (3000, 65_536))
    steps = steps if kernel else min(steps, 300)  # the plain PyTorch reference takes minutes for 3000
    for place, beta3 in enumerate((0.999, 0.9999)):
        lines = bound_over_time(context, outcome, beta3, steps, elements, place / 2)
        mean = {name: [statistics.fmean(medians) for _, medians in points] for name, points in lines.items()}
        last = {name: points[-1][1] for name, points in lines.items()}
        for name, target in ((SR, at_most(1)), (INT8, at_most(3)), (NEAREST, None)):
            away = [100 * abs(a / b - 1) for a, b in zip(last[name], last["float32"], strict=True)]
            outcome.figures.append(
                Figure(
                    f"s/eta after {steps:,} steps, beta3 {beta3}",
                    f"{name}: {mean[name][-1]:.3f}",
                    f"float32: {mean['float32'][-1]:.3f}",
                    " % away",
                    statistics.fmean(away),
                    min(away),
                    max(away),
                    target=target,
                )
            )
        curves: dict[str, list[tuple[float, ...]]] = {}
        for name, line in lines.items():
            curves[name] = [(float(t), statistics.fmean(medians), min(medians), max(medians)) for t, medians in line]
        outcome.curves.append(Curves("step", f"median of s/eta, beta3 {beta3}", curves))


def bound_over_time(
    context: Context, outcome: Outcome, beta3: float, steps: int, elements: int, done: float
) -> dict[str, list[tuple[int, list[float]]]]:
    """Per precision [(step, the medians of three tensors)]; all precisions see the same gradients."""
    tensors = {name: [torch.zeros(elements, requires_grad=True) for _ in range(3)] for name in PRECISIONS}
    optimizers = {}
    for name, options in PRECISIONS.items():
        group = {"params": tensors[name], "seed": options.get("seed", 0)}
        state_dtype = options.get("state_dtype")
        optimizers[name] = adamod.AdaMod([group], LR, BETAS, beta3, EPS, state_dtype=state_dtype)
    generator = torch.Generator().manual_seed(3)
    lines: dict[str, list[tuple[int, list[float]]]] = {name: [] for name in PRECISIONS}
    for t in range(1, steps + 1):
        grads = [torch.randn(elements, generator=generator) for _ in range(3)]
        for name, optimizer in optimizers.items():
            for p, grad in zip(tensors[name], grads, strict=True):
                p.grad = grad
            optimizer.step()
            if t % max(1, steps // 30) == 0 or t == 1:
                lines[name].append((t, [clipping(dict(optimizer.state[p]), t) for p in tensors[name]]))
        context.progress(done + t / steps / 2)
    return lines


# --- training from the examples ---


def example(context: Context, name: str, data: str, *options: str) -> Any:
    """Runs an example in a process of its own and returns its report."""
    with TemporaryDirectory() as folder:
        out, log = Path(folder, f"{name}.json"), Path(folder, "log")
        command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--out", folder, "--data", data, *options]
        with log.open("wb") as sink, subprocess.Popen(command, stdout=sink, stderr=sink) as process:
            try:
                while process.poll() is None:
                    time.sleep(0.5)
                    if out.exists():  # it is written whole after each run
                        report = json.loads(out.read_text(encoding="utf-8"))
                        settings = report["settings"]
                        runs = len(settings["optimizers"]) * len(settings["lrs"]) * settings["seeds"]
                        context.progress(len(report["runs"]) / runs)
            finally:
                process.kill()
        if process.returncode:
            raise RuntimeError(f"{name}.py ended with {process.returncode}: {log.read_text(errors='replace')[-2000:]}")
        return json.loads(out.read_text(encoding="utf-8"))


def losses(report: Any, optimizer: str, lr: float) -> list[float]:
    """The final losses of all seeds in their order; a diverged run is infinite."""
    found = [run["val_loss"] for run in report["runs"] if (run["optimizer"], run["lr"]) == (optimizer, lr)]
    return [math.inf if loss is None else loss for loss in found]


def shown(found: list[float]) -> str:
    if diverged := sum(map(math.isinf, found)):
        return f"{diverged} of {len(found)} diverged"
    spread = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.3f}{spread}"


def against(report: Any, name: str, peer: str, lr: float, peer_lr: float, target: Target | None = None) -> Figure:
    """The ratio of final losses, seed by seed; the number is the mean, the interval the seeds' range."""
    mine, theirs = losses(report, "AdaMod", lr), losses(report, peer, peer_lr)
    labels = f"AdaMod, lr {lr:g}: {shown(mine)}", f"{peer}, lr {peer_lr:g}: {shown(theirs)}"
    figure = Figure(name, *labels, unit="x the loss", target=target, headline=target is not None)
    if not all(map(math.isfinite, mine + theirs)):
        figure.note = "a diverged run has no loss to compare"
        figure.verdict = "reported" if all(map(math.isfinite, mine)) else "missed"
        return figure
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    figure.value = statistics.fmean(ratios)
    if len(ratios) > 1:
        figure.low, figure.high = min(ratios), max(ratios)
    if min(ratios) > 1:
        figure.note = "the peer is better here"
    return figure


def precision(report: Any, name: str, lr: float) -> Figure:
    """How far the mean final loss with rounded states is from that with float32 ones."""
    mine, theirs = losses(report, name, lr), losses(report, "AdaMod", lr)
    labels = f"{name}, lr {lr:g}: {shown(mine)}", f"AdaMod: {shown(theirs)}"
    figure = Figure("rounded states, final loss", *labels, unit=" % away", target=at_most(1))
    if all(map(math.isfinite, mine + theirs)):
        figure.value = 100 * abs(statistics.fmean(mine) / statistics.fmean(theirs) - 1)
    else:
        figure.verdict, figure.note = "missed", "a diverged run has no loss to compare"
    return figure


def warm_up_glance(context: Context, outcome: Outcome) -> None:
    """The full profile's experiment in small: AdamW at the same rate, and at the best one of the full profile."""
    text = manual()[:100_000]
    alphabet = {character: i for i, character in enumerate(sorted(set(text)))}
    codes = torch.tensor([alphabet[character] for character in text])
    train, val = codes.split([90_000, 10_000])
    steps, seeds = context.pick((10, 2), (120, 3))
    runs: list[dict[str, Any]] = []
    plan = [
        (name, lr, seed) for name, lr in (("AdamW", 1e-2), ("AdamW", 3e-3), ("AdaMod", 1e-2)) for seed in range(seeds)
    ]
    for name, lr, seed in plan:
        torch.manual_seed(seed)
        model = CharTransformer(len(alphabet))
        build = adamod.AdaMod if name == "AdaMod" else torch.optim.AdamW
        optimizer = build(model.parameters(), lr=lr, weight_decay=0.0)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            starts = torch.randint(len(train) - CONTEXT, (8, 1), generator=generator)
            loss = loss_of(model, train[starts + torch.arange(CONTEXT + 1)])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        windows = val[: len(val) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
        with torch.no_grad():
            lost = sum(loss_of(model.eval(), part, "sum").item() for part in windows.split(256))
        runs.append({"optimizer": name, "lr": lr, "val_loss": lost / (len(windows) * CONTEXT)})
        context.progress(len(runs) / len(plan))
    outcome.figures = [
        against({"runs": runs}, "no warm-up", "AdamW", 1e-2, 1e-2, at_most(1)),
        against({"runs": runs}, "the peer's rate tuned", "AdamW", 1e-2, 3e-3),
    ]


def warm_up(context: Context, outcome: Outcome) -> None:
    """Same seeds, same batches, the same learning rates for all but SGD, which has as many of its own."""
    peers, rounded = ["AdamW", "AdamW+warmup", "RAdam", "SGD"], ["AdaMod-bf16", "AdaMod-int8"]
    names = [*peers, "AdaMod", "AdaMod-paper", "AdaMod-.99", *rounded]
    if (data := located(context.data, SHAKESPEARE)) is None:
        raise MissingError("this needs --data: a folder with text/tinyshakespeare.txt.xz, a text or a hub data set")
    options = ["--optimizers", *names, "--lrs", "1e-3", "3e-3", "1e-2", "--seeds", "3", "--steps", "250"]
    report = example(context, "char_transformer", data, *options)
    best = {row["optimizer"]: row["lr"] for row in report["best"]}
    outcome.figures = [against(report, "no warm-up", "AdamW", 1e-2, 1e-2, at_most(0.9))]
    for peer in peers:
        outcome.figures.append(against(report, "each at its best learning rate", peer, best["AdaMod"], best[peer]))
    outcome.figures += [precision(report, name, 1e-2) for name in rounded]
    lines: dict[str, list[tuple[float, ...]]] = {}
    outcome.table = [["optimizer", "first lr", "second", "third"]]
    for name in names:
        rates = sorted({run["lr"] for run in report["runs"] if run["optimizer"] == name})
        found = {lr: losses(report, name, lr) for lr in rates}
        outcome.table.append([name, *(f"{lr:g}: {shown(found[lr])}" for lr in rates)])
        line = [(lr, statistics.fmean(x), min(x), max(x)) for lr, x in found.items() if math.isfinite(max(x))]
        if name != "SGD" and line:
            lines[name] = list(line)
    outcome.curves = [Curves("learning rate", "validation loss after 250 steps, 3 seeds", lines, log_x=True)]


def translation(context: Context, outcome: Outcome) -> None:
    data = located(context.data, "text/multi30k")
    if data is None or "multi30k" not in data:
        raise MissingError("this needs --data: a folder with text/multi30k, or that data set of the hub")
    names = ["AdamW", "AdamW+warmup", "AdaMod", "AdaMod-bf16", "AdaMod-int8"]
    options = ["--optimizers", *names, "--lrs", "5e-3", "--seeds", "3", "--steps", "400"]
    report = example(context, "multi30k_nmt", data, *options)
    outcome.figures = [precision(report, name, 5e-3) for name in names[-2:]]
    outcome.figures += [against(report, "", peer, 5e-3, 5e-3) for peer in names[:2]]
    outcome.table = [["optimizer", "validation loss", "BLEU"]]
    for name in names:
        bleu = [run["bleu"] for run in report["runs"] if run["optimizer"] == name]
        outcome.table.append([name, shown(losses(report, name, 5e-3)), shown(bleu)])


SHAKESPEARE = "text/tinyshakespeare.txt.xz"


def located(data: str | None, path: str) -> str | None:
    """`path` within a folder of data sets, if it is there; else what the user named, a file or a set of the hub."""
    if data and Path(data).is_dir():
        return str(Path(data, path)) if Path(data, path).exists() else None
    return data


def manual() -> str:
    """The language manual within Python: a text that every machine has."""
    from pydoc_data.topics import topics

    return "".join(topics[key] for key in sorted(topics))


WORKLOADS: tuple[Workload, ...] = (
    Study(
        "the bound in low precision",
        "Gradients drawn from N(0, 1), for which s/eta, the step as a fraction of Adam's, is known. A state rounded to "
        "nearest loses increments below half its last bit: the bound stalls, the step stays small. Mean and range of "
        "three tensors.",
        stall,
    ),
    Study(
        "a Transformer without warm-up",
        "A post-LN character Transformer of 6 layers on the manual within Python, 120 batches of 8 windows at a "
        "constant rate; validation loss. Ratios seed by seed of three, mean and range. The full profile has more "
        "rates, optimizers and steps.",
        warm_up_glance,
        frozenset({"smoke", "quick"}),
    ),
    Study(
        "a Transformer without warm-up",
        "A post-LN character Transformer of 6 layers, 250 steps at constant rates; validation loss. Of three seeds "
        "the mean and the standard deviation; of ratios, seed by seed, the mean and the range.",
        warm_up,
        FULL,
    ),
    Study(
        "translation with rounded states",
        "A small Transformer on Multi30k, German to English, 400 steps; validation loss and test BLEU. Three seeds.",
        translation,
        FULL,
    ),
)
