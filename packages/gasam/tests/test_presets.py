"""What the papers say of the presets, in NumPy's float64, and how the presets behave as optimizers."""

from __future__ import annotations

import copy
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW

import gasam
from gasam import ASAM, GASAM, GSAM, MSAM, SAM, SAMON, WSAM, FriendlySAM, LookSAM, MultiStepRisk

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim import Optimizer

PRESETS = [SAM, ASAM, GSAM, FriendlySAM, LookSAM, SAMON, MSAM, WSAM, MultiStepRisk]
EVERY_PRESET = pytest.mark.parametrize("preset", PRESETS)

# --- a loss whose gradient is known ---------------------------------------------------------------------------------

SIZES = {"norm.weight": 3, "norm.bias": 3, "out.weight": 8, "out.bias": 2}
_rng = np.random.default_rng(1)
_half = _rng.normal(size=(16, 16))
CURVATURE, SLOPE = _half @ _half.T / 16 + 0.1 * np.eye(16), _rng.normal(size=16)
START = _rng.normal(size=16)
LR, RHO = 0.1, 0.3


def gradient(w: np.ndarray) -> np.ndarray:
    return CURVATURE @ w - SLOPE + 0.5 * np.sin(w)


class Model(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(3), nn.Linear(4, 2)
        self.to(dtype)
        first = 0
        for name, size in SIZES.items():
            p = self.get_parameter(name)
            with torch.no_grad():
                p.copy_(torch.from_numpy(START[first : first + size]).view_as(p))
            first += size

    def loss(self) -> Tensor:
        w = torch.cat([p.flatten() for p in self.parameters()])
        curvature, slope = torch.from_numpy(CURVATURE).to(w), torch.from_numpy(SLOPE).to(w)
        return w @ curvature @ w / 2 - slope @ w - 0.5 * w.cos().sum()


def weights(model: nn.Module) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).double().numpy()


def run(model: Model, optimizer: Optimizer, steps: int = 1) -> int:
    """The number of calls of the closure."""
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = model.loss()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return calls


def trained(preset: Callable[..., GASAM], times: int = 1, base: type = SGD, **options: Any) -> np.ndarray:
    model = Model()
    run(model, preset(model, base, **{"lr": LR, **options}), times)
    return weights(model)


def unit(u: np.ndarray) -> np.ndarray:
    return u / np.linalg.norm(u)


def close(actual: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(actual - expected).max() <= 1e-12)


IS_WEIGHT = np.repeat(["weight" in name for name in SIZES], list(SIZES.values()))
IS_NORM = np.repeat(["norm" in name for name in SIZES], list(SIZES.values()))


# --- facts of the papers --------------------------------------------------------------------------------------------


def test_sam_steps_along_the_gradient_at_distance_rho():
    w = START
    for _ in range(2):
        w = w - LR * gradient(w + RHO * unit(gradient(w)))
    assert close(trained(SAM, 2, rho=RHO), w)


def test_asam_perturbs_weights_in_proportion_to_their_magnitude_and_biases_as_they_are():
    w, eta = START, 0.05
    for _ in range(2):
        g, t = gradient(w), np.where(IS_WEIGHT, np.abs(w) + eta, 1)
        w = w - LR * gradient(w + RHO * t * unit(t * g))
    assert close(trained(ASAM, 2, rho=RHO, eta=eta), w)


def test_gsam_takes_away_of_the_clean_gradient_what_is_orthogonal_to_the_perturbed_one():
    w, alpha = START, 0.4
    for _ in range(2):
        clean = gradient(w)
        perturbed = gradient(w + RHO * unit(clean))
        w = w - LR * (perturbed - alpha * (clean - clean @ unit(perturbed) * unit(perturbed)))
    assert close(trained(GSAM, 2, rho=RHO, alpha=alpha), w)


def test_friendly_sam_ascends_along_what_the_gradient_has_beyond_its_mean():
    w, sigma, lmbda = START, 0.8, 0.6
    m = None
    for _ in range(3):
        g = gradient(w)
        w = w - LR * gradient(w + RHO * unit(g if m is None else g - sigma * m))
        m = g if m is None else lmbda * m + (1 - lmbda) * g  # of the whole gradient, not of what is left of it
    assert close(trained(FriendlySAM, 3, rho=RHO, sigma=sigma, lmbda=lmbda), w)


