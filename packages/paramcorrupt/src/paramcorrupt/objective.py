"""The loss of a model over a data set, its accuracy and its gradient, measured without leaving a trace in the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ._sharded import Shards
from ._shards import distributed_as
from ._tensors import parameters
from .restoring import Surroundings, _version, uninterrupted

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Evaluation", "Loss", "Objective", "as_objective", "check_data", "evaluate", "gradient", "undisturbed"]

IGNORED = -100  # the label that torch's losses leave out


@dataclass(frozen=True)
class Objective:
    """What is measured on a batch, where a loss of (output, target) does not say it.

    Args:
        step: `step(model, batch) -> (loss_sum, count, correct)`: a 0-d tensor, the sum of the losses of the examples of
            the batch; how many these are; how many of them are right, or None where this has no meaning. A data set
            has the loss `sum(loss_sum) / sum(count)` and the accuracy `sum(correct) / sum(count)`.

    Example:
        >>> import torch
        >>> from paramcorrupt import Objective
        >>> def step(model, batch):
        ...     error = model(batch["x"]) - batch["y"]
        ...     return error.square().sum(), error.numel(), None
        >>> objective = Objective(step)
    """

    step: Callable[[Any, Any], tuple[Tensor, Any, Any]]


@dataclass(frozen=True)
class Evaluation:
    """The mean loss of `count` examples in `batches` batches, and the share of them that is right, if that is known."""

    loss: float
    accuracy: float | None
    count: int
    batches: int


Loss: TypeAlias = "str | Objective | Callable[[Any, Any], Tensor]"


# --- losses ---------------------------------------------------------------------------------------------------------


def as_objective(loss: Loss) -> Objective:
    """The objective that a loss stands for.

    Args:
        loss: one of

            - a callable of (output, target) that returns the mean over the examples of a batch, 0-d. Batches are
              (input, target). Examples are the targets that are not -100 where these are class numbers, else the first
              dimension of the target.
            - "cross_entropy": of batches (input, target), outputs of shape (batch, classes, ...) and class numbers
              (batch, ...), of which -100 is left out, or probabilities of the shape of the output.
            - "lm": of batches that are the keyword arguments of a causal language model, among these `labels`. The
              model shifts them and returns `.loss`, their mean, as those of Hugging Face do.
            - an :class:`Objective`.

    Raises:
        TypeError, ValueError: something else.
    """
    if isinstance(loss, Objective):
        return loss
    if isinstance(loss, str):
        if loss not in _NAMED:
            raise ValueError(f"loss must be 'cross_entropy', 'lm', a callable or an Objective, got {loss!r}")
        return Objective(_NAMED[loss])
    if not callable(loss):
        raise TypeError(f"loss must be 'cross_entropy', 'lm', a callable or an Objective, got {type(loss).__name__}")
    return Objective(_Mean(loss))


class _Mean:
    """The step of a callable that gives the mean of a batch."""

    def __init__(self, loss: Callable[[Any, Any], Tensor]) -> None:
        self.loss = loss
        self.ignored = getattr(loss, "ignore_index", IGNORED)

    def __call__(self, model: Any, batch: Any) -> tuple[Tensor, Any, Any]:
        x, target = _pair(batch)
        output = model(x)
        target = _on(target, output)
        mean = _scalar(self.loss(output, target))
        if _are_classes(output, target):
            count = int((target != self.ignored).sum())
            right = _right(output, target)
        else:
            count, right = _length(target, x), None
        return mean.double() * count if count else mean.new_zeros((), dtype=torch.float64), count, right


def _cross_entropy(model: Any, batch: Any) -> tuple[Tensor, Any, Any]:
    x, target = _pair(batch)
    output = model(x)
    output = getattr(output, "logits", output)
    target = _on(target, output)
    wide = output.to(torch.promote_types(output.dtype, torch.float32))
    losses = cross_entropy(wide, target, reduction="none")
    if target.is_floating_point():
        return losses.sum(dtype=torch.float64), losses.numel(), _right(output, target.argmax(_classes(output)))
    return losses.sum(dtype=torch.float64), (target != IGNORED).sum(), _right(output, target)


def _language_model(model: Any, batch: Any) -> tuple[Tensor, Any, Any]:
    if not isinstance(batch, Mapping) or "labels" not in batch:
        raise ValueError(f"a batch for the loss 'lm' must be a mapping with labels, got {_described(batch)}")
    output = model(**batch)
    mean, logits, labels = (_part(output, "loss"), _part(output, "logits"), batch["labels"])
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        labels = labels[..., 1:]
        logits = None if logits is None else logits[..., :-1, :]
    if mean is None:
        raise ValueError("the model must return an object with a loss for the loss 'lm', got none")
    count = int((labels != IGNORED).sum())
    right = None
    if logits is not None and logits.shape[:-1] == labels.shape:
        right = _right(logits.flatten(0, -2), _on(labels, logits).flatten())
    mean = _scalar(mean)
    return mean.double() * count if count else mean.new_zeros((), dtype=torch.float64), count, right


_NAMED = {"cross_entropy": _cross_entropy, "lm": _language_model}


def _pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"a batch must be (input, target) unless the loss is an Objective, got {_described(batch)}")
    return batch[0], batch[1]


def _described(batch: Any) -> str:
    size = f" of {len(batch)}" if isinstance(batch, tuple | list | Mapping) else ""
    return f"{type(batch).__name__}{size}"


def _part(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _on(target: Any, output: Any) -> Any:
    """The target where the output is: a model that is spread over devices ends on another than it begins."""
    return target.to(output.device) if isinstance(target, Tensor) and isinstance(output, Tensor) else target


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.dim():
        got = f"the shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"loss must be a 0-d tensor, got {got}")
    return loss


def _classes(output: Tensor) -> int:
    """The dimension of classes, as torch's losses have it."""
    return 1 if output.dim() > 1 else 0


