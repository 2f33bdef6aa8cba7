"""Weights come back bit for bit, runs resume bit for bit, and the perturbation is the one that was asked for."""

from __future__ import annotations

import copy
import io
import math
import pickle
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from gasam import ASAM, GASAM, GSAM, MSAM, SAM, SAMON, WSAM, FriendlySAM, LookSAM, MultiStepRisk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

SGD = torch.optim.SGD
PRESETS = [GASAM, SAM, ASAM, GSAM, FriendlySAM, LookSAM, SAMON, MSAM, WSAM, MultiStepRisk]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


class Lion(torch.optim.Optimizer):
    """As third parties write optimizers: plain loops, and a state that is made where there is none at all."""

    def __init__(self, params: Any, lr: float = 1e-3, beta: float = 0.9):
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if len(state) == 0:
                    state["exp_avg"] = torch.zeros_like(p)
                    state["count"] = 0
                state["count"] += 1
                p.add_(state["exp_avg"].lerp(p.grad, 0.1).sign(), alpha=-group["lr"])
                state["exp_avg"].lerp_(p.grad, 1 - group["beta"])


BASES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "SGD": (SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "AdamW": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "RMSprop": (torch.optim.RMSprop, {"momentum": 0.9}),
    "Lion": (Lion, {}),
}
EVERY_BASE = pytest.mark.parametrize(("kind", "options"), BASES.values(), ids=BASES)


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def gradients(params: Sequence[Tensor], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator).to(p.dtype) for p in params]


