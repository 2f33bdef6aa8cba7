"""Data that the benchmarks share, those of --data or scikit-learn's digits, and the peers as one calls them."""

from __future__ import annotations

import contextlib
import io
import lzma
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from harness import MissingError
from sklearn.datasets import load_digits
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKAGES = ("vade-robust", "torch", "scikit-learn", "clustpy")
STABLE: dict[str, Any] = {"hidden": (256, 256, 512), "batch_size": 256}  # of the small sets


class Set(NamedTuple):
    """Rows, and the classes that they are compared with in the end."""

    X: Any
    y: NDArray[np.int64]

    @property
    def classes(self) -> int:
        return len(np.unique(self.y))


# --- data ---


def place(data: str | None, *names: str) -> list[Path]:
    """Files of --data."""
    paths = [Path(data or "") / name for name in names]
    if data is None or not all(path.is_file() for path in paths):
        raise MissingError(f"needs --data DIR with {', '.join(names)}")
    return paths


def lines(path: Path) -> list[str]:
    raw = path.read_bytes()
    return (lzma.decompress(raw) if path.suffix == ".xz" else raw).decode("utf-8").splitlines()


@cache
def digits() -> Set:
    X, y = load_digits(return_X_y=True)
    return Set((X / 16).astype(np.float32), y)


@cache
def mnist(data: str | None, test: bool = True) -> Set:
    """All 70,000 images, or the 10,000 that its makers set aside for tests."""
    with np.load(place(data, "images/mnist.npz")[0]) as archive:
        keep = archive["is_test"].astype(bool) if test else slice(None)
        X, y = archive["X"][keep], archive["y"][keep]
    return Set(X.reshape(len(X), -1), y.astype(np.int64))


@cache
def pendigits(data: str | None) -> Set:
    paths = place(data, "cluster/pendigits.tra.xz", "cluster/pendigits.tes.xz")
    table = np.array([line.split(",") for path in paths for line in lines(path)], dtype=np.float32)
    return Set(table[:, :-1] / 100, table[:, -1].astype(np.int64))


@cache
def usps(data: str | None) -> Set:
    text = lines(place(data, "cluster/usps_test.jf.xz")[0])[1:]
    rows = [line.split() for line in text]
    table = np.array([row for row in rows if len(row) == 257], dtype=np.float32)
    return Set(table[:, 1:] / 2, table[:, 0].astype(np.int64))


def bag(texts: list[str], labels: list[str]) -> Set:
    """Texts as tf-idf rows of their 2,000 most frequent words."""
    X = TfidfVectorizer(max_features=2000, sublinear_tf=True, stop_words="english").fit_transform(texts)
    return Set(X.astype(np.float32), np.unique(labels, return_inverse=True)[1])


@cache
def bbc(data: str | None) -> Set:
    rows = [line.split("\t") for line in lines(place(data, "cluster/octis_BBC_News.tsv.xz")[0])]
    return bag([row[0] for row in rows], [row[2] for row in rows])


@cache
def r8(data: str | None) -> Set:
    rows = [
        line.split("\t")
        for path in place(data, "cluster/r8_train.txt.xz", "cluster/r8_test.txt.xz")
        for line in lines(path)
    ]
    return bag([row[1] for row in rows], [row[0] for row in rows])


@cache
def stackoverflow(data: str | None) -> Set:
    titles, labels = place(data, "cluster/stc2_StackOverflow.txt.xz", "cluster/stc2_StackOverflow_labels.txt")
    return bag(lines(titles), [label.strip() for label in lines(labels)])


def dense(data: Set) -> NDArray[np.float32]:
    """Rows as every method can take them."""
    X = data.X.toarray() if hasattr(data.X, "toarray") else data.X
    return (X / 255 if X.dtype == np.uint8 else X).astype(np.float32)


def reduced(data: Set) -> NDArray[np.float64]:
    """Latent semantic analysis: 50 components of unit length."""
    return np.asarray(normalize(TruncatedSVD(50, random_state=0).fit_transform(data.X)))


# --- the peer ---


def clustpy_vade(
    inputs: int,
    clusters: int,
    seed: int,
    *,
    hidden: tuple[int, ...],
    batch_size: int,
    pretrain_epochs: int,
    epochs: int,
) -> Any:
    """ClustPy's VaDE with networks, batch and epochs of ours; `labels_` and `vade_labels_` are its two answers."""
    from clustpy.deep import VaDE
    from clustpy.deep.vade import _VaDE_VAE
    from torch.nn import ReLU

    network = _VaDE_VAE, {"layers": [inputs, *hidden, 10], "activation_fn": ReLU}
    return VaDE(
        clusters,
        batch_size=batch_size,
        pretrain_epochs=pretrain_epochs,
        clustering_epochs=epochs,
        neural_network=network,
        embedding_size=10,
        random_state=seed,
        device="cpu",
    )


def quietly(work: Any, *args: Any) -> Any:
    """Its progress bars would hide ours."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        return work(*args)
