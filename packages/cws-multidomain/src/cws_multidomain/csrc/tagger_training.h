#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <numeric>
#include <span>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tagger_crf.h"
#include "tagger_features.h"

// A linear-chain CRF trained sentence by sentence with adaptive rates by feature frequency (ADF).
namespace cws::tagger {

struct Corpus {
  std::vector<uint32_t> characters;       // of all words, folded
  std::vector<uint32_t> words = {0};      // ends in characters, after a zero
  std::vector<uint32_t> sentences = {0};  // ends in words, after a zero
  std::vector<uint16_t> labels;           // of words: a tag, or tags + the index of a set of tags

  size_t length(size_t sentence) const { return sentences[sentence + 1] - sentences[sentence]; }
};

struct Options {
  float rate, upper, lower;  // of features, and how far the rates of the rarest and of the commonest fall per update
  float transition_decay;    // of the rate of transitions per update
  float l2;                  // deviation of the weights' prior
  int updates;               // per epoch
  uint32_t minimum;          // occurrences of a feature
  uint64_t seed;
};

// Calls work(i) for all i < n on some threads; the result must not depend on the order.
inline void parallel(size_t n, int threads, const std::function<void(size_t)>& work) {
  std::atomic<size_t> next = 0;
  const auto run = [&] {
    for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) work(i);
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads && size_t(t) < n; ++t) others.emplace_back(run);
  run();
  for (std::thread& other : others) other.join();
}

struct Keys {                   // of all words' features
  std::vector<uint64_t> keys;   // kFeatures per word
  std::vector<uint8_t> counts;  // of which so many are there
};

inline Keys extract(const Corpus& corpus, int threads) {
  constexpr size_t kBlock = 64;  // sentences
  const size_t sentences = corpus.sentences.size() - 1, total = corpus.words.size() - 1;
  Keys out;
  out.keys.resize(total * kFeatures);
  out.counts.resize(total);
  parallel((sentences + kBlock - 1) / kBlock, threads, [&](size_t block) {
    std::vector<Word> words;
    for (size_t s = block * kBlock; s < std::min(sentences, (block + 1) * kBlock); ++s) {
      words.clear();
      for (uint32_t w = corpus.sentences[s]; w < corpus.sentences[s + 1]; ++w) {
        words.push_back(
            describe(std::span(corpus.characters).subspan(corpus.words[w], corpus.words[w + 1] - corpus.words[w])));
      }
      frame(words);
      for (uint32_t w = corpus.sentences[s]; w < corpus.sentences[s + 1]; ++w) {
        out.counts[w] =
            static_cast<uint8_t>(features(&words[w - corpus.sentences[s] + 2], &out.keys[size_t(w) * kFeatures]));
      }
    }
  });
  return out;
}

class Trainer {
 public:
  // sets: rows of 0 and 1 of padded width, the tags that a label from `tags` on allows.
  Trainer(Corpus corpus, int tags, std::vector<std::vector<float>> sets, const Options& options, int threads)
      : corpus_(std::move(corpus)),
        options_(options),
        tags_(tags),
        pad_(padded(tags)),
        random_(options.seed),
        sets_(std::move(sets)) {
    index(extract(corpus_, threads));
    transition_.assign(size_t(tags_) * pad_, 0);
    chain_.edges.assign(size_t(tags_) * pad_, 0);
    transition_rate_ = options_.rate;
    order_.resize(corpus_.sentences.size() - 1);
    std::iota(order_.begin(), order_.end(), 0u);
  }

  // One pass over the corpus; the loss before each step, summed.
  double epoch() {
    const size_t n = order_.size();
    for (size_t i = n - 1; i > 0; --i) std::swap(order_[i], order_[draw() % (i + 1)]);
    const size_t every = std::max<size_t>(1, n / options_.updates);
    double loss = 0;
    size_t since = 0;
    for (size_t k = 0; k < n; ++k) {
      loss += step(order_[k]);
      ++since;
      if ((k > 0 && k % every == 0) || k == n - 1) {
        decay(since);
        since = 0;
      }
    }
    for (uint32_t f = 0; f < states_.size(); ++f) refresh(f);
    return loss;
  }

  const std::vector<uint64_t>& keys() const { return keys_; }
  const std::vector<uint32_t>& offsets() const { return offsets_; }
  const std::vector<uint8_t>& row_tags() const { return row_tags_; }
  const std::vector<float>& weights() const { return weights_; }
  const std::vector<float>& transition() const { return transition_; }
  int tags() const { return tags_; }
  int pad() const { return pad_; }

  // Only these states from now on, all at zero, with fresh rates.
  void restart(std::span<const bool> keep) {
    std::vector<uint32_t> offsets = {0};
    std::vector<uint8_t> tags;
    for (size_t f = 0; f < states_.size(); ++f) {
      for (uint32_t r = offsets_[f]; r < offsets_[f + 1]; ++r) {
        if (keep[r]) tags.push_back(row_tags_[r]);
      }
      offsets.push_back(static_cast<uint32_t>(tags.size()));
    }
    offsets_ = std::move(offsets);
    row_tags_ = std::move(tags);
    weights_.assign(row_tags_.size(), 0);
    std::fill(transition_.begin(), transition_.end(), 0.0f);
    states_.assign(states_.size(), State{options_.rate, 0, 0, ~0u});
    transition_rate_ = options_.rate;
    decays_.clear();
    steps_ = 0;
    random_ = options_.seed;
    std::iota(order_.begin(), order_.end(), 0u);
  }

