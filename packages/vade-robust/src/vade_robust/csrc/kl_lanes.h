// The loops over pairs. Compiled by widths.h.
#include "points_lanes.h"

namespace vade_robust::WIDTH {
namespace {

// For each row tile the sum of w_ij over its i < j.
template <class T>
struct Normaliser {
  const Points<T>& y;
  double* sums;

  void run(int64_t begin, int64_t end) const {
    using V = Vector<T, kBytes>;
    constexpr int64_t kStep = 2 * kLanes<V>;
    in_pairs(begin, end, y.groups(), [&](int64_t tile) {
      const int64_t i = tile * kGroup, start = i / kStep * kStep;
      V totals[kGroup][2] = {}, d[kGroup][2];
      distances(y, i, start, d);
      for (int r = 0; r < kGroup; ++r)
        for (int k = 0; k < 2; ++k) {
          const auto later = numbers<V>() > Element<Integers<V>>(i + r - start - k * kLanes<V>);
          totals[r][k] = later ? 1 / (1 + d[r][k]) : V{};
        }
      for (int64_t j = start + kStep; j < y.stride; j += kStep) {
        distances(y, i, j, d);
#pragma GCC unroll 4
        for (int r = 0; r < kGroup; ++r)
#pragma GCC unroll 2
          for (int k = 0; k < 2; ++k) totals[r][k] += 1 / (1 + d[r][k]);
      }
      double total = 0;
      for (int r = 0; r < kGroup && i + r < y.count; ++r) total += double(sum(V(totals[r][0] + totals[r][1])));
      sums[tile] = total;
    });
  }
};

template <class T>
struct Divergence {
  const Points<T>& y;
  const Centred<T>& centred;
  const T* p;
  T inverse;     // 1 / Z
  double* sums;  // for each row tile, of p (log p - log w)
  T* gradient;

  static constexpr int64_t kBlock = 128;  // columns of G that are multiplied at once

  void run(int64_t begin, int64_t end) const {
    using V = Vector<T, kBytes>;
    const auto pulls = make_scratch<T>(kGroup * kBlock), products = make_scratch<T>(kGroup * centred.width);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * kGroup;
      V divergence = {};
      std::fill_n(products.get(), kGroup * centred.width, T(0));
      for (int64_t column = 0; column < y.count; column += kBlock) {
        divergence += pull<V>(first, column, pulls.get());
        multiply<V>(column, pulls.get(), products.get());
      }
      sums[tile] = double(sum(divergence));
      for (int r = 0; r < kGroup && first + r < y.count; ++r) {
        const T *product = products.get() + r * centred.width, *from = centred.row(first + r);
        T* to = gradient + (first + r) * y.dimensions;
        for (int64_t d = 0; d < y.dimensions; ++d) to[d] = 4 * (product[y.dimensions] * from[d] - product[d]);
      }
    }
  }

  // Writes G = (p - w / Z) w of a block, and returns its part of the divergence.
  template <class V>
  INLINE V pull(int64_t first, int64_t column, T* to) const {
    const int64_t columns = std::min(kBlock, y.stride - column);
    for (int64_t j = 0; j < columns; j += 2 * kLanes<V>) {
      V d[kGroup][2];
      distances(y, first, column + j, d);
#pragma GCC unroll 4
      for (int r = 0; r < kGroup; ++r)
#pragma GCC unroll 2
        for (int k = 0; k < 2; ++k) store(V(1 + d[r][k]), to + r * kBlock + j + k * kLanes<V>);
    }
    V divergence = {};
    const int64_t there = std::min(columns, y.count - column), whole = there - there % kLanes<V>;
    for (int64_t i = first; i < std::min(first + kGroup, y.count); ++i, to += kBlock) {
      const T* row = p + i * y.count + column;
      for (int64_t j = 0; j < whole; j += kLanes<V>) divergence += pull(load<V>(row + j), to + j);
      if (whole < there) divergence += pull(load<V>(row + whole, there - whole), to + whole);
      if (i >= column && i < column + kBlock) to[i - column] = 0;
    }
    return divergence;
  }

  // The same of a register, in place of 1 / w. Pairs of p = 0 have no part, nor have those of subnormal p, which are
  // slow to multiply.
  template <class V>
  INLINE V pull(const V& p, T* to) const {
    const V away = load<V>(to), w = 1 / away;
    store(V((p - w * inverse) * w), to);
    return p < std::numeric_limits<T>::min() ? V{} : p * log(V(p * away));
  }

  // Adds the products of a block of G with the map, one register of coordinates at a time.
  template <class V>
  INLINE void multiply(int64_t column, const T* pulls, T* products) const {
    const int64_t columns = std::min(kBlock, y.count - column);
    for (int64_t d = 0; d < centred.width; d += kLanes<V>) {
      V totals[2][kGroup] = {};
      int64_t j = 0;
      for (; j + 2 <= columns; j += 2)
#pragma GCC unroll 2
        for (int k = 0; k < 2; ++k) {
          const V here = load<V>(centred.row(column + j + k) + d);
#pragma GCC unroll 4
          for (int r = 0; r < kGroup; ++r) totals[k][r] += pulls[r * kBlock + j + k] * here;
        }
      if (j < columns) {
        const V here = load<V>(centred.row(column + j) + d);
        for (int r = 0; r < kGroup; ++r) totals[0][r] += pulls[r * kBlock + j] * here;
      }
      for (int r = 0; r < kGroup; ++r) {
        T* to = products + r * centred.width + d;
        store(V(load<V>(to) + (totals[0][r] + totals[1][r])), to);
      }
    }
  }
};

template <class T>
void normalise(const Points<T>& y, double* sums, int64_t begin, int64_t end) {
  Normaliser<T>{y, sums}.run(begin, end);
}

template <class T>
void diverge(const Points<T>& y, const Centred<T>& centred, const T* p, T inverse, double* sums, T* gradient,
             int64_t begin, int64_t end) {
  Divergence<T>{y, centred, p, inverse, sums, gradient}.run(begin, end);
}

}  // namespace
}  // namespace vade_robust::WIDTH
