"""What the optimizers refuse, in which words, and that a refusal changes nothing in any group."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from adamod import AdaMod, DiffMod

BOTH = pytest.mark.parametrize("kind", [AdaMod, DiffMod])


def parameters(*shapes: tuple[int, ...], **options: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).to(**options).requires_grad_() for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p)
    return params


def contents(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Everything a step could change, copied; parameters without a state have none here either."""
    groups = optimizer.param_groups
    params = [p for group in groups for p in group["params"]]
    return {
        "params": [p.detach().clone() for p in params],
        "grads": [p.grad.clone() if p.grad is not None else None for p in params],
        "states": [
            {key: x.clone() if isinstance(x, Tensor) else x for key, x in optimizer.state.get(p, {}).items()}
            for p in params
        ],
        "options": [{key: value for key, value in group.items() if key != "params"} for group in groups],
    }


def assert_same(after: Any, before: Any) -> None:
    if isinstance(before, dict):
        assert list(after) == list(before)
        for key in before:
            assert_same(after[key], before[key])
    elif isinstance(before, list):
        assert len(after) == len(before)
        for a, b in zip(after, before, strict=True):
            assert_same(a, b)
    elif isinstance(before, Tensor) and before.layout is torch.strided and not before.is_meta:
        torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)
    elif not isinstance(before, Tensor):
        assert after == before


