#pragma once

// A product is rounded before it is added: results do not depend on the processor.
#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif

#include <bit>
#include <cstdint>
#include <type_traits>

#include "simd.h"

// The types of elements, and what they are computed in.
namespace paramcorrupt {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

enum class Type : uint8_t { kFloat, kDouble, kBFloat16, kHalf };

inline int64_t bytes_of(Type type) { return type == Type::kDouble ? 8 : type == Type::kFloat ? 4 : 2; }

template <class Call>
inline void with_type(Type type, const Call& call) {
  switch (type) {
    case Type::kFloat:
      return call(float());
    case Type::kDouble:
      return call(double());
    case Type::kBFloat16:
      return call(BFloat16());
    case Type::kHalf:
      return call(Half());
  }
}

template <class S>
using Arithmetic = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <class S>
using Signed = std::conditional_t<sizeof(S) == 8, int64_t, std::conditional_t<sizeof(S) == 4, int32_t, int16_t>>;

template <class S>
inline constexpr bool kSmall = sizeof(S) == 2;

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return std::bit_cast<float>(uint32_t(x.bits) << 16); }

// A half whose exponent and fraction are put into those of a float is 2^112 times too small, subnormal or not.
inline float widen(Half x) {
  const uint32_t magnitude = (x.bits & 0x7FFFu) << 13;
  const uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t special = magnitude >= 0x0F800000 ? 0x7F800000 : 0;
  return std::bit_cast<float>(finite | special | (x.bits & 0x8000u) << 16);
}

// To nearest, ties to even.
template <class S>
S narrow(Arithmetic<S> x) {
  if constexpr (!kSmall<S>) {
    return x;
  } else {
    const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7FFFFFFF;
    if constexpr (std::is_same_v<S, BFloat16>) {
      const uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
      return {uint16_t(magnitude > 0x7F800000 ? bits >> 16 | 0x40 : rounded)};
    } else {
      const uint32_t normal = (magnitude - 0x38000000 + 0xFFF + (bits >> 13 & 1)) >> 13;
      // The sum with 1/2 ends in the nearest multiple of 2^-24, the unit of a subnormal half.
      const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3F000000;
      const uint32_t finite = magnitude < 0x38800000 ? subnormal : normal;
      const uint32_t special = magnitude > 0x7F800000 ? 0x7E00 : 0x7C00;
      return {uint16_t((magnitude >= 0x477FF000 ? special : finite) | (bits >> 16 & 0x8000))};
    }
  }
}

}  // namespace paramcorrupt
