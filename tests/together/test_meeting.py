"""Packages in each other's service, by what their READMEs say: trained by one, cut by one, scanned by one."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import iounet
import paramcorrupt
from adamod import AdaMod
from cws_multidomain import Segmenter
from imgskipgram import ImageSkipGram
from iounet import detection, training
from iounet.data import synthetic_scenes
from paramcorrupt import Objective, corrupted, corruption, relative
from paramcorrupt.cli import main as paramcorrupt_command
from vade_robust import VaDE
from vade_robust.metrics import clustering_accuracy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.optim import Optimizer

RATE = 0.1  # too large for Adam


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(folder: Path, *command: str, stdin: str | None = None) -> str:
    """What a program of the packages prints. It is found where this Python looks for programs."""
    program = str(Path(sys.executable).with_name(command[0]))
    done = subprocess.run([program, *command[1:]], cwd=folder, input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- AdaMod trains an IoU head ---


def boxes_of_blobs(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features pooled in boxes around a bright object on a map of noise, their class and their IoU with it."""
    generator = torch.Generator().manual_seed(seed)
    side = 48
    low = 8 + 8 * torch.rand(count, 2, generator=generator)
    gt = torch.cat([low, low + 12 + 12 * torch.rand(count, 2, generator=generator)], 1)
    axis = torch.arange(side) + 0.5
    inside = [torch.sigmoid(axis - gt[:, k, None]) * torch.sigmoid(gt[:, k + 2, None] - axis) for k in (0, 1)]
    blob = inside[1][:, None, :, None] * inside[0][:, None, None, :]
    features = blob * torch.tensor([1.0, -0.5])[:, None, None]
    features = features + 0.1 * torch.randn(features.shape, generator=generator)
    boxes, iou = iounet.sample_jittered_boxes(gt, 4, image_size=(side, side), generator=generator)
    image = torch.arange(float(count))[:, None, None].expand(-1, 4, 1)
    rows = torch.cat([image, boxes], 2).flatten(0, 1)
    return iounet.ops.prroi_pool(features, rows, 7, 1.0), torch.ones(4 * count, dtype=torch.int64), iou.flatten()


def head_error(make: Callable[[Any], Optimizer], learn: Any, test: Any, seed: int, steps: int) -> float:
    torch.manual_seed(seed)
    head = iounet.IoUHead(2, num_classes=2, hidden=64)
    optimizer, generator = make(head.parameters()), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(learn[0]), (128,), generator=generator)
        pooled, labels, iou = (x[chosen] for x in learn)
        loss = head.loss(head(pooled, labels), labels, iou)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float((head.decode(head(test[0], test[1])).clamp(0, 1) - test[2]).abs().mean())


def test_adamod_trains_an_iou_head_at_a_rate_at_which_adamw_does_not() -> None:
    """All five seeds, of which none was looked at while the rate was chosen: p = 1/32 if the two were alike."""
    learn, test = boxes_of_blobs(400, 0), boxes_of_blobs(200, 1)
    constant = float((test[2] - test[2].mean()).abs().mean())
    errors = []
    for seed in range(100, 105):
        ours = head_error(lambda p: AdaMod(p, lr=RATE), learn, test, seed, 100)
        peer = head_error(lambda p: torch.optim.AdamW(p, lr=RATE, weight_decay=0.0, fused=True), learn, test, seed, 100)
        assert ours < peer
        errors.append(ours)
    assert sum(errors) / 5 < 0.8 * constant


def test_adamod_trains_what_an_iou_net_lets_it_train_and_leaves_the_frozen_detector_alone() -> None:
    torch.manual_seed(0)
    scenes = synthetic_scenes(4, 0, 64)
    images, targets = zip(*(scenes[index] for index in range(4)), strict=True)
    targets = [{**target, "jitter_seed": 7} for target in targets]
    sizes = {"width": 4, "channels": 4, "hidden": 8, "min_size": 64, "max_size": 64}
    detector = detection.small_fasterrcnn(1 + len(scenes.classes), **sizes)
    net = detection.StandaloneIoUNet.from_detector(detector, samples_per_image=16).train()
    before = {name: x.detach().clone() for name, x in net.state_dict().items()}
    optimizer = AdaMod(net.parameters(), lr=3e-3, beta3=0.9)
    losses = []
    for _ in range(8):
        loss = net(images, targets)["loss_iou"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    for name, x in net.state_dict().items():
        assert torch.equal(x, before[name]) != name.startswith("iou_head."), name
    assert len(optimizer.state) == sum(p.requires_grad for p in net.parameters()) == 6


# --- AdaMod trains a VaDE ---


@pytest.fixture(scope="module")
def digits() -> Any:
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32), y


