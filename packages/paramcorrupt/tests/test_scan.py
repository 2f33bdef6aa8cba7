"""A scan: what it predicts and measures, what that costs, and what it leaves as it was."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from paramcorrupt import Objective, Report, random_corruption, relative, scan
from paramcorrupt._groups import groups
from paramcorrupt._progress import track
from paramcorrupt._statistics import mean_interval, spearman, student
from paramcorrupt._tabular import weight_hash

if TYPE_CHECKING:
    from collections.abc import Iterator

Batches = list[tuple[Tensor, Tensor]]


class Net(nn.Module):
    """A small classifier with what makes scans hard: statistics, tied and unused weights, random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 16))
        self.head = nn.Linear(16, 4)
        self.tied = self.head
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())


TENSORS = [
    f"{name}.{kind}" for name in ("body.0", "body.1", "body.4", "head") for kind in ("weight", "bias")
]  # those that have gradients


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def batches() -> Batches:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(50, 8, generator=generator)
    y = torch.randint(4, (50,), generator=generator)
    return [(x[:20], y[:20]), (x[20:40], y[20:40]), (x[40:], y[40:])]  # batches of different sizes


def mean_loss(model: nn.Module, batches: Batches) -> Tensor:
    model.eval()
    return cross_entropy(torch.cat([model(x) for x, _ in batches]), torch.cat([y for _, y in batches]))


def by_name(report: Report) -> dict[str, Any]:
    return {row.group: row for row in report}


# --- what it says ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [None, 5])
@pytest.mark.parametrize("p", [1, 1.5, 2, 4, math.inf])
def test_predictions_are_eps_times_the_dual_norm_of_the_largest_gradients(
    model, batches, p: float, n: int | None
) -> None:
    exact = Net().double()
    exact.load_state_dict(model.state_dict())
    mean_loss(exact, [(x.double(), y) for x, y in batches]).backward()
    q = 1.0 if p == math.inf else math.inf if p == 1 else p / (p - 1)
    found = by_name(scan(model, "cross_entropy", batches, p=p, n=n, eps=relative(0.03), verify=0))
    for name in TENSORS:
        w, g = exact.get_parameter(name).detach(), exact.get_parameter(name).grad.abs().flatten()
        eps = 0.03 * w.norm(p).item()
        largest = g.sort(descending=True).values[: n or g.numel()]
        assert found[name].eps == pytest.approx(eps, rel=1e-6)
        assert found[name].predicted == pytest.approx(eps * largest.norm(q).item(), rel=1e-5, abs=1e-9)
        assert found[name].weight_norm == pytest.approx(w.norm().item(), rel=1e-6)
        assert found[name].grad_norm == pytest.approx(g.norm().item(), rel=1e-5, abs=1e-9)
        support = 1 if p == 1 else min(n or g.numel(), g.count_nonzero().item())
        assert found[name].nnz == (support if eps else 0)


def test_rows_are_sorted_by_prediction_and_the_first_are_measured(model, batches) -> None:
    report = scan(model, "cross_entropy", batches, verify=3)
    assert [row.group for row in report[-2:]] == ["frozen", "unused"]
    assert all(a.predicted >= b.predicted for a, b in pairwise(report[:-2]))
    assert [row.measured is not None for row in report] == [True] * 3 + [False] * (len(report) - 3)
    assert [row.accuracy is not None for row in report] == [True] * 3 + [False] * (len(report) - 3)


def test_what_is_measured_is_the_loss_at_the_corrupted_weights(model, batches) -> None:
    report = scan(model, "cross_entropy", batches, eps=0.3, verify="all")
    clean = mean_loss(model, batches)
    clean.backward()
    assert report.facts()["loss"] == pytest.approx(clean.item(), rel=1e-6)
    for name in ("head.weight", "body.1.bias"):
        other = Net()
        other.load_state_dict(model.state_dict())
        g = model.get_parameter(name).grad
        with torch.no_grad():
            other.get_parameter(name).add_(0.3 * g / g.norm())
            output = torch.cat([other.eval()(x) for x, _ in batches])
        target = torch.cat([y for _, y in batches])
        row = by_name(report)[name]
        assert row.measured == pytest.approx((cross_entropy(output, target) - clean).item(), rel=1e-4)
        assert row.accuracy == pytest.approx((output.argmax(1) == target).double().mean().item())
        assert row.applied == pytest.approx(0.3, rel=1e-5)


