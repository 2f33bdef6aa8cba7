"""Results of a row depend on that row alone; what they mean is checked against closed forms."""

from __future__ import annotations

import math
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor, nn

from vade_robust import RobustVaDE, _data, _inference, _networks, _ops
from vade_robust._inference import Blocks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CPU = torch.device("cpu")
ROWS = 530  # two blocks and a part of one
PAPER = (500, 2000)  # sums of the length at which threads share one out


class Blurring(nn.Module):
    """An encoder of a user's that keeps something in itself, writes to its input and behaves otherwise in training."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 40)
        self.norm = nn.BatchNorm1d(40)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.5)
        self.held = self.linear(x.flatten(1))
        y = self.dropout(self.norm(torch.relu(self.held)))
        return y + self.held


CASES = {
    "large networks": ((784,), PAPER, "mlp", np.uint8),
    "small networks": ((64,), (16,), "mlp", np.float64),
    "one feature": ((1,), (16,), "mlp", np.float64),
    "convolutions": ((9, 8), (32,), "conv", np.uint8),
    "channels": ((3, 8, 8), (32,), "conv", np.float32),
    "a module": ((8, 8), (40,), Blurring(), np.float32),
}


def build(case: str, n_clusters: int = 7) -> tuple[_networks.Networks, _data.Preparation, np.ndarray]:
    shape, hidden, encoder, dtype = CASES[case]
    rng = np.random.default_rng(0)
    X = (rng.integers(0, 256, (ROWS, *shape)) if dtype == np.uint8 else rng.normal(3, 5, (ROWS, *shape))).astype(dtype)
    networks = _networks.build(0, shape, n_clusters=n_clusters, n_latent=5, hidden=hidden, encoder=encoder).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (networks.logits, networks.centers, networks.log_scales, networks.assign_centers):
            tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.1)
    source = _data.source(RobustVaDE(encoder=encoder), X, device=CPU)
    return networks, _data.prepare(source), X


def blocks(networks: _networks.Networks, preparation: _data.Preparation, X: Any) -> Blocks:
    source = _data.source(RobustVaDE(), X, device=CPU, shape=networks.shape)
    source.use(preparation)
    return Blocks(networks, source)


def everything(networks: _networks.Networks, preparation: _data.Preparation, X: Any) -> list[Tensor]:
    b = blocks(networks, preparation, X)
    return [
        b.latent(),
        *b.encoded(),
        b.embedding(),
        b.scores(),
        b.labels("mixture"),
        b.labels("embedding"),
        b.memberships("mixture"),
        b.memberships("embedding"),
        b.score_samples(3),
        b.reconstruct(),
    ]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", CASES)
def test_rows_give_the_same_bits_in_any_order_number_and_company_and_with_any_threads(case: str, threads: int) -> None:
    networks, preparation, X = build(case)
    torch.set_num_threads(1)
    expected = everything(networks, preparation, X)
    torch.set_num_threads(threads)
    order = np.random.default_rng(1).permutation(len(X))
    for mine, theirs in zip(everything(networks, preparation, X[order]), expected, strict=True):
        assert torch.equal(mine, theirs[torch.from_numpy(order)])
    for size in (1, 63, 64, 65, 257) if threads == 1 else (1, 257):
        for mine, theirs in zip(everything(networks, preparation, X[200 : 200 + size]), expected, strict=True):
            assert torch.equal(mine, theirs[200 : 200 + size])
    assert torch.get_num_threads() == threads


def test_a_row_among_extreme_ones_gives_the_same_bits() -> None:
    networks, preparation, X = build("small networks")
    other = X * 1e6
    other[17] = X[17]
    for mine, theirs in zip(
        everything(networks, preparation, other), everything(networks, preparation, X), strict=True
    ):
        assert torch.equal(mine[17], theirs[17])


def test_loaders_and_arrays_give_the_same_bits() -> None:
    networks, preparation, X = build("small networks")
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.from_numpy(X)), batch_size=37, shuffle=True
    )
    stream = torch.utils.data.DataLoader(list(torch.from_numpy(X).split(100)), batch_size=None)
    for other in (loader, stream):
        for mine, theirs in zip(
            everything(networks, preparation, other), everything(networks, preparation, X), strict=True
        ):
            assert torch.equal(mine, theirs)


def test_modules_are_as_they_were_and_at_rest_in_between() -> None:
    networks, preparation, X = build("a module")
    networks.train()
    networks.encoder.norm.eval()
    flags = [module.training for module in networks.modules()]
    before = {name: tensor.clone() for name, tensor in networks.state_dict().items()}
    first, second = (blocks(networks, preparation, X).latent() for _ in range(2))
    assert torch.equal(first, second)
    assert [module.training for module in networks.modules()] == flags
    for name, tensor in networks.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_an_encoder_that_writes_to_its_input_does_not_reach_the_data() -> None:
    networks, _, X = build("a module")
    X = np.abs(X) / np.abs(X).max()  # bernoulli: rows of float32 are those of the user
    source = _data.source(RobustVaDE(), X, device=CPU, shape=networks.shape)
    _data.prepare(source)
    before = X.copy()
    Blocks(networks, source).latent()
    np.testing.assert_array_equal(X, before)


def test_autocast_of_the_caller_changes_nothing() -> None:
    networks, preparation, X = build("small networks")
    with torch.autocast("cpu", torch.bfloat16):
        mine = everything(networks, preparation, X)
    for a, b in zip(mine, everything(networks, preparation, X), strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:component")
@pytest.mark.parametrize("setting", ["float64", "a device", "no_grad", "inference_mode", "autocast"])
def test_what_the_caller_has_set_torch_to_changes_nothing(setting: str, tmp_path: Path) -> None:
    X = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32)
    settings: dict[str, Any] = {"n_clusters": 2, "hidden": (8,), "pretrain_epochs": 1, "epochs": 2, "random_state": 0}
    estimator = RobustVaDE(**settings, device="cpu").fit(X)
    estimator.save(tmp_path / "model")

    def results() -> list[Any]:
        again = RobustVaDE(**settings, device="cpu").fit(X)
        loaded = RobustVaDE.load(tmp_path / "model", device="cpu")
        again.partial_fit(X)
        return [
            *(e.predict_proba(X) for e in (again, loaded)),
            *(e.score_samples(X) for e in (again, loaded)),
            *(e.reconstruct(X) for e in (again, loaded)),
            *again.sample(3),
            *loaded.sample(3),
        ]

    expected = results()
    with ExitStack() as stack:
        if setting == "float64":
            stack.callback(torch.set_default_dtype, torch.float32)
            torch.set_default_dtype(torch.float64)
        elif setting == "a device":
            stack.callback(torch.set_default_device, None)
            torch.set_default_device("meta")
        else:
            modes = {
                "no_grad": torch.no_grad,
                "inference_mode": torch.inference_mode,
                "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
            }
            stack.enter_context(modes[setting]())
        found = results()
        assert (torch.get_default_dtype() == torch.float64) == (setting == "float64")
        assert (torch.get_default_device().type == "meta") == (setting == "a device")
        assert torch.is_inference_mode_enabled() == (setting == "inference_mode")
        assert torch.is_autocast_enabled("cpu") == (setting == "autocast")
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_threads_of_the_caller_may_predict_at_once() -> None:
    networks, preparation, X = build("small networks")
    expected = everything(networks, preparation, X)
    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(lambda _: everything(networks, preparation, X), range(8)):
            assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_an_error_in_a_thread_is_the_error_and_threads_are_as_before(threads: int) -> None:
    networks, preparation, X = build("small networks")

    def work(networks: _networks.Networks, x: Tensor) -> tuple[Tensor]:
        raise KeyError("of the work")

    with pytest.raises(KeyError, match="of the work"):
        blocks(networks, preparation, X).map(work)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("assign", ["mixture", "embedding"])
def test_memberships_are_largest_where_the_label_is_also_at_ties(assign: str) -> None:
    networks, preparation, X = build("small networks", n_clusters=12)
    with torch.no_grad():  # components in pairs, equal or apart by less than memberships can show
        for tensor in (networks.logits, networks.centers, networks.log_scales, networks.assign_centers):
            tensor[6:] = tensor[:6]
        networks.logits[6:9] += 3e-8
        networks.assign_centers[9:] += 1e-8
    b = blocks(networks, preparation, X)
    memberships, labels = b.memberships(assign), b.labels(assign)
    np.testing.assert_array_equal(memberships.numpy().argmax(1), labels.numpy())
    assert torch.equal(memberships.argmax(1), labels.long())
    np.testing.assert_allclose(memberships.double().sum(1), 1, atol=1e-6)
    assert bool((memberships >= 0).all())


def test_memberships_of_components_that_rounding_makes_equal_still_follow_the_scores() -> None:
    """a differs in its last bit, the softmax of a does not."""
    a = torch.tensor([[1000.0, 1000.00006, 0.0], [5.0, 5.0, 4.0]])
    assert a[0].softmax(0)[0] == a[0].softmax(0)[0]
    memberships = torch.tensor([[0.5, 0.5, 0.0], [0.4, 0.4, 0.2]])
    changed = _inference._with_largest(memberships.clone(), torch.tensor([1, 0]))
    assert changed.argmax(1).tolist() == [1, 0]
    assert torch.equal(changed[1], memberships[1])
    assert (changed[0] - memberships[0]).abs().max() < 1e-7


def test_memberships_by_the_map_are_the_kernel_of_t_sne() -> None:
    networks, preparation, X = build("small networks")
    b = blocks(networks, preparation, X)
    weights = 1 / (1 + (b.embedding().double()[:, None] - networks.assign_centers.double()).square().sum(2))
    np.testing.assert_allclose(b.memberships("embedding"), weights / weights.sum(1, keepdim=True), rtol=1e-5, atol=1e-7)
    networks.assign_centers.mul_(1e12)
    far = b.memberships("embedding")
    assert bool(far.isfinite().all())
    np.testing.assert_allclose(far.double().sum(1), 1, atol=1e-6)


def test_memberships_by_the_mixture_are_the_softmax_of_the_scores() -> None:
    networks, preparation, X = build("small networks")
    b = blocks(networks, preparation, X)
    np.testing.assert_allclose(b.memberships("mixture"), b.scores().softmax(1), rtol=1e-6, atol=1e-7)


def linear_gaussian(n_latent: int, n_features: int, unit: float, *, wrong: float = 0.6) -> Any:
    """Networks of which log p(x) has a closed form: z of a mixture, x | z ~ N(W z + b, unit^2) in the user's units.

    The encoder's log variances are `wrong` above those of the posterior.
    """
    clusters = 3
    draw = torch.Generator().manual_seed(3)
    networks = _networks.build(0, (n_features,), n_clusters=clusters, n_latent=n_latent, hidden=(8,))
    networks.decoder = nn.Linear(n_latent, n_features)
    with torch.no_grad():
        networks.decoder.weight.copy_(torch.randn(n_features, n_latent, generator=draw))
        networks.decoder.bias.zero_()
        networks.centers.copy_(torch.randn(clusters, n_latent, generator=draw))
        networks.log_scales.copy_(torch.randn(clusters, n_latent, generator=draw) * 0.3)
        networks.logits.copy_(torch.randn(clusters, generator=draw))
        # An encoder that knows the posterior of one component with mean zero and unit variance; not exact, but close.
        weight = networks.decoder.weight.double()
        precision = torch.eye(n_latent).double() + weight.T @ weight
        networks.encoder = nn.Identity()
        networks.mean = nn.Linear(n_features, n_latent)
        networks.mean.weight.copy_(torch.linalg.solve(precision, weight.T))
        networks.mean.bias.zero_()
        networks.log_variance = nn.Linear(n_features, n_latent)
        networks.log_variance.weight.zero_()
        networks.log_variance.bias.copy_(torch.linalg.inv(precision).diagonal().log() + wrong)
    shift = torch.linspace(-5, 5, n_features, dtype=torch.float64) * unit
    scale = torch.tensor(unit, dtype=torch.float64)
    zeros = torch.zeros(n_features)
    preparation = _data.Preparation("gaussian", 1.0, 1.0, shift, scale, zeros, zeros)

    def exact(X: np.ndarray) -> np.ndarray:
        log_pi, centers, log_scales = (x.detach().double().numpy() for x in networks.mixture())
        w = weight.detach().numpy()
        parts = [
            p
            + multivariate_normal(
                shift.numpy() + unit * w @ m, unit**2 * (w @ np.diag(np.exp(s)) @ w.T + np.eye(n_features))
            ).logpdf(X)
            for p, m, s in zip(log_pi, centers, log_scales, strict=True)
        ]
        return np.logaddexp.reduce(parts)

    return networks, preparation, exact


@pytest.mark.parametrize("unit", [1.0, 250.0])
@pytest.mark.parametrize("wrong", [1.2, -1.2])
def test_the_bound_is_below_the_likelihood_of_a_linear_decoder_and_comes_closer(
    wrong: float, unit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one in the mean over noise: over 40 draws of it here, since what chance does is common to all rows."""
    networks, preparation, exact = linear_gaussian(2, 6, unit, wrong=wrong)
    X, _ = _inference.sample(networks, preparation, 250, None, torch.Generator().manual_seed(0))
    X = X + unit * torch.randn(X.shape, generator=torch.Generator().manual_seed(1))
    truth = exact(X.double().numpy()).mean()
    b = blocks(networks, preparation, X)
    gaps = []
    for n_samples in (1, 4, 16):
        of_noise = []
        for seed in range(40):
            monkeypatch.setattr(_inference, "SEED", seed)
            of_noise.append(truth - b.score_samples(n_samples).double().mean().item())
        gaps.append(np.mean(of_noise))
        assert gaps[-1] > -4 * np.std(of_noise) / math.sqrt(40)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.3  # the divergence of the two normal distributions is 1.1 or 0.5
    assert gaps[-1] < 0.5 * gaps[0]


