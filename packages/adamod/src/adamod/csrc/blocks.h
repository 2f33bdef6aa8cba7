#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "simd.h"

// int8 states: uint8 codes that count eighths of an octave above the int16 scale of their block.
namespace adamod {

inline constexpr int kBlock = 256;
inline constexpr int kNonfinite = 0x7FFF;  // the scale of a block that reads as NaN

enum class Range {
  kSigned,       // 7 bits and a sign
  kNonnegative,  // 8 bits
  kPositive,     // 8 bits, and a number that is not 0 is not stored as 0
};

template <Range RANGE>
CLONES void decode(const uint8_t* __restrict codes, int scale, float* __restrict x, int n) {
  if (scale == kNonfinite) {
    std::fill(x, x + n, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  constexpr bool kSigned = RANGE == Range::kSigned;
  const uint32_t base = uint32_t(scale) << 20;
  for (int i = 0; i < n; ++i) {
    const uint32_t code = codes[i];
    const uint32_t level = code << 20 & (kSigned ? 0x07F00000 : 0x0FF00000);
    x[i] = std::bit_cast<float>((level ? level + base : 0) | (kSigned ? code << 24 & 0x80000000 : 0));
  }
}

// Returns the scale. Rounds by the half of `bits` that SHIFT tells.
template <Range RANGE, int SHIFT>
CLONES int encode(const float* __restrict x, const uint32_t* __restrict bits, uint8_t* __restrict codes, int n) {
  constexpr bool kSigned = RANGE == Range::kSigned;
  uint32_t largest = 0, smallest = ~0u;  // smallest but 0
  for (int i = 0; i < n; ++i) {
    const uint32_t magnitude = std::bit_cast<uint32_t>(x[i]) & 0x7FFFFFFF;
    largest = std::max(largest, magnitude);
    smallest = std::min(smallest, magnitude - 1);
  }
  if (largest >= 0x7F800000) {
    std::fill(codes, codes + n, 0);
    return kNonfinite;
  }
  const int base = std::max(int(largest >> 20) + 1 - (kSigned ? 127 : 255), 0);
  const uint32_t first = uint32_t(base + 1) << 20;  // code 1
  if (smallest >= first - 1) {
    for (int i = 0; i < n; ++i) {
      const uint32_t y = std::bit_cast<uint32_t>(x[i]);
      const uint32_t r = (SHIFT ? bits[i] >> 12 : bits[i] << 4) & 0xFFFF0;
      const int code = std::max(int(((y & 0x7FFFFFFF) + r) >> 20) - base, 0);
      codes[i] = uint8_t(kSigned && code ? code | (y >> 24 & 0x80) : code);
    }
    return base;
  }
  const float unit = base ? std::bit_cast<float>(first) * 0x1p-16f : 0;
  for (int i = 0; i < n; ++i) {
    const uint32_t magnitude = std::bit_cast<uint32_t>(x[i]) & 0x7FFFFFFF;
    const uint32_t r = bits[i] >> SHIFT & 0xFFFF;
    int code = int((magnitude + (r << 4)) >> 20) - base;
    if (base && magnitude < first) code = std::bit_cast<float>(magnitude) > unit * (float(r) + 0.5f);
    if (RANGE == Range::kPositive) code |= (x[i] > 0) & (code == 0);
    if (kSigned) code |= (x[i] < 0) << 7;
    codes[i] = uint8_t(code);
  }
  return base;
}

}  // namespace adamod
