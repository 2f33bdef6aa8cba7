"""Model files: what is written is read, what is damaged is refused, what is unknown is kept."""

import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import synthetic

from cws_multidomain import Segmenter, _core, _modelfile, _stream


@pytest.fixture(scope="module")
def data():
    made = synthetic.weights(2, domains=2, lexicons=2, skip=True, gate=True, size=0.5)
    return _modelfile.pack(made, {"pos.tags": b"kept", "more": b"\x00\x01"})


def load(data, tmp_path):
    path = tmp_path / "model.cws"
    path.write_bytes(data)
    return Segmenter.load(path)


def test_sections_are_read_as_they_were_written(tmp_path):
    sections = {"a": b"", "b": bytes(range(256)), "c" * 24: b"x" * 100_001}
    raw = _modelfile.to_bytes({"key": "值"}, sections)
    assert raw[:8] == b"CWSMODEL"
    assert struct.unpack_from("<IIQ", raw, 8) == (1, 4, len(raw))
    assert len(raw) % 64 == 0
    for i in range(4):
        name, offset, size = struct.unpack_from("<24sQQ", raw, 64 + 40 * i)
        assert offset % 64 == 0
        if name.rstrip(b"\x00").decode() in sections:
            assert raw[offset : offset + size] == sections[name.rstrip(b"\x00").decode()]
    with pytest.raises(ValueError, match="at most 24 bytes"):
        _modelfile.to_bytes({}, {"c" * 25: b""})


def test_packing_is_deterministic(data):
    made = synthetic.weights(2, domains=2, lexicons=2, skip=True, gate=True, size=0.5)
    assert _modelfile.pack(made, {"pos.tags": b"kept", "more": b"\x00\x01"}) == data


def test_unknown_sections_are_kept(data, tmp_path):
    segmenter = load(data, tmp_path)
    assert segmenter._model.sections["more"].tobytes() == b"\x00\x01"
    assert _modelfile.more_sections(segmenter._model) == {"pos.tags": b"kept", "more": b"\x00\x01"}
    assert _modelfile.replace(segmenter._model, {}) == data
    again = load(_modelfile.replace(segmenter._model, {"more": b"new"}), tmp_path)
    assert again._model.sections["more"].tobytes() == b"new"


def test_what_is_unpacked_packs_to_the_same_tables(data):
    model = _core.Model.copy(data, "a")
    weights = _modelfile.unpack(model)
    again = _modelfile.unpack(_core.Model.copy(_modelfile.pack(weights), "b"))
    for a, b in zip(weights.components, again.components, strict=True):
        assert a.unigram == pytest.approx(b.unigram, abs=2 / model.scale)
        assert np.isin(b.bigram_keys, a.bigram_keys).all()
    assert weights.symbols == again.symbols
    assert list(weights.lexicons[0]) == list(again.lexicons[0])
    assert weights.temperature == again.temperature


def test_every_flipped_byte_is_noticed(data, tmp_path):
    rng = np.random.default_rng(0)
    for at in [*range(64), *rng.integers(64, len(data), 200).tolist(), len(data) - 1]:
        broken = bytearray(data)
        broken[at] ^= 1 << rng.integers(0, 8)
        if 32 <= at < 64:
            continue  # zeros that are not read
        with pytest.raises(ValueError, match=r"model\.cws: "):
            load(bytes(broken), tmp_path)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 1000, -64, -1])
def test_a_truncated_file_is_refused(data, tmp_path, size):
    with pytest.raises(ValueError, match=r"model\.cws: the (header|size)"):
        load(data[:size], tmp_path)
    with pytest.raises(ValueError, match=r"model\.cws: the size"):
        load(data + b"x", tmp_path)


def refreshed(head: bytes, content: bytes) -> bytes:
    """With checksums that fit."""
    head = head[:16] + struct.pack("<QI", 64 + len(content), _core.crc32c(content))
    return head + struct.pack("<I", _core.crc32c(head)) + bytes(32) + content


def test_a_file_may_have_a_name_that_is_no_text(data, tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.cws")
    path.write_bytes(data)
    assert Segmenter.load(path).domains == ("general", "domain1", "domain2")
    path.write_bytes(data[:-64])
    with pytest.raises(ValueError, match=r"\\xff\.cws: the size should be") as error:
        Segmenter.load(path)
    assert type(error.value) is ValueError


def test_a_newer_version_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="the version 2 is newer than 1"):
        load(refreshed(data[:8] + struct.pack("<I", 2) + data[12:], data[64:]), tmp_path)


