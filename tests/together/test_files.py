"""Whatever is saved is there whole, the old or the new, after Ctrl-C, a kill or on a full disk."""

from __future__ import annotations

import gc
import resource
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from gensim.models import KeyedVectors
from safetensors.torch import load_file, save_file
from together.apart import apart
from together.moments import ctrl_c, moments, watched
from together.small import ROWS, TEXTS, bank, change, network, report, segmenter, vade, vectors

import paramcorrupt
from cws_multidomain import Segmenter
from imgskipgram import ImageBank, ImageSkipGram
from paramcorrupt import Corruption, Report
from vade_robust import VaDE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch


@dataclass(frozen=True)
class Saver:
    """A file's name; two things, the old and the new; how one is saved, and what is read of it that can be compared."""

    name: str
    make: Callable[[int], Any]
    save: Callable[[Any, Path], Any]
    load: Callable[[Path], Any]


def apply(seed: int, path: Path) -> None:
    source = path.parent.parent / "source.safetensors"
    if not source.exists():
        save_file(network().state_dict(), source)
    paramcorrupt.apply(source, change(seed), path)


def raw(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: x.numpy().tobytes() for name, x in tensors.items()}


def read_segmenter(path: Path) -> Any:
    return Segmenter.load(path).cut_many(TEXTS[:3]), path.read_bytes()


def read_vectors(path: Path) -> Any:
    model = ImageSkipGram.load(path)
    return model.wv.index_to_key, model.wv.vectors.tobytes(), model.image_vectors.tobytes(), model.losses_


def read_words(path: Path) -> bytes:
    return KeyedVectors.load_word2vec_format(str(path)).vectors.tobytes()


SAVERS = {
    "cws-multidomain": Saver("model.cws", lambda k: segmenter(1 + k), Segmenter.save, read_segmenter),
    "imgskipgram": Saver("model.npz", lambda k: vectors(1 + k), ImageSkipGram.save, read_vectors),
    "imgskipgram, safetensors": Saver("model.safetensors", lambda k: vectors(1 + k), ImageSkipGram.save, read_vectors),
    "imgskipgram, word2vec": Saver(
        "words.txt", lambda k: vectors(1 + k), ImageSkipGram.save_word2vec_format, read_words
    ),
    "imgskipgram, bank": Saver("bank.npz", bank, ImageBank.save, lambda path: ImageBank.load(path).features.tobytes()),
    "vade-robust": Saver("model", vade, VaDE.save, lambda path: VaDE.load(path).predict_proba(ROWS[:5]).tobytes()),
    "paramcorrupt, corruption": Saver(
        "change.safetensors", change, Corruption.save, lambda path: raw(Corruption.load(path).dense())
    ),
    "paramcorrupt, apply": Saver("changed.safetensors", lambda k: k, apply, lambda path: raw(load_file(path))),
    "paramcorrupt, report": Saver("report.json", report, Report.to_json, lambda path: Report.from_json(path).rows()),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Saved:
    """Something old that was saved where something new will be."""

    def __init__(self, name: str, folder: Path) -> None:
        self.saver, self.folder = SAVERS[name], folder / "here"
        self.folder.mkdir()
        self.path = self.folder / self.saver.name
        self.things = [self.saver.make(0), self.saver.make(1)]
        self.save()
        self.new = self.saver.load(self.path)
        self.reset()
        self.old, self.complete = self.saver.load(self.path), contents(self.folder)
        assert self.old != self.new

    def save(self) -> None:
        self.saver.save(self.things[1], self.path)

    def reset(self) -> None:
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        self.saver.save(self.things[0], self.path)

    def is_whole(self) -> bool:
        return contents(self.folder) == self.complete or self.saver.load(self.path) in (self.old, self.new)


@pytest.mark.parametrize("name", SAVERS)
@apart
def test_ctrl_c_leaves_the_old_or_the_new_and_no_file_aside(name: str, tmp_path: Path) -> None:
    saved = Saved(name, tmp_path)
    for n in moments(saved.save):
        if contents(saved.folder) != saved.complete:
            saved.reset()
        with pytest.raises(KeyboardInterrupt):
            ctrl_c(n, saved.save)
        if contents(saved.folder).keys() != saved.complete.keys():
            gc.collect()  # a context manager that Ctrl-C kept from its end has it when it is thrown away
        assert contents(saved.folder).keys() == saved.complete.keys(), f"after moment {n}"
        assert saved.is_whole(), f"after moment {n}"


@pytest.mark.parametrize("name", SAVERS)
@apart
def test_a_kill_leaves_the_old_or_the_new_and_the_next_save_is_not_held_up(name: str, tmp_path: Path) -> None:
    """What a kill leaves is what the disk has at its moment."""
    saved = Saved(name, tmp_path)
    states = [saved.complete]

    def look() -> None:
        if (state := contents(saved.folder)) != states[-1]:
            states.append(state)

    watched(saved.save, look)
    assert len(states) > 2, "nothing was ever written aside"
    for state in states:
        shutil.rmtree(saved.folder)
        for file, content in state.items():
            (saved.folder / file).parent.mkdir(parents=True, exist_ok=True)
            (saved.folder / file).write_bytes(content)
        assert saved.is_whole(), state.keys()
        saved.save()
        assert saved.saver.load(saved.path) == saved.new


@pytest.mark.parametrize("name", SAVERS)
@apart
def test_a_full_disk_leaves_the_old_and_no_file_aside(name: str, tmp_path: Path) -> None:
    saved = Saved(name, tmp_path)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (0, max(map(len, saved.complete.values())) // 2):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(OSError, match=r"File too large|Errno 27"):
                saved.save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert contents(saved.folder) == saved.complete


@pytest.mark.parametrize("name", SAVERS)
@apart
def test_a_file_is_no_folder(name: str, tmp_path: Path) -> None:
    saver, file = SAVERS[name], tmp_path / "file"
    file.write_text("no folder")
    with pytest.raises(OSError, match="file"):
        saver.save(saver.make(0), file / saver.name)
    assert file.read_text() == "no folder"
