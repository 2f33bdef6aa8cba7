#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "text.h"

// The words that a user adds, with costs, in a trie of folded code points whose edges are hashed. It grows in place.
namespace cws {

inline constexpr float kForce = -std::numeric_limits<float>::infinity();
inline constexpr float kForbid = std::numeric_limits<float>::infinity();

struct Match {
  int64_t begin, end;
  float cost;
};

class Words {
 public:
  int64_t size() const { return size_; }

  // A cost of 0 is that of no word.
  void set(const uint32_t* word, int64_t n, float cost) {
    uint32_t node = 0;
    for (int64_t i = 0; i < n; ++i) node = child_or_new(node, fold(word[i]));
    if (n > 1)
      pairs_[pair_bit(fold(word[0]), fold(word[1])) >> 6] |= uint64_t(1)
                                                             << (pair_bit(fold(word[0]), fold(word[1])) & 63);
    else
      singles_ = true;
    size_ += (cost != 0) - (costs_[node] != 0);
    forced_ += (cost == kForce) - (costs_[node] == kForce);
    costs_[node] = cost;
    if (++insertions_ > int64_t(pairs_.size()) * 4) widen();
  }

  float cost(const uint32_t* word, int64_t n) const {
    uint32_t node = 0;
    for (int64_t i = 0; i < n; ++i) {
      node = child(node, fold(word[i]));
      if (!node) return 0;
    }
    return costs_[node];
  }

  // Appends the words that occur in text[begin..end), in the order of their beginnings, then of their lengths.
  void find(const uint32_t* text, int64_t begin, int64_t end, std::vector<Match>& out) const {
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t c = fold(text[i]);
      if (!singles_) {
        if (i + 1 == end) break;
        const uint64_t bit = pair_bit(c, fold(text[i + 1]));
        if (!(pairs_[bit >> 6] >> (bit & 63) & 1)) continue;
      }
      uint32_t node = child(0, c);
      for (int64_t j = i + 1; node; ++j) {
        if (costs_[node] != 0) out.push_back({i, j, costs_[node]});
        if (j == end) break;
        node = child(node, fold(text[j]));
      }
    }
  }

  // Calls visit(word, length, cost) for all words.
  template <class Visit>
  void for_each(Visit visit) const {
    std::vector<std::pair<uint32_t, uint32_t>> up(costs_.size());  // parent, code point
    for (const Edge& e : edges_) {
      if (e.child) up[e.child] = {e.parent, e.c};
    }
    std::vector<uint32_t> word;
    for (uint32_t node = 1; node < costs_.size(); ++node) {
      if (costs_[node] == 0) continue;
      word.clear();
      for (uint32_t n = node; n; n = up[n].first) word.push_back(up[n].second);
      std::reverse(word.begin(), word.end());
      visit(word.data(), int64_t(word.size()), costs_[node]);
    }
  }

 private:
  struct Edge {
    uint32_t parent = 0, c = 0, child = 0;
  };

  static uint64_t hash(uint32_t a, uint32_t b) {
    uint64_t h = (uint64_t(a) << 32 | b) * 0x9E3779B97F4A7C15u;
    return h ^ h >> 32;
  }
  uint64_t pair_bit(uint32_t a, uint32_t b) const { return hash(a, b) & (pairs_.size() * 64 - 1); }

  uint32_t child(uint32_t node, uint32_t c) const {
    for (uint64_t at = hash(node, c) & mask_;; at = (at + 1) & mask_) {
      const Edge& e = edges_[at];
      if (e.child == 0 || (e.parent == node && e.c == c)) return e.child;
    }
  }

  uint32_t child_or_new(uint32_t node, uint32_t c) {
    if (costs_.size() * 3 > edges_.size() * 2) grow();
    uint64_t at = hash(node, c) & mask_;
    for (; edges_[at].child; at = (at + 1) & mask_) {
      if (edges_[at].parent == node && edges_[at].c == c) return edges_[at].child;
    }
    edges_[at] = {node, c, uint32_t(costs_.size())};
    costs_.push_back(0);
    return edges_[at].child;
  }

  void grow() {
    std::vector<Edge> old(edges_.size() * 2);
    std::swap(old, edges_);
    mask_ = edges_.size() - 1;
    for (const Edge& e : old) {
      if (!e.child) continue;
      uint64_t at = hash(e.parent, e.c) & mask_;
      while (edges_[at].child) at = (at + 1) & mask_;
      edges_[at] = e;
    }
  }

  // A filter of first pairs with 16 bits and more per insertion.
  void widen() {
    std::vector<uint64_t> wide(pairs_.size() * 4);
    std::swap(pairs_, wide);
    std::vector<uint32_t> first(costs_.size());
    for (const Edge& e : edges_) {
      if (e.child && e.parent == 0) first[e.child] = e.c;
    }
    for (const Edge& e : edges_) {
      if (!e.child || e.parent == 0 || !first[e.parent]) continue;
      const uint64_t bit = pair_bit(first[e.parent], e.c);
      pairs_[bit >> 6] |= uint64_t(1) << (bit & 63);
    }
  }

  std::vector<Edge> edges_ = std::vector<Edge>(64);
  uint64_t mask_ = 63;
  std::vector<float> costs_{0};  // of nodes; the root is 0
  std::vector<uint64_t> pairs_ = std::vector<uint64_t>(64);
  bool singles_ = false;
  int64_t size_ = 0, forced_ = 0, insertions_ = 0;
};

}  // namespace cws
