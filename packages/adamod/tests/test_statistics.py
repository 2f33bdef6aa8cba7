"""What `bound_stats` counts, against the same counted in NumPy from the states, and the pictures of it."""

from __future__ import annotations

import copy
import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import adamod
from adamod import AdaMod, BoundStats, _ops

if TYPE_CHECKING:
    from collections.abc import Sequence

needs_kernel = pytest.mark.skipif("cpu" not in _ops.KERNELS, reason="the package was built without its C++ kernels")
PATHS = {
    "operator": {"fused": True},
    "foreach": {"foreach": True, "fused": False},
    "loop": {"foreach": False, "fused": False},
}
EVERY_PATH = pytest.mark.parametrize(
    "path", [pytest.param(name, marks=needs_kernel) if name == "operator" else name for name in PATHS]
)
SHAPES = [(), (31,), (512,), (513,), (512 * 8,), (512 * 16 - 1,), (41, 512), (97, 211), (0,)]


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def every_param(optimizer: AdaMod) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def train(optimizer: AdaMod, first: int, last: int, decades: float = 3) -> None:
    """Gradients of many scales, so that many octaves are met and part of the elements is clipped."""
    for t in range(first, last + 1):
        generator = torch.Generator().manual_seed(t)
        for p in every_param(optimizer):
            scale = 10 ** torch.empty(p.shape).uniform_(-decades, decades, generator=generator)
            p.grad = torch.randn(p.shape, dtype=p.dtype, generator=generator) * scale
        optimizer.step()


def flat(x: Tensor) -> np.ndarray:
    x = torch.view_as_real(x) if x.is_complex() else x
    order = sorted(range(x.ndim), key=lambda d: -x.stride(d))
    return x.detach().permute(order).flatten().to(torch.float64).numpy()


