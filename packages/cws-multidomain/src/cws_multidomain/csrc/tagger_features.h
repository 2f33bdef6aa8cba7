#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "text.h"

// From words to the keys of their features: what training and tagging share.
namespace cws::tagger {

// One code point for all that count as the same: full-width forms as ASCII, then whatever pairs the model has
// (traditional to simplified), then all digits as one and all Latin letters as one.
class Folding {
 public:
  Folding() : basic_(0x10000) {
    for (uint32_t c = 0; c < basic_.size(); ++c) basic_[c] = static_cast<uint16_t>(ascii(c));
  }

  void add(uint32_t from, uint32_t to) {
    if (from < basic_.size() && to < basic_.size()) {
      basic_[from] = static_cast<uint16_t>(ascii(to));
    } else {
      rest_[from] = ascii(to);
    }
  }

  uint32_t operator()(uint32_t c) const {
    if (!rest_.empty()) [[unlikely]] {
      if (const auto it = rest_.find(c); it != rest_.end()) return it->second;
    }
    return c < basic_.size() ? basic_[c] : c;
  }

 private:
  static uint32_t ascii(uint32_t c) {
    c = fold(c);
    return is_digit(c) ? '0' : is_latin(c) ? 'a' : c;
  }

  std::vector<uint16_t> basic_;
  std::unordered_map<uint32_t, uint32_t> rest_;  // pairs beyond the basic plane
};

inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 32)) * 0xD6E8FEB86659FD93;
  x = (x ^ (x >> 32)) * 0xD6E8FEB86659FD93;
  return x ^ (x >> 32);
}

inline uint64_t join(uint64_t a, uint64_t b) { return mix(a * 0x9E3779B97F4A7C15 + b); }

// What the features of a word and of its neighbours need to know of it.
struct Word {
  uint64_t all = 0;                         // hash of the whole word
  uint64_t prefix[3] = {}, suffix[3] = {};  // of its first and last 1, 2, 3 characters; 0 if it has fewer
  uint64_t shape = 0;                       // of its character classes, runs as one
  uint32_t length = 0;                      // capped at 5
};

inline constexpr uint32_t kFirst = 0x110000, kLast = 0x110001;  // words before and after the sentence

inline uint32_t character_class(uint32_t c) {
  if (c == '0' || c == 'a') return c;
  if (c < 0x80 || (c >= 0x2000 && c < 0x2070) || (c >= 0x3001 && c < 0x3040)) return '.';
  if ((c >= 0x4E00 && c < 0xA000) || (c >= 0x3400 && c < 0x4DC0) || (c >= 0x20000 && c < 0x32000)) return 'h';
  return 'o';
}

inline Word describe(std::span<const uint32_t> characters) {  // folded
  Word word;
  uint64_t h = 1;
  uint32_t shape = 0;
  const size_t n = characters.size();
  for (size_t i = 0; i < n; ++i) {
    h = join(h, characters[i]);
    if (i < 3) word.prefix[i] = h;
    const uint32_t c = character_class(characters[i]);
    if ((shape & 0xFF) != c) shape = shape << 8 | c;
  }
  word.all = h;
  h = 2;
  for (size_t i = 0; i < n && i < 3; ++i) word.suffix[i] = h = join(h, characters[n - 1 - i]);
  word.shape = join(3, shape);
  word.length = static_cast<uint32_t>(n < 5 ? n : 5);
  return word;
}

inline Word edge(uint32_t symbol) {
  Word word;
  word.all = join(0, symbol);
  return word;
}

inline constexpr int kFeatures = 20;  // most that a word has

// Keys of the features of words[0], which has two words or edges on either side; returns their number. Each has its
// number in the key: a change makes models unreadable.
inline int features(const Word* words, uint64_t keys[kFeatures]) {
  const Word &a = words[-2], &b = words[-1], &w = words[0], &c = words[1], &d = words[2];
  int n = 0;
  const auto put = [&](uint64_t feature, uint64_t value) { keys[n++] = join(value, feature); };
  put(16, 0);
  put(17, w.all);
  put(18, b.all);
  put(19, c.all);
  put(20, a.all);
  put(21, d.all);
  put(22, join(b.all, w.all));
  put(23, join(w.all, c.all));
  put(24, join(b.all, c.all));
  for (int i = 0; i < 3 && w.prefix[i] != 0; ++i) put(25 + i, w.prefix[i]);
  for (int i = 0; i < 3 && w.suffix[i] != 0; ++i) put(28 + i, w.suffix[i]);
  put(31, w.length);
  put(32, join(w.suffix[0], w.length));
  if (b.suffix[0] != 0) put(33, b.suffix[0]);
  put(34, join(b.shape, b.length));
  put(35, join(c.shape, c.length));
  return n;
}

// The sentence's words with two edges on either side.
inline void frame(std::vector<Word>& words) {
  words.insert(words.begin(), 2, edge(kFirst));
  words.insert(words.end(), 2, edge(kLast));
}

}  // namespace cws::tagger
