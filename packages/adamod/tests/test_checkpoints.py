"""Saving and loading: bit for bit with equal settings, else converted, or refused without a trace."""

from __future__ import annotations

import copy
import io
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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


def two_groups(kind: type[torch.optim.Optimizer], last: int, **options: Any) -> torch.optim.Optimizer:
    """After some steps."""
    a, b, c = parameters((5,), (), (70, 70))
    groups = [{"params": [("first", a), ("second", b)]}, {"params": [("last", c)]}]
    optimizer = kind(groups, **options)
    train(optimizer, 1, last)
    return optimizer


def refused(
    change: Callable[[dict[str, Any]], object], place: str, text: str, state_dtype: Any = None, kind: Any = AdaMod
) -> None:
    """A checkpoint whose last parameter is spoilt is refused, and the receiver is as before and goes on."""
    options = {"state_dtype": state_dtype} if kind is AdaMod else {}
    source, target, twin = (two_groups(kind, last, **options) for last in (4, 2, 2))
    checkpoint = saved(source.state_dict())
    change(checkpoint)
    before = contents(target)
    with pytest.raises((ValueError, TypeError), match="^" + re.escape(f"state_dict{place} {text}")):
        target.load_state_dict(checkpoint)
    assert_unchanged(target, before)
    train(target, 3, 4)
    train(twin, 3, 4)
    assert_twins(target, twin)


LAST = '["state"][2]'


@pytest.mark.parametrize("key", [*STATES, "step"])
def test_a_missing_state_is_refused(key: str):
    refused(lambda checkpoint: checkpoint["state"][2].pop(key), LAST, f'must have the key "{key}", got [')


def test_a_checkpoint_of_adam_is_refused_with_the_remedy():
    params = parameters((5,), (4,))
    adam = torch.optim.AdamW(params)
    train(adam, 1, 3)
    target = AdaMod(params)
    text = r'^state_dict\["state"\]\[0\] must have the key "exp_avg_lr", got .*\. If it is Adam\'s, start AdaMod '
    with pytest.raises(ValueError, match=text):
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
    with pytest.raises(ValueError, match=r'^state_dict\["state"\]\[0\] must have the key "step"'):
        target.load_state_dict(sgd.state_dict())
    assert not target.state


@pytest.mark.parametrize("key", STATES)
@pytest.mark.parametrize("shape", [(70, 71), (4900,), (70, 70, 1), ()])
def test_a_state_of_another_shape_is_refused(key: str, shape: tuple[int, ...]):
    text = f"must have the shape (70, 70) of parameter 2 ('last'), got {shape}"
    refused(lambda checkpoint: checkpoint["state"][2].update({key: torch.zeros(shape)}), f'{LAST}["{key}"]', text)


@pytest.mark.parametrize("value", [None, 3.0, [0.0] * 5, "x"], ids=str)
def test_a_state_that_is_no_tensor_is_refused(value: Any):
    text = f"must be a tensor, got {value!r}"
    refused(lambda checkpoint: checkpoint["state"][2].update(exp_avg=value), f'{LAST}["exp_avg"]', text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.zeros(70, 70, dtype=torch.int64), "must be dense and of one of float64, float32, bfloat16, float16, ui"),
        (torch.zeros(70, 70, dtype=torch.complex64), "must be dense and of one of float64, float32, bfloat16, float16"),
        (
            torch.zeros(70, 70).to_sparse(),
            "must be dense and of one of float64, float32, bfloat16, float16, uint8, got",
        ),
        (torch.zeros(70, 70, device="meta"), "must be a tensor with values, got one on the device meta"),
    ],
    ids=["int64", "complex", "sparse", "meta"],
)
@pytest.mark.parametrize("kind", [AdaMod, DiffMod])
def test_a_state_of_another_kind_is_refused(kind: type, value: Tensor, text: str):
    place = LAST + ("['exp_avg']" if value.is_meta else '["exp_avg"]')
    refused(lambda checkpoint: checkpoint["state"][2].update(exp_avg=value), place, text, kind=kind)


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (torch.zeros(2), "must be one real number, got shape (2,) of torch.float32"),
        (torch.zeros(0), "must be one real number, got shape (0,)"),
        ("3", "must be a number, got '3'"),
        ([3], "must be a number, got [3]"),
        (torch.tensor(torch.nan), "must be in [0, "),
        (-1, "must be in [0, "),
        (10**400, "must be in [0, "),
    ],
    ids=lambda x: str(x)[:20],
)
@pytest.mark.parametrize("kind", [AdaMod, DiffMod])
def test_a_step_that_is_no_number_is_refused(kind: type, step: Any, text: str):
    refused(lambda checkpoint: checkpoint["state"][2].update(step=step), f'{LAST}["step"]', text, kind=kind)


