#pragma once

#ifdef SGNS_X86
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prfchw,prefer-vector-width=512")
namespace sgns::avx512 {

inline constexpr int kBytes = 64;
inline __attribute__((always_inline)) __m512 multiply_add(__m512 a, __m512 b, __m512 c) {
  return _mm512_fmadd_ps(a, b, c);
}
inline __attribute__((always_inline)) __m512d multiply_add(__m512d a, __m512d b, __m512d c) {
  return _mm512_fmadd_pd(a, b, c);
}
inline __attribute__((always_inline)) __m256 multiply_add(__m256 a, __m256 b, __m256 c) {
  return _mm256_fmadd_ps(a, b, c);
}
inline __attribute__((always_inline)) __m256 larger(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
inline __attribute__((always_inline)) __m512d larger(__m512d a, __m512d b) { return a > b ? a : b; }
template <class V>
inline __attribute__((always_inline)) V multiply_low(V a, uint32_t b) {
  return V(_mm512_maskz_mul_epu32(0xff, __m512i(a), _mm512_set1_epi64(int64_t(b))));
}
#include "philox_body.h"
#include "tile_body.h"

}  // namespace sgns::avx512
#pragma GCC pop_options
#endif
