"""What PyTorch demands of its own optimizers, asked of ours through its public table of configurations.

The table, `torch.testing._internal.common_optimizers`, comes with torch. The tests that PyTorch runs over it
(`TestOptimRenewed` and `TestDifferentiableOptimizer` in its test_optim.py) do not; each docstring here begins with the
name of the one whose subject it takes up.
"""

from __future__ import annotations

import copy
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adamod import AdaMod, DiffMod, _ops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

table = pytest.importorskip(
    "torch.testing._internal.common_optimizers",
    reason="torch's table of optimizers cannot be imported: it needs expecttest and setuptools",
    exc_type=ImportError,
)
ADAMW = next(info for info in table.optim_db if info.name == "AdamW")
OURS: dict[str, dict[str, Any]] = {
    "paper": {"variant": "paper", "beta3": 0.9},
    "bounded decay": {"bounded_decay": True, "weight_decay": 0.1},
    "skip unseen": {"skip_unseen": True, "eps": 1e-4},
}


def inputs(device: str, dtype: torch.dtype | None = None) -> list[Any]:
    """The configurations of AdamW but its amsgrad, which are for every device here, and some of ours."""
    described: dict[str, dict[str, Any]] = {}
    for given in ADAMW.optim_inputs_func("cuda", dtype):
        options = {key: value for key, value in given.kwargs.items() if key != "amsgrad"}
        if options.get("maximize"):
            options["bounded_decay"] = True  # whole decay is stronger than AdaMod's first steps
        if not any(repr(options) == repr(others) for others in described.values()):
            described[given.desc.replace(" and amsgrad", " of any shape").replace("amsgrad", "decay")] = options
    described |= copy.deepcopy(OURS)
    return [table.OptimizerInput(params=None, kwargs=options, desc=name) for name, options in described.items()]


INFO = table.OptimizerInfo(
    AdaMod,
    optim_inputs_func=inputs,
    optim_error_inputs_func=ADAMW.optim_error_inputs_func,
    scheduler_inputs=ADAMW.scheduler_inputs,
    supported_impls=("foreach", "differentiable", "fused"),
    not_og_supported_flags=ADAMW.not_og_supported_flags,
    supports_fused_on=tuple(_ops.KERNELS),
    has_capturable_arg=True,
)

WITH_KERNEL = "cpu" in _ops.KERNELS
PATHS = {
    "operator": {"fused": True},
    "foreach": {"foreach": True, "fused": False},
    "loop": {"foreach": False, "fused": False},
}
LOOP = PATHS["loop"]
needs_kernel = pytest.mark.skipif(not WITH_KERNEL, reason="the package was built without its C++ kernels")
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
EVERY_PLACE = pytest.mark.parametrize(
    ("device", "path"),
    [
        pytest.param("cpu", "operator", marks=needs_kernel),
        ("cpu", "foreach"),
        ("cpu", "loop"),
        *(pytest.param("cuda", path, marks=on_gpu) for path in PATHS),
    ],
)
EVERY_CONFIG = pytest.mark.parametrize("config", [given.desc for given in inputs("cpu")])
SOME = ["default", "maximize", "Tensor lr with capturable of any shape", "paper"]
SOME_CONFIGS = pytest.mark.parametrize("config", SOME)


def options_of(config: str, path: str, dtype: torch.dtype | None = None) -> dict[str, Any]:
    (given,) = (given for given in INFO.optim_inputs_func("cpu", dtype) if given.desc == config)
    return {**given.kwargs, **PATHS[path]}


SHAPES = ((3, 2), (3,), (), (0,), (40, 30))


def parameters(
    device: str = "cpu", dtype: torch.dtype = torch.float64, shapes: Sequence[tuple[int, ...]] = SHAPES
) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    wide = torch.promote_types(dtype, torch.float32)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=wide).to(device, dtype)) for shape in shapes]


def set_gradients(params: Sequence[Tensor], t: int) -> None:
    """Gradients of step t that depend on place, shape and kind only; the second one is missing at times."""
    for k, p in enumerate(params):
        generator = torch.Generator().manual_seed(100 * t + k)
        wide = torch.complex128 if p.is_complex() else torch.float64
        g = torch.randn(p.shape, generator=generator, dtype=wide).to(torch.promote_types(p.dtype, torch.float32))
        p.grad = None if k == 1 and t in (3, 4) else g.to(p.device, p.dtype)


