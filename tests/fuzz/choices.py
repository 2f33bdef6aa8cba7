"""Bytes as choices: arguments, arrays and tensors of every kind that a caller may come with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from random import Random

TEXTS = (
    "",
    " ",
    "a",
    "中国人民",
    "他说：好。",
    "\ud800",
    "a\udfffb",
    "\x00",
    "\u3000\n\r\t\x85\u2028",
    "𠮷野家👩‍👩‍👧‍👦",
    "http://例.中国/?q=1 a@b.cn 3.14％",
    "e\u0301" * 20,
    "\ufeff中",
    "的" * 300,
    "ＡＢＣ１２３",
    "%s{}\\",
)


SHAPES = ((), (0,), (1,), (3,), (0, 4), (4, 0), (2, 3), (2, 3, 4))
DTYPES = (
    "f4", "f8", "f8", "i8", "u1", "f2", "?", "i4", "c16", "O", "U3", "S2", ">f4", "M8[s]", "m8[s]", "V4", "i2", "g",
)  # fmt: skip


class Choices:
    """Reads choices from bytes; where they end the first choice is taken, so that any bytes will do."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def below(self, n: int) -> int:
        """A number from 0 to n - 1."""
        size = 1 if n <= 256 else 4
        part = self.data[self.at : self.at + size]
        self.at += size
        return int.from_bytes(part, "little") % n

    def pick(self, options: Any) -> Any:
        return options[self.below(len(options))]

    def chance(self, one_in: int) -> bool:
        return self.below(one_in) == 1

    def text(self) -> str:
        """Texts with all that is difficult in them."""
        pieces = [self.pick(TEXTS) for _ in range(1 + self.below(4))]
        if self.chance(4):
            pieces.append(self.data[self.at : self.at + 16].decode("utf-8", "surrogateescape"))
            self.at += 16
        return "".join(pieces)

    def value(self, *, small: bool = False, tensors: bool = True) -> Any:
        """Anything.

        Args:
            small: no number that asks for much work, and was perhaps meant.
            tensors: those of torch too.
        """
        numbers = [0, 1, -1, 2, True, False, 0.0, -0.0, 0.5, 1.0, math.nan, 1e-45, np.float32(0.5), np.int64(1)]
        big = [math.inf, -math.inf, 1 << 31, 1 << 63, -(1 << 63), 1 << 200, 1e308, np.uint64((1 << 64) - 1)]
        others = [
            None, "", "a", "auto", "\ud800", b"", b"a", [], [1], [[]], [0.5, "a"], (), (0.9, 0.999), (math.nan, 2), {},
            {"a": 1}, {1, 2}, object(), int, len, 1j, Path("a"), range(3), torch.float16, iter([1]), slice(None), ...,
        ]  # fmt: skip
        arrays = [np.array(1.0), np.zeros(0), np.array(["a"]), np.array([None]), np.ones(3)]
        of_torch = [torch.tensor(0.5), torch.tensor([1, 2]), torch.empty(2, device="meta")] if tensors else []
        return self.pick([*numbers, *([] if small else big), *others, *arrays, *of_torch])

    def array(self, shapes: Any = ((),), dtypes: Any = None) -> Any:
        """A NumPy array of a shape, often of another one, with any type, strides and values."""
        shape = tuple(self.pick(shapes)) if not self.chance(3) else self.pick(SHAPES)
        dtype = self.pick(dtypes or DTYPES)
        numbers = self._numbers(math.prod(shape)).reshape(shape)
        if dtype == "O":
            values = numbers.astype(object)
            if values.size and self.chance(2):
                values.flat[0] = self.value(small=True)
        elif dtype == "V4":
            values = np.zeros(shape, "V4")
        else:
            with np.errstate(all="ignore"):
                finite = dtype not in ("f2", "f4", "f8", "c16", ">f4", "g")
                values = (np.nan_to_num(numbers, posinf=9, neginf=-9) if finite else numbers).astype(dtype)
        layout = self.below(8)
        if layout == 1:
            values = values[::-1] if values.ndim else values
        elif layout == 2 and values.ndim:
            values = np.repeat(values, 2, -1)[..., ::2]
        elif layout == 3:
            values = np.asfortranarray(values)
        elif layout == 4 and values.ndim and len(values) and dtype != "O":
            values = np.broadcast_to(values[:1], values.shape)
        elif layout == 5 and dtype != "O" and values.size:
            raw = np.empty(values.nbytes + 1, np.uint8)[1:]
            raw[:] = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
            values = raw.view(values.dtype).reshape(values.shape)
        elif layout == 6:
            values = values.copy()
            values.flags.writeable = False
        elif layout == 7:
            values = values.tolist()
        return values

    def tensor(self, shapes: Any = ((),), dtypes: Any = None) -> Any:
        """A tensor of a shape, often of another one, with any type, strides and values; seldom something else."""
        if self.chance(16):
            return self.value(small=True)
        shape = tuple(self.pick(shapes)) if not self.chance(4) else self.pick(SHAPES)
        names = dtypes or (
            "float32", "float64", "float16", "bfloat16", "int64", "bool", "complex64", "uint8", "int8", "float8_e4m3fn",
            "int32", "uint64",
        )  # fmt: skip
        dtype = getattr(torch, self.pick(names))
        layout = self.below(12)
        if layout == 11:
            return torch.empty(shape, dtype=dtype, device="meta")
        numbers = torch.from_numpy(self._numbers(math.prod(shape))).reshape(shape)
        if not dtype.is_floating_point and not dtype.is_complex:
            numbers = numbers.nan_to_num(0.0, 9.0, -9.0).clamp(-9, 9)
            numbers = numbers.abs() if dtype in (torch.uint8, torch.uint64) else numbers
        x = numbers.to(torch.float32).to(dtype) if dtype == torch.float8_e4m3fn else numbers.to(dtype)
        if layout == 1 and x.ndim > 1:
            x = x.transpose(0, -1).contiguous().transpose(0, -1)
        elif layout == 2 and x.ndim:
            x = torch.stack([x, x], -1)[..., 0]
        elif layout == 3 and x.ndim and len(x):
            x = x[:1].expand(x.shape)
        elif layout == 4 and x.numel():
            raw = torch.empty(x.numel() * x.itemsize + 16, dtype=torch.uint8)
            raw = raw[x.itemsize : x.itemsize + x.numel() * x.itemsize]
            x = raw.view(dtype).reshape(x.shape).copy_(x)
        elif layout == 5 and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        elif layout == 6 and (dtype.is_floating_point or dtype.is_complex):
            x = x.detach().requires_grad_()
        elif layout == 7 and dtype.is_complex:
            x = x.conj()
        elif layout == 8 and x.ndim == 2 and dtype == torch.float32:
            x = x.to_sparse()
        return x

    def _numbers(self, count: int) -> Any:
        """Random numbers, some of which are extreme."""
        kind = self.below(10)
        random = np.random.default_rng(self.below(256))
        numbers = random.normal(size=count) * self.pick((1.0, 1.0, 1e-3, 10.0, 100.0))
        constant = {1: 0.0, 2: 1.0, 3: 1e-300, 4: 1e30}.get(kind)
        if constant is not None:
            numbers[:] = constant
        elif kind in (5, 6, 7) and count:
            numbers[random.integers(count)] = {5: math.nan, 6: math.inf, 7: -math.inf}[kind]
        elif kind == 8:
            numbers = np.abs(numbers)
        return numbers


