"""A fit that was killed and gone on with is the one that was not, bit for bit; and what refuses to be gone on with."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.datasets import load_digits

from vade_robust import RobustVaDE, VaDE, _sources
from vade_robust.callbacks import Callback, Checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
forks = pytest.mark.skipif(torch.cuda.is_available(), reason="a process that has used CUDA cannot be forked")

X = load_digits().data[:150] / 16
SMALL: dict[str, Any] = {"n_clusters": 4, "hidden": (16,), "pretrain_epochs": 4, "epochs": 12, "batch_size": 64}
SMALL |= {"random_state": 0, "adversarial": 0.05}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Record(Callback):
    """What each epoch did."""

    def __init__(self) -> None:
        self.epochs: dict[tuple[str, int], Any] = {}

    def on_epoch_end(self, estimator: Any, epoch: int, logs: dict[str, Any]) -> None:
        known = {name: value for name, value in logs.items() if name != "seconds"}
        self.epochs[logs["phase"], epoch] = known, estimator._training.generator.get_state()


class Kill(Callback):
    """Kills this process at the end of an epoch."""

    def __init__(self, phase: str, epoch: int) -> None:
        self.place = phase, epoch

    def on_epoch_end(self, estimator: Any, epoch: int, logs: dict[str, Any]) -> None:
        if (logs["phase"], epoch) == self.place:
            os.kill(os.getpid(), signal.SIGKILL)


class Stop(Callback):
    """Ends training after an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch_end(self, estimator: Any, epoch: int, logs: dict[str, Any]) -> bool:
        return logs["phase"] == "train" and epoch == self.epoch


@pytest.fixture(scope="module")
def whole() -> tuple[RobustVaDE, Record]:
    record = Record()
    return RobustVaDE(**SMALL, callbacks=[record]).fit(X), record


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    RobustVaDE(**SMALL, callbacks=[Checkpoint(folder, every=5, keep=3)]).fit(X)
    return folder


def assert_same(a: Any, b: Any) -> None:
    first, second = a._training.state(), b._training.state()
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == second[name].dtype
            assert torch.equal(value, second[name]), name
    histories = [[{k: v for k, v in logs.items() if k != "seconds"} for logs in x.history_] for x in (a, b)]
    assert histories[0] == histories[1]
    assert np.array_equal(a.labels_, b.labels_)
    assert np.array_equal(a.transform(X), b.transform(X))
    assert a.n_iter_ == b.n_iter_


def killed(work: Callable[[], object], after: Callable[[], None] | None = None) -> int:
    """Runs in a process of its own; how that ended."""
    process = os.fork()
    if process == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    if after is not None:
        after()
        os.kill(process, signal.SIGKILL)
    return os.waitpid(process, 0)[1]


PLACES = [("pretrain", 3), *[("train", epoch) for epoch in random.Random(0).sample(range(1, 13), 3)]]


