"""The Triton kernels against the reference, their tables, launches and compiled code.

Interpreted on CPU, and if marked, run on a GPU. Multiplications and additions are not fused, so that most results equal
the reference bit for bit.
"""

from __future__ import annotations

import math
import re
from itertools import product
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from gasam import GASAM, _ops, _reference

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

triton = pytest.importorskip("triton", reason="there is no Triton here")
pytest.importorskip("numpy", reason="Triton's interpreter needs NumPy")

from gasam import _triton, _triton_base, _triton_steps, _triton_sums  # noqa: E402

BFLOAT16, FLOAT16, FLOAT32, FLOAT64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
DTYPES = (FLOAT32, FLOAT64, BFLOAT16, FLOAT16)
CHUNK, BLOCK = _triton_base.CHUNK.value, _triton_base.BLOCK.value
ETA = 0.01

# Shape, units and what weights it: of each size, and of units that are narrow, wide, and of one element.
SHAPES = [
    ((0,), 1, 0),
    ((1,), 1, 1),
    ((2,), 1, -1),
    ((31,), 1, 0),
    ((1023,), 1, 1),
    ((1025,), 1, -1),
    ((5003,), 1, 0),
    ((3, 1000), 3, 1),
    ((70, 13), 70, -1),
    ((9,), 9, 1),
    ((4, 0), 4, 0),
]
ROWS = [rows for _, rows, _ in SHAPES]
WEIGHTED = [weighted for *_, weighted in SHAPES]


@pytest.fixture(autouse=True)
def no_table_is_known() -> None:
    _triton_base._plans.clear()


class Lists:
    """Random lists of tensors, equal for the kernels and the reference, and what else operators take."""

    def __init__(
        self,
        shapes: Sequence[Any] = tuple(shape for shape, *_ in SHAPES),
        dtype: torch.dtype = FLOAT32,
        rows: Sequence[int] = ROWS,
        *,
        device: torch.device | str = "cpu",
        unaligned: bool = False,
    ) -> None:
        self.shapes, self.dtype, self.device, self.unaligned = list(shapes), dtype, torch.device(device), unaligned
        self.generator = torch.Generator().manual_seed(len(self.shapes))
        self.wide = FLOAT64 if dtype == FLOAT64 else FLOAT32
        self.params, self.grads, self.backup = self.make(), self.make(), self.make(0)
        self.offset = self.make(0.1, self.wide)
        units = sum(rows)
        self.multiplier = torch.rand(units, generator=self.generator, dtype=FLOAT64).to(device) / 8
        self.multiplier[::5] = 0
        self.radius = torch.rand(units, generator=self.generator, dtype=FLOAT64).to(device) / 8
        self.seed = torch.tensor(2**40 + 17, device=device)

    def make(self, size: float = 1.0, dtype: torch.dtype | None = None) -> list[Tensor]:
        return [
            self.place((torch.randn(s, generator=self.generator) * size).to(dtype or self.dtype)) for s in self.shapes
        ]

    def place(self, x: Tensor) -> Tensor:
        x = x.to(self.device)
        return torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape) if self.unaligned else x

    def written(self) -> list[Tensor]:
        return [*self.params, *self.backup, *self.offset]


def same(x: Tensor, y: Tensor) -> bool:
    """Whether bits are the same, of NaN too where both are NaN."""
    x, y = x.cpu(), y.cpu()
    return x.dtype == y.dtype and bool((((x == y) & (x.signbit() == y.signbit())) | (x.isnan() & y.isnan())).all())


