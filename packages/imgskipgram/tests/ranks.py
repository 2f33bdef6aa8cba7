"""Processes of one group that run the same code, forked from one that has loaded torch already."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """How one process ended: 0, or 1 after an exception, or less than 0 by a signal; and what it wrote."""

    code: int
    out: str
    err: str


class Ranks:
    """Where processes come from."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )

    def run(self, body: str, folder: Path, size: int = 2) -> list[Ended]:
        """Let processes run code that knows `rank`, `size`, `folder`, and the package."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        (folder / "meeting").unlink(missing_ok=True)
        self._server.stdin.write(json.dumps([body, str(folder), size]) + "\n")
        self._server.stdin.flush()
        codes = json.loads(self._server.stdout.readline())
        return [
            Ended(code, *((folder / f"{name}{rank}").read_text() for name in ("out", "err")))
            for rank, code in enumerate(codes)
        ]

    def close(self) -> None:
        self._server.communicate()


def _serve() -> None:
    import gensim.models  # noqa: F401 (which models load when they are made)
    import numpy
    import torch

    from imgskipgram import ImageBank, ImageSkipGram, distributed

    known = {"np": numpy, "torch": torch, "group": torch.distributed}
    known |= {"ImageBank": ImageBank, "ImageSkipGram": ImageSkipGram, "distributed": distributed}
    for line in sys.stdin:
        body, folder, size = json.loads(line)
        children = [_forked(body, Path(folder), rank, size, known) for rank in range(size)]
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)


def _forked(body: str, folder: Path, rank: int, size: int, known: dict[str, object]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{name}{rank}", os.O_WRONLY | os.O_CREAT), number)
        group = known["torch"].distributed  # type: ignore[attr-defined]
        group.init_process_group("gloo", f"file://{folder / 'meeting'}", rank=rank, world_size=size)
        exec(body, {**known, "rank": rank, "size": size, "folder": folder})
        if group.is_initialized():
            group.destroy_process_group()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
