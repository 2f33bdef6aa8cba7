"""paramcorrupt under hostile checkpoints, plans, reports, tensors and arguments."""

from __future__ import annotations

import io
import json
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from fuzz.choices import Choices
from fuzz.of_vade import safetensors_mended
from fuzz.targets import REFUSALS, Target, need
from safetensors.torch import save

import paramcorrupt as pc
from paramcorrupt.cli import main
from paramcorrupt.curve import Curve
from paramcorrupt.vulnerability import Vulnerability

if TYPE_CHECKING:
    from collections.abc import Callable


def tensors() -> dict[str, torch.Tensor]:
    return {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.ones(5, dtype=torch.bfloat16),
        "n": torch.arange(3),
        "e": torch.empty(0, 2),
        "s": torch.tensor(2.0),
    }


GRADS = {"a": torch.linspace(-1, 2, 6).reshape(2, 3), "b": torch.ones(5, dtype=torch.bfloat16)}
_INDEX = {"metadata": {"total_size": 40}, "weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}


def _model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))


def _data() -> list[Any]:
    return [(torch.linspace(-1, 1, 12).reshape(4, 3), torch.tensor([0, 1, 0, 1]))]


@cache
def _files() -> dict[str, bytes]:
    """What the package writes, by what it is."""
    made: dict[str, Any] = {
        "sparse": pc.corruption(GRADS, eps=0.1, n=3),
        "dense": pc.corruption(GRADS, eps=0.1),
        "random": pc.random_corruption(GRADS, eps=0.1, seed=1),
        "faults": pc.bitflip(tensors(), count=4, seed=1),
        "stuck": pc.bitflip(tensors(), count=4, seed=1, fault="stuck"),
    }
    model, data = _model(), _data()
    report = pc.scan(model, "cross_entropy", data, eps=0.1)
    results = {
        "report": report,
        "gate": pc.gate(model, "cross_entropy", data, eps=0.1, max_increase=1),
        "curve": pc.curve(model, "cross_entropy", data, eps=[0.1]),
        "vulnerability": pc.vulnerability_factor(model, data, max_faults=8, half_width=0.4, groups="model", seed=0),
    }
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for key, change in made.items():
            change.save(Path(name, key))
            found[key] = Path(name, key).read_bytes()
    found |= {key: result.to_json().encode() for key, result in results.items()}
    return found


def prepare() -> None:
    """What all targets need, before they are timed."""
    _files()


# Files.


def _left(folder: Path, *names: str) -> None:
    """That nothing half-written is left."""
    found = {path.name for path in folder.iterdir()}
    need(found <= set(names), f"nothing half-written must be left, got {found - set(names)}")


def _checkpoint(suffix: str) -> Callable[[bytes, Path], None]:
    def run(data: bytes, folder: Path) -> None:
        path, other = folder / f"model{suffix}", folder / "other.safetensors"
        path.write_bytes(data)
        other.write_bytes(save(tensors()))
        (folder / "faults").write_bytes(_files()["faults"])
        try:
            found = pc.diff(path, other, progress=False)
            found.to_json()
            str(found)
            pc.apply(path, folder / "faults", folder / "out.safetensors", progress=False)
            pc.diff(path, folder / "out.safetensors", progress=False)
        finally:
            need(path.read_bytes() == data, "a checkpoint must not be changed")
            _left(folder, path.name, other.name, "faults", "out.safetensors")

    return run


def _pickled() -> list[bytes]:
    out = io.BytesIO()
    torch.save({"state_dict": tensors(), "epoch": 1}, out)
    return [out.getvalue()]


def _index(data: bytes, folder: Path) -> None:
    place = folder / "sharded"
    place.mkdir()
    (place / "x-1.safetensors").write_bytes(save({"a": torch.ones(6)}))
    (place / "x-2.safetensors").write_bytes(save({"b": torch.ones(4)}))
    (place / "model.safetensors.index.json").write_bytes(data)
    need(pc.diff(place, place, progress=False).is_empty, "a checkpoint must be as it is")


