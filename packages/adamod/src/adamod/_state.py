"""The states of one parameter: which dtype and shape they have, on plain and on sharded tensors."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor

from ._reference import BLOCK, decode, encode, memory_order

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement

StateDtype: TypeAlias = "torch.dtype | str | dict[str, torch.dtype | str | None] | None"

KEYS = ("exp_avg", "exp_avg_sq", "exp_avg_lr")
ALLOWED = (None, torch.float32, torch.bfloat16, "int8")
INT8_FROM = 4096  # elements; smaller tensors keep float32
DTYPES = (
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    *(torch.complex128, torch.complex64, torch.complex32),
)
"""Those of parameters that can be stepped."""


# --- sharded tensors ------------------------------------------------------------------------------------------------


def sharding(x: object) -> tuple[DeviceMesh, tuple[Placement, ...]] | None:
    """Where a DTensor lives; None for a plain tensor."""
    module = sys.modules.get("torch.distributed.tensor")  # whoever holds a DTensor has imported it
    return (x.device_mesh, x.placements) if module is not None and isinstance(x, module.DTensor) else None


def local(x: Tensor) -> Tensor:
    return cast("DTensor", x).to_local() if sharding(x) else x


def locals_(xs: list[Tensor]) -> list[Tensor]:
    return [local(x) for x in xs]


def shard(x: Tensor, template: Tensor, *, shaped: bool = True) -> Tensor:
    """A local tensor as this process's shard of one that is sharded, and if `shaped` also shaped, as `template` is."""
    where = sharding(template)
    if where is None:
        return x
    from torch.distributed.tensor import DTensor

    whole = {"shape": template.shape, "stride": template.stride()} if shaped else {}
    return DTensor.from_local(x, *where, run_check=False, **whole)  # type: ignore[arg-type]


def local_gradient(p: Tensor, grad: Tensor) -> Tensor:
    ours, theirs = sharding(p), sharding(grad)
    if ours and theirs and ours[1] != theirs[1]:
        grad = cast("DTensor", grad).redistribute(placements=ours[1])
    return local(grad)


def shard_coordinate(p: Tensor) -> int:
    """The number of this shard among all shards of `p`; replicas share it."""
    coordinate = 0
    mesh, placements = sharding(p) or (None, ())
    for dim, placement in enumerate(placements):
        if mesh is not None and not placement.is_replicate():
            coordinate = coordinate * mesh.size(dim) + mesh.get_local_rank(dim)
    return coordinate


# --- options --------------------------------------------------------------------------------------------------------


def by_key(option: StateDtype) -> dict[str, Any]:
    if isinstance(option, dict):
        return {key: option.get(key) for key in KEYS}
    return dict.fromkeys(KEYS, option)


def check_dtype_option(group: Mapping[str, Any]) -> None:
    option = group["state_dtype"]
    names = [str(value) if value is None or isinstance(value, torch.dtype) else repr(value) for value in ALLOWED]
    if isinstance(option, dict):
        for key in option:
            if key not in KEYS:
                raise ValueError(f"state_dtype may have the keys {', '.join(map(repr, KEYS))}, got {key!r}")
    for value in option.values() if isinstance(option, dict) else (option,):
        if not any(value is allowed or value == allowed for allowed in ALLOWED):
            raise ValueError(f"state_dtype must be one of {', '.join(names)}, or a dict of these, got {value!r}")
    for value in by_key(option).values():
        if value in (torch.bfloat16, "int8"):
            for flag in ("foreach", "differentiable"):
                if group[flag]:
                    raise ValueError(
                        f"state_dtype={value!r} is not supported with {flag}=True, use None or torch.float32"
                    )


def check_params(group: Mapping[str, Any], first: int) -> None:
    asked = any(value is not None for value in by_key(group["state_dtype"]).values())
    for k, p in enumerate(group["params"]):
        if asked and p.dtype in (torch.float64, torch.complex128):
            raise ValueError(f"state_dtype must be None for {p.dtype} parameters, got {group['state_dtype']!r}")
        if _shares_memory(local(p)):
            raise ValueError(
                f"parameter {first + k} has elements that share memory (shape {tuple(p.shape)}, strides "
                f"{local(p).stride()}); pass a clone"
            )


def check_gradients(group: Mapping[str, Any], first: int, optimizer: str) -> None:
    """Refuse what has a gradient and cannot be stepped; parameters without one may be of any kind."""
    names = group.get("param_names") or [None] * len(group["params"])
    for k, (p, name) in enumerate(zip(group["params"], names, strict=True), first):
        if p.grad is None:
            continue
        what = f"parameter {k}" if name is None else f"parameter {k} ({name!r})"
        if p.grad.layout is not torch.strided:
            raise RuntimeError(
                f"{optimizer} does not support sparse gradients: that of {what} must be strided, got {p.grad.layout}"
            )
        if p.dtype not in DTYPES:
            dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise RuntimeError(f"{what} must be of one of {dtypes} to be stepped, got {p.dtype}")


