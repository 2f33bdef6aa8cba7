"""Words that stay where they are, vectors from elsewhere, new words, and a training that is broken off and goes on.

python freeze_and_resume.py [--epochs 20] [--smoke]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from gensim.test.utils import datapath

from imgskipgram import ImageSkipGram

LINES = Path(datapath("lee_background.cor")).read_text(encoding="utf-8").splitlines()


def frozen(epochs: int) -> None:
    """Train on other text without moving the words that a first text taught."""
    model = ImageSkipGram(vector_size=50, epochs=epochs).fit(LINES[:200])
    known = list(model.wv.index_to_key)
    model.build_vocab(LINES[200:], update=True)
    model.wv.vectors_lockf = np.ones(len(model.wv), np.float32)
    model.wv.vectors_lockf[: len(known)] = 0  # updates of a word are multiplied by its factor
    before = model.wv.vectors.copy()
    model.train(LINES[200:])
    old, new = np.split((model.wv.vectors != before).any(1), [len(known)])
    print(f"frozen: {old.sum()} of {len(old)} old words moved, and {new.sum()} of {len(new)} new ones")


def warm(epochs: int) -> None:
    """Begin with vectors that are there: whatever stands in wv.vectors is where training starts."""
    other = ImageSkipGram(vector_size=50, epochs=epochs).fit(LINES).wv
    for start in ("at random", "from other"):
        model = ImageSkipGram(vector_size=50, epochs=1, seed=2)
        model.build_vocab(LINES)
        if start == "from other":
            model.wv.vectors[:] = other[model.wv.index_to_key]
        model.train(LINES)
        print(f"first epoch {start}: loss {model.losses_[0]['text']:.3f} per pair")


class Saves:
    """A callback that keeps a checkpoint after each epoch, and, to show what then happens, breaks off."""

    def __init__(self, path: Path, last: int) -> None:
        self.path, self.last = path, last

    def on_epoch_end(self, model: ImageSkipGram) -> None:
        model.save(self.path)
        if len(model.losses_) == self.last:
            raise KeyboardInterrupt  # as from Ctrl-C, or a machine that is taken away


def resumed(epochs: int) -> None:
    """What was broken off goes on to the same bits: rates and samples depend on the place, and on nothing else."""
    straight = ImageSkipGram(vector_size=50, epochs=epochs, deterministic=True).fit(LINES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "checkpoint.npz")
        try:
            ImageSkipGram(vector_size=50, epochs=epochs, deterministic=True, callbacks=[Saves(path, 2)]).fit(LINES)
        except KeyboardInterrupt:
            print(f"broken off; {path.name} has {path.stat().st_size / 1e6:.1f} MB")
        model = ImageSkipGram.load(path)
        model.train(LINES)  # without epochs or rates it goes on with the training that the file holds
    same = np.array_equal(model.wv.vectors, straight.wv.vectors) and model.losses_ == straight.losses_
    print(f"resumed at epoch 3 of {epochs}: {'the same bits' if same else 'other bits'} as without a break")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--smoke", action="store_true", help="4 epochs")
    options = parser.parse_args()
    count = 4 if options.smoke else options.epochs
    frozen(count)
    warm(count)
    resumed(count)
