"""Data sets: four formats tell the same boxes, broken files are named, images come as they are displayed."""

from __future__ import annotations

import json
import math
import pickle
import random
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from iounet.data import CocoDetection, HuggingFaceDetection, collate, open_dataset, synthetic_scenes
from iounet.data._annotations import Annotations

PIL = pytest.importorskip("PIL", reason="needs Pillow, of the extra iounet[detection]")
from PIL import Image  # noqa: E402

BOXES = {  # by image: class name, x, y, width, height; in 64 x 48 pixels
    "a.png": [("cat", 8, 12, 16, 24), ("dog", 32, 6, 24, 30)],
    "b.png": [("dog", 0, 0, 64, 48)],
    "c.png": [],
}
NAMES = ("cat", "dog")
IDS = (3, 17)  # category ids need not follow each other


def save_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(BOXES):
        Image.new("RGB", (64, 48), (40 * place, 90, 200)).save(folder / name)


def coco_document() -> dict[str, Any]:
    images = [{"id": 100 + k, "file_name": name, "width": 64, "height": 48} for k, name in enumerate(BOXES)]
    boxes = [
        {"id": 0, "image_id": 100 + k, "category_id": IDS[NAMES.index(name)], "bbox": box, "area": math.prod(box[2:])}
        for k, objects in enumerate(BOXES.values())
        for name, *box in objects
    ]
    for key, box in enumerate(boxes):
        box["id"] = key + 5
    categories = [{"id": key, "name": name} for key, name in zip(IDS, NAMES, strict=True)]
    return {"images": images, "annotations": boxes, "categories": categories}


def write_coco(root: Path, document: Any = None) -> Path:
    save_images(root / "images")
    path = root / "instances_val.json"
    path.write_text(json.dumps(coco_document() if document is None else document))
    return path


def write_voc(root: Path) -> Path:
    save_images(root / "JPEGImages")
    (root / "Annotations").mkdir()
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "val.txt").write_text("\n".join(Path(name).stem for name in BOXES) + "\n")
    (root / "ImageSets" / "Main" / "train.txt").write_text("b  1\n")
    for name, objects in BOXES.items():
        entries = "".join(
            f"<object><name>{what}</name><difficult>0</difficult><bndbox><xmin>{x}</xmin><ymin>{y}</ymin>"
            f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for what, x, y, w, h in objects
        )
        size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
        text = f"<annotation><filename>{name}</filename>{size}{entries}</annotation>"
        (root / "Annotations" / f"{Path(name).stem}.xml").write_text(text)
    return root


def write_yolo(root: Path, config: str | None = "path: .\nval: images\nnames: [cat, dog]\n") -> Path:
    save_images(root / "images")
    (root / "labels").mkdir()
    for name, objects in BOXES.items():
        lines = [
            f"{NAMES.index(what)} {(x + w / 2) / 64} {(y + h / 2) / 48} {w / 64} {h / 48}"
            for what, x, y, w, h in objects
        ]
        if lines:  # an image without objects needs no file
            (root / "labels" / f"{Path(name).stem}.txt").write_text("\n".join(lines) + "\n")
    if config is None:
        (root / "classes.txt").write_text("cat\ndog\n")
    else:
        (root / "data.yaml").write_text(config)
    return root


def write_huggingface(root: Path) -> Path:
    datasets = pytest.importorskip("datasets", reason="needs the extra iounet[huggingface]")
    save_images(root / "files")
    names = datasets.ClassLabel(names=list(NAMES))
    features = datasets.Features(
        image=datasets.Image(),
        image_id=datasets.Value("int64"),
        objects={
            "bbox": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
            "category": datasets.Sequence(names),
        },
    )
    rows = {
        "image": [str(root / "files" / name) for name in BOXES],
        "image_id": [100 + k for k in range(len(BOXES))],
        "objects": [
            {"bbox": [box for _, *box in objects], "category": [NAMES.index(what) for what, *_ in objects]}
            for objects in BOXES.values()
        ],
    }
    dataset = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"val": dataset, "train": dataset.select([1])}).save_to_disk(root / "saved")
    return root / "saved"


WRITERS = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo, "hf": write_huggingface}


def assert_holds_the_boxes(dataset: Any) -> None:
    assert dataset.classes == NAMES
    assert len(dataset) == len(BOXES)
    for place, (name, objects) in enumerate(BOXES.items()):
        image, target = dataset[place]
        assert (image.dtype, image.shape) == (torch.float32, (3, 48, 64)), name
        assert image.is_contiguous()
        assert torch.allclose(image[:, 5, 7] * 255, torch.tensor([40.0 * place, 90, 200]))
        corners = [[x, y, x + w, y + h] for _, x, y, w, h in objects]
        assert torch.allclose(target["boxes"], torch.tensor(corners, dtype=torch.float32).view(-1, 4), atol=1e-5)
        assert target["labels"].tolist() == [NAMES.index(what) + 1 for what, *_ in objects]
        assert target["labels"].dtype == torch.int64
        assert target["iscrowd"].tolist() == [False] * len(objects)
        assert target["image_id"] == dataset.image_ids[place]


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_same_boxes(kind: str, tmp_path: Path) -> None:
    place = WRITERS[kind](tmp_path / "data")
    assert_holds_the_boxes(open_dataset(f"{kind}:{place}", split=None if kind == "coco" else "val"))


