#pragma once

#ifdef SGNS_X86
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3,prfchw")
namespace sgns::avx2 {

inline constexpr int kBytes = 32;
inline __attribute__((always_inline)) __m256 multiply_add(__m256 a, __m256 b, __m256 c) {
  return _mm256_fmadd_ps(a, b, c);
}
inline __attribute__((always_inline)) __m256d multiply_add(__m256d a, __m256d b, __m256d c) {
  return _mm256_fmadd_pd(a, b, c);
}
inline __attribute__((always_inline)) __m256 larger(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
inline __attribute__((always_inline)) __m256d larger(__m256d a, __m256d b) { return _mm256_max_pd(a, b); }
template <class V>
inline __attribute__((always_inline)) V multiply_low(V a, uint32_t b) {
  return V(_mm256_mul_epu32(__m256i(a), _mm256_set1_epi64x(int64_t(b))));
}
#include "philox_body.h"
#include "tile_body.h"

}  // namespace sgns::avx2
#pragma GCC pop_options
#endif
