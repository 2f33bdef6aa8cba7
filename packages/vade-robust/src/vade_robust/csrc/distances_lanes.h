// The loops over rows, points and columns. Compiled by widths.h.
#include "rows.h"

namespace vade_robust::WIDTH {
namespace {

constexpr int64_t kPoints = 128;  // whose distances to a tile of rows are computed at once

// The distances of a tile's rows from points [first, last), to [last - first, kRows]. `block` holds the columns of the
// rows, and still does in the next call for the tile if they are few: then it is not `fresh`.
template <class V>
INLINE void measure(const Matrix<const Element<V>>& x, int64_t row, const Matrix<const Element<V>>& points,
                    int64_t first, int64_t last, bool fresh, Element<V>* block, Element<V>* sums) {
  using T = Element<V>;
  constexpr int L = kLanes<V>;
  if (x.columns == 0) std::fill_n(sums, (last - first) * kRows, T(0));
  for (int64_t d = 0; d < x.columns; d += kColumns) {
    const int64_t n = std::min(kColumns, x.columns - d);
    if (fresh || x.columns > kColumns) read_columns<V>(x, row, kRows, d, d + n, block, kRows);
    for (int64_t j = first; j < last; ++j) {
      const T* point = points.at(j, d);
      for (int64_t r = 0; r < kRows; r += kUnroll * L) {
        V part[kUnroll] = {};
        for (int64_t i = 0; i < n; ++i) {
          const V p = fill<V>(point[i]);
#pragma GCC unroll 4
          for (int u = 0; u < kUnroll; ++u) {
            const V difference = load<V>(block + i * kRows + r + u * L) - p;
            part[u] += difference * difference;
          }
        }
        T* sum = sums + (j - first) * kRows + r;
#pragma GCC unroll 4
        for (int u = 0; u < kUnroll; ++u) store(d == 0 ? part[u] : V(load<V>(sum + u * L) + part[u]), sum + u * L);
      }
    }
  }
}

template <class T>
struct Measurer {
  Matrix<const T> x, y;
  Matrix<T> result;

  INLINE void run(int64_t begin, int64_t end) const {
    using V = Vector<T, kBytes>;
    const auto scratch = make_scratch<T>((kColumns + kPoints) * kRows);
    T *block = scratch.get(), *sums = block + kColumns * kRows;
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t row = tile * kRows, last = (y.rows - 1) / kPoints * kPoints;
      for (int64_t first = last; first >= 0; first -= kPoints) {  // columns are written from the last to the first
        const int64_t n = std::min(kPoints, y.rows - first);
        measure<V>(x, row, y, first, first + n, first == last, block, sums);
        for (int64_t c = (n - 1) / kColumns * kColumns; c >= 0; c -= kColumns)
          write_columns<V>(sums + c * kRows, kRows, result, row, kRows, first + c, first + std::min(c + kColumns, n));
      }
    }
  }
};

// NaN is further than anything, as it is in sorting.
template <class T>
bool nearer(T x, T y) {
  return x < y || (y != y && x == x);
}

// The nearest points of a tile of rows, of which there are k; the others are further, or as far and later.
template <class T>
struct Finder {
  Matrix<const T> queries, points;
  Matrix<T> distances;
  int64_t* index;

