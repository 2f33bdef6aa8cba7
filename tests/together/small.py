"""A small one of everything that the packages make, and how it is used."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from adamod import AdaMod
from cws_multidomain import Segmenter, train
from gasam import GASAM
from imgskipgram import ImageBank, ImageSkipGram
from iounet import IoUHead
from iounet.ops import nms, prroi_pool
from paramcorrupt import Corruption, Defense, Report, random_corruption, scan
from vade_robust import VaDE

if TYPE_CHECKING:
    from collections.abc import Callable

NEWS = [["我们", "爱", "北京"], ["北京", "很", "大"], ["他们", "在", "大学", "学习"]] * 9
WEB = [["我们", "爱", "网购"], ["网购", "很", "快"]] * 9
TEXTS = ["我们爱北京大学", "他们在网购", "北京很大他们很快"] * 50
LINES = ["the fire brigade fights the fire", "the police fights crime", "water ends the fire of the police"] * 40
ROWS = np.random.default_rng(0).random((150, 12), dtype=np.float32)
VADE: dict[str, Any] = {"n_clusters": 3, "hidden": (8,), "n_latent": 2, "pretrain_epochs": 1, "batch_size": 64}


# --- things ---------------------------------------------------------------------------------------------------------


@cache
def segmenter(epochs: int = 1) -> Segmenter:
    return train({"news": NEWS, "web": WEB}, epochs=epochs, threads=1)


@cache
def bank(seed: int = 0) -> ImageBank:
    features = np.random.default_rng(seed).normal(size=(6, 5)).astype(np.float32)
    return ImageBank.from_features(features, ["fire", "police", "water"] * 2)


@cache
def vectors(epochs: int = 1, workers: int = 1) -> ImageSkipGram:
    model = ImageSkipGram(vector_size=16, min_count=1, deterministic=True, workers=workers, epochs=epochs)
    return model.fit(LINES, bank())


@cache
def vade(seed: int = 0) -> VaDE:
    return VaDE(**VADE, epochs=1, start="gmm", random_state=seed).fit(ROWS)


def iou_head() -> IoUHead:
    torch.manual_seed(0)
    return IoUHead(4, 3)


def network(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(9, 4, generator=generator), torch.arange(9) % 3) for _ in range(2)]


def change(seed: int = 0) -> Corruption:
    return random_corruption(network(), eps=0.1, n=30, seed=seed)


def report(seed: int = 0) -> Report:
    return scan(network(), "cross_entropy", batches(), seed=seed, random=1, progress=False)


def bits(model: nn.Module) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in model.parameters()]


# --- optimizers -----------------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adamod": lambda model: AdaMod(model.parameters(), lr=0.01),
    "gasam": lambda model: GASAM(model, torch.optim.SGD, 0.1, lr=0.05, momentum=0.9),
    "gasam over adamod": lambda model: GASAM(model, AdaMod, 0.1, lr=0.01, steps=2, risk="average"),
    "defense over adamod": lambda model: Defense(model, AdaMod, eps=0.3, lr=0.01),
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, before: Callable[[], None] = lambda: None) -> None:
    x, y = batches()[0]

    def closure() -> torch.Tensor:
        before()
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)


# --- uses -----------------------------------------------------------------------------------------------------------


def to_train(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network(20_000)  # which is enough for the kernels to share it out among threads
    return model, OPTIMIZERS[name](model)


def trained(pair: tuple[nn.Module, torch.optim.Optimizer]) -> Any:
    for _ in range(2):
        step(*pair)
    return bits(pair[0])


def pooled(head: IoUHead) -> Any:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 4, 40, 40, generator=generator)
    corners = 20 * torch.rand(200, 2, generator=generator)
    boxes = torch.cat([torch.arange(200).view(-1, 1) % 2, corners, corners + 15], 1).requires_grad_()
    found = head(prroi_pool(features, boxes, 7, 1.0), torch.arange(200) % 3)
    (gradient,) = torch.autograd.grad(found.sum(), boxes)
    keep = nms(boxes.detach()[:, 1:], found.detach().flatten(), 0.5)
    return [x.detach().numpy().tobytes() for x in (found, gradient, keep)]


def scanned(model: nn.Module) -> Any:
    return scan(model, "cross_entropy", batches(), verify="all", random=1, progress=False).rows()


def clustered(model: VaDE) -> Any:
    return model.predict_proba(ROWS).tobytes(), model.transform(ROWS).tobytes()


def explained(model: ImageSkipGram) -> Any:
    return model.wv.most_similar("fire"), [image[:2] for image in model.explain("crime").images]


def segmented(model: Segmenter) -> Any:
    return model.cut_many(TEXTS, threads=2), model.nbest("我们爱北京大学", 2)


USES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    **{name: (partial(to_train, name), trained) for name in OPTIMIZERS},
    "iounet": (iou_head, pooled),
    "paramcorrupt": (partial(network, 20_000), scanned),
    "vade-robust": (vade, clustered),
    "imgskipgram": (partial(vectors, 2, 2), explained),
    "cws-multidomain": (segmenter, segmented),
}
CHANGED_BY_USE = (trained, scanned)
