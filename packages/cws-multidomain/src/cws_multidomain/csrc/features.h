#pragma once

#include <bit>
#include <cstdint>
#include <vector>

// The features that fire at a position, and their numbers.
namespace cws {

// Each kind is told apart by the upper half of its keys. What a lexicon adds follows, kLexiconKinds to a lexicon.
inline constexpr uint32_t kUnigram = 1;  // + d + 2 of a symbol at i + d
inline constexpr uint32_t kBigram = 6;   // + d + 2 of the symbols at i + d and i + d + 1
inline constexpr uint32_t kNgrams = 9;   // of both kinds at a position
inline constexpr uint32_t kLexicon = 16;
inline constexpr uint32_t kLexiconKinds = 8;
enum LexiconKind : uint32_t { kBegins, kEnds, kInside, kMark, kMarkSymbol, kMarkAfter, kMarkBefore };
inline constexpr int kLexiconFeatures = 7;

constexpr uint64_t feature_key(uint32_t kind, uint32_t a, uint32_t b = 0) { return uint64_t{kind} << 32 | a << 16 | b; }

inline int feature_count(int lexicons) { return int(kNgrams) + lexicons * kLexiconFeatures; }

// The keys of position i of a sentence of n symbols; marks holds 25 b + 5 e + k for each lexicon. N-grams come first.
inline void feature_keys(const uint16_t* symbols, const std::vector<const uint8_t*>& marks, int64_t n, int64_t i,
                         uint64_t* keys) {
  const auto symbol = [&](int64_t j) -> uint32_t { return j < 0 ? 1 : j >= n ? 2 : symbols[j]; };
  for (int d = -2; d <= 2; ++d) *keys++ = feature_key(kUnigram + d + 2, symbol(i + d));
  for (int d = -2; d <= 1; ++d) *keys++ = feature_key(kBigram + d + 2, symbol(i + d), symbol(i + d + 1));
  uint32_t kind = kLexicon;
  for (const uint8_t* of : marks) {
    const uint32_t m = of[i];
    *keys++ = feature_key(kind + kBegins, m / 25);
    *keys++ = feature_key(kind + kEnds, m / 5 % 5);
    *keys++ = feature_key(kind + kInside, m % 5);
    *keys++ = feature_key(kind + kMark, m);
    *keys++ = feature_key(kind + kMarkSymbol, m, symbols[i]);
    *keys++ = feature_key(kind + kMarkAfter, m, i + 1 < n ? of[i + 1] / 25 : 0);
    *keys++ = feature_key(kind + kMarkBefore, m, i > 0 ? of[i - 1] / 5 % 5 : 0);
    kind += kLexiconKinds;
  }
}

// Numbers keys in the order in which they come.
class FeatureMap {
 public:
  static constexpr uint32_t kAbsent = ~uint32_t{0};

  uint32_t add(uint64_t key) {
    if (2 * keys_.size() >= slots_.size()) grow();
    uint32_t& slot = slots_[find(key)];
    if (slot == kAbsent) {
      slot = size();
      keys_.push_back(key);
    }
    return slot;
  }
  uint32_t get(uint64_t key) const { return slots_.empty() ? kAbsent : slots_[find(key)]; }
  uint32_t size() const { return uint32_t(keys_.size()); }
  const std::vector<uint64_t>& keys() const { return keys_; }

 private:
  size_t find(uint64_t key) const {
    size_t at = (key * 0x9E3779B97F4A7C15u) >> shift_;
    while (slots_[at] != kAbsent && keys_[slots_[at]] != key) at = (at + 1) & (slots_.size() - 1);
    return at;
  }

  void grow() {
    slots_.assign(slots_.empty() ? size_t{1} << 12 : slots_.size() * 2, kAbsent);
    shift_ = 64 - std::countr_zero(slots_.size());
    for (uint32_t id = 0; id < size(); ++id) slots_[find(keys_[id])] = id;
  }

  std::vector<uint64_t> keys_;
  std::vector<uint32_t> slots_;
  int shift_ = 63;
};

}  // namespace cws
