#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "copies.h"
#include "train.h"

// An epoch whose every bit is the same for any number of threads. A batch of sentences is trained on copies, each unit
// on its own and in the order of work; then what the units added to a row is added to it in their order, by one thread.
namespace sgns {

inline constexpr uint64_t kBatch = 500;       // tokens; a divisor of kRateBlock
inline constexpr uint32_t kUnit = 32;         // centres that see each other's updates at once, a multiple of kLanes
inline constexpr double kDrawn = 50;          // how often the commonest negative is drawn in a batch, on average
inline constexpr uint32_t kOccurrences = 16;  // of any word in a batch

// A sentence, or some centres of a long one with the words around them.
template <class T>
struct Unit {
  Kept kept;
  uint32_t first, last;    // centres
  uint64_t number, begin;  // of the sentence, its first token
  std::vector<Change<T>> changes;
  Totals totals;
};

template <class T>
struct Batch {
  std::vector<Unit<T>> units;
  size_t size = 0;
  uint64_t tokens = 0;
};

// Where batches and units end depends on places in the epoch only; and on words, for what many units add to one row
// at once must not carry it too far: a small vocabulary has small batches.
template <class T>
class Planner {
 public:
  explicit Planner(const Training<T>& training)
      : t_(training),
        most_(std::max<uint64_t>(1, uint64_t(kDrawn / (training.sampler.noise.most() * training.sampler.negative)))),
        occurrences_(training.sampler.noise.size) {}

  // The next batch that has units, or none at the end of the epoch.
  void next(Batch<T>& batch) {
    batch.size = 0;
    const uint64_t begin = token();
    bool full = false;
    uint64_t centres = 0;
    while (sentence_ < t_.sentences && !batch.size) {
      for (const uint64_t block = number(); sentence_ < t_.sentences && number() == block && !full;) {
        const Unit<T>& unit = add(batch);
        centres += unit.last - unit.first;
        full = centres >= most_;
        for (uint32_t i = unit.first; i < unit.last; ++i) full |= ++occurrences_[unit.kept.word[i]] >= kOccurrences;
      }
    }
    for (size_t k = 0; k < batch.size; ++k) {
      for (const uint32_t word : batch.units[k].kept.word) occurrences_[word] = 0;
    }
    batch.tokens = token() - begin;
  }

 private:
  uint64_t token() const { return t_.offsets[sentence_] + (at_ ? long_.position[at_] : 0); }
  uint64_t number() const { return (t_.first_token + token()) / kBatch; }

  const Unit<T>& add(Batch<T>& batch) {
    if (batch.size == batch.units.size()) batch.units.emplace_back();
    Unit<T>& unit = batch.units[batch.size];
    const uint64_t begin = t_.offsets[sentence_], number = t_.first_sentence + sentence_;
    const uint32_t n = uint32_t(t_.offsets[sentence_ + 1] - begin);
    unit.number = number, unit.begin = begin, unit.first = 0;
    if (n <= kUnit) {
      t_.sampler.select(t_.ids + begin, n, number, unit.kept);
      unit.last = unit.kept.size();
      ++sentence_;
    } else {
      if (!at_) t_.sampler.select(t_.ids + begin, n, number, long_);
      cut(unit);
    }
    batch.size += unit.last > unit.first;
    return unit;
  }

  void cut(Unit<T>& unit) {
    const uint32_t last = std::min(long_.size(), at_ + kUnit), to = std::min(long_.size(), last + t_.sampler.window);
    const uint32_t from = at_ > t_.sampler.window ? (at_ - t_.sampler.window) / kLanes * kLanes : 0;
    const auto part = [&](const std::vector<uint32_t>& of) { return std::vector(of.begin() + from, of.begin() + to); };
    unit.kept = {part(long_.position), part(long_.word), part(long_.window)};
    unit.first = at_ - from, unit.last = last - from;
    at_ = last;
    if (at_ == long_.size()) at_ = 0, ++sentence_;
  }

