"""The C++ kernels of the operators against their definition in plain PyTorch."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gasam import _ops, _reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

FLOAT32, FLOAT64, BFLOAT16, FLOAT16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
EVERY = (FLOAT32, FLOAT64, BFLOAT16, FLOAT16)
EVERY_DTYPE = pytest.mark.parametrize("dtype", EVERY, ids=str)
HALVES = pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
PIECE = 32768  # elements that a kernel takes at once
ETA = 0.01

# Each shape with its number of units: none and few elements, tails of every kind, more than a piece, rows.
SHAPES = {
    (0,): 1,
    (2, 0): 2,
    (): 1,
    (1,): 1,
    (2,): 2,
    (31,): 1,
    (1023,): 3,
    (1025,): 5,
    (5003,): 1,
    (PIECE + 1,): 1,
    (2, PIECE + 7): 2,
    (6, 7, 5): 6,
    (19, 3): 1,
}
Args = tuple[Any, ...]


# --- calls ----------------------------------------------------------------------------------------------------------


def mapped(args: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The arguments with each tensor changed, also in lists."""
    if isinstance(args, tuple | list):
        return type(args)(mapped(x, change) for x in args)
    return change(args) if isinstance(args, Tensor) else args


def tensors(args: Any) -> Iterator[Tensor]:
    if isinstance(args, tuple | list):
        for x in args:
            yield from tensors(x)
    elif isinstance(args, Tensor):
        yield args


def copied(x: Tensor) -> Tensor:
    """A copy with all memory of the original, also that outside the view."""
    storage = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
    return storage.clone().as_strided(x.shape, x.stride(), x.storage_offset())


def outside(x: Tensor) -> Tensor:
    """The memory around a view."""
    storage = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
    inside = torch.zeros_like(storage, dtype=torch.bool)
    inside.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(True)
    return storage[~inside]


def bits(x: Tensor) -> Tensor:
    return _reference.flat(x).view(torch.uint8)


