"""`python -m imgskipgram`: the command line; without arguments versions, and which kernels serve."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from . import __version__, _core


def main() -> None:
    print(f"{'imgskipgram':<13}{__version__}")
    for name in ("gensim", "numpy", "torch", "triton"):
        print(f"{name:<13}{_version(name)}")
    print(f"{'Python':<13}{platform.python_version()}\n")
    there = find_spec("torch") and find_spec("triton")
    print(f"device  kernels\ncpu     C++ ({_core.vectors()})")
    print("cuda    Triton" if there else 'cuda    none; pip install "imgskipgram[gpu]"')


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        from .cli import main as command

        sys.exit(command())
    main()