def _change(data: bytes, folder: Path) -> None:
    path = folder / "change.safetensors"
    path.write_bytes(data)
    weights = tensors()
    try:
        change: Any = pc.Corruption.load(path)
    except ValueError as error:
        need("change.safetensors" in str(error), f"the file must be named: {error}")
        change = pc.Faults.load(path)
    repr(change)
    if isinstance(change, pc.Faults):
        change.rows()
    else:
        need(change.norm() >= 0 or change.norm() != change.norm(), "a norm must not be negative")
    before = {name: x.clone() for name, x in weights.items()}
    try:
        with pc.corrupted(weights, change):
            pass
    except (ValueError, TypeError) as error:
        need(str(error), "a refusal must have words")
    finally:
        need(all(_same(x, before[name]) for name, x in weights.items()), "weights must come back bit for bit")
    change.save(folder / "again")


def _same(x: torch.Tensor, y: torch.Tensor) -> bool:
    return torch.equal(x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8))


def _report(data: bytes, folder: Path) -> None:
    """Reports of every kind; the first byte says as which one it is read."""
    path = folder / "report.json"
    path.write_bytes(data[1:])
    kind: Any = (pc.Report, Curve, Vulnerability, pc.Difference)[data[0] % 4 if data else 0]
    try:
        report = kind.from_json(path)
        str(report)
        json.loads(report.to_json())
        report.to_csv()
        report.to_html()
        if kind is Vulnerability:
            pc.protect(report, budget=0.5).to_json()
        pc.diff(path, path)
    finally:
        _left(folder, "report.json")


def _report_seeds() -> list[bytes]:
    kinds = ("report", "curve", "vulnerability")
    return [bytes([k]) + _files()[kind] for k, kind in enumerate(kinds)]


def _cli(data: bytes, folder: Path) -> None:
    """Commands on a file of any bytes; the first says which."""
    kind = data[0] if data else 0
    name = ("in.safetensors", "in.json", "in.json", "in.safetensors", "in.safetensors", "in.pt")[kind % 6]
    (folder / name).write_bytes(data[1:])
    (folder / "good.safetensors").write_bytes(save(tensors()))
    (folder / "good.json").write_bytes(_files()["report"])
    path, good, out = str(folder / name), str(folder / "good.safetensors"), str(folder / "out.safetensors")
    arguments = [
        ["diff", path, good, "--json", str(folder / "out.json"), "--html", str(folder / "out.html")],
        ["protect", path, "--budget=0.5"],
        ["diff", path, str(folder / "good.json")],
        ["bitflip", path, "--count=1", "--seed=0", "-o", out],
        ["apply", good, path, "-o", out],
        ["diff", path, good],
    ][kind % 6]
    said, told = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(told):
        code = main(arguments)
    need(code in (0, 1, 2), f"the exit code must be 0, 1 or 2, got {code}: {told.getvalue()}")
    need("Traceback" not in told.getvalue(), told.getvalue())
    need(code != 2 or told.getvalue().strip(), "an error must be told")
    _left(folder, name, "good.safetensors", "good.json", "out.safetensors", "out.json", "out.html")


# Tensors and arguments.


def _trees(choices: Choices) -> Any:
    return choices.pick(
        (
            lambda: {"a": choices.tensor(((2, 3), (4,), ())), "b": choices.tensor(((5,),))},
            lambda: [choices.tensor(((2, 3),)), choices.tensor(((5,),))],
            lambda: choices.tensor(((7,),)),
            lambda: choices.value(),
            lambda: GRADS,
        )
    )()


def _bits(tree: Any) -> list[bytes]:
    """The bytes of all tensors in plain memory."""
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else [tree]
    plain = [x for x in values if isinstance(x, torch.Tensor) and x.device.type == "cpu" and x.layout is torch.strided]
    return [bytes(x.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8).tolist()) for x in plain]


