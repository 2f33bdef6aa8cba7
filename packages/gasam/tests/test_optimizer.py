"""What GASAM promises as an optimizer: the order of calls, its options, its base, checkpoints, loss scaling."""

from __future__ import annotations

import copy
import io
import lzma
import math
import pickle
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from gasam import GASAM, _ops
from gasam._passes import SKIPS_GRADIENTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SGD, Adam, AdamW, RMSprop = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop
BASES: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (SGD, {"lr": 0.1}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    (Adam, {"lr": 0.01}),
    (Adam, {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1, "maximize": True}),
    (AdamW, {"lr": 0.01, "fused": True}),
    (RMSprop, {"lr": 0.01, "momentum": 0.9}),
]
every_base = pytest.mark.parametrize(("base", "kwargs"), BASES, ids=map(str, range(len(BASES))))


class Problem:
    """A model on one batch, and how often its loss was computed."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 3)).double()
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(randn(*p.shape))
        self.model.to(dtype)
        self.x, self.y = randn(8, 5).to(dtype), randn(8, 3).to(dtype)
        self.calls = 0

    @property
    def params(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    @property
    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.params]

    def loss(self, fraction: float = 1.0) -> Tensor:
        self.calls += 1
        n = round(len(self.x) * fraction)
        return (self.model(self.x[:n]) - self.y[:n]).square().mean()

    def closure(self) -> Tensor:
        loss = self.loss()
        loss.backward()
        return loss


def equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Bit for bit."""
    return len(a) == len(b) and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def norm(xs: Sequence[Tensor]) -> float:
    return math.sqrt(sum(x.double().square().sum().item() for x in xs))


def difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    return [x.detach().double() - y.detach().double() for x, y in zip(a, b, strict=True)]


