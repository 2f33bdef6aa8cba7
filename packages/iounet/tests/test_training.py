"""The training loop: exact resuming, seeds that know no ranks, checkpoints that are whole, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import runpy
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from iounet import training
from iounet._augmentation import augment, derive_seed
from iounet._files import read_checkpoint, read_weights, written_aside

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 16


class Scenes:
    """One bright rectangle in each image; `seen` are the indices that were asked for."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seen: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        self.seen.append(index)
        generator = torch.Generator().manual_seed(index)
        x, y, w, h = (torch.rand(4, generator=generator) * 6 + 2).round().tolist()
        image = torch.rand(3, SIZE, SIZE, generator=generator) * 0.2
        image[:, int(y) : int(y + h), int(x) : int(x + w)] += 0.7
        boxes = torch.tensor([[x, y, x + w, y + h], [0, 0, SIZE, SIZE]])
        crowd = torch.tensor([False, True])
        return image, {"boxes": boxes, "labels": torch.tensor([1, 1]), "image_id": 100 + index, "iscrowd": crowd}


class Corners(nn.Module):
    """A detector in small: it regresses the box, with everything that makes resuming hard."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(8 * 7 * 7, 4))
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator) * 0.05
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.jitter_seeds: dict[int, list[int]] = {}
        self.train()

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        boxes = torch.cat([target["boxes"] for target in targets]) / SIZE
        for target in targets:
            self.jitter_seeds.setdefault(target["image_id"], []).append(target["jitter_seed"])
        found = self.head(self.features(torch.stack(images)))
        error = found + 0.01 * torch.rand(found.shape) - boxes
        return {"loss_near": error[:, :2].square().mean(), "loss_far": error[:, 2:].abs().mean()}


def without_time(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: x for name, x in epoch.items() if name != "seconds"} for epoch in history]


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, yours = a.state_dict(), b.state_dict()
    return mine.keys() == yours.keys() and all(torch.equal(mine[name], yours[name]) for name in mine)


def test_training_lowers_the_loss() -> None:
    history = training.fit(Corners(), Scenes(16), epochs=30, lr=0.02, flip=0.5)
    assert [epoch["epoch"] for epoch in history] == list(range(1, 31))
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert history[0]["loss"] == pytest.approx(history[0]["loss_near"] + history[0]["loss_far"])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_two_epochs_and_two_resumed_equal_four_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    options: dict[str, Any] = {"batch_size": 3, "optimizer": optimizer, "scale": (0.8, 1.3), "milestones": (1, 3)}
    straight = Corners()
    expected = training.fit(straight, Scenes(10), epochs=4, **options)
    training.fit(Corners(), Scenes(10), epochs=2, out=tmp_path, **options)
    torch.rand(7)  # the state of the global generator does not matter
    resumed = Corners()
    history = training.fit(resumed, Scenes(10), epochs=4, out=tmp_path, resume=True, **options)
    assert same(resumed, straight)
    assert without_time(history) == without_time(expected)
    assert not same(straight, Corners())


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.005, weight_decay=1e-4)


def test_an_optimizer_of_the_caller_equals_the_named_one_bit_for_bit() -> None:
    named, given = Corners(), Corners()
    options: dict[str, Any] = {"epochs": 3, "batch_size": 3, "milestones": (1, 2), "warmup": 4}
    expected = training.fit(named, Scenes(10), optimizer="adamw", lr=0.005, **options)
    assert without_time(training.fit(given, Scenes(10), optimizer=adamw, lr=7.0, **options)) == without_time(expected)
    assert same(given, named)


def test_the_default_is_the_loop_written_out_with_sgd() -> None:
    model, expected = Corners(), Corners()
    dataset = Scenes(1)
    training.fit(model, dataset, epochs=3, batch_size=1, flip=0, warmup=2, milestones=(2,))
    optimizer = torch.optim.SGD(
        [p for p in expected.parameters() if p.requires_grad], 0.005, momentum=0.9, weight_decay=1e-4
    )
    with torch.random.fork_rng():
        for step, rate in enumerate([0.005 * 0.5, 0.005, 0.005 * 0.1]):
            image, target = dataset[0]
            target = {"boxes": target["boxes"][:1], "image_id": 100, "jitter_seed": 0}
            optimizer.param_groups[0]["lr"] = rate
            torch.manual_seed(derive_seed("step", 0, step, 0))
            optimizer.zero_grad()
            sum(expected([image], [target]).values()).backward()
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 10)
            optimizer.step()
    assert same(model, expected)


def test_an_optimizer_of_the_caller_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        few, rest = {"params": parameters[:2], "lr": 0.01}, {"params": parameters[2:]}
        return torch.optim.AdamW([few, rest], lr=0.003)

    options: dict[str, Any] = {"batch_size": 3, "milestones": (1, 3)}
    straight, resumed = Corners(), Corners()
    expected = training.fit(straight, Scenes(10), epochs=4, optimizer=make, **options)
    training.fit(Corners(), Scenes(10), epochs=2, out=tmp_path, optimizer=make, **options)
    for other in ("adamw", adamw, lambda parameters: torch.optim.NAdam(parameters, lr=0.01)):
        with pytest.raises(ValueError, match=r"(optimizer|lr) must be that of"):
            training.fit(Corners(), Scenes(10), epochs=4, out=tmp_path, resume=True, optimizer=other, **options)
    history = training.fit(resumed, Scenes(10), epochs=4, out=tmp_path, resume=True, optimizer=make, **options)
    assert same(resumed, straight)
    assert without_time(history) == without_time(expected)
    assert history[-1]["lr"] == pytest.approx(0.01 * 0.01 * 16 / 100)


def test_gradients_of_every_group_are_clipped_together() -> None:
    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": [p]} for p in reversed(parameters)], lr=1.0)

    model = Corners()
    before = [p.detach().clone() for p in model.parameters()]
    training.fit(model, Scenes(2), epochs=1, optimizer=make, warmup=0, clip=0.01)
    moved = torch.stack([(p - old).norm() for p, old in zip(model.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("optimizer", "error", "message"),
    [
        (None, TypeError, "optimizer must be 'sgd', 'adamw' or a callable that returns one, got None"),
        (0.1, TypeError, "optimizer must be 'sgd', 'adamw' or a callable that returns one, got 0.1"),
        (len, TypeError, r"optimizer must return a torch\.optim\.Optimizer, got int"),
        (
            lambda _: adamw([nn.Parameter(torch.zeros(1))]),
            ValueError,
            "optimizer must hold parameters that it was given",
        ),
    ],
)
def test_what_makes_no_optimizer_of_the_model_is_refused(
    tmp_path: Path, optimizer: Any, error: type[Exception], message: str
) -> None:
    data, model = Scenes(4), Corners()
    with pytest.raises(error, match=message):
        training.fit(model, data, epochs=1, optimizer=optimizer, out=tmp_path / "run")
    assert same(model, Corners())
    assert data.seen == []
    assert not (tmp_path / "run").exists()


def test_a_run_killed_inside_an_epoch_goes_on_bit_for_bit(tmp_path: Path) -> None:
    class Interrupted(Scenes):
        def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
            if len(self.seen) == 22:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    options: dict[str, Any] = {"epochs": 4, "batch_size": 2, "schedule": "cosine", "save_every": 2}
    straight = Corners()
    expected = training.fit(straight, Scenes(10), **options)
    with pytest.raises(KeyboardInterrupt):
        training.fit(Corners(), Interrupted(10), out=tmp_path, **options)
    assert read_checkpoint(tmp_path / "last.pth")["step"] == 10
    resumed = Corners()
    rest = Scenes(10)
    history = training.fit(resumed, rest, out=tmp_path, resume=True, **options)
    assert len(rest.seen) == 20
    assert same(resumed, straight)
    assert without_time(history) == without_time(expected)


def test_resuming_a_finished_run_makes_no_step(tmp_path: Path) -> None:
    model = Corners()
    history = training.fit(model, Scenes(4), epochs=1, out=tmp_path)
    again, unread = Corners(), Scenes(4)
    assert training.fit(again, unread, epochs=1, out=tmp_path, resume=True) == history
    assert same(again, model)
    assert unread.seen == []


def test_every_image_is_seen_in_every_epoch_in_an_order_of_its_own() -> None:
    data = Scenes(8)
    training.fit(Corners(), data, epochs=2, batch_size=4)
    first, second = data.seen[:8], data.seen[8:]
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second


def test_a_last_step_is_filled_up() -> None:
    data = Scenes(3)
    training.fit(Corners(), data, epochs=1, batch_size=7)
    assert len(data.seen) == 7
    assert set(data.seen) == {0, 1, 2}


def test_jitter_depends_on_seed_epoch_and_image_only() -> None:
    def seeds(**options: Any) -> dict[int, list[int]]:
        model = Corners()
        training.fit(model, Scenes(6), epochs=2, **options)
        return model.jitter_seeds

    found = seeds(batch_size=2)
    assert found == seeds(batch_size=3, lr=0.1)
    assert found.keys() == {100, 101, 102, 103, 104, 105}
    assert len({seed for both in found.values() for seed in both}) == 12
    assert not {seed for both in seeds(batch_size=2, seed=1).values() for seed in both} & {
        seed for both in found.values() for seed in both
    }


def test_crowd_boxes_are_left_out() -> None:
    class Recording(Corners):
        def forward(self, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
            assert all(len(target["boxes"]) == len(target["labels"]) == 1 for target in targets)
            return super().forward(images, targets)

    assert len(training.fit(Recording(), Scenes(2), epochs=1, batch_size=2)) == 1


def test_a_model_with_a_loss_method_is_trained_through_it() -> None:
    class Branch(Corners):
        def loss(self, images: list[Tensor], targets: list[dict[str, Any]]) -> Tensor:
            return super().forward(images, targets)["loss_near"]

        def forward(self, *_: Any) -> dict[str, Tensor]:
            raise AssertionError

    history = training.fit(Branch(), Scenes(4), epochs=1)
    assert history[0]["loss_iou"] == history[0]["loss"] > 0


def test_the_global_generator_and_the_modes_of_the_modules_are_left_as_they_were() -> None:
    model = Corners()
    model.features.eval()
    before = torch.get_rng_state()
    training.fit(model, Scenes(4), epochs=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert not model.features.training


def test_workers_change_nothing() -> None:
    alone, helped = Corners(), Corners()
    training.fit(alone, Scenes(6), epochs=2, batch_size=2, scale=(0.7, 1.4))
    training.fit(helped, Scenes(6), epochs=2, batch_size=2, scale=(0.7, 1.4), workers=1)
    assert same(alone, helped)


def test_learning_rates_follow_warm_up_and_schedule() -> None:
    rates: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    def of(**options: Any) -> list[float]:
        rates.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim, "SGD", Watched)
            training.fit(Corners(), Scenes(4), batch_size=2, lr=0.1, **options)
        return list(rates)

    assert of(epochs=3, warmup=2, milestones=(1, 2)) == pytest.approx([0.05, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert of(epochs=2, warmup=0, schedule="cosine") == pytest.approx([0.1, 0.08535534, 0.05, 0.01464466])
    assert of(epochs=1, warmup=0, schedule="constant") == [0.1, 0.1]


def test_bfloat16_keeps_float32_weights() -> None:
    exact, halved = Corners(), Corners()
    training.fit(exact, Scenes(8), epochs=2)
    training.fit(halved, Scenes(8), epochs=2, precision="bf16")
    pairs = list(zip(exact.parameters(), halved.parameters(), strict=True))
    assert all(b.dtype == torch.float32 for _, b in pairs)
    assert not same(exact, halved)
    assert all(torch.allclose(a, b, atol=2e-2) for a, b in pairs)


def test_gradients_are_clipped() -> None:
    start, end = Corners(), Corners()
    training.fit(end, Scenes(4), epochs=1, lr=1.0, warmup=0, weight_decay=0, momentum=0, clip=1e-3)
    moved = torch.cat([(a - b).flatten() for a, b in zip(start.parameters(), end.parameters(), strict=True)])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_what_is_written_is_enough_to_load_the_model(tmp_path: Path) -> None:
    model = Corners()
    history = training.fit(model, Scenes(4), epochs=1, out=tmp_path / "new" / "run", config={"classes": ["a"]})
    weights, config = read_weights(tmp_path / "new" / "run" / "model.pth")
    assert config == {"classes": ["a"]}
    fresh = Corners()
    fresh.load_state_dict(weights)
    assert same(fresh, model)
    assert json.loads((tmp_path / "new" / "run" / "history.json").read_text()) == history
    assert sorted(p.name for p in (tmp_path / "new" / "run").iterdir()) == ["history.json", "last.pth", "model.pth"]


def test_on_epoch_gets_what_was_saved(tmp_path: Path) -> None:
    told: list[tuple[float, int]] = []

    def tell(epoch: dict[str, float]) -> None:
        told.append((epoch["epoch"], read_checkpoint(tmp_path / "last.pth")["step"]))

    training.fit(Corners(), Scenes(4), epochs=2, out=tmp_path, on_epoch=tell)
    assert told == [(1, 1), (2, 2)]


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm", reason="needs tqdm, of the extra `detection`")
    training.fit(Corners(), Scenes(4), epochs=2, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "2/2" in shown.err


# ---- processes

_SCRIPT = """
import os
import sys
from pathlib import Path

