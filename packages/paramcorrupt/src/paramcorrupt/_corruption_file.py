"""Corruptions as safetensors files; what is read is taken for hostile until every number of it has been checked."""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _forms, _ops
from ._safetensors import write_tensors
from ._tensors import DTYPES, check_eps, check_n, check_p, check_seed, logical

if TYPE_CHECKING:
    from .corruption import Corruption

_SCHEMA = "paramcorrupt/corruption/1"
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}


def write(change: Corruption, path: str | os.PathLike[str]) -> None:
    form = change._form
    tensors: dict[str, Tensor] = {}
    if isinstance(form, _forms.Sparse):
        held: dict[str, Any] = {"kind": "sparse"}
        tensors = {"offsets": form.offsets, "index": form.index, "delta": form.delta}
    elif isinstance(form, _forms.Dense):
        held = {"kind": "dense", "scale": form.scale.hex(), "unit": form.unit.hex(), "power": form.power.hex()}
        for name, x in zip(change._names, form.gradients, strict=True):
            tensors[f"gradient/{name}"] = logical(x)
    else:
        held = {"kind": "random", "seed": form.seed, "scale": form.scale.hex()}
    facts = {
        "schema": _SCHEMA,
        "eps": change.eps.hex(),
        "p": change.p.hex(),
        "n": change.n,
        "nnz": change.nnz,
        "gain": change.gain.hex(),
        "skipped": change.skipped,
        "tensors": [
            {"name": name, "shape": shape, "dtype": str(dtype).removeprefix("torch.")}
            for name, shape, dtype in zip(change._names, change._shapes, change._dtypes, strict=True)
        ],
        "form": held,
    }
    write_tensors(tensors, path, {"paramcorrupt": json.dumps(facts)})


def read(path: str | os.PathLike[str]) -> Corruption:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), "pt") as file:
            metadata = (file.metadata() or {}).get("paramcorrupt", "")
            facts = json.loads(metadata)
            return _checked(facts, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{os.fspath(path)} must be a file that Corruption.save wrote, got: {error}") from None


def _checked(facts: Any, tensors: dict[str, Tensor]) -> Corruption:
    from .corruption import Corruption

    _need(facts["schema"] == _SCHEMA, "another schema")
    rows, held = facts["tensors"], facts["form"]
    names = tuple(_text(row["name"]) for row in rows)
    shapes = tuple(tuple(_count(size) for size in row["shape"]) for row in rows)
    dtypes = tuple(_DTYPES[row["dtype"]] for row in rows)
    k = sum(math.prod(shape) for shape in shapes)
    _need(len(set(names)) == len(names) and 0 < k < 1 << 62, "names or shapes that cannot be")
    p, eps, n = check_p(float.fromhex(facts["p"])), check_eps(float.fromhex(facts["eps"])), check_n(facts["n"], k)
    nnz, gain = _count(facts["nnz"]), float.fromhex(facts["gain"])
    _need(nnz <= n and (gain >= 0 or math.isnan(gain)) and gain != math.inf, "a gain or nnz that cannot be")
    form: _forms.Sparse | _forms.Dense | _forms.Random
    if held["kind"] == "sparse":
        form = _sparse(tensors, shapes, nnz)
    elif held["kind"] == "dense":
        form = _dense(held, tensors, names, shapes)
    else:
        _need(held["kind"] == "random" and not tensors and n == k, "a form that is unknown")
        sizes = tuple(math.prod(shape) for shape in shapes)
        wide = tuple(torch.promote_types(dtype, torch.float32) for dtype in dtypes)
        form = _forms.Random(check_seed(held["seed"]), p, _positive(held["scale"]), sizes, wide, torch.device("cpu"))
    return Corruption(
        eps=eps,
        p=p,
        n=check_n(facts["n"], k),
        k=k,
        nnz=nnz,
        gain=gain,
        skipped=tuple(_text(name) for name in facts["skipped"]),
        _names=names,
        _shapes=shapes,
        _dtypes=dtypes,
        _form=form,
    )


def _sparse(tensors: dict[str, Tensor], shapes: tuple[tuple[int, ...], ...], nnz: int) -> _forms.Sparse:
    _need(tensors.keys() == {"offsets", "index", "delta"}, "other tensors")
    offsets, index, delta = tensors["offsets"], tensors["index"], tensors["delta"]
    _need(offsets.dtype == index.dtype == torch.int64 and delta.dtype == torch.float64, "other dtypes")
    _need(offsets.shape == (len(shapes) + 1,) and index.ndim == 1 and index.shape == delta.shape, "other shapes")
    _need(index.numel() <= nnz, "more elements than it says")
    limits = offsets.tolist()
    _need(limits[0] == 0 and limits[-1] == index.numel() and limits == sorted(limits), "offsets that do not ascend")
    for shape, first, last in zip(shapes, limits[:-1], limits[1:], strict=True):
        part = index[first:last]
        if part.numel():
            _need(part[0] >= 0 and part[-1] < math.prod(shape) and part.diff().gt(0).all(), "places outside a tensor")
    _need(delta.isfinite().all(), "changes that are not finite")
    return _forms.Sparse(offsets, index, delta)


def _dense(
    held: Any, tensors: dict[str, Tensor], names: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]
) -> _forms.Dense:
    _need(tensors.keys() == {f"gradient/{name}" for name in names}, "other tensors")
    gradients = [tensors[f"gradient/{name}"] for name in names]
    for x, shape in zip(gradients, shapes, strict=True):
        _need(x.dtype in DTYPES and tuple(x.shape) == shape, "gradients of another dtype or shape")
    _need(not _ops.grad_stats(gradients)[:, 4].any(), "gradients that are not finite")
    power = float.fromhex(held["power"])
    _need(0 <= power < math.inf, "a power that cannot be")
    return _forms.Dense.of(gradients, _positive(held["scale"]), _positive(held["unit"]), power)


def _need(condition: Any, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


def _text(x: Any) -> str:
    _need(isinstance(x, str), "a name that is no string")
    return str(x)


def _count(x: Any) -> int:
    _need(isinstance(x, int) and not isinstance(x, bool) and x >= 0, "a size that is no number")
    return int(x)


def _positive(x: Any) -> float:
    value = float.fromhex(x)
    _need(0 < value < math.inf, "a scale that cannot be")
    return value
