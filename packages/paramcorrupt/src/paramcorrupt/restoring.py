"""Weights that are changed for a while and then are, bit for bit, what they were. What the change is, others decide."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ._shards import is_sharded, local, reshard
from ._tensors import parameters

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Applied", "Change", "Written", "corrupted"]


@dataclass(frozen=True, slots=True)
class Applied:
    """What of a change has arrived in the weights, whose rounding can swallow it.

    Attributes:
        changed: how many weights (of a :class:`Corruption`) or bits (of :class:`Faults`) are not what they were.
        norm: the norm of the difference, that of the change itself: its p-norm. NaN where the change has none.
    """

    changed: int
    norm: float


class Written(NamedTuple):
    """A change that is in the weights, and how to take it back.

    `whole`: `undo` writes every element of the targets, and not only those that the change touched.
    """

    changed: int
    norm: float
    undo: Callable[[], None]
    whole: bool = True


class Change(Protocol):
    """What `corrupted` applies: a `Corruption` or `Faults`."""

    def _targets(self, model: Any) -> list[Tensor]:
        """The tensors that will be written. Everything that can be refused is refused here."""

    def _write(self, targets: list[Tensor], *, keep: Literal["backup", "compact"] = "backup") -> Written:
        """Write them. Called without gradients; what it returns is undone without gradients, too."""


_open: list[corrupted] = []  # the contexts that are entered, the last one innermost
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class corrupted:
    """Hold a change in the weights of a model for the time of a `with` block.

    At the end, also by an exception or Ctrl-C, parameters and buffers have the bits and the memory that they had, and
    the training flags and torch's random number generators are as they were. Nothing is copied but the buffers and,
    for a change of all weights, these. Blocks can be nested: they end in the reverse order.

    The version counters of written weights stay raised: a graph that was recorded before the block, or in it, and that
    saved those weights, raises in `backward` afterwards instead of giving gradients of other weights. Gradients that
    the block itself accumulates in `.grad` stay there.

    Of parameters in shards each process writes its own: all that hold parts enter the block, and what it yields is of
    all parts.

    Args:
        model: what has the weights: a module, a mapping of names to tensors, (name, tensor) pairs, or tensors.
        change: a :class:`Corruption` or :class:`Faults`, by the names of whose tensors the weights are found.
        keep: "backup" (default), or "compact": of a change of all weights only 2 bits of each weight are kept, and the
            gradients that it is made of must not change in the block.

    Raises:
        ValueError, TypeError: the change does not fit the model. Nothing was written then.
        RuntimeError: at the end: the block changed weights itself, which must be taken back by hand where the change
            did not reach, or replaced, moved or deleted them; or blocks over the same weights end out of order. The
            weights are restored before.

    Example:
        >>> import torch
        >>> from paramcorrupt import corrupted, corruption
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> worst = corruption({"weight": torch.tensor([[3.0, 4.0]])}, eps=0.5)
        >>> with corrupted(model, worst) as applied:
        ...     model.weight.tolist(), applied.changed
        ([[1.2999999523162842, 1.399999976158142]], 2)
        >>> model.weight.tolist()
        [[1.0, 1.0]]
    """

    def __init__(self, model: Any, change: Change, *, keep: Literal["backup", "compact"] = "backup") -> None:
        if keep not in ("backup", "compact"):
            raise ValueError(f"keep must be 'backup' or 'compact', got {keep!r}")
        self._model = list(model) if isinstance(model, Iterator) else model
        self._change, self._keep = change, keep
        self._written: Written | None = None

    def __enter__(self) -> Applied:
        if self._written is not None:
            raise RuntimeError("this corrupted() is entered already: make another for a block within the block")
        targets = self._change._targets(self._model)
        watched = parameters(self._model, only_floating=False)
        self._around = Surroundings(self._model)
        self._watched = {name: _Watched(x) for name, x in zip(watched.names, watched.tensors, strict=True)}
        self._whole: set[int] = set()
        try:
            with uninterrupted(), torch.no_grad():
                self._written = self._change._write(targets, keep=self._keep)
                if self._written.whole:
                    self._whole.update(map(id, targets))
                self._expect()
                _open.append(self)
        except BaseException:
            if self._written is not None:
                self._leave()
            raise
        return Applied(self._written.changed, self._written.norm)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._written is None:
            return  # it was undone when a block around it ended
        try:
            later, restored, kept = self._close()
        except KeyboardInterrupt:
            self._close()  # it came before it was made to wait
            raise
        if later:
            raise RuntimeError(
                f"corrupted() ends before {later} entered after it over the same weights: all of them are undone; end "
                "the last one first"
            )
        if kind is None and (restored or kept):
            raise RuntimeError(_complaint(restored, kept))

    def _close(self) -> tuple[int, list[str], list[str]]:
        """Take back this change and those over the same weights that came later: how many, and what `_leave` gives."""
        with uninterrupted():
            if self._written is None:
                return 0, [], []
            keys = {x.key for x in self._watched.values()}
            later = [x for x in _open[_open.index(self) + 1 :] if any(y.key in keys for y in x._watched.values())]
            for inner in reversed(later):
                inner._leave()
            return len(later), *self._leave()

    def _expect(self) -> None:
        """What the weights are now is not the doing of the block."""
        for x in self._watched.values():
            x.version = _version(x.tensor)

    def _leave(self) -> tuple[list[str], list[str]]:
        """Take everything back: the names of the weights that the block changed, restored and not."""
        restored, kept = self._around.misplaced(), list[str]()
        for name, x in self._watched.items():
            if _is_moved(x.tensor, x.alias):
                restored.append(name)
            if _version(x.tensor) != x.version:
                (restored if id(x.tensor) in self._whole else kept).append(name)
        with torch.no_grad():
            if self._written is not None:
                self._written.undo()
            for x in self._watched.values():
                _put_back(x.tensor, x.alias)
            self._around.restore()
        self._written = None
        if self in _open:
            _open.remove(self)
        gained = {x.key: _version(x.tensor) - x.entered for x in self._watched.values()}
        for other in _open:
            for x in other._watched.values():
                x.entered += gained.get(x.key, 0)
                x.version += gained.get(x.key, 0)
        return [name for name in dict.fromkeys(restored) if name not in kept], kept


def _complaint(restored: list[str], kept: list[str]) -> str:
    text = f"weights were changed in the block of corrupted(): {', '.join(map(repr, restored + kept))}."
    if restored:
        text += f" Restored: {', '.join(map(repr, restored))}."
    if kept:
        text += (
            f" Restored where the change of corrupted() had touched them, and as the block left them elsewhere: "
            f"{', '.join(map(repr, kept))}."
        )
    return text


class _Watched:
    """A weight during a block: where it lies, and how often it was written."""

    __slots__ = ("alias", "entered", "key", "tensor", "version")

    def __init__(self, x: Tensor) -> None:
        self.tensor, self.alias = x, local(x)
        self.key = self.alias.data_ptr() or id(x)
        self.entered = self.version = _version(x)


class Surroundings:
    """What a pass through a model may change beside its weights: buffers, training flags, torch's random numbers; and
    which tensors are its own."""

    def __init__(self, model: Any) -> None:
        reshard(model)
        self._model = model
        modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
        self._training = [(module, module.training) for module in modules.values()]
        self._parts = [
            (name, part, dict(part))
            for name, module in modules.items()
            for part in (module._parameters, module._modules)
        ]
        self._buffers = [(module._buffers, dict(module._buffers)) for module in modules.values()]
        buffers = {id(x): x for _, part in self._buffers for x in part.values() if x is not None}
        self._values = [(x, local(x), local(x).clone()) for x in buffers.values() if not x.is_meta]
        self._random = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def misplaced(self) -> list[str]:
        """Names of parameters and modules that were replaced, added or deleted."""
        reshard(self._model)
        return [
            f"{prefix}.{name}".lstrip(".")
            for prefix, now, before in self._parts
            for name in {**before, **now}
            if now.get(name) is not before.get(name) or (name in now) != (name in before)
        ]

    def restore(self) -> None:
        """Everything as it was, where it was. Buffers that have their bits still are not written."""
        reshard(self._model)
        for module, mode in self._training:
            module.training = mode
        for _, now, before in self._parts:
            _refill(now, before)
        for buffers, originals in self._buffers:
            _refill(buffers, originals)
        with torch.no_grad():
            for x, alias, value in self._values:
                _put_back(x, alias)
                if not _same_bits(local(x), value):
                    local(x).copy_(value)
        torch.set_rng_state(self._random)
        for device, state in enumerate(self._cuda):
            torch.cuda.set_rng_state(state, device)


def _refill(now: dict[str, Any], before: dict[str, Any]) -> None:
    if list(now) != list(before) or any(now[name] is not x for name, x in before.items()):
        now.clear()
        now.update(before)


def _is_moved(x: Tensor, alias: Tensor) -> bool:
    """Whether a tensor has other memory than before, as `.data = ` and `module.to` give it."""
    if type(x) not in (Tensor, nn.Parameter) or alias.layout is not torch.strided:
        return False
    return not (x.dtype == alias.dtype and x.device == alias.device and x.is_set_to(alias))


def _put_back(x: Tensor, alias: Tensor) -> None:
    if _is_moved(x, alias):
        x.data = alias
    elif is_sharded(x) and not local(x).is_set_to(alias):  # a first pass may give shards other memory
        local(x).copy_(alias)


def _same_bits(x: Tensor, y: Tensor) -> bool:
    integer = _INTEGERS.get(x.element_size()) if x.layout is torch.strided else None
    return integer is not None and torch.equal(x.detach().view(integer), y.view(integer))


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version + (local(x)._version if is_sharded(x) else 0)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block, since between two writes it would leave the weights half changed."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    caught: list[Any] = []
    signal.signal(signal.SIGINT, lambda *arguments: caught.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if caught:
            handler(*caught[0])