def _shares_memory(p: Tensor) -> bool:
    if p.layout is not torch.strided or p.numel() < 2:
        return False
    reach = 0  # the last place that the faster dimensions touch
    for stride, size in sorted(
        (abs(stride), size) for stride, size in zip(p.stride(), p.shape, strict=True) if size > 1
    ):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def dtype_of(p: Tensor, group: Mapping[str, Any], key: str) -> torch.dtype | str:
    """A torch dtype, or "int8"."""
    option = by_key(group["state_dtype"])[key]
    if option == "int8" and p.numel() * (2 if p.is_complex() else 1) >= INT8_FROM and _fits_blocks(p):
        return "int8"
    if option == torch.bfloat16:
        return torch.bfloat16
    if p.dtype in (torch.float64, torch.complex128):
        return p.dtype
    return torch.complex64 if p.is_complex() else torch.float32


def is_low(group: Mapping[str, Any], params: Iterable[Tensor]) -> bool:
    """Whether a state of the group has fewer than 32 bits."""
    return any(dtype_of(p, group, key) in (torch.bfloat16, "int8") for p in params for key in KEYS)


def _fits_blocks(p: Tensor) -> bool:
    """Whether every shard of `p` consists of whole blocks, so that the scales are sharded as the codes are."""
    where = sharding(p)
    if where is None:
        return True
    mesh, placements = where
    if not all(placement.is_replicate() or placement.is_shard(0) for placement in placements):
        return False
    parts = math.prod(mesh.size(dim) for dim, placement in enumerate(placements) if placement.is_shard())
    return parts == 1 or (p.shape[0] % parts == 0 and p.numel() // parts % BLOCK == 0 and local(p).is_contiguous())


# --- making and converting ------------------------------------------------------------------------------------------


def empty(p: Tensor, dtype: torch.dtype | str) -> dict[str, Tensor]:
    """Uninitialised storage for one state of `p`: {"": values} or {"": codes, "_scale": scales}."""
    if p.is_complex() and dtype in (torch.bfloat16, "int8"):
        p = torch.view_as_real(p)
    if isinstance(dtype, torch.dtype):
        return {"": torch.empty_like(p, dtype=dtype, requires_grad=False)}
    codes = torch.empty_like(p, dtype=torch.uint8, requires_grad=False)
    blocks = -(-local(p).numel() // BLOCK)
    scale = torch.empty(blocks, dtype=torch.int16, device=local(p).device)
    return {"": codes, "_scale": shard(scale, p, shaped=False)}


def zeros(p: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
    """The states of a parameter before its first step, each in the parameter's memory format."""
    states = {}
    for key in KEYS:
        for suffix, x in empty(p, dtype_of(p, group, key)).items():
            states[key + suffix] = x.zero_()
    return states


def to_bytes(scale: Tensor) -> Tensor:
    """A scale as uint8, two for each block: no process group gathers int16."""
    return shard(local(scale).view(torch.uint8), scale, shaped=False)


def from_bytes(scale: Tensor) -> Tensor:
    """A local scale as int16 again."""
    return scale if scale.dtype == torch.int16 else scale.clone().view(torch.int16)


def values(state: Mapping[str, Any], key: str) -> Tensor:
    """A state as floating numbers, decoded if it is 8-bit."""
    x = state[key]
    if x.dtype != torch.uint8:
        return x  # type: ignore[no-any-return]
    codes = local(x)
    order = memory_order(codes)
    ordered = codes.permute(order)
    scale = from_bytes(local(state[key + "_scale"]))
    flat = decode(ordered.flatten(), scale, signed=key == "exp_avg").view(ordered.shape)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return shard(flat.permute(inverse), x)


def converted(p: Tensor, group: Mapping[str, Any], state: Mapping[str, Any], key: str) -> dict[str, Tensor]:
    """A loaded state in the dtype, layout and placement that `p` has it in here; bit for bit where these are equal."""
    dtype = dtype_of(p, group, key)
    target = empty(p, dtype)
    into = target[""]
    source = state[key]
    device = local(p).device
    same_kind = source.dtype == into.dtype and bool(sharding(source)) == bool(sharding(into))
    if source.dtype == torch.uint8:
        same_kind = same_kind and memory_order(local(source)) == memory_order(local(into))
    if not same_kind:
        source = values(state, key)
    if source.is_complex() and not into.is_complex():
        source = torch.view_as_real(source)
    elif into.is_complex() and not source.is_complex():
        source = torch.view_as_complex(source.to(torch.float32).contiguous())
    if source.dtype == torch.uint8 or dtype != "int8":
        for suffix, x in target.items():
            loaded = local(_placed(source if suffix == "" else state[key + suffix], x))
            local(x).copy_(from_bytes(loaded) if suffix else loaded)
        return {key + suffix: x for suffix, x in target.items()}
    x = local(_placed(source, into)).to(device, torch.float32)
    order = memory_order(local(into))
    ordered = x.permute(order)
    codes, scale = encode(ordered.flatten(), None, signed=key == "exp_avg", keep_positive=key == "exp_avg_sq")
    local(into).permute(order).copy_(codes.view(ordered.shape))
    local(target["_scale"]).copy_(scale)
    return {key + suffix: x for suffix, x in target.items()}


def _placed(x: Tensor, template: Tensor) -> Tensor:
    """`x` sharded as `template` is: cut, gathered or moved where they differ."""
    ours, theirs = sharding(template), sharding(x)
    if ours and not theirs:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(x.to(local(template).device), *ours)
    if theirs and not ours:
        return cast("DTensor", x).full_tensor()
    if ours and theirs and ours[1] != theirs[1]:
        return cast("DTensor", x).redistribute(placements=ours[1])
    return x
