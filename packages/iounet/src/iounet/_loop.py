"""The training loop behind `fit`: options, what a step sees, the state of a run and its checkpoints."""

from __future__ import annotations

import math
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ._augmentation import augment, derive_seed, select_rows
from ._files import read_checkpoint, write_checkpoint, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ._processes import Processes

__all__ = ["Dataset", "Options", "Run"]

_CHECKED = 10  # steps from one look at the losses to the next: each look waits for the device
_PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_STATE = {"model": dict, "optimizer": dict, "scaler": dict, "config": dict, "identity": dict, "step": int}
_STATE |= {"sums": dict, "seconds": float, "history": list}


class Dataset(Protocol):
    """Images with their boxes, as `iounet.data` reads them."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Tensor, dict[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Options:
    """What decides the numbers of a run, apart from its length; a resumed run must have the same."""

    batch_size: int
    lr: float
    optimizer: str | None  # None: the caller makes it
    momentum: float
    weight_decay: float
    warmup: int
    schedule: str
    milestones: tuple[int, ...]
    clip: float | None
    flip: float
    vertical_flip: float
    scale: tuple[float, float]
    precision: str
    seed: int

    def check(self) -> None:
        """Refuse what no run can have."""
        positive = {"batch_size": self.batch_size, "lr": self.lr, "clip": 1 if self.clip is None else self.clip}
        not_negative = {"momentum": self.momentum, "weight_decay": self.weight_decay, "warmup": self.warmup}
        for name, value in positive.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        for name, value in not_negative.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be non-negative and finite, got {value}")
        for name, value in {"flip": self.flip, "vertical_flip": self.vertical_flip}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be a probability, got {value}")
        if not (len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1] < math.inf):
            raise ValueError(f"scale must be (low, high) with 0 < low <= high, got {self.scale}")
        if list(self.milestones) != sorted(set(self.milestones)) or any(epoch < 1 for epoch in self.milestones):
            raise ValueError(f"milestones must be increasing epochs from 1 on, got {self.milestones}")
        choices = {
            "optimizer": ("sgd" if self.optimizer is None else self.optimizer, ("sgd", "adamw")),
            "schedule": (self.schedule, ("step", "cosine", "constant")),
            "precision": (self.precision, ("fp32", "bf16", "fp16")),
        }
        for name, (chosen, allowed) in choices.items():
            if chosen not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {chosen!r}")

    def learning_rate(self, full: float, step: int, steps_per_epoch: int, total: int) -> float:
        """Of a step, counted from 0: a pure function, so that there is no scheduler's state to resume."""
        rate = full * min(1.0, (step + 1) / max(1, self.warmup))
        if self.schedule == "cosine":
            return rate * (1 + math.cos(math.pi * step / total)) / 2
        if self.schedule == "step":
            return rate * 0.1 ** sum(step >= epoch * steps_per_epoch for epoch in self.milestones)
        return rate


