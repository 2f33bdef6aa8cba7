"""What is refused, in which words, and that a refusal changes nothing; and what failures leave behind."""

from __future__ import annotations

import contextlib
import copy
import math
import re
import signal
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate

from gasam import ASAM, GASAM, GSAM, MSAM, SAM, SAMON, WSAM, FriendlySAM, LookSAM, MultiStepRisk
from gasam.flatness import loss_in_ball, top_eigenvalue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SGD = torch.optim.SGD
MOMENTUM = {"lr": 0.1, "momentum": 0.9}


def parameters(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def with_gradients(*shapes: tuple[int, ...]) -> list[Tensor]:
    params = parameters(*shapes)
    fill(params)
    return params


def model() -> nn.Sequential:
    """With a norm layer, whose batch statistics move with every pass."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def closure_of(net: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))

    def closure() -> Tensor:
        loss = net(x).square().mean()
        loss.backward()
        return loss

    return closure


def fill(params: list[Tensor], t: int = 1) -> None:
    """Gradients of step t."""
    generator = torch.Generator().manual_seed(t)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p)


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def bits(x: Tensor) -> tuple[Any, ...]:
    """What may be compared with ==, NaN and all."""
    raw = x.detach().reshape(-1).contiguous().view(torch.uint8) if x.layout is torch.strided else x.to_dense()
    return (x.dtype, tuple(x.shape), raw.tolist())


def contents(optimizer: torch.optim.Optimizer, net: nn.Module | None = None) -> dict[str, Any]:
    """Everything that a call could change; a refused one changes none of it."""
    params = params_of(optimizer)
    own = optimizer.state_dict()["gasam"] if isinstance(optimizer, GASAM) and not optimizer.is_perturbed else {}
    return {
        "params": [(p.data_ptr(), p.requires_grad, bits(p)) for p in params],
        "grads": [None if p.grad is None else (id(p.grad), bits(p.grad)) for p in params],
        "states": [
            {key: bits(x) if isinstance(x, Tensor) else x for key, x in optimizer.state.get(p, {}).items()}
            for p in params
        ],
        "options": [
            {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
        ],
        "own": {key: bits(x) if isinstance(x, Tensor) else str(x) for key, x in own.items()},
        "perturbed": isinstance(optimizer, GASAM) and optimizer.is_perturbed,
        "buffers": [] if net is None else [bits(x) for x in net.buffers()],
        "hooks": 0 if net is None else sum(len(m._forward_pre_hooks) for m in net.modules()),
    }


def weights(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [(p.data_ptr(), bits(p)) for p in params_of(optimizer)]


def assert_near(params: list[Tensor], twins: list[Tensor]) -> None:
    """Equal but for the rounding of a step, which is an operator of ours for some bases."""
    torch.testing.assert_close([p.detach() for p in params], [q.detach() for q in twins], rtol=1e-6, atol=1e-7)


def refused(error: type[Exception], text: str) -> Any:
    return pytest.raises(error, match=r"^" + re.escape(text))


# --- options --------------------------------------------------------------------------------------------------------

OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"rho": -0.1}, ValueError, "rho must be finite and non-negative, got -0.1"),
    ({"rho": math.nan}, ValueError, "rho must be finite and non-negative, got nan"),
    ({"rho": math.inf}, ValueError, "rho must be finite and non-negative, got inf"),
    ({"rho": "0.1"}, TypeError, "rho must be a number, got '0.1'"),
    ({"rho": None}, TypeError, "rho must be a number, got None"),
    ({"rho": True}, TypeError, "rho must be a number, got True"),
    ({"eta": -1e-9}, ValueError, "eta must be finite and non-negative, got -1e-09"),
    ({"eta": math.nan}, ValueError, "eta must be finite and non-negative, got nan"),
    ({"eta": math.inf}, ValueError, "eta must be finite and non-negative, got inf"),
    ({"strength_exponent": math.nan}, ValueError, "strength_exponent must be finite, got nan"),
    ({"strength_exponent": -math.inf}, ValueError, "strength_exponent must be finite, got -inf"),
    ({"strength_exponent": 1j}, TypeError, "strength_exponent must be a number, got 1j"),
    ({"size_exponent": math.inf}, ValueError, "size_exponent must be finite, got inf"),
    ({"size_exponent": math.nan}, ValueError, "size_exponent must be finite, got nan"),
    ({"strength_clip": 0.99}, ValueError, "strength_clip must be finite and at least 1, got 0.99"),
    ({"strength_clip": math.nan}, ValueError, "strength_clip must be finite and at least 1, got nan"),
    ({"strength_clip": None}, TypeError, "strength_clip must be a number, got None"),
    ({"ascent_fraction": 0}, ValueError, "ascent_fraction must be in (0, 1], got 0"),
    ({"ascent_fraction": 1.01}, ValueError, "ascent_fraction must be in (0, 1], got 1.01"),
    ({"ascent_fraction": -0.5}, ValueError, "ascent_fraction must be in (0, 1], got -0.5"),
    ({"ascent_fraction": math.nan}, ValueError, "ascent_fraction must be in (0, 1], got nan"),
    ({"ascent_fraction": "half"}, TypeError, "ascent_fraction must be a number, got 'half'"),
    ({"reference": "mean"}, ValueError, "reference must be 'running', 'global' or 'none', got 'mean'"),
    ({"reference": None}, ValueError, "reference must be 'running', 'global' or 'none', got None"),
    ({"segments": "layer"}, ValueError, "segments must be 'tensor', 'group', 'global' or 'channel', got 'layer'"),
    ({"risk": "mean"}, ValueError, "risk must be 'last' or 'average', got 'mean'"),
    ({"norm": 1}, ValueError, "norm must be 2 or inf, got 1"),
    ({"norm": "2"}, ValueError, "norm must be 2 or inf, got '2'"),
    ({"norm": -math.inf}, ValueError, "norm must be 2 or inf, got -inf"),
    ({"adaptive": "elementwise"}, ValueError, "adaptive must be False, True or 'layer', got 'elementwise'"),
    ({"adaptive": None}, ValueError, "adaptive must be False, True or 'layer', got None"),
    ({"only": "bn"}, ValueError, "only must be None, 'norm', a predicate of a name and a parameter, or parameters or"),
    ({"only": 3}, ValueError, "only must be None, 'norm', a predicate of a name and a parameter, or parameters or"),
    ({"only": ["0.weight"]}, ValueError, "only must be None, 'norm', a predicate of a name and a parameter, or para"),
    ({"only": nn.LayerNorm}, ValueError, "only must be None, 'norm', a predicate of a name and a parameter, or para"),
    ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
    ({"steps": -1}, ValueError, "steps must be at least 1, got -1"),
    ({"steps": 2.0}, TypeError, "steps must be an integer, got 2.0"),
    ({"steps": True}, TypeError, "steps must be an integer, got True"),
    ({"every": 0}, ValueError, "every must be at least 1, got 0"),
    ({"every": 1.5}, TypeError, "every must be an integer, got 1.5"),
    ({"every": "2"}, TypeError, "every must be an integer, got '2'"),
]


@pytest.mark.parametrize(("options", "error", "text"), OPTIONS, ids=[str(case[0]) for case in OPTIONS])
def test_an_option_out_of_its_range_is_refused_and_the_base_is_left_alone(options, error, text):
    params = with_gradients((3,), (2, 2))
    with refused(error, text):
        GASAM(params, SGD, lr=0.1, **options)
    base = SGD(params, **MOMENTUM)
    base.step()
    before = contents(base)
    with refused(error, text):
        GASAM(params, base, **options)
    assert contents(base) == before  # not a key is left in its groups


def test_the_limits_of_options_and_the_numbers_of_numpy_are_accepted():
    limits = {"rho": 0, "eta": 0, "strength_clip": 1, "ascent_fraction": 1, "steps": 1, "every": 1}
    for options in (
        limits,
        {key: np.float32(x) if key not in ("steps", "every") else np.int64(x) for key, x in limits.items()},
        {"norm": 2.0, "strength_clip": math.inf, "ascent_fraction": 5e-324, "size_exponent": 0},
        {"norm": math.inf, "adaptive": "layer", "rho": 1e300},
    ):
        GASAM(parameters((3,)), SGD, lr=0.1, **options)


PRESETS: list[tuple[type[GASAM], dict[str, Any], type[Exception]]] = [
    *((kind, {"rho": -0.1}, ValueError) for kind in (SAM, ASAM, GSAM, FriendlySAM, LookSAM, SAMON, MSAM, WSAM)),
    (MultiStepRisk, {"rho": math.nan}, ValueError),
    (MultiStepRisk, {"steps": 0}, ValueError),
    (MultiStepRisk, {"steps": 1.5}, TypeError),
    (ASAM, {"eta": -1.0}, ValueError),
    (GSAM, {"alpha": math.nan}, ValueError),
    (GSAM, {"alpha": "0.4"}, TypeError),
    (FriendlySAM, {"sigma": math.inf}, ValueError),
    (FriendlySAM, {"lmbda": math.nan}, ValueError),
    (LookSAM, {"k": 0}, ValueError),
    (LookSAM, {"k": 2.5}, TypeError),
    (LookSAM, {"alpha": math.nan}, ValueError),
    (WSAM, {"gamma": 1.0}, ValueError),
    (WSAM, {"gamma": math.nan}, ValueError),
]


@pytest.mark.parametrize(("kind", "options", "error"), PRESETS, ids=[f"{c[0].__name__}-{c[1]}" for c in PRESETS])
def test_an_option_of_a_preset_out_of_its_range_is_refused_by_its_name(kind, options, error):
    [(argument, value)] = options.items()
    with pytest.raises(error, match=rf"^{argument} must be .*, got {re.escape(repr(value))}$"):
        kind(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)), SGD, **MOMENTUM, **options)


@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf, None, "0.1"])
def test_a_rho_of_a_group_is_checked_as_the_argument_is(rho):
    first, second = with_gradients((3,), (2,))
    error = ValueError if isinstance(rho, float) else TypeError
    with refused(error, "rho must be "):
        GASAM([{"params": [first]}, {"params": [second], "rho": rho}], SGD, lr=0.1)
    optimizer = GASAM([first], SGD, lr=0.1)
    before = contents(optimizer)
    with refused(error, "rho must be "):
        optimizer.add_param_group({"params": [second], "rho": rho})
    assert contents(optimizer) == before
    optimizer.add_param_group({"params": [second], "rho": 0.5})  # which the refused group did not leave "already there"
    assert [group["rho"] for group in optimizer.param_groups] == [0.05, 0.5]

    optimizer.param_groups[1]["rho"] = rho  # as a scheduler may set it
    for call in (optimizer.first_step, optimizer.perturb, lambda: optimizer.step(lambda: torch.zeros(()))):
        before = contents(optimizer)
        with refused(error, "rho must be "):
            call()
        assert contents(optimizer) == before


# --- the base optimizer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "text"),
    [
        ("SGD", "base_optimizer must be a class or an instance of torch.optim.Optimizer, got 'SGD'"),
        (None, "base_optimizer must be a class or an instance of torch.optim.Optimizer, got None"),
        (dict, "base_optimizer must be a class or an instance of torch.optim.Optimizer, got <class 'dict'>"),
        (
            lambda params: SGD(params),
            "base_optimizer must be a class or an instance of torch.optim.Optimizer, got <",
        ),
        (GASAM, "base_optimizer must not perturb the parameters itself, got GASAM"),
        (SAM, "base_optimizer must not perturb the parameters itself, got SAM"),
    ],
)
def test_what_is_no_base_optimizer_is_refused(base, text):
    with refused(TypeError, text):
        GASAM(parameters((3,)), base, lr=0.1)


def test_an_instance_that_perturbs_or_comes_with_options_is_refused():
    params = parameters((3,))
    with refused(TypeError, "base_optimizer must not perturb the parameters itself, got GASAM"):
        GASAM(params, GASAM(params, SGD, lr=0.1))
    base = SGD(params, lr=0.1)
    with refused(TypeError, "base_kwargs are for a class of base_optimizer, got 'lr' with an instance of SGD"):
        GASAM(params, base, lr=0.2)
    assert base.param_groups[0]["lr"] == 0.1


def test_a_base_that_calls_the_closure_itself_is_refused():
    params = parameters((3,))
    for base in (torch.optim.LBFGS, torch.optim.LBFGS(params)):
        with refused(ValueError, "base_optimizer must take one gradient a step, got LBFGS"):
            GASAM(params, base)


@pytest.mark.parametrize(("theirs", "text"), [(slice(1), "0 that"), (slice(1, 3), "1 that"), (slice(3), "1 that")])
def test_an_instance_over_other_parameters_is_refused(theirs, text):
    params = parameters((3,), (2,), (4,))
    base = SGD(params[theirs], **MOMENTUM)
    before = contents(base)
    with refused(ValueError, f"base_optimizer must be over the same parameters as params, got {text}"):
        GASAM(params[:2], base)
    assert contents(base) == before


@pytest.mark.parametrize(
    "only",
    ["norm", lambda name, p: False, [], nn.LayerNorm(3), [torch.ones(3)], iter([])],
    ids=["norm", "function", "nothing", "module", "other tensor", "iterator"],
)
def test_an_only_that_selects_nothing_is_refused(only):
    for params in (nn.Linear(2, 2), list(nn.Linear(2, 2).parameters())):
        with pytest.raises(ValueError, match=r"^only must select "):
            GASAM(params, SGD, lr=0.1, only=only)


@pytest.mark.parametrize(("kind", "options"), [(SGD, {}), (torch.optim.Adagrad, {}), (torch.optim.RMSprop, {})])
def test_the_momentum_preset_needs_a_momentum(kind, options):
    params = parameters((3,))
    text = f"base_optimizer must have momentum or betas, got {kind.__name__} with momentum="
    with refused(ValueError, text):
        MSAM(params, kind, lr=0.1, **options)
    with refused(ValueError, text):
        MSAM(params, kind(params, lr=0.1, **options))


def test_the_norm_preset_needs_a_norm_layer():
    with pytest.raises(ValueError, match=r"^only must select "):
        SAMON(nn.Linear(2, 2), SGD, lr=0.1)


# --- parameters -----------------------------------------------------------------------------------------------------

UNFIT = {
    "complex": (lambda: torch.zeros(3, dtype=torch.complex64), "must be real, got torch.complex64"),
    "expanded": (
        lambda: torch.zeros(1, 3).expand(4, 3),
        "must fill its memory without gaps or overlaps, got shape (4",
    ),
    "windows": (
        lambda: torch.zeros(6).unfold(0, 3, 1),
        "must fill its memory without gaps or overlaps, got shape (4",
    ),
    "with gaps": (
        lambda: torch.zeros(6)[::2],
        "must fill its memory without gaps or overlaps, got shape (3,)",
    ),
    "sparse": (lambda: torch.eye(3).to_sparse(), "must be strided, got torch.sparse_coo"),
}


@pytest.mark.parametrize(("make", "rule"), UNFIT.values(), ids=UNFIT)
def test_an_unfit_parameter_is_refused_by_its_name(make, rule):
    unfit = make().requires_grad_()
    with refused(ValueError, f"parameter '0.1' {rule}"):
        GASAM([*parameters((3,)), unfit], SGD, lr=0.1)
    with refused(ValueError, f"parameter 'scale' {rule}"):
        GASAM([("weight", *parameters((3,))), ("scale", unfit)], SGD, lr=0.1)
    net = nn.Linear(2, 2)
    net.extra = nn.Parameter(make())
    with refused(ValueError, f"parameter 'extra' {rule}"):
        GASAM(net, SGD, lr=0.1)

    optimizer = GASAM(parameters((3,), (2,)), SGD, **MOMENTUM)
    optimizer.step(lambda: fill(params_of(optimizer)))
    before = contents(optimizer)
    with refused(ValueError, f"parameter '1.0' {rule}"):
        optimizer.add_param_group({"params": [unfit]})
    assert contents(optimizer) == before
    optimizer.step(lambda: fill(params_of(optimizer)))


def test_parameters_that_share_memory_are_refused():
    whole = torch.zeros(10)
    a, b, c = (x.detach().requires_grad_() for x in (whole[:6], whole[5:], whole[6:]))
    with refused(ValueError, "parameters must not share memory, got '0.0' and '0.1' over the same elements"):
        GASAM([a, b], SGD, lr=0.1)
    optimizer = GASAM([a], SGD, lr=0.1)
    with refused(ValueError, "parameters must not share memory, got '0.0' and '1.0' over the same elements"):
        optimizer.add_param_group({"params": [b]})
    optimizer.add_param_group({"params": [c]})  # neighbours


def test_channels_need_rows_one_after_another():
    [p] = parameters((3, 4))
    q = p.detach().t().requires_grad_()
    with refused(ValueError, "parameter '0.0' must have its rows one after another in memory for segments='channel'"):
        GASAM([q], SGD, lr=0.1, segments="channel")
    GASAM([q], SGD, lr=0.1)
    last = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    GASAM([last], SGD, lr=0.1, segments="channel")


@pytest.fixture
def sharded() -> Iterator[Tensor]:
    """A DTensor over one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield DTensor.from_local(torch.ones(4, 2), init_device_mesh("cpu", (1,)), [Replicate()]).requires_grad_()
    finally:
        dist.destroy_process_group()


def test_channels_of_sharded_parameters_are_refused(sharded):
    with refused(ValueError, "parameter '0.0' must not be a DTensor for segments='channel'"):
        GASAM([sharded], SGD, lr=0.1, segments="channel")
    GASAM([sharded], SGD, lr=0.1)


def test_an_uninitialised_parameter_is_refused():
    with refused(ValueError, "parameter 'weight' must be initialised, run the model once before"):
        GASAM(nn.LazyLinear(3), SGD, lr=0.1)


def test_parameters_that_are_no_tensors_are_refused_in_torchs_words():
    for params, error, text in (
        ([1.0], TypeError, "optimizer can only optimize Tensors"),
        (torch.ones(3), TypeError, "params argument given to the optimizer should be an iterable"),
        ([], ValueError, "optimizer got an empty parameter list"),
        ([torch.ones(3, requires_grad=True) * 2], ValueError, "can't optimize a non-leaf Tensor"),
    ):
        with pytest.raises(error, match=text):
            GASAM(params, SGD, lr=0.1)


# --- gradients ------------------------------------------------------------------------------------------------------

SPARSE = "the gradient of parameter '{}' must be dense, got torch.sparse_coo"


def test_a_sparse_gradient_is_refused_by_the_name_of_its_parameter():
    net = nn.Sequential(nn.Linear(3, 3), nn.Embedding(5, 3, sparse=True))
    optimizer = GASAM(net, SGD, **MOMENTUM)

    def closure() -> Tensor:
        loss = (net[0].weight.square().sum() + net[0].bias.sum()) * net[1](torch.tensor([1, 2])).square().sum()
        loss.backward()
        return loss

    before = weights(optimizer)
    with refused(RuntimeError, SPARSE.format("1.weight")):
        optimizer.step(closure)
    assert weights(optimizer) == before
    assert not optimizer.is_perturbed
    assert not optimizer.state

    for call in (optimizer.first_step, optimizer.perturb, lambda: optimizer.perturbed().__enter__()):
        net.zero_grad()
        closure()
        before = contents(optimizer, net)
        with refused(RuntimeError, SPARSE.format("1.weight")):
            call()
        assert contents(optimizer, net) == before


def test_a_second_gradient_that_the_base_refuses_leaves_the_weights_before_the_ascent():
    params = parameters((3, 3), (2,))
    optimizer = GASAM(params, torch.optim.AdamW)
    optimizer.step(lambda: fill(params))
    before = contents(optimizer)
    calls = 0

    def closure() -> None:
        nonlocal calls
        calls += 1
        fill(params)
        if calls == 2:
            params[0].grad = torch.eye(3).to_sparse()

    with pytest.raises(RuntimeError, match="sparse gradients"):
        optimizer.step(closure)
    after = contents(optimizer)
    for key in ("params", "states", "options", "perturbed"):
        assert after[key] == before[key]
    optimizer.zero_grad()
    optimizer.step(lambda: fill(params))


def test_gradients_that_are_given_must_fit_the_parameters():
    params = parameters((3,), (2, 2))
    optimizer = GASAM(params, SGD, lr=0.1)
    fits = [torch.ones(3), torch.ones(2, 2)]
    for grads, error, text in (
        (fits[:1], ValueError, "grads must have one gradient for each perturbed parameter, got 1 for 2"),
        ([*fits, fits[0]], ValueError, "grads must have one gradient for each perturbed parameter, got 3 for 2"),
        ([fits[0], 1.0], TypeError, "grads must be tensors or None, got 1.0 for parameter '0.1'"),
        ([fits[0], torch.ones(4)], RuntimeError, "the gradient of parameter '0.1' must have the parameter's shape, "),
        ([fits[0].double(), fits[1]], RuntimeError, "the gradient of parameter '0.0' must have the parameter's dtype"),
        (
            [fits[0], fits[1].to("meta")],
            RuntimeError,
            "the gradient of parameter '0.1' must have the parameter's dev",
        ),
        ([fits[0], fits[1].to_sparse()], RuntimeError, SPARSE.format("0.1")),
    ):
        before = contents(optimizer)
        with refused(error, text):
            optimizer.perturb(grads)
        with refused(error, text), optimizer.perturbed(grads):
            pass
        assert contents(optimizer) == before
    optimizer.perturb([None, fits[1]])
    optimizer.restore()


CHANGES = {
    "shape": (lambda p: p.data[:2].clone(), "shape"),
    "dtype": (lambda p: p.data.double(), "dtype"),
    "strides": (lambda p: p.data.t().clone(memory_format=torch.contiguous_format).t(), "strides"),
}


@pytest.mark.parametrize(("change", "what"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("kind", [SGD, torch.optim.RMSprop])
def test_a_parameter_that_changed_while_perturbed_is_refused_until_it_is_as_before(kind, change, what):
    params = with_gradients((3, 3), (2,))
    optimizer = GASAM(params, kind, lr=0.1)
    clean = weights(optimizer)
    optimizer.first_step()
    perturbed, states = params[0].data, contents(optimizer)["states"]
    params[0].grad = None
    params[0].data = change(params[0])
    before = contents(optimizer)
    for call in (optimizer.restore, optimizer.second_step, optimizer.step):
        with refused(RuntimeError, f"parameter '0.0' must keep its {what} while it is perturbed, got "):
            call()
        assert contents(optimizer) == before
    params[0].data = perturbed
    optimizer.restore()
    assert weights(optimizer) == clean
    assert contents(optimizer)["states"] == states


def test_a_closure_without_a_backward_is_refused():
    net = model()
    optimizer = GASAM(net, SGD, **MOMENTUM)
    before = contents(optimizer)
    with pytest.raises(RuntimeError, match=r"has a gradient: call backward\(\)"):
        optimizer.step(lambda: torch.zeros(()))
    for call in (optimizer.first_step, optimizer.perturb, lambda: optimizer.perturbed().__enter__()):
        with pytest.raises(RuntimeError, match=r"has a gradient: call backward\(\)"):
            call()
    assert contents(optimizer) == before


# --- the order of calls ---------------------------------------------------------------------------------------------


def test_what_needs_an_ascent_names_it_when_it_is_missing():
    optimizer = GASAM(with_gradients((3,)), SGD, **MOMENTUM)
    before = contents(optimizer)
    for call, missing in (
        (optimizer.second_step, "first_step"),
        (optimizer.descent_step, "first_step"),
        (optimizer.step, "first_step"),
        (optimizer.restore, "perturb"),
        (optimizer.sharpness, "step"),
    ):
        with pytest.raises(RuntimeError, match=missing):
            call()
        assert contents(optimizer) == before


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_ascent_too_many_is_refused(steps):
    params = with_gradients((3,), (2,))
    optimizer = GASAM(params, SGD, **MOMENTUM, steps=steps)
    for _ in range(steps):
        optimizer.first_step()
    before = contents(optimizer)
    for call in (optimizer.first_step, optimizer.ascent_step):
        with pytest.raises(RuntimeError, match="second_step"):
            call()
        assert contents(optimizer) == before
    optimizer.second_step()
    assert not optimizer.is_perturbed


def test_a_perturbation_within_another_is_refused_and_the_outer_one_goes_on():
    params = with_gradients((3,), (2,))
    optimizer = GASAM(params, SGD, lr=0.1)
    clean = weights(optimizer)
    with optimizer.perturbed():
        before = contents(optimizer)
        with pytest.raises(RuntimeError, match="restore"), optimizer.perturbed():
            pass
        with pytest.raises(RuntimeError, match="restore"):
            optimizer.perturb()
        with pytest.raises(RuntimeError, match=r"call step\(\)"):
            optimizer.step(lambda: fill(params))
        assert contents(optimizer) == before
        assert weights(optimizer) != clean
    assert weights(optimizer) == clean


def test_a_perturbation_that_the_user_ended_is_not_ended_again():
    params = with_gradients((3,))
    optimizer = GASAM(params, SGD, lr=0.1)
    clean = weights(optimizer)
    with optimizer.perturbed():
        optimizer.restore()
        assert weights(optimizer) == clean
    assert weights(optimizer) == clean
    assert not optimizer.is_perturbed


def test_what_would_save_or_change_perturbed_weights_is_refused():
    params = parameters((3,), (2,))
    optimizer = GASAM(params[:1], SGD, **MOMENTUM)
    optimizer.step(lambda: fill(params[:1]))
    saved = optimizer.state_dict()
    optimizer.first_step()
    before = contents(optimizer)
    for call in (
        optimizer.state_dict,
        lambda: optimizer.load_state_dict(saved),
        lambda: optimizer.add_param_group({"params": params[1:]}),
    ):
        with pytest.raises(RuntimeError, match=r"call second_step\(\) or restore\(\)"):
            call()
        assert contents(optimizer) == before
    optimizer.second_step()
    optimizer.add_param_group({"params": params[1:]})
    optimizer.step(lambda: fill(params))


def test_dropout_is_shared_in_a_closure_only():
    params = parameters((3,))
    optimizer = GASAM(params, SGD, lr=0.1, share_dropout=True)
    before = contents(optimizer)
    with pytest.raises(RuntimeError, match=r"share_dropout.*closure"):
        optimizer.first_step()
    assert contents(optimizer) == before
    optimizer.step(lambda: fill(params))


def test_sharpness_needs_the_losses_of_a_closure_over_whole_batches():
    params = with_gradients((3,))
    optimizer = GASAM(params, SGD, lr=0.1)
    optimizer.first_step()
    optimizer.second_step(zero_grad=True)
    with pytest.raises(RuntimeError, match="closure"):
        optimizer.sharpness()
    optimizer.step(lambda: fill(params))  # which returns no loss
    with pytest.raises(RuntimeError, match="loss"):
        optimizer.sharpness()

    optimizer.zero_grad()
    optimizer = GASAM(params, SGD, lr=0.1, ascent_fraction=0.5)

    def closure(fraction: float) -> Tensor:
        fill(params)
        return torch.tensor(fraction)

    optimizer.step(closure)
    with pytest.raises(RuntimeError, match="fraction"):
        optimizer.sharpness()


# --- closures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "closure",
    [lambda: None, lambda fraction, /: None, lambda scale=1: None],
    ids=["nothing", "by place only", "another"],
)
def test_a_closure_that_takes_no_fraction_is_refused_before_it_is_called(closure):
    params = parameters((3,))
    optimizer = GASAM(params, SGD, lr=0.1, ascent_fraction=0.5)
    before = contents(optimizer)
    with refused(TypeError, "closure must take the keyword `fraction` when ascent_fraction is below 1, got "):
        optimizer.step(closure)
    assert contents(optimizer) == before


def test_a_closure_that_cannot_be_called_is_refused():
    params = parameters((3,))
    optimizer = GASAM(params, SGD, lr=0.1)
    before = contents(optimizer)
    with refused(TypeError, "closure must be callable, got 3"):
        optimizer.step(3)
    assert contents(optimizer) == before


@pytest.mark.parametrize("call", ["step", "first_step", "second_step", "restore", "perturb"])
@pytest.mark.parametrize("guilty", [1, 2])
def test_a_closure_that_does_the_work_of_step_is_refused(call, guilty):
    params = parameters((3,), (2,))
    optimizer = GASAM(params, SGD, **MOMENTUM)
    before = contents(optimizer)
    calls = 0

    def closure() -> None:
        nonlocal calls
        calls += 1
        fill(params)
        if calls == guilty:
            getattr(optimizer, call)()

    with pytest.raises(RuntimeError, match=r"must not be called by a closure|call first_step\(\) before"):
        optimizer.step(closure)
    after = contents(optimizer)
    for key in ("params", "states", "options", "perturbed"):
        assert after[key] == before[key]
    optimizer.step(lambda: fill(params))


def test_a_group_that_the_rule_of_only_leaves_out_can_be_added():
    net = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    optimizer = SAMON(net, SGD, lr=0.1)
    [extra] = parameters((3,))
    optimizer.add_param_group({"params": [("extra", extra)]})
    optimizer.step(lambda: fill(params_of(optimizer)))
    assert list(optimizer.strengths()) == ["1.weight", "1.bias"]


@pytest.mark.parametrize("kind", [SGD, torch.optim.AdamW, torch.optim.RMSprop])
@pytest.mark.parametrize("risk", ["last", "average"])
@pytest.mark.parametrize("raising", [1, 2, 3])
@pytest.mark.parametrize("late", [False, True], ids=["before backward", "after backward"])
def test_a_closure_that_raises_in_any_pass_leaves_all_as_it_was(kind, risk, raising, late):
    net = model()
    net[0].bias.requires_grad_(False)
    optimizer = GASAM(net, kind, lr=0.1, steps=2, risk=risk, only="norm")
    good = closure_of(net)
    optimizer.step(good)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == raising and not late:
            raise KeyError("pass")
        loss = good()
        if calls == raising:
            raise KeyError("pass")
        return loss

    before = contents(optimizer, net)
    with pytest.raises(KeyError, match="pass"):
        optimizer.step(closure)
    after = contents(optimizer, net)
    for key in ("params", "states", "options", "perturbed", "buffers", "hooks"):
        assert after[key] == before[key]
    optimizer.step(good)


def test_an_interrupt_within_a_perturbation_restores_too():
    params = with_gradients((3,))
    optimizer = GASAM(params, SGD, lr=0.1)
    clean = weights(optimizer)
    with pytest.raises(KeyboardInterrupt), optimizer.perturbed():
        raise KeyboardInterrupt
    assert weights(optimizer) == clean
    assert not optimizer.is_perturbed


class Signal:
    """Sends Ctrl-C at the n-th moment at which Python listens, within the package or around a call of its kernels."""

    def __init__(self, n: int) -> None:
        self.n, self.seen = n, 0

    def __enter__(self) -> Signal:
        sys.setprofile(self.profile)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def profile(self, frame: Any, event: str, _: object) -> None:
        here = frame.f_code.co_filename
        if event in ("call", "c_return") and ("/gasam/" in here or here.endswith("/torch/_ops.py")):
            self.seen += 1
            if self.seen == self.n:
                signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("how", ["closure", "calls", "context"])
@pytest.mark.parametrize("kind", [GASAM, MultiStepRisk])
def test_ctrl_c_at_any_moment_of_a_step_leaves_the_weights_before_it_or_after_it(kind: type[GASAM], how: str):
    def fresh() -> tuple[GASAM, Callable[[], None]]:
        net = model()
        optimizer = kind(net, SGD, **MOMENTUM)
        closure = closure_of(net)
        optimizer.step(closure)

        def step() -> None:
            if how == "closure":
                optimizer.step(closure)
            else:
                closure()
                with contextlib.ExitStack() as stack:
                    if how == "calls":
                        optimizer.perturb()
                    else:
                        stack.enter_context(optimizer.perturbed())
                    closure()
                optimizer.step()

        return optimizer, step

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        optimizer, step = fresh()
        before = [bits(p) for p in params_of(optimizer)]
        with Signal(0) as counted:
            step()
        after = [bits(p) for p in params_of(optimizer)]
        assert before != after
        for n in range(1, counted.seen + 1, 1 if how == "closure" else 3):
            optimizer, step = fresh()
            with pytest.raises(KeyboardInterrupt), Signal(n):
                step()
            if how == "calls" and optimizer.is_perturbed:
                optimizer.restore()
            assert not optimizer.is_perturbed
            assert [bits(p) for p in params_of(optimizer)] in (before, after), f"after moment {n} of {counted.seen}"
    finally:
        signal.signal(signal.SIGINT, previous)


# --- gradients that are missing, zero, or not finite ----------------------------------------------------------------


@pytest.mark.parametrize("kind", [SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_a_parameter_without_a_first_gradient_is_not_perturbed(kind):
    params = parameters((3,), (2,))
    twins = [p.detach().clone().requires_grad_() for p in params]
    optimizer = GASAM(params, kind, lr=0.1)
    base = kind(twins, lr=0.1)
    seen = []

    def closure() -> None:
        seen.append([bits(p) for p in params])
        fill(params)
        if len(seen) == 1:
            params[0].grad = None

    optimizer.step(closure)
    assert seen[1][0] == seen[0][0]
    assert seen[1][1] != seen[0][1]
    fill(twins)
    base.step()
    assert_near(params, twins)


@pytest.mark.parametrize("kind", [SGD, torch.optim.AdamW, torch.optim.RMSprop])
@pytest.mark.parametrize("second", [None, 0.0])
def test_a_parameter_without_a_second_gradient_is_restored(kind, second):
    params = parameters((3,), (2,))
    twins = [p.detach().clone().requires_grad_() for p in params]
    optimizer, base = GASAM(params, kind, **({"momentum": 0.9} if kind is SGD else {}), lr=0.1), None
    base = kind(twins, **({"momentum": 0.9} if kind is SGD else {}), lr=0.1)
    for _ in range(3):
        calls = 0

        def closure() -> None:
            nonlocal calls
            calls += 1
            fill(params, calls)
            if calls == 2:
                params[0].grad = None if second is None else torch.zeros(3)

        optimizer.step(closure)
        fill(twins, 2)
        twins[0].grad = None if second is None else torch.zeros(3)
        base.step()
        assert_near(params, twins)
    assert (params[0] in optimizer.state) == (second is not None)


def test_a_gradient_of_zeros_is_no_direction():
    params = parameters((3,), (2,))
    optimizer = GASAM(params, SGD, lr=0.1)
    clean = weights(optimizer)
    optimizer.perturb([torch.zeros(3), torch.ones(2)])
    assert weights(optimizer)[0] == clean[0]
    assert weights(optimizer)[1] != clean[1]
    assert optimizer.strengths()["0.0"] == 0
    optimizer.restore()
    optimizer.perturb([torch.zeros(3), torch.zeros(2)])
    assert weights(optimizer) == clean
    optimizer.restore()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [SGD, torch.optim.AdamW, torch.optim.RMSprop])
@pytest.mark.parametrize("segments", ["tensor", "global", "channel"])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("norm", [2, math.inf])
def test_an_ascent_gradient_that_is_not_finite_makes_a_plain_step(bad, kind, segments, steps, norm):
    params = parameters((3, 2), (5,))
    twins = [p.detach().clone().requires_grad_() for p in params]
    optimizer = GASAM(params, kind, lr=0.1, segments=segments, steps=steps, norm=norm)
    optimizer.step(lambda: fill(params))
    for p, q in zip(params, twins, strict=True):
        q.data = p.detach().clone()
    base = kind(twins, lr=0.1)
    base.load_state_dict(copy.deepcopy(optimizer.base_optimizer.state_dict()))  # or they would share tensors
    running = bits(optimizer.state_dict()["gasam"]["running"])
    seen = []

    def closure() -> Tensor:
        seen.append([bits(p) for p in params])
        fill(params, len(seen))
        if len(seen) == 1:
            params[1].grad[3] = bad
        return torch.tensor(1.0 + len(seen))

    optimizer.step(closure)
    fill(twins, len(seen))
    base.step()
    assert len(seen) == steps + 1
    assert all(each == seen[0] for each in seen)
    assert_near(params, twins)
    assert bits(optimizer.state_dict()["gasam"]["running"]) == running
    assert math.isnan(optimizer.sharpness())
    assert int(optimizer.skipped_ascents) == 1
    assert all(s.isnan().all() for s in optimizer.strengths().values())
    optimizer.step(lambda: fill(params))
    assert int(optimizer.skipped_ascents) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_second_ascent_gradient_that_is_not_finite_moves_no_further(bad):
    params = parameters((3, 2), (5,))
    optimizer = GASAM(params, SGD, lr=0.1, steps=2)
    clean = [bits(p) for p in params]
    seen = []

    def closure() -> None:
        seen.append([bits(p) for p in params])
        fill(params, len(seen))
        if len(seen) == 2:
            params[1].grad[3] = bad

    optimizer.step(closure)
    twins = [p.detach().clone() for p in parameters((3, 2), (5,))]
    fill(twins, 3)
    assert seen[1] != clean
    expected = [p - 0.1 * p.grad for p in twins]
    torch.testing.assert_close([p.detach() for p in params], expected, rtol=0, atol=1e-6)
    assert all(p.isfinite().all() for p in params)


# --- GradScaler -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SGD, torch.optim.AdamW, torch.optim.RMSprop])
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("infinite", ["first", "second", "both"])
def test_an_overflow_is_followed_by_a_normal_step_from_the_same_weights(kind, unscale, infinite):
    params = parameters((3, 2), (5,))
    optimizer = GASAM(params, kind, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def run(first: float, second: float) -> None:
        for factor, last in ((first, False), (second, True)):
            scaler.scale(sum(p.square().sum() for p in params) * factor).backward()
            if last:
                if unscale:
                    scaler.unscale_(optimizer)
                scaler.step(optimizer)
            else:
                optimizer.first_step(zero_grad=True, scaler=scaler)
        scaler.update()
        optimizer.zero_grad()

    optimizer.zero_grad()
    run(1.0, 1.0)
    before = contents(optimizer)
    run(math.inf if infinite != "second" else 1.0, math.inf if infinite != "first" else 1.0)
    assert not optimizer.is_perturbed
    after = contents(optimizer)
    if infinite == "first":
        assert after["params"] != before["params"]
        assert scaler.get_scale() == 1024
        assert int(optimizer.skipped_ascents) == 1
    else:
        assert after["params"] == before["params"]
        assert after["states"] == before["states"]
        assert scaler.get_scale() == 512
    run(1.0, 1.0)
    assert weights(optimizer) != [(pointer, x) for pointer, _, x in after["params"]]
    assert all(p.isfinite().all() for p in params)


def test_a_closure_that_a_scaler_passes_on_is_refused():
    net = model()
    optimizer = GASAM(net, SGD, **MOMENTUM)
    scaler = torch.amp.GradScaler("cpu")
    closure = closure_of(net)
    scaler.scale(closure())
    before = contents(optimizer, net)
    with pytest.raises(RuntimeError, match=r"first_step.*scaler"):
        scaler.step(optimizer, closure)
    assert contents(optimizer, net) == before


# --- flatness -------------------------------------------------------------------------------------------------------


def test_data_that_is_used_up_by_one_pass_is_refused():
    net = nn.Linear(4, 2)

    def loss(net: nn.Module, batch: Tensor) -> Tensor:
        return net(batch).square().mean()

    before = [bits(p) for p in net.parameters()]
    for data in (iter([torch.ones(2, 4)]), (x for x in [torch.ones(2, 4)])):
        with pytest.raises(TypeError, match=r"^data must be re-iterable"):
            top_eigenvalue(net, loss, data)
        with pytest.raises(TypeError, match=r"^data must be re-iterable"):
            loss_in_ball(net, loss, data, [0.1])
    assert [bits(p) for p in net.parameters()] == before


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda own: [1], TypeError, r"state_dict\['gasam'\] must be a dict, got \[1\]"),
        (lambda own: {**own, "step": "x"}, ValueError, "must be a non-negative integer, got 'x'"),
        (lambda own: {**own, "running": torch.zeros(3)}, ValueError, r"'running'\] must be a tensor of shape \(2,\)"),
        (lambda own: {**own, "seed": 3}, ValueError, r"'seed'\] must be a tensor of shape \(\), got 3"),
        (lambda own: {**own, "mean_gradient": [1]}, TypeError, r"'mean_gradient'\] must be a dict, got \[1\]"),
    ],
)
def test_a_damaged_checkpoint_is_refused_before_anything_is_loaded(
    damage: Any, error: type[Exception], message: str
) -> None:
    optimizer = FriendlySAM(torch.nn.Linear(3, 1), torch.optim.SGD, lr=0.1)
    saved = optimizer.state_dict()
    saved["gasam"] = damage(saved["gasam"])
    saved["param_groups"][0]["lr"] = 0.9
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_scaler_and_a_watched_module_are_what_they_are_called() -> None:
    optimizer = SAM(torch.nn.Linear(3, 1), torch.optim.SGD, lr=0.1)
    with pytest.raises(TypeError, match=r"scaler must be a torch.amp.GradScaler, got 3"):
        optimizer.first_step(scaler=3)
    with pytest.raises(TypeError, match=r"module must be an nn.Module, got 3"):
        optimizer.watch(3)


def replaced(*path: Any, by: Any) -> Callable[[dict[str, Any]], None]:
    def change(tree: Any) -> None:
        *others, last = path
        for key in others:
            tree = tree[key]
        tree[last] = by

    return change


GROUP = '["param_groups"][1]'
DAMAGES = [
    (lambda tree: tree.pop("state"), "", 'must have the key "state", got '),
    (lambda tree: tree.pop("param_groups"), "", 'must have the key "param_groups", got '),
    (replaced("state", by=3), '["state"]', "must be a dict, got 3"),
    (replaced("state", 2, by=[]), '["state"][2]', "must be a dict, got []"),
    (replaced("param_groups", by={}), '["param_groups"]', "must be a list, got {}"),
    (replaced("param_groups", 1, by=None), GROUP, "must be a dict, got None"),
    (lambda tree: tree["param_groups"].pop(), '["param_groups"]', "must have as many groups as the optimizer, 2, g"),
    (lambda tree: tree["param_groups"][1].pop("params"), GROUP, 'must have the key "params", got '),
    (replaced("param_groups", 1, "params", by=[]), f'{GROUP}["params"]', "must have as many entries as the optim"),
    (replaced("param_groups", 1, "params", 0, by=None), f'{GROUP}["params"][0]', "must be an integer or a name, got N"),
    (replaced("param_groups", 1, "lr", by=torch.ones(2)), f'{GROUP}["lr"]', "must be one real number, got shape (2,)"),
    (replaced("param_groups", 1, "lr", by="x"), f'{GROUP}["lr"]', "must be a number, got 'x'"),
    (replaced("param_groups", 1, "lr", by=math.nan), f'{GROUP}["lr"]', "must be a number that a float holds, got nan"),
    (replaced("param_groups", 1, "lr", by=-1.0), f'{GROUP}["lr"]', "must be an option of Adam, got -1.0: Invalid"),
    (replaced("param_groups", 1, "betas", by=(0.9, 1)), f'{GROUP}["betas"]', "must be an option of Adam, got (0.9, 1)"),
    (replaced("param_groups", 1, "betas", by=(0.9,)), f'{GROUP}["betas"]', "must have 2 entries, got 1"),
    (replaced("param_groups", 1, "amsgrad", by=1), f'{GROUP}["amsgrad"]', "must be True or False, got 1"),
    (replaced("param_groups", 1, "rho", by=-1), f'{GROUP}["rho"]', "must be finite and non-negative, got -1"),
    (lambda tree: tree["state"][2].pop("step"), '["state"][2]', 'must have the key "step", got '),
    (replaced("state", 2, "step", by=torch.ones(2)), '["state"][2]["step"]', "must be one real number, got shape (2,)"),
    (replaced("state", 2, "step", by=-1), '["state"][2]["step"]', "must be non-negative, got -1"),
    (replaced("state", 2, "exp_avg", by=None), '["state"][2]["exp_avg"]', "must be a tensor, got None"),
    (
        replaced("state", 2, "exp_avg", by=torch.ones(3)),
        '["state"][2]["exp_avg"]',
        "must have the shape (2, 2) of parameter 2, got (3,)",
    ),
    (
        replaced("state", 2, "exp_avg", by=torch.ones(2, 2, dtype=torch.int64)),
        '["state"][2]["exp_avg"]',
        "must be dense and of floating point, got torch.int64",
    ),
    (
        replaced("state", 2, "exp_avg", by=torch.ones(2, 2, device="meta")),
        '["state"][2]["exp_avg"]',
        "must be a tensor with values, got one on the device meta",
    ),
    (
        replaced("state", 2, "of_another_base", by=torch.ones(2, dtype=torch.complex64)),
        '["state"][2]["of_another_base"]',
        "must be real, as the parameter is, got torch.complex64",
    ),
    (
        replaced("param_groups", 1, "fused", by=torch.zeros(2)),
        '["param_groups"][1]["fused"]',
        "must be None, True or False, got tensor([0., 0.])",
    ),
    (
        replaced("param_groups", 1, "rho", by=10**400),
        '["param_groups"][1]["rho"]',
        "must be finite and non-negative, got 1000",
    ),
]  # fmt: skip


def over_two_groups(kind: type[torch.optim.Optimizer], steps: int) -> GASAM:
    a, b, c = params = parameters((3,), (2,), (2, 2))
    optimizer = GASAM([{"params": [a, b]}, {"params": [c]}], kind, lr=0.1)
    for t in range(steps):
        optimizer.step(lambda t=t: fill(params, t))
    return optimizer


@pytest.mark.parametrize(("damage", "place", "rule"), DAMAGES, ids=[f"{case[1]} {case[2]}" for case in DAMAGES])
def test_what_is_no_checkpoint_of_the_base_is_refused_by_its_place(damage: Any, place: str, rule: str) -> None:
    optimizer, saved = over_two_groups(torch.optim.Adam, 1), over_two_groups(torch.optim.Adam, 2).state_dict()
    saved = copy.deepcopy(saved)
    damage(saved)
    before = contents(optimizer)
    with pytest.raises((ValueError, TypeError), match="^" + re.escape(f"state_dict{place} {rule}")):
        optimizer.load_state_dict(saved)
    assert contents(optimizer) == before


def test_what_the_base_refuses_at_last_leaves_it_as_it_was() -> None:
    class Late(SGD):
        def __setstate__(self, state: dict[str, Any]) -> None:
            super().__setstate__(state)
            raise KeyError("late")

    optimizer = over_two_groups(Late, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["lr"] = 0.9
    before = contents(optimizer)
    with refused(ValueError, "state_dict must be a checkpoint of Late, which misses 'late'"):
        optimizer.load_state_dict(saved)
    assert contents(optimizer) == before


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every branch of a tree of dicts and lists: what holds it, and its key there."""
    found = []
    for key, x in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        found.append((tree, key))
        if isinstance(x, dict | list):
            found += places(x)
    return found


JUNK = st.sampled_from(
    [None, True, -1, 7, 2.5, math.nan, 10**400, "x", (), [], {}, {"x": 1}, (0.9, 0.9), [0.1, 2], object()]
    + [torch.zeros(()), torch.zeros(2), torch.zeros(2, 2), torch.zeros(3, device="meta"), torch.eye(2).to_sparse()]
    + [torch.zeros(2, 2, dtype=dtype) for dtype in (torch.int64, torch.bool, torch.complex64)]
)


@pytest.mark.parametrize("kind", [SGD, torch.optim.Adam, torch.optim.RMSprop])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_spoilt_checkpoint_is_refused_by_a_place_or_loaded(kind: type[torch.optim.Optimizer], data: Any) -> None:
    optimizer, saved = over_two_groups(kind, 1), copy.deepcopy(over_two_groups(kind, 2).state_dict())
    holder, key = data.draw(st.sampled_from(places(saved)), label="place")
    if isinstance(holder, dict) and data.draw(st.booleans(), label="is missing"):
        del holder[key]
    else:
        holder[key] = data.draw(JUNK, label="value")
    before, refusal = contents(optimizer), None
    try:
        optimizer.load_state_dict(saved)
    except (ValueError, TypeError) as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.startswith("state_dict")
        assert contents(optimizer) == before


def test_a_gradient_of_a_parameter_of_integers_is_refused_by_its_name() -> None:
    [weight], codes = parameters((3,)), torch.zeros(3, dtype=torch.int64)
    optimizer = GASAM([("weight", weight), ("codes", codes)], SGD, lr=0.1)
    optimizer.step(lambda: fill([weight]))
    fill([weight])
    codes.grad = torch.ones_like(codes)
    before = contents(optimizer)
    with refused(
        RuntimeError, "parameter 'codes' must be of float32, float64, bfloat16 or float16 to have a gradient, "
    ):
        optimizer.first_step()
    assert contents(optimizer) == before
