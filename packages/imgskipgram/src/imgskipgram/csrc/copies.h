#pragma once

#include <cstdint>
#include <deque>
#include <type_traits>
#include <vector>

#include "aligned.h"
#include "simd.h"
#include "train.h"

// Rows that a worker copies at first touch, trains, and gives back as what it added to them.
namespace sgns {

template <class T>
CLONES void load_row(T* to, const T* from, int columns) {
  for (int c = 0; c < columns; ++c) to[c] = from[c];
}
template <class T>
CLONES void subtract_row(T* from, const T* what, int columns) {
  for (int c = 0; c < columns; ++c) from[c] -= what[c];
}
template <class T>
CLONES void add_row(T* to, const T* what, int columns) {
  for (int c = 0; c < columns; ++c) to[c] += what[c];
}

// Rows of `columns` numbers, kept until the next reset.
template <class T>
class Arena {
 public:
  explicit Arena(int columns) : columns_(size_t(columns)) {}
  void reset() { used_ = 0; }
  T* take() {
    if (used_ == blocks_.size() * kRowsOfBlock) blocks_.emplace_back(kRowsOfBlock * columns_);
    T* row = blocks_[used_ / kRowsOfBlock].data() + used_ % kRowsOfBlock * columns_;
    ++used_;
    return row;
  }

 private:
  static constexpr size_t kRowsOfBlock = 128;
  size_t columns_, used_ = 0;
  std::deque<Aligned<T>> blocks_;
};

enum class Matrix : uint64_t { input, output, image };

// Which row of a matrix has which copy; emptied at once.
template <class T>
class CopyTable {
 public:
  CopyTable() : entries_(512) {}

  void clear() {
    count_ = 0;
    if (++generation_ >> 30) entries_.assign(entries_.size(), {}), generation_ = 1;
  }
  // The place of the row's copy, null if there is none yet; it holds until the next call.
  T*& at(Matrix matrix, uint32_t row) {
    if (2 * count_ > entries_.size()) grow();
    Entry& entry = find(generation_ << 34 | uint64_t(matrix) << 32 | row);
    return entry.copy;
  }

 private:
  struct Entry {
    uint64_t key = 0;
    T* copy = nullptr;
  };

  Entry& find(uint64_t key) {
    const size_t mask = entries_.size() - 1;
    for (size_t i = size_t(key * 0x9E3779B97F4A7C15u >> 32);; ++i) {
      Entry& entry = entries_[i & mask];
      if (entry.key == key) return entry;
      if (entry.key >> 34 != generation_) {
        entry = {key, nullptr};
        ++count_;
        return entry;
      }
    }
  }

  void grow() {
    std::vector<Entry> old(2 * entries_.size());
    old.swap(entries_);
    count_ = 0;
    for (const Entry& entry : old) {
      if (entry.key >> 34 == generation_) find(entry.key).copy = entry.copy;
    }
  }

  std::vector<Entry> entries_;
  size_t count_ = 0;
  uint64_t generation_ = 1;
};

// A row that was copied; the copy holds what was added to the row once a unit is finished.
template <class T>
struct Change {
  T* row;
  T* added;
  uint32_t hash;  // decides which thread adds it
};

template <class T>
class CopiedRows {
 public:
  explicit CopiedRows(const Training<T>& training)
      : t_(training), arena_(training.columns), columns_(training.columns) {}

  void reset() { arena_.reset(); }
  void begin(const Kept& kept, std::vector<Change<T>>& changes) {
    changes_ = &changes;
    changes.clear();
    table_.clear();
    inputs_.assign(kept.size(), nullptr);
  }
  void finish() {
    for (const Change<T>& change : *changes_) subtract_row(change.added, change.row, columns_);
  }

  T* input(const Kept& kept, uint32_t i) {
    return inputs_[i] ? inputs_[i] : inputs_[i] = copy(Matrix::input, t_.v, kept.word[i]);
  }
  T* output(uint32_t word) { return copy(Matrix::output, t_.u, word); }
  T* image(uint32_t i) {
    return t_.images_trained ? copy(Matrix::image, t_.z, i) : t_.z + size_t(i) * size_t(columns_);
  }
  void expect_input(uint32_t word) const { prefetch_row(t_.v + size_t(word) * size_t(columns_), columns_); }
  void expect_output(uint32_t word) const { prefetch_row(t_.u + size_t(word) * size_t(columns_), columns_); }

 private:
  T* copy(Matrix matrix, T* rows, uint32_t i) {
    T*& place = table_.at(matrix, i);
    if (!place) {
      T* row = rows + size_t(i) * size_t(columns_);
      place = arena_.take();
      load_row(place, row, columns_);
      changes_->push_back({row, place, i * 0x9E3779B9u});
    }
    return place;
  }

  const Training<T>& t_;
  Arena<T> arena_;
  int columns_;
  CopyTable<T> table_;
  std::vector<T*> inputs_;  // of the kept words
  std::vector<Change<T>>* changes_ = nullptr;
};

}  // namespace sgns
