"""Which parameters are chosen, and what a step leaves of its passes: statistics, random numbers, `requires_grad`."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from gasam._passes import SKIPS_GRADIENTS, Passes
from gasam._selection import Selection, norm_parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OPTIONS = {"share_dropout": False, "keep_batch_stats": True, "sync_ascent": False}


@pytest.fixture(autouse=True)
def nothing_global_is_left() -> Iterator[None]:
    yield
    assert not hooks._has_any_global_hook()


# --- selection


class RMSNormOfMine(nn.Module):
    """No norm layer by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))


class ScaleNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1))
        self.inner = nn.Linear(2, 2)


class Zoo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3)
        self.bn1 = nn.BatchNorm1d(4)
        self.batch = nn.SyncBatchNorm(4)
        self.instance = nn.InstanceNorm2d(4, affine=True)
        self.layer = nn.LayerNorm(4)
        self.group = nn.GroupNorm(2, 4)
        self.rms = nn.RMSNorm(4)
        self.response = nn.LocalResponseNorm(2)
        self.mine = RMSNormOfMine()
        self.custom = ScaleNorm()
        self.rnn = nn.LSTM(2, 3)
        self.subnet = nn.Linear(2, 2)


def chosen(selection: Selection) -> set[str]:
    return {selection.names[p] for p, perturbed in zip(selection.params, selection.perturbed, strict=True) if perturbed}


def test_norm_layers_are_known_by_their_class():
    zoo = Zoo()
    own = {"bn1", "batch", "instance", "layer", "group"}
    expected = {f"{name}.{kind}" for name in own for kind in ("weight", "bias")} | {"rms.weight", "custom.g"}
    assert {name for name, p in zoo.named_parameters() if p in norm_parameters(zoo)} == expected
    assert chosen(Selection.of(zoo, "norm")) == expected


def test_norm_layers_are_known_by_name_where_there_is_no_module():
    zoo = Zoo()
    pairs = [
        *zoo.named_parameters(),
        ("BatchNorm_0.gain", nn.Parameter(torch.ones(2))),
        ("conv1_bn.bias", zoo.batch.bias),
    ]
    assert chosen(Selection.of(pairs, "norm")) == {"bn1.weight", "bn1.bias", "BatchNorm_0.gain"} | {
        "batch.bias"  # the first name of a parameter is its name
    }


def test_a_parameter_is_called_by_its_name_or_its_place():
    zoo = Zoo()
    weight, bias = zoo.subnet.weight, zoo.subnet.bias
    assert list(Selection.of(zoo).names.values()) == [name for name, _ in zoo.named_parameters()]
    assert Selection.of([weight, bias]).names == {weight: "0.0", bias: "0.1"}
    assert Selection.of([{"params": weight}, {"params": [bias]}]).names == {weight: "0.0", bias: "1.0"}
    assert Selection.of([{"params": [("a", weight)]}, {"params": iter([("b", bias)])}]).names == {
        weight: "a",
        bias: "b",
    }
    groups = torch.optim.SGD(zoo.subnet.named_parameters(), lr=1).param_groups
    assert Selection.of(groups).names == {weight: "weight", bias: "bias"}


GIVEN: dict[str, Callable[[nn.Linear], Any]] = {
    "module": lambda net: net,
    "parameters": lambda net: net.parameters(),
    "named parameters": lambda net: net.named_parameters(),
    "group": lambda net: [{"params": net.parameters(), "rho": 0.5}],
    "groups": lambda net: [{"params": [net.weight], "rho": 0.5}, {"params": net.bias}],
    "groups of names": lambda net: iter([{"params": net.named_parameters(), "lr": 3.0}]),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_the_base_optimizer_is_given_all_that_was_given(kind: str):
    net, given = nn.Linear(2, 3), GIVEN[kind]
    selection = Selection.of(given(net))
    base = torch.optim.SGD(selection.groups, lr=1.0)
    assert [p for group in base.param_groups for p in group["params"]] == [net.weight, net.bias] == selection.params
    expected = torch.optim.SGD(GIVEN["named parameters" if kind == "module" else kind](net), lr=1.0)
    assert [g.keys() for g in base.param_groups] == [g.keys() for g in expected.param_groups]
    assert [g["lr"] for g in base.param_groups] == [g["lr"] for g in expected.param_groups]
    assert [g.get("rho") for g in base.param_groups] == [g.get("rho") for g in expected.param_groups]
    assert selection.module is (net if kind == "module" else None)


@pytest.mark.parametrize(
    "given",
    [[], iter(()), [nn.Parameter(torch.ones(1)), 3], [{"params": {3}}]],
    ids=["nothing", "no item", "number", "set"],
)
def test_what_is_no_parameter_is_left_to_the_base_optimizer(given: Any):
    groups = Selection.of(given).groups
    with pytest.raises(
        (TypeError, ValueError), match=r"empty parameter list|can only optimize Tensors|ordered collections"
    ):
        torch.optim.SGD(groups, lr=1.0)


def test_a_tensor_instead_of_tensors_is_refused():
    with pytest.raises(
        TypeError, match=r"should be an iterable of Tensors or dicts or an nn.Module, but got torch.Float"
    ):
        Selection.of(nn.Parameter(torch.ones(1)))


def test_weights_are_known_by_name_or_else_by_having_two_dimensions():
    net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.LSTM(3, 2))
    by_name = [int("weight" in name) for name, _ in net.named_parameters()]
    assert Selection.of(net, adaptive=True).weighted == by_name == [1, 0, 1, 0, 1, 1, 0, 0]
    assert Selection.of(net.parameters(), adaptive=True).weighted == [1, 0, 0, 0, 1, 1, 0, 0]
    for adaptive in (False, "layer"):
        assert not any(Selection.of(net, adaptive=adaptive).weighted)


