"""Models in files: the same bits come back, a killed writer leaves a whole model, and foreign files are refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from torch import nn

from vade_robust import RobustVaDE, VaDE, _saving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

X = load_digits().data[:150] / 16
SMALL: dict[str, Any] = {"n_clusters": 4, "hidden": (16,), "pretrain_epochs": 1, "epochs": 2, "batch_size": 64}
SMALL |= {"random_state": 0, "start": "gmm"}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def fitted() -> RobustVaDE:
    return RobustVaDE(**SMALL).fit(X)


@pytest.fixture(scope="module")
def saved(fitted: RobustVaDE, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    fitted.save(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def same_bits(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def assert_same_model(a: Any, b: Any, rows: Any = X) -> None:
    assert type(a) is type(b)
    assert same_bits(a.labels_, b.labels_)
    for method in ("predict", "predict_proba", "transform", "score_samples", "reconstruct"):
        assert same_bits(getattr(a, method)(rows), getattr(b, method)(rows)), method
    for name in ("cluster_centers_", "means_", "covariances_", "weights_"):
        assert same_bits(getattr(a, name), getattr(b, name)), name
    assert (a.n_iter_, a.n_features_in_, a.history_) == (b.n_iter_, b.n_features_in_, b.history_)
    assert a.diagnostics_.keys() == b.diagnostics_.keys()
    for name, value in a.diagnostics_.items():
        assert np.array_equal(value, b.diagnostics_[name]), name
        assert type(value) is type(b.diagnostics_[name]), name


@pytest.mark.parametrize(("cls", "assign"), [(RobustVaDE, "embedding"), (RobustVaDE, "mixture"), (VaDE, "mixture")])
def test_a_model_that_was_loaded_is_the_one_that_was_saved(cls: Any, assign: str, tmp_path: Path) -> None:
    estimator = cls(**SMALL, assign=assign).fit(X)
    estimator.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = cls.load(tmp_path)
    assert_same_model(estimator, loaded)
    assert np.array_equal(loaded.labels_, loaded.predict(X))
    assert all(np.array_equal(a, b) for a, b in zip(loaded.sample(3), estimator.sample(3), strict=True))
    given, found = estimator.get_params(), loaded.get_params()
    assert found == given


def test_parameters_of_this_machine_and_this_call_are_not_saved(tmp_path: Path) -> None:
    given = {**SMALL, "device": "cpu", "n_jobs": 1, "random_state": np.random.RandomState(0)}
    RobustVaDE(**given).fit(X).save(tmp_path)
    loaded = RobustVaDE.load(tmp_path, device="cpu")
    assert (loaded.device, loaded.n_jobs, loaded.random_state) == ("cpu", None, None)
    assert RobustVaDE.load(tmp_path).device is None
    with pytest.raises(ValueError, match="device must name a device of this machine"):
        RobustVaDE.load(tmp_path, device="cuda:77")


def test_gaussian_rows_images_and_names_of_columns_come_back(tmp_path: Path) -> None:
    frame = pd.DataFrame(7 * X[:, :20] - 3, columns=[f"column {i}" for i in range(20)])
    estimator = RobustVaDE(**SMALL).fit(frame)
    estimator.save(tmp_path / "frame")
    loaded = RobustVaDE.load(tmp_path / "frame")
    assert_same_model(estimator, loaded, frame)
    assert list(loaded.feature_names_in_) == list(frame.columns)
    images = (255 * X).astype(np.uint8).reshape(-1, 8, 8)
    estimator = RobustVaDE(**SMALL, encoder="conv").fit(images)
    estimator.save(tmp_path / "images")
    assert_same_model(estimator, RobustVaDE.load(tmp_path / "images"), images)


def test_an_encoder_of_the_users_is_passed_again(tmp_path: Path, saved: Path) -> None:
    def encoder(width: int = 12) -> nn.Module:
        return nn.Sequential(nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU())

    estimator = RobustVaDE(**SMALL, encoder=encoder()).fit(X)
    estimator.save(tmp_path)
    other = encoder()
    before = [p.clone() for p in other.parameters()]
    assert_same_model(estimator, RobustVaDE.load(tmp_path, encoder=other))
    assert all(torch.equal(p, q) for p, q in zip(before, other.parameters(), strict=True)), "it is copied"
    with pytest.raises(ValueError, match="pass such a module as `encoder`, got None"):
        RobustVaDE.load(tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors: the tensor 'networks\.encoder\.0\.weight' must be"):
        RobustVaDE.load(tmp_path, encoder=encoder(13))
    with pytest.raises(ValueError, match=r"'networks\.encoder\.0\.bias' is unknown"):
        RobustVaDE.load(tmp_path, encoder=nn.Identity())
    with pytest.raises(ValueError, match="leave `encoder` out"):
        RobustVaDE.load(saved, encoder=encoder())
    with pytest.raises(TypeError, match=r"encoder must be None or an nn\.Module"):
        RobustVaDE.load(saved, encoder="mlp")  # type: ignore[arg-type]


class Tagged(RobustVaDE):
    def __init__(self, n_clusters: int = 8, *, tag: Any = "", hidden: Any = (8,), epochs: int = 1) -> None:
        super().__init__(n_clusters, hidden=hidden, epochs=epochs, pretrain_epochs=1, start="gmm", random_state=0)
        self.tag = tag


def test_a_subclass_is_saved_with_its_own_parameters(tmp_path: Path) -> None:
    estimator = Tagged(3, tag={"a": [1, 2.5, None]}).fit(X)
    estimator.save(tmp_path)
    loaded = Tagged.load(tmp_path)
    assert loaded.get_params() == estimator.get_params()
    assert np.array_equal(loaded.predict(X), estimator.labels_)
    with pytest.raises(ValueError, match=r"config\.json is of a Tagged: load it by Tagged\.load"):
        RobustVaDE.load(tmp_path)
    estimator.tag = object()
    with pytest.raises(TypeError, match="parameter tag of Tagged cannot be saved"):
        estimator.save(tmp_path)
    assert np.array_equal(Tagged.load(tmp_path).predict(X), estimator.labels_), "the model there stays"


def test_one_class_does_not_load_the_other(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"is of a RobustVaDE: load it by RobustVaDE\.load"):
        VaDE.load(saved)


def test_partial_fit_goes_on_after_loading(tmp_path: Path) -> None:
    estimator = RobustVaDE(**SMALL).partial_fit(X[:80])
    estimator.save(tmp_path)
    loaded = RobustVaDE.load(tmp_path)
    for rows in (X[80:], X[40:100]):
        estimator.partial_fit(rows)
        loaded.partial_fit(rows)
        for name, value in estimator._training.state().items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, loaded._training.state()[name]), name
        assert same_bits(estimator.labels_, loaded.labels_)


def test_rows_are_in_the_file_only_after_partial_fit(saved: Path, tmp_path: Path) -> None:
    names = load_file(saved / "model.safetensors").keys()
    assert not any(name.startswith(("reservoir.", "optimizer.")) for name in names)
    RobustVaDE(**SMALL).partial_fit(X).save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["reservoir.rows"].shape == (150, 64)
    assert any(name.startswith("optimizer.") for name in tensors)


def test_a_loaded_model_can_be_fitted_again(saved: Path, fitted: RobustVaDE) -> None:
    again = RobustVaDE.load(saved).fit(X)
    assert same_bits(again.labels_, fitted.labels_)
    assert RobustVaDE.load(saved).partial_fit(X).n_iter_ == 3


def test_saving_twice_gives_the_same_files(fitted: RobustVaDE, saved: Path, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    RobustVaDE.load(saved).save(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (saved / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_numbers_that_are_not_finite_are_valid_json(fitted: RobustVaDE, tmp_path: Path) -> None:
    estimator = RobustVaDE(**SMALL).fit(X)
    estimator.history_[0]["loss"] = float("nan")
    estimator.save(tmp_path)

    def refuse(text: str) -> None:
        raise AssertionError(text)

    json.loads((tmp_path / "config.json").read_text(), parse_constant=refuse)
    assert np.isnan(RobustVaDE.load(tmp_path).history_[0]["loss"])


def test_an_estimator_that_is_not_fitted_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        RobustVaDE().save(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("moment", [0, 1], ids=["before the new one is there", "after"])
def test_ctrl_c_leaves_the_old_model_or_the_new_and_nothing_else(
    moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (VaDE(**{**SMALL, "random_state": seed}).fit(X[:100]) for seed in (0, 1))
    old.save(tmp_path)
    names, replace = sorted(os.listdir(tmp_path)), Path.replace

    def interrupted(path: Path, target: Path) -> Any:
        if target.name == "config.json" and moment == 0:
            raise KeyboardInterrupt
        result = replace(path, target)
        if target.name == "config.json":
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        new.save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == names
    assert np.array_equal(VaDE.load(tmp_path).labels_, (old, new)[moment].labels_)


def die_at(moment: int) -> None:
    """Has this process killed before its `moment`-th action on files."""
    seen = 0

    def counted(action: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1
            return action(*args, **kwargs)

        return call

    os.fsync = counted(os.fsync)
    Path.replace, Path.unlink = counted(Path.replace), counted(Path.unlink)  # type: ignore[method-assign]
    plain = Path.open

    def torn(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = plain(path, mode, *args, **kwargs)
        if "w" not in mode:
            return file

        class Torn:
            def __enter__(self) -> Torn:
                return self

            def __exit__(self, *error: object) -> None:
                file.close()

            def write(self, content: bytes) -> None:
                file.write(content[: len(content) // 2])
                file.flush()
                counted(lambda: None)()
                file.write(content[len(content) // 2 :])

            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

        return Torn()

    Path.open = counted(torn)  # type: ignore[method-assign]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a process that has used CUDA cannot be forked")
def test_a_writer_that_is_killed_at_any_moment_leaves_the_old_model_or_the_new(
    fitted: RobustVaDE, saved: Path, tmp_path: Path
) -> None:
    new = RobustVaDE(**{**SMALL, "random_state": 1}).fit(X)
    seen, moment, status = [], 0, -1
    while status != 0:
        folder = Path(shutil.copytree(saved, tmp_path / str(moment)))
        process = os.fork()
        if process == 0:
            try:
                die_at(moment)
                new.save(folder)
            except BaseException:
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        assert status in (0, signal.SIGKILL)
        loaded = RobustVaDE.load(folder)
        seen.append(loaded.random_state)
        assert_same_model(loaded, new if loaded.random_state else fitted)
        if moment % 3 == 0:
            fitted.save(folder)
            assert_same_model(RobustVaDE.load(folder), fitted)
            assert len(list(folder.iterdir())) == 2, "what was left unfinished is gone"
        moment += 1
    assert seen == sorted(seen)
    assert 0 in seen[2:]
    assert 1 in seen[:-2]


def edit_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return edit


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        tensors = {name: value.clone() for name, value in load_file(path).items()}
        change(tensors)
        save_file(tensors, path, metadata)

    return edit


def edit_bytes(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = change((folder / name).read_bytes())
        (folder / name).unlink()
        (folder / name).write_bytes(content)

    return edit


WEIGHTS, CONFIG = "model.safetensors", "config.json"
HUGE = 10**12
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights cut short": (edit_bytes(WEIGHTS, lambda b: b[:-5]), "is cut short"),
    "weights cut in the header": (edit_bytes(WEIGHTS, lambda b: b[:50]), "is cut short"),
    "weights empty": (edit_bytes(WEIGHTS, lambda b: b""), "is cut short"),
    "weights that are text": (edit_bytes(WEIGHTS, lambda b: b"hello" * 99), "is cut short"),
    "weights that are a pickle": (edit_bytes(WEIGHTS, lambda b: b"\x80\x04K\x01."), "is cut short"),
    "weights with more at the end": (edit_bytes(WEIGHTS, lambda b: b + b"x"), "is cut short"),
    "weights with a flipped bit": (edit_bytes(WEIGHTS, lambda b: b[:-9] + bytes([b[-9] ^ 1]) + b[-8:]), "was changed"),
    "config empty": (edit_bytes(CONFIG, lambda b: b""), "no valid JSON"),
    "config cut short": (edit_bytes(CONFIG, lambda b: b[:-3]), "no valid JSON"),
    "config of no text": (edit_bytes(CONFIG, lambda b: b"\xff\xfe\xfa"), "no valid JSON"),
    "config a list": (edit_bytes(CONFIG, lambda b: b"[]"), "must hold a JSON object"),
    "config too deep": (edit_bytes(CONFIG, lambda b: b"[" * 200_000), "no valid JSON"),
    "config of another program": (edit_bytes(CONFIG, lambda b: b'{"model_type": "bert"}'), "'kind' must be"),
    "no version": (edit_config(lambda c: c.pop("version")), "'version' must be an integer >= 0, which is missing"),
    "later version": (edit_config(lambda c: c.update(version=2)), "a later version of vade-robust wrote it"),
    "version true": (edit_config(lambda c: c.update(version=True)), "'version' must be an integer"),
    "class a number": (edit_config(lambda c: c.update({"class": 3})), "'class' must be a string"),
    "lr NaN": (edit_config(lambda c: c["parameters"].update(lr=float("nan"))), r"'parameters\.lr' must be finite"),
    "lr negative": (edit_config(lambda c: c["parameters"].update(lr=-1)), "'parameters', lr must be positive"),
    "parameter missing": (edit_config(lambda c: c["parameters"].pop("warmup")), "'warmup' is missing"),
    "parameter unknown": (edit_config(lambda c: c["parameters"].update(evil=1)), "'evil' in 'parameters' is unknown"),
    "option missing": (edit_config(lambda c: c["options"].pop("clamp")), "'clamp' is missing in 'options'"),
    "option of a wrong type": (edit_config(lambda c: c["options"].update(clamp=1)), "'clamp' must be true or false"),
    "options a list": (edit_config(lambda c: c.update(options=[])), "'options' must be an object"),
    "huge n_clusters": (edit_config(lambda c: c["options"].update(n_clusters=HUGE)), "tensor 'networks.*must be"),
    "huge n_latent": (edit_config(lambda c: c["options"].update(n_latent=HUGE)), "tensor 'networks.*must be"),
    "huge hidden": (edit_config(lambda c: c["options"].update(hidden=[HUGE])), "tensor 'networks.*must be"),
    "hidden beyond integers": (edit_config(lambda c: c["options"].update(hidden=[10**30])), "do not make networks"),
    "many layers": (edit_config(lambda c: c["options"].update(hidden=[1] * 10**5)), "'hidden' has 100000 layers"),
    "another shape": (edit_config(lambda c: c.update(shape=[HUGE])), r"'networks\.shift' must have"),
    "shape of no numbers": (edit_config(lambda c: c.update(shape=["x"])), "'shape' must be a list of positive"),
    "kind unknown": (edit_config(lambda c: c["options"].update(kind="poisson")), "'kind' in 'options' must be"),
    "another digest": (edit_config(lambda c: c["weights"].update(sha256="../" + "0" * 61)), "'sha256' must be 64"),
    "digest of another file": (edit_config(lambda c: c["weights"].update(sha256="0" * 64)), "was changed"),
    "assign unknown": (edit_config(lambda c: c.update(assign="best")), "'assign' must be"),
    "phase unknown": (edit_config(lambda c: c.update(phase="x")), "'phase' must be one of"),
    "history of numbers": (edit_config(lambda c: c.update(history=[1])), "'history' must be a list of objects"),
    "pixel of 0": (edit_config(lambda c: c["preparation"].update(pixel=0)), "'pixel' in 'preparation'"),
    "tensor missing": (edit_tensors(lambda t: t.pop("networks.logits")), r"'networks\.logits' is missing"),
    "tensor unknown": (edit_tensors(lambda t: t.update(evil=torch.zeros(1))), "the tensor 'evil' is unknown"),
    "weight unknown": (
        edit_tensors(lambda t: t.update({"networks.evil": torch.zeros(1)})),
        r"'networks\.evil' is unknown",
    ),
    "tensor of another shape": (
        edit_tensors(lambda t: t.update({"networks.centers": torch.zeros(5, 10)})),
        r"'networks\.centers' must be torch\.float32 of shape \(4, 10\)",
    ),
    "tensor of another dtype": (
        edit_tensors(lambda t: t.update({"networks.centers": torch.zeros(4, 10).double()})),
        r"'networks\.centers' must be torch\.float32.* got torch\.float64",
    ),
    "generator cut": (edit_tensors(lambda t: t.update(generator=t["generator"][:9].clone())), "'generator' must be"),
    "tensor changed": (edit_tensors(lambda t: t["networks.centers"].add_(1)), "was changed, or is of another"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_foreign_or_broken_is_refused_by_name(case: str, copy: Path) -> None:
    edit, message = BAD[case]
    edit(copy)
    with pytest.raises(ValueError, match=message) as error:
        RobustVaDE.load(copy)
    assert str(copy) in str(error.value)


def test_files_that_are_not_there_are_named(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere/config\.json"):
        RobustVaDE.load(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match=r"config\.json is a file, and must be a folder"):
        RobustVaDE.load(copy / "config.json")
    (copy / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        RobustVaDE.load(copy)
    (copy / "model.safetensors").mkdir()
    with pytest.raises(IsADirectoryError, match=r"model\.safetensors is a folder"):
        RobustVaDE.load(copy)


def test_places_that_cannot_be_written_to_are_named(fitted: RobustVaDE, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match=r"config\.json is a file, and must be a folder"):
        fitted.save(copy / "config.json")
    with pytest.raises(OSError, match="/proc/nowhere"):
        fitted.save("/proc/nowhere")
    if os.geteuid() == 0:
        return  # root writes everywhere
    copy.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match="copy"):
            fitted.save(copy)
    finally:
        copy.chmod(0o700)
    assert_same_model(RobustVaDE.load(copy), fitted)


def test_brackets_without_end_are_refused_whatever_the_recursion_limit(tmp_path: Path) -> None:
    """Python's parser would overflow the stack: a crash, not an exception."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(10**6)
    try:
        for text in (b"[" * 10**6, b'{"a":' * 10**6):
            with pytest.raises(ValueError, match="nested more than 64 deep"):
                _saving.parse(text, tmp_path)
    finally:
        sys.setrecursionlimit(before)
    assert _saving.parse(b'{"a": "[[[[\\"[["}', tmp_path) == {"a": '[[[["[['}
