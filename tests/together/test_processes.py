"""Unlucky users: forks, other processes and threads, Ctrl-C at any moment, kills, full disks, in every package.

Run by pytest this file starts itself once as a program, which imports everything once and forks a process for each of
the scenarios, by public names only: one of them may die, hang or be killed without the others. Moments are not waited
for but counted: a trace counts the lines of a package that are executed, and the signal comes at the n-th of them.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

PATIENCE = 120  # seconds for a scenario on a busy machine; none takes five on an idle one
SCENARIOS: dict[str, Callable[[Path], None]] = {}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def scenario(function: Callable[[Path], None]) -> Callable[[Path], None]:
    SCENARIOS[function.__name__.replace("_", " ")] = function
    return function


# --- what is used ---------------------------------------------------------------------------------------------------

NEWS = [["我们", "爱", "北京"], ["北京", "很", "大"], ["他们", "在", "大学", "学习"]] * 9
WEB = [["我们", "爱", "网购"], ["网购", "很", "快"]] * 9
TEXTS = ["我们爱北京大学", "他们在网购", "北京很大他们很快"] * 50
LINES = ["the fire brigade fights the fire", "the police fights crime", "water ends the fire of the police"] * 40


@cache
def segmenter(epochs: int = 1) -> Any:
    from cws_multidomain import train

    return train({"news": NEWS, "web": WEB}, epochs=epochs, threads=1)


@cache
def vectors(epochs: int = 1, workers: int = 1) -> Any:
    from imgskipgram import ImageSkipGram

    options: dict[str, Any] = {"vector_size": 16, "min_count": 1, "deterministic": True, "workers": workers}
    return ImageSkipGram(**options, epochs=epochs).fit(LINES, bank())


@cache
def bank(seed: int = 0) -> Any:
    import numpy as np

    from imgskipgram import ImageBank

    features = np.random.default_rng(seed).normal(size=(6, 5)).astype(np.float32)
    return ImageBank.from_features(features, ["fire", "police", "water"] * 2)


@cache
def vade(seed: int = 0) -> Any:
    from vade_robust import VaDE

    settings: dict[str, Any] = {"hidden": (8,), "n_latent": 2, "pretrain_epochs": 1, "epochs": 1, "batch_size": 64}
    return VaDE(3, **settings, start="gmm", random_state=seed).fit(rows())


@cache
def rows() -> Any:
    import numpy as np

    return np.random.default_rng(0).random((150, 12), dtype=np.float32)


def network(width: int = 8) -> nn.Module:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Tanh(), torch.nn.Linear(width, 3))


def batches() -> list[tuple[Any, Any]]:
    import torch

    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(9, 4, generator=generator), torch.arange(9) % 3) for _ in range(2)]


def bits(model: nn.Module) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in model.parameters()]


def change(seed: int) -> Any:
    from paramcorrupt import random_corruption

    return random_corruption(network(), eps=0.1, n=30, seed=seed)


def adamod(model: nn.Module) -> Any:
    from adamod import AdaMod

    return AdaMod(model.parameters(), lr=0.01)


def gasam(model: nn.Module) -> Any:
    import torch

    from gasam import GASAM

    return GASAM(model, torch.optim.SGD, 0.1, lr=0.05, momentum=0.9)


def gasam_over_adamod(model: nn.Module) -> Any:
    from adamod import AdaMod
    from gasam import GASAM

    return GASAM(model, AdaMod, 0.1, lr=0.01, steps=2, risk="average")


def defense_over_adamod(model: nn.Module) -> Any:
    from adamod import AdaMod
    from paramcorrupt import Defense

    return Defense(model, AdaMod, eps=0.3, lr=0.01)


OPTIMIZERS = (adamod, gasam, gasam_over_adamod, defense_over_adamod)


def closure_of(model: nn.Module, optimizer: Any, before: Callable[[], None] = lambda: None) -> Callable[[], Any]:
    from torch.nn.functional import cross_entropy

    x, y = batches()[0]

    def closure() -> Any:
        before()
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


# --- Ctrl-C at any moment -------------------------------------------------------------------------------------------


def at(n: int, action: Callable[[], None], work: Callable[[], Any], *parts: str, folder: Path | None = None) -> int:
    """Work, with an action at the n-th moment; how many there were.

    Python listens to signals when a function is entered and when one of C returns. Moments are those of them that are
    in files whose paths have such a part; with a folder, from the first time on that a file in it is opened.
    """
    count, begun = 0, folder is None

    def hook(event: str, arguments: Any) -> None:
        nonlocal begun
        begun |= event in ("open", "os.mkdir", "os.rename") and str(arguments[0]).startswith(str(folder))

    def profile(frame: Any, event: str, _: Any) -> None:
        nonlocal count
        if begun and event in ("call", "c_return") and any(part in frame.f_code.co_filename for part in parts):
            count += 1
            if count == n:
                action()

    def lost(unraisable: Any) -> None:
        """Python drops what is raised in a generator that is thrown away: whoever pressed Ctrl-C presses it again."""
        nonlocal n
        assert unraisable.exc_type is KeyboardInterrupt
        n = count + 1
        sys.setprofile(profile)  # which ends where it raises

    if folder is not None:
        sys.addaudithook(hook)
    sys.setprofile(profile)
    sys.unraisablehook, usual = lost, sys.unraisablehook
    try:
        work()
    finally:
        sys.setprofile(None)
        sys.unraisablehook = usual
    return count


# Of Python's library: without tempfile, whose own moment between a file and its name no package can help.
STANDARD = ("/contextlib.py", "/os.py", "/pathlib.py", "/shutil.py")


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Saver:
    """How something is saved and read, and two of these things."""

    part: str
    name: str
    old: Callable[[], Any]
    new: Callable[[], Any]
    save: Callable[[Any, Path], Any]
    load: Callable[[Path], Any]


def _load_vectors(path: Path) -> Any:
    from imgskipgram import ImageSkipGram

    model = ImageSkipGram.load(path)
    return model.wv.index_to_key, model.wv.vectors.tobytes(), model.image_vectors.tobytes(), model.losses_


def _load_word2vec(path: Path) -> Any:
    from gensim.models import KeyedVectors

    return KeyedVectors.load_word2vec_format(str(path)).vectors.tobytes()


def _load_bank(path: Path) -> Any:
    from imgskipgram import ImageBank

    return ImageBank.load(path).features.tobytes()


def _load_segmenter(path: Path) -> Any:
    from cws_multidomain import Segmenter

    return Segmenter.load(path).cut_many(TEXTS[:3]), path.read_bytes()


def _load_vade(path: Path) -> Any:
    from vade_robust import VaDE

    return VaDE.load(path).predict_proba(rows()[:5]).tobytes()


def _load_corruption(path: Path) -> Any:
    from paramcorrupt import Corruption

    return {name: x.numpy().tobytes() for name, x in Corruption.load(path).dense().items()}


def _apply(seed: int, path: Path) -> None:
    from safetensors.torch import save_file

    from paramcorrupt import apply

    source = path.parent.parent / "source.safetensors"
    if not source.exists():
        save_file(network().state_dict(), source)
    apply(source, change(seed), path)


def _load_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return {name: x.numpy().tobytes() for name, x in load_file(path).items()}


def _report(seed: int) -> Any:
    from paramcorrupt import scan

    return scan(network(), "cross_entropy", batches(), seed=seed, random=1, progress=False)


def _load_report(path: Path) -> Any:
    from paramcorrupt import Report

    return Report.from_json(path).rows()


SAVERS = {
    "cws-multidomain, model": Saver(
        "/cws_multidomain/",
        "model.cws",
        segmenter,
        partial(segmenter, 2),
        lambda x, path: x.save(path),
        _load_segmenter,
    ),
    "imgskipgram, npz": Saver(
        "/imgskipgram/", "model.npz", vectors, partial(vectors, 2), lambda x, path: x.save(path), _load_vectors
    ),
    "imgskipgram, safetensors": Saver(
        "/imgskipgram/", "model.safetensors", vectors, partial(vectors, 2), lambda x, path: x.save(path), _load_vectors
    ),
    "imgskipgram, word2vec": Saver(
        "/imgskipgram/",
        "words.txt",
        vectors,
        partial(vectors, 2),
        lambda x, path: x.save_word2vec_format(path),
        _load_word2vec,
    ),
    "imgskipgram, bank": Saver(
        "/imgskipgram/", "bank.npz", bank, partial(bank, 1), lambda x, path: x.save(path), _load_bank
    ),
    "vade-robust, model": Saver(
        "/vade_robust/", "model", vade, partial(vade, 1), lambda x, path: x.save(path), _load_vade
    ),
    "paramcorrupt, corruption": Saver(
        "/paramcorrupt/",
        "change.safetensors",
        partial(change, 0),
        partial(change, 1),
        lambda x, path: x.save(path),
        _load_corruption,
    ),
    "paramcorrupt, apply": Saver(
        "/paramcorrupt/", "changed.safetensors", lambda: 0, lambda: 1, _apply, _load_safetensors
    ),
    "paramcorrupt, report": Saver(
        "/paramcorrupt/",
        "report.json",
        partial(_report, 0),
        partial(_report, 1),
        lambda x, path: x.to_json(path),
        _load_report,
    ),
}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Saved:
    """An old thing that is saved, and what is known of the files with it and with a new one."""

    def __init__(self, saver: Saver, folder: Path) -> None:
        self.saver, self.folder = saver, folder / "here"
        self.folder.mkdir()
        self.path = self.folder / saver.name
        self.old, self.new = saver.old(), saver.new()
        saver.save(self.new, self.path)
        self.after = saver.load(self.path)
        self.moments = at(0, ctrl_c, self.save, *self.parts, folder=self.folder)
        self.reset()
        self.before, self.complete = saver.load(self.path), contents(self.folder)
        assert self.before != self.after

    @property
    def parts(self) -> tuple[str, ...]:
        return self.saver.part, *STANDARD

    def save(self) -> None:
        self.saver.save(self.new, self.path)

    def reset(self) -> None:
        self.saver.save(self.old, self.path)

    def check(self, *allowed: Any) -> None:
        """What is under the name must be whole."""
        if contents(self.folder) != self.complete:
            assert self.saver.load(self.path) in (allowed or (self.before, self.after))

    def left(self) -> set[str]:
        return contents(self.folder).keys() - self.complete.keys()


def ctrl_c_while_saving(saver: Saver, folder: Path) -> None:
    saved = Saved(saver, folder)
    for n in spread(saved.moments, 40):
        with pytest.raises(KeyboardInterrupt):
            at(n, ctrl_c, saved.save, *saved.parts, folder=saved.folder)
        saved.check()
        assert not saved.left(), f"{saved.left()} after moment {n}"
        saved.reset()


def killed_while_saving(saver: Saver, folder: Path) -> None:
    saved = Saved(saver, folder)
    for n in spread(saved.moments, 10):
        assert forked(lambda n=n: at(n, killed, saved.save, *saved.parts, folder=saved.folder)) == -signal.SIGKILL
        saved.check()
    saved.save()  # whatever was left does not hold up the next
    assert saver.load(saved.path) == saved.after


def full_disk(saver: Saver, folder: Path) -> None:
    saved = Saved(saver, folder)
    most = max(map(len, saved.complete.values()))
    for size in (0, most // 2):
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(OSError, match=r"File too large|Errno 27"):
                saved.save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert contents(saved.folder) == saved.complete


def below_a_file(saver: Saver, folder: Path) -> None:
    (folder / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"):
        saver.save(saver.new(), folder / "file" / saver.name)
    assert (folder / "file").read_text() == "no folder"


def spread(count: int, most: int) -> list[int]:
    """At most so many of 1, ..., count; the last are the ones in which files are replaced."""
    assert count > 5
    return sorted({*range(1, count + 1, -(-count // most)), *range(max(1, count - 9), count + 1)})


def limit(seconds: int) -> None:
    """End this process with the traceback of all of its threads when it has taken so long."""
    faulthandler.register(signal.SIGALRM, chain=True)
    signal.alarm(seconds)


def forked(work: Callable[[], Any], patience: int = PATIENCE // 2) -> int:
    """How a child ends that does some work: 0, 1 after an exception, less than 0 by a signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks in processes with threads
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        limit(patience)
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


