#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

// Tensors of one shape, visited in the order in which the first of them lies in memory.
namespace adamod {

inline constexpr int kStreams = 5;

struct Walk {
  std::vector<int64_t> sizes;                          // from the slowest dimension to the fastest
  std::array<std::vector<int64_t>, kStreams> strides;  // in elements

  // Drops dimensions of size 1 and merges those that every tensor crosses without a jump.
  Walk(std::span<const int64_t> shape, const std::array<std::span<const int64_t>, kStreams>& jumps, bool in_order) {
    std::vector<size_t> order(shape.size());
    std::iota(order.begin(), order.end(), 0);
    if (!in_order) std::ranges::stable_sort(order, [&](size_t a, size_t b) { return jumps[0][a] > jumps[0][b]; });
    for (size_t d : order) {
      if (shape[d] == 1) continue;
      bool merge = !sizes.empty();
      for (int k = 0; k < kStreams; ++k) merge = merge && strides[k].back() == jumps[k][d] * shape[d];
      if (merge)
        sizes.back() *= shape[d];
      else
        sizes.push_back(shape[d]);
      for (int k = 0; k < kStreams; ++k) {
        if (merge) strides[k].pop_back();
        strides[k].push_back(jumps[k][d]);
      }
    }
  }

  // Whether the walk meets the elements of tensor k at 0, 1, 2, ...
  bool is_dense(int k) const {
    int64_t expected = 1;
    for (size_t d = sizes.size(); d-- > 0; expected *= sizes[d])
      if (strides[k][d] != expected) return false;
    return true;
  }

  // Calls visit(offset, stride, count) for each straight piece of tensor k among its elements begin .. begin + n.
  template <class Visit>
  void pieces(int k, int64_t begin, int64_t n, const Visit& visit) const {
    std::array<int64_t, 64> at;  // more than the dimensions of 2 and more elements that fit an address space
    const auto& jump = strides[k];
    const int last = int(sizes.size()) - 1;
    int64_t offset = 0;
    for (int d = last; d >= 0; begin /= sizes[d--]) {
      at[d] = begin % sizes[d];
      offset += at[d] * jump[d];
    }
    while (n > 0) {
      const int64_t count = std::min(sizes[last] - at[last], n);
      visit(offset, jump[last], count);
      n -= count;
      at[last] += count;
      offset += count * jump[last];
      for (int d = last; d > 0 && at[d] == sizes[d]; --d) {
        offset += jump[d - 1] - sizes[d] * jump[d];
        at[d] = 0;
        ++at[d - 1];
      }
    }
  }
};

template <class U>
inline void gather(const Walk& walk, int k, int64_t begin, int64_t n, const U* from, U* to) {
  walk.pieces(k, begin, n, [&](int64_t offset, int64_t stride, int64_t count) {
    if (stride == 1)
      to = std::copy_n(from + offset, count, to);
    else
      for (int64_t i = 0; i < count; ++i) *to++ = from[offset + i * stride];
  });
}

template <class U>
inline void scatter(const Walk& walk, int k, int64_t begin, int64_t n, const U* from, U* to) {
  walk.pieces(k, begin, n, [&](int64_t offset, int64_t stride, int64_t count) {
    if (stride == 1)
      std::copy_n(from, count, to + offset);
    else
      for (int64_t i = 0; i < count; ++i) to[offset + i * stride] = from[i];
    from += count;
  });
}

}  // namespace adamod
