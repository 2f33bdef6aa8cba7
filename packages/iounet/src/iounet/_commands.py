"""What the commands of `iounet.cli` do with their arguments."""

from __future__ import annotations

import os
import random
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from . import training
from ._files import write_json, written_aside
from ._inference import (
    ROWS,
    Images,
    Relabelled,
    above,
    batches,
    candidates,
    compare,
    has_iou_net,
    inference,
    of_images,
    on,
    path_of,
    rescorer,
    to_results,
)
from ._models import MODELS, Recipe, create, restore
from .data import open_dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from .coco import Report
    from .data import DetectionDataset

__all__ = ["run_bench", "run_eval", "run_refine", "run_train", "run_viz"]


@contextmanager
def _bar(total: int, unit: str, quiet: bool) -> Iterator[Callable[[int], object]]:
    """A bar on stderr, unless it is not wanted."""
    if quiet:
        yield lambda _: None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError("the progress bar needs tqdm: pip install 'iounet[detection]', or --quiet") from None
    with tqdm(total=total, unit=unit, file=sys.stderr) as bar:
        yield bar.update


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def _model_name(options: Any) -> None:
    if options.model is not None and options.model not in MODELS:
        raise ValueError(f"--model must be one of {', '.join(MODELS)}, got {options.model!r}")


# ---- train


def run_train(options: Any) -> None:
    """Build the model, train it, write what was asked for."""
    _model_name(options)
    dataset = open_dataset(options.data, options.split)
    if options.model.startswith(("mask", "keypoint")):
        raise ValueError(
            f"--model must be one that boxes are enough for, got {options.model}: train it by iounet.training.fit on a "
            "data set of yours with masks or keypoints"
        )
    torch.manual_seed(options.seed)
    recipe = Recipe(
        options.model,
        tuple(dataset.classes),
        options.iou_net,
        options.iou_loss,
        options.min_size,
        options.max_size,
        options.image_mean and tuple(options.image_mean),
        options.image_std and tuple(options.image_std),
    )
    head: dict[str, Any] = {"loss_weight": options.loss_weight, "samples_per_image": options.samples}
    model, recipe, left = create(recipe, options.weights, **(head if options.iou_net != "none" else {}))
    first = not distributed.is_torchelastic_launched() or os.environ["RANK"] == "0"
    if left and first:
        sys.stderr.write(f"iounet: {len(left)} tensors of the model start at random, {left[0]} among them\n")
    began = time.perf_counter()
    history = training.fit(
        model,
        Relabelled(dataset, recipe.classes),
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        optimizer=options.optimizer,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        warmup=options.warmup,
        schedule=options.schedule,
        milestones=tuple(options.milestones or _milestones(options.epochs)),
        clip=options.clip or None,
        flip=options.flip,
        vertical_flip=options.vertical_flip,
        scale=(options.zoom[0], options.zoom[1]),
        precision=options.precision,
        seed=options.seed,
        out=options.out,
        resume=options.resume,
        save_every=options.save_every,
        config=recipe.to_config(),
        device=options.device,
        workers=options.workers,
        progress=not options.quiet,
    )
    if first:
        path = Path(options.out) / "model.pth"
        if options.json:
            report = {"model": str(path), "seconds": time.perf_counter() - began, "history": history}
            write_json(options.json, {"arguments": _arguments(options), **report})
        _tell(f"{path}: {recipe.model}, {history[-1]['epoch']} epochs, loss {history[-1]['loss']:.4f}")


def _milestones(epochs: int) -> list[int]:
    """Two thirds and eleven twelfths, as 8 and 11 of 12."""
    return sorted({epoch for epoch in (round(epochs * 2 / 3), round(epochs * 11 / 12)) if 0 < epoch < epochs})


def _arguments(options: Any) -> dict[str, Any]:
    """As they were given, for a report."""
    ours = {"files", "run"}  # not of the command line
    return {name: str(x) if name == "device" else x for name, x in vars(options).items() if name not in ours}


# ---- eval