@pytest.mark.parametrize("kind", WRITERS)
def test_annotations_are_a_coco_document_of_the_same_boxes(kind: str, tmp_path: Path) -> None:
    dataset = open_dataset(f"{kind}:{WRITERS[kind](tmp_path / 'data')}", split=None if kind == "coco" else "val")
    document = json.loads(json.dumps(dataset.annotations()))
    path = write_coco(tmp_path / "again", document)
    if kind in ("yolo", "hf"):  # their file names are not below a folder of images
        for image, name in zip(document["images"], BOXES, strict=True):
            image["file_name"] = name
        path.write_text(json.dumps(document))
    assert_holds_the_boxes(CocoDetection(path))
    assert [box["iscrowd"] for box in document["annotations"]] == [0, 0, 0]


def test_category_and_image_ids_stay_those_of_the_file(tmp_path: Path) -> None:
    dataset = open_dataset(f"coco:{write_coco(tmp_path)}")
    assert dataset.category_ids == list(IDS)
    assert dataset.image_ids == [100, 101, 102]
    expected = [box | {"iscrowd": 0} for box in coco_document()["annotations"]]
    assert dataset.annotations()["annotations"] == expected


def test_negative_places_count_from_the_end_and_others_are_refused(tmp_path: Path) -> None:
    dataset = open_dataset(f"coco:{write_coco(tmp_path)}")
    assert dataset[-2][1]["image_id"] == 101
    assert [target["image_id"] for _, target in dataset] == [100, 101, 102]
    for place in (3, -4):
        with pytest.raises(IndexError, match=f"less than 3, the number of images, got {place}"):
            dataset[place]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_copy_in_another_process_reads_the_same(kind: str, tmp_path: Path) -> None:
    dataset = open_dataset(f"{kind}:{WRITERS[kind](tmp_path / 'data')}", split=None if kind == "coco" else "val")
    assert_holds_the_boxes(pickle.loads(pickle.dumps(dataset)))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_reads_with_workers(workers: int, tmp_path: Path) -> None:
    dataset = open_dataset(f"coco:{write_coco(tmp_path)}")
    context = "fork" if workers else None
    batches = list(DataLoader(dataset, 2, num_workers=workers, collate_fn=collate, multiprocessing_context=context))
    assert [len(images) for images, _ in batches] == [2, 1]
    assert [target["image_id"] for _, targets in batches for target in targets] == [100, 101, 102]


# --- where images are ---


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("instances_val.json", "."),
        ("instances_val.json", "images"),
        ("instances_val.json", "BCCD/JPEGImages"),
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/val.json", "images/val"),
        ("val/_annotations.coco.json", "val"),
    ],
)
def test_images_are_found_beside_the_annotations(annotations: str, images: str, tmp_path: Path) -> None:
    save_images(tmp_path / images)
    path = tmp_path / annotations
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(coco_document()))
    assert_holds_the_boxes(open_dataset(f"coco:{path}"))


def test_a_folder_named_like_the_file_goes_before_others_with_the_same_names(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        save_images(tmp_path / "images" / split)
    path = tmp_path / "instances_val.json"
    path.write_text(json.dumps(coco_document()))
    assert CocoDetection(path).folder == tmp_path / "images" / "val"
    renamed = path.rename(tmp_path / "labels.json")
    with pytest.raises(ValueError, match=r"both hold its images: name one, as in coco:.*@"):
        CocoDetection(renamed)
    assert open_dataset(f"coco:{renamed}@{tmp_path / 'images' / 'train'}").folder == tmp_path / "images" / "train"


def test_a_split_is_a_file_of_the_folder(tmp_path: Path) -> None:
    write_coco(tmp_path)
    assert_holds_the_boxes(open_dataset(f"coco:{tmp_path}"))
    (tmp_path / "instances_train.json").write_text(json.dumps(coco_document() | {"annotations": []}))
    assert_holds_the_boxes(open_dataset(f"coco:{tmp_path}", "val"))
    with pytest.raises(ValueError, match="several annotation files: name one, or a split"):
        open_dataset(f"coco:{tmp_path}")
    with pytest.raises(FileNotFoundError, match=r"has no annotation file; looked for instances_test\.json"):
        open_dataset(f"coco:{tmp_path}", "test")
    with pytest.raises(ValueError, match="split must be None where spec names a file"):
        open_dataset(f"coco:{tmp_path}/instances_val.json", "val")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "x/../../secret.png", ""])
