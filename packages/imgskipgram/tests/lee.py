"""Small models of gensim's Lee corpus, with pictures of some of its words that show nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from gensim.test.utils import datapath

from imgskipgram import ImageBank, ImageSkipGram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LEE = datapath("lee_background.cor")
WORDS = ("said", "people", "Australian", "police")
IMAGES = 24
_draw = np.random.default_rng(0)
BANK = ImageBank.from_features(_draw.normal(size=(IMAGES, 6)), [WORDS[i % 4] for i in range(IMAGES)])


def model(**options: Any) -> ImageSkipGram:
    return ImageSkipGram(**{"vector_size": 20, "workers": 1, "epochs": 3, **options})


def assert_same(a: ImageSkipGram, b: ImageSkipGram) -> None:
    np.testing.assert_array_equal(a.wv.vectors, b.wv.vectors)
    np.testing.assert_array_equal(a.syn1neg, b.syn1neg)
    if a.bank is not None:
        np.testing.assert_array_equal(a.image_vectors, b.image_vectors)


class At:
    """A callback that does something at the end of an epoch of the model's life, counted from 1."""

    def __init__(self, epoch: int, act: Callable[[ImageSkipGram], None]) -> None:
        self.epoch, self.act = epoch, act

    def on_epoch_end(self, model: ImageSkipGram) -> None:
        if len(model.losses_) == self.epoch:
            self.act(model)


class Broken(Exception):
    pass


def breaks(_: ImageSkipGram) -> None:
    raise Broken


def lines() -> Iterator[str]:
    with open(LEE) as file:
        yield from file