def _tensors(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    tree = _trees(choices)
    before = _bits(tree)
    n = choices.pick((1, 3, 0, 7, choices.value()))
    eps = choices.pick((0.1, 0.0, 1e30, pc.relative(0.1), choices.value()))
    p = choices.pick((2, 1, float("inf"), 1.5, choices.value()))
    seed = choices.pick((0, 1, choices.value()))
    calls: list[Any] = [
        lambda: pc.top_n(tree, n),
        lambda: pc.corruption(tree, eps=eps, p=p, n=choices.pick((None, n))),
        lambda: pc.random_corruption(tree, eps=eps, p=p, n=choices.pick((None, n)), seed=seed),
        lambda: pc.bitflip(tree, count=n, seed=seed, bits=choices.pick(("all", "sign", choices.value()))),
        lambda: pc.bitflip(tree, rate=choices.pick((0.1, 1.0, choices.value())), seed=seed),
    ]
    try:
        made = choices.pick(calls)()
        repr(made)
        if isinstance(made, (pc.Corruption, pc.Faults)):
            made.save(folder / "made")
            type(made).load(folder / "made")
            with pc.corrupted(tree, made):
                pass
    finally:
        need(_bits(tree) == before, "tensors must be as before, bit for bit")


def _arguments(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    model, batches = _model(), _data()
    before = _bits(dict(model.named_parameters()))

    def some(**good: Any) -> dict[str, Any]:
        good[choices.pick(list(good))] = choices.value(small=True)
        return good

    loss = "cross_entropy"
    calls: list[Any] = [
        lambda: pc.scan(model, loss, batches, **some(eps=0.1, p=2, n=None, groups="tensor", verify=1, seed=0)),
        lambda: pc.scan(model, choices.value(), choices.pick((batches, choices.value(), [choices.value()])), eps=0.1),
        lambda: pc.indicator(model, loss, batches, **some(eps=0.1, p=2, n=None)),
        lambda: pc.multistep(model, loss, batches, **some(eps=0.1, p=2, n=None, steps=1, step_size=None)),
        lambda: pc.curve(model, loss, batches, **some(eps=[0.1], p=2, n=None, kinds=("gradient",), seed=0)),
        lambda: pc.gate(model, loss, batches, **some(eps=0.1, max_drop=1, max_increase=1, baseline=None, p=2)),
        lambda: pc.Objective(choices.value())(model, batches[0]),
        lambda: pc.scan(choices.value(), loss, batches, eps=0.1),
        lambda: pc.protect(choices.value(), **some(budget=0.5, granularity="bit")),
        lambda: pc.diff(choices.value(), choices.value()),
        lambda: pc.apply(choices.value(), choices.value(), choices.value()),
        lambda: pc.Defense(model, torch.optim.SGD, **some(lr=0.1, eps=0.1, p=2, steps=1)),
        lambda: pc.relative(choices.value()),
    ]  # fmt: skip
    try:
        repr(choices.pick(calls)())
    finally:
        need(_bits(dict(model.named_parameters())) == before, "weights must be as before, bit for bit")


TARGETS = [
    Target(
        "paramcorrupt-safetensors",
        _checkpoint(".safetensors"),
        "",
        mend=safetensors_mended,
        seeds=lambda: [save(tensors(), {"format": "pt"})],
    ),
    Target("paramcorrupt-pickle", _checkpoint(".pt"), "", seeds=_pickled),
    Target("paramcorrupt-index", _index, "", seeds=lambda: [json.dumps(_INDEX).encode()]),
    Target(
        "paramcorrupt-change",
        _change,
        "change.safetensors",
        mend=safetensors_mended,
        seeds=lambda: [_files()[key] for key in ("sparse", "dense", "random", "faults", "stuck")],
    ),
    Target("paramcorrupt-report", _report, "", seeds=_report_seeds),
    Target(
        "paramcorrupt-cli",
        _cli,
        seeds=lambda: [
            b"\x00" + save(tensors()),
            b"\x01" + _files()["vulnerability"],
            b"\x02" + _files()["report"],
            b"\x03" + save(tensors()),
            b"\x04" + _files()["faults"],
            b"\x05" + _pickled()[0],
        ],
    ),
    Target("paramcorrupt-tensors", _tensors, refusals=(*REFUSALS, NotImplementedError)),
    Target("paramcorrupt-arguments", _arguments, refusals=(*REFUSALS, NotImplementedError)),
]