def test_a_file_name_may_not_leave_the_image_folder(name: str, tmp_path: Path) -> None:
    document = coco_document()
    document["images"][1]["file_name"] = name
    with pytest.raises(ValueError, match=r"file_name of image 101 must be below the image folder"):
        CocoDetection(write_coco(tmp_path, document))


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    dataset = CocoDetection(path)
    (tmp_path / "images" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"image file .*b\.png is missing"):
        dataset[1]
    with pytest.raises(FileNotFoundError, match=r"no folder beside it holds a\.png"):
        CocoDetection(path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.json is no file"):
        CocoDetection(tmp_path / "nothing.json")


# --- pixels ---


def one_image(root: Path, image: Image.Image, size: tuple[int, int], name: str = "x.png", **save: Any) -> torch.Tensor:
    (root / "images").mkdir(exist_ok=True)
    image.save(root / "images" / name, **save)
    images = [{"id": 1, "file_name": name, "width": size[0], "height": size[1]}]
    path = root / "one.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    return CocoDetection(path)[0][0]


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("1", 1, (255, 255, 255)),
        ("LA", (100, 128), (100, 100, 100)),
        ("RGBA", (10, 20, 30, 128), (10, 20, 30)),
        ("P", 0, (0, 0, 0)),
        ("I;16", 100 * 256 + 7, (100, 100, 100)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, value: Any, expected: tuple[int, ...], tmp_path: Path) -> None:
    pixels = one_image(tmp_path, Image.new(mode, (8, 6), value), (8, 6))
    assert pixels.shape == (3, 6, 8)
    assert torch.allclose(pixels * 255, torch.tensor(expected, dtype=torch.float32).view(3, 1, 1).expand(3, 6, 8))


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    pixels = one_image(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), (8, 8), "x.jpg", quality=100)
    red, green, blue = (pixels[:, 4, 4] * 255).tolist()
    assert red > 240
    assert max(green, blue) < 15


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds floating-point pixels of unknown range"):
        one_image(tmp_path, Image.new("F", (8, 6), 0.5), (8, 6), "x.tif")


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def corner_image() -> Image.Image:
    """8 x 6, black but for its upper left corner."""
    image = Image.new("L", (8, 6))
    image.putpixel((0, 0), 255)
    return image


def test_the_exif_orientation_is_applied_as_viewers_do(tmp_path: Path) -> None:
    half_turn = one_image(tmp_path, corner_image(), (8, 6), exif=exif(3))
    assert half_turn[0, 5, 7] == 1
    quarter = one_image(tmp_path, corner_image(), (6, 8), exif=exif(6))
    assert quarter.shape == (3, 8, 6)
    assert quarter[0, 0, 5] == 1


def test_the_exif_orientation_is_ignored_where_boxes_were_drawn_on_stored_pixels(tmp_path: Path) -> None:
    stored = one_image(tmp_path, corner_image(), (8, 6), exif=exif(6))
    assert stored.shape == (3, 6, 8)
    assert stored[0, 0, 0] == 1


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.png is 8 x 6, its annotations are for 10 x 6 pixels"):
        one_image(tmp_path, corner_image(), (10, 6))


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "truncated"])
def test_a_broken_image_is_named(content: bytes | None, tmp_path: Path) -> None:
    dataset = CocoDetection(write_coco(tmp_path))
    path = tmp_path / "images" / "a.png"
    Image.frombytes("RGB", (64, 48), random.Random(0).randbytes(3 * 64 * 48)).save(path)
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(ValueError, match=r"a\.png cannot be decoded"):
        dataset[0]


def test_sizes_that_are_not_told_are_read_from_the_images(tmp_path: Path) -> None:
    document = coco_document()
    for image in document["images"]:
        image["width"] = 0
        del image["height"]
    dataset = CocoDetection(write_coco(tmp_path, document))
    assert_holds_the_boxes(dataset)
    assert [(image["width"], image["height"]) for image in dataset.annotations()["images"]] == [(64, 48)] * 3


def test_boxes_are_clipped_to_the_image_in_targets_only(tmp_path: Path) -> None:
    document = coco_document()
    document["annotations"][0]["bbox"] = [-4.5, 12, 20, 40]
    document["annotations"][1]["bbox"] = [70, 0, 5, 5]  # beside the image
    dataset = CocoDetection(write_coco(tmp_path, document))
    assert dataset[0][1]["boxes"].tolist() == [[0, 12, 15.5, 48]]
    assert dataset[0][1]["labels"].tolist() == [1]
    assert [box["bbox"] for box in dataset.annotations()["annotations"][:2]] == [[-4.5, 12, 20, 40], [70, 0, 5, 5]]


# --- what files may not say ---


def test_boxes_without_area_are_dropped_with_one_warning_that_counts_them(tmp_path: Path) -> None:
    document = coco_document()
    document["annotations"] += [
        {"id": 50 + k, "image_id": 102, "category_id": 3, "bbox": box}
        for k, box in enumerate([[1, 1, 0, 5], [1, 1, 5, 0], [5, 5, -2, 3]])
    ]
    with pytest.warns(UserWarning, match=r"instances_val\.json: dropped 3 boxes without area, in c\.png") as caught:
        dataset = CocoDetection(write_coco(tmp_path, document))
    assert len(caught) == 1
    assert_holds_the_boxes(dataset)