OPTIONS = [
    ({"lr": -1}, "Invalid learning rate: -1"),
    ({"lr": math.nan}, "Invalid learning rate: nan"),
    ({"lr": torch.tensor(-1.0)}, "Invalid learning rate: -1.0"),
    ({"eps": -1}, "Invalid epsilon value: -1"),
    ({"eps": math.nan}, "Invalid epsilon value: nan"),
    ({"weight_decay": -1}, "Invalid weight_decay value: -1"),
    ({"weight_decay": math.nan}, "Invalid weight_decay value: nan"),
    ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
    ({"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1: 1.0"),
    ({"betas": (-0.1, 0.9)}, "Invalid beta parameter at index 0: -0.1"),
    ({"betas": (0.9, math.nan)}, "Invalid beta parameter at index 1: nan"),
    ({"beta3": 1.0}, "Invalid beta3 parameter: 1.0"),
    ({"beta3": -0.1}, "Invalid beta3 parameter: -0.1"),
    ({"beta3": math.nan}, "Invalid beta3 parameter: nan"),
    ({"betas": (0.9, 0.99, 0.999)}, "betas needs 2 values, got 3, pass the third as beta3="),
    ({"betas": (0.9,)}, "betas needs 2 values, got 1"),
    ({"betas": (0.9, torch.tensor(0.99))}, "betas must be either both floats or both Tensors"),
    ({"betas": (torch.tensor(0.9), 0.99)}, "betas must be either both floats or both Tensors"),
    ({"lr": torch.tensor([1.0, 2.0])}, "Tensor lr must be 1-element"),
    ({"betas": (torch.tensor([0.9, 0.9]), torch.tensor(0.9))}, "Tensor betas[0] must be 1-element"),
    ({"beta3": torch.tensor([0.9, 0.9])}, "Tensor beta3 must be 1-element"),
    (
        {"lr": torch.tensor(1e-3), "foreach": True},
        "lr as a Tensor is not supported for capturable=False and foreach=True",
    ),
    (
        {"betas": (torch.tensor(0.9), torch.tensor(0.99)), "foreach": True},
        "betas[0] as a Tensor is not supported for capturable=False and foreach=True",
    ),
]
ADAMOD_OPTIONS = [
    ({"variant": "adam"}, ValueError, "variant must be one of ('code', 'paper'), got 'adam'"),
    ({"state_dtype": torch.float16}, ValueError, "state_dtype must be one of None, torch.float32, torch.bfloat16, 'in"),
    ({"state_dtype": "int4"}, ValueError, "state_dtype must be one of None, torch.float32, torch.bfloat16, 'int8'"),
    ({"state_dtype": {"exp_avg": "int4"}}, ValueError, "state_dtype must be one of None, torch.float32"),
    (
        {"state_dtype": {"m": "int8"}},
        ValueError,
        "state_dtype may have the keys 'exp_avg', 'exp_avg_sq', 'exp_avg_lr', got 'm'",
    ),
    ({"state_dtype": torch.bfloat16, "foreach": True}, ValueError, "state_dtype=torch.bfloat16 is not supported with "),
    ({"state_dtype": "int8", "foreach": True}, ValueError, "state_dtype='int8' is not supported with foreach=True"),
    ({"state_dtype": "int8", "differentiable": True}, ValueError, "state_dtype='int8' is not supported with different"),
    (
        {"state_dtype": {"exp_avg_lr": torch.bfloat16}, "differentiable": True},
        ValueError,
        "state_dtype=torch.bfloat16 is not supported with differentiable=True",
    ),
    ({"bounded_decay": 1}, TypeError, "bounded_decay must be True or False, got 1"),
    ({"skip_unseen": ""}, TypeError, "skip_unseen must be True or False, got ''"),
    ({"fused": True, "foreach": True}, RuntimeError, "`fused` and `foreach` cannot be `True` together"),
    ({"fused": True, "differentiable": True}, RuntimeError, "`fused` does not support `differentiable`"),
]
DIFFMOD_OPTIONS = [
    ({"version": 3}, ValueError, "version must be 0, 1 or 2, got 3"),
    ({"version": "0"}, ValueError, "version must be 0, 1 or 2, got '0'"),
    ({"len_memory": 0.5}, ValueError, "len_memory must be at least 1, got 0.5"),
    ({"len_memory": math.nan}, ValueError, "len_memory must be at least 1, got nan"),
]
CASES = [
    *((AdaMod, options, ValueError, text) for options, text in OPTIONS),
    *((DiffMod, options, ValueError, text) for options, text in OPTIONS if "capturable" not in text),
    *((AdaMod, *case) for case in ADAMOD_OPTIONS),
    *((DiffMod, *case) for case in DIFFMOD_OPTIONS),
]
EVERY_CASE = pytest.mark.parametrize(
    ("kind", "options", "error", "text"), CASES, ids=[f"{case[0].__name__}-{case[1]}" for case in CASES]
)


@EVERY_CASE
def test_an_option_out_of_its_range_is_refused(kind, options, error, text):
    with pytest.raises(error, match=r"^" + re.escape(text)):
        kind(parameters((3,)), **options)


@EVERY_CASE
def test_a_group_with_such_an_option_is_refused_and_nothing_changes(kind, options, error, text):
    first, second = parameters((3,), (2,))
    optimizer = kind([first])
    optimizer.step()
    before = contents(optimizer)
    with pytest.raises(error, match=r"^" + re.escape(text)):
        optimizer.add_param_group({"params": [second], **options})
    assert_same(contents(optimizer), before)
    optimizer.add_param_group({"params": [second]})  # a parameter of the refused group is not "already there"
    optimizer.step()
    assert optimizer.state[second]["step"] == 1
    assert optimizer.state[first]["step"] == 2


@pytest.mark.parametrize(
    "options",
    [
        case[1]
        for case in CASES
        if case[0] is AdaMod and "state_dtype" not in case[1]  # the receiver's is used
        if len(case[1].get("betas", ())) != 3  # as another optimizer writes beta3
    ],
    ids=str,
)
def test_a_checkpoint_with_such_an_option_is_refused_by_its_place_and_nothing_changes(options):
    optimizer = AdaMod([{"params": [p]} for p in parameters((3,), (2,))])
    optimizer.step()
    checkpoint = optimizer.state_dict()
    checkpoint["param_groups"][1].update(options)
    before = contents(optimizer)
    place = re.escape('state_dict["param_groups"][1]') + rf'(\["{next(iter(options))}"\]|: )'
    with pytest.raises((ValueError, TypeError), match="^" + place):
        optimizer.load_state_dict(checkpoint)
    assert_same(contents(optimizer), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16, "int8", {"exp_avg_lr": torch.bfloat16}])
def test_a_state_dtype_for_parameters_of_64_bits_is_refused(dtype, state_dtype):
    single, double = parameters((3,)), parameters((3,), dtype=dtype)
    with pytest.raises(ValueError, match=f"^state_dtype must be None for {dtype} parameters, got "):
        AdaMod(double, state_dtype=state_dtype)
    optimizer = AdaMod(single, state_dtype=state_dtype)
    with pytest.raises(ValueError, match=f"^state_dtype must be None for {dtype} parameters, got "):
        optimizer.add_param_group({"params": double})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": double, "state_dtype": None})


