"""Rows as they are stored: what users see of them, what they change, and how numbers become bfloat16."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgskipgram import _rows

LARGE = float(np.float32(3.3e38))
DTYPES = {"float32": np.float32, "float64": np.float64, "bfloat16": np.uint16}


def rows_of(dtype: str, rows: int = 7, columns: int = 20) -> Any:
    return _rows.fresh(0, rows, columns, dtype, seed=3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 16, 17, 300])
@pytest.mark.parametrize("rows", [0, 1, 31])
def test_rows_are_aligned_and_filled_up_with_zeros(dtype: str, columns: int, rows: int) -> None:
    made = rows_of(dtype, rows, columns)
    assert made.dtype == DTYPES[dtype]
    assert made.shape == (rows, -(-columns // 16) * 16)
    assert made.ctypes.data % 64 == 0
    assert not made[:, columns:].any()
    copy = _rows.copied(made[:, :columns], columns, dtype)
    np.testing.assert_array_equal(copy, made)
    assert not np.shares_memory(copy, made)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_depends_on_its_number_alone(dtype: str) -> None:
    whole = _rows.fresh(0, 200_000, 7, dtype, seed=3)
    np.testing.assert_array_equal(_rows.fresh(150_000, 200_000, 7, dtype, seed=3), whole[150_000:])
    np.testing.assert_array_equal(_rows.fresh(0, 10, 7, dtype, seed=3), whole[:10])


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_edited_rows_lose_what_float32_does_not_hold(dtype: str) -> None:
    rows = rows_of(dtype)
    vectors = _rows.exported(rows, 20)
    assert vectors.dtype == np.float32
    assert not np.shares_memory(vectors, rows)
    assert _rows.edited(rows, vectors, dtype) is rows
    vectors[4, 19] = 1 / 3
    changed = _rows.edited(rows, vectors, dtype)
    np.testing.assert_array_equal(np.delete(changed, 4, 0), np.delete(rows, 4, 0))
    np.testing.assert_allclose(_rows.exported(changed, 20), vectors, rtol=2**-8)
    assert (_rows.exported(changed, 20) == vectors).all() == (dtype != "bfloat16")


@given(st.floats(-LARGE, LARGE, width=32))
def test_bfloat16_is_the_nearest_of_its_neighbours_and_even_between_two(value: float) -> None:
    x = np.array([[value]], np.float32)
    bits = _rows.rounded(x, "bfloat16")
    ends = (x.view(np.uint32) >> 16).astype(np.uint16) + np.array([[0, 1]], np.uint16)
    near, (toward, away) = float(_rows.exported(bits, 1)[0, 0]), _rows.exported(ends, 2)[0].astype(float)
    assert near in (toward, away)
    assert abs(near - value) == min(abs(toward - value), abs(away - value))
    if abs(toward - value) == abs(away - value):
        assert bits[0, 0] % 2 == 0


def test_the_first_row_that_is_not_finite_is_found_and_great_numbers_are_finite() -> None:
    vectors = np.zeros((5, 3), np.float32)
    assert _rows.infinite(vectors) is None
    vectors[1] = 3e38
    assert _rows.infinite(vectors) is None
    vectors[4, 0] = np.inf
    vectors[3, 2] = np.nan
    assert _rows.infinite(vectors) == 3
    assert _rows.infinite(vectors[:0]) is None
