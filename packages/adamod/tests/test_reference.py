"""The facts about AdaMod and DiffMod: what the equations say, on every path, against oracles that share no code."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adamod import AdaMod, DiffMod, _ops, _state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WITH_KERNEL = "cpu" in _ops.KERNELS
needs_kernel = pytest.mark.skipif(not WITH_KERNEL, reason="the package was built without its C++ kernels")
PATHS = {
    "operator": {"fused": True},
    "foreach": {"foreach": True, "fused": False},
    "loop": {"foreach": False, "fused": False},
}
EVERY_PATH = pytest.mark.parametrize(
    "path", [pytest.param(name, marks=needs_kernel) if name == "operator" else name for name in PATHS]
)
BOTH_LISTS = pytest.mark.parametrize("foreach", [False, True])  # the paths of DiffMod
ADAMW = {"foreach": False, "fused": False}  # torch's fused one is wrong for some layouts


def gradients(n: int, steps: int, seed: int = 0) -> list[Tensor]:
    """Random gradients of `n` elements, of very different sizes, and sometimes zero."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.linspace(-3, 2, n, dtype=torch.float64)
    g = torch.randn(steps, n, generator=generator, dtype=torch.float64) * scale
    g[torch.rand(steps, n, generator=generator) < 0.1] = 0
    g[0] = scale
    return list(g)


def parameter(n: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> nn.Parameter:
    return nn.Parameter(torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype))


def run(optimizer: torch.optim.Optimizer, grads: Sequence[Tensor]) -> Tensor:
    """The parameter after a step for each gradient."""
    (p,) = optimizer.param_groups[0]["params"]
    for g in grads:
        p.grad = g.to(p.dtype)
        optimizer.step()
    return p.detach()