def test_looksam_uses_again_what_the_perturbed_gradient_had_beyond_the_clean_one():
    w, alpha, k = START, 0.7, 3
    for t in range(5):
        g = gradient(w)
        if t % k == 0:
            perturbed = gradient(w + RHO * unit(g))
            sharp = perturbed - perturbed @ unit(g) * unit(g)
            g = perturbed
        else:
            g = g + alpha * np.linalg.norm(g) / (np.linalg.norm(sharp) + 1e-8) * sharp
        w = w - LR * g
    assert close(trained(LookSAM, 5, rho=RHO, alpha=alpha, k=k), w)


def test_samon_perturbs_the_norm_layers_alone():
    w = START
    for _ in range(2):
        w = w - LR * gradient(w + RHO * unit(gradient(w) * IS_NORM))
    assert close(trained(SAMON, 2, rho=RHO), w)


def test_msam_perturbs_against_the_momentum_and_begins_with_a_plain_step():
    w, m = START, np.zeros_like(START)
    for t in range(3):
        g = gradient(w if t == 0 else w - RHO * unit(m))
        m = 0.9 * m + g
        w = w - LR * m
    assert close(trained(MSAM, 3, rho=RHO, momentum=0.9), w)


def test_msam_takes_the_momentum_of_adam():
    w, m, v = START, np.zeros_like(START), np.zeros_like(START)
    for t in range(1, 4):
        g = gradient(w if t == 1 else w - RHO * unit(m))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w - LR * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    assert np.abs(trained(MSAM, 3, Adam, rho=RHO) - w).max() <= 1e-10


def test_coupled_wsam_mixes_the_gradients():
    w, gamma = START, 0.8
    share = gamma / (1 - gamma)
    for _ in range(2):
        clean = gradient(w)
        w = w - LR * (share * gradient(w + RHO * unit(clean)) + (1 - share) * clean)
    assert close(trained(WSAM, 2, rho=RHO, gamma=gamma, decouple=False), w)


@pytest.mark.parametrize("base", [SGD, AdamW, Adagrad])
def test_decoupled_wsam_keeps_the_sharpness_out_of_the_base_optimizer(base: type):
    gamma, more = 0.8, {"weight_decay": 0.1}
    model = Model()
    plain = base(model.parameters(), lr=LR, **more)
    for _ in range(3):
        clean = gradient(weights(model))
        sharpness = gradient(weights(model) + RHO * unit(clean)) - clean
        run(model, plain)
        parts = torch.from_numpy(LR * gamma / (1 - gamma) * sharpness).split(list(SIZES.values()))
        with torch.no_grad():
            for p, x in zip(model.parameters(), parts, strict=True):
                p -= x.view_as(p)
    assert close(trained(WSAM, 3, base, rho=RHO, gamma=gamma, **more), weights(model))


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_multi_step_risk_is_the_mean_over_the_path_within_the_ball(steps: int):
    w = START
    for _ in range(2):
        offset, g = np.zeros_like(w), gradient(w)
        total = g.copy()
        for _ in range(steps):
            offset = offset + 1.5 * RHO / steps * unit(g)
            offset *= min(1, RHO / np.linalg.norm(offset))
            g = gradient(w + offset)
            total += g
        w = w - LR * total / (steps + 1)
    assert close(trained(MultiStepRisk, 2, rho=RHO, steps=steps), w)


def test_multi_step_risk_is_clamped_for_the_maximum_norm():
    w, steps = START, 2
    offset, g = np.zeros_like(w), gradient(w)
    total = g.copy()
    for _ in range(steps):
        offset = np.clip(offset + 1.5 * RHO / steps * np.sign(g), -RHO, RHO)
        g = gradient(w + offset)
        total += g
    expected = w - LR * total / (steps + 1)
    assert close(trained(MultiStepRisk, rho=RHO, steps=steps, norm=math.inf), expected)


def test_looksam_over_layers_perturbs_each_in_proportion_to_its_weights():
    model = Model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = LookSAM(model, SGD, rho=RHO, segments="tensor", adaptive="layer", lr=LR)
    model.loss().backward()
    optimizer.first_step()
    for name, p in model.named_parameters():
        assert (p - before[name]).norm().item() == pytest.approx(RHO * before[name].norm().item(), rel=1e-12)


