#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <new>
#include <string_view>
#include <unordered_map>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pkuseg {

// Memory that is read at random: from 4 MiB on in huge pages, where each read would else miss the page tables' cache.
template <class T>
struct HugePages {
  using value_type = T;
  static constexpr size_t kPage = size_t{2} << 20;

  HugePages() = default;
  template <class U>
  HugePages(const HugePages<U>&) {}
  T* allocate(size_t n) {
    const size_t bytes = n * sizeof(T);
    if (bytes < 2 * kPage) return static_cast<T*>(::operator new(bytes, std::align_val_t{64}));
    void* p = ::operator new((bytes + kPage - 1) / kPage * kPage, std::align_val_t{kPage});
#if defined(__linux__)
    madvise(p, (bytes + kPage - 1) / kPage * kPage, MADV_HUGEPAGE);
#endif
    return static_cast<T*>(p);
  }
  void deallocate(T* p, size_t n) { ::operator delete(p, std::align_val_t{n * sizeof(T) < 2 * kPage ? 64 : kPage}); }
  bool operator==(const HugePages&) const { return true; }
};

template <class T>
using Big = std::vector<T, HugePages<T>>;

inline uint64_t pair_key(uint32_t a, uint32_t b) { return static_cast<uint64_t>(a) << 32 | b; }

// Open addressing from keys other than 0 to two numbers, both 0 where a key is absent.
class Table {
 public:
  struct Slot {
    uint64_t key;
    uint32_t first, second;
  };

  Table() : slots_(16) {}

  void reserve(size_t n) {
    size_t factor = 1;
    while (5 * factor * slots_.size() < 8 * (n + 1)) factor *= 2;
    if (factor > 1) resize(factor);
  }
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
  void each(F&& f) {
    for (Slot& slot : slots_)
      if (slot.key) f(slot);
  }
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
  void grow() { resize(2); }
  void resize(size_t factor) {
    Big<Slot> old(slots_.size() * factor);
    old.swap(slots_);
    shift_ -= std::countr_zero(factor);
    for (const Slot& slot : old)
      if (slot.key) slots_[position(slot.key)] = slot;
  }

  Big<Slot> slots_;
  size_t size_ = 0;
  int shift_ = 60;
};

// Words as paths from state 1. A word's number is 1 or more.
//
// What lies behind a step is a link, so that most steps touch one place only: 0 if there is nothing; else kWord if a
// word ends there, kMore if words go on; and the state, or the word's number where none go on.
class Trie {
 public:
  static constexpr uint32_t kWord = 1u << 31, kMore = 1u << 30, kPayload = kMore - 1;
  static constexpr uint32_t kRoot = 1 | kMore;

  void insert(std::u32string_view word, uint32_t number) {
    uint32_t state = 1;
    for (char32_t c : word) {
      auto& slot = edges_[pair_key(state, c)];
      if (!slot.first) {
        slot.first = static_cast<uint32_t>(words_.size());
        ++children_[state];
        words_.push_back(0);
        children_.push_back(0);
      }
      state = slot.first;
    }
    words_[state] = number;
  }
  // Turns the edges' states into links; no word can be inserted after it.
  void link() {
    edges_.each([&](Table::Slot& slot) {
      const uint32_t state = slot.first, word = words_[state], more = children_[state];
      slot.first = (word ? kWord : 0) | (more ? kMore | state : word);
    });
    children_ = {};
  }

  // The link behind `link`.
  uint32_t next(uint32_t link, char32_t c) const {
    return link & kMore ? edges_.find(pair_key(link & kPayload, c)).first : 0;
  }
  void prefetch(uint32_t link, char32_t c) const { edges_.prefetch(pair_key(link & kPayload, c)); }
  // The word that ends at a link, 0 if none does.
  uint32_t word(uint32_t link) const {
    if (!(link & kWord)) return 0;
    return link & kMore ? words_[link & kPayload] : link & kPayload;
  }

 private:
  Table edges_;
  Big<uint32_t> words_{0, 0}, children_{0, 0};
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
