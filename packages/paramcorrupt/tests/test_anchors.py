"""Numbers of trained CIFAR-10 networks, from an independent implementation; they need the weights and the images."""

from __future__ import annotations

import importlib.util
import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from scipy import stats

from paramcorrupt import corrupted, corruption, curve, indicator, multistep, random_corruption, relative, scan
from paramcorrupt.objective import Evaluation, as_objective, evaluate, gradient, undisturbed

if TYPE_CHECKING:
    from torch import Tensor, nn

    Batches = list[tuple[Tensor, Tensor]]

CROSS_ENTROPY = as_objective("cross_entropy")
K = 269_722

# p, eps, n, accuracy in %, rise of the loss, rise to first order; the first 500 images
TABLE = [
    (2, 0.05, None, 75.2, 0.51311, 0.39060),
    (2, 0.2, None, 48.0, 4.21526, 1.56241),
    (2, 0.5, None, 17.8, 18.5278, 3.90603),
    (math.inf, 2e-4, None, 73.6, 0.64426, 0.46823),
    (math.inf, 1e-3, None, 36.4, 8.2096, 2.34117),
    (1, 1, 10, 49.4, 2.31434, 0.73771),
    (2, 0.5, 10, 67.6, 1.26747, 0.71608),
    (2, 0.5, 100, 49.8, 3.61250, 1.36447),
    (2, 0.5, 1000, 34.0, 6.34498, 2.16334),
    (math.inf, 1e-2, 1000, 54.4, 2.62095, 1.22445),
    (4, 0.05, None, 15.2, 37.4557, 6.1876),
    (1.5, 0.5, None, 62.4, 1.58284, 0.86479),
]


@pytest.fixture(scope="module")
def example() -> Any:
    """The example, which has the network and reads weights and images."""
    path = Path(__file__).resolve().parents[1] / "examples" / "resnet_cifar10.py"
    spec = importlib.util.spec_from_file_location("resnet_cifar10", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def network(example: Any, data: Path) -> nn.Module:
    return example.trained(data)


@pytest.fixture(scope="module")
def images(example: Any, data: Path) -> Batches:
    """The first 500, in batches of 250."""
    x, y = example.images(data, 500)
    return list(zip(x.split(250), y.split(250), strict=True))


@pytest.fixture(scope="module")
def clean(network: nn.Module, images: Batches) -> tuple[Evaluation, dict[str, Tensor]]:
    with undisturbed(network):
        return gradient(network, CROSS_ENTROPY, images)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def near(percent: float) -> Any:
    """An accuracy within 0.4 points."""
    return pytest.approx(percent / 100, abs=0.004)


def test_the_network_and_its_gradient_are_those_of_the_table(
    network: nn.Module, clean: tuple[Evaluation, dict[str, Tensor]]
) -> None:
    evaluation, grads = clean
    assert evaluation.accuracy == near(80.0)
    assert evaluation.loss == pytest.approx(0.92269, rel=1e-5)
    assert evaluation.count == 500
    weights = torch.cat([p.detach().reshape(-1) for p in network.parameters()]).double()
    g = torch.cat([x.reshape(-1) for x in grads.values()]).double()
    assert len(grads) == 59
    assert weights.numel() == g.numel() == K
    assert weights.norm().item() == pytest.approx(55.3219, rel=1e-5)
    assert g.norm().item() == pytest.approx(7.81206, rel=1e-5)
    assert g.abs().sum().item() == pytest.approx(2341.17, rel=1e-5)
    assert (g == 0).sum() == 11_493
    largest = max(grads, key=lambda name: grads[name].abs().max().item())
    assert (largest, grads[largest].abs().argmax().item()) == ("layer1.2.bn1.bias", 12)
    assert g.abs().max().item() == pytest.approx(0.737712, rel=1e-5)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"p={row[0]:g}, eps={row[1]:g}, n={row[2]}")
def test_corruptions_cost_what_the_table_says(
    row: tuple[Any, ...], network: nn.Module, images: Batches, clean: tuple[Evaluation, dict[str, Tensor]]
) -> None:
    p, eps, n, accuracy, rise, first_order = row
    worst = corruption(clean[1], eps=eps, p=p, n=n)
    assert worst.gain == pytest.approx(first_order, rel=1e-5)
    assert worst.nnz == (1 if p == 1 else min(n or K, K - 11_493))
    with undisturbed(network), corrupted(network, worst):
        found = evaluate(network, CROSS_ENTROPY, images)
    assert found.accuracy == near(accuracy)
    assert found.loss - clean[0].loss == pytest.approx(rise, rel=1e-3)


def test_several_steps_climb_higher_than_one(network: nn.Module, images: Batches) -> None:
    data = images[:1]
    one = indicator(network, "cross_entropy", data, eps=0.1)
    assert (one.accuracy, one.accuracy_corrupted) == (near(81.6), near(69.2))
    assert one.loss == pytest.approx(0.93243, rel=1e-5)
    assert one.measured == pytest.approx(1.03467, rel=1e-3)
    five = multistep(network, "cross_entropy", data, eps=0.1, steps=5)
    assert five.measured == pytest.approx(1.28569, rel=1e-3)
    assert five.accuracy_corrupted == near(67.2)
    assert (five.forwards, five.backwards) == (6, 5)
    short = multistep(network, "cross_entropy", data, eps=0.1, steps=5, step_size=1.0)
    assert short.measured == pytest.approx(1.18841, rel=1e-3)


@pytest.mark.slow
def test_several_steps_climb_higher_than_one_on_more_images(network: nn.Module, images: Batches) -> None:
    assert indicator(network, "cross_entropy", images, eps=0.1).measured == pytest.approx(1.32937, rel=1e-3)
    for step_size, rise in ((1.0, 1.46504), (1.5, 1.53513)):
        found = multistep(network, "cross_entropy", images, eps=0.1, steps=5, step_size=step_size)
        assert found.measured == pytest.approx(rise, rel=1e-3)