  INLINE void run(int64_t begin, int64_t end) const {
    using V = Vector<T, kBytes>;
    const int64_t k = distances.columns;
    const auto scratch = make_scratch<T>((kColumns + kPoints + 1 + k) * kRows);
    const auto numbers = make_scratch<int64_t>(kRows * k);
    T *block = scratch.get(), *sums = block + kColumns * kRows, *bounds = sums + kPoints * kRows;
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t row = tile * kRows, rows = std::min(kRows, queries.rows - row);
      for (int64_t i = 0; i < kRows; ++i) bounds[i] = std::numeric_limits<T>::quiet_NaN();
      for (int64_t i = 0; i < k * kRows; ++i) {
        bounds[kRows + i] = std::numeric_limits<T>::quiet_NaN();
        numbers[size_t(i)] = -1;
      }
      for (int64_t first = 0; first < points.rows; first += kPoints) {
        const int64_t last = std::min(first + kPoints, points.rows);
        measure<V>(queries, row, points, first, last, first == 0, block, sums);
        for (int64_t r = 0; r < rows; r += kLanes<V>) {
          if (k == 1)
            keep_nearest<V>(sums + r, first, last, bounds + r, numbers.get() + r);
          else
            keep_nearer<V>(sums + r, first, last, bounds + r, bounds + kRows + r * k, numbers.get() + r * k);
        }
      }
      const T* kept = k == 1 ? bounds : bounds + kRows;
      std::copy_n(kept, rows * k, distances.at(row, 0));
      std::copy_n(numbers.get(), rows * k, index + row * k);
    }
  }

  template <class V>
  INLINE void keep_nearest(const T* sums, int64_t first, int64_t last, T* bound, int64_t* number) const {
    using I = Integers<V>;
    using Integer = Element<I>;
    V best = load<V>(first == 0 ? sums : bound);
    I at = {};  // in the block
    for (int64_t j = first == 0; j < last - first; ++j) {
      const V x = load<V>(sums + j * kRows);
      const I better = (x < best) | ((best != best) & (x == x));
      best = better ? x : best;
      at = better ? I{} + Integer(j + 1) : at;
    }
    store(best, bound);
    for (int i = 0; i < kLanes<V>; ++i)
      if (at[i] || first == 0) number[i] = first + std::max<int64_t>(at[i] - 1, 0);
  }

  // Points that are nearer than the bound of a row, its k-th distance, are inserted into its ascending list.
  template <class V>
  INLINE void keep_nearer(const T* sums, int64_t first, int64_t last, T* bounds, T* lists, int64_t* numbers) const {
    using I = Integers<V>;
    constexpr int64_t kTogether = 8;
    V bound = load<V>(bounds);
    for (int64_t j = first; j < last; j += kTogether) {
      const int64_t n = std::min(kTogether, last - j);
      I any = {};
      for (int64_t i = 0; i < n; ++i) any |= ~(load<V>(sums + (j - first + i) * kRows) >= bound);
      if (!some(any)) continue;
      for (int64_t i = 0; i < n; ++i) {
        const T* x = sums + (j - first + i) * kRows;
        const I closer = ~(load<V>(x) >= bound);
        if (!some(closer)) continue;
        for (int lane = 0; lane < kLanes<V>; ++lane)
          if (closer[lane])
            insert(x[lane], j + i, lists + lane * distances.columns, numbers + lane * distances.columns);
        for (int lane = 0; lane < kLanes<V>; ++lane) bound[lane] = lists[(lane + 1) * distances.columns - 1];
      }
    }
    store(bound, bounds);
  }

  template <class I>
  INLINE bool some(const I& mask) const {
    uint64_t words[sizeof(I) / 8], all = 0;
    std::memcpy(words, &mask, sizeof(I));
#pragma GCC unroll 8
    for (uint64_t word : words) all |= word;
    return all != 0;
  }

  void insert(T x, int64_t number, T* list, int64_t* numbers) const {
    const auto later = [&](int64_t i) { return numbers[i] < 0 || nearer(x, list[i]); };
    int64_t i = distances.columns - 1;
    if (!later(i)) return;
    for (; i > 0 && later(i - 1); --i) {
      list[i] = list[i - 1];
      numbers[i] = numbers[i - 1];
    }
    list[i] = x;
    numbers[i] = number;
  }
};

template <class T>
void measure(Matrix<const T> x, Matrix<const T> y, Matrix<T> result, int64_t begin, int64_t end) {
  Measurer<T>{x, y, result}.run(begin, end);
}

template <class T>
void find(Matrix<const T> queries, Matrix<const T> points, Matrix<T> distances, int64_t* index, int64_t begin,
          int64_t end) {
  Finder<T>{queries, points, distances, index}.run(begin, end);
}

}  // namespace
}  // namespace vade_robust::WIDTH
