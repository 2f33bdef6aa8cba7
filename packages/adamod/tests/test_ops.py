"""The kernels of the operator against its reference: C++ on CPU, Triton interpreted on CPU, and Triton on a GPU."""

from __future__ import annotations

import copy
import math
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from importlib.resources import files
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from adamod import _ops, _reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BFLOAT16, FLOAT16, FLOAT32, FLOAT64, INT8 = torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.uint8
SIZES = (0, 1, 2, 31, 1023, 1025, 4096, 5003)
TIMES = (1, 2, 10, 1000, 10**6)
USUAL = (1e-2, 0.9, 0.999, 0.97, 1e-3, 0.1)  # lr, beta1, beta2, beta3, eps, weight_decay
# With these and few-bit gradients every product is exact, so that nothing depends on whether multiply-adds are fused.
EXACT = (2.0**-6, 0.5, 0.5, 0.5, 1e-8, 0.0)
STATES = ("exp_avgs", "exp_avg_sqs", "exp_avg_lrs")
FLAGS: dict[str, dict[str, Any]] = {
    "code": {},
    "paper": {"paper": True},
    "bounded_decay": {"bounded_decay": True},
    "skip_unseen": {"skip_unseen": True},
    "maximize": {"maximize": True},
    "all": {"paper": True, "bounded_decay": True, "skip_unseen": True, "maximize": True},
}
EVERY_FLAG = pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)


# --- the implementations --------------------------------------------------------------------------------------------


@dataclass
class Implementation:
    step: Callable[..., None]
    device: str
    samples: int  # for a statistical test: fewer where it takes long


def cpp() -> Implementation:
    if "cpu" not in _ops.KERNELS:
        pytest.skip("the package was built without its C++ kernels")
    return Implementation(_ops.step_, "cpu", 100_000)