@forks
@pytest.mark.parametrize(("phase", "epoch"), PLACES)
def test_a_fit_killed_at_an_epoch_and_resumed_has_the_bits_of_one_that_was_not(
    phase: str, epoch: int, whole: tuple[RobustVaDE, Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(tmp_path, every=2)
    work = RobustVaDE(**SMALL, callbacks=[Kill(phase, epoch), checkpoint])
    assert killed(lambda: work.fit(X)) == signal.SIGKILL
    orders = []
    plain = _sources.Source._batches

    def spied(self: Any, order: Any, partners: Any, *args: Any) -> Any:
        orders.append((order, partners))
        return plain(self, order, partners, *args)

    monkeypatch.setattr(_sources.Source, "_batches", spied)
    record = Record()
    resumed = RobustVaDE(**SMALL, callbacks=[record, checkpoint]).fit(X, resume=tmp_path)
    estimator, expected = whole
    assert_same(resumed, estimator)
    assert 0 < len(record.epochs) < len(expected.epochs), "it did not start again"
    for place, (logs, generator) in record.epochs.items():
        assert logs == expected.epochs[place][0]
        assert torch.equal(generator, expected.epochs[place][1])
    first = next(iter(record.epochs))
    places = list(expected.epochs)
    before = places[places.index(first) - 1]
    if before[0] == first[0]:  # else the start of the mixture is between them
        draw = torch.Generator()
        draw.set_state(expected.epochs[before][1])
        assert torch.equal(orders[0][0], torch.randperm(150, generator=draw)), "the next epoch's permutation"
        assert torch.equal(orders[0][1], torch.randperm(150, generator=draw))


@forks
def test_a_fit_killed_whenever_it_is_can_be_resumed(whole: tuple[RobustVaDE, Record], tmp_path: Path) -> None:
    def wait() -> None:
        while not list(tmp_path.glob("*.safetensors")):
            time.sleep(0.001)
        time.sleep(random.Random(1).uniform(0, 0.05))

    work = RobustVaDE(**SMALL, callbacks=[Checkpoint(tmp_path, every=1, keep=2)])
    assert killed(lambda: work.fit(X), wait) == signal.SIGKILL
    (tmp_path / ".train-000009.safetensors.1.tmp").write_bytes(b"half")
    assert_same(work.fit(X, resume=tmp_path), whole[0])
    assert [file.name for file in sorted(tmp_path.iterdir())] == [
        "train-000011.safetensors",
        "train-000012.safetensors",
    ]


def test_checkpoints_change_nothing_and_are_kept_by_age(whole: tuple[RobustVaDE, Record], tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "new" / "folder", every=5, keep=2)
    assert_same(RobustVaDE(**SMALL, callbacks=[checkpoint]).fit(X), whole[0])
    names = sorted(file.name for file in checkpoint.path.iterdir())
    assert names == ["train-000010.safetensors", "train-000012.safetensors"]
    assert repr(checkpoint) == f"Checkpoint({str(checkpoint.path)!r}, every=5, keep=2)"
    assert clone(RobustVaDE(callbacks=[checkpoint])).callbacks[0].path == checkpoint.path


def test_every_checkpoint_of_a_run_leads_to_the_same_model(
    run: Path, whole: tuple[RobustVaDE, Record], tmp_path: Path
) -> None:
    names = sorted(file.name for file in run.iterdir())
    assert names == ["train-000005.safetensors", "train-000010.safetensors", "train-000012.safetensors"]
    for name in names:
        assert_same(RobustVaDE(**SMALL).fit(X, resume=str(run / name)), whole[0])
    RobustVaDE(**SMALL, callbacks=[Checkpoint(tmp_path, keep=9, every=99)]).fit(X)
    assert_same(RobustVaDE(**SMALL).fit(X, resume=tmp_path / "pretrain-000004.safetensors"), whole[0])


def test_a_run_that_was_finished_or_stopped_gives_its_model_again(
    run: Path, whole: tuple[RobustVaDE, Record], tmp_path: Path
) -> None:
    record = Record()
    assert_same(RobustVaDE(**SMALL, callbacks=[record]).fit(X, resume=run), whole[0])
    assert not record.epochs
    stopped = RobustVaDE(**SMALL, callbacks=[Checkpoint(tmp_path), Stop(7)]).fit(X)
    assert stopped.n_iter_ == 7
    assert_same(RobustVaDE(**SMALL).fit(X, resume=tmp_path), stopped)


def test_a_random_state_that_is_no_integer_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    given = {**SMALL, "random_state": None}
    estimator = RobustVaDE(**given, callbacks=[Checkpoint(tmp_path, keep=9)]).fit(X)
    assert_same(RobustVaDE(**given).fit(X, resume=tmp_path / "train-000010.safetensors"), estimator)


OTHER = {
    "n_clusters": 5,
    "n_latent": 9,
    "hidden": (17,),
    "mutual_information": 0.5,
    "locality": 1.0,
    "perplexity": 3.0,
    "posterior": "sampled",
    "assign": "mixture",
    "adversarial": 0.0,
    "pretrain_epochs": 5,
    "epochs": 13,
    "batch_size": 65,
    "lr": 1e-3,
    "random_state": 1,
    "warmup": 0.5,
    "reconstruction": "bernoulli",
    "encoder": torch.nn.Linear(64, 16),
}


@pytest.mark.parametrize("name", OTHER)
def test_another_parameter_is_named(name: str, run: Path) -> None:
    with pytest.raises(ValueError, match=rf"was made with {name}=.*, got {name}="):
        RobustVaDE(**{**SMALL, name: OTHER[name]}).fit(X, resume=run)


def test_another_class_or_other_rows_are_named(run: Path) -> None:
    with pytest.raises(ValueError, match="is of a RobustVaDE, and cannot be gone on with by a VaDE"):
        VaDE(4, hidden=(16,)).fit(X, resume=run)
    with pytest.raises(ValueError, match=r"rows of shape \(64,\), got X with rows of shape \(60,\)"):
        RobustVaDE(**SMALL).fit(X[:, :60], resume=run)
    with pytest.raises(ValueError, match="made on 150 rows, got X with 149"):
        RobustVaDE(**SMALL).fit(X[1:], resume=run)
    with pytest.raises(ValueError, match="another type or range"):
        RobustVaDE(**SMALL).fit((255 * X).astype(np.uint8), resume=run)


def test_other_rows_of_the_same_shape_are_noticed_by_their_moments(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(150, 5))
    RobustVaDE(**SMALL, callbacks=[Checkpoint(tmp_path)]).fit(rows)
    with pytest.raises(ValueError, match="had other rows: X gives another `shift`"):
        RobustVaDE(**SMALL).fit(rows + 0.1, resume=tmp_path)


def test_a_fit_that_cannot_be_resumed_leaves_the_estimator_as_it_was(run: Path) -> None:
    estimator = RobustVaDE(**{**SMALL, "epochs": 1}).fit(X)
    before = dict(vars(estimator))
    with pytest.raises(ValueError, match="epochs=12, got epochs=1"):
        estimator.fit(X, resume=run)
    assert vars(estimator) == before


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]) -> None:
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["vade_robust"])
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    change(header, tensors)
    save_file(tensors, path, {"vade_robust": json.dumps(header)})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (cut, "is cut short"),
    "empty": (lambda p: p.write_bytes(b""), "is cut short"),
    "foreign": (lambda p: save_file({"a": torch.zeros(1)}, p), "its metadata has no 'vade_robust'"),
    "a model": (lambda p: rewritten(p, lambda h, t: h.update(kind="vade-robust model")), "'kind' must be"),
    "later version": (lambda p: rewritten(p, lambda h, t: h.update(version=9)), "a later version"),
    "NaN": (lambda p: rewritten(p, lambda h, t: h.update(epoch=float("nan"))), "'epoch' must be finite"),
    "epoch of text": (lambda p: rewritten(p, lambda h, t: h.update(epoch="1")), "'epoch' must be an integer"),
    "epoch below 0": (lambda p: rewritten(p, lambda h, t: h.update(epoch=-1)), "'epoch' must be an integer"),
    "no phase": (lambda p: rewritten(p, lambda h, t: h.pop("phase")), "'phase' must be a string, which is missing"),
    "no generator": (lambda p: rewritten(p, lambda h, t: t.pop("generator")), "'generator' must be"),
    "no class": (lambda p: rewritten(p, lambda h, t: h.pop("class")), "'class' must be a string"),
    "no weights": (lambda p: rewritten(p, lambda h, t: t.pop("networks.logits")), r"networks\.logits"),
    "another shape": (
        lambda p: rewritten(p, lambda h, t: t.update({"networks.centers": torch.zeros(9, 10)})),
        r"networks\.centers.*\(4, 10\)",
    ),
    "another dtype": (
        lambda p: rewritten(p, lambda h, t: t.update({"networks.centers": torch.zeros(4, 10).long()})),
        r"networks\.centers.*float32",
    ),
    "moments of another shape": (
        lambda p: rewritten(p, lambda h, t: t.update({"optimizer.exp_avg.logits": torch.zeros(9)})),
        r"optimizer\.exp_avg\.logits",
    ),
    "moments unknown": (
        lambda p: rewritten(p, lambda h, t: t.update({"optimizer.exp_avg.evil": torch.zeros(9)})),
        r"optimizer\.exp_avg\.evil",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_no_checkpoint_or_a_broken_one_is_refused_by_name(case: str, run: Path, tmp_path: Path) -> None:
    edit, message = BAD[case]
    file = Path(shutil.copy(run / "train-000012.safetensors", tmp_path))
    edit(file)
    with pytest.raises(ValueError, match=message) as error:
        RobustVaDE(**SMALL).fit(X, resume=file)
    assert str(file) in str(error.value)


def test_the_latest_valid_checkpoint_of_a_folder_is_taken(
    run: Path, whole: tuple[RobustVaDE, Record], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    for name in ("train-abc.safetensors", "train-000099.txt", "notes.txt", "train-99.safetensors"):
        (folder / name).write_text("not ours")
    cut(folder / "train-000012.safetensors")
    record = Record()
    with pytest.warns(UserWarning, match=r"train-000012\.safetensors .* is cut short.*; the checkpoint before it"):
        estimator = RobustVaDE(**SMALL, callbacks=[record]).fit(X, resume=folder)
    assert_same(estimator, whole[0])
    assert list(record.epochs) == [("train", 11), ("train", 12)]
    for name in ("train-000010.safetensors", "train-000005.safetensors"):
        cut(folder / name)
    with pytest.warns(UserWarning, match="is cut short"), pytest.raises(ValueError, match=r"train-000005.*is cut"):
        RobustVaDE(**SMALL).fit(X, resume=folder)


def test_paths_without_a_checkpoint_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        RobustVaDE(**SMALL).fit(X, resume=tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        RobustVaDE(**SMALL).fit(X, resume=tmp_path / "nowhere")


def test_a_folder_with_checkpoints_of_another_run_is_refused_before_any_work(run: Path, tmp_path: Path) -> None:
    before = sorted(run.iterdir())
    with pytest.raises(ValueError, match=r"holds checkpoints of another run: go on with it by fit\(X, resume="):
        RobustVaDE(**SMALL, callbacks=[Checkpoint(run)]).fit(X)
    other = Path(shutil.copytree(run, tmp_path / "other"))
    with pytest.raises(ValueError, match="holds checkpoints of another run"):
        RobustVaDE(**SMALL, callbacks=[Checkpoint(run)]).fit(X, resume=other)
    assert sorted(run.iterdir()) == before


def test_wrong_arguments_of_a_checkpoint_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every must be an integer >= 1, got 0"):
        Checkpoint(tmp_path, every=0)
    with pytest.raises(TypeError, match=r"keep must be an integer >= 1, got 2\.5"):
        Checkpoint(tmp_path, keep=2.5)  # type: ignore[arg-type]
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotADirectoryError, match="file is a file, and must be a folder"):
        RobustVaDE(**SMALL, callbacks=[Checkpoint(file)]).fit(X)
    with pytest.raises(OSError, match="/proc/nowhere"):
        RobustVaDE(**SMALL, callbacks=[Checkpoint("/proc/nowhere")]).fit(X)
