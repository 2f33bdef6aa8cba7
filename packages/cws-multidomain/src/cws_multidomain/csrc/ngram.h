#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "model.h"
#include "simd.h"
#include "viterbi.h"

// From symbols to emissions: probes first, sums afterwards. Loops have no branch that depends on the text, so that many
// cache misses are under way at once.
namespace cws {

// rows[i]: the row of (symbols[i], symbols[i + 1]).
CLONES inline void find_pairs(const Hashed& table, const uint16_t* __restrict symbols, int64_t n,
                              uint32_t* __restrict rows) {
  for (int64_t i = 0; i < n; ++i) rows[i] = table(uint32_t(symbols[i]) << 16 | symbols[i + 1]);
}

// rows[i]: the row of (symbols[i - 1], symbols[i + 1]).
CLONES inline void find_skips(const Hashed& table, const uint16_t* __restrict symbols, int64_t n,
                              uint32_t* __restrict rows) {
  for (int64_t i = 0; i < n; ++i) rows[i] = table(uint32_t(symbols[i - 1]) << 16 | symbols[i + 1]);
}

// From begins, ends, insides: the rows of joint and of charmark. One mark more can be read at either end.
CLONES inline void find_mark_rows(const Hashed& table, const uint16_t* __restrict symbols,
                                  const uint8_t* __restrict begins, const uint8_t* __restrict ends,
                                  const uint8_t* __restrict insides, int64_t n, uint16_t* __restrict joint,
                                  uint32_t* __restrict charmark) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t m = 25u * begins[i] + 5u * ends[i] + insides[i];
    joint[i] = uint16_t((ends[i - 1] * kMarks + m) * 5 + begins[i + 1]);
  }
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t m = 25u * begins[i] + 5u * ends[i] + insides[i];
    charmark[i] = table(m << 16 | symbols[i]);
  }
}

struct Rows {
  const uint16_t* symbols;
  const uint32_t* bigram;
  const uint32_t* skip;
  const uint16_t* joint[kMostLexicons];
  const uint32_t* charmark[kMostLexicons];
};

using Byte8 = int8_t __attribute__((vector_size(8)));
using Short8 = int16_t __attribute__((vector_size(16)));
using Int8 = int32_t __attribute__((vector_size(32)));

// Two rows of 4.
inline Short8 side_by_side(const int16_t* low, const int16_t* high) {
  using Long2 = uint64_t __attribute__((vector_size(16)));
  uint64_t a, b;
  std::memcpy(&a, low, 8);
  std::memcpy(&b, high, 8);
  return Short8(Long2{a, b});
}

// Emissions of two positions at a time; for an odd n one more is written. The rows of d and d + 1 lie side by side, so
// 8 bytes of a symbol's rows serve position i + 1 (low half) and position i (high half). 3 symbols and rows more can be
// read at either end.
template <int LEXICONS, bool SKIP>
CLONES void emit(const Tables& t, const Rows& rows, int64_t n, int16_t* __restrict emission) {
  const auto widened = [](uint64_t eight) {
    Byte8 bytes;
    std::memcpy(&bytes, &eight, 8);
    return __builtin_convertvector(bytes, Short8);
  };
  const auto both = [&](const int8_t* at) {
    uint64_t eight;
    std::memcpy(&eight, at, 8);
    return widened(eight);
  };
  const auto halves = [&](const int8_t* low, const int8_t* high) {
    uint32_t a, b;
    std::memcpy(&a, low, 4);
    std::memcpy(&b, high, 4);
    return widened(a | uint64_t(b) << 32);
  };
  const auto symbol = [&](int64_t i) { return t.unigram + 20 * size_t(rows.symbols[i]); };
  const auto pair = [&](int64_t i) { return t.bigram + 16 * size_t(rows.bigram[i]); };
  const int8_t *s0 = symbol(-2), *s1 = symbol(-1), *s2 = symbol(0), *s3 = symbol(1);
  const int8_t *b0 = pair(-2), *b1 = pair(-1), *b2 = pair(0);
  for (int64_t i = 0; i < n; i += 2) {
    const int8_t *s4 = symbol(i + 2), *s5 = symbol(i + 3), *b3 = pair(i + 1), *b4 = pair(i + 2);
    Short8 sum = both(s1) + both(s2 + 4) + both(s3 + 8) + both(s4 + 12) + halves(s5 + 16, s0);
    sum += both(b1) + both(b2 + 4) + both(b3 + 8) + halves(b4 + 12, b0);
    if constexpr (SKIP) sum += halves(t.skip + 4 * size_t(rows.skip[i + 1]), t.skip + 4 * size_t(rows.skip[i]));
    for (int k = 0; k < LEXICONS; ++k) {
      const uint16_t* j = rows.joint[k] + i;
      const uint32_t* c = rows.charmark[k] + i;
      sum += side_by_side(t.joint[k] + 4 * size_t(j[1]), t.joint[k] + 4 * size_t(j[0]));
      sum += halves(t.charmark[k] + 4 * size_t(c[1]), t.charmark[k] + 4 * size_t(c[0]));
    }
    const Short8 in_order = __builtin_shufflevector(sum, sum, 4, 5, 6, 7, 0, 1, 2, 3);
    std::memcpy(emission + 4 * i, &in_order, 16);
    s0 = s2, s1 = s3, s2 = s4, s3 = s5;
    b0 = b2, b1 = b3, b2 = b4;
  }
}

