"""What only the Triton kernel has: tables, launches, compiled code. Interpreted on CPU, and if marked, run on a GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from adamod import _reference

if TYPE_CHECKING:
    from collections.abc import Iterator

triton = pytest.importorskip("triton", reason="there is no Triton here")
numpy = pytest.importorskip("numpy", reason="Triton's interpreter needs NumPy")

from adamod import _triton  # noqa: E402

BFLOAT16, FLOAT32, FLOAT64, INT8 = torch.bfloat16, torch.float32, torch.float64, torch.uint8
# With these and few-bit gradients every product is exact, so that nothing depends on whether multiply-adds are fused.
EXACT = (2.0**-6, 0.5, 0.5, 0.5, 1e-8, 0.25)
USUAL = (1e-2, 0.9, 0.999, 0.99, 1e-8, 0.1)
PLAIN = {"paper": False, "bounded_decay": False, "skip_unseen": False, "maximize": False, "seed": None}
SIZES = (0, 1, 31, 1025, 5003)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    interpreted = not isinstance(_triton._kernel, triton.JITFunction)
    if request.param == "cpu" and not interpreted:
        pytest.skip("the kernel is not interpreted")
    if request.param == "cuda" and (interpreted or not torch.cuda.is_available()):
        pytest.skip("this needs a CUDA device, and TRITON_INTERPRET=0")
    _triton._plans.clear()
    with numpy.errstate(all="ignore"):
        yield torch.device(request.param)


class Problem:
    """The arguments of an operator call: parameters of given sizes or shapes, and states of given dtypes."""

    def __init__(
        self,
        shapes: Any = SIZES,
        *,
        dtype: torch.dtype = FLOAT32,
        grad: torch.dtype | None = None,
        states: tuple[torch.dtype, ...] | None = None,
        device: torch.device | str = "cpu",
        unaligned: bool = False,
    ) -> None:
        def make(x: Tensor) -> Tensor:
            return torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape) if unaligned else x

        generator = torch.Generator().manual_seed(0)
        states = states or (FLOAT64 if dtype == FLOAT64 else FLOAT32,) * 3
        start = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        self.device, self.grad_dtype, self.generator = torch.device(device), grad or dtype, generator
        self.params = [make(x.to(device)) for x in start]
        self.states = [[make(torch.zeros_like(x, dtype=state, device=device)) for x in start] for state in states]
        self.scales = [
            torch.zeros(-(-x.numel() // 256) if state == INT8 else 0, dtype=torch.int16, device=device)
            for x in start
            for state in states
        ]
        self.steps = torch.zeros(len(start) + 1, device=device)
        self.index = [(k + 2) % (len(start) + 1) for k in range(len(start))]
        self.stats = torch.zeros(len(start) + 1, 130, dtype=torch.int64, device=device)
        self.new_gradients()

    def new_gradients(self) -> None:
        self.grads = [
            (torch.randint(-8, 9, x.shape, generator=self.generator) / 8).to(self.device, self.grad_dtype)
            for x in self.params
        ]

    def arguments(self) -> tuple[Any, ...]:
        return self.params, self.grads, *self.states, self.scales, self.steps, self.index

    def tensors(self) -> list[Tensor]:
        return [*self.params, *(x for xs in self.states for x in xs), *self.scales, self.steps, self.stats]

    def step(self, function: Any = _triton.step_, hyper: tuple[float, ...] = EXACT, **options: Any) -> None:
        numbers = torch.tensor(hyper, dtype=torch.float64)
        with pytest.MonkeyPatch.context() as patch:
            # torch takes square roots with MKL, which rounds one in two hundred of them wrongly.
            patch.setattr(Tensor, "sqrt", lambda x: torch.from_numpy(numpy.asarray(numpy.sqrt(x.numpy()))))
            function(*self.arguments(), numbers, **{**PLAIN, "stats": self.stats, **options})


def same(x: Tensor, y: Tensor) -> bool:
    """Whether numbers are the same; doubles as floats, for beta^t may differ in its last bit."""
    x, y = (z.cpu().float() if z.dtype == FLOAT64 else z.cpu() for z in (x, y))
    return bool(((x == y) | (x.isnan() & y.isnan())).all())


def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """A list that will hold the grid of each launch."""
    grids: list[tuple[int, ...]] = []
    kernel = _triton._kernel

    class Counted:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            grids.append(grid)
            return kernel[grid]

    monkeypatch.setattr(_triton, "_kernel", Counted())
    return grids


def builds(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A list that will grow with each building of tables."""
    built: list[None] = []
    build = _triton._launches
    monkeypatch.setattr(_triton, "_launches", lambda *args: (built.append(None), build(*args))[1])
    return built


