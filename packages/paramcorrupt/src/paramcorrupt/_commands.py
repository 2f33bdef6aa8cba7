"""What the commands do: read what is named, call the library, print a table and write reports."""

from __future__ import annotations

import math
import os
import sys
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import models
from ._failures import FAILED
from ._patching import check_output
from ._safetensors import read_checkpoint
from ._table import Shown, table
from ._tabular import is_stream
from .checkpoints import apply, diff
from .corruption import relative

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._tabular import Row, Scalar, Tabular
    from .faults import Faults

_MORE = " (--top 0 shows all)"


def run_scan(options: Any) -> int:
    """Rank the groups."""
    from .scanning import scan

    model, loss, data = _prepared(options)
    report = scan(
        model,
        loss,
        data,
        groups=_groups(options.groups),
        eps=_scan_eps(options),
        p=options.p,
        n=options.n,
        verify=options.verify,
        random=options.random,
        seed=options.seed,
        progress=_progress(options),
    )
    if options.corruption:
        _save_worst(model, loss, data, options)
    _tell(report, options)
    return 0


def _save_worst(model: torch.nn.Module, loss: Any, data: Any, options: Any) -> None:
    """Of all weights together, by a gradient of its own: a scan looks at them group by group."""
    from ._tensors import Named, match
    from .corruption import corruption
    from .objective import as_objective, gradient, undisturbed

    with undisturbed(model):
        _, grads = gradient(model, as_objective(loss), data)
    eps = _scan_eps(options)
    if isinstance(eps, relative):
        eps = eps.of(Named(tuple(grads), tuple(match(tuple(grads), model))), options.p)
    corruption(grads, eps=eps, p=options.p, n=options.n).save(options.corruption)


def _scan_eps(options: Any) -> Any:
    return _eps(options.eps, 0.02 if options.eps_rel is None else options.eps_rel)


def run_curve(options: Any) -> int:
    """Measure every budget."""
    from .curve import curve

    model, loss, data = _prepared(options)
    eps = options.eps if options.eps_rel is None else [relative(r) for r in options.eps_rel]
    found = curve(
        model,
        loss,
        data,
        eps=eps,
        p=options.p,
        n=options.n,
        kinds=options.kinds,
        draws=options.draws,
        seed=options.seed,
        progress=_progress(options),
    )
    _tell(found, options)
    return 0


def run_gate(options: Any) -> int:
    """Pass or fail."""
    from .gating import gate

    model, loss, data = _prepared(options)
    found = gate(
        model,
        loss,
        data,
        eps=_eps(options.eps, options.eps_rel),
        p=options.p,
        n=options.n,
        steps=options.steps,
        groups=None if options.groups is None else _groups(options.groups),
        max_drop=options.max_drop,
        max_increase=options.max_increase,
        baseline=options.baseline,
        verify=options.verify,
        seed=options.seed,
        progress=_progress(options),
    )
    if options.junit:
        found.to_junit(options.junit)
    _tell(found, options)
    return 0 if found.passed else FAILED


def run_vulnerability(options: Any) -> int:
    """Sample faults."""
    from .vulnerability import vulnerability_factor

    model, _, data = _prepared(options)
    found = vulnerability_factor(
        model,
        data,
        **_fault(options),
        groups=_groups(options.groups),
        confidence=options.confidence,
        half_width=options.half_width,
        max_faults=options.max_faults,
        method=options.method,
        progress=_progress(options),
    )
    _tell(found, options)
    return 0


def run_protect(options: Any) -> int:
    """Choose bits."""
    from .vulnerability import Vulnerability, protect

    _check_files(options)
    found = Vulnerability.from_json(options.vulnerability)
    chosen = protect(found, budget=options.budget, target=options.target, granularity=options.granularity)
    _tell(chosen, options)
    return 0


def run_bitflip(options: Any) -> int:
    """Plan faults, and write or measure what they do."""
    if (options.checkpoint is None) == (options.model is None):
        raise ValueError("either CHECKPOINT or --model must be given")
    return _flip_file(options) if options.model is None else _flip_model(options)


def run_apply(options: Any) -> int:
    """Write a checkpoint with a change."""
    _check_place("--output", options.output, folder=True)
    applied = apply(
        options.checkpoint,
        options.change,
        options.output,
        trust=options.trust_pickle,
        progress=_progress(options),
    )
    flips = math.isnan(applied.norm)
    what = _many(applied.changed, "bit" if flips else "weight")
    _say(f"{options.output}: {what} changed{'' if flips else f', by {applied.norm:.6g}'}")
    return 0


def run_diff(options: Any) -> int:
    """Compare two files."""
    _check_files(options)
    found = diff(options.a, options.b, trust=options.trust_pickle, progress=_progress(options))
    _tell(found, options)
    return 0


# --- faults ---------------------------------------------------------------------------------------------------------


def _fault(options: Any) -> dict[str, Any]:
    names = ("fault", "bits", "width", "value", "buffers", "seed")
    return {name: getattr(options, name) for name in names} | {"formats": dict(options.format) or None}


def _flip_file(options: Any) -> int:
    from .faults import bitflip

    if options.data is not None:
        raise ValueError("--data must go with --model, which is what runs on it")
    _check_files(options)
    layout = read_checkpoint(options.checkpoint)
    if options.output:
        check_output(layout, options.output)
    names = [name for name in layout.tensors if _is_wanted(name, options.tensors)]
    if not names:
        raise ValueError(
            f"--tensors must match a tensor of {options.checkpoint}, got {' '.join(options.tensors or [])}"
        )
    plan = bitflip(
        {name: layout.tensors[name] for name in names}, rate=options.rate, count=options.count, **_fault(options)
    )
    changed = None
    if options.output:
        changed = apply(layout.path, plan, options.output, progress=_progress(options)).changed
    _save_plan(plan, options)
    written = (
        f"{options.output}: {_many(changed, 'bit')} changed"
        if changed is not None
        else "nothing written without --output"
    )
    _tell_faults(plan, [written], options)
    return 0


