"""`python -m vade_robust`: versions, and which kernel serves each operator on each device type."""

import platform
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
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "not available"
    print(f"vade-robust  {__version__}\ntorch        {torch.__version__}\ntriton       {triton}")
    print(f"Python       {platform.python_version()}")
    print(f"CPU          {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    print(f"CUDA         {gpu}\n")
    print(f"{'operator':<36}  device  kernel")
    for name in _ops.SCHEMAS:
        for device, kernel in _BUILT.items():
            served = kernel if device in _ops.KERNELS[name] else f"reference ({_MISSING[device]})"
            print(f"{'vade_robust::' + name:<36}  {device:<6}  {served}")
        print(f"{'vade_robust::' + name:<36}  others  reference")


if __name__ == "__main__":
    main()
