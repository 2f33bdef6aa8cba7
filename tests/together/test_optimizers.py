"""GA-SAM and the defence over AdaMod: what each promises alone holds for both of them together."""

from __future__ import annotations

import io
import runpy
import sys
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

import adamod
import gasam
import paramcorrupt
from adamod import AdaMod
from gasam import GASAM, SAM
from paramcorrupt import Defense

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.optim import Optimizer

KINDS: dict[str, dict[str, Any]] = {
    "float32": {},
    "paper, decay": {"variant": "paper", "weight_decay": 0.1, "beta3": 0.9},
    "int8": {"state_dtype": "int8"},
    "bfloat16": {"state_dtype": torch.bfloat16},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
wrapped = pytest.mark.parametrize("wrap", ["GASAM", "Defense"])


class Problem:
    """A network whose first layer is large enough for states of 8 bits, and a batch for every step."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 72), nn.LayerNorm(72), nn.Tanh(), nn.Linear(72, 3)).to(dtype)
        self.dtype, self.number, self.calls = dtype, 0, 0
        self.forward: Callable[[Tensor], Tensor] = self.model

    @property
    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]

    def loss(self) -> Tensor:
        self.calls += 1
        draw = torch.Generator().manual_seed(self.number)
        x, y = torch.randn(8, 64, generator=draw).to(self.dtype), torch.randint(3, (8,), generator=draw)
        return nn.functional.cross_entropy(self.forward(x).float() if self.dtype.itemsize < 4 else self.forward(x), y)

    def closure(self) -> Tensor:
        self.model.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss

    def train(self, optimizer: Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.step(self.closure)
            self.number += 1


def base_options(kind: str = "float32") -> dict[str, Any]:
    return {"lr": 0.02, **KINDS[kind]}


def over_adamod(wrap: str, model: nn.Module, strength: float = 0.1, kind: str = "float32") -> Any:
    if wrap == "GASAM":
        return GASAM(model, AdaMod, rho=strength, **base_options(kind))
    return Defense(model, AdaMod, eps=strength, **base_options(kind))


def same(a: Any, b: Any) -> bool:
    """Bit for bit, of tensors and of what holds them."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def saved(optimizer: Optimizer) -> dict[str, Any]:
    """A checkpoint through a file that is read without pickle's dangers."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# --- one is the other ---


@every_kind
@wrapped
def test_without_strength_it_is_adamod_bit_for_bit(wrap: str, kind: str) -> None:
    ours, alone = Problem(), Problem()
    optimizer, adamod_ = (
        over_adamod(wrap, ours.model, 0.0, kind),
        AdaMod(alone.model.parameters(), **base_options(kind)),
    )
    ours.train(optimizer, 20)
    alone.train(adamod_, 20)
    assert same(ours.weights, alone.weights)
    assert same(optimizer.state_dict()["state"], adamod_.state_dict()["state"])
    assert ours.calls == 20


@every_kind
@wrapped
def test_with_strength_it_is_not(wrap: str, kind: str) -> None:
    ours, alone = Problem(), Problem()
    ours.train(over_adamod(wrap, ours.model, 0.1, kind), 2)
    alone.train(AdaMod(alone.model.parameters(), **base_options(kind)), 2)
    assert not any(map(torch.equal, ours.weights, alone.weights))


def test_a_class_with_options_and_an_optimizer_are_the_same_base() -> None:
    first, second = Problem(), Problem()
    first.train(GASAM(first.model, AdaMod, rho=0.1, **base_options("int8")), 10)
    second.train(GASAM(second.model, AdaMod(second.model.parameters(), **base_options("int8")), rho=0.1), 10)
    assert same(first.weights, second.weights)


def test_sam_over_adamod_is_what_is_written_down() -> None:
    """The gradient at w + rho g / |g|, and with it a step of AdaMod from w."""
    ours, theirs = Problem(torch.float64), Problem(torch.float64)
    params = list(theirs.model.parameters())
    adamod_ = AdaMod(params, lr=0.02)
    for _ in range(10):
        theirs.closure()
        norm = torch.stack([p.grad.square().sum() for p in params]).sum().sqrt()
        clean = theirs.weights
        with torch.no_grad():
            for p in params:
                p += 0.1 * p.grad / norm
        theirs.closure()
        with torch.no_grad():
            for p, x in zip(params, clean, strict=True):
                p.copy_(x)
        adamod_.step()
        theirs.number += 1
    ours.train(SAM(ours.model, AdaMod, rho=0.1, lr=0.02), 10)
    assert max(float((a - b).abs().max()) for a, b in zip(ours.weights, theirs.weights, strict=True)) < 1e-12


def test_defense_over_adamod_is_what_is_written_down() -> None:
    """The mean of the gradients at w, w + a_1 and w + a_2, and with it a step of AdaMod from w."""
    ours, theirs = Problem(torch.float64), Problem(torch.float64)
    params, eps = list(theirs.model.parameters()), 0.3
    adamod_ = AdaMod(params, lr=0.02)
    for _ in range(10):
        clean, a = theirs.weights, [torch.zeros_like(p) for p in params]
        sums = [torch.zeros_like(p) for p in params]
        for number in range(3):
            theirs.closure()
            grads = [p.grad.clone() for p in params]
            torch._foreach_add_(sums, grads)
            if number == 2:
                break
            length = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
            torch._foreach_add_(a, torch._foreach_mul(grads, 1.5 * eps / 2 / length))
            torch._foreach_mul_(a, min(1.0, eps / float(torch.stack([x.square().sum() for x in a]).sum().sqrt())))
            with torch.no_grad():
                for p, x, y in zip(params, clean, a, strict=True):
                    p.copy_(x + y)
        with torch.no_grad():
            for p, x, total in zip(params, clean, sums, strict=True):
                p.copy_(x)
                p.grad = total / 3
        adamod_.step()
        theirs.number += 1
    ours.train(Defense(ours.model, AdaMod, eps=eps, lr=0.02), 10)
    assert max(float((a - b).abs().max()) for a, b in zip(ours.weights, theirs.weights, strict=True)) < 1e-12


def test_a_closure_and_two_phases_go_the_same_way() -> None:
    first, second = Problem(), Problem()
    first.train(over_adamod("GASAM", first.model), 5)
    optimizer = over_adamod("GASAM", second.model)
    for _ in range(5):
        second.loss().backward()
        optimizer.first_step(zero_grad=True)
        second.loss().backward()
        optimizer.second_step(zero_grad=True)
        second.number += 1
    assert same(first.weights, second.weights)


# --- weights that return ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@wrapped
def test_weights_return_bit_for_bit(wrap: str, dtype: torch.dtype) -> None:
    problem = Problem(dtype)
    optimizer, seen = over_adamod(wrap, problem.model), []
    for group in optimizer.param_groups:
        group["lr"] = 0.0

    def closure() -> Tensor:
        seen.append(problem.weights)
        return problem.closure()

    before = problem.weights
    for _ in range(10):
        optimizer.step(closure)
    assert same(problem.weights, before)
    moved = [not same(weights, before) for weights in seen]
    assert moved == ([False, True] if wrap == "GASAM" else [False, True, True]) * 10


@wrapped
def test_a_closure_that_raises_above_the_weights_leaves_weights_and_states(wrap: str) -> None:
    problem = Problem()
    optimizer = over_adamod(wrap, problem.model, kind="int8")
    problem.train(optimizer, 3)
    weights, checkpoint = problem.weights, saved(optimizer)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ArithmeticError("above the weights")
        return problem.closure()

    with pytest.raises(ArithmeticError):
        optimizer.step(closure)
    assert same(problem.weights, weights)
    assert same(saved(optimizer)["state"], checkpoint["state"])


# --- checkpoints ---


@every_kind
@wrapped
def test_a_checkpoint_goes_on_bit_for_bit(wrap: str, kind: str) -> None:
    through, stopped = Problem(), Problem()
    optimizer, first = (over_adamod(wrap, problem.model, kind=kind) for problem in (through, stopped))
    through.train(optimizer, 12)
    stopped.train(first, 6)
    resumed = Problem()
    resumed.model.load_state_dict(stopped.model.state_dict())
    resumed.number = stopped.number
    second = over_adamod(wrap, resumed.model, 0.7, kind)
    second.load_state_dict(saved(first))
    if wrap == "Defense":
        second.eps = 0.1  # which is no part of a checkpoint
    resumed.train(second, 6)
    assert same(resumed.weights, through.weights)
    assert same(second.state_dict(), optimizer.state_dict())


@wrapped
def test_a_checkpoint_of_adamod_alone_is_taken(wrap: str) -> None:
    alone, ours = Problem(), Problem()
    adamod_ = AdaMod(alone.model.parameters(), **base_options("int8"))
    alone.train(adamod_, 5)
    ours.model.load_state_dict(alone.model.state_dict())
    ours.number = alone.number
    optimizer = over_adamod(wrap, ours.model, 0.0, "int8")
    optimizer.load_state_dict(saved(adamod_))
    ours.train(optimizer, 5)
    alone.train(adamod_, 5)
    assert same(ours.weights, alone.weights)


# --- loss scaling, compilation, schedules ---


def scaled(problem: Problem, optimizer: GASAM, scaler: torch.amp.GradScaler, factor: float = 1.0) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = problem.loss()
    scaler.scale(loss).backward()
    optimizer.first_step(zero_grad=True, scaler=scaler)
    with torch.autocast("cpu", torch.bfloat16):
        loss = problem.loss() * factor
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    problem.number += 1


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_a_scaled_loss_under_autocast_makes_no_difference(kind: str) -> None:
    """The scale is a power of two, which no rounding sees."""
    with_scaler, without = Problem(), Problem()
    optimizer = over_adamod("GASAM", with_scaler.model, kind=kind)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
    for _ in range(8):
        scaled(with_scaler, optimizer, scaler)
    assert scaler.get_scale() == 2.0**14

    def closure() -> Tensor:
        without.model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = without.loss()
        loss.backward()
        return loss

    other = over_adamod("GASAM", without.model, kind=kind)
    for _ in range(8):
        other.step(closure)
        without.number += 1
    assert same(with_scaler.weights, without.weights)


def test_an_overflow_leaves_weights_and_states_and_backs_off() -> None:
    problem = Problem()
    optimizer, scaler = over_adamod("GASAM", problem.model), torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for _ in range(3):
        scaled(problem, optimizer, scaler)
    weights, state = problem.weights, saved(optimizer)["state"]
    scaled(problem, optimizer, scaler, factor=float("inf"))
    assert same(problem.weights, weights)
    assert same(saved(optimizer)["state"], state)
    assert scaler.get_scale() == 2.0**11
    scaled(problem, optimizer, scaler)
    assert not same(problem.weights, weights)


def test_defense_over_adamod_takes_the_scaler() -> None:
    with_scaler, without = Problem(), Problem()
    optimizer, scaler = over_adamod("Defense", with_scaler.model), torch.amp.GradScaler("cpu", init_scale=2.0**12)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = scaler.scale(with_scaler.loss())
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure, scaler=scaler)
        scaler.update()
        with_scaler.number += 1
    without.train(over_adamod("Defense", without.model), 5)
    assert same(with_scaler.weights, without.weights)


@pytest.fixture
def nothing_is_compiled_yet() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("nothing_is_compiled_yet")
@wrapped
def test_a_compiled_model_takes_the_same_steps_and_is_compiled_once(wrap: str) -> None:
    compiled, eager = Problem(), Problem()
    counter = CompileCounterWithBackend("aot_eager")
    compiled.forward = torch.compile(compiled.model, backend=counter, fullgraph=True)
    compiled.train(over_adamod(wrap, compiled.model), 6)
    eager.train(over_adamod(wrap, eager.model), 6)
    assert same(compiled.weights, eager.weights)
    assert counter.frame_count == 1


@pytest.mark.parametrize("on_base", [False, True])
@wrapped
def test_a_scheduler_of_either_optimizer_changes_the_rate_of_both(wrap: str, on_base: bool) -> None:
    problem, by_hand = Problem(), Problem()
    optimizer, other = over_adamod(wrap, problem.model), over_adamod(wrap, by_hand.model)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer.base_optimizer if on_base else optimizer, 0.5)
    for step in range(5):
        problem.train(optimizer, 1)
        scheduler.step()
        other.param_groups[0]["lr"] = 0.02 * 0.5**step
        by_hand.train(other, 1)
    assert optimizer.param_groups[0]["lr"] == 0.02 * 0.5**5
    assert same(problem.weights, by_hand.weights)


# --- groups ---


def test_groups_have_their_own_radius_and_their_own_options_of_adamod() -> None:
    problem = Problem()
    first, last = list(problem.model[0].parameters()), list(problem.model[3].parameters())
    groups = [{"params": first, "rho": 0.0, "beta3": 0.0}, {"params": last, "lr": 0.0, "beta3": 0.9}]
    optimizer = GASAM(groups, AdaMod, rho=0.3, lr=0.02)
    assert [group["rho"] for group in optimizer.param_groups] == [0.0, 0.3]
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.0]
    before = [[p.detach().clone() for p in params] for params in (first, last)]
    problem.closure()
    optimizer.first_step(zero_grad=True)
    assert same(list(first), before[0])
    assert not any(map(torch.equal, last, before[1]))
    problem.closure()
    optimizer.second_step()
    assert not any(map(torch.equal, first, before[0]))
    assert same(list(last), before[1])
    states = [optimizer.state[p] for p in (first[0], last[0])]
    assert not torch.equal(states[0]["exp_avg_lr"], torch.zeros_like(first[0]))
    assert states[0]["exp_avg_lr"].max() > 1.1 * states[0]["exp_avg_lr"].min()  # s is eta itself where beta3 is 0
    assert not states[1]["exp_avg_lr"].any()  # for eta has the factor lr


@wrapped
def test_a_group_added_in_mid_training_is_perturbed_and_stepped(wrap: str) -> None:
    problem = Problem()
    problem.model[3].requires_grad_(False)
    early = list(problem.model[0].parameters())
    optimizer = over_adamod(wrap, problem.model[0])
    problem.train(optimizer, 3)
    problem.model[3].requires_grad_(True)
    late = list(problem.model[3].parameters())
    group = {"params": late, "lr": 0.5}
    if wrap == "GASAM":  # which was given a module, whose names are known
        group |= {"params": [(f"late.{name}", p) for name, p in problem.model[3].named_parameters()], "rho": 0.2}
    optimizer.add_param_group(dict(group))
    seen, before = [], [p.detach().clone() for p in late]

    def closure() -> Tensor:
        seen.append([p.detach().clone() for p in late])
        return problem.closure()

    optimizer.step(closure)
    assert same(seen[0], before)
    assert not any(map(torch.equal, seen[1], before))
    assert not any(map(torch.equal, late, before))
    assert [int(optimizer.state[p]["step"]) for p in (early[0], late[0])] == [4, 1]
    resumed = over_adamod(wrap, problem.model[0])
    resumed.add_param_group(dict(group))
    resumed.load_state_dict(saved(optimizer))
    assert same(resumed.state_dict(), optimizer.state_dict())


# --- what runs ---


class Operators(TorchDispatchMode):
    """Counts the operators of the packages that are dispatched, and on which devices."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator.namespace in ("adamod", "gasam", "paramcorrupt"):
            self.calls[str(operator)] += 1
        return operator(*args, **(kwargs or {}))


def has_kernel(operator: str) -> bool:
    namespace, name, overload = operator.split(".")
    full = f"{namespace}::{name}" + ("" if overload == "default" else f".{overload}")
    return torch._C._dispatch_has_kernel_for_dispatch_key(full, "CPU")


@wrapped
def test_fused_kernels_of_both_packages_run_once_a_step(wrap: str) -> None:
    problem = Problem()
    optimizer = over_adamod(wrap, problem.model)
    problem.train(optimizer, 2)
    with Operators() as operators:
        problem.train(optimizer, 1)
    assert operators.calls["adamod.step_.default"] == 1
    names = {name.split(".")[0] for name in operators.calls}
    assert names == {"adamod", "gasam" if wrap == "GASAM" else "paramcorrupt"}
    assert [name for name in operators.calls if not has_kernel(name)] == []
    if wrap == "GASAM":
        per_step = {"segment_norms": 1, "strengths": 1, "perturb_": 1, "restore_": 1}
        assert {k.split(".")[1]: n for k, n in operators.calls.items() if k[:6] == "gasam."} == per_step


@pytest.mark.parametrize("module", [adamod, gasam, paramcorrupt], ids=lambda module: module.__name__)
def test_each_package_says_that_its_kernels_serve(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(SystemExit), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module.__name__])
        runpy.run_module(module.__name__, run_name="__main__")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    served = {line[2] for line in lines if len(line) > 2 and "::" in line[0] and line[1] == "cpu"}
    assert served == {"C++"}


