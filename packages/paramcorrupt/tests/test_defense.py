"""Defense: the gradient of each risk, where it is taken, and that a step leaves nothing else behind."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adadelta, Adam

from paramcorrupt import Defense, multistep, relative

if TYPE_CHECKING:
    from collections.abc import Callable

CASES: dict[str, dict[str, Any]] = {
    "p=2": {"eps": 0.3},
    "p=2, n": {"eps": 0.3, "n": 9},
    "p=2, one step": {"eps": 0.3, "steps": 1, "step_size": 1.0},
    "p=2, relative": {"eps": relative(0.1), "steps": 3},
    "p=inf": {"eps": 0.05, "p": math.inf},
    "p=inf, n": {"eps": 0.05, "p": math.inf, "n": 9},
    "raw": {"eps": 0.3, "ascent": "raw", "inner_lr": 0.7},
    "tensors": {"eps": 0.2, "scope": "tensor"},
    "relative tensors": {"eps": relative(0.1), "scope": "tensor", "p": math.inf},
}
RISKS = ("average", "last", "mix")


def perceptron(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def normed(*, momentum: float | None = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8, momentum=momentum)
    return nn.Sequential(nn.Linear(6, 8), norm, nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def batch(step: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    return torch.randn(16, 6, generator=draw).to(dtype), torch.randint(3, (16,), generator=draw)


def closure_of(model: nn.Module, optimizer: Any, step: int = 0) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        x, y = batch(step, next(model.parameters()).dtype)
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def bits(model: nn.Module) -> list[Tensor]:
    """The state of a model, in which -0.0 differs from 0.0 and one NaN from another."""
    return [x.detach().clone().reshape(-1).view(torch.uint8) for x in model.state_dict().values() if x.ndim]


def same_bits(model: nn.Module, before: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(bits(model), before, strict=True))


def flat(tensors: Any) -> Tensor:
    return torch.cat([x.detach().reshape(-1) for x in tensors])


# --- the gradient ---------------------------------------------------------------------------------------------------


def offsets(case: dict[str, Any], loss_at: Callable[[Tensor], Tensor], w: Tensor, sizes: list[int]) -> list[Tensor]:
    """a_1 to a_K of the equations, on vectors."""
    p, n, eps = case.get("p", 2), case.get("n"), case["eps"]
    steps, s = case.get("steps", 2), case.get("step_size", 1.5)
    units = sizes if case.get("scope") == "tensor" else [sum(sizes)]
    a, found = torch.zeros_like(w), []
    for _ in range(steps):
        at = (w + a).detach().requires_grad_()
        (g,) = torch.autograd.grad(loss_at(at), at)
        moved = []
        for own_a, own_g, own_w in zip(a.split(units), g.split(units), w.split(units), strict=True):
            radius = eps.r * own_w.norm(p) if isinstance(eps, relative) else eps
            if case.get("ascent") == "raw":
                u = case["inner_lr"] * own_g
            else:
                u = s * radius / steps * (own_g / own_g.norm() if p == 2 else own_g.sign())
            b = own_a + u
            if n is not None:
                first = b.abs().argsort(descending=True, stable=True)[:n]
                b = torch.zeros_like(b).index_copy_(0, first, b[first])
            if p == 2:
                b = b * min(1.0, float(radius / b.norm()))
            moved.append(b.clamp(-radius, radius) if p == math.inf else b)
        a = torch.cat(moved)
        found.append(a)
    return found


@pytest.mark.parametrize("risk", RISKS)
@pytest.mark.parametrize("case", CASES)
def test_gradient_is_that_of_the_risk_at_constant_corruptions(case: str, risk: str) -> None:
    model = perceptron(torch.float64)
    names, sizes = [name for name, _ in model.named_parameters()], [p.numel() for p in model.parameters()]
    shapes = [p.shape for p in model.parameters()]
    x, y = batch(dtype=torch.float64)

    def loss_at(w: Tensor) -> Tensor:
        parts = [part.view(shape) for part, shape in zip(w.split(sizes), shapes, strict=True)]
        return cross_entropy(torch.func.functional_call(model, dict(zip(names, parts, strict=True)), x), y)

    w = flat(model.parameters()).requires_grad_()
    at = [torch.zeros_like(w), *offsets(CASES[case], loss_at, w.detach(), sizes)]
    losses = [loss_at(w + a) for a in at]
    expected = {
        "average": sum(losses) / len(losses),
        "last": losses[-1],
        "mix": 0.3 * losses[0] + 0.7 * losses[-1],
    }[risk]
    (gradient,) = torch.autograd.grad(expected, w)

    optimizer = Defense(model, SGD, lr=1.0, risk=risk, alpha=0.7, **CASES[case])
    loss = optimizer.step(closure_of(model, optimizer))
    assert loss.item() == losses[0].item()
    torch.testing.assert_close(flat(p.grad for p in model.parameters()), gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(w - flat(model.parameters()), gradient, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(gradient, torch.autograd.grad(loss_at(w), w)[0], rtol=1e-3)


@pytest.mark.parametrize("p", [1, 1.5, 3, math.inf])
@pytest.mark.parametrize("n", [None, 5])
def test_corruptions_of_every_norm_stay_in_their_ball_and_raise_the_loss(p: float, n: int | None) -> None:
    model = perceptron(torch.float64)
    optimizer = Defense(model, SGD, lr=0.0, eps=0.1, p=p, n=n, steps=3)
    seen, losses, w = [], [], flat(model.parameters())
    inner = closure_of(model, optimizer)

    def closure() -> Tensor:
        seen.append(flat(model.parameters()) - w)
        losses.append(inner())
        return losses[-1]

    optimizer.step(closure)
    assert len(seen) == 4
    assert not seen[0].any()
    assert all(0 < a.norm(p).item() <= 0.1 * (1 + 1e-9) for a in seen[1:])
    assert all(a.count_nonzero() <= (n or a.numel()) for a in seen)
    assert losses[0] < losses[1] < losses[3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_set_to_the_rounded_sum_and_never_incremented(dtype: torch.dtype) -> None:
    p = nn.Parameter(torch.randn(999, generator=torch.Generator().manual_seed(0)).to(dtype))
    g = torch.randn(999, generator=torch.Generator().manual_seed(1)).to(dtype)
    optimizer = Defense([p], SGD, lr=0.0, eps=0.05, steps=4)
    seen, w = [], p.detach().clone()

    def closure() -> float:
        seen.append(p.detach().clone())
        p.grad = g.clone()
        return 0.0

    optimizer.step(closure)
    a, wide = torch.zeros(999), torch.float32
    for i in range(4):
        a = a + (g.double() * (0.05 * 1.5 / 4 / g.double().norm().item())).to(wide)
        a = a * min(1.0, 0.05 / a.double().norm().item())
        assert (seen[i + 1] != (w.to(wide) + a).to(dtype)).float().mean() < 0.01  # an increment rounds others, too
    assert torch.equal(p, w)


def test_a_step_calls_the_closure_once_more_than_it_ascends_and_returns_the_clean_loss() -> None:
    for steps in (1, 2, 5):
        model, calls = perceptron(), []
        optimizer = Defense(model, SGD, lr=0.1, eps=0.5, steps=steps)
        inner = closure_of(model, optimizer)

        def closure(inner: Any = inner, calls: list[Tensor] = calls) -> Tensor:
            calls.append(inner())
            return calls[-1]

        assert optimizer.step(closure) is calls[0]
        assert len(calls) == steps + 1
        assert calls[-1] > calls[0]


@pytest.mark.parametrize("options", [{"eps": 0.0}, {"eps": relative(0.0)}, {"eps": 0.3, "groups": False}])
def test_without_a_budget_it_is_the_base_optimizer_bit_for_bit(options: dict[str, Any]) -> None:
    ours, theirs = normed(), normed()
    params: Any = (
        [{"params": list(ours.parameters()), "perturb": False}] if options.pop("groups", None) is False else ours
    )
    optimizer, base = Defense(params, Adam, lr=0.01, **options), Adam(theirs.parameters(), lr=0.01)
    for model, each in ((ours, optimizer), (theirs, base)):
        torch.manual_seed(1)
        for step in range(5):
            each.step(closure_of(model, each, step))
    assert same_bits(ours, bits(theirs))
    assert torch.equal(ours[1].num_batches_tracked, theirs[1].num_batches_tracked)


def test_micro_batches_make_what_the_whole_placesmakes() -> None:
    models = perceptron(torch.float64), perceptron(torch.float64)
    for model, parts in zip(models, (1, 4), strict=True):
        optimizer = Defense(model, SGD, lr=0.1, eps=0.3)

        def closure(model: nn.Module = model, parts: int = parts, optimizer: Defense = optimizer) -> float:
            optimizer.zero_grad()
            losses = []
            for x, y in zip(*(part.chunk(parts) for part in batch(dtype=torch.float64)), strict=True):
                losses.append(cross_entropy(model(x), y) / parts)
                losses[-1].backward()
            return sum(loss.item() for loss in losses)

        for _ in range(3):
            optimizer.step(closure)
    torch.testing.assert_close(flat(models[1].parameters()), flat(models[0].parameters()), rtol=1e-12, atol=1e-14)


# --- groups ---------------------------------------------------------------------------------------------------------


def test_groups_that_are_not_perturbed_are_trained_and_not_corrupted() -> None:
    model = perceptron()
    groups = [{"params": model[0].parameters(), "perturb": False, "lr": 0.2}, {"params": model[2].parameters()}]
    optimizer = Defense(groups, SGD, lr=0.1, eps=relative(0.5), steps=1, step_size=1)
    seen, inner = [], closure_of(model, optimizer)

    def closure() -> Tensor:
        seen.append([p.detach().clone() for p in model.parameters()])
        return inner()

    optimizer.step(closure)
    clean, corrupted = seen
    assert all(torch.equal(a, b) for a, b in zip(clean[:2], corrupted[:2], strict=True))
    assert (flat(corrupted[2:]) - flat(clean[2:])).norm().item() == pytest.approx(0.5 * flat(clean[2:]).norm().item())
    assert all(not torch.equal(a, p) for a, p in zip(clean, model.parameters(), strict=True))


def test_frozen_and_unused_parameters_have_no_part_in_the_corruption() -> None:
    model = perceptron()
    model[0].weight.requires_grad_(False)
    model.unused = nn.Linear(2, 2)
    optimizer = Defense(list(model.parameters()), SGD, lr=0.1, eps=relative(0.5), steps=1, step_size=1)
    used = [model[0].bias, model[2].weight, model[2].bias]
    norms, before, w = [], bits(model.unused), flat(used)
    x, y = batch()

    def closure() -> Tensor:
        optimizer.zero_grad()
        norms.append((flat(used) - w).norm().item())
        loss = cross_entropy(model[2](model[1](model[0](x))), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert norms[1] == pytest.approx(0.5 * w.norm().item())
    assert same_bits(model.unused, before)


def test_gradients_that_only_some_passes_have_count_with_their_share() -> None:
    first, late, both = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = Defense([first, late, both], SGD, lr=0.0, eps=0.1)
    calls = []

    def closure() -> float:
        calls.append(len(calls))
        first.grad = torch.full((2,), 3.0) if calls[-1] == 0 else None
        late.grad = torch.full((2,), 6.0) if calls[-1] == 2 else None
        both.grad = torch.full((2,), 9.0)
        return 0.0

    optimizer.step(closure)
    assert [p.grad.tolist() for p in (first, late, both)] == [[1.0, 1.0], [2.0, 2.0], [9.0, 9.0]]


# --- what a step leaves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("eps", [1e-4, 1e3])
def test_weights_come_back_bit_for_bit(dtype: torch.dtype, eps: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(32, 3)).to(dtype)
    model[0].to(memory_format=torch.channels_last)
    with torch.no_grad():
        model[2].weight[0, :3] = torch.tensor([-0.0, torch.finfo(dtype).tiny / 2, torch.finfo(dtype).max])
    x, pointers, before = torch.randn(2, 4, 4, 4, dtype=dtype), [p.data_ptr() for p in model.parameters()], bits(model)
    optimizer = Defense(model, SGD, lr=0.0, eps=eps)
    seen = []

    def closure() -> Tensor:
        seen.append(same_bits(model, before))
        optimizer.zero_grad()
        loss = sum(p.double().atan().sum() for p in model.parameters()) + 0 * model(x).isnan().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert seen == [True, False, False]
    assert same_bits(model, before)
    assert pointers == [p.data_ptr() for p in model.parameters()]
    assert not model[0].weight.is_contiguous()


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("call", [0, 1, 2])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Interrupted])
def test_what_the_closure_raises_leaves_weights_and_states_as_they_were(call: int, error: type[BaseException]) -> None:
    model, calls = normed(), []
    optimizer = Defense(model, Adam, lr=0.1, eps=0.5)
    optimizer.step(closure_of(model, optimizer))
    state, parameters = copy.deepcopy(optimizer.state_dict()["state"]), flat(model.parameters())
    inner = closure_of(model, optimizer, 1)

    def closure() -> Tensor:
        loss = inner()
        calls.append(loss)
        if len(calls) == call + 1:
            raise error("of the closure")
        return loss

    with pytest.raises(error, match="of the closure"):
        optimizer.step(closure)
    assert torch.equal(flat(model.parameters()), parameters)
    now = optimizer.state_dict()["state"]
    assert all(torch.equal(now[k][name], x) for k, each in state.items() for name, x in each.items())
    assert model[1].num_batches_tracked == 2  # as the clean pass left it
    optimizer.step(closure_of(model, optimizer, 1))
    assert not torch.equal(flat(model.parameters()), parameters)


def test_ctrl_c_before_it_is_made_to_wait_leaves_the_weights_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    model = normed()
    optimizer = Defense(model, Adam, lr=0.1, eps=0.5)
    before = flat(model.parameters())
    monkeypatch.setattr("paramcorrupt.defense.uninterrupted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure_of(model, optimizer))
    assert torch.equal(flat(model.parameters()), before)


# --- what it is for -------------------------------------------------------------------------------------------------


def trained(seed: int, eps: float, data: tuple[Tensor, Tensor]) -> nn.Module:
    """A perceptron, defended in the second half of its training."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = Defense(model, Adadelta, lr=1.0, eps=0.0)
    for epoch in range(20):
        optimizer.eps = eps if epoch >= 10 else 0.0
        for places in torch.randperm(400).split(50):
            x, y = data[0][places], data[1][places]

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                optimizer.zero_grad()
                loss = cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
    return model


def test_defended_weights_withstand_an_attack_that_others_do_not() -> None:
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(10).repeat(60)
    x = torch.randn(10, 64, generator=draw)[y] + 1.5 * torch.randn(600, 64, generator=draw)
    gains = []
    for seed in range(3):
        normal, defended = (
            multistep(trained(seed, eps, (x[:400], y[:400])), "cross_entropy", [(x[400:], y[400:])], eps=2, steps=10)
            for eps in (0.0, 2.0)
        )
        assert defended.accuracy >= normal.accuracy - 0.01
        gains.append(defended.accuracy_corrupted - normal.accuracy_corrupted)
    assert sum(gains) / 3 > 0.08
