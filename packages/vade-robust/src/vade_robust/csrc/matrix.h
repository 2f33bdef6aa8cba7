#pragma once

#include <algorithm>

#include "numbers.h"

// Rows as lanes: blocks of a matrix are transposed, and every row is computed in its own lane, alike wherever it is.
namespace vade_robust {

inline constexpr int64_t kRows = 64;     // of a tile
inline constexpr int64_t kColumns = 16;  // that are summed before they join a sum: rounding errors stay small
inline constexpr int kUnroll = 4;        // vectors whose sums are in registers

// A matrix of contiguous rows.
template <class T>
struct Matrix {
  T* data;
  int64_t rows, columns;

  T* at(int64_t row, int64_t column) const { return data + row * columns + column; }
  T* end() const { return data + rows * columns; }
};

// As many rows of work as a task of a thread should have, in tiles.
inline int64_t grain(int64_t work_per_tile) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, work_per_tile));
}

}  // namespace vade_robust
