#pragma once

#include <bit>
#include <cmath>

#include "tiles.h"

// Stochastic rounding to bfloat16 and float16.
namespace gasam {

static_assert(std::endian::native == std::endian::little);  // draws are the halves of words, the low one first

inline constexpr int kBlock = 8;  // elements that one call of Philox serves

// Philox4x32-10 (Salmon et al., SC 2011).
CLONES inline void philox(uint64_t key, uint64_t first, uint32_t stream, uint32_t* __restrict words, int blocks) {
  for (int i = 0; i < blocks; ++i) {
    const uint64_t counter = first + i;
    uint32_t x0 = uint32_t(counter), x1 = uint32_t(counter >> 32), x2 = stream, x3 = 0;
    uint32_t key0 = uint32_t(key), key1 = uint32_t(key >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const uint64_t a = uint64_t(x0) * 0xD2511F53, b = uint64_t(x2) * 0xCD9E8D57;
      x0 = uint32_t(b >> 32) ^ x1 ^ key0;
      x1 = uint32_t(b);
      x2 = uint32_t(a >> 32) ^ x3 ^ key1;
      x3 = uint32_t(a);
      key0 += 0x9E3779B9;
      key1 += 0xBB67AE85;
    }
    words[4 * i] = x0;
    words[4 * i + 1] = x1;
    words[4 * i + 2] = x2;
    words[4 * i + 3] = x3;
  }
}

inline BFloat16 round_by(float x, uint32_t draw, BFloat16) {
  return {uint16_t((std::bit_cast<uint32_t>(x) + draw) >> 16)};
}

inline Half round_by(float x, uint32_t draw, Half) {
  const uint32_t exponent = std::bit_cast<uint32_t>(x) >> 23 & 0xFF;
  const uint32_t quantum = (exponent > 113 ? exponent : 113) - 10;  // its exponent: 2^-24 below the normal numbers
  const float units = x * std::bit_cast<float>((254 - quantum) << 23) + float(int32_t(draw >> 3)) * 0x1p-13f;
  return narrow<Half>(std::copysign(std::floor(units) * std::bit_cast<float>(quantum << 23), x));
}

template <class S>
inline constexpr float kLargest = std::is_same_v<S, Half> ? 65504.0f : 0x1.FEp127f;

// What is not finite, or would not be, is rounded to nearest.
template <class S>
CLONES void round_stochastically(const float* __restrict x, const uint16_t* __restrict draws, S* __restrict to, int n) {
  for (int i = 0; i < n; ++i) {
    const S nearest = narrow<S>(x[i]), drawn = round_by(x[i], draws[i], S());
    to[i].bits = std::abs(x[i]) <= kLargest<S> ? drawn.bits : nearest.bits;
  }
}

// The draws of one tensor.
struct Draws {
  uint64_t key;
  uint32_t stream;

  // Rounds elements begin .. begin + n of it.
  template <class S>
  void round(const Arithmetic<S>* x, S* to, int64_t begin, int n) const {
    if constexpr (kSmall<S>) {
      alignas(64) uint32_t words[4 * (kTile / kBlock + 1)];
      const int64_t first = begin / kBlock, last = (begin + n - 1) / kBlock;
      philox(key, uint64_t(first), stream, words, int(last - first + 1));
      uint16_t draws[2 * std::size(words)];
      std::memcpy(draws, words, sizeof(draws));
      round_stochastically(x, draws + begin % kBlock, to, n);
    }
  }
};

}  // namespace gasam