for about in (ctrl_c_while_saving, killed_while_saving, full_disk, below_a_file):
    SCENARIOS |= {
        f"{about.__name__.replace('_', ' ')}: {name}": partial(about, saver) for name, saver in SAVERS.items()
    }


# --- Ctrl-C in training ---------------------------------------------------------------------------------------------


def ctrl_c_in_a_step(make: Callable[[nn.Module], Any], folder: Path) -> None:
    """At any moment within the packages, and in each call of the closure."""
    parts = ("/adamod/", "/gasam/", "/paramcorrupt/", "/torch/_ops.py")

    def fresh(before: Callable[[], None] = lambda: None) -> tuple[nn.Module, Callable[[], Any]]:
        model = network()
        optimizer = make(model)
        optimizer.step(closure_of(model, optimizer))
        return model, partial(optimizer.step, closure_of(model, optimizer, before))

    model, step = fresh()
    clean = bits(model)
    moments = at(0, ctrl_c, step, *parts)
    stepped = bits(model)
    assert clean != stepped
    for n in spread(moments, 24):
        model, step = fresh()
        with pytest.raises(KeyboardInterrupt):
            at(n, ctrl_c, step, *parts)
        assert bits(model) in (clean, stepped), f"after moment {n} of {moments}"
    for k in range(10):
        calls = []

        def called(k: int = k, calls: list[int] = calls) -> None:
            calls.append(1)
            if len(calls) == k + 1:
                ctrl_c()

        model, step = fresh(called)
        try:
            step()
        except KeyboardInterrupt:
            assert bits(model) == clean, f"after call {k} of the closure"
            step()
            assert bits(model) != clean
        else:
            break
    assert k == len(calls) > 0


