"""imgskipgram under hostile files, corpora, pictures and arguments."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import gensim.models  # noqa: F401 (which takes long, and is imported late)
import numpy as np
import scipy.stats  # noqa: F401
from fuzz.choices import Choices, spoiled
from fuzz.targets import REFUSALS, Target, need
from PIL import Image

from imgskipgram import ImageBank, ImageSkipGram, evaluate
from imgskipgram.cli import main
from imgskipgram.compat import Word2Vec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXT = ["the dog barks", "the cat purrs", "a dog bites", "a cat bites"] * 3
_WORDS = ("dog", "cat", "the", "a", "barks", "purrs", "bites")


@cache
def bank() -> ImageBank:
    picture = Image.new("RGB", (2, 2), "red")
    return ImageBank.from_features(
        [[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], ["dog", "dog", "cat", "cat"], None, [picture, None, None, None]
    )


@cache
def small() -> ImageSkipGram:
    model = ImageSkipGram(vector_size=4, min_count=1, image_negative=2, workers=1, epochs=1)
    return model.fit(TEXT, bank())


def prepare() -> None:
    """What all targets need, before they are timed."""
    small()


def _exercise(model: ImageSkipGram) -> None:
    """All that a model can be asked, whatever it answers."""
    repr(model)
    need(model.wv.vectors.shape == (len(model.wv), model.vector_size), "vectors must have the shape that is told")
    word = model.wv.index_to_key[0]
    if model.bank is not None:
        found = model.explain(word, topn=3)
        need(all(0 <= i < len(model.bank) for i, _, _ in found.images), f"images must be of the bank: {found.images}")
    if np.isfinite(model.wv.vectors).all():
        model.wv.most_similar(word, topn=2)
    model.workers = 1
    model.train([[str(word) for word in model.wv.index_to_key[:50]]] * 2, epochs=1)
    need(np.isfinite(model.wv.vectors).all(), "what training leaves must be finite")


# Files.


def _model(suffix: str) -> Callable[[bytes, Path], None]:
    def run(data: bytes, folder: Path) -> None:
        path = folder / f"model{suffix}"
        path.write_bytes(data)
        model = ImageSkipGram.load(path)
        try:
            _exercise(model)
        except (ValueError, FloatingPointError) as error:  # sizes that no corpus fits
            need(str(error), "a refusal must have words")
        model.save(folder / "again.npz")
        ImageSkipGram.load(folder / "again.npz")

    return run


def _saved(suffix: str) -> list[bytes]:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as name:
        path = Path(name, f"model{suffix}")
        small().save(path)
        plain = path.read_bytes()
        ImageSkipGram(vector_size=2, min_count=1, workers=1, epochs=1).fit(TEXT[:2]).save(path)
        return [plain, path.read_bytes()]


def _safetensors_mended(data: bytes) -> bytes:
    """With the length of the header that is there."""
    end = data.rfind(b"}")
    return (end - 7).to_bytes(8, "little") + data[8:] if end > 8 else data


def _compat(data: bytes, folder: Path) -> None:
    path = folder / "model.npz"
    path.write_bytes(data)
    model = Word2Vec.load(path)
    str(model)
    model.predict_output_word(["dog"], topn=2)


def _compat_seeds() -> list[bytes]:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as name:
        Word2Vec([["dog", "cat"], ["dog"]], min_count=1, vector_size=2, epochs=1, workers=1).save(Path(name, "m.npz"))
        return [Path(name, "m.npz").read_bytes()]


def _bank(data: bytes, folder: Path) -> None:
    path = folder / "bank.npz"
    path.write_bytes(data)
    found = ImageBank.load(path)
    repr(found)
    need(len(found.words) == len(found.ids) == len(found.thumbnails) == len(found), "a bank must be of one length")
    need(np.isfinite(found.features).all(), "features must be finite")
    found.images_of({"dog": 0, "cat": 1})
    found.save(folder / "again.npz")


def _bank_seeds() -> list[bytes]:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as name:
        bank().save(Path(name, "bank.npz"))
        return [Path(name, "bank.npz").read_bytes()]


def _corpus(data: bytes, folder: Path) -> None:
    """A corpus; the first byte says whether it is compressed."""
    path = folder / ("corpus" + (".txt", ".gz", ".bz2", ".xz")[data[0] % 4 if data else 0])
    path.write_bytes(data[1:])
    model = ImageSkipGram(vector_size=2, min_count=1, workers=1, epochs=1)
    model.fit(path)
    need(np.isfinite(model.wv.vectors).all(), "vectors must be finite")
    again = ImageSkipGram(vector_size=2, min_count=1, workers=1, epochs=1)
    again.fit(path, cache_dir=False)
    need(again.wv.index_to_key == model.wv.index_to_key, "a corpus that is streamed must have the same words")
    if path.suffix == ".txt":
        words = [line.split() for line in data[1:].decode().split("\n")]
        known = {word for sentence in words for word in sentence}
        need(
            known == set(model.wv.index_to_key), f"words must be those between white space, got {model.wv.index_to_key}"
        )


def _corpus_seeds() -> list[bytes]:
    import bz2
    import gzip
    import lzma

    text = "the dog barks\nthe cat purrs\r\n\n中国 人民\u3000好 a\u00a0b\n".encode()
    return [
        b"\x00" + text,
        b"\x01" + gzip.compress(text, mtime=0),
        b"\x02" + bz2.compress(text),
        b"\x03" + lzma.compress(text),
    ]


def _features(pictures: list[Image.Image]) -> Any:
    return np.array(
        [[*np.asarray(picture.convert("RGB").resize((1, 1))).ravel(), picture.width] for picture in pictures], float
    )


_COCO = {
    "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2], "iscrowd": 0, "caption": "a dog"},
        {"id": 2, "image_id": 2, "category_id": 2, "bbox": [0.5, 0, 2, 3], "caption": "a cat sits"},
        {"id": 3, "image_id": 2, "category_id": 1, "bbox": [1, 1, 9, 9], "caption": "a cat"},
    ],
    "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
}


def _pictures(folder: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(folder / "a.png")
    Image.new("RGB", (5, 3), "blue").save(folder / "b.png")


def _coco(data: bytes, folder: Path) -> None:
    _pictures(folder)
    (folder / "annotations.json").write_bytes(data)
    for words, crops in (("categories", True), ("categories", False), ("captions", False)):
        found = ImageBank.from_coco(folder / "annotations.json", folder, _features, words=words, crops=crops)
        need(len(found) == len(found.words), "a bank must be of one length")


def _coco_objects(data: bytes, folder: Path) -> None:
    _pictures(folder)
    document = spoiled(Choices(data), _COCO)
    ImageBank.from_coco(document, folder, _features)


def _picture(data: bytes, folder: Path) -> None:
    """A folder with a picture of an enemy; the first byte says what it calls itself."""
    (folder / "dog").mkdir()
    _pictures(folder)
    suffix = ("png", "jpg", "webp", "gif", "bmp", "tiff", "ppm")[data[0] % 7 if data else 0]
    (folder / "dog" / f"x.{suffix}").write_bytes(data[1:])
    need(len(ImageBank.from_folder(folder, _features, on_error="skip")) >= 2, "sound pictures must be kept")
    ImageBank.from_folder(folder, _features)


def _picture_seeds() -> list[bytes]:
    found = []
    for k, kind in enumerate(("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")):
        out = io.BytesIO()
        Image.new("RGB", (3, 2), "green").save(out, kind)
        found.append(bytes([k]) + out.getvalue())
    return found


def _analogy(data: bytes, folder: Path) -> None:
    (folder / "questions.txt").write_bytes(data)
    for method in ("3cosadd", "3cosmul"):
        found = evaluate.analogy(small().wv, folder / "questions.txt", method=method)
        need(0 <= found.correct <= found.n, f"there must be {found.correct} of {found.n}")
        str(found)


def _similarity(data: bytes, folder: Path) -> None:
    (folder / "pairs.txt").write_bytes(data)
    str(evaluate.similarity(small().wv, folder / "pairs.txt"))


def _cli(data: bytes, folder: Path) -> None:
    """Commands on a file of any bytes; the first says which."""
    kind = data[0] if data else 0
    path, out = folder / ("in.npz" if kind % 6 < 4 else "in.txt"), str(folder / "out")
    path.write_bytes(data[1:])
    arguments = [
        ["explain", str(path), "dog", "--html", out],
        ["explain", str(path), "dog", "\ud800", "--topn=2"],
        ["export", str(path), out],
        ["export", str(path), out, "--format=npz"],
        ["train", str(path), "-o", out, "--vector-size=2", "--min-count=1", "--workers=1", "--epochs=1"],
        ["evaluate", str(path), "--similarity", str(path)],
    ][kind % 6]
    said, told = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(told):
        try:
            code = main(arguments)
        except SystemExit as error:
            code = error.code
    need(code in (0, 1, 2), f"the exit code must be 0, 1 or 2, got {code}")
    need("Traceback" not in told.getvalue(), told.getvalue())
    need(code == 0 or told.getvalue().strip(), "an error must be told")
    need({p.name for p in folder.iterdir()} <= {path.name, "out"}, "nothing half-written must be left")
    need(code == 0 or not (folder / "out").exists(), "a command that failed must not leave an output")


# Arguments.


def _options(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    options: dict[str, Any] = {"vector_size": 3, "min_count": 1, "epochs": 1, "workers": 1, "image_negative": 1}
    names = [
        "vector_size", "window", "min_count", "negative", "sample", "alpha", "min_alpha", "epochs", "workers", "seed",
        "ns_exponent", "objective", "image_weight", "image_negative", "projection", "negatives", "deterministic",
        "dtype", "callbacks", "shrink_windows", "max_vocab_size", "max_final_vocab", "trim_rule", "sorted_vocab",
    ]  # fmt: skip
    for _ in range(1 + choices.below(3)):
        name = choices.pick(names)
        options[name] = choices.value(
            tensors=False, small=name in ("vector_size", "window", "negative", "epochs", "workers", "image_negative")
        )
    options["objective"] = choices.pick(("nce", "margin", "infonce", "none", options.get("objective", "nce")))
    options["projection"] = choices.pick(("shared", "fixed", "free", options.get("projection", "shared")))
    options["negatives"] = choices.pick(("center", "batch", "pair", options.get("negatives", "center")))
    options["dtype"] = choices.pick(("float32", "float64", "bfloat16", options.get("dtype", "float32")))
    model = ImageSkipGram(**options)
    try:
        model.fit(TEXT, choices.pick((None, bank())))
    except FloatingPointError as error:
        need(str(error), "a refusal must have words")
        return
    need(np.isfinite(model.wv.vectors).all(), "vectors must be finite")
    repr(model)


def _corpora(data: bytes, folder: Path) -> None:
    """Corpora that are no files."""
    choices = Choices(data)
    kinds = (
        partial(choices.value, tensors=False),
        choices.text,
        lambda: [choices.text()],
        lambda: {"text": choices.text()},
        lambda: [choices.value(tensors=False)],
    )
    rows = [choices.pick(kinds)() for _ in range(1 + choices.below(4))]
    corpus = choices.pick((rows, iter(rows), tuple(rows), np.array(rows, object), choices.value(tensors=False)))
    model = ImageSkipGram(vector_size=2, min_count=1, epochs=1, workers=1)
    model.fit(corpus, text_column=choices.pick(("text", choices.value(tensors=False))))
    need(np.isfinite(model.wv.vectors).all(), "vectors must be finite")
    model.save(folder / "model.npz")
    need(ImageSkipGram.load(folder / "model.npz").wv.index_to_key == model.wv.index_to_key, "words must come back")


def _queries(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    model = small()
    vectors = model.wv.vectors.copy()
    query = choices.pick(
        (
            partial(choices.value, tensors=False),
            choices.text,
            lambda: choices.array(((4,),)),
            lambda: choices.pick(_WORDS),
        )
    )()
    given = query.copy() if isinstance(query, np.ndarray) else None
    topn, csls, diversity = (
        choices.pick((3, choices.value(tensors=False))),
        choices.pick((True, choices.value(tensors=False))),
        choices.pick((0.0, 0.5, choices.value(tensors=False))),
    )
    try:
        found = model.explain(query, topn=topn, csls=csls, diversity=diversity)
        need(
            all(np.isfinite(score) for _, _, score in [(i, n, s) for i, n, s in found.images]),
            f"scores must be finite: {found.images}",
        )
        found.to_html(folder / "page.html")
        found.contact_sheet()
    except KeyError as error:
        need(isinstance(query, str) and "vocabulary" in str(error), f"a KeyError is for words: {error!r}")
    finally:
        need(np.array_equal(vectors, model.wv.vectors), "a query must not change the model")
        if given is not None and given.dtype != object:
            need(given.tobytes() == query.tobytes(), "a query must not be changed")


def _bank_arrays(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    features = choices.array(((3, 2), (3, 2), (1, 2), (3, 0)))
    before = features.tobytes() if isinstance(features, np.ndarray) and features.dtype != object else None
    words = choices.pick(
        (["dog", ("cat", "a"), ()], [choices.value(tensors=False), choices.text(), "dog"], choices.value(tensors=False))
    )
    ids = choices.pick((None, ["a", "b", "c"], [choices.value(tensors=False), 1, "1"], choices.value(tensors=False)))
    thumbnails = choices.pick(
        (None, [None, b"", None], [choices.value(tensors=False), None, None], choices.value(tensors=False))
    )
    found = ImageBank.from_features(features, words, ids, thumbnails)
    need(before is None or features.tobytes() == before, "features must not be changed")
    need(np.isfinite(found.features).all(), "features must be finite")
    found.save(folder / "bank.npz")
    again = ImageBank.load(folder / "bank.npz")
    need(again.words == found.words and again.ids == found.ids, "a bank must come back")


def _rows(data: bytes, folder: Path) -> None:
    """Rows of a data set."""
    choices = Choices(data)
    good = {"image": Image.new("RGB", (2, 2), "red"), "text": "a dog", "label": "dog"}
    other = {"image": Image.new("RGB", (3, 2), "blue"), "text": "a cat", "label": "cat"}
    rows = spoiled(choices, [good, other, dict(good), dict(other)])
    options = {"image_column": "image", "text_column": None, "label_column": "label", "limit": None}
    if choices.chance(3):
        options[choices.pick(list(options))] = choices.value(tensors=False)
    ImageBank.from_hf(rows, _features, **options)


_ANALOGIES = b": family\ndog cat the a\n# comment\n\n: other\nbarks purrs dog cat\nx y z w\n"
_PAIRS = b"word1\tword2\tscore\ndog\tcat\t0.5\nthe\ta\t9\nbarks,purrs,1\n".replace(b",", b"\t")

TARGETS = [
    Target("imgskipgram-npz", _model(".npz"), "model.npz", seeds=lambda: _saved(".npz")),
    Target(
        "imgskipgram-safetensors",
        _model(".safetensors"),
        "model.safetensors",
        mend=_safetensors_mended,
        seeds=lambda: _saved(".safetensors"),
    ),
    Target("imgskipgram-word2vec", _compat, "model.npz", seeds=_compat_seeds),
    Target("imgskipgram-bank", _bank, "bank.npz", seeds=_bank_seeds),
    Target("imgskipgram-corpus", _corpus, "", seeds=_corpus_seeds),
    Target("imgskipgram-coco", _coco, "", seeds=lambda: [json.dumps(_COCO).encode()]),
    Target("imgskipgram-coco-objects", _coco_objects),
    Target("imgskipgram-picture", _picture, "x.", seeds=_picture_seeds),
    Target("imgskipgram-analogy", _analogy, "questions.txt", seeds=lambda: [_ANALOGIES]),
    Target("imgskipgram-similarity", _similarity, "", seeds=lambda: [_PAIRS]),
    Target(
        "imgskipgram-cli",
        _cli,
        seeds=lambda: [*(bytes([k]) + _saved(".npz")[0] for k in range(4)), b"\x04the dog\n", b"\x05a b 1\n"],
    ),
    Target("imgskipgram-options", _options, refusals=(*REFUSALS, OverflowError)),
    Target("imgskipgram-corpora", _corpora),
    Target("imgskipgram-queries", _queries),
    Target("imgskipgram-bank-arrays", _bank_arrays),
    Target("imgskipgram-rows", _rows),
]
