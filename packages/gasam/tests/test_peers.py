"""The presets against their authors' code, whose results lie in `golden` as facts, and against pytorch_optimizer.

Each file of `golden` names a repository and the commit that ran, once, on the problems below, in float64: it has the
loss of each of 50 steps, and every third of the weights that they led to.
"""

from __future__ import annotations

import importlib
import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, AdamW

from gasam import ASAM, GSAM, MSAM, SAM, SAMON, WSAM, FriendlySAM, LookSAM, MultiStepRisk

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from torch.optim import Optimizer

STEPS = 50
TOLERANCE = 1e-6
SOURCES = {
    path.stem: json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "golden").glob("*.json"))
}


# --- problems that every machine makes again ------------------------------------------------------------------------


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    """Numbers in [-1, 1] that look random, out of integers."""
    k = torch.arange(1, math.prod(shape) + 1)
    return (((k * k * 31 + (k + seed) * (17 + seed)) % 211).double() / 105 - 1).view(shape)


class Images(nn.Module):
    """A small network with a norm layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.out = nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.norm(self.conv(x))).flatten(1))

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        return numbers((8, 1, 6, 6), t), (torch.arange(8) ** 2 + t) % 3


class Characters(nn.Module):
    """A recurrent language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.lstm = nn.LSTM(4, 5)
        self.out = nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(self.embed(x))[0]).flatten(0, 1)

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        k = torch.arange(33).view(11, 3)
        text = (k * k + t * k + t) % 7
        return text[:-1], text[1:].flatten()


class Digits(nn.Module):
    """A perceptron of the size that MNIST takes."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(784, 32)
        self.out = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(x)))

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        return numbers((16, 784), t) / 8, (torch.arange(16) ** 2 + t) % 10


def problem(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    model = {"Images": Images, "Characters": Characters, "Digits": Digits}[name]().to(dtype)
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.copy_(numbers(tuple(p.shape), k) / 2)
    return model


def loss_of(model: nn.Module, t: int) -> Tensor:
    x, y = model.batch(t)
    if x.is_floating_point():
        x = x.to(next(model.parameters()).dtype)
    return functional.cross_entropy(model(x), y)


def train(
    model: nn.Module,
    optimizer: Optimizer,
    first: int = 0,
    last: int = STEPS,
    loss: Callable[[nn.Module, int], Tensor] = loss_of,
) -> list[float]:
    """The losses that the steps `first` to `last` - 1 return."""
    losses = []
    for t in range(first, last):

        def closure(t: int = t) -> Tensor:
            optimizer.zero_grad()
            value = loss(model, t)
            value.backward()
            return value

        losses.append(optimizer.step(closure).item())
    return losses


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# --- the authors' code ----------------------------------------------------------------------------------------------

PRESETS = {
    "SAM": SAM,
    "SAMOptimizer": SAM,
    "ASAM": ASAM,
    "GSAM": GSAM,
    "FriendlySAM": FriendlySAM,
    "SAM_ON": SAMON,
    "ASAM_ON": SAMON,
    "MSAM": MSAM,
    "AdamW_MSAM": MSAM,
    "LookSAM": LookSAM,
    "WeightedSAM": WSAM,
}
BASES = {"MSAM": SGD, "AdamW_MSAM": AdamW, "LookSAM": SGD}
OURS = {"rho", "alpha", "k", "eta", "sigma", "lmbda", "gamma", "decouple", "lr", "momentum", "weight_decay"}
APART = {"adaptive", "interval", "schedule", "decay", "infinity"}  # cases with a test of their own


def golden(source: str, case: str) -> SimpleNamespace:
    return SimpleNamespace(**SOURCES[source]["cases"][case])


def preset(model: Any, settings: dict[str, Any], **more: Any) -> Optimizer:
    """Ours, in its authors' settings."""
    kind = settings["class"]
    base = BASES.get(kind) or getattr(torch.optim, settings["base"])
    options = {key: value for key, value in settings.items() if key in OURS} | more
    return PRESETS[kind](model, base, **options)


def deviation(fact: SimpleNamespace, model: nn.Module, losses: list[float] | None) -> float:
    found = weights(model)[::3]
    theirs = torch.tensor(fact.weights, dtype=torch.float64)
    worst = (found - theirs).abs().max().item()
    if losses is None:
        return worst
    pairs = zip(losses, fact.losses[-len(losses) :], strict=True)
    return max(worst, *(abs(one - other) for one, other in pairs))


