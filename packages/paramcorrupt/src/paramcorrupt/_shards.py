"""What a process holds of parameters in shards, and sums of it over whole parameters."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


_PLAIN = {Tensor, nn.Parameter}


def are_plain(tensors: Iterable[Any]) -> bool:
    """Whether it is known at once of a list, which may be long, that none is sharded."""
    return _PLAIN.issuperset(map(type, tensors))


def is_sharded(x: Tensor) -> bool:
    if type(x) in _PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")  # whoever holds a DTensor has imported it
    return module is not None and isinstance(x, module.DTensor)


def reshard(model: Any) -> None:
    """Let a model of `fully_shard` have its shards again, where a pass has left whole parameters.

    Raises:
        TypeError: it is in shards of FullyShardedDataParallel, which are out of reach.
    """
    module = sys.modules.get("torch.distributed.fsdp")
    if module is None or not isinstance(model, nn.Module):
        return
    for part in model.modules():
        if isinstance(part, module.FullyShardedDataParallel):
            raise TypeError("model must be sharded by fully_shard, got FullyShardedDataParallel")
        if isinstance(part, module.FSDPModule):
            part.reshard()


def local(x: Any) -> Tensor:
    """What this process holds of a tensor, detached: it shares memory and version counter."""
    return (x._local_tensor if is_sharded(x) else x).detach()  # type: ignore[no-any-return]


def joined(held: Tensor, mesh: Any, placements: Any, shape: Sequence[int]) -> Tensor:
    """The tensor of this shape of which this process holds that, in row-major order."""
    from torch.distributed.tensor import DTensor

    stride = tuple(math.prod(shape[d + 1 :]) for d in range(len(shape)))
    return DTensor.from_local(held, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride)


def local_gradient(p: Any) -> Tensor | None:
    """What this process holds of the gradient of a parameter, distributed as that is."""
    grad = distributed_as(p, p.grad)
    return None if grad is None else local(grad)


def distributed_as(p: Any, grad: Any) -> Any:
    """A gradient of a parameter, distributed as that is."""
    if grad is not None and is_sharded(p) and is_sharded(grad) and grad.placements != p.placements:
        return grad.redistribute(p.device_mesh, p.placements)
    return grad


def reduced(x: Any) -> Any:
    """A tensor of which no process has but a term."""
    if not is_sharded(x) or not any(placement.is_partial() for placement in x.placements):
        return x
    from torch.distributed.tensor import Replicate

    return x.redistribute(placements=[Replicate() if each.is_partial() else each for each in x.placements])


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
