"""AdaMod against the two other packages that have it, and their checkpoints in our hands."""

from __future__ import annotations

import copy
import importlib
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adamod import AdaMod, _ops

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

needs_kernel = pytest.mark.skipif("cpu" not in _ops.KERNELS, reason="the package was built without its C++ kernels")
PATHS = {
    "operator": {"fused": True},
    "foreach": {"foreach": True, "fused": False},
    "loop": {"foreach": False, "fused": False},
}
EVERY_PATH = pytest.mark.parametrize(
    "path", [pytest.param(name, marks=needs_kernel) if name == "operator" else name for name in PATHS]
)
SHAPES = ((40, 30), (7,), (2, 3, 5), (1,))
OPTIONS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.999), "beta3": 0.99, "eps": 1e-3, "weight_decay": 0.1}


def peer(name: str) -> ModuleType:
    """A module of another package, or a skip; what it warns of when it is imported is its own affair."""
    pytest.importorskip(name.partition(".")[0], reason=f"{name.partition('.')[0]} is not installed (group peers)")
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def torch_optimizer() -> ModuleType:
    """The 2019 implementation; its package imports what others there need, with warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peer("torch_optimizer")


@pytest.fixture(scope="module")
def pytorch_optimizer() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peer("pytorch_optimizer")


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def train(optimizer: torch.optim.Optimizer, first: int, last: int) -> list[Tensor]:
    """Steps `first` to `last` with the same float32 gradients for every optimizer; returns the parameters."""
    params = params_of(optimizer)
    for t in range(first, last + 1):
        generator = torch.Generator().manual_seed(t)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()
    return [p.detach() for p in params]


def triple(options: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Our options in the words of `pytorch_optimizer`."""
    options = {**options, **more}
    return {**options, "betas": (*options["betas"], options.pop("beta3"))}


