"""Ctrl-C at any moment of a step, a scan, a training and a command."""

from __future__ import annotations

import contextlib
import itertools
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from together.apart import apart
from together.moments import ctrl_c, moments, press_ctrl_c
from together.small import LINES, NEWS, OPTIMIZERS, ROWS, VADE, batches, bits, network, step

import cws_multidomain.cli
import imgskipgram.cli
import paramcorrupt.cli
from imgskipgram import ImageSkipGram
from iounet.data import synthetic_scenes
from iounet.detection import StandaloneIoUNet
from iounet.training import fit
from paramcorrupt import scan
from vade_robust import VaDE
from vade_robust.callbacks import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.mark.parametrize("name", OPTIMIZERS)
@apart
def test_ctrl_c_in_a_step_leaves_the_weights_before_or_after_it(name: str) -> None:
    def fresh(before: Callable[[], Any] = lambda: None) -> tuple[torch.nn.Module, Callable[[], None]]:
        model = network()
        optimizer = OPTIMIZERS[name](model)
        step(model, optimizer)
        return model, partial(step, model, optimizer, before)

    model, work = fresh()
    clean = bits(model)
    work()
    stepped = bits(model)
    assert clean != stepped
    for n in moments(fresh()[1]):
        model, work = fresh()
        with pytest.raises(KeyboardInterrupt):
            ctrl_c(n, work)
        assert bits(model) in (clean, stepped), f"after moment {n}"

    for k in itertools.count():
        calls = itertools.count()
        model, work = fresh(lambda k=k, calls=calls: press_ctrl_c() if next(calls) == k else None)
        try:
            work()
        except KeyboardInterrupt:
            assert bits(model) == clean, f"after call {k} of the closure"
            work()
            assert bits(model) != clean
        else:
            break
    assert k == next(calls) > 0


class Data:
    """Presses Ctrl-C before the n-th batch of all passes."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[Any]:
        for batch in batches():
            self.n -= 1
            if self.n == 0:
                press_ctrl_c()
            yield batch


@apart
def test_ctrl_c_in_a_scan_leaves_the_weights_as_they_were() -> None:
    model = network()
    before = bits(model)
    for n in itertools.count(1):
        with contextlib.suppress(KeyboardInterrupt):
            scan(model, "cross_entropy", Data(n), verify="all", random=1, progress=False)
            break
        assert bits(model) == before
    assert n > 2 * (1 + 2 * 4)  # batches of a gradient, and two trials for each of four tensors


# --- training -------------------------------------------------------------------------------------------------------


def train_vade(folder: Path) -> Any:
    model = VaDE(**VADE, epochs=3, start="gmm", random_state=0, callbacks=[Checkpoint(folder, every=1)])
    there = any(folder.iterdir())
    return bits(model.fit(ROWS, resume=folder if there else None).module_)


def train_iou_net(folder: Path) -> Any:
    torch.manual_seed(0)
    net = StandaloneIoUNet(torch.nn.Conv2d(3, 4, 7, 8, 3), 4, samples_per_image=4)
    fit(net, synthetic_scenes(4, size=32), epochs=2, batch_size=2, out=folder, resume=any(folder.iterdir()))
    return bits(net)


def train_words(folder: Path) -> Any:
    path = folder / "model.npz"
    begun = path.exists()
    model = ImageSkipGram.load(path) if begun else ImageSkipGram(16, min_count=1, epochs=4, deterministic=True)
    try:
        if not begun:
            model.fit(LINES)
        elif len(model.losses_) < model.epochs:
            model.train(LINES)
    except KeyboardInterrupt:
        with contextlib.suppress(ValueError, RuntimeError):  # nothing to save before words are known
            model.save(path)
        raise
    return model.wv.vectors.tobytes()


@pytest.mark.parametrize(
    ("work", "most"),
    [(train_vade, 16), (train_iou_net, 6), (train_words, 40)],
    ids=lambda x: getattr(x, "__name__", ""),
)
@apart
def test_training_goes_on_to_the_same_bits_after_ctrl_c(work: Callable[[Path], Any], most: int, tmp_path: Path) -> None:
    folders = (tmp_path / str(k) for k in itertools.count())

    def fresh() -> Path:
        folder = next(folders)
        folder.mkdir()
        return folder

    expected = work(fresh())
    for n in moments(partial(work, fresh()), most):
        folder = fresh()
        with pytest.raises(KeyboardInterrupt):
            ctrl_c(n, partial(work, folder))
        assert not [path.name for path in folder.rglob(".*")], f"after moment {n}"
        assert work(folder) == expected, f"after moment {n}"


# --- commands -------------------------------------------------------------------------------------------------------

WORDS = "train lines.txt --min-count=1 --vector-size=8 --epochs=2 --workers=1 -o"
COMMANDS = {
    "cws": (cws_multidomain.cli.main, "train news=news.txt --epochs=2 --output", "m.cws"),
    "imgskipgram": (imgskipgram.cli.main, WORDS, "m.npz"),
    "paramcorrupt": (
        paramcorrupt.cli.main,
        "scan together.small:network --data together.small:batches --html",
        "m.html",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
@apart
def test_ctrl_c_in_a_command_ends_it_with_130_and_the_old_file_or_the_new(name: str, tmp_path: Path) -> None:
    main, command, file = COMMANDS[name]
    (tmp_path / "news.txt").write_text("\n".join(map(" ".join, NEWS)), encoding="utf-8")
    (tmp_path / "lines.txt").write_text("\n".join(LINES), encoding="utf-8")
    output = tmp_path / "out" / file
    output.parent.mkdir()
    os.chdir(tmp_path)
    arguments = [*command.split(), str(output)]
    assert main(arguments) == 0
    new = output.read_bytes()
    codes: list[int | None] = []
    for n in moments(partial(main, arguments), 40):
        output.write_text("old")
        try:
            ctrl_c(n, lambda: codes.append(main(arguments)))
        except KeyboardInterrupt:
            codes.append(None)
        assert [path.name for path in output.parent.iterdir()] == [file]
        content = output.read_bytes()
        assert content == b"old" or content[-16:] == new[-16:], f"after moment {n}"
    reads = codes.count(None)  # its arguments, and does not yet listen
    assert codes == reads * [None] + (len(codes) - reads) * [130]
    assert reads < len(codes) / 4