def test_sections_outside_of_the_file_are_refused(data, tmp_path):
    content = bytearray(data[64:])
    struct.pack_into("<Q", content, 24, 2**62)
    with pytest.raises(ValueError, match='section "metadata" lies outside of the file'):
        load(refreshed(data[:64], bytes(content)), tmp_path)
    with pytest.raises(ValueError, match="number of sections is too large"):
        load(refreshed(data[:12] + struct.pack("<I", 2**31) + data[16:], data[64:]), tmp_path)


def sections_of(data):
    return {name: x.tobytes() for name, x in _core.Model.copy(data, "x").sections.items() if name != "metadata"}


@pytest.mark.parametrize(
    "name",
    ["shape", "numbers", "symbols", "unigram", "bigram.rows", "lexicon0.edges", "joint1", "transition", "gate.bias"],
)
def test_sizes_that_disagree_are_refused(data, tmp_path, name):
    sections = sections_of(data)
    for value in (sections[name][:-8], sections[name] + bytes(8), None):
        changed = {**sections, name: value} if value is not None else {k: v for k, v in sections.items() if k != name}
        with pytest.raises(ValueError, match=f'model.cws: section "{name}"'):
            load(_modelfile.to_bytes({"domains": ["domain1", "domain2"]}, changed), tmp_path)


@pytest.mark.parametrize(
    ("name", "dtype", "at", "value"),
    [
        ("symbols", "<u2", 500, 60000),
        ("numbers", "<f8", 0, -1.0),
        ("numbers", "<f8", 0, 1e-300),
        ("numbers", "<f8", 1, float("nan")),
        ("numbers", "<f8", 2, 0.0),
        ("numbers", "<f8", 3, float("nan")),
        ("gate.bias", "<f8", 1, float("-inf")),
        ("transition", "<i4", 7, -(2**31)),
        ("joint0", "<i2", 9, 30000),
        ("shape", "<u4", 2, 9),
        ("lexicon0.hash", "<u4", 3, 99),
        ("lexicon0.first", "<u4", 1, 4),
        ("bigram.pilots", "<u2", slice(None), 7),
    ],
)
def test_impossible_values_are_refused(data, tmp_path, name, dtype, at, value):
    sections = sections_of(data)
    array = np.frombuffer(sections[name], dtype).copy()
    array[at] = value
    with pytest.raises(ValueError, match=r"model\.cws: "):
        load(_modelfile.to_bytes({"domains": ["domain1", "domain2"]}, {**sections, name: array.tobytes()}), tmp_path)


def test_a_domain_that_points_outside_is_refused_when_it_is_used(data, tmp_path):
    sections = sections_of(data)
    for name in ("d1.bigram.index", "d1.unigram.index", "d1.charmark0.index"):
        index = np.frombuffer(sections[name], "<u4").copy()
        index[-1] = 2**30
        raw = _modelfile.to_bytes({"domains": ["domain1", "domain2"]}, {**sections, name: index.tobytes()})
        segmenter = load(raw, tmp_path)
        with pytest.raises(ValueError, match=f'section "{name}"'):
            segmenter.with_domain("domain1").cut("中国")


def test_a_refused_file_is_not_mapped(data, tmp_path):
    maps = "/proc/self/maps"
    if not os.path.exists(maps):
        pytest.skip("there is no /proc here")
    with pytest.raises(ValueError, match="checksum"):
        load(data[:-1] + bytes([data[-1] ^ 1]), tmp_path)
    with open(maps) as file:
        assert "model.cws" not in file.read()
    segmenter = load(data, tmp_path)
    with open(maps) as file:
        assert "model.cws" in file.read()
    view = segmenter._model.sections["unigram"]
    del segmenter
    assert view.sum() is not None


def test_writing_leaves_the_old_file_or_the_new_one(data, tmp_path, monkeypatch):
    path = tmp_path / "model.cws"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        _modelfile.write(path, data)
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.cws"]
    _modelfile.write(path, data)
    assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["model.cws"]
    umask = os.umask(0)
    os.umask(umask)
    assert os.stat(path).st_mode & 0o777 == 0o666 & ~umask


def test_ctrl_c_right_after_the_file_got_its_name_is_no_other_error(data, tmp_path, monkeypatch):
    path, replace = tmp_path / "model.cws", os.replace

    def interrupted(*names):
        replace(*names)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _modelfile.write(path, data)
    with pytest.raises(KeyboardInterrupt), _stream.opened_output(tmp_path / "text") as file:
        file.write(b"text")
    assert path.read_bytes() == data
    assert sorted(os.listdir(tmp_path)) == ["model.cws", "text"]