@pytest.fixture(scope="module")
def pretrained(digits: Any) -> VaDE:
    """Pretrained, with a mixture to start from; the rate of its one epoch moves nothing."""
    model = VaDE(10, hidden=(64,), batch_size=257, pretrain_epochs=6, epochs=1, lr=1e-12, start="gmm", random_state=100)
    return model.set_params(device="cpu").fit(digits[0])


def vade_loss(networks: nn.Module, x: Tensor, noise: Tensor, cluster_weight: float) -> Tensor:
    mean, log_variance = networks.encode(x)
    decoded = networks.decoder(mean + (0.5 * log_variance).exp() * noise)
    reconstruction = functional.binary_cross_entropy_with_logits(decoded, x, reduction="sum") / len(x)
    entropy = 0.5 * (log_variance + 1 + math.log(2 * math.pi)).sum(1)
    return reconstruction - cluster_weight * (networks.scores(mean, log_variance)[1] + entropy).mean()


def trained(start: VaDE, make: Callable[[Any], Optimizer], rows: Tensor, seed: int, epochs: int = 12) -> VaDE:
    model = copy.deepcopy(start)
    optimizer, generator = make(model.module_.parameters()), torch.Generator().manual_seed(seed)
    for epoch in range(1, epochs + 1):
        for chosen in torch.randperm(len(rows), generator=generator).split(257):
            noise = torch.randn(len(chosen), 10, generator=generator)
            loss = vade_loss(model.module_, rows[chosen], noise, epoch / epochs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def test_adamod_keeps_the_clusters_of_a_vade_at_a_rate_at_which_adam_loses_them(digits: Any, pretrained: VaDE) -> None:
    (X, y), rows = digits, torch.from_numpy(digits[0])
    for seed in (100, 101, 102):
        ours = trained(pretrained, lambda p: AdaMod(p, lr=RATE), rows, seed).predict(X)
        peer = trained(pretrained, lambda p: torch.optim.Adam(p, lr=RATE), rows, seed).predict(X)
        assert clustering_accuracy(y, ours) > 0.4
        assert clustering_accuracy(y, peer) < 0.2
        assert len(np.unique(ours)) >= 8


def test_what_was_trained_outside_of_the_estimator_is_what_it_predicts_with_and_saves(
    digits: Any, pretrained: VaDE, tmp_path: Path
) -> None:
    X = digits[0]
    model = trained(pretrained, lambda p: AdaMod(p, lr=RATE), torch.from_numpy(X), 0, epochs=1)
    labels = model.predict(X)
    assert (labels != pretrained.predict(X)).any()
    mean, log_variance = model.module_.encode(torch.from_numpy(X))
    assert (labels == model.module_.scores(mean, log_variance)[0].argmax(1).numpy()).all()
    model.save(tmp_path / "digits")
    assert (VaDE.load(tmp_path / "digits", device="cpu").predict(X) == labels).all()


# --- words cut by cws-multidomain feed imgskipgram ---

CLASSES = {
    "动物": ("老虎 狮子 大象 猴子 兔子 熊猫", "动物园里的{}正在睡觉", "{}在森林里寻找食物", "一群{}跑过草原"),
    "水果": ("苹果 香蕉 葡萄 西瓜 草莓 桃子", "妈妈买了三斤{}", "这些{}又甜又新鲜", "果园里的{}成熟了"),
    "城市": ("北京 上海 广州 南京 武汉 成都", "{}的人口超过一千万", "我们明年搬到{}居住", "这趟航班飞往{}"),
    "职业": ("医生 老师 律师 记者 警察 工人", "他的父亲是一名{}", "公司招聘有经验的{}", "她毕业以后当了{}"),
}


def sentences() -> list[str]:
    """Each word of each class in each of its sentences, three times over."""
    lines = [form.format(word) for words, *forms in CLASSES.values() for word in words.split() for form in forms]
    order = np.random.default_rng(0).permutation(3 * len(lines))
    return [lines[place % len(lines)] for place in order]


def purity(model: ImageSkipGram) -> float:
    """The share of the three nearest words of the lists that are of the same class; all words must be words."""
    kind = {word: name for name, (words, *_) in CLASSES.items() for word in words.split()}
    rows = np.stack([model.wv.get_vector(word, norm=True) for word in kind])
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -np.inf)
    names = np.array(list(kind.values()))
    return float((names[np.argsort(-cosines, 1)[:, :3]] == names[:, None]).mean())


