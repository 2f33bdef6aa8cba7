#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>

#include "call.h"
#include "numbers.h"

// Points of which all distances are taken, a few rows at a time.
namespace vade_robust {

inline constexpr int kGroup = 4;       // that are computed together
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

  int64_t groups() const { return (count + kGroup - 1) / kGroup; }
  const T* row(int64_t i) const { return data_ + i * dimensions; }
  const T* column(int64_t d) const { return columns_.get() + d * stride; }

 private:
  const T* data_;
  Scratch<T> columns_;
};

// Tiles of which each takes only the later ones: the k-th task has the k-th and the k-th from the end, so that all
// tasks are of one size.
template <class Call>
void in_pairs(int64_t begin, int64_t end, int64_t tiles, const Call& call) {
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

}  // namespace vade_robust