SCENARIOS |= {f"ctrl-c in a step: {make.__name__}": partial(ctrl_c_in_a_step, make) for make in OPTIMIZERS}


@scenario
def ctrl_c_in_a_scan(folder: Path) -> None:
    from paramcorrupt import scan

    class Data:
        """Rings at the n-th batch of all passes."""

        def __init__(self, n: int) -> None:
            self.n = n

        def __iter__(self) -> Iterator[Any]:
            for batch in batches():
                self.n -= 1
                if self.n == 0:
                    ctrl_c()
                yield batch

    model = network()
    before, n, interrupted = bits(model), 0, True
    while interrupted:
        n += 1
        try:
            scan(model, "cross_entropy", Data(n), verify="all", random=1, progress=False)
            interrupted = False
        except KeyboardInterrupt:
            pass
        assert bits(model) == before
    assert n > 2 * (1 + 2 * 4)  # batches of a gradient, and two trials for each of four tensors


def goes_on(work: Callable[[Path], Any], part: str, most: int, folder: Path) -> None:
    """What is broken off at any of some moments and begun again in the same folder comes to the same bits."""
    straight = folder / "straight"
    straight.mkdir()
    expected: list[Any] = []
    moments = at(0, ctrl_c, lambda: expected.append(work(straight)), part)
    interrupted = 0
    for n in spread(moments, most)[::2]:
        there = folder / str(n)
        there.mkdir()
        try:
            at(n, ctrl_c, partial(work, there), part)
        except KeyboardInterrupt:
            interrupted += 1  # the last moments are not reached where something was made once for all
        assert not [name for name in contents(there) if name.startswith(".")]
        assert work(there) == expected[0], f"after moment {n} of {moments}"
    assert interrupted >= most // 2


