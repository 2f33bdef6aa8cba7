"""What a model decides on each input, with and without a fault, and which of its outputs are not finite."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .objective import _device, _moved

if TYPE_CHECKING:
    from collections.abc import Callable


class Outputs:
    """The inputs, and what each gives without a fault: for batches, or for single rows."""

    def __init__(self, model: Any, data: Any, output: str | Callable[[Any], Tensor], *, single: bool) -> None:
        self.model, self.output, self.single = model, output, single
        self.forwards = 0
        self.inputs = [_input(_moved(batch, _device(model))) for batch in data]
        self._rows: dict[tuple[int, int], Tensor] = {}
        self._clean = [self._known(x) for x in self.inputs]
        sizes = [len(x) for x in self._clean]
        self.ends = torch.tensor(sizes).cumsum(0).tolist()
        if not self.ends[-1]:
            raise ValueError(f"data must have at least one input, got none in {len(sizes)} batches")

    def _known(self, x: Any) -> Tensor:
        decision, finite = self._decide(x)
        if not finite.all():
            raise ValueError(
                f"outputs must be finite without a fault, got {int((~finite).sum())} of {len(finite)} inputs of a batch"
                " whose outputs are not"
            )
        return decision

    def _decide(self, x: Any) -> tuple[Tensor, Tensor]:
        """Of each row the decision, and whether its outputs are finite."""
        self.forwards += 1
        result = self.model(**x) if isinstance(x, Mapping) else self.model(x)
        if callable(self.output):
            decision = self.output(result)
            if not isinstance(decision, Tensor) or not decision.dim():
                raise ValueError(f"output must return a tensor with a first dimension, got {type(decision).__name__}")
            values = [y for y in (decision, result) if isinstance(y, Tensor) and len(y) == len(decision)]
        else:
            decision, result = _largest(result)
            values = [result]
        finite = torch.ones(len(decision), dtype=torch.bool, device=decision.device)
        for y in values:
            finite &= y.isfinite().reshape(len(y), -1).all(1)
        return decision, finite

    def trial(self, place: float) -> tuple[Any, Tensor]:
        """The input at a place in [0, 1) of all data, or the batch that it is in, and the decisions without fault."""
        row = min(int(place * self.ends[-1]), self.ends[-1] - 1)
        batch = bisect_right(self.ends, row)
        if not self.single:
            return self.inputs[batch], self._clean[batch]
        row -= self.ends[batch] - len(self._clean[batch])
        x = _row(self.inputs[batch], row, len(self._clean[batch]))
        if (batch, row) not in self._rows:  # alone it may be rounded otherwise than in its batch
            self._rows[batch, row] = self._known(x)
        return x, self._rows[batch, row]

    def compare(self, x: Any, clean: Tensor) -> tuple[float, float]:
        """The share of wrong and of not finite rows, as the model is now."""
        decision, finite = self._decide(x)
        wrong = (decision != clean).reshape(len(clean), -1).any(1) & finite
        counts = torch.stack([wrong.sum(), (~finite).sum()]).tolist()
        return counts[0] / len(clean), counts[1] / len(clean)


def _largest(result: Any) -> tuple[Tensor, Tensor]:
    logits = result if isinstance(result, Tensor) else _logits(result)
    if not isinstance(logits, Tensor) or logits.dim() < 2 or not logits.is_floating_point():
        got = f"{logits.dtype} of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(result).__name__
        raise ValueError(f"output must be a function where the model does not return logits of rows, got {got}")
    return logits.argmax(1 if logits is result else -1), logits


def _logits(result: Any) -> Any:
    return result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)


def _input(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else batch


def _row(x: Any, row: int, size: int) -> Any:
    """The input of one row, whatever it is nested in."""
    if isinstance(x, Tensor):
        return x[row : row + 1] if x.dim() and len(x) == size else x
    if isinstance(x, Mapping):
        return {key: _row(value, row, size) for key, value in x.items()}
    if isinstance(x, tuple | list):
        return type(x)(_row(value, row, size) for value in x)
    return x
