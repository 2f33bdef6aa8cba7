"""Mixed precision, accumulation, clipping and schedules: what stands between a closure and real training loops."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from gasam import GASAM

if TYPE_CHECKING:
    from collections.abc import Callable

SAM: dict[str, Any] = {"segments": "global", "strength_exponent": 0.0, "size_exponent": 0.0}
BASES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "Adam": (torch.optim.Adam, {"lr": 0.01}),
    "AdamW, fused": (torch.optim.AdamW, {"lr": 0.01, "fused": True}),
    "RMSprop": (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.9}),
}
every_base = pytest.mark.parametrize("base", BASES)


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3)).to(dtype)


def optimizer_of(model: nn.Module, base: str, rho: float = 0.1, **options: Any) -> GASAM:
    kind, kwargs = BASES[base]
    return GASAM(model, kind, rho, **options, **kwargs)


def batch(step: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 6, generator=generator).to(dtype), torch.randn(16, 3, generator=generator).to(dtype)


def loss_of(model: nn.Module, step: int, part: slice = slice(None)) -> Tensor:
    x, y = (t[part] for t in batch(step, next(model.parameters()).dtype))
    return (model(x).float() - y).square().mean() if x.dtype == torch.float32 else (model(x) - y).square().mean()


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float = 0.0) -> None:
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def is_equal(actual: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(actual, expected, strict=True))


def scaled_step(
    model: nn.Module,
    optimizer: GASAM,
    scaler: torch.amp.GradScaler,
    step: int,
    *,
    clip: float | None = None,
    spoil: tuple[float, float] = (1.0, 1.0),
    dtype: torch.dtype | None = None,
) -> None:
    """Two phases, of which each loss may be spoiled by a factor."""
    for factor in spoil:
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            loss = loss_of(model, step)
        scaler.scale(loss * factor).backward()
        if not optimizer.is_perturbed:
            optimizer.first_step(zero_grad=True, scaler=scaler)
    if clip is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


# --- loss scaling ---------------------------------------------------------------------------------------------------


@every_base
@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("options", [{}, {"risk": "average"}, {"segments": "channel", "adaptive": True}], ids=str)
def test_the_scale_of_the_loss_does_not_change_the_trajectory(base: str, clip: float | None, options: dict[str, Any]):
    found = []
    for scale in (1.0, 65536.0):
        model = net()
        optimizer = optimizer_of(model, base, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
        for step in range(8):
            scaled_step(model, optimizer, scaler, step, clip=clip)
        assert scaler.get_scale() == scale
        found.append(weights(model))
    assert not is_equal(found[0], weights(net()))
    assert_close(found[1], found[0], tolerance=1e-6)

    model = net()
    optimizer = optimizer_of(model, base, **options)
    for step in range(8):
        loss_of(model, step).backward()
        optimizer.first_step(zero_grad=True)
        loss_of(model, step).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.second_step(zero_grad=True)
    assert_close(found[1], weights(model), tolerance=1e-6)


@every_base
@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_an_overflow_of_the_last_gradient_leaves_the_weights_and_halves_the_scale(
    base: str, clip: float | None, factor: float
):
    model, other = net(), net()
    optimizer, undisturbed = (optimizer_of(m, base, reference="global") for m in (model, other))
    scaler, its = (torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in range(2))
    for m, o, s in ((model, optimizer, scaler), (other, undisturbed, its)):
        scaled_step(m, o, s, 0, clip=clip)
    before = weights(model)
    places = [p.data_ptr() for p in model.parameters()]
    scaled_step(model, optimizer, scaler, 1, clip=clip, spoil=(1.0, factor))
    assert is_equal(weights(model), before)
    assert [p.data_ptr() for p in model.parameters()] == places
    assert scaler.get_scale() == 512.0
    assert not optimizer.is_perturbed
    for m, o, s in ((model, optimizer, scaler), (other, undisturbed, its)):
        scaled_step(m, o, s, 2, clip=clip)
    assert not is_equal(weights(model), before)
    assert_close(weights(model), weights(other), tolerance=1e-6)


@every_base
def test_an_overflow_of_the_first_gradient_leaves_a_step_of_the_base(base: str):
    model, alone = net(), net()
    optimizer = optimizer_of(model, base)
    kind, kwargs = BASES[base]
    plain = kind(alone.parameters(), **kwargs)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled_step(model, optimizer, scaler, 0, spoil=(math.inf, 1.0))
    loss_of(alone, 0).backward()
    plain.step()
    assert scaler.get_scale() == 1024.0
    assert int(optimizer.skipped_ascents) == 1
    assert_close(weights(model), weights(alone), tolerance=1e-6)
    scaled_step(model, optimizer, scaler, 1)
    assert int(optimizer.skipped_ascents) == 1
    assert all(p.isfinite().all() for p in model.parameters())


@every_base
def test_an_overflow_of_both_gradients_leaves_the_weights(base: str):
    model = net()
    optimizer = optimizer_of(model, base)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = weights(model)
    scaled_step(model, optimizer, scaler, 0, spoil=(math.inf, math.inf))
    assert is_equal(weights(model), before)
    assert scaler.get_scale() == 512.0


@every_base
def test_a_scale_that_is_too_large_for_float16_is_found(base: str):
    """The overflows are those of float16 itself; then it trains."""
    model = net()
    optimizer = optimizer_of(model, base, rho=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=10**6)
    before, losses = weights(model), []
    steps_at_rest = 0
    for step in range(40):
        if is_equal(weights(model), before):
            steps_at_rest += 1
        scaled_step(model, optimizer, scaler, step % 2, clip=1.0, dtype=torch.float16)
        losses.append(float((loss_of(model, 0) + loss_of(model, 1)).detach()))
    assert 2 < steps_at_rest < 20
    assert scaler.get_scale() == 2.0 ** (25 - steps_at_rest)
    assert losses[-1] < 0.7 * losses[0]


def test_a_scaler_takes_no_closure():
    model = net()
    optimizer = optimizer_of(model, "SGD")
    scaler = torch.amp.GradScaler("cpu")
    before = weights(model)
    scaler.scale(loss_of(model, 0)).backward()
    with pytest.raises(RuntimeError, match=r"takes no closure: call first_step\(scaler=scaler\), then scaler.step"):
        scaler.step(optimizer, lambda: loss_of(model, 0))
    assert is_equal(weights(model), before)
    scaler.update()
    optimizer.zero_grad()
    scaled_step(model, optimizer, scaler, 0)
    assert not is_equal(weights(model), before)


def test_micro_batches_with_perturbations_of_their_own_can_be_scaled():
    parts = [slice(0, 8), slice(8, 16)]
    models = [net(torch.float64) for _ in range(2)]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizers = [optimizer_of(model, "SGD", reference="global") for model in models]
    for step in range(5):
        for part in parts:
            loss = scaler.scale(loss_of(models[0], step, part)) / len(parts)
            grads = torch.autograd.grad(loss, list(models[0].parameters()))
            with optimizers[0].perturbed(grads, scaler=scaler):
                (scaler.scale(loss_of(models[0], step, part)) / len(parts)).backward()
        scaler.step(optimizers[0])
        scaler.update()
        optimizers[0].zero_grad()

        mean = [torch.zeros_like(p) for p in models[1].parameters()]
        for part in parts:
            optimizers[1].zero_grad()
            loss_of(models[1], step, part).backward()
            optimizers[1].perturb()
            optimizers[1].zero_grad()
            loss_of(models[1], step, part).backward()
            for sum_, p in zip(mean, models[1].parameters(), strict=True):
                sum_ += p.grad / len(parts)
            optimizers[1].restore()
        for sum_, p in zip(mean, models[1].parameters(), strict=True):
            p.grad = sum_
        optimizers[1].step()
        optimizers[1].zero_grad()
    assert_close(weights(models[0]), weights(models[1]), tolerance=1e-9)


# --- autocast -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("two_phases", [False, True])
def test_both_passes_in_one_autocast_see_the_weights_that_they_should(dtype: torch.dtype, two_phases: bool):
    rho = 0.3
    model, uncached = net(), net()
    found: list[list[Any]] = []
    for m, cache in ((model, True), (uncached, False)):
        seen: list[Any] = []
        before = weights(m)

        def look(
            module: nn.Module, args: Any, output: Tensor, m: Any = m, seen: Any = seen, before: Any = before
        ) -> None:
            moved = torch.cat([(p.detach() - w).flatten() for p, w in zip(m.parameters(), before, strict=True)])
            seen.append((float(moved.norm()), output.detach().clone()))

        m.register_forward_hook(look)
        optimizer = GASAM(m, torch.optim.SGD, rho, lr=0.1, **SAM)
        with torch.autocast("cpu", dtype, cache_enabled=cache):

            def closure(m: nn.Module = m) -> Tensor:
                loss = loss_of(m, 0)
                loss.backward()
                return loss

            if two_phases:
                closure()
                optimizer.first_step(zero_grad=True)
                closure()
                optimizer.second_step(zero_grad=True)
            else:
                optimizer.step(closure)
            m(batch(0)[0])
        found.append(seen)
    cached, expected = found
    assert [radius for radius, _ in cached[:2]] == pytest.approx([0.0, rho], rel=1e-3)
    assert not torch.equal(cached[0][1], cached[1][1])
    assert not torch.equal(cached[0][1], cached[2][1])
    for (_, output), (_, right) in zip(cached, expected, strict=True):
        assert torch.equal(output, right)
    assert is_equal(weights(model), weights(uncached))


# --- accumulation ---------------------------------------------------------------------------------------------------


@every_base
@pytest.mark.parametrize("parts", [2, 8])
@pytest.mark.parametrize("two_phases", [False, True])
def test_accumulated_parts_are_as_good_as_one_batch(base: str, parts: int, two_phases: bool):
    found = []
    for count in (1, parts):
        model = net(torch.float64)
        optimizer = optimizer_of(model, base)

        def closure(step: int, model: nn.Module = model, count: int = count) -> Tensor:
            total = torch.zeros(())
            for k in range(count):
                loss = loss_of(model, step, slice(16 // count * k, 16 // count * (k + 1))) / count
                loss.backward()
                total = total + loss.detach()
            return total

        for step in range(10):
            if two_phases:
                closure(step)
                optimizer.first_step(zero_grad=True)
                closure(step)
                optimizer.second_step(zero_grad=True)
            else:
                optimizer.step(lambda step=step, closure=closure: closure(step))
        found.append(weights(model))
    assert_close(found[1], found[0], tolerance=1e-9)


# --- schedules ------------------------------------------------------------------------------------------------------

SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "one cycle with momentum": lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=0.2, total_steps=14),
    "cosine": lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=8),
    "plateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=0, threshold=0.5),
    "lambda": lambda opt: lr_scheduler.LambdaLR(opt, lambda step: 1 / (1 + step)),
    "sequence": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.LinearLR(opt, 0.1, total_iters=3), lr_scheduler.ExponentialLR(opt, 0.8)], milestones=[3]
    ),
}


@every_base
@pytest.mark.parametrize("two_phases", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_of_either_optimizer_are_those_of_the_base(schedule: str, two_phases: bool, base: str):
    """Without a warning, and with the learning rates and momenta that the base alone would have had."""

    def run(on_base: bool) -> tuple[list[Tensor], list[Any]]:
        model = net()
        optimizer = optimizer_of(model, base)
        scheduler = SCHEDULES[schedule](optimizer.base_optimizer if on_base else optimizer)
        rates = []
        for step in range(12):

            def closure(step: int = step) -> Tensor:
                loss = loss_of(model, step % 2)
                loss.backward()
                return loss

            if two_phases:
                loss = closure()
                optimizer.first_step(zero_grad=True)
                closure()
                optimizer.second_step(zero_grad=True)
            else:
                loss = optimizer.step(closure)
            scheduler.step(*([float(loss.detach())] if schedule == "plateau" else []))
            rates.append({key: optimizer.param_groups[0].get(key) for key in ("lr", "momentum", "betas")})
        return weights(model), rates

    (ours, rates), (its, same) = run(False), run(True)
    assert is_equal(ours, its)
    assert rates == same
    assert len({str(rate) for rate in rates}) >= (2 if schedule == "plateau" else 10)
    if schedule == "plateau":
        return  # it depends on the losses
    kind, kwargs = BASES[base]
    alone = kind(net().parameters(), **kwargs)
    scheduler = SCHEDULES[schedule](alone)
    for rate in rates:
        alone.step()
        scheduler.step()
        assert rate == {key: alone.param_groups[0].get(key) for key in ("lr", "momentum", "betas")}


def test_rho_follows_its_schedule_and_a_checkpoint_keeps_it():
    model = net(torch.float64)
    optimizer = GASAM(model, torch.optim.SGD, 0.0, lr=0.1, **SAM)
    radii = []

    def closure() -> Tensor:
        loss = loss_of(model, 0)
        loss.backward()
        if optimizer.is_perturbed:
            moved = [p.detach() - w for p, w in zip(model.parameters(), before, strict=True)]
            radii.append(float(torch.cat([x.flatten() for x in moved]).norm()))
        return loss

    schedule = [0.0, 0.1, 0.2, 0.05, 0.0, 0.3]
    for rho in schedule:
        optimizer.param_groups[0]["rho"] = rho
        before = weights(model)
        optimizer.step(closure)
    assert radii == pytest.approx([rho for rho in schedule if rho], rel=1e-9)
    again = GASAM(net(torch.float64), torch.optim.SGD, 0.7, lr=0.1, **SAM)
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["rho"] == 0.3


def test_rho_can_follow_the_learning_rate():
    """As in GSAM's runs: a radius that goes down with the learning rate."""
    model = net()
    optimizer = GASAM(model, torch.optim.SGD, lr=0.1, **SAM)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=5)
    strengths = []
    for step in range(5):
        group = optimizer.param_groups[0]
        group["rho"] = 0.02 + 0.5 * group["lr"]

        def closure(step: int = step) -> Tensor:
            loss = loss_of(model, step)
            loss.backward()
            return loss

        optimizer.step(closure)
        strengths.append((float(optimizer.strengths()["0.weight"]), group["rho"]))
        scheduler.step()
    assert all(s == pytest.approx(rho, rel=1e-6) for s, rho in strengths)
    assert len({rho for _, rho in strengths}) == 5
