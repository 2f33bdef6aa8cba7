"""`python -m cws_multidomain`: versions, and which kernels serve."""

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from . import __version__, _core


def main() -> None:
    print(f"{'cws-multidomain':<17}{__version__}")
    for name in ("numpy", "torch", "triton"):
        print(f"{name:<17}{_version(name)}")
    print(f"{'Python':<17}{platform.python_version()}\n")
    there = find_spec("torch") and find_spec("triton")
    print(f"device  kernels\ncpu     C++ ({_core.vectors()})")
    print("cuda    Triton" if there else 'cuda    none; pip install "cws-multidomain[gpu]"')


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
