"""vade-robust under hostile files, rows and parameters."""

from __future__ import annotations

import hashlib
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from fuzz.choices import Choices, spoiled
from fuzz.targets import REFUSALS, Target, need
from safetensors import safe_open
from safetensors.torch import save

from vade_robust import Checkpoint, RobustVaDE, VaDE, metrics, robustness

if TYPE_CHECKING:
    from collections.abc import Callable

OPTIONS: dict[str, Any] = {
    "n_clusters": 2, "n_latent": 2, "hidden": (2,), "pretrain_epochs": 1, "epochs": 1, "batch_size": 8, "start": "gmm",
    "random_state": 0, "n_jobs": 1, "device": "cpu",
}  # fmt: skip
X = np.random.default_rng(0).random((16, 3)).astype(np.float32)


PLAIN = {**OPTIONS, "locality": 0, "assign": "mixture", "mutual_information": 0}  # the other networks are large


@cache
def small() -> RobustVaDE:
    return RobustVaDE(**OPTIONS).fit(X)


@cache
def _saved(kind: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        if kind == "fit":
            RobustVaDE(**PLAIN).fit(X).save(name)
        elif kind == "partial":
            VaDE(**OPTIONS).partial_fit(X).save(name)
        else:
            RobustVaDE(**PLAIN, callbacks=[Checkpoint(name, every=1)]).fit(X)
        return {path.name: path.read_bytes() for path in sorted(Path(name).iterdir())}


def prepare() -> None:
    """What all targets need, before they are timed."""
    small()
    for kind in ("fit", "partial", "checkpoint"):
        _saved(kind)
    robustness.report(small(), X, eps=[0.1], attacks=["gaussian"])


def _exercise(model: RobustVaDE) -> None:
    rows = np.zeros((3, *model.module_.shape), np.float32)
    labels = model.predict(rows)
    need(labels.shape == (3,) and ((labels >= 0) & (labels < model.n_clusters)).all(), f"labels must be some: {labels}")
    p = model.predict_proba(rows)
    need(np.isnan(p).any() or np.allclose(p.sum(1), 1, atol=1e-4), f"memberships must sum to 1: {p}")
    model.transform(rows)
    model.sample(2)
    repr(model)


# Files.


def _config(kind: str) -> Callable[[bytes, Path], None]:
    def run(data: bytes, folder: Path) -> None:
        place = folder / "model"
        place.mkdir()
        (place / "config.json").write_bytes(data)
        (place / "model.safetensors").write_bytes(_saved(kind)["model.safetensors"])
        _loaded(place, RobustVaDE if kind == "fit" else VaDE)

    return run


def _weights(kind: str) -> Callable[[bytes, Path], None]:
    def run(data: bytes, folder: Path) -> None:
        place = folder / "model"
        place.mkdir()
        config = json.loads(_saved(kind)["config.json"])
        config["weights"]["sha256"] = hashlib.sha256(data).hexdigest()
        (place / "config.json").write_text(json.dumps(config))
        (place / "model.safetensors").write_bytes(data)
        _loaded(place, RobustVaDE if kind == "fit" else VaDE)

    return run


def _loaded(place: Path, kind: type[RobustVaDE]) -> None:
    model = kind.load(place, device="cpu")
    model.n_jobs = 1
    _exercise(model)
    model.save(place.with_name("again"))
    kind.load(place.with_name("again"), device="cpu")
    if kind is VaDE:
        model.partial_fit(np.zeros((8, *model.module_.shape), np.float32) + 0.5)


def _resume(data: bytes, folder: Path) -> None:
    path = folder / "pretrain-000001.safetensors"
    path.write_bytes(data)
    model = RobustVaDE(**PLAIN).fit(X, resume=path)
    _exercise(model)


def safetensors_mended(data: bytes) -> bytes:
    """With the length of the header that is there."""
    end = data.find(b"]}}", 8)
    end = end + 3 if end > 0 else data.rfind(b"}") + 1
    return (end - 8).to_bytes(8, "little") + data[8:] if end > 8 else data


# Arrays and arguments.


def _rows(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    shapes = ((12, 3), (12, 3), (16, 3), (3, 3), (9, 2, 2), (12, 1))
    rows = (choices.tensor if choices.chance(2) else choices.array)(shapes)
    before = rows.tobytes() if isinstance(rows, np.ndarray) and not rows.dtype.hasobject else None
    model = RobustVaDE(**PLAIN | {"reconstruction": choices.pick(("auto", "gaussian", "bernoulli"))})
    call = choices.pick(("fit", "partial_fit", "predict", "transform", "score_samples", "reconstruct", "predict_proba"))
    try:
        if call in ("fit", "partial_fit"):
            getattr(model, call)(rows)
            _exercise(model)
            need(len(model.labels_) == len(rows), "there must be a label for each row")
        else:
            answer = getattr(small(), call)(rows)
            need(len(answer) == len(rows), "there must be an answer for each row")
            need(bool(np.isfinite(np.asarray(answer)).all()), f"answers must be finite: {answer}")
    except FloatingPointError as error:
        need(str(error), "a refusal must have words")
    except ValueError:
        need(not hasattr(model, "module_"), "an estimator whose fit failed must be as before")
        raise
    finally:
        need(before is None or rows.tobytes() == before, "rows must not be changed")


def _options(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    kind = choices.pick((RobustVaDE, VaDE))
    options = {name: value for name, value in OPTIONS.items() if name in kind._get_param_names()}
    names = sorted(kind._get_param_names())
    for _ in range(1 + choices.below(3)):
        options[choices.pick(names)] = choices.value(small=True)
    try:
        _exercise(kind(**options).fit(X))
    except FloatingPointError as error:
        need(str(error), "a refusal must have words")


def _metrics(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    true, found = (
        choices.pick((choices.value, lambda: choices.array(((6,),)), lambda: choices.tensor(((6,),))))() for _ in "ab"
    )
    for measure in (metrics.clustering_accuracy, metrics.purity):
        need(0 <= measure(true, found) <= 1, "a share must be from 0 to 1")


@cache
def _report() -> dict[str, Any]:
    return json.loads(json.dumps(robustness.report(small(), X, eps=[0.1], attacks=["gaussian"]).to_dict()))


def _reports(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    report = robustness.RobustnessReport.from_dict(spoiled(choices, _report()))
    repr(report)
    need(json.dumps(report.to_dict()), "a report must be JSON")


def _robustness(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    options: dict[str, Any] = {"eps": [0.1], "attacks": ["gaussian"]}
    options[choices.pick(("eps", "attacks", "steps", "step_size", "random_state", "y"))] = choices.value(small=True)
    rows = choices.pick((X, choices.array(((16, 3),))))
    repr(robustness.report(small(), rows, **options))


def _of(kind: str, name: str) -> Callable[[], list[bytes]]:
    return lambda: [_light(data) for file, data in _saved(kind).items() if file.startswith(name)]


def _light(data: bytes) -> bytes:
    """A file that can be compressed: moments and large weights are zeros."""
    if data.startswith(b"{"):
        return data
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "x")
        path.write_bytes(data)
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
    large = {key for key, x in tensors.items() if x.is_floating_point() and (x.numel() > 4 or "optimizer" in key)}
    large |= {"reservoir.key"}
    return save({key: torch.zeros_like(x) if key in large else x for key, x in tensors.items()}, metadata)


TARGETS = [
    Target("vade-config", _config("fit"), "model", seeds=_of("fit", "config.json")),
    Target("vade-config-partial", _config("partial"), "model", seeds=_of("partial", "config.json")),
    Target("vade-weights", _weights("fit"), "model", mend=safetensors_mended, seeds=_of("fit", "model.safetensors")),
    Target(
        "vade-weights-partial",
        _weights("partial"),
        "model",
        mend=safetensors_mended,
        seeds=_of("partial", "model.safetensors"),
    ),
    Target(
        "vade-resume",
        _resume,
        "pretrain-000001",
        mend=safetensors_mended,
        seeds=_of("checkpoint", "pretrain"),
    ),
    Target("vade-rows", _rows, refusals=(*REFUSALS, NotImplementedError)),
    Target("vade-options", _options),
    Target("vade-metrics", _metrics, refusals=(*REFUSALS, NotImplementedError)),
    Target("vade-report", _reports),
    Target("vade-robustness", _robustness, refusals=(*REFUSALS, FloatingPointError)),
]