import torch
from torch import nn

from iounet import training


class Scenes:
    def __len__(self):
        return 6

    def __getitem__(self, index):
        image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(index))
        boxes = torch.tensor([[1.0, 2, 5 + index / 2, 7]])
        return image, {"boxes": boxes, "labels": torch.tensor([1]), "image_id": index}


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(192, 4)
        nn.init.constant_(self.layer.weight, 0.01)
        nn.init.zeros_(self.layer.bias)
        self.seeds = []

    def forward(self, images, targets):
        self.seeds += [(target["image_id"], target["jitter_seed"]) for target in targets]
        found = self.layer(torch.stack(images).flatten(1))
        return {"loss": (found - torch.cat([target["boxes"] for target in targets])).square().mean()}


out = Path(sys.argv[1])
model = Mean()
training.fit(model, Scenes(), epochs=2, batch_size=4, lr=0.01, warmup=0, scale=(0.8, 1.2), out=out / "run")
torch.save(model.seeds, out / f"seeds{os.environ.get('RANK', '')}.pth")
"""


def test_two_processes_train_as_one_does_and_only_the_first_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "train.py"
    script.write_text(_SCRIPT)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(script), str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path / "one")])
    runpy.run_path(str(script))
    one, two = (read_checkpoint(tmp_path / name / "run" / "last.pth") for name in ("one", "two"))
    assert two["step"] == one["step"] == 4
    for name, expected in one["model"].items():
        torch.testing.assert_close(two["model"][name], expected, rtol=0, atol=1e-6)
    assert without_time(two["history"]) == [pytest.approx(epoch) for epoch in without_time(one["history"])]
    alone, *shared = (
        torch.load(tmp_path / place, weights_only=True)
        for place in ("one/seeds.pth", "two/seeds0.pth", "two/seeds1.pth")
    )
    assert len(shared[0]) == len(shared[1]) == 8
    assert set(shared[0]) | set(shared[1]) == set(alone)


# ---- files


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "last.pth"
    target.write_bytes(b"old")

    def fail() -> None:
        with written_aside(target) as file:
            file.write(b"half")
            file.flush()
            assert target.read_bytes() == b"old"
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_process_that_dies_while_it_saves_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    training.fit(Corners(), Scenes(4), epochs=1, out=tmp_path)
    before = (tmp_path / "last.pth").read_bytes()
    code = f"""