def run_eval(options: Any) -> None:
    """Evaluate every row on the same images; the table and the JSON."""
    from . import coco

    _model_name(options)
    dataset = open_dataset(options.data, options.split)
    model, recipe = restore(options.weights, options.model, dataset.classes)
    rows = _rows(options.rows, model)
    Relabelled(dataset, recipe.classes)  # refuses a model that does not know the classes
    indices = range(min(len(dataset), options.limit or len(dataset)))
    results: dict[str, list[dict[str, Any]]] = {row: [] for row in rows}
    seconds: dict[str, list[float]] = {row: [] for row in rows}
    torch.manual_seed(options.seed)
    model.to(options.device).eval()
    chosen = {row: ROWS[row] for row in rows}
    with _bar(len(indices), "image", options.quiet) as advance:
        for samples in batches(dataset, indices, options.batch_size, options.workers):
            found, times = compare(model, [image.to(options.device) for image, _ in samples], chosen)
            ids = [target["image_id"] for _, target in samples]
            for row in rows:
                results[row] += to_results(dataset, recipe.classes, ids, [above(one, 0) for one in found[row]])
                seconds[row] += [times[row]] * len(ids)
            advance(len(ids))
    truth = of_images(dataset.annotations(), [dataset.image_ids[k] for k in indices])
    reports = {
        row: coco.evaluate(truth, results[row], backend=options.backend, latency={"all": seconds[row]}) for row in rows
    }
    if options.results:
        Path(options.results).mkdir(parents=True, exist_ok=True)
        for row in rows:
            write_json(Path(options.results) / f"{row}.json", results[row], indent=None)
    if options.json:
        content = {row: report.to_dict() for row, report in reports.items()}
        write_json(options.json, {"arguments": _arguments(options), "model": recipe.to_config(), "rows": content})
    _tell(_comparison(reports))


def _rows(wanted: Sequence[str] | None, model: nn.Module) -> list[str]:
    possible = list(ROWS) if has_iou_net(model) else ["nms"]
    for row in wanted or []:
        if row not in possible:
            raise ValueError(f"--rows must be among {', '.join(possible)} for this model, got {row!r}")
    return list(dict.fromkeys(wanted or possible))


def _comparison(reports: dict[str, Report]) -> str:
    """A line for each row: precisions in percent, correlations with the true IoU, milliseconds per image."""
    names = ["ap", "ap50", "ap60", "ap70", "ap75", "ap80", "ap90", "ar"]
    table = [["", *(name.upper() for name in names), "r score", "r IoU", "ms"]]
    for row, report in reports.items():
        percents = [_or_dash(100 * getattr(report, name), 1) for name in names]
        pearsons = [_or_dash(x, 3) for x in (report.pearson_score, report.pearson_iou)]
        table.append([row, *percents, *pearsons, _or_dash(report.latency["all"].median, 1)])
    one = next(iter(reports.values()))
    return f"{one.images} images, {one.boxes} boxes ({one.backend})\n{_columns(table)}"


def _or_dash(value: float, digits: int) -> str:
    return "-" if value != value else f"{value:.{digits}f}"


# ---- refine


def _changes(options: Any) -> dict[str, Any]:
    """The options of inference that the command line has."""
    rule = {name: getattr(options, name) for name in ("step", "steps", "scale", "on_degrade", "starts")}
    changes = {"nms": options.nms, "key": options.key, "score": options.score, "refine_top": options.top}
    threshold = {} if options.iou_threshold is None else {"iou_threshold": options.iou_threshold}
    return {**changes, **threshold, "refine": options.top > 0, "refine_options": rule}


def _source(options: Any) -> DetectionDataset | None:
    """The data set, or None where images are given; one of them must be."""
    if bool(options.images) == bool(options.data):
        raise ValueError("either images or --data must be given")
    return open_dataset(options.data, options.split) if options.data else None


def _restored(options: Any, dataset: DetectionDataset | None) -> tuple[nn.Module, Recipe]:
    """The model, which must have an IoU head and know the classes of the data."""
    _model_name(options)
    model, recipe = restore(options.weights, options.model, None if dataset is None else dataset.classes)
    if not has_iou_net(model):
        raise ValueError(f"--weights must be of a model with an IoU-Net, which {options.weights} is not")
    if dataset is not None:
        Relabelled(dataset, recipe.classes)
    return model.to(options.device).eval(), recipe


def run_refine(options: Any) -> None:
    """Refine the detections of a file, or those that the model finds."""
    dataset = _source(options)
    model, recipe = _restored(options, dataset)
    source: Any = Images(options.images) if dataset is None else dataset
    indices: Sequence[int] = range(len(source))
    net: Any = model
    given: dict[int, dict[str, Tensor]] = {}
    if options.detections:
        if dataset is None:
            raise ValueError("--detections must go with --data, which has their images")
        net = rescorer(model)
        given = candidates(options.detections, dataset, recipe.classes)
        indices = [k for k in indices if dataset.image_ids[k] in given]
    results: list[dict[str, Any]] = []
    torch.manual_seed(options.seed)
    with (
        _bar(len(indices), "image", options.quiet) as advance,
        torch.no_grad(),
        inference(net, **_changes(options)),
    ):
        for samples in batches(source, indices, options.batch_size, options.workers):
            images = [image.to(options.device) for image, _ in samples]
            ids = [target["image_id"] for _, target in samples]
            found = net.rescore(images, [on(given[key], options.device) for key in ids]) if given else net(images)
            found = [above(one, options.min_score) for one in found]
            if dataset is None:
                results += source.to_results(recipe.classes, ids, found)
            else:
                results += to_results(dataset, recipe.classes, ids, found)
            advance(len(ids))
    write_json(options.out, results, indent=None)
    if options.json:
        counts = {"images": len(indices), "detections": len(results)}
        write_json(options.json, {"arguments": _arguments(options), "model": recipe.to_config(), **counts})
    _tell(f"{options.out}: {len(results)} detections in {len(indices)} images")