def test_groups_share_one_budget_and_one_support(model, batches) -> None:
    mean_loss(model, batches).backward()
    g = torch.cat([model.get_parameter(name).grad.flatten() for name in TENSORS])
    report = scan(model, "cross_entropy", batches, groups="model", eps=0.5, n=7, verify=1)
    assert len(report) == 1
    assert report[0].predicted == pytest.approx(0.5 * g.abs().sort().values[-7:].norm().item(), rel=1e-5)
    assert (report[0].nnz, report[0].changed) == (7, 7)
    assert report[0].skipped == 2
    assert report[0].numel == g.numel() + 5 + 3


def test_modules_and_patterns_make_groups(model, batches) -> None:
    modules = scan(model, "cross_entropy", batches, groups="module", verify=0)
    assert {row.group for row in modules} == {"body.0", "body.1", "body.4", "head", "(root)"}
    patterns = scan(model, "cross_entropy", batches, groups={"norm": "body.1.*", "lin": ["body*", "*.bias"]}, verify=0)
    sizes = {row.group: row.numel for row in patterns}
    assert sizes == {"norm": 32, "lin": 8 * 16 + 16 + 16 * 16 + 16 + 4, "other": 64 + 5 + 3}


def test_a_support_larger_than_a_group_is_all_of_it(model, batches) -> None:
    report = by_name(scan(model, "cross_entropy", batches, n=100, verify=0))
    assert report["head.bias"].nnz == 4
    assert report["body.4.weight"].nnz <= 100


def test_tied_weights_are_one_row(model, batches) -> None:
    counts = Counter(row.group for row in scan(model, "cross_entropy", batches, verify=0))
    assert set(counts.values()) == {1}
    assert not any(name.startswith("tied") for name in counts)


def test_what_has_no_gradient_is_reported_as_skipped(model, batches) -> None:
    rows = by_name(scan(model, "cross_entropy", batches, verify="all"))
    for name, numel in (("unused", 5), ("frozen", 3)):
        assert (rows[name].skipped, rows[name].numel) == (1, numel)
        assert rows[name].predicted is None
        assert rows[name].measured is None
    assert rows["head.weight"].skipped == 0


def test_an_accuracy_that_does_not_exist_is_none(model, batches) -> None:
    def step(net: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int, None]:
        return net(batch[0]).square().sum(), len(batch[0]), None

    report = scan(model, Objective(step), batches, verify=1)
    assert report[0].measured is not None
    assert report[0].accuracy is None
    assert report.facts()["clean_accuracy"] is None


def test_swallowed_corruption_is_shown(model, batches) -> None:
    low = [(x.bfloat16(), y) for x, y in batches]
    report = scan(model.bfloat16(), "cross_entropy", low, eps=relative(1e-4), groups="model", verify=1)
    assert report[0].changed < report[0].nnz / 2
    assert report.facts()["swallowed"] == 1
    assert scan(model.float(), "cross_entropy", batches, verify=1).facts()["swallowed"] == 0


def test_a_zero_gradient_warns_and_costs_nothing(batches) -> None:
    net = nn.Linear(8, 4)
    nn.init.zeros_(net.weight)

    def step(net: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int, None]:
        return 0 * net(batch[0]).sum(), len(batch[0]), None

    with pytest.warns(UserWarning, match="all gradients are zero"):
        report = scan(net, Objective(step), batches, verify="all")
    assert [(row.predicted, row.measured, row.nnz, row.changed) for row in report] == [(0.0, 0.0, 0, 0)] * 2