def test_a_dictionary_comes_back_exactly(tmp_path):
    words = [
        ("A股", 5),
        ("B股", 6),
        ("大学", 7),
        ("大學", 8),
        ("國", 3),
        ("国", 0),
        ("未知", 1),
        ("x", 9),
        ("中国", 2**40),
    ]
    made = synthetic.weights(0)
    made.lexicons = [words]
    assert Segmenter.from_weights(made).dictionary() == dict(words)


@pytest.mark.parametrize("name", ["canonical", "lexicon0.counts", "lexicon0.extras"])
def test_sections_that_only_a_dictionary_needs_are_named_when_it_is_asked_for(data, tmp_path, name):
    sections = sections_of(data)
    changes = [{k: v for k, v in sections.items() if k != name}]
    if name == "canonical":
        changes += [{**sections, name: sections[name][:-1]}, {**sections, name: sections[name][:-4]}]
    for changed in changes:
        segmenter = load(_modelfile.to_bytes({"domains": ["domain1", "domain2"]}, changed), tmp_path)
        with pytest.raises(ValueError, match=f'section "{name}" (is missing|has a wrong size)'):
            segmenter.dictionary()


def test_a_dictionary_that_is_no_text_is_refused_when_it_is_asked_for(data, tmp_path):
    changed = {**sections_of(data), "lexicon0.extras": b"a\xff\t1\n"}
    segmenter = load(_modelfile.to_bytes({"domains": ["domain1", "domain2"]}, changed), tmp_path)
    with pytest.raises(ValueError, match=r'^section "lexicon0\.extras" is not UTF-8 at byte 1$'):
        segmenter.dictionary()


def test_weights_that_are_not_numbers_are_refused():
    made = synthetic.weights(0)
    made.components[0].unigram[7, 0, 0] = np.nan
    with pytest.raises(ValueError, match="weights must be finite"):
        _modelfile.pack(made)


def test_importing_and_loading_need_no_other_package():
    code = (
        "import sys, cws_multidomain\n"
        "assert not {'torch', 'pyarrow', 'spacy', 'pandas'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (b"{", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"\xff", "is no JSON"),
        (b"[]", "has no list of domains"),
        (b'{"domains": 2}', "has no list of domains"),
        (b'{"domains": [1, 2]}', "has no list of domains"),
        (b'{"domains": ["a"]}', "must name 2 domains, got 'a'"),
        (b'{"domains": ["a", "a"]}', "must name 2 domains, got 'a', 'a'"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(data, tmp_path, metadata, reason):
    old = _core.Model.copy(data, "x").sections["metadata"].tobytes()
    whole = _modelfile.to_bytes({}, {**sections_of(data), "metadata": metadata})
    assert old not in whole
    with pytest.raises(ValueError, match=rf'model\.cws: section "metadata" {reason}'):
        load(whole, tmp_path)
    with pytest.raises(ValueError, match=f'a model in memory: section "metadata" {reason}'):
        Segmenter.from_bytes(whole)


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        (b"\xff", r"\xff"),
        (b"a\xe4\xb8", r"a\xe4\xb8"),
        (b"\xed\xa0\x80", r"\xed\xa0\x80"),
        (b"\x1b[2J\n\x7f", r"\x1b[2J\x0a\x7f"),
        ("值\x85".encode(), r"值\xc2\x85"),
    ],
)
def test_a_section_whose_name_is_no_text_is_refused(data, tmp_path, name, quoted):
    content = bytearray(data[64:])
    content[:24] = name.ljust(24, b"\x00")
    for offset in content[24:32], bytes(8 * [0xFF]):  # also where the section lies outside of the file
        content[24:32] = offset
        with pytest.raises(ValueError, match=r"model\.cws: the name of section") as error:
            load(refreshed(data[:64], bytes(content)), tmp_path)
        assert type(error.value) is ValueError
        assert str(error.value).endswith(f'model.cws: the name of section "{quoted}" is no printable UTF-8')


@pytest.mark.parametrize("name", ["a\n", "a\x00b", "\ud800"])
def test_a_section_is_not_given_a_name_that_cannot_be_read_back(name):
    with pytest.raises(ValueError, match="a section's name must be printable") as error:
        _modelfile.to_bytes({}, {name: b""})
    assert type(error.value) is ValueError


@pytest.mark.parametrize("name", ["值", "\u00e9" * 12])
def test_a_section_may_have_a_name_in_any_script(data, tmp_path, name):
    assert load(_modelfile.to_bytes({"domains": ["a", "b"]}, {**sections_of(data), name: b"x"}), tmp_path)