def train(optimizer: torch.optim.Optimizer, first: int = 1, last: int = 7) -> None:
    for t in range(first, last + 1):
        set_gradients(params_of(optimizer), t)
        optimizer.step()


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def results(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Parameters and states, detached, in order."""
    params = params_of(optimizer)
    return [x.detach() for p in params for x in (p, *(x for _, x in sorted(optimizer.state[p].items())))]


def assert_equal(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def assert_rounding(actual: Sequence[Tensor], expected: Sequence[Tensor], steps: int = 7) -> None:
    """Equal up to 8 roundings in each step."""
    for a, b in zip(actual, expected, strict=True):
        bound = 8 * steps * (torch.finfo(a.dtype).eps if a.is_floating_point() or a.is_complex() else 0)
        torch.testing.assert_close(a, b, rtol=bound, atol=bound, check_device=False, check_dtype=False)


def model_of(params: Sequence[Tensor], x: Tensor) -> Tensor:
    weight, bias = params
    return (weight.mv(x) + bias).pow(2).sum()


# --- errors ---------------------------------------------------------------------------------------------------------


def test_the_table_leaves_the_path_to_the_tests():
    """test_optim_infos_do_not_specify_global_cliquey_kwargs"""
    for given in INFO.optim_inputs_func("cpu"):
        assert not {"foreach", "fused", "differentiable"} & set(given.kwargs)


ERRORS = INFO.optim_error_inputs_func("cpu", torch.float32)


@pytest.mark.parametrize("kind", [AdaMod, DiffMod])
@pytest.mark.parametrize("error", ERRORS, ids=[f"{k}: {e.optimizer_error_input.desc}" for k, e in enumerate(ERRORS)])
def test_what_torch_refuses_is_refused_in_its_words(kind: type, error: Any):
    """test_errors"""
    given = error.optimizer_error_input
    assert error.error_on == table.OptimizerErrorEnum.CONSTRUCTION_ERROR
    if issubclass(error.error_type, Warning):
        with pytest.warns(error.error_type, match=error.error_regex):
            kind(given.params, **given.kwargs)
    else:
        with pytest.raises(error.error_type, match=error.error_regex):
            kind(given.params, **given.kwargs)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"fused": True, "foreach": True}, "`fused` and `foreach` cannot be `True` together"),
        ({"fused": True, "differentiable": True}, "`fused` does not support `differentiable`"),
    ],
)
def test_paths_that_exclude_each_other_are_refused(options: dict[str, bool], text: str):
    """test_errors, which asks this on CUDA only"""
    with pytest.raises(RuntimeError, match=text):
        AdaMod(parameters(), **options)


# --- schedulers and tensors as options ------------------------------------------------------------------------------


def schedule(schedulers: Sequence[Any], loss: Tensor) -> None:
    for scheduler in schedulers:
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(loss.detach())
        else:
            scheduler.step()


@EVERY_PLACE
@SOME_CONFIGS
@pytest.mark.parametrize("makers", [(), *ADAMW.scheduler_inputs], ids=lambda makers: f"{len(makers)} schedulers")
def test_a_scheduled_learning_rate_is_the_one_that_is_used(device: str, path: str, config: str, makers: Sequence[Any]):
    """test_forloop_goes_right_direction"""
    scheduled = [nn.Parameter(p.detach()[..., 0]) for p in parameters(device, shapes=((10, 5, 2), (10, 2)))]
    by_hand = [nn.Parameter(p.detach().contiguous()) for p in scheduled]
    x = torch.linspace(-1, 1, 5, dtype=torch.float64, device=device)
    optimizer = AdaMod(scheduled, **options_of(config, path))
    twin = AdaMod(by_hand, **{**options_of(config, "loop"), "capturable": False})
    schedulers = [make(optimizer) for make in makers]

    losses = []
    for _ in range(20):
        twin.param_groups[0]["lr"] = float(optimizer.param_groups[0]["lr"])
        for params, each in ((scheduled, optimizer), (by_hand, twin)):
            each.zero_grad()
            loss = model_of(params, x)
            loss.backward()
            each.step()
        losses.append(loss.item())
        schedule(schedulers, loss)
    torch.testing.assert_close(scheduled, by_hand, rtol=1e-8, atol=1e-10)  # the loss amplifies roundings
    assert (losses[-1] > losses[0]) if optimizer.param_groups[0]["maximize"] else (losses[-1] < losses[0])
    assert len({*losses}) == 20


@EVERY_PLACE
@pytest.mark.parametrize("makers", ADAMW.scheduler_inputs, ids=lambda makers: f"{len(makers)} schedulers")
def test_groups_with_schedulers_are_optimizers_of_their_own(device: str, path: str, makers: Sequence[Any]):
    """test_param_group_with_lrscheduler_goes_right_direction"""
    together, apart = (parameters(device, shapes=((10, 5), (10, 5))) for _ in range(2))
    one = AdaMod([{"params": together[:1]}, {"params": together[1:], "lr": 0.01}], **PATHS[path])
    two = [AdaMod(apart[:1], **PATHS[path]), AdaMod(apart[1:], lr=0.01, **PATHS[path])]
    pairs = [(one, [make(one) for make in makers]), *((each, [make(each) for make in makers]) for each in two)]
    for t in range(1, 21):
        set_gradients(together, t)
        set_gradients(apart, t)
        for optimizer, schedulers in pairs:
            optimizer.step()
            schedule(schedulers, torch.tensor(1.0 / t))
    assert_equal(together, apart)


def numbers_and_tensors(dimensions: int) -> Iterator[dict[str, Any]]:
    numbers = {"lr": 2.0**-10, "betas": (0.875, 0.96875), "beta3": 0.75}
    yield numbers

    def tensor(x: float) -> Tensor:
        return torch.tensor(x).reshape([1] * dimensions)

    yield {key: tuple(map(tensor, x)) if isinstance(x, tuple) else tensor(x) for key, x in numbers.items()}


@EVERY_PLACE
@pytest.mark.parametrize("dimensions", [0, 1, 2])
@pytest.mark.parametrize("weight_decay", [0.0, 0.125])
def test_tensors_of_one_element_are_as_good_as_numbers(device: str, path: str, dimensions: int, weight_decay: float):
    """test_tensor_lr, and its like for betas and beta3"""
    options = {"weight_decay": weight_decay, "capturable": path == "foreach", **PATHS[path]}
    by_number, by_tensor = (AdaMod(parameters(device), **options, **given) for given in numbers_and_tensors(dimensions))
    train(by_number)
    train(by_tensor)
    assert_rounding(results(by_tensor), results(by_number))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])
@pytest.mark.parametrize("dimensions", [0, 1, 2])
@pytest.mark.parametrize("weight_decay", [0.0, 0.125])
def test_diffmod_takes_tensors_of_one_element_too(device: str, dimensions: int, weight_decay: float):
    """test_tensor_lr, and its like for betas and beta3"""
    by_number, by_tensor = (
        DiffMod(parameters(device), weight_decay=weight_decay, foreach=False, **given)
        for given in numbers_and_tensors(dimensions)
    )
    train(by_number)
    train(by_tensor)
    assert_rounding(results(by_tensor), results(by_number))


# --- complex parameters ---------------------------------------------------------------------------------------------


def as_real(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [torch.view_as_real(x) if x.is_complex() else x for x in tensors]


@EVERY_PLACE
@EVERY_CONFIG
def test_complex_parameters_are_pairs_of_real_ones(device: str, path: str, config: str):
    """test_complex"""
    whole = parameters(device, torch.complex64)
    whole += parameters(device, torch.float32, ((10, 5),))  # a real one among them
    pairs = [nn.Parameter(x.detach().clone()) for x in as_real(whole)]
    optimizer = AdaMod(whole, **options_of(config, path))
    twin = AdaMod(pairs, **options_of(config, path))
    for t in range(1, 8):
        set_gradients(whole, t)
        for p, q in zip(whole, pairs, strict=True):
            q.grad = None if p.grad is None else as_real([p.grad])[0]
        optimizer.step()
        twin.step()
    assert_equal(as_real(results(optimizer)), results(twin))


@EVERY_PLACE
@EVERY_CONFIG
def test_the_parts_of_a_complex_parameter_do_not_know_of_each_other(device: str, path: str, config: str):
    """test_complex_2d"""
    (whole,) = parameters(device, torch.complex128, ((6,),))
    parts = [nn.Parameter(x.detach().clone()) for x in (whole.real, whole.imag)]
    optimizer, twin = AdaMod([whole], **options_of(config, path)), AdaMod(parts, **options_of(config, path))
    for _ in range(5):
        for params, each in (([whole], optimizer), (parts, twin)):
            z = params[0] if len(params) == 1 else torch.complex(*params)
            each.zero_grad()
            ((1 - z[:3]) ** 2 + 100 * (z[3:] - z[:3] ** 2) ** 2).abs().sum().backward()
            each.step()
    torch.testing.assert_close(torch.view_as_real(whole).unbind(-1), tuple(parts), rtol=1e-12, atol=1e-12)


# --- one path and another -------------------------------------------------------------------------------------------


@EVERY_PLACE
@EVERY_CONFIG
def test_every_path_is_the_loop_in_float64(device: str, path: str, config: str):
    """test_foreach_matches_forloop, test_fused_matches_forloop, test_fused_cpu_matches_cuda"""
    optimizer = AdaMod(parameters(device), **options_of(config, path))
    expected = AdaMod(parameters("cpu"), **options_of(config, "loop"))
    train(optimizer)
    train(expected)
    assert_rounding(results(optimizer), results(expected))


@EVERY_PLACE
@SOME_CONFIGS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_path_is_as_exact_as_the_loop(
    device: str, path: str, config: str, dtype: torch.dtype, assert_within_twice: Callable[..., None]
):
    """test_fused_matches_forloop, test_fused_cpu_matches_cuda"""
    start = parameters("cpu", dtype)
    exact = AdaMod([nn.Parameter(p.detach().double()) for p in start], **options_of(config, "loop", dtype))
    loop = AdaMod(start, **options_of(config, "loop", dtype))
    optimizer = AdaMod(parameters(device, dtype), **options_of(config, path, dtype))
    largest = {key: x.abs() for key, x in flat(optimizer, start=True).items()}  # so far: that is how far it was rounded
    for t in range(1, 8):
        set_gradients(params_of(optimizer), t)
        set_gradients(start, t)
        for p, q in zip(params_of(exact), start, strict=True):
            p.grad = None if q.grad is None else q.grad.double()
        for each in (optimizer, loop, exact):
            each.step()
        largest = {key: torch.maximum(x.double(), flat(exact)[key].abs()) for key, x in largest.items()}
    actual, reference, truth = flat(optimizer), flat(loop), flat(exact)
    for key, x in truth.items():
        assert_within_twice(actual[key], reference[key], x.numpy().astype(np.longdouble), largest[key])


def flat(optimizer: torch.optim.Optimizer, start: bool = False) -> dict[str, Tensor]:
    """All parameters in one row, and so each kind of state: zeros at the start."""
    params = params_of(optimizer)
    rows = {"params": torch.cat([p.detach().flatten() for p in params]).cpu()}
    for key in ("exp_avg", "exp_avg_sq", "exp_avg_lr"):
        states = [torch.zeros_like(p) if start else optimizer.state[p][key] for p in params]
        rows[key] = torch.cat([x.detach().flatten() for x in states]).cpu()
    return rows


@EVERY_PLACE
def test_a_group_may_mix_dtypes_and_hold_integers_that_are_not_trained(device: str, path: str):
    """test_mixed_device_dtype"""
    dtypes = [torch.bfloat16, torch.float64, torch.float32, torch.complex64, torch.float16, torch.complex128]
    mixed = [parameters(device, dtype, ((5, 3),))[0] for dtype in dtypes]
    alone = [nn.Parameter(p.detach().clone()) for p in mixed]
    integers = torch.arange(4, device=device)
    optimizer = AdaMod([*mixed, integers], eps=1e-3, **PATHS[path])
    single = [AdaMod([p], eps=1e-3, **PATHS[path]) for p in alone]
    for t in range(1, 8):
        for place, (p, q) in enumerate(zip(mixed, alone, strict=True)):
            set_gradients([q], 10 * t + place)
            p.grad = q.grad
        for each in (optimizer, *single):
            each.step()
    assert_equal(mixed, alone)
    assert integers.tolist() == [0, 1, 2, 3]
    assert integers not in optimizer.state


@pytest.mark.parametrize("default", [torch.float64, torch.float16])
@EVERY_PLACE
def test_steps_are_at_least_float32_whatever_the_default_dtype(device: str, path: str, default: torch.dtype):
    """test_set_default_dtype_works_with_foreach"""
    expected = AdaMod(parameters(device), **PATHS[path])
    train(expected)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        optimizer = AdaMod(parameters(device), **PATHS[path])
        train(optimizer)
    finally:
        torch.set_default_dtype(before)
    steps = {optimizer.state[p]["step"].dtype for p in params_of(optimizer)}
    assert steps == {torch.float64 if default == torch.float64 and path != "operator" else torch.float32}
    assert_rounding(results(optimizer), results(expected))


# --- size -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [pytest.param("operator", marks=needs_kernel), "foreach", "loop"])
def test_elements_more_than_two_to_the_31_apart_are_reached(path: str):
    """test_foreach_large_tensor, test_fused_large_tensor, whose 2^32 elements few machines can hold"""
    far = 2**31 + 8
    memory = torch.empty(far + 64, dtype=torch.float16)  # of which only the touched pages exist
    wide = nn.Parameter(memory.as_strided((2, 5), (far, 3)))
    (narrow,) = parameters(dtype=torch.float16, shapes=((2, 5),))
    wide.data.copy_(narrow.detach())
    optimizers = [AdaMod([p], lr=0.1, eps=1e-3, **PATHS[path]) for p in (wide, narrow)]
    for optimizer in optimizers:
        train(optimizer)
    assert_equal(results(optimizers[0]), results(optimizers[1]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("path", list(PATHS))
def test_tensors_of_two_to_the_32_elements_are_stepped(path: str):
    """test_foreach_large_tensor, test_fused_large_tensor"""
    if torch.cuda.mem_get_info()[0] < 120 * 2**30:
        pytest.skip("needs 120 GiB of free memory on the CUDA device")
    p = torch.ones(2**32 + 3, device="cuda", dtype=torch.float16)
    p.grad = torch.ones_like(p)
    AdaMod([p], lr=0.125, beta3=0, eps=1e-3, **PATHS[path]).step()
    assert p.unique().tolist() == pytest.approx([0.875], rel=0.01)


class Live(TorchDispatchMode):
    """The most bytes that tensors held at a time which operations have made."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.known = {StorageWeakRef(x.untyped_storage()) for x in known}
        self.sizes: dict[StorageWeakRef, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                self.sizes[StorageWeakRef(storage)] = storage.nbytes()
        self.sizes = {x: size for x, size in self.sizes.items() if x not in self.known and not x.expired()}
        self.most = max(self.most, sum(self.sizes.values()))
        return result


@pytest.mark.parametrize("config", ["default", "nonzero weight_decay", "maximize", "capturable"])
def test_lists_hold_little_more_than_a_second_copy_of_the_parameters(config: str):
    """test_peak_memory_foreach, with its allowances"""
    most = {}
    for path in ("loop", "foreach"):
        params = parameters(dtype=torch.float32, shapes=((16, 8),) * 10)
        optimizer = AdaMod(params, **{**options_of(config, path), "bounded_decay": False})
        train(optimizer, 1, 2)
        set_gradients(params, 1)
        with Live([*results(optimizer), *(p.grad for p in params)]) as live:
            optimizer.step()
        most[path] = live.most
    one = 10 * 16 * 8 * 4
    assert one / 2 < most["loop"] < 2 * one
    assert most["foreach"] <= most["loop"] + (3 if config == "capturable" else 1) * one


# --- the operator ---------------------------------------------------------------------------------------------------


@needs_kernel
def test_the_operator_needs_memory_and_takes_it_when_it_comes():
    """test_fused_error_on_params_on_meta"""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1))
    optimizer = AdaMod(model.parameters(), fused=True)
    for p in model.parameters():
        p.grad = torch.rand_like(p)
    with pytest.raises(RuntimeError, match="`fused=True` requires all the params to be floating point Tensors"):
        optimizer.step()
    assert not optimizer.state
    optimizer.zero_grad(set_to_none=True)
    for p in model.parameters():
        torch.utils.swap_tensors(p, nn.Parameter(torch.empty_like(p, device="cpu")))
        nn.init.ones_(p)
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all((p < 1).all() for p in model.parameters())


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=needs_kernel), pytest.param("cuda", marks=on_gpu)])
@SOME_CONFIGS
@pytest.mark.parametrize("scale", [None, 4.0])
@pytest.mark.parametrize("stepped", [False, True])
def test_found_inf_stops_the_step_and_its_count(device: str, config: str, scale: float | None, stepped: bool):
    """test_fused_does_not_step_if_foundinf"""
    optimizer = AdaMod(parameters(device), **options_of(config, "operator"))
    if stepped:
        train(optimizer, 1, 2)
    counts = [float(optimizer.state[p]["step"]) if stepped else 0.0 for p in params_of(optimizer)]
    before = [x.clone() for x in (results(optimizer) if stepped else params_of(optimizer))]
    set_gradients(params_of(optimizer), 5)
    optimizer.grad_scale = None if scale is None else torch.full((1,), scale, device=device)
    optimizer.found_inf = torch.ones((), device=device)
    optimizer.step()
    assert [float(optimizer.state[p]["step"]) for p in params_of(optimizer)] == counts
    assert_equal(results(optimizer) if stepped else params_of(optimizer), before)
    optimizer.found_inf = torch.zeros((), device=device)
    optimizer.step()
    assert [float(optimizer.state[p]["step"]) for p in params_of(optimizer)] == [count + 1 for count in counts]


