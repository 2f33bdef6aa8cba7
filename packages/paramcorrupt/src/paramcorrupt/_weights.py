"""State dicts in files: safetensors, and pickles from which only weights are read; and how they fit a model."""

from __future__ import annotations

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ._safetensors import read_checkpoint

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

PICKLES = (".pt", ".pth", ".th", ".bin", ".ckpt")
_KEYS = ("state_dict", "model_state_dict", "model")  # of checkpoints that hold more than weights
_WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile


def is_pickle(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one of torch.save, by its name."""
    return Path(path).suffix.lower() in PICKLES


def read_weights(path: str | os.PathLike[str], *, trust: bool = False) -> dict[str, Tensor]:
    """The tensors of a file, a folder or an index, by name.

    Args:
        path: safetensors, one file or shards; or a .pt, .pth, .th, .bin or .ckpt of `torch.save`, of which the entry
            `state_dict` is taken if it has one.
        trust: run the code that a pickle asks for; without, such a file is refused.

    Raises:
        OSError, ValueError: naming the file.
    """
    if is_pickle(path) and not Path(path).is_dir():
        return _unpickle(Path(path), trust)
    from safetensors import safe_open

    checkpoint = read_checkpoint(path)
    weights: dict[str, Tensor] = {}
    for file in checkpoint.files:
        with safe_open(file, "pt") as opened:
            weights.update((x.name, opened.get_tensor(x.name)) for x in checkpoint.stored_in(file))
    return weights


def unwrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without the prefix that data parallelism or compilation gave to all of them."""
    result = dict(weights)
    while prefix := next((x for x in _WRAPPERS if result and all(name.startswith(x) for name in result)), ""):
        result = {name.removeprefix(prefix): x for name, x in result.items()}
    return result


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into a model, if need be without the prefix that they have in common.

    Raises:
        ValueError: names or shapes differ; the first of them are named, and the model is as it was.
    """
    state = model.state_dict()
    stems = {name.partition(".")[0] for name in weights}
    candidates = [dict(weights), unwrapped(weights)]
    if len(stems) == 1 and all("." in name for name in weights):
        candidates.append({name.partition(".")[2]: x for name, x in weights.items()})
    found = min(candidates, key=lambda names: len(_misfits(state, names)))  # of equals the first
    if wrong := _misfits(state, found):
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        if found.keys() - state.keys():
            more += "; a file that holds more than its weights is to be loaded in the model's own module:callable"
        raise ValueError(f"{source} does not fit the model: {'; '.join(wrong[:3])}{more}")
    model.load_state_dict(found, strict=False)


def _misfits(state: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """What is missing, without a place, or of another shape."""
    given = {x.data_ptr() for name, x in state.items() if name in weights}
    wrong = [
        f"{name!r} has the shape {tuple(weights[name].shape)} instead of {tuple(x.shape)}"
        if name in weights
        else f"{name!r} is missing"
        for name, x in state.items()
        if (name in weights and weights[name].shape != x.shape)
        # Old checkpoints do not count batches, and a tied tensor is stored under one of its names.
        or (name not in weights and not name.endswith("num_batches_tracked") and x.data_ptr() not in given)
    ]
    return wrong + [f"{name!r} has no place in it" for name in weights if name not in state]


def _unpickle(path: Path, trust: bool) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"weights must be a file that exists, got {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=not trust)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found and not _is_broken(found[1]):
            raise ValueError(
                f"{path} needs the code of {found[1]} to be loaded, which may do anything: if you trust its source,"
                " pass trust=True (--trust-pickle)"
            ) from None
        raise ValueError(f"{path} is damaged, or not a file of torch.save") from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, ImportError) as error:
        raise ValueError(f"{path} is damaged, or not a file of torch.save: {_first_line(error)}") from error
    if isinstance(content, nn.Module):
        content = content.state_dict()
    for key in _KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} must hold a state dict, got {type(content).__name__}")
    for name, x in content.items():
        if not isinstance(name, str) or not isinstance(x, Tensor):
            raise ValueError(f"{path} must hold tensors by name, got {type(x).__name__} under {name!r}")
    return dict(content)


def _is_broken(name: str) -> bool:
    """Whether this is no name that torch has, as in a file that was cut off."""
    first, *rest = name.split(".")
    found: Any = torch
    for part in rest:
        found = getattr(found, part, None)
    return first == "torch" and found is None


def _first_line(error: Any) -> str:
    return str(error).strip().partition("\n")[0]