def test_weights_that_are_zero_have_no_relative_budget(model, batches) -> None:
    row = by_name(scan(model, "cross_entropy", batches, eps=relative(0.5), verify="all"))["body.1.bias"]
    assert (row.eps, row.nnz, row.predicted, row.measured) == (0.0, 0, 0.0, 0.0)
    assert row.grad_norm > 0


def test_no_budget_changes_nothing(model, batches) -> None:
    report = scan(model, "cross_entropy", batches, eps=0.0, verify="all")
    assert {row.measured for row in report[:-2]} == {0.0}
    assert {row.predicted for row in report[:-2]} == {0.0}


def test_a_loss_that_overflows_is_reported(batches) -> None:
    net = nn.Linear(8, 4)
    report = scan(net, "cross_entropy", batches, eps=1e39, verify="all")
    assert not any(math.isfinite(row.measured) for row in report)
    assert "spearman" not in report.facts()


# --- random changes -------------------------------------------------------------------------------------------------


def test_random_changes_have_the_same_size_and_follow_the_seed(model, batches) -> None:
    report = scan(model, "cross_entropy", batches, eps=2.0, verify=2, random=3, seed=5)
    again = scan(model, "cross_entropy", batches, eps=2.0, verify=2, random=3, seed=5)
    other = scan(model, "cross_entropy", batches, eps=2.0, verify=2, random=3, seed=6)
    assert [row.random_mean for row in report] == [row.random_mean for row in again]
    assert report[0].random_mean != other[0].random_mean
    assert report[2].random_mean is None
    name, clean = report[0].group, mean_loss(model, batches).item()
    rises = []
    for seed in (5, 6, 7):
        weights = {name: model.get_parameter(name).detach()}
        noise = random_corruption(weights, eps=2.0, seed=seed).dense()[name]
        net = Net()
        net.load_state_dict(model.state_dict())
        with torch.no_grad():
            net.get_parameter(name).add_(noise)
            rises.append(mean_loss(net, batches).item() - clean)
    mean, low, high = mean_interval(rises)
    assert report[0].random_mean == pytest.approx(mean, rel=1e-4)
    assert (report[0].random_low, report[0].random_high) == (
        pytest.approx(low, rel=1e-3),
        pytest.approx(high, rel=1e-3),
    )


def test_a_worst_change_is_worse_than_random_ones(model, batches) -> None:
    for row in scan(model, "cross_entropy", batches, verify=3, random=5)[:3]:
        assert row.measured > row.random_high


def test_a_single_draw_has_no_interval() -> None:
    assert mean_interval([2.0]) == (2.0, None, None)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30, 1001])
def test_quantiles_are_those_of_student(freedom: int, confidence: float) -> None:
    stats = pytest.importorskip("scipy.stats", reason="the quantiles are compared with SciPy's")
    assert student(freedom, confidence) == pytest.approx(stats.t.ppf((1 + confidence) / 2, freedom), rel=1e-11)


# --- rank correlation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_rank_correlation_is_that_of_scipy_with_ties(seed: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="the correlation is compared with SciPy's")
    x, y = torch.randint(5, (2, 12), generator=torch.Generator().manual_seed(seed)).tolist()
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_a_constant_has_no_rank_correlation() -> None:
    assert spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None


def test_correlations_need_three_measured_rows(model, batches) -> None:
    assert "spearman" not in scan(model, "cross_entropy", batches, verify=2).facts()
    report = scan(model, "cross_entropy", batches, verify="all")
    rows = report[:-2]
    facts = report.facts()
    assert facts["spearman"] == spearman([row.predicted for row in rows], [row.measured for row in rows])
    assert facts["spearman_numel"] == spearman([row.numel for row in rows], [row.measured for row in rows])
    assert facts["spearman"] > 0.9


# --- what it costs --------------------------------------------------------------------------------------------------