def spoiled(choices: Choices, tree: Any, *, tensors: bool = False) -> Any:
    """A copy of nested dicts and lists in which one to three places have been replaced, removed or added."""
    for _ in range(1 + choices.below(3)):
        tree = _spoiled(choices, tree, tensors)
    return tree


def _spoiled(choices: Choices, tree: Any, tensors: bool) -> Any:
    deeper = not choices.chance(5)
    if isinstance(tree, dict) and tree and deeper:
        keys = list(tree)
        key = choices.pick(keys)
        action = choices.below(10)
        if action == 1:
            return {k: v for k, v in tree.items() if k != key}
        if action == 2:
            return {**tree, choices.value(small=True).__repr__(): choices.value()}
        return {k: _spoiled(choices, v, tensors) if k == key else v for k, v in tree.items()}
    if isinstance(tree, (list, tuple)) and tree and deeper:
        place = choices.below(len(tree))
        action = choices.below(10)
        if action == 1:
            changed = [*tree[:place], *tree[place + 1 :]]
        elif action == 2:
            changed = [*tree, tree[place]]
        else:
            changed = [_spoiled(choices, v, tensors) if i == place else v for i, v in enumerate(tree)]
        return changed if isinstance(tree, list) else tuple(changed)
    if tensors and choices.chance(3):
        return choices.tensor(((3,), (2, 3)))
    return choices.value(tensors=tensors)


def random_bytes(random: Random, most: int = 96) -> bytes:
    """Bytes for `Choices` from nothing."""
    return random.randbytes(random.randrange(most))
