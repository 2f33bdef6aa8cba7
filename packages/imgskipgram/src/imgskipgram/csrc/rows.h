#pragma once

#include <bit>
#include <cstdint>

#include "simd.h"

// Rows in memory and their copies, which are numbers that can be calculated with.
namespace sgns {

using Bfloat16 = uint16_t;  // the upper half of a float

inline float value(Bfloat16 a) { return std::bit_cast<float>(uint32_t(a) << 16); }
inline float value(float a) { return a; }
inline double value(double a) { return a; }

template <class T, class S>
CLONES void load_row(T* __restrict to, const S* __restrict from, int columns) {
  for (int c = 0; c < columns; ++c) to[c] = value(from[c]);
}

template <class T, class S>
CLONES void subtract_row(T* __restrict from, const S* __restrict what, int columns) {
  for (int c = 0; c < columns; ++c) from[c] -= value(what[c]);
}

// The number is for random bits.
template <class T>
CLONES void add_row(T* __restrict to, const T* __restrict what, int columns, uint32_t) {
  for (int c = 0; c < columns; ++c) to[c] += what[c];
}

// Rounds up or down at random, so that on average nothing is lost. Infinity stays: its lower half is zero.
CLONES inline void add_row(Bfloat16* __restrict to, const float* __restrict what, int columns, uint32_t random) {
  for (int c = 0; c < columns; ++c) {
    uint32_t h = random + uint32_t(c);
    h = (h ^ h >> 16) * 0x7feb352du;
    h = (h ^ h >> 15) * 0x846ca68bu;
    to[c] = Bfloat16((std::bit_cast<uint32_t>(value(to[c]) + what[c]) + (h >> 16)) >> 16);
  }
}

}  // namespace sgns
