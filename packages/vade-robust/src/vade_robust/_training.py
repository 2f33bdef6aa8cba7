"""Training: its state, its phases, its schedule, and what becomes of steps that are not finite."""

from __future__ import annotations

import copy
import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import _distributed, _initialising, _losses, _ops
from ._adam import Adam
from ._inference import Blocks
from ._networks import build, mapping

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ._data import Batch, Source
    from ._networks import Networks

PRETRAINING_LR = 1e-3
PRETRAINING_STEPS, PRETRAINING_ROWS = 1000, 32  # at least so many steps, or of batches so small
DECAY, DECAY_EVERY = 0.95, 10
_PROGRESS = ("phase", "epoch", "stopped", "history", "nonfinite_steps", "streak")
PATIENCE = 10  # steps in a row that may not be finite


@dataclass(frozen=True)
class Options:
    """What a training and its networks are made by, after presets and the kind of the data have been settled.

    `encoder` is "mlp", "conv" or, for one of the user's, "module". The last four are what presets change besides.
    """

    kind: str
    n_clusters: int
    n_latent: int
    hidden: tuple[int, ...]
    encoder: str
    posterior: str
    mutual_information: float
    locality: float
    perplexity: float | str
    exaggeration: float
    adversarial: float
    denoising: float
    start: str
    pretrain_epochs: int
    epochs: int
    batch_size: int
    lr: float
    warmup: float
    clamp: bool = True
    prepared_head: bool = True
    floor: bool = False
    exact_perplexity: bool = False
    whitening: bool = False

    def networks(self, shape: Sequence[int], seed: int, module: nn.Module | None = None) -> Networks:
        """Networks for rows of a shape, on the CPU, with weights that depend on the seed alone."""
        return build(
            seed,
            shape,
            n_clusters=self.n_clusters,
            n_latent=self.n_latent,
            hidden=self.hidden,
            encoder=self.encoder if module is None else module,
            mutual_information=self.mutual_information > 0,
            locality=self.locality > 0,
            clamp=self.clamp,
        )

    def weights(self) -> _losses.Weights:
        """What a step needs of them."""
        names = _losses.Weights.__dataclass_fields__
        return _losses.Weights(**{name: value for name, value in asdict(self).items() if name in names})

    def learning_rate(self, epoch: int) -> float:
        """lr 0.95^floor(e / 10) for e = 1, 2, ...: the official scheduler steps before each epoch."""
        return self.lr * DECAY ** (epoch // DECAY_EVERY)

    def cluster_weight(self, epoch: int) -> float:
        """w_e, which rises linearly to 1 over warmup * epochs."""
        return min(1.0, epoch / (self.warmup * self.epochs)) if self.warmup else 1.0


class Training:
    """A training that can be left after any epoch and gone on with: `run` starts wherever the state is.

    `phase` is "pretrain", "train" or "done", and `epoch` counts the finished epochs of the phase. `generator` gives all
    permutations and noise.
    """

    def __init__(self, networks: Networks, options: Options, seed: int) -> None:
        self.networks, self.options = networks, options
        self.generator = torch.Generator().manual_seed(seed)
        self.phase, self.epoch, self.stopped = "pretrain", 0, False
        self.history: list[dict[str, Any]] = []
        self.nonfinite_steps = 0
        self.spread = 0.0  # of a column of the data, which the noise of pretraining is measured in
        self.streak = 0
        self.optimizer = self._adam()

    def seed(self) -> int:
        """A seed for scikit-learn from the generator."""
        return int(torch.randint(2**31 - 1, (), generator=self.generator))

    def run(
        self,
        source: Source,
        callbacks: Sequence[Any] = (),
        *,
        estimator: object = None,
        verbose: bool = False,
    ) -> None:
        """Goes on to the end: pretraining, the mixture's start, training."""
        self.prepare(source, callbacks, estimator=estimator, verbose=verbose)
        if self.phase == "train":
            self._phase(source, self.options.epochs, callbacks, estimator, verbose)
            self.phase = "done"

    def prepare(
        self, source: Source, callbacks: Sequence[Any] = (), *, estimator: object = None, verbose: bool = False
    ) -> None:
        """Goes on to where training begins: pretraining, the mixture's start."""
        if self.phase == "pretrain":
            self.spread = _initialising.spread(source) if self.options.denoising else 0.0
            self._phase(source, self.options.pretrain_epochs, callbacks, estimator, verbose)
            self.initialise(source)

    def state(self) -> dict[str, Any]:
        """All that a training goes on from: tensors, by flat names, and what JSON can hold."""
        state: dict[str, Any] = {f"networks.{name}": value for name, value in self.networks.state_dict().items()}
        state |= {f"optimizer.{name}": value for name, value in self.optimizer.state().items()}
        state["generator"] = self.generator.get_state()
        for name in _PROGRESS:
            state[name] = getattr(self, name)
        state["options"] = asdict(self.options)
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Takes the place of the training whose `state` this is.

        Raises ValueError naming what is missing, or is of another training.
        """
        missing = [name for name in (*_PROGRESS, "generator", "options") if name not in state]
        if missing:
            raise ValueError(f"the state of the training lacks {missing[0]!r}")
        own, other = asdict(self.options), dict(state["options"])
        for name, value in own.items():
            found = other.get(name)
            if (tuple(found) if isinstance(found, list) else found) != value:
                raise ValueError(f"the training to go on with has {name}={found!r}, this one has {name}={value!r}")
        parts: dict[str, dict[str, Any]] = {"networks": {}, "optimizer": {}}
        for name, value in state.items():
            kind, _, rest = name.partition(".")
            if kind in parts and rest:
                parts[kind][rest] = value
        expected = self.networks.state_dict()
        _same_tensors(parts["networks"], expected, "networks.")
        for name in ("shift", "scale", "low", "high"):
            if not torch.equal(parts["networks"][name].to(expected[name]), expected[name]):
                raise ValueError(f"the training to go on with had other rows: X gives another `{name}`")
        self.networks.load_state_dict(parts["networks"])
        for name in _PROGRESS:
            setattr(self, name, copy.copy(state[name]))
        self.optimizer = self._adam()
        if parts["optimizer"]:
            _same_tensors(parts["optimizer"], self.optimizer.state(), "optimizer.")
            self.optimizer.load(parts["optimizer"])
        self.generator.set_state(state["generator"])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "generator": self.generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.generator = torch.Generator()
        self.generator.set_state(state["generator"])

    def initialise(self, source: Source) -> None:
        """Starts map and mixture from the latent means; training begins."""
        networks, seed = self.networks, self.seed()
        _distributed.broadcast([*networks.parameters(), *networks.buffers()])
        with _distributed.agreement("the start of the mixture"):
            if _distributed.world()[0] == 0:
                mu = Blocks(networks, source).latent()
                self.check_finite(mu)
                self._start(mu, seed)
        _distributed.broadcast(list(networks.parameters()))
        self.phase, self.epoch, self.stopped = "train", 0, False
        self.optimizer = self._adam()

    def _start(self, mu: Tensor, seed: int) -> None:
        """The mixture from the clusters of a map that is trained on fixed means, or from a GMM."""
        options, networks = self.options, self.networks
        if options.start == "map":
            t_encoder, weights = networks.t_encoder, options.weights()
            if t_encoder is None:
                t_encoder = mapping(seed, options.n_latent).to(mu)
            draw = torch.Generator().manual_seed(seed)
            _initialising.train_map(
                t_encoder, mu, lambda x, y: _losses.locality(x, y, weights), options.batch_size, draw
            )
            with torch.no_grad():
                y = t_encoder(mu)
            centers = _initialising.centers(y, options.n_clusters, seed)
            parameters = _initialising.mixture_of(mu, _ops.knn(y, centers, 1)[1][:, 0], options.n_clusters)
        else:
            parameters = _initialising.mixture(mu, options.n_clusters, seed)
        _initialising.set_mixture(networks, parameters, head=options.prepared_head)

    def check_finite(self, mu: Tensor) -> None:
        """Refuses latent means of networks that a few steps have thrown out of all bounds."""
        if not mu.isfinite().all():
            phase = self.history[-1]["phase"]
            raise FloatingPointError(
                f"after phase {phase!r} the latent means are not finite; lower `lr`, or scale the data"
            )

    def one_epoch(self, source: Source) -> dict[str, Any]:
        """One epoch of the current phase; returns what is appended to the history."""
        begin = time.perf_counter()
        epoch = self.epoch + 1
        if self.phase == "pretrain":
            logs = self._pretraining_epoch(source, epoch)
        else:
            logs = self._training_epoch(source, epoch)
        self.epoch = epoch
        logs["seconds"] = time.perf_counter() - begin
        self.history.append(logs)
        return logs

    def _phase(
        self,
        source: Source,
        epochs: int,
        callbacks: Sequence[Any],
        estimator: object,
        verbose: bool,
    ) -> None:
        name = {"pretrain": "pretraining", "train": "training"}[self.phase]
        shown = verbose and _distributed.world()[0] == 0
        with tqdm(total=epochs, initial=self.epoch, desc=name) if shown else nullcontext() as bar:
            while self.epoch < epochs and not self.stopped:
                logs = self.one_epoch(source)
                if bar is not None:
                    bar.set_postfix(loss=f"{logs['loss']:.4g}", refresh=False)
                    bar.update()
                self._call(callbacks, estimator, logs)

    def _call(self, callbacks: Sequence[Any], estimator: object, logs: dict[str, Any]) -> None:
        """The callbacks, any of which may end the phase, before those that write what was decided."""
        for writing in (False, True):
            called = [callback for callback in callbacks if getattr(callback, "writes", False) is writing]
            with _distributed.agreement("a callback"):
                stops = [callback.on_epoch_end(estimator, self.epoch, logs) for callback in called]
            self.stopped |= _distributed.any_of(any(stop is True for stop in stops))

    def _adam(self) -> Adam:
        networks, lr = self.networks, self.options.lr
        parameters = dict(networks.named_parameters())
        if self.phase == "pretrain":
            lr = PRETRAINING_LR
            used = ("encoder.", "mean.", "decoder.")
            parameters = {name: p for name, p in parameters.items() if name.startswith(used)}
        return Adam({name: p for name, p in parameters.items() if p.requires_grad}, lr)

    def _batches(self, source: Source) -> Iterator[Batch]:
        rank, size = _distributed.world()
        return source.epoch(self._rows(source), self.generator, rank=rank, world=size)

    def _rows(self, source: Source) -> int:
        """Rows of a batch: all alike, as a last one of few rows would move the networks as much as a full one.

        Pretraining halves them until its steps are enough, since few leave a poor encoder: on digits, 50 epochs in
        batches of 256 rows are 350 steps, and in batches of 64 rows 1,400. Presets do neither.
        """
        rows, epochs = self.options.batch_size, self.options.pretrain_epochs
        if not self.options.prepared_head or source.n_rows is None:
            return rows
        while (
            self.phase == "pretrain" and rows > PRETRAINING_ROWS and epochs * source.n_rows < PRETRAINING_STEPS * rows
        ):
            rows //= 2
        return math.ceil(source.n_rows / math.ceil(source.n_rows / rows))

    def _pretraining_epoch(self, source: Source, epoch: int) -> dict[str, Any]:
        networks, kind = self.networks.train(), self.options.kind
        sums = _Sums(self, ("loss",), epoch)
        for batch in self._batches(source):
            x = batch.x
            decoded = networks.decoder(networks.latent(self._noisy(batch) if self.options.denoising else x))
            loss = _losses.pretraining(decoded, x.flatten(1), kind, batch.rows)
            self._step(loss, loss.detach()[None], batch.rows, sums)
        return {"phase": "pretrain", "epoch": epoch, **sums.read(), "lr": PRETRAINING_LR}

    def _training_epoch(self, source: Source, epoch: int) -> dict[str, Any]:
        networks, options = self.networks.train(), self.options
        weights, cluster_weight = options.weights(), options.cluster_weight(epoch)
        lr = options.learning_rate(epoch)
        self.optimizer.lr = lr
        names = ["loss", "reconstruction", "cluster"]
        if options.mutual_information:
            names += ["mutual_information"] + ["adversarial"] * bool(options.adversarial)
        names += ["locality"] * bool(options.locality)
        sums = _Sums(self, names, epoch)
        occupancy = torch.zeros(options.n_clusters, dtype=torch.float64, device=sums.device)
        rows = 0
        for batch in self._batches(source):
            noise = self._noise(batch, networks.n_latent)
            loss, terms, a = _losses.total(
                networks, batch.x, batch.negative, noise, weights, cluster_weight, rows=batch.rows
            )
            with torch.no_grad():
                occupancy += a.softmax(1).sum(0).nan_to_num(0)  # of a step that is skipped
                values = torch.stack([loss, *terms.values()])
            self._step(loss, values, batch.rows, sums)
            rows += batch.rows
        _distributed.add_up([occupancy])
        logs = {"phase": "train", "epoch": epoch, **sums.read(), "lr": lr, "cluster_weight": cluster_weight}
        logs["occupancy"] = (occupancy / max(rows, 1)).tolist()
        return logs

    def _noisy(self, batch: Batch) -> Tensor:
        """Rows with noise, of which this process's part is drawn for the whole batch."""
        x = batch.x
        normal = torch.randn(batch.rows, *x.shape[1:], generator=self.generator)[batch.part].to(x.device, x.dtype)
        return torch.add(x, normal, alpha=self.options.denoising * self.spread)

    def _noise(self, batch: Batch, n_latent: int) -> tuple[Tensor, ...]:
        """This process's part of the noise that is drawn for the whole batch."""
        x, part = batch.x, batch.part
        normal = torch.randn(2, batch.rows, n_latent, generator=self.generator)[:, part]
        noise = tuple(normal.to(x.device, x.dtype).unbind())
        if self.options.adversarial:
            uniform = torch.rand(batch.rows, *x.shape[1:], generator=self.generator)[part].mul_(2).sub_(1)
            noise = (*noise, uniform.to(x.device, x.dtype))
        return noise

    def _step(self, loss: Tensor, values: Tensor, rows: int, sums: _Sums) -> None:
        """Backward and Adam, which leaves all as it is if loss or gradient are not finite. Reads nothing back."""
        loss.backward()
        _distributed.add_up([*self.optimizer.gradients(), values])
        self.optimizer.step(sums.add(values, self.optimizer.gradient_norm(), rows))


def _same_tensors(found: dict[str, Any], expected: dict[str, Tensor], prefix: str) -> None:
    for name in sorted(found.keys() ^ expected.keys()):
        what = "has no" if name in expected else "has an unknown"
        raise ValueError(f"the state of the training {what} {prefix + name!r}")
    for name, own in expected.items():
        value, shape = found[name], tuple(own.shape)
        if not isinstance(value, Tensor) or value.dtype != own.dtype or tuple(value.shape) != shape:
            got = f"{value.dtype} of {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{prefix + name!r} of the training's state must be {own.dtype} of shape {shape}, got {got}"
            )


