"""`python -m paramcorrupt`: the command line; without arguments versions, and which kernel serves each operator."""

import platform
import sys
from importlib.util import find_spec

import torch

from . import __version__, _ops

_BUILT = {"cpu": "C++", "cuda": "Triton"}
_MISSING = {"cpu": "built without a C++ compiler", "cuda": "triton is not installed"}


def main() -> None:
    triton = "not installed"
    if find_spec("triton"):
        import triton as module

        triton = module.__version__
    print(f"paramcorrupt   {__version__}\ntorch          {torch.__version__}\ntriton         {triton}")
    print(f"Python         {platform.python_version()}")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "not available"
    print(f"CPU            {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    print(f"CUDA           {gpu}\n\n{'operator':<30}  device  kernel")
    for name in _ops.SCHEMAS:
        for device, kernel in _BUILT.items():
            served = kernel if device in _ops.KERNELS[name] else f"reference ({_MISSING[device]})"
            print(f"{'paramcorrupt::' + name:<30}  {device:<6}  {served}")
        print(f"{'paramcorrupt::' + name:<30}  others  reference")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        from .cli import main as command

        sys.exit(command())
    main()
