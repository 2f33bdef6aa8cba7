"""All of torch's optimizers as bases, through its public table of configurations.

The table, `torch.testing._internal.common_optimizers`, comes with torch. The tests that PyTorch runs over it
(`TestOptimRenewed` in its test_optim.py) do not; docstrings name the one whose subject is taken up.
"""

from __future__ import annotations

import copy
import io
import pickle
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from gasam import ASAM, GASAM, GSAM, MSAM, SAM, SAMON, WSAM, FriendlySAM, LookSAM, MultiStepRisk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

table = pytest.importorskip(
    "torch.testing._internal.common_optimizers",
    reason="torch's table of optimizers cannot be imported: it needs expecttest and setuptools",
    exc_type=ImportError,
)
INFOS = {
    info.name: info for info in table.optim_db if not info.step_requires_closure and not info.only_supports_sparse_grads
}
PATHS = {"foreach": {"foreach": True}, "fused": {"fused": True}}
FUSED_HERE = ("SGD", "Adam", "AdamW")  # their steps are ours, up to rounding


def paths_of(info: Any) -> list[str]:
    paths = ["default", *(path for path in PATHS if path in info.supported_impls)]
    return [path for path in paths if path != "fused" or "cpu" in info.supports_fused_on]


CONFIGS = [
    pytest.param(name, given.desc, path, id=f"{name}-{given.desc}-{path}")
    for name, info in INFOS.items()
    for given in info.optim_inputs_func("cpu")
    for path in paths_of(info)
    if not (path == "foreach" and isinstance(given.kwargs.get("lr"), Tensor))  # torch refuses it without capturable
]
EVERY_CONFIG = pytest.mark.parametrize(("name", "config", "path"), CONFIGS)
EVERY_PATH = pytest.mark.parametrize(
    ("name", "path"), [(name, path) for name, info in INFOS.items() for path in paths_of(info)]
)
EVERY_BASE = pytest.mark.parametrize("name", INFOS)


def options_of(name: str, config: str, path: str = "default") -> dict[str, Any]:
    (given,) = (given for given in INFOS[name].optim_inputs_func("cpu") if given.desc == config)
    return {**given.kwargs, **PATHS.get(path, {})}


def base_options(name: str, config: str, path: str = "default") -> dict[str, Any]:
    """Those that a wrapper passes on: the name `rho` is its own."""
    options = options_of(name, config, path)
    options.pop("rho", None)
    return options


