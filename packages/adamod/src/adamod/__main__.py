"""`python -m adamod`: versions, and which kernel serves the operator on each device type."""

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
    print(
        f"adamod   {__version__}\ntorch    {torch.__version__}\ntriton   {triton}\nPython   {platform.python_version()}"
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "not available"
    print(f"CPU      {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads\nCUDA     {gpu}\n")
    print("operator        device  kernel")
    for device, kernel in _BUILT.items():
        served = kernel if device in _ops.KERNELS else f"reference ({_MISSING[device]})"
        print(f"adamod::step_   {device:<6}  {served}")
    print("adamod::step_   others  reference")


if __name__ == "__main__":
    main()
