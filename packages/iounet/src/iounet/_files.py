"""Files that are either whole or absent: written aside, then renamed; checkpoints read without pickle's powers."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["read_checkpoint", "read_weights", "write_checkpoint", "write_json", "written_aside"]


@contextmanager
def written_aside(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends without an error; until then the old one stays."""
    target = Path(path)
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike[str], content: Any, *, indent: int | None = 1) -> None:
    """Write JSON; numbers that are not finite are refused, as JSON has none."""
    data = json.dumps(content, indent=indent, allow_nan=False).encode()
    with written_aside(path) as file:
        file.write(data + b"\n")


def write_checkpoint(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Write tensors and plain values in torch's format."""
    with written_aside(path) as file:
        torch.save(content, file)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read tensors and plain values onto the CPU; a file that would need more to be unpickled is refused.

    Raises:
        OSError: there is no such file.
        ValueError: it is truncated, damaged, no checkpoint, or holds objects other than tensors and plain values.
    """
    with open(path, "rb") as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # whatever a parser meets; torch's message advises to read the file as a pickle
            raise ValueError(
                f"{os.fspath(path)} must be a whole checkpoint of tensors and plain values, got one that is "
                "damaged, of another format, or holds other objects"
            ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{os.fspath(path)} must hold a dict, got {type(content).__name__}")
    return content


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict in a ``.safetensors`` file, a state dict or a checkpoint of `fit`; and `fit`'s config, or {}.

    Raises:
        OSError, ValueError: as `read_checkpoint`; ImportError: safetensors is not installed.
    """
    config: Any = {}
    if Path(path).suffix == ".safetensors":
        weights: Any = _read_safetensors(path)
    else:
        weights = read_checkpoint(path)
        if isinstance(weights.get("model"), dict):
            weights, config = weights["model"], weights.get("config", {})
    strange = [name for name, x in weights.items() if not (isinstance(name, str) and isinstance(x, Tensor))]
    if strange or not isinstance(config, dict):
        raise ValueError(f"{os.fspath(path)} must map names to tensors, which {(strange or ['config'])[0]!r} does not")
    return weights, config


def _read_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise ImportError(f"reading {os.fspath(path)} needs safetensors: pip install 'iounet[safetensors]'") from None
    with open(path, "rb"):  # a missing file is an OSError, as elsewhere
        pass
    try:
        weights: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{os.fspath(path)} must be a whole safetensors file, got: {error}") from None
    return weights
