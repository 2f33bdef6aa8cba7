"""What AdaMod promises beside its arithmetic: paths, states, groups, gradients, precision, layouts, scaling."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adamod import AdaMod, _ops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

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
STATES = ("exp_avg", "exp_avg_sq", "exp_avg_lr")
STATE_DTYPES = [None, torch.bfloat16, "int8", {"exp_avg_lr": torch.bfloat16}]


def paths_with(*state_dtypes: Any) -> pytest.MarkDecorator:
    """Every path with each of these; foreach has no states of low precision."""
    return pytest.mark.parametrize(
        ("path", "state_dtype"),
        [
            pytest.param(
                path, state_dtype, marks=needs_kernel if path == "operator" else (), id=f"{path}-{state_dtype}"
            )
            for path in PATHS
            for state_dtype in state_dtypes
            if path != "foreach" or state_dtype is None
        ],
    )


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=wide).to(dtype)) for shape in shapes]


def copies(params: Sequence[Tensor]) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().clone()) for p in params]


def every_param(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def set_gradients(params: Sequence[Tensor], t: int, scale: float = 1.0) -> None:
    """The gradients of step t: the same ones for parameters of the same place, shape and dtype."""
    for k, p in enumerate(params):
        generator = torch.Generator().manual_seed(1000 * t + k)
        dtype = p.grad_dtype or p.dtype
        wide = torch.promote_types(dtype, torch.float32)
        p.grad = (torch.randn(p.shape, generator=generator, dtype=wide) * scale).to(dtype)


def train(optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for t in range(first, last + 1):
        set_gradients(every_param(optimizer), t)
        optimizer.step()


def assert_equal(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def states_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [x for p in every_param(optimizer) for _, x in sorted(optimizer.state[p].items())]


def assert_twins(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> None:
    """Parameters, states and steps agree bit for bit."""
    assert_equal(every_param(one), every_param(other))
    assert_equal(states_of(one), states_of(other))


class Calls(TorchDispatchMode):
    """The operators that reach PyTorch's dispatcher, with the tensors that they get."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        self.seen.append((func._schema.name, [x for x in leaves if isinstance(x, Tensor)]))
        return func(*args, **(kwargs or {}))

    def count(self, name: str) -> int:
        return sum(name in seen for seen, _ in self.seen)


def calls_of_one_step(optimizer: AdaMod) -> Calls:
    train(optimizer, 1, 2)
    with Calls() as calls:
        optimizer.step()
    return calls


# --- paths ----------------------------------------------------------------------------------------------------------


@needs_kernel
def test_a_group_is_one_call_of_the_operator_and_nothing_else_touches_its_tensors():
    params = parameters(*[(5,)] * 6, (70, 70))
    optimizer = AdaMod([{"params": params[:3]}, {"params": params[3:], "lr": 1e-2, "state_dtype": "int8"}])
    calls = calls_of_one_step(optimizer)
    assert calls.count("adamod::step_") == 2
    own = {x.untyped_storage().data_ptr() for x in [*params, *(p.grad for p in params), *states_of(optimizer)]}
    for name, tensors in calls.seen:
        if name != "adamod::step_":
            assert not own & {x.untyped_storage().data_ptr() for x in tensors}, name


@pytest.mark.parametrize(
    ("options", "operator", "foreach"),
    [
        ({}, True, False),
        ({"lr": torch.tensor(1e-3)}, True, False),
        ({"capturable": True}, True, False),
        ({"fused": True}, True, False),
        ({"foreach": True}, False, True),
        ({"foreach": False}, False, False),
        ({"fused": False}, False, False),
        ({"differentiable": True}, False, False),
    ],
)
def test_the_options_choose_the_path(options: dict[str, Any], operator: bool, foreach: bool):
    if operator and not WITH_KERNEL:
        pytest.skip("the package was built without its C++ kernels")
    params = [p.detach() for p in parameters((5,), (2, 3))]
    for p in params:
        p.grad_dtype = p.dtype
    optimizer = AdaMod(params, **options)
    calls = calls_of_one_step(optimizer)
    assert bool(calls.count("adamod::step_")) == operator
    assert bool(calls.count("_foreach_addcmul") or calls.count("_foreach_mul")) == foreach
    assert optimizer._step_supports_amp_scaling == operator


@needs_kernel
def test_groups_choose_their_paths_each_for_itself():
    a, b, c = parameters((5,), (4,), (3,))
    optimizer = AdaMod([{"params": [a]}, {"params": [b], "foreach": True}, {"params": [c], "fused": True}])
    calls = calls_of_one_step(optimizer)
    assert calls.count("adamod::step_") == 2
    assert calls.count("_foreach_sqrt") == 1
    assert not optimizer._step_supports_amp_scaling


def test_without_a_kernel_the_default_is_torchs_and_fused_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_ops, "KERNELS", frozenset())
    params = parameters((5,), (4,))
    calls = calls_of_one_step(AdaMod(params))
    assert calls.count("adamod::step_") == calls.count("_foreach") == 0
    optimizer = AdaMod(params, fused=True)
    with pytest.raises(RuntimeError, match=r"^`fused=True` requires all the params"):
        optimizer.step()
    assert not optimizer.state


def real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.detach()) if x.is_complex() else x.detach()


def exact_step(optimizer: AdaMod, p: Tensor) -> list[np.ndarray]:
    """The parameter and its states after the next step, by the paper's equations in extended precision."""
    group, state = optimizer.param_groups[0], optimizer.state.get(p, {})
    long = np.longdouble
    x, g = (real(y).double().numpy().astype(long) for y in (p, p.grad))
    m, v, s = (real(state[key]).double().numpy().astype(long) if state else np.zeros_like(x) for key in STATES)
    t = int(state.get("step", 0)) + 1
    lr, beta1, beta2, beta3 = (long(y) for y in (group["lr"], *group["betas"], group["beta3"]))
    g = -g if group["maximize"] else g
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    c1, c2 = 1 - beta1**t, 1 - beta2**t
    if group["variant"] == "code":
        eta, u = lr * np.sqrt(c2) / c1 / (np.sqrt(v) + long(group["eps"])), m
    else:
        eta, u = lr / (np.sqrt(v / c2) + long(group["eps"])), m / c1
    s = np.where((v == 0) & group["skip_unseen"], s, beta3 * s + (1 - beta3) * eta)
    bound = np.minimum(eta, s)
    decay = lr * long(group["weight_decay"]) * (bound / eta if group["bounded_decay"] else 1)
    return [x * (1 - decay) - bound * u, m, v, s]


