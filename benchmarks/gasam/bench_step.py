"""The optimizer's part of a step, two gradients given: against torch's fused base alone, and two other forms of SAM."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from harness import (
    Contestant,
    Context,
    Race,
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
from torch.optim import SGD, AdamW, Optimizer

import gasam

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Build = Callable[[list[Tensor]], Any]

PACKAGES = ("gasam", "torch", "pytorch_optimizer")
RHO = 0.05
SAME: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}  # for everybody
SAME_ADAM: dict[str, Any] = {"lr": 1e-3, "weight_decay": 1e-2}
BF16 = torch.bfloat16
OURS, OUR_SAM = "gasam.GASAM", "gasam.SAM"
FUSED, FUSED_ADAM = "torch SGD(fused) alone", "torch AdamW(fused) alone"
FOREACH, LOOP, SHORT = "pytorch_optimizer SAM foreach", "pytorch_optimizer SAM, fused base", "two-phase SAM, fused base"


class Short(Optimizer):
    """SAM as the short two-phase implementation that many projects copy does it: operation by operation."""

    def __init__(self, params: Iterable[Tensor], base: type[Optimizer], **options: Any) -> None:
        super().__init__(params, {"rho": RHO, **options})
        self.base = base(self.param_groups, **options)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        norms = [p.grad.norm(p=2) for group in self.param_groups for p in group["params"]]
        norm = torch.norm(torch.stack(norms), p=2)
        for group in self.param_groups:
            scale = group["rho"] / (norm + 1e-12)
            for p in group["params"]:
                self.state[p]["old_p"] = p.data.clone()
                p.add_(p.grad * scale)

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data = self.state[p]["old_p"]
        self.base.step()


class Plain:
    """GA-SAM with tensors as segments and the running reference, in as many operations as it takes to write it down."""

    def __init__(self, params: Sequence[Tensor], base: type[Optimizer], **options: Any) -> None:
        self.params, self.base = list(params), base(params, **options)
        self.average, self.count = 0.0, 0

    @torch.no_grad()
    def first_step(self) -> None:
        total = sum(p.numel() for p in self.params)
        sums = [float(p.grad.double().square().sum()) for p in self.params]
        self.average, self.count = 0.99 * self.average + 0.01 * math.sqrt(sum(sums) / total), self.count + 1
        reference = self.average / (1 - 0.99**self.count)
        self.kept = [p.clone() for p in self.params]
        for p, square in zip(self.params, sums, strict=True):
            ratio = min(max(math.sqrt(square / p.numel()) / reference, 0.1), 10)
            p.add_(p.grad, alpha=RHO * math.sqrt(p.numel() / total) / ratio / math.sqrt(square))

    @torch.no_grad()
    def second_step(self) -> None:
        for p, kept in zip(self.params, self.kept, strict=True):
            p.copy_(kept)
        self.base.step()


# --- optimizers, each a function of its parameters, all with the same hyper-parameters ---


def ours(params: list[Tensor], base: type[Optimizer] = SGD, **options: Any) -> Any:
    return gasam.GASAM(params, base, RHO, **(SAME if base is SGD else SAME_ADAM) | options)


def our_sam(params: list[Tensor], base: type[Optimizer] = SGD, **options: Any) -> Any:
    return gasam.SAM(params, base, RHO, **(SAME if base is SGD else SAME_ADAM) | options)


def alone(params: list[Tensor], base: type[Optimizer] = SGD) -> Optimizer:
    return base(params, **SAME if base is SGD else SAME_ADAM, fused=True)


def short(params: list[Tensor], base: type[Optimizer] = SGD) -> Any:
    return Short(params, base, **SAME if base is SGD else SAME_ADAM, fused=True)


def pytorch_optimizer(params: list[Tensor], base: type[Optimizer] = SGD, *, foreach: bool = True) -> Any:
    """Its base cannot be fused where its own part is batched."""
    from pytorch_optimizer import SAM

    how = {"foreach": True} if foreach else {"foreach": False, "fused": True}
    return SAM(params, base, RHO, **SAME if base is SGD else SAME_ADAM, **how)


# --- the work ---


def residual_network() -> list[tuple[int, ...]]:
    """The shapes of ResNet-20's parameters on CIFAR-10, with projections left out: 59 tensors, .27 million."""
    shapes: list[tuple[int, ...]] = [(16, 3, 3, 3), (16,), (16,)]
    width = 16
    for wider in (16, 32, 64):
        for _ in range(3):
            shapes += [(wider, width, 3, 3), (wider,), (wider,), (wider, wider, 3, 3), (wider,), (wider,)]
            width = wider
    return [*shapes, (10, 64), (10,)]