@pytest.mark.parametrize("key", STATES)
@pytest.mark.parametrize(
    ("scale", "text"),
    [
        (None, "must be a vector of int16, or of their bytes, beside 8-bit states, got None"),
        (
            torch.zeros(10),
            "must be a vector of int16, or of their bytes, beside 8-bit states, got shape (10,) of torch.",
        ),
        (
            torch.zeros(19, dtype=torch.int16),
            "must have 20 scales, one per 256 elements of this shard of parameter 2 (",
        ),
        (
            torch.zeros(42, dtype=torch.uint8),
            "must have 20 scales, one per 256 elements of this shard of parameter 2 (",
        ),
    ],
    ids=["none", "float32", "19", "21 as bytes"],
)
@pytest.mark.parametrize("state_dtype", ["int8", None])
def test_8_bit_states_without_their_scales_are_refused(key: str, scale: Any, text: str, state_dtype: Any):
    """4900 elements are 20 blocks. The receiver may as well be one of float32, which decodes them."""

    def change(checkpoint: dict[str, Any]) -> None:
        checkpoint["state"][2][key] = torch.zeros(70, 70, dtype=torch.uint8)
        checkpoint["state"][2][f"{key}_scale"] = scale

    refused(change, f'{LAST}["{key}_scale"]', text, state_dtype)


@pytest.mark.parametrize("option", [{"weight_decouple": False}, {"fixed_decay": True}, {"adam_debias": True}], ids=str)
def test_settings_that_adamod_does_not_have_are_refused(option: dict[str, bool]):
    [(name, value)] = option.items()
    text = f"must be {not value}, got {value}"
    refused(lambda checkpoint: checkpoint["param_groups"][1].update(option), f'["param_groups"][1]["{name}"]', text)


PAIR = torch.tensor([0.1, 0.2])
OPTIONS = [
    ("lr", PAIR, "must be one real number, got shape (2,) of torch.float32"),
    ("lr", "0.1", "must be a number, got '0.1'"),
    ("lr", None, "must be a number, got None"),
    ("lr", torch.nan, "must be finite and at least 0, got nan"),
    ("lr", torch.tensor(-1.0), "must be finite and at least 0, got -1.0"),
    ("lr", True, "must be a number, got True"),
    ("eps", PAIR, "must be one real number, got shape (2,) of torch.float32"),
    ("eps", "x", "must be a number, got 'x'"),
    ("weight_decay", PAIR, "must be one real number, got shape (2,) of torch.float32"),
    ("weight_decay", -0.1, "must be finite and at least 0, got -0.1"),
    ("beta3", PAIR, "must be one real number, got shape (2,) of torch.float32"),
    ("beta3", 1, "must be in [0, 1), got 1"),
    ("betas", 0.9, "must be a tuple of numbers, got 0.9"),
    ("betas", (0.9,), "must have 2"),
    ("maximize", 1, "must be False or True, got 1"),
    ("foreach", "yes", "must be None or False or True, got 'yes'"),
]
OF_ADAMOD = [
    ("variant", "adam", "must be 'code' or 'paper', got 'adam'"),
    ("variant", ["code"], "must be 'code' or 'paper', got ['code']"),
    ("seed", 0.5, "must be an integer or None, got 0.5"),
    ("seed", 2**63, "must be between -2**62 and 2**62, got 9223372036854775808"),
    ("capturable", None, "must be False or True, got None"),
    ("fused", 0, "must be None or False or True, got 0"),
    ("skip_unseen", "", "must be False or True, got ''"),
]
OF_DIFFMOD = [
    ("version", 3, "must be 0 or 1 or 2, got 3"),
    ("len_memory", 0.5, "must be finite and at least 1, got 0.5"),
    ("average_step", None, "must be False or True, got None"),
]


@pytest.mark.parametrize(
    ("kind", "option", "value", "text"),
    [*((kind, *case) for kind in (AdaMod, DiffMod) for case in OPTIONS),
     *((AdaMod, *case) for case in OF_ADAMOD), *((DiffMod, *case) for case in OF_DIFFMOD)],
    ids=str,
)  # fmt: skip
def test_an_option_out_of_its_range_is_refused(kind: type, option: str, value: Any, text: str):
    def change(checkpoint: dict[str, Any]) -> None:
        checkpoint["param_groups"][1][option] = value

    refused(change, f'["param_groups"][1]["{option}"]', text, kind=kind)


