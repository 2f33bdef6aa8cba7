#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace jieba {

using Node = uint32_t;
inline constexpr Node kNone = 0;  // no such prefix; as a parent, the root

// Where a character leads from a prefix, and the level of the count of the word that ends with it; level 0 is count 0.
struct Edge {
  Node child = kNone;
  uint32_t level = 0;
};

// Words with counts as a trie whose edges lie in one hash table, so that a word can be added at any time. Nodes are
// numbered from 1 in order of insertion. A prefix that is no word has count 0, as in jieba's own table. An edge holds
// the level of a count, of which there are few, and not the count, so that a step touches one line of the cache.
class Dictionary {
 public:
  Dictionary() : first_(kPlane), counts_(1, 0), logs_(1, 0) { resize(1 << 10); }

  // Make room for this many words of a usual dictionary.
  void reserve(size_t words) {
    size_t slots = 1 << 10;
    while (slots < 3 * words) slots *= 2;
    if (slots > slots_.size()) resize(slots);
  }

  // Set the count of a word, which has a character; the total is the sum of all counts ever set.
  void add(const uint32_t* word, size_t length, int64_t count) {
    Node node = kNone;
    for (size_t i = 0; i + 1 < length; ++i) node = edge(node, word[i]).child;
    edge(node, word[length - 1]).level = level(count);
    total_ += count;
  }

  int64_t total() const { return total_; }
  void set_total(int64_t total) { total_ = total; }
  int64_t count(Edge edge) const { return counts_[edge.level]; }
  double log_count(Edge edge) const { return logs_[edge.level]; }

  Edge step(Node parent, uint32_t c) const {
    if (parent == kNone && c < kPlane) return first_[c];
    return slots_[place(key(parent, c))].edge;
  }

  // Bring the second step from a character into the cache.
  void prefetch(uint32_t c, uint32_t next) const {
#if defined(__GNUC__)
    if (c < kPlane) __builtin_prefetch(&slots_[home(key(first_[c].child, next))]);
#endif
  }

  // The edge that ends a prefix of words.
  Edge find(const uint32_t* word, size_t length) const {
    Edge edge;
    for (size_t i = 0; i < length; ++i) {
      edge = step(edge.child, word[i]);
      if (edge.child == kNone) break;
    }
    return edge;
  }

 private:
  struct Slot {
    uint64_t key = 0;  // parent and character; 0 for an empty slot, as characters below kPlane have first_ for parent 0
    Edge edge;
  };
  static constexpr uint32_t kPlane = 0x10000;

  static uint64_t key(Node parent, uint32_t c) { return uint64_t{parent} << 21 | c; }
  size_t home(uint64_t key) const { return (key * 0x9E3779B97F4A7C15u) >> shift_; }

  // The slot that has a key, or an empty one for it.
  size_t place(uint64_t key) const {
    size_t at = home(key);
    while (slots_[at].key != key && slots_[at].key != 0) at = (at + 1) & (slots_.size() - 1);
    return at;
  }

  // An edge that is there or is made.
  Edge& edge(Node parent, uint32_t c) {
    if (parent == kNone && c < kPlane) return numbered(first_[c]);
    if (2 * nodes_ > slots_.size()) resize(2 * slots_.size());
    Slot& slot = slots_[place(key(parent, c))];
    slot.key = key(parent, c);
    return numbered(slot.edge);
  }

  Edge& numbered(Edge& edge) {
    if (edge.child == kNone) edge.child = ++nodes_;
    return edge;
  }

  uint32_t level(int64_t count) {
    if (count <= 0) return 0;
    const auto [found, is_new] = levels_.emplace(count, uint32_t(counts_.size()));
    if (is_new) {
      counts_.push_back(count);
      logs_.push_back(std::log(static_cast<double>(count)));
    }
    return found->second;
  }

  void resize(size_t slots) {
    std::vector<Slot> old(slots);
    old.swap(slots_);
    shift_ = 64;
    for (size_t rest = slots; rest > 1; rest /= 2) --shift_;
    for (const Slot& slot : old)
      if (slot.key != 0) slots_[place(slot.key)] = slot;
  }

  std::vector<Edge> first_;
  std::vector<Slot> slots_;
  int shift_ = 64;
  Node nodes_ = 0;
  std::vector<int64_t> counts_;  // by level
  std::vector<double> logs_;
  std::unordered_map<int64_t, uint32_t> levels_;
  int64_t total_ = 0;
};

}  // namespace jieba
