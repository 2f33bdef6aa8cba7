"""The optimizer step: time and memory against torch's fused AdamW, the 2019 release and two optimizer collections."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from harness import (
    GPU,
    Contestant,
    Context,
    Figure,
    Outcome,
    Race,
    Study,
    UnequalError,
    Versus,
    Workload,
    at_least,
    at_most,
    copier,
    cores,
    same_bits,
    within_twice,
)
from torch import Tensor
from torch.optim import AdamW, Optimizer

import adamod

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Build = Callable[[list[Tensor]], Optimizer]

PACKAGES = ("adamod", "torch", "torch_optimizer", "pytorch_optimizer", "triton")
SAME: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}  # for everybody
BETA3 = 0.999
BF16 = torch.bfloat16
LOW: dict[str, Any] = {"adamod bf16": BF16, "adamod int8": "int8", "adamod bf16 s": {"exp_avg_lr": BF16}}

OURS, TORCH, RELEASE, TO = "adamod", "torch AdamW(fused)", "2019 release", "torch_optimizer"
PO_LOOP, PO_FOREACH = "pytorch_optimizer loop", "pytorch_optimizer foreach"


class Release(Optimizer):
    """The operations of the authors' 2019 `adamod` 0.0.3, in their order, with the calls that torch has since removed
    replaced: that release does not run on today's torch, and its name is ours, so it cannot be installed beside.
    """

    def __init__(self, params: Iterable[Tensor], **options: Any) -> None:
        super().__init__(params, options)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            (beta1, beta2), beta3, lr, decay = group["betas"], group["beta3"], group["lr"], group["weight_decay"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["step"] = 0
                    for key in ("exp_avg", "exp_avg_sq", "exp_avg_lr"):
                        state[key] = torch.zeros_like(p)
                exp_avg, exp_avg_sq, exp_avg_lr = state["exp_avg"], state["exp_avg_sq"], state["exp_avg_lr"]
                state["step"] += 1
                exp_avg.mul_(beta1).add_(p.grad, alpha=1 - beta1)
                exp_avg_sq.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                denom = exp_avg_sq.sqrt().add_(group["eps"])
                correction1, correction2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
                if decay != 0:
                    p.add_(p, alpha=-decay * lr)
                step_size = torch.full_like(denom, lr * math.sqrt(correction2) / correction1).div_(denom)
                exp_avg_lr.mul_(beta3).add_(step_size, alpha=1 - beta3)
                p.add_(-torch.min(step_size, exp_avg_lr).mul_(exp_avg))


# --- optimizers, each a function of its parameters, all with the same hyper-parameters ---


def ours(params: list[Tensor], **options: Any) -> Optimizer:
    return adamod.AdaMod(params, **SAME | {"beta3": BETA3} | options)


def torch_adamw(params: list[Tensor], **options: Any) -> Optimizer:
    return AdamW(params, **SAME | {"fused": True} | options)


def release(params: list[Tensor], **options: Any) -> Optimizer:
    return Release(params, **SAME | {"beta3": BETA3} | options)


def torch_optimizer(params: list[Tensor], **options: Any) -> Optimizer:
    from torch_optimizer import AdaMod

    return AdaMod(params, **SAME | {"beta3": BETA3} | options)


def pytorch_optimizer(params: list[Tensor], **options: Any) -> Optimizer:
    from pytorch_optimizer import AdaMod

    return AdaMod(params, **SAME | {"betas": (*SAME["betas"], BETA3)} | options)


# --- the work ---


class Load:
    """Parameters of one shape with fixed gradients. Contestants share the gradients, not the parameters."""

    def __init__(self, count: int, size: int, device: str = "cpu") -> None:
        self.device, self.shapes, self.parameters = device, [size] * count, count * size
        generator = torch.Generator(device).manual_seed(0)
        self.grads = [torch.randn(size, generator=generator, device=device) for _ in self.shapes]

    def optimizer(self, build: Build, dtype: torch.dtype = torch.float32) -> Optimizer:
        params = [torch.ones(shape, device=self.device, dtype=dtype).requires_grad_() for shape in self.shapes]
        for p, grad in zip(params, self.grads, strict=True):
            p.grad = grad
        return build(params)

    def step(self, build: Build, *, threads: int = 1, traffic: int = 0) -> Callable[[], Contestant]:
        """A contestant's builder; `traffic` is in bytes per parameter."""
        return lambda: Contestant(self.optimizer(build).step, threads, traffic * self.parameters)


def large(context: Context) -> Load:
    return Load(*context.pick((3, 10_000), (50, 500_000)))


def small(context: Context) -> Load:
    return Load(*context.pick((20, 256), (1500, 2048)))


