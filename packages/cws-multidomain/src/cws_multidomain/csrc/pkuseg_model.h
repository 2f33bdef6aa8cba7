#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "pkuseg_files.h"
#include "pkuseg_names.h"
#include "simd.h"

// A model of pkuseg and its decoder: the same float64 sums in the same order, the same ties.
namespace pkuseg {

inline constexpr int kMaxTags = 8;  // one AVX-512 register of float64

// Only for local variables: lanes past a model's tags hold rubbish that never reaches the others.
typedef double Lanes __attribute__((vector_size(64)));
typedef double FourLanes __attribute__((vector_size(32)));
typedef int64_t LaneMask __attribute__((vector_size(64)));
typedef int8_t LaneBytes __attribute__((vector_size(8)));

// Sums rows[splits[i]..splits[i + 1]) one after the other, from 0. The usual 5 tags read no byte, and so no cache line,
// past a row.
CLONES static void sum_rows(const double* const* rows, const uint32_t* splits, int64_t count, int tags, double* out) {
  for (int64_t i = 0; i < count; ++i) {
    double* to = out + kMaxTags * i;
    if (tags == 5) {
      FourLanes sum = {};
      double fifth = 0;
      for (uint32_t r = splits[i]; r < splits[i + 1]; ++r) {
        FourLanes row;
        std::memcpy(&row, rows[r], sizeof row);
        sum += row;
        fifth += rows[r][4];
      }
      std::memcpy(to, &sum, sizeof sum);
      to[4] = fifth;
    } else {
      Lanes sum = {};
      for (uint32_t r = splits[i]; r < splits[i + 1]; ++r) {
        Lanes row;
        std::memcpy(&row, rows[r], sizeof row);
        sum += row;
      }
      std::memcpy(to, &sum, sizeof sum);
    }
  }
}

// Right to left over `count` positions; `best` holds the scores of the position behind the last of them. Of equal
// scores the last tag wins. edges[k] is the score of every tag before tag k.
CLONES static void viterbi(const double* nodes, int64_t count, const double* edges, int tags, double* best,
                           int8_t* back) {
  Lanes edge[kMaxTags];
  std::memcpy(edge, edges, sizeof edge);
  for (int64_t i = count; i-- > 0;) {
    Lanes node;
    std::memcpy(&node, nodes + kMaxTags * i, sizeof node);
    Lanes top = best[0] + node + edge[0];
    LaneMask which = {};
    for (int k = 1; k < tags; ++k) {
      const Lanes score = best[k] + node + edge[k];
      const LaneMask better = score >= top;
      top = better ? score : top;
      which = better ? LaneMask{} + k : which;
    }
    std::memcpy(best, &top, sizeof top);
    const LaneBytes bytes = __builtin_convertvector(which, LaneBytes);
    std::memcpy(back + kMaxTags * i, &bytes, sizeof bytes);
  }
}

// The first of the best tags at the left end.
inline int first_tag(const double* best, int tags) {
  int tag = 0;
  for (int k = 1; k < tags; ++k)
    if (best[tag] < best[k]) tag = k;
  return tag;
}

class Model {
 public:
  Model(const Names& names, const double* weights, int64_t features, int tags)
      : tags_(tags), pair_stride_((3 * tags + 7) / 8 * 8), features_(features) {
    if (tags < 1 || tags > kMaxTags)
      bad("a segmentation model has 1 to " + std::to_string(kMaxTags) + " tags, weights.npz has " +
          std::to_string(tags));
    check_indices(names.tags, tags, "tag_to_idx");
    check_indices(names.features, features, "feature_to_idx");
    if (!features) bad("'feature_to_idx' must have at least one entry");
    for (const auto& [name, index] : names.tags) begins_ |= (name.find('B') != name.npos) << index;
    for (const auto& word : names.unigram) words_.add(word);
    word_rows_.assign(2 * tags * (words_.size() + 1) + kMaxTags, 0.0);
    character_rows_.assign(5 * tags, 0.0);
    std::memcpy(constant_, weights, tags * sizeof(double));
    const double* edges = weights + features * tags;
    for (int k = 0; k < tags; ++k)
      for (int y = 0; y < tags; ++y) edges_[kMaxTags * k + y] = 1.0 + edges[k * tags + y];
    size_t pairs = 0, word_pairs = 0;  // almost always so many
    for (const auto& [name, index] : names.features) {
      pairs += name.starts_with(kPrefixes[kCC1]);
      word_pairs += name.starts_with(kPrefixes[kLeft]);
    }
    pairs_.reserve(pairs);
    word_pairs_.reserve(word_pairs);
    pair_rows_.reserve((pairs + 2) * pair_stride_);
    word_pair_rows_.reserve((word_pairs + 2) * 2 * tags_);
    std::u32string text;
    for (const auto& [name, index] : names.features) {
      const double* row = weights + index * tags;
      read_feature(name, words_, text, [&](Template t, uint32_t a, uint32_t b) { put(t, a, b, row); });
    }
    link();
    for (auto* rows : {&character_rows_, &pair_rows_, &word_pair_rows_}) rows->resize(rows->size() + kMaxTags);
    character_rows_.shrink_to_fit();
  }

