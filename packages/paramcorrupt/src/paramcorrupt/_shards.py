"""What a process holds of parameters in shards, and sums of it over whole parameters."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence


def is_sharded(x: Tensor) -> bool:
    module = sys.modules.get("torch.distributed.tensor")  # whoever holds a DTensor has imported it
    return module is not None and isinstance(x, module.DTensor)


def local(x: Any) -> Tensor:
    """What this process holds of a tensor, detached: it shares memory and version counter."""
    return (x._local_tensor if is_sharded(x) else x).detach()  # type: ignore[no-any-return]


def local_gradient(p: Any) -> Tensor | None:
    """What this process holds of the gradient of a parameter, distributed as that is."""
    grad = p.grad
    if grad is not None and is_sharded(p) and is_sharded(grad) and grad.placements != p.placements:
        grad = grad.redistribute(p.device_mesh, p.placements)
    return None if grad is None else local(grad)


def over_shards(rows: Tensor, params: Sequence[Any], maxima: slice) -> None:
    """Make of numbers of shards, one row for each parameter, those of whole parameters, in place: sums, or `maxima`.

    Replicas count once.
    """
    spread: dict[tuple[Any, int], list[int]] = {}
    for k, p in enumerate(params):
        for dim, placement in enumerate(p.placements if is_sharded(p) else ()):
            if not placement.is_replicate():
                spread.setdefault((p.device_mesh, dim), []).append(k)
    for (mesh, dim), places in spread.items():
        group, total = mesh.get_group(dim), rows[places]
        largest = total[:, maxima].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total, group=group)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=group)
        total[:, maxima] = largest
        rows[places] = total
