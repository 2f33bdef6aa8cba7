#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "aligned.h"
#include "draws.h"
#include "image_term.h"
#include "tile.h"

// One pass over the corpus. Threads share the vectors without locks; samples and learning rates do not depend on them.
namespace sgns {

inline constexpr uint64_t kRateBlock = 10000;  // tokens of one learning rate
inline constexpr uint64_t kSampledLoss = 16;   // "sampled": the loss of one token in so many

enum class LossKind { exact, sampled, none };

struct Totals {
  double text_loss = 0, image_loss = 0;
  uint64_t text_pairs = 0, image_pairs = 0, words = 0, raw = 0;
  uint64_t text_measured = 0, image_measured = 0;  // the pairs that the losses cover

  void add(const Totals& t) {
    text_loss += t.text_loss, image_loss += t.image_loss;
    text_pairs += t.text_pairs, image_pairs += t.image_pairs, words += t.words, raw += t.raw;
    text_measured += t.text_measured, image_measured += t.image_measured;
  }
};

// Numbers of v and u are stored as S and calculated with as T.
template <class T, class S = T>
struct Training {
  const uint32_t* ids;
  const uint64_t* offsets;  // [sentences + 1]
  uint64_t sentences, first_sentence;
  Sampler sampler;
  S *v, *u;
  T* z;
  const T* lock;
  bool one_lock;
  int columns;
  Objective objective;
  T image_weight;
  bool images_trained;
  double alpha, min_alpha;
  uint64_t done, first_token, total;  // tokens of earlier epochs, of this one before ids, of all epochs
  LossKind loss;
  Step<T> step;
  uint8_t* stop;
  uint64_t* progress;  // tokens that are done

  T rate(uint64_t token) const {
    const double before = double(done + (first_token + token) / kRateBlock * kRateBlock);
    return T(std::max(min_alpha, alpha - (alpha - min_alpha) * before / double(total)));
  }
  T locked(uint32_t word) const { return lock[one_lock ? 0 : word]; }
};

template <class T>
inline void prefetch_row(const T* row, int columns) {
  for (int c = 0; c < columns; c += 64 / int(sizeof(T))) __builtin_prefetch(row + c);
}

// Where a worker finds its rows: those that all workers share.
template <class T>
class SharedRows {
 public:
  using Training = sgns::Training<T>;

  explicit SharedRows(const Training& training) : t_(training) {}

  T* input(const Kept& kept, uint32_t i) { return row(t_.v, kept.word[i]); }
  T* output(uint32_t word) { return row(t_.u, word); }
  T* image(uint32_t i) { return row(t_.z, i); }
  void expect_input(uint32_t word) const { prefetch_row(row(t_.v, word), t_.columns); }
  void expect_output(uint32_t word) const { prefetch_row(row(t_.u, word), t_.columns); }

 private:
  T* row(T* matrix, uint32_t i) const { return matrix + size_t(i) * size_t(t_.columns); }

  const Training& t_;
};

template <class T, class Rows = SharedRows<T>>
class Worker {
 public:
  explicit Worker(const typename Rows::Training& training)
      : t_(training),
        rows_(training),
        zeros_(size_t(t_.columns)),
        scratch_(size_t(t_.columns)),
        outputs_(zeros_.data()) {}

  Rows& rows() { return rows_; }

  // What was done since the last call.
  Totals take() {
    totals_.text_loss = loss_.sum();
    loss_ = {};
    return std::exchange(totals_, {});
  }

  void sentences(uint64_t first, uint64_t last) {
    for (uint64_t s = first; s < last; ++s) sentence(s);
  }

  void sentence(uint64_t s) {
    const uint64_t begin = t_.offsets[s], number = t_.first_sentence + s;
    const uint32_t n = uint32_t(t_.offsets[s + 1] - begin);
    totals_.raw += n;
    t_.sampler.select(t_.ids + begin, n, number, selected_);
    centres(selected_, number, begin, 0, selected_.size());
  }

  // The centres [first, last) of a sentence that begins at token `begin`; first is a multiple of kLanes.
  void centres(const Kept& kept, uint64_t number, uint64_t begin, uint32_t first, uint32_t last) {
    totals_.words += last - first;
    for (; first < last; first += kLanes) {
      const uint32_t end = std::min(last, first + kLanes);
      t_.sampler.negatives(kept, number, first, end, negatives_);
      next_ = negatives_.data();
      prefetch(kept, first);
      for (uint32_t i = first; i < end; ++i) {
        const uint32_t* own = next_;
        next_ += t_.sampler.negative * (t_.sampler.sharing == Sharing::pair ? kept.contexts(i) : 1);
        if (i + 1 < end) prefetch(kept, i + 1);
        const uint64_t token = begin + kept.position[i];
        const T alpha = t_.rate(token);
        const bool measured = t_.loss == LossKind::exact || (t_.loss == LossKind::sampled && token % kSampledLoss == 0);
        if (t_.image_weight > 0 && t_.sampler.images.grounded(kept.word[i])) image(kept, i, number, alpha, measured);
        text(kept, i, own, alpha, measured);
      }
    }
  }

