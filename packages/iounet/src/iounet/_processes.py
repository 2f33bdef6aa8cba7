"""The processes that `torchrun` starts: who takes which images, where the model lies, what is averaged."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import distributed

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Processes", "joined"]


@dataclass(frozen=True, slots=True)
class Processes:
    """The group of a run: this process's rank among `count`, and its device."""

    rank: int
    count: int
    device: torch.device

    @property
    def several(self) -> bool:
        """Whether gradients have to be averaged at all."""
        return self.count > 1

    def averaged(self, values: dict[str, float]) -> dict[str, float]:
        """The means over the processes; every process must call this, with the same names."""
        if not self.several:
            return dict(values)
        names = sorted(values)
        sums = torch.tensor([values[name] for name in names], dtype=torch.float64, device=self.device)
        distributed.all_reduce(sums)
        return dict(zip(names, (sums / self.count).tolist(), strict=True))


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """The group that is there, or the one that `torchrun` asks for and that ends with the block, or this process alone.

    Under `torchrun` a CUDA device is that of the local rank; NCCL connects CUDA devices, gloo all others.
    """
    ours = False
    if distributed.is_available() and distributed.is_torchelastic_launched():
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
            ours = True
    try:
        if distributed.is_available() and distributed.is_initialized():
            yield Processes(distributed.get_rank(), distributed.get_world_size(), device)
        else:
            yield Processes(0, 1, device)
    finally:
        if ours:
            distributed.destroy_process_group()