def set_grads(params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad


def bits(x: Tensor) -> Tensor:
    """The bytes, so that NaN equals itself and -0 is not 0."""
    return x.detach().reshape(-1).contiguous().view(torch.uint8)


def same(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> bool:
    return all(torch.equal(bits(x), bits(y)) for x, y in zip(xs, ys, strict=True))


def giving(params: Sequence[Tensor], *seeds: int) -> Callable[[], None]:
    """A closure: its calls set the gradients of these seeds, one after another."""
    left = iter(seeds)
    return lambda: set_grads(params, gradients(params, next(left)))


def copies(xs: Sequence[Tensor]) -> list[Tensor]:
    return [x.detach().clone() for x in xs]


def pointers(xs: Sequence[Tensor]) -> list[int]:
    return [x.data_ptr() for x in xs]


# --- weights come back ----------------------------------------------------------------------------------------------


def hold_still(kind: Any, options: dict[str, Any], dtype: torch.dtype, count: int, **own: Any) -> None:
    """Steps at lr = 0 whose gradients are at times missing or infinite, and whose closures at times raise."""
    params = parameters((7, 5), (33,), (), (0,), (2, 3, 4), dtype=dtype)
    optimizer = GASAM(params, kind, rho=0.5, lr=0.0, **options, **own)
    before, addresses = copies(params), pointers(params)
    sets = [gradients(params, seed) for seed in range(8)]
    infinite = [*sets[0][:1], torch.full_like(sets[0][1], math.inf), *sets[0][2:]]
    passes = own.get("steps", 1) + 1
    t = calls = moved = raised = 0

    def closure() -> None:
        nonlocal calls, moved
        moved += calls > 0 and not torch.equal(params[0], before[0])
        grads: list[Tensor | None] = list(sets[(t + calls) % 8])
        if t % 11 == 3 and calls < passes - 1:
            grads = list(infinite)
        if (t // 5 + calls) % 3 == 0:
            grads[t % 5] = None
        calls += 1
        if t % 13 == 7 and calls == 1 + t % passes:
            raise InterruptedError
        set_grads(params, grads)

    for t in range(count):
        calls = 0
        try:
            optimizer.step(closure)
        except InterruptedError:
            raised += 1
        if t % 50 == 49:
            assert same(params, before)
            assert pointers(params) == addresses
    assert moved > count // 2  # else this proves nothing
    assert raised >= count // 14
    assert int(optimizer.skipped_ascents) >= count // 14


@EVERY_BASE
@DTYPES
def test_many_steps_at_the_learning_rate_zero_change_no_bit(kind, options, dtype):
    hold_still(kind, options, dtype, 400)


@pytest.mark.parametrize(
    "own",
    [
        {"steps": 3},
        {"steps": 2, "risk": "average", "norm": math.inf},
        {"segments": "channel", "adaptive": True},
        {"segments": "global", "reference": "none", "strength_exponent": 1.0},
    ],
    ids=str,
)
@DTYPES
def test_as_many_steps_of_other_kinds_change_no_bit(own, dtype):
    hold_still(SGD, {"momentum": 0.9}, dtype, 200, **own)


@pytest.mark.slow
@EVERY_BASE
@DTYPES
@pytest.mark.parametrize("own", [{}, {"steps": 2}], ids=str)
def test_ten_thousand_steps_at_the_learning_rate_zero_change_no_bit(kind, options, dtype, own):
    hold_still(kind, options, dtype, 10_000, **own)


def test_gradients_that_are_missing_at_random_do_not_pile_up_tables():
    """As in a mixture of experts."""
    params = parameters(*[(2,)] * 7)
    optimizer = GASAM(params, SGD, lr=0.0)
    before = copies(params)
    for t in range(1, 2**7):
        given = [g if t >> k & 1 else None for k, g in enumerate(gradients(params, t))]
        with optimizer.perturbed(given):
            assert [not same([p], [q]) for p, q in zip(params, before, strict=True)] == [g is not None for g in given]
    assert same(params, before)
    assert len(optimizer._segments._units) <= 16


@pytest.mark.parametrize("preset", [x for x in PRESETS if x is not GASAM])
@pytest.mark.parametrize("kind", [SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_no_preset_changes_a_bit_at_the_learning_rate_zero(preset, kind):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    optimizer = preset(net, kind, rho=0.5, lr=0.0, **({} if kind is torch.optim.AdamW else {"momentum": 0.9}))
    params = list(net.parameters())
    before, addresses = copies(params), pointers(params)
    moved = 0

    def closure() -> Tensor:
        nonlocal moved
        moved += not same(params, before)
        x = torch.randn(5, 4)
        loss = net(x).square().sum()
        loss.backward()
        return loss

    for _ in range(50):
        optimizer.step(closure)
        optimizer.zero_grad()
    assert moved >= 5  # LookSAM ascends every tenth step
    assert same(params, before)
    assert pointers(params) == addresses


def test_the_check_tells_a_restoration_from_a_subtraction():
    """(w + e) - e, which many implementations take for w."""
    [p] = parameters((1000,))
    before = p.detach().clone()
    for seed in range(20):
        [e] = gradients([p], seed)
        p.data.add_(e, alpha=0.01).sub_(e, alpha=0.01)
    assert not same([p], [before])


@pytest.mark.parametrize("raising", [1, 2, 3])
@pytest.mark.parametrize("risk", ["last", "average"])
@EVERY_BASE
def test_a_step_that_failed_leaves_no_trace_in_the_following_ones(kind, options, risk, raising):

    def run(fails: bool) -> list[Tensor]:
        params = parameters((7, 5), (33,))
        optimizer = GASAM(params, kind, lr=0.01, steps=2, risk=risk, reference="global", **options)
        for t in range(6):
            if fails and t == 3:
                with pytest.raises(StopIteration):  # of the seeds
                    optimizer.step(giving(params, *range(90, 89 + raising)))
            optimizer.step(giving(params, 10 * t, 10 * t + 1, 10 * t + 2))
        return copies(params)

    assert same(run(False), run(True))


def test_the_flat_weights_of_a_recurrent_layer_stay_its_parameters():
    torch.manual_seed(0)
    net = nn.LSTM(3, 4, num_layers=2)
    optimizer = GASAM(net, SGD, lr=0.0, rho=0.5)
    x = torch.randn(5, 2, 3)
    before, addresses = copies(list(net.parameters())), pointers(list(net.parameters()))
    outputs: list[Tensor] = []

    def closure() -> Tensor:
        outputs.append(net(x)[0])
        fresh = nn.LSTM(3, 4, num_layers=2)
        fresh.load_state_dict(net.state_dict())
        assert torch.equal(outputs[-1], fresh(x)[0])  # it computes with the weights that it shows
        loss = outputs[-1].square().sum()
        loss.backward()
        return loss

    for _ in range(10):
        optimizer.step(closure)
    assert not torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[-2])
    assert all(a is b for a, b in zip(net._flat_weights, net.parameters(), strict=True))
    assert same(list(net.parameters()), before)
    assert pointers(list(net.parameters())) == addresses


def test_tied_weights_are_one_parameter():
    torch.manual_seed(0)
    net = nn.ModuleDict({"encoder": nn.Embedding(7, 3), "decoder": nn.Linear(3, 7)})
    net["decoder"].weight = net["encoder"].weight
    tied = net["encoder"].weight
    optimizer = GASAM(net, SGD, lr=0.0, rho=0.1, segments="global", strength_exponent=0, size_exponent=0)
    before, moved = copies(list(net.parameters())), []

    def closure() -> Tensor:
        moved.append(radius(offsets(net.parameters(), before)))
        loss = net["decoder"](net["encoder"](torch.arange(7))).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert moved == [0, pytest.approx(0.1, rel=1e-5)]
    assert len(optimizer.strengths()) == 2
    assert net["decoder"].weight is tied
    assert net["encoder"].weight is tied
    assert same(list(net.parameters()), before)


# --- rho = 0 --------------------------------------------------------------------------------------------------------


@EVERY_BASE
@pytest.mark.parametrize("own", [{}, {"steps": 3, "risk": "average"}, {"segments": "channel", "every": 2}], ids=str)
def test_without_a_radius_there_is_one_call_and_the_step_of_the_base(kind, options, own):
    params, twins = (parameters((7, 5), (33,), (2,)) for _ in range(2))
    optimizer, base = GASAM(params, kind, rho=0.0, lr=0.01, **options, **own), kind(twins, lr=0.01, **options)
    calls = 0

    def closure() -> int:
        nonlocal calls
        calls += 1
        set_grads(params, gradients(params, calls))
        return calls

    for t in range(1, 8):
        assert optimizer.step(closure) == t
        set_grads(twins, gradients(twins, t))
        base.step()
        assert same(params, twins)
    assert [optimizer.state[p].keys() for p in params] == [base.state[p].keys() for p in twins]


def test_a_group_of_radius_zero_is_not_perturbed():
    a, b = parameters((7, 5), (33,))
    optimizer = GASAM([{"params": [a], "rho": 0.0}, {"params": [b]}], SGD, lr=0.0)
    before = copies([a, b])
    optimizer.perturb(gradients([a, b], 1))
    assert same([a], before[:1])
    assert not same([b], before[1:])
    optimizer.restore()
    assert same([a, b], before)


# --- resumed runs ---------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """With a norm layer, and a parameter that is used in two of three batches only."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)
        self.extra = nn.Parameter(torch.ones(2, dtype=dtype))

    def forward(self, t: int) -> Tensor:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(t)).to(self.extra.dtype)
        y = self.body(x)
        return (y * self.extra if t % 3 else y).square().mean()


def backward(net: nn.Module, t: int) -> Tensor:
    loss: Tensor = net(t)
    loss.backward()
    return loss


def train(net: nn.Module, optimizer: GASAM, first: int, last: int) -> None:
    for t in range(first, last):
        optimizer.step(partial(backward, net, t))


def through_a_file(x: Any) -> Any:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


RESUMED: dict[str, tuple[Any, dict[str, Any]]] = {
    "GASAM": (GASAM, {}),
    "every": (GASAM, {"every": 3}),
    "average": (GASAM, {"steps": 2, "risk": "average"}),
    "channels": (GASAM, {"segments": "channel", "adaptive": True}),
    "LookSAM": (LookSAM, {"k": 3}),
    **{kind.__name__: (kind, {}) for kind in PRESETS if kind not in (GASAM, LookSAM)},
}
EVERY_RESUMED = pytest.mark.parametrize(("kind", "own"), RESUMED.values(), ids=RESUMED)


def make(kind: Any, own: dict[str, Any], base: str, dtype: torch.dtype) -> tuple[Net, GASAM]:
    net = Net(dtype)
    options = {"momentum": 0.9} if base in ("SGD", "RMSprop") else {}
    if kind is MSAM and base == "Lion":
        base = "AdamW"  # MSAM needs to know where the momentum is
    return net, kind(net, BASES[base][0], rho=0.1, lr=0.01, **own, **options)


@EVERY_RESUMED
@pytest.mark.parametrize(
    ("base", "dtype"), [("SGD", torch.float32), ("AdamW", torch.bfloat16), ("Lion", torch.bfloat16)]
)
def test_a_run_resumes_at_any_step_bit_for_bit(kind, own, base, dtype):
    last = 6
    net, optimizer = make(kind, own, base, dtype)
    train(net, optimizer, 0, last)
    expected = copies(list(net.parameters()))
    for t in range(last):
        net, optimizer = make(kind, own, base, dtype)
        train(net, optimizer, 0, t)
        saved = through_a_file({"net": net.state_dict(), "optimizer": optimizer.state_dict()})
        net, optimizer = make(kind, own, base, dtype)
        train(net, optimizer, 20, 22)  # whose traces loading must cover
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        train(net, optimizer, t, last)
        assert same(list(net.parameters()), expected), t


@EVERY_RESUMED
@pytest.mark.parametrize(
    ("copied", "base"),
    [(copy.deepcopy, "SGD"), (lambda x: pickle.loads(pickle.dumps(x)), "Lion")],
    ids=["copy", "pickle"],
)
def test_a_copy_goes_on_as_its_original_does(kind, own, base, copied):
    net, optimizer = make(kind, own, base, torch.bfloat16)
    train(net, optimizer, 0, 4)
    twin, its_optimizer = copied((net, optimizer))
    assert type(its_optimizer) is kind
    assert its_optimizer.param_groups is its_optimizer.base_optimizer.param_groups
    assert its_optimizer.state is its_optimizer.base_optimizer.state
    train(net, optimizer, 4, 8)
    train(twin, its_optimizer, 4, 8)
    assert same(list(twin.parameters()), list(net.parameters()))
    assert pointers(list(twin.parameters())) != pointers(list(net.parameters()))


def test_a_copy_holds_no_weights_of_its_own():
    """Its size is that of the weights and the state of the base."""
    [p] = parameters((100_000,))
    optimizer = GASAM([p], SGD, lr=0.1, momentum=0.9)
    optimizer.step(lambda: set_grads([p], gradients([p], 1)))
    p.grad = None
    assert len(pickle.dumps(optimizer)) < 2.1 * 4 * p.numel()
    assert len(pickle.dumps(optimizer.state_dict())) < 1.1 * 4 * p.numel()
    twin = copy.deepcopy(optimizer)
    [q] = twin.param_groups[0]["params"]
    twin.perturb(gradients([q], 2))
    assert not same([q], [p])
    twin.restore()
    assert same([q], [p])


def test_the_state_of_the_base_alone_can_be_loaded():
    params, twins = (parameters((7, 5), (33,)) for _ in range(2))
    optimizer, base = (GASAM(params, SGD, lr=0.1, momentum=0.9), SGD(twins, lr=0.2, momentum=0.8))
    set_grads(twins, gradients(twins, 1))
    base.step()
    optimizer.load_state_dict(base.state_dict())
    [group] = optimizer.param_groups
    assert (group["lr"], group["momentum"], group["rho"]) == (0.2, 0.8, 0.05)
    assert same(*([state["momentum_buffer"] for state in x.state.values()] for x in (optimizer, base)))
    optimizer.step(lambda: set_grads(params, gradients(params, 2)))


# --- what the second pass sees --------------------------------------------------------------------------------------


def moves(optimizer: GASAM, net: nn.Module, closure: Callable[[], Tensor]) -> list[list[Tensor]]:
    """How far each parameter is from where it began, in each pass but the first, as a hook on the model sees it."""
    before, seen = copies(list(net.parameters())), []
    handle = net.register_forward_pre_hook(lambda module, args: seen.append(offsets(net.parameters(), before)))
    optimizer.step(closure)
    handle.remove()
    return seen[1:]


def offsets(params: Iterable[Tensor], before: Sequence[Tensor]) -> list[Tensor]:
    return [p.detach().double() - q for p, q in zip(params, before, strict=True)]


def radius(e: Sequence[Tensor]) -> float:
    return math.sqrt(sum(x.square().sum().item() for x in e))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("options", [{"segments": "global", "size_exponent": 0}, {}], ids=["SAM", "layer-wise"])
def test_the_second_pass_sees_weights_at_the_radius(options, steps):
    net = Net()
    optimizer = GASAM(net, SGD, lr=0.01, rho=0.1, strength_exponent=0, steps=steps, **options)
    for t in (1, 2, 4):  # in others a parameter has no gradient
        *first, last = moves(optimizer, net, partial(backward, net, t))
        assert radius(last) <= 0.1 * (1 + 1e-5)
        if steps == 1:
            assert radius(last) == pytest.approx(0.1, rel=1e-3)
        else:
            assert radius(first[0]) == pytest.approx(0.075, rel=1e-3)  # 1.5 / 2 of it


@pytest.mark.parametrize("zeroes", [False, True])
def test_the_ascent_is_along_this_batch_and_not_the_one_before(zeroes):
    """Whether the closure zeroes gradients itself or not."""
    [p] = parameters((50,))
    optimizer = GASAM([p], SGD, lr=0.0, rho=0.1, segments="global", strength_exponent=0)
    before = p.detach().clone()
    directions, seen = [gradients([p], seed)[0] for seed in range(3)], []

    def closure() -> Tensor:
        if zeroes:
            optimizer.zero_grad()
        loss = (p * directions[len(seen) // 2]).sum()
        seen.append(p.detach() - before)
        loss.backward()
        return loss

    for direction in directions:
        optimizer.step(closure)
        torch.testing.assert_close(seen[-1], 0.1 * direction / direction.norm(), rtol=0, atol=1e-6)
    assert len(seen) == 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_halves_are_perturbed_along_the_direction_on_average(dtype):
    """By steps that are far below their last place, which rounding to nearest would lose altogether."""
    n, draws = 20_000, 64
    p = torch.full((n,), 0.02, dtype=dtype, requires_grad=True)
    last_place = 0.02 * torch.finfo(dtype).eps / 1.28  # 0.02 = 1.28 * 2^-6
    rho = 0.1 * last_place * math.sqrt(n)
    optimizer = GASAM([p], SGD, lr=0.0, rho=rho, segments="global", strength_exponent=0)
    before = p.detach().double()
    [grad] = gradients([p], 0)
    direction = grad.double() / grad.double().norm()
    assert torch.equal((before + rho * direction).to(dtype), p.detach())

    drawn = torch.stack([draw(optimizer, p, grad) - before for _ in range(draws)])
    assert len({tuple(x.nonzero().view(-1).tolist()[:9]) for x in drawn}) == draws  # other numbers in each step
    mean = drawn.mean(0)
    along = (mean @ direction).item() / rho
    sigma = last_place * math.sqrt(0.1 / draws) / rho  # at most, of a rounding up by chance 0.1 * |e_i| / rms(e)
    assert abs(along - 1) < 4 * sigma
    assert sigma < 0.1
    across = mean - (mean @ direction) * direction
    assert across.norm() < 1.2 * last_place * math.sqrt(0.1 * n / draws)


def draw(optimizer: GASAM, p: Tensor, grad: Tensor) -> Tensor:
    """The perturbed weights of a step."""
    seen = []

    def closure() -> None:
        seen.append(p.detach().double())
        p.grad = grad.clone()

    optimizer.step(closure)
    return seen[1]


def test_one_autocast_over_both_passes_does_not_hide_the_perturbation():
    """Autocast keeps its casts of weights until its outermost context ends."""
    torch.manual_seed(0)
    net = nn.Linear(16, 16)
    x = torch.randn(4, 16)
    optimizer = GASAM(net, SGD, lr=0.1, rho=5.0)
    outputs, expected = [], []

    def closure() -> Tensor:
        outputs.append(net(x).detach())
        expected.append(nn.functional.linear(x.bfloat16(), net.weight.bfloat16(), net.bias.bfloat16()).detach())
        loss = net(x).float().square().mean()
        loss.backward()
        return loss

    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(3):
            optimizer.step(closure)
    assert not torch.equal(outputs[0], outputs[1])
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


# --- what surrounds a pass ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_dropout_is_shared_on_demand_and_the_users_random_numbers_are_not_touched(shared, steps):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 40), nn.Dropout(0.5))
    optimizer = GASAM(net, SGD, lr=0.1, steps=steps, share_dropout=shared)
    masks = []

    def closure() -> Tensor:
        y = net(torch.ones(1, 40))
        masks.append(y == 0)
        y.sum().backward()
        return y.sum()

    torch.manual_seed(1)
    optimizer.step(closure)
    after = torch.random.get_rng_state()
    torch.manual_seed(1)
    for _ in range(1 if shared else steps + 1):
        net(torch.ones(1, 40))
    assert torch.equal(after, torch.random.get_rng_state())
    assert [torch.equal(mask, masks[0]) for mask in masks[1:]] == [shared] * steps


def test_rounding_by_chance_draws_none_of_the_users_random_numbers():
    [p] = parameters((100,), dtype=torch.bfloat16)
    optimizer = GASAM([p], SGD, lr=0.1)
    before = torch.random.get_rng_state()
    for seed in range(3):
        optimizer.step(giving([p], seed, seed))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("given", ["module", "watched", "found"])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("keep", [True, False])
def test_batch_statistics_count_a_batch_once(given, steps, keep):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    twin = copy.deepcopy(net)
    x = torch.randn(8, 4)
    params = net if given == "module" else list(net.parameters())
    optimizer = GASAM(params, SGD, lr=0.1, rho=0.5, steps=steps, keep_batch_stats=keep)
    if given == "watched":
        optimizer.watch(net)
    addresses = pointers(list(net.buffers()))

    def closure() -> Tensor:
        loss = net(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    twin(x)
    assert net[1].num_batches_tracked == (1 if keep else steps + 1)
    assert same(list(net.buffers()), list(twin.buffers())) == keep
    assert pointers(list(net.buffers())) == addresses


# --- plumbing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["running", "global"])
@pytest.mark.parametrize("norm", [2, math.inf])
def test_a_loss_scale_changes_no_perturbation(reference, norm):
    """The toy applies the scaled gradient."""
    seen = []
    for scale in (None, 1.0, 65536.0):
        net = Net()
        optimizer = GASAM(net, SGD, lr=0.0, rho=0.1, reference=reference, norm=norm)
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        before = copies(list(net.parameters()))
        for t in (1, 2):
            loss = net(t) if scaler is None else scaler.scale(net(t))
            loss.backward()
            optimizer.first_step(zero_grad=True, scaler=scaler)
            seen.append([p.detach() - q for p, q in zip(net.parameters(), before, strict=True)])
            optimizer.restore()
    for t in (0, 1):
        for scaled in (seen[2 + t], seen[4 + t]):
            torch.testing.assert_close(scaled, seen[t], rtol=0, atol=2e-7)
    assert not same(seen[0], seen[1])


@pytest.mark.parametrize("pieces", [2, 8])
def test_accumulated_gradients_are_those_of_the_whole_batch(pieces):
    """The toy averages perturbations of the pieces."""
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))

    def accumulate(net: Net, parts: int) -> None:
        for piece in x.chunk(parts):
            (net.body(piece).square().mean() / parts).backward()

    outcomes = []
    for parts in (1, pieces):
        net = Net()
        optimizer = SAM(net, SGD, lr=0.1, rho=0.5)
        for _ in range(3):
            optimizer.step(partial(accumulate, net, parts))
        outcomes.append(copies(list(net.parameters())))
    torch.testing.assert_close(*outcomes, rtol=0, atol=1e-6)


def test_a_mean_of_perturbed_gradients_of_micro_batches_is_one_step():
    """m-sharpness: each micro-batch has a perturbation of its own, .grad gathers what they see."""
    net, twin = Net(), Net()
    optimizer = SAM(net, SGD, lr=0.1, rho=0.5)
    gathered = [torch.zeros_like(p) for p in twin.parameters()]
    for t in (1, 2):
        grads = torch.autograd.grad(net(t), list(net.parameters()))
        with optimizer.perturbed(grads):
            (net(t) / 2).backward()
        grads = torch.autograd.grad(twin(t), list(twin.parameters()))
        norm = math.sqrt(sum(g.double().square().sum() for g in grads))
        moved = Net()
        moved.load_state_dict({k: w + 0.5 / norm * g for (k, w), g in zip(twin.named_parameters(), grads, strict=True)})
        for total, g in zip(gathered, torch.autograd.grad(moved(t) / 2, list(moved.parameters())), strict=True):
            total += g
    optimizer.step()
    expected = [p.detach() - 0.1 * g for p, g in zip(twin.parameters(), gathered, strict=True)]
    torch.testing.assert_close([p.detach() for p in net.parameters()], expected, rtol=0, atol=1e-6)


def test_clipping_between_the_calls_bounds_the_last_gradient_only():
    params = parameters((7, 5), (33,))
    optimizer = GASAM(params, SGD, lr=1.0, rho=0.3, segments="global", strength_exponent=0)
    before = copies(params)
    set_grads(params, gradients(params, 1))
    optimizer.first_step(zero_grad=True)
    assert radius([p.detach() - q for p, q in zip(params, before, strict=True)]) == pytest.approx(0.3, rel=1e-5)
    set_grads(params, gradients(params, 2))
    nn.utils.clip_grad_norm_(params, 1e-3)
    optimizer.second_step()
    assert radius([p.detach() - q for p, q in zip(params, before, strict=True)]) == pytest.approx(1e-3, rel=1e-3)


def test_the_operators_are_what_runs():
    params = parameters((7, 5), (33,))
    for kind, fused in ((SGD, "restore_sgd_"), (torch.optim.AdamW, "restore_adam_"), (Lion, "restore_")):
        optimizer = GASAM(params, kind, lr=0.1)
        optimizer.zero_grad()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            optimizer.step(giving(params, 1, 2))
        names = {event.key for event in profile.key_averages()}
        assert {f"gasam::{name}" for name in ("segment_norms", "strengths", "perturb_", fused)} <= names


# --- the strengths --------------------------------------------------------------------------------------------------


def closed_form(grads: dict[str, Tensor], rho: float, a: float, b: float, clip: float) -> dict[str, float]:
    """s_k of the `global` reference."""
    total = sum(g.numel() for g in grads.values())
    rms = {name: math.sqrt(g.double().square().mean()) for name, g in grads.items()}
    reference = math.sqrt(sum(g.double().square().sum().item() for g in grads.values()) / total)
    return {
        name: rho * (g.numel() / total) ** a * min(max(rms[name] / (reference + 1e-12), 1 / clip), clip) ** b
        for name, g in grads.items()
    }


@pytest.mark.parametrize("b", [-1.0, 0.0, 1.0])
def test_the_strength_of_a_layer_follows_its_gradient(b):
    """The toy has one norm for all, under another name."""
    params = parameters((7, 5), (33,), (64, 2))
    names = ["first", "second", "third"]
    optimizer = GASAM(list(zip(names, params, strict=True)), SGD, lr=0.1, strength_exponent=b, reference="global")
    outcomes = []
    for factor in (1.0, 100.0):
        grads = gradients(params, 1)
        grads[1] *= factor
        with optimizer.perturbed(grads):
            strengths = {name: s.item() for name, s in optimizer.strengths().items()}
        expected = closed_form(dict(zip(names, grads, strict=True)), 0.05, 0.5, b, 10.0)
        assert strengths == pytest.approx(expected, rel=1e-6)
        outcomes.append(strengths)
    ratio = (outcomes[1]["first"] / outcomes[1]["second"]) / (outcomes[0]["first"] / outcomes[0]["second"])
    assert (ratio > 2) == (b < 0)
    assert (ratio < 0.5) == (b > 0)


@pytest.mark.parametrize("b", [-1.0, 0.0])
def test_the_perturbation_of_a_language_model_stays_near_the_radius(b):
    """The toy lets rho be each element's step, or divides by gradients however small."""
    torch.manual_seed(0)
    text = torch.randint(0, 12, (400,)).cumsum(0) % 50  # of 50 symbols, some of which follow others
    net = nn.ModuleDict({"embedding": nn.Embedding(50, 16), "lstm": nn.LSTM(16, 16), "head": nn.Linear(16, 50)})
    optimizer = GASAM(net, SGD, lr=0.5, rho=0.05, strength_exponent=b)
    radii, before = [], copies(list(net.parameters()))

    def closure() -> Tensor:
        radii.append(radius(offsets(net.parameters(), before)))
        chunk = text[(37 * len(radii)) % 350 :][:13, None]
        hidden, _ = net["lstm"](net["embedding"](chunk[:-1]))
        loss = nn.functional.cross_entropy(net["head"](hidden).flatten(0, 1), chunk[1:].flatten())
        loss.backward()
        return loss

    for _ in range(300):
        optimizer.step(closure)
        before = copies(list(net.parameters()))
    assert not any(radii[0::2])
    assert max(radii[1::2]) <= 0.05 * (10 if b else 1 + 1e-5)
    assert min(radii[1::2]) >= 0.05 * (0.1 if b else 1 - 1e-5)


# --- what belongs to the base ---------------------------------------------------------------------------------------


@EVERY_BASE
def test_nothing_of_ours_is_in_the_state_of_the_base(kind, options):
    """A base makes its state where there is none at all."""
    params, twins = (parameters((7, 5), (33,)) for _ in range(2))
    optimizer, base = GASAM(params, kind, lr=0.01, **options), kind(twins, lr=0.01, **options)
    for t in range(3):
        optimizer.step(giving(params, t, t))
        set_grads(twins, gradients(twins, t))
        base.step()
        assert [list(optimizer.state[p]) for p in params] == [list(base.state[p]) for p in twins]
    assert optimizer.state is optimizer.base_optimizer.state
    assert optimizer.param_groups is optimizer.base_optimizer.param_groups
    assert optimizer.param_groups[0].keys() - base.param_groups[0].keys() == {"rho"}
    torch.testing.assert_close(params, twins, rtol=1e-6, atol=1e-7)  # these gradients do not depend on the weights