def test_the_default_is_the_operator_where_there_is_a_kernel():
    """test_defaults_changed_to_foreach: our default is better"""
    optimizer = AdaMod(parameters())
    assert optimizer._step_supports_amp_scaling == WITH_KERNEL


# --- groups ---------------------------------------------------------------------------------------------------------


@EVERY_PLACE
@SOME_CONFIGS
@pytest.mark.parametrize("option", [{"weight_decay": 0.0}, {"lr": 1e-28}], ids=str)
def test_groups_are_optimizers_of_their_own(device: str, path: str, config: str, option: dict[str, float]):
    """test_param_groups_weight_decay, test_param_groups_lr"""
    options = {"lr": 1e-3, **options_of(config, path)}
    together, apart = parameters(device), parameters(device)
    groups = [{"params": together[:2], **options}, {"params": together[2:], **options, **option}]
    two = [AdaMod(apart[:2], **options), AdaMod(apart[2:], **{**options, **option})]
    one = AdaMod(groups, lr=1e-28)
    for t in range(1, 8):
        set_gradients(together, t)
        for p, q in zip(together, apart, strict=True):
            q.grad = p.grad
        for each in (one, *two):
            each.step()
    assert_equal(results(one), [x for each in two for x in results(each)])
    if "lr" in option and not options.get("weight_decay"):
        assert_equal(together[2:], parameters(device)[2:])
    assert not torch.equal(together[0], parameters(device)[0])


