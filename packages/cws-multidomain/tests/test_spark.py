"""The functions for Spark, run by a local Spark."""

from __future__ import annotations

import shutil
import sys
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from cws_multidomain import Segmenter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra spark)")
pytest.importorskip("pyspark", reason="pyspark is not installed (extra spark)")
from cws_multidomain._options import Options, _loaded  # noqa: E402
from cws_multidomain.spark import cut_arrow, cut_udf, tokens_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning")

TEXTS = [
    "我们在北京大学学习。",
    "",
    None,
    " 我  去\n",
    "👨\u200d👩\u200d👧 emoji",
    "结婚的和尚未结婚的",
    *["他来了"] * 20,
]


@pytest.fixture(scope="module")
def expected() -> list[list[str] | None]:
    segmenter = Segmenter.load()
    return [None if text is None else segmenter.cut(text) for text in TEXTS]


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string()], ids=str)
def test_tokens_of_arrow_are_those_of_python(expected: list[list[str] | None], type_: Any) -> None:
    texts = pa.array(["前面", *TEXTS, "后面"], type_)
    tokens = tokens_of(texts[1:-1], Options.of())
    assert tokens.type == pa.list_(pa.string())
    assert tokens.to_pylist() == expected
    tokens.validate(full=True)
    assert tokens_of(texts[:0], Options.of()).to_pylist() == []
    assert tokens_of(pa.array([None, ""], type_), Options.of()).to_pylist() == [None, []]


def test_a_batch_keeps_its_other_columns_and_may_replace_its_texts() -> None:
    batch = pa.RecordBatch.from_pydict({"id": [1, 2], "text": ["他来了", None]})
    (added,) = cut_arrow("text", "words", words={"他来": "force"})([batch])
    assert added.to_pydict() == {"id": [1, 2], "text": ["他来了", None], "words": [["他来", "了"], None]}
    (replaced,) = cut_arrow("text", "text")([batch])
    assert replaced.schema.names == ["id", "text"]
    with pytest.raises(ValueError, match=r"column must be one of \['id', 'text'\], got 'body'"):
        next(cut_arrow("body")([batch]))
    with pytest.raises(TypeError, match="a column of texts must have the type string, got int64"):
        next(cut_arrow("id")([batch]))


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not shutil.which("java"):
        pytest.skip("Spark needs Java, and there is no java on the path")
    from pyspark.sql import SparkSession

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # what Spark warns of when it starts
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        session = (
            SparkSession.builder.master("local[1]")
            .config("spark.ui.enabled", "false")
            .config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("warehouse")))
            .config("spark.sql.shuffle.partitions", "1")
            .getOrCreate()
        )
        session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


@pytest.fixture(scope="module")
def frame(spark: Any) -> Any:
    return (
        spark.createDataFrame(list(enumerate(TEXTS)), "id int, text string").repartition(4).sortWithinPartitions("id")
    )


def test_spark_maps_batches(frame: Any, expected: list[list[str] | None]) -> None:
    rows = frame.mapInArrow(cut_arrow("text"), "id int, text string, tokens array<string>").orderBy("id").collect()
    assert [row.tokens for row in rows] == expected
    assert [row.text for row in rows] == TEXTS


def test_spark_calls_the_pandas_udf(frame: Any, expected: list[list[str] | None]) -> None:
    rows = frame.select("id", cut_udf()("text").alias("tokens")).orderBy("id").collect()
    assert [row.tokens for row in rows] == expected


def test_a_worker_loads_the_segmenter_once(frame: Any) -> None:
    cut = cut_arrow("text", domain="general")

    def loads(batches: Iterable[Any]) -> Iterator[Any]:
        import os

        for batch in cut(batches):
            count = _loaded.cache_info().misses
            yield pa.RecordBatch.from_pydict({"pid": [os.getpid()] * len(batch), "loads": [count] * len(batch)})

    rows = frame.mapInArrow(loads, "pid long, loads long").collect()
    assert len(rows) == len(TEXTS)
    workers = {row.pid for row in rows}
    assert len(workers) == 1, "local[1] has one worker"
    again = frame.mapInArrow(loads, "pid long, loads long").collect()
    assert {(row.pid, row.loads) for row in again} <= {(row.pid, row.loads) for row in rows}