  int tags() const { return tags_; }
  int64_t features() const { return features_; }
  const double* edges() const { return edges_; }
  bool begins(int tag) const { return begins_ >> tag & 1; }

  // What decoding needs beside the model; grows to 12 bytes per character of the longest text without white space.
  struct Scratch {
    static constexpr int64_t kBlock = 64;
    static constexpr int kMaxPairs = (kMaxWord - 1) * (kMaxWord - 1), kMaxRows = 9 + 2 * (kMaxWord - 1) + 2 * kMaxPairs;
    const char32_t* text;
    std::vector<uint32_t> symbols;
    std::vector<int8_t> back;
    const double* rows[kBlock * kMaxRows];
    uint32_t row_splits[kBlock + 1];
    uint64_t keys[(kBlock + 2) * kMaxPairs];
    const double* word_pairs[(kBlock + 2) * kMaxPairs];
    uint32_t boundary_splits[kBlock + 3];
    alignas(64) double nodes[kBlock * kMaxTags] = {};
    uint32_t pairs[kBlock + 2 * kMaxWord], links[kBlock + 2 * kMaxWord];
    int16_t active[kBlock + 2 * kMaxWord];
    std::array<uint32_t, kMaxWord - 1> starts[kBlock + 2 * kMaxWord], ends[kBlock + 3 * kMaxWord];
    uint8_t starting[kBlock + 2 * kMaxWord], ending[kBlock + 3 * kMaxWord];
  };

  // The scores of all tags at all positions, [n, tags].
  void scores(const char32_t* text, int64_t n, Scratch& s, double* out) const {
    read(text, n, s);
    for (int64_t from = 0; from < n; from += Scratch::kBlock) {
      const int64_t count = std::min(Scratch::kBlock, n - from);
      score(n, from, count, s);
      for (int64_t i = 0; i < count; ++i) std::memcpy(out + (from + i) * tags_, s.nodes + i * kMaxTags, tags_ * 8);
    }
  }

  // Appends the end of every word of text[0..n), n > 0, to `ends`, counted from `base`.
  template <class Ends>
  void cut(const char32_t* text, int64_t n, int64_t base, Scratch& s, Ends& ends) const {
    read(text, n, s);
    s.back.resize(n * kMaxTags);
    alignas(64) double best[kMaxTags];
    const int64_t last = (n - 1) / Scratch::kBlock * Scratch::kBlock;
    for (int64_t from = last; from >= 0; from -= Scratch::kBlock) {
      int64_t count = std::min(Scratch::kBlock, n - from);
      score(n, from, count, s);
      if (from == last) std::memcpy(best, s.nodes + --count * kMaxTags, sizeof best);
      viterbi(s.nodes, count, edges_, tags_, best, s.back.data() + from * kMaxTags);
    }
    int tag = first_tag(best, tags_);
    for (int64_t i = 1; i < n; ++i) {
      tag = s.back[(i - 1) * kMaxTags + tag];
      if (begins(tag)) ends.push_back(base + i);
    }
    ends.push_back(base + n);
  }

 private:
  static constexpr int kPlace[] = {-1, 0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 0, 1};  // of a template's row among its key's