def spoil(change: str) -> dict[str, Any]:
    document = coco_document()
    box = document["annotations"][1]
    match change:
        case "image":
            box["image_id"] = 999
        case "category":
            box["category_id"] = 4
        case "category name":
            box["category_id"] = "dog"
        case "annotation id":
            box["id"] = 5
        case "image id":
            document["images"][2]["id"] = 100
        case "category id":
            document["categories"][1]["id"] = 3
        case "no id":
            del box["id"]
        case "huge id":
            document["images"][0]["id"] = 2**70
        case "true id":
            document["images"][0]["id"] = True
        case "no box":
            del box["bbox"]
        case "short box":
            box["bbox"] = [1, 2, 3]
        case "text box":
            box["bbox"] = "1234"
        case "nan box":
            box["bbox"][2] = math.nan
        case "infinite box":
            box["bbox"][2] = 10**400
        case "area":
            box["area"] = "big"
        case "width":
            document["images"][0]["width"] = "64"
        case "negative width":
            document["images"][0]["width"] = -64
        case "no images":
            del document["images"]
        case "list":
            document["annotations"] = {}
        case "entry":
            document["annotations"][0] = 5
    return document


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("image", "annotation 6 has image_id 999, which no image has"),
        ("category", "annotation 6 has category_id 4, which no category has"),
        ("category name", "annotation 6 has category_id 'dog', which no category has"),
        ("annotation id", "annotation id 5 occurs twice"),
        ("image id", "image id 100 occurs twice"),
        ("category id", "category id 3 occurs twice"),
        ("no id", "the id of annotation number 1 must be an integer, got None"),
        ("huge id", "the id of image number 0 must be an integer, got 1180591620717411303424"),
        ("true id", "the id of image number 0 must be an integer, got True"),
        ("no box", "bbox of annotation 6 must be four finite numbers x, y, width, height, got None"),
        ("short box", "bbox of annotation 6 must be four finite numbers"),
        ("text box", "bbox of annotation 6 must be four finite numbers"),
        ("nan box", "bbox of annotation 6 must be four finite numbers"),
        ("infinite box", "bbox of annotation 6 must be four finite numbers"),
        ("area", "area of annotation 6 must be a finite number, got 'big'"),
        ("width", "width and height of image 100 must be integers"),
        ("negative width", "width and height of image 100 must be integers"),
        ("no images", "must be a COCO document: an object whose 'images' is a list of objects"),
        ("list", "an object whose 'annotations' is a list of objects"),
        ("entry", "an object whose 'annotations' is a list of objects"),
    ],
)
def test_an_inconsistent_file_is_refused_by_name_and_id(change: str, message: str, tmp_path: Path) -> None:
    path = write_coco(tmp_path, spoil(change))
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{re.escape(message)}"):
        CocoDetection(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), value=JSON)
def test_whatever_a_file_holds_it_is_read_or_refused_by_name(data: st.DataObject, value: Any) -> None:
    document = coco_document()
    key = data.draw(st.sampled_from(sorted(document)))
    holder, place = document, key
    if data.draw(st.booleans()):
        holder, place = document[key], 1
        if data.draw(st.booleans()):
            holder, place = document[key][1], data.draw(st.sampled_from(sorted(document[key][1])))
    holder[place] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            table = Annotations.from_coco(document, "the file")
        except ValueError as error:
            refusal = str(error)
        else:
            assert table.boxes.isfinite().all()
            again = Annotations.from_coco(json.loads(json.dumps(table.to_coco())), "again")
            assert again.to_coco() == table.to_coco()
            return
    assert "the file" in refusal


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"images": [}', b"[" * 100_000, b"\xff\xfe\x00", b"[" + b"9" * 5000 + b"]", b"[]", b"3"],
    ids=["empty", "cut", "wrong", "deep", "bytes", "long number", "list", "number"],
)
def test_what_is_no_coco_document_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.json (is not valid JSON|must be a COCO document)"):
        CocoDetection(path)


def test_the_place_of_a_json_error_is_told(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text('{"images": [],\n "annotations": [}')
    with pytest.raises(ValueError, match="line 2 column 18"):
        CocoDetection(path)


BOMB = (
    '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;">]>'
    "<annotation><filename>&y;</filename></annotation>"
)
FILE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><filename>&x;</filename></annotation>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid XML: no element found: line 1"),
        ("<annotation>", "is not valid XML: no element found: line 1"),
        ("<annotation>\n</object>", "is not valid XML: mismatched tag: line 2"),
        (BOMB, "document type 'a' is not allowed"),
        (FILE, "document type 'a' is not allowed"),
        ("<annotation>&x;</annotation>", "is not valid XML: undefined entity"),
        ("<annotation><object/></annotation>", "object 1 has no name"),
        (
            "<annotation><object><name>cat</name></object></annotation>",
            "object 1: bndbox/xmin must be a number, got None",
        ),
        (
            "<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>nan</ymin></bndbox></object></annotation>",
            "object 1: bndbox/ymin must be a number, got 'nan'",
        ),
        ("<annotation><size><width>wide</width></size></annotation>", "size/width must be a number, got 'wide'"),
    ],
)
def test_broken_xml_is_refused_by_name_and_place(text: str, message: str, tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "Annotations" / "b.xml").write_text(text)
    with pytest.raises(ValueError, match=rf"b\.xml.*{re.escape(message)}"):
        open_dataset(f"voc:{tmp_path}", "val")


