"""torch.compile around, under and beside the optimizer: compiled models, operators in graphs, no recompilation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from gasam import GASAM, _ops
from gasam._passes import SKIPS_GRADIENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAMILY: dict[str, dict[str, Any]] = {
    "default": {},
    "SAM": {"segments": "global", "strength_exponent": 0.0, "size_exponent": 0.0, "share_dropout": True},
    "steps": {"steps": 2, "risk": "average", "adaptive": True},
    "every": {"every": 2},
    "only": {"only": lambda name, p: p.ndim == 1},
}


@pytest.fixture(autouse=True)
def nothing_is_compiled_yet() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


def batch(step: int) -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(step))


def train(optimizer: GASAM, forward: Callable[[Tensor], Tensor], count: Callable[[], int], steps: int) -> list[int]:
    """How often was compiled before the end of each step."""
    torch.manual_seed(1)
    counts = []
    for step in range(steps):

        def closure(step: int = step) -> Tensor:
            loss = forward(batch(step)).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        counts.append(count())
    return counts


def assert_equal(compiled: nn.Module, eager: nn.Module) -> None:
    for (name, x), (_, y) in zip(compiled.state_dict().items(), eager.state_dict().items(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("name", FAMILY)
def test_a_compiled_model_takes_the_same_steps_and_is_compiled_once(name: str):
    model, eager = net(), net()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    optimizer, other = (GASAM(m, torch.optim.SGD, lr=0.1, momentum=0.9, **FAMILY[name]) for m in (model, eager))
    counts = train(optimizer, compiled, lambda: counter.frame_count, 6)
    train(other, eager, lambda: 0, 6)
    assert_equal(model, eager)
    assert int(model[1].num_batches_tracked) == 6
    # With `only` the clean pass needs fewer gradients than the perturbed one: two graphs.
    assert counts == [2 if name == "only" and SKIPS_GRADIENTS else 1] * 6


def compiles_in_place() -> bool:
    """Whether this torch does at all: `Module.compile` of torch 2.10 gives its backend nothing, even without a loss."""
    torch._dynamo.reset()
    model, counter = net(), CompileCounterWithBackend("aot_eager")
    model.compile(backend=counter, fullgraph=True)
    model(batch(0))
    return counter.frame_count > 0


@pytest.mark.parametrize("given", ["model", "compiled model", "parameters"])
@pytest.mark.parametrize("how", ["model", "in place", "function"])
def test_whatever_is_compiled_and_given_statistics_are_those_of_the_clean_passes(how: str, given: str):
    """Compiled code calls no hooks, and warns of them; its layers are found nevertheless, without a recompilation."""
    model, eager = net(), net()
    counter = CompileCounterWithBackend("aot_eager")
    forward: Callable[[Tensor], Tensor] = model
    if how == "model":
        forward = torch.compile(model, backend=counter, fullgraph=True)
    elif how == "in place":
        model.compile(backend=counter, fullgraph=True)
    else:
        forward = torch.compile(lambda x: model(x), backend=counter, fullgraph=True)
    params: Any = model if given == "model" else model.parameters()
    if given == "compiled model" and how == "model":
        params = forward
    optimizer, other = (GASAM(p, torch.optim.SGD, lr=0.1) for p in (params, eager))
    counts = train(optimizer, forward, lambda: counter.frame_count, 4)
    train(other, eager, lambda: 0, 4)
    assert counts == [0 if how == "in place" and not compiles_in_place() else 1] * 4
    assert_equal(model, eager)


@torch._inductor.config.patch(compile_threads=1)
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # which inductor of torch 2.10 calls
def test_inductor_trains_as_eager_does():
    model, eager = net().double(), net().double()
    model[3].p = eager[3].p = 0.0  # whose random numbers inductor draws in its own way
    compiled = torch.compile(model)
    optimizer, other = (GASAM(m, torch.optim.AdamW, lr=0.01) for m in (model, eager))
    train(optimizer, lambda x: compiled(x.double()), lambda: 0, 4)
    train(other, lambda x: eager(x.double()), lambda: 0, 4)
    for (name, x), (_, y) in zip(model.state_dict().items(), eager.state_dict().items(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("two_phases", [False, True])
@pytest.mark.filterwarnings("ignore")  # torch's own about graph breaks, and gradients of what is no leaf
def test_a_compiled_training_step_is_no_other_and_is_compiled_once(two_phases: bool):
    """The optimizer is left out of its graphs."""
    model, eager = net(), net()
    counter = CompileCounterWithBackend("eager")
    optimizer, other = (GASAM(m, torch.optim.SGD, lr=0.1, momentum=0.9) for m in (model, eager))

    def train_on(x: Tensor, model: nn.Module, optimizer: GASAM) -> None:
        def closure() -> Tensor:
            loss = model(x).square().mean()
            loss.backward()
            return loss

        if two_phases:
            closure()
            optimizer.first_step(zero_grad=True)
            closure()
            optimizer.second_step(zero_grad=True)
        else:
            optimizer.step(closure)

    compiled = torch.compile(train_on, backend=counter)
    counts = []
    for m, o, step in ((model, optimizer, compiled), (eager, other, train_on)):
        torch.manual_seed(1)
        for k in range(6):
            step(batch(k), m, o)
            counts.append(counter.frame_count)
    assert_equal(model, eager)
    assert counts[1:] == [counts[1]] * 11


# --- operators ------------------------------------------------------------------------------------------------------


def lists(dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(shape, generator=generator).to(dtype) for shape in ((5, 3), (7,), (), (0,))] for _ in range(4)]


def ascend_and_descend(params: list[Tensor], backup: list[Tensor], grads: list[Tensor], momentum: list[Tensor]) -> Any:
    """A whole step of the operators."""
    rows, weighted, n = [5, 1, 1, 1], [1, 0, 0, 0], 8
    segment = torch.arange(n)
    sizes = torch.tensor([3] * 5 + [7, 1, 0])
    rho, running, seed = torch.full((n,), 0.1, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), segment[0]
    sums = _ops.segment_norms(grads, params, rows, weighted, 0.01)
    multiplier, s, found_inf = _ops.strengths(sums, segment, sizes, rho, running, None, None, 0.5, -1.0, 10.0, 2, 2)
    _ops.perturb_(params, backup, grads, multiplier, rows, weighted, 0.01, 2, seed)
    perturbed = [p.clone() for p in params]
    offset = [torch.zeros_like(p, dtype=torch.float32) for p in params]
    _ops.ascend_(offset, backup, grads, multiplier, s, rows, weighted, 0.01, 2)
    _ops.project_(params, backup, offset, torch.ones_like(s), rows, seed)
    products = _ops.inner_products(offset, offset)
    _ops.mix_(grads, momentum, products[:2] / (1 + products[2]), found_inf)
    _ops.restore_sgd_.default(params, backup, grads, momentum, 0.1, 0.9, 0.0, 0.01, False, False, False, None, None)
    _ops.restore_(backup, params)
    squares, steps = [p.square() for p in params], [torch.zeros(()) for _ in params]
    _ops.restore_adam_.default(
        params, backup, grads, momentum, squares, [], steps,
        0.01, 0.9, 0.999, 1e-8, 0.01, True, False, False, None, None,
    )  # fmt: skip
    return perturbed, offset, sums, multiplier, s, found_inf, running, products, squares, steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_operators_stand_in_graphs(dtype: torch.dtype):
    eager, graph = lists(dtype), lists(dtype)
    expected = ascend_and_descend(*eager)
    compiled = torch.compile(ascend_and_descend, backend="aot_eager", fullgraph=True)
    for actual in (graph, lists(dtype)):
        found = compiled(*actual)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        torch.testing.assert_close(actual, eager, rtol=0, atol=0)
