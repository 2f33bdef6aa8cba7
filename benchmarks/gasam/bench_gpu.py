"""What a step costs beside its gradients on a CUDA device: bytes per second, launches, peers, share of training."""

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
    same_bits,
    within_twice,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from gasam import GASAM, _ops, _reference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Shapes = list[tuple[int, ...]]

PACKAGES = ("gasam", "torch", "pytorch_optimizer", "triton")
OURS, PEER, TORCH, COPY = "gasam", "pytorch_optimizer foreach", "torch fused", "copy_"
REPLAYED, TORCH_REPLAYED = "gasam, CUDA graph", "torch fused, CUDA graph"
DEVICE = "cuda"
# All take the step of SAM: other members of the family do the same work.
RULE: dict[str, Any] = {"segments": "global", "strength_exponent": 0, "size_exponent": 0}
BASES: dict[type[Optimizer], dict[str, Any]] = {
    SGD: {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
    AdamW: {"lr": 1e-3, "weight_decay": 1e-2},
}


# --- the work ---


def resnet50() -> Shapes:
    """The 161 parameters of ResNet-50, 25.6 million elements."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for shape in ((width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                shapes += [shape, shape[:1], shape[:1]]
            if block == 0:
                shapes += [(4 * width, inputs, 1, 1), (4 * width,), (4 * width,)]
            inputs = 4 * width
    return [*shapes, (1000, inputs), (1000,)]


def bert() -> Shapes:
    """The 199 parameters of BERT base, 109.5 million elements."""
    shapes: Shapes = [(30522, 768), (512, 768), (2, 768), (768,), (768,)]
    for _ in range(12):
        shapes += [(768, 768), (768,)] * 4 + [(768,), (768,)]
        shapes += [(3072, 768), (3072,), (768, 3072), (768,), (768,), (768,)]
    return [*shapes, (768, 768), (768,)]


class Load:
    """Parameters and gradients of given shapes. Every contestant has its own."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.float32, device: str = "") -> None:
        device = device or DEVICE
        few = (
            sum(map(math.prod, shapes)) < 1_000_000
        )  # these are the same on every device; more are made where they stay
        generator = torch.Generator("cpu" if few else device).manual_seed(0)

        def made() -> list[Tensor]:
            drawn = (torch.randn(shape, generator=generator, device=generator.device) for shape in shapes)
            return [(x / 8).to(device, dtype) for x in drawn]

        self.params, self.grads = made(), made()
        for p, grad in zip(self.params, self.grads, strict=True):
            p.requires_grad_().grad = grad
        self.elements = sum(p.numel() for p in self.params)

    def ours(self, base: type[Optimizer], **options: Any) -> Callable[[], None]:
        """A step whose gradients are there; the second is the first."""
        optimizer = GASAM(self.params, base, rho=0.05, **RULE, **BASES[base], **options)

        def step() -> None:
            optimizer.first_step()
            optimizer.second_step()

        return step

    def peer(self, base: type[Optimizer]) -> Callable[[], None]:
        from pytorch_optimizer import SAM

        optimizer = SAM(self.params, base, rho=0.05, foreach=True, **BASES[base])

        def step() -> None:
            optimizer.first_step()
            optimizer.second_step()

        return step

    def torch(self, base: type[Optimizer], **options: Any) -> Callable[[], object]:
        """The base optimizer alone."""
        return base(self.params, fused=True, **BASES[base], **options).step  # type: ignore[call-arg]

    def operators(self) -> tuple[Callable[[], None], list[Tensor]]:
        """An ascent by the three operators that it is made of, and the weights that it keeps."""
        n = len(self.params)
        params, backup = [p.detach() for p in self.params], [torch.empty_like(p) for p in self.params]
        units = torch.arange(n, device=DEVICE)
        sizes = torch.tensor([p.numel() for p in params], device=DEVICE)
        rho = torch.full((n,), 0.05, dtype=torch.float64, device=DEVICE)
        running, seed = (
            torch.zeros(2, dtype=torch.float64, device=DEVICE),
            torch.zeros((), dtype=torch.int64).to(DEVICE),
        )
        ones, zeros = [1] * n, [0] * n

        def ascend() -> None:
            sums = _ops.segment_norms(self.grads, params, ones, zeros, 0.01)
            multiplier, *_ = _ops.strengths(sums, units, sizes, rho, running, None, None, 0.5, -1.0, 10.0, 2, 2)
            _ops.perturb_(params, backup, self.grads, multiplier, ones, zeros, 0.01, 2, seed)

        return ascend, backup


def replayed(step: Callable[[], object]) -> Callable[[], object]:
    """The same as a CUDA graph, after three runs as usual."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


# --- equality ---

SMALL: Shapes = [(1,), (31,), (1025,), (64, 64, 3, 3), (300, 700)]


def ascents_equal(context: Context) -> str:
    """Sums within rounding of float32, and perturbations by given multipliers with the same bits as plain PyTorch."""
    said = []
    for dtype in (torch.float32, torch.bfloat16):
        load, n = Load(SMALL, dtype), len(SMALL)
        ones, zeros = [1] * n, [0] * n
        given = load.grads, [p.detach() for p in load.params], ones, zeros, 0.01
        ours, exact = _ops.segment_norms(*given), _reference.segment_norms(*given)
        if not bool(((ours - exact).abs() <= 2e-7 * exact).all()):
            raise UnequalError(f"sums of squares differ: {ours.tolist()} and {exact.tolist()}")
        multiplier = torch.linspace(0, 0.1, n, dtype=torch.float64, device=DEVICE)
        seed, moved = torch.tensor(7, device=DEVICE), []
        for perturb in (_ops.perturb_, _reference.perturb_):
            params = [p.detach().clone() for p in load.params]
            backup = [torch.empty_like(p) for p in params]
            perturb(params, backup, load.grads, multiplier, ones, zeros, 0.01, 2, seed)
            moved.append(torch.cat([x.flatten() for x in params + backup]))
        said.append(same_bits(moved[0], moved[1], f"Perturbations in {str(dtype).removeprefix('torch.')}"))
    return " ".join(said)


def steps_equal(context: Context, base: type[Optimizer]) -> str:
    """Five steps of ours and of the peer, against the peer's in float64."""

    def trained(step: Callable[[Load], Callable[[], object]], load: Load) -> Tensor:
        run = step(load)
        for k in range(5):
            for p, grad in zip(load.params, load.grads, strict=True):
                p.grad = grad * (1 + k)
            run()
        return torch.cat([p.detach().flatten().cpu() for p in load.params])

    ours = trained(lambda load: load.ours(base), Load(SMALL))
    try:
        peer = trained(lambda load: load.peer(base), Load(SMALL))
        exact = trained(lambda load: load.peer(base), Load(SMALL, torch.float64, "cpu"))
    except ImportError as error:
        return f"Not compared: {error}."
    return within_twice(ours, peer, exact, f"Weights after five steps over {base.__name__}")


# --- bandwidth ---


def bandwidth(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    shapes: Shapes = [(context.pick(10_000, 4_000_000),)] * 25

    def ascent(dtype: torch.dtype) -> Contestant:
        load = Load(shapes, dtype)
        ascend, _ = load.operators()
        return Contestant(ascend, traffic=5 * dtype.itemsize * load.elements)

    def restore() -> Contestant:
        load = Load(shapes)
        _, backup = load.operators()
        params = [p.detach() for p in load.params]
        return Contestant(lambda: _ops.restore_(params, backup), traffic=8 * load.elements)

    def step(base: type[Optimizer], traffic: int) -> Contestant:
        load = Load(shapes)
        return Contestant(load.ours(base), traffic=traffic * load.elements)

    def copy() -> Contestant:
        source = torch.ones(25 * shapes[0][0] * 5 // 2, device=DEVICE)
        target = torch.empty_like(source)
        return Contestant(lambda: target.copy_(source), traffic=8 * source.numel())

    return {
        OURS: lambda: ascent(torch.float32),
        "gasam bfloat16": lambda: ascent(torch.bfloat16),
        "restore": restore,
        "step with SGD": lambda: step(SGD, 40),
        "step with AdamW": lambda: step(AdamW, 48),
        COPY: copy,
    }


# --- against peers ---


def rivals(
    context: Context, shapes: Callable[[], Shapes], base: type[Optimizer]
) -> Mapping[str, Callable[[], Contestant]]:
    some = context.pick(SMALL, shapes())
    capturable: dict[str, Any] = {"capturable": True} if base is AdamW else {}
    return {
        OURS: lambda: Contestant(Load(some).ours(base)),
        PEER: lambda: Contestant(Load(some).peer(base)),
        TORCH: lambda: Contestant(Load(some).torch(base)),
        REPLAYED: lambda: Contestant(replayed(Load(some).ours(base, **capturable))),
        TORCH_REPLAYED: lambda: Contestant(replayed(Load(some).torch(base, **capturable))),
    }


def race(name: str, about: str, shapes: Callable[[], Shapes], base: type[Optimizer], limit: float) -> Race:
    return Race(
        name,
        about,
        partial(rivals, shapes=shapes, base=base),
        partial(steps_equal, base=base),
        (
            Versus(PEER, at_least(2.5), "speed", headline=base is SGD),
            Versus(TORCH_REPLAYED, at_most(limit), ours=REPLAYED, name="as CUDA graphs"),
            Versus(TORCH, name="eager, the base alone"),
        ),
        profiles=GPU,
        clock="cuda",
    )


# --- in training ---


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        sizes = ((inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, k, s, k // 2, bias=False) for a, b, k, s in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b, _, _ in sizes)
        self.short = nn.Sequential()
        if inputs != 4 * width:
            self.short.extend([nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)])

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for k, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y))
            y = F.relu(y) if k < 2 else y
        return F.relu(y + self.short(x))


def network() -> nn.Module:
    """ResNet-50."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    inputs = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            layers.append(Bottleneck(inputs, width, 2 if stage and block == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def share(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    batch, side = context.pick((2, 32), (64, 224))
    model = network().to(DEVICE, memory_format=torch.channels_last)
    x = torch.randn(batch, 3, side, side, device=DEVICE).contiguous(memory_format=torch.channels_last)
    y = torch.zeros(batch, dtype=torch.int64, device=DEVICE)

    def gradients() -> None:
        for _ in range(2):
            model.zero_grad()
            with torch.autocast(torch.device(DEVICE).type, torch.bfloat16):
                loss = F.cross_entropy(model(x), y)
            loss.backward()

    gradients()
    optimizer = GASAM(list(model.parameters()), SGD, **BASES[SGD])

    def bookkeeping() -> None:
        with optimizer.perturbed():
            pass

    return {OURS: lambda: Contestant(bookkeeping), "two gradients": lambda: Contestant(gradients)}


def shapes_equal(context: Context) -> str:
    shapes = sorted(tuple(p.shape) for p in network().parameters())
    if shapes != sorted(resnet50()) or sum(torch.Size(shape).numel() for shape in shapes) != 25_557_032:
        raise UnequalError("the network is not ResNet-50")
    return "The network has the 161 parameters of ResNet-50, 25.6 million elements."


# --- launches and graphs ---


def launches(context: Context, outcome: Outcome) -> None:
    """Kernels that the device ran, as the profiler saw them."""
    from torch.profiler import ProfilerActivity, profile

    outcome.equal = ascents_equal(context)
    load = Load(resnet50())
    optimizer = GASAM(load.params, SGD, rho=0.05, **BASES[SGD])
    runs: dict[str, Callable[[], object]] = {
        "ascent, operators": Load(resnet50()).operators()[0],
        "ascent, optimizer": optimizer.first_step,
        "restore and SGD": optimizer.second_step,
        PEER: Load(resnet50()).peer(SGD),
    }
    for _ in range(3):
        for run in runs.values():
            run()
    for name, run in runs.items():
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            run()
            torch.cuda.synchronize()
        events = [event.name for event in profiler.events() if event.device_type == torch._C._autograd.DeviceType.CUDA]
        outcome.bars[name] = sum(not name.startswith(("Memcpy", "Memset")) for name in events)
    if not all(outcome.bars.values()):
        raise RuntimeError(f"the profiler saw no kernel: {outcome.bars}")
    outcome.bars_unit = "launches"
    peer = f"{PEER}, a whole step: {outcome.bars[PEER]:.0f}"
    for name, target in (("ascent, operators", at_most(3)), ("ascent, optimizer", None), ("restore and SGD", None)):
        outcome.figures.append(Figure("", name, peer, " launches", outcome.bars[name], target=target))


def graph(context: Context, outcome: Outcome) -> None:
    """Whole steps with a closure, captured and replayed, against as many eager ones; none waits for the device."""
    finals = []
    for captured in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10)).to(DEVICE)
        x = torch.randn(64, 256, device=DEVICE)
        optimizer = GASAM(model, AdamW, rho=0.05, capturable=True, **BASES[AdamW])

        def closure(model: nn.Module = model, x: Tensor = x) -> Tensor:
            loss = model(x).square().mean()
            loss.backward()
            return loss

        step: Callable[[], object] = partial(optimizer.step, closure)
        if captured:
            step = replayed(step)
        else:
            for _ in range(3):
                step()
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(10):
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        finals.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        if bool((finals[-1] == before).all()):
            raise UnequalError("ten steps moved no parameter")
    if not torch.allclose(finals[0], finals[1], rtol=1e-5, atol=1e-6):
        raise UnequalError(f"replayed steps are off by {float((finals[0] - finals[1]).abs().max()):.3g}")
    outcome.equal = "Ten replays of a captured step lead where ten eager steps do; neither waits for the device."
    outcome.figures.append(Figure("", "replayed", "eager steps", note="equal within rounding", verdict="met"))


WORKLOADS: tuple[Workload, ...] = (
    Race(
        "CUDA, bytes per second",
        "25 tensors of 4 million parameters. An ascent reads the gradient twice and the weights, writes both weights.",
        bandwidth,
        ascents_equal,
        (
            Versus(COPY, at_least(0.8), "rate", headline=True),
            Versus(COPY, at_least(0.8), "rate", ours="gasam bfloat16", name="bfloat16, rounded stochastically"),
            Versus(COPY, at_least(0.8), "rate", ours="restore", name="restore"),
            Versus(COPY, None, "rate", ours="step with SGD", name="ascent, restore and SGD"),
            Versus(COPY, None, "rate", ours="step with AdamW", name="ascent, restore and AdamW"),
        ),
        profiles=GPU,
        clock="cuda",
    ),
    race(
        "CUDA, ResNet-50 over SGD", "161 tensors, 25.6 million parameters: all but the gradients.", resnet50, SGD, 2.3
    ),
    race("CUDA, BERT over AdamW", "199 tensors, 109.5 million parameters: all but the gradients.", bert, AdamW, 2.0),
    Race(
        "CUDA, share of a ResNet-50 step",
        "Perturbing and restoring, against two gradients of 64 images in bfloat16 autocast.",
        share,
        shapes_equal,
        (Versus("two gradients", at_most(0.01), headline=True),),
        profiles=GPU,
        clock="cuda",
    ),
    Study("CUDA, launches", "Kernels on the 161 tensors of ResNet-50.", launches, GPU),
    Study("CUDA, graph", "A whole step with its closure, captured.", graph, GPU),
)
