// The places of keys, by masks of 64: most masks are empty where few keys are asked for.
#include "find.h"

#include <cstring>

#include "find_avx512.h"

namespace paramcorrupt {
namespace {

constexpr int kGroup = 64;

// A bit for each of 8 bytes that are 0 or 1.
inline uint64_t pack(const uint8_t* flags) {
  uint64_t bytes;
  std::memcpy(&bytes, flags, 8);
  if constexpr (std::endian::native == std::endian::big) bytes = __builtin_bswap64(bytes);
  return bytes * 0x0102040810204080 >> 56;
}

template <class K, class Test>
inline int find(const K* bits, int n, uint16_t* places, const Test& test) {
  int found = 0, i = 0;
  for (; i + kGroup <= n; i += kGroup) {
    uint8_t flags[kGroup];
    for (int k = 0; k < kGroup; ++k) flags[k] = test(key(bits[i + k]));
    uint64_t mask = 0;
    for (int k = 0; k < kGroup; k += 8) mask |= pack(flags + k) << k;
    for (; mask; mask &= mask - 1) places[found++] = uint16_t(i + std::countr_zero(mask));
  }
  for (; i < n; ++i) {
    places[found] = uint16_t(i);
    found += test(key(bits[i]));
  }
  return found;
}

template <class K>
CLONES int find_above_any(const K* bits, int n, K limit, uint16_t* places) {
  return find(bits, n, places, [limit](K k) { return k > limit; });
}

template <class K>
CLONES int find_between_any(const K* bits, int n, K low, K high, uint16_t* places, Edges& edges) {
  K above = 0, at_high = 0, at_low = 0;  // n fits into 15 bits
  for (int i = 0; i < n; ++i) {
    const K k = key(bits[i]);
    above += K(k > high);
    at_high += K(k == high);
    at_low += K(k == low);
  }
  edges.above += above;
  edges.high += at_high;
  edges.low += at_low;
  return find(bits, n, places, [low, high](K k) { return K(k > low) & K(k < high); });
}

}  // namespace

template <class K>
int find_above(const K* bits, int n, K limit, uint16_t* places) {
  if constexpr (kAvx512Keys<K>)
    if (has_avx512()) return find_above_avx512(bits, n, limit, places);
  return find_above_any(bits, n, limit, places);
}

template <class K>
int find_between(const K* bits, int n, K low, K high, uint16_t* places, Edges& edges) {
  if constexpr (kAvx512Keys<K>)
    if (has_avx512()) return find_between_avx512(bits, n, low, high, places, edges);
  return find_between_any(bits, n, low, high, places, edges);
}

template int find_above(const int16_t*, int, int16_t, uint16_t*);
template int find_above(const int32_t*, int, int32_t, uint16_t*);
template int find_above(const int64_t*, int, int64_t, uint16_t*);
template int find_between(const int16_t*, int, int16_t, int16_t, uint16_t*, Edges&);
template int find_between(const int32_t*, int, int32_t, int32_t, uint16_t*, Edges&);
template int find_between(const int64_t*, int, int64_t, int64_t, uint16_t*, Edges&);

}  // namespace paramcorrupt