def train_vade(folder: Path) -> Any:
    from vade_robust import VaDE
    from vade_robust.callbacks import Checkpoint

    settings: dict[str, Any] = {"hidden": (8,), "n_latent": 2, "pretrain_epochs": 1, "epochs": 3, "batch_size": 64}
    model = VaDE(3, **settings, start="gmm", random_state=0, callbacks=[Checkpoint(folder, every=1)])
    there = any(folder.iterdir())
    return bits(model.fit(rows(), resume=folder if there else None).module_)


def train_iou_net(folder: Path) -> Any:
    import torch

    from iounet.data import synthetic_scenes
    from iounet.detection import StandaloneIoUNet
    from iounet.training import fit

    torch.manual_seed(0)
    backbone = torch.nn.Conv2d(3, 4, 7, 8, 3)
    net = StandaloneIoUNet(backbone, 4, samples_per_image=4)
    fit(net, synthetic_scenes(4, size=32), epochs=2, batch_size=2, out=folder, resume=any(folder.iterdir()))
    return bits(net)


def train_words(folder: Path) -> Any:
    from imgskipgram import ImageSkipGram

    path = folder / "model.npz"
    model = ImageSkipGram.load(path) if path.exists() else ImageSkipGram(16, min_count=1, epochs=4, deterministic=True)
    try:
        model.train(LINES) if path.exists() else model.fit(LINES)
    except KeyboardInterrupt:
        with contextlib.suppress(ValueError, RuntimeError):  # nothing to save before words are known
            model.save(path)
        raise
    return model.wv.vectors.tobytes()


