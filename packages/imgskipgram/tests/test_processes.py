"""Training beside other work: threads, forks, other processes, and rows of data sets that are streamed."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gensim.test.utils import datapath

from imgskipgram import ImageSkipGram

if TYPE_CHECKING:
    from collections.abc import Iterator

LINES = Path(datapath("lee_background.cor")).read_text(encoding="utf-8").splitlines()[:100]


def model(**options: Any) -> ImageSkipGram:
    return ImageSkipGram(**{"vector_size": 20, "min_count": 3, "workers": 1, **options})


@pytest.fixture(scope="module")
def alone() -> ImageSkipGram:
    """What comes of a training that nothing disturbs."""
    return model().fit(LINES)


def assert_same(found: ImageSkipGram, expected: ImageSkipGram) -> None:
    np.testing.assert_array_equal(found.wv.vectors, expected.wv.vectors)
    assert found.losses_ == expected.losses_


def test_other_threads_go_on_while_one_trains() -> None:
    long = model(vector_size=300, epochs=20)
    training = threading.Thread(target=long.fit, args=(LINES,))
    training.start()
    steps = 0
    while training.is_alive():
        time.sleep(0)
        steps += 1
    assert len(long.losses_) == 20
    assert steps > 200  # with the interpreter held in an epoch there would be some for each


def test_models_that_train_at_the_same_time_do_not_disturb_each_other(alone: ImageSkipGram) -> None:
    other = model(seed=2, negatives="pair").fit(LINES)
    with ThreadPoolExecutor(4) as pool:
        first = [pool.submit(model().fit, LINES) for _ in range(2)]
        second = [pool.submit(model(seed=2, negatives="pair").fit, LINES) for _ in range(2)]
        for future in first:
            assert_same(future.result(), alone)
        for future in second:
            assert_same(future.result(), other)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_process_that_has_trained_can_be_forked_and_both_train_on(tmp_path: Path) -> None:
    code = """
import os, sys
import numpy as np
from imgskipgram import ImageSkipGram

lines = sys.stdin.read().splitlines()

def train(name):
    model = ImageSkipGram(vector_size=20, min_count=3, workers=2, deterministic=True, epochs=2)
    np.save(f"{sys.argv[1]}/{name}", model.fit(lines).wv.vectors)

train("before")
child = os.fork()
train("parent" if child else "child")
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, input="\n".join(LINES), text=True, check=True, timeout=300)
    before, parent, child = (np.load(tmp_path / f"{name}.npy") for name in ("before", "parent", "child"))
    np.testing.assert_array_equal(parent, before)
    np.testing.assert_array_equal(child, before)


def test_a_model_is_trained_in_another_process_as_here(alone: ImageSkipGram) -> None:
    fresh = model()
    fresh.build_vocab(LINES)
    code = """
import pickle, sys
model, lines = pickle.load(sys.stdin.buffer)
model.train(lines)
pickle.dump(model, sys.stdout.buffer)
"""
    given = pickle.dumps((fresh, LINES))
    done = subprocess.run([sys.executable, "-c", code], input=given, stdout=subprocess.PIPE, check=True, timeout=300)
    assert_same(pickle.loads(done.stdout), alone)


def test_a_data_set_of_hugging_face_is_trained_as_the_lines_that_it_has(alone: ImageSkipGram, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs datasets, which imgskipgram[data] installs")

    def rows() -> Iterator[dict[str, Any]]:
        for number, line in enumerate(LINES):
            yield {"number": number, "caption": line}

    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows())), encoding="utf-8")
    streams = [
        datasets.IterableDataset.from_generator(rows),
        datasets.load_dataset("json", data_files=str(file), split="train", streaming=True),
        datasets.Dataset.from_list(list(rows())),
        datasets.IterableDataset.from_generator(rows).map(lambda row: {"caption": row["caption"].split()}),
    ]
    for rows_of in streams:
        assert_same(model().fit(rows_of, text_column="caption"), alone)
        assert_same(model().fit(rows_of, text_column="caption", cache_dir=False), alone)
    with pytest.raises(ValueError, match=r"text_column must be .*, got 'text'; present are 'number', 'caption'"):
        model().fit(streams[0])