def parameters(name: str, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    shapes = ((3, 2), (4, 5)) if name == "Muon" else ((3, 2), (3,), (), (4, 5))
    if name not in ("Muon", "Adafactor"):  # which divides by the number of elements
        shapes = (*shapes, (0,))
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def set_gradients(params: Sequence[Tensor], t: int) -> None:
    """Gradients of step t that do not depend on the weights; the second one is missing at times."""
    for k, p in enumerate(params):
        generator = torch.Generator().manual_seed(100 * t + k)
        p.grad = None if k == 1 and t in (3, 4) else torch.randn(p.shape, generator=generator).to(p)


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def train(optimizer: torch.optim.Optimizer, first: int = 1, last: int = 6) -> None:
    params = params_of(optimizer)
    for t in range(first, last + 1):
        if isinstance(optimizer, GASAM):
            optimizer.step(partial(set_gradients, params, t))
        else:
            set_gradients(params, t)
            optimizer.step()


def results(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Parameters and states in order."""
    return [x for p in params_of(optimizer) for x in (p, *(x for _, x in sorted(optimizer.state[p].items())))]


def assert_same(one: Any, other: Any) -> None:
    """Equal nested containers, bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert type(one) is type(other)
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, Tensor):
        torch.testing.assert_close(one.detach(), other.detach(), rtol=0, atol=0)
    else:
        assert one == other


def assert_same_step(name: str, actual: Sequence[Any], expected: Sequence[Any]) -> None:
    """Bit for bit, but for the bases whose step is an operator of ours: within some roundings."""
    if name not in FUSED_HERE:
        assert_same(actual, expected)
    else:
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


# --- the steps of the base ------------------------------------------------------------------------------------------


@EVERY_CONFIG
def test_without_a_radius_every_base_takes_its_own_steps(name: str, config: str, path: str):
    """With one gradient each"""
    kind, options = INFOS[name].optim_cls, options_of(name, config, path)
    params = parameters(name)
    if "rho" in options or len(config) % 2:
        optimizer = GASAM(params, kind(params, **options), rho=0.0)
    else:
        optimizer = GASAM(params, kind, rho=0.0, **options)
    base = kind(parameters(name), **options)
    assert not optimizer.needs_ascent
    train(optimizer)
    train(base)
    assert_same(results(optimizer), results(base))
    assert [list(optimizer.state[p]) for p in params_of(optimizer)] == [list(base.state[p]) for p in params_of(base)]


@EVERY_CONFIG
def test_with_a_radius_every_base_steps_from_the_weights_before(name: str, config: str, path: str):
    """And finds in its state what it would without: keys, dtypes and shapes."""
    kind, options = INFOS[name].optim_cls, base_options(name, config, path)
    optimizer, base = GASAM(parameters(name), kind, rho=0.5, **options), kind(parameters(name), **options)
    for t in range(1, 7):
        train(optimizer, t, t)
        train(base, t, t)
        states = [[optimizer.state[p] for p in params_of(optimizer)], [base.state[p] for p in params_of(base)]]
        assert [list(state) for state in states[0]] == [list(state) for state in states[1]]
    assert_same_step(name, results(optimizer), results(base))


@EVERY_PATH
def test_a_loop_of_two_calls_is_the_loop_of_closures(name: str, path: str):
    kind, options = INFOS[name].optim_cls, base_options(name, "default", path)
    one, two = (GASAM(parameters(name), kind, **options) for _ in range(2))
    train(one)
    for t in range(1, 7):
        set_gradients(params_of(two), t)
        two.first_step(zero_grad=True)
        set_gradients(params_of(two), t)
        two.second_step(zero_grad=True)
    assert_same(results(two), results(one))


@EVERY_BASE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_have_the_states_of_the_base(name: str, dtype: torch.dtype):
    kind = INFOS[name].optim_cls
    optimizer, base = GASAM(parameters(name, dtype), kind), kind(parameters(name, dtype))
    train(optimizer)
    train(base)
    for a, b in zip(results(optimizer), results(base), strict=True):
        if isinstance(b, Tensor):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            last_place = torch.finfo(b.dtype).eps if b.is_floating_point() else 0
            torch.testing.assert_close(a, b, rtol=4 * last_place, atol=4 * last_place)


@EVERY_BASE
def test_the_maximum_is_sought_by_the_base_and_not_by_the_ascent(name: str):
    """The ascent is along the gradient of what the closure returns."""
    if "maximize" not in INFOS[name].not_og_supported_flags:
        return
    optimizer = GASAM(parameters(name), INFOS[name].optim_cls, maximize=True, segments="global", strength_exponent=0)
    before = [p.detach().clone() for p in params_of(optimizer)]
    set_gradients(params_of(optimizer), 1)
    grads = [p.grad for p in params_of(optimizer)]
    with optimizer.perturbed():
        moved = sum(((p - q) * g).sum() for p, q, g in zip(params_of(optimizer), before, grads, strict=True))
    assert moved > 0


def test_bases_that_need_another_kind_of_gradient_are_refused():
    params = parameters("SGD")
    with pytest.raises(ValueError, match="LBFGS"):
        GASAM(params, torch.optim.LBFGS)
    optimizer = GASAM(params[:1], torch.optim.SparseAdam)
    params[0].grad = torch.eye(3, 2).to_sparse()
    with pytest.raises(RuntimeError, match=r"parameter '0\.0'.*dense"):
        optimizer.first_step()


# --- options --------------------------------------------------------------------------------------------------------

ERRORS = [
    pytest.param(name, error, id=f"{name}-{k}-{error.optimizer_error_input.desc}")
    for name, info in INFOS.items()
    for k, error in enumerate(info.optim_error_inputs_func("cpu", torch.float32))
    if error.error_on == table.OptimizerErrorEnum.CONSTRUCTION_ERROR
    if "rho" not in error.optimizer_error_input.kwargs  # is ours
]


@pytest.mark.parametrize(("name", "error"), ERRORS)
def test_what_the_base_refuses_is_refused_in_its_words(name: str, error: Any):
    """test_errors"""
    given = error.optimizer_error_input
    params = parameters(name) if given.params is None else given.params  # whose options torch looks at before
    if issubclass(error.error_type, Warning):
        with pytest.warns(error.error_type, match=error.error_regex):
            GASAM(params, INFOS[name].optim_cls, **given.kwargs)
    else:
        with pytest.raises(error.error_type, match=error.error_regex):
            GASAM(params, INFOS[name].optim_cls, **given.kwargs)


def test_a_parameter_that_stands_twice_in_a_group_is_perturbed_once():
    """torch warns of it, and steps twice"""
    [p, *_] = parameters("SGD")
    before = p.detach().clone()
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = GASAM([p, p], torch.optim.SGD, lr=0.1, rho=0.5, segments="global", strength_exponent=0)
    set_gradients([p], 1)
    optimizer.first_step()
    assert (p - before).norm().item() == pytest.approx(0.5)
    optimizer.second_step()
    torch.testing.assert_close(p.detach(), before - 2 * 0.1 * p.grad)


def test_the_rho_of_adadelta_is_its_own():
    """Ours has another name in its groups"""
    params = parameters("Adadelta")
    optimizer = GASAM([{"params": params[:1], "rho": 0.8}, {"params": params[1:]}], torch.optim.Adadelta, rho=0.3)
    assert [group["rho"] for group in optimizer.param_groups] == [0.8, 0.9]
    assert [group["ascent_rho"] for group in optimizer.param_groups] == [0.3, 0.3]
    assert optimizer.needs_ascent
    for group in optimizer.param_groups:
        group["ascent_rho"] = 0.0
    assert not optimizer.needs_ascent
    optimizer.add_param_group({"params": parameters("SGD"), "ascent_rho": 0.1})
    assert optimizer.param_groups[2]["rho"] == 0.9
    assert optimizer.needs_ascent


def test_a_base_can_be_wrapped_again():
    params = parameters("SGD")
    base = torch.optim.SGD([{"params": params[:1], "rho": 0.2}, {"params": params[1:]}])
    GASAM(params, base, rho=0.3)
    assert [group["rho"] for group in base.param_groups] == [0.2, 0.3]
    GASAM(params, base, rho=0.4)
    assert [group["rho"] for group in base.param_groups] == [0.4, 0.4]


@EVERY_BASE
def test_groups_keep_their_own_options(name: str):
    """test_param_groups_lr, test_param_groups_weight_decay"""
    kind = INFOS[name].optim_cls
    params, twins = parameters(name), parameters(name)

    def groups(xs: list[nn.Parameter], **own: float) -> list[dict[str, Any]]:
        return [{"params": xs[:1], **own}, {"params": xs[1:], "lr": 0.001}]

    optimizer, base = GASAM(groups(params), kind, lr=0.1), kind(groups(twins), lr=0.1)
    train(optimizer)
    train(base)
    assert_same_step(name, results(optimizer), results(base))


@EVERY_BASE
def test_a_group_that_is_added_is_trained_with_the_defaults(name: str):
    kind = INFOS[name].optim_cls
    params, twins = parameters(name), parameters(name)
    optimizer, base = GASAM(params[:1], kind, lr=0.01), kind(twins[:1], lr=0.01)
    for each, rest in ((optimizer, params[1:]), (base, twins[1:])):
        train(each, 1, 2)
        each.add_param_group({"params": rest})
        train(each, 3, 6)
    assert len(optimizer.base_optimizer.param_groups) == 2
    assert_same_step(name, results(optimizer), results(base))


@pytest.mark.parametrize("name", FUSED_HERE)
@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01)], ids=["number", "tensor"])
def test_a_learning_rate_may_be_a_tensor_that_is_changed_in_place(name: str, lr: float | Tensor):
    """test_tensor_lr"""
    outcomes = []
    for given in (0.01, lr):
        optimizer = GASAM(parameters(name), INFOS[name].optim_cls, lr=copy.deepcopy(given))
        train(optimizer, 1, 3)
        if isinstance(given, Tensor):
            optimizer.param_groups[0]["lr"].fill_(0.02)
        else:
            optimizer.param_groups[0]["lr"] = 0.02
        train(optimizer, 4, 6)
        outcomes.append(results(optimizer))
    for a, b in zip(*outcomes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@EVERY_BASE
@pytest.mark.parametrize("on", ["wrapper", "base"])
def test_schedulers_may_be_built_on_either_optimizer(name: str, on: str):
    """test_forloop_goes_right_direction; and no scheduler warns that there was no step before"""
    kind = INFOS[name].optim_cls
    for makers in INFOS[name].scheduler_inputs:
        optimizer, base = GASAM(parameters(name), kind, lr=0.1), kind(parameters(name), lr=0.1)
        built = optimizer if on == "wrapper" else optimizer.base_optimizer
        ours, theirs = [make(built) for make in makers], [make(base) for make in makers]
        for t in range(1, 7):
            train(optimizer, t, t)
            train(base, t, t)
            for scheduler in (*ours, *theirs):
                scheduler.step(*([1.0 / t] if isinstance(scheduler, ReduceLROnPlateau) else []))
            assert optimizer.param_groups[0]["lr"] == base.param_groups[0]["lr"]
        assert_same_step(name, results(optimizer), results(base))


# --- state dictionaries ---------------------------------------------------------------------------------------------


def with_names(params: Sequence[Tensor], named: bool) -> list[Any]:
    return [(f"name{k}", p) for k, p in enumerate(params)] if named else list(params)


@EVERY_CONFIG
def test_a_loaded_state_goes_on_as_the_first_one_did(name: str, config: str, path: str):
    """test_can_load_from_to_named_state_dict, test_save_load_equality_with_weights_only"""
    kind, options = INFOS[name].optim_cls, base_options(name, config, path)
    named = len(config) % 2 == 0  # of some
    first = GASAM(with_names(parameters(name), named), kind, **copy.deepcopy(options))
    train(first, 1, 3)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert_same(saved, first.state_dict())
    before = copy.deepcopy(saved)
    clones = [nn.Parameter(p.detach().clone()) for p in params_of(first)]
    second = GASAM(with_names(clones, named), kind, **copy.deepcopy(options))
    second.load_state_dict(saved)
    assert_same(saved, before)  # loading does not write into what is loaded
    assert second.param_groups is second.base_optimizer.param_groups
    assert second.state is second.base_optimizer.state
    for optimizer in (first, second):
        train(optimizer, 4, 6)
    assert_same(results(second), results(first))
    assert_same(second.state_dict(), first.state_dict())


@EVERY_BASE
def test_a_state_goes_to_and_from_the_base_alone(name: str):
    kind = INFOS[name].optim_cls
    base = kind(parameters(name))
    train(base, 1, 3)
    optimizer = GASAM([nn.Parameter(p.detach().clone()) for p in params_of(base)], kind, rho=0.3)
    optimizer.load_state_dict(copy.deepcopy(base.state_dict()))  # or they would share tensors
    train(optimizer, 4, 5)
    train(base, 4, 5)
    assert_same_step(name, results(optimizer), results(base))

    alone = kind([nn.Parameter(p.detach().clone()) for p in params_of(optimizer)])
    alone.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, 6, 7)
    train(alone, 6, 7)
    assert_same_step(name, results(optimizer), results(alone))


