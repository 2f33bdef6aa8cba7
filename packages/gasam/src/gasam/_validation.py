"""What is refused before any work, in one sentence that names the argument, the rule and the value; keeps no state."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterable
from itertools import pairwise
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import LBFGS, Optimizer

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch.distributed.tensor import DTensor

CHOICES: dict[str, tuple[Any, ...]] = {
    "reference": ("running", "global", "none"),
    "segments": ("tensor", "group", "global", "channel"),
    "norm": (2, math.inf),
    "risk": ("last", "average"),
    "adaptive": (False, True, "layer"),
}
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_ONLY = "None, 'norm', a predicate of a name and a parameter, or parameters or modules"


# --- options --------------------------------------------------------------------------------------------------------


def check_number(argument: str, value: object, minimum: float = -math.inf) -> None:
    """A finite real number, at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:  # an int above all floats
        number = math.inf
    if not math.isfinite(number) or number < minimum:
        rule = {-math.inf: "finite", 0: "finite and non-negative"}.get(minimum, f"finite and at least {minimum:g}")
        raise ValueError(f"{argument} must be {rule}, got {value!r}")


def check_count(argument: str, value: object) -> None:
    """An integer, at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{argument} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{argument} must be at least 1, got {value!r}")


def check_choice(argument: str, value: object) -> None:
    """One of what `CHOICES` lists; neither 0 nor 1 stands for a bool."""
    allowed = CHOICES[argument]
    if not any(isinstance(value, bool) == isinstance(choice, bool) and value == choice for choice in allowed):
        *others, last = map(repr, allowed)
        raise ValueError(f"{argument} must be {', '.join(others)} or {last}, got {value!r}")


def check_only(only: object) -> None:
    """What `only` may be. Whether it selects anything, and an iterator's items, are seen when it is applied."""
    if only is None or isinstance(only, nn.Module | Tensor) or (isinstance(only, str) and only == "norm"):
        return
    if isinstance(only, list | tuple | set | frozenset):
        for item in only:
            if not isinstance(item, nn.Module | Tensor):
                raise ValueError(f"only must be {_ONLY}, got a {type(only).__name__} with {item!r}")
    elif isinstance(only, str | type) or not (callable(only) or isinstance(only, Iterable)):
        raise ValueError(f"only must be {_ONLY}, got {only!r}")  # a class, once called, is true for every parameter


def check_options(
    *,
    rho: object,
    strength_exponent: object,
    size_exponent: object,
    reference: object,
    segments: object,
    norm: object,
    steps: object,
    risk: object,
    adaptive: object,
    eta: object,
    every: object,
    ascent_fraction: object,
    only: object,
    strength_clip: object,
) -> None:
    """Each option for itself."""
    check_number("rho", rho, 0)
    check_number("strength_exponent", strength_exponent)
    check_number("size_exponent", size_exponent)
    check_number("eta", eta, 0)
    choices = {"reference": reference, "segments": segments, "norm": norm, "risk": risk, "adaptive": adaptive}
    for argument, value in choices.items():
        check_choice(argument, value)
    check_count("steps", steps)
    check_count("every", every)
    check_fraction("ascent_fraction", ascent_fraction)
    check_only(only)
    if strength_clip != math.inf:  # which clips nothing
        check_number("strength_clip", strength_clip, 1)