for name, work, part, most in (
    ("vade-robust", train_vade, "/vade_robust/", 12),
    ("iounet", train_iou_net, "/iounet/", 4),
    ("imgskipgram", train_words, "/imgskipgram/", 12),
):
    SCENARIOS[f"ctrl-c in training, which goes on: {name}"] = partial(goes_on, work, part, most)


def commands(folder: Path) -> dict[str, tuple[str, Callable[[list[str]], int], list[str]]]:
    from cws_multidomain import cli as cws
    from imgskipgram import cli as imgskipgram
    from paramcorrupt import cli as paramcorrupt

    (folder / "news.txt").write_text("\n".join(map(" ".join, NEWS)), encoding="utf-8")
    (folder / "lines.txt").write_text("\n".join(LINES), encoding="utf-8")
    words = ["train", str(folder / "lines.txt"), "--min-count=1", "--vector-size=8", "--epochs=2", "--workers=1"]
    scan = ["scan", "test_processes:network", "--data", "test_processes:batches"]
    return {
        "cws": ("/cws_multidomain/", cws.main, ["train", f"news={folder / 'news.txt'}", "--epochs=2", "--output"]),
        "imgskipgram": ("/imgskipgram/", imgskipgram.main, [*words, "-o"]),
        "paramcorrupt": ("/paramcorrupt/", paramcorrupt.main, [*scan, "--html"]),
    }


def ctrl_c_in_a_command(name: str, folder: Path) -> None:
    """Exit code 130 without a word, and the old file, or 0 and the new one."""
    part, main, command = commands(folder)[name]
    (folder / "out").mkdir()
    output = folder / "out" / {"cws": "m.cws", "imgskipgram": "m.npz", "paramcorrupt": "m.html"}[name]
    sys.path.insert(0, str(Path(__file__).parent))
    command = [*command, str(output)]
    moments = at(0, ctrl_c, lambda: main(command), part)
    assert output.stat().st_size > 100
    for n in spread(moments, 8):
        output.write_text("old")
        codes: list[int] = []
        try:
            at(n, ctrl_c, lambda codes=codes: codes.append(main(command)), part)
        except KeyboardInterrupt:
            continue  # before the command listens, or after its last word
        assert codes == [130] or (codes == [0] and n > moments - 10), f"{codes} at moment {n} of {moments}"
        assert os.listdir(output.parent) == [output.name]
        assert (output.read_text(errors="replace") == "old" and codes == [130]) or output.stat().st_size > 100


SCENARIOS |= {
    f"ctrl-c in a command: {name}": partial(ctrl_c_in_a_command, name)
    for name in ("cws", "imgskipgram", "paramcorrupt")
}


# --- forks, other processes, threads --------------------------------------------------------------------------------


def with_optimizer(make: Callable[[nn.Module], Any], width: int) -> Any:
    model = network(width)
    return model, make(model)


def stepped(pair: Any) -> Any:
    model, optimizer = pair
    for _ in range(2):
        optimizer.step(closure_of(model, optimizer))
    return bits(model)


def iou_head() -> Any:
    import torch

    from iounet import IoUHead

    torch.manual_seed(0)
    return IoUHead(4, 3)


def pooled(head: Any) -> Any:
    import torch

    from iounet.ops import nms, prroi_pool

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 4, 40, 40, generator=generator)
    corners = 20 * torch.rand(200, 2, generator=generator)
    boxes = torch.cat([torch.arange(200).view(-1, 1) % 2, corners, corners + 15], 1).requires_grad_()
    found = head(prroi_pool(features, boxes, 7, 1.0), torch.arange(200) % 3)
    (gradient,) = torch.autograd.grad(found.sum(), boxes)
    keep = nms(boxes.detach()[:, 1:], found.detach().flatten(), 0.5)
    return [x.detach().numpy().tobytes() for x in (found, gradient, keep)]


