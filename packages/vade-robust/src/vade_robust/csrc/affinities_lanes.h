// The loops over rows and their neighbours. Compiled by widths.h.
#include "points_lanes.h"

namespace vade_robust::WIDTH {
namespace {

constexpr int kSteps = 200;    // rows without ties end after two to five; bisection of the bracket needs no more
constexpr double kRange = 87;  // of log beta, either side of 0
constexpr double kStride = 4;  // longest step

// Exponents below which weights add nothing, and are still normal numbers, and the power of two by which a row is
// multiplied to stay normal until it is stored.
template <class T>
inline constexpr T kNothing = std::is_same_v<T, float> ? T(-80) : T(-700);
template <class T>
inline constexpr int kShift = std::is_same_v<T, float> ? 80 : 200;

struct Moments {
  double total, mean, variance;  // sum of the weights exp(-x), and mean and variance of x under them
};

// With x = beta d. Distances are from the smallest, infinite ones weigh nothing.
template <class V>
INLINE Moments moments(const Element<V>* d, int64_t n, Element<V> beta) {
  using T = Element<V>;
  V totals[2] = {}, firsts[2] = {}, seconds[2] = {};
  for (int64_t j = 0; j < n; j += 2 * kLanes<V>)
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      V x = load<V>(d + j + k * kLanes<V>) * -beta;
      x = x < kNothing<T> ? fill<V>(kNothing<T>) : x;
      const V w = exp_normal<0>(x), first = w * x;
      totals[k] += w;
      firsts[k] += first;
      seconds[k] += first * x;
    }
  const double total = sum(V(totals[0] + totals[1]));
  const double mean = -double(sum(V(firsts[0] + firsts[1]))) / total;
  return {total, mean, double(sum(V(seconds[0] + seconds[1]))) / total - mean * mean};
}

// Newton's method on log beta, dH / dlog beta = -Var(x), within a bracket, and bisection where a step would leave it.
template <class V>
INLINE double log_beta_of(const Element<V>* d, int64_t n, double log_beta, double target) {
  using T = Element<V>;
  // The error after a step of Newton's is about the square of it.
  constexpr double kLast = std::is_same_v<T, float> ? 1e-4 : 1e-8;
  const double tolerance = double(std::numeric_limits<T>::epsilon()) * std::max(1.0, target);
  double low = -std::numeric_limits<double>::infinity(), high = -low;
  for (int i = 0; i < kSteps; ++i) {
    const Moments m = moments<V>(d, n, T(std::exp(log_beta)));
    const double excess = std::log(m.total) + m.mean - target;
    if (!(std::abs(excess) > tolerance)) break;  // or NaN
    (excess > 0 ? low : high) = log_beta;
    // Rows that are flat at this precision have the wanted one, if any, far from here.
    const double step =
        m.variance > 0 ? std::clamp(excess / m.variance, -kStride, kStride) : std::copysign(2 * kRange, excess);
    double next = log_beta + step;
    const bool inside = next > low && next < high;
    if (!inside && std::isfinite(high - low)) next = 0.5 * (low + high);
    next = std::clamp(next, -kRange, kRange);
    const bool ends = next == log_beta || (inside && std::abs(step) < kLast);
    log_beta = next;
    if (ends) break;
  }
  return log_beta;
}

// p_j|i / 2B.
template <class T>
struct Conditionals {
  const Points<T>& x;
  double target;
  T* p;

  void run(int64_t begin, int64_t end) const {
    const auto rows = make_scratch<T>(kGroup * x.stride);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      double log_beta = std::numeric_limits<double>::quiet_NaN();
      const int64_t last = std::min((chunk + 1) * kChunk, x.count);
      for (int64_t first = chunk * kChunk; first < last; first += kGroup) {
        tile(first, rows.get());
        for (int64_t i = first; i < std::min(first + kGroup, last); ++i)
          log_beta = row(i, rows.get() + (i - first) * x.stride, log_beta);
      }
    }
  }

  void tile(int64_t first, T* to) const {
    using V = Vector<T, kBytes>;
    for (int64_t j = 0; j < x.stride; j += 2 * kLanes<V>) {
      V d[kGroup][2];
      distances(x, first, j, d);
      for (int r = 0; r < kGroup; ++r)
        for (int k = 0; k < 2; ++k) store(d[r][k], to + r * x.stride + j + k * kLanes<V>);
    }
  }