def test_an_entity_bomb_in_another_encoding_is_refused_too(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "Annotations" / "b.xml").write_bytes(
        ('<?xml version="1.0" encoding="UTF-16"?>' + BOMB).encode("utf-16")
    )
    with pytest.raises(ValueError, match=r"b\.xml.*document type 'a' is not allowed"):
        open_dataset(f"voc:{tmp_path}", "val")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.1", "must be a class and x, y, width, height, or points, got 3 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9", "got 5 numbers"),
        ("cat 0.5 0.5 0.1 0.1", "must be a class number and shares of the image, got 'cat 0.5"),
        ("0.0 0.5 0.5 0.1 0.1", "must be a class number"),
        ("2 0.5 0.5 0.1 0.1", "class must be one of the 2 that have names, from 0, got 2"),
        ("-1 0.5 0.5 0.1 0.1", "class must be one of the 2 that have names, from 0, got -1"),
        ("0 32 24 10 10", "coordinates must be shares of the image, from 0 to 1"),
        ("0 nan 0.5 0.1 0.1", "coordinates must be shares of the image"),
    ],
)
def test_a_broken_line_is_refused_by_file_and_number(line: str, message: str, tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "labels" / "a.txt").write_text(f"1 0.5 0.5 0.1 0.1\n\n{line}\n")
    with pytest.raises(ValueError, match=rf"a\.txt, line 3.*{re.escape(message)}"):
        open_dataset(f"yolo:{tmp_path}")


@pytest.mark.parametrize("spec", ["", "coco", "coco:", "/data/x.json", "csv:x"])
def test_an_unknown_kind_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="spec must be coco:PATH, voc:PATH, yolo:PATH or hf:NAME"):
        open_dataset(spec)


@pytest.mark.parametrize("file", ["ImageSets/Main/val.txt", "classes.txt"])
def test_lists_that_are_no_text_are_refused_by_name(file: str, tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / file).write_bytes(b"a\xff\n")
    with pytest.raises(ValueError, match=rf"{Path(file).name} is not text in UTF-8"):
        open_dataset(f"voc:{tmp_path}", "val")


# --- Pascal VOC ---


def test_a_voc_split_may_hold_fewer_classes_than_the_data_set(tmp_path: Path) -> None:
    dataset = open_dataset(f"voc:{write_voc(tmp_path)}", "train")
    assert dataset.classes == NAMES
    assert [target["labels"].tolist() for _, target in dataset] == [[2]]


def test_classes_txt_orders_the_labels_of_voc(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "classes.txt").write_text("dog\ncat\n\n")
    dataset = open_dataset(f"voc:{tmp_path}", "val")
    assert dataset.classes == ("dog", "cat")
    assert dataset[0][1]["labels"].tolist() == [2, 1]
    (tmp_path / "classes.txt").write_text("dog\n")
    with pytest.raises(ValueError, match=r"a\.xml: 'cat' is not in classes\.txt"):
        open_dataset(f"voc:{tmp_path}", "val")


def test_difficult_objects_are_passed_over_as_crowds_are(tmp_path: Path) -> None:
    write_voc(tmp_path)
    path = tmp_path / "Annotations" / "b.xml"
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1"))
    dataset = open_dataset(f"voc:{tmp_path}")
    assert dataset[1][1]["iscrowd"].tolist() == [True]
    assert [box["iscrowd"] for box in dataset.annotations()["annotations"]] == [0, 0, 1]


def test_parts_of_objects_have_boxes_of_their_own(tmp_path: Path) -> None:
    write_voc(tmp_path)
    path = tmp_path / "Annotations" / "b.xml"
    part = "<part><name>head</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>12</xmax><ymax>12</ymax></bndbox></part>"
    path.write_text(path.read_text().replace("<difficult>", f"{part}<difficult>"))
    assert_holds_the_boxes(open_dataset(f"voc:{tmp_path}"))


