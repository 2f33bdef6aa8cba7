"""What forward passes move in a model's buffers, such as batch statistics: it stays as the clean pass left it."""

from __future__ import annotations

import gc
import sys
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class _Buffer(NamedTuple):
    """A buffer before a pass: its place, and what tells whether it was moved."""

    owner: dict[str, Tensor | None]
    name: str
    tensor: Tensor
    version: int
    is_statistic: bool  # kernels of batch normalisation move these, and count no version

    def has_moved(self) -> bool:
        now = self.owner.get(self.name)
        return self.is_statistic or now is not self.tensor or _version(now) != self.version


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _buffers(modules: Iterable[nn.Module]) -> list[_Buffer]:
    return [
        _Buffer(
            owner := module._buffers,
            name,
            x,
            _version(x),
            "running_mean" in owner or bool(module.__dict__.get("track_running_stats")),
        )
        for module in modules
        for name, x in module._buffers.items()
        if x is not None and not is_lazy(x)
    ]


def _has_compiled() -> bool:
    """Whether this process has compiled anything."""
    utils = sys.modules.get("torch._dynamo.utils")
    return utils is not None and any(utils.counters.values())


def _modules_with(params: Sequence[Tensor]) -> list[nn.Module]:
    """Modules that hold one of the parameters, those that contain them, and all that these contain.

    Compiled code calls no hooks. This takes some tens of milliseconds.
    """
    wanted = set(map(id, params))
    holds: dict[int, bool] = {}

    def look(module: nn.Module) -> bool:
        if id(module) not in holds:
            own = any(id(p) in wanted for p in module._parameters.values())
            holds[id(module)] = any([own, *(look(child) for child in module.children())])
        return holds[id(module)]

    everything = [x for x in gc.get_objects() if issubclass(type(x), nn.Module) and "_parameters" in x.__dict__]
    return list(dict.fromkeys(child for module in everything if look(module) for child in module.modules()))


class Passes:
    """Surrounds the clean pass of a step, and its perturbed passes, which then leave no trace in buffers.

    Args:
        module: whose layers are known from the start. Without it they are those that the first clean pass calls.
        params: by which compiled modules are found.
    """

    def __init__(self, module: nn.Module | None, params: Sequence[Tensor]) -> None:
        self.module = module
        self.params = params
        self._begin_life()

    def _begin_life(self) -> None:
        self._found: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._is_searched = self.module is not None
        self._places: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
        self._copies: list[Tensor] = []

    def __getstate__(self) -> dict[str, object]:
        return {"module": self.module, "params": self.params}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._begin_life()

    @contextmanager
    def clean(self) -> Iterator[None]:
        """Around the first call of the closure."""
        before = _buffers(self._found if self.module is None else self.module.modules())
        with self._search(before):
            yield
        self._save([buffer for buffer in before if buffer.has_moved()])

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Around each further call."""
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_([x for _, _, x in self._places], self._copies) if self._places else None
            for owner, name, x in self._places:
                if owner.get(name) is not x:  # a layer has put another tensor there
                    owner[name] = x

    @torch.no_grad()
    def _save(self, moved: list[_Buffer]) -> None:
        places = {}
        for buffer in moved:
            if (x := buffer.owner.get(buffer.name)) is not None:
                places[id(buffer.owner), buffer.name] = (buffer.owner, buffer.name, x)
        self._places = list(places.values())
        tensors = [x for _, _, x in self._places]
        if [(x.shape, x.dtype, x.device) for x in tensors] != [(x.shape, x.dtype, x.device) for x in self._copies]:
            self._copies = [torch.empty_like(x) for x in tensors]
        if tensors:
            torch._foreach_copy_(self._copies, tensors)

    @contextmanager
    def _search(self, before: list[_Buffer]) -> Iterator[None]:
        """Once, find the modules that are called, and their buffers before that."""
        if self._is_searched:
            yield
            return
        if _has_compiled():
            self._found.update(_modules_with(self.params))
            before.extend(_buffers(self._found))
            if any("_orig_mod" in one._modules or one._compiled_call_impl is not None for one in self._found):
                self._is_searched = True  # a compiled module would warn of a hook, and not call it
                yield
                return

        def find(module: nn.Module, args: object) -> None:
            if not torch.compiler.is_compiling() and module not in self._found:
                new = [one for one in module.modules() if one not in self._found]
                self._found.update(new)
                before.extend(_buffers(new))

        handle = register_module_forward_pre_hook(find)
        try:
            yield
        finally:
            handle.remove()
        self._is_searched = True
