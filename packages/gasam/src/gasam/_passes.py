"""What surrounds the calls of a closure: batch statistics, random numbers, gradients that nobody needs, and DDP."""

from __future__ import annotations

import gc
import sys
import weakref
from collections import defaultdict
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from warnings import warn

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence, Set

__all__ = ["Passes"]

_RandomStates = tuple[Tensor, dict[int, Tensor]]


_Buffer = tuple[dict[str, Tensor | None], str, Tensor]


def _statistics(module: nn.Module) -> list[_Buffer]:
    """The buffers of one layer that a forward pass in training moves, each with its place."""
    buffers = module._buffers
    if "running_mean" not in buffers and not module.__dict__.get("track_running_stats", False):
        return []
    return [(buffers, name, x) for name, x in buffers.items() if x is not None and not is_lazy(x)]


def _random_states() -> _RandomStates:
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    return torch.get_rng_state(), {index: torch.cuda.get_rng_state(index) for index in cuda}


def _set_random_states(cpu: Tensor, cuda: dict[int, Tensor]) -> None:
    torch.set_rng_state(cpu)
    for index, state in cuda.items():
        torch.cuda.set_rng_state(state, index)


# Graphs that older compilers made do not notice that a parameter begins to need a gradient, and never give it one.
SKIPS_GRADIENTS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15)


def _many_processes() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _has_compiled() -> bool:
    """Whether this process has compiled anything."""
    utils = sys.modules.get("torch._dynamo.utils")
    return utils is not None and any(utils.counters.values())


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None


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
    return [child for module in everything if look(module) for child in module.modules()]


class _Saved:
    """Copies of buffers in memory that is used again, made and written back with one call for each kind of tensor."""

    def __init__(self) -> None:
        self._buffers: list[_Buffer] = []
        self._kinds: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}

    @torch.no_grad()
    def save(self, buffers: list[_Buffer]) -> None:
        self._buffers = buffers
        kinds: dict[Any, list[Tensor]] = defaultdict(list)
        for x in dict.fromkeys(x for _, _, x in buffers):
            kinds[type(x), x.device, x.dtype].append(x)
        previous, self._kinds = self._kinds, {}
        for kind, originals in kinds.items():
            copies = previous.get(kind, ([], []))[1]
            if [x.shape for x in copies] != [x.shape for x in originals]:
                copies = [torch.empty_like(x) for x in originals]
            torch._foreach_copy_(copies, originals)
            self._kinds[kind] = originals, copies

    @torch.no_grad()
    def write_back(self) -> None:
        for originals, copies in self._kinds.values():
            torch._foreach_copy_(originals, copies)
        for buffers, name, x in self._buffers:
            if buffers[name] is not x:  # a layer may have put another tensor there
                buffers[name] = x


