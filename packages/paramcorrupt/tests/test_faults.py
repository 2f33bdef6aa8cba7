"""Faults: as many bits of storage as were asked for, evenly spread, the same for a seed everywhere, and taken back."""

from __future__ import annotations

import json
import math
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import Tensor, nn

from paramcorrupt import Faults, bitflip, corrupted
from paramcorrupt._formats import _OF_DTYPE, FORMATS
from paramcorrupt._sampling import binomial, separate, subsets
from paramcorrupt._storage import bytes_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DTYPES = list(_OF_DTYPE)
FLIPS = ["single", "multi", "burst"]


def noise(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Random bits, among them those of NaN and infinity."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    size = math.prod(shape) * dtype.itemsize
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator).view(dtype).view(shape)


def snapshot(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.detach().contiguous().view(-1).view(torch.uint8).clone() for name, x in model.items()}


def popcount(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> int:
    return sum(byte.bit_count() for name in before for byte in (before[name] ^ after[name]).tolist())


# --- which bits -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from([x for x in DTYPES if x != torch.bool]),
    fault=st.sampled_from(FLIPS),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
)
def test_as_many_bits_of_storage_flip_as_were_asked_for(
    dtype: torch.dtype, fault: str, share: float, seed: int
) -> None:
    model = {"a": noise((5, 3), dtype), "empty": noise((0,), dtype), "b": noise((), dtype, 1), "c": noise((7,), dtype)}
    elements = 23 * (2 if dtype == torch.float4_e2m1fn_x2 else 1)
    width = {"single": 1, "multi": 2, "burst": 4}[fault]
    most = elements if fault == "multi" else elements * FORMATS[_OF_DTYPE[dtype].name].width // width
    count = round(share * most)
    before, plan = snapshot(model), bitflip(model, fault=fault, count=count, seed=seed)
    with corrupted(model, plan) as applied:
        assert popcount(before, snapshot(model)) == applied.changed == plan.bits == count * width
    assert popcount(before, snapshot(model)) == 0
    assert plan.count == count


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0, 1, None])
def test_stuck_bits_have_their_value_and_those_that_had_it_are_masked(dtype: torch.dtype, value: int | None) -> None:
    model = {"a": noise((11, 3), dtype), "b": noise((9,), dtype, 1)}
    before, plan = snapshot(model), bitflip(model, fault="stuck", value=value, count=25, seed=4)
    with corrupted(model, plan) as applied:
        assert popcount(before, snapshot(model)) == applied.changed == 25 - plan.masked
        for row in plan.rows():
            place = row["element"] * _OF_DTYPE[dtype].stride + row["bit"]
            assert bytes_of(model[row["tensor"]])[place // 8] >> place % 8 & 1 == row["value"]
            assert value is None or row["value"] == value
    assert 0 < plan.masked < 25
    assert popcount(before, snapshot(model)) == 0
    for name, data in before.items():
        index, _ = plan.of_bytes(name, data)
        assert index.numel() + plan.masked == 25 or len(plan.names) == 2
    with pytest.raises(ValueError, match=r"data must be the bytes of tensor 'a', since stuck bits"):
        plan.of_bytes("a")


def test_multiple_faults_are_different_bits_of_different_elements() -> None:
    model = {"a": torch.zeros(40), "b": torch.zeros(30, dtype=torch.bfloat16)}
    plan = bitflip(model, fault="multi", width=5, count=60, seed=1)
    elements = [(fault.tensor, {element for element, _ in fault.places}) for fault in plan]
    assert all(len(element) == 1 for _, element in elements)
    assert len({(name, *element) for name, element in elements}) == 60
    assert all(len({bit for _, bit in fault.places}) == 5 for fault in plan)


@pytest.mark.parametrize("count", [1, 9, 22])
def test_bursts_are_runs_of_storage_that_do_not_meet(count: int) -> None:
    model = {"a": torch.zeros(7, dtype=torch.int8), "b": torch.zeros(2)}
    for seed in range(8):
        places = [(x.tensor, [e * 8 * model[x.tensor].itemsize + b for e, b in x.places]) for x in bitflip(
            model, fault="burst", width=5, count=count, seed=seed
        )]  # fmt: skip
        assert all(run == list(range(run[0], run[0] + 5)) for _, run in places)
        assert len({(name, bit) for name, run in places for bit in run}) == 5 * count


def test_bursts_cross_elements_unless_bits_are_chosen() -> None:
    model = {"a": torch.zeros(200, dtype=torch.int8)}
    assert any(len({e for e, _ in x.places}) == 2 for x in bitflip(model, fault="burst", count=100, seed=0))
    plan = bitflip(model, fault="burst", bits=[1, 2, 3, 4, 6], width=3, count=200, seed=0)
    runs = [[bit for _, bit in fault.places] for fault in plan]
    assert {tuple(run) for run in runs} == {(1, 2, 3), (2, 3, 4)}
    assert all(len({e for e, _ in fault.places}) == 1 for fault in plan)


@pytest.mark.parametrize(
    ("dtype", "sign", "exponent", "mantissa"),
    [
        (torch.float64, 1, 11, 52),
        (torch.float32, 1, 8, 23),
        (torch.float16, 1, 5, 10),
        (torch.bfloat16, 1, 8, 7),
        (torch.float8_e4m3fn, 1, 4, 3),
        (torch.float8_e5m2, 1, 5, 2),
        (torch.float8_e8m0fnu, 0, 8, 0),
        (torch.float4_e2m1fn_x2, 1, 2, 1),
        (torch.int8, 1, 0, 7),
        (torch.uint8, 0, 0, 8),
        (torch.bool, 0, 0, 1),
    ],
)
def test_fields_are_those_of_the_dtype(dtype: torch.dtype, sign: int, exponent: int, mantissa: int) -> None:
    model = {"a": noise((6,), dtype)}
    for field, width in (("sign", sign), ("exponent", exponent), ("mantissa", mantissa)):
        if width:
            elements = 12 if dtype == torch.float4_e2m1fn_x2 else 6
            plan = bitflip(model, bits=field, count=elements * width, seed=0)
            assert {row["field"] for row in plan.rows()} == {field}
            assert plan.candidates == plan.count == elements * width
        else:
            with pytest.raises(ValueError, match=rf"room for a single fault of 1 bit, got none .* bits='{field}'"):
                bitflip(model, bits=field, count=1, seed=0)
    if dtype.is_floating_point and dtype.itemsize > 1:
        values = noise((50,), dtype)
        with corrupted({"a": (flipped := values.clone())}, bitflip({"a": flipped}, bits="sign", count=50, seed=0)):
            assert torch.equal(flipped.nan_to_num(), -values.nan_to_num())


def test_flips_are_those_of_other_injectors() -> None:
    """Known answers of MRFI's tests."""
    zero = {"a": torch.zeros(16, dtype=torch.float16)}
    for bit, expected in ((0, 2**-24), (9, 2**-15), (12, 2**-11), (13, 0.0078125), (14, 2.0)):
        with corrupted(zero, bitflip(zero, bits=bit, count=16, seed=0)):
            assert zero["a"].tolist() == [expected] * 16
    small = {"a": torch.tensor([1, 2, 3, -1], dtype=torch.int8)}
    with corrupted(small, bitflip(small, bits=7, count=4, seed=0)):
        assert small["a"].tolist() == [-127, -126, -125, 127]


def test_packed_numbers_are_hit_by_the_nibble() -> None:
    model = {"layer.packed": torch.zeros(50, dtype=torch.uint8), "layer.scale": torch.ones(3)}
    plan = bitflip(model, bits=3, count=100, seed=0, formats={"*.packed": "int4"})
    inside = [row for row in plan.rows() if row["tensor"] == "layer.packed"]
    assert {row["field"] for row in inside} == {"sign"}
    with corrupted(model, plan):
        nibbles = torch.stack([model["layer.packed"] & 15, model["layer.packed"] >> 4], 1).flatten()
        assert nibbles.count_nonzero() == len(inside)
        assert nibbles[[row["element"] for row in inside]].unique().tolist() == [8]
    words = bitflip({"w": torch.zeros(5, dtype=torch.int32)}, count=160, seed=0, formats={"w": "uint4"})
    assert {(row["element"], row["bit"]) for row in words.rows()} == {(e, b) for e in range(40) for b in range(4)}
    with pytest.raises(ValueError, match=r"bits must be in \[0, 3\] for int4, as tensor 'w' is, got 4"):
        bitflip({"w": torch.zeros(5, dtype=torch.uint8)}, bits=4, count=1, seed=0, formats={"w": "int4"})
    with pytest.raises(ValueError, match=r"formats must fit into torch.uint8.*got 'float32'"):
        bitflip({"w": torch.zeros(5, dtype=torch.uint8)}, count=1, seed=0, formats={"w": "float32"})
    with pytest.raises(ValueError, match=r"formats must be among float64, .*got 'nf4'"):
        bitflip({"w": torch.zeros(5, dtype=torch.uint8)}, count=1, seed=0, formats={"w": "nf4"})


def test_every_bit_is_as_likely_as_any_other() -> None:
    model = {"a": torch.zeros(3), "b": torch.zeros(5, dtype=torch.bfloat16), "c": torch.zeros(11, dtype=torch.int8)}
    for fault, options in (("single", {}), ("stuck", {}), ("multi", {"bits": [0, 1, 2, 6, 7]})):
        hits: dict[Any, int] = {}
        for seed in range(30):
            for row in bitflip(model, fault=fault, count=8, seed=seed, **options).rows():
                key = row["tensor"], row["element"], row["bit"]
                hits[key] = hits.get(key, 0) + 1
        places = 19 * 5 if options else 3 * 32 + 5 * 16 + 11 * 8
        counts = [*hits.values(), *[0] * (places - len(hits))]
        assert stats.chisquare(counts).pvalue > 1e-3


def test_runs_and_subsets_are_uniform() -> None:
    runs: dict[Any, int] = {}
    for seed in range(250):
        key = tuple(separate(12, 4, 2, seed).tolist())
        runs[key] = runs.get(key, 0) + 1
    assert len(runs) == math.comb(12 - 2 * 3, 2)
    assert stats.chisquare(list(runs.values())).pvalue > 1e-3
    picks = subsets(torch.full((20000,), 5), 3, torch.arange(20000), 3)
    keys = (picks * torch.tensor([25, 5, 1])).sum(1).unique(return_counts=True)
    assert len(keys[0]) == 60
    assert stats.chisquare(keys[1].tolist()).pvalue > 1e-3


# --- how many ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "p"), [(10, 0.3), (700, 0.5), (10**11, 3e-11), (10**17, 1e-15), (40, 1.0)])
def test_a_rate_gives_binomial_counts(n: int, p: float) -> None:
    counts = [binomial(n, p, seed) for seed in range(300)]
    jitter = torch.rand(300, generator=torch.Generator().manual_seed(0)).numpy()
    transformed = stats.binom.cdf(counts, n, p) - jitter * stats.binom.pmf(counts, n, p)
    assert p == 1.0 or stats.kstest(transformed, "uniform").pvalue > 1e-3
    assert p < 1.0 or counts == [n] * 300


def test_rates_of_all_sizes_cost_what_the_faults_cost() -> None:
    model = {"w": SimpleNamespace(shape=(10**6, 50_000), dtype=torch.bfloat16), "b": torch.empty(9, device="meta")}
    assert bitflip(model, rate=1e-13, seed=0).count <= 5
    assert bitflip(model, rate=0, seed=0).count == 0
    plan = bitflip(model, rate=1e-9, seed=0)
    assert abs(plan.count - 800) < 5 * math.sqrt(800)
    assert plan.candidates == 8 * 10**11 + 9 * 32
    assert bitflip(model, rate=1e-11, seed=0, fault="stuck").masked is None
    assert abs(binomial(10**11, 1e-2, 5) - 1e9) < 5 * math.sqrt(1e9)
    with pytest.raises(ValueError, match=r"rate must leave room for multi faults, of which 4 fit, got 1.0: 128"):
        bitflip({"w": torch.zeros(4)}, fault="multi", rate=1.0, seed=0)


# --- the same everywhere ----------------------------------------------------------------------------------------------


def test_a_seed_gives_one_plan_for_any_threads_values_and_layout() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(4, 5))
    plan = bitflip(model, count=50, seed=12)
    assert plan.rows()[0] == {"fault": 0, "tensor": "0.weight", "element": 6, "bit": 6, "field": "mantissa"}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    other = bitflip(model.to(memory_format=torch.channels_last), count=50, seed=12)
    torch.set_num_threads(threads)
    header = {name: SimpleNamespace(shape=x.shape, dtype=x.dtype) for name, x in model.named_parameters()}
    assert plan.rows() == other.rows() == bitflip(header, count=50, seed=12).rows()
    assert plan.rows() != bitflip(model, count=50, seed=13).rows()
    assert list(plan) == list(bitflip(model, count=50, seed=12))