def trained(build: Build, dtype: torch.dtype = torch.float32, steps: int = 20, device: str = "cpu") -> Tensor:
    """All parameters, in one vector, after some steps on random gradients; sizes with tails of every kind."""
    generator = torch.Generator().manual_seed(1)
    sizes = (1, 31, 1025, 4099, 40_009)
    params = [torch.randn(n, generator=generator).to(device, dtype).requires_grad_() for n in sizes]
    optimizer = build(params)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(device, dtype)
        optimizer.step()
    return torch.cat([p.detach() for p in params])


# --- equality, at settings that let every term be seen in the parameters ---

SEEN: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1}


def equals_adamw(context: Context, device: str = "cpu") -> str:
    """AdaMod without a bound and without eps is AdamW."""
    adamw = partial(torch_adamw, **SEEN, eps=0.0)
    mine = trained(partial(ours, **SEEN, eps=0.0, beta3=0.0), device=device).cpu()
    exact, peer = trained(partial(adamw, fused=False), torch.float64), trained(adamw, device=device).cpu()
    return within_twice(mine, peer, exact, "With beta3 = 0 and eps = 0 this is torch's AdamW")


def equals_release(context: Context, device: str = "cpu") -> str:
    """Our loop and `torch_optimizer` are bit-equal to the 2019 release; the operator rounds no worse than it."""
    origin, loop = partial(release, **SEEN), partial(ours, **SEEN, fused=False, foreach=False)
    exact, peer = trained(origin, torch.float64), trained(origin, device=device)
    said = [same_bits(trained(loop, device=device), peer, "Our loop and the 2019 release")]
    mine = trained(partial(ours, **SEEN), device=device).cpu()
    said.append(within_twice(mine, peer.cpu(), exact, "Our operator and the 2019 release"))
    try:
        twin = trained(partial(torch_optimizer, **SEEN), device=device)
        said.append(same_bits(twin, peer, "torch_optimizer and the 2019 release"))
        for name, foreach in (("loop", False), ("foreach", True)):
            other = trained(partial(pytorch_optimizer, **SEEN, foreach=foreach), device=device).cpu()
            said.append(within_twice(other, peer.cpu(), exact, f"pytorch_optimizer {name} and the 2019 release"))
    except ImportError as error:
        said.append(f"Not compared: {error}.")
    return " ".join(said)


def equals_reference(context: Context, device: str = "cpu") -> str:
    """With rounded states no peer does the same: the operator against its definition in plain PyTorch, same draws."""
    exact, said = trained(partial(release, **SEEN), torch.float64), []
    for name, state_dtype in LOW.items():
        build = partial(ours, **SEEN, state_dtype=state_dtype)
        reference = trained(partial(build, fused=False, foreach=False), device=device).cpu()
        said.append(within_twice(trained(build, device=device).cpu(), reference, exact, f"{name} and plain PyTorch"))
    return " ".join(said)


def equals_itself(context: Context) -> str:
    """Any number of threads gives the same bits."""
    low = partial(ours, state_dtype=BF16)
    said = same_bits(trained(ours), trained(partial(threaded, build=ours)), f"1 and {cores()} threads")
    return f"{said} {same_bits(trained(low), trained(partial(threaded, build=low)), 'The same with bfloat16 states')}"


def threaded(params: list[Tensor], build: Build) -> Optimizer:
    """An optimizer that steps with all threads."""
    optimizer = build(params)
    optimizer.register_step_pre_hook(lambda *_: torch.set_num_threads(cores()))
    optimizer.register_step_post_hook(lambda *_: torch.set_num_threads(1))
    return optimizer


def counting(params: list[Tensor], then: bool = True) -> Optimizer:
    """An optimizer whose bounds are counted, or were until now."""
    optimizer: Any = ours(params)
    optimizer.bound_stats(True)
    if not then:
        optimizer.step()
        optimizer.bound_stats(False)
    return optimizer  # type: ignore[no-any-return]


def equals_counted(context: Context) -> str:
    optimizer: Any = Load(2, 5000).optimizer(counting)
    optimizer.step()
    for stats in optimizer.bound_stats(False).values():
        if (stats.elements, stats.clipped) != (5000, 1.0):
            raise UnequalError(f"after the first step every element is bounded, counted: {stats.clipped:.4f}")
    return same_bits(trained(counting), trained(ours), "Parameters with and without counting")


# --- races on the CPU ---