# --- nothing to do --------------------------------------------------------------------------------------------------


def every_optimizer(params: Sequence[Tensor], **options: Any) -> Iterator[torch.optim.Optimizer]:
    """Both kinds on all their paths, differentiable among them."""
    for flags in (*PATHS.values(), {"differentiable": True}):
        if WITH_KERNEL or not flags.get("fused"):
            yield AdaMod(params, **options, **flags)
        if not flags.get("fused"):
            yield DiffMod(params, **options, **{key: flags[key] for key in flags if key != "fused"})


def test_without_gradients_a_step_does_nothing_but_call_the_closure():
    """test_step_is_noop_when_params_have_no_grad"""
    params = [p.detach() for p in parameters()]
    for optimizer in every_optimizer(params):
        assert optimizer.step(lambda: torch.tensor([1.0])) == 1
        assert not any(optimizer.state.values())
    assert_equal(params, parameters())


def test_gradients_that_are_zero_move_nothing():
    """test_step_is_noop_for_zero_grads"""
    params = [p.detach() for p in parameters()]
    for p in params:
        p.grad = torch.zeros_like(p)
    for optimizer in every_optimizer(params):
        for _ in range(3):
            optimizer.step(lambda: torch.tensor([1.0]))
        assert all(state["step"] == 3 for state in optimizer.state.values())
    assert_equal(params, parameters())


