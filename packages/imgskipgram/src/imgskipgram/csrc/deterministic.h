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

inline constexpr uint64_t kBatch = 250;       // tokens, a divisor of kRateBlock; so many that copies stay in the cache
inline constexpr double kDrawn = 50;          // how often the commonest negative is drawn in a batch, on average
inline constexpr uint32_t kOccurrences = 16;  // of any word in a batch

template <class T, class S>
struct BatchUnit : Unit {
  Changes<T, S> changes;
  Totals totals;
};

template <class T, class S>
struct Batch {
  std::vector<BatchUnit<T, S>> units;
  size_t size = 0;
  uint64_t tokens = 0;
};

// Where batches and units end depends on places in the epoch only, and on words, for what many units add to one row
// at once must not carry it too far: a small vocabulary has small batches. The first sentence that begins at or behind
// a multiple of kBatch begins a batch, so that an epoch may be cut into calls there.
template <class T, class S>
class Planner {
 public:
  explicit Planner(const Training<T, S>& training)
      : t_(training),
        most_(std::max<uint64_t>(1, uint64_t(kDrawn / (training.sampler.noise.most() * training.sampler.negative)))),
        occurrences_(training.sampler.noise.size),
        units_(training, 0, training.sentences) {}

  // The next batch that has units, or none at the end of the epoch.
  void next(Batch<T, S>& batch) {
    const uint64_t begin = units_.token();
    batch.size = 0;
    while (units_.left() && !batch.size) fill(batch);
    for (size_t k = 0; k < batch.size; ++k) {
      for (const uint32_t word : batch.units[k].kept.word) occurrences_[word] = 0;
    }
    batch.tokens = units_.token() - begin;
  }

 private:
  uint64_t block(uint64_t token) const { return (t_.first_token + token) / kBatch; }

  void fill(Batch<T, S>& batch) {
    bool full = false;
    uint64_t centres = 0;
    for (const uint64_t now = block(units_.token()); units_.left() && block(units_.token()) == now && !full;) {
      if (batch.size == batch.units.size()) batch.units.emplace_back();
      Unit& unit = batch.units[batch.size];
      units_.next(unit);
      batch.size += unit.last > unit.first;
      centres += unit.last - unit.first;
      full = centres >= most_ || (block(unit.begin) != now && !units_.inside());
      for (uint32_t i = unit.first; i < unit.last; ++i) full |= ++occurrences_[unit.kept.word[i]] >= kOccurrences;
    }
  }

  const Training<T, S>& t_;
  const uint64_t most_;  // centres of a batch, or a unit more
  std::vector<uint32_t> occurrences_;
  Units<T, S> units_;
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

template <class T, class S>
class Deterministic {
 public:
  Deterministic(const Training<T, S>& training, int workers)
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
    Worker<T, CopiedRows<T, S, false>> worker(t_);
    std::vector<uint32_t> mine;
    int turn = 0;
    for (; batches_[turn].size && !stopped_; turn ^= 1) {
      Batch<T, S>& batch = batches_[turn];
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

  void train(Worker<T, CopiedRows<T, S, false>>& worker, BatchUnit<T, S>& unit) {
    worker.rows().begin(unit, unit.changes);
    worker.centres(unit.kept, unit.number, unit.begin, unit.first, unit.last);
    worker.rows().finish();
    unit.totals = worker.take();
  }

  void add(const Changes<T, S>& changes, uint32_t me, std::vector<uint32_t>& mine) {
    const auto& rows = changes.rows;
    mine.resize(rows.size());
    size_t n = 0;
    for (uint32_t k = 0; k < rows.size(); ++k) {
      mine[n] = k;
      n += uint64_t(rows[k].place) * workers_ >> 32 == me;
    }
    for (size_t k = 0; k < n; ++k) {
      if (k + kAhead < n) prefetch_bytes(rows[mine[k + kAhead]].row, t_.columns * int(sizeof(S)));
      rows[mine[k]].add(t_.columns, changes.bits(mine[k]));
    }
  }

  void count(const Batch<T, S>& batch) {
    for (size_t i = 0; i < batch.size; ++i) all_.add(batch.units[i].totals);
    all_.raw += batch.tokens;
    std::atomic_ref<uint64_t>(*t_.progress).fetch_add(batch.tokens, std::memory_order_relaxed);
    stopped_ = stop();
    next_ = 0;
  }

  bool stop() const { return std::atomic_ref<uint8_t>(*t_.stop).load(std::memory_order_relaxed); }

  static constexpr size_t kAhead = 4;
  const Training<T, S>& t_;
  Planner<T, S> planner_;
  const uint32_t workers_;
  Barrier barrier_;
  Batch<T, S> batches_[2];
  std::atomic<size_t> next_{0};
  bool stopped_ = false;
  Totals all_;
};

}  // namespace sgns
