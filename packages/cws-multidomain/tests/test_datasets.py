"""The function for Hugging Face datasets."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from cws_multidomain import Segmenter
from cws_multidomain.huggingface import datasets_map

if TYPE_CHECKING:
    from pathlib import Path

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its own dependencies warn of
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra datasets)")
    from datasets.fingerprint import Hasher

TEXTS = ["我们在北京大学学习。", "", None, " 我  去\n"]
HASH = """
import warnings
warnings.simplefilter("ignore")
from datasets.fingerprint import Hasher
from cws_multidomain.huggingface import datasets_map
print(Hasher.hash(datasets_map("text", words={"在北京": "force", "大学": -2.0})))
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Any:
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "texts"))
    return datasets.load_from_disk(str(tmp_path / "texts"))


@pytest.fixture(scope="module")
def expected() -> list[list[str] | None]:
    segmenter = Segmenter.load()
    return [None if text is None else segmenter.cut(text) for text in TEXTS]


def test_it_adds_a_column_of_tokens(dataset: Any, expected: list[list[str] | None]) -> None:
    mapped = dataset.map(datasets_map("text"), batched=True, batch_size=3)
    assert mapped["tokens"][:] == expected
    assert mapped["text"][:] == TEXTS


def test_a_second_map_finds_the_cache_of_the_first(dataset: Any) -> None:
    first = dataset.map(datasets_map("text"), batched=True)
    datasets_map("text")(first[:2])  # a segmenter that was loaded changes no fingerprint
    second = dataset.map(datasets_map("text"), batched=True)
    other = dataset.map(datasets_map("text", words=["在北京"]), batched=True)
    assert first.cache_files == second.cache_files
    assert first.cache_files != other.cache_files


def test_two_processes_give_the_same_fingerprint() -> None:
    ours = Hasher.hash(datasets_map("text", words={"在北京": "force", "大学": -2.0}))
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", HASH], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == ours


def test_it_can_be_pickled(expected: list[list[str] | None]) -> None:
    copy = pickle.loads(pickle.dumps(datasets_map("text", "words")))
    assert copy({"text": TEXTS}) == {"words": expected}


def test_processes_share_the_work(dataset: Any, expected: list[list[str] | None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forks in a process with threads
        mapped = dataset.map(datasets_map("text"), batched=True, num_proc=2)
    assert mapped["tokens"][:] == expected


def test_bad_columns_are_named() -> None:
    with pytest.raises(ValueError, match=r"column must be one of \['text'\], got 'body'"):
        datasets_map("body")({"text": TEXTS})
    with pytest.raises(TypeError, match="column 'text' must be a list of texts, got a str; call map with batched=True"):
        datasets_map("text")({"text": "他"})