def test_an_optimizer_can_be_printed():
    """test_optimizer_can_be_printed"""
    for optimizer in every_optimizer(parameters(), lr=0.25):
        text = repr(optimizer)
        assert text.startswith(type(optimizer).__name__)
        assert "lr: 0.25" in text


@EVERY_CONFIG
def test_every_parameter_that_was_stepped_has_a_state(config: str):
    """test_non_empty_state"""
    optimizer = AdaMod(parameters(), **options_of(config, "loop"))
    train(optimizer, 1, 1)
    assert len(optimizer.state) == len(SHAPES)
    assert all(set(state) >= {"step", "exp_avg", "exp_avg_sq", "exp_avg_lr"} for state in optimizer.state.values())


# --- state dictionaries ---------------------------------------------------------------------------------------------


def with_names(params: Sequence[Tensor], named: bool) -> list[Any]:
    return [(f"name{k}", p) for k, p in enumerate(params)] if named else list(params)


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
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    else:
        assert one == other


def nameless(state_dict: dict[str, Any]) -> dict[str, Any]:
    groups = [
        {key: value for key, value in group.items() if key != "param_names"} for group in state_dict["param_groups"]
    ]
    return {**state_dict, "param_groups": groups}


@EVERY_PLACE
@pytest.mark.parametrize(
    ("config", "named", "named_then"),
    [("default", True, False), ("default", False, True), ("default", True, True)]
    + [(given.desc, False, False) for given in inputs("cpu")],
)
def test_a_loaded_state_goes_on_as_the_first_one_did(
    device: str, path: str, config: str, named: bool, named_then: bool
):
    """test_state_dict_deterministic, test_can_load_from_to_named_state_dict"""
    first = AdaMod(with_names(parameters(device), named), **options_of(config, path))
    train(first, 1, 3)
    saved = first.state_dict()
    before = copy.deepcopy(saved)
    clones = [nn.Parameter(p.detach().clone()) for p in params_of(first)]
    second = AdaMod(with_names(clones, named_then), **options_of(config, path))
    second.load_state_dict(saved)
    assert_same(saved, before)  # loading does not write into what is loaded
    for optimizer in (first, second):
        train(optimizer, 4, 7)
    assert_equal(results(second), results(first))
    assert_same(nameless(first.state_dict()), nameless(second.state_dict()))
    names = [f"name{k}" for k in range(len(SHAPES))] if named or named_then else None
    assert second.state_dict()["param_groups"][0].get("param_names") == names

    second.param_groups.extend(second.param_groups)  # a parameter that stands twice has one number
    assert_same(nameless(first.state_dict())["param_groups"][-1], nameless(second.state_dict())["param_groups"][-1])


