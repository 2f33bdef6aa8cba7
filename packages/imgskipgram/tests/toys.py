"""A small vocabulary and a small bank, and an epoch over a few sentences of them."""

from dataclasses import replace

import numpy as np

from imgskipgram import _core, _reference
from imgskipgram._rows import rounded

V, M, D = 40, 9, 7


def samples(negatives="center", **changes):
    rng = np.random.default_rng(3)
    threshold, alias = _core.alias_build(rng.random(V) ** 4)
    keep = np.where(rng.random(V) < 0.5, 2**32 - 1, rng.integers(2**30, 2**32, V)).astype(np.uint32)
    images = [sorted(rng.choice(M, w % 3, replace=False).tolist()) if w % 2 else [] for w in range(V)]
    made = _reference.Samples(keep, threshold, alias, images, M, 3, 5, 4, True, negatives, seed=2**40 + 7, epoch=2)
    return replace(made, **changes)


def arrays(s):
    first = np.cumsum([0, *map(len, s.images)]).astype(np.uint64)
    return s.keep, s.threshold, s.alias, first, np.array([i for own in s.images for i in own], np.uint32)


def start(rows, rng, dtype="float32"):
    out = _core.aligned(rows, D, dtype)
    out[:, :D] = rounded(rng.normal(size=(rows, D)) / 2, dtype)
    return out


def toy(rng, dtype="float32"):
    """v, u and z."""
    return start(V, rng, dtype), start(V, rng, dtype), start(M, rng, "float64" if dtype == "float64" else "float32")


def train(s, ids, offsets, v, u, z, *, objective="nce", trained=False, flags=None, lockf=None, **changes):
    keep, threshold, alias, first, images = arrays(s)
    schedule = {
        "alpha": 0.05, "min_alpha": 0.05, "done": 0, "first_token": 0, "total": len(ids), "first_sentence": 5,
        "image_weight": 0.7, "loss": "exact", "workers": 1, "isa": _core.instruction_sets()[0], **changes,
    }  # fmt: skip
    lockf = np.linspace(0.5, 1, V).astype(z.dtype) if lockf is None else lockf
    return _core.train_epoch(
        ids, offsets, keep, threshold, alias, v, u, lockf, first, images, z,
        *(flags or (np.zeros(1, np.uint8), np.zeros(1, np.uint64))), window=s.window, negative=s.negative,
        shrink_windows=s.shrink_windows, negatives=s.negatives, objective=objective, image_negative=s.image_negative,
        images_trained=trained, seed=s.seed, epoch=s.epoch, **schedule,
    )  # fmt: skip