# --- the order of calls ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"steps": 3},
        {"steps": 2, "risk": "average"},
        {"norm": math.inf, "steps": 2},
        {"adaptive": True},
        {"adaptive": "layer"},
        {"segments": "channel"},
        {"every": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("base", [SGD, AdamW, RMSprop])
def test_a_closure_and_two_phases_go_the_same_way(base: type[torch.optim.Optimizer], options: dict[str, Any]) -> None:
    first, second = Problem(), Problem()
    with_closure = GASAM(first.model, base, rho=0.1, lr=0.01, **options)
    by_phases = GASAM(second.model, base, rho=0.1, lr=0.01, **options)
    for _ in range(4):
        with_closure.step(first.closure)
        second.closure()
        if by_phases.needs_ascent:
            for _ in range(options.get("steps", 1)):
                by_phases.first_step(zero_grad=True)
                second.closure()
            by_phases.second_step(zero_grad=True)
        else:
            by_phases.step()
            by_phases.zero_grad()
    assert equal(first.weights, second.weights)
    assert first.calls == second.calls


def test_the_aliases_zero_the_gradients() -> None:
    one, two = Problem(), Problem()
    optimizer, other = GASAM(one.model, SGD, lr=0.1), GASAM(two.model, SGD, lr=0.1)
    one.closure()
    optimizer.ascent_step()
    assert all(p.grad is None for p in one.params)
    one.closure()
    optimizer.descent_step()
    assert all(p.grad is None for p in one.params)
    other.step(two.closure)
    assert equal(one.weights, two.weights)


@pytest.mark.parametrize(("steps", "calls"), [(1, 2), (2, 3), (4, 5)])
def test_a_step_computes_a_gradient_more_than_it_has_ascents(steps: int, calls: int) -> None:
    problem = Problem()
    GASAM(problem.model, SGD, lr=0.1, steps=steps).step(problem.closure)
    assert problem.calls == calls


def test_the_first_loss_is_returned_and_is_that_of_the_clean_weights() -> None:
    problem = Problem()
    clean = problem.loss()
    loss = GASAM(problem.model, SGD, lr=0.1).step(problem.closure)
    assert loss.item() == clean.item()
    assert loss.requires_grad == clean.requires_grad


def test_gradients_are_none_before_each_call_of_the_closure() -> None:
    problem = Problem()
    seen = []

    def closure() -> Tensor:
        seen.append([p.grad for p in problem.params])
        return problem.closure()

    optimizer = GASAM(problem.model, SGD, lr=0.1, steps=2)
    optimizer.step(closure)
    optimizer.step(closure)
    assert len(seen) == 6
    assert all(grad is None for grads in seen for grad in grads)


def test_a_closure_that_zeroes_or_accumulates_is_as_good() -> None:
    plain, zeroing, accumulating = Problem(), Problem(), Problem()

    def zeroes() -> Tensor:
        others[0].zero_grad()
        return zeroing.closure()

    def accumulates() -> Tensor:
        parts = list(zip(accumulating.x.chunk(4), accumulating.y.chunk(4), strict=True))
        total = torch.zeros(())
        for x, y in parts:
            loss = (accumulating.model(x) - y).square().mean() / len(parts)
            loss.backward()
            total += loss.detach()
        return total

    optimizer = GASAM(plain.model, SGD, lr=0.1)
    others = [GASAM(zeroing.model, SGD, lr=0.1), GASAM(accumulating.model, SGD, lr=0.1)]
    for _ in range(3):
        optimizer.step(plain.closure)
        others[0].step(zeroes)
        others[1].step(accumulates)
    assert equal(plain.weights, zeroing.weights)
    assert norm(difference(plain.weights, accumulating.weights)) < 1e-6 * norm(plain.weights)


def test_gradients_that_the_closure_loses_are_warned_of_once() -> None:
    problem, other = Problem(), Problem()
    optimizer = GASAM(problem.model, SGD, lr=0.1)
    optimizer.step(problem.closure)
    optimizer.step(problem.closure)  # those of the last step are no loss
    optimizer.zero_grad(set_to_none=False)
    optimizer.step(problem.closure)  # nor are zeros
    problem.closure()
    with pytest.warns(UserWarning, match="inside the closure") as caught:
        optimizer.step(problem.closure)
    assert caught[0].filename == __file__
    problem.closure()
    optimizer.step(problem.closure)
    reference = GASAM(other.model, SGD, lr=0.1)
    for _ in range(5):
        reference.step(other.closure)
    assert equal(problem.weights, other.weights)


def test_micro_batches_can_each_have_their_own_perturbation() -> None:
    problem = Problem()
    optimizer = GASAM(problem.model, SGD, lr=0.1, reference="global", rho=0.3)
    params, before = problem.params, problem.weights
    expected = [torch.zeros_like(p) for p in params]
    for x, y in zip(problem.x.chunk(2), problem.y.chunk(2), strict=True):

        def loss(x: Tensor = x, y: Tensor = y) -> Tensor:
            return (problem.model(x) - y).square().mean() / 2

        grads = torch.autograd.grad(loss(), params)
        with optimizer.perturbed(grads):
            assert optimizer.is_perturbed
            loss().backward()
            moved = problem.weights
        assert equal(problem.weights, before)
        r = [g.double().square().mean().sqrt() for g in grads]
        total = sum(g.numel() for g in grads)
        mean = math.sqrt(sum(g.double().square().sum() for g in grads) / total)
        for k, (p, g) in enumerate(zip(before, grads, strict=True)):
            s = 0.3 * math.sqrt(g.numel() / total) * min(max(r[k] / mean, 0.1), 10) ** -1
            e = s * g.double() / g.double().norm()
            torch.testing.assert_close(moved[k].double() - p.double(), e, rtol=1e-4, atol=1e-6)
        with torch.no_grad():
            for p, m in zip(params, moved, strict=True):
                p.copy_(m)
        expected = [total + g for total, g in zip(expected, torch.autograd.grad(loss(), params), strict=True)]
        with torch.no_grad():
            for p, m in zip(params, before, strict=True):
                p.copy_(m)
    optimizer.step()
    for p, w, g in zip(params, before, expected, strict=True):
        torch.testing.assert_close(p.detach(), w - 0.1 * g, rtol=1e-6, atol=1e-6)


def test_the_mean_over_the_path_is_that_over_the_micro_batches() -> None:
    problem = Problem(torch.float64)
    optimizer = GASAM(problem.model, SGD, rho=0.3, lr=0.1, risk="average", steps=2, reference="global")
    params, before = problem.params, problem.weights
    collected = []
    for x, y in zip(problem.x.chunk(2), problem.y.chunk(2), strict=True):

        def gradient(x: Tensor = x, y: Tensor = y) -> tuple[Tensor, ...]:
            return torch.autograd.grad((problem.model(x) - y).square().mean() / 2, params)

        collected.append(gradient())
        with optimizer.perturbed(collected[-1]):
            collected.append(gradient())
            optimizer.perturb(collected[-1])
            collected.append(gradient())
            for p, grad in zip(params, collected[-1], strict=True):
                p.grad = grad.clone() if p.grad is None else p.grad + grad
    optimizer.step()
    for p, w, *grads in zip(params, before, *collected, strict=True):
        torch.testing.assert_close(p.detach(), w - 0.1 * sum(grads) / 3, rtol=1e-12, atol=1e-12)


def test_perturb_leaves_gradients_alone_and_restore_takes_no_step() -> None:
    problem = Problem()
    optimizer = GASAM(problem.model, SGD, lr=0.1)
    before = problem.weights
    problem.closure()
    grads = [p.grad for p in problem.params]
    values = [p.grad.clone() for p in problem.params if p.grad is not None]
    optimizer.perturb()
    assert not any(map(torch.equal, problem.weights, before))
    optimizer.restore()
    assert equal(problem.weights, before)
    assert all(p.grad is grad for p, grad in zip(problem.params, grads, strict=True))
    assert equal([p.grad for p in problem.params if p.grad is not None], values)


def test_an_exception_in_the_perturbed_context_restores_the_weights() -> None:
    problem = Problem()
    optimizer = GASAM(problem.model, SGD, lr=0.1)
    before = problem.weights
    problem.closure()
    with pytest.raises(KeyError), optimizer.perturbed():
        raise KeyError
    assert equal(problem.weights, before)
    assert not optimizer.is_perturbed


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_an_exception_in_the_closure_restores_the_weights_and_takes_no_step(failing: int) -> None:
    problem, other = Problem(), Problem()
    optimizer = GASAM(problem.model, AdamW, lr=0.1, steps=2, reference="global")

    def closure() -> Tensor:
        loss = problem.closure()
        if problem.calls == failing:
            raise KeyError
        return loss

    before = problem.weights
    with pytest.raises(KeyError):
        optimizer.step(closure)
    assert equal(problem.weights, before)
    assert not optimizer.is_perturbed
    assert not optimizer.state
    optimizer.step(problem.closure)  # as if nothing had happened, and without a warning of the gradients
    reference = GASAM(other.model, AdamW, lr=0.1, steps=2, reference="global")
    reference.step(other.closure)
    assert equal(problem.weights, other.weights)


# --- options of the ascent ------------------------------------------------------------------------------------------


def test_the_radius_is_rho_without_the_exponent() -> None:
    problem = Problem(torch.float64)
    optimizer = GASAM(problem.model, SGD, rho=0.3, lr=0.1, strength_exponent=0)
    before = problem.weights
    problem.closure()
    optimizer.perturb()
    assert norm(difference(problem.weights, before)) == pytest.approx(0.3, rel=1e-9)
    optimizer.restore()
    optimizer.param_groups[0]["rho"] = 0.6  # read at each step
    optimizer.perturb()
    assert norm(difference(problem.weights, before)) == pytest.approx(0.6, rel=1e-9)


def test_a_group_of_rho_0_is_not_moved_but_counts_in_the_mean() -> None:
    problem = Problem(torch.float64)
    params = problem.params
    optimizer = GASAM([{"params": params[:2], "rho": 0}, {"params": params[2:]}], SGD, rho=0.3, lr=0.1)
    before = problem.weights
    problem.closure()
    optimizer.perturb()
    assert [torch.equal(a, b) for a, b in zip(problem.weights, before, strict=True)] == [True] * 2 + [False] * 4
    moved = optimizer.strengths()
    optimizer.restore()
    together = GASAM(params, SGD, rho=0.3, lr=0.1)
    together.perturb()
    assert list(moved.values())[2:] == list(together.strengths().values())[2:]
    together.restore()


def test_a_segment_with_a_stronger_gradient_moves_less() -> None:
    problem = Problem()
    optimizer = GASAM(problem.model, SGD, lr=0.1, reference="global", strength_clip=1e6)
    problem.closure()
    optimizer.perturb()
    before = optimizer.strengths()
    optimizer.restore()
    weight = problem.params[0]
    assert weight.grad is not None
    weight.grad.mul_(100)
    optimizer.perturb()
    after = optimizer.strengths()
    optimizer.restore()
    change = {name: (after[name] / before[name]).item() for name in before}
    others = [ratio for name, ratio in change.items() if name != "0.weight"]
    assert max(others) == pytest.approx(min(others), rel=1e-5)  # the mean strength, which all are compared with
    assert change["0.weight"] == pytest.approx(others[0] / 100, rel=1e-5)


def test_strengths_have_the_names_of_parameters_or_their_places() -> None:
    problem = Problem()
    named = GASAM(problem.model, SGD, lr=0.1)
    named.step(problem.closure)
    named.zero_grad()
    assert list(named.strengths()) == [name for name, _ in problem.model.named_parameters()]
    params = problem.params
    unnamed = GASAM([{"params": params[:4]}, {"params": params[4:]}], SGD, lr=0.1, segments="channel")
    unnamed.step(problem.closure)
    strengths = unnamed.strengths()
    assert list(strengths) == ["0.0", "0.1", "0.2", "0.3", "1.0", "1.1"]
    assert [tuple(s.shape) for s in strengths.values()] == [(7,), (7,), (7,), (7,), (3,), (3,)]
    assert all(s.shape == () for s in named.strengths().values())


def test_strengths_are_those_that_the_weights_moved_by() -> None:
    problem = Problem(torch.float64)
    optimizer = GASAM(problem.model, SGD, rho=0.2, lr=0.1)
    before = problem.weights
    problem.closure()
    optimizer.perturb()
    moved = [x.norm().item() for x in difference(problem.weights, before)]
    assert [s.item() for s in optimizer.strengths().values()] == pytest.approx(moved, rel=1e-9)


def test_sharpness_is_the_rise_of_the_loss() -> None:
    problem = Problem()
    losses: list[float] = []

    def closure() -> Tensor:
        loss = problem.closure()
        losses.append(loss.item())
        return loss

    optimizer = GASAM(problem.model, SGD, rho=0.2, lr=0.1, steps=3)
    optimizer.step(closure)
    assert optimizer.sharpness() == pytest.approx(losses[3] - losses[0], rel=1e-6)
    assert optimizer.sharpness() > 0


def test_every_takes_an_ascent_in_each_kth_step_only() -> None:
    problem, plain = Problem(), Problem()
    optimizer = GASAM(problem.model, SGD, lr=0.1, every=3)
    calls, needed = [], []
    for _ in range(7):
        before = problem.calls
        needed.append(optimizer.needs_ascent)
        optimizer.step(problem.closure)
        calls.append(problem.calls - before)
    assert calls == [2, 1, 1, 2, 1, 1, 2]
    assert needed == [True, False, False] * 2 + [True]
    with torch.no_grad():
        for p, q in zip(plain.params, problem.params, strict=True):
            p.copy_(q)
    base = SGD(plain.params, lr=0.1)
    plain.closure()
    base.step()
    optimizer.step(problem.closure)
    assert equal(problem.weights, plain.weights)


def test_ascents_take_their_fraction_of_the_batch() -> None:
    problem, other = Problem(), Problem()
    fractions = []

    def closure(*, fraction: float) -> Tensor:
        fractions.append(fraction)
        loss = problem.loss(fraction)
        loss.backward()
        return loss

    optimizer = GASAM(problem.model, SGD, lr=0.1, ascent_fraction=0.25, steps=2)
    optimizer.step(closure)
    assert fractions == [0.25, 0.25, 1.0]
    by_phases = GASAM(other.model, SGD, lr=0.1, steps=2)
    for _ in range(2):
        other.loss(0.25).backward()
        by_phases.ascent_step()
    other.loss().backward()
    by_phases.descent_step()
    assert equal(problem.weights, other.weights)


def _selections(problem: Problem) -> list[Any]:
    return ["norm", lambda name, p: name.startswith("1."), problem.model[1], list(problem.model[1].parameters())]


@pytest.mark.parametrize("which", range(4), ids=["norm", "predicate", "module", "parameters"])
def test_only_what_is_selected_is_perturbed_and_all_is_stepped(which: int) -> None:
    problem = Problem(torch.float64)
    optimizer = GASAM(problem.model, SGD, rho=0.3, lr=0.1, strength_exponent=0, only=_selections(problem)[which])
    before = problem.weights
    seen: list[list[Tensor]] = []
    wanted: list[list[bool]] = []

    def closure() -> Tensor:
        seen.append(problem.weights)
        wanted.append([p.requires_grad for p in problem.params])
        return problem.closure()

    optimizer.step(closure)
    moved = difference(seen[1], before)
    assert [bool(x.any()) for x in moved] == [False, False, True, True, False, False]
    assert norm(moved) == pytest.approx(0.3, rel=1e-9)  # the others do not count
    first = [False, False, True, True, False, False] if SKIPS_GRADIENTS else [True] * 6
    assert wanted == [first, [True] * 6]
    assert not any(map(torch.equal, problem.weights, before))
    assert list(optimizer.strengths()) == ["1.weight", "1.bias"]


def test_parameters_without_a_gradient_are_neither_perturbed_nor_counted() -> None:
    problem = Problem(torch.float64)
    unused = nn.Parameter(torch.ones(1000, dtype=torch.float64))
    optimizer = GASAM([*problem.params, unused], SGD, rho=0.3, lr=0.1, strength_exponent=0)
    before = problem.weights
    problem.closure()
    optimizer.perturb()
    assert norm(difference(problem.weights, before)) == pytest.approx(0.3, rel=1e-9)
    assert torch.equal(unused, torch.ones_like(unused))
    assert "0.6" not in optimizer.strengths()


@pytest.mark.parametrize("base", [SGD, RMSprop])
def test_a_gradient_that_the_last_pass_lacks_still_restores_its_parameter(base: type[torch.optim.Optimizer]) -> None:
    problem = Problem()
    optimizer = GASAM(problem.model, base, lr=0.1)
    before = problem.weights
    problem.closure()
    optimizer.first_step(zero_grad=True)
    problem.closure()
    problem.params[2].grad = None
    optimizer.second_step()
    assert [torch.equal(a, b) for a, b in zip(problem.weights, before, strict=True)] == [False] * 2 + [True] + [
        False
    ] * 3


def test_a_gradient_that_only_the_last_pass_has_is_stepped_along() -> None:
    problem = Problem()
    optimizer = GASAM(problem.model, SGD, lr=0.1)
    before = problem.weights
    problem.closure()
    problem.params[2].grad = None
    optimizer.first_step(zero_grad=True)
    assert torch.equal(problem.params[2], before[2])
    problem.closure()
    grad = problem.params[2].grad
    assert grad is not None
    optimizer.second_step()
    torch.testing.assert_close(problem.weights[2], before[2] - 0.1 * grad)


def test_gradients_of_other_strides_are_taken_in_the_order_of_their_elements() -> None:
    weights = [torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    w, first, second, _ = weights
    results = []
    for strided in (False, True):
        p = nn.Parameter(w.clone())
        optimizer = GASAM([p], SGD, rho=0.3, lr=0.1, momentum=0.9, adaptive=True)
        for _ in range(2):
            p.grad = first.t().contiguous().t() if strided else first.clone()
            optimizer.first_step()
            p.grad = second.t().contiguous().t() if strided else second.clone()
            optimizer.second_step()
        results.append(p.detach())
    assert equal(results[:1], results[1:])


def test_channels_last_and_transposed_parameters_move_as_contiguous_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    w, g = (torch.randn(4, 3, 2, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    results = []
    for lay_out in (Tensor.contiguous, lambda x: x.contiguous(memory_format=torch.channels_last)):
        p = nn.Parameter(lay_out(w.clone()))
        optimizer = GASAM([p], SGD, rho=0.3, lr=0.1, segments="channel", adaptive=True, momentum=0.9)
        for _ in range(2):
            p.grad = lay_out(g.clone())
            optimizer.first_step()
            optimizer.second_step()
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_tied_weights_are_perturbed_once() -> None:
    layer = nn.Linear(4, 4, bias=False).double()
    model = nn.Sequential(layer, nn.Tanh(), layer)
    optimizer = GASAM(model, SGD, rho=0.3, lr=0.1)
    before = layer.weight.detach().clone()
    model(torch.ones(2, 4, dtype=torch.float64)).square().sum().backward()
    optimizer.perturb()
    assert (layer.weight.detach() - before).norm().item() == pytest.approx(0.3, rel=1e-9)
    optimizer.restore()
    assert torch.equal(layer.weight, before)


def test_a_gradient_that_is_not_finite_leaves_a_plain_step() -> None:
    problem, plain = Problem(), Problem()
    optimizer = GASAM(problem.model, SGD, lr=0.1)
    optimizer.step(problem.closure)
    running = optimizer.state_dict()["gasam"]["running"]
    with torch.no_grad():
        for p, q in zip(plain.params, problem.params, strict=True):
            p.copy_(q)

    def closure() -> Tensor:
        first = problem.calls % 2 == 0
        loss = problem.closure()
        if first and problem.params[0].grad is not None:
            problem.params[0].grad[0, 0] = math.inf
        return loss

    base = SGD(plain.params, lr=0.1)
    plain.closure()
    base.step()
    optimizer.step(closure)
    assert norm(difference(problem.weights, plain.weights)) < 1e-6
    assert optimizer.skipped_ascents == 1
    assert math.isnan(optimizer.sharpness())
    assert torch.equal(optimizer.state_dict()["gasam"]["running"], running)
    optimizer.step(problem.closure)
    assert optimizer.skipped_ascents == 1
    assert not math.isnan(optimizer.sharpness())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_16_bits_are_perturbed_at_random_without_touching_the_users_generator(dtype: torch.dtype) -> None:
    w, g = torch.full((2**16,), 1.0, dtype=dtype), torch.full((2**16,), 1.0, dtype=dtype)
    p = nn.Parameter(w.clone())
    optimizer = GASAM([p], SGD, rho=0.256, lr=0.0)  # e = 0.001: less than half a unit in the last place
    state = torch.get_rng_state()
    moved = []
    for _ in range(2):
        p.grad = g.clone()
        optimizer.first_step()
        moved.append(p.detach().double() - 1)
        optimizer.second_step()
        assert torch.equal(p, w)
    deviation = torch.finfo(dtype).eps / 2**8  # of the mean: sqrt(p (1 - p)) < 1 of a step in 2^16 elements
    assert all(abs(x.mean().item() - 0.001) < 4 * deviation for x in moved)
    assert all(len(x.unique()) == 2 for x in moved)
    assert not torch.equal(*moved)  # each ascent draws its own
    assert torch.equal(torch.get_rng_state(), state)


# --- the base optimizer ---------------------------------------------------------------------------------------------


@every_base
def test_rho_0_is_the_base_optimizer_bit_for_bit(base: type[torch.optim.Optimizer], kwargs: dict[str, Any]) -> None:
    problem, plain = Problem(), Problem()
    optimizer, reference = GASAM(problem.model, base, rho=0, **kwargs), base(plain.params, **kwargs)
    for _ in range(5):
        optimizer.step(problem.closure)
        reference.zero_grad()
        plain.closure()
        reference.step()
    assert problem.calls == plain.calls
    assert equal(problem.weights, plain.weights)
    for p, q in zip(problem.params, plain.params, strict=True):
        assert optimizer.state[p].keys() == reference.state[q].keys()
        for key, value in reference.state[q].items():
            assert value is None or torch.equal(optimizer.state[p][key], value)


class _Unknown:
    """Makes a base optimizer one that is not known, and so not fused."""


def _unknown(base: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    return type(f"Unknown{base.__name__}", (_Unknown, base), {})


@pytest.fixture
def operators(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the calls of operators."""
    calls: Counter[str] = Counter()

    def counted(name: str, operator: Any) -> Any:
        def call(*args: Any) -> Any:
            calls[name] += 1
            return operator(*args)

        return call

    for name in ("segment_norms", "strengths", "perturb_", "restore_"):
        monkeypatch.setattr(_ops, name, counted(name, getattr(_ops, name)))
    for name in ("restore_sgd_", "restore_adam_"):
        packet = getattr(_ops, name)
        overloads = {x: counted(name, getattr(packet, x)) for x in ("default", "tensor_lr")}
        monkeypatch.setattr(_ops, name, type("Packet", (), {k: staticmethod(v) for k, v in overloads.items()}))
    return calls


@pytest.mark.skipif("cpu" not in _ops.KERNELS["restore_adam_"], reason="the package was built without its C++ kernels")
@pytest.mark.parametrize("tensor_lr", [False, True])
@every_base
def test_the_fused_step_is_the_bases_own_up_to_rounding(
    base: type[torch.optim.Optimizer], kwargs: dict[str, Any], tensor_lr: bool, operators: Counter[str]
) -> None:
    kwargs = dict(kwargs)
    if tensor_lr:
        kwargs["lr"] = torch.tensor(kwargs["lr"], dtype=torch.float64)
    fused, plain = Problem(torch.float64), Problem(torch.float64)
    one, two = GASAM(fused.model, base, **kwargs), GASAM(plain.model, _unknown(base), **kwargs)
    for k in range(5):
        for problem, optimizer in ((fused, one), (plain, two)):
            problem.closure()
            optimizer.first_step(zero_grad=True)
            problem.closure()
            if k == 0:  # of which the state, and SGD's first step, comes later
                problem.params[0].grad = None
            optimizer.second_step(zero_grad=True)
    assert norm(difference(fused.weights, plain.weights)) < 1e-14 * norm(plain.weights)
    name = {SGD: "restore_sgd_", Adam: "restore_adam_", AdamW: "restore_adam_"}.get(base)
    assert (operators["restore_sgd_"] + operators["restore_adam_"] >= 5) == (name is not None)
    for p, q in zip(fused.params, plain.params, strict=True):
        assert one.state[p].keys() == two.state[q].keys()
        for key, value in two.state[q].items():
            if value is not None:
                torch.testing.assert_close(one.state[p][key], value, rtol=1e-13, atol=1e-13)


def test_parameters_with_gaps_in_memory_are_stepped_by_the_base_alone() -> None:
    problem = Problem()
    storage = torch.ones(4, 6)
    gappy = nn.Parameter(storage[:, ::2])
    optimizer = GASAM([*problem.params, gappy], SGD, lr=0.1, only=problem.model)
    problem.closure()
    optimizer.first_step(zero_grad=True)
    problem.closure()
    gappy.grad = torch.ones(4, 3)
    optimizer.second_step()
    assert torch.equal(gappy, torch.full((4, 3), 1 - 0.1))
    assert torch.equal(storage[:, 1::2], torch.ones(4, 3))


@pytest.mark.skipif("cpu" not in _ops.KERNELS["restore_sgd_"], reason="the package was built without its C++ kernels")
def test_a_step_has_four_operator_calls(operators: Counter[str]) -> None:
    problem = Problem()
    optimizer = GASAM(problem.model, SGD, lr=0.1, momentum=0.9)
    optimizer.step(problem.closure)
    operators.clear()
    optimizer.step(problem.closure)
    assert operators == {"segment_norms": 1, "strengths": 1, "perturb_": 1, "restore_sgd_": 1}


@every_base
def test_a_class_and_an_instance_are_the_same_base(base: type[torch.optim.Optimizer], kwargs: dict[str, Any]) -> None:
    one, two = Problem(), Problem()
    instance = base(two.params, **kwargs)
    first, second = GASAM(one.model, base, **kwargs), GASAM(two.model, instance)
    assert second.base_optimizer is instance
    for optimizer in (first, second):
        assert optimizer.param_groups is optimizer.base_optimizer.param_groups
        assert optimizer.state is optimizer.base_optimizer.state
        assert optimizer.defaults is optimizer.base_optimizer.defaults
    for _ in range(3):
        first.step(one.closure)
        second.step(two.closure)
    assert equal(one.weights, two.weights)


def test_the_state_of_a_parameter_has_no_keys_but_the_bases() -> None:
    for base, kwargs in BASES:
        problem, plain = Problem(), Problem()
        optimizer, reference = GASAM(problem.model, base, **kwargs), base(plain.params, **kwargs)
        optimizer.step(problem.closure)
        plain.closure()
        reference.step()
        assert [set(optimizer.state[p]) for p in problem.params] == [set(reference.state[p]) for p in plain.params]


@pytest.mark.parametrize("on_base", [False, True])
@pytest.mark.parametrize("base", [SGD, RMSprop])
def test_schedulers_work_on_either_optimizer(base: type[torch.optim.Optimizer], on_base: bool) -> None:
    problem = Problem()
    optimizer = GASAM(problem.model, base, lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer.base_optimizer if on_base else optimizer, 1, gamma=0.5)
    for k in range(3):
        assert optimizer.param_groups[0]["lr"] == 0.5**k
        optimizer.step(problem.closure)
        scheduler.step()  # which would warn if it took the optimizer for not stepped
    problem.closure()
    optimizer.ascent_step()
    problem.closure()
    optimizer.descent_step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5**4


def test_hooks_of_both_optimizers_are_called_once_a_step() -> None:
    problem, other = Problem(), Problem()
    optimizer, reference = GASAM(problem.model, SGD, lr=0.1), GASAM(other.model, SGD, lr=0.1)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.base_optimizer.register_step_pre_hook(lambda *_: calls.append("before base"))
    optimizer.base_optimizer.register_step_post_hook(lambda *_: calls.append("after base"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.step(problem.closure)
    assert calls == ["before", "before base", "after base", "after"]
    reference.step(other.closure)
    assert norm(difference(problem.weights, other.weights)) < 1e-6


def test_what_a_hook_of_the_base_does_to_gradients_counts() -> None:
    problem = Problem()
    optimizer = GASAM(problem.model, SGD, lr=0.1)

    def clear(*_: Any) -> None:
        for p in problem.params:
            p.grad = torch.zeros_like(p)

    before = problem.weights
    optimizer.base_optimizer.register_step_pre_hook(clear)
    optimizer.step(problem.closure)
    assert equal(problem.weights, before)


def test_clipping_between_the_phases_clips_the_last_gradient() -> None:
    problem = Problem()
    optimizer = GASAM(problem.model, SGD, lr=1.0)
    before = problem.weights
    problem.closure()
    optimizer.first_step(zero_grad=True)
    problem.closure()
    nn.utils.clip_grad_norm_(problem.params, 1e-3)
    optimizer.second_step()
    assert norm(difference(problem.weights, before)) == pytest.approx(1e-3, rel=1e-3)


def test_memory_stays_where_it_is() -> None:
    problem = Problem()
    optimizer = GASAM(problem.model, SGD, lr=0.1)
    addresses = [p.data_ptr() for p in problem.params]
    optimizer.step(problem.closure)
    backup = [x.data_ptr() for x in optimizer._current_segments().backup.views(problem.params)]
    optimizer.step(problem.closure)
    assert [p.data_ptr() for p in problem.params] == addresses
    assert [x.data_ptr() for x in optimizer._current_segments().backup.views(problem.params)] == backup


def test_parameters_may_be_cast_between_steps() -> None:
    problem = Problem()
    optimizer = GASAM(problem.model, SGD, lr=0.1)
    optimizer.step(problem.closure)
    problem.model.double()
    problem.x, problem.y = problem.x.double(), problem.y.double()
    before = problem.weights
    problem.closure()
    optimizer.first_step()
    assert not any(map(torch.equal, problem.weights, before))
    optimizer.restore()
    assert equal(problem.weights, before)


def test_overwritten_weights_are_noticed_by_autograd() -> None:
    problem = Problem()
    optimizer = GASAM(problem.model, SGD, lr=0.1)
    stale = problem.loss()
    problem.closure()
    optimizer.first_step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()


# --- groups and checkpoints -----------------------------------------------------------------------------------------


def test_groups_added_in_mid_training_are_perturbed_with_their_own_rho() -> None:
    problem = Problem(torch.float64)
    params = problem.params
    optimizer = GASAM(params[:4], SGD, rho=0.1, lr=0.1, strength_exponent=0)
    problem.closure()
    optimizer.first_step()
    optimizer.second_step()
    optimizer.add_param_group({"params": params[4:], "rho": 0.2})
    assert [group["rho"] for group in optimizer.param_groups] == [0.1, 0.2]
    before = problem.weights
    optimizer.perturb()
    share = sum(p.numel() for p in params[:4]) / sum(p.numel() for p in params)
    moved = difference(problem.weights, before)
    assert norm(moved[:4]) == pytest.approx(0.1 * math.sqrt(share), rel=1e-9)
    assert norm(moved[4:]) == pytest.approx(0.2 * math.sqrt(1 - share), rel=1e-9)


def _saved(state_dict: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("base", [SGD, AdamW, RMSprop])
def test_a_checkpoint_goes_on_bit_for_bit(base: type[torch.optim.Optimizer], dtype: torch.dtype) -> None:
    problem, resumed = Problem(dtype), Problem(dtype)
    optimizer = GASAM(problem.model, base, lr=0.01, every=2)
    for _ in range(3):
        optimizer.step(problem.closure)
    state = _saved(optimizer.state_dict())
    resumed.model.load_state_dict(problem.model.state_dict())
    for _ in range(3):
        optimizer.step(problem.closure)
    other = GASAM(resumed.model, base, rho=0.7, lr=0.5, every=2)
    other.load_state_dict(state)
    assert other.param_groups is other.base_optimizer.param_groups
    assert other.param_groups[0]["rho"] == 0.05
    for _ in range(3):
        other.step(resumed.closure)
    assert equal(problem.weights, resumed.weights)
    assert problem.calls == 9


def test_a_checkpoint_has_no_copy_of_the_weights() -> None:
    problem = Problem()
    optimizer = GASAM(problem.model, SGD, lr=0.1)
    optimizer.step(problem.closure)
    state = optimizer.state_dict()
    assert set(state) == {"state", "param_groups", "gasam"}
    assert sum(x.numel() for x in state["gasam"].values() if isinstance(x, Tensor)) <= 3
    assert state["gasam"]["step"] == 1


def test_a_checkpoint_of_the_base_optimizer_is_taken() -> None:
    problem, other = Problem(), Problem()
    base = AdamW(problem.params, lr=0.02)
    problem.closure()
    base.step()
    optimizer = GASAM(other.model, AdamW, rho=0.3, lr=0.5)
    optimizer.step(other.closure)
    optimizer.load_state_dict(base.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.02
    assert optimizer.param_groups[0]["rho"] == 0.3
    for p, q in zip(other.params, problem.params, strict=True):
        assert torch.equal(optimizer.state[p]["exp_avg"], base.state[q]["exp_avg"])
    assert optimizer.state_dict()["gasam"]["step"] == 0
    assert not optimizer.state_dict()["gasam"]["running"].any()


def test_hooks_of_checkpoints_are_called() -> None:
    problem = Problem()
    optimizer = GASAM(problem.model, SGD, lr=0.1)
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "extra": 1})
    state = optimizer.state_dict()
    assert state["extra"] == 1
    seen = []
    optimizer.register_load_state_dict_pre_hook(lambda _, state: seen.append(state["extra"]))
    optimizer.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    optimizer.load_state_dict(state)
    assert seen == [1, "loaded"]


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_go_on_bit_for_bit_and_hold_no_buffers(how: str) -> None:
    problem = Problem()
    optimizer = GASAM(problem.model, SGD, lr=0.1, momentum=0.9, only=lambda name, _: "bias" in name)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # which replaces `step`
    optimizer.step(problem.closure)
    if how == "deepcopy":
        other = copy.deepcopy(optimizer)
    else:
        data = pickle.dumps(optimizer)
        assert len(data) < len(pickle.dumps(optimizer.base_optimizer)) + 5000
        other = pickle.loads(data)
    params = [p for group in other.param_groups for p in group["params"]]
    for _ in range(2):
        problem.closure()
        for p, q in zip(params, problem.params, strict=True):
            p.grad = None if q.grad is None else q.grad.clone()
        for each in (optimizer, other):
            each.first_step()
            each.second_step()
        assert equal([p.detach() for p in params], problem.weights)
        assert optimizer.strengths().keys() == other.strengths().keys() == {"0.bias", "1.bias", "3.bias"}


# --- loss scaling ---------------------------------------------------------------------------------------------------


def _scaled_step(problem: Problem, optimizer: GASAM, scaler: torch.amp.GradScaler, *, unscale: bool = False) -> None:
    scaler.scale(problem.loss()).backward()
    optimizer.first_step(zero_grad=True, scaler=scaler)
    scaler.scale(problem.loss()).backward()
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("options", [{}, {"reference": "none"}, {"steps": 1, "risk": "average"}], ids=str)
@every_base
def test_a_scaled_loss_makes_no_difference(
    base: type[torch.optim.Optimizer], kwargs: dict[str, Any], options: dict[str, Any], unscale: bool
) -> None:
    problem, plain = Problem(), Problem()
    optimizer, reference = (
        GASAM(problem.model, base, **options, **kwargs),
        GASAM(plain.model, base, **options, **kwargs),
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=2)
    for _ in range(4):
        _scaled_step(problem, optimizer, scaler, unscale=unscale)
        reference.step(plain.closure)
    assert scaler.get_scale() == 2.0**18
    assert norm(difference(problem.weights, plain.weights)) < 1e-5 * norm(plain.weights)
    torch.testing.assert_close(
        optimizer.state_dict()["gasam"]["running"], reference.state_dict()["gasam"]["running"], rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("options", [{}, {"risk": "average"}], ids=str)
@every_base
def test_an_overflow_of_the_last_gradient_restores_and_backs_off(
    base: type[torch.optim.Optimizer], kwargs: dict[str, Any], options: dict[str, Any]
) -> None:
    problem = Problem()
    optimizer = GASAM(problem.model, base, **options, **kwargs)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    _scaled_step(problem, optimizer, scaler)
    before, state = problem.weights, copy.deepcopy(optimizer.base_optimizer.state_dict()["state"])
    scaler.scale(problem.loss()).backward()
    optimizer.first_step(zero_grad=True, scaler=scaler)
    scaler.scale(problem.loss()).backward()
    grad = problem.params[1].grad
    assert grad is not None
    grad[0] = math.inf
    scaler.step(optimizer)
    scaler.update()
    assert equal(problem.weights, before)
    assert not optimizer.is_perturbed
    assert scaler.get_scale() == 2.0**15
    for key, values in optimizer.base_optimizer.state_dict()["state"].items():
        for name, value in values.items():
            assert value is None or torch.equal(value, state[key][name])
    optimizer.zero_grad()
    _scaled_step(problem, optimizer, scaler)
    assert not any(map(torch.equal, problem.weights, before))
    assert all(w.isfinite().all() for w in problem.weights)


def test_an_overflow_of_the_first_gradient_is_a_plain_step() -> None:
    problem, plain = Problem(), Problem()
    optimizer = GASAM(problem.model, SGD, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale(problem.loss()).backward()
    grad = problem.params[1].grad
    assert grad is not None
    grad[0] = math.nan
    optimizer.first_step(zero_grad=True, scaler=scaler)
    scaler.scale(problem.loss()).backward()
    scaler.step(optimizer)
    base = SGD(plain.params, lr=0.1)
    plain.closure()
    base.step()
    assert norm(difference(problem.weights, plain.weights)) < 1e-6
    assert optimizer.skipped_ascents == 1


def test_a_scaler_that_is_given_a_closure_is_refused_and_forgotten() -> None:
    problem = Problem()
    optimizer = GASAM(problem.model, SGD, lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(problem.loss()).backward()
    with pytest.raises(RuntimeError, match="first_step"):
        scaler.step(optimizer, problem.closure)
    optimizer.zero_grad()
    before = problem.weights
    optimizer.step(problem.closure)
    assert not any(map(torch.equal, problem.weights, before))


def test_a_disabled_scaler_changes_nothing() -> None:
    problem, plain = Problem(), Problem()
    optimizer, reference = GASAM(problem.model, SGD, lr=0.1), GASAM(plain.model, SGD, lr=0.1)
    _scaled_step(problem, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    reference.step(plain.closure)
    assert equal(problem.weights, plain.weights)


# --- the premise ------------------------------------------------------------------------------------------------------


class LanguageModel(nn.Module):
    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 128)
        self.lstm = nn.LSTM(128, 128, 2)
        self.out = nn.Linear(128, words)

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.lstm(self.embedding(words))[0])


def test_gradient_strengths_of_a_language_model_are_far_apart_and_the_default_makes_up_for_it(data: Path) -> None:
    text = lzma.decompress((data / "text" / "wikitext2" / "valid.txt.xz").read_bytes()).decode().split()
    numbers = {word: k for k, word in enumerate(dict.fromkeys(text[:10000]))}
    words = torch.tensor([numbers[word] for word in text[:10000]]).view(20, -1).T
    torch.manual_seed(0)
    model = LanguageModel(len(numbers))
    optimizer = GASAM(model, torch.optim.SGD, lr=1.0)
    spread = 0.0
    for start in range(0, 480, 20):
        x, y = words[start : start + 20], words[start + 1 : start + 21]

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            loss = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
            loss.backward()
            return loss

        optimizer.zero_grad()
        closure()
        strengths = torch.stack([p.grad.square().mean().sqrt() for p in model.parameters() if p.grad is not None])
        spread = max(spread, float(strengths.max() / strengths.min()))
        optimizer.zero_grad()
        optimizer.step(closure)
    assert spread > 50
    sizes = {name: p.numel() ** 0.5 for name, p in model.named_parameters()}
    relative = [s.item() / sizes[name] for name, s in optimizer.strengths().items()]
    assert max(relative) > 5 * min(relative)