# ---- viz


def run_viz(options: Any) -> None:
    """Overlays of each image, a sheet of all, and plots where the truth is known."""
    from . import viz

    dataset = _source(options)
    model, recipe = _restored(options, dataset)
    if options.top < 1:
        raise ValueError("--top must be at least 1, got 0: there would be nothing to see")
    if dataset is not None and options.plots and find_spec("matplotlib") is None:
        raise ImportError("plots need matplotlib: pip install 'iounet[plot]', or --no-plots")
    source: Any = Images(options.images) if dataset is None else Relabelled(dataset, recipe.classes)
    indices = list(range(len(source)))
    if dataset is not None:
        indices = sorted(random.Random(options.seed).sample(indices, min(options.count, len(indices))))
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = _steps(_changes(options))
    pictures: list[Any] = []
    paths: list[dict[str, Tensor]] = []
    results: list[dict[str, Any]] = []
    torch.manual_seed(options.seed)
    with _bar(len(indices), "image", options.quiet) as advance:
        for samples in batches(source, indices, 1, 0):
            image, target = samples[0]
            found, _ = compare(model, [image.to(options.device)], rows)
            kept = {row: above(one[0], options.min_score) for row, one in found.items()}
            truth = target if "boxes" in target else None
            pictures.append(viz.overlay(image, kept["0"], kept[f"{options.steps}"], truth))
            with written_aside(out / f"{target['image_id']}.png") as file:
                pictures[-1].save(file, format="PNG")
            if dataset is not None:
                paths.append(path_of(list(kept.values()), target))
                last = above(found[f"{options.steps}"][0], 0)
                results += to_results(dataset, recipe.classes, [target["image_id"]], [last])
            advance(1)
    with written_aside(out / "sheet.png") as file:
        viz.sheet(pictures).save(file, format="PNG")
    if dataset is not None and options.plots:
        _plot(out, of_images(dataset.annotations(), [dataset.image_ids[k] for k in indices]), results, paths)
    if options.json:
        files = sorted(path.name for path in out.iterdir())
        write_json(options.json, {"arguments": _arguments(options), "model": recipe.to_config(), "files": files})
    _tell(f"{out}: {len(pictures)} images")


def _steps(changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The same options without refinement, and after each of its steps."""
    rule = changes["refine_options"]
    rows = {
        f"{steps}": {**changes, "refine_options": {**rule, "steps": steps}} for steps in range(1, rule["steps"] + 1)
    }
    return {"0": {**changes, "refine": False}, **rows}


def _plot(out: Path, truth: dict[str, Any], results: list[dict[str, Any]], paths: list[dict[str, Tensor]]) -> None:
    """How confidences and the true IoU belong together, and what each step of the refinement changes."""
    from . import coco, viz

    figures = {}
    report = coco.evaluate(truth, results)
    if report.pearson_n:
        figures["reliability"] = viz.reliability(report)
        figures["scatter"] = viz.iou_scatter(coco.match(truth, results))
    curves = {name: torch.cat([path[name] for path in paths], 1) for name in paths[0]}
    if next(iter(curves.values())).shape[1]:
        figures["steps"] = viz.iou_per_iteration(curves)
    for name, figure in figures.items():
        with written_aside(out / f"{name}.svg") as file:
            figure.savefig(file, format="svg")


# ---- bench


def run_bench(options: Any) -> None:
    """Time the stages."""
    from ._stages import STAGES, time_stages

    with _bar(STAGES * (options.repeat + 1), "run", options.quiet) as advance:
        timings = time_stages(
            options.device, repeat=options.repeat, size=options.size, seed=options.seed, advance=advance
        )
    if options.json:
        write_json(options.json, {"arguments": _arguments(options), "stages": [asdict(one) for one in timings]})
    rows = [["milliseconds", "iounet", "torchvision", "ratio", "its name"]]
    for one in timings:
        peer = ["", "", ""] if one.peer_ms is None else [f"{one.peer_ms:.2f}", f"{one.ratio:.1f}x", f"{one.peer}"]
        rows.append([one.stage, f"{one.ms:.2f}", *peer])
    _tell(_columns(rows))