# --- against the reference ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtypes",
    [
        {},
        {"grad": BFLOAT16, "states": (FLOAT64, FLOAT32, BFLOAT16)},
        {"dtype": BFLOAT16, "states": (INT8, BFLOAT16, INT8), "unaligned": True},
        {"dtype": FLOAT64, "states": (INT8, BFLOAT16, INT8)},
    ],
    ids=lambda dtypes: "-".join(str(x).removeprefix("torch.").replace(" ", "") for x in dtypes.values()) or "float32",
)
@pytest.mark.parametrize(
    "options",
    [
        {"seed": 7},
        {"paper": True, "bounded_decay": True, "seed": None},
        {"skip_unseen": True, "maximize": True, "seed": 2**32 - 1, "grad_scale": 4.0},
    ],
    ids=["code", "paper", "skip"],
)
def test_steps_equal_the_reference_where_every_product_is_exact(device, dtypes, options):
    kernel, reference = Problem(device=device, **dtypes), Problem(**dtypes)
    scale = options.get("grad_scale")
    for _ in range(2):
        kernel.step(**{**options, "grad_scale": scale and torch.tensor(scale, device=device)})
        reference.step(_reference.step_, **{**options, "grad_scale": scale and torch.tensor(scale)})
        for x, y in zip(kernel.tensors(), reference.tensors(), strict=True):
            assert x.dtype == y.dtype
            assert same(x, y)
        kernel.new_gradients()
        reference.new_gradients()
    assert reference.stats[:, 2:].sum() > 0


@pytest.mark.parametrize("states", [(FLOAT32,) * 3, (INT8, BFLOAT16, INT8)], ids=["float32", "int8"])
def test_tensors_of_several_chunks(device, states):
    kernel, reference = (Problem([2 * _triton.CHUNK.value + 1500], states=states, device=d) for d in (device, "cpu"))
    kernel.step(seed=1)
    reference.step(_reference.step_, seed=1)
    assert all(map(same, kernel.tensors(), reference.tensors()))


def test_elements_beyond_2_to_the_32(device, monkeypatch):
    far = 3 * 2**32 + 5 * _triton.CHUNK.value
    kernel, reference = (
        Problem([3000], dtype=BFLOAT16, states=(INT8, BFLOAT16, INT8), device=d) for d in (device, "cpu")
    )
    launches, arange = _triton._launches, torch.arange

    def shifted(*args: Any) -> list[Any]:
        """As if each tensor began at element `far` of a longer one."""
        (launch,) = launches(*args)
        sizes = [x[0].itemsize for x in (kernel.params, kernel.grads, *kernel.states)]
        launch.table[:5] -= torch.tensor(sizes, device=device) * far
        launch.table[5:8] -= far // 256 * 2
        launch.table[_triton.SIZE.value] += far
        launch.table[_triton.FIRST.value] -= far // _triton.CHUNK.value
        return [launch]

    monkeypatch.setattr(_triton, "_launches", shifted)
    for _ in range(2):
        kernel.step(seed=11, stats=None)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "arange", lambda n, **options: arange(n, **options) + far)
            reference.step(_reference.step_, seed=11, stats=None)
    assert all(map(same, kernel.tensors(), reference.tensors()))
    near = Problem([3000], dtype=BFLOAT16, states=(INT8, BFLOAT16, INT8))
    near.step(_reference.step_, seed=11, stats=None)
    near.step(_reference.step_, seed=11, stats=None)
    assert not all(map(same, near.tensors(), reference.tensors()))


def test_numbers_on_the_device_are_those_on_the_host(device, monkeypatch):
    by_value, by_address = Problem(device=device), Problem(device=device)
    by_value.step(hyper=USUAL, paper=True)
    monkeypatch.setattr(_triton, "_numbers", lambda hyper: (hyper.to(device), 0, 0, 0, 0, 0, 0))
    by_address.step(hyper=USUAL, paper=True)
    assert all(map(same, by_value.tensors(), by_address.tensors()))