def fp32(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    load = large(context)
    return {
        OURS: load.step(ours, traffic=36),
        TORCH: load.step(torch_adamw, traffic=28),
        "memory copy": lambda: copier(context.pick(1, 256), 1),
    }


def loops(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    load = large(context)
    return {
        OURS: load.step(ours),
        RELEASE: load.step(release),
        TO: load.step(torch_optimizer),
        PO_LOOP: load.step(partial(pytorch_optimizer, foreach=False)),
        PO_FOREACH: load.step(partial(pytorch_optimizer, foreach=True)),
    }


def many(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    load = small(context)
    return {OURS: load.step(ours), TORCH: load.step(torch_adamw)}


def low_precision(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    load = large(context)
    racers = {name: load.step(partial(ours, state_dtype=state_dtype)) for name, state_dtype in LOW.items()}
    return racers | {TORCH: load.step(torch_adamw)}


def threads(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    load, every = large(context), cores()
    racers: dict[str, Callable[[], Contestant]] = {}
    for count in dict.fromkeys((every, 1)):
        unit = f"{count} thread" + "s" * (count > 1)
        racers |= {
            f"{OURS}, {unit}": load.step(ours, threads=count),
            f"{TORCH}, {unit}": load.step(torch_adamw, threads=count),
            f"memory copy, {unit}": partial(copier, context.pick(1, 256), count),
        }
    return racers


def stats(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    load = large(context)
    return {
        "counting": load.step(counting),
        "switched off again": load.step(partial(counting, then=False)),
        "never asked": load.step(ours),
    }


# --- bytes ---


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of all storages behind the states, padding and shared step vectors included, each counted once."""
    tensors = [x for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor)]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return sum(storages.values())


def memory(context: Context, outcome: Outcome) -> None:
    load = Load(*context.pick((3, 10_000), (10, 500_000)))
    targets = {"adamod int8": at_most(3.1), "adamod bf16": at_most(6.01)}
    builds: dict[str, Build] = {
        "adamod int8": partial(ours, state_dtype="int8"),
        "adamod bf16": partial(ours, state_dtype=BF16),
        TORCH: torch_adamw,
        OURS: ours,
        RELEASE: release,
    }
    for name, build in builds.items():
        optimizer = load.optimizer(build)
        optimizer.step()
        outcome.bars[name] = state_bytes(optimizer) / load.parameters
    outcome.bars_unit = "bytes per parameter"
    peer = f"{OURS} float32: {outcome.bars[OURS]:.1f}"
    for name, target in targets.items():
        outcome.figures.append(Figure("", name, peer, " bytes per parameter", outcome.bars[name], target=target))


# --- a GPU ---


def gpu_fp32(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    load = Load(50, 4_000_000, "cuda")
    source = torch.ones(500_000_000, device="cuda")
    target = torch.empty_like(source)
    return {
        OURS: load.step(ours, traffic=36),
        TORCH: load.step(torch_adamw, traffic=28),
        "copy_": lambda: Contestant(lambda: target.copy_(source), traffic=8 * source.numel()),
        "adamod bf16": load.step(partial(ours, state_dtype=BF16), traffic=24),
        "adamod int8": load.step(partial(ours, state_dtype="int8"), traffic=18),
    }


def gpu_many(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    load = Load(1500, 2048, "cuda")
    return {OURS: load.step(ours), TORCH: load.step(torch_adamw)}


def gpu_equal(context: Context) -> str:
    return " ".join(check(context, "cuda") for check in (equals_adamw, equals_release, equals_reference))


def launches(context: Context, outcome: Outcome) -> None:
    """Kernels that the device ran during one warm step, as the profiler saw them."""
    from torch.profiler import ProfilerActivity, profile

    outcome.equal = equals_adamw(context, "cuda")
    load = Load(1500, 2048, "cuda")
    for name, build in ((OURS, ours), ("adamod bf16", partial(ours, state_dtype=BF16)), (TORCH, torch_adamw)):
        optimizer = load.optimizer(build)
        for _ in range(3):
            optimizer.step()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            optimizer.step()
            torch.cuda.synchronize()
        device = [event.name for event in profiler.events() if event.device_type == torch._C._autograd.DeviceType.CUDA]
        outcome.bars[name] = sum(not event.startswith(("Memcpy", "Memset")) for event in device)
    if not all(outcome.bars.values()):
        raise RuntimeError(f"the profiler saw no kernel: {outcome.bars}")
    outcome.bars_unit = "launches per step"
    for name in (OURS, "adamod bf16"):
        peer = f"{TORCH}: {outcome.bars[TORCH]:.0f}"
        value = outcome.bars[name]
        outcome.figures.append(Figure("", name, peer, " launches", value, target=at_most(1)))


def graph(context: Context, outcome: Outcome) -> None:
    """A captured step, replayed, against as many eager ones."""
    finals = []
    for captured in (False, True):
        load = Load(20, 4099, "cuda")
        optimizer = load.optimizer(partial(ours, capturable=True))
        params = optimizer.param_groups[0]["params"]
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            for _ in range(3):
                optimizer.step()
        torch.cuda.synchronize()
        step: Callable[[], object] = optimizer.step
        if captured:
            recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recorded):
                optimizer.step()
            step = recorded.replay
        before = torch.cat(params).clone()
        for _ in range(10):
            step()
        torch.cuda.synchronize()
        finals.append(torch.cat(params))
        if bool((finals[-1] == before).all()):
            raise UnequalError("ten replays moved no parameter")
    outcome.equal = same_bits(finals[1], finals[0], "Ten replays of a captured step and ten eager steps")
    outcome.figures.append(Figure("", "replayed", "eager steps", note="equal bits", verdict="met"))


LARGE = "50 tensors of 500,000 parameters"
EVERY = f"{cores()} threads"
ALL_THREADS = Race(
    "all threads",
    f"{LARGE}. A step moves memory: a second core helps as far as the machine copies faster with it.",
    threads,
    equals_itself,
    (
        Versus(f"{OURS}, 1 thread", at_least(1.7), "speed", "", f"{OURS}, {EVERY}",
               ceiling=("memory copy, 1 thread", f"memory copy, {EVERY}")),
        Versus(f"{TORCH}, 1 thread", None, "speed", "", f"{TORCH}, {EVERY}"),
        Versus("memory copy, 1 thread", None, "speed", "", f"memory copy, {EVERY}"),
        Versus(f"{TORCH}, {EVERY}", at_most(1.20), ours=f"{OURS}, {EVERY}"),
    ),
    clock="wall",
    seconds=3,
)  # fmt: skip
WORKLOADS: tuple[Workload, ...] = (
    Race(
        "float32, large tensors",
        f"{LARGE}, one thread. AdaMod moves 36 bytes per parameter, AdamW 28: by the bytes the ratio is 1.29.",
        fp32,
        equals_adamw,
        (
            Versus(TORCH, at_most(1.20), headline=True),
            Versus("memory copy", kind="rate", note="bytes counted once, caches ignored"),
        ),
        seconds=4,
    ),
    Race(
        "float32 against other AdaMods",
        f"{LARGE}, one thread. The 2019 release (adamod 0.0.3) neither runs on this torch nor installs beside its "
        "successor: its operations, in its order, stand for it; torch_optimizer's copy of it is bit-equal.",
        loops,
        equals_release,
        (
            Versus(RELEASE, at_least(6), "speed"),
            Versus(TO, at_least(6), "speed"),
            Versus((PO_LOOP, PO_FOREACH), at_least(4.5), "speed", headline=True),
        ),
        seconds=5,
    ),
    Race(
        "float32, many small tensors",
        "1500 tensors of 2,048 parameters, one thread: the whole step(), Python included.",
        many,
        equals_adamw,
        (Versus(TORCH, at_most(0.35)),),
        seconds=2,
    ),
    Race(
        "low-precision states",
        f"{LARGE}, one thread, float32 parameters; states rounded stochastically. Targets are those of AVX-512.",
        low_precision,
        equals_reference,
        (
            Versus(TORCH, at_most(0.95), name="bfloat16 m, v, s"),
            Versus(TORCH, at_most(1.5), ours="adamod int8", name="int8 m, v, s"),
            Versus(TORCH, ours="adamod bf16 s", name="only s in bfloat16"),
        ),
        seconds=4,
    ),
    *([ALL_THREADS] if cores() > 1 else []),
    Race(
        "counting the bounds",
        f"{LARGE}, one thread: bound_stats() within the kernel.",
        stats,
        equals_counted,
        (
            Versus("never asked", at_most(1.05)),
            Versus("never asked", at_most(1.01), ours="switched off again"),
        ),
        seconds=3,
    ),
    Study("state memory", "Counted from the storages of the states after one step on float32 parameters.", memory),
    Race(
        "CUDA, large tensors",
        "50 tensors of 4 million parameters, float32.",
        gpu_fp32,
        gpu_equal,
        (
            Versus("copy_", at_least(0.90), "rate", headline=True),
            Versus(TORCH, at_most(1.3)),
            Versus(TORCH, ours="adamod bf16", name="bfloat16 m, v, s"),
            Versus(TORCH, ours="adamod int8", name="int8 m, v, s"),
        ),
        profiles=GPU,
        clock="cuda",
    ),
    Race(
        "CUDA, many small tensors",
        "1500 tensors of 2,048 parameters: time of the call on the host.",
        gpu_many,
        gpu_equal,
        (Versus(TORCH, at_most(1.0)),),
        profiles=GPU,
        clock="host",
    ),
    Study("CUDA launches", "Kernels in one step of 1500 tensors of 2,048 parameters.", launches, GPU),
    Study("CUDA graph", "Ten replays of one captured step.", graph, GPU),
)
