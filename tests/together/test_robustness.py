"""Damage in the middle of training leaves no trace, and the experiment on damaged weights says the same twice."""

from __future__ import annotations

import json
import math
import statistics
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adamod import AdaMod
from gasam import GASAM
from paramcorrupt import (
    Defense,
    bitflip,
    corrupted,
    curve,
    indicator,
    multistep,
    random_corruption,
    relative,
    scan,
    vulnerability_factor,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from torch.optim import Optimizer


FOLDERS = [Path(__file__).resolve().parents[2] / "benchmarks" / name for name in ("", "together")]


@pytest.fixture(scope="module")
def robust_training() -> Iterator[ModuleType]:
    """The building blocks of the experiment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDERS[1])
        import robust_training

        yield robust_training


# --- damage in the middle of training ---

Batch = tuple[Tensor, Tensor]
METHODS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "GASAM over AdaMod": lambda model: GASAM(model, AdaMod, rho=0.1, lr=0.01, state_dtype="int8"),
    "Defense over AdaMod": lambda model: Defense(model, AdaMod, eps=0.1, lr=0.01, state_dtype=torch.bfloat16),
    "GASAM over SGD": lambda model: GASAM(model, torch.optim.SGD, rho=0.1, lr=0.1, momentum=0.9),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(64, 72), nn.BatchNorm1d(72), nn.ReLU(), nn.Dropout(0.1), nn.Linear(72, 4)
    return nn.Sequential(*layers)


def batches(count: int) -> list[Batch]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 64, generator=draw), torch.randint(4, (16,), generator=draw)) for _ in range(count)]


def step(model: nn.Module, optimizer: Optimizer, batch: Batch) -> float:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    return optimizer.step(closure).item()


def flipped(model: nn.Module, data: list[Batch]) -> None:
    with corrupted(model, bitflip(model, bits=30, count=500, seed=3)), torch.no_grad():
        assert not all(float(model(x).abs().max()) < 1e20 for x, _ in data)


def stuck(model: nn.Module, data: list[Batch]) -> None:
    plan = bitflip(model, fault="stuck", rate=0.01, seed=4, buffers=True)
    with suppress(ArithmeticError), corrupted(model, plan):
        model(data[0][0])
        raise ArithmeticError("in the middle of a block")


def randomly(model: nn.Module, data: list[Batch]) -> None:
    change = random_corruption(model, eps=relative(1.0), seed=5)
    with ExitStack() as stack:
        stack.enter_context(corrupted(model, change))
        stack.enter_context(corrupted(model, bitflip(model, count=3, seed=6)))
        model.eval()
        model(data[0][0])


DAMAGE: dict[str, Callable[[nn.Module, list[Batch]], object]] = {
    "scan": lambda model, data: scan(model, "cross_entropy", data, eps=relative(0.1), verify=2, random=1),
    "indicator": lambda model, data: indicator(model, "cross_entropy", data, eps=relative(0.3), n=7),
    "multistep": lambda model, data: multistep(model, "cross_entropy", data, eps=1.0, steps=3),
    "curve": lambda model, data: curve(model, "cross_entropy", data, eps=[0.1, 5.0], draws=2, progress=False),
    "vulnerability": lambda model, data: vulnerability_factor(model, data, seed=0, bits=30, half_width=0.3),
    "flipped bits": flipped,
    "stuck bits, and an exception": stuck,
    "random, within each other": randomly,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("method", METHODS)
def test_training_goes_on_as_if_nothing_had_been_damaged(method: str, damage: str) -> None:
    """Weights, states, gradients, batch statistics and random numbers: all of them enter the steps that follow."""
    data = batches(8)
    losses, models = [], []
    for harm in (None, DAMAGE[damage]):
        model = network()
        optimizer = METHODS[method](model)
        torch.manual_seed(2)
        losses.append([step(model, optimizer, batch) for batch in data[:4]])
        grads = [p.grad for p in model.parameters()]
        if harm is not None:
            held = [g.clone() for g in grads]
            model.train()
            harm(model, data[4:])
            assert model.training
            assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
            assert all(map(torch.equal, held, grads))
        losses[-1] += [step(model, optimizer, batch) for batch in data[4:]]
        models.append((model.state_dict(), optimizer.state_dict()["state"]))
    assert losses[0] == losses[1]
    (weights, state), (other_weights, other_state) = models
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    for number, values in state.items():
        for key, x in values.items():
            assert torch.equal(torch.as_tensor(x), torch.as_tensor(other_state[number][key])), key


def test_weights_above_an_ascent_can_be_damaged_and_return() -> None:
    model, (x, y) = network(), batches(1)[0]
    optimizer = GASAM(model, AdaMod, rho=0.1, lr=0.01)
    before = [p.detach().clone() for p in model.parameters()]
    cross_entropy(model(x), y).backward()
    with optimizer.perturbed():
        above = [p.detach().clone() for p in model.parameters()]
        with corrupted(model, bitflip(model, count=50, seed=0)):
            assert not all(map(torch.equal, model.parameters(), above))
        assert all(map(torch.equal, model.parameters(), above))
    assert all(map(torch.equal, model.parameters(), before))
    assert not any(map(torch.equal, above, before))


# --- the experiment ---


@pytest.fixture(scope="module")
def small(robust_training: ModuleType) -> Any:
    data = robust_training.digits()
    parts = [(x[:200], y[:200]) for x, y in data]
    return robust_training.Task(robust_training.Data(*parts), partial(robust_training.perceptron, 64), 2)


def test_the_parts_of_the_digits_share_no_picture(robust_training: ModuleType) -> None:
    data = robust_training.digits()
    assert [len(x) for x, _ in data] == [1079, 359, 359]
    assert {int(y) for _, y in data for y in y} == set(range(10))
    pictures = [{tuple(row) for row in x.flatten(1).tolist()} for x, _ in data]
    assert not pictures[0] & pictures[2]
    assert not pictures[1] & pictures[2]


def test_the_same_seed_gives_the_same_numbers_and_another_one_others(robust_training: ModuleType, small: Any) -> None:
    damage = robust_training.Damage((0.1, 0.3), (0.5,), (10, 100), 2, 2, 3)
    for name, condition in robust_training.CONDITIONS.items():
        settings = (1e-2, condition.grid[1] if condition.grid else 1e-2)
        first, second, other = (robust_training.run(small, name, settings, seed, damage) for seed in (3, 3, 4))
        times = [found.pop("seconds") for found in (first, second, other)]
        assert all(time > 0 for time in times)
        assert first == second, name
        assert first != other, name
        assert [len(first[kind]) for kind in ("worst", "random", "flips")] == [2, 1, 2]
        assert all(0 <= x <= 100 for kind in ("worst", "random", "flips") for x in first[kind])
        assert first["worst"][1] <= first["worst"][0] <= first["clean"], name


def test_what_is_compared_starts_from_the_same_weights_and_takes_as_many_gradients(
    robust_training: ModuleType, small: Any
) -> None:
    starts, gradients = [], {}
    for name, condition in robust_training.CONDITIONS.items():
        model: list[nn.Module] = []
        calls = 0

        def counted(module: nn.Module, inputs: Any, output: Tensor) -> None:
            nonlocal calls
            calls += 1

        def build() -> nn.Module:
            model.append(small.model())  # noqa: B023
            starts.append([p.detach().clone() for p in model[0].parameters()])  # noqa: B023
            model[0].register_forward_hook(counted)  # noqa: B023
            return model[0]  # noqa: B023

        task = robust_training.Task(small.data, build, 1)
        robust_training.fit(task, condition, 1e-2, 0.1, 5)
        gradients[name] = calls / 4  # batches
    assert all(all(map(torch.equal, start, starts[0])) for start in starts)
    assert gradients["AdamW"] == gradients["AdaMod"] == 1
    assert gradients["GA-SAM"] == gradients["SAM"] == gradients["AdamW, 2x epochs"] == 2
    assert gradients["GA-SAM over AdaMod"] == gradients["AdaMod, 2x epochs"] == 2
    assert gradients["Defense"] == gradients["AdamW, 3x epochs"] == 3
    assert {name: c.gradients * c.lengthened for name, c in robust_training.CONDITIONS.items()} == gradients


def test_an_output_that_is_not_finite_is_wrong(robust_training: ModuleType) -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [float("nan"), 0.0], [float("inf"), 0.0]])
    assert robust_training.accuracy(nn.Identity(), (x, torch.tensor([0, 0, 0, 0]))) == 25


def test_damage_leaves_the_model_as_it_was(robust_training: ModuleType, small: Any) -> None:
    model, _ = robust_training.fit(small, robust_training.CONDITIONS["GA-SAM"], 1e-2, 0.1, 0)
    before = [p.detach().clone() for p in model.parameters()]
    robust_training.damaged(model, small.data.test, robust_training.Damage((0.3,), (1.0,), (100,), 2, 2, 2))
    assert all(map(torch.equal, model.parameters(), before))


def test_the_largest_strength_that_costs_little_is_chosen_and_of_plain_training_the_best_rate(
    robust_training: ModuleType,
) -> None:
    plain, ours = robust_training.CONDITIONS["AdamW"], robust_training.CONDITIONS["Defense"]
    accuracies = [97.0, 98.0, 97.6, 97.4]
    assert robust_training.chosen(plain, accuracies) == plain.grid[1]
    assert robust_training.chosen(plain, [97.0, 98.0, 98.0, 97.4]) == plain.grid[1]
    assert robust_training.chosen(ours, accuracies) == ours.grid[2]
    assert robust_training.chosen(ours, [97.0, 98.0, 97.6, 97.5]) == ours.grid[3]


def test_the_ratio_has_the_interval_of_a_paired_t_test(robust_training: ModuleType) -> None:
    from scipy.stats import ttest_rel

    ours, theirs = [1.0, 2.0, 4.0, 3.0], [2.0, 3.0, 5.0, 9.0]
    value, low, high = robust_training.ratio(ours, theirs)
    logs = [torch.tensor(x, dtype=torch.float64).log().tolist() for x in (ours, theirs)]
    interval = ttest_rel(*logs).confidence_interval(0.95)
    assert value == pytest.approx(statistics.geometric_mean(a / b for a, b in zip(ours, theirs, strict=True)))
    assert [math.log(low), math.log(high)] == pytest.approx([interval.low, interval.high])


def test_figures_stand_beside_what_took_as_many_gradients_and_a_quick_run_has_the_published_settings(
    robust_training: ModuleType,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for folder in FOLDERS:
            patch.syspath_prepend(folder)
        import bench_robustness
    names = robust_training.CONDITIONS
    assert set(bench_robustness.SETTINGS) == set(names)
    for name, (lr, strength) in bench_robustness.SETTINGS.items():
        assert strength in (names[name].grid or [lr])
        assert lr == (bench_robustness.SETTINGS[names[name].base][0] if names[name].base else strength)
    published = sorted((FOLDERS[0] / "results").glob("*-together-robustness.json"))[-1]
    first = json.loads(published.read_text("utf-8"))["outcomes"][0]
    assert first["name"] == bench_robustness.WORKLOADS[0].name
    rows = {row[0]: (float(row[1]), float(row[2] or row[1])) for row in first["table"][1:]}
    assert rows == bench_robustness.SETTINGS
    for ours, theirs in bench_robustness.PAIRS[:4]:
        assert names[ours].gradients * names[ours].lengthened == names[theirs].gradients * names[theirs].lengthened
    assert not set(bench_robustness.SEEDS) & set(bench_robustness.SEARCH_SEEDS)