ONLY: dict[str, Callable[[nn.Sequential], Any]] = {
    "predicate of the name": lambda net: lambda name, p: name.startswith("0"),
    "predicate of the parameter": lambda net: lambda name, p: any(p is q for q in net[0].parameters()),
    "module": lambda net: net[0],
    "modules": lambda net: [net[0]],
    "parameters": lambda net: net[0].parameters(),
    "some with names": lambda net: [net[0].weight, ("bias", net[0].bias)],
    "a foreign one": lambda net: {net[0].weight, net[0].bias, nn.Parameter(torch.ones(2))},
}


@pytest.mark.parametrize("kind", ONLY)
def test_only_takes_predicates_modules_and_parameters(kind: str):
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    for params in (net, list(net.named_parameters())):
        assert Selection.of(params, ONLY[kind](net)).perturbed == [True, True, False, False]


def test_only_takes_one_parameter():
    net = nn.Linear(2, 3)
    assert Selection.of(net, net.bias).perturbed == [False, True]


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("norms", "only must be 'norm', a predicate .* got 'norms'"),
        (3, "got 'int'"),
        ({"a": 1}, "got 'dict'"),
        (["weight"], "got 'list'"),
        ("norm", "only must select at least one of the 2 parameters, got 'norm', which selects none$"),
        (lambda name, p: False, "got function, which selects none"),
        (nn.Linear(1, 1), "got Linear, which selects none"),
        ([], "got list, which selects none"),
    ],
)
def test_only_that_selects_nothing_is_refused(only: Any, message: str):
    with pytest.raises(ValueError, match=message):
        Selection.of(nn.Linear(2, 3), only)


def test_norm_without_names_says_what_is_missing():
    with pytest.raises(ValueError, match="without a module it needs named parameters"):
        Selection.of(nn.LayerNorm(3).parameters(), "norm")


# --- statistics


