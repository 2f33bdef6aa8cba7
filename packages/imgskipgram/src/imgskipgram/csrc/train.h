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
#include "kernels.h"

// One pass over the corpus. Threads share the vectors without locks; samples and learning rates do not depend on them.
namespace sgns {

inline constexpr uint64_t kRateBlock = 10000;  // tokens of one learning rate
inline constexpr uint64_t kNoBlock = ~uint64_t(0);
inline constexpr uint64_t kSampledLoss = 16;  // "sampled": the loss of one token in so many

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

  uint64_t block(uint64_t token) const { return (first_token + token) / kRateBlock; }
  T rate(uint64_t block) const {
    const double before = double(done + block * kRateBlock);
    return T(std::max(min_alpha, alpha - (alpha - min_alpha) * before / double(total)));
  }
  T locked(uint32_t word) const { return lock[one_lock ? 0 : word]; }
};

// Where a worker finds its rows: those that all workers share.
template <class T>
class SharedRows {
 public:
  using Training = sgns::Training<T>;
  static constexpr bool kInPlace = true;

  explicit SharedRows(const Training& training) : t_(training) {}

  T* input(const Kept& kept, uint32_t i) { return row(t_.v, kept.word[i]); }
  T* output(uint32_t word) { return row(t_.u, word); }
  T* image(uint32_t i) { return row(t_.z, i); }
  // Rows that will be needed.
  const T* expect_input(uint32_t word) const { return row(t_.v, word); }
  const T* expect_output(uint32_t word) const { return row(t_.u, word); }

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
        outputs_(zeros_.data()),
        merged_(zeros_.data()) {
    for (uint32_t k = 0; k <= t_.sampler.negative; ++k) outputs_.add(zeros_.data(), zeros_.data(), T(k == 0));
    if (t_.image_weight > 0) {
      grounded_.resize(t_.sampler.noise.size);
      for (uint32_t w = 0; w < t_.sampler.noise.size; ++w) grounded_[w] = t_.sampler.images.grounded(w);
    }
  }

  Rows& rows() { return rows_; }

  // What was done since the last call.
  Totals take() {
    totals_.text_loss = loss_.sum();
    loss_ = {};
    return std::exchange(totals_, {});
  }

  // Samples of some centres are drawn before those of the centres before are used, so that rows can be on their way.
  void sentences(uint64_t first, uint64_t last) {
    for (uint64_t s = first; s < last; ++s) {
      const uint64_t begin = t_.offsets[s], number = t_.first_sentence + s;
      const uint32_t n = uint32_t(t_.offsets[s + 1] - begin);
      Kept& kept = selected_[drawn_ && drawn_->kept == &selected_[0]];
      t_.sampler.select(t_.ids + begin, n, number, kept);
      totals_.raw += n;
      draw(kept, number, begin, 0, kept.size());
    }
    finish();
  }

  // The centres [first, last) of a sentence that begins at token `begin`; first is a multiple of kLanes.
  void centres(const Kept& kept, uint64_t number, uint64_t begin, uint32_t first, uint32_t last) {
    draw(kept, number, begin, first, last);
    finish();
  }

 private:
  struct Group {
    const Kept* kept;
    uint64_t number, begin;  // of the sentence
    uint32_t first, last;    // centres
    std::vector<uint32_t> negatives;
  };

  void draw(const Kept& kept, uint64_t number, uint64_t begin, uint32_t first, uint32_t last) {
    totals_.words += last - first;
    for (; first < last; first += kLanes) {
      Group& group = groups_[drawn_ == &groups_[0]];
      group.kept = &kept, group.number = number, group.begin = begin;
      group.first = first, group.last = std::min(last, first + kLanes);
      t_.sampler.negatives(kept, number, first, group.last, group.negatives);
      if (drawn_) train(*drawn_, &group);
      drawn_ = &group;
    }
  }

