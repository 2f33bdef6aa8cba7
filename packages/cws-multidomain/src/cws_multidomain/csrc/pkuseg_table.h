#pragma once

#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace pkuseg {

inline uint64_t pair_key(uint32_t a, uint32_t b) { return static_cast<uint64_t>(a) << 32 | b; }

// Open addressing from keys other than 0 to two numbers, both 0 where a key is absent.
class Table {
 public:
  struct Slot {
    uint64_t key;
    uint32_t first, second;
  };

  Table() : slots_(16) {}

  Slot& operator[](uint64_t key) {
    if (8 * (size_ + 1) > 5 * slots_.size()) grow();
    Slot& slot = slots_[position(key)];
    if (slot.key != key) {
      slot.key = key;
      ++size_;
    }
    return slot;
  }
  const Slot& find(uint64_t key) const {
    static constexpr Slot kAbsent{0, 0, 0};
    const Slot& slot = slots_[position(key)];
    return slot.key == key ? slot : kAbsent;
  }
  void prefetch(uint64_t key) const { __builtin_prefetch(&slots_[hash(key)]); }
  size_t size() const { return size_; }
  template <class F>
  void each(F&& f) const {
    for (const Slot& slot : slots_)
      if (slot.key) f(slot);
  }

 private:
  size_t hash(uint64_t key) const { return (key ^ key >> 32) * 0x9E3779B97F4A7C15u >> shift_; }
  size_t position(uint64_t key) const {
    size_t i = hash(key);
    while (slots_[i].key && slots_[i].key != key) i = (i + 1) & (slots_.size() - 1);
    return i;
  }
  void grow() {
    std::vector<Slot> old(slots_.size() * 2);
    old.swap(slots_);
    --shift_;
    for (const Slot& slot : old)
      if (slot.key) slots_[position(slot.key)] = slot;
  }

  std::vector<Slot> slots_;
  size_t size_ = 0;
  int shift_ = 60;
};

// Words as paths from state 1. A word's number is 1 or more.
class Trie {
 public:
  struct State {
    uint32_t word, children;
  };

  void insert(std::u32string_view word, uint32_t number) {
    uint32_t state = 1;
    for (char32_t c : word) {
      auto& slot = edges_[pair_key(state, c)];
      if (!slot.first) {
        slot.first = static_cast<uint32_t>(states_.size());
        ++states_[state].children;
        states_.push_back({0, 0});
      }
      state = slot.first;
    }
    states_[state].word = number;
  }
  // The state behind `state`, 0 if there is none.
  uint32_t next(uint32_t state, char32_t c) const {
    return states_[state].children ? edges_.find(pair_key(state, c)).first : 0;
  }
  const State& operator[](uint32_t state) const { return states_[state]; }

 private:
  Table edges_;
  std::vector<State> states_{{0, 0}, {0, 0}};
};

struct TextHash {
  using is_transparent = void;
  template <class C>
  size_t operator()(std::basic_string_view<C> s) const {
    return std::hash<std::basic_string_view<C>>{}(s);
  }
  template <class C>
  size_t operator()(const std::basic_string<C>& s) const {
    return std::hash<std::basic_string_view<C>>{}(s);
  }
};

}  // namespace pkuseg
