"""Callbacks: what is called after each epoch of a fit. `Checkpoint` writes what a fit can be gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _distributed, _saving, _validation

if TYPE_CHECKING:
    import os

    from .estimator import RobustVaDE

__all__ = ["Callback", "Checkpoint"]


class Callback:
    """What `callbacks` of the estimators may hold: any object with this method; deriving from this class is optional.

    `writes` (False) is True of those that are called last, when it is known whether the phase ends.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> from vade_robust import RobustVaDE
        >>> from vade_robust.callbacks import Callback
        >>> class StopAtLoss(Callback):
        ...     def __init__(self, loss):
        ...         self.loss = loss
        ...     def on_epoch_end(self, estimator, epoch, logs):
        ...         return logs["phase"] == "train" and logs["loss"] < self.loss
        >>> X = load_digits().data / 16
        >>> estimator = RobustVaDE(10, hidden=(32,), pretrain_epochs=1, epochs=5, callbacks=[StopAtLoss(1e6)])
        >>> estimator.fit(X).n_iter_
        1
    """

    writes = False

    def on_epoch_end(self, estimator: RobustVaDE, epoch: int, logs: dict[str, Any]) -> bool | None:
        """Called after each epoch of both phases, in each process of a group.

        Args:
            estimator: The estimator that is being fitted; `estimator.module_` are its networks.
            epoch: How many epochs of the phase are finished, from 1.
            logs: What `history_` got of the epoch: "phase" ("pretrain" or "train"), "loss" and its terms in nats per
                row, "lr", "gradient_norm", "seconds", and in training "cluster_weight" and "occupancy".

        Returns:
            True ends the phase after this epoch; anything else goes on.
        """
        return None


class Checkpoint(Callback):
    """Writes the state of a fit to a folder every few epochs, so that `fit(X, resume=folder)` goes on bit for bit.

    A checkpoint has the networks, Adam's moments, the generator of permutations and noise, phase, epoch and history, in
    one safetensors file `pretrain-000010.safetensors` or `train-000010.safetensors`. It is written under another name
    and then renamed: a process that is killed at any moment leaves whole checkpoints only. The last epoch of each phase
    is always written. The checkpoints are of one run: a fit that does not go on with those of the folder wants an empty
    one. In a process group the first process writes.

    Args:
        path: The folder; it is made if it is not there.
        every: Epochs between checkpoints, counted in each phase (10).
        keep: How many of the latest checkpoints stay (2).

    Raises:
        TypeError: `every` or `keep` is no integer.
        ValueError: `every` or `keep` is less than 1; in `fit`, the folder holds checkpoints of another run.
        OSError: In `fit`, the folder cannot be made or written to.

    Example:
        >>> import tempfile
        >>> from sklearn.datasets import load_digits
        >>> from vade_robust import RobustVaDE
        >>> from vade_robust.callbacks import Checkpoint
        >>> X = load_digits().data / 16
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     estimator = RobustVaDE(10, hidden=(32,), pretrain_epochs=2, epochs=3, random_state=0)
        ...     first = estimator.set_params(callbacks=[Checkpoint(folder, every=1)]).fit(X)  # killed? then:
        ...     same = estimator.fit(X, resume=folder)
    """

    writes = True

    def __init__(self, path: str | os.PathLike[str], every: int = 10, keep: int = 2) -> None:
        _validation.count("every", every)
        _validation.count("keep", keep)
        self.path = Path(path)
        self.every = every
        self.keep = keep

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, every={self.every}, keep={self.keep})"

    def begin(self, resume: str | os.PathLike[str] | None) -> None:
        """Makes the folder and refuses one with checkpoints of another run than that which is gone on with."""
        if _distributed.world()[0]:
            return
        folder = _saving.make_folder(self.path)
        places = {folder.resolve()} if resume is None else {Path(resume).resolve(), Path(resume).resolve().parent}
        ours = resume is not None and folder.resolve() in places
        if not ours and self._files():
            raise ValueError(
                f"{folder} holds checkpoints of another run: go on with it by fit(X, resume={str(folder)!r}), or give "
                "Checkpoint an empty folder"
            )
        _saving.tidy(folder)

    def on_epoch_end(self, estimator: RobustVaDE, epoch: int, logs: dict[str, Any]) -> None:
        """Writes a checkpoint if it is time for one."""
        training = estimator._training
        options = training.options
        last = options.pretrain_epochs if training.phase == "pretrain" else options.epochs
        if _distributed.world()[0] or (epoch % self.every and epoch < last and not training.stopped):
            return
        file = self.path / _saving.file_name(training.phase, epoch)
        _saving.write(file, _saving.pack(_saving.checkpoint(estimator), _saving.CHECKPOINT))
        for old in self._files()[self.keep :]:
            old.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """The folder's checkpoints, the latest first."""
        return _saving.checkpoints(self.path)
