#pragma once

// Sixteen bytes: what every machine has.
namespace sgns::scalar {

inline constexpr int kBytes = 16;
template <class V>
inline __attribute__((always_inline)) V multiply_add(V a, V b, V c) {
  return a * b + c;
}
template <class V>
inline __attribute__((always_inline)) V larger(V a, V b) {
  return a > b ? a : b;
}
template <class V>
inline __attribute__((always_inline)) V multiply_low(V a, uint32_t b) {
  return (a & 0xffffffffu) * b;
}
#include "philox_body.h"
#include "tile_body.h"

}  // namespace sgns::scalar