// Adds what a domain adds to the rows of pairs. Few rows are touched, so they are looked for first, in a bitmap.
CLONES inline void emit_delta(const Delta& delta, const uint32_t* __restrict bigram, int64_t n,
                              int16_t* __restrict emission, uint32_t* __restrict room) {
  int64_t found = 0;
  for (int64_t i = -2; i <= n; ++i) {
    room[found] = uint32_t(i + 2);
    found += delta.bits[bigram[i] >> 6] >> (bigram[i] & 63) & 1;
  }
  for (int64_t k = 0; k < found; ++k) {
    const int64_t i = int64_t(room[k]) - 2;
    const uint32_t slot = bigram[i];
    const uint64_t before = delta.bits[slot >> 6] & ((uint64_t(1) << (slot & 63)) - 1);
    const int8_t* row = delta.rows + 16 * (size_t(delta.ranks[slot >> 6]) + size_t(std::popcount(before)));
    int16_t* to = emission + 4 * (i - 1);  // positions i - 1 .. i + 2, as the row has them
    for (int j = 0; j < 16; ++j) to[j] = int16_t(to[j] + row[j]);
  }
}

inline void emit(int lexicons, const Tables& t, const Rows& rows, int64_t n, int16_t* emission) {
  if (t.skip) {
    if (lexicons == 0) return emit<0, true>(t, rows, n, emission);
    if (lexicons == 1) return emit<1, true>(t, rows, n, emission);
    return emit<2, true>(t, rows, n, emission);
  }
  if (lexicons == 0) return emit<0, false>(t, rows, n, emission);
  if (lexicons == 1) return emit<1, false>(t, rows, n, emission);
  return emit<2, false>(t, rows, n, emission);
}

// Adds the rows that one line fires to `sums` [gate.width], for symbols that follow one another after `before` (-1 at
// the beginning of the line).
CLONES inline void add_gate(const Gate& gate, const uint16_t* symbols, int64_t n, int32_t before, int64_t* sums) {
  constexpr int64_t kStretch = 16384;  // so many values of int16 fit an int32
  if (n == 0) return;
  for (int base = 0; base < gate.width; base += 4) {
    const auto row = [&](uint32_t a, uint32_t b) { return gate.table + size_t(Gate::row(a, b)) * gate.width + base; };
    for (int64_t begin = 0; begin < n; begin += kStretch) {
      Int8 sum = {};
      const auto add = [&](const int16_t* one, const int16_t* two) {
        sum += __builtin_convertvector(side_by_side(one, two), Int8);
      };
      const int64_t end = std::min(n, begin + kStretch);
      static constexpr int16_t kZero[4] = {};
      const int32_t last = begin ? symbols[begin - 1] : before;
      add(row(symbols[begin], 0), last < 0 ? kZero : row(uint32_t(last), symbols[begin]));
      for (int64_t i = begin + 1; i < end; ++i) add(row(symbols[i], 0), row(symbols[i - 1], symbols[i]));
      for (int k = 0; k < 8; ++k) sums[base + k % 4] += sum[k];
    }
  }
}

}  // namespace cws
