#pragma once

#include <array>
#include <cstdint>

// Philox4x32-10 (Salmon et al. 2011): random words as a function of a key and a counter, so that samples depend on
// where a word stands in the corpus and on nothing else.
namespace sgns {

inline constexpr int kLanes = 16;

struct Counter {
  uint32_t sentence, epoch;  // the middle two words; the first is a position, the last a stream
};

inline Counter counter(uint64_t sentence, uint32_t epoch) {
  return {uint32_t(sentence), uint32_t(sentence >> 32 & 0xffff) | epoch << 16};
}

// Sixteen (position, stream) at once: out[r][lane].
using Philox16 = void (*)(uint64_t seed, Counter middle, const uint32_t* position, const uint32_t* stream,
                          uint32_t (*out)[kLanes]);

inline std::array<uint32_t, 4> philox(uint64_t seed, Counter middle, uint32_t position, uint32_t stream) {
  uint32_t a = position, b = middle.sentence, c = middle.epoch, d = stream;
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    const uint64_t p = uint64_t(0xD2511F53u) * a, q = uint64_t(0xCD9E8D57u) * c;
    a = uint32_t(q >> 32) ^ b ^ k0;
    b = uint32_t(q);
    c = uint32_t(p >> 32) ^ d ^ k1;
    d = uint32_t(p);
  }
  return {a, b, c, d};
}

}  // namespace sgns