@pytest.mark.slow
def test_random_corruptions_of_the_same_norm_cost_nothing(
    network: nn.Module, images: Batches, clean: tuple[Evaluation, dict[str, Tensor]]
) -> None:
    """To first order their rises are eps ||g|| x with E[x^2] = 1 / k: 0.00752."""
    rises = []
    with undisturbed(network):
        for seed in range(12):
            with corrupted(network, random_corruption(network, eps=0.5, seed=seed)) as applied:
                found = evaluate(network, CROSS_ENTROPY, images)
            assert applied.norm == pytest.approx(0.5, rel=1e-4)
            assert 0.792 <= found.accuracy <= 0.81
            rises.append(found.loss - clean[0].loss)
        with corrupted(network, random_corruption(network, eps=5, seed=0)):
            assert evaluate(network, CROSS_ENTROPY, images).accuracy > 0.77
    theory = 0.5 * 7.81206 / math.sqrt(K)
    assert stats.ttest_1samp(rises, 0).pvalue > 1e-3
    assert 1e-3 < stats.chi2(11).cdf(11 * statistics.variance(rises) / theory**2) < 1 - 1e-3


def matrices(network: nn.Module) -> dict[str, str]:
    """Every tensor of two or more dimensions as a group of its own."""
    return {name: name for name, p in network.named_parameters() if p.dim() > 1}


def correlations(rows: Any) -> list[float]:
    """Of the measured rise with the predicted one, with the size and with the norm of the weights; Kendall's."""
    measured = [row.measured for row in rows]
    others = [[getattr(row, field) for row in rows] for field in ("predicted", "numel", "weight_norm")]
    ranked = [stats.spearmanr(x, measured).statistic for x in others]
    return [*ranked, stats.kendalltau(others[0], measured).statistic]


def test_one_gradient_ranks_tensors_and_size_does_not(network: nn.Module, images: Batches) -> None:
    names = matrices(network)
    assert len(names) == 20
    report = scan(network, "cross_entropy", images[:1], groups=names, eps=relative(0.02), verify="all", progress=False)
    predicted, size, norm, kendall = correlations([row for row in report if row.group in names])
    assert (predicted, kendall) == (pytest.approx(0.994, abs=1e-3), pytest.approx(0.958, abs=1e-3))
    assert max(size, norm) < predicted - 0.1


@pytest.mark.slow
def test_one_gradient_ranks_all_tensors_on_more_images(network: nn.Module, images: Batches) -> None:
    report = scan(network, "cross_entropy", images, eps=relative(0.02), verify="all", progress=False)
    assert correlations(report)[:3] == pytest.approx([0.9992, 0.901, 0.921], abs=1e-3)
    rows = {row.group: row for row in report if row.group in matrices(network)}
    assert correlations(rows.values()) == pytest.approx([0.985, 0.837, 0.777, 0.937], abs=1e-3)
    ranked = sorted(rows.values(), key=lambda row: -row.measured)
    assert [row.group for row in (*ranked[:2], ranked[-1])] == [
        f"{name}.weight" for name in ("layer3.2.conv1", "layer3.0.conv2", "conv1")
    ]
    for row, first_order, rise in zip(
        (*ranked[:2], ranked[-1]), (0.8779, 0.6290, 0.1033), (2.0477, 0.9645, 0.0910), strict=True
    ):
        assert row.predicted == pytest.approx(first_order, abs=1e-4)
        assert row.measured == pytest.approx(rise, rel=1e-3)
    assert ranked[0].accuracy == near(62.4)


@pytest.mark.slow
def test_a_curve_tells_worst_from_random(network: nn.Module, images: Batches) -> None:
    found = curve(network, "cross_entropy", images[:1], eps=[0.1, 0.5], draws=2, progress=False)
    worst, random = ({x.eps: x for x in found if x.kind == kind} for kind in ("gradient", "random"))
    assert worst[0.1].measured == pytest.approx(1.03467, rel=1e-3)
    assert abs(random[0.5].measured) < 0.05 < worst[0.1].measured
    assert random[0.5].accuracy > 0.8 > 0.3 > worst[0.5].accuracy


def test_the_deeper_network_is_that_of_the_table(example: Any, data: Path, images: Batches) -> None:
    network = example.trained(data, 56)
    assert sum(p.numel() for p in network.parameters()) == 853_018
    with undisturbed(network):
        found = evaluate(network, CROSS_ENTROPY, images)
    assert found.accuracy == near(83.4)
    assert found.loss == pytest.approx(0.92846, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "accuracy", "loss"), [(20, 80.60, 0.89596), (56, 82.85, 0.95083)])
def test_all_images_give_the_accuracies_of_the_table(
    depth: int, accuracy: float, loss: float, example: Any, data: Path
) -> None:
    x, y = example.images(data)
    network = example.trained(data, depth)
    with undisturbed(network):
        found = evaluate(network, CROSS_ENTROPY, list(zip(x.split(250), y.split(250), strict=True)))
    assert found.count == 2000
    assert found.accuracy == near(accuracy)
    assert found.loss == pytest.approx(loss, rel=1e-4)


@pytest.mark.slow
def test_double_precision_agrees(example: Any, data: Path, images: Batches) -> None:
    network = example.trained(data).double()
    found = indicator(network, "cross_entropy", [(x.double(), y) for x, y in images], eps=0.2)
    assert found.predicted == pytest.approx(1.56241, rel=1e-5)
    assert found.measured == pytest.approx(4.21526, rel=1e-3)
