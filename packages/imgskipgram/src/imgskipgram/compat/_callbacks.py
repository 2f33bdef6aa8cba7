"""gensim's callbacks in a training of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..model import ImageSkipGram
    from ._word2vec import Word2Vec

__all__ = ["Callbacks"]


class Callbacks:
    """They get the model with gensim's calls; before that the loss is summed up."""

    def __init__(self, model: Word2Vec, callbacks: tuple[Any, ...]) -> None:
        self._model = model
        self._callbacks = callbacks

    def _call(self, name: str) -> None:
        for callback in self._callbacks:
            getattr(callback, name)(self._model)

    def on_train_begin(self, model: ImageSkipGram) -> None:
        self._call("on_train_begin")

    def on_epoch_begin(self, model: ImageSkipGram) -> None:
        self._call("on_epoch_begin")

    def on_epoch_end(self, model: ImageSkipGram) -> None:
        losses = model.losses_[-1]
        self._model.running_training_loss += losses["text"] * losses["text_pairs"]
        self._call("on_epoch_end")

    def on_train_end(self, model: ImageSkipGram) -> None:
        self._call("on_train_end")
