"""Checkpoints as files: hostile headers, changes that leave all other bytes alone, differences."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramcorrupt import Faults, _patching, bitflip, checkpoints, corrupted, corruption, random_corruption
from paramcorrupt._safetensors import read_checkpoint
from paramcorrupt.checkpoints import apply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from paramcorrupt import Corruption


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Several dtypes, a scalar, an empty tensor and a name that is not ASCII."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(5, 3, 3, generator=generator),
        "größe.β": torch.randn(70, generator=generator).bfloat16(),
        "half": torch.randn(33, generator=generator).half(),
        "double": torch.randn(2, 4, generator=generator).double(),
        "steps": torch.arange(7),
        "scalar": torch.tensor(1.5),
        "none": torch.empty(0, 3),
        "eight": torch.randn(16, generator=generator).to(torch.float8_e4m3fn),
    }


@pytest.fixture
def single(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(tensors(), path, metadata={"format": "pt", "note": "grün"})
    return path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A folder as Hugging Face writes it: two shards, their index, a configuration."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    names, content = list(tensors()), tensors()
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: content[name] for name in names if places[name] == file}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    return folder


def written(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(start: int, stop: int, shape: Any = None, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


# --- the layout ------------------------------------------------------------------------------------------------------


def test_the_layout_finds_the_bytes_that_the_library_reads(single: Path) -> None:
    found, data = read_checkpoint(single).tensors, single.read_bytes()
    expected = load_file(single)
    assert found.keys() == expected.keys()
    for name, x in found.items():
        value = x.typed(bytearray(data[x.start : x.stop])).view(x.shape)
        assert value.dtype == expected[name].dtype
        assert torch.equal(value.view(-1).view(torch.uint8), expected[name].view(-1).view(torch.uint8))


def test_a_folder_an_index_and_its_shards_are_one_checkpoint(sharded: Path) -> None:
    found = read_checkpoint(sharded)
    assert found.tensors.keys() == tensors().keys()
    assert len(found.files) == 2
    assert read_checkpoint(sharded / "model.safetensors.index.json").tensors == found.tensors


def test_an_empty_checkpoint_has_no_tensors(tmp_path: Path) -> None:
    save_file({}, tmp_path / "empty.safetensors")
    assert read_checkpoint(tmp_path / "empty.safetensors").tensors == {}


F32 = entry(0, 8)
HOSTILE: Mapping[str, tuple[Any, bytes, int | None, str]] = {
    "no header": (b"", b"", None, "not a safetensors file"),
    "a huge length": (b"{}", b"", 1 << 62, "header of 4611686018427387904"),
    "another magic": (b"PK\x03\x04" + bytes(90), b"", None, "valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", None, "valid JSON"),
    "a list": ([], b"", None, "no object"),
    "space first": (b' {"__metadata__": {}}', b"", None, "no object"),
    "deep nesting": (b'{"a":' + b"[" * 200_000, b"", None, "nested too deeply"),
    "a huge number": (b'{"a":' + b"1" * 5000 + b"}", b"", None, "valid JSON"),
    "NaN": (b'{"a": NaN}', b"", None, "NaN is no number"),
    "a name twice": (b'{"a": 1, "a": 2}', b"", None, "'a' is there twice"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", None, "__metadata__"),
    "no offsets": ({"a": {"dtype": "F32", "shape": []}}, b"", None, "data_offsets of 'a'"),
    "more than it may": ({"a": F32 | {"code": "x"}}, bytes(8), None, "nothing else"),
    "an unknown dtype": ({"a": entry(0, 8, dtype="F99")}, bytes(8), None, "unknown dtype 'F99'"),
    "a dtype that is a list": ({"a": entry(0, 8, dtype=["F32"])}, bytes(8), None, "unknown dtype"),
    "a negative size": ({"a": entry(0, 8, [-2])}, bytes(8), None, "no lists of sizes"),
    "a size that is a bool": ({"a": entry(0, 4, [True])}, bytes(4), None, "no lists of sizes"),
    "a size that is a float": ({"a": entry(0, 4, [1.0])}, bytes(4), None, "no lists of sizes"),
    "sizes that overflow": ({"a": entry(0, 8, [1 << 62, 1 << 62])}, bytes(8), None, "8 bytes for the shape"),
    "three offsets": ({"a": F32 | {"data_offsets": [0, 4, 8]}}, bytes(8), None, "no lists of sizes"),
    "offsets backwards": ({"a": F32 | {"data_offsets": [8, 0]}}, bytes(8), None, "-8 bytes"),
    "too few bytes": ({"a": entry(0, 8, [3])}, bytes(8), None, "8 bytes for the shape"),
    "an odd row of halves": ({"a": entry(0, 3, [2, 3], "F4")}, bytes(3), None, "3 bytes for the shape"),
    "an overlap": ({"a": F32, "b": entry(4, 12)}, bytes(12), None, "'b' where they overlap"),
    "the same bytes twice": ({"a": F32, "b": F32}, bytes(8), None, "overlap"),
    "a gap": ({"a": F32, "b": entry(12, 20)}, bytes(20), None, "leave a gap"),
    "not from the start": ({"a": entry(4, 12)}, bytes(12), None, "leave a gap"),
    "bytes that are missing": ({"a": F32}, bytes(7), None, "it is damaged"),
    "bytes beyond": ({"a": F32}, bytes(9), None, "it is damaged"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused_and_the_file_named(case: str, tmp_path: Path) -> None:
    header, data, length, message = HOSTILE[case]
    path = written(tmp_path / "model.safetensors", header, data, length)
    with pytest.raises(ValueError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


INDICES: Mapping[str, tuple[Any, str]] = {
    "no JSON": ("{", "valid JSON"),
    "no map": ({"metadata": {}}, "must have a weight_map"),
    "an empty map": ({"weight_map": {}}, "must have a weight_map"),
    "a file elsewhere": ({"weight_map": {"a": "../secret.safetensors"}}, "a file beside it"),
    "an absolute path": ({"weight_map": {"a": "/etc/passwd"}}, "a file beside it"),
    "a number": ({"weight_map": {"a": 3}}, "a file beside it"),
    "a tensor too many": (
        {"weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "one.safetensors"}},
        "'c' is not in it",
    ),
    "a tensor too few": ({"weight_map": {"a": "one.safetensors"}}, "'b' is there without being in the index"),
}


@pytest.mark.parametrize("case", INDICES)
def test_a_hostile_index_is_refused_and_the_file_named(case: str, tmp_path: Path) -> None:
    content, message = INDICES[case]
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "one.safetensors")
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        read_checkpoint(tmp_path)
    assert str(path) in str(caught.value)


def test_what_is_missing_is_named(sharded: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"exists, got .*nowhere"):
        read_checkpoint(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(FileNotFoundError, match=r"bare must hold a checkpoint"):
        read_checkpoint(tmp_path / "bare")
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"the shard model-00002-of-00002.safetensors, which is missing"):
        read_checkpoint(sharded)


def test_of_several_files_without_an_index_one_must_be_named(tmp_path: Path) -> None:
    save_file({}, tmp_path / "a.safetensors")
    save_file({}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="name one of them"):
        read_checkpoint(tmp_path)


# --- differences -----------------------------------------------------------------------------------------------------


def save(path: Path, content: Mapping[str, torch.Tensor]) -> Path:
    save_file(dict(content), path)
    return path


def test_nothing_differs_between_a_file_and_its_shards(single: Path, sharded: Path) -> None:
    found = checkpoints.diff(single, sharded)
    assert found.is_empty
    assert {row["tensor"] for row in found.rows()} == tensors().keys()
    assert found.facts()["bits"] == found.facts()["changed"] == 0


def test_a_difference_is_that_of_the_values_and_of_the_bits(single: Path, tmp_path: Path) -> None:
    content = tensors()
    changed = {name: x.clone() for name, x in content.items()}
    changed["conv.weight"][1, 2] += torch.tensor([0.5, 0.0, -0.25])
    changed["größe.β"].view(torch.int16)[3] ^= 0b101 << 4
    changed["steps"][2] = 10
    other = save(tmp_path / "b.safetensors", changed)
    rows = {row["tensor"]: row for row in checkpoints.diff(single, other).rows()}
    assert {name for name, row in rows.items() if row["state"] == "changed"} == {"conv.weight", "größe.β", "steps"}
    delta = (changed["conv.weight"].double() - content["conv.weight"].double()).norm().item()
    row = rows["conv.weight"]
    assert row["changed"] == 2
    assert row["l2"] == pytest.approx(delta, rel=1e-12)
    assert row["relative"] == pytest.approx(delta / content["conv.weight"].double().norm().item(), rel=1e-12)
    assert row["max"] == pytest.approx(0.5, abs=1e-6)
    assert (rows["größe.β"]["changed"], rows["größe.β"]["bits"]) == (1, 2)
    assert (rows["steps"]["max"], rows["steps"]["shape"], rows["steps"]["dtype"]) == (8.0, "7", "int64")
    assert rows["scalar"]["shape"] == "scalar"


def test_a_large_tensor_is_compared_in_parts(tmp_path: Path) -> None:
    x = torch.zeros(3 << 18)
    y = x.clone()
    y[[5, -1]] = torch.tensor([3.0, 4.0])
    x[0] = 12.0
    y[0] = 12.0
    (row,) = checkpoints.diff(
        save(tmp_path / "a.safetensors", {"x": x}), save(tmp_path / "b.safetensors", {"x": y})
    ).rows()
    assert (row["changed"], row["l2"], row["relative"], row["max"]) == (2, 5.0, 5 / 12, 4.0)


def test_what_is_not_finite_is_counted_and_not_summed(tmp_path: Path) -> None:
    x, y = torch.tensor([1.0, 2.0, 3.0, math.nan]), torch.tensor([1.0, math.nan, 3.5, math.nan])
    a, b = save(tmp_path / "a.safetensors", {"x": x}), save(tmp_path / "b.safetensors", {"x": y})
    (row,) = checkpoints.diff(a, b).rows()
    assert (row["changed"], row["nonfinite"], row["l2"], row["max"]) == (2, 1, 0.5, 0.5)
    (row,) = checkpoints.diff(a, a).rows()
    assert row["state"] == "same"


def test_tensors_of_different_dtypes_are_compared_by_value(tmp_path: Path) -> None:
    x = torch.tensor([1.0, 1 + 2**-10, -3.0])
    a, b = save(tmp_path / "a.safetensors", {"x": x}), save(tmp_path / "b.safetensors", {"x": x.bfloat16()})
    (row,) = checkpoints.diff(a, b).rows()
    assert (row["dtype"], row["changed"], row["l2"], row["bits"]) == ("float32 -> bfloat16", 1, 2**-10, None)


def test_tensors_of_one_file_only_are_listed(tmp_path: Path) -> None:
    a = save(tmp_path / "a.safetensors", {"x": torch.ones(2), "gone": torch.ones(1), "shape": torch.ones(6)})
    b = save(tmp_path / "b.safetensors", {"x": torch.ones(2), "new": torch.ones(1), "shape": torch.ones(2, 3)})
    found = checkpoints.diff(a, b)
    states = {row["tensor"]: row["state"] for row in found.rows()}
    assert states == {"x": "same", "gone": "removed", "shape": "reshaped", "new": "added"}
    assert not found.is_empty
    assert next(row["shape"] for row in found.rows() if row["tensor"] == "shape") == "6 -> 2x3"


def test_a_state_dict_of_torch_is_compared_without_its_wrapper(single: Path, tmp_path: Path) -> None:
    wrapped = {f"module.{name}": x for name, x in tensors().items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "model.th")
    assert checkpoints.diff(tmp_path / "model.th", single).is_empty


def test_a_difference_survives_json(single: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "b.safetensors", {**tensors(1), "conv.weight": torch.full((5, 3, 3), math.inf)})
    found = checkpoints.diff(single, other)
    found.to_json(tmp_path / "difference.json")
    assert checkpoints.Difference.from_json(tmp_path / "difference.json") == found


def test_the_page_of_a_difference_has_a_bar_for_each_tensor_that_moved(single: Path, tmp_path: Path) -> None:
    content = tensors()
    content["half"][3] += 1
    content["scalar"] += 1
    page = checkpoints.diff(single, save(tmp_path / "b.safetensors", content)).to_html()
    assert page.count('class="mark') == 2
    assert "größe.β" in page
    assert "<svg" not in checkpoints.diff(single, single).to_html().partition("<body")[2]


def test_the_difference_of_two_reports_joins_their_rows(single: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    checkpoints.diff(single, single).to_json(a)
    checkpoints.diff(single, save(tmp_path / "b.safetensors", {**tensors(), "scalar": torch.tensor(2.0)})).to_json(b)
    found = checkpoints.diff(a, b)
    assert found.of == "difference"
    moved = [row for row in found.rows() if row["state"] == "changed"]
    assert any(row["tensor"] == "scalar" and row["l2 change"] == 0.5 for row in found.rows())
    assert len(moved) <= 1


def test_a_report_is_not_compared_with_a_checkpoint_or_with_another_kind(single: Path, tmp_path: Path) -> None:
    report, other = tmp_path / "a.json", tmp_path / "b.json"
    checkpoints.diff(single, single).to_json(report)
    with pytest.raises(ValueError, match="two checkpoints or two reports"):
        checkpoints.diff(report, single)
    other.write_text(report.read_text().replace("paramcorrupt/difference/1", "paramcorrupt/scan/1"))
    with pytest.raises(ValueError, match="got a difference and a scan"):
        checkpoints.diff(report, other)
    other.write_text("{}")
    with pytest.raises(ValueError, match="must be a report that paramcorrupt wrote"):
        checkpoints.diff(report, other)


# --- changes ---------------------------------------------------------------------------------------------------------


def changes() -> dict[str, Corruption | Faults]:
    weights = {name: x for name, x in tensors().items() if name in ("conv.weight", "größe.β", "half")}
    generator = torch.Generator().manual_seed(9)
    g = {name: torch.randn(x.shape, generator=generator).to(x.dtype) for name, x in weights.items()}
    return {
        "dense": corruption(g, eps=0.7),
        "of another p": corruption(g, eps=2.0, p=30.0),
        "of signs": corruption(g, eps=0.01, p=math.inf),
        "sparse": corruption(g, eps=0.7, n=17),
        "swallowed": corruption(g, eps=1e-9),
        "none": corruption(g, eps=0.0),
        "random": random_corruption(weights, eps=0.7, seed=3),
        "random and sparse": random_corruption(weights, eps=0.7, n=9, p=1.5, seed=3),
        "flips": bitflip(tensors(), rate=0.01, seed=3),
        "stuck": bitflip(tensors(), fault="stuck", count=200, seed=3),
        "burst": bitflip(tensors(), fault="burst", count=50, seed=3),
    }


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize(("window", "sparse"), [(None, None), (16, 1 << 18), (16, 0)])
@pytest.mark.parametrize("case", changes())
def test_a_file_is_changed_as_the_weights_in_memory_are(
    case: str, window: int | None, sparse: int | None, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, weights, output = changes()[case], tensors(), tmp_path / "changed.safetensors"
    if window:  # tensors of several windows, streamed or edited in place
        monkeypatch.setattr(_patching, "WINDOW", window)
        monkeypatch.setattr(_patching, "_PAGE", window)
        monkeypatch.setattr(_patching, "_SPARSE", sparse)
    arrived = apply(single, change, output)
    with corrupted(weights, change) as applied:
        assert arrived.changed == applied.changed
        assert arrived.norm == pytest.approx(applied.norm, rel=1e-12, nan_ok=True)
        found = load_file(output)
        assert found.keys() == weights.keys()
        assert all(same_bits(found[name], x) for name, x in weights.items())


def test_only_the_flipped_bits_of_a_file_differ(single: Path, tmp_path: Path) -> None:
    plan = bitflip(tensors(), count=100, seed=1)
    apply(single, plan, tmp_path / "b.safetensors")
    before, after = single.read_bytes(), (tmp_path / "b.safetensors").read_bytes()
    assert len(before) == len(after)
    assert sum((x ^ y).bit_count() for x, y in zip(before, after, strict=True)) == 100
    assert checkpoints.diff(single, tmp_path / "b.safetensors").facts()["bits"] == 100


def test_a_header_that_the_library_would_write_otherwise_is_kept(tmp_path: Path) -> None:
    """Keys out of order, spaces, padding, tensors that are not aligned."""
    header = b' "y": {"shape":[2],"data_offsets":[1, 9], "dtype":"F32"},\n"__metadata__":{"k":"v"},'
    header = b"{" + header + b'"x":{"data_offsets":[0,1],"dtype":"U8","shape":[]}}   \n'
    path = written(tmp_path / "a.safetensors", header, struct.pack("<Bff", 7, 1.0, -2.0))
    apply(path, corruption({"y": torch.tensor([3.0, 4.0])}, eps=5.0), tmp_path / "b.safetensors")
    expected = path.read_bytes()[:-8] + struct.pack("<ff", 4.0, 2.0)
    assert (tmp_path / "b.safetensors").read_bytes() == expected


@pytest.mark.parametrize("case", ["dense", "sparse", "flips"])
def test_shards_are_changed_as_one_file_is(case: str, single: Path, sharded: Path, tmp_path: Path) -> None:
    apply(single, changes()[case], tmp_path / "one.safetensors")
    for output in (tmp_path / "new", tmp_path / "there"):
        if output.name == "there":
            output.mkdir()
        apply(sharded, changes()[case], output)
        assert checkpoints.diff(tmp_path / "one.safetensors", output).is_empty
        assert sorted(x.name for x in output.iterdir()) == sorted(x.name for x in sharded.iterdir())
        index = "model.safetensors.index.json"
        assert (output / index).read_bytes() == (sharded / index).read_bytes()


def test_a_change_is_read_from_the_file_that_save_wrote(single: Path, tmp_path: Path) -> None:
    for case in ("dense", "sparse", "random", "flips", "stuck"):
        change, plan = changes()[case], tmp_path / f"{case}.plan.safetensors"
        change.save(plan)
        apply(single, change, tmp_path / "a.safetensors")
        apply(single, plan, tmp_path / "b.safetensors")
        assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with pytest.raises(ValueError, match="must be a corruption or a plan of faults"):
        apply(single, single, tmp_path / "c.safetensors")


def test_of_a_pickle_a_safetensors_file_is_written(tmp_path: Path) -> None:
    torch.save({"state_dict": {f"module.{name}": x for name, x in tensors().items()}}, tmp_path / "a.th")
    change, weights = changes()["sparse"], tensors()
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        apply(tmp_path / "a.th", change, tmp_path / "b.th")
    apply(tmp_path / "a.th", change, tmp_path / "b.safetensors")
    with corrupted(weights, change):
        assert all(same_bits(weights[name], x) for name, x in load_file(tmp_path / "b.safetensors").items())


def test_a_change_that_does_not_fit_is_refused_before_anything_is_written(single: Path, tmp_path: Path) -> None:
    output = tmp_path / "b.safetensors"
    for change in (
        corruption({"nowhere": torch.ones(3)}, eps=1.0),
        corruption({"half": torch.ones(34)}, eps=1.0),
        corruption({"half": torch.ones(33)}, eps=1.0),
        corruption({"steps": torch.ones(7)}, eps=1.0),
        bitflip({"half": torch.ones(33)}, count=1, seed=0),
    ):
        with pytest.raises(ValueError, match=r"nowhere|half|steps"):
            apply(single, change, output)
    assert sorted(x.name for x in tmp_path.iterdir()) == [single.name]


def test_the_checkpoint_itself_is_never_the_output(single: Path, sharded: Path, tmp_path: Path) -> None:
    change, before = changes()["sparse"], single.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(single)
    for output in (single, tmp_path / "link.safetensors", tmp_path / "." / single.name):
        with pytest.raises(ValueError, match="must not be the checkpoint itself"):
            apply(single, change, output)
    with pytest.raises(ValueError, match="must not be the checkpoint itself"):
        apply(sharded, change, sharded)
    with pytest.raises(ValueError, match="must be a file"):
        apply(single, change, sharded)
    with pytest.raises(ValueError, match="must be a folder"):
        apply(sharded, change, single)
    with pytest.raises(FileNotFoundError, match="in a folder that exists"):
        apply(single, change, tmp_path / "nowhere" / "b.safetensors")
    assert single.read_bytes() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("case", ["dense", "sparse", "flips"])
def test_an_interrupted_copy_leaves_what_was_there(
    case: str, error: Any, single: Path, sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b.safetensors").write_text("older")
    before = sorted(tmp_path.rglob("*"))

    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(_patching, "_write", fail)
    for source, output in ((single, tmp_path / "b.safetensors"), (sharded, tmp_path / "new")):
        with pytest.raises(error if isinstance(error, type) else type(error)):
            apply(source, changes()[case], output)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "b.safetensors").read_text() == "older"


def test_a_copy_without_help_of_the_kernel_is_the_same(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(single, changes()["sparse"], tmp_path / "a.safetensors")
    monkeypatch.delattr("os.copy_file_range", raising=False)
    monkeypatch.setattr(_patching, "WINDOW", 64)
    apply(single, changes()["sparse"], tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_file_that_shrinks_while_it_is_read_is_an_error(single: Path) -> None:
    with open(single, "rb") as file, pytest.raises(OSError, match="became shorter"):
        _patching.read(file.fileno(), memoryview(bytearray(16)), single.stat().st_size - 8)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process's memory is read in /proc")
def test_memory_is_that_of_a_few_windows(tmp_path: Path) -> None:
    """In a process of its own; the tensor of 128 MiB is a hole in the file."""
    size = 1 << 27
    path = written(tmp_path / "a.safetensors", {"x": entry(0, size)})
    os.truncate(path, path.stat().st_size + size)
    random_corruption({"x": torch.empty(size // 4)}, eps=1.0, n=1000, seed=0).save(tmp_path / "sparse.safetensors")
    code = (
        "import torch\n"
        "from paramcorrupt.checkpoints import apply, diff\n"
        "peak = lambda: int(next(x for x in open('/proc/self/status') if x.startswith('VmHWM')).split()[1]) / 1024\n"
        "torch.set_num_threads(1)\n"
        "before = peak()\n"
        "apply('a.safetensors', 'sparse.safetensors', 'b.safetensors')\n"
        "diff('a.safetensors', 'b.safetensors')\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 64