@EVERY_PLACE
@EVERY_CONFIG
def test_a_state_from_before_an_option_existed_can_be_loaded(device: str, path: str, config: str):
    """test_can_load_older_state_dict"""
    options = options_of(config, path)
    optimizer, twin = (AdaMod(parameters(device), **options) for _ in range(2))
    for each in (optimizer, twin):
        train(each, 1, 3)
    old = copy.deepcopy(optimizer.state_dict())
    for group in old["param_groups"]:
        for flag in (*INFO.not_og_supported_flags, "variant", "bounded_decay", "skip_unseen", "state_dtype", "seed"):
            group.pop(flag, None)
    optimizer.load_state_dict(old)
    assert_same(optimizer.state_dict(), twin.state_dict())  # what is missing stays as it is
    for each in (optimizer, twin):
        train(each, 4, 7)
    assert_equal(results(optimizer), results(twin))


@EVERY_PLACE
@pytest.mark.parametrize(("config", "named"), [("default", True), ("Tensor lr with capturable of any shape", False)])
@pytest.mark.parametrize("state_dtype", [None, {"exp_avg_sq": torch.bfloat16, "exp_avg_lr": "int8"}], ids=str)
def test_a_saved_state_is_the_same_when_only_weights_may_be_read(
    device: str, path: str, config: str, named: bool, state_dtype: Any
):
    """test_save_load_equality_with_weights_only"""
    options = {**options_of(config, path), "state_dtype": None if path == "foreach" else state_dtype}
    params = parameters(device, torch.float32, (*SHAPES, (70, 70)))
    optimizer = AdaMod(with_names(params, named), **options)
    train(optimizer, 1, 3)
    state_dict = optimizer.state_dict()
    file = io.BytesIO()
    torch.save(state_dict, file)
    for options in ({}, {"weights_only": True}):
        file.seek(0)
        assert_same(torch.load(file, **options), state_dict)


