#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "simd.h"
#include "tagger_features.h"

// Tagging by a packed model: integer scores, features found by a 16-bit fingerprint within a bucket of keys.
namespace cws::tagger {

// What the sections hold. Features with equal upper bits of their key are one bucket; of each there is a fingerprint
// (the lower 16 bits, little-endian), the number of its states, and per state a tag and its weight.
struct Packed {
  int tags = 0;
  std::span<const uint32_t> buckets;  // 2^k + 1 places in entries
  std::span<const uint8_t> entries;
  std::span<const int16_t> transition;  // [tags, tags], previous tag first
};

inline constexpr int kMostTags = 127;
inline constexpr uint64_t kDictionary = 15;  // joined with a word: the feature whose states are all tags of that word

class Model {
 public:
  Model(const Packed& packed, const Folding& folding)
      : packed_(packed), folding_(folding), tags_(packed.tags), pad_((packed.tags + 15) / 16 * 16) {
    check();
    shift_ = 64;
    for (size_t n = packed_.buckets.size() - 1; n > 1; n /= 2) --shift_;
    transition_.assign(size_t(tags_) * pad_, 0);
    for (int p = 0; p < tags_; ++p) {
      for (int t = 0; t < tags_; ++t) transition_[size_t(p) * pad_ + t] = packed_.transition[size_t(p) * tags_ + t];
    }
  }

  const Folding& folding() const { return folding_; }

  struct Scratch {
    std::vector<Word> words;
    std::vector<int32_t> scores;      // [length, pad]
    std::vector<uint8_t> back;        // [length, pad]
    std::vector<uint8_t> candidates;  // of all positions
    std::vector<uint32_t> starts;     // in candidates
  };

  // The best tags of words, given by the ends of their folded characters. Of equally good ones those that are lower,
  // seen from the end.
  void tag(const uint32_t* characters, const uint32_t* ends, size_t n, Scratch& s, uint8_t* out) const {
    if (n == 0) return;
    s.words.clear();
    s.words.insert(s.words.end(), 2, edge(kFirst));
    for (size_t i = 0; i < n; ++i) s.words.push_back(describe({characters + ends[i], characters + ends[i + 1]}));
    s.words.insert(s.words.end(), 2, edge(kLast));
    s.scores.assign(n * pad_, 0);
    s.back.resize(n * pad_);
    s.candidates.clear();
    s.starts.assign(1, 0);
    for (size_t i = 0; i < n; ++i) {
      emit(&s.words[i + 2], &s.scores[i * pad_], s.candidates);
      s.starts.push_back(static_cast<uint32_t>(s.candidates.size()));
    }
    for (size_t i = 1; i < n; ++i) {
      const std::span<const uint8_t> before(&s.candidates[s.starts[i - 1]], s.starts[i] - s.starts[i - 1]);
      const std::span<const uint8_t> here(&s.candidates[s.starts[i]], s.starts[i + 1] - s.starts[i]);
      int32_t* next = &s.scores[i * pad_];
      const int32_t* last = next - pad_;
      uint8_t* back = &s.back[i * pad_];
      if (here.size() * 4 < size_t(pad_)) {
        for (const uint8_t t : here) {
          int32_t top = INT32_MIN;
          for (const uint8_t p : before) {
            const int32_t v = last[p] + transition_[size_t(p) * pad_ + t];
            if (v > top) top = v, back[t] = p;
          }
          next[t] += top;
        }
      } else {
        advance(last, before, next, back);
      }
      int32_t top = INT32_MIN;
      for (const uint8_t t : here) top = next[t] > top ? next[t] : top;
      for (const uint8_t t : here) next[t] -= top;
    }
    const int32_t* last = &s.scores[(n - 1) * pad_];
    uint8_t best = s.candidates[s.starts[n - 1]];
    for (size_t k = s.starts[n - 1]; k < s.starts[n]; ++k) {
      if (last[s.candidates[k]] > last[best]) best = s.candidates[k];
    }
    for (size_t i = n; i-- > 0;) {
      out[i] = best;
      best = s.back[i * pad_ + best];
    }
  }

