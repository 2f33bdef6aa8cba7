"""Banks of images: what they hold, the ways in, what they refuse, and that files give back what was written."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import zipfile
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scenes import features, scenes

from imgskipgram import ImageBank

if TYPE_CHECKING:
    from pathlib import Path

SCENES = scenes(12)


def png(colour: str = "red", size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def colour(pictures: list[Image.Image]) -> np.ndarray:
    """A backbone: the mean colour, and the size."""
    return np.array([[*np.asarray(p).mean((0, 1)), *p.size] for p in pictures])


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for i, name in enumerate(["dog/b.png", "dog/puppies/a.PNG", "cat/c.jpg", "alone.png"]):
        file = tmp_path / "pictures" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + i, 30), (10 * i, 0, 0)).save(file, format="JPEG" if name.endswith("jpg") else "PNG")
    (tmp_path / "pictures" / "cat" / "notes.txt").write_text("no picture")
    return tmp_path / "pictures"


@pytest.fixture
def coco(tmp_path: Path) -> dict[str, Any]:
    for i in (1, 2):
        picture = Image.new("RGB", (100, 80), "blue")
        picture.paste("red", (10, 20, 40, 60))
        picture.save(tmp_path / f"{i}.png")
    box = {"image_id": 1, "category_id": 7, "iscrowd": 0}
    return {
        "images": [{"id": 1, "file_name": "1.png"}, {"id": 2, "file_name": "2.png"}],
        "categories": [{"id": 7, "name": "dog"}, {"id": 9, "name": "cat"}],
        "annotations": [
            box | {"id": 70, "bbox": [10, 20, 30, 40]},
            box | {"id": 71, "bbox": [0, 0, 100, 80], "category_id": 9},
            box | {"id": 72, "bbox": [0, 0, 50, 50], "iscrowd": 1},
            box | {"id": 73, "bbox": [90, 70, 0, 0]},
        ],
    }


# ---- what a bank holds


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
    (tmp_path / "a.png").write_bytes(png(size=(600, 300)))
    bank = ImageBank.from_features(
        np.eye(4), [""] * 4, thumbnails=[png(), tmp_path / "a.png", Image.new("L", (300, 600)), None]
    )
    kept, of_path, of_picture, none = bank.thumbnails
    assert kept == png()
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
        ({"words": ["a", "b", (1,)]}, TypeError, r"words must be strings, got int in row 2"),
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
    bank = ImageBank.from_features(np.eye(3), ["dog", ("cat", "dog"), "cat"], thumbnails=[png()] * 3)
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


# ---- ways in


def test_the_word_of_a_picture_is_the_name_of_its_folder(folders: Path) -> None:
    bank = ImageBank.from_folder(folders, colour)
    assert bank.ids == ("alone.png", "cat/c.jpg", "dog/b.png", "dog/puppies/a.PNG")
    assert bank.words == ((), ("cat",), ("dog",), ("dog",))
    assert bank.features[:, 3].tolist() == [43, 42, 40, 41]
    assert all(data and data[8:12] == b"WEBP" for data in bank.thumbnails)
    assert bank.report_ == {"images": 4, "labelled": 3, "words": 2, "skipped": 0}


@pytest.mark.parametrize("content", [b"", b"no picture", png()[:60]])
def test_a_broken_picture_is_an_error_with_its_path_or_counted(folders: Path, content: bytes) -> None:
    (folders / "cat" / "broken.png").write_bytes(content)
    with pytest.raises(OSError, match=r"cat/broken\.png: not a picture that can be read: "):
        ImageBank.from_folder(folders, colour)
    bank = ImageBank.from_folder(folders, colour, on_error="skip")
    assert bank.report_["skipped"] == 1
    assert "cat/broken.png" not in bank.ids


def test_pictures_reach_the_backbone_in_order_in_batches_upright_and_in_rgb(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    for i in range(40):
        Image.new("RGBA", (8, 8), (i, 0, 0, 255)).save(tmp_path / "w" / f"{i:02}.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (8, 16)).save(tmp_path / "w" / "turned.jpg", exif=turned)
    batches: list[list[Image.Image]] = []

    def backbone(pictures: list[Image.Image]) -> np.ndarray:
        batches.append(pictures)
        return colour(pictures)

    bank = ImageBank.from_folder(tmp_path, backbone)
    assert [len(batch) for batch in batches] == [32, 9]
    assert {picture.mode for batch in batches for picture in batch} == {"RGB"}
    assert bank.features[:40, 0].tolist() == list(range(40))
    assert bank.features[40, 3:].tolist() == [16, 8]


def test_boxes_of_coco_are_images_of_their_own_without_crowds_and_empty_ones(
    coco: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(coco))
    bank = ImageBank.from_coco(file, tmp_path, colour)
    assert bank.ids == ("70", "71")
    assert bank.words == (("dog",), ("cat",))
    assert bank.features[0].tolist() == [255, 0, 0, 30, 40]
    assert bank.features[1, 3:].tolist() == [100, 80]
    assert bank.report_ == {"images": 2, "labelled": 2, "words": 2, "crowds": 1, "empty_boxes": 1}


def test_whole_images_of_coco_have_every_category_that_they_show(coco: dict[str, Any], tmp_path: Path) -> None:
    bank = ImageBank.from_coco(coco, tmp_path, lambda p: np.arange(2 * len(p)).reshape(-1, 2), crops=False)
    assert bank.ids == ("1", "2")
    assert bank.words == (("dog", "cat"), ())


def test_words_of_captions_are_those_of_two_images_and_of_at_most_a_twentieth(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    texts = ["A dog, a dog."] + ["A dog's man"] * 2 + ["a Cat"] * 3 + ["a"] * 34
    data = {
        "images": [{"id": i, "file_name": "x.png"} for i in range(40)],
        "annotations": [{"image_id": i, "caption": text} for i, text in enumerate(texts)],
    }
    bank = ImageBank.from_coco(data, tmp_path, lambda p: np.arange(len(p))[:, None], words="captions")
    assert set(bank.words) == {("dog's", "man"), ()}
    assert bank.words[1:3] == (("dog's", "man"),) * 2


def test_rows_of_a_streaming_data_set_are_read_once_up_to_the_limit() -> None:
    drawn = iter(range(100))

    def rows() -> Any:
        for i in drawn:
            yield {"picture": SCENES[i % 12].draw(), "kind": list(SCENES[i % 12].words)}

    bank = ImageBank.from_hf(rows(), features, image_column="picture", label_column="kind", limit=12)
    assert next(drawn) == 12
    assert bank.words == tuple(scene.words for scene in SCENES)
    assert bank.features.tobytes() == features([scene.draw() for scene in SCENES]).tobytes()


def test_numbers_of_a_class_become_its_names_and_captions_become_words(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png("blue"))
    kinds = SimpleNamespace(names=["dog", "cat"])
    sources = [{"bytes": png(), "path": None}, {"bytes": None, "path": str(tmp_path / "a.png")}, png("lime")]
    rows = [{"image": s, "label": i - 1, "text": "a tree" if i < 2 else "a"} for i, s in enumerate(sources)]

    class Rows(list[Any]):
        features = {"label": kinds}  # noqa: RUF012

    bank = ImageBank.from_hf(Rows(rows * 20), lambda p: np.arange(len(p))[:, None], label_column="label")
    assert bank.words[:3] == ((), ("dog",), ("cat",))
    texts = Rows(rows[:2] + [{"image": png(), "label": 1, "text": None}] * 38)
    bank = ImageBank.from_hf(texts, lambda p: np.arange(len(p))[:, None], text_column="text", label_column="label")
    assert bank.words[:3] == (("a", "tree"), ("dog", "a", "tree"), ("cat",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, r"annotations must have the key 'images', got 'categories', 'annotations'"),
        ({"images": [{"id": 1}]}, r"annotations must have the key 'file_name', got 'id'"),
        ({"images": [{"id": 1, "file_name": "../1.png"}]}, r"file_name must stay inside image_root, got '../1.png'"),
        ({"images": []}, r"annotations must be of images that are listed, got image_id 1"),
        ({"annotations": [], "images": []}, r"annotations must have at least one picture, got none"),
        ({"annotations": [{"image_id": 1, "id": 5, "bbox": [0]}]}, r"bbox must be four finite numbers, got \[0\]"),
    ],
)
def test_annotations_that_lack_something_are_refused(
    coco: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    data = {name: x for name, x in (coco | change).items() if x is not None}
    with pytest.raises(ValueError, match=message):
        ImageBank.from_coco(data, tmp_path, colour)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image_column": "img"}, ValueError, r"image_column must be a column .*, got 'img'; it has 'image', 'label'"),
        ({"label_column": "y"}, ValueError, r"label_column must be a column .*, got 'y'; it has 'image', 'label'"),
        ({"label_column": "label"}, ValueError, r"label_column must hold strings or numbers of a ClassLabel, got 3"),
        ({"limit": 0}, ValueError, r"limit must be a positive integer, got 0"),
        ({"limit": True}, TypeError, r"limit must be a positive integer, got True"),
        ({"backbone": lambda p: np.zeros((7, 2))}, ValueError, r"backbone must return .* \(1, df\) .* got \(7, 2\)"),
        ({"backbone": 5}, TypeError, r"backbone must be a name, a torch.nn.Module or a callable, got int"),
        ({"backbone": "hub:x"}, ValueError, r'backbone must be a name of torchvision\'s or "timm:<name>", got \'hub:x'),
    ],
)
def test_rows_and_backbones_that_do_not_fit_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ImageBank.from_hf([{"image": png(), "label": 3}], arguments.pop("backbone", colour), **arguments)


def test_a_folder_that_is_not_there_or_has_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path must be a folder of pictures, got .*nowhere"):
        ImageBank.from_folder(tmp_path / "nowhere", colour)
    with pytest.raises(ValueError, match=r"path .* must have at least one picture, got none"):
        ImageBank.from_folder(tmp_path, colour)
    with pytest.raises(ValueError, match=r'on_error must be "raise" or "skip", got \'ignore\''):
        ImageBank.from_folder(tmp_path, colour, on_error="ignore")  # type: ignore[arg-type]


# ---- torch modules and names


def test_a_torch_module_is_run_in_evaluation_mode_without_gradients_and_left_as_it_was(folders: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 16, 16), torch.nn.Dropout(0.5))
    seen: list[Any] = []
    network.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out, network.training)))
    bank = ImageBank.from_folder(folders, network)
    ((given_, out, training),) = seen
    assert given_.shape == (4, 3, 224, 224)
    assert not training
    assert not out.requires_grad
    assert network.training
    assert np.array_equal(bank.features, out.mean((2, 3)).numpy())
    assert given_[0, :, 100, 100].tolist() == pytest.approx(
        [(30 / 255 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    )


def test_a_name_of_torchvision_gives_what_comes_before_the_classifier(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = pytest.importorskip("torchvision", reason="needs torchvision").models
    make = models.get_model
    monkeypatch.setattr(models, "get_model", lambda name, weights: make(name, weights=None))  # nothing is downloaded
    bank = ImageBank.from_folder(folders, "mobilenet_v2")
    assert bank.features.shape == (4, 1280)
    with pytest.raises(ValueError, match=r"got 'resnet'; close: resnet"):
        ImageBank.from_folder(folders, "resnet")


def test_a_missing_package_is_named_with_its_extra(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"backbone 'timm:resnet18' needs timm: .*imgskipgram\[images\]"):
        ImageBank.from_folder(folders, "timm:resnet18")


# ---- files


def test_a_bank_is_read_as_it_was_written(tmp_path: Path) -> None:
    bank = ImageBank.from_features(
        np.random.default_rng(0).normal(size=(3, 5)),
        ["dög", (), ("a", "b")],
        ["x", "<y>", "z"],
        [png(), None, png("blue")],
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
    ImageBank.from_features(np.eye(2), ["a", "b"], thumbnails=[None, png()]).save(path)
    _rewritten(path, **changes)
    with pytest.raises(ValueError, match=rf"bank\.npz: not a bank of images that can be read: .*{reason}"):
        ImageBank.load(path)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("taken",)


def test_damaged_files_and_pickles_are_refused_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bank.npz"
    ImageBank.from_features(np.eye(2), ["a", "b"], thumbnails=[None, png()]).save(path)
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
