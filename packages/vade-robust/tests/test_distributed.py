"""Training in several processes is the training in one; what fails in one of them ends all."""

from __future__ import annotations

import datetime
import os
import traceback
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import distributed

from vade_robust import RobustVaDE, _data, _distributed
from vade_robust._sources import part
from vade_robust._training import Options, Training
from vade_robust.callbacks import Callback, Checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.skipif(not distributed.is_gloo_available(), reason="this build of torch has no gloo"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a process that has used CUDA cannot be forked"),
]

X = load_digits().data / 16
SMALL: dict[str, Any] = {"n_clusters": 4, "hidden": (16,), "pretrain_epochs": 1, "epochs": 2, "batch_size": 64}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def in_group(folder: Path, work: Callable[[int], Any], size: int = 2) -> list[Any]:
    """What `work(rank)` gives, or its error, in each of a group of processes."""
    processes = []
    for rank in range(size):
        process = os.fork()
        if process == 0:
            try:
                distributed.init_process_group(
                    "gloo",
                    init_method=f"file://{folder}/meeting",
                    rank=rank,
                    world_size=size,
                    timeout=datetime.timedelta(seconds=120),
                )
                try:
                    result = work(rank)
                except Exception as error:  # a result, too
                    result = error
                torch.save(result, folder / str(rank))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        processes.append(process)
    assert [os.waitpid(process, 0)[1] for process in processes] == [0] * size
    return [torch.load(folder / str(rank), weights_only=False) for rank in range(size)]


