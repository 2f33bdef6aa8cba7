#pragma once

#include <numeric>

#include "find.h"

#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>
#endif

// Keys of 32 bits by AVX-512: masks of 16 keys, then which of these are not empty, then their places. The only branch
// that is taken at random is the end of the last loop.
namespace paramcorrupt {

#if defined(__x86_64__) && defined(__linux__)
#define AVX512 __attribute__((target("avx512f,popcnt,bmi")))

template <class K>
inline constexpr bool kAvx512Keys = std::is_same_v<K, int32_t>;

inline bool has_avx512() { return __builtin_cpu_supports("avx512f"); }

struct Masks {
  alignas(64) uint16_t of[kBlock / 16];
  alignas(64) int32_t filled[kBlock / 16 + 16];
};

inline constexpr __mmask16 kEvery = 0xFFFF;  // GCC warns of what the functions without a mask leave undefined

AVX512 inline __m512i counted_up() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

// The places that the bits of the masks of `vectors` times 16 keys stand for.
AVX512 inline int places_of(Masks& masks, int vectors, uint16_t* places) {
  for (int v = vectors; v % 16; ++v) masks.of[v] = 0;
  int filled = 0;
  for (int v = 0; v < vectors; v += 16) {
    const __m512i some =
        _mm512_maskz_cvtepu16_epi32(kEvery, _mm256_load_si256(reinterpret_cast<const __m256i*>(masks.of + v)));
    const __mmask16 any = _mm512_test_epi32_mask(some, some);
    const __m512i number = _mm512_add_epi32(counted_up(), _mm512_set1_epi32(v));
    _mm512_storeu_si512(masks.filled + filled, _mm512_maskz_compress_epi32(any, number));
    filled += __builtin_popcount(any);
  }
  int found = 0;
  for (int j = 0; j < filled; ++j) {
    const int v = masks.filled[j];
    const __mmask16 mask = masks.of[v];
    const __m512i place = _mm512_add_epi32(counted_up(), _mm512_set1_epi32(16 * v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(places + found),
                        _mm512_maskz_cvtepi32_epi16(kEvery, _mm512_maskz_compress_epi32(mask, place)));
    found += __builtin_popcount(mask);
  }
  return found;
}

AVX512 inline int64_t sum_of(__m512i counts) {
  alignas(64) int32_t lanes[16];
  _mm512_store_si512(lanes, counts);
  return std::accumulate(lanes, lanes + 16, 0);
}

AVX512 inline __m512i keys_at(const int32_t* bits) {
  return _mm512_and_si512(_mm512_loadu_si512(bits), _mm512_set1_epi32(kLastKey<int32_t>));
}

// Asks for keys that come much later, as the processor's own prefetching of a single stream does not.
AVX512 inline void fetch(const int32_t* bits) { __builtin_prefetch(bits + 2 * kBlock, 0, 2); }

AVX512 inline int find_above_avx512(const int32_t* bits, int n, int32_t limit, uint16_t* places) {
  const __m512i limits = _mm512_set1_epi32(limit);
  Masks masks;
  const int vectors = n / 16;
  for (int v = 0; v < vectors; ++v) {
    fetch(bits + 16 * v);
    masks.of[v] = _mm512_cmpgt_epi32_mask(keys_at(bits + 16 * v), limits);
  }
  int found = places_of(masks, vectors, places);
  for (int i = 16 * vectors; i < n; ++i) {
    places[found] = uint16_t(i);
    found += key(bits[i]) > limit;
  }
  return found;
}

AVX512 inline int find_between_avx512(const int32_t* bits, int n, int32_t low, int32_t high, uint16_t* places,
                                      Edges& edges) {
  const __m512i lows = _mm512_set1_epi32(low), highs = _mm512_set1_epi32(high), one = _mm512_set1_epi32(1);
  __m512i above = _mm512_setzero_si512(), at_high = above, at_low = above;
  Masks masks;
  const int vectors = n / 16;
  for (int v = 0; v < vectors; ++v) {
    fetch(bits + 16 * v);
    const __m512i k = keys_at(bits + 16 * v);
    masks.of[v] = _mm512_mask_cmplt_epi32_mask(_mm512_cmpgt_epi32_mask(k, lows), k, highs);
    above = _mm512_mask_add_epi32(above, _mm512_cmpgt_epi32_mask(k, highs), above, one);
    at_high = _mm512_mask_add_epi32(at_high, _mm512_cmpeq_epi32_mask(k, highs), at_high, one);
    at_low = _mm512_mask_add_epi32(at_low, _mm512_cmpeq_epi32_mask(k, lows), at_low, one);
  }
  edges.above += sum_of(above);
  edges.high += sum_of(at_high);
  edges.low += sum_of(at_low);
  int found = places_of(masks, vectors, places);
  for (int i = 16 * vectors; i < n; ++i) {
    const int32_t k = key(bits[i]);
    edges.above += k > high;
    edges.high += k == high;
    edges.low += k == low;
    places[found] = uint16_t(i);
    found += low < k && k < high;
  }
  return found;
}

#undef AVX512
#else
template <class K>
inline constexpr bool kAvx512Keys = false;
#endif

}  // namespace paramcorrupt
