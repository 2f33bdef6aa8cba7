"""Distributed, in one place: two processes of a group do what one does alone, for every package and for some together.

Each scenario runs in two processes of a group of gloo, and in one alone afterwards. It says how it is done, by `Place`;
what it returns must be the same in both processes, bit for bit, and that of the one alone.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as group
import torch.distributed.checkpoint as dcp
from together.apart import PATIENCE, start
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORLD = 2
SCENARIOS: dict[str, Callable[[Place], dict[str, Any]]] = {}

pytestmark = pytest.mark.skipif(
    not (group.is_available() and group.is_gloo_available()),
    reason="this build of torch has no gloo",
)


@dataclass(frozen=True)
class Place:
    """Where a scenario runs: in one process of a group, or alone; and how the group shares a model."""

    rank: int | None
    folder: Path

    @property
    def alone(self) -> bool:
        return self.rank is None

    def part(self, rows: Any) -> Any:
        """This process's half of a batch."""
        if self.rank is None:
            return rows
        half = len(rows) // WORLD
        return rows[self.rank * half : (self.rank + 1) * half]

    def replicated(self, model: nn.Module) -> nn.Module:
        return model if self.alone else nn.parallel.DistributedDataParallel(model)

    def sharded(self, model: nn.Module, *parts: nn.Module) -> nn.Module:
        """By FSDP2; `parts` are gathered on their own."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        if not self.alone:
            mesh = init_device_mesh("cpu", (WORLD,))
            for part in (*parts, model):
                fully_shard(part, mesh=mesh)
        return model


def whole(x: Tensor) -> Tensor:
    return (x.full_tensor() if hasattr(x, "full_tensor") else x).detach().clone()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("module."): whole(x) for name, x in model.named_parameters() if x.requires_grad}


# --- optimizers: one training, as replicas and as shards ------------------------------------------------------------


class Net(nn.Module):
    """Layers that two processes can halve, that they cannot, and one of which the second process gets nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.odd, self.one = nn.Linear(16, 32), nn.Linear(32, 7), nn.Linear(7, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.one(self.odd(self.wide(x).tanh()).tanh())


def batch(step: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    return x, x[:, :1].sin() + x[:, 1:2] * x[:, 2:3]


def adamod(model: nn.Module) -> torch.optim.Optimizer:
    from adamod import AdaMod

    return AdaMod(model.parameters(), lr=1e-2, beta3=0.9)


def gasam(model: nn.Module) -> torch.optim.Optimizer:
    from gasam import GASAM

    return GASAM(model, torch.optim.SGD, 0.1, lr=0.05, momentum=0.9, **ascent_of(model))


def gasam_over_adamod(model: nn.Module) -> torch.optim.Optimizer:
    from adamod import AdaMod
    from gasam import GASAM

    return GASAM(model, AdaMod, 0.05, lr=1e-2, beta3=0.9, **ascent_of(model))


def ascent_of(model: nn.Module) -> dict[str, bool]:
    """Along the gradient of the whole batch, as one process ascends."""
    return {"sync_ascent": True} if isinstance(model, nn.parallel.DistributedDataParallel) else {}


def defense_over_adamod(model: nn.Module) -> torch.optim.Optimizer:
    from adamod import AdaMod
    from paramcorrupt import Defense

    return Defense(model, AdaMod, eps=0.3, lr=1e-2, beta3=0.9)


def train(place: Place, model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x, y = map(place.part, batch(step))

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def training(how: str, make: Callable[[nn.Module], torch.optim.Optimizer], place: Place) -> dict[str, Any]:
    """Six steps, with a checkpoint after three; the one alone also resumes from what two processes wrote."""
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model = getattr(place, how)(Net())
    optimizer = make(model)
    train(place, model, optimizer, range(3))
    optimizer.zero_grad()
    if not place.alone:
        dcp.save(dict(zip(PARTS, get_state_dict(model, base_of(optimizer)), strict=True)), checkpoint_id=place.folder)
        if place.rank == 0:  # what those helpers do not know of
            torch.save(optimizer.state_dict().get("gasam"), place.folder / "gasam.pt")
    train(place, model, optimizer, range(3, 6))
    found = {"weights": weights_of(model)}
    if place.alone:
        model = Net()
        optimizer = make(model)
        train(place, model, optimizer, range(20, 22))  # what a stranger has learnt must be gone
        optimizer.zero_grad()
        read = dict(zip(PARTS, get_state_dict(model, base_of(optimizer)), strict=True))
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "torch.distributed is .*assuming the intent is to load in a single process"
            )
            dcp.load(read, checkpoint_id=place.folder, no_dist=True)
        weights, states = read.values()
        set_state_dict(model, base_of(optimizer), model_state_dict=weights, optim_state_dict=states)
        if (own := torch.load(place.folder / "gasam.pt")) is not None:
            optimizer.load_state_dict({**optimizer.state_dict(), "gasam": own})
        train(place, model, optimizer, range(3, 6))
        found["resumed"] = weights_of(model)
    return found


def base_of(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    return getattr(optimizer, "base_optimizer", optimizer)


PARTS = ("weights", "states")
OPTIMIZERS = (adamod, gasam, gasam_over_adamod, defense_over_adamod)
TRAININGS = {f"{make.__name__} {how}": (how, make) for make in OPTIMIZERS for how in ("replicated", "sharded")}
SCENARIOS |= {name: partial(training, how, make) for name, (how, make) in TRAININGS.items()}


# --- the other packages ---------------------------------------------------------------------------------------------


def scenario(function: Callable[[Place], dict[str, Any]]) -> Callable[[Place], dict[str, Any]]:
    SCENARIOS[function.__name__.replace("_", " ")] = function
    return function


@scenario
def paramcorrupt_scans_shards_that_gasam_and_adamod_trained(place: Place) -> dict[str, Any]:
    from paramcorrupt import corrupted, corruption, scan

    model = place.sharded(Net())
    train(place, model, gasam_over_adamod(model), range(4))
    data = [batch(100), batch(101)]  # the same in all processes
    before = weights_of(model)
    report = scan(model, nn.functional.mse_loss, data, verify="all", random=1, progress=False)
    sum(nn.functional.mse_loss(model(x), y) for x, y in data).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    with corrupted(model, corruption(gradients, eps=0.3, n=40)) as applied:
        worst = weights_of(model)
    return {
        "rises": rises(report),
        "worst": worst,
        "changed": applied.changed,
        "returned": all(torch.equal(x, before[name]) for name, x in weights_of(model).items()),
    }


def rises(report: Any) -> dict[str, Tensor]:
    """In the order of the ranking: what was predicted, what was measured, and what chance does."""
    return {row.group: torch.tensor([row.predicted, row.measured, row.random_mean]).double() for row in report}


class Maps(nn.Module):
    """A backbone of two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.out_channels = 8
        self.fine, self.coarse = nn.Conv2d(3, 8, 7, 4, 3), nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.fine(x)
        return {"0": fine, "1": self.coarse(fine.relu())}


def iou_net(how: str, place: Place) -> dict[str, Any]:
    """With a backbone of its own, trained by GASAM over AdaMod, then asked about boxes that it has not seen."""
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    from iounet.detection import StandaloneIoUNet

    torch.manual_seed(0)
    net = StandaloneIoUNet(Maps(), 3, samples_per_image=8).double()
    start = weights_of(net)
    model = getattr(place, how)(net)
    optimizer = gasam_over_adamod(model)
    generator = torch.Generator().manual_seed(1)
    for step in range(3):
        images = [torch.rand(3, 64, 64, dtype=torch.float64, generator=generator) for _ in range(2 * WORLD)]
        corners = 30 * torch.rand(len(images), 2, 2, dtype=torch.float64, generator=generator)
        sides = 10 + 20 * torch.rand(len(images), 2, 2, dtype=torch.float64, generator=generator)
        targets = [
            {"boxes": boxes, "labels": torch.tensor([1, 2]), "jitter_seed": 10 * step + k}
            for k, boxes in enumerate(torch.cat([corners, corners + sides], 2))
        ]

        own = place.part(images), place.part(targets)

        def closure(own: Any = own) -> Tensor:
            optimizer.zero_grad()
            loss = model(*own)["loss_iou"]
            loss.backward()
            return loss

        optimizer.step(closure)
    trained = weights_of(net)
    if isinstance(net, FSDPModule):
        register_fsdp_forward_method(net, "rescore")
    detections = [{"boxes": t["boxes"] + 3, "labels": t["labels"], "scores": torch.ones(2).double()} for t in targets]
    found = net.eval().rescore(images, detections)
    return {
        "weights": trained,
        "moved": [name for name, x in trained.items() if (x - start[name]).abs().max() > 1e-3],
        "boxes": torch.stack([one["boxes"] for one in found]),
        "ious": torch.stack([one["ious"] for one in found]),
    }


SCENARIOS |= {f"iounet {how}": partial(iou_net, how) for how in ("replicated", "sharded")}


@scenario
def vade_robust_fits_and_paramcorrupt_scans_its_shards(place: Place) -> dict[str, Any]:
    from sklearn.datasets import load_digits

    from paramcorrupt import scan
    from vade_robust import VaDE
    from vade_robust.callbacks import Checkpoint

    X = load_digits().data[:301] / 16
    settings: dict[str, Any] = {"n_clusters": 4, "hidden": (16,), "pretrain_epochs": 2, "batch_size": 64, "epochs": 3}
    folder = place.folder / ("alone" if place.alone else "together")
    model = VaDE(**settings, random_state=0, start="gmm", callbacks=[Checkpoint(folder, every=1)]).fit(X)
    found = {"labels": model.labels_.tolist(), "weights": weights_of(model.module_)}
    if place.alone:  # goes on from what two processes wrote after their second epoch of three
        (place.folder / "together" / "train-000003.safetensors").unlink()
        resumed = VaDE(**settings, random_state=0, start="gmm").fit(X, resume=place.folder / "together")
        found["resumed"] = weights_of(resumed.module_)
    networks = model.module_
    autoencoder = place.sharded(nn.Sequential(networks.encoder, networks.mean, networks.decoder))
    x = torch.from_numpy(X).float()
    data = [(x, x)]
    loss = nn.functional.binary_cross_entropy_with_logits
    found["rises"] = rises(scan(autoencoder, loss, data, verify="all", random=1, progress=False))
    return found


@scenario
def imgskipgram_averages(place: Place) -> dict[str, Any]:
    import numpy as np
    from gensim.test.utils import datapath

    from imgskipgram import ImageBank, ImageSkipGram, distributed

    lines = Path(datapath("lee_background.cor")).read_text(encoding="utf-8").splitlines()[:80]
    words = ("australia", "police", "israel", "report")
    features = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32)
    bank = ImageBank.from_features(features, [words[i % 4] for i in range(20)])

    def fitted(shards: list[list[str]]) -> ImageSkipGram:
        model = ImageSkipGram(vector_size=20, workers=1, min_count=3, deterministic=True)
        if place.rank is None:
            return model.fit(lines, bank)
        return distributed.fit(model, shards[place.rank], bank, sync_every=4000)

    halves, lonely = fitted([lines[:50], lines[50:]]), fitted([[], lines])
    if place.rank == 0:
        halves.save(place.folder / "model.npz")
    saved = ImageSkipGram.load(place.folder / "model.npz") if place.alone else halves
    return {
        "words": saved.wv.index_to_key,
        "vectors": torch.from_numpy(saved.wv.vectors),
        "images": torch.from_numpy(saved.image_vectors),
        "lonely": torch.from_numpy(lonely.wv.vectors),
        "loss": halves.losses_[-1]["text"],
    }


# --- the processes --------------------------------------------------------------------------------------------------


def run(name: str, place: Place) -> None:
    """A scenario, which leaves a file of its results."""
    warnings.simplefilter("error")
    if not place.alone:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        store, limit = group.FileStore(str(place.folder / "store"), WORLD), timedelta(seconds=PATIENCE / 2)
        group.init_process_group("gloo", store=store, rank=place.rank, world_size=WORLD, timeout=limit)
    result = SCENARIOS[name](place)
    if not place.alone:
        group.destroy_process_group()
    torch.save(result, place.folder / f"{place.rank}.pt")


@pytest.fixture
def results(tmp_path: Path) -> Callable[[str], tuple[dict[str, Any], ...]]:
    """What a scenario gave: in the two processes of a group, and in the one alone."""

    def of(name: str) -> tuple[dict[str, Any], ...]:
        for ranks in (range(WORLD), [None]):
            processes = [start(run, name, Place(rank, tmp_path)) for rank in ranks]
            for process in processes:
                process.join()
            assert not any(process.exitcode for process in processes), "what they say is captured"
        return tuple(torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (*range(WORLD), None))

    return of


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        torch.testing.assert_close(
            actual[name], x, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_train_as_one_and_one_goes_on_from_their_checkpoint(results: Any, name: str) -> None:
    first, second, alone = results(name)
    start = {key: x.detach() for key, x in Net().named_parameters()}
    assert_close(second["weights"], first["weights"], 0)
    assert_close(first["weights"], alone["weights"], 1e-10)
    assert_close(first["weights"], alone["resumed"], 1e-10)
    assert all((x - start[key]).abs().max() > 1e-3 for key, x in first["weights"].items())


def test_paramcorrupt_finds_in_shards_what_it_finds_in_whole_weights(results: Any) -> None:
    first, second, alone = results("paramcorrupt scans shards that gasam and adamod trained")
    assert list(first["rises"]) == list(second["rises"]) == list(alone["rises"])
    assert_close(second["rises"], first["rises"], 0)
    assert_close(first["rises"], alone["rises"], 1e-10)
    assert all(predicted > chance for predicted, _, chance in first["rises"].values())
    assert_close(second["worst"], first["worst"], 0)
    assert_close(first["worst"], alone["worst"], 1e-10)
    assert first["changed"] == alone["changed"] == 40
    assert first["returned"] is second["returned"] is True


@pytest.mark.parametrize("how", ["replicated", "sharded"])
def test_an_iou_net_learns_from_gasam_over_adamod_in_two_processes_what_it_learns_in_one(
    results: Any, how: str
) -> None:
    first, second, alone = results(f"iounet {how}")
    assert_close(second["weights"], first["weights"], 0)
    assert_close(first["weights"], alone["weights"], 1e-10)
    # All but those of the coarse map, which is not asked about small boxes: DDP must not wait for its gradient.
    assert first["weights"].keys() - first["moved"] == {f"source.backbone.coarse.{name}" for name in ("weight", "bias")}
    for name in ("boxes", "ious"):
        assert torch.equal(second[name], first[name])
        torch.testing.assert_close(first[name], alone[name], rtol=0, atol=1e-8)
    assert first["ious"].std() > 0


def test_a_vade_of_two_processes_is_that_of_one_which_goes_on_from_their_checkpoint(results: Any) -> None:
    first, second, alone = results("vade robust fits and paramcorrupt scans its shards")
    assert first["labels"] == second["labels"]
    assert_close(second["weights"], first["weights"], 0)
    # In float32, which is all that fit knows: its tests have the same in float64, to 1e-10.
    assert_close(first["weights"], alone["weights"], 1e-5)
    assert_close(first["weights"], alone["resumed"], 1e-5)
    assert sum(map(int.__ne__, first["labels"], alone["labels"])) <= 3
    assert len(set(first["labels"])) > 1
    assert_close(second["rises"], first["rises"], 0)
    assert_close(first["rises"], alone["rises"], 1e-5)


def test_averaged_skip_grams_have_the_same_bits_and_are_those_of_one_process_where_one_has_all(results: Any) -> None:
    first, second, alone = results("imgskipgram averages")
    for other in (second, alone):  # the one alone has read what the first saved
        assert other["words"] == first["words"]
        assert torch.equal(other["vectors"], first["vectors"])
        assert torch.equal(other["images"], first["images"])
    for other in (second, alone):
        assert torch.equal(other["lonely"], first["lonely"])
    assert not torch.equal(first["lonely"], first["vectors"])
    assert first["loss"] == second["loss"] == pytest.approx(alone["loss"], rel=0.05)


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not shutil.which("java"):
        pytest.skip("Spark needs Java, and there is no java on the path")
    from pyspark.sql import SparkSession

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # what Spark warns of when it starts
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        session = (
            SparkSession.builder.master("local[2]")
            .config("spark.ui.enabled", "false")
            .config("spark.driver.host", "localhost")
            .config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("warehouse")))
            .config("spark.sql.shuffle.partitions", "2")
            .getOrCreate()
        )
        session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


@pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning")
def test_two_workers_of_spark_segment_as_one_process_does(spark: Any) -> None:
    from pyspark.sql.functions import spark_partition_id

    from cws_multidomain import Segmenter
    from cws_multidomain.spark import cut_arrow

    texts = [f"我们在北京大学学习第{i}课。他来了{i % 7}次。" * (1 + i % 3) for i in range(400)]
    segmenter = Segmenter.load()
    segmenter.add_words({"学习第": "force"})
    frame = spark.createDataFrame(list(enumerate(texts)), "id int, text string").repartition(4)
    cut = frame.mapInArrow(
        cut_arrow("text", words={"学习第": "force"}), "id int, text string, tokens array<string>"
    ).withColumn("partition", spark_partition_id())
    rows = sorted(cut.collect())
    assert [row.text for row in rows] == texts
    assert [row.tokens for row in rows] == segmenter.cut_many(texts)
    assert "学习第" in rows[0].tokens
    assert len({row.partition for row in rows}) == 4