class Doubled:
    """A source whose rows are in double precision."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def epoch(self, *args: Any, **kwargs: Any) -> Any:
        for batch in self.source.epoch(*args, **kwargs):
            yield batch._replace(x=batch.x.double(), negative=batch.negative.double())

    def in_order(self, *args: Any) -> Any:
        return (x.double() for x in self.source.in_order(*args))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)


def steps(rows: int, batch_size: int, **changed: Any) -> dict[str, Any]:
    """The state after an epoch of pretraining and one of training in double precision."""
    given: dict[str, Any] = RobustVaDE().get_params()
    given |= {"n_clusters": 3, "n_latent": 4, "hidden": (12,), "adversarial": 0.1, "pretrain_epochs": 1, "epochs": 1}
    given |= {"batch_size": batch_size, "kind": "bernoulli", "start": "gmm", **changed}
    options = Options(**{name: value for name, value in given.items() if name in Options.__dataclass_fields__})
    training = Training(options.networks((64,), 0).double(), options, 0)
    source = _data.source(RobustVaDE(), X[:rows], device=torch.device("cpu"))
    _data.prepare(source)
    training.run(Doubled(source))  # type: ignore[arg-type]
    return training.state()


@pytest.mark.parametrize(
    ("rows", "size", "changed"),
    [
        (250, 2, {}),  # even slices
        (203, 2, {"posterior": "sampled"}),  # the last batch of 3 rows: no locality there
        (201, 2, {}),  # the last batch of one row: nothing for the first process
        (205, 3, {"mutual_information": 0.0, "adversarial": 0.0}),
    ],
    ids=["even slices", "a last batch of 3", "a last batch of 1", "three processes"],
)
def test_five_steps_in_several_processes_are_those_in_one(
    rows: int, size: int, changed: dict[str, Any], tmp_path: Path
) -> None:
    one = steps(rows, 50, **changed)
    several = in_group(tmp_path, lambda rank: steps(rows, 50, **changed), size)
    assert one["optimizer.steps"] == -(-rows // 50)
    for state in several:
        assert state.keys() == one.keys()
        for name, value in one.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(state[name].nan_to_num(), several[0][name].nan_to_num()), name
                assert torch.allclose(state[name].double(), value.double(), rtol=0, atol=1e-10, equal_nan=True), name
        for logs, expected in zip(state["history"], one["history"], strict=True):
            assert logs.keys() == expected.keys()
            for name, value in expected.items():
                if name != "seconds" and name != "phase":
                    assert logs[name] == pytest.approx(value, rel=1e-9), name


def test_rows_of_all_processes_are_gathered_with_their_gradient(tmp_path: Path) -> None:
    rows = torch.arange(15.0).view(5, 3)
    weights = torch.arange(15.0).view(5, 3).sin()

    def work(rank: int) -> Any:
        own = rows[part(5, rank, 3)].clone().requires_grad_()
        gathered = _distributed.gather(own, 5)
        share = (gathered * gathered * weights).sum() / 3
        (gradient,) = torch.autograd.grad(share, own)
        return gathered.detach(), gradient

    results = in_group(tmp_path, work, 3)
    for gathered, _ in results:
        assert torch.equal(gathered, rows)
    assert torch.allclose(torch.cat([gradient for _, gradient in results]), 2 * rows * weights)


class Named(Callback):
    def __init__(self) -> None:
        self.seen = 0

    def on_epoch_end(self, estimator: Any, epoch: int, logs: dict[str, Any]) -> bool:
        self.seen += 1
        return logs["phase"] == "train" and epoch == 2 and distributed.is_initialized() and distributed.get_rank() == 1


def test_all_processes_hold_the_estimator_of_a_fit_in_one(tmp_path: Path) -> None:
    one = RobustVaDE(**SMALL, random_state=0, start="gmm", assign="mixture").fit(X[:301])

    def work(rank: int) -> Any:
        callback = Named()
        checkpoint = Checkpoint(tmp_path / "checkpoints")
        given = {**SMALL, "epochs": 5}
        stopped = RobustVaDE(**given, random_state=rank, callbacks=[checkpoint, callback])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stopped.fit(X[:301])  # the seeds differ: the first process's counts
            free = RobustVaDE(**SMALL).fit(X[:301])
            resumed = RobustVaDE(**{**given, "random_state": None}).fit(X[:301], resume=tmp_path / "checkpoints")
            online = RobustVaDE(**SMALL, random_state=0).partial_fit(X[:100]).partial_fit(X[100:201])
            fit = RobustVaDE(**SMALL, random_state=0, start="gmm", assign="mixture").fit(X[:301])
        return [
            {
                "labels": e.labels_,
                "state": e._training.state(),
                "diagnostics": e.diagnostics_,
                "centers": e.cluster_centers_,
            }
            for e in (fit, stopped, free, resumed, online)
        ]

    results = in_group(tmp_path, work)
    for a, b in zip(*results, strict=True):
        assert np.array_equal(a["labels"], b["labels"])
        assert np.array_equal(a["centers"], b["centers"])
        for name, value in a["state"].items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, b["state"][name]), name
        for name, value in a["diagnostics"].items():
            assert np.array_equal(value, b["diagnostics"][name]), name
    fit, stopped, _, resumed, _ = results[0]
    # Compared is the mixture: a map of few steps has no clusters, and KMeans on it differs if rows differ by 1e-7.
    assert np.mean(fit["labels"] == one.labels_) > 0.99
    assert np.allclose(fit["centers"], one.cluster_centers_, atol=1e-4)
    assert stopped["state"]["epoch"] == 2, "one process ends the phase for all"
    assert np.array_equal(resumed["labels"], stopped["labels"])
    names = sorted(file.name for file in (tmp_path / "checkpoints").iterdir())
    assert names == ["pretrain-000001.safetensors", "train-000002.safetensors"]


class Failing(Callback):
    def on_epoch_end(self, estimator: Any, epoch: int, logs: dict[str, Any]) -> None:
        if distributed.get_rank() == 1:
            raise KeyError("mine")


def attempt(given: dict[str, Any], rows: Any) -> str:
    try:
        RobustVaDE(**given).fit(rows)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "fitted"


def test_what_fails_in_one_process_ends_all(tmp_path: Path) -> None:
    spoilt = X[:100].copy()
    spoilt[7, 3] = np.nan

    def work(rank: int) -> list[str]:
        good = {**SMALL, "random_state": 0}
        cases: list[tuple[dict[str, Any], Any]] = [
            (good, spoilt if rank else X[:100]),
            ({**good, "lr": -1.0} if rank == 0 else good, X[:100]),
            (good, X[: 100 + rank]),
            ({**good, "lr": 1e-3 * (1 + rank)}, X[:100]),
            ({**good, "callbacks": [Failing()]}, X[:100]),
            ({**good, "epochs": 1}, X[:100]),
        ]
        return [attempt(given, rows) for given, rows in cases]

    first, second = in_group(tmp_path, work)
    assert first[0].startswith("RuntimeError: the start of fit failed in another process")
    assert "NaN in row 7" in second[0]
    assert first[1].startswith("ValueError: lr must be positive")
    assert second[1].startswith("RuntimeError: the check of parameters failed in another process")
    assert first[2] == second[2]
    assert "the same number of rows" in first[2]
    assert first[3] == second[3]
    assert "the same parameters and features" in first[3]
    assert first[4].startswith("RuntimeError: a callback failed in another process")
    assert second[4] == "KeyError: 'mine'"
    assert first[5] == second[5] == "fitted"


def test_without_a_group_nothing_is_exchanged() -> None:
    x = torch.ones(3, requires_grad=True)
    assert _distributed.world() == (0, 1)
    assert _distributed.gather(x, 3) is x
    assert _distributed.any_of(True)
    _distributed.add_up([x])
    _distributed.broadcast([x])
    with _distributed.agreement("this"):
        pass
