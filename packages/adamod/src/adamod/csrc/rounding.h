#pragma once

#include <torch/headeronly/util/BFloat16.h>

#include <bit>
#include <cstdint>

#include "simd.h"

// Stochastic rounding to bfloat16, and the random bits of all stochastic rounding.
namespace adamod {

using torch::headeronly::BFloat16;

// lowbias32 (Chris Wellons). A hash of one multiplication correlated the bits of neighbours.
inline uint32_t hash(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7FEB352D;
  x ^= x >> 15;
  x *= 0x846CA68B;
  return x ^ (x >> 16);
}

inline constexpr uint32_t kStride = 0x9E3779B9;   // between the counters of neighbouring elements
inline constexpr uint32_t kSecond = 0x85EBCA6B;   // an element's second bits are hash(bits ^ kSecond)
inline constexpr uint32_t kNearest = 0x80008000;  // bits that round to nearest

// The random bits of one step of one parameter: those of element i are hash(counter(i)).
struct Random {
  uint32_t key = 0;

  static Random of(int64_t t, int64_t stream, int64_t seed) {
    return {hash(hash(hash(uint32_t(t)) ^ uint32_t(stream)) ^ uint32_t(seed))};
  }
  // From i on the counter advances by kStride, up to the next multiple of 2^32.
  uint32_t counter(int64_t i) const { return uint32_t(i) * kStride + (key ^ hash(uint32_t(i >> 32))); }
};

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return std::bit_cast<float>(uint32_t(x.x) << 16); }

// Adds nothing to a NaN: 0x7fffffff + r would become -0.
inline BFloat16 round_up_by(float x, uint32_t r) {
  return {uint16_t((std::bit_cast<uint32_t>(x) + (x == x ? r : 0)) >> 16), BFloat16::from_bits()};
}

inline BFloat16 round_to_nearest(float x) { return round_up_by(x, 0x7FFF + (std::bit_cast<uint32_t>(x) >> 16 & 1)); }

// SHIFT tells which half of the bits to use.
template <int SHIFT, class T>
CLONES void round_stochastically(const T* __restrict x, const uint32_t* __restrict bits, BFloat16* __restrict out,
                                 int n) {
  for (int i = 0; i < n; ++i) out[i] = round_up_by(static_cast<float>(x[i]), bits[i] >> SHIFT & 0xFFFF);
}

}  // namespace adamod