import os
from iounet._files import written_aside
with written_aside({str(tmp_path / "last.pth")!r}) as file:
    file.write(b"half")
    file.flush()
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert (tmp_path / "last.pth").read_bytes() == before
    assert len(training.fit(Corners(), Scenes(4), epochs=2, out=tmp_path, resume=True)) == 2


def test_a_run_that_dies_in_its_last_save_has_its_model_after_resuming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from iounet import _loop

    write = _loop.write_checkpoint
    left = {"last.pth": 1, "model.pth": 0}  # writes until the disk is full

    def fill(path: Path, content: dict[str, Any]) -> None:
        left[path.name] -= 1
        if left[path.name] < 0:
            raise OSError("no space left")
        write(path, content)

    options: dict[str, Any] = {"epochs": 2, "out": tmp_path}
    for model_writes in (0, 1):  # dies before and after model.pth
        monkeypatch.setattr(_loop, "write_checkpoint", fill)
        left.update({"last.pth": 1 - model_writes, "model.pth": model_writes})
        with pytest.raises(OSError, match="no space"):
            training.fit(Corners(), Scenes(4), resume=True, **options)
        monkeypatch.undo()
        assert read_checkpoint(tmp_path / "last.pth")["step"] == 1
    model = Corners()
    training.fit(model, Scenes(4), resume=True, **options)
    fresh = Corners()
    fresh.load_state_dict(read_weights(tmp_path / "model.pth")[0])
    assert same(fresh, model)


