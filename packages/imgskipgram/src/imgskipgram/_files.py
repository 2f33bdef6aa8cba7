"""Models on disk, as .npz or .safetensors: plain arrays and a header in JSON; parsed as hostile, never unpickled."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _bankfile, _safetensors
from ._options import Options, check_rates
from ._replacing import beside, replacing
from ._rows import copied
from ._training import Plan
from ._vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from .model import ImageSkipGram

__all__ = ["read", "write", "write_word2vec"]

_FORMAT, _VERSION = "imgskipgram.model", 1
_CALLABLES = ("callbacks", "trim_rule")
_STORED = {"float32": np.float32, "float64": np.float64, "bfloat16": np.uint16}
_LOSSES = ("text", "image", "text_pairs", "image_pairs")


def write(path: str | os.PathLike[str], model: ImageSkipGram) -> None:
    """Write a model, without what only code can say: callbacks and trim_rule."""
    vocabulary = model._known()
    v, u, lockf = model._rows()
    options = model._options.arguments()
    columns = model._options.vector_size
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "options": {name: value for name, value in options.items() if name not in _CALLABLES},
        "words": vocabulary.words,
        "raw": vocabulary.raw,
        "sentences": vocabulary.sentences,
        "losses": [{name: None if math.isnan(loss) else loss for name, loss in row.items()} for row in model.losses_],
        "epochs": model._epochs,
        "plan": None if model._plan is None else asdict(model._plan),
        "notes": model._notes,
        "bank": model._bank is not None,
    }
    arrays: dict[str, Any] = {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "counts": vocabulary.counts,
        "v": v[:, :columns],
        "u": u[:, :columns],
        "lockf": lockf,
    }
    placed = model._placed()
    if model._bank is not None and placed is not None:
        arrays |= {"mu": placed[0], "z": placed[1]}
        arrays |= {f"bank.{name}": array for name, array in _bankfile.arrays_of(model._bank).items()}
        if model._free is not None:
            arrays["free"] = model._free
    with replacing(path) as file:
        if _is_safetensors(path):
            _safetensors.write(file, arrays, {"format": _FORMAT, "version": str(_VERSION)})
        else:
            np.savez(file, **arrays)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state of the model in a file, or a ValueError that says why it is none."""
    with _bankfile.reading(path, "a model"):
        arrays = _safetensors.read(path) if _is_safetensors(path) else _bankfile.unpacked(path)
        return _state(arrays)


def _state(arrays: Mapping[str, Any]) -> dict[str, Any]:
    header = json.loads(arrays["header"].astype(np.uint8).tobytes())
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise ValueError(f"its header does not say {_FORMAT}")
    if header["version"] != _VERSION:
        raise ValueError(f"version {header['version']!r}, this package reads version {_VERSION}")
    options = Options(**header["options"])
    words = _strings(header["words"])
    count, columns = len(words), options.vector_size
    stored = _STORED[options.dtype]
    vocabulary = Vocabulary(
        words, _checked(arrays, "counts", np.uint64, (count,)), int(header["raw"]), int(header["sentences"])
    )
    if len(vocabulary.index) != count:
        raise ValueError("a word is there twice")
    v, u = (_checked(arrays, name, stored, (count, columns)) for name in ("v", "u"))
    state = {
        "_options": options,
        "_vocabulary": vocabulary,
        "_v": copied(v, columns, options.dtype),
        "_u": copied(u, columns, options.dtype),
        "losses_": [{name: _loss(row[name]) for name in _LOSSES} for row in header["losses"]],
        "_epochs": int(header["epochs"]),
        "_plan": None if header["plan"] is None else _plan(header["plan"]),
        "_notes": dict(header["notes"]),
    }
    lockf = arrays["lockf"]
    state["lockf"] = _checked(arrays, "lockf", np.float32, (1,) if lockf.shape == (1,) else (count,))
    if header["bank"]:
        bank = _bankfile.bank_of({name: arrays[f"bank.{name}"] for name in _bankfile.NAMES})
        state["_bank"] = bank
        state["_mu"] = _checked(arrays, "mu", np.float32, (columns,))
        state["_z"] = _checked(arrays, "z", np.float32, (len(bank), columns))
        if "free" in arrays:
            kind = np.float64 if options.dtype == "float64" else np.float32
            state["_free"] = _checked(arrays, "free", kind, (len(bank), columns))
    return state


def write_word2vec(path: str | os.PathLike[str], model: ImageSkipGram, binary: bool) -> None:
    """Write word2vec's form, compressed as the path's suffix says."""
    for word in model._known().words:
        if word.split() != [word]:
            raise ValueError(f"words must be free of white space in word2vec's form, got {word!r}")
    model._rows()
    with beside(path) as name:
        model.wv.save_word2vec_format(name, binary=binary)


def _is_safetensors(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path).endswith(".safetensors")


def _checked(arrays: Mapping[str, Any], name: str, dtype: Any, shape: Sequence[int]) -> NDArray[Any]:
    array: NDArray[Any] = arrays[name]
    if array.dtype != dtype or array.shape != tuple(shape):
        raise ValueError(f"{name} must be {np.dtype(dtype)} {list(shape)}, it is {array.dtype} {list(array.shape)}")
    return array


def _strings(words: Any) -> list[str]:
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise ValueError("words must be a list of strings")
    return words


def _loss(value: Any) -> float | int:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"losses must be numbers, one is {value!r}")
    return value


def _plan(entry: Any) -> Plan:
    plan = Plan(**entry)
    if not 0 <= plan.done < plan.epochs or plan.tokens < 1:
        raise ValueError("its plan has no epoch left")
    check_rates("alpha", plan.alpha, "min_alpha", plan.min_alpha)
    return plan