  void finish() {
    if (drawn_) train(*drawn_, nullptr);
    drawn_ = nullptr;
  }

  // What is needed at centre i (at its first context with "pair"): the outputs, and the input that comes into the
  // window; at first all of the window.
  void expect(const Group& group, uint32_t i, const uint32_t* negatives) {
    const Kept& kept = *group.kept;
    if (!kept.contexts(i)) return;
    ahead_.push_back(rows_.expect_output(kept.word[i]));
    expect(ahead_, negatives);
    const uint32_t end = std::min(kept.size(), i + t_.sampler.window + 1);
    for (uint32_t j = i ? end - 1 : 0; j < end; ++j) ahead_.push_back(rows_.expect_input(kept.word[j]));
  }

  void expect(std::vector<const void*>& ahead, const uint32_t* negatives) {
    for (uint32_t k = 0; k < t_.sampler.negative; ++k) {
      if (negatives[k] != kNone) ahead.push_back(rows_.expect_output(negatives[k]));
    }
  }

  void train(const Group& group, const Group* next) {
    const Kept& kept = *group.kept;
    const uint32_t W = t_.sampler.window, K = t_.sampler.negative;
    const uint32_t from = group.first > W ? group.first - W : 0, to = std::min(kept.size(), group.last + W);
    // Rows of the words around the centre, without its own, which changes places with that of the next.
    x_.resize(to - from), locks_.resize(to - from);
    T* own = nullptr;
    T lock = 0;
    for (uint32_t j = from, at = 0; j < to; ++j) {
      T* const row = rows_.input(kept, j);
      if (j == group.first) {
        own = row, lock = t_.locked(kept.word[j]);
      } else {
        x_[at] = row, locks_[at++] = t_.locked(kept.word[j]);
      }
    }
    const bool pair = t_.sampler.sharing == Sharing::pair;
    const uint32_t far = pair ? 1 : 2;
    const uint32_t* negatives = group.negatives.data();
    for (uint32_t i = group.first; i < group.last; ++i) {
      const uint32_t contexts = kept.contexts(i);
      const uint32_t* const after = negatives + size_t(K) * (pair ? contexts : 1);
      ahead_.clear();
      if (i + far < group.last) {
        expect(group, i + far, negatives + (after - negatives) * far);
      } else if (next) {
        const uint32_t later = i + far - group.last;
        if (next->first + later < next->last) {
          expect(*next, next->first + later, next->negatives.data() + size_t(K) * later);
        }
      }
      const uint64_t token = group.begin + kept.position[i], block = t_.block(token);
      if (block != block_) block_ = block, alpha_ = t_.rate(block);
      const bool measured = t_.loss == LossKind::exact || (t_.loss == LossKind::sampled && token % kSampledLoss == 0);
      if (t_.image_weight > 0 && grounded_[kept.word[i]]) image(kept, i, own, group.number, measured);
      text(kept.word[i], kept.left(i) - from, contexts, negatives, measured);
      std::swap(own, x_[i - from]), std::swap(lock, locks_[i - from]);
      negatives = after;
    }
  }

  void image(const Kept& kept, uint32_t i, T* v, uint64_t number, bool measured) {
    const uint32_t word = kept.word[i], n = t_.sampler.images.negative;
    shown_.resize(1 + n);
    t_.sampler.image(kept.position[i], word, number, shown_.data());
    distinct_.clear(), z_.clear(), weight_.clear();
    for (const uint32_t k : shown_) {
      if (k == kNone) continue;
      const size_t at = size_t(std::find(distinct_.begin(), distinct_.end(), k) - distinct_.begin());
      if (at < distinct_.size()) {
        weight_[at] += 1;
      } else {
        distinct_.push_back(k), z_.push_back(rows_.image(k)), weight_.push_back(1);
      }
    }
    a_.resize(z_.size()), c_.resize(z_.size());
    const double loss =
        image_step(ImageTerm<T>{v, t_.locked(word), z_.data(), weight_.data(), int(z_.size()), alpha_ * t_.image_weight,
                                t_.columns, t_.objective, t_.images_trained, a_.data(), c_.data(), scratch_.data()});
    std::fill(scratch_.data(), scratch_.data() + t_.columns, T(0));
    ++totals_.image_pairs;
    if (measured) totals_.image_loss += loss, ++totals_.image_measured;
  }