class Hostile:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("kind", ["empty", "truncated", "flipped", "text", "pickle", "object", "list"])
def test_a_damaged_or_hostile_checkpoint_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.pth"
    training.fit(Corners(), Scenes(4), epochs=1, out=tmp_path)
    data = path.read_bytes()
    if kind in ("object", "list"):
        torch.save({"model": Hostile()} if kind == "object" else [1], path)
    else:
        middle = len(data) // 2
        path.write_bytes(
            {
                "empty": b"",
                "truncated": data[:middle],
                "flipped": data[:20] + bytes([data[20] ^ 255]) + data[21:-40] + bytes(40),
                "text": b"no checkpoint\n",
                "pickle": pickle.dumps(Hostile()),
            }[kind]
        )
    model = Corners()
    with pytest.raises(ValueError, match=r"last\.pth must") as caught:
        training.fit(model, Scenes(4), epochs=2, out=tmp_path, resume=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "owned").exists()
    assert same(model, Corners())


def _without_step(saved: dict[str, Any]) -> None:
    del saved["step"]


def _another_weight(saved: dict[str, Any]) -> None:
    saved["model"]["head.1.weight"] = torch.zeros(3)


def _less_weights(saved: dict[str, Any]) -> None:
    del saved["model"]["head.1.weight"]


