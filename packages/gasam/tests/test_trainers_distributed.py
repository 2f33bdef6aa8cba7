"""Two processes with gloo train by Hugging Face's Trainer and by Lightning: replicas stay equal, each along its own
ascent, and together they make what one process makes of the whole batch.

Run by pytest this file starts itself twice as a program, which saves the weights that it trained.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, SequentialSampler

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = [
    pytest.mark.slow,  # a process needs ten seconds to import either library
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed"),
]

WORLD, BATCH, STEPS, LR = 2, 4, 5, 0.1
OPTIONS: dict[str, Any] = {"rho": 0.1, "reference": "global"}


class Net(nn.Module):
    """Takes and gives what models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.outer(self.inner(x).tanh())
        return {"loss": cross_entropy(logits, labels), "logits": logits}


def examples() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(WORLD * BATCH * STEPS, 8, generator=generator)
    return [{"x": row, "labels": (row.sum() > 0).long()} for row in x]


def by_transformers(folder: Path, batch: int, **options: Any) -> nn.Module:
    from transformers import TrainingArguments

    from gasam.integrations.transformers import SAMTrainer

    class InOrder(SAMTrainer):
        def _get_train_sampler(self, *args: Any) -> SequentialSampler:
            return SequentialSampler(examples())

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        num_train_epochs=1,
        learning_rate=LR,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        ddp_backend="gloo" if torch.distributed.is_torchelastic_launched() else None,
    )
    model = Net()
    base = torch.optim.SGD(model.parameters(), LR, momentum=0.9)
    InOrder(model, arguments, train_dataset=examples(), sam=OPTIONS | options, optimizers=(base, None)).train()
    return model


def by_lightning(folder: Path, batch: int, **options: Any) -> nn.Module:
    from lightning.pytorch import LightningModule, Trainer

    from gasam import GASAM
    from gasam.integrations.lightning import SharpnessAware

    class Module(SharpnessAware, LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            return self.net(**batch)["loss"]

        def configure_optimizers(self) -> GASAM:
            return GASAM(self, torch.optim.SGD, lr=LR, momentum=0.9, **OPTIONS | options)

    module = Module()
    distributed = torch.distributed.is_torchelastic_launched()
    trainer = Trainer(
        accelerator="cpu",
        devices=WORLD if distributed else 1,
        strategy="ddp" if distributed else "auto",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # it would shuffle
        default_root_dir=folder,
    )
    mine = examples()[int(os.environ["RANK"]) :: WORLD] if distributed else examples()
    trainer.fit(module, DataLoader(mine, batch))  # type: ignore[arg-type]
    return module.net


TRAINERS = {"transformers": by_transformers, "lightning": by_lightning}


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def main(library: str, folder: Path) -> None:
    """One of two processes, or one alone with batches of twice the size."""
    alone = not torch.distributed.is_torchelastic_launched()
    batch = BATCH * WORLD if alone else BATCH
    trained = {sync: weights(TRAINERS[library](folder, batch, sync_ascent=sync)) for sync in (False, True)}
    torch.save(trained, folder / f"{0 if alone else torch.distributed.get_rank()}.pt")


@pytest.fixture(scope="module", params=TRAINERS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Sequence[Any]]:
    """What the two processes trained with a library, without and with a common ascent."""
    pytest.importorskip(request.param, reason=f"needs the extra gasam[{request.param}]")
    folder = tmp_path_factory.mktemp(request.param)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD}"]
    command = [sys.executable, *launch, __file__, request.param, str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return request.param, [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("sync", [False, True])
def test_replicas_stay_equal_bit_for_bit(trained: tuple[str, Sequence[Any]], sync: bool) -> None:
    _, (first, second) = trained
    assert all(torch.equal(p, second[sync][name]) for name, p in first[sync].items())
    start = weights(Net())
    assert all(not torch.equal(p, start[name]) for name, p in first[sync].items())


def test_each_process_ascends_along_its_own_gradient_unless_told(trained: tuple[str, Sequence[Any]]) -> None:
    _, (first, _) = trained
    assert max((p - first[True][name]).abs().max() for name, p in first[False].items()) > 1e-5


def test_a_common_ascent_makes_what_one_process_makes(trained: tuple[str, Sequence[Any]], tmp_path: Path) -> None:
    library, (first, _) = trained
    done = subprocess.run(
        [sys.executable, __file__, library, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    alone = torch.load(tmp_path / "0.pt")[True]
    for name, p in first[True].items():
        torch.testing.assert_close(p, alone[name], rtol=0, atol=1e-6)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
