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

// Tasks in phases, for whoever is free: a phase ends when its tasks are done, so that no one waits for a thread that
// has none, as the system may let it sleep for long.
class Phases {
 public:
  struct Task {
    uint32_t phase, number;
  };

  void begin(uint32_t phase, uint32_t tasks) {
    finished_.store(0, std::memory_order_relaxed);
    ticket_.store(uint64_t(phase) << 32 | tasks << kBits, std::memory_order_release);
    phase_.store(phase, std::memory_order_release);
    phase_.notify_all();
  }

  // Waits if all tasks are taken; in the phase kEnd there are none any more.
  Task take() {
    for (;;) {
      const uint64_t ticket = ticket_.fetch_add(1, std::memory_order_acq_rel);
      const uint32_t phase = uint32_t(ticket >> 32), number = uint32_t(ticket) & ((1u << kBits) - 1);
      if (phase == kEnd || number < tasks(ticket)) return {phase, number};
      wait(phase);
    }
  }

  // Was this the last task? The next phase is then to begin.
  bool finish() {
    const uint32_t all = tasks(ticket_.load(std::memory_order_relaxed));  // of this phase, until it ends
    return finished_.fetch_add(1, std::memory_order_acq_rel) + 1 == all;
  }

  static constexpr uint32_t kEnd = ~uint32_t(0);

 private:
  static uint32_t tasks(uint64_t ticket) { return uint32_t(ticket) >> kBits; }

  // First awake, as tasks are short.
  void wait(uint32_t phase) {
    for (int i = 0; i < kSpins; ++i) {
      if (phase_.load(std::memory_order_acquire) != phase) return;
#ifdef SGNS_X86
      _mm_pause();
#endif
    }
    phase_.wait(phase, std::memory_order_acquire);
  }

  static constexpr int kBits = 16, kSpins = 500;
  alignas(64) std::atomic<uint64_t> ticket_{0};  // the phase, its number of tasks, those that are taken
  alignas(64) std::atomic<uint32_t> finished_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

// Phase 2n trains batch n, and plans the next one; phase 2n + 1 adds what was gained.
template <class T, class S>
class Deterministic {
 public:
  Deterministic(const Training<T, S>& training, int workers)
      : t_(training), planner_(training), workers_(uint32_t(workers)) {}

  Totals run() {
    planner_.next(batches_[0]);
    begin(0);
    std::vector<std::thread> threads;
    for (uint32_t w = 1; w < workers_; ++w) threads.emplace_back([this] { work(); });
    work();
    for (auto& thread : threads) thread.join();
    return all_;
  }

 private:
  Batch<T, S>& batch(uint32_t n) { return batches_[n % 2]; }

  // Trains batch n, if there is one and it is wanted.
  void begin(uint32_t n) {
    if (std::atomic_ref<uint8_t>(*t_.stop).load(std::memory_order_relaxed)) {
      phases_.begin(Phases::kEnd, 0);
    } else if (batch(n).size) {
      phases_.begin(2 * n, uint32_t(batch(n).size) + 1);
    } else {
      count(batch(n));  // words at the end of which none was kept
      phases_.begin(Phases::kEnd, 0);
    }
  }

  void work() {
    Worker<T, CopiedRows<T, S, false>> worker(t_);
    std::vector<uint32_t> mine;
    uint32_t last = 0;  // the batch whose copies the worker has
    for (Phases::Task task; (task = phases_.take()).phase != Phases::kEnd;) {
      const uint32_t n = task.phase / 2;
      Batch<T, S>& now = batch(n);
      if (task.phase % 2) {
        for (size_t i = 0; i < now.size; ++i) add(now.units[i].changes, task.number, mine);
      } else if (task.number == 0) {
        planner_.next(batch(n + 1));
      } else {
        if (last != n) worker.rows().reset(), last = n;
        train(worker, now.units[task.number - 1]);
      }
      if (!phases_.finish()) continue;
      if (task.phase % 2) {
        count(now);
        begin(n + 1);
      } else {
        phases_.begin(2 * n + 1, workers_);
      }
    }
  }

  void train(Worker<T, CopiedRows<T, S, false>>& worker, BatchUnit<T, S>& unit) {
    worker.rows().begin(unit, unit.changes);
    worker.centres(unit.kept, unit.number, unit.begin, unit.first, unit.last);
    worker.rows().finish();
    unit.totals = worker.take();
  }

  void add(const Changes<T, S>& changes, uint32_t part, std::vector<uint32_t>& mine) {
    const auto& rows = changes.rows;
    mine.resize(rows.size());
    size_t n = 0;
    for (uint32_t k = 0; k < rows.size(); ++k) {
      mine[n] = k;
      n += uint64_t(rows[k].place) * workers_ >> 32 == part;
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
  }

  static constexpr size_t kAhead = 4;
  const Training<T, S>& t_;
  Planner<T, S> planner_;
  const uint32_t workers_;
  Phases phases_;
  Batch<T, S> batches_[2];
  Totals all_;
};

}  // namespace sgns