class Passes:
    """Surrounds the clean pass of a step and its perturbed passes, so that together they leave what the clean one does.

    Running statistics stay those of the clean pass, and an exception takes them back to what they were before it.
    Random numbers can be drawn again. Modules are those given, or else those that the first perturbed pass calls.

    Args:
        module: whose layers and DDP wrappers are known from the start.
        share_dropout: whether the perturbed passes draw the random numbers of the clean pass.
        keep_batch_stats: whether running statistics are those of the clean pass.
        sync_ascent: whether DDP averages the gradients of ascents, too, and not only the last.
        only_params: the parameters that are perturbed, if not all; the others get no gradient for an ascent.
        params: all parameters, by default those of `module`.
    """

    def __init__(
        self,
        module: nn.Module | None,
        *,
        share_dropout: bool,
        keep_batch_stats: bool,
        sync_ascent: bool,
        only_params: Set[Tensor] | None = None,
        params: Sequence[Tensor] = (),
    ) -> None:
        self.share_dropout = share_dropout
        self.keep_batch_stats = keep_batch_stats
        self.sync_ascent = sync_ascent
        self.only_params = only_params
        self.params = params or (list(module.parameters()) if module is not None else [])
        self._begin_life(module)

    def _begin_life(self, *modules: nn.Module | None) -> None:
        self._given = [module for module in modules if module is not None]
        self._found: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._searched = self._hidden = False
        self._stop_search: weakref.finalize[..., Any] | None = None
        self._random: _RandomStates | None = None
        self._first, self._clean = _Saved(), _Saved()  # the statistics before the clean pass, and after it
        self._late: list[_Saved] = []  # those after the clean pass of modules found later
        self._open = False

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: self.__dict__[name]
            for name in ("share_dropout", "keep_batch_stats", "sync_ascent", "only_params", "params")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_life()

    def watch(self, module: nn.Module) -> None:
        """Make a module known, such as the DDP wrapper of parameters that were given as a list."""
        self._given.append(module)

    @contextmanager
    def clean(self) -> Iterator[None]:
        """Around the first call of the closure."""
        self.end_perturbed()
        self._first.save(self._known_statistics())
        self._random = _random_states() if self.share_dropout else None
        with self._ascending():
            try:
                yield
            except BaseException:
                self.undo()
                raise

    @contextmanager
    def perturbed(self, *, last: bool = True) -> Iterator[None]:
        """Around each further call of the closure. `last`: no other ascent follows it."""
        if self._random is not None:
            _set_random_states(*self._random)
        with nullcontext() if last else self._ascending():
            try:
                self.begin_perturbed(wrappers=True)
                yield
                self.end_perturbed()
            except BaseException:
                self._hidden = False
                self.end_perturbed()
                self._searched = False
                self.undo()
                raise

    def undo(self) -> None:
        """After an exception between the calls: take the statistics back to what they were before the clean pass."""
        self._first.write_back()

    def begin_perturbed(self, *, wrappers: bool = False) -> None:
        """Without a closure: what follows is a perturbed pass. `wrappers`: look for DDP wrappers, too."""
        self.end_perturbed()
        if not self._searched:
            self._hidden = wrappers and not self.sync_ascent and _many_processes() and not self._wrappers()
            if self._hidden or (self.keep_batch_stats and not self._given):
                self._search()
        self._clean.save(self._known_statistics())
        self._open = True

    def end_perturbed(self) -> None:
        """The perturbed pass is over. Does nothing where none has begun."""
        if not self._open:
            return
        self._open = False
        self._clean.write_back()
        for saved in self._late:
            saved.write_back()
        self._late.clear()
        if self._stop_search is not None:
            self._stop_search()
            self._stop_search = None
        hidden, self._hidden = self._hidden, False
        if hidden and any(isinstance(module, DistributedDataParallel) for module in self._found):
            warn(
                "GASAM does not know the DistributedDataParallel module of its parameters: the ascent follows the "
                "gradient of all processes, as with sync_ascent=True; for that of each process call watch(module)",
                stacklevel=2,
            )

    def _search(self) -> None:
        """Find modules that are called. The hook is global: it goes with the pass, or with this object."""
        self._searched = True
        if _has_compiled():
            self._found.update(_modules_with(self.params))
            if any(_is_compiled(module) for module in self._found):
                return  # which would warn of the hook, and not call it
        reference = weakref.ref(self)

        def find(module: nn.Module, args: Any) -> None:
            if not torch.compiler.is_compiling() and (passes := reference()) is not None:
                passes._find(module)

        self._stop_search = weakref.finalize(self, register_module_forward_pre_hook(find).remove)
        self._stop_search.atexit = False

    def _find(self, module: nn.Module) -> None:
        new = [one for one in module.modules() if one not in self._found] if module not in self._found else []
        self._found.update(new)
        if self.keep_batch_stats and (statistics := [x for one in new for x in _statistics(one)]):
            self._late.append(saved := _Saved())
            saved.save(statistics)

    def _known(self) -> Iterator[nn.Module]:
        for module in self._given:
            yield from module.modules()
        yield from self._found

    def _known_statistics(self) -> list[_Buffer]:
        return [x for module in self._known() for x in _statistics(module)] if self.keep_batch_stats else []

    def _wrappers(self) -> list[DistributedDataParallel]:
        return [one for given in self._given for one in given.modules() if isinstance(one, DistributedDataParallel)]

    @contextmanager
    def _ascending(self) -> Iterator[None]:
        """A pass whose gradient is for an ascent alone: that of this process, of the perturbed parameters."""
        with ExitStack() as stack:
            wrappers = [] if self.sync_ascent else self._wrappers()
            for wrapper in wrappers:
                stack.enter_context(wrapper.no_sync())
            # A reducer that is not told otherwise waits for the gradients of all parameters.
            if wrappers or not _many_processes():
                stack.enter_context(self._without_gradients())
            yield

    @contextmanager
    def _without_gradients(self) -> Iterator[None]:
        """Parameters that are not perturbed cost no gradient. Those of FSDP stay: it derives others from them."""
        idle = []
        if self.only_params is not None and SKIPS_GRADIENTS:
            others = [p for p in self.params if p not in self.only_params]
            idle = [p for p in others if p.requires_grad and not hasattr(p, "device_mesh")]
        try:
            for p in idle:
                p.requires_grad_(False)
            yield
        finally:
            for p in idle:
                p.requires_grad_(True)
