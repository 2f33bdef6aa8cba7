"""Files: models and checkpoints, whole or not there at all, as safetensors and JSON; and their parsing as hostile."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from . import _data, _initialising, _validation
from ._training import Options, Training

if TYPE_CHECKING:
    from ._data import Source
    from .estimator import RobustVaDE

    Estimator = TypeVar("Estimator", bound=RobustVaDE)

VERSION = 1  # of both formats
DEEPEST = 64  # levels of brackets in a configuration
MODEL = "vade-robust model"
CHECKPOINT = "vade-robust checkpoint"
HEADER = "vade_robust"  # the key of our JSON in a safetensors file's metadata
WEIGHTS, CONFIG = "model.safetensors", "config.json"
LARGEST_CONFIG = 1 << 28  # bytes
PHASES = ("pretrain", "train", "done")
HERE = ("device", "n_jobs", "verbose", "callbacks")  # parameters that are of a machine or a call, not of a model
PROGRESS: dict[str, type] = {
    "phase": str,
    "epoch": int,
    "stopped": bool,
    "streak": int,
    "nonfinite_steps": int,
    "history": list,
}


# Bytes and names of files.


def write(path: Path, content: bytes) -> None:
    """Writes a file that is seen whole or not at all, whenever the process or the machine stops."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        stage(temporary, content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def stage(path: Path, content: bytes) -> None:
    """Writes a file to the disk under a name that nobody looks for; if that fails nothing is left of it."""
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def tidy(folder: Path) -> None:
    """Removes what a process that was killed left unfinished in a folder."""
    for left in folder.glob(".*.tmp"):
        left.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes the names in a folder lasting."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, made if it is not there. Raises OSError naming it if it cannot be."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(f"{folder} is a file, and must be a folder") from None
    return folder


# A state: tensors and what JSON can hold, by names.


def pack(state: Mapping[str, Any], kind: str) -> bytes:
    """The bytes of a safetensors file with the tensors of a state, and its other values as JSON in the metadata."""
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items() if isinstance(v, Tensor)}
    values = {k: v for k, v in state.items() if k not in tensors}
    header = {"kind": kind, "version": VERSION, **_plain(values, kind)}
    content: bytes = safetensors_torch.save(tensors, {HEADER: json.dumps(header, allow_nan=False)})
    return content


def read(path: Path, kind: str) -> dict[str, Any]:
    """The state in a file. Its tensors are views of the file, of sizes that were checked against the file's.

    Raises ValueError naming the file for what is no such file, OSError for what cannot be read.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, and must be a file")
    path.open("rb").close()
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(HEADER)
            if text is None:
                raise ValueError(f"{path} is not a {kind}: its metadata has no {HEADER!r}")
            header = parse(text, path)
            _check_header(header, kind, path)
            return {**header, **{name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
    except (SafetensorError, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(f"{path} is not a {kind}, or is cut short: {error}") from error


def _check_header(header: dict[str, Any], kind: str, path: Path) -> None:
    if header.pop("kind", None) != kind:
        raise ValueError(f"{path} is not a {kind}: 'kind' must be {kind!r}")
    version = field(header, "version", int, path)
    if version != VERSION:
        newer = version > VERSION
        raise ValueError(
            f"{path}: 'version' must be {VERSION}, got {version}"
            + (": a later version of vade-robust wrote it" if newer else "")
        )
    del header["version"]


def parse(text: str | bytes, path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ValueError naming the file, and the key of a NaN or infinity."""
    try:
        if _depth(text) > DEEPEST:  # Python's parser recurses, and crashes where the recursion limit was raised
            raise ValueError(f"brackets are nested more than {DEEPEST} deep")
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has no valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(found).__name__}")
    result: dict[str, Any] = {name: _restored(value, path, name) for name, value in found.items()}
    return result