 private:
  // Everything that reading relies on; the message names what is wrong.
  void check() const {
    const auto& [tags, buckets, entries, transition] = packed_;
    if (tags < 1 || tags > kMostTags) throw std::invalid_argument("pos.tags: the number of tags is not 1 to 127");
    if (transition.size() != size_t(tags) * tags) {
      throw std::invalid_argument("pos.transitions: the size is not that of a square of the tags");
    }
    const size_t n = buckets.empty() ? 0 : buckets.size() - 1;
    if (n == 0 || (n & (n - 1)) != 0 || buckets[0] != 0 || buckets[n] != entries.size()) {
      throw std::invalid_argument("pos.buckets: not the places of a power of two of buckets in pos.features");
    }
    for (size_t b = 0; b < n; ++b) {
      uint32_t at = buckets[b];
      if (buckets[b + 1] < at || buckets[b + 1] > entries.size()) {
        throw std::invalid_argument("pos.buckets: places out of order");
      }
      while (at < buckets[b + 1]) {
        if (buckets[b + 1] - at < 3 || (buckets[b + 1] - at - 3) / 2 < entries[at + 2]) {
          throw std::invalid_argument("pos.features: an entry goes beyond its bucket");
        }
        const uint32_t end = at + 3 + 2 * entries[at + 2];
        for (at += 3; at < end; at += 2) {
          if (entries[at] >= tags) throw std::invalid_argument("pos.features: a tag that does not exist");
        }
      }
    }
  }

  std::pair<uint32_t, uint32_t> bucket(uint64_t key) const {
    const size_t b = shift_ == 64 ? 0 : key >> shift_;
    return {packed_.buckets[b], packed_.buckets[b + 1]};
  }

  // The entry of a key: the place of its states and their number; 0 states if it is not there.
  std::pair<const uint8_t*, int> find(uint64_t key, std::pair<uint32_t, uint32_t> range) const {
    const uint8_t low = key & 0xFF, high = key >> 8 & 0xFF;
    for (uint32_t at = range.first; at < range.second;) {
      const uint8_t* entry = &packed_.entries[at];
      if (entry[0] == low && entry[1] == high) return {entry + 3, entry[2]};
      at += 3 + 2 * entry[2];
    }
    return {nullptr, 0};
  }

  void emit(const Word* word, int32_t* scores, std::vector<uint8_t>& candidates) const {
    uint64_t keys[kFeatures + 1];
    std::pair<uint32_t, uint32_t> ranges[kFeatures + 1];
    const int n = features(word, keys);
    keys[n] = join(word->all, kDictionary);
    for (int j = 0; j <= n; ++j) {
      ranges[j] = bucket(keys[j]);
      __builtin_prefetch(packed_.entries.data() + ranges[j].first);
    }
    for (int j = 0; j < n; ++j) {
      const auto [states, count] = find(keys[j], ranges[j]);
      for (int k = 0; k < count; ++k) scores[states[2 * k]] += static_cast<int8_t>(states[2 * k + 1]);
    }
    const auto [states, count] = find(keys[n], ranges[n]);
    for (int k = 0; k < count; ++k) candidates.push_back(states[2 * k]);
    if (count == 0) {
      for (int t = 0; t < tags_; ++t) candidates.push_back(static_cast<uint8_t>(t));
    }
  }

  // All tags at once: next[t] += the largest of last[p] + transition[p, t], back[t] the p.
  void advance(const int32_t* last, std::span<const uint8_t> before, int32_t* next, uint8_t* back) const {
    relax(last, before.data(), static_cast<int>(before.size()), transition_.data(), pad_, next, back);
  }

  CLONES static void relax(const int32_t* last, const uint8_t* before, int n, const int32_t* transition, int pad,
                           int32_t* next, uint8_t* back) {
    constexpr int kBlock = 16;
    for (int first = 0; first < pad; first += kBlock) {
      int32_t top[kBlock], from[kBlock];
      for (int j = 0; j < kBlock; ++j) top[j] = INT32_MIN, from[j] = 0;
      for (int k = 0; k < n; ++k) {
        const int32_t p = before[k], v = last[p];
        const int32_t* row = transition + size_t(p) * pad + first;
        for (int j = 0; j < kBlock; ++j) {
          const int32_t x = v + row[j];
          from[j] = x > top[j] ? p : from[j];
          top[j] = x > top[j] ? x : top[j];
        }
      }
      for (int j = 0; j < kBlock; ++j) next[first + j] += top[j];
      for (int j = 0; j < kBlock; ++j) back[first + j] = static_cast<uint8_t>(from[j]);
    }
  }

  Packed packed_;
  Folding folding_;
  int tags_, pad_, shift_;
  std::vector<int32_t> transition_;  // [tags, pad]
};

}  // namespace cws::tagger