@wrapped
def test_the_bound_is_counted_once_a_step_by_name(wrap: str) -> None:
    problem = Problem()
    named = list(problem.model.named_parameters())
    options: dict[str, Any] = {"lr": 0.02, "beta3": 0.88}
    if wrap == "GASAM":
        optimizer: Any = GASAM(problem.model, AdaMod, rho=0.1, **options)
    else:
        optimizer = Defense(named, AdaMod, eps=0.1, **options)
    optimizer.base_optimizer.bound_stats(collect=True)
    problem.train(optimizer, 5)
    stats = optimizer.base_optimizer.bound_stats()
    assert [(x.name, x.steps, x.elements) for x in stats.values()] == [(name, 5, 5 * p.numel()) for name, p in named]
    problem.train(optimizer, 1)
    for p, found in optimizer.base_optimizer.bound_stats().items():
        state = {key: x.double() for key, x in optimizer.state[p].items()}
        eta = 0.02 * (1 - 0.999**6) ** 0.5 / (1 - 0.9**6) / (state["exp_avg_sq"].sqrt() + 1e-8)
        clipped = float((state["exp_avg_lr"] < eta).double().mean())
        assert found.steps == 1
        assert abs(found.clipped - clipped) <= 0.01
        assert 0.01 < found.clipped < 0.99 or p.numel() < 100


