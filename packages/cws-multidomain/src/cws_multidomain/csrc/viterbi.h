#pragma once

#include <cstdint>
#include <limits>

#include "rules.h"
#include "simd.h"

// The best tags of a sentence. Every tag has two legal predecessors: E, S of B and S; B, M of M and E.
namespace cws {

enum Tag : uint8_t { kB, kM, kE, kS };

using Int4 = int32_t __attribute__((vector_size(16)));
using Short4 = int16_t __attribute__((vector_size(8)));
using Byte4 = int8_t __attribute__((vector_size(4)));

// Lanes are the tags B, M, E, S. Of equal scores the first predecessor wins, as in the reference.
// `back` has 4 bytes per character, `tags` 1. Scores grow by at most 1.8e4 per character, so they are brought back to 0
// every kStretch characters. A tag that a mask forbids costs more than any path can gain around it.
CLONES inline void viterbi(const int16_t* __restrict emission, const uint8_t* __restrict mask, int64_t n,
                           const int32_t* transition, uint8_t* __restrict back, uint8_t* __restrict tags) {
  constexpr int64_t kStretch = 1 << 13;
  constexpr int32_t kNever = 1 << 28;
  const auto a = [&](int from, int to) { return transition[4 * from + to]; };
  const Int4 from_first = {a(kE, kB), a(kB, kM), a(kB, kE), a(kE, kS)};
  const Int4 from_second = {a(kS, kB), a(kM, kM), a(kM, kE), a(kS, kS)};
  const Int4 first_tag = {kE, kB, kB, kE};
  const Int4 penalties[4] = {{0, 0, 0, 0}, {kNever, 0, 0, kNever}, {0, kNever, kNever, 0}, {kNever, 0, 0, kNever}};
  const auto row = [&](int64_t i) {
    Short4 e;
    __builtin_memcpy(&e, emission + 4 * i, 8);
    return __builtin_convertvector(e, Int4);
  };
  Int4 score = row(0) - penalties[kStart];
  for (int64_t i = 1; i < n;) {
    const int64_t end = n - i > kStretch ? i + kStretch : n;
    for (; i < end; ++i) {
      const Int4 one = __builtin_shufflevector(score, score, 2, 0, 0, 2) + from_first;
      const Int4 two = __builtin_shufflevector(score, score, 3, 1, 1, 3) + from_second;
      const Int4 second = two > one;
      const Byte4 previous = __builtin_convertvector(first_tag - second, Byte4);
      __builtin_memcpy(back + 4 * i, &previous, 4);
      score = (second ? two : one) + (row(i) - penalties[mask[i]]);
    }
    int32_t best = score[0];
    for (int y = 1; y < 4; ++y) best = score[y] > best ? score[y] : best;
    for (int y = 0; y < 4; ++y) score[y] = score[y] - best < -kNever ? -kNever : score[y] - best;
  }
  uint32_t y = score[kE] >= score[kS] ? kE : kS;
  for (int64_t i = n - 1; i > 0; --i) {
    tags[i] = uint8_t(y);
    y = back[4 * i + y];
  }
  tags[0] = uint8_t(y);
}

}  // namespace cws