  static int lowest(int bits) { return std::countr_zero(static_cast<unsigned>(bits)); }
  uint32_t symbol(Node node) {
    const auto [at, fresh] = symbols_.emplace(node, static_cast<uint32_t>(symbols_.size() + 1));
    if (fresh) character_rows_.resize(5 * tags_ * (symbols_.size() + 1));
    return at->second;
  }
  // Row `place` of the key's record of `stride` numbers; record 0 is for absent keys.
  double* record(uint32_t& number, Big<double>& rows, int stride, int place) {
    if (rows.empty()) rows.resize(stride);
    if (!number) {
      number = static_cast<uint32_t>(rows.size() / stride);
      rows.resize(rows.size() + stride);
    }
    return &rows[static_cast<size_t>(number) * stride + place * tags_];
  }
  void put(Template t, uint32_t a, uint32_t b, const double* row) {
    double* to;
    const int place = kPlace[t];
    if (t <= kC2) {
      const uint32_t s = symbol(a);
      to = &character_rows_[(5 * s + place) * tags_];
    } else if (t <= kC_2C_1) {
      const uint64_t key = pair_key(symbol(a), symbol(b));
      to = record(pairs_[key].first, pair_rows_, pair_stride_, place);
    } else if (t <= kStarts) {
      to = &word_rows_[(2 * a + place) * tags_];
    } else {
      to = record(word_pairs_[pair_key(a, b)].first, word_pair_rows_, 2 * tags_, place);
    }
    std::memcpy(to, row, tags_ * sizeof(double));
  }
  // Joins the first two steps of every word to the pairs of characters, and maps code points to symbols.
  void link() {
    if (pair_rows_.empty()) pair_rows_.resize(pair_stride_);
    if (word_pair_rows_.empty()) word_pair_rows_.resize(2 * tags_);
    words_.trie.link();
    std::u32string text, nodes;
    words_.each([&](std::string_view word, uint32_t) {
      decode_utf8(word, text);
      read_nodes(text, nodes);
      const uint32_t a = symbol(nodes[0]), b = symbol(nodes[1]);
      pairs_[pair_key(a, b)].second = words_.trie.next(words_.trie.next(Trie::kRoot, nodes[0]), nodes[1]);
    });
    const auto known = [&](Node node) {
      const auto found = symbols_.find(node);
      return found == symbols_.end() ? 0 : found->second;
    };
    lookup_.resize(65536);
    for (char32_t c = 0; c < 65536; ++c) lookup_[c] = known(normalize(c));
    for (const auto& [node, number] : symbols_)
      if (node >= 65536 && node < kNumber) high_.emplace(node, number);
  }

  void read(const char32_t* text, int64_t n, Scratch& s) const {
    s.text = text;
    s.symbols.resize(n);
    for (int64_t i = 0; i < n; ++i) {
      if (text[i] < 65536) {
        s.symbols[i] = lookup_[text[i]];
      } else {
        const auto found = high_.find(text[i]);
        s.symbols[i] = found == high_.end() ? 0 : found->second;
      }
    }
  }