 private:
  struct State {
    float rate;
    uint32_t interval;  // up to which rate and weights are decayed
    uint32_t count;     // of sentences with the feature in that interval
    uint32_t sentence;  // the last step that had it
  };

  uint64_t draw() { return mix(random_ += 0x9E3779B97F4A7C15); }

  void index(const Keys& found) {
    const size_t total = corpus_.words.size() - 1;
    std::unordered_map<uint64_t, uint32_t> counts;
    counts.reserve(total * 4);
    for (size_t w = 0; w < total; ++w) {
      for (int j = 0; j < found.counts[w]; ++j) ++counts[found.keys[w * kFeatures + j]];
    }
    std::unordered_map<uint64_t, uint32_t> ids;
    ids.reserve(counts.size());
    starts_ = {0};
    for (size_t w = 0; w < total; ++w) {
      for (int j = 0; j < found.counts[w]; ++j) {
        const uint64_t key = found.keys[w * kFeatures + j];
        if (counts[key] < options_.minimum) continue;
        const auto [it, fresh] = ids.try_emplace(key, static_cast<uint32_t>(keys_.size()));
        if (fresh) keys_.push_back(key);
        ids_of_words_.push_back(it->second);
      }
      starts_.push_back(static_cast<uint32_t>(ids_of_words_.size()));
    }
    offsets_ = {0};
    for (size_t f = 0; f < keys_.size(); ++f) {
      for (int t = 0; t < tags_; ++t) row_tags_.push_back(static_cast<uint8_t>(t));
      offsets_.push_back(static_cast<uint32_t>(row_tags_.size()));
    }
    weights_.assign(row_tags_.size(), 0);
    states_.assign(keys_.size(), State{options_.rate, 0, 0, ~0u});
  }

  // What intervals have passed since the feature was last seen: its rate falls, its weights shrink.
  void refresh(uint32_t f) {
    State& state = states_[f];
    if (state.interval == decays_.size()) return;
    float factor = 1;
    for (; state.interval < decays_.size(); ++state.interval) {
      const Decay& d = decays_[state.interval];
      state.rate *= options_.upper - (options_.upper - options_.lower) * (float(state.count) / d.sentences);
      state.count = 0;
      factor *= 1 - state.rate * d.shrink;
    }
    for (uint32_t r = offsets_[f]; r < offsets_[f + 1]; ++r) weights_[r] *= factor;
  }

  void decay(size_t since) {
    const float shrink = float(since) / (float(order_.size()) * options_.l2 * options_.l2);
    decays_.push_back({float(since), shrink});
    transition_rate_ *= options_.transition_decay;
    for (float& w : transition_) w -= transition_rate_ * w * shrink;
  }

  double step(uint32_t s) {
    const uint32_t begin = corpus_.sentences[s], length = corpus_.sentences[s + 1] - begin;
    if (length == 0) return 0;
    const uint32_t now = steps_++;
    emissions_.assign(size_t(length) * pad_, 0);
    for (uint32_t i = 0; i < length; ++i) {
      float* e = &emissions_[size_t(i) * pad_];
      for (uint32_t k = starts_[begin + i]; k < starts_[begin + i + 1]; ++k) {
        const uint32_t f = ids_of_words_[k];
        refresh(f);
        State& state = states_[f];
        state.count += state.sentence != now;
        state.sentence = now;
        for (uint32_t r = offsets_[f]; r < offsets_[f + 1]; ++r) e[row_tags_[r]] += weights_[r];
      }
    }
    transitions_.set(transition_, tags_);
    const double loss = sentence_loss(emissions_.data(), length, transition_, transitions_, &corpus_.labels[begin],
                                      sets_, chain_, gold_);
    for (uint32_t i = 0; i < length; ++i) {
      const float* d = &chain_.nodes[size_t(i) * pad_];
      for (uint32_t k = starts_[begin + i]; k < starts_[begin + i + 1]; ++k) {
        const uint32_t f = ids_of_words_[k];
        const float rate = states_[f].rate;
        for (uint32_t r = offsets_[f]; r < offsets_[f + 1]; ++r) weights_[r] -= rate * d[row_tags_[r]];
      }
    }
    for (size_t j = 0; j < transition_.size(); ++j) transition_[j] -= transition_rate_ * chain_.edges[j];
    return loss;
  }

  struct Decay {
    float sentences, shrink;
  };

  Corpus corpus_;
  Options options_;
  int tags_, pad_;
  uint64_t random_;
  std::vector<std::vector<float>> sets_;
  std::vector<uint64_t> keys_;
  std::vector<uint32_t> starts_, ids_of_words_;  // features of word w: ids_of_words_[starts_[w] .. starts_[w + 1]]
  std::vector<uint32_t> offsets_;                // states of feature f: [offsets_[f] .. offsets_[f + 1]]
  std::vector<uint8_t> row_tags_;
  std::vector<float> weights_;
  std::vector<State> states_;
  std::vector<float> transition_;  // [tags, pad]
  float transition_rate_;
  std::vector<Decay> decays_;
  std::vector<uint32_t> order_;
  uint32_t steps_ = 0;
  std::vector<float> emissions_;
  Transitions transitions_;
  Chain chain_;
  Chain gold_;
};

}  // namespace cws::tagger
