// Distances between points. Compiled by widths.h.
#include "points.h"

namespace vade_robust::WIDTH {
namespace {

// The sum of squared differences in coordinates [begin, end).
template <class V, int N>
INLINE void measure(const Points<Element<V>>& x, const Element<V>* const (&rows)[kGroup], int64_t column, int64_t begin,
                    int64_t end, V (&result)[kGroup][N]) {
#pragma GCC unroll 4
  for (int r = 0; r < kGroup; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) result[r][n] = V{};
  for (int64_t d = begin; d < end; ++d) {
    const Element<V>* from = x.column(d) + column;
    V y[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) y[n] = load<V>(from + n * kLanes<V>);
#pragma GCC unroll 4
    for (int r = 0; r < kGroup; ++r)
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        const V difference = rows[r][d] - y[n];
        result[r][n] += difference * difference;
      }
  }
}

// Squared distances of the points first, first + 1, ... from those from `column` on. Beyond the last row is again the
// last. Differences are squared, because |x|^2 + |y|^2 - 2 xy cancels, and summed in parts; what the sum of the parts
// loses in rounding is added with the last, because affinities multiply errors by as much as 100.
template <class V, int N>
INLINE void distances(const Points<Element<V>>& x, int64_t first, int64_t column, V (&result)[kGroup][N]) {
  using T = Element<V>;
  constexpr int64_t kPart = 8;
  const T* rows[kGroup];
  for (int r = 0; r < kGroup; ++r) rows[r] = x.row(std::min(first + r, x.count - 1));
  measure(x, rows, column, 0, std::min(kPart, x.dimensions), result);
  if (x.dimensions <= kPart) return;
  V part[kGroup][N], lost[kGroup][N] = {};
  int64_t begin = kPart;
  for (; begin + kPart < x.dimensions; begin += kPart) {
    measure(x, rows, column, begin, begin + kPart, part);
#pragma GCC unroll 4
    for (int r = 0; r < kGroup; ++r)
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        const V sum = result[r][n] + part[r][n];
        lost[r][n] += sum < std::numeric_limits<T>::infinity() ? part[r][n] - (sum - result[r][n]) : V{};
        result[r][n] = sum;
      }
  }
  measure(x, rows, column, begin, x.dimensions, part);
#pragma GCC unroll 4
  for (int r = 0; r < kGroup; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) result[r][n] += part[r][n] + lost[r][n];
}

}  // namespace
}  // namespace vade_robust::WIDTH