  // The scores of positions from..from + count into s.nodes. Tables are touched ahead of their use.
  void score(int64_t n, int64_t from, int64_t count, Scratch& s) const {
    const uint32_t* x = s.symbols.data();
    const int64_t to = from + count;
    const int64_t lo = std::max<int64_t>(0, from - kMaxWord), hi = std::min(n, to + 1);  // starts of words in question
    for (int64_t j = lo; j + 1 < std::min(n, hi + 1); ++j) pairs_.prefetch(pair_key(x[j], x[j + 1]));
    std::memset(s.ending, 0, sizeof s.ending);
    for (int64_t j = lo; j < hi; ++j) {
      uint32_t &pair = s.pairs[j - lo], &link = s.links[j - lo];
      pair = link = 0;
      s.starting[j - lo] = 0;
      if (j + 1 == n || !x[j] || !x[j + 1]) continue;
      const auto& slot = pairs_.find(pair_key(x[j], x[j + 1]));
      pair = slot.first;
      link = slot.second;
      __builtin_prefetch(&pair_rows_[pair_stride_ * static_cast<size_t>(pair)]);
      __builtin_prefetch(&pair_rows_[pair_stride_ * static_cast<size_t>(pair)] + 8);
    }
    // Words from every start, all of one length after the other.
    int active = 0;
    for (int64_t j = lo; j < hi; ++j)
      if (s.links[j - lo]) s.active[active++] = static_cast<int16_t>(j - lo);
    for (int length = 2; active; ++length) {
      int kept = 0;
      for (int k = 0; k < active; ++k) {
        const int j = s.active[k];
        const uint32_t link = s.links[j];
        if (const uint32_t word = words_.trie.word(link)) {
          const int place = kMaxWord - length;
          s.starts[j][place] = s.ends[j + length - 1][place] = word;
          s.starting[j] |= 1 << place;
          s.ending[j + length - 1] |= 1 << place;
        }
        if (!(link & Trie::kMore) || length == kMaxWord || lo + j + length >= n) continue;
        words_.trie.prefetch(link, normalize(s.text[lo + j + length]));
        s.active[kept++] = static_cast<int16_t>(j);
      }
      active = 0;
      for (int k = 0; k < kept; ++k) {
        const int j = s.active[k];
        s.links[j] = words_.trie.next(s.links[j], normalize(s.text[lo + j + length]));
        if (s.links[j]) s.active[active++] = static_cast<int16_t>(j);
      }
    }
    // Boundaries (j, j + 1), from that before the first position on.
    uint32_t keys = 0;
    const int64_t first = std::max<int64_t>(0, from - 1);
    for (int64_t j = first; j < to; ++j) {
      s.boundary_splits[j - first] = keys;
      if (j + 1 == n || !s.ending[j - lo] || !s.starting[j + 1 - lo]) continue;
      for (int e = s.ending[j - lo]; e; e &= e - 1)
        for (int b = s.starting[j + 1 - lo]; b; b &= b - 1) {
          s.keys[keys] = pair_key(s.ends[j - lo][lowest(e)], s.starts[j + 1 - lo][lowest(b)]);
          word_pairs_.prefetch(s.keys[keys++]);
        }
    }
    s.boundary_splits[to - first] = keys;
    for (uint32_t k = 0; k < keys; ++k) {
      s.word_pairs[k] = &word_pair_rows_[2 * tags_ * static_cast<size_t>(word_pairs_.find(s.keys[k]).first)];
      __builtin_prefetch(s.word_pairs[k]);
      __builtin_prefetch(s.word_pairs[k] + 8);
    }

    const double** row = s.rows;
    const auto character = [&](int64_t i, int place) {
      *row++ = &character_rows_[(5 * static_cast<size_t>(x[i]) + place) * tags_];
    };
    const auto pair = [&](int64_t i, int place) {
      *row++ = &pair_rows_[pair_stride_ * static_cast<size_t>(s.pairs[i - lo]) + place * tags_];
    };
    const auto word = [&](uint32_t number, int place) {
      *row = &word_rows_[(2 * static_cast<size_t>(number) + place) * tags_];
      __builtin_prefetch(*row++);
    };
    for (int64_t i = from; i < to; ++i) {
      s.row_splits[i - from] = static_cast<uint32_t>(row - s.rows);
      *row++ = constant_;
      character(i, kPlace[kC]);
      if (i > 0) {
        character(i - 1, kPlace[kC_1]);
        pair(i - 1, kPlace[kC_1C]);
      }
      if (i + 1 < n) {
        character(i + 1, kPlace[kC1]);
        pair(i, kPlace[kCC1]);
      }
      if (i > 1) {
        character(i - 2, kPlace[kC_2]);
        pair(i - 2, kPlace[kC_2C_1]);
      }
      if (i + 2 < n) character(i + 2, kPlace[kC2]);
      for (int e = s.ending[i - lo]; e; e &= e - 1) word(s.ends[i - lo][lowest(e)], kPlace[kEnds]);
      for (int b = s.starting[i - lo]; b; b &= b - 1) word(s.starts[i - lo][lowest(b)], kPlace[kStarts]);
      if (i > 0)
        for (uint32_t k = s.boundary_splits[i - 1 - first]; k < s.boundary_splits[i - first]; ++k)
          *row++ = s.word_pairs[k] + kPlace[kLeft] * tags_;
      for (uint32_t k = s.boundary_splits[i - first]; k < s.boundary_splits[i + 1 - first]; ++k)
        *row++ = s.word_pairs[k] + kPlace[kRight] * tags_;
    }
    s.row_splits[count] = static_cast<uint32_t>(row - s.rows);
    sum_rows(s.rows, s.row_splits, count, tags_, s.nodes);
  }

  int tags_;
  int pair_stride_;  // whole cache lines
  int64_t features_;
  int begins_ = 0;
  alignas(64) double constant_[kMaxTags] = {};
  alignas(64) double edges_[kMaxTags * kMaxTags] = {};
  std::unordered_map<Node, uint32_t> symbols_, high_;
  std::vector<uint32_t> lookup_;
  Words words_;
  Table pairs_;       // two symbols: record of rows, link of the trie
  Table word_pairs_;  // two words: record of rows
  Big<double> character_rows_, pair_rows_, word_rows_, word_pair_rows_;
};

}  // namespace pkuseg
