"""Two processes with gloo on CPU train what one trains on the same global batch.

Run by pytest this file starts itself twice as a program; each process saves what it has, the tests look at both.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torchvision", reason="detectors are torchvision's")

from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.ssd import SSD
from torchvision.ops import MultiScaleRoIAlign

from iounet.detection import StandaloneIoUNet, add_iou_net

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

WORLD, STEPS, PER_RANK = 2, 3, 2


class Maps(nn.Module):
    """Two maps, of strides 4 and 8."""

    def __init__(self, second: int = 8) -> None:
        super().__init__()
        self.out_channels = 8 if second == 8 else [8, second]
        self.fine, self.coarse = nn.Conv2d(3, 8, 7, 4, 3), nn.Conv2d(8, second, 3, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.fine(x)
        return {"0": fine, "1": self.coarse(fine.relu())}


def nets() -> dict[str, StandaloneIoUNet]:
    torch.manual_seed(0)
    ssd = SSD(Maps(12), DefaultBoxGenerator([[2], [2]]), (64, 64), 3)
    return {
        "with its backbone": StandaloneIoUNet(Maps(), 3, samples_per_image=32),
        "beside a detector": StandaloneIoUNet.from_detector(ssd, samples_per_image=32, loss="bce", target="max"),
    }


def batch(step: int) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """All images of a step, and as many boxes in each."""
    generator = torch.Generator().manual_seed(step)
    images = [torch.rand(3, 64, 64, generator=generator) for _ in range(WORLD * PER_RANK)]
    targets = []
    for k in range(len(images)):
        low = 30 * torch.rand(2, 2, generator=generator)
        boxes = torch.cat([low, low + 10 + 20 * torch.rand(2, 2, generator=generator)], 1)
        targets.append({"boxes": boxes, "labels": torch.tensor([1, 2]), "jitter_seed": 100 * step + k})
    return images, targets


def train(model: nn.Module, part: slice) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9)
    model.train()
    for step in range(STEPS):
        images, targets = batch(step)
        optimizer.zero_grad()
        sum(model(images[part], targets[part]).values()).backward()
        optimizer.step()


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in model.named_parameters() if x.requires_grad}


# --- in the processes ------------------------------------------------------------------------------------------------


def standalone(rank: int) -> dict[str, dict[str, Tensor]]:
    found = {}
    for name, net in nets().items():
        train(nn.parallel.DistributedDataParallel(net), slice(PER_RANK * rank, PER_RANK * (rank + 1)))
        found[name] = parameters(net)
    return found


def joint_without_ground_truth_in_one_process(rank: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = FasterRCNN(
        Maps(),
        num_classes=3,
        min_size=64,
        max_size=64,
        rpn_anchor_generator=AnchorGenerator(((12,), (24,)), ((1.0,),) * 2),
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 7, 2),
        box_head=TwoMLPHead(8 * 49, 1024),
    )
    wrapped = nn.parallel.DistributedDataParallel(add_iou_net(model, samples_per_image=32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(2):
        images, targets = batch(step)
        if rank == 1:
            targets = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)} for _ in targets]
        optimizer.zero_grad()
        sum(wrapped(images[:PER_RANK], targets[:PER_RANK]).values()).backward()
        optimizer.step()
    return parameters(model)


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), WORLD)
    torch.distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=120)
    )
    found = {"standalone": standalone(rank), "joint": joint_without_ground_truth_in_one_process(rank)}
    torch.save(found, folder / f"{rank}.pth")
    torch.distributed.destroy_process_group()


# --- the tests -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    programs = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    outputs = [program.communicate(timeout=300)[0] for program in programs]
    assert not any(program.returncode for program in programs), "\n".join(outputs)
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("name", ["with its backbone", "beside a detector"])
def test_two_processes_train_what_one_does_on_the_same_images(name: str, processes: list[dict[str, Any]]) -> None:
    start, net, half = (nets()[name] for _ in range(3))
    train(net, slice(None))
    train(half, slice(0, PER_RANK))
    together, first = parameters(net), processes[0]["standalone"][name]
    assert together.keys() == first.keys()
    assert all(torch.equal(x, processes[1]["standalone"][name][key]) for key, x in first.items())

    def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
        return max((x - b[key]).abs().max().item() for key, x in a.items())

    assert largest_difference(together, first) <= 1e-5
    assert largest_difference(together, parameters(start)) > 1e-2
    assert largest_difference(together, parameters(half)) > 1e-3


def test_a_process_without_ground_truth_does_not_stop_the_others(processes: list[dict[str, Any]]) -> None:
    first, second = (found["joint"] for found in processes)
    assert any(name.startswith("roi_heads.iou_head") for name in first)
    assert all(torch.equal(x, second[name]) for name, x in first.items())
    assert all(x.isfinite().all() for x in first.values())


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
