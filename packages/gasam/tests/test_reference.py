"""The definition: the closed form in NumPy, the members of the family as its special cases, and its rounding."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gasam import _reference

SHAPES = [(4, 3), (4,), (2, 4, 2), (1,), (6, 5)]
GROUP = [0, 0, 1, 1, 1]  # the param group of each
RHO = [0.05, 0.2]  # of each group
GLOBAL = {"a": 0.5, "b": 1.0, "reference": 1}  # SAM, in terms of tensors
ETA = 0.01


@dataclass
class Problem:
    """Weights and gradients, and how they are cut into segments."""

    segments: str = "tensor"
    seed: int = 0
    spread: float = 1.0  # the gradients of neighbouring tensors differ by e to this power
    shapes: list[tuple[int, ...]] = field(default_factory=lambda: SHAPES)
    group: list[int] = field(default_factory=lambda: GROUP)

    def __post_init__(self) -> None:
        generator = np.random.default_rng(self.seed)
        self.w = [generator.normal(size=shape) for shape in self.shapes]
        scales = np.exp(self.spread * (np.arange(len(self.shapes)) - 2))
        self.g = [scale * generator.normal(size=shape) for scale, shape in zip(scales, self.shapes, strict=True)]
        self.rows = [shape[0] if self.segments == "channel" else 1 for shape in self.shapes]
        owner = [k for k, n in enumerate(self.rows) for _ in range(n)]
        self.rho = np.array([RHO[self.group[k]] for k in owner])
        self.sizes = np.array([self.w[k].size // self.rows[k] for k in owner])
        number = {"tensor": owner, "group": [self.group[k] for k in owner], "global": [0] * len(owner)}
        self.segment = number.get(self.segments, list(range(len(owner))))

    def units(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [row for x, n in zip(arrays, self.rows, strict=True) for row in x.reshape(n, -1)]

    def tensors(self, arrays: list[np.ndarray]) -> list[torch.Tensor]:
        return [torch.from_numpy(x.copy()) for x in arrays]


def closed_form(
    problem: Problem,
    *,
    a: float,
    b: float,
    clip: float,
    reference: int,
    norm: int,
    adaptive: bool | str,
    m: float,
    t: int,
) -> tuple[list[np.ndarray], np.ndarray]:
    """The perturbation of each unit and the strength of its segment, written as the README writes it."""
    w, g = problem.units(problem.w), problem.units(problem.g)
    segment = problem.segment
    members = [[i for i, k in enumerate(segment) if k == segment[j]] for j in range(len(w))]
    if adaptive == "layer":
        scale = [math.sqrt(sum((w[i] ** 2).sum() for i in segment_of)) for segment_of in members]
        T = [np.full_like(x, s) for x, s in zip(w, scale, strict=True)]
    else:
        T = [abs(x) + ETA if adaptive else np.ones_like(x) for x in w]
    u = [x * y for x, y in zip(T, g, strict=True)]
    n = sum(x.size for x in u)
    big_r = math.sqrt(sum((x**2).sum() for x in u) / n)
    running = (0.99 * m + 0.01 * big_r) / (1 - 0.99 ** (t + 1))
    expected = (1, big_r, running)[reference]
    e, s = [], []
    for i, segment_of in enumerate(members):
        d = sum(u[j].size for j in segment_of)
        size = math.sqrt(sum((u[j] ** 2).sum() for j in segment_of))
        ratio = size / math.sqrt(d) / (expected + 1e-12)
        if reference:
            ratio = min(max(ratio, 1 / clip), clip)
        s.append(problem.rho[i] * (d / n) ** (a - (0 if norm == 2 else 0.5)) * ratio**b if size else 0.0)
        direction = u[i] / (size + 1e-12) if norm == 2 else np.sign(u[i])
        e.append(s[-1] * T[i] * direction)
    return e, np.array(s)


def perturbation(
    problem: Problem,
    *,
    a: float = 0.5,
    b: float = -1.0,
    clip: float = 10.0,
    reference: int = 2,
    norm: int = 2,
    adaptive: bool | str = False,
    running: torch.Tensor | None = None,
    scale: float | None = None,
) -> tuple[list[np.ndarray], np.ndarray]:
    """The same from the operators: gradients times `scale`, and the scale told to them."""
    w, g = problem.tensors(problem.w), [x * (scale or 1) for x in problem.tensors(problem.g)]
    weighted = [int(adaptive is True)] * len(w)
    ones = [0] * len(w)
    sums = _reference.segment_norms(g, w, problem.rows, weighted, ETA)
    layer = _reference.segment_norms(w, w, problem.rows, ones, 0) if adaptive == "layer" else None
    running = torch.zeros(2, dtype=torch.float64) if running is None else running
    multiplier, s, found_inf = _reference.strengths(
        sums,
        torch.tensor(problem.segment),
        torch.from_numpy(problem.sizes),
        torch.from_numpy(problem.rho),
        running,
        None if scale is None else torch.tensor(scale),
        layer,
        a,
        b,
        clip,
        reference,
        norm,
    )
    assert found_inf == 0
    backup = [torch.empty_like(x) for x in w]
    _reference.perturb_(w, backup, g, multiplier, problem.rows, weighted, ETA, norm, torch.tensor(0))
    for kept, clean in zip(backup, problem.w, strict=True):
        assert (kept.numpy() == clean).all()
    moved = [x.numpy() - y for x, y in zip(w, problem.w, strict=True)]
    return problem.units(moved), s.numpy()


def assert_close(actual: list[np.ndarray], expected: list[np.ndarray], tolerance: float = 1e-12) -> None:
    for x, y in zip(actual, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance)


def length(e: list[np.ndarray]) -> float:
    return math.sqrt(sum((x**2).sum() for x in e))


# --- the closed form -------------------------------------------------------------------------------------------------

OPTIONS = list(itertools.product(["tensor", "group", "global", "channel"], [0, 1, 2], [2, 0], [False, True, "layer"]))


@pytest.mark.parametrize(("segments", "reference", "norm", "adaptive"), OPTIONS)
@pytest.mark.parametrize(("a", "b"), [(0.5, -1.0), (0.0, 0.0), (0.5, 1.0), (0.25, -0.5)])
def test_perturbation_is_the_closed_form(
    segments: str, reference: int, norm: int, adaptive: bool | str, a: float, b: float
) -> None:
    problem = Problem(segments)
    options = {"a": a, "b": b, "clip": 3.0, "reference": reference, "norm": norm, "adaptive": adaptive}
    running = torch.tensor([0.02, 1], dtype=torch.float64)
    e, s = perturbation(problem, **options, running=running)
    expected, strengths = closed_form(problem, **options, m=0.02, t=1)
    np.testing.assert_allclose(s, strengths, rtol=1e-12)
    assert_close(e, expected, 1e-12 * max(1.0, strengths.max()))


def test_running_reference_is_the_corrected_average_of_the_overall_strength() -> None:
    running = torch.zeros(2, dtype=torch.float64)
    strengths = []
    for step in range(5):
        problem = Problem(seed=step)
        _, s = perturbation(problem, running=running)
        squares = [(x**2).sum() for x in problem.g]
        strengths.append(math.sqrt(sum(squares) / sum(x.size for x in problem.g)))
        weights = 0.99 ** np.arange(step, -1, -1)
        expected = (weights * strengths).sum() / weights.sum()
        m, t = running.tolist()
        assert m / (1 - 0.99**t) == pytest.approx(expected, rel=1e-12)
        first = problem.g[0]
        ratio = np.clip(math.sqrt((first**2).mean()) / expected, 0.1, 10)
        share = first.size / sum(x.size for x in problem.g)
        assert s[0] == pytest.approx(RHO[0] * math.sqrt(share) / ratio, rel=1e-10)


def test_a_unit_without_gradient_is_not_moved() -> None:
    problem = Problem()
    problem.g[2][:] = 0
    e, s = perturbation(problem)
    assert s[2] == 0
    assert not e[2].any()
    assert all(x.any() for k, x in enumerate(e) if k != 2)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_moves_nothing_and_is_not_averaged(bad: float) -> None:
    problem = Problem()
    problem.g[3][0] = bad
    w, g = problem.tensors(problem.w), problem.tensors(problem.g)
    sums = _reference.segment_norms(g, w, problem.rows, [0] * 5, 0)
    running = torch.tensor([0.3, 7], dtype=torch.float64)
    sizes, rho = torch.from_numpy(problem.sizes), torch.from_numpy(problem.rho)
    multiplier, s, found_inf = _reference.strengths(
        sums, torch.arange(5), sizes, rho, running, None, None, 0.5, -1.0, 10.0, 2, 2
    )
    assert found_inf == 1
    assert s.isnan().all()
    assert running.tolist() == [0.3, 7]
    _reference.perturb_(
        w, [torch.empty_like(x) for x in w], g, multiplier, problem.rows, [0] * 5, 0, 2, torch.tensor(0)
    )
    for x, clean in zip(w, problem.w, strict=True):
        assert (x.numpy() == clean).all()


# --- the family ------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), norm=st.sampled_from([2, 0]))
def test_without_strength_exponent_rho_is_the_radius(seed: int, norm: int) -> None:
    problem = Problem(seed=seed, spread=2.0, group=[0] * 5)
    e, _ = perturbation(problem, b=0.0, norm=norm)
    if norm == 2:
        assert length(e) == pytest.approx(RHO[0], rel=1e-10)
    else:
        assert all((abs(x) == pytest.approx(RHO[0], rel=1e-12)) for x in np.concatenate(e))


def test_sam_is_one_segment_or_tensors_whose_strengths_rise_with_their_gradients() -> None:
    one = Problem("global", group=[0] * 5)
    many = Problem("tensor", group=[0] * 5)
    whole = math.sqrt(sum((x**2).sum() for x in one.g))
    expected = [RHO[0] * x / whole for x in one.units(one.g)]
    assert_close(perturbation(one, a=0.0, b=0.0)[0], expected)
    assert_close(perturbation(many, a=0.5, b=1.0, reference=1, clip=1e9)[0], expected)


@pytest.mark.parametrize("b", [-1.0, 0.0, 0.5, 1.0])
def test_one_tensor_with_the_global_reference_is_sam_for_every_exponent(b: float) -> None:
    problem = Problem(shapes=[(7, 3)], group=[0])
    e, _ = perturbation(problem, b=b, reference=1)
    g = problem.g[0]
    assert_close(e, problem.units([RHO[0] * g / math.sqrt((g**2).sum())]))


def test_unnormalised_sam_is_the_gradient_times_rho() -> None:
    problem = Problem(group=[0] * 5)
    n = sum(x.size for x in problem.g)
    e, _ = perturbation(problem, a=0.5, b=1.0, reference=0)
    assert_close(e, [RHO[0] / math.sqrt(n) * x for x in problem.units(problem.g)])


def test_layer_wise_weights_give_each_tensor_a_radius_relative_to_its_own() -> None:
    problem = Problem()
    e, _ = perturbation(problem, a=0.0, b=0.0, adaptive="layer")
    for k, x in enumerate(e):
        size = math.sqrt((problem.w[k] ** 2).sum())
        direction = problem.g[k].ravel() / math.sqrt((problem.g[k] ** 2).sum())
        np.testing.assert_allclose(x, RHO[GROUP[k]] * size * direction, rtol=1e-10)


def test_adaptive_perturbation_does_not_see_a_rescaling_of_the_weights() -> None:
    """ASAM: a layer times 8 has gradients over 8, and the relative move stays (eta apart)."""
    problem, rescaled = Problem("global", group=[0] * 5), Problem("global", group=[0] * 5)
    problem.w = [np.sign(x) * (abs(x) + 20) for x in problem.w]
    rescaled.w = [problem.w[0] * 8, *problem.w[1:]]
    rescaled.g[0] = problem.g[0] / 8
    options = {"a": 0.0, "b": 0.0, "adaptive": True}
    before, after = perturbation(problem, **options)[0], perturbation(rescaled, **options)[0]
    np.testing.assert_allclose(after[0], 8 * before[0], rtol=5e-3)
    np.testing.assert_allclose(after[4], before[4], rtol=5e-3)


@pytest.mark.parametrize("scale", [65536.0, 2.0**-20])
@pytest.mark.parametrize(("reference", "b"), [(1, -1.0), (2, -1.0), (2, 1.0)])
def test_scale_of_the_loss_does_not_matter(scale: float, reference: int, b: float) -> None:
    plain = perturbation(Problem(), reference=reference, b=b)
    scaled = perturbation(Problem(), reference=reference, b=b, scale=scale)
    assert_close(scaled[0], plain[0])
    np.testing.assert_allclose(scaled[1], plain[1], rtol=1e-12)


def test_strengths_fall_where_gradients_are_strong_by_default_and_rise_with_the_other_sign() -> None:
    problem = Problem(spread=1.0, group=[0] * 5)
    rms = np.array([math.sqrt((x**2).mean()) for x in problem.g])
    share = np.sqrt(problem.sizes)
    for b in (-1.0, 1.0):
        _, s = perturbation(problem, b=b, reference=1, clip=1e6)
        np.testing.assert_allclose(s / share / rms**b, (s / share / rms**b)[0], rtol=1e-9)


def test_clip_bounds_what_a_dead_gradient_does() -> None:
    problem = Problem(group=[0] * 5)
    problem.g[0] *= 1e-9
    n = sum(x.size for x in problem.g)
    _, s = perturbation(problem, reference=1, clip=10.0)
    assert s[0] == pytest.approx(RHO[0] * math.sqrt(problem.g[0].size / n) * 10, rel=1e-9)


# --- several steps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [2, 0])
@pytest.mark.parametrize("weighted", [0, 1])
def test_offsets_are_steps_that_stay_inside_of_the_radius(norm: int, weighted: int) -> None:
    generator = np.random.default_rng(3)
    clean = generator.normal(size=(6, 5))
    radius, kinds = torch.tensor([0.3], dtype=torch.float64), [weighted]
    backup, offset = [torch.from_numpy(clean)], [torch.zeros(6, 5, dtype=torch.float64)]
    w = [torch.from_numpy(clean.copy())]
    T = abs(clean) + ETA if weighted else np.ones_like(clean)
    e = np.zeros_like(clean)
    for _ in range(4):
        g = generator.normal(size=(6, 5))
        c = torch.tensor([0.2 / (np.sqrt(((T * g) ** 2).sum()) if norm == 2 else 1)], dtype=torch.float64)
        _reference.ascend_(offset, backup, [torch.from_numpy(g)], c, radius, [1], kinds, ETA, norm)
        scale = torch.ones(1, dtype=torch.float64)
        e = e + c.item() * T * (T * g if norm == 2 else np.sign(g))
        if norm == 2:
            size = _reference.segment_norms(offset, backup, [1], [-weighted], ETA).sqrt()
            assert size.item() == pytest.approx(math.sqrt(((e / T) ** 2).sum()), rel=1e-12)
            scale = (radius / size).clamp(max=1)
            e *= min(1, 0.3 / math.sqrt(((e / T) ** 2).sum()))
        else:
            e = np.clip(e, -0.3 * T, 0.3 * T)
        _reference.project_(w, backup, offset, scale, [1], torch.tensor(0))
        np.testing.assert_allclose(offset[0].numpy(), e, rtol=0, atol=1e-14)
        np.testing.assert_allclose(w[0].numpy(), clean + e, rtol=0, atol=1e-14)
    inside = math.sqrt(((e / T) ** 2).sum()) if norm == 2 else abs(e / T).max()
    assert inside == pytest.approx(0.3, rel=1e-9)


# --- rounding --------------------------------------------------------------------------------------------------------


def test_random_bits_are_those_of_philox() -> None:
    """The first block of Philox4x32-10 with counter and key 0 (Salmon et al. 2011, its known answers)."""
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    assert _reference.draws(8, torch.tensor(0), 0).tolist() == halves


def test_random_bits_differ_by_seed_tensor_and_place() -> None:
    cases = [_reference.draws(4096, torch.tensor(seed), stream) for seed in (0, 1, 1 << 33) for stream in (0, 1)]
    for x, y in itertools.combinations(cases, 2):
        same = (x == y).sum().item()
        assert same <= 6  # 4096 / 65536 are expected to agree; more has p < 1e-8
    assert torch.equal(cases[0][:100], _reference.draws(100, torch.tensor(0), 0))


DTYPES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x", [1.0009765, -3.14159, 3.3e-7, -7.1e-8, 1e-9, 60000.3, -0.02])
def test_rounding_is_to_a_neighbour_and_unbiased(dtype: torch.dtype, x: float) -> None:
    n = 1 << 18
    value = torch.full((n,), x, dtype=torch.float32)
    rounded = _reference.round_stochastically(value, dtype, _reference.draws(n, torch.tensor(1), 0)).double()
    below, above = rounded.min().item(), rounded.max().item()
    exact = value[0].item()
    assert below <= exact <= above
    assert rounded.unique().numel() <= 2
    nearest = torch.tensor(exact).to(dtype).double().item()
    assert nearest in (below, above)
    gap = above - below
    sigma = math.sqrt(max((exact - below) * (above - exact), 0) / n)
    assert abs(rounded.mean().item() - exact) <= 5 * sigma + 2**-13 * gap  # p < 1e-6; float16 has 13 bits of chance


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_leaves_every_representable_number_as_it_is(dtype: torch.dtype) -> None:
    bits = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    value = bits.view(dtype)
    kept = _reference.round_stochastically(value.float(), dtype, torch.full((1 << 16,), 0xFFFF))
    assert torch.equal(kept.isnan(), value.isnan())
    finite = ~value.isnan()
    assert torch.equal(kept.view(torch.int16)[finite], bits[finite])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_does_not_invent_an_infinity(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    x = torch.tensor([largest * (1 + 1e-4), -largest * (1 + 1e-4), math.inf, -math.inf, math.nan])
    rounded = _reference.round_stochastically(x, dtype, torch.full((5,), 0xFFFF)).float()
    assert rounded[:4].tolist() == [largest, -largest, math.inf, -math.inf]
    assert rounded[4].isnan()


# --- base steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mu", "dampening", "nesterov"), [(0.0, 0.0, False), (0.9, 0.0, True), (0.9, 0.3, False), (0.5, 0.0, False)]
)
@pytest.mark.parametrize(("wd", "maximize"), [(0.0, False), (0.1, True)])
def test_sgd_is_that_of_torch(mu: float, dampening: float, nesterov: bool, wd: float, maximize: bool) -> None:
    problem = Problem()
    params = [torch.nn.Parameter(x) for x in problem.tensors(problem.w)]
    flags = {"nesterov": nesterov, "maximize": maximize}
    base = torch.optim.SGD(params, 0.1, mu, dampening, wd, **flags)
    w, kept = problem.tensors(problem.w), problem.tensors(problem.w)
    momentum = [torch.zeros_like(x) for x in w] if mu else []
    for step in range(4):
        g = problem.tensors(Problem(seed=step + 1).g)
        for p, grad in zip(params, g, strict=True):
            p.grad = grad.clone()
        base.step()
        scaled = [x * 8 for x in g]
        scale = torch.tensor(8.0)
        first = step == 0
        found = torch.tensor(0.0)
        for x in w:
            x.fill_(math.nan)  # what is left of the perturbation does not matter
        _reference.restore_sgd_(
            w, kept, scaled, momentum, 0.1, mu, dampening, wd, nesterov, maximize, first, scale, found
        )
        for x, y, p in zip(kept, w, params, strict=True):
            torch.testing.assert_close(y, p.detach(), rtol=1e-12, atol=1e-14)
            x.copy_(y)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1, dtype=torch.float64)])
def test_adam_is_that_of_torch(decoupled: bool, amsgrad: bool, lr: float | torch.Tensor) -> None:
    problem = Problem()
    params = [torch.nn.Parameter(x) for x in problem.tensors(problem.w)]
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    base = kind(params, 0.1, (0.8, 0.95), 1e-6, weight_decay=0.1, amsgrad=amsgrad)
    w = problem.tensors(problem.w)
    state = [[torch.zeros_like(x) for x in w] for _ in range(3)]
    steps = [torch.zeros(()) for _ in w]
    for step in range(4):
        g = problem.tensors(Problem(seed=step + 1).g)
        for p, grad in zip(params, g, strict=True):
            p.grad = grad.clone()
        base.step()
        options = (lr, 0.8, 0.95, 1e-6, 0.1, decoupled, amsgrad, False, None, None)
        _reference.restore_adam_(w, w, g, *state, steps, *options)
        for y, p in zip(w, params, strict=True):
            torch.testing.assert_close(y, p.detach(), rtol=1e-12, atol=1e-14)
    assert all(t == 4 for t in steps)


def test_an_overflow_restores_and_nothing_else() -> None:
    problem = Problem()
    kept, g = problem.tensors(problem.w), problem.tensors(problem.g)
    found, one = torch.tensor(1.0), torch.tensor(1.0)
    w = [torch.zeros_like(x) for x in kept]
    state = [[torch.full_like(x, 0.5) for x in kept] for _ in range(3)]
    steps = [torch.tensor(3.0) for _ in kept]
    _reference.restore_sgd_(w, kept, g, state[0], 0.1, 0.9, 0.0, 0.1, False, False, False, one, found)
    for x, y in zip(w, kept, strict=True):
        assert torch.equal(x, y)
        x.zero_()
    options = (0.1, 0.9, 0.999, 1e-8, 0.1, True, True, False, one, found)
    _reference.restore_adam_(w, kept, g, *state, steps, *options)
    for x, y in zip(w, kept, strict=True):
        assert torch.equal(x, y)
    assert all((x == 0.5).all() for x in itertools.chain(*state))
    assert all(t == 3 for t in steps)


# --- gradients -------------------------------------------------------------------------------------------------------


def test_lists_multiply_and_mix_as_one_vector() -> None:
    x, y = Problem(), Problem(seed=1)
    a, b = (np.concatenate([z.ravel() for z in p.g]) for p in (x, y))
    products = _reference.inner_products(x.tensors(x.g), y.tensors(y.g))
    np.testing.assert_allclose(products.numpy(), [a @ a, a @ b, b @ b], rtol=1e-12)
    grads, kept = y.tensors(y.g), x.tensors(x.g)
    _reference.mix_(grads, kept, torch.tensor([0.3, -2.0], dtype=torch.float64), torch.tensor(0.0))
    mixed = np.concatenate([z.numpy().ravel() for z in grads])
    np.testing.assert_allclose(mixed, 0.3 * a - 2 * b, rtol=1e-12)
    _reference.mix_(grads, kept, torch.tensor([5.0, 5.0], dtype=torch.float64), torch.tensor(1.0))
    assert (np.concatenate([z.numpy().ravel() for z in grads]) == mixed).all()
