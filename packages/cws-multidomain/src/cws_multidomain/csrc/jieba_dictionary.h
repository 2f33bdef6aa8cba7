#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace jieba {

using Node = uint32_t;
inline constexpr Node kNone = 0;  // no such prefix; as a parent, the root

// Words with counts as a trie whose edges lie in one hash table, so that a word can be added at any time. Nodes are
// numbered from 1 in order of insertion. A prefix that is no word has count 0, as in jieba's own table.
class Dictionary {
 public:
  Dictionary() : first_(kPlane, kNone), counts_(1, 0), logs_(1, kNoWord) { resize(1 << 10); }

  // Make room for this many words of a usual dictionary.
  void reserve(size_t words) {
    size_t slots = 1 << 10;
    while (slots < 3 * words) slots *= 2;
    if (slots > slots_.size()) resize(slots);
    counts_.reserve(3 * words / 2);
    logs_.reserve(3 * words / 2);
  }

  // Set the count of a word; the total is the sum of all counts ever set.
  void add(const uint32_t* word, size_t length, int64_t count) {
    Node node = kNone;
    for (size_t i = 0; i < length; ++i) node = insert(node, word[i]);
    counts_[node] = count;
    logs_[node] = count > 0 ? std::log(static_cast<double>(count)) : kNoWord;
    total_ += count;
  }

  int64_t total() const { return total_; }
  void set_total(int64_t total) { total_ = total; }

  Node step(Node parent, uint32_t c) const {
    if (parent == kNone && c < kPlane) return first_[c];
    const uint64_t wanted = key(parent, c);
    for (size_t at = slot(wanted);; at = (at + 1) & (slots_.size() - 1)) {
      if (slots_[at].key == wanted) return slots_[at].child;
      if (slots_[at].key == 0) return kNone;
    }
  }

  // Bring the second step from a character into the cache.
  void prefetch(uint32_t c, uint32_t next) const {
#if defined(__GNUC__)
    if (c < kPlane) __builtin_prefetch(&slots_[slot(key(first_[c], next))]);
#endif
  }

  Node find(const uint32_t* word, size_t length) const {
    Node node = kNone;
    for (size_t i = 0; i < length; ++i) {
      node = step(node, word[i]);
      if (node == kNone) break;
    }
    return node;
  }

  bool is_word(Node node) const { return logs_[node] >= 0; }
  double log_count(Node node) const { return logs_[node]; }
  int64_t count(Node node) const { return counts_[node]; }

 private:
  struct Slot {
    uint64_t key = 0;  // parent and character; 0 for an empty slot, as characters below kPlane have first_ for parent 0
    Node child = kNone;
  };
  static constexpr uint32_t kPlane = 0x10000;
  static constexpr double kNoWord = -1;  // below the logarithm of any count

  static uint64_t key(Node parent, uint32_t c) { return uint64_t{parent} << 21 | c; }
  size_t slot(uint64_t key) const { return (key * 0x9E3779B97F4A7C15u) >> shift_; }

  Node insert(Node parent, uint32_t c) {
    Node child = step(parent, c);
    if (child != kNone) return child;
    child = static_cast<Node>(counts_.size());
    counts_.push_back(0);
    logs_.push_back(kNoWord);
    if (parent == kNone && c < kPlane) return first_[c] = child;
    if (2 * counts_.size() > slots_.size()) resize(2 * slots_.size());
    place({key(parent, c), child});
    return child;
  }

  void place(Slot entry) {
    size_t at = slot(entry.key);
    while (slots_[at].key != 0) at = (at + 1) & (slots_.size() - 1);
    slots_[at] = entry;
  }

  void resize(size_t slots) {
    std::vector<Slot> old(slots);
    old.swap(slots_);
    shift_ = 64;
    for (size_t rest = slots; rest > 1; rest /= 2) --shift_;
    for (const Slot& entry : old)
      if (entry.key != 0) place(entry);
  }

  std::vector<Node> first_;
  std::vector<Slot> slots_;
  int shift_ = 64;
  std::vector<int64_t> counts_;
  std::vector<double> logs_;
  int64_t total_ = 0;
};

}  // namespace jieba