def replaced(*path: Any, by: Any) -> Callable[[dict[str, Any]], None]:
    def change(tree: Any) -> None:
        *others, last = path
        for key in others:
            tree = tree[key]
        tree[last] = by

    return change


TREES = [
    (lambda tree: tree.pop("state"), "", "must have the key \"state\", got ['param_groups']"),
    (lambda tree: tree.pop("param_groups"), "", "must have the key \"param_groups\", got ['state']"),
    (replaced("state", by=[]), '["state"]', "must be a dict, got []"),
    (replaced("state", 2, by=3), LAST, "must be a dict, got 3"),
    (replaced("param_groups", by={}), '["param_groups"]', "must be a list, got {}"),
    (replaced("param_groups", 1, by=None), '["param_groups"][1]', "must be a dict, got None"),
    (
        lambda tree: tree["param_groups"].pop(),
        '["param_groups"]',
        "must have as many groups as the optimizer, 2, got 1",
    ),
    (lambda tree: tree["param_groups"][1].pop("params"), '["param_groups"][1]', 'must have the key "params", got ['),
    (replaced("param_groups", 1, "params", by=2), '["param_groups"][1]["params"]', "must be a list, got 2"),
    (
        replaced("param_groups", 1, "params", 0, by=[]),
        '["param_groups"][1]["params"][0]',
        "must be an integer or a nam",
    ),
    (
        lambda tree: tree["param_groups"][1]["params"].append(3),
        '["param_groups"][1]["params"]',
        "must have as many entries as the optimizer's group has parameters, 1, got 2",
    ),
    (
        replaced("param_groups", 1, "param_names", by=["a", "b"]),
        '["param_groups"][1]["param_names"]',
        "must have as many",
    ),
]


@pytest.mark.parametrize(("change", "place", "text"), TREES, ids=[f"{case[1]} {case[2]}" for case in TREES])
@pytest.mark.parametrize("kind", [AdaMod, DiffMod])
def test_a_tree_that_is_no_checkpoint_is_refused(kind: type, change: Any, place: str, text: str):
    refused(change, place, text, kind=kind)


@pytest.mark.parametrize("kind", [AdaMod, DiffMod])
@pytest.mark.parametrize("tree", [None, 3, [], "x"], ids=str)
def test_what_is_no_dict_is_refused(kind: type, tree: Any):
    with pytest.raises(TypeError, match="^state_dict must be a dict, got " + re.escape(repr(tree))):
        two_groups(kind, 1).load_state_dict(tree)


JUNK = st.sampled_from(
    [None, True, -1, 7, 2.5, torch.nan, torch.inf, 10**400, "x", "", (), [], {}, {"x": 1}, (0.9, 0.9), [0.1, 2]]
    + [torch.zeros(()), torch.zeros(2), torch.zeros(70, 70), torch.full((5,), torch.nan), torch.zeros(5, device="meta")]
    + [torch.zeros(70, 70, dtype=dtype) for dtype in (torch.uint8, torch.int64, torch.bool, torch.complex64)]
    + [torch.zeros(20, dtype=torch.int16), torch.eye(70).to_sparse(), object()]
)  # fmt: skip


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every branch of a tree of dicts and lists: what holds it, and its key there."""
    found = []
    for key, x in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        found.append((tree, key))
        if isinstance(x, dict | list):
            found += places(x)
    return found


@pytest.mark.parametrize("kind", [AdaMod, DiffMod])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_spoilt_checkpoint_is_refused_by_a_place_or_loaded_whole(kind: type, data: st.DataObject):
    """Whatever is loaded can be stepped with, and saved and loaded again."""
    target = two_groups(kind, 1)
    checkpoint = copy.deepcopy(two_groups(kind, 2).state_dict())
    holder, key = data.draw(st.sampled_from(places(checkpoint)), label="place")
    if isinstance(holder, dict) and data.draw(st.booleans(), label="is missing"):
        del holder[key]
    else:
        holder[key] = data.draw(JUNK, label="value")
    before = contents(target)
    refusal = None
    try:
        target.load_state_dict(checkpoint)
    except (ValueError, TypeError) as error:
        refusal = str(error)
    if refusal is None:
        train(target, 3, 3)
        two_groups(kind, 0).load_state_dict(saved(target.state_dict()))
    else:
        assert refusal.startswith("state_dict")
        assert_unchanged(target, before)