@EVERY_PLACE
@SOME_CONFIGS
@pytest.mark.parametrize("kind", [float, int])
def test_steps_that_are_numbers_can_be_loaded(device: str, path: str, config: str, kind: type):
    """test_load_nontensor_step"""
    optimizer, twin = (AdaMod(parameters(device), **options_of(config, path)) for _ in range(2))
    for each in (optimizer, twin):
        train(each, 1, 3)
    state_dict = copy.deepcopy(optimizer.state_dict())
    for state in state_dict["state"].values():
        state["step"] = kind(state["step"].item())
    optimizer.load_state_dict(state_dict)
    for each in (optimizer, twin):
        train(each, 4, 7)
    assert_equal(results(optimizer), results(twin))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@EVERY_CONFIG
@pytest.mark.parametrize("path", list(PATHS))
@pytest.mark.parametrize(("source", "target"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_state_moves_to_the_device_of_its_parameters(config: str, path: str, source: str, target: str):
    """test_state_dict_with_cuda_params, test_cpu_load_state_dict"""
    first = AdaMod(parameters(source), **options_of(config, path))
    train(first, 1, 3)
    second = AdaMod([nn.Parameter(p.detach().to(target)) for p in params_of(first)], **options_of(config, path))
    second.load_state_dict(first.state_dict())
    for state in second.state.values():
        on_device = path == "operator" or second.param_groups[0]["capturable"]
        assert state["step"].device.type == (target if on_device else "cpu")
        assert {x.device.type for key, x in state.items() if key != "step"} == {target}
    for optimizer in (first, second):
        train(optimizer, 4, 7)
    assert_rounding(results(second), results(first))


def test_hooks_see_and_change_what_is_saved():
    """test_state_dict_pre_hook, test_state_dict_post_hook, test_state_dict_pre_post_hook"""

    def mark(optimizer: torch.optim.Optimizer) -> None:
        optimizer.state["test"] = 1

    def unmark(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        return {**state_dict, "marked": state_dict["state"].pop("test", None) == 1}

    for optimizer in every_optimizer(parameters()):
        post = optimizer.register_state_dict_post_hook(unmark)
        assert optimizer.state_dict()["marked"] is False
        post.remove()
        optimizer.register_state_dict_pre_hook(mark)
        assert optimizer.state_dict()["state"]["test"] == 1
        optimizer.register_state_dict_post_hook(unmark)
        state_dict = optimizer.state_dict()
        assert "test" not in state_dict["state"]
        assert state_dict["marked"] is True


def test_hooks_change_what_is_loaded():
    """test_load_state_dict_pre_hook_and_prepend, test_load_state_dict_post_hook, test_load_state_dict_pre_post_hook"""

    def in_place(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        state_dict["param_groups"][0]["lr"] = 0.002

    def anew(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        state_dict = copy.deepcopy(state_dict)
        state_dict["param_groups"][0]["lr"] = 0.003
        return state_dict

    def note(optimizer: torch.optim.Optimizer) -> None:
        optimizer.state["loaded"] = optimizer.param_groups[0]["lr"]

    for optimizer in every_optimizer(parameters()):
        optimizer.register_load_state_dict_post_hook(note)
        optimizer.load_state_dict(optimizer.state_dict())
        assert optimizer.state.pop("loaded") == 0.001
        first = optimizer.register_load_state_dict_pre_hook(in_place)
        optimizer.load_state_dict(optimizer.state_dict())
        assert optimizer.state.pop("loaded") == 0.002
        optimizer.register_load_state_dict_pre_hook(anew, prepend=True)
        optimizer.load_state_dict(optimizer.state_dict())
        assert optimizer.state.pop("loaded") == 0.002  # the hook that was prepended came first
        first.remove()
        optimizer.load_state_dict(optimizer.state_dict())
        assert optimizer.state.pop("loaded") == 0.003


# --- around the step ------------------------------------------------------------------------------------------------


def test_hooks_run_around_the_step_in_torchs_order_until_they_are_removed():
    """test_step_pre_hook, test_step_post_hook, test_step_all_hooks"""
    for optimizer in every_optimizer([torch.tensor([1.0, 1.0])]):
        calls: list[int] = []

        def hook(number: int, calls: list[int] = calls) -> Any:
            return lambda optimizer, args, kwargs: calls.append(number)

        handles = [
            register_optimizer_step_pre_hook(hook(0)),
            optimizer.register_step_pre_hook(hook(1)),
            optimizer.register_step_post_hook(hook(2)),
            register_optimizer_step_post_hook(hook(3)),
        ]
        try:
            optimizer.step()
            optimizer.step(None)
        finally:
            for handle in handles:
                handle.remove()
        optimizer.step()
        assert calls == [0, 1, 2, 3] * 2


def test_a_step_has_its_name_in_the_profiler():
    """Not among torch's tests, but among its promises"""
    for optimizer in every_optimizer(parameters()):
        set_gradients(params_of(optimizer), 1)
        if optimizer.defaults["differentiable"]:
            continue
        with torch.autograd.profiler.profile() as profile:
            optimizer.step()
            optimizer.zero_grad()
        names = {event.name for event in profile.function_events}
        kind = type(optimizer).__name__
        assert {f"Optimizer.step#{kind}.step", f"Optimizer.zero_grad#{kind}.zero_grad"} <= names


def test_a_deep_copy_has_all_public_attributes():
    """test_deepcopy_copies_all_public_attrs"""

    def public(x: object) -> set[str]:
        return {name for name in vars(x) if not name.startswith("_")}

    for optimizer in every_optimizer(parameters()):
        if not optimizer.defaults["differentiable"]:
            train(optimizer)
            assert public(copy.deepcopy(optimizer)) == public(optimizer) == {"defaults", "state", "param_groups"}


# --- differentiable -------------------------------------------------------------------------------------------------

HYPER: dict[str, dict[str, Any]] = {
    "none": {},
    "lr": {"lr": 0.9},
    "betas": {"betas": (0.8, 0.95)},
    "beta3": {"beta3": 0.7},
    "weight_decay": {"weight_decay": 0.4},
    "all": {"lr": 0.9, "betas": (0.8, 0.95), "beta3": 0.7, "weight_decay": 0.4},
}
DIFFERENTIATED: list[tuple[type, str, dict[str, Any]]] = [
    *((kind, hyper, {}) for kind in (AdaMod, DiffMod) for hyper in HYPER),
    (AdaMod, "all", {"variant": "paper"}),
    (AdaMod, "all", {"maximize": True}),
    (AdaMod, "all", {"bounded_decay": True}),
    (AdaMod, "all", {"skip_unseen": True}),
    (DiffMod, "all", {"version": 1, "average_step": True}),
    (DiffMod, "all", {"version": 2, "maximize": True}),
]


@pytest.mark.parametrize(("kind", "hyper", "options"), DIFFERENTIATED)
@pytest.mark.parametrize("bound", ["s is low", "s is high"])
def test_gradients_flow_through_the_step(kind: type, hyper: str, options: dict[str, Any], bound: str):
    """TestDifferentiableOptimizer.test_adamw, and its tests of differentiable lr, betas and weight_decay"""
    generator = torch.Generator().manual_seed(0)

    def random() -> Tensor:
        return torch.rand(2, generator=generator, dtype=torch.float64) + 0.5

    keys = ["exp_avg", "exp_avg_sq", "exp_avg_lr", *(["previous_grad"] if kind is DiffMod else [])]
    p, g, *states = (random() for _ in range(2 + len(keys)))
    states[2] *= 0.01 if bound == "s is low" else 100
    given = HYPER[hyper]
    numbers = [x for value in given.values() for x in (value if isinstance(value, tuple) else (value,))]
    tensors = [torch.tensor(x, dtype=torch.float64) for x in numbers]
    inputs = tuple(x.requires_grad_() for x in (p, g, *states, *tensors))

    def step(p: Tensor, g: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        rest = list(others[len(keys) :])
        hyper_options: dict[str, Any] = {}
        for key, value in given.items():
            hyper_options[key] = (rest.pop(0), rest.pop(0)) if isinstance(value, tuple) else rest.pop(0)
        p = p.clone()
        p.grad = g
        optimizer = kind([p], **{"lr": 0.9, **options, **hyper_options}, differentiable=True)
        of_p = {key: x.clone() for key, x in zip(keys, others[: len(keys)], strict=True)}
        optimizer.state[p].update(step=torch.tensor(10.0), **of_p)
        optimizer.step()
        optimizer.step()  # through which the first step's results are differentiated
        return (p, *(optimizer.state[p][key] for key in keys))

    assert torch.autograd.gradcheck(step, inputs)
    if hyper == "all" and not options:
        assert torch.autograd.gradgradcheck(step, inputs)


def test_the_numbers_above_are_on_either_side_of_the_bound():
    """Or else half of the derivatives would go unseen"""
    eta = 0.9 * math.sqrt(1 - 0.999**10) / (1 - 0.9**10) / torch.tensor([0.5, 1.5]).sqrt()
    for beta3 in (0.7, 0.999):
        low, high = (beta3 * s + (1 - beta3) * eta for s in (0.01 * 1.5, 100 * 0.5))
        assert (low < eta).all()
        assert (high > eta).all()


@pytest.mark.parametrize("kind", [AdaMod, DiffMod])
@pytest.mark.parametrize("config", ["default", "nonzero weight_decay", "maximize"])
def test_differentiable_steps_are_the_same_steps(kind: type, config: str):
    """TestDifferentiableOptimizer, which takes the value for granted"""
    options = {key: x for key, x in options_of(config, "loop").items() if key not in ("fused", "bounded_decay")}
    optimizer, twin = (
        kind([p.detach() for p in parameters()], **options, differentiable=differentiable)
        for differentiable in (True, False)
    )
    train(optimizer)
    train(twin)
    assert_rounding(results(optimizer), results(twin))
