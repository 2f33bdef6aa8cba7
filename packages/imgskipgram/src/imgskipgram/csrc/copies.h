#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "aligned.h"
#include "philox.h"
#include "rows.h"
#include "train.h"
#include "units.h"

// Rows that a worker copies at first touch, trains, and gives back as what it added to them.
namespace sgns {

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

// A row that was copied, of v or u or else of z; the copy holds what was added to the row once a unit is finished.
template <class T, class S>
struct Change {
  S* row;
  T* image;
  const S* before;
  T* added;
  uint32_t place;  // decides which thread adds it

  void add(int columns, uint32_t random) const {
    if (row) {
      add_row(row, added, columns, random);
    } else {
      add_row(image, added, columns, random);
    }
  }
};

// What a unit changed, and the random bits with which that is rounded.
template <class T, class S>
struct Changes {
  std::vector<Change<T, S>> rows;
  uint32_t random;

  uint32_t bits(size_t row) const { return random + uint32_t(row) * 0x9E3779B9u; }
};

// With Raced, others may change rows while a unit is trained, and what they were is copied too.
template <class T, class S, bool Raced>
class CopiedRows {
 public:
  using Training = sgns::Training<T, S>;
  static constexpr bool kInPlace = false;

  explicit CopiedRows(const Training& training)
      : t_(training), columns_(training.columns), arena_(columns_), before_(columns_) {}

  // Forgets the copies of all units.
  void reset() { arena_.reset(), before_.reset(); }

  void begin(const Unit& unit, Changes<T, S>& changes) {
    changes_ = &changes;
    changes.rows.clear();
    changes.random = philox(t_.sampler.seed, counter(unit.number, t_.sampler.epoch), unit.kept.position[unit.first],
                            kRoundingStream)[0];
    table_.clear();
    inputs_.assign(unit.kept.size(), nullptr);
  }
  void finish() {
    for (const Change<T, S>& change : changes_->rows) {
      if (change.row) {
        subtract_row(change.added, change.before, columns_);
      } else {
        subtract_row(change.added, change.image, columns_);
      }
    }
  }

  T* input(const Kept& kept, uint32_t i) {
    return inputs_[i] ? inputs_[i] : inputs_[i] = copy(Matrix::input, t_.v, kept.word[i]);
  }
  T* output(uint32_t word) { return copy(Matrix::output, t_.u, word); }
  T* image(uint32_t i) {
    T* row = t_.z + size_t(i) * size_t(columns_);
    if (!t_.images_trained) return row;
    T*& place = table_.at(Matrix::image, i);
    if (!place) {
      place = arena_.take();
      load_row(place, row, columns_);
      changes_->rows.push_back({nullptr, row, nullptr, place, i * 0x9E3779B9u});
    }
    return place;
  }
  const S* expect_input(uint32_t word) const { return t_.v + size_t(word) * size_t(columns_); }
  const S* expect_output(uint32_t word) const { return t_.u + size_t(word) * size_t(columns_); }

 private:
  T* copy(Matrix matrix, S* rows, uint32_t i) {
    T*& place = table_.at(matrix, i);
    if (!place) {
      S *row = rows + size_t(i) * size_t(columns_), *before = row;
      if constexpr (Raced) {
        before = before_.take();
        std::copy(row, row + columns_, before);
      }
      place = arena_.take();
      load_row(place, before, columns_);
      changes_->rows.push_back({row, nullptr, before, place, i * 0x9E3779B9u});
    }
    return place;
  }

  const Training& t_;
  const int columns_;
  Arena<T> arena_;
  Arena<S> before_;
  CopyTable<T> table_;
  std::vector<T*> inputs_;  // of the kept words
  Changes<T, S>* changes_ = nullptr;
};

// Trains copies and adds what they gained at the end of each unit.
template <class T, class S>
class CopyingWorker {
 public:
  explicit CopyingWorker(const Training<T, S>& training) : t_(training), worker_(training) {}

  void sentences(uint64_t first, uint64_t last) {
    for (Units<T, S> units(t_, first, last); units.left();) {
      units.next(unit_);
      if (unit_.first == unit_.last) continue;
      worker_.rows().reset();
      worker_.rows().begin(unit_, changes_);
      worker_.centres(unit_.kept, unit_.number, unit_.begin, unit_.first, unit_.last);
      worker_.rows().finish();
      for (size_t k = 0; k < changes_.rows.size(); ++k) changes_.rows[k].add(t_.columns, changes_.bits(k));
    }
    raw_ += t_.offsets[last] - t_.offsets[first];
  }

  Totals take() {
    Totals totals = worker_.take();
    totals.raw = std::exchange(raw_, 0);
    return totals;
  }

 private:
  const Training<T, S>& t_;
  Worker<T, CopiedRows<T, S, true>> worker_;
  Unit unit_;
  Changes<T, S> changes_;
  uint64_t raw_ = 0;
};

}  // namespace sgns
