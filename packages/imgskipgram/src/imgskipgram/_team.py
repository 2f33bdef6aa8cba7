"""Processes that train one model: what they tell each other, and that a failure of one ends all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ._extras import need

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from numpy.typing import NDArray

__all__ = ["Team"]

T = TypeVar("T")


class Team:
    """The processes of a group. Used as a context: who leaves it by an exception tells the others, who raise too.

    Every exchange begins with the question whether all are well. So whoever fails needs one exchange to be heard,
    wherever the others are, and nobody waits for what will not come.

    Raises:
        ImportError: torch is missing.
        RuntimeError: there is no process group.
        ValueError: this process is not of the group.
    """

    def __init__(self, group: Any) -> None:
        self._torch = need("torch", "gpu", "training by several processes")
        self._dist = self._torch.distributed
        if not (self._dist.is_available() and self._dist.is_initialized()):
            raise RuntimeError(
                "training by several processes needs a process group: call torch.distributed.init_process_group first, "
                "in each process that torchrun starts"
            )
        self._group = group
        self.rank, self.size = self._dist.get_rank(group), self._dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("group must have this process in it")
        kinds = [pair.partition(":")[0] for pair in self._dist.get_backend_config(group).split(",")]
        self._device = "cpu" if "cpu" in kinds else kinds[0]
        self._lost = False

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._lost:
            self._ask(error)

    def shared(self, make: Callable[[], T], rank: int = 0) -> T:
        """What the process with this rank makes, for all."""
        made: list[Any] = [make() if self.rank == rank else None]
        self._ask()
        self._exchange(self._dist.broadcast_object_list, made, group=self._group, group_src=rank)
        return made[0]  # type: ignore[no-any-return]

    def gathered(self, mine: T) -> list[T]:
        """What each process has, in the order of their ranks."""
        self._ask()
        return self._gathered(mine)

    def spread(self, *arrays: NDArray[Any]) -> None:
        """The first process's numbers take the place of the others'."""
        self._ask()
        for array in arrays:
            self._moved(self._dist.broadcast, array.reshape(-1).view(np.uint8), group_src=0)

    def average(self, share: float, *arrays: NDArray[Any]) -> None:
        """Means over the processes take the place of arrays of floats; the shares add up to 1."""
        self._ask()
        for array in arrays:
            array *= share
            self._moved(self._dist.all_reduce, array)

    def _ask(self, error: BaseException | None = None) -> None:
        """Raises if another process has failed; one that has failed itself only says so."""
        failed = np.array([error is not None], np.int64)
        self._moved(self._dist.all_reduce, failed)
        if not failed[0]:
            return
        reasons = self._gathered(None if error is None else f"{type(error).__name__}: {error}")
        self._lost = True
        if error is None:
            rank, reason = next((rank, reason) for rank, reason in enumerate(reasons) if reason is not None)
            raise RuntimeError(f"training ended, as the process with rank {rank} failed: {reason}")

    def _gathered(self, mine: T) -> list[T]:
        everyone: list[Any] = [None] * self.size
        self._exchange(self._dist.all_gather_object, everyone, mine, group=self._group)
        return everyone

    def _moved(self, call: Callable[..., Any], array: NDArray[Any], **options: Any) -> None:
        """An exchange of an array in place; of its own memory if the group can reach it."""
        tensor = self._torch.from_numpy(array)
        there = tensor.to(self._device)
        self._exchange(call, there, group=self._group, **options)
        if there is not tensor:
            tensor.copy_(there)

    def _exchange(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        try:
            call(*arguments, **options)
        except BaseException:
            self._lost = True  # where the others are now, nobody knows
            raise
