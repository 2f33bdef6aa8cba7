"""Files: what is saved comes back with its bits, others can read it, and nothing that is no model is taken for one."""

from __future__ import annotations

import copy
import gzip
import json
import os
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gensim.models import KeyedVectors
from gensim.test.utils import datapath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from scenes import encoded

from imgskipgram import ImageBank, ImageSkipGram

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LEE = datapath("lee_background.cor")
LOSSES = ("text", "image", "text_pairs", "image_pairs")
PLAN = {"epochs": 2, "tokens": 9, "alpha": 1, "min_alpha": 0}
SUFFIXES = (".npz", ".safetensors")
_draw = np.random.default_rng(0)
BANK = ImageBank.from_features(
    _draw.normal(size=(12, 6)),
    [("said",), (), ("people", "police")] * 4,
    [f"{i}.jpg" for i in range(12)],
    [encoded("red"), None, encoded("blue")] * 4,
)


def model(**options: Any) -> ImageSkipGram:
    return ImageSkipGram(**{"vector_size": 20, "workers": 1, "epochs": 2, **options})


@pytest.fixture(scope="module")
def grounded() -> ImageSkipGram:
    return model().fit(LEE, BANK)


def assert_same(a: ImageSkipGram, b: ImageSkipGram) -> None:
    for rows in ("_v", "_u"):
        np.testing.assert_array_equal(getattr(a, rows), getattr(b, rows))
    np.testing.assert_array_equal(a.wv.vectors, b.wv.vectors)
    np.testing.assert_array_equal(a.wv.vectors_lockf, b.wv.vectors_lockf)
    assert a.wv.index_to_key == b.wv.index_to_key
    assert a.wv.key_to_index == b.wv.key_to_index
    np.testing.assert_array_equal(a.wv.expandos["count"], b.wv.expandos["count"])
    assert (a.corpus_count, a.corpus_total_words, a.losses_) == (b.corpus_count, b.corpus_total_words, b.losses_)
    assert (a._epochs, a._plan, a._options) == (b._epochs, b._plan, b._options)
    assert (a.bank is None) == (b.bank is None)
    if a.bank is not None:
        np.testing.assert_array_equal(a.image_vectors, b.image_vectors)
        np.testing.assert_array_equal(a.bank.features, b.bank.features)
        for name in ("words", "ids", "thumbnails", "report_"):
            assert getattr(a.bank, name) == getattr(b.bank, name)
        assert a.explain("police", topn=4).images == b.explain("police", topn=4).images


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "bfloat16"},
        {"dtype": "float64", "projection": "free"},
        {"projection": "fixed", "seed": 2**64 - 1, "sample": 0},
    ],
    ids=["shared", "bfloat16", "free-float64", "fixed"],
)
def test_a_model_comes_back_with_its_bits(tmp_path: Path, suffix: str, options: dict[str, Any]) -> None:
    saved = model(**options).fit(LEE, BANK)
    saved.wv.vectors_lockf = np.linspace(0, 1, len(saved.wv), dtype=np.float32)
    saved.save(tmp_path / f"model{suffix}")
    loaded = ImageSkipGram.load(tmp_path / f"model{suffix}")
    assert_same(loaded, saved)
    assert [loaded.train(LEE), loaded.losses_] == [saved.train(LEE), saved.losses_]
    assert_same(loaded, saved)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_model_without_images_or_training_comes_back(tmp_path: Path, suffix: str) -> None:
    saved = model()
    saved.build_vocab(LEE)
    saved.save(tmp_path / f"model{suffix}")
    assert_same(ImageSkipGram.load(tmp_path / f"model{suffix}"), saved)
    saved.train(LEE, compute_loss="none")
    saved.save(tmp_path / f"model{suffix}")
    loaded = ImageSkipGram.load(tmp_path / f"model{suffix}")
    assert np.isnan(loaded.losses_[1]["text"])
    assert loaded.losses_[1]["text_pairs"] == saved.losses_[1]["text_pairs"]


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_a_model_of_its_own(how: Callable[[ImageSkipGram], ImageSkipGram]) -> None:
    trained = model().fit(LEE, BANK)
    other = how(trained)
    assert_same(other, trained)
    vectors = trained.wv.vectors.copy()
    other.train(LEE)
    np.testing.assert_array_equal(trained.wv.vectors, vectors)
    trained.train(LEE)
    assert_same(other, trained)


