"""Faults in the weights of a network: one at a time against PyTorchFI, millions at once against MRFI and torch."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from harness import FULL, Contestant, Context, Race, UnequalError, Versus, Workload, at_least, same_bits
from torch import Tensor, nn

import paramcorrupt
from paramcorrupt import Faults, bitflip, corrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PACKAGES = ("paramcorrupt", "torch", "pytorchfi", "mrfi")
FEW = 32
ALONE, BLOCK, PLAIN, PYTORCHFI = "Faults.each", "corrupted()", "torch, one tensor, by hand", "PyTorchFI"
GIVEN, DRAWN = "paramcorrupt, a plan", "paramcorrupt, a plan and drawing it"
TORCH, MRFI = "torch, a random bit of each weight", "MRFI, a random bit of each weight"
TORCH_THERE, MRFI_THERE = "torch, given bits of given weights", "MRFI, a random bit of given weights"


# --- the network ---


class Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        shape = nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential(*shape) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(y)) + self.shortcut(x)).relu()


def network(context: Context) -> nn.Module:
    """ResNet-18: 62 tensors of 11.7 million parameters; a smaller one for a smoke test."""
    torch.manual_seed(0)
    widths = context.pick((4, 8), (64, 128, 256, 512))
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 7, 2, 3, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    before = widths[0]
    for number, width in enumerate(widths):
        layers += [Block(before, width, 1 + (number > 0)), Block(width, width, 1)]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1000)).eval()


# --- one at a time ---


def convolutions(model: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]


def injector(model: nn.Module) -> Any:
    from pytorchfi.core import fault_injection

    return fault_injection(model, 1, input_shape=[3, 32, 32], use_cuda=False)


def theirs(peer: Any, layer: int, place: tuple[int, ...], value: float) -> nn.Module:
    k, c, h, w = place
    return peer.declare_weight_fi(layer_num=[layer], k=[k], dim1=[c], dim2=[h], dim3=[w], value=[value])


def same_fault(context: Context) -> str:
    """A flip of ours, and PyTorchFI told to write the value that it leads to, give the same weights."""
    model = network(context)
    name, layer = convolutions(model)[2]
    before = layer.weight.detach().clone()
    plan = bitflip({f"{name}.weight": layer.weight}, bits=30, count=1, seed=0)
    ((element, _),) = next(iter(plan)).places
    place = tuple(int(x) for x in torch.unravel_index(torch.tensor(element), layer.weight.shape))
    with plan.each(model) as faults:
        next(faults)
        ours = layer.weight.detach().clone()
    said = same_bits(
        layer.weight.detach().view(torch.int32), before.view(torch.int32), "Weights after a fault and before"
    )
    try:
        peer = injector(model)
    except ImportError:
        return said
    other = convolutions(theirs(peer, 2, place, ours[place].item()))[2][1].weight.detach()
    return f"{said} {same_bits(ours.view(torch.int32), other.view(torch.int32), 'Weights with a fault, PyTorchFI')}"


def one_at_a_time(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    """Each run has some faults, one after another."""
    model = network(context)
    plan = bitflip(model, count=1000, seed=0)

    def stream() -> Iterator[object]:
        while True:
            with plan.each(model) as faults:
                yield from faults

    def alone() -> Contestant:
        endless = stream()
        return Contestant(lambda: [next(endless) for _ in range(FEW)])

    def block() -> Contestant:
        one = bitflip(model, count=1, seed=0)

        def run() -> None:
            for _ in range(FEW):
                with corrupted(model, one):
                    pass

        return Contestant(run)

    def by_hand() -> Contestant:
        bits = convolutions(model)[2][1].weight.detach().view(-1).view(torch.int32)

        def run() -> None:
            for _ in range(FEW):
                bits[77] ^= 1 << 20
                bits[77] ^= 1 << 20

        return Contestant(run)

    def pytorchfi() -> Contestant:
        peer = injector(model)

        def run() -> None:
            for _ in range(FEW):
                theirs(peer, 2, (1, 1, 1, 1), 3.0)

        return Contestant(run)

    return {ALONE: alone, BLOCK: block, PLAIN: by_hand, PYTORCHFI: pytorchfi}


# --- many at once ---


@cache
def crowd(weights: int, count: int) -> tuple[Tensor, Faults]:
    """Weights, and a plan that flips `count` of their bits."""
    x = torch.randn(weights, generator=torch.Generator().manual_seed(0))
    return x, bitflip({"x": x}, count=count, seed=0)


def sizes(context: Context, times: int) -> tuple[int, int]:
    """So many weights for each flip, and how many flips."""
    count = context.pick(5_000, 5_000_000)
    return times * count, count


def places(plan: Faults) -> tuple[Tensor, Tensor]:
    """The weights that a plan hits, sorted, each once, and integers to xor them with."""
    index, mask = plan.of_bytes("x")
    element, which = (index >> 2).unique_consecutive(return_inverse=True)
    bits = torch.zeros(element.numel(), dtype=torch.int64).index_add_(0, which, mask.long() << 8 * (index & 3))
    return element, bits.int()


def write(x: Tensor, index: Tensor, mask: Tensor) -> None:
    paramcorrupt._ops.xor_bits_(x.view(torch.uint8), index, mask)


def write_by_torch(x: Tensor, element: Tensor, mask: Tensor) -> None:
    bits = x.view(torch.int32)
    bits.index_copy_(0, element, bits.index_select(0, element) ^ mask)


def bits_apart(x: Tensor, y: Tensor) -> int:
    different = x.view(torch.int32) ^ y.view(torch.int32)
    return sum(int((different >> bit & 1).sum()) for bit in range(32))


def same_crowd(context: Context, times: int) -> str:
    x, plan = crowd(*sizes(context, times))
    ours, by_torch = x.clone(), x.clone()
    write(ours, *plan.of_bytes("x"))
    write_by_torch(by_torch, *places(plan))
    said = same_bits(ours.view(torch.int32), by_torch.view(torch.int32), "Weights with the plan, by torch")
    if (flipped := bits_apart(x, ours)) != plan.count:
        raise UnequalError(f"{flipped} bits differ, of {plan.count} that were asked for")
    return f"{flipped:,} bits differ. {said}"


def a_bit_of_each(x: Tensor) -> None:
    bit = torch.randint(32, x.shape, dtype=torch.int32)
    x.view(torch.int32).bitwise_xor_(torch.ones((), dtype=torch.int32) << bit)


def by_mrfi(x: Tensor, element: Tensor | None = None) -> Contestant:
    from mrfi.error_mode import FloatRandomBitFlip

    def run() -> None:
        if element is None:
            x.copy_(FloatRandomBitFlip(x))
        else:
            x[element] = FloatRandomBitFlip(x[element])

    return Contestant(run)


def in_each(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    x, plan = crowd(*sizes(context, 1))

    def drawn() -> None:
        write(x, *bitflip({"x": x}, count=plan.count, seed=0).of_bytes("x"))

    return {
        GIVEN: lambda: Contestant(partial(write, x, *plan.of_bytes("x"))),
        DRAWN: lambda: Contestant(drawn),
        TORCH: lambda: Contestant(partial(a_bit_of_each, x)),
        MRFI: lambda: by_mrfi(x),
    }


def in_some(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    x, plan = crowd(*sizes(context, 5))
    element, mask = places(plan)
    return {
        GIVEN: lambda: Contestant(partial(write, x, *plan.of_bytes("x"))),
        TORCH_THERE: lambda: Contestant(partial(write_by_torch, x, element, mask)),
        MRFI_THERE: lambda: by_mrfi(x, element),
    }


WORKLOADS: tuple[Workload, ...] = (
    Race(
        "one fault, written and taken back",
        f"ResNet-18: 62 tensors of 11.7 million parameters. A run is {FEW} faults; PyTorchFI copies the model.",
        one_at_a_time,
        same_fault,
        (
            Versus(PYTORCHFI, at_least(1000), kind="speed"),
            Versus(PYTORCHFI, kind="speed", ours=BLOCK, note="with every check, and the state around the weights"),
            Versus(PLAIN, note="a view of one tensor, xor twice, no name, no check, no restore after an error"),
        ),
        seconds=3,
    ),
    Race(
        "five million flips among five million weights",
        "float32. Ours writes a plan, whose bits lie anywhere; the others draw a bit of each weight while they go.",
        in_each,
        partial(same_crowd, times=1),
        (
            Versus(TORCH, at_least(5), kind="speed"),
            Versus(MRFI, at_least(5), kind="speed"),
            Versus(MRFI, kind="speed", ours=DRAWN, note="ours draws different bits, in order, from a seed"),
        ),
        seconds=2,
    ),
    Race(
        "five million flips among 25 million weights",
        "float32. The weights are given, in order; MRFI draws a bit of each. All are bound by memory.",
        in_some,
        partial(same_crowd, times=5),
        (Versus(TORCH_THERE, kind="speed"), Versus(MRFI_THERE, kind="speed")),
        FULL | {"smoke"},
        seconds=3,
    ),
)
