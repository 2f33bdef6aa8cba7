"""What a target is, and what may come of it: success, or a refusal that a person can act on; never anything else."""

from __future__ import annotations

import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
MODULES = {  # by package, what has its TARGETS
    "adamod": "of_adamod",
    "cws-multidomain": "of_cws",
    "gasam": "of_gasam",
    "imgskipgram": "of_imgskipgram",
    "iounet": "of_iounet",
    "paramcorrupt": "of_paramcorrupt",
    "vade-robust": "of_vade",
}
REFUSALS = (ValueError, TypeError, OSError, ImportError)
SECONDS = 30.0  # of processor time that one input may take
BYTES = 1 << 30  # by which one input may make the process grow


class Broken(AssertionError):
    """What was promised is not so."""


@dataclass(frozen=True)
class Target:
    """A public entry point under bytes of an enemy.

    Attributes:
        name: of it, and of its folder in `corpus`.
        run: gives the bytes to the entry point, in an empty folder, and raises `Broken` where the result is not sane.
        file: the name that a refusal must have in it; empty where no file was read.
        refusals: what may be raised.
        mend: makes checksums and lengths fit again after a mutation.
        seeds: valid inputs, from which `python -m fuzz --seeds` writes the corpus.
    """

    name: str
    run: Callable[[bytes, Path], object]
    file: str = ""
    refusals: tuple[type[Exception], ...] = REFUSALS
    mend: Callable[[bytes], bytes] | None = None
    seeds: Callable[[], list[bytes]] | None = None


def of_package(package: str, *, prepared: bool = False) -> list[Target]:
    """The targets of a package, which is imported for that, and what they share if they are to begin at once."""
    module = import_module(f"fuzz.{MODULES[package]}")
    if prepared:
        module.prepare()
    targets: list[Target] = module.TARGETS
    return targets


def need(condition: object, promise: str) -> None:
    """Raise where a promise is not kept, also under `python -O`."""
    if not condition:
        raise Broken(promise)


def attempt(target: Target, data: bytes) -> Exception | None:
    """Run a target; returns its refusal if it refused, and raises what it must not raise."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        began, grown = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        refusal = None
        try:
            target.run(data, Path(name))
        except target.refusals as error:
            _check(target, error)
            refusal = error
        took = time.process_time() - began
        need(took < SECONDS, f"{len(data)} bytes must not take {took:.0f} s")
        more = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown)
        need(more < BYTES, f"{len(data)} bytes must not take {more >> 20} MiB")
        return refusal


def _check(target: Target, error: Exception) -> None:
    """A refusal says what is wrong, in words of its own, and names the file."""
    message = str(error)
    if not message.strip():
        raise Broken(f"{type(error).__name__} without a word") from error
    if isinstance(error, UnicodeError) or type(error).__name__ == "JSONDecodeError":
        raise Broken(f"a bare {type(error).__name__}: {message}") from error
    if target.file and target.file not in message:
        raise Broken(f"{type(error).__name__} that does not name {target.file}: {message}") from error


def place(error: BaseException) -> str:
    """Where an error came from: its type and the innermost line that is not of this folder, to tell bugs apart."""
    root = error
    while isinstance(root, Broken) and root.__cause__ is not None:
        root = root.__cause__
    frames = [frame for frame in traceback.extract_tb(root.__traceback__) if Path(frame.filename).parent != HERE]
    last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
    words = re.sub(r"[^a-zA-Z ]+", "#", str(error))[:60] if isinstance(error, Broken) else ""
    return f"{type(error).__name__} {Path(last.filename).name}:{last.lineno} {words}".strip()


def corpus(target: Target) -> dict[str, bytes]:
    """The files of a target's corpus by name, decompressed."""
    import lzma

    found = {}
    for path in sorted((CORPUS / target.name).glob("*")):
        data = path.read_bytes()
        found[path.name] = lzma.decompress(data) if path.suffix == ".xz" else data
    return found


def report(error: BaseException) -> str:
    """The traceback, from the target on."""
    return "".join(traceback.format_exception(error))


def limit_memory(more: int) -> None:
    """From now on an allocation of more than that is refused to this process."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