class Renorm(nn.Module):
    """A layer of somebody else: a statistic that it overwrites, one that it replaces, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_std", torch.ones(4))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        self.running_mean.lerp_(x.detach().mean((0, 2)), 0.1)
        self.running_std = self.running_std.lerp(x.detach().std((0, 2)), 0.1)
        self.steps += 1
        return x - self.running_mean[:, None]


class Tracks(nn.Module):
    """Known by its attribute alone."""

    def __init__(self) -> None:
        super().__init__()
        self.track_running_stats = True
        self.register_buffer("ema", torch.zeros(4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.ema.lerp_(x.detach().double().mean((0, 2)), 0.1)
        return x


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm1d": lambda: nn.BatchNorm1d(4),
    "BatchNorm1d, cumulative": lambda: nn.BatchNorm1d(4, momentum=None),
    "BatchNorm1d without parameters": lambda: nn.BatchNorm1d(4, affine=False),
    "BatchNorm1d in bfloat16": lambda: nn.Sequential(BFloat16(), nn.BatchNorm1d(4, dtype=torch.bfloat16), Float()),
    "BatchNorm1d without statistics": lambda: nn.BatchNorm1d(4, track_running_stats=False),
    "InstanceNorm1d": lambda: nn.InstanceNorm1d(4, track_running_stats=True),
    "LazyBatchNorm1d": lambda: nn.LazyBatchNorm1d(),
    "renorm": Renorm,
    "tracks": Tracks,
}


class BFloat16(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.bfloat16()


class Float(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in module.named_buffers()}


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        assert torch.equal(actual[name], x), name


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return any(not torch.equal(x, after[name]) for name, x in before.items())


def step(passes: Passes, closure: Callable[[], object], ascents: int = 1) -> None:
    with passes.clean():
        closure()
    for later in reversed(range(ascents)):
        with passes.perturbed(last=not later):
            closure()


def batches(count: int) -> list[Tensor]:
    return list(torch.randn(count, 8, 4, 3, generator=torch.Generator().manual_seed(1)) * 3 + 1)


@pytest.mark.parametrize("known", ["given", "watched", "found"])
@pytest.mark.parametrize("ascents", [1, 3])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_statistics_are_those_of_the_clean_passes(layer: str, ascents: int, known: str):
    net = nn.Sequential(nn.Conv1d(4, 4, 1), LAYERS[layer]())
    alone = nn.Sequential(copy.deepcopy(net[0]), LAYERS[layer]())
    passes = Passes(net if known == "given" else None, **OPTIONS)
    if known == "watched":
        passes.watch(net)
    places: list[int] = []
    for x in batches(3):
        inputs = iter([x, *(x * 2 for _ in range(ascents))])
        step(passes, lambda inputs=inputs: net(next(inputs)), ascents)
        before = buffers(alone) if layer != "LazyBatchNorm1d" or places else {}
        alone(x)
        assert moved(before, buffers(alone)) == (layer != "BatchNorm1d without statistics" and bool(before))
        assert_equal(buffers(net), buffers(alone))
        places = places or [b.data_ptr() for b in net.buffers()]
        assert [b.data_ptr() for b in net.buffers()] == places or layer == "renorm"


def test_statistics_of_layers_that_run_on_gpus_alone_are_kept():
    net = nn.SyncBatchNorm(4)
    passes = Passes(net, **OPTIONS)

    def closure() -> None:
        for b in net.buffers():
            b += 1

    step(passes, closure, 2)
    assert_equal(buffers(net), {name: x + 1 for name, x in nn.SyncBatchNorm(4).named_buffers()})


def test_statistics_move_in_every_pass_without_keep_batch_stats():
    net = nn.BatchNorm1d(4)
    for module in (net, None):
        net.reset_running_stats()
        step(Passes(module, **{**OPTIONS, "keep_batch_stats": False}), lambda: net(batches(1)[0]), 2)
        assert net.num_batches_tracked == 3


def test_a_layer_that_is_called_before_the_module_that_holds_it_is_found():
    inner = nn.BatchNorm1d(4)
    outer = nn.Sequential(nn.BatchNorm1d(4), inner)
    passes = Passes(None, **OPTIONS)
    x = batches(1)[0]

    def closure() -> None:
        inner(x)
        outer(x)

    step(passes, closure)
    expected = copy.deepcopy(outer)
    for b in expected.buffers():
        b.zero_()
    expected[0].running_var += 1
    expected[1].running_var += 1
    expected[1](x)
    expected(x)
    assert_equal(buffers(outer), buffers(expected))


def test_modules_are_looked_for_in_the_first_perturbed_pass_alone():
    net = nn.Sequential(nn.BatchNorm1d(4))
    passes = Passes(None, **OPTIONS)
    seen: list[int] = []

    def closure() -> None:
        net(batches(1)[0])
        seen.append(len(hooks._global_forward_pre_hooks))

    for _ in range(2):
        step(passes, closure, 2)
    assert seen == [0, 1, 0, 0, 0, 0]
    seen.clear()
    step(Passes(net, **OPTIONS), closure)
    assert seen == [0, 0]


def test_a_module_that_is_found_is_not_kept_alive():
    net = nn.Sequential(nn.BatchNorm1d(4))
    passes = Passes(None, **OPTIONS)
    with passes.clean(), passes.perturbed():
        net(batches(1)[0])
    assert len(passes._found) == 2
    del net
    gc.collect()
    assert len(passes._found) == 0


@pytest.mark.parametrize("known", [True, False])
def test_begin_and_end_surround_a_pass_without_a_closure(known: bool):
    net = nn.BatchNorm1d(4)
    alone = copy.deepcopy(net)
    passes = Passes(net if known else None, **OPTIONS)
    for x in batches(3):
        net(x)
        alone(x)
        passes.begin_perturbed()
        net(x * 2)
        passes.begin_perturbed()  # the second ascent
        assert_equal(buffers(net), buffers(alone))
        net(x * 3)
        passes.end_perturbed()
        assert_equal(buffers(net), buffers(alone))
        passes.end_perturbed()
        assert_equal(buffers(net), buffers(alone))


def test_the_hook_goes_with_the_optimizer():
    passes = Passes(None, **OPTIONS)
    passes.begin_perturbed()
    assert len(hooks._global_forward_pre_hooks) == 1
    del passes
    gc.collect()
    assert not hooks._global_forward_pre_hooks


# --- exceptions


class Stop(Exception):
    pass


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("known", [True, False])
def test_an_exception_takes_the_statistics_back(failing: int, known: bool):
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(4), Renorm())
    passes = Passes(net if known else None, **OPTIONS, only_params={net[1].weight}, params=list(net.parameters()))
    for x in batches(2) if known else batches(2)[:1]:  # what is not known yet cannot be taken back
        step(passes, lambda x=x: net(x), 2)
    before = buffers(net)
    calls = iter(range(3))

    def closure() -> None:
        net(batches(3)[2])
        if next(calls) == failing:
            raise Stop

    with pytest.raises(Stop):
        step(passes, closure, 2)
    assert_equal(buffers(net), before)
    assert all(p.requires_grad for p in net.parameters())
    assert not hooks._has_any_global_hook()


def test_an_exception_between_the_passes_takes_the_statistics_back():
    net = nn.BatchNorm1d(4)
    passes = Passes(net, **OPTIONS)
    before = buffers(net)
    with passes.clean():
        net(batches(1)[0])
    passes.undo()
    assert_equal(buffers(net), before)


def test_modules_are_looked_for_again_after_an_exception():
    net = nn.BatchNorm1d(4)
    passes = Passes(None, **OPTIONS)

    def fail() -> None:
        if hooks._global_forward_pre_hooks:
            raise Stop

    with pytest.raises(Stop):
        step(passes, fail)
    step(passes, lambda: net(batches(1)[0]))
    assert net.num_batches_tracked == 1


# --- random numbers


def draws(passes: Passes, device: str = "cpu") -> list[Tensor]:
    drawn: list[Tensor] = []
    step(passes, lambda: drawn.append(nn.functional.dropout(torch.ones(1000, device=device))), 2)
    return drawn


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_dropout_is_shared_on_request(device: str):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.manual_seed(0)
    torch.ones(1, device=device)
    shared, other = Passes(None, **{**OPTIONS, "share_dropout": True}), Passes(None, **OPTIONS)
    first, second, third = draws(shared, device)
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    after = nn.functional.dropout(torch.ones(1000, device=device))
    first, second, third = draws(other, device)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    torch.manual_seed(0)
    nn.functional.dropout(torch.ones(1000, device=device))
    assert torch.equal(nn.functional.dropout(torch.ones(1000, device=device)), after), (
        "a step draws what one pass draws"
    )


# --- parameters outside `only`


@pytest.mark.skipif(not SKIPS_GRADIENTS, reason="the compiler of this torch would not notice")
def test_parameters_that_are_not_perturbed_get_no_gradient_but_in_the_last_pass():
    net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    net[0].bias.requires_grad_(False)
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    passes = Passes(net, **OPTIONS, only_params=set(net[1].parameters()))
    grads: list[set[str]] = []

    def closure() -> None:
        for p in net.parameters():
            p.grad = None
        net(torch.ones(4, 2)).sum().backward()
        grads.append({name for name, p in net.named_parameters() if p.grad is not None})

    step(passes, closure, 2)
    assert grads == [{"1.weight", "1.bias"}, {"1.weight", "1.bias"}, trained]
    assert {name for name, p in net.named_parameters() if p.requires_grad} == trained


# --- copies


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_finds_its_own_modules(how: str):
    net = nn.BatchNorm1d(4)
    net.unpicklable = lambda: 0
    passes = Passes(net, **{**OPTIONS, "share_dropout": True})
    step(passes, lambda: net(batches(1)[0]))
    passes.begin_perturbed()
    twin = copy.deepcopy(passes) if how == "deepcopy" else pickle.loads(pickle.dumps(passes))
    passes.end_perturbed()
    assert twin._given == []
    assert twin.share_dropout
    other = nn.BatchNorm1d(4)
    step(twin, lambda: other(batches(1)[0]))
    assert other.num_batches_tracked == 1