def assert_equal(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def greatest_difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


# --- torch_optimizer and the release of 2019 ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, OPTIONS, {"beta3": 0, "betas": (0.0, 0.5), "lr": 0.3}], ids=len)
def test_the_loop_is_torch_optimizers_bit_for_bit(
    torch_optimizer: ModuleType, dtype: torch.dtype, options: dict[str, Any]
):
    theirs = torch_optimizer.AdaMod(parameters(dtype), **options)
    ours = AdaMod(parameters(dtype), **options, **PATHS["loop"])
    assert_equal(train(ours, 1, 300), train(theirs, 1, 300))
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        mine, its = ours.state[p], theirs.state[q]
        assert mine["step"] == its["step"] == 300
        assert_equal([mine[key] for key in mine if key != "step"], [its[key] for key in mine if key != "step"])


def test_positional_arguments_mean_the_same(torch_optimizer: ModuleType):
    arguments = (1e-2, (0.8, 0.99), 0.9, 1e-4, 0.2)
    ours, theirs = (kind(parameters(), *arguments) for kind in (AdaMod, torch_optimizer.AdaMod))
    ours.param_groups[0].update(PATHS["loop"])
    assert_equal(train(ours, 1, 10), train(theirs, 1, 10))


@EVERY_PATH
def test_every_path_is_as_exact_as_torch_optimizer(
    torch_optimizer: ModuleType, path: str, assert_within_twice: Callable[..., None]
):
    before = parameters()
    exact = train(torch_optimizer.AdaMod([nn.Parameter(p.detach().double()) for p in before], **OPTIONS), 1, 300)
    reference = train(torch_optimizer.AdaMod(parameters(), **OPTIONS), 1, 300)
    actual = train(AdaMod(parameters(), **OPTIONS, **PATHS[path]), 1, 300)
    rows = [torch.cat([x.detach().flatten() for x in xs]) for xs in (actual, reference, exact, before)]
    assert_within_twice(rows[0], rows[1], rows[2].numpy().astype(np.longdouble), rows[3])


@EVERY_PATH
@pytest.mark.parametrize("state_dtype", [None, torch.float32], ids=str)
def test_a_checkpoint_of_torch_optimizer_goes_on_where_it_was(
    torch_optimizer: ModuleType, path: str, state_dtype: torch.dtype | None
):
    theirs = torch_optimizer.AdaMod(parameters(), **OPTIONS)
    train(theirs, 1, 40)
    saved = theirs.state_dict()
    assert all(type(state["step"]) is int for state in saved["state"].values())
    unchanged = copy.deepcopy(saved)
    ours = AdaMod([nn.Parameter(p.detach().clone()) for p in params_of(theirs)], state_dtype=state_dtype, **PATHS[path])
    ours.load_state_dict(saved)

    assert {key: ours.param_groups[0][key] for key in OPTIONS} == OPTIONS
    assert repr(saved) == repr(unchanged)
    assert_equal(
        [x for state in ours.state.values() for key, x in state.items() if key != "step"],
        [x for state in theirs.state.values() for key, x in state.items() if key != "step"],
    )
    expected = train(theirs, 41, 80)
    actual = train(ours, 41, 80)
    if path == "loop":
        assert_equal(actual, expected)
    else:
        assert greatest_difference(actual, expected) < 1e-6
    assert all(state["step"] == 80 for state in ours.state.values())


@EVERY_PATH
@pytest.mark.parametrize("state_dtype", [torch.bfloat16, "int8"], ids=str)
def test_its_states_are_taken_over_in_low_precision(torch_optimizer: ModuleType, path: str, state_dtype: Any):
    if path == "foreach":
        pytest.skip("lists have float32 states only")
    theirs = torch_optimizer.AdaMod([nn.Parameter(torch.zeros(70, 70))], **OPTIONS)
    train(theirs, 1, 40)
    ours = AdaMod([p.detach().clone() for p in params_of(theirs)], state_dtype=state_dtype, **PATHS[path])
    ours.load_state_dict(theirs.state_dict())
    (state,) = ours.state.values()
    assert state["exp_avg_lr"].dtype == (torch.uint8 if state_dtype == "int8" else torch.bfloat16)
    start = [p.detach().clone() for p in params_of(theirs)]
    expected, actual = train(theirs, 41, 60), train(ours, 41, 60)
    moved = max(float((a - b).abs().mean()) for a, b in zip(expected, start, strict=True))
    assert float((actual[0] - expected[0]).abs().mean()) < 0.1 * moved


@EVERY_PATH
def test_a_checkpoint_of_2019_that_was_written_on_disk_can_be_loaded(path: str, tmp_path: Any):
    # Its state_dict as torch 1.x wrote it: steps are ints, and no group has an option that torch added since.
    fresh = AdaMod(parameters(), **OPTIONS, **PATHS[path])
    train(fresh, 1, 5)
    keys = ("exp_avg", "exp_avg_sq", "exp_avg_lr")
    state = {
        k: {"step": 5, **{key: fresh.state[p][key].clone() for key in keys}} for k, p in enumerate(params_of(fresh))
    }
    torch.save({"state": state, "param_groups": [{**OPTIONS, "params": list(range(len(state)))}]}, tmp_path / "2019.pt")
    resumed = AdaMod([nn.Parameter(p.detach().clone()) for p in params_of(fresh)], **PATHS[path])
    resumed.load_state_dict(torch.load(tmp_path / "2019.pt", weights_only=True))
    assert_equal(train(resumed, 6, 10), train(fresh, 6, 10))
    assert all(type(x["step"]) is Tensor and x["step"] == 10 for x in resumed.state.values())


# --- pytorch_optimizer ----------------------------------------------------------------------------------------------


@EVERY_PATH
@pytest.mark.parametrize("foreach", [False, True])
def test_pytorch_optimizer_agrees_at_equal_betas(pytorch_optimizer: ModuleType, path: str, foreach: bool):
    options = {**OPTIONS, "eps": 1e-8}
    theirs = train(pytorch_optimizer.AdaMod(parameters(), **triple(options), foreach=foreach), 1, 300)
    ours = train(AdaMod(parameters(), **options, **PATHS[path]), 1, 300)
    assert greatest_difference(ours, theirs) < 2e-5  # measured 8.7e-6: it works in another order


@EVERY_PATH
def test_pytorch_optimizer_agrees_to_the_last_digits_in_float64(pytorch_optimizer: ModuleType, path: str):
    theirs = train(pytorch_optimizer.AdaMod(parameters(torch.float64), **triple(OPTIONS), foreach=False), 1, 100)
    ours = train(AdaMod(parameters(torch.float64), **OPTIONS, **PATHS[path]), 1, 100)
    assert greatest_difference(ours, theirs) < 1e-12


def test_its_default_betas_are_neither_the_papers_nor_the_codes(pytorch_optimizer: ModuleType):
    theirs = train(pytorch_optimizer.AdaMod(parameters()), 1, 20)
    assert greatest_difference(train(AdaMod(parameters()), 1, 20), theirs) > 1e-6
    same = train(AdaMod(parameters(), betas=(0.9, 0.99), beta3=0.9999), 1, 20)
    assert greatest_difference(same, theirs) < 1e-8 + 2 * torch.finfo(torch.float32).eps * 4


@EVERY_PATH
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_a_checkpoint_of_pytorch_optimizer_goes_on_where_it_was(
    pytorch_optimizer: ModuleType, path: str, foreach: bool, maximize: bool
):
    options = triple(OPTIONS, maximize=maximize, foreach=foreach)
    theirs = pytorch_optimizer.AdaMod(parameters(torch.float64), **options)
    train(theirs, 1, 40)
    ours = AdaMod([nn.Parameter(p.detach().clone()) for p in params_of(theirs)], maximize=maximize, **PATHS[path])
    ours.load_state_dict(theirs.state_dict())
    (group,) = ours.param_groups
    assert {key: group[key] for key in OPTIONS} == OPTIONS
    assert not {"step", "weight_decouple", "fixed_decay", "adam_debias"} & set(group)
    assert group["maximize"] is maximize  # theirs is no option of the group
    assert {key: group[key] for key in PATHS[path]} == PATHS[path]  # how it steps is ours to choose
    expected, actual = train(theirs, 41, 80), train(ours, 41, 80)
    assert greatest_difference(actual, expected) < 1e-12
    assert all(state["step"] == 80 for state in ours.state.values())


@pytest.mark.parametrize("option", [{"weight_decouple": False}, {"fixed_decay": True}], ids=str)
def test_what_its_checkpoints_have_and_adamod_has_not_is_refused(
    pytorch_optimizer: ModuleType, option: dict[str, bool]
):
    theirs = pytorch_optimizer.AdaMod(parameters(), **triple(OPTIONS), **option)
    train(theirs, 1, 3)
    ours = AdaMod(parameters())
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(ValueError, match=next(iter(option))):
        ours.load_state_dict(theirs.state_dict())
    assert repr(ours.state_dict()) == repr(before)


@EVERY_PATH
def test_a_parameter_that_comes_late_counts_its_own_steps_and_not_its_groups(
    pytorch_optimizer: ModuleType, torch_optimizer: ModuleType, path: str
):
    def late(optimizer: torch.optim.Optimizer) -> Tensor:
        early, p = params_of(optimizer)
        for t in range(1, 111):
            generator = torch.Generator().manual_seed(t)
            early.grad, g = torch.randn(5, generator=generator), torch.randn(5, generator=generator)
            p.grad = g if t > 100 else None
            optimizer.step()
        return p.detach()

    def pair() -> list[nn.Parameter]:
        return [nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))]

    options = {"lr": 1e-2, "beta3": 0.9}
    ours = late(AdaMod(pair(), **options, **PATHS[path]))
    assert greatest_difference([ours], [late(torch_optimizer.AdaMod(pair(), **options))]) < 1e-6
    groupwise = late(pytorch_optimizer.AdaMod(pair(), **triple({"betas": (0.9, 0.999), **options})))
    assert greatest_difference([ours], [groupwise]) > 1e-4