  // Returns log beta, of which the row before gives a first guess.
  double row(int64_t i, T* d, double log_beta) const {
    using V = Vector<T, kBytes>;
    constexpr T kInfinite = std::numeric_limits<T>::infinity();
    d[i] = kInfinite;
    V smallest = fill<V>(kInfinite), sums = {};
    for (int64_t j = 0; j < x.stride; j += kLanes<V>) {
      const V here = load<V>(d + j);
      smallest = here < smallest ? here : smallest;
    }
    const T nearest = least(smallest);
    for (int64_t j = 0; j < x.stride; j += kLanes<V>) {
      const V here = load<V>(d + j) - nearest;
      sums += here < kInfinite ? here : V{};
      store(here, d + j);
    }
    if (!std::isfinite(log_beta)) {
      const double mean = sum(sums) / double(x.count - 1);
      log_beta = mean > 0 ? std::clamp(-std::log(mean), -kRange, kRange) : 0;
    }
    log_beta = log_beta_of<V>(d, x.stride, log_beta, target);

    const T beta = T(std::exp(log_beta));
    V totals = {};
    for (int64_t j = 0; j < x.stride; j += kLanes<V>) {
      V here = load<V>(d + j) * -beta;
      here = exp_normal<kShift<T>>(V(here < kLeast<T> ? fill<V>(kLeast<T>) : here));
      totals += here;
      store(here, d + j);
    }
    const T scale = T(std::ldexp(1 / (2 * double(x.count) * double(sum(totals))), kShift<T>));
    T* to = p + i * x.count;
    int64_t j = 0;
    for (; j + kLanes<V> <= x.count; j += kLanes<V>) store(scaled_down<kShift<T>>(V(load<V>(d + j) * scale)), to + j);
    store(scaled_down<kShift<T>>(V(load<V>(d + j) * scale)), to + j, x.count - j);
    return log_beta;
  }
};

// P + P^T in place, by pairs of squares.
template <class T>
struct Symmetric {
  int64_t count;
  T* p;

  void run(int64_t begin, int64_t end) const {
    in_pairs(begin, end, squares(count), [&](int64_t tile) {
      using V = Vector<T, kBytes>;
      constexpr int N = kLanes<V>;
      const int64_t last = std::min((tile + 1) * kSide, count);
      for (int64_t block = tile * kSide; block < count; block += kSide)
        for (int64_t i = tile * kSide; i < last; i += N)
          for (int64_t j = std::max(block, i); j < std::min(block + kSide, count); j += N)
            if (std::max(i, j) + N <= count)
              square<V>(i, j);
            else
              edge(i, j, std::min(i + N, count), std::min(j + N, count));
    });
  }

  template <class V>
  INLINE void square(int64_t i, int64_t j) const {
    constexpr int N = kLanes<V>;
    V here[N], there[N];
#pragma GCC unroll 16
    for (int r = 0; r < N; ++r) there[r] = load<V>(p + (j + r) * count + i);
    transpose(there);
#pragma GCC unroll 16
    for (int r = 0; r < N; ++r) {
      here[r] = load<V>(p + (i + r) * count + j) + there[r];
      store(here[r], p + (i + r) * count + j);
    }
    if (i == j) return;
    transpose(here);
#pragma GCC unroll 16
    for (int r = 0; r < N; ++r) store(here[r], p + (j + r) * count + i);
  }

  INLINE void edge(int64_t first, int64_t column, int64_t last, int64_t end) const {
    for (int64_t i = first; i < last; ++i)
      for (int64_t j = std::max(column, i); j < end; ++j)
        p[i * count + j] = p[j * count + i] = p[i * count + j] + p[j * count + i];
  }
};

template <class T>
void fill_conditionals(const Points<T>& x, double target, T* p, int64_t begin, int64_t end) {
  Conditionals<T>{x, target, p}.run(begin, end);
}

template <class T>
void add_transposed(int64_t count, T* p, int64_t begin, int64_t end) {
  Symmetric<T>{count, p}.run(begin, end);
}

}  // namespace
}  // namespace vade_robust::WIDTH