ALIKE = [
    (source, case)
    for source, facts in SOURCES.items()
    for case in facts["cases"]
    if case not in APART and source != "tobiaslee-paramcorruption"
]


@pytest.mark.parametrize(("source", "case"), ALIKE, ids="-".join)
def test_fifty_steps_are_those_of_the_authors_code(source: str, case: str):
    fact = golden(source, case)
    model = problem(fact.problem)
    more = {"adaptive": True} if fact.settings["class"] == "ASAM_ON" else {}
    losses = train(model, preset(model, fact.settings, **more))
    assert deviation(fact, model, losses) <= TOLERANCE


@pytest.mark.parametrize(("source", "case"), ALIKE, ids="-".join)
def test_the_base_optimizer_alone_would_not_pass(source: str, case: str):
    fact = golden(source, case)
    model = problem(fact.problem)
    losses = train(model, preset(model, fact.settings, rho=0.0))
    assert deviation(fact, model, losses) > 1e3 * TOLERANCE


def test_davda54s_adaptive_is_asam_with_every_tensor_weighted_and_no_eta():
    fact = golden("davda54-sam", "adaptive")
    model = problem(fact.problem)
    named = [(f"weight of {name}", p) for name, p in model.named_parameters()]  # T = |w| where a name has `weight`
    losses = train(model, preset(named, fact.settings, adaptive=True, eta=0.0))
    assert deviation(fact, model, losses) <= TOLERANCE
    model = problem(fact.problem)
    losses = train(model, preset(model, fact.settings, adaptive=True, eta=0.0))
    assert deviation(fact, model, losses) > 1e3 * TOLERANCE


def test_composers_interval_starts_with_the_plain_steps_and_ours_with_the_ascent():
    fact = golden("mosaicml-composer", "interval")
    interval = fact.settings["interval"]
    model = problem(fact.problem)
    base = AdamW(model.parameters(), **{key: fact.settings[key] for key in ("lr", "weight_decay")})
    for t in range(interval - 1):
        base.zero_grad()
        loss_of(model, t).backward()
        base.step()
    base.zero_grad()
    losses = train(model, SAM(model, base, rho=fact.settings["rho"], every=interval), first=interval - 1)
    assert deviation(fact, model, losses) <= TOLERANCE


def test_gsams_radius_can_follow_the_learning_rate():
    # Its scheduler has the smallest radius in the first step, before the learning rate has been set.
    fact = golden("juntang-zhuang-gsam", "schedule")
    model = problem(fact.problem)
    optimizer = GSAM(model, AdamW, alpha=fact.settings["alpha"], weight_decay=fact.settings["weight_decay"])
    losses = []
    for t, (lr, rho) in enumerate(zip(fact.settings["lr"], fact.settings["rho"], strict=True)):
        optimizer.param_groups[0].update(lr=lr, rho=rho)
        losses += train(model, optimizer, t, t + 1)
    assert deviation(fact, model, losses) <= TOLERANCE


def test_the_maximum_norm_of_samon_is_that_of_its_authors():
    fact = golden("mueller-mp-sam-on", "infinity")
    model = problem(fact.problem)
    losses = train(model, preset(model, fact.settings, adaptive=True, norm=math.inf))
    assert deviation(fact, model, losses) <= TOLERANCE


def test_msams_authors_decay_the_perturbed_weights_and_ours_the_weights():
    fact = golden("marlonbecker-msam", "decay")
    decay = fact.settings["weight_decay"]

    def decayed(model: nn.Module, t: int) -> Tensor:
        return loss_of(model, t) + decay / 2 * sum(p.square().sum() for p in model.parameters())

    model = problem(fact.problem)
    train(model, preset(model, fact.settings, weight_decay=0.0), loss=decayed)
    assert deviation(fact, model, None) <= TOLERANCE
    model = problem(fact.problem)
    train(model, preset(model, fact.settings))
    assert deviation(fact, model, None) > 10 * TOLERANCE


@pytest.mark.parametrize("case", SOURCES["tobiaslee-paramcorruption"]["cases"])
def test_multi_step_risk_is_that_of_its_authors_who_keep_one_gradient_of_four(case: str):
    # They divide the loss by four to accumulate four batches, but set the gradients to zero before each.
    fact = golden("tobiaslee-paramcorruption", case)
    settings = {key: fact.settings[key] for key in ("lr", "momentum", "weight_decay")}
    norm = {"l2": 2, "linf": math.inf}[fact.settings["LP"]]
    model = problem(fact.problem)
    optimizer = MultiStepRisk(model, SGD, rho=fact.settings["eps"], steps=fact.settings["K"], norm=norm, **settings)
    train(model, optimizer, loss=lambda model, t: loss_of(model, 4 * t + 3) / 4)
    assert deviation(fact, model, None) <= TOLERANCE