@EVERY_BASE
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
@pytest.mark.parametrize("after", [0, 3])
def test_a_copy_goes_on_as_the_original_does(name: str, copied: Callable[[Any], Any], after: int):
    """test_deepcopy_copies_all_public_attrs"""
    optimizer = GASAM(parameters(name), INFOS[name].optim_cls)
    train(optimizer, 1, after)
    twin = copied(optimizer)

    def public(x: object) -> set[str]:
        return {attribute for attribute in vars(x) if not attribute.startswith("_")}

    assert public(twin) == public(optimizer)
    train(optimizer, after + 1, 6)
    train(twin, after + 1, 6)
    assert_same(results(twin), results(optimizer))


def test_hooks_see_and_change_what_is_saved_and_loaded():
    """test_state_dict_pre_post_hook, test_load_state_dict_pre_post_hook"""
    optimizer = GASAM(parameters("SGD"), torch.optim.SGD, lr=0.001)
    calls: list[str] = []

    def mark(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        assert "gasam" in state_dict
        return {**state_dict, "marked": True}

    def change(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        state_dict = copy.deepcopy(state_dict)
        state_dict["param_groups"][0]["lr"] = 0.003
        return state_dict

    optimizer.register_state_dict_pre_hook(lambda optimizer: calls.append("saving"))
    optimizer.register_state_dict_post_hook(mark)
    optimizer.register_load_state_dict_pre_hook(change)
    optimizer.register_load_state_dict_post_hook(lambda optimizer: calls.append("loaded"))
    saved = optimizer.state_dict()
    assert saved["marked"]
    optimizer.load_state_dict(saved)
    assert calls == ["saving", "loaded"]
    assert optimizer.param_groups[0]["lr"] == 0.003
    assert optimizer.base_optimizer.param_groups[0]["lr"] == 0.003


# --- around the step ------------------------------------------------------------------------------------------------


@EVERY_BASE
@pytest.mark.parametrize("phases", [False, True], ids=["closure", "two calls"])
def test_hooks_run_once_a_step_whichever_optimizer_has_them(name: str, phases: bool):
    """test_step_pre_hook, test_step_post_hook, test_step_all_hooks"""
    optimizer = GASAM(parameters(name), INFOS[name].optim_cls)
    calls: list[str] = []

    def hook(what: str) -> Any:
        return lambda optimizer, args, kwargs: calls.append(what)

    def step() -> None:
        if phases:
            set_gradients(params_of(optimizer), 1)
            optimizer.first_step()
            optimizer.step()
        else:
            train(optimizer, 1, 1)

    handles = [
        optimizer.register_step_pre_hook(hook("before ours")),
        optimizer.base_optimizer.register_step_pre_hook(hook("before theirs")),
        optimizer.base_optimizer.register_step_post_hook(hook("after theirs")),
        optimizer.register_step_post_hook(hook("after ours")),
    ]
    step()
    step()
    assert calls == ["before ours", "before theirs", "after theirs", "after ours"] * 2
    for handle in handles:
        handle.remove()
    step()
    assert len(calls) == 8


def test_a_hook_of_the_base_sees_the_weights_before_and_after_its_step():
    optimizer = GASAM(parameters("SGD"), torch.optim.SGD, lr=0.1)
    clean = [p.detach().clone() for p in params_of(optimizer)]
    seen: list[bool] = []

    def hook(base: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        seen.append(all(torch.equal(p, q) for p, q in zip(params_of(base), clean, strict=True)))

    optimizer.base_optimizer.register_step_pre_hook(hook)
    optimizer.base_optimizer.register_step_post_hook(hook)
    train(optimizer, 1, 1)
    assert seen == [True, False]


def test_a_step_has_its_name_in_the_profiler():
    optimizer = GASAM(parameters("SGD"), torch.optim.SGD)
    with torch.autograd.profiler.profile() as profile:
        train(optimizer, 1, 1)
        optimizer.zero_grad()
    names = {event.name for event in profile.function_events}
    assert {"Optimizer.step#GASAM.step", "Optimizer.zero_grad#GASAM.zero_grad"} <= names


def test_the_representation_names_the_class_and_its_groups():
    text = repr(GASAM(parameters("SGD"), torch.optim.SGD, rho=0.3, lr=0.1))
    assert text.startswith("GASAM (")
    assert "rho: 0.3" in text
    assert "lr: 0.1" in text


# --- training -------------------------------------------------------------------------------------------------------

PRESETS = [GASAM, SAM, ASAM, GSAM, FriendlySAM, LookSAM, SAMON, MSAM, WSAM, MultiStepRisk]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["SGD", "NAdam"])
def test_every_member_of_the_family_learns(preset: type[GASAM], name: str):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(64, 2)
    y = (x[:, :1] * x[:, 1:] > 0).float()
    options = {"lr": 0.3, "momentum": 0.9} if name == "SGD" else {"lr": 0.05}
    optimizer = preset(net, INFOS[name].optim_cls, **options)

    def closure() -> Tensor:
        loss = nn.functional.binary_cross_entropy_with_logits(net(x), y)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]


def test_what_the_closure_returns_comes_back_whatever_it_is():
    """Some train with several losses in a dictionary"""
    params = parameters("SGD")
    optimizer = GASAM(params, torch.optim.SGD)
    returned: list[dict[str, float]] = []

    def closure() -> dict[str, float]:
        set_gradients(params, 1)
        returned.append({"one": 1.0 + len(returned), "two": 2.0})
        return returned[-1]

    assert optimizer.step(closure) is returned[0]
    assert len(returned) == 2
