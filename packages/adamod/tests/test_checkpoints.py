"""Saving and loading: bit for bit with equal settings, else converted, or refused without a trace."""

from __future__ import annotations

import copy
import io
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from adamod import AdaMod, DiffMod, _ops
from adamod._reference import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

needs_kernel = pytest.mark.skipif("cpu" not in _ops.KERNELS, reason="the package was built without its C++ kernels")
PATHS = {
    "operator": {"fused": True},
    "foreach": {"foreach": True, "fused": False},
    "loop": {"foreach": False, "fused": False},
}
STATES = ("exp_avg", "exp_avg_sq", "exp_avg_lr")
STATE_DTYPES = [
    None,
    torch.float32,
    torch.bfloat16,
    "int8",
    {"exp_avg_lr": torch.bfloat16},
    {"exp_avg": "int8", "exp_avg_sq": torch.bfloat16},
]
PATHS_AND_STATES = pytest.mark.parametrize(
    ("path", "state_dtype"),
    [
        pytest.param(path, state_dtype, marks=needs_kernel if path == "operator" else (), id=f"{path}-{state_dtype}")
        for path in PATHS
        for state_dtype in STATE_DTYPES
        if path != "foreach" or state_dtype in (None, torch.float32)
    ],
)
SHAPES = [(70, 70), (5,), ()]


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=wide).to(dtype)) for shape in shapes]