def test_elements_are_counted_in_row_major_order_whatever_the_layout() -> None:
    rows = {"w": torch.randn(4, 3, 2, 2)}
    columns = {"w": rows["w"].clone(memory_format=torch.channels_last)}
    gaps = {"w": torch.randn(4, 3, 2, 4)[..., ::2].copy_(rows["w"])}
    plan = bitflip(rows, count=40, seed=0)
    with corrupted(rows, plan), corrupted(columns, plan), corrupted(gaps, plan):
        bits = [x["w"].contiguous().view(torch.int32) for x in (rows, columns, gaps)]
        assert torch.equal(bits[0], bits[1])
        assert torch.equal(bits[0], bits[2])


def test_tied_tensors_are_one_memory_and_buffers_are_hit_when_asked() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
    model[1].weight = model[0].weight
    assert bitflip(model, count=1, seed=0).candidates == 8 * 32
    plan = bitflip(model, buffers=True, bits="mantissa", count=100, seed=0)
    assert plan.candidates == 12 * 23 + 63
    assert "2.num_batches_tracked" in plan.names
    before = snapshot(model.state_dict())
    with corrupted(model, plan):
        assert torch.equal(model[0].weight, model[1].weight)
        state = {name: x for name, x in model.state_dict().items() if name != "1.weight"}
        assert popcount({name: before[name] for name in state}, snapshot(state)) == 100
    assert popcount(before, snapshot(model.state_dict())) == 0


