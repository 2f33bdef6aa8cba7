"""Defense among torch's conventions: buffers, scalers, schedulers, checkpoints, copies, hooks, and what it refuses."""

from __future__ import annotations

import copy
import math
import pickle
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import LBFGS, SGD, Adadelta, Adam
from torch.optim.lr_scheduler import StepLR

from paramcorrupt import Defense, relative

if TYPE_CHECKING:
    from collections.abc import Callable


class Counting(nn.Module):
    """Has a buffer that it changes in place and one that it replaces, as no layer of torch does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("constant", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x * self.constant


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), Counting(), nn.Tanh(), nn.Linear(8, 3))


def batch(step: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    return torch.randn(16, 6, generator=draw), torch.randint(3, (16,), generator=draw)


def closure_of(model: Callable[[Tensor], Tensor], optimizer: Any, step: int = 0) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        x, y = batch(step)
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def train(model: Any, optimizer: Any, steps: range) -> None:
    for step in steps:
        optimizer.step(closure_of(model, optimizer, step))


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


# --- buffers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["module", "parameters", "compiled", "copied"])
def test_buffers_are_those_of_the_clean_passes(given: str) -> None:
    ours, theirs = network(), network()
    call: Any = ours
    if given == "compiled":
        torch.compiler.reset()
        call = torch.compile(ours, backend="eager")
        call(batch()[0])
        theirs(batch()[0])
    optimizer = Defense(ours if given == "module" else ours.parameters(), SGD, lr=0.0, eps=0.5)
    if given == "copied":
        ours, optimizer = copy.deepcopy((ours, optimizer))
        call = ours
    constant = ours[2].constant
    version = constant._version
    train(call, optimizer, range(3))
    for step in range(3):
        theirs(batch(step)[0])
    for (name, ours_), (_, theirs_) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        assert torch.equal(ours_, theirs_), name
    assert ours[2].calls == (4 if given == "compiled" else 3)
    assert constant._version == version  # what no pass moves is not written either


def test_a_copy_and_a_pickle_train_as_the_original_does() -> None:
    model = network()
    optimizer = Defense(model, partial(Adam, eps=1e-6), lr=0.01, eps=relative(0.05), scope="tensor", risk="mix")
    scheduler = StepLR(optimizer, 1, 0.9)
    train(model, optimizer, range(2))
    scheduler.step()
    copied, copy_of_optimizer = copy.deepcopy((model, optimizer))
    read, read_optimizer = pickle.loads(pickle.dumps((model, optimizer)))
    for each, own in ((model, optimizer), (copied, copy_of_optimizer), (read, read_optimizer)):
        train(each, own, range(2, 5))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.009)
    assert torch.equal(flat(copied), flat(model))
    assert torch.equal(flat(read), flat(model))


# --- the base optimizer ---------------------------------------------------------------------------------------------


def test_groups_and_state_are_those_of_the_base_optimizer() -> None:
    model = network()
    optimizer = Defense(model, Adam, lr=0.01, eps=0.1)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is optimizer.base_optimizer.param_groups
    train(model, optimizer, range(1))
    assert optimizer.state is optimizer.base_optimizer.state
    assert len(optimizer.state) == 6
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    optimizer.param_groups[0]["lr"] = 0.0
    before = flat(model)
    train(model, optimizer, range(1))
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize("on_base", [False, True])
def test_schedulers_of_either_optimizer_change_the_rate_of_both(on_base: bool) -> None:
    model = network()
    optimizer = Defense(model, SGD, lr=1.0, eps=0.1)
    scheduler = StepLR(optimizer.base_optimizer if on_base else optimizer, 1, 0.5)
    for lr in (1.0, 0.5, 0.25):
        assert optimizer.param_groups[0]["lr"] == optimizer.base_optimizer.param_groups[0]["lr"] == lr
        train(model, optimizer, range(1))
        scheduler.step()


def test_checkpoints_pass_between_it_and_its_base() -> None:
    model = network()
    optimizer = Defense([{"params": model[0].parameters(), "perturb": False}], Adam, lr=0.01, eps=0.1)
    train(model, optimizer, range(2))
    base = Adam(model[0].parameters(), lr=0.5)
    base.load_state_dict(optimizer.state_dict())
    assert base.param_groups[0]["lr"] == 0.01
    plain = Adam(model[0].parameters(), lr=0.25)
    plain.load_state_dict({**base.state_dict(), "param_groups": plain.state_dict()["param_groups"]})
    optimizer.load_state_dict(plain.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert optimizer.param_groups[0]["perturb"] is False
    moments = [optimizer.state[p]["exp_avg"] for p in model[0].parameters()]
    assert all(torch.equal(x, base.state[p]["exp_avg"]) for x, p in zip(moments, model[0].parameters(), strict=True))


def test_a_group_is_added_in_mid_training_or_refused_as_a_whole() -> None:
    model = network()
    optimizer = Defense(model[0].parameters(), SGD, lr=0.1, eps=0.1)
    train(model, optimizer, range(1))
    optimizer.add_param_group({"params": model[4].parameters(), "lr": 0.2, "perturb": False})
    optimizer.base_optimizer.add_param_group({"params": model[1].parameters()})
    before = flat(model)
    train(model, optimizer, range(1))
    assert not torch.equal(flat(model[0]), before[:56])
    assert not torch.equal(flat(model[1]), before[56:72])
    assert not torch.equal(flat(model[4]), before[72:])
    with pytest.raises(ValueError, match="overlap"):
        optimizer.add_param_group({"params": [nn.Parameter(model[0].weight.detach()[1:])]})
    with pytest.raises(TypeError, match=r"perturb must be True or False in every group, got 'no'"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "perturb": "no"})
    assert len(optimizer.param_groups) == 3


def test_hooks_of_both_optimizers_are_called_once_a_step_and_clipping_sees_the_combined_gradient() -> None:
    model, called = network(), []
    optimizer = Defense(model, SGD, lr=0.1, eps=0.1)
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "mine": 1})
    optimizer.register_load_state_dict_pre_hook(lambda _, state: called.append(state.pop("mine")))
    optimizer.base_optimizer.register_step_pre_hook(
        lambda *_: called.append(nn.utils.clip_grad_norm_(model.parameters(), 1e-3).item())
    )
    before = flat(model)
    train(model, optimizer, range(1))
    assert (called[0], called[2:]) == ("before", ["after"])
    assert (flat(model) - before).norm().item() == pytest.approx(1e-4, rel=1e-2)
    optimizer.load_state_dict(optimizer.state_dict())
    assert called[-1] == 1


def test_the_budget_may_change_from_step_to_step() -> None:
    model = network()
    optimizer = Defense(model, SGD, lr=0.0, eps=0.0)
    moved, w = [], flat(model)
    inner = closure_of(model, optimizer)

    def closure() -> Tensor:
        moved.append((flat(model) - w).norm().item())
        return inner()

    optimizer.step(closure)
    optimizer.eps = 0.25
    optimizer.step(closure)
    optimizer.eps = relative(0.1)
    optimizer.step(closure)
    radius = 0.1 * w.norm().item()
    assert moved == pytest.approx([0, 0, 0.75 * 0.25, 0.25, 0, 0.75 * radius, radius], abs=1e-3)
    with pytest.raises(ValueError, match=r"eps must be finite and non-negative, got -1"):
        optimizer.eps = -1


# --- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ascent", ["normalized", "raw"])
def test_a_scaled_loss_makes_the_steps_of_the_unscaled_one(ascent: str) -> None:
    models = network(), network()
    for model, scaler in zip(models, (None, torch.amp.GradScaler("cpu", init_scale=1024.0)), strict=True):
        optimizer = Defense(model, Adam, lr=0.01, eps=0.2, ascent=ascent)
        for step in range(3):

            def closure(model: Any = model, scaler: Any = scaler, step: int = step, own: Defense = optimizer) -> Tensor:
                own.zero_grad()
                x, y = batch(step)
                loss = cross_entropy(model(x), y)
                (loss if scaler is None else scaler.scale(loss)).backward()
                return loss

            optimizer.step(closure, scaler=scaler)
            if scaler is not None:
                scaler.update()
    torch.testing.assert_close(flat(models[1]), flat(models[0]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("call", [0, 1, 2])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("perturb", [True, False])
def test_a_gradient_that_is_not_finite_skips_the_step(call: int, scaled: bool, perturb: bool) -> None:
    model, calls = network(), []
    groups = [{"params": model[0].parameters(), "perturb": perturb}, {"params": model[4].parameters()}]
    optimizer = Defense(groups, Adam, lr=0.1, eps=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    before = flat(model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        x, y = batch()
        loss = cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        if len(calls) == call:
            model[0].weight.grad[0, 0] = math.inf
        calls.append(loss)
        return loss

    loss = optimizer.step(closure, scaler=scaler)
    scaler.update()
    assert loss is calls[0]
    assert torch.equal(flat(model), before)
    assert not optimizer.state
    assert optimizer.skipped_steps == 1
    assert scaler.get_scale() == (512.0 if scaled else 1.0)
    optimizer.step(closure, scaler=scaler)
    assert optimizer.skipped_steps == 1
    assert not (flat(model[0]) == before[: 6 * 8 + 8]).any()


def test_autocast_around_the_step_sees_the_corrupted_weights() -> None:
    models = network(), network()
    losses: list[list[float]] = [[], []]
    for inside, model, own in zip((True, False), models, losses, strict=True):
        optimizer = Defense(model, SGD, lr=0.1, eps=0.5)

        def closure(inside: bool = inside, model: Any = model, own: Any = own, by: Defense = optimizer) -> Tensor:
            by.zero_grad()
            x, y = batch()
            with torch.autocast("cpu", torch.bfloat16, enabled=inside or torch.is_autocast_enabled("cpu")):
                loss = cross_entropy(model(x), y)
            loss.backward()
            own.append(loss.item())
            return loss

        with torch.autocast("cpu", torch.bfloat16, enabled=not inside):
            optimizer.step(closure)
    assert losses[0] == losses[1]
    assert losses[0][0] < losses[0][1] < losses[0][2]
    assert torch.equal(flat(models[0]), flat(models[1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_shares_of_gradients_of_16_bits_are_summed_in_float32(dtype: torch.dtype) -> None:
    p = nn.Parameter(torch.zeros(3, dtype=dtype))
    optimizer = Defense([p], SGD, lr=0.0, eps=0.1, steps=8, p=math.inf)
    largest, calls = torch.finfo(dtype).max, []

    def closure() -> float:
        calls.append(len(calls))
        p.grad = torch.tensor([largest, 1.0, 1.0 if calls[-1] == 8 else 0.0], dtype=dtype)
        return 0.0

    optimizer.step(closure)
    assert torch.equal(p.grad, torch.tensor([largest, 1.0, 1 / 9], dtype=torch.float64).to(dtype))


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eps": -0.1}, ValueError, r"eps must be finite and non-negative, got -0\.1"),
        ({"eps": math.nan}, ValueError, "eps must be finite and non-negative, got nan"),
        ({"eps": "1"}, TypeError, "eps must be a number or relative"),
        ({"p": 0.5}, ValueError, r"p must be at least 1, got 0\.5"),
        ({"n": 0}, ValueError, "n must be at least 1"),
        ({"n": 10**6}, ValueError, "n=1000000 with k=99"),
        ({"n": 60, "scope": "tensor"}, ValueError, "n=60 with k=48"),
        ({"n": True}, TypeError, "n must be an integer or None, got True"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": 1.0}, TypeError, r"steps must be an integer, got 1\.0"),
        ({"risk": "worst"}, ValueError, "risk must be one of 'average', 'last', 'mix', got 'worst'"),
        ({"alpha": 1.5}, ValueError, r"alpha must be from 0 to 1, got 1\.5"),
        ({"alpha": None}, TypeError, "alpha must be a number, got None"),
        ({"step_size": math.inf}, ValueError, "step_size must be finite and non-negative, got inf"),
        ({"scope": "layer"}, ValueError, "scope must be one of 'global', 'tensor', got 'layer'"),
        ({"ascent": 1}, ValueError, "ascent must be one of 'normalized', 'raw', got 1"),
        ({"inner_lr": -1}, ValueError, "inner_lr must be finite and non-negative, got -1"),
        ({"base_optimizer": LBFGS}, TypeError, "base_optimizer must take one gradient a step, got LBFGS"),
        ({"base_optimizer": partial(Defense, base_optimizer=SGD, eps=0)}, TypeError, "got Defense"),
        ({"base_optimizer": "sgd"}, TypeError, "base_optimizer must be a class of optimizer .* got 'sgd'"),
        ({"base_optimizer": list}, TypeError, "base_optimizer must make a torch.optim.Optimizer"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Defense(network(), **{"base_optimizer": Adadelta, "eps": 0.1, **options})


def test_parameters_that_cannot_be_corrupted_are_refused_by_name() -> None:
    w = torch.zeros(6)
    with pytest.raises(ValueError, match=r"'0\.0' and '0\.1', which overlap"):
        Defense([nn.Parameter(w[:4]), nn.Parameter(w[2:])], SGD, eps=0.1)
    with pytest.raises(TypeError, match=r"parameter '0\.0' must be of float32.*complex64"):
        Defense([nn.Parameter(torch.zeros(2, dtype=torch.complex64))], SGD, eps=0.1)
    Defense([{"params": [nn.Parameter(w[:4]), nn.Parameter(w[2:])], "perturb": False}], SGD, eps=0.1)


@pytest.mark.parametrize("call", [0, 1, 2])
def test_a_closure_without_a_loss_or_with_a_step_of_its_own_is_refused(call: int) -> None:
    model, calls = network(), []
    optimizer = Defense(model, SGD, lr=0.1, eps=0.5)
    before, inner = flat(model), closure_of(model, optimizer)

    def silent() -> Tensor | None:
        calls.append(inner())
        return None if len(calls) == call + 1 else calls[-1]

    with pytest.raises(TypeError, match="closure must return the loss, got None"):
        optimizer.step(silent)
    assert len(calls) == call + 1
    with pytest.raises(RuntimeError, match="step must not be called by a closure"):
        optimizer.step(lambda: optimizer.step(inner))
    assert torch.equal(flat(model), before)


def test_a_step_without_closure_or_gradient_is_refused() -> None:
    model = network()
    optimizer = Defense(model, SGD, lr=0.1, eps=0.5)
    with pytest.raises(TypeError, match="closure must compute the loss and its gradient and return the loss, got None"):
        optimizer.step()
    with pytest.raises(ValueError, match="closure must give parameters a gradient, got none; call backward in it"):
        optimizer.step(lambda: model(batch()[0]).sum())
    with pytest.raises(TypeError, match=r"scaler must be a torch\.amp\.GradScaler, got 2"):
        optimizer.step(closure_of(model, optimizer), scaler=2)
    sparse = nn.Embedding(4, 2, sparse=True)
    optimizer = Defense(sparse, SGD, lr=0.1, eps=0.5)
    before = flat(sparse)

    def closure() -> Tensor:
        loss = sparse(torch.tensor([1, 2])).sum()
        loss.backward()
        return loss

    with pytest.raises(TypeError, match=r"gradient 'weight' must be strided, got torch\.sparse_coo"):
        optimizer.step(closure)
    assert torch.equal(flat(sparse), before)