@pytest.mark.parametrize("make", [AdaMod, lambda params: AdaMod(params, fused=False, foreach=True), DiffMod])
@pytest.mark.parametrize("stepped", [False, True])
def test_a_sparse_gradient_in_the_second_group_leaves_the_first_group_alone(make, stepped):
    first, second, third = parameters((3,), (2,), (4, 4))
    optimizer = make([{"params": [first]}, {"params": [second, third]}])
    if stepped:
        optimizer.step()
    third.grad = torch.eye(4).to_sparse()
    before = contents(optimizer)
    text = (
        f"^{type(optimizer).__name__} does not support sparse gradients: that of parameter 2 must be strided, got torch"
    )
    with pytest.raises(RuntimeError, match=text):
        optimizer.step()
    assert_same(contents(optimizer), before)


UNFIT = {
    "int64": lambda: torch.zeros(3, dtype=torch.int64),
    "bool": lambda: torch.zeros(3, dtype=torch.bool),
    "float8": lambda: torch.zeros(3).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize(
    "make",
    [
        AdaMod,
        lambda params: AdaMod(params, fused=True),
        lambda params: AdaMod(params, foreach=True),
        lambda params: AdaMod(params, foreach=False),
        DiffMod,
    ],
    ids=["AdaMod", "fused", "foreach", "loop", "DiffMod"],
)
@pytest.mark.parametrize("unfit", UNFIT.values(), ids=UNFIT)
def test_a_gradient_of_a_parameter_that_cannot_be_stepped_leaves_the_first_group_alone(make, unfit):
    first, second = parameters((3,), (2,))
    last = unfit()
    optimizer = make([{"params": [("weight", first)]}, {"params": [("bias", second), ("codes", last)]}])
    optimizer.step()  # without a gradient it is left alone
    last.grad = torch.zeros_like(last)
    before = contents(optimizer)
    with pytest.raises(RuntimeError, match=r"^parameter 2 \('codes'\) must be of one of float64, .*, got torch"):
        optimizer.step()
    assert_same(contents(optimizer), before)


@pytest.mark.parametrize("stepped", [False, True])
def test_fused_true_without_a_kernel_is_refused_and_leaves_the_first_group_alone(stepped):
    [first], [second] = parameters((3,)), parameters((3,), device="meta")
    optimizer = AdaMod([{"params": [first]}, {"params": [second]}])
    if stepped:
        optimizer.step()
    optimizer.param_groups[1]["fused"] = True
    before = contents(optimizer)
    with pytest.raises(RuntimeError, match=r"^`fused=True` requires all the params to be floating point Tensors"):
        optimizer.step()
    assert_same(contents(optimizer), before)
    assert stepped or not optimizer.state


def test_fused_true_is_refused_for_a_tensor_subclass():
    class Labelled(Tensor):
        pass

    p = torch.ones(3).as_subclass(Labelled).requires_grad_()
    p.grad = torch.ones(3)
    optimizer = AdaMod([p], fused=True)
    with pytest.raises(RuntimeError, match=r"^`fused=True` requires all the params to be floating point Tensors"):
        optimizer.step()
    assert not optimizer.state


def test_a_step_that_requires_grad_is_refused_before_anything_is_done():
    first, second = parameters((3,), (2,))
    optimizer = AdaMod([{"params": [first.detach().clone()]}, {"params": [second.detach().clone()]}])
    for group, p in zip(optimizer.param_groups, (first, second), strict=True):
        group["differentiable"] = True
        group["params"][0].grad = p.grad
    optimizer.step()
    optimizer.state[optimizer.param_groups[1]["params"][0]]["step"].requires_grad_()
    before = contents(optimizer)
    with pytest.raises(RuntimeError, match=r"^`requires_grad` is not supported for `step` in differentiable mode"):
        optimizer.step()
    assert_same(contents(optimizer), before)


SHARING = {
    "expanded": lambda: torch.zeros(1, 3).expand(4, 3),
    "expanded scalar": lambda: torch.zeros(()).expand(2),
    "windows": lambda: torch.zeros(6).unfold(0, 3, 1),
    "overlapping strides": lambda: torch.zeros(9).as_strided((3, 3), (2, 1)),
    "complex": lambda: torch.zeros(1, 3, dtype=torch.complex64).expand(4, 3),
}


@pytest.mark.parametrize("make", SHARING.values(), ids=SHARING)
def test_a_parameter_whose_elements_share_memory_is_refused_by_its_index(make):
    shared = make().requires_grad_()
    with pytest.raises(ValueError, match=r"^parameter 0 has elements that share memory"):
        AdaMod([shared])
    with pytest.raises(ValueError, match=r"^parameter 1 has elements that share memory"):
        AdaMod([*parameters((3,)), shared])
    optimizer = AdaMod(parameters((3,), (2,)))
    optimizer.step()
    before = contents(optimizer)
    with pytest.raises(ValueError, match=r"^parameter 3 has elements that share memory .*; pass a clone"):
        optimizer.add_param_group({"params": [*parameters((5,)), shared]})
    assert_same(contents(optimizer), before)


APART = {
    "transposed": lambda: torch.zeros(3, 4).t(),
    "sliced": lambda: torch.zeros(5, 6)[1:4, ::2],
    "with gaps": lambda: torch.zeros(100).as_strided((3, 4), (20, 3)),
    "channels last": lambda: torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "expanded, one element": lambda: torch.zeros(()).expand(1, 1),
    "expanded, no element": lambda: torch.zeros(1).expand(3, 1)[:0],
    "scalar": lambda: torch.zeros(()),
}


@pytest.mark.parametrize("make", APART.values(), ids=APART)
def test_other_layouts_are_accepted(make):
    p = make().requires_grad_()
    p.grad = torch.ones_like(p)
    AdaMod([p]).step()
    torch.testing.assert_close(p.detach(), torch.full_like(p, -1e-6), rtol=1e-3, atol=0)


@BOTH
def test_parameters_that_are_no_tensors_are_refused_in_torchs_words(kind):
    with pytest.raises(TypeError, match="optimizer can only optimize Tensors"):
        kind([1.0])
    with pytest.raises(TypeError, match="params argument given to the optimizer should be an iterable"):
        kind(torch.ones(3))
    with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
        kind([])
    with pytest.raises(ValueError, match="can't optimize a non-leaf Tensor"):
        kind([torch.ones(3, requires_grad=True) * 2])


@BOTH
def test_the_learning_rate_zero_is_accepted_and_moves_nothing(kind):
    [p] = parameters((5,))
    before = p.detach().clone()
    optimizer = kind([p], lr=0.0, weight_decay=0.1)
    for _ in range(3):
        optimizer.step()
    assert torch.equal(p.detach(), before)
    assert not optimizer.state[p]["exp_avg_lr"].any()


@BOTH
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("foreach", [None, False, True])
def test_a_gradient_that_is_not_finite_spoils_its_own_element_only(kind, bad, foreach):
    p, q = parameters((1030,), (1030,))
    q.data, q.grad = p.detach().clone(), p.grad.clone()
    p.grad[700] = bad
    optimizer = kind([p, q], foreach=foreach, weight_decay=0.1)
    optimizer.step()
    p.grad[700] = 1.0
    optimizer.step()
    others = torch.arange(1030) != 700
    for x, y in [(p, q), *((optimizer.state[p][key], optimizer.state[q][key]) for key in ("exp_avg", "exp_avg_sq"))]:
        assert not x[700].isfinite()
        assert torch.equal(x[others], y[others])
    assert p[700].isnan()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_spoils_its_block_of_8_bit_states(bad):
    p, q = parameters((5000,), (5000,))
    q.data, q.grad = p.detach().clone(), p.grad.clone()
    optimizer = AdaMod([{"params": [p]}, {"params": [q]}], state_dtype="int8")
    optimizer.param_groups[0]["seed"] = optimizer.param_groups[1]["seed"] = None  # p and q would draw other numbers
    p.grad[700] = bad
    optimizer.step()
    spoilt = (torch.arange(5000) // 256) == 700 // 256
    assert torch.equal(p.isnan(), torch.arange(5000) == 700)
    p.grad[700] = 1.0
    optimizer.step()
    assert torch.equal(p.isnan(), spoilt)  # loud: the whole block, from the next step on
    assert torch.equal(p[~spoilt], q[~spoilt])


@BOTH
def test_parameters_without_a_gradient_are_skipped(kind):
    p, q = parameters((3,), (2,))
    q.grad = None
    before = q.detach().clone()
    optimizer = kind([p, q])
    optimizer.step()
    assert q not in optimizer.state
    assert torch.equal(q.detach(), before)
    assert optimizer.state[p]["step"] == 1


@BOTH
def test_a_step_without_any_gradient_does_nothing(kind):
    params = parameters((3,), (2,))
    for p in params:
        p.grad = None
    optimizer = kind([{"params": [p]} for p in params])
    optimizer.step()
    assert not optimizer.state


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="capture needs a CUDA device")
def test_capture_without_capturable_is_refused_in_torchs_words():
    [p] = parameters((3,), device="cuda")
    optimizer = AdaMod([p])
    optimizer.step()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.ones(1, device="cuda")  # an empty graph is a warning
        with pytest.raises(RuntimeError, match="capturable"):
            optimizer.step()
