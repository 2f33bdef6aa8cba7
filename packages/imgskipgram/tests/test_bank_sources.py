"""Ways into a bank: folders, COCO, Hugging Face; and the backbones that see the pictures."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from scenes import encoded, features, scenes

from imgskipgram import ImageBank

if TYPE_CHECKING:
    from pathlib import Path

SCENES = scenes(12)


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


def test_the_word_of_a_picture_is_the_name_of_its_folder(folders: Path) -> None:
    bank = ImageBank.from_folder(folders, colour)
    assert bank.ids == ("alone.png", "cat/c.jpg", "dog/b.png", "dog/puppies/a.PNG")
    assert bank.words == ((), ("cat",), ("dog",), ("dog",))
    assert bank.features[:, 3].tolist() == [43, 42, 40, 41]
    assert all(data and data[8:12] == b"WEBP" for data in bank.thumbnails)
    assert bank.report_ == {"images": 4, "labelled": 3, "words": 2, "skipped": 0}


@pytest.mark.parametrize("content", [b"", b"no picture", encoded("red")[:60]])
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

    bank = ImageBank.from_hf(rows(), features, image_column="picture", label_column="kind", limit=np.int64(12))
    assert next(drawn) == 12
    assert bank.words == tuple(scene.words for scene in SCENES)
    assert bank.features.tobytes() == features([scene.draw() for scene in SCENES]).tobytes()


def test_numbers_of_a_class_become_its_names_and_captions_become_words(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded("blue"))
    kinds = SimpleNamespace(names=["dog", "cat"])
    sources = [
        {"bytes": encoded("red"), "path": None},
        {"bytes": None, "path": str(tmp_path / "a.png")},
        encoded("lime"),
    ]
    rows = [{"image": s, "label": i - 1, "text": "a tree" if i < 2 else "a"} for i, s in enumerate(sources)]

    class Rows(list[Any]):
        features = {"label": kinds}  # noqa: RUF012

    bank = ImageBank.from_hf(Rows(rows * 20), lambda p: np.arange(len(p))[:, None], label_column="label")
    assert bank.words[:3] == ((), ("dog",), ("cat",))
    texts = Rows(rows[:2] + [{"image": encoded("red"), "label": 1, "text": None}] * 38)
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
        ImageBank.from_hf([{"image": encoded("red"), "label": 3}], arguments.pop("backbone", colour), **arguments)


def test_folders_without_pictures_and_annotations_that_are_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path must be a folder of pictures, got .*nowhere"):
        ImageBank.from_folder(tmp_path / "nowhere", colour)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"annotations must be JSON, got .*a\.json: "):
        ImageBank.from_coco(tmp_path / "a.json", tmp_path, colour)
    with pytest.raises(ValueError, match=r"path .* must have at least one picture, got none"):
        ImageBank.from_folder(tmp_path, colour)
    with pytest.raises(ValueError, match=r'on_error must be "raise" or "skip", got \'ignore\''):
        ImageBank.from_folder(tmp_path, colour, on_error="ignore")  # type: ignore[arg-type]


# ---- backbones


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
    with pytest.raises(ValueError, match=r"got 'resnet'; close: .*resnet"):
        ImageBank.from_folder(folders, "resnet")


def test_a_missing_package_is_named_with_its_extra(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ImportError, match=r"backbone 'timm:resnet18' needs timm: pip install timm 'imgskipgram\[images\]"
    ):
        ImageBank.from_folder(folders, "timm:resnet18")