def test_voc_finds_the_one_data_set_below_and_names_its_splits(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOC2012")
    assert_holds_the_boxes(open_dataset(f"voc:{tmp_path}", "val"))
    with pytest.raises(FileNotFoundError, match=r"split 'test' is not in .*; there are: train, val"):
        open_dataset(f"voc:{tmp_path}", "test")
    with pytest.raises(FileNotFoundError, match=r"split '\.\./val' is not in"):
        open_dataset(f"voc:{tmp_path}", "../val")
    with pytest.raises(FileNotFoundError, match="has no folder Annotations"):
        open_dataset(f"voc:{tmp_path / 'VOC2012' / 'JPEGImages'}")
    (tmp_path / "VOC2012" / "Annotations" / "c.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"c\.xml, which split 'val' lists, does not exist"):
        open_dataset(f"voc:{tmp_path}", "val")


@pytest.mark.filterwarnings("ignore:.*dropped . box:UserWarning")
@pytest.mark.parametrize("split", ["train", "val", "test", "trainval"])
def test_voc_and_coco_annotations_of_blood_cells_are_equal(split: str, detection_data: Path) -> None:
    root = detection_data / "bccd"
    coco, voc = open_dataset(f"coco:{root}", split), open_dataset(f"voc:{root}", split)
    theirs, ours = coco.annotations(), voc.annotations()
    assert ours["images"] == theirs["images"]
    names = [{entry["id"]: entry["name"] for entry in side["categories"]} for side in (theirs, ours)]
    for expected, box in zip(theirs["annotations"], ours["annotations"], strict=True):
        assert names[1][box.pop("category_id")] == names[0][expected.pop("category_id")]
        assert box == expected
    sizes = {"train": (205, 2804), "val": (87, 1137), "test": (72, 945), "trainval": (292, 3941)}
    assert (len(voc), len(ours["annotations"])) == sizes[split]
    image, target = voc[0]
    assert image.shape == (3, 480, 640)
    assert torch.equal(target["boxes"], coco[0][1]["boxes"])


def test_the_two_empty_boxes_of_blood_cells_are_dropped(detection_data: Path) -> None:
    with pytest.warns(UserWarning, match="dropped 2 boxes without area, in BloodImage_00338.jpg, BloodImage_00343.jpg"):
        dataset = open_dataset(f"voc:{detection_data / 'bccd' / 'BCCD'}")
    assert len(dataset) == 364
    assert len(dataset.annotations()["annotations"]) == 4886


# --- YOLO ---


@pytest.mark.parametrize(
    "config",
    [
        "train: ../train/images\nval: images\nnc: 2\nnames: ['cat', \"dog\"]  # two\n",
        "path: /where/it/was/written  # not here\nval: images # all\nnames:\n  0: cat\n  1: dog\n",
        "names:\n- cat\n- dog\nval:\n- images\ndownload: |\n  names: [x]\n  wget it\n",
        "names: {0: cat, 1: dog}\nval: images/\n",
        "names: [\n  cat,\n  dog,\n]\nval: images\n",
    ],
)
def test_the_keys_of_data_yaml_are_read_in_every_notation(config: str, tmp_path: Path) -> None:
    write_yolo(tmp_path, config)
    assert_holds_the_boxes(open_dataset(f"yolo:{tmp_path}", "val"))
    assert_holds_the_boxes(open_dataset(f"yolo:{tmp_path / 'data.yaml'}", "val"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            "['traffic light', \"it's, a dog\", 'don''t', \"a \\\"b\\\"\"]",
            ["traffic light", "it's, a dog", "don't", 'a "b"'],
        ),
        ("[C# sharp, a:b]", ["C# sharp", "a:b"]),
        ("\n  - 'no'\n  - 7 #8\n", ["no", "7"]),
        ("\n  1: b\n  0: 'a: x'", ["a: x", "b"]),
    ],
)
def test_names_may_be_quoted(names: str, expected: list[str], tmp_path: Path) -> None:
    write_yolo(tmp_path, f"names: {names}\nval: images\n")
    for path in (tmp_path / "labels").iterdir():
        path.unlink()
    assert list(open_dataset(f"yolo:{tmp_path}").classes) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("names: {1: cat, 2: dog}\n", r"names must be numbered from 0 without a gap, got \[1, 2\]"),
        ("names: [cat, dog\nval: images\n", r"line 1: '\[' without its '\]'"),
        ("val: images\nnames:\n  cat\n", "line 3: cannot read 'cat'"),
        ("names: {cat: 0}\n", "line 1: cannot read 'cat: 0'"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_refused(config: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"data\.yaml.*{message}"):
        open_dataset(f"yolo:{write_yolo(tmp_path, config)}")


def test_yolo_without_a_configuration_reads_classes_txt(tmp_path: Path) -> None:
    assert_holds_the_boxes(open_dataset(f"yolo:{write_yolo(tmp_path, None)}"))
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(FileNotFoundError, match="names no classes"):
        open_dataset(f"yolo:{tmp_path}")


@pytest.mark.parametrize(("images", "labels"), [("images/val", "labels/val"), ("val/images", "val/labels")])
def test_yolo_splits_are_folders_in_either_order(images: str, labels: str, tmp_path: Path) -> None:
    write_yolo(tmp_path / "flat", None)
    for old, new in (("images", images), ("labels", labels), ("classes.txt", "classes.txt")):
        (tmp_path / new).parent.mkdir(exist_ok=True)
        (tmp_path / "flat" / old).rename(tmp_path / new)
    assert_holds_the_boxes(open_dataset(f"yolo:{tmp_path}", "val"))
    assert_holds_the_boxes(open_dataset(f"yolo:{tmp_path}"))
    with pytest.raises(FileNotFoundError, match="has no images of split 'train'; looked in"):
        open_dataset(f"yolo:{tmp_path}", "train")


def test_a_yolo_split_may_be_a_list_of_files(tmp_path: Path) -> None:
    write_yolo(tmp_path, "names: [cat, dog]\nval: val.txt\n")
    (tmp_path / "val.txt").write_text("./images/a.png\n./images/b.png\n./images/c.png\n")
    assert_holds_the_boxes(open_dataset(f"yolo:{tmp_path}", "val"))


def test_an_outline_gives_its_box(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "labels" / "a.txt").write_text("0 0.25 0.5 0.5 0.25 0.375 0.75\n")
    assert open_dataset(f"yolo:{tmp_path}")[0][1]["boxes"].tolist() == [[16, 12, 32, 36]]


# --- Hugging Face ---


def test_a_split_of_several_must_be_named(tmp_path: Path) -> None:
    place = write_huggingface(tmp_path)
    assert len(open_dataset(f"hf:{place}", "train")) == 1
    with pytest.raises(ValueError, match="has several splits, name one: val, train"):
        open_dataset(f"hf:{place}")
    with pytest.raises(ValueError, match="has no split 'test'; there are: val, train"):
        open_dataset(f"hf:{place}", "test")


def test_a_folder_of_images_with_metadata_is_loaded_by_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra iounet[huggingface]")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    save_images(tmp_path / "folder" / "train")
    rows = [
        {"file_name": name, "objects": {"bbox": [box for _, *box in objects], "category": [w for w, *_ in objects]}}
        for name, objects in BOXES.items()
    ]
    (tmp_path / "folder" / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert_holds_the_boxes(open_dataset(f"hf:{tmp_path / 'folder'}", "train"))


def test_corners_read_as_sizes_are_noticed_and_read_when_told(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra iounet[huggingface]")
    save_images(tmp_path)
    objects = [
        {"bbox": [[float(x), y, x + w, y + h] for _, x, y, w, h in boxes], "category": [what for what, *_ in boxes]}
        for boxes in BOXES.values()
    ]
    rows = {"image": [str(tmp_path / name) for name in BOXES], "objects": objects}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    dataset.save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"boxes leave their images unless they are x1, y1, x2, y2: say .*@xyxy"):
        open_dataset(f"hf:{tmp_path / 'saved'}")
    assert_holds_the_boxes(open_dataset(f"hf:{tmp_path / 'saved'}@xyxy"))
    with pytest.raises(ValueError, match="box_format must be 'xywh' or 'xyxy', got 'yxyx'"):
        open_dataset(f"hf:{tmp_path / 'saved'}@yxyx")
    with pytest.raises(ValueError, match="has no splits, got split='val'"):
        open_dataset(f"hf:{tmp_path / 'saved'}", "val")


@pytest.mark.parametrize("notation", ["columns", "entries", "names"])
def test_objects_are_read_in_every_notation(notation: str) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra iounet[huggingface]")
    four, label = datasets.Sequence(datasets.Value("float32"), length=4), datasets.ClassLabel(names=list(NAMES))
    objects = {
        "columns": {
            "bbox": datasets.Sequence(four),
            "category": datasets.Sequence(label),
            "area": datasets.Sequence(datasets.Value("int64")),
        },
        "entries": [{"bbox": four, "label": label}],
        "names": {"bbox": datasets.Sequence(four), "category": datasets.Sequence(datasets.Value("string"))},
    }[notation]
    rows: dict[str, list[Any]] = {
        "image": [Image.new("RGB", (64, 48), (40 * k, 90, 200)) for k in range(3)],
        "objects": [],
    }
    for boxes in BOXES.values():
        entries = [{"bbox": box, "label": NAMES.index(what)} for what, *box in boxes]
        names = [what for what, *_ in boxes] if notation == "names" else [entry["label"] for entry in entries]
        columns = {"bbox": [entry["bbox"] for entry in entries], "category": names}
        columns |= {"area": [1] * len(boxes)} if notation == "columns" else {}
        rows["objects"].append(entries if notation == "entries" else columns)
    features = datasets.Features(image=datasets.Image(), objects=objects)
    assert_holds_the_boxes(HuggingFaceDetection(datasets.Dataset.from_dict(rows, features=features)))


def test_columns_that_are_not_those_of_detection_are_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra iounet[huggingface]")
    with pytest.raises(ValueError, match="a column 'objects' of boxes and categories, got text"):
        HuggingFaceDetection(datasets.Dataset.from_dict({"text": ["a"]}))
    save_images(tmp_path)
    rows = {"image": [str(tmp_path / "a.png")], "objects": [{"bbox": [[0, 0, 1, 1]]}]}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    with pytest.raises(ValueError, match="row 0: objects must have 'bbox' and 'category', got bbox"):
        HuggingFaceDetection(dataset)


# --- scenes ---


def test_scenes_depend_on_the_seed_and_their_place_only() -> None:
    few, many, others = synthetic_scenes(2, 5, 64), synthetic_scenes(4, 5, 64), synthetic_scenes(2, 6, 64)
    for place in range(2):
        assert torch.equal(few[place][0], many[place][0])
        assert torch.equal(few[place][1]["boxes"], many[place][1]["boxes"])
        assert not torch.equal(few[place][0], others[place][0])
    assert not torch.equal(many[0][0], many[2][0])


def test_scenes_follow_the_protocol() -> None:
    scenes = synthetic_scenes(12, 0, (48, 80), ("ring", "striped star"))
    assert scenes.classes == ("ring", "striped star")
    overlapping = 0
    for image, target in scenes:
        assert (image.dtype, image.shape) == (torch.float32, (3, 48, 80))
        assert 0 <= image.min() < image.max() <= 1
        boxes = target["boxes"]
        assert 1 <= len(boxes) == len(target["labels"]) == len(target["iscrowd"]) <= 7
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([80.0, 48])).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 3).all()
        assert set(target["labels"].tolist()) <= {1, 2}
        low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
        high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        overlapping += int(((high - low) > 0).all(2).triu(1).sum())
    assert overlapping > 6
    assert len(scenes.annotations()["annotations"]) == sum(len(target["labels"]) for _, target in scenes)


@pytest.mark.parametrize("name", ["disc", "square", "triangle", "star", "cross", "ring", "striped disc"])
def test_the_box_of_a_shape_is_where_its_pixels_end(name: str) -> None:
    from iounet.data._scenes import _Shape

    draw = random.Random(name)
    for _ in range(3):
        shape = _Shape(name.split()[-1], draw.uniform(8, 25), draw.uniform(8, 25), draw.uniform(0, 7))
        x = torch.arange(-160, 161) / 5  # samples at a fifth of a pixel
        inside = shape.distance(x, x) <= 0
        rows, columns = torch.nonzero(inside.any(1)).flatten(), torch.nonzero(inside.any(0)).flatten()
        found = torch.stack([x[columns[0]], x[rows[0]], -x[columns[-1]], -x[rows[-1]]])
        gap = found - torch.tensor(shape.box) * torch.tensor([1, 1, -1, -1])
        assert gap.min() > -1e-4  # never beyond the box
        assert gap.max() < 0.8  # the last sample in a sharp corner


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": -1}, "n must be non-negative, got -1"),
        ({"n": 1, "size": 16}, "size must be at least 32, got 16"),
        ({"n": 1, "classes": 0}, "classes must be from 1 to 12, got 0"),
        ({"n": 1, "classes": 13}, "classes must be from 1 to 12, got 13"),
        ({"n": 1, "classes": ("disc", "disc")}, "classes must be different names of disc, square"),
        ({"n": 1, "classes": ("moon",)}, "classes must be different names of disc, square"),
    ],
)
def test_scenes_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthetic_scenes(**arguments)