def scanned(model: Any) -> Any:
    from paramcorrupt import scan

    return scan(model, "cross_entropy", batches(), verify="all", random=1, progress=False).rows()


def explained(model: Any) -> Any:
    return model.wv.most_similar("fire"), [image[:2] for image in model.explain("crime").images]


def clustered(model: Any) -> Any:
    return model.predict_proba(rows()).tobytes(), model.transform(rows()).tobytes()


def segmented(model: Any) -> Any:
    return model.cut_many(TEXTS, threads=2), model.nbest("我们爱北京大学", 2)


USES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    **{make.__name__: (partial(with_optimizer, make, 20_000), stepped) for make in OPTIMIZERS},
    "iounet": (iou_head, pooled),
    "paramcorrupt": (partial(network, 20_000), scanned),
    "vade-robust": (vade, clustered),
    "imgskipgram": (partial(vectors, 2, 2), explained),
    "cws-multidomain": (segmenter, segmented),
}


def fork_after_use(name: str, folder: Path) -> None:
    """A child is not hung up on threads that it does not have. Of PyTorch's it must want one only, as in a DataLoader:
    with more, PyTorch's own operators hang, too."""
    import torch

    make, use = USES[name]
    expected = use(make())  # by one thread: sums of PyTorch's own operators are rounded otherwise by more
    torch.set_num_threads(2)
    of_two = use(make())

    def child() -> None:
        torch.set_num_threads(1)
        assert use(make()) == expected

    assert forked(child) == 0
    assert use(make()) == of_two


def four_threads(name: str, folder: Path) -> None:
    """The same object where using does not change it, one for each thread otherwise."""
    make, use = USES[name]
    expected = use(make())
    own = use in (stepped, scanned)
    things = [make() for _ in range(4)] if own else [make()] * 4
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(use, things)) == [expected] * 4


for about in (fork_after_use, four_threads):
    title = about.__name__.replace("_", " ")
    SCENARIOS |= {f"{title}: {name}": partial(about, name) for name in USES}


def used_there(things: bytes) -> dict[str, Any]:
    return {name: USES[name][1](thing) for name, thing in pickle.loads(things).items()}


@scenario
def spawned_processes_get_pickles(folder: Path) -> None:
    made = {name: make() for name, (make, _) in USES.items()}
    pickled = pickle.dumps(made)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(used_there, (pickled,))
    for name, found in there.items():
        assert found == USES[name][1](made[name]), name
    assert there.keys() == USES.keys()


# --- the processes --------------------------------------------------------------------------------------------------


def run(name: str, folder: Path) -> None:
    """A scenario in a process of its own, with its words in a file."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    code = 1
    try:
        folder.mkdir()
        output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        limit(PATIENCE)
        SCENARIOS[name](folder)
        (folder / "passed").touch()
        print(time.process_time(), "s")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(folder: Path, *names: str) -> None:
    import gensim.models  # noqa: F401
    import safetensors.torch  # noqa: F401
    import sklearn.mixture  # noqa: F401
    import torch._dynamo  # which the first step of an optimizer imports

    import adamod  # noqa: F401
    import cws_multidomain  # noqa: F401
    import gasam  # noqa: F401
    import imgskipgram  # noqa: F401
    import paramcorrupt.scanning  # noqa: F401
    import vade_robust  # noqa: F401

    torch.set_num_threads(1)
    for number, name in enumerate(names or SCENARIOS):
        run(name, folder / str(number))


# --- the tests ------------------------------------------------------------------------------------------------------


def launch(folder: Path) -> None:
    """Start this file as a program, and end all of its processes whatever happens."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    with (folder / "output").open("w") as output:
        program = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            cwd=folder,
            env={**os.environ, **dict.fromkeys(names, "1")},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            program.wait(timeout=5 * PATIENCE)
        except subprocess.TimeoutExpired:
            print("the processes took too long and were ended", file=output)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            program.wait()


@pytest.mark.parametrize("name", SCENARIOS)
def test_unlucky_users(once: Any, name: str) -> None:
    folder = once("processes", launch)
    number = str(list(SCENARIOS).index(name))
    output = folder / number / "output"
    text = output.read_text(errors="replace") if output.exists() else (folder / "output").read_text()
    assert (folder / number / "passed").exists(), text[-6000:]


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