# --- the family -----------------------------------------------------------------------------------------------------


IDENTITIES = {
    "gsam without alpha": (GSAM, {"alpha": 0}),
    "coupled wsam of one half": (WSAM, {"gamma": 0.5, "decouple": False}),
    "friendly sam without sigma": (FriendlySAM, {"sigma": 0}),
    "looksam in every step": (LookSAM, {"k": 1}),
    "multi-step risk of one last step": (MultiStepRisk, {"steps": 1, "risk": "last"}),
    "asam without weights": (ASAM, {"adaptive": False}),
    "samon of everything": (SAMON, {"only": None}),
    "gasam of one ball": (
        GASAM,
        {"segments": "global", "strength_exponent": 0, "size_exponent": 0, "reference": "none"},
    ),
}


@pytest.mark.parametrize("case", IDENTITIES)
def test_it_is_sam_bit_for_bit(case: str):
    preset, options = IDENTITIES[case]
    options = {"rho": RHO, "momentum": 0.9, **options}
    assert np.array_equal(trained(preset, 5, **options), trained(SAM, 5, rho=RHO, momentum=0.9))


def test_sam_is_the_ball_whose_strengths_follow_the_gradients():
    options = {"segments": "tensor", "strength_exponent": 1, "size_exponent": 0.5, "reference": "global"}
    one, other = trained(SAM, 5, rho=RHO), trained(GASAM, 5, rho=RHO, strength_clip=1e9, **options)
    assert np.abs(one - other).max() <= 1e-12


def test_decoupled_wsam_of_one_half_is_sam_over_plain_sgd():
    one, other = trained(SAM, 5, rho=RHO), trained(WSAM, 5, rho=RHO, gamma=0.5)
    assert np.abs(one - other).max() <= 1e-12


@pytest.mark.parametrize(
    ("preset", "options"),
    [
        (SAM, {"rho": 0.05}),
        (ASAM, {"rho": 0.5, "eta": 0.01}),
        (GSAM, {"rho": 0.05, "alpha": 0.4}),
        (FriendlySAM, {"rho": 0.05, "sigma": 1, "lmbda": 0.9}),
        (LookSAM, {"rho": 0.1, "k": 10, "alpha": 0.7}),
        (SAMON, {"rho": 0.5}),
        (MSAM, {"rho": 0.3, "momentum": 0.9}),
        (WSAM, {"rho": 0.05, "gamma": 0.9, "decouple": True}),
        (MultiStepRisk, {"rho": 0.05, "steps": 2}),
    ],
)
def test_defaults_are_those_of_the_papers(preset: Callable[..., GASAM], options: dict[str, Any]):
    more = {"momentum": 0.9} if "momentum" in options else {}
    assert np.array_equal(trained(preset, 12, **more), trained(preset, 12, **options))


# --- cost -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "options", "calls"),
    [(SAM, {}, 20), (GSAM, {}, 20), (LookSAM, {"k": 5}, 12), (MSAM, {}, 10), (MultiStepRisk, {}, 30)],
)
def test_a_closure_is_called_once_for_each_gradient(preset: Callable[..., GASAM], options: dict[str, int], calls: int):
    model = Model()
    assert run(model, preset(model, SGD, lr=LR, momentum=0.9, **options), 10) == calls


# --- msam -----------------------------------------------------------------------------------------------------------


def test_msam_needs_momentum():
    for base, options in ((SGD, {}), (Adagrad, {})):
        with pytest.raises(ValueError, match="base_optimizer must have momentum or betas"):
            MSAM(Model(), base, lr=LR, **options)


def test_msams_weights_are_where_the_base_optimizer_left_them():
    model = Model()
    optimizer = MSAM(model, SGD, rho=3.0, lr=0.0, momentum=0.9)
    before = weights(model)
    seen = []

    def closure() -> Tensor:
        seen.append(weights(model))
        optimizer.zero_grad()
        loss = model.loss()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
        assert np.array_equal(weights(model), before)
    distances = [np.linalg.norm(w - before) for w in seen]
    assert distances == pytest.approx([0, 3, 3], rel=1e-12)


