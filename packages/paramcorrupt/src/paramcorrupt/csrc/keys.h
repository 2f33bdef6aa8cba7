#pragma once

#include <limits>

#include "numbers.h"

// Magnitudes as integers: the bits of |x| order as |x| does, and a NaN comes last.
namespace paramcorrupt {

inline constexpr int kBlock = 4096;  // elements that are taken at once

template <class S>
struct KeyOf;
template <>
struct KeyOf<float> {
  using type = int32_t;
};
template <>
struct KeyOf<double> {
  using type = int64_t;
};
template <>
struct KeyOf<BFloat16> {
  using type = int16_t;
};
template <>
struct KeyOf<Half> {
  using type = int16_t;
};

// The bits of an element; without the sign they are its key.
template <class S>
using Bits = typename KeyOf<S>::type;

template <class K>
inline constexpr K kLastKey = std::numeric_limits<K>::max();

template <class K>
inline K key(K bits) {
  return bits & kLastKey<K>;
}

// Infinity's key. Those above it are of NaN.
template <class S>
inline constexpr Bits<S> kInfinityKey = std::is_same_v<S, double>  ? Bits<S>(0x7FF0000000000000)
                                        : std::is_same_v<S, float> ? Bits<S>(0x7F800000)
                                        : std::is_same_v<S, Half>  ? Bits<S>(0x7C00)
                                                                   : Bits<S>(0x7F80);

// The magnitude that has a key of elements of type S.
template <class S>
inline double magnitude(Bits<S> key) {
  return widen(std::bit_cast<S>(key));
}

}  // namespace paramcorrupt