 private:
  // Outputs of centre i (of its first context with "pair"), and the word that comes into the window.
  void prefetch(const Kept& kept, uint32_t i) const {
    rows_.expect_output(kept.word[i]);
    for (uint32_t k = 0; k < t_.sampler.negative && next_ + k < negatives_.data() + negatives_.size(); ++k) {
      if (next_[k] != kNone) rows_.expect_output(next_[k]);
    }
    const uint32_t ahead = i + t_.sampler.window;
    if (ahead < kept.size()) rows_.expect_input(kept.word[ahead]);
  }

  void image(const Kept& kept, uint32_t i, uint64_t number, T alpha, bool measured) {
    const uint32_t word = kept.word[i], n = t_.sampler.images.negative;
    drawn_.resize(1 + n);
    t_.sampler.image(kept.position[i], word, number, drawn_.data());
    distinct_.clear(), z_.clear(), weight_.clear();
    for (const uint32_t k : drawn_) {
      if (k == kNone) continue;
      const size_t at = size_t(std::find(distinct_.begin(), distinct_.end(), k) - distinct_.begin());
      if (at < distinct_.size()) {
        weight_[at] += 1;
      } else {
        distinct_.push_back(k), z_.push_back(rows_.image(k)), weight_.push_back(1);
      }
    }
    a_.resize(z_.size()), c_.resize(z_.size());
    const double loss = image_step(ImageTerm<T>{rows_.input(kept, i), t_.locked(word), z_.data(), weight_.data(),
                                                int(z_.size()), alpha * t_.image_weight, t_.columns, t_.objective,
                                                t_.images_trained, a_.data(), c_.data(), scratch_.data()});
    std::fill(scratch_.data(), scratch_.data() + t_.columns, T(0));
    ++totals_.image_pairs;
    if (measured) totals_.image_loss += loss, ++totals_.image_measured;
  }

  void text(const Kept& kept, uint32_t i, const uint32_t* negatives, T alpha, bool measured) {
    const uint32_t contexts = kept.contexts(i), K = t_.sampler.negative;
    if (!contexts) return;
    x_.clear(), locks_.clear();
    for (uint32_t j = kept.left(i); j < kept.right(i); ++j) {
      if (j == i) continue;
      x_.push_back(rows_.input(kept, j));
      locks_.push_back(t_.locked(kept.word[j]));
    }
    if (t_.sampler.sharing == Sharing::pair) {
      for (uint32_t slot = 0; slot < contexts; ++slot) {
        gather(kept.word[i], negatives + size_t(slot) * K);
        run(slot, 1, alpha, measured);
      }
    } else {
      gather(kept.word[i], negatives);
      run(0, int(contexts), alpha, measured);
    }
    totals_.text_pairs += contexts;
    if (measured) totals_.text_measured += contexts;
  }

  // The target and its negatives; one that repeats counts that often, for two updates of a row would lose one.
  void gather(uint32_t target, const uint32_t* negatives) {
    outputs_.clear();
    distinct_.clear();
    add(target, T(1));
    for (uint32_t k = 0; k < t_.sampler.negative; ++k) {
      if (negatives[k] == kNone) continue;
      const auto at = std::find(distinct_.begin(), distinct_.end(), negatives[k]);
      if (at == distinct_.end()) {
        add(negatives[k], T(0));
      } else {
        outputs_.repeat(int(at - distinct_.begin()));
      }
    }
  }

  void add(uint32_t word, T label) {
    T* u = rows_.output(word);
    outputs_.add(u, u, label);
    distinct_.push_back(word);
  }

  void run(uint32_t first, int m, T alpha, bool measured) {
    t_.step(Tile<T>{x_.data() + first, nullptr, locks_.data() + first, m, outputs_.data(), outputs_.chunks(),
                    scratch_.data(), alpha, t_.columns},
            measured ? &loss_ : nullptr);
  }

  const typename Rows::Training& t_;
  Rows rows_;
  Aligned<T> zeros_, scratch_;
  OutputList<T> outputs_;
  Kept selected_;
  std::vector<uint32_t> negatives_, drawn_, distinct_;
  const uint32_t* next_ = nullptr;
  std::vector<T*> x_, z_;
  std::vector<T> locks_, weight_, a_, c_;
  Loss loss_;
  Totals totals_;
};

// Runs of whole sentences, of a rate block or a little more, go to whoever is free.
template <class Worker, class Training>
Totals train_epoch(const Training& t, int workers) {
  std::mutex mutex;
  uint64_t next = 0;
  Totals all;
  const auto work = [&] {
    Worker worker(t);
    while (!std::atomic_ref<uint8_t>(*t.stop).load(std::memory_order_relaxed)) {
      uint64_t begin, end;
      {
        const std::lock_guard lock(mutex);
        begin = next;
        if (begin >= t.sentences) break;
        const uint64_t* to =
            std::lower_bound(t.offsets + begin + 1, t.offsets + t.sentences, t.offsets[begin] + kRateBlock);
        end = next = uint64_t(to - t.offsets);
      }
      worker.sentences(begin, end);
      std::atomic_ref<uint64_t>(*t.progress).fetch_add(t.offsets[end] - t.offsets[begin], std::memory_order_relaxed);
    }
    const std::lock_guard lock(mutex);
    all.add(worker.take());
  };
  std::vector<std::thread> threads;
  for (int w = 1; w < workers; ++w) threads.emplace_back(work);
  work();
  for (auto& thread : threads) thread.join();
  return all;
}

}  // namespace sgns