def check_fraction(argument: str, value: object) -> None:
    """A number in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument} must be a number, got {value!r}")
    if not 0 < float(value) <= 1:
        raise ValueError(f"{argument} must be in (0, 1], got {value!r}")


def check_closure(closure: object, *, fraction: bool) -> None:
    """A callable; if `fraction`, one that takes this keyword."""
    if not callable(closure):
        raise TypeError(f"closure must be callable, got {closure!r}")
    if not fraction:
        return
    try:
        parameters = inspect.signature(closure).parameters
    except ValueError:  # a callable of C, which tells only when it is called
        return
    keyword = parameters.get("fraction")
    takes = keyword is not None and keyword.kind in (keyword.KEYWORD_ONLY, keyword.POSITIONAL_OR_KEYWORD)
    if not takes and not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        raise TypeError(f"closure must take the keyword `fraction` when ascent_fraction is below 1, got {closure!r}")


# --- the base optimizer ---------------------------------------------------------------------------------------------


def check_base(base: object, base_kwargs: Mapping[str, Any], wrapper: type[Optimizer]) -> None:
    """A class or an instance of an optimizer that is no `wrapper` and evaluates no closure of its own."""
    kind = base if isinstance(base, type) else type(base)
    if not issubclass(kind, Optimizer):
        raise TypeError(f"base_optimizer must be a class or an instance of torch.optim.Optimizer, got {base!r}")
    if issubclass(kind, wrapper):
        raise TypeError(f"base_optimizer must not perturb the parameters itself, got {kind.__name__}")
    if issubclass(kind, LBFGS):
        raise ValueError("base_optimizer must take one gradient a step, got LBFGS, which calls the closure itself")
    if base_kwargs and isinstance(base, Optimizer):
        names = ", ".join(map(repr, base_kwargs))
        raise TypeError(
            f"base_kwargs are for a class of base_optimizer, got {names} with an instance of {kind.__name__}"
        )


def check_same_parameters(base: Optimizer, params: Iterable[Tensor]) -> None:
    """An instance of a base optimizer must optimize exactly `params`."""
    theirs = {id(p) for group in base.param_groups for p in group["params"]}
    ours = {id(p) for p in params}
    if ours != theirs:
        raise ValueError(
            f"base_optimizer must be over the same parameters as params, got {len(theirs - ours)} that only it has and"
            f" {len(ours - theirs)} that only params have"
        )


def check_momentum(base: Optimizer) -> None:
    """Every group of the base optimizer must have a momentum to ascend along."""
    for k, group in enumerate(base.param_groups):
        if not (group.get("momentum", 0) or "betas" in group):
            raise ValueError(
                f"base_optimizer must have momentum or betas, got {type(base).__name__} with"
                f" momentum={group.get('momentum')!r} in group {k}"
            )


# --- parameters -----------------------------------------------------------------------------------------------------


def check_parameters(named: Collection[tuple[str, Tensor]], *, segments: str) -> None:
    """Each parameter for itself, and that no two of them share memory."""
    for name, p in named:
        check_parameter(name, p, segments=segments)
    places = []
    for name, p in named:
        x = _local(p)
        if x.numel() and not x.is_meta and (start := x.data_ptr()):
            places.append((str(x.device), start, start + x.numel() * x.element_size(), name))
    places.sort()
    for (device, _, end, name), (device_of_next, start, _, next_name) in pairwise(places):
        if device == device_of_next and start < end:
            raise ValueError(
                f"parameters must not share memory, got {name!r} and {next_name!r} over the same elements; pass one"
                " parameter under both names, or clones"
            )


def check_parameter(name: str, p: Tensor, *, segments: str) -> None:
    """Initialised, real, and dense in memory; for channels also of whole rows in memory."""
    if is_lazy(p):
        raise ValueError(f"parameter {name!r} must be initialised, run the model once before")
    if p.is_complex():
        raise ValueError(f"parameter {name!r} must be real, got {p.dtype}")
    if p.requires_grad and p.dtype not in _DTYPES:
        raise ValueError(f"parameter {name!r} must be of float32, float64, bfloat16 or float16, got {p.dtype}")
    if p.layout is not torch.strided:
        raise ValueError(f"parameter {name!r} must be strided, got {p.layout}")
    x = _local(p)
    if not is_dense(x):
        raise ValueError(
            f"parameter {name!r} must fill its memory without gaps or overlaps, got shape {tuple(x.shape)} with strides"
            f" {x.stride()}; pass a clone"
        )
    if segments == "channel":
        if x is not p:
            raise ValueError(f"parameter {name!r} must not be a DTensor for segments='channel', use 'tensor'")
        if x.ndim and x.shape[0] > 1 and x.numel() and x.stride(0) * x.shape[0] != x.numel():
            raise ValueError(
                f"parameter {name!r} must have its rows one after another in memory for segments='channel', got shape"
                f" {tuple(x.shape)} with strides {x.stride()}"
            )


def check_as_perturbed(name: str, p: Tensor, backup: Tensor) -> None:
    """What `backup` is to be copied into must be as it was when `backup` was taken."""
    x = _local(p)
    for what in ("dtype", "device", "shape"):
        before, now = getattr(backup, what), getattr(x, what)
        if before != now:
            before, now = (tuple(value) if what == "shape" else value for value in (before, now))
            raise RuntimeError(f"parameter {name!r} must keep its {what} while it is perturbed, got {now} for {before}")
    if not _same_places(x, backup):
        raise RuntimeError(
            f"parameter {name!r} must keep its strides while it is perturbed, got {x.stride()} for {backup.stride()}"
        )


# --- gradients ------------------------------------------------------------------------------------------------------


def check_gradient(name: str, p: Tensor, grad: Tensor) -> None:
    """Dense, and for the parameter as it is."""
    if grad.layout is not torch.strided:
        raise RuntimeError(f"the gradient of parameter {name!r} must be dense, got {grad.layout}; use sparse=False")
    if p.dtype not in _DTYPES:
        raise RuntimeError(
            f"parameter {name!r} must be of float32, float64, bfloat16 or float16 to have a gradient, got {p.dtype}"
        )
    for what in ("shape", "dtype", "device"):
        expected, given = getattr(p, what), getattr(grad, what)
        if expected != given:
            expected, given = (tuple(value) if what == "shape" else value for value in (expected, given))
            raise RuntimeError(
                f"the gradient of parameter {name!r} must have the parameter's {what}, got {given} for {expected}"
            )


def check_given_gradients(named: Collection[tuple[str, Tensor]], grads: Collection[object]) -> None:
    """Gradients that are passed in: one for each perturbed parameter, or None."""
    if len(grads) != len(named):
        raise ValueError(
            f"grads must have one gradient for each perturbed parameter, got {len(grads)} for {len(named)}"
        )
    for (name, p), grad in zip(named, grads, strict=True):
        if grad is None:
            continue
        if not isinstance(grad, Tensor):
            raise TypeError(f"grads must be tensors or None, got {grad!r} for parameter {name!r}")
        check_gradient(name, p, grad)


# --- memory ---------------------------------------------------------------------------------------------------------


def _local(x: Tensor) -> Tensor:
    """The shard of this process."""
    module = sys.modules.get("torch.distributed.tensor")  # whoever holds a DTensor has imported it
    return cast("DTensor", x).to_local() if module is not None and isinstance(x, module.DTensor) else x


def is_dense(x: Tensor) -> bool:
    """Whether the elements are the places 0 to numel - 1 in some order of the dimensions."""
    if not x.numel():
        return True
    place = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1):
        if stride != place:
            return False
        place *= size
    return True


def _same_places(x: Tensor, y: Tensor) -> bool:
    """Whether strides agree where they count."""
    return all(a == b for a, b, size in zip(x.stride(), y.stride(), x.shape, strict=True) if size > 1) or not x.numel()


def check_saved(own: object) -> None:
    """What `state_dict` saves beside the base optimizer's."""
    if not isinstance(own, dict):
        raise TypeError(f"state_dict['gasam'] must be a dict, got {own!r}")
    step = own.get("step", 0)
    if isinstance(step, bool) or not isinstance(step, Integral) or step < 0:
        raise ValueError(f"state_dict['gasam']['step'] must be a non-negative integer, got {step!r}")
    for name, shape in (("running", (2,)), ("seed", ())):
        if name not in own:
            continue
        x = own[name]
        fits = isinstance(x, Tensor) and tuple(x.shape) == shape and not (x.is_meta or x.is_complex())
        if not fits or x.is_floating_point() != (name == "running"):
            raise ValueError(f"state_dict['gasam']['{name}'] must be a tensor of shape {shape}, got {x!r}")


def check_scaler(scaler: object) -> None:
    if scaler is not None and not (hasattr(scaler, "is_enabled") and hasattr(scaler, "scale")):
        raise TypeError(f"scaler must be a torch.amp.GradScaler, got {scaler!r}")
