"""Defense in two processes with gloo: replicas and shards make what one process makes.

Run by pytest this file starts itself twice as a program, which saves what the tests look at.
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
from torch.nn.parallel import DistributedDataParallel

from paramcorrupt import Defense, relative

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

WORLD = 2
CASES: dict[str, dict[str, Any]] = {
    "average": {"eps": 0.3},
    "inf": {"eps": relative(0.05), "p": float("inf"), "risk": "mix"},
    "tensors": {"eps": relative(0.1), "scope": "tensor", "steps": 1, "step_size": 1, "risk": "last"},
    "few": {"eps": 0.3, "n": 20},
    "other norm": {"eps": 0.3, "p": 1.5, "n": 40},
    "one norm": {"eps": 0.3, "p": 1},
}


class Net(nn.Module):
    """Layers that two processes can halve, that they cannot, and one of which the second process gets nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.odd, self.one = nn.Linear(16, 32), nn.Linear(32, 7), nn.Linear(7, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(self.odd(self.wide(x).tanh()).tanh())


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().double()


def one_weight() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(16, 6, bias=False).double()


def batch(step: int, rank: int | None) -> Tensor:
    """That of a process in a step, or of all processes."""
    if rank is None:
        return torch.cat([batch(step, each) for each in range(WORLD)])
    return torch.randn(8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(100 * step + rank))


def train(model: nn.Module, optimizer: Defense, rank: int | None, spoiled: int | None = None) -> list[Tensor]:
    """Three steps; in the step `spoiled` the first process has a loss that is not finite."""
    for step in range(3):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            x = batch(step, rank)
            loss = (model(x) - x[:, :1]).square().mean()
            (loss * float("inf") if step == spoiled and rank == 0 else loss).backward()
            return loss

        optimizer.step(closure)
    return [p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in model.parameters()]


def scenarios(rank: int) -> dict[str, Any]:
    from torch.distributed.fsdp import fully_shard

    results: dict[str, Any] = {}
    for name, options in CASES.items():
        model = DistributedDataParallel(net())
        results[f"replicas, {name}"] = train(model, Defense(model, torch.optim.SGD, lr=0.1, **options), rank)
        model = net()
        fully_shard(model.wide)
        fully_shard(model)
        results[f"shards, {name}"] = train(model, Defense(model, torch.optim.SGD, lr=0.1, **options), rank)
    model = one_weight()
    fully_shard(model)
    results["one weight"] = train(model, Defense(model, torch.optim.SGD, lr=0.1, **CASES["inf"]), rank)
    model = net()
    fully_shard(model)
    optimizer = Defense(model, torch.optim.SGD, lr=0.1, eps=0.3)
    results["spoiled"] = train(model, optimizer, rank, spoiled=1)
    results["skipped"] = optimizer.skipped_steps
    return results


@pytest.fixture(scope="module")
def of_both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("distributed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(WORLD), "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * WORLD, "\n".join(outputs)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["replicas", "shards"])
def test_two_processes_train_as_one_does_on_both_batches(of_both: Any, kind: str, case: str) -> None:
    model = net()
    expected = train(model, Defense(model, torch.optim.SGD, lr=0.1, **CASES[case]), None)
    for result in of_both:
        for ours, theirs in zip(result[f"{kind}, {case}"], expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_the_largest_element_of_one_sharded_weight_is_that_of_all_shards(of_both: Any) -> None:
    model = one_weight()
    expected = train(model, Defense(model, torch.optim.SGD, lr=0.1, **CASES["inf"]), None)
    for result in of_both:
        torch.testing.assert_close(result["one weight"], expected, rtol=1e-9, atol=1e-12)


def test_all_processes_skip_a_step_whose_gradient_is_not_finite_in_one(of_both: Any) -> None:
    assert [result["skipped"] for result in of_both] == [1, 1]
    assert all(p.isfinite().all() for result in of_both for p in result["spoiled"])


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    store = torch.distributed.FileStore(str(folder / "store"), WORLD)
    torch.distributed.init_process_group(
        "gloo", rank=rank, world_size=WORLD, store=store, timeout=timedelta(seconds=300)
    )
    torch.set_num_threads(1)
    torch.save(scenarios(rank), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