# --- written and taken back -------------------------------------------------------------------------------------------


def test_each_fault_is_alone_in_the_weights_and_gone_after_the_block() -> None:
    model = {"a": noise((30,), torch.float32), "b": noise((50,), torch.bfloat16)}
    before = snapshot(model)
    for fault, width in (("single", 1), ("multi", 2), ("burst", 4)):
        plan = bitflip(model, fault=fault, count=15, seed=0)
        with plan.each(model) as faults:
            for number, one in enumerate(faults):
                assert popcount(before, snapshot(model)) == width
                assert one == list(plan)[number]
        assert popcount(before, snapshot(model)) == 0
    stuck = bitflip(model, fault="stuck", count=15, seed=0)
    with stuck.each(model) as faults:
        flips = [popcount(before, snapshot(model)) for _ in faults]
    assert sorted(set(flips)) == [0, 1]
    assert sum(flips) == 15 - stuck.masked


def test_a_fault_is_taken_back_when_the_body_raises_or_stops() -> None:
    model = {"a": noise((30,), torch.float32)}
    before, plan = snapshot(model), bitflip(model, count=15, seed=0)
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), plan.each(model) as faults:  # noqa: PT012 (what the block ends with is the subject)
            next(faults)
            assert popcount(before, snapshot(model)) == 1
            raise error
        assert popcount(before, snapshot(model)) == 0
        with pytest.raises(error), corrupted(model, plan):
            raise error
        assert popcount(before, snapshot(model)) == 0
    with plan.each(model) as faults:
        next(faults)
    assert popcount(before, snapshot(model)) == 0