def _depth(text: str | bytes) -> int:
    """How deep brackets are nested, those inside strings aside."""
    characters = text.decode("utf-8") if isinstance(text, bytes) else text
    depth = deepest = 0
    for bracket in re.findall(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', characters):
        if bracket[0] != '"':
            depth += 1 if bracket in "[{" else -1
            deepest = max(deepest, depth)
    return deepest


def field(values: Mapping[str, Any], name: str, kind: Any, path: Path) -> Any:
    """A value of a type. Raises ValueError naming file and key."""
    value = values.get(name)
    ok = isinstance(value, kind) and not (kind is int and (isinstance(value, bool) or value < 0))
    if name not in values or not ok:
        got = f"got {value!r:.80}" if name in values else "which is missing"
        words = {int: "an integer >= 0", str: "a string", list: "a list", dict: "an object", bool: "true or false"}
        raise ValueError(f"{path}: {name!r} must be {words[kind]}, {got}")
    return value


def _plain(value: Any, name: str) -> Any:
    """What JSON holds without loss: numbers that are not finite become {"float": "nan"}."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return number if math.isfinite(number) else {"float": repr(number)}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, key) for key, item in value.items()}
    raise TypeError(f"{name} cannot be saved: JSON has no {type(value).__name__}, got {value!r:.80}")


def _restored(value: Any, path: Path, name: str) -> Any:
    """The values that `_plain` was given (lists for tuples)."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path}: {name!r} must be finite, got {value}")
    if isinstance(value, list):
        return [_restored(item, path, f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        if value.keys() == {"float"} and value["float"] in ("nan", "inf", "-inf"):
            return float(value["float"])
        return {key: _restored(item, path, f"{name}.{key}") for key, item in value.items()}
    return value


# Checkpoints: the state of a training, and what it belongs to.


def checkpoint(estimator: RobustVaDE) -> dict[str, Any]:
    """All that `resume` needs to go on with the fit of an estimator."""
    training = estimator._training
    preparation = estimator._preparation
    return {
        **training.state(),
        "class": type(estimator).__name__,
        "parameters": _parameters(estimator, _validation.parameters(estimator)),
        "shape": list(training.networks.shape),
        "n_rows": estimator._n_rows,
        "preparation": {"pixel": preparation.pixel, "unit": preparation.unit},
    }


def candidates(path: Path) -> list[Path]:
    """The checkpoints at a path, the latest first: a file is itself, a folder has those of `Checkpoint`."""
    if not path.is_dir():
        return [path]
    found = checkpoints(path)
    if not found:
        raise FileNotFoundError(f"{path} holds no checkpoint")
    return found


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the latest first."""
    found = [(place, file) for file in folder.iterdir() if (place := place_of(file)) is not None]
    return [file for _, file in sorted(found, reverse=True)]


def file_name(phase: str, epoch: int) -> str:
    """What a checkpoint is called."""
    return f"{phase}-{epoch:06d}.safetensors"


def place_of(file: Path) -> tuple[int, int] | None:
    """Phase and epoch of a checkpoint by its name, in their order; None for other files."""
    phase, _, epoch = file.name.removesuffix(".safetensors").partition("-")
    if phase not in PHASES or not (epoch.isascii() and epoch.isdigit()) or file.name != file_name(phase, int(epoch)):
        return None
    return PHASES.index(phase), int(epoch)


def resume(estimator: RobustVaDE, path: str | os.PathLike[str], source: Source, settings: Mapping[str, Any]) -> None:
    """Puts a checkpoint's state into the estimator's training, which is new and has been given the source's rows.

    Raises ValueError naming the parameter or the property of X that is another; naming file and key for what is no
    checkpoint. Of a folder the latest valid one is taken; those passed over are warned of.
    """
    files = candidates(Path(path))
    for i, file in enumerate(files):
        try:
            state = read(file, CHECKPOINT)
            _check_progress(state, file)
        except ValueError as error:
            if i + 1 == len(files):
                raise
            warnings.warn(f"{error}; the checkpoint before it is tried", UserWarning, stacklevel=4)
            continue
        _check_same(estimator, state, source, settings, file)
        try:
            estimator._training.load(state)
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            raise ValueError(f"{file}: {error}") from error
        return


def _check_progress(state: Mapping[str, Any], path: Path) -> None:
    for name, kind in PROGRESS.items():
        field(state, name, kind, path)
    if state["phase"] not in PHASES:
        raise ValueError(f"{path}: 'phase' must be one of {PHASES}, got {state['phase']!r:.80}")
    for logs in state["history"]:
        if not isinstance(logs, dict):
            raise ValueError(f"{path}: 'history' must be a list of objects, got {logs!r:.80} in it")
    generator = state.get("generator")
    own = torch.Generator().get_state()
    if not isinstance(generator, Tensor) or generator.dtype != own.dtype or generator.shape != own.shape:
        raise ValueError(f"{path}: 'generator' must be {own.numel()} bytes, the state of torch's generator")


def _check_same(
    estimator: RobustVaDE, state: Mapping[str, Any], source: Source, settings: Mapping[str, Any], path: Path
) -> None:
    own_class = type(estimator).__name__
    if field(state, "class", str, path) != own_class:
        raise ValueError(f"{path} is of a {state['class']}, and cannot be gone on with by a {own_class}")
    shape, found = field(state, "shape", list, path), list(source.shape)
    if shape != found:
        raise ValueError(f"{path} was made on rows of shape {tuple(shape)}, got X with rows of shape {tuple(found)}")
    rows = field(state, "n_rows", int, path)
    if rows != source.n_rows:
        raise ValueError(f"{path} was made on {rows} rows, got X with {source.n_rows}")
    saved, own = field(state, "parameters", dict, path), _parameters(estimator, settings)
    for name in dict.fromkeys((*own, *saved)):
        before, now = saved.get(name), own.get(name)
        if name == "random_state" and (before is None or now is None):
            continue  # the checkpoint has the generator
        if before != now:
            raise ValueError(f"{path} was made with {name}={before!r:.80}, got {name}={now!r:.80}")
    preparation = field(state, "preparation", dict, path)
    for name in ("pixel", "unit"):
        if preparation.get(name) != getattr(estimator._preparation, name):
            raise ValueError(f"{path} was made on X of another type or range: its {name} is {preparation.get(name)!r}")


def _parameters(estimator: RobustVaDE, given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that a model depends on, as JSON. A module is named by its class, a generator becomes None."""
    values = {}
    for name, value in given.items():
        if name in HERE:
            continue
        if isinstance(value, nn.Module):
            value = {"module": type(value).__name__}
        if name == "random_state" and not isinstance(value, Integral):
            value = None
        values[name] = _plain(value, f"the parameter {name} of {type(estimator).__name__}")
    return values


# Models.


def save(estimator: RobustVaDE, folder: str | os.PathLike[str]) -> None:
    """Writes a fitted estimator to a folder; what was there is replaced at once, or stays."""
    check_is_fitted(estimator)
    tensors, config = _contents(estimator)
    content = pack(tensors, MODEL)
    digest = hashlib.sha256(content).hexdigest()
    config |= {"weights": {"file": WEIGHTS, "sha256": digest}}
    text = json.dumps({"kind": MODEL, "version": VERSION, **config}, indent=1, allow_nan=False).encode()
    place = make_folder(folder)
    # The weights wait under a name that the new configuration alone leads to: the moment in which that gets its name
    # is the one in which the model is replaced.
    staged = _staged(place, digest)
    try:
        stage(staged, content)
        write(place / CONFIG, text)
        staged.replace(place / WEIGHTS)
    except BaseException:
        with suppress(OSError):
            if (place / CONFIG).read_bytes() == text:  # the new model is there already
                staged.replace(place / WEIGHTS)
            else:
                staged.unlink()
        raise
    _sync_folder(place)
    tidy(place)


def _staged(folder: Path, digest: str) -> Path:
    return folder / f".{WEIGHTS}.{digest[:16]}.tmp"


def _contents(estimator: RobustVaDE) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a fitted estimator, and its other values as JSON."""
    from . import __version__

    _validation.parameters(estimator)
    training, reservoir = estimator._training, estimator._reservoir
    state = training.state()
    if reservoir is None:  # moments serve partial_fit alone, and are two thirds of all
        state = {name: value for name, value in state.items() if not name.startswith("optimizer.")}
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    names = getattr(estimator, "feature_names_in_", None)
    config: dict[str, Any] = {
        "package": __version__,
        "class": type(estimator).__name__,
        "parameters": _parameters(estimator, estimator.get_params(deep=False)),
        "options": asdict(training.options),
        "assign": estimator._fitted_assign,
        "shape": list(training.networks.shape),
        "preparation": {"pixel": estimator._preparation.pixel, "unit": estimator._preparation.unit},
        "feature_names_in": None if names is None else list(names),
        "n_iter": estimator.n_iter_,
        "diagnostics": {},
        "reservoir": None,
        **{name: state[name] for name in PROGRESS},
    }
    if hasattr(estimator, "labels_"):
        tensors["labels"] = torch.from_numpy(estimator.labels_)
    for name, value in estimator.diagnostics_.items():
        if isinstance(value, np.ndarray):
            tensors[f"diagnostics.{name}"] = torch.from_numpy(value)
        else:
            config["diagnostics"][name] = value
    if reservoir is not None:
        tensors["reservoir.rows"] = reservoir.kept
        random = reservoir.random.get_state(legacy=False)["state"]
        tensors["reservoir.key"] = torch.from_numpy(random["key"].astype(np.int64))
        config["reservoir"] = {"seen": reservoir.seen, "capacity": reservoir.capacity, "position": int(random["pos"])}
    return tensors, {name: _plain(value, name) for name, value in config.items()}


def load(
    cls: type[Estimator],
    folder: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    encoder: nn.Module | None = None,
) -> Estimator:
    """The estimator that `save` wrote to a folder, on a device."""
    target = _validation.device(device)
    place = Path(folder)
    path = place / CONFIG
    config = _config(place)
    if field(config, "class", str, path) != cls.__name__:
        raise ValueError(f"{path} is of a {config['class']!s:.80}: load it by {config['class']!s:.80}.load")
    options = _options(config, path)
    _check_encoder(options, encoder)
    estimator = _estimator(cls, config, path, encoder)
    estimator.device = device
    weights = _weights_file(config, place)
    tensors = read(weights, MODEL)
    shape = tuple(field(config, "shape", list, path))
    networks = _networks(options, shape, tensors, encoder, path, weights)
    training = Training(networks.to(target), options, 0)
    _check_progress({**tensors, **config}, path)
    for name in PROGRESS:
        setattr(training, name, config[name])
    if training.phase == "pretrain":
        raise ValueError(f"{path}: 'phase' must be of a fitted model, got 'pretrain'")
    ours = {name for name in tensors if name.startswith(("networks.", "optimizer."))} | {"generator"}
    training.load({**{name: tensors[name] for name in ours}, **training_values(training)})
    _set_fitted(estimator, training, config, tensors, path, weights)
    return estimator


def training_values(training: Training) -> dict[str, Any]:
    """What a training's state has besides tensors."""
    return {name: value for name, value in training.state().items() if not isinstance(value, Tensor)}


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, and must be a folder that `save` wrote")
    size = path.stat().st_size
    if size > LARGEST_CONFIG:
        raise ValueError(f"{path} must be of at most {LARGEST_CONFIG} bytes, got {size}")
    config = parse(path.read_bytes(), path)
    _check_header(config, MODEL, path)
    return config


def _weights_file(config: Mapping[str, Any], folder: Path) -> Path:
    """The file with the tensors that a configuration was written with."""
    path = folder / CONFIG
    digest = field(field(config, "weights", dict, path), "sha256", str, path)
    if len(digest) != 64 or not digest.isalnum():
        raise ValueError(f"{path}: 'sha256' must be 64 hexadecimal digits, got {digest!r:.80}")
    weights = _staged(folder, digest)
    if not weights.is_file():
        weights = folder / WEIGHTS
    return weights


def _check_digest(config: Mapping[str, Any], path: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != config["weights"]["sha256"]:
        raise ValueError(f"{path} was changed, or is of another {CONFIG}: its 'sha256' is {digest.hexdigest()}")


def _options(config: Mapping[str, Any], path: Path) -> Options:
    found = field(config, "options", dict, path)
    names = [item.name for item in fields(Options)]
    _check_names(found, names, "options", path)
    for item in fields(Options):
        if item.type == "bool":
            field(found, item.name, bool, path)
    if found["kind"] not in ("bernoulli", "gaussian"):
        raise ValueError(f"{path}: 'kind' in 'options' must be 'bernoulli' or 'gaussian', got {found['kind']!r:.80}")
    if found["encoder"] not in ("mlp", "conv", "module"):
        raise ValueError(
            f"{path}: 'encoder' in 'options' must be 'mlp', 'conv' or 'module', got {found['encoder']!r:.80}"
        )
    from .estimator import RobustVaDE

    scratch = RobustVaDE(assign="mixture" if found["locality"] == 0 else "embedding")
    known = [name for name in names if name != "encoder" and name in scratch.get_params(deep=False)]
    try:
        _validation.parameters(scratch.set_params(**{name: found[name] for name in known}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: in 'options', {error}") from error
    return Options(**{**found, "hidden": tuple(found["hidden"])})


def _estimator(cls: type[Estimator], config: Mapping[str, Any], path: Path, encoder: nn.Module | None) -> Estimator:
    """An estimator with the parameters of a configuration."""
    given = dict(field(config, "parameters", dict, path))
    names = [name for name in cls._get_param_names() if name not in HERE or name in given]
    _check_names(given, names, "parameters", path)
    if isinstance(given.get("hidden"), list):
        given["hidden"] = tuple(given["hidden"])
    if isinstance(given.get("encoder"), dict):
        given["encoder"] = "mlp" if encoder is None else encoder
    try:
        estimator = cls(**given)
        _validation.parameters(estimator)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: in 'parameters', {error}") from error
    return estimator


def _check_names(found: Mapping[str, Any], expected: list[str], where: str, path: Path) -> None:
    for name in dict.fromkeys((*expected, *found)):
        if name not in found:
            raise ValueError(f"{path}: {name!r} is missing in {where!r}")
        if name not in expected:
            raise ValueError(f"{path}: {name!r:.80} in {where!r} is unknown")


def _check_encoder(options: Options, encoder: object) -> None:
    if encoder is not None and not isinstance(encoder, nn.Module):
        raise TypeError(f"encoder must be None or an nn.Module, got {encoder!r:.80}")
    if options.encoder == "module" and encoder is None:
        raise ValueError("the model was made with an encoder of yours: pass such a module as `encoder`, got None")
    if options.encoder != "module" and encoder is not None:
        raise ValueError(f"the model was made with encoder={options.encoder!r}: leave `encoder` out, got a module")


class _Stub(nn.Module):
    """Stands for a user's encoder where only the other tensors' shapes are asked for."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), self.width)


def _networks(
    options: Options,
    shape: tuple[Any, ...],
    tensors: Mapping[str, Any],
    encoder: nn.Module | None,
    path: Path,
    weights: Path,
) -> Any:
    """Networks with the tensors' values. Nothing is allocated before all sizes are known to be those of the file."""
    found = {k.removeprefix("networks."): v for k, v in tensors.items() if k.startswith("networks.")}
    if not shape or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in shape):
        raise ValueError(f"{path}: 'shape' must be a list of positive integers, got {list(shape)!r:.80}")
    if "shift" not in found or found["shift"].shape != (math.prod(shape),):
        raise ValueError(f"{weights}: 'networks.shift' must have the {math.prod(shape)} elements of 'shape' in {path}")
    if len(options.hidden) > len(found):
        raise ValueError(f"{path}: 'hidden' has {len(options.hidden)} layers, and {weights} no such number of tensors")
    module: nn.Module | None = None
    if encoder is not None:
        mean = found.get("mean.weight")
        if mean is None or mean.ndim != 2:
            raise ValueError(f"{weights}: 'networks.mean.weight' must be a matrix")
        module = _Stub(mean.shape[1])
    try:
        with torch.device("meta"):
            sketch = options.networks(shape, 0, module).state_dict()
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: 'options' and 'shape' do not make networks: {error}") from error
    if encoder is not None:
        sketch |= {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    for name in sorted(sketch.keys() ^ found.keys()):
        what = "is missing" if name in sketch else "is unknown"
        raise ValueError(f"{weights}: the tensor {'networks.' + name!r:.80} {what}")
    for name, value in sketch.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"encoder must have tensors alone as its state, got {name}={value!r:.80}")
        _check_tensor(found[name], tuple(value.shape), value.dtype, "networks." + name, weights)
    networks = options.networks(shape, 0, encoder)
    networks.load_state_dict(found)
    return networks.eval()


def _check_tensor(value: Tensor, shape: tuple[int, ...], dtype: torch.dtype, name: str, path: Path) -> None:
    if tuple(value.shape) != shape or value.dtype != dtype:
        raise ValueError(
            f"{path}: the tensor {name!r} must be {dtype} of shape {shape}, got {value.dtype} of {tuple(value.shape)}"
        )


def _set_fitted(
    estimator: RobustVaDE,
    training: Training,
    config: Mapping[str, Any],
    tensors: dict[str, Any],
    path: Path,
    weights: Path,
) -> None:
    """What `fit` leaves in an estimator, from a model's values."""
    networks, options = training.networks, training.options
    _check_known(tensors, weights)
    _check_digest(config, weights)
    preparation = field(config, "preparation", dict, path)
    for name in ("pixel", "unit"):
        if preparation.get(name) not in (1, 255):
            raise ValueError(f"{path}: {name!r} in 'preparation' must be 1 or 255, got {preparation.get(name)!r:.80}")
    limits = (networks.shift, networks.scale, networks.low, networks.high)
    estimator._preparation = _data.Preparation(
        options.kind, float(preparation["pixel"]), float(preparation["unit"]), *(x.cpu().clone() for x in limits)
    )
    assign = field(config, "assign", str, path)
    if assign not in ("mixture", "embedding")[: 1 + (networks.t_encoder is not None)]:
        raise ValueError(f"{path}: 'assign' must be 'mixture' or, with a map, 'embedding', got {assign!r:.80}")
    estimator._fitted_assign = assign
    estimator.n_features_in_ = math.prod(networks.shape)
    names = config.get("feature_names_in")
    if names is not None:
        if len(field(config, "feature_names_in", list, path)) != estimator.n_features_in_:
            raise ValueError(f"{path}: 'feature_names_in' must have {estimator.n_features_in_} names, got {len(names)}")
        estimator.feature_names_in_ = np.array(names, dtype=object)
    estimator._training, estimator.module_ = training, networks
    estimator._reservoir = _reservoir(config, tensors, training, path, weights)
    if "labels" in tensors:
        labels = tensors["labels"]
        if labels.dtype != torch.int32 or labels.ndim != 1 or not ((labels >= 0) & (labels < options.n_clusters)).all():
            raise ValueError(f"{weights}: the tensor 'labels' must be a vector of int32 in [0, {options.n_clusters})")
        estimator.labels_ = labels.numpy().copy()
    diagnostics = dict(field(config, "diagnostics", dict, path))
    for name, value in tensors.items():
        if name.startswith("diagnostics."):
            diagnostics[name.removeprefix("diagnostics.")] = value.numpy().copy()
    estimator._set_parameters()
    estimator.n_iter_ = field(config, "n_iter", int, path)
    estimator.history_ = training.history
    estimator.diagnostics_ = diagnostics


def _check_known(tensors: Mapping[str, Any], path: Path) -> None:
    prefixes = ("networks.", "optimizer.", "diagnostics.")
    known = {"generator", "labels", "reservoir.rows", "reservoir.key"}
    for name in tensors:
        if name not in known and not name.startswith(prefixes):
            raise ValueError(f"{path}: the tensor {name!r:.80} is unknown")


def _reservoir(
    config: Mapping[str, Any], tensors: Mapping[str, Any], training: Training, path: Path, weights: Path
) -> _initialising.Reservoir | None:
    if config.get("reservoir") is None:
        return None
    values = field(config, "reservoir", dict, path)
    seen, capacity, position = (field(values, name, int, path) for name in ("seen", "capacity", "position"))
    for name in ("reservoir.rows", "reservoir.key"):
        if name not in tensors:
            raise ValueError(f"{weights}: the tensor {name!r} is missing")
    rows, key, shape = tensors["reservoir.rows"], tensors["reservoir.key"], training.networks.shape
    _check_tensor(rows, (min(seen, capacity), *shape), torch.float32, "reservoir.rows", weights)
    _check_tensor(key, (624,), torch.int64, "reservoir.key", weights)
    if position > 624:
        raise ValueError(f"{path}: 'position' in 'reservoir' must be at most 624, got {position}")
    device = training.networks.logits.device
    reservoir = _initialising.Reservoir(shape, device, 0, capacity)
    reservoir.kept, reservoir.seen, reservoir.n_rows = rows.clone(), seen, len(rows)
    state = {"bit_generator": "MT19937", "state": {"key": key.numpy().astype(np.uint32), "pos": position}}
    reservoir.random.set_state({**reservoir.random.get_state(legacy=False), **state})
    return reservoir
