"""Banks of images: what they hold, what they refuse, and that files give back what was written and run nothing."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scenes import encoded

from imgskipgram import ImageBank

if TYPE_CHECKING:
    from pathlib import Path


def test_a_bank_holds_float32_features_that_later_changes_of_the_callers_array_do_not_reach() -> None:
    given_ = np.eye(3)
    bank = ImageBank.from_features(given_, ["a", ("b", "a", "b"), ()])
    given_[:] = 7
    assert bank.features.dtype == np.float32
    assert bank.features.tolist() == np.eye(3).tolist()
    assert bank.words == (("a",), ("b", "a"), ())
    assert bank.ids == ("0", "1", "2")
    assert bank.thumbnails == (None, None, None)
    assert bank.report_ == {"images": 3, "labelled": 2, "words": 2}
    with pytest.raises(ValueError, match="read-only"):
        bank.features[0, 0] = 1


def test_thumbnails_are_kept_as_bytes_and_made_of_paths_and_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded("red", size=(600, 300)))
    bank = ImageBank.from_features(
        np.eye(4), [""] * 4, thumbnails=[encoded("red"), tmp_path / "a.png", Image.new("L", (300, 600)), None]
    )
    kept, of_path, of_picture, none = bank.thumbnails
    assert kept == encoded("red")
    assert none is None
    assert [Image.open(io.BytesIO(x)).size for x in (of_path, of_picture) if x] == [(192, 96), (96, 192)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"features": np.zeros(3)}, ValueError, r"features must be two-dimensional and not empty, got shape \(3,\)"),
        ({"features": np.zeros((0, 3)), "words": []}, ValueError, r"not empty, got shape \(0, 3\)"),
        ({"features": [[1.0], [np.nan], [2.0]]}, ValueError, r"features must be finite, got NaN or infinity in row 1"),
        ({"features": [[1.0], [2.0], [1e39]]}, ValueError, r"features must be finite, got NaN or infinity in row 2"),
        ({"features": np.ones((3, 2))}, ValueError, r"features must differ between images, got 3 equal rows"),
        ({"features": [["a"], ["b"], ["c"]]}, TypeError, r"features must be numbers, got <U1"),
        ({"words": ["a"]}, ValueError, r"words must have one entry per row of features, got 1 for 3 rows"),
        ({"words": ["a", None, "c"]}, TypeError, r"words must be strings, got NoneType in row 1"),
        ({"words": ["a", "b", (1,)]}, TypeError, r"words must be strings, got int in row 2"),
        ({"words": None}, TypeError, r"words must be a sequence with the labels of each row, got NoneType"),
        ({"words": "abc"}, TypeError, r"words must be a sequence with the labels of each row, got str"),
        ({"ids": ["x"]}, ValueError, r"ids must have one entry per row of features, got 1 for 3 rows"),
        ({"ids": ["x", "y", "x"]}, ValueError, r"ids must differ, got 'x' in rows 0 and 2"),
        ({"thumbnails": [None]}, ValueError, r"thumbnails must have one entry per row of features, got 1 for 3 rows"),
        ({"thumbnails": [None, b"<svg/>", None]}, ValueError, r"thumbnails must be PNG, .*, got b'<svg/>' in row 1"),
    ],
)
def test_a_bank_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ImageBank.from_features(**{"features": np.eye(3), "words": ["a", "b", "c"], **arguments})


def test_without_labels_takes_the_labels_and_leaves_the_pictures() -> None:
    bank = ImageBank.from_features(np.eye(3), ["dog", ("cat", "dog"), "cat"], thumbnails=[encoded("red")] * 3)
    less = bank.without_labels(["dog", "unheard"])
    assert less.words == ((), ("cat",), ("cat",))
    assert (less.ids, less.thumbnails) == (bank.ids, bank.thumbnails)
    assert less.features is bank.features
    assert less.report_ == {"images": 3, "labelled": 2, "words": 1}
    assert bank.words[0] == ("dog",)
    assert bank.without_labels("dog").words == less.words


@given(st.lists(st.sets(st.sampled_from("abcdef")), min_size=1, max_size=20))
def test_the_images_of_a_word_are_those_that_it_labels(labels: list[set[str]]) -> None:
    index = {word: i for i, word in enumerate("xfbaz")}
    bank = ImageBank.from_features(np.arange(len(labels))[:, None], [sorted(entry) for entry in labels])
    known = set().union(*labels)
    if not known & set(index):
        with pytest.raises(ValueError, match=r"words of the bank must be in the vocabulary, got no such label"):
            bank.images_of(index)
        return
    start, images = bank.images_of(index)
    assert (start.dtype, images.dtype) == (np.uint64, np.uint32)
    for word, number in index.items():
        own = images[int(start[number]) : int(start[number + 1])].tolist()
        assert own == [i for i, entry in enumerate(labels) if word in entry]
    assert bank.report_["missing"] == len(known - set(index))


def test_a_vocabulary_without_any_label_is_refused_with_five_of_them() -> None:
    bank = ImageBank.from_features(np.eye(7), list("abcdefg"))
    with pytest.raises(ValueError, match=r"got no such label; labels are 'a', 'b', 'c', 'd', 'e'$"):
        bank.images_of({"the": 0})


# ---- files


def test_a_bank_is_read_as_it_was_written(tmp_path: Path) -> None:
    bank = ImageBank.from_features(
        np.random.default_rng(0).normal(size=(3, 5)),
        ["dög", (), ("a", "b")],
        ["x", "\udcff", "z"],
        [encoded("red"), None, encoded("blue")],
    )
    bank.report_["skipped"] = 4
    bank.save(tmp_path / "bank")
    assert os.listdir(tmp_path) == ["bank"]
    again = ImageBank.load(tmp_path / "bank")
    assert again.features.tobytes() == bank.features.tobytes()
    for name in ("words", "ids", "thumbnails", "report_"):
        assert getattr(again, name) == getattr(bank, name)


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ImageBank.from_features(np.eye(2), ["a", "b"]).save(tmp_path / "bank.npz")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        ImageBank.from_features(np.eye(3), ["c"] * 3).save(tmp_path / "bank.npz")
    assert os.listdir(tmp_path) == ["bank.npz"]
    assert ImageBank.load(tmp_path / "bank.npz").words == (("a",), ("b",))


def _rewritten(path: Path, **changes: Any) -> None:
    with np.load(path) as arrays:
        header = json.loads(arrays["header"].tobytes()) | changes.pop("header", {})
        content = {**arrays, **changes, "header": np.frombuffer(json.dumps(header).encode(), np.uint8)}
    with path.open("wb") as file:
        np.savez(file, **content)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"header": {"version": 2}}, r"version 2, this package reads version 1"),
        ({"header": {"format": "zip"}}, r"its header does not say imgskipgram\.bank"),
        ({"header": {"ids": ["a"]}}, r"ids must have one entry per row of features, got 1 for 2 rows"),
        ({"header": {"words": ["a", "b"]}}, r"words must be lists"),
        ({"header": {"report": []}}, r"the report an object"),
        ({"thumbnail_sizes": np.array([-1, 5])}, r"thumbnails and their sizes disagree"),
        ({"thumbnail_sizes": np.array([-2, 70])}, r"thumbnails and their sizes disagree"),
        ({"thumbnails": np.zeros(70, np.int8)}, r"thumbnails must be bytes with 64-bit sizes"),
        ({"features": np.array([object(), object()])}, r"Object arrays cannot be loaded when allow_pickle=False"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = tmp_path / "bank.npz"
    ImageBank.from_features(np.eye(2), ["a", "b"], thumbnails=[None, encoded("red")]).save(path)
    _rewritten(path, **changes)
    with pytest.raises(ValueError, match=rf"bank\.npz: not a bank of images that can be read: .*{reason}"):
        ImageBank.load(path)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("taken",)


def test_damaged_files_and_pickles_are_refused_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bank.npz"
    ImageBank.from_features(np.eye(2), ["a", "b"], thumbnails=[None, encoded("red")]).save(path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("features.npy").header_offset + 200
    damaged = whole[:place] + b"\xff" + whole[place + 1 :]
    for content in (b"", whole[:-1], whole[: len(whole) // 2], damaged, pickle.dumps(Trap())):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"bank\.npz: not a bank of images"):
            ImageBank.load(path)
    assert os.listdir(tmp_path) == ["bank.npz"]
    with pytest.raises(FileNotFoundError):
        ImageBank.load(tmp_path / "other.npz")


def test_what_a_file_only_claims_to_hold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bank.npz"
    ImageBank.from_features(np.eye(2), ["a", "b"]).save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    nested, endless = io.BytesIO(), io.BytesIO()
    np.save(nested, np.full(100_000, ord("["), np.uint8))
    claim = {"descr": "<f4", "fortran_order": False, "shape": (1 << 50, 2)}
    np.lib.format.write_array_header_1_0(endless, claim)
    for name, content in (("header.npy", nested.getvalue()), ("features.npy", endless.getvalue())):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in (members | {name: content}).items():
                archive.writestr(member, data)
        with pytest.raises(ValueError, match=r"bank\.npz: not a bank of images that can be read: ."):
            ImageBank.load(path)