def language_model() -> list[tuple[int, ...]]:
    """The shapes of two LSTM layers of 650 and a tied embedding of 10,000 words: 10 tensors, 13.3 million."""
    layer: list[tuple[int, ...]] = [(2600, 650), (2600, 650), (2600,), (2600,)]
    return [(10_000, 650), *layer, *layer, (10_000,)]


class Load:
    """Parameters of given shapes with fixed gradients. Contestants share the gradients, not the parameters."""

    def __init__(self, shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> None:
        self.shapes, self.dtype = shapes, dtype
        self.parameters = sum(map(math.prod, shapes))
        generator = torch.Generator().manual_seed(0)
        self.grads = [1e-3 * torch.randn(shape, generator=generator).to(dtype) for shape in shapes]

    def optimizer(self, build: Build) -> Any:
        params = [torch.full(shape, 0.02, dtype=self.dtype).requires_grad_() for shape in self.shapes]
        for p, grad in zip(params, self.grads, strict=True):
            p.grad = grad
        return build(params)

    def step(self, build: Build, *, threads: int = 1, traffic: int = 0) -> Callable[[], Contestant]:
        """A contestant's builder; `traffic` is in bytes per parameter."""

        def contestant() -> Contestant:
            optimizer = self.optimizer(build)
            run = optimizer.step if isinstance(optimizer, SGD | AdamW) else partial(both_phases, optimizer)
            return Contestant(run, threads, traffic * self.parameters)

        return contestant


def both_phases(optimizer: Any) -> None:
    optimizer.first_step()
    optimizer.second_step()


def large(context: Context, dtype: torch.dtype = torch.float32) -> Load:
    return Load(context.pick([(300, 50), (2000,)], language_model()), dtype)


def small(context: Context) -> Load:
    return Load(residual_network())


# --- equality ---


def trained(build: Build, dtype: torch.dtype = torch.float32, steps: int = 20) -> Tensor:
    """All parameters, in one vector, after some steps with two random gradients each."""
    generator = torch.Generator().manual_seed(1)
    sizes = (1, 31, 1025, 4099, 40_009)
    params = [torch.randn(n, generator=generator).to(dtype).requires_grad_() for n in sizes]
    optimizer = build(params)
    for _ in range(steps):
        for phase in (optimizer.first_step, optimizer.second_step):
            for p in params:
                # The second gradient depends on where the first has led.
                p.grad = torch.randn(p.shape, generator=generator).to(dtype) + p.detach()
            phase()
    return torch.cat([p.detach() for p in params])


def equals_peers(context: Context, base: type[Optimizer] = SGD) -> str:
    """Our SAM is that of the others, and our GA-SAM is its equations."""
    build: dict[str, Build] = {SHORT: partial(short, base=base)}
    try:
        import pytorch_optimizer as _  # noqa: F401

        build |= {FOREACH: partial(pytorch_optimizer, base=base)}
        build |= {LOOP: partial(pytorch_optimizer, base=base, foreach=False)}
    except ImportError:
        pass
    options = SAME if base is SGD else SAME_ADAM
    exact = trained(partial(Short, base=base, **options), torch.float64)
    mine = trained(partial(our_sam, base=base))
    said = [within_twice(mine, trained(other), exact, f"{OUR_SAM} and {name}") for name, other in build.items()]
    plain = partial(Plain, base=base, **options)
    exact, mine = trained(plain, torch.float64), trained(partial(ours, base=base))
    return " ".join([*said, within_twice(mine, trained(plain), exact, f"{OURS} and its equations in plain PyTorch")])


def equals_itself(context: Context) -> str:
    """Any number of threads gives the same bits."""

    def threaded() -> Tensor:
        torch.set_num_threads(cores())
        try:
            return trained(ours)
        finally:
            torch.set_num_threads(1)

    return same_bits(trained(ours), threaded(), f"1 and {cores()} threads")


def restores_bits(context: Context) -> str:
    """Weights in bfloat16 are rounded at random when they are perturbed, and come back bit for bit."""
    load = large(context, BF16)
    optimizer = load.optimizer(ours)
    params = optimizer.param_groups[0]["params"]
    before = torch.cat([p.detach().flatten() for p in params])
    optimizer.first_step()
    moved = sum(float((p.detach().double() - 0.02).square().sum()) for p in params)
    optimizer.restore()
    after = torch.cat([p.detach().flatten() for p in params])
    return same_bits(after, before, f"Weights after a perturbation of norm {math.sqrt(moved):.2f} and before")


# --- races ---


def contestants(load: Load, base: type[Optimizer] = SGD) -> Mapping[str, Callable[[], Contestant]]:
    """`traffic`: a norm reads 4 bytes, a perturbation moves 16; the base step from the kept weights moves what it
    does alone, from others."""
    step = 20 if base is SGD else 28
    return {
        OURS: load.step(partial(ours, base=base), traffic=20 + step),
        OUR_SAM: load.step(partial(our_sam, base=base), traffic=20 + step),
        FUSED if base is SGD else FUSED_ADAM: load.step(partial(alone, base=base), traffic=step),
        FOREACH: load.step(partial(pytorch_optimizer, base=base)),
        LOOP: load.step(partial(pytorch_optimizer, base=base, foreach=False)),
        SHORT: load.step(partial(short, base=base)),
    }


def sgd(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    return {**contestants(large(context)), "memory copy": lambda: copier(context.pick(1, 256), 1)}


def adamw(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    return contestants(large(context), AdamW)


def many(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    return contestants(small(context))


def bfloat16(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    load = large(context, BF16)
    return {OURS: load.step(ours), FUSED: load.step(alone), SHORT: load.step(short)}


def threads(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    load, every = large(context), cores()
    racers: dict[str, Callable[[], Contestant]] = {}
    for count in dict.fromkeys((every, 1)):
        unit = f"{count} thread" + "s" * (count > 1)
        racers |= {
            f"{OURS}, {unit}": load.step(ours, threads=count),
            f"{FUSED}, {unit}": load.step(alone, threads=count),
            f"memory copy, {unit}": partial(copier, context.pick(1, 256), count),
        }
    return racers


def against(
    base: str, limit: float, foreach: float | None = None, short: float | None = None, headline: bool = False
) -> tuple[Versus, ...]:
    """At most `limit` times the base alone, and at least so many times as fast as the two others."""
    return (
        Versus(base, at_most(limit), headline=headline),
        Versus(base, at_most(limit), ours=OUR_SAM),
        Versus(FOREACH, None if foreach is None else at_least(foreach), "speed", ours=OUR_SAM),
        Versus(LOOP, None, "speed", ours=OUR_SAM),
        Versus(SHORT, None if short is None else at_least(short), "speed", ours=OUR_SAM, headline=headline),
    )


MODEL = "Two LSTM layers of 650 and 10,000 words, 10 tensors of 13.3 million parameters, one thread"
EVERY = f"{cores()} threads"
WORKLOADS: tuple[Workload, ...] = (
    Race(
        "SAM and SGD, a language model",
        f"{MODEL}. Norms, perturbation and base step move 40 bytes per parameter, SGD with momentum 20.",
        sgd,
        equals_peers,
        (
            *against(FUSED, 2.3, foreach=2.5, short=1.7, headline=True),
            Versus("memory copy", kind="rate", note="bytes counted once, caches ignored"),
        ),
        seconds=6,
    ),
    Race(
        "SAM and AdamW, a language model",
        f"{MODEL}. Norms, perturbation and base step move 48 bytes per parameter, AdamW 28.",
        adamw,
        partial(equals_peers, base=AdamW),
        against(FUSED_ADAM, 2.0),
        seconds=5,
    ),
    Race(
        "SAM and SGD, many small tensors",
        "ResNet-20: 59 tensors of .27 million parameters, one thread: what Python takes counts most.",
        many,
        equals_peers,
        against(FUSED, 3.0),
        seconds=2,
    ),
    Race(
        "bfloat16 parameters",
        f"{MODEL}. Perturbed weights are rounded stochastically, which costs random numbers; theirs to nearest.",
        bfloat16,
        restores_bits,
        (Versus(FUSED), Versus(SHORT, kind="speed")),
        seconds=3,
    ),
    *(
        [
            Race(
                "all threads",
                f"{MODEL.removesuffix(', one thread')}. A second core helps as far as the machine copies faster.",
                threads,
                equals_itself,
                (
                    Versus(
                        f"{OURS}, 1 thread", kind="speed", ours=f"{OURS}, {EVERY}", note="reported beside the copy's"
                    ),
                    Versus("memory copy, 1 thread", kind="speed", ours=f"memory copy, {EVERY}"),
                    Versus(f"{FUSED}, {EVERY}", at_most(2.3), ours=f"{OURS}, {EVERY}"),
                ),
                clock="wall",
                seconds=4,
            )
        ]
        if cores() > 1
        else []
    ),
)