  const Training<T>& t_;
  const uint64_t most_;  // centres of a batch, or a unit more
  std::vector<uint32_t> occurrences_;
  uint64_t sentence_ = 0;
  uint32_t at_ = 0;  // the next centre of a long sentence
  Kept long_;
};

// Threads wait a short time awake, as the others are about to come, and then asleep.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}

  void wait() {
    const uint32_t round = round_.load(std::memory_order_relaxed);
    if (waiting_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
      waiting_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      round_.notify_all();
      return;
    }
    for (int i = 0; i < kSpins; ++i) {
      if (round_.load(std::memory_order_acquire) != round) return;
#ifdef SGNS_X86
      _mm_pause();
#endif
    }
    round_.wait(round, std::memory_order_acquire);
  }

 private:
  static constexpr int kSpins = 500;
  const int threads_;
  alignas(64) std::atomic<int> waiting_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
};

template <class T>
class Deterministic {
 public:
  Deterministic(const Training<T>& training, int workers)
      : t_(training), planner_(training), workers_(uint32_t(workers)), barrier_(workers) {}

  Totals run() {
    planner_.next(batches_[0]);
    stopped_ = stop();
    std::vector<std::thread> threads;
    for (uint32_t w = 1; w < workers_; ++w) threads.emplace_back([this, w] { work(w); });
    work(0);
    for (auto& thread : threads) thread.join();
    return all_;
  }

 private:
  void work(uint32_t me) {
    Worker<T, CopiedRows<T>> worker(t_);
    std::vector<uint32_t> mine;
    int turn = 0;
    for (; batches_[turn].size && !stopped_; turn ^= 1) {
      Batch<T>& batch = batches_[turn];
      worker.rows().reset();
      for (size_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) <= batch.size;) {
        if (i == 0) {
          planner_.next(batches_[turn ^ 1]);
        } else {
          train(worker, batch.units[i - 1]);
        }
      }
      barrier_.wait();
      if (me == 0) count(batch);
      for (size_t i = 0; i < batch.size; ++i) add(batch.units[i].changes, me, mine);
      barrier_.wait();
    }
    if (me == 0 && !stopped_) count(batches_[turn]);  // words at the end of which none was kept
  }

  void train(Worker<T, CopiedRows<T>>& worker, Unit<T>& unit) {
    worker.rows().begin(unit.kept, unit.changes);
    worker.centres(unit.kept, unit.number, unit.begin, unit.first, unit.last);
    worker.rows().finish();
    unit.totals = worker.take();
  }

  void add(const std::vector<Change<T>>& changes, uint32_t me, std::vector<uint32_t>& mine) {
    mine.resize(changes.size());
    size_t n = 0;
    for (uint32_t k = 0; k < changes.size(); ++k) {
      mine[n] = k;
      n += uint64_t(changes[k].hash) * workers_ >> 32 == me;
    }
    for (size_t k = 0; k < n; ++k) {
      if (k + kAhead < n) prefetch_row(changes[mine[k + kAhead]].row, t_.columns);
      add_row(changes[mine[k]].row, changes[mine[k]].added, t_.columns);
    }
  }

  void count(const Batch<T>& batch) {
    for (size_t i = 0; i < batch.size; ++i) all_.add(batch.units[i].totals);
    all_.raw += batch.tokens;
    std::atomic_ref<uint64_t>(*t_.progress).fetch_add(batch.tokens, std::memory_order_relaxed);
    stopped_ = stop();
    next_ = 0;
  }

  bool stop() const { return std::atomic_ref<uint8_t>(*t_.stop).load(std::memory_order_relaxed); }

  static constexpr size_t kAhead = 4;
  const Training<T>& t_;
  Planner<T> planner_;
  const uint32_t workers_;
  Barrier barrier_;
  Batch<T> batches_[2];
  std::atomic<size_t> next_{0};
  bool stopped_ = false;
  Totals all_;
};

}  // namespace sgns