def _are_classes(output: Any, target: Any) -> bool:
    if not (isinstance(output, Tensor) and isinstance(target, Tensor)) or output.dim() < 2:
        return False
    return target.dtype is torch.int64 and target.shape == output.shape[:1] + output.shape[2:]


def _right(output: Tensor, target: Tensor) -> Tensor:
    """How many targets are the class of the largest output. No class is the largest where one is NaN or infinite."""
    largest, place = output.detach().max(_classes(output))
    return ((place == target) & largest.isfinite()).sum()


def _length(*candidates: Any) -> int:
    """The first dimension of the first tensor; 1 where there is none."""
    for x in candidates:
        if isinstance(x, Tensor):
            return x.shape[0] if x.dim() else 1
        inner = list(x.values()) if isinstance(x, Mapping) else x
        if isinstance(inner, tuple | list) and any(isinstance(y, Tensor | Mapping | tuple | list) for y in inner):
            return _length(*inner)
    return 1


# --- data -----------------------------------------------------------------------------------------------------------


def check_data(data: Any) -> None:
    """Data is gone through several times.

    Raises:
        TypeError: it can be gone through only once, or not at all.
        ValueError: it is empty.
    """
    if isinstance(data, Iterator) or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        raise TypeError(f"data must be re-iterable, such as a list or a DataLoader of batches, got {_described(data)}")
    if isinstance(data, Tensor | str | bytes | Mapping):
        raise TypeError(f"data must be a list, a DataLoader or the like of batches, got {_described(data)}")
    try:
        empty = len(data) == 0
    except TypeError:  # it does not know its length
        random = torch.get_rng_state()
        empty = next(iter(data), None) is None
        torch.set_rng_state(random)
    if empty:
        raise ValueError("data must have at least one batch, got none")


def _moved(x: Any, device: torch.device) -> Any:
    """A batch on a device, whatever it is nested in."""
    if hasattr(x, "to"):
        return x.to(device)
    if isinstance(x, Mapping):
        return {key: _moved(value, device) for key, value in x.items()}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(_moved(value, device) for value in x))
    if isinstance(x, tuple | list):
        return type(x)(_moved(value, device) for value in x)
    return x


def _device(model: nn.Module) -> torch.device:
    return next((x.device for x in (*model.parameters(), *model.buffers())), torch.device("cpu"))


# --- passes ---------------------------------------------------------------------------------------------------------


@dataclass
class _Tally:
    """Sums over batches, which wait on the device until the last one."""

    losses: list[Tensor] = field(default_factory=list)
    counts: list[Any] = field(default_factory=list)
    corrects: list[Any] = field(default_factory=list)

    def add(self, loss: Tensor, count: Any, correct: Any) -> None:
        self.losses.append(loss.detach())
        self.counts.append(count)
        self.corrects.append(correct)

    def evaluation(self) -> Evaluation:
        count = sum(int(x) for x in self.counts)
        if not count:
            raise ValueError(f"data must have at least one example, got none in {len(self.losses)} batches")
        losses = [x.item() for x in self.losses]
        loss = math.fsum(losses) if all(map(math.isfinite, losses)) else sum(losses)
        known = all(x is not None for x in self.corrects)
        accuracy = sum(int(x) for x in self.corrects) / count if known else None
        return Evaluation(loss / count, accuracy, count, len(losses))


def _steps(model: nn.Module, objective: Objective, data: Iterable[Any]) -> Iterator[tuple[Tensor, Any, Any]]:
    device = _device(model)
    for batch in data:
        loss, count, correct = objective.step(model, _moved(batch, device))
        yield _scalar(loss), count, correct


def evaluate(model: nn.Module, objective: Objective, data: Iterable[Any]) -> Evaluation:
    """The loss and the accuracy over all batches, weighted by their counts; one forward for each.

    A loss that is not finite is a result like any other. Buffers and random numbers are taken back, so that the next
    pass begins as this one did.

    Raises:
        ValueError: the loss of a batch is not 0-d, or no batch has an example.
    """
    tally = _Tally()
    with _rewound(model), torch.no_grad():
        for step in _steps(model, objective, data):
            tally.add(*step)
    return _agreed(model, tally.evaluation())


