import os
from collections.abc import Callable
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

_U8: TypeAlias = NDArray[np.uint8]
_U32: TypeAlias = NDArray[np.uint32]
_U64: TypeAlias = NDArray[np.uint64]
_F64: TypeAlias = NDArray[np.float64]

# core.cpp

def vectors() -> str: ...

# bind_corpus.cpp

class Reader:
    @overload
    def __init__(
        self, name: str, max_vocab_size: int = 0, rule: Callable[[str, int, int], bool] | None = None
    ) -> None: ...
    @overload
    def __init__(self, name: str, words: list[str]) -> None: ...
    def feed(self, block: bytes) -> None: ...
    def finish(self) -> None: ...
    def add(self, sentences: list[Any]) -> None: ...
    def take(self) -> tuple[NDArray[np.uint32], NDArray[np.uint64]]: ...
    @property
    def words(self) -> list[str]: ...
    @property
    def counts(self) -> NDArray[np.uint64]: ...
    @property
    def births(self) -> NDArray[np.uint64]: ...
    @property
    def raw(self) -> int: ...

def tokenize(
    source: bytes | str | os.PathLike[str],
) -> tuple[NDArray[np.uint32], NDArray[np.uint64], list[str], NDArray[np.uint64]]: ...
def encode(
    sentences: list[Any], index: dict[str, int], first: int = 0
) -> tuple[NDArray[np.uint32], NDArray[np.uint64], int]: ...
def renumber(ids: NDArray[np.uint32], ends: NDArray[np.uint64], numbers: NDArray[np.uint32]) -> int: ...

# bind_engine.cpp

def instruction_sets() -> list[str]: ...
def aligned(rows: int, columns: int, dtype: str = "float32") -> NDArray[Any]: ...
def alias_build(p: _F64) -> tuple[_U32, _U32]: ...
def draws(
    ids: _U32,
    keep: _U32,
    threshold: _U32,
    alias: _U32,
    image_ptr: _U64,
    image_ids: _U32,
    images: int,
    *,
    window: int,
    negative: int,
    shrink_windows: bool,
    negatives: str,
    image_negative: int,
    seed: int,
    epoch: int,
    sentence: int,
) -> tuple[_U32, _U32, _U32, _U32]: ...
def tile(
    x: NDArray[Any], y: NDArray[Any], labels: NDArray[Any], alpha: float, isa: str
) -> tuple[NDArray[Any], NDArray[Any], float]: ...
def train_epoch(
    ids: _U32,
    offsets: _U64,
    keep: _U32,
    threshold: _U32,
    alias: _U32,
    v: NDArray[Any],
    u: NDArray[Any],
    lockf: NDArray[Any],
    image_ptr: _U64,
    image_ids: _U32,
    z: NDArray[Any],
    stop: _U8,
    progress: _U64,
    *,
    window: int,
    negative: int,
    shrink_windows: bool,
    negatives: str,
    objective: str,
    image_weight: float,
    image_negative: int,
    images_trained: bool,
    alpha: float,
    min_alpha: float,
    done: int,
    first_token: int,
    total: int,
    seed: int,
    epoch: int,
    first_sentence: int,
    loss: str,
    workers: int,
    deterministic: bool = False,
    isa: str,
) -> tuple[float, float, int, int, int, int]: ...