def one_step(optimizer: torch.optim.Optimizer, g: float | Tensor) -> Tensor:
    """By how much a step with this gradient lowers parameters that are zero: the bare step, without rounding."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for p in params:
        nn.init.zeros_(p)
        p.grad = torch.as_tensor(g, dtype=p.dtype).expand(p.shape).clone()
    optimizer.step()
    return -torch.stack([p.detach() for p in params])


def assert_rounding(actual: Tensor, expected: Tensor, steps: int) -> None:
    """Equal up to 8 roundings of the parameter and of the largest step in each of the steps."""
    bound = 8 * steps * torch.finfo(actual.dtype).eps * max(float(expected.abs().max()), 1.0)
    torch.testing.assert_close(actual, expected, rtol=0, atol=bound, equal_nan=True)


# --- the equations --------------------------------------------------------------------------------------------------


def by_hand(
    p: float,
    grads: list[float],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    beta3: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    variant: str = "code",
    bounded_decay: bool = False,
    skip_unseen: bool = False,
    maximize: bool = False,
) -> float:
    """One element's life, in Python's numbers."""
    (beta1, beta2), m, v, s = betas, 0.0, 0.0, 0.0
    for t, g in enumerate(grads, 1):
        g = -g if maximize else g
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        c1, c2 = 1 - beta1**t, 1 - beta2**t
        if variant == "paper":
            eta, u = lr / (math.sqrt(v / c2) + eps), m / c1
        else:
            eta, u = lr * math.sqrt(c2) / c1 / (math.sqrt(v) + eps), m
        if v != 0 or not skip_unseen:
            s = beta3 * s + (1 - beta3) * eta
        shrink = s / eta if bounded_decay and s < eta else 1.0
        p = p * (1 - lr * weight_decay * shrink) - min(eta, s) * u
    return p


SETTINGS: list[dict[str, Any]] = [
    {},
    {"lr": 0.03, "betas": (0.8, 0.97), "beta3": 0.95, "eps": 1e-3, "weight_decay": 0.2},
    {"beta3": 0.9, "weight_decay": 0.3, "bounded_decay": True, "maximize": True},
    {"skip_unseen": True, "beta3": 0.7, "lr": 0.1},
    {"betas": (0.0, 0.0), "beta3": 0.0, "eps": 0.1},
]


@EVERY_PATH
@pytest.mark.parametrize("variant", ["code", "paper"])
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: ",".join(s) or "defaults")
def test_the_step_is_what_the_equations_say(path: str, variant: str, setting: dict[str, Any]):
    grads = gradients(24, steps=60)
    for g in grads[:20]:
        g[5:10] = 0  # not seen for a while
    p = parameter(24)
    columns = torch.stack(grads, dim=1).tolist()
    expected = [by_hand(x, g, variant=variant, **setting) for x, g in zip(p.tolist(), columns, strict=True)]
    actual = run(AdaMod([p], variant=variant, **setting, **PATHS[path]), grads)
    assert_rounding(actual, torch.tensor(expected, dtype=torch.float64), steps=60)


def test_the_defaults_are_those_of_the_authors_code():
    (group,) = AdaMod([parameter(1)]).param_groups
    named = {key: group[key] for key in ("lr", "betas", "beta3", "eps", "weight_decay", "variant")}
    assert named == {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "beta3": 0.999,
        "eps": 1e-8,
        "weight_decay": 0,
        "variant": "code",
    }
    positional = AdaMod([parameter(1)], 1e-2, (0.8, 0.9), 0.7, 1e-6, 0.5).param_groups[0]
    assert [positional[key] for key in named][:5] == [1e-2, (0.8, 0.9), 0.7, 1e-6, 0.5]


# --- warm-up --------------------------------------------------------------------------------------------------------

# t: the step as a fraction of Adam's for a constant gradient, beta1 = .9, as printed
CODE_999 = {1: "0.00100", 5: "0.00993", 10: "0.02154", 100: "0.1198", 1000: "0.642", 3000: "0.952"}
PAPER_999 = {1: "0.00100", 5: "0.00499", 10: "0.00996", 100: "0.0952", 1000: "0.632", 3000: "0.950"}
CODE_9999 = {1: "0.00010", 5: "0.00099", 10: "0.00217", 100: "0.0126", 1000: "0.0976", 3000: "0.2612"}
PAPER_9999 = {1: "0.00010", 5: "0.00050", 10: "0.00100", 100: "0.00995", 1000: "0.0952", 3000: "0.2592"}
COLUMNS = {
    ("code", 0.999): CODE_999,
    ("paper", 0.999): PAPER_999,
    ("code", 0.9999): CODE_9999,
    ("paper", 0.9999): PAPER_9999,
}


@EVERY_PATH
def test_the_warm_up_for_a_constant_gradient_is_that_of_the_table(path: str):
    steps = 100 if path == "foreach" else 3000
    g = torch.tensor([3.0, -0.01], dtype=torch.float64)  # the fraction is the same for any gradient
    groups = [{"params": [parameter(2)], "variant": variant, "beta3": beta3} for variant, beta3 in COLUMNS]
    ours = AdaMod(groups, lr=0.02, eps=0, **PATHS[path])
    adam = torch.optim.AdamW([parameter(2)], lr=0.02, eps=0, weight_decay=0, **ADAMW)
    fractions = torch.stack([one_step(ours, g) / one_step(adam, g) for _ in range(steps)])

    for k, ((variant, beta3), table) in enumerate(COLUMNS.items()):
        exact, average = [], 0.0  # "code" is bounded by the moving average of 1 / c1, "paper" by that of 1
        for t in range(1, steps + 1):
            c1 = 1 - 0.9**t
            average = beta3 * average + (1 - beta3) / c1
            exact.append(c1 * average if variant == "code" else 1 - beta3**t)
        both = torch.tensor(exact, dtype=torch.float64).unsqueeze(1).expand(steps, 2)
        torch.testing.assert_close(fractions[:, k], both, rtol=1e-10, atol=0)
        for t, printed in table.items():
            if t <= steps:
                digits = len(printed.split(".")[1])
                assert [f"{x:.{digits}f}" for x in fractions[t - 1, k].tolist()] == [printed] * 2

    at_10 = dict(zip(COLUMNS, fractions[9, :, 0].tolist(), strict=True))
    assert at_10["code", 0.999] / at_10["paper", 0.999] == pytest.approx(2.164, abs=5e-4)
    assert at_10["code", 0.9999] / at_10["paper", 0.9999] == pytest.approx(2.167, abs=5e-4)


@EVERY_PATH
@pytest.mark.parametrize("variant", ["code", "paper"])
def test_in_the_first_step_s_is_a_share_of_eta_and_every_element_is_clipped(path: str, variant: str):
    p, (g,) = parameter(600), gradients(600, steps=1)
    optimizer = AdaMod([p], lr=0.1, beta3=0.97, eps=1e-3, variant=variant, **PATHS[path])
    optimizer.bound_stats(True)
    run(optimizer, [g])
    state, stats = optimizer.state[p], optimizer.bound_stats()[p]
    eta = 0.1 / (g.abs() + 1e-3) if variant == "paper" else 0.1 * math.sqrt(0.001) / 0.1 / (g.abs() * 0.001**0.5 + 1e-3)
    torch.testing.assert_close(state["exp_avg_lr"], 0.03 * eta, rtol=1e-14, atol=0)
    assert (stats.clipped, stats.elements, stats.steps) == (1.0, 600, 1)


@EVERY_PATH
def test_a_lower_learning_rate_acts_at_once_and_a_higher_one_lags_by_the_memory_of_s(path: str):
    lr, beta3 = 1e-3, 0.95
    optimizer = AdaMod([parameter(1)], lr=lr, beta3=beta3, eps=0, variant="paper", **PATHS[path])
    group = optimizer.param_groups[0]

    def steps(n: int) -> list[float]:
        return [one_step(optimizer, 1.0).item() for _ in range(n)]

    assert steps(500)[-1] == pytest.approx(lr, rel=1e-9)  # the bound has come up to the learning rate
    group["lr"] = lr / 10
    assert steps(500) == pytest.approx([lr / 10] * 500, rel=1e-9)
    group["lr"] = lr
    lagging = [lr * (1 - 0.9 * beta3**k) for k in range(1, 101)]  # s is not rescaled: it goes on from where it was
    assert steps(100) == pytest.approx(lagging, rel=1e-9)
    assert lagging[19] / lr == pytest.approx(1 - 0.9 * math.exp(-1), abs=0.01)  # 20 = 1 / (1 - beta3)


@EVERY_PATH
@pytest.mark.parametrize("variant", ["code", "paper"])
def test_the_learning_rate_zero_moves_nothing_and_makes_the_states(path: str, variant: str):
    p, before = parameter(9), parameter(9)
    optimizer = AdaMod([p], lr=0, weight_decay=0.5, bounded_decay=True, variant=variant, **PATHS[path])
    assert torch.equal(run(optimizer, gradients(9, steps=3)), before)
    state = optimizer.state[p]
    assert state["step"] == 3
    assert state["exp_avg"].all()
    assert not state["exp_avg_lr"].any()


# --- the limit: AdamW -----------------------------------------------------------------------------------------------


@EVERY_PATH
@pytest.mark.parametrize("weight_decay", [0, 0.1])
def test_without_memory_and_eps_it_is_adamw(path: str, weight_decay: float):
    grads = gradients(200, steps=50)
    options = {"lr": 1e-2, "eps": 0, "weight_decay": weight_decay}
    actual = run(AdaMod([parameter(200)], beta3=0, **options, **PATHS[path]), grads)
    assert_rounding(actual, run(torch.optim.AdamW([parameter(200)], **options, **ADAMW), grads), steps=50)


@EVERY_PATH
@pytest.mark.parametrize("variant", ["code", "paper"])
def test_without_memory_and_eps_it_is_as_exact_as_adamw_in_float32(
    path: str, variant: str, assert_within_twice: Callable[..., None]
):
    grads = gradients(2000, steps=50)
    options = {"lr": 1e-2, "eps": 0, "weight_decay": 0.1}
    start = parameter(2000, torch.float32).detach()
    adamw = torch.optim.AdamW([nn.Parameter(start.double())], **options, **ADAMW)
    exact = run(adamw, [g.float().double() for g in grads])
    peer = run(torch.optim.AdamW([parameter(2000, torch.float32)], **options, **ADAMW), grads)
    ours = run(AdaMod([parameter(2000, torch.float32)], beta3=0, variant=variant, **options, **PATHS[path]), grads)
    assert_within_twice(ours, peer, exact.numpy().astype(np.longdouble), start)


@EVERY_PATH
@pytest.mark.parametrize("eps", [1e-8, 1e-3, 1.0])
def test_the_codes_eps_is_adamws_divided_by_the_root_of_its_bias_correction(path: str, eps: float):
    grads = gradients(200, steps=50)
    options = {"lr": 1e-2, "eps": eps, "weight_decay": 0.1}
    actual = run(AdaMod([parameter(200)], beta3=0, **options, **PATHS[path]), grads)
    adamw = torch.optim.AdamW([parameter(200)], **options, **ADAMW)
    corrected = torch.optim.AdamW([parameter(200)], **options, **ADAMW)
    for t, g in enumerate(grads, 1):
        corrected.param_groups[0]["eps"] = eps / math.sqrt(1 - 0.999**t)
        run(corrected, [g])
    assert_rounding(actual, corrected.param_groups[0]["params"][0].detach(), steps=50)
    if eps >= 1e-3:
        assert (actual - run(adamw, grads)).abs().max() > 1e-3


@EVERY_PATH
@pytest.mark.parametrize("eps", [0, 1e-8, 1e-3, 1.0])
def test_the_papers_variant_without_memory_is_adamw_for_every_eps(path: str, eps: float):
    grads = gradients(200, steps=50)
    options = {"lr": 1e-2, "eps": eps, "weight_decay": 0.1}
    actual = run(AdaMod([parameter(200)], beta3=0, variant="paper", **options, **PATHS[path]), grads)
    assert_rounding(actual, run(torch.optim.AdamW([parameter(200)], **options, **ADAMW), grads), steps=50)


# --- weight decay ---------------------------------------------------------------------------------------------------


@EVERY_PATH
def test_decay_overwhelms_the_first_steps_unless_it_is_bounded(path: str):
    def decay_per_step(optimizer: torch.optim.Optimizer) -> float:
        with_decay, bare = (group["params"][0] for group in optimizer.param_groups)
        for p in (with_decay, bare):
            nn.init.ones_(p)
            p.grad = torch.ones_like(p)
        optimizer.step()
        return ((bare - with_decay) / (1 - bare)).item()

    def groups() -> list[dict[str, Any]]:
        return [{"params": [parameter(1)], "weight_decay": 0.1}, {"params": [parameter(1)], "weight_decay": 0.0}]

    adamw = decay_per_step(torch.optim.AdamW(groups(), **ADAMW))
    plain = decay_per_step(AdaMod(groups(), **PATHS[path]))
    bounded = decay_per_step(AdaMod(groups(), bounded_decay=True, **PATHS[path]))
    assert plain / adamw == pytest.approx(1000, rel=1e-5)
    assert bounded / adamw == pytest.approx(1, rel=1e-5)


@EVERY_PATH
@pytest.mark.parametrize("variant", ["code", "paper"])
def test_bounded_decay_shrinks_as_the_step_does_and_is_whole_where_nothing_is_bounded(path: str, variant: str):
    p = parameter(3)
    optimizer = AdaMod(
        [p], lr=0.1, beta3=0.5, eps=1e-3, weight_decay=0.4, bounded_decay=True, variant=variant, **PATHS[path]
    )
    # With zero gradients the parameter only decays, and eta is lr / eps times the code's corrections.
    s, expected = 0.0, p.detach().clone()
    for t in range(1, 30):
        eta = 0.1 / 1e-3 * (1 if variant == "paper" else math.sqrt(1 - 0.999**t) / (1 - 0.9**t))
        s = 0.5 * s + 0.5 * eta
        expected = expected * (1 - 0.1 * 0.4 * min(1.0, s / eta))
    assert_rounding(run(optimizer, [torch.zeros(3)] * 29), expected, steps=29)
    optimizer.param_groups[0]["lr"] = 1e-3  # eta drops below s
    assert_rounding(run(optimizer, [torch.zeros(3)]), expected * (1 - 1e-3 * 0.4), steps=30)


@EVERY_PATH
def test_bounded_decay_never_divides_zero_by_zero_or_infinity_by_infinity(path: str):
    options = {"eps": 0, "weight_decay": 0.4, "bounded_decay": True, **PATHS[path]}
    p, before = parameter(3), parameter(3)
    assert torch.equal(run(AdaMod([p], lr=0, **options), [torch.ones(3)] * 2), before)  # s = eta = 0
    grads = [torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0])]  # eta, then s, is infinite
    after = run(AdaMod([parameter(3)], beta3=0.5, **options), grads)
    assert after[1].isfinite()


# --- elements without a gradient ------------------------------------------------------------------------------------


def embedding_after(unseen_steps: int, *, seen_steps: int, path: str, **options: Any) -> tuple[Tensor, int]:
    """The steps of an element whose first gradients are zero, and the place of the first one that was clipped."""
    optimizer = AdaMod([parameter(1)], **options, **PATHS[path])
    for _ in range(unseen_steps):
        assert one_step(optimizer, 0.0).item() == 0
    free = AdaMod([parameter(1)], **{**options, "beta3": 0.0}, **PATHS["loop"])
    for _ in range(unseen_steps):
        one_step(free, 0.0)
    steps, first = [], seen_steps
    for k in range(seen_steps):
        step, unbounded = one_step(optimizer, 1.0), one_step(free, 1.0)
        steps.append(step / unbounded)
        if step < unbounded * (1 - 1e-6):
            first = min(first, k)
    return torch.stack(steps), first


@EVERY_PATH
def test_an_element_that_was_never_seen_has_no_bound_for_a_long_time_after_its_first_gradient(path: str):
    beta3 = 0.98
    optimizer = AdaMod([parameter(1)], betas=(0.9, 0.9), beta3=beta3, **PATHS[path])
    for _ in range(500):
        one_step(optimizer, 0.0)
    (state,) = optimizer.state.values()
    assert state["exp_avg_lr"].item() == pytest.approx(1e-3 / 1e-8, rel=1e-2)  # lr / eps
    needed = 0
    while state["exp_avg_lr"] > 1e5 / 1e7:
        one_step(optimizer, 1.0)
        needed += 1
    assert needed == pytest.approx(math.log(1e7) / (1 - beta3), rel=0.1)  # 16,000 at .999, 160,000 at .9999

    _, first = embedding_after(200, seen_steps=200, path=path, beta3=beta3)
    assert first == 200


@EVERY_PATH
@pytest.mark.parametrize("variant", ["code", "paper"])
def test_skip_unseen_lets_an_element_warm_up_from_its_first_gradient(path: str, variant: str):
    fractions, first = embedding_after(
        200, seen_steps=200, path=path, beta3=0.98, skip_unseen=True, variant=variant, eps=1e-12
    )
    assert first == 0
    assert fractions[0].item() == pytest.approx(0.02, rel=1e-9)
    assert fractions[-1] > 0.9


@EVERY_PATH
def test_skip_unseen_changes_nothing_for_elements_that_are_seen_from_the_start(path: str):
    grads = gradients(50, steps=20)
    one = run(AdaMod([parameter(50)], skip_unseen=True, **PATHS[path]), grads)
    assert torch.equal(one, run(AdaMod([parameter(50)], **PATHS[path]), grads))


# --- numbers that are not finite ------------------------------------------------------------------------------------


@EVERY_PATH
@pytest.mark.parametrize("variant", ["code", "paper"])
@pytest.mark.parametrize("options", [{}, {"skip_unseen": True}, {"bounded_decay": True, "weight_decay": 0.1}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_spreads_to_every_state_of_its_element_and_to_no_other(
    path: str, variant: str, options: dict[str, Any], dtype: torch.dtype
):
    clean = gradients(97, steps=3)
    dirty = [g.clone() for g in clean]
    dirty[1][[0, 40, 96]] = math.nan
    p, q = parameter(97, dtype), parameter(97, dtype)
    with_nan = AdaMod([p], variant=variant, **options, **PATHS[path])
    without = AdaMod([q], variant=variant, **options, **PATHS[path])
    run(with_nan, dirty)
    run(without, clean)
    spoilt = torch.zeros(97, dtype=torch.bool)
    spoilt[[0, 40, 96]] = True
    pairs = [(p, q), *((with_nan.state[p][key], without.state[q][key]) for key in _state.KEYS)]
    for x, y in pairs:
        assert torch.equal(x.isnan(), spoilt)
        assert torch.equal(x[~spoilt], y[~spoilt])


@EVERY_PATH
@pytest.mark.parametrize("variant", ["code", "paper"])
@pytest.mark.parametrize("beta3", [0, 0.999])
def test_no_eps_and_a_zero_or_infinite_gradient_give_nan_as_in_adam(path: str, variant: str, beta3: float):
    g = torch.tensor([1.0, 0.0, math.inf, -math.inf], dtype=torch.float64)
    ours = run(AdaMod([parameter(4)], eps=0, beta3=beta3, variant=variant, **PATHS[path]), [g])
    adamw = run(torch.optim.AdamW([parameter(4)], eps=0, **ADAMW), [g])
    assert ours.isnan().tolist() == adamw.isnan().tolist() == [False, True, True, True]


# --- low precision --------------------------------------------------------------------------------------------------

LOW = {
    "float32": {},
    "bfloat16": {"state_dtype": torch.bfloat16},
    "nearest": {"state_dtype": torch.bfloat16, "seed": None},
    "int8": {"state_dtype": "int8"},
}
KEPT = {"exp_avg": "m", "exp_avg_sq": "v", "exp_avg_lr": "s"}


def means_of_states(steps: int, beta3: float) -> dict[str, dict[str, float]]:
    """Means over the elements after normal gradients, of which every 16th element sees none, for each state dtype."""
    n = 4096
    generator = torch.Generator().manual_seed(0)
    params = {name: nn.Parameter(torch.zeros(n)) for name in LOW}
    optimizer = AdaMod([{"params": [params[name]], **LOW[name]} for name in LOW], beta3=beta3)
    for _ in range(steps):
        g = torch.randn(n, generator=generator)
        g[::16] = 0
        for p in params.values():
            p.grad = g
        optimizer.step()
    seen = torch.arange(n) % 16 != 0
    rate = 1e-3 * math.sqrt(1 - 0.999**steps) / (1 - 0.9**steps)
    result = {}
    for name, p in params.items():
        m, v, s = (_state.values(optimizer.state[p], key).double() for key in _state.KEYS)
        assert not v[~seen].any()
        assert not m[~seen].any()
        assert v[seen].all()
        ratio = s * (v.sqrt() + 1e-8) / rate
        result[name] = {
            "median s/eta": float(ratio[seen].median()),
            "s/eta": float(ratio[seen].mean()),
            "v": float(v[seen].mean()),
            "s": float(s[seen].mean()),
            "s of the unseen": float(s[~seen].mean()),
        }
    return result


@pytest.mark.parametrize("beta3", [0.999, 0.9999])
def test_stochastic_rounding_keeps_the_means_where_rounding_to_nearest_stalls(beta3: float):
    means = means_of_states(500, beta3)
    full = means["float32"]
    for name, share in (("bfloat16", 0.01), ("int8", 0.03)):
        for kept in ("s/eta", "v", "s", "s of the unseen"):
            assert means[name][kept] == pytest.approx(full[kept], rel=share)
    assert means["nearest"]["s/eta"] < 0.7 * full["s/eta"]


@pytest.mark.parametrize(
    "beta3", [pytest.param(b, marks=[] if WITH_KERNEL else pytest.mark.slow) for b in (0.999, 0.9999)]
)
def test_after_3000_steps_the_bound_of_low_precision_is_that_of_float32(beta3: float):
    means = means_of_states(3000, beta3)
    full = means["float32"]
    median, mean, stalled = {0.999: (0.953, 0.956, 0.36), 0.9999: (0.263, 0.267, 0.05)}[beta3]
    assert full["median s/eta"] == pytest.approx(median, rel=0.01)
    assert full["s/eta"] == pytest.approx(mean, rel=0.01)
    assert full["v"] == pytest.approx(0.950, rel=0.01)
    assert means["bfloat16"]["median s/eta"] == pytest.approx(full["median s/eta"], rel=0.01)
    for name, share in (("bfloat16", 0.01), ("int8", 0.03)):
        for kept in ("s/eta", "v", "s", "s of the unseen"):
            assert means[name][kept] == pytest.approx(full[kept], rel=share)
    assert means["nearest"]["median s/eta"] < stalled
    assert means["nearest"]["v"] > 1.2 * full["v"]


# --- convergence ----------------------------------------------------------------------------------------------------


def rosenbrock(x: Tensor, y: Tensor) -> Tensor:
    return (1 - x) ** 2 + (y - x**2) ** 2


def beale(x: Tensor, y: Tensor) -> Tensor:
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


@EVERY_PATH
@pytest.mark.parametrize("variant", ["code", "paper"])
@pytest.mark.parametrize(
    ("function", "minimum"),
    [(rosenbrock, (1.0, 1.0)), (beale, (3.0, 0.5))],
    ids=["Rosenbrock", "Beale"],
)
def test_it_finds_the_minimum_of_curved_valleys(
    path: str,
    variant: str,
    function: Callable[[Tensor, Tensor], Tensor],
    minimum: tuple[float, float],
):
    p = nn.Parameter(torch.tensor([1.5, 1.5]))
    optimizer = AdaMod([p], lr=1.0, variant=variant, **PATHS[path])
    for _ in range(800):
        optimizer.zero_grad()
        function(*p).backward()
        optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor(minimum), rtol=0, atol=1e-3)


# --- DiffMod --------------------------------------------------------------------------------------------------------


def diffmod_by_hand(
    p: float,
    grads: list[float],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    len_memory: float = 1000,
    version: int = 0,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    average_step: bool = False,
    maximize: bool = False,
) -> float:
    """One element's life, in Python's numbers."""

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))

    (beta1, beta2), beta3, m, v, s, before = betas, 1 - 1 / len_memory, 0.0, 0.0, 0.0, 0.0
    for t, g in enumerate(grads, 1):
        g = -g if maximize else g
        x, before = before - g, g
        d = {0: sigmoid(abs(x)), 1: sigmoid(x), 2: 9 * sigmoid(abs(x) / 2) - 4}[version]
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        eta = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t) / (math.sqrt(v) + eps)
        s = beta3 * s + (1 - beta3) * eta
        bound = (eta + s) / 2 if average_step else min(eta, s)
        p = p * (1 - lr * weight_decay) - bound * m * d
    return p


@BOTH_LISTS
@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"average_step": True, "weight_decay": 0.2, "lr": 0.03},
        {"len_memory": 20, "betas": (0.8, 0.97), "eps": 1e-3, "maximize": True},
    ],
    ids=lambda s: ",".join(s) or "defaults",
)
def test_diffmod_is_what_its_equations_say(foreach: bool, version: int, setting: dict[str, Any]):
    grads = gradients(24, steps=60)
    p = parameter(24)
    columns = torch.stack(grads, dim=1).tolist()
    expected = [diffmod_by_hand(x, g, version=version, **setting) for x, g in zip(p.tolist(), columns, strict=True)]
    actual = run(DiffMod([p], version=version, foreach=foreach, **setting), grads)
    assert_rounding(actual, torch.tensor(expected, dtype=torch.float64), steps=60)


@BOTH_LISTS
@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("maximize", [False, True])
def test_with_equal_gradients_diffmod_makes_half_of_adamods_steps_from_the_second_on(
    foreach: bool, version: int, maximize: bool
):
    g = torch.tensor([3.0, -0.01, 0.5], dtype=torch.float64)
    damped = DiffMod([parameter(3)], version=version, foreach=foreach, maximize=maximize)
    plain = AdaMod([parameter(3)], maximize=maximize, **PATHS["loop"])
    x = g if maximize else -g
    first = {0: x.abs().sigmoid(), 1: x.sigmoid(), 2: 9 * (x.abs() / 2).sigmoid() - 4}[version]
    torch.testing.assert_close(one_step(damped, g)[0], first * one_step(plain, g)[0], rtol=1e-13, atol=0)
    for _ in range(30):
        torch.testing.assert_close(one_step(damped, g), 0.5 * one_step(plain, g), rtol=1e-13, atol=0)


@BOTH_LISTS
@pytest.mark.parametrize("version", [0, 1, 2])
def test_diffmod_does_not_care_how_gradients_are_zeroed(foreach: bool, version: int):
    def train(set_to_none: bool) -> tuple[Tensor, Tensor]:
        p = parameter(30)
        optimizer = DiffMod([p], version=version, foreach=foreach)
        for g in gradients(30, steps=10):
            optimizer.zero_grad(set_to_none=set_to_none)
            (p * g).sum().backward()
            optimizer.step()
        return p.detach(), optimizer.state[p]["previous_grad"]

    one, other = train(set_to_none=True), train(set_to_none=False)
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    assert one[1].any()


@BOTH_LISTS
def test_the_average_step_is_half_of_adams_at_first_and_the_bound_otherwise_a_thousandth(foreach: bool):
    # d = 9 sigmoid(|x| / 2) - 4 is 1 / 2 for x = 0 and 5 for a huge x, so that the first step of version 2 is 5 steps.
    g = torch.tensor([1e4, -1e4], dtype=torch.float64)
    adam = one_step(torch.optim.AdamW([parameter(2)], weight_decay=0, eps=0, **ADAMW), g)
    averaged = one_step(DiffMod([parameter(2)], version=2, average_step=True, eps=0, foreach=foreach), g)
    bounded = one_step(DiffMod([parameter(2)], version=2, eps=0, foreach=foreach), g)
    torch.testing.assert_close(averaged / adam, torch.full((1, 2), 5 * 1.001 / 2, dtype=torch.float64))
    torch.testing.assert_close(bounded / adam, torch.full((1, 2), 5 * 0.001, dtype=torch.float64))


def test_the_memory_of_diffmod_is_a_length_or_a_beta():
    grads = gradients(20, steps=10)
    by_length = run(DiffMod([parameter(20)], len_memory=50), grads)
    by_beta = run(DiffMod([parameter(20)], len_memory=3, beta3=1 - 1 / 50), grads)
    assert torch.equal(by_length, by_beta)
    assert not torch.equal(by_length, run(DiffMod([parameter(20)], len_memory=3), grads))


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("average_step", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128, torch.float32, torch.bfloat16, torch.float16])
def test_diffmods_lists_are_its_loop(version: int, average_step: bool, dtype: torch.dtype):
    def train(foreach: bool) -> list[Tensor]:
        generator = torch.Generator().manual_seed(3)
        params = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((), (7,), (3, 5), (0,))]
        options = {"version": version, "average_step": average_step, "weight_decay": 0.1, "lr": 1e-2, "eps": 1e-3}
        optimizer = DiffMod(params, foreach=foreach, **options)
        for t in range(10):
            for k, p in enumerate(params):
                g = torch.randn(p.shape, generator=generator, dtype=torch.promote_types(dtype, torch.float32)).to(dtype)
                p.grad = None if (k + t) % 4 == 0 else g
            optimizer.step()
        return [p.detach() for p in params]

    wide = torch.float32 if dtype in (torch.float32, torch.bfloat16, torch.float16) else torch.float64
    for one, other in zip(train(foreach=False), train(foreach=True), strict=True):
        if dtype in (torch.bfloat16, torch.float16):
            torch.testing.assert_close(one, other, rtol=torch.finfo(dtype).eps, atol=0)  # an ulp
        else:
            bound = 8 * 10 * torch.finfo(wide).eps
            torch.testing.assert_close(one, other, rtol=bound, atol=bound)
