"""The operator: one schema and up to three kernels, among which PyTorch's dispatcher picks: C++ for CPU tensors,
Triton for CUDA tensors, and the reference for every other device or missing kernel."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
from typing import Any

import torch

from . import _reference

# `scales`: empty, or 3 per parameter (int16, one per block of 256 elements; size 0 where a state is not uint8).
# `steps`: float32, one entry per parameter of the optimizer; index[k] is the place of params[k] in it and the stream of
# its random rounding. `hyper`: float64 [lr, beta1, beta2, beta3, eps, weight_decay], on CPU or on the device.
# `stats`: int64 [len(steps), 130]: elements, clipped elements, 64 bins of eta, 64 bins of s.
SCHEMA = """(Tensor(a!)[] params, Tensor[] grads,
    Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] exp_avg_lrs, Tensor(e!)[] scales,
    Tensor(f!) steps, int[] index, Tensor hyper, *,
    bool paper, bool bounded_decay, bool skip_unseen, bool maximize, int? seed,
    Tensor? grad_scale=None, Tensor? found_inf=None, Tensor(g!)? stats=None) -> ()"""

torch.library.define("adamod::step_", " ".join(SCHEMA.split()))
torch.library.impl("adamod::step_", "CompositeExplicitAutograd", _reference.step_)
torch.library.register_fake("adamod::step_", lambda *args, **kwargs: None)

if (_library := files(__package__) / "_C.so").is_file():
    torch.ops.load_library(str(_library))


def _launch(*args: Any, **kwargs: Any) -> None:
    from ._triton import step_ as launch  # importing triton takes longer than importing torch's own optimizers

    launch(*args, **kwargs)


if find_spec("triton"):
    torch.library.impl("adamod::step_", "CUDA", _launch)

step_ = torch.ops.adamod.step_.default

_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
KERNELS = frozenset(
    device for device, key in _KEYS.items() if torch._C._dispatch_has_kernel_for_dispatch_key("adamod::step_", key)
)
"""The device types on which `step_` has a kernel of its own."""