# --- launches and tables --------------------------------------------------------------------------------------------


def test_one_launch_for_all_tensors_of_the_same_dtypes(device, monkeypatch):
    grids = launches(monkeypatch)
    Problem([100] * 12, device=device).step()
    assert grids == [(12,)]
    problem = Problem([0, 16384, 16385, 40000], device=device)
    problem.states[0][2] = problem.states[0][2].bfloat16()
    problem.step()
    assert grids[1:] == [(1 + 1 + 3,), (2,)]
    assert problem.steps.tolist() == [1, 0, 1, 1, 1]


def test_no_tensors_at_all(device, monkeypatch):
    grids = launches(monkeypatch)
    Problem([], device=device).step()
    assert not grids


def test_the_last_program_counts_the_step_and_takes_its_ticket_back(device):
    problem = Problem([5, 40000], device=device)
    for t in (1.0, 2.0):
        problem.step()
        assert problem.steps.tolist() == [t, 0.0, t]
        ((launch,),) = (plan.launches for plan in _triton._plans.values())
        assert launch.programs == 4
        assert launch.table[launch.tensors * _triton.FIELDS.value :].tolist() == [0, 1, 1, 1, 0]


def test_the_last_program_counts_the_steps_of_more_tensors_than_fit_one_block(device, monkeypatch):
    problem, launches = Problem([1] * (_triton.BLOCK.value + 3), device=device), _triton._launches

    def first_program_alone(*args: Any) -> list[Any]:
        (launch,) = launches(*args)
        launch.table[launch.tensors * _triton.FIELDS.value + 1] = 0  # there the ticket is now
        return [launch._replace(programs=1)]

    monkeypatch.setattr(_triton, "_launches", first_program_alone)
    problem.step()
    assert problem.steps.sum() == _triton.BLOCK.value + 3


def test_tables_are_built_when_an_address_a_size_a_dtype_or_a_stride_is_new(device, monkeypatch):
    built = builds(monkeypatch)
    problem = Problem([(6, 4), (8,)], device=device)

    def step(new: int) -> None:
        before = len(built)
        problem.step()
        assert len(built) - before == new

    step(1)
    step(0)
    problem.params = [x.detach() for x in problem.params]  # new objects, the same memory, as DTensor.to_local() makes
    step(0)
    old = problem.grads
    problem.new_gradients()
    step(1)
    problem.grads = old
    step(0)
    problem.grads[0] = problem.grads[0].view(4, 6).t()
    step(1)
    problem.params[1], problem.grads[1] = problem.params[1][:7], problem.grads[1][:7]
    problem.states = [[x, y[:7]] for x, y in problem.states]
    step(1)
    problem.states[2][1] = problem.states[2][1].view(torch.bfloat16)[:7]
    step(1)
    problem.index = problem.index[::-1]
    step(1)


def test_few_tables_are_remembered(device, monkeypatch):
    built = builds(monkeypatch)
    monkeypatch.setattr(_triton, "_MOST", 5)
    problems = [Problem([10, 10], device=device) for _ in range(4)]
    for problem in problems:
        problem.step()
    assert len(_triton._plans) == 2
    problems[3].step()
    assert len(built) == 4
    Problem([10] * 9, device=device).step()
    assert len(_triton._plans) == 1


def test_tensors_that_do_not_fit_are_refused(device):
    problem = Problem([10, 10], device=device)
    problem.states[1][1] = problem.states[1][1][:9]
    before = [x.clone() for x in problem.tensors()]
    with pytest.raises(ValueError, match="must have the sizes and the device of their parameters"):
        problem.step()
    assert all(map(same, problem.tensors(), before))


# --- compiled code --------------------------------------------------------------------------------------------------

