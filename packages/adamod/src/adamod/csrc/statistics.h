#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "update.h"

// Counting of eta and s.
namespace adamod {

inline constexpr int kRun = 512;  // consecutive elements of which a histogram takes all or none
inline constexpr int kBins = 64;  // octaves, from 2^-40 to 2^24
inline constexpr int kFirstExponent = -40;
inline constexpr int kColumns = 2 + 2 * kBins;

inline int64_t runs_of(int64_t elements) { return (elements + kRun - 1) / kRun; }

// The row of one parameter: elements, clipped elements, the bins of eta, the bins of s. Several threads add to it.
struct Row {
  int64_t* data = nullptr;
  int64_t every = 1, phase = 0;  // run r is counted iff r % every == phase

  int64_t next_counted(int64_t run) const {
    if (!data) return std::numeric_limits<int64_t>::max() / kRun;
    const int64_t ahead = (phase - run) % every;
    return run + (ahead < 0 ? ahead + every : ahead);
  }
  void add(int64_t column, int64_t count) const {
    if (data && count) __atomic_fetch_add(data + column, count, __ATOMIC_RELAXED);
  }
};

template <class T>
CLONES void learning_rates(const T* __restrict v, T* __restrict eta, int n, const Coefficients<T> c) {
  for (int i = 0; i < n; ++i) eta[i] = learning_rate<Variant::kAny>(v[i], c);
}

template <class T>
inline void count_octaves(const Row& row, int64_t first_column, const T* x, int n) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  constexpr int kMantissa = sizeof(T) == 4 ? 23 : 52, kMask = sizeof(T) == 4 ? 0xFF : 0x7FF;
  std::array<int32_t, kBins> bins{};
  for (int i = 0; i < n; ++i) {
    const int exponent = int(std::bit_cast<Bits>(x[i]) >> kMantissa & kMask) - kMask / 2;
    ++bins[std::clamp(exponent - kFirstExponent, 0, kBins - 1)];
  }
  for (int b = 0; b < kBins; ++b) row.add(first_column + b, bins[b]);
}

// Counts one run, with v and s as they are after the step.
template <class T>
inline void count_run(const Row& row, const T* v, const T* s, int n, const Coefficients<T>& c) {
  T eta[kRun];
  learning_rates(v, eta, n, c);
  count_octaves(row, 2, eta, n);
  count_octaves(row, 2 + kBins, s, n);
}

}  // namespace adamod