def test_words_of_any_script_come_back(tmp_path: Path) -> None:
    words = ["\u4f60\u597d", "a\u0301", '"', "\\", "\x00", "__metadata__"]
    for suffix in SUFFIXES:
        saved = model(min_count=1)
        saved.build_vocab([words])
        saved.save(tmp_path / f"model{suffix}")
        assert ImageSkipGram.load(tmp_path / f"model{suffix}").wv.index_to_key == words


def test_edits_of_vectors_are_saved(tmp_path: Path, grounded: ImageSkipGram) -> None:
    edited = copy.deepcopy(grounded)
    edited.wv.vectors[7] = 3
    edited.save(tmp_path / "model.npz")
    assert (ImageSkipGram.load(tmp_path / "model.npz").wv.vectors[7] == 3).all()


def test_code_is_not_saved(tmp_path: Path) -> None:
    class Callback:
        def on_epoch_end(self, trained: ImageSkipGram) -> None: ...

    saved = model(callbacks=[Callback()], trim_rule=lambda word, count, least: 0).fit(LEE)
    saved.save(tmp_path / "model.npz")
    loaded = ImageSkipGram.load(tmp_path / "model.npz")
    assert (loaded.callbacks, loaded.trim_rule) == ((), None)


@pytest.mark.parametrize("name", ["model", "model.npz.tmp", "model.txt"])
def test_the_path_is_exactly_the_given_one(tmp_path: Path, grounded: ImageSkipGram, name: str) -> None:
    grounded.save(str(tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert_same(ImageSkipGram.load(str(tmp_path / name)), grounded)


def test_nothing_is_saved_before_there_is_a_vocabulary(tmp_path: Path) -> None:
    for call in (model().save, model().save_word2vec_format):
        with pytest.raises(RuntimeError, match=r"call build_vocab or fit first"):
            call(tmp_path / "model.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model.npz", "model.safetensors", "vectors.txt", "vectors.bin.gz"])
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, grounded: ImageSkipGram, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / name
    path.write_bytes(b"old")
    monkeypatch.setattr("os.fsync", full)
    save = grounded.save_word2vec_format if name.startswith("vectors") else grounded.save
    with pytest.raises(OSError, match=r"No space left"):
        save(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("moment", ["close", "replace"])
def test_ctrl_c_leaves_the_old_file_or_the_new_one_and_is_no_other_error(
    tmp_path: Path, grounded: ImageSkipGram, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, call = tmp_path / "model.npz", getattr(os, moment)
    path.write_bytes(b"old")

    def interrupted(*arguments: Any) -> None:
        call(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        grounded.save(path)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [path]
    if moment == "close":
        assert path.read_bytes() == b"old"
    else:
        assert_same(ImageSkipGram.load(path), grounded)


def test_a_link_leads_to_what_is_written_and_stays(tmp_path: Path, grounded: ImageSkipGram) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "model.npz"
    link.symlink_to(tmp_path / "disk" / "first.npz")
    grounded.save(link)
    assert link.is_symlink()
    assert_same(ImageSkipGram.load(tmp_path / "disk" / "first.npz"), grounded)


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_only_files_are_replaced(tmp_path: Path, grounded: ImageSkipGram, kind: str) -> None:
    """Devices are files, too, that a rename would put an end to."""
    path = tmp_path / kind
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    before = path.stat()
    for save in (grounded.save, grounded.save_word2vec_format):
        with pytest.raises(OSError, match=rf"^path must be a file that can be replaced, got '.*{kind}'$"):
            save(path)
    assert path.stat() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2"])
def test_gensim_reads_word2vec_files(tmp_path: Path, grounded: ImageSkipGram, binary: bool, suffix: str) -> None:
    path = tmp_path / f"vectors{suffix}"
    grounded.save_word2vec_format(path, binary=binary)
    if suffix == ".gz":
        assert gzip.decompress(path.read_bytes()).startswith(f"{len(grounded.wv)} 20\n".encode())
    read = KeyedVectors.load_word2vec_format(str(path), binary=binary)
    assert read.index_to_key == grounded.wv.index_to_key
    np.testing.assert_array_equal(read.vectors, grounded.wv.vectors)


def test_words_with_white_space_have_no_place_in_word2vec_files(tmp_path: Path) -> None:
    saved = model(min_count=1)
    saved.build_vocab([["new york", "is", "a", "city"]])
    with pytest.raises(ValueError, match=r"^words must be free of white space in word2vec's form, got 'new york'$"):
        saved.save_word2vec_format(tmp_path / "vectors.txt")
    assert not list(tmp_path.iterdir())


def test_the_formats_own_package_reads_and_writes_our_files(tmp_path: Path, grounded: ImageSkipGram) -> None:
    path = tmp_path / "model.safetensors"
    grounded.save(path)
    arrays = load_file(path)
    np.testing.assert_array_equal(arrays["v"], grounded.wv.vectors)
    np.testing.assert_array_equal(arrays["z"], grounded.image_vectors)
    save_file(arrays, tmp_path / "again.safetensors")
    assert_same(ImageSkipGram.load(tmp_path / "again.safetensors"), grounded)


def test_an_npz_holds_plain_arrays(tmp_path: Path, grounded: ImageSkipGram) -> None:
    grounded.save(tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["v"], grounded.wv.vectors)
        header = json.loads(arrays["header"].tobytes())
    assert (header["format"], header["version"]) == ("imgskipgram.model", 1)
    assert header["words"] == grounded.wv.index_to_key


def unpacked(path: Path) -> dict[str, Any]:
    with np.load(path) as arrays:
        return dict(arrays)


def with_header(arrays: dict[str, Any], **changes: Any) -> dict[str, Any]:
    header = {**json.loads(arrays["header"].tobytes()), **changes}
    return {**arrays, "header": np.frombuffer(json.dumps(header).encode(), np.uint8)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: with_header(a, version=2), r"version 2, this package reads version 1"),
        (lambda a: with_header(a, format="imgskipgram.bank"), r"its header does not say imgskipgram\.model"),
        (lambda a: with_header(a, words=5), r"words must be a list of strings"),
        (lambda a: with_header(a, words=["said"] * a["v"].shape[0]), r"a word is there twice"),
        (lambda a: with_header(a, words=["said"]), r"counts must be uint64 \[1\], it is uint64 \[\d+\]"),
        (lambda a: with_header(a, options={"window": 0}), r"window must be a positive integer, got 0"),
        (lambda a: with_header(a, options={"callbacks": ["os"]}), r"callbacks must have one of"),
        (lambda a: with_header(a, options={"evil": 1}), r"unexpected keyword argument 'evil'"),
        (lambda a: with_header(a, losses=[{}]), r"no 'text'"),
        (lambda a: with_header(a, losses=[dict.fromkeys(LOSSES, "1")]), r"losses must be numbers, one is '1'"),
        (lambda a: with_header(a, plan={**PLAN, "done": 2}), r"no epoch left"),
        (lambda a: with_header(a, plan={**PLAN, "alpha": -1}), r"alpha must be positive"),
        (lambda a: {**a, "v": a["v"][:, :5]}, r"v must be float32 \[\d+, 20\], it is float32 \[\d+, 5\]"),
        (lambda a: {**a, "u": a["u"].astype(np.float64)}, r"u must be float32 \[\d+, 20\], it is float64"),
        (lambda a: {**a, "lockf": np.ones(3, np.float32)}, r"lockf must be float32"),
        (lambda a: {**a, "z": a["z"][:3]}, r"z must be float32 \[12, 20\]"),
        (lambda a: {name: array for name, array in a.items() if name != "counts"}, r"no 'counts'"),
        (lambda a: {name: array for name, array in a.items() if name != "bank.header"}, r"no .*bank\.header"),
        (lambda a: {**a, "v": np.array([{"a": 1}], object)}, r"allow_pickle=False"),
    ],
)  # fmt: skip
def test_what_is_no_model_is_refused(tmp_path: Path, grounded: ImageSkipGram, change: Any, reason: str) -> None:
    path = tmp_path / "model.npz"
    grounded.save(path)
    arrays = change(unpacked(path))
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=rf"model\.npz: not a model that can be read: .*{reason}"):
        ImageSkipGram.load(path)


class Bomb:
    def __reduce__(self) -> Any:
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize("name", ["model.npz", "model.safetensors", "model.model"])
def test_a_pickle_is_never_loaded(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=rf"{name}: not a model that can be read: it "):
        ImageSkipGram.load(path)


def test_a_model_and_a_bank_are_told_apart(tmp_path: Path, grounded: ImageSkipGram) -> None:
    grounded.save(tmp_path / "model.npz")
    with pytest.raises(ValueError, match=r"not a bank of images that can be read: its header does not say imgskip"):
        ImageBank.load(tmp_path / "model.npz")
    BANK.save(tmp_path / "bank.npz")
    with pytest.raises(ValueError, match=r"not a model that can be read: its header does not say imgskipgram.model"):
        ImageSkipGram.load(tmp_path / "bank.npz")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        with pytest.raises(FileNotFoundError, match=rf"none{suffix}"):
            ImageSkipGram.load(tmp_path / f"none{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(data=st.data())
def test_a_truncated_file_is_refused(tmp_path: Path, grounded: ImageSkipGram, suffix: str, data: st.DataObject) -> None:
    path = tmp_path / f"model{suffix}"
    grounded.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ValueError, match=rf"model\{suffix}: not a model that can be read: \S"):
        ImageSkipGram.load(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_but_never_crashes(
    tmp_path: Path, grounded: ImageSkipGram, suffix: str, data: st.DataObject
) -> None:
    path = tmp_path / f"model{suffix}"
    grounded.save(path)
    bits = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        bits[data.draw(st.integers(0, 4000) | st.integers(0, len(bits) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bits)
    try:
        ImageSkipGram.load(path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017 (it may be read as well)


def header_of(entries: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape: Any, offsets: Any, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"it has 0 bytes"),
        ((2**63).to_bytes(8, "little") + b"{}", r"a header of 9223372036854775808"),
        (header_of({"header": entry([4], [0, 4])}, b"abc"), r"describes \d+ bytes, it has \d+"),
        (header_of({"header": entry([4], [0, 4])}, b"abcde"), r"describes \d+ bytes, it has \d+"),
        (header_of({"a": entry([4], [0, 4]), "b": entry([4], [2, 6])}, b"abcdef"), r"'b' overlap others"),
        (header_of({"a": entry([4], [0, 4]), "b": entry([4], [5, 9])}, b"abcdefghi"), r"'b' leave a gap after others"),
        (header_of({"a": entry([2**62, 2**62], [0, 4])}, b"abcd"), r"'a' has 4 bytes for the shape"),
        (header_of({"a": entry([-1], [0, -1])}), r"'a' has a shape or offsets that are no lists of sizes"),
        (header_of({"a": entry([True], [0, 1])}, b"a"), r"'a' has a shape or offsets"),
        (header_of({"a": entry([1], [0, 1], "PICKLE")}, b"a"), r"'a' has the dtype 'PICKLE'"),
        (header_of({"a": {"dtype": "U8"}}), r"'a' must have dtype, shape and data_offsets and nothing else"),
        (header_of({"a": 5}), r"'a' must have dtype, shape and data_offsets and nothing else"),
        (header_of([]), r"its header is no object"),
        (b"\x08" + bytes(7) + b'{"a":1,"', r"Unterminated string"),
        (b"\x10" + bytes(7) + b'{"a": 1, "a": 2}', r"its header has 'a' twice"),
        ((50_000).to_bytes(8, "little") + b"[" * 50_000, r"its header is nested too deeply"),
        (header_of({}), r"no 'header'"),
    ],
)  # fmt: skip
def test_a_hostile_header_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"model\.safetensors: not a model that can be read: .*{reason}"):
        ImageSkipGram.load(path)


def test_a_compressed_npz_is_read(tmp_path: Path, grounded: ImageSkipGram) -> None:
    path = tmp_path / "model.npz"
    grounded.save(path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "small.npz", "w", zipfile.ZIP_DEFLATED) as small:
        for name in archive.namelist():
            small.writestr(name, archive.read(name))
    assert_same(ImageSkipGram.load(tmp_path / "small.npz"), grounded)
