"""Training: schedule, determinism, what it learns from, and what becomes of steps that are not finite."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vade_robust import RobustVaDE, VaDE, _data, _training
from vade_robust._adam import Adam

SMALL: dict[str, Any] = {
    "n_clusters": 3,
    "hidden": (16,),
    "n_latent": 4,
    "pretrain_epochs": 2,
    "epochs": 4,
    "batch_size": 32,
    "random_state": 0,
}
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def blobs(rows: int = 90, features: int = 6) -> np.ndarray:
    draw = np.random.default_rng(0)
    middle = draw.uniform(0.2, 0.8, (3, features))
    noise = draw.normal(0, 0.05, (rows, features))
    return np.clip(middle[np.arange(rows) % 3] + noise, 0, 1).astype(np.float32)


def weights(estimator: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = estimator.module_.state_dict()
    return found


def same(a: Any, b: Any) -> bool:
    mine, other = weights(a), weights(b)
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


@pytest.fixture(scope="module")
def settled() -> _training.Options:
    return RobustVaDE(**SMALL).fit(blobs())._training.options


def test_the_rate_falls_in_the_tenth_epoch_since_the_scheduler_steps_before_each(settled: _training.Options) -> None:
    schedule = replace(settled, lr=2e-3).learning_rate
    assert [schedule(e) for e in (1, 9)] == [2e-3, 2e-3]
    assert schedule(10) == pytest.approx(2e-3 * 0.95)
    assert schedule(19) == pytest.approx(2e-3 * 0.95)
    assert schedule(300) == pytest.approx(2e-3 * 0.95**30)


def test_the_weight_of_the_clustering_rises_linearly_over_the_warmup(settled: _training.Options) -> None:
    assert [replace(settled, epochs=10, warmup=1.0).cluster_weight(e) for e in (1, 5, 10)] == [0.1, 0.5, 1.0]
    assert [replace(settled, epochs=10, warmup=0.5).cluster_weight(e) for e in (1, 5, 10)] == [0.2, 1.0, 1.0]
    assert replace(settled, epochs=10, warmup=0.0).cluster_weight(1) == 1.0


def batch_sizes(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> dict[str, set[int]]:
    """How many rows the batches of each phase had."""
    found: dict[str, set[int]] = {}
    batches = _training.Training._batches

    def counted(training: Any, source: Any) -> Any:
        for batch in batches(training, source):
            found.setdefault(training.phase, set()).add(batch.rows)
            yield batch

    monkeypatch.setattr(_training.Training, "_batches", counted)
    RobustVaDE(**{**SMALL, "epochs": 1, "batch_size": 64, **settings}).fit(blobs(65))
    return found


def test_batches_of_an_epoch_are_alike_and_those_of_pretraining_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """65 rows in batches of 64 would leave one of a single row; few steps of pretraining halve the batches."""
    assert batch_sizes(monkeypatch) == {"pretrain": {22, 21}, "train": {33, 32}}


def test_batches_of_a_preset_are_the_official_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert batch_sizes(monkeypatch, preset="lpvdn") == {"pretrain": {64, 1}, "train": {64, 1}}


def test_training_goes_on_with_the_map_that_the_mixture_started_from() -> None:
    estimator = RobustVaDE(**SMALL)
    source = estimator._start(blobs(), estimator._settings())
    training = estimator._training
    first = copy.deepcopy(training.networks.t_encoder)
    training.initialise(source)
    assert first is not None
    pairs = zip(first.parameters(), training.networks.t_encoder.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs)


def test_history_tells_what_the_schedule_was() -> None:
    history = RobustVaDE(**SMALL).fit(blobs()).history_
    assert [logs["phase"] for logs in history] == ["pretrain"] * 2 + ["train"] * 4
    assert [logs["epoch"] for logs in history] == [1, 2, 1, 2, 3, 4]
    assert [logs["lr"] for logs in history] == [1e-3] * 2 + [2e-3] * 4
    assert [logs["cluster_weight"] for logs in history[2:]] == [0.25, 0.5, 0.75, 1.0]
    terms = {"loss", "reconstruction", "cluster", "mutual_information", "locality", "gradient_norm", "seconds"}
    for logs in history[2:]:
        assert terms <= logs.keys()
        assert all(np.isfinite(logs[name]) for name in terms)
        assert sum(logs["occupancy"]) == pytest.approx(1)


@pytest.mark.parametrize("changed", [{}, {"posterior": "sampled"}, {"adversarial": 0.1}, {"preset": "lpvdn"}], ids=str)
def test_two_fits_with_the_same_seed_are_the_same_bits(changed: dict[str, Any]) -> None:
    a, b = (RobustVaDE(**SMALL, **changed).fit(blobs()) for _ in range(2))
    assert same(a, b)
    assert (a.labels_ == b.labels_).all()
    assert not same(a, RobustVaDE(**{**SMALL, "random_state": 1}, **changed).fit(blobs()))


def test_torch_and_numpy_keep_their_random_numbers() -> None:
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the global generator is the subject
    before, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    RobustVaDE(**SMALL).fit(blobs())
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numbers).all()  # noqa: NPY002


def test_labels_are_never_looked_at() -> None:
    X, y = blobs(), np.arange(90) % 3
    plain, given, permuted = (RobustVaDE(**SMALL).fit(X, labels) for labels in (None, y, y[::-1]))
    assert same(plain, given)
    assert same(plain, permuted)
    assert (plain.labels_ == permuted.labels_).all()


def test_no_attack_is_the_same_bits_as_none_and_an_attack_is_not() -> None:
    plain = RobustVaDE(**SMALL).fit(blobs())
    assert same(plain, RobustVaDE(**SMALL, adversarial=0).fit(blobs()))
    attacked = RobustVaDE(**SMALL, adversarial=0.1).fit(blobs())
    assert not torch.equal(plain.module_.mean.weight, attacked.module_.mean.weight)
    assert attacked.history_[-1]["adversarial"] > 0


def test_locality_changes_the_encoder() -> None:
    with_map = RobustVaDE(**SMALL, assign="mixture").fit(blobs())
    without = RobustVaDE(**SMALL, assign="mixture", locality=0).fit(blobs())
    assert not torch.equal(with_map.module_.mean.weight, without.module_.mean.weight)
    assert without.module_.t_encoder is None


def test_x_and_four_times_x_have_the_same_labels() -> None:
    X = 10 * blobs() - 3
    a, b = (RobustVaDE(**SMALL, reconstruction="gaussian").fit(x) for x in (X, 4 * X))
    assert (a.labels_ == b.labels_).all()
    assert torch.equal(a.module_.mean.weight, b.module_.mean.weight)


def test_the_log_variance_head_starts_at_a_twentieth_of_the_mixture_except_in_presets() -> None:
    class Start:
        def on_epoch_end(self, estimator: Any, epoch: int, logs: dict[str, Any]) -> None:
            if logs["phase"] == "pretrain":
                self.before = copy.deepcopy(estimator.module_.log_variance)

    start = Start()
    estimator = RobustVaDE(**SMALL, callbacks=[start]).fit(blobs())
    training = copy.deepcopy(estimator._training)
    training._start(torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), 0)
    head, scales = training.networks.log_variance, training.networks.log_scales
    assert (head.weight == 0).all()
    torch.testing.assert_close(head.bias, (0.05 * scales.exp().mean(0)).log())
    estimator = RobustVaDE(**SMALL, preset="vade", callbacks=[start]).fit(blobs())
    training = estimator._training
    head = copy.deepcopy(training.networks.log_variance)
    training._start(torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), 0)
    assert torch.equal(training.networks.log_variance.weight, head.weight)


class _Bad(nn.Module):
    """An encoder whose output is not a number in some of its training calls."""

    def __init__(self, first: int, calls: int) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)
        self.first, self.calls, self.count = first, calls, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.layer(x)
        if self.training:
            self.count += 1
            if self.first <= self.count < self.first + self.calls:
                return features * torch.nan
        return features


def test_a_few_steps_that_are_not_finite_are_skipped_and_counted() -> None:
    estimator = VaDE(**SMALL, encoder=_Bad(3, 3)).fit(blobs())
    assert estimator.diagnostics_["nonfinite_steps"] == 3
    assert all(value.isfinite().all() for name, value in weights(estimator).items() if name != "assign_centers")
    assert all(np.isfinite(logs["loss"]) for logs in estimator.history_)


def test_ten_in_a_row_end_the_fit_with_the_epoch_the_term_and_a_remedy() -> None:
    X = blobs()
    estimator = VaDE(**SMALL).fit(X)
    before, weight = dict(vars(estimator)), estimator.module_.mean.weight.clone()
    training_steps = 1 << 30
    estimator.set_params(encoder=_Bad(1, training_steps), pretrain_epochs=5)
    with pytest.raises(FloatingPointError, match=r"epoch \d+ of phase 'pretrain': the loss .*lower `lr`"):
        estimator.fit(X)
    assert torch.equal(estimator.module_.mean.weight, weight)
    assert {k for k in vars(estimator) if k.endswith("_")} == {k for k in before if k.endswith("_")}
    assert (estimator.predict(X) == estimator.labels_).all()


def test_the_guilty_term_is_named() -> None:
    estimator = VaDE(**{**SMALL, "epochs": 20}).fit(blobs())
    training = estimator._training
    training.phase = "train"
    with torch.no_grad():
        training.networks.logits.fill_(torch.inf)
    source = _data.source(estimator, blobs(), device=torch.device("cpu"))
    source.use(estimator._preparation)
    with pytest.raises(FloatingPointError, match=r"the cluster was not finite in 1[0-9] steps"):  # noqa: PT012
        for _ in range(5):
            training.one_epoch(source)


def test_callbacks_see_every_epoch_and_true_ends_a_phase() -> None:
    seen = []

    class Stop:
        def on_epoch_end(self, estimator: Any, epoch: int, logs: dict[str, Any]) -> bool:
            seen.append((logs["phase"], epoch))
            assert isinstance(estimator.module_, nn.Module)
            return logs["phase"] == "train" and epoch == 2

    estimator = RobustVaDE(**SMALL, callbacks=[Stop()]).fit(blobs())
    assert seen == [("pretrain", 1), ("pretrain", 2), ("train", 1), ("train", 2)]
    assert estimator.n_iter_ == 2


def test_verbose_shows_a_bar_for_each_phase(capsys: pytest.CaptureFixture[str]) -> None:
    RobustVaDE(**SMALL).fit(blobs())
    assert capsys.readouterr() == ("", "")
    RobustVaDE(**SMALL, verbose=True).fit(blobs())
    shown = capsys.readouterr().err
    assert "pretraining: 100%" in shown
    assert "training: 100%" in shown.replace("pretraining", "")
    assert "loss=" in shown


def test_a_training_goes_on_from_its_state_bit_for_bit() -> None:
    X = blobs()
    whole = RobustVaDE(**SMALL).fit(X)
    states = []

    class Keep:
        def on_epoch_end(self, estimator: Any, epoch: int, logs: dict[str, Any]) -> None:
            states.append(copy.deepcopy(estimator._training.state()))

    RobustVaDE(**SMALL, callbacks=[Keep()]).fit(X)
    for state in states:
        again = RobustVaDE(**SMALL)
        source = again._start(X, again._settings())
        again._training.load(state)
        again._training.run(source)
        again._finish(source, source)
        assert same(whole, again)
        assert [logs["loss"] for logs in whole.history_] == [logs["loss"] for logs in again.history_]
    assert isinstance(source, _data.Source)


def test_a_state_of_other_options_or_rows_is_refused() -> None:
    X = blobs()
    state = RobustVaDE(**SMALL).fit(X)._training.state()
    with pytest.raises(ValueError, match=r"has lr=0\.002, this one has lr=0\.01"):
        RobustVaDE(**SMALL, lr=0.01).fit(X)._training.load(state)
    wrong = {**state, "networks.mean.weight": torch.zeros(2, 2)}
    with pytest.raises(
        ValueError,
        match=r"'networks.mean.weight' .* must be torch\.float32 of shape \(4, 16\), got torch\.float32 of \(2, 2\)",
    ):
        RobustVaDE(**SMALL).fit(X)._training.load(wrong)
    del wrong["networks.mean.weight"]
    with pytest.raises(ValueError, match=r"has no 'networks\.mean.weight'"):
        RobustVaDE(**SMALL).fit(X)._training.load(wrong)


def test_a_pickled_estimator_predicts_and_trains_on_as_itself() -> None:
    X = blobs()
    estimator = RobustVaDE(**SMALL).partial_fit(X)
    other = pickle.loads(pickle.dumps(estimator))
    assert (other.predict(X) == estimator.predict(X)).all()
    assert same(estimator.partial_fit(X), other.partial_fit(X))


def test_adam_is_that_of_torch_and_skips_a_step_on_demand() -> None:
    ours = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    theirs = copy.deepcopy(ours)
    unused = nn.Parameter(torch.ones(2))
    mine = Adam({**dict(ours.named_parameters()), "unused": unused}, 1e-2)
    other = torch.optim.Adam(theirs.parameters(), lr=1e-2, fused=True)
    draw = torch.Generator().manual_seed(0)
    for step in range(20):
        x = torch.randn(9, 5, generator=draw)
        ours(x).square().sum().backward()
        theirs(x).square().sum().backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in theirs.parameters() if p.grad is not None])
        torch.testing.assert_close(mine.gradient_norm(), norm)
        skipped = step in (3, 4)
        mine.step(torch.tensor(float(skipped)))
        if not skipped:
            other.step()
        other.zero_grad()
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert (unused == 1).all()
    assert all(p.grad is None for p in ours.parameters())


def test_the_noise_of_pretraining_changes_what_is_learnt() -> None:
    rows = torch.rand(60, 5, generator=torch.Generator().manual_seed(0)).numpy()
    losses = []
    for denoising in (0.0, 1.0):
        model = VaDE(2, hidden=(8,), denoising=denoising, pretrain_epochs=1, epochs=1, random_state=0).fit(rows)
        losses.append(model.history_[0]["loss"])
    assert losses[0] != losses[1]