# --- both wrappers ---


def test_neither_wrapper_takes_the_other_as_its_base_and_weights_stay() -> None:
    """Each wants to call the closure itself."""
    problem = Problem()
    before = problem.weights
    inner = Defense(problem.model, AdaMod, eps=0.1)
    with pytest.raises(TypeError, match="closure must compute the loss"):
        GASAM(problem.model, inner, rho=0.1).step(problem.closure)
    assert same(problem.weights, before)
    problem = Problem()
    outer = Defense(problem.model, lambda params: GASAM(params, AdaMod, rho=0.1), eps=0.1)
    with pytest.raises(RuntimeError, match="call first_step"):
        outer.step(problem.closure)
    assert same(problem.weights, before)


def test_ga_sam_gradients_at_every_point_of_a_defence() -> None:
    """The way to have both: they share the base, and the closure ascends once more from where the defence stands."""
    problem, seen = Problem(), []
    base = AdaMod(problem.model.parameters(), lr=0.02)
    sam, defense = GASAM(problem.model, base, rho=0.1), Defense(problem.model, lambda params: base, eps=0.3)

    def closure() -> Tensor:
        loss = problem.closure()
        seen.append(problem.weights)
        grads = [p.grad for p in problem.model.parameters()]
        problem.model.zero_grad()
        with sam.perturbed(grads):
            seen.append(problem.weights)
            problem.loss().backward()
        assert same(problem.weights, seen[-2])
        return loss

    defense.param_groups[0]["lr"] = 0.0
    before, calls = problem.weights, problem.calls
    for _ in range(4):
        seen.clear()
        defense.step(closure)
        assert same(problem.weights, before)
        assert same(seen[0], before)
        assert len({float(weights[0].double().sum()) for weights in seen}) == 6
    assert problem.calls - calls == 24
    defense.param_groups[0]["lr"] = 0.02
    losses = [defense.step(closure).item() for _ in range(41)]
    assert losses[-1] < 0.2 * losses[0]
    assert int(base.state[next(problem.model.parameters())]["step"]) == 45