def _agreed(model: nn.Module, found: Evaluation) -> Evaluation:
    """What all processes found that hold parts of a model: those of the first, from which no other may differ by more
    than a device may.

    Raises:
        ValueError: they had other data.
    """
    named = parameters(model)
    shards = Shards.of(named.tensors, named.names, "parameter")
    if shards.mesh is None:
        return found
    rate = math.nan if found.accuracy is None else found.accuracy
    rows = shards.rows(torch.tensor([found.loss, found.count, rate], dtype=torch.float64)).tolist()
    loss, count, rate = rows[0]
    for other, number, _ in rows:
        same = math.isclose(other, loss, rel_tol=1e-4, abs_tol=1e-6) or (math.isnan(other) and math.isnan(loss))
        if number != count or not same:
            raise ValueError(
                "data must be the same in all processes that hold parts of the model, got losses"
                f" {loss:g} and {other:g} of {count:.0f} and {number:.0f} examples"
            )
    return replace(found, loss=loss, accuracy=None if found.accuracy is None else rate)


def gradient(model: nn.Module, objective: Objective, data: Iterable[Any]) -> tuple[Evaluation, dict[str, Tensor]]:
    """What `evaluate` gives, and the gradient of that loss by the parameters that have one; one forward and backward
    for each batch.

    The gradients are new tensors of the dtype of their parameters, in which they are summed. `.grad` holds them on the
    way, so that hooks see them, and then what it held before.

    Raises:
        ValueError: the loss is not 0-d, not finite, or does not depend on a parameter that requires a gradient.
        RuntimeError: parameters were written, by the model or by a hook.
    """
    evaluation, grads = raw_gradient(model, objective, data)
    if not math.isfinite(evaluation.loss):
        raise ValueError(f"the loss of the unchanged model must be finite, got {evaluation.loss}")
    return evaluation, grads


def raw_gradient(model: nn.Module, objective: Objective, data: Iterable[Any]) -> tuple[Evaluation, dict[str, Tensor]]:
    """What `gradient` gives, also where the loss is not finite, which that of corrupted weights need not be."""
    named = parameters(model)
    before = [x.grad for x in named.tensors]
    versions = [_version(x) for x in named.tensors]
    tally, unit = _Tally(), 0
    try:
        for x in named.tensors:
            x.grad = None
        with _rewound(model), torch.inference_mode(False), torch.enable_grad():
            for loss, count, correct in _steps(model, objective, data):
                tally.add(loss, count, correct)
                unit = unit or int(count)  # sums of all examples could leave the range of half precision
                if unit and loss.requires_grad:
                    (loss / unit).backward()
        evaluation = tally.evaluation()
        found = ((name, distributed_as(x, x.grad)) for name, x in zip(named.names, named.tensors, strict=True))
        grads = {name: grad for name, grad in found if grad is not None}
    finally:
        for x, grad in zip(named.tensors, before, strict=True):
            x.grad = grad
    if written := [name for name, x, v in zip(named.names, named.tensors, versions, strict=True) if _version(x) != v]:
        raise RuntimeError(f"parameters must not be written while a gradient is taken, but the model wrote {written}")
    if not grads:
        raise ValueError("loss must depend on parameters that require a gradient, got a gradient of none")
    if unit != evaluation.count:
        with torch.no_grad():
            for grad in grads.values():
                grad.mul_(unit / evaluation.count)
    return _agreed(model, evaluation), grads


@contextmanager
def _rewound(model: nn.Module) -> Iterator[None]:
    around = Surroundings(model)
    try:
        yield
    finally:
        around.restore()


@contextmanager
def undisturbed(model: nn.Module, mode: Literal["eval", "keep"] = "eval") -> Iterator[None]:
    """Around passes that leave no trace: training flags, buffers, `.grad` and random numbers are as before at the end.

    Within it `.grad` is empty, and float32 is float32: TF32 and other lower precision of matrix products is off. `mode`
    "eval" puts the model into evaluation mode, "keep" leaves every module in the mode it has.
    """
    if mode not in ("eval", "keep"):
        raise ValueError(f"mode must be 'eval' or 'keep', got {mode!r}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    around = Surroundings(model)
    grads = [(x, x.grad) for x in model.parameters()]
    places = _precisions()
    precisions = [place.fp32_precision for place in places]
    try:
        for x, _ in grads:
            x.grad = None
        for place in places:
            place.fp32_precision = "ieee"
        if mode == "eval":
            model.eval()
        yield
    finally:
        with uninterrupted():
            for x, grad in grads:
                x.grad = grad
            for place, precision in zip(places, precisions, strict=True):
                place.fp32_precision = precision
            around.restore()


def _precisions() -> list[Any]:
    """Where torch keeps the precision of float32 operations."""
    backends: Any = torch.backends
    return [
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.rnn,
    ]
