"""Where the bits of a number are: the layout of every dtype, also of several numbers packed into a byte."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeAlias

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Bits: TypeAlias = "int | str | Sequence[int | str] | None"

FIELDS = ("sign", "exponent", "mantissa")


@dataclass(frozen=True, slots=True)
class Format:
    """Bit b of element i is bit `i * stride + b` of the memory, counted from the lowest bit of the first byte."""

    name: str
    width: int
    """Bits that an element has."""
    signs: int
    exponents: int
    stride: int = 0
    """Bits from one element to the next."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stride", self.stride or self.width)

    def field(self, name: str) -> range:
        """The positions of "sign", "exponent" or "mantissa", of which some formats have none."""
        top, bottom = self.width - self.signs, self.width - self.signs - self.exponents
        return {"sign": range(top, self.width), "exponent": range(bottom, top), "mantissa": range(bottom)}[name]

    def field_of(self, bit: int) -> str:
        return next(name for name in FIELDS if bit in self.field(name))


def _integer(name: str, width: int, signs: int, stride: int = 0) -> Format:
    return Format(name, width, signs, 0, stride)


_OF_DTYPE = {
    torch.float64: Format("float64", 64, 1, 11),
    torch.float32: Format("float32", 32, 1, 8),
    torch.float16: Format("float16", 16, 1, 5),
    torch.bfloat16: Format("bfloat16", 16, 1, 8),
    torch.float8_e4m3fn: Format("float8_e4m3fn", 8, 1, 4),
    torch.float8_e4m3fnuz: Format("float8_e4m3fnuz", 8, 1, 4),
    torch.float8_e5m2: Format("float8_e5m2", 8, 1, 5),
    torch.float8_e5m2fnuz: Format("float8_e5m2fnuz", 8, 1, 5),
    torch.float8_e8m0fnu: Format("float8_e8m0fnu", 8, 0, 8),
    torch.float4_e2m1fn_x2: Format("float4_e2m1fn", 4, 1, 2),
    torch.int64: _integer("int64", 64, 1),
    torch.int32: _integer("int32", 32, 1),
    torch.int16: _integer("int16", 16, 1),
    torch.int8: _integer("int8", 8, 1),
    torch.uint64: _integer("uint64", 64, 0),
    torch.uint32: _integer("uint32", 32, 0),
    torch.uint16: _integer("uint16", 16, 0),
    torch.uint8: _integer("uint8", 8, 0),
    torch.bool: _integer("bool", 1, 0, 8),  # a byte of more than its lowest bit is no bool
}
_PACKED = [_integer("int4", 4, 1), _integer("uint4", 4, 0), _integer("int2", 2, 1), _integer("uint2", 2, 0)]
FORMATS = {layout.name: layout for layout in (*_OF_DTYPE.values(), *_PACKED)}


def layout(name: str, dtype: torch.dtype, formats: Mapping[str, str] | None = None) -> Format:
    """The format of a tensor: that of its dtype, or the one that the first matching pattern of `formats` names.

    Raises:
        TypeError: a dtype without a known layout.
        ValueError: a format that is not known, or does not fit into the tensor's elements.
    """
    if dtype not in _OF_DTYPE:
        raise TypeError(f"tensor {name!r} must have a dtype whose bits have a known layout, got {dtype}")
    wanted = next((value for pattern, value in (formats or {}).items() if fnmatchcase(name, pattern)), None)
    if wanted is None:
        return _OF_DTYPE[dtype]
    if wanted not in FORMATS:
        raise ValueError(f"formats must be among {', '.join(FORMATS)}, got {wanted!r} for tensor {name!r}")
    if FORMATS[wanted].stride > 8 * dtype.itemsize:
        raise ValueError(f"formats must fit into {dtype}, the dtype of tensor {name!r}, got {wanted!r}")
    return FORMATS[wanted]


def check_bits(bits: Bits) -> None:
    """Raises for what can be no choice of bits, whatever the dtype is."""
    for item in _listed(bits):
        if isinstance(item, bool) or not isinstance(item, int | str):
            raise TypeError(f"bits must be positions or among {', '.join(FIELDS)}, got {item!r}")
        if isinstance(item, str) and item not in FIELDS:
            raise ValueError(f"bits must be positions or among {', '.join(FIELDS)}, got {item!r}")
    if bits is not None and not _listed(bits):
        raise ValueError("bits must have at least one position, got none")


def positions(name: str, of: Format, bits: Bits) -> list[int]:
    """The chosen positions in an element of a tensor, from the lowest; none where the format lacks the field.

    Raises:
        ValueError: a position that the format does not have.
    """
    if bits is None:
        return list(range(of.width))
    chosen: set[int] = set()
    for item in _listed(bits):
        if isinstance(item, str):
            chosen.update(of.field(item))
        elif 0 <= item < of.width:
            chosen.add(item)
        else:
            raise ValueError(f"bits must be in [0, {of.width - 1}] for {of.name}, as tensor {name!r} is, got {item}")
    return sorted(chosen)


def _listed(bits: Bits) -> list[int | str]:
    if bits is None:
        return []
    return [bits] if isinstance(bits, str) or not isinstance(bits, Iterable) else list(bits)