def test_a_mean_of_bounds_has_less_chance_than_with_independent_noise() -> None:
    networks, preparation, exact = linear_gaussian(2, 6, 1.0, wrong=0.0)
    X, _ = _inference.sample(networks, preparation, 1000, None, torch.Generator().manual_seed(0))
    X = X + torch.randn(X.shape, generator=torch.Generator().manual_seed(1))
    gap = exact(X.double().numpy()).mean() - blocks(networks, preparation, X).score_samples(16).double().mean().item()
    assert abs(gap) < 0.015  # of the independent, whose deviation is 0.022, every second is not


def test_noise_is_standard_normal_and_more_of_it_begins_with_less() -> None:
    noise = _inference._noise(4096, 10).double()
    assert noise.mean(0).abs().max() < 0.01
    assert (noise.T @ noise / 4096 - torch.eye(10)).abs().max() < 0.05
    assert torch.equal(_inference._noise(16, 10), _inference._noise(4096, 10)[:16])
    assert bool(_inference._noise(3, 30000).isfinite().all())


def test_the_bound_is_that_of_its_definition_in_float64() -> None:
    networks, preparation, X = build("large networks")
    mine = blocks(networks, preparation, X).score_samples(5)
    model = _networks.build(0, networks.shape, n_clusters=7, n_latent=5, hidden=PAPER).double()
    model.load_state_dict(networks.state_dict())
    noise = _inference._noise(5, 5).double()
    x = torch.from_numpy(X).double() / 255
    with torch.no_grad():
        mean, log_variance = model.encode(x)
        log_weights = []
        for epsilon in noise:
            z = mean + (log_variance / 2).exp() * epsilon
            q = torch.distributions.Normal(mean, (log_variance / 2).exp()).log_prob(z).sum(1)
            p_x = torch.distributions.Bernoulli(logits=model.decoder(z), validate_args=False).log_prob(x).sum(1)
            components = torch.distributions.Normal(model.centers, (model.log_scales / 2).exp())
            p_z = (model.logits.log_softmax(0) + components.log_prob(z[:, None]).sum(2)).logsumexp(1)
            log_weights.append(p_x + p_z - q)
        expected = torch.stack(log_weights).logsumexp(0) - math.log(5)
    np.testing.assert_allclose(mine, expected, rtol=2e-6)


