// Reading and writing rows as lanes. Compiled by widths.h.
#include "matrix.h"

namespace vade_robust::WIDTH {

// The square that begins at a row and a column, transposed: one vector per column. Lanes of rows that there are not are
// 0; vectors of columns that there are not are arbitrary.
template <class V>
INLINE void read_square(const Matrix<const Element<V>>& x, int64_t row, int64_t column, V (&square)[kLanes<V>]) {
  constexpr int L = kLanes<V>;
  const Element<V>* from = x.at(row, column);
  if (from + (L - 1) * x.columns + L <= x.end()) {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) square[i] = load<V>(from + i * x.columns);
  } else {
    const int64_t count = std::min<int64_t>(L, x.columns - column);
    for (int i = 0; i < L; ++i) square[i] = row + i < x.rows ? load<V>(from + i * x.columns, count) : V{};
  }
  transpose(square);
}

// The inverse. A store may run into the rows below within the square: squares of the last columns are written first.
template <class V>
INLINE void write_square(V (&square)[kLanes<V>], const Matrix<Element<V>>& x, int64_t row, int64_t column) {
  constexpr int L = kLanes<V>;
  const auto rows = int(std::min<int64_t>(L, x.rows - row));
  const int64_t count = std::min<int64_t>(L, x.columns - column);
  Element<V>* to = x.at(row, column);
  const Element<V>* end = x.at(row + rows - 1, column) + count;
  transpose(square);
  for (int i = 0; i < rows; ++i, to += x.columns) {
    if (to + L <= end)
      store(square[i], to);
    else
      store(square[i], to, count);
  }
}

// Columns [begin, end) of `rows` rows, a multiple of the lanes, to [end - begin, stride].
template <class V>
INLINE void read_columns(const Matrix<const Element<V>>& x, int64_t row, int64_t rows, int64_t begin, int64_t end,
                         Element<V>* to, int64_t stride) {
  constexpr int L = kLanes<V>;
  for (int64_t r = 0; r < rows; r += L) {
    if (row + r >= x.rows) {
      for (int64_t c = 0; c < end - begin; ++c) store(V{}, to + c * stride + r);
      continue;
    }
    for (int64_t c = begin; c < end; c += L) {
      V square[L];
      read_square(x, row + r, c, square);
      const auto count = int(std::min<int64_t>(L, end - c));
      for (int i = 0; i < count; ++i) store(square[i], to + (c - begin + i) * stride + r);
    }
  }
}

// The inverse: `begin` is a multiple of the lanes, and what is written may be overwritten by columns before it.
template <class V>
INLINE void write_columns(const Element<V>* from, int64_t stride, const Matrix<Element<V>>& x, int64_t row,
                          int64_t rows, int64_t begin, int64_t end) {
  constexpr int L = kLanes<V>;
  for (int64_t r = 0; r < rows && row + r < x.rows; r += L) {
    for (int64_t c = begin + (end - begin - 1) / L * L; c >= begin; c -= L) {
      V square[L];
      const auto count = int(std::min<int64_t>(L, end - c));
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) square[i] = i < count ? load<V>(from + (c - begin + i) * stride + r) : V{};
      write_square(square, x, row + r, c);
    }
  }
}

}  // namespace vade_robust::WIDTH