  // A centre and the contexts from `left` on.
  void text(uint32_t target, uint32_t left, uint32_t contexts, const uint32_t* negatives, bool measured) {
    if (!contexts) return;
    if (t_.sampler.sharing == Sharing::pair) {
      for (uint32_t slot = 0; slot < contexts; ++slot, negatives += t_.sampler.negative) {
        soon_.clear();
        if (slot + 1 < contexts) expect(soon_, negatives + t_.sampler.negative);
        run(left + slot, 1, gather(target, negatives), slot + 1 < contexts ? soon_ : ahead_, measured);
      }
    } else {
      run(left, int(contexts), gather(target, negatives), ahead_, measured);
    }
    totals_.text_pairs += contexts;
    if (measured) totals_.text_measured += contexts;
  }

  // The target and its negatives. One that repeats counts that often, for two updates of a row would lose one.
  const OutputList<T>& gather(uint32_t target, const uint32_t* negatives) {
    const uint32_t K = t_.sampler.negative;
    uint32_t odd = 0;
    for (uint32_t k = 0; k < K; ++k) {
      odd |= uint32_t(negatives[k] == target) | uint32_t(negatives[k] == kNone);
      for (uint32_t j = 0; j < k; ++j) odd |= uint32_t(negatives[k] == negatives[j]);
    }
    if (odd) return merge(target, negatives);
    outputs_.point(0, rows_.output(target));
    for (uint32_t k = 0; k < K; ++k) outputs_.point(int(k) + 1, rows_.output(negatives[k]));
    return outputs_;
  }

  const OutputList<T>& merge(uint32_t target, const uint32_t* negatives) {
    const auto add = [&](uint32_t word, T label) {
      T* u = rows_.output(word);
      merged_.add(u, u, label);
      distinct_.push_back(word);
    };
    merged_.clear();
    distinct_.clear();
    add(target, T(1));
    for (uint32_t k = 0; k < t_.sampler.negative; ++k) {
      if (negatives[k] == kNone) continue;
      const auto at = std::find(distinct_.begin(), distinct_.end(), negatives[k]);
      if (at == distinct_.end()) {
        add(negatives[k], T(0));
      } else {
        merged_.repeat(int(at - distinct_.begin()));
      }
    }
    return merged_;
  }

  void run(uint32_t first, int m, const OutputList<T>& outputs, const std::vector<const void*>& ahead, bool measured) {
    t_.step(
        Tile<T>{x_.data() + first, nullptr, locks_.data() + first, m, outputs.data(), outputs.chunks(), scratch_.data(),
                alpha_, t_.columns, ahead.data(), int(ahead.size()), t_.columns * int(sizeof(*t_.v)), Rows::kInPlace},
        measured ? &loss_ : nullptr);
  }

  const typename Rows::Training& t_;
  Rows rows_;
  Aligned<T> zeros_, scratch_;
  OutputList<T> outputs_, merged_;
  Kept selected_[2];
  Group groups_[2];
  Group* drawn_ = nullptr;  // the last group, which is yet to be trained
  uint64_t block_ = kNoBlock;
  T alpha_ = 0;
  std::vector<uint32_t> shown_, distinct_;
  std::vector<T*> x_, z_;
  std::vector<const void*> ahead_, soon_;  // rows of a centre, or with "pair" a context, that is about to come
  std::vector<T> locks_, weight_, a_, c_;
  std::vector<bool> grounded_;  // of words: bits, which stay in the nearest cache
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