def test_the_bound_does_not_depend_on_torchs_generator_and_leaves_it_alone() -> None:
    networks, preparation, X = build("small networks")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = blocks(networks, preparation, X).score_samples(4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(first, blocks(networks, preparation, X).score_samples(4))


def test_densities_are_in_the_units_of_the_user() -> None:
    """p(cx) = p(x) / c^P: four times the data, P log 4 nats less."""
    X = np.random.default_rng(0).normal(size=(200, 5)) @ np.diag([1, 2, 3, 4, 5])
    scores = []
    for factor in (1, 4):
        networks = _networks.build(0, (5,), n_clusters=3, hidden=(16,))
        source = _data.source(RobustVaDE(), factor * X, device=CPU)
        _data.prepare(source)
        scores.append(Blocks(networks, source).score_samples(4).double())
    np.testing.assert_allclose(scores[0] - scores[1], np.full(200, 5 * math.log(4)), rtol=1e-5)


def test_samples_come_from_their_components() -> None:
    networks, preparation, _ = linear_gaussian(2, 6, 10.0)
    with torch.no_grad():
        networks.log_scales.fill_(-6)
        networks.logits.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    X, labels = _inference.sample(networks, preparation, 3000, None, torch.Generator().manual_seed(0))
    assert X.dtype == torch.float32
    assert labels.dtype == torch.int32
    frequencies = torch.bincount(labels.long(), minlength=3) / 3000
    assert (frequencies - torch.tensor([0.5, 0.3, 0.2])).abs().max() < 4 * 0.5 / math.sqrt(3000)  # four deviations
    with torch.no_grad():
        means = preparation.restore(networks.decoder(networks.centers))
    for c in range(3):
        assert (X[labels == c].mean(0) - means[c]).abs().max() < 0.1 * 10
    only, one = _inference.sample(networks, preparation, 4, 2, torch.Generator().manual_seed(0))
    assert one.tolist() == [2] * 4
    again, _ = _inference.sample(networks, preparation, 4, 2, torch.Generator().manual_seed(0))
    assert torch.equal(only, again)


@pytest.mark.parametrize("case", CASES)
def test_decoded_rows_have_the_shape_and_the_units_of_the_fitted_ones(case: str) -> None:
    networks, preparation, X = build(case)
    decoded = blocks(networks, preparation, X).reconstruct()
    assert decoded.shape == X.shape
    assert decoded.dtype == torch.float32
    with torch.no_grad():
        if preparation.kind == "gaussian":
            networks.decoder[-2 if case == "channels" else -1].bias.zero_()
        else:
            for parameter in networks.decoder.parameters():
                parameter.zero_()
    plain = blocks(networks, preparation, X).reconstruct()
    if preparation.kind == "bernoulli":
        assert bool((plain == 127.5).all())  # of bytes from 0 to 255, probability one half
    else:
        assert abs(float(plain.mean()) - X.mean()) < 5


def test_inference_needs_blocks_and_results_only() -> None:
    """tracemalloc sees NumPy; torch's memory is that of the live blocks, which are counted here."""
    networks, preparation, X = build("small networks")
    X = np.repeat(X, 50, 0)
    live, most = 0, 0
    source = _data.source(RobustVaDE(), X, device=CPU, shape=networks.shape)
    source.use(preparation)
    in_order = source.in_order

    def counted(size: int) -> Iterator[Tensor]:
        nonlocal live, most
        for rows in in_order(size):
            live += 1
            most = max(most, live)
            yield rows

    def work(networks: _networks.Networks, x: Tensor) -> tuple[Tensor]:
        nonlocal live
        live -= 1
        return (networks.latent(x),)

    source.in_order = counted  # type: ignore[method-assign]
    tracemalloc.start()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        Blocks(networks, source).map(work)
    finally:
        torch.set_num_threads(before)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most <= 4
    assert peak < X.nbytes / 20


def test_a_source_whose_second_pass_differs_is_refused() -> None:
    networks, preparation, X = build("small networks")
    b = blocks(networks, preparation, X)
    for other in (X[:-1], np.concatenate([X, X])):
        shorter = blocks(networks, preparation, other).source
        b.source.in_order = shorter.in_order  # type: ignore[method-assign]
        with pytest.raises(ValueError, match="every pass must give the same rows"):
            b.latent()


def test_the_nearest_centre_is_the_first_of_equals() -> None:
    networks, preparation, X = build("small networks")
    networks.assign_centers.copy_(networks.assign_centers[:1].clone())
    b = blocks(networks, preparation, X)
    assert not b.labels("embedding").any()
    (labels,) = _inference.apply(networks, b.embedding(), _inference.nearest)
    assert torch.equal(labels, b.labels("embedding"))
    assert "cpu" in _ops.KERNELS["knn"]