def widened(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def after(function: Callable[..., Any], args: Args) -> list[Tensor]:
    """All tensors of a copy of the arguments after the call, and what it returns."""
    args = mapped(args, copied)
    result = function(*args)
    return [*tensors(args), *tensors(result if isinstance(result, tuple) else (result,))]


def assert_same(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Equal bits in memory order, but for those of a NaN."""
    for x, y in zip(actual, expected, strict=True):
        assert x.dtype == y.dtype
        x, y = _reference.flat(x), _reference.flat(y)
        assert bool(((x == y) & (x.signbit() == y.signbit()) | (x != x) & (y != y)).all())


class Problem:
    """Lists of tensors of some shapes, with random numbers of about 1."""

    def __init__(self, *dtypes: torch.dtype, shapes: dict[tuple[int, ...], int] = SHAPES) -> None:
        self.shapes = list(shapes)
        self.dtypes = [dtypes[k % len(dtypes)] for k in range(len(shapes))]
        self.rows = list(shapes.values())
        self.weighted = [(0, 1, -1)[k % 3] for k in range(len(shapes))]
        self.units = sum(self.rows)
        self.generator = torch.Generator().manual_seed(0)
        self.w, self.g, self.old = self.normal(), self.normal(), self.normal()
        self.seed = torch.tensor(0x1234_5678_9ABC)

    def normal(self, *, wide: bool = False, low: float | None = None) -> list[Tensor]:
        made = []
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            x = torch.randn(shape, generator=self.generator)
            made.append(
                (x if low is None else x.abs() + low).to(torch.promote_types(dtype, FLOAT32) if wide else dtype)
            )
        return made

    def per_unit(self, scale: float = 1.0) -> Tensor:
        x = scale * torch.rand(self.units, generator=self.generator, dtype=FLOAT64)
        x[::5] = 0
        return x

    @property
    def steps(self) -> list[Tensor]:
        return [torch.tensor(3.0 + (k > 2)) for k in range(len(self.shapes))]


def perturb(p: Problem, norm: int) -> Args:
    return p.w, p.old, p.g, p.per_unit(0.1), p.rows, p.weighted, ETA, norm, p.seed


def ascend(p: Problem, norm: int) -> Args:
    return p.normal(wide=True), p.w, p.g, p.per_unit(0.1), p.per_unit(), p.rows, p.weighted, ETA, norm


def project(p: Problem) -> Args:
    return p.normal(), p.w, p.normal(wide=True), p.per_unit(), p.rows, p.seed


def sgd(p: Problem, lr: float | Tensor = 0.1, mu: float = 0.9, **options: Any) -> Args:
    chosen = {"dampening": 0.3, "wd": 0.01, "nesterov": False, "maximize": False, "first": False}
    chosen |= {"scale": None, "found_inf": None} | options
    return p.w, p.old, p.g, p.normal() if mu else [], lr, mu, *chosen.values()


def adam(p: Problem, lr: float | Tensor = 0.1, **options: Any) -> Args:
    chosen = {"eps": 1e-8, "wd": 0.01, "decoupled": True, "amsgrad": False, "maximize": False}
    chosen |= {"scale": None, "found_inf": None} | options
    second, largest = p.normal(low=0.1), p.normal(low=0.1) if chosen["amsgrad"] else []
    return p.w, p.old, p.g, p.normal(), second, largest, p.steps, lr, 0.9, 0.999, *chosen.values()


C = torch.tensor([0.7, -0.4], dtype=FLOAT64)
NO, YES = torch.tensor(0.0), torch.tensor(1.0)
CALLS: dict[str, tuple[str, Callable[[Problem], Args]]] = {
    "segment_norms": ("segment_norms", lambda p: (p.g, p.w, p.rows, p.weighted, ETA)),
    "segment_norms unweighted": ("segment_norms", lambda p: (p.g, p.w, p.rows, [0] * len(p.rows), ETA)),
    "perturb_": ("perturb_", lambda p: perturb(p, 2)),
    "perturb_ by signs": ("perturb_", lambda p: perturb(p, 0)),
    "ascend_": ("ascend_", lambda p: ascend(p, 2)),
    "ascend_ by signs": ("ascend_", lambda p: ascend(p, 0)),
    "project_": ("project_", project),
    "restore_": ("restore_", lambda p: (p.w, p.old)),
    "restore_sgd_": ("restore_sgd_", sgd),
    "restore_sgd_ without momentum": ("restore_sgd_", lambda p: sgd(p, mu=0.0, wd=0.0)),
    "restore_sgd_ first": ("restore_sgd_", lambda p: sgd(p, first=True, nesterov=True, maximize=True)),
    "restore_sgd_ nesterov": ("restore_sgd_", lambda p: sgd(p, nesterov=True, scale=torch.tensor(3.0), found_inf=NO)),
    "restore_adam_": ("restore_adam_", adam),
    "restore_adam_ coupled": ("restore_adam_", lambda p: adam(p, decoupled=False, maximize=True)),
    "restore_adam_ amsgrad": ("restore_adam_", lambda p: adam(p, amsgrad=True, scale=torch.tensor(3.0), found_inf=NO)),
    "inner_products": ("inner_products", lambda p: (p.g, p.w)),
    "mix_": ("mix_", lambda p: (p.g, p.old, C, NO)),
}
SUMS = ("segment_norms", "segment_norms unweighted", "inner_products")  # in float64, as their definition is
EVERY_CALL = pytest.mark.parametrize("call", CALLS)


def prepared(call: str, problem: Problem) -> tuple[Any, Callable[..., Any], Args]:
    """The kernel, its definition and arguments."""
    name, arguments = CALLS[call]
    return getattr(torch.ops.gasam, name).default, getattr(_reference, name), arguments(problem)


# --- the library ----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def _built() -> None:
    if not (files("gasam") / "_C.so").is_file():
        if shutil.which(os.environ.get("CXX", "c++")):
            pytest.fail("there is a C++ compiler, and yet the package has no kernels")
        pytest.skip("there is no C++ compiler, so the package was built without its kernels")


@pytest.mark.parametrize("name", _ops.SCHEMAS)
def test_what_serves_cpu_tensors_is_the_library(name: str) -> None:
    assert "cpu" in _ops.KERNELS[name]
    assert str(files("gasam") / "_C.so") in torch.ops.loaded_libraries
    [cpu] = re.findall(r"^CPU: registered at (\S+)", torch._C._dispatch_dump(f"gasam::{name}"), re.MULTILINE)
    assert "csrc/" in cpu


def test_the_library_approximates_nothing_and_streams_whole_lines() -> None:
    """No reciprocal instructions and no vector math library; roots in vectors."""
    if not shutil.which("objdump"):
        pytest.skip("objdump, of binutils, is not installed")
    code = subprocess.run(
        ["objdump", "-dT", "--no-show-raw-insn", str(files("gasam") / "_C.so")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert not re.search(r"\sv?(rsqrt|rcp)(14|28)?[ps][sd]\s|_ZGV|libmvec", code)
    if "sqrtps" in code:  # x86-64
        for instruction in (
            r"vsqrtps .*%zmm",
            r"vsqrtps .*%ymm",
            r"vsqrtpd .*%zmm",
            r"vmovntdq .*%zmm",
            r"movntdq .*%xmm",
        ):
            assert re.search(instruction, code), instruction


# --- the 2x rule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtypes", [*EVERY, EVERY], ids=str)
@pytest.mark.parametrize("call", [call for call in CALLS if call not in SUMS])
def test_error_is_within_twice_that_of_the_reference(
    call: str, dtypes: torch.dtype | tuple[torch.dtype, ...], assert_within_twice: Callable[..., None]
) -> None:
    kernel, reference, args = prepared(call, Problem(*(dtypes if isinstance(dtypes, tuple) else (dtypes,))))
    actual, expected = after(kernel, args), after(reference, args)
    exact = after(reference, mapped(args, widened))
    largest: dict[torch.Size, Tensor] = {}  # of what belongs to an element of a parameter, whatever may cancel
    for x in tensors(args):
        if x.is_floating_point():
            largest[x.shape] = torch.maximum(largest.get(x.shape, x.double().abs()), x.double().abs())
    for x, y, z in zip(actual, expected, exact, strict=True):
        if x.is_floating_point():
            assert_within_twice(x, y, z, largest.get(x.shape))
        else:
            assert torch.equal(x, y)


def assert_within_two_units(actual: Tensor, exact: Sequence[float]) -> None:
    """In the last place of a root."""
    assert actual.dtype == FLOAT64
    for x, y in zip(actual.abs().sqrt().tolist(), np.sqrt(np.abs(exact)), strict=True):
        assert abs(x - y) <= 2 * np.spacing(y)


@EVERY_DTYPE
@pytest.mark.parametrize("mixed", [False, True])
def test_norms_are_exact_to_two_units_in_the_last_place(dtype: torch.dtype, mixed: bool) -> None:
    p = Problem(dtype)
    weighted = p.weighted if mixed else [0] * len(p.rows)
    exact = []
    for g, w, n, kind in zip(p.g, p.w, p.rows, weighted, strict=True):
        t = w.to(torch.promote_types(dtype, FLOAT32)).abs() + ETA
        u = g * {0: torch.ones_like(t), 1: t, -1: 1 / t}[kind]
        exact += [math.fsum(row) for row in np.square(u.double().numpy().reshape(n, g.numel() // n))]
    assert_within_two_units(_ops.segment_norms(p.g, p.w, p.rows, weighted, ETA), exact)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_are_beyond_the_range_of_float32(scale: float) -> None:
    p = Problem(FLOAT32)
    exact = [math.fsum(np.square(scale * g.double().numpy()).ravel()) for g in p.g]
    sums = _ops.segment_norms([scale * g for g in p.g], p.w, [1] * len(p.g), [0] * len(p.g), ETA)
    torch.testing.assert_close(sums, torch.tensor(exact, dtype=FLOAT64), rtol=1e-6, atol=0)


@EVERY_DTYPE
def test_inner_products_are_exact_to_two_units_in_the_last_place(dtype: torch.dtype) -> None:
    p = Problem(dtype)
    x, y = (torch.cat([x.double().flatten() for x in xs]).numpy() for xs in (p.g, p.w))
    y[:] = np.abs(y) * np.sign(x)  # nothing cancels
    flipped = [w.abs() * g.sign() for g, w in zip(p.g, p.w, strict=True)]
    assert_within_two_units(_ops.inner_products(p.g, flipped), [math.fsum(x * x), math.fsum(x * y), math.fsum(y * y)])


def closed_strengths(
    sums: Tensor,
    segment: Tensor,
    sizes: Tensor,
    rho: Tensor,
    running: Tensor,
    scale: Tensor | None,
    layer: Tensor | None,
    a: float,
    b: float,
    clip: float,
    reference: int,
    norm: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The multipliers, the strengths and (m, t), in extended precision."""
    long = np.longdouble
    s, d = sums.numpy().astype(long), sizes.numpy().astype(long)
    owner = segment.numpy()

    def of_segment(x: np.ndarray) -> np.ndarray:
        return np.array([x[owner == k].sum() for k in owner])

    loss = long(1 if scale is None else scale.item())
    weight = np.ones_like(s) if layer is None else np.sqrt(of_segment(layer.numpy().astype(long)))
    size = weight * np.sqrt(of_segment(s))
    r = size / loss / np.sqrt(np.maximum(of_segment(d), 1))
    mean = np.sqrt((weight**2 * s).sum() / d.sum()) / loss
    m, t = long(0.99) * running[0].item() + (1 - long(0.99)) * mean, running[1].item() + 1
    expected = (long(1), mean, m / (1 - long(0.99) ** t))[reference]
    ratio = r / (expected + long(1e-12))
    if reference:
        ratio = np.clip(ratio, 1 / long(clip), long(clip))
    power = long(a) if norm == 2 else long(a) - long(0.5)
    with np.errstate(divide="ignore", invalid="ignore"):
        strength = np.where(r == 0, 0, rho.numpy() * (of_segment(d) / d.sum()) ** power * ratio ** long(b))
    multiplier = strength * weight if norm == 0 else strength * weight**2 / (size + long(1e-12) * loss)
    return multiplier, strength, np.array([m, t] if reference == 2 else running.tolist())


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("scale", [None, torch.tensor(1024.0), torch.tensor([3.0], dtype=BFLOAT16)], ids=str)
@pytest.mark.parametrize("norm", [2, 0])
@pytest.mark.parametrize("reference", [0, 1, 2])
@pytest.mark.parametrize(("a", "b"), [(0.5, -1.0), (0.0, 0.0), (0.5, 1.0)])
def test_error_of_strengths_is_within_twice_that_of_the_reference(
    a: float,
    b: float,
    reference: int,
    norm: int,
    scale: Tensor | None,
    layerwise: bool,
    assert_within_twice: Callable[..., None],
) -> None:
    generator = torch.Generator().manual_seed(0)
    units = 40
    segment = torch.randint(0, 9, (units,), generator=generator)
    sums = 10.0 ** (8 * torch.rand(units, generator=generator, dtype=FLOAT64) - 5)
    sums[segment == 2] = 0
    sizes = torch.randint(0, 1000, (units,), generator=generator)
    sizes[7] = 0
    rho, layer = (torch.rand(units, generator=generator, dtype=FLOAT64) for _ in range(2))
    running = torch.tensor([0.3, 17.0], dtype=FLOAT64)
    args = (sums, segment, sizes, rho, running, scale, layer if layerwise else None, a, b, 10.0, reference, norm)
    actual, expected = after(_ops.strengths, args), after(_reference.strengths, args)
    *exact, average = closed_strengths(*args)
    for x, y, z in zip(actual[-3:-1], expected[-3:-1], exact, strict=True):
        assert bool((x[segment == 2] == 0).all())
        assert_within_twice(x, y, torch.from_numpy(z.astype(np.float64)))
    assert_within_twice(actual[4], expected[4], torch.from_numpy(average.astype(np.float64)))
    assert actual[-1].dtype == FLOAT32
    assert actual[-1].item() == 0


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_sum_that_is_not_finite_skips_the_ascent(bad: float) -> None:
    ones = torch.ones(4, dtype=FLOAT64)
    sums, running = torch.tensor([1.0, bad, 0.0, 2.0], dtype=FLOAT64), torch.tensor([0.3, 17.0], dtype=FLOAT64)
    args = (sums, torch.arange(4), torch.arange(4), ones, running, None, None, 0.5, -1.0, 10.0, 2, 2)
    multiplier, s, found_inf = _ops.strengths(*args)
    assert multiplier.tolist() == [0] * 4
    assert bool(s.isnan().all())
    assert found_inf.item() == 1
    assert running.tolist() == [0.3, 17.0]


def test_no_units_have_no_strengths() -> None:
    none, integers = torch.empty(0, dtype=FLOAT64), torch.empty(0, dtype=torch.int64)
    running = torch.zeros(2, dtype=FLOAT64)
    args = (none, integers, integers, none, running, None, None, 0.5, -1.0, 10.0, 1, 2)
    for x, y in zip(_ops.strengths(*args), _reference.strengths(*args), strict=True):
        assert torch.equal(x, y)


# --- bits -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


LARGE = {(): 1, (3 * PIECE + 11,): 1, (7,): 1, (100, 400): 100, (2, PIECE + 1): 2, (90,): 1}


@EVERY_CALL
def test_bits_do_not_depend_on_the_number_of_threads(call: str, threads: Callable[[int], None]) -> None:
    kernel, _, args = prepared(call, Problem(FLOAT32, BFLOAT16, shapes=LARGE))
    threads(1)
    one = after(kernel, args)
    for count in (2, 5):
        threads(count)
        assert_same(after(kernel, args), one)


@pytest.mark.parametrize("call", ["perturb_", "restore_", "restore_sgd_", "restore_adam_"])
@pytest.mark.parametrize("offset", [0, 1])
def test_bits_are_those_of_the_parts_where_lists_are_so_large_that_stores_pass_the_caches(
    call: str, offset: int
) -> None:
    n, at = 2_200_003, 1_000_001  # more than 8 MiB
    kernel, _, args = prepared(call, Problem(FLOAT32, shapes={(n,): 1}))
    if call == "perturb_":
        args = (*args[:3], torch.full((1,), 0.1, dtype=FLOAT64), *args[4:])
    args = mapped(args, lambda x: torch.cat((x[:1].expand(offset), x))[offset:] if x.numel() == n else x)

    def cut(part: slice) -> Args:
        return mapped(args, lambda x: x[part] if x.numel() == n else x)

    whole, first, rest = after(kernel, args), after(kernel, cut(slice(at))), after(kernel, cut(slice(at, None)))
    changed = 0
    for x, y, z, old in zip(whole, first, rest, tensors(args), strict=True):
        if x.numel() == n:
            assert torch.equal(x, torch.cat((y, z)))
            changed += not torch.equal(x, old)
    assert changed > 0


@EVERY_DTYPE
@pytest.mark.parametrize("norm", [2, 0])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_unit_of_multiplier_zero_keeps_its_bits_whatever_its_gradient(
    bad: float, norm: int, dtype: torch.dtype
) -> None:
    p = Problem(dtype)
    p.w[9].fill_(-0.0)
    multiplier = torch.zeros(p.units, dtype=FLOAT64)
    for g in p.g:
        g.fill_(bad)
    params, backup = mapped(p.w, copied), mapped(p.old, copied)
    _ops.perturb_(params, backup, p.g, multiplier, p.rows, p.weighted, ETA, norm, p.seed)
    for x, y, w in zip(params, backup, p.w, strict=True):
        assert torch.equal(bits(x), bits(w))
        assert torch.equal(bits(y), bits(w))
    offset = p.normal(wide=True)
    before = mapped(offset, copied)
    _ops.ascend_(offset, p.w, p.g, multiplier, p.per_unit(), p.rows, p.weighted, ETA, norm)
    assert all(torch.equal(bits(x), bits(y)) for x, y in zip(offset, before, strict=True))


@EVERY_DTYPE
def test_where_the_offset_is_zero_the_weights_are_those_kept(dtype: torch.dtype) -> None:
    p = Problem(dtype)
    for w in p.w:
        w[w > 0] = -0.0
    params, offset = p.normal(), p.normal(wide=True)
    _ops.project_(params, p.w, offset, torch.zeros(p.units, dtype=FLOAT64), p.rows, p.seed)
    for x, w, e in zip(params, p.w, offset, strict=True):
        assert torch.equal(bits(x), bits(w))
        assert bool((e == 0).all())


@EVERY_DTYPE
def test_weights_come_back_bit_for_bit_payloads_of_nan_and_signs_of_zero_included(dtype: torch.dtype) -> None:
    p = Problem(dtype)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    for w in p.w:  # every sign, exponent and fraction
        w.copy_(torch.randint(-(2**63), 2**63 - 1, w.shape, generator=p.generator).to(integer).view(dtype))
    kept = [bits(w).clone() for w in p.w]
    args = p.w, p.old, p.g, torch.ones(p.units, dtype=FLOAT64), p.rows, p.weighted, ETA, 2, p.seed
    _ops.perturb_(*args)
    assert any(not torch.equal(bits(w), k) for w, k in zip(p.w, kept, strict=True))
    _ops.restore_(p.w, p.old)
    assert all(torch.equal(bits(w), k) for w, k in zip(p.w, kept, strict=True))
    _ops.perturb_(*args)
    _ops.restore_sgd_.default(p.w, p.old, p.g, [], 0.1, 0.0, 0.0, 0.0, False, False, False, None, YES)
    assert all(torch.equal(bits(w), k) for w, k in zip(p.w, kept, strict=True))


# --- layouts --------------------------------------------------------------------------------------------------------


def laid_out(x: Tensor, order: Sequence[int], offset: int) -> Tensor:
    """`x` in memory in this order of dimensions, with guards around."""
    strides, step = [0] * x.ndim, 1
    for d in reversed(order):
        strides[d], step = step, step * x.shape[d]
    return torch.full((offset + x.numel() + 3,), 7.0, dtype=x.dtype).as_strided(x.shape, strides, offset).copy_(x)


LAYOUTS = {"transposed": ((3, 2, 1, 0), 0), "channels_last": ((0, 2, 3, 1), 0), "unaligned": ((0, 1, 2, 3), 1)}


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@EVERY_CALL
def test_a_layout_changes_no_bit_and_nothing_around(call: str, layout: str, dtype: torch.dtype) -> None:
    kernel, _, args = prepared(call, Problem(dtype, shapes={(5, 7, 3, 11): 5, (4, 1, 9, 30): 4}))
    start = mapped(args, lambda x: laid_out(x, *LAYOUTS[layout]) if x.ndim == 4 else x)
    actual = after(kernel, start)
    assert_same(actual, after(kernel, mapped(start, lambda x: _reference.flat(x).clone() if x.ndim == 4 else x)))
    for x, y in zip(actual, tensors(start), strict=False):
        assert x.stride() == y.stride()
        if x.ndim == 4:
            assert torch.equal(outside(x), outside(y))
    if call not in SUMS:
        assert any(not torch.equal(bits(x), bits(y)) for x, y in zip(actual, tensors(start), strict=True))


# --- random rounding ------------------------------------------------------------------------------------------------


def rounded(kernel: Callable[..., None], x: Tensor, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """float32 numbers as the kernel writes them: as offsets from 0."""
    out, zero = torch.empty(x.shape, dtype=dtype), torch.zeros(x.shape, dtype=dtype)
    kernel([out], [zero], [x.clone()], torch.ones(1, dtype=FLOAT64), [1], torch.tensor(seed))
    return out


def all_magnitudes(n: int) -> Tensor:
    """float32 numbers of every sign, exponent and fraction: subnormal, infinite and NaN too."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**31), 2**31, (n,), generator=generator).to(torch.int32).view(FLOAT32)


@HALVES
def test_random_rounding_equals_the_reference_for_every_number(dtype: torch.dtype) -> None:
    halves = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).float()
    between = torch.randn(PIECE + 5) * 10.0 ** (torch.arange(PIECE + 5) % 13 - 8)
    for x in (all_magnitudes(100_003), halves, halves * (1 + 2**-11), between):
        for seed in (0, 77, -1, 2**62 + 2**32 + 5):
            assert_same([rounded(_ops.project_, x, dtype, seed)], [rounded(_reference.project_, x, dtype, seed)])


@HALVES
def test_random_bits_of_a_perturbation_equal_the_reference(dtype: torch.dtype) -> None:
    """With multipliers that are powers of 2 every product is exact: what is rounded is the same in both."""
    p = Problem(dtype, dtype, shapes=SHAPES | {(20, 13): 20})
    multiplier = 2.0 ** -torch.randint(3, 9, (p.units,), generator=p.generator).double()
    args = p.w, p.old, p.g, multiplier, p.rows, [0] * len(p.rows), ETA, 2, torch.tensor(-5)
    actual = after(_ops.perturb_, args)
    assert_same(actual, after(_reference.perturb_, args))
    others = after(_ops.perturb_, (*args[:-1], torch.tensor(-6)))
    assert sum(int((x != y).sum()) for x, y in zip(actual, others, strict=True)) > 10_000


@HALVES
def test_random_rounding_leaves_what_is_representable_and_preserves_order(dtype: torch.dtype) -> None:
    halves = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    halves = halves[halves.isfinite() & (halves != 0)]
    assert torch.equal(rounded(_ops.project_, halves.float(), dtype), halves)
    x = all_magnitudes(100_000)
    x = x[x.isfinite()]
    y = x[torch.randperm(x.numel(), generator=torch.Generator().manual_seed(1))]
    low, high = torch.minimum(x, y), torch.maximum(x, y)
    assert bool((rounded(_ops.project_, low, dtype) <= rounded(_ops.project_, high, dtype)).all())
    near = torch.nextafter(low, torch.full_like(low, math.inf))
    assert bool((rounded(_ops.project_, low, dtype) <= rounded(_ops.project_, near, dtype)).all())


@HALVES
def test_a_perturbation_of_1e8_weights_is_unbiased_in_low_precision(dtype: torch.dtype) -> None:
    """A part of it: each element moves by 5e-6, far less than a unit in the last place of a weight of .02."""
    n, times = 20_000, 1024
    generator = torch.Generator().manual_seed(0)
    w = (0.02 * torch.randn(n, generator=generator)).to(dtype)
    g = torch.randn(n, generator=generator).to(dtype)
    multiplier = torch.tensor([0.05 / 1e4], dtype=FLOAT64)
    e = (w.float() + multiplier.float() * g.float()).double() - w.double()
    total, squares = torch.zeros(n, dtype=FLOAT64), torch.zeros(n, dtype=FLOAT64)
    backup = torch.empty_like(w)
    for seed in range(times):
        x = w.clone()
        _ops.perturb_([x], [backup], [g], multiplier, [1], [0], ETA, 2, torch.tensor(seed))
        moved = x.double() - w.double()
        total += moved
        squares += (moved - e) ** 2
    mean = total / times
    assert torch.cosine_similarity(mean, e, dim=0) >= 0.99
    error = (mean - e).sum() / (squares.sum() / times**2).sqrt()
    assert abs(error) < 3  # sigma, p = .003
    assert torch.cosine_similarity((w.double() + e).to(dtype).double() - w.double(), e, dim=0) < 0.9  # to nearest


# --- base steps -----------------------------------------------------------------------------------------------------


def torch_steps(
    build: Callable[..., torch.optim.Optimizer], start: Sequence[Tensor], grads: Any, **options: Any
) -> Any:
    """Parameters and states of one of torch's optimizers after steps along given gradients."""
    params = [x.clone().requires_grad_() for x in start]
    optimizer = build(params, **options)
    for step in grads:
        for x, g in zip(params, step, strict=True):
            x.grad = g.to(x.dtype)
        optimizer.step()
    states = [[optimizer.state[x][key] for x in params] for key in optimizer.state[params[0]] if key != "step"]
    return [[x.detach() for x in params], *states]


def check_against_torch(
    ours: Any, build: Any, p: Problem, grads: Any, assert_within_twice: Callable[..., None], **options: Any
) -> None:
    exact = torch_steps(build, mapped(p.w, widened), grads, foreach=False, **options)
    for kind in ({"fused": True}, {"foreach": False}):
        peer = torch_steps(build, p.w, grads, **kind, **options)
        for xs, ys, zs in zip(ours, peer, exact, strict=True):
            for x, y, z in zip(xs, ys, zs, strict=True):
                assert_within_twice(x, y, z.double(), torch.ones(x.shape))


STEPS = 5


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(
    ("mu", "dampening", "wd", "nesterov"), [(0.0, 0.0, 0.0, False), (0.9, 0.0, 0.01, True), (0.8, 0.4, 0.1, False)]
)
def test_sgd_is_that_of_torch(
    mu: float,
    dampening: float,
    wd: float,
    nesterov: bool,
    maximize: bool,
    assert_within_twice: Callable[..., None],
) -> None:
    p = Problem(FLOAT32)
    grads = [p.normal() for _ in range(STEPS)]
    momentum = [torch.full_like(w, math.nan) for w in p.w] if mu else []  # the first step does not read it
    params, kept = p.normal(), mapped(p.w, copied)
    for k, g in enumerate(grads):
        _ops.restore_sgd_.default(
            params, kept, g, momentum, 0.1, mu, dampening, wd, nesterov, maximize, k == 0, None, None
        )
        kept = mapped(params, copied)
    options = {"lr": 0.1, "momentum": mu, "dampening": dampening, "weight_decay": wd}
    options |= {"nesterov": nesterov, "maximize": maximize}
    ours = [params, momentum] if mu else [params]
    check_against_torch(ours, torch.optim.SGD, p, grads, assert_within_twice, **options)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize(("decoupled", "wd"), [(False, 0.0), (False, 0.1), (True, 0.1)])
def test_adam_is_that_of_torch(
    decoupled: bool,
    wd: float,
    amsgrad: bool,
    maximize: bool,
    assert_within_twice: Callable[..., None],
) -> None:
    p = Problem(FLOAT32)
    grads = [p.normal() for _ in range(STEPS)]
    states = [[torch.zeros_like(w) for w in p.w] if k < 2 or amsgrad else [] for k in range(3)]
    counts = [torch.zeros(()) for _ in p.w]
    params, kept = p.normal(), mapped(p.w, copied)
    for g in grads:
        _ops.restore_adam_.default(
            params, kept, g, *states, counts, 0.01, 0.8, 0.99, 1e-6, wd, decoupled, amsgrad, maximize, None, None
        )
        kept = mapped(params, copied)
    assert all(t.item() == STEPS for t in counts)
    options = {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": wd, "amsgrad": amsgrad}
    build = torch.optim.AdamW if decoupled else torch.optim.Adam
    ours = [params, *states] if amsgrad else [params, *states[:2]]
    check_against_torch(ours, build, p, grads, assert_within_twice, maximize=maximize, **options)


BASES = pytest.mark.parametrize(("name", "build"), [("restore_sgd_", sgd), ("restore_adam_", adam)])


@BASES
@EVERY_DTYPE
def test_an_overflow_restores_and_counts_no_step(name: str, build: Callable[..., Args], dtype: torch.dtype) -> None:
    kernel, p = getattr(torch.ops.gasam, name).default, Problem(dtype)
    args = build(p, scale=torch.tensor(8.0), found_inf=YES)
    actual, count = after(kernel, args), len(p.w)
    assert all(torch.equal(bits(x), bits(y)) for x, y in zip(actual[:count], p.old, strict=True))
    assert all(torch.equal(bits(x), bits(y)) for x, y in zip(actual[count:], list(tensors(args))[count:], strict=True))


@BASES
@EVERY_DTYPE
def test_a_loss_scale_that_is_a_power_of_two_changes_no_bit(
    name: str, build: Callable[..., Args], dtype: torch.dtype
) -> None:
    kernel, count = getattr(torch.ops.gasam, name).default, len(SHAPES)
    plain = after(kernel, build(Problem(dtype)))
    args = build(Problem(dtype), scale=torch.tensor(4.0), found_inf=NO)
    scaled = after(kernel, (*args[:2], [4 * g for g in args[2]], *args[3:]))
    assert_same(scaled[:count], plain[:count])
    assert_same(scaled[3 * count : -2], plain[3 * count :])


@BASES
@pytest.mark.parametrize("lr", [torch.tensor(0.1), torch.tensor([0.1], dtype=FLOAT64)], ids=str)
def test_a_learning_rate_may_be_a_tensor(name: str, build: Callable[..., Args], lr: Tensor) -> None:
    operator = getattr(torch.ops.gasam, name)
    actual = after(operator.tensor_lr, build(Problem(FLOAT32), lr=lr))
    expected = after(operator.default, build(Problem(FLOAT32), lr=lr.item()))
    assert_same(actual[: len(SHAPES)], expected[: len(SHAPES)])


@BASES
@EVERY_DTYPE
def test_weights_that_nothing_perturbed_are_their_own_backup(
    name: str, build: Callable[..., Args], dtype: torch.dtype
) -> None:
    kernel, count = getattr(torch.ops.gasam, name).default, len(SHAPES)
    args = build(Problem(dtype))
    expected = after(kernel, args)
    own = mapped(args[1], copied)
    kernel(own, own, *mapped(args[2:], copied))
    assert_same(own, expected[:count])


# --- PyTorch --------------------------------------------------------------------------------------------------------


@EVERY_CALL
def test_opcheck(call: str) -> None:
    operator, _, args = prepared(call, Problem(FLOAT32, BFLOAT16, shapes={(3, 5): 3, (8,): 1}))
    torch.library.opcheck(operator, args)


def test_opcheck_of_strengths() -> None:
    numbers = torch.rand(3, dtype=FLOAT64)
    running, scale = torch.zeros(2, dtype=FLOAT64), torch.tensor(2.0)
    args = (numbers, torch.arange(3), torch.arange(3), numbers + 1, running, scale, numbers + 2, 0.5, -1.0, 9.0, 2, 2)
    torch.library.opcheck(_ops.strengths, args)


@EVERY_CALL
def test_empty_lists_are_nothing_to_do(call: str) -> None:
    kernel, reference, args = prepared(call, Problem(FLOAT32, shapes={}))
    assert_same(after(kernel, args), after(reference, args))


@pytest.mark.parametrize(
    "name", ["perturb_", "restore_", "restore_sgd_", "restore_adam_ amsgrad", "inner_products", "mix_"]
)
def test_lists_that_differ_in_length_are_refused(name: str) -> None:
    kernel, _, args = prepared(name, Problem(FLOAT32))
    for k, x in enumerate(args):
        if isinstance(x, list) and k and not (name == "restore_sgd_" and k == 3):  # momentum may be missing
            with pytest.raises(RuntimeError, match="differ in length"):
                kernel(*args[:k], [], *args[k + 1 :])