VARIANTS_AND_FLAGS = [
    {"variant": variant, **flags}
    for variant in ("code", "paper")
    for flags in ({}, {"bounded_decay": True}, {"skip_unseen": True}, {"maximize": True})
]


def before_a_step(t: int, dtype: torch.dtype, **options: Any) -> AdaMod:
    """The loop with all gradients of step t; some elements are bounded, some are not, some have never been seen."""
    settings = {"lr": 1e-2, "beta3": 0.7, "eps": 1e-3, "weight_decay": 0.1, **options}
    optimizer = AdaMod(parameters((1031,), (33, 5), (), dtype=dtype), **settings, **PATHS["loop"])
    for step in range(1, t + 1):
        set_gradients(every_param(optimizer), step, scale=10.0 ** (step % 3 - 1))
        for p in every_param(optimizer)[:2]:
            p.grad[:7] = 0
        if step < t:
            optimizer.step()
    return optimizer


def on_path(optimizer: AdaMod, path: str) -> AdaMod:
    twin = copy.deepcopy(optimizer)
    twin.param_groups[0].update(PATHS[path])
    for p, q in zip(every_param(twin), every_param(optimizer), strict=True):
        p.grad = q.grad
    return twin


def with_states(optimizer: AdaMod, p: Tensor) -> list[Tensor]:
    state = optimizer.state.get(p, {})
    return [real(x).clone() for x in (p, *(state.get(key, torch.zeros_like(p)) for key in STATES))]


