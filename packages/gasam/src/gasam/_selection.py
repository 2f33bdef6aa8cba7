"""The parameters: what they are called, which of them are perturbed, and which of them `adaptive` weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["Only", "Selection", "norm_parameters"]

Only = str | Callable[[str, Tensor], bool] | Tensor | nn.Module | Iterable[Any]

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_NORM_NAME = re.compile(r"norm|(?<![a-z])bn|bn(?![a-z])", re.IGNORECASE)


def norm_parameters(module: nn.Module) -> set[Tensor]:
    """The own parameters of torch's norm layers and of layers whose class has a name that ends with `Norm`."""
    return {
        p
        for layer in module.modules()
        if isinstance(layer, _NORMS) or type(layer).__name__.endswith("Norm")
        for p in layer.parameters(recurse=False)
    }


def _listed(params: Any) -> Any:
    """A list instead of an iterator, of which this would leave nothing; of a set the base optimizer warns."""
    return [params] if isinstance(params, Tensor) else params if isinstance(params, set) else list(params)


def _pairs(params: Any, names: Any = None) -> list[tuple[str | None, Any]]:
    """Parameters of one group with their names, and what is no parameter, which the base optimizer refuses."""
    if names is not None:
        return list(zip(names, params, strict=True))
    return [(x[0], x[1]) if isinstance(x, tuple) and len(x) == 2 else (None, x) for x in params]


def _chosen(only: Any) -> set[Tensor]:
    """The tensors of a tensor, a module, or an iterable of these and of named parameters."""
    if isinstance(only, Tensor):
        return {only}
    if isinstance(only, nn.Module):
        return set(only.parameters())
    if isinstance(only, Iterable) and not isinstance(only, (str, bytes, Mapping)):
        items = [x[1] if isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], str) else x for x in only]
        if all(isinstance(x, (Tensor, nn.Module)) for x in items):
            return set().union(*map(_chosen, items))
    raise ValueError(
        "only must be 'norm', a predicate of a name and a parameter, or parameters or modules, "
        f"got {only if isinstance(only, (str, bytes)) else type(only).__name__!r}"
    )


@dataclass(frozen=True, slots=True)
class Selection:
    """What `GASAM` is given, in order: one entry of each list for every parameter."""

    groups: Any
    """What the base optimizer is given."""
    module: nn.Module | None
    params: list[Tensor]
    names: dict[Tensor, str]
    """A parameter without a name is called after its place, as `"group.index"`."""
    perturbed: list[bool]
    weighted: list[int]
    """1 where T = |w| + eta, 0 where T = 1."""

    @classmethod
    def of(
        cls, params: Any, only: Only | None = None, adaptive: bool | str = False, *, may_be_empty: bool = False
    ) -> Selection:
        """Of a module, tensors, named parameters, or groups of these (also those of another optimizer).

        Raises:
            ValueError: `only` selects nothing, unless it `may_be_empty`.
        """
        module = params if isinstance(params, nn.Module) else None
        if isinstance(params, Tensor) or (module is None and not isinstance(params, Iterable)):
            raise TypeError(
                "params argument given to the optimizer should be an iterable of Tensors or dicts or an nn.Module, "
                f"but got {params.type() if isinstance(params, Tensor) else repr(params)}"
            )
        given = list(params if module is None else module.named_parameters())
        groups: Any
        grouped = bool(given) and isinstance(given[0], dict)
        if grouped:
            groups = [{**g, "params": _listed(g["params"])} for g in given]
            pairs = [_pairs(g["params"], g.get("param_names")) for g in groups]
        else:
            groups = params if isinstance(params, set) else given
            pairs = [_pairs(given)]

        names: dict[Tensor, str] = {}
        flat: list[tuple[str | None, Tensor]] = []
        for number, group in enumerate(pairs):
            for index, (name, p) in enumerate(group):
                if isinstance(p, Tensor):
                    names.setdefault(p, name if isinstance(name, str) else f"{number}.{index}")
                    flat.append((name, p))
        return cls(
            groups=groups,
            module=module,
            params=[p for _, p in flat],
            names=names,
            perturbed=_perturbed(flat, names, module, only, may_be_empty=may_be_empty),
            weighted=[
                int(adaptive is True and (p.ndim >= 2 if name is None else "weight" in name)) for name, p in flat
            ],
        )


def _perturbed(
    flat: list[tuple[str | None, Tensor]],
    names: dict[Tensor, str],
    module: nn.Module | None,
    only: Only | None,
    *,
    may_be_empty: bool,
) -> list[bool]:
    if only is None:
        return [True] * len(flat)
    if isinstance(only, str) and only == "norm":
        if module is None:
            found = [name is not None and _NORM_NAME.search(name) is not None for name, _ in flat]
        else:
            norms = norm_parameters(module)
            found = [p in norms for _, p in flat]
    elif callable(only) and not isinstance(only, (nn.Module, Tensor)):
        found = [bool(only(names[p], p)) for _, p in flat]
    else:
        chosen = _chosen(only)
        found = [p in chosen for _, p in flat]
    if not (any(found) or may_be_empty):
        by_name = isinstance(only, str) and module is None
        raise ValueError(
            f"only must select at least one of the {len(flat)} parameters, got "
            f"{repr(only) if isinstance(only, str) else type(only).__name__}, which selects none"
            + ("; without a module it needs named parameters" if by_name else "")
        )
    return found