def test_no_scenes_are_an_empty_data_set() -> None:
    scenes = synthetic_scenes(0)
    assert len(scenes) == 0
    assert scenes.annotations()["annotations"] == []


# --- what is needed ---


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(["PIL", "datasets", "numpy", "torchvision"]))
from iounet.data import open_dataset, synthetic_scenes
synthetic_scenes(1, size=32)[0]
for spec in sys.argv[1:]:
    try:
        open_dataset(spec)
    except ImportError as error:
        print(error)
"""


def test_a_missing_library_is_named_with_its_extra(tmp_path: Path) -> None:
    specs = [f"{kind}:{WRITERS[kind](tmp_path / kind)}" for kind in ("coco", "voc", "yolo")]
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT, *specs, "hf:anything"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = run.stdout.splitlines()
    assert ["pip install 'iounet[detection]'" in line for line in lines] == [True, True, True, False], run.stderr
    assert "pip install 'iounet[huggingface]'" in lines[3]


def test_a_large_table_is_read_in_the_order_of_its_images() -> None:
    draw = random.Random(0)
    images = [{"id": key} for key in draw.sample(range(10_000), 500)]
    boxes = [
        {"id": key, "image_id": draw.choice(images)["id"], "category_id": draw.randint(1, 9), "bbox": [key, 0, 1, 1]}
        for key in range(5000)
    ]
    document = {
        "images": images,
        "annotations": boxes,
        "categories": [{"id": key, "name": "x"} for key in range(1, 10)],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = Annotations.from_coco(document, "file")
    expected = [box for image in images for box in boxes if box["image_id"] == image["id"]]
    assert table.ids.tolist() == [box["id"] for box in expected]
    assert table.boxes[:, 0].tolist() == [box["id"] for box in expected]
    assert [table.category_ids[label - 1] for label in table.labels] == [box["category_id"] for box in expected]