class Counted:
    """How often the outermost module went forward and backward."""

    def __init__(self, model: nn.Module) -> None:
        self.forwards = self.backwards = 0
        self.handles = [
            model.register_forward_hook(self.forward),
            model.register_full_backward_hook(self.backward),
        ]

    def forward(self, *arguments: object) -> None:
        self.forwards += 1

    def backward(self, *arguments: object) -> None:
        self.backwards += 1


@pytest.mark.parametrize(("verify", "random", "trials"), [(0, 0, 0), (5, 0, 5), ("all", 0, 8), (2, 3, 8)])
def test_one_pass_forward_and_backward_and_one_forward_for_each_trial(
    model, batches, verify, random: int, trials: int
) -> None:
    batches = [(x.requires_grad_(), y) for x, y in batches]  # full backward hooks need it
    counted = Counted(model)
    facts = scan(model, "cross_entropy", batches, eps=0.1, verify=verify, random=random).facts()
    assert counted.forwards == len(batches) * (1 + trials) == facts["forwards"]
    assert counted.backwards == len(batches) == facts["backwards"]


def test_memory_is_one_gradient_beside_the_parameters() -> None:
    """Live memory that torch allocates: the gradient, and 5 % of it and the parameters."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 4096), nn.Linear(4096, 512), nn.Linear(512, 4))
    data = [(torch.randn(2, 64), torch.tensor([0, 1]))]
    weights = sum(x.numel() * x.itemsize for x in net.parameters())
    scan(net, "cross_entropy", data, groups="model", verify=1)  # what is made once
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        scan(net, "cross_entropy", data, verify=2)
        scan(net, "cross_entropy", data, groups="model", verify=1)
    events = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    assert weights <= peak <= weights + 0.05 * 2 * weights


# --- what it leaves -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["eval", "keep"])
def test_the_model_ends_as_it_began(model, batches, mode: str) -> None:
    model.train()
    model.body[3].eval()
    for x in model.parameters():
        if x.requires_grad:
            x.grad = torch.full_like(x, 2.0)
    before = weight_hash(model)
    places = [x.data_ptr() for x in model.state_dict().values()]
    grads = [(x.grad, x.grad.clone()) for x in model.parameters() if x.grad is not None]
    flags = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    scan(model, "cross_entropy", batches, verify=4, random=2, mode=mode)
    assert weight_hash(model) == before
    assert [x.data_ptr() for x in model.state_dict().values()] == places
    assert all(
        x.grad is g and torch.equal(g, copy)
        for x, (g, copy) in zip((x for x in model.parameters() if x.grad is not None), grads, strict=True)
    )
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)


def test_a_scan_that_is_interrupted_leaves_the_model_as_it_was(model, batches) -> None:
    before = weight_hash(model)
    calls = 0

    def loss(output: Tensor, target: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return cross_entropy(output, target)

    with pytest.raises(KeyboardInterrupt):
        scan(model, loss, batches)
    assert weight_hash(model) == before


def test_facts_are_enough_to_repeat_a_scan(model, batches, tmp_path) -> None:
    report = scan(model, "cross_entropy", batches, eps=relative(0.01), p=math.inf, n=9, verify=2, random=2, seed=3)
    facts = report.facts()
    assert (facts["eps_relative"], facts["p"], facts["n"], facts["random"], facts["seed"]) == (0.01, math.inf, 9, 2, 3)
    assert (facts["samples"], facts["groups"], facts["verified"]) == (50, 10, 2)
    assert facts["weight_hash"] == weight_hash(model)
    report.to_json(tmp_path / "report.json")
    assert list(Report.from_json(tmp_path / "report.json")) == list(report)


# --- what it refuses ------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "eps": ({"eps": -0.1}, ValueError, r"eps must be .*-0\.1"),
    "eps nan": ({"eps": math.nan}, ValueError, "eps must be"),
    "eps text": ({"eps": "0.1"}, TypeError, "eps must be"),
    "p": ({"p": 0.5}, ValueError, r"p must be .*0\.5"),
    "n": ({"n": 0}, ValueError, r"n must be .*n=0 with k=\d{1,6}$"),
    "n half": ({"n": 2.5}, TypeError, "n must be"),
    "n bool": ({"n": True}, TypeError, "n must be"),
    "verify": ({"verify": -1}, ValueError, r"verify must be .*-1"),
    "verify none": ({"verify": None}, TypeError, r"verify must be an integer or \"all\", got None"),
    "verify bool": ({"verify": True}, TypeError, "verify must be"),
    "random": ({"random": -2}, ValueError, "random must be"),
    "random half": ({"random": 1.5}, TypeError, "random must be"),
    "seed": ({"seed": -1}, ValueError, "seed must be"),
    "seed at the end": ({"seed": 2**63 - 1, "random": 2}, ValueError, "seed must be"),
    "groups": ({"groups": "layer"}, ValueError, "groups must be 'tensor', 'module', 'model'"),
    "groups number": ({"groups": 3}, TypeError, "groups must be"),
    "groups of nothing": ({"groups": ["attn"]}, ValueError, r"'\*attn\*' matches any name"),
    "mode": ({"mode": "test"}, ValueError, "mode must be"),
    "progress": ({"progress": 1}, TypeError, "progress must be"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_arguments_are_refused_before_any_forward(model, batches, kind: str) -> None:
    options, error, message = BAD[kind]
    counted = Counted(model)
    with pytest.raises(error, match=message):
        scan(model, "cross_entropy", batches, **options)
    assert counted.forwards == 0


def test_data_must_be_the_same_in_every_pass(model, batches) -> None:
    class Shrinking:
        length = 3

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield from batches[: self.length]
            self.length -= 1

    with pytest.raises(ValueError, match="data must give the same samples in every pass, got 50 and then 40"):
        scan(model, "cross_entropy", Shrinking())
    with pytest.raises(TypeError, match="data must be re-iterable"):
        scan(model, "cross_entropy", iter(batches))
    with pytest.raises(ValueError, match="data"):
        scan(model, "cross_entropy", [])


def test_a_gradient_that_is_not_finite_is_named(batches) -> None:
    net = nn.Sequential(nn.Linear(8, 4))
    net[0].weight.register_hook(lambda g: torch.full_like(g, math.inf))
    before = weight_hash(net)
    with pytest.raises(ValueError, match=r"0\.weight.*32"):
        scan(net, "cross_entropy", batches)
    assert weight_hash(net) == before


# --- groups and progress --------------------------------------------------------------------------------------------


def test_the_first_pattern_that_matches_takes_a_name() -> None:
    names = ["a.w", "a.b", "c.w", "d"]
    assert groups(names, ["*.w", "a.*"]) == {"*.w": ["a.w", "c.w"], "a.*": ["a.b"], "other": ["d"]}
    assert groups(names, {"x": ["a.b", "d"], "other": "a.*"}) == {"x": ["a.b", "d"], "other": ["a.w", "c.w"]}
    assert groups(names, {"all": "*", "never": "a*"}) == {"all": names}
    assert groups(names, "module") == {"a": ["a.w", "a.b"], "c": ["c.w"], "(root)": ["d"]}
    assert groups(names, "tensor") == {name: [name] for name in names}
    assert groups(names, "model") == {"model": names}
    assert groups([], "tensor") == groups([], "model") == groups([], ["*"]) == {}


@pytest.mark.parametrize("spec", [[], {}, [1], {"a": 1}, {1: "a"}, b"a", None], ids=repr)
def test_groups_that_are_no_patterns_are_refused(spec: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="groups must"):
        groups(["a"], spec)


def test_progress_is_on_stderr_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(3), 3, "scan", True)) == [0, 1, 2]
    shown = capsys.readouterr()
    assert "scan" in shown.err
    assert shown.out == ""
    for quiet in (None, False):  # a captured stream is no terminal
        assert list(track(range(3), 3, "scan", quiet)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
