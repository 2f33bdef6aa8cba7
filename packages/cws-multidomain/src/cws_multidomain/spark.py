"""Segmentation in Spark: Arrow batches for `DataFrame.mapInArrow`, and a pandas UDF. Needs `cws-multidomain[spark]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._core import join
from ._options import Options, Words

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import pyarrow as pa

__all__ = ["cut_arrow", "cut_udf"]


def cut_arrow(
    column: str,
    out: str = "tokens",
    *,
    model: str | os.PathLike[str] = "default",
    domain: str | Mapping[str, float] = "auto",
    words: Words = (),
    granularity: str = "coarse",
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """A function for `DataFrame.mapInArrow` that adds a column of tokens, or replaces it.

    Each Python worker loads the segmenter once. Text is read and tokens are written as Arrow buffers: no Python string
    is made. A null gives a null.

    Args:
        column: the column of strings.
        out: the column of lists of strings (default "tokens").
        model, domain, words, granularity: as for `Segmenter.load`, `Segmenter.add_words` and `Segmenter.granularity`.
            Paths must be there on every worker.

    Example::

        schema = T.StructType(frame.schema.fields + [T.StructField("tokens", T.ArrayType(T.StringType()))])
        frame.mapInArrow(cut_arrow("text"), schema)
    """
    return _CutArrow(column, out, Options.of(model, domain, words, granularity))


class _CutArrow:
    __name__ = "cut_arrow"  # Spark shows it in its plans

    def __init__(self, column: str, out: str, options: Options) -> None:
        self.column, self.out, self.options = column, out, options

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            names = list(batch.schema.names)
            if self.column not in names:
                raise ValueError(f"column must be one of {names}, got {self.column!r}")
            columns = dict(zip(names, batch.columns, strict=True))
            columns[self.out] = tokens_of(columns[self.column], self.options)
            yield pa.RecordBatch.from_pydict(columns)


def tokens_of(texts: pa.Array, options: Options) -> pa.Array:
    """The tokens of an array of strings as an array of lists of strings."""
    import pyarrow as pa

    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        raise TypeError(f"a column of texts must have the type string, got {texts.type}")
    nulls = texts.is_null() if texts.null_count else None
    texts = texts if nulls is None else texts.fill_null("")
    offsets = options.segmenter().offsets(texts, unit="byte")
    wide: Any = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    _, places, data = texts.buffers()
    if len(texts) == 0 or data is None:
        values = b""
    else:
        rows = np.frombuffer(places, wide)[texts.offset : texts.offset + len(texts)].astype(np.int64)
        begin = np.repeat(rows, np.diff(offsets.row_splits))  # of a token's text in the buffer
        values = join(np.frombuffer(data, np.uint8), begin + offsets.starts, begin + offsets.ends)
    lengths = offsets.ends - offsets.starts
    ends = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=ends[1:])
    tokens = pa.StringArray.from_buffers(len(lengths), pa.py_buffer(ends), pa.py_buffer(values))
    return pa.ListArray.from_arrays(pa.array(offsets.row_splits, pa.int32()), tokens, mask=nulls)


def cut_udf(
    *,
    model: str | os.PathLike[str] = "default",
    domain: str | Mapping[str, float] = "auto",
    words: Words = (),
    granularity: str = "coarse",
) -> Any:
    """A pandas UDF from strings to arrays of strings: `frame.select(cut_udf()("text"))`. A null gives a null.

    Args:
        model, domain, words, granularity: as for :func:`cut_arrow`, which is faster.
    """
    import pandas as pd
    from pyspark.sql.pandas.functions import pandas_udf
    from pyspark.sql.types import ArrayType, StringType

    options = Options.of(model, domain, words, granularity)

    def cut(texts: Any) -> Any:
        there = texts.notna()
        tokens = pd.Series([None] * len(texts), index=texts.index, dtype=object)
        tokens[there] = pd.Series(options.segmenter().cut_many(texts[there].tolist()), texts.index[there], dtype=object)
        return tokens

    cut.__annotations__ = {"texts": pd.Series, "return": pd.Series}  # by which Spark knows what to hand over
    return pandas_udf(cut, ArrayType(StringType()))  # type: ignore[call-overload]