SKIPGRAM: dict[str, Any] = {"vector_size": 24, "min_count": 1, "epochs": 30, "workers": 1, "seed": 100}


def test_words_that_were_cut_find_their_class_and_shuffled_ones_do_not() -> None:
    tokens = Segmenter.load().cut_many(sentences())
    assert ["".join(sentence) for sentence in tokens] == sentences()
    assert purity(ImageSkipGram(**SKIPGRAM).fit(tokens)) > 0.65
    words = [word for sentence in tokens for word in sentence]
    shuffled = iter(np.random.default_rng(1).permutation(words).tolist())
    mixed = [[next(shuffled) for _ in sentence] for sentence in tokens]
    assert purity(ImageSkipGram(**SKIPGRAM).fit(mixed)) < 0.45  # chance is 5 of 23


def test_the_commands_of_both_make_of_a_file_the_vectors_that_the_libraries_make(tmp_path: Path) -> None:
    text = "\n".join(sentences()[:60]) + "\n"
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    (tmp_path / "words.txt").write_text(run(tmp_path, "cws", "cut", "text.txt"), encoding="utf-8")
    options = ["--vector-size=24", "--min-count=1", "--epochs=3", "--seed=100", "--workers=1", "--deterministic"]
    run(tmp_path, "imgskipgram", "train", "words.txt", "-o", "model.npz", *options)
    by_command = ImageSkipGram.load(tmp_path / "model.npz")
    tokens = Segmenter.load().cut_many(text.splitlines())
    by_library = ImageSkipGram(**{**SKIPGRAM, "epochs": 3}, deterministic=True).fit(tokens)
    assert by_command.wv.index_to_key == by_library.wv.index_to_key
    assert by_command.wv.vectors.tobytes() == by_library.wv.vectors.tobytes()


# --- paramcorrupt scans what the others trained ---

SIZES = {"width": 4, "channels": 4, "hidden": 8, "min_size": 64, "max_size": 64}
MINE = """
import torch
from iounet.data import synthetic_scenes
from iounet.detection import add_iou_net, small_fasterrcnn
from paramcorrupt import Objective
from vade_robust import VaDE

scenes = synthetic_scenes(6, 1, 64)
batches = [([image], [dict(target, jitter_seed=7)]) for image, target in (scenes[k] for k in range(2))]


def detector():
    model = small_fasterrcnn(1 + len(scenes.classes), width=4, channels=4, hidden=8, min_size=64, max_size=64)
    return add_iou_net(model, samples_per_image=16)


@Objective
def losses(model, batch):  # a detector gives losses in training mode only
    return sum(model.train()(*batch).values()), 1, None


def networks():
    return VaDE.load("digits", device="cpu").module_


def rows():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(64, 64, generator=generator)]


@Objective
def likelihood(model, x):
    mean, log_variance = model.encode(x)
    error = torch.nn.functional.binary_cross_entropy_with_logits(model.decoder(mean), x, reduction="sum")
    return error - model.scores(mean, log_variance)[1].sum(), len(x), None
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory, pretrained: VaDE) -> Path:
    """A folder with mine.py, a detector that iounet trained, run/model.pth, and a model of vade-robust, digits/."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    scenes = synthetic_scenes(8, 0, 64)
    torch.manual_seed(0)
    model = detection.small_fasterrcnn(1 + len(scenes.classes), **SIZES)
    detection.add_iou_net(model, samples_per_image=16)
    training.fit(model, scenes, epochs=3, optimizer="adamw", lr=1e-3, warmup=2, schedule="constant", out=folder / "run")
    pretrained.save(folder / "digits")
    return folder


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: x.detach().numpy().tobytes() for name, x in model.state_dict().items()}


def detector_of(mine: Path) -> nn.Module:
    model = detection.small_fasterrcnn(4, **SIZES)
    detection.add_iou_net(model, samples_per_image=16)
    model.load_state_dict(torch.load(mine / "run" / "model.pth")["model"])
    return model


def detector_loss(model: nn.Module, batch: Any) -> tuple[Tensor, int, None]:
    return sum(model(*batch).values()), 1, None


def vade_likelihood(model: nn.Module, x: Tensor) -> tuple[Tensor, int, None]:
    return vade_loss(model, x, torch.zeros(len(x), 10), 1.0) * len(x), len(x), None