@dataclasses.dataclass
class Count:
    """The definition: one step of one parameter, and sums of such."""

    elements: int = 0
    clipped: int = 0
    eta: Any = dataclasses.field(default_factory=lambda: np.zeros(64, dtype=np.int64))
    s: Any = dataclasses.field(default_factory=lambda: np.zeros(64, dtype=np.int64))

    def add(self, optimizer: AdaMod, p: Tensor) -> None:
        [group] = [group for group in optimizer.param_groups if any(p is q for q in group["params"])]
        state, (beta1, beta2) = optimizer.state[p], group["betas"]
        t, v, s = int(state["step"]), flat(state["exp_avg_sq"]), flat(state["exp_avg_lr"])
        if group["variant"] == "code":
            eta = group["lr"] * np.sqrt(1 - beta2**t) / (1 - beta1**t) / (np.sqrt(v) + group["eps"])
        else:
            eta = group["lr"] / (np.sqrt(v / (1 - beta2**t)) + group["eps"])
        runs = -(-len(v) // 512)
        every = max(1, runs // 8)
        taken = np.zeros(len(v), dtype=bool)
        for r in range(runs):
            if r % every == t % every:
                taken[512 * r : 512 * (r + 1)] = True
        self.elements += len(v)
        self.clipped += int((s < eta).sum())
        for counts, x in ((self.eta, eta), (self.s, s)):
            octaves = np.frexp(x[taken])[1] - 1
            np.add.at(counts, np.clip(octaves + 40, 0, 63), 1)

    def assert_equals(self, stats: BoundStats, slack: int = 0) -> None:
        """`slack`: elements that float32 may put on the other side of an edge or of the bound."""
        assert stats.elements == self.elements
        assert abs(round(stats.clipped * stats.elements) - self.clipped) <= slack
        assert stats.sampled == self.eta.sum() == stats.eta.sum() == stats.s.sum()
        for ours, theirs in ((stats.eta, self.eta), (stats.s, self.s)):
            assert ours.dtype == torch.int64
            assert ours.shape == (64,)
            assert np.abs(ours.numpy() - theirs).sum() <= 2 * slack


@EVERY_PATH
@pytest.mark.parametrize("variant", ["code", "paper"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_the_counts_are_those_of_the_states_after_each_step(path: str, variant: str, dtype: torch.dtype):
    params = parameters(*SHAPES, dtype=dtype)
    optimizer = AdaMod(params, lr=1e-2, beta3=0.9, variant=variant, **PATHS[path])
    train(optimizer, 1, 3)
    assert optimizer.bound_stats(True) == {}
    expected = {p: Count() for p in params}
    for t in range(4, 11):
        train(optimizer, t, t)
        for p, count in expected.items():
            count.add(optimizer, p)
    stats = optimizer.bound_stats(False)
    assert list(stats) == [p for p in params if p.numel()]
    for p, one in stats.items():
        expected[p].assert_equals(one, slack=0 if dtype == torch.float64 else 2)
        assert one.steps == 7
        assert one.elements == 7 * p.numel() * (2 if dtype.is_complex else 1)
        assert one.clipped == pytest.approx(expected[p].clipped / one.elements, abs=2 / one.elements)
    assert 0.05 < stats[params[-2]].clipped < 0.95


@EVERY_PATH
@pytest.mark.parametrize("t", [1, 2, 10])
@pytest.mark.parametrize("variant", ["code", "paper"])
def test_what_is_recomputed_from_the_states_is_what_the_step_counts(path: str, t: int, variant: str):
    params = parameters(*SHAPES)
    options = {"lr": 1e-2, "beta3": 0.9, "variant": variant, **PATHS[path]}
    counted, off = AdaMod(params, **options), AdaMod([nn.Parameter(p.detach().clone()) for p in params], **options)
    train(counted, 1, t - 1)
    counted.bound_stats(True)
    train(counted, t, t)
    train(off, 1, t)
    slack = 0 if path == "loop" else 2  # foreach multiplies by a reciprocal; v is the same, but not the bits of eta
    pairs = zip(counted.bound_stats().values(), off.bound_stats().values(), strict=True)
    for a, b in pairs:
        assert (a.steps, a.elements, a.sampled) == (b.steps, b.elements, b.sampled) == (1, a.elements, a.sampled)
        assert abs(a.clipped - b.clipped) * a.elements <= slack
        assert (a.eta - b.eta).abs().sum() <= 2 * slack
        assert torch.equal(a.s, b.s)


@EVERY_PATH
def test_at_the_first_step_everything_is_clipped_and_without_a_memory_nothing(path: str):
    params = parameters((700,), (3, 5))
    for beta3, clipped in ((0.999, 1.0), (0.5, 1.0), (0.0, 0.0)):
        optimizer = AdaMod(params, beta3=beta3, **PATHS[path])
        optimizer.bound_stats(True)
        train(optimizer, 1, 1)
        assert [one.clipped for one in optimizer.bound_stats().values()] == [clipped, clipped]


@EVERY_PATH
def test_the_calls_start_read_reset_and_stop(path: str):
    params = parameters((700,), (3, 5))
    optimizer = AdaMod(params, **PATHS[path])

    def steps(result: dict[Tensor, BoundStats]) -> list[int]:
        return [one.steps for one in result.values()]

    assert optimizer.bound_stats(False) == {}
    train(optimizer, 1, 2)
    assert optimizer.bound_stats(False) == {}  # off: nothing was counted
    assert steps(optimizer.bound_stats()) == [1, 1]  # recomputed, and counts from now on
    train(optimizer, 3, 5)
    assert steps(optimizer.bound_stats()) == [3, 3]  # read and reset
    assert optimizer.bound_stats() == {}  # nothing since
    train(optimizer, 6, 7)
    assert steps(optimizer.bound_stats()) == [2, 2]
    train(optimizer, 8, 9)
    assert steps(optimizer.bound_stats(False)) == [2, 2]  # read and stop
    train(optimizer, 10, 12)
    assert optimizer.bound_stats(False) == {}
    optimizer.bound_stats(True)
    train(optimizer, 13, 14)
    assert steps(optimizer.bound_stats(False)) == [2, 2]


def test_before_the_first_step_there_is_nothing_to_recompute():
    optimizer = AdaMod(parameters((5,)))
    assert optimizer.bound_stats() == {}
    train(optimizer, 1, 2)
    [one] = optimizer.bound_stats().values()
    assert one.steps == 2


def test_a_result_is_frozen_and_does_not_change_later():
    optimizer = AdaMod(parameters((700,)))
    optimizer.bound_stats(True)
    train(optimizer, 1, 1)
    [one] = optimizer.bound_stats().values()
    before = copy.deepcopy(one)
    train(optimizer, 2, 3)
    assert torch.equal(one.eta, before.eta)
    assert torch.equal(one.s, before.s)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.steps = 2


def test_the_edges_are_powers_of_two():
    optimizer = AdaMod(parameters((5,)))
    train(optimizer, 1, 1)
    [one] = optimizer.bound_stats().values()
    assert one.edges.dtype == torch.float64
    assert one.edges.tolist() == [2.0**k for k in range(-40, 25)]
    assert isinstance(one.clipped, float)
    assert all(isinstance(x, int) for x in (one.steps, one.elements, one.sampled))


def test_names_are_those_that_the_optimizer_was_given():
    a, b, c = parameters((5,), (4,), (3,))
    optimizer = AdaMod([("first", a), ("second", b)])
    optimizer.add_param_group({"params": [("third", c)]})
    train(optimizer, 1, 1)
    assert {p: one.name for p, one in optimizer.bound_stats().items()} == {a: "first", b: "second", c: "third"}
    unnamed = AdaMod([a])
    train(unnamed, 1, 1)
    assert [one.name for one in unnamed.bound_stats().values()] == [None]


@EVERY_PATH
def test_parameters_are_counted_for_the_steps_that_they_make(path: str):
    a, b, never = parameters((5,), (4,), (3,))
    optimizer = AdaMod([{"params": [never, a]}, {"params": [b]}], **PATHS[path])
    optimizer.bound_stats(True)
    for t in range(1, 7):
        a.grad = torch.ones(5)
        b.grad = torch.ones(4) if t % 3 == 0 else None
        optimizer.step()
    assert {p: one.steps for p, one in optimizer.bound_stats().items()} == {a: 6, b: 2}


@EVERY_PATH
def test_a_group_that_is_added_while_counting_loses_no_count(path: str):
    a, b = parameters((5,), (4,))
    optimizer = AdaMod([a], **PATHS[path])
    optimizer.bound_stats(True)
    train(optimizer, 1, 2)
    optimizer.add_param_group({"params": [b]})
    train(optimizer, 3, 5)
    assert {p: one.steps for p, one in optimizer.bound_stats().items()} == {a: 5, b: 3}
    optimizer.add_param_group({"params": parameters((3,))})
    assert optimizer.bound_stats() == {}


@EVERY_PATH
def test_numbers_outside_of_all_bins_are_in_the_end_bins(path: str):
    small, large = parameters((7,), (600,))
    optimizer = AdaMod(
        [{"params": [small], "lr": 1e-30}, {"params": [large], "eps": 1e-12, "lr": 1.0}], beta3=0.5, **PATHS[path]
    )
    optimizer.bound_stats(True)
    for p in (small, large):
        p.grad = torch.zeros_like(p)
    small.grad += 1
    optimizer.step()
    stats = optimizer.bound_stats()
    assert stats[small].eta[0] == stats[small].s[0] == 7
    assert stats[large].eta[-1] == stats[large].s[-1] == 600


@EVERY_PATH
def test_numbers_that_are_not_finite_are_counted_and_not_clipped(path: str):
    [p] = parameters((600,))
    optimizer = AdaMod([p], **PATHS[path])
    optimizer.bound_stats(True)
    p.grad = torch.full_like(p, torch.nan)
    optimizer.step()
    [one] = optimizer.bound_stats().values()
    assert one.sampled == one.elements == 600
    assert one.eta[-1] == one.s[-1] == 600
    assert one.clipped == 0


@EVERY_PATH
@pytest.mark.parametrize("layout", ["transposed", "channels last", "sliced"])
def test_runs_follow_the_memory_of_the_parameter(path: str, layout: str):
    start = torch.randn(8, 16, 24, 12, generator=torch.Generator().manual_seed(0))
    p = {
        "transposed": start.permute(3, 0, 2, 1),
        "channels last": start.to(memory_format=torch.channels_last),
        "sliced": start[1:, ::2, 3:],
    }[layout].requires_grad_()
    optimizer = AdaMod([p], lr=1e-2, beta3=0.9, **PATHS[path])
    optimizer.bound_stats(True)
    expected = Count()
    for t in range(1, 6):
        train(optimizer, t, t)
        expected.add(optimizer, p)
    [one] = optimizer.bound_stats().values()
    expected.assert_equals(one, slack=2)


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, "int8"], ids=str)
def test_states_of_low_precision_are_counted_before_they_are_rounded(state_dtype: Any):
    """The counts stay within the rounding of those in float32; recomputed ones come from the rounded states."""
    low, full = (AdaMod(parameters((100, 100)), lr=1e-2, state_dtype=kind) for kind in (state_dtype, None))
    for optimizer in (low, full):
        optimizer.bound_stats(True)
        train(optimizer, 1, 1, decades=1)
    a, b = (next(iter(optimizer.bound_stats().values())) for optimizer in (low, full))
    assert torch.equal(a.eta, b.eta)  # at the first step the states are zero before, so eta and s are the same
    assert torch.equal(a.s, b.s)
    assert a.clipped == b.clipped == 1
    low.bound_stats(False)
    [again] = low.bound_stats().values()
    assert again.sampled == a.sampled
    assert (again.eta - a.eta).abs().sum() < 0.1 * a.sampled
    assert again.clipped == 1


class Seen(TorchDispatchMode):
    """Shapes of all tensors that operators take and give."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = torch.utils._pytree.tree_leaves((args, kwargs, result))
        self.shapes |= {tuple(x.shape) for x in leaves if isinstance(x, Tensor)}
        return result


@EVERY_PATH
def test_nothing_is_allocated_while_it_is_off(path: str):
    params = parameters((5,), (7,), (11,))
    optimizer = AdaMod(params, **PATHS[path])
    train(optimizer, 1, 2)

    def tables() -> set[tuple[int, ...]]:
        with Seen() as seen:
            optimizer.step()
        return {shape for shape in seen.shapes if 130 in shape}

    assert tables() == set()
    optimizer.bound_stats(True)
    assert tables()
    optimizer.bound_stats(False)
    assert tables() == set()


@EVERY_PATH
def test_counting_changes_no_bit_of_the_training(path: str):
    on, off = (AdaMod(parameters((700,), (3, 5)), lr=1e-2, **PATHS[path]) for _ in range(2))
    on.bound_stats(True)
    train(on, 1, 5)
    train(off, 1, 5)
    for p, q in zip(every_param(on), every_param(off), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(on.state[p]["exp_avg_lr"], off.state[q]["exp_avg_lr"])


@needs_kernel
def test_a_step_that_the_scaler_skips_is_not_counted():
    [p] = parameters((5,))
    optimizer = AdaMod([p])
    optimizer.bound_stats(True)
    scaler = torch.amp.GradScaler("cpu")
    for bad in (False, True, False):
        scaler.scale(torch.zeros(()))
        p.grad = torch.full_like(p, torch.inf if bad else 1.0)
        scaler.step(optimizer)
        scaler.update()
    assert [one.steps for one in optimizer.bound_stats().values()] == [2]


# --- pictures -------------------------------------------------------------------------------------------------------


def stats_of(*steps: int) -> list[tuple[int, dict[Tensor, BoundStats]]]:
    optimizer = AdaMod(parameters((100, 100), (50,)), lr=1e-2, beta3=0.99)
    optimizer.bound_stats(True)
    results, done = [], 0
    for step in steps:
        train(optimizer, done + 1, step)
        results.append((step, optimizer.bound_stats()))
        done = step
    return results


def heights(axes: Any) -> list[np.ndarray]:
    return [patch.get_data().values for patch in axes.patches]


def test_one_result_is_drawn_as_two_histograms_over_octaves():
    [(_, stats)] = stats_of(30)
    figure = adamod.plot.learning_rates(stats)
    [axes] = figure.axes
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["η, before the bound", "s, the bound"]
    total = {key: sum(getattr(one, key) for one in stats.values()).double() for key in ("eta", "s")}
    drawn = heights(axes)
    for key, values in zip(("eta", "s"), (drawn[0], drawn[-1]), strict=True):
        share = (total[key] / total[key].sum()).numpy()
        assert values.sum() == pytest.approx(1)
        np.testing.assert_allclose(values[values > 0], share[share > 0])
    elements = sum(one.elements for one in stats.values())
    clipped = sum(one.clipped * one.elements for one in stats.values()) / elements
    assert f"{clipped:.1%}" in axes.get_title()


@pytest.mark.parametrize("steps", [(5,), (1, 10, 20, 40)])
def test_a_list_of_results_is_drawn_as_two_heat_maps(steps: Sequence[int]):
    results = stats_of(*steps)
    figure = adamod.plot.learning_rates(results)
    maps = [axes for axes in figure.axes if axes.collections and axes.get_title()]
    assert [axes.get_title() for axes in maps] == ["η, before the bound", "s, the bound"]
    assert maps[0].collections[0].get_clim() == maps[1].collections[0].get_clim()  # one colour bar serves both
    for axes, key in zip(maps, ("eta", "s"), strict=True):
        assert axes.get_yscale() == "log"
        share = np.ma.filled(axes.collections[0].get_array(), 0).reshape(-1, len(steps))
        np.testing.assert_allclose(share.sum(0), 1)
        for column, (_, stats) in enumerate(results):
            counts = sum(getattr(one, key) for one in stats.values()).double()
            expected = (counts / counts.sum()).numpy()
            np.testing.assert_allclose(share[:, column][share[:, column] > 0], expected[expected > 0])


@pytest.mark.parametrize("many", [False, True])
def test_a_picture_can_be_saved(many: bool, tmp_path: Any):
    results = stats_of(1, 10, 20)
    figure = adamod.plot.learning_rates(results if many else results[-1][1])
    figure.savefig(tmp_path / "learning_rates.png")
    assert (tmp_path / "learning_rates.png").stat().st_size > 5000


@pytest.mark.parametrize("empty", [{}, [], [(1, {})]], ids=str)
def test_empty_statistics_are_refused(empty: Any):
    with pytest.raises(ValueError, match=r"^stats must not be empty"):
        adamod.plot.learning_rates(empty)
    with pytest.raises(ValueError, match=r"^stats must not be empty"):
        adamod.plot.learning_rates([*stats_of(1), (2, {})])


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    [(_, stats)] = stats_of(1)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"adamod\[plot\]"):
        adamod.plot.learning_rates(stats)
