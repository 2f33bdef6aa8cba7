import os
from collections.abc import Callable
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

U8: TypeAlias = NDArray[np.uint8]
U32: TypeAlias = NDArray[np.uint32]
U64: TypeAlias = NDArray[np.uint64]
F64: TypeAlias = NDArray[np.float64]

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
def alias_build(p: F64) -> tuple[U32, U32]: ...
def draws(
    ids: U32,
    keep: U32,
    threshold: U32,
    alias: U32,
    image_ptr: U64,
    image_ids: U32,
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
) -> tuple[U32, U32, U32, U32]: ...
def tile(
    x: NDArray[Any], y: NDArray[Any], labels: NDArray[Any], alpha: float, isa: str
) -> tuple[NDArray[Any], NDArray[Any], float]: ...
def train_epoch(
    ids: U32,
    offsets: U64,
    keep: U32,
    threshold: U32,
    alias: U32,
    v: NDArray[Any],
    u: NDArray[Any],
    lockf: NDArray[Any],
    image_ptr: U64,
    image_ids: U32,
    z: NDArray[Any],
    stop: U8,
    progress: U64,
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