@pytest.fixture(params=["cpp", "triton", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernel(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    if request.param == "cpp":
        yield cpp()
    elif request.param == "cuda":
        if "cuda" not in _ops.KERNELS or not torch.cuda.is_available() or os.environ["TRITON_INTERPRET"] == "1":
            pytest.skip("this needs a CUDA device, Triton and TRITON_INTERPRET=0")
        yield Implementation(_ops.step_, "cuda", 100_000)
    else:
        pytest.importorskip("triton", reason="there is no Triton here")
        if os.environ["TRITON_INTERPRET"] != "1":
            pytest.skip("Triton is compiled here, not interpreted")
        from adamod import _triton

        with np.errstate(all="ignore"):
            yield Implementation(_triton.step_, "cpu", 5_000)


# --- calls ----------------------------------------------------------------------------------------------------------


def copied(x: Tensor, device: str | None = None) -> Tensor:
    """A copy with all memory of the original, also that outside the view."""
    storage = torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage())
    return storage.to(device or x.device, copy=True).as_strided(x.shape, x.stride(), x.storage_offset())


def outside(x: Tensor) -> Tensor:
    """The memory around a view."""
    storage = torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage())
    inside = torch.zeros_like(storage, dtype=torch.bool)
    inside.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(True)
    return storage[~inside]


def bits(x: Tensor) -> Tensor:
    return x.contiguous().flatten().view(torch.uint8)


def assert_same(x: Tensor, y: Tensor) -> None:
    """Equal bits, but for those of a NaN."""
    assert x.dtype == y.dtype
    assert x.shape == y.shape
    x, y = x.cpu(), y.cpu()
    assert bool(((x == y) | ((x != x) & (y != y))).all())


@dataclass
class Call:
    """The arguments of the operator."""

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    exp_avg_lrs: list[Tensor]
    scales: list[Tensor]
    steps: Tensor
    index: list[int]
    hyper: tuple[float, ...]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def lists(self) -> tuple[list[Tensor], ...]:
        return self.params, self.grads, self.exp_avgs, self.exp_avg_sqs, self.exp_avg_lrs, self.scales

    @property
    def tensors(self) -> list[Tensor]:
        return [x for xs in self.lists for x in xs] + [self.steps]

    def copy(self, device: str | None = None) -> Call:
        options = {k: copied(x, device) if isinstance(x, Tensor) else x for k, x in self.options.items()}
        lists = ([copied(x, device) for x in xs] for xs in self.lists)
        return Call(*lists, copied(self.steps, device), self.index, self.hyper, options)

    def flattened(self) -> Call:
        """The same step of contiguous vectors: every tensor in the memory order of its parameter."""
        order = [_reference.memory_order(p) for p in self.params]
        lists = ([x.permute(o).flatten().clone() for x, o in zip(xs, order, strict=True)] for xs in self.lists[:5])
        return Call(*lists, self.scales, self.steps, self.index, self.hyper, self.options).copy()

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        defaults = {"paper": False, "bounded_decay": False, "skip_unseen": False, "maximize": False, "seed": 0}
        hyper = torch.tensor(self.hyper, dtype=FLOAT64)
        return (*self.lists, self.steps, self.index, hyper), defaults | self.options

    def run(self, step: Callable[..., None], times: int = 1) -> Call:
        """Run in place."""
        args, kwargs = self.arguments()
        for _ in range(times):
            step(*args, **kwargs)
        return self

    def after(self, kernel: Implementation, times: int = 1) -> Call:
        """The call after a kernel has run; this one stays as it is."""
        return self.copy(kernel.device).run(kernel.step, times)

    def expected(self, times: int = 1) -> Call:
        """The call after the reference has run, with exact square roots: those of MKL are sometimes rounded wrongly."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tensor, "sqrt", lambda x: torch.from_numpy(np.asarray(np.sqrt(x.numpy()))))
            return self.copy().run(_reference.step_, times)


def assert_same_call(actual: Call, expected: Call, *names: str) -> None:
    for name in names or ("params", *STATES, "scales"):
        for x, y in zip(getattr(actual, name), getattr(expected, name), strict=True):
            assert_same(x, y.view(x.shape))
    assert_same(actual.steps, expected.steps)
    if "stats" in expected.options:
        assert_same(actual.options["stats"], expected.options["stats"])


def make_call(
    shapes: Sequence[int | tuple[int, ...]],
    *,
    dtype: torch.dtype = FLOAT32,
    grad: torch.dtype | None = None,
    states: Sequence[torch.dtype] | None = None,
    t: int = 2,
    hyper: tuple[float, ...] = EXACT,
    seed: int = 0,
    stats: bool = False,
    **options: Any,
) -> Call:
    """A step in the midst of training: few-bit gradients, of which some are 0, and states of any dtype."""
    generator = torch.Generator().manual_seed(seed)
    kinds = states or (FLOAT64 if dtype == FLOAT64 else FLOAT32,) * 3
    sizes = [(n,) if isinstance(n, int) else n for n in shapes]
    scales = []

    def integers(low: int, high: int, size: tuple[int, ...]) -> Tensor:
        return torch.randint(low, high, size, generator=generator).float()

    def state(size: tuple[int, ...], kind: torch.dtype, role: int, value: Tensor) -> Tensor:
        blocks = -(-math.prod(size) // _reference.BLOCK) if kind == INT8 else 0
        scales.append(torch.full((blocks,), 890 if role == 0 else 762, dtype=torch.int16))
        return integers(0, 256, size).to(INT8) if kind == INT8 else value.to(kind)

    lists: list[list[Tensor]] = [[], [], [], [], []]
    for size in sizes:
        made = [torch.randn(size, generator=generator), integers(-8, 9, size) / 8]
        made += [integers(-8, 9, size) / 16, (integers(0, 9, size) / 8) ** 2]
        made.append(torch.rand(size, generator=generator) / 32)
        unseen = (torch.rand(size, generator=generator) < 0.2) & (made[0] > 0)
        for x in made[1:4]:
            x[unseen] = 0
        values = [made[0].to(dtype), made[1].to(grad or dtype)]
        values += [state(size, kinds[k], k, made[2 + k]) for k in range(3)]
        for xs, x in zip(lists, values, strict=True):
            xs.append(x)
    count = len(sizes)
    if stats:
        options["stats"] = torch.zeros(count + 1, 130, dtype=torch.int64)
    index = [(k + 2) % (count + 1) for k in range(count)]
    steps = torch.full((count + 1,), t - 1.0)
    steps[index] += 3 * torch.arange(count)
    return Call(*lists, scales if INT8 in kinds else [], steps, index, hyper, options)


# --- the compiled kernel --------------------------------------------------------------------------------------------


def test_cpu_kernel_is_registered() -> None:
    if "cpu" not in _ops.KERNELS and not shutil.which(os.environ.get("CXX", "c++")):
        pytest.skip("there is no C++ compiler, so the package was built without its kernels")
    assert torch._C._dispatch_has_kernel_for_dispatch_key("adamod::step_", "CPU")


def test_the_library_approximates_nothing() -> None:
    """Exact roots and divisions: no reciprocal instructions, no vector math library, roots in vectors."""
    cpp()
    if not shutil.which("objdump"):
        pytest.skip("objdump, of binutils, is not installed")
    code = subprocess.run(
        ["objdump", "-dT", "--no-show-raw-insn", str(files("adamod") / "_C.so")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert not re.search(r"\sv?(rsqrt|rcp)(14|28)?[ps][sd]\s|_ZGV|libmvec", code)
    if "sqrtps" in code:  # x86-64
        assert re.search(r"vsqrtps .*%zmm", code)
        assert re.search(r"vsqrtps .*%ymm", code)
        assert re.search(r"vsqrtpd .*%zmm", code)


# --- the 2x rule ----------------------------------------------------------------------------------------------------


def evaluate(call: Call, k: int) -> dict[str, Any]:
    """The equations of the paper and of the official code, in extended precision."""
    p, g, m, v, s = (xs[k].double().numpy().astype(np.longdouble) for xs in call.lists[:5])
    lr, b1, b2, b3, eps, weight_decay = (np.longdouble(x) for x in call.hyper)
    t = np.longdouble(call.steps[call.index[k]].item() + 1)
    flags = {"paper": False, "bounded_decay": False, "skip_unseen": False, "maximize": False, **call.options}
    if "grad_scale" in flags:
        g = g / np.longdouble(flags["grad_scale"].item())
    if flags["maximize"]:
        g = -g
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g * g
    c1, c2 = 1 - b1**t, 1 - b2**t
    eta = lr / (np.sqrt(v / c2) + eps) if flags["paper"] else lr * np.sqrt(c2) / c1 / (np.sqrt(v) + eps)
    u = m / c1 if flags["paper"] else m
    s = np.where((v != 0) | (not flags["skip_unseen"]), b3 * s + (1 - b3) * eta, s)
    ratio = np.where(s >= eta, 1, s / eta) if flags["bounded_decay"] else 1
    p = p * (1 - lr * weight_decay * ratio)
    return {"params": p - np.minimum(eta, s) * u, "exp_avgs": m, "exp_avg_sqs": v, "exp_avg_lrs": s}


def realistic(call: Call, seed: int = 1) -> Call:
    """Gradients over ten decades, and the states that such gradients leave."""
    generator = torch.Generator().manual_seed(seed)

    def normal(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=FLOAT64)

    for p, g, m, v, s in zip(*call.lists[:5], strict=True):
        scale = 10.0 ** (torch.rand(p.shape, generator=generator, dtype=FLOAT64) * 10 - 6)
        scale[torch.rand(p.shape, generator=generator) < 0.1] = 0
        g.copy_(scale * normal(g))
        m.copy_(scale * normal(m))
        v.copy_(scale**2 * normal(v) ** 2)
        s.copy_(call.hyper[0] / (scale + call.hyper[4]) * 10 ** normal(s))
    return call


@EVERY_FLAG
@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_error_is_within_twice_that_of_the_reference(
    kernel: Implementation, dtype: torch.dtype, t: int, flags: dict[str, Any], assert_within_twice: Callable[..., None]
) -> None:
    call = realistic(make_call([1025], dtype=dtype, t=t, hyper=USUAL, **flags))
    actual, reference, exact = call.after(kernel), call.copy().run(_reference.step_), evaluate(call, 0)
    for name, value in exact.items():
        assert_within_twice(*(getattr(c, name)[0] for c in (actual, reference)), value, getattr(call, name)[0])
    assert actual.steps[call.index[0]] == t


@pytest.mark.parametrize("grad_scale", [65536.0, 3.0, -0.1])
def test_error_under_grad_scale_is_within_twice_that_of_the_reference(
    kernel: Implementation, grad_scale: float, assert_within_twice: Callable[..., None]
) -> None:
    call = realistic(make_call([1025], t=10, hyper=USUAL, grad_scale=torch.tensor(grad_scale)))
    actual, reference, exact = call.after(kernel), call.copy().run(_reference.step_), evaluate(call, 0)
    for name, value in exact.items():
        assert_within_twice(*(getattr(c, name)[0] for c in (actual, reference)), value, getattr(call, name)[0])


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
@pytest.mark.parametrize("seed", [None, 5])
def test_error_of_a_small_parameter_is_within_twice_that_of_the_reference(
    kernel: Implementation, dtype: torch.dtype, seed: int | None, assert_within_twice: Callable[..., None]
) -> None:
    call = make_call([1025], dtype=dtype, states=(dtype,) * 3, t=10, hyper=USUAL)
    call.options["seed"] = seed
    actual, reference, exact = call.after(kernel), call.copy().run(_reference.step_), evaluate(call, 0)
    for name, value in exact.items():
        assert_within_twice(*(getattr(c, name)[0] for c in (actual, reference)), value, getattr(call, name)[0])


# --- bits -----------------------------------------------------------------------------------------------------------


MIXTURES = {
    "float32": (FLOAT32, None, None),
    "float64": (FLOAT64, None, None),
    "bfloat16": (BFLOAT16, None, None),
    "float16": (FLOAT16, None, None),
    "bfloat16 states": (FLOAT32, None, (BFLOAT16,) * 3),
    "bfloat16 exp_avg_lr": (FLOAT32, None, (FLOAT32, FLOAT32, BFLOAT16)),
    "int8 states": (FLOAT32, None, (INT8,) * 3),
    "int8 exp_avg_sq": (FLOAT32, None, (BFLOAT16, INT8, FLOAT32)),
    "bfloat16 with bfloat16 states": (BFLOAT16, None, (BFLOAT16,) * 3),
    "bfloat16 with int8 states": (BFLOAT16, None, (INT8,) * 3),
    "bfloat16 with float32 gradients": (BFLOAT16, FLOAT32, None),
    "float16 with float32 gradients": (FLOAT16, FLOAT32, (BFLOAT16, FLOAT32, FLOAT16)),
    "float32 with bfloat16 gradients": (FLOAT32, BFLOAT16, (FLOAT16,) * 3),
    "float32 with float16 gradients": (FLOAT32, FLOAT16, (INT8, FLOAT32, BFLOAT16)),
    "float32 with float64 states": (FLOAT32, FLOAT64, (FLOAT64,) * 3),
    "float64 with float32 states": (FLOAT64, FLOAT32, (FLOAT32,) * 3),
    "float64 with small states": (FLOAT64, BFLOAT16, (FLOAT16, BFLOAT16, INT8)),
}
EVERY_MIXTURE = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
TWO_SEEDS = pytest.mark.parametrize("seed", [None, 7])


@EVERY_MIXTURE
@TWO_SEEDS
def test_states_and_scales_and_counts_equal_the_reference(
    kernel: Implementation, mixture: tuple[Any, ...], seed: int | None
) -> None:
    dtype, grad, states = mixture
    call = make_call([31, 1, 1025, 0], dtype=dtype, grad=grad, states=states, stats=True)
    call.options["seed"] = seed
    before = [bits(g) for g in call.grads]
    actual, expected = call.after(kernel), call.expected()
    assert_same_call(actual, expected, *STATES, "scales")
    assert all(torch.equal(bits(g.cpu()), b) for g, b in zip(actual.grads, before, strict=True))


@EVERY_MIXTURE
@TWO_SEEDS
def test_parameters_equal_the_reference_where_every_product_is_exact(
    kernel: Implementation, mixture: tuple[Any, ...], seed: int | None
) -> None:
    dtype, grad, states = mixture
    call = make_call(
        [1025, 31], dtype=dtype, grad=grad, states=states, t=1, hyper=(0.5, 0.5, 0.5, 0.5, 0.0, 0.0), paper=True
    )
    call.options["seed"] = seed
    call.steps.zero_()
    generator = torch.Generator().manual_seed(3)
    for k, g in enumerate(call.grads):
        sign = torch.randn(g.shape, generator=generator).sign()
        g.copy_(2.0 ** torch.randint(-3, 4, g.shape, generator=generator) * sign)
        for name in STATES:
            getattr(call, name)[k].zero_()
    assert_same_call(call.after(kernel), call.expected())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("states", [(FLOAT32,) * 3, (BFLOAT16,) * 3, (INT8,) * 3], ids=["float32", "bfloat16", "int8"])
def test_every_size(kernel: Implementation, size: int, states: tuple[torch.dtype, ...]) -> None:
    call = make_call([size], states=states, stats=True)
    assert_same_call(call.after(kernel), call.expected(), *STATES, "scales")


@EVERY_FLAG
@pytest.mark.parametrize("t", TIMES)
def test_states_under_every_flag_equal_the_reference(kernel: Implementation, flags: dict[str, Any], t: int) -> None:
    call = make_call([1025], states=(BFLOAT16, FLOAT32, INT8), t=t, stats=True, **flags)
    assert_same_call(call.after(kernel), call.expected(), *STATES, "scales")


def test_parameters_of_different_ages_and_dtypes_in_one_list(kernel: Implementation) -> None:
    calls = [make_call([33, 700], dtype=d, grad=g, states=s, seed=k) for k, (d, g, s) in enumerate(MIXTURES.values())]
    joined = Call(*([x for c in calls for x in c.lists[k]] for k in range(5)), [], torch.empty(0), [], EXACT)
    joined.scales = [x for c in calls for x in (c.scales or [torch.empty(0, dtype=torch.int16)] * 6)]
    count = len(joined.params)
    joined.steps = torch.arange(count + 5).float() * 7
    joined.index = torch.randperm(count + 5, generator=torch.Generator().manual_seed(0))[:count].tolist()
    joined.options["stats"] = torch.zeros(count + 5, 130, dtype=torch.int64)
    actual, expected = joined.after(kernel), joined.expected()
    assert_same_call(actual, expected, *STATES, "scales")
    touched = actual.steps.cpu() != joined.steps
    assert touched.nonzero().flatten().tolist() == sorted(joined.index)


def test_a_call_without_parameters_does_nothing(kernel: Implementation) -> None:
    call = make_call([], stats=True)
    assert_same_call(call.after(kernel), call)


def test_complex_parameters_as_pairs_of_real_numbers(kernel: Implementation) -> None:
    call = make_call([(40, 2)])
    real = call.copy()
    for xs in real.lists[:5]:
        xs[0] = torch.view_as_real(torch.view_as_complex(xs[0]))
    actual, expected = real.after(kernel), call.after(kernel)
    assert_same_call(actual, expected)


# --- layouts --------------------------------------------------------------------------------------------------------


def strided(x: Tensor, order: Sequence[int], gap: int = 0, offset: int = 0) -> Tensor:
    """`x` in memory in this order of dimensions, with a gap after each row and guards around."""
    sizes = [x.shape[d] for d in order]
    strides, step = [0] * x.ndim, 1
    for d, size in zip(reversed(order), reversed(sizes), strict=True):
        strides[d] = step
        step = step * size + gap
    storage = torch.full((offset + step + 8,), 77, dtype=x.dtype)
    return storage.as_strided(x.shape, strides, offset).copy_(x)


def relaid(call: Call, layouts: dict[str, Callable[[Tensor], Tensor]]) -> Call:
    return replace(call, **{name: [f(x) for x in getattr(call, name)] for name, f in layouts.items()})


def transposed(x: Tensor) -> Tensor:
    return strided(x, range(x.ndim)[::-1])


def channels_last(x: Tensor) -> Tensor:
    return strided(x, (0, 2, 3, 1))


def sliced(x: Tensor) -> Tensor:
    return strided(x, range(x.ndim), gap=3, offset=5)


def unaligned(x: Tensor) -> Tensor:
    return strided(x, range(x.ndim), offset=1)


ALL = ("params", "grads", *STATES)
LAYOUTS: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {
    "transposed gradient": {"grads": transposed},
    "transposed parameter": {"params": transposed},
    "all transposed": dict.fromkeys(ALL, transposed),
    "channels_last parameter": {"params": channels_last},
    "channels_last parameter and states": dict.fromkeys(("params", *STATES), channels_last),
    "all channels_last": dict.fromkeys(ALL, channels_last),
    "sliced parameter": {"params": sliced},
    "sliced gradient": {"grads": sliced},
    "all sliced": dict.fromkeys(ALL, sliced),
    "sliced and transposed": dict.fromkeys(ALL, lambda x: strided(x, (2, 0, 3, 1), gap=2, offset=3)),
    "unaligned": dict.fromkeys(ALL, unaligned),
    "unaligned states": dict.fromkeys(STATES, unaligned),
    "states of other layouts": {"exp_avgs": transposed, "exp_avg_sqs": channels_last, "exp_avg_lrs": sliced},
    "all different": dict(zip(ALL, (transposed, channels_last, sliced, unaligned, transposed), strict=True)),
}


KINDS = ("float32", "bfloat16 with int8 states", "float64 with small states")


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        *product(["cpp"], KINDS),
        ("triton", KINDS[1]),  # interpreting takes long
        *(pytest.param("cuda", kind, marks=pytest.mark.gpu) for kind in KINDS),
    ],
    indirect=["kernel"],
)
def test_a_layout_changes_no_bit_and_touches_nothing_around(
    kernel: Implementation, layout: dict[str, Callable[[Tensor], Tensor]], kind: str
) -> None:
    dtype, grad, states = MIXTURES[kind]
    call = make_call([(5, 7, 3, 11), (1, 3, 1, 2)], dtype=dtype, grad=grad, states=states, hyper=USUAL, stats=True)
    call = relaid(call, layout)
    actual, expected = call.after(kernel), call.flattened().after(kernel)
    order = [_reference.memory_order(p) for p in call.params]
    for name in ALL:
        for x, y, o, start in zip(
            getattr(actual, name), getattr(expected, name), order, getattr(call, name), strict=True
        ):
            assert_same(x.permute(o).flatten(), y)
            assert torch.equal(outside(x).cpu(), outside(start))
            assert x.stride() == start.stride()
    assert_same_call(actual, expected, "scales")


@pytest.mark.parametrize("layout", ["transposed gradient", "sliced parameter", "all different"])
def test_the_reference_agrees_about_layouts(kernel: Implementation, layout: str) -> None:
    call = relaid(make_call([(5, 7, 3, 11)], states=(BFLOAT16, INT8, INT8), stats=True), LAYOUTS[layout])
    assert_same_call(call.after(kernel), call.expected(), *STATES, "scales")


@pytest.mark.parametrize("dims", [(0,), (1,), (0, 1)], ids=str)
def test_expanded_gradients(kernel: Implementation, dims: tuple[int, ...]) -> None:
    call = make_call([(23, 45)], hyper=USUAL)
    small = call.grads[0][tuple(slice(0, 1) if d in dims else slice(None) for d in range(2))]
    whole = replace(call, grads=[small.expand(23, 45).contiguous()])
    call = replace(call, grads=[small.clone().expand(23, 45)])
    assert_same_call(call.after(kernel), whole.after(kernel))


def test_a_scalar(kernel: Implementation) -> None:
    call = make_call([()], states=(FLOAT32, BFLOAT16, INT8), stats=True)
    assert_same_call(call.after(kernel), call.expected(), *STATES, "scales")


def test_offsets_beyond_32_bits() -> None:
    """Rows 2^31 elements apart, of a tensor of which little memory is touched."""
    kernel = cpp()
    try:
        storage = torch.empty(2**31 + 64)
    except RuntimeError:
        pytest.skip("the machine does not lend 8 GiB of address space")
    call = make_call([(2, 5)], hyper=USUAL)
    far = storage.as_strided((2, 5), (2**31, 1)).copy_(call.params[0])
    expected = call.after(kernel)
    replace(call.copy(), params=[far]).run(kernel.step)
    assert_same(far.clone(), expected.params[0])


SHAPES = st.lists(st.integers(0, 6) | st.sampled_from([17, 40]), min_size=0, max_size=4)


@st.composite
def random_calls(draw: st.DrawFn) -> Call:
    """Shapes, dtypes, and layouts of each tensor for itself."""
    shapes = draw(st.lists(SHAPES.map(tuple), min_size=1, max_size=3))
    floats = st.sampled_from([FLOAT32, BFLOAT16, FLOAT16, FLOAT64])
    kinds = st.sampled_from([FLOAT32, BFLOAT16, INT8, FLOAT16])
    call = make_call(
        shapes,
        dtype=draw(floats),
        grad=draw(floats),
        states=draw(st.tuples(kinds, kinds, kinds)),
        t=draw(st.integers(1, 50)),
        seed=draw(st.integers(0, 2**32)),
        stats=draw(st.booleans()),
        **draw(st.fixed_dictionaries({name: st.booleans() for name in FLAGS["all"]})),
    )
    if draw(st.booleans()):
        call.options["seed"] = draw(st.none() | st.integers(-(2**63), 2**63 - 1))
    if draw(st.booleans()):
        call.options["grad_scale"] = torch.tensor(draw(st.sampled_from([2.0, 0.25])))

    def relay(x: Tensor) -> Tensor:
        order = draw(st.permutations(range(x.ndim)))
        return strided(x, order, gap=draw(st.integers(0, 2)), offset=draw(st.integers(0, 3)))

    return relaid(call, dict.fromkeys(ALL, relay))


def check_random_call(kernel: Implementation, call: Call) -> None:
    actual = call.after(kernel)
    assert_same_call(actual, call.expected(), *STATES, "scales")
    for x, y in zip(actual.tensors, call.tensors, strict=True):
        assert torch.equal(outside(x).cpu(), outside(y))


@given(call=random_calls())
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_random_calls_equal_the_reference(call: Call) -> None:
    check_random_call(cpp(), call)


def test_some_random_calls_equal_the_reference(kernel: Implementation) -> None:
    @given(call=random_calls())
    @settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def check(call: Call) -> None:
        check_random_call(kernel, call)

    check()


# --- random rounding ------------------------------------------------------------------------------------------------


ONE = {"exp_avgs": 126, "exp_avg_sqs": 254, "exp_avg_lrs": 254}  # the codes of 1.0 above the scales of `make_call`


def shrinking(kind: torch.dtype, fraction: float, *roles: str, n: int, t: int = 1, index: int = 0) -> Call:
    """A step in which all of `roles` go from 1 to this fraction of the way from the next smaller number to 1."""
    delta = (1 - fraction) * (2.0**-4 if kind == INT8 else 2.0**-8)
    factors = [1 - delta if role in roles else 0.5 for role in STATES]
    lr, weight_decay = (1.0, delta) if "params" in roles else (0.0, 0.0)
    states = [kind if role in roles else FLOAT32 for role in STATES]
    call = make_call([n], dtype=kind if "params" in roles else FLOAT32, grad=FLOAT32, states=states, t=t)
    for name, xs in zip(ALL, call.lists, strict=False):
        xs[0].fill_(0 if name not in roles else ONE[name] if kind == INT8 else 1)
    steps = torch.full((index + 1,), t - 1.0)
    return replace(call, hyper=(lr, *factors, 1.0, weight_decay), steps=steps, index=[index])


def ups(call: Call, role: str) -> Tensor:
    """Which elements stayed 1; the others took the next smaller number."""
    x = getattr(call, role)[0].cpu()
    below = 1 - 2.0**-8
    if x.dtype == INT8:
        x = _reference.decode(x, call.scales[STATES.index(role)].cpu(), signed=role == "exp_avgs")
        below = 1 - 2.0**-4
    assert bool(((x == 1) | (x == below)).all())
    return x == 1


def z_score(successes: Tensor, chance: float) -> float:
    n = successes.numel()
    return (int(successes.sum()) - n * chance) / math.sqrt(n * chance * (1 - chance))


@pytest.mark.parametrize("fraction", [2.0**-6, 0.4375, 1 - 2.0**-6])
@pytest.mark.parametrize(
    ("kind", "role"),
    [(BFLOAT16, "params"), (BFLOAT16, "exp_avg_sqs"), (BFLOAT16, "exp_avg_lrs"), *((INT8, role) for role in STATES)],
)
def test_random_rounding_is_unbiased(kernel: Implementation, kind: torch.dtype, role: str, fraction: float) -> None:
    """A z score beyond 4 has p = 6e-5; there are 18 of them, with fixed seeds."""
    after = shrinking(kind, fraction, role, n=kernel.samples).after(kernel)
    assert abs(z_score(ups(after, role), fraction)) < 4


def test_random_bits_are_independent(kernel: Implementation) -> None:
    """Of neighbours, tensors, steps, parameters and seeds. A z score beyond 4 has p = 6e-5; there are 12."""
    both = ("exp_avg_sqs", "exp_avg_lrs")

    def run(**changes: Any) -> Call:
        call = shrinking(BFLOAT16, 0.5, *both, n=kernel.samples, t=changes.pop("t", 1), index=changes.pop("index", 0))
        return replace(call, options=changes).after(kernel)

    first = run()
    v, s = (ups(first, role) for role in both)
    others = (run(t=2), run(index=1), run(seed=1), run(seed=65537), run(seed=2**31))
    pairs = [(v, s), *((x[k:], x[:-k]) for x in (v, s) for k in (1, 2, 256)), *((v, ups(o, both[0])) for o in others)]
    assert len(pairs) == 12
    assert [round(z_score(x == y, 0.5), 1) for x, y in pairs if abs(z_score(x == y, 0.5)) >= 4] == []


def test_nearest_rounding_draws_nothing(kernel: Implementation) -> None:
    for kind, roles in ((BFLOAT16, ("params", "exp_avg_sqs", "exp_avg_lrs")), (INT8, STATES)):
        for fraction, up in ((0.25, False), (0.75, True)):
            call = shrinking(kind, fraction, *roles, n=600)
            after = replace(call, options={"seed": None}).after(kernel)
            assert all(ups(after, role).eq(up).all() for role in roles)


def test_an_exp_avg_in_bfloat16_is_rounded_to_nearest(kernel: Implementation) -> None:
    call = shrinking(BFLOAT16, 0.75, "exp_avgs", n=600)
    assert bool((call.after(kernel).exp_avgs[0] == 1).all())


@pytest.mark.parametrize(("kind", "seed", "tolerance"), [(BFLOAT16, 0, 0.01), (INT8, 0, 0.03), (BFLOAT16, None, None)])
def test_low_precision_does_not_stall(kind: torch.dtype, seed: int | None, tolerance: float | None) -> None:
    """Mean of s after 3000 steps of normal gradients, against float32. That of rounding to nearest is far off."""
    kernel = cpp()
    hyper = (1e-3, 0.9, 0.999, 0.999, 1e-8, 0.0)
    low = make_call([8192], states=(kind,) * 3, t=1, hyper=hyper)
    high = make_call([8192], t=1, hyper=hyper)
    low.options["seed"] = seed
    for xs in (*low.lists[2:6], *high.lists[2:5]):
        for x in xs:
            x.zero_()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3000):
        high.grads[0].normal_(generator=generator)
        low.grads[0].copy_(high.grads[0])
        low.run(kernel.step)
        high.run(kernel.step)
    s = low.exp_avg_lrs[0]
    s = _reference.decode(s, low.scales[2], signed=False) if kind == INT8 else s.float()
    error = abs(s.mean() / high.exp_avg_lrs[0].mean() - 1).item()
    assert error < tolerance if tolerance else error > 0.2


# --- int8 -----------------------------------------------------------------------------------------------------------


def wide(n: int, seed: int) -> Tensor:
    """Numbers over the whole range of float32 in some blocks, zeros and subnormals among them."""
    generator = torch.Generator().manual_seed(seed)
    exponent = torch.rand(n, generator=generator) * 276 - 149
    block = torch.arange(n) // 256
    exponent = torch.where(block % 3 == 1, exponent / 20, torch.where(block % 3 == 2, exponent / 4 - 100, exponent))
    x = torch.randn(n, generator=generator).sign() * (2.0 ** exponent.double() * 1.3).float()
    x[torch.rand(n, generator=generator) < 0.05] = 0
    return x


@TWO_SEEDS
def test_int8_codes_of_all_magnitudes_equal_the_reference(kernel: Implementation, seed: int | None) -> None:
    """exp_avg = g, exp_avg_sq = g * g and exp_avg_lr = lr / |g|, or halved with what was stored before."""
    call = make_call([2600], states=(INT8,) * 3, hyper=(2.0**-20, 0.0, 0.0, 0.0, 0.0, 0.0), paper=True)
    g = wide(2600, 0)
    g[abs(g) > 2.0**63] = 3
    call.grads[0].copy_(g)
    call.options["seed"] = seed
    assert_same_call(call.after(kernel), call.expected(), *STATES, "scales")
    call = replace(call, hyper=(2.0**-20, 0.5, 0.5, 0.5, 2.0**-30, 0.0))
    assert_same_call(call.after(kernel, times=3), call.expected(times=3), *STATES, "scales")


def test_int8_below_the_first_code_is_unbiased_but_exp_avg_sq_stays_positive(kernel: Implementation) -> None:
    """A z score beyond 4 has p = 6e-5."""
    call = make_call([kernel.samples], states=(INT8,) * 3, hyper=(1.0, 0.0, 0.0, 0.0, 0.0, 0.0), t=1)
    large = torch.arange(kernel.samples) % 256 == 0
    call.grads[0].copy_(torch.where(large, 1.0, 0.375 * 1.375 * 2.0**-16))
    after = call.after(kernel)
    m, v = after.exp_avgs[0].cpu(), after.exp_avg_sqs[0].cpu()
    assert m.unique().tolist() == [0, 1, 126]
    assert abs(z_score(m[~large] == 1, 0.375)) < 4
    call.grads[0].copy_(torch.where(large, 1.0, 1e-7))  # v = 1e-14 beside 1
    v = call.after(kernel).exp_avg_sqs[0].cpu()
    assert v[large].unique().tolist() == [254]
    assert v[~large].unique().tolist() == [1]
    call.grads[0].copy_(large.float())
    after = replace(call, hyper=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0)).after(kernel)
    assert after.exp_avg_sqs[0].cpu()[~large].unique().tolist() == [0]
    call.grads[0].copy_(torch.where(large, 1.0, 1 / (0.375 * 1.375 * 2.0**-32)))  # s = 1 / g
    s = replace(call, hyper=(1.0, 0.0, 0.0, 0.0, 0.0, 0.0)).after(kernel).exp_avg_lrs[0].cpu()
    assert s.unique().tolist() == [0, 1, 254]
    assert abs(z_score(s[~large] == 1, 0.375)) < 4


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_loud_in_its_int8_block_only(kernel: Implementation, bad: float) -> None:
    call = make_call([1000], states=(INT8,) * 3)
    call.grads[0][300] = bad
    after = call.after(kernel)
    for k, role in enumerate(STATES):
        finite = role == "exp_avg_lrs" and math.isinf(bad)  # eta is 0 where v is infinite
        assert (after.scales[k].cpu() == 0x7FFF).tolist() == [False, not finite, False, False]
        x = _reference.decode(getattr(after, role)[0].cpu(), after.scales[k].cpu(), signed=k == 0)
        assert x.isnan().nonzero().flatten().tolist() == ([] if finite else list(range(256, 512)))
    assert after.params[0].cpu().isnan().nonzero().flatten().tolist() == [300]
    again = replace(after.copy("cpu"), grads=[torch.ones(1000)])
    assert_same_call(again.after(kernel), again.expected(), *STATES, "scales")
    assert again.after(kernel).params[0].cpu().isnan().nonzero().flatten().tolist() == list(range(256, 512))


# --- numbers that are not finite ------------------------------------------------------------------------------------


@EVERY_FLAG
@pytest.mark.parametrize("states", [(FLOAT32,) * 3, (BFLOAT16,) * 3], ids=["float32", "bfloat16"])
def test_a_gradient_that_is_not_finite_spoils_its_element_only(
    kernel: Implementation, states: tuple[torch.dtype, ...], flags: dict[str, Any]
) -> None:
    call = make_call([700], states=states, hyper=USUAL, **flags)
    call.grads[0][3::100] = torch.tensor([math.nan, math.inf, -math.inf, math.nan, math.inf, -math.inf, math.nan])
    actual, expected = call.after(kernel), call.expected()
    for role in ("params", *STATES):
        x, y = getattr(actual, role)[0].cpu(), getattr(expected, role)[0]
        assert torch.equal(x.isnan(), y.isnan())
        assert torch.equal(x.isinf(), y.isinf())
    assert actual.params[0].cpu().isnan().nonzero().flatten().tolist() == list(range(3, 700, 100))


@pytest.mark.parametrize("payload", [0x7F800001, 0x7FC00000, 0x7FFFFFFF, -1, -0x7FFFFF])
@pytest.mark.parametrize("states", [(FLOAT32,) * 3, (BFLOAT16,) * 3], ids=["in place", "tile"])
def test_every_nan_survives_random_rounding(
    kernel: Implementation, states: tuple[torch.dtype, ...], payload: int
) -> None:
    """0x7fffffff plus anything would otherwise become -0, and a signalling NaN infinity."""
    for dtype, mixture in ((FLOAT32, (BFLOAT16,) * 3), (BFLOAT16, states)):
        call = make_call([100], dtype=dtype, grad=FLOAT32, states=mixture)
        call.grads[0].view(torch.int32)[::3] = payload
        after = call.after(kernel)
        for role in ("params", *STATES):
            assert getattr(after, role)[0].cpu().isnan().nonzero().flatten().tolist() == list(range(0, 100, 3))


@EVERY_FLAG
@pytest.mark.parametrize("lr", [0.0, 1e-3])
def test_an_eps_of_zero_gives_what_it_gives_in_torch(kernel: Implementation, flags: dict[str, Any], lr: float) -> None:
    """Where v = 0, eta is infinite, or NaN if lr = 0; with `skip_unseen` s stays a number beside it."""
    call = make_call([400], hyper=(lr, 0.5, 0.5, 0.5, 0.0, 0.0), **flags)
    actual, expected = call.after(kernel), call.expected()
    assert expected.params[0].isnan().any() == (lr == 0 or "skip_unseen" not in flags)
    assert_same_call(actual, expected, *STATES)
    assert torch.equal(actual.params[0].cpu().isnan(), expected.params[0].isnan())


# --- flags ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("found_inf", [1.0, math.inf, math.nan, 0.0])
def test_found_inf_prevents_every_write(kernel: Implementation, found_inf: float) -> None:
    call = make_call([700, 31], states=(INT8, BFLOAT16, FLOAT32), stats=True, found_inf=torch.tensor([found_inf]))
    after = call.after(kernel)
    if found_inf:
        assert all(torch.equal(bits(x.cpu()), bits(y)) for x, y in zip(after.tensors, call.tensors, strict=True))
        assert not after.options["stats"].any()
    else:
        assert (after.steps.cpu() != call.steps).sum() == 2


@pytest.mark.parametrize("scale", [2.0**16, 2.0**-3, 3.0, 2.0**120])
@pytest.mark.parametrize("maximize", [False, True])
def test_grad_scale_divides(kernel: Implementation, scale: float, maximize: bool) -> None:
    call = make_call([1025, 40], states=(FLOAT32, BFLOAT16, INT8), hyper=USUAL, maximize=maximize)
    scaled = replace(call, grads=[g * scale for g in call.grads], options={**call.options})
    scaled.options["grad_scale"] = torch.tensor([scale])
    divided = replace(call, grads=[g / scale for g in scaled.grads])
    assert_same_call(scaled.after(kernel), divided.after(kernel))


def test_lr_zero_moves_nothing(kernel: Implementation) -> None:
    call = make_call([1025], dtype=BFLOAT16, hyper=(0.0, 0.9, 0.999, 0.999, 1e-8, 0.1))
    after = call.after(kernel)
    assert torch.equal(bits(after.params[0].cpu()), bits(call.params[0]))
    assert not torch.equal(after.exp_avgs[0].cpu(), call.exp_avgs[0])


@pytest.mark.parametrize("t", [1, 2, 3, 7])
def test_histograms_take_every_nth_run_of_512(kernel: Implementation, t: int) -> None:
    call = make_call([512 * 25 + 3, 512 * 16, 511], t=t, stats=True)
    after, expected = call.after(kernel), call.expected()
    assert_same_call(after, expected, *STATES)
    assert after.options["stats"].sum(1)[1:].unique().numel() > 1
    row = after.options["stats"][call.index[0]].cpu()
    runs, every = 26, 26 // 8
    taken = [min(512, 512 * 25 + 3 - 512 * r) for r in range(runs) if r % every == t % every]
    assert row[2:66].sum() == row[66:].sum() == sum(taken)
    assert row[0] == 512 * 25 + 3
    assert 0 < row[1] < row[0]


def test_counting_changes_no_bit(kernel: Implementation) -> None:
    for states in ((FLOAT32,) * 3, (BFLOAT16,) * 3, (INT8,) * 3):
        call = make_call([512 * 17 + 77], states=states, hyper=USUAL)
        counted = replace(call, options={"stats": torch.zeros(2, 130, dtype=torch.int64)})
        assert_same_call(call.after(kernel), replace(counted.after(kernel), options={}))


# --- threads --------------------------------------------------------------------------------------------------------


@pytest.fixture
def set_num_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_every_thread_count_gives_the_same_bits(
    mixture: tuple[Any, ...], set_num_threads: Callable[[int], None]
) -> None:
    kernel = cpp()
    dtype, grad, states = mixture
    sizes: list[int | tuple[int, ...]] = [3] * 100 + [100_001] + [(300, 70)] + [700] * 30
    call = make_call(sizes, dtype=dtype, grad=grad, states=states, hyper=USUAL, stats=True)
    call.params[101] = transposed(call.params[101])
    results = []
    for threads in (1, 2, 4):
        set_num_threads(threads)
        results.append(call.after(kernel, times=2))
    for other in results[1:]:
        assert_same_call(other, results[0])
        assert all(torch.equal(bits(x), bits(y)) for x, y in zip(other.tensors, results[0].tensors, strict=True))


# --- the operator in torch ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("states", [(FLOAT32,) * 3, (BFLOAT16, INT8, INT8)], ids=["float32", "small"])
def test_opcheck(states: tuple[torch.dtype, ...]) -> None:
    call = make_call([9, 300], states=states, stats=True, found_inf=torch.zeros(1), grad_scale=torch.ones(1))
    args, kwargs = call.arguments()
    torch.library.opcheck(_ops.step_, args, kwargs)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch 2.10's own compiler
@pytest.mark.parametrize("kernel", ["cpp", pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
def test_compiled_whole(kernel: Implementation) -> None:
    call = make_call([9, 300], states=(BFLOAT16, FLOAT32, INT8), hyper=USUAL, stats=True)

    @torch.compile(fullgraph=True)
    def step(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _ops.step_(*args, **kwargs)

    compiled = call.copy(kernel.device)
    for _ in range(2):
        step(*compiled.arguments())
    assert_same_call(compiled, call.after(kernel, times=2))


def test_meta_tensors_take_the_step_without_a_kernel() -> None:
    call = make_call([9]).copy("meta")
    args, kwargs = call.arguments()
    assert _ops.step_(*args[:-1], args[-1].to("meta"), **kwargs) is None


INVALID: dict[str, Callable[[Call], Any]] = {
    "unequal lists": lambda c: c.grads.pop(),
    "unequal index": lambda c: c.index.append(0),
    "index out of range": lambda c: c.index.__setitem__(0, 3),
    "integer parameters": lambda c: c.params.__setitem__(1, torch.ones(300, dtype=torch.int32)),
    "a byte parameter": lambda c: c.params.__setitem__(1, torch.ones(300, dtype=INT8)),
    "sizes that differ": lambda c: c.exp_avgs.__setitem__(1, torch.ones(299)),
    "shapes that differ": lambda c: c.exp_avgs.__setitem__(1, torch.ones(600)[::2].view(20, 15)),
    "int8 states without scales": lambda c: c.exp_avgs.__setitem__(1, torch.ones(300, dtype=INT8)),
    "too few scales": lambda c: c.scales.append(torch.ones(1, dtype=torch.int16)),
    "steps in double": lambda c: setattr(c, "steps", c.steps.double()),
    "stats of another width": lambda c: c.options.update(stats=torch.zeros(3, 129, dtype=torch.int64)),
}


@pytest.mark.parametrize("spoil", INVALID.values(), ids=INVALID)
def test_what_violates_an_invariant_is_refused_before_any_write(spoil: Callable[[Call], Any]) -> None:
    kernel = cpp()
    call = make_call([9, 300])
    call.index = list(call.index)
    spoil(call)
    before = copy.deepcopy(call.tensors)
    args, kwargs = call.arguments()
    with pytest.raises(RuntimeError):
        kernel.step(*args, **kwargs)
    assert all(torch.equal(x, y) for x, y in zip(call.tensors, before, strict=True))
