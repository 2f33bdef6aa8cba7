// The divergence of t-SNE and its gradient, in two passes over the pairs: Z, and what depends on it.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <numeric>
#include <tuple>
#include <vector>

#include "points.h"

namespace vade_robust {
namespace {

// For each row tile the sum of w_ij over its i < j.
template <class T>
struct Normaliser {
  const Points<T>& y;
  double* sums;

  template <int BYTES>
  INLINE void run(int64_t begin, int64_t end) const {
    using V = Vector<T, BYTES>;
    constexpr int64_t kStep = 2 * kLanes<V>;
    in_pairs(begin, end, y.tiles(), [&](int64_t tile) __attribute__((always_inline)) {
      const int64_t i = tile * kRows, start = i / kStep * kStep;
      V totals[kRows][2] = {}, d[kRows][2];
      y.distances(i, start, d);
      for (int r = 0; r < kRows; ++r)
        for (int k = 0; k < 2; ++k) {
          const auto later = numbers<V>() > Element<Integers<V>>(i + r - start - k * kLanes<V>);
          totals[r][k] = later ? 1 / (1 + d[r][k]) : V{};
        }
      for (int64_t j = start + kStep; j < y.stride; j += kStep) {
        y.distances(i, j, d);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
          for (int k = 0; k < 2; ++k) totals[r][k] += 1 / (1 + d[r][k]);
      }
      double total = 0;
      for (int r = 0; r < kRows && i + r < y.count; ++r) total += double(sum(V(totals[r][0] + totals[r][1])));
      sums[tile] = total;
    });
  }
};

// The map less its mean, and a column of ones: [B, width]. Its products with G have small errors, wherever the map is.
template <class T>
class Centred {
 public:
  const int64_t dimensions, width;

  explicit Centred(const Points<T>& y)
      : dimensions(y.dimensions),
        width((y.dimensions + kWidth / 2) / (kWidth / 2) * (kWidth / 2)),
        data_(make_scratch<T>(y.count * width)) {
    std::vector<double> means(size_t(y.dimensions), 0.0);
    for (int64_t i = 0; i < y.count; ++i)
      for (int64_t d = 0; d < dimensions; ++d) means[size_t(d)] += y.row(i)[d] / double(y.count);
    for (int64_t i = 0; i < y.count; ++i) {
      T* to = data_.get() + i * width;
      for (int64_t d = 0; d < dimensions; ++d) to[d] = T(y.row(i)[d] - means[size_t(d)]);
      to[dimensions] = 1;
      std::fill(to + dimensions + 1, to + width, T(0));
    }
  }

  const T* row(int64_t i) const { return data_.get() + i * width; }

 private:
  Scratch<T> data_;
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

  template <int BYTES>
  INLINE void run(int64_t begin, int64_t end) const {
    using V = Vector<T, BYTES>;
    const auto pulls = make_scratch<T>(kRows * kBlock), products = make_scratch<T>(kRows * centred.width);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * kRows;
      V divergence = {};
      std::fill_n(products.get(), kRows * centred.width, T(0));
      for (int64_t column = 0; column < y.count; column += kBlock) {
        divergence += pull<V>(first, column, pulls.get());
        multiply<V>(column, pulls.get(), products.get());
      }
      sums[tile] = double(sum(divergence));
      for (int r = 0; r < kRows && first + r < y.count; ++r) {
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
      V d[kRows][2];
      y.distances(first, column + j, d);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
        for (int k = 0; k < 2; ++k) store(V(1 + d[r][k]), to + r * kBlock + j + k * kLanes<V>);
    }
    V divergence = {};
    const int64_t there = std::min(columns, y.count - column), whole = there - there % kLanes<V>;
    for (int64_t i = first; i < std::min(first + kRows, y.count); ++i, to += kBlock) {
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
      V totals[2][kRows] = {};
      int64_t j = 0;
      for (; j + 2 <= columns; j += 2)
#pragma GCC unroll 2
        for (int k = 0; k < 2; ++k) {
          const V here = load<V>(centred.row(column + j + k) + d);
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r) totals[k][r] += pulls[r * kBlock + j + k] * here;
        }
      if (j < columns) {
        const V here = load<V>(centred.row(column + j) + d);
        for (int r = 0; r < kRows; ++r) totals[0][r] += pulls[r * kBlock + j] * here;
      }
      for (int r = 0; r < kRows; ++r) {
        T* to = products + r * centred.width + d;
        store(V(load<V>(to) + (totals[0][r] + totals[1][r])), to);
      }
    }
  }
};

std::tuple<Tensor, Tensor> tsne_kl(const Tensor& y, const Tensor& p) {
  const int64_t count = y.size(0);
  STD_TORCH_CHECK(y.dim() == 2 && y.is_contiguous(), "y must be [B, D] and contiguous");
  STD_TORCH_CHECK(p.dim() == 2 && p.size(0) == count && p.size(1) == count && p.is_contiguous(),
                  "p must be [B, B] and contiguous");
  STD_TORCH_CHECK(p.scalar_type() == y.scalar_type(), "y and p must be of one dtype");
  const Tensor kl = torch::stable::new_empty(y, {}), gradient = torch::stable::new_empty(y, {count, y.size(1)});
  with_type(y, [&]<class T>(T) {
    T *divergence = static_cast<T*>(kl.mutable_data_ptr()), *to = static_cast<T*>(gradient.mutable_data_ptr());
    if (count < 2) {
      *divergence = 0;
      return void(std::fill_n(to, gradient.numel(), T(0)));
    }
    const Points<T> points(y);
    std::vector<double> sums(size_t(points.tiles()), 0.0);
    const Normaliser<T> normaliser{points, sums.data()};
    torch::stable::parallel_for(0, (points.tiles() + 1) / 2, 8,
                                [&](int64_t begin, int64_t end) { run(normaliser, begin, end); });
    const double total = 2 * std::accumulate(sums.begin(), sums.end(), 0.0);
    const Centred<T> centred(points);
    const Divergence<T> pairs{points,       centred,     static_cast<const T*>(p.const_data_ptr()),
                              T(1 / total), sums.data(), to};
    torch::stable::parallel_for(0, points.tiles(), 8, [&](int64_t begin, int64_t end) { run(pairs, begin, end); });
    *divergence = T(std::accumulate(sums.begin(), sums.end(), 0.0) + std::log(total));
  });
  return {kl, gradient};
}

}  // namespace
}  // namespace vade_robust

STABLE_TORCH_LIBRARY_IMPL(vade_robust, CPU, m) { m.impl("tsne_kl", TORCH_BOX(&vade_robust::tsne_kl)); }