def test_msams_ascent_precedes_the_forward_pass_in_two_phases():
    model = Model()
    optimizer = MSAM(model, SGD, rho=RHO, lr=LR, momentum=0.9)
    for _ in range(4):
        optimizer.first_step()
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.second_step()
    assert np.array_equal(weights(model), trained(MSAM, 4, rho=RHO, momentum=0.9))


# --- behaviour as an optimizer --------------------------------------------------------------------------------------


def options_of(preset: type[GASAM]) -> dict[str, Any]:
    return {"rho": RHO, "lr": LR, "momentum": 0.9} | ({"k": 3} if preset is LookSAM else {})


@EVERY_PRESET
@pytest.mark.parametrize("done", [1, 4])
def test_a_run_that_is_resumed_equals_one_that_was_not(preset: type[GASAM], done: int):
    model = Model(torch.float32)
    optimizer = preset(model, SGD, **options_of(preset))
    run(model, optimizer, done)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    run(model, optimizer, 6)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = Model(torch.float32)
    resumed.load_state_dict(saved["model"])
    other = preset(resumed, SGD, **options_of(preset))
    run(Model(torch.float32), other, 0)
    other.load_state_dict(saved["optimizer"])
    run(resumed, other, 6)
    assert np.array_equal(weights(resumed), weights(model))


@EVERY_PRESET
def test_a_deep_copy_goes_on_alike(preset: type[GASAM]):
    model = Model(torch.float32)
    optimizer = preset(model, SGD, **options_of(preset))
    run(model, optimizer, 4)
    twin, other = copy.deepcopy((model, optimizer))
    run(model, optimizer, 3)
    run(twin, other, 3)
    assert np.array_equal(weights(twin), weights(model))


@EVERY_PRESET
def test_states_are_the_base_optimizers_own(preset: type[GASAM]):
    model = Model()
    optimizer = preset(model, SGD, **options_of(preset))
    run(model, optimizer, 4)
    assert optimizer.state is optimizer.base_optimizer.state
    assert {key for state in optimizer.state.values() for key in state} == {"momentum_buffer"}


@EVERY_PRESET
def test_without_a_radius_it_is_the_base_optimizer_bit_for_bit(preset: type[GASAM]):
    model, plain = Model(torch.float32), Model(torch.float32)
    run(model, preset(model, AdamW, rho=0.0, lr=LR), 5)
    run(plain, AdamW(plain.parameters(), lr=LR), 5)
    assert np.array_equal(weights(model), weights(plain))


@EVERY_PRESET
def test_a_parameter_without_gradient_changes_nothing_for_the_others(preset: type[GASAM]):
    model, alone = Model(), Model()
    unused = nn.Parameter(torch.ones(4, dtype=torch.float64))
    named = [*model.named_parameters(), ("unused.norm", unused)]
    run(model, preset(named, SGD, **options_of(preset)), 5)
    run(alone, preset(alone, SGD, **options_of(preset)), 5)
    assert np.array_equal(weights(model), weights(alone))
    assert bool((unused == 1).all())


@EVERY_PRESET
def test_groups_of_equal_options_are_one(preset: type[GASAM]):
    model, alone = Model(), Model()
    named = list(model.named_parameters())
    groups = [{"params": named[:1]}, {"params": named[1:]}]
    run(model, preset(groups, SGD, **options_of(preset)), 5)
    run(alone, preset(alone, SGD, **options_of(preset)), 5)
    assert np.abs(weights(model) - weights(alone)).max() <= 1e-12


def test_decoupled_wsam_takes_each_groups_learning_rate():
    model = Model()
    named = list(model.named_parameters())
    groups = [{"params": named[:2], "lr": 0.0}, {"params": named[2:]}]
    run(model, WSAM(groups, SGD, rho=RHO, lr=LR), 1)
    expected = np.where(IS_NORM, START, trained(WSAM, rho=RHO))
    assert close(weights(model), expected)