@pytest.mark.parametrize("kind", ["detector", "mixture"])
def test_a_scan_lists_every_tensor_leaves_every_bit_and_tells_fragile_from_robust(
    kind: str, mine: Path, digits: Any
) -> None:
    if kind == "detector":
        scenes = synthetic_scenes(2, 1, 64)
        data: list[Any] = [([image], [{**target, "jitter_seed": 7}]) for image, target in (scenes[0], scenes[1])]
        model, step = detector_of(mine).train(), detector_loss
    else:
        data = list(torch.from_numpy(digits[0][:256]).split(128))
        model, step = VaDE.load(mine / "digits", device="cpu").module_, vade_likelihood
    before, flags = bits(model), [module.training for module in model.modules()]
    report = paramcorrupt.scan(model, Objective(step), data, eps=relative(0.02), verify=3, mode="keep", progress=False)
    assert bits(model) == before
    assert [module.training for module in model.modules()] == flags
    assert sorted(row.group for row in report) == sorted(name for name, _ in model.named_parameters())
    assert sum(row.numel for row in report) == sum(x.numel() for x in model.parameters())
    assert all(row.predicted is not None and math.isfinite(row.predicted) for row in report)
    assert all(row.measured is not None and math.isfinite(row.measured) for row in report[:3])

    def loss() -> float:
        torch.manual_seed(0)  # a detector draws proposals
        with torch.no_grad():
            return sum(float(step(model, batch)[0]) for batch in data) / sum(step(model, batch)[1] for batch in data)

    def lost(name: str) -> float:
        tensors = dict(model.named_parameters())
        torch.manual_seed(0)
        (sum(step(model, batch)[0] for batch in data) / sum(step(model, batch)[1] for batch in data)).backward()
        grads = {name: tensors[name].grad.clone()}
        model.zero_grad()
        clean = loss()
        with corrupted(model, corruption(grads, eps=float(0.02 * tensors[name].detach().norm()))):
            return loss() - clean

    measured = [row for row in report if row.numel > 1]
    most, least = lost(measured[0].group), lost(measured[-1].group)
    assert most > 10 * abs(least)
    assert most > 0.01


def test_the_command_scans_what_iounet_saved(mine: Path) -> None:
    told = run(
        mine, "paramcorrupt", "scan", "mine:detector", "--weights", "run/model.pth", "--data", "mine:batches",
        "--loss", "mine:losses", "--verify", "1", "--json", "report.json", "--html", "report.html",
    )  # fmt: skip
    report = paramcorrupt.Report.from_json(mine / "report.json")
    names = {name for name, _ in detector_of(mine).named_parameters()}
    assert {row.group for row in report} == names
    assert report[0].group in told
    assert report[0].measured is not None
    assert report[0].measured > 0
    assert report[0].group in (mine / "report.html").read_text(encoding="utf-8")


def test_the_command_scans_what_vade_robust_saved(mine: Path) -> None:
    run(
        mine, "paramcorrupt", "scan", "mine:networks", "--data", "mine:rows", "--loss", "mine:likelihood",
        "--verify", "1", "--json", "mixture.json",
    )  # fmt: skip
    report = json.loads((mine / "mixture.json").read_text(encoding="utf-8"))
    networks = VaDE.load(mine / "digits", device="cpu").module_
    assert {row["group"] for row in report["rows"]} == {name for name, _ in networks.named_parameters()}


def test_a_detector_runs_with_flipped_bits_and_vade_robust_notices_a_single_one(mine: Path, tmp_path: Path) -> None:
    model, saved, flipped = detector_of(mine), tmp_path / "model.safetensors", tmp_path / "flipped.safetensors"
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, saved)
    faults = ["--count", "3", "--bits", "10", "--seed", "0"]
    assert paramcorrupt_command(["bitflip", str(saved), *faults, "--output", str(flipped)]) == 0
    before, after = load_file(saved), load_file(flipped)
    assert 1 <= sum(not same(x, after[name]) for name, x in before.items()) <= 3
    model.load_state_dict(after)
    assert set(model.eval()([synthetic_scenes(1, 1, 64)[0][0]])[0]) == {"boxes", "labels", "scores", "ious"}

    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_bytes((mine / "digits" / "config.json").read_bytes())
    files = [str(folder / "model.safetensors") for folder in (mine / "digits", damaged)]
    faults = ["--tensors", "networks.mean.*", "--count", "1", "--bits", "20", "--seed", "0"]
    assert paramcorrupt_command(["bitflip", files[0], *faults, "--output", files[1]]) == 0
    with pytest.raises(ValueError, match="was changed"):
        VaDE.load(damaged, device="cpu")


def same(a: Tensor, b: Tensor) -> bool:
    return a.detach().numpy().tobytes() == b.detach().numpy().tobytes()