def _another_momentum(saved: dict[str, Any]) -> None:
    saved["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(3)


def _no_groups(saved: dict[str, Any]) -> None:
    saved["optimizer"] = {}


def _steps_without_history(saved: dict[str, Any]) -> None:
    saved["step"] = 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_step, "step"),
        (_another_weight, r"head\.1\.weight"),
        (_less_weights, r"head\.1\.weight"),
        (_another_momentum, "optimizer"),
        (_no_groups, "optimizer"),
        (_steps_without_history, "epochs"),
    ],
)
def test_a_checkpoint_whose_parts_do_not_fit_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    training.fit(Corners(), Scenes(4), epochs=1, out=tmp_path)
    saved = read_checkpoint(tmp_path / "last.pth")
    change(saved)
    torch.save(saved, tmp_path / "last.pth")
    model = Corners()
    with pytest.raises(ValueError, match=message):
        training.fit(model, Scenes(4), epochs=2, out=tmp_path, resume=True)
    assert same(model, Corners())


def test_weights_are_read_from_state_dicts_and_safetensors(tmp_path: Path) -> None:
    weights = {"a.weight": torch.arange(3.0), "b": torch.tensor(2)}
    torch.save(weights, tmp_path / "plain.pth")
    found, config = read_weights(tmp_path / "plain.pth")
    assert config == {}
    assert {name: x.tolist() for name, x in found.items()} == {"a.weight": [0, 1, 2], "b": 2}
    torch.save({"a": torch.zeros(1), "b": "text"}, tmp_path / "text.pth")
    with pytest.raises(ValueError, match="'b'"):
        read_weights(tmp_path / "text.pth")
    safetensors = pytest.importorskip("safetensors.torch", reason="needs safetensors, of the extra `safetensors`")
    safetensors.save_file(weights, tmp_path / "w.safetensors")
    assert {name: x.tolist() for name, x in read_weights(tmp_path / "w.safetensors")[0].items()} == {
        "a.weight": [0, 1, 2],
        "b": 2,
    }
    (tmp_path / "broken.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"broken\.safetensors"):
        read_weights(tmp_path / "broken.safetensors")


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be positive and finite, got 0"),
        ({"lr": float("nan")}, "lr must be positive and finite, got nan"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"momentum": -0.1}, "momentum must be non-negative and finite, got -0.1"),
        ({"flip": 1.5}, "flip must be a probability, got 1.5"),
        ({"scale": (1.2, 0.8)}, "scale must be"),
        ({"milestones": (3, 2)}, "milestones must be increasing"),
        ({"optimizer": "lion"}, "optimizer must be one of sgd, adamw, got 'lion'"),
        ({"schedule": "linear"}, "schedule must be one of"),
        ({"precision": "fp8"}, "precision must be one of"),
        ({"precision": "fp16"}, "must be on CUDA, got cpu"),
        ({"save_every": 0}, "save_every must be at least 1"),
        ({"resume": True}, "resume must go with out"),
    ],
)
def test_an_option_out_of_its_range_is_refused(options: dict[str, Any], message: str) -> None:
    data = Scenes(4)
    with pytest.raises(ValueError, match=message):
        training.fit(Corners(), data, **{"epochs": 1, **options})
    assert data.seen == []


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ValueError, match="dataset must have an image"):
        training.fit(Corners(), Scenes(0), epochs=1)
    with pytest.raises(ValueError, match="requires a gradient"):
        training.fit(Corners().requires_grad_(False), Scenes(2), epochs=1)

    class Silent(Corners):
        def forward(self, images: list[Tensor], targets: list[dict[str, Any]]) -> Any:
            return [super().forward(images, targets)]

    with pytest.raises(TypeError, match="model must return a dict of losses in training mode, got list"):
        training.fit(Silent(), Scenes(2), epochs=1)


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    class Diverging(Corners):
        def forward(self, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
            losses = super().forward(images, targets)
            return losses | {"loss_far": losses["loss_far"] * (float("inf") if len(self.jitter_seeds) > 4 else 1)}

    with pytest.raises(FloatingPointError, match="loss_far is not finite"):
        training.fit(Diverging(), Scenes(8), epochs=1, batch_size=4, save_every=1, out=tmp_path)
    assert all(x.isfinite().all() for x in read_checkpoint(tmp_path / "last.pth")["model"].values())


def test_a_run_is_neither_overwritten_nor_mixed_with_another(tmp_path: Path) -> None:
    training.fit(Corners(), Scenes(4), epochs=2, out=tmp_path, config={"model": "a"})
    before = (tmp_path / "last.pth").read_bytes()
    refused: list[tuple[dict[str, Any], str]] = [
        ({"epochs": 3}, "out must hold no run"),
        ({"epochs": 3, "resume": True}, "config must be that of"),
        (
            {"epochs": 3, "resume": True, "config": {"model": "a"}, "lr": 0.1},
            r"lr must be that of .*, 0.005, .* got 0.1",
        ),
        ({"epochs": 3, "resume": True, "config": {"model": "a"}, "seed": 1}, "seed must be that of"),
        ({"epochs": 1, "resume": True, "config": {"model": "a"}}, "epochs must be at least those of .*, 2, .* got 1"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            training.fit(Corners(), Scenes(4), out=tmp_path, **options)
    with pytest.raises(ValueError, match="images must be that of"):
        training.fit(Corners(), Scenes(5), epochs=3, resume=True, config={"model": "a"}, out=tmp_path)
    assert (tmp_path / "last.pth").read_bytes() == before


# ---- augmentation


def _painted(boxes: Tensor, height: int = 40, width: int = 60) -> Tensor:
    """An image that is bright in the boxes, whose corners are integers."""
    image = torch.zeros(3, height, width)
    for x1, y1, x2, y2 in boxes.int().tolist():
        image[:, y1:y2, x1:x2] = 1
    return image


@pytest.mark.parametrize(("flip", "vertical"), [(1, 0), (0, 1), (1, 1)])
def test_flipped_boxes_lie_on_the_flipped_objects(flip: float, vertical: float) -> None:
    target = {"boxes": torch.tensor([[3.0, 5, 13, 9], [40, 20, 60, 40]]), "labels": torch.tensor([1, 2])}
    target["masks"] = torch.stack([_painted(box[None])[0] for box in target["boxes"]]).to(torch.uint8)
    image, changed = augment(
        _painted(target["boxes"]), target, flip=flip, vertical_flip=vertical, scale=(1, 1), generator=torch.Generator()
    )
    assert torch.equal(image, _painted(changed["boxes"]))
    assert not torch.equal(changed["boxes"], target["boxes"])
    assert torch.equal(changed["masks"].sum(0).float(), image[0])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("factor", [0.5, 2])
def test_zoomed_boxes_lie_on_the_zoomed_objects(factor: float, seed: int) -> None:
    boxes = torch.tensor([[4.0, 6, 20, 16], [30, 24, 56, 36]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 2]), "image_id": 3, "area": torch.tensor([160.0, 312.0])}
    target["masks"] = torch.stack([_painted(box[None])[0] for box in boxes])
    image, changed = augment(
        _painted(boxes),
        target,
        flip=0,
        vertical_flip=0,
        scale=(factor, factor),
        generator=torch.Generator().manual_seed(seed),
    )
    assert image.shape == (3, 40, 60)
    assert changed["image_id"] == 3
    assert len(changed["labels"]) == len(changed["boxes"]) == len(changed["masks"])
    ys, xs = torch.arange(40.0), torch.arange(60.0)
    for box, mask in zip(changed["boxes"], changed["masks"], strict=True):
        x1, y1, x2, y2 = box
        inside = ((ys >= y1) & (ys + 1 <= y2))[:, None] & ((xs >= x1) & (xs + 1 <= x2))
        assert mask[inside].all()
        assert mask.sum() <= (x2 - x1 + 1) * (y2 - y1 + 1)
        assert image[0, inside].mean() > 0.8
    assert set(changed["area"].tolist()) <= {160 * factor**2, 312 * factor**2}
    assert len(changed["area"]) == len(changed["boxes"])


def test_boxes_that_leave_the_image_are_cut_or_dropped() -> None:
    boxes = torch.tensor([[float(x), 0, x + 10, 40] for x in range(0, 51, 5)])
    target = {"boxes": boxes, "labels": torch.arange(11)}
    for seed in range(20):
        _, changed = augment(
            _painted(boxes),
            target,
            flip=0,
            vertical_flip=0,
            scale=(2, 2),
            generator=torch.Generator().manual_seed(seed),
        )
        found = changed["boxes"]
        assert (found[:, :2] >= 0).all()
        assert (found[:, 2:] <= torch.tensor([60, 40])).all()
        # Each box is 20 x 80 after the zoom, of which at most 20 x 40 is visible.
        assert ((found[:, 2] - found[:, 0]) * 40 >= 0.25 * 1600).all()
        assert 0 < len(found) < 11
