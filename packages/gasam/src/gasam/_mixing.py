"""What the presets share that mix gradients: their factors, and tensors that last from step to step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._saved import check_tensor
from ._segments import local
from .optimizer import GASAM


def fixed(preset: str, options: dict[str, Any], **needed: Any) -> dict[str, Any]:
    """Options, among which are those that a preset needs as they are."""
    for argument, value in needed.items():
        if options.get(argument, value) != value:
            raise ValueError(f"{argument} must be {value!r} for {preset}, got {options[argument]!r}")
    return {**options, **needed}


def factors(like: Tensor, *values: float | Tensor) -> Tensor:
    """Factors of a mixture in float64 where `like` is, for which nobody waits."""
    return torch.stack([torch.zeros_like(like, dtype=torch.float64) + value for value in values])


class Remembering(GASAM):
    """Keeps a tensor for each parameter that had a gradient, also in checkpoints, where parameters are numbers."""

    _name: str  # in checkpoints

    def __init__(self, *args: Any, **options: Any) -> None:
        self._remembered: dict[Tensor, Tensor] = {}
        super().__init__(*args, **options)

    def _remember(self, params: list[Tensor]) -> list[Tensor]:
        """What is kept of each parameter, at first zeros."""
        for p in params:
            kept = self._remembered.get(p)
            if kept is None:
                self._remembered[p] = torch.zeros_like(p)
            elif (kept.shape, kept.dtype, kept.device) != (p.shape, p.dtype, p.device):
                raise RuntimeError(
                    f"{self._name} of {self._facts[p][0]} is of shape {tuple(kept.shape)} and {kept.dtype} on "
                    f"{kept.device}, which the parameter is no longer: make a new optimizer after such a change"
                )
        return [local(self._remembered[p]) for p in params]

    def _numbered(self) -> list[Tensor]:
        return list(dict.fromkeys(p for group in self.param_groups for p in group["params"]))

    def _tensors(self) -> dict[str, Any]:
        params = self._numbered()
        return {self._name: {k: self._remembered[p] for k, p in enumerate(params) if p in self._remembered}}

    def _check_tensors(self, tensors: dict[str, Any]) -> None:
        place = f"state_dict['gasam']['{self._name}']"
        saved, params = tensors.get(self._name, {}), dict(enumerate(self._numbered()))
        if not isinstance(saved, dict):
            raise TypeError(f"{place} must be a dict, got {saved!r}")
        for k, x in saved.items():
            if k not in params:
                raise ValueError(f"{place} must have the numbers of parameters, below {len(params)}, got {k!r}")
            check_tensor(f"{place}[{k}]", x, params[k], f"parameter {k}")

    def _load_tensors(self, tensors: dict[str, Any]) -> None:
        params = self._numbered()
        saved = tensors.get(self._name, {})
        self._remembered = {params[k]: torch.zeros_like(params[k]).copy_(x) for k, x in saved.items()}