COMPILE = r"""
import json, os, re, subprocess, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature
from adamod import _triton

kernel, target = _triton._kernel, GPUTarget("cuda", 90, 32)
pointers = {"table": "*i64", "steps": "*fp32", "grad_scale": "*fp32", "found_inf": "*fp32", "stats": "*i64"}
tools = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
if not os.path.exists(os.path.join(tools, "ptxas")):
    sys.exit(77)

def compiled(name, dtypes, absent=(), **flags):
    values = dict(zip("PGMVS", (_triton._TYPES[getattr(torch, dtype)] for dtype in dtypes.split())))
    values |= {flag: flags.get(flag, False) for flag in ("PAPER", "BOUNDED", "SKIP", "MAXIMIZE", "SEEDED")}
    values |= dict.fromkeys(("hyper", *absent))
    signature = {k: "constexpr" if k in values else pointers.get(k, "i64") for k in kernel.arg_names}
    options = {"num_warps": _triton.WARPS, "enable_fp_fusion": False}
    code = triton.compile(ASTSource(kernel, signature, values, {}), target=target, options=options).asm
    with open(name + ".cubin", "wb") as file:
        file.write(code["cubin"])
    command = [os.path.join(tools, "cuobjdump"), "-res-usage", name + ".cubin"]
    used = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {"ptx": code["ptx"], **{k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", used)}}

bind = create_function_from_signature(kernel.signature, kernel.params, make_backend(target))
def key(hyper, tensors=3, seed=0, start=0):
    numbers = _triton._numbers(torch.tensor(hyper, dtype=torch.float64))
    table = torch.zeros(8, dtype=torch.int64)[start:]
    return str(bind(table, tensors, torch.zeros(8), *numbers, seed, None, None, None, *[torch.float32] * 5,
        PAPER=False, BOUNDED=False, SKIP=False, MAXIMIZE=False, SEEDED=False, num_warps=8, enable_fp_fusion=False)[1:])

off = ("grad_scale", "found_inf", "stats")
json.dump({
    "float32": compiled("float32", "float32 float32 float32 float32 float32", off),
    "everything": compiled("everything", "bfloat16 bfloat16 uint8 bfloat16 uint8", PAPER=True, BOUNDED=True, SKIP=True,
        MAXIMIZE=True, SEEDED=True),
    "float64": compiled("float64", "float64 float32 float64 float64 float64", off),
    "keys": [key([1e-3, 0.9, 0.999, 0.99, 1e-8, 0]), key([0, 0, 1.0, 16.0, 1, 0.1]), key([1.0] * 6, 1, 2**32 - 1, 1),
        key([1.0] * 6, 16, 1, 2)],
}, sys.stdout)
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What Triton makes of the kernel for an H100 or H200, which needs none."""
    folder = tmp_path_factory.mktemp("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("Triton came without ptxas")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def count(pattern: str, ptx: str) -> int:
    return len(re.findall(pattern, ptx))


def test_compiled_code_moves_16_bytes_at_a_time(code):
    assert count(r"ld\.global\S*\.v4\.b32", code["float32"]["ptx"]) == 5
    assert count(r"st\.global\S*\.v4\.b32", code["float32"]["ptx"]) == 4
    assert count(r"ld\.global\S*\.v2\.b64", code["float64"]["ptx"]) >= 4


def test_compiled_code_keeps_to_registers(code):
    for name in ("float32", "everything", "float64"):
        assert code[name]["STACK"] == code[name]["LOCAL"] == 0
    assert code["float32"]["REG"] <= 128  # so that a multiprocessor has room for two programs of 256 threads


def test_compiled_arithmetic_is_exact(code):
    for name in ("float32", "everything"):
        ptx = code[name]["ptx"].split("ld.global.v", 1)[1]  # before, there are the exp and log of doubles
        assert not count(r"\.approx|\.full|\.ftz|fma\.rn", ptx)
        assert count(r"sqrt\.rn\.f32", ptx)
        assert count(r"div\.rn\.f32", ptx)
        assert count(r"min\.NaN\.f32", ptx)


def test_compiled_loops_have_no_doubles(code):
    before, loops = code["float32"]["ptx"].split("ld.global.v", 1)
    assert count(r"\.f64", before)
    assert not count(r"\.f64", loops)


def test_new_numbers_compile_nothing(code):
    assert len(set(code["keys"])) == 1


# --- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available() or not isinstance(_triton._kernel, triton.JITFunction):
        pytest.skip("this needs a CUDA device, and TRITON_INTERPRET=0")
    _triton._plans.clear()
    return torch.device("cuda")


def kernels_compiled() -> int:
    return sum(len(caches[0]) for caches in _triton._kernel.device_caches.values())


@pytest.mark.gpu
def test_the_operator_takes_this_kernel(cuda, monkeypatch):
    grids = launches(monkeypatch)
    Problem(device=cuda).step(torch.ops.adamod.step_)
    assert len(grids) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("states", [(FLOAT32,) * 3, (INT8, BFLOAT16, INT8)], ids=["float32", "int8"])
def test_the_same_bits_every_time(cuda, states):
    def run() -> list[Tensor]:
        problem = Problem([3_000_017, 5, 70_000], states=states, device=cuda)
        for _ in range(3):
            problem.step(hyper=USUAL, seed=5)
        return problem.tensors()

    assert all(map(same, run(), run()))


@pytest.mark.gpu
def test_new_numbers_and_new_addresses_compile_nothing(cuda):
    problem = Problem([1000, 17], device=cuda)
    problem.step()
    before = kernels_compiled()
    for hyper in ((0.0, 0.0, 0.0, 0.0, 1.0, 1.0), (1.0, 0.5, 0.25, 0.0, 16.0, 0.0)):
        problem.step(hyper=hyper, seed=int(hyper[0]))
        problem.new_gradients()
    Problem([1], device=cuda).step()
    Problem([33] * 16, device=cuda, unaligned=True).step()
    assert kernels_compiled() == before


@pytest.mark.gpu
def test_no_step_waits_for_the_device(cuda):
    problem = Problem([1000, (30, 40)], device=cuda)
    numbers = torch.tensor(USUAL, dtype=torch.float64)
    on_device, scale, found = numbers.to(cuda), torch.tensor(2.0, device=cuda), torch.tensor(0.0, device=cuda)
    problem.step()  # compiles, and reserves memory
    gradients = [problem.grads, [torch.ones_like(x) for x in problem.params], [problem.grads[0], problem.grads[1] + 1]]
    gradients[2][1] = gradients[2][1].t().contiguous().t()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for problem.grads in gradients:
            for hyper in (numbers, on_device):
                options = {**PLAIN, "stats": problem.stats, "grad_scale": scale, "found_inf": found}
                _triton.step_(*problem.arguments(), hyper, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert problem.steps.tolist() == [7.0, 0.0, 7.0]


@pytest.mark.gpu
def test_one_launch_for_1500_tensors_says_the_profiler(cuda):
    problem = Problem([2048] * 1500, device=cuda)
    problem.step(stats=None)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(3):
            problem.step(stats=None)
        torch.cuda.synchronize()
    on_device = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert [name for name in on_device if not name.startswith(("Context", "Activity"))] == ["_kernel"] * 3
    assert problem.steps.sum() == 4 * 1500


@pytest.mark.gpu
def test_every_replay_of_a_cuda_graph_is_a_step_with_the_numbers_of_the_moment(cuda):
    shapes = [(50, 41), 20_000, 3]
    problem, reference = Problem(shapes, device=cuda), Problem(shapes)
    hyper = torch.tensor(EXACT, dtype=torch.float64, device=cuda)
    arguments, options = (*problem.arguments(), hyper), {**PLAIN, "seed": 1, "stats": problem.stats}

    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        _triton.step_(*arguments, **options)
    torch.cuda.current_stream().wait_stream(warm_up)
    reference.step(_reference.step_, seed=1)
    graphs = [torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()]
    for graph in graphs:
        with torch.cuda.graph(graph):
            _triton.step_(*arguments, **options)
    assert all(map(same, problem.tensors(), reference.tensors()))  # a capture runs nothing

    for k, lr in enumerate((2.0**-6, 2.0**-4, 0.0, 2.0**-5)):
        hyper[0] = lr
        reference.new_gradients()
        for x, y in zip(problem.grads, reference.grads, strict=True):
            x.copy_(y)
        before = problem.params[0].clone()
        graphs[k % 2].replay()
        reference.step(_reference.step_, (lr, *EXACT[1:]), seed=1)
        assert all(map(same, problem.tensors(), reference.tensors()))
        assert same(problem.params[0], before) == (lr == 0)
        # Ordinary steps, with other tables, and memory that is used again must not disturb a graph's table.
        Problem(shapes, device=cuda).step()
        _triton._plans.clear()
        torch.full((1_000_000,), -1, device=cuda)
        torch.full((1_000_000,), -1).pin_memory()
