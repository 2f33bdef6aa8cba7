#pragma once

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

// Emissions [n][4]; two symbols and rows more can be read at either end.
template <int LEXICONS, bool SKIP>
CLONES void emit(const Tables& t, const Rows& rows, int64_t n, int16_t* __restrict emission) {
  const auto row = [](const int8_t* at) {
    Byte4 four;
    std::memcpy(&four, at, 4);
    return __builtin_convertvector(four, Short4);
  };
  const auto wide = [](const int16_t* at) {
    Short4 four;
    std::memcpy(&four, at, 8);
    return four;
  };
  const uint16_t* s = rows.symbols;
  const uint32_t* b = rows.bigram;
  for (int64_t i = 0; i < n; ++i) {
    Short4 sum = row(t.unigram + 20 * size_t(s[i - 2])) + row(t.unigram + 20 * size_t(s[i - 1]) + 4);
    sum += row(t.unigram + 20 * size_t(s[i]) + 8) + row(t.unigram + 20 * size_t(s[i + 1]) + 12);
    sum += row(t.unigram + 20 * size_t(s[i + 2]) + 16) + row(t.bigram + 16 * size_t(b[i - 2]));
    sum += row(t.bigram + 16 * size_t(b[i - 1]) + 4) + row(t.bigram + 16 * size_t(b[i]) + 8);
    sum += row(t.bigram + 16 * size_t(b[i + 1]) + 12);
    if constexpr (SKIP) sum += row(t.skip + 4 * size_t(rows.skip[i]));
    for (int k = 0; k < LEXICONS; ++k) {
      sum += wide(t.joint[k] + 4 * size_t(rows.joint[k][i])) + row(t.charmark[k] + 4 * size_t(rows.charmark[k][i]));
    }
    std::memcpy(emission + 4 * i, &sum, 8);
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

// Adds the rows that one line fires to `sums` [gate.width], for symbols that follow one another after `before` (0 at
// the beginning of the line).
inline void add_gate(const Gate& gate, const uint16_t* symbols, int64_t n, int32_t before, int64_t* sums) {
  for (int base = 0; base < gate.width; base += 4) {
    Int4 low = {0, 0, 0, 0};
    int64_t since = 0;
    int32_t last = before;
    const auto add = [&](uint32_t a, uint32_t b) {
      Short4 row;
      std::memcpy(&row, gate.table + size_t(Gate::row(a, b)) * gate.width + base, 8);
      low += __builtin_convertvector(row, Int4);
    };
    for (int64_t i = 0; i < n; ++i) {
      add(symbols[i], 0);
      if (last >= 0) add(uint32_t(last), symbols[i]);
      last = symbols[i];
      if (++since == 16384) {
        for (int k = 0; k < 4; ++k) sums[base + k] += low[k];
        low = Int4{0, 0, 0, 0};
        since = 0;
      }
    }
    for (int k = 0; k < 4; ++k) sums[base + k] += low[k];
  }
}

}  // namespace cws