def test_bytes_of_a_file_flip_as_the_tensor_does() -> None:
    model = {"a": noise((30, 3), torch.float32), "b": noise((50,), torch.int8)}
    for fault in (*FLIPS, "stuck"):
        plan = bitflip(model, fault=fault, count=20, seed=0)
        files = snapshot(model)
        for name, data in files.items():
            index, mask = plan.of_bytes(name, data)
            torch.ops.paramcorrupt.xor_bits_(data, index, mask)
        with corrupted(model, plan):
            assert popcount(files, snapshot(model)) == 0
    assert plan.of_bytes("missing")[0].numel() == 0


def test_everything_is_checked_before_the_first_write() -> None:
    model = {"a": torch.zeros(4), "b": torch.zeros(5)}
    plan = bitflip(model, count=200, seed=0)
    for other, message in (
        ({"a": torch.zeros(4), "b": torch.zeros(6)}, r"'b' must be as in the plan, torch.float32 of shape \(5,\), got"),
        ({"a": torch.zeros(4), "b": torch.zeros(5).half()}, r"'b' must be as in the plan"),
        ({"a": torch.zeros(4)}, r"must have every tensor of the plan, got none with the name 'b'"),
    ):
        with pytest.raises(ValueError, match=message), corrupted(other, plan):
            pass
        assert other["a"].count_nonzero() == 0
    meta = {"a": torch.zeros(4), "b": torch.zeros(5, device="meta")}
    with pytest.raises(TypeError, match=r"tensor 'b' must have data, got a meta tensor"), corrupted(meta, plan):
        pass