# --- pytorch_optimizer ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    """The package; what it warns of when it is imported is its own affair."""
    pytest.importorskip("pytorch_optimizer", reason="pytorch_optimizer is not installed (group peers)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("pytorch_optimizer")


def their_steps(model: nn.Module, optimizer: Any) -> None:
    """50 steps of a peer, whose closure is for the second gradient: the first must be there before."""
    for t in range(STEPS):

        def closure(t: int = t) -> Tensor:
            optimizer.zero_grad()
            with torch.enable_grad():
                value = loss_of(model, t)
            value.backward()
            return value

        if type(optimizer).__name__ == "GSAM":
            optimizer.step(lambda closure=closure: (None, closure()))
        else:
            if type(optimizer).__name__ != "WSAM":
                closure()
            optimizer.step(closure)


LIVE = {
    "SAM": (SAM, {"rho": 0.1}),
    "FriendlySAM": (FriendlySAM, {"rho": 0.2, "sigma": 0.9, "lmbda": 0.6}),
    "WSAM": (WSAM, {"rho": 0.1, "gamma": 0.7, "decouple": True}),
    "WSAM coupled": (WSAM, {"rho": 0.1, "gamma": 0.8, "decouple": False}),
    "GSAM": (GSAM, {"rho": 0.1, "alpha": 0.4}),
}
BASE_OPTIONS = {SGD: {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}, AdamW: {"lr": 1e-2, "weight_decay": 0.1}}


def their_optimizer(peers: ModuleType, name: str, model: nn.Module, base: type, options: dict[str, Any]) -> Any:
    kind = getattr(peers, name)
    if name == "WSAM":
        return kind(model, model.parameters(), base, **options, **BASE_OPTIONS[base])
    if name == "GSAM":
        schedule = SimpleNamespace(step=lambda: options["rho"])
        instance = base(model.parameters(), **BASE_OPTIONS[base])
        return kind(model.parameters(), instance, model, schedule, alpha=options["alpha"])
    return kind(model.parameters(), base, **options, **BASE_OPTIONS[base])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("name", "base"), [("Digits", SGD), ("Characters", AdamW)], ids=["digits", "characters"])
@pytest.mark.parametrize("case", LIVE)
def test_fifty_steps_are_those_of_pytorch_optimizer(
    peers: ModuleType, case: str, name: str, base: type, dtype: torch.dtype
):
    kind, options = LIVE[case]
    ours, theirs = problem(name, dtype), problem(name, dtype)
    train(ours, kind(ours, base, **options, **BASE_OPTIONS[base]))
    their_steps(theirs, their_optimizer(peers, case.partition(" ")[0], theirs, base, options))
    start = weights(problem(name, dtype))
    assert (weights(ours) - start).abs().max() > 0.1
    assert (weights(ours) - weights(theirs)).abs().max() <= TOLERANCE


class Linear(nn.Module):
    """One tensor, for which inner products of tensors are those of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 36))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x.flatten(1), self.weight)

    batch = Images.batch


@pytest.mark.parametrize("k", [1, 4])
def test_one_tensors_looksam_is_that_of_pytorch_optimizer(peers: ModuleType, k: int):
    options = {"rho": 0.2, "k": k, "alpha": 0.7, "lr": 0.05, "momentum": 0.9}
    ours, theirs = Linear().double(), Linear().double()
    train(ours, LookSAM(ours, SGD, **options))
    their_steps(theirs, peers.LookSAM(theirs.parameters(), SGD, **options))
    assert (weights(ours) - weights(theirs)).abs().max() <= TOLERANCE


# --- optax ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_parabola_of_optaxs_tests_is_minimised_within_their_tolerance():
    w = nn.Parameter(torch.tensor([-1.0, 10.0, 1.0]))
    minimum = torch.tensor([1.0, -1.0, 1.0])
    optimizer = SAM([w], SGD, rho=1e-5, lr=1e-3)

    def closure() -> Tensor:
        loss = (w - minimum).square().sum()
        loss.backward()
        return loss

    for _ in range(25_000):
        optimizer.step(closure)
    torch.testing.assert_close(w.detach(), minimum, rtol=3e-2, atol=3e-2)
