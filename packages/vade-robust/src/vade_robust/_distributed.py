"""Training in several processes: what they exchange. Without an initialised process group all of it does nothing.

Each process has the same rows and draws the same random numbers; it works on its slice of every batch, and all add up
their gradients. A loss is the sum of the processes' shares of it.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from ._sources import part

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def world() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _device() -> torch.device:
    """Where the group's backend takes tensors from."""
    backends = str(distributed.get_backend())
    return torch.device("cuda", torch.cuda.current_device()) if "nccl" in backends else torch.device("cpu")


class _Gather(torch.autograd.Function):
    """Rows of all processes in their order. Each share of the loss that is computed from them must be the same."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: int) -> Tensor:
        ctx.rows = rows
        size = world()[1]
        parts = [part(rows, other, size) for other in range(size)]
        longest = max(p.stop - p.start for p in parts)
        padded = x.new_zeros(longest, *x.shape[1:])
        padded[: len(x)] = x
        gathered = [torch.empty_like(padded) for _ in parts]
        distributed.all_gather(gathered, padded)
        return torch.cat([g[: p.stop - p.start] for g, p in zip(gathered, parts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # The sum over processes of the gradients of their equal shares.
        rank, size = world()
        return grads[0][part(ctx.rows, rank, size)] * size, None


def gather(x: Tensor, rows: int) -> Tensor:
    """The rows [rows, ...] of a whole batch, from each process's slice of it."""
    if world()[1] == 1:
        return x
    gathered: Tensor = _Gather.apply(x, rows)
    return gathered


@torch.no_grad()
def add_up(tensors: Sequence[Tensor]) -> None:
    """Replaces tensors by their sums over the processes, by one exchange for each dtype."""
    if world()[1] == 1:
        return
    for group in _by_dtype(tensors):
        flat = torch.cat([x.reshape(-1) for x in group])
        distributed.all_reduce(flat)
        _spread(flat, group)


@torch.no_grad()
def broadcast(tensors: Sequence[Tensor]) -> None:
    """Replaces tensors by those of the first process."""
    if world()[1] == 1:
        return
    device = _device()
    for group in _by_dtype(tensors):
        flat = torch.cat([x.reshape(-1) for x in group]).to(device)
        distributed.broadcast(flat, 0)
        _spread(flat, group)


def _by_dtype(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    groups: dict[torch.dtype, list[Tensor]] = {}
    for x in tensors:
        groups.setdefault(x.dtype, []).append(x)
    return list(groups.values())


def _spread(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    for x, values in zip(tensors, flat.split([x.numel() for x in tensors]), strict=True):
        x.copy_(values.view(x.shape))


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if world()[1] == 1:
        return flag
    found = torch.tensor([float(flag)], device=_device())
    distributed.all_reduce(found)
    return bool(found.item())


@contextmanager
def agreement(what: str) -> Iterator[None]:
    """Ends with an error in every process if the block, which must exchange nothing, ends with one in any.

    The others raise RuntimeError: none is left waiting for one that has given up.
    """
    if world()[1] == 1:
        yield
        return
    try:
        yield
    except BaseException:
        any_of(True)
        raise
    if any_of(False):
        raise RuntimeError(f"{what} failed in another process of the group, whose error tells why")


def check_same(text: str, what: str) -> None:
    """Raises ValueError in every process if the text differs between them."""
    if world()[1] == 1:
        return
    digest = hashlib.sha256(text.encode()).digest()[:6]
    own = torch.tensor([int.from_bytes(digest, "big")], device=_device())
    first = own.clone()
    distributed.broadcast(first, 0)
    if any_of(bool((own != first).item())):
        raise ValueError(f"the processes of a group must have the same {what}, got different ones")


def broadcast_bytes(content: bytes) -> bytes:
    """The bytes of the first process."""
    if world()[1] == 1:
        return content
    length = torch.tensor([len(content)], device=_device())
    distributed.broadcast(length, 0)
    flat = torch.zeros(int(length.item()), dtype=torch.uint8, device=_device())
    if world()[0] == 0:
        flat.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    distributed.broadcast(flat, 0)
    return flat.cpu().numpy().tobytes()