class Losses(nn.Module):
    """A forward pass for every kind of model: its losses by name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        losses: Any = self.model.loss if callable(getattr(self.model, "loss", None)) else self.model
        found = losses(images, targets)
        if isinstance(found, Tensor):
            found = {"loss_iou": found}
        if not (isinstance(found, dict) and found and all(isinstance(x, Tensor) for x in found.values())):
            raise TypeError(f"model must return a dict of losses in training mode, got {type(found).__name__}")
        return found


class Samples(torch.utils.data.Dataset[tuple[Tensor, dict[str, Any]]]):
    """What a model gets to see of an image in an epoch."""

    def __init__(self, dataset: Dataset, options: Options) -> None:
        self.dataset = dataset
        self.options = options

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, dict[str, Any]]:
        epoch, index = place
        # For what a dataset draws itself; the step seeds the generator again.
        torch.default_generator.manual_seed(derive_seed("image", self.options.seed, epoch, index))
        image, target = self.dataset[index]
        if "iscrowd" in target:
            target = select_rows(target, ~target["iscrowd"].bool())
        names = (self.options.seed, epoch, int(target.get("image_id", index)))
        options = self.options
        if "keypoints" in target and (options.flip or options.vertical_flip or options.scale != (1, 1)):
            raise ValueError("flip, vertical_flip and scale must be off for targets with keypoints")
        image, target = augment(
            image,
            target,
            flip=options.flip,
            vertical_flip=options.vertical_flip,
            scale=options.scale,
            generator=torch.Generator().manual_seed(derive_seed("augmentation", *names)),
        )
        return image, {**target, "jitter_seed": derive_seed("jitter", *names)}


class Batches:
    """The (epoch, index) pairs of this process, from a step on: a permutation of the images for each epoch."""

    def __init__(self, images: int, options: Options, processes: Processes, first: int, last: int) -> None:
        self.images, self.options, self.processes = images, options, processes
        self.first, self.last = first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size, share = self.options.batch_size, self.options.batch_size // self.processes.count
        per_epoch = math.ceil(self.images / size)
        order: Tensor | None = None
        for step in range(self.first, self.last):
            epoch, place = divmod(step, per_epoch)
            if order is None or place == 0:
                generator = torch.Generator().manual_seed(derive_seed("order", self.options.seed, epoch))
                order = torch.randperm(self.images, generator=generator)
            begin = place * size + self.processes.rank * share
            yield [(epoch, int(order[i % self.images])) for i in range(begin, begin + share)]


class Run:
    """A run: its state, which is all that a checkpoint holds, and its steps."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        options: Options,
        epochs: int,
        out: Path | None,
        config: dict[str, Any],
        processes: Processes,
        make: Callable[[list[nn.Parameter]], object] | None,
    ) -> None:
        self.make = make
        self.model, self.dataset, self.options, self.out, self.processes = model, dataset, options, out, processes
        self.per_epoch = math.ceil(len(dataset) / options.batch_size)
        self.total = epochs * self.per_epoch
        self.step = 0
        self.sums: dict[str, Tensor] = {}  # of the losses over the steps of the current epoch
        self.seconds = 0.0  # of the current epoch until `began`
        self.began = 0.0
        self.history: list[dict[str, float]] = []
        self.config = config
        self.identity = {**asdict(options), "images": len(dataset), "config": config}
        if options.schedule == "cosine":
            self.identity["epochs"] = epochs

    # ---- checkpoints

    def begin(self, resume: bool) -> None:
        """Put model and optimizer where the run starts or goes on; they are unchanged after an error."""
        self.model.to(self.processes.device)
        self.optimizer = self._optimizer([p for p in self.model.parameters() if p.requires_grad])
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        if self.make is not None:
            kind = type(self.optimizer)
            self.identity |= {"optimizer": f"{kind.__module__}.{kind.__qualname__}", "lr": self.rates}
        saved = None
        if self.out is not None:
            last = self.out / "last.pth"
            if last.exists():
                if not resume:
                    raise ValueError(f"out must hold no run unless it is to be resumed, got {last}")
                saved = read_checkpoint(last)
                self._check(saved, f"{last}")
            self.out.mkdir(parents=True, exist_ok=True)
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.options.precision == "fp16")
        if saved is not None:
            self._restore(saved)
            self.model.load_state_dict(saved["model"])
            self.sums = {name: self._sum(x) for name, x in saved["sums"].items()}
            self.step, self.seconds, self.history = saved["step"], saved["seconds"], saved["history"]

    def _optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        chosen = self.options
        if self.make is None:
            if chosen.optimizer == "sgd":
                return torch.optim.SGD(
                    parameters, chosen.lr, momentum=chosen.momentum, weight_decay=chosen.weight_decay
                )
            return torch.optim.AdamW(parameters, chosen.lr, weight_decay=chosen.weight_decay)
        made = self.make(parameters)
        if not isinstance(made, torch.optim.Optimizer):
            raise TypeError(f"optimizer must return a torch.optim.Optimizer, got {type(made).__name__}")
        held = {id(p) for group in made.param_groups for p in group["params"]}
        if not held.intersection(map(id, parameters)):
            raise ValueError(
                f"optimizer must hold parameters that it was given, got {type(made).__name__} with {len(held)} others"
            )
        if not all("lr" in group for group in made.param_groups):
            raise ValueError(f"optimizer must have a learning rate lr in each group, got {type(made).__name__} without")
        return made

    def _check(self, saved: dict[str, Any], name: str) -> None:
        """Refuse a checkpoint of another run, or one whose parts do not fit."""
        for key, kind in _STATE.items():
            if not isinstance(saved.get(key), kind):
                raise ValueError(f"{name} must be a checkpoint of fit, got one without {key!r}")
        for key in self.identity.keys() | saved["identity"].keys():
            here, there = self.identity.get(key), saved["identity"].get(key)
            if here != there:
                raise ValueError(f"{key} must be that of {name}, {there!r}, to resume, got {here!r}")
        if not 0 <= saved["step"] <= self.total or len(saved["history"]) != saved["step"] // self.per_epoch:
            raise ValueError(
                f"epochs must be at least those of {name}, {math.ceil(saved['step'] / self.per_epoch)}, to resume, "
                f"got {self.total // self.per_epoch}"
            )
        ours = self.model.state_dict()
        unlike = {key for key in ours.keys() & saved["model"].keys() if ours[key].shape != saved["model"][key].shape}
        unlike |= ours.keys() ^ saved["model"].keys()
        if unlike:
            raise ValueError(f"model must be that of {name} to resume, got another {min(unlike)}")

    def _restore(self, saved: dict[str, Any]) -> None:
        """Load the optimizer's state, whose shapes torch does not look at; a caller's may have any."""
        try:
            self.optimizer.load_state_dict(saved["optimizer"])
            self.scaler.load_state_dict(saved["scaler"])
            fits = self.make is not None or all(
                x.shape in (p.shape, ())
                for p, state in self.optimizer.state.items()
                for x in state.values()
                if x is not None
            )
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
            fits = False
        if not fits:
            raise ValueError("the checkpoint's optimizer must be that of the model's trainable parameters")

    def _save(self, values: dict[str, float]) -> None:
        if self.out is None or self.processes.rank:
            return
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "config": self.config,
            "identity": self.identity,
            "step": self.step,
            "sums": values,
            "seconds": self.seconds,
            "history": self.history,
        }
        write_json(self.out / "history.json", self.history)
        if self.step == self.total:
            write_checkpoint(self.out / "model.pth", {"model": content["model"], "config": self.config})
        write_checkpoint(self.out / "last.pth", content)  # last: what it tells of is there

    # ---- steps

    def train(
        self,
        workers: int,
        save_every: int | None,
        progress: bool,
        on_epoch: Callable[[dict[str, float]], object] | None,
    ) -> None:
        """Make the steps that are left, saving after each epoch and every `save_every` steps."""
        device = self.processes.device
        forward: nn.Module = Losses(self.model).train()
        if self.processes.several:
            forward = DistributedDataParallel(forward, None if device.type == "cpu" else [device])
        loader: DataLoader[Any] = DataLoader(
            Samples(self.dataset, self.options),
            batch_sampler=Batches(len(self.dataset), self.options, self.processes, self.step, self.total),
            num_workers=workers,
            collate_fn=list,
            pin_memory=device.type == "cuda",
        )
        with self._bar(progress) as advance:
            self.began = time.perf_counter()
            for samples in loader:
                self._step(forward, samples)
                ended = self.step % self.per_epoch == 0
                saved = ended or (save_every is not None and self.step % save_every == 0)
                if saved or self.step % _CHECKED == 0:
                    values = self._finite()
                    advance(values)
                if saved:
                    self._record(values, ended)
                if ended and on_epoch is not None and self.processes.rank == 0:
                    on_epoch(self.history[-1])

    def _step(self, forward: nn.Module, samples: list[tuple[Tensor, dict[str, Any]]]) -> None:
        options, device = self.options, self.processes.device
        images = [image.to(device, non_blocking=True) for image, _ in samples]
        targets = [{name: _to(x, device) for name, x in target.items()} for _, target in samples]
        for group, full in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = options.learning_rate(full, self.step, self.per_epoch, self.total)
        torch.manual_seed(derive_seed("step", options.seed, self.step, self.processes.rank))
        with torch.autocast(device.type, _PRECISIONS[options.precision], enabled=options.precision != "fp32"):
            losses: dict[str, Tensor] = forward(images, targets)
        self.optimizer.zero_grad()
        self.scaler.scale(reduce(torch.add, losses.values())).backward()
        if options.clip is not None:
            self.scaler.unscale_(self.optimizer)
            held = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(held, options.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, self._sum(0.0)) + loss.detach()

    def _finite(self) -> dict[str, float]:
        """The sums of the losses as numbers."""
        values = {name: x.item() for name, x in self.sums.items()}
        broken = [name for name, x in values.items() if not math.isfinite(x)]
        if broken:
            raise FloatingPointError(
                f"{broken[0]} is not finite at step {self.step}; a smaller lr or clip, or a longer warmup, may help"
            )
        return values

    def _record(self, values: dict[str, float], ended: bool) -> None:
        now = time.perf_counter()
        self.seconds, self.began = self.seconds + now - self.began, now
        values = self.processes.averaged(values)
        if ended:
            means = {name: x / self.per_epoch for name, x in values.items()}
            rate = self.optimizer.param_groups[0]["lr"]
            epoch = {"epoch": self.step // self.per_epoch, "lr": rate, **means, "loss": sum(means.values())}
            self.history.append({**epoch, "seconds": self.seconds})
            self.sums, self.seconds, values = {}, 0.0, {}
        self._save(values)

    def _sum(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.processes.device)

    @contextmanager
    def _bar(self, progress: bool) -> Iterator[Callable[[dict[str, float]], object]]:
        """What shows on stderr how far the run is, given the sums of the losses."""
        if not progress or self.processes.rank:
            yield lambda _: None
            return
        try:
            from tqdm import tqdm
        except ImportError:
            raise ImportError("progress needs tqdm: pip install 'iounet[detection]'") from None
        with tqdm(total=self.total, initial=self.step, unit="step", file=sys.stderr) as bar:

            def advance(values: dict[str, float]) -> None:
                steps = (self.step - 1) % self.per_epoch + 1
                bar.set_postfix(epoch=math.ceil(self.step / self.per_epoch), loss=f"{sum(values.values()) / steps:.4f}")
                bar.update(self.step - bar.n)

            yield advance


def _to(x: Any, device: torch.device) -> Any:
    return x.to(device, non_blocking=True) if isinstance(x, Tensor) else x