@pytest.mark.parametrize("asks", [False, True])
def test_looksam_goes_in_two_phases_whether_or_not_one_asks_if_it_ascends(asks: bool):
    model = Model()
    optimizer = LookSAM(model, SGD, rho=RHO, k=3, lr=LR)
    for _ in range(5):
        if optimizer.needs_ascent or not asks:
            model.loss().backward()
            optimizer.first_step(zero_grad=True)
        model.loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert np.array_equal(weights(model), trained(LookSAM, 5, rho=RHO, k=3))


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset is not LookSAM])
def test_steps_that_every_skips_are_the_base_optimizers(preset: type[GASAM]):
    options = {key: value for key, value in options_of(preset).items() if key != "rho"}
    model, reference = Model(), Model()
    run(model, preset(model, SGD, rho=RHO, every=2, **options), 2)
    optimizer = preset(reference, SGD, rho=RHO, **options)
    run(reference, optimizer)
    run(reference, optimizer.base_optimizer)
    assert np.array_equal(weights(model), weights(reference))


def test_looksam_sets_every_itself():
    with pytest.raises(ValueError, match="every must be 10 for LookSAM, got 2"):
        LookSAM(Model(), SGD, lr=LR, every=2)


class Sum(Model):
    """A loss that is the sum of those of two micro-batches."""

    def part(self, k: int) -> Tensor:
        w = torch.cat([p.flatten() for p in self.parameters()])
        return (w - k).square().sum() / 2 + (k + 1) * w.square().square().sum() / 16


@pytest.mark.parametrize("preset", [GSAM, WSAM, LookSAM])
def test_micro_batches_of_a_step_are_mixed_as_sums(preset: type[GASAM]):
    model, other = Sum(), Sum()
    options = {"rho": RHO, "lr": 0.01, "momentum": 0.9} | ({"k": 3} if preset is LookSAM else {})
    optimizer, reference = preset(model, SGD, **options), preset(other, SGD, **options)
    for _ in range(4):
        model.zero_grad()
        for k in range(2):
            if optimizer.needs_ascent:
                grads = torch.autograd.grad(model.part(k), list(model.parameters()))
                with optimizer.perturbed(grads):
                    model.part(k).backward()
            else:
                model.part(k).backward()
        optimizer.step()

        # The same from the inside: its clean gradients, and the sum of the perturbed ones.
        parts = [torch.autograd.grad(other.part(k), list(other.parameters())) for k in range(2)]
        if reference.needs_ascent:
            total = [torch.zeros_like(p) for p in other.parameters()]
            for k, grads in enumerate(parts):
                norm = torch.cat([g.flatten() for g in grads]).norm()
                with torch.no_grad():
                    for p, g in zip(other.parameters(), grads, strict=True):
                        p += RHO * g / norm
                found = torch.autograd.grad(other.part(k), list(other.parameters()))
                with torch.no_grad():
                    for p, g, x, y in zip(other.parameters(), grads, total, found, strict=True):
                        p -= RHO * g / norm
                        x += y
            reference.perturb([a + b for a, b in zip(*parts, strict=True)])
        else:
            total = [a + b for a, b in zip(*parts, strict=True)]
        for p, g in zip(other.parameters(), total, strict=True):
            p.grad = g
        reference.step()
    assert np.abs(weights(model) - weights(other)).max() <= 1e-12


@pytest.mark.parametrize("preset", [GSAM, WSAM, LookSAM, MultiStepRisk])
def test_an_ascent_that_is_taken_back_leaves_nothing_to_mix(preset: type[GASAM]):
    model, other = Model(), Model()
    optimizer, reference = (preset(each, SGD, **options_of(preset)) for each in (model, other))
    for undo in (optimizer.restore, None):
        model.loss().backward()
        if undo:
            optimizer.perturb()
            undo()
        else:
            with optimizer.perturbed():
                pass
        optimizer.zero_grad()
        run(model, optimizer)
        run(other, reference)
    assert np.array_equal(weights(model), weights(other))