@needs_kernel
@pytest.mark.parametrize("options", VARIANTS_AND_FLAGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("t", [1, 2, 10])
def test_the_operator_is_as_exact_as_the_loop(
    options: dict[str, Any], dtype: torch.dtype, t: int, assert_within_twice: Any
):
    loop = before_a_step(t, dtype, **options)
    ours = on_path(loop, "operator")
    before = [with_states(loop, p) for p in every_param(loop)]
    exact = [exact_step(loop, p) for p in every_param(loop)]
    loop.step()
    ours.step()
    for k, (p, q) in enumerate(zip(every_param(ours), every_param(loop), strict=True)):
        for case in zip(with_states(ours, p), with_states(loop, q), exact[k], before[k], strict=True):
            assert_within_twice(*case)


@pytest.mark.parametrize("options", VARIANTS_AND_FLAGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("t", [1, 2, 10])
def test_foreach_makes_the_step_of_the_loop(options: dict[str, Any], dtype: torch.dtype, t: int):
    loop = before_a_step(t, dtype, **options)
    ours = on_path(loop, "foreach")
    loop.step()
    ours.step()
    for p, q in zip(every_param(ours), every_param(loop), strict=True):
        for x, y in zip(with_states(ours, p), with_states(loop, q), strict=True):
            torch.testing.assert_close(x, y)


@EVERY_PATH
@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_element_tensors_serve_as_learning_rate_and_betas(path: str, shape: tuple[int, ...]):
    """In float64 they are the same numbers as floats; a step that computes 1 - beta^t in float32 is off by 1e-5."""
    options = PATHS[path] | ({"capturable": True} if path == "foreach" else {})
    number = {"lr": 0.01, "betas": (0.75, 0.999), "beta3": 0.99}
    rounded = torch.tensor(0.999, dtype=torch.float32)
    params = parameters((), (40,), (3, 4))
    tensors = AdaMod(
        params,
        lr=torch.full(shape, number["lr"], dtype=torch.float64),
        betas=(torch.full(shape, 0.75), rounded.reshape(shape)),
        beta3=torch.full(shape, 0.99, dtype=torch.float64),
        weight_decay=0.1,
        **options,
    )
    floats = AdaMod(copies(params), **{**number, "betas": (0.75, float(rounded))}, weight_decay=0.1, **PATHS["loop"])
    for optimizer in (tensors, floats):
        train(optimizer, 1, 5)
    for p, q in zip(every_param(tensors), every_param(floats), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
        for key in STATES:
            x, y = tensors.state[p][key], floats.state[q][key]
            torch.testing.assert_close(x, y, rtol=2e-6, atol=0)


@EVERY_PATH
def test_a_tensor_learning_rate_that_is_changed_in_place_is_used(path: str):
    lr = torch.tensor(0.1)
    options = PATHS[path] | ({"capturable": True} if path == "foreach" else {})
    [p] = parameters((7,))
    optimizer = AdaMod([p], lr=lr, **options)
    train(optimizer, 1, 1)
    before = p.detach().clone()
    lr.zero_()
    train(optimizer, 2, 2)
    assert torch.equal(p.detach(), before)


@EVERY_PATH
def test_the_default_dtype_and_the_default_device_do_not_matter(path: str):
    params = parameters((7,), (5, 5))
    expected, other = (AdaMod(copies(params), weight_decay=0.1, **PATHS[path]) for _ in range(2))
    train(expected, 1, 3)
    for t in range(1, 4):
        set_gradients(every_param(other), t)
        torch.set_default_dtype(torch.float64)
        try:
            with torch.device("meta"):
                other.step()
        finally:
            torch.set_default_dtype(torch.float32)
    assert_equal(every_param(other), every_param(expected))
    assert [float(other.state[p]["step"]) for p in every_param(other)] == [3, 3]


@needs_kernel
def test_the_path_can_change_in_mid_training():
    params = parameters((7,), (5, 5))
    mixed, loop = AdaMod(params), AdaMod(copies(params), fused=False)
    for t, options in enumerate([PATHS["operator"], PATHS["loop"], PATHS["foreach"], PATHS["operator"]], 1):
        mixed.param_groups[0].update(options)
        train(mixed, t, t)
    train(loop, 1, 4)
    for p, q in zip(every_param(mixed), every_param(loop), strict=True):
        assert mixed.state[p]["step"] == loop.state[q]["step"] == 4
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@EVERY_PATH
def test_two_runs_give_the_same_bits(path: str):
    runs = [AdaMod(parameters((100,), (3, 5), (), dtype=torch.bfloat16), lr=1e-2, **PATHS[path]) for _ in range(2)]
    for optimizer in runs:
        train(optimizer, 1, 5)
    assert_twins(*runs)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("state_dtype", STATE_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_does_not_change_a_bit(threads: Any, dtype: torch.dtype, state_dtype: Any):
    shapes = [(70_001,), (33, 100), (3,), (300, 301)]
    runs = []
    for number in (1, 2, 4):
        threads(number)
        runs.append(AdaMod(parameters(*shapes, dtype=dtype), lr=1e-2, state_dtype=state_dtype))
        train(runs[-1], 1, 3)
    assert_twins(runs[0], runs[1])
    assert_twins(runs[0], runs[2])


# --- states ---------------------------------------------------------------------------------------------------------


@EVERY_PATH
def test_the_states_have_the_keys_shapes_and_memory_formats_that_torch_gives_them(path: str):
    images = nn.Parameter(torch.randn(4, 3, 5, 6).to(memory_format=torch.channels_last))
    sliced = torch.randn(6, 8)[1:5, ::2].requires_grad_()
    transposed = torch.randn(6, 8).t().requires_grad_()
    params = [images, sliced, transposed, nn.Parameter(torch.randn(()))]
    optimizer = AdaMod(params, **PATHS[path])
    train(optimizer, 1, 1)
    for p in params:
        state = optimizer.state[p]
        assert set(state) == {"step", *STATES}
        assert state["step"].shape == ()
        assert state["step"].dtype == torch.float32
        assert state["step"] == 1
        for key in STATES:
            assert state[key].shape == p.shape
            assert state[key].dtype == torch.float32
            assert state[key].stride() == torch.empty_like(p).stride()
            assert not state[key].requires_grad


EXPECTED_DTYPES = [
    (torch.float32, None, [torch.float32] * 3),
    (torch.float64, None, [torch.float64] * 3),
    (torch.bfloat16, None, [torch.float32] * 3),
    (torch.float16, None, [torch.float32] * 3),
    (torch.complex64, None, [torch.complex64] * 3),
    (torch.complex128, None, [torch.complex128] * 3),
    (torch.float32, torch.float32, [torch.float32] * 3),
    (torch.bfloat16, torch.float32, [torch.float32] * 3),
    (torch.float32, torch.bfloat16, [torch.bfloat16] * 3),
    (torch.complex64, torch.bfloat16, [torch.bfloat16] * 3),
    (torch.bfloat16, torch.bfloat16, [torch.bfloat16] * 3),
    (torch.float16, {"exp_avg": torch.bfloat16}, [torch.bfloat16, torch.float32, torch.float32]),
    (torch.float32, {"exp_avg_lr": torch.bfloat16}, [torch.float32, torch.float32, torch.bfloat16]),
    (torch.float32, {"exp_avg_sq": "int8", "exp_avg": None}, [torch.float32, torch.uint8, torch.float32]),
    (torch.float32, "int8", [torch.uint8] * 3),
    (torch.bfloat16, "int8", [torch.uint8] * 3),
    (torch.complex64, "int8", [torch.uint8] * 3),
]


@pytest.mark.parametrize(("dtype", "state_dtype", "expected"), EXPECTED_DTYPES, ids=str)
def test_state_dtype_decides_the_dtype_of_each_state(dtype: torch.dtype, state_dtype: Any, expected: list[torch.dtype]):
    params = parameters((64, 64), dtype=dtype)
    optimizer = AdaMod(params, state_dtype=state_dtype)
    train(optimizer, 1, 2)
    state = optimizer.state[params[0]]
    assert [state[key].dtype for key in STATES] == expected
    quantised = {f"{key}_scale" for key, kind in zip(STATES, expected, strict=True) if kind is torch.uint8}
    assert set(state) == {"step", *STATES, *quantised}
    blocks = 32 if dtype.is_complex else 16
    assert all(state[key].shape == (blocks,) and state[key].dtype == torch.int16 for key in quantised)


def test_8_bit_states_begin_at_4096_elements():
    optimizer = AdaMod(parameters((4095,), (4096,), (64, 64), (63, 65)), state_dtype="int8")
    train(optimizer, 1, 1)
    dtypes = [{optimizer.state[p][key].dtype for key in STATES} for p in every_param(optimizer)]
    assert dtypes == [{torch.float32}, {torch.uint8}, {torch.uint8}, {torch.float32}]


@pytest.mark.parametrize(
    ("state_dtype", "promised"), [(None, 12.0), (torch.bfloat16, 6.0), ("int8", 3.0 + 3 * 2 / 256)], ids=str
)
def test_the_states_take_no_more_memory_than_promised(state_dtype: Any, promised: float):
    [p] = parameters((1000, 1000))
    optimizer = AdaMod([p], state_dtype=state_dtype)
    train(optimizer, 1, 1)
    tensors = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in optimizer.state[p].values()}
    assert sum(tensors.values()) / p.numel() <= promised + 1e-4  # the step


@EVERY_PATH
def test_a_late_first_gradient_is_a_fresh_optimizer_for_that_parameter(path: str):
    """One step count for the whole group would correct the bias of the late parameter wrongly."""
    early, late = parameters((5,), (6,))
    optimizer = AdaMod([early, late], lr=1e-2, **PATHS[path])
    for t in range(1, 31):
        set_gradients([early], t)
        optimizer.step()
    assert late not in optimizer.state
    fresh = AdaMod(copies([late]), lr=1e-2, **PATHS[path])
    for t in range(1, 11):
        set_gradients([early, late], 100 + t)
        fresh.param_groups[0]["params"][0].grad = late.grad.clone()
        optimizer.step()
        fresh.step()
    assert_equal([late, *optimizer.state[late].values()], [*every_param(fresh), *states_of_in_order(fresh)])
    assert optimizer.state[early]["step"] == 40


def states_of_in_order(optimizer: AdaMod) -> list[Tensor]:
    return [x for p in every_param(optimizer) for x in optimizer.state[p].values()]


@EVERY_PATH
def test_gradients_that_come_and_go_count_for_their_own_parameter_only(path: str):
    params = parameters((5,), (6,), (7,))
    optimizer = AdaMod(params, **PATHS[path])
    alone = [AdaMod(copies([p]), **PATHS[path]) for p in params]
    for t in range(1, 13):
        set_gradients(params, t)
        for k, (p, other) in enumerate(zip(params, alone, strict=True)):
            if t % (k + 1):
                p.grad = None
            else:
                every_param(other)[0].grad = p.grad.clone()
                other.step()
        optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in params] == [12, 6, 4]
    assert_equal(params, [p for other in alone for p in every_param(other)])


@paths_with(None, torch.bfloat16, "int8")
@pytest.mark.parametrize(
    "copy_of", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_a_copied_optimizer_goes_on_alone(path: str, copy_of: Callable[[Any], Any], state_dtype: Any):
    options = {"lr": 1e-2, "state_dtype": state_dtype, **PATHS[path]}
    uninterrupted = AdaMod(parameters((70, 70), (3,)), **options)
    original = AdaMod(parameters((70, 70), (3,)), **options)
    train(uninterrupted, 1, 6)
    train(original, 1, 3)
    twin = copy_of(original)
    train(twin, 4, 6)
    assert_twins(twin, uninterrupted)
    assert [int(original.state[p]["step"]) for p in every_param(original)] == [3, 3]
    train(original, 4, 6)
    assert_twins(original, uninterrupted)


def test_the_optimizer_says_what_it_is():
    optimizer = AdaMod([("weight", parameters((3,))[0])], state_dtype="int8")
    text = repr(optimizer)
    assert text.startswith("AdaMod (")
    assert "beta3: 0.999" in text
    assert "state_dtype: int8" in text
    assert optimizer.param_groups[0]["param_names"] == ["weight"]


# --- groups and schedules -------------------------------------------------------------------------------------------

GROUP_OPTIONS = [
    {"lr": 1e-2},
    {"betas": (0.5, 0.9)},
    {"beta3": 0.5},
    {"eps": 1e-2},
    {"weight_decay": 0.5},
    {"variant": "paper"},
    {"bounded_decay": True, "weight_decay": 0.5},
    {"skip_unseen": True},
    {"maximize": True},
    {"state_dtype": torch.bfloat16},
    {"state_dtype": "int8"},
    {"seed": 7, "state_dtype": torch.bfloat16},
    {"seed": None, "state_dtype": torch.bfloat16},
]


@pytest.mark.parametrize("options", GROUP_OPTIONS, ids=str)
@pytest.mark.parametrize("when", ["at first", "in mid-training"])
def test_every_option_of_a_group_has_its_effect_there_and_only_there(options: dict[str, Any], when: str):
    plain, special = parameters((70, 60), (70, 60))
    with torch.no_grad():
        special.copy_(plain)
    if when == "at first":
        mixed = AdaMod([{"params": [plain]}, {"params": [special], **options}])
    else:
        mixed = AdaMod([plain])
        mixed.add_param_group({"params": [special], **options})
    alone = AdaMod([{"params": copies([plain])}, {"params": copies([special])}], **without_seed(options))
    neither = AdaMod([{"params": copies([plain])}, {"params": copies([special])}])
    for optimizer in (mixed, alone, neither):
        for group in optimizer.param_groups[1:] if optimizer is mixed else optimizer.param_groups:
            group["seed"] = options.get("seed", 0) if optimizer is not neither else 0
        for t in range(1, 6):
            set_gradients(every_param(optimizer), t)
            for p in every_param(optimizer):
                p.grad[0] *= t > 2  # unseen until then
            optimizer.step()
    assert_equal([plain], every_param(neither)[:1])
    assert_equal([special], every_param(alone)[1:])
    assert not torch.equal(special, every_param(neither)[1])
    assert not torch.equal(plain, every_param(alone)[0])


def without_seed(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "seed"}


@EVERY_PATH
def test_a_group_that_is_added_in_mid_training_starts_anew_and_leaves_the_others_alone(path: str):
    old, new = parameters((5,), (6,))
    optimizer = AdaMod([old], lr=1e-2, **PATHS[path])
    alone = [AdaMod(copies([p]), lr=lr, **PATHS[path]) for p, lr in ((old, 1e-2), (new, 1e-1))]
    train(optimizer, 1, 4)
    train(alone[0], 1, 4)
    optimizer.add_param_group({"params": new, "lr": 1e-1})
    for t in range(5, 9):
        set_gradients([old, new], t)
        for p, other in zip([old, new], alone, strict=True):
            every_param(other)[0].grad = p.grad.clone()
            other.step()
        optimizer.step()
    assert_equal([old, new], [p for other in alone for p in every_param(other)])
    assert [int(optimizer.state[p]["step"]) for p in (old, new)] == [8, 4]


@EVERY_PATH
def test_a_parameter_that_is_appended_to_the_list_of_a_group_keeps_the_others_steps(path: str):
    a, b, c = parameters((5,), (6,), (7,))
    optimizer = AdaMod([{"params": [a]}, {"params": [b]}], lr=1e-2, **PATHS[path])
    train(optimizer, 1, 3)
    optimizer.param_groups[0]["params"].append(c)
    for t in range(4, 7):
        set_gradients([a, b, c], t)
        optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in (a, b, c)] == [6, 6, 3]
    fresh = AdaMod(parameters((5,), (6,), (7,))[2:], lr=1e-2, **PATHS[path])
    for t in range(4, 7):
        set_gradients([a, b, c], t)
        every_param(fresh)[0].grad = c.grad
        fresh.step()
    assert_equal([c], every_param(fresh))


@EVERY_PATH
def test_a_group_that_is_removed_leaves_the_steps_of_the_others(path: str):
    a, b, c = parameters((5,), (6,), (7,))
    optimizer = AdaMod([{"params": [p]} for p in (a, b, c)], **PATHS[path])
    train(optimizer, 1, 3)
    optimizer.param_groups.pop(0)
    train(optimizer, 4, 5)
    assert [int(optimizer.state[p]["step"]) for p in (a, b, c)] == [3, 5, 5]


@EVERY_PATH
def test_a_parameter_that_is_replaced_in_its_group_starts_anew(path: str):
    a, b = parameters((5,), (6,))
    optimizer = AdaMod([a, b], **PATHS[path])
    train(optimizer, 1, 3)
    [new] = parameters((8,), seed=1)
    optimizer.param_groups[0]["params"][1] = new
    train(optimizer, 4, 5)
    assert [int(optimizer.state[p]["step"]) for p in (a, b, new)] == [5, 3, 2]


@EVERY_PATH
def test_a_state_that_is_replaced_or_removed_by_hand_is_obeyed(path: str):
    a, b = parameters((5,), (6,))
    optimizer, other = AdaMod([a, b], **PATHS[path]), AdaMod(copies([a, b]), **PATHS[path])
    train(optimizer, 1, 3)
    del optimizer.state[a]
    optimizer.state[b]["step"] = torch.tensor(9.0)
    optimizer.state[b]["exp_avg"] = torch.zeros(6)
    train(optimizer, 4, 4)
    assert [int(optimizer.state[p]["step"]) for p in (a, b)] == [1, 10]
    set_gradients([a, b], 4)
    torch.testing.assert_close(optimizer.state[b]["exp_avg"], 0.1 * b.grad)
    optimizer.state.clear()
    train(optimizer, 1, 1)
    assert [int(optimizer.state[p]["step"]) for p in (a, b)] == [1, 1]
    train(other, 1, 1)
    assert_equal(states_of(optimizer), states_of(other))


@pytest.mark.parametrize("order", [(None, "int8"), ("int8", None), (torch.bfloat16, "int8")], ids=str)
def test_state_dtype_may_change_for_parameters_that_come_later(order: tuple[Any, Any]):
    params = parameters((70, 70), (70, 70))
    optimizer = AdaMod(params, lr=1e-2, state_dtype=order[0])
    alone = [AdaMod([p], lr=1e-2, state_dtype=kind) for p, kind in zip(copies(params), order, strict=True)]
    for other in alone:
        other.param_groups[0]["seed"] = None
    optimizer.param_groups[0]["seed"] = None  # they draw other numbers alone
    for t in range(1, 6):
        optimizer.param_groups[0]["state_dtype"] = order[t > 2]
        set_gradients(params if t > 2 else params[:1], t)
        for p, other in zip(params, alone, strict=True):
            every_param(other)[0].grad = p.grad
            other.step()
        optimizer.step()
    assert_equal(states_of(optimizer), [x for other in alone for x in states_of(other)])
    assert_equal(params, [p for other in alone for p in every_param(other)])


def test_a_change_to_foreach_with_states_of_low_precision_is_refused():
    optimizer = AdaMod(parameters((5,)), state_dtype=torch.bfloat16)
    train(optimizer, 1, 2)
    optimizer.param_groups[0]["foreach"] = True
    with pytest.raises(ValueError, match=r"^state_dtype=torch.bfloat16 is not supported with foreach=True"):
        optimizer.step()
    assert optimizer.state[every_param(optimizer)[0]]["step"] == 2


@EVERY_PATH
def test_schedulers_drive_the_learning_rate_and_the_betas(path: str):
    scheduled, manual = (AdaMod(parameters((5,)), lr=0.1, **PATHS[path]) for _ in range(2))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(scheduled, max_lr=0.1, total_steps=12)
    seen = set()
    for t in range(1, 11):
        group = scheduled.param_groups[0]
        manual.param_groups[0].update(lr=group["lr"], betas=group["betas"])
        seen.add((group["lr"], *group["betas"]))
        train(scheduled, t, t)
        train(manual, t, t)
        scheduler.step()
    assert len(seen) == 10
    assert_twins(scheduled, manual)


def test_a_scheduler_fills_a_tensor_learning_rate_in_place():
    lr = torch.tensor(0.1)
    optimizer = AdaMod(parameters((5,)), lr=lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    train(optimizer, 1, 1)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == pytest.approx(0.01)
    train(optimizer, 2, 2)


def test_a_lower_learning_rate_acts_at_once_and_a_higher_one_lags():
    params = parameters((50,))
    optimizer = AdaMod(params, lr=1e-2, beta3=0.99, fused=False)
    train(optimizer, 1, 500)

    def change(lr: float) -> float:
        twin = copy.deepcopy(optimizer)
        twin.param_groups[0]["lr"] = lr
        before = every_param(twin)[0].detach().clone()
        train(twin, 501, 501)
        return (every_param(twin)[0].detach() - before).abs().sum().item()

    same, lower, higher = change(1e-2), change(1e-3), change(1e-1)
    assert lower / same == pytest.approx(0.1, rel=0.1)
    assert higher / same < 1.3


# --- the step -------------------------------------------------------------------------------------------------------


def test_a_closure_is_called_once_with_gradients_enabled_and_its_loss_is_returned():
    [p] = parameters((5,))
    optimizer = AdaMod([p], lr=1e-2)
    expected = AdaMod(copies([p]), lr=1e-2)
    calls = []

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        calls.append(loss)
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [loss]
    [q] = every_param(expected)
    assert loss.item() == (q**2).sum().item()
    q.grad = 2 * q.detach()
    assert expected.step() is None
    assert_equal([p], [q])


def test_hooks_run_before_and_after_the_step():
    optimizer = AdaMod(parameters((5,)))
    seen: list[tuple[str, float]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(self: AdaMod, args: Any, kwargs: Any) -> None:
            seen.append((name, max((float(state["step"]) for state in self.state.values()), default=0)))

        return hook

    optimizer.register_step_pre_hook(note("before"))
    optimizer.register_step_post_hook(note("after"))
    train(optimizer, 1, 2)
    assert seen == [("before", 0), ("after", 1), ("before", 1), ("after", 2)]


@EVERY_PATH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("variant", ["code", "paper"])
def test_gradients_are_never_written(path: str, dtype: torch.dtype, variant: str):
    params = parameters((31,), (4, 5), dtype=dtype)
    optimizer = AdaMod(
        params, lr=0.1, weight_decay=0.5, maximize=True, bounded_decay=True, variant=variant, **PATHS[path]
    )
    for t in range(1, 4):
        set_gradients(params, t)
        before, versions = [p.grad.clone() for p in params], [p.grad._version for p in params]
        optimizer.step()
        assert_equal([p.grad for p in params], before)
        assert [p.grad._version for p in params] == versions


def test_accumulated_gradients_are_one_gradient():
    model = nn.Linear(6, 3)
    twin = copy.deepcopy(model)
    whole, parts = AdaMod(model.parameters(), lr=0.1), AdaMod(twin.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        batch = torch.randn(8, 6, generator=generator)
        model(batch).pow(2).sum().backward()
        for half in batch.chunk(4):
            twin(half).pow(2).sum().backward()
        for optimizer in (whole, parts):
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@EVERY_PATH
def test_zeroing_gradients_in_place_or_dropping_them_is_the_same(path: str):
    runs = []
    for set_to_none in (True, False):
        [p] = parameters((9,))
        optimizer = AdaMod([p], lr=0.1, **PATHS[path])
        for _ in range(5):
            optimizer.zero_grad(set_to_none=set_to_none)
            (p**3).sum().backward()
            optimizer.step()
        runs.append(optimizer)
    assert_twins(*runs)


def test_a_parameter_that_stands_twice_is_stepped_twice():
    """As torch's loop does it, which warns of it."""
    [p] = parameters((5,))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = AdaMod([p, p], lr=0.1)
    once = AdaMod(copies([p]), lr=0.1, fused=False)
    for t in range(1, 4):
        set_gradients([p], t)
        optimizer.step()
        every_param(once)[0].grad = p.grad
        once.step()
        once.step()
    assert optimizer.state[p]["step"] == 6
    assert_equal([p], every_param(once))


@EVERY_PATH
def test_tied_modules_have_one_parameter(path: str):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
            self.out.weight = self.embed.weight

    model = Tied()
    optimizer = AdaMod(model.parameters(), **PATHS[path])
    model.out(model.embed(torch.arange(9))).logsumexp(1).sum().backward()
    optimizer.step()
    assert len(optimizer.state) == 1
    assert optimizer.state[model.embed.weight]["step"] == 1


def test_the_steps_of_differentiable_training_pass_gradients_on():
    """The gradient of the loss after two steps with respect to the learning rate, against a finite difference."""

    def loss_after(lr: Tensor) -> Tensor:
        start = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
        p = start.clone()
        optimizer = AdaMod([p], lr=lr, beta3=0.5, differentiable=True)
        for _ in range(3):
            p.grad = 2 * p
            optimizer.step()
        return (p**2).sum()

    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    [slope] = torch.autograd.grad(loss_after(lr), [lr])
    with torch.no_grad():
        difference = (loss_after(lr + 1e-6) - loss_after(lr - 1e-6)) / 2e-6
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("capturable", [True, False])
def test_capturable_changes_nothing_on_cpu(capturable: bool):
    for path in ("loop", "foreach"):
        params = parameters((7,), (3, 4))
        one = AdaMod(params, lr=1e-2, weight_decay=0.1, capturable=capturable, **PATHS[path])
        other = AdaMod(copies(params), lr=1e-2, weight_decay=0.1, **PATHS["loop"])
        train(one, 1, 10)
        train(other, 1, 10)
        for p, q in zip(every_param(one), every_param(other), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


# --- layouts --------------------------------------------------------------------------------------------------------


def layouts(guard: float) -> dict[str, tuple[Tensor, Tensor]]:
    """Parameters of many layouts, each with the memory around it, which holds `guard`."""
    bases = {name: torch.full((2000,), guard) for name in ("rows", "columns", "transposed", "odd", "images", "gaps")}
    views = {
        "rows": bases["rows"].view(20, 100)[3:17],
        "columns": bases["columns"].view(20, 100)[:, 1::3],
        "transposed": bases["transposed"].view(20, 100)[2:9, 5:50].t(),
        "odd": bases["odd"][1:1038],
        "images": bases["images"].view(2, 10, 10, 10)[:, 1:8, :, 2:].permute(0, 3, 1, 2),
        "gaps": bases["gaps"].as_strided((3, 4, 5), (7, 200, 31)),
    }
    return {name: (bases[name], view) for name, view in views.items()}


@paths_with(None, torch.bfloat16)
@pytest.mark.parametrize("gradient", ["like the parameter", "contiguous", "reversed", "expanded"])
def test_any_layout_is_stepped_like_a_contiguous_copy_and_its_neighbours_stay(
    path: str, state_dtype: Any, gradient: str
):
    guard = 12345.0
    for name, (base, view) in layouts(guard).items():
        generator = torch.Generator().manual_seed(3)
        inside = torch.zeros(2000, dtype=torch.bool)
        inside.as_strided(view.shape, view.stride(), view.storage_offset())[...] = True
        start = torch.randn(view.shape, generator=generator)
        view.copy_(start)
        p = view.requires_grad_()
        order = sorted(range(p.ndim), key=lambda d: -p.stride(d))
        flat = nn.Parameter(start.permute(order).contiguous())  # the same elements in the same memory order
        options = {"lr": 1e-2, "weight_decay": 0.1, "state_dtype": state_dtype, **PATHS[path]}
        ours, theirs = AdaMod([p], **options), AdaMod([flat], **options)
        for _ in range(3):
            g = torch.randn(p.shape, generator=generator)
            if gradient == "expanded":
                g = g.select(0, 0).expand(p.shape)
            elif gradient == "reversed":
                g = g.permute(*reversed(range(g.ndim))).contiguous().permute(*reversed(range(g.ndim)))
            elif gradient == "like the parameter":
                g = torch.empty_like(p).copy_(g)
            p.grad, flat.grad = g, g.permute(order).contiguous()
            ours.step()
            theirs.step()
        pairs = [(p.detach(), flat.detach()), *((ours.state[p][key], theirs.state[flat][key]) for key in STATES)]
        for x, y in pairs:  # torch's own vectorised and strided loops round an expanded gradient differently
            tolerance = 1e-6 if gradient == "expanded" else 0
            torch.testing.assert_close(x.permute(order), y, rtol=tolerance, atol=tolerance / 10)
        assert (base.detach()[~inside] == guard).all(), name


@pytest.mark.parametrize("layout", ["channels last", "transposed", "sliced and transposed"])
def test_8_bit_states_follow_the_memory_of_the_parameter(layout: str):
    start = torch.randn(8, 16, 6, 8, generator=torch.Generator().manual_seed(0))
    if layout == "channels last":
        p, order = start.to(memory_format=torch.channels_last), (0, 2, 3, 1)
    elif layout == "transposed":
        p, order = start.permute(3, 2, 1, 0), (3, 2, 1, 0)
    else:
        p, order = torch.cat([start, start])[::2].permute(3, 0, 2, 1), (1, 3, 2, 0)
    p.requires_grad_()
    flat = nn.Parameter(p.detach().permute(order).contiguous())
    ours, theirs = (AdaMod([x], lr=1e-2, state_dtype="int8") for x in (p, flat))
    for t in range(1, 5):
        set_gradients([flat], t)
        inverse = sorted(range(4), key=order.__getitem__)
        p.grad = flat.grad.permute(inverse)
        ours.step()
        theirs.step()
    assert_equal([p.detach().permute(order)], [flat])
    for key in STATES:
        assert_equal([ours.state[p][key].permute(order)], [theirs.state[flat][key]])
        assert_equal([ours.state[p][key + "_scale"]], [theirs.state[flat][key + "_scale"]])
    a, b = (next(iter(optimizer.bound_stats().values())) for optimizer in (ours, theirs))
    assert a.clipped == b.clipped
    assert_equal([a.eta, a.s], [b.eta, b.s])


@EVERY_PATH
def test_gradients_that_are_views_with_a_pending_sign_or_conjugation_are_read_right(path: str):
    z = parameters((5,), dtype=torch.complex64)
    r = parameters((5,))
    optimizer = AdaMod([*z, *r], **PATHS[path])
    twin = AdaMod(copies([*z, *r]), **PATHS[path])
    numbers = torch.randn(5, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    z[0].grad, r[0].grad = numbers.conj(), numbers.conj().imag
    assert z[0].grad.is_conj()
    assert r[0].grad.is_neg()
    for p, q in zip(every_param(optimizer), every_param(twin), strict=True):
        q.grad = p.grad.clone().resolve_conj().resolve_neg()
    optimizer.step()
    twin.step()
    assert_twins(optimizer, twin)


def test_a_tensor_subclass_is_stepped_without_the_operator():
    class Labelled(Tensor):
        pass

    [plain] = parameters((5,))
    labelled = plain.detach().clone().as_subclass(Labelled).requires_grad_()
    one, other = AdaMod([labelled]), AdaMod([plain], **PATHS["loop"])
    assert not one._step_supports_amp_scaling
    train(one, 1, 3)
    train(other, 1, 3)
    assert_equal([labelled.as_subclass(Tensor)], [plain])


def test_meta_parameters_are_stepped_without_any_memory():
    p = nn.Parameter(torch.empty(10**6, 10**3, device="meta"))
    p.grad = torch.empty_like(p)
    for options in ({}, PATHS["foreach"]):
        optimizer = AdaMod([p], **options)
        optimizer.step()
        assert optimizer.state[p]["exp_avg"].is_meta
        assert optimizer.state[p]["step"] == 1


# --- precision ------------------------------------------------------------------------------------------------------

GRADIENT_DTYPES = [
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.float32, torch.float16),
    (torch.float32, torch.float64),
    (torch.float64, torch.float32),
    (torch.bfloat16, torch.float16),
    (torch.bfloat16, torch.float64),
    (torch.complex64, torch.complex128),
]


@EVERY_PATH
@pytest.mark.parametrize(("dtype", "grad_dtype"), GRADIENT_DTYPES, ids=str)
def test_a_gradient_of_another_dtype_is_taken_for_its_value(path: str, dtype: torch.dtype, grad_dtype: torch.dtype):
    mixed, plain = (parameters((1030,), (3, 4), dtype=dtype) for _ in range(2))
    exact = torch.promote_types(dtype, torch.float32)
    for p in [*mixed, *plain]:
        p.grad_dtype = None
    one, other = AdaMod(mixed, lr=1e-2, **PATHS[path]), AdaMod(plain, lr=1e-2, **PATHS[path])
    for t in range(1, 4):
        for k, (p, q) in enumerate(zip(mixed, plain, strict=True)):
            generator = torch.Generator().manual_seed(1000 * t + k)
            values = torch.randn(p.shape, generator=generator, dtype=exact).to(grad_dtype).to(exact)
            p.grad, q.grad = values.to(grad_dtype), values
        one.step()
        other.step()
    assert_twins(one, other)


def mlp(seed: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 128), nn.Tanh(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 1))
    x = torch.randn(256, 16)
    return model, x, (x[:, :1] * x[:, 1:2]).tanh() + x[:, 2:3]


def final_loss(model: nn.Module, x: Tensor, y: Tensor, steps: int, **options: Any) -> float:
    optimizer = AdaMod(model.parameters(), lr=3e-3, beta3=0.99, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
    return loss.item()


def test_training_with_states_of_low_precision_reaches_the_loss_of_float32():
    """The 8-bit states serve the middle layer of 8192 elements; the loss falls a hundredfold within these steps."""
    losses = {}
    for state_dtype in (None, torch.bfloat16, "int8"):
        losses[state_dtype] = final_loss(*mlp(0), steps=400, state_dtype=state_dtype)
    start = final_loss(*mlp(0), steps=1)
    assert losses[None] < start / 50
    for state_dtype in (torch.bfloat16, "int8"):
        assert losses[state_dtype] == pytest.approx(losses[None], rel=0.25)


def test_stochastic_rounding_lets_bfloat16_parameters_learn_from_small_steps():
    """A step of 1e-4 is 1/40 of the spacing of bfloat16 at 1: to the nearest it is lost."""
    moved = {}
    for seed in (0, None):
        p = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        optimizer = AdaMod([{"params": [p], "seed": seed}], lr=1e-4, beta3=0.0)
        for _ in range(100):
            p.grad = torch.ones_like(p)
            optimizer.step()
        moved[seed] = 1 - p.detach().float().mean().item()
    assert moved[None] == 0
    assert moved[0] == pytest.approx(1e-2, rel=0.1)


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, "int8"], ids=str)
def test_the_seed_of_a_group_changes_the_rounding_and_nothing_else(state_dtype: Any):
    runs = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        runs[name] = AdaMod([{"params": parameters((70, 70)), "seed": seed}], state_dtype=state_dtype)
        train(runs[name], 1, 5)
    assert_twins(runs["a"], runs["b"])
    a, c = (every_param(runs[name])[0].detach() for name in "ac")
    assert not torch.equal(a, c)
    torch.testing.assert_close(a, c, rtol=1e-3, atol=1e-4)


def test_parameters_of_equal_value_draw_different_numbers():
    params = [nn.Parameter(torch.ones(4096, dtype=torch.bfloat16)) for _ in range(2)]
    optimizer = AdaMod(params, lr=1e-3, beta3=0.0)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    moved = [p.detach() != 1 for p in params]
    assert not torch.equal(*moved)
    both = (moved[0] & moved[1]).float().mean().item()
    assert both == pytest.approx(moved[0].float().mean().item() * moved[1].float().mean().item(), abs=0.03)


@EVERY_PATH
def test_every_path_draws_the_same_numbers(path: str):
    """By the place of a parameter among all groups; the steps move a third of the elements."""

    def moved(path: str) -> list[Tensor]:
        params = [nn.Parameter(torch.ones(4096, dtype=torch.bfloat16)) for _ in range(3)]
        optimizer = AdaMod(
            [{"params": params[:1]}, {"params": params[1:], "seed": 3}], lr=1e-3, beta3=0.0, **PATHS[path]
        )
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        return [p.detach() != 1 for p in params]

    ours, loop = moved(path), moved("loop")
    for k, (x, y) in enumerate(zip(ours, loop, strict=True)):
        assert (x == y).float().mean() > 0.99
        assert 0.1 < x.float().mean() < 0.9
        assert (x == ours[k - 1]).float().mean() < 0.9


# --- GradScaler -----------------------------------------------------------------------------------------------------


def scaler_of(scale: float = 2.0**10) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)


@paths_with(None, torch.bfloat16, "int8")
def test_a_power_of_two_as_scale_changes_no_bit_of_the_training(path: str, state_dtype: Any):
    options = {"lr": 1e-2, "state_dtype": state_dtype, "weight_decay": 0.1, **PATHS[path]}
    plain, scaled = AdaMod(parameters((70, 70), (3,)), **options), AdaMod(parameters((70, 70), (3,)), **options)
    scaler = scaler_of()
    scales = set()
    for t in range(1, 11):
        set_gradients(every_param(plain), t)
        plain.step()
        scales.add(scaler.get_scale())
        scaler.scale(torch.zeros(()))
        set_gradients(every_param(scaled), t, scale=scaler.get_scale())
        scaler.step(scaled)
        scaler.update()
        assert not hasattr(scaled, "grad_scale")
    assert len(scales) > 2
    assert_twins(plain, scaled)


@needs_kernel
def test_the_operator_unscales_without_writing_the_gradients():
    optimizer = AdaMod(parameters((70,), (3,)))
    scaler = scaler_of()
    scaler.scale(torch.zeros(()))
    set_gradients(every_param(optimizer), 1, scale=scaler.get_scale())
    before = [p.grad.clone() for p in every_param(optimizer)]
    scaler.step(optimizer)
    assert_equal([p.grad for p in every_param(optimizer)], before)


@paths_with(None, torch.bfloat16, "int8")
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_step_whose_gradients_are_not_finite_changes_nothing_in_any_group(path: str, bad: float, state_dtype: Any):
    a, b, late = parameters((70, 70), (3,), (4,))
    options = {"lr": 1e-2, "state_dtype": state_dtype, **PATHS[path]}
    optimizer = AdaMod([{"params": [a, late]}, {"params": [b]}], **options)
    scaler = scaler_of()
    scaler.scale(torch.zeros(()))
    for t in (1, 2):
        set_gradients([a, b], t, scale=scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
    expected = copy.deepcopy(optimizer)
    set_gradients([a, b, late], 3, scale=scaler.get_scale())
    b.grad[1] = bad
    scaler.step(optimizer)
    scale = scaler.get_scale()
    scaler.update()
    assert scaler.get_scale() == scale / 2
    assert [float(optimizer.state[p]["step"]) for p in (a, b)] == [2, 2]
    assert optimizer.state.get(late, {"step": 0.0})["step"] == 0
    assert_equal(every_param(optimizer), every_param(expected))
    for t in (4, 5):  # what follows is as if nothing had been
        set_gradients(every_param(optimizer), t, scale=scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
        train(expected, t, t)
    assert_twins(optimizer, expected)
    assert [float(optimizer.state[p]["step"]) for p in (a, b, late)] == [4, 4, 2]


def test_unscaling_by_hand_and_clipping_work():
    plain, scaled = AdaMod(parameters((70,)), lr=1e-2), AdaMod(parameters((70,)), lr=1e-2)
    scaler = scaler_of()
    for t in range(1, 4):
        set_gradients(every_param(plain), t)
        nn.utils.clip_grad_norm_(every_param(plain), 0.5)
        plain.step()
        scaler.scale(torch.zeros(()))
        set_gradients(every_param(scaled), t, scale=scaler.get_scale())
        scaler.unscale_(scaled)
        nn.utils.clip_grad_norm_(every_param(scaled), 0.5)
        scaler.step(scaled)
        scaler.update()
    assert_twins(plain, scaled)


# --- torch.compile --------------------------------------------------------------------------------------------------


@pytest.fixture
def dynamo() -> Iterator[Any]:
    torch.compiler.reset()
    yield torch._dynamo
    torch.compiler.reset()


@needs_kernel
@pytest.mark.parametrize("state_dtype", [None, "int8"], ids=str)
def test_a_compiled_step_gives_the_same_bits_and_is_not_compiled_again_for_a_new_learning_rate(
    dynamo: Any, state_dtype: Any
):
    eager, compiled = (AdaMod(parameters((70, 70), (3,)), lr=1e-2, state_dtype=state_dtype) for _ in range(2))
    step = torch.compile(compiled.step, backend="aot_eager")
    for t in range(1, 3):
        set_gradients(every_param(compiled), t)
        step()
    with dynamo.config.patch(error_on_recompile=True):
        for t in range(3, 8):
            compiled.param_groups[0]["lr"] = 1e-2 / t
            set_gradients(every_param(compiled), t)
            step()
    for t in range(1, 8):
        eager.param_groups[0]["lr"] = 1e-2 / t if t > 2 else 1e-2
        train(eager, t, t)
    assert_twins(eager, compiled)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # from tracing backward()
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_train_step_is_not_compiled_again_for_a_new_learning_rate(dynamo: Any, backend: str):
    model, x, y = mlp(0)
    twin = copy.deepcopy(model)

    def step_of(model: nn.Module, optimizer: AdaMod) -> Callable[[], Tensor]:
        def step() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        return step

    ours, theirs = AdaMod(model.parameters()), AdaMod(twin.parameters())
    compiled, eager = torch.compile(step_of(model, ours), backend=backend), step_of(twin, theirs)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) for optimizer in (ours, theirs)]
    for t in range(8):
        with dynamo.config.patch(error_on_recompile=t > 2 and WITH_KERNEL):
            loss = compiled()
        torch.testing.assert_close(loss, eager())
        for schedule in schedules:
            schedule.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert ours.state[p]["step"] == 8
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("path", ["foreach", "loop"])
def test_the_plain_paths_can_be_compiled(dynamo: Any, path: str):
    eager, compiled = (AdaMod(parameters((7, 7), (3,)), lr=1e-2, weight_decay=0.1, **PATHS[path]) for _ in range(2))
    step = torch.compile(compiled.step, backend="aot_eager")
    for t in range(1, 6):
        set_gradients(every_param(compiled), t)
        step()
    train(eager, 1, 5)
    for p, q in zip(every_param(compiled), every_param(eager), strict=True):
        assert compiled.state[p]["step"] == 5
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_a_saved_optimizer_is_read_back_by_pickle_from_a_file():
    optimizer = AdaMod(parameters((5,)))
    train(optimizer, 1, 2)
    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    train(optimizer, 3, 4)
    train(loaded, 3, 4)
    assert_twins(optimizer, loaded)
