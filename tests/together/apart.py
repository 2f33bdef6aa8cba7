"""Functions in processes of their own, which may die, hang, and change signals, limits and threads.

Such a process is forked from a server that has imported everything once and has done nothing since. What it writes is
what pytest captures of the test.
"""

from __future__ import annotations

import faulthandler
import functools
import multiprocessing
import os
import signal
from multiprocessing import forkserver
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess

PATIENCE = 300  # seconds until a process counts as hung; on an idle machine none takes ten
IMPORTS = (
    *("gensim.models", "safetensors.torch", "sklearn.mixture", "torch._dynamo", "torchvision", "pytest"),
    *("torch.distributed.checkpoint", "torch.distributed.fsdp"),
    *("adamod", "cws_multidomain", "gasam", "imgskipgram", "iounet.detection", "iounet.training"),
    *("paramcorrupt.scanning", "vade_robust.callbacks"),
)


def limit() -> None:
    """End this process, with the traceback of all of its threads, when it hangs."""
    faulthandler.register(signal.SIGALRM, chain=True)
    signal.alarm(PATIENCE)


def start(function: Callable[..., Any], /, *arguments: Any, **named: Any) -> BaseProcess:
    """A process that calls a function of a module; it ends with 0, with 1 after an exception."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTS))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            patch.setenv(name, "1")
        forkserver.ensure_running()
    process = context.Process(target=_call, args=(function, arguments, named))
    process.start()
    return process


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    limit()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    getattr(function, "__wrapped__", function)(*arguments, **named)


def apart(test: Callable[..., None]) -> Callable[..., None]:
    """A test in a process of its own. What it is given must be picklable."""

    @functools.wraps(test)
    def run(**given: Any) -> None:
        process = start(run, **given)
        process.join()
        assert process.exitcode == 0, "the test failed in a process of its own, whose words are the captured ones"

    return pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")(run)
