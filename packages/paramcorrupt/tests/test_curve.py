"""Curves of the loss over budgets: what their points are, how many passes they take, and how they are written."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paramcorrupt import Curve, corrupted, curve, indicator, random_corruption, relative


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3)).double()


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (30,), generator=generator)
    return list(zip(x.split(12), y.split(12), strict=True))


def measure(model: nn.Module | None = None, **arguments: Any) -> Curve:
    given = {"eps": [0.05, 0.2], "draws": 3, "progress": False, **arguments}
    return curve(model or network(), given.pop("loss", "cross_entropy"), given.pop("data", batches()), **given)


@pytest.mark.parametrize(("p", "n"), [(2.0, None), (math.inf, 9), (1.0, None)])
def test_the_worst_points_are_those_of_the_indicator(p: float, n: int | None) -> None:
    found = measure(p=p, n=n, kinds=["gradient"], eps=[0.05, 0.2, relative(0.1)])
    expected = indicator(network(), "cross_entropy", batches(), p=p, n=n, eps=[0.05, 0.2, relative(0.1)])
    assert len(found) == 3
    for point, one in zip(found, expected, strict=True):
        assert (point.kind, point.draws, point.low, point.high) == ("gradient", 1, None, None)
        assert (point.eps, point.nnz, point.changed) == (one.corruption.eps, one.nnz, one.applied.changed)
        assert (point.predicted, point.accuracy) == (one.predicted, one.accuracy_corrupted)
        assert point.measured == point.worst == one.measured
    assert found.facts()["loss"] == expected[0].loss


@pytest.mark.parametrize("n", [None, 9])
def test_random_points_are_means_of_the_draws_of_the_same_set(n: int | None) -> None:
    model = network()
    found = [point for point in measure(model, n=n, seed=5) if point.kind == "random"]
    model.eval()
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    with torch.no_grad():
        clean = F.cross_entropy(model(x), y).item()
        for point, eps in zip(found, (0.05, 0.2), strict=True):
            rises = []
            for seed in (5, 6, 7):
                change = random_corruption(model, eps=eps, n=n, seed=seed)
                assert point.nnz == change.nnz == (n or 99)
                with corrupted(model, change):
                    rises.append(F.cross_entropy(model(x), y).item() - clean)
            assert point.measured == pytest.approx(sum(rises) / 3, rel=1e-9)
            assert point.worst == pytest.approx(max(rises), rel=1e-9)
            assert point.low < point.measured < point.high
            assert (point.predicted, point.draws) == (None, 3)


def test_random_corruptions_leave_alone_what_the_worst_one_does() -> None:
    model = network()
    model.register_parameter("unused", nn.Parameter(torch.ones(5000).double()))
    model[0].requires_grad_(False)
    found = measure(model)
    assert {point.nnz for point in found} == {16 + 27}
    assert found.facts()["weights"] == 16 + 27


def test_passes_are_counted_and_nothing_is_disturbed() -> None:
    model, forwards = network(), []
    state = {name: x.clone() for name, x in model.state_dict().items()}
    random = torch.get_rng_state()
    model.register_forward_hook(lambda *args: forwards.append(model[2].training))
    found = measure(model)
    facts = found.facts()
    assert len(forwards) == 3 * (1 + 2 + 6) == 3 * facts["forwards"]
    assert facts["backwards"] == 1
    assert not any(forwards)
    assert model.training
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())


def test_kinds_are_measured_in_their_order_and_once() -> None:
    found = measure(kinds=["random", "gradient", "random"], eps=0.1)
    assert [point.kind for point in found] == ["random", "gradient"]
    assert found[:1] == (found[0],)


def test_losses_that_overflow_are_points_and_are_written(tmp_path: Any) -> None:
    model = nn.Linear(1, 1, bias=False)
    data = [(torch.ones(1, 1), torch.zeros(1, 1))]
    found = measure(model, loss=lambda output, target: output.exp().sum(), data=data, eps=[0.1, 1e4], draws=4)
    worst = [point for point in found if point.kind == "gradient"][1]
    assert worst.measured == worst.worst == math.inf
    again = Curve.from_json(_written(found, tmp_path))
    assert again.rows() == found.rows()
    assert "<svg" in found.to_html()


def _written(found: Curve, folder: Any) -> Any:
    found.to_json(folder / "curve.json")
    return folder / "curve.json"


def test_a_curve_is_read_as_it_was_written(tmp_path: Any) -> None:
    found = measure(eps=[0.0, 0.05, 0.2])
    again = Curve.from_json(_written(found, tmp_path))
    assert again.rows() == found.rows()
    assert again.facts() == found.facts()
    assert list(again) == list(found)
    assert len(found.to_csv().splitlines()) == 1 + len(found)


def test_a_file_that_is_no_curve_is_refused(tmp_path: Any) -> None:
    path = _written(measure(), tmp_path)
    path.write_text(path.read_text().replace('"worst"', '"best"'))
    with pytest.raises(ValueError, match=r"curve\.json is a damaged curve"):
        Curve.from_json(path)
    path.write_text(json.dumps(json.loads(measure().to_json()) | {"rows": []}))
    with pytest.raises(ValueError, match=r"curve\.json is a damaged curve: it has no rows"):
        Curve.from_json(path)


def test_the_page_has_a_mark_for_every_number() -> None:
    found = measure(eps=[0.05, 0.1, 0.2])
    page = found.to_html()
    assert page.count("<circle") == 3 * 3 + 2 * 3
    assert "The worst corruption" in page or "the worst corruption" in page


def test_the_plot_has_a_line_for_every_kind() -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="draws with matplotlib")
    matplotlib.use("agg")
    axes = measure().plot()
    assert [line.get_label() for line in axes.lines] == ["worst, measured", "worst, predicted", "random"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"eps": -1}, ValueError, "eps must be finite"),
        ({"kinds": "gradient"}, ValueError, "kinds must be a sequence"),
        ({"kinds": []}, ValueError, "kinds must be a sequence"),
        ({"kinds": ["worst"]}, ValueError, "kinds must be a sequence"),
        ({"draws": 0}, ValueError, "draws must be at least 1, got 0"),
        ({"draws": 1.0}, TypeError, r"draws must be an integer, got 1\.0"),
        ({"seed": -1}, ValueError, "seed must be"),
        ({"n": 100}, ValueError, "n=100 with k=99"),
        ({"p": 0}, ValueError, "p must be at least 1"),
        ({"data": iter([])}, TypeError, "data must be re-iterable"),
        ({"mode": "train"}, ValueError, "mode must be"),
    ],
    ids=lambda x: re.sub(" at 0x[0-9a-f]+", "", str(x)) if isinstance(x, dict) else "",
)
def test_arguments_are_refused_before_any_pass(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    model, forwards = network(), []
    model.register_forward_hook(lambda *args: forwards.append(1))
    with pytest.raises(error, match=message):
        measure(model, **arguments)
    assert not forwards
