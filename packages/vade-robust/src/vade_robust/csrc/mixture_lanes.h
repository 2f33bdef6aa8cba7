// The loops over components, rows and columns. Compiled by widths.h.
#include "rows.h"

namespace vade_robust::WIDTH {
namespace {

// e^x in place.
template <class V>
INLINE void exponentiate(Element<V>* x, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<V>) store(exp(load<V>(x + i)), x + i);
}

template <class T>
struct Scorer {
  const Latents<T>& z;
  const Components<T>& components;
  Matrix<T> a;
  T* lse;

  INLINE void run(int64_t begin, int64_t end) const {
    const auto scratch = make_scratch<T>((components.count + 2 * kColumns) * kRows);
    T *mean = scratch.get(), *variance = mean + kColumns * kRows, *sums = variance + kColumns * kRows;
    for (int64_t tile = begin; tile < end; ++tile) {
      if (z.log_var.data)
        score<Vector<T, kBytes>, true>(tile * kRows, mean, variance, sums);
      else
        score<Vector<T, kBytes>, false>(tile * kRows, mean, variance, sums);
    }
  }

  template <class V, bool SPREAD>
  INLINE void score(int64_t row, T* mean, T* variance, T* sums) const {
    for (int64_t i = 0; i < components.count * kRows; i += kLanes<V>) store(V{}, sums + i);
    for (int64_t d = 0; d < components.columns; d += kColumns) {
      const int64_t n = std::min(kColumns, components.columns - d);
      read_columns<V>(z.mean, row, kRows, d, d + n, mean, kRows);
      if constexpr (SPREAD) {
        read_columns<V>(z.log_var, row, kRows, d, d + n, variance, kRows);
        exponentiate<V>(variance, n * kRows);
      }
      for (int64_t c = 0; c < components.count; ++c)
        for (int64_t r = 0; r < kRows; r += kUnroll * kLanes<V>)
          add<V, SPREAD>(mean + r, variance + r, c * components.columns + d, n, sums + c * kRows + r);
    }
    for (int64_t r = 0; r < kRows && row + r < a.rows; r += kLanes<V>) finish<V>(row + r, sums + r);
    for (int64_t c = (components.count - 1) / kColumns * kColumns; c >= 0; c -= kColumns)
      write_columns<V>(sums + c * kRows, kRows, a, row, kRows, c, std::min(c + kColumns, components.count));
  }

  // Adds sum_d (exp(lv_d) + (mu_d - m_cd)^2) / exp(ls_cd) over a block of columns.
  template <class V, bool SPREAD>
  INLINE void add(const T* mean, const T* variance, int64_t parameter, int64_t columns, T* sums) const {
    constexpr int L = kLanes<V>;
    const T *center = components.centers + parameter, *precision = components.precision.get() + parameter;
    V part[kUnroll] = {};
    for (int64_t d = 0; d < columns; ++d) {
      const V m = fill<V>(center[d]), p = fill<V>(precision[d]);
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u) {
        const V difference = load<V>(mean + d * kRows + u * L) - m;
        V square = difference * difference;
        if constexpr (SPREAD) square += load<V>(variance + d * kRows + u * L);
        part[u] += square * p;
      }
    }
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) store(V(load<V>(sums + u * L) + part[u]), sums + u * L);
  }

  template <class V>
  INLINE void finish(int64_t row, T* sums) const {
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    V most = fill<V>(-kInfinity);
    for (int64_t c = 0; c < components.count; ++c) {
      const V score = components.constant[size_t(c)] - T(0.5) * load<V>(sums + c * kRows);
      most = score > most ? score : most;
      store(score, sums + c * kRows);
    }
    const V shift = (most < kInfinity) & (most > -kInfinity) ? most : V{};
    V total = {};
    for (int64_t c = 0; c < components.count; ++c) total += exp(V(load<V>(sums + c * kRows) - shift));
    const V result = total == T(0) ? fill<V>(-kInfinity) : shift + log(total);
    store(result, lse + row, std::min<int64_t>(kLanes<V>, a.rows - row));
  }
};

// Chunks of rows: the gradients of their latents, and their part of the sums that are the parameters' gradients.
template <class T>
struct Differentiator {
  const Latents<T>& z;
  const Components<T>& components;
  const Received<T>& received;
  Matrix<T> grad_mean, grad_log_var;
  int64_t first;  // of the chunks that are kept at a time
  T* parts;