def _flip_model(options: Any) -> int:
    from .faults import bitflip
    from .objective import as_objective, check_data, evaluate, undisturbed
    from .restoring import corrupted

    if options.output:
        raise ValueError("--output must go with CHECKPOINT: name the file of the model's weights instead of --model")
    options.reference = None
    model, loss, data = _prepared(options)
    named = [*model.named_parameters(), *(model.named_buffers() if options.buffers else ())]
    wanted = {name: x for name, x in named if _is_wanted(name, options.tensors)}
    plan = bitflip(wanted, rate=options.rate, count=options.count, **_fault(options))
    check_data(data)
    objective = as_objective(loss)
    with undisturbed(model):
        clean = evaluate(model, objective, data)
        with corrupted(model, plan) as applied:
            faulty = evaluate(model, objective, data)
    _save_plan(plan, options)
    lines = [f"{_many(applied.changed, 'bit')} changed", f"loss {clean.loss:.6g} -> {faulty.loss:.6g}"]
    if clean.accuracy is not None and faulty.accuracy is not None:
        lines.append(f"accuracy {100 * clean.accuracy:.2f} % -> {100 * faulty.accuracy:.2f} %")
    _tell_faults(plan, lines, options)
    return 0


def _is_wanted(name: str, patterns: Sequence[str] | None) -> bool:
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


def _save_plan(plan: Faults, options: Any) -> None:
    if options.plan:
        plan.save(options.plan)


def _tell_faults(plan: Faults, lines: list[str], options: Any) -> None:
    _write(plan, options)
    bits = "" if plan.width == 1 else f" of {plan.width} bits"
    _say(f"{_many(plan.count, 'fault')}{bits} in {_many(len(plan.parts), 'tensor')}, seed {plan.seed}", *lines)
    rows: list[Row] = [
        {"tensor": part.name, "dtype": part.format.name, "bits": part.stop - part.first} for part in plan.parts
    ]
    rows.sort(key=lambda row: -_number(row["bits"]))
    _say(
        "", table(rows, (Shown("tensor", "tensor"), Shown("dtype", "dtype"), Shown("bits", "bits")), options.top, _MORE)
    )


# --- what is given --------------------------------------------------------------------------------------------------


def _prepared(options: Any) -> tuple[torch.nn.Module, Any, Any]:
    """The model, the loss and the data, when every report can be written."""
    _check_files(options)
    reference = options.reference or options.model
    if reference is None or options.data is None:
        raise ValueError(
            f"{'MODEL' if reference is None else '--data'} must be given, such as mine:name for mine.py here"
        )
    if options.reference and options.model:
        raise ValueError("MODEL and --model must not both be given")
    device = _device(options.device)
    model = models.load(reference, options.weights, device, trust=options.trust_pickle)
    data = models.data(
        options.data, batch_size=options.batch_size, limit=options.limit, split=options.split, model=reference
    )
    return model, models.loss(getattr(options, "loss", "auto"), model), data


def _device(text: str) -> torch.device:
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise ValueError(f"--device must be cpu, cuda or the like, got {text!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device must be there, got {text} without a CUDA device")
    return device


def _eps(absolute: float | None, share: float | None) -> Any:
    return relative(0.0 if share is None else share) if absolute is None else absolute


def _groups(given: list[str]) -> Any:
    """A name of groups, patterns, or names with patterns."""
    if len(given) == 1 and given[0] in ("tensor", "module", "model"):
        return given[0]
    if any("=" in text for text in given):
        found: dict[str, list[str]] = {}
        for text in given:
            name, _, pattern = text.rpartition("=")
            found.setdefault(name or pattern, []).append(pattern)
        return found
    return given


def _progress(options: Any) -> bool | None:
    return False if options.quiet else None


def _check_files(options: Any) -> None:
    """Refuse at once what could not be written at the end."""
    for name in ("json", "csv", "html", "junit", "plan", "corruption", "output"):
        path = getattr(options, name, None)
        if path is not None:
            _check_place(f"--{name}", path, folder=name == "output")


def _check_place(option: str, path: str, *, folder: bool = False) -> None:
    target = Path(os.path.realpath(path))
    if is_stream(path):
        return
    if target.is_dir() and not folder:
        raise ValueError(f"{option} must be a file, got the folder {path}: name a file in it")
    if not target.parent.is_dir():
        raise ValueError(f"{option} must be in a folder that exists, got {path}: create it first")
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"{option} must be in a folder that can be written to, got {path}: {error.strerror}"
        ) from error


# --- what is told ---------------------------------------------------------------------------------------------------


def _write(result: Tabular, options: Any) -> None:
    for name in ("json", "csv", "html"):
        if path := getattr(options, name):
            getattr(result, f"to_{name}")(path)


def _tell(result: Tabular, options: Any) -> None:
    """Write the reports, then print what was found."""
    _write(result, options)
    _say(result._text(options.top, _MORE))


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")


def _number(x: Scalar) -> float:
    """A number to sort by: what is none comes last."""
    return float(x) if isinstance(x, int | float) else 0.0