class _Sums:
    """An epoch's sums of a step's values, and its non-finite steps, all on the device."""

    def __init__(self, training: Training, names: Sequence[str], epoch: int) -> None:
        self.training, self.names, self.epoch = training, names, epoch
        self.device = training.optimizer.steps.device
        count = len(names)
        self.sums = torch.zeros(count + 2, dtype=torch.float64, device=self.device)  # values, gradient norm, rows
        self.bad = torch.zeros(count + 1, device=self.device)
        self.streaks = torch.tensor([float(training.streak), 0.0, 0.0], device=self.device)  # now, longest, steps

    @torch.no_grad()
    def add(self, values: Tensor, norm: Tensor, rows: int) -> Tensor:
        """Adds a step; returns 1 if it was not finite, 0 if it was."""
        step = torch.cat([values, norm[None]])
        wrong = ~step.isfinite()
        self.bad += wrong
        found = wrong.any().float()
        streak = (self.streaks[0] + 1) * found
        self.streaks = torch.stack([streak, torch.maximum(streak, self.streaks[1]), self.streaks[2] + found])
        self.sums[:-1] += torch.where(wrong.any(), 0, step) * rows
        self.sums[-1] += (1 - found) * rows
        return found

    def read(self) -> dict[str, float]:
        """The means; raises FloatingPointError after too many non-finite steps in a row."""
        streak, longest, steps = self.streaks.tolist()
        self.training.streak = int(streak)
        self.training.nonfinite_steps += int(steps)
        if longest >= PATIENCE:
            bad = self.bad.tolist()
            guilty = next((name for name, count in zip(self.names[1:], bad[1:-1], strict=True) if count), None)
            term = guilty or ("loss" if bad[0] else "gradient")
            raise FloatingPointError(
                f"epoch {self.epoch} of phase {self.training.phase!r}: the {term} was not finite in {int(longest)} "
                "steps in a row; lower `lr`, or scale the data"
            )
        *sums, rows = self.sums.tolist()
        names = (*self.names, "gradient_norm")
        return {name: value / rows if rows else float("nan") for name, value in zip(names, sums, strict=True)}