@EVERY_PRESET
def test_gradients_that_are_not_finite_leave_a_plain_step_and_finite_states(preset: type[GASAM]):
    model = Model()
    optimizer = preset(model, SGD, **options_of(preset))
    run(model, optimizer, 3)
    before = copy.deepcopy(model)
    momentum = copy.deepcopy([optimizer.state[p]["momentum_buffer"] for p in model.parameters()])
    state = copy.deepcopy(optimizer.state_dict()["gasam"])
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = model.loss()
        loss.backward()
        if calls == 1 and preset is not MSAM:
            model.norm.bias.grad[0] = math.inf
        return loss

    optimizer.step(closure)
    assert np.isfinite(weights(model)).all()
    if preset is not MSAM:
        before.loss().backward()
        for p, old, m in zip(model.parameters(), before.parameters(), momentum, strict=True):
            torch.testing.assert_close(p, old - LR * (0.9 * m + old.grad), rtol=0, atol=1e-14)
    for name in state.keys() - {"step", "seed"}:
        assert repr(optimizer.state_dict()["gasam"][name]) == repr(state[name])
    run(model, optimizer, 3)
    assert np.isfinite(weights(model)).all()


@EVERY_PRESET
@pytest.mark.parametrize("unscales", [False, True])
def test_the_scale_of_the_loss_does_not_matter(preset: type[GASAM], unscales: bool):
    plain, model = Model(torch.float32), Model(torch.float32)
    options = options_of(preset)
    run(plain, preset(plain, SGD, **options), 6)
    optimizer = preset(model, SGD, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    for _ in range(6):
        for _ in range(optimizer.needs_ascent * (2 if preset is MultiStepRisk else 1)):
            if preset is not MSAM:
                scaler.scale(model.loss()).backward()
            optimizer.first_step(zero_grad=True, scaler=scaler)
        scaler.scale(model.loss()).backward()
        if unscales:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert np.abs(weights(model) - weights(plain)).max() <= 2e-5


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "options", "message"),
    [
        (GSAM, {"alpha": -0.1}, "alpha must be finite and non-negative, got -0.1"),
        (GSAM, {"alpha": math.nan}, "alpha must be finite and non-negative, got nan"),
        (FriendlySAM, {"sigma": -1}, "sigma must be finite and non-negative, got -1"),
        (FriendlySAM, {"lmbda": 1.5}, r"lmbda must be in \[0, 1\], got 1.5"),
        (LookSAM, {"alpha": math.inf}, "alpha must be finite and non-negative, got inf"),
        (LookSAM, {"k": 0}, "k must be at least 1, got 0"),
        (WSAM, {"gamma": 1.0}, r"gamma must be in \[0, 1\), got 1.0"),
        (WSAM, {"gamma": -0.1}, r"gamma must be in \[0, 1\), got -0.1"),
        (MultiStepRisk, {"steps": 0}, "steps must be at least 1, got 0"),
        (MSAM, {"steps": 2}, "steps"),
        (MSAM, {"risk": "average"}, "risk"),
        (MSAM, {"ascent_fraction": 0.5}, "ascent_fraction"),
        (ASAM, {"eta": -1}, "eta must be finite and non-negative, got -1"),
    ],
)
def test_options_out_of_their_range_are_refused(preset: type[GASAM], options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        preset(Model(), SGD, lr=LR, momentum=0.9, **options)


def test_options_that_are_no_numbers_are_refused():
    with pytest.raises(TypeError, match="k must be an integer"):
        LookSAM(Model(), SGD, lr=LR, k=2.5)
    with pytest.raises(TypeError, match="gamma must be a number"):
        WSAM(Model(), SGD, lr=LR, gamma="0.9")


def test_every_preset_is_public():
    assert {preset.__name__ for preset in PRESETS} <= set(gasam.__all__)


@pytest.mark.parametrize("kind", [FriendlySAM, LookSAM])
def test_what_is_remembered_of_a_parameter_must_still_fit_it(kind: type[GASAM]) -> None:
    model = torch.nn.Linear(3, 1)
    optimizer = kind(model, torch.optim.SGD, lr=0.1)

    def closure() -> torch.Tensor:
        loss = model(torch.ones(2, 3, dtype=model.weight.dtype)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    saved = optimizer.state_dict()
    model.double()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=r"of weight is of shape .* and torch\.float32"):
        optimizer.step(closure)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    other = kind(torch.nn.Linear(4, 1), torch.optim.SGD, lr=0.2)
    with pytest.raises(ValueError, match=r"\[0\] must have the shape \(1, 4\) of parameter 0, got \(1, 3\)"):
        other.load_state_dict(saved)
    assert other.param_groups[0]["lr"] == 0.2