def every_param(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def train(optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for t in range(first, last + 1):
        for k, p in enumerate(every_param(optimizer)):
            generator = torch.Generator().manual_seed(1000 * t + k)
            wide = torch.promote_types(p.dtype, torch.float32)
            p.grad = torch.randn(p.shape, dtype=wide, generator=generator).to(p.dtype)
        optimizer.step()


def assert_equal(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def states_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [x for p in every_param(optimizer) for _, x in sorted(optimizer.state.get(p, {}).items())]


def assert_twins(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> None:
    """Parameters, states and steps agree bit for bit."""
    assert_equal(every_param(one), every_param(other))
    assert_equal(states_of(one), states_of(other))


def contents(optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
    """All that loading could change."""
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    tensors = [x.detach().clone() for x in [*every_param(optimizer), *states_of(optimizer)]]
    return groups, [set(optimizer.state.get(p, ())) for p in every_param(optimizer)], tensors


def assert_unchanged(optimizer: torch.optim.Optimizer, before: tuple[Any, ...]) -> None:
    groups, keys, tensors = contents(optimizer)
    assert groups == before[0]
    assert keys == before[1]
    assert_equal(tensors, before[2])


def saved(checkpoint: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(checkpoint, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# --- our own --------------------------------------------------------------------------------------------------------


@PATHS_AND_STATES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("through", [saved, copy.deepcopy, lambda x: x], ids=["file", "copy", "itself"])
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(
    path: str, state_dtype: Any, dtype: torch.dtype, through: Callable[[Any], Any]
):
    options = {"lr": 1e-2, "weight_decay": 0.1, "state_dtype": state_dtype, **PATHS[path]}
    uninterrupted, first = (AdaMod(parameters(*SHAPES, dtype=dtype), **options) for _ in range(2))
    train(uninterrupted, 1, 6)
    train(first, 1, 3)
    resumed = AdaMod([nn.Parameter(p.detach().clone()) for p in every_param(first)], **options)
    resumed.load_state_dict(through(first.state_dict()))
    assert_twins(resumed, first)
    train(resumed, 4, 6)
    assert_twins(resumed, uninterrupted)
    assert_equal([first.state[p]["step"] for p in every_param(first)], [torch.tensor(3.0)] * 3)


@PATHS_AND_STATES
def test_parameters_without_a_state_begin_after_loading_as_they_would_have(path: str, state_dtype: Any):
    def make() -> AdaMod:
        a, b, c = parameters(*SHAPES)
        return AdaMod([{"params": [a, b]}, {"params": [c]}], state_dtype=state_dtype, **PATHS[path])

    uninterrupted, first, resumed = make(), make(), make()
    for optimizer in (uninterrupted, first):
        late = every_param(optimizer)[1]
        for t in (1, 2):
            late.requires_grad_(False)
            for k, p in enumerate(every_param(optimizer)):
                p.grad = torch.full_like(p, t + k) if p is not late else None
            optimizer.step()
    train(resumed, 1, 5)  # has states, which are to vanish
    resumed.load_state_dict(saved(first.state_dict()))
    assert every_param(resumed)[1] not in resumed.state
    for p, q in zip(every_param(resumed), every_param(first), strict=True):
        p.data.copy_(q)
    train(uninterrupted, 3, 5)
    train(resumed, 3, 5)
    assert_twins(resumed, uninterrupted)


def test_options_come_from_the_checkpoint_except_state_dtype():
    a, b = parameters((5,), (4,))
    options = {
        "lr": 0.1,
        "betas": (0.5, 0.6),
        "beta3": 0.7,
        "eps": 1e-3,
        "weight_decay": 0.2,
        "variant": "paper",
        "bounded_decay": True,
        "skip_unseen": True,
        "foreach": False,
        "maximize": True,
        "capturable": True,
        "seed": 7,
    }
    saver = AdaMod([{"params": [a], **options}, {"params": [b], "seed": None}], state_dtype=torch.bfloat16)
    loader = AdaMod([{"params": [p]} for p in parameters((5,), (4,))])
    train(saver, 1, 2)
    loader.load_state_dict(saved(saver.state_dict()))
    assert {key: loader.param_groups[0][key] for key in options} == options
    assert loader.param_groups[1]["seed"] is None
    assert [group["state_dtype"] for group in loader.param_groups] == [None, None]
    assert loader.defaults["lr"] == 1e-3
    assert {x.dtype for x in states_of(loader)} == {torch.float32}


def decoded(optimizer: AdaMod, p: Tensor, key: str) -> Tensor:
    state = optimizer.state[p]
    if state[key].dtype != torch.uint8:
        return state[key]
    return decode(state[key].flatten(), state[key + "_scale"], signed=key == "exp_avg").view(state[key].shape)


@pytest.mark.parametrize("receiver", [None, torch.bfloat16, "int8"], ids=str)
@pytest.mark.parametrize("sender", [None, torch.bfloat16, "int8"], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_receivers_state_dtype_wins_and_the_states_are_converted(sender: Any, receiver: Any, dtype: torch.dtype):
    source = AdaMod(parameters((70, 70), dtype=dtype), state_dtype=sender)
    target = AdaMod(parameters((70, 70), dtype=dtype), state_dtype=receiver)
    fresh = AdaMod(parameters((70, 70), dtype=dtype), state_dtype=receiver)
    train(source, 1, 5)
    train(fresh, 1, 1)
    target.load_state_dict(saved(source.state_dict()))
    [p], [q], [r] = every_param(source), every_param(target), every_param(fresh)
    assert {key: x.dtype for key, x in target.state[q].items()} == {key: x.dtype for key, x in fresh.state[r].items()}
    assert set(target.state[q]) == set(fresh.state[r])
    bits = {None: 24, torch.bfloat16: 8, "int8": 4}  # of the fraction, the leading one included
    exact = bits[receiver] >= bits[sender]
    for key in STATES:
        x, y = decoded(source, p, key).float(), decoded(target, q, key).float()
        least = x.abs().max().item() * 2**-15 if receiver == "int8" else 0  # 127 codes span 16 octaves
        torch.testing.assert_close(y, x, rtol=0 if exact else 2.0 ** -bits[receiver], atol=0 if exact else least)
        if receiver is torch.bfloat16:
            assert torch.equal(y, x.to(torch.bfloat16).float())
    assert target.state[q]["step"] == 5
    train(target, 6, 8)
    assert target.state[q]["step"] == 8
    assert every_param(target)[0].isfinite().all()


def test_tensors_below_4096_elements_are_loaded_into_float32_by_8_bit_receivers():
    source, target = AdaMod(parameters((5,))), AdaMod(parameters((5,)), state_dtype="int8")
    train(source, 1, 2)
    target.load_state_dict(source.state_dict())
    assert_equal(states_of(target), states_of(source))


@pytest.mark.parametrize("sender", [None, torch.bfloat16, "int8"], ids=str)
@pytest.mark.parametrize("receiver", [None, torch.bfloat16, "int8"], ids=str)
def test_complex_parameters_are_converted_too(sender: Any, receiver: Any):
    source = AdaMod(parameters((70, 40), dtype=torch.complex64), state_dtype=sender)
    target = AdaMod(parameters((70, 40), dtype=torch.complex64), state_dtype=receiver)
    train(source, 1, 3)
    target.load_state_dict(saved(source.state_dict()))
    back = AdaMod(parameters((70, 40), dtype=torch.complex64), state_dtype=sender)
    back.load_state_dict(target.state_dict())
    if receiver is None or receiver == sender:
        for key in STATES:
            x, y = (decoded(optimizer, *every_param(optimizer), key) for optimizer in (back, source))
            torch.testing.assert_close(x, y, rtol=0, atol=y.abs().max().item() * 2**-15 if sender == "int8" else 0)
    train(target, 4, 5)
    [p] = every_param(target)
    expected = {None: torch.complex64, torch.bfloat16: torch.bfloat16, "int8": torch.uint8}[receiver]
    assert {target.state[p][key].dtype for key in STATES} == {expected}


def test_states_that_are_not_numbers_survive():
    for state_dtype in (None, torch.bfloat16, "int8"):
        source, target = (AdaMod(parameters((70, 70)), state_dtype=state_dtype) for _ in range(2))
        train(source, 1, 1)
        every_param(source)[0].grad[3, 3] = torch.nan
        source.step()
        target.load_state_dict(saved(source.state_dict()))
        assert_equal(states_of(target), states_of(source))


@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16, "int8"], ids=str)
@pytest.mark.parametrize("forth", [True, False])
def test_states_change_between_channels_last_and_contiguous(state_dtype: Any, forth: bool):
    """The states get the memory format of the receiving parameter: what a kernel walks over beside it."""
    formats = [torch.contiguous_format, torch.channels_last]
    one, other = formats if forth else reversed(formats)

    def make(memory_format: torch.memory_format) -> AdaMod:
        start = torch.randn(8, 16, 6, 8, generator=torch.Generator().manual_seed(0))
        return AdaMod([nn.Parameter(start.to(memory_format=memory_format))], lr=1e-2, state_dtype=state_dtype)

    source, target = make(one), make(other)
    train(source, 1, 3)
    target.load_state_dict(saved(source.state_dict()))
    [p], [q] = every_param(source), every_param(target)
    for key in STATES:
        x, y = target.state[q][key], source.state[p][key]
        assert x.is_contiguous(memory_format=other)
        if state_dtype != "int8":
            assert torch.equal(x, y)
    if state_dtype == "int8":
        for ours, theirs in zip(target.bound_stats().values(), source.bound_stats().values(), strict=True):
            assert (ours.eta - theirs.eta).abs().sum() < 0.1 * ours.sampled
            assert (ours.s - theirs.s).abs().sum() < 0.1 * ours.sampled
    for optimizer in (source, target):
        optimizer.param_groups[0]["seed"] = None
    q.data.copy_(p)
    train(source, 4, 6)
    train(target, 4, 6)
    torch.testing.assert_close(q, p, rtol=0, atol=1e-3 if state_dtype == "int8" else 1e-7, check_stride=False)


def test_loading_takes_copies_and_leaves_the_checkpoint_alone():
    lr = torch.tensor(0.1)
    source, target = (AdaMod(parameters(*SHAPES), lr=lr, state_dtype={"exp_avg": "int8"}) for _ in range(2))
    train(source, 1, 2)
    checkpoint = source.state_dict()
    before = copy.deepcopy(checkpoint)
    target.load_state_dict(checkpoint)
    train(target, 3, 5)
    target.param_groups[0]["lr"].fill_(0.7)
    target.param_groups[0]["eps"] = 1.0
    assert checkpoint["param_groups"] == before["param_groups"]
    assert checkpoint["state"].keys() == before["state"].keys()
    for key, state in before["state"].items():
        assert_equal(list(checkpoint["state"][key].values()), list(state.values()))
    owned = {x.untyped_storage().data_ptr() for x in states_of(target)}
    assert not owned & {x.untyped_storage().data_ptr() for x in states_of(source)}


def test_a_checkpoint_of_a_view_of_all_steps_holds_one_number_for_each_parameter():
    optimizer = AdaMod(parameters(*SHAPES))
    train(optimizer, 1, 2)
    checkpoint = saved(optimizer.state_dict())
    assert [checkpoint["state"][k]["step"].item() for k in range(3)] == [2, 2, 2]
    assert all(checkpoint["state"][k]["step"].shape == () for k in range(3))


def test_hooks_see_and_may_replace_what_is_loaded():
    source, target = AdaMod(parameters((5,)), lr=0.1), AdaMod(parameters((5,)))
    train(source, 1, 2)
    seen: list[str] = []

    def before(optimizer: AdaMod, state_dict: dict[str, Any]) -> dict[str, Any]:
        seen.append(f"before {optimizer.param_groups[0]['lr']}")
        state_dict = copy.deepcopy(state_dict)
        state_dict["param_groups"][0]["lr"] = 0.3
        return state_dict

    target.register_load_state_dict_pre_hook(before)
    target.register_load_state_dict_post_hook(lambda optimizer: seen.append(f"after {optimizer.param_groups[0]['lr']}"))
    target.load_state_dict(source.state_dict())
    assert seen == ["before 0.001", "after 0.3"]
    assert source.param_groups[0]["lr"] == 0.1
    source.register_state_dict_post_hook(lambda optimizer, state_dict: {**state_dict, "extra": 1})
    assert source.state_dict()["extra"] == 1
    target.load_state_dict(source.state_dict())


def test_what_an_older_version_did_not_save_takes_the_receivers_value():
    source, target = AdaMod(parameters((5,))), AdaMod([{"params": parameters((5,)), "seed": 3}], skip_unseen=True)
    train(source, 1, 2)
    checkpoint = source.state_dict()
    for option in ("seed", "skip_unseen", "bounded_decay", "state_dtype"):
        del checkpoint["param_groups"][0][option]
    target.load_state_dict(checkpoint)
    group = target.param_groups[0]
    assert (group["seed"], group["skip_unseen"], group["bounded_decay"]) == (3, True, False)
    train(target, 3, 3)


def test_an_unpickled_optimizer_of_an_older_version_gets_the_defaults():
    optimizer = AdaMod(parameters((5,)))
    train(optimizer, 1, 2)
    state = optimizer.__getstate__()
    for option in ("seed", "skip_unseen", "fused", "capturable", "state_dtype", "variant", "beta3"):
        del state["param_groups"][0][option]
    state["state"][every_param(optimizer)[0]]["step"] = 2
    optimizer.__setstate__(state)
    group = optimizer.param_groups[0]
    assert (group["seed"], group["skip_unseen"], group["variant"], group["beta3"]) == (0, False, "code", 0.999)
    train(optimizer, 3, 3)
    assert optimizer.state[every_param(optimizer)[0]]["step"] == 3


def test_a_learning_rate_that_a_scheduler_changed_is_resumed():
    def make() -> tuple[AdaMod, Any]:
        optimizer = AdaMod(parameters((5,)), lr=0.1)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)

    (first, schedule), (second, resumed), (whole, steady) = make(), make(), make()
    for t in range(1, 9):
        train(whole, t, t)
        steady.step()
    for t in range(1, 5):
        train(first, t, t)
        schedule.step()
    second.load_state_dict(saved(first.state_dict()))
    resumed.load_state_dict(schedule.state_dict())
    every_param(second)[0].data.copy_(every_param(first)[0])
    for t in range(5, 9):
        train(second, t, t)
        resumed.step()
    assert_twins(second, whole)


def test_a_checkpoint_holds_only_what_process_groups_can_gather():
    """torch.distributed.checkpoint knows no torch.dtype, and neither gloo nor NCCL moves int16."""
    optimizer = AdaMod(parameters(*SHAPES), state_dtype={"exp_avg": torch.bfloat16, "exp_avg_sq": "int8"})
    train(optimizer, 1, 1)
    checkpoint = optimizer.state_dict()
    dtypes = {x.dtype for state in checkpoint["state"].values() for x in state.values()}
    assert dtypes == {torch.float32, torch.bfloat16, torch.uint8}
    assert checkpoint["param_groups"][0]["state_dtype"] == {"exp_avg": "bfloat16", "exp_avg_sq": "int8"}
    assert optimizer.param_groups[0]["state_dtype"] == {"exp_avg": torch.bfloat16, "exp_avg_sq": "int8"}
    assert optimizer.state[every_param(optimizer)[0]]["exp_avg_sq_scale"].dtype == torch.int16


def test_names_of_parameters_are_kept():
    [a] = parameters((5,))
    source, target = AdaMod([a]), AdaMod([("weight", a)])
    train(source, 1, 1)
    target.load_state_dict(source.state_dict())
    assert target.param_groups[0]["param_names"] == ["weight"]
    assert next(iter(target.bound_stats().values())).name == "weight"


def test_states_that_belong_to_no_parameter_are_kept():
    source, target = (AdaMod(parameters((5,))) for _ in range(2))
    train(source, 1, 1)
    checkpoint = source.state_dict()
    checkpoint["state"]["note"] = "hello"
    checkpoint["state"][0]["more"] = torch.ones(2)
    target.load_state_dict(checkpoint)
    assert target.state["note"] == "hello"
    assert torch.equal(target.state[every_param(target)[0]]["more"], torch.ones(2))
    train(target, 2, 3)
    assert target.state[every_param(target)[0]]["step"] == 3


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_diffmod_is_resumed_bit_for_bit(foreach: bool, dtype: torch.dtype):
    uninterrupted, first = (DiffMod(parameters(*SHAPES, dtype=dtype), lr=1e-2, foreach=foreach) for _ in range(2))
    train(uninterrupted, 1, 6)
    train(first, 1, 3)
    resumed = DiffMod([nn.Parameter(p.detach().clone()) for p in every_param(first)], lr=1e-2)
    resumed.load_state_dict(saved(first.state_dict()))
    assert_twins(resumed, first)
    train(resumed, 4, 6)
    assert_twins(resumed, uninterrupted)


# --- those of others ------------------------------------------------------------------------------------------------


def foreign(kind: str, step: int, ours: AdaMod, **options: Any) -> dict[str, Any]:
    """Our own state as the others save theirs."""
    group = ours.param_groups[0]
    common = {"lr": group["lr"], "eps": group["eps"], "weight_decay": group["weight_decay"], "params": [0, 1, 2]}
    states = {k: {key: ours.state[p][key].clone() for key in STATES} for k, p in enumerate(every_param(ours))}
    if kind == "torch_optimizer":  # as does the release of 2019
        for state in states.values():
            state["step"] = step
        return {"state": states, "param_groups": [{**common, "betas": group["betas"], "beta3": group["beta3"]}]}
    betas = (*group["betas"], group["beta3"])
    own = {"betas": betas, "weight_decouple": True, "fixed_decay": False, "foreach": None, "step": step, **options}
    return {"state": states, "param_groups": [{**common, **own}]}


@pytest.mark.parametrize("kind", ["torch_optimizer", "pytorch_optimizer"])
@pytest.mark.parametrize("path", [pytest.param("operator", marks=needs_kernel), "foreach", "loop"])
def test_checkpoints_of_other_implementations_are_resumed(kind: str, path: str):
    options = {"lr": 1e-2, "betas": (0.8, 0.95), "beta3": 0.97, "eps": 1e-3, "weight_decay": 0.1}
    ours = AdaMod(parameters(*SHAPES), **options, **PATHS[path])
    train(ours, 1, 4)
    resumed = AdaMod([nn.Parameter(p.detach().clone()) for p in every_param(ours)], **PATHS[path])
    resumed.load_state_dict(saved(foreign(kind, 4, ours)))
    group = resumed.param_groups[0]
    assert {key: group[key] for key in options} == options
    assert not {"step", "weight_decouple", "fixed_decay"} & set(group)
    assert isinstance(resumed.state[every_param(resumed)[0]]["step"], Tensor)
    train(ours, 5, 8)
    resumed.param_groups[0].update(PATHS[path])
    train(resumed, 5, 8)
    assert_twins(resumed, ours)
    loaded_again = AdaMod(parameters(*SHAPES), **PATHS[path])
    loaded_again.load_state_dict(saved(resumed.state_dict()))
    assert_equal(states_of(loaded_again), states_of(resumed))


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, "int8"], ids=str)
def test_checkpoints_of_others_are_converted(state_dtype: Any):
    ours = AdaMod(parameters(*SHAPES))
    train(ours, 1, 4)
    resumed = AdaMod(parameters(*SHAPES), state_dtype=state_dtype)
    resumed.load_state_dict(foreign("pytorch_optimizer", 4, ours))
    train(resumed, 5, 6)
    expected = torch.bfloat16 if state_dtype is torch.bfloat16 else torch.uint8
    assert resumed.state[every_param(resumed)[0]]["exp_avg"].dtype == expected
    assert resumed.state[every_param(resumed)[0]]["step"] == 6


def test_states_that_others_kept_in_bfloat16_become_float32():
    ours = AdaMod(parameters(*SHAPES, dtype=torch.bfloat16), fused=False)
    train(ours, 1, 2)
    checkpoint = foreign("pytorch_optimizer", 2, ours)
    for state in checkpoint["state"].values():
        state.update({key: state[key].to(torch.bfloat16) for key in STATES})
    resumed = AdaMod(parameters(*SHAPES, dtype=torch.bfloat16))
    resumed.load_state_dict(checkpoint)
    assert {x.dtype for x in states_of(resumed)} == {torch.float32}
    train(resumed, 3, 4)


# --- refusals -------------------------------------------------------------------------------------------------------


def refused(change: Callable[[dict[str, Any]], object], text: str, state_dtype: Any = None) -> None:
    """A checkpoint whose last parameter is spoilt is refused, and the receiver is as before and goes on."""

    def make() -> AdaMod:
        a, b, c = parameters((5,), (), (70, 70))
        groups = [{"params": [("first", a), ("second", b)]}, {"params": [("last", c)]}]
        return AdaMod(groups, state_dtype=state_dtype)

    source, target, twin = make(), make(), make()
    train(source, 1, 4)
    train(target, 1, 2)
    train(twin, 1, 2)
    checkpoint = saved(source.state_dict())
    change(checkpoint)
    before = contents(target)
    with pytest.raises(ValueError, match="^" + re.escape(text)):
        target.load_state_dict(checkpoint)
    assert_unchanged(target, before)
    train(target, 3, 4)
    train(twin, 3, 4)
    assert_twins(target, twin)


@pytest.mark.parametrize("key", [*STATES, "step"])
def test_a_missing_state_is_refused_by_the_name_of_its_parameter(key: str):
    refused(lambda checkpoint: checkpoint["state"][2].pop(key), f"parameter 2 ('last'): the checkpoint has no {key}")


def test_a_checkpoint_of_adam_is_refused_with_the_remedy():
    params = parameters((5,), (4,))
    adam = torch.optim.AdamW(params)
    train(adam, 1, 3)
    target = AdaMod(params)
    text = "parameter 0: the checkpoint has no exp_avg_lr (is it Adam's?). Start AdaMod without it, or put "
    with pytest.raises(ValueError, match="^" + re.escape(text)):
        target.load_state_dict(adam.state_dict())
    assert not target.state
    assert target.param_groups[0]["weight_decay"] == 0  # AdamW's is 0.01
    checkpoint = adam.state_dict()
    for state in checkpoint["state"].values():  # the remedy works
        state["exp_avg_lr"] = 1e-3 / (state["exp_avg_sq"].sqrt() + 1e-8)
    target.load_state_dict(checkpoint)
    train(target, 4, 5)
    assert target.state[params[0]]["step"] == 5


def test_a_checkpoint_of_sgd_is_refused():
    params = parameters((5,), (4,))
    sgd = torch.optim.SGD(params, momentum=0.9)
    train(sgd, 1, 2)
    target = AdaMod(params)
    with pytest.raises(ValueError, match=r"^parameter 0: the checkpoint has no "):
        target.load_state_dict(sgd.state_dict())
    assert not target.state


@pytest.mark.parametrize("key", STATES)
@pytest.mark.parametrize("shape", [(70, 71), (4900,), (70, 70, 1), ()])
def test_a_state_of_another_shape_is_refused(key: str, shape: tuple[int, ...]):
    text = f"parameter 2 ('last'): {key} in the checkpoint must have the shape (70, 70) of the parameter, got {shape}"
    refused(lambda checkpoint: checkpoint["state"][2].update({key: torch.zeros(shape)}), text)


@pytest.mark.parametrize("value", [None, 3.0, [0.0] * 5, "x"], ids=str)
def test_a_state_that_is_no_tensor_is_refused(value: Any):
    text = "parameter 2 ('last'): exp_avg in the checkpoint must have the shape (70, 70) of the parameter, got "
    refused(lambda checkpoint: checkpoint["state"][2].update(exp_avg=value), text)


@pytest.mark.parametrize("step", [torch.zeros(2), torch.zeros(0), "3", [3]], ids=str)
def test_a_step_that_is_no_number_is_refused(step: Any):
    text = "parameter 2 ('last'): step in the checkpoint must be one number, got "
    refused(lambda checkpoint: checkpoint["state"][2].update(step=step), text)


@pytest.mark.parametrize("key", STATES)
@pytest.mark.parametrize(
    "scale", [None, torch.zeros(19, dtype=torch.int16), torch.zeros(21, dtype=torch.int16)], ids=str
)
@pytest.mark.parametrize("state_dtype", ["int8", None])
def test_8_bit_states_without_their_scales_are_refused(key: str, scale: Any, state_dtype: Any):
    """4900 elements are 20 blocks. The receiver may as well be one of float32, which decodes them."""

    def change(checkpoint: dict[str, Any]) -> None:
        checkpoint["state"][2][key] = torch.zeros(70, 70, dtype=torch.uint8)
        checkpoint["state"][2][f"{key}_scale"] = scale

    given = 0 if scale is None else len(scale)
    text = (
        f"parameter 2 ('last'): the 8-bit {key} in the checkpoint needs 20 scales, one per 256 elements of this shard"
    )
    refused(change, f"{text}, got {given}; gather the checkpoint with full_state_dict=True", state_dtype)


@pytest.mark.parametrize("option", [{"weight_decouple": False}, {"fixed_decay": True}, {"adam_debias": True}], ids=str)
def test_settings_that_adamod_does_not_have_are_refused(option: dict[str, bool]):
    [(name, value)] = option.items()
    text = f"the checkpoint was made with {name}={value}, which AdaMod does not have"
    refused(lambda checkpoint: checkpoint["param_groups"][1].update(option), text)


def test_groups_that_do_not_match_are_refused_in_torchs_words():
    refused(
        lambda checkpoint: checkpoint["param_groups"].pop(),
        "loaded state dict has a different number of parameter groups",
    )
    refused(
        lambda checkpoint: checkpoint["param_groups"][1]["params"].append(3),
        "loaded state dict contains a parameter group that doesn't match the size of optimizer's group",
    )