  INLINE void run(int64_t begin, int64_t end) const {
    const auto scratch = make_scratch<T>((components.count + 4 * kColumns + 2) * kStride);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      T* part = parts + (chunk - first) * components.part_size();
      if (z.log_var.data)
        differentiate<Vector<T, kBytes>, true>(chunk * kChunk, scratch.get(), part);
      else
        differentiate<Vector<T, kBytes>, false>(chunk * kChunk, scratch.get(), part);
    }
  }

  template <class V, bool SPREAD>
  INLINE void differentiate(int64_t row, T* scratch, T* part) const {
    constexpr int64_t kPair = 2 * kLanes<V>;
    const int64_t count = components.count, columns = components.columns;
    const int64_t rows = (std::min(kChunk, z.mean.rows - row) + kPair - 1) / kPair * kPair;
    T *mean = scratch, *variance = mean + kColumns * kStride, *by_mean = variance + kColumns * kStride,
      *by_variance = by_mean + kColumns * kStride, *some = by_variance + kColumns * kStride,
      *weights = some + 2 * kStride;
    for (int64_t c = 0; c < count; c += kColumns) {
      const int64_t n = std::min(kColumns, count - c);
      weigh<V>(row, rows, c, n, mean, weights + c * kStride);
      for (int64_t i = c; i < c + n; ++i) part[i] = sum_of<V>(weights + i * kStride, rows);
    }
    for (int64_t d = (columns - 1) / kColumns * kColumns; d >= 0; d -= kColumns) {
      const int64_t n = std::min(kColumns, columns - d);
      read_columns<V>(z.mean, row, rows, d, d + n, mean, kStride);
      if constexpr (SPREAD) read_columns<V>(z.log_var, row, rows, d, d + n, variance, kStride);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = i * kStride;
        if constexpr (SPREAD) exponentiate<V>(variance + at, rows);
        for (int64_t c = 0; c < count; c += kColumns) {
          // The sums of a block of components, which join those before it.
          T *to_mean = c ? some : by_mean + at, *to_variance = c ? some + kStride : by_variance + at;
          std::fill_n(to_mean, rows, T(0));
          std::fill_n(to_variance, rows, T(0));
          for (int64_t k = c; k < std::min(c + kColumns, count); ++k)
            pull<V, SPREAD>(weights + k * kStride, mean + at, variance + at, to_mean, to_variance, rows,
                            k * columns + d + i, part + count);
          if (c) {
            join<V>(to_mean, by_mean + at, rows);
            if constexpr (SPREAD) join<V>(to_variance, by_variance + at, rows);
          }
        }
        if constexpr (SPREAD)
          for (int64_t r = 0; r < rows; r += kLanes<V>)
            store(V(T(-0.5) * load<V>(variance + at + r) * load<V>(by_variance + at + r)), by_variance + at + r);
      }
      write_columns<V>(by_mean, kStride, grad_mean, row, rows, d, d + n);
      if constexpr (SPREAD) write_columns<V>(by_variance, kStride, grad_log_var, row, rows, d, d + n);
    }
  }

  // W = grad_a + grad_lse exp(a - lse) of n components, 0 where there are no rows.
  template <class V>
  INLINE void weigh(int64_t row, int64_t rows, int64_t c, int64_t n, T* scores, T* weights) const {
    read_columns<V>(received.a, row, rows, c, c + n, scores, kStride);
    read_columns<V>(received.grad_a, row, rows, c, c + n, weights, kStride);
    for (int64_t r = 0; r < rows; r += kLanes<V>) {
      const int64_t left = std::clamp<int64_t>(z.mean.rows - row - r, 0, kLanes<V>);
      const V total = load<V>(received.lse + (left ? row + r : 0), left),
              grad = load<V>(received.grad_lse + (left ? row + r : 0), left);
      for (int64_t i = 0; i < n; ++i) {
        T* w = weights + i * kStride + r;
        const V weight = load<V>(w) + grad * exp(V(load<V>(scores + i * kStride + r) - total));
        store(V(numbers<V>() < Element<Integers<V>>(left) ? weight : V{}), w);
      }
    }
  }

  template <class V>
  INLINE T sum_of(const T* x, int64_t count) const {
    V sums[2] = {};
    for (int64_t i = 0; i < count; i += 2 * kLanes<V>) {
      sums[0] += load<V>(x + i);
      sums[1] += load<V>(x + i + kLanes<V>);
    }
    return sum(V(sums[0] + sums[1]));
  }

  template <class V>
  INLINE void join(const T* x, T* sums, int64_t count) const {
    for (int64_t i = 0; i < count; i += kLanes<V>) store(V(load<V>(sums + i) + load<V>(x + i)), sums + i);
  }

  // What one component and one column give.
  template <class V, bool SPREAD>
  INLINE void pull(const T* __restrict weights, const T* __restrict mean, const T* __restrict variance,
                   T* __restrict by_mean, T* __restrict by_variance, int64_t rows, int64_t parameter, T* part) const {
    constexpr int L = kLanes<V>;
    const V m = fill<V>(components.centers[parameter]), p = fill<V>(components.precision[size_t(parameter)]);
    V by_center[2] = {}, by_scale[2] = {};
    for (int64_t r = 0; r < rows; r += 2 * L) {
#pragma GCC unroll 2
      for (int u = 0; u < 2; ++u) {
        const int64_t at = r + u * L;
        const V w = load<V>(weights + at), difference = load<V>(mean + at) - m, along = w * p;
        V square = difference * difference;
        if constexpr (SPREAD) {
          square += load<V>(variance + at);
          store(V(load<V>(by_variance + at) + along), by_variance + at);
        }
        store(V(load<V>(by_mean + at) - along * difference), by_mean + at);
        by_center[u] += along * difference;
        by_scale[u] += w * (square * p - T(1));
      }
    }
    part[parameter] = sum(V(by_center[0] + by_center[1]));
    part[components.count * components.columns + parameter] = T(0.5) * sum(V(by_scale[0] + by_scale[1]));
  }
};

// e^-x.
template <class T>
void invert(const T* x, T* to, int64_t count) {
  using V = Vector<T, kBytes>;
  for (int64_t i = 0; i < count; i += kLanes<V>) {
    const int64_t n = std::min<int64_t>(kLanes<V>, count - i);
    store(exp(V(-load<V>(x + i, n))), to + i, n);
  }
}

template <class T>
void score(const Latents<T>& z, const Components<T>& components, Matrix<T> a, T* lse, int64_t begin, int64_t end) {
  Scorer<T>{z, components, a, lse}.run(begin, end);
}

template <class T>
void differentiate(const Latents<T>& z, const Components<T>& components, const Received<T>& received,
                   Matrix<T> grad_mean, Matrix<T> grad_log_var, int64_t first, T* parts, int64_t begin, int64_t end) {
  Differentiator<T>{z, components, received, grad_mean, grad_log_var, first, parts}.run(begin, end);
}

}  // namespace
}  // namespace vade_robust::WIDTH
