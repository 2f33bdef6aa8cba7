"""Where the tensors of safetensors files lie, one file or many with an index, read as if an enemy had written them."""

from __future__ import annotations

import json
import math
from ctypes import c_char
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from ._tabular import replacing

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

HEADER_LIMIT = 100_000_000  # bytes: that of the format's own reader
INDEX = ".safetensors.index.json"
# By the format's names of dtypes: the bits of an element, and torch's dtype, an element of which is two of four bits.
_FORMATS = {
    "BOOL": (8, "bool"),
    "U8": (8, "uint8"),
    "I8": (8, "int8"),
    "U16": (16, "uint16"),
    "I16": (16, "int16"),
    "U32": (32, "uint32"),
    "I32": (32, "int32"),
    "U64": (64, "uint64"),
    "I64": (64, "int64"),
    "F4": (4, "float4_e2m1fn_x2"),
    "F6_E2M3": (6, ""),
    "F6_E3M2": (6, ""),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E4M3FNUZ": (8, "float8_e4m3fnuz"),
    "F8_E5M2": (8, "float8_e5m2"),
    "F8_E5M2FNUZ": (8, "float8_e5m2fnuz"),
    "F8_E8M0": (8, "float8_e8m0fnu"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "F32": (32, "float32"),
    "F64": (64, "float64"),
    "C64": (64, "complex64"),
}
_NAMES = {getattr(torch, dtype): name for name, (_, dtype) in _FORMATS.items() if hasattr(torch, dtype)}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of a file, whose bytes are those from `start` to `stop`.

    The shape is that in torch, an element of which holds two floats of four bits.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    path: Path
    start: int
    stop: int

    @property
    def dtype(self) -> torch.dtype:
        """TypeError where torch has none, as of floats of six bits."""
        dtype: torch.dtype | None = getattr(torch, _FORMATS[self.format][1] or "-", None)
        if dtype is None:
            raise TypeError(f"tensor {self.name!r} of {self.path} must have a dtype that torch has, got {self.format}")
        return dtype

    def typed(self, data: bytearray | memoryview) -> Tensor:
        """Whole elements as a tensor of one dimension that shares the memory of `data`."""
        return torch.frombuffer(data, dtype=self.dtype) if len(data) else torch.empty(0, dtype=self.dtype)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of one file or of all shards, in the order of the files and in each in that of its bytes."""

    path: Path
    files: tuple[Path, ...]
    index: Path | None
    tensors: dict[str, Stored]

    @property
    def folder(self) -> Path | None:
        """What holds the files, if the checkpoint is a folder or an index."""
        return self.files[0].parent if self.index or self.path.is_dir() else None

    def stored_in(self, file: Path) -> list[Stored]:
        """The tensors of a file, in the order of their bytes."""
        return [x for x in self.tensors.values() if x.path == file]


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """The layout of a file, of the shards that an index names, or of a folder that holds either.

    Raises:
        FileNotFoundError, ValueError: naming the file and what is wrong with it.
    """
    place = Path(path)
    if place.is_dir():
        found = _in_folder(place)
    elif place.is_file():
        found = place
    else:
        raise FileNotFoundError(f"checkpoint must be a file or a folder that exists, got {place}")
    if not found.name.endswith(".index.json"):
        return Checkpoint(place, (found,), None, _layout(found))
    tensors: dict[str, Stored] = {}
    places = _weight_map(found)
    files = tuple(dict.fromkeys(found.parent / name for name in places.values()))
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{found} names the shard {file.name}, which is missing: fetch it again")
        here = _layout(file)
        expected = {name for name, shard in places.items() if shard == file.name}
        if wrong := sorted(expected ^ here.keys()):
            where = "is not in it" if wrong[0] in expected else "is there without being in the index"
            raise ValueError(f"{found} must name the tensors of {file.name}, but {wrong[0]!r} {where}")
        tensors |= here
    return Checkpoint(place, files, found, tensors)


def _in_folder(folder: Path) -> Path:
    """The index or, without one, the only file; those called model come first."""
    for pattern in (f"model{INDEX}", f"*{INDEX}", "model.safetensors", "*.safetensors"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found[:3])
            raise ValueError(f"{folder} must hold one checkpoint, got {len(found)} ({names}, ...): name one of them")
    raise FileNotFoundError(f"{folder} must hold a checkpoint, got no file *.safetensors there")


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts that the header of a file has besides its tensors.

    Raises:
        OSError, ValueError: as `read_checkpoint`.
    """
    metadata: dict[str, str] = _header(Path(path))[0].get("__metadata__", {})
    return metadata


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """What the header says, and where the bytes of tensors begin."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(HEADER_LIMIT, size - 8):
            raise ValueError(
                f"{path} is not a safetensors file, or truncated: it has {size} bytes and a header of {length}"
            )
        text = file.read(length)
    header = _parse(text, path)
    if not isinstance(header, dict) or not text.startswith(b"{"):
        _refuse(path, "is no object")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(path, "has a __metadata__ that does not map text to text")
    return header, 8 + length


def _layout(path: Path) -> dict[str, Stored]:
    """The tensors of a file in the order of their bytes, which they share out without gap or overlap."""
    header, begin = _header(path)
    found = [_stored(name, entry, path, begin) for name, entry in header.items() if name != "__metadata__"]
    found.sort(key=lambda x: (x.start, x.stop))  # an empty tensor comes before the one that starts where it does
    end = begin
    for tensor in found:
        if tensor.start != end:
            what = "overlap those before them" if tensor.start < end else "leave a gap before them"
            _refuse(path, f"puts the bytes of {tensor.name!r} where they {what}")
        end = tensor.stop
    if end != (size := path.stat().st_size):
        raise ValueError(f"{path} must have {end} bytes by its header, got {size}: it is damaged, fetch it again")
    return {x.name: x for x in found}


def _stored(name: str, entry: Any, path: Path, begin: int) -> Stored:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"must give dtype, shape and data_offsets of {name!r} and nothing else")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _FORMATS:
        _refuse(path, f"gives {name!r} the unknown dtype {str(kind)[:40]!r}")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        _refuse(path, f"gives {name!r} a shape or offsets that are no lists of sizes")
    bits = _FORMATS[kind][0]
    start, stop = offsets
    if 8 * (stop - start) != bits * math.prod(shape) or (bits == 4 and (not shape or shape[-1] % 2)):
        _refuse(path, f"gives {name!r} {stop - start} bytes for the shape {shape} of {kind}")
    if bits == 4:
        shape[-1] //= 2
    return Stored(name, kind, tuple(shape), path, begin + start, begin + stop)


def _counts(values: Any) -> bool:
    """Whether this is a list of natural numbers of at most 64 bits."""
    return isinstance(values, list) and len(values) <= 64 and all(type(x) is int and 0 <= x < 1 << 63 for x in values)


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor names to names of shards beside the index."""
    if index.stat().st_size > HEADER_LIMIT:
        raise ValueError(f"{index} must be an index of at most {HEADER_LIMIT} bytes")
    content = _parse(index.read_bytes(), index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} must have a weight_map of tensors to shards, got none")
    for name, shard in places.items():
        if not isinstance(shard, str) or shard in ("", ".", "..") or Path(shard).name != shard or "\\" in shard:
            raise ValueError(f"{index} must put {name!r} into a file beside it, got {shard!r}")
    return places


def _parse(text: bytes, path: Path) -> Any:
    """JSON without repeated keys and numbers that are not finite."""

    def once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ValueError(f"{key!r} is there twice")
            result[key] = value
        return result

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number")

    try:
        return json.loads(text.decode(), object_pairs_hook=once, parse_constant=constant)
    except ValueError as error:
        _refuse(path, f"is no valid JSON: {error}")
    except RecursionError:
        _refuse(path, "is nested too deeply")


def _refuse(path: Path, reason: str) -> NoReturn:
    kind = "index" if path.name.endswith(".json") else "header"
    raise ValueError(f"{path} cannot be read: its {kind} {reason}")


def write_tensors(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file; nothing half-written is left if that fails. The format's own writer needs NumPy.

    Raises:
        TypeError: a tensor whose dtype the format does not have.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    held = sorted(tensors.items(), key=lambda pair: -pair[1].itemsize)  # so that each begins at a multiple of its size
    end = 0
    for name, x in held:
        if x.dtype not in _NAMES:
            raise TypeError(f"tensor {name!r} must have a dtype that safetensors have, got {x.dtype}")
        begin, end = end, end + x.numel() * x.itemsize
        shape = [*x.shape[:-1], x.shape[-1] * 2] if _NAMES[x.dtype] == "F4" else list(x.shape)
        header[name] = {"dtype": _NAMES[x.dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, x in held:
            host = x.detach().resolve_conj().resolve_neg().cpu().contiguous()
            if size := host.numel() * host.itemsize:
                file.write((c_char * size).from_address(host.data_ptr()))