class Doubled(Tensor):
    """A tensor that is twice what it holds, as quantised tensors compute what they are."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Doubled:
        return Tensor._make_wrapper_subclass(cls, held.shape, dtype=torch.float32)  # type: ignore[attr-defined]

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return Doubled(args[0].held)
        plain = [x.held.float() * 2 if isinstance(x, Doubled) else x for x in args]
        return func(*plain, **(kwargs or {}))


class Closed(Tensor):
    pass


def test_subclasses_are_hit_where_their_memory_is() -> None:
    model = nn.Linear(3, 2, bias=False)
    held = torch.tensor([[1, 2, 3], [-1, 4, 5]], dtype=torch.int8)
    model.weight = nn.Parameter(Doubled(held), requires_grad=False)
    plan = bitflip(model, bits=7, count=6, seed=0)
    assert plan.names == ("weight.held",)
    with corrupted(model, plan):
        assert held.tolist() == [[-127, -126, -125], [127, -124, -123]]
    assert held.tolist() == [[1, 2, 3], [-1, 4, 5]]
    with pytest.raises(TypeError, match=r"'w' must be plain, or a subclass .* got Closed"):
        bitflip({"w": torch.zeros(2).as_subclass(Closed)}, count=1, seed=0)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [*FLIPS, "stuck"])
def test_a_plan_comes_back_from_its_file(fault: str, tmp_path: Path) -> None:
    model = {"a": noise((30, 3), torch.float32), "b": noise((50,), torch.bool), "c": noise((50,), torch.int8)}
    plan = bitflip(model, fault=fault, rate=0.004, seed=3, formats={"c": "int4"})
    plan.save(tmp_path / "plan.safetensors")
    again = Faults.load(tmp_path / "plan.safetensors")
    assert again.rows() == plan.rows()
    assert again.facts() == plan.facts()
    assert again.parts == plan.parts
    assert json.loads(plan.to_json())["schema"] == "paramcorrupt/faults/1"


def _damage(path: Path, how: str) -> None:
    arrays = load_file(path)
    with safe_open(path, "pt") as file:
        plan = json.loads(file.metadata()["paramcorrupt"])
    index, mask = arrays["byte_index"], arrays["mask"]
    {
        "schema": lambda: plan.update(schema="paramcorrupt/corruption/1"),
        "fault": lambda: plan.update(fault="eval"),
        "width": lambda: plan.update(width=True),
        "seed": lambda: plan.update(seed=1 << 70),
        "masked": lambda: plan.update(masked=10**6),
        "rate": lambda: plan.update(rate=math.nan),
        "missing": lambda: plan.pop("parts"),
        "parts": lambda: plan.update(parts=[plan["parts"][0]]),
        "name": lambda: plan["parts"][0].__setitem__(0, 7),
        "twice": lambda: plan["parts"][1].__setitem__(0, plan["parts"][0][0]),
        "dtype": lambda: plan["parts"][0].__setitem__(1, "torch.load"),
        "shape": lambda: plan["parts"][0].__setitem__(2, [1, 1]),
        "negative shape": lambda: plan["parts"][0].__setitem__(2, [-30, -3]),
        "format": lambda: plan["parts"][0].__setitem__(3, "float64"),
        "gap": lambda: plan["parts"][0].__setitem__(4, 1),
        "byte": lambda: index.__setitem__(-1, 10**9),
        "negative": lambda: index.__setitem__(0, -1),
        "order": lambda: index.__setitem__(1, 0),
        "mask": lambda: mask.__setitem__(0, 3),
        "zero": lambda: mask.__setitem__(0, 0),
        "unused": lambda: mask.__setitem__(-1, 2),
        "array": lambda: arrays.update(mask=mask[:-1].clone()),
        "type": lambda: arrays.update(mask=mask.to(torch.int16)),
        "value": lambda: arrays.update(value=mask.clone()),
    }[how]()
    save_file(arrays, path, metadata={"paramcorrupt": json.dumps(plan)})


@pytest.mark.parametrize(
    "how",
    ["schema", "fault", "width", "seed", "masked", "rate", "missing", "parts", "name", "twice", "dtype", "shape",
     "negative shape", "format", "gap", "byte", "negative", "order", "mask", "zero", "unused", "array", "type",
     "value"],
)  # fmt: skip
def test_a_damaged_file_is_refused(how: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.safetensors"
    bitflip({"a": noise((30, 3), torch.float32), "b": noise((50,), torch.bool)}, count=300, seed=3).save(path)
    Faults.load(path)
    _damage(path, how)
    with pytest.raises(ValueError, match=r"plan.safetensors must be a file that Faults.save wrote, got: "):
        Faults.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"w": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"must have the schema paramcorrupt/faults/1"):
        Faults.load(path)
    path.write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"must be a file that Faults.save wrote"):
        Faults.load(path)
    with pytest.raises(FileNotFoundError):
        Faults.load(tmp_path / "nothing")


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, r"exactly one of rate and count must be given, got rate=None and count=None"),
        (
            {"rate": 0.1, "count": 1},
            ValueError,
            r"exactly one of rate and count must be given, got rate=0.1 and count=1",
        ),
        ({"count": 129}, ValueError, r"count must be from 0 to 128, the single faults that fit, got 129"),
        ({"count": -1}, ValueError, r"count must be from 0 to 128"),
        ({"count": True}, TypeError, r"count must be an integer, got True"),
        ({"count": 1.0}, TypeError, r"count must be an integer, got 1.0"),
        ({"count": 5, "fault": "multi"}, ValueError, r"count must be from 0 to 4, the multi faults that fit, got 5"),
        ({"count": 33, "fault": "burst"}, ValueError, r"count must be from 0 to 32, the burst faults that fit, got 33"),
        ({"rate": 1.5}, ValueError, r"rate must be from 0 to 1, got 1.5"),
        ({"rate": math.nan}, ValueError, r"rate must be from 0 to 1, got nan"),
        ({"rate": "1"}, TypeError, r"rate must be a number, got '1'"),
        ({"count": 1, "bits": 32}, ValueError, r"bits must be in \[0, 31\] for float32, as tensor 'w' is, got 32"),
        ({"count": 1, "bits": [3, -1]}, ValueError, r"bits must be in \[0, 31\] for float32, as tensor 'w' is, got -1"),
        ({"count": 1, "bits": "parity"}, ValueError, r"bits must be positions or among sign, .* got 'parity'"),
        ({"count": 1, "bits": 1.5}, TypeError, r"bits must be positions or among sign"),
        ({"count": 1, "bits": []}, ValueError, r"bits must have at least one position, got none"),
        ({"count": 1, "fault": "double"}, ValueError, r"fault must be among single, multi, burst, stuck, got 'double'"),
        ({"count": 1, "width": 2}, ValueError, r"width must be given only for multi and burst faults, got 2"),
        ({"count": 1, "fault": "multi", "width": 65}, ValueError, r"width must be from 1 to 64, got 65"),
        (
            {"count": 1, "fault": "burst", "width": 4, "bits": [1, 2, 3]},
            ValueError,
            r"room for a burst fault of 4 bits",
        ),
        ({"count": 1, "value": 1}, ValueError, r"value must be given only for stuck faults, got 1"),
        ({"count": 1, "fault": "stuck", "value": 2}, ValueError, r"value must be 0, 1 or None, got 2"),
        ({"count": 1, "seed": -1}, ValueError, r"seed must be non-negative and below 2\^63, got -1"),
        ({"count": 1, "seed": "0"}, TypeError, r"seed must be an integer, got '0'"),
    ],
)
def test_bad_arguments_are_named_with_their_limit(options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        bitflip({"w": torch.zeros(4)}, **{"seed": 0, **options})


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ({"w": torch.zeros(2, dtype=torch.complex64)}, TypeError, r"'w' must have a dtype whose bits .*complex64"),
        ({"w": torch.eye(2).to_sparse()}, TypeError, r"tensor 'w' must be strided, got torch.sparse_coo"),
        ({"w": torch.zeros(1).expand(3)}, ValueError, r"tensor 'w' must have memory for each element"),
        ({"w": (x := torch.zeros(4)), "v": x[1:]}, ValueError, r"'w' and 'v', which overlap"),
        ({}, ValueError, r"room for a single fault"),
        (3, TypeError, r"model must be a module, a mapping"),
    ],
)
def test_models_whose_memory_is_out_of_reach_are_refused(model: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        bitflip(model, count=1, seed=0)


def test_plans_of_several_threads_do_not_meet() -> None:
    """Planning keeps no state between calls."""
    model = {"w": torch.zeros(100)}
    expected = bitflip(model, count=30, seed=1).rows()
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(bitflip(model, count=30, seed=1).rows())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 3
