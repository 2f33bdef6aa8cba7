#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>

#include "numbers.h"

// Points of which all distances are taken, a few rows at a time.
namespace vade_robust {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline constexpr int kRows = 4;        // that are computed together
inline constexpr int64_t kWidth = 32;  // to a multiple of which columns are padded: two of the widest registers

// Rows [count, D], and the same by coordinate, [D, stride]; beyond the last point are points infinitely far.
template <class T>
class Points {
 public:
  const int64_t count, dimensions, stride;

  explicit Points(const Tensor& x)
      : count(x.size(0)),
        dimensions(x.size(1)),
        stride((count + kWidth - 1) / kWidth * kWidth),
        data_(static_cast<const T*>(x.const_data_ptr())),
        columns_(make_scratch<T>(dimensions * stride)) {
    constexpr int64_t kTile = 16;
    for (int64_t first = 0; first < count; first += kTile)
      for (int64_t d = 0; d < dimensions; ++d)
        for (int64_t i = first; i < std::min(first + kTile, count); ++i)
          columns_[d * stride + i] = data_[i * dimensions + d];
    for (int64_t d = 0; d < dimensions; ++d)
      std::fill(columns_.get() + d * stride + count, columns_.get() + (d + 1) * stride,
                std::numeric_limits<T>::infinity());
  }

  int64_t tiles() const { return (count + kRows - 1) / kRows; }
  const T* row(int64_t i) const { return data_ + i * dimensions; }

  // Squared distances of the points first, first + 1, ... from those from `column` on. Beyond the last row is again
  // the last. Differences are squared, because |x|^2 + |y|^2 - 2 xy cancels; a sum of many is taken in parts.
  template <class V, int N>
  INLINE void distances(int64_t first, int64_t column, V (&result)[kRows][N]) const {
    constexpr int64_t kPart = 32;
    const T* rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = row(std::min(first + r, count - 1));
    for (int64_t begin = 0; begin == 0 || begin < dimensions; begin += kPart) {
      V part[kRows][N] = {};
      for (int64_t d = begin; d < std::min(begin + kPart, dimensions); ++d) {
        const T* from = columns_.get() + d * stride + column;
        V y[N];
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) y[n] = load<V>(from + n * kLanes<V>);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
          for (int n = 0; n < N; ++n) {
            const V difference = rows[r][d] - y[n];
            part[r][n] += difference * difference;
          }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) result[r][n] = begin ? result[r][n] + part[r][n] : part[r][n];
    }
  }

 private:
  const T* data_;
  Scratch<T> columns_;
};

// Tiles of which each takes only the later ones: the k-th task has the k-th and the k-th from the end, so that all
// tasks are of one size.
template <class Call>
INLINE void in_pairs(int64_t begin, int64_t end, int64_t tiles, const Call& call) {
  for (int64_t k = begin; k < end; ++k) {
    call(k);
    if (tiles - 1 - k != k) call(tiles - 1 - k);
  }
}

// Asks for large pages under memory that is about to be written first: faults of small pages take longer than sums.
inline void use_large_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = (uintptr_t(data) + kPage - 1) / kPage * kPage,
                  end = (uintptr_t(data) + uintptr_t(bytes)) / kPage * kPage;
  if (end > begin + kPage) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice only
#endif
}

// Calls with a value of the type of the tensor's elements.
template <class Call>
void with_type(const Tensor& x, const Call& call) {
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return call(double());
    case ScalarType::Float:
      return call(float());
    default:
      STD_TORCH_CHECK(false, "expected float32 or float64");
  }
}

}  // namespace vade_robust
