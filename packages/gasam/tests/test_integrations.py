"""Trainers take the steps of a plain loop: micro-batches, clipping, precision, checkpoints, two processes, logs."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, SequentialSampler

import gasam
from gasam import GASAM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STEPS = 4
BATCH = 4
LR = 0.1
Batch = dict[str, Tensor]


def examples(micro_batches: int, repeat: int = 1) -> list[Batch]:
    """Sentences with labels, and each batch of them `repeat` times."""
    generator = torch.Generator().manual_seed(0)
    result = []
    for _ in range(micro_batches):
        words = torch.randint(0, 50, (BATCH, 8), generator=generator)
        labels = torch.randint(0, 2, (BATCH,), generator=generator)
        result += [{"input_ids": x, "labels": y} for x, y in zip(words, labels, strict=True)] * repeat
    return result


def batches(data: list[Batch]) -> list[Batch]:
    loader: DataLoader[Batch] = DataLoader(data, BATCH)  # type: ignore[arg-type]
    return list(loader)


def plain(
    model: nn.Module,
    loss_of: Callable[[Batch], Tensor],
    data: list[Batch],
    *,
    accumulation: int = 1,
    clip: float | None = None,
    average: bool = False,
    **options: Any,
) -> list[float]:
    """A loop without a trainer. Returns the sharpness of each step."""
    optimizer = GASAM(model, torch.optim.SGD, lr=LR, momentum=0.9, **options)
    groups = [p for group in optimizer.param_groups for p in group["params"]]
    pieces = batches(data)
    result = []
    for i in range(0, len(pieces), accumulation):
        sharpness = []
        for batch in pieces[i : i + accumulation]:
            loss = loss_of(batch)
            grads = torch.autograd.grad(loss, groups, allow_unused=True)
            with optimizer.perturbed(grads):
                perturbed = loss_of(batch)
                (perturbed / accumulation / (2 if average else 1)).backward()
            for p, grad in zip(groups, grads, strict=True):
                if average and grad is not None:
                    assert p.grad is not None
                    p.grad += grad / accumulation / 2
            sharpness.append(perturbed.item() - loss.item())
        if clip is not None:
            nn.utils.clip_grad_norm_(groups, clip)
        optimizer.step()
        optimizer.zero_grad()
        result.append(sum(sharpness) / accumulation)
    return result


PRESETS: dict[str, dict[str, Any]] = {
    "GSAM": {},
    "FriendlySAM": {},
    "LookSAM": {"k": 2},
    "MSAM": {"rho": 0.1},
    "WSAM": {},
    "MultiStepRisk": {"steps": 3},
    "SAMON": {"only": lambda name, p: p.ndim == 1},
}


def by_closures(preset: str, model: nn.Module, loss_of: Callable[[Batch], Tensor], data: list[Batch]) -> None:
    """A loop without a trainer, in which the optimizer calls a closure."""
    optimizer = getattr(gasam, preset)(model, torch.optim.SGD, lr=LR, momentum=0.9, **PRESETS[preset])
    for batch in batches(data):

        def closure(batch: Batch = batch) -> Tensor:
            loss = loss_of(batch)
            loss.backward()
            return loss

        optimizer.step(closure)


def assert_same(model: nn.Module, expected: nn.Module, tolerance: float = 1e-6) -> None:
    moved = 0.0
    for (name, a), (_, b) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")
        moved += b.detach().norm().item()
    assert moved > 0


# --- transformers ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:numpy.core is deprecated:DeprecationWarning")  # transformers 4.57 uses it
class TestTransformers:
    """`SAMTrainer`, over SGD with momentum, with a BERT of two layers."""

    @pytest.fixture(autouse=True)
    def library(self) -> Iterator[None]:
        pytest.importorskip("transformers", reason="needs the extra gasam[transformers]")
        yield
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    @staticmethod
    def model(dropout: float = 0.0) -> nn.Module:
        from transformers import BertConfig, BertForSequenceClassification

        torch.manual_seed(0)
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=50,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=16,
                max_position_embeddings=8,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=dropout,
            )
        )
        model.accepts_loss_kwargs = False  # its loss is the mean of a micro-batch
        return model

    @staticmethod
    def trainer(
        model: nn.Module,
        data: list[Batch],
        folder: Path,
        *,
        sam: dict[str, Any] | None = None,
        scaler: torch.amp.GradScaler | None = None,
        base: torch.optim.Optimizer | None = None,
        **arguments: Any,
    ) -> Any:
        from transformers import TrainingArguments

        from gasam.integrations.transformers import SAMTrainer

        class InOrder(SAMTrainer):
            def _get_train_sampler(self, *args: Any) -> SequentialSampler:
                return SequentialSampler(data)

            def create_accelerator_and_postprocess(self) -> None:
                super().create_accelerator_and_postprocess()
                if scaler is not None:
                    self.accelerator.scaler = scaler

            def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
                if scaler is not None:  # clip as with fp16, which accelerate does not offer on the CPU
                    self.accelerator.native_amp, self.accelerator.state._mixed_precision = True, "fp16"
                return super().create_scheduler(*args, **kwargs)

        defaults: dict[str, Any] = {
            "output_dir": str(folder),
            "per_device_train_batch_size": BATCH,
            "num_train_epochs": 1,
            "logging_steps": 1,
            "lr_scheduler_type": "constant",
            "learning_rate": LR,
            "max_grad_norm": 0,
            "report_to": [],
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        base = torch.optim.SGD(model.parameters(), LR, momentum=0.9) if base is None else base
        return InOrder(
            model, TrainingArguments(**defaults | arguments), train_dataset=data, sam=sam, optimizers=(base, None)
        )

    @pytest.mark.parametrize("accumulation", [1, 2])
    @pytest.mark.parametrize("sam", [{}, {"strength_exponent": 0.0, "segments": "global", "risk": "average"}])
    def test_steps_are_those_of_a_plain_loop(self, tmp_path: Path, sam: dict[str, Any], accumulation: int) -> None:
        clip = None if "risk" in sam else 0.5
        data, model = examples(STEPS * accumulation), self.model()
        expected = copy.deepcopy(model).train()
        options = {k: v for k, v in sam.items() if k != "risk"}
        sharpness = plain(
            expected,
            lambda batch: expected(**batch).loss,
            data,
            accumulation=accumulation,
            clip=clip,
            average="risk" in sam,
            **options,
        )
        arguments = {"gradient_accumulation_steps": accumulation, "max_grad_norm": clip or 0}
        trainer = self.trainer(model, data, tmp_path, sam=sam, **arguments)
        trainer.train()
        assert trainer.state.global_step == STEPS
        assert_same(model, expected)
        logged = [entry["sharpness"] for entry in trainer.state.log_history if "loss" in entry]
        assert logged == pytest.approx(sharpness, abs=1e-6)
        assert min(logged) > 1e-4

    @pytest.mark.parametrize("reference", ["global", "none"])  # the running one counts ascents
    def test_equal_micro_batches_are_one_batch(self, tmp_path: Path, reference: str) -> None:
        models = [self.model(), self.model()]
        sam = {"reference": reference, "strength_exponent": 1.0, "rho": 1.0}
        for model, repeat in zip(models, (1, 2), strict=True):
            data = examples(STEPS, repeat)
            self.trainer(model, data, tmp_path, sam=sam, gradient_accumulation_steps=repeat).train()
        assert_same(*models)

    @pytest.mark.parametrize("preset", PRESETS)
    def test_presets_take_the_steps_that_they_take_with_closures(self, tmp_path: Path, preset: str) -> None:
        data, model = examples(STEPS), self.model()
        expected = copy.deepcopy(model).train()
        by_closures(preset, expected, lambda batch: expected(**batch).loss, data)
        self.trainer(model, data, tmp_path, sam={"optimizer": getattr(gasam, preset), **PRESETS[preset]}).train()
        assert_same(model, expected)

    @pytest.mark.parametrize("preset", ["GSAM", "WSAM", "MultiStepRisk"])
    def test_presets_mix_the_gradients_of_all_micro_batches(self, tmp_path: Path, preset: str) -> None:
        models = [self.model(), self.model()]
        for model, repeat in zip(models, (1, 2), strict=True):
            sam = {"optimizer": getattr(gasam, preset), **PRESETS[preset]}
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if repeat == 2 else None
            arguments = {"gradient_accumulation_steps": repeat, "scaler": scaler}
            self.trainer(model, examples(STEPS, repeat), tmp_path, sam=sam, **arguments).train()
        assert_same(*models)

    def test_sharpness_is_the_mean_since_the_last_entry(self, tmp_path: Path) -> None:
        trainers = [self.trainer(self.model(), examples(STEPS), tmp_path, logging_steps=n) for n in (1, 2)]
        for trainer in trainers:
            trainer.train()
        often, seldom = ([x["sharpness"] for x in t.state.log_history if "loss" in x] for t in trainers)
        assert seldom == pytest.approx([sum(often[:2]) / 2, sum(often[2:]) / 2], abs=1e-6)

    def test_default_base_is_what_the_trainer_would_make(self, tmp_path: Path) -> None:
        model = self.model()
        trainer = self.trainer(model, examples(STEPS), tmp_path, sam={"optimizer": GASAM, "rho": 0.1})
        trainer.optimizer = None
        trainer.train()
        optimizer = trainer.optimizer.optimizer
        assert type(optimizer) is GASAM
        assert type(optimizer.base_optimizer) is torch.optim.AdamW
        assert [group["rho"] for group in optimizer.param_groups] == [0.1, 0.1]
        assert "bert.embeddings.word_embeddings.weight" in optimizer.strengths()

    def test_steps_without_ascent_cost_one_pass(self, tmp_path: Path) -> None:
        model, passes = self.model(), []
        model.register_forward_pre_hook(lambda *args: passes.append(1))
        self.trainer(model, examples(STEPS), tmp_path, sam={"every": 2}).train()
        assert len(passes) == STEPS + STEPS // 2

    def test_parameters_that_do_not_train_are_left_out(self, tmp_path: Path) -> None:
        model = self.model()
        for p in model.bert.embeddings.parameters():
            p.requires_grad_(False)
        before = copy.deepcopy(model.bert.embeddings.state_dict())
        base = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], LR)
        trainer = self.trainer(model, examples(STEPS), tmp_path, base=base, sam={"only": "norm"})
        trainer.train()
        assert all(torch.equal(x, before[name]) for name, x in model.bert.embeddings.state_dict().items())
        names = trainer.optimizer.optimizer.strengths()
        assert names
        assert all("LayerNorm" in name for name in names)

    def test_an_optimizer_of_the_family_is_used_as_it_is(self, tmp_path: Path) -> None:
        model = self.model()
        optimizer = GASAM(model, torch.optim.SGD, rho=0.3, lr=LR)
        trainer = self.trainer(model, examples(STEPS), tmp_path, base=optimizer)
        trainer.train()
        assert trainer.optimizer.optimizer is optimizer

    def test_a_checkpoint_resumes_exactly(self, tmp_path: Path) -> None:
        data = examples(2 * STEPS)
        arguments = {"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
        models = [self.model(dropout=0.1), self.model(dropout=0.1)]
        self.trainer(models[0], data, tmp_path, **arguments).train()
        resumed = self.trainer(models[1], data, tmp_path / "again", **arguments)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        for (name, a), b in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
            assert torch.equal(a, b), name

    def test_bfloat16_autocast_sees_the_perturbed_weights(self, tmp_path: Path) -> None:
        data, model = examples(STEPS), self.model()
        expected = copy.deepcopy(model).train()

        def loss(batch: Batch) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return expected(**batch).loss

        sharpness = plain(expected, loss, data, rho=0.5)
        trainer = self.trainer(model, data, tmp_path, sam={"rho": 0.5}, bf16=True)
        trainer.train()
        assert_same(model, expected)
        logged = [entry["sharpness"] for entry in trainer.state.log_history if "loss" in entry]
        assert logged == pytest.approx(sharpness, abs=1e-6)
        assert min(logged) > 1e-3

    @pytest.mark.parametrize("clip", [0.0, 0.5])
    @pytest.mark.parametrize("sam", [{}, {"risk": "average"}, {"reference": "none", "strength_exponent": 1.0}])
    def test_a_loss_scale_changes_nothing(self, tmp_path: Path, sam: dict[str, Any], clip: float) -> None:
        models = [self.model(), self.model()]
        data = examples(2 * STEPS)
        for model, scaler in zip(models, (None, torch.amp.GradScaler("cpu", init_scale=2.0**10)), strict=True):
            arguments = {"max_grad_norm": clip, "gradient_accumulation_steps": 2}
            self.trainer(model, data, tmp_path, sam=sam, scaler=scaler, **arguments).train()
        assert_same(*models)

    def test_an_overflow_skips_the_step_and_restores_the_weights(self, tmp_path: Path) -> None:
        model = self.model()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
        trainer = self.trainer(model, examples(1), tmp_path, scaler=scaler)
        model.classifier.weight.register_hook(
            lambda grad: grad * (torch.inf if trainer.optimizer.optimizer.is_perturbed else 1)
        )
        before = copy.deepcopy(model.state_dict())
        trainer.train()
        assert trainer.state.log_history[0]["sharpness"] > 1e-4
        assert not trainer.optimizer.optimizer.is_perturbed
        assert scaler.get_scale() == 2.0**9
        assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())

    def test_an_exception_restores_the_weights(self, tmp_path: Path) -> None:
        model, calls = self.model(), []
        before = copy.deepcopy(model.state_dict())

        def fail(*args: Any) -> None:
            calls.append(1)
            if len(calls) == 2:
                raise OSError("in the perturbed pass")

        model.register_forward_pre_hook(fail)
        trainer = self.trainer(model, examples(STEPS), tmp_path)
        with pytest.raises(OSError, match="in the perturbed pass"):
            trainer.train()
        assert not trainer.optimizer.optimizer.is_perturbed
        assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())

    @pytest.mark.parametrize(
        ("sam", "error", "message"),
        [
            ({"optimizer": torch.optim.SGD}, TypeError, r"sam\['optimizer'\] must be GASAM or a preset, got <class"),
            ({"base_optimizer": torch.optim.SGD}, TypeError, "sam must not contain 'base_optimizer'"),
            ({"rho": -1.0}, ValueError, "rho must be"),
            ({"ascent_fraction": 0.5}, ValueError, "ascent_fraction must be 1 with a trainer, got 0.5"),
            ({"share_dropout": True}, ValueError, "share_dropout must be False with a trainer"),
        ],
    )
    def test_bad_options_are_refused(
        self, tmp_path: Path, sam: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            self.trainer(self.model(), examples(STEPS), tmp_path, sam=sam).train()

    @pytest.mark.parametrize("engine", ["DeepSpeed", "FSDP"])
    def test_engines_that_keep_gradients_are_refused(self, tmp_path: Path, engine: str) -> None:
        trainer = self.trainer(self.model(), examples(STEPS), tmp_path)
        setattr(trainer, f"is_{engine.lower()}_enabled", True)
        with pytest.raises(ValueError, match=f"SAMTrainer does not train with {engine}"):
            trainer.train()

        class Arguments:
            deepspeed = "zero.json"

        if engine == "DeepSpeed":
            with pytest.raises(ValueError, match="SAMTrainer does not train with DeepSpeed"):
                type(trainer)(self.model(), Arguments())


# --- lightning ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*is deprecated:FutureWarning",  # lightning uses what torch 2.15 deprecates
    "ignore:.*does not have many workers",  # advice on data loaders
)
class TestLightning:
    """`SharpnessAware`, over SGD with momentum, with a perceptron."""

    @pytest.fixture(autouse=True)
    def library(self) -> None:
        pytest.importorskip("lightning", reason="needs the extra gasam[lightning]")

    @staticmethod
    def layers(dropout: float = 0.0) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Embedding(50, 8), nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 2)
        )

    @staticmethod
    def module(layers: nn.Module, *, kind: type[GASAM] = GASAM, **options: Any) -> Any:
        from lightning.pytorch import LightningModule

        from gasam.integrations.lightning import SharpnessAware

        class Parent(LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.layers = layers
                self.losses: list[float] = []

            def training_step(self, batch: Batch, batch_idx: int) -> Any:
                loss = cross_entropy(self.layers(batch["input_ids"]), batch["labels"])
                self.log("loss", loss)
                if not self.is_perturbed:
                    self.losses.append(loss.item())
                return {"loss": loss, "more": batch_idx} if batch_idx % 2 else loss

            def configure_optimizers(self) -> Any:
                optimizer = kind(self, torch.optim.SGD, lr=LR, momentum=0.9, **options)
                return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]

        class Module(SharpnessAware, Parent):
            def training_step(self, batch: Batch, batch_idx: int) -> Any:
                return super().training_step(batch, batch_idx)

        return Module()

    @staticmethod
    def trainer(folder: Path, **arguments: Any) -> Any:
        from lightning.pytorch import Trainer
        from lightning.pytorch.loggers import CSVLogger

        defaults: dict[str, Any] = {
            "accelerator": "cpu",
            "max_epochs": 1,
            "log_every_n_steps": 1,
            "logger": CSVLogger(folder),
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        return Trainer(**defaults | arguments)

    @staticmethod
    def fit(trainer: Any, module: Any, data: list[Batch], **arguments: Any) -> None:
        trainer.fit(module, DataLoader(data, BATCH), **arguments)  # type: ignore[arg-type]

    @staticmethod
    def logged(folder: Path, name: str) -> list[float]:
        import csv

        (path,) = folder.glob("**/metrics.csv")
        with path.open() as file:
            return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]

    @staticmethod
    def loss(layers: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(layers(batch["input_ids"]), batch["labels"])

    @pytest.mark.parametrize("accumulation", [1, 2])
    @pytest.mark.parametrize("options", [{}, {"strength_exponent": 0.0, "segments": "global", "risk": "average"}])
    def test_steps_are_those_of_a_plain_loop(self, tmp_path: Path, options: dict[str, Any], accumulation: int) -> None:
        data, layers = examples(STEPS * accumulation), self.layers()
        expected = copy.deepcopy(layers)
        clip = None if "risk" in options else 0.5
        sharpness = plain(
            expected,
            partial(self.loss, expected),
            data,
            accumulation=accumulation,
            clip=clip,
            average="risk" in options,
            **{k: v for k, v in options.items() if k != "risk"},
        )
        module = self.module(layers, **options)
        trainer = self.trainer(tmp_path, accumulate_grad_batches=accumulation, gradient_clip_val=clip)
        self.fit(trainer, module, data)
        assert trainer.global_step == STEPS
        assert_same(layers, expected)
        logged = self.logged(tmp_path, "sharpness")
        if accumulation == 1:
            assert logged == pytest.approx(sharpness, abs=1e-6)
        assert min(logged) > 1e-4
        assert len(module.losses) == STEPS * accumulation  # logged once for each batch, that of the clean weights
        assert self.logged(tmp_path, "loss")[-1] == pytest.approx(module.losses[-1])

    @pytest.mark.parametrize("reference", ["global", "none"])
    def test_equal_micro_batches_are_one_batch(self, tmp_path: Path, reference: str) -> None:
        nets = [self.layers(), self.layers()]
        for net, repeat in zip(nets, (1, 2), strict=True):
            module = self.module(net, reference=reference, strength_exponent=1.0, rho=0.5)
            self.fit(self.trainer(tmp_path, accumulate_grad_batches=repeat), module, examples(STEPS, repeat))
        assert_same(*nets)

    @pytest.mark.parametrize("preset", PRESETS)
    def test_presets_take_the_steps_that_they_take_with_closures(self, tmp_path: Path, preset: str) -> None:
        data, layers = examples(STEPS), self.layers()
        expected = copy.deepcopy(layers)
        by_closures(preset, expected, partial(self.loss, expected), data)
        self.fit(self.trainer(tmp_path), self.module(layers, kind=getattr(gasam, preset), **PRESETS[preset]), data)
        assert_same(layers, expected)

    def test_steps_without_ascent_cost_one_pass(self, tmp_path: Path) -> None:
        layers, passes = self.layers(), []
        layers.register_forward_pre_hook(lambda *args: passes.append(1))
        self.fit(self.trainer(tmp_path), self.module(layers, every=2), examples(STEPS))
        assert len(passes) == STEPS + STEPS // 2

    def test_a_checkpoint_resumes_exactly(self, tmp_path: Path) -> None:
        data, nets = examples(2 * STEPS), [self.layers(), self.layers(), self.layers()]
        trainers = [self.trainer(tmp_path, max_epochs=n, accumulate_grad_batches=2) for n in (2, 1, 2)]
        self.fit(trainers[0], self.module(nets[0]), data)
        self.fit(trainers[1], self.module(nets[1]), data)
        trainers[1].save_checkpoint(tmp_path / "half.ckpt")
        self.fit(trainers[2], self.module(nets[2]), data, ckpt_path=tmp_path / "half.ckpt")
        assert trainers[2].global_step == 2 * STEPS
        for (name, a), b in zip(nets[2].state_dict().items(), nets[0].state_dict().values(), strict=True):
            assert torch.equal(a, b), name

    def test_bfloat16_autocast_sees_the_perturbed_weights(self, tmp_path: Path) -> None:
        data, layers = examples(STEPS), self.layers()
        expected = copy.deepcopy(layers)

        def loss(batch: Batch) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.loss(expected, batch)

        sharpness = plain(expected, loss, data, rho=0.5)
        self.fit(self.trainer(tmp_path, precision="bf16-mixed"), self.module(layers, rho=0.5), data)
        assert_same(layers, expected)
        logged = self.logged(tmp_path, "sharpness")
        assert logged == pytest.approx(sharpness, abs=1e-6)
        assert min(logged) > 1e-3

    @pytest.mark.parametrize("options", [{}, {"risk": "average"}, {"reference": "none", "strength_exponent": 1.0}])
    def test_a_loss_scale_changes_nothing_and_gradients_are_clipped(
        self, tmp_path: Path, options: dict[str, Any]
    ) -> None:
        from lightning.pytorch.plugins import MixedPrecision

        data, nets = examples(2 * STEPS), [self.layers(), self.layers()]
        for net, scale in zip(nets, (1.0, 2.0**10), strict=True):
            scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            trainer = self.trainer(
                tmp_path,
                plugins=MixedPrecision("16-mixed", "cpu", scaler),
                accumulate_grad_batches=2,
                gradient_clip_val=0.5,
            )
            self.fit(trainer, self.module(net, **options), data)
        assert_same(*nets, tolerance=1e-3)  # float16 rounds the gradients of a loss that is not scaled

    # torch warns of the scheduler, as its optimizers were not called either after an overflow
    @pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
    def test_an_overflow_skips_the_step_and_restores_the_weights(self, tmp_path: Path) -> None:
        from lightning.pytorch.plugins import MixedPrecision

        layers = self.layers()
        module = self.module(layers)
        layers[5].weight.register_hook(lambda grad: grad * (torch.inf if module.is_perturbed_now() else 1))
        module.is_perturbed_now = lambda: module.optimizers(use_pl_optimizer=False).is_perturbed
        before = copy.deepcopy(layers.state_dict())
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        self.fit(self.trainer(tmp_path, plugins=MixedPrecision("16-mixed", "cpu", scaler)), module, examples(1))
        assert scaler.get_scale() == 2.0**9
        assert not module.is_perturbed_now()
        assert all(torch.equal(x, before[name]) for name, x in layers.state_dict().items())

    def test_an_exception_restores_the_weights(self, tmp_path: Path) -> None:
        layers = self.layers()
        module = self.module(layers)
        before = copy.deepcopy(layers.state_dict())

        def fail(*args: Any) -> None:
            if module.is_perturbed:
                raise OSError("in the perturbed pass")

        layers.register_forward_pre_hook(fail)
        with pytest.raises(OSError, match="in the perturbed pass"):
            self.fit(self.trainer(tmp_path), module, examples(STEPS))
        assert not module.is_perturbed
        assert all(torch.equal(x, before[name]) for name, x in layers.state_dict().items())

    def test_manual_optimization_is_left_alone(self, tmp_path: Path) -> None:
        layers = self.layers()
        expected = copy.deepcopy(layers)
        module = self.module(layers)
        module.automatic_optimization = False

        def step(module: Any, batch: Batch, batch_idx: int) -> None:
            def closure() -> Tensor:
                loss = self.loss(layers, batch)
                module.manual_backward(loss)
                return loss

            module.optimizers().step(closure)

        type(module).training_step = step
        plain(expected, partial(self.loss, expected), examples(STEPS))
        self.fit(self.trainer(tmp_path), module, examples(STEPS))
        assert_same(layers, expected)

    def test_a_batch_without_a_loss_is_skipped(self, tmp_path: Path) -> None:
        layers, data = self.layers(), examples(STEPS)
        expected = copy.deepcopy(layers)
        plain(expected, partial(self.loss, expected), data[BATCH:])
        module = self.module(layers)
        step = type(module).training_step
        type(module).training_step = lambda self, batch, batch_idx: step(self, batch, batch_idx) if batch_idx else None
        with pytest.warns(UserWarning, match="`training_step` returned `None`"):
            self.fit(self.trainer(tmp_path), module, data)
        assert_same(layers, expected)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"ascent_fraction": 0.5}, ValueError, "ascent_fraction must be 1 with a trainer, got 0.5"),
            ({"share_dropout": True}, ValueError, "share_dropout must be False with a trainer, got True"),
        ],
    )
    def test_options_that_need_a_closure_are_refused(
        self, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            self.fit(self.trainer(tmp_path), self.module(self.layers(), **options), examples(STEPS))

    def test_another_optimizer_is_refused(self, tmp_path: Path) -> None:
        module = self.module(self.layers())
        type(module).configure_optimizers = lambda self: torch.optim.SGD(self.parameters(), LR)
        with pytest.raises(TypeError, match="configure_optimizers must return one GASAM or a preset of it, got SGD"):
            self.fit(self.trainer(tmp_path), module, examples(STEPS))


# --- both -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["transformers", "lightning"])
def test_a_missing_library_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [key for key in sys.modules if key.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"gasam.integrations.{name}", raising=False)
    with pytest.raises(ImportError, match=rf"gasam\[{name}\]"):
        import_module(f"gasam.integrations.{name}")


def test_neither_library_is_imported_before_it_is_asked_for() -> None:
    code = (
        "import sys, gasam, gasam.integrations; print({'transformers', 'lightning', 'matplotlib'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
