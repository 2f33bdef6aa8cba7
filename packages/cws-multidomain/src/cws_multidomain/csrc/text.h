#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

// Code points, and the symbols that the model sees in their place.
namespace cws {

inline constexpr uint16_t kOther = 0;   // unknown: it has no weights
inline constexpr uint16_t kBefore = 1;  // the positions before a sentence
inline constexpr uint16_t kAfter = 2;   // the positions after it
inline constexpr uint16_t kDigit = 3;
inline constexpr uint16_t kLatin = 4;
inline constexpr uint16_t kCharacters = 5;  // the first of the model's own characters

// Full-width forms read as ASCII.
constexpr uint32_t fold(uint32_t c) { return c - 0xFF01u < 0x5Eu ? c - 0xFEE0u : c; }

constexpr bool is_digit(uint32_t folded) { return folded - '0' < 10u; }
constexpr bool is_latin(uint32_t folded) { return (folded | 0x20) - 'a' < 26u; }

// str.isspace.
constexpr bool is_space(uint32_t c) {
  if (c <= 0x20) return c == 0x20 || c - 0x09 < 5u || c - 0x1C < 4u;
  return c == 0x85 || c == 0xA0 || c == 0x1680 || c - 0x2000u < 11u || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

constexpr bool is_surrogate(uint32_t c) { return c - 0xD800u < 0x800u; }
constexpr int utf8_length(uint32_t c) { return 1 + (c >= 0x80) + (c >= 0x800) + (c >= 0x10000); }
constexpr int utf16_length(uint32_t c) { return 1 + (c >= 0x10000); }

// One code point of UTF-8 at `at`, which is moved past it. Returns false, and leaves `at`, where the text is not UTF-8.
inline bool decode_utf8(const uint8_t* text, int64_t size, int64_t& at, uint32_t& c) {
  const uint8_t* p = text + at;
  const int64_t left = size - at;
  const uint32_t lead = p[0];
  const auto next = [&](int k) { return uint32_t(p[k]) ^ 0x80; };  // below 0x40 in a continuation
  if (lead < 0x80) {
    c = lead;
    at += 1;
    return true;
  }
  if ((lead & 0xF0) == 0xE0 && left >= 3) {
    c = (lead & 0x0F) << 12 | next(1) << 6 | next(2);
    if (next(1) >= 0x40 || next(2) >= 0x40 || c < 0x800 || is_surrogate(c)) return false;
    at += 3;
    return true;
  }
  if ((lead & 0xE0) == 0xC0 && left >= 2) {
    c = (lead & 0x1F) << 6 | next(1);
    if (next(1) >= 0x40 || c < 0x80) return false;
    at += 2;
    return true;
  }
  if ((lead & 0xF8) == 0xF0 && left >= 4) {
    c = (lead & 0x07) << 18 | next(1) << 12 | next(2) << 6 | next(3);
    if (next(1) >= 0x40 || next(2) >= 0x40 || next(3) >= 0x40 || c < 0x10000 || c > 0x10FFFF) return false;
    at += 4;
    return true;
  }
  return false;
}

// Symbols of code points. The table of the basic plane has folding, digits and Latin letters in it.
struct SymbolMap {
  const uint16_t* plane = nullptr;      // [65536]
  const uint32_t* others = nullptr;     // [n_others], code points beyond the basic plane, sorted
  const uint16_t* of_others = nullptr;  // [n_others]
  int64_t n_others = 0;

  uint16_t operator()(uint32_t c) const { return c < 0x10000 ? plane[c] : beyond(c); }

  uint16_t beyond(uint32_t c) const {
    const uint32_t* at = std::lower_bound(others, others + n_others, c);
    return at != others + n_others && *at == c ? of_others[at - others] : kOther;
  }
};

}  // namespace cws