def all_same(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> bool:
    return all(same(x, y) for x, y in zip(xs, ys, strict=True))


def copied(xs: Sequence[Tensor]) -> list[Tensor]:
    return [x.clone() for x in xs]


def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that will hold the name of the kernel of each launch."""
    names: list[str] = []

    class Counted:
        def __init__(self, name: str, kernel: Any) -> None:
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            names.append(self.name)
            return self.kernel[grid]

    for module in (_triton, _triton_steps, _triton_sums):
        for name, kernel in list(vars(module).items()):
            if name.endswith("_kernel"):
                monkeypatch.setattr(module, name, Counted(name, kernel))
    return names


# --- perturbations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [2, 0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_perturbations_equal_the_reference_bit_for_bit(device, dtype, norm):
    kernel, reference = (Lists(dtype=dtype, device=d) for d in (device, "cpu"))
    for x, module in ((kernel, _triton), (reference, _reference)):
        module.perturb_(x.params, x.backup, x.grads, x.multiplier, ROWS, WEIGHTED, ETA, norm, x.seed)
    assert all_same(kernel.written(), reference.written())
    assert not same(reference.params[6], reference.backup[6])
    for x, module in ((kernel, _triton), (reference, _reference)):
        module.ascend_(x.offset, x.backup, x.grads, x.multiplier, x.radius, ROWS, WEIGHTED, ETA, norm)
        module.project_(x.params, x.backup, x.offset, x.multiplier, ROWS, x.seed)
    assert all_same(kernel.written(), reference.written())
    _triton.restore_(kernel.params, kernel.backup)
    assert all_same(kernel.params, reference.backup)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
def test_tensors_of_several_chunks_that_are_not_aligned(device, dtype):
    shapes, rows = [(2 * CHUNK + 1500,), (3, 5501)], [1, 3]
    kernel, reference = (Lists(shapes, dtype, rows, device=d, unaligned=True) for d in (device, "cpu"))
    for x, module in ((kernel, _triton), (reference, _reference)):
        module.perturb_(x.params, x.backup, x.grads, x.multiplier + 1, rows, [0, 0], ETA, 2, x.seed)
    assert all_same(kernel.written(), reference.written())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_unit_of_multiplier_0_keeps_its_bits_whatever_its_gradient(device, dtype):
    lists = Lists([(40,), (4, 30)], dtype, [1, 4], device=device)
    before = copied(lists.params)
    for grad in lists.grads:
        grad.fill_(math.inf).view(-1)[::3] = math.nan
    lists.params[0][7] = before[0][7] = -0.0
    lists.params[0][8] = before[0][8] = math.nan
    for norm in (2, 0):
        _triton.perturb_(
            lists.params, lists.backup, lists.grads, lists.multiplier * 0, [1, 4], [0, 1], ETA, norm, lists.seed
        )
        assert all_same(lists.params, before)
        assert all_same(lists.backup, before)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**62 + 12345, -1])
def test_rounding_takes_the_reference_s_draws_also_at_the_ends_of_the_range(device, dtype, seed):
    info = torch.finfo(dtype)
    ends = torch.tensor(
        [0.0, -0.0, info.max, -info.max, info.tiny, -info.tiny, info.tiny / 64, math.inf, math.nan, 1.0]
    )
    kernel, reference = (Lists([(4000,), (4000,)], dtype, [1, 1], device=d) for d in (device, "cpu"))
    for x, module in ((kernel, _triton), (reference, _reference)):
        x.seed.fill_(seed)
        for k in range(2):
            x.backup[k].copy_(ends.repeat(400))
            x.offset[k].mul_(ends.nan_to_num(1, 1, 1).abs().repeat(400).to(x.device))
        module.project_(x.params, x.backup, x.offset, torch.ones_like(x.multiplier), [1, 1], x.seed)
    assert all_same(kernel.params, reference.params)
    assert not same(reference.params[0], reference.backup[0])
    assert not same(*reference.params)  # tensors have draws of their own


@pytest.mark.parametrize("far", [CHUNK, 3 * 2**35 + 5 * CHUNK])
def test_elements_beyond_2_to_the_32(device, monkeypatch, far):
    kernel, reference = (Lists([(3000,)], BFLOAT16, [1], device=d) for d in (device, "cpu"))
    plan, arange = _triton.plan, torch.arange

    def shifted(*args: Any) -> Any:
        """As if the tensor began at element `far` of a longer one."""
        made = plan(*args)
        made.table[:3] -= 2 * far
        row = made.table[int(made.table[made.launches[0].owners]) :]
        row[_triton_base.NUMEL.value] += far
        row[_triton_base.COLUMNS.value] += far
        row[_triton_base.FIRST.value] -= far // CHUNK
        return made

    monkeypatch.setattr(_triton, "plan", shifted)
    monkeypatch.setattr(torch, "arange", lambda n, **options: arange(n, **options) + far // 8)
    for x, module in ((kernel, _triton), (reference, _reference)):
        module.perturb_(x.params, x.backup, x.grads, torch.ones_like(x.multiplier), [1], [0], ETA, 2, x.seed)
    assert all_same(kernel.written(), reference.written())
    monkeypatch.undo()
    near = Lists([(3000,)], BFLOAT16, [1])
    _reference.perturb_(near.params, near.backup, near.grads, torch.ones(1).double(), [1], [0], ETA, 2, near.seed)
    assert not all_same(near.params, reference.params)


# --- sums and strengths ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30], ids=["usual", "small", "large"])
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64, BFLOAT16], ids=str)
def test_norms_are_within_2_units_in_the_last_place_of_float32(device, dtype, size):
    lists, exact = Lists(dtype=dtype, device=device), Lists(dtype=dtype)
    for x in (lists, exact):
        x.grads = [(g * size).to(dtype) for g in x.grads]
    ours = _triton.segment_norms(lists.grads, lists.params, ROWS, WEIGHTED, ETA).cpu()
    truth = _reference.segment_norms(exact.grads, exact.params, ROWS, WEIGHTED, ETA)
    assert ours.dtype == FLOAT64
    assert ours.shape == (sum(ROWS),)
    units = torch.finfo(FLOAT64 if dtype == FLOAT64 else FLOAT32).eps
    assert ((ours.sqrt() - truth.sqrt()).abs() <= 2 * units * truth.sqrt()).all()
    assert (ours[[0, -1]] == 0).all()


def test_the_last_program_of_a_unit_adds_the_others_and_takes_its_ticket_back(device):
    shapes, rows = [(3 * CHUNK + 5,), (2, CHUNK + 7), (31,)], [1, 2, 1]
    lists = Lists(shapes, rows=rows, device=device)
    truth = _reference.segment_norms(
        [x.cpu() for x in lists.grads], [x.cpu() for x in lists.params], rows, [0, 1, 0], ETA
    )
    results = [_triton.segment_norms(lists.grads, lists.params, rows, [0, 1, 0], ETA) for _ in range(2)]
    assert same(*results)
    assert ((results[0].cpu() - truth).abs() <= 1e-7 * truth).all()
    (made,) = _triton_base._plans.values()
    (launch,) = made.launches
    assert launch.programs == 4 + 2 * 2 + 1
    assert not made.table[launch.owners + launch.programs :].any()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_sums_are_not_finite_where_a_gradient_is_not(device, value):
    lists = Lists([(3000,), (3, 100), (3, 1000)], rows=[1, 3, 3], device=device)
    for grad in lists.grads:
        grad.view(-1)[-1] = value
    finite = _triton.segment_norms(lists.grads, lists.params, [1, 3, 3], [0] * 3, ETA).isfinite()
    assert finite.tolist() == [False, True, True, False, True, True, False]


SEGMENTS: dict[str, Callable[[int], Tensor]] = {
    "own": torch.arange,
    "all": lambda n: torch.zeros(n, dtype=torch.int64),
    "few": lambda n: torch.arange(n) * 3 // n,
    "mixed": lambda n: torch.arange(n) * 7 % min(n, 4),
}


@pytest.mark.parametrize(
    ("units", "segments", "every"), [(6, "own", 5), (6, "mixed", 5), (1, "all", 7), (1500, "own", 7), (1500, "few", 7)]
)
def test_strengths_equal_the_reference_s_to_12_digits(device, units, segments, every):
    generator = torch.Generator().manual_seed(units)
    sums = torch.rand(units, generator=generator, dtype=FLOAT64) ** 20 * 100
    sizes = torch.randint(1, 1000, (units,), generator=generator)
    rho, weights = (torch.rand(units, generator=generator, dtype=FLOAT64) for _ in range(2))
    sums[0], sizes[0] = 0, 0
    options = product((False, True), ((0.5, -1.0), (0.0, 0.0), (0.3, 2.0)), (0, 1, 2), (2, 0))
    for k, (layer, (a, b), reference, norm) in enumerate(list(options)[::every]):
        scale = (None, torch.tensor([1024.0]), torch.tensor(0.25, dtype=BFLOAT16))[k % 3]
        given = sums, SEGMENTS[segments](units), sizes, rho, torch.tensor([0.3, 4.0], dtype=FLOAT64), scale
        here = [x if x is None else x.clone().to(device) for x in (*given, weights if layer else None)]
        truth = [*_reference.strengths(*given, weights if layer else None, a, b, 10.0, reference, norm), given[4]]
        ours = [*_triton.strengths(*here, a, b, 10.0, reference, norm), here[4]]
        for x, y in zip(ours, truth, strict=True):
            assert x.dtype == y.dtype
            torch.testing.assert_close(x.cpu(), y, rtol=1e-12, atol=0)
        assert (here[4][1] == 5) == (reference == 2)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_after_a_sum_that_is_not_finite_nothing_moves(device, value):
    sums, sizes = torch.ones(1500, dtype=FLOAT64, device=device), torch.ones(1500, dtype=torch.int64, device=device)
    sums[1400], running = value, torch.tensor([0.3, 4.0], dtype=FLOAT64, device=device)
    for segment in (torch.arange(1500, device=device), torch.zeros_like(sizes)):
        multiplier, s, found_inf = _triton.strengths(
            sums, segment, sizes, sums * 0 + 0.1, running, None, None, 0.5, -1.0, 10.0, 2, 2
        )
        assert not multiplier.any()
        assert s.isnan().all()
        assert found_inf == 1
        assert running.tolist() == [0.3, 4.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inner_products_equal_the_reference_s_to_14_digits(device, dtype):
    lists = Lists([(0,), (2 * CHUNK + 3,), (31,)], dtype, [1] * 3, device=device)
    truth = _reference.inner_products([x.cpu() for x in lists.params], [x.cpu() for x in lists.grads])
    results = [_triton.inner_products(lists.params, lists.grads) for _ in range(2)]
    assert same(*results)
    size = truth[[0, 2]].sum()
    assert ((results[0].cpu() - truth).abs() <= 1e-14 * size).all()


# --- base steps and gradients ---------------------------------------------------------------------------------------

SGD: dict[str, tuple[Any, ...]] = {  # mu, dampening, wd, nesterov, maximize, first; scale, found_inf
    "plain": ((0.0, 0.0, 0.0, False, False, False), None, None),
    "momentum": ((0.9, 0.1, 0.01, False, True, False), 4.0, 0.0),
    "nesterov": ((0.9, 0.0, 0.01, True, False, True), 3.0, None),
    "overflow": ((0.9, 0.0, 0.01, True, False, False), 4.0, 1.0),
}
ADAM: dict[str, tuple[Any, ...]] = {  # wd, decoupled, amsgrad, maximize; scale, found_inf
    "Adam": ((0.01, False, False, True), None, None),
    "AdamW": ((0.01, True, True, False), 3.0, 0.0),
    "overflow": ((0.0, True, True, False), 4.0, 1.0),
}
STEPPED = [(31,), (0,), (CHUNK + 1025,)]


def number(x: float | None, device: torch.device) -> Tensor | None:
    return None if x is None else torch.tensor(x, device=device)


@pytest.mark.parametrize("options", SGD)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sgd_equals_the_reference_bit_for_bit(device, dtype, options):
    lists = [Lists(STEPPED, dtype, [1] * 3, device=d) for d in (device, "cpu")]
    given, scale, found = SGD[options]
    momentum = [x.make() if given[0] else [] for x in lists]
    for lr in (0.1, torch.tensor(0.03), torch.tensor(0.01, device=device)):
        for x, m, module in zip(lists, momentum, (_triton, _reference), strict=True):
            flags = number(scale, x.device), number(found, x.device)
            module.restore_sgd_(x.params, x.backup, x.grads, m, lr, *given, *flags)
    assert all_same(lists[0].params + momentum[0], lists[1].params + momentum[1])
    assert all_same(lists[0].params, lists[0].backup) == (found == 1)


@pytest.mark.parametrize("options", ADAM)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adam_is_within_twice_the_error_of_the_reference(device, dtype, options, assert_within_twice):
    lists = [Lists(STEPPED, dtype, [1] * 3, device=d) for d in (device, "cpu", "cpu")]
    given, scale, found = ADAM[options]
    results, before = [], []
    for x, module in zip(lists, (_triton, _reference, _reference), strict=True):
        states = [x.make(), *([y.abs() for y in x.make()] for _ in range(2))]
        tensors = [x.params, x.backup, x.grads, *states]
        if len(results) == 2:  # what the others are measured against
            tensors = [[y.double() for y in ys] for ys in tensors]
        if not given[2]:
            tensors[-1] = []
        steps = [torch.tensor(float(k), device=x.device) for k in (0, 3, 1000)]
        before = tensors[1] + copied(tensors[3] + tensors[4] + tensors[5])
        flags = number(scale, x.device), number(found, x.device)
        module.restore_adam_(*tensors, steps, 0.1, 0.9, 0.999, 1e-8, *given, *flags)
        results.append(tensors[0] + tensors[3] + tensors[4] + tensors[5])
        assert [step.item() for step in steps] == ([0, 3, 1000] if found == 1 else [1, 4, 1001])
    for actual, reference, exact, old in zip(*results, before, strict=True):
        if dtype == FLOAT64:
            torch.testing.assert_close(actual.cpu(), exact, rtol=1e-14, atol=1e-14)
        else:
            assert_within_twice(actual.cpu(), reference, exact, old)


def test_steps_in_doubles_and_rates_on_the_device(device):
    outcomes = []
    for rate, kind in ((0.1, FLOAT32), (torch.tensor(0.1, dtype=FLOAT64, device=device), FLOAT64)):
        x = Lists(STEPPED, FLOAT32, [1] * 3, device=device)
        steps = [torch.tensor(7.0, dtype=kind, device=device) for _ in STEPPED]
        states = x.make(), [y.abs() for y in x.make()]
        _triton.restore_adam_(
            x.params, x.backup, x.grads, *states, [], steps, rate, 0.9, 0.99, 1e-8, 0, False, False, False, None, None
        )
        assert [step.item() for step in steps] == [8.0] * 3
        outcomes.append(x.params)
    assert all_same(*outcomes)


@pytest.mark.parametrize("found_inf", [0.0, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_mixed_as_the_reference_does_unless_the_ascent_was_skipped(device, dtype, found_inf):
    lists = [Lists(STEPPED, dtype, [1] * 3, device=d) for d in (device, "cpu")]
    before = copied(lists[0].grads)
    for x, module in zip(lists, (_triton, _reference), strict=True):
        c = torch.tensor([0.3, -0.7], dtype=FLOAT64, device=x.device)
        module.mix_(x.grads, x.params, c, torch.tensor(found_inf, device=x.device))
    assert all_same(lists[0].grads, lists[1].grads)
    assert all_same(lists[0].grads, before) == (found_inf == 1)


# --- launches and tables --------------------------------------------------------------------------------------------


def ascent(x: Lists, rows: Sequence[int]) -> Tensor:
    weighted = [0] * len(rows)
    sums = _triton.segment_norms(x.grads, x.params, rows, weighted, ETA)
    units = torch.arange(len(sums), device=x.device)
    multiplier, _, found_inf = _triton.strengths(
        sums, units, torch.ones_like(units), torch.full_like(sums, 0.05), x.running, None, None, 0.5, -1.0, 10.0, 2, 2
    )
    _triton.perturb_(x.params, x.backup, x.grads, multiplier, rows, weighted, ETA, 2, x.seed)
    return found_inf


def ascending(shapes: Sequence[Any], rows: Sequence[int], device: torch.device, dtype: torch.dtype = FLOAT32) -> Lists:
    lists = Lists(shapes, dtype, rows, device=device)
    lists.running = torch.zeros(2, dtype=FLOAT64, device=device)  # type: ignore[attr-defined]
    return lists


def test_an_ascent_is_three_launches_for_any_number_of_tensors(device, monkeypatch):
    names = launches(monkeypatch)
    lists = ascending(
        [(100,), (3, CHUNK + 1), (0,), (4, 5), (2 * CHUNK,)] + [(7,)] * 30, [1, 3, 1, 4] + [1] * 31, device
    )
    ascent(lists, [1, 3, 1, 4] + [1] * 31)
    assert names == ["_norms_kernel", "_strengths_kernel", "_perturb_kernel"]
    names.clear()
    _triton.restore_(lists.params, lists.backup)
    assert names == ["_copy_kernel"]


def test_tensors_of_other_dtypes_take_a_launch_more(device, monkeypatch):
    names = launches(monkeypatch)
    lists = ascending([(100,)] * 4, [1] * 4, device)
    for xs in (lists.params, lists.grads, lists.backup):
        xs[1::2] = [x.bfloat16() for x in xs[1::2]]
    ascent(lists, [1] * 4)
    assert names == ["_norms_kernel"] * 2 + ["_strengths_kernel"] + ["_perturb_kernel"] * 2
    assert all(same(x, y) is False for x, y in zip(lists.params, lists.backup, strict=True))


def test_no_tensors_at_all(device, monkeypatch):
    names = launches(monkeypatch)
    some = torch.zeros(2, dtype=FLOAT64, device=device)
    assert _triton.segment_norms([], [], [], [], ETA).shape == (0,)
    assert _triton.inner_products([], []).tolist() == [0, 0, 0]
    _triton.perturb_([], [], [], some, [], [], ETA, 2, some)
    _triton.ascend_([], [], [], some, some, [], [], ETA, 2)
    _triton.project_([], [], [], some, [], some)
    _triton.restore_([], [])
    _triton.restore_sgd_([], [], [], [], 0.1, 0, 0, 0, False, False, False, None, None)
    _triton.restore_adam_([], [], [], [], [], [], [], 0.1, 0, 0, 0, 0, False, False, False, None, None)
    _triton.mix_([], [], some, some)
    assert not names


def test_a_table_is_made_when_an_address_a_size_a_dtype_or_a_unit_is_new(device):
    lists = Lists([(6, 4), (8,)], rows=[1, 1], device=device)

    def made(rows: Sequence[int] = (1, 1)) -> int:
        before = len(_triton_base._plans)
        _triton.project_(lists.params, lists.backup, lists.offset, torch.ones(9).double().to(device), rows, lists.seed)
        return len(_triton_base._plans) - before

    assert made() == 1
    assert made() == 0
    lists.params = [x.detach() for x in lists.params]  # new objects, the same memory
    assert made() == 0
    old, lists.offset = lists.offset, copied(lists.offset)
    assert made() == 1
    lists.offset = old
    assert made() == 0
    assert made([6, 1]) == 1
    lists.params, lists.backup, lists.offset = ([x[0], x[1][:7]] for x in (lists.params, lists.backup, lists.offset))
    assert made() == 1
    lists.params, lists.backup = ([x.view(BFLOAT16) for x in xs] for xs in (lists.params, lists.backup))
    lists.params, lists.backup = (
        [x.flatten()[: y.numel()] for x, y in zip(xs, lists.offset, strict=True)] for xs in (lists.params, lists.backup)
    )
    assert made() == 1


def test_few_tables_are_remembered(device, monkeypatch):
    monkeypatch.setattr(_triton_base, "_MOST", 5)
    for _ in range(4):
        lists = Lists([(10,), (10,)], rows=[1, 1], device=device)
        _triton.restore_(lists.params, lists.backup)
        kept = lists  # so that no address comes twice
        assert len(_triton_base._plans) <= 2
    many = Lists([(10,)] * 9, rows=[1] * 9, device=device)
    _triton.restore_(many.params, many.backup)
    assert len(_triton_base._plans) == 1
    assert kept is lists


def test_tensors_that_do_not_fit_are_refused(device):
    lists = Lists([(10,), (10,)], rows=[1, 1], device=device)
    before = copied(lists.written())
    with pytest.raises(ValueError, match="must have its size and its device"):
        _triton.restore_(lists.params, [lists.backup[0], lists.backup[1][:9]])
    assert all_same(lists.written(), before)


# --- the optimizer --------------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "GA-SAM": (torch.optim.AdamW, {"lr": 0.01}),
    "channels": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "segments": "channel", "adaptive": True}),
    "steps": (torch.optim.SGD, {"lr": 0.1, "segments": "global", "adaptive": True, "steps": 2, "risk": "average"}),
    "largest": (torch.optim.Adam, {"lr": 0.01, "norm": math.inf, "steps": 3, "adaptive": "layer", "amsgrad": True}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_steps_as_with_the_reference(device, monkeypatch, name):
    base, options = OPTIMIZERS[name]
    names = launches(monkeypatch)

    def trained(kernels: Any, place: torch.device | str) -> list[Tensor]:
        for operator in _triton.__all__:
            function = getattr(kernels, operator)
            overloads = operator in ("restore_sgd_", "restore_adam_")
            given = SimpleNamespace(default=function, tensor_lr=function) if overloads else function
            monkeypatch.setattr(_ops, operator, given)
        generator = torch.Generator().manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 3))
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) / 4)
        model.to(place)
        optimizer = GASAM(model, base, rho=0.1, **options)
        for _ in range(3):
            x, y = (torch.randn(16, n, generator=generator).to(place) for n in (20, 3))

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                loss = (model(x) - y).square().mean()
                loss.backward()
                return loss

            optimizer.step(closure)
        return [p.detach().cpu() for p in model.parameters()]

    for ours, theirs in zip(trained(_triton, device), trained(_reference, "cpu"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert {"_norms_kernel", "_strengths_kernel"} < set(names)


# --- compiled code --------------------------------------------------------------------------------------------------

COMPILED = r"""
import torch
from gasam import _triton, _triton_base as base, _triton_steps as steps, _triton_sums as sums

F32, BF16, F16, F64 = (base.TYPES[x] for x in (torch.float32, torch.bfloat16, torch.float16, torch.float64))
table = {"table": "*i64", "seed": "*i64"}
plain = dict(WEIGHTED=False, ROWED=False, NORM=2)
absent = dict(p_lr=None, scale=None, found_inf=None)
flags = dict(DECAYS=True, MAXIMIZE=False)
json.dump({name: compile_kernel(kernel, types, base.OPTIONS, **constants) for name, kernel, types, constants in [
    ("norms", sums._norms_kernel, table, dict(G=F32, P=F32, WEIGHTED=False, SOME_NARROW=False)),
    ("norms of rows", sums._norms_kernel, table, dict(G=F32, P=F32, WEIGHTED=True, SOME_NARROW=True)),
    ("strengths", sums._strengths_kernel, {"segments": "*i64", "sizes": "*i64", "found_inf": "*fp32", "scale": "*fp32"},
        dict(REFERENCE=2, NORM=2)),
    ("products", sums._products_kernel, table, dict(A=F32, B=F32)),
    ("perturb", _triton._perturb_kernel, table, dict(P=F32, B=F32, G=F32, **plain)),
    ("perturb rows", _triton._perturb_kernel, table, dict(P=F32, B=F32, G=F32, WEIGHTED=True, ROWED=True, NORM=0)),
    ("perturb bfloat16", _triton._perturb_kernel, table, dict(P=BF16, B=BF16, G=BF16, **plain)),
    ("perturb float64", _triton._perturb_kernel, table, dict(P=F64, B=F64, G=F64, **plain)),
    ("ascend", _triton._ascend_kernel, table, dict(E=F32, B=F32, G=F32, WEIGHTED=True, ROWED=False, NORM=0)),
    ("project float16", _triton._project_kernel, table, dict(P=F16, B=F16, E=F32, ROWED=False)),
    ("restore", steps._copy_kernel, table, dict(A=F32, B=F32)),
    ("mix", steps._mix_kernel, table, dict(G=BF16, K=BF16)),
    ("sgd", steps._sgd_kernel, table, dict(P=F32, B=F32, G=F32, M=F32, NESTEROV=False, FIRST_STEP=False,
        **flags, **absent)),
    ("adam", steps._adam_kernel, table, dict(P=F32, B=F32, G=F32, M=F32, V=F32, X=None, STEP=F32, counts=None,
        DECOUPLED=True, **flags, **absent)),
]}, sys.stdout)
"""


@pytest.fixture(scope="module")
def code(compiled_for_sm_90: Callable[[str], Any]) -> Any:
    return compiled_for_sm_90(COMPILED)


def count(pattern: str, ptx: str) -> int:
    return len(re.findall(pattern, ptx))


def loop(ptx: str) -> str:
    """The loop over whole blocks: from the first vector that is read to the next jump."""
    return re.split(r"ld\.global\S*\.v[24]\.", ptx, maxsplit=1)[1].split("bra", 1)[0]


def test_compiled_code_moves_16_bytes_at_a_time(code):
    """A block of 2048 is 8 elements for each of 256 threads: two vectors of float32 of each list, one of a half."""
    moved = {name: [count(rf"{k}\.global\S*\.v4\.b32", code[name]["ptx"]) for k in ("ld", "st")] for name in code}
    assert moved["norms"] == [2, 0]
    assert moved["perturb"] == [4, 4]
    assert moved["perturb bfloat16"] == [2, 2]
    assert moved["restore"] == [2, 2]
    assert moved["sgd"] == [6, 4]
    assert moved["adam"] == [8, 6]
    assert [count(rf"{k}\.global\S*\.v2\.b64", code["perturb float64"]["ptx"]) for k in ("ld", "st")] == [8, 8]


def test_compiled_code_keeps_to_registers(code):
    for used in code.values():
        assert used["STACK"] == used["LOCAL"] == 0
    for name in ("norms", "perturb", "perturb bfloat16", "restore", "sgd", "adam"):
        assert code[name]["REG"] <= 64  # so that a multiprocessor has room for four programs of 256 threads


def test_compiled_loops_have_no_doubles_and_no_barriers(code):
    for name in ("norms", "perturb", "perturb bfloat16", "ascend", "restore", "sgd", "adam"):
        assert count("f32|b32", loop(code[name]["ptx"]))
        assert not count(r"\.f64|bar\.sync|shared", loop(code[name]["ptx"]))


def test_compiled_arithmetic_is_exact(code):
    for name in ("perturb", "perturb bfloat16", "ascend", "project float16", "sgd", "adam"):
        assert not count(r"\.approx|\.full|(?<!rmi)\.ftz|fma\.rn\.f32", loop(code[name]["ptx"]))
    assert count(r"sqrt\.rn\.f32", loop(code["adam"]["ptx"]))
    assert count(r"div\.rn\.f32", loop(code["adam"]["ptx"]))
    assert count(r"div\.rn\.f32", loop(code["ascend"]["ptx"]))


def test_sums_take_no_atomic_additions_but_of_tickets(code):
    assert count(r"\b(?:atom|red)\.\S*add", code["norms"]["ptx"]) == 1
    assert count(r"\batom\.global\.gpu\.acq_rel\.add\.u64", code["norms"]["ptx"]) == 1
    assert not count(r"\b(?:atom|red)\.\S*f(?:32|64)", code["norms"]["ptx"])
    assert not count(r"\b(?:atom|red)\.", code["strengths"]["ptx"])


def test_the_backup_leaves_the_cache_first(code):
    assert count(r"st\.global\S*L1::evict_first\S*\.v4", code["perturb"]["ptx"]) == 2
    assert count(r"ld\.global\S*L1::evict_first\S*\.v4", code["sgd"]["ptx"]) == 2


# --- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available() or not isinstance(_triton._perturb_kernel, triton.JITFunction):
        pytest.skip("this needs a CUDA device, and TRITON_INTERPRET=0")
    return torch.device("cuda")


def closure_of(model: nn.Module, optimizer: GASAM, x: Tensor) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        loss = model(x).square().mean()
        loss.backward()
        return loss

    return closure


def captured(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Run thrice, and then capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


@pytest.mark.gpu
def test_the_operators_take_these_kernels(cuda, monkeypatch):
    names = launches(monkeypatch)
    lists = Lists(device=cuda)
    torch.ops.gasam.perturb_(
        lists.params, lists.backup, lists.grads, lists.multiplier, ROWS, WEIGHTED, ETA, 2, lists.seed
    )
    torch.ops.gasam.restore_(lists.params, lists.backup)
    assert names == ["_perturb_kernel", "_copy_kernel"]


@pytest.mark.gpu
def test_sums_have_the_same_bits_every_time_and_on_every_stream(cuda):
    lists = Lists([(30_000_017,), (70_000,), (500, 4608), (5,)], rows=[1, 1, 500, 1], device=cuda)
    rows, results = [1, 1, 500, 1], []
    for _ in range(20):
        with torch.cuda.stream(torch.cuda.Stream()):
            results.append(_triton.segment_norms(lists.grads, lists.params, rows, [0] * 4, ETA))
            results.append(_triton.inner_products(lists.grads, lists.params))
    torch.cuda.synchronize()
    assert all(same(x, y) for k in range(2) for x, y in zip(results[k::2], results[k + 2 :: 2], strict=False))
    truth = torch.cat([g.double().square().view(n, -1).sum(1) for g, n in zip(lists.grads, rows, strict=True)])
    assert ((results[0] - truth).abs() <= 1e-7 * truth).all()


@pytest.mark.gpu
def test_three_launches_for_1500_tensors_says_the_profiler(cuda):
    lists = ascending([(2048,)] * 1500, [1] * 1500, cuda)
    ascent(lists, [1] * 1500)
    torch.cuda.synchronize()
    sums = _triton.segment_norms(lists.grads, lists.params, [1] * 1500, [0] * 1500, ETA)
    units = torch.arange(1500, device=cuda)
    given = units, torch.ones_like(units), torch.full_like(sums, 0.05), lists.running, None, None, 0.5, -1.0, 10.0, 2, 2
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        sums = _triton.segment_norms(lists.grads, lists.params, [1] * 1500, [0] * 1500, ETA)
        multiplier, *_ = _triton.strengths(sums, *given)
        _triton.perturb_(
            lists.params, lists.backup, lists.grads, multiplier, [1] * 1500, [0] * 1500, ETA, 2, lists.seed
        )
        torch.cuda.synchronize()
    on_device = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [name for name in on_device if not name.startswith(("Context", "Activity", "Memcpy"))]
    assert kernels == ["_norms_kernel", "_strengths_kernel", "_perturb_kernel"]


@pytest.mark.gpu
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_no_step_waits_for_the_device(cuda, base):
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3)).to(cuda)
    optimizer = GASAM(model, base, rho=0.05, lr=0.01)
    closure = closure_of(model, optimizer, torch.randn(16, 64, device=cuda))
    for _ in range(2):
        optimizer.step(closure)  # compiles, and reserves memory
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients = []  # kept, so that the next ones have other addresses
        for _ in range(3):
            optimizer.step(closure)
            gradients.append([p.grad for p in model.parameters()])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not optimizer.is_perturbed


@pytest.mark.gpu
def test_new_numbers_and_new_addresses_compile_nothing(cuda):
    def run(count: int, rho: float, dtype: torch.dtype = FLOAT32, *, unaligned: bool = False) -> None:
        lists = ascending([(1000,)] * count, [1] * count, cuda, dtype)
        lists.unaligned = unaligned
        lists.params, lists.grads = lists.make(), lists.make()
        ascent(lists, [1] * count)
        momentum = lists.make()
        for lr in (rho, torch.tensor(rho)):
            _triton.restore_sgd_(
                lists.params, lists.backup, lists.grads, momentum, lr, 0.9, rho, 0, False, False, False, None, None
            )

    def compiled() -> int:
        kernels = (_triton._perturb_kernel, _triton_sums._norms_kernel, _triton_sums._strengths_kernel)
        return sum(len(caches[0]) for x in (*kernels, _triton_steps._sgd_kernel) for caches in x.device_caches.values())

    run(3, 0.05)
    before = compiled()
    for count, rho in ((1, 0.0), (16, 1.0), (33, 16.0)):
        run(count, rho, unaligned=count == 33)
    assert compiled() == before


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
def test_every_replay_of_a_cuda_graph_is_an_ascent_along_the_gradients_of_the_moment(cuda, dtype):
    shapes, rows = [(50, 41), (20_000,), (3 * CHUNK,)], [50, 1, 1]
    replayed, eager = (ascending(shapes, rows, cuda, dtype) for _ in range(2))

    def step(x: Lists) -> None:
        ascent(x, rows)
        _triton.restore_sgd_(x.params, x.backup, x.grads, [], 0.1, 0, 0, 0, False, False, False, None, None)
        x.seed.add_(1)

    graphs = [captured(lambda: step(replayed)) for _ in range(2)]  # a capture runs nothing
    for _ in range(6):
        step(eager)
    assert all_same(replayed.written(), eager.written())
    for k in range(4):
        for x, y, z in zip(replayed.grads, eager.grads, eager.make(), strict=True):
            x.copy_(z)
            y.copy_(z)
        graphs[k % 2].replay()
        # Ordinary steps, with other tables, and memory that is used again must not disturb a graph's table.
        step(eager)
        _triton_base._plans.clear()
        torch.full((1_000_000,), -1, device=cuda)
        torch.full((1_000_000,), -1).pin_memory()
        assert all_same(replayed.written(), eager.written())


@pytest.mark.gpu
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_a_whole_step_is_captured_in_a_cuda_graph(cuda, base):
    options = {"lr": 0.01, "rho": 0.05} | ({"capturable": True} if base is torch.optim.AdamW else {"momentum": 0.9})
    finals = []
    for graphed in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3)).to(cuda)
        optimizer, x = GASAM(model, base, **options), torch.randn(16, 64, device=cuda)
        closure = closure_of(model, optimizer, x)
        run: Callable[[], object] = lambda step=optimizer.step, closure=closure: step(closure)  # noqa: E731
        if graphed:
            run = captured(run).replay
        else:
            for _ in range(3):
                run()
        for k in range(5):
            x.fill_(k / 5)
            run()
        finals.append([p.detach().clone() for p in model.parameters()])
    for eager, replayed in zip(*finals, strict=True):
        torch.testing.assert_close(eager, replayed, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("found", [None, 0.0, 1.0])
def test_steps_that_are_counted_on_the_cpu(cuda, found):
    outcomes = []
    for place in ("cpu", cuda):
        x = Lists(STEPPED, FLOAT32, [1] * 3, device=cuda)
        steps = [torch.tensor(7.0, device=place) for _ in STEPPED]
        states = x.make(), [y.abs() for y in x.make()]
        flags = None, number(found, cuda)
        _triton.restore_adam_(
            x.params, x.backup, x.grads, *states, [], steps, 0.1, 0.9, 0.99, 1e-8, 0, False, False, False, *flags
        )
        assert [step.item() for step in steps] == [7.0 if found else 8.0] * 3
        outcomes.append(x.params)
    assert all_same(*outcomes)
